//! What was published and what became of it: the truth that every client's bytes are held against.
//!
//! A payload names itself (`@17;rrrrr`: number, then a letter repeated), so that a swap, a mixture of two messages or a
//! message of another topic is seen in the bytes alone.

use crate::clock::Time;
use crate::ids::{Epoch, Offset, ShardId};
use std::collections::VecDeque;

/// Topic 0 is the broadcast.
pub const BROADCAST: usize = 0;

/// The name of a topic; empty for the broadcast, as publishers say it.
pub fn topic_name(topic: usize) -> String {
    if topic == BROADCAST { String::new() } else { format!("topic-{topic}") }
}

struct Published {
    topic: usize,
    length: usize,
    /// Its place among the admitted ones of its topic.
    place: Option<u32>,
}

/// What one shard's clients got and missed, in messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Whole messages that the kernel took.
    pub sent: u64,
    /// Messages in sends that ended short: each may count as delivered or as dropped.
    pub broken: u64,
    /// Of the whole messages, those that shared a frame.
    pub joined: u64,
    /// Messages that certainly were the client's and did not come: the gateway must have counted at least these.
    pub missed_min: u64,
    /// Messages that may have been the client's and did not come: the gateway can't have counted more.
    pub missed_max: u64,
}

/// A moment at which a shard slept over an empty inbox, and how many messages of each topic were admitted by then.
struct Flushed {
    at: Time,
    /// When it had slept again a tick later: by then all of these had been handed to their subscribers.
    sure_at: Option<Time>,
    admitted: Vec<u32>,
}

/// Moments of a shard that are remembered, and how far apart they are at least.
const MOMENTS_MAX: usize = 128;
const MOMENT_MS: u64 = 25;

/// Everything published in one run.
#[derive(Default)]
pub struct Book {
    messages: Vec<Published>,
    admitted: Vec<Vec<(u32, Epoch, Offset)>>,
    flushed: Vec<VecDeque<Flushed>>,
    /// By shard.
    pub tallies: Vec<Tally>,
}

impl Book {
    /// A book for so many topics (the broadcast is one of them) and shards.
    pub fn new(topics: usize, shards: usize) -> Book {
        Book {
            messages: Vec::new(),
            admitted: vec![Vec::new(); topics],
            flushed: (0..shards).map(|_| VecDeque::new()).collect(),
            tallies: vec![Tally::default(); shards],
        }
    }

    /// Number of topics, the broadcast included.
    pub fn topics(&self) -> usize {
        self.admitted.len()
    }

    /// A new message: its number and its payload of at least `length` bytes.
    pub fn write(&mut self, topic: usize, length: usize) -> (u32, Vec<u8>) {
        let number = self.messages.len() as u32;
        let mut payload = format!("@{number};").into_bytes();
        payload.resize(length.max(payload.len()), letter(number));
        self.messages.push(Published { topic, length: payload.len(), place: None });
        (number, payload)
    }

    /// The gateway took it.
    ///
    /// # Panics
    /// If it takes it twice, or with an offset that does not grow within its epoch.
    pub fn admit(&mut self, number: u32, epoch: Epoch, offset: Offset) {
        let message = &mut self.messages[number as usize];
        let line = &mut self.admitted[message.topic];
        if let Some((before, last_epoch, last)) = line.last() {
            let grows = epoch != *last_epoch || offset > *last;
            assert!(grows, "message {number} has offset {offset}, {before} before it had {last}");
            assert!(number > *before, "message {number} was admitted after {before} of the same topic");
        }
        assert!(message.place.is_none(), "message {number} was admitted twice");
        message.place = Some(line.len() as u32);
        line.push((number, epoch, offset));
    }

    /// How many messages of `topic` were admitted.
    pub fn admitted(&self, topic: usize) -> u32 {
        self.admitted[topic].len() as u32
    }

    /// Topic and place of the message with this payload.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(&self, payload: &[u8]) -> Result<(usize, u32), String> {
        let shown = || String::from_utf8_lossy(&payload[..payload.len().min(40)]).into_owned();
        let split = payload.iter().position(|b| *b == b';').ok_or_else(|| format!("not a message: {:?}", shown()))?;
        let number: u32 = std::str::from_utf8(&payload[1..split])
            .ok()
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| format!("not a message: {:?}", shown()))?;
        let message = self.messages.get(number as usize).ok_or_else(|| format!("nobody published {:?}", shown()))?;
        if payload.len() != message.length || payload[split + 1..].iter().any(|b| *b != letter(number)) {
            return Err(format!("message {number} arrived with other bytes: {:?}", shown()));
        }
        let place = message.place.ok_or_else(|| format!("message {number} arrived and was never admitted"))?;
        Ok((message.topic, place))
    }

    /// A shard with an empty inbox has gone to sleep: what is admitted by now it hands out within `tick_ns`.
    pub fn went_to_sleep(&mut self, shard: usize, now: Time, tick_ns: u64) {
        let moments = &mut self.flushed[shard];
        for moment in moments.iter_mut().rev().take_while(|moment| moment.sure_at.is_none()) {
            if now.since_ns(moment.at) > tick_ns + 1_000_000 {
                moment.sure_at = Some(now);
            }
        }
        if moments.back().is_some_and(|last| now < last.at.plus_ms(MOMENT_MS)) {
            return;
        }
        if moments.len() == MOMENTS_MAX {
            moments.pop_front();
        }
        let admitted = self.admitted.iter().map(|line| line.len() as u32).collect();
        moments.push_back(Flushed { at: now, sure_at: None, admitted });
    }

    /// How many messages of `topic` the shard had handed to its subscribers by `time`, at least.
    pub fn flushed(&self, shard: ShardId, topic: usize, time: Time) -> u32 {
        let moments = &self.flushed[shard.0 as usize];
        let known = moments.iter().rev().find(|moment| moment.sure_at.is_some_and(|at| at < time));
        known.map_or(0, |moment| moment.admitted[topic])
    }

    /// The tally of a shard.
    pub fn tally(&mut self, shard: ShardId) -> &mut Tally {
        &mut self.tallies[shard.0 as usize]
    }
}

fn letter(number: u32) -> u8 {
    b'a' + (number % 26) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_names_itself_and_shows_a_foreign_byte() {
        let mut book = Book::new(2, 1);
        let (number, mut payload) = book.write(1, 20);
        assert!(book.read(&payload).unwrap_err().contains("never admitted"));
        book.admit(number, Epoch(1), Offset(1));
        assert_eq!(book.read(&payload), Ok((1, 0)));
        payload[10] = b'z';
        assert!(book.read(&payload).unwrap_err().contains("other bytes"));
    }

    #[test]
    #[should_panic(expected = "admitted after")]
    fn a_topic_admits_in_the_order_of_publishing() {
        let mut book = Book::new(2, 1);
        let (first, _) = book.write(1, 0);
        let (second, _) = book.write(1, 0);
        book.admit(second, Epoch(1), Offset(1));
        book.admit(first, Epoch(1), Offset(2));
    }
}
