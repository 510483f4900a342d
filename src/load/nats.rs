//! The NATS client protocol, as far as a load needs it: lines that end in CRLF, and after `MSG` so many bytes.
//!
//! ```text
//! server: INFO {…}   MSG subject sid [reply-to] bytes ⏎ payload ⏎   PING   PONG   +OK   -ERR 'why'
//! client: CONNECT {…}   SUB subject sid   PUB subject bytes ⏎ payload ⏎   PING   PONG
//! ```

use super::reader::{Broken, FRAME_BYTES_MAX};
use std::sync::Arc;

/// A line longer than this is none.
const LINE_BYTES_MAX: usize = 64 << 10;

/// What the server says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Operation<'a> {
    /// A publication's payload.
    Message(&'a [u8]),
    /// Anything else, without its CRLF.
    Line(&'a [u8]),
}

/// The answer to INFO: who we are, what we want, and a PING whose PONG says that it is done.
pub(crate) fn subscribe(topic: &str) -> Arc<[u8]> {
    format!("{CONNECT}SUB {topic} 1\r\nPING\r\n").into_bytes().into()
}

/// A line without verbose acknowledgements.
pub(crate) const CONNECT: &str =
    "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"fanwire-bench\",\"version\":\"1\",\"protocol\":1}\r\n";
pub(crate) const PONG: &[u8] = b"PONG\r\n";

/// Gives `each` every whole operation that `carry` and then `chunk` hold; what remains waits in `carry`.
///
/// # Errors
/// The stream can't be followed any further; the operations before were given.
pub(crate) fn operations(carry: &mut Vec<u8>, chunk: &[u8], mut each: impl FnMut(Operation<'_>)) -> Result<(), Broken> {
    if carry.is_empty() {
        let taken = whole(chunk, &mut each)?;
        carry.extend_from_slice(&chunk[taken..]);
        return Ok(());
    }
    carry.extend_from_slice(chunk);
    let taken = whole(carry, &mut each)?;
    if taken == carry.len() {
        *carry = Vec::new();
    } else {
        carry.drain(..taken);
    }
    Ok(())
}

/// Gives the whole operations that `bytes` begin with; how many bytes those are.
fn whole(bytes: &[u8], each: &mut impl FnMut(Operation<'_>)) -> Result<usize, Broken> {
    let mut taken = 0;
    loop {
        let rest = &bytes[taken..];
        let Some(end) = rest.windows(2).take(LINE_BYTES_MAX).position(|two| two == b"\r\n") else {
            return if rest.len() > LINE_BYTES_MAX { Err(Broken::Line) } else { Ok(taken) };
        };
        let line = &rest[..end];
        let start = end + 2;
        if let Some(arguments) = line.strip_prefix(b"MSG ") {
            let length =
                arguments.rsplit(|b| *b == b' ').next().and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
            let length: usize = length.ok_or(Broken::Line)?;
            if length > FRAME_BYTES_MAX {
                return Err(Broken::TooLong);
            }
            let Some(payload) = rest.get(start..start + length + 2) else { return Ok(taken) };
            each(Operation::Message(&payload[..length]));
            taken += start + length + 2;
        } else {
            each(Operation::Line(line));
            taken += start;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_found_alike_however_the_stream_is_split() {
        let wire =
            b"INFO {\"a\":1}\r\nMSG bench-0 1 5\r\na\r\nbc\r\nPING\r\nMSG b 1 reply 0\r\n\r\nPONG\r\n-ERR 'no'\r\n";
        let message = |payload: &str| format!("message {payload}");
        let expected = [
            "INFO {\"a\":1}".into(),
            message("a\r\nbc"),
            "PING".into(),
            message(""),
            "PONG".into(),
            "-ERR 'no'".to_owned(),
        ];
        for size in 1..=wire.len() {
            let (mut carry, mut got) = (Vec::new(), Vec::new());
            for chunk in wire.chunks(size) {
                let each = |operation: Operation<'_>| {
                    got.push(match operation {
                        Operation::Message(payload) => message(std::str::from_utf8(payload).unwrap()),
                        Operation::Line(line) => String::from_utf8(line.to_vec()).unwrap(),
                    });
                };
                operations(&mut carry, chunk, each).unwrap();
            }
            assert_eq!(got, expected, "chunks of {size}");
            assert!(carry.is_empty());
        }
    }

    #[test]
    fn endless_lines_and_senseless_lengths_end_the_connection() {
        let ends = |bytes: &[u8]| operations(&mut Vec::new(), bytes, |_| ()).unwrap_err();
        assert_eq!(ends(&vec![b'x'; LINE_BYTES_MAX + 2]), Broken::Line);
        assert_eq!(ends(b"MSG a 1 many\r\n"), Broken::Line);
        assert_eq!(ends(b"MSG a 1 99999999999\r\n"), Broken::TooLong);
    }
}
