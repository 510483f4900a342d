//! Which shard a new client goes to.
//!
//! Shards stand in lanes, usually one for each core. A keyed hash of the peer's address and port names two lanes, and the emptier takes
//! it: the fullest stays within a few connections of the emptiest, and nobody outside can aim at one. Shards of one lane are there for
//! their file tables and share a core: they are filled one after the other, so that as few as possible wake for a message, and
//! what a core touches in turn was made in turn. One that is busy isn't passed over for the next of its lane, which would do the
//! same work on the same core, unless the caller calls it closed. Pure; the key is an argument.

use crate::ids::ShardId;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;

/// A file table that is full closes the next client silently, so each keeps this many slots free at most…
const SPARE_SLOTS_MAX: usize = 2000;
/// …or its slots divided by this, whichever is less.
const SPARE_SLOTS_DIVISOR: usize = 20;

/// Connections each shard has, as the accepting core counts them: a place is taken before the hand-over, and given back
/// when the hand-over failed or the shard says that the connection is gone.
pub(super) struct Placement {
    key: [u64; 2],
    shards: Vec<Places>,
    lanes: Vec<usize>, // Places taken in each. Shard i stands in lane i % lanes.
}

/// What a shard says of one more client just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    /// It takes one as soon as it has dealt with those before.
    Busy,
    /// It takes nobody any more, or not this one.
    Closed,
}

/// Where a client goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pick {
    Shard(ShardId),
    /// There is room, at shards that are all busy: it waits.
    Busy,
    Full,
}

struct Places {
    taken: usize,
    high_water: usize,
}

impl Places {
    fn has_room(&self) -> bool {
        self.taken < self.high_water
    }
}

impl Placement {
    /// For shards with tables of `slots` in so many `lanes`, at least one. `key` must be random outside tests.
    pub(super) fn new(key: [u64; 2], lanes: usize, slots: impl IntoIterator<Item = usize>) -> Self {
        let places = |slots: usize| Places { taken: 0, high_water: high_water(slots) };
        let shards: Vec<_> = slots.into_iter().map(places).collect();
        Placement { key, lanes: vec![0; lanes.min(shards.len())], shards }
    }

    /// Where `peer` goes: to the first shard of a lane that is open and has room, whatever its siblings could take meanwhile; to the
    /// emptier of its two lanes, else to the emptiest where that shard is ready. O(shards of a lane) while two lanes have a ready
    /// shard, O(shards) otherwise.
    pub(super) fn pick(&self, peer: SocketAddr, says: impl Fn(ShardId) -> Readiness) -> Pick {
        let lanes = self.lanes.len();
        let first_open = |lane: usize| {
            let shards = (lane..self.shards.len()).step_by(lanes);
            shards
                .filter(|shard| self.shards[*shard].has_room())
                .map(|shard| (lane, shard, says(shard_id(shard))))
                .find(|(_, _, says)| *says != Readiness::Closed)
        };
        let ready = |lane| first_open(lane).filter(|(_, _, says)| *says == Readiness::Ready);
        let emptier = |a: (usize, usize, Readiness), b: (usize, usize, Readiness)| {
            if self.lanes[b.0] < self.lanes[a.0] { b } else { a }
        };
        let mut hash = DefaultHasher::new(); // SipHash; the key goes in front.
        (self.key, peer).hash(&mut hash);
        let hash = hash.finish();
        let Some(first) = (hash as u32 as usize).checked_rem(lanes) else { return Pick::Full };
        // A different lane, if there is one: an offset of 1..lanes from the first, by the hash's other half.
        let second = (hash >> 32) as usize % (lanes - 1).max(1);
        let second = (first + 1 + second) % lanes;
        let of_two = [first, second].into_iter().filter_map(ready).reduce(emptier);
        // Rare, so it may look at all of them.
        match of_two.or_else(|| (0..lanes).filter_map(ready).reduce(emptier)) {
            Some((_, shard, _)) => Pick::Shard(shard_id(shard)),
            None if (0..lanes).any(|lane| first_open(lane).is_some()) => Pick::Busy,
            None => Pick::Full,
        }
    }

    /// One more on `shard`.
    pub(super) fn take(&mut self, shard: ShardId) {
        let places = &mut self.shards[shard.0 as usize];
        assert!(places.has_room(), "a place is taken only where there is one");
        places.taken += 1;
        let lane = shard.0 as usize % self.lanes.len();
        self.lanes[lane] += 1;
    }

    /// One less on `shard`.
    ///
    /// # Panics
    /// If it had none: a connection departed that never arrived.
    pub(super) fn give_back(&mut self, shard: ShardId) {
        let places = &mut self.shards[shard.0 as usize];
        places.taken = places.taken.checked_sub(1).expect("who departs has arrived");
        let lane = shard.0 as usize % self.lanes.len();
        self.lanes[lane] -= 1;
    }

    /// Places taken on all shards.
    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.shards.iter().map(|s| s.taken).sum()
    }
}

fn shard_id(index: usize) -> ShardId {
    ShardId(u16::try_from(index).expect("shards are numbered in 16 bits"))
}

/// Connections a shard with a table of `slots` is given: all but min(2,000, 5 %), and at least one.
pub fn high_water(slots: usize) -> usize {
    let spare = SPARE_SLOTS_MAX.min(slots / SPARE_SLOTS_DIVISOR);
    (slots - spare).max(usize::from(slots > 0))
}

#[cfg(test)]
mod tests {
    use super::Readiness::*;
    use super::*;
    use std::net::Ipv4Addr;

    fn placement(slots: &[usize]) -> Placement {
        in_lanes(slots.len().max(1), slots)
    }

    fn in_lanes(lanes: usize, slots: &[usize]) -> Placement {
        Placement::new([1, 2], lanes, slots.iter().copied())
    }

    fn peer(n: u32) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + n / 50_000), (n % 50_000) as u16))
    }

    fn shard_for(p: &Placement, client: u32) -> ShardId {
        let Pick::Shard(shard) = p.pick(peer(client), |_| Ready) else { panic!("there is room") };
        shard
    }

    fn fill(p: &mut Placement, clients: std::ops::Range<u32>) {
        for n in clients {
            p.take(shard_for(p, n));
        }
    }

    fn closed_if(closed: bool) -> Readiness {
        if closed { Closed } else { Ready }
    }

    #[test]
    fn two_candidates_keep_all_shards_level() {
        for shards in [2, 3, 16, 53] {
            let mut p = placement(&vec![20_000; shards]);
            fill(&mut p, 0..100_000.min(shards as u32 * 10_000));
            let taken = || p.shards.iter().map(|s| s.taken);
            // One choice would leave them hundreds apart; two leave O(log log n).
            let spread = taken().max().unwrap() - taken().min().unwrap();
            assert!(spread <= 10, "{shards} shards: {spread} apart");
        }
    }

    #[test]
    fn lanes_of_more_shards_get_no_more_clients_until_the_others_are_full() {
        let mut p = in_lanes(3, &[1000; 4]);
        fill(&mut p, 0..2700);
        assert!(p.lanes.iter().all(|taken| taken.abs_diff(900) <= 5), "{:?}", p.lanes);
        fill(&mut p, 2700..3800);
        assert_eq!(p.lanes, [1900, 950, 950]);
    }

    #[test]
    fn shards_of_one_lane_are_filled_one_after_the_other_and_lanes_evenly() {
        let mut p = in_lanes(2, &[100; 6]);
        let mut taken = |clients| {
            fill(&mut p, clients);
            p.shards.iter().map(|s| s.taken).collect::<Vec<_>>()
        };
        let some = taken(0..120);
        assert!(some[0].abs_diff(some[1]) <= 6 && some[2..] == [0; 4], "{some:?}");
        assert_eq!(taken(120..300)[..2], [95, 95]);
        assert!(p.lanes[0].abs_diff(p.lanes[1]) <= 6 && p.shards[4].taken == 0 && p.shards[5].taken == 0);
        fill(&mut p, 300..6 * 95);
        assert_eq!(p.pick(peer(9999), |_| Ready), Pick::Full);
        // Whoever leaves makes room for the next: no shard further on is woken for it.
        p.give_back(ShardId(4));
        p.give_back(ShardId(0));
        assert_eq!(p.pick(peer(9999), |_| Ready), Pick::Shard(ShardId(0)));
    }

    #[test]
    fn a_lane_goes_on_past_a_shard_that_can_take_nobody() {
        let mut p = in_lanes(1, &[100; 3]);
        assert_eq!(p.pick(peer(0), |shard| closed_if(shard == ShardId(0))), Pick::Shard(ShardId(1)));
        fill(&mut p, 0..95);
        assert_eq!(p.pick(peer(0), |_| Ready), Pick::Shard(ShardId(1)));
        assert_eq!(p.pick(peer(0), |shard| closed_if(shard == ShardId(1))), Pick::Shard(ShardId(2)));
    }

    #[test]
    fn a_busy_shard_hands_its_clients_to_other_lanes_and_never_on_within_its_own() {
        let mut p = in_lanes(2, &[100; 4]);
        let busy = |shards: &'static [u16]| move |shard: ShardId| if shards.contains(&shard.0) { Busy } else { Ready };
        for n in 0..100 {
            assert_eq!(p.pick(peer(n), busy(&[0])), Pick::Shard(ShardId(1)));
            assert_eq!(p.pick(peer(n), busy(&[0, 1])), Pick::Busy);
        }
        // Nor does it matter what those further on do, until it is their turn.
        fill(&mut p, 0..190);
        assert_eq!(p.pick(peer(0), busy(&[0, 1, 2])), Pick::Shard(ShardId(3)));
        assert_eq!(p.pick(peer(0), busy(&[2, 3])), Pick::Busy);
        assert_eq!(p.pick(peer(0), |shard| if shard.0 == 2 { Closed } else { Busy }), Pick::Busy);
        fill(&mut p, 190..380);
        assert_eq!(p.pick(peer(0), |_| Busy), Pick::Full);
    }

    #[test]
    fn every_place_up_to_the_high_water_mark_is_given_away_and_not_one_more() {
        let mut p = placement(&[100, 10, 1, 0]);
        fill(&mut p, 0..95 + 10 + 1);
        assert_eq!(p.pick(peer(9999), |_| Ready), Pick::Full);
        p.give_back(ShardId(2));
        assert_eq!(p.pick(peer(9999), |_| Ready), Pick::Shard(ShardId(2)));
    }

    #[test]
    fn an_unusable_shard_is_passed_over_whoever_asks() {
        let p = placement(&[1000; 5]);
        for n in 0..1000 {
            assert_eq!(p.pick(peer(n), |shard| closed_if(shard != ShardId(3))), Pick::Shard(ShardId(3)));
        }
        assert_eq!(p.pick(peer(0), |_| Closed), Pick::Full);
        assert_eq!(placement(&[]).pick(peer(0), |_| Ready), Pick::Full);
    }

    #[test]
    fn the_two_candidates_depend_on_the_port_too() {
        let p = placement(&[1000; 16]);
        let picked: std::collections::HashSet<_> = (0..200).map(|n| shard_for(&p, n)).collect();
        assert!(picked.len() > 12, "one address reaches {} of 16 shards", picked.len());
    }

    #[test]
    fn the_high_water_mark_spares_five_percent_but_no_more_than_2000_slots() {
        assert_eq!([0, 1, 19, 20, 100, 20_000, 1 << 20].map(high_water), [0, 1, 19, 19, 95, 19_000, (1 << 20) - 2000]);
    }
}
