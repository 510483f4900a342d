//! The real binary as a child process: started on free ports, watched, stopped, and never left behind.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Longest anything in these tests may take that should happen at once.
pub const DEADLINE: Duration = Duration::from_secs(15);

/// Where nobody listens.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

/// Polls `condition` until it gives a value.
///
/// # Panics
/// Naming `what`, if that has not happened within [`DEADLINE`].
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "did not happen within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// [`wait_for`] for a yes or no.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// How a gateway is to be started.
pub struct Start {
    command: Command,
}

/// A process that ended instead of listening.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stderr: String,
}

/// A gateway that listens. Killed when dropped; its stderr is shown if the test failed.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    /// Where subscribers connect.
    pub subscribers: SocketAddr,
    /// Where gRPC publishes.
    pub grpc: SocketAddr,
    /// Where HTTP publishes, and the admin pages.
    pub http: SocketAddr,
}

/// A `fanwire` command, without anything of the terminal.
pub fn fanwire(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanwire"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Start {
    /// `fanwire serve --dev` on free loopback ports, two shards.
    pub fn new() -> Start {
        Start::listening("127.0.0.1:0")
    }

    /// The same with subscribers at `address`.
    pub fn listening(address: &str) -> Start {
        let mut command = fanwire(&["serve", "--dev", "--listen", address]);
        // A notify socket or settings of whoever runs the tests are not ours; the mask of ring features is meant for us.
        for (key, _) in std::env::vars() {
            if (key.starts_with("FANWIRE_") && key != "FANWIRE_SHARDS__RING_FEATURES") || key == "NOTIFY_SOCKET" {
                command.env_remove(key);
            }
        }
        Start { command }
            .set("publish.grpc_address", "127.0.0.1:0")
            .set("publish.http_address", "127.0.0.1:0")
            .set("shards.count", "2")
            .set("shards.pin", "false")
    }

    /// One setting by `--set`.
    pub fn set(mut self, key: &str, value: &str) -> Start {
        self.command.arg("--set").arg(format!("{key}={value}"));
        self
    }

    /// Several.
    pub fn sets(self, settings: &[(&str, &str)]) -> Start {
        settings.iter().fold(self, |start, (key, value)| start.set(key, value))
    }

    /// A configuration file.
    pub fn config(mut self, file: &std::path::Path) -> Start {
        self.command.arg("--config").arg(file);
        self
    }

    /// One variable of the environment.
    pub fn env(mut self, key: &str, value: &str) -> Start {
        self.command.env(key, value);
        self
    }

    /// Under what `limit` does to its process.
    pub fn under(self, limit: impl FnOnce(Command) -> Command) -> Start {
        Start { command: limit(self.command) }
    }

    /// Starts it and waits until it said where it listens.
    ///
    /// # Errors
    /// With what it printed, if it ended before.
    pub fn try_start(mut self) -> Result<Gateway, Ended> {
        let mut child = self.command.spawn().expect("the binary starts");
        let stdout = Arc::new(Mutex::new(String::new()));
        let stderr = Arc::new(Mutex::new(String::new()));
        collect(child.stderr.take().unwrap(), stderr.clone());
        let (lines, printed) = mpsc::channel();
        let (pipe, copy) = (child.stdout.take().unwrap(), stdout.clone());
        let reader = thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                *copy.lock().unwrap() += &format!("{line}\n");
                let _ = lines.send(line); // Nobody listens any more once all addresses are known.
            }
        });
        let end = Instant::now() + DEADLINE;
        let (mut subscribers, mut grpc, mut http) = (None, None, None);
        loop {
            // Its line comes behind the two others; with a role that lacks one of them there is nowhere to connect to.
            if let Some(http) = http {
                let (subscribers, grpc) = (subscribers.unwrap_or(NOWHERE), grpc.unwrap_or(NOWHERE));
                return Ok(Gateway { child, stdout, stderr, subscribers, grpc, http });
            }
            match printed.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with("subscribers ") => subscribers = subscribers.or_else(|| address(&line)),
                Ok(line) if line.starts_with("gRPC publish ") => grpc = address(&line),
                Ok(line) if line.starts_with("HTTP publish ") || line.starts_with("HTTP admin ") => {
                    http = address(&line)
                }
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    reader.join().unwrap();
                    let status = child.wait().unwrap();
                    // Its stderr is at its end too; the collecting thread needs a moment to take it.
                    wait_until("the collector lets go of stderr", || Arc::strong_count(&stderr) == 1);
                    let stderr = stderr.lock().unwrap().clone();
                    return Err(Ended { status, stderr });
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    panic!(
                        "the gateway did not say where it listens within {DEADLINE:?}\nstdout:\n{}\nstderr:\n{}",
                        stdout.lock().unwrap(),
                        stderr.lock().unwrap()
                    );
                }
            }
        }
    }

    /// Starts it.
    pub fn start(self) -> Gateway {
        self.try_start().unwrap_or_else(|ended| panic!("the gateway ended instead of listening: {ended:#?}"))
    }
}

/// The first `ADDRESS:PORT` of a line, with or without a scheme.
fn address(line: &str) -> Option<SocketAddr> {
    line.split_whitespace().find_map(|word| {
        let word = word.split_once("://").map_or(word, |(_, rest)| rest);
        word.split('/').next()?.parse().ok()
    })
}

/// Appends all that comes out of `pipe` to `text`, until its end.
fn collect(pipe: impl Read + Send + 'static, text: Arc<Mutex<String>>) {
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            *text.lock().unwrap() += &format!("{line}\n");
        }
    });
}

impl Gateway {
    /// With these settings on top of the defaults of [`Start::new`].
    pub fn start(settings: &[(&str, &str)]) -> Gateway {
        Start::new().sets(settings).start()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it printed so far.
    pub fn stdout(&self) -> String {
        self.stdout.lock().unwrap().clone()
    }

    /// All it logged so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Sends it a signal, by the name kill(1) knows.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.pid())]).status().unwrap();
        assert!(sent.success(), "the gateway is gone: {}", self.stderr());
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the gateway ends", || self.ended())
    }

    /// SIGTERM, and its exit status.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// Its resident memory, in bytes.
    pub fn rss_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let text = self.stderr();
            let from = text.char_indices().rev().nth(8000).map_or(0, |(at, _)| at);
            eprintln!("--- the gateway's stderr ---\n{}---", &text[from..]);
        }
    }
}
