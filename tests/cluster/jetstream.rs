//! Nodes that read one stream of NATS JetStream: what it acknowledges every subscriber gets, in its order, once, whatever ends meanwhile.

use crate::client::Client;
use crate::gateway::{Gateway, Start, wait_until};
use crate::nats::Nats;
use crate::publisher::Publisher;

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
