//! What one client may cost, and what all together may: at a limit somebody is told so, and the others notice nothing.

use crate::client::{BINARY, CLOSE, Client, Event, PING, SUBSCRIBED, TEXT, UNSUBSCRIBED, frame, upgrade};
use crate::gateway::{DEADLINE, Gateway, wait_until};
use crate::http::Response;
use std::process::Command;
use std::time::{Duration, Instant};

/// A handshake by curl, from a loopback address of our choice: what it shows of the answer, and its exit status.
fn curl(gateway: &Gateway, from: &str) -> Response {
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let output = Command::new("curl")
        .args(["-sS", "-i", "-N", "--http1.1", "--max-time", "10", "--interface", from])
        .args(["-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-H", "Sec-WebSocket-Version: 13", "-H", key])
        .arg(format!("http://{}/ws", gateway.subscribers))
        .output()
        .expect("curl is installed (scripts/install-tools curl)");
    assert!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    Response::parse(&output.stdout)
}

fn assert_told_to_retry(response: &Response) {
    assert_eq!(response.status, 503, "{response:?}");
    let seconds: u32 = response.headers["retry-after"].parse().expect("Retry-After in seconds");
    assert!((1..=60).contains(&seconds), "{response:?}");
}

#[test]
fn a_topic_too_many_is_refused_and_the_others_stay() {
    let gateway = Gateway::start(&[("limits.topics_per_connection_max", "3")]);
    let mut client = Client::subscriber(&gateway, &["a", "b", "c", "c"]);
    client.ask_subscribe("d");
    assert!(client.text().starts_with(r#"{"code":30001,"message":"操作有误","detail":"#));
    gateway.push("d", "not for us");
    gateway.push("a", "for us");
    assert_eq!(client.text(), "for us");
    // Room again.
    client.ask_unsubscribe("b");
    assert_eq!(client.text(), UNSUBSCRIBED);
    client.subscribe("d");
    assert_eq!(gateway.metrics().sum("fanwire_topics_refused_total", &[]), 1.0);
}

#[test]
fn a_name_of_255_bytes_is_taken_and_one_of_256_refused() {
    let gateway = Gateway::start(&[]);
    let (fits, long) = ("é".repeat(127) + "x", "é".repeat(128));
    assert_eq!((fits.len(), long.len()), (255, 256));
    let mut client = Client::subscriber(&gateway, &[&fits]);
    client.ask_subscribe(&long);
    assert!(client.text().starts_with(r#"{"code":30001,"#));
    gateway.push(&fits, "x");
    assert_eq!(client.text(), "x");
    let refused = gateway.try_push(&long, "x");
    assert_eq!((refused.status, refused.json()["code"].as_u64()), (400, Some(3)), "{refused:?}");
}

#[test]
fn a_flood_of_messages_is_closed_with_1008_and_a_burst_is_not() {
    let settings = [("limits.client_messages_per_s_max", "10"), ("limits.client_messages_burst_max", "50")];
    let gateway = Gateway::start(&settings);
    let mut bystander = Client::subscriber(&gateway, &["t"]);
    let mut burst = Client::gpush(&gateway);
    for _ in 0..40 {
        burst.ping();
    }
    for flood in [frame(0x80 | TEXT, b"ping"), frame(0x80 | PING, b""), frame(0x80 | BINARY, b"{}")] {
        let mut client = Client::gpush(&gateway);
        client.write(&flood.repeat(200));
        let (code, _, texts) = client.closed();
        assert_eq!(code, 1008);
        assert!(texts.len() < 100, "{} answers", texts.len());
    }
    burst.send(CLOSE, b"");
    wait_until("each is counted", || gateway.metrics().closes("flood") == 3.0);
    gateway.push("t", "x");
    assert_eq!(bystander.text(), "x");
}

#[test]
fn a_peer_that_never_answers_our_close_is_cut_at_its_deadline() {
    let gateway = Gateway::start(&[("limits.close_deadline_ms", "300")]);
    let mut client = Client::gpush(&gateway);
    let start = Instant::now();
    client.write(&frame(0x83, b""));
    assert_eq!(client.frame().close().0, 1002);
    // We neither answer nor close our end. The slot is free all the same.
    wait_until("the slot is free", || gateway.metrics().connections() == 0.0);
    assert!(start.elapsed() >= Duration::from_millis(250), "cut after {:?}", start.elapsed());
    assert_eq!(gateway.metrics().sum("fanwire_closes_cut_total", &[]), 1.0);
}

#[test]
fn a_peer_whose_half_is_gone_frees_its_slot() {
    let gateway = Gateway::start(&[]);
    let mut client = Client::subscriber(&gateway, &["t"]);
    client.half_close();
    assert!(client.ends().iter().all(|frame| frame.opcode() == CLOSE));
    wait_until("the slot is free", || gateway.metrics().connections() == 0.0);
    assert_eq!(gateway.metrics().sum("fanwire_subscriptions", &[]), 0.0);
}

#[test]
fn a_client_that_pings_and_never_reads_costs_bounded_memory_and_then_its_connection() {
    let gateway = Gateway::start(&[
        ("limits.client_messages_per_s_max", "1000000"),
        ("limits.client_messages_burst_max", "1000000"),
        ("shards.socket_send_buffer_bytes", "16384"),
        ("slow.slow_deadline_ms", "1500"),
    ]);
    let mut bystander = Client::subscriber(&gateway, &["t"]);
    let mut greedy = Client::gpush(&gateway);
    let before = gateway.rss_bytes();
    let pings = frame(0x80 | PING, &[b'x'; 125]).repeat(1000);
    // It takes our pings until its answers fill what we don't read; then it stops reading, and our writes stop.
    let start = Instant::now();
    while greedy.try_write(&pings, Duration::from_millis(300)) == pings.len() {
        assert!(start.elapsed() < DEADLINE, "the gateway reads on without bound");
    }
    wait_until("reading stopped", || gateway.metrics().sum("fanwire_reads_paused_total", &[]) >= 1.0);
    gateway.push("t", "still served");
    assert_eq!(bystander.text(), "still served");
    wait_until("it is gone after the deadline without progress", || gateway.metrics().connections() == 1.0);
    let grown = gateway.rss_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes for one client that never reads");
    bystander.ping();
}

#[test]
fn all_shards_full_is_503_with_retry_after_and_room_is_used_again() {
    let gateway = Gateway::start(&[("shards.connections_max", "8")]);
    let mut clients: Vec<Client> = (0..8).map(|_| Client::subscriber(&gateway, &["t"])).collect();
    assert_told_to_retry(&curl(&gateway, "127.0.0.1"));
    for _ in 0..3 {
        let (response, mut client) = Client::ask(gateway.subscribers, &upgrade("/ws", ""));
        assert_told_to_retry(&response);
        assert_eq!(client.ends(), []);
    }
    assert_eq!(gateway.metrics().sum("fanwire_connections_refused_total", &[("reason", "full")]), 4.0);
    // Those connected notice nothing.
    gateway.push("t", "x");
    for client in &mut clients {
        assert_eq!(client.text(), "x");
        client.ping();
    }
    drop(clients.pop());
    wait_until("the slot is free again", || Client::ask(gateway.subscribers, &upgrade("/ws", "")).0.status == 101);
}

#[test]
fn an_address_has_its_cap_and_others_their_room() {
    let gateway = Gateway::start(&[("limits.connections_per_address_max", "2")]);
    let mut first = Client::subscriber(&gateway, &["t"]);
    let second = Client::gpush(&gateway);
    assert_told_to_retry(&curl(&gateway, "127.0.0.1"));
    let elsewhere = Command::new("curl")
        .args(["-sS", "-i", "-N", "--http1.1", "--max-time", "2", "--interface", "127.0.0.2"])
        .args(["-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-H", "Sec-WebSocket-Version: 13"])
        .args(["-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="])
        .arg(format!("http://{}/ws", gateway.subscribers))
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&elsewhere.stdout);
    assert!(shown.starts_with("HTTP/1.1 101 "), "{shown:?} for another address");
    assert_eq!(gateway.metrics().sum("fanwire_connections_refused_total", &[("reason", "address")]), 1.0);
    drop(second);
    wait_until("the address has room again", || Client::ask(gateway.subscribers, &upgrade("/ws", "")).0.status == 101);
    gateway.push("t", "x");
    assert_eq!(first.text(), "x");
}

#[test]
fn handshakes_beyond_the_rate_are_told_to_come_back() {
    let gateway = Gateway::start(&[("limits.handshakes_per_s_max", "5")]);
    let answers: Vec<Response> = (0..30).map(|_| Client::ask(gateway.subscribers, &upgrade("/ws", "")).0).collect();
    let taken = answers.iter().filter(|response| response.status == 101).count();
    assert!((5..=25).contains(&taken), "{taken} of 30 at once got in at 5 a second");
    answers.iter().filter(|response| response.status != 101).for_each(assert_told_to_retry);
    wait_until("later there is room again", || Client::ask(gateway.subscribers, &upgrade("/ws", "")).0.status == 101);
    assert!(gateway.metrics().sum("fanwire_connections_refused_total", &[("reason", "rate")]) >= (30 - taken) as f64);
}

#[test]
fn connections_spread_over_all_shards() {
    let gateway = Gateway::start(&[("shards.count", "3")]);
    let clients: Vec<Client> = (0..60).map(|_| Client::gpush(&gateway)).collect();
    let metrics = gateway.metrics();
    for shard in 0..3 {
        let here = metrics.connections_of(shard);
        assert!((10.0..=35.0).contains(&here), "{here} of 60 on shard {shard}");
    }
    drop(clients);
    wait_until("every slot is free again", || gateway.metrics().connections() == 0.0);
}

#[test]
fn a_slot_serves_one_client_after_another() {
    let gateway = Gateway::start(&[("shards.count", "1"), ("shards.connections_max", "4")]);
    for life in 0..50 {
        let mut client = loop {
            let (response, client) = Client::ask(gateway.subscribers, &upgrade("/ws", ""));
            if response.status == 101 {
                break client;
            }
            assert_told_to_retry(&response);
        };
        assert!(matches!(client.event(DEADLINE), Event::Frame(_)));
        client.ask_subscribe("t");
        assert_eq!(client.text(), SUBSCRIBED);
        gateway.push("t", &life.to_string());
        assert_eq!(client.text(), life.to_string());
    }
}
