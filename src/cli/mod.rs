//! The command line: one file per command, arguments → a call below.

pub mod bench;
pub mod config;
mod demand;
pub mod doctor;
pub mod import;
pub mod logging;
mod market;
pub mod nodes;
pub mod publish;
pub mod serve;
mod simulate;
pub mod subject;
pub mod subscribe;
pub mod tune;

use clap::{Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// The command ran and failed.
pub const EXIT_FAILED: u8 = 1;
/// The arguments are wrong. (clap exits with it by itself.)
pub const EXIT_USAGE: u8 = 2;
/// The configuration or this machine can't be used as it is: `EX_CONFIG` of sysexits.h.
pub const EXIT_CONFIG: u8 = 78;

const EXIT_CODES: &str = "\
Exit codes:
   0  done; a gateway has drained and stopped as it was told
   1  failed while running
   2  wrong arguments
  78  the configuration, or what this machine offers, can't be used as it is; stderr says what to change

Without a command, `fanwire` serves. Flags beat the environment (FANWIRE_SHARDS__COUNT=2), which beats the file. All
settings: `fanwire config default`, docs/CONFIGURATION.md.";

/// Push gateway: publish once over gRPC or HTTP, every WebSocket subscriber has it.
#[derive(Debug, Parser)]
#[command(name = "fanwire", version, about, after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway (also without a command)
    #[command(after_help = EXIT_CODES)]
    Serve(serve::Args),
    /// Measure a gateway: many clients, one publisher, latency from the intended time
    Bench(Box<bench::Args>),
    /// Publish to a topic, a user or everyone, or the quotes of a simulated market
    Pub(Box<publish::Args>),
    /// Subscribe to topics and print what arrives
    Sub(subscribe::Args),
    /// List the nodes of a cluster
    Nodes(nodes::Args),
    /// Print the subject of NATS for a topic or a user
    Subject(subject::Args),
    /// Print, check, document or take over the settings
    Config(config::Args),
    /// Say what on this machine stops or slows so many connections, and how to fix it
    #[command(after_help = doctor::EXIT_CODES)]
    Doctor(doctor::Args),
    /// Show, set or put back the kernel's settings for so many connections
    #[command(after_help = tune::EXIT_CODES)]
    Tune(tune::Args),
}

/// Parses the arguments of this process and runs what they ask for. Wrong ones end it with [`EXIT_USAGE`].
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(args) => serve::run(args),
        Command::Bench(args) => bench::run(*args),
        Command::Pub(args) => publish::run(*args),
        Command::Sub(args) => subscribe::run(args),
        Command::Nodes(args) => nodes::run(args),
        Command::Subject(args) => subject::run(&args),
        Command::Config(args) => config::run(args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Tune(args) => tune::run(&args),
    }
}

/// This process's environment as text; what is not UTF-8 gets replacement characters and is then refused by its setting.
fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |s: std::ffi::OsString| s.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

/// `section.key=value` of a flag.
fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it must have the form section.key=value")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Prints the whole of what a command is for. Not `print!`, which panics when the reader (`| head`) has gone.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "nothing could be written to stdout: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_a_command_it_serves_with_the_flags_of_serve() {
        let cli = Cli::try_parse_from(["fanwire", "--dev", "--set", "shards.count=2"]).unwrap();
        assert!(cli.command.is_none());
        assert!(cli.serve.dev);
        let named = Cli::try_parse_from(["fanwire", "serve", "--dev", "--set", "shards.count=2"]).unwrap();
        let Some(Command::Serve(args)) = named.command else { panic!("serve was named") };
        assert_eq!(args.settings(), cli.serve.settings());
    }
}
