//! How long to wait before the next attempt: twice as long each time, never quite as long as anybody else.

use std::time::Duration;

/// The pauses between attempts at one thing.
pub(super) struct Pause {
    next: Duration,
    least: Duration,
    most: Duration,
}

impl Pause {
    pub(super) fn new(least: Duration, most: Duration) -> Pause {
        Pause { next: least, least, most }
    }

    /// It worked.
    pub(super) fn reset(&mut self) {
        self.next = self.least;
    }

    /// Waits, and will wait longer the next time.
    pub(super) async fn wait(&mut self) {
        let dice = getrandom::u32().unwrap_or_default();
        tokio::time::sleep(self.take(dice)).await;
    }

    /// Half to all of what is due, by the dice.
    fn take(&mut self, dice: u32) -> Duration {
        let due = self.next;
        self.next = (due * 2).min(self.most);
        due / 2 + due.mul_f64(0.5 * f64::from(dice) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_begin_small_again() {
        let mut pause = Pause::new(Duration::from_millis(50), Duration::from_millis(300));
        let longest: Vec<_> = (0..5).map(|_| pause.take(u32::MAX).as_millis()).collect();
        assert_eq!(longest, [50, 100, 200, 300, 300]);
        pause.reset();
        assert_eq!(pause.take(0).as_millis(), 25);
    }
}
