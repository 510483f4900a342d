//! Builds the queues, starts the cores, drains them in order. (Under construction.)

use crate::config::Config;
use std::process::ExitCode;

/// Runs a gateway until it is told to stop. Prints where it listens on stdout, logs on stderr.
pub fn serve(_config: Config) -> ExitCode {
    ExitCode::SUCCESS
}
