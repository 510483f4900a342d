//! The machine under the gateway: what it offers, what many connections ask of it, and how the one becomes the other.
//!
//! ```text
//! Demand ──► KNOBS (what is wanted, why) ──┬──► doctor: found, wanted, why, fix
//! Root   ──► Machine (what is there)  ─────┤
//!                                          └──► tune: changes, with their undo
//! ```
//!
//! Everything is read below a [`Root`], so that a test can lay out a machine. `doctor` and the planning of `tune` only read.

mod doctor;
mod finding;
mod knobs;
#[cfg(test)]
mod laid;
mod machine;
pub mod memory;
mod nic;
mod root;
mod tune;

pub use doctor::{Gateway, Layout, examine};
pub use finding::{Finding, Verdict, render};
pub use knobs::{Hand, KNOBS, Knob, Wanted, drop_in};
pub use machine::{Limits, Machine};
pub use memory::Memory;
pub use nic::Nic;
pub use root::{Root, Unseen};
pub use tune::{Change, Outcome, Plan, TuneError, Tuner};

use crate::config::Config;

/// What the machine is to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Connections at once.
    pub connections: u64,
    /// Whether their other ends are on this machine too: a load, or a proxy.
    pub clients_here: bool,
    /// How many of them do not keep up at the worst moment.
    pub slow: u64,
    /// `shards.socket_send_buffer_bytes`.
    pub send_buffer_bytes: u64,
    /// `shards.listen_backlog`.
    pub listen_backlog: u64,
    /// `slow.pending_bytes_max`.
    pub pending_bytes_max: u64,
    /// `slow.owed_bytes_max`.
    pub owed_bytes_max: u64,
    /// Whether the firewall tracks connections.
    pub tracked: bool,
}

/// Of a hundred clients so many are slow at the worst moment, unless whoever asks says otherwise.
pub const SLOW_PERCENT: f64 = 1.0;

impl Demand {
    /// Of so many connections to a gateway of this configuration, one in a hundred slow.
    pub fn new(connections: u64, config: &Config) -> Demand {
        Demand {
            connections,
            clients_here: false,
            slow: share(connections, SLOW_PERCENT),
            send_buffer_bytes: config.shards.socket_send_buffer_bytes as u64,
            listen_backlog: u64::from(config.shards.listen_backlog),
            pending_bytes_max: config.slow.pending_bytes_max as u64,
            owed_bytes_max: config.slow.owed_bytes_max as u64,
            tracked: false,
        }
    }

    /// The same, so many of a hundred slow.
    #[must_use]
    pub fn with_slow_percent(self, percent: f64) -> Demand {
        Demand { slow: share(self.connections, percent), ..self }
    }

    /// What the kernel's TCP must be allowed to hold: what slow clients have not read, and a message in flight to each.
    pub fn tcp_bytes(&self) -> u64 {
        let ends = if self.clients_here { 2 } else { 1 };
        ends * (self.slow * memory::SEND_BUFFERS_PINNED * self.send_buffer_bytes
            + self.connections * memory::MESSAGE_IN_FLIGHT_BYTES)
    }
}

/// `percent` of `connections`, rounded up.
fn share(connections: u64, percent: f64) -> u64 {
    (connections as f64 * percent.clamp(0.0, 100.0) / 100.0).ceil() as u64
}
