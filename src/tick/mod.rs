//! One turn of a shard's core: what came in, completions, deadlines, then flush; asleep in its ring when nothing is left.
//!
//! ```text
//!  ┌─► inbox ─► sockets ─► completions ─► deadlines ─► wishes ─► flush ≤ 256 sends ─► enter ─┐
//!  │   frames, acks        what the        wheel       interest   replies at once,    submit, │
//!  │   in their order      kernel did                  to control pushes at the tick  or wait │
//!  └──────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The inbox goes first. The answer to a subscribe stands in it among the frames, and its place is the cut: what stands before
//! it is not this client's, what stands after it is.

mod asking;
mod drain;
mod inbox;
mod life;
mod pages;
mod proxied;
mod reading;
mod sending;
#[cfg(test)]
mod tests;
mod users;

use crate::clock::Time;
use crate::dialect::Command;
use crate::frame::Outgoing;
use crate::ids::{ShardId, Slot};
use crate::metrics::{ByDialect, ShardMetrics};
use crate::queue::{self, Arrival, Bell, Departure, FromShard, Receiver, Sender, ToShard};
use crate::shard::connection::{Connection, Phase};
use crate::shard::egress::Spares;
use crate::shard::interests::{Interests, Waiter};
use crate::shard::lane::{Held, Lane};
use crate::shard::pool::Pool;
use crate::shard::settings::ShardSettings;
use crate::shard::users::Users;
use crate::shard::wheel::Wheel;
use crate::socket::{Completion, Defect, Kind, Ring, Token};
use crate::websocket::decoder::Scratch;
use crate::websocket::deflate::Deflater;
use proxied::Visitor;
use std::collections::{BTreeMap, HashMap, VecDeque};
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
    /// To the accepting core and back: clients behind proxies, whose addresses only the shard learns.
    pub claims: queue::Claims,
    /// Rung by both.
    pub bell: Arc<Bell>,
    /// What it counts together with the shards of its lane.
    pub lane: Lane,
}

/// What a turn ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Call again.
    Again,
    /// A drain is complete: every connection is closed and [`FromShard::Drained`] is out.
    Drained,
}

/// What a shard holds, for tests that want everything returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Slots with a tenant.
    pub connections: usize,
    /// Submissions whose last completion is not in.
    pub in_flight: usize,
    /// Sealed batches somebody still owes.
    pub buffers_out: usize,
    /// Their bytes and those of queues and joined copies, by capacity.
    pub owed_bytes: usize,
    /// Memory of incomplete messages.
    pub partial_bytes: usize,
    /// Subscriptions.
    pub subscriptions: usize,
    /// Connections logged in, and their private subscriptions.
    pub logged_in: (usize, usize),
    /// Slow connections.
    pub slow: usize,
    /// Sockets or addresses whose other half has not come.
    pub arrivals_unpaired: usize,
}

/// Longest sleep, so that the watchdog sees every shard turn.
const SLEEP_MS_MAX: u64 = 1000;

/// How soon a full queue towards another core is tried again.
const RETRY_MS: u64 = 1;

/// A slow consumer: its send did not complete by itself.
#[derive(Clone, Copy, Debug)]
struct Slow {
    /// Oldest batch its send pins; `u64::MAX` if it pins none.
    sequence: u64,
    /// Memory its send pins: its own, or shared with others.
    pinned_bytes: usize,
    /// It was cut for the memory it holds; this much comes back with its send.
    evicted: Option<usize>,
}

/// A send just submitted.
#[derive(Clone, Copy, Debug)]
struct Unsettled {
    slot: Slot,
    /// A message ends in it.
    delivers: bool,
    /// As in [`Slow`].
    sequence: u64,
    /// As in [`Slow`].
    pinned_bytes: usize,
}

/// One shard: its ring, its connections, its turn.
pub struct Reactor<R: Ring> {
    id: ShardId,
    ring: R,
    ends: Endpoints,
    settings: ShardSettings,
    metrics: Arc<ShardMetrics>,
    now: Time,

    /// By slot; grows to the highest slot ever used.
    connections: Vec<Connection>,
    visitors: Vec<Visitor>,
    tenants: usize,
    wheel: Wheel,
    interests: Interests,
    users: Users,
    pool: Pool,
    spares: Spares,

    /// Halves of arrivals: the socket comes through the ring, its address through the queue, in either order.
    sockets: HashMap<u64, Slot>,
    arrivals: HashMap<u64, Arrival>,
    /// Sockets in slots whose last tenant still has completions to come.
    next_tenants: HashMap<Slot, u64>,
    departures: VecDeque<Departure>,

    round: sending::Round,
    /// Connections with something to send and no send in flight.
    ready: VecDeque<Slot>,
    /// Sends of the last chunk: those that don't complete by themselves are slow.
    unsettled: Vec<Unsettled>,
    slow: BTreeMap<Slot, Slow>,
    /// Memory that comes back with the sends of slow consumers cut for it.
    evicted_bytes: usize,
    /// Memory of incomplete messages, as their decoders say.
    partial_bytes: Held,
    /// Memory owed, as of the last turn between two rounds, without what `evicted_bytes` says.
    owed_in_lane: Held,
    /// Memory of sends that share nothing: replies, and small pieces joined by copy.
    private_bytes: usize,
    next_flush: Time,
    /// Receives that found no buffer.
    starved: Vec<Token>,
    questions: asking::Questions,
    claims: proxied::Claims,
    /// Connections that had their 101 and are not gone.
    websockets: ByDialect<usize>,
    readers: pages::Readers,

    drain: Option<drain::Draining>,

    deflater: Option<Deflater>,
    scratch: Scratch,
    incoming: Vec<u8>,
    reply: Vec<u8>,
    /// Whose replies are being joined, and what they are so far.
    joining: Option<Slot>,
    joined: Vec<u8>,
    /// Connections that introduced themselves.
    connects: u64,
    commands: Vec<Command>,
    waiters: Vec<Waiter>,
}

impl<R: Ring> Reactor<R> {
    /// A shard without connections.
    pub fn new(
        id: ShardId,
        ring: R,
        ends: Endpoints,
        settings: ShardSettings,
        metrics: Arc<ShardMetrics>,
    ) -> Reactor<R> {
        let now = ring.now();
        let (interests, slots) = (Interests::new(settings.send_bytes_max), settings.slots);
        Reactor {
            id,
            ring,
            settings,
            metrics,
            now,
            // In full, and resident as far as they are used: tables that grow leave holes of their former sizes behind.
            connections: Vec::with_capacity(slots),
            visitors: Vec::with_capacity(slots),
            tenants: 0,
            wheel: Wheel::new(now),
            interests,
            users: Users::default(),
            pool: Pool::default(),
            spares: Spares::default(),
            sockets: HashMap::new(),
            arrivals: HashMap::new(),
            next_tenants: HashMap::new(),
            departures: VecDeque::new(),
            round: sending::Round::default(),
            ready: VecDeque::new(),
            unsettled: Vec::new(),
            slow: BTreeMap::new(),
            evicted_bytes: 0,
            private_bytes: 0,
            partial_bytes: ends.lane.partial_bytes(),
            owed_in_lane: ends.lane.owed_bytes(),
            next_flush: now,
            starved: Vec::new(),
            questions: asking::Questions::new(ends.lane.questions()),
            claims: proxied::Claims::default(),
            websockets: ByDialect::default(),
            readers: pages::Readers::default(),
            drain: None,
            deflater: None,
            scratch: Scratch::new(),
            incoming: Vec::new(),
            reply: Vec::new(),
            joining: None,
            joined: Vec::new(),
            connects: 0,
            commands: Vec::new(),
            waiters: Vec::new(),
            ends,
        }
    }

    /// One turn. Sleeps in [`Ring::enter`] at its end if nothing is left to do.
    pub fn turn(&mut self) -> Turn {
        self.now = self.ring.now();
        self.metrics.turns.add(1);
        self.metrics.last_turn_ms.set(self.now.as_ms());
        self.take_inbox();
        self.pair_arrivals();
        self.take_verdicts();
        // Before the completions, among which are those that ask for buffers next: first come, first served.
        self.feed_starved();
        self.take_completions();
        self.settle();
        self.bound_owed_memory();
        self.fire_deadlines();
        self.announce();
        self.push_claims();
        self.report_departures();
        if self.advance_drain() {
            return Turn::Drained;
        }
        self.flush();
        self.gauge();
        if self.is_busy() {
            self.ring.enter(None)
        } else {
            self.sleep()
        }
        Turn::Again
    }

    /// Its ring.
    pub fn ring_mut(&mut self) -> &mut R {
        &mut self.ring
    }

    /// What it counts.
    pub fn metrics(&self) -> &Arc<ShardMetrics> {
        &self.metrics
    }

    /// What it holds. Walks all connections: for tests.
    pub fn audit(&self) -> Audit {
        Audit {
            connections: self.tenants,
            in_flight: self.connections.iter().map(|c| usize::from(c.in_flight)).sum(),
            buffers_out: self.pool.out(),
            owed_bytes: self.owed_bytes(),
            partial_bytes: self.partial_bytes.own(),
            subscriptions: self.interests.members(),
            logged_in: (self.users.logged_in(), self.users.subscriptions()),
            slow: self.slow.len(),
            arrivals_unpaired: self.sockets.len() + self.arrivals.len() + self.next_tenants.len(),
        }
    }

    fn is_busy(&self) -> bool {
        !self.ready.is_empty()
            || self.round.is_active()
            || !self.unsettled.is_empty()
            || !self.starved.is_empty()
            || self.is_flush_due()
    }

    fn sleep(&mut self) {
        let mut deadline = self.now.plus_ms(SLEEP_MS_MAX).min(self.wheel.wake()).min(self.interests.linger_wake());
        let waits_for_tick = self.has_news();
        if waits_for_tick {
            deadline = deadline.min(self.next_flush);
        }
        if let Some(drain) = &self.drain {
            deadline = deadline.min(drain.wake(self.now));
        }
        let waits = !self.departures.is_empty() || self.has_words_for_control() || self.claims.wait();
        if self.interests.announcement().is_some() || waits {
            deadline = deadline.min(self.now.plus_ms(RETRY_MS));
        }
        if waits_for_tick {
            self.ends.bell.doze(self.batch_bytes_max().saturating_sub(self.batch_bytes()));
        } else {
            self.ends.bell.sleep();
        }
        self.ring.about_to_sleep();
        let has_mail = !self.ends.inbox.is_empty() || !self.ends.arrivals.is_empty() || !self.ends.claims.1.is_empty();
        if has_mail && !self.ring.planted(Defect::LostWakeUp) {
            self.ends.bell.awake();
            return self.ring.enter(None);
        }
        self.metrics.sleeps.add(1);
        self.ring.enter(Some(deadline));
        self.ends.bell.awake();
    }

    /// Everything the kernel has done. Bounded by what is in flight.
    fn take_completions(&mut self) {
        while let Some(completion) = self.ring.completion() {
            match completion.token.kind() {
                Kind::Arrival => self.socket_arrived(completion.token.arrival_number(), completion.result),
                Kind::Ignore | Kind::Bell | Kind::Accept | Kind::HandOver => {}
                _ => self.connection_completed(completion),
            }
        }
    }

    fn connection_completed(&mut self, completion: Completion) {
        let Completion { token, result, more, buffer, nonempty, returned } = completion;
        let slot = token.slot();
        let connection = &mut self.connections[slot.0 as usize];
        if connection.generation != token.generation() {
            // A late completion finds its slot with another tenant: only what the kernel borrowed is ours to take back.
            if let Some(buffer) = buffer {
                self.ring.give_back(buffer);
            }
            if let Some(bytes) = returned {
                self.recycle(bytes);
            }
            return;
        }
        if !more {
            connection.in_flight = connection.in_flight.checked_sub(1).expect("a completion belongs to a submission");
        }
        match token.kind() {
            Kind::Poll => self.polled(slot, result, more),
            Kind::Recv => self.received(slot, result, buffer, nonempty),
            Kind::Send => self.sent(slot, result, returned.expect("a send hands its bytes back")),
            Kind::ShutdownWrite => self.shut(slot),
            _ => {}
        }
        let connection = &self.connections[slot.0 as usize];
        let early = self.ring.planted(Defect::SlotReusedEarly) && token.kind() == Kind::Close;
        if connection.phase == Phase::Cut && (connection.in_flight == 0 || early) {
            self.retire(slot);
        }
    }

    /// Takes back what a send had borrowed.
    fn recycle(&mut self, bytes: Outgoing) {
        match bytes {
            Outgoing::Shared(piece) => self.pool.release(piece.batch),
            Outgoing::Pieces(pieces) => pieces.into_iter().for_each(|p| self.pool.release(p.batch)),
            Outgoing::Private(buffer) => {
                self.private_bytes -= buffer.capacity();
                self.spares.return_buffer(buffer);
            }
            Outgoing::Page(_) => {}
        }
    }

    /// Memory pinned by what subscribers have not taken yet: batches, each once, their own copies, and the queues they stand in.
    fn owed_bytes(&self) -> usize {
        self.pool.out_bytes() + self.private_bytes + self.spares.queued_bytes()
    }

    fn gauge(&self) {
        let m = &self.metrics;
        m.connections.set(self.tenants as u64);
        m.websockets.set(self.websockets.iter().sum::<usize>() as u64);
        for (count, gauge) in self.websockets.iter().zip(&m.dialect_connections) {
            gauge.set(*count as u64);
        }
        m.subscriptions.set((self.interests.members() + self.users.subscriptions()) as u64);
        m.logged_in.set(self.users.logged_in() as u64);
        m.interests.set(self.interests.len() as u64);
        m.slow_connections.set(self.slow.len() as u64);
        m.partial_bytes.set(self.partial_bytes.own() as u64);
        let owed = self.owed_bytes() as u64;
        m.owed_bytes.set(owed);
        if owed > m.owed_bytes_peak.get() {
            m.owed_bytes_peak.set(owed);
        }
    }
}
