//! Cuts a server's byte stream into WebSocket frames, fast: no copy but of a frame that two receives share.
//!
//! `websocket` has the whole decoder; this one knows that servers don't mask (RFC 6455 section 5.1) and that a load client
//! looks at every frame once and forgets it.

use std::fmt;

/// One frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// FIN, RSV1–3 and the opcode, as on the wire.
    pub(crate) first: u8,
    pub(crate) payload: &'a [u8],
}

/// FIN and text: what a push is.
pub(crate) const TEXT: u8 = 0x81;
/// FIN, RSV1 and text: a compressed push.
pub(crate) const TEXT_DEFLATED: u8 = 0xc1;
/// FIN and close.
pub(crate) const CLOSE: u8 = 0x88;
/// FIN and ping.
pub(crate) const PING: u8 = 0x89;
/// FIN and pong.
pub(crate) const PONG: u8 = 0x8a;

/// Longest frame taken: what one connection may hold in memory.
pub(crate) const FRAME_BYTES_MAX: usize = 16 << 20;

/// The server broke the protocol; the connection is useless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    Masked,
    TooLong,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Broken::Masked => "the server sent a masked frame",
            Broken::TooLong => "the server sent a frame of more than 16 MiB",
        })
    }
}

/// (header, payload) bytes of the frame that `bytes` begin, `None` if the header is not all there.
#[inline]
fn lengths(bytes: &[u8]) -> Result<Option<(usize, usize)>, Broken> {
    let [_, second, rest @ ..] = bytes else { return Ok(None) };
    let (header, payload) = match (*second, rest) {
        (0..=125, _) => (2, usize::from(*second)),
        (126, [a, b, ..]) => (4, usize::from(u16::from_be_bytes([*a, *b]))),
        (127, [a, b, c, d, e, f, g, h, ..]) => {
            let length = u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
            (10, usize::try_from(length).map_err(|_| Broken::TooLong)?)
        }
        (126 | 127, _) => return Ok(None),
        _ => return Err(Broken::Masked),
    };
    if payload > FRAME_BYTES_MAX { Err(Broken::TooLong) } else { Ok(Some((header, payload))) }
}

/// Gives `each` every frame that `carry` and then `chunk` hold; what remains of a last, partial one waits in `carry`.
///
/// # Errors
/// The stream can't be followed any further; the frames before were given.
#[inline]
pub(crate) fn frames(carry: &mut Vec<u8>, chunk: &[u8], mut each: impl FnMut(Frame<'_>)) -> Result<(), Broken> {
    let mut rest = chunk;
    while !carry.is_empty() {
        // The header first, byte by byte, for only it says how much is missing.
        let missing = match lengths(carry)? {
            None => 1,
            Some((header, payload)) => header + payload - carry.len(),
        };
        if missing > rest.len() {
            carry.extend_from_slice(rest);
            return Ok(());
        }
        let (head, tail) = rest.split_at(missing);
        carry.extend_from_slice(head);
        rest = tail;
        if let Some((header, payload)) = lengths(carry)?
            && carry.len() == header + payload
        {
            each(Frame { first: carry[0], payload: &carry[header..] });
            carry.clear();
        }
    }
    while let Some((header, payload)) = lengths(rest)? {
        if rest.len() < header + payload {
            break;
        }
        let (frame, tail) = rest.split_at(header + payload);
        each(Frame { first: frame[0], payload: &frame[header..] });
        rest = tail;
    }
    if !rest.is_empty() {
        carry.extend_from_slice(rest);
    } else if carry.capacity() > 0 {
        *carry = Vec::new(); // A million connections keep nothing that they don't need.
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::websocket::{Opcode, frame};

    fn decoded(chunks: &[&[u8]]) -> Result<Vec<(u8, Vec<u8>)>, Broken> {
        let (mut carry, mut got) = (Vec::new(), Vec::new());
        for chunk in chunks {
            frames(&mut carry, chunk, |f| got.push((f.first, f.payload.to_vec())))?;
        }
        assert!(carry.is_empty(), "{} bytes left", carry.len());
        Ok(got)
    }

    #[test]
    fn frames_of_every_header_length_decode_alike_however_the_stream_is_split() {
        let lengths = [0, 1, 125, 126, 128, 65_535, 65_536, 70_000, 3];
        let sent: Vec<(u8, Vec<u8>)> = lengths.iter().map(|&n| (TEXT, vec![n as u8; n])).collect();
        let mut wire = Vec::new();
        sent.iter().for_each(|(_, payload)| frame::write_frame(&mut wire, Opcode::Text, payload));
        assert_eq!(decoded(&[&wire]).unwrap(), sent);
        for size in [1, 2, 3, 7, 128, 130, 131, 1000, 65_537] {
            let chunks: Vec<&[u8]> = wire.chunks(size).collect();
            assert_eq!(decoded(&chunks).unwrap(), sent, "chunks of {size}");
        }
        for at in 0..400 {
            assert_eq!(decoded(&[&wire[..at], &wire[at..]]).unwrap(), sent, "split at {at}");
        }
    }

    #[test]
    fn masked_and_endless_frames_end_the_connection() {
        assert_eq!(decoded(&[&[0x81, 0x84, 0, 0, 0, 0]]), Err(Broken::Masked));
        let mut endless = vec![0x81, 127];
        endless.extend_from_slice(&(1u64 << 40).to_be_bytes());
        assert_eq!(decoded(&[&endless[..5], &endless[5..]]), Err(Broken::TooLong));
    }
}
