//! Nodes that read one stream of NATS JetStream: what it acknowledges every subscriber gets, in its order, once, whatever ends meanwhile.

use crate::client::{Client, Event};
use crate::faults::Faults;
use crate::gateway::{Gateway, Start, fanwire, wait_for, wait_until};
use crate::nats::Nats;
use crate::publisher::{Publisher, message};
use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A node without etcd: NATS is all that it knows of others.
fn start(servers: &[&Nats], settings: &[(&str, &str)]) -> Gateway {
    let addresses: Vec<_> = servers.iter().map(|nats| nats.address()).collect();
    let start = Start::new().sets(&[
        ("cluster.transport", "nats"),
        ("cluster.nats", &addresses.join(",")),
        ("auth.login", "accept-any"),
    ]);
    start.sets(settings).start()
}

fn node(nats: &Nats) -> Gateway {
    let node = start(&[nats], &[]);
    wait_until("it has the stream", || is_connected(&node));
    node
}

fn count(node: &Gateway, name: &str) -> f64 {
    node.metrics().sum(&format!("fanwire_cluster_nats_{name}"), &[])
}

fn is_connected(node: &Gateway) -> bool {
    count(node, "connected") == 1.0
}

/// A client of Centrifugo's dialect, which is shown epochs and offsets.
struct Positioned(Client);

impl Positioned {
    /// Subscribed; also where it begins: epoch and offset.
    fn new(node: &Gateway, channel: &str) -> (Positioned, (String, u64)) {
        let (_, client) = Client::open(node.subscribers, "/connection/websocket", "");
        let mut client = Positioned(client);
        client.ask(r#"{"id":1,"connect":{}}"#);
        let reply = client.ask(&format!(r#"{{"id":2,"subscribe":{{"channel":"{channel}"}}}}"#));
        let begin = &reply["subscribe"];
        let begin = (begin["epoch"].as_str().unwrap().to_owned(), begin["offset"].as_u64().unwrap_or(0));
        (client, begin)
    }

    fn ask(&mut self, command: &str) -> serde_json::Value {
        self.0.send(0x81, command);
        serde_json::from_str(&self.0.text()).unwrap()
    }

    /// The next publications: data and offset.
    fn publications(&mut self, count: usize) -> Vec<(String, u64)> {
        let mut publications = Vec::new();
        while publications.len() < count {
            for line in self.0.text().lines() {
                let push: serde_json::Value = serde_json::from_str(line).unwrap();
                let publication = &push["push"]["pub"];
                if publication.is_object() {
                    publications.push((publication["data"].to_string(), publication["offset"].as_u64().unwrap()));
                }
            }
        }
        publications
    }
}

#[test]
fn every_node_gives_the_same_message_the_same_offset_which_is_the_publishers() {
    let nats = Nats::start();
    let two = [node(&nats), node(&nats)];
    let (mut a, began_a) = Positioned::new(&two[0], "t");
    let (mut b, began_b) = Positioned::new(&two[1], "t");
    assert_eq!(began_a, began_b);
    let publisher = Publisher::new(&two[0]);
    let acks: Vec<_> = (0..20).map(|n| publisher.publish("t", n.to_string()).unwrap()).collect();
    let expected: Vec<_> = acks.iter().enumerate().map(|(n, ack)| (n.to_string(), ack.offset)).collect();
    assert_eq!(a.publications(20), expected);
    assert_eq!(b.publications(20), expected);
    assert!(expected.windows(2).all(|pair| pair[0].1 < pair[1].1), "{expected:?}");
    assert!(acks.iter().all(|ack| format!("{:x}", ack.epoch) == began_a.0), "{began_a:?}");

    // Who comes later, to whichever node, begins where the stream is.
    let last = expected[19].1;
    for (node, topic) in [(&two[0], "t"), (&two[1], "t"), (&two[0], "new"), (&two[1], "new")] {
        assert_eq!(Positioned::new(node, topic).1, (began_a.0.clone(), last), "{topic}");
    }
    // A node that starts later, too.
    let third = node(&nats);
    assert_eq!(Positioned::new(&third, "t").1, (began_a.0.clone(), last));
}

/// A subscriber that holds what it hears to be the numbers from 1 on, but for those of which nobody knows.
struct Counting {
    client: Client,
    last: u64,
}

impl Counting {
    fn new(node: &Gateway, topic: &str) -> Counting {
        Counting { client: Client::subscriber(node, &[topic]), last: 0 }
    }

    /// Hears every number up to `last`, in order and once; of `unknown` each or not.
    #[track_caller]
    fn hears(&mut self, last: u64, unknown: &[u64]) {
        while self.last < last {
            let number: u64 = self.client.text().parse().unwrap();
            assert!(number > self.last, "{number} behind {}", self.last);
            let missed: Vec<_> = (self.last + 1..number).filter(|n| !unknown.contains(n)).collect();
            assert!(missed.is_empty(), "{missed:?} before {number}");
            self.last = number;
        }
    }

    #[track_caller]
    fn hears_no_more(&mut self) {
        assert_eq!(self.client.event(Duration::from_millis(300)), Event::Quiet, "behind {}", self.last);
    }
}

/// Publishes numbers from 1 on until `enough`, in batches; what is refused is published again under the next number. Returns the last number,
/// and those without an acknowledgement.
fn publish_until(node: &Gateway, topic: &str, batch: u64, enough: impl Fn() -> bool) -> (u64, Vec<u64>) {
    let publisher = Publisher::new(node);
    let mut stream = publisher.stream().unwrap();
    let (mut last, mut unknown) = (0, Vec::new());
    // The last batch is acknowledged whole, so that it is known what the end is.
    loop {
        let is_last = enough();
        let numbers = last + 1..last + 1 + batch;
        last += batch;
        let messages = numbers.clone().map(|n| message(topic, n.to_string())).collect();
        let results = stream.batch(messages).unwrap().results;
        let refused: Vec<_> = numbers.zip(&results).filter(|(_, r)| r.error.is_some()).map(|(n, _)| n).collect();
        if is_last && refused.is_empty() {
            return (last, unknown);
        }
        unknown.extend(refused);
    }
}

#[test]
fn strange_topics_users_and_everyone_travel() {
    let nats = Nats::start();
    let two = [node(&nats), node(&nats)];
    let long = "ß.".repeat(85);
    for topic in ["a b", "*", ">", "news.>", ".", "..", "a..b.", "%", "%41", "größe\t", &long] {
        let mut client = Client::subscriber(&two[1], &[topic]);
        two[0].push(topic, topic);
        assert_eq!(client.text(), topic);
    }
    assert_eq!(two[0].try_push(&"a".repeat(256), "x").status, 400);

    let mut user = Client::gpush(&two[1]);
    user.log_in("a.b 7");
    user.subscribe_privately("orders.new");
    let mut stranger = Client::gpush(&two[1]);
    two[0].push_to("a.b 7", "orders.new", "yours");
    assert_eq!(user.text(), "yours");
    // The empty topic is everyone.
    two[0].push("", "everyone");
    assert_eq!((user.text(), stranger.text()), ("everyone".into(), "everyone".into()));
}

#[test]
fn what_is_published_straight_into_nats_is_delivered() {
    let nats = Nats::start();
    let node = node(&nats);
    let subject = |arguments: &[&str]| {
        let output = fanwire(&[&["subject"], arguments].concat()).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let mut client = Client::subscriber(&node, &["news.sport today"]);
    client.log_in("7");
    client.subscribe_privately("orders");
    let ack = nats.publish(&subject(&["news.sport today"]), &[], "one");
    assert_eq!(ack["seq"], 1, "{ack}");
    assert_eq!(client.text(), "one");
    nats.publish(&subject(&["--uid", "7", "orders"]), &[], "two");
    assert_eq!(client.text(), "two");
    nats.publish(&subject(&[]), &[], "three");
    assert_eq!(client.text(), "three");
    // The stream keeps one of those with one identity.
    let again = [(); 2].map(|()| nats.publish("fanwire.b", &[("Nats-Msg-Id", "x")], "four"));
    assert_eq!(again[1]["duplicate"], true, "{again:?}");
    assert_eq!(client.text(), "four");
    // What means nothing is counted, and holds up nobody.
    nats.publish("fanwire.t.%zz", &[], "?");
    nats.publish("fanwire.u.%", &[], "?");
    nats.publish("fanwire.b", &[], "five");
    assert_eq!(client.text(), "five");
    assert_eq!(count(&node, "skipped_messages_total"), 2.0);
}

#[test]
fn a_header_of_somebody_elses_stops_nobody() {
    let nats = Nats::start();
    let node = node(&nats);
    let mut client = Client::subscriber(&node, &["t"]);
    node.push("t", "before");
    // What NATS itself says to a consumer by a status, a publisher may say as well.
    for status in ["100", "404", "409", "503"] {
        nats.publish_raw("fanwire.t.t", format!("NATS/1.0 {status}\r\n\r\n").as_bytes(), status);
    }
    node.push("t", "between");
    for expected in ["before", "100", "404", "409", "503", "between"] {
        assert_eq!(client.text(), expected);
    }
    assert_eq!(count(&node, "consumers_total"), 1.0);
    // A client's connection ends by these.
    nats.publish_raw("fanwire.t.t", b"NATS/2.0\r\n\r\n", "no version");
    nats.publish_raw("fanwire.t.t", b"NATS/1.0\r\nno colon\r\n\r\n", "no colon");
    nats.publish_raw("fanwire.t.t", b"NATS/1.0\r\na: \xFF\r\n\r\n", "not UTF-8");
    for expected in ["no version", "no colon", "not UTF-8"] {
        assert_eq!(client.text(), expected);
    }
    assert!(count(&node, "fetched_messages_total") >= 3.0);
    wait_until("a publisher is served", || node.try_push("t", "after").status == 200);
    assert_eq!(client.text(), "after");
    assert!(count(&node, "connects_total") < 20.0);
}

#[test]
fn whoever_may_publish_to_one_subject_reaches_no_other_topic_by_it() {
    let nats = Nats::start();
    let node = node(&nats);
    let mut client = Client::subscriber(&node, &["admin"]);
    nats.publish("fanwire.t.%61dmin", &[], "by another spelling");
    nats.publish("fanwire.t.admin", &[], "by its own");
    assert_eq!(client.text(), "by its own");
    assert_eq!(count(&node, "skipped_messages_total"), 1.0);
}

#[test]
fn a_stream_that_is_full_and_keeps_the_old_says_so() {
    let nats = Nats::start();
    let config = serde_json::json!({
        "name": "FANWIRE", "subjects": ["fanwire.b", "fanwire.t.>", "fanwire.u.>"], "retention": "limits",
        "storage": "file", "discard": "new", "max_msgs": 1, "num_replicas": 1,
    });
    assert!(nats.api("STREAM.CREATE.FANWIRE", &config).is_some());
    let node = start(&[&nats], &[("cluster.nats_publish_timeout_ms", "300")]);
    wait_until("it has the stream", || is_connected(&node));
    node.push("t", "fits");
    let refused = node.try_push("t", "does not");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.body.contains("maximum messages exceeded"), "{}", refused.body);
    let ready = node.get("/readyz").body;
    assert!(ready.contains("did not take what was published last: maximum messages exceeded"), "{ready}");
    assert!(node.stderr().contains("a bound that is not ours"), "{}", node.stderr());
}

#[test]
fn an_account_that_has_used_up_its_storage_says_so_and_publishers_go_on_when_there_is_room() {
    let mut nats = Nats::prepared(
        "accounts: { A: { users: [ { user: a, password: secret } ], jetstream: { max_mem: 1048576, max_file: 200000 } } }\nno_auth_user: a",
    );
    nats.run();
    let node = start(&[&nats], &[("cluster.nats_max_bytes", "0"), ("cluster.nats_publish_timeout_ms", "500")]);
    wait_until("it has the stream", || is_connected(&node));
    let data = "x".repeat(50_000);
    let refused = wait_for("its storage is full", || {
        let response = node.try_push("t", &data);
        (response.status != 200).then_some(response)
    });
    assert_eq!(refused.status, 503, "{refused:?}");
    let why = "resource limits exceeded for account";
    assert!(refused.body.contains(why) && refused.body.contains("try again"), "{}", refused.body);
    let ready = node.get("/readyz").body;
    assert!(ready.contains(&format!("did not take what was published last: {why}")), "{ready}");
    assert!(node.stderr().contains(&format!("they were told so: {why}")), "{}", node.stderr());
    assert!(nats.api("STREAM.PURGE.FANWIRE", &serde_json::json!({})).is_some());
    wait_until("a publisher is served", || node.try_push("t", &data).status == 200);
    assert!(!node.get("/readyz").body.contains("notes"), "{}", node.get("/readyz").body);
}

#[test]
fn a_message_too_large_for_nats_or_the_stream_is_to_be_made_smaller_and_the_log_says_so() {
    let mut nats = Nats::prepared("max_payload: 4096");
    nats.run();
    let config = serde_json::json!({
        "name": "FANWIRE", "subjects": ["fanwire.b", "fanwire.t.>", "fanwire.u.>"], "retention": "limits",
        "storage": "file", "num_replicas": 1, "max_msg_size": 2000,
    });
    assert!(nats.api("STREAM.CREATE.FANWIRE", &config).is_some());
    let node = start(&[&nats], &[]);
    wait_until("it has the stream", || is_connected(&node));
    for (bytes, why) in [(5000, "NATS's max_payload is 4096 bytes"), (3000, "message size exceeds maximum allowed")] {
        let refused = node.try_push("t", &"x".repeat(bytes));
        assert_eq!(refused.status, 400, "{refused:?}");
        assert!(refused.body.contains(why) && refused.body.contains("send it in parts"), "{}", refused.body);
        assert!(!refused.body.contains("try again"), "{}", refused.body);
    }
    assert!(
        node.stderr().contains("they were told so: the stream takes no message as large as this"),
        "{}",
        node.stderr()
    );
    let invalid = node.metrics().sum("fanwire_publications_refused_total", &[("reason", "invalid")]);
    assert_eq!((invalid, count(&node, "failed_messages_total")), (2.0, 2.0));
    node.push("t", "a small one");
}

#[test]
fn a_stream_that_lost_its_end_and_was_filled_again_is_followed_from_where_that_was() {
    let (mut nats, network) = (Nats::start(), Faults::new());
    network.lead_to(nats.address().strip_prefix("nats://").unwrap().parse().unwrap());
    let through = format!("nats://{}", network.address);
    let node = start(&[&nats], &[("cluster.nats", &through)]);
    wait_until("it has the stream", || is_connected(&node));
    let mut client = Client::subscriber(&node, &["t"]);
    let publish = |nats: &Nats, text: &str| drop(nats.publish("fanwire.t.t", &[], text));
    let mut hears = |numbers: std::ops::RangeInclusive<u64>| {
        for n in numbers {
            assert_eq!(client.text(), n.to_string());
        }
    };
    (1..=10).for_each(|n| publish(&nats, &n.to_string()));
    hears(1..=10);
    nats.kill();
    nats.keep();
    nats.run();
    (11..=20).for_each(|n| publish(&nats, &n.to_string()));
    hears(11..=20);
    // The server comes back with what its disk had before, and is published to by others ere this node sees it.
    network.cut();
    wait_until("it knows that it is cut off", || !is_connected(&node));
    nats.kill();
    nats.restore();
    nats.run();
    (21..=45).for_each(|n| publish(&nats, &n.to_string()));
    assert_eq!(nats.stream()["state"]["last_seq"], 35);
    network.pass();
    hears(21..=45);
}

#[test]
fn a_server_killed_and_started_again_under_load_costs_no_acknowledged_message_and_doubles_none() {
    let mut nats = Nats::start();
    let two = [node(&nats), node(&nats)];
    let mut listeners = [Counting::new(&two[0], "t"), Counting::new(&two[1], "t")];
    let is_over = AtomicBool::new(false);
    let (last, unknown) = thread::scope(|scope| {
        let publishing = scope.spawn(|| publish_until(&two[0], "t", 100, || is_over.load(Ordering::Relaxed)));
        for _ in 0..3 {
            let before = count(&two[0], "acknowledged_messages_total");
            wait_until("some are acknowledged", || count(&two[0], "acknowledged_messages_total") > before + 500.0);
            nats.kill();
            nats.run();
        }
        wait_until("all are back", || two.iter().all(is_connected));
        is_over.store(true, Ordering::Relaxed);
        publishing.join().unwrap()
    });
    for listener in &mut listeners {
        listener.hears(last, &unknown);
        listener.hears_no_more();
    }
    assert!(unknown.is_empty(), "{unknown:?}: the server was back before anybody's time was over");
    assert_eq!(two.iter().map(|node| count(node, "lost_messages_total")).sum::<f64>(), 0.0);
    let stream = nats.stream();
    assert_eq!(stream["state"]["messages"].as_u64().unwrap(), last, "sent again, and kept once");
}

#[test]
fn a_node_killed_and_back_costs_subscribers_elsewhere_nothing() {
    let nats = Nats::start();
    let (stays, other) = (node(&nats), node(&nats));
    let mut listener = Counting::new(&stays, "t");
    let is_over = AtomicBool::new(false);
    let (last, unknown) = thread::scope(|scope| {
        let publishing = scope.spawn(|| publish_until(&stays, "t", 100, || is_over.load(Ordering::Relaxed)));
        wait_until("messages flow", || count(&stays, "acknowledged_messages_total") > 1000.0);
        drop(other);
        let back = node(&nats);
        let mut newcomer = Client::subscriber(&back, &["t"]);
        let first: u64 = newcomer.text().parse().unwrap();
        assert_eq!(newcomer.text(), (first + 1).to_string());
        is_over.store(true, Ordering::Relaxed);
        publishing.join().unwrap()
    });
    listener.hears(last, &unknown);
    listener.hears_no_more();
    assert_eq!((unknown, count(&stays, "lost_messages_total")), (vec![], 0.0));
}

#[test]
fn without_nats_publishers_are_told_and_subscribers_stay_until_it_comes() {
    let mut nats = Nats::prepared("");
    let settings = [("cluster.nats_publish_timeout_ms", "300")];
    let node = start(&[&nats], &settings);
    let mut client = Positioned::new(&node, "t").0;
    let refused = node.try_push("t", "lost");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.body.contains("it does not have the message: try again"), "{}", refused.body);
    let ready = node.get("/readyz");
    assert_eq!(ready.status, 200);
    assert!(ready.body.contains("no stream for") && ready.body.contains(&nats.address()), "{}", ready.body);
    assert_eq!(count(&node, "failed_messages_total"), 1.0);
    // By now it is known to be away: nobody waits to be told so.
    let begin = Instant::now();
    assert_eq!(node.try_push("t", "lost").status, 503);
    assert!(begin.elapsed() < Duration::from_millis(200), "{:?}", begin.elapsed());

    nats.run();
    wait_until("it has the stream", || is_connected(&node));
    assert!(!node.get("/readyz").body.contains("no stream"));
    node.push("t", "7");
    assert_eq!(client.publications(1), [("7".to_owned(), 1)]);
}

#[test]
fn an_acknowledgement_that_does_not_come_is_an_error_and_counted() {
    let nats = Nats::start();
    let node = start(&[&nats], &[("cluster.nats_publish_timeout_ms", "300")]);
    wait_until("it has the stream", || is_connected(&node));
    let mut listener = Client::subscriber(&node, &["t"]);
    node.push("t", "before");
    assert_eq!(listener.text(), "before");
    nats.signal("STOP");
    let late = node.try_push("t", "late");
    assert_eq!(late.status, 504, "{late:?}");
    assert!(late.body.contains("it may have the message or not"), "{}", late.body);
    let failed = node.metrics().sum("fanwire_cluster_nats_failed_messages_total", &[("reason", "late")]);
    assert_eq!((failed, count(&node, "in_flight_messages")), (1.0, 0.0));
    nats.signal("CONT");
    // It had it: the publisher was told that this may be so.
    assert_eq!(listener.text(), "late");
}

#[test]
fn so_many_messages_are_in_flight_and_no_more() {
    let nats = Nats::start();
    let node = start(&[&nats], &[("cluster.nats_in_flight_max", "10"), ("cluster.nats_publish_timeout_ms", "500")]);
    wait_until("it has the stream", || is_connected(&node));
    nats.signal("STOP");
    let publisher = Publisher::new(&node);
    let results = publisher.stream().unwrap().batch((0..30).map(|_| message("t", "x")).collect()).unwrap().results;
    let codes: Vec<_> = results.iter().map(|r| r.error.as_ref().unwrap().code).collect();
    let (late, full) = (tonic::Code::DeadlineExceeded as i32, tonic::Code::ResourceExhausted as i32);
    assert_eq!(codes, [[late; 10].as_slice(), &[full; 20]].concat());
    nats.signal("CONT");
}

#[test]
fn the_stream_has_the_limits_of_the_configuration() {
    let nats = Nats::start();
    let limited = |age: &str, bytes: &str| {
        let settings = [("cluster.nats_max_age_ms", age), ("cluster.nats_max_bytes", bytes)];
        let node = start(&[&nats], &settings);
        wait_until("it has the stream", || is_connected(&node));
        node
    };
    let node = limited("600000", "100000");
    let config = nats.stream()["config"].clone();
    assert_eq!((&config["max_age"], &config["max_bytes"]), (&600_000_000_000u64.into(), &100_000.into()));
    assert_eq!((&config["storage"], &config["num_replicas"]), (&"file".into(), &1.into()));
    assert_eq!(config["subjects"], serde_json::json!(["fanwire.b", "fanwire.t.>", "fanwire.u.>"]));
    drop(node);
    let node = limited("900000", "200000");
    assert_eq!(nats.stream()["config"]["max_bytes"], 200_000);
    drop(node);
}

#[test]
fn what_went_from_the_stream_while_a_node_was_cut_off_is_counted_and_said() {
    let (nats, network) = (Nats::start(), Faults::new());
    network.lead_to(nats.address().strip_prefix("nats://").unwrap().parse().unwrap());
    let through = format!("nats://{}", network.address);
    let node = start(&[&nats], &[("cluster.nats", &through), ("cluster.nats_max_bytes", "100000")]);
    wait_until("it has the stream", || is_connected(&node));
    let mut listener = Client::subscriber(&node, &["t"]);
    node.push("t", "before");
    assert_eq!(listener.text(), "before");
    network.cut();
    wait_until("it knows that it is cut off", || !is_connected(&node));
    let data = "x".repeat(1000);
    (0..500).for_each(|_| drop(nats.publish("fanwire.t.other", &[], &data)));
    let kept_from = nats.stream()["state"]["first_seq"].as_u64().unwrap();
    assert!(kept_from > 300, "{kept_from}");
    network.pass();
    wait_until("it is back", || is_connected(&node));
    node.push("t", "after");
    assert_eq!(listener.text(), "after");
    // All that was published while it was away and is no longer there: it had the first.
    let lost = node.metrics().sum("fanwire_cluster_nats_lost_messages_total", &[("reason", "removed")]);
    assert_eq!(lost, (kept_from - 2) as f64);
    assert!(node.stderr().contains("they went from the stream"), "{}", node.stderr());
}

#[test]
fn a_stream_of_others_is_not_touched_and_the_way_out_is_said() {
    let nats = Nats::start();
    nats.create_stream("OTHER", &["fanwire.t.>"]);
    let node = start(&[&nats], &[]);
    wait_until("it says so", || node.get("/readyz").body.contains("another stream of NATS (OTHER)"));
    assert_eq!(count(&node, "connected"), 0.0);
}

#[test]
fn a_stream_deleted_and_made_again_is_another_epoch_and_subscribers_go_on() {
    let nats = Nats::start();
    let node = node(&nats);
    let (mut client, (epoch, _)) = Positioned::new(&node, "t");
    (0..5).for_each(|n| node.push("t", &n.to_string()));
    assert_eq!(client.publications(5).last().unwrap().1, 5);
    nats.delete_stream();
    wait_until("it is made again", || node.try_push("t", "7").status == 200);
    assert_eq!(client.publications(1), [("7".to_owned(), 1)]);
    let (_, (other, offset)) = Positioned::new(&node, "t");
    assert_ne!(epoch, other);
    assert_eq!(offset, 1);
}

#[test]
fn publishers_and_subscribers_on_nodes_of_their_own_meet_in_the_stream() {
    let nats = Nats::start();
    let ingest = start(&[&nats], &[("cluster.role", "ingest")]);
    let fanout = start(&[&nats], &[("cluster.role", "fanout")]);
    wait_until("both have the stream", || is_connected(&ingest) && is_connected(&fanout));
    let mut client = Client::subscriber(&fanout, &["t"]);
    ingest.push("t", "x");
    assert_eq!(client.text(), "x");
    assert_eq!(count(&ingest, "received_messages_total"), 0.0);
}

#[test]
fn whoever_logs_in_to_nats_by_name_token_or_not_at_all_gets_what_it_allows() {
    let mut nats = Nats::prepared("authorization: { user: fanwire, password: secret }");
    nats.spawn();
    let password = nats.file("password", "secret\n");
    let named = start(&[&nats], &[("cluster.nats_user", "fanwire"), ("cluster.nats_password_file", &password)]);
    wait_until("it has the stream", || is_connected(&named));
    let stranger = start(&[&nats], &[]);
    wait_until("it says why", || stranger.get("/readyz").body.contains("authorization violation"));

    let mut nats = Nats::prepared("authorization: { token: \"s3cret\" }");
    nats.spawn();
    let token = nats.file("token", "s3cret\n");
    let node = start(&[&nats], &[("cluster.nats_token_file", &token)]);
    wait_until("it has the stream", || is_connected(&node));
}

/// A JWT of NATS's (decentralised authentication, version 2): what `claims` says of `subject`, in the word of `issuer`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, claims: Value) -> String {
    let encode = |part: Value| BASE64URL_NOPAD.encode(part.to_string().as_bytes());
    let (issuer_name, name) = (issuer.public_key(), subject.public_key());
    let header = encode(json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let body =
        encode(json!({ "jti": name, "iat": 1, "iss": issuer_name, "sub": name, "name": "test", "nats": claims }));
    let text = format!("{header}.{body}");
    let signature = BASE64URL_NOPAD.encode(&issuer.sign(text.as_bytes()).unwrap());
    format!("{text}.{signature}")
}

#[test]
fn whoever_has_credentials_of_the_account_logs_in_to_nats_and_of_another_does_not() {
    let (operator, account, system) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    });
    let of_account = json!({ "type": "account", "version": 2, "limits": limits });
    let mut of_system = of_account.clone();
    for name in ["mem_storage", "disk_storage", "streams", "consumer"] {
        of_system["limits"][name] = json!(0); // It may have no JetStream.
    }
    let mut nats = Nats::prepared(&format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {}: {} }}",
        jwt(&operator, &operator, json!({ "type": "operator", "version": 2 })),
        system.public_key(),
        account.public_key(),
        jwt(&operator, &account, of_account),
        system.public_key(),
        jwt(&operator, &system, of_system),
    ));
    nats.spawn();
    // As `nsc` writes them.
    let credentials = |name: &str, account: &KeyPair| {
        let user = KeyPair::new_user();
        let token = jwt(account, &user, json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 }));
        let seed = user.seed().unwrap();
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        nats.file(name, &text)
    };
    let broken = nats.file("broken.creds", "-----BEGIN NATS USER JWT-----\neyJ0\n------END NATS USER JWT------\n");
    let access =
        [("cluster.transport", "nats"), ("cluster.nats", &nats.address()), ("cluster.nats_credentials_file", &broken)];
    let ended = Start::new().sets(&access).try_start().expect_err("half a file");
    assert!(ended.stderr.contains("as `nsc generate creds` writes it"), "{}", ended.stderr);

    let own = credentials("own.creds", &account);
    let foreign = credentials("foreign.creds", &KeyPair::new_account());
    let node = start(&[&nats], &[("cluster.nats_credentials_file", &own)]);
    wait_until("it has the stream", || is_connected(&node));
    let mut client = Client::subscriber(&node, &["t"]);
    node.push("t", "x");
    assert_eq!(client.text(), "x");
    let stranger = start(&[&nats], &[("cluster.nats_credentials_file", &foreign)]);
    wait_until("it says why", || stranger.get("/readyz").body.contains("authorization violation"));
}

#[test]
fn the_permissions_of_the_documentation_are_enough() {
    let documentation = include_str!("../../docs/OPERATING.md");
    let line = documentation.lines().find(|line| line.starts_with("- *Permissions* for the user: publish ")).unwrap();
    let (publish, subscribe) = line.split_once("; subscribe ").unwrap();
    let [publish, subscribe] = [publish, subscribe].map(|text| text.split('`').skip(1).step_by(2).collect::<Vec<_>>());
    let mut nats = Nats::prepared(&format!(
        "authorization: {{ users: [ {{ user: fanwire, password: secret, permissions: {{ publish: {publish:?}, subscribe: {subscribe:?} }} }} ] }}"
    ));
    nats.spawn();
    let password = nats.file("password", "secret\n");
    let node = start(&[&nats], &[("cluster.nats_user", "fanwire"), ("cluster.nats_password_file", &password)]);
    wait_until("it has the stream", || is_connected(&node));
    let mut listener = Client::subscriber(&node, &["t"]);
    node.push("t", "one");
    assert_eq!(listener.text(), "one");
    // Whoever comes back asks for more than who comes first.
    nats.kill();
    nats.spawn();
    wait_until("a publisher is served", || node.try_push("t", "two").status == 200);
    assert_eq!(listener.text(), "two");
    assert!(!node.stderr().contains("Permissions Violation"), "{}", node.stderr());
}

#[test]
#[ignore = "three servers, an election"]
fn the_leader_of_three_servers_killed_under_load_costs_no_acknowledged_message_and_doubles_none() {
    let mut three = Nats::three();
    // NATS takes 4 to 9 s to elect another leader of the stream, and as long again if it was that of JetStream, too.
    let settings = [
        ("cluster.nats_replicas", "3"),
        ("cluster.nats_publish_timeout_ms", "30000"),
        ("cluster.nats_duplicate_window_ms", "60000"),
    ];
    let nodes = [(); 2].map(|()| start(&three.each_ref(), &settings));
    wait_until("they have the stream", || nodes.iter().all(is_connected));
    let mut listeners = [Counting::new(&nodes[0], "t"), Counting::new(&nodes[1], "t")];
    let is_over = AtomicBool::new(false);
    let (last, unknown) = thread::scope(|scope| {
        let publishing = scope.spawn(|| publish_until(&nodes[0], "t", 20, || is_over.load(Ordering::Relaxed)));
        let acknowledged = || count(&nodes[0], "acknowledged_messages_total");
        let more = || {
            let (before, begin) = (acknowledged(), Instant::now());
            while acknowledged() < before + 200.0 && begin.elapsed() < Duration::from_secs(60) {
                thread::sleep(Duration::from_millis(50)); // Between two looks.
            }
            acknowledged() >= before + 200.0
        };
        let mut is_well = more();
        for _ in 0..2 {
            let leader = Nats::leader(&three);
            three[leader].kill();
            is_well &= more();
            three[leader].run();
            is_well &= more();
        }
        is_over.store(true, Ordering::Relaxed);
        let published = publishing.join().unwrap();
        assert!(is_well, "nothing was acknowledged for a minute: {}", nodes[0].stderr());
        published
    });
    for listener in &mut listeners {
        listener.hears(last, &unknown);
        listener.hears_no_more();
    }
    assert_eq!(nodes.iter().map(|node| count(node, "lost_messages_total")).sum::<f64>(), 0.0);
}
