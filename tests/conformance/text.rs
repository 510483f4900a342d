//! RFC 6455 §8.1: text is UTF-8, and is refused at the byte that shows it isn't.

use super::{LIMITS, decode, frame, refused_with, text};
use fanwire::websocket::frame::Opcode;
use fanwire::websocket::{Decoder, Scratch};

const GOOD: [&str; 9] =
    ["", "κόσμε", "\u{0}", "\u{7FF}", "\u{800}", "\u{D7FF}\u{E000}", "\u{FFFF}", "\u{10000}", "\u{10FFFF}"];

const BAD: [&[u8]; 14] = [
    b"\x80",                 // A continuation byte alone.
    b"\xBF",                 //
    b"\xC0\x80",             // Longer than needed.
    b"\xC1\xBF",             //
    b"\xE0\x80\x80",         //
    b"\xE0\x9F\xBF",         //
    b"\xF0\x80\x80\x80",     //
    b"\xF0\x8F\xBF\xBF",     //
    b"\xED\xA0\x80",         // Surrogates.
    b"\xED\xBF\xBF",         //
    b"\xF4\x90\x80\x80",     // Above U+10FFFF.
    b"\xF8\x88\x80\x80\x80", // Five bytes.
    b"\xFE",                 // Never.
    b"\xFF",                 //
];

#[test]
fn section_8_1_every_character_passes_also_cut_into_bytes() {
    for good in GOOD {
        assert_eq!(decode(false, &frame(true, Opcode::Text, good.as_bytes())), (vec![text(good)], None));
        let mut fragments = vec![frame(false, Opcode::Text, b"")];
        fragments.extend(good.as_bytes().iter().map(|byte| frame(false, Opcode::Continuation, &[*byte])));
        fragments.push(frame(true, Opcode::Continuation, b""));
        assert_eq!(decode(false, &fragments.concat()), (vec![text(good)], None));
    }
}

#[test]
fn section_8_1_text_that_is_not_utf8_closes_with_1007() {
    for bad in BAD {
        for payload in [bad.to_vec(), [b"good ", bad].concat(), ["κόσμε".as_bytes(), bad, b" more"].concat()] {
            assert_eq!(refused_with(&frame(true, Opcode::Text, &payload)), Some(1007), "{payload:?}");
            let (first, second) = payload.split_at(payload.len() / 2);
            let cut = [frame(false, Opcode::Text, first), frame(true, Opcode::Continuation, second)].concat();
            assert_eq!(refused_with(&cut), Some(1007), "{payload:?} in two fragments");
        }
    }
}

#[test]
fn section_8_1_a_character_cut_off_by_the_end_closes_with_1007() {
    for cut in [&b"\xC2"[..], b"\xE2\x82", b"\xF0\x9F\x98"] {
        assert_eq!(refused_with(&frame(true, Opcode::Text, cut)), Some(1007));
        let open = frame(false, Opcode::Text, cut);
        assert_eq!(refused_with(&open), None);
        assert_eq!(refused_with(&[open, frame(true, Opcode::Continuation, b"")].concat()), Some(1007));
    }
}

#[test]
fn section_8_1_bad_text_is_refused_before_the_frame_or_the_message_is_whole() {
    // U+110000 in Autobahn's case 6.4: the second byte already decides.
    let payload = "κόσμε".as_bytes().iter().chain(b"\xF4\x90\x80\x80edited").copied().collect::<Vec<_>>();
    let good = "κόσμε".len() + 1;
    for bytes in [frame(false, Opcode::Text, &payload), frame(true, Opcode::Text, &payload)] {
        let (mut decoder, mut scratch) = (Decoder::new(false), Scratch::new());
        let bad_at = 6 + good;
        for byte in &bytes[..bad_at] {
            assert!(decoder.decode(&[*byte], &mut scratch, &LIMITS).unwrap().event.is_none());
        }
        assert_eq!(decoder.decode(&bytes[bad_at..=bad_at], &mut scratch, &LIMITS).unwrap_err().code, 1007);
    }
}
