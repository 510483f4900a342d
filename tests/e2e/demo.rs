//! The demo over real sockets: its files, and its echo. What the page does is tested in a browser, by `tests/clients`.

use crate::client::{BINARY, Client, TEXT, tungstenite, upgrade};
use crate::gateway::Gateway;
use crate::http::request;
use fanwire::demo::PAGES;
use std::time::{Duration, Instant};
use tungstenite::Message;

const ECHO: &str = "/demo/ws";

#[test]
fn every_message_comes_back_as_text_in_order() {
    let gateway = Gateway::start(&[]);
    let (_, mut client) = Client::open(gateway.subscribers, ECHO, "");
    let sent: [(u8, &[u8], &str); 4] = [
        (TEXT, "价 <b>".as_bytes(), "价 <b>"),
        (BINARY, b"bytes", "bytes"),
        (BINARY, b"\xFF", "\u{FFFD}"),
        (TEXT, b"{\"type\":\"JOIN\"}", "{\"type\":\"JOIN\"}"),
    ];
    for (opcode, payload, _) in sent {
        client.send(opcode, payload);
    }
    let mut back = std::iter::from_fn(|| Some(client.text())).filter(|text| text != "heartbeat");
    for (.., text) in sent {
        assert_eq!(back.next().unwrap(), text);
    }
}

#[test]
fn a_heartbeat_comes_each_second_whatever_the_client_does() {
    let gateway = Gateway::start(&[]);
    let mut talkative = tungstenite(gateway.subscribers, ECHO);
    let (_, mut silent) = Client::open(gateway.subscribers, ECHO, "");
    let start = Instant::now();
    for n in 1..=4 {
        assert_eq!(silent.text(), "heartbeat");
        let passed = start.elapsed();
        // Due at n seconds; the wheel may be up to two of its ticks late, and lateness does not add up.
        assert!(passed >= Duration::from_millis(1000 * n - 100), "heartbeat {n} after {passed:?}");
        assert!(passed <= Duration::from_millis(1000 * n + 700), "heartbeat {n} after {passed:?}");
        talkative.send(Message::text(format!("{n}"))).unwrap();
    }
    let mut heard = Vec::new();
    while !heard.contains(&"4".to_owned()) {
        heard.push(talkative.read().unwrap().into_text().unwrap().to_string());
    }
    let heartbeats = heard.iter().filter(|text| *text == "heartbeat").count();
    assert!((3..=4).contains(&heartbeats), "{heard:?}");
}

#[test]
fn it_takes_no_part_in_topics() {
    let gateway = Gateway::start(&[]);
    let (_, mut demo) = Client::open(gateway.subscribers, ECHO, "");
    let mut subscriber = Client::subscriber(&gateway, &["t"]);
    demo.send(TEXT, r#"{"code":1,"topic":"t"}"#);
    assert_eq!(demo.text(), r#"{"code":1,"topic":"t"}"#);
    for topic in ["t", ""] {
        gateway.push(topic, "to subscribers");
        assert_eq!(subscriber.text(), "to subscribers");
    }
    assert_eq!(demo.text(), "heartbeat");
}

#[test]
fn a_listener_may_do_without_it() {
    let gateway = Gateway::start(&[("listen.0.demo", "false")]);
    let (response, _) = Client::ask(gateway.subscribers, &upgrade(ECHO, ""));
    assert_eq!(response.status, 404);
    for page in &PAGES {
        assert_eq!(request(gateway.subscribers, "GET", page.path, &[], b"").status, 404, "{}", page.path);
    }
    assert!(!gateway.stdout().contains("/demo"));
}

#[test]
fn it_moves_with_the_prefix_of_its_listener() {
    let gateway = Gateway::start(&[("listen.0.path_prefix", "/push")]);
    assert!(gateway.stdout().contains(&format!("http://{}/push/demo\n", gateway.subscribers)), "{}", gateway.stdout());
    for page in &PAGES {
        let ask = |path: &str| request(gateway.subscribers, "GET", path, &[], b"");
        assert_eq!(ask(page.path).status, 404);
        assert!(ask(&format!("/push{}", page.path)).body == page.body, "{}", page.path);
    }
    let (_, mut echo) = Client::open(gateway.subscribers, &format!("/push{ECHO}"), "");
    assert_eq!(echo.text(), "heartbeat");
}

#[test]
fn its_files_are_served_on_the_subscribers_port_and_may_do_nothing_else() {
    let gateway = Gateway::start(&[]);
    assert!(gateway.stdout().contains(&format!("http://{}/demo\n", gateway.subscribers)), "{}", gateway.stdout());
    for page in &PAGES {
        let response = request(gateway.subscribers, "GET", page.path, &[("Accept-Encoding", "gzip")], b"");
        assert_eq!(response.status, 200);
        assert_eq!(response.headers["content-type"], page.content_type);
        assert!(response.headers["content-security-policy"].starts_with("default-src 'none'"));
        assert_eq!(response.headers["connection"], "close");
        assert!(response.body == page.body, "{} is cut or changed", page.path);
    }
    let head = request(gateway.subscribers, "HEAD", "/demo", &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.headers["content-length"], PAGES[0].body.len().to_string());
    let ask = |method: &str, path: &str| request(gateway.subscribers, method, path, &[], b"").status;
    assert_eq!(ask("GET", "/demo?a=b"), 200);
    assert_eq!((ask("POST", "/demo"), ask("GET", "/demo/"), ask("GET", "/demo/mod.rs")), (405, 404, 404));
    assert_eq!(ask("GET", ECHO), 400);
    assert_eq!(gateway.metrics().sum("fanwire_pages_total", &[]), PAGES.len() as f64 + 2.0);
}
