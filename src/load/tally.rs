//! What arrived: latency from the intended time, and for every connection and stream whether anything is missing, came twice
//! or came out of order.

use super::stamp::{Stamp, Stream};
use hdrhistogram::Histogram;

/// Latencies above this count as this.
const LATENCY_US_MAX: u64 = 600_000_000;

/// A histogram of microseconds, to three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("constant bounds that hdrhistogram takes")
}

/// One connection's view of one stream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Track {
    next: u32,    // The sequence number expected.
    missing: u32, // Numbers before `next` that have not come.
    seen: u64,    // Bit i: number `next - 1 - i` has come.
}

impl Track {
    /// Messages of the stream's first `sent` that this connection does not have.
    pub(crate) fn lost(&self, sent: u32) -> u64 {
        u64::from(self.missing) + u64::from(sent.saturating_sub(self.next))
    }
}

/// The first message expected of a stream of which any may be the first: above every sequence number that a run gets to.
const ANY_FIRST: u32 = 1 << 30;

/// What came by one of several nodes.
#[derive(Debug)]
pub(crate) struct AtNode {
    /// Messages received within the measured window, whenever they were due.
    pub(crate) received: u64,
    /// Latencies, as in the total.
    pub(crate) latency: Histogram<u64>,
}

/// Sums over all connections.
#[derive(Debug)]
pub(crate) struct Tally {
    publishers: u32,
    tracks: Vec<Track>, // Of connection c and publisher p: at c * publishers + p.
    measured: u32,      // Connections whose latency counts: those below.
    measure_from_ns: u64,
    measure_until_ns: u64,
    /// By node, if there are several: connection c is at node c % nodes.
    pub(crate) nodes: Vec<AtNode>,
    interval: Histogram<u64>,
    total: Histogram<u64>,
    part: Histogram<u64>, // Of the total, what has come since `next_part`.
    /// Messages received, each once: duplicates not counted.
    pub(crate) received: u64,
    /// Their payload bytes.
    pub(crate) bytes: u64,
    /// Came a second time.
    pub(crate) duplicates: u64,
    /// Came after a later one of its stream.
    pub(crate) disordered: u64,
    /// Of a topic that the connection has not subscribed to, or of no known stream.
    pub(crate) foreign: u64,
}

impl Tally {
    pub(crate) fn new(connections: u32, publishers: u32) -> Tally {
        Tally {
            publishers,
            tracks: vec![Track::default(); connections as usize * publishers as usize],
            measured: connections,
            measure_from_ns: u64::MAX,
            measure_until_ns: u64::MAX,
            nodes: Vec::new(),
            interval: histogram(),
            total: histogram(),
            part: histogram(),
            received: 0,
            bytes: 0,
            duplicates: 0,
            disordered: 0,
            foreign: 0,
        }
    }

    /// What comes by each of so many nodes is also counted apart.
    pub(crate) fn tell_apart(&mut self, nodes: usize) {
        self.nodes = (0..nodes).map(|_| AtNode { received: 0, latency: histogram() }).collect();
    }

    /// Only latencies at the first `connections` connections count from now on.
    pub(crate) fn measure_only(&mut self, connections: u32) {
        self.measured = connections;
    }

    /// `connection` listens anew: of each publisher's stream it must get what comes from number `first` on, of `None` from
    /// whatever is its first message on. It may get earlier ones.
    pub(crate) fn begin(&mut self, connection: u32, first: impl Fn(u32) -> Option<u32>) {
        let at = connection as usize * self.publishers as usize;
        for p in 0..self.publishers {
            let next = first(p).unwrap_or(ANY_FIRST);
            self.tracks[at + p as usize] = Track { next, missing: 0, seen: 0 };
        }
    }

    /// Messages that `connection` lacks between those it has.
    pub(crate) fn gaps(&self, connection: u32) -> u64 {
        let at = connection as usize * self.publishers as usize;
        self.tracks[at..at + self.publishers as usize].iter().map(|track| u64::from(track.missing)).sum()
    }

    /// Latencies since the last call, or since the beginning.
    pub(crate) fn next_part(&mut self) -> Histogram<u64> {
        self.interval();
        std::mem::replace(&mut self.part, histogram())
    }

    /// Latencies of messages due from then on are recorded.
    pub(crate) fn measure_from(&mut self, ns: u64) {
        self.measure_from_ns = ns;
    }

    /// What comes from then on is of no node's window any more.
    pub(crate) fn measure_until(&mut self, ns: u64) {
        self.measure_until_ns = ns;
    }

    /// Counts the messages that `connection`, which listens to `topic`, has at `now_ns`.
    #[inline]
    pub(crate) fn at(&mut self, connection: u32, topic: u32, now_ns: u64) -> Counting<'_> {
        let first = connection as usize * self.publishers as usize;
        let measure_from_ns = if connection < self.measured { self.measure_from_ns } else { u64::MAX };
        let node = if self.nodes.is_empty() { 0 } else { connection as usize % self.nodes.len() };
        let is_in_window = (measure_from_ns..self.measure_until_ns).contains(&now_ns);
        Counting { first, topic, now_ns, measure_from_ns, node, is_in_window, tally: self }
    }

    /// What `connection` lacks of what was sent to its topic.
    pub(crate) fn lost(&self, connection: u32, topic: u32, sent: impl Fn(Stream) -> u32) -> u64 {
        let first = connection as usize * self.publishers as usize;
        let tracks = &self.tracks[first..first + self.publishers as usize];
        let stream = |p: usize| Stream::new(topic, p as u32);
        tracks.iter().enumerate().map(|(p, track)| track.lost(sent(stream(p)))).sum()
    }

    /// Latencies since the last call; they join the total.
    pub(crate) fn interval(&mut self) -> Histogram<u64> {
        let mut empty = self.interval.clone();
        empty.reset();
        let interval = std::mem::replace(&mut self.interval, empty);
        self.total.add(&interval).expect("the same bounds");
        self.part.add(&interval).expect("the same bounds");
        interval
    }

    /// All latencies recorded.
    pub(crate) fn total(&mut self) -> &Histogram<u64> {
        self.interval();
        &self.total
    }
}

/// One connection's messages of one moment: what is the same for all of them is looked up once.
pub(crate) struct Counting<'a> {
    tally: &'a mut Tally,
    first: usize,
    topic: u32,
    now_ns: u64,
    measure_from_ns: u64,
    node: usize,
    is_in_window: bool,
}

impl Counting<'_> {
    /// Counts one message of `length` bytes.
    #[inline]
    pub(crate) fn message(&mut self, stamp: Stamp, length: usize) {
        let publisher = stamp.stream.publisher();
        if stamp.stream.topic() != self.topic || publisher >= self.tally.publishers {
            self.tally.foreign += 1;
            return;
        }
        let track = &mut self.tally.tracks[self.first + publisher as usize];
        let ahead = stamp.sequence.wrapping_sub(track.next);
        if ahead == 0 {
            track.next = track.next.wrapping_add(1);
            track.seen = track.seen << 1 | 1;
        } else if !out_of_turn(track, ahead, &mut self.tally.duplicates, &mut self.tally.disordered) {
            return;
        }
        self.tally.received += 1;
        self.tally.bytes += length as u64;
        let is_measured = stamp.due_ns >= self.measure_from_ns;
        let latency_us = self.now_ns.saturating_sub(stamp.due_ns) / 1000;
        if is_measured {
            self.tally.interval.saturating_record(latency_us);
        }
        if let Some(node) = self.tally.nodes.get_mut(self.node) {
            node.received += u64::from(self.is_in_window);
            if is_measured {
                node.latency.saturating_record(latency_us);
            }
        }
    }
}

/// Takes a number that is not the next one; whether it is new.
#[cold]
fn out_of_turn(track: &mut Track, ahead: u32, duplicates: &mut u64, disordered: &mut u64) -> bool {
    if ahead < u32::MAX / 2 {
        track.missing = track.missing.wrapping_add(ahead);
        track.next = track.next.wrapping_add(ahead).wrapping_add(1);
        track.seen = track.seen.checked_shl(ahead + 1).unwrap_or(0) | 1;
        return true;
    }
    if track.seen == 0 {
        // Published before it had to be here, or nobody knows which is the first: from here on none may be missing.
        track.next = track.next.wrapping_add(ahead).wrapping_add(1);
        track.seen = 1;
        return true;
    }
    let behind = ahead.wrapping_neg(); // 1: the number before `next`.
    // Further back than `seen` reaches nobody knows; if nothing is missing it can only be a duplicate.
    let seen = if behind > u64::BITS { track.missing == 0 } else { track.seen >> (behind - 1) & 1 == 1 };
    if seen {
        *duplicates += 1;
        return false;
    }
    track.missing = track.missing.saturating_sub(1);
    if behind <= u64::BITS {
        track.seen |= 1 << (behind - 1);
    }
    *disordered += 1;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(sequence: &[u32], sent: u32) -> (u64, u64, u64, u64) {
        let mut tally = Tally::new(3, 1);
        tally.measure_from(0);
        for &s in sequence {
            tally.at(1, 1, 2005).message(Stamp { stream: Stream::new(1, 0), sequence: s, due_ns: 5 }, 128);
        }
        (tally.received, tally.lost(1, 1, |_| sent), tally.duplicates, tally.disordered)
    }

    #[test]
    fn gaps_duplicates_and_disorder_are_told_apart() {
        assert_eq!(after(&[0, 1, 2], 3), (3, 0, 0, 0));
        assert_eq!(after(&[0, 2], 3), (2, 1, 0, 0), "a gap");
        assert_eq!(after(&[0, 1], 3), (2, 1, 0, 0), "the tail");
        assert_eq!(after(&[], 3), (0, 3, 0, 0), "everything");
        assert_eq!(after(&[0, 1, 1, 0, 2], 3), (3, 0, 2, 0), "twice");
        assert_eq!(after(&[0, 2, 1, 1, 3], 4), (4, 0, 1, 1), "late, and then again");
        assert_eq!(after(&[200, 0], 201), (2, 199, 0, 1), "far behind, with something missing");
        assert_eq!(after(&(0..100).chain([0]).collect::<Vec<_>>(), 100), (100, 0, 1, 0), "far behind, nothing missing");
        assert_eq!(after(&[63, 0, 0], 64), (2, 62, 1, 1), "at the edge of what is remembered");
    }

    #[test]
    fn who_comes_in_the_middle_is_held_to_what_is_published_from_then_on() {
        let after = |first: Option<u32>, sequence: &[u32], sent: u32| {
            let mut tally = Tally::new(2, 1);
            tally.begin(1, |_| first);
            for &sequence in sequence {
                tally.at(1, 0, 0).message(Stamp { stream: Stream::new(0, 0), sequence, due_ns: 0 }, 128);
            }
            (tally.received, tally.lost(1, 0, |_| sent), tally.gaps(1), tally.duplicates, tally.disordered)
        };
        assert_eq!(after(Some(5), &[5, 6], 7), (2, 0, 0, 0, 0));
        assert_eq!(after(Some(5), &[3, 4, 5, 6], 7), (4, 0, 0, 0, 0), "earlier ones may come");
        assert_eq!(after(Some(5), &[3, 5, 6], 7), (3, 1, 1, 0, 0), "but then in a row");
        assert_eq!(after(Some(5), &[7], 8), (1, 2, 2, 0, 0), "the head is missing");
        assert_eq!(after(Some(5), &[], 7), (0, 2, 0, 0, 0), "everything is");
        assert_eq!(after(Some(5), &[], 4), (0, 0, 0, 0, 0), "nothing was sent since");
        assert_eq!(after(Some(5), &[4, 4, 5], 6), (2, 0, 0, 1, 0), "twice");
        assert_eq!(after(None, &[9, 10, 12], 13), (3, 1, 1, 0, 0), "from whatever comes first");
        assert_eq!(after(None, &[], 13), (0, 0, 0, 0, 0));
    }

    #[test]
    fn latency_is_taken_in_parts_and_of_the_measured_only() {
        let mut tally = Tally::new(2, 1);
        tally.measure_only(1);
        tally.measure_from(0);
        let message = |tally: &mut Tally, connection, sequence| {
            tally.at(connection, 0, 5000).message(Stamp { stream: Stream(0), sequence, due_ns: 0 }, 128);
        };
        message(&mut tally, 0, 0);
        message(&mut tally, 1, 0);
        assert_eq!(tally.next_part().len(), 1);
        message(&mut tally, 0, 1);
        message(&mut tally, 0, 2);
        assert_eq!((tally.next_part().len(), tally.next_part().len(), tally.total().len()), (2, 0, 3));
    }

    #[test]
    fn what_comes_by_each_node_is_told_apart_and_what_comes_late_is_not_of_the_window() {
        let mut tally = Tally::new(4, 1);
        tally.tell_apart(2);
        tally.measure_from(1000);
        tally.measure_until(10_000);
        for (connection, sequence, due_ns, now_ns) in
            [(0, 0, 500, 2000), (1, 0, 1000, 5000), (3, 0, 2000, 9000), (2, 0, 3000, 10_000), (0, 1, 500, 900)]
        {
            tally.at(connection, 0, now_ns).message(Stamp { stream: Stream(0), sequence, due_ns }, 128);
        }
        let nodes: Vec<_> = tally.nodes.iter().map(|n| (n.received, n.latency.len(), n.latency.max())).collect();
        assert_eq!(nodes, [(1, 1, 7), (2, 2, 7)], "received in time, measured, longest µs");
        assert_eq!((tally.received, tally.total().len()), (5, 3));
    }

    #[test]
    fn messages_of_other_topics_and_publishers_are_foreign() {
        let mut tally = Tally::new(2, 1);
        for stream in [Stream::new(0, 0), Stream::new(3, 0), Stream::new(1, 1)] {
            tally.at(1, 1, 1).message(Stamp { stream, sequence: 0, due_ns: 0 }, 128);
        }
        assert_eq!((tally.foreign, tally.received), (3, 0));
    }

    #[test]
    fn latency_counts_from_the_intended_time_and_only_after_the_warm_up() {
        let mut tally = Tally::new(1, 1);
        tally.measure_from(1_000_000);
        for (sequence, due_ns) in [(0, 999_999), (1, 1_000_000), (2, 2_000_000)] {
            tally.at(0, 0, 3_000_000).message(Stamp { stream: Stream(0), sequence, due_ns }, 128);
        }
        assert_eq!(tally.interval().len(), 2);
        assert_eq!(tally.interval().len(), 0);
        assert_eq!((tally.total().max(), tally.total().min(), tally.total().len()), (2000, 1000, 2));
    }
}
