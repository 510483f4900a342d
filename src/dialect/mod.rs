//! How one family of clients speaks: one file each, behind one small trait. The engine knows none of them.
//!
//! An [`Encoding`] is dialect × format × compression, fixed at the handshake; interest, frames and batches are keyed by it.
//! A publication reaches subscribers of every dialect: room `x`, public topic `x` and channel `x` are one topic.

mod centrifugo;
mod demo;
mod echo;
mod gopush;
mod gpush;
pub mod json;

pub use centrifugo::Centrifugo;
pub use demo::{Demo, HEARTBEAT_MS as DEMO_HEARTBEAT_MS};
pub use echo::Echo;
pub use gopush::Gopush;
pub use gpush::Gpush;

use crate::frame::Publication;
use crate::ids::{ConnectId, Encoding, Epoch, Offset};
use crate::websocket::{Head, MessageKind};

/// Where a message stands in its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The topic's present life.
    pub epoch: Epoch,
    /// The message's offset.
    pub offset: Offset,
    /// The offset of the one before it.
    pub prev: Offset,
}

/// What a client asks of the engine, in the order it asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The client introduces itself. Answered by [`Dialect::connected`]; what goes to everyone begins for it here.
    Connect {
        /// The client's number for the request.
        request: u32,
    },
    /// Take part in a topic. Answered by [`Dialect::subscribed`].
    Subscribe {
        /// At most [`TOPIC_BYTES_MAX`] bytes, checked by the engine.
        topic: Box<str>,
        /// The client's number for the request; 0 where the dialect has none.
        request: u32,
    },
    /// Leave it. Answered by [`Dialect::unsubscribed`], subscribed or not.
    Unsubscribe {
        /// The topic.
        topic: Box<str>,
        /// The client's number for the request.
        request: u32,
    },
    /// Be the user behind a token. Answered by [`Dialect::identity`]; everything later waits for that.
    Login {
        /// JSON, as it came.
        token: Box<str>,
    },
    /// Be nobody again, and leave all private topics. Answered by [`Dialect::identity`].
    Logout,
    /// Get what goes to one's user about a topic, and nothing else of it. Answered by [`Dialect::subscribed`], or
    /// [`Identity::NotLoggedIn`].
    SubscribePrivately {
        /// At most [`TOPIC_BYTES_MAX`] bytes, checked by the engine.
        topic: Box<str>,
    },
    /// Leave it. Answered by [`Dialect::unsubscribed`], subscribed or not, or [`Identity::NotLoggedIn`].
    UnsubscribePrivately {
        /// The topic.
        topic: Box<str>,
    },
    /// Send this, in turn: wire bytes, or a line where [`Dialect::joins_replies`].
    Reply(Vec<u8>),
    /// Send this message back, framed and compressed as the connection agreed: only the engine knows how.
    Echo {
        /// Text stays text.
        kind: MessageKind,
        /// As it came, uncompressed.
        payload: Vec<u8>,
    },
    /// The client is alive: its heartbeat deadline starts anew.
    Heartbeat,
    /// Close with this code and reason.
    Close {
        /// RFC 6455 §7.4.
        code: u16,
        /// At most 123 bytes.
        reason: &'static str,
    },
    /// End the connection without a close frame.
    Cut,
}

/// Longest topic name, in bytes.
pub const TOPIC_BYTES_MAX: usize = 255;

/// Why a subscription was refused; the dialect says it in its own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscribeError {
    /// The connection holds `topics_per_connection_max`.
    TooManyTopics,
    /// The name is over [`TOPIC_BYTES_MAX`] bytes.
    NameTooLong,
    /// It is subscribed already, and the dialect minds.
    AlreadySubscribed,
}

/// What a client is told about who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It is a user now.
    LoggedIn,
    /// It is who it was before.
    LoginRefused,
    /// It is nobody now.
    LoggedOut,
    /// What it asked for is for users.
    NotLoggedIn,
}

/// What was agreed at the handshake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// Echoed as Sec-WebSocket-Protocol.
    pub subprotocol: Option<&'static str>,
    /// The encoding without compression.
    pub plain: Encoding,
    /// The encoding with permessage-deflate.
    pub deflated: Encoding,
    /// What the dialect remembers from the request.
    pub session: Session,
}

/// What a client is told when it has introduced itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Its name, unlike that of any other connection.
    pub client: ConnectId,
    /// How often it is pinged.
    pub ping_interval_ms: u64,
}

/// How a connection shows that it is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heartbeat {
    /// The client must send something the dialect calls a heartbeat within the configured time.
    FromClient,
    /// The client introduces itself in time, and then answers what [`Dialect::overdue`] asks.
    FromServer,
    /// As [`Heartbeat::FromClient`], looked at only once in each interval since the connection opened: who falls silent is cut after
    /// one to two of them.
    FromClientAtIntervals,
    /// Nobody watches.
    None,
}

/// What becomes of a connection whose heartbeat deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// It is cut without a word.
    Cut,
    /// It is closed.
    Close {
        /// RFC 6455 §7.4.
        code: u16,
        /// At most 123 bytes.
        reason: &'static str,
    },
    /// It was asked by a reply, and has until the pong timeout to answer.
    Pinged,
    /// It was asked by a control frame, written whole.
    PingedByFrame,
    /// It was told something by a frame, written whole, that wants no answer; the next time is a heartbeat after this one.
    Told,
}

/// Why the engine closes a connection that keeps to RFC 6455; a dialect may have its own code and reason for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The gateway is going away.
    Drain,
    /// It reads less than it is sent.
    Slow,
    /// It sends too many messages.
    Flood,
}

/// What the connection remembers for its dialect: a few bits, no allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session(pub u32);

/// How an encoding joins messages that leave together in one WebSocket message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joint {
    /// Stands between two payloads.
    pub separator: &'static [u8],
    /// Payloads are compressed, every one of them: it is a property of the whole.
    pub deflated: bool,
}

/// One family of clients. All methods are pure: bytes in, decisions and bytes out.
pub trait Dialect: Sync {
    /// Its name in configuration, logs and metrics.
    fn name(&self) -> &'static str;

    /// Looks at the request and picks subprotocol and encodings, or refuses with an HTTP status and a text.
    ///
    /// # Errors
    /// Status 400..=499 and a one-line body.
    fn negotiate(&self, head: &Head<'_>) -> Result<Negotiated, (u16, &'static str)>;

    /// Wire bytes that follow the 101 in the same send; nothing by default.
    fn greeting(&self, _out: &mut Vec<u8>) {}

    /// Whether clients introduce themselves by [`Command::Connect`]. What goes to everyone begins for them with its answer, and
    /// otherwise with the handshake.
    fn connects(&self) -> bool {
        false
    }

    /// Answers [`Command::Connect`].
    fn connected(&self, _session: Session, _request: u32, _welcome: &Welcome, _out: &mut Vec<u8>) {}

    /// Reads one message of the client: appends what it asks for to `commands`.
    fn parse(&self, session: &mut Session, kind: MessageKind, payload: &[u8], commands: &mut Vec<Command>);

    /// Answers a subscription. The messages after `position` follow it.
    fn subscribed(&self, request: u32, topic: &str, result: Result<(Epoch, Offset), SubscribeError>, out: &mut Vec<u8>);

    /// Answers an unsubscription.
    fn unsubscribed(&self, request: u32, topic: &str, out: &mut Vec<u8>);

    /// Wire bytes that tell a client who it is. Only where [`Dialect::has_users`].
    fn identity(&self, _identity: Identity, _out: &mut Vec<u8>) {}

    /// Appends the payload (not the frame) of a publication as this dialect's clients see it.
    fn payload(&self, publication: &Publication, position: Position, out: &mut Vec<u8>);

    /// Appends the payload of several publications in one message: `items` is each as [`json::append`] writes it, joined by commas.
    /// Called only if it [merges](Dialect::merges).
    fn merged(&self, _items: &[u8], _out: &mut Vec<u8>) {
        unreachable!("{} takes each publication by itself", self.name());
    }

    /// Whether what goes to a topic or to everyone is collected in merge windows for its clients.
    fn merges(&self) -> bool {
        false
    }

    /// How messages that leave together are joined, compressed or not; `None`: each has a frame of its own.
    fn joint(&self, _deflated: bool) -> Option<Joint> {
        None
    }

    /// How its clients show that they are alive.
    fn heartbeat(&self) -> Heartbeat;

    /// The heartbeat deadline has passed: what now? Whatever is to be sent is appended to `out`.
    fn overdue(&self, _session: &mut Session, _out: &mut Vec<u8>) -> Overdue {
        Overdue::Cut
    }

    /// A pong frame has come.
    fn control_pong(&self, _session: &mut Session) -> Option<Command> {
        None
    }

    /// Code and reason for an end that the engine decided; `None`: the engine's own.
    fn ending(&self, _ending: Ending) -> Option<(u16, &'static str)> {
        None
    }

    /// Whether replies are lines of text that the engine frames: those to one message together, with line feeds between them.
    /// Otherwise what the dialect writes are whole frames.
    fn joins_replies(&self) -> bool {
        false
    }

    /// Whether answers must come in the order of the questions: then a question waits until the one before it is answered.
    fn answers_in_order(&self) -> bool {
        true
    }

    /// Whether a second subscription to the same topic is answered like the first (and changes nothing).
    fn subscribes_twice(&self) -> bool {
        true
    }

    /// Whether its clients can be somebody: log in, and get what goes to their user.
    fn has_users(&self) -> bool {
        false
    }

    /// Whether publications go to its clients at all.
    fn takes_publications(&self) -> bool {
        true
    }
}

/// Which family of clients a path serves. The number makes its encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DialectId {
    /// gpush: `/ws`.
    Gpush = 0,
    /// Sends back what it gets: `/echo`, for conformance tests, only with `--dev`.
    Echo = 1,
    /// Centrifugo: `/connection/websocket`.
    Centrifugo = 2,
    /// go-push: `/connect`.
    Gopush = 3,
    /// The echo of the page `/demo`: `/demo/ws`.
    Demo = 4,
}

/// Every dialect, in the order of [`DialectId`].
pub static ALL: [&dyn Dialect; 5] = [&Gpush, &Echo, &Centrifugo, &Gopush, &Demo];

const _: () = assert!(ALL.len() == crate::metrics::DIALECTS.len());

impl DialectId {
    /// The dialect itself.
    pub fn get(self) -> &'static dyn Dialect {
        ALL[self as usize]
    }

    /// The dialect of an encoding, and whether it is compressed.
    pub fn of(encoding: Encoding) -> (DialectId, bool) {
        let id = match encoding.0 / 2 {
            0 => DialectId::Gpush,
            1 => DialectId::Echo,
            2 => DialectId::Centrifugo,
            3 => DialectId::Gopush,
            4 => DialectId::Demo,
            other => unreachable!("no encoding is built from dialect {other}"),
        };
        (id, encoding.0 % 2 == 1)
    }

    /// Its encoding, plain or compressed.
    pub fn encoding(self, deflated: bool) -> Encoding {
        Encoding(self as u8 * 2 + u8::from(deflated))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoding_names_its_dialect_and_compression() {
        for id in [DialectId::Gpush, DialectId::Echo, DialectId::Centrifugo, DialectId::Gopush, DialectId::Demo] {
            for deflated in [false, true] {
                let encoding = id.encoding(deflated);
                assert_eq!(DialectId::of(encoding), (id, deflated));
                assert!((encoding.0 as usize) < Encoding::COUNT_MAX);
            }
        }
        assert_eq!(DialectId::Gpush.get().name(), "gpush");
        assert_eq!(DialectId::Echo.get().name(), "echo");
        assert_eq!(DialectId::Centrifugo.get().name(), "centrifugo");
        assert_eq!(DialectId::Gopush.get().name(), "gopush");
        assert_eq!(DialectId::Demo.get().name(), "demo");
    }
}
