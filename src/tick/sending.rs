//! The flush: one send in flight per connection, dirty connections in slot order, 256 entries per enter.
//!
//! ```text
//! batches of the tick ─seal─► targets (slot, batch), sorted by slot
//!                               │ 256 at a time
//!   idle subscriber: a range of the shared batch goes straight to the ring
//!   busy or owed more: its egress, within its bound; at the bound the policy acts
//! ```
//!
//! A round takes as long as it takes; what arrives meanwhile joins the next. Between two chunks the inbox and all completions
//! are looked at, so that a round over many connections does not hold up commands and closes.

use super::life::Cause;
use super::{Reactor, Slow, Unsettled};
use crate::clock::Time;
use crate::frame::{Outgoing, Piece};
use crate::ids::{InterestId, Slot};
use crate::shard::connection::Phase;
use crate::shard::interests::{Sealed, Whose};
use crate::socket::{Defect, Kind, Ring, Token};
use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

/// A flush round under way.
#[derive(Default)]
pub(super) struct Round {
    sealed: Vec<Sealed>,
    /// `slot << 32 | index into sealed`, ascending.
    targets: Vec<u64>,
    cursor: usize,
    scratch: Vec<u64>, // Of `merge`.
    /// Targets whose subscription has ended since they were listed.
    cancelled: HashSet<u64>,
    started: Time,
    oldest: Time,
}

impl Round {
    pub(super) fn is_active(&self) -> bool {
        self.cursor < self.targets.len()
    }

    /// This subscription has ended: what is left of the round is not its.
    pub(super) fn cancel(&mut self, id: InterestId, slot: Slot) {
        self.cancel_where(slot, |whose| matches!(whose, Whose::Interest(its) if *its == id));
    }

    /// This connection does not hear `topic` as its user any more, or nothing at all (`None`).
    pub(super) fn cancel_user(&mut self, slot: Slot, topic: Option<&str>) {
        let is_meant = |its: &str| topic.is_none_or(|topic| its == topic);
        self.cancel_where(slot, |whose| matches!(whose, Whose::User(its) if is_meant(its)));
    }

    fn cancel_where(&mut self, slot: Slot, is_meant: impl Fn(&Whose) -> bool) {
        let rest = &self.targets[self.cursor..];
        let from = rest.partition_point(|t| t >> 32 < u64::from(slot.0));
        let its = rest[from..].iter().take_while(|t| *t >> 32 == u64::from(slot.0));
        self.cancelled.extend(its.filter(|t| is_meant(&self.sealed[**t as u32 as usize].whose)));
    }

    /// Messages of the round that `slot` has not been handed yet.
    pub(super) fn pending(&self, slot: Slot) -> usize {
        let rest = &self.targets[self.cursor..];
        let from = rest.partition_point(|t| t >> 32 < u64::from(slot.0));
        let its = rest[from..].iter().take_while(|t| *t >> 32 == u64::from(slot.0));
        its.filter_map(|t| self.piece(slot, *t as u32 as usize)).map(|piece| piece.messages()).sum()
    }

    /// The piece of `sealed[index]` that is `slot`'s, if any.
    fn piece(&self, slot: Slot, index: usize) -> Option<Piece> {
        let sealed = &self.sealed[index];
        if !self.cancelled.is_empty() && self.cancelled.contains(&(u64::from(slot.0) << 32 | index as u64)) {
            return None;
        }
        let batch = &sealed.batch;
        let start = match sealed.fresh.binary_search_by_key(&slot, |(s, _)| *s) {
            Ok(at) => batch.start_after(batch.marks().partition_point(|m| m.offset <= sealed.fresh[at].1)),
            Err(_) => sealed.start,
        };
        (start < sealed.end).then(|| Piece { batch: batch.clone(), start, end: sealed.end })
    }
}

/// Sorts `targets`, of which those before `middle` and those from it on are. In proportion to their number, not more: a topic with
/// everyone in it is not sorted again because a few users got messages of their own.
fn merge(targets: &mut [u64], middle: usize, scratch: &mut Vec<u64>) {
    scratch.clear();
    scratch.extend_from_slice(&targets[middle..]);
    let (mut left, mut to) = (middle, targets.len());
    while let Some(&last) = scratch.last() {
        to -= 1;
        if left > 0 && targets[left - 1] > last {
            left -= 1;
            targets[to] = targets[left];
        } else {
            targets[to] = last;
            scratch.pop();
        }
    }
}

impl<R: Ring> Reactor<R> {
    /// Submits up to 256 sends: answers and what is left over first, then the round's.
    pub(super) fn flush(&mut self) {
        if !self.round.is_active() && self.is_flush_due() {
            self.seal();
        }
        let mut room = self.settings.sends_per_enter;
        // Clients that keep asking may not hold up what was published.
        let reserve = if self.round.is_active() { self.settings.sends_per_enter / 2 } else { 0 };
        while room > reserve
            && let Some(slot) = self.ready.pop_front()
        {
            self.connections[slot.0 as usize].ready = false;
            room -= usize::from(self.send_next(slot));
        }
        if !self.round.is_active() {
            return;
        }
        while room > 0 && self.round.is_active() {
            room -= self.deliver_next();
        }
        if !self.round.is_active() {
            self.end_round();
        }
    }

    /// At the tick, or earlier if the inbox waits for room in the batches.
    pub(super) fn is_flush_due(&self) -> bool {
        let is_full = self.batch_bytes() >= self.batch_bytes_max();
        self.has_news() && (is_full || self.now >= self.next_flush)
    }

    /// Whether something waits for the tick.
    pub(super) fn has_news(&self) -> bool {
        self.interests.has_news() || self.users.has_news()
    }

    /// Bytes that wait for the tick.
    pub(super) fn batch_bytes(&self) -> usize {
        self.interests.batch_bytes() + self.users.batch_bytes()
    }

    fn seal(&mut self) {
        let round = &mut self.round;
        let targets = &mut round.targets;
        self.interests.seal(&mut self.pool, &mut round.sealed, |index, slot| {
            targets.push(u64::from(slot.0) << 32 | u64::from(index));
        });
        // An interest names its subscribers by slot: several are to be sorted. Users are linked in any order.
        let (interests, middle) = (round.sealed.len(), targets.len());
        self.users.seal(&mut self.pool, &mut round.sealed, |index, slot| {
            targets.push(u64::from(slot.0) << 32 | u64::from(index));
        });
        if interests > 1 {
            targets.sort_unstable();
        } else {
            targets[middle..].sort_unstable();
            merge(targets, middle, &mut round.scratch);
        }
        debug_assert!(targets.is_sorted(), "a connection's targets are found by its slot");
        round.started = self.now;
        round.oldest = round.sealed.iter().map(|s| s.batch.oldest).min().unwrap_or(self.now);
        self.next_flush = self.now + Duration::from_micros(self.settings.tick_interval_us);
        self.metrics.flush_rounds.add(1);
    }

    fn end_round(&mut self) {
        self.metrics.flush_round.record_ns(self.ring.now().since_ns(self.round.started));
        self.round.targets.clear();
        self.round.cursor = 0;
        self.round.cancelled.clear();
        for sealed in self.round.sealed.drain(..) {
            self.pool.release(sealed.batch);
        }
    }

    /// Hands the next subscriber all it is owed of this round; returns how many sends that took: 0 or 1.
    fn deliver_next(&mut self) -> usize {
        let slot = Slot((self.round.targets[self.round.cursor] >> 32) as u32);
        let index = slot.0 as usize;
        let mut sends = 0;
        // What lies side by side in one batch leaves as one piece: several messages to one user.
        let mut last: Option<Piece> = None;
        loop {
            let target = self.round.targets[self.round.cursor];
            if let Some(piece) = self.round.piece(slot, target as u32 as usize) {
                match &mut last {
                    Some(before) if Rc::ptr_eq(&before.batch, &piece.batch) && before.end == piece.start => {
                        before.end = piece.end;
                        self.pool.release(piece.batch);
                    }
                    _ => {
                        if let Some(before) = last.replace(piece) {
                            // The cursor still stands at this target: if the policy closes, the target counts among what is pending.
                            self.offer(slot, before);
                            if self.connections[index].phase != Phase::Open {
                                last.take().into_iter().for_each(|piece| self.pool.release(piece.batch));
                            }
                        }
                    }
                }
            }
            self.round.cursor += 1;
            if self.round.targets.get(self.round.cursor).is_none_or(|t| t >> 32 != target >> 32) {
                break;
            }
        }
        if let Some(piece) = last {
            let connection = &mut self.connections[index];
            debug_assert!(connection.phase == Phase::Open, "what is left of a round is nobody's after a close");
            let is_idle = !connection.sending && connection.egress.is_empty();
            if is_idle && piece.len() as usize <= self.settings.send_bytes_max {
                let is_whole = piece.start == 0 && piece.end == piece.batch.len();
                let messages = if is_whole { piece.batch.messages() } else { piece.messages() };
                self.submit(slot, Outgoing::Shared(piece), messages);
                sends += 1;
            } else {
                self.offer(slot, piece);
            }
        }
        if sends == 0 && !self.connections[index].ready {
            sends += usize::from(self.send_next(slot));
        }
        sends
    }

    /// Appends a piece to what a busy connection is owed; at its bound the policy acts.
    fn offer(&mut self, slot: Slot, piece: Piece) {
        let connection = &mut self.connections[slot.0 as usize];
        if connection.phase != Phase::Open {
            return self.pool.release(piece.batch);
        }
        let bound = self.settings.pending_bytes_max;
        let Err(piece) = connection.egress.push(piece, bound, &mut self.spares) else { return };
        if self.settings.drops(connection.dialect) {
            let dropped = connection.egress.push_what_fits(piece, bound, &mut self.spares, &mut self.pool);
            self.metrics.drops_pending_full.add(dropped as u64);
            self.metrics.dialect_messages_dropped[connection.dialect as usize].add(dropped as u64);
        } else {
            let messages = piece.messages();
            self.pool.release(piece.batch);
            self.metrics.drops_disconnected.add(messages as u64);
            self.close(slot, Cause::SlowPending, 1013, "slow consumer", false);
        }
    }

    /// Puts it among those that have something to send.
    pub(super) fn make_ready(&mut self, slot: Slot) {
        let connection = &mut self.connections[slot.0 as usize];
        let has_word = !connection.egress.is_empty() || connection.phase == Phase::Flushing;
        if !connection.ready
            && !connection.sending
            && has_word
            && !matches!(connection.phase, Phase::Asking | Phase::Joining)
        {
            connection.ready = true;
            self.ready.push_back(slot);
        }
    }

    /// Sends what is owed next, unless a send is in flight; `true`: one was submitted.
    fn send_next(&mut self, slot: Slot) -> bool {
        let connection = &mut self.connections[slot.0 as usize];
        let busy = connection.sending && !self.ring.planted(Defect::TwoSendsInFlight);
        if busy || !matches!(connection.phase, Phase::Handshake | Phase::Open | Phase::Flushing) {
            return false;
        }
        let bound = self.settings.send_bytes_max;
        match connection.egress.next_send(bound, &mut self.spares, &mut self.pool) {
            Some((outgoing, messages)) => {
                self.submit(slot, outgoing, messages);
                true
            }
            None => {
                if connection.phase == Phase::Flushing {
                    self.linger(slot);
                }
                false
            }
        }
    }

    fn submit(&mut self, slot: Slot, outgoing: Outgoing, messages: usize) {
        let (sequence, pinned_bytes) = match &outgoing {
            Outgoing::Shared(piece) => (piece.batch.sequence, piece.batch.capacity()),
            Outgoing::Pieces(pieces) => {
                (pieces[0].batch.sequence, pieces.iter().map(|piece| piece.batch.capacity()).sum())
            }
            Outgoing::Private(buffer) => {
                self.private_bytes += buffer.capacity();
                (u64::MAX, buffer.capacity())
            }
            Outgoing::Page(_) => (u64::MAX, 0),
        };
        let connection = &mut self.connections[slot.0 as usize];
        debug_assert!(connection.phase != Phase::Cut, "a cut connection's slot is being closed");
        connection.sending = true;
        connection.in_flight += 1;
        self.unsettled.push(Unsettled { slot, delivers: messages > 0, sequence, pinned_bytes });
        self.metrics.deliveries.add(messages as u64);
        self.metrics.dialect_messages[connection.dialect as usize].add(messages as u64);
        self.ring.send(Token::new(Kind::Send, connection.generation, slot), outgoing);
    }

    /// A send has completed: whole, or the connection is broken.
    pub(super) fn sent(&mut self, slot: Slot, result: i32, returned: Outgoing) {
        let whole = usize::try_from(result).is_ok_and(|n| n == returned.len());
        self.recycle(returned);
        self.metrics.sends.add(1);
        self.metrics.bytes_sent.add(result.max(0) as u64);
        let connection = &mut self.connections[slot.0 as usize];
        connection.sending = false;
        if std::mem::take(&mut connection.slow) {
            connection.slow_deadline = crate::shard::wheel::Tick::NEVER;
            if let Some(slow) = self.slow.remove(&slot) {
                self.evicted_bytes -= slow.evicted.unwrap_or(0);
            }
        }
        if connection.phase == Phase::Cut {
            return;
        }
        if !whole && !self.ring.planted(Defect::ShortSendIgnored) {
            // Under WAITALL the kernel finishes short writes itself: a short result means that a frame is cut.
            return self.cut(slot, Cause::SendFailed);
        }
        if connection.paused && connection.egress.reply_bytes() <= self.settings.reply_bytes_max / 2 {
            connection.paused = false;
            self.make_ready(slot);
            return self.resume(slot);
        }
        if connection.phase == Phase::Flushing {
            self.page_moved(slot);
        }
        self.make_ready(slot);
    }

    /// Looks at the sends of the last enter: what has not completed by itself waits for the peer. Exact, and free.
    pub(super) fn settle(&mut self) {
        if self.unsettled.is_empty() {
            return;
        }
        let patience = self.wheel.after(self.now, self.settings.slow_deadline_ms);
        let mut settled = 0;
        let mut unsettled = std::mem::take(&mut self.unsettled);
        for Unsettled { slot, delivers, sequence, pinned_bytes } in unsettled.drain(..) {
            let connection = &mut self.connections[slot.0 as usize];
            if !connection.sending {
                settled += u64::from(delivers);
                continue;
            }
            if !connection.slow && !matches!(connection.phase, Phase::Free | Phase::Cut) {
                connection.slow = true;
                if connection.phase == Phase::Open {
                    connection.slow_deadline = patience;
                }
                self.slow.insert(slot, Slow { sequence, pinned_bytes, evicted: None });
                self.schedule(slot);
            }
        }
        self.unsettled = unsettled; // Kept for its capacity.
        if settled > 0 && self.round.oldest != Time::default() {
            self.metrics.publish_to_send.record_many_ns(self.now.since_ns(self.round.oldest), settled);
        }
    }

    /// When the lane owes more than its bound, and this shard more than the part that is its own in any case, the holders of its oldest
    /// buffers go, until what is left without what their sends give back is within the bound. All at once: laggards of many topics
    /// add as many buffers in the next round. Between two rounds, when the last sends are settled: a round's own buffers are owed to
    /// everyone for a moment.
    pub(super) fn bound_owed_memory(&mut self) {
        if self.round.is_active() {
            return;
        }
        let stays = |this: &Self| this.owed_bytes().saturating_sub(this.evicted_bytes);
        self.owed_in_lane.set(stays(self));
        let others = self.owed_in_lane.others();
        let is_above = |this: &Self| {
            let own = stays(this);
            own > this.settings.owed_bytes_share && own + others > this.settings.owed_bytes_max
        };
        if !is_above(self) {
            return;
        }
        let oldest_of = |slot: &Slot, slow: &Slow| {
            let waiting = self.connections[slot.0 as usize].egress.oldest_sequence();
            waiting.map_or(slow.sequence, |s| s.min(slow.sequence))
        };
        let candidates = self.slow.iter().filter(|(_, s)| s.evicted.is_none());
        let mut holders: Vec<(u64, Slot)> = candidates.map(|(slot, s)| (oldest_of(slot, s), *slot)).collect();
        holders.sort_unstable();
        for buffer in holders.chunk_by(|a, b| a.0 == b.0) {
            if !is_above(self) {
                break;
            }
            // A buffer comes back with the last of its holders, and counts once.
            let mut shared_bytes = 0;
            for (_, slot) in buffer {
                let slow = self.slow.get_mut(slot).expect("listed above");
                let is_shared = slow.sequence != u64::MAX;
                let counted = if is_shared { shared_bytes } else { 0 };
                let returns = slow.pinned_bytes.saturating_sub(counted);
                shared_bytes += if is_shared { returns } else { 0 };
                slow.evicted = Some(returns);
                self.evicted_bytes += returns;
                self.cut(*slot, Cause::SlowOwed);
            }
        }
        self.owed_in_lane.set(stays(self));
    }
}

#[cfg(test)]
mod tests {
    use super::merge;

    #[test]
    fn two_sorted_parts_are_one_afterwards() {
        for (mut targets, middle) in [
            (vec![], 0),
            (vec![1, 3, 5], 3),
            (vec![1, 3, 5], 0),
            (vec![1, 3, 5, 0, 2, 4, 6], 3),
            (vec![5, 6, 1, 2], 2),
            (vec![1, 2, 5, 6], 2),
        ] {
            let mut expected = targets.clone();
            expected.sort_unstable();
            merge(&mut targets, middle, &mut vec![9]);
            assert_eq!(targets, expected);
        }
    }
}
