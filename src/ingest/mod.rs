//! The publishing side: gRPC and HTTP are spoken here, what they ask for is decided by `topics`.
//!
//! ```text
//! publisher ─► server ─► grpc ─┐                      ┌─► queue ─► shard 0
//!              accepts   http ─┴─► control ─► topics ─┤            …
//!              both                 one lock  decides └─► queue ─► shard n
//! ```
//!
//! All of it runs on the control core's one thread. A publication is admitted or refused within the call that brought it;
//! only one that has to wait for room is ever awaited.

mod centrifugo;
mod control;
mod gopush;
mod grpc;
mod http;
mod json;
mod log_level;
mod pages;
mod pull;
mod push;
mod server;
mod tokens;
mod visits;

pub use control::{Admission, Control, Mind, Oracle, ShardQueues, StallError, Tap, Waiting};
pub use gopush::{CertificateError, GopushError, GopushServer, check_certificate};
pub use log_level::LogLevel;
pub use server::{BindError, Hooks, Server};
pub use tokens::{Tokens, TokensError};
