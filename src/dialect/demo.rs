//! The echo of the page `/demo`, as the danmaku demo server had it: every message is written back as text, and the text `heartbeat`
//! comes each second from the handshake on. Neither takes part in topics.

use super::{Command, Dialect, DialectId, Heartbeat, Negotiated, Overdue, Position, Session, SubscribeError};
use crate::frame::Publication;
use crate::ids::{Epoch, Offset};
use crate::websocket::frame::{Opcode, write_frame};
use crate::websocket::{Head, MessageKind};

/// The dialect of `/demo/ws`.
pub struct Demo;

/// From one `heartbeat` to the next, in milliseconds.
pub const HEARTBEAT_MS: u64 = 1000;

impl Dialect for Demo {
    fn name(&self) -> &'static str {
        "demo"
    }
    fn negotiate(&self, _head: &Head<'_>) -> Result<Negotiated, (u16, &'static str)> {
        Ok(Negotiated {
            subprotocol: None,
            plain: DialectId::Demo.encoding(false),
            deflated: DialectId::Demo.encoding(true),
            session: Session::default(),
        })
    }
    /// What is not UTF-8 can't be text: U+FFFD stands for what is not.
    fn parse(&self, _session: &mut Session, _kind: MessageKind, payload: &[u8], commands: &mut Vec<Command>) {
        let payload = String::from_utf8_lossy(payload).into_owned().into_bytes();
        commands.push(Command::Echo { kind: MessageKind::Text, payload });
    }
    fn subscribed(
        &self,
        _request: u32,
        _topic: &str,
        _result: Result<(Epoch, Offset), SubscribeError>,
        _out: &mut Vec<u8>,
    ) {
    }
    fn unsubscribed(&self, _request: u32, _topic: &str, _out: &mut Vec<u8>) {}
    fn payload(&self, _publication: &Publication, _position: Position, _out: &mut Vec<u8>) {}
    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::FromServer
    }
    fn overdue(&self, _session: &mut Session, out: &mut Vec<u8>) -> Overdue {
        write_frame(out, Opcode::Text, b"heartbeat");
        Overdue::Told
    }
    fn takes_publications(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_comes_back_as_text() {
        let mut commands = Vec::new();
        for (kind, payload, back) in [
            (MessageKind::Text, "价 <b>".as_bytes(), "价 <b>"),
            (MessageKind::Binary, b"bytes", "bytes"),
            (MessageKind::Binary, b"\xFFa", "\u{FFFD}a"),
            (MessageKind::Text, b"", ""),
        ] {
            Demo.parse(&mut Session::default(), kind, payload, &mut commands);
            let payload = back.as_bytes().to_vec();
            assert_eq!(commands.pop(), Some(Command::Echo { kind: MessageKind::Text, payload }));
            assert!(commands.is_empty());
        }
    }

    #[test]
    fn a_heartbeat_is_one_text_frame_and_asks_for_nothing() {
        let mut out = Vec::new();
        assert_eq!(Demo.overdue(&mut Session::default(), &mut out), Overdue::Told);
        assert_eq!(out, b"\x81\x09heartbeat");
    }
}
