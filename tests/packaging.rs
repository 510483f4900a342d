//! Makefile and Dockerfile as far as they can be held without a Docker daemon: the ports are the configuration's, what is copied
//! is there, and every target that gpush's and go-push's people type exists. `scripts/docker` builds the image where it can.

use fanwire::config::Config;
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
