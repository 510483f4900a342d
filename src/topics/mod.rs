//! The control core's mind: which topics there are, who wants them, in which order messages go, and whether there is room.
//! A pure state machine: no I/O, time is an argument. It runs under the simulation together with the shards.
//!
//! Admission is one step: room in the queue of *every* interested shard (the control core is their only producer, so the check
//! is final), then the offset, then the push to all. No room: the publication waits in its topic's line, without an offset,
//! for at most `publish_wait_ms`, and is then refused; nobody has half of it.
//!
//! ```text
//! publish ──► line empty, room everywhere ──────────────────────────► admitted
//!    │                                                                   ▲
//!    └──► line of its topic ──► list of the first shard without room ────┤ turn: that shard has room
//!              │                      │ the interest there ends          │
//!              │                      └──────► freed ───────────────────►┘
//!              └──► publish_wait_ms, drain ──► refused
//! ```
//!
//! A line stands in the list of one shard only, so that a turn looks at lines it can move and no others. A newcomer to a shard
//! with such a list joins it even if there is room: those who wait would never see any. So a shard that stands still holds up
//! the topics with interest there, and nobody else's.
//!
//! What goes to users is one stream. Who of them is on which shard, a table of keys says (`users.rs`), and nothing is kept for a
//! user that waits for nothing. When one has to wait, it gets a line of its own for as long, as if it were a topic: users on
//! other shards don't wait with it.
//!
//! A topic without interest and without a line is idle: it may be forgotten, and begins a new epoch when it comes back. One that
//! nobody ever published to goes before any other, and soon: clients choose names, and must not push out those in use. A topic
//! with interest is never idle, so a shard sees one epoch per interest, told by [`ToShard::Subscribed`].

mod sequencer;
mod slab;
mod users;
mod windows;

pub use windows::{MergeCounts, MergeLimits};

use crate::clock::Time;
use crate::dialect::{Position, TOPIC_BYTES_MAX};
use crate::encode::Encoder;
use crate::frame::{Frame, Publication, Target};
use crate::ids::{ClientRef, Encoding, Epoch, InterestId, InterestRef, Offset, ShardId, UserKey};
use crate::queue::{self, FromShard, InterestKey, ToShard, UserFrame};
use sequencer::Sequencer;
use slab::{Linked, Links, List, NIL, Slab};
use std::collections::{HashMap, VecDeque};
use std::hash::RandomState;
use std::sync::Arc;
use users::UserTable;
use windows::Windows;

/// Waiting publications looked at in one turn; above it the turn asks to be called again at once.
const ADMISSIONS_PER_TURN_MAX: usize = 4096;
/// Waiting publications refused as late in one turn.
const REFUSALS_PER_TURN_MAX: usize = 4096;
/// Idle topics forgotten in one turn.
const FORGOTTEN_PER_TURN_MAX: usize = 1024;
/// A topic that nobody ever published to is forgotten after this, or `topic_idle_ms` if that is less: time for who wanted it to come back.
const UNUSED_MS_MAX: u64 = 10_000;
/// A shard does not say when it has room again: while somebody waits for it, a turn is due this often.
const RETRY_MS: u64 = 1;
/// The stream to everyone, a topic without a name that is always there.
const BROADCAST: u32 = 0;
/// The stream of what goes to single users, likewise.
const USERS: u32 = 1;

/// The queues towards the shards, as `topics` needs them.
pub trait Outlet {
    /// Number of shards; ids are below it.
    fn shards(&self) -> usize;
    /// Whether `items` items of `bytes` bytes in all fit into the shard's queue. Final until the next push. One publication is
    /// up to [`Encoding::COUNT_MAX`] items: a queue of fewer would never take some.
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
    /// Topics known at once; the longest idle one without interest is forgotten for a new one. Bounds what publishers make:
    /// a topic that somebody subscribes to is taken beyond it (connections × `topics_per_connection_max` bounds those).
    pub topics_max: usize,
    /// A topic nobody wants and nobody publishes to is forgotten after this.
    pub topic_idle_ms: u64,
    /// How long a publication waits for room.
    pub publish_wait_ms: u64,
    /// Publications waiting in all lines together.
    pub publish_waiting_max: usize,
    /// Their payload bytes together. The first of each line may hold its frames as well, one per encoding wanted.
    pub publish_waiting_bytes_max: usize,
    /// Largest payload.
    pub message_bytes_max: usize,
    /// Merge windows.
    pub merge: MergeLimits,
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
    #[error("the name of the topic or user has {bytes} bytes, at most 255 are allowed: shorten it")]
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
    /// Try again later; the stream that it was to go into does not have it.
    #[error("the stream can't be reached, it does not have the message: try again ({trouble})")]
    StreamAway {
        /// What is the matter.
        trouble: String,
    },
    /// Try again later.
    #[error(
        "{messages} messages wait for the stream's acknowledgement, no more are allowed (cluster.nats_in_flight_max, cluster.nats_in_flight_bytes_max): try again"
    )]
    StreamBusy {
        /// How many.
        messages: usize,
    },
    /// It may be in the stream.
    #[error(
        "no acknowledgement from the stream within {waited_ms} ms (cluster.nats_publish_timeout_ms): it may have the message or not; publishing again may double it"
    )]
    StreamLate {
        /// How long that was.
        waited_ms: u64,
    },
    /// Shrink it, or raise that bound.
    #[error("the stream takes no message as large as this: {reason}: send it in parts")]
    StreamTooLarge {
        /// Whose bound, and what it is.
        reason: String,
    },
    /// Look at the stream's limits.
    #[error("the stream does not take the message: {reason}")]
    StreamRefused {
        /// In NATS's words.
        reason: String,
    },
}

/// Names a publication that waits for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// What became of a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// In the queue of every shard with an interest, or in its topic's merge window.
    Admitted(Ack),
    /// It waits; [`Topics::turn`] will name this ticket.
    Waiting(Ticket),
    /// Nobody has any of it.
    Refused(Refusal),
}

/// A shard whose full queue somebody waits for: a reason not to be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockedShard {
    /// Which one.
    pub shard: ShardId,
    /// Topics whose lines or merge windows wait for it.
    pub topics: usize,
    /// Answers about interest that it is owed.
    pub answers: usize,
    /// It has been found full, and been given nothing, since then.
    pub since: Time,
}

/// What one publication needs in a shard's queue.
#[derive(Clone, Copy, Default)]
struct Need {
    items: usize,
    bytes: usize,
}

impl Need {
    /// Nothing fits where this does not.
    const LEAST: Need = Need { items: 1, bytes: 0 };
    /// Fits anywhere.
    const NONE: Need = Need { items: 0, bytes: 0 };
}

/// Where a topic stands. One list at a time, whose links it carries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In none: it has interest and no line.
    Settled,
    /// No interest, no line: it may be forgotten.
    Idle,
    /// Idle, and nothing was published to it in this life: there is nothing to forget.
    Unused,
    /// Its line waits for this shard.
    Blocked(ShardId),
    /// Its line waited for this shard, where it no longer has an interest.
    Freed(ShardId),
    /// Its line waits for any merge window to leave; this shard holds up the one that has waited longest.
    Crowded(ShardId),
}

struct Interest {
    encoding: Encoding,
    shard: ShardId,
    interest: InterestRef,
    merged: bool, // It gets merge windows; the others get each publication at once.
}

struct Topic {
    name: Arc<str>,
    epoch: Epoch,
    began: Offset, // While `last` is that, nothing was published in this life.
    last: Offset,
    interests: Vec<Interest>, // Sorted by (encoding, shard).
    line_head: u32,           // Into `Topics::waiting`; NIL if nobody waits.
    line_tail: u32,
    merged: u32, // How many of its interests are.
    window: u32, // Into `Windows::all`; NIL if nothing is collected. Never without a merged interest.
    place: Place,
    links: Links,
    last_used: Time,
}

impl Linked for Topic {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// Who gets a publication: a shard in an encoding, for an interest or for a user.
#[derive(Clone, Copy)]
struct Recipient {
    shard: ShardId,
    encoding: Encoding,
    interest: Option<InterestRef>,
}

/// The frames of a publication at a position, so far.
#[derive(Default)]
struct Built {
    position: Option<Position>,
    frames: Vec<(Encoding, Frame)>,
}

struct Waiting {
    ticket: Ticket,
    topic: u32,
    publication: Publication,
    given: Option<Offset>,
    since: Time,
    need: Need, // In the queue of the shard its topic is blocked on, once it is first in line.
    built: Option<Built>,
    behind: u32, // The next in the same line.
    links: Links,
}

impl Linked for Waiting {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// What a shard is owed about one interest.
enum Answer {
    Subscribed { generation: u32, key: InterestKey },
    Unsubscribed { generation: u32 },
}

struct Registered {
    generation: u32,
    topic: u32,
    encoding: Encoding,
}

/// One interest number of one shard.
#[derive(Default)]
struct Number {
    registered: Option<Registered>,
    owed: Option<Answer>,
}

/// What a client's question is answered with, once there is room.
struct OwedAnswer {
    client: ClientRef,
    answer: Box<queue::Answer>,
    /// Of the client, if it is one that logs in.
    encoding: Encoding,
}

struct Shard {
    numbers: Vec<Number>,
    /// Numbers with an answer owed, in the order they got one. Each at most once: only the latest life of a number counts.
    owed: VecDeque<InterestId>,
    /// Answers to its clients' questions that found no room, in their order. As many at most as the shard asks at once.
    answers: VecDeque<OwedAnswer>,
    /// Who is logged in there.
    users: UserTable,
    /// Topics whose lines wait for room here.
    blocked: List,
    full_since: Option<Time>,
    /// It has not been told the epoch of the stream. Told before anything else.
    is_epoch_owed: bool,
}

impl Shard {
    fn is_owed(&self) -> bool {
        !self.owed.is_empty() || !self.answers.is_empty() || self.is_epoch_owed
    }

    fn number(&mut self, id: InterestId) -> &mut Number {
        let index = id.0 as usize;
        if index >= self.numbers.len() {
            self.numbers.resize_with(index + 1, Number::default);
        }
        &mut self.numbers[index]
    }
}

/// Who had no room for a publication or a merge window.
#[derive(Clone, Copy)]
struct Blocked {
    shard: ShardId,
    need: Need,
    by: By,
}

impl Blocked {
    fn place(self) -> Place {
        match self.by {
            By::Queue => Place::Blocked(self.shard),
            By::Windows => Place::Crowded(self.shard),
        }
    }
}

/// What is full.
#[derive(Clone, Copy)]
enum By {
    /// The shard's queue.
    Queue,
    /// All merge windows together.
    Windows,
}

/// Topics, interest and lines of one gateway.
pub struct Topics {
    limits: TopicsLimits,
    encoder: Encoder,
    sequencer: Sequencer,
    names: HashMap<Arc<str>, u32>, // Keyed hash: clients choose the names.
    user_hash: RandomState,        // Likewise for uids.
    lanes: HashMap<UserKey, u32>,  // Users with a line, and the nameless topic that stands for each meanwhile.
    topics: Slab<Topic>,
    idle: List,
    unused: List,
    freed: List,
    crowded: List,
    shards: Vec<Shard>,
    shards_owed: usize, // Those with an answer owed, so that a publication asks one integer.
    first_shard: usize, // Where the next turn begins, so that a busy shard does not starve the later ones.
    waiting: Slab<Waiting>,
    arrivals: List, // All who wait, in the order they came. One wait for all, so this is the order of their deadlines too.
    waiting_bytes: usize,
    tickets: u64,
    windows: Windows,
    draining: bool,
    recipients: Vec<Recipient>, // Scratch of one admission.
    built: Built,               // Likewise.
    needs: Vec<Need>,           // Scratch of one admission, zero between two.
    evicted: u64,
    frames_built: u64,
}

impl Topics {
    /// No topics yet. `seed` makes epochs unlike those of an earlier start.
    pub fn new(limits: TopicsLimits, encoder: Encoder, shards: usize, seed: u64) -> Topics {
        let mut sequencer = Sequencer::local(seed);
        let mut topics = Slab::new();
        for stream in [BROADCAST, USERS] {
            let index = topics.insert(Topic::new("".into(), sequencer.begin(), Time::default(), Place::Settled));
            assert_eq!(index, stream);
        }
        let shard = || Shard {
            numbers: Vec::new(),
            owed: VecDeque::new(),
            answers: VecDeque::new(),
            users: UserTable::default(),
            blocked: List::EMPTY,
            full_since: None,
            is_epoch_owed: false,
        };
        let windows = Windows::new(limits.merge, shards);
        Topics {
            limits,
            windows,
            encoder,
            sequencer,
            names: HashMap::new(),
            user_hash: RandomState::new(),
            lanes: HashMap::new(),
            topics,
            idle: List::EMPTY,
            unused: List::EMPTY,
            freed: List::EMPTY,
            crowded: List::EMPTY,
            shards: std::iter::repeat_with(shard).take(shards).collect(),
            shards_owed: 0,
            first_shard: 0,
            waiting: Slab::new(),
            arrivals: List::EMPTY,
            waiting_bytes: 0,
            tickets: 0,
            draining: false,
            recipients: Vec::new(),
            built: Built::default(),
            needs: vec![Need::default(); shards],
            evicted: 0,
            frames_built: 0,
        }
    }

    /// Admits, lets wait or refuses one publication. Never blocks. O(interests of its topic); allocates its frames, and what
    /// waiting takes.
    pub fn publish(&mut self, now: Time, publication: Publication, outlet: &mut dyn Outlet) -> Outcome {
        self.take(now, publication, None, outlet)
    }

    /// As [`Topics::publish`], of what has come from the stream that [`Topics::follow`] named: its offset is its number there. What is
    /// refused nobody here gets; it is in the stream all the same.
    pub fn deliver(&mut self, now: Time, publication: Publication, sequence: u64, outlet: &mut dyn Outlet) -> Outcome {
        let offset = self.sequencer.place(sequence);
        if let Target::Topic(name) = &publication.target
            && !self.names.contains_key(name)
        {
            // Nobody here knows it. Whoever comes to want it begins behind what the stream has had by then.
            let (epoch, _) = self.sequencer.begin();
            return Outcome::Admitted(Ack { epoch, offset: self.sequencer.shown(offset) });
        }
        self.take(now, publication, Some(offset), outlet)
    }

    /// Offsets are those of a stream from now on, of one epoch for all topics; up to `after` nothing of it will come. Subscribers go on:
    /// what they are shown next has that epoch. Shards are told now, or when their queues have room. O(topics).
    pub fn follow(&mut self, now: Time, epoch: Epoch, after: u64, outlet: &mut dyn Outlet) {
        let highest = self.topics.iter().map(|topic| topic.last).max().unwrap_or_default();
        self.sequencer.follow(epoch, after, highest);
        let (_, begin) = self.sequencer.begin();
        for topic in self.topics.iter_mut() {
            topic.epoch = epoch;
            // Shards hold the others to what they were told.
            if topic.interests.is_empty() && topic.line_head == NIL {
                (topic.last, topic.began) = (begin, begin);
            }
        }
        for shard in &mut self.shards {
            self.shards_owed += usize::from(!shard.is_owed());
            shard.is_epoch_owed = true;
        }
        self.answer_all(now, outlet);
    }

    /// Whether a publication would be refused whatever room there is.
    ///
    /// # Errors
    /// It would be, for this reason.
    pub fn check(&self, publication: &Publication) -> Result<(), Refusal> {
        let message_bytes_max = self.limits.message_bytes_max;
        let name_bytes = match &publication.target {
            Target::Everyone => 0,
            Target::Topic(topic) => topic.len(),
            Target::User { uid, topic } => uid.len().max(topic.len()),
        };
        match (name_bytes, publication.data.len()) {
            _ if self.draining => Err(Refusal::Draining),
            (bytes, _) if bytes > TOPIC_BYTES_MAX => Err(Refusal::NameTooLong { bytes }),
            (_, bytes) if bytes > message_bytes_max => Err(Refusal::TooLarge { bytes, message_bytes_max }),
            _ if std::str::from_utf8(&publication.data).is_err() => Err(Refusal::NotUtf8),
            _ => Ok(()),
        }
    }

    /// `given` is the offset of what has one already.
    fn take(&mut self, now: Time, publication: Publication, given: Option<Offset>, outlet: &mut dyn Outlet) -> Outcome {
        if let Err(refusal) = self.check(&publication) {
            return Outcome::Refused(refusal);
        }
        if self.shards_owed > 0 {
            self.answer_all(now, outlet);
        }
        let index = match &publication.target {
            Target::Everyone => BROADCAST,
            Target::User { uid, .. } => {
                let lane = if self.lanes.is_empty() { None } else { self.lanes.get(&self.user_key(uid)) };
                lane.copied().unwrap_or(USERS)
            }
            Target::Topic(name) => match self.names.get(name).copied() {
                Some(index) => index,
                None if self.make_room() => self.create(now, name.clone()),
                None => return Outcome::Refused(Refusal::TooManyTopics { topics_max: self.limits.topics_max }),
            },
        };
        let topic = &mut self.topics[index];
        topic.last_used = now;
        let blocked = match topic.place {
            // Nothing of a topic overtakes what waits in its line.
            Place::Blocked(shard) | Place::Freed(shard) | Place::Crowded(shard) => {
                Blocked { shard, need: Need::LEAST, by: By::Queue }
            }
            Place::Settled | Place::Idle | Place::Unused => {
                self.address(index, &publication);
                match self.overtakes_none(index).and_then(|()| self.admit(now, index, &publication, given, outlet)) {
                    Ok(ack) => {
                        self.built.frames.clear();
                        if self.is_idle(index) {
                            self.put(index, Place::Idle); // The youngest again.
                        }
                        return Outcome::Admitted(ack);
                    }
                    Err(blocked) => blocked,
                }
            }
        };
        let lane = match &publication.target {
            Target::User { uid, .. } if index == USERS => Some(self.user_key(uid)),
            _ => None,
        };
        let index = lane.map_or(index, |user| self.open_lane(now, user));
        let outcome = self.wait(now, index, publication, given, blocked);
        if let (Outcome::Refused(_), Some(user)) = (&outcome, lane) {
            self.close_lane(index, user);
        }
        self.built.frames.clear();
        outcome
    }

    /// Takes what a shard said about interest and users; [`FromShard::Ask`], its [`FromShard::Withdraw`]
    /// and [`FromShard::Drained`] are not for us.
    ///
    /// An interest is registered in the step that pushes its answer, now or when the queue has room, so that the answer's place
    /// is the cut. A later life of a number replaces an earlier one together with any answer that one was still owed.
    pub fn shard_says(&mut self, now: Time, shard: ShardId, message: FromShard, outlet: &mut dyn Outlet) {
        match message {
            FromShard::Subscribe { interest, key } => {
                self.release(now, shard, interest.id);
                self.owe(shard, interest.id, Answer::Subscribed { generation: interest.generation, key });
            }
            FromShard::Unsubscribe { interest } => {
                let number = self.shards[usize::from(shard.0)].number(interest.id);
                let current = match (&number.owed, &number.registered) {
                    (Some(Answer::Subscribed { generation, .. }), _) => Some(*generation),
                    (_, registered) => registered.as_ref().map(|r| r.generation),
                };
                if current != Some(interest.generation) {
                    return; // Of a life that has been answered or replaced.
                }
                self.release(now, shard, interest.id);
                self.owe(shard, interest.id, Answer::Unsubscribed { generation: interest.generation });
            }
            FromShard::LoggedOut { user } => {
                let is_gone = self.shards[usize::from(shard.0)].users.log_out(user);
                if is_gone
                    && let Some(&lane) = self.lanes.get(&user)
                    && self.topics[lane].place == Place::Blocked(shard)
                {
                    self.put(lane, Place::Freed(shard));
                }
                return;
            }
            FromShard::Ask { .. } | FromShard::Withdraw { .. } | FromShard::Drained => return,
        }
        self.answer(now, shard, outlet);
    }

    /// Tells a client that it is `uid` from now on, now or when its shard's queue has room: in that step the user's messages
    /// begin to go there, and go on until [`FromShard::LoggedOut`].
    pub fn log_in(
        &mut self,
        now: Time,
        shard: ShardId,
        client: ClientRef,
        uid: Box<str>,
        encoding: Encoding,
        outlet: &mut dyn Outlet,
    ) {
        let user = users::key(&self.user_hash, &uid);
        let answer = Box::new(queue::Answer::LoggedIn { uid, user });
        self.owe_answer(now, shard, OwedAnswer { client, answer, encoding }, outlet);
    }

    /// Gives a client its answer, now or when its shard's queue has room. For [`queue::Answer::LoggedIn`] see [`Topics::log_in`].
    pub fn reply(
        &mut self,
        now: Time,
        shard: ShardId,
        client: ClientRef,
        answer: queue::Answer,
        outlet: &mut dyn Outlet,
    ) {
        debug_assert!(!matches!(answer, queue::Answer::LoggedIn { .. }));
        let answer = OwedAnswer { client, answer: Box::new(answer), encoding: Encoding::default() };
        self.owe_answer(now, shard, answer, outlet);
    }

    /// Answers what could not be answered before, admits what waited and now fits, refuses what waited too long, forgets idle
    /// topics (bounded work). Returns when it wants to be called at the latest; `now` means that there is more to do.
    pub fn turn(&mut self, now: Time, outlet: &mut dyn Outlet, done: &mut Vec<(Ticket, Result<Ack, Refusal>)>) -> Time {
        if self.draining {
            while let Some(first) = self.arrivals.first() {
                done.push((self.leave(now, first).ticket, Err(Refusal::Draining)));
            }
        }
        if self.shards_owed > 0 {
            self.answer_all(now, outlet);
        }
        // Windows before lines: a line may wait for the window of its topic, and a window has been acknowledged.
        let mut more = self.turn_windows(now, outlet);
        // Admission before refusal: when this core comes late to its turn, what fits by now is not refused for that.
        more |= self.admit_waiting(now, outlet, done);
        more |= self.refuse_late(now, done);
        more |= self.forget_idle(now);
        self.windows.seen();
        if more {
            return now;
        }
        let mut next = Time::NEVER;
        if let Some(first) = self.arrivals.first() {
            next = self.deadline(first);
        }
        next = next.min(self.windows.due());
        if self.waiting.len() > 0 || self.shards_owed > 0 || self.windows.has_blocked() {
            next = next.min(now.plus_ms(RETRY_MS));
        }
        for (list, patience_ms) in self.idlers() {
            if let Some(oldest) = list.first() {
                next = next.min(self.topics[oldest].last_used.plus_ms(patience_ms));
            }
        }
        next
    }

    /// From now on every publication is refused as draining; those waiting are refused at the next turn, and what is collected
    /// leaves. The last of it has left when [`Topics::is_flushed`] says so, at most `publish_wait_ms` later.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Users known, each counted once for every shard it is logged in on.
    pub fn users(&self) -> usize {
        self.shards.iter().map(|shard| shard.users.len()).sum()
    }

    /// Topics known, the broadcast stream not counted.
    pub fn topics(&self) -> usize {
        self.names.len()
    }

    /// Publications waiting for room.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Their payload bytes.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Topics forgotten so far to make room for a new one.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Frames built so far.
    pub fn frames_built(&self) -> u64 {
        self.frames_built
    }

    /// The shards somebody waits for. One that goes on taking things is not among them, however long its list.
    pub fn blocked_shards(&self) -> impl Iterator<Item = BlockedShard> {
        self.shards.iter().enumerate().filter_map(|(index, shard)| {
            let id = ShardId(index as u16);
            let topics = shard.blocked.len() + self.windows.blocked_on(id);
            let answers = shard.owed.len() + shard.answers.len() + usize::from(shard.is_epoch_owed);
            let since = shard.full_since.filter(|_| topics + answers > 0)?;
            Some(BlockedShard { shard: id, topics, answers, since })
        })
    }

    // Topics come and go.

    /// Whether one more topic may be known, if need be for the longest idle ones. Forgets one a call unless interest has taken
    /// the number of topics beyond its bound, and each topic once.
    fn make_room(&mut self) -> bool {
        while self.names.len() >= self.limits.topics_max {
            let Some(oldest) = self.unused.first().or(self.idle.first()) else { return false };
            self.forget(oldest);
            self.evicted += 1;
        }
        true
    }

    fn create(&mut self, now: Time, name: Arc<str>) -> u32 {
        let topic = Topic::new(name.clone(), self.sequencer.begin(), now, Place::Unused);
        let index = self.topics.insert(topic);
        self.unused.push_back(&mut self.topics, index);
        self.names.insert(name, index);
        index
    }

    fn forget(&mut self, index: u32) {
        debug_assert!(self.is_idle(index));
        self.put(index, Place::Settled); // In no list.
        let topic = self.topics.remove(index);
        self.names.remove(&topic.name);
    }

    /// Returns whether more are due than one turn forgets.
    fn forget_idle(&mut self, now: Time) -> bool {
        for _ in 0..FORGOTTEN_PER_TURN_MAX {
            let due = self.idlers().into_iter().find_map(|(list, patience_ms)| {
                list.first().filter(|oldest| self.topics[*oldest].last_used.plus_ms(patience_ms) <= now)
            });
            match due {
                Some(oldest) => self.forget(oldest),
                None => return false,
            }
        }
        true
    }

    /// Who may be forgotten, oldest first, and after which time.
    fn idlers(&self) -> [(&List, u64); 2] {
        let idle_ms = self.limits.topic_idle_ms;
        [(&self.unused, idle_ms.min(UNUSED_MS_MAX)), (&self.idle, idle_ms)]
    }

    fn is_idle(&self, index: u32) -> bool {
        matches!(self.topics[index].place, Place::Idle | Place::Unused)
    }

    /// Moves a topic to the end of the list it belongs in.
    fn put(&mut self, index: u32, to: Place) {
        let from = std::mem::replace(&mut self.topics[index].place, to);
        if let Some((list, topics)) = self.list(from) {
            list.unlink(topics, index);
        }
        if let Some((list, topics)) = self.list(to) {
            list.push_back(topics, index);
        }
    }

    fn list(&mut self, place: Place) -> Option<(&mut List, &mut Slab<Topic>)> {
        let list = match place {
            Place::Settled => return None,
            Place::Idle => &mut self.idle,
            Place::Unused => &mut self.unused,
            Place::Blocked(shard) => &mut self.shards[usize::from(shard.0)].blocked,
            Place::Freed(_) => &mut self.freed,
            Place::Crowded(_) => &mut self.crowded,
        };
        Some((list, &mut self.topics))
    }

    fn settle(&mut self, now: Time, index: u32) {
        let topic = &mut self.topics[index];
        debug_assert!(topic.line_head == NIL);
        topic.last_used = now;
        let place = match topic.last {
            _ if index <= USERS || !topic.interests.is_empty() => Place::Settled,
            last if last == topic.began => Place::Unused,
            _ => Place::Idle,
        };
        self.put(index, place);
    }

    // Interest.

    fn owe(&mut self, shard: ShardId, id: InterestId, answer: Answer) {
        let shard = &mut self.shards[usize::from(shard.0)];
        if shard.number(id).owed.replace(answer).is_none() {
            self.shards_owed += usize::from(!shard.is_owed());
            shard.owed.push_back(id);
        }
    }

    fn owe_answer(&mut self, now: Time, id: ShardId, answer: OwedAnswer, outlet: &mut dyn Outlet) {
        let shard = &mut self.shards[usize::from(id.0)];
        self.shards_owed += usize::from(!shard.is_owed());
        shard.answers.push_back(answer);
        self.answer(now, id, outlet);
    }

    fn answer_all(&mut self, now: Time, outlet: &mut dyn Outlet) {
        for shard in 0..self.shards.len() {
            self.answer(now, ShardId(shard as u16), outlet);
        }
    }

    /// Gives a shard the answers it is owed while its queue has room.
    fn answer(&mut self, now: Time, id: ShardId, outlet: &mut dyn Outlet) {
        let shard = &mut self.shards[usize::from(id.0)];
        if shard.is_epoch_owed {
            if !outlet.has_room(id, 1, 0) {
                shard.full_since.get_or_insert(now);
                return;
            }
            (shard.full_since, shard.is_epoch_owed) = (None, false);
            self.shards_owed -= usize::from(!shard.is_owed());
            let (epoch, base) = self.sequencer.followed();
            outlet.push(id, ToShard::Epoch { epoch, base });
        }
        while let Some(&number) = self.shards[usize::from(id.0)].owed.front() {
            let shard = &mut self.shards[usize::from(id.0)];
            if !outlet.has_room(id, 1, 0) {
                shard.full_since.get_or_insert(now);
                return;
            }
            shard.full_since = None;
            shard.owed.pop_front();
            self.shards_owed -= usize::from(!shard.is_owed());
            let answer = shard.number(number).owed.take().expect("a number in the list is owed an answer");
            let message = match answer {
                Answer::Subscribed { generation, key } => {
                    let interest = InterestRef { id: number, generation };
                    let (epoch, offset) = self.register(now, id, interest, key);
                    ToShard::Subscribed { interest, epoch, offset }
                }
                Answer::Unsubscribed { generation } => {
                    ToShard::Unsubscribed { interest: InterestRef { id: number, generation } }
                }
            };
            outlet.push(id, message);
        }
        self.answer_clients(now, id, outlet);
    }

    fn answer_clients(&mut self, now: Time, id: ShardId, outlet: &mut dyn Outlet) {
        let shard = &mut self.shards[usize::from(id.0)];
        while let Some(OwedAnswer { client, answer, encoding }) = shard.answers.pop_front() {
            let user = match &*answer {
                queue::Answer::LoggedIn { user, .. } => Some(*user),
                _ => None,
            };
            let message = ToShard::Answer { client, answer };
            if !outlet.has_room(id, 1, message.queued_bytes()) {
                let ToShard::Answer { client, answer } = message else { unreachable!("made above") };
                shard.answers.push_front(OwedAnswer { client, answer, encoding });
                shard.full_since.get_or_insert(now);
                return;
            }
            shard.full_since = None;
            self.shards_owed -= usize::from(!shard.is_owed());
            if let Some(user) = user {
                shard.users.log_in(user, encoding);
            }
            outlet.push(id, message);
        }
    }

    fn register(&mut self, now: Time, shard: ShardId, interest: InterestRef, key: InterestKey) -> (Epoch, Offset) {
        let encoding = key.encoding();
        let index = match key {
            InterestKey::Broadcast(_) => BROADCAST,
            // The empty name is a topic like any other to who subscribes; a publication without a topic never meets it.
            InterestKey::Topic(name, _) => match self.names.get(&*name) {
                Some(&index) => index,
                None => {
                    self.make_room();
                    self.create(now, name)
                }
            },
        };
        let topic = &mut self.topics[index];
        let at = topic.interests.partition_point(|i| (i.encoding, i.shard) <= (encoding, shard));
        let merged = Topics::is_merged(index, encoding);
        topic.interests.insert(at, Interest { encoding, shard, interest, merged });
        let (epoch, last) = (topic.epoch, topic.last);
        let from = if merged { self.window_joined(index) } else { None };
        let position = (epoch, from.unwrap_or(last));
        if self.is_idle(index) {
            self.put(index, Place::Settled);
        }
        let registered = Registered { generation: interest.generation, topic: index, encoding };
        self.shards[usize::from(shard.0)].number(interest.id).registered = Some(registered);
        position
    }

    /// Ends an interest, if the number has one: from here on no frame goes to it.
    fn release(&mut self, now: Time, shard: ShardId, id: InterestId) {
        let Some(registered) = self.shards[usize::from(shard.0)].number(id).registered.take() else { return };
        let index = registered.topic;
        let topic = &mut self.topics[index];
        let from = topic.interests.partition_point(|i| (i.encoding, i.shard) < (registered.encoding, shard));
        let at =
            topic.interests[from..].iter().position(|i| i.interest.id == id).expect("a registered interest is listed");
        let gone = topic.interests.remove(from + at);
        if gone.merged {
            self.window_left(index, shard);
        }
        match self.topics[index].place {
            Place::Blocked(on) if on == shard => self.put(index, Place::Freed(shard)),
            Place::Crowded(on) if self.topics[index].merged == 0 => self.put(index, Place::Freed(on)),
            Place::Settled => self.settle(now, index),
            _ => {}
        }
    }

    // Admission.

    /// Lists who gets a publication at once: all but those with a merge window.
    fn address(&mut self, index: u32, publication: &Publication) {
        self.recipients.clear();
        let interests = self.topics[index].interests.iter().filter(|i| !i.merged);
        self.recipients.extend(interests.map(|i| Recipient {
            shard: i.shard,
            encoding: i.encoding,
            interest: Some(i.interest),
        }));
        if let Target::User { uid, .. } = &publication.target {
            let user = self.user_key(uid);
            for (shard, its) in self.shards.iter().enumerate() {
                let shard = ShardId(shard as u16);
                let recipient = |encoding| Recipient { shard, encoding, interest: None };
                self.recipients.extend(its.users.encodings(user).map(recipient));
            }
        }
    }

    /// Whether a newcomer may be admitted although others wait, namely for none of the shards it needs, and not for room in windows
    /// if it needs some.
    fn overtakes_none(&self, index: u32) -> Result<(), Blocked> {
        if let Some(first) = self.crowded.first().filter(|_| self.topics[index].merged > 0)
            && let Place::Crowded(shard) = self.topics[first].place
        {
            return Err(Blocked { shard, need: Need::NONE, by: By::Windows });
        }
        let is_waited_for = |shard: ShardId| {
            !self.shards[usize::from(shard.0)].blocked.is_empty() || self.windows.blocked_on(shard) > 0
        };
        match self.recipients.iter().find(|r| is_waited_for(r.shard)) {
            Some(recipient) => Err(Blocked { shard: recipient.shard, need: Need::LEAST, by: By::Queue }),
            None => Ok(()),
        }
    }

    /// Gives the publication to every recipient and to the topic's merge window, or changes nothing but `self.built`, which holds
    /// its frames so far, and windows, some of which may have left to make room.
    fn admit(
        &mut self,
        now: Time,
        index: u32,
        publication: &Publication,
        given: Option<Offset>,
        outlet: &mut dyn Outlet,
    ) -> Result<Ack, Blocked> {
        self.prepare_item(now, index, &publication.data, outlet)?;
        let stream = match publication.target {
            Target::User { .. } => USERS, // `index` may be a lane.
            Target::Everyone | Target::Topic(_) => index,
        };
        let Topic { epoch, last, .. } = self.topics[stream];
        let offset = given.unwrap_or_else(|| self.sequencer.after(last));
        // Users have lines of their own: what waited for one of them comes behind later numbers of others.
        let prev = if stream == USERS { last.min(Offset(offset.0 - 1)) } else { last };
        let position = Position { epoch, offset, prev };
        debug_assert!(offset > prev);
        let shown = Position { epoch, offset: self.sequencer.shown(offset), prev: self.sequencer.shown(prev) };
        if given.is_some()
            && let Some(recipient) = self.recipients.iter().find(|r| self.shards[usize::from(r.shard.0)].is_epoch_owed)
        {
            return Err(Blocked { shard: recipient.shard, need: Need::LEAST, by: By::Queue });
        }

        if self.built.position != Some(position) {
            self.built.frames.clear();
            self.built.position = Some(position);
        }
        for recipient in &self.recipients {
            let frame = match frame_of(&self.built.frames, recipient.encoding) {
                Some(frame) => frame,
                None => {
                    self.frames_built += 1;
                    let frame = self.encoder.frame(publication, shown, recipient.encoding);
                    self.built.frames.push((recipient.encoding, frame));
                    &self.built.frames[self.built.frames.len() - 1].1
                }
            };
            let need = &mut self.needs[usize::from(recipient.shard.0)];
            need.items += 1;
            need.bytes += frame.len();
        }

        let mut blocked = None;
        for recipient in &self.recipients {
            let need = std::mem::take(&mut self.needs[usize::from(recipient.shard.0)]);
            if need.items > 0 && blocked.is_none() && !outlet.has_room(recipient.shard, need.items, need.bytes) {
                blocked = Some(Blocked { shard: recipient.shard, need, by: By::Queue });
            }
        }
        if let Some(blocked) = blocked {
            self.shards[usize::from(blocked.shard.0)].full_since.get_or_insert(now);
            return Err(blocked);
        }

        self.topics[stream].last = last.max(offset);
        let mut messages: Vec<Arc<UserFrame>> = Vec::new(); // One per encoding, shared like the frame in it.
        for recipient in &self.recipients {
            let frame = frame_of(&self.built.frames, recipient.encoding).expect("built above");
            self.shards[usize::from(recipient.shard.0)].full_since = None;
            let message = match (&publication.target, recipient.interest) {
                (Target::User { uid, topic }, _) => {
                    let known = messages.iter().find(|m| m.encoding == recipient.encoding).cloned();
                    ToShard::User(known.unwrap_or_else(|| {
                        let message = Arc::new(UserFrame {
                            user: users::key(&self.user_hash, uid),
                            uid: uid.clone(),
                            topic: topic.clone(),
                            encoding: recipient.encoding,
                            offset,
                            frame: frame.clone(),
                            admitted: now,
                        });
                        messages.push(message.clone());
                        message
                    }))
                }
                (_, Some(interest)) => ToShard::Frame { interest, offset, prev, frame: frame.clone(), admitted: now },
                (_, None) => unreachable!("only users are addressed without an interest"),
            };
            outlet.push(recipient.shard, message);
        }
        self.add_item(now, stream, prev, offset, outlet);
        Ok(Ack { epoch, offset: shown.offset })
    }

    // Users.

    fn user_key(&self, uid: &str) -> UserKey {
        users::key(&self.user_hash, uid)
    }

    /// A line for a user's publications, as if the user were a topic.
    fn open_lane(&mut self, now: Time, user: UserKey) -> u32 {
        let Topic { epoch, began, .. } = self.topics[USERS];
        let lane = self.topics.insert(Topic::new("".into(), (epoch, began), now, Place::Settled));
        self.lanes.insert(user, lane);
        lane
    }

    fn close_lane(&mut self, lane: u32, user: UserKey) {
        self.put(lane, Place::Settled); // In no list.
        self.topics.remove(lane);
        self.lanes.remove(&user);
    }

    // Lines.

    fn wait(
        &mut self,
        now: Time,
        index: u32,
        publication: Publication,
        given: Option<Offset>,
        blocked: Blocked,
    ) -> Outcome {
        let bytes = publication.data.len();
        if self.waiting.len() >= self.limits.publish_waiting_max
            || self.waiting_bytes + bytes > self.limits.publish_waiting_bytes_max
        {
            return Outcome::Refused(Refusal::NoRoom { shard: blocked.shard, waited_ms: 0 });
        }
        // A copy: `data` may be a slice of a whole batch as it was received, which would stay with it, uncounted.
        let data = bytes::Bytes::copy_from_slice(&publication.data);
        let built = (!self.built.frames.is_empty()).then(|| std::mem::take(&mut self.built));
        let ticket = Ticket(self.tickets);
        self.tickets += 1;
        let entry = self.waiting.insert(Waiting {
            ticket,
            topic: index,
            publication: Publication { data, ..publication },
            given,
            since: now,
            need: blocked.need,
            built,
            behind: NIL,
            links: Links::NONE,
        });
        self.arrivals.push_back(&mut self.waiting, entry);
        self.waiting_bytes += bytes;
        let topic = &mut self.topics[index];
        let tail = std::mem::replace(&mut topic.line_tail, entry);
        match tail {
            NIL => {
                topic.line_head = entry;
                self.put(index, blocked.place());
            }
            tail => self.waiting[tail].behind = entry,
        }
        Outcome::Waiting(ticket)
    }

    /// Takes out who is first in a line. Its topic stays where it is while others stand behind.
    fn leave(&mut self, now: Time, entry: u32) -> Waiting {
        self.arrivals.unlink(&mut self.waiting, entry);
        let waiting = self.waiting.remove(entry);
        self.waiting_bytes -= waiting.publication.data.len();
        let topic = &mut self.topics[waiting.topic];
        assert_eq!(topic.line_head, entry, "a line is left at its head: whoever came first is admitted or late first");
        topic.line_head = waiting.behind;
        if waiting.behind == NIL {
            topic.line_tail = NIL;
            match &waiting.publication.target {
                Target::User { uid, .. } => self.close_lane(waiting.topic, self.user_key(uid)),
                Target::Everyone | Target::Topic(_) => self.settle(now, waiting.topic),
            }
        }
        waiting
    }

    /// Admits those for whom there is room now, topics in turns. Returns whether more could be done.
    fn admit_waiting(
        &mut self,
        now: Time,
        outlet: &mut dyn Outlet,
        done: &mut Vec<(Ticket, Result<Ack, Refusal>)>,
    ) -> bool {
        let mut left = ADMISSIONS_PER_TURN_MAX;
        while let Some(index) = self.freed.first() {
            if left == 0 {
                return true;
            }
            left -= 1;
            self.retry(now, index, outlet, done);
        }
        // Another window may have left than that of the shard which held these up: until one of them finds no room again.
        while let Some(index) = self.crowded.first().filter(|_| self.windows.may_take()) {
            if left == 0 {
                return true;
            }
            left -= 1;
            if let Some(By::Windows) = self.retry(now, index, outlet, done) {
                break;
            }
        }
        let shards = self.shards.len();
        for shard in (self.first_shard..shards).chain(0..self.first_shard) {
            while let Some(index) = self.shards[shard].blocked.first() {
                let need = self.waiting[self.topics[index].line_head].need;
                // A window that finds no room here was acknowledged before any of these came.
                if self.windows.blocked_on(ShardId(shard as u16)) > 0 {
                    break;
                }
                if !outlet.has_room(ShardId(shard as u16), need.items, need.bytes) {
                    self.shards[shard].full_since.get_or_insert(now);
                    break;
                }
                // It made room since it could not be told of its epoch, which goes first: the next turn tells it.
                if self.shards[shard].is_epoch_owed {
                    break;
                }
                if left == 0 {
                    self.first_shard = (shard + 1) % shards;
                    return true;
                }
                left -= 1;
                self.retry(now, index, outlet, done);
            }
        }
        false
    }

    /// Tries to admit the first of a line. Returns what is full, if it was in vain.
    fn retry(
        &mut self,
        now: Time,
        index: u32,
        outlet: &mut dyn Outlet,
        done: &mut Vec<(Ticket, Result<Ack, Refusal>)>,
    ) -> Option<By> {
        let entry = self.topics[index].line_head;
        let waiting = &mut self.waiting[entry];
        let (publication, given, is_last) = (waiting.publication.clone(), waiting.given, waiting.behind == NIL);
        self.built = waiting.built.take().unwrap_or_default();
        self.address(index, &publication);
        let in_vain = match self.admit(now, index, &publication, given, outlet) {
            Ok(ack) => {
                done.push((self.leave(now, entry).ticket, Ok(ack)));
                if !is_last {
                    self.put(index, self.topics[index].place); // Behind the other topics: they take turns.
                }
                None
            }
            Err(blocked) => {
                let waiting = &mut self.waiting[entry];
                waiting.need = blocked.need;
                waiting.built = Some(std::mem::take(&mut self.built));
                self.put(index, blocked.place());
                Some(blocked.by)
            }
        };
        self.built.frames.clear();
        in_vain
    }

    /// Refuses who has waited `publish_wait_ms`. Returns whether more are late than one turn refuses.
    fn refuse_late(&mut self, now: Time, done: &mut Vec<(Ticket, Result<Ack, Refusal>)>) -> bool {
        for _ in 0..REFUSALS_PER_TURN_MAX {
            match self.arrivals.first() {
                Some(first) if self.deadline(first) <= now => {
                    let (Place::Blocked(shard) | Place::Freed(shard) | Place::Crowded(shard)) =
                        self.topics[self.waiting[first].topic].place
                    else {
                        unreachable!("a topic with a line is blocked, freed or crowded")
                    };
                    let late = self.leave(now, first);
                    let waited_ms = now.since_ns(late.since) / 1_000_000;
                    done.push((late.ticket, Err(Refusal::NoRoom { shard, waited_ms })));
                }
                _ => return false,
            }
        }
        true
    }

    fn deadline(&self, entry: u32) -> Time {
        self.waiting[entry].since.plus_ms(self.limits.publish_wait_ms)
    }
}

impl Topic {
    fn new(name: Arc<str>, (epoch, began): (Epoch, Offset), now: Time, place: Place) -> Topic {
        Topic {
            name,
            epoch,
            began,
            last: began,
            interests: Vec::new(),
            line_head: NIL,
            line_tail: NIL,
            merged: 0,
            window: NIL,
            place,
            links: Links::NONE,
            last_used: now,
        }
    }
}

fn frame_of(frames: &[(Encoding, Frame)], encoding: Encoding) -> Option<&Frame> {
    frames.iter().find(|(e, _)| *e == encoding).map(|(_, frame)| frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::DialectId;
    use crate::encode::EncodeSettings;
    use crate::ids::{Generation, Slot};

    pub(super) const T0: Time = Time(1_000_000_000);
    pub(super) const WAIT_MS: u64 = 100;
    pub(super) const IDLE_MS: u64 = 1000;
    pub(super) const S0: ShardId = ShardId(0);
    pub(super) const S1: ShardId = ShardId(1);

    /// Queues of a few items each, which only the test drains.
    pub(super) struct Queues {
        pub(super) shards: Vec<VecDeque<ToShard>>,
        pub(super) items_max: usize,
        pub(super) bytes_max: usize,
    }

    impl Queues {
        fn bytes(&self, shard: ShardId) -> usize {
            self.shards[usize::from(shard.0)].iter().map(ToShard::queued_bytes).sum()
        }

        /// What the shard finds, shortened: "sub id.generation offset", "unsub id.generation", "id.generation prev>offset text".
        pub(super) fn take(&mut self, shard: ShardId) -> Vec<String> {
            self.shards[usize::from(shard.0)].drain(..).map(|m| shorten(&m)).collect()
        }
    }

    pub(super) fn shorten(message: &ToShard) -> String {
        let name = |i: &InterestRef| format!("{}.{}", i.id, i.generation);
        match message {
            ToShard::Subscribed { interest, offset, .. } => format!("sub {} {offset}", name(interest)),
            ToShard::Unsubscribed { interest } => format!("unsub {}", name(interest)),
            ToShard::Frame { interest, offset, prev, frame, .. } => {
                let text = if frame[0] == 0x81 { String::from_utf8_lossy(&frame[2..]) } else { "deflated".into() };
                format!("{} {prev}>{offset} {text}", name(interest))
            }
            ToShard::User(message) => {
                let text = String::from_utf8_lossy(&message.frame[2..]);
                format!("{} {} {} {text}", message.uid, message.topic, message.offset)
            }
            ToShard::Answer { client, answer } => match &**answer {
                queue::Answer::LoggedIn { uid, .. } => format!("{} is {uid}", client.slot),
                other => format!("{} {other:?}", client.slot),
            },
            ToShard::Epoch { epoch, base } => format!("epoch {epoch} from {base}"),
            other => panic!("topics never says {other:?}"),
        }
    }

    impl Outlet for Queues {
        fn shards(&self) -> usize {
            self.shards.len()
        }
        fn has_room(&self, shard: ShardId, items: usize, bytes: usize) -> bool {
            let queued = self.bytes(shard);
            self.shards[usize::from(shard.0)].len() + items <= self.items_max
                && (queued == 0 || queued + bytes <= self.bytes_max)
        }
        fn push(&mut self, shard: ShardId, message: ToShard) {
            assert!(self.has_room(shard, 1, message.queued_bytes()), "pushed without room");
            self.shards[usize::from(shard.0)].push_back(message);
        }
    }

    pub(super) fn limits() -> TopicsLimits {
        TopicsLimits {
            topics_max: 3,
            topic_idle_ms: IDLE_MS,
            publish_wait_ms: WAIT_MS,
            publish_waiting_max: 4,
            publish_waiting_bytes_max: 1000,
            message_bytes_max: 500,
            merge: MergeLimits {
                max_merge_delay_ms: 50,
                max_merge_items: 4,
                max_merge_bytes: 1000,
                merge_pending_items_max: 10,
                merge_pending_bytes_max: 10_000,
            },
        }
    }

    pub(super) struct World {
        pub(super) topics: Topics,
        pub(super) queues: Queues,
        pub(super) now: Time,
    }

    impl World {
        pub(super) fn new(items_max: usize) -> World {
            World::with(limits(), items_max)
        }

        pub(super) fn with(limits: TopicsLimits, items_max: usize) -> World {
            let encoder = Encoder::new(&EncodeSettings { deflate_level: 6, deflate_bytes_min: 16 });
            let shards = (0..3).map(|_| VecDeque::new()).collect();
            let queues = Queues { shards, items_max, bytes_max: 10_000 };
            World { topics: Topics::new(limits, encoder, 3, 7), queues, now: T0 }
        }

        pub(super) fn publish(&mut self, topic: &str, data: &str) -> Outcome {
            let publication = Publication::new(topic, data.to_owned());
            self.topics.publish(self.now, publication, &mut self.queues)
        }

        /// The offset, if it is admitted at once.
        pub(super) fn admitted(&mut self, topic: &str, data: &str) -> u64 {
            match self.publish(topic, data) {
                Outcome::Admitted(ack) => ack.offset.0,
                other => panic!("{topic} {data}: {other:?}"),
            }
        }

        pub(super) fn waits(&mut self, topic: &str, data: &str) -> Ticket {
            match self.publish(topic, data) {
                Outcome::Waiting(ticket) => ticket,
                other => panic!("{topic} {data}: {other:?}"),
            }
        }

        pub(super) fn refused(&mut self, topic: &str, data: &str) -> Refusal {
            match self.publish(topic, data) {
                Outcome::Refused(refusal) => refusal,
                other => panic!("{topic} {data}: {other:?}"),
            }
        }

        pub(super) fn subscribe(&mut self, shard: ShardId, id: u32, generation: u32, topic: &str) {
            self.subscribe_in(shard, id, generation, topic, false);
        }

        fn subscribe_in(&mut self, shard: ShardId, id: u32, generation: u32, topic: &str, deflated: bool) {
            let encoding = DialectId::Gpush.encoding(deflated);
            let key = match topic {
                "*" => InterestKey::Broadcast(encoding),
                topic => InterestKey::Topic(topic.into(), encoding),
            };
            let interest = InterestRef { id: InterestId(id), generation };
            self.topics.shard_says(self.now, shard, FromShard::Subscribe { interest, key }, &mut self.queues);
        }

        fn log_in(&mut self, shard: ShardId, slot: u32, uid: &str) {
            self.log_in_as(shard, slot, uid, false);
        }

        fn log_in_as(&mut self, shard: ShardId, slot: u32, uid: &str, deflated: bool) {
            let client = ClientRef { slot: Slot(slot), generation: Generation(1) };
            let encoding = DialectId::Gpush.encoding(deflated);
            self.topics.log_in(self.now, shard, client, uid.into(), encoding, &mut self.queues);
        }

        fn log_out(&mut self, shard: ShardId, uid: &str) {
            let user = self.topics.user_key(uid);
            self.topics.shard_says(self.now, shard, FromShard::LoggedOut { user }, &mut self.queues);
        }

        fn push_to(&mut self, uid: &str, data: &str) -> Outcome {
            let publication = Publication { target: Target::user_or_topic(uid, "t"), data: data.to_owned().into() };
            self.topics.publish(self.now, publication, &mut self.queues)
        }

        /// As the stream gives it: the offset that is shown, if it is admitted at once.
        fn delivered(&mut self, topic: &str, sequence: u64, data: &str) -> Option<u64> {
            let publication = Publication::new(topic, data.to_owned());
            match self.topics.deliver(self.now, publication, sequence, &mut self.queues) {
                Outcome::Admitted(ack) => Some(ack.offset.0),
                Outcome::Waiting(_) => None,
                Outcome::Refused(refusal) => panic!("{refusal}"),
            }
        }

        fn follow(&mut self, epoch: u64, after: u64) {
            self.topics.follow(self.now, Epoch(epoch), after, &mut self.queues);
        }

        pub(super) fn unsubscribe(&mut self, shard: ShardId, id: u32, generation: u32) {
            let interest = InterestRef { id: InterestId(id), generation };
            self.topics.shard_says(self.now, shard, FromShard::Unsubscribe { interest }, &mut self.queues);
        }

        /// Turns until nothing more is to be done now.
        pub(super) fn turn(&mut self) -> Vec<(Ticket, Result<u64, Refusal>)> {
            let mut done = Vec::new();
            while self.topics.turn(self.now, &mut self.queues, &mut done) == self.now {}
            done.into_iter().map(|(ticket, result)| (ticket, result.map(|ack| ack.offset.0))).collect()
        }

        pub(super) fn after_ms(&mut self, ms: u64) {
            self.now = self.now.plus_ms(ms);
        }
    }

    #[test]
    fn offsets_of_a_stream_are_its_sequences_and_a_topic_begins_where_the_stream_is() {
        let mut w = World::new(10);
        w.follow(9, 100);
        w.subscribe(S0, 0, 1, "a");
        assert_eq!(w.delivered("a", 101, "one"), Some(101));
        assert_eq!(w.delivered("nobody's", 102, "two"), Some(102));
        assert_eq!(w.topics.topics(), 1, "what nobody knows takes no place");
        w.subscribe(S1, 0, 1, "nobody's");
        assert_eq!(w.delivered("a", 103, "three"), Some(103));
        assert_eq!(w.delivered("nobody's", 104, "four"), Some(104));
        assert_eq!(w.queues.take(S0), ["epoch 9 from 0", "sub 0.1 100", "0.1 100>101 one", "0.1 101>103 three"]);
        assert_eq!(w.queues.take(S1), ["epoch 9 from 0", "sub 0.1 102", "0.1 102>104 four"]);
    }

    #[test]
    fn when_a_stream_begins_anew_shards_see_offsets_that_grow_and_clients_its_own() {
        let mut w = World::new(10);
        w.follow(9, 100);
        w.subscribe(S0, 0, 1, "a");
        w.delivered("a", 101, "old");
        w.follow(10, 0);
        assert_eq!(w.delivered("a", 1, "new"), Some(1));
        let of_shard = w.queues.take(S0);
        assert_eq!(of_shard[2..], ["0.1 100>101 old", "epoch 10 from 101", "0.1 101>102 new"]);
    }

    #[test]
    fn nothing_of_an_epoch_overtakes_the_word_of_it() {
        let mut w = World::new(2);
        w.follow(9, 0);
        w.subscribe(S0, 0, 1, "a");
        w.follow(10, 0); // Its queue is full: it is told later.
        let blocked: Vec<_> = w.topics.blocked_shards().map(|b| (b.shard, b.answers)).collect();
        assert_eq!(blocked, [(S0, 1)], "and it is known who stands still");
        assert_eq!(w.queues.take(S0), ["epoch 9 from 0", "sub 0.1 0"]);
        assert_eq!(w.delivered("a", 1, "one"), Some(1));
        assert_eq!(w.queues.take(S0), ["epoch 10 from 0", "0.1 0>1 one"]);

        w.delivered("a", 2, "two");
        w.delivered("a", 3, "three");
        w.follow(11, 0);
        assert_eq!(w.delivered("a", 1, "next"), None, "it waits");
        assert_eq!(w.queues.take(S0), ["0.1 1>2 two", "0.1 2>3 three"]);
        w.turn();
        assert_eq!(w.queues.take(S0), ["epoch 11 from 3", "0.1 3>4 next"]);
    }

    #[test]
    fn a_users_message_that_waited_comes_behind_later_ones_of_others() {
        let mut w = World::new(1);
        w.follow(9, 0);
        w.queues.take(S0);
        w.queues.take(S1);
        w.log_in(S0, 0, "anna");
        w.queues.take(S1);
        w.log_in(S1, 0, "bert");
        let to = |uid: &str| Publication { target: Target::user_or_topic(uid, "t"), data: "x".into() };
        let waits = w.topics.deliver(w.now, to("anna"), 5, &mut w.queues);
        assert!(matches!(waits, Outcome::Waiting(_)), "{waits:?}");
        w.queues.take(S1);
        let admitted = w.topics.deliver(w.now, to("bert"), 6, &mut w.queues);
        assert!(matches!(admitted, Outcome::Admitted(Ack { offset: Offset(6), .. })), "{admitted:?}");
        assert_eq!(w.queues.take(S0), ["0 is anna"]);
        assert_eq!(w.turn().iter().map(|(_, result)| result.clone()).collect::<Vec<_>>(), [Ok(5)]);
        assert_eq!(w.queues.take(S0), ["anna t 5 x"]);
    }

    fn epoch(outcome: Outcome) -> Epoch {
        match outcome {
            Outcome::Admitted(ack) => ack.epoch,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_interested_shard_gets_each_message_with_its_predecessor() {
        let mut w = World::new(10);
        w.subscribe(S0, 5, 1, "a");
        w.subscribe(S1, 6, 1, "a");
        assert_eq!([w.admitted("a", "x"), w.admitted("b", "not theirs"), w.admitted("a", "y")], [1, 1, 2]);
        assert_eq!(w.queues.take(S0), ["sub 5.1 0", "5.1 0>1 x", "5.1 1>2 y"]);
        assert_eq!(w.queues.take(S1), ["sub 6.1 0", "6.1 0>1 x", "6.1 1>2 y"]);
        assert_eq!(w.queues.take(ShardId(2)), [""; 0]);
    }

    #[test]
    fn the_place_of_the_answer_is_the_cut() {
        let mut w = World::new(10);
        w.admitted("a", "before");
        w.subscribe(S0, 0, 1, "a");
        w.admitted("a", "after");
        assert_eq!(w.queues.take(S0), ["sub 0.1 1", "0.1 1>2 after"]);
    }

    #[test]
    fn a_frame_is_built_once_per_encoding_and_shared_by_all_shards() {
        let mut w = World::new(10);
        for (shard, id, deflated) in [(S0, 0, false), (S1, 0, false), (S0, 1, true), (S1, 1, true)] {
            w.subscribe_in(shard, id, 1, "a", deflated);
        }
        w.queues.shards.iter_mut().for_each(VecDeque::clear);
        w.admitted("a", &"again ".repeat(20));
        assert_eq!(w.topics.frames_built(), 2);
        let frames = |shard: usize| -> Vec<Frame> {
            let frame = |m: &ToShard| match m {
                ToShard::Frame { frame, .. } => frame.clone(),
                other => panic!("{other:?}"),
            };
            w.queues.shards[shard].iter().map(frame).collect()
        };
        for (one, other) in frames(0).iter().zip(&frames(1)) {
            assert!(Frame::ptr_eq(one, other));
        }
        assert_eq!((frames(0)[0][0], frames(0)[1][0]), (0x81, 0xC1));
        w.admitted("nobody wants it", "x");
        assert_eq!(w.topics.frames_built(), 2);
    }

    #[test]
    fn broadcast_is_a_stream_of_its_own_and_not_the_topic_without_a_name() {
        let mut w = World::new(10);
        w.subscribe(S0, 0, 1, "*");
        w.subscribe(S0, 1, 1, "");
        w.subscribe(S0, 2, 1, "a");
        assert_eq!([w.admitted("", "all"), w.admitted("a", "x"), w.admitted("", "all")], [1, 1, 2]);
        assert_eq!(
            w.queues.take(S0),
            ["sub 0.1 0", "sub 1.1 0", "sub 2.1 0", "0.1 0>1 all", "2.1 0>1 x", "0.1 1>2 all"]
        );
    }

    #[test]
    fn a_users_messages_go_where_it_is_from_the_answer_on_until_the_last_farewell() {
        let mut w = World::new(10);
        let offset = |outcome| match outcome {
            Outcome::Admitted(ack) => ack.offset.0,
            other => panic!("{other:?}"),
        };
        assert_eq!(offset(w.push_to("bob", "nobody has it")), 1);
        w.log_in(S0, 4, "bob");
        w.log_in(S0, 5, "bob");
        w.log_in(S1, 6, "eve");
        assert_eq!([offset(w.push_to("bob", "x")), offset(w.push_to("eve", "y"))], [2, 3], "one stream");
        w.log_out(S0, "bob");
        w.push_to("bob", "one is left");
        w.log_out(S0, "bob");
        w.push_to("bob", "nobody is left");
        assert_eq!(w.queues.take(S0), ["4 is bob", "5 is bob", "bob t 2 x", "bob t 4 one is left"]);
        assert_eq!(w.queues.take(S1), ["6 is eve", "eve t 3 y"]);
        assert_eq!((w.topics.users(), w.topics.topics()), (1, 0));
    }

    #[test]
    fn a_user_gets_one_message_in_each_encoding_of_its_connections() {
        let mut w = World::new(10);
        for (shard, slot, deflated) in [(S0, 1, false), (S0, 2, true), (S1, 1, false)] {
            w.log_in_as(shard, slot, "bob", deflated);
        }
        w.queues.shards.iter_mut().for_each(VecDeque::clear);
        w.push_to("bob", &"again ".repeat(20));
        let messages = |shard: usize| -> Vec<Arc<UserFrame>> {
            let message = |m: &ToShard| match m {
                ToShard::User(message) => message.clone(),
                other => panic!("{other:?}"),
            };
            w.queues.shards[shard].iter().map(message).collect()
        };
        let (first, second) = (messages(0), messages(1));
        assert_eq!((first.len(), second.len(), w.topics.frames_built()), (2, 1, 2));
        assert!(Arc::ptr_eq(&first[0], &second[0]) && first[1].frame[0] == 0xC1);
    }

    #[test]
    fn an_answer_without_room_waits_and_its_place_is_the_cut() {
        let mut w = World::new(1);
        w.log_in(S0, 1, "eve");
        w.log_in(S0, 2, "bob");
        assert!(matches!(w.push_to("bob", "before"), Outcome::Admitted(_)), "bob is not there yet");
        assert_eq!(w.topics.blocked_shards().count(), 1);
        assert_eq!(w.queues.take(S0), ["1 is eve"]);
        w.turn();
        assert_eq!(w.queues.take(S0), ["2 is bob"]);
        w.push_to("bob", "after");
        assert_eq!(w.queues.take(S0), ["bob t 2 after"]);
    }

    #[test]
    fn a_user_that_waits_for_room_keeps_its_order_and_holds_up_no_other() {
        let mut w = World::new(1);
        w.log_in(S0, 1, "bob");
        w.log_in(S1, 1, "eve");
        w.queues.take(S1);
        let ticket = |outcome| match outcome {
            Outcome::Waiting(ticket) => ticket,
            other => panic!("{other:?}"),
        };
        let waiting = [ticket(w.push_to("bob", "1")), ticket(w.push_to("bob", "2"))];
        assert!(matches!(w.push_to("eve", "at once"), Outcome::Admitted(Ack { offset: Offset(1), .. })));
        for (n, text) in [(0, "bob t 2 1"), (1, "bob t 3 2")] {
            w.queues.take(S0);
            assert_eq!(w.turn(), [(waiting[n], Ok(n as u64 + 2))]);
            assert_eq!(w.queues.take(S0), [text]);
        }
        assert!(w.topics.lanes.is_empty() && w.topics.topics.len() == 2, "nothing is kept for who waits no more");
    }

    #[test]
    fn a_user_that_leaves_or_waits_too_long_is_waited_for_no_more() {
        let mut w = World::new(1);
        w.log_in(S0, 1, "bob");
        let Outcome::Waiting(first) = w.push_to("bob", "1") else { panic!("there is no room") };
        w.log_out(S0, "bob");
        assert_eq!(w.turn(), [(first, Ok(1))], "nobody has it, nobody lacks room");
        w.queues.take(S0);
        w.log_in(S0, 2, "bob");
        let Outcome::Waiting(second) = w.push_to("bob", "2") else { panic!("there is no room") };
        w.after_ms(WAIT_MS);
        assert_eq!(w.turn(), [(second, Err(Refusal::NoRoom { shard: S0, waited_ms: WAIT_MS }))]);
        let full = [0; 5].map(|_| w.push_to("bob", "3"));
        assert!(matches!(full[4], Outcome::Refused(Refusal::NoRoom { .. })), "four may wait");
        w.topics.drain();
        w.turn();
        assert!(w.topics.lanes.is_empty() && w.topics.topics.len() == 2);
    }

    #[test]
    fn what_can_not_be_delivered_is_refused() {
        let mut w = World::new(10);
        assert_eq!(w.refused(&"n".repeat(256), "x"), Refusal::NameTooLong { bytes: 256 });
        assert_eq!(w.refused("a", &"x".repeat(501)), Refusal::TooLarge { bytes: 501, message_bytes_max: 500 });
        let publication = Publication::new("a", &b"\xFF"[..]);
        let outcome = w.topics.publish(T0, publication, &mut w.queues);
        assert_eq!(outcome, Outcome::Refused(Refusal::NotUtf8));
        assert_eq!(w.topics.topics(), 0, "a refused publication makes no topic");
        assert_eq!((w.admitted(&"n".repeat(255), "x"), w.admitted("a", &"x".repeat(500))), (1, 1));
    }

    #[test]
    fn without_room_on_one_shard_no_shard_has_any_of_it_and_no_offset_is_used() {
        let mut w = World::new(2);
        w.subscribe(S0, 0, 1, "a");
        w.subscribe(S1, 0, 1, "a");
        w.queues.take(S1);
        w.admitted("a", "1");
        let ticket = w.waits("a", "2");
        assert_eq!(w.queues.take(S1), ["0.1 0>1 1"], "S1 had room, S0 had none");
        assert_eq!(w.turn(), []);
        assert_eq!(w.queues.take(S0), ["sub 0.1 0", "0.1 0>1 1"]);
        assert_eq!(w.turn(), [(ticket, Ok(2))]);
        assert_eq!((w.queues.take(S0), w.queues.take(S1)), (vec!["0.1 1>2 2".into()], vec!["0.1 1>2 2".into()]));
        assert_eq!((w.topics.waiting(), w.topics.waiting_bytes()), (0, 0));
        assert_eq!(w.topics.frames_built(), 2, "what was built before the wait is used after it");
    }

    #[test]
    fn room_is_asked_for_all_encodings_of_a_shard_together() {
        let mut w = World::new(3);
        w.subscribe_in(S0, 0, 1, "a", false);
        w.subscribe_in(S0, 1, 1, "a", true);
        let ticket = w.waits("a", "x");
        w.queues.shards[0].pop_front();
        assert_eq!(w.turn(), [(ticket, Ok(1))]);
        assert_eq!(w.queues.take(S0), ["sub 1.1 0", "0.1 0>1 x", "1.1 0>1 x"]);
    }

    #[test]
    fn bytes_count_as_well_as_items() {
        let mut w = World::new(100);
        w.queues.bytes_max = 200;
        w.subscribe(S0, 0, 1, "a");
        w.admitted("a", &"x".repeat(150));
        let ticket = w.waits("a", &"y".repeat(100));
        assert_eq!(w.turn(), []);
        w.queues.take(S0);
        assert_eq!(w.turn(), [(ticket, Ok(2))]);
    }

    #[test]
    fn nothing_of_a_topic_overtakes_what_waits() {
        let mut w = World::new(1);
        w.subscribe(S0, 0, 1, "a");
        let tickets = [w.waits("a", "1"), w.waits("a", "2")];
        w.queues.take(S0);
        let third = w.waits("a", "3");
        assert_eq!(w.turn(), [(tickets[0], Ok(1))]);
        assert_eq!(w.queues.take(S0), ["0.1 0>1 1"]);
        assert_eq!(w.turn(), [(tickets[1], Ok(2))]);
        assert_eq!(w.queues.take(S0), ["0.1 1>2 2"]);
        assert_eq!(w.turn(), [(third, Ok(3))]);
        assert_eq!(w.queues.take(S0), ["0.1 2>3 3"]);
        assert_eq!(w.admitted("a", "4"), 4);
    }

    #[test]
    fn a_stalled_shard_holds_up_only_topics_with_interest_there() {
        let mut w = World::new(1);
        w.subscribe(S0, 0, 1, "stalled");
        w.subscribe(S1, 0, 1, "free");
        w.queues.take(S1);
        let ticket = w.waits("stalled", "x");
        for n in 1..=5 {
            assert_eq!(w.admitted("free", "y"), n);
            assert_eq!(w.admitted("nobody's", "z"), n);
            w.queues.take(S1);
            assert_eq!(w.turn(), []);
        }
        w.after_ms(WAIT_MS);
        assert_eq!(w.turn(), [(ticket, Err(Refusal::NoRoom { shard: S0, waited_ms: WAIT_MS }))]);
    }

    #[test]
    fn a_newcomer_waits_behind_those_who_wait_for_the_same_shard() {
        let mut w = World::new(2);
        w.subscribe(S0, 0, 1, "a");
        w.subscribe(S0, 1, 1, "b");
        let first = w.waits("a", "1");
        w.queues.take(S0);
        let second = w.waits("b", "1");
        assert_eq!(w.turn(), [(first, Ok(1)), (second, Ok(1))]);
        assert_eq!(w.queues.take(S0), ["0.1 0>1 1", "1.1 0>1 1"]);
    }

    #[test]
    fn topics_that_wait_take_turns() {
        let mut w = World::new(2);
        w.subscribe(S0, 0, 1, "a");
        w.subscribe(S0, 1, 1, "b");
        let [a1, a2, b1] = [w.waits("a", "1"), w.waits("a", "2"), w.waits("b", "1")];
        w.queues.take(S0);
        assert_eq!(w.turn(), [(a1, Ok(1)), (b1, Ok(1))]);
        w.queues.take(S0);
        assert_eq!(w.turn(), [(a2, Ok(2))]);
    }

    #[test]
    fn who_waits_too_long_is_refused_and_the_next_goes_on() {
        let mut w = World::new(1);
        w.subscribe(S0, 0, 1, "a");
        let late = w.waits("a", "late");
        w.after_ms(WAIT_MS - 1);
        let next = w.waits("a", "next");
        assert_eq!(w.turn(), []);
        w.after_ms(1);
        assert_eq!(w.turn(), [(late, Err(Refusal::NoRoom { shard: S0, waited_ms: WAIT_MS }))]);
        assert_eq!(w.queues.take(S0), ["sub 0.1 0"]);
        assert_eq!(w.turn(), [(next, Ok(1))]);
        assert_eq!(w.queues.take(S0), ["0.1 0>1 next"]);
    }

    #[test]
    fn what_fits_by_the_time_of_a_late_turn_is_admitted() {
        let mut w = World::new(1);
        w.subscribe(S0, 0, 1, "a");
        let ticket = w.waits("a", "x");
        w.queues.take(S0);
        w.after_ms(10 * WAIT_MS);
        assert_eq!(w.turn(), [(ticket, Ok(1))]);
    }

    #[test]
    fn lines_are_bounded_in_publications_and_in_bytes() {
        let mut w = World::new(1);
        w.subscribe(S0, 0, 1, "a");
        w.subscribe(S1, 0, 1, "b");
        for _ in 0..2 {
            w.waits("a", &"x".repeat(300));
        }
        let no_room = |shard| Refusal::NoRoom { shard, waited_ms: 0 };
        assert_eq!(w.refused("b", &"x".repeat(401)), no_room(S1));
        w.waits("b", &"x".repeat(400));
        w.waits("b", "");
        assert_eq!((w.topics.waiting(), w.topics.waiting_bytes()), (4, 1000));
        assert_eq!(w.refused("a", ""), no_room(S0));
        w.queues.take(S1);
        assert_eq!(w.turn().len(), 1);
        assert_eq!((w.topics.waiting(), w.topics.waiting_bytes()), (3, 600));
        w.waits("a", "x");
    }

    #[test]
    fn a_waiting_publication_does_not_keep_the_batch_it_came_in() {
        let mut w = World::new(1);
        w.subscribe(S0, 0, 1, "a");
        let batch = bytes::Bytes::from(vec![b'x'; 400]);
        let publication = Publication::new("a", batch.slice(..1));
        assert!(matches!(w.topics.publish(T0, publication, &mut w.queues), Outcome::Waiting(_)));
        assert!(batch.is_unique());
    }

    #[test]
    fn an_answer_without_room_is_owed_and_its_cut_is_where_it_stands() {
        let mut w = World::new(1);
        w.subscribe(S0, 0, 1, "a");
        w.subscribe(S0, 1, 1, "b");
        assert_eq!(w.admitted("b", "before the answer, so not theirs"), 1);
        assert_eq!(w.queues.take(S0), ["sub 0.1 0"]);
        let second = w.waits("b", "after the answer, which goes first");
        assert_eq!(w.queues.take(S0), ["sub 1.1 1"]);
        assert_eq!(w.turn(), [(second, Ok(2))]);
        assert_eq!(w.queues.take(S0), ["1.1 1>2 after the answer, which goes first"]);
    }

    #[test]
    fn answers_owed_keep_their_order() {
        let mut w = World::new(1);
        w.subscribe(S0, 0, 1, "a");
        w.subscribe(S0, 1, 1, "b");
        w.unsubscribe(S0, 0, 1);
        w.subscribe(S0, 2, 1, "c");
        let mut found = Vec::new();
        for _ in 0..5 {
            found.extend(w.queues.take(S0));
            w.turn();
        }
        assert_eq!(found, ["sub 0.1 0", "sub 1.1 0", "unsub 0.1", "sub 2.1 0"]);
    }

    #[test]
    fn answers_owed_are_at_most_one_per_interest_the_latest() {
        let mut w = World::new(1);
        w.subscribe(S0, 9, 1, "a");
        for generation in 2..50 {
            w.subscribe(S0, 0, generation, "b");
            w.unsubscribe(S0, 0, generation);
        }
        w.subscribe(S0, 0, 50, "c");
        assert_eq!(w.topics.shards[0].owed.len(), 1);
        assert_eq!(w.queues.take(S0), ["sub 9.1 0"]);
        w.turn();
        assert_eq!(w.queues.take(S0), ["sub 0.50 0"]);
        w.turn();
        w.admitted("b", "not subscribed any more");
        w.admitted("c", "x");
        assert_eq!(w.queues.take(S0), ["0.50 0>1 x"]);
    }

    #[test]
    fn a_newer_generation_replaces_the_older() {
        let mut w = World::new(10);
        w.subscribe(S0, 0, 1, "a");
        w.subscribe(S0, 0, 2, "b");
        w.admitted("a", "x");
        w.admitted("b", "y");
        assert_eq!(w.queues.take(S0), ["sub 0.1 0", "sub 0.2 0", "0.2 0>1 y"]);
    }

    #[test]
    fn leaving_is_answered_and_ends_the_frames() {
        let mut w = World::new(10);
        w.subscribe(S0, 0, 7, "a");
        w.admitted("a", "x");
        w.unsubscribe(S0, 0, 7);
        w.admitted("a", "y");
        w.subscribe(S0, 0, 8, "a");
        w.admitted("a", "z");
        assert_eq!(w.queues.take(S0), ["sub 0.7 0", "0.7 0>1 x", "unsub 0.7", "sub 0.8 2", "0.8 2>3 z"]);
    }

    #[test]
    fn leaving_an_earlier_life_changes_nothing() {
        let mut w = World::new(10);
        w.subscribe(S0, 0, 2, "a");
        w.unsubscribe(S0, 0, 1);
        w.unsubscribe(S0, 77, 1);
        w.admitted("a", "x");
        assert_eq!(w.queues.take(S0), ["sub 0.2 0", "0.2 0>1 x"]);
    }

    #[test]
    fn a_line_is_free_when_the_interest_it_waits_for_ends() {
        let mut w = World::new(1);
        w.subscribe(S0, 0, 1, "a");
        w.subscribe(S1, 0, 1, "a");
        w.queues.take(S1);
        let tickets = [w.waits("a", "1"), w.waits("a", "2")];
        w.unsubscribe(S0, 0, 1);
        assert_eq!(w.turn(), [(tickets[0], Ok(1))], "S1 has room for one");
        assert_eq!(w.queues.take(S1), ["0.1 0>1 1"]);
        assert_eq!(w.turn(), [(tickets[1], Ok(2))]);
        assert_eq!(w.queues.take(S0), ["sub 0.1 0"], "and nothing of S0's queue was needed");
    }

    #[test]
    fn a_line_whose_topic_nobody_wants_any_more_is_admitted_and_the_topic_idle() {
        let mut w = World::new(1);
        w.subscribe(S0, 0, 1, "a");
        let ticket = w.waits("a", "1");
        w.unsubscribe(S0, 0, 1);
        assert_eq!(w.turn(), [(ticket, Ok(1))]);
        w.after_ms(IDLE_MS);
        w.turn();
        assert_eq!(w.topics.topics(), 0);
    }

    #[test]
    fn the_longest_idle_topic_makes_room_for_a_new_one() {
        let mut w = World::new(10);
        let epochs = ["a", "b", "c"].map(|name| epoch(w.publish(name, "x")));
        w.admitted("a", "used again");
        assert_eq!(w.admitted("d", "x"), 1);
        assert_eq!((w.topics.topics(), w.topics.evicted()), (3, 1));
        assert_eq!(w.admitted("a", "x"), 3, "a was younger than b");
        let again = w.publish("b", "x");
        assert!(matches!(again, Outcome::Admitted(Ack { offset: Offset(1), .. })));
        let again = epoch(again);
        assert!(!epochs.contains(&again), "b begins a new life");
        assert_eq!(w.topics.evicted(), 2);
    }

    #[test]
    fn a_topic_with_interest_or_a_line_is_never_forgotten() {
        let mut w = World::new(3);
        for (id, name) in ["a", "b", "c"].iter().enumerate() {
            w.subscribe(S0, id as u32, 1, name);
        }
        w.after_ms(10 * IDLE_MS);
        w.turn();
        assert_eq!(w.refused("d", "x"), Refusal::TooManyTopics { topics_max: 3 });
        w.subscribe(S1, 0, 1, "d");
        assert_eq!(w.topics.topics(), 4, "whoever subscribes is let in");
        assert_eq!((w.admitted("d", "x"), w.topics.evicted()), (1, 0));
        w.queues.take(S0);
        w.unsubscribe(S0, 0, 1);
        w.unsubscribe(S0, 1, 1);
        assert_eq!(w.admitted("e", "x"), 1);
        assert_eq!((w.topics.topics(), w.topics.evicted()), (3, 2), "what interest had added is gone again");
    }

    #[test]
    fn an_idle_topic_is_forgotten_after_its_time() {
        let mut w = World::new(10);
        let before = epoch(w.publish("a", "x"));
        w.after_ms(IDLE_MS - 1);
        w.admitted("b", "x");
        let mut done = Vec::new();
        let next = w.topics.turn(w.now, &mut w.queues, &mut done);
        assert_eq!((w.topics.topics(), next), (2, w.now.plus_ms(1)));
        w.after_ms(1);
        let next = w.topics.turn(w.now, &mut w.queues, &mut done);
        assert_eq!((w.topics.topics(), next), (1, w.now.plus_ms(IDLE_MS - 1)));
        let after = w.publish("a", "x");
        assert!(matches!(after, Outcome::Admitted(Ack { offset: Offset(1), .. })));
        assert_ne!(epoch(after), before);
        assert_eq!(w.topics.evicted(), 0, "nobody needed its place");
    }

    #[test]
    fn idleness_counts_from_the_last_interest_as_well() {
        let mut w = World::new(10);
        w.subscribe(S0, 0, 1, "a");
        w.after_ms(10 * IDLE_MS);
        w.unsubscribe(S0, 0, 1);
        w.turn();
        assert_eq!(w.topics.topics(), 1);
        w.after_ms(IDLE_MS);
        w.turn();
        assert_eq!(w.topics.topics(), 0);
    }

    #[test]
    fn draining_refuses_newcomers_and_those_who_wait() {
        let mut w = World::new(1);
        w.subscribe(S0, 0, 1, "a");
        let tickets = [w.waits("a", "1"), w.waits("a", "2")];
        w.topics.drain();
        assert_eq!(w.refused("b", "x"), Refusal::Draining);
        w.queues.take(S0);
        assert_eq!(w.turn(), tickets.map(|t| (t, Err(Refusal::Draining))));
        assert_eq!((w.topics.waiting(), w.topics.waiting_bytes(), w.queues.take(S0).len()), (0, 0, 0));
    }

    #[test]
    fn a_turn_says_when_it_is_due_again() {
        let mut w = World::new(1);
        let due = |w: &mut World| w.topics.turn(w.now, &mut w.queues, &mut Vec::new());
        assert_eq!(due(&mut w), Time::NEVER);
        w.subscribe(S0, 0, 1, "a");
        assert_eq!(due(&mut w), Time::NEVER, "a topic with interest wants nothing");
        w.waits("a", "x");
        assert_eq!(due(&mut w), w.now.plus_ms(RETRY_MS));
        w.now = w.now.plus_ms(WAIT_MS);
        w.now.0 -= 1000;
        assert_eq!(due(&mut w), Time(w.now.0 + 1000), "the deadline is nearer than the next try");
        w.now.0 += 1000;
        assert_eq!(due(&mut w), Time::NEVER);
        w.subscribe(S0, 1, 1, "b");
        assert_eq!(due(&mut w), w.now.plus_ms(RETRY_MS), "an answer is owed");
    }

    #[test]
    fn the_work_of_one_turn_is_bounded_and_every_shard_gets_its_turn() {
        let many = 2 * ADMISSIONS_PER_TURN_MAX;
        let mut w = World::with(TopicsLimits { publish_waiting_max: 2 * many, ..limits() }, 1);
        w.subscribe(S0, 0, 1, "a");
        w.subscribe(S1, 0, 1, "b");
        for _ in 0..many {
            w.waits("a", "");
            w.waits("b", "");
        }
        w.queues.shards.iter_mut().for_each(VecDeque::clear);
        (w.queues.items_max, w.queues.bytes_max) = (10 * many, usize::MAX);
        let mut done = Vec::new();
        for _ in 0..3 {
            let before = done.len();
            assert_eq!(w.topics.turn(w.now, &mut w.queues, &mut done), w.now);
            assert_eq!(done.len() - before, ADMISSIONS_PER_TURN_MAX);
        }
        assert!(!w.queues.shards[1].is_empty(), "the first shard's line did not take all turns");
        w.turn();
        assert_eq!((w.queues.shards[0].len(), w.queues.shards[1].len()), (many, many));
    }

    #[test]
    fn late_refusals_and_forgetting_are_bounded_per_turn() {
        let many = REFUSALS_PER_TURN_MAX + 1;
        let mut w = World::with(TopicsLimits { publish_waiting_max: many, topics_max: many, ..limits() }, 1);
        w.subscribe(S0, 0, 1, "a");
        for _ in 0..many {
            w.waits("a", "");
        }
        for n in 0..FORGOTTEN_PER_TURN_MAX + 1 {
            w.admitted(&n.to_string(), "");
        }
        w.after_ms(IDLE_MS);
        let mut done = Vec::new();
        assert_eq!(w.topics.turn(w.now, &mut w.queues, &mut done), w.now);
        assert_eq!((done.len(), w.topics.topics()), (many - 1, 2));
        assert_eq!(w.topics.turn(w.now, &mut w.queues, &mut done), Time::NEVER);
        assert_eq!((done.len(), w.topics.topics()), (many, 1));
    }

    #[test]
    fn a_shard_that_takes_nothing_is_named() {
        let mut w = World::new(1);
        let blocked = |w: &World| w.topics.blocked_shards().collect::<Vec<_>>();
        w.subscribe(S1, 0, 1, "a");
        assert_eq!(blocked(&w), [], "full, but nobody waits");
        w.waits("a", "x");
        w.after_ms(5);
        w.subscribe(S1, 1, 1, "b");
        w.turn();
        assert_eq!(blocked(&w), [BlockedShard { shard: S1, topics: 1, answers: 1, since: T0 }]);
        w.queues.take(S1);
        w.turn();
        assert_eq!(w.queues.take(S1), ["sub 1.1 0"]);
        let since = w.now;
        assert_eq!(blocked(&w), [BlockedShard { shard: S1, topics: 1, answers: 0, since }], "it did take the answer");
        w.turn();
        assert_eq!(blocked(&w), []);
    }

    #[test]
    fn gateways_and_starts_have_epochs_of_their_own() {
        let first = |seed| {
            let encoder = Encoder::new(&EncodeSettings { deflate_level: 6, deflate_bytes_min: 16 });
            let mut topics = Topics::new(limits(), encoder, 0, seed);
            let mut queues = Queues { shards: Vec::new(), items_max: 0, bytes_max: 0 };
            ["", "a", "b"].map(|name| {
                let publication = Publication::new(name, bytes::Bytes::new());
                epoch(topics.publish(T0, publication, &mut queues))
            })
        };
        let mut epochs = [first(1), first(2)].concat();
        epochs.sort();
        epochs.dedup();
        assert_eq!(epochs.len(), 6);
        assert_eq!(first(1), first(1), "the seed decides all");
    }
}
