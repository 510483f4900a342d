//! Each fault by itself, on networks, disks and processes of the kernel's own: what every subscriber is due it gets, once.

use crate::fleet::Fleet;
use crate::record::Verdict;
use crate::trouble::Trouble;
use std::thread;
use std::time::Duration;

/// Has these happen one after the other under load, each for so many milliseconds, and holds every subscriber's record to what was due.
fn holds_through(troubles: &[(Trouble, u64)]) -> Option<Verdict> {
    let mut fleet = Fleet::start(&[])?;
    let _audience = fleet.audience(4);
    let load = fleet.load();
    for (trouble, ms) in troubles {
        thread::sleep(Duration::from_millis(300)); // Of ordinary traffic.
        let fault = trouble.begin(&mut fleet);
        thread::sleep(Duration::from_millis(*ms));
        trouble.end(&mut fleet, fault);
    }
    fleet.settles();
    thread::sleep(Duration::from_millis(300));
    load.stop();
    let verdict = fleet.judge();
    verdict.holds();
    assert!(verdict.accepted > 100 && verdict.delivered > 10 * verdict.accepted, "{verdict:?}");
    Some(verdict)
}

#[test]
fn a_pulled_cable_loses_nothing() {
    // Longer than silence is borne.
    let Some(verdict) = holds_through(&[(Trouble::Link(0), 4000)]) else { return };
    assert!(verdict.longest_gap > Duration::from_secs(3), "it was pulled: {verdict:?}");
    assert_eq!(verdict.died_with_their_node, 0);
}

#[test]
fn a_throttled_lossy_slow_and_reset_way_loses_nothing() {
    let troubles = [
        (Trouble::Throttle(0, 100), 1500),
        (Trouble::Delay(1, 300), 1000),
        (Trouble::Loss(2, 20), 1500),
        (Trouble::Reset(0), 200),
        (Trouble::Reset(1), 200),
    ];
    let Some(verdict) = holds_through(&troubles) else { return };
    assert!(verdict.longest_gap > Duration::from_millis(200), "{verdict:?}");
    assert_eq!((verdict.died_with_their_node, verdict.cut_short), (0, 0));
}

#[test]
fn a_half_open_way_and_a_node_that_stands_still_lose_nothing() {
    let Some(verdict) = holds_through(&[(Trouble::HalfOpen(1), 3500), (Trouble::Stop(2), 1500)]) else { return };
    assert!(verdict.longest_gap > Duration::from_secs(3), "{verdict:?}");
    assert_eq!((verdict.died_with_their_node, verdict.cut_short), (0, 0));
}

#[test]
fn a_killed_node_takes_along_only_what_was_under_way() {
    let Some(verdict) = holds_through(&[(Trouble::Kill(0), 500), (Trouble::Kill(1), 0)]) else { return };
    // Of some 80 messages a second of its own, and those of the two who roam.
    assert!(verdict.died_with_their_node < 50 && verdict.died_within < Duration::from_millis(500), "{verdict:?}");
    assert!(verdict.away.len() >= 8, "{verdict:?}");
}

#[test]
fn etcd_killed_cut_off_or_without_a_disk_stops_nobody() {
    let troubles =
        [(Trouble::EtcdReset, 100), (Trouble::EtcdKill, 500), (Trouble::EtcdLink, 1500), (Trouble::EtcdDisk, 500)];
    let Some(verdict) = holds_through(&troubles) else { return };
    assert!(verdict.longest_gap < Duration::from_secs(1), "{verdict:?}");
    assert_eq!((verdict.died_with_their_node, verdict.cut_short), (0, 0));
}

#[test]
#[ignore = "longer than a lease"]
fn longer_than_a_lease_nobody_who_stays_notices() {
    let troubles = [(Trouble::EtcdStop, 8000), (Trouble::Stop(0), 8000), (Trouble::Link(1), 9000)];
    let Some(verdict) = holds_through(&troubles) else { return };
    assert_eq!(verdict.died_with_their_node, 0);
}

#[test]
#[ignore = "longer than a lease"]
fn whoever_was_cut_off_while_a_node_came_gives_it_what_it_accepted_since_and_nothing_older() {
    let Some(mut fleet) = Fleet::start(&[]) else { return };
    let load = fleet.load();
    thread::sleep(Duration::from_secs(2)); // Of what is old then.
    let cut = Trouble::Link(1).begin(&mut fleet);
    crate::gateway::wait_until("its lease is over", || fleet.nodes[0].others() == 1);
    fleet.kill_node(0);
    fleet.start_node(0);
    // The others have each other's backlog of the cut to come, and rightly so.
    let _audience = fleet.audience_of(&fleet.doors()[..1], 2);
    let before = fleet.record().judge().accepted;
    thread::sleep(Duration::from_secs(1));
    Trouble::Link(1).end(&mut fleet, cut);
    fleet.settles();
    load.stop();
    let verdict = fleet.judge();
    verdict.holds();
    // Two subscribers: what was accepted between the node's start and theirs may come, what is older may not.
    let since = verdict.accepted - before;
    assert!(verdict.delivered < 2 * since + 300, "{since} accepted since: {verdict:?}");
}
