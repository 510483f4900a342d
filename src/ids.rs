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
