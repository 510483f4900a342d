//! A whole shard: what its clients see, and that everything comes back.

use crate::on_both_kernels;
use crate::rig::{PATIENCE, Rig, reset, until};
use fanwire::metrics::ShardMetrics;
use fanwire::queue::{Drain, ToShard};
use fanwire::shard::pages::{Content, Page};
use fanwire::socket::uring::Features;
use fanwire::websocket::frame::Opcode;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A message that says who it is, `bytes` long.
fn numbered(number: usize, bytes: usize) -> Vec<u8> {
    let mut message = format!("{number} ").into_bytes();
    message.resize(bytes.max(message.len()), b'.');
    message
}

fn number_of(message: &[u8]) -> usize {
    let digits = message.split(|b| *b == b' ').next().unwrap();
    std::str::from_utf8(digits).unwrap().parse().unwrap()
}

fn drops(m: &ShardMetrics) -> u64 {
    [&m.drops_pending_full, &m.drops_disconnected, &m.drops_left, &m.drops_owed_full].iter().map(|c| c.get()).sum()
}

fn a_socket_and_its_address_may_come_in_either_order(features: Features) {
    let mut rig = Rig::start(64, features, |_| {});
    for address_first in [true, false, true] {
        let mut client = rig.connect_in_order(address_first);
        client.request("/ws");
        rig.welcomed(&mut client, "/ws");
        client.leave();
        rig.until_empty();
    }
    assert_eq!(rig.departed(), 3);
}

/// The kernel gives the slot away before the last tenant's completions are all in.
fn one_slot_has_one_tenant_after_another(features: Features) {
    const TENANTS: usize = 200;
    let mut rig = Rig::start(1, features, |_| {});
    for tenant in 0..TENANTS {
        let mut client = rig.open("/ws");
        rig.publish(None, &numbered(tenant, 100));
        assert_eq!(number_of(&client.payload()), tenant);
        match tenant % 3 {
            0 => reset(client.stream),
            1 => client.leave(),
            _ => {
                client.send(Opcode::Close, &1000u16.to_be_bytes());
                client.closed(1000);
            }
        }
    }
    rig.until_empty();
    assert_eq!(rig.departed(), TENANTS);
    assert_eq!(rig.metrics.handshakes_ok.get(), TENANTS as u64);
}

/// A close with unread input is a reset, and a reset throws away what is still to be sent: here much, and the close frame
/// behind it.
fn a_close_frame_is_not_lost_to_a_reset_although_input_is_left_unread(features: Features) {
    let mut rig = Rig::start(64, features, |s| {
        (s.close_deadline_ms, s.pending_bytes_max) = (20_000, 64 << 20);
    });
    for round in 1..=5 {
        let mut client = rig.open("/ws");
        let published = 100;
        (0..published).for_each(|n| rig.publish(None, &numbered(n, 20_000)));
        let mut read = 0;
        // Until it is all in the kernel's hands.
        let all = round * published as u64;
        while (rig.metrics.deliveries.get() < all || rig.audit().owed_bytes > 0) && read < published {
            assert_eq!(number_of(&client.payload()), read);
            read += 1;
        }
        let done = Arc::new(AtomicBool::new(false));
        let writing = std::thread::spawn({
            let (mut writer, done) = (client.twin(), done.clone());
            move || {
                let mut nonsense = vec![0x81, 0x01, b'x']; // Not masked.
                nonsense.resize(50_000, 0xAA);
                while !done.load(Ordering::SeqCst) {
                    writer.stream.write_all(&nonsense).unwrap();
                }
                writer.stream.shutdown(Shutdown::Write).unwrap();
            }
        });
        until("it is told to go", || rig.metrics.closes_protocol.get() == round);
        while let (Opcode::Text, message) = client.peek() {
            assert_eq!(number_of(&message), read);
            client.payload();
            read += 1;
        }
        client.closed(1002);
        assert_eq!(read, published);
        done.store(true, Ordering::SeqCst);
        writing.join().unwrap();
    }
    rig.until_empty();
    assert_eq!(rig.metrics.closes_cut.get(), 0);
}

fn a_peer_that_resets_a_waiting_send_holds_nothing_and_nobody_up(features: Features) {
    const MESSAGES: usize = 300;
    let mut rig = Rig::start(64, features, |_| {});
    let (mut reading, stuck) = (rig.open("/ws"), rig.open("/ws"));
    for n in 0..MESSAGES {
        rig.publish(None, &numbered(n, 10_000));
        assert_eq!(number_of(&reading.payload()), n, "the other one does not notice");
    }
    let audit = rig.audit();
    assert_eq!((audit.slow, audit.connections), (1, 2));
    assert!(audit.buffers_out > 0);
    reset(stuck.stream);
    until("slot and buffers are back", || {
        let audit = rig.audit();
        (audit.connections, audit.buffers_out, audit.slow) == (1, 0, 0)
    });
    let m = &rig.metrics;
    assert_eq!(m.closes_by_peer.get() + m.closes_send_failed.get(), 1);
    assert_eq!(m.deliveries.get() + drops(m), 2 * MESSAGES as u64, "each message is delivered or counted, once");
    reading.leave();
    rig.until_empty();
}

/// Several topics, so that what waits is many pieces of many sizes: joined, vectored, cut.
fn a_slow_consumer_gets_everything_in_order_once_it_reads(features: Features) {
    const MESSAGES: usize = 600;
    let mut rig = Rig::start(64, features, |s| s.pending_bytes_max = 64 << 20);
    let mut client = rig.open("/ws");
    let topics = ["a", "b", "c"];
    topics.iter().for_each(|topic| rig.subscribe(&mut client, topic));
    let mut sent = 0;
    for n in 0..MESSAGES {
        let message = [topics[n % 3].as_bytes(), b":", &numbered(n, [20, 700, 3000, 9000, 50_000][n % 5])].concat();
        sent += message.len();
        rig.publish(Some(topics[n % 3]), &message);
    }
    until("it is slow", || rig.audit().slow == 1);
    assert!(sent > 6_000_000);
    let mut last = [None; 3];
    for _ in 0..MESSAGES {
        let payload = client.payload();
        let topic = topics.iter().position(|t| payload.starts_with(t.as_bytes())).unwrap();
        let n = number_of(&payload[2..]);
        assert_eq!(n, last[topic].map_or(topic, |last: usize| last + 3), "the next of its topic");
        assert_eq!(payload.len(), 2 + [20, 700, 3000, 9000, 50_000][n % 5]);
        last[topic] = Some(n);
    }
    until("nothing is owed any more", || {
        let audit = rig.audit();
        (audit.slow, audit.buffers_out, audit.owed_bytes) == (0, 0, 0)
    });
    assert_eq!((rig.metrics.deliveries.get(), drops(&rig.metrics)), (MESSAGES as u64, 0));
    client.leave();
    rig.until_empty();
}

/// 512 slots have 16 buffers.
fn more_clients_than_buffers_are_all_heard(features: Features) {
    let mut rig = Rig::start(512, features, |_| {});
    let mut clients: Vec<_> = (0..300).map(|_| rig.open("/ws")).collect();
    rig.inbox.push(ToShard::Stall { duration_ms: 500 }, 0).unwrap();
    rig.inbox.ring();
    for round in 0..3 {
        clients.iter_mut().for_each(|client| client.send(Opcode::Text, b"ping"));
        for client in &mut clients {
            assert_eq!(client.payload(), b"pong", "round {round}");
        }
    }
    assert!(rig.metrics.no_buffers.get() > 0);
    clients.into_iter().for_each(|client| client.leave());
    rig.until_empty();
    assert_eq!(rig.departed(), 300);
}

fn a_sleeping_shard_is_woken_for_what_is_published(features: Features) {
    const ROUNDS: usize = 30;
    let mut rig = Rig::start(64, features, |_| {});
    let mut client = rig.open("/ws");
    let start = Instant::now();
    for n in 0..ROUNDS {
        let rings = rig.bell.rings();
        until("the shard sleeps", || rig.bell.is_sleeping());
        rig.publish(None, &numbered(n, 50));
        assert_eq!(number_of(&client.payload()), n);
        assert!(rig.bell.rings() > rings || rig.metrics.sleeps.get() > 0);
    }
    // It looks by itself ten times a second, for its deadlines.
    assert!(start.elapsed() < Duration::from_millis(ROUNDS as u64 * 50), "{:?}", start.elapsed());
}

fn what_is_for_the_tick_does_not_wake_a_shard_before_unless_it_is_too_much(features: Features) {
    const TICK: Duration = Duration::from_secs(1);
    let mut rig = Rig::start(64, features, |s| s.tick_interval_us = TICK.as_micros() as u64);
    let mut client = rig.open("/ws");
    rig.publish(None, &numbered(0, 50));
    assert_eq!(number_of(&client.payload()), 0, "the first waits for nothing");

    let (begun, rings) = (Instant::now(), rig.bell.rings());
    for n in 1..100 {
        until("the shard sleeps", || rig.bell.is_sleeping());
        rig.publish(None, &numbered(n, 50));
    }
    let opening = Instant::now();
    let mut other = rig.open("/ws");
    let opened = opening.elapsed();
    other.send(Opcode::Text, b"ping");
    assert_eq!(other.payload(), b"pong");
    assert!(opened < TICK / 2, "who comes meanwhile waits for no tick: {opened:?}");
    for n in 1..100 {
        assert_eq!(number_of(&client.payload()), n);
    }
    let (rings, ticks) = (rig.bell.rings() - rings, begun.elapsed().as_secs() + 1);
    assert!(rings <= 10 * ticks, "{rings} rings in {ticks} ticks"); // For the first of each; for the newcomer.

    let begun = Instant::now();
    for n in 0..40 {
        rig.publish(None, &numbered(n, 20_000));
    }
    assert_eq!(number_of(&client.payload()), 0);
    assert!(begun.elapsed() < TICK / 2, "more than a batch may have: {:?}", begun.elapsed());
}

fn whoever_lets_a_deadline_pass_is_cut_and_not_before(features: Features) {
    let mut rig = Rig::start(64, features, |s| {
        (s.handshake_deadline_ms, s.gpush_heartbeat_timeout_ms, s.close_deadline_ms) = (300, 700, 400);
    });
    let mut start = Instant::now();
    let mut silent = rig.connect();
    silent.stream.write_all(b"GET /ws HT").unwrap();
    assert!(silent.ended() && start.elapsed() >= Duration::from_millis(300));
    assert_eq!(rig.metrics.handshakes_timed_out.get(), 1);

    start = Instant::now();
    let mut dead = rig.open("/ws");
    assert!(dead.ended() && start.elapsed() >= Duration::from_millis(700));
    assert_eq!(rig.metrics.closes_heartbeat.get(), 1);

    let mut lingering = rig.open("/ws");
    start = Instant::now();
    lingering.send(Opcode::Close, b"");
    assert_eq!(lingering.frame().unwrap(), Some((Opcode::Close, Vec::new())));
    assert_eq!(lingering.frame().unwrap(), None, "our side is shut");
    assert_eq!(rig.audit().connections, 1, "its side is not");
    rig.until_empty();
    assert!(start.elapsed() >= Duration::from_millis(400));
    assert_eq!(rig.metrics.closes_cut.get(), 1);
    drop(lingering);

    let mut alive = rig.open("/ws");
    start = Instant::now();
    while start.elapsed() < Duration::from_millis(1500) {
        std::thread::sleep(Duration::from_millis(100));
        alive.send(Opcode::Text, b"ping");
        assert_eq!(alive.payload(), b"pong");
    }
    assert_eq!(rig.metrics.closes_heartbeat.get(), 1, "who is heard of stays");
}

fn a_drain_says_goodbye_to_who_reads_and_cuts_who_does_not(features: Features) {
    let mut rig = Rig::start(64, features, |s| (s.pending_bytes_max, s.close_deadline_ms) = (64 << 20, 300));
    let (mut stuck, mut young) = (rig.open("/ws"), rig.connect());
    for n in 0..100 {
        rig.publish(None, &numbered(n, 50_000));
    }
    until("one is stuck", || rig.audit().slow == 1);
    let mut readers: Vec<_> = (0..20).map(|_| rig.open("/ws")).collect();
    rig.publish(None, b"the last message");
    let order = Drain { close_code: 1001, window_ms: 200, rate_per_s: 1000, deadline_ms: 800 };
    rig.inbox.push(ToShard::Drain(order), 0).unwrap();
    rig.inbox.ring();
    for reader in &mut readers {
        assert_eq!(reader.payload(), b"the last message");
        reader.closed(1001);
    }
    drop(readers);
    assert!(young.ended());
    rig.join();
    assert!(rig.drained);
    assert_eq!((rig.departed(), rig.metrics.closes_drain.get()), (22, 21));
    let mut rest = Vec::new();
    let _ = stuck.stream.read_to_end(&mut rest);
    assert!(rest.len() < 100 * 50_000, "what it did not take in time is lost");
}

fn a_client_that_does_not_read_its_answers_is_not_read_from_until_it_does(features: Features) {
    const MESSAGES: usize = 1500;
    const BYTES: usize = 10_000;
    let mut rig = Rig::start(64, features, |_| {});
    let mut client = rig.open("/echo");
    let mut writer = client.twin();
    let writing = std::thread::spawn(move || {
        for n in 0..MESSAGES {
            writer.send(Opcode::Binary, &numbered(n, BYTES));
        }
    });
    until("it is not read from", || rig.metrics.reads_paused.get() > 0);
    let start = Instant::now();
    let mut before = 0;
    // Whatever the buffers of both kernels hold, it is not what is sent.
    until("nothing more is read", || {
        let received = rig.metrics.bytes_received.get();
        let quiet = received == std::mem::replace(&mut before, received);
        std::thread::sleep(Duration::from_millis(20));
        quiet && rig.audit().slow == 1
    });
    assert!(before < (MESSAGES * BYTES) as u64 && start.elapsed() < PATIENCE);
    for n in 0..MESSAGES {
        let payload = client.payload();
        assert_eq!((number_of(&payload), payload.len()), (n, BYTES));
    }
    writing.join().unwrap();
    client.leave();
    rig.until_empty();
}

fn who_waits_for_something_costs_no_turns(features: Features) {
    let mut rig = Rig::start(64, features, |s| s.close_deadline_ms = 60_000);
    let (idle, stuck, mut lingering) = (rig.open("/ws"), rig.open("/ws"), rig.open("/ws"));
    let (mut asking, young) = (rig.open("/echo"), rig.connect());
    lingering.send(Opcode::Close, b"");
    lingering.frame().unwrap();
    drop(idle);
    for n in 0..200 {
        rig.publish(None, &numbered(n, 10_000));
    }
    asking.stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut wire = Vec::new();
    fanwire::websocket::frame::write_client_frame(&mut wire, Opcode::Binary, &[7; 8 << 20], [1; 4]);
    while asking.stream.write_all(&wire).is_ok() {}
    until("two are slow", || rig.audit().slow == 2);
    until("nothing is left to do", || {
        let turns = rig.metrics.turns.get();
        std::thread::sleep(Duration::from_millis(50));
        rig.metrics.turns.get() - turns < 5
    });
    let turns = rig.metrics.turns.get();
    std::thread::sleep(Duration::from_millis(1000));
    let turns = rig.metrics.turns.get() - turns;
    // Ten a second look at deadlines, and one more is the longest sleep.
    assert!(turns <= 15, "{turns} turns in a second with nothing to do");
    assert_eq!(rig.audit().connections, 4);
    drop((stuck, young, lingering, asking));
    rig.until_empty();
}

/// Longer than the send buffer and any one send; its bytes tell where they stand.
static PAGE: [u8; 300_000] = {
    let mut page = [0; 300_000];
    let mut i = 0;
    while i < page.len() {
        page[i] = (i % 251) as u8;
        i += 1;
    }
    page
};

fn a_long_page_arrives_whole_also_slowly_and_who_reads_none_of_it_is_cut(features: Features) {
    let mut rig = Rig::start(64, features, |settings| {
        let content = Content::Static { content_type: "text/javascript", body: &PAGE };
        settings.pages.push((0, "/page.js".into(), Page { path: "/page.js", content }));
        settings.slow_deadline_ms = 1000;
        settings.close_deadline_ms = 300;
    });
    let ask = |rig: &mut Rig| {
        let mut stream = rig.connect().stream;
        stream.write_all(b"GET /page.js HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        stream
    };
    let (mut quick, mut slow, mut idle) = (ask(&mut rig), ask(&mut rig), ask(&mut rig));
    let mut page = Vec::new();
    quick.read_to_end(&mut page).unwrap();
    assert!(page.starts_with(b"HTTP/1.1 200 OK\r\n") && page.ends_with(&PAGE));
    drop(quick);
    // Longer than any one deadline, and never longer than it without progress.
    let (mut slowly, start) = (Vec::new(), Instant::now());
    let mut chunk = [0; 40_000];
    loop {
        let count = slow.read(&mut chunk).unwrap();
        if count == 0 {
            break;
        }
        slowly.extend_from_slice(&chunk[..count]);
        std::thread::sleep(Duration::from_millis(100)); // A slow reader's pace, which no condition has to wait for.
    }
    assert!(slowly == page, "{} bytes after {:?}", slowly.len(), start.elapsed());
    drop(slow);
    rig.until_empty();
    let mut rest = Vec::new();
    let end = idle.read_to_end(&mut rest);
    assert!(end.is_err() || rest.len() < page.len(), "who took nothing has been cut");
}

on_both_kernels! {
    a_long_page_arrives_whole_also_slowly_and_who_reads_none_of_it_is_cut,
    a_socket_and_its_address_may_come_in_either_order,
    one_slot_has_one_tenant_after_another,
    a_close_frame_is_not_lost_to_a_reset_although_input_is_left_unread,
    a_peer_that_resets_a_waiting_send_holds_nothing_and_nobody_up,
    a_slow_consumer_gets_everything_in_order_once_it_reads,
    more_clients_than_buffers_are_all_heard,
    a_sleeping_shard_is_woken_for_what_is_published,
    what_is_for_the_tick_does_not_wake_a_shard_before_unless_it_is_too_much,
    whoever_lets_a_deadline_pass_is_cut_and_not_before,
    a_drain_says_goodbye_to_who_reads_and_cuts_who_does_not,
    a_client_that_does_not_read_its_answers_is_not_read_from_until_it_does,
    who_waits_for_something_costs_no_turns,
}
