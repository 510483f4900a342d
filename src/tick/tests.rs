//! One reactor on a ring that does nothing by itself: the test says what completes, and when.

use super::life::Cause;
use super::*;
use crate::config::{Config, Networks, SlowPolicy};
use crate::dialect::DialectId;
use crate::frame::Frame;
use crate::ids::{ClientRef, Encoding, Epoch, Generation, InterestId, InterestRef, Offset, UserKey};
use crate::queue::{Answer, Claim, ClaimsHeard, Drain, UserFrame, Verdict, channel};
use crate::shard::pages::{Content, Page};
use crate::socket::BufferId;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

const HEAD: &[u8] = b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// What a reactor asked of its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Poll(Token),
    Recv(Token),
    Send(Token, usize),
    ShutdownWrite(Token),
    Close(Token, bool),
}

#[derive(Default)]
struct Script {
    now: Time,
    calls: Vec<Call>,
    sending: BTreeMap<Slot, Outgoing>,
    completions: VecDeque<Completion>,
    /// By buffer.
    bytes: BTreeMap<u16, Vec<u8>>,
    buffers_given_back: usize,
    slept_until: Option<Time>,
}

impl Ring for Script {
    fn now(&self) -> Time {
        self.now
    }
    fn poll_readable(&mut self, token: Token) {
        self.calls.push(Call::Poll(token));
    }
    fn recv(&mut self, token: Token) {
        self.calls.push(Call::Recv(token));
    }
    fn send(&mut self, token: Token, bytes: Outgoing) {
        self.calls.push(Call::Send(token, bytes.len()));
        assert!(self.sending.insert(token.slot(), bytes).is_none(), "two sends in flight");
    }
    fn shutdown_write(&mut self, token: Token) {
        self.calls.push(Call::ShutdownWrite(token));
    }
    fn close(&mut self, token: Token, poll: Option<Token>) {
        self.calls.push(Call::Close(token, poll.is_some()));
    }
    fn enter(&mut self, wait: Option<Time>) {
        self.slept_until = wait;
    }
    fn completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }
    fn received(&self, buffer: &BufferId, length: usize) -> &[u8] {
        &self.bytes[&buffer.0][..length]
    }
    fn give_back(&mut self, _buffer: BufferId) {
        self.buffers_given_back += 1;
    }
}

/// A reactor and the far ends of its queues.
struct World {
    reactor: Reactor<Script>,
    inbox: Sender<ToShard>,
    outbox: Receiver<FromShard>,
    arrivals: Sender<Arrival>,
    departures: Receiver<Departure>,
    claims: ClaimsHeard,
    hand_overs: u64,
}

impl World {
    fn new(adjust: impl FnOnce(&mut ShardSettings)) -> World {
        let bell = Bell::silent();
        let (inbox, inbox_out) = channel(1024, 1 << 30, bell.clone());
        let (outbox_in, outbox) = channel(1024, 0, Bell::silent());
        let (arrivals, arrivals_out) = channel(2048, 0, bell.clone());
        let (departures_in, departures) = channel(2048, 0, Bell::silent());
        let (claims, claims_heard) = crate::queue::claims(bell.clone(), Bell::silent());
        let ends = Endpoints {
            inbox: inbox_out,
            outbox: outbox_in,
            arrivals: arrivals_out,
            departures: departures_in,
            claims,
            bell,
            lane: Lane::default(),
        };
        let mut settings = ShardSettings::new(&Config::default(), 1, 1, 1024);
        adjust(&mut settings);
        let ring = Script { now: Time(1_000_000_000), ..Script::default() };
        let reactor = Reactor::new(ShardId(0), ring, ends, settings, Arc::default());
        World { reactor, inbox, outbox, arrivals, departures, claims: claims_heard, hand_overs: 0 }
    }

    /// One turn, and what it asked of the ring.
    fn turn(&mut self) -> Vec<Call> {
        assert_eq!(self.reactor.turn(), Turn::Again);
        std::mem::take(&mut self.reactor.ring.calls)
    }

    fn pass_ms(&mut self, ms: u64) {
        self.reactor.ring.now = self.reactor.ring.now.plus_ms(ms);
    }

    fn complete(&mut self, token: Token, result: i32) {
        let returned = (token.kind() == Kind::Send).then(|| {
            let bytes = self.reactor.ring.sending.remove(&token.slot());
            bytes.expect("a send is in flight")
        });
        let more = token.kind() == Kind::Poll && result >= 0;
        let completion = Completion { token, result, more, buffer: None, nonempty: false, returned };
        self.reactor.ring.completions.push_back(completion);
    }

    /// The receive `token` brought `bytes`.
    fn receive(&mut self, token: Token, bytes: &[u8]) {
        let ring = &mut self.reactor.ring;
        let id = ring.bytes.len() as u16;
        ring.bytes.insert(id, bytes.to_vec());
        let (result, buffer) = (bytes.len() as i32, Some(BufferId(id)));
        ring.completions.push_back(Completion { token, result, more: false, buffer, nonempty: false, returned: None });
    }

    /// A socket's two halves; the connection's token of `kind` then is `token(kind, slot, generation)`.
    fn arrive(&mut self, slot: u32) {
        self.hand_overs += 1;
        let (token, accepted) = (self.hand_overs, self.reactor.ring.now);
        self.complete(Token::arrival(token), slot as i32);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, slot as u16));
        self.arrivals.push(Arrival { token, address, listener: 0, accepted }, 0).unwrap();
        self.turn(); // The address is looked at before the ring.
        self.turn();
    }

    /// A connection that has had its handshake.
    fn open(&mut self, slot: u32) {
        self.arrive(slot);
        self.complete(token(Kind::Poll, slot, 0), i32::from(libc::POLLIN));
        self.turn();
        self.receive(token(Kind::Recv, slot, 0), HEAD);
        self.turn();
        self.acknowledge();
        self.sent(slot);
        self.turn();
        assert_eq!(self.connection(slot).phase, Phase::Open);
    }

    /// Every wish to subscribe is answered.
    fn acknowledge(&mut self) {
        while let Some(message) = self.outbox.pop() {
            let FromShard::Subscribe { interest, .. } = message else { panic!("{message:?}") };
            self.inbox.push(ToShard::Subscribed { interest, epoch: Epoch(1), offset: Offset(0) }, 0).unwrap();
            self.turn();
        }
    }

    /// The send in flight is done.
    fn sent(&mut self, slot: u32) {
        let length = self.reactor.ring.sending[&Slot(slot)].len();
        self.complete(token(Kind::Send, slot, 0), length as i32);
    }

    fn connection(&self, slot: u32) -> &Connection {
        &self.reactor.connections[slot as usize]
    }

    /// What every subscriber gets: the broadcast of gpush is a shard's first interest.
    fn broadcast(&mut self, offset: u64, bytes: usize) {
        let interest = InterestRef { id: InterestId(0), generation: 1 };
        let frame: Frame = vec![b'x'; bytes].into();
        let (offset, prev) = (Offset(offset), Offset(offset - 1));
        let frame = ToShard::Frame { interest, offset, prev, frame, admitted: self.reactor.ring.now };
        self.inbox.push(frame, bytes).unwrap();
    }
}

impl World {
    /// The connection is a user who hears `t` privately.
    fn log_in(&mut self, slot: u32) {
        self.reactor.users.log_in(Slot(slot), "ann".into(), UserKey(7));
        self.reactor.users.subscribe(Slot(slot), "t");
    }

    /// What that user gets.
    fn push_to_user(&mut self, bytes: usize) {
        let frame = UserFrame {
            user: UserKey(7),
            uid: "ann".into(),
            topic: "t".into(),
            encoding: Encoding(0),
            offset: Offset(1),
            frame: vec![b'u'; bytes].into(),
            admitted: self.reactor.ring.now,
        };
        self.inbox.push(ToShard::User(frame.into()), bytes).unwrap();
    }
}

fn token(kind: Kind, slot: u32, generation: u32) -> Token {
    Token::new(kind, Generation(generation), Slot(slot))
}

#[test]
fn a_slot_is_not_closed_under_a_shutdown_that_may_yet_meet_its_next_tenant() {
    let mut world = World::new(|_| {});
    world.arrive(3);
    world.complete(token(Kind::Poll, 3, 0), 1);
    assert!(world.turn().contains(&Call::Recv(token(Kind::Recv, 3, 0))));
    world.receive(token(Kind::Recv, 3, 0), b"GET / HTTP/1.1\r\n\r\n");
    world.turn();
    world.sent(3);
    let calls = world.turn();
    assert!(calls.contains(&Call::ShutdownWrite(token(Kind::ShutdownWrite, 3, 0))), "{calls:?}");
    world.complete(token(Kind::Recv, 3, 0), -libc::ECONNRESET);
    assert_eq!(world.turn(), [], "cut, and the shutdown still on its way");
    assert_eq!(world.connection(3).phase, Phase::Cut);
    world.complete(token(Kind::ShutdownWrite, 3, 0), -libc::ENOTCONN);
    assert_eq!(world.turn(), [Call::Close(token(Kind::Close, 3, 0), true)]);
    for (kind, result) in
        [(Kind::Close, 0), (Kind::Cancel, 0), (Kind::Shutdown, -libc::ENOTCONN), (Kind::Poll, -libc::ECANCELED)]
    {
        assert_eq!(world.reactor.audit().connections, 1, "a completion is still to come");
        world.complete(token(kind, 3, 0), result);
        world.turn();
    }
    assert_eq!(world.reactor.audit(), Audit::default());
    assert!(world.departures.pop().is_some());
}

#[test]
fn a_socket_in_a_slot_whose_last_tenant_has_completions_to_come_waits_for_them() {
    let mut world = World::new(|_| {});
    world.open(0);
    world.complete(token(Kind::Poll, 0, 0), 1);
    world.turn();
    world.complete(token(Kind::Recv, 0, 0), 0);
    assert_eq!(world.turn(), [Call::Close(token(Kind::Close, 0, 0), true)]);
    world.complete(token(Kind::Close, 0, 0), 0);
    world.arrive(0);
    assert_eq!((world.reactor.audit().connections, world.reactor.audit().arrivals_unpaired), (1, 2));
    world.complete(token(Kind::Shutdown, 0, 0), 0);
    world.complete(token(Kind::Cancel, 0, 0), 0);
    assert_eq!(world.turn(), []);
    world.complete(token(Kind::Poll, 0, 0), -libc::ECANCELED);
    assert_eq!(world.turn(), [Call::Poll(token(Kind::Poll, 0, 1))], "the next tenant's");
    let audit = world.reactor.audit();
    assert_eq!((audit.connections, audit.in_flight, audit.arrivals_unpaired), (1, 1, 0));
}

#[test]
fn a_late_completion_finds_its_slot_with_another_tenant_and_changes_nothing() {
    let mut world = World::new(|_| {});
    world.arrive(0);
    world.complete(token(Kind::Poll, 0, 0), 1);
    world.turn();
    world.complete(token(Kind::Recv, 0, 0), 0);
    world.turn();
    for (kind, result) in [(Kind::Cancel, 0), (Kind::Shutdown, 0), (Kind::Close, 0), (Kind::Poll, -libc::ECANCELED)] {
        world.complete(token(kind, 0, 0), result);
    }
    world.turn();
    world.arrive(0);
    assert_eq!(world.connection(0).generation, Generation(1));
    let (before, given_back) = (world.reactor.audit(), world.reactor.ring.buffers_given_back);
    world.receive(token(Kind::Recv, 0, 0), HEAD);
    world.complete(token(Kind::Poll, 0, 0), 1);
    world.complete(token(Kind::Close, 0, 0), 0);
    assert_eq!(world.turn(), []);
    assert_eq!((world.reactor.audit(), world.connection(0).phase), (before, Phase::Handshake));
    assert_eq!(world.reactor.ring.buffers_given_back, given_back + 1, "what the kernel had borrowed");
}

#[test]
fn who_found_no_buffer_goes_before_who_comes_later() {
    let mut world = World::new(|_| {});
    (0..3).for_each(|slot| world.arrive(slot));
    (0..2).for_each(|slot| world.complete(token(Kind::Poll, slot, 0), 1));
    world.turn();
    (0..2).for_each(|slot| world.complete(token(Kind::Recv, slot, 0), -libc::ENOBUFS));
    world.turn();
    assert_eq!(world.reactor.ring.slept_until, None, "who starves is not slept over");
    world.complete(token(Kind::Poll, 2, 0), 1);
    assert_eq!(world.turn(), [0, 1, 2].map(|slot| Call::Recv(token(Kind::Recv, slot, 0))));
}

#[test]
fn clients_that_keep_asking_leave_the_round_its_share_of_each_enter() {
    let mut world = World::new(|_| {});
    const CLIENTS: u32 = 600;
    const ASKING: u32 = 400;
    (0..CLIENTS).for_each(|slot| world.open(slot));
    world.pass_ms(10);
    world.broadcast(1, 100);
    (0..ASKING).for_each(|slot| world.complete(token(Kind::Poll, slot, 0), 1));
    let sends = |calls: &[Call]| calls.iter().filter(|c| matches!(c, Call::Send(..))).count();
    assert_eq!(sends(&world.turn()), 256);
    let ping: &[u8] = &[0x89, 0x80, 0, 0, 0, 0];
    let busy: Vec<u32> = world.reactor.ring.sending.keys().map(|s| s.0).collect();
    (0..ASKING).for_each(|slot| world.receive(token(Kind::Recv, slot, 0), ping));
    busy.into_iter().for_each(|slot| world.sent(slot));
    let calls = world.turn();
    let pushes = calls.iter().filter(|c| matches!(c, Call::Send(_, 100..))).count();
    assert_eq!((sends(&calls), pushes), (256, 128), "half for 400 pongs, half for those who only listen");
}

#[test]
fn a_storm_of_arrivals_leaves_a_round_its_share_of_each_turn() {
    let mut world = World::new(|_| {});
    const CLIENTS: u32 = 600;
    const STORM: u32 = 400;
    (0..CLIENTS).for_each(|slot| world.open(slot));
    world.pass_ms(10);
    world.broadcast(1, 100);
    world.turn();
    assert!(world.reactor.round.is_active());
    for slot in CLIENTS..CLIENTS + STORM {
        world.hand_overs += 1;
        let (token, accepted) = (world.hand_overs, world.reactor.ring.now);
        world.complete(Token::arrival(token), slot as i32);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, slot as u16));
        world.arrivals.push(Arrival { token, address, listener: 0, accepted }, 0).unwrap();
    }
    let polls = |calls: &[Call]| calls.iter().filter(|c| matches!(c, Call::Poll(..))).count();
    world.turn(); // The halves that come through the ring are there now.
    let calls = world.turn();
    let sends = calls.iter().filter(|c| matches!(c, Call::Send(..))).count();
    assert_eq!((polls(&calls), sends), (8, 88), "what is left of the round is 600 - 2 x 256");
    assert!(!world.reactor.round.is_active());
    assert_eq!(polls(&world.turn()), 128);
    while world.reactor.ring.slept_until.is_none() {
        world.turn();
    }
    let audit = world.reactor.audit();
    assert_eq!((audit.connections, audit.arrivals_unpaired), ((CLIENTS + STORM) as usize, 0));
}

#[test]
fn memory_above_its_bound_comes_back_although_nothing_more_is_published() {
    let mut world = World::new(|s| (s.owed_bytes_max, s.owed_bytes_share) = (5000, 5000));
    (0..2).for_each(|slot| world.open(slot));
    for (offset, size) in [(1, 3000), (2, 4000)] {
        world.pass_ms(10);
        world.broadcast(offset, size);
        world.turn();
        if offset == 1 {
            // Only client 1 reads.
            world.sent(1);
        }
        world.turn();
    }
    world.sent(1);
    world.turn();
    assert_eq!(world.connection(0).phase, Phase::Cut, "it held the oldest buffer");
    assert_eq!(world.connection(1).phase, Phase::Open);
    let metrics = world.reactor.metrics();
    assert_eq!((metrics.closes_slow_owed.get(), metrics.drops_owed_full.get()), (1, 1));
}

#[test]
fn what_others_of_the_lane_owe_counts_for_who_owes_more_than_its_share() {
    for (share, cut) in [(2000, true), (5000, false)] {
        let mut world = World::new(|s| (s.owed_bytes_max, s.owed_bytes_share) = (6000, share));
        let mut others = world.reactor.ends.lane.owed_bytes();
        world.open(0);
        world.pass_ms(10);
        world.broadcast(1, 3000);
        (0..2).for_each(|_| drop(world.turn()));
        assert_eq!(world.connection(0).phase, Phase::Open);
        assert!((3000..6000).contains(&others.in_lane()), "{}", others.in_lane());
        others.set(4000);
        world.turn();
        assert_eq!(world.connection(0).phase == Phase::Cut, cut, "share {share}");
        assert_eq!(others.others() == 0, cut, "what was cut for it is not counted any more");
    }
}

#[test]
fn questions_and_incomplete_messages_of_the_lane_leave_no_room_for_more() {
    let mut world = World::new(|s| (s.questions_max, s.partial_bytes_max) = (4, 10_000));
    (0..3).for_each(|slot| world.open(slot));
    let mut others = world.reactor.ends.lane.questions();
    others.set(4);
    world.say(0, &text(LOGIN));
    assert_eq!(world.reactor.metrics().questions_refused.get(), 1);
    others.set(3);
    world.say(0, &text(LOGIN));
    world.asked();
    assert_eq!((world.reactor.metrics().questions_refused.get(), others.in_lane()), (1, 4));

    let mut others = world.reactor.ends.lane.partial_bytes();
    let start_of_a_message =
        [&[0x01, 0xfe, 1000u16.to_be_bytes()[0], 1000u16.to_be_bytes()[1], 0, 0, 0, 0][..], &[b'x'; 500]].concat();
    world.say(1, &start_of_a_message);
    let holds = others.in_lane();
    assert!((500..10_000).contains(&holds) && world.connection(1).phase == Phase::Open, "{holds}");
    others.set(10_000);
    world.say(2, &start_of_a_message);
    assert_ne!(world.connection(2).phase, Phase::Open);
    assert_eq!((world.reactor.metrics().closes_partial.get(), others.others()), (1, holds));
}

#[test]
fn what_was_collected_for_who_leaves_is_counted_as_not_delivered() {
    let mut world = World::new(|_| {});
    (0..300).for_each(|slot| world.open(slot));
    world.pass_ms(10);
    // A round of 300 takes two turns. In between, when two more messages wait for the next round, one leaves that has been
    // served and one that has not.
    (1..=3).for_each(|offset| world.broadcast(offset, 100));
    [10, 299].into_iter().for_each(|slot| world.complete(token(Kind::Poll, slot, 0), 1));
    world.turn();
    assert!(world.connection(10).sending && !world.connection(299).sending);
    (4..=5).for_each(|offset| world.broadcast(offset, 100));
    [10, 299].into_iter().for_each(|slot| world.complete(token(Kind::Recv, slot, 0), -libc::ECONNRESET));
    world.turn();
    let metrics = world.reactor.metrics();
    assert_eq!((metrics.deliveries.get(), metrics.drops_left.get()), (3 * 299, 2 + 5));
}

#[test]
fn a_shard_hears_on_after_the_only_one_whom_a_full_batch_was_for_has_left() {
    let mut world = World::new(|s| s.pending_bytes_max = 10_000);
    (0..2).for_each(|slot| world.open(slot));
    world.log_in(0);
    world.complete(token(Kind::Poll, 0, 0), 1);
    world.turn();
    (0..3).for_each(|_| world.push_to_user(3000));
    world.complete(token(Kind::Recv, 0, 0), -libc::ECONNRESET);
    world.turn();
    assert_eq!(world.connection(0).phase, Phase::Cut);
    assert_eq!(world.reactor.metrics().drops_left.get(), 2, "what fits the batch, and no more");
    world.pass_ms(10);
    world.broadcast(1, 100);
    assert_eq!(world.turn(), [Call::Send(token(Kind::Send, 1, 0), 100)], "to the other one");
    assert!(world.inbox.is_empty());
}

/// Owes `slot` 20,000 bytes but a few, of three messages of which the first is on its way; then comes a round of two batches.
fn two_batches_for_who_is_at_its_bound(world: &mut World) {
    for (offset, bytes) in [(1, 3000), (2, 9000), (3, 8000)] {
        world.pass_ms(10);
        world.broadcast(offset, bytes);
        world.turn();
    }
    world.pass_ms(10);
    (0..2).for_each(|_| world.push_to_user(4000));
}

#[test]
fn whom_the_policy_closes_in_the_midst_of_a_round_loses_nothing_uncounted() {
    let mut world = World::new(|s| (s.pending_bytes_max, s.policy) = (20_000, SlowPolicy::Disconnect));
    world.open(0);
    world.log_in(0);
    two_batches_for_who_is_at_its_bound(&mut world);
    assert_eq!(world.reactor.metrics().deliveries.get(), 1);
    world.broadcast(4, 3000);
    world.turn();
    assert_eq!(world.connection(0).phase, Phase::Flushing);
    let metrics = world.reactor.metrics();
    assert_eq!((metrics.deliveries.get(), metrics.closes_slow_pending.get()), (1, 1));
    assert_eq!(metrics.drops_disconnected.get(), 2 + 3, "what it was owed, and all of the round");
}

#[test]
fn nothing_is_sent_on_a_connection_that_its_own_round_has_cut() {
    let mut world = World::new(|s| {
        (s.pending_bytes_max, s.policy) = (20_000, SlowPolicy::Disconnect);
        (s.send_bytes_max, s.sends_per_enter) = (1000, 2);
    });
    (0..2).for_each(|slot| world.open(slot));
    world.log_in(0);
    two_batches_for_who_is_at_its_bound(&mut world);
    // Both may send again, in the midst of a frame; client 1 takes the turn's share of those, and client 0 waits behind it.
    [1, 0].into_iter().for_each(|slot| world.sent(slot));
    let calls = world.turn();
    assert_eq!(world.connection(0).phase, Phase::Cut);
    assert!(!calls.iter().any(|call| matches!(call, Call::Send(to, _) if to.slot() == Slot(0))), "{calls:?}");
    let metrics = world.reactor.metrics();
    assert_eq!((metrics.closes_slow_pending.get(), metrics.drops_disconnected.get()), (1, 3 + 2));
}

#[test]
fn a_drain_ends_although_the_address_of_a_socket_never_comes() {
    let mut world = World::new(|_| {});
    world.complete(Token::arrival(7), 0);
    world.turn();
    let order = Drain { close_code: 1001, window_ms: 10, rate_per_s: 1000, deadline_ms: 500 };
    world.inbox.push(ToShard::Drain(order), 0).unwrap();
    world.turn();
    world.pass_ms(400);
    world.turn();
    assert!(world.reactor.ring.slept_until.is_some(), "nothing to do but wait");
    world.pass_ms(101);
    assert_eq!(world.reactor.turn(), Turn::Drained);
    assert!(matches!(world.outbox.pop(), Some(FromShard::Drained)));
}

#[test]
fn a_close_frame_waits_for_the_send_in_flight_and_the_cut_for_the_peers_end() {
    let mut world = World::new(|s| s.slow_deadline_ms = 1000);
    world.open(0);
    world.pass_ms(10);
    world.broadcast(1, 100);
    assert!(world.turn().contains(&Call::Send(token(Kind::Send, 0, 0), 100)));
    world.turn();
    assert_eq!(world.reactor.audit().slow, 1);
    world.pass_ms(1200);
    world.broadcast(2, 100);
    world.turn();
    assert_eq!(world.connection(0).phase, Phase::Flushing, "no progress");
    world.sent(0);
    let calls = world.turn();
    assert!(matches!(calls[..], [Call::Send(_, 2..20)]), "the close frame, not the second message: {calls:?}");
    world.sent(0);
    assert_eq!(world.turn(), [Call::ShutdownWrite(token(Kind::ShutdownWrite, 0, 0))]);
    world.complete(token(Kind::ShutdownWrite, 0, 0), 0);
    assert_eq!(world.turn(), []);
    world.complete(token(Kind::Recv, 0, 0), 0);
    assert_eq!(world.turn(), [Call::Close(token(Kind::Close, 0, 0), true)]);
    let metrics = world.reactor.metrics();
    assert_eq!((metrics.closes_slow_deadline.get(), metrics.closes_by_peer.get()), (1, 0));
    assert_eq!(world.reactor.audit().slow, 0);
}

#[test]
fn whoever_never_answers_a_close_is_cut_at_its_deadline() {
    let mut world = World::new(|s| s.close_deadline_ms = 1000);
    world.open(0);
    let close: &[u8] = &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];
    world.complete(token(Kind::Poll, 0, 0), 1);
    world.turn();
    world.receive(token(Kind::Recv, 0, 0), close);
    world.turn();
    assert_eq!(world.connection(0).phase, Phase::Flushing);
    // Its answer never leaves.
    world.pass_ms(1300);
    let calls = world.turn();
    assert!(calls.contains(&Call::Close(token(Kind::Close, 0, 0), true)), "{calls:?}");
    assert_eq!(world.reactor.metrics().closes_cut.get(), 1);
}

/// Behind a proxy at 127.0.0.1, as all of these tests' clients are, with a cap per address.
fn proxied(proxy_protocol: bool) -> World {
    World::new(|settings| {
        let front = &mut settings.fronts[0];
        front.trusted = Networks::new(&["127.0.0.0/8".to_owned()]);
        front.proxy_protocol = proxy_protocol;
        settings.addresses_capped = true;
    })
}

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

impl World {
    fn claim(&mut self) -> Option<Claim> {
        self.claims.0.pop()
    }

    fn verdict(&mut self, claim: Claim, admitted: bool) {
        let Claim::Take { client, address } = claim else { panic!("{claim:?}") };
        self.claims.1.push(Verdict { client, address, admitted }, 0).unwrap();
    }

    /// `bytes` come, in a receive that the shard asks for.
    fn say(&mut self, slot: u32, bytes: &[u8]) {
        self.complete(token(Kind::Poll, slot, 0), i32::from(libc::POLLIN));
        self.turn();
        self.receive(token(Kind::Recv, slot, 0), bytes);
        self.turn();
    }

    /// It is cut, and the last completions come.
    fn gone(&mut self, slot: u32) {
        self.reactor.cut(Slot(slot), Cause::ByPeer);
        let connection = self.connection(slot);
        let (receiving, shutting, sending) = (connection.receiving, connection.shutting, connection.sending);
        let last = [(receiving, Kind::Recv), (shutting, Kind::ShutdownWrite), (sending, Kind::Send)];
        for (_, kind) in last.into_iter().filter(|(in_flight, _)| *in_flight) {
            self.complete(token(kind, slot, 0), -libc::ECANCELED);
        }
        self.turn();
        for kind in [Kind::Close, Kind::Cancel, Kind::Shutdown, Kind::Poll] {
            self.complete(token(kind, slot, 0), -libc::ECANCELED);
        }
        self.turn();
        assert_eq!(self.connection(slot).phase, Phase::Free);
    }
}

fn head_for(client: &str) -> Vec<u8> {
    let text = std::str::from_utf8(HEAD).unwrap();
    text.replacen("\r\n\r\n", &format!("\r\nX-Forwarded-For: {client}\r\n\r\n"), 1).into_bytes()
}

#[test]
fn a_client_behind_a_proxy_waits_until_its_own_address_is_counted_and_is_reported_under_it() {
    let mut world = proxied(false);
    world.arrive(0);
    world.say(0, &head_for("6.6.6.6, 192.0.2.1"));
    let claim = world.claim().unwrap();
    assert!(matches!(claim, Claim::Take { address: CLIENT, .. }), "{claim:?}");
    assert_eq!((world.connection(0).phase, world.reactor.ring.sending.len()), (Phase::Asking, 0));
    world.verdict(claim, true);
    world.turn();
    assert_eq!(world.connection(0).phase, Phase::Joining, "the handshake goes on");
    world.gone(0);
    assert_eq!(world.departures.pop().unwrap().address, Some(CLIENT));
    assert_eq!(world.claim(), None);
}

#[test]
fn over_the_cap_a_client_behind_a_proxy_is_told_503_and_counts_for_nobody() {
    let mut world = proxied(false);
    world.arrive(0);
    world.say(0, &head_for("192.0.2.1"));
    let claim = world.claim().unwrap();
    world.verdict(claim, false);
    world.turn();
    let Outgoing::Private(answer) = &world.reactor.ring.sending[&Slot(0)] else { panic!() };
    let answer = String::from_utf8_lossy(answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
    world.sent(0);
    world.turn();
    world.gone(0);
    assert_eq!(world.departures.pop().unwrap().address, None);
    assert_eq!(world.reactor.metrics.handshakes_rejected.get(), 1);
}

#[test]
fn a_place_granted_to_who_is_gone_is_given_back() {
    let mut world = proxied(false);
    world.arrive(0);
    world.say(0, &head_for("192.0.2.1"));
    let claim = world.claim().unwrap();
    world.gone(0);
    assert_eq!(world.departures.pop().unwrap().address, None);
    world.verdict(claim, true);
    world.turn();
    assert_eq!(world.claim(), Some(Claim::Release { address: CLIENT }));
    assert_eq!(world.reactor.claims.under_way(), 0);
}

#[test]
fn claims_are_bounded_and_the_rest_waits_for_verdicts() {
    const ALL: u32 = crate::queue::CLAIMS_UNDER_WAY_MAX as u32 + 10;
    let mut world = World::new(|settings| {
        settings.fronts[0].trusted = Networks::new(&["127.0.0.0/8".to_owned()]);
        settings.addresses_capped = true;
        settings.slots = ALL as usize;
    });
    for slot in 0..ALL {
        world.arrive(slot);
        world.say(slot, &head_for("192.0.2.1"));
    }
    let first: Vec<Claim> = std::iter::from_fn(|| world.claim()).collect();
    assert_eq!(first.len(), crate::queue::CLAIMS_UNDER_WAY_MAX);
    first.into_iter().for_each(|claim| world.verdict(claim, false));
    world.turn();
    world.turn();
    assert_eq!(std::iter::from_fn(|| world.claim()).count(), 10);
}

#[test]
fn the_proxys_own_connections_and_those_of_a_listener_without_caps_ask_nobody() {
    let mut world = proxied(false);
    world.arrive(0);
    world.say(0, HEAD);
    assert_eq!((world.connection(0).phase, world.claim()), (Phase::Joining, None));
    world.gone(0);
    assert_eq!(world.departures.pop().unwrap().address, None, "nobody counts them");
    let mut world = proxied(false);
    world.reactor.settings.addresses_capped = false;
    world.arrive(0);
    world.say(0, &head_for("192.0.2.1"));
    assert_eq!((world.connection(0).phase, world.claim()), (Phase::Joining, None));
    assert_eq!(world.reactor.visitors[0].address.ip(), CLIENT);
}

#[test]
fn who_is_no_proxy_is_not_believed_and_counts_as_itself() {
    let mut world = World::new(|settings| settings.addresses_capped = true);
    world.arrive(0);
    world.say(0, &head_for("192.0.2.1"));
    assert_eq!((world.connection(0).phase, world.claim()), (Phase::Joining, None));
    world.gone(0);
    assert_eq!(world.departures.pop().unwrap().address, Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
}

/// Names `CLIENT`, port 40000.
const PROXY_HEADER: &[u8; 28] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\x7f\0\0\x01\x9c\x40\0\x50";

#[test]
fn a_proxy_header_may_come_in_pieces_and_with_the_request() {
    for cut in [1, 12, 20, PROXY_HEADER.len() - 1] {
        let mut world = proxied(true);
        world.arrive(0);
        let all = [PROXY_HEADER, HEAD].concat();
        world.say(0, &all[..cut]);
        assert_eq!((world.connection(0).phase, world.claim()), (Phase::Handshake, None), "cut at {cut}");
        world.say(0, &all[cut..]);
        let claim = world.claim().unwrap();
        assert!(matches!(claim, Claim::Take { address: CLIENT, .. }), "{claim:?}");
        world.verdict(claim, true);
        world.turn();
        assert_eq!(world.connection(0).phase, Phase::Joining);
        assert_eq!(world.reactor.visitors[0].address, "192.0.2.1:40000".parse().unwrap());
    }
}

#[test]
fn whom_a_proxy_header_names_counts_before_its_head_ends_and_goes_on_when_admitted() {
    for begun in [0, 10] {
        let mut world = proxied(true);
        world.arrive(0);
        world.say(0, &[PROXY_HEADER, &HEAD[..begun]].concat());
        let claim = world.claim().unwrap();
        assert!(matches!(claim, Claim::Take { address: CLIENT, .. }), "{claim:?}");
        // More of the head is here before the verdict, and nothing says so a second time.
        world.complete(token(Kind::Poll, 0, 0), i32::from(libc::POLLIN));
        assert_eq!((world.turn(), world.connection(0).phase), (vec![], Phase::Asking));
        world.verdict(claim, true);
        assert_eq!(
            (world.turn(), world.connection(0).phase),
            (vec![Call::Recv(token(Kind::Recv, 0, 0))], Phase::Handshake)
        );
        world.receive(token(Kind::Recv, 0, 0), &HEAD[begun..]);
        world.turn();
        assert_eq!((world.connection(0).phase, world.claim()), (Phase::Joining, None), "one claim a client");
        world.gone(0);
        assert_eq!(world.departures.pop().unwrap().address, Some(CLIENT));
    }
}

#[test]
fn whom_a_proxy_header_names_is_refused_before_its_head_and_waits_no_longer_than_a_handshake() {
    let mut world = proxied(true);
    (0..2).for_each(|slot| world.arrive(slot));
    (0..2).for_each(|slot| world.say(slot, PROXY_HEADER));
    let claim = world.claim().unwrap();
    world.verdict(claim, false);
    world.turn();
    let Outgoing::Private(answer) = &world.reactor.ring.sending[&Slot(0)] else { panic!() };
    assert!(answer.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(answer));
    world.pass_ms(world.reactor.settings.handshake_deadline_ms + 1000);
    world.turn();
    assert_eq!(world.connection(1).phase, Phase::Cut, "its verdict never came");
}

#[test]
fn a_proxy_that_sends_no_header_where_one_is_due_is_cut_and_counted() {
    let mut world = proxied(true);
    world.arrive(0);
    world.say(0, HEAD);
    assert_eq!(world.connection(0).phase, Phase::Cut);
    assert!(world.reactor.ring.sending.is_empty(), "without an answer");
    assert_eq!(world.reactor.metrics.proxy_headers_refused.get(), 1);
}

/// A text message of a client, masked by zeros.
fn text(payload: &str) -> Vec<u8> {
    let long = (payload.len() as u16).to_be_bytes();
    let length =
        if payload.len() < 126 { vec![0x80 | payload.len() as u8] } else { vec![0x80 | 126, long[0], long[1]] };
    [&[0x81][..], &length, &[0; 4], payload.as_bytes()].concat()
}

const LOGIN: &str = r#"{"code":3,"data":"ann"}"#;
const HANG_UP: i32 = (libc::POLLIN | libc::POLLRDHUP) as i32;

impl World {
    fn asked(&mut self) -> ClientRef {
        let message = self.outbox.pop();
        let Some(FromShard::Ask { client, .. }) = message else { panic!("{message:?}") };
        client
    }

    fn withdrawn(&mut self) -> ClientRef {
        let message = self.outbox.pop();
        let Some(FromShard::Withdraw { client }) = message else { panic!("{message:?}") };
        client
    }

    fn answer(&mut self, client: ClientRef, answer: Answer) {
        self.inbox.push(ToShard::Answer { client, answer: Box::new(answer) }, 0).unwrap();
        self.turn();
    }
}

#[test]
fn who_leaves_while_its_login_is_out_is_cut_and_makes_room_for_another_login() {
    for event in [HANG_UP, i32::from(libc::POLLHUP), i32::from(libc::POLLERR)] {
        let mut world = World::new(|s| s.questions_max = 1);
        (0..2).for_each(|slot| world.open(slot));
        world.say(0, &text(LOGIN));
        let first = world.asked();
        world.complete(token(Kind::Poll, 0, 0), event);
        let calls = world.turn();
        assert!(calls.contains(&Call::Close(token(Kind::Close, 0, 0), true)), "{calls:?}");
        assert_eq!(world.withdrawn(), first);
        world.answer(first, Answer::LoginRefused);
        assert_eq!(world.reactor.metrics().logins_refused.get(), 0, "nobody's");
        world.say(1, &text(LOGIN));
        assert_eq!(world.asked().slot, Slot(1));
        assert_eq!(world.reactor.metrics().questions_refused.get(), 0);
    }
}

#[test]
fn who_will_say_no_more_when_its_login_is_read_asks_nothing() {
    let mut world = World::new(|s| s.token_at_connect = true);
    let head = std::str::from_utf8(HEAD).unwrap().replacen("/ws", "/ws?token=ann", 1);
    for (slot, event) in [(0, i32::from(libc::POLLIN)), (1, HANG_UP)] {
        world.arrive(slot);
        world.complete(token(Kind::Poll, slot, 0), event);
        world.turn();
        world.receive(token(Kind::Recv, slot, 0), head.as_bytes());
        world.turn();
    }
    assert_eq!((world.asked().slot, world.connection(0).phase), (Slot(0), Phase::Asking));
    assert_eq!((world.outbox.pop().is_none(), world.connection(1).phase), (true, Phase::Cut));
    world.complete(token(Kind::Poll, 0, 0), HANG_UP);
    world.turn();
    assert_eq!((world.withdrawn().slot, world.connection(0).phase), (Slot(0), Phase::Cut));
    assert_eq!(world.reactor.metrics().handshakes_abandoned.get(), 2);
}

#[test]
fn who_asks_for_a_page_may_shut_its_side_and_is_cut_when_it_is_gone() {
    let mut world = World::new(|_| {});
    for slot in 0..2 {
        world.arrive(slot);
        world.say(slot, b"GET /stats HTTP/1.1\r\n\r\n");
        world.complete(token(Kind::Poll, slot, 0), HANG_UP);
        world.turn();
        assert_eq!(world.connection(slot).phase, Phase::Asking, "it may still read");
    }
    let clients = [world.asked(), world.asked()];
    let page = Answer::Page { status: 200, content_type: "text/plain", body: "x".into() };
    world.answer(clients[0], page);
    assert_eq!(world.connection(0).phase, Phase::Flushing);
    world.complete(token(Kind::Poll, 1, 0), i32::from(libc::POLLHUP));
    world.turn();
    assert_eq!((world.withdrawn(), world.connection(1).phase), (clients[1], Phase::Cut));
}

#[test]
fn who_is_gone_while_the_accepting_core_is_asked_is_cut_and_gives_its_place_back() {
    let mut world = proxied(false);
    world.arrive(0);
    world.say(0, &head_for("192.0.2.1"));
    let claim = world.claim().unwrap();
    world.complete(token(Kind::Poll, 0, 0), i32::from(libc::POLLHUP));
    world.turn();
    assert_eq!(world.connection(0).phase, Phase::Cut);
    world.verdict(claim, true);
    world.turn();
    assert_eq!(world.claim(), Some(Claim::Release { address: CLIENT }));
}

#[test]
fn each_command_of_a_message_counts_and_all_channels_at_once_are_no_flood() {
    let mut world = World::new(|_| {});
    world.arrive(0);
    let head = std::str::from_utf8(HEAD).unwrap().replacen("/ws", "/connection/websocket", 1);
    world.say(0, head.as_bytes());
    world.sent(0);
    let channels = world.reactor.settings.topics_per_connection_max(DialectId::Centrifugo) as u32;
    let subscribe = |id: u32| format!("\n{{\"id\":{id},\"subscribe\":{{\"channel\":\"c{id}\"}}}}");
    let all: String = (2..channels + 2).map(subscribe).collect();
    world.say(0, &text(&format!("{{\"id\":1,\"connect\":{{}}}}{all}")));
    world.acknowledge();
    assert_eq!(
        (world.connection(0).phase, world.connection(0).subscriptions.len()),
        (Phase::Open, channels as usize + 1)
    );
    let burst = world.reactor.settings.client_messages_burst_max;
    assert_eq!(world.connection(0).allowance_milli, (burst - channels - 1) * 1000);
    world.open(1);
    world.say(1, &text("ping"));
    assert_eq!(world.connection(1).allowance_milli, (burst - 1) * 1000, "a heartbeat and its answer are one");
    world.say(0, &text(&"{\"id\":9,\"rpc\":{}}\n".repeat(burst as usize)));
    assert_eq!((world.connection(0).phase, world.reactor.metrics().closes_flood.get()), (Phase::Flushing, 1));
}

/// A page of the binary, as long as a script may be.
const PAGE: Page =
    Page { path: "/long", content: Content::Static { content_type: "text/plain", body: &[b'x'; 300_000] } };

fn with_page() -> World {
    World::new(|settings| settings.pages.push((0, "/long".into(), PAGE)))
}

#[test]
fn a_long_page_leaves_in_several_sends_and_the_connection_closes_behind_it() {
    let mut world = with_page();
    world.arrive(0);
    world.say(0, b"GET /long HTTP/1.0\r\n\r\n");
    let (mut received, mut sends) = (Vec::new(), 0);
    while let Some(part) = world.reactor.ring.sending.get(&Slot(0)) {
        match part {
            Outgoing::Private(bytes) => received.extend_from_slice(bytes),
            Outgoing::Page(bytes) => received.extend_from_slice(bytes),
            other => panic!("{other:?}"),
        }
        assert!(part.len() <= world.reactor.settings.send_bytes_max);
        sends += 1;
        world.sent(0);
        world.turn();
    }
    let mut head = Vec::new();
    crate::websocket::handshake::write_page_head(&mut head, 200, "text/plain", 300_000);
    assert!(received.starts_with(&head) && received.len() == head.len() + 300_000 && sends > 9);
    assert_eq!(world.connection(0).phase, Phase::Lingering);
    world.gone(0);
    assert_eq!(world.reactor.audit(), Audit::default());
}

#[test]
fn a_head_request_gets_the_head_alone_and_another_method_405() {
    for (request, status, length) in [("HEAD /long", "200 OK", "300000"), ("POST /long", "405 Method Not Allowed", "")]
    {
        let mut world = with_page();
        world.arrive(0);
        world.say(0, format!("{request} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes());
        let Outgoing::Private(answer) = &world.reactor.ring.sending[&Slot(0)] else { panic!() };
        let answer = String::from_utf8_lossy(answer).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        assert!(answer.contains(&format!("Content-Length: {length}")), "{answer}");
        world.sent(0);
        world.turn();
        assert_eq!((world.connection(0).phase, world.reactor.ring.sending.len()), (Phase::Lingering, 0));
    }
}

#[test]
fn a_reader_of_a_page_may_take_its_time_for_each_piece_and_is_cut_when_it_takes_none() {
    let mut world = with_page();
    let patience_ms = world.reactor.settings.slow_deadline_ms;
    assert!(patience_ms > world.reactor.settings.close_deadline_ms);
    world.arrive(0);
    world.say(0, b"GET /long HTTP/1.1\r\n\r\n");
    for _ in 0..4 {
        world.pass_ms(patience_ms - 200);
        world.turn();
        assert_eq!(world.connection(0).phase, Phase::Flushing, "it goes on");
        world.sent(0);
        world.turn();
    }
    world.pass_ms(patience_ms + 200);
    world.turn();
    assert_eq!(world.connection(0).phase, Phase::Cut);
}

impl World {
    /// A client that asks for a page of the control core's; whether it is asked for.
    fn asks_for_a_page(&mut self, slot: u32) -> bool {
        self.arrive(slot);
        self.say(slot, b"GET /stats HTTP/1.1\r\n\r\n");
        if self.connection(slot).phase == Phase::Asking {
            return true;
        }
        let Outgoing::Private(answer) = &self.reactor.ring.sending[&Slot(slot)] else { panic!() };
        assert!(answer.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(answer));
        false
    }

    /// Every question so far is answered, and a part of each answer is on its way.
    fn answer_all(&mut self) {
        while let Some(message) = self.outbox.pop() {
            let client = match message {
                FromShard::Ask { client, .. } => client,
                FromShard::Withdraw { .. } => continue, // Too late: its answer finds nobody.
                other => panic!("{other:?}"),
            };
            let answer = Answer::Page { status: 200, content_type: "text/plain", body: "page".into() };
            let message = ToShard::Answer { client, answer: answer.into() };
            let bytes = message.queued_bytes();
            self.inbox.push(message, bytes).unwrap();
        }
        self.turn();
    }
}

#[test]
fn questions_for_pages_are_bounded_and_who_only_reads_slowly_is_none() {
    let mut world = World::new(|_| {});
    let all = super::pages::ASKING_MAX as u32;
    assert!((0..all).all(|slot| world.asks_for_a_page(slot)));
    assert!(!world.asks_for_a_page(all));
    // Whoever leaves makes room, and so does every answer.
    world.gone(0);
    assert!(world.asks_for_a_page(all + 1));
    assert!(!world.asks_for_a_page(all + 2));
    world.answer_all();
    assert_eq!(world.connection(1).phase, Phase::Flushing);
    assert!(world.asks_for_a_page(all + 3));
}

#[test]
fn readers_of_pages_are_bounded_until_they_are_gone() {
    let mut world = World::new(|_| {});
    let all = super::pages::READING_MAX as u32;
    for slot in 0..all {
        assert!(world.asks_for_a_page(slot));
        world.answer_all();
    }
    assert!(!world.asks_for_a_page(all));
    world.gone(0);
    assert!(world.asks_for_a_page(all + 1));
    (1..all + 2).for_each(|slot| world.gone(slot));
    assert_eq!(world.reactor.readers, pages::Readers::default());
}
