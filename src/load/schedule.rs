//! Which message is due when, in which stream, and under which number: fixed before the run, so that publisher, clients and
//! the bare server agree without a word.
//!
//! ```text
//! message   0 1 2 3 4 5 …        topic = i % topics, or by Zipf's law; of the messages of one topic the k-th:
//!                                publisher = k % publishers, sequence = k / publishers
//! ```

use super::stamp::{Stamp, Stream};
use super::zipf::Pattern;
use std::sync::Arc;

/// When messages are published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Open loop: at their times, whatever comes back.
    Rate {
        /// Messages a second, over all topics.
        per_s: f64,
    },
    /// Closed loop: as fast as acknowledgements come.
    Saturate {
        /// Batches (HTTP: requests) unacknowledged at a time.
        in_flight: usize,
    },
}

/// A load of messages.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// When.
    pub pace: Pace,
    /// Over how many topics.
    pub topics: u32,
    /// By how many publishers, each in order in itself.
    pub publishers: u32,
    /// Bytes of each message.
    pub size: usize,
    /// The first one is due.
    pub start_ns: u64,
    /// Latency, CPU and throughput count from here.
    pub from_ns: u64,
    /// And up to here: nothing is published any more.
    pub until_ns: u64,
    zipf: Option<Arc<Pattern>>, // The order of topics, if not one after the other.
}

impl Schedule {
    /// Warm-up, then measurement, in whole gaps between two messages; measurement starts a little before a message is due,
    /// so that the one before is with everybody.
    pub fn new(
        pace: Pace,
        topics: u32,
        publishers: u32,
        size: usize,
        start_ns: u64,
        warmup_s: f64,
        s: f64,
    ) -> Schedule {
        let mut schedule = Schedule { pace, topics, publishers, size, start_ns, from_ns: 0, until_ns: 0, zipf: None };
        let (from_ns, until_ns) = match pace {
            Pace::Rate { per_s } => {
                let first = (warmup_s * per_s).ceil() as u64;
                let last = first + ((s * per_s).round() as u64).max(1);
                let lead_ns = ((1e8 / per_s) as u64).min(1_000_000);
                (schedule.due_ns(first) - lead_ns.min(first), schedule.due_ns(last) - lead_ns)
            }
            Pace::Saturate { .. } => (start_ns + (warmup_s * 1e9) as u64, start_ns + ((warmup_s + s) * 1e9) as u64),
        };
        (schedule.from_ns, schedule.until_ns) = (from_ns, until_ns);
        schedule
    }

    /// Seconds measured.
    pub fn measured_s(&self) -> f64 {
        (self.until_ns - self.from_ns) as f64 / 1e9
    }

    /// How many messages an open loop has; a closed one ends by time.
    pub fn messages(&self) -> Option<u64> {
        match self.pace {
            Pace::Rate { per_s } => Some(((self.until_ns - self.start_ns) as f64 / 1e9 * per_s).ceil() as u64),
            Pace::Saturate { .. } => None,
        }
    }

    /// When message `i` of an open loop is due.
    pub(crate) fn due_ns(&self, i: u64) -> u64 {
        match self.pace {
            Pace::Rate { per_s } => self.start_ns + (i as f64 * (1e9 / per_s)) as u64,
            Pace::Saturate { .. } => self.start_ns,
        }
    }

    /// What message `i` says of itself; `due_ns` is its own time in an open loop.
    pub(crate) fn stamp(&self, i: u64, due_ns: u64) -> Stamp {
        let publishers = u64::from(self.publishers);
        let (topic, rank) = match &self.zipf {
            None => ((i % u64::from(self.topics)) as u32, i / u64::from(self.topics)),
            Some(pattern) => pattern.place(i),
        };
        let stream = Stream::new(topic, (rank % publishers) as u32);
        Stamp { stream, sequence: (rank / publishers) as u32, due_ns }
    }

    /// How many of the first `messages` messages are in `stream`.
    pub(crate) fn sent(&self, stream: Stream, messages: u64) -> u32 {
        let topic = stream.topic();
        let of_topic = match &self.zipf {
            None => messages.saturating_sub(u64::from(topic)).div_ceil(u64::from(self.topics)),
            Some(pattern) => pattern.count(topic, messages),
        };
        of_topic.saturating_sub(u64::from(stream.publisher())).div_ceil(u64::from(self.publishers)) as u32
    }

    /// How many messages of an open loop are due before `ns`.
    pub(crate) fn due_before(&self, ns: u64) -> u64 {
        let Pace::Rate { per_s } = self.pace else { return 0 };
        let near = (ns.saturating_sub(self.start_ns) as f64 * per_s / 1e9) as u64;
        (near.saturating_sub(1)..).find(|&i| self.due_ns(i) >= ns).expect("time goes on")
    }

    /// The same with topics by Zipf's law.
    pub(crate) fn with_zipf(mut self, exponent: f64) -> Schedule {
        self.zipf = Some(Arc::new(Pattern::new(self.topics, exponent)));
        self
    }

    /// The name of topic `topic`.
    pub(crate) fn topic_name(topic: u32) -> String {
        format!("bench-{topic}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn streams_are_numbered_without_gaps_and_counted_right() {
        let s = Schedule::new(Pace::Rate { per_s: 100.0 }, 3, 4, 128, 1_000_000, 0.5, 2.0);
        numbered_without_gaps(&s);
        assert_eq!(s.sent(Stream::new(2, 3), 11), 0);
        numbered_without_gaps(&s.with_zipf(1.0));
    }

    #[test]
    fn messages_due_before_a_time_are_counted() {
        let s = Schedule::new(Pace::Rate { per_s: 300.0 }, 1, 1, 128, 1_000_000, 0.0, 2.0);
        for i in [0, 1, 299, 300] {
            assert_eq!((s.due_before(s.due_ns(i)), s.due_before(s.due_ns(i) + 1)), (i, i + 1));
        }
        assert_eq!(s.due_before(0), 0);
    }

    fn numbered_without_gaps(s: &Schedule) {
        let mut counts: HashMap<u32, u32> = HashMap::new();
        for i in 0..200 {
            let stamp = s.stamp(i, s.due_ns(i));
            let count = counts.entry(stamp.stream.0).or_default();
            assert_eq!(stamp.sequence, *count, "message {i}");
            *count += 1;
            for (&stream, &count) in &counts {
                assert_eq!(s.sent(Stream(stream), i + 1), count);
            }
        }
        assert_eq!(counts.len(), 12);
    }

    #[test]
    fn the_window_holds_as_many_messages_as_were_asked_for() {
        for (per_s, warmup_s, seconds) in [(10.0, 1.0, 5.0), (1000.0, 0.25, 1.0), (3.0, 0.0, 2.0), (0.5, 1.0, 10.0)] {
            let s = Schedule::new(Pace::Rate { per_s }, 1, 1, 128, 7_000_000_000, warmup_s, seconds);
            let all = s.messages().unwrap();
            let measured = (0..all).filter(|&i| s.due_ns(i) >= s.from_ns).count();
            assert_eq!(measured as f64, (per_s * seconds).round(), "{per_s}/s for {seconds} s");
            assert!(s.due_ns(all - 1) < s.until_ns && s.due_ns(all) >= s.until_ns);
        }
    }
}
