//! `fanwire tune`: the kernel's settings for so many connections, shown, set, and put back.

use super::{EXIT_CONFIG, EXIT_FAILED, EXIT_USAGE, demand, environment};
use crate::config;
use crate::host::{Demand, Machine, Nic, Plan, Root, Tuner, drop_in};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    demand: demand::Flags,
    #[command(flatten)]
    what: What,
    /// Write what is set into a file too, for the next boots
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = DROP_IN, conflicts_with_all = ["revert", "print"])]
    drop_in: Option<PathBuf>,
    /// Spread the work of this network card over all cores too (interrupts, RPS, XPS)
    #[arg(long, value_name = "INTERFACE", conflicts_with_all = ["revert", "print"])]
    nic: Option<String>,
    /// Where what was there before is kept
    #[arg(long, value_name = "FILE", default_value = "/var/lib/fanwire/tune.json")]
    state: PathBuf,
    /// Configuration file, as for `serve` [default: fanwire.toml of the working directory, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any setting, repeatable, as for `serve`
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = super::setting)]
    set: Vec<(String, String)>,
    /// One JSON object on stdout instead of text
    #[arg(long, conflicts_with = "print")]
    json: bool,
}

/// One of them at most; none is `--dry-run`.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct What {
    /// Show what would be changed, and change nothing (what it does by itself, too)
    #[arg(long)]
    dry_run: bool,
    /// Change it, all or nothing
    #[arg(long)]
    apply: bool,
    /// Put back what was there before the first --apply
    #[arg(long)]
    revert: bool,
    /// Print a file for /etc/sysctl.d of any machine: tuning/sysctl.d/90-fanwire.conf
    #[arg(long)]
    print: bool,
}

const DROP_IN: &str = "/etc/sysctl.d/90-fanwire.conf";

/// Printed under its help.
pub const EXIT_CODES: &str = "\
Limits are raised and never lowered. What was there is written down before the first change; applying twice keeps the first
state. If a change fails, those before it are put back. A reboot takes back all but the file of --drop-in.
Limits of open files are not the kernel's but the unit's or the user's: tuning/fanwire.service, tuning/limits.d.

Exit codes:
   0  shown, done, or nothing to do
   1  failed; stderr says what was and was not changed
   2  wrong arguments
  78  the configuration can't be used; stderr says why";

/// Runs it.
pub fn run(args: &Args) -> ExitCode {
    let loaded = match config::load(args.config.as_deref(), environment(), &args.set) {
        Ok(loaded) => loaded,
        Err(error) => return failed(EXIT_CONFIG, &error),
    };
    let root = Root::default();
    let machine = Machine::read(&root, None);
    let demand = Demand { tracked: machine.tracked.is_some(), ..args.demand.of(&loaded.config) };
    if args.what.print {
        return printed(&drop_in(&demand, |_| None));
    }
    let tuner = Tuner::new(root.clone(), args.state.clone());
    if args.what.revert {
        return match tuner.revert() {
            Ok(outcome) => printed(&args.told(&outcome, outcome.lines())),
            Err(error) => failed(EXIT_FAILED, &error),
        };
    }
    let nic = match &args.nic {
        None => None,
        Some(name) => match Nic::read(&root, name) {
            Some(nic) => Some(nic),
            None => {
                let there = root.names("/sys/class/net").join(", ");
                return failed(EXIT_USAGE, &format!("--nic {name}: there is no such interface; there are: {there}"));
            }
        },
    };
    let plan = Plan::new(&root, &demand, nic.as_ref(), &machine.online, args.drop_in.as_deref());
    if !args.what.apply || plan.is_empty() {
        return printed(&args.told(&plan, args.shown(&plan)));
    }
    match tuner.apply(&plan) {
        Ok(outcome) => printed(&args.told(&outcome, outcome.lines() + &left_alone(&plan))),
        Err(error) => failed(EXIT_FAILED, &error),
    }
}

impl Args {
    fn told(&self, what: &impl serde::Serialize, text: String) -> String {
        if self.json { serde_json::to_string(what).expect("plain data is JSON") + "\n" } else { text }
    }

    /// The plan, and what to type to carry it out.
    fn shown(&self, plan: &Plan) -> String {
        let mut text = String::new();
        for change in &plan.changes {
            let _ =
                writeln!(text, "{}: {} → {}\n       why  {}", change.name(), change.before, change.after, change.why);
        }
        if let Some((path, _)) = &plan.file {
            let _ = writeln!(text, "{}: would be written, with all of these for the next boots", path.display());
        }
        text += &left_alone(plan);
        if plan.is_empty() {
            let _ = writeln!(text, "Nothing to change for {} connections.", plan.connections);
        } else {
            // As this process was called: there may be no `fanwire` on the PATH.
            let arguments: Vec<String> = std::env::args().filter(|argument| argument != "--dry-run").collect();
            let _ = writeln!(
                text,
                "\nNothing was changed. To change it: sudo {} --apply\nTo take it back: sudo {} tune --revert --state {}{}",
                arguments.join(" "),
                arguments[0],
                self.state.display(),
                if self.drop_in.is_none() {
                    ", or a reboot. To keep it over reboots: --drop-in."
                } else {
                    " (a reboot does not: the file is read again)."
                }
            );
        }
        text
    }
}

fn left_alone(plan: &Plan) -> String {
    plan.left_alone.iter().map(|line| format!("left alone: {line}\n")).collect()
}

/// Not `print!`, which panics when the reader (`| head`) has gone.
fn printed(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(EXIT_FAILED, &format!("nothing could be written to stdout: {error}")),
    }
}

fn failed(code: u8, error: &impl std::fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{error}"); // The exit code tells it too.
    ExitCode::from(code)
}
