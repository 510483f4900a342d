//! Runs seeds of the simulation; `scripts/simulate` calls it.

use clap::Parser;
use fanwire::sim::{self, DEFECTS, Features, Options};
use std::process::ExitCode;
use std::time::Instant;

/// Runs N seeds of the simulation, or looks for a planted defect in them.
#[derive(Parser)]
struct Arguments {
    /// How many seeds.
    #[arg(default_value_t = 200)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Plant a mistake: `all`, or the name of one.
    #[arg(long)]
    defect: Option<String>,
    /// The simulated kernel: `auto` or `6.1`.
    #[arg(long, default_value = "auto")]
    features: String,
    /// Say everything that happens.
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let features = match arguments.features.as_str() {
        "auto" => Features::Auto,
        "6.1" => Features::Linux6_1,
        other => return usage(&format!("--features {other}: neither auto nor 6.1")),
    };
    let defects: Vec<_> = match arguments.defect.as_deref() {
        None => vec![None],
        Some("all") => DEFECTS.iter().map(|(_, defect)| Some(*defect)).collect(),
        Some(name) => match DEFECTS.iter().find(|(known, _)| *known == name) {
            Some((_, defect)) => vec![Some(*defect)],
            None => {
                let names: Vec<&str> = DEFECTS.iter().map(|(name, _)| *name).collect();
                return usage(&format!("--defect {name}: not one of {}", names.join(", ")));
            }
        },
    };
    if !arguments.trace {
        std::panic::set_hook(Box::new(|_| {})); // The failure is printed below, once.
    }
    let mut as_wished = true;
    for defect in defects {
        let begun = Instant::now();
        let options = Options { defect, features, trace: arguments.trace, ..Options::default() };
        match sim::run_many(arguments.seed, arguments.seeds, options) {
            Ok(sum) => {
                let rate = arguments.seeds as f64 / begun.elapsed().as_secs_f64();
                println!("{} seeds from {} on hold ({rate:.0} seeds/s): {sum:#?}", arguments.seeds, arguments.seed);
                if let Some(defect) = defect {
                    println!("NOT FOUND: {}", sim::defect_name(defect));
                    as_wished = false;
                }
            }
            Err(failure) => {
                println!("{failure}");
                as_wished &= defect.is_some();
            }
        }
    }
    if as_wished { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage(what: &str) -> ExitCode {
    eprintln!("{what}");
    ExitCode::from(2)
}
