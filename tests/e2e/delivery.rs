//! Who has the ack misses nothing after it, gets nothing twice and nothing out of order: with any number of shards, plain and
//! compressed clients, and clients that come and go while messages fly.

use crate::client::{CLOSE, Client, SUBSCRIBED, UNSUBSCRIBED};
use crate::gateway::{Gateway, wait_until};
use crate::publisher::{Publisher, message};
use std::sync::atomic::{AtomicU64, Ordering};

const TOPICS: usize = 24;
const CLIENTS: usize = 10;
const LIVES: usize = 4;
/// Messages of every topic that each part of a life waits for.
const WHILE: u64 = 40;
/// Bound of one storm: it lasts until all clients are in their last life.
const MESSAGES_MAX: u64 = 200_000;

fn topic(n: usize) -> String {
    format!("topic-{n}")
}

/// What one client knows of a topic it takes part in.
struct Part {
    topic: usize,
    /// The first message whose publication began after the client had the ack: it must not be missed.
    due: u64,
    /// The next one, once there was a first.
    next: Option<u64>,
}

impl Part {
    /// Takes message `n` and holds it to order.
    fn take(&mut self, n: u64) {
        match self.next {
            None => assert!(n <= self.due, "topic {}: {n} is the first, {} was missed", self.topic, self.due),
            Some(next) => assert_eq!(n, next, "topic {}: missed, swapped or twice", self.topic),
        }
        self.next = Some(n + 1);
    }
}

/// What publisher and clients tell one another.
struct Storm {
    /// Per topic, the message whose publication has not begun.
    next: Vec<AtomicU64>,
    /// The last message of every topic, once it is known.
    last: AtomicU64,
    /// Clients that have begun, and those that take part in what they will see the end of.
    begun: AtomicU64,
    settled: AtomicU64,
}

/// One connection from greeting to end.
struct Life<'a> {
    client: Client,
    parts: Vec<Part>,
    storm: &'a Storm,
}

impl Life<'_> {
    /// Takes one text: a message, or a reply which is returned.
    fn read(&mut self) -> Option<String> {
        let text = self.client.text();
        let Some((topic, n)) = text.split_once(' ') else { return Some(text) };
        let (topic, n): (usize, u64) = (topic.parse().unwrap(), n.parse().unwrap());
        let part = self.parts.iter_mut().find(|part| part.topic == topic);
        part.unwrap_or_else(|| panic!("{text} without a subscription")).take(n);
        None
    }

    fn subscribe(&mut self, topic: usize) {
        self.client.ask_subscribe(&self::topic(topic));
        loop {
            // Nothing of this topic can come before the answer, all else can.
            match self.read() {
                Some(reply) => break assert_eq!(reply, SUBSCRIBED),
                None => continue,
            }
        }
        let due = self.storm.next[topic].load(Ordering::SeqCst);
        self.parts.push(Part { topic, due, next: None });
    }

    fn unsubscribe(&mut self, topic: usize) {
        self.client.ask_unsubscribe(&self::topic(topic));
        while self.read().map(|reply| assert_eq!(reply, UNSUBSCRIBED)).is_none() {}
        self.parts.retain(|part| part.topic != topic); // From here on anything of it is a failure.
    }

    /// Reads on until `enough` says so.
    fn until(&mut self, mut enough: impl FnMut(&[Part]) -> bool) {
        while !enough(&self.parts) {
            assert_eq!(self.read(), None, "nothing was asked");
        }
    }
}

/// All lives of one client, the last of which sees the end of every topic it takes part in.
fn live(gateway: &Gateway, number: usize, deflated: bool, storm: &Storm) {
    for life in 0..LIVES {
        let client = if deflated { Client::gpush_deflated(gateway) } else { Client::gpush(gateway) };
        let mut alive = Life { client, parts: Vec::new(), storm };
        let mine: Vec<usize> = (0..6).map(|i| (number * 5 + life * 7 + i * (i + 3) / 2) % TOPICS).collect();
        for &topic in &mine {
            if !alive.parts.iter().any(|part| part.topic == topic) {
                alive.subscribe(topic);
            }
        }
        if life + 1 == LIVES {
            storm.settled.fetch_add(1, Ordering::SeqCst);
            let end = |part: &Part| part.next.is_some_and(|next| next - 1 == storm.last.load(Ordering::SeqCst));
            alive.until(|parts| parts.iter().all(end));
            alive.client.ping(); // And nothing more.
            return;
        }
        // A while of every topic; then one is left and taken up again; and then the client is gone, with a close frame or without.
        let seen = |part: &Part| part.next.is_some_and(|next| next >= part.due + WHILE);
        alive.until(|parts| parts.iter().all(seen));
        alive.unsubscribe(mine[0]);
        alive.subscribe(mine[0]);
        alive.until(|parts| parts.iter().all(seen));
        if life % 2 == 0 {
            alive.client.send(CLOSE, 1000u16.to_be_bytes());
        }
    }
}

/// Everything at once against `shards` shards.
fn storm(shards: &str) {
    let gateway = Gateway::start(&[
        ("shards.count", shards),
        ("websocket.deflate", "true"),
        ("websocket.deflate_bytes_min", "1"),
        ("publish.publish_wait_ms", "10000"),
        // A client is a thread here, which may have to wait long for its turn on a busy machine.
        ("slow.pending_bytes_max", "67108864"),
        ("slow.slow_deadline_ms", "60000"),
    ]);
    let storm = Storm {
        next: (0..TOPICS).map(|_| AtomicU64::new(0)).collect(),
        last: AtomicU64::new(u64::MAX),
        begun: AtomicU64::new(0),
        settled: AtomicU64::new(0),
    };
    let mut count = 0;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (gateway, storm) = (&gateway, &storm);
                scope.spawn(move || {
                    storm.begun.fetch_add(1, Ordering::SeqCst);
                    live(gateway, number, number % 2 == 1, storm);
                })
            })
            .collect();
        let publisher = Publisher::new(&gateway);
        let mut stream = publisher.stream().unwrap();
        wait_until("all clients have begun", || storm.begun.load(Ordering::SeqCst) == CLIENTS as u64);
        for n in 0.. {
            let over = storm.settled.load(Ordering::SeqCst) == CLIENTS as u64;
            if over {
                storm.last.store(n, Ordering::SeqCst);
            }
            // Counted before it is sent: what a client must have is what begins after its ack.
            let batch = (0..TOPICS).map(|topic| {
                storm.next[topic].store(n + 1, Ordering::SeqCst);
                message(&self::topic(topic), format!("{topic} {n}"))
            });
            let result = stream.batch(batch.collect()).unwrap();
            assert!(result.results.iter().all(|r| r.error.is_none()), "{result:?}");
            count = n + 1;
            // A client that failed will not settle; its own message is the one to read.
            if over || clients.iter().any(|client| client.is_finished()) {
                break;
            }
            assert!(n < MESSAGES_MAX, "the clients don't come to an end");
        }
    });
    let metrics = gateway.metrics();
    assert_eq!(metrics.drops() - metrics.drops_by("left"), 0.0, "clients that read have no drops");
    assert_eq!(metrics.sum("fanwire_publications_total", &[]), (count * TOPICS as u64) as f64);
}

#[test]
fn nothing_is_lost_doubled_or_swapped_with_one_shard() {
    storm("1");
}

#[test]
fn nothing_is_lost_doubled_or_swapped_with_two_shards() {
    storm("2");
}

#[test]
fn nothing_is_lost_doubled_or_swapped_with_five_shards() {
    storm("5");
}

#[test]
fn plain_and_compressed_clients_get_the_same_and_small_payloads_go_uncompressed() {
    let gateway = Gateway::start(&[("websocket.deflate", "true")]);
    let mut plain = Client::subscriber(&gateway, &["t"]);
    let mut deflated = Client::gpush_deflated(&gateway);
    deflated.subscribe("t");
    let long = "all work and no play ".repeat(500);
    for data in [long.as_str(), "short", ""] {
        gateway.push("t", data);
        assert_eq!(plain.text(), data);
        let frame = deflated.frame();
        assert_eq!(frame.first, if data.len() >= 64 { 0xc1 } else { 0x81 });
        assert!(data.len() < 64 || frame.payload.len() < data.len() / 10, "{} bytes", frame.payload.len());
        assert_eq!(frame.text(), data);
    }
}

#[test]
fn compression_is_off_unless_switched_on() {
    let gateway = Gateway::start(&[]);
    let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    let (response, _) = Client::open(gateway.subscribers, "/ws", offer);
    assert!(!response.headers.contains_key("sec-websocket-extensions"), "{response:?}");
}

#[test]
fn the_storm_would_notice_what_is_missed_doubled_or_swapped() {
    let take = |due: u64, messages: &[u64]| {
        let mut part = Part { topic: 0, due, next: None };
        let messages = messages.to_vec();
        std::panic::catch_unwind(move || messages.into_iter().for_each(|n| part.take(n))).is_ok()
    };
    assert!(take(5, &[4, 5, 6]) && take(5, &[5, 6]));
    for (due, messages) in [(5, &[6, 7][..]), (5, &[5, 7]), (5, &[5, 5]), (5, &[5, 7, 6])] {
        assert!(!take(due, messages), "{messages:?} after an ack at {due}");
    }
}
