//! A node that leaves: first the members, then its clients, who are sent elsewhere only if there is an elsewhere.

use crate::client::Client;
use crate::etcd::Etcd;
use crate::gateway::{fanwire, wait_until};
use crate::node::{Listener, Node, cluster};
use std::io::Write;
use std::process::Stdio;

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
    wait_until("it is no member any more", || two[1].metrics().sum("fanwire_cluster_nodes", &[]) == 0.0);
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
