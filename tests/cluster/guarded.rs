//! Who may pull: tokens and certificates between nodes, and a user of etcd's.

use crate::etcd::{Etcd, Tls};
use crate::gateway::{Gateway, Start, wait_until};
use crate::nats::Nats;
use crate::node::{Listener, Node, cluster, nodes};
use fanwire::proto::v1::PullRequest;
use fanwire::proto::v1::relay_client::RelayClient;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A folder for the files of one test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("fanwire-guarded-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn with(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn pull(node: &Node, token: Option<&str>) -> Result<(), tonic::Code> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let address = format!("http://{}", node.network.address);
        let mut client = RelayClient::connect(address).await.unwrap();
        let mut request = tonic::Request::new(PullRequest { node: "test".into(), ..PullRequest::default() });
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        client.pull(request).await.map(drop).map_err(|status| status.code())
    })
}

#[test]
fn nodes_with_one_token_pull_and_others_do_not() {
    let etcd = Etcd::start();
    let folder = Folder::new("tokens");
    let tokens = folder.with("tokens", "token-of-all-nodes-1\n");
    let two = cluster(&etcd, &["a", "b"], &[("cluster.relay_tokens_file", &tokens)]);
    let mut listener = Listener::new(&two[1], "t");
    two[0].publish("t", 1..11);
    listener.hears(&[("a", 10)]);
    for (token, outcome) in [
        (Some("token-of-all-nodes-1"), Ok(())),
        (Some("token-of-nobody-0001"), Err(tonic::Code::Unauthenticated)),
        (None, Err(tonic::Code::Unauthenticated)),
    ] {
        assert_eq!(pull(&two[0], token), outcome, "{token:?}");
    }
    // A connection that never says who it is does not stay.
    let mut silent = TcpStream::connect(two[0].network.address).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(12))).unwrap();
    let start = Instant::now();
    let end = silent.read_to_end(&mut Vec::new());
    assert!(start.elapsed() < Duration::from_secs(9), "{end:?} after {:?}", start.elapsed());
}

/// An HTTP/2 frame without a stream.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u8;
    [&[0, 0, length, kind, flags, 0, 0, 0, 0], payload].concat()
}

#[test]
fn a_stranger_that_asks_and_never_reads_does_not_stay() {
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    let etcd = Etcd::start();
    let node = Node::start(&etcd, "a", &[]);
    let mut stranger = TcpStream::connect(node.network.behind()).unwrap();
    let begun = Instant::now();
    stranger.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stranger.write_all(&frame(SETTINGS, 0, &[])).unwrap();
    // Until what the node owes finds no room, and it reads no more.
    let pings = frame(PING, 0, b"stranger").repeat(4096);
    stranger.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let is_full = |error: &std::io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    let mut stood_still = false;
    let end = loop {
        match stranger.write(&pings) {
            Err(error) if is_full(&error) => stood_still = true,
            Err(error) => break error,
            Ok(_) => {}
        }
        assert!(begun.elapsed() < Duration::from_secs(9), "it is still there");
    };
    assert!(stood_still && begun.elapsed() > Duration::from_secs(3), "{end:?} after {:?}", begun.elapsed());
}

/// A certificate authority, and the files of a node that it vouches for.
fn certificates(folder: &Folder, name: &str) -> (String, String, String) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().unwrap();
    let node = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    (
        folder.with(&format!("{name}-ca.pem"), &pem("CERTIFICATE", ca.der())),
        folder.with(&format!("{name}.pem"), &pem("CERTIFICATE", node.der())),
        folder.with(&format!("{name}.key"), &pem("PRIVATE KEY", &key.serialize_der())),
    )
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[test]
fn nodes_with_certificates_of_one_authority_pull_and_others_do_not() {
    let etcd = Etcd::start();
    let folder = Folder::new("certificates");
    let (ca, certificate, key) = certificates(&folder, "ours");
    let settings = [
        ("cluster.relay_ca_file", ca.as_str()),
        ("cluster.relay_certificate_file", &certificate),
        ("cluster.relay_certificate_key_file", &key),
    ];
    let two = cluster(&etcd, &["a", "b"], &settings);
    let mut listener = Listener::new(&two[1], "t");
    two[0].publish("t", 1..11);
    listener.hears(&[("a", 10)]);

    let (other_ca, other_certificate, other_key) = certificates(&folder, "theirs");
    let stranger = Node::start(
        &etcd,
        "c",
        &[
            ("cluster.relay_ca_file", &other_ca),
            ("cluster.relay_certificate_file", &other_certificate),
            ("cluster.relay_certificate_key_file", &other_key),
        ],
    );
    wait_until("it knows them and pulls from none", || {
        stranger.sees(2, 0) && stranger.metrics().sum("fanwire_relay_link_failures_total", &[]) >= 2.0
    });
    wait_until("they pull from each other alone", || two[0].sees(2, 1) && two[1].sees(2, 1));
}

#[test]
fn nats_with_certificates_lets_in_whoever_shows_one_of_its_authority() {
    let folder = Folder::new("nats");
    let (ca, certificate, key) = certificates(&folder, "ours");
    let mut nats = Nats::prepared(&format!(
        "tls: {{ cert_file: {certificate:?}, key_file: {key:?}, ca_file: {ca:?}, verify: true }}"
    ));
    nats.spawn();
    let address = nats.address().replace("nats://", "tls://");
    let start = |more: &[(&str, &str)]| {
        let start = Start::new().sets(&[("cluster.transport", "nats"), ("cluster.nats", &address)]);
        start.sets(more).start()
    };
    let connected = |node: &Gateway| node.metrics().sum("fanwire_cluster_nats_connected", &[]) == 1.0;
    let ours = start(&[
        ("cluster.nats_ca_file", &ca),
        ("cluster.nats_certificate_file", &certificate),
        ("cluster.nats_certificate_key_file", &key),
    ]);
    wait_until("it has the stream", || connected(&ours));
    ours.push("t", "x");

    let (other_ca, ..) = certificates(&folder, "theirs");
    for stranger in [start(&[("cluster.nats_ca_file", &ca)]), start(&[("cluster.nats_ca_file", &other_ca)])] {
        wait_until("it says why", || stranger.get("/readyz").body.contains("no stream for"));
        wait_until("it has tried again", || stranger.metrics().sum("fanwire_cluster_nats_failures_total", &[]) >= 2.0);
        assert!(!connected(&stranger));
    }
}

/// Users in an etcd: `node` has the password `secret`.
fn add_users(etcd: &Etcd) {
    for arguments in [
        &["user", "add", "root:rootpass"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "fanwire"],
        &["role", "grant-permission", "fanwire", "--prefix=true", "readwrite", "fanwire/"],
        &["user", "add", "node:secret"],
        &["user", "grant-role", "node", "fanwire"],
        &["auth", "enable"],
    ] {
        etcd.ctl(arguments).unwrap_or_else(|| panic!("{arguments:?}"));
    }
}

/// Why a node says that it is no member.
fn note(node: &Node) -> String {
    node.get("/readyz").json()["notes"].to_string()
}

#[test]
fn etcd_with_users_lets_in_whoever_has_the_password() {
    let etcd = Etcd::start();
    let folder = Folder::new("users");
    let (right, wrong) = (folder.with("right", "secret\n"), folder.with("wrong", "guess\n"));
    let settings = [("cluster.etcd_user", "node"), ("cluster.etcd_password_file", right.as_str())];
    let early = Node::start(&etcd, "early", &settings);
    assert!(early.is_member(), "a name does no harm where none is needed: {}", note(&early));
    drop(early);

    add_users(&etcd);
    let two = cluster(&etcd, &["a", "b"], &settings);
    assert!(two[0].sees(1, 1));
    let user = ["--set", "cluster.etcd_user=node", "--set", &format!("cluster.etcd_password_file={right}")];
    assert_eq!(nodes(&etcd.address(), &user).1.lines().count(), 3);

    let settings = [("cluster.etcd_user", "node"), ("cluster.etcd_password_file", wrong.as_str())];
    let refused = Node::start(&etcd, "c", &settings);
    wait_until("it says why it is none", || {
        note(&refused).contains("Unauthen") || note(&refused).contains("InvalidArgument")
    });
    assert_eq!(nodes(&etcd.address(), &[]).0, 1);
}

#[test]
fn etcd_behind_tls_knows_nodes_by_certificate_and_password() {
    let folder = Folder::new("etcd-tls");
    let [ours, others] = ["ours", "others"].map(|name| {
        let (ca, certificate, key) = certificates(&folder, name);
        Tls { ca, certificate, key }
    });
    let shown = |ca: &Tls, own: &Tls| {
        [
            ("cluster.etcd_ca_file", ca.ca.clone()),
            ("cluster.etcd_certificate_file", own.certificate.clone()),
            ("cluster.etcd_certificate_key_file", own.key.clone()),
        ]
    };
    let started = |etcd: &Etcd, name, settings: &[(&str, String)]| {
        let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, &**value)).collect();
        Node::start(etcd, name, &settings)
    };
    let etcd = Etcd::start_with(&ours);
    let two = ["a", "b"].map(|name| started(&etcd, name, &shown(&ours, &ours)));
    two.iter().for_each(|node| wait_until("it pulls from the other", || node.sees(1, 1)));
    let mut listener = Listener::new(&two[1], "t");
    two[0].publish("t", 1..11);
    listener.hears(&[("a", 10)]);
    let set: Vec<_> = shown(&ours, &ours).into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    let flags: Vec<_> = set.iter().flat_map(|setting| ["--set", setting]).collect();
    assert_eq!(nodes(&etcd.address(), &flags).1.lines().count(), 3);

    // Whom etcd does not know, who does not know etcd, and who shows nothing.
    for (name, settings) in [
        ("unknown", &shown(&ours, &others)[..]),
        ("distrustful", &shown(&others, &ours)),
        ("bare", &shown(&ours, &ours)[..1]),
    ] {
        let refused = started(&etcd, name, settings);
        wait_until("it says why it is none", || note(&refused).contains(&format!("etcd at {}: ", etcd.address())));
        assert!(!refused.is_member(), "{name}");
        assert!(!note(&refused).contains("no answer within"), "{name}: {}", note(&refused));
    }

    drop(two);
    add_users(&etcd);
    let with_password = |word: &str| {
        let file = folder.with(word, word);
        let user = [("cluster.etcd_user", "node".to_owned()), ("cluster.etcd_password_file", file)];
        [&shown(&ours, &ours)[..], &user].concat()
    };
    let member = started(&etcd, "c", &with_password("secret"));
    wait_until("it is a member", || member.is_member());
    let refused = started(&etcd, "d", &with_password("guess"));
    wait_until("it says why it is none", || note(&refused).contains("authentication failed"));
}
