//! What can be done to a fleet: each fault begins, lasts, and is undone.

use crate::fleet::Fleet;
use crate::gateway::wait_until;
use crate::record::FaultId;
use std::fmt;
use std::time::Duration;

/// One fault, of the node with that number or of etcd.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trouble {
    /// Its cable is pulled.
    Link(usize),
    /// Its cable carries so many kbit/s.
    Throttle(usize, u32),
    /// Others hear of it so many milliseconds later.
    Delay(usize, u64),
    /// So many in a hundred of its packets have to be sent again.
    Loss(usize, u8),
    /// Every connection to its relay is reset.
    Reset(usize),
    /// Connections to its relay stand and carry nothing.
    HalfOpen(usize),
    /// It stands still.
    Stop(usize),
    /// It is killed, and started again when this is over.
    Kill(usize),
    /// It is drained, and started again.
    Drain(usize),
    EtcdLink,
    EtcdReset,
    EtcdStop,
    EtcdKill,
    /// Its disk is full, of which it dies.
    EtcdDisk,
    NatsLink,
    NatsStop,
    NatsKill,
    /// Its disk is full, of which it gives up.
    NatsDisk,
}

impl Trouble {
    pub fn kind(self) -> &'static str {
        match self {
            Trouble::Link(_) => "link down",
            Trouble::Throttle(..) => "throttle",
            Trouble::Delay(..) => "delay",
            Trouble::Loss(..) => "loss",
            Trouble::Reset(_) => "reset",
            Trouble::HalfOpen(_) => "half-open",
            Trouble::Stop(_) => "stop",
            Trouble::Kill(_) => "kill",
            Trouble::Drain(_) => "drain",
            Trouble::EtcdLink => "etcd link down",
            Trouble::EtcdReset => "etcd reset",
            Trouble::EtcdStop => "etcd stop",
            Trouble::EtcdKill => "etcd kill",
            Trouble::EtcdDisk => "etcd disk full",
            Trouble::NatsLink => "NATS link down",
            Trouble::NatsStop => "NATS stop",
            Trouble::NatsKill => "NATS kill",
            Trouble::NatsDisk => "NATS disk full",
        }
    }

    /// The node it is about.
    pub fn node(self) -> Option<usize> {
        match self {
            Trouble::Link(at)
            | Trouble::Throttle(at, _)
            | Trouble::Delay(at, _)
            | Trouble::Loss(at, _)
            | Trouble::Reset(at)
            | Trouble::HalfOpen(at)
            | Trouble::Stop(at)
            | Trouble::Kill(at)
            | Trouble::Drain(at) => Some(at),
            _ => None,
        }
    }

    /// Whether its end is the start of a node, for which everything else must be well.
    pub fn restarts(self) -> bool {
        matches!(self, Trouble::Kill(_) | Trouble::Drain(_))
    }

    /// The nodes whose ways to others it troubles. What a killed one takes along is judged by itself.
    fn troubled(self) -> Vec<usize> {
        match self {
            Trouble::NatsLink | Trouble::NatsStop | Trouble::NatsKill | Trouble::NatsDisk => vec![0, 1, 2],
            _ if self.restarts() => Vec::new(),
            _ => self.node().into_iter().collect(),
        }
    }

    /// Does it.
    pub fn begin(self, fleet: &mut Fleet) -> FaultId {
        let fault = fleet.record().begin_fault(self.kind(), &self.troubled());
        match self {
            Trouble::Link(at) => fleet.nodes[at].place.set_link(false),
            Trouble::Throttle(at, kbit_per_s) => fleet.nodes[at].place.throttle(Some(kbit_per_s)),
            Trouble::Delay(at, ms) => fleet.way(at).delay(Duration::from_millis(ms)),
            Trouble::Loss(at, percent) => fleet.way(at).lose(percent),
            Trouble::Reset(at) => fleet.way(at).reset(),
            Trouble::HalfOpen(at) => fleet.way(at).fall_silent(),
            Trouble::Stop(at) => fleet.nodes[at].gateway().signal("STOP"),
            Trouble::Kill(at) => fleet.kill_node(at),
            Trouble::Drain(at) => fleet.drain_node(at),
            Trouble::EtcdLink => fleet.finding.place.set_link(false),
            Trouble::EtcdReset => fleet.finding.network.reset(),
            Trouble::EtcdStop => fleet.finding.etcd.signal("STOP"),
            Trouble::EtcdKill => fleet.finding.etcd.stop(),
            Trouble::EtcdDisk => {
                fleet.finding.disk.fill();
                let much = "x".repeat(100_000); // Arguments are bounded.
                wait_until("etcd dies of a full disk", || {
                    fleet.finding.etcd.ctl(&["put", "filling", &much]);
                    fleet.finding.etcd.has_ended()
                });
            }
            Trouble::NatsLink => fleet.bus().place.set_link(false),
            Trouble::NatsStop => fleet.bus().nats.signal("STOP"),
            Trouble::NatsKill => fleet.bus().nats.kill(),
            Trouble::NatsDisk => fleet.bus().disk.fill(),
        }
        fault
    }

    /// Undoes it.
    pub fn end(self, fleet: &mut Fleet, fault: FaultId) {
        match self {
            Trouble::Link(at) => fleet.nodes[at].place.set_link(true),
            Trouble::Throttle(at, _) => fleet.nodes[at].place.throttle(None),
            Trouble::Delay(at, _) => fleet.way(at).delay(Duration::ZERO),
            Trouble::Loss(at, _) => fleet.way(at).lose(0),
            Trouble::Reset(_) | Trouble::EtcdReset => {}
            Trouble::HalfOpen(at) => fleet.way(at).pass(),
            Trouble::Stop(at) => fleet.nodes[at].gateway().signal("CONT"),
            Trouble::Kill(at) | Trouble::Drain(at) => fleet.start_node_quietly(at),
            Trouble::EtcdLink => fleet.finding.place.set_link(true),
            Trouble::EtcdStop => fleet.finding.etcd.signal("CONT"),
            Trouble::EtcdKill => fleet.finding.etcd.run(),
            Trouble::EtcdDisk => {
                fleet.finding.disk.free();
                fleet.finding.etcd.stop();
                fleet.finding.etcd.run();
            }
            Trouble::NatsLink => fleet.bus().place.set_link(true),
            Trouble::NatsStop => fleet.bus().nats.signal("CONT"),
            Trouble::NatsKill => fleet.bus().nats.run(),
            Trouble::NatsDisk => {
                fleet.bus().disk.free();
                fleet.bus().nats.kill();
                fleet.bus().nats.run();
            }
        }
        fleet.record().end_fault(fault);
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(node) = self.node() {
            write!(f, "node {}: ", ["a", "b", "c"][node])?;
        }
        write!(f, "{}", self.kind())?;
        match self {
            Trouble::Throttle(_, kbit_per_s) => write!(f, " to {kbit_per_s} kbit/s"),
            Trouble::Delay(_, ms) => write!(f, " of {ms} ms"),
            Trouble::Loss(_, percent) => write!(f, " of {percent} %"),
            _ => Ok(()),
        }
    }
}
