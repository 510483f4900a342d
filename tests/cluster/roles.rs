//! Nodes that only take in, and nodes that only give out.

use crate::etcd::Etcd;
use crate::gateway::wait_until;
use crate::node::{Listener, Node};
use std::net::TcpStream;

#[test]
fn what_an_ingest_accepts_a_fanout_delivers() {
    let etcd = Etcd::start();
    let ingest = Node::start(&etcd, "in", &[("cluster.role", "ingest")]);
    let fanout = Node::start(&etcd, "out", &[("cluster.role", "fanout")]);
    wait_until("the fanout pulls", || fanout.sees(1, 1));
    wait_until("the ingest has nobody to pull from", || ingest.sees(1, 0));
    let mut listener = Listener::new(&fanout, "t");
    ingest.publish("t", 1..1001);
    listener.hears(&[("in", 1000)]);

    assert!(!ingest.stdout().contains("subscribers"), "{}", ingest.stdout());
    assert!(!fanout.stdout().contains("publish"), "{}", fanout.stdout());
    assert_eq!(fanout.try_push("t", "x").status, 404);
    assert_eq!(fanout.get("/healthz").status, 200);
    let is_open = |address| TcpStream::connect(address).is_ok();
    assert!(is_open(ingest.grpc) && is_open(fanout.subscribers));
}
