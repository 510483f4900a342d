//! Wakes a core that sleeps in its ring, and costs nothing while it does not.
//!
//! ```text
//! producer                         consumer
//!   push item                        sleeping = true
//!   fence                            fence
//!   sleeping? ── yes: write eventfd  queues empty? ── no: sleeping = false, go on
//!                                        └ yes: wait in the ring (it polls the eventfd)
//! ```
//!
//! Either the producer sees the flag or the consumer sees the item; both fences are sequentially consistent, so that
//! missing each other is impossible (store buffering, as in Dekker's algorithm). eventfd(2) and a multishot poll: measured
//! within 10 % of MSG_RING and of the ring-less REGISTER_SEND_MSG_RING, and works on every kernel we support.
//!
//! A core that sleeps until its tick *dozes*: what is for that tick anyway does not wake it ([`Bell::knock`]), unless it is more than the core
//! has room for. It takes it when it wakes, in front of the flush.

use crate::sys::EventFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

/// How many bytes for its tick may wait before the owner is to be woken: none while it sleeps, any while it is awake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Depth(usize);

impl Depth {
    const ASLEEP: Depth = Depth(0);
    pub(crate) const AWAKE: Depth = Depth(usize::MAX);
}

/// One core's bell. Producers ring it, the core says when it sleeps.
pub struct Bell {
    depth: AtomicUsize,
    rings: AtomicU64,
    event: Option<EventFd>,
}

impl Bell {
    /// A bell with an eventfd behind it.
    ///
    /// # Errors
    /// eventfd(2) failed: out of descriptors or memory.
    pub fn new() -> std::io::Result<Arc<Bell>> {
        Ok(Arc::new(Bell::with(Some(EventFd::new()?))))
    }

    /// A bell that only counts: for simulations and tests, where nobody sleeps in a kernel.
    pub fn silent() -> Arc<Bell> {
        Arc::new(Bell::with(None))
    }

    fn with(event: Option<EventFd>) -> Bell {
        Bell { depth: AtomicUsize::new(Depth::AWAKE.0), rings: AtomicU64::new(0), event }
    }

    /// Wakes the owner if it sleeps or dozes; about 1 µs then, a fence and a load otherwise.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.depth() != Depth::AWAKE {
            self.wake();
        }
    }

    /// As [`Bell::ring`], for what its tick is soon enough for: one that dozes is woken only if `is_too_much` says so of the bytes for which
    /// it has room.
    pub fn knock(&self, is_too_much: impl FnOnce(usize) -> bool) {
        fence(Ordering::SeqCst);
        let depth = self.depth();
        if depth != Depth::AWAKE && (depth == Depth::ASLEEP || is_too_much(depth.0)) {
            self.wake();
        }
    }

    fn wake(&self) {
        if self.depth.swap(Depth::AWAKE.0, Ordering::Relaxed) != Depth::AWAKE.0 {
            self.rings.fetch_add(1, Ordering::Relaxed);
            if let Some(event) = &self.event {
                event.signal();
            }
        }
    }

    /// Says that the owner is about to sleep. It must look at its queues once more before it does.
    pub fn sleep(&self) {
        self.set_depth(Depth::ASLEEP);
    }

    /// Says that the owner is about to sleep until its tick, for which it has room for `bytes` more, at least one. It must look at its queues
    /// once more before it does.
    pub fn doze(&self, bytes: usize) {
        self.set_depth(Depth(bytes.clamp(1, usize::MAX - 1)));
    }

    /// Says that the owner is awake.
    pub fn awake(&self) {
        self.depth.store(Depth::AWAKE.0, Ordering::Relaxed);
    }

    /// Whether the owner said that it sleeps or dozes, and nobody has woken it since.
    pub fn is_sleeping(&self) -> bool {
        self.depth() != Depth::AWAKE
    }

    /// How deeply the owner sleeps.
    pub(crate) fn depth(&self) -> Depth {
        Depth(self.depth.load(Ordering::Relaxed))
    }

    /// Says how deeply the owner is about to sleep. It must look at its queues once more before it does.
    pub(crate) fn set_depth(&self, depth: Depth) {
        self.depth.store(depth.0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Times somebody woke the owner.
    pub fn rings(&self) -> u64 {
        self.rings.load(Ordering::Relaxed)
    }

    /// What the owner's ring polls.
    pub fn event(&self) -> Option<&EventFd> {
        self.event.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_dozes_is_woken_by_a_word_or_by_too_much_for_its_tick_and_who_sleeps_by_anything() {
        let bell = Bell::silent();
        let knocked = |bytes: usize| {
            bell.knock(|room| bytes >= room);
            bell.is_sleeping()
        };
        assert!(!knocked(1000), "awake");
        bell.doze(100);
        assert!(knocked(99));
        assert!(!knocked(100) && bell.rings() == 1);
        bell.doze(100);
        bell.ring();
        assert!(!bell.is_sleeping() && bell.rings() == 2);
        bell.sleep();
        assert!(!knocked(0) && bell.rings() == 3);
        bell.ring();
        assert_eq!(bell.rings(), 3, "it is awake");
        bell.doze(0);
        assert!(knocked(0), "no room is not yet deep sleep");
    }
}
