//! One run: shards, control core, accepting core and clients, each at its own pace, on one clock.
//!
//! ```text
//! rough ── publishers, clients that come and go, mishaps, stalls ──► calm ── nobody disturbs, all catches up
//!                                                                      │
//!   everything is compared with everything ◄── last words on every topic
//!      │
//!      └──► everybody leaves, or the gateway drains ──► nothing is left anywhere
//! ```
//!
//! What happens next is whatever is due next; whose turn takes how long, and who stands still, the dice decide.

use super::Options;
use super::book::{BROADCAST, Book, USERS};
use super::client::{Client, Wish};
use super::control::{Control, PublishPlan};
use super::line::{Far, Line};
use super::machine::{Machine, trace};
use super::reader::Reader;
use super::ring::{Holdings, Reached, RingSizes, SharedLine, SimRing};
use crate::clock::Time;
use crate::config::{Config, SlowPolicy};
use crate::encode::{EncodeSettings, Encoder};
use crate::ids::ShardId;
use crate::metrics::ShardMetrics;
use crate::queue::{self, Arrival, Bell, Departure, Drain, Receiver, Sender, ToShard, channel};
use crate::shard::lane::Lane;
use crate::shard::settings::ShardSettings;
use crate::tick::{Audit, Endpoints, Reactor, Turn};
use crate::topics::{MergeLimits, Topics, TopicsLimits};
use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

/// A message may not lie in an inbox for longer than this while its shard sleeps.
const UNHEARD_MS_MAX: u64 = 25;

/// Longest time a shard stands still.
const STALL_MS_MAX: u64 = 1_500;

/// When nobody is in the way, a message is on its way a tick and this much after it was admitted.
const PROMPT_MS: u64 = 50;

/// Timers are wheels of 100 ms, and completions of a close may be late.
const TIMER_SLACK_MS: u64 = 500;

/// Turns without any progress, in a row, that a shard may make.
const IDLE_TURNS_MAX: u32 = 3_000;

/// Steps of one run: a livelock shows as more.
const STEPS_MAX: u64 = 3_000_000;

/// What one run came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Things that happened, one after the other.
    pub steps: u64,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// Connections made.
    pub connections: u64,
    /// Publications admitted.
    pub admitted: u64,
    /// Publications that had to wait for room.
    pub waited: u64,
    /// Publications refused for want of room.
    pub refused: u64,
    /// Messages sent to clients.
    pub delivered: u64,
    /// Of these, those that shared a frame with others.
    pub joined: u64,
    /// Messages dropped and counted.
    pub dropped: u64,
    /// Logins that went well.
    pub logins: u64,
    /// Logins refused.
    pub logins_refused: u64,
    /// Questions refused because too many were under way.
    pub questions_refused: u64,
    /// Slow consumers closed.
    pub slow_closed: u64,
    /// Connections closed for what they sent.
    pub misbehaved: u64,
    /// Reads paused for replies that were not read.
    pub reads_paused: u64,
    /// What happened in the kernels.
    pub reached: Reached,
}

impl Summary {
    /// Adds another run.
    pub fn add(&mut self, other: &Summary) {
        self.steps += other.steps;
        self.simulated_ms += other.simulated_ms;
        self.connections += other.connections;
        self.admitted += other.admitted;
        self.waited += other.waited;
        self.refused += other.refused;
        self.delivered += other.delivered;
        self.joined += other.joined;
        self.dropped += other.dropped;
        self.logins += other.logins;
        self.logins_refused += other.logins_refused;
        self.questions_refused += other.questions_refused;
        self.slow_closed += other.slow_closed;
        self.misbehaved += other.misbehaved;
        self.reads_paused += other.reads_paused;
        self.reached.add(&other.reached);
    }
}

struct Shard {
    reactor: Reactor<SimRing>,
    metrics: Arc<ShardMetrics>,
    bell: Arc<Bell>,
    arrivals: Sender<Arrival>,
    departures: Receiver<Departure>,
    /// Its core is elsewhere until then.
    not_before: Time,
    /// Places the accepting core may still give away.
    places: usize,
    /// Since when its inbox holds something while it sleeps.
    unheard_since: Option<Time>,
    idle_turns: u32,
    work: u64,
    owed_bytes_bound: u64,
    is_over: bool,
}

impl Shard {
    fn wakes_at(&mut self) -> Time {
        if self.is_over { Time::NEVER } else { self.not_before.max(self.reactor.ring_mut().wakes_at()) }
    }
}

/// One simulated gateway and its surroundings.
pub struct World {
    machine: Rc<Machine>,
    control: Rc<RefCell<Control>>,
    shards: Vec<Shard>,
    clients: Vec<Client>,
    /// Every connection that the gateway has not closed yet.
    lines: Vec<(usize, SharedLine)>,
    /// Addresses that are late behind their sockets.
    late: Vec<(Time, usize, Arrival)>,
    hand_overs: u64,
    accept_bell: Arc<Bell>,
    /// Since when the control core has mail and sleeps.
    control_unheard_since: Option<Time>,
    steps: u64,
    settings: ShardSettings,
    rough_until: Time,
    drains: bool,
}

enum Actor {
    Shard(usize),
    Control,
    Client(usize),
    Late(usize),
}

impl World {
    /// A world as its seed makes it.
    pub fn new(options: &Options) -> World {
        let mut dice = super::dice::Dice::new(options.seed ^ 0x5eed);
        let shards = dice.within(1..=3) as usize;
        let topics = dice.within(2..=6) as usize;
        let book = Book::new(topics, shards);
        let machine = Machine::new(options.seed, book, options.defect, options.features, options.trace);

        let slots = dice.within(2..=12) as usize;
        let settings = settings(&mut dice, shards, slots);
        let (control_bell, accept_bell) = (Bell::silent(), Bell::silent());
        accept_bell.sleep();
        let (mut queues, mut from, mut list) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..shards {
            let id = ShardId(index as u16);
            let bell = Bell::silent();
            let (to_shard, inbox) =
                channel(dice.magnitude(8..=256) as usize, dice.magnitude(2_000..=32_000) as usize, bell.clone());
            let (outbox, from_shard) = channel(dice.magnitude(1..=32) as usize, 1 << 20, control_bell.clone());
            let (arrivals_in, arrivals) = channel(dice.magnitude(1..=16) as usize, 1 << 20, bell.clone());
            let (departures, departures_out) = channel(dice.magnitude(1..=16) as usize, 1 << 20, accept_bell.clone());
            let sizes = RingSizes {
                slots,
                buffers: dice.magnitude(1..=16) as usize,
                buffer_bytes: dice.magnitude(8..=1024) as usize,
                submissions: dice.magnitude(1..=64) as usize,
            };
            trace!(machine, "shard {index}: {sizes:?}");
            let ring = SimRing::new(id, machine.clone(), bell.clone(), sizes);
            let (claims, _) = queue::claims(bell.clone(), accept_bell.clone()); // No proxies here.
            let ends =
                Endpoints { inbox, outbox, arrivals, departures, claims, bell: bell.clone(), lane: Lane::default() };
            let metrics = Arc::new(ShardMetrics::default());
            let reactor = Reactor::new(id, ring, ends, settings.clone(), metrics.clone());
            queues.push(to_shard);
            from.push(from_shard);
            // Who has to go holds its memory until its last completion is in, and a few rounds may pass until then.
            let owed_bytes_bound = (settings.owed_bytes_max + 3 * settings.pending_bytes_max) as u64;
            list.push(Shard {
                reactor,
                metrics,
                bell,
                arrivals: arrivals_in,
                departures: departures_out,
                not_before: machine.now(),
                places: slots,
                unheard_since: None,
                idle_turns: 0,
                work: 0,
                owed_bytes_bound,
                is_over: false,
            });
        }
        trace!(machine, "{settings:?}");
        machine.patience_ms.set(settings.close_deadline_ms + STALL_MS_MAX + TIMER_SLACK_MS);
        let limits = TopicsLimits {
            topics_max: 1000,
            topic_idle_ms: dice.magnitude(10..=10_000),
            publish_wait_ms: dice.magnitude(1..=500),
            publish_waiting_max: dice.magnitude(1..=200) as usize,
            publish_waiting_bytes_max: 1 << 20,
            message_bytes_max: 65_536,
            merge: MergeLimits::default(),
        };
        // Larger than any payload: compressed encodings exist, and their frames are plain.
        let encoder = Encoder::new(&EncodeSettings { deflate_level: 1, deflate_bytes_min: 1 << 20 });
        let plan = PublishPlan {
            pause_us_max: dice.magnitude(2_000..=100_000),
            burst_max: dice.magnitude(1..=12),
            bytes_max: dice.magnitude(16..=600),
        };
        trace!(machine, "{limits:?} {plan:?}");
        let topic_table = Topics::new(limits, encoder, shards, options.seed);
        let control = Control::new(machine.clone(), topic_table, queues, from, control_bell, plan);
        let control = Rc::new(RefCell::new(control));
        let meanwhile = control.clone();
        machine.set_elsewhere(Some(Box::new(move || meanwhile.borrow_mut().step())));

        let clients = dice.within(2..=(slots * shards) as u64 + 3) as usize;
        let start = machine.now();
        let clients = (0..clients)
            .map(|index| Client::new(index, machine.clone(), topics, start.plus_ms(dice.within(0..=1_000))))
            .collect();
        World {
            rough_until: start.plus_ms(dice.magnitude(1_000..=10_000)),
            drains: dice.chance(400),
            machine,
            control,
            shards: list,
            clients,
            lines: Vec::new(),
            late: Vec::new(),
            hand_overs: 0,
            accept_bell,
            control_unheard_since: None,
            steps: 0,
            settings,
        }
    }

    /// Lets it happen.
    ///
    /// # Panics
    /// At the first broken promise.
    pub fn run(mut self) -> Summary {
        self.run_until(self.rough_until);
        self.calm_down();
        self.last_words();
        self.go_home();
        self.nothing_is_left();
        self.summary()
    }

    fn run_until(&mut self, end: Time) {
        while let Some(actor) = self.next(end) {
            self.step(actor);
        }
        self.machine.advance_to(end);
    }

    /// Runs until `done`, for at most `ms`; says whether it came to that.
    fn run_while(&mut self, ms: u64, mut goes_on: impl FnMut(&mut World) -> bool) -> bool {
        let end = self.machine.now().plus_ms(ms);
        while goes_on(self) {
            match self.next(end) {
                Some(actor) => self.step(actor),
                None => return false,
            }
        }
        true
    }

    /// Whoever is due first, and not after `end`; the clock is set to it.
    fn next(&mut self, end: Time) -> Option<Actor> {
        let mut due = (self.control.borrow().wakes_at(), Actor::Control);
        for (index, shard) in self.shards.iter_mut().enumerate() {
            let at = shard.wakes_at();
            if at < due.0 {
                due = (at, Actor::Shard(index));
            }
        }
        for (index, client) in self.clients.iter().enumerate() {
            let at = client.wakes_at();
            if at < due.0 {
                due = (at, Actor::Client(index));
            }
        }
        for (index, (at, ..)) in self.late.iter().enumerate() {
            if *at < due.0 {
                due = (*at, Actor::Late(index));
            }
        }
        if due.0 > end {
            return None;
        }
        self.machine.advance_to(due.0);
        Some(due.1)
    }

    fn step(&mut self, actor: Actor) {
        self.steps += 1;
        if self.steps > STEPS_MAX - 5 {
            trace!(
                self.machine,
                "{}",
                match &actor {
                    Actor::Shard(i) => format!("shard {i}"),
                    Actor::Control => "control".into(),
                    Actor::Client(i) => format!("client {i}"),
                    Actor::Late(i) => format!("late {i}"),
                }
            );
        }
        assert!(self.steps < STEPS_MAX, "{STEPS_MAX} steps and no end: a livelock");
        match actor {
            Actor::Shard(index) => self.turn(index),
            Actor::Control => self.control_steps(),
            Actor::Client(index) => self.client_steps(index),
            Actor::Late(index) => {
                let (_, shard, arrival) = self.late.swap_remove(index);
                self.announce(shard, arrival);
            }
        }
        self.nobody_oversleeps();
    }

    fn turn(&mut self, index: usize) {
        let shard = &mut self.shards[index];
        let ring = shard.reactor.ring_mut();
        if ring.waited() {
            shard.bell.awake();
        }
        ring.resume();
        let turn = shard.reactor.turn();
        let ring = shard.reactor.ring_mut();
        if ring.waited() {
            // In a real ring the turn would still be inside that wait, with its flag up.
            shard.bell.set_depth(ring.depth());
            shard.idle_turns = 0;
            if self.control.borrow().inbox_items(index) == 0 {
                let tick_ns = self.settings.tick_interval_us * 1000;
                self.machine.book.borrow_mut().went_to_sleep(index, self.machine.now(), tick_ns);
            }
        }
        let work = ring.work();
        shard.idle_turns = if work == shard.work { shard.idle_turns + 1 } else { 0 };
        shard.work = work;
        assert!(shard.idle_turns < IDLE_TURNS_MAX, "shard {index} turned {IDLE_TURNS_MAX} times and did nothing");
        let owed = shard.metrics.owed_bytes.get();
        assert!(owed <= shard.owed_bytes_bound, "shard {index} owes {owed} bytes, bound {}", shard.owed_bytes_bound);
        let pause_us = match self.machine.within(0..=19) {
            0 => self.machine.draw(|dice| dice.magnitude(50..=10_000)),
            _ => self.machine.within(0..=50),
        };
        let stall_us = if self.machine.mishap(2) {
            self.machine.draw(|dice| dice.magnitude(10_000..=STALL_MS_MAX * 1000))
        } else {
            0
        };
        shard.not_before = Time(self.machine.now().0 + (pause_us + stall_us) * 1000);
        if stall_us / 1000 > self.settings.close_deadline_ms / 2 {
            let its = self.lines.iter().filter(|(shard, _)| *shard == index);
            its.for_each(|(_, line)| line.borrow_mut().cut_short = true);
        }
        if turn == Turn::Drained {
            trace!(self.machine, "shard {index} is drained");
            shard.is_over = true;
        }
        self.count_departures();
        self.spread_news();
    }

    /// The accepting core wakes when its bell is rung, and then not at once.
    fn count_departures(&mut self) {
        if self.accept_bell.is_sleeping() || self.machine.chance(500) {
            return;
        }
        for (index, shard) in self.shards.iter_mut().enumerate() {
            while let Some(departure) = shard.departures.pop() {
                trace!(self.machine, "shard {index}: {:?} departs", departure.address);
                shard.places += 1;
            }
        }
        self.accept_bell.sleep();
    }

    fn control_steps(&mut self) {
        let mut control = self.control.borrow_mut();
        control.step();
        if self.machine.mishap(3) {
            let ms = self.machine.draw(|dice| dice.magnitude(5..=1_500));
            control.pause_until(self.machine.now().plus_ms(ms));
        }
    }

    fn client_steps(&mut self, index: usize) {
        let before = self.clients[index].line.clone();
        let shard = self.clients[index].shard;
        let (control, machine) = (&self.control, &self.machine);
        let admitted_before = |topic| {
            let behind = control.borrow().inbox_items(shard) as u32;
            machine.book.borrow().admitted(topic).saturating_sub(behind)
        };
        let wish = self.clients[index].step(admitted_before);
        if let Some(line) = before {
            if self.machine.mishap(1) {
                trace!(self.machine, "the network cuts client {index} off");
                line.borrow_mut().reset();
            }
            let slot = line.borrow().slot;
            if let Some(slot) = slot {
                self.shards[shard].reactor.ring_mut().poke(slot);
            }
        }
        if let Wish::Connect = wish {
            self.connect(index);
        }
        self.spread_news();
    }

    /// The accepting core: a shard with a free place, the socket and its address on two ways.
    fn connect(&mut self, index: usize) {
        let first = self.machine.draw(|dice| dice.index(self.shards.len()));
        let all = self.shards.len();
        let free = (0..all).map(|i| (first + i) % all).find(|i| self.shards[*i].places > 0 && !self.shards[*i].is_over);
        let Some(shard) = free else { return self.clients[index].was_refused() };
        self.shards[shard].places -= 1;
        self.hand_overs += 1;
        let number = self.hand_overs;
        let behind = self.control.borrow().inbox_items(shard) as u32;
        let broadcasts = self.machine.book.borrow().admitted(BROADCAST).saturating_sub(behind);
        let connects_as = self.settings.token_at_connect.then(|| self.machine.draw(|dice| dice.index(USERS)));
        let mut reader = Reader::new(ShardId(shard as u16), &self.machine.book.borrow(), broadcasts, connects_as);
        if self.settings.questions_max < self.settings.slots {
            reader.allow_refusals();
        }
        let send_buffer_bytes = self.machine.draw(|dice| dice.magnitude(200..=16_384)) as usize;
        let line: SharedLine = Rc::new(RefCell::new(Line::new(index, self.machine.now(), send_buffer_bytes, reader)));
        let now = self.machine.now();
        let arrival = Arrival {
            token: number,
            address: SocketAddr::from((Ipv4Addr::from(number as u32), 1)),
            listener: 0,
            accepted: now,
        };
        if self.machine.chance(500) {
            self.announce(shard, arrival);
        } else {
            let late_ns = self.machine.draw(|dice| dice.magnitude(1_000..=5_000_000));
            self.late.push((Time(now.0 + late_ns), shard, arrival));
        }
        self.shards[shard].reactor.ring_mut().hand_over(number, line.clone());
        self.lines.push((shard, line.clone()));
        self.clients[index].connected(shard, line, connects_as);
    }

    fn announce(&mut self, shard: usize, arrival: Arrival) {
        let queue = &mut self.shards[shard].arrivals;
        if queue.push(arrival, 0).is_err() {
            self.late.push((self.machine.now().plus_ms(1), shard, arrival));
        }
        queue.ring();
    }

    /// Clients learn that something came for them.
    fn spread_news(&mut self) {
        for client in &mut self.clients {
            let news = client.line.as_ref().is_some_and(|line| std::mem::take(&mut line.borrow_mut().news));
            if news {
                client.has_news();
            }
        }
        self.lines.retain(|(_, line)| !line.borrow().near_closed);
    }

    fn nobody_oversleeps(&mut self) {
        let now = self.machine.now();
        for (index, shard) in self.shards.iter_mut().enumerate() {
            let mail = self.control.borrow().inbox_items(index) + shard.arrivals.len();
            if shard.is_over || mail == 0 || !shard.reactor.ring_mut().is_asleep() {
                shard.unheard_since = None;
                continue;
            }
            let since = *shard.unheard_since.get_or_insert(now);
            let unheard_ms = now.since_ns(since) / 1_000_000;
            // Messages may lie until its tick, words and newcomers not.
            let is_news = shard.arrivals.is_empty() && !self.control.borrow().has_words_for(index);
            let tick_ms = if is_news { self.settings.tick_interval_us / 1000 } else { 0 };
            assert!(
                unheard_ms <= UNHEARD_MS_MAX + tick_ms,
                "shard {index} sleeps over {mail} items for {unheard_ms} ms"
            );
        }
        if self.control.borrow().sleeps_over_mail() {
            let since = *self.control_unheard_since.get_or_insert(now);
            let unheard_ms = now.since_ns(since) / 1_000_000;
            assert!(unheard_ms <= UNHEARD_MS_MAX, "the control core sleeps over its mail for {unheard_ms} ms");
        } else {
            self.control_unheard_since = None;
        }
        if self.accept_bell.is_sleeping() {
            let departed = self.shards.iter().any(|shard| !shard.departures.is_empty());
            assert!(!departed, "the accepting core sleeps over a departure");
        }
    }

    fn calm_down(&mut self) {
        trace!(self.machine, "--- calm");
        self.machine.calm.set(true);
        self.control.borrow_mut().quiet = true;
        self.clients.iter_mut().for_each(Client::settle);
        let now = self.machine.now();
        self.run_until(now.plus_ms(super::reader::ANSWER_MS_MAX + 1_000));
        let at_rest = self.run_while(1_000, |world| !world.control.borrow().is_idle());
        assert!(at_rest, "the queues do not become empty");
        self.deadlines_were_kept();
    }

    /// Nobody was in the way for long enough: whoever had his time is gone.
    fn deadlines_were_kept(&mut self) {
        let now = self.machine.now();
        let patience_ms = self.settings.slow_deadline_ms + self.settings.close_deadline_ms + TIMER_SLACK_MS;
        for (index, shard) in self.shards.iter_mut().enumerate() {
            let since = shard.reactor.ring_mut().sends_since().unwrap_or(now);
            let waited_ms = now.since_ns(since) / 1_000_000;
            assert!(waited_ms <= patience_ms, "shard {index} waits for a slow consumer since {waited_ms} ms");
        }
        for (shard, line) in &self.lines {
            let line = line.borrow();
            let age_ms = now.since_ns(line.accepted) / 1_000_000;
            let is_late = !line.reader.is_greeted() && age_ms > self.settings.handshake_deadline_ms + TIMER_SLACK_MS;
            assert!(!is_late, "shard {shard} waits for the handshake of client {} since {age_ms} ms", line.client);
        }
    }

    fn last_words(&mut self) {
        trace!(self.machine, "--- last words");
        self.control.borrow_mut().publish_everywhere();
        // Once more before the next tick: that one has to come by itself.
        let now = self.machine.now();
        self.run_until(Time(now.0 + 200_000));
        self.control.borrow_mut().publish_everywhere();
        let now = self.machine.now();
        self.run_until(now.plus_ms(self.settings.tick_interval_us / 1000 + PROMPT_MS));
        self.clients.iter().for_each(Client::must_be_content);
    }

    fn go_home(&mut self) {
        trace!(self.machine, "--- {}", if self.drains { "the gateway drains" } else { "everybody leaves" });
        for client in &mut self.clients {
            client.may_be_closed = true;
            client.goes_home = true;
        }
        if self.drains {
            let mut pending: Vec<usize> = (0..self.shards.len()).collect();
            let window_ms = self.machine.draw(|dice| dice.magnitude(1..=2_000));
            let order = || ToShard::Drain(Drain { close_code: 1001, window_ms, rate_per_s: 1_000, deadline_ms: 2_000 });
            let told = self.run_while(5_000, |world| !world.control.borrow_mut().drain(&mut pending, order));
            assert!(told, "the order to drain finds no room");
            let done = self.run_while(20_000, |world| world.shards.iter().any(|shard| !shard.is_over));
            assert!(done, "a drain does not end");
            let heard = self.run_while(1_000, |world| world.control.borrow().drained < world.shards.len());
            assert!(heard, "the control core does not hear of the drains");
            return;
        }
        self.clients.iter_mut().for_each(Client::go_home);
        // Those whose clients are beyond saying anything.
        for (shard, line) in std::mem::take(&mut self.lines) {
            if !self.clients.iter().any(|c| c.line.as_ref().is_some_and(|l| Rc::ptr_eq(l, &line))) {
                let gone = matches!(line.borrow().far, Far::Gone | Far::Reset);
                if !gone {
                    line.borrow_mut().reset();
                }
                if let Some(slot) = { line.borrow().slot } {
                    self.shards[shard].reactor.ring_mut().poke(slot);
                }
            }
            self.lines.push((shard, line));
        }
        for index in 0..self.shards.len() {
            for slot in 0..self.settings.slots as u32 {
                self.shards[index].reactor.ring_mut().poke(crate::ids::Slot(slot));
            }
        }
        let gone = self.run_while(15_000, |world| {
            world.shards.iter().any(|s| s.reactor.audit() != Audit::default() || s.metrics.interests.get() > 0)
                || world.control.borrow().users_and_questions() != (0, 0)
        });
        let left: Vec<Audit> = self.shards.iter().map(|s| s.reactor.audit()).collect();
        assert!(
            gone,
            "everybody left, and this is still held: {left:?}, and users and questions {:?}",
            self.control.borrow().users_and_questions()
        );
    }

    fn nothing_is_left(&mut self) {
        let now = self.machine.now();
        self.run_until(now.plus_ms(100));
        while !self.accept_bell.is_sleeping() {
            self.count_departures();
        }
        for (index, shard) in self.shards.iter_mut().enumerate() {
            assert_eq!(shard.reactor.audit(), Audit::default(), "shard {index} holds something");
            let held = shard.reactor.ring_mut().holdings();
            assert_eq!(held, Holdings::default(), "the kernel of shard {index} holds something");
            assert_eq!(shard.places, self.settings.slots, "shard {index} did not report every departure");
            let m = &shard.metrics;
            let dropped = dropped(m);
            let tally = self.machine.book.borrow().tallies[index];
            assert!(
                tally.missed_min <= dropped && dropped <= tally.missed_max,
                "shard {index} counted {dropped} drops, its clients missed {tally:?}"
            );
            let delivered = m.deliveries.get();
            assert!(
                tally.sent <= delivered && delivered <= tally.sent + tally.broken,
                "shard {index} counted {delivered} deliveries, its kernel saw {tally:?}"
            );
        }
    }

    fn summary(mut self) -> Summary {
        let control = self.control.borrow();
        let mut summary = Summary {
            steps: self.steps,
            simulated_ms: self.machine.now().since_ns(Machine::START) / 1_000_000,
            connections: self.hand_overs,
            admitted: control.admitted,
            waited: control.waited,
            refused: control.refused,
            ..Summary::default()
        };
        summary.joined = self.machine.book.borrow().tallies.iter().map(|tally| tally.joined).sum();
        for shard in &mut self.shards {
            let m = &shard.metrics;
            summary.delivered += m.deliveries.get();
            summary.dropped += dropped(m);
            summary.logins += m.logins_ok.get();
            summary.logins_refused += m.logins_refused.get();
            summary.questions_refused += m.questions_refused.get();
            summary.slow_closed +=
                m.closes_slow_pending.get() + m.closes_slow_deadline.get() + m.closes_slow_owed.get();
            summary.misbehaved += m.closes_protocol.get() + m.closes_flood.get();
            summary.reads_paused += m.reads_paused.get();
            summary.reached.add(&shard.reactor.ring_mut().reached);
        }
        summary
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.machine.set_elsewhere(None); // It holds the control core, which holds the machine.
    }
}

fn dropped(m: &ShardMetrics) -> u64 {
    m.drops_pending_full.get() + m.drops_disconnected.get() + m.drops_left.get() + m.drops_owed_full.get()
}

fn settings(dice: &mut super::dice::Dice, shards: usize, slots: usize) -> ShardSettings {
    let mut settings = ShardSettings::new(&Config::default(), shards, shards, slots);
    settings.tick_interval_us = dice.pick(&[0, 100, 1_000, 10_000, 100_000]);
    settings.sends_per_enter = dice.magnitude(1..=256) as usize;
    settings.send_bytes_max = dice.magnitude(100..=8_192) as usize;
    settings.close_deadline_ms = dice.magnitude(200..=1_000);
    settings.handshake_deadline_ms = dice.within(4_000..=6_000);
    settings.client_messages_per_s_max = 50;
    settings.client_messages_burst_max = 150;
    settings.reply_bytes_max = dice.magnitude(64..=4_096) as usize;
    settings.pending_bytes_max = dice.within(24_000..=64_000) as usize;
    settings.policy = dice.pick(&[SlowPolicy::Drop, SlowPolicy::Disconnect]);
    settings.slow_deadline_ms = dice.magnitude(300..=5_000);
    settings.owed_bytes_max = dice.magnitude(100_000..=600_000) as usize;
    settings.owed_bytes_share = settings.owed_bytes_max;
    settings.deflate = dice.chance(500);
    settings.gpush_heartbeat_timeout_ms = dice.within(25_000..=40_000);
    settings.centrifugo_ping_interval_ms = dice.within(12_000..=20_000);
    settings.centrifugo_pong_timeout_ms = dice.within(9_000..=11_000);
    settings.token_at_connect = dice.chance(200);
    // Clients that left may have questions out, and their slots new tenants that ask again.
    settings.questions_max = match dice.chance(300) {
        true if !settings.token_at_connect => 1,
        _ => 1000,
    };
    settings.interest_linger_ms = dice.magnitude(5..=500);
    settings
}
