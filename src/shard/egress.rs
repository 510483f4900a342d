//! What one connection is owed, oldest first: replies and pushes in one FIFO, so that an answer stays before what follows it.
//!
//! Pushes are bounded in bytes; at the bound the caller's policy acts, and nothing here drops a message that is not counted.
//! Replies are never dropped: above their bound the caller stops reading from the client.

use super::pool::Pool;
use crate::frame::{Outgoing, Piece};
use bytes::Bytes;
use std::collections::VecDeque;

/// Boxed, since most connections have none and all pay for the place of one.
type Queue = VecDeque<Item>;

/// One thing owed.
#[derive(Debug)]
enum Item {
    /// A range of a shared batch.
    Push(Piece),
    /// The connection's own bytes.
    Reply(Box<[u8]>),
    /// What is left of a page.
    Page(Box<Bytes>),
}

/// The FIFO. The first item is held in place, so that a connection that keeps up needs no queue; a queue comes from, and
/// goes back to, [`Spares`].
#[derive(Debug, Default)]
pub struct Egress {
    front: Option<Item>,
    rest: Option<Box<Queue>>,
    push_bytes: u32,
    reply_bytes: u32,
}

/// Emptied queues and buffers of a shard, for reuse; and how much memory the queues in use have.
#[derive(Default)]
pub struct Spares {
    #[expect(clippy::vec_box, reason = "moved as they are between here and a connection")]
    queues: Vec<Box<Queue>>,
    buffers: Vec<Vec<u8>>,
    queued_bytes: usize,
}

impl Spares {
    const QUEUES_MAX: usize = 1024;
    const BUFFERS_MAX: usize = 1024;
    /// Larger buffers go back to the allocator.
    const BUFFER_BYTES_MAX: usize = 16 << 10;

    fn queue(&mut self) -> Box<Queue> {
        let queue = self.queues.pop().unwrap_or_default();
        self.queued_bytes += memory(&queue);
        queue
    }

    fn return_queue(&mut self, queue: Box<Queue>) {
        self.queued_bytes -= memory(&queue);
        if self.queues.len() < Self::QUEUES_MAX && queue.capacity() <= 64 {
            self.queues.push(queue);
        }
    }

    /// Memory of the queues in use, by capacity. Where messages are small it is more than that of what stands in them.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// An empty buffer.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.buffers.pop().unwrap_or_default()
    }

    /// Takes one back.
    pub fn return_buffer(&mut self, mut buffer: Vec<u8>) {
        if self.buffers.len() < Self::BUFFERS_MAX && buffer.capacity() <= Self::BUFFER_BYTES_MAX {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }
}

fn memory(queue: &Queue) -> usize {
    queue.capacity() * size_of::<Item>()
}

/// Pieces whose bytes together are at most this are joined by copy: cheaper than a vectored send.
const JOIN_BYTES_MAX: usize = 4096;

impl Egress {
    /// Appends the connection's own bytes.
    pub fn reply(&mut self, bytes: &[u8], spares: &mut Spares) {
        self.reply_bytes += bytes.len() as u32;
        self.append(Item::Reply(bytes.into()), spares);
    }

    /// Appends a page's body, which others may share. It counts against no bound: a client asks for one and is then closed.
    pub fn page(&mut self, body: Bytes, spares: &mut Spares) {
        if !body.is_empty() {
            self.append(Item::Page(Box::new(body)), spares);
        }
    }

    /// Appends a piece if it fits below `pending_bytes_max`, or gives it back.
    pub fn push(&mut self, piece: Piece, pending_bytes_max: usize, spares: &mut Spares) -> Result<(), Piece> {
        if self.push_bytes as usize + piece.len() as usize > pending_bytes_max {
            return Err(piece);
        }
        self.push_bytes += piece.len();
        self.append(Item::Push(piece), spares);
        Ok(())
    }

    /// Appends as many whole frames of `piece` as fit below `pending_bytes_max`; gives back how many messages did not.
    pub fn push_what_fits(
        &mut self,
        mut piece: Piece,
        pending_bytes_max: usize,
        spares: &mut Spares,
        pool: &mut Pool,
    ) -> usize {
        let room = pending_bytes_max.saturating_sub(self.push_bytes as usize);
        let limit = (piece.start as usize + room).min(piece.end as usize) as u32;
        let end = piece.batch.boundary_at_or_before(piece.start, limit);
        let dropped = piece.batch.messages_between(end, piece.end);
        piece.end = end;
        if piece.is_empty() {
            pool.release(piece.batch);
        } else {
            self.push_bytes += piece.len();
            self.append(Item::Push(piece), spares);
        }
        dropped
    }

    fn append(&mut self, item: Item, spares: &mut Spares) {
        if self.front.is_none() {
            self.front = Some(item);
        } else {
            let rest = self.rest.get_or_insert_with(|| spares.queue());
            let before = memory(rest);
            rest.push_back(item);
            spares.queued_bytes += memory(rest) - before;
        }
    }

    fn pop(&mut self, spares: &mut Spares) -> Option<Item> {
        let item = self.front.take()?;
        if let Some(rest) = &mut self.rest {
            self.front = rest.pop_front();
            if rest.is_empty() {
                let queue = self.rest.take().expect("it was there a line ago");
                spares.return_queue(queue);
            }
        }
        match &item {
            Item::Push(piece) => self.push_bytes -= piece.len(),
            Item::Reply(bytes) => self.reply_bytes -= bytes.len() as u32,
            Item::Page(_) => {}
        }
        Some(item)
    }

    /// What to send next: at most `send_bytes_max` bytes of pushes or of a page, in at most [`Outgoing::PIECES_MAX`] pieces, and how many
    /// messages end in it. Small pieces and replies are joined by copy.
    pub fn next_send(
        &mut self,
        send_bytes_max: usize,
        spares: &mut Spares,
        pool: &mut Pool,
    ) -> Option<(Outgoing, usize)> {
        let alone = self.rest.is_none();
        match self.front.as_mut()? {
            Item::Page(body) if body.len() > send_bytes_max => {
                Some((Outgoing::Page(Box::new(body.split_to(send_bytes_max))), 0))
            }
            Item::Page(_) => {
                let Some(Item::Page(body)) = self.pop(spares) else { unreachable!("the front is a page") };
                Some((Outgoing::Page(body), 0))
            }
            Item::Push(piece) if alone || piece.len() as usize >= send_bytes_max => {
                let (piece, messages) = self.cut_front(send_bytes_max, spares);
                Some((Outgoing::Shared(piece), messages))
            }
            Item::Reply(_) if alone => {
                let Some(Item::Reply(bytes)) = self.pop(spares) else { unreachable!("the front is a reply") };
                Some((Outgoing::Private(bytes.into_vec()), 0))
            }
            _ => Some(self.gather(send_bytes_max, spares, pool)),
        }
    }

    /// Takes the front push, or as much of it as one send may carry.
    fn cut_front(&mut self, send_bytes_max: usize, spares: &mut Spares) -> (Piece, usize) {
        if let Some(Item::Push(front)) = &mut self.front
            && front.len() as usize > send_bytes_max
        {
            let mut head = front.clone();
            // After a frame if one ends in reach: whoever is told to go in between has no frame cut, and gets its close frame.
            let limit = head.start + send_bytes_max as u32;
            let boundary = head.batch.boundary_at_or_before(head.start, limit);
            head.end = if boundary > head.start { boundary } else { limit };
            front.start = head.end;
            self.push_bytes -= head.len();
            let messages = head.messages();
            return (head, messages);
        }
        let Some(Item::Push(piece)) = self.pop(spares) else { unreachable!("the front is a push") };
        let messages =
            if piece.start == 0 && piece.end == piece.batch.len() { piece.batch.messages() } else { piece.messages() };
        (piece, messages)
    }

    /// Several items in one send.
    fn gather(&mut self, send_bytes_max: usize, spares: &mut Spares, pool: &mut Pool) -> (Outgoing, usize) {
        let (mut bytes, mut messages) = (0, 0);
        let mut pieces: Vec<Piece> = Vec::new();
        let mut joined: Option<Vec<u8>> = None;
        while let Some(front) = &self.front {
            let next = match front {
                Item::Push(piece) => piece.len() as usize,
                Item::Reply(reply) => reply.len(),
                Item::Page(_) => break,
            };
            let is_first = pieces.is_empty() && joined.is_none();
            if !is_first && bytes + next > send_bytes_max {
                break;
            }
            match front {
                Item::Page(_) => unreachable!("a page goes alone"),
                Item::Reply(_) => {
                    if !pieces.is_empty() {
                        break; // A vectored send carries pieces only; the reply begins the next one.
                    }
                    let Some(Item::Reply(reply)) = self.pop(spares) else { unreachable!("the front is a reply") };
                    joined.get_or_insert_with(|| spares.buffer()).extend_from_slice(&reply);
                }
                Item::Push(_) => {
                    let joins = joined.is_some() || (pieces.is_empty() && next <= JOIN_BYTES_MAX / 4);
                    if joins && bytes + next > JOIN_BYTES_MAX && !is_first {
                        break;
                    }
                    if !joins && pieces.len() == Outgoing::PIECES_MAX {
                        break;
                    }
                    let (piece, ended) = self.cut_front(send_bytes_max, spares);
                    messages += ended;
                    if joins {
                        joined.get_or_insert_with(|| spares.buffer()).extend_from_slice(piece.bytes());
                        pool.release(piece.batch);
                    } else {
                        pieces.push(piece);
                    }
                }
            }
            bytes += next;
        }
        let outgoing = match joined {
            Some(buffer) => Outgoing::Private(buffer),
            None if pieces.len() == 1 => Outgoing::Shared(pieces.pop().expect("one piece")),
            None => Outgoing::Pieces(pieces),
        };
        (outgoing, messages)
    }

    /// Drops every push and says how many messages that were. Replies stay. If the first push has been sent in part, its
    /// connection must be cut: the rest of a frame is missing.
    pub fn drop_pushes(&mut self, spares: &mut Spares, pool: &mut Pool) -> usize {
        let mut dropped = 0;
        let mut kept = Queue::new(); // Not a spare: replies owed behind pushes are few and rare.
        while let Some(item) = self.pop(spares) {
            match item {
                Item::Push(piece) => {
                    dropped += piece.messages();
                    pool.release(piece.batch);
                }
                reply => kept.push_back(reply),
            }
        }
        for item in kept {
            if let Item::Reply(bytes) = &item {
                self.reply_bytes += bytes.len() as u32;
            }
            self.append(item, spares);
        }
        dropped
    }

    /// Drops everything and says how many messages that were.
    pub fn clear(&mut self, spares: &mut Spares, pool: &mut Pool) -> usize {
        let dropped = self.drop_pushes(spares, pool);
        while self.pop(spares).is_some() {}
        dropped
    }

    /// Whether the next byte owed lies inside a frame: the front piece was sent in part and not up to a boundary.
    pub fn is_mid_frame(&self) -> bool {
        match &self.front {
            Some(Item::Push(piece)) => {
                let start = piece.start;
                start > 0 && piece.batch.boundary_at_or_before(0, start) != start
            }
            _ => false,
        }
    }

    /// Sequence of the oldest batch held here; the smaller, the older. What was appended first is the oldest.
    pub fn oldest_sequence(&self) -> Option<u64> {
        let mut items = self.front.iter().chain(self.rest.iter().flat_map(|r| r.iter()));
        items.find_map(|i| if let Item::Push(p) = i { Some(p.batch.sequence) } else { None })
    }

    /// Whether nothing is owed.
    pub fn is_empty(&self) -> bool {
        self.front.is_none()
    }

    /// Bytes of pushes owed.
    pub fn push_bytes(&self) -> usize {
        self.push_bytes as usize
    }

    /// Bytes of replies owed.
    pub fn reply_bytes(&self) -> usize {
        self.reply_bytes as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Batch;
    use crate::ids::Offset;
    use std::rc::Rc;

    fn batch(pool: &mut Pool, lengths: &[usize]) -> Rc<Batch> {
        let mut b = pool.take(lengths[0]);
        for (i, n) in lengths.iter().enumerate() {
            b.push(&vec![b'a' + i as u8; *n], Offset(i as u64 + 1));
        }
        pool.seal(b)
    }

    fn whole(batch: &Rc<Batch>) -> Piece {
        Piece { batch: batch.clone(), start: 0, end: batch.len() }
    }

    fn bytes(outgoing: &Outgoing) -> Vec<u8> {
        match outgoing {
            Outgoing::Shared(p) => p.bytes().to_vec(),
            Outgoing::Pieces(v) => v.iter().flat_map(|p| p.bytes().to_vec()).collect(),
            Outgoing::Private(b) => b.clone(),
            Outgoing::Page(b) => b.to_vec(),
        }
    }

    #[test]
    fn everything_comes_out_once_in_order_whatever_the_send_size() {
        for send_bytes_max in [1, 7, 100, 5000, 1 << 20] {
            let (mut pool, mut spares, mut egress) = (Pool::default(), Spares::default(), Egress::default());
            let (a, b) = (batch(&mut pool, &[10, 20]), batch(&mut pool, &[3000, 1, 1500]));
            let mut expected = Vec::new();
            for round in 0..20 {
                egress.reply(format!("<{round}>").as_bytes(), &mut spares);
                expected.extend(format!("<{round}>").bytes());
                for piece in [whole(&a), whole(&b), whole(&a)] {
                    expected.extend(piece.bytes());
                    egress.push(piece, usize::MAX, &mut spares).unwrap();
                }
            }
            let (mut got, mut messages) = (Vec::new(), 0);
            while let Some((outgoing, n)) = egress.next_send(send_bytes_max, &mut spares, &mut pool) {
                assert!(!outgoing.is_empty());
                if let Outgoing::Pieces(pieces) = &outgoing {
                    assert!(pieces.len() <= Outgoing::PIECES_MAX && outgoing.len() <= send_bytes_max);
                }
                got.extend(bytes(&outgoing));
                messages += n;
            }
            assert!(got == expected, "send_bytes_max {send_bytes_max}");
            assert_eq!(messages, 20 * (2 + 3 + 2));
            assert_eq!((egress.push_bytes(), egress.reply_bytes()), (0, 0));
        }
    }

    #[test]
    fn at_the_bound_a_piece_is_refused_and_nothing_changes() {
        let (mut pool, mut spares, mut egress) = (Pool::default(), Spares::default(), Egress::default());
        let b = batch(&mut pool, &[60]);
        egress.push(whole(&b), 100, &mut spares).unwrap();
        assert!(egress.push(whole(&b), 100, &mut spares).is_err());
        assert_eq!(egress.push_bytes(), 60);
    }

    #[test]
    fn what_fits_is_kept_in_whole_messages_and_the_rest_is_counted() {
        let (mut pool, mut spares, mut egress) = (Pool::default(), Spares::default(), Egress::default());
        let b = batch(&mut pool, &[40, 40, 40]);
        assert_eq!(egress.push_what_fits(whole(&b), 100, &mut spares, &mut pool), 1);
        assert_eq!(egress.push_bytes(), 80);
        assert_eq!(egress.push_what_fits(whole(&b), 100, &mut spares, &mut pool), 3);
        assert_eq!(egress.drop_pushes(&mut spares, &mut pool), 2);
        pool.release(b);
        assert_eq!(pool.out(), 0);
    }

    #[test]
    fn dropping_pushes_keeps_replies_and_sees_a_frame_cut_in_the_middle() {
        let (mut pool, mut spares, mut egress) = (Pool::default(), Spares::default(), Egress::default());
        let b = batch(&mut pool, &[40, 40]);
        egress.push(whole(&b), 1000, &mut spares).unwrap();
        egress.reply(b"pong", &mut spares);
        assert!(!egress.is_mid_frame());
        let (_, messages) = egress.next_send(50, &mut spares, &mut pool).unwrap();
        // Two items: small ones are joined; force a cut by a smaller bound on a lone piece.
        assert!(messages >= 1);
        let mut lone = Egress::default();
        lone.push(whole(&b), 1000, &mut spares).unwrap();
        let (first, ended) = lone.next_send(50, &mut spares, &mut pool).unwrap();
        assert_eq!((first.len(), ended, lone.is_mid_frame()), (40, 1, false), "a send ends with a message if it can");
        let (first, ended) = lone.next_send(30, &mut spares, &mut pool).unwrap();
        assert_eq!((first.len(), ended, lone.is_mid_frame()), (30, 0, true));
        lone.reply(b"pong", &mut spares);
        assert_eq!(lone.drop_pushes(&mut spares, &mut pool), 1);
        assert_eq!((lone.push_bytes(), lone.reply_bytes(), lone.is_empty()), (0, 4, false));
    }

    #[test]
    fn the_memory_of_queues_is_counted_and_comes_back() {
        let (mut pool, mut spares, mut egress) = (Pool::default(), Spares::default(), Egress::default());
        let b = batch(&mut pool, &[5]);
        for _ in 0..1000 {
            egress.push(whole(&b), usize::MAX, &mut spares).unwrap();
        }
        assert!((999..=2048).contains(&(spares.queued_bytes() / size_of::<Item>())), "{}", spares.queued_bytes());
        egress.reply(b"pong", &mut spares);
        egress.drop_pushes(&mut spares, &mut pool);
        assert_eq!(spares.queued_bytes(), 0, "one reply needs no queue");
        for _ in 0..9 {
            egress.reply(b"pong", &mut spares);
        }
        assert!(spares.queued_bytes() >= 9 * size_of::<Item>());
        egress.clear(&mut spares, &mut pool);
        assert_eq!(spares.queued_bytes(), 0);
    }

    #[test]
    fn a_page_leaves_in_shares_of_its_own_bytes_behind_its_head() {
        static BODY: [u8; 300_000] = [7; 300_000];
        let (mut pool, mut spares, mut egress) = (Pool::default(), Spares::default(), Egress::default());
        egress.reply(b"head", &mut spares);
        egress.page(Bytes::from_static(&BODY), &mut spares);
        let (head, _) = egress.next_send(32_768, &mut spares, &mut pool).unwrap();
        assert!(matches!(head, Outgoing::Private(bytes) if bytes == b"head"));
        let mut at = 0;
        while let Some((part, messages)) = egress.next_send(32_768, &mut spares, &mut pool) {
            let Outgoing::Page(part) = part else { panic!("{part:?}") };
            assert_eq!((part.as_ptr(), messages), (BODY[at..].as_ptr(), 0), "no copy");
            assert!(part.len() == 32_768 || egress.is_empty());
            at += part.len();
        }
        assert_eq!((at, egress.reply_bytes()), (BODY.len(), 0));
        egress.page(Bytes::new(), &mut spares);
        assert!(egress.is_empty());
        egress.page(Bytes::from_static(&BODY), &mut spares);
        assert_eq!(egress.clear(&mut spares, &mut pool), 0);
        assert!(egress.is_empty());
    }

    #[test]
    fn an_idle_connection_owes_little_memory() {
        assert!(size_of::<Egress>() <= 40, "{}", size_of::<Egress>());
    }
}
