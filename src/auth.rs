//! Whose a token is, by the word of `auth.url`: gpush's login.
//!
//! ```text
//! {"token":<as the client sent it>} ── POST ──► auth.url
//!        uid ◄── {"code":0,"data":{"user_info":{"uid":"…"}}}     all else, late answers included: nobody
//! ```
//!
//! What the service says is its business; that it says nothing, or nothing one can read, is counted and logged.
//!
//! Bounded in time (`auth.deadline_ms`), in the size of the answer, and in how many run at once (`auth.concurrent_max`: one more waits
//! for its turn within its time). Connections are kept for the next login, certificates are checked against the system's roots.

use crate::causes::causes;
use crate::config::{Auth, LoginMode};
use crate::metrics::{ControlMetrics, Counter};
use crate::queue::UID_BYTES_MAX;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// How long a connection to `auth.url` is kept without a login.
const IDLE: Duration = Duration::from_secs(60);

/// The log hears of a service in trouble once in this time; the rest is counted.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// Why there is nobody to ask; says who must do what.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Correct it.
    #[error("auth.url = {url}: {error}; correct it")]
    Url {
        /// The setting.
        url: String,
        /// What is wrong.
        error: hyper::http::uri::InvalidUri,
    },
    /// Install them.
    #[error("auth.url is https, and the system's root certificates could not be loaded: {0}; install ca-certificates")]
    Roots(std::io::Error),
}

/// Knows, or asks, whose a token is. Cloning shares the connections.
#[derive(Clone)]
pub enum Login {
    /// Nobody can log in.
    Nobody,
    /// Whoever one says one is.
    AcceptAny,
    /// Whom the URL knows.
    Url(Arc<Asker>),
}

/// The asking side of `auth.url`.
pub struct Asker {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: Uri,
    deadline: Duration,
    answer_bytes_max: usize,
    turns: Semaphore,
    /// When trouble is logged next, and how often it was not since the last time.
    complaint: Mutex<(Option<Instant>, u64)>,
}

/// Why it is not known who is behind a token, though the service has not said no.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Trouble {
    #[error("it was not reached: {0}")]
    Unreachable(String),
    #[error("it did not answer within auth.deadline_ms")]
    Late,
    #[error("its answer broke off, or is longer than auth.answer_bytes_max: {0}")]
    Broken(String),
    #[error("its answer is no JSON object with a number as its code")]
    Unclear,
}

impl Trouble {
    fn counter<'a>(&self, metrics: &'a ControlMetrics) -> &'a Counter {
        match self {
            Trouble::Unreachable(_) => &metrics.auth_unreachable,
            Trouble::Late => &metrics.auth_late,
            Trouble::Broken(_) | Trouble::Unclear => &metrics.auth_unclear,
        }
    }
}

impl Login {
    /// As the settings say. Connects to nobody yet.
    ///
    /// # Errors
    /// A URL that is none, or https without root certificates.
    pub fn new(settings: &Auth) -> Result<Login, AuthError> {
        Ok(match settings.login {
            LoginMode::None => Login::Nobody,
            LoginMode::AcceptAny => Login::AcceptAny,
            LoginMode::Url => Login::Url(Arc::new(Asker::new(settings)?)),
        })
    }

    /// The uid behind `token` (JSON, verbatim); `None`: whatever is not a clear yes.
    pub async fn uid(&self, token: &str, metrics: &ControlMetrics) -> Option<Box<str>> {
        let asker = match self {
            Login::Nobody => return None,
            Login::AcceptAny => return claimed(token),
            Login::Url(asker) => asker,
        };
        let answer = tokio::time::timeout(asker.deadline, asker.ask(token)).await.unwrap_or(Err(Trouble::Late));
        answer.unwrap_or_else(|trouble| {
            trouble.counter(metrics).add(1);
            asker.complain(&trouble);
            None
        })
    }
}

impl Asker {
    fn new(settings: &Auth) -> Result<Asker, AuthError> {
        let url: Uri = settings.url.parse().map_err(|error| AuthError::Url { url: settings.url.clone(), error })?;
        let tls = HttpsConnectorBuilder::new();
        let tls = if url.scheme_str() == Some("https") {
            tls.with_provider_and_native_roots(provider()).map_err(AuthError::Roots)?
        } else {
            // Never used: nothing but `url` is ever asked, and no redirection followed.
            tls.with_tls_config(no_roots())
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = tls.https_or_http().enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(settings.idle_connections_max)
            .build(connector);
        let deadline = Duration::from_millis(settings.deadline_ms);
        let turns = Semaphore::new(settings.concurrent_max);
        let complaint = Mutex::default();
        Ok(Asker { client, url, deadline, answer_bytes_max: settings.answer_bytes_max, turns, complaint })
    }

    async fn ask(&self, token: &str) -> Result<Option<Box<str>>, Trouble> {
        let _turn = self.turns.acquire().await.expect("it is never closed");
        let body = [r#"{"token":"#, token, "}"].concat();
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let response = self.client.request(request).await.map_err(|e| Trouble::Unreachable(causes(&e)))?;
        let mut body = Limited::new(response.into_body(), self.answer_bytes_max);
        let mut answer = BytesMut::new();
        while let Some(frame) = body.frame().await {
            if let Ok(chunk) = frame.map_err(|e| Trouble::Broken(e.to_string()))?.into_data() {
                answer.extend_from_slice(&chunk);
            }
        }
        confirmed(&answer)
    }

    fn complain(&self, trouble: &Trouble) {
        let now = Instant::now();
        let mut complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, unlogged) = &mut *complaint;
        if next.is_some_and(|next| now < next) {
            *unlogged += 1;
            return;
        }
        tracing::warn!(url = %self.url, unlogged = *unlogged, "a login was refused without a word of auth.url: {trouble}");
        *complaint = (Some(now + COMPLAINT_INTERVAL), 0);
    }
}

fn provider() -> rustls::crypto::CryptoProvider {
    rustls::crypto::ring::default_provider()
}

fn no_roots() -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the versions that rustls speaks")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

/// The uid in an answer that is a clear yes. The HTTP status says nothing, as in the original.
fn confirmed(answer: &[u8]) -> Result<Option<Box<str>>, Trouble> {
    let answer: Value = serde_json::from_slice(answer).map_err(|_| Trouble::Unclear)?;
    let code = answer.get("code").and_then(Value::as_f64).ok_or(Trouble::Unclear)?;
    let uid = answer.pointer("/data/user_info/uid").and_then(Value::as_str);
    Ok(uid.filter(|_| code == 0.0).and_then(usable))
}

/// Under `accept-any` a string is the uid, and so is the text of a number; anything else is nobody.
fn claimed(token: &str) -> Option<Box<str>> {
    match serde_json::from_str(token).ok()? {
        Value::String(uid) => usable(&uid),
        Value::Number(uid) => usable(&uid.to_string()),
        _ => None,
    }
}

fn usable(uid: &str) -> Option<Box<str>> {
    (1..=UID_BYTES_MAX).contains(&uid.len()).then(|| uid.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_names_a_user() {
        let uid = |answer: &str| confirmed(answer.as_bytes()).ok().flatten().map(String::from);
        let sheet = r#"{"code":0,"data":{"user_info":{"uid":"123456","username":"bob"}}}"#;
        assert_eq!(uid(sheet).as_deref(), Some("123456"));
        assert_eq!(uid(r#"{"x":[],"code":0.0,"data":{"user_info":{"uid":"用户"}}}"#).as_deref(), Some("用户"));
        let with = |code: &str, uid: &str| format!(r#"{{"code":{code},"data":{{"user_info":{{"uid":{uid}}}}}}}"#);
        for no in [
            with("1", r#""a""#),
            with("-1", r#""a""#),
            with(r#""0""#, r#""a""#),
            with("null", r#""a""#),
            with("false", r#""a""#),
            with("0", "7"),
            with("0", r#""""#),
            with("0", "null"),
            with("0", &format!("\"{}\"", "x".repeat(256))),
            r#"{"data":{"user_info":{"uid":"a"}}}"#.into(),
            r#"{"code":0,"data":{"uid":"a"}}"#.into(),
            r#"{"code":0,"data":[]}"#.into(),
            r#"{"code":0}"#.into(),
            "[0]".into(),
            "no".into(),
            String::new(),
            format!("{sheet}x"),
        ] {
            assert_eq!(uid(&no), None, "{no}");
        }
        for no in [with("1", "null"), with("0", "7"), r#"{"code":0}"#.into()] {
            assert_eq!(confirmed(no.as_bytes()), Ok(None), "{no} is a no");
        }
        for nothing in ["", "no", "[0]", r#"{"data":{}}"#, r#"{"code":"0"}"#] {
            assert_eq!(confirmed(nothing.as_bytes()), Err(Trouble::Unclear), "{nothing} says nothing");
        }
    }

    #[test]
    fn a_service_that_says_nothing_is_counted_by_what_is_wrong_with_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/", listener.local_addr().unwrap());
            let login = Login::new(&Auth { login: LoginMode::Url, url, deadline_ms: 50, ..Auth::default() }).unwrap();
            let metrics = ControlMetrics::default();
            let counts = || (metrics.auth_unreachable.get(), metrics.auth_late.get(), metrics.auth_unclear.get());
            assert_eq!(login.uid("1", &metrics).await, None);
            assert_eq!(counts(), (0, 1, 0), "nobody accepts");
            drop(listener);
            assert_eq!(login.uid("1", &metrics).await, None);
            assert_eq!(counts(), (1, 1, 0), "nobody listens");
            let Login::Url(asker) = &login else { unreachable!("it was set") };
            assert_eq!(asker.complaint.lock().unwrap().1, 1, "one is logged, the next one counted");
        });
    }

    #[test]
    fn under_accept_any_a_string_or_number_is_the_uid() {
        let uid = |token: &str| claimed(token).map(String::from);
        assert_eq!(uid(r#""bob""#).as_deref(), Some("bob"));
        assert_eq!(uid("123456").as_deref(), Some("123456"));
        for nobody in ["null", "true", "{}", "[\"bob\"]", "\"\"", "x"] {
            assert_eq!(uid(nobody), None, "{nobody}");
        }
    }

    #[test]
    fn no_more_than_concurrent_max_are_asked_at_once_and_who_waits_gets_a_turn() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let service = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/", service.local_addr().unwrap());
            let settings =
                Auth { login: LoginMode::Url, url, concurrent_max: 2, deadline_ms: 60_000, ..Auth::default() };
            let login = Login::new(&settings).unwrap();
            let asked: Vec<_> = (0..6)
                .map(|_| {
                    let login = login.clone();
                    tokio::spawn(async move { login.uid("1", &ControlMetrics::default()).await })
                })
                .collect();
            let Login::Url(asker) = &login else { unreachable!("it was set") };
            for _ in 0..3 {
                // Two arrive; all that are yet unanswered hold a turn or wait for one.
                let (mut one, _) = service.accept().await.unwrap();
                let (mut other, _) = service.accept().await.unwrap();
                assert_eq!(asker.turns.available_permits(), 0);
                for socket in [&mut one, &mut other] {
                    let mut request = Vec::new();
                    while !request.ends_with(b"}") {
                        assert_ne!(socket.read_buf(&mut request).await.unwrap(), 0);
                    }
                }
                let third = tokio::time::timeout(Duration::from_millis(50), service.accept()).await;
                assert!(third.is_err(), "a third one was asked while two were unanswered");
                for socket in [&mut one, &mut other] {
                    let answer = r#"{"code":0,"data":{"user_info":{"uid":"u"}}}"#;
                    let head =
                        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", answer.len());
                    socket.write_all((head + answer).as_bytes()).await.unwrap();
                }
            }
            for one in asked {
                assert_eq!(one.await.unwrap().as_deref(), Some("u"));
            }
        });
    }

    #[test]
    fn a_url_that_is_none_is_told() {
        let settings = |url: &str| Auth { login: LoginMode::Url, url: url.into(), ..Auth::default() };
        let error = Login::new(&settings("http://[::1")).err().expect("no URL").to_string();
        assert!(error.contains("auth.url = http://[::1"), "{error}");
        assert!(Login::new(&settings("http://127.0.0.1:20014/account/v1/validate_token")).is_ok());
    }
}
