//! Networks of the kernel's own to fail in: a namespace for each machine, all on one switch.
//!
//! ```text
//!   a: eth0 10.77.0.1 ─┐                          ┌─ port1 │
//!   b: eth0 10.77.0.2 ─┼── veth pairs, into ──────┼─ port2 │ bridge, in a namespace of its own
//!   c: eth0 10.77.0.3 ─┘                          └─ port3 │
//! ```
//!
//! A cable is pulled on the switch's side, so that the machine has no carrier and its sockets hear nothing. What is on a machine's loopback
//! goes on meanwhile: its own clients are there. Names carry the process that made them; what one that is dead left behind, the next removes.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Where iproute2 keeps the names of namespaces.
const NAMED: &str = "/run/netns";
const PREFIX: &str = "fw-";

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Some machines and the switch between them. All of it goes when this does.
pub struct Lab {
    name: String,
    switch: String,
    next: AtomicU8,
}

/// A machine on the switch. Cheap to clone; a name for it, no more.
#[derive(Clone)]
pub struct Place {
    namespace: Arc<Namespace>,
    switch: String,
    port: String,
    /// Of its end of the cable.
    pub address: Ipv4Addr,
}

struct Namespace {
    name: String,
    file: File,
}

impl Lab {
    /// A switch without machines, where this process may have one.
    ///
    /// Where it may not, says so past the test harness, which shows nothing of tests that pass.
    pub fn new() -> Option<Lab> {
        static MAY: OnceLock<bool> = OnceLock::new();
        if !*MAY.get_or_init(may_have_networks) {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: `ip netns add` is not allowed here (CAP_SYS_ADMIN): a test of real networks"
            );
            return None;
        }
        let name = format!("{PREFIX}{}-{}", owner(), NEXT.fetch_add(1, Ordering::Relaxed));
        let switch = format!("{name}-switch");
        let lab = Lab { name, switch, next: AtomicU8::new(1) };
        ip(&["netns", "add", &lab.switch]);
        ip(&["-n", &lab.switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &lab.switch, "link", "set", "br0", "up"]);
        Some(lab)
    }

    /// One more machine, with its cable in.
    pub fn place(&self, name: &str) -> Place {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (namespace, port) = (format!("{}-{name}", self.name), format!("port{number}"));
        let address = Ipv4Addr::new(10, 77, 0, number);
        ip(&["netns", "add", &namespace]);
        ip(&["-n", &self.switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
        ip(&["-n", &self.switch, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        let file = File::open(Path::new(NAMED).join(&namespace)).unwrap();
        Place { namespace: Arc::new(Namespace { name: namespace, file }), switch: self.switch.clone(), port, address }
    }

    /// A small disk, empty.
    pub fn disk(&self, name: &str, mebibytes: u32) -> Disk {
        let path = std::env::temp_dir().join(format!("{}-{name}", self.name));
        std::fs::create_dir_all(&path).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"]).arg(&path));
        Disk { path }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Processes in them have ended by now or end with their tests; a namespace lasts as long as the last of them.
        named().into_iter().filter(|name| name.starts_with(&format!("{}-", self.name))).for_each(|name| {
            let _ = quietly(Command::new("ip").args(["netns", "delete", &name]));
        });
    }
}

impl Place {
    /// Moves the calling thread, and what it starts and opens from now on.
    pub fn enter(&self) {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        move_into_link_name_space(self.namespace.file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// Does `work` there: processes it starts live there, sockets it opens stay there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let within = || {
            self.enter();
            work()
        };
        std::thread::scope(|scope| scope.spawn(within).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Pulls its cable, or plugs it in again.
    pub fn set_link(&self, is_up: bool) {
        ip(&["-n", &self.switch, "link", "set", &self.port, if is_up { "up" } else { "down" }]);
    }

    /// So many bits a second and no more, both ways; `None`: as many as there are.
    pub fn throttle(&self, kbit_per_s: Option<u32>) {
        for (namespace, device) in [(&self.namespace.name, "eth0"), (&self.switch, &*self.port)] {
            let mut tc = Command::new("tc");
            match kbit_per_s {
                Some(rate) => tc
                    .args(["-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf", "rate"])
                    .args([&format!("{rate}kbit"), "burst", "16kb", "latency", "100ms"]),
                None => tc.args(["-n", namespace, "qdisc", "delete", "dev", device, "root"]),
            };
            run(&mut tc);
        }
    }
}

/// A file system with room for little. Unmounted when dropped.
pub struct Disk {
    pub path: PathBuf,
}

impl Disk {
    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.path.join("filling")).unwrap();
        for bytes in [1 << 20, 4096, 1] {
            while file.write_all(&vec![b'x'; bytes]).is_ok() {}
        }
    }

    /// Gives it back.
    pub fn free(&self) {
        std::fs::remove_file(self.path.join("filling")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        remove_disk(&self.path);
    }
}

fn remove_disk(path: &Path) {
    let _ = quietly(Command::new("umount").arg("-l").arg(path));
    let _ = std::fs::remove_dir(path);
}

/// Whether namespaces can be had. Before the first, removes those of runs that were killed.
fn may_have_networks() -> bool {
    sweep();
    let probe = format!("{PREFIX}{}-probe", owner());
    let output = quietly(Command::new("ip").args(["netns", "add", &probe]));
    if output.status.success() {
        ip(&["netns", "delete", &probe]);
        return true;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Operation not permitted") || said.contains("Permission denied"), "ip netns add: {said}");
    false
}

/// Names this process for as long as it lives: its id, and when it started, since ids come again.
fn owner() -> String {
    let pid = std::process::id();
    format!("{pid}-{}", started(pid).expect("it is alive"))
}

/// When a process started, in ticks since the machine did; `None`: there is none.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its second field is a name that may hold anything; the 22nd is the 20th behind it.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// Whether a name of ours is of a process that is no more.
fn is_orphan(name: &str) -> bool {
    let mut parts = name.strip_prefix(PREFIX).unwrap_or_default().split('-').map_while(|part| part.parse::<u64>().ok());
    match (parts.next(), parts.next()) {
        (Some(pid), Some(at)) => u32::try_from(pid).ok().and_then(started) != Some(at),
        _ => false,
    }
}

fn named() -> Vec<String> {
    let entries = std::fs::read_dir(NAMED).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Ends what runs in networks of runs that are over, and removes them and their disks.
fn sweep() {
    for name in named().iter().filter(|name| is_orphan(name)) {
        let pids = quietly(Command::new("ip").args(["netns", "pids", name]));
        for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
            quietly(Command::new("sh").args(["-c", &format!("kill -KILL {pid}")]));
        }
        quietly(Command::new("ip").args(["netns", "delete", name]));
    }
    let entries = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(is_orphan)) {
        remove_disk(&entry.path());
    }
}

fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments));
}

#[track_caller]
fn run(command: &mut Command) {
    let output = quietly(command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn quietly(command: &mut Command) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = command.env("PATH", path).stdin(Stdio::null()).output();
    output.unwrap_or_else(|e| panic!("{command:?}: {e} (scripts/install-tools netns)"))
}

#[test]
fn what_a_killed_run_left_behind_is_removed() {
    let Some(lab) = Lab::new() else { return };
    let mut dead = Command::new("true").spawn().unwrap();
    let left = format!("{PREFIX}{}-1-0-a", dead.id());
    dead.wait().unwrap();
    ip(&["netns", "add", &left]);
    let mut sleeper = Command::new("ip").args(["netns", "exec", &left, "sleep", "600"]).spawn().unwrap();
    crate::gateway::wait_until("it is in there", || {
        !quietly(Command::new("ip").args(["netns", "pids", &left])).stdout.is_empty()
    });
    sweep();
    assert!(!named().contains(&left));
    assert!(!sleeper.wait().unwrap().success(), "it was killed");
    assert!(named().contains(&lab.switch), "what is in use stays");
}

#[test]
fn a_cable_that_is_pulled_carries_nothing_and_a_throttled_one_little() {
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};
    let Some(lab) = Lab::new() else { return };
    let (a, b) = (lab.place("a"), lab.place("b"));
    let address = (b.address, 7).into();
    let listener = b.inside(|| TcpListener::bind(address).unwrap());
    let accepting = std::thread::spawn(move || {
        let streams: Vec<_> = (0..2).map(|_| listener.accept().unwrap().0).collect();
        streams.into_iter().map(|mut stream| std::io::copy(&mut stream, &mut std::io::sink()).unwrap()).sum::<u64>()
    });
    let dial = || TcpStream::connect_timeout(&address, Duration::from_millis(300));
    b.set_link(false);
    assert!(a.inside(dial).is_err());
    b.set_link(true);
    let wide = crate::gateway::wait_for("the cable carries again", || a.inside(dial).ok());
    drop(wide);
    let mut narrow = a.inside(dial).unwrap();
    a.throttle(Some(4000));
    let begun = Instant::now();
    narrow.write_all(&vec![0; 500_000]).unwrap();
    drop(narrow);
    assert_eq!(accepting.join().unwrap(), 500_000);
    assert!(begun.elapsed() > Duration::from_millis(700), "4 Mbit in {:?}", begun.elapsed());
    a.throttle(None);
}
