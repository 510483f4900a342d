//! Merge windows over random publications, interest, queues of a few items and time: every go-push interest gets each item
//! after its cut exactly once, in order, whatever fits when, and what is collected stays within its bounds.

use bytes::Bytes;
use fanwire::clock::Time;
use fanwire::dialect::DialectId;
use fanwire::encode::{EncodeSettings, Encoder};
use fanwire::frame::Publication;
use fanwire::ids::{InterestId, InterestRef, Offset, ShardId};
use fanwire::queue::{FromShard, InterestKey, ToShard};
use fanwire::topics::{Ack, MergeLimits, Outcome, Outlet, Refusal, Ticket, Topics, TopicsLimits};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap, VecDeque};

const SHARDS: u16 = 2;
const TOPICS: u8 = 3;
const WAIT_MS: u64 = 20;
const DELAY_MS: u64 = 30;

/// One thing that happens. Topic 0 is everyone.
#[derive(Clone, Debug)]
enum Event {
    Publish { topic: u8, bytes: usize },
    Subscribe { shard: u16, topic: u8, gopush: bool },
    Unsubscribe { shard: u16, topic: u8, gopush: bool },
    Take { shard: u16, items: usize },
    Pass { ms: u64 },
    Turn,
}

fn event() -> impl Strategy<Value = Event> {
    let place = || (0..SHARDS, 0..TOPICS, any::<bool>());
    prop_oneof![
        10 => (0..TOPICS, 0..30usize).prop_map(|(topic, bytes)| Event::Publish { topic, bytes }),
        3 => place().prop_map(|(shard, topic, gopush)| Event::Subscribe { shard, topic, gopush }),
        1 => place().prop_map(|(shard, topic, gopush)| Event::Unsubscribe { shard, topic, gopush }),
        4 => (0..SHARDS, 1..6usize).prop_map(|(shard, items)| Event::Take { shard, items }),
        2 => (1..40u64).prop_map(|ms| Event::Pass { ms }),
        3 => Just(Event::Turn),
    ]
}

fn name(topic: u8) -> String {
    if topic == 0 { String::new() } else { format!("t{topic}") }
}

/// The queues, and what each interest has seen.
struct Queues {
    shards: Vec<VecDeque<ToShard>>,
    items_max: usize,
}

impl Outlet for Queues {
    fn shards(&self) -> usize {
        self.shards.len()
    }
    fn has_room(&self, shard: ShardId, items: usize, _bytes: usize) -> bool {
        self.shards[usize::from(shard.0)].len() + items <= self.items_max
    }
    fn push(&mut self, shard: ShardId, message: ToShard) {
        assert!(self.has_room(shard, 1, 0), "pushed without room");
        self.shards[usize::from(shard.0)].push_back(message);
    }
}

/// What one interest of one shard has got.
struct Seen {
    topic: u8,
    gopush: bool,
    generation: u32,
    cut: Option<Offset>,
    last: Offset,
    items: Vec<String>,
}

struct World {
    topics: Topics,
    queues: Queues,
    limits: MergeLimits,
    now: Time,
    seen: Vec<BTreeMap<u32, Seen>>,
    generations: u32,
    /// Admitted data by topic, with its offset.
    admitted: HashMap<u8, Vec<(Offset, String)>>,
    waiting: HashMap<Ticket, (u8, String)>,
    published: u32,
}

impl World {
    fn new(items_max: usize, limits: MergeLimits) -> World {
        let all = TopicsLimits {
            topics_max: 10,
            topic_idle_ms: 1_000_000,
            publish_wait_ms: WAIT_MS,
            publish_waiting_max: 50,
            publish_waiting_bytes_max: 10_000,
            message_bytes_max: 1000,
            merge: limits,
        };
        let encoder = Encoder::new(&EncodeSettings { deflate_level: 6, deflate_bytes_min: 16 });
        World {
            topics: Topics::new(all, encoder, usize::from(SHARDS), 1),
            queues: Queues { shards: (0..SHARDS).map(|_| VecDeque::new()).collect(), items_max },
            limits,
            now: Time(1),
            seen: (0..SHARDS).map(|_| BTreeMap::new()).collect(),
            generations: 0,
            admitted: HashMap::new(),
            waiting: HashMap::new(),
            published: 0,
        }
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Publish { topic, bytes } => self.publish(topic, bytes),
            Event::Subscribe { shard, topic, gopush } => {
                let (id, dialect) = interest(topic, gopush);
                if self.seen[usize::from(shard)].contains_key(&id) {
                    return;
                }
                self.generations += 1;
                let generation = self.generations;
                let seen = Seen { topic, gopush, generation, cut: None, last: Offset(0), items: Vec::new() };
                self.seen[usize::from(shard)].insert(id, seen);
                let key = match topic {
                    0 => InterestKey::Broadcast(dialect.encoding(false)),
                    topic => InterestKey::Topic(name(topic).into(), dialect.encoding(false)),
                };
                let interest = InterestRef { id: InterestId(id), generation };
                let message = FromShard::Subscribe { interest, key };
                self.topics.shard_says(self.now, ShardId(shard), message, &mut self.queues);
            }
            Event::Unsubscribe { shard, topic, gopush } => {
                let (id, _) = interest(topic, gopush);
                let Some(Seen { generation, .. }) = self.seen[usize::from(shard)].remove(&id) else { return };
                let interest = InterestRef { id: InterestId(id), generation };
                let message = FromShard::Unsubscribe { interest };
                self.topics.shard_says(self.now, ShardId(shard), message, &mut self.queues);
            }
            Event::Take { shard, items } => self.take(shard, items),
            Event::Pass { ms } => self.now = self.now.plus_ms(ms),
            Event::Turn => self.turn(),
        }
        let counts = self.topics.merge_counts();
        assert!(counts.items <= self.limits.merge_pending_items_max, "{counts:?}");
    }

    fn publish(&mut self, topic: u8, bytes: usize) {
        self.published += 1;
        let data = format!("{:0>1$}", format!("\"{}\"", self.published), bytes).replace('0', "x");
        let publication = Publication::new(name(topic), Bytes::from(data.clone()));
        match self.topics.publish(self.now, publication, &mut self.queues) {
            Outcome::Admitted(ack) => self.admit(topic, data, ack),
            Outcome::Waiting(ticket) => drop(self.waiting.insert(ticket, (topic, data))),
            Outcome::Refused(refusal) => assert!(matches!(refusal, Refusal::NoRoom { waited_ms: 0, .. }), "{refusal}"),
        }
    }

    fn admit(&mut self, topic: u8, data: String, ack: Ack) {
        self.admitted.entry(topic).or_default().push((ack.offset, data));
    }

    fn turn(&mut self) {
        let mut done = Vec::new();
        let next = self.topics.turn(self.now, &mut self.queues, &mut done);
        assert!(next > self.now || next == self.now && !done.is_empty());
        for (ticket, result) in done {
            let (topic, data) = self.waiting.remove(&ticket).expect("a ticket is answered once");
            if let Ok(ack) = result {
                self.admit(topic, data, ack);
            }
        }
    }

    fn take(&mut self, shard: u16, items: usize) {
        let index = usize::from(shard);
        let many = items.min(self.queues.shards[index].len());
        for message in self.queues.shards[index].drain(..many) {
            match message {
                ToShard::Subscribed { interest, offset, .. } => {
                    let Some(seen) = self.seen[index].get_mut(&interest.id.0) else { continue };
                    if seen.generation == interest.generation {
                        assert_eq!(seen.cut.replace(offset), None);
                        seen.last = offset;
                    }
                }
                ToShard::Frame { interest, offset, prev, frame, .. } => {
                    let Some(seen) = self.seen[index].get_mut(&interest.id.0) else { continue };
                    if seen.generation != interest.generation {
                        continue;
                    }
                    assert!(prev == seen.last && offset > prev, "{prev}>{offset} after {}", seen.last);
                    seen.last = offset;
                    let head = if frame[1] < 126 { 2 } else { 4 };
                    let text = std::str::from_utf8(&frame[head..]).unwrap();
                    if !seen.gopush {
                        seen.items.push(text.into());
                        continue;
                    }
                    let push: serde_json::Value = serde_json::from_str(text).unwrap();
                    assert_eq!(push["type"], "PUSH");
                    let items = push["data"]["items"].as_array().unwrap();
                    assert!((1..=self.limits.max_merge_items).contains(&items.len()));
                    seen.items.extend(items.iter().map(|item| {
                        let text = item.as_str().unwrap();
                        // As it was published: JSON stayed JSON, the rest became a string.
                        if text.contains('"') { text.into() } else { format!("\"{text}\"") }
                    }));
                }
                _ => {}
            }
        }
    }

    /// Takes all there is and lets every deadline pass: whatever was admitted has arrived.
    fn settle(&mut self) {
        for _ in 0..200 {
            for shard in 0..SHARDS {
                self.take(shard, usize::MAX);
            }
            self.now = self.now.plus_ms(DELAY_MS.max(WAIT_MS));
            self.turn();
        }
        (0..SHARDS).for_each(|shard| self.take(shard, usize::MAX));
        assert!(self.waiting.is_empty() && self.topics.is_flushed());
        let counts = self.topics.merge_counts();
        assert_eq!((counts.items, counts.blocked, counts.messages_dropped), (0, 0, 0));
        for seen in self.seen.iter().flat_map(BTreeMap::values) {
            let cut = seen.cut.expect("every interest is answered");
            let none = Vec::new();
            let admitted = self.admitted.get(&seen.topic).unwrap_or(&none).iter();
            let theirs: Vec<_> = admitted.filter(|(offset, _)| *offset > cut).map(|(_, data)| data.clone()).collect();
            assert_eq!(seen.items, theirs, "of topic {} from {cut}, gopush: {}", seen.topic, seen.gopush);
        }
    }
}

fn interest(topic: u8, gopush: bool) -> (u32, DialectId) {
    let dialect = if gopush { DialectId::Gopush } else { DialectId::Gpush };
    (u32::from(topic) * 2 + u32::from(gopush), dialect)
}

fn limits() -> impl Strategy<Value = MergeLimits> {
    (1..5usize, 20..200usize, 2..20usize, 600..5000usize, prop_oneof![Just(0), Just(DELAY_MS)]).prop_map(
        |(max_merge_items, max_merge_bytes, merge_pending_items_max, merge_pending_bytes_max, max_merge_delay_ms)| {
            MergeLimits {
                max_merge_delay_ms,
                max_merge_items,
                max_merge_bytes,
                merge_pending_items_max,
                merge_pending_bytes_max,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_item_after_the_cut_arrives_once_and_in_order(
        items_max in 2..12usize,
        limits in limits(),
        events in prop::collection::vec(event(), 1..200),
    ) {
        let mut world = World::new(items_max, limits);
        for event in &events {
            world.happen(event);
        }
        world.settle();
    }
}
