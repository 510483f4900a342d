//! Slow consumers: bounded, counted, and nobody else's problem.

use crate::client::{CLOSE, Client};
use crate::gateway::{DEADLINE, Gateway, wait_until};
use crate::http::Metrics;
use crate::publisher::{Publisher, message};
use std::time::{Duration, Instant};

/// Small bounds, so that a slow client is one soon.
const SMALL: &[(&str, &str)] = &[
    ("slow.pending_bytes_max", "131072"),
    ("slow.owed_bytes_max", "8388608"),
    ("shards.socket_send_buffer_bytes", "16384"),
    ("limits.message_bytes_max", "8192"),
];

fn small(more: &[(&str, &str)]) -> Gateway {
    Gateway::start(&[SMALL, more].concat())
}

/// 1 KiB that says which message it is.
fn payload(n: usize) -> String {
    format!("{n:>7} {}", "x".repeat(1016))
}

/// Publishes messages `from..` until `enough` says so, `at_a_time` in a batch; returns how many there are then.
fn publish_until(publisher: &Publisher, from: usize, at_a_time: usize, mut enough: impl FnMut() -> bool) -> usize {
    let mut stream = publisher.stream().unwrap();
    let start = Instant::now();
    let mut n = from;
    while !enough() {
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}, {n} messages published");
        let result = stream.batch((n..n + at_a_time).map(|n| message("t", payload(n))).collect()).unwrap();
        assert!(result.results.iter().all(|r| r.error.is_none()), "{result:?}");
        n += at_a_time;
    }
    n
}

/// A client on a thread of its own that reads all it is sent, and returns it at its end.
fn reader(gateway: &Gateway) -> std::thread::JoinHandle<Vec<usize>> {
    let mut client = Client::subscriber(gateway, &["t"]);
    std::thread::spawn(move || {
        let mut got = Vec::new();
        loop {
            match client.text().trim_end_matches('x').trim().parse() {
                Ok(n) => got.push(n),
                Err(_) => return got, // The end.
            }
        }
    })
}

fn owed(metrics: &Metrics) -> f64 {
    metrics.sum("fanwire_owed_bytes", &[])
}

#[test]
fn under_drop_a_slow_client_loses_counted_messages_and_keeps_its_connection() {
    let gateway = small(&[("slow.policy", "drop")]);
    let publisher = Publisher::new(&gateway);
    let mut slow = Client::subscriber(&gateway, &["t"]);
    let attentive = reader(&gateway);
    let published = publish_until(&publisher, 0, 20, || gateway.metrics().drops_by("pending_full") >= 100.0);
    // Two subscribers, of which the other may be behind for a moment, at twice the content each, and what is under way.
    let most = gateway.metrics().sum("fanwire_owed_bytes_peak", &[]);
    assert!(most <= 2.0 * (2.0 * 131_072.0 + 65_536.0), "{most} bytes owed");

    // Whole messages, in order; received and dropped add up. `ping` is never dropped, and marks the end.
    slow.send(crate::client::TEXT, "ping");
    let mut got = Vec::new();
    loop {
        let text = slow.text();
        if text == "pong" {
            break;
        }
        assert_eq!(text.len(), 1024);
        got.push(text[..7].trim().parse::<usize>().unwrap());
    }
    assert!(got.is_sorted() && got.windows(2).all(|pair| pair[0] != pair[1]), "{got:?}");
    assert_eq!(got[..10], (0..10).collect::<Vec<_>>(), "what fits is kept, the newest go");
    wait_until("received + counted drops = published", || got.len() + gateway.metrics().drops() as usize == published);

    // It reads again, and is like any other.
    gateway.push("t", "the end");
    assert_eq!(slow.text(), "the end");
    assert_eq!(attentive.join().unwrap(), (0..published).collect::<Vec<_>>(), "a client that reads loses nothing");
    wait_until("nothing is owed any more", || owed(&gateway.metrics()) == 0.0);
}

#[test]
fn under_disconnect_a_slow_client_is_closed_with_1013_and_its_messages_counted() {
    let gateway = small(&[("slow.policy", "disconnect"), ("limits.close_deadline_ms", "5000")]);
    let publisher = Publisher::new(&gateway);
    let mut slow = Client::subscriber(&gateway, &["t"]);
    let attentive = reader(&gateway);
    let published = publish_until(&publisher, 0, 20, || gateway.metrics().closes("slow_pending") == 1.0);

    // What was in flight arrives whole, then the close frame.
    let (code, _, texts) = slow.closed();
    assert_eq!(code, 1013);
    for (n, text) in texts.iter().enumerate() {
        assert_eq!((text.len(), text[..7].trim().parse().ok()), (1024, Some(n)));
    }
    wait_until("its slot is free", || gateway.metrics().connections() == 1.0);
    gateway.push("t", "the end");
    assert_eq!(attentive.join().unwrap(), (0..published).collect::<Vec<_>>());
    // Published until it was gone = received + counted; what came after it is nobody's.
    let dropped = gateway.metrics().drops_by("disconnected") as usize;
    assert!(dropped > 0 && texts.len() + dropped <= published, "{} + {dropped} of {published}", texts.len());
    wait_until("nothing is owed any more", || owed(&gateway.metrics()) == 0.0);
}

#[test]
fn a_client_that_never_reads_is_cut_though_it_never_takes_its_close_frame() {
    let gateway = small(&[("slow.policy", "disconnect"), ("limits.close_deadline_ms", "300")]);
    let publisher = Publisher::new(&gateway);
    let mut stuck = Client::subscriber(&gateway, &["t"]);
    publish_until(&publisher, 0, 20, || gateway.metrics().closes("slow_pending") == 1.0);
    wait_until("its slot is free", || gateway.metrics().connections() == 0.0);
    assert_eq!(owed(&gateway.metrics()), 0.0);
    // It may find its last frame cut, but none that is wrong.
    for (n, frame) in stuck.ends().into_iter().filter(|frame| frame.opcode() != CLOSE).enumerate() {
        assert_eq!(frame.text(), payload(n));
    }
}

#[test]
fn a_client_without_progress_is_closed_at_the_slow_deadline_and_one_with_progress_is_not() {
    let gateway = small(&[("slow.policy", "drop"), ("slow.slow_deadline_ms", "2000")]);
    let publisher = Publisher::new(&gateway);
    let _stuck = Client::subscriber(&gateway, &["t"]);
    let mut sipping = Client::subscriber(&gateway, &["t"]);
    let both_are_slow = || gateway.metrics().sum("fanwire_slow_connections", &[]) == 2.0;
    let published = publish_until(&publisher, 0, 20, both_are_slow);
    let start = Instant::now();
    publish_until(&publisher, published, 10, || {
        // It reads less than is published, so it stays behind; but it reads.
        (0..8).for_each(|_| drop(sipping.event(Duration::from_millis(1))));
        gateway.metrics().closes("slow_deadline") >= 1.0
    });
    assert!(start.elapsed() > Duration::from_millis(1500), "closed after {:?}", start.elapsed());
    wait_until("one is left", || gateway.metrics().connections() == 1.0);
    assert_eq!(gateway.metrics().closes("slow_deadline"), 1.0);
    sipping.send(crate::client::TEXT, "ping");
    while sipping.text() != "pong" {}
}

#[test]
fn memory_owed_in_all_is_bounded_and_the_holder_of_the_oldest_goes_first() {
    let gateway = Gateway::start(&[
        ("slow.policy", "drop"),
        ("slow.pending_bytes_max", "1048576"),
        ("slow.owed_bytes_max", "2097152"),
        ("shards.socket_send_buffer_bytes", "16384"),
        ("shards.count", "1"),
    ]);
    let publisher = Publisher::new(&gateway);
    // Laggards who take part in different topics, so that nothing is shared between them.
    let mut laggards: Vec<Client> = (0..6).map(|n| Client::subscriber(&gateway, &[&format!("t{n}")])).collect();
    let mut bystander = Client::subscriber(&gateway, &["quiet"]);
    let mut stream = publisher.stream().unwrap();
    let start = Instant::now();
    let mut batch = |n: usize| {
        let messages = (0..8).map(|_| message(&format!("t{n}"), "x".repeat(8192))).collect();
        stream.batch(messages).unwrap();
    };
    // The first lags before the others are sent anything: kernel buffers differ, and would decide otherwise who is first.
    while gateway.metrics().drops() < 1.0 {
        assert!(start.elapsed() < DEADLINE, "the first never lagged");
        batch(0);
    }
    let mut peak = 0.0f64;
    while gateway.metrics().closes("slow_owed") < 2.0 {
        assert!(start.elapsed() < DEADLINE, "the bound was never reached, {peak} bytes owed at most");
        (0..6).for_each(&mut batch);
        peak = peak.max(owed(&gateway.metrics()));
    }
    let metrics = gateway.metrics();
    let most = metrics.sum("fanwire_owed_bytes_peak", &[]);
    // One round may be handed out before it is seen to be too much: six batches of 64 KiB and their slack.
    assert!(most <= 2_097_152.0 + 2.0 * 6.0 * 65_536.0 * 2.0, "{most} bytes owed at most");
    gateway.push("quiet", "x");
    assert_eq!(bystander.text(), "x");
    // The first to lag holds the oldest: it is gone, and others are there.
    assert!(laggards[0].ends().len() < 100_000);
    wait_until("some are left", || (1.0..=5.0).contains(&gateway.metrics().connections()));
}

#[test]
fn a_slow_client_costs_the_others_no_latency() {
    let gateway = small(&[("slow.policy", "drop"), ("shards.count", "1")]);
    let publisher = Publisher::new(&gateway);
    let _stuck: Vec<Client> = (0..5).map(|_| Client::subscriber(&gateway, &["t"])).collect();
    publish_until(&publisher, 0, 20, || gateway.metrics().drops() >= 100.0);
    let mut quick = Client::subscriber(&gateway, &["t"]);
    let mut took: Vec<Duration> = (0..50)
        .map(|n| {
            let start = Instant::now();
            publisher.publish("t", payload(n)).unwrap();
            assert_eq!(quick.text(), payload(n));
            start.elapsed()
        })
        .collect();
    took.sort();
    assert!(took[25] < Duration::from_millis(50), "median {:?} beside slow clients", took[25]);
}

/// Long: memory of the process held against the bound, with laggards at different paces.
#[test]
#[ignore = "takes a minute: scripts/check long"]
fn resident_memory_stays_within_the_bound_of_what_is_owed() {
    const OWED_BYTES_MAX: u64 = 64 << 20;
    let gateway = Gateway::start(&[
        ("slow.policy", "drop"),
        ("slow.pending_bytes_max", "1048576"),
        ("slow.owed_bytes_max", "67108864"),
        ("shards.socket_send_buffer_bytes", "16384"),
    ]);
    let publisher = Publisher::new(&gateway);
    let mut attentive = Client::subscriber(&gateway, &["t0"]);
    let mut laggards: Vec<(usize, Client)> = (0..400)
        .map(|n| (n % 7, Client::subscriber(&gateway, &[&format!("t{}", n % 40), &format!("t{}", n % 39)])))
        .collect();
    let idle = gateway.rss_bytes();
    let (mut peak, mut round) = (0, 0usize);
    let mut stream = publisher.stream().unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(45) {
        round += 1;
        let batch = (0..40).flat_map(|topic| (0..4).map(move |_| message(&format!("t{topic}"), "x".repeat(4096))));
        stream.batch(batch.collect()).unwrap();
        for _ in 0..4 {
            while attentive.text().is_empty() {}
        }
        // Each pace reads a little, rarely or never.
        for (pace, client) in &mut laggards {
            if *pace > 1 && round.is_multiple_of(*pace * 20) {
                client.event(Duration::from_micros(100));
            }
        }
        if round.is_multiple_of(20) {
            peak = peak.max(gateway.rss_bytes());
        }
    }
    let metrics = gateway.metrics();
    assert!(metrics.drops() > 0.0 || metrics.closes("slow_owed") > 0.0, "nobody lagged");
    let grown = peak.saturating_sub(idle);
    // The bound, and as much again for pools, the allocator's slack and what is under way.
    assert!(grown < 2 * OWED_BYTES_MAX, "{grown} bytes grown, {OWED_BYTES_MAX} may be owed");
}
