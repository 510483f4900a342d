//! What this node has accepted last, numbered, for every node that pulls from it: a pure state machine.
//!
//! ```text
//!   first                                    next
//!     ▼                                        ▼
//!   [ 8 | 9 | 10 | 11 | 12 | 13 | 14 | 15 | 16 ]      one copy for all
//!               ▲                   ▲
//!        cursor of B          cursor of C             a number each, kept by whoever pulls
//! ```
//!
//! Bounded in messages and bytes; at the bound the oldest goes, whoever has not had it yet. So a node that is slow or gone costs
//! nothing and holds up nobody, and finds out by `first` what it has missed.

use crate::frame::{Publication, Target};
use crate::proto::v1::{PullRequest, RelayBatch, RelayedMessage};
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Messages of one batch: few enough that a puller can let several wait for room at once (`publish.publish_waiting_max`).
pub(super) const BATCH_MESSAGES_MAX: usize = 512;
/// Bytes of one batch, unless its first message alone has more.
pub(super) const BATCH_BYTES_MAX: usize = 256 << 10;
/// What a message costs the log besides its bytes.
const OVERHEAD_BYTES: usize = 128;
/// Messages that are gone of which it is still known when they were accepted.
const MARKS_MAX: usize = 64;
/// How far apart two of them are at least.
const MARKS_APART: Duration = Duration::from_millis(100);

struct Entry {
    target: Target,
    data: Bytes,
    accepted: Instant,
}

impl Entry {
    fn bytes(&self) -> usize {
        let names = match &self.target {
            Target::Everyone => 0,
            Target::Topic(topic) => topic.len(),
            Target::User { uid, topic } => uid.len() + topic.len(),
        };
        names + self.data.len() + OVERHEAD_BYTES
    }

    fn message(&self) -> RelayedMessage {
        let (uid, topic) = match &self.target {
            Target::Everyone => ("", ""),
            Target::Topic(topic) => ("", &**topic),
            Target::User { uid, topic } => (&**uid, &**topic),
        };
        RelayedMessage { uid: uid.to_owned(), topic: topic.to_owned(), data: self.data.clone() }
    }
}

/// When messages that are gone were accepted: few of many, and the last.
#[derive(Default)]
struct Gone {
    /// With their sequences; both grow.
    marks: Vec<(Instant, u64)>,
    last: Option<(Instant, u64)>,
}

impl Gone {
    fn add(&mut self, accepted: Instant, sequence: u64) {
        self.last = Some((accepted, sequence));
        if self.marks.last().is_some_and(|(last, _)| accepted.duration_since(*last) < MARKS_APART) {
            return;
        }
        if self.marks.len() == MARKS_MAX {
            // The one that is missed least, for its age: so that few reach back for ever, denser towards now.
            let since = |at: usize| (accepted - self.marks[at - 1].0).as_secs_f64();
            let gap = |at: usize| (self.marks[at + 1].0 - self.marks[at - 1].0).as_secs_f64() / since(at);
            let inner = 1..MARKS_MAX - 1;
            let least = inner.min_by(|a, b| gap(*a).total_cmp(&gap(*b))).expect("there are some");
            self.marks.remove(least);
        }
        self.marks.push((accepted, sequence));
    }

    /// The first that was accepted at `came` or later, or one soon behind it; `None`: all were accepted before.
    fn since(&self, came: Instant) -> Option<u64> {
        let (_, last) = self.last.filter(|(accepted, _)| *accepted >= came)?;
        let at = self.marks.partition_point(|(accepted, _)| *accepted < came);
        Some(self.marks.get(at).map_or(last, |(_, sequence)| *sequence))
    }
}

/// The log of one life of this node.
pub(super) struct Log {
    epoch: u64,
    first: u64,
    entries: VecDeque<Entry>,
    bytes: usize,
    messages_max: usize,
    bytes_max: usize,
    /// Since when others can know of this node.
    opened: Option<Instant>,
    gone: Gone,
}

impl Log {
    /// Whose log it is.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Nothing yet. `epoch` is not 0, and differs from one start to the next.
    pub(super) fn new(epoch: u64, messages_max: usize, bytes_max: usize) -> Log {
        assert!(epoch != 0, "0 stands for no epoch");
        let (entries, gone) = (VecDeque::new(), Gone::default());
        Log { epoch, first: 1, entries, bytes: 0, messages_max, bytes_max, opened: None, gone }
    }

    /// Keeps and numbers messages from now on. Until a node is a member nobody can know of it, and what nobody can know of is not made up
    /// later. So 1 is the first message that is due to whoever was there before. A node that is a member again was known all the time.
    pub(super) fn open(&mut self, now: Instant) {
        self.opened.get_or_insert(now);
    }

    /// Appends what was accepted just `now`, a copy that pins nothing else.
    pub(super) fn append(&mut self, publication: &Publication, now: Instant) {
        if self.opened.is_none() {
            return;
        }
        let entry = Entry { target: publication.target.clone(), data: publication.data.clone(), accepted: now };
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        while self.entries.len() > self.messages_max || self.bytes > self.bytes_max {
            let oldest = self.entries.pop_front().expect("it is over its bound, so it is not empty");
            self.bytes -= oldest.bytes();
            self.gone.add(oldest.accepted, self.first);
            self.first += 1;
        }
    }

    /// The sequence that the next message will have.
    pub(super) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Messages and bytes in it.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }

    /// The sequence that is due to whoever asks for `request`. It may no longer be kept.
    pub(super) fn due(&self, request: &PullRequest, now: Instant) -> u64 {
        let came = now.checked_sub(Duration::from_millis(request.age_ms));
        match (request.epoch == self.epoch, came) {
            // From an age that no clock here has: it was there before.
            (true, None) if request.after == 0 => 1,
            (true, Some(came)) if request.after == 0 && request.age_ms > 0 => self.accepted_since(came),
            // More than there is would be a puller's mistake, which must not make it wait for ever.
            (true, _) => request.after.saturating_add(1).min(self.next()),
            (false, Some(came)) if request.age_ms > 0 => self.accepted_since(came),
            (false, _) => self.next(),
        }
    }

    /// The sequence of the first message that was accepted at `came` or later.
    fn accepted_since(&self, came: Instant) -> u64 {
        if self.opened.is_some_and(|opened| opened >= came) {
            return 1;
        }
        // Of those that are gone it is known within the distance of two marks which were due.
        self.gone
            .since(came)
            .unwrap_or_else(|| self.first + self.entries.partition_point(|entry| entry.accepted < came) as u64)
    }

    /// Whether a batch from `due` on would say anything.
    pub(super) fn has(&self, due: u64) -> bool {
        self.next() > due
    }

    /// The messages from `due` on, as many as one batch holds; from the oldest kept if `due` is gone.
    pub(super) fn batch(&self, due: u64) -> RelayBatch {
        let first = due.max(self.first);
        let (mut messages, mut bytes) = (Vec::new(), 0);
        for entry in self.entries.range((first - self.first) as usize..) {
            bytes += entry.bytes();
            if messages.len() == BATCH_MESSAGES_MAX || (bytes > BATCH_BYTES_MAX && !messages.is_empty()) {
                break;
            }
            messages.push(entry.message());
        }
        RelayBatch { epoch: self.epoch, first, messages, next: self.next(), due: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(messages_max: usize, bytes_max: usize) -> Log {
        let mut log = Log::new(7, messages_max, bytes_max);
        log.open(Instant::now());
        log
    }

    fn appended(log: &mut Log, texts: impl IntoIterator<Item = u64>) {
        texts.into_iter().for_each(|n| log.append(&Publication::new("t", n.to_string()), Instant::now()));
    }

    fn due(log: &Log, request: &PullRequest) -> u64 {
        log.due(request, Instant::now())
    }

    fn texts(batch: &RelayBatch) -> Vec<&str> {
        batch.messages.iter().map(|m| std::str::from_utf8(&m.data).unwrap()).collect()
    }

    fn pull(epoch: u64, after: u64) -> PullRequest {
        PullRequest { node: "b".into(), epoch, after, age_ms: 0 }
    }

    #[test]
    fn whoever_comes_back_goes_on_behind_what_it_had() {
        let mut log = log(100, 1 << 20);
        appended(&mut log, 1..=5);
        let due = due(&log, &pull(7, 3));
        let batch = log.batch(due);
        assert_eq!((batch.epoch, batch.first, batch.next, texts(&batch)), (7, 4, 6, vec!["4", "5"]));
        let empty = log.batch(6);
        assert_eq!((empty.first, empty.messages.len()), (6, 0));
    }

    #[test]
    fn a_newcomer_begins_now_and_an_elder_at_the_beginning() {
        let mut log = log(100, 1 << 20);
        appended(&mut log, 1..=5);
        assert_eq!(due(&log, &pull(0, 0)), 6);
        assert_eq!(due(&log, &pull(7, 0)), 1);
        assert_eq!(due(&log, &pull(6, 3)), 6, "that was another life");
        assert_eq!(due(&log, &pull(7, u64::MAX)), 6, "nobody has more than there is");
    }

    #[test]
    fn whoever_comes_gets_what_was_accepted_since() {
        let begin = Instant::now();
        let at = |s: u64| begin + Duration::from_secs(s);
        let mut log = Log::new(7, 3, 1 << 20);
        log.open(at(10));
        (11..=13).for_each(|s| log.append(&Publication::new("t", "x"), at(s)));
        let due =
            |log: &Log, epoch, age_s: u64| log.due(&PullRequest { age_ms: age_s * 1000, ..pull(epoch, 0) }, at(20));
        for epoch in [0, 7] {
            assert_eq!(due(&log, epoch, 8), 2, "it came when the second was accepted");
            assert_eq!(due(&log, epoch, 1), 4);
            assert_eq!(due(&log, epoch, 15), 1, "it was there before");
        }
        assert_eq!(due(&log, 7, u64::MAX / 1000), 1, "for longer than any clock knows");
        log.open(at(19));
        assert_eq!(due(&log, 0, 8), 2, "a lease that was lost and had again makes nothing older due");
        // Room for three.
        (14..=15).for_each(|s| log.append(&Publication::new("t", "x"), at(s)));
        assert_eq!((due(&log, 7, 15), due(&log, 7, 9), due(&log, 7, 8), due(&log, 7, 7)), (1, 1, 2, 3));
    }

    #[test]
    fn of_what_is_gone_it_is_known_how_much_was_due_however_much_it_is() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let mut log = Log::new(7, 10, 1 << 20);
        log.open(begin);
        (1..=100_000).for_each(|n| log.append(&Publication::new("t", "x"), at(n * 10)));
        assert!(log.gone.marks.len() <= MARKS_MAX);
        for came in [1, 1000, 12_345, 50_000, 99_000] {
            let due = log.accepted_since(at(came * 10));
            // A hundred thousand in 64 marks: a third of how long ago it was, and what two of them are apart.
            let most = came + (100_000 - came) / 3 + 10;
            assert!((came..=most).contains(&due), "{due} instead of {came} to {most}");
        }
        assert_eq!(log.accepted_since(at(99_995 * 10)), 99_995, "kept");
    }

    #[test]
    fn at_either_bound_the_oldest_goes_and_the_next_batch_says_so() {
        let mut few = log(3, 1 << 20);
        appended(&mut few, 1..=5);
        assert_eq!((few.batch(1).first, texts(&few.batch(1))), (3, vec!["3", "4", "5"]));
        assert_eq!(few.size().0, 3);

        let mut small = log(100, 1000);
        small.append(&Publication::new("t", "x".repeat(800)), Instant::now());
        small.append(&Publication::new("t", "y"), Instant::now());
        assert_eq!(small.batch(1).first, 2);
        small.append(&Publication::new("t", "z".repeat(2000)), Instant::now());
        assert_eq!((small.size(), small.next()), ((0, 0), 4), "larger than all it may hold");
    }

    #[test]
    fn a_batch_is_bounded_in_messages_and_bytes_and_never_empty_where_something_is_due() {
        let mut log = log(10_000, 1 << 30);
        appended(&mut log, 1..=1000);
        assert_eq!(log.batch(1).messages.len(), BATCH_MESSAGES_MAX);
        log.append(&Publication::new("t", "x".repeat(BATCH_BYTES_MAX)), Instant::now());
        log.append(&Publication::new("t", "y"), Instant::now());
        assert_eq!(log.batch(1001).messages.len(), 1);
        assert_eq!(texts(&log.batch(1002)), ["y"]);
    }

    #[test]
    fn what_was_accepted_before_anybody_could_know_is_neither_kept_nor_numbered() {
        let mut log = Log::new(7, 10, 1 << 20);
        appended(&mut log, 1..=2);
        log.open(Instant::now());
        appended(&mut log, 3..=3);
        assert_eq!((due(&log, &pull(7, 0)), texts(&log.batch(1)), log.next()), (1, vec!["3"], 2));
    }

    #[test]
    fn every_target_survives_the_way() {
        let mut log = log(10, 1 << 20);
        let targets =
            [Target::Everyone, Target::topic("t"), Target::user_or_topic("u", "t"), Target::user_or_topic("u", "")];
        for target in &targets {
            log.append(&Publication { target: target.clone(), data: "x".into() }, Instant::now());
        }
        let back: Vec<_> = log.batch(1).messages.iter().map(|m| Target::user_or_topic(&m.uid, &m.topic)).collect();
        assert_eq!(back, targets);
    }
}
