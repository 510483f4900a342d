//! `fanwire config`: the settings, printed, checked, documented, and taken over from others.

use super::import::{self, FILES_MAX, Imported};
use super::{EXIT_CONFIG, environment, print};
use crate::config;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
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
    /// Say whether `serve` would take this file and those it names, under the present environment; exit code 78 if not
    Check {
        /// The file [default: fanwire.toml of the working directory, if it is there]
        file: Option<PathBuf>,
    },
    /// Print docs/CONFIGURATION.md (`fanwire config docs > docs/CONFIGURATION.md` renews it)
    Docs,
    /// Print a fanwire.toml made from configuration files of gpush or go-push
    #[command(after_help = IMPORT)]
    Import {
        /// Whose files
        from: import::From,
        /// All files of one installation, TOML or JSON: socket and proxy, gateway and logic
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

const IMPORT: &str = "\
Every key is accounted for in the comments; what needs a decision is on stderr too. Save it and check it:
  fanwire config import gpush socket.toml proxy.toml > fanwire.toml
  fanwire config check fanwire.toml

Exit code 78: a file can't be read, or is not what it should be; stderr says where.";

/// Runs it.
pub fn run(args: Args) -> ExitCode {
    let text = match args.command {
        Command::Default => config::default_toml(),
        Command::Docs => config::markdown(),
        Command::Import { from, files } => match imported(from, &files) {
            Ok(Imported { toml, remarks }) => {
                remarks.iter().for_each(|remark| eprintln!("{remark}"));
                toml
            }
            Err(problems) => {
                problems.iter().for_each(|problem| eprintln!("{problem}"));
                return ExitCode::from(EXIT_CONFIG);
            }
        },
        Command::Check { file } => match config::load(file.as_deref(), environment(), &[]) {
            Ok(loaded) => {
                for warning in &loaded.warnings {
                    eprintln!("warning: {warning}");
                }
                if let Err(error) = crate::gateway::check_files(&loaded.config) {
                    eprintln!("{error}");
                    return ExitCode::from(EXIT_CONFIG);
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
    print(&text)
}

fn imported(from: import::From, files: &[PathBuf]) -> Result<Imported, Vec<String>> {
    if files.len() > FILES_MAX {
        return Err(vec![format!("{} files are too many: give at most {FILES_MAX}", files.len())]);
    }
    let (mut texts, mut problems) = (Vec::new(), Vec::new());
    for file in files {
        match read(file) {
            Ok(text) => texts.push((file.display().to_string(), text)),
            Err(error) => problems.push(format!("{}: it can't be read: {error}", file.display())),
        }
    }
    if problems.is_empty() { import::import(from, &texts, config::sections()) } else { Err(problems) }
}

fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    if File::open(file)?.take(config::FILE_BYTES_MAX + 1).read_to_string(&mut text)? as u64 > config::FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is larger than {} bytes", config::FILE_BYTES_MAX)));
    }
    Ok(text)
}
