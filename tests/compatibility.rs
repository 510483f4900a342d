//! Holds `docs/COMPATIBILITY.md` to what it says: each behaviour of the ancestors is there once, each test it names exists, and
//! only what belongs to how they are built is dropped.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const PAGE: &str = include_str!("../docs/COMPATIBILITY.md");

/// Every behaviour, by whose it is.
const BEHAVIOURS: &[(&str, &[&str])] = &[
    (
        "gpush",
        &[
            "WS endpoint",
            "greeting",
            "heartbeat",
            "heartbeat timeout",
            "request shape",
            "bad input",
            "code 1 / 2",
            "code 3",
            "code 4",
            "code 5 / 6",
            "multi-login",
            "push frame",
            "routing",
            "order",
            "pre-encode",
            "client overflow",
            "upstream overflow",
            "write batching",
            "compression",
            "sharding",
            "partial frames",
            "gRPC",
            "HTTP push",
            "HTTP pull",
            "fan-out",
            "etcd",
            "config",
            "metrics",
            "stats",
            "profiling",
            "log level",
            "stress tool",
            "push tool",
            "demo page",
            "packaging",
        ],
    ),
    (
        "go-push",
        &[
            "WS endpoint",
            "PING/PONG",
            "JOIN/LEAVE",
            "room limit",
            "bad input",
            "PUSH",
            "heartbeat",
            "merge",
            "merge workers",
            "gateway API",
            "gateway stats",
            "overflow",
            "logic API",
            "logic stats",
            "logic fan-out",
            "config",
            "buckets",
            "tools",
            "scale claim",
        ],
    ),
    (
        "1m-go-websockets",
        &[
            "capacity",
            "rlimit",
            "event-driven",
            "kernel note",
            "load client",
            "multi-source load",
            "visibility",
            "robustness (issues)",
        ],
    ),
    ("The message service", &["modes", "history", "Origin", "behind nginx", "client address", "faults"]),
    ("The danmaku design", &["merging", "encode once", "lock-free shards", "load target", "cluster", "demo"]),
    ("Forks", &["wanted extras"]),
];

/// What a row may say of itself.
const STATES: &[&str] = &["same", "equivalent", "dropped", "later"];

/// What may be dropped: behaviours that are counts of buckets and workers, and pprof. (The epoll switch and the rotation of log
/// files are parts of rows.)
const MAY_BE_DROPPED: &[&str] = &["sharding", "profiling", "merge workers", "buckets"];

/// What belongs to a later issue: history, and figures of capacity.
const MAY_BE_LATER: &[&str] = &["scale claim", "capacity", "multi-source load", "history", "load target"];

struct Row {
    system: &'static str,
    feature: &'static str,
    state: &'static str,
    why: &'static str,
}

/// The rows of the tables of behaviours.
fn rows() -> Vec<Row> {
    let mut system = "";
    let mut rows = Vec::new();
    for line in PAGE.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            system = title;
        }
        if !BEHAVIOURS.iter().any(|(name, _)| *name == system) {
            continue; // The tables of differences have no such rows.
        }
        // Behaviours have bars in their code; features, states and reasons have none.
        let Some(cells) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) else { continue };
        let cells: Vec<_> = cells.split(" | ").collect();
        let [feature, _, .., state, why] = cells[..] else { panic!("not a row of four cells: {line}") };
        if let Some(state) = state.strip_prefix('*').and_then(|state| state.strip_suffix('*')) {
            rows.push(Row { system, feature, state, why });
        }
    }
    rows
}

/// Where a test of `module::…` may stand.
fn files(module: &str) -> Vec<PathBuf> {
    let path = module.replace("::", "/");
    let forms = [
        format!("tests/{path}.rs"),
        format!("tests/{path}/main.rs"),
        format!("tests/e2e/{path}.rs"),
        format!("tests/publish/{path}.rs"),
        format!("src/{path}.rs"),
        format!("src/{path}/mod.rs"),
    ];
    forms
        .into_iter()
        .map(|form| Path::new(env!("CARGO_MANIFEST_DIR")).join(form))
        .filter(|file| file.exists())
        .collect()
}

/// The tests that `text` names, as (module, test).
fn tests(text: &str) -> Vec<(&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    let is_name = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    quoted
        .filter_map(|name| name.rsplit_once("::"))
        .filter(|(module, test)| module.split("::").chain([*test]).all(is_name))
        .collect()
}

#[test]
fn every_behaviour_is_there_exactly_once() {
    let rows = rows();
    for (system, features) in BEHAVIOURS {
        for feature in *features {
            let times = rows.iter().filter(|r| r.system == *system && r.feature == *feature).count();
            assert_eq!(times, 1, "{system}: {feature}");
        }
    }
    let known = BEHAVIOURS.iter().map(|(_, features)| features.len()).sum::<usize>();
    let unknown: Vec<_> = rows
        .iter()
        .filter(|r| !BEHAVIOURS.iter().any(|(system, features)| *system == r.system && features.contains(&r.feature)))
        .map(|r| r.feature)
        .collect();
    assert_eq!(rows.len(), known, "{unknown:?}");
}

#[test]
fn every_state_is_one_of_them_and_little_is_dropped_or_later() {
    for Row { feature, state, why, .. } in rows() {
        assert!(STATES.contains(&state), "{feature}: {state}");
        assert!(!why.is_empty(), "{feature}: why?");
        assert!(state != "dropped" || MAY_BE_DROPPED.contains(&feature), "{feature} may not be dropped");
        assert!(state != "later" || MAY_BE_LATER.contains(&feature), "{feature} is not of a later issue");
    }
}

#[test]
fn every_test_it_names_exists_and_what_is_claimed_names_one() {
    for Row { feature, state, why, .. } in rows() {
        let tests = tests(why);
        assert!(!matches!(state, "same" | "equivalent") || !tests.is_empty(), "{feature}: {state}, and no test named");
        for (module, test) in tests {
            let found = files(module).into_iter().any(|file| {
                let text = std::fs::read_to_string(file).unwrap();
                // Its attribute stands right before it, perhaps with `#[ignore]` between.
                text.split("#[test]").skip(1).any(|rest| {
                    let name = rest.split_once("fn ").and_then(|(_, rest)| rest.split_once('('));
                    name.is_some_and(|(name, _)| name == test)
                })
            });
            assert!(found, "{feature}: there is no test {module}::{test}");
        }
    }
}

/// *same* is more than a unit test: one of its tests drives the real binary, or the real servers, over sockets.
#[test]
fn what_is_the_same_is_shown_over_a_socket() {
    for Row { feature, state, why, .. } in rows().into_iter().filter(|r| r.state == "same" && r.feature != "packaging")
    {
        let over_sockets = |module: &str| files(module).iter().any(|file| file.to_string_lossy().contains("/tests/"));
        assert!(tests(why).iter().any(|(module, _)| over_sockets(module)), "{feature}: {state}");
    }
}

#[test]
fn the_settings_it_names_exist() {
    let known: BTreeSet<_> = fanwire::config::sections()
        .iter()
        .flat_map(|s| s.settings.iter().map(|setting| format!("{}.{}", s.name, setting.key)))
        .collect();
    let sections: BTreeSet<_> = fanwire::config::sections().iter().map(|s| s.name).collect();
    for word in PAGE.split('`').skip(1).step_by(2) {
        let name = word.split(" = ").next().unwrap();
        let Some((section, key)) = name.rsplit_once('.') else { continue };
        // What has a section of another name is a file, or a key of theirs.
        if sections.contains(section) && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            assert!(known.contains(name), "no setting is called {name}");
        }
    }
}

#[test]
fn the_page_for_operators_names_the_kernels_settings() {
    let page = include_str!("../docs/OPERATING.md").to_owned() + include_str!("../tuning/sysctl.d/90-fanwire.conf");
    for setting in [
        "RLIMIT_NOFILE",
        "net.core.somaxconn",
        "net.ipv4.tcp_mem",
        "net.netfilter.nf_conntrack_max",
        "kernel.io_uring_disabled",
    ] {
        assert!(page.contains(setting), "{setting}");
    }
}
