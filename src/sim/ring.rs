//! The kernel of one shard: a [`Ring`] whose completions come when the dice say, within what Linux allows.
//!
//! What it may do is taken from `docs/ARCHITECTURE.md` and the measurements behind it; what it insists on is what the real
//! kernel would punish silently: bytes that are gone while they are being sent, two polls on one slot, a close under an armed
//! poll. These are asserted here, so that they are found where they happen.
//!
//! ```text
//! reactor ── submissions ─► enter ─► done at once ──────────────► ready (shuffled) ─► completion()
//!                              └───► pending: (due, key) ── time ──┘
//! client reads, writes, resets ─► poke(slot) ─► sends go on, polls fire ─► pending
//! ```

use super::line::{Far, Line};
use super::machine::{Features, Machine, trace};
use crate::clock::Time;
use crate::frame::Outgoing;
use crate::ids::{Generation, ShardId, Slot};
use crate::queue::{Bell, Depth};
use crate::socket::{BufferId, Completion, Defect, InFlight, Kind, Ring, Token};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// A connection, seen from both of its ends.
pub type SharedLine = Rc<RefCell<Line>>;

/// How large things are in one shard's kernel.
#[derive(Clone, Debug)]
pub struct RingSizes {
    /// File slots.
    pub slots: usize,
    /// Provided buffers.
    pub buffers: usize,
    /// Bytes of each.
    pub buffer_bytes: usize,
    /// Submissions that fit before they are entered by themselves.
    pub submissions: usize,
}

/// What the shard waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// It has more to do.
    Nothing,
    /// A completion, its bell, or this moment.
    Until(Time),
}

enum Submission {
    Poll(Token),
    Recv(Token),
    Send(Token, usize),
    ShutdownWrite(Token),
    Close(Token, Option<Token>),
}

/// A send that the kernel works at.
struct Sending {
    token: Token,
    length: usize,
    done: usize,
    begun: Time,
    /// Where its bytes lie: they may not move or change hands while this lives.
    address: usize,
    /// Only of a second send on the same slot, which nobody should submit.
    own: Option<Outgoing>,
}

/// When a completion is due, and its rank among those due at once.
type Stamp = (Time, u64);

#[derive(Default)]
struct FileSlot {
    line: Option<SharedLine>,
    poll: Option<Token>,
    poll_stamp: Stamp,
    close_stamp: Stamp,
    sends: Vec<Sending>,
}

struct Pending {
    stamp: Stamp,
    completion: Completion,
}

/// What the kernel still holds of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Open file slots.
    pub slots: usize,
    /// Sends under way.
    pub sends: usize,
    /// Polls armed.
    pub polls: usize,
    /// Provided buffers that the shard has not given back.
    pub buffers: usize,
    /// Completions not yet taken.
    pub completions: usize,
}

/// What happened in this kernel: a simulation that no longer reaches something is seen by its zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reached {
    /// Sends that had to wait for the client.
    pub blocked_sends: u64,
    /// Sends that ended short or failed.
    pub broken_sends: u64,
    /// Receives that found no buffer.
    pub no_buffers: u64,
    /// Polls that ended by themselves.
    pub polls_ended: u64,
    /// Sockets that came into a slot whose last completion was not in.
    pub slots_reused_early: u64,
    /// Waits that the bell ended.
    pub bells: u64,
}

impl Reached {
    /// Adds what another reached.
    pub fn add(&mut self, other: &Reached) {
        self.blocked_sends += other.blocked_sends;
        self.broken_sends += other.broken_sends;
        self.no_buffers += other.no_buffers;
        self.polls_ended += other.polls_ended;
        self.slots_reused_early += other.slots_reused_early;
        self.bells += other.bells;
    }
}

/// A shard's kernel.
pub struct SimRing {
    shard: ShardId,
    machine: Rc<Machine>,
    bell: Arc<Bell>,
    rings_seen: u64,
    sizes: RingSizes,
    now: Time,
    wait: Wait,
    /// Of the bell, in that wait.
    depth: Depth,
    slots: Vec<FileSlot>,
    in_flight: InFlight,
    submissions: Vec<Submission>,
    pending: Vec<Pending>,
    ready: VecDeque<Completion>,
    collected: Time,
    buffers: Vec<Vec<u8>>,
    buffers_home: Vec<u16>,
    scratch: Vec<u8>,
    work: u64,
    /// What happened.
    pub reached: Reached,
}

impl SimRing {
    /// The kernel of `shard`, whose core is woken by `bell`.
    pub fn new(shard: ShardId, machine: Rc<Machine>, bell: Arc<Bell>, sizes: RingSizes) -> SimRing {
        SimRing {
            shard,
            now: machine.now(),
            collected: Time(0),
            machine,
            bell,
            rings_seen: 0,
            wait: Wait::Nothing,
            depth: Depth::AWAKE,
            slots: (0..sizes.slots).map(|_| FileSlot::default()).collect(),
            in_flight: InFlight::default(),
            submissions: Vec::new(),
            pending: Vec::new(),
            ready: VecDeque::new(),
            buffers: vec![vec![0; sizes.buffer_bytes]; sizes.buffers],
            buffers_home: (0..sizes.buffers as u16).collect(),
            sizes,
            scratch: Vec::new(),
            work: 0,
            reached: Reached::default(),
        }
    }

    /// When the shard's core goes on.
    pub fn wakes_at(&self) -> Time {
        match self.wait {
            Wait::Until(deadline) if self.ready.is_empty() && !self.is_rung() => {
                self.pending.iter().map(|p| p.stamp.0).fold(deadline, Time::min)
            }
            _ => self.machine.now(),
        }
    }

    /// Whether the core sleeps and nothing of the kernel's is due.
    pub fn is_asleep(&self) -> bool {
        self.wakes_at() > self.machine.now()
    }

    /// Whether the last enter waited.
    pub fn waited(&self) -> bool {
        self.wait != Wait::Nothing
    }

    /// How deeply the core slept when it last waited.
    pub(crate) fn depth(&self) -> Depth {
        self.depth
    }

    /// The core goes on: what is due becomes visible, time moves.
    pub fn resume(&mut self) {
        if self.is_rung() {
            self.rings_seen = self.bell.rings();
            self.reached.bells += 1;
            if self.machine.features == Features::Linux6_1 || self.machine.chance(500) {
                let token = Token::new(Kind::Bell, Generation(0), Slot(0));
                self.post(0, (Time(0), 0), completion(token, i32::from(libc::POLLIN), true));
            }
        }
        self.wait = Wait::Nothing;
        self.now = self.machine.now();
        self.collect();
    }

    /// Submissions and completions so far: what does not grow makes no progress.
    pub fn work(&self) -> u64 {
        self.work
    }

    /// A socket comes from the accepting core as hand-over `number`. Its completion may come before or after the queue's word.
    ///
    /// # Panics
    /// If every slot is taken: the accepting core reserved one, so somebody said too early that a connection was gone.
    pub fn hand_over(&mut self, number: u64, line: SharedLine) {
        let free: Vec<usize> = (0..self.slots.len()).filter(|i| self.slots[*i].line.is_none()).collect();
        assert!(!free.is_empty(), "shard {}: no file slot is free for a reserved place", self.shard);
        // A slot whose last completions are not in is the one that finds mistakes.
        let unfinished: Vec<usize> = free.iter().copied().filter(|i| self.is_unfinished(*i)).collect();
        let index = match self.machine.within(0..=3) {
            0 => self.machine.draw(|dice| dice.pick(&free)),
            1 => free[0],
            _ => *unfinished.first().unwrap_or(&free[0]),
        };
        self.reached.slots_reused_early += u64::from(unfinished.contains(&index));
        let slot = &mut self.slots[index];
        line.borrow_mut().slot = Some(Slot(index as u32));
        slot.line = Some(line);
        // The kernel posts close before it can hand the slot out again.
        let after = slot.close_stamp;
        let delay = self.delay();
        trace!(self.machine, "shard {} hand-over {number} into slot {index}", self.shard);
        self.post(delay, after, completion(Token::arrival(number), index as i32, false));
    }

    /// The client of `slot` did something: sends go on, polls fire.
    pub fn poke(&mut self, slot: Slot) {
        self.pump(slot.0 as usize);
        self.fire(slot.0 as usize);
    }

    /// Since when the oldest send is under way.
    pub fn sends_since(&self) -> Option<Time> {
        self.slots.iter().flat_map(|slot| &slot.sends).map(|sending| sending.begun).min()
    }

    /// What the kernel still holds.
    pub fn holdings(&self) -> Holdings {
        Holdings {
            slots: self.slots.iter().filter(|s| s.line.is_some()).count(),
            sends: self.in_flight.count() + self.slots.iter().map(|s| s.sends.len()).sum::<usize>(),
            polls: self.slots.iter().filter(|s| s.poll.is_some()).count(),
            buffers: self.buffers.len() - self.buffers_home.len(),
            completions: self.pending.len() + self.ready.len() + self.submissions.len(),
        }
    }

    /// Whether completions of the slot's last tenant are still to come.
    fn is_unfinished(&self, index: usize) -> bool {
        let is_its = |token: Token| token.slot().0 as usize == index && token.kind() != Kind::Arrival;
        self.pending.iter().any(|p| is_its(p.completion.token)) || self.ready.iter().any(|c| is_its(c.token))
    }

    fn is_rung(&self) -> bool {
        self.bell.rings() > self.rings_seen
    }

    fn line(&self, token: Token) -> Option<SharedLine> {
        self.slots[token.slot().0 as usize].line.clone()
    }

    /// How late a completion is that Linux does not promise at once.
    fn delay(&self) -> u64 {
        match self.machine.within(0..=9) {
            0..=5 => 0,
            6..=8 => self.machine.within(0..=200_000),
            _ => self.machine.draw(|dice| dice.magnitude(1_000..=60_000_000)),
        }
    }

    /// Queues a completion, due in `delay` ns and not before the one stamped `after`.
    fn post(&mut self, delay: u64, after: Stamp, completion: Completion) -> Stamp {
        let rank = self.machine.within(1..=1 << 20);
        let due = Time(self.machine.now().0 + delay);
        let stamp = if after.0 <= self.collected { (due, rank) } else { (due.max(after.0), after.1 + rank) };
        self.pending.push(Pending { stamp, completion });
        stamp
    }

    fn collect(&mut self) {
        let now = self.machine.now();
        self.collected = now;
        let mut due: Vec<Pending> = self.pending.extract_if(.., |p| p.stamp.0 <= now).collect();
        due.sort_by_key(|p| p.stamp.1);
        self.ready.extend(due.into_iter().map(|p| p.completion));
    }

    fn submit(&mut self, submission: Submission) {
        self.work += 1;
        self.submissions.push(submission);
        if self.submissions.len() >= self.sizes.submissions {
            self.execute();
        }
    }

    fn execute(&mut self) {
        let mut submissions = std::mem::take(&mut self.submissions);
        for submission in submissions.drain(..) {
            match submission {
                Submission::Poll(token) => self.arm(token),
                Submission::Recv(token) => self.receive(token),
                Submission::Send(token, at) => self.start_send(token, at),
                Submission::ShutdownWrite(token) => self.shut(token),
                Submission::Close(token, poll) => self.close_slot(token, poll),
            }
        }
        self.submissions = submissions;
    }

    fn arm(&mut self, token: Token) {
        let index = token.slot().0 as usize;
        if self.slots[index].line.is_none() {
            self.post(0, (Time(0), 0), completion(token, -libc::EBADF, false));
            return;
        }
        let slot = &mut self.slots[index];
        assert!(slot.poll.is_none(), "shard {}: a second poll on slot {index}", self.shard);
        slot.poll = Some(token);
        if let Some(line) = &slot.line {
            // Arming looks at the level; later events are edges.
            let readable = line.borrow().is_readable();
            line.borrow_mut().arrived = readable;
        }
        self.fire(index);
    }

    /// Completes the slot's poll if something came since it last did.
    fn fire(&mut self, index: usize) {
        let (Some(token), Some(line)) = (self.slots[index].poll, self.slots[index].line.clone()) else { return };
        if !std::mem::take(&mut line.borrow_mut().arrived) {
            return;
        }
        let mask = line.borrow().poll_mask();
        let unseen = |p: &&mut Pending| p.completion.token == token && p.completion.more;
        if let Some(earlier) = self.pending.iter_mut().find(unseen) {
            earlier.completion.result |= mask; // The kernel joins events that nobody has looked at.
            return;
        }
        let ends = self.machine.chance(if self.machine.features == Features::Linux6_1 { 150 } else { 40 });
        let delay = self.delay().min(2_000_000);
        let after = self.slots[index].poll_stamp;
        let stamp = self.post(delay, after, completion(token, mask, !ends));
        self.slots[index].poll_stamp = stamp;
        if ends {
            self.slots[index].poll = None;
            self.reached.polls_ended += 1;
        }
    }

    fn receive(&mut self, token: Token) {
        let (result, buffer, nonempty) = self.receive_now(token);
        let delay = if self.machine.chance(850) { 0 } else { self.machine.within(0..=1_000_000) };
        let done = Completion { buffer: buffer.map(BufferId), nonempty, ..completion(token, result, false) };
        self.post(delay, (Time(0), 0), done);
    }

    fn receive_now(&mut self, token: Token) -> (i32, Option<u16>, bool) {
        let Some(line) = self.line(token) else { return (-libc::EBADF, None, false) };
        if self.buffers_home.is_empty() {
            self.reached.no_buffers += 1;
            return (-libc::ENOBUFS, None, false);
        }
        let mut line = line.borrow_mut();
        if line.to_gateway.is_empty() {
            return match line.far {
                Far::Open if !line.near_closed => (-libc::EAGAIN, None, false),
                Far::Reset => (-libc::ECONNRESET, None, false),
                _ => (0, None, false),
            };
        }
        let at = self.machine.draw(|dice| dice.index(self.buffers_home.len()));
        let id = self.buffers_home.swap_remove(at);
        let length = line.to_gateway.len().min(self.sizes.buffer_bytes);
        for (place, byte) in self.buffers[id as usize].iter_mut().zip(line.to_gateway.drain(..length)) {
            *place = byte;
        }
        // Linux says so of an end that is next, too; nobody should have to rely on it.
        let nonempty = !line.to_gateway.is_empty() || (line.far == Far::HalfClosed && self.machine.chance(500));
        (length as i32, Some(id), nonempty)
    }

    fn start_send(&mut self, token: Token, overlap: usize) {
        let index = token.slot().0 as usize;
        if overlap == 0 {
            let Some(bytes) = self.in_flight.get(token.slot()) else {
                panic!("shard {}: the bytes of a send on slot {index} are gone before the kernel saw them", self.shard)
            };
            let sending = Sending {
                token,
                length: bytes.len(),
                done: 0,
                begun: self.machine.now(),
                address: address(bytes),
                own: None,
            };
            self.slots[index].sends.push(sending);
        }
        self.pump(index);
        if let Some(sending) = self.slots[index].sends.last_mut().filter(|s| s.token == token) {
            self.reached.blocked_sends += 1;
            trace!(self.machine, "shard {} slot {index} blocked at {} of {}", self.shard, sending.done, sending.length);
            if self.machine.defect == Some(Defect::BufferReturnedEarly) && sending.own.is_none() {
                // What a ring would do that takes "submitted" for "sent".
                let bytes = self.in_flight.finish(token.slot());
                let token = Token::new(Kind::Ignore, token.generation(), token.slot());
                let early = Completion { returned: Some(bytes), ..completion(token, 0, false) };
                self.post(0, (Time(0), 0), early);
            }
        }
    }

    /// Lets the sends of a slot go on as far as the client's window allows.
    fn pump(&mut self, index: usize) {
        while !self.slots[index].sends.is_empty() {
            let Some(line) = self.slots[index].line.clone() else {
                self.end_sends(index, libc::EBADF);
                return;
            };
            let error = line.borrow().send_error();
            if let Some(error) = error {
                self.end_sends(index, error);
                return;
            }
            let room = line.borrow().room();
            let sends = &mut self.slots[index].sends;
            // Two on one socket take turns as their polls fire: measured, 100 of 100 trials.
            let at = if sends.len() == 1 { 0 } else { self.machine.draw(|dice| dice.index(sends.len())) };
            let sending = &mut sends[at];
            let left = sending.length - sending.done;
            let mut step = left.min(room);
            if step < left && step == 0 {
                return;
            }
            let overlapping = sending.own.is_some() || sends.len() > 1;
            let sending = &mut sends[at];
            if overlapping && step > 1 {
                step = self.machine.within(1..=step as u64) as usize;
            }
            // Memory is short, or a signal came: the kernel gives up on a live socket.
            let gives_up = step > 1 && self.machine.mishap(1);
            if gives_up {
                step = self.machine.within(1..=step as u64 - 1) as usize;
                line.borrow_mut().cut = true;
            }
            let bytes = match &sending.own {
                Some(own) => own,
                None => match self.in_flight.get(Slot(index as u32)) {
                    Some(bytes) if address(bytes) == sending.address => bytes,
                    _ => panic!(
                        "shard {}: the bytes of the send on slot {index} were given back while the kernel reads them",
                        self.shard
                    ),
                },
            };
            self.scratch.clear();
            copy(bytes, sending.done, step, &mut self.scratch);
            sending.done += step;
            line.borrow_mut().transmit(&self.scratch, self.machine.now(), &mut self.machine.book.borrow_mut());
            if sending.done == sending.length || gives_up {
                let sending = sends.remove(at);
                // Inside an enter there is nothing to wait for; otherwise the core has to come round.
                let delay = if self.wait == Wait::Nothing { 0 } else { self.delay().min(500_000) };
                self.finish_send(index, sending, None, delay);
            }
        }
    }

    fn end_sends(&mut self, index: usize, error: i32) {
        for sending in std::mem::take(&mut self.slots[index].sends) {
            // Long, now and then: the slot may have its next tenant by then.
            let delay = if self.machine.chance(300) { self.machine.within(0..=300_000_000) } else { self.delay() };
            self.finish_send(index, sending, Some(error), delay);
        }
    }

    fn finish_send(&mut self, index: usize, sending: Sending, error: Option<i32>, delay: u64) {
        let Sending { token, length, done, own, .. } = sending;
        if done < length {
            self.reached.broken_sends += 1;
            let bytes = own.as_ref().or_else(|| self.in_flight.get(token.slot()));
            if let Some(bytes) = bytes {
                self.scratch.clear();
                copy(bytes, done, length - done, &mut self.scratch);
                // One `@` begins each payload; the message that the cut goes through may have its own behind it. A frame with
                // several messages that lacks its end is worth none of them.
                let line = self.slots[index].line.as_ref();
                let unfinished = line.map_or(0, |line| line.borrow().reader.unfinished_messages());
                let messages = unfinished.max(1) + self.scratch.iter().filter(|b| **b == b'@').count();
                self.machine.book.borrow_mut().tally(self.shard).broken += messages as u64;
                if let Some(line) = &self.slots[index].line {
                    line.borrow_mut().broken += messages as u64;
                }
            }
        }
        let result = match error {
            Some(error) if done == 0 => -error,
            _ => done as i32,
        };
        trace!(self.machine, "shard {} slot {index} send ends: {result} of {length}", self.shard);
        self.post(delay, (Time(0), 0), Completion { returned: own, ..completion(token, result, false) });
    }

    fn shut(&mut self, token: Token) {
        let result = match self.line(token) {
            None => -libc::EBADF,
            Some(line) if line.borrow().far == Far::Reset => -libc::ENOTCONN,
            Some(line) => {
                line.borrow_mut().shut_near();
                self.pump(token.slot().0 as usize);
                0
            }
        };
        let delay = self.delay();
        self.post(delay, (Time(0), 0), completion(token, result, false));
    }

    fn close_slot(&mut self, token: Token, poll: Option<Token>) {
        let index = token.slot().0 as usize;
        let named = |kind| Token::new(kind, token.generation(), token.slot());
        let mut after = (Time(0), 0);
        let delay = self.delay();
        let armed = self.slots[index].poll;
        if let Some(poll) = poll {
            let found = armed == Some(poll);
            if found {
                self.slots[index].poll = None;
                let (delay, after) = (self.delay(), self.slots[index].poll_stamp);
                self.post(delay, after, completion(poll, -libc::ECANCELED, false));
            }
            after =
                self.post(delay, after, completion(named(Kind::Cancel), if found { 0 } else { -libc::ENOENT }, false));
        }
        let left = self.slots[index].poll;
        assert!(left.is_none(), "shard {}: slot {index} closed under an armed poll, which keeps it open", self.shard);
        let shut = match self.slots[index].line.clone() {
            None => -libc::EBADF,
            Some(line) => {
                let result = if line.borrow().far == Far::Reset { -libc::ENOTCONN } else { 0 };
                line.borrow_mut().cut_short |= !self.slots[index].sends.is_empty();
                self.end_sends(index, libc::EPIPE);
                let patience_ns = self.machine.patience_ms.get() * 1_000_000;
                let decided = Time(self.machine.now().0.saturating_sub(patience_ns));
                line.borrow_mut().close_near(decided, &mut self.machine.book.borrow_mut());
                self.slots[index].line = None;
                result
            }
        };
        after = self.post(delay, after, completion(named(Kind::Shutdown), shut, false));
        let closed = if shut == -libc::EBADF { shut } else { 0 };
        self.slots[index].close_stamp = self.post(delay, after, completion(named(Kind::Close), closed, false));
    }
}

impl Ring for SimRing {
    fn planted(&self, defect: Defect) -> bool {
        self.machine.defect == Some(defect)
    }

    fn now(&self) -> Time {
        self.now
    }

    fn poll_readable(&mut self, token: Token) {
        self.submit(Submission::Poll(token));
    }

    fn recv(&mut self, token: Token) {
        self.submit(Submission::Recv(token));
    }

    fn send(&mut self, token: Token, bytes: Outgoing) {
        let slot = token.slot();
        assert!(!bytes.is_empty(), "shard {}: an empty send on slot {slot}", self.shard);
        if self.planted(Defect::TwoSendsInFlight) && self.in_flight.get(slot).is_some() {
            // The table would stop this here; let the wire show what it protects from.
            let (length, address) = (bytes.len(), address(&bytes));
            let begun = self.machine.now();
            let sending = Sending { token, length, done: 0, begun, address, own: Some(bytes) };
            self.slots[slot.0 as usize].sends.push(sending);
            self.submit(Submission::Send(token, 1));
            return;
        }
        self.in_flight.begin(slot, bytes);
        self.submit(Submission::Send(token, 0));
    }

    fn shutdown_write(&mut self, token: Token) {
        self.submit(Submission::ShutdownWrite(token));
    }

    fn close(&mut self, token: Token, poll: Option<Token>) {
        self.submit(Submission::Close(token, poll));
    }

    fn enter(&mut self, wait: Option<Time>) {
        self.execute();
        self.machine.spend(self.machine.within(500..=20_000));
        if wait.is_none() && self.machine.chance(30) {
            self.machine.run_elsewhere();
        }
        self.now = self.machine.now();
        self.collect();
        self.depth = self.bell.depth();
        self.wait = match wait {
            Some(_) if self.machine.features == Features::Linux6_1 && self.machine.chance(20) => Wait::Nothing,
            Some(deadline) if self.ready.is_empty() => Wait::Until(deadline),
            _ => Wait::Nothing,
        };
    }

    fn completion(&mut self) -> Option<Completion> {
        let Some(mut completion) = self.ready.pop_front() else {
            if self.machine.chance(30) {
                self.machine.run_elsewhere();
            }
            return None;
        };
        self.work += 1;
        if completion.token.kind() == Kind::Send && completion.returned.is_none() {
            let slot = completion.token.slot();
            completion.returned = self.in_flight.get(slot).is_some().then(|| self.in_flight.finish(slot));
        }
        trace!(
            self.machine,
            "shard {} completes {:?} slot {} generation {}: {}{}",
            self.shard,
            completion.token.kind(),
            completion.token.slot(),
            completion.token.generation(),
            completion.result,
            if completion.more { " more" } else { "" }
        );
        Some(completion)
    }

    fn received(&self, buffer: &BufferId, length: usize) -> &[u8] {
        assert!(!self.buffers_home.contains(&buffer.0), "shard {}: buffer {} is the kernel's", self.shard, buffer.0);
        &self.buffers[buffer.0 as usize][..length]
    }

    fn give_back(&mut self, buffer: BufferId) {
        assert!(!self.buffers_home.contains(&buffer.0), "shard {}: buffer {} given back twice", self.shard, buffer.0);
        self.buffers[buffer.0 as usize].fill(0xdd);
        self.buffers_home.push(buffer.0);
    }

    fn about_to_sleep(&mut self) {
        if !self.machine.chance(250) {
            return;
        }
        // Whoever runs now runs before the flag is seen or after it: stores and loads of two cores have one order or the other.
        if self.machine.chance(500) {
            let depth = self.bell.depth();
            self.bell.awake();
            self.machine.run_elsewhere();
            self.bell.set_depth(depth);
        } else {
            self.machine.run_elsewhere();
        }
    }
}

fn completion(token: Token, result: i32, more: bool) -> Completion {
    Completion { token, result, more, buffer: None, nonempty: false, returned: None }
}

/// Where the bytes lie.
fn address(bytes: &Outgoing) -> usize {
    match bytes {
        Outgoing::Shared(piece) => piece.bytes().as_ptr().addr(),
        Outgoing::Pieces(pieces) => pieces.as_ptr().addr(),
        Outgoing::Private(bytes) => bytes.as_ptr().addr(),
        Outgoing::Page(bytes) => bytes.as_ptr().addr(),
    }
}

/// Appends `length` bytes from index `from` on.
fn copy(bytes: &Outgoing, from: usize, length: usize, into: &mut Vec<u8>) {
    match bytes {
        Outgoing::Shared(piece) => into.extend_from_slice(&piece.bytes()[from..from + length]),
        Outgoing::Private(bytes) => into.extend_from_slice(&bytes[from..from + length]),
        Outgoing::Page(bytes) => into.extend_from_slice(&bytes[from..from + length]),
        Outgoing::Pieces(pieces) => {
            into.extend(pieces.iter().flat_map(|piece| piece.bytes()).skip(from).take(length));
        }
    }
}
