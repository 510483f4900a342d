//! RFC 6455 §5.5.1 and §7: the closing handshake.

use super::{decode, frame, refused_with};
use fanwire::websocket::Event;
use fanwire::websocket::frame::{FrameHeader, Opcode, write_close};

fn close(payload: &[u8]) -> (Vec<Event>, Option<u16>) {
    let (events, code) = decode(false, &frame(true, Opcode::Close, payload));
    (events.into_iter().map(|(event, _)| event).collect(), code)
}

fn with_code(code: u16, reason: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), reason].concat()
}

#[test]
fn section_5_5_1_a_close_without_a_body_has_no_code() {
    assert_eq!(close(b""), (vec![Event::Close { code: None }], None));
}

#[test]
fn section_5_5_1_a_close_of_one_byte_closes_with_1002() {
    assert_eq!(close(&[0x03]), (vec![], Some(1002)));
}

#[test]
fn section_5_5_1_a_reason_that_is_not_utf8_closes_with_1007() {
    for reason in [&b"\xFF"[..], b"half \xE2\x82", b"\xED\xA0\x80"] {
        assert_eq!(close(&with_code(1000, reason)), (vec![], Some(1007)), "{reason:?}");
    }
    assert_eq!(close(&with_code(1000, "gänzlich".as_bytes())), (vec![Event::Close { code: Some(1000) }], None));
}

#[test]
fn section_5_5_1_a_close_may_be_125_bytes_and_no_more() {
    assert_eq!(close(&with_code(1000, &[b'r'; 123])).0, [Event::Close { code: Some(1000) }]);
    assert_eq!(refused_with(&[0x88, 0x80 | 126, 0, 126]), Some(1002));
}

#[test]
fn section_5_5_1_nothing_after_a_close_counts() {
    let input = [
        frame(true, Opcode::Close, &with_code(1000, b"")),
        frame(true, Opcode::Text, b"late"),
        frame(true, Opcode::Ping, b""),
        vec![0xFF; 20],
    ]
    .concat();
    let (events, code) = decode(false, &input);
    assert_eq!((events.len(), code), (1, None));
}

#[test]
fn section_7_4_codes_that_may_be_sent_are_taken() {
    for code in (1000..=1003).chain(1007..=1014).chain([3000, 3999, 4000, 4999]) {
        assert_eq!(close(&with_code(code, b"")), (vec![Event::Close { code: Some(code) }], None));
    }
}

#[test]
fn section_7_4_codes_that_may_not_be_sent_close_with_1002() {
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        assert_eq!(close(&with_code(code, b"")), (vec![], Some(1002)), "{code}");
    }
}

#[test]
fn section_7_1_our_own_close_frame_is_one_that_we_accept() {
    for (code, reason) in [(1000, ""), (1001, "the gateway is going away"), (1013, "zu langsam: später wieder")] {
        let mut out = Vec::new();
        write_close(&mut out, code, reason);
        let header = FrameHeader::parse(&out).unwrap().unwrap();
        assert_eq!(header.opcode, Opcode::Close);
        let payload = &out[header.header_len..];
        assert_eq!(payload, with_code(code, reason.as_bytes()));
        assert_eq!(close(payload), (vec![Event::Close { code: Some(code) }], None));
    }
}
