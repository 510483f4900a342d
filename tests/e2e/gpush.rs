//! What clients of gpush see, to the byte.

use crate::client::{
    BINARY, CLOSE, Client, Event, GREETING, LOGIN_REFUSED, NONSENSE, NOT_LOGGED_IN, PING, PONG, SUBSCRIBED, TEXT,
    UNSUBSCRIBED, tungstenite,
};
use crate::gateway::{Gateway, wait_until};
use std::time::{Duration, Instant};
use tungstenite::Message;

#[test]
fn a_client_that_we_did_not_write_is_greeted_subscribes_and_receives() {
    let gateway = Gateway::start(&[]);
    let mut socket = tungstenite(gateway.subscribers, "/ws");
    assert_eq!(socket.read().unwrap(), Message::text(GREETING));
    socket.send(Message::text(r#"{"code":1,"topic":"news","data":null}"#)).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text(SUBSCRIBED));
    gateway.push("news", "hello, 世界");
    assert_eq!(socket.read().unwrap(), Message::text("hello, 世界"));
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    wait_until("the connection is gone", || gateway.metrics().connections() == 0.0);
}

#[test]
fn a_push_arrives_verbatim_in_one_text_frame_of_every_length() {
    let gateway = Gateway::start(&[]);
    let mut client = Client::subscriber(&gateway, &["t"]);
    let odd = " {\n\t\"a\": 1, \"uid\":\"x\" }\r\n\u{0}\u{1F600} ".to_string();
    for data in [odd, String::new(), "x".repeat(125), "y".repeat(126), "z".repeat(65_535), "w".repeat(65_536)] {
        gateway.push("t", &data);
        let frame = client.frame();
        assert_eq!(frame.first, 0x81);
        assert!(frame.payload == data.as_bytes(), "{} bytes arrived otherwise", data.len());
    }
}

#[test]
fn subscribing_and_leaving_twice_is_answered_twice_and_delivers_once() {
    let gateway = Gateway::start(&[]);
    let mut client = Client::subscriber(&gateway, &["t", "t"]);
    gateway.push("t", "1");
    assert_eq!(client.text(), "1");
    client.ping(); // And not a second time.
    for _ in 0..2 {
        client.ask_unsubscribe("t");
        assert_eq!(client.text(), UNSUBSCRIBED);
    }
    gateway.push("t", "2");
    client.subscribe("t"); // Nothing came in between.
    gateway.push("t", "3");
    assert_eq!(client.text(), "3");
}

#[test]
fn keys_match_in_any_case_and_unknown_ones_are_ignored() {
    let gateway = Gateway::start(&[]);
    let mut client = Client::gpush(&gateway);
    client.send(TEXT, r#" {"CODE":1,"Topic":"t","data":{"a":[1]},"more":true} "#);
    assert_eq!(client.text(), SUBSCRIBED);
    gateway.push("t", "x");
    assert_eq!(client.text(), "x");
}

#[test]
fn ping_in_any_case_gets_pong_and_control_pings_get_control_pongs() {
    let gateway = Gateway::start(&[]);
    let mut client = Client::gpush(&gateway);
    for ping in ["ping", "PING", "Ping", "pInG"] {
        client.send(TEXT, ping);
        assert_eq!(client.text(), "pong");
    }
    client.send(PING, "are you there");
    let frame = client.frame();
    assert_eq!((frame.first, frame.payload.as_slice()), (0x80 | PONG, &b"are you there"[..]));
}

#[test]
fn nonsense_is_answered_and_the_connection_stays() {
    let gateway = Gateway::start(&[]);
    let mut client = Client::subscriber(&gateway, &["t"]);
    for nonsense in [
        "",
        "hello",
        "ping\n",
        "\"ping\"",
        "{",
        "[]",
        "{}",
        r#"{"code":0}"#,
        r#"{"code":7,"topic":"t"}"#,
        r#"{"code":"1","topic":"t"}"#,
        r#"{"code":1.5,"topic":"t"}"#,
        r#"{"code":256,"topic":"t"}"#,
        r#"{"code":-1,"topic":"t"}"#,
        r#"{"code":1,"topic":7}"#,
        r#"{"code":1,"topic":"t"} x"#,
    ] {
        client.send(TEXT, nonsense);
        assert_eq!(client.text(), NONSENSE, "in answer to {nonsense:?}");
    }
    gateway.push("t", "still here");
    assert_eq!(client.text(), "still here");
}

#[test]
fn what_needs_a_login_says_so() {
    let gateway = Gateway::start(&[]);
    let mut client = Client::gpush(&gateway);
    for code in 4..=6 {
        client.command(code, "t");
        assert_eq!(client.text(), NOT_LOGGED_IN, "in answer to code {code}");
    }
    client.ask_login("token");
    assert_eq!(client.text(), LOGIN_REFUSED, "nobody can log in here");
}

#[test]
fn binary_messages_are_read_like_text() {
    let gateway = Gateway::start(&[]);
    let mut client = Client::gpush(&gateway);
    client.send(BINARY, r#"{"code":1,"topic":"t"}"#);
    assert_eq!(client.text(), SUBSCRIBED);
    client.send(BINARY, [0xff, 0xfe]);
    assert_eq!(client.text(), NONSENSE);
}

#[test]
fn the_empty_topic_reaches_everyone_once() {
    let gateway = Gateway::start(&[("shards.count", "3")]);
    let mut clients: Vec<Client> = (0..9).map(|_| Client::gpush(&gateway)).collect();
    clients[0].subscribe(""); // Allowed, and makes no difference.
    clients[1].subscribe("t");
    gateway.push("", "to all");
    for client in &mut clients {
        assert_eq!(client.text(), "to all");
        client.ping(); // And not a second time.
    }
}

#[test]
fn a_client_without_heartbeat_is_cut_without_a_close_frame_and_pings_keep_one_alive() {
    let gateway = Gateway::start(&[("gpush.heartbeat_timeout_ms", "600")]);
    let mut quiet = Client::gpush(&gateway);
    let mut busy = Client::gpush(&gateway);
    let mut alive = Client::gpush(&gateway);
    let start = Instant::now();
    let mut ended = [None, None];
    while ended.contains(&None) {
        assert!(start.elapsed() < Duration::from_secs(10), "never cut: {ended:?}");
        alive.ping();
        // Only the text `ping` is a heartbeat: neither a control ping nor a command is.
        if ended[1].is_none() {
            busy.try_write(&crate::client::frame(0x80 | PING, b""), Duration::from_secs(1));
            busy.try_write(&crate::client::frame(0x81, br#"{"code":2,"topic":"t"}"#), Duration::from_secs(1));
        }
        for (client, ended) in [&mut quiet, &mut busy].into_iter().zip(&mut ended) {
            match client.event(Duration::from_millis(20)) {
                Event::Frame(frame) => assert_ne!(frame.opcode(), CLOSE, "{frame:?}"),
                Event::End(_) | Event::Reset => *ended = ended.or(Some(start.elapsed())),
                Event::Quiet => {}
            }
        }
    }
    for ended in ended {
        assert!(ended.unwrap() > Duration::from_millis(500), "cut after {ended:?}");
    }
    alive.ping();
    let metrics = gateway.metrics();
    assert_eq!(metrics.closes("heartbeat"), 2.0);
}
