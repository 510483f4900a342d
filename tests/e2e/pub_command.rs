//! `fanwire pub` against a real gateway: several topics in one call, everyone, and a simulated market that outlives a restart.

use crate::client::Client;
use crate::gateway::{DEADLINE, Gateway, fanwire, wait_for, wait_until};
use crate::killed::Killed;
use std::io::{BufRead, BufReader};
use std::process::Command;
use std::sync::{Arc, Mutex};

/// Runs `pub` with these arguments; what it printed.
fn published(gateway: &Gateway, arguments: &[&str]) -> String {
    let grpc = gateway.grpc.to_string();
    let output = fanwire(&[&["pub", "--grpc", &grpc], arguments].concat()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn one_call_reaches_several_topics_or_everyone() {
    let gateway = Gateway::start(&[]);
    let mut clients = [&["a"][..], &["b"], &["a", "b"], &["c"]].map(|topics| Client::subscriber(&gateway, topics));
    assert_eq!(published(&gateway, &["--topic", "a", "--topic", "b", "both"]), "2 accepted, 0 refused\n");
    assert_eq!(published(&gateway, &["--everyone", "all"]), "1 accepted, 0 refused\n");
    for (client, times) in clients.iter_mut().zip([1, 1, 2, 0]) {
        for _ in 0..times {
            assert_eq!(client.text(), "both");
        }
        assert_eq!(client.text(), "all");
    }
}

#[test]
fn a_push_to_a_user_reaches_that_users_connections_alone() {
    let gateway = Gateway::start(&[("auth.login", "accept-any")]);
    let mut clients = ["bob", "bob", "eve"].map(|uid| {
        let mut client = Client::gpush(&gateway);
        client.log_in(uid);
        client.subscribe_privately("orders");
        client
    });
    assert_eq!(published(&gateway, &["--uid", "bob", "orders", "filled"]), "1 accepted, 0 refused\n");
    assert_eq!(published(&gateway, &["--everyone", "all"]), "1 accepted, 0 refused\n");
    for (client, expected) in clients.iter_mut().zip([&["filled", "all"][..], &["filled", "all"], &["all"]]) {
        for text in expected {
            assert_eq!(client.text(), *text);
        }
    }
}

#[test]
fn a_simulated_market_reaches_its_subscribers_and_comes_back_after_a_restart() {
    let mut gateway = Gateway::start(&[]);
    let grpc = gateway.grpc.to_string();
    let arguments = ["pub", "--grpc", &grpc, "--simulate", "2", "--rate", "500", "--seed", "7"];
    let mut market = Killed(fanwire(&arguments).spawn().unwrap());
    let said = Arc::new(Mutex::new(String::new()));
    let (stderr, copy) = (market.0.stderr.take().unwrap(), said.clone());
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            *copy.lock().unwrap() += &format!("{line}\n");
        }
    });
    let numbers = |client: &mut Client, n: usize| -> Vec<u64> {
        let quote = |_| {
            let quote: serde_json::Value = serde_json::from_str(&client.text()).unwrap();
            assert_eq!(quote["s"], "S000");
            assert!(quote["b"].as_f64() < quote["a"].as_f64() && quote["t"].is_f64(), "{quote}");
            quote["n"].as_u64().unwrap()
        };
        (0..n).map(quote).collect()
    };
    let follow_each_other = |numbers: &[u64]| numbers.windows(2).all(|w| w[1] == w[0] + 1);
    let before = numbers(&mut Client::subscriber(&gateway, &["quotes:S000"]), 50);
    assert!(follow_each_other(&before), "{before:?}");

    gateway.stop();
    drop(gateway);
    let gateway = Gateway::start(&[("publish.grpc_address", &grpc)]);
    let after = numbers(&mut Client::subscriber(&gateway, &["quotes:S000"]), 50);
    assert!(follow_each_other(&after) && after[0] > before[49], "{after:?}");
    wait_until("a line of each second", || said.lock().unwrap().contains("in flight"));

    let interrupted = Command::new("sh").args(["-c", &format!("kill -INT {}", market.0.id())]).status().unwrap();
    assert!(interrupted.success());
    let status = wait_for("it ends", || market.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0), "within {DEADLINE:?}: {}", said.lock().unwrap());
    reader.join().unwrap();
    assert!(said.lock().unwrap().contains("; again in 100 ms"), "{}", said.lock().unwrap());
    let summary = std::io::read_to_string(market.0.stdout.take().unwrap()).unwrap();
    assert!(summary.contains(" accepted, ") && !summary.contains(", 0 reconnects"), "{summary}");
}

#[test]
fn a_market_ends_after_its_duration() {
    let gateway = Gateway::start(&[]);
    let mut client = Client::subscriber(&gateway, &["tape"]);
    let printed = published(&gateway, &["tape", "--simulate", "500", "--rate", "200", "--duration", "0.3"]);
    assert!(!printed.starts_with("0 accepted") && printed.contains(", 0 refused"), "{printed}");
    assert!(client.text().starts_with("{\"s\":\""));
}
