//! How a Centrifugo client speaks.

use super::gpush::MASK;
use super::stamp::Stamp;
use crate::websocket::{Opcode, frame};
use std::sync::Arc;

/// Where the dialect is served.
pub const PATH: &str = "/connection/websocket";

/// Begins the answer to `connect`.
pub(crate) const CONNECTED: &[u8] = br#"{"id":1,"connect""#;
/// Begins the answer to the subscribe.
pub(crate) const SUBSCRIBED: &[u8] = br#"{"id":2,"subscribe""#;
/// The gateway's ping, and the client's pong.
pub(crate) const PING: &[u8] = b"{}";

/// `connect` and the subscribe in one message.
pub(crate) fn hello(topic: &str) -> Arc<[u8]> {
    let topic = serde_json::Value::from(topic);
    let lines = format!("{{\"connect\":{{}},\"id\":1}}\n{{\"subscribe\":{{\"channel\":{topic}}},\"id\":2}}");
    text(lines.as_bytes())
}

/// The answer to a ping.
pub(crate) fn pong() -> Arc<[u8]> {
    text(PING)
}

/// What a line's publication says, if it is one of ours.
pub(crate) fn stamp(line: &[u8]) -> Option<Stamp> {
    const DATA: &[u8] = br#""data":"#;
    let at = line.windows(DATA.len()).position(|window| window == DATA)?;
    Stamp::read(&line[at + DATA.len()..])
}

fn text(payload: &[u8]) -> Arc<[u8]> {
    let mut bytes = Vec::new();
    frame::write_client_frame(&mut bytes, Opcode::Text, payload, MASK);
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::super::stamp::Stream;
    use super::*;

    #[test]
    fn a_publication_of_ours_is_read_and_nothing_else() {
        let stamp = Stamp { stream: Stream::new(3, 1), sequence: 7, due_ns: 1 << 40 };
        let mut message = vec![0; 128];
        stamp.write(&mut message);
        let data = String::from_utf8(message).unwrap();
        let line = format!(r#"{{"push":{{"channel":"bench-3","pub":{{"data":{data},"offset":12}}}}}}"#);
        assert_eq!(super::stamp(line.as_bytes()), Some(stamp));
        for other in ["{}", r#"{"id":2,"subscribe":{}}"#, r#"{"push":{"channel":"c","pub":{"data":"x"}}}"#, ""] {
            assert_eq!(super::stamp(other.as_bytes()), None, "{other}");
        }
    }
}
