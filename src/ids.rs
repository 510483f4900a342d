//! Identifiers as types, so that swapping two of them does not compile.

use std::fmt;

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

identifier! {
    /// One shard: a core's ring and the connections it owns. Dense from 0.
    ShardId(u16)
}
identifier! {
    /// A connection's place in its shard: index into the ring's file table and the connection array alike.
    Slot(u32)
}
identifier! {
    /// Tells a slot's tenant from its next one. 24 bits, wraps; see [`crate::socket::Token`].
    Generation(u32)
}
identifier! {
    /// A shard's number for one (topic, encoding) it wants frames of. Dense, reused after the control core has let go.
    InterestId(u32)
}
identifier! {
    /// Position of a message in its topic. Grows strictly within an [`Epoch`], not contiguously; 0 is before the first.
    Offset(u64)
}
identifier! {
    /// One life of a topic: offsets of two epochs can't be compared. Never 0 once assigned.
    Epoch(u64)
}
/// Names one connection among all there ever were, of any gateway: shown as a UUID of version 8 (RFC 9562 §5.8).
///
/// ```text
/// seed 48 │ version 4 │ seed 12 │ variant 2 │ shard 14 │ count 48
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectId(pub u128);

impl ConnectId {
    /// The `count`-th of `shard` in the run that drew `seed`.
    pub fn new(seed: u64, shard: ShardId, count: u64) -> ConnectId {
        let high = seed & !0xF000 | 0x8000;
        let low = 0b10 << 62 | (u64::from(shard.0) & 0x3FFF) << 48 | count & 0xFFFF_FFFF_FFFF;
        ConnectId(u128::from(high) << 64 | u128::from(low))
    }
}

impl fmt::Display for ConnectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |shift: u32, bits: u32| (self.0 >> shift) & ((1 << bits) - 1);
        let (a, b, c, d, e) = (part(96, 32), part(80, 16), part(64, 16), part(48, 16), part(0, 48));
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}")
    }
}

identifier! {
    /// Dialect × format × compression, fixed at the handshake. Dense from 0, below [`Encoding::COUNT_MAX`].
    Encoding(u8)
}

impl Encoding {
    /// Bound on the number of encodings, so that per-encoding tables are arrays.
    pub const COUNT_MAX: usize = 16;
}

/// An interest and which of its lives is meant: an answer to an earlier life is stale and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InterestRef {
    /// The shard's number for it.
    pub id: InterestId,
    /// Counts the times this number was (re)announced to the control core; wraps.
    pub generation: u32,
}

/// A connection of one shard: its slot and which of its tenants. An answer for another tenant is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientRef {
    /// Its place.
    pub slot: Slot,
    /// Which tenant.
    pub generation: Generation,
}

/// What stands for a uid between cores: a hash under a key that only the control core has. Two uids may share one, so whoever
/// delivers compares the uids themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UserKey(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_any_shard_and_seed_have_names_of_their_own() {
        let names: std::collections::HashSet<_> = [0, 1, u64::MAX]
            .into_iter()
            .flat_map(|seed| [0, 1, 1023].map(|shard| (seed, ShardId(shard))))
            .flat_map(|(seed, shard)| [0, 1, 1 << 40].map(|count| ConnectId::new(seed, shard, count).to_string()))
            .collect();
        assert_eq!(names.len(), 27);
        let id = ConnectId::new(0x0123_4567_89ab_cdef, ShardId(3), 0x42).to_string();
        assert_eq!(id, "01234567-89ab-8def-8003-000000000042");
    }
}
