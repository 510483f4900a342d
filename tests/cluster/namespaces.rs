//! Each fault by itself, on networks, disks and processes of the kernel's own: what every subscriber is due it gets, once.

use crate::fleet::Fleet;
use std::thread;
use std::time::Duration;

/// Runs `trouble` under load, and holds every subscriber's record to what was due.
fn holds_through(trouble: impl FnOnce(&mut Fleet)) {
    let Some(mut fleet) = Fleet::start(&[]) else { return };
    let audience = fleet.audience(4);
    let load = fleet.load();
    thread::sleep(Duration::from_millis(300)); // Of ordinary traffic.
    trouble(&mut fleet);
    thread::sleep(Duration::from_millis(300));
    load.stop();
    let verdict = fleet.judge();
    verdict.holds();
    assert!(verdict.accepted > 100, "{verdict:?}");
    drop(audience);
}

#[test]
fn a_pulled_cable() {
    holds_through(|fleet| {
        fleet.fault("link down", &[0], |fleet| {
            fleet.nodes[0].place.set_link(false);
            thread::sleep(Duration::from_secs(4)); // Longer than silence is borne.
            fleet.nodes[0].place.set_link(true);
        });
        fleet.settles();
    });
}
