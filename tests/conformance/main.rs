//! RFC 6455 and RFC 7692 by clause: bytes in, events and close code out. Each test names the section it holds us to.
//!
//! What a client sees over a real socket is Autobahn's business, in `tests/conformance/autobahn`.

mod close;
mod deflate;
mod framing;
mod handshake;
mod masking;
mod text;

use fanwire::websocket::frame::{Opcode, write_fragment};
use fanwire::websocket::{Decoded, Decoder, DecoderLimits, Event, MessageKind, Scratch};

pub const LIMITS: DecoderLimits = DecoderLimits { message_bytes_max: 65_536 };

/// What the gateway makes of a client's bytes: events with their payloads, and the code it closes with, if it must.
pub fn decode(deflate: bool, mut input: &[u8]) -> (Vec<(Event, Vec<u8>)>, Option<u16>) {
    let (mut decoder, mut scratch, mut events) = (Decoder::new(deflate), Scratch::new(), Vec::new());
    while !input.is_empty() {
        match decoder.decode(input, &mut scratch, &LIMITS) {
            Err(violation) => return (events, Some(violation.code)),
            Ok(Decoded { consumed, event, .. }) => {
                input = &input[consumed..];
                events.extend(event.map(|event| (event, scratch.payload().to_vec())));
            }
        }
    }
    (events, None)
}

/// The close code that `input` earns, on a connection without extensions.
pub fn refused_with(input: &[u8]) -> Option<u16> {
    decode(false, input).1
}

/// A masked frame.
pub fn frame(fin: bool, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_fragment(&mut out, fin, opcode, false, payload, Some([0x37, 0xfa, 0x21, 0x3d]));
    out
}

/// A masked frame with RSV1.
pub fn compressed(fin: bool, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_fragment(&mut out, fin, opcode, true, payload, Some([0x37, 0xfa, 0x21, 0x3d]));
    out
}

pub fn text(payload: &str) -> (Event, Vec<u8>) {
    (Event::Message(MessageKind::Text), payload.as_bytes().to_vec())
}

pub fn binary(payload: &[u8]) -> (Event, Vec<u8>) {
    (Event::Message(MessageKind::Binary), payload.to_vec())
}
