//! All nodes restarted in turn, under load: nobody elsewhere notices, and who has to move misses nothing of what it has subscribed to anew.

use crate::fleet::{Fleet, TOPIC, Transport};
use crate::gateway::fanwire;
use crate::lab::Place;
use crate::record::{Life, Record};
use std::io::Write;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// `fanwire pub` with a line every few milliseconds.
struct Piped {
    child: Child,
    number: usize,
    stop: Arc<AtomicBool>,
    writing: JoinHandle<u64>,
}

impl Piped {
    fn begin(record: &Arc<Mutex<Record>>, outside: &Place, grpc: &str) -> Piped {
        let mut command = fanwire(&["pub", TOPIC, "-", "--grpc", grpc]);
        let mut child = outside.inside(|| command.stdin(Stdio::piped()).spawn().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let (number, life) = {
            let mut record = record.lock().unwrap();
            (record.add_publisher(), record.unknown_life())
        };
        let lines = child.stdin.take().unwrap();
        let (record, stopped) = (record.clone(), stop.clone());
        let writing = thread::spawn(move || write(lines, &record, number, life, &stopped));
        Piped { child, number, stop, writing }
    }

    /// Ends it, and writes down that everything was accepted if it says so.
    fn end(self, record: &Mutex<Record>) -> String {
        self.stop.store(true, Ordering::Relaxed);
        let lines = self.writing.join().unwrap();
        let output = self.child.wait_with_output().unwrap();
        let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(stdout, format!("{lines} accepted, 0 refused\n"), "{stderr}");
        record.lock().unwrap().accept_all(self.number);
        stderr
    }
}

fn write(mut lines: ChildStdin, record: &Mutex<Record>, number: usize, life: Life, stop: &AtomicBool) -> u64 {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count = record.lock().unwrap().send(number, life);
        writeln!(lines, "{number} {count} {}", life.0).unwrap();
        thread::sleep(Duration::from_millis(10)); // The rate.
    }
    count
}

/// The commands of OPERATING's "A rolling restart" on a node that is back.
fn what_the_page_says_runs(fleet: &Fleet, at: usize) {
    let page = include_str!("../../docs/OPERATING.md");
    let section = page.split("### A rolling restart").nth(1).unwrap();
    let block = section.split("```console\n").nth(1).unwrap().split("```").next().unwrap();
    let commands: Vec<_> = block.lines().collect();
    assert_eq!((commands.len(), commands[0]), (3, "systemctl restart fanwire"), "which is what has just been done");
    let etcd = format!("{} nodes --etcd http://{}", env!("CARGO_BIN_EXE_fanwire"), fleet.finding.network.address);
    for line in &commands[1..] {
        let here = line.replace("fanwire nodes --config /etc/fanwire.toml", &etcd);
        let mut command = Command::new("sh");
        let output = fleet.nodes[at].place.inside(|| command.args(["-c", &here]).output().unwrap());
        assert!(output.status.success() && !output.stdout.is_empty(), "{line}: {output:?}");
    }
}

#[test]
fn three_nodes_are_restarted_in_turn_under_load() {
    restarts_in_turn(Transport::Relay);
}

#[test]
fn three_nodes_on_one_stream_are_restarted_in_turn_under_load() {
    restarts_in_turn(Transport::Nats);
}

fn restarts_in_turn(transport: Transport) {
    let Some(mut fleet) = Fleet::start_with(transport, &[("drain.drain_delay_ms", "300")]) else { return };
    let audience = fleet.audience(6);
    let load = fleet.load();
    let addresses: Vec<_> = fleet.doors().iter().map(|door| format!("{}:{}", door.address, door.grpc_port)).collect();
    let piped = Piped::begin(&fleet.record, &fleet.outside, &addresses.join(","));
    for at in 0..fleet.nodes.len() {
        thread::sleep(Duration::from_millis(500)); // Of ordinary traffic.
        fleet.drain_node(at);
        fleet.start_node(at);
        fleet.settles();
        what_the_page_says_runs(&fleet, at);
    }
    thread::sleep(Duration::from_millis(500));
    load.stop();
    let said = piped.end(&fleet.record);
    let verdict = fleet.judge();
    verdict.holds();
    assert!(said.contains("going on with another gateway"), "{said}");
    // At each restart the third that is there, at least, has to move; half of those wait for their node.
    assert!(verdict.away.len() >= 9, "{verdict:?}");
    assert_eq!(verdict.died_with_their_node, 0, "{verdict:?}");
    let mut away = verdict.away.clone();
    away.sort();
    println!(
        "{} accepted, {} delivered, lost 0, doubled 0; away: {away:?}; longest gap of those who stayed {:?}",
        verdict.accepted, verdict.delivered, verdict.longest_gap
    );
    drop(audience);
}
