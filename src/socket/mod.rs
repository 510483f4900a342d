//! The kernel boundary: rings, tokens, bytes in flight. Everything above speaks to [`Ring`]; what is below it is either
//! the kernel ([`uring`]) or the simulation's stand-in.
//!
//! The kernel borrows, so the ring owns: submitting moves the bytes in, and the completion hands them back.

mod acceptor;
mod buffers;
mod client;
mod inflight;
mod listener;
mod ring;
mod setup;
mod token;
pub mod uring;

pub use acceptor::{AcceptEvent, AcceptRing, Guest, KernelAcceptRing};
pub use client::{Buffer, ClientRing, ClientRingOptions, Event};
pub use inflight::InFlight;
pub use listener::{ListenError, ListenOptions, Listener, listen};
pub use ring::{BufferId, Completion, Defect, Ring};
pub use setup::Sizes;
pub use token::{Kind, Token};
