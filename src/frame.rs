//! What travels: a publication as it came in, its frame in one encoding, and a tick's frames in one buffer.
//!
//! ```text
//! Publication ──encode──► Frame (Arc, one per encoding, shared by all shards)
//!                           │ copied once per shard and tick
//!                           ▼
//!                         Batch  [frame 1|frame 2|…|frame n]   marks: end and offset of each
//!                                   └────────────┘ Piece: what one subscriber is owed of it
//! ```

use crate::clock::Time;
use crate::ids::Offset;
use std::rc::Rc;
use std::sync::Arc;

/// Whom a publication is for. Order is kept within everyone, within a topic and within a user; not between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every connection, subscribed to anything or not.
    Everyone,
    /// A topic's subscribers.
    Topic(Arc<str>),
    /// Connections logged in as `uid` that take part in `topic`.
    User {
        /// Who.
        uid: Arc<str>,
        /// What about.
        topic: Arc<str>,
    },
}

impl Target {
    /// As publishers without users name it: an empty topic is everyone.
    pub fn topic(topic: impl Into<Arc<str>>) -> Target {
        let topic = topic.into();
        if topic.is_empty() { Target::Everyone } else { Target::Topic(topic) }
    }

    /// As gpush's publishers name it: a uid goes before the topic, and no topic is everyone.
    pub fn user_or_topic(uid: &str, topic: &str) -> Target {
        if uid.is_empty() { Target::topic(topic) } else { Target::User { uid: uid.into(), topic: topic.into() } }
    }
}

/// A message as its publisher gave it. The engine does not look into `data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Whom it is for.
    pub target: Target,
    /// The payload, verbatim.
    pub data: bytes::Bytes,
}

impl Publication {
    /// `data` for the subscribers of `topic`, or for everyone if that is empty.
    pub fn new(topic: impl Into<Arc<str>>, data: impl Into<bytes::Bytes>) -> Publication {
        Publication { target: Target::topic(topic), data: data.into() }
    }
}

/// Wire bytes of one WebSocket message in one encoding: immutable, built once, shared by all shards.
pub type Frame = Arc<[u8]>;

/// Where one message of a [`Batch`] ends, and which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Index of the byte after the message.
    pub end: u32,
    /// The message's offset in its topic.
    pub offset: Offset,
}

/// A tick's frames of one topic in one encoding, contiguous, so that a subscriber costs one send.
///
/// Capacity is at most twice the content once sealed (buffers grow by doubling from the first frame's size), so that
/// what a slow consumer pins is at most twice what it is owed. At most 4 GiB.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    /// Counts the sealed batches of a shard: the smaller, the older. Whoever holds the smallest goes first when memory is short.
    pub sequence: u64,
    /// When the oldest message in it was admitted.
    pub oldest: Time,
}

impl Batch {
    /// Smallest capacity, so that tiny messages don't grow a buffer many times.
    pub const CAPACITY_BYTES_MIN: usize = 256;

    /// Appends one message.
    pub fn push(&mut self, frame: &[u8], offset: Offset) {
        if self.bytes.capacity() - self.bytes.len() < frame.len() {
            let capacity = (self.bytes.len() + frame.len()).next_power_of_two().max(Self::CAPACITY_BYTES_MIN);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(frame);
        let end = u32::try_from(self.bytes.len()).expect("a batch is bounded far below 4 GiB");
        self.marks.push(Mark { end, offset });
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes held.
    pub fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    /// Whether no message is in it.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// Number of messages.
    pub fn messages(&self) -> usize {
        self.marks.len()
    }

    /// End and offset of each message, ascending.
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// What it costs in memory: what the allocator gave, not what is used, and the batch itself.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity() + self.marks.capacity() * size_of::<Mark>() + size_of::<Batch>()
    }

    /// Bytes it can hold before it grows.
    pub fn buffer_capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Empties it for reuse; the memory stays.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.marks.clear();
    }

    /// Index of the first byte after the first `messages` messages.
    pub fn start_after(&self, messages: usize) -> u32 {
        match messages {
            0 => 0,
            n => self.marks[n - 1].end,
        }
    }

    /// How many messages end in `start < end ≤ stop`.
    pub fn messages_between(&self, start: u32, stop: u32) -> usize {
        let from = self.marks.partition_point(|m| m.end <= start);
        let to = self.marks.partition_point(|m| m.end <= stop);
        to - from
    }

    /// The last message boundary at or before `limit`, not before `start`.
    pub fn boundary_at_or_before(&self, start: u32, limit: u32) -> u32 {
        let n = self.marks.partition_point(|m| m.end <= limit);
        if n == 0 { start } else { self.marks[n - 1].end.max(start) }
    }
}

/// A range of a shared batch: what one subscriber is owed of it. Holding it pins the batch.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The batch.
    pub batch: Rc<Batch>,
    /// First byte owed.
    pub start: u32,
    /// Byte after the last one owed; a message boundary.
    pub end: u32,
}

impl Piece {
    /// The bytes owed.
    pub fn bytes(&self) -> &[u8] {
        &self.batch.bytes()[self.start as usize..self.end as usize]
    }

    /// How many.
    pub fn len(&self) -> u32 {
        self.end - self.start
    }

    /// Whether nothing is owed.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// How many messages end within it.
    pub fn messages(&self) -> usize {
        self.batch.messages_between(self.start, self.end)
    }
}

/// Bytes on their way to one connection: shared by many, or its own.
#[derive(Debug)]
pub enum Outgoing {
    /// A range of one batch, shared with the other subscribers.
    Shared(Piece),
    /// Several pieces in one vectored send, at most [`Outgoing::PIECES_MAX`].
    Pieces(Vec<Piece>),
    /// The connection's own: replies, control frames, small pieces joined, later TLS records.
    Private(Vec<u8>),
    /// A part of a page; whoever reads the page shares its bytes. Boxed, since every slot has room for one of these.
    Page(Box<bytes::Bytes>),
}

impl Outgoing {
    /// Most pieces of one vectored send; beyond it joining them by copy is cheaper.
    pub const PIECES_MAX: usize = 16;

    /// Bytes in all.
    pub fn len(&self) -> usize {
        match self {
            Outgoing::Shared(p) => p.len() as usize,
            Outgoing::Pieces(v) => v.iter().map(|p| p.len() as usize).sum(),
            Outgoing::Private(b) => b.len(),
            Outgoing::Page(b) => b.len(),
        }
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(lengths: &[usize]) -> Batch {
        let mut b = Batch::default();
        for (i, n) in lengths.iter().enumerate() {
            b.push(&vec![i as u8; *n], Offset(i as u64 + 1));
        }
        b
    }

    #[test]
    fn capacity_is_at_most_twice_the_content_above_the_minimum() {
        for sizes in [vec![132; 100], vec![1; 1000], vec![5000], vec![300, 70_000, 1]] {
            let b = batch(&sizes);
            assert!(b.bytes.capacity() <= (2 * b.bytes.len()).max(Batch::CAPACITY_BYTES_MIN), "{sizes:?}");
        }
    }

    #[test]
    fn ranges_count_the_messages_that_end_in_them() {
        let b = batch(&[10, 20, 30]);
        assert_eq!(b.messages_between(0, 60), 3);
        assert_eq!(b.messages_between(10, 60), 2);
        assert_eq!(b.messages_between(5, 30), 2);
        assert_eq!(b.messages_between(30, 30), 0);
        assert_eq!(b.start_after(0), 0);
        assert_eq!(b.start_after(2), 30);
        assert_eq!(b.boundary_at_or_before(0, 59), 30);
        assert_eq!(b.boundary_at_or_before(30, 40), 30);
    }
}
