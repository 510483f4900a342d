//! RFC 7692: permessage-deflate, without context takeover.

use super::{binary, compressed, decode, frame, text};
use fanwire::websocket::frame::{FrameHeader, Opcode, write_frame_with};
use fanwire::websocket::{Deflater, Event};

/// §7.2.3.1: "Hello" in one block with fixed codes.
const HELLO: [u8; 7] = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];

#[test]
fn section_5_rsv1_without_the_extension_closes_with_1002() {
    assert_eq!(decode(false, &compressed(true, Opcode::Text, &HELLO)), (vec![], Some(1002)));
}

#[test]
fn section_6_rsv1_belongs_to_the_first_frame_of_a_data_message_alone() {
    for opcode in [Opcode::Ping, Opcode::Pong, Opcode::Close] {
        assert_eq!(decode(true, &compressed(true, opcode, b"")), (vec![], Some(1002)), "{opcode:?}");
    }
    let input = [compressed(false, Opcode::Text, &HELLO[..3]), compressed(true, Opcode::Continuation, &HELLO[3..])];
    assert_eq!(decode(true, &input.concat()), (vec![], Some(1002)));
    let input = [frame(false, Opcode::Text, b"Hel"), compressed(true, Opcode::Continuation, b"lo")];
    assert_eq!(decode(true, &input.concat()), (vec![], Some(1002)));
}

#[test]
fn section_6_the_other_reserved_bits_stay_reserved() {
    for first in [0x91, 0xA1, 0xD1, 0xE1, 0xF1] {
        assert_eq!(decode(true, &[first, 0x80, 0, 0, 0, 0]), (vec![], Some(1002)));
    }
}

#[test]
fn section_6_messages_may_be_compressed_or_not_one_by_one() {
    let input = [
        frame(true, Opcode::Text, b"plain"),
        compressed(true, Opcode::Text, &HELLO),
        frame(true, Opcode::Binary, b"plain too"),
    ]
    .concat();
    assert_eq!(decode(true, &input), (vec![text("plain"), text("Hello"), binary(b"plain too")], None));
}

#[test]
fn section_6_control_frames_stand_uncompressed_between_compressed_fragments() {
    let input = [
        compressed(false, Opcode::Text, &HELLO[..3]),
        frame(true, Opcode::Ping, b"!"),
        frame(true, Opcode::Continuation, &HELLO[3..]),
    ]
    .concat();
    assert_eq!(decode(true, &input), (vec![(Event::Ping, b"!".to_vec()), text("Hello")], None));
}

#[test]
fn section_7_2_3_1_a_message_in_one_block() {
    // As printed, but masked: c1 07 f2 48 cd c9 c9 07 00.
    let mut sent = Vec::new();
    write_frame_with(&mut sent, Opcode::Text, true, &HELLO);
    assert_eq!(sent, [0xc1, 0x07, 0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]);
    assert_eq!(decode(true, &compressed(true, Opcode::Text, &HELLO)), (vec![text("Hello")], None));
}

#[test]
fn section_7_2_3_1_a_message_in_one_block_and_two_fragments() {
    let input = [compressed(false, Opcode::Text, &HELLO[..3]), frame(true, Opcode::Continuation, &HELLO[3..])];
    assert_eq!(decode(true, &input.concat()), (vec![text("Hello")], None));
}

#[test]
fn section_7_2_3_2_the_window_is_not_shared_between_messages() {
    // "Hello" by reference to the message before it, which the answer to the handshake forbids the client.
    let shared = [0xf2, 0x00, 0x11, 0x00, 0x00];
    let input = [compressed(true, Opcode::Text, &HELLO), compressed(true, Opcode::Text, &shared)];
    assert_eq!(decode(true, &input.concat()), (vec![text("Hello")], Some(1002)));
}

#[test]
fn section_7_2_3_3_a_block_without_compression() {
    let stored = [0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00];
    assert_eq!(decode(true, &compressed(true, Opcode::Text, &stored)), (vec![text("Hello")], None));
}

#[test]
fn section_7_2_3_4_a_final_block() {
    let last = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00];
    assert_eq!(decode(true, &compressed(true, Opcode::Text, &last)), (vec![text("Hello")], None));
    // Some leave out the byte that starts the next block.
    assert_eq!(decode(true, &compressed(true, Opcode::Text, &last[..7])), (vec![text("Hello")], None));
}

#[test]
fn section_7_2_3_5_two_blocks_in_one_message() {
    let two = [0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00];
    assert_eq!(decode(true, &compressed(true, Opcode::Text, &two)), (vec![text("Hello")], None));
}

#[test]
fn section_7_2_3_6_an_empty_message() {
    assert_eq!(decode(true, &compressed(true, Opcode::Text, &[0x00])), (vec![text("")], None));
    let mut out = Vec::new();
    Deflater::new(9).deflate(b"", &mut out);
    assert_eq!(out, [0x00]);
}

#[test]
fn section_7_2_1_what_we_send_ends_without_the_empty_blocks_lengths() {
    let mut deflater = Deflater::new(9);
    for payload in [&b"Hello"[..], &[b'x'; 5000], &[0, 1, 2, 3]] {
        let mut out = Vec::new();
        deflater.deflate(payload, &mut out);
        assert!(!out.ends_with(&[0x00, 0x00, 0xff, 0xff]));
        assert_eq!(decode(true, &compressed(true, Opcode::Binary, &out)), (vec![binary(payload)], None));
    }
}

#[test]
fn section_7_2_1_what_we_send_has_rsv1_exactly_where_it_is_compressed() {
    let mut deflater = Deflater::new(9);
    for (payload, rsv1) in [(&[b'x'; 5000][..], true), (b"tiny", false)] {
        let mut out = Vec::new();
        deflater.write_frame(&mut out, Opcode::Text, payload);
        let header = FrameHeader::parse(&out).unwrap().unwrap();
        assert_eq!(header.rsv1, rsv1);
        assert_eq!(header.header_len + header.payload_len as usize, out.len());
    }
}

#[test]
fn section_7_2_2_what_is_not_deflate_or_cut_off_closes_with_1002() {
    for bad in [&[0x07][..], b"not compressed at all", &HELLO[..4], &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48]] {
        assert_eq!(decode(true, &compressed(true, Opcode::Binary, bad)), (vec![], Some(1002)), "{bad:?}");
    }
}

#[test]
fn section_7_2_2_inflated_text_must_be_utf8_too() {
    let mut out = Vec::new();
    Deflater::new(9).deflate(b"good \xED\xA0\x80", &mut out);
    assert_eq!(decode(true, &compressed(true, Opcode::Text, &out)), (vec![], Some(1007)));
    assert_eq!(decode(true, &compressed(true, Opcode::Binary, &out)).1, None);
}

#[test]
fn section_8_a_message_that_inflates_over_the_limit_closes_with_1009() {
    let mut deflater = Deflater::new(9);
    for (len, code) in [(65_536, None), (65_537, Some(1009)), (1 << 24, Some(1009))] {
        let mut out = Vec::new();
        deflater.deflate(&vec![0; len], &mut out);
        assert_eq!(decode(true, &compressed(true, Opcode::Binary, &out)).1, code, "{len} bytes");
        let (first, second) = out.split_at(out.len() / 2);
        let cut = [compressed(false, Opcode::Binary, first), frame(true, Opcode::Continuation, second)].concat();
        assert_eq!(decode(true, &cut).1, code, "{len} bytes in two fragments");
    }
}
