//! Servers that the bench starts by itself, so that one command gives one figure: a gateway, or the bare send loop.

use super::host;
use super::schedule::{Pace, Schedule};
use crate::sys;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{io, thread};

/// A child has to say that it listens within this.
const START: Duration = Duration::from_secs(20);
/// And to end within this once it is told to; then it is killed.
const STOP: Duration = Duration::from_secs(40);
/// `/metrics` has to answer within this.
const SCRAPE: Duration = Duration::from_secs(5);

/// A child process that ends with this value.
#[derive(Debug)]
pub struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

impl Server {
    /// Starts this very program with `arguments`, on `core` only if one is given.
    ///
    /// # Errors
    /// The core is not ours, or the process can't be started.
    pub fn start(arguments: &[String], core: Option<usize>) -> Result<Server, String> {
        let arguments = arguments.to_vec();
        // A child takes its mask from the thread that starts it, and that thread needs none any more.
        let starter = thread::spawn(move || {
            core.map_or(Ok(()), host::pin)?;
            let program = std::env::current_exe().map_err(|e| format!("where is this program: {e}"))?;
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
            command.spawn().map_err(|e| format!("starting the server: {e}"))
        });
        let mut child = starter.join().map_err(|_| "starting the server".to_owned())??;
        let stdout = child.stdout.take().expect("piped");
        let (line, lines) = mpsc::channel();
        // Ends with the child's stdout.
        thread::spawn(move || BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|l| line.send(l)));
        Ok(Server { stdin: child.stdin.take(), child, lines })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line it prints.
    ///
    /// # Errors
    /// It has ended, or printed none until `deadline`.
    pub(crate) fn line(&mut self, deadline: Instant) -> Result<String, String> {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(line),
            Err(mpsc::RecvTimeoutError::Timeout) => Err("the server said nothing in time".into()),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(format!("the server ended early: {}", self.child.wait().map_err(|e| e.to_string())?))
            }
        }
    }

    /// Gives it a line to read.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn tell(&mut self, line: &str) -> Result<(), String> {
        let stdin = self.stdin.as_mut().expect("open until the server is stopped");
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).map_err(|e| format!("the server does not listen: {e}"))
    }
}

impl Drop for Server {
    /// SIGTERM and the end of its stdin; SIGKILL if that takes too long.
    fn drop(&mut self) {
        self.stdin = None;
        sys::kill(self.child.id(), libc::SIGTERM).ok();
        let deadline = Instant::now() + STOP;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(10)),
                _ => return,
            }
        }
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

/// Where a gateway listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// `ws://…/ws`
    pub subscribers: String,
    /// `host:port`
    pub grpc: String,
    /// `host:port`
    pub http: String,
}

impl Addresses {
    /// Takes what one line of a starting gateway says: `subscribers  ws://ADDRESS/ws …`, `gRPC publish  ADDRESS`,
    /// `HTTP publish  http://ADDRESS …`.
    fn take(&mut self, line: &str) {
        let after = |what: &str| line.trim_start().strip_prefix(what)?.split_whitespace().next();
        let host = |url: &str| url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        match (after("subscribers"), after("gRPC publish"), after("HTTP publish")) {
            (Some(url), ..) if self.subscribers.is_empty() => self.subscribers = url.to_owned(),
            (_, Some(address), _) => self.grpc = host(address),
            (_, _, Some(url)) => self.http = host(url),
            _ => {}
        }
    }

    fn complete(&self) -> bool {
        !self.subscribers.is_empty() && !self.grpc.is_empty() && !self.http.is_empty()
    }
}

/// Starts a gateway on free ports of 127.0.0.1, quiet unless something is wrong, with `settings` (`section.key=value`)
/// besides, of which the last one of a key counts.
///
/// # Errors
/// It did not come up.
pub fn start_gateway(core: Option<usize>, settings: &[String]) -> Result<(Server, Addresses), String> {
    let any = "127.0.0.1:0";
    let mut arguments: Vec<String> =
        ["serve", "--listen", any, "--grpc-address", any, "--http-address", any, "--set", "log.level=warn"]
            .map(String::from)
            .into();
    arguments.extend(settings.iter().flat_map(|s| ["--set".to_owned(), s.clone()]));
    let mut server = Server::start(&arguments, core)?;
    let (mut addresses, deadline) = (Addresses::default(), Instant::now() + START);
    while !addresses.complete() {
        addresses.take(&server.line(deadline)?);
    }
    Ok((server, addresses))
}

/// Starts the bare send loop for `connections` clients; and where it listens.
///
/// # Errors
/// It did not come up.
pub fn start_bare(core: Option<usize>, connections: u32) -> Result<(Server, String), String> {
    let arguments = ["bench", "--bare-server", &connections.to_string()].map(String::from);
    let mut server = Server::start(&arguments, core)?;
    let line = server.line(Instant::now() + START)?;
    let address = line.strip_prefix("listening ").ok_or_else(|| format!("the bare server said {line:?}"))?;
    let address = address.to_owned();
    Ok((server, address))
}

/// Lets the bare server run `schedule`, `join` messages a send; messages and deliveries written, and sends that had to wait for their client.
///
/// # Errors
/// It failed.
pub(crate) fn run_bare(server: &mut Server, schedule: &Schedule, join: u32) -> Result<(u64, u64), String> {
    let Pace::Rate { per_s } = schedule.pace else {
        return Err("the bare server only runs at a rate: give --rate".into());
    };
    let messages = schedule.messages().expect("an open loop");
    server
        .tell(&format!("go {} {per_s} {messages} {} {} {join}", schedule.start_ns, schedule.topics, schedule.size))?;
    let length = Duration::from_nanos(schedule.until_ns.saturating_sub(crate::clock::Time::now().0));
    let line = server.line(Instant::now() + 3 * length + START)?;
    let numbers = |text: &str| text.split(' ').map(|n| n.parse().ok()).collect::<Option<Vec<u64>>>();
    match line.strip_prefix("done ").and_then(numbers).as_deref() {
        Some([messages, waited]) => Ok((*messages, *waited)),
        _ => Err(format!("the bare server said {line:?}")),
    }
}

/// `/metrics` of a gateway at `address`, as text.
///
/// # Errors
/// It can't be had.
pub fn scrape(address: &str) -> Result<String, String> {
    let get = || -> io::Result<String> {
        let address = address.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("no such host"))?;
        let mut stream = TcpStream::connect_timeout(&address, SCRAPE)?;
        stream.set_read_timeout(Some(SCRAPE))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let text = get().map_err(|e| format!("http://{address}/metrics: {e}"))?;
    if text.starts_with("HTTP/1.1 200") { Ok(text) } else { Err(format!("http://{address}/metrics: {:.80}", text)) }
}

/// The sum of all samples of metric `name` in Prometheus text; `None` if there is none.
pub fn metric(text: &str, name: &str) -> Option<f64> {
    let sample = |line: &str| {
        let rest = line.strip_prefix(name)?;
        // A longer name, or labels, whose values may hold anything but an unescaped quote; then the value, then perhaps a time.
        let value = if rest.starts_with('{') { &rest[rest.rfind('}')? + 1..] } else { rest };
        value.strip_prefix(' ')?.split(' ').next()?.parse::<f64>().ok()
    };
    text.lines().filter_map(sample).reduce(|a, b| a + b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_s_first_lines_say_where_it_listens() {
        let mut addresses = Addresses::default();
        for line in [
            "fanwire 0.1.0",
            "  subscribers   ws://127.0.0.1:41001/ws  gpush",
            "  subscribers   ws://127.0.0.1:41002/other",
            "  gRPC publish  127.0.0.1:41003",
        ] {
            addresses.take(line);
            assert!(!addresses.complete());
        }
        addresses.take("HTTP publish  http://127.0.0.1:41004  also /metrics");
        assert!(addresses.complete());
        assert_eq!(addresses.subscribers, "ws://127.0.0.1:41001/ws");
        assert_eq!((addresses.grpc.as_str(), addresses.http.as_str()), ("127.0.0.1:41003", "127.0.0.1:41004"));
    }

    #[test]
    fn samples_of_one_metric_are_added_and_no_others() {
        let text = "# HELP drops_total x\n# TYPE drops_total counter\ndrops_total{reason=\"a } 9\"} 3\n\
                    drops_total{reason=\"b\"} 4 1700000000\ndrops_total_more 100\nother 1\n";
        assert_eq!(metric(text, "drops_total"), Some(7.0));
        assert_eq!(metric(text, "other"), Some(1.0));
        assert_eq!(metric(text, "absent"), None);
    }
}
