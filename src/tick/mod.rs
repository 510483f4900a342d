//! One turn of a shard's core: inbox, completions, timers, then flush; asleep in its ring when there is nothing to do.

use crate::metrics::ShardMetrics;
use crate::queue::{Arrival, Bell, Departure, FromShard, Receiver, Sender, ToShard};
use crate::socket::Ring;
use std::sync::Arc;

/// A shard's ends of its queues.
pub struct Endpoints {
    /// From the control core.
    pub inbox: Receiver<ToShard>,
    /// To the control core.
    pub outbox: Sender<FromShard>,
    /// From the accepting core.
    pub arrivals: Receiver<Arrival>,
    /// To the accepting core.
    pub departures: Sender<Departure>,
    /// Rung by both.
    pub bell: Arc<Bell>,
}

/// What a turn ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Call again.
    Again,
    /// A drain is complete: every connection is closed and [`FromShard::Drained`] is out.
    Drained,
}

/// One shard: its ring, its connections, its turn.
pub struct Reactor<R: Ring> {
    ring: R,
    _endpoints: Endpoints,
    _metrics: Arc<ShardMetrics>,
}

impl<R: Ring> Reactor<R> {
    /// One turn. Sleeps in [`Ring::enter`] at its end if nothing is left to do.
    pub fn turn(&mut self) -> Turn {
        self.ring.enter(None);
        Turn::Again
    }

    /// Its ring.
    pub fn ring_mut(&mut self) -> &mut R {
        &mut self.ring
    }
}
