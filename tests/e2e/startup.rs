//! Starting bare, and saying in one sentence why it can't.

use crate::client::Client;
use crate::gateway::{Gateway, Start, fanwire, wait_until};
use std::process::{Command, Stdio};

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

#[test]
fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for key in ["publish.grpc_address", "publish.http_address"] {
        let ended = Start::new().set(key, &address).try_start().expect_err("the port is taken");
        assert!(!ended.status.success());
        assert!(ended.stderr.contains(&address), "{key}: {ended:?}");
    }
}

#[test]
fn a_taken_subscriber_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = fanwire(&["serve", "--listen", &address])
        .args(["--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains(&address), "{}: {stderr}", output.status);
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
    let script = format!(
        "ulimit -n 12; exec {binary} serve --listen 127.0.0.1:0 --grpc-address 127.0.0.1:0 --http-address 127.0.0.1:0"
    );
    let output = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("RLIMIT_NOFILE") || stderr.contains("ulimit"), "what and how to fix it: {stderr}");
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
