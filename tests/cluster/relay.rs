//! What one node accepts, all deliver: in the origin's order, without loss and once, whatever the network does.

use crate::background::Background;
use crate::client::Client;
use crate::etcd::Etcd;
use crate::gateway::{fanwire, wait_for, wait_until};
use crate::node::{Listener, Node, cluster};
use crate::publisher::{Publisher, message};
use fanwire::proto::v1::relay_server::{Relay, RelayServer};
use fanwire::proto::v1::{PullRequest, RelayBatch, RelayedMessage};
use std::pin::Pin;
use std::thread;
use std::time::{Duration, Instant};
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

#[test]
fn what_three_nodes_accept_at_once_every_subscriber_gets_in_order_and_once() {
    let etcd = Etcd::start();
    let three = cluster(&etcd, &["a", "b", "c"], &[]);
    let mut listeners: Vec<_> = three.iter().map(|node| Listener::new(node, "t")).collect();
    thread::scope(|scope| three.iter().for_each(|node| drop(scope.spawn(|| node.publish("t", 1..3001)))));
    for listener in &mut listeners {
        listener.hears(&[("a", 3000), ("b", 3000), ("c", 3000)]);
        listener.hears_no_more();
    }
    for node in &three {
        assert_eq!((node.lost(), node.received()), (0.0, 6000.0));
    }
}

#[test]
fn the_bench_publishes_into_nodes_and_tells_apart_what_each_delivers() {
    let etcd = Etcd::start();
    let three = cluster(&etcd, &["a", "b", "c"], &[]);
    let [a, b, c] = [&three[0], &three[1], &three[2]];
    let output = fanwire(&["bench", "--url", &format!("ws://{}/ws", a.subscribers)])
        .args(["--node", &b.subscribers.to_string(), "--node", &c.subscribers.to_string()])
        .args(["--grpc", &format!("{},{}", a.grpc, b.grpc)])
        .args(["--connections", "6", "--topics", "2", "--rate", "400", "--warmup", "0.5", "--duration", "1", "--json"])
        .output()
        .unwrap();
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let report = &said["median"]["gateway"];
    assert_eq!(said["wrong"], serde_json::json!([]), "{said}");
    assert_eq!(
        (&report["publishers"], &report["messages"], &report["received"]),
        (&2.into(), &600.into(), &1800.into())
    );
    let nodes = report["nodes"].as_array().unwrap();
    let addresses: Vec<_> = nodes.iter().map(|node| node["address"].as_str().unwrap().to_owned()).collect();
    assert_eq!(addresses, [a, b, c].map(|node| node.subscribers.to_string()));
    for node in nodes {
        assert!(node["deliveries_per_s"].as_f64().unwrap() > 200.0 && node["p99_us"].as_u64().unwrap() > 0, "{node}");
    }
    // Each of the two took half of it, and gave it to two others.
    assert_eq!([a, b, c].map(Node::received), [300.0, 300.0, 600.0]);
}

#[test]
fn users_and_everyone_are_reached_on_every_node() {
    let etcd = Etcd::start();
    let two = cluster(&etcd, &["a", "b"], &[]);
    let mut user = Client::gpush(&two[1]);
    user.log_in("7");
    user.subscribe_privately("orders");
    let mut stranger = Client::gpush(&two[1]);
    two[0].push_to("7", "orders", "yours");
    two[0].push("", "everyone");
    // Order is within what goes to a user and within what goes to everyone, not between the two.
    let mut heard = [user.text(), user.text()];
    heard.sort();
    assert_eq!(heard, ["everyone", "yours"]);
    assert_eq!(stranger.text(), "everyone");
}

/// Publishes on the first of two nodes and holds the second's subscriber to it, while `trouble` happens to the network.
fn holds_through(settings: &[(&str, &str)], trouble: impl FnOnce(&Node)) {
    let etcd = Etcd::start();
    let two = cluster(&etcd, &["a", "b"], settings);
    let mut listener = Listener::new(&two[1], "t");
    two[0].publish("t", 1..101);
    listener.hears(&[("a", 100)]);
    thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            for batch in 1..51 {
                two[0].publish("t", batch * 100 + 1..(batch + 1) * 100 + 1);
                thread::sleep(Duration::from_millis(20)); // A rate: what is published meanwhile is what is to be made up.
            }
        });
        trouble(&two[0]);
        publishing.join().unwrap();
    });
    listener.hears(&[("a", 5100)]);
    listener.hears_no_more();
    assert_eq!((two[1].lost(), two[1].received()), (0.0, 5100.0));
}

#[test]
fn resets_lose_nothing_and_give_nothing_twice() {
    holds_through(&[], |origin| {
        for _ in 0..10 {
            thread::sleep(Duration::from_millis(100)); // Spread over what is published.
            origin.network.reset();
        }
    });
}

#[test]
fn a_cut_is_made_up_at_once_when_the_network_is_back() {
    let etcd = Etcd::start();
    let two = cluster(&etcd, &["a", "b"], &[]);
    let mut listener = Listener::new(&two[1], "t");
    two[0].network.cut();
    wait_until("the link is down", || two[1].sees(1, 0));
    two[0].publish("t", 1..20_001);
    thread::sleep(Duration::from_secs(1)); // By now attempts are as far apart as they ever are.
    let back = Instant::now();
    two[0].network.pass();
    listener.hears(&[("a", 20_000)]);
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    assert_eq!(two[1].lost(), 0.0);
}

#[test]
#[ignore = "ten seconds of a cut"]
fn ten_seconds_of_a_cut_at_ten_thousand_messages_a_second_are_made_up_in_two() {
    let etcd = Etcd::start();
    let two = cluster(&etcd, &["a", "b"], &[("slow.pending_bytes_max", "67108864")]);
    let mut listener = Listener::new(&two[1], "t");
    two[0].network.cut();
    let start = Instant::now();
    for second in 0..10 {
        two[0].publish("t", second * 10_000 + 1..(second + 1) * 10_000 + 1);
        thread::sleep((start + Duration::from_secs(second + 1)).saturating_duration_since(Instant::now())); // The rate.
    }
    let back = Instant::now();
    two[0].network.pass();
    wait_until("all is made up", || two[1].received() == 100_000.0);
    let made_up = back.elapsed();
    listener.hears(&[("a", 100_000)]);
    assert!(made_up < Duration::from_secs(2), "{made_up:?}");
    assert_eq!(two[1].lost(), 0.0);
}

#[test]
fn a_node_that_is_not_heard_for_long_is_a_note_until_it_is() {
    let etcd = Etcd::start();
    let two = cluster(&etcd, &["a", "b"], &[]);
    let notes = || two[1].get("/readyz").json()["notes"].to_string();
    two[0].network.cut();
    wait_until("it says so", || notes().contains("what 1 of the others accept does not come here: a at "));
    assert_eq!(two[1].get("/readyz").status, 200);
    two[0].network.pass();
    wait_until("it is heard again", || notes() == "null");
}

#[test]
fn a_node_whose_address_leads_back_to_whoever_pulls_is_told_apart() {
    let etcd = Etcd::start();
    let a = Node::start(&etcd, "a", &[]);
    // As two machines that both advertise their loopback.
    let b = Node::start(&etcd, "b", &[("cluster.relay_advertise", &a.network.address.to_string())]);
    wait_until("it says so", || a.stderr().contains("this address leads back to this node: set cluster.relay_address"));
    wait_until("each knows the other, and one is heard", || a.sees(1, 0) && b.sees(1, 1));
}

#[test]
fn a_half_open_connection_is_noticed_and_what_it_swallowed_is_made_up() {
    let etcd = Etcd::start();
    let two = cluster(&etcd, &["a", "b"], &[]);
    let mut listener = Listener::new(&two[1], "t");
    two[0].network.fall_silent();
    two[0].publish("t", 1..1001);
    wait_until("the link is down", || two[1].sees(1, 0));
    two[0].network.pass();
    listener.hears(&[("a", 1000)]);
    assert_eq!(two[1].lost(), 0.0);
}

#[test]
fn delay_changes_nothing_but_the_time() {
    holds_through(&[], |origin| origin.network.delay(Duration::from_millis(50)));
}

#[test]
fn a_slow_way_carries_large_messages_without_a_break() {
    let etcd = Etcd::start();
    let two = cluster(&etcd, &["a", "b"], &[]);
    let mut listener = Listener::new(&two[1], "t");
    let failures = || two[1].metrics().sum("fanwire_relay_link_failures_total", &[]);
    let before = failures();
    // A batch of four takes 3.7 s, all of it longer than any peer is given to answer for its life.
    two[0].network.throttle(64 << 10);
    let publisher = Publisher::new(&two[0]);
    let batch = (1..11).map(|n| message("t", format!("a {n:060000}"))).collect();
    let result = publisher.stream().unwrap().batch(batch).unwrap();
    assert!(result.results.iter().all(|r| r.error.is_none()), "{result:?}");
    let begun = Instant::now();
    listener.hears(&[("a", 10)]);
    assert!(begun.elapsed() > Duration::from_secs(7), "it was slow: {:?}", begun.elapsed());
    listener.hears_no_more();
    assert_eq!((two[1].lost(), failures() - before), (0.0, 0.0), "{}", two[1].stderr());
}

/// A relay of whoever can write to etcd: each batch has more messages than one may have, two bytes each.
struct Flood;

#[tonic::async_trait]
impl Relay for Flood {
    type PullStream = Pin<Box<dyn Stream<Item = Result<RelayBatch, Status>> + Send>>;

    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let epoch = request.into_inner().epoch;
        let batch = move |messages: usize| RelayBatch {
            epoch,
            first: 1,
            next: 1 + messages as u64,
            messages: vec![RelayedMessage::default(); messages],
            due: 1,
        };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(batch(0)), Ok(batch(1_000_000))]))))
    }
}

#[test]
fn a_batch_of_more_messages_than_one_may_have_is_not_decoded() {
    let etcd = Etcd::start();
    let node = Node::start(&etcd, "a", &[]);
    wait_until("it is a member", || node.is_member());
    let before = node.rss_bytes();
    let background = Background::new();
    let listener = background.run(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let (id, relay) = ("00000000000000ff", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_service(RelayServer::new(Flood));
    background.spawn(async move { drop(server.serve_with_incoming(TcpListenerStream::new(listener)).await) });
    let value = format!(r#"{{"id":"{id}","name":"flood","role":"all","relay":"{relay}"}}"#);
    etcd.ctl(&["put", &format!("fanwire/nodes/{id}"), &value]).unwrap();
    let mut most = before;
    wait_until("it has tried three times", || {
        most = most.max(node.rss_bytes());
        node.metrics().sum("fanwire_relay_link_failures_total", &[]) >= 3.0
    });
    // Decoded it takes 80 MB.
    assert!(most - before < 30 << 20, "{before} bytes, then {most}");
    assert!(node.stderr().contains("a batch of more than 512 messages"), "{}", node.stderr());
    assert_eq!(node.received(), 0.0);
}

#[test]
fn a_cut_longer_than_the_buffer_is_counted_and_said() {
    let etcd = Etcd::start();
    let two = cluster(&etcd, &["a", "b"], &[("cluster.relay_buffer", "100")]);
    let mut listener = Listener::new(&two[1], "t");
    two[0].publish("t", 1..11);
    listener.hears(&[("a", 10)]);
    two[0].network.cut();
    wait_until("the link is down", || two[1].sees(1, 0));
    two[0].publish("t", 11..1011);
    two[0].network.pass();
    // The last hundred are kept.
    listener.continue_from("a", 910);
    listener.hears(&[("a", 1010)]);
    let lost = two[1].metrics().sum("fanwire_relay_lost_messages_total", &[("reason", "overrun")]);
    assert_eq!(lost, 900.0);
    assert!(two[1].stderr().contains("messages=900"), "{}", two[1].stderr());
}

#[test]
fn a_node_that_stands_still_holds_up_nobody() {
    let etcd = Etcd::start();
    let three = cluster(&etcd, &["a", "b", "c"], &[]);
    let (mut quick, mut stopped) = (Listener::new(&three[1], "t"), Listener::new(&three[2], "t"));
    three[2].signal("STOP");
    three[0].publish("t", 1..20_001);
    quick.hears(&[("a", 20_000)]);
    three[2].signal("CONT");
    stopped.hears(&[("a", 20_000)]);
    assert_eq!(three[2].lost(), 0.0);
}

#[test]
fn a_node_that_is_killed_and_comes_back_gets_what_comes_from_then_on() {
    let etcd = Etcd::start();
    let mut two = cluster(&etcd, &["a", "b"], &[]);
    let mut listener = Listener::new(&two[1], "t");
    two[0].publish("t", 1..11);
    listener.hears(&[("a", 10)]);
    drop(two.remove(0));
    let back = Node::start(&etcd, "a", &[]);
    wait_until("others can know of it", || back.is_member());
    // At once: what it accepts before the other has found it is kept for it.
    back.publish("t", 11..21);
    listener.hears(&[("a", 20)]);
    let mut own = Listener::new(&back, "t");
    wait_until("it pulls", || back.sees(1, 1) || back.sees(2, 1));
    two[0].publish("t", 1..11);
    own.hears(&[("b", 10)]);
}

#[test]
fn a_shard_that_stands_still_costs_another_node_what_it_would_cost_this_one() {
    let etcd = Etcd::start();
    let two = cluster(&etcd, &["a", "b"], &[("shards.count", "1"), ("shards.queue_items_max", "64")]);
    let mut listener = Listener::new(&two[1], "t");
    two[1].stall(0, 2000);
    two[0].publish("t", 1..1001);
    let refused = wait_for("some are refused", || {
        let refused = two[1].metrics().sum("fanwire_relay_lost_messages_total", &[("reason", "refused")]);
        (refused > 0.0 && two[1].received() == 1000.0).then_some(refused)
    });
    assert!(refused < 1000.0, "{refused}");
    // The shard turns again.
    let (_, mut last) = listener.next().expect("what was admitted");
    two[0].publish("t", 1001..1002);
    while last != 1001 {
        let (_, number) = listener.next().expect("what was admitted, and the last");
        assert!(number > last, "{number} behind {last}");
        last = number;
    }
}
