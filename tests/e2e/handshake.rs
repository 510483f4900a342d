//! Requests that are no handshake, are slow, or are too big: each gets its status, and costs one connection.

use crate::client::{Client, Event, GREETING, TEXT, frame, upgrade};
use crate::gateway::{DEADLINE, Gateway, wait_until};
use std::time::{Duration, Instant};

/// The browser's head without, or with another, line.
fn without(line: &str) -> String {
    let head = upgrade("/ws", "");
    assert!(head.contains(line));
    head.replace(line, "")
}

#[test]
fn a_bad_handshake_gets_its_status_and_the_connection_ends() {
    let gateway = Gateway::start(&[]);
    let good = upgrade("/ws", "");
    let cases = [
        (400, without("Upgrade: websocket\r\n")),
        (400, without("Connection: keep-alive, Upgrade\r\n")),
        (400, without("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")),
        (400, without("Sec-WebSocket-Version: 13\r\n")),
        (400, without("Host: localhost\r\n")),
        (400, good.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ")),
        (400, good.replace("Upgrade: websocket", "Upgrade: h2c")),
        (400, "nonsense\r\n\r\n".to_string()),
        (426, good.replace("Version: 13", "Version: 8")),
        (505, good.replace("HTTP/1.1", "HTTP/1.0")),
        (404, upgrade("/elsewhere", "")),
        (404, upgrade("/ws/", "")),
    ];
    for (status, head) in &cases {
        let (response, mut client) = Client::ask(gateway.subscribers, head);
        assert_eq!(response.status, *status, "{response:?} to {head}");
        assert_eq!(client.ends(), []);
        if *status == 426 {
            assert_eq!(response.headers["sec-websocket-version"], "13");
        }
    }
    let metrics = gateway.metrics();
    assert_eq!(metrics.handshakes("rejected"), cases.len() as f64);
    assert_eq!(metrics.handshakes("ok"), 0.0);
    wait_until("every slot is free again", || gateway.metrics().connections() == 0.0);
}

#[test]
fn a_head_that_is_too_big_gets_431_whether_it_ends_or_not() {
    let gateway = Gateway::start(&[("limits.handshake_bytes_max", "4096")]);
    let fits = format!("X-Filler: {}\r\n", "x".repeat(3000));
    let (_, mut client) = Client::open(gateway.subscribers, "/ws", &fits);
    assert_eq!(client.text(), GREETING);

    let too_big = format!("X-Filler: {}\r\n", "x".repeat(4096));
    for head in [upgrade("/ws", &too_big), upgrade("/ws", &too_big).trim_end().to_string()] {
        let (response, mut client) = Client::ask(gateway.subscribers, &head);
        assert_eq!(response.status, 431, "{response:?}");
        assert_eq!(client.ends(), []);
    }
    client.ping();
}

#[test]
fn a_handshake_may_come_in_pieces_and_with_the_first_frames() {
    let gateway = Gateway::start(&[]);
    let head = upgrade("/ws", "");
    let mut client = Client::dial(gateway.subscribers);
    for byte in head.as_bytes() {
        client.write(std::slice::from_ref(byte));
    }
    assert_eq!(client.response().status, 101);
    assert_eq!(client.text(), GREETING);

    let mut client = Client::dial(gateway.subscribers);
    client.write(&[head.as_bytes(), &frame(0x80 | TEXT, b"ping")].concat());
    assert_eq!(client.response().status, 101);
    assert_eq!(client.text(), GREETING);
    assert_eq!(client.text(), "pong");
}

#[test]
fn a_handshake_byte_by_byte_is_cut_at_its_deadline() {
    let gateway = Gateway::start(&[("limits.handshake_deadline_ms", "500")]);
    let mut silent = Client::dial(gateway.subscribers);
    let mut slow = Client::dial(gateway.subscribers);
    let start = Instant::now();
    let endless = upgrade("/ws", "").replace("\r\n\r\n", "\r\nX-Filler: ") + &"x".repeat(4000);
    let mut bytes = endless.as_bytes().chunks(1);
    // Progress doesn't extend the deadline.
    loop {
        assert!(start.elapsed() < DEADLINE, "never cut");
        slow.try_write(bytes.next().expect("cut before its filler ends"), Duration::from_millis(100));
        match slow.event(Duration::from_millis(10)) {
            Event::Quiet => {}
            Event::End(_) | Event::Reset => break,
            Event::Frame(frame) => panic!("{frame:?}"),
        }
    }
    let elapsed = start.elapsed();
    assert!(elapsed > Duration::from_millis(400) && elapsed < Duration::from_secs(5), "cut after {elapsed:?}");
    assert_eq!(silent.ends(), []);
    wait_until("both are counted", || gateway.metrics().handshakes("timed_out") == 2.0);
    wait_until("every slot is free again", || gateway.metrics().connections() == 0.0);
}

#[test]
fn a_client_that_leaves_during_its_handshake_frees_its_slot() {
    let gateway = Gateway::start(&[]);
    for _ in 0..20 {
        let mut client = Client::dial(gateway.subscribers);
        client.write(b"GET /ws HTTP/1.1\r\n");
    }
    wait_until("all are counted", || gateway.metrics().handshakes("abandoned") == 20.0);
    wait_until("every slot is free again", || gateway.metrics().connections() == 0.0);
}
