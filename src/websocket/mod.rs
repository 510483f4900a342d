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

    /// The first value called `name` in the query, `+` and percent-encoding undone; what is not UTF-8 then becomes U+FFFD.
    pub fn query_value(&self, name: &str) -> Option<String> {
        let value = self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(key) == name.as_bytes()).then_some(value)
        })?;
        Some(String::from_utf8_lossy(&decoded(value)).into_owned())
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

/// Undoes the encoding of a form's value in a URL; a `%` that encodes nothing stands for itself.
fn decoded(text: &str) -> Vec<u8> {
    let hex = |byte: Option<&u8>| byte.and_then(|b| (*b as char).to_digit(16));
    let (bytes, mut out, mut i) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while i < bytes.len() {
        let (byte, taken) = match (bytes[i], hex(bytes.get(i + 1)), hex(bytes.get(i + 2))) {
            (b'%', Some(high), Some(low)) => ((high * 16 + low) as u8, 3),
            (b'+', ..) => (b' ', 1),
            (byte, ..) => (byte, 1),
        };
        out.push(byte);
        i += taken;
    }
    out
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_querys_value_is_decoded() {
        let head = Head { query: "a=1&tok%65n=x%2By+z%&token=second&none&e=", ..Head::default() };
        let values = ["a", "token", "none", "e", "b"].map(|name| head.query_value(name));
        let expected = [Some("1"), Some("x+y z%"), Some(""), Some(""), None];
        assert_eq!(values, expected.map(|value| value.map(str::to_owned)));
    }
}
