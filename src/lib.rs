//! Fanwire: a push gateway for bare metal. `docs/ARCHITECTURE.md` is the map.
//!
//! Uses go down this list, never up (`tests/layers.rs`):
//!
//! ```text
//! 4  cli ─► gateway, load              parse, wire, start, stop; load = the client side of `bench`
//! 3  ingest   accept   tick   cluster  one per kind of core; they meet only through queues
//! 2  topics   encode   shard           decisions, pure, no I/O, no clock
//! 1  dialect                           one client family each, over websocket
//! 1  queue    socket   websocket       mechanisms, ignorant of one another
//! 1  host                              the machine under the gateway: what it offers, what connections ask
//! 0  frame ids clock config metrics sys demo causes
//! ·  sim                               stands in for socket, queue pace and clock; tests only
//! ```

#![recursion_limit = "256"] // The JSON of a benchmark report is one large macro call.

pub mod accept;
pub mod auth;
mod causes;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod dialect;
pub mod encode;
pub mod frame;
pub mod gateway;
pub mod host;
pub mod ids;
pub mod ingest;
pub mod load;
pub mod metrics;
pub mod proto;
pub mod queue;
pub mod shard;
pub mod sim;
pub mod socket;
pub mod sys;
pub mod tick;
pub mod topics;
pub mod websocket;
