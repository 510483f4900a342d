//! Three nodes and an etcd, each a machine of a [`Lab`]: started, stopped, killed and started again under an audience.

use crate::audience::Audience;
use crate::etcd::Etcd;
use crate::faults::Faults;
use crate::gateway::{DEADLINE, Gateway, Start, wait_until};
use crate::http::Metrics;
use crate::lab::{Disk, Lab, Place};
use crate::load::Load;
use crate::nats::Nats;
use crate::record::{Life, Record, Verdict};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What everybody publishes to and hears.
pub const TOPIC: &str = "t";
/// Each machine has these to itself.
const SUBSCRIBERS: u16 = 9992;
const GRPC: u16 = 10067;
const RELAY: u16 = 10069;
const RELAY_BEHIND_PROXY: u16 = 10070;
const ETCD: u16 = 2379;
const NATS: u16 = 4222;
const NATS_DISK_MEBIBYTES: u32 = 64;
/// etcd makes two files of 64 MB before it begins.
const ETCD_DISK_MEBIBYTES: u32 = 160;

/// A node as clients see it.
#[derive(Clone)]
pub struct Door {
    pub place: Place,
    /// Where the node is, seen from where this is used.
    pub address: Ipv4Addr,
    pub grpc_port: u16,
    state: Arc<State>,
}

struct State {
    /// Whether a balancer would send anybody there.
    is_open: AtomicBool,
    life: AtomicU16,
}

impl Door {
    pub fn is_open(&self) -> bool {
        self.state.is_open.load(Ordering::Relaxed)
    }

    /// The node's life at the moment.
    pub fn life(&self) -> Life {
        Life(self.state.life.load(Ordering::Relaxed))
    }

    /// The same, seen from the machine itself.
    pub fn local(&self) -> Door {
        Door { address: Ipv4Addr::LOCALHOST, ..self.clone() }
    }

    /// A connection to the subscribers' port, from the machine itself.
    pub fn connect(&self) -> std::io::Result<TcpStream> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, SUBSCRIBERS));
        let stream = self.place.inside(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)))?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

/// A node on its machine.
pub struct Machine {
    pub name: &'static str,
    pub place: Place,
    /// Others reach its relay only through this.
    pub network: Faults,
    gateway: Option<Gateway>,
    state: Arc<State>,
}

/// Where the nodes find one another.
pub struct Finding {
    pub place: Place,
    pub etcd: Etcd,
    pub disk: Disk,
    /// Nodes reach etcd only through this.
    pub network: Faults,
}

/// NATS with JetStream, a disk of its own under it.
pub struct Bus {
    pub place: Place,
    pub nats: Nats,
    pub disk: Disk,
    /// Nodes reach it only through this.
    pub network: Faults,
}

/// How what one node accepts reaches the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transport {
    Relay,
    Nats,
}

/// All of it.
pub struct Fleet {
    pub nodes: Vec<Machine>,
    pub finding: Finding,
    /// With [`Transport::Nats`].
    pub bus: Option<Bus>,
    pub outside: Place,
    pub record: Arc<Mutex<Record>>,
    settings: Vec<(&'static str, String)>,
    _lab: Lab,
}

impl Fleet {
    /// Three nodes that pull from one another, where networks can be had at all.
    pub fn start(settings: &[(&'static str, &str)]) -> Option<Fleet> {
        Fleet::start_with(Transport::Relay, settings)
    }

    /// Three nodes that reach one another by `transport`.
    pub fn start_with(transport: Transport, settings: &[(&'static str, &str)]) -> Option<Fleet> {
        let lab = Lab::new()?;
        let place = lab.place("etcd");
        let disk = lab.disk("etcd", ETCD_DISK_MEBIBYTES);
        let mut etcd = Etcd::within(&place, disk.path.join("data"));
        etcd.run();
        let network = Faults::within(&place, ETCD);
        network.lead_to((Ipv4Addr::LOCALHOST, ETCD).into());
        let bus = (transport == Transport::Nats).then(|| {
            let place = lab.place("nats");
            let disk = lab.disk("nats", NATS_DISK_MEBIBYTES);
            let mut nats = Nats::within(&place, disk.path.join("data"));
            nats.run();
            let network = Faults::within(&place, NATS);
            network.lead_to((Ipv4Addr::LOCALHOST, NATS).into());
            Bus { place, nats, disk, network }
        });
        let nodes = ["a", "b", "c"].map(|name| {
            let place = lab.place(name);
            let network = Faults::within(&place, RELAY_BEHIND_PROXY);
            network.lead_to((Ipv4Addr::LOCALHOST, RELAY).into());
            let state = State { is_open: AtomicBool::new(false), life: AtomicU16::new(0) };
            Machine { name, place, network, gateway: None, state: Arc::new(state) }
        });
        let mut fleet = Fleet {
            nodes: nodes.into(),
            finding: Finding { place, etcd, disk, network },
            outside: lab.place("outside"),
            bus,
            record: Arc::new(Mutex::new(Record::new(transport == Transport::Relay))),
            settings: settings.iter().map(|(key, value)| (*key, (*value).to_owned())).collect(),
            _lab: lab,
        };
        (0..fleet.nodes.len()).for_each(|at| fleet.start_node(at));
        fleet.settles();
        Some(fleet)
    }

    /// The bus, which is there.
    pub fn bus(&mut self) -> &mut Bus {
        self.bus.as_mut().expect("the transport is NATS")
    }

    /// What carries a node's messages to others: the way to its relay, or that to NATS.
    pub fn way(&self, at: usize) -> &Faults {
        self.bus.as_ref().map_or(&self.nodes[at].network, |bus| &bus.network)
    }

    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap()
    }

    /// What is at the doors of all nodes.
    pub fn doors(&self) -> Vec<Door> {
        let door = |node: &Machine| Door {
            place: node.place.clone(),
            address: node.place.address,
            grpc_port: GRPC,
            state: node.state.clone(),
        };
        self.nodes.iter().map(door).collect()
    }

    /// Subscribers on every node.
    pub fn audience(&self, each: usize) -> Audience {
        self.audience_of(&self.doors(), each)
    }

    /// Subscribers on some nodes, where there were none before.
    pub fn audience_of(&self, doors: &[Door], each: usize) -> Audience {
        let audience = Audience::begin(&self.record, doors, each);
        wait_until("all have subscribed", || self.record().judge().sessions >= each * doors.len());
        audience
    }

    /// Publishers on every node, and some that go where they are let in.
    pub fn load(&self) -> Load {
        Load::begin(&self.record, &self.doors(), &self.outside, 2)
    }

    /// Starts a node; its clients come as soon as it listens.
    pub fn start_node(&mut self, at: usize) {
        self.boot(at);
        self.nodes[at].state.is_open.store(true, Ordering::Relaxed);
    }

    /// Starts a node; nobody comes until it is a member and pulls from `links` others.
    pub fn start_node_quietly(&mut self, at: usize) {
        self.boot(at);
        let others = self.running() - 1;
        wait_until("it pulls from the others", || self.nodes[at].sees(others, others));
        self.nodes[at].state.is_open.store(true, Ordering::Relaxed);
    }

    fn boot(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let life = self.record.lock().unwrap().begin_life(at);
        node.state.life.store(life.0, Ordering::Relaxed);
        let any = |port: u16| format!("0.0.0.0:{port}");
        let advertised = node.network.address.to_string();
        let etcd = format!("http://{}", self.finding.network.address);
        let start = Start::listening(&any(SUBSCRIBERS)).sets(&[
            ("publish.grpc_address", &any(GRPC)),
            ("publish.http_address", &any(10068)),
            ("publish.insecure", "true"),
            ("cluster.etcd", &etcd),
            ("cluster.name", node.name),
            ("cluster.relay_address", &format!("127.0.0.1:{RELAY}")),
            ("cluster.relay_advertise", &advertised),
            ("drain.drain_window_ms", "200"),
            ("shards.count", "1"),
        ]);
        let start = match &self.bus {
            None => start,
            Some(bus) => start.sets(&[
                ("cluster.transport", "nats"),
                ("cluster.nats", &format!("nats://{}", bus.network.address)),
                ("cluster.nats_max_bytes", "33554432"),
            ]),
        };
        let settings: Vec<_> = self.settings.iter().map(|(key, value)| (*key, &**value)).collect();
        node.gateway = Some(node.place.inside(|| start.sets(&settings).start()));
    }

    fn running(&self) -> usize {
        self.nodes.iter().filter(|node| node.gateway.is_some()).count()
    }

    /// Waits until every node that runs pulls from all others that do.
    pub fn settles(&self) {
        let others = self.running() - 1;
        for node in self.nodes.iter().filter(|node| node.gateway.is_some()) {
            wait_until("it pulls from all others", || node.sees(others, others));
        }
    }

    /// Kills a node without a word.
    pub fn kill_node(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.state.is_open.store(false, Ordering::Relaxed);
        let life = node.door_life();
        // Under the lock: what it is told of behind this was before.
        let mut record = self.record.lock().unwrap();
        drop(node.gateway.take());
        record.killed(life);
    }

    /// Has a node drained.
    pub fn drain_node(&mut self, at: usize) {
        self.nodes[at].gateway().signal("TERM");
        self.wait_drained(at);
    }

    /// Waits for the end of a node that was told to drain.
    pub fn wait_drained(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let mut gateway = node.gateway.take().expect("it runs");
        let status = node.place.inside(|| gateway.wait());
        node.state.is_open.store(false, Ordering::Relaxed);
        self.record.lock().unwrap().drained(node.door_life());
        assert_eq!(status.code(), Some(0), "{}", gateway.stderr());
    }

    /// Waits until nothing that is due is missing any more, and judges.
    #[track_caller]
    pub fn judge(&self) -> Verdict {
        let end = Instant::now() + DEADLINE;
        loop {
            let verdict = self.record().judge();
            if verdict.lost.is_empty() || Instant::now() > end {
                return verdict;
            }
            std::thread::sleep(Duration::from_millis(50)); // What is under way.
        }
    }
}

impl Machine {
    fn door_life(&self) -> Life {
        Life(self.state.life.load(Ordering::Relaxed))
    }

    /// The process.
    pub fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().expect("it runs")
    }

    pub fn is_running(&self) -> bool {
        self.gateway.is_some()
    }

    /// What it counts.
    pub fn metrics(&self) -> Metrics {
        self.place.inside(|| self.gateway().metrics())
    }

    /// How many others it knows.
    pub fn others(&self) -> usize {
        self.metrics().sum("fanwire_cluster_nodes", &[]) as usize
    }

    /// Whether it is a member, knows that many others and pulls from `links` of them, or from the stream.
    pub fn sees(&self, others: usize, links: usize) -> bool {
        let metrics = self.metrics();
        // One that was killed is known for some seconds more.
        let is = |name: &str, n: usize| metrics.sum(name, &[]) >= n as f64;
        let is_linked = is("fanwire_relay_links", links) || is("fanwire_cluster_nats_connected", 1);
        is("fanwire_cluster_member", 1) && is("fanwire_cluster_nodes", others) && is_linked
    }
}
