//! What the shards of one lane hold together.
//!
//! A bound of the configuration is for all shards. Each lane has an equal part of it, and its shards, which share a core and are filled one
//! after the other, have that in common: the first of fifty may be the only one with clients. A shard that has its lane to itself, as by
//! default, shares with nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is counted over a lane. A clone is the same lane.
#[derive(Clone, Debug, Default)]
pub struct Lane {
    questions: Arc<Count>,
    partial_bytes: Arc<Count>,
    owed_bytes: Arc<Count>,
}

#[derive(Debug, Default)]
#[repr(align(128))] // Written at every turn that owes: no cache line is shared with another core's.
struct Count(AtomicUsize);

impl Lane {
    /// Questions under way.
    pub fn questions(&self) -> Held {
        Held::of(&self.questions)
    }

    /// Memory of incomplete messages.
    pub fn partial_bytes(&self) -> Held {
        Held::of(&self.partial_bytes)
    }

    /// Memory of what subscribers have not taken yet.
    pub fn owed_bytes(&self) -> Held {
        Held::of(&self.owed_bytes)
    }
}

/// One shard's part of one count. Relaxed: nothing else is read by it, and a sum that is a turn old bounds as well.
#[derive(Debug)]
pub struct Held {
    lane: Arc<Count>,
    own: usize,
}

impl Held {
    fn of(lane: &Arc<Count>) -> Held {
        Held { lane: lane.clone(), own: 0 }
    }

    /// This shard's.
    pub fn own(&self) -> usize {
        self.own
    }

    /// This shard's is `own` from now on. Nothing is written if it was.
    pub fn set(&mut self, own: usize) {
        if own != self.own {
            // Wrapping: the sum goes down by what it goes up to 2^64 by.
            self.lane.0.fetch_add(own.wrapping_sub(self.own), Ordering::Relaxed);
            self.own = own;
        }
    }

    /// That of all shards of the lane.
    pub fn in_lane(&self) -> usize {
        self.lane.0.load(Ordering::Relaxed)
    }

    /// That of the others.
    pub fn others(&self) -> usize {
        self.in_lane().saturating_sub(self.own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shards_of_a_lane_hold_is_summed_and_given_back() {
        let lane = Lane::default();
        let (mut a, mut b) = (lane.questions(), lane.clone().questions());
        a.set(3);
        b.set(5);
        assert_eq!((a.own(), a.others(), a.in_lane(), b.in_lane()), (3, 5, 8, 8));
        a.set(1);
        b.set(0);
        assert_eq!((a.in_lane(), b.others(), lane.partial_bytes().in_lane()), (1, 1, 0));
    }
}
