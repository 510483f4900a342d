//! What the smaller ancestors promise of a process: open files, threads, a load client, several ways to reach people.

use crate::client::Client;
use crate::gateway::{Gateway, fanwire, wait_until};
use crate::killed::Killed;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

#[test]
fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let script = "ulimit -Sn 1024; exec \"$0\" serve --listen 127.0.0.1:0 --grpc-address 127.0.0.1:0 --http-address 127.0.0.1:0 --shards 1";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_fanwire")]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut gateway = Killed(command.stderr(Stdio::null()).spawn().unwrap());
    let mut first = String::new();
    BufReader::new(gateway.0.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.0.id())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let (soft, hard) = line.trim_start().split_once(' ').unwrap();
    let hard = hard.split_whitespace().next().unwrap();
    assert_eq!(soft, hard, "{first}: {line}");
    assert_ne!(soft, "1024", "the hard limit here is larger, or this shows nothing");
}

#[test]
fn connections_take_no_threads() {
    let gateway = Gateway::start(&[]);
    let threads = || std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap().count();
    let before = threads();
    let clients: Vec<Client> = (0..100).map(|_| Client::subscriber(&gateway, &["t"])).collect();
    wait_until("all are counted", || gateway.metrics().sum("fanwire_connections", &[]) == 100.0);
    assert_eq!(threads(), before, "{} clients", clients.len());
}

#[test]
fn bench_takes_the_place_of_the_load_clients() {
    let gateway = Gateway::start(&[]);
    let url = format!("ws://{}/ws", gateway.subscribers);
    let grpc = gateway.grpc.to_string();
    let run = |more: &[&str]| {
        let common =
            ["bench", "--url", &url, "--grpc", &grpc, "-c", "50", "--duration", "1", "--warmup", "0.2", "--json"];
        let output = fanwire(&[&common[..], more].concat()).output().unwrap();
        assert!(output.status.success(), "{more:?}: {output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    // Each message is checked at each connection; whatever is lost, double or out of order fails the run.
    let report = run(&["--rate", "100", "--size", "70"]);
    let run_of_it = &report["gateway"][0];
    assert!(run_of_it["received"].as_u64() >= Some(5000), "{report}");
    assert_eq!((run_of_it["lost"].as_u64(), run_of_it["duplicates"].as_u64()), (Some(0), Some(0)), "{report}");
    run(&["--idle"]);
}
