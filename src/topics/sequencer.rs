//! Who says which offset comes next: a seam, local and at once for now, from a stream shared by many machines later.

use crate::ids::{Epoch, Offset};

/// Assigns epochs and offsets.
pub trait Sequencer {
    /// The epoch of a topic that begins a life: never 0, never given before.
    fn begin(&mut self) -> Epoch;

    /// The offset of the message after `last`: greater than it, not necessarily by one. Asking changes nothing; a message
    /// that is not admitted has taken no offset.
    fn after(&self, epoch: Epoch, last: Offset) -> Offset;
}

/// Counts by itself: one gateway, no agreement with anybody.
pub struct LocalSequencer {
    next_epoch: u64,
}

impl LocalSequencer {
    /// `seed` differs from one start to the next (time, dice): epochs are counted from a point it picks out of 2^64, so that
    /// those of two starts overlap with odds of (topics of one start) ÷ 2^63.
    pub fn new(seed: u64) -> LocalSequencer {
        LocalSequencer { next_epoch: scatter(seed) }
    }
}

impl Sequencer for LocalSequencer {
    fn begin(&mut self) -> Epoch {
        let epoch = self.next_epoch.max(1);
        self.next_epoch = epoch.wrapping_add(1);
        Epoch(epoch)
    }

    fn after(&self, _epoch: Epoch, last: Offset) -> Offset {
        Offset(last.0 + 1)
    }
}

/// The finalizer of splitmix64: neighbouring seeds end far apart.
fn scatter(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_never_zero_and_never_alike() {
        let mut sequencer = LocalSequencer { next_epoch: u64::MAX - 1 };
        let epochs: Vec<u64> = (0..4).map(|_| sequencer.begin().0).collect();
        assert_eq!(epochs, [u64::MAX - 1, u64::MAX, 1, 2]);
    }

    #[test]
    fn neighbouring_seeds_begin_far_apart() {
        let first = |seed| LocalSequencer::new(seed).begin().0;
        for seed in 0..1000 {
            assert!(first(seed).abs_diff(first(seed + 1)) > 1 << 32, "seeds {seed} and the next");
        }
    }
}
