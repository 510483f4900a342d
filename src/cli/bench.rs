//! `fanwire bench`: arguments → runs, and what they found.

use crate::load::clients::ClientsPlan;
use crate::load::dialect::Dialect;
use crate::load::host::{Machine, Watched};
use crate::load::publisher::{Interface, Post, PublishPlan};
use crate::load::report::{Condition, Live, Phase, Report};
use crate::load::run::{self, Load, Plan, Source};
use crate::load::schedule::Pace;
use crate::load::server::{self, Addresses};
use crate::load::{PUBLISHERS_MAX, TOPICS_MAX, bare, centrifugo, hgrm};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Connections that a spawned gateway has room for without being told.
const SPAWNED_CONNECTIONS_MAX: u64 = 10_000;

/// `--spin` of clients with a core of their own: longer than between two messages of the loads that are about latency.
const SPIN_US: u64 = 1000;

const EXAMPLES: &str = "\
Against a gateway that runs here with its defaults, no flag is needed; any other WebSocket server, NATS and Centrifugo are measured by the
same client (--dialect, --publish). Messages go to topics bench-0, bench-1 …, and every one
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

Into one node of a cluster, and out of all three:
  fanwire bench --url ws://10.0.0.1:9992/ws --node 10.0.0.2:9992 --node 10.0.0.3:9992 --grpc 10.0.0.1:10067 --connections 3 --rate 50000

100,000 clients that come back at once beside 10,000 that are measured, of which 50 a second leave and return:
  fanwire bench --spawn 0 --core 1 --topics 1000 --rate 1000 --storm 100000 --churn 50
nginx with nchan, and a NATS server:
  fanwire bench --dialect raw --url 'ws://127.0.0.1:8080/sub/{topic}' --publish post --post-url 'http://127.0.0.1:8080/pub?id={topic}'
  fanwire bench --url nats://127.0.0.1:4222

Exit codes:
  0  all that was delivered is right, and no --fail-if is true
  1  the run failed; or something was lost, came twice or out of order; or a --fail-if is true
  2  wrong arguments";

/// Publishes to topics `bench-0`, `bench-1` … and checks every message at every connection.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Subscribe here; {topic} in it is replaced [default: where a gateway on this machine serves the dialect]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Subscribe at this node too, as at --url: connections take turns over the nodes of a cluster, each of which has the topics
    /// from the first on, and what each delivers is shown apart; repeatable
    #[arg(long, value_name = "ADDRESS", requires = "url", conflicts_with_all = ["spawn", "bare", "compare_bare", "spread"])]
    node: Vec<String>,
    /// What the clients speak; raw: WebSocket of any server, whose --url or --hello names the topic; nats: its client
    /// protocol over TCP [default: gpush; nats for a nats:// URL]
    #[arg(long, value_name = "DIALECT", value_parser = ["gpush", "centrifugo", "go-push", "raw", "nats"])]
    dialect: Option<String>,
    /// raw: send this text after the handshake; {topic} in it is replaced
    #[arg(long, value_name = "TEXT")]
    hello: Option<String>,
    /// raw: a client is subscribed once a message contains this [default: as soon as the handshake is done]
    #[arg(long, value_name = "TEXT")]
    subscribed: Option<String>,
    /// A header for the handshake; repeatable
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(String, String)>,
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
    /// Seconds after the last acknowledgement at most until what has not come is lost; it is anyway once nothing comes for 3 s
    #[arg(long, value_name = "S", default_value_t = run::DRAIN_MS_MAX as f64 / 1e3)]
    drain: f64,
    /// Only hold the connections
    #[arg(long)]
    idle: bool,
    /// Connections that subscribe and never read again, in percent; they are counted apart
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    slow_percent: f64,
    /// Topics by Zipf's law: the k-th of them has a share of 1/k^S [default: all alike]
    #[arg(long, value_name = "S", value_parser = exponent)]
    zipf: Option<f64>,
    /// What follows it: which topics connections subscribe to, which messages go to, or both
    #[arg(long, value_name = "WHAT", default_value = "both", requires = "zipf", value_parser = ["connections", "messages", "both"])]
    zipf_of: String,
    /// So many connections a second close and come back while messages flow; what they must get begins at their subscribe's
    /// answer (raw, go-push: at their first message)
    #[arg(long, value_name = "N/S", default_value_t = 0.0, conflicts_with_all = ["saturate", "idle", "bare", "compare_bare"])]
    churn: f64,
    /// So many further clients connect at once, beside the measured ones
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with_all = ["saturate", "idle", "bare", "compare_bare"])]
    storm: u32,
    /// Seconds from the first message to the storm [default: a third of the measurement later than its beginning]
    #[arg(long, value_name = "S", requires = "storm")]
    storm_at: Option<f64>,
    /// Offer permessage-deflate
    #[arg(long)]
    deflate: bool,
    /// New connections a second at most
    #[arg(long, value_name = "N/S", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    ramp: u32,
    /// Connect to so many addresses in a row, from that of the URL on: a server that listens on 0.0.0.0 has them all
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with_all = ["spawn", "bare", "compare_bare"], value_parser = clap::value_parser!(u32).range(1..=0xffff))]
    spread: u32,
    /// Connect from this address of ours; repeatable, they take turns [default: for a loopback URL 127.0.0.1 and up, a new one
    /// for each 10,000 connections]
    #[arg(long, value_name = "ADDRESS")]
    source: Vec<IpAddr>,

    /// How to publish: grpc and http to a gateway, centrifugo by its server API, nats by PUB, post to any URL
    /// [default: grpc; nats with --dialect nats]
    #[arg(long, value_name = "INTERFACE", value_parser = ["grpc", "http", "centrifugo", "nats", "post"])]
    publish: Option<String>,
    /// gRPC interface: PublishStream; several nodes' with commas between: publishers take turns over them
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10067")]
    grpc: String,
    /// HTTP interface: POST /v1/pushData
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10068")]
    http: String,
    /// Centrifugo's server API: POST /api/publish
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    centrifugo: String,
    /// Its key
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// NATS server to publish to
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4222")]
    nats: String,
    /// --publish post: the message is the body, any 2xx its acknowledgement; {topic} in it is replaced
    #[arg(long, value_name = "URL")]
    post_url: Option<String>,
    /// Publishers, each with a connection and an order of its own; those by HTTP have one request under way at a time
    /// [default: one for each address; by HTTP 16, or what --saturate says]
    #[arg(long, value_name = "N", alias = "http-connections", value_parser = clap::value_parser!(u32).range(1..=i64::from(PUBLISHERS_MAX)))]
    publishers: Option<u32>,
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
    /// Clients that have read all go on looking for so many µs before they sleep: waking one that sleeps costs the sender on the
    /// same machine as much as a message, and each message some latency [default: 1000 if --core is a core of their own, else 0]
    #[arg(long, value_name = "US", value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    spin: Option<u64>,
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
    /// Write the latencies of all runs to this file, in ms, as HdrHistogram's percentile output
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
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
        if let (Some(file), Some(latency)) = (&self.hgrm, &judged.latency) {
            std::fs::write(file, hgrm::text(latency)).map_err(|e| format!("{}: {e}", file.display()))?;
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
        let dialect = self.dialect();
        if self.spawn.is_some() && dialect == Dialect::Nats {
            return Err("--spawn starts a gateway, and that does not speak nats".into());
        }
        let spawned = self.spawn.map(|core| server::start_gateway(Some(core), &self.settings())).transpose()?;
        let at = spawned.as_ref().map(|(_, at)| at);
        let url = match (at, &self.url) {
            (Some(at), _) => dialect_url(&dialect, &at.subscribers)?,
            (None, Some(url)) => url.clone(),
            (None, None) if dialect == Dialect::Nats => "nats://127.0.0.1:4222".into(),
            (None, None) if dialect.is_ours() => dialect_url(&dialect, "ws://127.0.0.1:9992/ws")?,
            (None, None) => return Err("--dialect raw needs --url".into()),
        };
        let pid = spawned.as_ref().map(|(server, _)| server.pid()).or(self.server_pid);
        let admin = at.map(|at| at.http.clone()).or_else(|| self.admin.clone());
        let (interface, token) = self.interface(&dialect, at)?;
        let publish = PublishPlan { interface, token, batch_messages_max: self.batch as usize };
        let mut plan = self.plan(&url, Source::Publisher(publish), pid)?;
        plan.admin = admin.map(|a| a.trim_start_matches("http://").trim_end_matches('/').to_owned());
        run::run(&plan, None, &mut self.live()?)
    }

    /// Of a gateway started for the purpose: it has room for all clients unless the user says how many.
    fn settings(&self) -> Vec<String> {
        let mut settings = Vec::new();
        let all = u64::from(self.connections) + u64::from(self.storm);
        if all > SPAWNED_CONNECTIONS_MAX {
            let room = all * 21 / 20;
            settings.push(format!("shards.connections_max={room}"));
        }
        settings.extend(self.set.iter().cloned());
        settings
    }

    /// How messages get to the server, and the token or key for it.
    fn interface(&self, dialect: &Dialect, at: Option<&Addresses>) -> Result<(Interface, Option<String>), String> {
        let usual = if *dialect == Dialect::Nats { "nats" } else { "grpc" };
        let http = |own: &str| at.map_or_else(|| own.to_owned(), |at| at.http.clone());
        let post = |address: String, post: Post| Interface::Http { address, post };
        Ok(match self.publish.as_deref().unwrap_or(usual) {
            "http" => (post(http(&self.http), Post::PushData), self.token.clone()),
            "centrifugo" => (post(http(&self.centrifugo), Post::Centrifugo), self.api_key.clone()),
            "nats" => (Interface::Nats { address: self.nats.clone() }, None),
            "post" => {
                let url = self.post_url.as_deref().ok_or("--publish post needs --post-url")?;
                let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url}: only http:// is understood"))?;
                let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
                let port = if host.rsplit(':').next().is_some_and(|p| p.parse::<u16>().is_ok()) { "" } else { ":80" };
                (post(format!("{host}{port}"), Post::Path(path.to_owned())), self.token.clone())
            }
            _ => {
                let address = at.map_or_else(|| self.grpc.clone(), |at| at.grpc.clone());
                (Interface::Grpc { address }, self.token.clone())
            }
        })
    }

    fn dialect(&self) -> Dialect {
        let nats = self.url.as_ref().is_some_and(|url| url.starts_with("nats://"));
        match self.dialect.as_deref() {
            Some("centrifugo") => Dialect::Centrifugo,
            Some("go-push") => Dialect::Gopush,
            Some("raw") => Dialect::Raw { hello: self.hello.clone(), subscribed: self.subscribed.clone() },
            Some("nats") => Dialect::Nats,
            None if nats => Dialect::Nats,
            _ => Dialect::Gpush,
        }
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
        let usual = match (&source, pace) {
            (
                Source::Publisher(PublishPlan { interface: Interface::Http { .. }, .. }),
                Pace::Saturate { in_flight },
            ) => in_flight as u32,
            (Source::Publisher(PublishPlan { interface: Interface::Http { .. }, .. }), Pace::Rate { .. }) => 16,
            (Source::Publisher(PublishPlan { interface: Interface::Grpc { address }, .. }), _) => {
                address.split(',').count() as u32
            }
            _ => 1,
        };
        let bare = matches!(source, Source::Bare { .. });
        let publishers = self.publishers.filter(|_| !bare).unwrap_or(usual);
        let (target, host, path) = parse_url(&url.replacen("nats://", "ws://", 1))?;
        let node = |address: &String| parse_url(&format!("ws://{address}")).map(|(address, ..)| address);
        let nodes = self.node.iter().map(node).collect::<Result<Vec<_>, _>>()?;
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
                nodes,
                host,
                path,
                headers: self.header.clone(),
                dialect: if bare { Dialect::Gpush } else { self.dialect() },
                spread: self.spread,
                sources: self.source.clone(),
                connections: self.connections,
                topics: self.topics,
                zipf: self.zipf.filter(|_| self.zipf_of != "messages" && !bare),
                churn_per_s: self.churn.max(0.0),
                storm: self.storm,
                publishers: publishers.clamp(1, PUBLISHERS_MAX),
                slow: (f64::from(self.connections) * self.slow_percent.clamp(0.0, 100.0) / 100.0).round() as u32,
                deflate: self.deflate,
                ramp_per_s: self.ramp,
                ring_slots_max: self.ring_slots,
                buffers: self.buffers.next_power_of_two(),
                buffer_bytes: self.buffer_bytes,
                spin: self.spin(),
            },
            load: (!self.idle).then_some(Load { pace, size: self.size, source }),
            zipf: self.zipf.filter(|_| self.zipf_of != "connections" && !bare),
            storm_at_s: self.storm_at.unwrap_or(warmup_s + duration_s / 3.0).max(0.0),
            warmup_s,
            duration_s,
            to_the_last: self.messages.is_some(),
            drain_ms_max: (self.drain * 1e3) as u64,
            server,
            core: self.core,
            admin: None,
            metrics: self.metric.clone(),
        })
    }

    fn spin(&self) -> Duration {
        let alone = self.core.is_some() && self.core != self.server_core.or(self.spawn);
        Duration::from_micros(self.spin.unwrap_or(if alone { SPIN_US } else { 0 }))
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

/// Of Zipf's law.
fn exponent(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|s| (0.0..=10.0).contains(s)).ok_or_else(|| "it must be a number from 0 to 10".into())
}

/// `NAME: VALUE`.
fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("it must have the form NAME: VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Where a gateway with default paths serves `dialect`, whose gpush is at `gpush`.
fn dialect_url(dialect: &Dialect, gpush: &str) -> Result<String, String> {
    let (_, host, _) = parse_url(gpush)?;
    Ok(match dialect {
        Dialect::Centrifugo => format!("ws://{host}{}", centrifugo::PATH),
        Dialect::Gopush => format!("ws://{host}/connect"),
        _ => gpush.to_owned(),
    })
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
    fn the_flags_say_what_is_spoken_and_how_it_is_published() {
        use clap::Parser;
        let args = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.args);
        let nats = args("bench --url nats://127.0.0.1:4222").unwrap();
        assert_eq!(nats.dialect(), Dialect::Nats);
        let (interface, _) = nats.interface(&Dialect::Nats, None).unwrap();
        assert!(matches!(interface, Interface::Nats { address } if address == "127.0.0.1:4222"));
        let post = args("bench --publish post --post-url http://h/p?id={topic} --token t").unwrap();
        let (interface, token) = post.interface(&post.dialect(), None).unwrap();
        let Interface::Http { address, post: Post::Path(path) } = interface else { panic!("{interface:?}") };
        assert_eq!((address.as_str(), path.as_str(), token.as_deref()), ("h:80", "/p?id={topic}", Some("t")));
        assert!(args("bench --publish post").unwrap().interface(&Dialect::Gpush, None).is_err());
        assert_eq!(header("X-A: b: c"), Ok(("X-A".into(), "b: c".into())));
        assert!(args("bench --storm-at 1").is_err(), "of no storm");
        assert!(args("bench --messages 5 --duration 1").is_err() && args("bench --zipf -1").is_err());

        let room = |line: &str| args(line).unwrap().settings();
        assert!(room("bench -c 10000").is_empty(), "the table's rows run as they always did");
        assert_eq!(room("bench -c 20000 --storm 80000"), ["shards.connections_max=105000"]);
        assert_eq!(room("bench -c 20000 --set a.b=1").last().unwrap(), "a.b=1", "the user has the last word");
    }

    #[test]
    fn slow_connections_and_publishers_follow_from_the_arguments() {
        use clap::Parser;
        let plan = |line: &str, interface: Interface| {
            let args = Cli::try_parse_from(line.split(' ')).unwrap().args;
            let publish = PublishPlan { interface, token: None, batch_messages_max: 1 };
            args.plan("ws://127.0.0.1:1/ws", Source::Publisher(publish), None).unwrap()
        };
        let (grpc, http) = (
            Interface::Grpc { address: String::new() },
            Interface::Http { address: String::new(), post: Post::PushData },
        );
        assert_eq!(plan("bench -c 1000 --slow-percent 1", grpc.clone()).clients.slow, 10);
        assert_eq!(plan("bench --rate 0", grpc).clients.publishers, 1);
        let two = Interface::Grpc { address: "h:1,h:2".into() };
        assert_eq!(plan("bench", two.clone()).clients.publishers, 2);
        let nodes = plan("bench --url ws://127.0.0.1:1/ws --node 127.0.0.1:2 --node 127.0.0.1:3", two).clients.nodes;
        assert_eq!(nodes.iter().map(ToString::to_string).collect::<Vec<_>>(), ["127.0.0.1:2", "127.0.0.1:3"]);
        let saturated = plan("bench --saturate 8", http.clone());
        assert_eq!((saturated.clients.publishers, saturated.load.unwrap().pace), (8, Pace::Saturate { in_flight: 8 }));
        assert!(plan("bench --idle", http).load.is_none());
    }
}
