//! Frames against RFC 6455: each closes its own connection with its own code, and nobody else notices.

use crate::client::{BINARY, CLOSE, CONTINUATION, Client, PING, TEXT, frame, tungstenite};
use crate::gateway::{Gateway, wait_until};
use tungstenite::Message;

#[test]
fn bad_frames_close_their_connection_with_the_right_code_and_nothing_else() {
    let gateway = Gateway::start(&[]);
    let mut bystander = Client::subscriber(&gateway, &["t"]);
    let unmasked = [&[0x81, 4][..], b"ping"].concat();
    let text = |payload: &[u8]| frame(0x80 | TEXT, payload);
    let cases: Vec<(&str, u16, Vec<u8>)> = vec![
        ("unmasked", 1002, unmasked),
        ("RSV1 without an extension", 1002, frame(0xc0 | TEXT, b"x")),
        ("RSV2", 1002, frame(0xa0 | TEXT, b"x")),
        ("RSV3", 1002, frame(0x90 | TEXT, b"x")),
        ("reserved data opcode", 1002, frame(0x83, b"x")),
        ("reserved control opcode", 1002, frame(0x8b, b"x")),
        ("fragmented control frame", 1002, frame(PING, b"x")),
        ("control frame over 125 bytes", 1002, frame(0x80 | PING, &[b'x'; 126])),
        ("continuation of nothing", 1002, frame(0x80 | CONTINUATION, b"x")),
        ("new message inside one", 1002, [frame(TEXT, b"a"), text(b"b")].concat()),
        ("64-bit length with its top bit", 1002, vec![0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]),
        ("close with one byte", 1002, frame(0x80 | CLOSE, b"\x03")),
        ("close with a code nobody may send", 1002, frame(0x80 | CLOSE, &1005u16.to_be_bytes())),
        ("text that is not UTF-8", 1007, text(b"\xce\xba\xff")),
        ("text that ends within a character", 1007, text(b"\xce")),
        ("close reason that is not UTF-8", 1007, frame(0x80 | CLOSE, b"\x03\xe8\xff")),
        ("message over message_bytes_max", 1009, vec![0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4]),
        (
            "fragments over message_bytes_max",
            1009,
            [frame(TEXT, &[b'x'; 60_000]), frame(0x80, &[b'x'; 6_000])].concat(),
        ),
    ];
    let mut expected = [0.0; 3];
    for (what, code, bytes) in &cases {
        let mut client = Client::gpush(&gateway);
        client.write(bytes);
        let (got, _, texts) = client.closed();
        assert_eq!((got, texts), (*code, vec![]), "{what}");
        expected[match code {
            1002 => 0,
            1007 => 1,
            _ => 2,
        }] += 1.0;
    }
    gateway.push("t", "nobody else noticed");
    assert_eq!(bystander.text(), "nobody else noticed");
    wait_until("each is counted by its reason", || {
        let metrics = gateway.metrics();
        ["protocol", "utf8", "too_big"].map(|reason| metrics.closes(reason)) == expected
    });
    wait_until("every slot but the bystander's is free", || gateway.metrics().connections() == 1.0);
}

#[test]
fn invalid_utf8_is_refused_before_the_message_ends() {
    let gateway = Gateway::start(&[]);
    let mut client = Client::gpush(&gateway);
    client.write(&frame(TEXT, b"\xc0"));
    assert_eq!(client.closed().0, 1007);
}

#[test]
fn fragments_with_control_frames_between_them_are_one_message() {
    let gateway = Gateway::start(&[]);
    let mut client = Client::gpush(&gateway);
    client.write(&frame(TEXT, b"p"));
    client.write(&frame(0x80 | PING, b"between"));
    client.write(&frame(CONTINUATION, b"in"));
    client.write(&frame(0x80 | CONTINUATION, b"g"));
    assert_eq!(client.frame().payload, b"between");
    assert_eq!(client.text(), "pong");
}

#[test]
fn a_close_is_echoed_and_then_the_connection_ends() {
    let gateway = Gateway::start(&[]);
    for payload in [&[][..], b"\x03\xe8", b"\x03\xe9gone", b"\x0f\xa0app"] {
        let mut client = Client::gpush(&gateway);
        client.send(CLOSE, payload);
        let frames = client.ends();
        assert_eq!(frames.len(), 1, "{frames:?}");
        assert_eq!(frames[0].first, 0x88);
        assert!(frames[0].payload.is_empty() || frames[0].payload[..2] == payload[..2], "{frames:?}");
    }
    wait_until("they count as closed by the client", || gateway.metrics().closes("peer") == 4.0);
}

#[test]
fn echo_sends_back_what_it_gets_to_a_client_that_we_did_not_write() {
    let gateway = Gateway::start(&[]);
    let mut socket = tungstenite(gateway.subscribers, "/echo");
    for message in [Message::text("hello"), Message::binary(vec![0u8; 200_000]), Message::text("")] {
        socket.send(message.clone()).unwrap();
        assert!(socket.read().unwrap() == message);
    }
    socket.send(Message::Ping("x".into())).unwrap();
    assert_eq!(socket.read().unwrap(), Message::Pong("x".into()));
}

#[test]
fn a_compressed_bomb_is_refused_as_too_big() {
    use std::io::Write as _;
    let gateway = Gateway::start(&[("websocket.deflate", "true")]);
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![b' '; 8 << 20]).unwrap();
    let bomb = encoder.finish().unwrap();
    assert!(bomb.len() < 65_536, "{} bytes must pass for a small message", bomb.len());
    let mut client = Client::gpush_deflated(&gateway);
    client.write(&frame(0xc0 | BINARY, &bomb));
    assert_eq!(client.closed().0, 1009);
    assert_eq!(gateway.metrics().closes("too_big"), 1.0);
}

#[test]
fn a_compressed_message_that_is_not_deflate_closes_with_1007_or_1002() {
    let gateway = Gateway::start(&[("websocket.deflate", "true")]);
    let mut client = Client::gpush_deflated(&gateway);
    client.write(&frame(0xc0 | TEXT, b"\xff\xff\xff\xff"));
    assert!(matches!(client.closed().0, 1002 | 1007));
}
