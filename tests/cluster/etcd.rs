//! A real etcd on free loopback ports: started, stopped, started again with what it knew, and never left behind.

use crate::gateway::wait_until;
use crate::lab::Place;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

static NEXT: AtomicU64 = AtomicU64::new(0);
static PORTS: AtomicU16 = AtomicU16::new(0);

/// A port that nobody listens on now, below those that the kernel gives to whoever asks for any: nobody comes to have it by chance while
/// etcd is stopped.
pub fn port() -> u16 {
    const FIRST: u16 = 10_000;
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let lowest: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    // If that leaves too few, any will have to do.
    let count = if lowest > FIRST + 1000 { lowest - FIRST } else { 50_000 };
    // Other runs of these tests begin elsewhere.
    let begin = std::process::id().wrapping_mul(97);
    loop {
        let step = u32::from(PORTS.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + (begin.wrapping_add(step) % u32::from(count)) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// What a server of etcd's shows, and what it wants to see: files in PEM.
#[derive(Clone)]
pub struct Tls {
    pub ca: String,
    pub certificate: String,
    pub key: String,
}

/// One server of etcd, which may or may not run now.
pub struct Etcd {
    tls: Option<Tls>,
    directory: PathBuf,
    client_port: u16,
    peer_port: u16,
    /// In which network, if it has one of its own.
    place: Option<Place>,
    child: Option<Child>,
}

impl Etcd {
    /// Not running yet; its address is known.
    pub fn prepared() -> Etcd {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("fanwire-etcd-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        Etcd { tls: None, directory, client_port: port(), peer_port: port(), place: None, child: None }
    }

    /// The same on the loopback of a network of its own, with its data in `directory`.
    pub fn within(place: &Place, directory: PathBuf) -> Etcd {
        Etcd { tls: None, directory, client_port: 2379, peer_port: 2380, place: Some(place.clone()), child: None }
    }

    /// Starts one of its commands where it is.
    fn spawned(&self, command: &mut Command) -> Child {
        let spawned = match &self.place {
            None => command.spawn(),
            Some(place) => place.inside(|| command.spawn()),
        };
        spawned.expect("etcd is installed (scripts/install-tools etcd)")
    }

    /// Running, and answering.
    pub fn start() -> Etcd {
        let mut etcd = Etcd::prepared();
        etcd.run();
        etcd
    }

    /// Running behind TLS; clients need a certificate of its authority.
    pub fn start_with(tls: &Tls) -> Etcd {
        let mut etcd = Etcd::prepared();
        etcd.tls = Some(tls.clone());
        etcd.run();
        etcd
    }

    /// Where clients connect.
    pub fn address(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client_port)
    }

    /// Starts it, with what it knew when it stopped.
    pub fn run(&mut self) {
        let (client, peer) = (self.address(), format!("http://127.0.0.1:{}", self.peer_port));
        let arguments = [
            ("--name", "n1".to_owned()),
            ("--data-dir", self.directory.display().to_string()),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer.clone()),
            ("--initial-cluster", format!("n1={peer}")),
            // Faster than its defaults: one machine has no network between its members.
            ("--heartbeat-interval", "50".to_owned()),
            ("--election-timeout", "500".to_owned()),
            ("--unsafe-no-fsync", String::new()),
        ];
        let mut command = Command::new("etcd");
        for (name, value) in arguments {
            command.arg(name);
            if !value.is_empty() {
                command.arg(value);
            }
        }
        if let Some(tls) = &self.tls {
            command.args(["--trusted-ca-file", &tls.ca, "--client-cert-auth"]);
            command.args(["--cert-file", &tls.certificate, "--key-file", &tls.key]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(self.spawned(&mut command));
        wait_until("etcd answers", || self.ctl(&["endpoint", "health"]).is_some());
    }

    /// Sends it a signal, by the name kill(1) knows.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it runs").id();
        assert!(Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap().success());
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    /// Kills it.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill(); // It may have ended by itself.
            child.wait().unwrap();
        }
    }

    /// What etcdctl prints, if it succeeds.
    pub fn ctl(&self, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new("etcdctl");
        if let Some(tls) = &self.tls {
            command.args(["--cacert", &tls.ca, "--cert", &tls.certificate, "--key", &tls.key]);
        }
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.address(), "--command-timeout", "2s"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let output = self.spawned(&mut command).wait_with_output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    /// Keys with a prefix, and their values.
    pub fn get(&self, prefix: &str) -> Vec<(String, String)> {
        let text = self.ctl(&["get", "--prefix", prefix]).expect("etcd answers");
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
