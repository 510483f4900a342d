//! Publication → frame: once per encoding, whatever the number of shards and subscribers.
//!
//! The payload comes from the dialect, the rest is one unmasked, final text frame (RFC 6455 §5.2). A compressed encoding
//! (RFC 7692 §7.2.1, no context takeover, so that all who negotiated it share the bytes) gets RSV1 if compression pays,
//! and a plain frame otherwise, which every client of that encoding takes as well (§6: per message).
//!
//! Where a dialect joins messages that leave together ([`Joint`](crate::dialect::Joint)), a frame is its payload alone, and the
//! shard puts the header in front of all. Compressed, every one of them is deflate: one that does not shrink is stored.

use crate::config::Websocket;
use crate::dialect::{DialectId, Position};
use crate::frame::{Frame, Publication};
use crate::ids::Encoding;
use crate::websocket::deflate::{Deflater, store, stored_len};
use crate::websocket::frame::{Opcode, write_header};

/// A server's largest frame header: no mask, 64 bits of length.
const HEADER_BYTES_MAX: usize = 10;

/// When and how hard to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeSettings {
    /// zlib level 1..=9.
    pub deflate_level: u32,
    /// Payloads of fewer bytes go uncompressed.
    pub deflate_bytes_min: usize,
}

impl From<&Websocket> for EncodeSettings {
    fn from(websocket: &Websocket) -> EncodeSettings {
        EncodeSettings { deflate_level: websocket.deflate_level, deflate_bytes_min: websocket.deflate_bytes_min }
    }
}

/// Builds frames. Owns the compressor and two scratch buffers that grow to the largest message seen; one per control core.
pub struct Encoder {
    deflate_bytes_min: usize,
    deflate_level: u32,
    deflater: Option<Deflater>, // Some 300 KB, so only once somebody wants compressed frames.
    plain: Vec<u8>,
    deflated: Vec<u8>,
    header: Vec<u8>,
}

impl Encoder {
    /// An encoder with nothing built yet; the compressor comes with the first compressed frame.
    pub fn new(settings: &EncodeSettings) -> Encoder {
        Encoder {
            deflate_bytes_min: settings.deflate_bytes_min,
            deflate_level: settings.deflate_level,
            deflater: None,
            plain: Vec::new(),
            deflated: Vec::new(),
            header: Vec::with_capacity(HEADER_BYTES_MAX),
        }
    }

    /// The wire bytes of `publication` at `position` in `encoding`. One allocation, the frame itself.
    pub fn frame(&mut self, publication: &Publication, position: Position, encoding: Encoding) -> Frame {
        let (dialect, compressed) = DialectId::of(encoding);
        // The header's length depends on the payload's, so it is put in front afterwards, into room left for it.
        self.plain.clear();
        self.plain.resize(HEADER_BYTES_MAX, 0);
        dialect.get().payload(publication, position, &mut self.plain);
        let payload_len = self.plain.len() - HEADER_BYTES_MAX;
        let joins = dialect.get().joint(compressed).is_some();

        if compressed {
            self.deflated.clear();
            self.deflated.resize(HEADER_BYTES_MAX, 0);
            if payload_len >= self.deflate_bytes_min {
                let deflater = self.deflater.get_or_insert_with(|| Deflater::new(self.deflate_level));
                deflater.deflate(&self.plain[HEADER_BYTES_MAX..], &mut self.deflated);
                let pays = self.deflated.len() < self.plain.len();
                if pays && !joins {
                    return with_header(&mut self.header, true, &mut self.deflated);
                }
            }
            if joins {
                let deflated_len = self.deflated.len() - HEADER_BYTES_MAX;
                if deflated_len == 0 || deflated_len > stored_len(payload_len) {
                    self.deflated.truncate(HEADER_BYTES_MAX);
                    store(&self.plain[HEADER_BYTES_MAX..], &mut self.deflated);
                }
                return Frame::from(&self.deflated[HEADER_BYTES_MAX..]);
            }
        }
        if joins {
            return Frame::from(&self.plain[HEADER_BYTES_MAX..]);
        }
        with_header(&mut self.header, false, &mut self.plain)
    }
}

/// Puts a text frame's header right before the payload that begins at [`HEADER_BYTES_MAX`], and copies both out.
fn with_header(header: &mut Vec<u8>, rsv1: bool, buffer: &mut [u8]) -> Frame {
    header.clear();
    write_header(header, Opcode::Text, rsv1, buffer.len() - HEADER_BYTES_MAX);
    let start = HEADER_BYTES_MAX - header.len();
    buffer[start..HEADER_BYTES_MAX].copy_from_slice(header);
    Frame::from(&buffer[start..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, Offset};
    use std::io::Read;

    const POSITION: Position = Position { epoch: Epoch(1), offset: Offset(2), prev: Offset(1) };

    fn encoder() -> Encoder {
        Encoder::new(&EncodeSettings { deflate_level: 6, deflate_bytes_min: 64 })
    }

    fn publication(data: impl Into<bytes::Bytes>) -> Publication {
        Publication::new("t", data)
    }

    /// RFC 7692 §7.2.2: four bytes back on, then raw deflate.
    fn inflate(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let with_tail = [payload, &[0, 0, 0xFF, 0xFF, 1, 0, 0, 0xFF, 0xFF]].concat();
        flate2::read::DeflateDecoder::new(&with_tail[..]).read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn a_plain_frame_has_the_shortest_header_that_holds_its_length() {
        let mut encoder = encoder();
        let plain = DialectId::Gpush.encoding(false);
        let headers: [(usize, &[u8]); 6] = [
            (0, &[0x81, 0]),
            (125, &[0x81, 125]),
            (126, &[0x81, 126, 0, 126]),
            (65_535, &[0x81, 126, 0xFF, 0xFF]),
            (65_536, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
            (3, &[0x81, 3]),
        ];
        for (len, header) in headers {
            let data = vec![b'x'; len];
            let frame = encoder.frame(&publication(data.clone()), POSITION, plain);
            assert_eq!(*frame, *[header, &data].concat(), "{len} bytes");
        }
    }

    #[test]
    fn a_compressed_frame_has_rsv1_and_inflates_alone() {
        let mut encoder = encoder();
        let deflated = DialectId::Gpush.encoding(true);
        for data in [&b"ab".repeat(40), &b"the same again ".repeat(1000), &b"ab".repeat(40)] {
            let frame = encoder.frame(&publication(data.clone()), POSITION, deflated);
            assert_eq!(frame[0], 0xC1);
            assert_eq!(frame[1] as usize, frame.len() - 2);
            assert!(frame.len() < data.len());
            assert_eq!(inflate(&frame[2..]), *data);
        }
        let (one, other) = (b"ab".repeat(40), b"ab".repeat(40));
        assert_eq!(
            encoder.frame(&publication(one), POSITION, deflated),
            encoder.frame(&publication(other), POSITION, deflated),
            "no context is carried from one message to the next"
        );
    }

    #[test]
    fn compression_that_does_not_pay_is_left_out() {
        let mut encoder = encoder();
        let (plain, deflated) = (DialectId::Gpush.encoding(false), DialectId::Gpush.encoding(true));
        let short = publication(vec![b'a'; 63]);
        let mut state = 1u64;
        let random: String = (0..200)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                char::from(33 + (state >> 57) as u8 % 94)
            })
            .collect();
        for publication in [short, publication(&b""[..])] {
            assert_eq!(encoder.frame(&publication, POSITION, deflated), encoder.frame(&publication, POSITION, plain));
        }
        // Random letters shrink a little or not at all: whatever it is, never longer than plain.
        let random = publication(random);
        let plain_len = encoder.frame(&random, POSITION, plain).len();
        assert!(encoder.frame(&random, POSITION, deflated).len() <= plain_len);
        assert!(
            encoder.frame(&publication(vec![b'a'; 64]), POSITION, deflated)[0] & 0x40 != 0,
            "at the bound it is tried"
        );
    }

    #[test]
    fn where_messages_are_joined_a_frame_is_its_payload_and_compressed_always_deflate() {
        let mut encoder = encoder();
        let [plain, deflated] = [false, true].map(|deflated| DialectId::Centrifugo.encoding(deflated));
        for data in ["1", "{\"a\":\"b\"}", &format!("\"{}\"", "ab".repeat(500))] {
            let line = format!(r#"{{"push":{{"channel":"t","pub":{{"data":{data},"offset":2}}}}}}"#);
            let publication = publication(data.as_bytes().to_vec());
            assert_eq!(*encoder.frame(&publication, POSITION, plain), *line.as_bytes());
            let frame = encoder.frame(&publication, POSITION, deflated);
            assert_eq!(inflate(&frame), line.as_bytes());
            assert!(frame.len() <= line.len() + 6, "{} bytes for {}", frame.len(), line.len());
        }
    }

    #[test]
    fn the_compressor_is_built_only_when_wanted() {
        let mut encoder = encoder();
        encoder.frame(&publication(vec![b'a'; 1000]), POSITION, DialectId::Gpush.encoding(false));
        assert!(encoder.deflater.is_none());
        encoder.frame(&publication(vec![b'a'; 1000]), POSITION, DialectId::Gpush.encoding(true));
        assert!(encoder.deflater.is_some());
    }
}
