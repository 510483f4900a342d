//! TLS as go-push has it: a certificate from files, or one made at start that nobody is expected to verify.

use crate::config::GopushSettings;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use std::sync::Arc;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Names of a certificate of our own. Clients of go-push verify none.
const SELF_SIGNED_FOR: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Correct the file.
    #[error("{key} = \"{file}\": {error}; give a PEM file that this user can read")]
    File {
        /// The setting.
        key: &'static str,
        /// Its value.
        file: String,
        /// What is wrong with it.
        error: String,
    },
    /// Give the key of the certificate.
    #[error(
        "compat.gopush.certificate_file and compat.gopush.certificate_key_file don't make a certificate: {0}; give a chain and its own key"
    )]
    Unusable(String),
    /// Give a certificate.
    #[error("no certificate could be made: {0}; give one in compat.gopush.certificate_file")]
    NotMade(String),
}

/// Accepts TLS with the certificate configured, and HTTP/2 or HTTP/1.1 as the client prefers.
///
/// # Errors
/// A file can't be used, or none is named and no certificate could be made.
pub(super) fn acceptor(settings: &GopushSettings) -> Result<TlsAcceptor, CertificateError> {
    let (chain, key) = match settings.certificate_file.as_str() {
        "" => self_signed()?,
        file => (read_chain(file)?, read_key(&settings.certificate_key_file)?),
    };
    let unusable = |e: rustls::Error| CertificateError::Unusable(e.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Whether the certificate configured can be used; one made at start always can.
///
/// # Errors
/// A file can't be used.
pub fn check_certificate(settings: &GopushSettings) -> Result<(), CertificateError> {
    acceptor(settings).map(drop)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn self_signed() -> Result<Identity, CertificateError> {
    let made = rcgen::generate_simple_self_signed(SELF_SIGNED_FOR.map(str::to_owned))
        .map_err(|e| CertificateError::NotMade(e.to_string()))?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    Ok((vec![made.cert.der().clone()], key.into()))
}

fn read_chain(file: &str) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    const KEY: &str = "compat.gopush.certificate_file";
    let failed = |error: String| CertificateError::File { key: KEY, file: file.to_owned(), error };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).map_err(|e| failed(e.to_string()))?.collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(failed("no certificate is in it".to_owned())),
        Ok(chain) => Ok(chain),
        Err(error) => Err(failed(error.to_string())),
    }
}

fn read_key(file: &str) -> Result<PrivateKeyDer<'static>, CertificateError> {
    const KEY: &str = "compat.gopush.certificate_key_file";
    PrivateKeyDer::from_pem_file(file).map_err(|e| CertificateError::File {
        key: KEY,
        file: file.to_owned(),
        error: e.to_string(),
    })
}

/// Connects by TLS to whoever is there: go-push's gateways show certificates that nobody signed.
pub(super) fn connector() -> TlsConnector {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the protocol versions that rustls takes for safe")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(schemes)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// Takes every certificate.
#[derive(Debug)]
struct Anyone(Vec<SignatureScheme>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_files_a_certificate_is_made() {
        assert!(acceptor(&GopushSettings::default()).is_ok());
    }

    #[test]
    fn a_file_that_is_no_certificate_is_named_with_its_key() {
        let missing = GopushSettings {
            certificate_file: "/nowhere/cert.pem".into(),
            certificate_key_file: "/nowhere/key.pem".into(),
            ..Default::default()
        };
        let said = acceptor(&missing).err().expect("there is no such file").to_string();
        assert!(said.starts_with("compat.gopush.certificate_file = \"/nowhere/cert.pem\""), "{said}");
        let empty = GopushSettings { certificate_file: "/dev/null".into(), ..missing };
        let said = acceptor(&empty).err().expect("nothing is in it").to_string();
        assert!(said.contains("no certificate is in it"), "{said}");
    }
}
