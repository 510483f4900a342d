//! The command line: one file per command, arguments → a call below.

pub mod bench;
pub mod config;
pub mod publish;
pub mod serve;
pub mod subscribe;
