//! Messages between cores: bounded single-producer single-consumer queues, and a bell that wakes a sleeping core.
//!
//! ```text
//!             ToShard                              ToShard = frames, answers about interest, orders
//! control ──────────────►┐                         FromShard = interest gained and lost, questions, drained
//!         ◄──────────────┤ shard (one bell)        Arrival = address and token of a socket on its way
//!   accept ─────────────►┘                         Departure = a connection is gone, its place is free
//!          ◄─────────────                          Claim, Verdict = who is behind a proxy, and whether it may come in
//! ```
//!
//! Nobody ever blocks on a queue: a full one is an answer, and the producer keeps what it could not push.

mod bell;
mod spsc;

pub use bell::Bell;
pub(crate) use bell::Depth;
pub use spsc::{Full, Receiver, Sender, channel};

use crate::clock::Time;
use crate::frame::Frame;
use crate::ids::{ClientRef, Encoding, Epoch, InterestRef, Offset, UserKey};
use bytes::Bytes;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// From the control core to one shard. The place of an answer among the frames is the cut: what stands before it is not
/// the subscriber's, what stands after it is.
#[derive(Debug)]
pub enum ToShard {
    /// One message for everyone of this interest.
    Frame {
        /// Whom it is for. Frames of an earlier generation are ignored.
        interest: InterestRef,
        /// Its position.
        offset: Offset,
        /// Position of the message before it in the same topic and epoch: a gap is seen.
        prev: Offset,
        /// Wire bytes.
        frame: Frame,
        /// When the publication was admitted.
        admitted: Time,
    },
    /// The interest is known: every message after `offset` will come.
    Subscribed {
        /// Which interest, and which life of it.
        interest: InterestRef,
        /// Epoch of the topic.
        epoch: Epoch,
        /// Last offset assigned; the shard's subscribers take part from here.
        offset: Offset,
    },
    /// Every topic is of this epoch from now on, and goes on. Its offsets are shown to clients as so much less.
    Epoch {
        /// The stream's, which all topics share.
        epoch: Epoch,
        /// Whatever is not above it is older than the epoch, and shown as 0.
        base: Offset,
    },
    /// The interest is forgotten: its number may be used again.
    Unsubscribed {
        /// Which one.
        interest: InterestRef,
    },
    /// One message for a user's connections that take part in its topic.
    User(Arc<UserFrame>),
    /// What a client asked, answered: one for each [`FromShard::Ask`], withdrawn or not, whatever became of the client.
    Answer {
        /// Who asked. Another tenant of its slot is not meant.
        client: ClientRef,
        /// The answer; boxed, since frames are many and answers few.
        answer: Box<Answer>,
    },
    /// Flush, then close every connection and report [`FromShard::Drained`].
    Drain(Drain),
    /// Development only: the shard stands still for this long, as if its core were taken away.
    Stall {
        /// How long.
        duration_ms: u64,
    },
}

impl ToShard {
    /// What it counts against the queue's bound in bytes.
    pub fn queued_bytes(&self) -> usize {
        match self {
            ToShard::Frame { frame, .. } => frame.len(),
            ToShard::User(message) => message.frame.len(),
            ToShard::Answer { answer, .. } => match &**answer {
                Answer::Page { body, .. } => body.len(),
                Answer::LoggedIn { .. } | Answer::LoginRefused => 0,
            },
            _ => 0,
        }
    }
}

/// What a shard was given since its bell was last rung.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Given {
    /// Nothing.
    #[default]
    Nothing,
    /// Messages, which go out with its tick.
    News,
    /// Something that it is to know at once.
    Word,
}

impl Given {
    /// And `message`.
    pub fn add(&mut self, message: &ToShard) {
        let its = match message {
            ToShard::Frame { .. } | ToShard::User(_) => Given::News,
            ToShard::Subscribed { .. } | ToShard::Epoch { .. } | ToShard::Unsubscribed { .. } => Given::Word,
            ToShard::Answer { .. } | ToShard::Drain(_) | ToShard::Stall { .. } => Given::Word,
        };
        *self = (*self).max(its);
    }

    /// Wakes the shard for it, as far as need be; then nothing is given.
    pub fn announce(&mut self, inbox: &Sender<ToShard>) {
        match std::mem::take(self) {
            Given::Nothing => {}
            Given::News => inbox.knock(),
            Given::Word => inbox.ring(),
        }
    }
}

/// A message for one user in one encoding, shared by the shards that have the user.
#[derive(Debug)]
pub struct UserFrame {
    /// Whose, as [`Answer::LoggedIn`] named it. A hash: whoever delivers compares `uid`.
    pub user: UserKey,
    /// Whose.
    pub uid: Arc<str>,
    /// For connections that have subscribed to this, privately or publicly.
    pub topic: Arc<str>,
    /// For connections that agreed on this.
    pub encoding: Encoding,
    /// Its position in the stream of all users.
    pub offset: Offset,
    /// Wire bytes.
    pub frame: Frame,
    /// When the publication was admitted.
    pub admitted: Time,
}

/// How a shard lets its connections go.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// WebSocket close code, 1000..=4999.
    pub close_code: u16,
    /// The closes are spread evenly over this.
    pub window_ms: u64,
    /// No more closes a second than this on one shard; stretches the window.
    pub rate_per_s: u32,
    /// After this, what is left is cut.
    pub deadline_ms: u64,
}

/// What a shard wants frames of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum InterestKey {
    /// One topic in one encoding.
    Topic(Arc<str>, Encoding),
    /// Whatever goes to everyone, in one encoding.
    Broadcast(Encoding),
}

impl InterestKey {
    /// The encoding wanted.
    pub fn encoding(&self) -> Encoding {
        match self {
            InterestKey::Topic(_, e) | InterestKey::Broadcast(e) => *e,
        }
    }
}

/// What a shard can't know by itself and asks for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Who presents this token? Answered by [`Answer::LoggedIn`] or [`Answer::LoginRefused`].
    Login {
        /// JSON, verbatim as the client sent it.
        token: Box<str>,
        /// In which encoding the client takes what is for its user.
        encoding: Encoding,
    },
    /// What stands on this page now? Answered by [`Answer::Page`].
    Page(Page),
}

/// A page of the subscriber port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// How many connections there are.
    Stats,
    /// What `/metrics` of the publishing side says.
    Metrics,
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The token is `uid`'s. Its place in the queue is the cut: whatever is published to the user after it comes to this shard,
    /// until the shard has said [`FromShard::LoggedOut`] once for each such answer.
    LoggedIn {
        /// Who it is; not empty, at most [`UID_BYTES_MAX`] bytes.
        uid: Box<str>,
        /// What its frames are addressed to.
        user: UserKey,
    },
    /// No clear yes.
    LoginRefused,
    /// A page.
    Page {
        /// HTTP status.
        status: u16,
        /// Its media type.
        content_type: &'static str,
        /// The page itself.
        body: Bytes,
    },
}

/// Longest uid, in bytes.
pub const UID_BYTES_MAX: usize = 255;

/// From one shard to the control core.
#[derive(Debug)]
pub enum FromShard {
    /// Someone here wants it; answered by [`ToShard::Subscribed`] with the same interest.
    Subscribe {
        /// The shard's number for it.
        interest: InterestRef,
        /// What it is.
        key: InterestKey,
    },
    /// Nobody here has wanted it for a while; answered by [`ToShard::Unsubscribed`].
    Unsubscribe {
        /// Which one.
        interest: InterestRef,
    },
    /// A client asks; answered by one [`ToShard::Answer`] for the same client.
    Ask {
        /// Who.
        client: ClientRef,
        /// What.
        question: Question,
    },
    /// Who asked is gone: nobody need find out any more. Its [`FromShard::Ask`] is answered all the same, at once.
    Withdraw {
        /// Who.
        client: ClientRef,
    },
    /// One [`Answer::LoggedIn`] for this user is over: its client has logged out, or was gone when it came.
    LoggedOut {
        /// Who.
        user: UserKey,
    },
    /// Every connection is closed.
    Drained,
}

/// From the accepting core to a shard, beside the socket itself, which comes through the ring and may come first.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Pairs this with the ring's completion. Unique among what is under way.
    pub token: u64,
    /// The peer, as accept(2) saw it.
    pub address: SocketAddr,
    /// Index of the `[[listen]]` block it came in by.
    pub listener: u16,
    /// When it was accepted; the handshake deadline runs from here.
    pub accepted: Time,
}

/// From a shard to the accepting core: this connection is gone, its place may be given away.
#[derive(Clone, Copy, Debug)]
pub struct Departure {
    /// Whose connections are one less: the peer's, or what a [`Claim`] was granted for; of a proxy's without one, nobody's.
    pub address: Option<IpAddr>,
}

/// From a shard to the accepting core: what it has learnt of clients behind trusted proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// May one more from `address` come in? Answered by one [`Verdict`].
    Take {
        /// Who waits for the answer.
        client: ClientRef,
        /// Where it comes from.
        address: IpAddr,
    },
    /// Who was granted one more from `address` was gone when it heard so.
    Release {
        /// Where it came from.
        address: IpAddr,
    },
}

/// From the accepting core to a shard: the answer to a [`Claim::Take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// As asked. Another tenant of its slot is not meant.
    pub client: ClientRef,
    /// As asked.
    pub address: IpAddr,
    /// It may come in, and counts until a [`Departure`] or [`Claim::Release`] of the address.
    pub admitted: bool,
}

/// Claims of one shard that are not answered yet.
pub const CLAIMS_UNDER_WAY_MAX: usize = 1024;

/// A shard's ends of the queues of claims.
pub type Claims = (Sender<Claim>, Receiver<Verdict>);

/// The accepting core's ends of the queues of claims of one shard.
pub type ClaimsHeard = (Receiver<Claim>, Sender<Verdict>);

/// The two queues of claims between a shard and the accepting core. There is room for the verdict of every claim under way.
pub fn claims(shard: Arc<Bell>, accept: Arc<Bell>) -> (Claims, ClaimsHeard) {
    let (claims, heard) = channel(2 * CLAIMS_UNDER_WAY_MAX, 0, accept);
    let (verdicts, told) = channel(CLAIMS_UNDER_WAY_MAX, 0, shard);
    ((claims, told), (heard, verdicts))
}

/// Orders from the control core to the accepting core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToAccept {
    /// Take no new clients: close the listeners.
    Stop,
}
