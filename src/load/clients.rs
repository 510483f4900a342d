//! The clients: they connect at a bounded rate, shake hands, subscribe, and then do nothing but read and count.
//!
//! ```text
//! waiting ─► connecting ─► handshake ─► greeting ─► subscribe ─► live ──────────► ended (by the server: why)
//!                │             │            │           │          └─ or slow: never reads again
//!                └─────────────┴────────────┴───────────┴─► failed (why)
//! ```
//!
//! One thread drives any number of rings; connection *i* lives in ring *i* / slots and listens to topic *i* % topics.

use super::reader::{self, CLOSE, PING, TEXT, TEXT_DEFLATED, frames};
use super::schedule::Schedule;
use super::stamp::{Stamp, Stream};
use super::tally::Tally;
use super::{centrifugo, gpush};
use crate::clock::Time;
use crate::dialect::DialectId;
use crate::socket::{Buffer, ClientRing, ClientRingOptions, Event};
use crate::sys::EventFd;
use crate::websocket::deflate::Inflater;
use crate::websocket::{Opcode, frame, handshake};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

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
/// Every client says `ping` once in this time; the gateway waits 120 s.
const HEARTBEAT_NS: u64 = 50_000_000_000;
/// Pings of one turn.
const HEARTBEATS_PER_TURN_MAX: u32 = 256;
/// The handshakes are given up when none has got on for this long.
const STALLED_MS: u64 = 10_000;
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
    /// `Host` header.
    pub host: String,
    /// Path of the dialect, with the query.
    pub path: String,
    /// Which one: gpush or Centrifugo.
    pub dialect: DialectId,
    /// Connection i goes to address `target` + i % spread.
    pub spread: u32,
    /// Connection i comes from these in turn. None: from 127.0.0.1 and up if the target is a loopback address, else from
    /// where the kernel says.
    pub sources: Vec<IpAddr>,
    /// How many.
    pub connections: u32,
    /// Connection i subscribes to topic i % topics.
    pub topics: u32,
    /// Publishers whose messages will come.
    pub publishers: u32,
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
}

impl ClientsPlan {
    fn is_slow(&self, connection: u32) -> bool {
        let share = |n: u32| u64::from(n) * u64::from(self.slow) / u64::from(self.connections);
        share(connection + 1) > share(connection)
    }

    /// Where `connection` comes from, if that is not the kernel's choice, and where it goes: so that no pair of addresses runs
    /// out of ports.
    fn addresses(&self, connection: u32) -> (Option<SocketAddr>, SocketAddr) {
        let IpAddr::V4(first) = self.target.ip() else {
            return (self.source(connection), self.target);
        };
        let to = Ipv4Addr::from(u32::from(first).wrapping_add(connection % self.spread));
        let target = SocketAddr::from((to, self.target.port()));
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
    request: Arc<[u8]>,
    ping: Arc<[u8]>,
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
    odd: Vec<(u8, Vec<u8>)>, // Frames of the connection at hand that are no messages of ours.
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
        let slots_max = limit.min(plan.ring_slots_max).min(plan.connections).max(1);
        let rings = plan.connections.div_ceil(slots_max);
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
        let extensions = if plan.deflate { &[offer][..] } else { &[] };
        let mut request = Vec::new();
        handshake::write_request(&mut request, &plan.host, &plan.path, KEY, extensions);
        let connection =
            |i| Connection { carry: Vec::new(), state: State::Waiting, slow: plan.is_slow(i), open: false };
        Ok(Clients {
            rings,
            connections: (0..plan.connections).map(connection).collect(),
            inflater: Inflater::new(),
            inflated: Vec::new(),
            request: request.into(),
            ping: gpush::ping(),
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
            odd: Vec::new(),
            tally: Tally::new(plan.connections, plan.topics, plan.publishers),
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
        if self.under_way > 0 && now > self.progress.plus_ms(STALLED_MS) {
            let stuck: Vec<u32> =
                (0..self.next).filter(|&i| self.connections[i as usize].state.is_under_way()).collect();
            for i in stuck {
                let step = format!("no answer for 10 s, {:?}", self.connections[i as usize].state).to_lowercase();
                self.fail(i, step);
            }
        }
        self.next >= until && self.under_way == 0
    }

    /// Lets the kernel work, waits until `until` for something to happen if nothing has, and handles it; says `ping` when due.
    pub(crate) fn turn(&mut self, until: Time) {
        self.heartbeat();
        let mut busy = false;
        for ring in 1..self.rings.len() {
            self.rings[ring].enter(None);
            busy |= self.reap(ring);
        }
        self.rings[0].enter((!busy).then_some(until));
        self.reap(0);
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
        let mut lost = (0, 0);
        for i in self.readers() {
            let refused = |p| refused.get(&Stream::new(i % self.plan.topics, p).0).copied().unwrap_or(0);
            let refused: u64 = (0..self.plan.publishers).map(|p| u64::from(refused(p))).sum();
            let missing = self.tally.lost(i, sent).saturating_sub(refused);
            lost.0 += missing;
            lost.1 += u32::from(missing > 0);
        }
        lost
    }

    /// Connections that were live at some time: they should have everything.
    pub(crate) fn readers(&self) -> impl Iterator<Item = u32> {
        let reader = |c: &Connection| !c.slow && matches!(c.state, State::Live | State::Ended);
        (0..self.plan.connections).filter(move |&i| reader(&self.connections[i as usize]))
    }

    /// Ends all connections, for ten seconds and more if there are many; what they leave behind.
    pub(crate) fn close(mut self) -> (Counts, Tally) {
        self.leaving = true;
        let end = Time::now().plus_ms(10_000 + u64::from(self.open) * 1000 / CLOSES_PER_S);
        let mut left = 0;
        while (left < self.next || self.open > 0) && Time::now() < end {
            let until = self.next.min(left + CLOSES_PER_TURN_MAX);
            (left..until).for_each(|i| self.leave(i));
            left = until;
            let wait_ms = if left < self.next { 0 } else { 100 };
            self.turn(Time::now().plus_ms(wait_ms));
        }
        (self.counts, self.tally)
    }

    fn place(&self, connection: u32) -> (usize, u32) {
        let slots = self.rings[0].slots();
        ((connection / slots) as usize, connection % slots)
    }

    fn start(&mut self, i: u32) {
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
                self.connections[i as usize].state = State::Failed;
                count(&mut self.counts.failures, format!("socket: {e}"));
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
                Event::Connected(slot, Ok(())) => {
                    let request = Arc::clone(&self.request);
                    self.rings[ring].send(slot, request);
                    self.read_on(ring, slot, base + slot);
                    self.connections[(base + slot) as usize].state = State::Handshake;
                }
                Event::Connected(slot, Err(e)) => self.fail(base + slot, format!("connect: {e}")),
                Event::Ended(slot, 0) => self.ended(base + slot, "end of stream".into()),
                Event::Ended(slot, errno) => self.ended(base + slot, error(errno)),
                Event::Closed(slot) => {
                    self.connections[(base + slot) as usize].open = false;
                    self.open -= 1;
                }
            }
        }
        any
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
            let mut counting = self.tally.at(i, now.0);
            let (slow, slow_received) = (connection.slow, &mut self.counts.slow_received);
            let joins = self.plan.dialect == DialectId::Centrifugo;
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
                let mut take = |payload: &[u8], stamp: Option<Stamp>| match stamp {
                    Some(stamp) if first == TEXT && !slow => counting.message(stamp, payload.len()),
                    Some(_) if first == TEXT => *slow_received += 1,
                    _ => odd.push((first, payload.to_vec())),
                };
                if joins && first == TEXT {
                    payload.split(|b| *b == b'\n').for_each(|line| take(line, centrifugo::stamp(line)));
                } else {
                    take(payload, Stamp::read(payload));
                }
            });
            cut.map_err(|broken| broken.to_string())
        });
        self.rings[ring].give_back(buffer);
        if let Err(reason) = result {
            return self.ended(i, reason);
        }
        let connection = &mut self.connections[i as usize];
        if connection.state == State::Greeting && self.plan.dialect == DialectId::Centrifugo {
            // There the client speaks first.
            connection.state = State::Subscribing;
            let topic = Schedule::topic_name(i % self.plan.topics);
            self.rings[ring].send(slot, centrifugo::hello(&topic));
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

    /// A frame that is no message of ours: greeting, replies, control.
    #[cold]
    fn odd_frame(&mut self, ring: usize, slot: u32, i: u32, first: u8, payload: &[u8]) {
        let state = self.connections[i as usize].state;
        match (state, first) {
            (State::Ended | State::Failed, _) => {}
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
            (State::Subscribing, TEXT) if payload.starts_with(centrifugo::CONNECTED) => self.progress = Time::now(),
            (_, TEXT) if payload == centrifugo::PING => {
                // Left out while something else is in flight, which is its first message at most.
                if !self.rings[ring].is_sending(slot) {
                    self.rings[ring].send(slot, centrifugo::pong());
                }
            }
            (State::Greeting, TEXT) if payload.starts_with(gpush::GREETING) => {
                self.progress = Time::now();
                let topic = Schedule::topic_name(i % self.plan.topics);
                self.rings[ring].send(slot, gpush::subscribe(&topic));
                self.connections[i as usize].state = State::Subscribing;
            }
            (State::Subscribing, TEXT)
                if payload.starts_with(gpush::SUBSCRIBED) || payload.starts_with(centrifugo::SUBSCRIBED) =>
            {
                self.progress = Time::now();
                self.under_way -= 1;
                self.counts.subscribed += 1;
                let connection = &mut self.connections[i as usize];
                connection.state = if connection.slow { State::Slow } else { State::Live };
                self.slow += u32::from(connection.slow);
            }
            (State::Greeting | State::Subscribing, _) => {
                let text = String::from_utf8_lossy(payload);
                self.fail(i, format!("unexpected answer while {state:?}: {text:.100}").to_lowercase());
            }
            (_, TEXT) if payload == gpush::PONG => {}
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
        count(&mut self.counts.failures, reason);
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
            State::Ended | State::Failed => {} // A close frame, and then the end of the stream.
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
        if self.leaving || self.plan.dialect == DialectId::Centrifugo {
            return; // There the gateway asks.
        }
        let elapsed_ns = Time::now().since_ns(self.heartbeats_from);
        let due = (u128::from(elapsed_ns) * u128::from(self.plan.connections) / u128::from(HEARTBEAT_NS)) as u64;
        for _ in 0..due.saturating_sub(self.heartbeats).min(u64::from(HEARTBEATS_PER_TURN_MAX)) {
            let i = (self.heartbeats % u64::from(self.plan.connections)) as u32;
            self.heartbeats += 1;
            let (ring, slot) = self.place(i);
            let listening = matches!(self.connections[i as usize].state, State::Live | State::Slow);
            if listening && !self.rings[ring].is_sending(slot) {
                self.rings[ring].send(slot, Arc::clone(&self.ping));
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
            host: target.to_string(),
            path: "/ws".into(),
            dialect: DialectId::Gpush,
            spread: 1,
            sources: Vec::new(),
            connections,
            topics: 1,
            publishers: 1,
            slow: 0,
            deflate: false,
            ramp_per_s: 100_000,
            ring_slots_max: 16,
            buffers: 16,
            buffer_bytes: 1024,
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
