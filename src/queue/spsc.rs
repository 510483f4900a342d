//! A bounded queue with one producer and one consumer, its bounds in items and in bytes.
//!
//! `crossbeam_queue::SegQueue` underneath, blocks of 31 items: its memory follows what waits, while one array of the largest size,
//! every place of it written to at the start, cost a shard 11 MB before its first client. (It allows more producers; that there is one is what makes
//! [`Sender::has_room`] final.) Bytes are counted beside it: added by the producer before the push, taken off by the consumer once
//! per chunk.

use super::Bell;
use crossbeam_queue::SegQueue;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Items that a consumer sleeps over at most: a shard takes so many in some 0.2 ms, by which its flush is later.
const DOZE_ITEMS_MAX: usize = 512;

struct Shared<T> {
    items: SegQueue<T>,
    items_max: usize,
    bytes: AtomicUsize,
    bytes_max: usize,
    bell: Arc<Bell>,
}

/// The producing end. Not `Clone`: one producer.
pub struct Sender<T>(Arc<Shared<T>>);

/// The consuming end. Not `Clone`: one consumer.
pub struct Receiver<T>(Arc<Shared<T>>);

/// The queue would not take it; here it is back.
#[derive(Debug)]
pub struct Full<T>(pub T);

/// A queue of at most `items_max` items and `bytes_max` bytes, whose consumer is woken by `bell`.
pub fn channel<T>(items_max: usize, bytes_max: usize, bell: Arc<Bell>) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared { items: SegQueue::new(), items_max, bytes: AtomicUsize::new(0), bytes_max, bell });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Sender<T> {
    /// Whether `items` more items of `bytes` bytes together fit now. Final: only this end adds, so what fits now fits later. If not, the
    /// consumer is woken: it may sleep over what is there.
    pub fn has_room(&self, items: usize, bytes: usize) -> bool {
        let q = &self.0;
        // What is larger than the whole bound is let through an empty queue, or it could never pass.
        let queued = q.bytes.load(Ordering::Relaxed);
        let has_room = q.items.len() + items <= q.items_max && (queued == 0 || queued + bytes <= q.bytes_max);
        if !has_room {
            q.bell.ring();
        }
        has_room
    }

    /// Appends `item`, which counts `bytes`. Does not ring: the producer rings once per burst, by [`Sender::ring`].
    pub fn push(&mut self, item: T, bytes: usize) -> Result<(), Full<T>> {
        if !self.has_room(1, bytes) {
            return Err(Full(item));
        }
        self.append(item, bytes)
    }

    /// [`Sender::push`] of one of several items about which [`Sender::has_room`] was asked together. Its bytes are not weighed
    /// again: where all are larger than the whole bound, the first would shut the others out.
    pub fn append(&mut self, item: T, bytes: usize) -> Result<(), Full<T>> {
        if self.0.items.len() >= self.0.items_max {
            return Err(Full(item));
        }
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.0.items.push(item);
        Ok(())
    }

    /// Wakes the consumer if it sleeps. After the pushes: one wake-up serves them all.
    pub fn ring(&self) {
        self.0.bell.ring();
    }

    /// As [`Sender::ring`], if all that was pushed is for the consumer's tick: one that sleeps until then is woken only if there is more than it
    /// has room for, or the queue half full.
    pub fn knock(&self) {
        let q = &self.0;
        q.bell.knock(|room| {
            let bytes = q.bytes.load(Ordering::Relaxed);
            bytes >= room.min(q.bytes_max / 2) || q.items.len() >= DOZE_ITEMS_MAX.min(q.items_max / 2)
        });
    }

    /// Items waiting.
    pub fn len(&self) -> usize {
        self.0.items.len()
    }

    /// Whether none is waiting.
    pub fn is_empty(&self) -> bool {
        self.0.items.is_empty()
    }

    /// Bytes waiting.
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Whether the consuming end is gone.
    pub fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl<T> Receiver<T> {
    /// The oldest item. Its bytes are still counted until [`Receiver::release`].
    pub fn pop(&mut self) -> Option<T> {
        self.0.items.pop()
    }

    /// Takes `bytes` off the count; once per chunk popped.
    pub fn release(&mut self, bytes: usize) {
        if bytes > 0 {
            self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.0.items.is_empty()
    }

    /// Items waiting.
    pub fn len(&self) -> usize {
        self.0.items.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_gives_the_item_back_and_changes_nothing() {
        let (mut tx, mut rx) = channel(2, 100, Bell::silent());
        tx.push(1, 60).unwrap();
        assert_eq!(tx.push(2, 60).unwrap_err().0, 2);
        tx.push(2, 40).unwrap();
        assert!(!tx.has_room(1, 0));
        assert_eq!((rx.pop(), tx.bytes()), (Some(1), 100));
        rx.release(60);
        tx.push(3, 60).unwrap();
        assert_eq!((rx.pop(), rx.pop(), rx.pop()), (Some(2), Some(3), None));
    }

    #[test]
    fn a_dozing_consumer_is_woken_for_more_than_it_has_room_for_and_where_there_is_no_room() {
        let bell = Bell::silent();
        let (mut tx, _rx) = channel(8, 100, bell.clone());
        let mut given = |bytes| {
            bell.doze(40);
            let fits = tx.push((), bytes).is_ok();
            tx.knock();
            (fits, bell.is_sleeping())
        };
        assert_eq!(given(39), (true, true));
        assert_eq!(given(70), (false, false), "it may be for that alone that this one does not fit");
        assert_eq!(given(1), (true, false), "40 bytes");
        let (mut tx, _rx) = channel(8, 1000, bell.clone());
        for n in 1..=4 {
            bell.doze(500);
            tx.push((), 1).unwrap();
            tx.knock();
            assert_eq!(bell.is_sleeping(), n < 4, "half full of items");
        }
    }

    #[test]
    fn an_item_larger_than_the_bound_passes_an_empty_queue_only() {
        let (mut tx, mut rx) = channel(4, 100, Bell::silent());
        tx.push(1, 1000).unwrap();
        assert!(tx.push(2, 1).is_err());
        rx.pop();
        rx.release(1000);
        tx.push(2, 1).unwrap();
    }

    #[test]
    fn items_larger_than_the_bound_together_pass_an_empty_queue_together() {
        let (mut tx, mut rx) = channel(4, 100, Bell::silent());
        assert!(tx.has_room(3, 180));
        (1..=3).for_each(|item| tx.append(item, 60).unwrap());
        assert!(!tx.has_room(1, 1) && tx.bytes() == 180);
        assert_eq!((rx.pop(), rx.pop(), rx.pop()), (Some(1), Some(2), Some(3)));
        rx.release(180);
        (1..=4).for_each(|item| tx.append(item, 60).unwrap());
        assert_eq!((tx.append(5, 0).unwrap_err().0, tx.bytes()), (5, 240));
    }
}
