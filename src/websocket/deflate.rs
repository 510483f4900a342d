//! permessage-deflate (RFC 7692) without context takeover: every message is compressed and inflated on its own.
//!
//! So one compressed frame serves all subscribers, and one compressor or inflater serves all connections of a core.
//!
//! A client may ask that we look back at most 2^w bytes (`server_max_window_bits=w`), to save memory. A shared frame is
//! made with the full window, 2^15, and can't heed each client. But a message of at most 2^w bytes has nothing further
//! back to refer to, whatever the compressor's window, and a message may always go uncompressed (§6). Hence:
//!
//! - the offer is accepted, the window promised;
//! - [`DeflateParams::compresses`] decides for messages made for one connection: compressed if short enough;
//! - [`DeflateParams::shares_frames`] decides for shared frames: a connection with a smaller window gets the plain
//!   encoding, all others the compressed one.

use super::Opcode;
use super::frame;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// What ends every sync flush: the length fields of an empty stored block. Left out on the wire, RFC 7692 §7.2.1.
const TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];

/// Joins two messages, each compressed on its own, to one that inflates to both with a line feed between.
///
/// What [`Deflater::deflate`] and [`store`] leave ends with the head of a stored block, filled up to a byte (RFC 1951 §3.2.4): its
/// length was to follow. The tail that the reader appends says 0; this says 1, and here it is, so that the next message begins
/// on a byte, as it did alone:
///
/// ```text
/// …│000 00000│ 00 00 FF FF                 alone: an empty block
/// …│000 00000│ 01 00 FE FF 0A │ next …     joined: a block of one line feed
/// ```
pub const LINE_FEED_BETWEEN: [u8; 5] = [0x01, 0x00, 0xFE, 0xFF, b'\n'];

/// Bytes that [`store`] adds to each block.
const STORED_BLOCK_OVERHEAD_BYTES: usize = 5;

/// Most that one stored block holds.
const STORED_BLOCK_BYTES_MAX: usize = 0xFFFF;

/// An empty final block. After [`TAIL`] it ends the stream exactly if the message was whole.
const END: [u8; 2] = [0x03, 0x00];

/// The largest LZ77 window, as its base-2 logarithm, and ours in both directions unless a client asks for less.
pub const WINDOW_BITS_MAX: u8 = 15;

/// What was agreed on permessage-deflate, for one connection. No context takeover in either direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeflateParams {
    /// The client's bound on our window, 8..=15; `None` if it named none: 15, and the answer doesn't name it either.
    pub server_max_window_bits: Option<u8>,
}

impl DeflateParams {
    /// Whether a message of `payload_len` bytes may go to this client compressed by any [`Deflater`].
    pub fn compresses(self, payload_len: usize) -> bool {
        let window_bits = self.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX);
        window_bits >= WINDOW_BITS_MAX || payload_len <= 1 << window_bits
    }

    /// Whether it may have compressed frames that are shared with others, of any length.
    pub fn shares_frames(self) -> bool {
        self.server_max_window_bits.is_none_or(|bits| bits >= WINDOW_BITS_MAX)
    }
}

/// Appends `payload` uncompressed, in the form that [`Deflater::deflate`] gives: for short messages that are to be joined with
/// compressed ones.
pub fn store(payload: &[u8], out: &mut Vec<u8>) {
    out.reserve(stored_len(payload.len()));
    for block in payload.chunks(STORED_BLOCK_BYTES_MAX) {
        let length = block.len() as u16;
        out.push(0);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(block);
    }
    out.push(0);
}

/// What [`store`] makes of `payload_len` bytes.
pub fn stored_len(payload_len: usize) -> usize {
    payload_len + payload_len.div_ceil(STORED_BLOCK_BYTES_MAX) * STORED_BLOCK_OVERHEAD_BYTES + 1
}

/// Compresses messages, one at a time. About 0.3 MB; one per core, reused.
pub struct Deflater {
    stream: Compress,
    compressed: Vec<u8>, // Of `write_frame`, kept for its capacity.
}

impl Deflater {
    /// `level` is zlib's: 0 stores, 1 is fastest, 9 smallest; above 9 counts as 9.
    pub fn new(level: u32) -> Deflater {
        Deflater { stream: Compress::new(Compression::new(level.min(9)), false), compressed: Vec::new() }
    }

    /// Appends `payload`, compressed, as it stands in frames with RSV1; never empty, RFC 7692 §7.2.3.6.
    ///
    /// Reserves what the worst case needs, an eighth more than `payload`, which `out` keeps.
    pub fn deflate(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        self.stream.reset();
        // zlib's own bound on any input. More than enough is needed: a flush that fills the output exactly is cut in two.
        out.reserve(payload.len() + payload.len() / 8 + payload.len() / 64 + 64);
        let start = out.len();
        loop {
            let consumed = self.stream.total_in() as usize;
            self.stream.compress_vec(&payload[consumed..], out, FlushCompress::Sync).expect("a valid compressor state");
            if self.stream.total_in() as usize == payload.len() && out.len() < out.capacity() {
                break;
            }
            out.reserve(64);
        }
        assert!(out[start..].ends_with(&TAIL), "a sync flush ends with an empty stored block");
        out.truncate(out.len() - TAIL.len());
    }

    /// Appends a whole message as one server frame: compressed if that is shorter, as it is otherwise.
    pub fn write_frame(&mut self, out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
        let mut compressed = std::mem::take(&mut self.compressed);
        compressed.clear();
        self.deflate(payload, &mut compressed);
        let shorter = compressed.len() < payload.len();
        frame::write_frame_with(out, opcode, shorter, if shorter { &compressed } else { payload });
        self.compressed = compressed;
    }
}

/// Why a compressed message could not be inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// It holds more than this many bytes.
    #[error("inflates to more than {payload_bytes_max} bytes")]
    TooBig {
        /// The limit.
        payload_bytes_max: usize,
    },
    /// Not DEFLATE, or cut off.
    #[error("not a DEFLATE stream")]
    Corrupt,
}

/// Inflates messages, one at a time. About 50 KB; one per core, reused.
pub struct Inflater {
    stream: Decompress,
}

impl Default for Inflater {
    fn default() -> Inflater {
        Inflater::new()
    }
}

impl Inflater {
    /// With the full window, which reads what any compressor wrote.
    pub fn new() -> Inflater {
        Inflater { stream: Decompress::new(false) }
    }

    /// Appends to `out` what `compressed` holds, the joined payloads of a message's frames.
    ///
    /// `out` grows as bytes come out, at most to `payload_bytes_max` + 1 above what it held, and holds no meaning after
    /// an error.
    ///
    /// # Errors
    /// [`InflateError`]. A message cut off in the middle of a block is corrupt, not short.
    pub fn inflate(
        &mut self,
        compressed: &[u8],
        out: &mut Vec<u8>,
        payload_bytes_max: usize,
    ) -> Result<(), InflateError> {
        // Nothing at all is not DEFLATE, but zlib in its streaming use takes it for an empty message, and so do most peers.
        if compressed.is_empty() {
            return Ok(());
        }
        self.stream.reset(false);
        let out_len_max = out.len().saturating_add(payload_bytes_max);
        // A message may end with a final block (§7.2.3.4) and nothing after it.
        let whole = self.feed(compressed, out, out_len_max)? || {
            // A stored block that is cut off would take what we append for its content.
            let len = out.len();
            !self.feed(&TAIL, out, out_len_max)? && self.feed(&END, out, out_len_max)? && out.len() == len
        };
        match whole {
            _ if out.len() > out_len_max => Err(InflateError::TooBig { payload_bytes_max }),
            true => Ok(()),
            false => Err(InflateError::Corrupt),
        }
    }

    /// Whether a final block ended with the last byte of `input`. Stops early when `out` is over `out_len_max`.
    fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>, out_len_max: usize) -> Result<bool, InflateError> {
        while out.len() <= out_len_max {
            if out.len() == out.capacity() {
                let doubled = out.len().max(256);
                out.reserve_exact(doubled.min(out_len_max.saturating_sub(out.len())).max(1));
            }
            let (in_before, out_before) = (self.stream.total_in(), out.len());
            let status =
                self.stream.decompress_vec(input, out, FlushDecompress::Sync).map_err(|_| InflateError::Corrupt)?;
            let consumed = (self.stream.total_in() - in_before) as usize;
            input = &input[consumed..];
            match status {
                Status::StreamEnd => {
                    // What follows a final block is a stream of its own (§7.2.3.4).
                    self.stream.reset(false);
                    if input.is_empty() {
                        return Ok(true);
                    }
                }
                Status::Ok | Status::BufError => {
                    let all_out = out.len() < out.capacity();
                    if input.is_empty() && all_out {
                        return Ok(false);
                    }
                    if consumed == 0 && out.len() == out_before && all_out {
                        return Err(InflateError::Corrupt);
                    }
                }
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inflate(compressed: &[u8], payload_bytes_max: usize) -> Result<Vec<u8>, InflateError> {
        let mut out = Vec::new();
        Inflater::new().inflate(compressed, &mut out, payload_bytes_max).map(|()| out)
    }

    #[test]
    fn every_message_is_compressed_on_its_own() {
        let mut deflater = Deflater::new(9);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        deflater.deflate(b"Hello", &mut first);
        deflater.deflate(b"Hello", &mut second);
        assert_eq!(first, second);
        // RFC 7692 §7.2.3.1.
        assert_eq!(first, [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]);
    }

    #[test]
    fn an_empty_message_is_one_zero_byte() {
        for level in 0..=9 {
            let mut out = Vec::new();
            Deflater::new(level).deflate(b"", &mut out);
            assert_eq!(inflate(&out, 0).unwrap(), b"");
            assert!(!out.is_empty() && !out.ends_with(&TAIL), "level {level}: {out:?}");
            if level == 9 {
                assert_eq!(out, [0x00]);
            }
        }
    }

    #[test]
    fn what_a_deflater_wrote_comes_back_at_every_level_and_length() {
        let mut inflater = Inflater::new();
        let noise = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8;
        for level in [0, 1, 6, 9] {
            let mut deflater = Deflater::new(level);
            for len in (0..200).chain([511, 512, 4096, 65_535, 65_536, 100_000, 1 << 20]) {
                for payload in [vec![b'a'; len], (0..len).map(noise).collect()] {
                    let mut out = b"before".to_vec();
                    deflater.deflate(&payload, &mut out);
                    let mut back = b"kept".to_vec();
                    inflater.inflate(&out[6..], &mut back, len).unwrap();
                    assert!(back[4..] == payload, "level {level}, {len} bytes");
                }
            }
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let mut bomb = Vec::new();
        Deflater::new(9).deflate(&vec![0; 16 << 20], &mut bomb);
        assert!(bomb.len() < 20_000);
        let mut out = Vec::new();
        let error = Inflater::new().inflate(&bomb, &mut out, 65_536).unwrap_err();
        assert_eq!(error, InflateError::TooBig { payload_bytes_max: 65_536 });
        assert!(out.capacity() <= 65_537, "{}", out.capacity());
        assert!(inflate(&bomb, 16 << 20).is_ok());
        assert!(inflate(&bomb, (16 << 20) - 1).is_err());
    }

    #[test]
    fn a_message_that_is_cut_off_is_corrupt() {
        let mut whole = Vec::new();
        Deflater::new(6).deflate(b"a message long enough to be cut in many places, in many places", &mut whole);
        let mut stored = Vec::new();
        Deflater::new(0).deflate(b"not compressed, so that what follows is taken for content", &mut stored);
        for whole in [whole, stored] {
            // (The first byte of the stored one is an empty message.)
            for cut in 2..whole.len() {
                assert_eq!(inflate(&whole[..cut], 1000), Err(InflateError::Corrupt), "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_small_window_is_heeded_by_leaving_long_messages_uncompressed() {
        let small = DeflateParams { server_max_window_bits: Some(9) };
        assert!(small.compresses(512) && !small.compresses(513) && !small.shares_frames());
        let full = DeflateParams { server_max_window_bits: Some(15) };
        assert!(full.compresses(1 << 20) && full.shares_frames());
        assert!(DeflateParams::default().compresses(1 << 20) && DeflateParams::default().shares_frames());
    }

    #[test]
    fn a_message_as_long_as_the_window_is_read_with_that_window() {
        // The promise behind `compresses`: an inflater that holds 2^9 bytes reads what the full-window compressor made.
        let mut payload: Vec<u8> = (0..256).map(|i| (i * 7) as u8).collect();
        payload.extend_from_within(..);
        let mut compressed = Vec::new();
        Deflater::new(9).deflate(&payload, &mut compressed);
        assert!(compressed.len() < 300, "the second half refers to the first");
        compressed.extend_from_slice(&TAIL);
        let mut out = Vec::with_capacity(1024);
        let mut small = Decompress::new_with_window_bits(false, 9);
        // One byte at a time, so that what it refers to must come from the window.
        for byte in compressed {
            small.decompress_vec(&[byte], &mut out, FlushDecompress::Sync).unwrap();
        }
        assert_eq!(out, payload);
    }

    #[test]
    fn messages_compressed_one_by_one_and_joined_inflate_to_all_of_them() {
        let noise: Vec<u8> = (0..70_000usize).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let messages: [&[u8]; 7] = [b"{}", b"", &[b'a'; 1000], &noise, b"x", &noise[..65_535], &[b'b'; 3]];
        for level in [0, 1, 6, 9] {
            let mut deflater = Deflater::new(level);
            // Every mixture of the two forms, in all of which any two neighbours meet.
            for form in 0..1 << messages.len() {
                let mut joined = Vec::new();
                for (i, message) in messages.iter().enumerate() {
                    joined.extend_from_slice(if i > 0 { &LINE_FEED_BETWEEN } else { &[] });
                    let before = joined.len();
                    if form >> i & 1 == 0 {
                        store(message, &mut joined);
                        assert_eq!(joined.len() - before, stored_len(message.len()));
                    } else {
                        deflater.deflate(message, &mut joined);
                    }
                }
                assert!(inflate(&joined, 1 << 20).unwrap() == messages.join(&b'\n'), "level {level}, form {form:b}");
            }
        }
        let mut alone = Vec::new();
        store(b"Hello", &mut alone);
        // RFC 7692 §7.2.3.3, with its final bit left out.
        assert_eq!(alone, [0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00]);
    }

    #[test]
    fn a_frame_is_compressed_only_where_that_is_shorter() {
        let mut deflater = Deflater::new(9);
        let (mut long, mut short) = (Vec::new(), Vec::new());
        deflater.write_frame(&mut long, Opcode::Text, &[b'a'; 1000]);
        deflater.write_frame(&mut short, Opcode::Binary, b"xyz");
        assert_eq!(long[0], 0xC1);
        assert_eq!(inflate(&long[2..], 1000).unwrap(), [b'a'; 1000]);
        assert_eq!(short, [0x82, 3, b'x', b'y', b'z']);
    }
}
