//! Faults at random, for as long as one likes: `scripts/chaos`. One seed decides what is done, to whom and for how long.

use crate::fleet::{Fleet, Transport};
use crate::record::Verdict;
use crate::trouble::Trouble;
use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

/// Subscribers on each node.
const AUDIENCE: usize = 5;

/// Steele's splitmix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn within(&mut self, range: std::ops::RangeInclusive<u64>) -> u64 {
        range.start() + self.next() % (range.end() - range.start() + 1)
    }
}

/// What is done at one time.
#[derive(Debug, PartialEq)]
struct Step {
    /// Most often one.
    troubles: Vec<Trouble>,
    lasts_ms: u64,
    /// Quiet behind it.
    pause_ms: u64,
}

/// What a seed stands for: steps without end.
struct Plan {
    dice: Dice,
    transport: Transport,
}

impl Plan {
    fn trouble(&mut self) -> Trouble {
        let at = self.dice.within(0..=2) as usize;
        if self.transport == Transport::Nats && self.dice.within(0..=3) == 0 {
            let all = [Trouble::NatsLink, Trouble::NatsStop, Trouble::NatsKill, Trouble::NatsDisk];
            return all[self.dice.within(0..=3) as usize];
        }
        match self.dice.within(0..=16) {
            0 | 1 => Trouble::Link(at),
            2 => Trouble::Throttle(at, self.dice.within(64..=512) as u32),
            3 => Trouble::Delay(at, self.dice.within(10..=400)),
            4 => Trouble::Loss(at, self.dice.within(1..=25) as u8),
            5 => Trouble::Reset(at),
            6 | 7 => Trouble::HalfOpen(at),
            8 | 9 => Trouble::Stop(at),
            10 | 11 => Trouble::Kill(at),
            12 => Trouble::Drain(at),
            13 => Trouble::EtcdLink,
            14 => Trouble::EtcdReset,
            15 => [Trouble::EtcdStop, Trouble::EtcdKill][self.dice.within(0..=1) as usize],
            _ => Trouble::EtcdDisk,
        }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let first = self.trouble();
        let mut troubles = vec![first];
        if self.dice.within(0..=5) == 0 {
            let second = self.trouble();
            // Two of one machine would undo one another.
            let is_other =
                second.node() != first.node() || second.node().is_none() && second.kind()[..4] != first.kind()[..4];
            if is_other {
                troubles.push(second);
            }
        }
        // Seldom longer than a lease lasts.
        let lasts_ms =
            if self.dice.within(0..=9) == 0 { self.dice.within(5000..=9000) } else { self.dice.within(100..=3500) };
        Some(Step { troubles, lasts_ms, pause_ms: self.dice.within(100..=900) })
    }
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

#[test]
#[ignore = "scripts/chaos runs it for as long as it is told"]
fn faults_at_random() {
    let (seconds, seed) = (setting("CHAOS_SECONDS", 60), setting("CHAOS_SEED", 1));
    let name: String = setting("CHAOS_TRANSPORT", "relay".into());
    let transport = match &*name {
        "relay" => Transport::Relay,
        "nats" => Transport::Nats,
        other => panic!("CHAOS_TRANSPORT={other}: neither relay nor nats"),
    };
    let Some(mut fleet) = Fleet::start_with(transport, &[("drain.drain_delay_ms", "300")]) else { return };
    let audience = fleet.audience(AUDIENCE);
    let load = fleet.load();
    println!(
        "three nodes, {} subscribers, 5 publishers; again: scripts/chaos {seconds} {seed} --transport {name}",
        3 * AUDIENCE
    );
    let begun = Instant::now();
    let mut steps = 0;
    for step in (Plan { dice: Dice(seed), transport }).take_while(|_| begun.elapsed() < Duration::from_secs(seconds)) {
        run(&mut fleet, &step, begun);
        steps += 1;
    }
    load.stop();
    let verdict = fleet.judge();
    report(&fleet, &verdict, &format!("{steps} steps in {:.1} s, seed {seed}", begun.elapsed().as_secs_f64()));
    drop(audience);
    verdict.holds();
}

fn run(fleet: &mut Fleet, step: &Step, begun: Instant) {
    let told = step.troubles.iter().map(Trouble::to_string).collect::<Vec<_>>().join(", and ");
    println!("{:>8.3} s  {told} for {} ms", begun.elapsed().as_secs_f64(), step.lasts_ms);
    let mut on: Vec<_> = step.troubles.iter().map(|trouble| (*trouble, trouble.begin(fleet))).collect();
    thread::sleep(Duration::from_millis(step.lasts_ms));
    // A node starts when everything else is well again.
    on.sort_by_key(|(trouble, _)| trouble.restarts());
    on.into_iter().for_each(|(trouble, fault)| trouble.end(fleet, fault));
    thread::sleep(Duration::from_millis(step.pause_ms));
}

fn report(fleet: &Fleet, verdict: &Verdict, done: &str) {
    let millis = |duration: Duration| format!("{:.3} s", duration.as_secs_f64());
    let mut away = verdict.away.clone();
    away.sort();
    println!("\ndone           {done}");
    println!("published      {}", verdict.published);
    println!("acknowledged   {}", verdict.accepted);
    println!("delivered      {} in {} sessions", verdict.delivered, verdict.sessions);
    println!("lost           {}", verdict.lost.len());
    println!("doubled        {}", verdict.doubled.len());
    println!("out of order   {}", verdict.disordered.len());
    let died = verdict.died_with_their_node;
    println!(
        "died with node {died}, accepted at most {} before a node was killed, and by it alone",
        millis(verdict.died_within)
    );
    println!("cut short      {} deliveries under way when the session of their subscriber ended", verdict.cut_short);
    let (median, longest) = (away.get(away.len() / 2), away.last());
    let told = |duration: Option<&Duration>| duration.map_or("-".into(), |duration| millis(*duration));
    println!("away           {} times, median {}, longest {}", away.len(), told(median), told(longest));
    println!("longest gap    {}", millis(verdict.longest_gap));
    println!("\nfault            times  longest gap");
    for (kind, times, longest) in fleet.record().faults() {
        println!("{kind:<16} {times:>5}  {}", millis(longest));
    }
}

#[test]
fn one_seed_is_one_plan() {
    for (transport, kinds) in [(Transport::Relay, 14), (Transport::Nats, 18)] {
        let plan = |seed| Plan { dice: Dice(seed), transport }.take(300).collect::<Vec<_>>();
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
        let troubles: Vec<_> = plan(7).into_iter().flat_map(|step| step.troubles).collect();
        let known: HashSet<_> = troubles.into_iter().map(Trouble::kind).collect();
        assert_eq!(known.len(), kinds, "each kind comes: {known:?}");
    }
}
