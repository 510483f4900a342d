//! What lies around the WebSocket: whose pages may connect, prefixes, plain pages, the client's address behind a proxy.

use crate::client::{Client, GREETING, upgrade};
use crate::gateway::{Gateway, Start, wait_until};
use crate::http::{Response, request};
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

/// A plain request on the subscriber port.
fn page(gateway: &Gateway, method: &str, path: &str) -> Response {
    request(gateway.subscribers, method, path, &[], &[])
}

#[test]
fn stats_counts_open_websockets_of_all_shards_on_both_ports() {
    let gateway = Gateway::start(&[]);
    let clients: Vec<Client> = (0..5).map(|_| Client::gpush(&gateway)).collect();
    let _undecided = Client::dial(gateway.subscribers); // No WebSocket yet.
    wait_until("all are counted", || page(&gateway, "GET", "/stats").body == r#"{"count":5}"#);
    let response = page(&gateway, "GET", "/stats?x=y");
    assert_eq!((response.status, response.body.as_str()), (200, r#"{"count":5}"#));
    assert_eq!(response.headers["content-type"], "application/json");
    assert_eq!(response.headers["connection"], "close");
    assert_eq!(gateway.get("/stats").body, r#"{"count":5}"#);
    drop(clients);
    wait_until("none is left", || gateway.get("/stats").body == r#"{"count":0}"#);
    // Who is neither a browser nor a modern client.
    let (old, mut client) = Client::ask(gateway.subscribers, "GET /stats HTTP/1.0\r\n\r\n");
    assert_eq!((old.status, old.body.as_str()), (200, r#"{"count":0}"#));
    assert_eq!(client.ends(), []);
}

#[test]
fn metrics_are_on_the_subscriber_port_too_and_pages_answer_get_and_head_alone() {
    let gateway = Gateway::start(&[]);
    let _client = Client::gpush(&gateway);
    let response = page(&gateway, "GET", "/metrics");
    assert_eq!(response.status, 200);
    assert!(response.body.contains("\nwebsocket_current_connections 1\n"), "{}", response.body);
    let types = [&response, &gateway.get("/metrics")].map(|r| r.headers["content-type"].clone());
    assert_eq!(types[0], types[1]);
    let head = page(&gateway, "HEAD", "/metrics");
    let length: usize = head.headers["content-length"].parse().unwrap();
    assert!(head.status == 200 && head.body.is_empty() && length > 1000, "{head:?}");
    let post = page(&gateway, "POST", "/stats");
    assert_eq!((post.status, post.headers["allow"].as_str()), (405, "GET, HEAD"));
    assert_eq!(page(&gateway, "GET", "/elsewhere").status, 404);
    assert!(gateway.metrics().sum("fanwire_pages_total", &[]) >= 2.0);
    wait_until("every reader's slot is free again", || gateway.metrics().connections() == 1.0);
}

#[test]
fn one_key_turns_pages_off_and_a_prefix_goes_before_them() {
    let gateway = Gateway::start(&[("listen.0.pages", "false")]);
    assert_eq!(page(&gateway, "GET", "/stats").status, 404);
    assert_eq!(page(&gateway, "GET", "/metrics").status, 404);
    assert_eq!(gateway.get("/stats").status, 200, "the admin port has them in any case");
    let gateway = Gateway::start(&[("listen.0.path_prefix", "/push")]);
    assert_eq!(page(&gateway, "GET", "/push/stats").status, 200);
    assert_eq!(page(&gateway, "GET", "/stats").status, 404);
}

/// A handshake whose proxy names `client`: its status, and the connection.
fn through(gateway: &Gateway, headers: &str) -> (u16, Client) {
    let (response, client) = Client::ask(gateway.subscribers, &upgrade("/ws", headers));
    if response.status == 503 {
        assert!(response.headers.contains_key("retry-after") && response.body.contains("this address"), "{response:?}");
    }
    (response.status, client)
}

#[test]
fn behind_a_trusted_proxy_the_cap_is_on_the_clients_own_address() {
    let gateway = Gateway::start(&[
        ("limits.connections_per_address_max", "2"),
        ("listen.0.trusted_proxies", "127.0.0.0/8, 10.0.0.0/8"),
        ("log.level", "debug"),
    ]);
    let of = |client: &str| through(&gateway, &format!("X-Forwarded-For: {client}\r\n"));
    let (first, second) = (of("192.0.2.1"), of("6.6.6.6, 192.0.2.1, 10.1.1.1"));
    assert_eq!((first.0, second.0), (101, 101));
    assert_eq!(of("192.0.2.1").0, 503);
    assert_eq!(
        through(&gateway, "X-Real-IP: 6.6.6.6\r\nX-Forwarded-For: 192.0.2.1\r\n").0,
        503,
        "one header is believed"
    );
    let others: Vec<_> = ["192.0.2.2", "2001:db8::1"].map(of).into();
    assert!(others.iter().all(|(status, _)| *status == 101));
    // The proxy's own connections count for nobody.
    let own: Vec<_> = (0..4).map(|_| through(&gateway, "")).collect();
    assert!(own.iter().all(|(status, _)| *status == 101));
    drop(first);
    wait_until("its place is free again", || of("192.0.2.1").0 == 101);
    assert!(gateway.metrics().sum("fanwire_connections_refused_total", &[("reason", "address")]) >= 2.0);
    wait_until("the log names the client", || gateway.stderr().contains("192.0.2.1:0"));
    drop((second, others, own));
    wait_until("nobody is left", || gateway.metrics().connections() == 0.0);
    assert!((0..2).all(|_| of("192.0.2.2").0 == 101));
}

#[test]
fn who_is_no_trusted_proxy_is_not_believed() {
    let gateway =
        Gateway::start(&[("limits.connections_per_address_max", "1"), ("listen.0.trusted_proxies", "10.0.0.0/8")]);
    let _first = through(&gateway, "X-Forwarded-For: 192.0.2.1\r\nX-Real-IP: 192.0.2.1\r\n");
    assert_eq!(through(&gateway, "X-Forwarded-For: 192.0.2.2\r\n").0, 503, "both are 127.0.0.1");
}

/// A PROXY header of version 2 for 192.0.2.`host`.
fn proxy_header(host: u8) -> Vec<u8> {
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02", &[host][..], b"\x7f\0\0\x01\x9c\x40\0\x50"].concat()
}

#[test]
fn where_a_proxy_header_is_due_it_names_the_client_and_without_it_the_connection_is_cut() {
    let gateway = Gateway::start(&[
        ("limits.connections_per_address_max", "1"),
        ("listen.0.trusted_proxies", "127.0.0.1"),
        ("listen.0.proxy_protocol", "true"),
        ("log.level", "debug"),
    ]);
    let ask = |header: &[u8], more: &str| {
        let mut client = Client::dial(gateway.subscribers);
        client.write(header);
        client.write(upgrade("/ws", more).as_bytes());
        (client.response().status, client)
    };
    let (status, mut client) = ask(&proxy_header(1), "");
    assert_eq!((status, client.text()), (101, GREETING.to_owned()));
    client.ping();
    // What the client says of itself is not the proxy's word.
    assert_eq!(ask(&proxy_header(1), "X-Forwarded-For: 192.0.2.9\r\n").0, 503);
    assert_eq!(ask(b"PROXY TCP4 192.0.2.1 127.0.0.1 40000 80\r\n", "").0, 503);
    // Who never ends its request's head counts, and is refused, all the same.
    let begin = |host: u8| {
        let mut client = Client::dial(gateway.subscribers);
        client.write(&proxy_header(host));
        client.write(b"GET /ws HTTP/1.1\r\n");
        client
    };
    wait_until("the refused are gone", || gateway.metrics().connections() == 1.0);
    let received = || gateway.metrics().sum("fanwire_received_bytes_total", &[]);
    let before = received();
    let begun = begin(3);
    wait_until("its name is read", || received() >= before + proxy_header(3).len() as f64);
    assert_eq!(begin(3).response().status, 503);
    drop(begun);
    wait_until("its place is free again", || ask(&proxy_header(3), "").0 == 101);
    wait_until("they are gone", || gateway.metrics().connections() == 1.0);
    let _second = ask(b"PROXY TCP4 192.0.2.2 127.0.0.1 40000 80\r\n", "");
    assert_eq!(_second.0, 101);
    wait_until("the log names the client", || gateway.stderr().contains("192.0.2.1:40000"));
    for bad in [&b"GET /ws HTTP/1.1\r\n\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", b"PROXY nonsense\r\n"] {
        let mut client = Client::dial(gateway.subscribers);
        client.write(bad);
        assert_eq!(client.ends(), []);
    }
    wait_until("each is counted", || gateway.metrics().sum("fanwire_proxy_headers_refused_total", &[]) == 3.0);
    wait_until("their slots are free again", || gateway.metrics().connections() == 2.0);
}

#[test]
fn the_log_level_is_read_and_changed_over_http() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = Gateway::start(&[("log.level_port", &port.port().to_string())]);
    for (to, path) in [(gateway.http, "/log/level"), (port, "/"), (port, "/any/path")] {
        let ask = |method: &str, body: &str| {
            let headers = [("Content-Length", body.len().to_string())];
            let headers: Vec<_> =
                headers.iter().map(|(k, v)| (*k, v.as_str())).take(usize::from(body.is_empty())).collect();
            let response = request(to, method, path, &headers, body.as_bytes());
            (response.status, response.body)
        };
        assert_eq!(ask("GET", ""), (200, "{\"level\":\"info\"}\n".to_owned()), "{path}");
        let before = gateway.stderr().matches("connected").count();
        Client::gpush(&gateway).ping();
        for level in ["error", "warn", "trace", "debug"] {
            assert_eq!(ask("PUT", &format!(r#"{{"level":"{level}"}}"#)), (200, format!("{{\"level\":\"{level}\"}}\n")));
        }
        assert_eq!(gateway.stderr().matches("connected").count(), before, "at info nobody is named");
        Client::gpush(&gateway).ping();
        wait_until("debug is heard", || gateway.stderr().matches("connected").count() == before + 1);
        for wrong in [r#"{"level":"loud"}"#, "{}", "nonsense"] {
            let (status, body) = ask("PUT", wrong);
            assert!(status == 400 && body.starts_with(r#"{"error":"#), "{wrong}: {status} {body}");
        }
        assert_eq!(ask("DELETE", "").0, 405);
        assert_eq!(ask("PUT", r#"{"level":"INFO"}"#).1, "{\"level\":\"info\"}\n");
    }
}
