//! Letting every connection go, evenly spread, what it is owed first.

use super::Reactor;
use super::life::Cause;
use crate::clock::Time;
use crate::ids::Slot;
use crate::queue::{Drain, FromShard};
use crate::shard::connection::Phase;
use crate::socket::Ring;

/// A drain under way.
pub(super) struct Draining {
    order: Drain,
    begun: Time,
    window_ms: u64,
    /// Slots at the beginning, and how many of them were told to close.
    slots: u32,
    told: u32,
}

impl Draining {
    /// When the next close is due.
    pub(super) fn wake(&self, now: Time) -> Time {
        if self.told < self.slots { now.plus_ms(1) } else { now.plus_ms(100) }
    }

    fn due(&self, now: Time) -> u32 {
        let passed = now.since_ns(self.begun);
        let window = self.window_ms * 1_000_000;
        if passed >= window {
            return self.slots;
        }
        (u128::from(self.slots) * u128::from(passed) / u128::from(window)) as u32
    }
}

impl<R: Ring> Reactor<R> {
    pub(super) fn begin_drain(&mut self, order: Drain) {
        if self.drain.is_some() {
            return;
        }
        // Stretched so that this core closes no more than its rate; with nobody there it is over at once.
        let at_rate_ms = (self.tenants as u64 * 1000).div_ceil(u64::from(order.rate_per_s.max(1)));
        let window_ms = if self.tenants == 0 { 0 } else { order.window_ms.max(at_rate_ms) };
        let slots = self.connections.len() as u32;
        self.drain = Some(Draining { order, begun: self.now, window_ms, slots, told: 0 });
        tracing::info!(shard = self.id.0, connections = self.tenants, window_ms, "draining");
    }

    /// How long a stuck send may take in a drain; `None` outside of one.
    pub(super) fn drain_deadline_ms(&self) -> Option<u64> {
        self.drain.as_ref().map(|d| d.order.deadline_ms)
    }

    /// Closes who is due; `true`: all are gone and control knows it.
    pub(super) fn advance_drain(&mut self) -> bool {
        // What is in the batches leaves first: it was acknowledged. Publishes are refused by now, so this ends.
        let owes_round = self.round.is_active() || self.has_news();
        let Some(drain) = &mut self.drain else { return false };
        if owes_round && drain.told == 0 {
            drain.begun = self.now;
        }
        let (from, to) = (drain.told, drain.due(self.now));
        drain.told = to;
        let (code, deadline) = (drain.order.close_code, drain.begun.plus_ms(drain.window_ms + drain.order.deadline_ms));
        for slot in (from..to).map(Slot) {
            self.close(slot, Cause::Drain, code, "the gateway is going away", true);
        }
        if self.now >= deadline {
            for slot in (0..self.connections.len() as u32).map(Slot) {
                if !matches!(self.connections[slot.0 as usize].phase, Phase::Free | Phase::Cut) {
                    self.metrics.closes_cut.add(1);
                    self.cut(slot, Cause::Drain);
                }
            }
        }
        // A socket whose address never comes, since the accepting core has stopped, is closed with the ring. One whose address
        // is here has gone over, and its completion is about to be seen.
        let is_late = self.now >= deadline;
        let is_paired = self.sockets.is_empty() && self.arrivals.is_empty();
        let is_told = self.departures.is_empty() || self.ends.departures.is_abandoned();
        let is_over = self.tenants == 0 && is_told && (is_paired || is_late);
        if is_over && self.ends.outbox.push(FromShard::Drained, 0).is_ok() {
            self.ends.outbox.ring();
            return true;
        }
        false
    }
}
