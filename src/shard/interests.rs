//! What this shard wants frames of, who of its connections wants them, and the batch a tick collects.
//!
//! ```text
//!          first subscriber              ack of this generation
//!   Free ──────────────────► Asked ───────────────────────────► On ◄─┐ subscribers come and go
//!     ▲                       ▲  │ the last waiter left: still asked  │
//!     │                       │  └───────────────────────────────────┘
//!     │  Unsubscribed         │ a subscriber while Leaving: next generation
//!     └────────────── Leaving ┴◄──────────────── On, empty for interest_linger_ms
//! ```
//!
//! The control core answers every announcement in the queue that also carries the frames. Only the answer to the latest
//! generation counts; frames of an earlier one are nobody's.

use super::pool::Pool;
use crate::clock::Time;
use crate::dialect::{DialectId, Joint};
use crate::frame::Batch;
use crate::ids::{Encoding, Epoch, Generation, InterestId, InterestRef, Offset, Slot};
use crate::queue::InterestKey;
use crate::websocket::frame::{Opcode, write_header};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// Most payload of one frame that joins messages, or what one send carries if that is less. Frames are dropped whole, and in one
/// that takes several sends no close frame finds a place: so a batch holds several of a moderate size.
pub const JOINED_BYTES_MAX: usize = 16 << 10;
/// Messages of one such frame.
pub const JOINED_MESSAGES_MAX: usize = 512;
const _: () = assert!(JOINED_BYTES_MAX <= 0xFFFF, "Batch::HEADER_ROOM holds a header of 16 bits of length");

/// Where an interest stands with the control core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// This number is free.
    Free,
    /// Announced or about to be; no ack yet.
    Asked,
    /// Frames come.
    On,
    /// Given up; frames that still come are nobody's.
    Leaving,
}

/// A connection that waits for the ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// Its slot.
    pub slot: Slot,
    /// Its tenancy: the slot may have another tenant by then.
    pub generation: Generation,
    /// Its number for the request.
    pub request: u32,
}

/// One (topic, encoding).
pub struct Interest {
    /// What it is.
    pub key: InterestKey,
    /// Which life of this number.
    pub generation: u32,
    /// Where it stands.
    pub standing: Standing,
    /// Epoch of the ack.
    pub epoch: Epoch,
    /// Last offset the shard has seen: where a subscriber takes part that joins now.
    pub last: Offset,
    /// Subscribers, by slot: a flush goes through them in this order (random order costs 16 % more per send).
    members: BTreeSet<Slot>,
    /// Subscribers that joined while the present batch had messages already, and from where they take part.
    fresh: Vec<(Slot, Offset)>,
    waiters: Vec<Waiter>,
    batch: Batch,
    /// How messages of the batch are joined, if they are.
    joint: Option<Joint>,
}

impl Interest {
    /// Appends a frame to the batch, or a payload to its open frame.
    fn collect(&mut self, frame: &[u8], offset: Offset, joined_bytes_max: usize, header: &mut Vec<u8>) {
        let Some(joint) = self.joint else { return self.batch.push(frame, offset) };
        let is_full = self.batch.open_frame().is_some_and(|(messages, bytes)| {
            messages == JOINED_MESSAGES_MAX || bytes + joint.separator.len() + frame.len() > joined_bytes_max
        });
        if is_full {
            self.close_frame(header);
        }
        if frame.len() > joined_bytes_max {
            header.clear();
            write_header(header, Opcode::Text, joint.deflated, frame.len());
            self.batch.push_parts(header, frame, offset);
        } else {
            self.batch.join(joint.separator, frame, offset);
        }
    }

    /// Ends the open frame of the batch, if there is one.
    fn close_frame(&mut self, header: &mut Vec<u8>) {
        let Some((joint, (_, bytes))) = self.joint.zip(self.batch.open_frame()) else { return };
        header.clear();
        write_header(header, Opcode::Text, joint.deflated, bytes);
        self.batch.close_frame(header);
    }

    /// Number of subscribers.
    pub fn members(&self) -> &BTreeSet<Slot> {
        &self.members
    }

    /// Whether nobody has or awaits it.
    pub fn is_unwanted(&self) -> bool {
        self.members.is_empty() && self.waiters.is_empty()
    }
}

/// What became of a wish to subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// At once: the messages after this come.
    From(Epoch, Offset),
    /// When the ack comes.
    Waiting,
}

/// For whom something was sealed.
pub enum Whose {
    /// For the subscribers of an interest.
    Interest(InterestId),
    /// For connections of a user, about this topic.
    User(Arc<str>),
}

/// A batch ready to leave, or a range of one, and how far each fresh subscriber is into it.
pub struct Sealed {
    /// Whose it is.
    pub whose: Whose,
    /// The frames.
    pub batch: std::rc::Rc<Batch>,
    /// First byte of the range.
    pub start: u32,
    /// Byte after it.
    pub end: u32,
    /// Those who joined in the middle, ascending by slot: the messages after this offset are theirs.
    pub fresh: Vec<(Slot, Offset)>,
}

/// All interests of a shard.
#[derive(Default)]
pub struct Interests {
    all: Vec<Interest>,
    free: Vec<InterestId>,
    by_topic: HashMap<(Arc<str>, Encoding), InterestId>,
    by_broadcast: [Option<InterestId>; Encoding::COUNT_MAX],
    /// Interests with messages in their batch.
    dirty: Vec<InterestId>,
    /// Interests whose wish differs from what control was told.
    announce: VecDeque<InterestRef>,
    /// Interests without subscribers, by when they are given up.
    lingering: VecDeque<(InterestRef, Time)>,
    batch_bytes: usize,
    /// Offsets are shown to clients as so much less.
    base: Offset,
    members: usize,
    joined_bytes_max: usize,
    header: Vec<u8>, // Scratch of one frame's header.
}

impl Interests {
    /// No interests yet. Frames that join messages are to fit a send of `send_bytes_max`.
    pub fn new(send_bytes_max: usize) -> Interests {
        let joined_bytes_max = JOINED_BYTES_MAX.min(send_bytes_max.saturating_sub(Batch::HEADER_ROOM));
        Interests { joined_bytes_max, ..Interests::default() }
    }

    /// The interest of `key`, made and put up for announcement if there is none.
    pub fn find_or_add(&mut self, key: InterestKey) -> InterestId {
        let known = match &key {
            InterestKey::Topic(topic, encoding) => self.by_topic.get(&(topic.clone(), *encoding)).copied(),
            InterestKey::Broadcast(encoding) => self.by_broadcast[encoding.0 as usize],
        };
        if let Some(id) = known {
            return id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.all.push(Interest {
                key: key.clone(),
                generation: 0,
                standing: Standing::Free,
                epoch: Epoch(0),
                last: Offset(0),
                members: BTreeSet::new(),
                fresh: Vec::new(),
                waiters: Vec::new(),
                batch: Batch::default(),
                joint: None,
            });
            InterestId(self.all.len() as u32 - 1)
        });
        match &key {
            InterestKey::Topic(topic, encoding) => drop(self.by_topic.insert((topic.clone(), *encoding), id)),
            InterestKey::Broadcast(encoding) => self.by_broadcast[encoding.0 as usize] = Some(id),
        }
        let (dialect, deflated) = DialectId::of(key.encoding());
        let interest = &mut self.all[id.0 as usize];
        interest.joint = dialect.get().joint(deflated);
        interest.key = key;
        self.ask(id);
        id
    }

    /// The interest of a topic, if there is one.
    pub fn find(&self, topic: &str, encoding: Encoding) -> Option<InterestId> {
        // The map's key is (Arc<str>, Encoding): a look-up needs one. Only client commands come here.
        self.by_topic.get(&(Arc::from(topic), encoding)).copied()
    }

    /// As [`Interests::find`], for a name at hand as the map has it. Allocates nothing.
    pub fn find_named(&self, topic: &Arc<str>, encoding: Encoding) -> Option<InterestId> {
        self.by_topic.get(&(topic.clone(), encoding)).copied()
    }

    fn ask(&mut self, id: InterestId) {
        let interest = &mut self.all[id.0 as usize];
        interest.generation = interest.generation.wrapping_add(1);
        interest.standing = Standing::Asked;
        self.announce.push_back(InterestRef { id, generation: interest.generation });
    }

    /// One interest.
    pub fn get(&self, id: InterestId) -> &Interest {
        &self.all[id.0 as usize]
    }

    /// Lets a connection take part.
    pub fn join(&mut self, id: InterestId, waiter: Waiter) -> Joined {
        if self.all[id.0 as usize].standing == Standing::Leaving {
            self.ask(id);
        }
        let interest = &mut self.all[id.0 as usize];
        match interest.standing {
            Standing::On => {
                self.members += usize::from(interest.members.insert(waiter.slot));
                if !interest.batch.is_empty() {
                    // Its part begins with a frame.
                    let before = interest.batch.len() as usize;
                    interest.close_frame(&mut self.header);
                    self.batch_bytes = self.batch_bytes + interest.batch.len() as usize - before;
                    interest.fresh.push((waiter.slot, interest.last));
                }
                Joined::From(interest.epoch, shown(interest.last, self.base))
            }
            Standing::Asked => {
                interest.waiters.push(waiter);
                Joined::Waiting
            }
            Standing::Free | Standing::Leaving => unreachable!("asked for above, or by find_or_add"),
        }
    }

    /// Where whoever takes part in an interest now is, as clients are shown it.
    pub fn position(&self, id: InterestId) -> (Epoch, Offset) {
        let interest = &self.all[id.0 as usize];
        (interest.epoch, self.shown(interest.last))
    }

    /// An offset as clients are shown it.
    pub fn shown(&self, offset: Offset) -> Offset {
        shown(offset, self.base)
    }

    /// All topics are of this epoch from now on, of which nothing is older than `base`.
    pub fn begin_epoch(&mut self, epoch: Epoch, base: Offset) {
        self.base = base;
        self.all.iter_mut().for_each(|interest| interest.epoch = epoch);
    }

    /// Whether `slot` waits for the ack.
    pub fn awaits(&self, id: InterestId, slot: Slot) -> bool {
        self.all[id.0 as usize].waiters.iter().any(|waiter| waiter.slot == slot)
    }

    /// Messages of the present batch that are `slot`'s.
    pub fn collected(&self, id: InterestId, slot: Slot) -> usize {
        let interest = &self.all[id.0 as usize];
        if interest.batch.is_empty() || !interest.members.contains(&slot) {
            return 0;
        }
        let from = interest.fresh.iter().find(|(s, _)| *s == slot).map_or(Offset(0), |(_, from)| *from);
        let marks = interest.batch.marks();
        marks.len() - marks.partition_point(|m| m.offset <= from)
    }

    /// Ends a connection's part, whether it takes part or waits.
    pub fn leave(&mut self, now: Time, id: InterestId, slot: Slot, linger_ms: u64) {
        let interest = &mut self.all[id.0 as usize];
        if interest.members.remove(&slot) {
            self.members -= 1;
            interest.fresh.retain(|(s, _)| *s != slot);
            if interest.members.is_empty() && !interest.batch.is_empty() {
                // Nobody's. Whoever joins before the tick would get it, from before its cut.
                self.batch_bytes -= interest.batch.len() as usize;
                interest.batch = Batch::default();
                self.dirty.retain(|d| *d != id);
            }
        } else {
            interest.waiters.retain(|w| w.slot != slot);
        }
        if interest.is_unwanted() && interest.standing != Standing::Leaving {
            let generation = interest.generation;
            self.lingering.push_back((InterestRef { id, generation }, now.plus_ms(linger_ms)));
        }
    }

    /// Takes an ack; whoever waited takes part from here and is named.
    ///
    /// `accept_stale` is `false`: an ack of an earlier generation says nothing about this one.
    pub fn acknowledged(
        &mut self,
        interest: InterestRef,
        epoch: Epoch,
        offset: Offset,
        accept_stale: bool,
        waiters: &mut Vec<Waiter>,
    ) {
        let Some(it) = self.all.get_mut(interest.id.0 as usize) else { return };
        if it.standing != Standing::Asked || (it.generation != interest.generation && !accept_stale) {
            return;
        }
        it.standing = Standing::On;
        it.epoch = epoch;
        it.last = offset;
        for waiter in it.waiters.drain(..) {
            self.members += usize::from(it.members.insert(waiter.slot));
            waiters.push(waiter);
        }
    }

    /// Takes the answer to a farewell: the number is free, unless somebody wanted it again meanwhile.
    ///
    /// `accept_stale` is `false`: an answer to an earlier generation says nothing about this one.
    pub fn let_go(&mut self, interest: InterestRef, accept_stale: bool) {
        let Some(it) = self.all.get_mut(interest.id.0 as usize) else { return };
        let current = it.standing == Standing::Leaving && it.generation == interest.generation;
        if !current && !accept_stale {
            return;
        }
        it.standing = Standing::Free;
        match &it.key {
            InterestKey::Topic(topic, encoding) => drop(self.by_topic.remove(&(topic.clone(), *encoding))),
            InterestKey::Broadcast(encoding) => self.by_broadcast[encoding.0 as usize] = None,
        }
        // A number keeps no memory of whom it was for: names are long, and numbers as many as there ever were at once.
        it.key = InterestKey::Broadcast(it.key.encoding());
        it.waiters = Vec::new();
        it.fresh = Vec::new();
        self.free.push(interest.id);
    }

    /// Takes a frame into the tick's batch.
    ///
    /// # Panics
    /// If a message before it is missing: the control core pushes every message after its ack.
    pub fn frame(
        &mut self,
        interest: InterestRef,
        offset: Offset,
        prev: Offset,
        frame: &[u8],
        admitted: Time,
        pool: &mut Pool,
    ) {
        let Some(it) = self.all.get_mut(interest.id.0 as usize) else { return };
        if it.standing != Standing::On || it.generation != interest.generation {
            return;
        }
        assert!(prev == it.last && offset > prev, "a gap in {:?}: {prev} follows {}", it.key, it.last);
        it.last = offset;
        if it.members.is_empty() {
            return;
        }
        if it.batch.is_empty() {
            it.batch = pool.take(frame.len());
            it.batch.oldest = admitted;
            self.dirty.push(interest.id);
        }
        let before = it.batch.len() as usize;
        it.collect(frame, offset, self.joined_bytes_max, &mut self.header);
        self.batch_bytes = self.batch_bytes + it.batch.len() as usize - before;
    }

    /// Whether a batch waits for the tick.
    pub fn has_news(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Bytes in all batches that wait.
    pub fn batch_bytes(&self) -> usize {
        self.batch_bytes
    }

    /// Seals the tick's batches; each subscriber present is `target(index into sealed, slot)`.
    pub fn seal(&mut self, pool: &mut Pool, sealed: &mut Vec<Sealed>, mut target: impl FnMut(u32, Slot)) {
        for id in self.dirty.drain(..) {
            let it = &mut self.all[id.0 as usize];
            it.close_frame(&mut self.header);
            let batch = std::mem::take(&mut it.batch);
            let mut fresh = std::mem::take(&mut it.fresh);
            fresh.sort_unstable();
            if it.members.is_empty() {
                pool.discard(batch);
                continue;
            }
            let index = sealed.len() as u32;
            it.members.iter().for_each(|slot| target(index, *slot));
            let end = batch.len();
            sealed.push(Sealed { whose: Whose::Interest(id), batch: pool.seal(batch), start: 0, end, fresh });
        }
        self.batch_bytes = 0;
    }

    /// Gives up what nobody has wanted for long enough, looking at no more than `at_once`.
    pub fn linger(&mut self, now: Time, at_once: usize) {
        for _ in 0..at_once {
            let Some((interest, _)) = self.lingering.front().copied().filter(|(_, until)| *until <= now) else { break };
            self.lingering.pop_front();
            let it = &self.all[interest.id.0 as usize];
            if it.generation == interest.generation && it.is_unwanted() && it.standing == Standing::On {
                self.announce.push_back(interest);
            } else if it.generation == interest.generation && it.is_unwanted() && it.standing == Standing::Asked {
                // Not yet acknowledged: look again later, a farewell needs something to say farewell to.
                self.lingering.push_back((interest, now.plus_ms(100)));
            }
        }
    }

    /// When [`Interests::linger`] has something to do.
    pub fn linger_wake(&self) -> Time {
        self.lingering.front().map_or(Time::NEVER, |(_, until)| *until)
    }

    /// The next announcement that is still true, decided now: `Some((interest, Some(key)))` wants it, `None` gives it up.
    pub fn announcement(&self) -> Option<(InterestRef, Option<&InterestKey>)> {
        let interest = *self.announce.front()?;
        let it = &self.all[interest.id.0 as usize];
        let wanted = it.standing == Standing::Asked;
        Some((interest, wanted.then_some(&it.key)))
    }

    /// Drops announcements that are no longer true, so that the front one is.
    pub fn settle_announcements(&mut self) {
        while let Some(interest) = self.announce.front() {
            let it = &self.all[interest.id.0 as usize];
            let current = it.generation == interest.generation;
            let asks = it.standing == Standing::Asked;
            let leaves = it.standing == Standing::On && it.is_unwanted();
            if current && (asks || leaves) {
                break;
            }
            self.announce.pop_front();
        }
    }

    /// The front announcement is out.
    pub fn announced(&mut self) {
        let interest = self.announce.pop_front().expect("the one that was just pushed");
        let it = &mut self.all[interest.id.0 as usize];
        if it.standing == Standing::On {
            it.standing = Standing::Leaving;
        }
    }

    /// Connections that take part in what goes to everyone in this encoding: all of its open ones.
    pub fn everyone(&self, encoding: Encoding) -> usize {
        self.by_broadcast[encoding.0 as usize].map_or(0, |id| self.get(id).members.len())
    }

    /// Subscriptions held.
    pub fn members(&self) -> usize {
        self.members
    }

    /// Interests in topics held, those being given up included.
    pub fn topics(&self) -> usize {
        self.by_topic.len()
    }

    /// Interests held.
    pub fn len(&self) -> usize {
        self.all.len() - self.free.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn shown(offset: Offset, base: Offset) -> Offset {
    Offset(offset.0.saturating_sub(base.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> InterestKey {
        InterestKey::Topic("t".into(), Encoding(0))
    }

    fn waiter(slot: u32) -> Waiter {
        Waiter { slot: Slot(slot), generation: Generation(1), request: 0 }
    }

    /// What control would be told now.
    fn announced(interests: &mut Interests) -> Option<(InterestRef, bool)> {
        interests.settle_announcements();
        let (interest, wants) = interests.announcement().map(|(i, k)| (i, k.is_some()))?;
        interests.announced();
        Some((interest, wants))
    }

    fn on(interests: &mut Interests, offset: u64) -> (InterestId, InterestRef) {
        let id = interests.find_or_add(key());
        let (interest, wants) = announced(interests).expect("a new interest is announced");
        assert!(wants);
        interests.acknowledged(interest, Epoch(1), Offset(offset), false, &mut Vec::new());
        (id, interest)
    }

    #[test]
    fn the_first_subscriber_waits_for_the_ack_and_the_second_does_not() {
        let mut interests = Interests::default();
        let id = interests.find_or_add(key());
        assert_eq!(interests.join(id, waiter(1)), Joined::Waiting);
        let (interest, _) = announced(&mut interests).unwrap();
        let mut waiters = Vec::new();
        interests.acknowledged(interest, Epoch(7), Offset(5), false, &mut waiters);
        assert_eq!(waiters, [waiter(1)]);
        assert_eq!(interests.join(id, waiter(2)), Joined::From(Epoch(7), Offset(5)));
        assert_eq!(interests.members(), 2);
    }

    #[test]
    fn who_joins_in_the_middle_of_a_batch_takes_part_from_there() {
        let (mut interests, mut pool) = (Interests::default(), Pool::default());
        let (id, interest) = on(&mut interests, 0);
        interests.join(id, waiter(1));
        interests.frame(interest, Offset(1), Offset(0), b"one", Time(0), &mut pool);
        assert_eq!(interests.join(id, waiter(2)), Joined::From(Epoch(1), Offset(1)));
        interests.frame(interest, Offset(2), Offset(1), b"two", Time(0), &mut pool);
        let (mut sealed, mut targets) = (Vec::new(), Vec::new());
        interests.seal(&mut pool, &mut sealed, |index, slot| targets.push((index, slot)));
        assert_eq!(targets, [(0, Slot(1)), (0, Slot(2))]);
        assert_eq!(sealed[0].fresh, [(Slot(2), Offset(1))]);
        assert!(!interests.has_news() && interests.batch_bytes() == 0);
    }

    #[test]
    fn where_messages_are_joined_a_tick_is_one_frame_and_one_more_for_who_joins_in_the_middle() {
        for deflated in [false, true] {
            let (mut interests, mut pool) = (Interests::new(1 << 20), Pool::default());
            let encoding = DialectId::Centrifugo.encoding(deflated);
            let id = interests.find_or_add(InterestKey::Topic("t".into(), encoding));
            let (interest, _) = announced(&mut interests).unwrap();
            interests.acknowledged(interest, Epoch(1), Offset(0), false, &mut Vec::new());
            interests.join(id, waiter(1));
            for n in 1..=5 {
                if n == 4 {
                    interests.join(id, waiter(2));
                    interests.join(id, waiter(3));
                }
                interests.frame(interest, Offset(n), Offset(n - 1), &[b'0' + n as u8], Time(0), &mut pool);
            }
            assert_eq!((interests.collected(id, Slot(1)), interests.collected(id, Slot(2))), (5, 2));
            let mut sealed = Vec::new();
            let batched = interests.batch_bytes();
            interests.seal(&mut pool, &mut sealed, |_, _| {});
            let bytes: &[u8] = if deflated {
                b"\xc1\x0d1\x01\x00\xfe\xff\n2\x01\x00\xfe\xff\n3\xc1\x074\x01\x00\xfe\xff\n5"
            } else {
                b"\x81\x051\n2\n3\x81\x034\n5"
            };
            assert_eq!(sealed[0].batch.bytes(), bytes);
            assert!(batched >= bytes.len() && batched <= bytes.len() + 4 && interests.batch_bytes() == 0);
            assert_eq!(sealed[0].fresh, [(Slot(2), Offset(3)), (Slot(3), Offset(3))]);
            assert_eq!(sealed[0].batch.start_after(3), sealed[0].batch.marks()[3].frame);
        }
    }

    #[test]
    fn joined_frames_are_bounded_in_bytes_and_messages() {
        let (mut interests, mut pool) = (Interests::new(1 << 20), Pool::default());
        let id = interests.find_or_add(InterestKey::Topic("t".into(), DialectId::Centrifugo.encoding(false)));
        let (interest, _) = announced(&mut interests).unwrap();
        interests.acknowledged(interest, Epoch(1), Offset(0), false, &mut Vec::new());
        interests.join(id, waiter(1));
        let mut offset = 0;
        let small = std::iter::repeat_n(1, 600);
        for length in small.chain([8000, 8000, 382, 383, JOINED_BYTES_MAX, JOINED_BYTES_MAX + 1, 70_000, 5]) {
            offset += 1;
            interests.frame(interest, Offset(offset), Offset(offset - 1), &vec![b'x'; length], Time(0), &mut pool);
        }
        let mut sealed = Vec::new();
        interests.seal(&mut pool, &mut sealed, |_, _| {});
        let frames: Vec<usize> = sealed[0].batch.marks().chunk_by(|a, b| a.frame == b.frame).map(<[_]>::len).collect();
        // The 88 small ones that are left, with their line feeds, leave room for twice 8000 bytes, and not for 382 more.
        assert_eq!(frames, [512, 90, 2, 1, 1, 1, 1]);
        assert_eq!(sealed[0].batch.messages(), 608);
    }

    #[test]
    fn what_was_collected_for_those_who_left_is_nobodys() {
        let (mut interests, mut pool) = (Interests::default(), Pool::default());
        let (id, first) = on(&mut interests, 0);
        interests.join(id, waiter(1));
        interests.frame(first, Offset(1), Offset(0), b"theirs", Time(0), &mut pool);
        interests.leave(Time(0), id, Slot(1), 0);
        assert!(!interests.has_news() && interests.batch_bytes() == 0);
        interests.linger(Time(0), 9);
        assert_eq!(announced(&mut interests), Some((first, false)));
        assert_eq!(interests.join(id, waiter(2)), Joined::Waiting);
        let (second, _) = announced(&mut interests).unwrap();
        interests.acknowledged(second, Epoch(1), Offset(7), false, &mut Vec::new());
        interests.frame(second, Offset(8), Offset(7), b"mine", Time(0), &mut pool);
        let mut sealed = Vec::new();
        interests.seal(&mut pool, &mut sealed, |_, _| {});
        assert_eq!((sealed.len(), sealed[0].batch.bytes()), (1, &b"mine"[..]));
    }

    #[test]
    fn an_ack_or_a_frame_of_an_earlier_generation_is_nobodys() {
        let (mut interests, mut pool) = (Interests::default(), Pool::default());
        let (id, first) = on(&mut interests, 0);
        interests.join(id, waiter(1));
        interests.leave(Time(0), id, Slot(1), 1000);
        interests.linger(Time(0).plus_ms(1000), 9);
        assert_eq!(announced(&mut interests), Some((first, false)));
        assert_eq!(interests.join(id, waiter(2)), Joined::Waiting);
        let (second, wants) = announced(&mut interests).unwrap();
        assert!(wants && second.generation != first.generation);
        let mut waiters = Vec::new();
        interests.acknowledged(first, Epoch(1), Offset(3), false, &mut waiters);
        interests.frame(first, Offset(4), Offset(3), b"old", Time(0), &mut pool);
        interests.let_go(first, false);
        assert!(waiters.is_empty() && !interests.has_news());
        interests.acknowledged(second, Epoch(1), Offset(9), false, &mut waiters);
        assert_eq!(waiters, [waiter(2)]);
    }

    #[test]
    fn an_interest_wanted_again_before_it_was_given_up_stays_as_it_is() {
        let mut interests = Interests::default();
        let (id, interest) = on(&mut interests, 0);
        interests.join(id, waiter(1));
        interests.leave(Time(0), id, Slot(1), 1000);
        assert_eq!(interests.join(id, waiter(2)), Joined::From(Epoch(1), Offset(0)));
        interests.linger(Time(0).plus_ms(1000), 9);
        assert_eq!(announced(&mut interests), None);
        assert_eq!(interests.get(id).generation, interest.generation);
    }

    #[test]
    fn a_number_is_free_again_after_the_farewell_was_answered() {
        let mut interests = Interests::default();
        let (id, interest) = on(&mut interests, 0);
        interests.join(id, waiter(1));
        interests.leave(Time(0), id, Slot(1), 1000);
        interests.linger(Time(0).plus_ms(999), 9);
        assert_eq!(announced(&mut interests), None);
        interests.linger(Time(0).plus_ms(1000), 9);
        announced(&mut interests).unwrap();
        interests.let_go(interest, false);
        assert!(interests.is_empty());
        let again = interests.find_or_add(InterestKey::Broadcast(Encoding(1)));
        assert_eq!(again, id);
        assert_ne!(interests.get(again).generation, interest.generation);
    }
}
