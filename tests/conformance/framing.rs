//! RFC 6455 §5: frames, fragments, control frames.

use super::{binary, decode, frame, refused_with, text};
use fanwire::websocket::frame::{FrameHeader, Opcode, write_frame};
use fanwire::websocket::{Event, MessageKind};

/// A header with any first byte, an empty payload and a key.
fn header(first: u8) -> [u8; 6] {
    [first, 0x80, 1, 2, 3, 4]
}

#[test]
fn section_5_1_a_frame_that_is_not_masked_closes_with_1002() {
    for opcode in [Opcode::Text, Opcode::Binary, Opcode::Close, Opcode::Ping, Opcode::Pong] {
        let mut unmasked = Vec::new();
        write_frame(&mut unmasked, opcode, b"");
        assert_eq!(refused_with(&unmasked), Some(1002), "{opcode:?}");
    }
}

#[test]
fn section_5_1_what_the_server_sends_is_not_masked() {
    for payload in [vec![], vec![1; 125], vec![1; 126], vec![1; 65_536]] {
        let mut out = Vec::new();
        write_frame(&mut out, Opcode::Binary, &payload);
        let header = FrameHeader::parse(&out).unwrap().unwrap();
        assert!(header.fin && !header.masked && !header.rsv1);
        assert_eq!(&out[header.header_len..], payload);
    }
}

#[test]
fn section_5_2_reserved_bits_without_an_extension_close_with_1002() {
    for bits in 1..8 {
        for opcode in [0x1, 0x2, 0x8, 0x9, 0xA] {
            assert_eq!(refused_with(&header(0x80 | bits << 4 | opcode)), Some(1002), "bits {bits}, opcode {opcode}");
        }
    }
}

#[test]
fn section_5_2_reserved_opcodes_close_with_1002() {
    for opcode in (0x3..=0x7).chain(0xB..=0xF) {
        assert_eq!(refused_with(&header(0x80 | opcode)), Some(1002), "opcode {opcode}");
        // At the first byte: nothing that follows can make it good.
        assert_eq!(refused_with(&[0x80 | opcode]), Some(1002), "opcode {opcode}");
    }
}

#[test]
fn section_5_2_every_length_form_carries_its_payload() {
    for len in [0, 1, 125, 126, 127, 128, 65_535, 65_536] {
        let payload = vec![0xFE; len];
        assert_eq!(decode(false, &frame(true, Opcode::Binary, &payload)), (vec![binary(&payload)], None), "{len}");
    }
}

#[test]
fn section_5_2_a_length_not_in_its_shortest_form_closes_with_1002() {
    assert_eq!(refused_with(&[0x82, 0xFE, 0, 125]), Some(1002));
    assert_eq!(refused_with(&[0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]), Some(1002));
}

#[test]
fn section_5_2_a_length_with_its_highest_bit_set_closes_with_1002() {
    assert_eq!(refused_with(&[0x82, 0xFF, 0x80, 0, 0, 0, 0, 1, 0, 0]), Some(1002));
}

#[test]
fn section_5_4_fragments_are_joined_in_order() {
    let input = [
        frame(false, Opcode::Text, b"frag"),
        frame(false, Opcode::Continuation, b""),
        frame(false, Opcode::Continuation, b"men"),
        frame(true, Opcode::Continuation, b"ted"),
        frame(false, Opcode::Binary, b""),
        frame(true, Opcode::Continuation, b""),
    ]
    .concat();
    assert_eq!(decode(false, &input), (vec![text("fragmented"), binary(b"")], None));
}

#[test]
fn section_5_4_a_continuation_of_nothing_closes_with_1002() {
    for fin in [false, true] {
        assert_eq!(refused_with(&frame(fin, Opcode::Continuation, b"orphan")), Some(1002));
        let after_a_whole_message =
            [frame(true, Opcode::Text, b"whole"), frame(fin, Opcode::Continuation, b"")].concat();
        assert_eq!(decode(false, &after_a_whole_message), (vec![text("whole")], Some(1002)));
    }
}

#[test]
fn section_5_4_a_message_inside_another_closes_with_1002() {
    for opcode in [Opcode::Text, Opcode::Binary] {
        let input = [frame(false, Opcode::Text, b"one"), frame(true, opcode, b"two")].concat();
        assert_eq!(decode(false, &input), (vec![], Some(1002)));
    }
}

#[test]
fn section_5_4_control_frames_may_stand_between_fragments() {
    let input = [
        frame(false, Opcode::Text, b"a"),
        frame(true, Opcode::Ping, b"1"),
        frame(true, Opcode::Pong, b"2"),
        frame(true, Opcode::Continuation, b"b"),
    ]
    .concat();
    let expected = vec![(Event::Ping, b"1".to_vec()), (Event::Pong, b"2".to_vec()), text("ab")];
    assert_eq!(decode(false, &input), (expected, None));
}

#[test]
fn section_5_4_a_close_between_fragments_ends_the_message_unfinished() {
    let input = [
        frame(false, Opcode::Text, b"a"),
        frame(true, Opcode::Close, &[0x03, 0xE8]),
        frame(true, Opcode::Continuation, b"b"),
    ]
    .concat();
    assert_eq!(decode(false, &input).0, [(Event::Close { code: Some(1000) }, vec![0x03, 0xE8])]);
}

#[test]
fn section_5_4_a_message_over_the_limit_closes_with_1009_whatever_its_fragments() {
    let half = vec![0; 40_000];
    let input = [frame(false, Opcode::Binary, &half), frame(true, Opcode::Continuation, &half)].concat();
    assert_eq!(refused_with(&input), Some(1009));
    assert_eq!(refused_with(&frame(true, Opcode::Binary, &[0; 65_537])), Some(1009));
    assert_eq!(refused_with(&frame(true, Opcode::Binary, &[0; 65_536])), None);
}

#[test]
fn section_5_5_a_fragmented_control_frame_closes_with_1002() {
    for opcode in [0x8, 0x9, 0xA] {
        assert_eq!(refused_with(&header(opcode)), Some(1002));
    }
}

#[test]
fn section_5_5_a_control_frame_over_125_bytes_closes_with_1002() {
    for first in [0x88, 0x89, 0x8A] {
        assert_eq!(refused_with(&[first, 0x80 | 126, 0, 126]), Some(1002));
        assert_eq!(refused_with(&[first, 0x80 | 127]), Some(1002));
    }
}

#[test]
fn section_5_5_2_a_ping_hands_over_what_its_pong_must_repeat() {
    for len in [0, 1, 125] {
        let payload = vec![0xA5; len];
        assert_eq!(decode(false, &frame(true, Opcode::Ping, &payload)), (vec![(Event::Ping, payload)], None));
    }
}

#[test]
fn section_5_5_3_an_unasked_pong_is_no_error() {
    assert_eq!(decode(false, &frame(true, Opcode::Pong, b"hi")), (vec![(Event::Pong, b"hi".to_vec())], None));
}

#[test]
fn section_5_6_binary_may_be_any_bytes() {
    let all: Vec<u8> = (0..=255).collect();
    assert_eq!(decode(false, &frame(true, Opcode::Binary, &all)), (vec![binary(&all)], None));
}

#[test]
fn section_5_7_the_examples_decode_and_encode_as_printed() {
    // A single-frame masked text message, "Hello".
    let masked = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(decode(false, &masked), (vec![text("Hello")], None));
    // A masked ping response with "Hello".
    let pong = [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(decode(false, &pong), (vec![(Event::Pong, b"Hello".to_vec())], None));
    // A single-frame unmasked text message, a ping, 256 and 65,536 bytes of binary data.
    let written = |opcode, payload: &[u8]| {
        let mut out = Vec::new();
        write_frame(&mut out, opcode, payload);
        out
    };
    assert_eq!(written(Opcode::Text, b"Hello"), [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
    assert_eq!(written(Opcode::Ping, b"Hello"), [0x89, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
    assert_eq!(written(Opcode::Binary, &[0; 256])[..4], [0x82, 0x7E, 0x01, 0x00]);
    assert_eq!(written(Opcode::Binary, &[0; 65_536])[..10], [0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0]);
    // The unmasked fragments "Hel" and "lo", masked as a client must.
    let input = [frame(false, Opcode::Text, b"Hel"), frame(true, Opcode::Continuation, b"lo")].concat();
    assert_eq!(decode(false, &input).0, [(Event::Message(MessageKind::Text), b"Hello".to_vec())]);
}
