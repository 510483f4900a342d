//! go-push's clients: JSON `{"type":…,"data":…}` both ways, rooms without answers, pushes merged into items.
//!
//! ```text
//! client                                      gateway
//! {"type":"PING","data":{}}                   {"type":"PONG","data":{}}
//! {"type":"JOIN","data":{"room":"r"}}         nothing, also if there is no room left or it is in the room
//! {"type":"LEAVE","data":{"room":"r"}}        nothing, also if it is not in the room
//!                                             {"type":"PUSH","data":{"items":[{"name":"go-push"},"text"]}}
//! another type, none, or a binary message     nothing
//! invalid JSON, a wrong type, an empty room   the connection ends, without a close frame
//! ```
//!
//! No greeting, no error message: a client learns of a room by what comes from it. The items of a push are collected in the
//! merge windows of `topics`; a room push looks like one to everyone.

use super::gpush::GoString;
use super::{Command, Dialect, DialectId, Heartbeat, Negotiated, Position, Session, SubscribeError, json};
use crate::frame::Publication;
use crate::ids::{Epoch, Offset};
use crate::websocket::frame::{Opcode, write_frame};
use crate::websocket::{Head, MessageKind};
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

const PONG: &str = r#"{"type":"PONG","data":{}}"#;
const PUSH_HEAD: &str = r#"{"type":"PUSH","data":{"items":["#;
const PUSH_TAIL: &str = "]}}";

/// The dialect of `/connect`.
pub struct Gopush;

impl Dialect for Gopush {
    fn name(&self) -> &'static str {
        "gopush"
    }

    /// Takes every client: no subprotocol, no token in the URL.
    fn negotiate(&self, _head: &Head<'_>) -> Result<Negotiated, (u16, &'static str)> {
        Ok(Negotiated {
            subprotocol: None,
            plain: DialectId::Gopush.encoding(false),
            deflated: DialectId::Gopush.encoding(true),
            session: Session::default(),
        })
    }

    fn parse(&self, _session: &mut Session, kind: MessageKind, payload: &[u8], commands: &mut Vec<Command>) {
        if kind != MessageKind::Text {
            return;
        }
        match Request::parse(payload) {
            Ok(Request::Ping) => {
                let mut pong = Vec::with_capacity(PONG.len() + 2);
                write_frame(&mut pong, Opcode::Text, PONG.as_bytes());
                commands.extend([Command::Heartbeat, Command::Reply(pong)]);
            }
            Ok(Request::Join(room)) => commands.push(Command::Subscribe { topic: room, request: 0 }),
            Ok(Request::Leave(room)) => commands.push(Command::Unsubscribe { topic: room, request: 0 }),
            Ok(Request::Unknown) => {}
            Err(_) => commands.push(Command::Cut),
        }
    }

    /// Never answered, whatever the result: a room that is one too many, or whose name is too long, is not joined.
    fn subscribed(
        &self,
        _request: u32,
        _topic: &str,
        _result: Result<(Epoch, Offset), SubscribeError>,
        _out: &mut Vec<u8>,
    ) {
    }

    fn unsubscribed(&self, _request: u32, _topic: &str, _out: &mut Vec<u8>) {}

    fn payload(&self, publication: &Publication, _position: Position, out: &mut Vec<u8>) {
        out.extend_from_slice(PUSH_HEAD.as_bytes());
        json::append(&publication.data, json::Html::Escaped, out);
        out.extend_from_slice(PUSH_TAIL.as_bytes());
    }

    fn merged(&self, items: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(PUSH_HEAD.as_bytes());
        out.extend_from_slice(items);
        out.extend_from_slice(PUSH_TAIL.as_bytes());
    }

    fn merges(&self) -> bool {
        true
    }

    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::FromClientAtIntervals
    }
}

/// A client's message, as Go's encoding/json fills its structs: names of members match whatever their case, unknown ones are
/// skipped, the last of several wins, and null is as good as nothing.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Ping,
    Join(Box<str>),
    Leave(Box<str>),
    Unknown,
}

impl Request {
    /// Reads one message.
    ///
    /// # Errors
    /// It is not JSON or of another shape; or it is about a room and names none. The client is cut for it.
    fn parse(payload: &[u8]) -> Result<Request, serde_json::Error> {
        let json = std::str::from_utf8(payload).map_err(Error::custom)?;
        // The grammar first: `GoString` reads bytes, and would let through control characters in a string.
        serde_json::from_str::<IgnoredAny>(json)?;
        let Some(Envelope { kind, data }) = Option::<Envelope>::deserialize_from(json)? else {
            return Ok(Request::Unknown); // `null` fills nothing, and no type is an unknown one.
        };
        Ok(match &*kind {
            "PING" => Request::Ping,
            "JOIN" => Request::Join(room(data)?),
            "LEAVE" => Request::Leave(room(data)?),
            _ => Request::Unknown,
        })
    }
}

/// The room that `data` names.
fn room(data: Option<&RawValue>) -> Result<Box<str>, serde_json::Error> {
    let data = data.ok_or_else(|| Error::custom("no data"))?;
    let room = Option::<Room>::deserialize_from(data.get())?.map_or_else(Box::default, |r| r.0);
    if room.is_empty() { Err(Error::custom("an empty room")) } else { Ok(room) }
}

trait DeserializeFrom<'de>: serde::Deserialize<'de> {
    fn deserialize_from(json: &'de str) -> Result<Self, serde_json::Error> {
        Self::deserialize(&mut serde_json::Deserializer::from_str(json))
    }
}
impl<'de, T: serde::Deserialize<'de>> DeserializeFrom<'de> for T {}

/// The outer object. `data` is not looked into: unless it is about a room, anything may stand there.
#[derive(Default)]
struct Envelope<'a> {
    kind: Box<str>,
    data: Option<&'a RawValue>,
}

impl<'de> serde::Deserialize<'de> for Envelope<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Envelope<'de>, D::Error> {
        struct EnvelopeVisitor;
        impl<'de> Visitor<'de> for EnvelopeVisitor {
            type Value = Envelope<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a message")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Envelope<'de>, A::Error> {
                let mut envelope = Envelope::default();
                while let Some(Name(name)) = map.next_key()? {
                    if name.eq_ignore_ascii_case("type") {
                        if let Some(GoString(kind)) = map.next_value()? {
                            envelope.kind = kind;
                        }
                    } else if name.eq_ignore_ascii_case("data") {
                        envelope.data = Some(map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(envelope)
            }
        }
        deserializer.deserialize_map(EnvelopeVisitor)
    }
}

/// What `data` of JOIN and LEAVE is.
struct Room(Box<str>);

impl<'de> serde::Deserialize<'de> for Room {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Room, D::Error> {
        struct RoomVisitor;
        impl<'de> Visitor<'de> for RoomVisitor {
            type Value = Room;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a room")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Room, A::Error> {
                let mut room = Box::default();
                while let Some(Name(name)) = map.next_key()? {
                    if !name.eq_ignore_ascii_case("room") {
                        map.next_value::<IgnoredAny>()?;
                    } else if let Some(GoString(named)) = map.next_value()? {
                        room = named;
                    }
                }
                Ok(Room(room))
            }
        }
        deserializer.deserialize_map(RoomVisitor)
    }
}

/// A member's name. Go folds by Unicode, but no letter of `type`, `data` and `room` has a relative outside ASCII.
struct Name(Box<str>);

impl<'de> serde::Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        GoString::deserialize(deserializer).map(|name| Name(name.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(payload: impl AsRef<[u8]>) -> Vec<Command> {
        parse_as(MessageKind::Text, payload)
    }

    fn parse_as(kind: MessageKind, payload: impl AsRef<[u8]>) -> Vec<Command> {
        let mut commands = Vec::new();
        Gopush.parse(&mut Session::default(), kind, payload.as_ref(), &mut commands);
        commands
    }

    fn join(room: &str) -> Vec<Command> {
        vec![Command::Subscribe { topic: room.into(), request: 0 }]
    }

    #[test]
    fn ping_is_a_heartbeat_and_gets_pong_to_the_byte() {
        for ping in [
            r#"{"type":"PING","data":{}}"#,
            r#"{"type":"PING"}"#,
            r#"{"TYPE":"PING","data":null}"#,
            r#" {"data":[1,"x"],"Type":"PING"} "#,
            r#"{"type":"JOIN","type":"PING"}"#,
        ] {
            let pong = b"\x81\x19{\"type\":\"PONG\",\"data\":{}}".to_vec();
            assert_eq!(parse(ping), [Command::Heartbeat, Command::Reply(pong)], "{ping}");
        }
    }

    #[test]
    fn join_and_leave_name_a_room_and_get_no_answer() {
        assert_eq!(parse(r#"{"type":"JOIN","data":{"room":"fengtimo"}}"#), join("fengtimo"));
        assert_eq!(parse(r#"{"type":"JOIN","data":{"ROOM":"a","room":null,"more":[{}]},"x":1}"#), join("a"));
        assert_eq!(parse(r#"{"data":{"room":"房间\n\ud83d\ude00\ud800"},"type":"JOIN"}"#), join("房间\n😀\u{fffd}"));
        let leave = [Command::Unsubscribe { topic: "r".into(), request: 0 }];
        assert_eq!(parse(r#"{"type":"LEAVE","data":{"room":"r"}}"#), leave);
        let mut out = Vec::new();
        for result in [Ok((Epoch(1), Offset(1))), Err(SubscribeError::TooManyTopics), Err(SubscribeError::NameTooLong)]
        {
            Gopush.subscribed(0, "r", result, &mut out);
        }
        Gopush.unsubscribed(0, "r", &mut out);
        Gopush.greeting(&mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn a_room_that_is_not_named_ends_the_connection() {
        for kind in ["JOIN", "LEAVE"] {
            for data in [r#"{"room":""}"#, "{}", "null", "[]", "\"r\"", "1", r#"{"room":1}"#, r#"{"room":null}"#] {
                assert_eq!(parse(format!(r#"{{"type":"{kind}","data":{data}}}"#)), [Command::Cut], "{kind} {data}");
            }
            assert_eq!(parse(format!(r#"{{"type":"{kind}"}}"#)), [Command::Cut]);
        }
    }

    #[test]
    fn what_is_not_a_message_ends_the_connection() {
        for nonsense in [
            "",
            "PING",
            "{",
            "[]",
            "1",
            "\"PING\"",
            r#"{"type":1}"#,
            r#"{"type":{}}"#,
            r#"{"type":"PING"}}"#,
            r#"{"type":"PING",}"#,
            "{\"type\":\"PI\nNG\"}",
            r#"{"type":"PING","type":true}"#,
        ] {
            assert_eq!(parse(nonsense), [Command::Cut], "{nonsense:?}");
        }
        assert_eq!(parse([0xff]), [Command::Cut]);
    }

    #[test]
    fn an_unknown_type_or_none_and_a_binary_message_are_ignored() {
        for unknown in [
            r#"{"type":"ping"}"#,
            r#"{"type":"PUSH","data":{"items":[]}}"#,
            "{}",
            "null",
            r#"{"type":null}"#,
            r#"{"type":""}"#,
        ] {
            assert_eq!(parse(unknown), [], "{unknown}");
        }
        for binary in [&b"{\"type\":\"PING\"}"[..], b"\xff\x00", b""] {
            assert_eq!(parse_as(MessageKind::Binary, binary), []);
        }
    }

    #[test]
    fn a_push_holds_its_items_in_order_and_a_lone_publication_as_one() {
        let mut out = Vec::new();
        Gopush.merged(br#"{"name":"go-push"},{"age":"1"}"#, &mut out);
        assert_eq!(out, br#"{"type":"PUSH","data":{"items":[{"name":"go-push"},{"age":"1"}]}}"#);
        out.clear();
        let position = Position { epoch: Epoch(1), offset: Offset(1), prev: Offset(0) };
        Gopush.payload(&Publication::new("r", "<b>"), position, &mut out);
        assert_eq!(out, br#"{"type":"PUSH","data":{"items":["\u003cb\u003e"]}}"#);
    }
}
