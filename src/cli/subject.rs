//! `fanwire subject`: where to publish straight into NATS.

use super::{EXIT_CONFIG, environment, print, setting};
use crate::{cluster, config};
use std::path::PathBuf;
use std::process::ExitCode;

/// For `cluster.transport = "nats"`: what is published to that subject, all nodes deliver. The prefix is `cluster.nats_subjects` of the
/// configuration.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topic; neither topic nor user: everyone
    #[arg(default_value = "")]
    topic: String,
    /// The user
    #[arg(long, value_name = "UID", default_value = "")]
    uid: String,
    /// Configuration file [default: fanwire.toml of the working directory, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any setting, repeatable, as `cluster.nats_subjects=push`
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
}

/// Runs it.
pub fn run(args: &Args) -> ExitCode {
    match config::load(args.config.as_deref(), environment(), &args.set) {
        Ok(loaded) => print(&(cluster::subject(&loaded.config.cluster, &args.uid, &args.topic) + "\n")),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}
