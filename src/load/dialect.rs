//! What a load's clients say and how they find messages in what they hear. What they have in common (connecting, counting, who
//! is slow) is in `clients`; here is what each kind differs in.
//!
//! ```text
//! gpush       101 ─► greeting ─► subscribe ─► answer            one message a frame
//! centrifugo  101 ─► connect + subscribe in one ─► answers      messages in lines
//! go-push     101 ─► JOIN + PING ─► PONG                        messages anywhere in a frame
//! raw         101 ─► --hello, if any ─► --subscribed, if any    messages anywhere in a frame, all else ignored
//! nats        INFO ─► CONNECT + SUB + PING ─► PONG              MSG
//! ```

use super::{centrifugo, gpush};
use crate::websocket::{Opcode, frame};
use std::sync::Arc;

/// What the clients speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// gpush's.
    Gpush,
    /// Centrifugo's, JSON.
    Centrifugo,
    /// go-push's: rooms.
    Gopush,
    /// WebSocket, and no more: for any server.
    Raw {
        /// Sent after the handshake, with `{topic}` replaced.
        hello: Option<String>,
        /// In the first message after it; without it a client is subscribed at once.
        subscribed: Option<String>,
    },
    /// The NATS client protocol over TCP.
    Nats,
}

/// Where messages of ours stand in what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A frame is one message.
    Whole,
    /// A frame has lines of JSON, each a message's at most.
    Lines,
    /// Any number of them anywhere in a frame.
    Anywhere,
}

/// What `{topic}` stands for in a path or a text.
const TOPIC: &str = "{topic}";

/// `template` for one topic.
pub(crate) fn for_topic(template: &str, topic: &str) -> String {
    template.replace(TOPIC, topic)
}

/// Whether `template` differs from topic to topic.
pub(crate) fn names_topic(template: &str) -> bool {
    template.contains(TOPIC)
}

impl Dialect {
    /// As `--dialect` has it.
    pub fn name(&self) -> &'static str {
        match self {
            Dialect::Gpush => "gpush",
            Dialect::Centrifugo => "centrifugo",
            Dialect::Gopush => "go-push",
            Dialect::Raw { .. } => "raw",
            Dialect::Nats => "nats",
        }
    }

    /// Whether a gateway of ours speaks it.
    pub fn is_ours(&self) -> bool {
        !matches!(self, Dialect::Raw { .. } | Dialect::Nats)
    }

    pub(crate) fn shape(&self) -> Shape {
        match self {
            Dialect::Gpush | Dialect::Nats => Shape::Whole,
            Dialect::Centrifugo => Shape::Lines,
            Dialect::Gopush | Dialect::Raw { .. } => Shape::Anywhere,
        }
    }

    /// Whether who has the subscribe's answer must get all that is published from then on. go-push never answers, and of a raw
    /// server nobody knows: there a client's checks begin at its first message.
    pub(crate) fn acks(&self) -> bool {
        !matches!(self, Dialect::Gopush | Dialect::Raw { .. })
    }

    /// What a client says as soon as it is let in; `None`: the server speaks first.
    pub(crate) fn hello(&self, topic: &str) -> Option<Arc<[u8]>> {
        match self {
            Dialect::Gpush | Dialect::Nats => None,
            Dialect::Centrifugo => Some(centrifugo::hello(topic)),
            Dialect::Gopush => {
                let room = serde_json::Value::from(topic);
                let mut frames = Vec::new();
                text(&mut frames, format!(r#"{{"type":"JOIN","data":{{"room":{room}}}}}"#).as_bytes());
                text(&mut frames, GOPUSH_PING);
                Some(frames.into())
            }
            Dialect::Raw { hello, .. } => hello.as_ref().map(|hello| {
                let mut frames = Vec::new();
                text(&mut frames, for_topic(hello, topic).as_bytes());
                frames.into()
            }),
        }
    }

    /// What a client has to say to stay, and once in how many ns; `None`: nothing. gpush's gateways wait 120 s, go-push's 60 s.
    pub(crate) fn heartbeat(&self) -> Option<(Arc<[u8]>, u64)> {
        match self {
            Dialect::Gpush => Some((gpush::ping(), 80_000_000_000)),
            Dialect::Gopush => {
                let mut frames = Vec::new();
                text(&mut frames, GOPUSH_PING);
                Some((frames.into(), 40_000_000_000))
            }
            Dialect::Centrifugo | Dialect::Raw { .. } | Dialect::Nats => None, // There the server asks, or nobody does.
        }
    }

    /// Whether `payload` says that the client is subscribed.
    pub(crate) fn is_subscribed(&self, payload: &[u8]) -> bool {
        match self {
            Dialect::Gpush => payload.starts_with(gpush::SUBSCRIBED),
            Dialect::Centrifugo => payload.starts_with(centrifugo::SUBSCRIBED),
            Dialect::Gopush => payload.starts_with(GOPUSH_PONG),
            Dialect::Raw { subscribed, .. } => {
                let expected = subscribed.as_deref().unwrap_or_default().as_bytes();
                expected.is_empty() || payload.windows(expected.len()).any(|window| window == expected)
            }
            Dialect::Nats => payload == b"PONG",
        }
    }

    /// Whether `payload`, which is no message of ours, is part of the protocol.
    pub(crate) fn is_protocol(&self, payload: &[u8]) -> bool {
        match self {
            Dialect::Gpush => payload == gpush::PONG,
            Dialect::Centrifugo => payload.starts_with(centrifugo::CONNECTED),
            Dialect::Gopush => payload.starts_with(GOPUSH_PONG),
            Dialect::Raw { .. } => true,
            Dialect::Nats => matches!(payload, b"PONG" | b"+OK") || payload.starts_with(b"INFO "),
        }
    }
}

const GOPUSH_PING: &[u8] = br#"{"type":"PING","data":{}}"#;
const GOPUSH_PONG: &[u8] = br#"{"type":"PONG""#;

fn text(frames: &mut Vec<u8>, payload: &[u8]) {
    frame::write_client_frame(frames, Opcode::Text, payload, gpush::MASK);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(hello: Option<&str>, subscribed: Option<&str>) -> Dialect {
        Dialect::Raw { hello: hello.map(String::from), subscribed: subscribed.map(String::from) }
    }

    /// The payloads of client frames, unmasked.
    fn said(dialect: &Dialect) -> Vec<String> {
        let bytes = dialect.hello("a\"b").unwrap_or_default();
        let (mut rest, mut texts) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let length = usize::from(rest[1] & 0x7f);
            let payload = rest[6..6 + length].iter().zip(gpush::MASK.iter().cycle()).map(|(b, m)| b ^ m).collect();
            texts.push(String::from_utf8(payload).unwrap());
            rest = &rest[6 + length..];
        }
        texts
    }

    #[test]
    fn who_speaks_first_names_the_topic_in_the_dialect_s_own_way() {
        assert_eq!(
            said(&Dialect::Gopush),
            [r#"{"type":"JOIN","data":{"room":"a\"b"}}"#, r#"{"type":"PING","data":{}}"#]
        );
        assert_eq!(said(&raw(Some("SUB {topic}"), None)), ["SUB a\"b"]);
        assert!(said(&raw(None, None)).is_empty() && said(&Dialect::Gpush).is_empty());
    }

    #[test]
    fn a_raw_client_is_subscribed_by_the_text_it_was_given_and_nothing_is_unexpected() {
        let waits = raw(None, Some("ok:"));
        assert!(waits.is_subscribed(b"{\"ok:\"}") && !waits.is_subscribed(b"ok"));
        assert!(raw(None, None).is_subscribed(b"") && waits.is_protocol(b"anything"));
        assert!(!Dialect::Gpush.is_protocol(b"anything"));
    }
}
