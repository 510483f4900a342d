//! `fanwire bench` as a load generator: each dialect and publisher against the real thing, in small loads of about a second each.

use crate::gateway::{DEADLINE, Gateway, fanwire, wait_for};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// A NATS server of ours, ended with its test.
struct Nats {
    child: Child,
    address: String,
}

impl Nats {
    /// On every address of this machine, on a free port.
    fn start() -> Nats {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("nats-server");
        command.args(["-a", "0.0.0.0", "-p", "-1"]).env("PATH", path).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("nats-server: scripts/install-tools nats");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let address =
            lines.find_map(|line| line.split_once("client connections on ").map(|(_, a)| a.trim().to_owned()));
        // It goes on logging; nobody has to read more, but somebody has to take it.
        std::thread::spawn(move || lines.for_each(drop));
        let address = address.expect("it says where it listens").replace("0.0.0.0", "127.0.0.1");
        Nats { child, address }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bench(arguments: &[&str]) -> Output {
    fanwire(&[&["bench"], arguments].concat()).output().unwrap()
}

/// The figures of one run that succeeded: everything was delivered, once and in order.
fn figures(arguments: &[&str]) -> Value {
    let output = bench(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let figures = all["median"]["gateway"].clone();
    for nothing in ["lost", "duplicates", "disordered", "foreign", "unexpected", "failed", "ended"] {
        assert_eq!(figures[nothing], 0, "{nothing} of {all}");
    }
    figures
}

fn number(figures: &Value, name: &str) -> f64 {
    figures[name].as_f64().unwrap_or_else(|| panic!("no number {name} in {figures}"))
}

/// 40 clients on 4 topics, 200 messages a second for a second.
const SMALL: &[&str] = &["-c", "40", "--topics", "4", "--rate", "200", "--messages", "200"];

#[test]
fn any_websocket_server_is_loaded_by_what_it_wants_to_hear() {
    let gateway = Gateway::start(&[]);
    let (url, grpc) = (format!("ws://{}/ws?topic={{topic}}", gateway.subscribers), gateway.grpc.to_string());
    let hello = r#"{"code":1,"topic":"{topic}","data":""}"#;
    let raw = ["--dialect", "raw", "--url", &url, "--hello", hello, "--subscribed", r#""code":20001"#, "--grpc", &grpc];
    let figures = figures(&[&raw, SMALL].concat());
    assert_eq!(number(&figures, "deliveries"), 200.0 * 10.0);
    assert_eq!((figures["dialect"].as_str(), number(&figures, "subscribed")), (Some("raw"), 40.0));
}

#[test]
fn go_push_clients_find_their_messages_in_merged_pushes() {
    let gateway = Gateway::start(&[("compat.gopush.max_merge_delay_ms", "20")]);
    let (url, grpc) = (format!("ws://{}/connect", gateway.subscribers), gateway.grpc.to_string());
    let figures = figures(&[&["--dialect", "go-push", "--url", &url, "--grpc", &grpc], SMALL].concat());
    assert_eq!(number(&figures, "deliveries"), 200.0 * 10.0);
    assert!(number(&figures, "p99_us") > 5_000.0, "the window shows: {figures}");
}

#[test]
fn several_publishers_publish_by_every_interface() {
    let gateway = Gateway::start(&[]);
    let url = format!("ws://{}/ws", gateway.subscribers);
    let (grpc, http) = (gateway.grpc.to_string(), gateway.http.to_string());
    let publish: [&[&str]; 3] =
        [&["grpc", "--grpc", &grpc], &["http", "--http", &http], &["centrifugo", "--centrifugo", &http]];
    for publish in publish {
        let figures = figures(&[&["--url", &url, "--publishers", "3", "--publish"], publish, SMALL].concat());
        assert_eq!((number(&figures, "deliveries"), number(&figures, "publishers")), (2000.0, 3.0), "{publish:?}");
    }
    // A URL that takes messages is a server of its own kind; ours says what is wrong with such a request.
    let post = format!("http://{http}/v1/pushData?id={{topic}}");
    let output = bench(&[&["--url", &url, "--publish", "post", "--post-url", &post, "--json"], SMALL].concat());
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(all["median"]["gateway"]["refused"], 200, "{all}");
}

#[test]
fn a_nats_server_is_loaded_by_the_same_client() {
    let nats = Nats::start();
    let url = format!("nats://{}", nats.address);
    let pid = nats.child.id().to_string();
    let figures =
        figures(&[&["--url", &url, "--nats", &nats.address, "--server-pid", &pid, "--spread", "3"], SMALL].concat());
    assert_eq!((number(&figures, "deliveries"), figures["dialect"].as_str()), (2000.0, Some("nats")));
    assert!(number(&figures, "server_rss_bytes") > 1e6, "{figures}");
}

#[test]
fn connections_that_leave_come_back_while_others_come_at_once() {
    let gateway = Gateway::start(&[]);
    let (url, grpc) = (format!("ws://{}/ws", gateway.subscribers), gateway.grpc.to_string());
    let load = ["-c", "60", "--topics", "3", "--rate", "300", "--warmup", "0.2", "--duration", "1.5"];
    let more = ["--churn", "40", "--storm", "200", "--storm-at", "0.5"];
    let figures = figures(&[&["--url", &url, "--grpc", &grpc], &load[..], &more].concat());
    assert!((20.0..=70.0).contains(&number(&figures, "churned")), "{figures}");
    assert_eq!(number(&figures, "churned"), number(&figures, "returned"));
    assert!(number(&figures, "return_p50_us") > 0.0 && number(&figures, "subscribed") == 60.0);
    assert_eq!((number(&figures, "storm_subscribed"), number(&figures, "storm_failed")), (200.0, 0.0));
    for name in ["storm_s", "storm_p99_us", "storm_before_p99_us", "storm_during_p99_us", "storm_after_p99_us"] {
        assert!(number(&figures, name) > 0.0, "{name} of {figures}");
    }
}

#[test]
fn topics_by_zipf_s_law_lose_nothing_and_have_their_shares() {
    let gateway = Gateway::start(&[]);
    let (url, grpc) = (format!("ws://{}/ws", gateway.subscribers), gateway.grpc.to_string());
    let load =
        ["-c", "100", "--topics", "10", "--zipf", "1", "--rate", "1000", "--messages", "1000", "--publishers", "2"];
    let both = number(&figures(&[&["--url", &url, "--grpc", &grpc], &load[..]].concat()), "deliveries");
    let even = 100.0 * 1000.0 / 10.0;
    // The sum of the squares of the shares: 18 % of all pairs instead of 10 %.
    assert!((1.6..2.0).contains(&(both / even)), "{both}");
}

#[test]
fn the_result_is_for_people_programs_and_plotters() {
    let gateway = Gateway::start(&[]);
    let (url, grpc) = (format!("ws://{}/ws", gateway.subscribers), gateway.grpc.to_string());
    let file = std::env::temp_dir().join(format!("fanwire-load-{}.hgrm", std::process::id()));
    let to = ["--url", &url, "--grpc", &grpc];
    let pid = gateway.pid().to_string();
    let run = |more: &[&str]| bench(&[&to, SMALL, more].concat());

    let output = run(&["--hgrm", file.to_str().unwrap(), "--server-pid", &pid, "--fail-if", "return_max>1s"]);
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for row in
        ["connections  40 of 40", "delivered    2000", "checks       lost 0", "server       CPU", "kernel       slabs"]
    {
        assert!(table.contains(row), "{row:?} in\n{table}");
    }
    let percentiles = read(&file);
    std::fs::remove_file(&file).unwrap();
    let last = percentiles.lines().rfind(|line| !line.starts_with('#')).unwrap();
    assert_eq!(last.split_whitespace().skip(1).collect::<Vec<_>>(), ["1.000000000000", "2000"], "{percentiles}");

    let failed = run(&["--fail-if", "deliveries>1999"]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert_eq!(run(&["--fail-if", "speed>1"]).status.code(), Some(1), "no such figure");
    assert_eq!(run(&["--duration", "1"]).status.code(), Some(2), "either so many messages or so long");
    assert_eq!(bench(&["--dialect", "raw"]).status.code(), Some(1), "no default address");
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap()
}

#[test]
fn the_live_line_comes_each_second_even_into_a_pipe() {
    let gateway = Gateway::start(&[]);
    let (url, grpc) = (format!("ws://{}/ws", gateway.subscribers), gateway.grpc.to_string());
    let arguments = ["bench", "--url", &url, "--grpc", &grpc, "-c", "10", "--rate", "50", "--messages", "125"];
    let mut child = fanwire(&arguments).spawn().unwrap();
    let lines: Vec<String> = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok).collect();
    let status = wait_for("it ends", || child.try_wait().unwrap());
    assert!(status.success() && lines.len() >= 2, "{lines:?} within {DEADLINE:?}");
    assert!(lines.iter().any(|line| line.contains("10/10 connected") && line.contains("p99.9")), "{lines:?}");
}
