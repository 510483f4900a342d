//! Topics by Zipf's law: of n topics the k-th most popular has a share in proportion to 1/k^s. Dealt, not diced: the shares are
//! exact, and publisher, clients and the count of what was sent agree without a word.

/// Messages after which the order of topics repeats; a topic whose share is less than one of them gets none.
const PERIOD: u32 = 1 << 16;

/// How many of `count` each of `topics` gets: whole shares, and what is left to the largest remainders.
fn shares(topics: u32, exponent: f64, count: u32) -> Vec<u32> {
    let weights: Vec<f64> = (1..=topics).map(|k| f64::from(k).powf(-exponent)).collect();
    let all: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|w| w / all * f64::from(count)).collect();
    let mut shares: Vec<u32> = exact.iter().map(|share| *share as u32).collect();
    let left = count.saturating_sub(shares.iter().sum());
    let mut by_remainder: Vec<u32> = (0..topics).collect();
    by_remainder.sort_by(|a, b| exact[*b as usize].fract().total_cmp(&exact[*a as usize].fract()).then(a.cmp(b)));
    by_remainder.iter().cycle().take(left as usize).for_each(|topic| shares[*topic as usize] += 1);
    shares
}

/// `count` topics by their shares, in an order that is mixed and always the same.
pub(crate) fn deal(topics: u32, exponent: f64, count: u32) -> Vec<u32> {
    let shares = shares(topics, exponent, count);
    let mut dealt: Vec<u32> =
        (0..topics).flat_map(|topic| std::iter::repeat_n(topic, shares[topic as usize] as usize)).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for last in (1..dealt.len()).rev() {
        // xorshift64: good enough to mix.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        dealt.swap(last, (state % (last as u64 + 1)) as usize);
    }
    dealt
}

/// The order of topics in a load of messages.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    topics: Vec<u32>,    // Of message i: at i % PERIOD.
    ranks: Vec<u32>,     // How many before it in the period have the same topic.
    positions: Vec<u32>, // Of each topic's messages in the period, one topic after the other;
    first: Vec<u32>,     // where a topic's begin, and one more.
}

impl Pattern {
    pub(crate) fn new(topics: u32, exponent: f64) -> Pattern {
        let order = deal(topics, exponent, PERIOD);
        let mut counts = vec![0; topics as usize];
        let mut ranks = Vec::with_capacity(order.len());
        for topic in &order {
            ranks.push(counts[*topic as usize]);
            counts[*topic as usize] += 1;
        }
        let mut first = vec![0; topics as usize + 1];
        counts.iter().enumerate().for_each(|(topic, count)| first[topic + 1] = first[topic] + count);
        let mut positions = vec![0; order.len()];
        for (at, (topic, rank)) in order.iter().zip(&ranks).enumerate() {
            positions[(first[*topic as usize] + rank) as usize] = at as u32;
        }
        Pattern { topics: order, ranks, positions, first }
    }

    /// The topic of message `i`, and how many messages before it have the same.
    pub(crate) fn place(&self, i: u64) -> (u32, u64) {
        let at = (i % u64::from(PERIOD)) as usize;
        let topic = self.topics[at];
        (topic, i / u64::from(PERIOD) * self.of(topic).len() as u64 + u64::from(self.ranks[at]))
    }

    /// How many of the first `messages` messages have `topic`.
    pub(crate) fn count(&self, topic: u32, messages: u64) -> u64 {
        let (whole, rest) = (messages / u64::from(PERIOD), (messages % u64::from(PERIOD)) as u32);
        let positions = self.of(topic);
        whole * positions.len() as u64 + positions.partition_point(|at| *at < rest) as u64
    }

    fn of(&self, topic: u32) -> &[u32] {
        let (from, until) = (self.first[topic as usize], self.first[topic as usize + 1]);
        &self.positions[from as usize..until as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_law_and_add_up() {
        assert_eq!(shares(3, 1.0, 11), [6, 3, 2]);
        assert_eq!(shares(4, 0.0, 6), [2, 2, 1, 1]);
        assert_eq!(shares(2, 1.0, 0), [0, 0]);
        let dealt = deal(100, 1.2, 10_000);
        let of = |topic| dealt.iter().filter(|t| **t == topic).count();
        assert_eq!(dealt.len(), 10_000);
        assert!((of(0) as f64 / of(9) as f64 / 10f64.powf(1.2) - 1.0).abs() < 0.02);
        assert!(dealt[..1000].iter().filter(|t| **t == 0).count() < 500, "mixed");
    }

    #[test]
    fn messages_of_a_topic_are_numbered_without_gaps_over_periods() {
        let pattern = Pattern::new(7, 1.0);
        let mut seen = [0; 7];
        for i in 0..u64::from(PERIOD) * 2 + 100 {
            let (topic, rank) = pattern.place(i);
            assert_eq!(rank, seen[topic as usize], "message {i}");
            seen[topic as usize] += 1;
            if i % 977 == 0 {
                (0..7).for_each(|t| assert_eq!(pattern.count(t, i + 1), seen[t as usize]));
            }
        }
    }
}
