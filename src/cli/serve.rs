//! `fanwire serve`: configuration → a running gateway.

use super::{EXIT_CONFIG, environment, logging, setting};
use crate::{config, gateway};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags beat the environment (`FANWIRE_SECTION__KEY`), which beats the file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file [default: fanwire.toml of the working directory, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// For development: serve /echo to subscribers, and /dev/stall on the HTTP port
    #[arg(long)]
    pub dev: bool,
    /// Any setting, repeatable, as `shards.count=2` or `listen.0.address=127.0.0.1:9992`
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = setting)]
    pub set: Vec<(String, String)>,
    /// Address for subscribers; repeatable, the nth stands for `listen.N.address`
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Vec<String>,
    /// publish.grpc_address
    #[arg(long, value_name = "ADDRESS")]
    pub grpc_address: Option<String>,
    /// publish.http_address
    #[arg(long, value_name = "ADDRESS")]
    pub http_address: Option<String>,
    /// cluster.role: all, ingest (no subscribers) or fanout (no publishers)
    #[arg(long, value_name = "ROLE")]
    pub role: Option<String>,
    /// shards.count
    #[arg(long, value_name = "N")]
    pub shards: Option<String>,
    /// log.level
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// log.format
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

impl Args {
    /// What the flags set, as (`section.key`, value). Flags of their own come last: they beat `--set`.
    pub fn settings(&self) -> Vec<(String, String)> {
        let listen = self.listen.iter().enumerate().map(|(i, a)| (format!("listen.{i}.address"), a.clone()));
        let named = [
            ("publish.grpc_address", &self.grpc_address),
            ("publish.http_address", &self.http_address),
            ("cluster.role", &self.role),
            ("shards.count", &self.shards),
            ("log.level", &self.log_level),
            ("log.format", &self.log_format),
        ];
        let named = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
        self.set.iter().cloned().chain(listen).chain(named).collect()
    }
}

/// Loads the configuration, sets up logging and runs a gateway until it is told to stop. Nothing that is wrong with the
/// configuration leaves a socket open.
pub fn run(args: Args) -> ExitCode {
    let loaded = match config::load(args.config.as_deref(), environment(), &args.settings()) {
        Ok(loaded) => loaded,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}"); // The exit code tells it too.
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let mut config = loaded.config;
    config.dev = args.dev;
    let log = logging::init(&config.log);
    match loaded.file {
        Some(file) => tracing::info!(file = %file.display(), "configuration read"),
        None => tracing::debug!("no configuration file"),
    }
    gateway::serve(config, std::sync::Arc::new(log), &loaded.warnings)
}
