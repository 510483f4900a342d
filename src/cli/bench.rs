//! `fanwire bench`: arguments → runs, and what they found.

use crate::dialect::DialectId;
use crate::load::clients::ClientsPlan;
use crate::load::host::{Machine, Watched};
use crate::load::publisher::{Interface, PublishPlan};
use crate::load::report::{Condition, Live, Phase, Report};
use crate::load::run::{self, Load, Plan, Source};
use crate::load::schedule::Pace;
use crate::load::server;
use crate::load::{TOPICS_MAX, bare, centrifugo};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Against a gateway that runs here with its defaults, no flag is needed. Messages go to topics bench-0, bench-1 …, and every one
is checked at every connection. A LIMIT in the result says that clients or publisher were at their end: the latency is then
theirs too. Clients and gateway each need a file descriptor a connection (`ulimit -n`), or more rings: each ring of
clients has a table of its own with as many, so the clients need no more than that however many they are.
A pair of addresses has 28,000 connections at most (its ports). Towards a loopback address the clients spread themselves;
elsewhere give them addresses of this machine (--source), or the server several in a row (--spread).

A gateway, started for the purpose on core 0, beside the plainest server there can be:
  fanwire bench --spawn 0 --core 1 --connections 10000 --rate 10 --compare-bare 5
Throughput of publishing, 16 batches of 100 in flight, and a failure if it is below 200,000 messages/s:
  fanwire bench --spawn 0 --core 1 --connections 2 --saturate 16 --fail-if 'published_per_s<200k'

A million clients, and one message to all of them:
  fanwire bench --connections 1000000 --ramp 60000 --messages 1 --url ws://127.0.0.1:9992/ws

Exit codes:
  0  all that was delivered is right, and no --fail-if is true
  1  the run failed; or something was lost, came twice or out of order; or a --fail-if is true
  2  wrong arguments";

/// Publishes to topics `bench-0`, `bench-1` … and checks every message at every connection.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Subscribe here [default: where a gateway on this machine serves the dialect]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// What the clients speak
    #[arg(long, value_name = "DIALECT", default_value = "gpush", value_parser = ["gpush", "centrifugo"])]
    dialect: String,
    /// WebSocket connections; connection i subscribes to topic i modulo --topics
    #[arg(short, long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Topics
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..TOPICS_MAX))]
    topics: u32,
    /// Messages a second over all topics, whatever comes back (open loop); 0 means --saturate 16
    #[arg(long, value_name = "MESSAGES/S", default_value_t = 10.0)]
    rate: f64,
    /// As fast as acknowledgements come, this many batches (HTTP: requests) at a time
    #[arg(long, value_name = "IN_FLIGHT", conflicts_with = "rate")]
    saturate: Option<usize>,
    /// Bytes of a message
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    size: usize,
    /// Seconds of measurement
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    duration: f64,
    /// Publish so many messages at --rate, none before, and measure until the last one is with everybody
    #[arg(long, value_name = "N", conflicts_with_all = ["duration", "warmup", "saturate", "idle"], value_parser = clap::value_parser!(u64).range(1..))]
    messages: Option<u64>,
    /// Seconds before
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    warmup: f64,
    /// Only hold the connections
    #[arg(long)]
    idle: bool,
    /// Connections that subscribe and never read again, in percent; they are counted apart
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    slow_percent: f64,
    /// Offer permessage-deflate
    #[arg(long)]
    deflate: bool,
    /// New connections a second at most
    #[arg(long, value_name = "N/S", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    ramp: u32,
    /// Connect to so many addresses in a row, from that of the URL on: a server that listens on 0.0.0.0 has them all
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=0xffff))]
    spread: u32,
    /// Connect from this address of ours; repeatable, they take turns [default: for a loopback URL 127.0.0.1 and up, a new one
    /// for each 10,000 connections]
    #[arg(long, value_name = "ADDRESS")]
    source: Vec<IpAddr>,

    /// How to publish
    #[arg(long, value_name = "INTERFACE", default_value = "grpc", value_parser = ["grpc", "http"])]
    publish: String,
    /// gRPC interface: PublishStream
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10067")]
    grpc: String,
    /// HTTP interface: POST /v1/pushData
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10068")]
    http: String,
    /// Kept-alive connections of --publish http; messages are in order on each [default: 16, or what --saturate says]
    #[arg(long, value_name = "N")]
    http_connections: Option<u32>,
    /// Messages of one batch at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Bearer token for publishing
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// Count drops by /metrics of this address (of a gateway started with --spawn: always)
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// Show this metric after the run; repeatable
    #[arg(long, value_name = "NAME")]
    metric: Vec<String>,

    /// Start a gateway on this core, with free ports, and stop it afterwards
    #[arg(long, value_name = "CORE", conflicts_with_all = ["url", "server_pid", "bare"])]
    spawn: Option<usize>,
    /// A setting for that gateway; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// The server's process, for its CPU and memory
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// The core it is pinned to: ksoftirqd there counts as its CPU; where --bare runs [default: --spawn's]
    #[arg(long, value_name = "CORE")]
    server_core: Option<usize>,
    /// Run clients and publisher on this core
    #[arg(long, value_name = "CORE")]
    core: Option<usize>,
    /// Instead of a gateway, a plain send() for each client and message, by a process of ours
    #[arg(long, conflicts_with_all = ["saturate", "idle", "deflate", "dialect"])]
    bare: bool,
    /// So many rounds of gateway and bare send loop in turn, and the ratio of their CPU per delivery
    #[arg(long, value_name = "ROUNDS", conflicts_with_all = ["bare", "saturate", "idle", "deflate", "runs", "dialect"])]
    compare_bare: Option<u32>,
    /// So many runs, each with new connections (and a new gateway with --spawn), and their median
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,

    /// One JSON object on stdout instead of tables
    #[arg(long)]
    json: bool,
    /// One row of a Markdown table on stdout, with this label; an empty one prints the table's head and measures nothing
    #[arg(long, value_name = "LABEL", conflicts_with = "json")]
    markdown: Option<String>,
    /// Fail if this is true of the (median) result, as in 'p99>50ms'; repeatable; names as in --json
    #[arg(long, value_name = "CONDITION", value_parser = Condition::parse)]
    fail_if: Vec<Condition>,
    /// Connections of one ring at most
    #[arg(long, value_name = "N", default_value_t = u32::MAX, hide = true, value_parser = clap::value_parser!(u32).range(1..))]
    ring_slots: u32,
    /// Receive buffers of each ring: a power of two
    #[arg(long, value_name = "N", default_value_t = 256, hide = true, value_parser = clap::value_parser!(u16).range(1..=32_768))]
    buffers: u16,
    /// Bytes of each
    #[arg(long, value_name = "BYTES", default_value_t = 16_384, hide = true, value_parser = clap::value_parser!(u32).range(64..))]
    buffer_bytes: u32,
    /// Messages of one send of --bare, on one topic: what can the clients take?
    #[arg(long, value_name = "N", default_value_t = 1, hide = true, value_parser = clap::value_parser!(u32).range(1..))]
    bare_join: u32,
    /// Be the bare server for so many clients
    #[arg(long, value_name = "CONNECTIONS", hide = true)]
    bare_server: Option<u32>,
}

/// Runs it.
pub fn run(args: Args) -> ExitCode {
    if let Some(connections) = args.bare_server {
        return match bare::serve(connections) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("bare server: {e}");
                ExitCode::FAILURE
            }
        };
    }
    if args.markdown.as_deref() == Some("") {
        println!("{}", Report::MARKDOWN_HEAD);
        return ExitCode::SUCCESS;
    }
    match args.measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

impl Args {
    /// All runs, printed; whether all is well.
    fn measure(&self) -> Result<bool, String> {
        let (mut gateway, mut bare) = (Vec::new(), Vec::new());
        let rounds = self.compare_bare.unwrap_or(self.runs);
        for round in 1..=rounds {
            let keep = |kind: &str, report: Report, reports: &mut Vec<Report>| {
                if !self.json && self.markdown.is_none() && rounds > 1 {
                    println!("{kind}, round {round} of {rounds}\n{}", report.table());
                }
                reports.push(report);
            };
            if !self.bare {
                keep("gateway", self.against_gateway()?, &mut gateway);
            }
            if self.bare || self.compare_bare.is_some() {
                keep("bare", self.against_bare()?, &mut bare);
            }
        }
        let mut medians = [Report::median(&gateway), Report::median(&bare)];
        if let [Some(gateway), Some(bare)] = &mut medians {
            gateway.cpu_ratio_to_bare = Some(gateway.server_cpu_ns_per_delivery / bare.server_cpu_ns_per_delivery);
        }
        // Paired, so that a machine that drifts between rounds does not count.
        let mut ratios: Vec<f64> = gateway
            .iter()
            .zip(&bare)
            .map(|(g, b)| g.server_cpu_ns_per_delivery / b.server_cpu_ns_per_delivery)
            .collect();
        ratios.sort_by(f64::total_cmp);
        let judged = medians[0].as_ref().or(medians[1].as_ref()).expect("at least one run");
        let mut wrong: Vec<String> = medians.iter().flatten().flat_map(|m| m.problems.iter().cloned()).collect();
        for condition in &self.fail_if {
            wrong.extend(condition.check(judged)?);
        }
        if self.json {
            let command: Vec<String> = std::env::args().collect();
            let result = serde_json::json!({
                "command": command, "machine": Machine::here(), "gateway": gateway, "bare": bare,
                "median": {"gateway": &medians[0], "bare": &medians[1]},
                "cpu_ratios": ratios, "wrong": wrong,
            });
            println!("{result}");
        } else if let Some(label) = &self.markdown {
            println!("{}", judged.markdown(label));
        } else {
            for median in medians.iter().flatten() {
                let kind = if median.bare { "bare" } else { "gateway" };
                if rounds > 1 {
                    println!("{kind}, median of {rounds}");
                }
                println!("{}", median.table());
            }
            if !ratios.is_empty() {
                let each: Vec<String> = ratios.iter().map(|r| format!("{r:.3}")).collect();
                println!("CPU a delivery, gateway ÷ bare, of each round, sorted: {}", each.join(" "));
            }
        }
        wrong.iter().for_each(|w| eprintln!("FAILED: {w}"));
        Ok(wrong.is_empty())
    }

    fn against_gateway(&self) -> Result<Report, String> {
        let http = self.publish == "http";
        let spawned = self.spawn.map(|core| server::start_gateway(Some(core), &self.set)).transpose()?;
        let (url, interface, admin, pid) = match &spawned {
            Some((server, at)) => (
                self.dialect_url(&at.subscribers)?,
                server::interface(at, http),
                Some(at.http.clone()),
                Some(server.pid()),
            ),
            None if http => {
                (self.url()?, Interface::Http { address: self.http.clone() }, self.admin.clone(), self.server_pid)
            }
            None => (self.url()?, Interface::Grpc { address: self.grpc.clone() }, self.admin.clone(), self.server_pid),
        };
        let publish = PublishPlan { interface, token: self.token.clone(), batch_messages_max: self.batch as usize };
        let mut plan = self.plan(&url, Source::Publisher(publish), pid)?;
        plan.admin = admin.map(|a| a.trim_start_matches("http://").trim_end_matches('/').to_owned());
        run::run(&plan, None, &mut self.live()?)
    }

    fn dialect(&self) -> DialectId {
        if self.dialect == "centrifugo" { DialectId::Centrifugo } else { DialectId::Gpush }
    }

    fn url(&self) -> Result<String, String> {
        self.url.clone().map_or_else(|| self.dialect_url("ws://127.0.0.1:9992/ws"), Ok)
    }

    /// Where a gateway with default paths serves the dialect, whose gpush is at `gpush`.
    fn dialect_url(&self, gpush: &str) -> Result<String, String> {
        let (_, host, _) = parse_url(gpush)?;
        Ok(match self.dialect() {
            DialectId::Centrifugo => format!("ws://{host}{}", centrifugo::PATH),
            _ => gpush.to_owned(),
        })
    }

    fn against_bare(&self) -> Result<Report, String> {
        if self.bare_join > 1 && self.topics > 1 {
            return Err("--bare-join needs --topics 1".into());
        }
        let (mut server, address) = server::start_bare(self.server_core.or(self.spawn), self.connections)?;
        let source = Source::Bare { join: self.bare_join };
        let plan = self.plan(&format!("ws://{address}/ws"), source, Some(server.pid()))?;
        run::run(&plan, Some(&mut server), &mut self.live()?)
    }

    fn plan(&self, url: &str, source: Source, pid: Option<u32>) -> Result<Plan, String> {
        let pace = match (self.saturate, self.rate) {
            (Some(in_flight), _) => Pace::Saturate { in_flight: in_flight.max(1) },
            (None, 0.0) => Pace::Saturate { in_flight: 16 },
            (None, per_s) if per_s > 0.0 => Pace::Rate { per_s },
            (None, per_s) => return Err(format!("--rate {per_s}: not a number of messages a second")),
        };
        let http = matches!(&source, Source::Publisher(p) if matches!(p.interface, Interface::Http { .. }));
        let publishers = match pace {
            _ if !http => 1,
            Pace::Saturate { in_flight } => self.http_connections.unwrap_or(in_flight as u32),
            Pace::Rate { .. } => self.http_connections.unwrap_or(16),
        };
        let (target, host, path) = parse_url(url)?;
        let core = self.server_core.or(self.spawn);
        let server = pid.map(|pid| Watched::new(pid, core)).transpose().map_err(|e| e.to_string())?;
        let (warmup_s, duration_s) = match (self.messages, pace) {
            (Some(_), Pace::Saturate { .. }) => return Err("--messages needs a --rate above 0".into()),
            (Some(messages), Pace::Rate { per_s }) => (0.0, messages as f64 / per_s),
            (None, _) => (self.warmup, self.duration),
        };
        if self.spread > 1 && !target.is_ipv4() {
            return Err("--spread needs an IPv4 address".into());
        }
        Ok(Plan {
            clients: ClientsPlan {
                target,
                host,
                path,
                dialect: self.dialect(),
                spread: self.spread,
                sources: self.source.clone(),
                connections: self.connections,
                topics: self.topics,
                publishers: publishers.clamp(1, crate::load::PUBLISHERS_MAX),
                slow: (f64::from(self.connections) * self.slow_percent.clamp(0.0, 100.0) / 100.0).round() as u32,
                deflate: self.deflate,
                ramp_per_s: self.ramp,
                ring_slots_max: self.ring_slots,
                buffers: self.buffers.next_power_of_two(),
                buffer_bytes: self.buffer_bytes,
            },
            load: (!self.idle).then_some(Load { pace, size: self.size, source }),
            warmup_s,
            duration_s,
            to_the_last: self.messages.is_some(),
            server,
            core: self.core,
            admin: None,
            metrics: self.metric.clone(),
        })
    }

    /// What shows a run's seconds, on stderr: a bar while it connects and a line that stays in place on a terminal, plain
    /// lines in a pipe.
    fn live(&self) -> Result<impl FnMut(&Live) + Send + use<>, String> {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(u64::from(self.connections)), target);
        let style = |template: &str| ProgressStyle::with_template(template).map_err(|e| e.to_string());
        let (ramp, line) = (style("{bar:30} {msg}")?, style("{msg}")?);
        bar.set_style(ramp.clone());
        Ok(move |second: &Live| {
            bar.set_style(if second.phase == Phase::Ramp { ramp.clone() } else { line.clone() });
            bar.set_position(u64::from(second.connected));
            if terminal {
                bar.set_message(second.to_string());
            } else {
                eprintln!("{second}");
            }
        })
    }
}

/// Address, `Host` and path of a `ws://` URL.
pub(super) fn parse_url(url: &str) -> Result<(SocketAddr, String, String), String> {
    let rest = url.strip_prefix("ws://").ok_or_else(|| format!("{url}: only ws:// URLs are understood"))?;
    let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let with_port = if host.rsplit(':').next().is_some_and(|p| p.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let address = with_port.to_socket_addrs().map_err(|e| format!("{url}: {e}"))?.next();
    Ok((address.ok_or_else(|| format!("{url}: no such host"))?, host.to_owned(), path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn the_arguments_are_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn urls_give_address_host_and_path() {
        let (address, host, path) = parse_url("ws://127.0.0.1:9992/ws?x=1").unwrap();
        assert_eq!(
            (address.to_string().as_str(), host.as_str(), path.as_str()),
            ("127.0.0.1:9992", "127.0.0.1:9992", "/ws?x=1")
        );
        assert_eq!(parse_url("ws://127.0.0.1").unwrap().0.port(), 80);
        assert_eq!(parse_url("ws://[::1]:5/").unwrap().0.to_string(), "[::1]:5");
        assert!(parse_url("wss://127.0.0.1/").is_err());
    }

    #[test]
    fn slow_connections_and_publishers_follow_from_the_arguments() {
        use clap::Parser;
        let plan = |line: &str, interface: Interface| {
            let args = Cli::try_parse_from(line.split(' ')).unwrap().args;
            let publish = PublishPlan { interface, token: None, batch_messages_max: 1 };
            args.plan("ws://127.0.0.1:1/ws", Source::Publisher(publish), None).unwrap()
        };
        let (grpc, http) = (Interface::Grpc { address: String::new() }, Interface::Http { address: String::new() });
        assert_eq!(plan("bench -c 1000 --slow-percent 1", grpc.clone()).clients.slow, 10);
        assert_eq!(plan("bench --rate 0", grpc).clients.publishers, 1);
        let saturated = plan("bench --saturate 8", http.clone());
        assert_eq!((saturated.clients.publishers, saturated.load.unwrap().pace), (8, Pace::Saturate { in_flight: 8 }));
        assert!(plan("bench --idle", http).load.is_none());
    }
}
