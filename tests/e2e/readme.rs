//! The README's commands do what it says: every line of its ```sh blocks is run here, against a gateway on free ports, or known to
//! be a step of scripts/check.

use crate::gateway::{DEADLINE, Gateway, fanwire, wait_for, wait_until};
use crate::killed::Killed;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

const README: &str = include_str!("../../README.md");

/// Not run by this test but by whoever runs it: `scripts/check` can't call itself, nor what takes an hour.
const SCRIPTS: &[&str] = &[
    "scripts/check",
    "scripts/check --full",
    "scripts/conformance all",
    "scripts/fuzz 60",
    "scripts/simulate 2000",
    "scripts/clients --full",
];

/// The lines of all blocks in the shell's language.
fn commands() -> Vec<&'static str> {
    let blocks = README.split("```sh\n").skip(1);
    blocks.flat_map(|rest| rest.split("```").next().unwrap().lines()).filter(|line| !line.is_empty()).collect()
}

/// The README's line as it is here: this build of the binary, this gateway's ports.
fn here(line: &str, gateway: &Gateway) -> Command {
    let line = line
        .replace("cargo run --release --", env!("CARGO_BIN_EXE_fanwire"))
        .replace("http://127.0.0.1:10068", &format!("http://{}", gateway.http))
        .replace(" sub hello", &format!(" sub hello --url ws://{}/ws", gateway.subscribers))
        .replace(" pub hello", &format!(" pub --grpc {} hello", gateway.grpc));
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec {line}")]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let commands = commands();
    assert!(commands.len() >= 8, "{commands:?}");
    assert_eq!(commands[0], "cargo run --release", "it starts with one command");
    let gateway = Gateway::start(&[]);

    let subscribe = commands.iter().find(|line| line.contains(" sub ")).expect("a line that subscribes");
    let mut subscriber = Killed(here(subscribe, &gateway).spawn().unwrap());
    wait_until("it is subscribed", || gateway.metrics().sum("fanwire_subscriptions", &[]) >= 2.0);
    let (lines, printed) = std::sync::mpsc::channel();
    let stdout = subscriber.0.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| drop(lines.send(line)));
    });

    let mut known = 2;
    for line in &commands {
        if line.contains(" pub ") || line.starts_with("curl ") {
            let output = here(line, &gateway).output().unwrap();
            assert!(output.status.success(), "{line}: {output:?}");
            let received = printed.recv_timeout(DEADLINE).unwrap_or_else(|e| panic!("{e} after {line}"));
            assert!(received.contains("good morning"), "{received} after {line}");
            known += 1;
        } else if SCRIPTS.contains(line) {
            let script = line.split(' ').next().unwrap();
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(script).exists(), "{line}: there is no {script}");
            known += 1;
        } else if line.contains(" config ") {
            let output = here(line, &gateway).output().unwrap();
            assert!(output.status.success() && !output.stdout.is_empty(), "{line}: {output:?}");
            known += 1;
        }
    }
    assert_eq!(known, commands.len(), "a line of the README that no test knows: {commands:#?}");
    drop(subscriber);
    reader.join().unwrap();
}

/// The commands word for word, on the ports that the README names, built as it says.
#[test]
#[ignore = "needs the release build and the default ports: scripts/check readme"]
fn the_readme_holds_word_for_word() {
    let root = env!("CARGO_MANIFEST_DIR");
    let shell = |line: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {line}")]).current_dir(root).stdin(Stdio::null());
        command
    };
    let build = shell("cargo build --release --locked").status().unwrap();
    assert!(build.success());
    // `cargo run` becomes the program it runs: the child's id is the gateway's.
    let mut gateway = Killed(shell("cargo run --release").stdout(Stdio::null()).spawn().unwrap());
    let connected = || std::net::TcpStream::connect("127.0.0.1:9992").ok();
    drop(wait_for("the gateway listens", connected));

    let lines = commands();
    let subscribe = lines.iter().find(|line| line.contains(" sub ")).unwrap();
    let mut subscriber = Killed(shell(subscribe).stdout(Stdio::piped()).spawn().unwrap());
    let page = || {
        let to = "127.0.0.1:10068".parse().unwrap();
        crate::http::request(to, "GET", "/metrics", &[], &[]).body
    };
    wait_until("it is subscribed", || {
        page()
            .lines()
            .filter(|l| l.starts_with("fanwire_subscriptions{"))
            .any(|l| !l.ends_with(" 0") && !l.ends_with(" 1"))
    });
    let published: Vec<_> = lines.iter().filter(|line| line.contains(" pub ") || line.starts_with("curl ")).collect();
    for line in &published {
        assert!(shell(line).stdout(Stdio::null()).status().unwrap().success(), "{line}");
    }
    let received = BufReader::new(subscriber.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(received.take(published.len()).all(|line| line.contains("good morning")));
    drop(subscriber);
    let stopped = Command::new("sh").args(["-c", &format!("kill -TERM {}", gateway.0.id())]).status().unwrap();
    assert!(stopped.success());
    let status = wait_for("the gateway ends", || gateway.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn the_commands_it_names_exist() {
    let help = fanwire(&["--help"]).output().unwrap();
    let text = String::from_utf8_lossy(&help.stdout);
    for command in ["serve", "pub", "sub", "config", "bench"] {
        assert!(text.contains(&format!("\n  {command} ")), "{command} in\n{text}");
    }
}

#[test]
fn the_compiler_it_asks_for_is_the_one_of_cargo_toml() {
    let manifest = include_str!("../../Cargo.toml");
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")?.strip_suffix('"')).unwrap();
    assert!(README.contains(&format!("[Rust](https://rustup.rs) {version} or newer")), "Cargo.toml says {version}");
}
