//! The 64 bits that name a submission and come back with its completion.

use crate::ids::{Generation, Slot};

const KIND_BITS: u32 = 8;
const GENERATION_BITS: u32 = 24;
const SLOT_BITS: u32 = 32;
const _: () = assert!(KIND_BITS + GENERATION_BITS + SLOT_BITS == u64::BITS);

/// What was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Multishot poll of a connection: it has something to read, or ended.
    Poll = 1,
    /// One receive into a provided buffer.
    Recv = 2,
    /// The one send a connection may have in flight.
    Send = 3,
    /// shutdown(SHUT_WR): our last word is out.
    ShutdownWrite = 4,
    /// shutdown(SHUT_RDWR), linked before [`Kind::Close`].
    Shutdown = 5,
    /// The file slot is free again.
    Close = 6,
    /// Cancels the armed poll.
    Cancel = 7,
    /// Multishot poll of the core's bell.
    Bell = 8,
    /// A socket handed over by the accepting core: generation and slot bits hold the hand-over's number, the result is the slot.
    Arrival = 9,
    /// A wait that ran out, or another completion nobody waits for.
    Ignore = 10,
    /// Accepting core: one one-shot accept.
    Accept = 11,
    /// Accepting core: a socket on its way to a shard.
    HandOver = 12,
}

/// Names a submission: kind 8 | generation 24 | slot 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

impl Token {
    /// A token of a connection.
    pub fn new(kind: Kind, generation: Generation, slot: Slot) -> Token {
        let generation = u64::from(generation.0) & ((1 << GENERATION_BITS) - 1);
        Token((kind as u64) << (GENERATION_BITS + SLOT_BITS) | generation << SLOT_BITS | u64::from(slot.0))
    }

    /// A token of kind [`Kind::Arrival`] for hand-over `number` (56 bits, wraps).
    pub fn arrival(number: u64) -> Token {
        let number = number & ((1 << (GENERATION_BITS + SLOT_BITS)) - 1);
        Token((Kind::Arrival as u64) << (GENERATION_BITS + SLOT_BITS) | number)
    }

    /// The number of a hand-over.
    pub fn arrival_number(self) -> u64 {
        self.0 & ((1 << (GENERATION_BITS + SLOT_BITS)) - 1)
    }

    /// What was submitted.
    ///
    /// # Panics
    /// If the bits are not from [`Token::new`]: the ring brought back something we never submitted.
    pub fn kind(self) -> Kind {
        match self.0 >> (GENERATION_BITS + SLOT_BITS) {
            1 => Kind::Poll,
            2 => Kind::Recv,
            3 => Kind::Send,
            4 => Kind::ShutdownWrite,
            5 => Kind::Shutdown,
            6 => Kind::Close,
            7 => Kind::Cancel,
            8 => Kind::Bell,
            9 => Kind::Arrival,
            10 => Kind::Ignore,
            11 => Kind::Accept,
            12 => Kind::HandOver,
            other => panic!("completion of unknown kind {other}"),
        }
    }

    /// Whose tenancy of the slot.
    pub fn generation(self) -> Generation {
        Generation((self.0 >> SLOT_BITS) as u32 & ((1 << GENERATION_BITS) - 1))
    }

    /// Which slot.
    pub fn slot(self) -> Slot {
        Slot(self.0 as u32)
    }
}

impl Generation {
    /// The slot's next tenant.
    #[must_use]
    pub fn next(self) -> Generation {
        Generation((self.0 + 1) & ((1 << GENERATION_BITS) - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_brings_back_what_was_put_in() {
        for kind in [Kind::Poll, Kind::Send, Kind::HandOver] {
            let t = Token::new(kind, Generation(0xff_fffe), Slot(u32::MAX));
            assert_eq!((t.kind(), t.generation(), t.slot()), (kind, Generation(0xff_fffe), Slot(u32::MAX)));
        }
        assert_eq!(Generation(0xff_ffff).next(), Generation(0));
        assert_eq!(Token::arrival(12345).arrival_number(), 12345);
    }
}
