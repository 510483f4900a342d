//! Merge windows: what goes to one topic, or to everyone, is collected for clients whose dialect [merges](crate::dialect::Dialect::merges), and
//! leaves as one message, `max_merge_delay_ms` after its first item or once it is full. Other dialects get each publication at once.
//!
//! ```text
//! publish ──► admitted: offset, frames to the others ──► item into the topic's window
//!                                                            │ full, or its time is over
//!                                                            ▼
//!                    room in the queue of every shard that wants it? ── yes ──► one frame, encoded once ──► all of them
//!                                                            │ no                                              ▲
//!                                                            └──► blocked: tried again each turn ──────────────┘
//! ```
//!
//! **The place of a window** is that of its last item, and the one before it is where the last window ended: a shard sees no gap.
//! An interest that is registered while a window is open takes part from before its first item: who joins gets all of it.
//!
//! **Nothing overtakes.** A topic has one window. Once that is full and finds no room, publications to the topic wait in its line,
//! as they do for anything that finds no room, and are refused after `publish_wait_ms`: so a shard that stands still holds up
//! the topics with interest there, and each of them holds no more than one window.
//!
//! **Bounds.** All windows together hold at most `merge_pending_items_max` items and `merge_pending_bytes_max` bytes. At the bound the
//! oldest leave before their time; if they find no room, publications wait in their lines until any window leaves.
//!
//! **Draining** makes every window due at once. One that finds no room for `publish_wait_ms` more leaves for the shards that have
//! some, and what the others miss is counted.

use super::slab::{Linked, Links, List, NIL, Slab};
use super::{BROADCAST, Blocked, By, Need, Outlet, Topics, USERS, frame_of};
use crate::clock::Time;
use crate::config::GopushSettings;
use crate::dialect::{DialectId, json};
use crate::frame::Frame;
use crate::ids::{Encoding, Offset, ShardId};
use crate::queue::ToShard;

/// Windows that leave, or are looked at because they could not, in one turn; above it the turn asks to be called again at once.
const COMMITS_PER_TURN_MAX: usize = 4096;

/// What a window costs besides its items, counted with their bytes: itself and its buffer's slack.
const WINDOW_BYTES: usize = 512; // As the setting `merge_pending_bytes_max` says.

/// Bounds and pace; each is a setting of the same name.
#[derive(Clone, Copy, Debug)]
pub struct MergeLimits {
    /// From the first item of a window to its end.
    pub max_merge_delay_ms: u64,
    /// Items of one window.
    pub max_merge_items: usize,
    /// Bytes of one window, unless it is a single item.
    pub max_merge_bytes: usize,
    /// Items in all windows.
    pub merge_pending_items_max: usize,
    /// Bytes in all windows, 512 for each included.
    pub merge_pending_bytes_max: usize,
}

impl From<&GopushSettings> for MergeLimits {
    fn from(gopush: &GopushSettings) -> MergeLimits {
        MergeLimits {
            max_merge_delay_ms: gopush.max_merge_delay_ms,
            max_merge_items: gopush.max_merge_items,
            max_merge_bytes: gopush.max_merge_bytes,
            merge_pending_items_max: gopush.merge_pending_items_max,
            merge_pending_bytes_max: gopush.merge_pending_bytes_max,
        }
    }
}

impl Default for MergeLimits {
    fn default() -> MergeLimits {
        MergeLimits::from(&GopushSettings::default())
    }
}

/// What windows have done so far, and hold now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergeCounts {
    /// Items that left for a room in a window, or would have if anyone were in it.
    pub room_items: u64,
    /// Those for everyone.
    pub all_items: u64,
    /// Windows that left: messages.
    pub messages: u64,
    /// Windows that a shard did not get, at the end of a drain.
    pub messages_dropped: u64,
    /// Their items, for rooms.
    pub room_items_dropped: u64,
    /// Their items, for everyone.
    pub all_items_dropped: u64,
    /// Topics with clients who get windows.
    pub rooms: usize,
    /// Items in windows.
    pub items: usize,
    /// Windows that find no room.
    pub blocked: usize,
}

/// What is collected for one topic.
struct Window {
    topic: u32,
    /// Each as [`json::append`] writes it, joined by commas.
    items: Vec<u8>,
    count: usize,
    /// Where the one before it ended.
    prev: Offset,
    last: Offset,
    due: Time,
    /// Who had no room for it, and how much it needs there.
    blocked: Option<Blocked>,
    links: Links,
}

impl Window {
    fn bytes(&self) -> usize {
        self.items.len() + WINDOW_BYTES
    }
}

impl Linked for Window {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// All windows.
pub(super) struct Windows {
    limits: MergeLimits,
    all: Slab<Window>,
    /// Those whose time is not over, in the order of their ends: one delay for all.
    open: List,
    /// Those that found no room.
    blocked: List,
    /// Whether one has joined them of which [`Topics::turn`] has not said when it is looked at again.
    newly_blocked: bool,
    /// How many of them each shard holds up, so that what comes later does not take the room they wait for.
    blocked_on: Vec<usize>,
    bytes: usize,
    counts: MergeCounts,
    /// Since when everything is due.
    drain_begun: Option<Time>,
    item: Vec<u8>,                  // Scratch: the item of the publication being admitted.
    frames: Vec<(Encoding, Frame)>, // Scratch: of the window that is about to leave. One that finds no room gives them up.
    spares: Vec<Vec<u8>>,           // Buffers of windows that left, at most SPARES_MAX.
}

/// Buffers kept for windows to come, none larger than [`SPARE_BYTES_MAX`].
const SPARES_MAX: usize = 256;
const SPARE_BYTES_MAX: usize = 16_384;

impl Windows {
    pub(super) fn new(limits: MergeLimits, shards: usize) -> Windows {
        Windows {
            limits,
            all: Slab::new(),
            open: List::EMPTY,
            blocked: List::EMPTY,
            newly_blocked: false,
            blocked_on: vec![0; shards],
            bytes: 0,
            counts: MergeCounts::default(),
            drain_begun: None,
            item: Vec::new(),
            frames: Vec::new(),
            spares: Vec::new(),
        }
    }

    /// Windows that the shard has no room for.
    pub(super) fn blocked_on(&self, shard: ShardId) -> usize {
        self.blocked_on[usize::from(shard.0)]
    }

    /// Whether nothing is collected.
    pub(super) fn is_empty(&self) -> bool {
        self.all.len() == 0
    }

    /// When the next one is due, blocked ones not counted.
    pub(super) fn due(&self) -> Time {
        self.open.first().map_or(Time::NEVER, |first| self.all[first].due)
    }

    pub(super) fn has_blocked(&self) -> bool {
        !self.blocked.is_empty()
    }

    /// A turn is over: those that are blocked by now it has seen.
    pub(super) fn seen(&mut self) {
        self.newly_blocked = false;
    }

    /// Whether another item may find room in all of them together.
    pub(super) fn may_take(&self) -> bool {
        let MergeLimits { merge_pending_items_max, merge_pending_bytes_max, .. } = self.limits;
        let is_below = self.counts.items < merge_pending_items_max && self.bytes < merge_pending_bytes_max;
        is_below || !self.open.is_empty()
    }

    fn count_items(&mut self, topic: u32, count: usize) {
        match topic {
            BROADCAST => self.counts.all_items += count as u64,
            _ => self.counts.room_items += count as u64,
        }
    }

    /// Takes a window out of the list it is in.
    fn unlink(&mut self, index: u32) {
        match self.all[index].blocked.take() {
            Some(blocked) => {
                self.blocked_on[usize::from(blocked.shard.0)] -= 1;
                self.blocked.unlink(&mut self.all, index);
            }
            None => self.open.unlink(&mut self.all, index),
        }
    }

    /// A window finds no room: to the end of the list of those.
    fn block(&mut self, index: u32, blocked: Blocked) {
        self.unlink(index);
        self.blocked_on[usize::from(blocked.shard.0)] += 1;
        self.newly_blocked = true;
        self.all[index].blocked = Some(blocked);
        self.blocked.push_back(&mut self.all, index);
    }

    fn remove(&mut self, index: u32) -> Window {
        self.unlink(index);
        let window = self.all.remove(index);
        self.bytes -= window.bytes();
        self.counts.items -= window.count;
        window
    }

    /// Keeps a window's buffer for one to come.
    fn recycle(&mut self, mut items: Vec<u8>) {
        if self.spares.len() < SPARES_MAX && items.capacity() <= SPARE_BYTES_MAX {
            items.clear();
            self.spares.push(items);
        }
    }
}

impl Topics {
    /// What merge windows do and hold.
    pub fn merge_counts(&self) -> MergeCounts {
        MergeCounts { blocked: self.windows.blocked.len(), ..self.windows.counts }
    }

    /// When a window is due; [`Topics::turn`] may not know of it yet. At once if one has found no room since the last turn, which
    /// could not say when that is to be tried again.
    pub fn due(&self) -> Time {
        if self.windows.newly_blocked { Time::default() } else { self.windows.due() }
    }

    /// Whether nothing is left in merge windows: what was acknowledged is in the queues.
    pub fn is_flushed(&self) -> bool {
        self.windows.is_empty()
    }

    /// Whether publications of this stream are collected for clients of this encoding. What goes to single users is not.
    pub(super) fn is_merged(index: u32, encoding: Encoding) -> bool {
        index != USERS && DialectId::of(encoding).0.get().merges()
    }

    /// An interest that is merged has been registered. Returns from where it takes part, if a window is open.
    pub(super) fn window_joined(&mut self, index: u32) -> Option<Offset> {
        let topic = &mut self.topics[index];
        topic.merged += 1;
        self.windows.counts.rooms += usize::from(topic.merged == 1 && index != BROADCAST);
        (topic.window != NIL).then(|| self.windows.all[topic.window].prev)
    }

    /// An interest that is merged has ended. What is collected for nobody goes with the last.
    pub(super) fn window_left(&mut self, index: u32, shard: ShardId) {
        let topic = &mut self.topics[index];
        topic.merged -= 1;
        let window = topic.window;
        if topic.merged == 0 {
            self.windows.counts.rooms -= usize::from(index != BROADCAST);
            topic.window = NIL;
        }
        if window == NIL {
            return;
        }
        if topic.merged == 0 {
            let window = self.windows.remove(window);
            self.windows.count_items(index, window.count);
            self.windows.recycle(window.items);
        } else if let Some(blocked) = &mut self.windows.all[window].blocked
            && blocked.shard == shard
        {
            blocked.need = Need::NONE; // The next turn finds out who has no room now.
        }
    }

    /// Makes the publication's item, and room for it: in its topic's window, which leaves if it is full, and in all of them. Without
    /// room the publication waits for a window to leave, and needs nothing of the shard's queue itself.
    pub(super) fn prepare_item(
        &mut self,
        now: Time,
        index: u32,
        data: &[u8],
        outlet: &mut dyn Outlet,
    ) -> Result<(), Blocked> {
        if self.topics[index].merged == 0 {
            return Ok(());
        }
        let mut item = std::mem::take(&mut self.windows.item);
        item.clear();
        json::append(data, json::Html::Escaped, &mut item);
        let result = self.make_room_in_windows(now, index, item.len() + 1, outlet);
        self.windows.item = item;
        result
    }

    fn make_room_in_windows(
        &mut self,
        now: Time,
        index: u32,
        bytes: usize,
        outlet: &mut dyn Outlet,
    ) -> Result<(), Blocked> {
        let MergeLimits { max_merge_items, max_merge_bytes, .. } = self.windows.limits;
        let window = self.topics[index].window;
        if window != NIL {
            let Window { count, ref items, .. } = self.windows.all[window];
            if count >= max_merge_items || items.len() + bytes > max_merge_bytes {
                // Not built again for everyone who tries.
                if let Some(Blocked { shard, need, .. }) = self.windows.all[window].blocked
                    && !outlet.has_room(shard, need.items, need.bytes)
                {
                    return Err(Blocked { shard, need: Need::NONE, by: By::Queue });
                }
                self.commit(now, window, outlet).map_err(|blocked| Blocked { need: Need::NONE, ..blocked })?;
            }
        }
        let opens = self.topics[index].window == NIL;
        let bytes = bytes + if opens { WINDOW_BYTES } else { 0 };
        let MergeLimits { merge_pending_items_max, merge_pending_bytes_max, .. } = self.windows.limits;
        while self.windows.counts.items >= merge_pending_items_max
            || self.windows.bytes + bytes > merge_pending_bytes_max
        {
            // Each window is taken out of one list here, so this ends.
            if let Some(oldest) = self.windows.open.first() {
                let _ = self.commit(now, oldest, outlet);
            } else if let Some(oldest) = self.windows.blocked.first() {
                let blocked = self.windows.all[oldest].blocked.as_ref().expect("it is in the list of those");
                // Any of them will do, whoever holds that one up.
                return Err(Blocked { shard: blocked.shard, need: Need::NONE, by: By::Windows });
            } else {
                break; // There is nothing but this item, and the bound is below it.
            }
        }
        Ok(())
    }

    /// The publication at `last` is admitted: its item goes into the window. `prev` is where the topic was before.
    pub(super) fn add_item(&mut self, now: Time, index: u32, prev: Offset, last: Offset, outlet: &mut dyn Outlet) {
        if self.topics[index].merged == 0 {
            if index == BROADCAST || !self.topics[index].name.is_empty() {
                self.windows.count_items(index, 1); // For nobody.
            }
            return;
        }
        let windows = &mut self.windows;
        if self.topics[index].window == NIL {
            let window = windows.all.insert(Window {
                topic: index,
                items: windows.spares.pop().unwrap_or_default(),
                count: 0,
                prev,
                last,
                due: now.plus_ms(windows.limits.max_merge_delay_ms),
                blocked: None,
                links: Links::NONE,
            });
            windows.open.push_back(&mut windows.all, window);
            windows.bytes += WINDOW_BYTES;
            self.topics[index].window = window;
        }
        let at = self.topics[index].window;
        let window = &mut windows.all[at];
        let before = window.items.len();
        if window.count > 0 {
            window.items.push(b',');
        }
        window.items.extend_from_slice(&windows.item);
        window.count += 1;
        window.last = last;
        windows.bytes += window.items.len() - before;
        windows.counts.items += 1;
        let MergeLimits { max_merge_items, max_merge_bytes, max_merge_delay_ms, .. } = windows.limits;
        if window.count >= max_merge_items || window.items.len() >= max_merge_bytes || max_merge_delay_ms == 0 {
            let _ = self.commit(now, at, outlet);
        }
    }

    /// Windows that are due, or were and found no room, leave. Returns whether there are more than one turn looks at.
    pub(super) fn turn_windows(&mut self, now: Time, outlet: &mut dyn Outlet) -> bool {
        let mut left = COMMITS_PER_TURN_MAX;
        let give_up = self.draining
            && *self.windows.drain_begun.get_or_insert(now)
                + std::time::Duration::from_millis(self.limits.publish_wait_ms)
                <= now;
        // Each blocked one once, the longest blocked first.
        for _ in 0..self.windows.blocked.len() {
            let Some(index) = self.windows.blocked.first().filter(|_| left > 0) else { break };
            left -= 1;
            let blocked = *self.windows.all[index].blocked.as_ref().expect("in the list of those");
            let Blocked { shard, need, .. } = blocked;
            if outlet.has_room(shard, need.items, need.bytes) {
                let _ = self.commit(now, index, outlet);
            } else if give_up {
                self.commit_in_part(now, index, outlet);
            } else {
                self.windows.block(index, blocked); // Behind the others, for the next turn.
            }
        }
        while let Some(first) = self.windows.open.first() {
            if !self.draining && self.windows.all[first].due > now {
                return false;
            }
            if left == 0 {
                return true;
            }
            left -= 1;
            let _ = self.commit(now, first, outlet);
        }
        left == 0
    }

    /// Gives a window to every shard that wants it; or changes nothing but that it is blocked now.
    fn commit(&mut self, now: Time, index: u32, outlet: &mut dyn Outlet) -> Result<(), Blocked> {
        self.build_frames(index);
        let topic = &self.topics[self.windows.all[index].topic];
        for interest in topic.interests.iter().filter(|i| i.merged) {
            let need = &mut self.needs[usize::from(interest.shard.0)];
            need.items += 1;
            need.bytes += frame_of(&self.windows.frames, interest.encoding).expect("built above").len();
        }
        let mut blocked = None;
        for interest in &topic.interests {
            let need = std::mem::take(&mut self.needs[usize::from(interest.shard.0)]);
            if need.items > 0 && blocked.is_none() && !outlet.has_room(interest.shard, need.items, need.bytes) {
                blocked = Some(Blocked { shard: interest.shard, need, by: By::Queue });
            }
        }
        if let Some(blocked) = blocked {
            self.shards[usize::from(blocked.shard.0)].full_since.get_or_insert(now);
            self.windows.frames.clear();
            self.windows.block(index, blocked);
            return Err(blocked);
        }
        self.push_window(now, index, |_| true, outlet);
        Ok(())
    }

    /// Gives a window to the shards that have room, and counts what the others miss.
    fn commit_in_part(&mut self, now: Time, index: u32, outlet: &mut dyn Outlet) {
        self.build_frames(index);
        let window = &self.windows.all[index];
        let topic = &self.topics[window.topic];
        let mut lacking: Vec<ShardId> = Vec::new();
        for shard in (0..self.shards.len()).map(|shard| ShardId(shard as u16)) {
            let wants = topic.interests.iter().filter(|i| i.shard == shard && i.merged);
            let frames = wants.map(|i| frame_of(&self.windows.frames, i.encoding).expect("built above").len());
            let (items, bytes) = frames.fold((0, 0), |(items, bytes), frame| (items + 1, bytes + frame));
            if items > 0 && !outlet.has_room(shard, items, bytes) {
                lacking.push(shard);
            }
        }
        let (of_topic, count) = (window.topic, window.count as u64);
        if !lacking.is_empty() {
            let counts = &mut self.windows.counts;
            counts.messages_dropped += 1;
            match of_topic {
                BROADCAST => counts.all_items_dropped += count,
                _ => counts.room_items_dropped += count,
            }
        }
        self.push_window(now, index, |shard| !lacking.contains(&shard), outlet);
    }

    /// The frames of a window, one for every encoding that wants it.
    fn build_frames(&mut self, index: u32) {
        let Windows { all, frames, .. } = &mut self.windows;
        let window = &all[index];
        frames.clear();
        for interest in self.topics[window.topic].interests.iter().filter(|i| i.merged) {
            if frame_of(frames, interest.encoding).is_none() {
                self.frames_built += 1;
                frames.push((interest.encoding, self.encoder.merged_frame(&window.items, interest.encoding)));
            }
        }
    }

    /// Its end: the frames go to the shards that `takes` says, which have room.
    fn push_window(&mut self, now: Time, index: u32, takes: impl Fn(ShardId) -> bool, outlet: &mut dyn Outlet) {
        let Window { topic: of, items, count, prev, last: offset, .. } = self.windows.remove(index);
        let topic = &mut self.topics[of];
        topic.window = NIL;
        for interest in topic.interests.iter().filter(|i| i.merged && takes(i.shard)) {
            let frame = frame_of(&self.windows.frames, interest.encoding).expect("built for all who want it").clone();
            self.shards[usize::from(interest.shard.0)].full_since = None;
            // Admitted now: how long it was collected is no delay of the gateway's.
            let frame = ToShard::Frame { interest: interest.interest, offset, prev, frame, admitted: now };
            outlet.push(interest.shard, frame);
        }
        self.windows.frames.clear();
        self.windows.count_items(of, count);
        self.windows.counts.messages += 1;
        self.windows.recycle(items);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::*;
    use super::super::{BlockedShard, FromShard, InterestKey, InterestRef, Outcome, Refusal};
    use super::*;
    use crate::ids::InterestId;

    const DELAY_MS: u64 = 50;

    impl World {
        fn with_merge(items_max: usize, change: impl FnOnce(&mut MergeLimits)) -> World {
            let mut limits = limits();
            change(&mut limits.merge);
            World::with(limits, items_max)
        }

        /// As `World::subscribe`, for a go-push client; `*` is everyone.
        fn join(&mut self, shard: ShardId, id: u32, generation: u32, room: &str) {
            self.join_in(shard, id, generation, room, false);
        }

        fn join_in(&mut self, shard: ShardId, id: u32, generation: u32, room: &str, deflated: bool) {
            let encoding = DialectId::Gopush.encoding(deflated);
            let key = match room {
                "*" => InterestKey::Broadcast(encoding),
                room => InterestKey::Topic(room.into(), encoding),
            };
            let interest = InterestRef { id: InterestId(id), generation };
            self.topics.shard_says(self.now, shard, FromShard::Subscribe { interest, key }, &mut self.queues);
        }

        fn items(&self) -> usize {
            self.topics.merge_counts().items
        }
    }

    /// A window as the shard finds it.
    fn push(interest: &str, place: &str, items: &[&str]) -> String {
        format!("{interest} {place} {{\"type\":\"PUSH\",\"data\":{{\"items\":[{}]}}}}", items.join(","))
    }

    #[test]
    fn items_leave_together_when_the_time_of_the_first_is_over() {
        let mut w = World::new(10);
        w.join(S0, 0, 1, "a");
        w.join(S1, 0, 1, "a");
        w.queues.take(S0);
        w.queues.take(S1);
        assert_eq!([w.admitted("a", "1"), w.admitted("a", "{ \"x\": \"<\" }")], [1, 2]);
        assert_eq!(w.topics.due(), w.now.plus_ms(DELAY_MS));
        w.after_ms(DELAY_MS - 1);
        assert_eq!(w.admitted("a", "text"), 3);
        w.turn();
        assert!(w.queues.take(S0).is_empty());
        w.after_ms(1);
        assert_eq!(w.topics.turn(w.now, &mut w.queues, &mut Vec::new()), Time::NEVER);
        for shard in [S0, S1] {
            assert_eq!(w.queues.take(shard), [push("0.1", "0>3", &["1", r#"{"x":"\u003c"}"#, r#""text""#])]);
        }
        let counts = w.topics.merge_counts();
        assert_eq!((counts.room_items, counts.all_items, counts.messages, counts.items), (3, 0, 1, 0));
        assert_eq!((w.topics.frames_built(), w.topics.is_flushed()), (1, true));
    }

    #[test]
    fn a_full_window_leaves_at_once_and_the_next_begins_where_it_ended() {
        let mut w = World::new(10);
        w.join(S0, 0, 1, "*");
        w.queues.take(S0);
        for n in 1..=9 {
            assert_eq!(w.admitted("", &n.to_string()), n);
        }
        let full = |place, items: &[&str]| push("0.1", place, items);
        assert_eq!(w.queues.take(S0), [full("0>4", &["1", "2", "3", "4"]), full("4>8", &["5", "6", "7", "8"])]);
        w.after_ms(DELAY_MS);
        w.turn();
        assert_eq!(w.queues.take(S0), [full("8>9", &["9"])]);
        let counts = w.topics.merge_counts();
        assert_eq!((counts.room_items, counts.all_items, counts.messages, counts.rooms), (0, 9, 3, 0));
    }

    #[test]
    fn other_dialects_get_each_publication_at_once() {
        let mut w = World::new(10);
        w.subscribe(S0, 0, 1, "a");
        w.join(S0, 1, 1, "a");
        w.queues.take(S0);
        w.admitted("a", "1");
        w.admitted("a", "2");
        assert_eq!(w.queues.take(S0), ["0.1 0>1 1", "0.1 1>2 2"]);
        w.after_ms(DELAY_MS);
        w.turn();
        assert_eq!(w.queues.take(S0), [push("1.1", "0>2", &["1", "2"])]);
    }

    #[test]
    fn who_joins_while_a_window_is_open_gets_all_of_it() {
        let mut w = World::new(10);
        w.admitted("a", "before anyone joined");
        w.join(S0, 0, 1, "a");
        assert_eq!(w.queues.take(S0), ["sub 0.1 1"]);
        w.admitted("a", "2");
        w.join_in(S1, 5, 1, "a", true);
        w.subscribe(S1, 6, 1, "a");
        assert_eq!(w.queues.take(S1), ["sub 5.1 1", "sub 6.1 2"]);
        let third = "3".repeat(60);
        w.admitted("a", &third);
        w.after_ms(DELAY_MS);
        w.turn();
        assert_eq!(w.queues.take(S0), [push("0.1", "1>3", &["2", &third])]);
        assert_eq!(w.queues.take(S1), [format!("6.1 2>3 {third}"), "5.1 1>3 deflated".into()]);
        w.join(S1, 7, 1, "a");
        assert_eq!(w.queues.take(S1), ["sub 7.1 3"], "and after it, what comes then");
    }

    #[test]
    fn a_window_is_bounded_in_bytes_and_a_larger_item_leaves_alone() {
        let mut w = World::with_merge(10, |merge| merge.max_merge_bytes = 20);
        w.join(S0, 0, 1, "a");
        w.queues.take(S0);
        for data in ["11111111", "22222222", "333333333333333333333333", "4"] {
            w.admitted("a", data);
        }
        let found = w.queues.take(S0);
        assert_eq!(
            found,
            [push("0.1", "0>2", &["11111111", "22222222"]), push("0.1", "2>3", &["333333333333333333333333"]),]
        );
        assert_eq!(w.items(), 1);
    }

    #[test]
    fn a_window_without_room_waits_and_goes_on_filling_and_nothing_overtakes_it() {
        let mut w = World::new(1);
        w.join(S0, 0, 1, "a"); // Its answer fills the queue.
        w.join(S1, 0, 1, "a");
        w.queues.take(S1);
        w.admitted("a", "1");
        w.after_ms(DELAY_MS);
        assert_eq!(w.turn(), []);
        assert!(w.queues.take(S1).is_empty(), "nobody has half of it");
        assert_eq!(w.topics.merge_counts().blocked, 1);
        let since = w.now;
        w.after_ms(3);
        let blocked = w.topics.blocked_shards().collect::<Vec<_>>();
        assert_eq!(blocked, [BlockedShard { shard: S0, topics: 1, answers: 0, since }]);
        w.admitted("a", "2");
        w.queues.take(S0);
        w.turn();
        for shard in [S0, S1] {
            assert_eq!(w.queues.take(shard), [push("0.1", "0>2", &["1", "2"])]);
        }
        assert_eq!((w.topics.blocked_shards().count(), w.topics.merge_counts().blocked), (0, 0));
    }

    #[test]
    fn behind_a_full_window_without_room_publications_wait_and_are_refused_in_the_end() {
        let mut w = World::new(1);
        w.join(S0, 0, 1, "a");
        w.join(S1, 0, 1, "free");
        w.queues.take(S1);
        for n in 1..=4 {
            w.admitted("a", &n.to_string());
        }
        let [fifth, sixth] = ["5", "6"].map(|data| w.waits("a", data));
        for n in 1..=4 {
            w.admitted("free", &n.to_string());
        }
        assert_eq!(w.queues.take(S1).len(), 1, "a shard that stands still holds up nobody else");
        w.after_ms(WAIT_MS);
        let late = Err(Refusal::NoRoom { shard: S0, waited_ms: WAIT_MS });
        assert_eq!(w.turn(), [(fifth, late.clone()), (sixth, late)]);
        let seventh = w.waits("a", "7");
        assert_eq!(w.queues.take(S0), ["sub 0.1 0"]);
        assert_eq!(w.turn(), [(seventh, Ok(5))]);
        assert_eq!(w.queues.take(S0), [push("0.1", "0>4", &["1", "2", "3", "4"])]);
        w.after_ms(DELAY_MS);
        w.turn();
        assert_eq!(w.queues.take(S0), [push("0.1", "4>5", &["7"])]);
    }

    #[test]
    fn the_room_a_window_waits_for_is_not_taken_by_what_comes_later() {
        let mut w = World::new(2);
        w.subscribe(S0, 0, 1, "a");
        w.join(S0, 1, 1, "b");
        for n in 1..=4 {
            w.admitted("b", &n.to_string());
        }
        let ticket = w.waits("a", "later");
        w.queues.take(S0);
        assert_eq!(w.turn(), [(ticket, Ok(1))]);
        assert_eq!(w.queues.take(S0), [push("1.1", "0>4", &["1", "2", "3", "4"]), "0.1 0>1 later".to_owned()]);
    }

    #[test]
    fn all_windows_together_are_bounded_and_the_oldest_leaves_before_its_time() {
        for by_bytes in [false, true] {
            let mut w = World::with_merge(20, |merge| match by_bytes {
                false => merge.merge_pending_items_max = 3,
                true => merge.merge_pending_bytes_max = 2 * WINDOW_BYTES + 2,
            });
            for (id, room) in ["a", "b", "c"].iter().enumerate() {
                w.join(S0, id as u32, 1, room);
            }
            w.queues.take(S0);
            for (room, data) in [("a", "1"), ("b", "2"), ("c", "3"), ("b", "4")] {
                w.admitted(room, data);
            }
            assert!(w.items() <= 3, "{}", w.items());
            assert_eq!(w.queues.take(S0)[0], push("0.1", "0>1", &["1"]), "by bytes: {by_bytes}");
        }
    }

    #[test]
    fn at_the_bound_of_all_windows_and_without_room_publications_wait() {
        let mut w = World::with_merge(2, |merge| merge.merge_pending_items_max = 2);
        w.join(S0, 0, 1, "a");
        w.join(S0, 1, 1, "b");
        w.admitted("a", "1");
        w.admitted("b", "2");
        let ticket = w.waits("b", "3");
        w.queues.take(S0);
        assert_eq!(w.turn(), [(ticket, Ok(2))]);
        assert_eq!(w.items(), 1);
        assert_eq!(w.queues.take(S0), [push("0.1", "0>1", &["1"]), push("1.1", "0>1", &["2"])]);
    }

    #[test]
    fn who_waits_for_any_window_to_leave_does_not_wait_for_a_shard_without_interest() {
        let mut w = World::with_merge(1, |merge| merge.merge_pending_items_max = 2);
        w.join(S0, 0, 1, "stuck");
        w.join(S1, 0, 1, "other");
        // Both answers fill their queues: no window can leave.
        w.admitted("stuck", "1");
        w.admitted("other", "2");
        let [first, second] = ["3", "4"].map(|data| w.waits("other", data));
        assert_eq!(w.turn(), []);
        for (ticket, offset) in [(first, 2), (second, 3)] {
            w.queues.take(S1);
            assert_eq!(w.turn(), [(ticket, Ok(offset))]);
        }
        assert_eq!(w.queues.take(S1), [push("0.1", "1>2", &["3"])]);
        let blocked = w.topics.blocked_shards().map(|b| (b.shard, b.topics)).collect::<Vec<_>>();
        assert_eq!(blocked, [(S0, 1)], "its window, and no line");
    }

    #[test]
    fn who_comes_later_does_not_take_the_room_in_windows_that_others_wait_for() {
        let mut w = World::with_merge(1, |merge| merge.merge_pending_items_max = 2);
        w.join(S0, 0, 1, "stuck");
        w.queues.take(S0);
        w.join(S0, 1, 1, "b");
        w.join(S1, 0, 1, "a");
        // Both queues are full of an answer.
        w.admitted("stuck", "1");
        w.admitted("a", "1");
        let first = w.waits("a", "2");
        w.unsubscribe(S0, 0, 1); // Its window goes with it, so that there is room for one.
        let second = w.waits("b", "1");
        assert_eq!(w.turn(), [(first, Ok(2))]);
        w.queues.take(S1);
        assert_eq!(w.turn(), [(second, Ok(1))]);
    }

    #[test]
    fn a_window_that_finds_no_room_while_something_is_published_is_due_at_once_and_said_so_once() {
        let mut w = World::with_merge(1, |merge| merge.max_merge_delay_ms = 0);
        w.join(S0, 0, 1, "a"); // Its answer fills the queue.
        assert_eq!(w.topics.due(), Time::NEVER);
        w.admitted("a", "1");
        assert_eq!(w.topics.due(), Time::default());
        let next = w.topics.turn(w.now, &mut w.queues, &mut Vec::new());
        assert_eq!((next, w.topics.due()), (w.now.plus_ms(1), Time::NEVER));
    }

    #[test]
    fn an_item_beyond_every_bound_passes_when_there_is_nothing_else() {
        let mut w = World::with_merge(10, |merge| {
            (merge.merge_pending_bytes_max, merge.merge_pending_items_max, merge.max_merge_bytes) = (1, 1, 1);
        });
        w.join(S0, 0, 1, "a");
        w.queues.take(S0);
        w.admitted("a", "12345");
        w.admitted("a", "67890");
        assert_eq!(w.queues.take(S0), [push("0.1", "0>1", &["12345"]), push("0.1", "1>2", &["67890"])]);
    }

    #[test]
    fn what_is_collected_for_nobody_goes_with_the_last_who_wanted_it() {
        let mut w = World::new(10);
        w.join(S0, 0, 1, "a");
        w.join(S1, 0, 1, "a");
        w.admitted("a", "1");
        w.unsubscribe(S0, 0, 1);
        assert_eq!((w.items(), w.topics.merge_counts().rooms), (1, 1));
        w.unsubscribe(S1, 0, 1);
        let counts = w.topics.merge_counts();
        assert_eq!((counts.items, counts.rooms, counts.room_items, counts.messages), (0, 0, 1, 0));
        assert_eq!((w.topics.due(), w.topics.is_flushed()), (Time::NEVER, true));
        w.join(S0, 0, 2, "a");
        w.admitted("a", "2");
        w.after_ms(DELAY_MS);
        w.turn();
        assert_eq!(w.queues.take(S0), ["sub 0.1 0", "unsub 0.1", "sub 0.2 1", &push("0.2", "1>2", &["2"])]);
    }

    #[test]
    fn a_window_is_free_when_the_interest_it_waits_for_ends() {
        let mut w = World::new(1);
        w.join(S0, 0, 1, "a");
        w.join(S1, 0, 1, "a");
        w.queues.take(S1);
        w.admitted("a", "1");
        w.after_ms(DELAY_MS);
        w.turn();
        w.unsubscribe(S0, 0, 1);
        w.turn();
        assert_eq!(w.queues.take(S1), [push("0.1", "0>1", &["1"])]);
        assert_eq!(w.queues.take(S0), ["sub 0.1 0"]);
    }

    #[test]
    fn a_drain_flushes_windows_first() {
        let mut w = World::new(10);
        w.join(S0, 0, 1, "a");
        w.join(S0, 1, 1, "*");
        w.queues.take(S0);
        w.admitted("a", "1");
        w.admitted("", "2");
        w.topics.drain();
        assert!(!w.topics.is_flushed());
        w.turn();
        assert!(w.topics.is_flushed());
        assert_eq!(w.queues.take(S0), [push("0.1", "0>1", &["1"]), push("1.1", "0>1", &["2"])]);
    }

    #[test]
    fn a_drain_gives_up_on_a_shard_without_room_and_counts_what_it_misses() {
        let mut w = World::new(1);
        w.join(S0, 0, 1, "a");
        w.join(S1, 0, 1, "a");
        w.queues.take(S1);
        w.admitted("a", "1");
        w.admitted("a", "2");
        w.topics.drain();
        w.turn();
        w.after_ms(WAIT_MS - 1);
        w.turn();
        assert!(!w.topics.is_flushed() && w.queues.take(S1).is_empty());
        w.after_ms(1);
        w.turn();
        assert!(w.topics.is_flushed());
        assert_eq!(w.queues.take(S1), [push("0.1", "0>2", &["1", "2"])]);
        let counts = w.topics.merge_counts();
        assert_eq!((counts.messages_dropped, counts.room_items_dropped, counts.all_items_dropped), (1, 2, 0));
    }

    #[test]
    fn items_for_which_nobody_is_there_count_as_having_left() {
        let mut w = World::new(10);
        w.admitted("a", "1");
        w.admitted("", "2");
        let counts = w.topics.merge_counts();
        assert_eq!((counts.room_items, counts.all_items, counts.messages, counts.items), (1, 1, 0, 0));
    }

    #[test]
    fn what_goes_to_one_user_is_never_collected() {
        let mut w = World::new(10);
        w.join(S0, 0, 1, "t");
        let target = crate::frame::Target::User { uid: "u".into(), topic: "t".into() };
        let publication = crate::frame::Publication { target, data: bytes::Bytes::from_static(b"x") };
        assert!(matches!(w.topics.publish(w.now, publication, &mut w.queues), Outcome::Admitted(_)));
        assert!(w.topics.is_flushed());
        assert_eq!(w.topics.merge_counts().room_items, 0);
    }

    #[test]
    fn the_windows_of_one_turn_are_bounded() {
        let many = COMMITS_PER_TURN_MAX as u32 + 1;
        let mut limits = limits();
        limits.merge.merge_pending_items_max = 2 * many as usize;
        limits.merge.merge_pending_bytes_max = usize::MAX;
        let mut w = World::with(limits, 4 * many as usize);
        w.queues.bytes_max = usize::MAX;
        for id in 0..many {
            w.join(S0, id, 1, &id.to_string());
            w.admitted(&id.to_string(), "1");
        }
        w.queues.take(S0);
        w.after_ms(DELAY_MS);
        let mut done = Vec::new();
        assert_eq!(w.topics.turn(w.now, &mut w.queues, &mut done), w.now);
        assert_eq!(w.queues.take(S0).len(), COMMITS_PER_TURN_MAX);
        assert_eq!(w.topics.turn(w.now, &mut w.queues, &mut done), Time::NEVER);
        assert_eq!(w.queues.take(S0).len(), 1);
    }
}
