//! What a load message says about itself, as text that is also a JSON string, so that any dialect carries it verbatim.
//!
//! ```text
//! "fwload:   8 bytes of magic
//! stream     8 bytes: topic 22 bits | publisher 10 bits
//! sequence   8 bytes: of that stream, from 0, wraps
//! due       16 bytes: intended time, ns of CLOCK_MONOTONIC
//! xxx…x"     filler up to the size asked for, and the closing quote
//! ```
//!
//! Numbers are written four bits a byte, `@` to `O`, most significant first: eight bytes decode in a few shifts, without
//! a branch, and ten million messages a second have to be looked at.

/// Names one publisher's messages to one topic: within a stream they are in order, between streams they need not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stream(pub(crate) u32);

impl Stream {
    const PUBLISHER_BITS: u32 = 10;
    /// Most publishers of one load.
    pub(crate) const PUBLISHERS_MAX: u32 = 1 << Self::PUBLISHER_BITS;
    /// Most topics of one load.
    pub(crate) const TOPICS_MAX: u32 = 1 << (u32::BITS - Self::PUBLISHER_BITS);

    pub(crate) fn new(topic: u32, publisher: u32) -> Stream {
        debug_assert!(topic < Self::TOPICS_MAX && publisher < Self::PUBLISHERS_MAX);
        Stream(topic << Self::PUBLISHER_BITS | publisher)
    }

    pub(crate) fn topic(self) -> u32 {
        self.0 >> Self::PUBLISHER_BITS
    }

    pub(crate) fn publisher(self) -> u32 {
        self.0 & (Self::PUBLISHERS_MAX - 1)
    }
}

/// Which message it is, and when it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) stream: Stream,
    pub(crate) sequence: u32,
    pub(crate) due_ns: u64,
}

const MAGIC: [u8; 8] = *b"\"fwload:";
const STAMP_BYTES: usize = 40;

/// Smallest message: the stamp and the closing quote.
pub const MESSAGE_BYTES_MIN: usize = STAMP_BYTES + 1;

impl Stamp {
    /// Writes the message into `message`, at least [`MESSAGE_BYTES_MIN`] bytes.
    pub(crate) fn write(self, message: &mut [u8]) {
        let (stamp, filler) = message.split_at_mut(STAMP_BYTES);
        stamp[..8].copy_from_slice(&MAGIC);
        stamp[8..16].copy_from_slice(&spread(self.stream.0));
        stamp[16..24].copy_from_slice(&spread(self.sequence));
        stamp[24..32].copy_from_slice(&spread((self.due_ns >> 32) as u32));
        stamp[32..40].copy_from_slice(&spread(self.due_ns as u32));
        filler.fill(b'x');
        *filler.last_mut().expect("a message has room for the closing quote") = b'"';
    }

    /// What `message` says, if it is one of ours.
    #[inline]
    pub(crate) fn read(message: &[u8]) -> Option<Stamp> {
        let word = |i: usize| u64::from_be_bytes(message[8 * i..8 * i + 8].try_into().expect("eight bytes"));
        if message.len() < MESSAGE_BYTES_MIN || word(0) != u64::from_be_bytes(MAGIC) {
            return None;
        }
        const HIGH: u64 = 0xf0f0_f0f0_f0f0_f0f0;
        let odd = |w: u64| (w & HIGH) ^ 0x4040_4040_4040_4040;
        if odd(word(1)) | odd(word(2)) | odd(word(3)) | odd(word(4)) != 0 {
            return None;
        }
        let due_ns = u64::from(gather(word(3))) << 32 | u64::from(gather(word(4)));
        Some(Stamp { stream: Stream(gather(word(1))), sequence: gather(word(2)), due_ns })
    }
}

/// Gives `found` every stamp in `text`, wherever it stands: in JSON, in a list, as a string in a string.
pub(crate) fn each(text: &[u8], mut found: impl FnMut(Stamp)) {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|b| *b == MAGIC[0]) {
        match Stamp::read(&rest[at..]) {
            Some(stamp) => {
                found(stamp);
                rest = &rest[at + STAMP_BYTES..];
            }
            None => rest = &rest[at + 1..],
        }
    }
}

fn spread(value: u32) -> [u8; 8] {
    std::array::from_fn(|i| b'@' | (value >> (28 - 4 * i)) as u8 & 0x0f)
}

#[inline]
fn gather(word: u64) -> u32 {
    let w = word & 0x0f0f_0f0f_0f0f_0f0f;
    let w = (w | w >> 4) & 0x00ff_00ff_00ff_00ff;
    let w = (w | w >> 8) & 0x0000_ffff_0000_ffff;
    (w | w >> 16) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_back_as_written_and_is_a_json_string() {
        for (stream, sequence, due_ns) in [(0, 0, 0), (0x1234_5678, 0x9abc_def0, 0xfedc_ba98_7654_3210), (!0, !0, !0)] {
            let stamp = Stamp { stream: Stream(stream), sequence, due_ns };
            for size in [MESSAGE_BYTES_MIN, 128, 5000] {
                let mut message = vec![0; size];
                stamp.write(&mut message);
                assert_eq!(Stamp::read(&message), Some(stamp));
                assert_eq!(serde_json::from_slice::<String>(&message).unwrap().len(), size - 2);
            }
        }
        let s = Stream::new(4_000_000, 1023);
        assert_eq!((s.topic(), s.publisher()), (4_000_000, 1023));
    }

    #[test]
    fn stamps_are_found_wherever_they_stand() {
        let stamp = |sequence| Stamp { stream: Stream(5), sequence, due_ns: 9 };
        let text = |sequence| {
            let mut message = vec![0; 64];
            stamp(sequence).write(&mut message);
            String::from_utf8(message).unwrap()
        };
        let escaped = text(3).replace('"', "\\\"");
        let whole = format!(r#"{{"items":[{},"",{}],"more":"{escaped}"}}"#, text(1), text(2));
        let mut got = Vec::new();
        each(whole.as_bytes(), |s| got.push(s));
        assert_eq!(got, [stamp(1), stamp(2), stamp(3)]);
        each(br#"{"a":"fwload","b":"fwload:"}"#, |s| panic!("{s:?}"));
    }

    #[test]
    fn other_messages_are_not_taken_for_ours() {
        let mut message = [0; 128];
        Stamp { stream: Stream(1), sequence: 2, due_ns: 3 }.write(&mut message);
        assert_eq!(Stamp::read(b"pong"), None);
        assert_eq!(Stamp::read(&message[..MESSAGE_BYTES_MIN - 1]), None);
        for i in 0..STAMP_BYTES {
            let mut broken = message;
            broken[i] ^= 0x20;
            assert_eq!(Stamp::read(&broken), None, "byte {i}");
        }
    }
}
