//! `fanwire bench` (under construction).

use std::process::ExitCode;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs it.
pub fn run(_args: Args) -> ExitCode {
    ExitCode::SUCCESS
}
