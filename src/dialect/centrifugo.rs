//! Centrifugo's clients: its JSON protocol, so that the libraries people have work unchanged.
//!
//! ```text
//! client                                             gateway
//! {"id":1,"connect":{"name":"js"}}                   {"id":1,"connect":{"client":"…","version":"…","ping":25,"pong":true}}
//! {"id":2,"subscribe":{"channel":"news"}}            {"id":2,"subscribe":{"epoch":"…","offset":7}}      or an error by number
//! {"id":3,"unsubscribe":{"channel":"news"}}          {"id":3,"unsubscribe":{}}
//!                                                    {"push":{"channel":"news","pub":{"data":…,"offset":8}}}
//! {}                                                 {}          the gateway asks, the client answers
//! ```
//!
//! One WebSocket message holds any number of commands, or of replies and pushes, one a line. Replies carry the command's number,
//! so they need no order, but `connect` comes first and is answered first. There is no recovery: results never say `recoverable`,
//! nor `positioned`; epoch and offset are for whoever wants to know where a subscription began.

use super::{
    Command, Dialect, DialectId, Ending, Heartbeat, Joint, Negotiated, Overdue, Position, Session, SubscribeError,
    Welcome,
    json::{self, Html},
};
use crate::frame::{Publication, Target};
use crate::ids::{Epoch, Offset};
use crate::websocket::deflate::LINE_FEED_BETWEEN;
use crate::websocket::frame::{Opcode, write_frame};
use crate::websocket::{Head, MessageKind};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::io::Write as _;

/// The dialect of `/connection/websocket`.
pub struct Centrifugo;

/// Offers of the handshake.
const SUBPROTOCOL_JSON: &str = "centrifuge-json";
const SUBPROTOCOL_PROTOBUF: &str = "centrifuge-protobuf";

/// Bits of a [`Session`]: `connect` was taken,
const CONNECTED: u32 = 1;
/// a ping is out that was not answered,
const AWAITS_PONG: u32 = 2;
/// pings are WebSocket's own control frames (`cf_ws_frame_ping_pong`).
const NATIVE_PING: u32 = 4;

/// A channel whose name begins with this asks for a token at the original, and nobody checks one here yet.
const PRIVATE_PREFIX: char = '$';

/// Commands in one message; the original knows no bound. Each has a reply of some 100 bytes, which are owed together. Clients
/// subscribe to all their channels in one message when they come back, so it is far above `channels_per_connection_max`.
const COMMANDS_MAX: usize = 4096;

/// Errors in replies: number and text as the original's.
type Refusal = (u16, &'static str);
const PERMISSION_DENIED: Refusal = (103, "permission denied");
const METHOD_NOT_FOUND: Refusal = (104, "method not found");
const ALREADY_SUBSCRIBED: Refusal = (105, "already subscribed");
const LIMIT_EXCEEDED: Refusal = (106, "limit exceeded");
const BAD_REQUEST: Refusal = (107, "bad request");
const NOT_AVAILABLE: Refusal = (108, "not available");

/// Closes: code and reason as the original's. Clients come back after 30xx, and stay away after 35xx.
const CLOSE_SHUTDOWN: (u16, &str) = (3001, "shutdown");
const CLOSE_SLOW: (u16, &str) = (3008, "slow");
const CLOSE_NO_PONG: (u16, &str) = (3012, "no pong");
const CLOSE_TOO_MANY_REQUESTS: (u16, &str) = (3013, "too many requests");
const CLOSE_BAD_REQUEST: (u16, &str) = (3501, "bad request");
const CLOSE_STALE: (u16, &str) = (3502, "stale");
const CLOSE_NOT_AVAILABLE: (u16, &str) = (3508, "not available");

impl Dialect for Centrifugo {
    fn name(&self) -> &'static str {
        "centrifugo"
    }

    /// Takes JSON alone. Its clients in JSON mode offer no subprotocol at all.
    fn negotiate(&self, head: &Head<'_>) -> Result<Negotiated, (u16, &'static str)> {
        let offers = |name| head.tokens("sec-websocket-protocol").any(|offer| offer == name);
        let asks = |name, value| head.query.split('&').any(|pair| pair.split_once('=') == Some((name, value)));
        let is_json = offers(SUBPROTOCOL_JSON);
        let wants_protobuf =
            (offers(SUBPROTOCOL_PROTOBUF) && !is_json) || asks("format", "protobuf") || asks("cf_protocol", "protobuf");
        if wants_protobuf {
            return Err((
                400,
                "protobuf is not served: connect without format=protobuf and the subprotocol centrifuge-protobuf\n",
            ));
        }
        let native = asks("cf_ws_frame_ping_pong", "true");
        Ok(Negotiated {
            subprotocol: is_json.then_some(SUBPROTOCOL_JSON),
            plain: DialectId::Centrifugo.encoding(false),
            deflated: DialectId::Centrifugo.encoding(true),
            session: Session(if native { NATIVE_PING } else { 0 }),
        })
    }

    /// A binary message counts as text, as in the original.
    fn parse(&self, session: &mut Session, _kind: MessageKind, payload: &[u8], commands: &mut Vec<Command>) {
        let before = commands.len();
        for line in payload.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()) {
            let command = match Request::parse(line) {
                Some(request) if commands.len() - before < COMMANDS_MAX => request.command(session),
                _ => close(CLOSE_BAD_REQUEST),
            };
            let is_over = matches!(command, Command::Close { .. });
            commands.push(command);
            if is_over {
                return; // Nothing it says afterwards counts.
            }
        }
        if commands.len() == before {
            commands.push(close(CLOSE_BAD_REQUEST));
        }
    }

    fn connects(&self) -> bool {
        true
    }

    fn connected(&self, session: Session, request: u32, welcome: &Welcome, out: &mut Vec<u8>) {
        let version = env!("CARGO_PKG_VERSION");
        append(
            out,
            format_args!(r#"{{"id":{request},"connect":{{"client":"{}","version":"{version}""#, welcome.client),
        );
        if session.0 & NATIVE_PING == 0 {
            // Whole seconds is all that the protocol can say; clients grant ten more.
            let ping_s = welcome.ping_interval_ms.div_ceil(1000);
            append(out, format_args!(r#","ping":{ping_s},"pong":true"#));
        }
        out.extend_from_slice(b"}}");
    }

    fn subscribed(
        &self,
        request: u32,
        _topic: &str,
        result: Result<(Epoch, Offset), SubscribeError>,
        out: &mut Vec<u8>,
    ) {
        let refusal = match result {
            Ok((epoch, Offset(offset))) => {
                append(out, format_args!(r#"{{"id":{request},"subscribe":{{"epoch":"{:x}""#, epoch.0));
                if offset > 0 {
                    append(out, format_args!(r#","offset":{offset}"#));
                }
                return out.extend_from_slice(b"}}");
            }
            Err(SubscribeError::AlreadySubscribed) => ALREADY_SUBSCRIBED,
            Err(SubscribeError::TooManyTopics) => LIMIT_EXCEEDED,
            Err(SubscribeError::NameTooLong) => BAD_REQUEST,
        };
        error(request, refusal, out);
    }

    fn unsubscribed(&self, request: u32, _topic: &str, out: &mut Vec<u8>) {
        append(out, format_args!(r#"{{"id":{request},"unsubscribe":{{}}}}"#));
    }

    /// Offsets count from 1 in each epoch, of a topic or of the stream that all nodes read, so they stay below 2^53, above which JavaScript
    /// would round them.
    fn payload(&self, publication: &Publication, position: Position, out: &mut Vec<u8>) {
        let channel = match &publication.target {
            Target::Everyone => {
                out.extend_from_slice(br#"{"push":{"message":{"data":"#);
                json::append(&publication.data, Html::Verbatim, out);
                return out.extend_from_slice(b"}}}");
            }
            Target::Topic(channel) | Target::User { topic: channel, .. } => channel,
        };
        out.extend_from_slice(br#"{"push":{"channel":"#);
        json::append_string(channel, Html::Verbatim, out);
        out.extend_from_slice(br#","pub":{"data":"#);
        json::append(&publication.data, Html::Verbatim, out);
        append(out, format_args!(r#","offset":{}"#, position.offset));
        if position.prev == Offset(0) {
            // As the original: who subscribed before a channel had an epoch learns it with its first publication. That is the first here, too,
            // of a stream that began anew.
            append(out, format_args!(r#","epoch":"{:x}""#, position.epoch.0));
        }
        out.extend_from_slice(b"}}}");
    }

    fn joint(&self, deflated: bool) -> Option<Joint> {
        Some(Joint { separator: if deflated { &LINE_FEED_BETWEEN } else { b"\n" }, deflated })
    }

    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::FromServer
    }

    fn overdue(&self, session: &mut Session, out: &mut Vec<u8>) -> Overdue {
        let close = |(code, reason)| Overdue::Close { code, reason };
        if session.0 & CONNECTED == 0 {
            return close(CLOSE_STALE);
        }
        if session.0 & AWAITS_PONG != 0 {
            return close(CLOSE_NO_PONG);
        }
        session.0 |= AWAITS_PONG;
        if session.0 & NATIVE_PING != 0 {
            write_frame(out, Opcode::Ping, b"");
            return Overdue::PingedByFrame;
        }
        out.extend_from_slice(b"{}");
        Overdue::Pinged
    }

    /// Counts only where pings are control frames; a pong that nobody asked for is allowed there (RFC 6455 §5.5.3).
    fn control_pong(&self, session: &mut Session) -> Option<Command> {
        let awaited = session.0 & (NATIVE_PING | AWAITS_PONG) == NATIVE_PING | AWAITS_PONG;
        session.0 &= if awaited { !AWAITS_PONG } else { !0 };
        awaited.then_some(Command::Heartbeat)
    }

    fn ending(&self, ending: Ending) -> Option<(u16, &'static str)> {
        Some(match ending {
            Ending::Drain => CLOSE_SHUTDOWN,
            Ending::Slow => CLOSE_SLOW,
            Ending::Flood => CLOSE_TOO_MANY_REQUESTS,
        })
    }

    fn joins_replies(&self) -> bool {
        true
    }

    fn answers_in_order(&self) -> bool {
        false
    }

    fn subscribes_twice(&self) -> bool {
        false
    }
}

fn append(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("memory takes what is written to it");
}

fn error(request: u32, (code, message): Refusal, out: &mut Vec<u8>) {
    append(out, format_args!(r#"{{"id":{request},"error":{{"code":{code},"message":"{message}"}}}}"#));
}

fn refuse(request: u32, refusal: Refusal) -> Command {
    let mut out = Vec::with_capacity(64);
    error(request, refusal, &mut out);
    Command::Reply(out)
}

fn close((code, reason): (u16, &'static str)) -> Command {
    Command::Close { code, reason }
}

/// One command. Members that we don't need are skipped, whatever they hold; `null` is as if it were missing.
#[derive(Deserialize)]
#[serde(expecting = "a command")]
struct Request {
    id: Option<u32>,
    connect: Option<IgnoredAny>,
    subscribe: Option<Subscribe>,
    unsubscribe: Option<Unsubscribe>,
    publish: Option<IgnoredAny>,
    presence: Option<IgnoredAny>,
    presence_stats: Option<IgnoredAny>,
    history: Option<IgnoredAny>,
    ping: Option<IgnoredAny>,
    send: Option<IgnoredAny>,
    rpc: Option<IgnoredAny>,
    refresh: Option<IgnoredAny>,
    sub_refresh: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Subscribe {
    channel: Option<Box<str>>,
    /// A filter by tags; publications have none here.
    tf: Option<IgnoredAny>,
    /// 0 is a stream, all there is.
    #[serde(rename = "type")]
    kind: Option<i32>,
}

#[derive(Deserialize)]
struct Unsubscribe {
    channel: Option<Box<str>>,
}

impl Request {
    /// Reads one line. Allocates for a channel's name alone.
    fn parse(line: &[u8]) -> Option<Request> {
        // An array would fill the members in their order.
        if line.first() != Some(&b'{') {
            return None;
        }
        serde_json::from_slice(line).ok()
    }

    /// What the engine is to do. The first member that is there counts, in this order.
    fn command(self, session: &mut Session) -> Command {
        let request = self.id.unwrap_or(0);
        let is_connected = session.0 & CONNECTED != 0;
        if request == 0 && self.send.is_none() {
            let awaited = session.0 & (AWAITS_PONG | NATIVE_PING) == AWAITS_PONG;
            session.0 &= !AWAITS_PONG;
            return if awaited { Command::Heartbeat } else { close(CLOSE_BAD_REQUEST) };
        }
        if is_connected == self.connect.is_some() {
            return close(CLOSE_BAD_REQUEST); // Connecting comes first, and once.
        }
        if request == 0 {
            return close(if is_connected { CLOSE_NOT_AVAILABLE } else { CLOSE_BAD_REQUEST }); // A message without a reply.
        }
        if self.connect.is_some() {
            session.0 |= CONNECTED;
            return Command::Connect { request };
        }
        if self.ping.is_some() {
            return refuse(request, NOT_AVAILABLE);
        }
        if let Some(Subscribe { channel, tf, kind }) = self.subscribe {
            return match channel.filter(|channel| !channel.is_empty()) {
                None => close(CLOSE_BAD_REQUEST),
                Some(_) if kind.is_some_and(|kind| kind != 0) => refuse(request, NOT_AVAILABLE),
                Some(_) if tf.is_some() => refuse(request, BAD_REQUEST),
                Some(topic) if topic.starts_with(PRIVATE_PREFIX) => refuse(request, PERMISSION_DENIED),
                Some(topic) => Command::Subscribe { topic, request },
            };
        }
        if let Some(Unsubscribe { channel }) = self.unsubscribe {
            return match channel.filter(|channel| !channel.is_empty()) {
                None => close(CLOSE_BAD_REQUEST),
                Some(topic) => Command::Unsubscribe { topic, request },
            };
        }
        if self.publish.is_some() {
            return refuse(request, PERMISSION_DENIED);
        }
        if self.presence.is_some() || self.presence_stats.is_some() || self.history.is_some() {
            return refuse(request, NOT_AVAILABLE);
        }
        if self.rpc.is_some() {
            return refuse(request, METHOD_NOT_FOUND);
        }
        if self.send.is_some() {
            return close(CLOSE_NOT_AVAILABLE);
        }
        if self.refresh.is_some() || self.sub_refresh.is_some() {
            return refuse(request, NOT_AVAILABLE);
        }
        close(CLOSE_BAD_REQUEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ConnectId;

    /// What a connected client's message asks for.
    fn parse(payload: &str) -> Vec<Command> {
        parse_in(&mut Session(CONNECTED), payload)
    }

    fn parse_in(session: &mut Session, payload: &str) -> Vec<Command> {
        let mut commands = Vec::new();
        Centrifugo.parse(session, MessageKind::Text, payload.as_bytes(), &mut commands);
        commands
    }

    fn subscribe(topic: &str, request: u32) -> Command {
        Command::Subscribe { topic: topic.into(), request }
    }

    fn reply(text: &str) -> Command {
        Command::Reply(text.as_bytes().to_vec())
    }

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    const BAD: Command = Command::Close { code: 3501, reason: "bad request" };
    const CLIENT: ConnectId = ConnectId(0x1122_3344_5566_8778_8990_aabb_ccdd_eeff);

    #[test]
    fn one_message_holds_the_connect_and_what_is_wanted_next_in_their_order() {
        let mut session = Session::default();
        // As the JavaScript client sends it.
        let message = "{\"connect\":{\"token\":\"…\",\"name\":\"js\"},\"id\":1}\n\
                       {\"subscribe\":{\"channel\":\"news\",\"flag\":1},\"id\":2}\n\
                       {\"id\":3,\"unsubscribe\":{\"channel\":\"news\"}}\n";
        let unsubscribe = Command::Unsubscribe { topic: "news".into(), request: 3 };
        assert_eq!(
            parse_in(&mut session, message),
            [Command::Connect { request: 1 }, subscribe("news", 2), unsubscribe]
        );
        assert_eq!(session, Session(CONNECTED));
    }

    #[test]
    fn the_sheets_answers_to_the_byte() {
        let welcome = Welcome { client: CLIENT, ping_interval_ms: 25_000 };
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            written(|out| Centrifugo.connected(Session(CONNECTED), 1, &welcome, out)),
            format!(
                r#"{{"id":1,"connect":{{"client":"11223344-5566-8778-8990-aabbccddeeff","version":"{version}","ping":25,"pong":true}}}}"#
            )
        );
        assert_eq!(
            written(|out| Centrifugo.connected(Session(CONNECTED | NATIVE_PING), 9, &welcome, out)),
            format!(
                r#"{{"id":9,"connect":{{"client":"11223344-5566-8778-8990-aabbccddeeff","version":"{version}"}}}}"#
            )
        );
        let subscribed = |result| written(|out| Centrifugo.subscribed(2, "c", result, out));
        assert_eq!(subscribed(Ok((Epoch(0xabc), Offset(120)))), r#"{"id":2,"subscribe":{"epoch":"abc","offset":120}}"#);
        assert_eq!(subscribed(Ok((Epoch(0xabc), Offset(0)))), r#"{"id":2,"subscribe":{"epoch":"abc"}}"#);
        for (error, said) in [
            (SubscribeError::AlreadySubscribed, r#"{"code":105,"message":"already subscribed"}"#),
            (SubscribeError::TooManyTopics, r#"{"code":106,"message":"limit exceeded"}"#),
            (SubscribeError::NameTooLong, r#"{"code":107,"message":"bad request"}"#),
        ] {
            assert_eq!(subscribed(Err(error)), format!(r#"{{"id":2,"error":{said}}}"#));
        }
        assert_eq!(written(|out| Centrifugo.unsubscribed(7, "c", out)), r#"{"id":7,"unsubscribe":{}}"#);
    }

    #[test]
    fn a_publication_has_channel_data_and_offset_and_its_first_the_epoch() {
        let push = |publication: Publication, offset| {
            let position = Position { epoch: Epoch(255), offset: Offset(offset), prev: Offset(offset - 1) };
            written(|out| Centrifugo.payload(&publication, position, out))
        };
        assert_eq!(
            push(Publication::new("news", &b"{\n\"a\": 1}"[..]), 7),
            r#"{"push":{"channel":"news","pub":{"data":{"a":1},"offset":7}}}"#
        );
        assert_eq!(
            push(Publication::new("a\"b\n", &b"not json"[..]), 1),
            r#"{"push":{"channel":"a\"b\n","pub":{"data":"not json","offset":1,"epoch":"ff"}}}"#
        );
        assert_eq!(push(Publication::new("", &b"[1]"[..]), 3), r#"{"push":{"message":{"data":[1]}}}"#);
    }

    #[test]
    fn a_message_of_too_many_commands_ends_the_connection() {
        let lines = |count| parse(&"{\"id\":7,\"rpc\":{}}\n".repeat(count));
        let most = lines(COMMANDS_MAX);
        assert!(most.len() == COMMANDS_MAX && !most.contains(&BAD));
        let over = lines(2 * COMMANDS_MAX);
        assert_eq!((over.len(), over.last()), (COMMANDS_MAX + 1, Some(&BAD)));
    }

    #[test]
    fn connecting_comes_first_and_once() {
        for first in [
            r#"{"id":1,"subscribe":{"channel":"c"}}"#,
            r#"{"id":1,"ping":{}}"#,
            r#"{"send":{"data":{}}}"#,
            r#"{"send":{},"connect":{}}"#,
            r#"{"connect":{}}"#,
            "{}",
        ] {
            assert_eq!(parse_in(&mut Session::default(), first), [BAD], "{first}");
        }
        assert_eq!(parse(r#"{"id":2,"connect":{}}"#), [BAD]);
        assert_eq!(
            parse_in(&mut Session::default(), "{\"id\":1,\"connect\":{}}\n{\"id\":2,\"connect\":{}}"),
            [Command::Connect { request: 1 }, BAD]
        );
    }

    #[test]
    fn what_is_no_command_closes_and_nothing_after_it_counts() {
        for message in [
            "",
            "\n",
            "x",
            "[]",
            "[1]",
            "1",
            "null",
            r#"{"id":-1,"ping":{}}"#,
            r#"{"id":4294967296,"ping":{}}"#,
            r#"{"id":"1","ping":{}}"#,
            r#"{"id":5}"#,
            r#"{"id":5,"subscribe":{}}"#,
            r#"{"id":5,"subscribe":{"channel":""}}"#,
            r#"{"id":5,"subscribe":{"channel":5}}"#,
            r#"{"id":5,"unsubscribe":{}}"#,
            r#"{"id":5,"unknown":{}}"#,
            r#"{"id":5,"subscribe":{"channel":"a"}"#,
            r#"{"id":5,"subscribe":{"channel":"a"}}{"id":6,"subscribe":{"channel":"b"}}"#,
        ] {
            let more = format!("{message}\n{{\"id\":9,\"subscribe\":{{\"channel\":\"never\"}}}}");
            let commands = parse(&more);
            match message.trim() {
                "" => assert_eq!(commands, [subscribe("never", 9)], "empty lines are skipped"),
                _ => assert_eq!(commands, [BAD], "{message}"),
            }
        }
        assert_eq!(parse(""), [BAD], "no command at all");
        assert_eq!(parse(" \n \r\n"), [BAD]);
    }

    #[test]
    fn what_is_not_served_is_refused_by_number_as_the_original_does() {
        for (command, error) in [
            (r#""publish":{"channel":"c","data":{}}"#, r#"{"code":103,"message":"permission denied"}"#),
            (r#""presence":{"channel":"c"}"#, r#"{"code":108,"message":"not available"}"#),
            (r#""presence_stats":{"channel":"c"}"#, r#"{"code":108,"message":"not available"}"#),
            (r#""history":{"channel":"c"}"#, r#"{"code":108,"message":"not available"}"#),
            (r#""rpc":{"method":"m"}"#, r#"{"code":104,"message":"method not found"}"#),
            (r#""ping":{}"#, r#"{"code":108,"message":"not available"}"#),
            (r#""refresh":{"token":"t"}"#, r#"{"code":108,"message":"not available"}"#),
            (r#""sub_refresh":{"channel":"c"}"#, r#"{"code":108,"message":"not available"}"#),
            (r#""subscribe":{"channel":"c","type":1}"#, r#"{"code":108,"message":"not available"}"#),
            (r#""subscribe":{"channel":"c","tf":{"op":""}}"#, r#"{"code":107,"message":"bad request"}"#),
            (r#""subscribe":{"channel":"$private"}"#, r#"{"code":103,"message":"permission denied"}"#),
        ] {
            let said = format!(r#"{{"id":4,"error":{error}}}"#);
            assert_eq!(parse(&format!(r#"{{{command},"id":4}}"#)), [reply(&said)], "{command}");
        }
        assert_eq!(
            parse(r#"{"send":{"data":1}}"#),
            [Command::Close { code: 3508, reason: "not available" }],
            "a message without a reply"
        );
    }

    #[test]
    fn wishes_that_are_not_served_but_do_no_harm_are_passed_over() {
        let message = r#"{"id":2,"subscribe":{"channel":"c","token":"x","recover":true,"epoch":"e","offset":7,"data":{},
            "positioned":true,"recoverable":true,"join_leave":true,"delta":"fossil","flag":3,"type":0,"tf":null,"new":[]}}"#;
        assert_eq!(parse(&message.replace('\n', "")), [subscribe("c", 2)]);
    }

    #[test]
    fn each_ping_is_answered_by_one_pong() {
        let mut session = Session(CONNECTED);
        let mut out = Vec::new();
        assert_eq!(Centrifugo.overdue(&mut session, &mut out), Overdue::Pinged);
        assert_eq!(out, b"{}");
        assert_eq!(Centrifugo.control_pong(&mut session), None, "that is not what was asked");
        assert_eq!(parse_in(&mut session, "{}"), [Command::Heartbeat]);
        assert_eq!(parse_in(&mut session, "{}"), [BAD]);
        let mut session = Session(CONNECTED | AWAITS_PONG);
        let no_pong = Overdue::Close { code: 3012, reason: "no pong" };
        assert_eq!(Centrifugo.overdue(&mut session, &mut Vec::new()), no_pong);
        let stale = Overdue::Close { code: 3502, reason: "stale" };
        assert_eq!(Centrifugo.overdue(&mut Session::default(), &mut Vec::new()), stale);
    }

    #[test]
    fn whoever_asks_for_it_is_pinged_by_control_frames() {
        let head = Head { query: "x=1&cf_ws_frame_ping_pong=true", ..Head::default() };
        let mut session = Session(Centrifugo.negotiate(&head).unwrap().session.0 | CONNECTED);
        let mut out = Vec::new();
        assert_eq!(Centrifugo.overdue(&mut session, &mut out), Overdue::PingedByFrame);
        assert_eq!(out, [0x89, 0]);
        assert_eq!(Centrifugo.control_pong(&mut session), Some(Command::Heartbeat));
        assert_eq!(Centrifugo.control_pong(&mut session), None);
        assert_eq!(parse_in(&mut session, "{}"), [BAD]);
    }

    #[test]
    fn json_is_served_with_its_subprotocol_or_without_and_protobuf_is_not() {
        let negotiated = |offer: &'static str, query: &'static str| {
            let headers = if offer.is_empty() { vec![] } else { vec![("Sec-WebSocket-Protocol", offer.as_bytes())] };
            Centrifugo.negotiate(&Head { query, headers, ..Head::default() })
        };
        let plain = negotiated("", "").unwrap();
        assert_eq!((plain.subprotocol, plain.session), (None, Session(0)));
        assert_eq!(DialectId::of(plain.deflated), (DialectId::Centrifugo, true));
        for (offer, query) in [("centrifuge-json", ""), ("centrifuge-protobuf, centrifuge-json", "format=json")] {
            assert_eq!(negotiated(offer, query).unwrap().subprotocol, Some("centrifuge-json"));
        }
        for (offer, query) in [("centrifuge-protobuf", ""), ("", "format=protobuf"), ("", "a=b&cf_protocol=protobuf")] {
            let (status, text) = negotiated(offer, query).unwrap_err();
            assert!(status == 400 && text.contains("protobuf is not served"), "{text}");
        }
    }
}
