//! Shards, control core and clients on a fake kernel, one seed each: what clients see, and what is held when all is over.
//!
//! `SIMULATION_SEEDS` says how many seeds (200), `FANWIRE_SHARDS__RING_FEATURES=6.1` how old the simulated kernel is. A failure
//! names its seed and the command that runs it again with everything it says.

use fanwire::sim::{self, DEFECTS, Features, Options, Summary};

/// Within these, clean code passes and every planted defect is found.
const DEFECT_SEEDS: u64 = 300;

fn features() -> Features {
    match std::env::var("FANWIRE_SHARDS__RING_FEATURES").as_deref() {
        Ok("6.1") => Features::Linux6_1,
        _ => Features::Auto,
    }
}

fn seeds() -> u64 {
    let seeds = std::env::var("SIMULATION_SEEDS").ok();
    seeds.map_or(200, |seeds| seeds.parse().expect("SIMULATION_SEEDS is a number"))
}

fn hold(first: u64, count: u64) -> Summary {
    let options = Options { features: features(), ..Options::default() };
    sim::run_many(first, count, options).unwrap_or_else(|failure| panic!("{failure}"))
}

#[test]
fn every_seed_keeps_every_promise_and_all_that_can_happen_does() {
    let sum = hold(0, seeds().max(100));
    println!("{sum:#?}");
    // A simulation that no longer gets there proves nothing.
    let reached = sum.reached;
    for (what, times) in [
        ("publications that waited for room", sum.waited),
        ("publications refused for want of room", sum.refused),
        ("drops", sum.dropped),
        ("messages that shared a frame", sum.joined),
        ("slow consumers closed", sum.slow_closed),
        ("misbehaving clients closed", sum.misbehaved),
        ("reads paused", sum.reads_paused),
        ("sends that blocked", reached.blocked_sends),
        ("sends that broke", reached.broken_sends),
        ("receives without a buffer", reached.no_buffers),
        ("polls that ended by themselves", reached.polls_ended),
        ("slots reused before the last completion", reached.slots_reused_early),
        ("sleepers woken by their bell", reached.bells),
    ] {
        assert!(times > 10, "{what}: {times}");
    }
}

#[test]
fn a_seed_decides_all() {
    let options = Options { seed: 11, features: features(), ..Options::default() };
    let runs = [sim::run(options), sim::run(options)];
    let [first, second] = runs.map(|run| format!("{:?}", run.expect("seed 11 holds")));
    assert_eq!(first, second);
}

#[test]
fn every_planted_defect_is_found_where_clean_code_passes() {
    std::panic::set_hook(Box::new(|info| {
        // The failures looked for are many and expected; those of this test are not.
        if !info.location().is_some_and(|place| place.file().starts_with("src")) {
            eprintln!("{info}");
        }
    }));
    let missed: Vec<&str> = DEFECTS
        .iter()
        .filter(|(name, defect)| {
            let options = Options { defect: Some(*defect), features: features(), ..Options::default() };
            let found = sim::run_many(0, DEFECT_SEEDS, options);
            match &found {
                Ok(_) => println!("{name}: not found"),
                Err(failure) => println!("{name}: {failure}"),
            }
            found.is_ok()
        })
        .map(|(name, _)| *name)
        .collect();
    assert!(missed.is_empty(), "not found within {DEFECT_SEEDS} seeds: {missed:?}");
    hold(0, DEFECT_SEEDS);
}
