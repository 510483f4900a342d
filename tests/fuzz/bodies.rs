//! What each fuzz target holds the code to, whatever the bytes. Shared by the targets and by the test that replays the corpus.

use fanwire::dialect::{Centrifugo, Command, Dialect, Gpush, Session};
use fanwire::websocket::handshake::{parse_head, parse_response, upgrade, write_101};
use fanwire::websocket::{Decoded, Decoder, DecoderLimits, Event, MessageKind, Scratch, Violation};

/// A request head, whole or in pieces, becomes a 101 or a rejection, and both are HTTP.
pub fn handshake(bytes: &[u8]) {
    const HEAD_BYTES_MAX: usize = 1024;
    let mut out = Vec::new();
    match parse_head(bytes, HEAD_BYTES_MAX) {
        Ok(None) => assert!(bytes.len() < HEAD_BYTES_MAX),
        Ok(Some((head, len))) => {
            assert!(len <= bytes.len() && len <= HEAD_BYTES_MAX);
            // What follows the head does not change it.
            let (alone, alone_len) = parse_head(&bytes[..len], HEAD_BYTES_MAX).expect("the same").expect("the same");
            assert_eq!((alone_len, alone.headers), (len, head.headers.clone()));
            match upgrade(&head) {
                Ok(upgrade) => write_101(&mut out, &upgrade, upgrade.subprotocols().next(), true),
                Err(rejection) => rejection.write(&mut out),
            }
        }
        Err(rejection) => rejection.write(&mut out),
    }
    if !out.is_empty() {
        let (status, len, _) = parse_response(&out).expect("we write HTTP").expect("we write whole heads");
        assert!(status == 101 || (400..600).contains(&status));
        assert!((status == 101) == (len == out.len()), "a body exactly with a rejection");
    }
    // The load client reads what any server sends.
    let _ = parse_response(bytes);
}

/// A stream decodes alike however it is cut, and holds no more memory than its bytes allow.
///
/// The first byte says whether compression was agreed on, the second how to cut the rest.
pub fn decoder(bytes: &[u8]) {
    let [flags, cut, stream @ ..] = bytes else { return };
    let deflate = flags & 1 != 0;
    let whole = decode(deflate, stream, usize::MAX);
    assert_eq!(whole, decode(deflate, stream, 1), "byte by byte");
    assert_eq!(whole, decode(deflate, stream, usize::from(*cut) + 1), "in pieces of {}", usize::from(*cut) + 1);
}

/// Events with their payloads, and how it ended.
pub type Outcome = (Vec<(Event, Vec<u8>)>, Option<Violation>);

/// Decodes `stream` handed over in pieces of `piece` bytes, and checks what must hold after every call.
pub fn decode(deflate: bool, stream: &[u8], piece: usize) -> Outcome {
    const LIMITS: DecoderLimits = DecoderLimits { message_bytes_max: 4096 };
    const CONSTANT_BYTES_MAX: usize = 256;
    let (mut decoder, mut scratch, mut events) = (Decoder::new(deflate), Scratch::new(), Vec::new());
    let mut received = 0;
    for piece in stream.chunks(piece.clamp(1, stream.len().max(1))) {
        received += piece.len();
        let mut rest = piece;
        while !rest.is_empty() {
            let decoded = decoder.decode(rest, &mut scratch, &LIMITS);
            let heap_bytes = decoder.heap_bytes();
            assert!(heap_bytes <= CONSTANT_BYTES_MAX + 2 * received, "{heap_bytes} bytes for {received}");
            assert_eq!(heap_bytes != 0, decoder.is_partial());
            match decoded {
                Err(violation) => {
                    assert!(matches!(violation.code, 1002 | 1007 | 1009) && violation.reason.len() <= 123);
                    assert_eq!(heap_bytes, 0);
                    return (events, Some(violation));
                }
                Ok(Decoded { consumed, event, .. }) => {
                    assert!(consumed <= rest.len() && (event.is_some() || consumed == rest.len()));
                    assert!(consumed > 0, "a call that uses up nothing would be repeated for ever");
                    rest = &rest[consumed..];
                    let Some(event) = event else { break };
                    let payload = scratch.payload();
                    match event {
                        Event::Message(kind) => {
                            assert!(payload.len() <= LIMITS.message_bytes_max);
                            assert!(kind != MessageKind::Text || std::str::from_utf8(payload).is_ok());
                        }
                        Event::Ping | Event::Pong => assert!(payload.len() <= 125),
                        Event::Close { code } => assert_eq!(code.is_none(), payload.is_empty()),
                    }
                    events.push((event, payload.to_vec()));
                }
            }
        }
    }
    (events, None)
}

/// Whatever a client sends earns a bounded number of commands, in each dialect.
///
/// The first byte says whether it comes as text (then only if it is UTF-8, as the decoder guarantees) or as binary, and the rest
/// of it what the connection remembers.
pub fn command(bytes: &[u8]) {
    let Some((flags, payload)) = bytes.split_first() else { return };
    let kind = if flags & 1 == 0 { MessageKind::Text } else { MessageKind::Binary };
    if kind == MessageKind::Text && std::str::from_utf8(payload).is_err() {
        return;
    }
    let mut commands = Vec::new();
    Gpush.parse(&mut Session::default(), kind, payload, &mut commands);
    assert!(commands.len() <= 2, "one message, one request: {commands:?}");
    let lines = payload.split(|b| *b == b'\n').count();
    let mut lines_commands = Vec::new();
    Centrifugo.parse(&mut Session(u32::from(flags >> 1)), kind, payload, &mut lines_commands);
    assert!((1..=lines).contains(&lines_commands.len()), "a line, a command: {lines_commands:?}");
    for command in commands.into_iter().chain(lines_commands) {
        match command {
            Command::Connect { request } => assert_ne!(request, 0),
            Command::Subscribe { topic, .. } | Command::Unsubscribe { topic, .. } => {
                // Escapes never make a name longer than it was written; a bad byte may become U+FFFD.
                assert!(topic.len() <= 3 * payload.len());
            }
            Command::Reply(bytes) => assert!(!bytes.is_empty() && bytes.len() < 512),
            Command::Close { code, reason } => assert!((1000..5000).contains(&code) && reason.len() <= 123),
            Command::Heartbeat => {}
            Command::Echo { .. } => unreachable!("only /echo echoes"),
        }
    }
}
