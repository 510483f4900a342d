//! A client's bytes, in whatever pieces they arrive → messages and control frames, or the violation to close with.
//!
//! ```text
//!                 ┌──────────────── header incomplete: ≤ 13 bytes kept ◄───┐
//!                 ▼                                                        │
//!  idle ──► header checked ──► whole payload here ──► unmasked into Scratch ──► Event
//!   ▲             │                                                            │
//!   │             └─► part of it ──► Partial's buffer, unmasked, UTF-8 checked ┘  (again, until the frame is whole)
//!   └────────────────────────── nothing partial left: Partial dropped ◄────────┘
//! ```
//!
//! Every byte is judged as soon as it is there, in its order, so that the events and the violation of a stream don't
//! depend on how it was cut. A connection between messages holds 16 bytes and no heap memory. One with something
//! partial holds what has arrived of it, never what a header promises.

use super::deflate::{InflateError, Inflater};
use super::frame::{self, FrameHeader, HEADER_BYTES_MAX, Opcode};
use super::{MessageKind, Violation};

/// What a listener allows its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderLimits {
    /// Longest message, inflated and with all fragments.
    pub message_bytes_max: usize,
}

impl DecoderLimits {
    /// Longest message as it travels compressed. What can't be compressed grows by stored blocks' headers: under an
    /// eighth, by the worst compressor there is.
    fn compressed_bytes_max(&self) -> usize {
        self.message_bytes_max.saturating_add(self.message_bytes_max / 8).saturating_add(64)
    }
}

/// What a stream of frames amounts to. Its payload is in [`Scratch::payload`] until the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole message, joined, inflated, checked.
    Message(MessageKind),
    /// Answer with a pong of the same payload.
    Ping,
    /// Asked for or not; needs no answer.
    Pong,
    /// The client's last frame: answer with the same code. The payload is the code, if any, and the reason.
    Close {
        /// As sent; `None` if the frame is empty.
        code: Option<u16>,
    },
}

/// How far [`Decoder::decode`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes of input used up. All of them, if there is no event.
    pub consumed: usize,
    /// Frames whose headers they complete: what a flood of fragments that never become a message is measured by.
    pub frames: u32,
    /// The first event they complete.
    pub event: Option<Event>,
}

/// Buffers and inflater that all decoders of a core share. Grows to the longest message seen, bounded by the largest
/// [`DecoderLimits`] it is used with.
#[derive(Default)]
pub struct Scratch {
    payload: Vec<u8>,
    compressed: Vec<u8>,
    inflater: Option<Box<Inflater>>, // Made at the first compressed message: most gateways see none.
}

impl Scratch {
    /// Without memory yet.
    pub fn new() -> Scratch {
        Scratch::default()
    }

    /// The payload of the last event, unmasked and inflated; for a text message, UTF-8.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }
}

const TOO_BIG: Violation = Violation::too_big("message too big");
const NOT_UTF8: Violation = Violation::utf8("text is not UTF-8");

/// The read state of one connection.
pub struct Decoder {
    partial: Option<Box<Partial>>,
    deflate: bool,
    done: bool, // After a close frame or a violation nothing more counts.
}

const _: () = assert!(size_of::<Decoder>() <= 24, "an idle connection is paid for a million times");

/// What has arrived of something that is not whole.
#[derive(Default)]
struct Partial {
    /// Unmasked payload of the fragmented message so far; behind it, that of the frame in progress.
    buffer: Vec<u8>,
    message: Option<Message>,
    frame: Option<Frame>,
    header: [u8; HEADER_BYTES_MAX],
    header_len: u8, // 0 while a frame is in progress.
}

/// A data message in progress.
#[derive(Clone, Copy)]
struct Message {
    kind: MessageKind,
    compressed: bool,
    utf8_len: usize, // How much of the buffer is known to be whole characters.
}

/// A frame whose payload is in progress.
#[derive(Clone, Copy)]
struct Frame {
    fin: bool,
    rsv1: bool,
    opcode: Opcode,
    begun: bool,  // Some of its payload is in the buffer,
    start: usize, // from here on.
    key: [u8; 4], // Turned so that it fits the next byte.
    remaining: usize,
}

impl Decoder {
    /// Of a connection that has just been upgraded; `deflate` if permessage-deflate was agreed on.
    pub fn new(deflate: bool) -> Decoder {
        Decoder { partial: None, deflate, done: false }
    }

    /// Heap memory held, in bytes: 0 unless something is partial, at most twice what has arrived of it plus a constant.
    pub fn heap_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| size_of::<Partial>() + partial.buffer.capacity())
    }

    /// Whether a message, a frame or a header is incomplete.
    pub fn is_partial(&self) -> bool {
        self.partial.is_some()
    }

    /// Uses up `input` until an event is complete; call again with the rest, and stop when there is none.
    ///
    /// A frame that is whole in `input` costs one copy and no allocation. After [`Event::Close`] or a violation all
    /// further input is swallowed.
    ///
    /// # Errors
    /// What RFC 6455 or RFC 7692 forbid, or the limits: close with the violation's code.
    pub fn decode(
        &mut self,
        input: &[u8],
        scratch: &mut Scratch,
        limits: &DecoderLimits,
    ) -> Result<Decoded, Violation> {
        if self.done {
            return Ok(Decoded { consumed: input.len(), frames: 0, event: None });
        }
        let result = self.advance(input, scratch, limits);
        if matches!(result, Err(_) | Ok(Decoded { event: Some(Event::Close { .. }), .. })) {
            self.done = true;
            self.partial = None;
        }
        result
    }

    fn advance(&mut self, input: &[u8], scratch: &mut Scratch, limits: &DecoderLimits) -> Result<Decoded, Violation> {
        let mut rest = input;
        let mut frames = 0;
        // Ends: every turn uses up a byte or returns.
        while !rest.is_empty() {
            let frame = match self.partial.as_mut().and_then(|partial| partial.frame.take()) {
                Some(frame) => frame,
                None => match self.read_header(&mut rest, limits)? {
                    Some(frame) => {
                        frames += 1;
                        frame
                    }
                    None => break,
                },
            };
            if let Some(event) = self.read_payload(frame, &mut rest, scratch, limits)? {
                self.partial.take_if(|partial| partial.is_empty());
                return Ok(Decoded { consumed: input.len() - rest.len(), frames, event: Some(event) });
            }
        }
        Ok(Decoded { consumed: input.len(), frames, event: None })
    }

    /// Takes a header off `rest`, or keeps what there is of it.
    fn read_header(&mut self, rest: &mut &[u8], limits: &DecoderLimits) -> Result<Option<Frame>, Violation> {
        let held = self.partial.as_ref().map_or(0, |partial| usize::from(partial.header_len));
        let mut joined = [0; HEADER_BYTES_MAX];
        let bytes = match &self.partial {
            Some(partial) if held > 0 => {
                let len = HEADER_BYTES_MAX.min(held + rest.len());
                joined[..held].copy_from_slice(&partial.header[..held]);
                joined[held..len].copy_from_slice(&rest[..len - held]);
                &joined[..len]
            }
            _ => *rest,
        };
        let Some(header) = self.check_header(bytes, limits)? else {
            let partial = self.partial.get_or_insert_default();
            partial.header[..bytes.len()].copy_from_slice(bytes);
            partial.header_len = bytes.len() as u8;
            *rest = &[];
            return Ok(None);
        };
        let key = *bytes[..header.header_len].last_chunk().expect("a masked header ends with its key");
        *rest = &rest[header.header_len - held..];
        if let Some(partial) = &mut self.partial {
            partial.header_len = 0;
        }
        Ok(Some(Frame {
            fin: header.fin,
            rsv1: header.rsv1,
            opcode: header.opcode,
            begun: false,
            start: 0,
            key,
            remaining: header.payload_len as usize, // Not above `DecoderLimits`, which are `usize`.
        }))
    }

    /// Reads the header at the start of `bytes`, judging byte after byte, the last one before any payload is kept.
    fn check_header(&self, bytes: &[u8], limits: &DecoderLimits) -> Result<Option<FrameHeader>, Violation> {
        let (message, buffered) = match &self.partial {
            Some(partial) => (partial.message, partial.buffer.len()),
            None => (None, 0),
        };
        let (_, rsv1, opcode) = FrameHeader::parse_first(bytes[0])?;
        if rsv1 && !(self.deflate && matches!(opcode, Opcode::Text | Opcode::Binary)) {
            return Err(Violation::protocol("reserved bit 1 set, but not on a compressed message's first frame"));
        }
        match (opcode, message) {
            (Opcode::Continuation, None) => return Err(Violation::protocol("continuation of no message")),
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(Violation::protocol("message begun inside another"));
            }
            _ => {}
        }
        if bytes.get(1).is_some_and(|second| second & 0x80 == 0) {
            return Err(Violation::protocol("client frame not masked"));
        }
        let Some(header) = FrameHeader::parse(bytes)? else { return Ok(None) };
        if !opcode.is_control() {
            let compressed = rsv1 || message.is_some_and(|message| message.compressed);
            let bytes_max = if compressed { limits.compressed_bytes_max() } else { limits.message_bytes_max };
            if header.payload_len > bytes_max.saturating_sub(buffered) as u64 {
                return Err(TOO_BIG);
            }
        }
        Ok(Some(header))
    }

    /// Takes what there is of the frame's payload off `rest`.
    fn read_payload(
        &mut self,
        mut frame: Frame,
        rest: &mut &[u8],
        scratch: &mut Scratch,
        limits: &DecoderLimits,
    ) -> Result<Option<Event>, Violation> {
        let (bytes, later) = rest.split_at(frame.remaining.min(rest.len()));
        *rest = later;
        let whole = bytes.len() == frame.remaining;
        if whole && frame.fin && !frame.begun && frame.opcode != Opcode::Continuation {
            return scratch.take_frame(frame, bytes, limits).map(Some);
        }

        let partial = self.partial.get_or_insert_default();
        if !frame.begun {
            frame.begun = true;
            frame.start = partial.buffer.len();
            if let Some(kind) = frame.opcode.message_kind() {
                partial.message = Some(Message { kind, compressed: frame.rsv1, utf8_len: 0 });
            }
        }
        partial.append(bytes, &frame);
        frame.remaining -= bytes.len();
        frame.key = frame::key_after(frame.key, bytes.len());

        if frame.opcode.is_control() {
            if whole {
                scratch.payload.clear();
                scratch.payload.extend_from_slice(&partial.buffer[frame.start..]);
                partial.buffer.truncate(frame.start);
                return control(frame.opcode, &scratch.payload).map(Some);
            }
        } else {
            let message = partial.message.as_mut().expect("a data frame belongs to a message");
            if message.kind == MessageKind::Text && !message.compressed {
                message.utf8_len += utf8_prefix(&partial.buffer[message.utf8_len..])?;
            }
            if whole && frame.fin {
                let event = scratch.take_message(*message, &partial.buffer, limits)?;
                self.partial = None;
                return Ok(Some(event));
            }
        }
        partial.frame = (!whole).then_some(frame);
        Ok(None)
    }
}

impl Partial {
    fn is_empty(&self) -> bool {
        self.message.is_none() && self.frame.is_none() && self.header_len == 0
    }

    /// Appends and unmasks bytes of the frame in progress.
    fn append(&mut self, bytes: &[u8], frame: &Frame) {
        let len = self.buffer.len();
        if self.buffer.capacity() - len < bytes.len() {
            // By doubling, so that capacity is at most twice what has arrived; in a last frame, no further than its end.
            let doubled = len.max(bytes.len());
            self.buffer.reserve_exact(if frame.fin { doubled.min(frame.remaining) } else { doubled });
        }
        self.buffer.extend_from_slice(bytes);
        frame::apply_mask(&mut self.buffer[len..], frame.key);
    }
}

impl Scratch {
    /// A frame that is whole in the input and belongs to no fragmented message.
    fn take_frame(&mut self, frame: Frame, bytes: &[u8], limits: &DecoderLimits) -> Result<Event, Violation> {
        let target = if frame.rsv1 { &mut self.compressed } else { &mut self.payload };
        target.clear();
        target.extend_from_slice(bytes);
        frame::apply_mask(target, frame.key);
        let Some(kind) = frame.opcode.message_kind() else { return control(frame.opcode, &self.payload) };
        if frame.rsv1 {
            inflate(&mut self.inflater, &self.compressed, &mut self.payload, limits)?;
        }
        if kind == MessageKind::Text {
            std::str::from_utf8(&self.payload).map_err(|_| NOT_UTF8)?;
        }
        Ok(Event::Message(kind))
    }

    /// A message whose frames, now complete, were gathered in `buffer`.
    fn take_message(&mut self, message: Message, buffer: &[u8], limits: &DecoderLimits) -> Result<Event, Violation> {
        let utf8_len = if message.compressed {
            inflate(&mut self.inflater, buffer, &mut self.payload, limits)?;
            0
        } else {
            self.payload.clear();
            self.payload.extend_from_slice(buffer);
            message.utf8_len
        };
        if message.kind == MessageKind::Text {
            std::str::from_utf8(&self.payload[utf8_len..]).map_err(|_| NOT_UTF8)?;
        }
        Ok(Event::Message(message.kind))
    }
}

fn inflate(
    inflater: &mut Option<Box<Inflater>>,
    compressed: &[u8],
    payload: &mut Vec<u8>,
    limits: &DecoderLimits,
) -> Result<(), Violation> {
    payload.clear();
    let result = inflater.get_or_insert_default().inflate(compressed, payload, limits.message_bytes_max);
    result.map_err(|error| match error {
        InflateError::TooBig { .. } => TOO_BIG,
        InflateError::Corrupt => Violation::protocol("compressed message is not DEFLATE"),
    })
}

/// A complete control frame, RFC 6455 §5.5.
fn control(opcode: Opcode, payload: &[u8]) -> Result<Event, Violation> {
    match opcode {
        Opcode::Ping => Ok(Event::Ping),
        Opcode::Pong => Ok(Event::Pong),
        Opcode::Close => close(payload),
        Opcode::Continuation | Opcode::Text | Opcode::Binary => unreachable!("{opcode:?} is not a control frame"),
    }
}

/// RFC 6455 §5.5.1: nothing, or a code that may travel and a reason in UTF-8.
fn close(payload: &[u8]) -> Result<Event, Violation> {
    let code = match payload.split_first_chunk() {
        None if payload.is_empty() => None,
        None => return Err(Violation::protocol("close frame of one byte")),
        Some((code, reason)) => {
            let code = u16::from_be_bytes(*code);
            if !frame::is_close_code(code) {
                return Err(Violation::protocol("close code that may not be sent"));
            }
            std::str::from_utf8(reason).map_err(|_| Violation::utf8("close reason is not UTF-8"))?;
            Some(code)
        }
    };
    Ok(Event::Close { code })
}

/// How many of `bytes` are whole characters, if the rest can still become one.
fn utf8_prefix(bytes: &[u8]) -> Result<usize, Violation> {
    match std::str::from_utf8(bytes) {
        Ok(_) => Ok(bytes.len()),
        Err(error) if error.error_len().is_none() => Ok(error.valid_up_to()),
        Err(_) => Err(NOT_UTF8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::websocket::frame::write_fragment;
    use crate::websocket::{Deflater, ViolationKind};

    const LIMITS: DecoderLimits = DecoderLimits { message_bytes_max: 65_536 };
    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    fn frame(fin: bool, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_fragment(&mut out, fin, opcode, false, payload, Some(KEY));
        out
    }

    /// Events with their payloads, until the input is used up or forbidden.
    fn decode(decoder: &mut Decoder, mut input: &[u8]) -> (Vec<(Event, Vec<u8>)>, Option<Violation>) {
        let mut scratch = Scratch::new();
        let mut events = Vec::new();
        while !input.is_empty() {
            match decoder.decode(input, &mut scratch, &LIMITS) {
                Err(violation) => return (events, Some(violation)),
                Ok(Decoded { consumed, event, .. }) => {
                    assert!(consumed > 0 && (event.is_some() || consumed == input.len()));
                    input = &input[consumed..];
                    events.extend(event.map(|event| (event, scratch.payload().to_vec())));
                }
            }
        }
        (events, None)
    }

    #[test]
    fn a_frame_that_is_whole_leaves_nothing_behind() {
        let mut decoder = Decoder::new(false);
        let (events, violation) = decode(&mut decoder, &frame(true, Opcode::Text, b"Hello"));
        assert_eq!(events, [(Event::Message(MessageKind::Text), b"Hello".to_vec())]);
        assert_eq!(violation, None);
        assert_eq!(decoder.heap_bytes(), 0);
    }

    #[test]
    fn a_connection_owns_memory_only_while_something_is_partial() {
        let mut decoder = Decoder::new(false);
        let bytes = frame(true, Opcode::Binary, &[7; 300]);
        for (i, byte) in bytes.iter().enumerate() {
            let (events, _) = decode(&mut decoder, &[*byte]);
            assert_eq!(events.len(), usize::from(i + 1 == bytes.len()));
            assert_eq!(decoder.is_partial(), i + 1 < bytes.len());
            assert_eq!(decoder.heap_bytes() == 0, i + 1 == bytes.len());
        }
    }

    #[test]
    fn memory_follows_what_arrived_not_what_a_header_claims() {
        let mut decoder = Decoder::new(false);
        let limits = DecoderLimits { message_bytes_max: 16 << 20 };
        let mut scratch = Scratch::new();
        let bytes = frame(true, Opcode::Binary, &vec![0; 10_000_000]);
        for arrived in (0..100_000).step_by(1000) {
            decoder.decode(&bytes[arrived..arrived + 1000], &mut scratch, &limits).unwrap();
            assert!(decoder.heap_bytes() <= 2 * (arrived + 1000) + size_of::<Partial>(), "after {arrived}");
        }
    }

    #[test]
    fn the_last_frame_is_given_no_more_than_it_needs() {
        let mut decoder = Decoder::new(false);
        let bytes = frame(true, Opcode::Binary, &[0; 60_000]);
        let (events, _) = decode(&mut decoder, &bytes[..40_000]);
        assert!(events.is_empty());
        decode(&mut decoder, &bytes[40_000..60_000]);
        assert!(decoder.heap_bytes() <= 60_000 + size_of::<Partial>());
    }

    #[test]
    fn control_frames_between_fragments_are_delivered_at_once() {
        let mut decoder = Decoder::new(false);
        let input = [
            frame(false, Opcode::Text, b"Hel"),
            frame(true, Opcode::Ping, b"are you there"),
            frame(false, Opcode::Continuation, b"l"),
            frame(true, Opcode::Pong, b""),
            frame(true, Opcode::Continuation, b"o"),
        ]
        .concat();
        let expected = [
            (Event::Ping, b"are you there".to_vec()),
            (Event::Pong, b"".to_vec()),
            (Event::Message(MessageKind::Text), b"Hello".to_vec()),
        ];
        assert_eq!(decode(&mut decoder, &input), (expected.to_vec(), None));
        let mut events = Vec::new();
        for byte in &input {
            events.extend(decode(&mut decoder, &[*byte]).0);
        }
        assert_eq!(events, expected);
        assert_eq!(decoder.heap_bytes(), 0);
    }

    #[test]
    fn a_size_is_refused_at_the_header_before_any_payload() {
        let header = [0x82, 0xFF, 0, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4];
        let (events, violation) = decode(&mut Decoder::new(false), &header);
        assert!(events.is_empty());
        assert_eq!(violation.unwrap().kind, ViolationKind::TooBig);

        let fragments = [frame(false, Opcode::Binary, &[0; 65_536]), frame(false, Opcode::Continuation, &[0])].concat();
        let (_, violation) = decode(&mut Decoder::new(false), &fragments);
        assert_eq!(violation.unwrap().code, 1009);
    }

    #[test]
    fn text_fails_at_the_byte_that_makes_it_invalid() {
        let text = "κόσμε\u{10FFFF}".as_bytes();
        for good in 0..text.len() {
            let mut payload = text[..good].to_vec();
            payload.push(0xFF);
            payload.extend_from_slice(b"more");
            let bytes = frame(true, Opcode::Text, &payload);
            let mut decoder = Decoder::new(false);
            let until_bad = 6 + good;
            for byte in &bytes[..until_bad] {
                assert_eq!(decode(&mut decoder, &[*byte]), (vec![], None));
            }
            let (_, violation) = decode(&mut decoder, &bytes[until_bad..=until_bad]);
            assert_eq!(violation.map(|violation| violation.code), Some(1007), "after {good} good bytes");
            assert_eq!(decoder.heap_bytes(), 0);
        }
    }

    #[test]
    fn nothing_is_decoded_after_a_close_or_a_violation() {
        for last in [frame(true, Opcode::Close, &[0x03, 0xE8]), vec![0x83, 0x80, 0, 0, 0, 0]] {
            let mut decoder = Decoder::new(false);
            decode(&mut decoder, &last);
            assert_eq!(decode(&mut decoder, &frame(true, Opcode::Text, b"late")), (vec![], None));
            assert_eq!(decode(&mut decoder, &[0xFF; 100]), (vec![], None));
            assert_eq!(decoder.heap_bytes(), 0);
        }
    }

    #[test]
    fn a_compressed_message_is_bounded_while_it_inflates() {
        let mut deflater = Deflater::new(9);
        for (len, code) in [(65_536, None), (65_537, Some(1009)), (16 << 20, Some(1009))] {
            let mut compressed = Vec::new();
            deflater.deflate(&vec![b'a'; len], &mut compressed);
            let mut bytes = Vec::new();
            write_fragment(&mut bytes, true, Opcode::Text, true, &compressed, Some(KEY));
            let (events, violation) = decode(&mut Decoder::new(true), &bytes);
            assert_eq!(violation.map(|violation| violation.code), code, "{len} bytes");
            assert_eq!(events.len(), usize::from(code.is_none()));
        }
    }

    #[test]
    fn a_message_at_the_limit_may_grow_by_compression() {
        let noise: Vec<u8> = (0..65_536u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut compressed = Vec::new();
        Deflater::new(0).deflate(&noise, &mut compressed);
        assert!(compressed.len() > noise.len());
        let mut bytes = Vec::new();
        write_fragment(&mut bytes, true, Opcode::Binary, true, &compressed, Some(KEY));
        let (events, _) = decode(&mut Decoder::new(true), &bytes);
        assert_eq!(events, [(Event::Message(MessageKind::Binary), noise)]);
    }
}
