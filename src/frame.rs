//! What travels: a publication as it came in, its frame in one encoding, and a tick's frames in one buffer.
//!
//! ```text
//! Publication ──encode──► Frame (Arc, one per encoding, shared by all shards)
//!                           │ copied once per shard and tick
//!                           ▼
//!                         Batch  [frame 1|frame 2|…|frame n]   marks: end and offset of each
//!                                   └────────────┘ Piece: what one subscriber is owed of it
//! ```
//!
//! Some encodings join several messages in one frame. Then a frame is what can't be cut, and marks tell its messages apart:
//!
//! ```text
//! Batch  [header|message 1|separator|message 2][header|message 3]
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

/// Wire bytes of one WebSocket message in one encoding: immutable, built once, shared by all shards. For an encoding that joins
/// messages in one frame: of its payload alone, since the header comes once all are there.
pub type Frame = Arc<[u8]>;

/// Where one message of a [`Batch`] ends, and which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Index of the byte after the message.
    pub end: u32,
    /// Index of the first byte of the frame that the message is in.
    pub frame: u32,
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
    /// The last frame may take more messages: index of its first mark.
    open: Option<u32>,
    /// Counts the sealed batches of a shard: the smaller, the older. Whoever holds the smallest goes first when memory is short.
    pub sequence: u64,
    /// When the oldest message in it was admitted.
    pub oldest: Time,
}

impl Batch {
    /// Smallest capacity, so that tiny messages don't grow a buffer many times.
    pub const CAPACITY_BYTES_MIN: usize = 256;

    /// Room for the header of a frame that takes several messages: enough for payloads of up to 65,535 bytes (RFC 6455 §5.2).
    pub const HEADER_ROOM: usize = 4;

    /// Appends one message in a frame of its own.
    pub fn push(&mut self, frame: &[u8], offset: Offset) {
        let start = self.bytes.len() as u32;
        self.append(frame);
        self.mark(start, offset);
    }

    /// [`Batch::push`] of a frame that is in two parts.
    pub fn push_parts(&mut self, header: &[u8], payload: &[u8], offset: Offset) {
        debug_assert!(self.open.is_none());
        let start = self.bytes.len() as u32;
        self.append(header);
        self.append(payload);
        self.mark(start, offset);
    }

    /// Appends one message to the open frame, behind `separator`, or opens a frame.
    pub fn join(&mut self, separator: &[u8], payload: &[u8], offset: Offset) {
        let start = match self.open {
            Some(first) => {
                self.append(separator);
                self.marks[first as usize].frame
            }
            None => {
                self.open = Some(self.marks.len() as u32);
                let start = self.bytes.len() as u32;
                self.append(&[0; Self::HEADER_ROOM]);
                start
            }
        };
        self.append(payload);
        self.mark(start, offset);
    }

    /// Messages and payload bytes of the open frame, if there is one.
    pub fn open_frame(&self) -> Option<(usize, usize)> {
        let first = self.open? as usize;
        let start = self.marks[first].frame as usize + Self::HEADER_ROOM;
        Some((self.marks.len() - first, self.bytes.len() - start))
    }

    /// Ends the open frame: `header`, of at most [`Batch::HEADER_ROOM`] bytes, goes in front of it.
    pub fn close_frame(&mut self, header: &[u8]) {
        let first = self.open.take().expect("a frame is open") as usize;
        let start = self.marks[first].frame as usize;
        let unused = Self::HEADER_ROOM - header.len();
        if unused > 0 {
            // A short header is one of a payload of at most 125 bytes: little to move.
            self.bytes.copy_within(start + Self::HEADER_ROOM.., start + header.len());
            self.bytes.truncate(self.bytes.len() - unused);
            self.marks[first..].iter_mut().for_each(|mark| mark.end -= unused as u32);
        }
        self.bytes[start..start + header.len()].copy_from_slice(header);
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.bytes.capacity() - self.bytes.len() < bytes.len() {
            let capacity = (self.bytes.len() + bytes.len()).next_power_of_two().max(Self::CAPACITY_BYTES_MIN);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn mark(&mut self, frame: u32, offset: Offset) {
        let end = u32::try_from(self.bytes.len()).expect("a batch is bounded far below 4 GiB");
        self.marks.push(Mark { end, frame, offset });
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
        self.open = None;
    }

    /// Index of the first byte after the first `messages` messages.
    pub fn start_after(&self, messages: usize) -> u32 {
        match messages {
            0 => 0,
            n => self.marks[n - 1].end,
        }
    }

    /// How many messages are in frames that end at `start < end ≤ stop`: a client has none of a frame before it has all.
    pub fn messages_between(&self, start: u32, stop: u32) -> usize {
        self.messages_before(stop) - self.messages_before(start)
    }

    /// The last end of a frame at or before `limit`, not before `start`.
    pub fn boundary_at_or_before(&self, start: u32, limit: u32) -> u32 {
        self.start_after(self.messages_before(limit)).max(start)
    }

    /// How many messages are in frames that end at or before `limit`.
    fn messages_before(&self, limit: u32) -> usize {
        let ended = self.marks.partition_point(|m| m.end <= limit);
        match self.marks.get(ended) {
            Some(next) if ended > 0 && next.frame == self.marks[ended - 1].frame => {
                self.marks[..ended].partition_point(|m| m.end <= next.frame)
            }
            _ => ended,
        }
    }
}

/// A range of a shared batch: what one subscriber is owed of it. Holding it pins the batch.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The batch.
    pub batch: Rc<Batch>,
    /// First byte owed.
    pub start: u32,
    /// Byte after the last one owed; the end of a frame, or as far as one send goes.
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

    /// How many messages are in frames that end within it.
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

    #[test]
    fn messages_of_one_frame_are_told_apart_and_never_cut_apart() {
        let mut b = Batch::default();
        b.join(b"\n", b"one", Offset(1));
        b.join(b"\n", b"two", Offset(2));
        assert_eq!(b.open_frame(), Some((2, 7)));
        b.close_frame(&[0x81, 7]);
        b.push_parts(b"\x81\x05", b"three", Offset(3));
        b.join(b"\n", &[b'x'; 130], Offset(4));
        b.close_frame(&[0x81, 126, 0, 130]);
        assert_eq!((b.open_frame(), b.messages()), (None, 4));
        assert_eq!(&b.bytes()[..20], b"\x81\x07one\ntwo\x81\x05three\x81\x7e\x00\x82");
        let marks = b.marks().iter().map(|m| (m.frame, m.end, m.offset.0));
        assert_eq!(marks.collect::<Vec<_>>(), [(0, 5, 1), (0, 9, 2), (9, 16, 3), (16, 150, 4)]);
        let boundaries = [(0, 0), (5, 0), (8, 0), (9, 9), (15, 9), (16, 16), (149, 16), (150, 150)];
        for (limit, boundary) in boundaries {
            assert_eq!(b.boundary_at_or_before(0, limit), boundary, "{limit}");
        }
        assert_eq!((b.messages_between(0, 8), b.messages_between(0, 9), b.messages_between(6, 9)), (0, 2, 2));
        assert_eq!((b.messages_between(9, 150), b.messages_between(20, 150)), (2, 1));
    }
}
