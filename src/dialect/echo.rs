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
        })
    }
    fn parse(&self, _session: &mut Session, _kind: MessageKind, _payload: &[u8], _commands: &mut Vec<Command>) {}
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
