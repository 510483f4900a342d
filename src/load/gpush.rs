//! How a gpush client speaks. Other dialects are siblings of this file.

use crate::websocket::{Opcode, frame};
use std::sync::Arc;

/// Masks against nobody: the load is on one machine, and one frame serves many connections.
pub(crate) const MASK: [u8; 4] = [0x3c, 0xa5, 0x5a, 0xc3];

/// Begins the first frame of a connection.
pub(crate) const GREETING: &[u8] = br#"{"code":20000"#;
/// Begins the answer to a subscribe.
pub(crate) const SUBSCRIBED: &[u8] = br#"{"code":20001"#;
/// Begins any answer that says no.
pub(crate) const REFUSED: &[u8] = br#"{"code":3000"#;
/// The heartbeat's answer.
pub(crate) const PONG: &[u8] = b"pong";

/// The heartbeat. The gateway waits 120 s for one.
pub(crate) fn ping() -> Arc<[u8]> {
    text(b"ping")
}

/// Asks for a public topic.
pub(crate) fn subscribe(topic: &str) -> Arc<[u8]> {
    let topic = serde_json::Value::from(topic);
    text(format!(r#"{{"code":1,"topic":{topic},"data":""}}"#).as_bytes())
}

fn text(payload: &[u8]) -> Arc<[u8]> {
    let mut frame = Vec::new();
    frame::write_client_frame(&mut frame, Opcode::Text, payload, MASK);
    frame.into()
}
