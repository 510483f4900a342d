//! gpush's clients: JSON commands by code, replies without ids, pushes verbatim.
//!
//! ```text
//! client                                    gateway
//!                                           {"code":20000,"message":"连接成功"}      once, first
//! ping (any case, nothing around it)        pong
//! {"code":1,"topic":"t"}   subscribe        {"code":20001,"message":"订阅成功"}
//! {"code":2,"topic":"t"}   unsubscribe      {"code":20002,"message":"取消订阅成功"}
//! code 3..=6               login, private   {"code":30002,…,"detail":"未登录"}       until there is a login
//! anything else                             {"code":30001,…,"detail":"数据格式不正确"}
//! ```
//!
//! Replies carry no topic and no number: a client matches them by order alone, hence [`Dialect::answers_in_order`]. An error
//! never closes the connection. The original has no limits and therefore no words for them; a topic refused at one of ours
//! gets a 30001 whose `detail` says which.

use super::{Command, Dialect, DialectId, Heartbeat, Negotiated, Position, Session, SubscribeError};
use crate::frame::Publication;
use crate::ids::{Epoch, Offset};
use crate::websocket::frame::{Opcode, write_frame};
use crate::websocket::{Head, MessageKind};
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::fmt;

const CONNECTED: &str = r#"{"code":20000,"message":"连接成功"}"#;
const SUBSCRIBED: &str = r#"{"code":20001,"message":"订阅成功"}"#;
const UNSUBSCRIBED: &str = r#"{"code":20002,"message":"取消订阅成功"}"#;
const MALFORMED: &str = r#"{"code":30001,"message":"操作有误","detail":"数据格式不正确"}"#;
const TOO_MANY_TOPICS: &str = r#"{"code":30001,"message":"操作有误","detail":"订阅的主题数已达上限"}"#;
const NAME_TOO_LONG: &str = r#"{"code":30001,"message":"操作有误","detail":"主题名称超过255字节"}"#;
const NOT_LOGGED_IN: &str = r#"{"code":30002,"message":"操作有误","detail":"未登录"}"#;
const PONG: &str = "pong";
const _: () = assert!(super::TOPIC_BYTES_MAX == 255, "NAME_TOO_LONG names the bound");

/// The dialect of `/ws`.
pub struct Gpush;

impl Dialect for Gpush {
    fn name(&self) -> &'static str {
        "gpush"
    }

    /// Takes every client: no subprotocol, no token in the URL.
    fn negotiate(&self, _head: &Head<'_>) -> Result<Negotiated, (u16, &'static str)> {
        Ok(Negotiated {
            subprotocol: None,
            plain: DialectId::Gpush.encoding(false),
            deflated: DialectId::Gpush.encoding(true),
            session: Session::default(),
        })
    }

    fn greeting(&self, out: &mut Vec<u8>) {
        text(CONNECTED, out);
    }

    /// A binary message counts as text, as in the original; one that is not UTF-8 is malformed.
    fn parse(&self, _session: &mut Session, _kind: MessageKind, payload: &[u8], commands: &mut Vec<Command>) {
        if payload.eq_ignore_ascii_case(b"ping") {
            commands.extend([Command::Heartbeat, reply(PONG)]);
            return;
        }
        commands.push(match Request::parse(payload) {
            Ok(Request { code: 1, topic }) => Command::Subscribe { topic, request: 0 },
            Ok(Request { code: 2, topic }) => Command::Unsubscribe { topic, request: 0 },
            Ok(Request { code: 3..=6, .. }) => reply(NOT_LOGGED_IN),
            _ => reply(MALFORMED),
        });
    }

    fn subscribed(
        &self,
        _request: u32,
        _topic: &str,
        result: Result<(Epoch, Offset), SubscribeError>,
        out: &mut Vec<u8>,
    ) {
        let answer = match result {
            Ok(_) | Err(SubscribeError::AlreadySubscribed) => SUBSCRIBED,
            Err(SubscribeError::TooManyTopics) => TOO_MANY_TOPICS,
            Err(SubscribeError::NameTooLong) => NAME_TOO_LONG,
        };
        text(answer, out);
    }

    fn unsubscribed(&self, _request: u32, _topic: &str, out: &mut Vec<u8>) {
        text(UNSUBSCRIBED, out);
    }

    fn payload(&self, publication: &Publication, _position: Position, out: &mut Vec<u8>) {
        out.extend_from_slice(&publication.data);
    }

    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::FromClient
    }
}

/// Appends `payload` as one text frame.
fn text(payload: &str, out: &mut Vec<u8>) {
    write_frame(out, Opcode::Text, payload.as_bytes());
}

fn reply(payload: &str) -> Command {
    let mut out = Vec::with_capacity(payload.len() + 2);
    text(payload, &mut out);
    Command::Reply(out)
}

/// A client's JSON command, as Go's encoding/json fills a struct: names of members match whatever their case, unknown ones
/// are skipped, the last of several wins, and null leaves a member as it was (at first zero).
#[derive(Debug, Default, PartialEq, Eq)]
struct Request {
    code: u8,
    topic: Box<str>,
}

impl Request {
    /// Reads one command. Allocates for the topic alone; `data` is checked for its grammar and skipped.
    fn parse(payload: &[u8]) -> Result<Request, serde_json::Error> {
        let json = std::str::from_utf8(payload).map_err(Error::custom)?;
        // The grammar first, as in Go: reading strings as bytes, which the second pass does, would let through control
        // characters in them. Bytes because a lone surrogate (`\ud800`) is no error in Go but U+FFFD.
        serde_json::from_str::<IgnoredAny>(json)?;
        serde_json::Deserializer::from_str(json).deserialize_map(RequestVisitor)
    }
}

struct RequestVisitor;

impl<'de> Visitor<'de> for RequestVisitor {
    type Value = Request;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a command")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Request, A::Error> {
        let mut request = Request::default();
        while let Some(member) = map.next_key::<Member>()? {
            match member {
                Member::Code => request.code = map.next_value::<Option<u8>>()?.unwrap_or(request.code),
                Member::Topic => {
                    if let Some(GoString(topic)) = map.next_value::<Option<GoString>>()? {
                        request.topic = topic;
                    }
                }
                Member::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(request)
    }
}

enum Member {
    Code,
    Topic,
    Other,
}

impl<'de> serde::Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Member, D::Error> {
        struct MemberVisitor;
        impl Visitor<'_> for MemberVisitor {
            type Value = Member;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member's name")
            }
            fn visit_bytes<E>(self, name: &[u8]) -> Result<Member, E> {
                // Go folds by Unicode, but no letter of these two names has a relative outside ASCII.
                Ok(match name {
                    name if name.eq_ignore_ascii_case(b"code") => Member::Code,
                    name if name.eq_ignore_ascii_case(b"topic") => Member::Topic,
                    _ => Member::Other,
                })
            }
        }
        deserializer.deserialize_bytes(MemberVisitor)
    }
}

/// A JSON string as Go reads it: each lone surrogate becomes U+FFFD.
struct GoString(Box<str>);

impl<'de> serde::Deserialize<'de> for GoString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<GoString, D::Error> {
        struct StringVisitor;
        impl Visitor<'_> for StringVisitor {
            type Value = GoString;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<GoString, E> {
                if let Ok(valid) = std::str::from_utf8(bytes) {
                    return Ok(GoString(valid.into()));
                }
                // serde_json hands a lone surrogate over as the three bytes ED A0..=BF 80..=BF. They are the only thing here
                // that is not UTF-8, and each of the three is reported as a piece of its own: the first stands for all.
                let mut string = String::with_capacity(bytes.len());
                for chunk in bytes.utf8_chunks() {
                    string.push_str(chunk.valid());
                    if chunk.invalid().first() == Some(&0xED) {
                        string.push(char::REPLACEMENT_CHARACTER);
                    }
                }
                Ok(GoString(string.into()))
            }
        }
        deserializer.deserialize_bytes(StringVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(payload: impl AsRef<[u8]>) -> Vec<Command> {
        let mut commands = Vec::new();
        Gpush.parse(&mut Session::default(), MessageKind::Text, payload.as_ref(), &mut commands);
        commands
    }

    /// An unmasked, final text frame of fewer than 126 bytes.
    fn frame(payload: &str) -> Vec<u8> {
        assert!(payload.len() < 126);
        [&[0x81, payload.len() as u8], payload.as_bytes()].concat()
    }

    fn subscribe(topic: &str) -> Vec<Command> {
        vec![Command::Subscribe { topic: topic.into(), request: 0 }]
    }

    fn answer(payload: &str) -> Vec<Command> {
        vec![Command::Reply(frame(payload))]
    }

    fn malformed() -> Vec<Command> {
        answer(r#"{"code":30001,"message":"操作有误","detail":"数据格式不正确"}"#)
    }

    #[test]
    fn the_greeting_is_one_text_frame() {
        let mut out = Vec::new();
        Gpush.greeting(&mut out);
        assert_eq!(out, frame(r#"{"code":20000,"message":"连接成功"}"#));
        assert_eq!(&out[..4], &[0x81, 39, b'{', b'"']);
    }

    #[test]
    fn ping_in_any_case_is_a_heartbeat_and_gets_pong() {
        for ping in ["ping", "PING", "Ping", "pInG"] {
            assert_eq!(parse(ping), [Command::Heartbeat, Command::Reply(b"\x81\x04pong".to_vec())]);
        }
    }

    #[test]
    fn ping_with_anything_around_it_is_malformed() {
        for not_ping in ["ping\n", " ping", "\"ping\"", "pingping", "pin", "pïng"] {
            assert_eq!(parse(not_ping), malformed(), "{not_ping:?}");
        }
    }

    #[test]
    fn codes_one_and_two_subscribe_and_unsubscribe() {
        assert_eq!(parse(r#"{"code":1,"topic":"test","data":"any"}"#), subscribe("test"));
        assert_eq!(parse(r#"{"code":2,"topic":"test"}"#), [Command::Unsubscribe { topic: "test".into(), request: 0 }]);
        assert_eq!(parse(r#"{"topic":"主题","code":1}"#), subscribe("主题"));
        assert_eq!(parse("\t\r\n {\"code\" : 1 , \"topic\" : \"a\\u0062\\n\" } \n"), subscribe("ab\n"));
    }

    #[test]
    fn login_and_private_topics_need_a_login_that_does_not_exist_yet() {
        let not_logged_in = answer(r#"{"code":30002,"message":"操作有误","detail":"未登录"}"#);
        assert_eq!(parse(r#"{"code":3,"data":{"token":"x"}}"#), not_logged_in);
        for code in 4..=6 {
            assert_eq!(parse(format!(r#"{{"code":{code},"topic":"t"}}"#)), not_logged_in);
        }
    }

    #[test]
    fn names_of_members_match_in_any_case_and_the_last_wins() {
        assert_eq!(parse(r#"{"CODE":1,"Topic":"t"}"#), subscribe("t"));
        assert_eq!(parse(r#"{"c\u006fde":1,"topic":"t"}"#), subscribe("t"));
        assert_eq!(parse(r#"{"code":7,"topic":"a","Code":1,"TOPIC":"b"}"#), subscribe("b"));
        assert_eq!(parse(r#"{"Code":1,"code":9}"#), malformed());
        // ſ and K are relatives of s and k alone.
        assert_eq!(parse(r#"{"code":1,"topic":"t","ﬁ":0,"ſ":1}"#), subscribe("t"));
    }

    #[test]
    fn missing_members_are_zero_and_null_changes_nothing() {
        assert_eq!(parse(r#"{"code":1}"#), subscribe(""));
        assert_eq!(parse(r#"{"code":1,"topic":null}"#), subscribe(""));
        assert_eq!(parse(r#"{"code":1,"topic":"t","topic":null,"code":null}"#), subscribe("t"));
        for zero_code in ["{}", r#"{"code":null}"#, r#"{"topic":"t"}"#, "null"] {
            assert_eq!(parse(zero_code), malformed(), "{zero_code}");
        }
    }

    #[test]
    fn unknown_members_and_data_of_any_type_are_skipped() {
        for data in
            ["1", "-1.5e3", "true", "null", "\"s\"", "[1,[2,{\"code\":9}]]", "{\"topic\":\"other\"}", "\"\\ud800\""]
        {
            assert_eq!(
                parse(format!(r#"{{"data":{data},"code":1,"x":{data},"topic":"t"}}"#)),
                subscribe("t"),
                "{data}"
            );
        }
        assert_eq!(parse(r#"{"\ud800":1,"code":1,"topic":"t"}"#), subscribe("t"));
    }

    #[test]
    fn code_is_an_unsigned_eight_bit_integer() {
        for code in ["1.0", "1e0", "-1", "-0", "256", "99999999999999999999999", "\"1\"", "true", "[1]", "{}"] {
            assert_eq!(parse(format!(r#"{{"code":{code},"topic":"t"}}"#)), malformed(), "{code}");
        }
        for unknown in [0, 7, 255] {
            assert_eq!(parse(format!(r#"{{"code":{unknown},"topic":"t"}}"#)), malformed(), "{unknown}");
        }
    }

    #[test]
    fn topic_is_a_string_or_null() {
        for topic in ["1", "true", "[]", "[116]", "{}"] {
            assert_eq!(parse(format!(r#"{{"code":1,"topic":{topic}}}"#)), malformed(), "{topic}");
        }
        assert_eq!(parse(r#"{"code":1,"topic":"\ud83d\ude00"}"#), subscribe("😀"));
        assert_eq!(parse(r#"{"code":1,"topic":"a\ud800b\udc00\ud800"}"#), subscribe("a\u{FFFD}b\u{FFFD}\u{FFFD}"));
    }

    #[test]
    fn what_is_not_one_json_object_is_malformed() {
        let not_one = [
            "",
            " ",
            "hello",
            "[]",
            "[1]",
            "1",
            "\"x\"",
            "true",
            "{",
            "{}x",
            r#"{"code":1,"topic":"t"}{}"#,
            r#"{"code":1,"topic":"t"},"#,
            r#"{"code":1,"topic":"t",}"#,
            r#"{'code':1}"#,
            r#"{"code":01,"topic":"t"}"#,
            "\u{FEFF}{\"code\":1,\"topic\":\"t\"}",
            "{\"code\":1,\"topic\":\"a\nb\"}",
            "{\"code\":1,\"topic\":\"t\",\"x\ny\":1}",
            r#"{"code":1,"topic":"\x"}"#,
        ];
        for text in not_one {
            assert_eq!(parse(text), malformed(), "{text:?}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(parse(format!(r#"{{"code":1,"data":{deep}"#)), malformed());
    }

    #[test]
    fn binary_messages_are_treated_like_text() {
        let mut commands = Vec::new();
        for payload in [&b"ping"[..], br#"{"code":1,"topic":"t"}"#, b"{\"code\":1,\"topic\":\"\xFF\"}"] {
            Gpush.parse(&mut Session::default(), MessageKind::Binary, payload, &mut commands);
        }
        let pong = [Command::Heartbeat, Command::Reply(b"\x81\x04pong".to_vec())];
        assert_eq!(commands, [&pong[..], &subscribe("t"), &malformed()].concat());
    }

    #[test]
    fn answers_are_the_originals_to_the_byte() {
        let subscribed = |result| {
            let mut out = Vec::new();
            Gpush.subscribed(0, "t", result, &mut out);
            out
        };
        let ok = frame(r#"{"code":20001,"message":"订阅成功"}"#);
        assert_eq!(subscribed(Ok((Epoch(9), Offset(9)))), ok);
        assert_eq!(subscribed(Err(SubscribeError::AlreadySubscribed)), ok);
        assert_eq!(
            subscribed(Err(SubscribeError::TooManyTopics)),
            frame(r#"{"code":30001,"message":"操作有误","detail":"订阅的主题数已达上限"}"#)
        );
        assert_eq!(
            subscribed(Err(SubscribeError::NameTooLong)),
            frame(r#"{"code":30001,"message":"操作有误","detail":"主题名称超过255字节"}"#)
        );
        let mut out = b"before".to_vec();
        Gpush.unsubscribed(0, "t", &mut out);
        assert_eq!(out, [b"before", &frame(r#"{"code":20002,"message":"取消订阅成功"}"#)[..]].concat());
    }

    #[test]
    fn a_push_is_its_data_verbatim() {
        let mut out = b"x".to_vec();
        let publication = Publication::new("t", &b"{\"a\": 1}\n"[..]);
        let position = Position { epoch: Epoch(1), offset: Offset(2), prev: Offset(1) };
        Gpush.payload(&publication, position, &mut out);
        assert_eq!(out, b"x{\"a\": 1}\n");
    }

    #[test]
    fn any_client_is_taken_without_a_subprotocol() {
        let negotiated = Gpush.negotiate(&Head::default()).unwrap();
        assert_eq!(negotiated.subprotocol, None);
        assert_eq!(DialectId::of(negotiated.plain), (DialectId::Gpush, false));
        assert_eq!(DialectId::of(negotiated.deflated), (DialectId::Gpush, true));
        assert_eq!(Gpush.heartbeat(), Heartbeat::FromClient);
        assert!(Gpush.answers_in_order() && Gpush.subscribes_twice() && Gpush.takes_publications());
    }
}
