//! The WebSocket layer against itself (cut differently, there and back) and against an implementation that is not ours.

use super::bodies;
use fanwire::websocket::frame::{Opcode, close_payload, write_close, write_fragment, write_frame};
use fanwire::websocket::{Decoded, Decoder, DecoderLimits, Deflater, Event, Inflater, MessageKind, Scratch};
use proptest::collection::vec;
use proptest::prelude::*;
use std::io::{Cursor, Read, Write};
use tungstenite::Message;
use tungstenite::protocol::{Role, WebSocket};

const LIMITS: DecoderLimits = DecoderLimits { message_bytes_max: 4096 };

/// One message as a client may send it.
#[derive(Clone, Debug)]
struct Sent {
    kind: MessageKind,
    payload: Vec<u8>,
    compressed: bool,
    /// Where it is cut into frames, in 65,536ths of what travels.
    cuts: Vec<u16>,
    /// Control frames, each after the frame of that number if there is one.
    controls: Vec<(usize, Opcode, Vec<u8>)>,
    key: [u8; 4],
}

fn sent(compressed: impl Strategy<Value = bool>) -> impl Strategy<Value = Sent> {
    let text = "\\PC{0,300}".prop_map(|text| (MessageKind::Text, text.into_bytes()));
    let repetitive =
        ("[a-c ]{1,8}", 0..200usize).prop_map(|(word, n)| (MessageKind::Text, word.repeat(n).into_bytes()));
    let binary = vec(any::<u8>(), 0..1500).prop_map(|bytes| (MessageKind::Binary, bytes));
    let control = (0..6usize, prop_oneof![Just(Opcode::Ping), Just(Opcode::Pong)], vec(any::<u8>(), 0..=125));
    let payload = prop_oneof![text, repetitive, binary];
    (payload, compressed, vec(any::<u16>(), 0..5), vec(control, 0..3), any::<[u8; 4]>()).prop_map(
        |((kind, payload), compressed, mut cuts, controls, key)| {
            cuts.sort();
            Sent { kind, payload, compressed, cuts, controls, key }
        },
    )
}

/// Its bytes, and what must come of them.
fn on_the_wire(messages: &[Sent]) -> (Vec<u8>, Vec<(Event, Vec<u8>)>) {
    let (mut wire, mut expected, mut deflater) = (Vec::new(), Vec::new(), Deflater::new(6));
    for message in messages {
        let mut travels = message.payload.clone();
        if message.compressed {
            travels.clear();
            deflater.deflate(&message.payload, &mut travels);
        }
        let ends = message.cuts.iter().map(|cut| usize::from(*cut) * travels.len() / 65_536).chain([travels.len()]);
        let frames_last = message.cuts.len();
        let mut start = 0;
        for (i, end) in ends.enumerate() {
            let opcode = if i == 0 { message.kind.opcode() } else { Opcode::Continuation };
            let rsv1 = i == 0 && message.compressed;
            write_fragment(&mut wire, i == frames_last, opcode, rsv1, &travels[start..end], Some(message.key));
            start = end;
            if i == frames_last {
                expected.push((Event::Message(message.kind), message.payload.clone()));
            }
            for (_, opcode, payload) in message.controls.iter().filter(|(after, ..)| *after == i) {
                write_fragment(&mut wire, true, *opcode, false, payload, Some(message.key));
                let event = if *opcode == Opcode::Ping { Event::Ping } else { Event::Pong };
                expected.push((event, payload.clone()));
            }
        }
    }
    (wire, expected)
}

/// Decodes `wire`, cut at the given places (in 65,536ths, ascending).
fn decode_cut(deflate: bool, wire: &[u8], cuts: &[u16]) -> bodies::Outcome {
    let (mut decoder, mut scratch, mut events) = (Decoder::new(deflate), Scratch::new(), Vec::new());
    let mut start = 0;
    for end in cuts.iter().map(|cut| usize::from(*cut) * wire.len() / 65_536).chain([wire.len()]) {
        let mut rest = &wire[start..end];
        start = end;
        while !rest.is_empty() {
            match decoder.decode(rest, &mut scratch, &LIMITS) {
                Err(violation) => return (events, Some(violation)),
                Ok(Decoded { consumed, event, .. }) => {
                    rest = &rest[consumed..];
                    events.extend(event.map(|event| (event, scratch.payload().to_vec())));
                }
            }
        }
    }
    if events.last().is_some_and(|(event, _)| !matches!(event, Event::Close { .. })) {
        // Everything sent was whole: nothing may be held on to.
        assert_eq!(decoder.heap_bytes(), 0);
    }
    (events, None)
}

/// Reads from a buffer, writes into another.
struct Pipe {
    input: Cursor<Vec<u8>>,
    output: Vec<u8>,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.input.read(buffer)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.output.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn tungstenite(role: Role, input: Vec<u8>) -> WebSocket<Pipe> {
    WebSocket::from_raw_socket(Pipe { input: Cursor::new(input), output: Vec::new() }, role, None)
}

fn as_event(message: Message) -> (Event, Vec<u8>) {
    let event = match &message {
        Message::Text(_) => Event::Message(MessageKind::Text),
        Message::Binary(_) => Event::Message(MessageKind::Binary),
        Message::Ping(_) => Event::Ping,
        Message::Pong(_) => Event::Pong,
        Message::Close(close) => Event::Close { code: close.as_ref().map(|close| close.code.into()) },
        Message::Frame(_) => unreachable!("never read"),
    };
    (event, message.into_data().to_vec())
}

proptest! {
    #[test]
    fn a_stream_decodes_alike_however_it_is_cut(
        messages in vec(sent(any::<bool>()), 1..5),
        mut cuts in vec(any::<u16>(), 0..12),
    ) {
        cuts.sort();
        let (wire, expected) = on_the_wire(&messages);
        prop_assert_eq!(&decode_cut(true, &wire, &[]), &(expected.clone(), None));
        prop_assert_eq!(&decode_cut(true, &wire, &cuts), &(expected.clone(), None));
        prop_assert_eq!(&bodies::decode(true, &wire, 1), &(expected, None));
    }

    #[test]
    fn a_damaged_stream_is_refused_alike_however_it_is_cut(
        messages in vec(sent(any::<bool>()), 1..4),
        damages in vec((any::<u16>(), any::<u8>()), 1..3),
        deflate in any::<bool>(),
        piece in 2..40usize,
    ) {
        let (mut wire, _) = on_the_wire(&messages);
        for (at, byte) in damages {
            let at = usize::from(at) * wire.len() / 65_536;
            wire[at] = byte;
        }
        let whole = bodies::decode(deflate, &wire, usize::MAX);
        prop_assert_eq!(&bodies::decode(deflate, &wire, 1), &whole);
        prop_assert_eq!(&bodies::decode(deflate, &wire, piece), &whole);
    }

    #[test]
    fn another_implementation_reads_the_same_from_a_client(messages in vec(sent(Just(false)), 1..5)) {
        let (wire, expected) = on_the_wire(&messages);
        let mut peer = tungstenite(Role::Server, wire);
        for event in expected {
            prop_assert_eq!(as_event(peer.read().unwrap()), event);
        }
        prop_assert!(peer.read().is_err(), "nothing more");
    }

    #[test]
    fn another_implementations_client_is_understood(messages in vec(sent(Just(false)), 1..5)) {
        let mut peer = tungstenite(Role::Client, vec![]);
        let mut expected = Vec::new();
        for message in messages {
            peer.write(match message.kind {
                MessageKind::Text => Message::text(String::from_utf8(message.payload.clone()).unwrap()),
                MessageKind::Binary => Message::binary(message.payload.clone()),
            }).unwrap();
            expected.push((Event::Message(message.kind), message.payload));
            for (_, opcode, payload) in message.controls.into_iter().filter(|(_, opcode, _)| *opcode == Opcode::Ping) {
                debug_assert_eq!(opcode, Opcode::Ping);
                peer.write(Message::Ping(payload.clone().into())).unwrap();
                expected.push((Event::Ping, payload));
            }
        }
        peer.close(None).unwrap();
        expected.push((Event::Close { code: None }, vec![]));
        prop_assert_eq!(decode_cut(false, &peer.get_ref().output, &[]), (expected, None));
    }

    #[test]
    fn another_implementations_client_understands_us(
        messages in vec(sent(Just(false)), 1..5),
        code in prop_oneof![Just(1000u16), Just(1001), Just(1008), Just(1013), 3000..5000u16],
        reason in "\\PC{0,80}",
    ) {
        let (mut wire, mut expected) = (Vec::new(), Vec::new());
        for message in messages {
            write_frame(&mut wire, message.kind.opcode(), &message.payload);
            expected.push((Event::Message(message.kind), message.payload));
            for (_, opcode, payload) in message.controls {
                write_frame(&mut wire, opcode, &payload);
                expected.push((if opcode == Opcode::Ping { Event::Ping } else { Event::Pong }, payload));
            }
        }
        write_close(&mut wire, code, &reason);
        let mut peer = tungstenite(Role::Client, wire);
        for event in expected {
            prop_assert_eq!(as_event(peer.read().unwrap()), event);
        }
        let Message::Close(Some(close)) = peer.read().unwrap() else { panic!("no close frame") };
        prop_assert_eq!(u16::from(close.code), code);
        prop_assert_eq!(&close_payload(code, &reason)[2..], close.reason.as_bytes());
        prop_assert!(reason.starts_with(close.reason.as_str()));
    }

    #[test]
    fn what_was_compressed_comes_back(
        payload in prop_oneof![vec(any::<u8>(), 0..5000), vec(0..3u8, 0..5000)],
        level in 0..=9u32,
        held in vec(any::<u8>(), 0..20),
    ) {
        let (mut compressed, mut inflated) = (held.clone(), held.clone());
        Deflater::new(level).deflate(&payload, &mut compressed);
        prop_assert!(compressed.starts_with(&held));
        let mut inflater = Inflater::new();
        inflater.inflate(&compressed[held.len()..], &mut inflated, payload.len()).unwrap();
        prop_assert_eq!(&inflated[held.len()..], &payload);
        if !payload.is_empty() {
            prop_assert!(inflater.inflate(&compressed[held.len()..], &mut vec![], payload.len() - 1).is_err());
        }
    }

    #[test]
    fn inflating_anything_is_bounded(noise in vec(any::<u8>(), 0..600), payload_bytes_max in 0..2000usize) {
        let mut out = Vec::new();
        let result = Inflater::new().inflate(&noise, &mut out, payload_bytes_max);
        prop_assert!(out.capacity() <= payload_bytes_max.max(255) + 1);
        prop_assert!(result.is_err() || out.len() <= payload_bytes_max);
    }
}
