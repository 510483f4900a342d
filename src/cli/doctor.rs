//! `fanwire doctor`: what stands between this machine and so many connections. Changes nothing.

use super::{EXIT_CONFIG, EXIT_FAILED, demand, environment};
use crate::config::{self, Config};
use crate::gateway;
use crate::host::{Demand, Finding, Gateway, Layout, Machine, Root, Verdict, examine, render};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    demand: demand::Flags,
    /// Configuration file, as for `serve` [default: fanwire.toml of the working directory, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any setting, repeatable, as for `serve`
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = super::setting)]
    set: Vec<(String, String)>,
    /// Look at a gateway that runs: its limits, cores and control group instead of this shell's
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// One JSON object on stdout instead of text
    #[arg(long)]
    json: bool,
}

/// Printed under its help.
pub const EXIT_CODES: &str = "\
Each line says what was found, what is wanted, why, and the fix: a command to paste, or what to write into a file.
It looks at this shell's limits; a systemd unit has its own, and `--pid $(systemctl show -P MainPID fanwire)` looks at those.
It runs as any user and says what it could not see.

Exit codes:
   0  nothing that was seen stops so many connections
   1  something does: the lines with STOPS
   2  wrong arguments
  78  the configuration can't be used; stderr says why";

/// Runs it.
pub fn run(args: &Args) -> ExitCode {
    let loaded = match config::load(args.config.as_deref(), environment(), &args.set) {
        Ok(loaded) => loaded,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}"); // The exit code tells it too.
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let config = loaded.config;
    let root = Root::default();
    if let Some(pid) = args.pid.filter(|pid| !root.has(&format!("/proc/{pid}"))) {
        let _ = writeln!(std::io::stderr(), "there is no process {pid}: `pgrep -x fanwire` names those that run");
        return ExitCode::from(EXIT_FAILED);
    }
    let machine = Machine::read(&root, args.pid);
    let demand = Demand { tracked: machine.tracked.is_some(), ..args.demand.of(&config) };
    let findings = examine(&root, &machine, &expected(&config, &machine, &demand, args.pid.is_none()), &demand);
    let stops = findings.iter().any(|finding| finding.verdict == Verdict::Stops);
    let text = if args.json { json(&demand, &findings) } else { render(demand.connections, &findings) };
    // Not `print!`, which panics when the reader (`| head`) has gone.
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) if !stops => ExitCode::SUCCESS,
        Ok(()) => ExitCode::from(EXIT_FAILED),
        Err(error) => {
            eprintln!("nothing could be written to stdout: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn json(demand: &Demand, findings: &[Finding]) -> String {
    let stops = findings.iter().filter(|finding| finding.verdict == Verdict::Stops).count();
    let object = serde_json::json!({ "connections": demand.connections, "stops": stops, "findings": findings });
    format!("{object}\n")
}

/// A file table that is worth having is this much larger than its connections: for publishers, logs and the rest.
const FILES_BESIDE: u64 = 1024;
/// No table is larger (IORING_MAX_FIXED_FILES).
const TABLE_MAX: u64 = 1 << 20;

/// What a gateway of this configuration would be here.
fn expected(config: &Config, machine: &Machine, demand: &Demand, may_try: bool) -> Gateway {
    let cores = machine.cpus.as_ref().map_or(1, Vec::len);
    // A limit that was not seen stops nobody here; the attempt to have a ring says what it is worth.
    let nofile = machine.limits.as_ref().map_or(TABLE_MAX, |limits| limits.files_hard);
    let with = |count: usize, connections_max: u64, nofile: u64| {
        let mut config = config.clone();
        config.shards.count = count;
        config.shards.connections_max = usize::try_from(connections_max).unwrap_or(usize::MAX);
        gateway::forecast(&config, cores, nofile)
    };
    let (count, connections) = (config.shards.count, demand.connections);
    let holds = |forecast: &Result<gateway::Forecast, String>| {
        forecast.as_ref().is_ok_and(|forecast| forecast.connections_max as u64 >= connections)
    };
    let setting = if holds(&with(count, connections, nofile)) {
        Some(format!(
            "[shards]   (in fanwire.toml, or --set shards.connections_max={connections})\nconnections_max = {connections}"
        ))
    } else if holds(&with(0, connections, nofile)) {
        Some(format!(
            "[shards]   (in fanwire.toml; the shards are then counted by themselves)\ncount = 0\nconnections_max = {connections}"
        ))
    } else {
        None
    };
    let forecast = gateway::forecast(config, cores, nofile);
    let table = with(0, connections, TABLE_MAX).map_or(TABLE_MAX, |forecast| forecast.slots as u64);
    let ring = may_try.then(|| gateway::try_ring(config, forecast.as_ref().map_or(64, |forecast| forecast.slots)));
    let fullest = forecast.as_ref().map_or(connections, |forecast| forecast.fullest_shard(connections));
    Gateway {
        layout: forecast.map(|f| Layout {
            shards: f.shards as u64,
            slots: f.slots as u64,
            holds: f.connections_max as u64,
        }),
        table: (table + FILES_BESIDE).min(TABLE_MAX),
        setting,
        ring,
        drain_ms: gateway::drain_ms_max(config, fullest),
        handshakes_per_s_max: config.limits.handshakes_per_s_max,
    }
}
