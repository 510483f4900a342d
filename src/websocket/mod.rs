//! RFC 6455 and RFC 7692 as pure functions over bytes: no socket, no clock, no allocation where nothing is partial.
//!
//! ```text
//! handshake   bytes ─► Head ─► Upgrade ─► 101          or a Rejection: 4xx, 5xx
//! decoder     bytes ─► Message │ Ping │ Pong │ Close   or a Violation: the code to close with
//! frame       payload ─► wire bytes, both directions
//! deflate     payload ⇄ permessage-deflate, every message on its own
//! ```

pub mod decoder;
pub mod deflate;
pub mod frame;
pub mod handshake;

pub use decoder::{Decoded, Decoder, DecoderLimits, Event, Scratch};
pub use deflate::{DeflateParams, Deflater, Inflater};
pub use frame::{FrameHeader, Opcode};
pub use handshake::{Rejection, Upgrade};

/// A data message's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// UTF-8, already checked.
    Text,
    /// Any bytes.
    Binary,
}

impl MessageKind {
    /// The opcode of such a message's first frame.
    pub fn opcode(self) -> Opcode {
        match self {
            MessageKind::Text => Opcode::Text,
            MessageKind::Binary => Opcode::Binary,
        }
    }
}

/// A parsed request head; borrows from the bytes received.
#[derive(Clone, Debug, Default)]
pub struct Head<'a> {
    /// `GET`.
    pub method: &'a str,
    /// Without the query.
    pub path: &'a str,
    /// What follows `?`, without it; empty if there is none.
    pub query: &'a str,
    /// Minor version of HTTP/1.
    pub version: u8,
    /// Names as sent, values as bytes.
    pub headers: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Head<'a> {
    /// Values of every header called `name` (any case), in the order they came.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|&(_, value)| value)
    }

    /// The first header called `name` (any case), if it is visible ASCII or UTF-8.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.values(name).next().and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Elements of the comma-separated lists in all headers called `name`, trimmed, empty ones left out.
    ///
    /// Not for lists whose elements may hold a quoted comma.
    pub fn tokens(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.values(name)
            .filter_map(|value| std::str::from_utf8(value).ok())
            .flat_map(|list| list.split(','))
            .map(|token| token.trim_matches([' ', '\t']))
            .filter(|token| !token.is_empty())
    }
}

/// What the peer did wrong, and the code to close the connection with. Nothing it sends afterwards counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} ({code})")]
pub struct Violation {
    /// Close code, RFC 6455 §7.4.1: 1002, 1007 or 1009, as `kind` says.
    pub code: u16,
    /// For the close frame and the log: at most 123 bytes.
    pub reason: &'static str,
    /// For the counters.
    pub kind: ViolationKind,
}

/// The sorts of [`Violation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ViolationKind {
    /// Framing, order of frames, close payload, broken compression: 1002.
    Protocol,
    /// Text that is not UTF-8: 1007.
    Utf8,
    /// A message over the limit: 1009.
    TooBig,
}

impl Violation {
    pub(crate) const fn protocol(reason: &'static str) -> Violation {
        Violation { code: 1002, reason, kind: ViolationKind::Protocol }
    }
    pub(crate) const fn utf8(reason: &'static str) -> Violation {
        Violation { code: 1007, reason, kind: ViolationKind::Utf8 }
    }
    pub(crate) const fn too_big(reason: &'static str) -> Violation {
        Violation { code: 1009, reason, kind: ViolationKind::TooBig }
    }
}
