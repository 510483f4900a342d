//! Time as a value: nanoseconds of `CLOCK_MONOTONIC`. Decisions take it as an argument; only the edges read it.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment, in nanoseconds of `CLOCK_MONOTONIC` (clock_gettime(2)): comparable between processes of one machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// Later than any deadline.
    pub const NEVER: Time = Time(u64::MAX);

    /// The present.
    pub fn now() -> Time {
        Time(crate::sys::monotonic_ns())
    }

    /// This moment plus `ms` milliseconds; saturates.
    pub fn plus_ms(self, ms: u64) -> Time {
        Time(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Nanoseconds since `earlier`, 0 if it is in the future.
    pub fn since_ns(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Whole milliseconds of this clock.
    pub fn as_ms(self) -> u64 {
        self.0 / 1_000_000
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, d: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Time {
    type Output = Duration;
    fn sub(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.since_ns(earlier))
    }
}
