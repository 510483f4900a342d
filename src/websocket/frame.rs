//! One frame's wire bytes (RFC 6455 §5.2): writing whole frames, reading headers, masking.
//!
//! ```text
//!  byte 0            byte 1           then
//! ┌─┬─┬─┬─┬───────┐ ┌─┬─────────────┐ ┌──────────────────┬─────────────┬─────────
//! │F│1│2│3│opcode │ │M│ length 7    │ │ length 16 or 64  │ key 32 if M │ payload
//! └─┴─┴─┴─┴───────┘ └─┴─────────────┘ └──────────────────┴─────────────┴─────────
//!  FIN, RSV1..3      126: 16 bits, 127: 64 bits follow, big-endian, never longer than needed
//! ```

use super::{MessageKind, Violation};

/// Longest payload of a control frame, RFC 6455 §5.5.
pub const CONTROL_BYTES_MAX: usize = 125;

/// Longest reason of a close frame: a control frame's payload less the code.
pub const REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

/// Longest header of all: two bytes, a 64-bit length and a mask key.
pub const HEADER_BYTES_MAX: usize = 14;

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const RSV2_RSV3: u8 = 0x30;
const MASKED: u8 = 0x80;

/// What a frame is, RFC 6455 §11.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment of a message.
    Continuation = 0x0,
    /// A message in UTF-8, or its first fragment.
    Text = 0x1,
    /// A message of any bytes, or its first fragment.
    Binary = 0x2,
    /// The last frame of its sender.
    Close = 0x8,
    /// To be answered by a pong with the same payload.
    Ping = 0x9,
    /// Answers a ping, or says that one is alive.
    Pong = 0xA,
}

impl Opcode {
    /// Whether it is Close, Ping or Pong: at most [`CONTROL_BYTES_MAX`], never fragmented.
    pub fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }

    /// Of a message's first frame: what the message is.
    pub fn message_kind(self) -> Option<MessageKind> {
        match self {
            Opcode::Text => Some(MessageKind::Text),
            Opcode::Binary => Some(MessageKind::Binary),
            _ => None,
        }
    }

    fn from_bits(bits: u8) -> Option<Opcode> {
        Some(match bits {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xA => Opcode::Pong,
            _ => return None,
        })
    }
}

/// Appends a whole message as one frame: FIN, unmasked, as a server sends it.
pub fn write_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    write_frame_with(out, opcode, false, payload);
}

/// Like [`write_frame`]; `rsv1` says that `payload` is compressed (RFC 7692 §6).
pub fn write_frame_with(out: &mut Vec<u8>, opcode: Opcode, rsv1: bool, payload: &[u8]) {
    out.reserve(HEADER_BYTES_MAX + payload.len());
    write_header(out, opcode, rsv1, payload.len());
    out.extend_from_slice(payload);
}

/// Appends the header of an unmasked FIN frame; the caller appends `payload_len` bytes.
pub fn write_header(out: &mut Vec<u8>, opcode: Opcode, rsv1: bool, payload_len: usize) {
    header(out, FIN | if rsv1 { RSV1 } else { 0 } | opcode as u8, 0, payload_len);
}

/// Appends a whole message as one frame masked with `mask`, as a client sends it.
pub fn write_client_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], mask: [u8; 4]) {
    write_fragment(out, true, opcode, false, payload, Some(mask));
}

/// Appends any frame: the general form, for clients and tests.
pub fn write_fragment(out: &mut Vec<u8>, fin: bool, opcode: Opcode, rsv1: bool, payload: &[u8], mask: Option<[u8; 4]>) {
    out.reserve(HEADER_BYTES_MAX + payload.len());
    let first = if fin { FIN } else { 0 } | if rsv1 { RSV1 } else { 0 } | opcode as u8;
    header(out, first, if mask.is_some() { MASKED } else { 0 }, payload.len());
    out.extend_from_slice(mask.as_ref().map_or(&[], |key| key.as_slice()));
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(key) = mask {
        apply_mask(&mut out[start..], key);
    }
}

fn header(out: &mut Vec<u8>, first: u8, masked: u8, payload_len: usize) {
    debug_assert!(first & 0x8 == 0 || payload_len <= CONTROL_BYTES_MAX, "a control frame of {payload_len} bytes");
    match payload_len {
        0..=125 => out.extend_from_slice(&[first, masked | payload_len as u8]),
        126..=0xFFFF => {
            out.extend_from_slice(&[first, masked | 126]);
            out.extend_from_slice(&(payload_len as u16).to_be_bytes());
        }
        _ => {
            out.extend_from_slice(&[first, masked | 127]);
            out.extend_from_slice(&(payload_len as u64).to_be_bytes());
        }
    }
}

/// Appends a close frame; `reason` is cut to [`REASON_BYTES_MAX`] on a character's boundary.
pub fn write_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let reason = cut_reason(reason);
    write_header(out, Opcode::Close, false, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// A close frame's payload: `code`, then `reason` cut to [`REASON_BYTES_MAX`] on a character's boundary.
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(cut_reason(reason).as_bytes());
    payload
}

fn cut_reason(reason: &str) -> &str {
    // `str::floor_char_boundary` is newer than the oldest compiler we support.
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

/// Whether `code` may stand in a close frame, RFC 6455 §7.4: defined there or registered since (1012 to 1014), or in
/// the ranges for libraries and applications. 1004, 1005, 1006 and 1015 never travel.
pub fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// A frame's header, of either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Last or only frame of its message.
    pub fin: bool,
    /// The message is compressed, on its first frame (RFC 7692 §6).
    pub rsv1: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// A mask key stands in the header's last four bytes.
    pub masked: bool,
    /// Bytes before the payload, 2..=[`HEADER_BYTES_MAX`].
    pub header_len: usize,
    /// Bytes of payload, as the peer claims.
    pub payload_len: u64,
}

impl FrameHeader {
    /// Reads the header at the start of `bytes`; `None` if it is not whole yet.
    ///
    /// # Errors
    /// What no frame of either direction may have, as soon as the byte that shows it is there: RSV2 or RSV3, a reserved
    /// opcode, a fragmented or long control frame, a length over 63 bits or longer than needed.
    pub fn parse(bytes: &[u8]) -> Result<Option<FrameHeader>, Violation> {
        let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
        let (fin, rsv1, opcode) = Self::parse_first(first)?;
        let Some((&second, rest)) = rest.split_first() else { return Ok(None) };
        let (masked, short) = (second & MASKED != 0, second & !MASKED);
        if opcode.is_control() && usize::from(short) > CONTROL_BYTES_MAX {
            return Err(Violation::protocol("control frame over 125 bytes"));
        }
        let (length_len, payload_len) = match short {
            126 => match rest.first_chunk() {
                Some(bytes) => (2, u64::from(u16::from_be_bytes(*bytes))),
                None => return Ok(None),
            },
            127 => match rest.first_chunk() {
                Some(bytes) => (8, u64::from_be_bytes(*bytes)),
                None => return Ok(None),
            },
            short => (0, u64::from(short)),
        };
        if payload_len > i64::MAX as u64 {
            return Err(Violation::protocol("frame length over 63 bits"));
        }
        if (length_len == 2 && payload_len < 126) || (length_len == 8 && payload_len <= 0xFFFF) {
            return Err(Violation::protocol("frame length not in its shortest form"));
        }
        let header_len = 2 + length_len + if masked { 4 } else { 0 };
        let whole = bytes.len() >= header_len;
        Ok(whole.then_some(FrameHeader { fin, rsv1, opcode, masked, header_len, payload_len }))
    }

    /// FIN, RSV1 and opcode of a header's first byte.
    pub(super) fn parse_first(first: u8) -> Result<(bool, bool, Opcode), Violation> {
        if first & RSV2_RSV3 != 0 {
            return Err(Violation::protocol("reserved bit set"));
        }
        let opcode = Opcode::from_bits(first & 0x0F).ok_or(Violation::protocol("reserved opcode"))?;
        let fin = first & FIN != 0;
        if opcode.is_control() && !fin {
            return Err(Violation::protocol("fragmented control frame"));
        }
        Ok((fin, first & RSV1 != 0, opcode))
    }
}

/// Masks or unmasks `bytes`, whose first byte belongs to `key[0]` (RFC 6455 §5.3). Its own inverse.
///
/// Eight bytes a step, which the compiler turns into vectors.
pub fn apply_mask(bytes: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = bytes.chunks_exact_mut(8);
    for word in &mut words {
        let masked = u64::from_ne_bytes(word.try_into().expect("a chunk of eight")) ^ wide;
        word.copy_from_slice(&masked.to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= key;
    }
}

/// The key for the byte that stands `n` bytes after the one that belongs to `key[0]`.
pub(super) fn key_after(mut key: [u8; 4], n: usize) -> [u8; 4] {
    key.rotate_left(n % 4);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header_of(payload_len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        write_header(&mut out, Opcode::Binary, false, payload_len);
        out
    }

    #[test]
    fn a_length_takes_its_shortest_form_and_is_read_back() {
        let expected = [(0, 2), (125, 2), (126, 4), (0xFFFF, 4), (0x1_0000, 10), (16 << 20, 10)];
        for (payload_len, header_len) in expected {
            let bytes = header_of(payload_len);
            assert_eq!(bytes.len(), header_len);
            for cut in 0..header_len {
                assert_eq!(FrameHeader::parse(&bytes[..cut]), Ok(None), "{payload_len} cut at {cut}");
            }
            let header = FrameHeader::parse(&bytes).unwrap().unwrap();
            assert_eq!((header.header_len, header.payload_len), (header_len, payload_len as u64));
            assert!(header.fin && !header.rsv1 && !header.masked && header.opcode == Opcode::Binary);
        }
    }

    #[test]
    fn a_length_longer_than_needed_is_refused() {
        for bytes in [&[0x82, 126, 0, 125][..], &[0x82, 127, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]] {
            assert_eq!(FrameHeader::parse(bytes).unwrap_err().code, 1002);
        }
        assert_eq!(FrameHeader::parse(&[0x82, 127, 0x80, 0, 0, 0, 0, 1, 0, 0]).unwrap_err().code, 1002);
    }

    #[test]
    fn a_client_frame_is_the_server_frame_with_key_and_masked_payload() {
        let key = [0x37, 0xfa, 0x21, 0x3d];
        let mut out = Vec::new();
        write_client_frame(&mut out, Opcode::Text, b"Hello", key);
        // RFC 6455 §5.7: a single-frame masked text message.
        assert_eq!(out, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
    }

    #[test]
    fn masking_acts_byte_by_byte_at_every_length_and_phase() {
        let key = [1, 2, 4, 8];
        for len in 0..70 {
            for phase in 0..4 {
                let mut bytes: Vec<u8> = (0..len).collect();
                apply_mask(&mut bytes, key_after(key, phase));
                for (i, byte) in bytes.iter().enumerate() {
                    assert_eq!(*byte, i as u8 ^ key[(i + phase) % 4]);
                }
            }
        }
    }

    #[test]
    fn a_reason_is_cut_to_123_bytes_on_a_characters_boundary() {
        let reason = "é".repeat(100);
        let mut out = Vec::new();
        write_close(&mut out, 1001, &reason);
        assert_eq!(out[..4], [0x88, 2 + 122, 0x03, 0xE9]);
        assert_eq!(std::str::from_utf8(&out[4..]).unwrap(), "é".repeat(61));
        assert_eq!(close_payload(1001, &reason), out[2..]);
        assert_eq!(close_payload(1000, ""), [0x03, 0xE8]);
        assert_eq!(close_payload(1000, &"a".repeat(123)).len(), 125);
    }

    #[test]
    fn codes_that_never_travel_are_told_from_those_that_do() {
        for code in [1000, 1003, 1007, 1011, 1012, 1013, 1014, 3000, 4999] {
            assert!(is_close_code(code), "{code}");
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
            assert!(!is_close_code(code), "{code}");
        }
    }
}
