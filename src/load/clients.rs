//! The clients: they connect at a bounded rate, shake hands, subscribe, and then do nothing but read and count.
//!
//! ```text
//! waiting ─► connecting ─► handshake ─► greeting ─► subscribe ─► live ──────────► ended (by the server: why)
//!                │             │            │           │          └─ or slow: never reads again
//!                └─────────────┴────────────┴───────────┴─► failed (why)
//! ```
//!
//! One thread drives any number of rings; connection *i* lives in ring *i* / slots and listens to topic *i* % topics, or by Zipf's
//! law. While messages flow, some may leave and come back (churn), and others come all at once (the storm); what they get is checked
//! from their subscribe's answer on, and the latency that counts is of those who were there before.

use super::dialect::{Dialect, Shape, for_topic, names_topic};
use super::nats::{self, Operation};
use super::reader::{self, CLOSE, PING, TEXT, TEXT_DEFLATED, frames};
use super::schedule::Schedule;
use super::stamp::{self, Stamp, Stream};
use super::tally::{Tally, histogram};
use super::{centrifugo, gpush, zipf};
use crate::clock::Time;
use crate::socket::{Buffer, ClientRing, ClientRingOptions, Event};
use crate::sys::{self, EventFd};
use crate::websocket::deflate::Inflater;
use crate::websocket::{Opcode, frame, handshake};
use hdrhistogram::Histogram;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Connections that are between connect and the subscribe's answer at a time: well below any listen backlog.
const UNDER_WAY_MAX: u32 = 128;
/// Connections of one pair of addresses: ephemeral ports are searched in halves, and the second half is slow to find.
const PER_ADDRESS_PAIR: u32 = 10_000;
/// Rings up to here have all the receive buffers that were asked for; with more of them, a million connections, each has a
/// quarter: a ring is looked at more rarely then, but gives no more than some twenty completions at a time.
const FULLY_BUFFERED_RINGS_MAX: u32 = 4;
/// Closed in one turn: two entries each, and the queues hold 1,024 and more.
const CLOSES_PER_TURN_MAX: u32 = 4096;
/// A second more for the closing for each so many.
const CLOSES_PER_S: u64 = 20_000;
/// Pings of one turn.
const HEARTBEATS_PER_TURN_MAX: u32 = 256;
/// The handshakes are given up when none has got on for this long.
const STALLED_MS: u64 = 10_000;
/// Connections of the storm begun in one turn: those who are measured are read in between.
const STORM_PER_TURN_MAX: u32 = 128;
/// Connections that leave in one turn, to come back.
const CHURN_PER_TURN_MAX: u64 = 64;
/// Connections looked at for one that can leave.
const CHURN_LOOKS_MAX: u32 = 32;
/// From one who leaves to the next, in numbers of connections: a prime, so that all have their turn.
const CHURN_STRIDE: u32 = 1_000_003;
/// Response head of a handshake.
const HEAD_BYTES_MAX: usize = 8192;
/// Different reasons of failure kept apart.
const REASONS_MAX: usize = 20;
/// The example key of RFC 6455 section 1.3: a load client need not surprise anybody.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Who connects, where, and how.
#[derive(Clone, Debug)]
pub struct ClientsPlan {
    /// The server.
    pub target: SocketAddr,
    /// Other nodes of its cluster, which serve the same: connections take turns, and what each node delivers is told apart.
    pub nodes: Vec<SocketAddr>,
    /// `Host` header.
    pub host: String,
    /// Path of the dialect, with the query; `{topic}` in it is replaced.
    pub path: String,
    /// More headers of the handshake.
    pub headers: Vec<(String, String)>,
    /// What they speak.
    pub dialect: Dialect,
    /// Connection i goes to address `target` + i % spread.
    pub spread: u32,
    /// Connection i comes from these in turn. None: from 127.0.0.1 and up if the target is a loopback address, else from
    /// where the kernel says.
    pub sources: Vec<IpAddr>,
    /// How many.
    pub connections: u32,
    /// Connection i subscribes to topic i % topics; with other nodes each node has them in this order.
    pub topics: u32,
    /// Publishers whose messages will come.
    pub publishers: u32,
    /// Connections follow Zipf's law with this exponent instead.
    pub zipf: Option<f64>,
    /// So many a second leave and come back while messages flow.
    pub churn_per_s: f64,
    /// So many more come at once while messages flow.
    pub storm: u32,
    /// How many of them subscribe and never read again, evenly spread.
    pub slow: u32,
    /// Offer permessage-deflate.
    pub deflate: bool,
    /// New connections a second.
    pub ramp_per_s: u32,
    /// Connections of one ring at most; RLIMIT_NOFILE is another bound.
    pub ring_slots_max: u32,
    /// Receive buffers of each ring.
    pub buffers: u16,
    /// Bytes of each.
    pub buffer_bytes: u32,
    /// While messages flow: how long they go on looking for the next thing before they sleep.
    pub spin: Duration,
}

impl ClientsPlan {
    /// Those of the storm too.
    fn all(&self) -> u32 {
        self.connections + self.storm
    }

    fn is_slow(&self, connection: u32) -> bool {
        if connection >= self.connections {
            return false;
        }
        let share = |n: u32| u64::from(n) * u64::from(self.slow) / u64::from(self.connections);
        share(connection + 1) > share(connection)
    }

    /// All nodes, of which `target` is the first.
    fn nodes(&self) -> u32 {
        1 + self.nodes.len() as u32
    }

    /// Where `connection` comes from, if that is not the kernel's choice, and where it goes: so that no pair of addresses runs
    /// out of ports.
    fn addresses(&self, connection: u32) -> (Option<SocketAddr>, SocketAddr) {
        let node = (connection % self.nodes()) as usize;
        let target = if node == 0 { self.target } else { self.nodes[node - 1] };
        let IpAddr::V4(first) = target.ip() else {
            return (self.source(connection), target);
        };
        let to = Ipv4Addr::from(u32::from(first).wrapping_add(connection % self.spread));
        let target = SocketAddr::from((to, target.port()));
        let own = first.is_loopback() && self.sources.is_empty();
        let from = u32::from(Ipv4Addr::LOCALHOST) + connection / self.spread / PER_ADDRESS_PAIR % 0xff_fff0;
        (if own { Some(SocketAddr::from((Ipv4Addr::from(from), 0))) } else { self.source(connection) }, target)
    }

    fn source(&self, connection: u32) -> Option<SocketAddr> {
        let sources = &self.sources;
        (!sources.is_empty()).then(|| SocketAddr::from((sources[connection as usize % sources.len()], 0)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Connecting,
    Handshake,
    Greeting,
    Subscribing,
    Live,
    Slow,
    Returning, // Closed by us, to come back.
    Ended,
    Failed,
}

impl State {
    fn is_under_way(self) -> bool {
        matches!(self, State::Connecting | State::Handshake | State::Greeting | State::Subscribing)
    }
}

struct Connection {
    carry: Vec<u8>, // A partial frame or response head.
    topic: u32,
    state: State,
    slow: bool,
    open: bool, // It has a slot of a ring.
}

/// Reasons and how often.
pub(crate) type Reasons = BTreeMap<String, u64>;

fn count(reasons: &mut Reasons, reason: String) {
    let reason = if reasons.len() < REASONS_MAX || reasons.contains_key(&reason) { reason } else { "others".into() };
    *reasons.entry(reason).or_default() += 1;
}

/// What became of the connections.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Subscribed, slow ones included.
    pub(crate) subscribed: u32,
    /// Never got there, and why.
    pub(crate) failures: Reasons,
    /// Live ones that the server ended, and how.
    pub(crate) ends: Reasons,
    /// Slow ones that the server ended, and how.
    pub(crate) slow_ends: Reasons,
    /// Messages that slow ones got all the same.
    pub(crate) slow_received: u64,
    /// Connections that left and came back, and how long that took from the new connect to the subscribe's answer, µs.
    pub(crate) left: u64,
    pub(crate) returns: Option<Histogram<u64>>,
    /// Messages missing between others when a connection left.
    pub(crate) left_lacking: u64,
    /// Of the storm: subscribed, and how long that took from its beginning, µs.
    pub(crate) storm: Option<Histogram<u64>>,
    /// Of the storm: never got there, and why.
    pub(crate) storm_failures: Reasons,
    /// Frames of live connections that are neither messages of ours nor protocol, and the first of them.
    pub(crate) unexpected: u64,
    pub(crate) unexpected_first: Option<String>,
}

/// All clients of a run.
pub(crate) struct Clients {
    plan: ClientsPlan,
    rings: Vec<ClientRing>,
    connections: Vec<Connection>,
    inflater: Inflater,
    inflated: Vec<u8>,
    requests: Vec<Arc<[u8]>>,       // One, or one for each topic.
    ping: Option<(Arc<[u8]>, u64)>, // What each says once in so many ns.
    pong: Arc<[u8]>,
    servers_ping: Option<&'static [u8]>, // What a server of this dialect asks whether we are there by, and
    greeting: &'static [u8],             // how it begins, if it speaks first.
    accept: Vec<u8>,
    next: u32,       // The first connection that has not been started.
    under_way: u32,  // Between connect and the subscribe's answer.
    open: u32,       // With a slot of a ring.
    slow: u32,       // In the state of that name.
    ramp_from: Time, // Since when `ramp_per_s` counts, and
    ramp_base: u32,  // from which connection.
    progress: Time,  // A handshake got on.
    heartbeats: u64, // Said so far, over all connections.
    heartbeats_from: Time,
    leaving: bool,
    schedule: Option<Schedule>,    // Of the load that runs.
    churn_from: Option<Time>,      // Since when connections leave and come back;
    churn_at: u32,                 // the last that did.
    returning: HashMap<u32, Time>, // Those under way again, since when.
    storm: Option<Time>,           // When it began.
    storm_next: u32,               // The first of it that has not been started.
    last_event: Time,              // Until when something came.
    spun_ns: u64,                  // CPU time of looking while nothing did.
    odd: Vec<(u8, Vec<u8>)>,       // Frames of the connection at hand that are no messages of ours.
    pub(crate) tally: Tally,
    pub(crate) counts: Counts,
}

impl Clients {
    /// Rings for all of them; nothing is connected yet.
    ///
    /// # Errors
    /// What the kernel refuses, and what to do.
    pub(crate) fn new(plan: ClientsPlan) -> Result<Clients, String> {
        let limit = u32::try_from(crate::sys::raise_nofile_limit()).unwrap_or(u32::MAX).min(1 << 20);
        let slots_max = limit.min(plan.ring_slots_max).min(plan.all()).max(1);
        let rings = plan.all().div_ceil(slots_max);
        let refused =
            |e: std::io::Error| format!("io_uring of the load client: {e} (needs Linux 6.1 and io_uring enabled)");
        let share = if rings > FULLY_BUFFERED_RINGS_MAX { 4 } else { 1 };
        let buffers = (plan.buffers / share).max(1);
        let options = ClientRingOptions { slots: slots_max, buffers, buffer_bytes: plan.buffer_bytes };
        let mut rings: Vec<ClientRing> =
            (0..rings).map(|_| ClientRing::new(options)).collect::<Result<_, _>>().map_err(refused)?;
        if let [first, others @ ..] = &mut rings[..]
            && !others.is_empty()
        {
            let bell = Arc::new(EventFd::new().map_err(refused)?);
            first.wake_on(Arc::clone(&bell));
            others.iter_mut().try_for_each(|ring| ring.ring_bell(Arc::clone(&bell))).map_err(refused)?;
        }
        let offer =
            ("Sec-WebSocket-Extensions", "permessage-deflate; server_no_context_takeover; client_no_context_takeover");
        let mut headers: Vec<(&str, &str)> = plan.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        headers.extend(plan.deflate.then_some(offer));
        let request = |path: &str| -> Arc<[u8]> {
            let mut request = Vec::new();
            handshake::write_request(&mut request, &plan.host, path, KEY, &headers);
            request.into()
        };
        let path_of = |topic| for_topic(&plan.path, &Schedule::topic_name(topic));
        let requests = if names_topic(&plan.path) {
            (0..plan.topics).map(|topic| request(&path_of(topic))).collect()
        } else {
            vec![request(&plan.path)]
        };
        let topics = plan.zipf.map(|exponent| zipf::deal(plan.topics, exponent, plan.all()));
        let connection = |i| Connection {
            carry: Vec::new(),
            topic: topics.as_ref().map_or(i / plan.nodes() % plan.topics, |topics| topics[i as usize]),
            state: State::Waiting,
            slow: plan.is_slow(i),
            open: false,
        };
        let nats = plan.dialect == Dialect::Nats;
        let mut tally = Tally::new(plan.all(), plan.publishers);
        if plan.nodes() > 1 {
            tally.tell_apart(plan.nodes() as usize);
        }
        Ok(Clients {
            rings,
            connections: (0..plan.all()).map(connection).collect(),
            inflater: Inflater::new(),
            inflated: Vec::new(),
            requests,
            ping: plan.dialect.heartbeat(),
            pong: if nats { nats::PONG.into() } else { centrifugo::pong() },
            servers_ping: match plan.dialect {
                Dialect::Nats => Some(b"PING"),
                Dialect::Centrifugo => Some(centrifugo::PING),
                _ => None,
            },
            greeting: if nats { b"INFO " } else { gpush::GREETING },
            accept: handshake::accept_for(KEY).to_vec(),
            next: 0,
            under_way: 0,
            open: 0,
            slow: 0,
            ramp_from: Time::now(),
            ramp_base: 0,
            progress: Time::now(),
            heartbeats: 0,
            heartbeats_from: Time::now(),
            leaving: false,
            schedule: None,
            churn_from: None,
            churn_at: 0,
            returning: HashMap::new(),
            storm: None,
            storm_next: plan.connections,
            last_event: Time::now(),
            spun_ns: 0,
            odd: Vec::new(),
            tally,
            counts: Counts::default(),
            plan,
        })
    }

    /// Begins to connect those not yet started, as far as connection `until`, from now on at the ramp's rate.
    pub(crate) fn ramp(&mut self) {
        (self.ramp_from, self.ramp_base, self.progress) = (Time::now(), self.next, Time::now());
    }

    /// Starts what the rate allows, up to connection `until`; whether all of those have subscribed or failed.
    pub(crate) fn connect(&mut self, until: u32) -> bool {
        let now = Time::now();
        let allowed_ns = u128::from(now.since_ns(self.ramp_from)) * u128::from(self.plan.ramp_per_s);
        let allowed = u64::from(self.ramp_base) + (allowed_ns / 1_000_000_000) as u64 + 1;
        while self.next < until && u64::from(self.next) < allowed && self.under_way < UNDER_WAY_MAX {
            self.start(self.next);
            self.next += 1;
        }
        self.give_up_stalled(now);
        self.next >= until && self.under_way == 0
    }

    /// All that are under way have failed once none of them has got on for [`STALLED_MS`].
    fn give_up_stalled(&mut self, now: Time) {
        if self.under_way == 0 || now <= self.progress.plus_ms(STALLED_MS) {
            return;
        }
        for i in 0..self.plan.all() {
            let state = self.connections[i as usize].state;
            if state.is_under_way() {
                self.fail(i, format!("no answer for 10 s, {state:?}").to_lowercase());
            }
        }
    }

    /// Messages flow as in `schedule` from now on: latencies of those who are here count, connections begin to leave and come
    /// back.
    pub(crate) fn load_begins(&mut self, schedule: Schedule) {
        self.tally.measure_only(self.plan.connections);
        self.tally.measure_from(schedule.from_ns);
        self.tally.measure_until(schedule.until_ns);
        self.churn_from = (self.plan.churn_per_s > 0.0).then_some(Time(schedule.start_ns));
        self.schedule = Some(schedule);
    }

    /// Nobody leaves any more.
    pub(crate) fn churn_ends(&mut self) {
        self.churn_from = None;
    }

    /// The storm begins.
    pub(crate) fn storm_begins(&mut self) {
        (self.storm, self.progress) = (Some(Time::now()), Time::now());
        self.counts.storm = Some(histogram());
    }

    /// Whether all of the storm have subscribed or failed.
    pub(crate) fn storm_is_over(&self) -> bool {
        let subscribed = self.counts.storm.as_ref().map_or(0, Histogram::len);
        self.storm.is_some()
            && subscribed + self.counts.storm_failures.values().sum::<u64>() == u64::from(self.plan.storm)
    }

    /// Whether nobody is between connect and the subscribe's answer.
    pub(crate) fn is_settled(&self) -> bool {
        self.under_way == 0 && self.returning.is_empty()
    }

    fn storm(&mut self) {
        let until = self.plan.all().min(self.storm_next + STORM_PER_TURN_MAX);
        while self.storm.is_some() && self.storm_next < until {
            self.start(self.storm_next);
            self.storm_next += 1;
        }
    }

    /// Those whose time it is leave; they come back once their slot is free.
    fn churn(&mut self, now: Time) {
        let Some(from) = self.churn_from else { return };
        let due = (now.since_ns(from) as f64 / 1e9 * self.plan.churn_per_s) as u64;
        for _ in 0..due.saturating_sub(self.counts.left).min(CHURN_PER_TURN_MAX) {
            for _ in 0..CHURN_LOOKS_MAX {
                self.churn_at =
                    ((u64::from(self.churn_at) + u64::from(CHURN_STRIDE)) % u64::from(self.plan.connections)) as u32;
                if self.connections[self.churn_at as usize].state == State::Live {
                    break;
                }
            }
            let i = self.churn_at;
            if self.connections[i as usize].state != State::Live {
                return; // Nearly all are on their way: the rest of these come later.
            }
            self.counts.left += 1;
            self.counts.left_lacking += self.tally.gaps(i);
            self.counts.subscribed -= 1;
            self.connections[i as usize].state = State::Returning;
            self.connections[i as usize].carry = Vec::new();
            self.returning.insert(i, now);
            self.leave(i);
        }
    }

    /// Lets the kernel work, waits until `until` for something to happen if nothing has, and handles it; says `ping` when due.
    pub(crate) fn turn(&mut self, until: Time) {
        self.heartbeat();
        let now = Time::now();
        self.churn(now);
        self.storm();
        if self.schedule.is_some() {
            self.give_up_stalled(now);
        }
        // While more of the storm is to come it does not wait.
        let mut busy = self.storm.is_some() && self.storm_next < self.plan.all();
        let spins = self.schedule.is_some() && !self.plan.spin.is_zero();
        if spins && !busy {
            self.spin(until);
        }
        for ring in 1..self.rings.len() {
            self.rings[ring].enter(None);
            busy |= self.reap(ring);
        }
        let wait = (!busy).then_some(until);
        if spins {
            self.rings[0].enter_eager(wait);
        } else {
            self.rings[0].enter(wait);
        }
        busy |= self.reap(0);
        if busy {
            self.last_event = Time::now();
        }
    }

    /// Looks until something is there, nothing has been for the plan's time, or `until`. Whoever else wants the core has it.
    fn spin(&mut self, until: Time) {
        let until = until.min(self.last_event + self.plan.spin);
        let began_ns = sys::thread_cpu_ns();
        while Time::now() < until && !self.rings.iter_mut().any(ClientRing::has_work) {
            thread::yield_now();
        }
        self.spun_ns += sys::thread_cpu_ns() - began_ns;
    }

    /// CPU time of this thread, without what it looked for something to do, ns.
    pub(crate) fn cpu_ns(&self) -> u64 {
        sys::thread_cpu_ns() - self.spun_ns
    }

    /// Reads what slow connections were sent, to see which of them the server has ended; up to ten seconds, or until nothing
    /// has come for one.
    pub(crate) fn look_at_slow(&mut self) {
        for i in 0..self.plan.connections {
            if self.connections[i as usize].state == State::Slow {
                let (ring, slot) = self.place(i);
                self.rings[ring].receive(slot);
            }
        }
        let end = Time::now().plus_ms(10_000);
        let (mut seen, mut quiet) = (u64::MAX, Time::NEVER);
        while self.slow > 0 && Time::now() < end.min(quiet) {
            self.turn(Time::now().plus_ms(100));
            let now_seen = self.counts.slow_received + self.counts.slow_ends.values().sum::<u64>();
            if now_seen != seen {
                (seen, quiet) = (now_seen, Time::now().plus_ms(1000));
            }
        }
    }

    /// How many slow ones the server has not ended.
    pub(crate) fn slow_open(&self) -> u32 {
        self.slow
    }

    /// Messages that reading connections lack of the first `messages` of `schedule`, given that of some streams `refused` were
    /// not accepted; and how many connections lack any.
    pub(crate) fn lost(&self, schedule: &Schedule, messages: u64, refused: &BTreeMap<u32, u32>) -> (u64, u32) {
        let sent = |stream| schedule.sent(stream, messages);
        let mut lost = (self.counts.left_lacking, 0);
        for i in self.readers() {
            let topic = self.topic(i);
            let refused = |p| refused.get(&Stream::new(topic, p).0).copied().unwrap_or(0);
            let refused: u64 = (0..self.plan.publishers).map(|p| u64::from(refused(p))).sum();
            let missing = self.tally.lost(i, topic, sent).saturating_sub(refused);
            lost.0 += missing;
            lost.1 += u32::from(missing > 0);
        }
        lost
    }

    /// What `connection` subscribes to.
    pub(crate) fn topic(&self, connection: u32) -> u32 {
        self.connections[connection as usize].topic
    }

    /// Connections that were live at some time: they should have everything.
    pub(crate) fn readers(&self) -> impl Iterator<Item = u32> {
        let reader = |c: &Connection| !c.slow && matches!(c.state, State::Live | State::Ended);
        (0..self.plan.all()).filter(move |&i| reader(&self.connections[i as usize]))
    }

    /// Ends all connections, for ten seconds and more if there are many; what they leave behind.
    pub(crate) fn close(mut self) -> (Counts, Tally) {
        self.leaving = true;
        (self.churn_from, self.storm) = (None, None);
        let end = Time::now().plus_ms(10_000 + u64::from(self.open) * 1000 / CLOSES_PER_S);
        let mut left = 0;
        let all = self.plan.all();
        while (left < all || self.open > 0) && Time::now() < end {
            let until = all.min(left + CLOSES_PER_TURN_MAX);
            (left..until).for_each(|i| self.leave(i));
            left = until;
            let wait_ms = if left < all { 0 } else { 100 };
            self.turn(Time::now().plus_ms(wait_ms));
        }
        (self.counts, self.tally)
    }

    fn place(&self, connection: u32) -> (usize, u32) {
        let slots = self.rings[0].slots();
        ((connection / slots) as usize, connection % slots)
    }

    fn start(&mut self, i: u32) {
        if self.under_way == 0 {
            self.progress = Time::now();
        }
        let (source, target) = self.plan.addresses(i);
        let (ring, slot) = self.place(i);
        match self.rings[ring].connect(slot, source, target) {
            Ok(()) => {
                self.under_way += 1;
                self.open += 1;
                self.connections[i as usize].state = State::Connecting;
                self.connections[i as usize].open = true;
            }
            Err(e) => {
                self.under_way += 1; // Until it has failed, which is now.
                self.connections[i as usize].state = State::Connecting;
                self.fail(i, format!("socket: {e}"));
            }
        }
    }

    /// Handles what a ring has to say; whether that was anything.
    fn reap(&mut self, ring: usize) -> bool {
        let base = ring as u32 * self.rings[0].slots();
        let now = Time::now();
        let mut any = false;
        while let Some(event) = self.rings[ring].event() {
            any = true;
            match event {
                Event::Received(slot, buffer) => self.received(ring, slot, base + slot, buffer, now),
                Event::Sent(_, 0) => {}
                Event::Sent(slot, errno) => self.ended(base + slot, format!("send: {}", error(errno))),
                Event::Connected(slot, Ok(())) => self.connected(ring, slot, base + slot),
                Event::Connected(slot, Err(e)) => self.fail(base + slot, format!("connect: {e}")),
                Event::Ended(slot, 0) => self.ended(base + slot, "end of stream".into()),
                Event::Ended(slot, errno) => self.ended(base + slot, error(errno)),
                Event::Closed(slot) => {
                    let connection = &mut self.connections[(base + slot) as usize];
                    connection.open = false;
                    self.open -= 1;
                    if connection.state == State::Returning && !self.leaving {
                        self.returning.insert(base + slot, now);
                        self.start(base + slot);
                    }
                }
            }
        }
        any
    }

    fn connected(&mut self, ring: usize, slot: u32, i: u32) {
        let connection = &mut self.connections[i as usize];
        if self.plan.dialect == Dialect::Nats {
            connection.state = State::Greeting;
        } else {
            connection.state = State::Handshake;
            let which = if self.requests.len() > 1 { connection.topic as usize } else { 0 };
            self.rings[ring].send(slot, Arc::clone(&self.requests[which]));
        }
        self.read_on(ring, slot, i);
    }

    fn read_on(&mut self, ring: usize, slot: u32, i: u32) {
        if self.connections[i as usize].slow {
            self.rings[ring].receive_once(slot);
        } else {
            self.rings[ring].receive(slot);
        }
    }

    fn received(&mut self, ring: usize, slot: u32, i: u32, buffer: Buffer, now: Time) {
        let connection = &mut self.connections[i as usize];
        let bytes = self.rings[ring].received(&buffer);
        let result = if connection.state == State::Handshake {
            head(connection, bytes, &self.accept, self.plan.deflate)
        } else {
            Ok(Some(bytes))
        };
        let result = result.and_then(|rest| {
            let Some(rest) = rest else { return Ok(()) };
            let (odd, inflater, inflated) = (&mut self.odd, &mut self.inflater, &mut self.inflated);
            let mut counting = self.tally.at(i, connection.topic, now.0);
            let (slow, slow_received) = (connection.slow, &mut self.counts.slow_received);
            let mut message = |stamp: Stamp, length: usize| {
                if slow {
                    *slow_received += 1;
                } else {
                    counting.message(stamp, length);
                }
            };
            if self.plan.dialect == Dialect::Nats {
                let each = |operation: Operation<'_>| match operation {
                    Operation::Message(payload) => match Stamp::read(payload) {
                        Some(stamp) => message(stamp, payload.len()),
                        None => odd.push((reader::BINARY, payload.to_vec())),
                    },
                    Operation::Line(line) => odd.push((TEXT, line.to_vec())),
                };
                return nats::operations(&mut connection.carry, rest, each).map_err(|broken| broken.to_string());
            }
            let shape = self.plan.dialect.shape();
            let cut = frames(&mut connection.carry, rest, |f| {
                let (first, payload) = match f.first {
                    TEXT_DEFLATED => {
                        inflated.clear();
                        match inflater.inflate(f.payload, inflated, reader::FRAME_BYTES_MAX) {
                            Ok(()) => (TEXT, &inflated[..]),
                            Err(_) => (TEXT_DEFLATED, f.payload),
                        }
                    }
                    first => (first, f.payload),
                };
                match shape {
                    Shape::Lines if first == TEXT => {
                        for line in payload.split(|b| *b == b'\n') {
                            match centrifugo::stamp(line) {
                                Some(stamp) => message(stamp, line.len()),
                                None => odd.push((TEXT, line.to_vec())),
                            }
                        }
                    }
                    Shape::Anywhere if reader::is_data(first) => {
                        // The frame's bytes count with its first message.
                        let mut length = payload.len();
                        stamp::each(payload, |stamp| message(stamp, std::mem::take(&mut length)));
                        if length > 0 {
                            odd.push((TEXT, payload.to_vec()));
                        }
                    }
                    _ => match Stamp::read(payload) {
                        Some(stamp) if first == TEXT => message(stamp, payload.len()),
                        _ => odd.push((first, payload.to_vec())),
                    },
                }
            });
            cut.map_err(|broken| broken.to_string())
        });
        self.rings[ring].give_back(buffer);
        if let Err(reason) = result {
            return self.ended(i, reason);
        }
        if self.connections[i as usize].state == State::Greeting {
            self.introduce(ring, slot, i);
        }
        if !self.odd.is_empty() {
            let mut odd = std::mem::take(&mut self.odd);
            odd.drain(..).for_each(|(first, payload)| self.odd_frame(ring, slot, i, first, &payload));
            self.odd = odd;
        }
        let connection = &self.connections[i as usize];
        if connection.slow && connection.state.is_under_way() {
            self.rings[ring].receive_once(slot);
        }
    }

    /// Where the client speaks first, it does.
    fn introduce(&mut self, ring: usize, slot: u32, i: u32) {
        if matches!(self.plan.dialect, Dialect::Gpush | Dialect::Nats) {
            return;
        }
        let connection = &mut self.connections[i as usize];
        connection.state = State::Subscribing;
        if let Some(hello) = self.plan.dialect.hello(&Schedule::topic_name(connection.topic)) {
            self.rings[ring].send(slot, hello);
        }
        if matches!(self.plan.dialect, Dialect::Raw { subscribed: None, .. }) {
            self.subscribed(i);
        }
    }

    fn subscribed(&mut self, i: u32) {
        self.progress = Time::now();
        self.under_way -= 1;
        let connection = &mut self.connections[i as usize];
        connection.state = if connection.slow { State::Slow } else { State::Live };
        let topic = connection.topic;
        self.slow += u32::from(connection.slow);
        let since_us = |t: Time| self.progress.since_ns(t) / 1000;
        let returned = self.returning.remove(&i);
        if let Some(since) = returned {
            self.counts.returns.get_or_insert_with(histogram).saturating_record(since_us(since));
        }
        let stormed = i >= self.plan.connections;
        if let (true, Some(began), Some(times)) = (stormed, self.storm, &mut self.counts.storm) {
            times.saturating_record(since_us(began));
        } else {
            self.counts.subscribed += 1;
        }
        if let Some(schedule) = self.schedule.as_ref().filter(|_| stormed || returned.is_some()) {
            // What is due from now on is published after the server has said yes.
            let due = self.plan.dialect.acks().then(|| schedule.due_before(self.progress.0));
            self.tally.begin(i, |publisher| Some(schedule.sent(Stream::new(topic, publisher), due?)));
        }
    }

    /// A frame that is no message of ours: greeting, replies, control.
    #[cold]
    fn odd_frame(&mut self, ring: usize, slot: u32, i: u32, first: u8, payload: &[u8]) {
        let state = self.connections[i as usize].state;
        match (state, first) {
            (State::Ended | State::Failed | State::Returning, _) => {}
            (_, CLOSE) => {
                let code =
                    payload.first_chunk().map_or_else(|| "no code".into(), |c| u16::from_be_bytes(*c).to_string());
                let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or(&[]));
                self.ended(i, format!("close frame {code} {reason}").trim_end().to_owned());
            }
            (_, PING) => {
                // While something else is in flight the pong is left out: servers ask again.
                if !self.rings[ring].is_sending(slot) {
                    let mut pong = Vec::new();
                    frame::write_client_frame(&mut pong, Opcode::Pong, payload, gpush::MASK);
                    self.rings[ring].send(slot, pong.into());
                }
            }
            (_, reader::PONG) => {}
            (_, TEXT) if Some(payload) == self.servers_ping => {
                // Left out while something else is in flight, which is its first message at most.
                if !self.rings[ring].is_sending(slot) {
                    self.rings[ring].send(slot, Arc::clone(&self.pong));
                }
            }
            (State::Greeting, TEXT) if payload.starts_with(self.greeting) => {
                self.progress = Time::now();
                let topic = Schedule::topic_name(self.topic(i));
                let subscribe =
                    if self.plan.dialect == Dialect::Nats { nats::subscribe(&topic) } else { gpush::subscribe(&topic) };
                self.rings[ring].send(slot, subscribe);
                self.connections[i as usize].state = State::Subscribing;
            }
            (State::Subscribing, TEXT) if self.plan.dialect.is_subscribed(payload) => self.subscribed(i),
            (_, TEXT) if self.plan.dialect.is_protocol(payload) => {}
            (State::Greeting | State::Subscribing, _) => {
                let text = String::from_utf8_lossy(payload);
                self.fail(i, format!("unexpected answer while {state:?}: {text:.100}").to_lowercase());
            }
            _ => {
                self.counts.unexpected += 1;
                let text = || format!("first byte {first:#04x}: {:.100}", String::from_utf8_lossy(payload));
                self.counts.unexpected_first.get_or_insert_with(text);
            }
        }
    }

    fn fail(&mut self, i: u32, reason: String) {
        self.under_way -= 1;
        self.progress = Time::now();
        self.connections[i as usize].state = State::Failed;
        self.returning.remove(&i);
        let stormed = i >= self.plan.connections;
        count(if stormed { &mut self.counts.storm_failures } else { &mut self.counts.failures }, reason);
        self.leave(i);
    }

    /// The server has ended connection `i`, or can't be understood any more.
    fn ended(&mut self, i: u32, reason: String) {
        match self.connections[i as usize].state {
            state if state.is_under_way() => self.fail(i, format!("{state:?}: {reason}").to_lowercase()),
            state @ (State::Live | State::Slow) => {
                self.connections[i as usize].state = State::Ended;
                self.slow -= u32::from(state == State::Slow);
                count(if state == State::Slow { &mut self.counts.slow_ends } else { &mut self.counts.ends }, reason);
                self.leave(i);
            }
            State::Ended | State::Failed | State::Returning => {} // A close frame, and then the end of the stream.
            state => unreachable!("connection {i} ended while {state:?}"),
        }
    }

    fn leave(&mut self, i: u32) {
        if self.connections[i as usize].open {
            let (ring, slot) = self.place(i);
            self.rings[ring].close(slot);
        }
    }

    fn heartbeat(&mut self) {
        let Some((ping, period_ns)) = self.ping.clone().filter(|_| !self.leaving) else { return };
        let elapsed_ns = Time::now().since_ns(self.heartbeats_from);
        let all = self.plan.all();
        let due = (u128::from(elapsed_ns) * u128::from(all) / u128::from(period_ns)) as u64;
        for _ in 0..due.saturating_sub(self.heartbeats).min(u64::from(HEARTBEATS_PER_TURN_MAX)) {
            let i = (self.heartbeats % u64::from(all)) as u32;
            self.heartbeats += 1;
            let (ring, slot) = self.place(i);
            let listening = matches!(self.connections[i as usize].state, State::Live | State::Slow);
            if listening && !self.rings[ring].is_sending(slot) {
                self.rings[ring].send(slot, Arc::clone(&ping));
            }
        }
    }
}

fn error(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}

/// Takes bytes of the handshake's answer; once it is whole and right, gives those that follow it.
fn head<'a>(
    connection: &mut Connection,
    bytes: &'a [u8],
    accept: &[u8],
    deflate: bool,
) -> Result<Option<&'a [u8]>, String> {
    let before = connection.carry.len();
    connection.carry.extend_from_slice(bytes);
    let response = handshake::parse_response(&connection.carry).map_err(|e| format!("handshake: {e}"))?;
    let Some((status, length, headers)) = response else {
        let endless = connection.carry.len() > HEAD_BYTES_MAX;
        return if endless { Err("handshake: endless response head".into()) } else { Ok(None) };
    };
    let header = |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| *value);
    if status != 101 {
        return Err(format!("handshake: status {status}"));
    }
    if header("sec-websocket-accept") != Some(accept) {
        return Err("handshake: wrong Sec-WebSocket-Accept".into());
    }
    if deflate && header("sec-websocket-extensions").is_none() {
        return Err("handshake: permessage-deflate was not accepted (gateway: websocket.deflate = true)".into());
    }
    connection.carry = Vec::new();
    connection.state = State::Greeting;
    Ok(Some(&bytes[length - before..]))
}

#[cfg(test)]
mod tests {
    use super::super::schedule::Pace;
    use super::super::{bare, gpush};
    use super::*;
    use crate::websocket::Deflater;
    use std::io::Write;
    use std::net::TcpListener;
    use std::thread;

    fn plan(target: SocketAddr, connections: u32) -> ClientsPlan {
        ClientsPlan {
            target,
            nodes: Vec::new(),
            host: target.to_string(),
            path: "/ws".into(),
            headers: Vec::new(),
            dialect: Dialect::Gpush,
            spread: 1,
            sources: Vec::new(),
            connections,
            topics: 1,
            publishers: 1,
            zipf: None,
            churn_per_s: 0.0,
            storm: 0,
            slow: 0,
            deflate: false,
            ramp_per_s: 100_000,
            ring_slots_max: 16,
            buffers: 16,
            buffer_bytes: 1024,
            spin: Duration::ZERO,
        }
    }

    fn connected(plan: ClientsPlan) -> Clients {
        let mut clients = Clients::new(plan).unwrap();
        clients.ramp();
        while !clients.connect(clients.plan.connections) {
            clients.turn(Time::now().plus_ms(1));
        }
        clients
    }

    fn turn_until(clients: &mut Clients, done: impl Fn(&Clients) -> bool) {
        let deadline = Time::now().plus_ms(10_000);
        while !done(clients) {
            assert!(Time::now() < deadline, "not in ten seconds");
            clients.turn(Time::now().plus_ms(10));
        }
    }

    fn schedule(topics: u32) -> Schedule {
        Schedule::new(Pace::Rate { per_s: 2000.0 }, topics, 1, 128, Time::now().0, 0.0, 0.1)
    }

    #[test]
    fn no_pair_of_addresses_has_more_connections_than_ports_are_quickly_found_for() {
        let million = ClientsPlan { connections: 1_000_000, ..plan("127.0.0.1:9".parse().unwrap(), 1) };
        for spread in [1, 50] {
            let plan = ClientsPlan { spread, ..million.clone() };
            let mut pairs = std::collections::HashMap::new();
            for i in 0..plan.connections {
                let (from, to) = plan.addresses(i);
                assert!(from.unwrap().ip().is_loopback() && to.ip().is_loopback() && to.port() == 9);
                *pairs.entry((from, to)).or_insert(0) += 1;
            }
            assert_eq!((pairs.len(), pairs.values().max()), (100, Some(&PER_ADDRESS_PAIR)), "spread {spread}");
        }
        let elsewhere = ClientsPlan { target: "10.0.0.1:9".parse().unwrap(), ..million };
        assert_eq!(elsewhere.addresses(70_000), (None, elsewhere.target));
        let sources = vec!["10.0.0.2".parse().unwrap(), "10.0.0.3".parse().unwrap()];
        let from = ClientsPlan { sources, ..elsewhere }.addresses(3).0.unwrap();
        assert_eq!(from.to_string(), "10.0.0.3:0");
    }

    #[test]
    fn connections_take_turns_over_nodes_and_each_node_has_every_topic() {
        let [a, b] = ["127.0.0.1:9", "127.0.0.1:8"].map(|address| address.parse().unwrap());
        let clients = Clients::new(ClientsPlan { nodes: vec![b], topics: 2, ..plan(a, 6) }).unwrap();
        let at = |i| (clients.plan.addresses(i).1, clients.topic(i));
        assert_eq!([0, 1, 2, 3, 4, 5].map(at), [(a, 0), (b, 0), (a, 1), (b, 1), (a, 0), (b, 0)]);
        assert_eq!(clients.tally.nodes.len(), 2);
    }

    #[test]
    fn every_message_is_checked_at_every_connection_of_several_rings() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let plan = ClientsPlan { topics: 3, slow: 4, ..plan(listener.local_addr().unwrap(), 40) };
        let server = thread::spawn(move || -> Vec<bare::Client> {
            (0..40).map(|_| bare::welcome(listener.accept().unwrap().0).unwrap()).collect()
        });
        let mut clients = connected(plan);
        assert_eq!((clients.rings.len(), clients.counts.subscribed, clients.counts.failures.len()), (3, 40, 0));
        let mut peers = server.join().unwrap();
        let schedule = schedule(3);
        let messages = schedule.messages().unwrap();
        let writing = thread::spawn({
            let schedule = schedule.clone();
            move || {
                bare::run(&mut peers, &schedule, 1);
                peers
            }
        });
        let none = BTreeMap::new();
        turn_until(&mut clients, |c| c.lost(&schedule, messages, &none).0 == 0);
        assert_eq!(clients.readers().count(), 36);
        assert_eq!((clients.tally.duplicates, clients.tally.disordered, clients.tally.foreign), (0, 0, 0));
        assert_eq!(
            clients.lost(&schedule, messages + 3, &none),
            (36, 36),
            "one more of each topic is missing everywhere"
        );

        let mut peers = writing.join().unwrap();
        let before = clients.counts.slow_received;
        peers.remove(9); // Whoever that is: peers are in the order of their topics by now.
        clients.look_at_slow();
        assert!(clients.counts.slow_received > before, "slow ones had something waiting");
        assert_eq!(u64::from(clients.slow_open()) + clients.counts.slow_ends.values().sum::<u64>(), 4);
        assert_eq!(clients.counts.ends.values().sum::<u64>() + clients.counts.slow_ends.values().sum::<u64>(), 1);
        assert_eq!(clients.close().0.subscribed, 40);
    }

    #[test]
    fn who_looks_on_instead_of_sleeping_misses_nothing_and_does_not_call_it_work() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let plan = ClientsPlan { spin: Duration::from_secs(60), ..plan(listener.local_addr().unwrap(), 40) };
        let server = thread::spawn(move || -> Vec<bare::Client> {
            (0..40).map(|_| bare::welcome(listener.accept().unwrap().0).unwrap()).collect()
        });
        let mut clients = connected(plan);
        let mut peers = server.join().unwrap();
        let schedule = schedule(1);
        clients.load_begins(schedule.clone());
        let (worked_ns, end) = (clients.cpu_ns(), Time::now().plus_ms(50));
        while Time::now() < end {
            clients.turn(end);
        }
        let worked_ns = clients.cpu_ns() - worked_ns;
        // On a busy machine it looks once and gives way.
        assert!(
            clients.spun_ns > 0 && worked_ns < 25_000_000,
            "{} ns looking, {worked_ns} ns at work",
            clients.spun_ns
        );

        let messages = schedule.messages().unwrap();
        let writing = thread::spawn({
            let schedule = schedule.clone();
            move || bare::run(&mut peers, &schedule, 1)
        });
        turn_until(&mut clients, |c| c.lost(&schedule, messages, &BTreeMap::new()).0 == 0);
        writing.join().unwrap();
    }

    #[test]
    fn connections_that_leave_come_back_and_a_storm_comes_beside_them() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let plan = ClientsPlan { churn_per_s: 1000.0, storm: 30, ..plan(listener.local_addr().unwrap(), 20) };
        // The thread ends with the test's process.
        thread::spawn(move || {
            let mut peers = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                peers.extend(bare::welcome(stream));
            }
        });
        let mut clients = connected(plan);
        clients.load_begins(schedule(1));
        turn_until(&mut clients, |c| c.counts.returns.as_ref().is_some_and(|times| times.len() >= 40));
        clients.churn_ends();
        assert!(!clients.storm_is_over());
        clients.storm_begins();
        turn_until(&mut clients, |c| c.storm_is_over() && c.is_settled());
        let counts = &clients.counts;
        assert_eq!((counts.subscribed, counts.failures.len(), counts.storm_failures.len()), (20, 0, 0));
        assert_eq!(counts.left, counts.returns.as_ref().unwrap().len());
        assert_eq!((counts.storm.as_ref().unwrap().len(), clients.readers().count()), (30, 50));
        // Whoever came later is held to less than whoever was there from the start, if to anything: nothing was published.
        let lacks = clients.lost(clients.schedule.as_ref().unwrap(), 200, &BTreeMap::new());
        assert!(lacks.0 < 50 * 200 && lacks.0 >= 1, "{lacks:?}");
        clients.close();
    }

    #[test]
    fn a_server_that_loses_and_repeats_and_cuts_is_found_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let plan = plan(listener.local_addr().unwrap(), 2);
        let server = thread::spawn(move || {
            let mut peers: Vec<bare::Client> =
                (0..2).map(|_| bare::welcome(listener.accept().unwrap().0).unwrap()).collect();
            for (peer, sequence) in [(0, &[0, 2, 2][..]), (1, &[0, 1, 2])] {
                for &sequence in sequence {
                    let mut message = vec![0; 128];
                    Stamp { stream: Stream::new(0, 0), sequence, due_ns: 0 }.write(&mut message);
                    let mut bytes = Vec::new();
                    frame::write_frame(&mut bytes, Opcode::Text, &message);
                    peers[peer].stream.write_all(&bytes).unwrap();
                }
            }
            let mut bytes = Vec::new();
            frame::write_frame(&mut bytes, Opcode::Text, b"surprise");
            frame::write_close(&mut bytes, 1013, "slow");
            peers[1].stream.write_all(&bytes).unwrap();
            peers
        });
        let mut clients = connected(plan);
        turn_until(&mut clients, |c| c.tally.received == 5 && !c.counts.ends.is_empty());
        let schedule = schedule(1);
        assert_eq!(clients.lost(&schedule, 3, &BTreeMap::new()), (1, 1));
        assert_eq!(clients.lost(&schedule, 3, &BTreeMap::from([(0, 1)])), (0, 0), "what was refused is not lost");
        assert_eq!((clients.tally.duplicates, clients.counts.unexpected), (1, 1));
        assert!(clients.counts.unexpected_first.as_ref().unwrap().contains("surprise"));
        assert_eq!(clients.counts.ends, Reasons::from([("close frame 1013 slow".to_owned(), 1)]));
        drop(server.join().unwrap());
    }

    #[test]
    fn compressed_messages_are_inflated_and_counted_like_others() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let plan = ClientsPlan { deflate: true, ..plan(listener.local_addr().unwrap(), 1) };
        let server = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
            let mut bytes = head.as_bytes().to_vec();
            let mut text = |payload: &[u8]| frame::write_frame(&mut bytes, Opcode::Text, payload);
            text(gpush::GREETING);
            text(gpush::SUBSCRIBED);
            let mut message = vec![0; 128];
            Stamp { stream: Stream::new(0, 0), sequence: 0, due_ns: 0 }.write(&mut message);
            Deflater::new(6).write_frame(&mut bytes, Opcode::Text, &message);
            for byte in bytes {
                stream.write_all(&[byte]).unwrap(); // However it is cut.
            }
            stream
        });
        let mut clients = connected(plan);
        turn_until(&mut clients, |c| c.tally.received == 1);
        assert_eq!((clients.tally.bytes, clients.counts.unexpected), (128, 0));
        drop(server.join().unwrap());
    }

    #[test]
    fn connections_that_do_not_come_about_are_counted_with_their_reason() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let answers = ["HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n", "SSH-2.0-nonsense\r\n", ""];
            let mut streams = Vec::new();
            for answer in answers {
                let mut stream = listener.accept().unwrap().0;
                stream.write_all(answer.as_bytes()).unwrap();
                streams.push(stream);
                if answer.is_empty() {
                    streams.pop();
                }
            }
            streams
        });
        let clients = connected(plan(target, 3));
        let reasons: Vec<&str> = clients.counts.failures.keys().map(String::as_str).collect();
        assert_eq!(clients.counts.failures.values().sum::<u64>(), 3, "{reasons:?}");
        assert!(reasons.iter().any(|r| r.contains("status 503")), "{reasons:?}");
        assert_eq!((clients.counts.subscribed, clients.readers().count()), (0, 0));
        drop(server.join().unwrap());
    }
}
