//! Deadlines of a shard's connections: a timing wheel of 100 ms (Varghese & Lauck 1987, scheme 6).
//!
//! A connection has one live entry, at the earliest of its deadlines. Entries are never taken out: one that fires when the
//! connection's deadline has moved is either stale (an earlier one was added) or is put back. So moving a deadline later,
//! which heartbeats do all the time, costs nothing, and an idle connection costs one entry of 8 bytes.

use crate::clock::Time;
use crate::ids::{Generation, Slot};

/// A deadline in ticks of the wheel since its start; fits a connection in 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u32);

impl Tick {
    /// No deadline.
    pub const NEVER: Tick = Tick(u32::MAX);

    /// The first tick that is at least `ms` milliseconds later.
    pub fn plus_ms(self, ms: u64) -> Tick {
        Tick((u64::from(self.0) + ms.div_ceil(TICK_MS)).min(u64::from(u32::MAX - 1)) as u32)
    }
}

/// Milliseconds of one tick: deadlines fire up to this much late, never early.
pub const TICK_MS: u64 = 100;

/// Ticks ahead that have a bucket of their own; farther ones are put back once a turn of the wheel (6.8 minutes).
const BUCKETS: usize = 4096;

/// How far ahead [`Wheel::wake`] looks for an entry: as long as a core sleeps at most.
const LOOK_AHEAD: u32 = 10;

/// The wheel.
pub struct Wheel {
    start: Time,
    /// All ticks before this one have fired.
    next: u32,
    buckets: Vec<Vec<(Slot, Generation)>>,
    firing: Vec<(Slot, Generation)>,
    entries: usize,
}

impl Wheel {
    /// A wheel that starts to turn at `start`.
    pub fn new(start: Time) -> Wheel {
        Wheel { start, next: 0, buckets: (0..BUCKETS).map(|_| Vec::new()).collect(), firing: Vec::new(), entries: 0 }
    }

    /// The first tick at or after `ms` milliseconds from `now`.
    pub fn after(&self, now: Time, ms: u64) -> Tick {
        let ms = now.since_ns(self.start) / 1_000_000 + ms;
        Tick((ms.div_ceil(TICK_MS) + 1).min(u64::from(u32::MAX - 1)) as u32)
    }

    /// Adds an entry and says where it really is: at `due`, or at the horizon if that is nearer.
    pub fn insert(&mut self, slot: Slot, generation: Generation, due: Tick) -> Tick {
        let due = due.0.clamp(self.next, self.next + BUCKETS as u32 - 1);
        self.buckets[due as usize % BUCKETS].push((slot, generation));
        self.entries += 1;
        Tick(due)
    }

    /// The next entry that is due at `now`, with its tick.
    pub fn fire(&mut self, now: Time) -> Option<(Slot, Generation, Tick)> {
        loop {
            if let Some((slot, generation)) = self.firing.pop() {
                self.entries -= 1;
                return Some((slot, generation, Tick(self.next - 1)));
            }
            if self.time_of(self.next) > now {
                return None;
            }
            // The bucket's memory goes with its entries: kept, it would be what the fullest tick of each place in the wheel ever needed,
            // at a million connections that had come three times 100 B each.
            self.firing = std::mem::take(&mut self.buckets[self.next as usize % BUCKETS]);
            self.next += 1;
        }
    }

    /// When to look again at the latest; [`Time::NEVER`] if nothing waits.
    pub fn wake(&self) -> Time {
        match self.entries {
            0 => Time::NEVER,
            _ if !self.firing.is_empty() => self.time_of(self.next - 1),
            _ => {
                let is_used = |tick: &u32| !self.buckets[*tick as usize % BUCKETS].is_empty();
                let ahead = self.next..self.next + LOOK_AHEAD;
                self.time_of(ahead.clone().find(is_used).unwrap_or(ahead.end))
            }
        }
    }

    /// The tick that `now` lies in.
    pub fn current(&self) -> Tick {
        Tick(self.next)
    }

    fn time_of(&self, tick: u32) -> Time {
        self.start.plus_ms(u64::from(tick) * TICK_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fired(wheel: &mut Wheel, ms: u64) -> Vec<u32> {
        let mut slots: Vec<u32> =
            std::iter::from_fn(|| wheel.fire(Time(ms * 1_000_000))).map(|(slot, ..)| slot.0).collect();
        slots.sort_unstable();
        slots
    }

    #[test]
    fn deadlines_fire_in_order_and_never_early() {
        let mut wheel = Wheel::new(Time(0));
        for (slot, ms) in [(1, 250), (2, 50), (3, 1000)] {
            let due = wheel.after(Time(0), ms);
            assert!(u64::from(due.0) * TICK_MS >= ms);
            wheel.insert(Slot(slot), Generation(0), due);
        }
        assert_eq!(fired(&mut wheel, 49), [] as [u32; 0]);
        assert_eq!(fired(&mut wheel, 200), [2]);
        assert_eq!(fired(&mut wheel, 450), [1]);
        assert_eq!(fired(&mut wheel, 999), [] as [u32; 0]);
        assert_eq!(fired(&mut wheel, 1200), [3]);
        assert_eq!(wheel.wake(), Time::NEVER);
    }

    #[test]
    fn what_was_due_and_left_for_the_next_turn_is_not_slept_over() {
        let mut wheel = Wheel::new(Time(0));
        let due = wheel.after(Time(0), 100);
        for slot in 0..3 {
            wheel.insert(Slot(slot), Generation(0), due);
        }
        let now = Time(500_000_000);
        assert!(wheel.fire(now).is_some());
        assert!(wheel.wake() <= now);
        assert!(wheel.fire(now).is_some() && wheel.fire(now).is_some() && wheel.fire(now).is_none());
        assert_eq!(wheel.wake(), Time::NEVER);
    }

    #[test]
    fn buckets_keep_no_memory_of_those_who_were_in_them() {
        let mut wheel = Wheel::new(Time(0));
        for slot in 0..10_000 {
            wheel.insert(Slot(slot), Generation(0), Tick(slot % 100));
        }
        assert_eq!(fired(&mut wheel, 10_000).len(), 10_000);
        let kept: usize = wheel.buckets.iter().chain([&wheel.firing]).map(Vec::capacity).sum();
        assert_eq!(kept, 0);
    }

    #[test]
    fn a_core_with_few_deadlines_sleeps_over_the_ticks_between_them() {
        let mut wheel = Wheel::new(Time(0));
        wheel.insert(Slot(1), Generation(0), Tick(4));
        wheel.insert(Slot(2), Generation(0), Tick(3000));
        assert_eq!(wheel.wake(), Time(400_000_000));
        assert_eq!(fired(&mut wheel, 400), [1]);
        assert_eq!(wheel.wake(), Time(1_500_000_000), "looked at again later");
        assert_eq!(fired(&mut wheel, 299_999), [] as [u32; 0]);
        assert_eq!(wheel.wake(), Time(300_000_000_000));
        assert_eq!(fired(&mut wheel, 300_000), [2]);
    }

    #[test]
    fn a_deadline_beyond_the_horizon_is_told_where_it_is() {
        let mut wheel = Wheel::new(Time(0));
        let due = wheel.after(Time(0), 3_600_000);
        let at = wheel.insert(Slot(1), Generation(0), due);
        assert!(at < due);
        assert_eq!(fired(&mut wheel, u64::from(at.0) * TICK_MS), [1]);
    }
}
