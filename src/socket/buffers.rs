//! Receive buffers that the kernel picks from: a provided-buffer ring (io_uring_register_buf_ring(3)), one per shard.
//!
//! One pool serves all connections of a ring, so that user memory grows with bytes being read, not with connections.
#![allow(unsafe_code)]

use super::BufferId;
use io_uring::{Submitter, types::BufRingEntry};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// Entries registered under group [`BufferRing::GROUP`], and the bytes they point at.
pub(super) struct BufferRing {
    entries: NonNull<BufRingEntry>,
    layout: Layout,
    bytes: Box<[u8]>,
    tail: u16,
    count: u16,
}

impl BufferRing {
    /// Buffer group of this pool; each ring has only one.
    pub(super) const GROUP: u16 = 1;
    /// Bytes of one buffer: most client messages fit.
    pub(super) const SIZE: usize = 2048;

    /// Registers `count` buffers (a power of two, at most 32,768) with the ring.
    ///
    /// # Errors
    /// The kernel knows no buffer rings (before 5.19), or is out of memory.
    pub(super) fn new(submitter: &Submitter<'_>, count: u16) -> io::Result<BufferRing> {
        assert!(count.is_power_of_two() && count <= 1 << 15, "the kernel masks indices by count − 1");
        let layout = Layout::from_size_align(usize::from(count) * size_of::<BufRingEntry>(), 4096)
            .expect("a small multiple of 16 bytes");
        // SAFETY: the layout has a size above zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(entries) = NonNull::new(memory.cast::<BufRingEntry>()) else { handle_alloc_error(layout) };
        let bytes = vec![0; usize::from(count) * Self::SIZE].into_boxed_slice();
        let mut ring = BufferRing { entries, layout, bytes, tail: 0, count };
        // SAFETY: the entries are page-aligned, zeroed memory of `count` entries that lives until `unregister` was called or
        // the io_uring is gone: `UringRing` unregisters before it drops us.
        unsafe { submitter.register_buf_ring_with_flags(memory as u64, count, Self::GROUP, 0)? };
        for id in 0..count {
            ring.give_back(&BufferId(id));
        }
        Ok(ring)
    }

    /// The first `length` bytes of a buffer the kernel has filled.
    pub(super) fn bytes(&self, id: &BufferId, length: usize) -> &[u8] {
        assert!(id.0 < self.count && length <= Self::SIZE, "the kernel fills only what it was given");
        let start = usize::from(id.0) * Self::SIZE;
        &self.bytes[start..start + length]
    }

    /// Lets the kernel fill this buffer again.
    pub(super) fn give_back(&mut self, id: &BufferId) {
        let start = usize::from(id.0) * Self::SIZE;
        let address = self.bytes[start..start + Self::SIZE].as_mut_ptr();
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: `index` < `count`, so the entry lies in our allocation. The kernel reads entries only below the tail it has
        // seen, and this one is not below it until the store that follows.
        let entry = unsafe { &mut *self.entries.as_ptr().add(index) };
        entry.set_addr(address as u64);
        entry.set_len(Self::SIZE as u32);
        entry.set_bid(id.0);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry (its reserved field), aligned for 16 bits; both sides access it atomically.
        let tail = unsafe { &*BufRingEntry::tail(self.entries.as_ptr()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; the kernel no longer knows it (see `new`).
        unsafe { dealloc(self.entries.as_ptr().cast(), self.layout) };
    }
}
