//! Beside gpush: its sockets find Fanwire in etcd, and Fanwire finds its proxies there.

use crate::background::Background;
use crate::etcd::Etcd;
use crate::gateway::wait_until;
use crate::node::{Listener, Node, cluster};
use fanwire::proto::order::proxy_server::{Proxy, ProxyServer};
use fanwire::proto::order::{Data, Empty};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

type Pull = mpsc::UnboundedSender<Result<Data, Status>>;

/// A proxy of gpush's, as far as its sockets see it: as grpc-go does, it answers a call with its first push, not before.
struct FakeProxy {
    address: SocketAddr,
    pulls: Arc<Mutex<Vec<Pull>>>,
    _background: Background,
}

struct Service(Arc<Mutex<Vec<Pull>>>);

#[tonic::async_trait]
impl Proxy for Service {
    async fn push_data(&self, _: Request<Data>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("nobody pushes here"))
    }

    type PullDataStream = Pin<Box<dyn Stream<Item = Result<Data, Status>> + Send>>;

    async fn pull_data(&self, _: Request<Empty>) -> Result<Response<Self::PullDataStream>, Status> {
        let (pull, mut pushes) = mpsc::unbounded_channel();
        self.0.lock().unwrap().push(pull);
        let first = pushes.recv().await.expect("the senders live as long as the proxy");
        Ok(Response::new(Box::pin(tokio_stream::once(first).chain(UnboundedReceiverStream::new(pushes)))))
    }
}

impl FakeProxy {
    fn start() -> FakeProxy {
        let background = Background::new();
        let listener = background.run(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let (address, pulls) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<Pull>>>::default());
        let server = tonic::transport::Server::builder().add_service(ProxyServer::new(Service(pulls.clone())));
        background.spawn(async move { drop(server.serve_with_incoming(TcpListenerStream::new(listener)).await) });
        FakeProxy { address, pulls, _background: background }
    }

    /// Pushes to all who pull, as gpush does.
    fn push(&self, topic: &str, data: &str) {
        for pull in &*self.pulls.lock().unwrap() {
            let _ = pull.send(Ok(Data { topic: topic.into(), data: data.to_owned().into(), ..Data::default() }));
        }
    }

    /// Pulls that ever began.
    fn begun(&self) -> usize {
        self.pulls.lock().unwrap().len()
    }

    fn open(&self) -> usize {
        self.pulls.lock().unwrap().iter().filter(|pull| !pull.is_closed()).count()
    }
}

#[test]
fn its_sockets_find_every_node_that_publishes() {
    let etcd = Etcd::start();
    let two = cluster(&etcd, &["a", "b"], &[("cluster.gpush_prefix", "proxy")]);
    let mut addresses: Vec<_> = etcd
        .get("proxy/")
        .into_iter()
        .map(|(key, address)| {
            assert!(key.strip_prefix("proxy/").unwrap().parse::<i64>().unwrap() > 0, "a lease: {key}");
            address
        })
        .collect();
    addresses.sort();
    let mut expected: Vec<_> = two.iter().map(|node| node.grpc.to_string()).collect();
    expected.sort();
    assert_eq!(addresses, expected);
    // Nodes are not each other's proxies, or each would get everything twice.
    let mut listener = Listener::new(&two[1], "t");
    two[0].publish("t", 1..101);
    listener.hears(&[("a", 100)]);
    listener.hears_no_more();
    assert!(two.iter().all(|node| node.metrics().sum("fanwire_cluster_gpush_proxies", &[]) == 0.0));
}

#[test]
fn its_proxies_are_pulled_from_for_as_long_as_their_key_is_there() {
    let etcd = Etcd::start();
    let (early, late) = (FakeProxy::start(), FakeProxy::start());
    etcd.ctl(&["put", "proxy/123", &early.address.to_string()]).unwrap();
    let two = cluster_beside(&etcd, 1);
    let mut listeners: Vec<_> = two.iter().map(|node| Listener::new(node, "t")).collect();
    wait_until("both pull", || early.open() == 2);
    std::thread::sleep(Duration::from_secs(4)); // A node would be given up by now; a proxy without pushes is not.
    assert_eq!(early.begun(), 2);
    early.push("t", "early 1");
    listeners.iter_mut().for_each(|listener| listener.hears(&[("early", 1)]));

    etcd.ctl(&["put", "proxy/456", &late.address.to_string()]).unwrap();
    wait_until("both pull from the new one too", || late.open() == 2);
    late.push("t", "late 1");
    early.push("t", "early 2");
    for listener in &mut listeners {
        listener.hears(&[("early", 2), ("late", 1)]);
        listener.hears_no_more();
    }

    etcd.ctl(&["del", "proxy/123"]).unwrap();
    wait_until("nobody pulls from it any more", || {
        early.push("nobody", "x");
        early.open() == 0
    });
    assert_eq!(late.open(), 2);
}

#[test]
fn its_sockets_pull_from_a_node_for_as_long_as_it_accepts() {
    let etcd = Etcd::start();
    let settings = [("cluster.gpush_prefix", "proxy"), ("drain.drain_delay_ms", "60000")];
    let node = Node::start(&etcd, "a", &settings);
    wait_until("its key is there", || etcd.get("proxy/").len() == 1);
    node.signal("TERM");
    wait_until("it drains", || etcd.get("fanwire/nodes/").iter().any(|(_, node)| node.contains(r#""draining":true"#)));
    assert_eq!(etcd.get("proxy/").len(), 1, "they would miss what it accepts until its end");
}

#[test]
fn a_proxy_under_two_keys_is_pulled_from_once_until_the_last_is_gone() {
    let etcd = Etcd::start();
    let proxy = FakeProxy::start();
    etcd.ctl(&["put", "proxy/123", &proxy.address.to_string()]).unwrap();
    let two = cluster_beside(&etcd, 1);
    let mut listeners: Vec<_> = two.iter().map(|node| Listener::new(node, "t")).collect();
    wait_until("both pull", || proxy.open() == 2);
    // Started anew in its place: the lease of its life before is not over yet.
    etcd.ctl(&["put", "proxy/456", &proxy.address.to_string()]).unwrap();
    let know =
        |keys: usize| two.iter().all(|node| node.metrics().sum("fanwire_cluster_gpush_proxies", &[]) == keys as f64);
    wait_until("both know of both keys", || know(2));
    for (number, key) in [(1, "proxy/123"), (2, "proxy/456")] {
        proxy.push("t", &format!("proxy {number}"));
        for listener in &mut listeners {
            listener.hears(&[("proxy", number)]);
            listener.hears_no_more();
        }
        assert_eq!((proxy.begun(), proxy.open()), (2, 2), "{number}");
        etcd.ctl(&["del", key]).unwrap();
        wait_until("both know that it is gone", || know(2 - number as usize));
    }
    wait_until("nobody pulls from it any more", || {
        proxy.push("nobody", "x");
        proxy.open() == 0
    });
}

/// Two nodes that pull from each other and from `proxies`.
fn cluster_beside(etcd: &Etcd, proxies: usize) -> Vec<Node> {
    let two: Vec<_> = ["a", "b"].map(|name| Node::start(etcd, name, &[("cluster.gpush_prefix", "proxy")])).into();
    for node in &two {
        wait_until("it pulls from all", || node.sees(1, 1 + proxies));
    }
    two
}
