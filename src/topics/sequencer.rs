//! Who says which offset comes next: this gateway by itself, or a stream that many machines read.
//!
//! Shards want offsets that only grow, whatever becomes of a stream. So an offset in here counts on when a stream begins anew, and `base`
//! is what the last one of the stream before it was; clients are shown the stream's own numbers:
//!
//! ```text
//! in here     1 … 4711 │ 4712 … 4999 │
//! base        0        │ 4711        │
//! shown       1 … 4711 │ 1 … 288     │    with another epoch
//! ```

use crate::ids::{Epoch, Offset};

/// Assigns epochs and offsets.
pub(super) enum Sequencer {
    /// Counts by itself: one gateway, no agreement with anybody.
    Local {
        /// Of the next topic that begins a life.
        next_epoch: u64,
    },
    /// Offsets are given with the messages.
    Stream {
        /// Of every topic.
        epoch: Epoch,
        /// What is shown is this much less.
        base: u64,
        /// The highest so far.
        seen: Offset,
    },
}

impl Sequencer {
    /// `seed` differs from one start to the next (time, dice): epochs are counted from a point it picks out of 2^64, so that
    /// those of two starts overlap with odds of (topics of one start) ÷ 2^63.
    pub(super) fn local(seed: u64) -> Sequencer {
        Sequencer::Local { next_epoch: scatter(seed) }
    }

    /// Offsets are those of a stream from now on, of which nothing is due up to `after`. `highest` is that of all so far.
    pub(super) fn follow(&mut self, epoch: Epoch, after: u64, highest: Offset) {
        let highest = match self {
            Sequencer::Local { .. } => highest.0,
            Sequencer::Stream { seen, .. } => highest.max(*seen).0,
        };
        let base = highest.saturating_sub(after);
        *self = Sequencer::Stream { epoch, base, seen: Offset(base + after) };
    }

    /// The epoch of a topic that begins a life, and what it begins behind: never 0, and never given before; a stream's is the same for all
    /// its topics and all who read it.
    pub(super) fn begin(&mut self) -> (Epoch, Offset) {
        match self {
            Sequencer::Local { next_epoch } => {
                let epoch = (*next_epoch).max(1);
                *next_epoch = epoch.wrapping_add(1);
                (Epoch(epoch), Offset(0))
            }
            Sequencer::Stream { epoch, seen, .. } => (*epoch, *seen),
        }
    }

    /// The offset of the message after `last`: greater than it, not necessarily by one. Asking changes nothing; a message
    /// that is not admitted has taken no offset.
    pub(super) fn after(&self, last: Offset) -> Offset {
        Offset(last.0 + 1)
    }

    /// The offset of a message that has come from the stream.
    pub(super) fn place(&mut self, sequence: u64) -> Offset {
        let Sequencer::Stream { base, seen, .. } = self else {
            unreachable!("a stream is followed before it gives messages")
        };
        let offset = Offset(*base + sequence);
        *seen = offset.max(*seen);
        offset
    }

    /// The stream's epoch, and what is shown less.
    pub(super) fn followed(&self) -> (Epoch, Offset) {
        match self {
            Sequencer::Local { .. } => unreachable!("only of a stream is anybody told"),
            Sequencer::Stream { epoch, base, .. } => (*epoch, Offset(*base)),
        }
    }

    /// What clients are shown for an offset: 0 for whatever is older than the epoch.
    pub(super) fn shown(&self, offset: Offset) -> Offset {
        match self {
            Sequencer::Local { .. } => offset,
            Sequencer::Stream { base, .. } => Offset(offset.0.saturating_sub(*base)),
        }
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
        let mut sequencer = Sequencer::Local { next_epoch: u64::MAX - 1 };
        let epochs: Vec<u64> = (0..4).map(|_| sequencer.begin().0.0).collect();
        assert_eq!(epochs, [u64::MAX - 1, u64::MAX, 1, 2]);
    }

    #[test]
    fn neighbouring_seeds_begin_far_apart() {
        let first = |seed| Sequencer::local(seed).begin().0.0;
        for seed in 0..1000 {
            assert!(first(seed).abs_diff(first(seed + 1)) > 1 << 32, "seeds {seed} and the next");
        }
    }
    #[test]
    fn a_stream_that_begins_anew_is_shown_from_its_beginning_and_goes_on_in_here() {
        let mut sequencer = Sequencer::local(7);
        sequencer.follow(Epoch(1), 4000, Offset(0));
        assert_eq!(sequencer.begin(), (Epoch(1), Offset(4000)));
        assert_eq!(sequencer.place(4001), Offset(4001));
        assert_eq!(sequencer.begin(), (Epoch(1), Offset(4001)), "all nodes begin a topic where they are in the stream");
        sequencer.follow(Epoch(2), 0, Offset(4001));
        let (epoch, begin) = sequencer.begin();
        assert_eq!((epoch, sequencer.shown(begin)), (Epoch(2), Offset(0)));
        let first = sequencer.place(1);
        assert!(first > Offset(4001), "{first:?}");
        assert_eq!((sequencer.shown(first), sequencer.shown(Offset(4001))), (Offset(1), Offset(0)));
    }

    #[test]
    fn a_stream_that_has_lost_its_last_messages_is_followed_from_there() {
        let mut sequencer = Sequencer::local(7);
        sequencer.follow(Epoch(1), 100, Offset(0));
        sequencer.place(110);
        sequencer.follow(Epoch(1), 105, Offset(0));
        let again = sequencer.place(106);
        assert!(again > Offset(110));
        assert_eq!(sequencer.shown(again), Offset(106));
    }
}
