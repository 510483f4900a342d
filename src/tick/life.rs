//! A connection's coming and going: two halves of an arrival, deadlines, the ways to close, and the slot's return.

use super::Reactor;
use super::proxied::{Standing, Visitor};
use crate::dialect::{Ending, Overdue};
use crate::ids::{Generation, Slot};
use crate::metrics::{Counter, ShardMetrics};
use crate::queue::{Arrival, Departure};
use crate::shard::connection::{Connection, Phase};
use crate::shard::wheel::Tick;
use crate::socket::{Kind, Ring, Token};
use crate::websocket::decoder::Decoder;
use crate::websocket::frame;

/// Deadlines looked at in one turn; after a long stall, or when many clients fall silent at once, the rest waits for the next.
const DEADLINES_PER_TURN_MAX: usize = 4096;

/// Arrivals taken in one turn. Each costs the core some 25 µs until it has subscribed, and those who are here wait meanwhile.
const ARRIVALS_PER_TURN_MAX: usize = 128;

/// The same while a round is under way: of 256 sends and what so many arrivals bring, six sevenths are the round's.
const ARRIVALS_PER_TURN_IN_ROUND_MAX: usize = 8;

/// Why a connection ends; each has its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    ByPeer,
    Protocol,
    Utf8,
    TooBig,
    Partial,
    Heartbeat,
    Flood,
    SlowPending,
    SlowDeadline,
    SlowOwed,
    Replies,
    Dialect,
    Drain,
    SendFailed,
}

impl Cause {
    fn closes(self, m: &ShardMetrics) -> &Counter {
        match self {
            Cause::ByPeer => &m.closes_by_peer,
            Cause::Protocol => &m.closes_protocol,
            Cause::Utf8 => &m.closes_utf8,
            Cause::TooBig => &m.closes_too_big,
            Cause::Partial => &m.closes_partial,
            Cause::Heartbeat => &m.closes_heartbeat,
            Cause::Flood => &m.closes_flood,
            Cause::SlowPending => &m.closes_slow_pending,
            Cause::SlowDeadline => &m.closes_slow_deadline,
            Cause::SlowOwed => &m.closes_slow_owed,
            Cause::Replies => &m.closes_replies,
            Cause::Dialect => &m.closes_dialect,
            Cause::Drain => &m.closes_drain,
            Cause::SendFailed => &m.closes_send_failed,
        }
    }

    /// What a dialect may call it.
    fn ending(self) -> Option<Ending> {
        match self {
            Cause::Drain => Some(Ending::Drain),
            Cause::SlowPending | Cause::SlowDeadline | Cause::SlowOwed | Cause::Replies => Some(Ending::Slow),
            Cause::Flood => Some(Ending::Flood),
            _ => None,
        }
    }

    /// Under what the messages count that it never got.
    fn drops(self, m: &ShardMetrics) -> &Counter {
        match self {
            Cause::ByPeer | Cause::SendFailed => &m.drops_left,
            Cause::SlowOwed => &m.drops_owed_full,
            _ => &m.drops_disconnected,
        }
    }
}

impl<R: Ring> Reactor<R> {
    /// Takes the addresses of sockets that came, or will come, through the ring. Only so many, although a hundred thousand may come at
    /// once: the others wait in the queue, then in the accepting core's line, then with the listener.
    pub(super) fn pair_arrivals(&mut self) {
        let most = if self.round.is_active() { ARRIVALS_PER_TURN_IN_ROUND_MAX } else { ARRIVALS_PER_TURN_MAX };
        for _ in 0..most {
            let Some(arrival) = self.ends.arrivals.pop() else { break };
            match self.sockets.remove(&arrival.token) {
                Some(slot) => self.welcome(slot, arrival),
                None => drop(self.arrivals.insert(arrival.token, arrival)),
            }
        }
    }

    /// A socket came through the ring into `result`'s slot.
    pub(super) fn socket_arrived(&mut self, number: u64, result: i32) {
        let slot = Slot(u32::try_from(result).expect("a hand-over that failed completes at its sender only"));
        if self.connections.get(slot.0 as usize).is_some_and(|c| c.phase != Phase::Free) {
            // The kernel's slot is free, ours is not: completions of the last tenant are still to come.
            self.next_tenants.insert(slot, number);
            return;
        }
        match self.arrivals.remove(&number) {
            Some(arrival) => self.welcome(slot, arrival),
            None => drop(self.sockets.insert(number, slot)),
        }
    }

    fn welcome(&mut self, slot: Slot, arrival: Arrival) {
        let index = slot.0 as usize;
        while self.connections.len() <= index {
            self.connections.push(Connection::free(Generation(0)));
            self.visitors.push(Visitor::new(arrival.address, Standing::Uncounted));
        }
        self.visitors[index] = self.visitor(arrival.address, arrival.listener);
        self.tenants += 1;
        self.metrics.arrivals.add(1);
        let deadline = self.wheel.after(arrival.accepted, self.settings.handshake_deadline_ms);
        let connection = &mut self.connections[index];
        assert!(connection.phase == Phase::Free && connection.in_flight == 0, "slot {slot} has a tenant");
        connection.phase = Phase::Handshake;
        connection.listener = arrival.listener;
        connection.allowance_milli = self.settings.client_messages_burst_max * 1000;
        connection.allowance_at_ms = self.now.as_ms() as u32;
        connection.deadline = deadline;
        self.schedule(slot);
        self.arm_poll(slot);
        if self.drain.is_some() {
            self.cut(slot, Cause::Drain);
        }
    }

    pub(super) fn arm_poll(&mut self, slot: Slot) {
        let connection = &mut self.connections[slot.0 as usize];
        connection.polling = true;
        connection.in_flight += 1;
        self.ring.poll_readable(Token::new(Kind::Poll, connection.generation, slot));
    }

    /// Makes sure that the wheel fires no later than the connection's next deadline.
    pub(super) fn schedule(&mut self, slot: Slot) {
        let connection = &mut self.connections[slot.0 as usize];
        let due = connection.deadline.min(connection.slow_deadline);
        if due < connection.timer {
            connection.timer = self.wheel.insert(slot, connection.generation, due);
        }
    }

    pub(super) fn fire_deadlines(&mut self) {
        for _ in 0..DEADLINES_PER_TURN_MAX {
            let Some((slot, generation, tick)) = self.wheel.fire(self.now) else { return };
            let connection = &mut self.connections[slot.0 as usize];
            if connection.generation != generation || connection.timer != tick {
                continue;
            }
            connection.timer = Tick::NEVER;
            let (phase, deadline, slow_deadline) = (connection.phase, connection.deadline, connection.slow_deadline);
            if deadline <= tick {
                match phase {
                    Phase::Free | Phase::Cut => continue,
                    Phase::Handshake | Phase::Asking | Phase::Joining => {
                        self.metrics.handshakes_timed_out.add(1);
                        self.cut(slot, Cause::ByPeer);
                    }
                    Phase::Open => self.overdue(slot),
                    Phase::Flushing | Phase::Lingering => {
                        self.metrics.closes_cut.add(1);
                        self.cut(slot, Cause::ByPeer);
                    }
                }
            } else if slow_deadline <= tick {
                let cause = if connection.paused { Cause::Replies } else { Cause::SlowDeadline };
                self.close(slot, cause, 1013, "slow consumer", false);
            }
            self.schedule(slot);
        }
    }

    /// A heartbeat, or the first word, did not come in time; or it is time to ask for one.
    fn overdue(&mut self, slot: Slot) {
        self.reply.clear();
        let connection = &mut self.connections[slot.0 as usize];
        match connection.dialect.get().overdue(&mut connection.session, &mut self.reply) {
            Overdue::Cut => return self.cut(slot, Cause::Heartbeat),
            Overdue::Close { code, reason } => return self.close(slot, Cause::Heartbeat, code, reason, false),
            Overdue::Pinged => self.owe_reply(slot),
            Overdue::PingedByFrame => self.owe_frame(slot),
            Overdue::Told => {
                // From the deadline on, not from now: otherwise each would be up to a tick of the wheel later than the last.
                let heartbeat_ms = self.settings.heartbeat_ms(connection.dialect).unwrap_or(0);
                connection.deadline = connection.deadline.plus_ms(heartbeat_ms).max(self.wheel.after(self.now, 0));
                return self.owe_frame(slot);
            }
        }
        let deadline = self.wheel.after(self.now, self.settings.centrifugo_pong_timeout_ms);
        self.connections[slot.0 as usize].deadline = deadline;
    }

    /// Begins to close: ends its subscriptions, owes a close frame behind what is left, and then waits for the peer.
    /// `keep_pushes`: what it is owed leaves first (a drain); otherwise it is dropped and counted.
    pub(super) fn close(&mut self, slot: Slot, cause: Cause, code: u16, reason: &str, keep_pushes: bool) {
        let dialect = self.connections[slot.0 as usize].dialect.get();
        let (code, reason) = cause.ending().and_then(|ending| dialect.ending(ending)).unwrap_or((code, reason));
        self.close_with(slot, cause, Some(code), reason, keep_pushes);
    }

    /// [`Reactor::close`] with a frame that may be empty.
    pub(super) fn close_with(&mut self, slot: Slot, cause: Cause, code: Option<u16>, reason: &str, keep_pushes: bool) {
        let index = slot.0 as usize;
        match self.connections[index].phase {
            Phase::Open => {}
            Phase::Handshake | Phase::Asking | Phase::Joining => return self.cut(slot, cause),
            Phase::Free | Phase::Flushing | Phase::Lingering | Phase::Cut => return,
        }
        self.finish_replies(slot);
        let mid_frame = self.connections[index].egress.is_mid_frame();
        self.leave_all(slot, cause);
        if !keep_pushes {
            let egress = &mut self.connections[index].egress;
            let dropped = egress.drop_pushes(&mut self.spares, &mut self.pool);
            cause.drops(&self.metrics).add(dropped as u64);
            if mid_frame {
                // The rest of a frame is gone: a close frame would be read as its payload.
                return self.cut(slot, cause);
            }
        }
        cause.closes(&self.metrics).add(1);
        self.reply.clear();
        match code {
            Some(code) => frame::write_close(&mut self.reply, code, reason),
            None => frame::write_frame(&mut self.reply, frame::Opcode::Close, b""),
        }
        let connection = &mut self.connections[index];
        connection.egress.reply(&self.reply, &mut self.spares);
        self.say_last_words(slot);
        if keep_pushes && let Some(patience_ms) = self.drain_deadline_ms() {
            let deadline = self.wheel.after(self.now, patience_ms);
            self.connections[index].deadline = deadline;
            self.schedule(slot);
        }
    }

    /// The last words are owed; once they are out our side is shut.
    pub(super) fn say_last_words(&mut self, slot: Slot) {
        let deadline = self.wheel.after(self.now, self.settings.close_deadline_ms);
        let connection = &mut self.connections[slot.0 as usize];
        connection.phase = Phase::Flushing;
        connection.held = None;
        self.partial_bytes.set(self.partial_bytes.own() - connection.decoder.heap_bytes());
        connection.decoder = Decoder::new(false);
        connection.paused = false;
        connection.deadline = deadline;
        connection.slow_deadline = Tick::NEVER;
        self.schedule(slot);
        self.make_ready(slot);
        self.want_read(slot);
    }

    /// The last words are out: shut our side, read and discard until the peer has shut its own. Closing at once would reset the
    /// connection if anything of the peer's is unread, and lose the close frame.
    pub(super) fn linger(&mut self, slot: Slot) {
        let connection = &mut self.connections[slot.0 as usize];
        debug_assert!(connection.phase == Phase::Flushing && connection.egress.is_empty() && !connection.sending);
        if connection.ended {
            return self.cut(slot, Cause::ByPeer);
        }
        connection.phase = Phase::Lingering;
        connection.shutting = true;
        connection.in_flight += 1;
        self.ring.shutdown_write(Token::new(Kind::ShutdownWrite, connection.generation, slot));
        let deadline = self.wheel.after(self.now, self.settings.close_deadline_ms);
        self.connections[slot.0 as usize].deadline = deadline;
        self.schedule(slot);
    }

    /// Ends it now, without a word. The slot comes back with its last completion.
    pub(super) fn cut(&mut self, slot: Slot, cause: Cause) {
        let index = slot.0 as usize;
        let phase = self.connections[index].phase;
        if matches!(phase, Phase::Free | Phase::Cut) {
            return;
        }
        if !phase.is_closing() {
            if phase == Phase::Open {
                cause.closes(&self.metrics).add(1);
            }
            self.leave_all(slot, cause);
        }
        let connection = &mut self.connections[index];
        let dropped = connection.egress.clear(&mut self.spares, &mut self.pool);
        cause.drops(&self.metrics).add(dropped as u64);
        connection.held = None;
        self.partial_bytes.set(self.partial_bytes.own() - connection.decoder.heap_bytes());
        connection.decoder = Decoder::new(false);
        connection.phase = Phase::Cut;
        connection.deadline = Tick::NEVER;
        connection.slow_deadline = Tick::NEVER;
        if !connection.shutting {
            self.close_slot(slot);
        }
    }

    /// Our side is shut. If it was cut meanwhile, its slot can be closed only now: a shutdown is carried out by a kernel worker,
    /// which looks at what the slot holds only then, and would shut the next tenant's socket (seen on 6.18).
    pub(super) fn shut(&mut self, slot: Slot) {
        let connection = &mut self.connections[slot.0 as usize];
        connection.shutting = false;
        if connection.phase == Phase::Cut {
            self.close_slot(slot);
        }
    }

    fn close_slot(&mut self, slot: Slot) {
        let connection = &mut self.connections[slot.0 as usize];
        let (generation, polling) = (connection.generation, connection.polling);
        connection.in_flight += if polling { 3 } else { 2 };
        let poll = polling.then(|| Token::new(Kind::Poll, generation, slot));
        self.ring.close(Token::new(Kind::Close, generation, slot), poll);
    }

    /// Ends its part in everything, the round under way included; what was collected for it is not delivered, and counted.
    fn leave_all(&mut self, slot: Slot, cause: Cause) {
        self.withdraw(slot);
        let subscriptions = std::mem::take(&mut self.connections[slot.0 as usize].subscriptions);
        let mut missed = self.round.pending(slot);
        for id in subscriptions.iter() {
            missed += self.interests.collected(id, slot);
            self.leave(slot, id);
        }
        missed += self.users.collected(slot);
        self.forget_user(slot);
        cause.drops(&self.metrics).add(missed as u64);
    }

    pub(super) fn leave(&mut self, slot: Slot, id: crate::ids::InterestId) {
        self.interests.leave(self.now, id, slot, self.settings.interest_linger_ms);
        self.round.cancel(id, slot);
    }

    /// The last completion is in: the slot is free for its next tenant.
    pub(super) fn retire(&mut self, slot: Slot) {
        let index = slot.0 as usize;
        let next = self.connections[index].generation.next();
        if let Some(slow) = self.slow.remove(&slot) {
            self.evicted_bytes -= slow.evicted.unwrap_or(0);
        }
        let left = std::mem::replace(&mut self.connections[index], Connection::free(next));
        self.tenants -= 1;
        let visitor = self.visitors[index];
        self.websockets[left.dialect as usize] -= usize::from(visitor.is_websocket);
        self.page_closed(visitor.reading);
        self.departures.push_back(Departure { address: visitor.counted() });
        if let Some(number) = self.next_tenants.remove(&slot) {
            self.socket_arrived(number, slot.0 as i32);
        }
    }

    /// Tells the accepting core whose places are free.
    pub(super) fn report_departures(&mut self) {
        let mut told = false;
        while let Some(departure) = self.departures.front() {
            if self.ends.departures.push(*departure, 0).is_err() {
                break;
            }
            self.departures.pop_front();
            told = true;
        }
        if told {
            self.ends.departures.ring();
        }
    }
}
