//! `Topics` against a model, over random publications, interest, queues of a few items and time.
//!
//! After every call the model knows exactly what must have been pushed: answers first, each at its cut; then each admitted
//! publication, whole, to everyone with an interest. Whatever else is in a queue, or missing from one, is a failure.

use bytes::Bytes;
use fanwire::clock::Time;
use fanwire::dialect::{DialectId, Position};
use fanwire::encode::{EncodeSettings, Encoder};
use fanwire::frame::Publication;
use fanwire::ids::{Encoding, Epoch, InterestId, InterestRef, Offset, ShardId};
use fanwire::queue::{FromShard, InterestKey, ToShard};
use fanwire::topics::{Ack, MergeLimits, Outcome, Outlet, Refusal, Ticket, Topics, TopicsLimits};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet, VecDeque};

const SHARDS: u16 = 3;
const INTERESTS: u32 = 4;
const TOPICS: u8 = 5;
const WAIT_MS: u64 = 30;
const IDLE_MS: u64 = 60;
const MESSAGE_BYTES_MAX: usize = 120;

/// One thing that happens. Topic 0 is everyone.
#[derive(Clone, Debug)]
enum Event {
    Publish { topic: u8, bytes: usize },
    Subscribe { shard: u16, id: u32, topic: u8, deflated: bool },
    Unsubscribe { shard: u16, id: u32, stale: bool },
    Take { shard: u16, items: usize },
    Pass { ms: u64 },
    Turn,
}

fn event() -> impl Strategy<Value = Event> {
    let bytes = prop_oneof![0..40usize, 100..MESSAGE_BYTES_MAX + 10];
    prop_oneof![
        8 => (0..TOPICS, bytes).prop_map(|(topic, bytes)| Event::Publish { topic, bytes }),
        3 => (0..SHARDS, 0..INTERESTS, 0..TOPICS, any::<bool>())
            .prop_map(|(shard, id, topic, deflated)| Event::Subscribe { shard, id, topic, deflated }),
        2 => (0..SHARDS, 0..INTERESTS, prop::bool::weighted(0.1))
            .prop_map(|(shard, id, stale)| Event::Unsubscribe { shard, id, stale }),
        4 => (0..SHARDS, 1..6usize).prop_map(|(shard, items)| Event::Take { shard, items }),
        2 => (1..40u64).prop_map(|ms| Event::Pass { ms }),
        3 => Just(Event::Turn),
    ]
}

#[derive(Clone, Debug)]
struct Bounds {
    items_max: usize,
    bytes_max: usize,
    topics_max: usize,
    waiting_max: usize,
    waiting_bytes_max: usize,
}

fn bounds() -> impl Strategy<Value = Bounds> {
    // A queue holds at least one publication in all interests of its shard, or some could never pass.
    (INTERESTS as usize..9, 100..600usize, 1..6usize, 0..8usize, 0..400usize).prop_map(
        |(items_max, bytes_max, topics_max, waiting_max, waiting_bytes_max)| Bounds {
            items_max,
            bytes_max,
            topics_max,
            waiting_max,
            waiting_bytes_max,
        },
    )
}

/// The queues, and what the last call pushed, over all of them in its order.
struct Queues {
    shards: Vec<VecDeque<usize>>, // Bytes of each item.
    items_max: usize,
    bytes_max: usize,
    granted: RefCell<Vec<(usize, usize)>>, // Items and bytes that the last question of each shard was about, if it got a yes.
    pushed: VecDeque<(ShardId, ToShard)>,
}

impl Outlet for Queues {
    fn shards(&self) -> usize {
        self.shards.len()
    }

    fn has_room(&self, shard: ShardId, items: usize, bytes: usize) -> bool {
        let queue = &self.shards[usize::from(shard.0)];
        let queued: usize = queue.iter().sum();
        let fits = queue.len() + items <= self.items_max && (queued == 0 || queued + bytes <= self.bytes_max);
        self.granted.borrow_mut()[usize::from(shard.0)] = if fits { (items, bytes) } else { (0, 0) };
        fits
    }

    fn push(&mut self, shard: ShardId, message: ToShard) {
        let bytes = message.queued_bytes();
        let (items_left, bytes_left) = &mut self.granted.borrow_mut()[usize::from(shard.0)];
        assert!(*items_left >= 1 && *bytes_left >= bytes, "pushed without having asked for room");
        (*items_left, *bytes_left) = (*items_left - 1, *bytes_left - bytes);
        self.shards[usize::from(shard.0)].push_back(bytes);
        self.pushed.push_back((shard, message));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    SubscribeOwed,
    Active,
    UnsubscribeOwed,
}

#[derive(Clone, Copy, Debug)]
struct Interest {
    generation: u32,
    topic: u8,
    encoding: Encoding,
    standing: Standing,
}

#[derive(Default)]
struct Stream {
    epoch: Option<Epoch>,
    last: Offset,
    line: VecDeque<(Ticket, Publication, Time)>,
}

struct Model {
    topics: Topics,
    queues: Queues,
    oracle: Encoder,
    bounds: Bounds,
    now: Time,
    interests: BTreeMap<(ShardId, InterestId), Interest>,
    generation: u32,
    streams: Vec<Stream>,
    epochs: HashSet<Epoch>,
    published: usize,
    admitted: usize,
    refused: usize,
}

impl Model {
    fn new(bounds: Bounds) -> Model {
        let limits = TopicsLimits {
            topics_max: bounds.topics_max,
            topic_idle_ms: IDLE_MS,
            publish_wait_ms: WAIT_MS,
            publish_waiting_max: bounds.waiting_max,
            publish_waiting_bytes_max: bounds.waiting_bytes_max,
            message_bytes_max: MESSAGE_BYTES_MAX,
            merge: MergeLimits::default(),
        };
        let encoder = || Encoder::new(&EncodeSettings { deflate_level: 1, deflate_bytes_min: 16 });
        Model {
            topics: Topics::new(limits, encoder(), usize::from(SHARDS), 11),
            queues: Queues {
                shards: vec![VecDeque::new(); usize::from(SHARDS)],
                items_max: bounds.items_max,
                bytes_max: bounds.bytes_max,
                granted: RefCell::new(vec![(0, 0); usize::from(SHARDS)]),
                pushed: VecDeque::new(),
            },
            oracle: encoder(),
            bounds,
            now: Time(1_000_000_000),
            interests: BTreeMap::new(),
            generation: 0,
            streams: (0..TOPICS).map(|_| Stream::default()).collect(),
            epochs: HashSet::new(),
            published: 0,
            admitted: 0,
            refused: 0,
        }
    }

    fn name(topic: u8) -> String {
        if topic == 0 { String::new() } else { format!("topic {topic}") }
    }

    fn stream(&mut self, topic: u8) -> &mut Stream {
        &mut self.streams[usize::from(topic)]
    }

    fn waiting(&self) -> usize {
        self.streams.iter().map(|s| s.line.len()).sum()
    }

    fn waiting_bytes(&self) -> usize {
        self.streams.iter().flat_map(|s| &s.line).map(|(_, p, _)| p.data.len()).sum()
    }

    fn wanted_by(&self, topic: u8, shard: ShardId) -> bool {
        let active = |i: &Interest| i.standing == Standing::Active && i.topic == topic;
        self.interests.iter().any(|((s, _), i)| *s == shard && active(i))
    }

    fn wanted(&self, topic: u8) -> bool {
        (0..SHARDS).any(|shard| self.wanted_by(topic, ShardId(shard)))
    }

    /// Whether a topic may not be forgotten.
    fn held(&self, topic: u8) -> bool {
        topic == 0 || self.wanted(topic) || !self.streams[usize::from(topic)].line.is_empty()
    }

    fn topics_held(&self) -> usize {
        (1..TOPICS).filter(|&t| self.held(t)).count()
    }

    fn step(&mut self, event: &Event) {
        match *event {
            Event::Publish { topic, bytes } => self.publish(topic, bytes),
            Event::Subscribe { shard, id, topic, deflated } => {
                self.generation += 1;
                let (shard, generation) = (ShardId(shard), self.generation);
                let interest = InterestRef { id: InterestId(id), generation };
                let encoding = DialectId::Gpush.encoding(deflated);
                let key = match topic {
                    0 => InterestKey::Broadcast(encoding),
                    _ => InterestKey::Topic(Model::name(topic).into(), encoding),
                };
                let asked = Interest { generation, topic, encoding, standing: Standing::SubscribeOwed };
                self.interests.insert((shard, interest.id), asked);
                self.topics.shard_says(self.now, shard, FromShard::Subscribe { interest, key }, &mut self.queues);
                self.answers();
            }
            Event::Unsubscribe { shard, id, stale } => {
                let (shard, id) = (ShardId(shard), InterestId(id));
                let Some(asked) = self.interests.get_mut(&(shard, id)) else { return };
                let interest = InterestRef { id, generation: asked.generation - u32::from(stale) };
                if !stale {
                    asked.standing = Standing::UnsubscribeOwed;
                }
                self.topics.shard_says(self.now, shard, FromShard::Unsubscribe { interest }, &mut self.queues);
                self.answers();
            }
            Event::Take { shard, items } => {
                let queue = &mut self.queues.shards[usize::from(shard)];
                queue.drain(..items.min(queue.len()));
            }
            Event::Pass { ms } => self.now = self.now.plus_ms(ms),
            // The first turn lets go what can go, the second finds nothing to do.
            Event::Turn => (0..2).for_each(|_| self.turn()),
        }
        assert!(self.queues.pushed.is_empty(), "nobody asked for or published {:?}", self.queues.pushed);
        assert_eq!((self.topics.waiting(), self.topics.waiting_bytes()), (self.waiting(), self.waiting_bytes()));
        assert_eq!(self.published, self.admitted + self.refused + self.waiting());
        assert!(self.topics.waiting() <= self.bounds.waiting_max);
        assert!(self.topics.waiting_bytes() <= self.bounds.waiting_bytes_max);
        assert!(self.topics.topics() >= self.topics_held());
    }

    fn publish(&mut self, topic: u8, bytes: usize) {
        self.published += 1;
        let data = Bytes::from(format!("{:0>bytes$}", self.published));
        let publication = Publication::new(Model::name(topic), data);
        let bytes = publication.data.len();
        let known = self.topics.topics();
        let outcome = self.topics.publish(self.now, publication.clone(), &mut self.queues);
        if bytes > MESSAGE_BYTES_MAX {
            assert!(matches!(outcome, Outcome::Refused(Refusal::TooLarge { .. })), "{outcome:?}");
            self.refused += 1;
            return;
        }
        self.answers();
        let full = self.waiting() + 1 > self.bounds.waiting_max
            || self.waiting_bytes() + bytes > self.bounds.waiting_bytes_max;
        let line = !self.stream(topic).line.is_empty();
        match outcome {
            Outcome::Admitted(ack) => {
                assert!(!line, "nothing overtakes a line");
                self.admit(topic, ack, &publication);
            }
            Outcome::Waiting(ticket) => {
                assert!(!full, "lines are bounded");
                assert!(line || self.wanted(topic), "where there is no interest there is room");
                let now = self.now;
                self.stream(topic).line.push_back((ticket, publication, now));
            }
            Outcome::Refused(Refusal::NoRoom { shard, waited_ms }) => {
                assert_eq!((full, waited_ms), (true, 0));
                assert!(line || self.wanted_by(topic, shard), "shard {shard} has nothing to do with it");
                self.refused += 1;
            }
            Outcome::Refused(Refusal::TooManyTopics { .. }) => {
                assert!(self.topics_held() >= self.bounds.topics_max);
                self.refused += 1;
            }
            Outcome::Refused(other) => panic!("{other}"),
        }
        let known_max = self.bounds.topics_max.max(known).max(self.topics_held());
        assert!(self.topics.topics() <= known_max, "a publisher brought {} topics", self.topics.topics());
    }

    fn turn(&mut self) {
        let mut done = Vec::new();
        let next = self.topics.turn(self.now, &mut self.queues, &mut done);
        let nothing_moves = self.queues.pushed.is_empty();
        self.answers();
        for (ticket, result) in done {
            let first = |s: &Stream| s.line.front().is_some_and(|(t, ..)| *t == ticket);
            let topic = self.streams.iter().position(first).expect("only who is first in a line leaves it, once") as u8;
            if let Ok(ack) = result {
                self.epoch(topic, ack.epoch);
            }
            let (_, publication, since) = self.stream(topic).line.pop_front().expect("found above");
            match result {
                Ok(ack) => self.admit(topic, ack, &publication),
                Err(Refusal::NoRoom { waited_ms, .. }) => {
                    assert_eq!(waited_ms, self.now.since_ns(since) / 1_000_000);
                    assert!(waited_ms >= WAIT_MS);
                    self.refused += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert!(next > self.now, "what there is to do here fits into one turn");
        for (_, _, since) in self.streams.iter().flat_map(|s| &s.line) {
            let deadline = since.plus_ms(WAIT_MS);
            assert!(self.now < deadline && next <= deadline, "late, or its deadline is forgotten");
        }
        for ((shard, _), interest) in &self.interests {
            let owed = interest.standing != Standing::Active;
            assert!(!owed || !self.queues.has_room(*shard, 1, 0), "owed an answer although there is room");
            assert!(!owed || next <= self.now.plus_ms(1));
        }
        for blocked in self.topics.blocked_shards() {
            assert!(blocked.since <= self.now && blocked.topics + blocked.answers > 0);
        }
        let held_up = |topic| self.topics.blocked_shards().any(|b| b.topics > 0 && self.wanted_by(topic, b.shard));
        for topic in 0..TOPICS {
            let line = &self.streams[usize::from(topic)].line;
            assert!(line.is_empty() || self.wanted(topic), "it waits for nobody");
            assert!(line.is_empty() || !nothing_moves || held_up(topic), "it waits for no shard that it needs");
        }
    }

    /// A topic shows its epoch: the one it had, or one never seen, and then nothing held on to its last life.
    fn epoch(&mut self, topic: u8, epoch: Epoch) {
        let held = self.held(topic);
        let stream = &mut self.streams[usize::from(topic)];
        if stream.epoch != Some(epoch) {
            assert!(stream.epoch.is_none() || !held, "forgotten although in use");
            assert!(epoch != Epoch(0) && self.epochs.insert(epoch), "an epoch is of one life alone");
            (stream.epoch, stream.last) = (Some(epoch), Offset(0));
        }
    }

    /// Takes the answers off what was pushed. Each belongs to the latest life of its number, and stands at the cut.
    fn answers(&mut self) {
        while self.queues.pushed.front().is_some_and(|(_, m)| !matches!(m, ToShard::Frame { .. })) {
            let (shard, message) = self.queues.pushed.pop_front().expect("looked at above");
            let (ToShard::Subscribed { interest, .. } | ToShard::Unsubscribed { interest }) = message else {
                panic!("nobody asked for {message:?}")
            };
            let asked = self.interests[&(shard, interest.id)];
            assert_eq!(asked.generation, interest.generation, "only the latest life is answered");
            if let ToShard::Subscribed { epoch, offset, .. } = message {
                assert_eq!(asked.standing, Standing::SubscribeOwed);
                self.epoch(asked.topic, epoch);
                assert_eq!(offset, self.stream(asked.topic).last, "the cut is here");
                let active = Interest { standing: Standing::Active, ..asked };
                self.interests.insert((shard, interest.id), active);
            } else {
                assert_eq!(asked.standing, Standing::UnsubscribeOwed);
                self.interests.remove(&(shard, interest.id));
            }
        }
    }

    /// Takes one admitted publication off what was pushed: to everyone with an interest, to nobody else, and linked.
    fn admit(&mut self, topic: u8, ack: Ack, publication: &Publication) {
        self.epoch(topic, ack.epoch);
        self.admitted += 1;
        let prev = std::mem::replace(&mut self.stream(topic).last, ack.offset);
        assert!(ack.offset > prev);
        let active = |i: &Interest| i.standing == Standing::Active && i.topic == topic;
        let mut owed: HashSet<(ShardId, InterestId)> =
            self.interests.iter().filter(|(_, i)| active(i)).map(|(key, _)| *key).collect();
        while !owed.is_empty() {
            let pushed = self.queues.pushed.pop_front();
            let Some((shard, ToShard::Frame { interest, offset, prev: linked, frame, admitted })) = pushed else {
                panic!("{owed:?} must get {publication:?} next, not {pushed:?}")
            };
            assert!(owed.remove(&(shard, interest.id)), "twice, or to one without an interest");
            let Interest { generation, encoding, .. } = self.interests[&(shard, interest.id)];
            assert_eq!((interest.generation, offset, linked, admitted), (generation, ack.offset, prev, self.now));
            let position = Position { epoch: ack.epoch, offset, prev };
            assert_eq!(frame, self.oracle.frame(publication, position, encoding));
        }
    }

    fn answers_owed(&self) -> usize {
        self.interests.values().filter(|i| i.standing != Standing::Active).count()
    }

    fn empty_queues(&mut self) {
        self.queues.shards.iter_mut().for_each(VecDeque::clear);
    }

    /// Empties the queues again and again: all who wait go through. Then everybody leaves, and nothing is left.
    fn finish(&mut self) {
        self.step(&Event::Turn);
        while self.waiting() + self.answers_owed() > 0 {
            let left = self.waiting() + self.answers_owed();
            self.empty_queues();
            self.step(&Event::Turn);
            assert!(self.waiting() + self.answers_owed() < left, "there is room, and still nothing moves");
        }
        assert_eq!(self.published, self.admitted + self.refused);
        let numbers: Vec<_> = self.interests.keys().copied().collect();
        for (shard, id) in numbers {
            self.empty_queues();
            self.step(&Event::Unsubscribe { shard: shard.0, id: id.0, stale: false });
        }
        self.step(&Event::Pass { ms: IDLE_MS });
        self.step(&Event::Turn);
        assert_eq!((self.topics.topics(), self.interests.len()), (0, 0));
    }
}

proptest! {
    #[test]
    fn everyone_gets_exactly_what_was_admitted_after_the_answer(
        bounds in bounds(),
        events in prop::collection::vec(event(), 1..300),
    ) {
        let mut model = Model::new(bounds);
        for event in &events {
            model.step(event);
        }
        model.finish();
    }
}
