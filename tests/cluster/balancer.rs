//! HAProxy in front of three nodes, with the very file of `tuning/proxy`: a node that drains is left in peace, and nobody misses anything.

use crate::client::{Client, Event, GREETING, upgrade};
use crate::fleet::{Fleet, TOPIC};
use crate::gateway::{fanwire, wait_until};
use crate::lab::Place;
use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Where HAProxy is, as the fleet numbers its machines: behind etcd and three nodes.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);

struct Balancer {
    child: Child,
    folder: PathBuf,
}

impl Balancer {
    fn start(fleet: &Fleet) -> Balancer {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tuning/proxy/haproxy-cluster.cfg");
        let mut text = std::fs::read_to_string(file).unwrap();
        for (nth, node) in (1..).zip(&fleet.nodes) {
            let changed = text.replace(&format!(" 10.0.0.{nth}:"), &format!(" {}:", node.place.address));
            assert_ne!(changed, text, "no node {nth}");
            text = changed;
        }
        let folder = std::env::temp_dir().join(format!("fanwire-balancer-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("haproxy.cfg"), text).unwrap();
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("haproxy");
        command.env("PATH", path).args(["-db", "-f"]).arg(folder.join("haproxy.cfg"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = fleet.outside.inside(|| command.spawn().expect("scripts/install-tools proxies"));
        let balancer = Balancer { child, folder };
        fleet.outside.inside(|| wait_until("it listens", || TcpStream::connect((Ipv4Addr::LOCALHOST, 80)).is_ok()));
        balancer
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A subscriber that HAProxy gave to some node.
fn subscriber(outside: &Place) -> Client {
    let mut client = outside.inside(|| Client::dial((Ipv4Addr::LOCALHOST, 80).into()));
    client.write(upgrade("/ws", "").as_bytes());
    assert_eq!((client.response().status, client.text()), (101, GREETING.to_owned()));
    client.subscribe(TOPIC);
    client
}

/// Connections of each node.
fn connections(fleet: &Fleet) -> Vec<usize> {
    let of = |node: &crate::fleet::Machine| node.metrics().sum("fanwire_connections", &[]) as usize;
    fleet.nodes.iter().filter(|node| node.is_running()).map(of).collect()
}

#[test]
fn a_node_that_drains_behind_haproxy_gets_nobody_new_and_who_was_there_comes_to_the_others() {
    let settings = [
        ("listen.0.trusted_proxies", &*OUTSIDE.to_string()),
        ("listen.0.proxy_protocol", "true"),
        ("drain.drain_delay_ms", "3000"),
    ];
    let Some(mut fleet) = Fleet::start(&settings) else { return };
    assert_eq!(fleet.outside.address, OUTSIDE);
    let _balancer = Balancer::start(&fleet);
    let mut clients: Vec<_> = (0..6).map(|_| subscriber(&fleet.outside)).collect();
    assert_eq!(connections(&fleet), [2, 2, 2]);

    let mut command = fanwire(&["pub", TOPIC, "-", "--grpc", "127.0.0.1:10067,127.0.0.1:10067"]);
    let mut publishing = fleet.outside.inside(|| command.stdin(Stdio::piped()).spawn().unwrap());
    let mut lines = publishing.stdin.take().unwrap();
    let mut publish = |n: u64| writeln!(lines, "{n}").unwrap();
    publish(1);
    for client in &mut clients {
        assert_eq!(client.text(), "1");
    }
    fleet.nodes[0].gateway().signal("TERM");
    wait_until("new ones go to the others", || {
        // One of three would be its turn.
        let _more: Vec<_> = (0..3).map(|_| subscriber(&fleet.outside)).collect();
        connections(&fleet)[0] == 2
    });
    publish(2);
    for client in &mut clients {
        assert_eq!(client.text(), "2", "until the delay is over all goes on");
    }
    fleet.wait_drained(0);
    let mut stayed = Vec::new();
    for mut client in clients {
        match closing(&mut client) {
            Some(code) => {
                assert_eq!(code, 1012);
                stayed.push(subscriber(&fleet.outside));
            }
            None => stayed.push(client),
        }
    }
    // A stream that ended is begun anew, with another node.
    if let Some(status) = publishing.try_wait().unwrap() {
        panic!("{status}: {:?}", publishing.wait_with_output());
    }
    (3..=50).for_each(&mut publish);
    for client in &mut stayed {
        (3..=50).for_each(|n| assert_eq!(client.text(), n.to_string()));
    }
    drop(lines);
    let output = publishing.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "50 accepted, 0 refused\n");
    // Back, it takes part again.
    fleet.start_node(0);
    fleet.settles();
    wait_until("HAProxy sends it somebody", || {
        let client = subscriber(&fleet.outside);
        let has = connections(&fleet)[0] > 0;
        drop(client);
        has
    });
}

/// The code that a client is being closed with, if it is.
fn closing(client: &mut Client) -> Option<u16> {
    match client.event(Duration::from_millis(300)) {
        Event::Frame(frame) => Some(frame.close().0),
        Event::Quiet => None,
        other => panic!("{other:?} instead of a close frame"),
    }
}
