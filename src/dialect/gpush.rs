//! gpush's clients (`docs/PROTOCOL.md`): JSON commands by code, replies without ids, pushes verbatim.

use super::{Command, Dialect, DialectId, Heartbeat, Negotiated, Position, Session, SubscribeError};
use crate::frame::Publication;
use crate::ids::{Epoch, Offset};
use crate::websocket::{Head, MessageKind};

/// The dialect of `/ws`.
pub struct Gpush;

impl Dialect for Gpush {
    fn name(&self) -> &'static str {
        "gpush"
    }
    fn negotiate(&self, _head: &Head<'_>) -> Result<Negotiated, (u16, &'static str)> {
        Ok(Negotiated {
            subprotocol: None,
            plain: DialectId::Gpush.encoding(false),
            deflated: DialectId::Gpush.encoding(true),
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
    fn payload(&self, publication: &Publication, _position: Position, out: &mut Vec<u8>) {
        out.extend_from_slice(&publication.data);
    }
    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::FromClient
    }
}
