//! Publications on their way into the stream: a pure state machine.
//!
//! ```text
//! push ──► unsent ──next──► sent ──acked──► over: offset            refused ──► over: why
//!             ▲               │
//!             │               ├─ nobody there (503): certainly not stored ─┐
//!             │               ├─ the connection is gone, or no answer ─────┤ may be stored
//!             │               ▼                                            ▼
//!             └── resume ── stuck; from the first of them on nothing is sent until none is out any more
//! ```
//!
//! What is sent again has the identity that it had before, so that the stream knows it (`Nats-Msg-Id`). It would still come late if
//! something behind it to the same subject is in the stream already: then it is given up instead, since order goes before delivery of what
//! nobody was told is delivered. What is certainly not stored is given up for one behind it that only may be, too. Whoever waits too long is
//! told so, and whether it may be in the stream.

use bytes::Bytes;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// What is known of a publication that was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is not in the stream.
    NotStored,
    /// It may be.
    Unknown,
}

#[derive(Clone, Copy, PartialEq)]
enum Standing {
    Unsent,
    Sent(Instant),
    Stuck,
    Acked,
    /// Its publisher has its answer, without an ack.
    GivenUp,
}

struct Entry<D> {
    subject: Arc<str>,
    data: Bytes,
    since: Instant,
    standing: Standing,
    may_be_stored: bool,
    is_resent: bool,
    done: Option<D>,
}

/// What is to be sent.
#[derive(Debug, PartialEq)]
pub(super) struct Sending {
    pub(super) id: u64,
    pub(super) subject: Arc<str>,
    pub(super) data: Bytes,
}

/// What becomes of what was stuck.
#[derive(Debug, PartialEq)]
pub(super) struct Resumed<D> {
    pub(super) given_up: Vec<(D, Fate)>,
    /// How many are sent again.
    pub(super) again: usize,
}

/// Everything that has no acknowledgement yet, in the order in which it came, bounded in messages and bytes. `D` is given back with what
/// became of it.
pub(super) struct Outbox<D> {
    entries: VecDeque<Entry<D>>, // Those that are over stay while one before them is not: they say what would come too late.
    first: u64,                  // Number of the first of them.
    unsent: u64,                 // Before it there is none to be sent.
    sent: usize,
    bytes: usize,
    messages_max: usize,
    bytes_max: usize,
    is_held: bool,
}

impl<D> Outbox<D> {
    pub(super) fn new(messages_max: usize, bytes_max: usize) -> Outbox<D> {
        let entries = VecDeque::new();
        Outbox { entries, first: 0, unsent: 0, sent: 0, bytes: 0, messages_max, bytes_max, is_held: false }
    }

    /// Takes one more, a copy that pins nothing else; or gives `done` back, since there is no room.
    pub(super) fn push(&mut self, now: Instant, subject: Arc<str>, data: &[u8], done: D) -> Result<(), D> {
        let bytes = self.bytes + data.len();
        if self.entries.len() >= self.messages_max || (bytes > self.bytes_max && !self.entries.is_empty()) {
            return Err(done);
        }
        self.bytes = bytes;
        self.entries.push_back(Entry {
            subject,
            data: Bytes::copy_from_slice(data),
            since: now,
            standing: Standing::Unsent,
            may_be_stored: false,
            is_resent: false,
            done: Some(done),
        });
        Ok(())
    }

    /// Messages in it.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Those that are out and may still be answered.
    pub(super) fn sent(&self) -> usize {
        self.sent
    }

    /// Whether nothing is sent until [`Outbox::resume`].
    pub(super) fn is_held(&self) -> bool {
        self.is_held
    }

    /// The next to be sent, which counts as sent from now on.
    pub(super) fn next(&mut self, now: Instant) -> Option<Sending> {
        if self.is_held {
            return None;
        }
        self.unsent = self.unsent.max(self.first);
        loop {
            let entry = self.entries.get_mut((self.unsent - self.first) as usize)?;
            let id = self.unsent;
            self.unsent += 1;
            if entry.standing == Standing::Unsent {
                entry.standing = Standing::Sent(now);
                self.sent += 1;
                return Some(Sending { id, subject: entry.subject.clone(), data: entry.data.clone() });
            }
        }
    }

    /// The stream has it. Nothing, if its publisher was answered before.
    pub(super) fn acked(&mut self, id: u64) -> Option<D> {
        self.end(id, Standing::Acked)
    }

    /// The stream does not want it; what it was sent before may be there all the same.
    pub(super) fn refused(&mut self, id: u64) -> Option<(D, Fate)> {
        let fate = if self.entry(id)?.may_be_stored { Fate::Unknown } else { Fate::NotStored };
        self.end(id, Standing::GivenUp).zip(Some(fate))
    }

    /// Whether the stream may know it from an earlier time that it was sent.
    pub(super) fn is_resent(&mut self, id: u64) -> bool {
        self.entry(id).is_some_and(|entry| entry.is_resent)
    }

    /// Nobody was there to take it.
    pub(super) fn unanswered(&mut self, id: u64) {
        self.stick(id, false);
    }

    /// The stream is still busy with an earlier copy of it.
    pub(super) fn in_process(&mut self, id: u64) {
        self.stick(id, true);
    }

    fn stick(&mut self, id: u64, may_be_stored: bool) {
        if let Some(entry) = self.entry(id).filter(|entry| matches!(entry.standing, Standing::Sent(_))) {
            entry.standing = Standing::Stuck;
            entry.may_be_stored |= may_be_stored;
            self.sent -= 1;
            self.is_held = true;
        }
    }

    /// No answer comes any more for what is out.
    pub(super) fn cut_off(&mut self) {
        self.doubt(|_| true);
        self.is_held = true;
    }

    /// As if cut off, for what was sent before `then` and has no answer. Returns how many those are.
    pub(super) fn overdue(&mut self, then: Instant) -> usize {
        let count = self.doubt(|sent| sent < then);
        self.is_held |= count > 0;
        count
    }

    fn doubt(&mut self, is_meant: impl Fn(Instant) -> bool) -> usize {
        let mut count = 0;
        for entry in &mut self.entries {
            if let Standing::Sent(at) = entry.standing {
                // Sent in their order: those behind it were sent later still.
                if !is_meant(at) {
                    break;
                }
                entry.standing = Standing::Stuck;
                entry.may_be_stored = true;
                count += 1;
            }
        }
        self.sent -= count;
        count
    }

    /// What is stuck is to be sent again, before all that came behind it; except what would now come too late, which is given up.
    ///
    /// # Panics
    /// If something is out: its answer would decide.
    pub(super) fn resume(&mut self) -> Resumed<D> {
        assert!(self.sent == 0, "{} are out", self.sent);
        self.is_held = false;
        self.unsent = self.first;
        let (mut given_up, mut again) = (Vec::new(), 0);
        let (mut stored, mut doubtful) = (HashSet::<Arc<str>>::new(), HashSet::<Arc<str>>::new());
        for entry in self.entries.iter_mut().rev() {
            let is_late =
                stored.contains(&entry.subject) || (!entry.may_be_stored && doubtful.contains(&entry.subject));
            match entry.standing {
                Standing::Acked => drop(stored.insert(entry.subject.clone())),
                Standing::Stuck if is_late => {
                    entry.standing = Standing::GivenUp;
                    self.bytes -= std::mem::take(&mut entry.data).len();
                    given_up.extend(entry.done.take().zip(Some(entry.fate())));
                }
                Standing::Stuck => {
                    entry.standing = Standing::Unsent;
                    entry.is_resent = true;
                    again += 1;
                }
                Standing::Unsent | Standing::Sent(_) | Standing::GivenUp => {}
            }
            if entry.may_be_stored {
                doubtful.insert(entry.subject.clone());
            }
        }
        self.trim();
        given_up.reverse();
        Resumed { given_up, again }
    }

    /// Gives up what came before `then`.
    pub(super) fn expire(&mut self, then: Instant) -> Vec<(D, Fate)> {
        let mut late = Vec::new();
        for at in 0..self.entries.len() {
            let entry = &self.entries[at];
            if entry.since >= then {
                break;
            }
            let fate = entry.fate();
            late.extend(self.end(self.first + at as u64, Standing::GivenUp).zip(Some(fate)));
        }
        self.trim();
        late
    }

    fn entry(&mut self, id: u64) -> Option<&mut Entry<D>> {
        self.entries.get_mut(usize::try_from(id.checked_sub(self.first)?).ok()?)
    }

    fn end(&mut self, id: u64, standing: Standing) -> Option<D> {
        let entry = self.entry(id)?;
        let was_sent = matches!(entry.standing, Standing::Sent(_));
        entry.standing = standing;
        let (done, data) = (entry.done.take(), std::mem::take(&mut entry.data));
        self.sent -= usize::from(was_sent);
        self.bytes -= data.len();
        if id == self.first && standing == Standing::Acked {
            self.trim();
        }
        done
    }

    fn trim(&mut self) {
        while self.entries.front().is_some_and(|e| matches!(e.standing, Standing::Acked | Standing::GivenUp)) {
            self.entries.pop_front();
            self.first += 1;
        }
    }
}

impl<D> Entry<D> {
    fn fate(&self) -> Fate {
        let is_out = matches!(self.standing, Standing::Sent(_));
        if self.may_be_stored || is_out { Fate::Unknown } else { Fate::NotStored }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(5);

    struct Sent {
        outbox: Outbox<u64>,
        start: Instant,
    }

    impl Sent {
        /// One message to each subject, numbered from 0, all of them sent.
        fn new(subjects: &[&str]) -> Sent {
            let (mut outbox, start) = (Outbox::new(100, 1000), Instant::now());
            for (n, subject) in subjects.iter().enumerate() {
                outbox.push(start, (*subject).into(), b"data", n as u64).unwrap();
            }
            let mut sent = Sent { outbox, start };
            assert_eq!(sent.ids(), (0..subjects.len() as u64).collect::<Vec<_>>());
            sent
        }

        /// Sends what may be sent.
        fn ids(&mut self) -> Vec<u64> {
            std::iter::from_fn(|| self.outbox.next(self.start)).map(|sending| sending.id).collect()
        }
    }

    #[test]
    fn what_is_acknowledged_is_over_in_any_order() {
        let mut s = Sent::new(&["a", "a", "b"]);
        assert_eq!([2, 0, 1].map(|id| s.outbox.acked(id)), [Some(2), Some(0), Some(1)]);
        assert_eq!((s.outbox.len(), s.outbox.sent(), s.outbox.bytes), (0, 0, 0));
        assert_eq!(s.outbox.acked(1), None, "twice");
        assert_eq!(s.outbox.acked(77), None, "never sent");
    }

    #[test]
    fn there_is_room_for_so_many_messages_and_bytes() {
        let now = Instant::now();
        let mut few = Outbox::new(2, 1000);
        assert_eq!([1, 2, 3].map(|n| few.push(now, "a".into(), b"", n)), [Ok(()), Ok(()), Err(3)]);
        let mut small = Outbox::new(100, 10);
        assert_eq!(small.push(now, "a".into(), &[0; 50], 1), Ok(()), "one alone always fits");
        assert_eq!(small.push(now, "a".into(), b"x", 2), Err(2));
        small.next(now);
        small.acked(0);
        assert_eq!(small.push(now, "a".into(), &[0; 10], 3), Ok(()));
    }

    #[test]
    fn after_a_cut_everything_that_has_no_answer_goes_again_in_order_and_before_the_rest() {
        let mut s = Sent::new(&["a", "b", "a"]);
        assert_eq!(s.outbox.acked(0), Some(0));
        s.outbox.cut_off();
        s.outbox.push(s.start, "a".into(), b"new", 3).unwrap();
        assert!(s.ids().is_empty(), "nothing overtakes");
        assert_eq!(s.outbox.resume(), Resumed { given_up: vec![], again: 2 });
        assert_eq!(s.ids(), [1, 2, 3]);
    }

    #[test]
    fn what_would_come_behind_a_later_one_of_its_subject_is_given_up() {
        let mut s = Sent::new(&["a", "b", "a", "c"]);
        s.outbox.unanswered(0);
        s.outbox.unanswered(1);
        assert_eq!(s.outbox.acked(2), Some(2));
        assert!(s.outbox.is_held() && s.outbox.sent() == 1);
        s.outbox.cut_off();
        assert_eq!(s.outbox.resume().given_up, [(0, Fate::NotStored)], "2 is stored, so that 0 may not follow it");
        assert_eq!(s.ids(), [1, 3]);
    }

    #[test]
    fn what_is_not_stored_is_given_up_for_a_later_one_of_its_subject_that_may_be() {
        let mut s = Sent::new(&["a", "b", "a", "a"]);
        s.outbox.unanswered(0);
        s.outbox.unanswered(1);
        s.outbox.cut_off();
        assert_eq!(s.outbox.resume(), Resumed { given_up: vec![(0, Fate::NotStored)], again: 3 });
        assert_eq!(s.ids(), [1, 2, 3], "2 and 3 may both be stored, in their order");
    }

    #[test]
    fn what_the_stream_is_still_busy_with_is_sent_again_and_may_be_stored() {
        let mut s = Sent::new(&["a"]);
        s.outbox.in_process(0);
        assert_eq!(s.outbox.resume().again, 1);
        assert_eq!(s.ids(), [0]);
        assert!(s.outbox.is_resent(0));
        assert_eq!(s.outbox.refused(0), Some((0, Fate::Unknown)), "the first copy may be there");
    }

    #[test]
    fn only_what_was_sent_before_is_overdue() {
        let mut s = Sent::new(&["a"]);
        s.outbox.push(s.start, "a".into(), b"", 1).unwrap();
        assert_eq!(s.outbox.next(s.start + PATIENCE).unwrap().id, 1);
        assert_eq!(s.outbox.overdue(s.start + PATIENCE), 1);
        assert_eq!(s.outbox.sent(), 1);
    }

    #[test]
    fn what_was_cut_off_may_be_stored_and_what_nobody_took_is_not() {
        let mut s = Sent::new(&["a", "a", "a"]);
        s.outbox.unanswered(0);
        s.outbox.cut_off();
        s.outbox.push(s.start, "a".into(), b"", 3).unwrap();
        let late = s.outbox.expire(s.start + PATIENCE);
        let fates = [Fate::NotStored, Fate::Unknown, Fate::Unknown, Fate::NotStored];
        assert_eq!(late, (0..4).zip(fates).collect::<Vec<_>>());
        assert_eq!((s.outbox.len(), s.outbox.bytes), (0, 0));
    }

    #[test]
    fn only_who_has_waited_long_enough_is_given_up_and_its_late_answer_is_nobodys() {
        let mut s = Sent::new(&["a"]);
        s.outbox.push(s.start + PATIENCE, "a".into(), b"", 1).unwrap();
        assert_eq!(s.ids(), [1]);
        assert_eq!(s.outbox.expire(s.start + PATIENCE), [(0, Fate::Unknown)]);
        assert_eq!((s.outbox.acked(0), s.outbox.acked(1)), (None, Some(1)));
        assert_eq!(s.outbox.sent(), 0);
    }

    #[test]
    fn silence_holds_back_what_is_behind_it() {
        let mut s = Sent::new(&["a", "b"]);
        assert_eq!(s.outbox.overdue(s.start), 0);
        assert!(!s.outbox.is_held());
        assert_eq!(s.outbox.overdue(s.start + PATIENCE), 2);
        s.outbox.push(s.start, "c".into(), b"", 2).unwrap();
        assert!(s.ids().is_empty());
        assert_eq!(s.outbox.acked(1), Some(1), "late, and true");
        assert_eq!(s.outbox.resume(), Resumed { given_up: vec![], again: 1 });
        assert_eq!(s.ids(), [0, 2]);
    }

    #[test]
    fn what_the_stream_does_not_want_is_over_and_holds_up_nobody() {
        let mut s = Sent::new(&["a", "a"]);
        assert!(!s.outbox.is_resent(0));
        assert_eq!(s.outbox.refused(0), Some((0, Fate::NotStored)));
        assert_eq!(s.outbox.acked(1), Some(1));
        s.outbox.push(s.start, "a".into(), b"", 2).unwrap();
        assert_eq!(s.ids(), [2]);
    }
}
