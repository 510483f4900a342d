//! Whether a new client may come in at all: connections in all, connections from its address, new connections a second.
//! Pure; time is an argument. Each limit is off at 0 and then costs nothing.

use super::refusal::Reason;
use crate::clock::Time;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

const SECOND_NS: u64 = 1_000_000_000;

/// The limits, and what counts against them.
pub(super) struct Admission {
    connections_max: usize,
    connections: usize,
    per_address_max: usize,
    // Addresses with at least one connection, so never more than there are connections. Empty if the limit is off.
    per_address: HashMap<IpAddr, usize>,
    rate: Option<Bucket>,
}

impl Admission {
    /// 0 switches a limit off.
    pub(super) fn new(connections_max: usize, per_address_max: usize, per_s_max: u64, now: Time) -> Admission {
        Admission {
            connections_max,
            connections: 0,
            per_address_max,
            per_address: HashMap::new(),
            rate: (per_s_max > 0).then(|| Bucket::new(per_s_max, now)),
        }
    }

    /// Counts a new client from `address` (none: a proxy's, whose client is not known yet), or says why not and counts nothing.
    pub(super) fn admit(&mut self, address: Option<IpAddr>, now: Time) -> Result<(), Reason> {
        if self.connections_max > 0 && self.connections >= self.connections_max {
            return Err(Reason::Full);
        }
        if address.is_some_and(|address| !self.has_room(address)) {
            return Err(Reason::Address);
        }
        // Last: whoever is refused for another reason has not used up anybody's share of the rate.
        if self.rate.as_mut().is_some_and(|bucket| !bucket.take(now)) {
            return Err(Reason::Rate);
        }
        self.connections += 1;
        if let Some(address) = address {
            self.count(address);
        }
        Ok(())
    }

    /// Counts a client that was admitted without an address for this one; `false`: there are enough from there already.
    pub(super) fn claim(&mut self, address: IpAddr) -> bool {
        let has_room = self.has_room(address);
        if has_room {
            self.count(address);
        }
        has_room
    }

    fn has_room(&self, address: IpAddr) -> bool {
        self.per_address_max == 0 || self.per_address.get(&address).is_none_or(|n| *n < self.per_address_max)
    }

    fn count(&mut self, address: IpAddr) {
        if self.per_address_max > 0 {
            *self.per_address.entry(address).or_default() += 1;
        }
    }

    /// A client that was admitted is gone; `address`: what it was counted for.
    pub(super) fn leave(&mut self, address: Option<IpAddr>) {
        self.connections = self.connections.checked_sub(1).expect("who leaves was admitted");
        if let Some(address) = address {
            self.release(address);
        }
    }

    /// One less from `address`.
    pub(super) fn release(&mut self, address: IpAddr) {
        if self.per_address_max > 0
            && let Entry::Occupied(mut from_here) = self.per_address.entry(address)
        {
            *from_here.get_mut() -= 1;
            if *from_here.get() == 0 {
                from_here.remove();
            }
        }
    }

    /// Clients admitted and not gone.
    pub(super) fn connections(&self) -> usize {
        self.connections
    }
}

/// A token bucket that holds one second's worth and begins full.
struct Bucket {
    per_s: u64,
    // In billionths of a client: what the rate adds in a nanosecond is then a whole number.
    level: u64,
    filled: Time,
}

impl Bucket {
    fn new(per_s: u64, now: Time) -> Bucket {
        let per_s = per_s.min(u64::MAX / SECOND_NS); // 18 billion a second are no limit.
        Bucket { per_s, level: per_s * SECOND_NS, filled: now }
    }

    fn take(&mut self, now: Time) -> bool {
        let full = self.per_s * SECOND_NS;
        let elapsed_ns = now.since_ns(self.filled).min(SECOND_NS);
        self.level = self.level.saturating_add(elapsed_ns * self.per_s).min(full);
        self.filled = self.filled.max(now);
        let enough = self.level >= SECOND_NS;
        if enough {
            self.level -= SECOND_NS;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
    const START: Time = Time(5_000_000_000);

    #[test]
    fn without_limits_everybody_comes_in_and_no_address_is_remembered() {
        let mut admission = Admission::new(0, 0, 0, START);
        (0..10_000).for_each(|_| admission.admit(Some(A), START).unwrap());
        assert_eq!((admission.connections(), admission.per_address.len()), (10_000, 0));
        (0..10_000).for_each(|_| admission.leave(Some(A)));
        assert_eq!(admission.connections(), 0);
    }

    #[test]
    fn each_address_has_its_own_cap_and_is_forgotten_with_its_last_connection() {
        let mut admission = Admission::new(0, 2, 0, START);
        admission.admit(Some(A), START).unwrap();
        admission.admit(Some(A), START).unwrap();
        assert_eq!(admission.admit(Some(A), START), Err(Reason::Address));
        admission.admit(Some(B), START).unwrap();
        admission.leave(Some(A));
        admission.admit(Some(A), START).unwrap();
        [A, A, B].into_iter().for_each(|address| admission.leave(Some(address)));
        assert_eq!((admission.connections(), admission.per_address.len()), (0, 0));
    }

    #[test]
    fn who_comes_through_a_proxy_counts_for_its_own_address_once_that_is_known() {
        let mut admission = Admission::new(0, 1, 0, START);
        (0..3).for_each(|_| admission.admit(None, START).unwrap());
        assert!(admission.claim(A) && !admission.claim(A) && admission.claim(B));
        assert_eq!(admission.admit(Some(A), START), Err(Reason::Address), "the same cap as for who comes directly");
        admission.leave(Some(A));
        admission.leave(None);
        assert!(admission.claim(A));
        admission.release(A);
        admission.leave(Some(B));
        assert_eq!((admission.connections(), admission.per_address.len()), (0, 0));
    }

    #[test]
    fn connections_in_all_are_capped_whatever_the_address() {
        let mut admission = Admission::new(2, 0, 0, START);
        admission.admit(Some(A), START).unwrap();
        admission.admit(Some(B), START).unwrap();
        assert_eq!(admission.admit(Some(B), START), Err(Reason::Full));
        admission.leave(Some(A));
        admission.admit(Some(B), START).unwrap();
    }

    #[test]
    fn the_rate_allows_a_burst_of_one_second_and_then_its_pace() {
        let mut admission = Admission::new(0, 0, 10, START);
        (0..10).for_each(|_| admission.admit(Some(A), START).unwrap());
        assert_eq!(admission.admit(Some(A), START), Err(Reason::Rate));
        assert_eq!(admission.admit(Some(A), START.plus_ms(99)), Err(Reason::Rate));
        admission.admit(Some(A), START.plus_ms(100)).unwrap();
        assert_eq!(admission.admit(Some(A), START.plus_ms(199)), Err(Reason::Rate));
        admission.admit(Some(A), START.plus_ms(200)).unwrap();
        // An hour of quiet saves up one second's worth, not more.
        let later = START.plus_ms(3_600_000);
        assert_eq!((0..100).filter(|_| admission.admit(Some(A), later).is_ok()).count(), 10);
    }

    #[test]
    fn who_is_over_the_address_cap_uses_up_no_rate() {
        let mut admission = Admission::new(0, 1, 2, START);
        admission.admit(Some(A), START).unwrap();
        (0..100).for_each(|_| assert_eq!(admission.admit(Some(A), START), Err(Reason::Address)));
        admission.admit(Some(B), START).unwrap();
    }

    proptest! {
        #[test]
        fn no_window_admits_more_than_its_rate_and_one_burst(
            per_s in 1u64..2000,
            steps in proptest::collection::vec((0u64..3_000_000, 1usize..5), 1..400),
        ) {
            let mut admission = Admission::new(0, 0, per_s, START);
            let (mut now, mut admitted) = (START, 0u64);
            for (ns, attempts) in steps {
                now.0 += ns;
                admitted += (0..attempts).filter(|_| admission.admit(Some(A), now).is_ok()).count() as u64;
                let allowed = per_s + now.since_ns(START) * per_s / SECOND_NS;
                prop_assert!(admitted <= allowed, "{} admitted, {} allowed", admitted, allowed);
            }
        }

        #[test]
        fn the_counts_are_those_of_a_plain_list(
            cap in 1usize..4,
            total in 1usize..12,
            steps in proptest::collection::vec((any::<bool>(), 0u8..4), 1..200),
        ) {
            let mut admission = Admission::new(total, cap, 0, START);
            let mut model: Vec<IpAddr> = Vec::new();
            for (comes, who) in steps {
                let address = IpAddr::from([10, 0, 0, who]);
                let here = model.iter().filter(|a| **a == address).count();
                if comes {
                    let expected = if model.len() >= total { Err(Reason::Full) } else if here >= cap { Err(Reason::Address) } else { Ok(()) };
                    prop_assert_eq!(admission.admit(Some(address), START), expected);
                    if expected.is_ok() { model.push(address); }
                } else if let Some(i) = model.iter().position(|a| *a == address) {
                    model.swap_remove(i);
                    admission.leave(Some(address));
                }
                prop_assert_eq!(admission.connections(), model.len());
                let distinct: std::collections::HashSet<_> = model.iter().collect();
                prop_assert_eq!(admission.per_address.len(), distinct.len());
            }
        }
    }
}
