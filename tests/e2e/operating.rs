//! docs/OPERATING.md holds at 3 a.m.: its commands run, and what it names exists.

use crate::gateway::{Gateway, fanwire};
use std::process::{Command, Stdio};

const PAGE: &str = include_str!("../../docs/OPERATING.md");

/// The names in backquotes or code that begin with `prefix`, as far as `is_part` holds.
fn names(prefix: &str, is_part: impl Fn(char) -> bool) -> Vec<&'static str> {
    let found = PAGE.match_indices(prefix).filter(|(at, _)| PAGE[..*at].ends_with(['`', '(', ' ']));
    found.map(|(at, _)| PAGE[at..].split(|c| !is_part(c)).next().unwrap()).collect()
}

#[test]
fn every_command_of_the_page_runs() {
    let gateway = Gateway::start(&[]);
    let blocks = PAGE.split("```sh\n").skip(1);
    let commands: Vec<&str> = blocks.flat_map(|rest| rest.split("```").next().unwrap().lines()).collect();
    assert!(commands.len() >= 5, "{commands:?}");
    for line in commands {
        if line == "fanwire serve" {
            continue; // That is `gateway`.
        }
        let here = line
            .replace("fanwire ", concat!(env!("CARGO_BIN_EXE_fanwire"), " "))
            .replace("http://127.0.0.1:10068", &format!("http://{}", gateway.http));
        let output = Command::new("sh").args(["-c", &here]).stdin(Stdio::null()).output().unwrap();
        // A machine for tests need not carry a million: saying so is what the doctor is for.
        let is_well = output.status.success() || line.starts_with("fanwire doctor ") && output.status.code() == Some(1);
        assert!(is_well && !output.stdout.is_empty(), "{line}: {output:?}");
    }
}

#[test]
fn every_metric_of_the_page_exists() {
    let gateway = Gateway::start(&[]);
    let page = gateway.get("/metrics").body;
    let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
    let metrics = [names("fanwire_", is_part), names("process_", is_part)].concat();
    assert!(metrics.len() >= 12, "{metrics:?}");
    for name in metrics {
        let shown = [name.to_owned(), format!("{name}_bucket")];
        assert!(page.lines().any(|l| shown.iter().any(|s| l.split(['{', ' ']).next() == Some(s))), "{name}");
    }
    for reason in PAGE.split("reason=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(page.contains(&format!("reason=\"{reason}\"")) || reason.ends_with(".*"), "{reason}");
    }
}

#[test]
fn every_setting_of_the_page_exists() {
    let documented = String::from_utf8(fanwire(&["config", "docs"]).output().unwrap().stdout).unwrap();
    for section in ["shards.", "slow.", "drain.", "publish.", "cluster.", "log."] {
        let mut keys = names(section, |c| c.is_ascii_lowercase() || c == '_' || c == '.');
        keys.retain(|key| !key.ends_with('.')); // The end of a sentence.
        assert!(!keys.is_empty(), "{section}");
        for key in keys {
            let name = key.split_once('.').unwrap().1;
            assert!(documented.contains(&format!("| `{name}` |")), "{key}");
        }
    }
}
