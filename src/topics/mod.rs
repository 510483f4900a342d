//! The control core's mind: which topics there are, who wants them, in which order messages go, and whether there is room.
//! A pure state machine: no I/O, time is an argument. It runs under the simulation together with the shards.
//!
//! Admission is one step: room in the queue of *every* interested shard (the control core is their only producer, so the check
//! is final), then the offset, then the push to all. No room: the publication waits in its topic's line, without an offset,
//! for at most `publish_wait_ms`, and is then refused; nobody has half of it.

use crate::clock::Time;
use crate::encode::Encoder;
use crate::frame::Publication;
use crate::ids::{Epoch, Offset, ShardId};
use crate::queue::{FromShard, ToShard};

/// The queues towards the shards, as `topics` needs them.
pub trait Outlet {
    /// Number of shards; ids are below it.
    fn shards(&self) -> usize;
    /// Whether `items` items of `bytes` bytes in all fit into the shard's queue. Final until the next push.
    fn has_room(&self, shard: ShardId, items: usize, bytes: usize) -> bool;
    /// Appends. Called only after [`Outlet::has_room`] said yes.
    ///
    /// # Panics
    /// If there is no room: the caller did not ask.
    fn push(&mut self, shard: ShardId, message: ToShard);
}

/// Bounds; each is a setting of the same name.
#[derive(Clone, Debug)]
pub struct TopicsLimits {
    /// Topics known at once; the longest idle one without interest is forgotten for a new one.
    pub topics_max: usize,
    /// A topic nobody wants and nobody publishes to is forgotten after this.
    pub topic_idle_ms: u64,
    /// How long a publication waits for room.
    pub publish_wait_ms: u64,
    /// Publications waiting in all lines together.
    pub publish_waiting_max: usize,
    /// Their payload bytes together.
    pub publish_waiting_bytes_max: usize,
    /// Largest payload.
    pub message_bytes_max: usize,
}

/// What an admitted publication got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The topic's present life.
    pub epoch: Epoch,
    /// The message's place in it.
    pub offset: Offset,
}

/// Why a publication was not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Shrink it.
    #[error(
        "the message has {bytes} bytes, at most {message_bytes_max} are allowed (limits.message_bytes_max): send it in parts"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        message_bytes_max: usize,
    },
    /// Shorten the name.
    #[error("the topic's name has {bytes} bytes, at most 255 are allowed: shorten it")]
    NameTooLong {
        /// Its size.
        bytes: usize,
    },
    /// Text dialects could not deliver it: browsers cut the connection (RFC 6455 §8.1).
    #[error("the data is not UTF-8, which WebSocket text messages must be: encode it (base64, JSON)")]
    NotUtf8,
    /// Try again later.
    #[error("shard {shard} took nothing for {waited_ms} ms and its queue is full: try again")]
    NoRoom {
        /// The first shard without room.
        shard: ShardId,
        /// How long it waited; 0 if the line itself was full.
        waited_ms: u64,
    },
    /// Every topic known is in use.
    #[error(
        "{topics_max} topics are in use, no more are allowed (limits.topics_max): unsubscribe from some, or raise it"
    )]
    TooManyTopics {
        /// The bound.
        topics_max: usize,
    },
    /// Ask another gateway.
    #[error("the gateway is shutting down: publish to another one")]
    Draining,
}

/// Names a publication that waits for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// What became of a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// In the queue of every shard with an interest.
    Admitted(Ack),
    /// It waits; [`Topics::turn`] will name this ticket.
    Waiting(Ticket),
    /// Nobody has any of it.
    Refused(Refusal),
}

/// Topics, interest and lines of one gateway.
pub struct Topics {}

impl Topics {
    /// No topics yet. `seed` makes epochs unlike those of an earlier start.
    pub fn new(_limits: TopicsLimits, _encoder: Encoder, _shards: usize, _seed: u64) -> Topics {
        unimplemented!()
    }

    /// Admits, lets wait or refuses one publication. Never blocks.
    pub fn publish(&mut self, _now: Time, _publication: Publication, _outlet: &mut dyn Outlet) -> Outcome {
        unimplemented!()
    }

    /// Takes what a shard said.
    pub fn shard_says(&mut self, _now: Time, _shard: ShardId, _message: FromShard, _outlet: &mut dyn Outlet) {
        unimplemented!()
    }

    /// Answers what could not be answered before, admits what waited and now fits, refuses what waited too long, forgets idle
    /// topics (bounded work). Returns when it wants to be called at the latest.
    pub fn turn(
        &mut self,
        _now: Time,
        _outlet: &mut dyn Outlet,
        _done: &mut Vec<(Ticket, Result<Ack, Refusal>)>,
    ) -> Time {
        unimplemented!()
    }

    /// From now on every publication is refused as draining; those waiting are refused at the next turn.
    pub fn drain(&mut self) {
        unimplemented!()
    }
}
