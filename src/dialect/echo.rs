//! Sends back what it gets: the far end of conformance suites. Served only with `fanwire serve --dev`.

use super::{Command, Dialect, DialectId, Heartbeat, Negotiated, Position, Session, SubscribeError};
use crate::frame::Publication;
use crate::ids::{Epoch, Offset};
use crate::websocket::{Head, MessageKind};

/// The dialect of `/echo`.
pub struct Echo;

impl Dialect for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }
    fn negotiate(&self, _head: &Head<'_>) -> Result<Negotiated, (u16, &'static str)> {
        Ok(Negotiated {
            subprotocol: None,
            plain: DialectId::Echo.encoding(false),
            deflated: DialectId::Echo.encoding(true),
            session: Session::default(),
        })
    }
    fn parse(&self, _session: &mut Session, kind: MessageKind, payload: &[u8], commands: &mut Vec<Command>) {
        commands.push(Command::Echo { kind, payload: payload.to_vec() });
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
        Heartbeat::None
    }
    fn takes_publications(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_the_kind_it_was() {
        let mut commands = Vec::new();
        for (kind, payload) in
            [(MessageKind::Text, "ping".as_bytes()), (MessageKind::Binary, b"\xFF\x00"), (MessageKind::Text, b"")]
        {
            Echo.parse(&mut Session::default(), kind, payload, &mut commands);
            assert_eq!(commands.pop(), Some(Command::Echo { kind, payload: payload.to_vec() }));
            assert!(commands.is_empty());
        }
    }
}
