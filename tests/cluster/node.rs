//! Gateways as nodes of one cluster, with a failing network in front of the relay of each, and subscribers that check every message.

use crate::client::{Client, Event};
use crate::etcd::Etcd;
use crate::faults::Faults;
use crate::gateway::{DEADLINE, Gateway, Start, fanwire, wait_for, wait_until};
use crate::publisher::{Publisher, message};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

/// A gateway that is a node.
pub struct Node {
    pub gateway: Gateway,
    pub name: &'static str,
    /// Others reach its relay only through this.
    pub network: Faults,
}

impl Deref for Node {
    type Target = Gateway;

    fn deref(&self) -> &Gateway {
        &self.gateway
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Gateway {
        &mut self.gateway
    }
}

impl Node {
    /// Started; whether it is a member already is another matter.
    pub fn start(etcd: &Etcd, name: &'static str, settings: &[(&str, &str)]) -> Node {
        let network = Faults::new();
        let advertised = network.address.to_string();
        let start = Start::new().sets(&[
            ("cluster.etcd", &etcd.address()),
            ("cluster.name", name),
            ("cluster.relay_address", "127.0.0.1:0"),
            ("cluster.relay_advertise", &advertised),
            ("auth.login", "accept-any"),
        ]);
        let gateway = start.sets(settings).start();
        let node = Node { gateway, name, network };
        if let Some(relay) = wait_for("it has said all", || node.relay_address()) {
            node.network.lead_to(relay);
        }
        node
    }

    /// Where its relay listens; none, if it has none. Said last.
    fn relay_address(&self) -> Option<Option<SocketAddr>> {
        let (text, is_fanout) = (self.stdout(), self.stdout().contains("HTTP admin"));
        let line = text.lines().find_map(|line| line.strip_prefix("relay "));
        let address = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        (address.is_some() || is_fanout).then_some(address)
    }

    /// Whether it says that it is a member.
    pub fn is_member(&self) -> bool {
        self.metrics().sum("fanwire_cluster_member", &[]) == 1.0
    }

    /// Whether it knows that many others and pulls from `links` of them.
    pub fn sees(&self, others: usize, links: usize) -> bool {
        let metrics = self.metrics();
        let is = |name: &str, n: usize| metrics.sum(name, &[]) == n as f64;
        self.is_member() && is("fanwire_cluster_nodes", others) && is("fanwire_relay_links", links)
    }

    /// Messages of others lost to it.
    pub fn lost(&self) -> f64 {
        self.metrics().sum("fanwire_relay_lost_messages_total", &[])
    }

    /// Messages it got from others.
    pub fn received(&self) -> f64 {
        self.metrics().sum("fanwire_relay_received_messages_total", &[])
    }

    /// Publishes `numbers` to `topic`, each as "name number", in batches of a hundred.
    pub fn publish(&self, topic: &str, numbers: std::ops::Range<u64>) {
        let publisher = Publisher::new(self);
        let mut stream = publisher.stream().unwrap();
        let all: Vec<_> = numbers.collect();
        for batch in all.chunks(100) {
            let messages = batch.iter().map(|n| message(topic, format!("{} {n}", self.name))).collect();
            let result = stream.batch(messages).unwrap();
            assert!(result.results.iter().all(|r| r.error.is_none()), "{result:?}");
        }
    }
}

/// Nodes of these names on one etcd, each pulling from all others.
pub fn cluster(etcd: &Etcd, names: &[&'static str], settings: &[(&str, &str)]) -> Vec<Node> {
    let nodes: Vec<_> = names.iter().map(|name| Node::start(etcd, name, settings)).collect();
    for node in &nodes {
        wait_until("it pulls from all others", || node.sees(names.len() - 1, names.len() - 1));
    }
    nodes
}

/// A subscriber that holds every origin to its order: no gap, nothing twice.
pub struct Listener {
    client: Client,
    heard: HashMap<String, u64>,
}

impl Listener {
    /// Of one topic.
    pub fn new(node: &Node, topic: &str) -> Listener {
        Listener { client: Client::subscriber(node, &[topic]), heard: HashMap::new() }
    }

    /// What it last heard of an origin; 0 if nothing.
    pub fn heard(&self, origin: &str) -> u64 {
        self.heard.get(origin).copied().unwrap_or(0)
    }

    /// Hears every message up to `last` of each of `origins`, in order.
    #[track_caller]
    pub fn hears(&mut self, origins: &[(&str, u64)]) {
        let end = Instant::now() + DEADLINE;
        while origins.iter().any(|(origin, last)| self.heard(origin) < *last) {
            assert!(Instant::now() < end, "heard {:?}, and not {origins:?}", self.heard);
            let (origin, number) = self.next().unwrap_or_else(|| panic!("silence behind {:?}", self.heard));
            let due = self.heard(&origin) + 1;
            assert_eq!(number, due, "of {origin}");
            self.heard.insert(origin, number);
        }
        assert!(origins.iter().all(|(origin, last)| self.heard(origin) == *last), "{:?}: {origins:?}", self.heard);
    }

    /// The next message: origin and number.
    pub fn next(&mut self) -> Option<(String, u64)> {
        let text = match self.client.event(DEADLINE) {
            Event::Frame(frame) => frame.text(),
            _ => return None,
        };
        let (origin, number) = text.split_once(' ').unwrap_or_else(|| panic!("not ours: {text}"));
        Some((origin.to_owned(), number.parse().unwrap()))
    }

    /// Goes on behind a gap.
    pub fn continue_from(&mut self, origin: &str, last: u64) {
        self.heard.insert(origin.to_owned(), last);
    }

    /// Hears nothing at all for a moment: nothing came twice, nothing came back.
    #[track_caller]
    pub fn hears_no_more(&mut self) {
        let event = self.client.event(Duration::from_millis(300));
        assert_eq!(event, Event::Quiet, "behind {:?}", self.heard);
    }
}

/// `fanwire nodes` of an etcd: exit code, stdout, stderr.
pub fn nodes(etcd: &str, more: &[&str]) -> (i32, String, String) {
    let output = fanwire(&["nodes", "--etcd", etcd]).args(more).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}
