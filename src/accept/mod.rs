//! The accepting core: takes new clients, decides who may stay and on which shard, and hands the sockets over.
//!
//! ```text
//! accept ─► admission ─► line ─► placement ─► SEND_FD ─► its completion ─► Arrival to the shard, our slot closed
//!               │         ▲           │           └─ failed: the next shard with room
//!               │         └── busy ───┤
//!               └───► 503 (refusal) ◄─┘ all full
//! ```
//!
//! The [`Arrival`] is pushed only after the socket went over, so that a hand-over that fails leaves nothing behind in a
//! shard's queue; its room there, like the place on the shard, is reserved before. What a shard had of a connection comes
//! back as a [`Departure`].

mod admission;
mod placement;
mod refusal;

pub use placement::high_water;

use crate::clock::Time;
use crate::config::{Config, Networks};
use crate::ids::ShardId;
use crate::metrics::AcceptMetrics;
use crate::queue::{Arrival, Bell, Claim, ClaimsHeard, Departure, Receiver, Sender, ToAccept, Verdict};
use crate::socket::{AcceptEvent, AcceptRing, Guest, KernelAcceptRing, Kind, Listener, Token};
use admission::Admission;
use placement::{Pick, Placement, Readiness};
use refusal::{Reason, Refusal, Step};
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;

/// One-shot accepts in flight, over all listeners.
const ACCEPTS: usize = 128;
/// Each listener has at least this many of them.
const ACCEPTS_PER_LISTENER_MIN: usize = 8;
/// Hand-overs under way to one shard: what may come in while it is busy with a flush round. One that stands still has this
/// many, then other lanes take its clients, and its siblings those who have stood in line for `SIBLING_WAIT_MS`.
const HAND_OVERS_PER_SHARD_MAX: usize = 1024;
/// With fewer, clients would stand in line for no good reason.
const HAND_OVERS_PER_SHARD_MIN: usize = 8;
/// How long a client stands in line while all shards with room are busy; then it is refused.
const LINE_WAIT_MS: u64 = 5000;
/// How long a client of a busy shard stands in line before another of the lane may take it: longer than any storm keeps it there, so
/// that only a shard that hardly moves is passed over.
const SIBLING_WAIT_MS: u64 = 1000;
/// While somebody stands in line and a shard's queue may have room, the shards are looked at this often.
const QUEUE_LOOK_MS: u64 = 1;
/// Most slots a ring's file table may have (IORING_MAX_FIXED_FILES).
const TABLE_SLOTS_MAX: usize = 1 << 20;
/// An accept that failed for want of something is tried again after this.
const ACCEPT_PAUSE_MS: u64 = 100;
/// Departures taken from one shard in a turn; the rest waits for the next.
const DEPARTURES_PER_TURN_MAX: usize = 4096;
/// Failures are logged this far apart at least.
const LOG_INTERVAL_MS: u64 = 1000;
/// How long after `close_deadline_ms` an ordered stop waits for the last completions.
const STOP_GRACE_MS: u64 = 500;

/// The way to one shard.
pub struct ShardDoor {
    /// The shard's ring, enabled before clients are taken. Must stay open as long as the acceptor runs.
    pub ring_fd: RawFd,
    /// Who is coming. Counted in items only: each weighs 0 bytes.
    pub arrivals: Sender<Arrival>,
    /// Who is gone; rings the acceptor's bell. Counted in items only, and no longer read once the acceptor has returned.
    pub departures: Receiver<Departure>,
    /// Who is behind a proxy, and the verdicts on it; rings as the two above.
    pub claims: ClaimsHeard,
    /// Slots of the shard's file table; it is given [`high_water`] of them.
    pub slots: usize,
}

/// What the accepting core is bound by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Connections in all; 0 = as many as the shards hold.
    pub connections_max: usize,
    /// Over so many of the shards clients are spread. The others, each in the lane of one of them (`index % lanes`), take whom it has
    /// no room for, and who has waited for it for `SIBLING_WAIT_MS`. 0 = all of them.
    pub lanes: usize,
    /// Connections from one address; 0 = no limit.
    pub connections_per_address_max: usize,
    /// New connections a second, with a burst of one second's worth; 0 = no limit.
    pub handshakes_per_s_max: u64,
    /// Clients being told 503 at once; more are cut without an answer.
    pub refusals_max: usize,
    /// How long a refused client may take to read its answer and hang up.
    pub close_deadline_ms: u64,
    /// Use what kernels after 6.1 have.
    pub modern_ring: bool,
    /// Of each listener: proxies of ours, whose own addresses are not counted.
    pub trusted_proxies: Vec<Networks>,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Settings {
        Settings {
            connections_max: config.shards.connections_max,
            lanes: 0,
            connections_per_address_max: config.limits.connections_per_address_max,
            handshakes_per_s_max: config.limits.handshakes_per_s_max,
            refusals_max: config.limits.refusals_max,
            close_deadline_ms: config.limits.close_deadline_ms,
            modern_ring: config.shards.ring_features != "6.1",
            trusted_proxies: config.listen.iter().map(|listen| Networks::new(&listen.trusted_proxies)).collect(),
        }
    }
}

/// The accepting core. Built anywhere, run on a thread of its own.
pub struct Acceptor<R = KernelAcceptRing> {
    ring: R,
    doors: Vec<Door>,
    sizes: Sizes,
    refusals_max: usize,
    close_deadline_ms: u64,
    control: Receiver<ToAccept>,
    bell: Arc<Bell>,
    metrics: Arc<AcceptMetrics>,

    admission: Admission,
    trusted_proxies: Vec<Networks>,
    placement: Placement,
    guests: Guests,
    line: VecDeque<u32>, // Admitted, but shards with room are busy: oldest first. In our table, so bounded with it.
    hand_overs: u64,     // Begun ever: the number of the latest.
    refusing: usize,
    deadlines: BTreeSet<(Time, u32)>, // Of refusals that have not come to their close, so at most `refusals_max`.

    armed: usize,
    idle: VecDeque<u32>,           // Places to arm, longest idle first: every listener has its turn.
    paused: VecDeque<(Time, u32)>, // Places to arm then; in order, since every pause is as long.
    complaints: Complaints,
    stopped: Option<Time>, // Deadline for what is left.
}

struct Door {
    shard: ShardDoor,
    under_way: usize,
    to_ring: bool,
}

/// How much of everything: the table has room for all that can be in it, since an accept into a full table closes the
/// client it met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    listeners: usize,
    accepts: usize,
    hand_overs_per_shard_max: usize,
    table_slots: usize,
}

impl Sizes {
    fn new(listeners: usize, shards: usize, refusals_max: usize, nofile: u64) -> io::Result<Sizes> {
        let accepts = listeners * (ACCEPTS / listeners.max(1)).max(ACCEPTS_PER_LISTENER_MIN);
        let limit = usize::try_from(nofile).unwrap_or(usize::MAX).min(TABLE_SLOTS_MAX);
        let fixed = accepts.saturating_add(refusals_max);
        let hand_overs_per_shard_max = (limit.saturating_sub(fixed) / shards.max(1)).min(HAND_OVERS_PER_SHARD_MAX);
        if hand_overs_per_shard_max < HAND_OVERS_PER_SHARD_MIN {
            let needed = fixed.saturating_add(HAND_OVERS_PER_SHARD_MIN * shards.max(1));
            return Err(io::Error::other(format!(
                "the accepting core needs a file table of {needed} slots for limits.refusals_max = {refusals_max} and {shards} \
                 shards, but may have {limit}: raise `ulimit -n` (LimitNOFILE=) or lower limits.refusals_max"
            )));
        }
        Ok(Sizes {
            listeners,
            accepts,
            hand_overs_per_shard_max,
            table_slots: fixed + hand_overs_per_shard_max * shards,
        })
    }
}

impl Acceptor {
    /// An accepting core for `listeners` (an [`Arrival`] names one by its index) and the shards behind `doors` (by their
    /// index). `control`, and each door's departures, wake it by `bell`. Clients are taken once it runs.
    ///
    /// # Errors
    /// The ring or its file table can't be had, or is too small for the settings; the text says who must do what.
    pub fn new(
        listeners: Vec<Listener>,
        doors: Vec<ShardDoor>,
        settings: &Settings,
        control: Receiver<ToAccept>,
        bell: Arc<Bell>,
        metrics: Arc<AcceptMetrics>,
    ) -> io::Result<Acceptor> {
        let nofile = crate::sys::nofile_limit().0;
        let sizes = Sizes::new(listeners.len(), doors.len(), settings.refusals_max, nofile)?;
        let ring = KernelAcceptRing::new(listeners, sizes.accepts, sizes.table_slots as u32, settings.modern_ring)?;
        let key = [getrandom::u64()?, getrandom::u64()?];
        Ok(Acceptor::over(ring, key, sizes, doors, settings, control, bell, metrics))
    }
}

impl<R: AcceptRing> Acceptor<R> {
    #[allow(clippy::too_many_arguments)]
    fn over(
        ring: R,
        key: [u64; 2],
        sizes: Sizes,
        doors: Vec<ShardDoor>,
        settings: &Settings,
        control: Receiver<ToAccept>,
        bell: Arc<Bell>,
        metrics: Arc<AcceptMetrics>,
    ) -> Acceptor<R> {
        let admission = Admission::new(
            settings.connections_max,
            settings.connections_per_address_max,
            settings.handshakes_per_s_max,
            ring.now(),
        );
        let lanes = if settings.lanes == 0 { doors.len().max(1) } else { settings.lanes };
        Acceptor {
            placement: Placement::new(key, lanes, doors.iter().map(|d| d.slots)),
            doors: doors.into_iter().map(|shard| Door { shard, under_way: 0, to_ring: false }).collect(),
            ring,
            sizes,
            refusals_max: settings.refusals_max,
            close_deadline_ms: settings.close_deadline_ms,
            control,
            bell,
            metrics,
            admission,
            trusted_proxies: settings.trusted_proxies.clone(),
            guests: Guests::default(),
            line: VecDeque::new(),
            hand_overs: 0,
            refusing: 0,
            deadlines: BTreeSet::new(),
            armed: 0,
            idle: (0..sizes.accepts as u32).collect(),
            paused: VecDeque::new(),
            complaints: Complaints::default(),
            stopped: None,
        }
    }

    /// Takes clients until [`ToAccept::Stop`], then lets go of what is under way and returns: hand-overs are finished, whoever
    /// is not on a shard by then is told 503, what is left after `close_deadline_ms` and half a second is cut. Once it has
    /// returned no shard is sent another socket, and departures are no longer read. (A shard that stood still all that time
    /// may find sockets without an [`Arrival`] when it turns again.)
    ///
    /// # Panics
    /// If the ring breaks, or a shard reports a departure that never arrived.
    pub fn run(mut self) {
        self.ring.enable();
        if let Some(event) = self.bell.event() {
            self.ring.watch(event);
        }
        while self.turn() {}
        // Nothing is counted against the limits any more; the shards know who is still connected.
        self.metrics.connections.set(0);
    }

    /// One turn; `false`: that was the last.
    fn turn(&mut self) -> bool {
        let now = self.ring.now();
        if let Some(ToAccept::Stop) = self.control.pop() {
            self.stop(now);
        }
        self.take_departures();
        self.take_claims();
        self.serve_line(); // First: whoever there is room for by now was not kept waiting for nothing.
        self.refuse_overdue(now);
        self.cut_overdue(now);
        self.arm(now);
        for door in self.doors.iter_mut().filter(|door| door.to_ring) {
            door.to_ring = false;
            door.shard.arrivals.ring(); // The same bell as that of the verdicts.
        }
        self.metrics.connections.set(self.admission.connections() as u64);
        if self.stopped.is_some_and(|deadline| now >= deadline || (self.armed == 0 && self.guests.count() == 0)) {
            return false;
        }
        let wait = self.sleep();
        self.ring.enter(wait);
        self.bell.awake();
        while let Some(event) = self.ring.completion() {
            self.completed(event);
        }
        true
    }

    /// Says that the core sleeps, looks at its queues once more, and says until when.
    fn sleep(&self) -> Option<Time> {
        self.bell.sleep();
        let something_waits = !self.control.is_empty()
            || self.doors.iter().any(|door| !door.shard.departures.is_empty() || !door.shard.claims.0.is_empty());
        // What is under way says when it is over; no shard says when it has taken what stood in its queue, which it may just have done.
        let max = self.sizes.hand_overs_per_shard_max;
        let waits_for_nothing = |door: &Door| door.is_open() && door.under_way < max;
        let look_again = !self.line.is_empty() && self.doors.iter().any(waits_for_nothing);
        let deadlines = [
            look_again.then(|| self.ring.now().plus_ms(QUEUE_LOOK_MS)),
            self.line.front().map(|number| self.guests.peek(*number).accepted.plus_ms(LINE_WAIT_MS)),
            self.deadlines.first().map(|(deadline, _)| *deadline),
            self.paused.front().map(|(until, _)| *until),
            self.stopped,
        ];
        (!something_waits).then(|| deadlines.into_iter().flatten().min().unwrap_or(Time::NEVER))
    }

    fn completed(&mut self, event: AcceptEvent) {
        match event {
            AcceptEvent::Accepted { place, result } => {
                self.armed -= 1;
                match result {
                    Ok((slot, address)) => {
                        self.idle.push_back(place);
                        self.accepted(place, slot, address);
                    }
                    Err(_) if self.stopped.is_some() => {}
                    Err(errno) => self.accept_failed(place, errno),
                }
            }
            AcceptEvent::Guest { number, kind, result } => {
                self.guests.get(number).in_flight -= 1;
                match kind {
                    Kind::HandOver => self.handed_over(number, result),
                    Kind::Send | Kind::ShutdownWrite | Kind::Recv => {
                        let Stage::Refused { refusal, .. } = &mut self.guests.get(number).stage else {
                            panic!("{kind:?} completed for a guest that is not refused")
                        };
                        let step = refusal.completed(result);
                        self.refuse_on(number, step);
                    }
                    Kind::Close => {}
                    other => panic!("{other:?} is never submitted for a guest"),
                }
                self.forget_if_gone(number);
            }
            AcceptEvent::Bell { armed } => {
                if let Some(event) = self.bell.event() {
                    event.reset();
                    if !armed {
                        self.ring.watch(event);
                    }
                }
            }
        }
    }

    fn accepted(&mut self, place: u32, slot: u32, address: SocketAddr) {
        self.metrics.accepted.add(1);
        let now = self.ring.now();
        let listener = self.listener(place);
        let stage = Stage::Waiting { tried: Vec::new() };
        let is_proxy = self.trusted_proxies.get(usize::from(listener)).is_some_and(|t| t.contains(address.ip()));
        let counted = (!is_proxy).then(|| address.ip().to_canonical());
        let number = self.guests.insert(Visit { slot, address, counted, listener, accepted: now, stage, in_flight: 0 });
        let admitted = match self.stopped {
            Some(_) => Err(Reason::Stopping),
            None => self.admission.admit(counted, now),
        };
        match admitted {
            Ok(()) => {
                self.line.push_back(number);
                self.serve_line();
            }
            Err(reason) => self.refuse(number, reason),
        }
    }

    /// Hands over whom it can, oldest first.
    fn serve_line(&mut self) {
        let now = self.ring.now();
        let mut index = 0;
        while let Some(number) = self.line.get(index).copied() {
            let visit = self.guests.get(number);
            let Stage::Waiting { tried } = &mut visit.stage else { panic!("who stands in line waits") };
            let max = self.sizes.hand_overs_per_shard_max;
            let says = |shard: ShardId| match &self.doors[shard.0 as usize] {
                door if tried.contains(&shard) || !door.is_open() => Readiness::Closed,
                door if door.is_ready(max) => Readiness::Ready,
                _ => Readiness::Busy,
            };
            let mut pick = self.placement.pick(visit.address, says);
            if pick == Pick::Busy && visit.accepted.plus_ms(SIBLING_WAIT_MS) <= now {
                let of_the_ready =
                    |shard| if says(shard) == Readiness::Ready { Readiness::Ready } else { Readiness::Closed };
                if let sibling @ Pick::Shard(_) = self.placement.pick(visit.address, of_the_ready) {
                    pick = sibling;
                }
            }
            match pick {
                Pick::Shard(shard) => {
                    let tried = std::mem::take(tried);
                    self.line.remove(index);
                    self.hand_over(number, shard, tried);
                }
                Pick::Full => {
                    self.line.remove(index);
                    self.refuse_admitted(number, Reason::Full);
                }
                Pick::Busy if tried.is_empty() => return, // For everyone behind too: they are younger, and have tried nothing.
                Pick::Busy => index += 1,
            }
        }
    }

    fn refuse_overdue(&mut self, now: Time) {
        // Not quite in order of age: who was sent back stands in front of who was sent back before.
        while let Some(number) = self.line.front().copied()
            && self.guests.get(number).accepted.plus_ms(LINE_WAIT_MS) <= now
        {
            self.line.pop_front();
            self.refuse_admitted(number, Reason::Busy);
        }
    }

    fn hand_over(&mut self, number: u32, shard: ShardId, tried: Vec<ShardId>) {
        self.placement.take(shard);
        let door = &mut self.doors[shard.0 as usize];
        door.under_way += 1;
        self.hand_overs += 1;
        let token = Token::arrival(self.hand_overs);
        let visit = self.guests.get(number);
        visit.in_flight += 1;
        visit.stage = Stage::HandingOver { shard, token, tried };
        self.ring.hand_over(visit.guest(number), door.shard.ring_fd, token);
    }

    fn handed_over(&mut self, number: u32, result: i32) {
        let visit = self.guests.get(number);
        let Stage::HandingOver { shard, token, mut tried } = std::mem::replace(&mut visit.stage, Stage::Leaving) else {
            panic!("a hand-over completed for a guest that is not being handed over")
        };
        let door = &mut self.doors[shard.0 as usize];
        door.under_way -= 1;
        match result {
            0.. => {
                let Visit { address, listener, accepted, .. } = *visit;
                let arrival = Arrival { token: token.arrival_number(), address, listener, accepted };
                door.shard.arrivals.push(arrival, 0).expect("room was reserved before the hand-over");
                door.to_ring = true;
                self.metrics.handed_over.add(1);
                visit.in_flight += 1;
                self.ring.release(visit.guest(number));
            }
            // The shard has the socket and will never hear of it (no kernel memory for its completion). The client is cut from
            // here; the slot there is lost, so its place stays taken.
            _ if result == -libc::EOVERFLOW => {
                self.admission.leave(visit.counted);
                visit.in_flight += 1;
                self.ring.cut(visit.guest(number));
                let now = self.ring.now();
                self.complaints
                    .about(now, || format!("shard {shard} lost a slot: no kernel memory for its completion"));
            }
            _ => {
                self.placement.give_back(shard);
                self.metrics.hand_overs_retried.add(1);
                let (now, error) = (self.ring.now(), io::Error::from_raw_os_error(-result));
                self.complaints.about(now, || format!("shard {shard} did not take a client: {error}; trying another"));
                tried.push(shard);
                visit.stage = Stage::Waiting { tried };
                if self.stopped.is_some() {
                    self.refuse_admitted(number, Reason::Stopping);
                } else {
                    self.line.push_front(number); // Older than the others, and perhaps the only one with a shard to go to.
                    self.serve_line();
                }
            }
        }
    }

    fn refuse_admitted(&mut self, number: u32, reason: Reason) {
        let counted = self.guests.get(number).counted;
        self.admission.leave(counted);
        self.refuse(number, reason);
    }

    /// Begins to tell a guest that it can't stay. It counts against no limit.
    fn refuse(&mut self, number: u32, reason: Reason) {
        let visit = self.guests.get(number);
        let guest = visit.guest(number);
        visit.in_flight += 1;
        if self.refusing >= self.refusals_max {
            self.metrics.refused_cut.add(1);
            visit.stage = Stage::Leaving;
            return self.ring.cut(guest);
        }
        match reason {
            Reason::Full => self.metrics.refused_full.add(1),
            Reason::Busy => self.metrics.refused_busy.add(1),
            Reason::Address => self.metrics.refused_address.add(1),
            Reason::Rate => self.metrics.refused_rate.add(1),
            Reason::Stopping => self.metrics.refused_stopping.add(1),
        }
        let response = reason.response();
        let deadline = self.ring.now().plus_ms(self.close_deadline_ms);
        visit.stage = Stage::Refused { refusal: Refusal::begun(response.len()), deadline };
        self.refusing += 1;
        self.deadlines.insert((deadline, number));
        self.ring.send(guest, response);
    }

    fn refuse_on(&mut self, number: u32, step: Step) {
        let visit = self.guests.get(number);
        let guest = visit.guest(number);
        visit.in_flight += u32::from(step != Step::Wait);
        match step {
            Step::ShutdownWrite => self.ring.shutdown_write(guest),
            Step::Discard => self.ring.discard(guest),
            Step::Cut => {
                if let Stage::Refused { deadline, .. } = visit.stage {
                    self.deadlines.remove(&(deadline, number));
                }
                self.ring.cut(guest);
            }
            Step::Wait => {}
        }
    }

    fn cut_overdue(&mut self, now: Time) {
        while let Some((deadline, number)) = self.deadlines.first().copied()
            && deadline <= now
        {
            let Stage::Refused { refusal, .. } = &mut self.guests.get(number).stage else {
                panic!("only refusals have a deadline")
            };
            let step = refusal.expired();
            self.deadlines.remove(&(deadline, number));
            self.refuse_on(number, step);
        }
    }

    /// A guest with nothing in flight that does not stand in line has had its close: its number may be used again.
    fn forget_if_gone(&mut self, number: u32) {
        let visit = self.guests.get(number);
        if visit.in_flight == 0 && !matches!(visit.stage, Stage::Waiting { .. }) {
            let visit = self.guests.remove(number);
            self.refusing -= usize::from(matches!(visit.stage, Stage::Refused { .. }));
        }
    }

    fn take_departures(&mut self) {
        for (index, door) in self.doors.iter_mut().enumerate() {
            for _ in 0..DEPARTURES_PER_TURN_MAX {
                let Some(departure) = door.shard.departures.pop() else { break };
                self.placement.give_back(ShardId(index as u16));
                self.admission.leave(departure.address);
            }
        }
    }

    /// Clients behind proxies, whose addresses their shards have learnt.
    fn take_claims(&mut self) {
        for door in &mut self.doors {
            // As many as there can be, takes and releases: the rest waits for the next turn.
            for _ in 0..DEPARTURES_PER_TURN_MAX {
                match door.shard.claims.0.pop() {
                    None => break,
                    Some(Claim::Release { address }) => self.admission.release(address),
                    Some(Claim::Take { client, address }) => {
                        let admitted = self.admission.claim(address);
                        self.metrics.refused_address.add(u64::from(!admitted));
                        let verdict = Verdict { client, address, admitted };
                        door.shard.claims.1.push(verdict, 0).expect("there is room for every claim under way");
                        door.to_ring = true;
                    }
                }
            }
        }
    }

    /// Arms what is idle, as far as the table has room for what that may bring.
    fn arm(&mut self, now: Time) {
        if self.stopped.is_some() {
            return;
        }
        while let Some((_, place)) = self.paused.front().filter(|(until, _)| *until <= now).copied() {
            self.paused.pop_front();
            self.idle.push_back(place);
        }
        while self.armed + self.guests.count() < self.sizes.table_slots
            && let Some(place) = self.idle.pop_front()
        {
            self.armed += 1;
            self.ring.accept(place, self.listener(place));
        }
    }

    fn accept_failed(&mut self, place: u32, errno: i32) {
        self.metrics.accept_errors.add(1);
        if is_the_peers(errno) {
            self.idle.push_back(place);
        } else {
            self.paused.push_back((self.ring.now().plus_ms(ACCEPT_PAUSE_MS), place));
        }
        let (now, error) = (self.ring.now(), io::Error::from_raw_os_error(errno));
        self.complaints.about(now, || format!("accept failed: {error}"));
    }

    fn stop(&mut self, now: Time) {
        if self.stopped.is_none() {
            self.stopped = Some(now.plus_ms(self.close_deadline_ms.saturating_add(STOP_GRACE_MS)));
            self.ring.stop_listening();
            for number in std::mem::take(&mut self.line) {
                self.refuse_admitted(number, Reason::Stopping);
            }
        }
    }

    fn listener(&self, place: u32) -> u16 {
        // Neighbouring places belong to different listeners: `idle` serves them in turn.
        (place as usize % self.sizes.listeners) as u16
    }
}

impl Door {
    /// There is a shard behind it.
    fn is_open(&self) -> bool {
        !self.shard.arrivals.is_abandoned()
    }

    /// It can take one more just now. Final: this end alone adds to the queue, and what is under way is counted.
    fn is_ready(&self, hand_overs_max: usize) -> bool {
        self.under_way < hand_overs_max && self.shard.arrivals.has_room(self.under_way + 1, 0)
    }
}

/// Errors that accept(2) passes on from the connection it took from the queue: the next may be well.
fn is_the_peers(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECONNABORTED
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENONET
            | libc::ETIMEDOUT
    )
}

/// A client in our own file table.
struct Visit {
    slot: u32,
    address: SocketAddr,
    counted: Option<std::net::IpAddr>, // What for, under the cap.
    listener: u16,
    accepted: Time,
    stage: Stage,
    in_flight: u32, // Completions to come. At 0 it is gone, and so is its slot, unless it waits.
}

enum Stage {
    Waiting { tried: Vec<ShardId> },
    HandingOver { shard: ShardId, token: Token, tried: Vec<ShardId> },
    Refused { refusal: Refusal, deadline: Time },
    Leaving,
}

impl Visit {
    fn guest(&self, number: u32) -> Guest {
        Guest { number, slot: self.slot }
    }
}

/// Everyone in our file table, by number; numbers are used again.
#[derive(Default)]
struct Guests {
    visits: Vec<Option<Visit>>,
    free: Vec<u32>,
}

impl Guests {
    fn insert(&mut self, visit: Visit) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.visits.push(None);
            self.visits.len() as u32 - 1
        });
        self.visits[number as usize] = Some(visit);
        number
    }

    fn get(&mut self, number: u32) -> &mut Visit {
        self.visits[number as usize].as_mut().expect("a completion belongs to a guest that is here")
    }

    fn peek(&self, number: u32) -> &Visit {
        self.visits[number as usize].as_ref().expect("a number in use names a guest that is here")
    }

    fn remove(&mut self, number: u32) -> Visit {
        self.free.push(number);
        self.visits[number as usize].take().expect("who is forgotten was here")
    }

    fn count(&self) -> usize {
        self.visits.len() - self.free.len()
    }
}

/// Logs the first of many failures, and how many there were since.
#[derive(Default)]
struct Complaints {
    next: Time,
    swallowed: u64,
}

impl Complaints {
    fn about(&mut self, now: Time, what: impl FnOnce() -> String) {
        if now < self.next {
            self.swallowed += 1;
            return;
        }
        tracing::warn!(unlogged = self.swallowed, "{}", what());
        *self = Complaints { next: now.plus_ms(LOG_INTERVAL_MS), swallowed: 0 };
    }
}

#[cfg(test)]
mod tests;
