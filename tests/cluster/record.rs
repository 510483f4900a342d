//! What was published and what was heard, message by message, and the judgement of it.
//!
//! A message says who published it, its number there, and which life of which node it was given to: `"3 1041 7"`. What is *due* to a
//! subscriber is each message that was sent after its subscription was acknowledged, and accepted. A message that was due and never came is lost,
//! unless one of two things holds, and then it is counted under the name of that, never silently:
//!
//! - *cut short*: the subscriber's own session ended first: nothing behind the message came to it either.
//! - *died with its node*: an acknowledgement means "accepted by that node"; the relay of one that was killed gave others no more. So what is missing must be
//!   the end of what that life accepted, no older than the last second or the trouble in which its ways were.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What is on its way at most when nothing is wrong, on a busy machine.
const UNDER_WAY: Duration = Duration::from_secs(1);
/// How long after trouble it may take until everything flows again.
const RECOVERY: Duration = Duration::from_secs(5);
/// Shorter waits are not worth telling.
const GAP_MIN: Duration = Duration::from_millis(50);

/// One start of one node, in the order of starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Life(pub u16);

struct Entry {
    life: Life,
    sent: Instant,
    accepted: Option<Instant>,
}

struct Alive {
    /// `None`: nobody knows which; whoever published chose by itself.
    node: Option<usize>,
    ended: Option<Ended>,
}

/// How a life ended.
#[derive(Clone, Copy)]
struct Ended {
    at: Instant,
    /// What may have been on its way then: nothing, if it said farewell.
    under_way: Duration,
}

struct Session {
    subscriber: usize,
    life: Life,
    began: Instant,
    ended: Option<Instant>,
    /// A bit for each number of each publisher.
    heard: Vec<Vec<u64>>,
    /// Of each publisher: the highest number, and when something last came.
    last: HashMap<usize, (u64, Instant)>,
    /// Of each publisher and the life it was given to.
    order: HashMap<(usize, Life), u64>,
}

impl Session {
    fn has(&self, publisher: usize, number: u64) -> bool {
        let word = self.heard.get(publisher).and_then(|words| words.get(number as usize / 64));
        word.is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn set(&mut self, publisher: usize, number: u64) {
        if self.heard.len() <= publisher {
            self.heard.resize(publisher + 1, Vec::new());
        }
        let (words, at) = (&mut self.heard[publisher], number as usize / 64);
        if words.len() <= at {
            words.resize(at + 64, 0);
        }
        words[at] |= 1 << (number % 64);
    }
}

/// Something that was done to nodes.
struct Fault {
    kind: &'static str,
    /// Those whose ways to others it troubles.
    nodes: Vec<usize>,
    began: Instant,
    ended: Option<Instant>,
}

/// A time in which something was due at a subscriber and nothing came.
#[derive(Clone, Copy)]
struct Gap {
    from: Instant,
    to: Instant,
}

impl Gap {
    fn length(self) -> Duration {
        self.to - self.from
    }
}

/// Which session of the record.
#[derive(Clone, Copy)]
pub struct SessionId(usize);

/// Which fault of the record.
#[derive(Clone, Copy)]
pub struct FaultId(usize);

/// All of it.
pub struct Record {
    /// Whether an acknowledgement is the word of one node alone.
    dies_with_its_node: bool,
    publishers: Vec<Vec<Entry>>,
    lives: Vec<Alive>,
    sessions: Vec<Session>,
    faults: Vec<Fault>,
    gaps: Vec<Gap>,
    delivered: u64,
    doubled: Vec<String>,
    disordered: Vec<String>,
}

/// What it comes to.
#[derive(Debug, Default, PartialEq)]
pub struct Verdict {
    pub published: u64,
    pub accepted: u64,
    pub delivered: u64,
    /// A sentence each.
    pub lost: Vec<String>,
    pub doubled: Vec<String>,
    pub disordered: Vec<String>,
    /// Messages, each counted once however many missed it.
    pub died_with_their_node: usize,
    /// How long before its node was killed the oldest of those was accepted.
    pub died_within: Duration,
    /// Deliveries.
    pub cut_short: u64,
    pub sessions: usize,
    pub longest_gap: Duration,
    /// Of subscribers, from the end of a session to the acknowledgement of the next.
    pub away: Vec<Duration>,
}

impl Verdict {
    /// Nothing lost, nothing twice, nothing out of order.
    #[track_caller]
    pub fn holds(&self) {
        let first = |all: &[String]| all.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
        let Verdict { lost, doubled, disordered, .. } = self;
        assert!(
            lost.is_empty() && doubled.is_empty() && disordered.is_empty(),
            "lost {}, doubled {}, out of order {}\n{}\n{}\n{}",
            lost.len(),
            doubled.len(),
            disordered.len(),
            first(lost),
            first(doubled),
            first(disordered)
        );
    }
}

impl Record {
    /// Nothing yet. With `dies_with_its_node` an acknowledgement is the word of one node, and not of something that outlives it.
    pub fn new(dies_with_its_node: bool) -> Record {
        Record {
            dies_with_its_node,
            publishers: Vec::new(),
            lives: Vec::new(),
            sessions: Vec::new(),
            faults: Vec::new(),
            gaps: Vec::new(),
            delivered: 0,
            doubled: Vec::new(),
            disordered: Vec::new(),
        }
    }

    /// One more who publishes.
    pub fn add_publisher(&mut self) -> usize {
        self.publishers.push(Vec::new());
        self.publishers.len() - 1
    }

    /// `node` starts.
    pub fn begin_life(&mut self, node: usize) -> Life {
        self.begin_any_life(Some(node))
    }

    /// What stands for a node where it is not known which.
    pub fn unknown_life(&mut self) -> Life {
        self.begin_any_life(None)
    }

    fn begin_any_life(&mut self, node: Option<usize>) -> Life {
        self.lives.push(Alive { node, ended: None });
        Life((self.lives.len() - 1) as u16)
    }

    fn node(&self, life: Life) -> Option<usize> {
        self.lives[usize::from(life.0)].node
    }

    /// It is killed without a word, and what it had accepted and not given on dies with it.
    pub fn killed(&mut self, life: Life) {
        self.lives[usize::from(life.0)].ended = Some(Ended { at: Instant::now(), under_way: UNDER_WAY });
    }

    /// It was drained: everybody whose way to it is in order has all that it accepted.
    pub fn drained(&mut self, life: Life) {
        self.lives[usize::from(life.0)].ended = Some(Ended { at: Instant::now(), under_way: Duration::ZERO });
    }

    /// The next message of a publisher is on its way to `life`: its number.
    pub fn send(&mut self, publisher: usize, life: Life) -> u64 {
        self.publishers[publisher].push(Entry { life, sent: Instant::now(), accepted: None });
        self.publishers[publisher].len() as u64
    }

    /// One that was given to nobody goes to another node.
    pub fn send_again(&mut self, publisher: usize, number: u64, life: Life) {
        let entry = self.entry(publisher, number);
        assert!(entry.accepted.is_none(), "{publisher} {number} is accepted already");
        (entry.life, entry.sent) = (life, Instant::now());
    }

    /// A node acknowledged it.
    pub fn accept(&mut self, publisher: usize, number: u64) {
        self.entry(publisher, number).accepted = Some(Instant::now());
    }

    /// All that a publisher sent was acknowledged, soon after it was sent.
    pub fn accept_all(&mut self, publisher: usize) {
        self.publishers[publisher].iter_mut().for_each(|entry| entry.accepted = Some(entry.sent));
    }

    fn entry(&mut self, publisher: usize, number: u64) -> &mut Entry {
        &mut self.publishers[publisher][number as usize - 1]
    }

    /// A subscription was acknowledged.
    pub fn begin_session(&mut self, subscriber: usize, life: Life) -> SessionId {
        let (began, ended) = (Instant::now(), None);
        let (heard, last, order) = (Vec::new(), HashMap::new(), HashMap::new());
        self.sessions.push(Session { subscriber, life, began, ended, heard, last, order });
        SessionId(self.sessions.len() - 1)
    }

    /// Its connection ended.
    pub fn end_session(&mut self, id: SessionId) {
        self.sessions[id.0].ended = Some(Instant::now());
    }

    /// A message came: `"publisher number life"`.
    pub fn hear(&mut self, id: SessionId, text: &str) {
        let now = Instant::now();
        let mut parts = text.split(' ').map(|part| part.parse::<u64>());
        let (Some(Ok(publisher)), Some(Ok(number)), Some(Ok(life))) = (parts.next(), parts.next(), parts.next()) else {
            panic!("not ours: {text}");
        };
        let (publisher, life) = (publisher as usize, Life(life as u16));
        self.delivered += 1;
        let sent = self.entry(publisher, number).sent;
        // Of several nodes' messages to one topic each node has its own order.
        let is_ordered = self.node(life).is_some();
        let session = &mut self.sessions[id.0];
        let whose = || format!("subscriber {} of life {}", session.subscriber, session.life.0);
        if session.has(publisher, number) {
            self.doubled.push(format!("{text} came twice to {}", whose()));
            return;
        }
        let before = session.order.get(&(publisher, life)).copied().unwrap_or(0);
        if before > number && is_ordered {
            self.disordered.push(format!("{text} came behind {before} to {}", whose()));
        }
        session.order.insert((publisher, life), before.max(number));
        session.set(publisher, number);
        let (highest, at) = session.last.get(&publisher).copied().unwrap_or((0, session.began));
        session.last.insert(publisher, (highest.max(number), now));
        // What was under way before the subscription is a gift.
        let gap = Gap { from: at.max(sent), to: now };
        if sent >= session.began && gap.length() >= GAP_MIN {
            self.gaps.push(gap);
        }
    }

    /// A fault begins, which troubles the ways of `nodes`.
    pub fn begin_fault(&mut self, kind: &'static str, nodes: &[usize]) -> FaultId {
        self.faults.push(Fault { kind, nodes: nodes.to_vec(), began: Instant::now(), ended: None });
        FaultId(self.faults.len() - 1)
    }

    /// It is over.
    pub fn end_fault(&mut self, id: FaultId) {
        self.faults[id.0].ended = Some(Instant::now());
    }

    /// Faults by kind: how many, and the longest gap while one was on or its effects lasted.
    pub fn faults(&self) -> Vec<(&'static str, usize, Duration)> {
        let mut kinds: Vec<(&str, usize, Duration)> = Vec::new();
        for fault in &self.faults {
            let end = fault.ended.map(|ended| ended + RECOVERY);
            let overlaps = |gap: &&Gap| gap.to >= fault.began && end.is_none_or(|end| gap.from <= end);
            let longest = self.gaps.iter().filter(overlaps).map(|gap| gap.length()).max().unwrap_or_default();
            match kinds.iter_mut().find(|(kind, ..)| *kind == fault.kind) {
                Some(known) => (known.1, known.2) = (known.1 + 1, known.2.max(longest)),
                None => kinds.push((fault.kind, 1, longest)),
            }
        }
        kinds
    }

    /// Since when it is uncertain whether a message of `a` has reached `b`, if one of them ends at `end`.
    fn in_doubt_since(&self, a: Life, b: Life, end: Ended) -> Instant {
        let ways = [self.node(a), self.node(b)];
        let mut since = end.at - end.under_way;
        loop {
            let troubles =
                self.faults.iter().filter(|fault| fault.nodes.iter().any(|node| ways.contains(&Some(*node))));
            let lasting = troubles.filter(|fault| fault.ended.is_none_or(|ended| ended + RECOVERY >= since));
            match lasting.map(|fault| fault.began).filter(|began| *began < since).min() {
                Some(began) => since = began,
                None => return since,
            }
        }
    }

    /// Judges all of it, as of now.
    pub fn judge(&self) -> Verdict {
        let mut verdict = Verdict {
            published: self.publishers.iter().map(|entries| entries.len() as u64).sum(),
            accepted: self.publishers.iter().flatten().filter(|entry| entry.accepted.is_some()).count() as u64,
            delivered: self.delivered,
            doubled: self.doubled.clone(),
            disordered: self.disordered.clone(),
            sessions: self.sessions.len(),
            longest_gap: self.gaps.iter().map(|gap| gap.length()).max().unwrap_or_default(),
            ..Verdict::default()
        };
        let mut died = HashMap::new();
        for session in &self.sessions {
            for (publisher, entries) in self.publishers.iter().enumerate() {
                self.judge_stream(session, publisher, entries, &mut verdict, &mut died);
            }
        }
        verdict.died_with_their_node = died.len();
        verdict.died_within = died.into_values().max().unwrap_or_default();
        for (at, session) in self.sessions.iter().enumerate() {
            let next = self.sessions[at + 1..].iter().find(|next| next.subscriber == session.subscriber);
            if let (Some(ended), Some(next)) = (session.ended, next) {
                verdict.away.push(next.began - ended);
            }
        }
        verdict
    }

    fn judge_stream(
        &self,
        session: &Session,
        publisher: usize,
        entries: &[Entry],
        verdict: &mut Verdict,
        died: &mut HashMap<(usize, u64), Duration>,
    ) {
        for (number, entry) in (1..).zip(entries) {
            let Some(accepted) = entry.accepted else { continue };
            let is_due = entry.sent >= session.began && session.ended.is_none_or(|ended| entry.sent <= ended);
            if !is_due || session.has(publisher, number) {
                continue;
            }
            let origin = self.lives[usize::from(entry.life.0)].ended;
            // Nothing that came behind it by the same way is here either.
            let is_at_the_end = session.order.get(&(publisher, entry.life)).is_none_or(|last| *last < number);
            let is_in_doubt =
                |end: Ended| is_at_the_end && accepted >= self.in_doubt_since(entry.life, session.life, end);
            if session.ended.is_some_and(|at| is_in_doubt(Ended { at, under_way: UNDER_WAY })) {
                verdict.cut_short += 1;
            } else if let Some(ended) = origin
                && self.dies_with_its_node
                && session.life != entry.life
                && is_in_doubt(ended)
            {
                died.insert((publisher, number), ended.at.saturating_duration_since(accepted));
            } else {
                let life = entry.life.0;
                let ended = if session.ended.is_some() { ", whose session ended later" } else { "" };
                verdict.lost.push(format!(
                    "{publisher} {number} {life} never came to subscriber {} of life {}{ended}; accepted {:?} after the subscription",
                    session.subscriber,
                    session.life.0,
                    accepted - session.began
                ));
            }
        }
    }
}

/// A record with one publisher at the first of two nodes and a subscriber at the second.
#[cfg(test)]
fn two_nodes() -> (Record, usize, Life, SessionId) {
    let mut record = Record::new(true);
    let publisher = record.add_publisher();
    let (a, b) = (record.begin_life(0), record.begin_life(1));
    let session = record.begin_session(0, b);
    (record, publisher, a, session)
}

#[cfg(test)]
fn publish(record: &mut Record, publisher: usize, life: Life, count: u64) {
    for _ in 0..count {
        let number = record.send(publisher, life);
        record.accept(publisher, number);
    }
}

#[test]
fn what_is_missing_twice_or_out_of_order_is_seen() {
    let (mut record, publisher, a, session) = two_nodes();
    publish(&mut record, publisher, a, 5);
    for text in ["0 1 0", "0 2 0", "0 2 0", "0 5 0", "0 4 0"] {
        record.hear(session, text);
    }
    let verdict = record.judge();
    assert_eq!((verdict.lost.len(), verdict.doubled.len(), verdict.disordered.len()), (1, 1, 1), "{verdict:?}");
    assert!(verdict.lost[0].starts_with("0 3 0 never came"), "{verdict:?}");
    assert_eq!((verdict.published, verdict.accepted, verdict.delivered), (5, 5, 5));
}

#[test]
fn what_was_not_accepted_or_came_before_the_subscription_is_not_due() {
    let (mut record, publisher, a, _) = two_nodes();
    publish(&mut record, publisher, a, 2);
    let late = record.begin_session(1, Life(1));
    record.send(publisher, a);
    record.hear(late, "0 2 0");
    let lost = record.judge().lost;
    assert!(lost.iter().all(|text| text.contains("subscriber 0")) && lost.len() == 2, "{lost:?}");
}

#[test]
fn only_the_end_of_what_a_killed_node_accepted_dies_with_it() {
    let (mut record, publisher, a, session) = two_nodes();
    publish(&mut record, publisher, a, 4);
    record.hear(session, "0 2 0");
    record.killed(a);
    let verdict = record.judge();
    assert_eq!((verdict.lost.len(), verdict.died_with_their_node), (1, 2), "the first is not of the end: {verdict:?}");
    assert!(verdict.died_within < UNDER_WAY);
    record.dies_with_its_node = false;
    assert_eq!(record.judge().lost.len(), 3, "where it outlives its node");
    record.dies_with_its_node = true;
    // A node of the same name that lives on is no excuse.
    let again = record.begin_life(0);
    publish(&mut record, publisher, again, 1);
    assert_eq!(record.judge().lost.len(), 2);
}

#[test]
fn what_a_killed_node_accepted_long_before_is_lost_unless_its_ways_were_in_trouble() {
    let judged = |trouble: Option<&[usize]>| {
        let (mut record, publisher, a, _) = two_nodes();
        let fault = trouble.map(|nodes| record.begin_fault("cut", nodes));
        publish(&mut record, publisher, a, 1);
        let entry = &mut record.publishers[publisher][0];
        let long_ago = Instant::now() - 2 * UNDER_WAY;
        (entry.sent, entry.accepted) = (long_ago, Some(long_ago));
        record.sessions[0].began = long_ago - UNDER_WAY;
        if let Some(FaultId(fault)) = fault {
            record.faults[fault].began = long_ago - UNDER_WAY;
        }
        record.killed(a);
        (record.judge().lost.len(), record.judge().died_with_their_node)
    };
    assert_eq!(judged(None), (1, 0));
    assert_eq!(judged(Some(&[2])), (1, 0), "trouble of another");
    assert_eq!(judged(Some(&[0])), (0, 1));
}

#[test]
fn what_a_drained_node_accepted_is_there_unless_its_ways_were_in_trouble() {
    for (trouble, lost, died) in [(&[][..], 1, 0), (&[1], 0, 1)] {
        let (mut record, publisher, a, _) = two_nodes();
        let fault = record.begin_fault("cut", trouble);
        publish(&mut record, publisher, a, 1);
        record.drained(a);
        record.end_fault(fault);
        let verdict = record.judge();
        assert_eq!((verdict.lost.len(), verdict.died_with_their_node), (lost, died), "{verdict:?}");
    }
}

#[test]
fn a_session_that_ended_is_held_to_what_came_before_its_end() {
    let (mut record, publisher, a, session) = two_nodes();
    publish(&mut record, publisher, a, 3);
    record.hear(session, "0 2 0");
    record.end_session(session);
    publish(&mut record, publisher, a, 5); // Of no concern to it.
    let verdict = record.judge();
    assert_eq!((verdict.lost.len(), verdict.cut_short), (1, 1), "{verdict:?}");
}
