//! The far side of `fanwire bench`: many clients on few rings, a publisher that keeps its schedule whatever happens, and the
//! bookkeeping that says what arrived, when, and what it cost the server.
//!
//! ```text
//! publisher threads                                     client thread (one, any number of rings)
//! schedule ─► batches ─► gRPC, HTTP, NATS ─► server ─► sockets ─► reader ─► stamp ─► tally
//!    │            acks ◄────┘               │                                     │
//!    └── what was sent and refused          └── /proc: CPU, memory ──► run ◄──────┘ latency, gaps, duplicates, order
//! ```
//!
//! Open loop: message *i* is due at a time fixed before the run, carries that time, and its latency counts from it, so that a
//! server (or a publisher) that falls behind shows as latency instead of lowering the load.

pub mod bare;
pub mod centrifugo;
pub mod clients;
pub mod dialect;
pub(crate) mod gpush;
pub mod hgrm;
pub mod host;
mod nats;
pub mod publisher;
pub(crate) mod reader;
pub mod report;
pub mod run;
pub mod schedule;
pub mod server;
mod stamp;
mod tally;
mod zipf;

/// Most topics of one load.
pub const TOPICS_MAX: i64 = stamp::Stream::TOPICS_MAX as i64;
/// Most publishers of one load.
pub const PUBLISHERS_MAX: u32 = stamp::Stream::PUBLISHERS_MAX;
pub use stamp::MESSAGE_BYTES_MIN;
