//! Receive buffers that the kernel picks from: a provided-buffer ring (io_uring_register_buf_ring(3)), one per shard.
//!
//! One pool serves all connections of a ring, so that user memory grows with bytes being read, not with connections. The kernel goes
//! round through whatever buffers it has, and so comes to touch each: it is given few at first, and more whenever it finds none.
#![allow(unsafe_code)]

use super::BufferId;
use io_uring::{Submitter, types::BufRingEntry};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// What the kernel wants the entries aligned to.
const PAGE_BYTES: usize = 4096;

/// Entries registered under group [`BufferRing::GROUP`], and the bytes they point at.
///
/// ```text
/// memory   entry 0 (its spare field is the tail) … entry n−1 | buffer 0 … buffer n−1
///          the kernel reads up to the tail                     the kernel writes into those it was given
/// ```
pub(super) struct BufferRing {
    /// As allocated, and from the first page boundary in it. Reached by pointers alone: a reference, or a `Box`, would claim that
    /// nobody else writes there.
    allocation: NonNull<u8>,
    memory: NonNull<u8>,
    layout: Layout,
    tail: u16,
    count: u16,
    /// Buffers the kernel has been given: those from here on it does not know yet.
    known: u16,
}

impl BufferRing {
    /// Buffer group of this pool; each ring has only one.
    pub(super) const GROUP: u16 = 1;
    /// Bytes of one buffer: most client messages fit.
    pub(super) const SIZE: usize = 2048;
    /// Buffers given at a time: enough for what comes in one turn of a core that is not overrun.
    const STEP: u16 = 64;

    /// Registers a pool of at most `count` buffers (a power of two, at most 32,768) with the ring.
    ///
    /// # Errors
    /// The kernel knows no buffer rings (before 5.19), or is out of memory.
    pub(super) fn new(submitter: &Submitter<'_>, count: u16) -> io::Result<BufferRing> {
        assert!(count.is_power_of_two() && count <= 1 << 15, "the kernel masks indices by count − 1");
        let bytes = usize::from(count) * (size_of::<BufRingEntry>() + Self::SIZE);
        // The allocator aligns to a page only what it then fills with zeroes by hand, and so makes resident; hence a page more.
        let layout = Layout::from_size_align(bytes + PAGE_BYTES, align_of::<BufRingEntry>()).expect("at most 65 MiB");
        // SAFETY: the layout has a size above zero.
        let Some(allocation) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        // SAFETY: less than a page, by which the allocation is longer than `bytes`.
        let memory = unsafe { allocation.add(allocation.align_offset(PAGE_BYTES)) };
        let mut ring = BufferRing { allocation, memory, layout, tail: 0, count, known: 0 };
        // SAFETY: the entries are page-aligned, zeroed memory of `count` entries that lives until `unregister` was called or
        // the io_uring is gone: `UringRing` unregisters before it drops us.
        unsafe { submitter.register_buf_ring_with_flags(memory.as_ptr() as u64, count, Self::GROUP, 0)? };
        ring.grow();
        Ok(ring)
    }

    /// Gives the kernel more buffers, if there are any that it does not know.
    pub(super) fn grow(&mut self) {
        let known = self.known.saturating_add(Self::STEP).min(self.count);
        for id in std::mem::replace(&mut self.known, known)..known {
            self.give_back(&BufferId(id));
        }
    }

    /// The first `length` bytes of a buffer the kernel has filled.
    pub(super) fn bytes(&self, id: &BufferId, length: usize) -> &[u8] {
        assert!(length <= Self::SIZE, "the kernel fills only what it was given");
        // SAFETY: within our memory, and zeroed once. The kernel wrote `length` bytes there and will not touch them again until
        // the buffer is given back, which takes `self` mutably and so ends this borrow.
        unsafe { std::slice::from_raw_parts(self.buffer(id.0), length) }
    }

    fn entries(&self) -> *mut BufRingEntry {
        self.memory.as_ptr().cast()
    }

    fn buffer(&self, id: u16) -> *mut u8 {
        assert!(id < self.count, "the kernel knows only the buffers it was given");
        let offset = usize::from(self.count) * size_of::<BufRingEntry>() + usize::from(id) * Self::SIZE;
        // SAFETY: `id` < `count`, so the buffer lies in our allocation.
        unsafe { self.memory.as_ptr().add(offset) }
    }

    /// Lets the kernel fill this buffer again.
    pub(super) fn give_back(&mut self, id: &BufferId) {
        let address = self.buffer(id.0);
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: `index` < `count`, so the entry lies in our allocation. The kernel reads entries only below the tail it has
        // seen, and this one is not below it until the store that follows.
        let entry = unsafe { &mut *self.entries().add(index) };
        entry.set_addr(address as u64);
        entry.set_len(Self::SIZE as u32);
        entry.set_bid(id.0);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry (its reserved field), aligned for 16 bits; both sides access it atomically.
        let tail = unsafe { &*BufRingEntry::tail(self.entries()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; the kernel no longer knows it (see `new`).
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) };
    }
}
