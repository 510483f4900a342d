//! `fanwire config`: the settings, printed, checked, documented.

use super::{EXIT_CONFIG, EXIT_FAILED, environment};
use crate::config;
use std::io::{self, Write};
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
    let text = match args.command {
        Command::Default => config::default_toml(),
        Command::Docs => config::markdown(),
        Command::Check { file } => match config::load(file.as_deref(), environment(), &[]) {
            Ok(loaded) => {
                for warning in &loaded.warnings {
                    eprintln!("warning: {warning}");
                }
                match loaded.file {
                    Some(file) => format!("ok: {}\n", file.display()),
                    None => "ok: no file, only defaults and environment\n".to_owned(),
                }
            }
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::from(EXIT_CONFIG);
            }
        },
    };
    // Not `print!`, which panics when the reader (`| head`) has gone.
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nothing could be written to stdout: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}
