//! `fanwire config`: the settings, printed, checked, documented.

use super::{EXIT_CONFIG, environment};
use crate::config;
use std::path::PathBuf;
use std::process::ExitCode;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print a fanwire.toml with every setting at its default, commented
    Default,
    /// Say whether `serve` would take this file, under the present environment; exit code 78 if not
    Check {
        /// The file [default: fanwire.toml of the working directory, if it is there]
        file: Option<PathBuf>,
    },
    /// Print docs/CONFIGURATION.md (`fanwire config docs > docs/CONFIGURATION.md` renews it)
    Docs,
}

/// Runs it.
pub fn run(args: Args) -> ExitCode {
    match args.command {
        Command::Default => print!("{}", config::default_toml()),
        Command::Docs => print!("{}", config::markdown()),
        Command::Check { file } => match config::load(file.as_deref(), environment(), &[]) {
            Ok(loaded) => {
                for warning in &loaded.warnings {
                    eprintln!("warning: {warning}");
                }
                match loaded.file {
                    Some(file) => println!("ok: {}", file.display()),
                    None => println!("ok: no file, defaults and environment"),
                }
            }
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::from(EXIT_CONFIG);
            }
        },
    }
    ExitCode::SUCCESS
}
