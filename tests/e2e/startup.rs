//! Starting bare, and saying in one sentence why it can't.

use crate::client::Client;
use crate::gateway::{Gateway, Start, fanwire, wait_until};
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

#[test]
fn it_prints_where_it_listens_and_two_lines_to_paste_that_work() {
    let gateway = Gateway::start(&[]);
    wait_until("all lines are printed", || gateway.stdout().contains(" pub --grpc "));
    let printed = gateway.stdout();
    assert!(printed.contains(&format!("ws://{}/ws", gateway.subscribers)), "{printed}");
    let line = |word: &str| {
        let line = printed.lines().find(|line| line.contains(word)).unwrap_or_else(|| panic!("no{word}in {printed}"));
        line.trim_start_matches("try").trim().to_string()
    };
    let shell = |line: String| {
        let mut command = Command::new("sh");
        command.args(["-c", &line]).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    };
    let subscriber = shell(format!("exec {} --count 1", line(" sub "))).spawn().unwrap();
    wait_until("it is subscribed", || gateway.metrics().sum("fanwire_subscriptions", &[]) >= 2.0);
    assert!(shell(line(" pub ")).status().unwrap().success());
    let received = subscriber.wait_with_output().unwrap();
    assert!(received.status.success(), "{received:?}");
    assert_eq!(String::from_utf8_lossy(&received.stdout), "the first message\n");
}

#[test]
fn a_signal_right_after_the_first_lines_is_a_drain_already() {
    for _ in 0..5 {
        let mut gateway = Gateway::start(&[]);
        assert_eq!(gateway.stop().code(), Some(0));
    }
}

/// Exit code 78 and one line that has all `parts`.
fn is_refused(output: &Output, parts: &[&str]) {
    is_refused_behind(0, output, parts);
}

/// The same behind so many lines of the log.
fn is_refused_behind(lines: usize, output: &Output, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    assert_eq!(stderr.lines().count(), lines + 1, "{stderr}");
    for part in parts {
        assert!(stderr.lines().last().unwrap().contains(part), "{part}: {stderr}");
    }
}

/// The flags of the three ports.
const PORTS: [&str; 3] = ["--listen", "--grpc-address", "--http-address"];

/// `serve` with this address for `flag`, and free ports for the others.
fn serve_at(flag: &str, address: &str) -> Output {
    let addresses = PORTS.iter().flat_map(|port| [*port, if *port == flag { address } else { "127.0.0.1:0" }]);
    fanwire(&["serve"]).args(addresses).output().unwrap()
}

#[test]
fn a_taken_port_is_named_whichever_of_the_three_it_is() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let look = format!("ss -ltnp 'sport = :{}'", taken.local_addr().unwrap().port());
    for (flag, key) in PORTS[1..].iter().zip(["publish.grpc_address", "publish.http_address"]) {
        is_refused(&serve_at(flag, &address), &[&address, key, "is taken", &look]);
    }
    // The one whose last tenant may have been killed a moment ago is waited for, and that is said.
    let refused = serve_at(PORTS[0], &address);
    is_refused_behind(1, &refused, &[&address, "[[listen]]", "is taken", &look, "for 2 s"]);
}

#[test]
fn a_port_that_is_taken_for_a_moment_is_waited_for() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let addresses = PORTS.iter().flat_map(|port| [*port, if *port == PORTS[0] { &address } else { "127.0.0.1:0" }]);
    let mut child = fanwire(&["serve"]).args(addresses).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains(&format!("{address} is taken: waiting for it, 2 s at most")), "{said}");
    drop(taken);
    let mut printed = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let listens = printed.any(|line| line.contains(&format!("ws://{address}")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(listens);
}

#[test]
fn an_address_of_another_machine_is_named_whichever_of_the_three_it_is() {
    for flag in PORTS {
        // 192.0.2.0/24 is for documentation (RFC 5737): no interface has it.
        let output = fanwire(&["serve"])
            .args(PORTS.iter().flat_map(|port| [*port, if *port == flag { "192.0.2.1:0" } else { "127.0.0.1:0" }]))
            .args(["--set", "publish.insecure=true", "--log-level", "error"])
            .output()
            .unwrap();
        is_refused(&output, &["192.0.2.1:0", "of this machine"]);
    }
}

#[test]
fn publishing_off_loopback_without_tokens_is_refused() {
    for flag in &PORTS[1..] {
        is_refused(&serve_at(flag, "0.0.0.0:0"), &["publish.tokens_file", "publish.insecure = true"]);
    }
}

#[test]
fn a_tokens_file_that_can_not_be_used_is_told_with_its_path() {
    let directory = std::env::temp_dir().join(format!("fanwire-tokens-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let comment = directory.join("comment");
    std::fs::write(&comment, "# nobody\n").unwrap();
    for (path, what) in [
        (directory.join("none"), "let this user read the file"),
        (directory.clone(), "let this user read the file"),
        (comment, "no token in it"),
    ] {
        let setting = format!("publish.tokens_file={}", path.display());
        let output = fanwire(&["serve", "--set", &setting])
            .args(PORTS.iter().flat_map(|port| [*port, "127.0.0.1:0"]))
            .output()
            .unwrap();
        is_refused(&output, &[&path.display().to_string(), what]);
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_wrong_setting_is_named_with_the_nearest_one_and_exit_code_78() {
    let ended = Start::new().set("limits.message_byte_max", "1").try_start().expect_err("no such setting");
    assert_eq!(ended.status.code(), Some(78), "{ended:?}");
    assert!(ended.stderr.contains("limits.message_bytes_max"), "{ended:?}");
}

#[test]
fn a_file_limit_that_is_too_small_is_said_in_one_sentence_with_exit_code_78() {
    let binary = env!("CARGO_BIN_EXE_fanwire");
    let ports = "--listen 127.0.0.1:0 --grpc-address 127.0.0.1:0 --http-address 127.0.0.1:0";
    // Too small for anything, for a shard, for the accepting core, and for the descriptors of so many shards.
    for (limit, more) in [(12, ""), (40, ""), (200, ""), (300, "--shards 1024 --set limits.refusals_max=0")] {
        let script = format!("ulimit -n {limit}; exec {binary} serve {ports} {more}");
        let output = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output().unwrap();
        is_refused(&output, &["raise", "ulimit -n", "LimitNOFILE="]);
    }
}

#[test]
fn one_shard_for_each_of_many_and_more_shards_than_cores_work() {
    let gateway = Gateway::start(&[("shards.count", "16")]);
    let mut clients: Vec<Client> = (0..48).map(|_| Client::subscriber(&gateway, &["t"])).collect();
    gateway.push("t", "x");
    for client in &mut clients {
        assert_eq!(client.text(), "x");
    }
}
