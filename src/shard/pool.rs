//! Batch buffers: reused, and their memory counted while anyone still owes them to a subscriber.

use crate::frame::Batch;
use std::rc::Rc;

/// Free buffers by size class, and the sum of all that are out.
#[derive(Default)]
pub struct Pool {
    /// Class `i` has capacities of `2^(i + CLASS_MIN_BITS)` and below the next.
    free: [Vec<Batch>; Pool::CLASSES],
    out_bytes: usize,
    out: usize,
    sequence: u64,
}

impl Pool {
    const CLASS_MIN_BITS: u32 = Batch::CAPACITY_BYTES_MIN.trailing_zeros();
    const CLASSES: usize = 13;
    /// Free buffers kept per class; the rest goes back to the allocator.
    const FREE_MAX: usize = 64;

    fn class(bytes: usize) -> usize {
        (bytes.max(Batch::CAPACITY_BYTES_MIN).ilog2() - Self::CLASS_MIN_BITS) as usize
    }

    /// An empty batch whose buffer suits a first frame of `bytes`.
    pub fn take(&mut self, bytes: usize) -> Batch {
        let class = Self::class(bytes.next_power_of_two());
        self.free.get_mut(class).and_then(Vec::pop).unwrap_or_default()
    }

    /// Seals a batch: from now on it is shared and counted.
    pub fn seal(&mut self, mut batch: Batch) -> Rc<Batch> {
        self.sequence += 1;
        batch.sequence = self.sequence;
        self.out_bytes += batch.capacity();
        self.out += 1;
        Rc::new(batch)
    }

    /// Lets go of one share; the last one brings the buffer back.
    pub fn release(&mut self, share: Rc<Batch>) {
        let Ok(batch) = Rc::try_unwrap(share) else { return };
        self.out_bytes -= batch.capacity();
        self.out -= 1;
        self.discard(batch);
    }

    /// Takes back a batch that was never sealed.
    pub fn discard(&mut self, mut batch: Batch) {
        batch.clear();
        let class = Self::class(batch.buffer_capacity());
        if let Some(free) = self.free.get_mut(class)
            && free.len() < Self::FREE_MAX
        {
            free.push(batch);
        }
    }

    /// Bytes of sealed batches not yet back, by capacity, each once.
    pub fn out_bytes(&self) -> usize {
        self.out_bytes
    }

    /// Sealed batches not yet back.
    pub fn out(&self) -> usize {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Offset;

    #[test]
    fn a_shared_buffer_is_counted_once_and_comes_back_with_its_last_share() {
        let mut pool = Pool::default();
        let mut batch = pool.take(132);
        batch.push(&[0; 132], Offset(1));
        let first = pool.seal(batch);
        let capacity = first.capacity();
        let second = first.clone();
        assert_eq!((pool.out(), pool.out_bytes()), (1, capacity));
        pool.release(first);
        assert_eq!((pool.out(), pool.out_bytes()), (1, capacity));
        pool.release(second);
        assert_eq!((pool.out(), pool.out_bytes()), (0, 0));
        assert!(pool.take(100).buffer_capacity() >= 132, "the buffer is used again");
    }

    #[test]
    fn a_small_first_frame_never_gets_a_large_buffer() {
        let mut pool = Pool::default();
        let mut large = pool.take(100_000);
        large.push(&[0; 100_000], Offset(1));
        let large = pool.seal(large);
        pool.release(large);
        assert_eq!(pool.take(100).buffer_capacity(), 0);
    }
}
