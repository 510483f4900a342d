//! Who is there: come, gone, killed, come back, and etcd away.

use crate::client::Client;
use crate::etcd::{Etcd, port};
use crate::faults::Faults;
use crate::gateway::{Start, fanwire, wait_until};
use crate::http::request;
use crate::killed::Killed;
use crate::lab::Lab;
use crate::node::{Listener, Node, cluster, nodes};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A key outlives its node by a lease of five seconds, and etcd looks at leases twice a second.
const GONE_WITHIN: Duration = Duration::from_secs(7);

#[test]
fn nodes_see_one_another_and_one_that_is_killed_is_gone() {
    let etcd = Etcd::start();
    let mut three = cluster(&etcd, &["a", "b", "c"], &[]);
    let (code, json, _) = nodes(&etcd.address(), &["--json"]);
    let listed: serde_json::Value = serde_json::from_str(&json).unwrap();
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect();
    assert_eq!((code, names), (0, vec!["a", "b", "c"]));
    let a = &listed[0];
    assert_eq!(a["role"], "all");
    assert_eq!(a["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(a["grpc"], three[0].grpc.to_string());
    assert_eq!(a["subscribers"][0], three[0].subscribers.to_string());
    assert_eq!(a["relay"], three[0].network.address.to_string());
    assert!(a["connections_max"].as_u64().unwrap() > 0 && a["id"].as_str().unwrap().len() == 16, "{a}");
    let (_, table, _) = nodes(&etcd.address(), &[]);
    assert!(table.starts_with("NAME  ID") && table.lines().count() == 4, "{table}");

    drop(three.remove(0));
    for node in &three {
        wait_until("it is gone for the others", || node.sees(1, 1));
    }
    assert_eq!(nodes(&etcd.address(), &[]).1.lines().count(), 3);

    three.push(Node::start(&etcd, "a", &[]));
    for node in &three {
        wait_until("it is back", || node.sees(2, 2));
    }
    three[2].publish("t", 1..2);
}

#[test]
#[ignore = "a time, measured on a machine that does nothing else"]
fn one_that_is_killed_is_gone_in_seven_seconds() {
    let etcd = Etcd::start();
    let mut three = cluster(&etcd, &["a", "b", "c"], &[]);
    let killed = Instant::now();
    drop(three.remove(0));
    for node in &three {
        wait_until("it is gone for the others", || node.sees(1, 1));
    }
    assert!(killed.elapsed() < GONE_WITHIN, "{:?}", killed.elapsed());
}

#[test]
fn a_server_of_etcds_that_is_away_lets_nobody_publish_too_early() {
    let etcd = Etcd::start();
    let servers = format!("http://127.0.0.1:1,http://127.0.0.1:2,{}", etcd.address());
    let node = Node::start(&etcd, "a", &[("cluster.etcd", &servers)]);
    // The first answer of its HTTP port comes when publishers are let in.
    assert!(node.is_member(), "{}", node.stderr());
}

#[test]
fn servers_of_etcds_that_say_nothing_let_nobody_publish_too_early() {
    let etcd = Etcd::start();
    // Each takes connections, as a frozen process does, and two seconds of whoever waits for it to speak.
    let silent = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = silent.each_ref().map(|listener| format!("http://{}", listener.local_addr().unwrap()));
    let servers = [&addresses[..], &[etcd.address()]].concat().join(",");
    let node = Node::start(&etcd, "a", &[("cluster.etcd", &servers)]);
    assert!(node.is_member(), "{}", node.stderr());
    let (code, listed, stderr) = nodes(&servers, &[]);
    assert_eq!((code, listed.lines().count()), (0, 2), "{stderr}");
}

#[test]
fn a_node_that_comes_serves_when_it_has_heard_of_the_others() {
    let etcd = Etcd::start();
    let there = Node::start(&etcd, "a", &[]);
    there.network.fall_silent();
    let come = Node::start(&etcd, "b", &[]);
    let first = std::thread::scope(|scope| {
        let asked = scope.spawn(|| come.metrics());
        wait_until("it is a member", || etcd.get("fanwire/nodes/").len() == 2);
        there.network.pass();
        asked.join().unwrap()
    });
    // A balancer that was answered earlier would send clients who have heard elsewhere what this one is about to make up.
    assert_eq!(first.sum("fanwire_relay_links", &[]), 1.0);
}

#[test]
fn a_node_that_does_not_answer_keeps_nobody_from_serving() {
    let etcd = Etcd::start();
    let there = Node::start(&etcd, "a", &[]);
    there.network.cut();
    let come = Node::start(&etcd, "b", &[]);
    assert!(come.sees(1, 0), "it has failed once");
    let log = come.gateway.stderr();
    assert!(!log.contains("serving without it"), "one that has failed is not waited for: {log}");
    there.network.pass();
    wait_until("it pulls", || come.sees(1, 1));
}

#[test]
fn a_node_that_listens_everywhere_is_found_at_the_address_that_etcd_sees() {
    let Some(lab) = Lab::new() else { return };
    let (finding, place) = (lab.place("etcd"), lab.place("a"));
    let disk = lab.disk("etcd", 160);
    let mut etcd = Etcd::within(&finding, disk.path.join("data"));
    etcd.run();
    let network = Faults::within(&finding, 2379);
    network.lead_to(([127, 0, 0, 1], 2379).into());
    // The first has no name that anybody knows.
    let servers = format!("http://no-such-server.invalid:2379,http://{}", network.address);
    let settings = [
        ("cluster.etcd", servers.as_str()),
        ("cluster.relay_address", "0.0.0.0:10069"),
        ("cluster.insecure", "true"),
        ("publish.insecure", "true"),
        ("publish.http_address", "0.0.0.0:10068"),
    ];
    let node = place.inside(|| Start::new().sets(&settings).start());
    place.inside(|| wait_until("it is a member", || node.metrics().sum("fanwire_cluster_member", &[]) == 1.0));
    let (_, value) = etcd.get("fanwire/nodes/").pop().expect("its key");
    let said: serde_json::Value = serde_json::from_str(&value).unwrap();
    assert_eq!(said["relay"], format!("{}:10069", place.address));
    assert_eq!(said["http"], format!("{}:10068", place.address));
}

#[test]
fn a_node_of_which_etcd_sees_only_loopback_says_what_to_set_and_is_no_member() {
    let etcd = Etcd::start();
    let everywhere = [("cluster.relay_address", "0.0.0.0:0"), ("cluster.insecure", "true")];
    let lost = Node::start(&etcd, "a", &[&everywhere[..], &[("cluster.relay_advertise", "")]].concat());
    wait_until("it says so", || lost.get("/readyz").body.contains("set cluster.relay_advertise"));
    assert!(!lost.is_member() && etcd.get("fanwire/nodes/").is_empty(), "others would connect to themselves");
    let told = Node::start(&etcd, "b", &everywhere);
    wait_until("it is a member", || told.sees(0, 0));
}

#[test]
fn load_is_told() {
    let etcd = Etcd::start();
    let node = Node::start(&etcd, "a", &[]);
    let _clients: Vec<_> = (0..3).map(|_| Client::gpush(&node)).collect();
    wait_until("etcd knows of three clients", || {
        let listed: serde_json::Value = serde_json::from_str(&nodes(&etcd.address(), &["--json"]).1).unwrap();
        listed[0]["connections"] == 3
    });
}

#[test]
fn without_etcd_a_node_serves_its_own_and_joins_when_it_can() {
    let mut etcd = Etcd::prepared();
    let two: Vec<_> = ["a", "b"].map(|name| Node::start(&etcd, name, &[])).into();
    let mut listeners: Vec<_> = two.iter().map(|node| Listener::new(node, "t")).collect();
    let note = |node: &Node| {
        let ready = node.get("/readyz");
        assert_eq!(ready.status, 200, "{ready:?}");
        ready.json()["notes"].to_string()
    };
    for (node, listener) in two.iter().zip(&mut listeners) {
        assert!(note(node).contains("not a member of the cluster"), "{}", note(node));
        node.publish("t", 1..11);
        listener.hears(&[(node.name, 10)]);
    }

    etcd.run();
    for node in &two {
        wait_until("it joins", || node.sees(1, 1));
        assert_eq!(note(node), "null");
    }
    // What was published before anybody could know of it is not made up.
    listeners[0].continue_from("b", 10);
    listeners[1].continue_from("a", 10);
    two.iter().for_each(|node| node.publish("t", 11..21));
    listeners.iter_mut().for_each(|listener| listener.hears(&[("a", 20), ("b", 20)]));

    etcd.stop();
    for node in &two {
        wait_until("it says so", || note(node).contains("not a member"));
        node.publish("t", 21..31);
    }
    listeners.iter_mut().for_each(|listener| listener.hears(&[("a", 30), ("b", 30)]));
    let (code, _, stderr) = nodes(&etcd.address(), &[]);
    assert_eq!(code, 1, "{stderr}");

    etcd.run();
    for node in &two {
        wait_until("it joins again", || node.sees(1, 1));
        node.publish("t", 31..41);
    }
    for listener in &mut listeners {
        listener.hears(&[("a", 40), ("b", 40)]);
        listener.hears_no_more();
    }
}

#[test]
fn whoever_lost_its_lease_while_keys_were_compacted_comes_back_and_misses_nothing() {
    let etcd = Etcd::start();
    let three = cluster(&etcd, &["a", "b", "c"], &[]);
    let mut listener = Listener::new(&three[2], "t");
    three[2].signal("STOP");
    wait_until("its lease is over", || three[0].sees(1, 1) && three[1].sees(1, 1));
    three[0].publish("t", 1..1001);
    let revision: serde_json::Value =
        serde_json::from_str(&etcd.ctl(&["get", "x", "--write-out=json"]).unwrap()).unwrap();
    etcd.ctl(&["compact", &revision["header"]["revision"].to_string()]).expect("it compacts");
    three[2].signal("CONT");
    for node in &three {
        wait_until("it is a member again", || node.sees(2, 2));
    }
    three[1].publish("t", 1..11);
    listener.hears(&[("a", 1000), ("b", 10)]);
    assert_eq!(three[2].lost(), 0.0);
}

#[test]
fn what_the_page_for_operators_says_of_clusters_runs() {
    let page = include_str!("../../docs/OPERATING.md");
    let section = page.split("\n## ").find(|section| section.starts_with("Several machines")).unwrap();
    let block = |kind: &str| section.split(&format!("```{kind}\n")).nth(1).unwrap().split("```").next().unwrap();
    let etcd = Etcd::start();
    let folder = std::env::temp_dir().join(format!("fanwire-page-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).display().to_string();
    std::fs::write(file("tokens"), "0123456789abcdef0123456789abcdef\n").unwrap();
    let servers = block("toml").lines().find(|line| line.starts_with("etcd = ")).unwrap();
    let settings = block("toml")
        .replace(servers, &format!("etcd = [\"{}\"]", etcd.address()))
        .replace("/etc/fanwire-relay.tokens", &file("tokens"));
    std::fs::write(file("fanwire.toml"), settings).unwrap();
    let check = fanwire(&["config", "check", &file("fanwire.toml")]).output().unwrap();
    assert!(check.status.success(), "{check:?}");
    let commands: Vec<_> = block("console").lines().collect();
    assert_eq!(commands.len(), 2);
    for line in commands {
        let path = file("fanwire.toml");
        let words: Vec<_> = line.split(' ').map(|word| if word == "fanwire.toml" { &path } else { word }).collect();
        let output = fanwire(&words[1..]).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{line}: {output:?}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn three_nodes_on_one_machine_are_tried_as_the_page_for_operators_says() {
    let page = include_str!("../../docs/OPERATING.md");
    let trial = page.split("Three nodes on one machine").nth(1).unwrap();
    let block = trial.split("```console\n").nth(1).unwrap().split("```").next().unwrap();
    let folder = std::env::temp_dir().join(format!("fanwire-trial-{}", std::process::id()));
    // The same on ports that are free.
    let (etcd, peer) = ("http://127.0.0.1:2379", format!("http://127.0.0.1:{}", port()));
    let data = format!(
        "{} --listen-client-urls {etcd} --advertise-client-urls {etcd} --listen-peer-urls {peer} --initial-advertise-peer-urls {peer} --initial-cluster default={peer}",
        folder.display()
    );
    assert!(block.contains("--data-dir /tmp/fanwire-etcd &"), "{block}");
    let mut here = block.replace("/tmp/fanwire-etcd", &data);
    let mut http = None;
    for named in ["2379", "9001", "9002", "9003", "9011", "9012", "9013", "9021", "9022", "9023"] {
        let free = port();
        assert!(here.contains(&format!("127.0.0.1:{named}")), "{named} in\n{here}");
        here = here.replace(&format!("127.0.0.1:{named}"), &format!("127.0.0.1:{free}"));
        http = Some(([127, 0, 0, 1], free).into());
    }
    let shell = |line: &str| {
        let line = line.replace("fanwire ", concat!(env!("CARGO_BIN_EXE_fanwire"), " "));
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {line}")]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    };
    let mut running = Vec::new();
    let mut published = 0;
    for line in here.lines() {
        if let Some(stays) = line.strip_suffix(" &") {
            running.push(Killed(shell(stays).spawn().unwrap()));
        } else if line.starts_with("fanwire nodes ") {
            wait_until("three are listed", || {
                String::from_utf8(shell(line).output().unwrap().stdout).unwrap().lines().count() == 4
            });
        } else {
            assert!(line.starts_with("fanwire pub "), "a line that no test knows: {line}");
            let third = http.expect("the last of the ports is that of the third node's pages");
            wait_until("it is subscribed", || {
                let page = request(third, "GET", "/metrics", &[], &[]).body;
                page.lines().any(|line| line.starts_with("fanwire_subscriptions{") && line.ends_with(" 2"))
            });
            assert!(shell(line).output().unwrap().status.success(), "{line}");
            published += 1;
        }
    }
    assert_eq!((running.len(), published), (5, 1), "{here}");
    let mut heard = String::new();
    BufReader::new(running[4].0.stdout.take().unwrap()).read_line(&mut heard).unwrap();
    assert!(heard.contains("good morning"), "{heard}");
    drop(running);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn nodes_names_what_is_missing() {
    let output = fanwire(&["nodes"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr.contains("give --etcd"), "{stderr}");
}
