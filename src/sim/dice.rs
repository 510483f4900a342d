//! The simulation's only source of chance: xoshiro256**, seeded by SplitMix64, in twenty lines of our own, so that a seed
//! means the same on every machine and in every year.

use std::ops::RangeInclusive;

/// A sequence of numbers that is fully decided by its seed. Not for secrets.
#[derive(Clone, Debug)]
pub struct Dice([u64; 4]);

impl Dice {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Dice {
        let mut state = seed;
        Dice(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = self.0;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let (c, d) = (c ^ a, d ^ b);
        self.0 = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        result
    }

    /// A number in `range`; the bias of the modulo is below 2⁻³² for the ranges in use.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (low, high) = range.into_inner();
        low + self.bits() % (high - low + 1)
    }

    /// A number in `range` whose order of magnitude is drawn evenly: small ones are as likely as large ones.
    pub fn magnitude(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (low, high) = range.into_inner();
        let exponents = (high / low.max(1)).max(1).ilog2();
        let ceiling = (low.max(1) << self.within(0..=u64::from(exponents) + 1)).min(high);
        self.within(low..=ceiling.max(low))
    }

    /// An index below `length`.
    pub fn index(&mut self, length: usize) -> usize {
        self.within(0..=length as u64 - 1) as usize
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }

    /// Yes in `per_mille` of a thousand cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.bits() % 1000 < per_mille
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_means_the_same_everywhere() {
        // From the reference implementation (prng.di.unimi.it), seeded by SplitMix64 from 0.
        let mut dice = Dice::new(0);
        let first = [dice.bits(), dice.bits(), dice.bits()];
        assert_eq!(first, [0x99ec_5f36_cb75_f2b4, 0xbf6e_1f78_4956_452a, 0x1a5f_849d_4933_e6e0]);
    }

    #[test]
    fn draws_stay_within_their_ranges_and_reach_the_ends() {
        let mut dice = Dice::new(7);
        let mut seen = [false; 3];
        for _ in 0..1000 {
            seen[dice.within(0..=2) as usize] = true;
            assert!((5..=900).contains(&dice.magnitude(5..=900)));
            assert_eq!(dice.magnitude(4..=4), 4);
        }
        assert_eq!(seen, [true; 3]);
        assert!(!dice.chance(0) && dice.chance(1000));
    }
}
