//! Makefile and Dockerfile as far as they can be held without a Docker daemon: the ports are the configuration's, what is copied
//! is there, and every target that gpush's and go-push's people type exists. `scripts/docker` builds the image where it can.
//! And `tuning/`, the calculator of docs/OPERATING.md: they say what the code says.

use fanwire::config::Config;
use fanwire::host::{self, Demand, Memory, memory};
use std::net::SocketAddr;
use std::path::Path;

const DOCKERFILE: &str = include_str!("../Dockerfile");
const MAKEFILE: &str = include_str!("../Makefile");

/// The Dockerfile's instructions, continued lines joined, without comments.
fn instructions() -> Vec<(String, String)> {
    let lines = DOCKERFILE.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    let joined = lines.replace("\\\n", " ");
    let instruction = |line: &str| {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        (name.to_owned(), rest.to_owned())
    };
    joined.lines().filter(|line| !line.trim().is_empty()).map(instruction).collect()
}

fn of(name: &str) -> Vec<String> {
    instructions().into_iter().filter(|(n, _)| n == name).map(|(_, rest)| rest).collect()
}

fn port(address: &str) -> String {
    address.parse::<SocketAddr>().unwrap().port().to_string()
}

#[test]
fn the_image_exposes_the_ports_of_the_configuration() {
    let config = Config::default();
    let ports = [&config.listen[0].address, &config.publish.grpc_address, &config.publish.http_address];
    let exposed = of("EXPOSE").join(" ");
    assert_eq!(exposed.split(' ').collect::<Vec<_>>(), ports.map(|address| port(address)));
    for published in exposed.split(' ') {
        assert!(MAKEFILE.contains(&format!("{published}:{published}")), "dockerRun publishes {published}");
    }
    let environment = of("ENV").join(" ");
    for (variable, address) in [("GRPC", &config.publish.grpc_address), ("HTTP", &config.publish.http_address)] {
        assert!(environment.contains(&format!("FANWIRE_PUBLISH__{variable}_ADDRESS=0.0.0.0:{}", port(address))));
    }
    assert!(!environment.contains("INSECURE"), "who runs the image says so");
}

#[test]
fn the_image_is_made_in_two_stages_of_what_is_there_and_runs_as_nobody_special() {
    let from = of("FROM");
    assert!(from.len() == 2 && from[0].ends_with(" AS build") && from[1].contains("-slim"), "{from:?}");
    let manifest = include_str!("../Cargo.toml");
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")?.strip_suffix('"')).unwrap();
    assert_eq!(of("ARG"), [format!("RUST={version}")]);
    assert_eq!(of("USER"), ["fanwire"]);
    assert_eq!(of("COPY").last().unwrap(), "--from=build /fanwire/target/release/fanwire /usr/local/bin/fanwire");
    assert_eq!((of("ENTRYPOINT"), of("CMD")), (vec![r#"["fanwire"]"#.to_owned()], vec![r#"["serve"]"#.to_owned()]));
    // What a build reads is not ignored.
    let ignored: Vec<_> = include_str!("../.dockerignore").lines().collect();
    for needed in ["src", "proto", "build.rs", "Cargo.toml", "Cargo.lock"] {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(needed).exists() && !ignored.contains(&needed), "{needed}");
    }
}

#[test]
fn the_note_on_io_uring_names_its_system_calls_and_how_to_allow_them() {
    for said in ["io_uring_setup", "io_uring_enter", "io_uring_register", "--security-opt seccomp=", "nofile="] {
        assert!(DOCKERFILE.contains(said), "{said}");
    }
}

#[test]
fn the_makefile_has_the_targets_people_know() {
    let phony = MAKEFILE.lines().find_map(|line| line.strip_prefix(".PHONY: ")).unwrap();
    for target in ["proto", "build", "run", "stress", "dockerBuild", "dockerRun"] {
        assert!(phony.split(' ').any(|name| name == target), "{target}");
    }
    for target in phony.split(' ') {
        let rule = MAKEFILE.lines().find(|line| line.starts_with(&format!("{target}:")));
        assert!(rule.is_some_and(|line| line.contains(" ## ")), "{target} has a rule that says what it does");
    }
}

const SERVICE: &str = include_str!("../tuning/fanwire.service");
const OPERATING: &str = include_str!("../docs/OPERATING.md");

#[test]
fn the_sysctl_drop_in_is_made_from_the_table() {
    let made = host::drop_in(&Demand::new(1_000_000, &Config::default()), |_| None);
    assert!(
        made == include_str!("../tuning/sysctl.d/90-fanwire.conf"),
        "tuning/sysctl.d/90-fanwire.conf is stale: run `cargo run -- tune --print --connections 1000000 > tuning/sysctl.d/90-fanwire.conf`"
    );
}

/// The values of a key of the unit, in order.
fn unit(key: &str) -> Vec<&'static str> {
    SERVICE.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

#[test]
fn the_unit_leaves_the_gateway_what_it_needs() {
    assert_eq!(unit("Type"), ["notify-reload"]);
    assert_eq!(unit("LimitNOFILE"), ["1048576"]);
    assert_eq!(unit("RestartPreventExitStatus"), ["78"]);
    // A healthy shard turns every second, and 3 s without a turn is what /readyz calls stuck.
    assert!(unit("WatchdogSec")[0].parse::<u64>().unwrap() > 3);
    let allowed = unit("SystemCallFilter").join(" ");
    for call in ["@system-service", "io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert!(allowed.split(' ').any(|word| word == call), "{call}: {allowed}");
    }
    assert!(!allowed.contains("~@resources"), "pinning and setrlimit(2) are in it");
    assert!(unit("RestrictAddressFamilies")[0].contains("AF_UNIX"), "sd_notify");
    assert_eq!(unit("ProcSubset"), Vec::<&str>::new(), "/metrics reads /proc/stat");
    let mut node = Config::default();
    node.cluster.etcd = vec!["http://127.0.0.1:2379".into()];
    let drain_ms = |config: &Config| fanwire::gateway::drain_ms_max(config, 1_000_000);
    assert_eq!(drain_ms(&node) - drain_ms(&Config::default()), fanwire::cluster::STOP_MS_MAX);
    let drain_s = drain_ms(&node).div_ceil(1000);
    assert!(
        unit("TimeoutStopSec")[0].parse::<u64>().unwrap() >= drain_s,
        "a drain of a million on one shard takes {drain_s} s"
    );
}

#[test]
fn every_line_of_the_tuning_files_has_its_reason_and_every_file_its_undo() {
    let files = [
        SERVICE,
        include_str!("../tuning/limits.d/fanwire.conf"),
        include_str!("../tuning/sysctl.d/90-fanwire.conf"),
        include_str!("../tuning/nic"),
    ];
    for file in files {
        assert!(file.to_lowercase().contains("undo"), "{file}");
    }
    for file in &files[1..3] {
        let mut explained = false;
        for line in file.lines() {
            explained = (explained || line.starts_with('#')) && !line.is_empty();
            assert!(explained || line.is_empty(), "no reason above: {line}");
        }
    }
}

#[test]
fn the_calculator_of_the_page_is_that_of_the_doctor() {
    let section = OPERATING.split("### Memory").nth(1).unwrap().split("\n## ").next().unwrap();
    let constants = [
        format!("= {} + shards", memory::human(memory::BASE_BYTES)),
        format!("connections × {} B", memory::CONNECTION_BYTES),
        format!("shards × {:.2} MB", memory::SHARD_BYTES as f64 / 1e6),
        format!("connections × {},{:03} B", memory::SOCKET_BYTES / 1000, memory::SOCKET_BYTES % 1000),
        format!("tracks: {} B", memory::TRACKED_BYTES),
        format!("slow clients × {} × socket_send_buffer_bytes", memory::SEND_BUFFERS_PINNED),
        format!("{},{:03} B more", memory::CLIENT_SOCKET_BYTES / 1000, memory::CLIENT_SOCKET_BYTES % 1000),
    ];
    for constant in constants {
        assert!(section.contains(&constant), "{constant}");
    }
    let number = |text: &str| text.trim().replace(',', "").parse::<u64>().unwrap();
    let rows: Vec<Vec<&str>> = section
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| connections"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert!(rows.len() >= 4, "{rows:?}");
    for row in rows {
        let (shards, places) = row[1].split_once(" × ").unwrap();
        let reckoned = Memory::of(&Demand::new(number(row[0]), &Config::default()), number(shards), number(places));
        let human = [reckoned.gateway_bytes, reckoned.kernel_bytes, reckoned.backlog_bytes, reckoned.total_bytes()];
        assert_eq!(row[2..], human.map(memory::human), "{row:?}");
    }
}
