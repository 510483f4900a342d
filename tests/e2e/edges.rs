//! What lies around the WebSocket: whose pages may connect, prefixes, plain pages, the client's address behind a proxy.

use crate::client::{Client, GREETING, upgrade};
use crate::gateway::{Gateway, Start};
use std::path::PathBuf;

/// A configuration file that goes with its test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> File {
        let path = std::env::temp_dir().join(format!("fanwire-edges-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        File(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The status a page of `origin` gets that asks for `host`.
fn status(gateway: &Gateway, host: &str, origin: &str) -> u16 {
    let head = upgrade("/ws", &format!("Origin: {origin}\r\n")).replace("Host: localhost", &format!("Host: {host}"));
    let (response, mut client) = Client::ask(gateway.subscribers, &head);
    if response.status == 101 {
        assert_eq!(client.text(), GREETING);
    } else {
        assert!(response.body.contains("allowed_origins"), "{response:?}");
        assert_eq!(client.ends(), []);
    }
    response.status
}

#[test]
fn without_a_configuration_file_pages_of_every_origin_connect_and_one_line_says_so() {
    let gateway = Gateway::start(&[]);
    assert_eq!(status(&gateway, "gateway.example", "https://elsewhere.example"), 101);
    assert_eq!(status(&gateway, "gateway.example", "null"), 101);
    assert_eq!(gateway.stderr().matches("Origin").count(), 1, "{}", gateway.stderr());
}

#[test]
fn with_a_file_that_does_not_say_pages_of_the_same_host_connect_and_others_get_403() {
    let file = File::new("same", "");
    let gateway = Start::new().config(&file.0).start();
    for (host, origin) in [
        ("push.example", "https://push.example"),
        ("push.example:9992", "http://push.example:8080"),
        ("[::1]:1", "http://[::1]"),
    ] {
        assert_eq!(status(&gateway, host, origin), 101, "{origin} to {host}");
    }
    for origin in ["https://elsewhere.example", "null", "https://push.example.evil.example", "\u{fc}"] {
        assert_eq!(status(&gateway, "push.example", origin), 403, "{origin}");
    }
    // Two headers: one welcome is not enough.
    let two = upgrade("/ws", "Origin: http://localhost\r\nOrigin: https://elsewhere.example\r\n");
    assert_eq!(Client::ask(gateway.subscribers, &two).0.status, 403);
    // No browser, no Origin.
    Client::gpush(&gateway).ping();
    let metrics = gateway.metrics();
    assert_eq!(metrics.sum("fanwire_origins_refused_total", &[]), 5.0);
    assert_eq!(metrics.handshakes("rejected"), 5.0);
    assert!(!gateway.stderr().contains("Origin"), "{}", gateway.stderr());
}

#[test]
fn each_listener_has_its_own_origins_paths_and_prefix() {
    let file = File::new(
        "listeners",
        r#"
        [[listen]]
        allowed_origins = ["https://shop.example", "https://*.pages.example"]
        path_prefix = "/push"
        "#,
    );
    let gateway = Start::new().config(&file.0).start();
    assert!(gateway.stdout().contains("/push/ws (gpush)"), "{}", gateway.stdout());
    let ask = |path: &str, more: &str| Client::ask(gateway.subscribers, &upgrade(path, more)).0.status;
    for origin in ["https://shop.example", "https://a.b.pages.example"] {
        assert_eq!(ask("/push/ws", &format!("Origin: {origin}\r\n")), 101, "{origin}");
    }
    for origin in ["https://pages.example", "http://shop.example", "http://localhost"] {
        assert_eq!(ask("/push/ws", &format!("Origin: {origin}\r\n")), 403, "{origin}");
    }
    assert_eq!(ask("/push/ws", ""), 101);
    assert_eq!(ask("/push/echo", ""), 101);
    for path in ["/ws", "/echo", "/pushws", "/push", "/push/push/ws"] {
        assert_eq!(ask(path, ""), 404, "{path}");
    }
}
