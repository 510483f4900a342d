//! A node that leaves: first the members, then its clients, who are sent elsewhere only if there is an elsewhere.

use crate::client::Client;
use crate::etcd::Etcd;
use crate::gateway::{DEADLINE, fanwire, wait_until};
use crate::node::{Listener, Node, cluster, nodes};
use std::io::Write;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn where_others_remain_clients_are_told_to_come_again() {
    let etcd = Etcd::start();
    // Of the first long enough for what happens meanwhile, however busy the machine.
    let mut two = [("a", "5000"), ("b", "0")].map(|(name, delay_ms)| {
        Node::start(&etcd, name, &[("drain.drain_delay_ms", delay_ms), ("drain.drain_window_ms", "0")])
    });
    for node in &two {
        wait_until("it pulls from the other", || node.sees(1, 1));
    }
    let mut of_a = Client::subscriber(&two[0], &["t"]);
    let mut of_b = Client::subscriber(&two[1], &["t"]);
    let mut listener = Listener::new(&two[1], "u");
    two[0].signal("TERM");
    wait_until("it is no place for clients any more", || two[1].sees(0, 1));
    // Until its delay is over it accepts, and what it accepts reaches the other node.
    two[0].publish("u", 1..101);
    listener.hears(&[("a", 100)]);
    assert_eq!(of_a.closed().0, 1012);
    assert_eq!(two[0].wait().code(), Some(0));

    two[1].signal("TERM");
    assert_eq!(of_b.closed().0, 1001, "nobody is left");
    assert_eq!(two[1].wait().code(), Some(0));
    assert_eq!(etcd.get("fanwire/"), vec![]);
}

/// Two nodes that pull from each other; the first is told to drain, and goes on for `delay_ms` first.
fn first_of_two_drains(etcd: &Etcd, delay_ms: &str) -> Vec<Node> {
    let settings = [("drain.drain_delay_ms", delay_ms), ("drain.drain_window_ms", "0")];
    let two = cluster(etcd, &["a", "b"], &settings);
    two[0].signal("TERM");
    wait_until("the other knows that it drains", || two[1].sees(0, 1));
    two
}

#[test]
fn a_node_that_drains_is_listed_as_such_until_it_has_ended() {
    let etcd = Etcd::start();
    let mut two = first_of_two_drains(&etcd, "2000");
    let (_, json, _) = nodes(&etcd.address(), &["--json"]);
    let listed: serde_json::Value = serde_json::from_str(&json).unwrap();
    let states: Vec<_> = listed.as_array().unwrap().iter().map(|node| (&node["name"], &node["draining"])).collect();
    assert_eq!(states, [(&"a".into(), &true.into()), (&"b".into(), &false.into())]);
    let table = nodes(&etcd.address(), &[]).1;
    assert!(table.lines().nth(1).unwrap().contains("  all   draining  "), "{table}");
    assert_eq!(two[0].wait().code(), Some(0));
    assert_eq!(etcd.get("fanwire/").len(), 1, "the other");
}

#[test]
fn what_others_accept_comes_until_its_delay_is_over() {
    let etcd = Etcd::start();
    let two = cluster(&etcd, &["a", "b"], &[("drain.drain_delay_ms", "5000")]);
    let mut of_a = Listener::new(&two[0], "t");
    two[0].signal("TERM");
    wait_until("the other knows that it drains", || two[1].sees(0, 1));
    assert!(two[0].sees(1, 1), "it goes on pulling");
    two[1].publish("t", 1..101);
    of_a.hears(&[("b", 100)]);
    assert_eq!(two[0].lost(), 0.0);
}

#[test]
fn what_others_accept_comes_until_its_delay_is_over_without_etcd_too() {
    let mut etcd = Etcd::start();
    let two = cluster(&etcd, &["a", "b"], &[("drain.drain_delay_ms", "5000")]);
    let mut of_a = Listener::new(&two[0], "t");
    etcd.stop();
    wait_until("it is no member", || !two[0].is_member());
    two[0].signal("TERM");
    wait_until("it drains", || two[0].get("/readyz").status == 503);
    two[1].publish("t", 1..101);
    of_a.hears(&[("b", 100)]);
}

#[test]
fn what_can_not_be_delivered_since_a_node_drains_is_counted_there() {
    let etcd = Etcd::start();
    let two = cluster(&etcd, &["a", "b"], &[("drain.drain_window_ms", "10000")]);
    // The last of them is closed shortly before the window's end.
    let _clients: Vec<_> = (0..20).map(|_| Client::subscriber(&two[0], &["t"])).collect();
    let mut of_b = Listener::new(&two[1], "t");
    two[0].signal("TERM");
    wait_until("it takes nothing any more", || two[0].try_push("other", "x").status == 503);
    two[1].publish("t", 1..101);
    let draining = || two[0].metrics().sum("fanwire_relay_lost_messages_total", &[("reason", "draining")]);
    wait_until("all of it is counted", || draining() == 100.0);
    of_b.hears(&[("b", 100)]);
}

#[test]
fn a_link_to_a_node_that_drains_is_made_again() {
    let etcd = Etcd::start();
    let mut two = first_of_two_drains(&etcd, "5000");
    let mut listener = Listener::new(&two[1], "t");
    two[0].publish("t", 1..51);
    listener.hears(&[("a", 50)]);
    two[0].network.reset();
    two[0].publish("t", 51..101);
    listener.hears(&[("a", 100)]);
    assert_eq!(two[0].wait().code(), Some(0));
    assert_eq!((two[1].lost(), two[1].received()), (0.0, 100.0));
}

#[test]
fn what_a_node_that_was_cut_off_until_its_end_has_kept_is_counted_by_the_others() {
    let etcd = Etcd::start();
    let mut two = first_of_two_drains(&etcd, "3000");
    let mut listener = Listener::new(&two[1], "t");
    two[0].publish("t", 1..51);
    listener.hears(&[("a", 50)]);
    two[0].network.cut();
    two[0].publish("t", 51..101);
    assert_eq!(two[0].wait().code(), Some(0));
    let gone = || two[1].metrics().sum("fanwire_relay_lost_messages_total", &[("reason", "gone")]);
    wait_until("it knows how much it has missed", || gone() == 50.0);
    assert!(two[1].stderr().contains("messages=50"), "{}", two[1].stderr());
    assert!(two[0].stderr().contains("a node has not had all"), "{}", two[0].stderr());
    assert_eq!(two[1].lost(), 50.0);
}

#[test]
#[ignore = "a minute, until a node that may be back is given up"]
fn what_a_node_that_was_killed_was_last_heard_to_have_is_counted_by_the_others() {
    let etcd = Etcd::start();
    let two = cluster(&etcd, &["a", "b"], &[]);
    let mut listener = Listener::new(&two[1], "t");
    two[0].network.cut();
    two[0].publish("t", 1..5001);
    // What comes says how much is behind it.
    two[0].network.throttle(64 << 10);
    two[0].network.pass();
    wait_until("some of it has come", || two[1].received() > 0.0);
    two[0].network.cut();
    two[0].signal("KILL");
    let gone = || two[1].metrics().sum("fanwire_relay_lost_messages_total", &[("reason", "gone")]);
    let killed = Instant::now();
    while gone() == 0.0 {
        assert!(killed.elapsed() < Duration::from_secs(90), "{}", two[1].stderr());
        thread::sleep(Duration::from_millis(200)); // Between two looks.
    }
    assert!(killed.elapsed() > Duration::from_secs(60), "it might have come back: {:?}", killed.elapsed());
    let received = two[1].received();
    listener.hears(&[("a", received as u64)]);
    assert_eq!((gone(), two[1].lost()), (5000.0 - received, 5000.0 - received));
}

#[test]
fn a_node_that_comes_while_another_drains_hears_what_that_one_accepts() {
    let etcd = Etcd::start();
    // As long as this may take: it is killed in the end.
    let delay_ms = DEADLINE.as_millis().to_string();
    let two = first_of_two_drains(&etcd, &delay_ms);
    let come = Node::start(&etcd, "c", &[]);
    let mut listener = Listener::new(&come, "t");
    wait_until("it pulls from both", || come.sees(1, 2));
    two[0].publish("t", 1..101);
    listener.hears(&[("a", 100)]);
}

#[test]
fn pub_goes_on_with_another_node() {
    let etcd = Etcd::start();
    let mut two = cluster(&etcd, &["a", "b"], &[("drain.drain_window_ms", "0")]);
    let mut listener = Listener::new(&two[1], "t");
    let grpc = format!("127.0.0.1:1,{},{}", two[0].grpc, two[1].grpc);
    let mut publishing = fanwire(&["pub", "t", "-", "--grpc", &grpc]).stdin(Stdio::piped()).spawn().unwrap();
    let mut lines = publishing.stdin.take().unwrap();
    (1..101).for_each(|n| writeln!(lines, "x {n}").unwrap());
    listener.hears(&[("x", 100)]);
    assert_eq!(two[0].stop().code(), Some(0));
    (101..201).for_each(|n| writeln!(lines, "x {n}").unwrap());
    drop(lines);
    let output = publishing.wait_with_output().unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!((stdout.as_str(), output.status.code()), ("200 accepted, 0 refused\n", Some(0)), "{stderr}");
    assert!(stderr.contains("going on with another gateway"), "{stderr}");
    listener.hears(&[("x", 200)]);
    listener.hears_no_more();
}
