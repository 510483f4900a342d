//! Everything around the gateway's own code, made of dice: ring, network, queue pace, clock and clients. One seed decides all.
//!
//! The real [`crate::topics::Topics`] and the real [`crate::tick::Reactor`] run in it, on [`ring::SimRing`] instead of the
//! kernel. What clients see is held against what was published; what is held at the end must be nothing.
//!
//! ```text
//!   control ──── book ◄─── reader: every byte the kernel takes for a client
//!     │ queues                ▲
//!   reactor ─── SimRing ─── line ─── client: reads, asks, stalls, breaks, leaves
//!     └───────────── machine: clock, dice, trace ───────────────┘
//! ```
//!
//! `scripts/simulate` runs many seeds, and shows that planted mistakes ([`crate::socket::Defect`]) are found.

pub mod book;
pub mod client;
pub mod control;
pub mod dice;
pub mod line;
pub mod machine;
pub mod reader;
pub mod ring;
pub mod world;

pub use machine::Features;
pub use world::Summary;

use crate::socket::Defect;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// The mistake to plant.
    pub defect: Option<Defect>,
    /// What the simulated kernel has.
    pub features: Features,
    /// Say everything that happens on stderr.
    pub trace: bool,
}

/// Mistakes that can be planted, by the names `scripts/simulate` knows them by.
pub const DEFECTS: [(&str, Defect); 9] = [
    ("two-sends-in-flight", Defect::TwoSendsInFlight),
    ("short-send-ignored", Defect::ShortSendIgnored),
    ("slot-reused-early", Defect::SlotReusedEarly),
    ("buffer-returned-early", Defect::BufferReturnedEarly),
    ("no-buffers-not-rearmed", Defect::NoBuffersNotRearmed),
    ("lost-wake-up", Defect::LostWakeUp),
    ("stale-interest-ack", Defect::StaleInterestAck),
    ("late-login-taken", Defect::LateLoginTaken),
    ("logout-forgotten", Defect::LogoutForgotten),
];

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// With what.
    pub options: Options,
    /// The promise.
    pub what: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Options { seed, defect, features, .. } = self.options;
        write!(f, "seed {seed} fails: {}\nreproduce: scripts/simulate 1 --seed {seed} --trace", self.what)?;
        if let Some(defect) = defect {
            write!(f, " --defect {}", defect_name(defect))?;
        }
        if features == Features::Linux6_1 {
            write!(f, " --features 6.1")?;
        }
        Ok(())
    }
}

/// The name of a defect.
pub fn defect_name(defect: Defect) -> &'static str {
    DEFECTS.iter().find(|(_, d)| *d == defect).map_or("?", |(name, _)| name)
}

/// Runs one seed.
///
/// # Errors
/// The first promise that was broken, an assertion of the gateway's own included. The message went to the panic hook as well.
pub fn run(options: Options) -> Result<Summary, Failure> {
    catch_unwind(AssertUnwindSafe(|| world::World::new(&options).run())).map_err(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|what| (*what).to_owned()))
            .unwrap_or_else(|| "a panic without a message".to_owned());
        Failure { options, what }
    })
}

/// Runs `count` seeds from `first` on, until one fails.
///
/// # Errors
/// The first failure.
pub fn run_many(first: u64, count: u64, options: Options) -> Result<Summary, Failure> {
    let mut sum = Summary::default();
    for seed in first..first.saturating_add(count) {
        sum.add(&run(Options { seed, ..options })?);
    }
    Ok(sum)
}
