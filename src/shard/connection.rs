//! One client of this shard: where it is in its life, what it has asked for, what it is owed.
//!
//! ```text
//!                 head complete        broadcast interest is on
//!  Free ─► Handshake ─────────► Joining ───────────────────────► Open
//!   ▲          │ rejected (4xx)    │                               │ close frame, theirs or ours
//!   │          ▼                   ▼                               ▼
//!   │      Flushing (the last words leave) ──► Lingering (ours is shut, theirs not yet) ──► Cut ──┐
//!   │          └───────────── deadline, reset, no heartbeat ─────────────────────────────► Cut ──┤
//!   └────────────────────────────────────── the last completion is in ◄──────────────────────────┘
//! ```
//!
//! A head that asks for what only the control core knows is in Asking first, before Joining or Flushing; so is a client of a
//! proxy's until it may come in, and then in Handshake once more.

use super::egress::Egress;
use super::subscriptions::Subscriptions;
use super::wheel::Tick;
use crate::dialect::{Command, DialectId, Session};
use crate::ids::{Encoding, Generation};
use crate::websocket::decoder::Decoder;
use crate::websocket::deflate::DeflateParams;
use std::collections::VecDeque;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No tenant.
    Free,
    /// The request head is coming.
    Handshake,
    /// The control core says what the request head is answered with, or the accepting core whether it may come in at all.
    Asking,
    /// The 101 waits until every broadcast after it is sure to come.
    Joining,
    /// Messages both ways.
    Open,
    /// Closing: the last words are on their way.
    Flushing,
    /// Closing: our side is shut, the peer's not yet; what it still sends is discarded.
    Lingering,
    /// Closing: shut down and being closed; only completions are awaited.
    Cut,
}

impl Phase {
    /// Whether it has begun to close.
    pub fn is_closing(self) -> bool {
        matches!(self, Phase::Flushing | Phase::Lingering | Phase::Cut)
    }
}

/// What is kept of a client that we can't go on with yet: bytes and commands read already.
#[derive(Debug, Default)]
pub struct Held {
    /// Received, not yet parsed.
    pub input: Vec<u8>,
    /// Parsed, not yet carried out.
    pub commands: VecDeque<Command>,
    /// A subscription is awaiting its ack, or a login its answer; answers come in order, so the rest waits.
    pub awaits_ack: bool,
}

/// A slot and its present tenant.
pub struct Connection {
    /// Tells this tenant from the next.
    pub generation: Generation,
    /// Where it is in its life.
    pub phase: Phase,
    /// Who is served.
    pub dialect: DialectId,
    /// What its frames look like.
    pub encoding: Encoding,
    /// What was agreed on compression.
    pub deflate: Option<DeflateParams>,
    /// Submissions whose last completion is not in.
    pub in_flight: u8,
    /// The multishot poll is armed.
    pub polling: bool,
    /// A receive is in flight.
    pub receiving: bool,
    /// More came while we did not read.
    pub read_again: bool,
    /// The shutdown of our side is in flight.
    pub shutting: bool,
    /// A send is in flight: never a second one.
    pub sending: bool,
    /// It is in the list of those with something to send.
    pub ready: bool,
    /// The send in flight did not complete by itself.
    pub slow: bool,
    /// Nothing is read until what it is owed shrinks.
    pub paused: bool,
    /// The peer has shut its side while our last words were leaving.
    pub ended: bool,
    /// The poll has said that nothing more will come: what there is must be read up to its end, no event will say so again.
    pub hung_up: bool,
    /// The dialect's memory.
    pub session: Session,
    /// Index of the `[[listen]]` block.
    pub listener: u16,
    /// End of the present phase: handshake, heartbeat or close.
    pub deadline: Tick,
    /// End of patience with a slow consumer.
    pub slow_deadline: Tick,
    /// Where its live entry in the wheel is.
    pub timer: Tick,
    /// Messages it may still send now, in thousandths.
    pub allowance_milli: u32,
    /// When that was reckoned, ms of the monotonic clock (wraps).
    pub allowance_at_ms: u32,
    /// What it is owed.
    pub egress: Egress,
    /// Reads its frames.
    pub decoder: Decoder,
    /// What it takes part in, or waits for.
    pub subscriptions: Subscriptions,
    /// Bytes and commands we can't go on with yet.
    pub held: Option<Box<Held>>,
}

impl Connection {
    /// An empty slot.
    pub fn free(generation: Generation) -> Connection {
        Connection {
            generation,
            phase: Phase::Free,
            dialect: DialectId::Gpush,
            encoding: Encoding(0),
            deflate: None,
            in_flight: 0,
            polling: false,
            receiving: false,
            read_again: false,
            shutting: false,
            sending: false,
            ready: false,
            slow: false,
            paused: false,
            ended: false,
            hung_up: false,
            session: Session::default(),
            listener: 0,
            deadline: Tick::NEVER,
            slow_deadline: Tick::NEVER,
            timer: Tick::NEVER,
            allowance_milli: 0,
            allowance_at_ms: 0,
            egress: Egress::default(),
            decoder: Decoder::new(false),
            subscriptions: Subscriptions::default(),
            held: None,
        }
    }

    /// Takes `frames` out of its allowance of `per_s` a second with `burst` saved up; `false`: it has not as many left.
    pub fn allow_frames(&mut self, frames: u32, now_ms: u32, per_s: u32, burst: u32) -> bool {
        let passed_ms = now_ms.wrapping_sub(self.allowance_at_ms);
        let earned_milli = u64::from(passed_ms) * u64::from(per_s);
        let full_milli = u64::from(burst) * 1000;
        self.allowance_milli = (u64::from(self.allowance_milli) + earned_milli).min(full_milli) as u32;
        self.allowance_at_ms = now_ms;
        match self.allowance_milli.checked_sub(frames.saturating_mul(1000)) {
            Some(left) => {
                self.allowance_milli = left;
                true
            }
            None => false,
        }
    }

    /// What we can't go on with yet.
    pub fn held(&mut self) -> &mut Held {
        self.held.get_or_insert_with(Box::default)
    }

    /// Whether an ack or the answer to a login is awaited, and the rest with it.
    pub fn awaits_ack(&self) -> bool {
        self.held.as_ref().is_some_and(|h| h.awaits_ack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_may_send_its_burst_and_then_its_rate() {
        let mut c = Connection::free(Generation(0));
        c.allowance_milli = 3000;
        assert_eq!((0..5).filter(|_| c.allow_frames(1, 0, 2, 3)).count(), 3);
        assert!(!c.allow_frames(1, 499, 2, 3) && c.allow_frames(1, 500, 2, 3));
        assert_eq!((0..9).filter(|_| c.allow_frames(1, 1_000_000, 2, 3)).count(), 3);
        assert!(!c.allow_frames(4, 2_000_000, 2, 3) && c.allow_frames(3, 2_000_000, 2, 3));
        assert!(!c.allow_frames(u32::MAX, 3_000_000, 2, 3));
    }

    #[test]
    fn an_idle_connection_costs_little_memory() {
        assert!(size_of::<Connection>() <= 136, "{}", size_of::<Connection>());
    }
}
