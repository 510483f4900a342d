//! Builds the queues, starts the cores, drains them in order.
//!
//! ```text
//! start   limits ─► addresses ─► rings ─► shards enabled ─► accepting core ─► control, and READY
//! stop    /readyz 503, the others told ─► drain_delay ─► publishes refused, no new clients ─► queues flushed, closes spread ─► exit
//! ```
//!
//! Whatever can't be had is told before anything listens, in one sentence, with exit code 78.

use crate::accept::{self, Acceptor, ShardDoor, high_water};
use crate::auth::Login;
use crate::clock::Time;
use crate::cluster::{self, Cluster, Deliver, Delivered, InPlace, Lost};
use crate::config::Config;
use crate::encode::{EncodeSettings, Encoder};
use crate::frame::Publication;
use crate::ids::{Epoch, ShardId};
use crate::ingest::{
    Admission, Control, GopushServer, Hooks, LogLevel, Oracle, Server, ShardQueues, Tokens, TokensError, Waiting,
    check_certificate,
};
use crate::metrics::{AcceptMetrics, ControlMetrics, Registry, ShardMetrics};
use crate::queue::{self, Answer, Bell, Drain, Page, ToAccept};
use crate::shard::lane::Lane;
use crate::shard::settings::ShardSettings;
use crate::socket::uring::{Features, RingError, UringParts};
use crate::socket::{ListenOptions, Listener, Sizes, listen};
use crate::tick::{Endpoints, Reactor, Turn};
use crate::topics::{Ack, MergeLimits, Refusal, Topics, TopicsLimits};
use bytes::Bytes;
use core_affinity::CoreId;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// Configuration or environment unusable: EX_CONFIG of sysexits.h.
const EXIT_CONFIG: u8 = 78;

/// Failed at run time.
const EXIT_FAILED: u8 = 1;

/// A shard that has not turned for this long is named by `/readyz`, and the watchdog is not fed: awake or asleep, a healthy one
/// turns every second.
const TURN_MS_MAX: u64 = 3000;

/// RFC 6455's registry: service restart, come again. Clients find another node behind the same name.
const CLOSE_GO_ELSEWHERE: u16 = 1012;

/// How much longer than its own deadlines say a shard may take to drain: for what is in its queue and batches at the beginning.
const DRAIN_GRACE_MS: u64 = 5000;

/// How old the metrics for subscribers may be: whoever asks meanwhile gets the same bytes, so that any number of them costs the control core
/// one rendering.
const PAGE_AGE_MS_MAX: u64 = 1000;

/// Sockets on their way to one shard, with those that it has not looked at: at the rate it takes them while it is busiest a tenth of a second.
const ARRIVALS_WAITING_MAX: usize = 1024;

/// A ring's completion queue and the kernel's own bound (IORING_MAX_FIXED_FILES) make larger tables useless.
const SLOTS_MAX: usize = 1 << 20;

/// Fewer than this is no gateway, but a limit that nobody raised.
const SLOTS_MIN: usize = 64;

/// Runs a gateway until it is told to stop; `log` is whose level can be asked and changed. Prints where it listens on stdout, logs on
/// stderr. `warnings` are logged once it runs: if it can't, why not is all there is to say.
pub fn serve(config: Config, log: Arc<dyn LogLevel>, warnings: &[String]) -> ExitCode {
    match Gateway::build(config, log) {
        Ok(gateway) => gateway.run(warnings),
        Err(problem) => {
            complain(&problem);
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

/// Says why there is no gateway. The exit code says it too, so a full disk behind stderr is not worth a panic.
fn complain(problem: &StartError) {
    let _ = writeln!(std::io::stderr(), "fanwire: {problem}");
}

/// Why a gateway can't start; says who must do what.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{0}")]
    Ring(#[from] RingError),
    #[error("{0}")]
    Text(String),
}

impl StartError {
    /// The system did not give `what`: what it said, and what to raise.
    fn starved(what: &str, error: &std::io::Error) -> StartError {
        let remedy = match error.raw_os_error() {
            Some(libc::EMFILE) => {
                "raise RLIMIT_NOFILE (`ulimit -n`, LimitNOFILE= in a systemd unit) or lower shards.count"
            }
            Some(libc::ENFILE) => "the whole machine is out of descriptors: raise `sysctl fs.file-max`",
            Some(libc::EAGAIN) => {
                "raise the limit of threads (`ulimit -u`, TasksMax= in a systemd unit) or lower shards.count"
            }
            Some(libc::ENOMEM) => {
                "raise `ulimit -l` (LimitMEMLOCK= in a systemd unit) or the memory limit of the control group, or lower shards.count"
            }
            _ => "allow it in the seccomp profile of the container or the systemd unit",
        };
        StartError::Text(format!("{what} could not be had: {error}; {remedy}"))
    }
}

/// How many shards, and how many places each has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    shards: usize,
    slots: usize,
    lanes: usize, // Over so many of them clients are spread; the others are there for more places.
}

impl Layout {
    /// `shards.count` and `shards.connections_max`, either 0 = by itself, on `cores` under a table limit of `nofile`.
    fn new(count: usize, connections_max: usize, cores: usize, nofile: u64) -> Result<Layout, StartError> {
        let table = usize::try_from(nofile).unwrap_or(usize::MAX).min(SLOTS_MAX);
        if table < SLOTS_MIN {
            return Err(StartError::Text(format!(
                "a shard needs a file table of at least {SLOTS_MIN} slots, and RLIMIT_NOFILE is {nofile}: raise it (`ulimit -n`, \
                 LimitNOFILE= in a systemd unit)"
            )));
        }
        let by_cores = cores.saturating_sub(1).max(1);
        let (shards, lanes) = match count {
            0 => (by_cores.max(connections_max.div_ceil(high_water(table))), by_cores),
            n => (n, n),
        };
        if connections_max == 0 {
            return Ok(Layout { shards, slots: table, lanes });
        }
        let each = connections_max.div_ceil(shards);
        let slots = (each..=table).find(|slots| high_water(*slots) >= each);
        let slots = slots.ok_or_else(|| {
            StartError::Text(format!(
                "shards.connections_max = {connections_max} on {shards} shard(s) is {each} connections a shard, and RLIMIT_NOFILE \
                 is {nofile}: raise it (`ulimit -n`, LimitNOFILE= in a systemd unit), or lower shards.connections_max, or raise \
                 shards.count (0 = as many as needed)"
            ))
        })?;
        Ok(Layout { shards, slots: slots.max(SLOTS_MIN.min(table)), lanes })
    }

    /// Connections at which new ones are refused, under `shards.connections_max`.
    fn holds(self, connections_max: usize) -> usize {
        let held = self.shards * high_water(self.slots);
        match connections_max {
            0 => held,
            n => n.min(held),
        }
    }
}

/// What a gateway would be on some machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// Threads with a ring.
    pub shards: usize,
    /// Places in the file table of each.
    pub slots: usize,
    /// Over so many of them clients are spread; the others are filled after them.
    pub lanes: usize,
    /// Connections at which new ones would be refused.
    pub connections_max: usize,
}

impl Forecast {
    /// Of so many connections, how many the fullest shard has.
    pub fn fullest_shard(&self, connections: u64) -> u64 {
        connections.div_ceil(self.lanes as u64).min(high_water(self.slots) as u64)
    }
}

/// What [`serve`] would make of this configuration on `cores` under a hard RLIMIT_NOFILE of `nofile`.
///
/// # Errors
/// One sentence: why it would not start, and what to change.
pub fn forecast(config: &Config, cores: usize, nofile: u64) -> Result<Forecast, String> {
    let layout =
        Layout::new(config.shards.count, config.shards.connections_max, cores, nofile).map_err(|e| e.to_string())?;
    Ok(Forecast {
        shards: layout.shards,
        slots: layout.slots,
        lanes: layout.lanes,
        connections_max: layout.holds(config.shards.connections_max),
    })
}

/// Tries to have a shard's ring with a file table of `slots`, as [`serve`] will, and says what it can do. The ring is gone when this
/// returns; the soft RLIMIT_NOFILE stays raised.
///
/// # Errors
/// One sentence: why not, and what to change.
pub fn try_ring(config: &Config, slots: usize) -> Result<String, String> {
    crate::sys::raise_nofile_limit();
    let features = ring_features(config);
    let bell = Bell::new().map_err(|e| StartError::starved("an eventfd", &e).to_string())?;
    UringParts::build(slots, features, bell).and_then(UringParts::start).map_err(|e| e.to_string())?;
    let beyond = [(features.no_sqarray, "NO_SQARRAY (6.6)"), (features.send_vectorized, "vectored SEND (6.17)")];
    let beyond: Vec<_> = beyond.into_iter().filter_map(|(has, name)| has.then_some(name)).collect();
    Ok(match beyond[..] {
        [] => format!("had one of {slots} places; nothing of it newer than Linux 6.1"),
        _ => format!("had one of {slots} places; newer than Linux 6.1: {}", beyond.join(", ")),
    })
}

/// How long an address that is taken may still become free.
const TAKEN_AFTER: Duration = Duration::from_secs(2);

/// Listens, also where the last gateway was killed a moment ago: its accepts stand in a ring, which the kernel takes down some time after
/// the process is gone, and the port with it. A supervisor would take "is taken" for something that starting again can't mend.
fn listen_patiently(address: std::net::SocketAddr, options: ListenOptions) -> Result<Listener, StartError> {
    let end = Time::now() + TAKEN_AFTER;
    let mut is_told = false;
    loop {
        match listen(address, options) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Time::now() < end => {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::warn!("{address} is taken: waiting for it, {} s at most", TAKEN_AFTER.as_secs());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) if is_told => {
                return Err(StartError::Text(format!("{error}; it stayed so for {} s", TAKEN_AFTER.as_secs())));
            }
            result => return result.map_err(|error| StartError::Text(error.to_string())),
        }
    }
}

fn ring_features(config: &Config) -> Features {
    match config.shards.ring_features.as_str() {
        "6.1" => Features::LINUX_6_1,
        _ => Features::probe(),
    }
}

struct Gateway {
    config: Config,
    log: Arc<dyn LogLevel>,
    layout: Layout,
    server: Server,
    gopush: GopushServer,
    tokens: Arc<Tokens>,
    login: Login,
    listeners: Vec<Listener>,
    node: Option<Node>,
    features: Features,
    cores: Vec<CoreId>,
}

/// This gateway's part of a cluster, and what nodes show one another.
struct Node {
    prepared: cluster::Prepared,
    tokens: Arc<Tokens>,
}

impl Gateway {
    fn build(mut config: Config, log: Arc<dyn LogLevel>) -> Result<Gateway, StartError> {
        let text = |e: &dyn std::fmt::Display| StartError::Text(e.to_string());
        let nofile = crate::sys::raise_nofile_limit();
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let layout = Layout::new(config.shards.count, config.shards.connections_max, cores.len(), nofile)?;
        let features = ring_features(&config);
        let tokens = load_tokens(&config).map_err(|e| text(&e))?;
        let login = Login::new(&config.auth).map_err(|e| text(&e))?;
        let mut server = if config.cluster.role.publishes() {
            Server::bind(&config.publish).map_err(|e| text(&e))?
        } else {
            let gopush = &mut config.compat.gopush;
            (gopush.gateway_address, gopush.logic_address) = Default::default();
            Server::bind_admin(&config.publish).map_err(|e| text(&e))?
        };
        if config.log.level_port != 0 {
            server.add_log_level_port(config.log.level_port).map_err(|e| text(&e))?;
        }
        let gopush = GopushServer::bind(&config.compat.gopush).map_err(|e| text(&e))?;
        let options = ListenOptions {
            send_buffer_bytes: config.shards.socket_send_buffer_bytes,
            backlog: config.shards.listen_backlog,
        };
        config.listen = config.listeners();
        let mut listeners = Vec::new();
        for block in &config.listen {
            let address = block
                .address
                .parse()
                .map_err(|e| StartError::Text(format!("listen.address {}: {e}", block.address)))?;
            listeners.push(listen_patiently(address, options)?);
        }
        let tokens = Arc::new(tokens);
        let node = match cluster::Prepared::new(&config).map_err(|e| text(&e))? {
            None => None,
            Some(prepared) => {
                let tokens = load_relay_tokens(&config).map_err(|e| text(&e))?;
                Some(Node { prepared, tokens: Arc::new(tokens) })
            }
        };
        Ok(Gateway { config, log, layout, server, gopush, tokens, login, listeners, node, features, cores })
    }

    /// The core of a thread: control and accepting core share the first, shards have the others, or all if there is only one.
    fn core(&self, shard: Option<usize>) -> Option<CoreId> {
        if !self.config.shards.pin || self.cores.is_empty() {
            return None;
        }
        match shard {
            None => self.cores.first().copied(),
            Some(i) if self.cores.len() > 1 => Some(self.cores[1 + i % (self.cores.len() - 1)]),
            Some(_) => self.cores.first().copied(),
        }
    }

    fn run(self, warnings: &[String]) -> ExitCode {
        match self.start() {
            Ok((running, runtime)) => {
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                let code = running.serve(&runtime);
                // Dropped it would wait for its blocking threads, and a name that is looked up there can take longer than anybody wants to
                // wait for the end of a gateway that has drained. What it still holds goes with the process.
                std::mem::forget(runtime);
                code
            }
            Err(problem) => {
                complain(&problem);
                ExitCode::from(EXIT_CONFIG)
            }
        }
    }

    fn start(mut self) -> Result<(Running, tokio_uring::Runtime), StartError> {
        let text = |e: &dyn std::fmt::Display| StartError::Text(e.to_string());
        let Layout { shards, slots, lanes } = self.layout;
        let random = || getrandom::u64().map_err(|e| StartError::Text(format!("no randomness: {e}")));
        let settings = ShardSettings { seed: random()?, ..ShardSettings::new(&self.config, shards, lanes, slots) };
        let (items_max, bytes_max) = (self.config.shards.queue_items_max, self.config.shards.queue_bytes_max);
        let bell = || Bell::new().map_err(|e| StartError::starved("an eventfd", &e));
        let (control_bell, accept_bell) = (bell()?, bell()?);
        let (to_accept, from_control) = queue::channel(4, 0, accept_bell.clone());

        let (mut queues, mut doors, mut shard_metrics, mut threads) = (vec![], vec![], vec![], vec![]);
        let (ready, readiness) = mpsc::channel();
        let mut cut = None;
        let in_lanes: Vec<_> = (0..lanes).map(|_| Lane::default()).collect();
        for index in 0..shards {
            let id = ShardId(index as u16);
            let shard_bell = bell()?;
            let parts = UringParts::build(slots, self.features, shard_bell.clone())?;
            cut = cut.or(parts.cut());
            let ring_fd = parts.fd();
            let (inbox_in, inbox) = queue::channel(items_max, bytes_max, shard_bell.clone());
            let (outbox, outbox_out) = queue::channel(items_max, 0, control_bell.clone());
            let (arrivals_in, arrivals) = queue::channel(ARRIVALS_WAITING_MAX, 0, shard_bell.clone());
            let (departures, departures_out) = queue::channel(2 * slots, 0, accept_bell.clone());
            let (claims, claims_heard) = queue::claims(shard_bell.clone(), accept_bell.clone());
            let ends = Endpoints {
                inbox,
                outbox,
                arrivals,
                departures,
                claims,
                bell: shard_bell,
                lane: in_lanes[index % lanes].clone(),
            };
            let metrics = Arc::new(ShardMetrics::default());
            let shard = Shard {
                id,
                core: self.core(Some(index)),
                parts,
                ends,
                settings: settings.clone(),
                metrics: metrics.clone(),
            };
            threads.push(spawn(&format!("shard-{index}"), {
                let ready = ready.clone();
                move || shard.run(&ready)
            })?);
            queues.push(ShardQueues { inbox: inbox_in, outbox: outbox_out });
            doors.push(ShardDoor {
                ring_fd,
                arrivals: arrivals_in,
                departures: departures_out,
                claims: claims_heard,
                slots,
            });
            shard_metrics.push(metrics);
        }
        if let Some(Sizes { submissions, completions }) = cut {
            tracing::warn!(
                submissions,
                completions,
                "the kernel had too little memory for a shard's ring of the usual size, so that a smaller one serves, somewhat slower: raise \
                 LimitMEMLOCK= (`ulimit -l`), or start again when memory is less fragmented (/proc/buddyinfo)"
            );
        }
        for _ in 0..shards {
            // Every ring is enabled before the first client is taken: a hand-over into a disabled one fails.
            readiness.recv().map_err(|e| text(&e))??;
        }

        let accept_metrics = Arc::new(AcceptMetrics::default());
        let connections_max = self.connections_max();
        accept_metrics.connections_max.set(connections_max as u64);
        let accept_settings = accept::Settings {
            modern_ring: self.features != Features::LINUX_6_1,
            lanes,
            ..accept::Settings::from(&self.config)
        };
        let addresses: Vec<_> = self.listeners.iter().map(Listener::local_addr).collect();
        let listeners = std::mem::take(&mut self.listeners);
        let acceptor =
            Acceptor::new(listeners, doors, &accept_settings, from_control, accept_bell, accept_metrics.clone())
                .map_err(|e| text(&e))?;

        let gopush = &self.config.compat.gopush;
        let limits = TopicsLimits {
            topics_max: self.config.limits.topics_max,
            topic_idle_ms: self.config.limits.topic_idle_ms,
            publish_wait_ms: self.config.publish.publish_wait_ms,
            publish_waiting_max: self.config.publish.publish_waiting_max,
            publish_waiting_bytes_max: self.config.publish.publish_waiting_bytes_max,
            message_bytes_max: self.config.limits.message_bytes_max,
            merge: MergeLimits {
                // A frame must fit an idle subscriber's bound, or a client that reads would look slow.
                max_merge_bytes: gopush.max_merge_bytes.min(self.config.slow.pending_bytes_max / 2),
                ..MergeLimits::from(gopush)
            },
        };
        let encoder = Encoder::new(&EncodeSettings::from(&self.config.websocket));
        let topics = Topics::new(limits, encoder, shards, random()?);
        let control_metrics = Arc::new(ControlMetrics::default());
        let control = Arc::new(Control::new(Box::new(topics), queues, control_bell, control_metrics.clone()));

        let mut registry = Registry::new(shard_metrics.clone(), accept_metrics, control_metrics);
        for shard in 0..shards {
            let control = control.clone();
            registry.register_queue("to_shard", shard, Box::new(move || control.queue_depths()[shard]));
        }
        // After the shards' rings: where io_uring is refused, theirs is the error that says so in full.
        let runtime = control_runtime().map_err(|e| StartError::starved("the control core's epoll and ring", &e))?;
        let announcement = self.announcement(&addresses)?;
        let accept_core = self.core(None);
        let (admit, admission) = mpsc::channel();
        let acceptor = spawn("accept", move || {
            pin(accept_core);
            // An error: the gateway ended before it took anybody.
            if admission.recv().is_ok() {
                acceptor.run();
            }
        })?;
        pin(self.core(None));
        let running = Running {
            announcement,
            config: self.config,
            log: self.log,
            server: self.server,
            gopush: self.gopush,
            tokens: self.tokens,
            login: self.login,
            control,
            node: self.node,
            connections_max: connections_max as u64,
            subscribers: addresses,
            registry: Arc::new(registry),
            shard_metrics,
            threads,
            acceptor,
            admit,
            to_accept,
        };
        Ok((running, runtime))
    }

    /// Connections at which new ones are refused.
    fn connections_max(&self) -> usize {
        self.layout.holds(self.config.shards.connections_max)
    }

    /// Where it listens, and two lines to paste.
    fn announcement(&self, addresses: &[std::net::SocketAddr]) -> Result<String, StartError> {
        let text = |e: std::io::Error| StartError::Text(e.to_string());
        let (grpc, http) = (self.server.grpc_address().map_err(text)?, self.server.http_address().map_err(text)?);
        let (shards, most) = (self.layout.shards, self.connections_max());
        let plural = if shards == 1 { "" } else { "s" };
        let version = env!("CARGO_PKG_VERSION");
        let mut lines = vec![format!("fanwire {version}: {shards} shard{plural}, at most {most} connections")];
        let mut first = None;
        for (address, block) in addresses.iter().zip(&self.config.listen) {
            let prefix = &block.path_prefix;
            if !block.gpush_path.is_empty() {
                lines.push(format!("subscribers  ws://{address}{prefix}{} (gpush)", block.gpush_path));
                first = first.or(Some((*address, format!("{prefix}{}", block.gpush_path))));
            }
            if !block.centrifugo_path.is_empty() {
                lines.push(format!("subscribers  ws://{address}{prefix}{} (centrifugo)", block.centrifugo_path));
            }
            if !block.gopush_path.is_empty() {
                lines.push(format!("subscribers  ws://{address}{} (go-push)", block.gopush_path));
            }
            if self.config.dev {
                lines.push(format!("subscribers  ws://{address}{prefix}/echo (echo, for development)"));
            }
            if block.demo {
                lines.push(format!("demo         http://{}{prefix}{}", reachable(*address), crate::demo::PATH));
            }
        }
        lines.extend(self.gopush.announcement().map_err(text)?);
        if let Some(grpc) = grpc {
            lines.push(format!("gRPC publish {grpc}"));
            lines.push(format!("HTTP publish http://{http} (POST /v1/pushData; also /metrics, /healthz, /readyz)"));
        } else {
            lines.push(format!("HTTP admin   http://{http} (/metrics, /healthz, /readyz)"));
        }
        if let Some(relay) = self.node.as_ref().and_then(|node| node.prepared.relay_address()) {
            lines.push(format!("relay        {relay} (for other nodes)"));
        }
        if let (Some((address, path)), Some(grpc)) = (first, grpc) {
            let address = reachable(address);
            // As this process was called: under `cargo run` there is no `fanwire` on the PATH.
            let program = std::env::args_os().next().unwrap_or_else(|| "fanwire".into());
            let program = program.display();
            let token = if self.tokens.required() { " --token TOKEN" } else { "" };
            lines.push(format!("try          {program} sub --url ws://{address}{path} hello"));
            lines.push(format!(
                "             {program} pub --grpc {}{token} hello 'the first message'",
                reachable(grpc)
            ));
        }
        Ok(lines.join("\n") + "\n")
    }
}

fn load_tokens(config: &Config) -> Result<Tokens, TokensError> {
    let api_keys = Tokens::load_as("centrifugo.api_keys_file", &config.centrifugo.api_keys_file)?;
    Ok(Tokens::load(&config.publish.tokens_file)?.with_api_keys(api_keys))
}

fn load_relay_tokens(config: &Config) -> Result<Tokens, TokensError> {
    Tokens::load_as("cluster.relay_tokens_file", &config.cluster.relay_tokens_file)
}

/// Reads the files that the settings name, as [`serve`] will.
///
/// # Errors
/// One sentence: which file of which setting can't be used, and why.
pub fn check_files(config: &Config) -> Result<(), String> {
    load_tokens(config).map_err(|e| e.to_string())?;
    load_relay_tokens(config).map_err(|e| e.to_string())?;
    cluster::check_files(&config.cluster).map_err(|e| e.to_string())?;
    let gopush = &config.compat.gopush;
    if gopush.enabled {
        check_certificate(gopush).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// An address to paste for one that is listened on.
fn reachable(mut address: std::net::SocketAddr) -> std::net::SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
    }
    address
}

/// A shard on its way to its thread.
struct Shard {
    id: ShardId,
    core: Option<CoreId>,
    parts: UringParts,
    ends: Endpoints,
    settings: ShardSettings,
    metrics: Arc<ShardMetrics>,
}

impl Shard {
    fn run(self, ready: &mpsc::Sender<Result<(), RingError>>) {
        pin(self.core);
        crate::sys::sharpen_timers();
        let ring = match self.parts.start() {
            Ok(ring) => ring,
            Err(error) => return drop(ready.send(Err(error))),
        };
        let mut reactor = Reactor::new(self.id, ring, self.ends, self.settings, self.metrics);
        let _ = ready.send(Ok(()));
        while reactor.turn() == Turn::Again {}
    }
}

fn pin(core: Option<CoreId>) {
    if let Some(core) = core
        && !core_affinity::set_for_current(core)
    {
        tracing::warn!(core = core.id, "could not pin a thread to its core");
    }
}

/// A thread whose panic ends the process: a failed assertion is our mistake, and a gateway without one of its cores is worse
/// than one that its supervisor restarts.
fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    struct EndOnPanic;
    impl Drop for EndOnPanic {
        fn drop(&mut self) {
            if std::thread::panicking() {
                std::process::abort();
            }
        }
    }
    let run = move || {
        let _guard = EndOnPanic;
        body();
    };
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map_err(|e| StartError::starved(&format!("a thread for {name}"), &e))
}

/// What the control core runs on, for the calling thread.
fn control_runtime() -> std::io::Result<tokio_uring::Runtime> {
    let mut ring = tokio_uring::uring_builder();
    // Sockets go by epoll, files by this ring: a small one is enough.
    ring.setup_clamp();
    let mut builder = tokio_uring::builder();
    builder.entries(64).uring_builder(&ring);
    tokio_uring::Runtime::new(&builder)
}

/// All cores turn.
struct Running {
    announcement: String,
    config: Config,
    log: Arc<dyn LogLevel>,
    server: Server,
    gopush: GopushServer,
    tokens: Arc<Tokens>,
    login: Login,
    control: Arc<Control>,
    node: Option<Node>,
    connections_max: u64,
    subscribers: Vec<std::net::SocketAddr>,
    registry: Arc<Registry>,
    shard_metrics: Vec<Arc<ShardMetrics>>,
    threads: Vec<JoinHandle<()>>,
    acceptor: JoinHandle<()>,
    /// Lets clients in.
    admit: mpsc::Sender<()>,
    to_accept: queue::Sender<ToAccept>,
}

impl Running {
    /// Runs the control core on the calling thread until the gateway has stopped.
    fn serve(self, runtime: &tokio_uring::Runtime) -> ExitCode {
        match runtime.block_on(self.control_core()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!("the control core failed: {error}");
                ExitCode::from(EXIT_FAILED)
            }
        }
    }

    async fn control_core(mut self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut interrupt, mut hangup) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?);
        // Only now: whoever reads it may send a signal at once. Nobody reading it is no reason to end.
        if let Err(error) = std::io::stdout().write_all(self.announcement.as_bytes()) {
            tracing::warn!("nobody reads stdout, where the addresses are told: {error}");
        }

        let mut driver = {
            let (login, registry) = (self.login.clone(), self.registry.clone());
            let counted = self.control.metrics().clone();
            let knowledge = Arc::new(Knowledge::new(login, counted, registry, self.shard_metrics.clone()));
            let control = self.control.clone();
            tokio::spawn(async move { control.run(knowledge).await })
        };
        let relay_tokens = self.node.as_ref().map(|node| node.tokens.clone());
        let mut cluster = self.join()?;
        // Whoever subscribes before this node knows where the stream is would miss what comes until then. The relay makes that up.
        let waits_for_stream = cluster.as_ref().is_some_and(Cluster::has_stream);
        if !waits_for_stream {
            let _ = self.admit.send(());
        }
        if let Some(cluster) = &mut cluster {
            cluster.settled().await;
        }
        if waits_for_stream {
            let _ = self.admit.send(());
        }
        let notes = cluster.as_ref().map(Cluster::notes);
        let (stopping, stopped) = tokio::sync::watch::channel(false);
        let (finish, finished) = tokio::sync::watch::channel(false);
        let health = Health { control: self.control.clone(), shards: self.shard_metrics.clone(), stopping: stopped };
        let hooks = Hooks {
            metrics: {
                let registry = self.registry.clone();
                Arc::new(move || registry.render())
            },
            unready: {
                let health = health.clone();
                Arc::new(move || health.reasons())
            },
            notes: Arc::new(move || notes.iter().flat_map(cluster::Notes::get).collect()),
            stats: {
                let shards = self.shard_metrics.clone();
                Arc::new(move || stats(&shards))
            },
            log: self.log,
        };
        let server = {
            let (server, control, tokens) = (self.server, self.control.clone(), self.tokens.clone());
            let (publish, dev, mut finished) = (self.config.publish.clone(), self.config.dev, finished.clone());
            tokio_uring::spawn(async move {
                let finished = async { drop(finished.wait_for(|f| *f).await) };
                server.serve(control, tokens, hooks, &publish, dev, finished).await
            })
        };
        let gopush = {
            let (server, control, shards) = (self.gopush, self.control.clone(), self.shard_metrics.clone());
            let (publish, settings, mut finished) =
                (self.config.publish.clone(), self.config.compat.gopush.clone(), finished.clone());
            tokio_uring::spawn(async move {
                let finished = async { drop(finished.wait_for(|f| *f).await) };
                server.serve(control, shards, &settings, &publish, finished).await
            })
        };
        let watchdog = tokio::spawn(feed_watchdog(health));
        notify(&[sd_notify::NotifyState::Ready]);
        tracing::info!("ready");

        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                ended = &mut driver => {
                    // Without its driver nobody is heard: better to be started again.
                    return Err(std::io::Error::other(format!("it ended by itself: {ended:?}")));
                }
                _ = hangup.recv() => {
                    notify(&[sd_notify::NotifyState::Reloading, sd_notify::NotifyState::monotonic_usec_now()?]);
                    self.tokens.reload();
                    relay_tokens.iter().for_each(|tokens| tokens.reload());
                    notify(&[sd_notify::NotifyState::Ready]);
                }
            }
        }
        notify(&[sd_notify::NotifyState::Stopping]);
        stopping.send_replace(true);
        tracing::info!("stopping; a second signal ends at once");
        let drain = async {
            // First of all, so that nobody is sent here who would have to go at once.
            let others_remain = match &cluster {
                Some(cluster) => cluster.leave().await,
                None => false,
            };
            let close_code = if others_remain { CLOSE_GO_ELSEWHERE } else { self.config.drain.drain_close_code };
            let (to_accept, acceptor) = (&mut self.to_accept, &self.acceptor);
            drain(&self.config, close_code, &self.control, to_accept, acceptor, &self.shard_metrics).await;
            if let Some(cluster) = cluster {
                cluster.stop().await;
            }
        };
        tokio::select! {
            () = drain => tracing::info!("drained"),
            _ = terminate.recv() => tracing::warn!("told twice: ending at once"),
            _ = interrupt.recv() => tracing::warn!("told twice: ending at once"),
        }
        watchdog.abort();
        driver.abort();
        finish.send_replace(true);
        let _ = tokio::time::timeout(Duration::from_secs(3), async { tokio::join!(server, gopush) }).await;
        // A thread that is stuck must not keep the process: those that are done are joined, the others end with it.
        for thread in self.threads.into_iter().filter(JoinHandle::is_finished) {
            let _ = thread.join();
        }
        Ok(())
    }
}

impl Running {
    /// Begins this gateway's part of a cluster, if it has one.
    fn join(&mut self) -> std::io::Result<Option<Cluster>> {
        let Some(Node { prepared, tokens }) = self.node.take() else { return Ok(None) };
        let (shards, counted) = (self.shard_metrics.clone(), self.control.metrics().clone());
        let connections_max = self.connections_max;
        let load = move || cluster::Load {
            connections: shards.iter().map(|m| m.websockets.get()).sum(),
            connections_max,
            publications: counted.publications.get(),
        };
        let shown = tokens.clone();
        let cluster = prepared.start(cluster::Surroundings {
            addresses: cluster::Addresses {
                grpc: self.server.grpc_address()?,
                http: Some(self.server.http_address()?),
                subscribers: self.subscribers.clone(),
            },
            deliver: Arc::new(Subscribers(self.control.clone())),
            in_place: Arc::new(Subscribers(self.control.clone())),
            load: Arc::new(load),
            secrets: cluster::Secrets {
                allows: Arc::new(move |authorization| tokens.allow(authorization)),
                shown: Arc::new(move || shown.first()),
            },
            metrics: self.registry.cluster().clone(),
        })?;
        if let Some(carrier) = cluster.carrier() {
            self.control.set_tap(Box::new(move |publication| carrier.carry(publication)));
        }
        if let Some(stream) = cluster.stream() {
            let control = Arc::downgrade(&self.control);
            self.control.set_upstream(Box::new(move |publication, sent| {
                let control = control.clone();
                let done = move |outcome| {
                    if let Some(control) = control.upgrade() {
                        control.answer(sent, outcome);
                    }
                };
                stream(&publication, Box::new(done));
            }));
        }
        Ok(Some(cluster))
    }
}

/// This gateway's subscribers, for what other nodes have accepted.
struct Subscribers(Arc<Control>);

impl Deliver for Subscribers {
    fn deliver(&self, publications: Vec<Publication>) -> Delivered {
        delivered(|each| self.0.try_deliver_all(publications, each))
    }
}

impl InPlace for Subscribers {
    fn begin(&self, epoch: Epoch, after: u64) {
        self.0.follow(epoch, after);
    }

    fn deliver_in_place(&self, publications: Vec<(u64, Publication)>) -> Delivered {
        delivered(|each| self.0.try_deliver_in_place(publications, each))
    }
}

/// What became of publications, of which `deliver` gives each one's admission to its argument.
fn delivered(deliver: impl FnOnce(&mut dyn FnMut(Admission))) -> Delivered {
    let (mut lost, mut waiting) = (Lost::default(), Vec::new());
    let count = |lost: &mut Lost, outcome: Result<Ack, Refusal>| match outcome {
        Ok(_) => {}
        Err(Refusal::Draining) => lost.draining += 1,
        Err(_) => lost.refused += 1,
    };
    deliver(&mut |admission| match admission {
        Admission::Done(outcome) => count(&mut lost, outcome),
        Admission::Waiting(one) => waiting.push(one),
    });
    let all = move |waiting: Vec<Waiting>| async move {
        let mut lost = Lost::default();
        for one in waiting {
            count(&mut lost, one.await);
        }
        lost
    };
    let waits = waiting.len();
    let waiting = (waits > 0).then(|| all(waiting).boxed());
    Delivered { lost, waits, waiting }
}

/// Stops in order: no publishes and no new clients, then every shard lets its connections go.
async fn drain(
    config: &Config,
    close_code: u16,
    control: &Control,
    to_accept: &mut queue::Sender<ToAccept>,
    acceptor: &JoinHandle<()>,
    shards: &[Arc<ShardMetrics>],
) {
    let settings = &config.drain;
    tokio::time::sleep(Duration::from_millis(settings.drain_delay_ms)).await;
    control.drain();
    let _ = to_accept.push(ToAccept::Stop, 0);
    to_accept.ring();
    let patience = Duration::from_millis(config.limits.close_deadline_ms + 2000);
    if !until(patience, || acceptor.is_finished()).await {
        tracing::warn!("the accepting core did not stop in time");
    }
    let order = Drain {
        close_code,
        window_ms: settings.drain_window_ms,
        rate_per_s: settings.drain_rate_per_s,
        deadline_ms: settings.drain_deadline_ms,
    };
    let connections = shards.iter().map(|m| m.connections.get()).max().unwrap_or(0);
    let patience = Duration::from_millis(shards_drain_ms(config, connections));
    if tokio::time::timeout(patience, control.drain_shards(order)).await.is_err() {
        tracing::warn!("a shard did not drain in time: what it still has is cut");
    }
}

/// How long the shards may take to drain, the fullest having `connections`: as they reckon it, so that one that stands still can't keep
/// the process.
fn shards_drain_ms(config: &Config, connections: u64) -> u64 {
    let settings = &config.drain;
    let window_ms =
        settings.drain_window_ms.max((connections * 1000).div_ceil(u64::from(settings.drain_rate_per_s.max(1))));
    // The order stands behind merge windows, which wait for room as long as a publication.
    config.publish.publish_wait_ms + window_ms + settings.drain_deadline_ms + DRAIN_GRACE_MS
}

/// Longest time from the order to stop to the end, the fullest shard having `connections`.
pub fn drain_ms_max(config: &Config, connections: u64) -> u64 {
    let cluster_ms = if config.cluster.is_on() { cluster::STOP_MS_MAX } else { 0 };
    cluster_ms
        + config.drain.drain_delay_ms
        + config.limits.close_deadline_ms
        + 2000
        + shards_drain_ms(config, connections)
}

/// Waits until `condition`, looking every 5 ms; `false` after `patience`.
async fn until(patience: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = Time::now() + patience;
    while !condition() {
        if Time::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

/// gpush's `/stats`.
fn stats(shards: &[Arc<ShardMetrics>]) -> String {
    let count: u64 = shards.iter().map(|m| m.websockets.get()).sum();
    format!("{{\"count\":{count}}}")
}

/// What clients may ask of the control core.
struct Knowledge {
    login: Login,
    counted: Arc<ControlMetrics>,
    registry: Arc<Registry>,
    shards: Vec<Arc<ShardMetrics>>,
    metrics: Mutex<Option<Rendered>>,
}

/// A page as it was at some moment.
struct Rendered {
    at: Time,
    body: Bytes,
}

impl Knowledge {
    fn new(
        login: Login,
        counted: Arc<ControlMetrics>,
        registry: Arc<Registry>,
        shards: Vec<Arc<ShardMetrics>>,
    ) -> Knowledge {
        Knowledge { login, counted, registry, shards, metrics: Mutex::default() }
    }
}

/// The page of the last [`PAGE_AGE_MS_MAX`], or a new one.
fn rendered(cell: &Mutex<Option<Rendered>>, now: Time, render: impl FnOnce() -> String) -> Bytes {
    let mut last = cell.lock().unwrap_or_else(PoisonError::into_inner);
    match &*last {
        Some(Rendered { at, body }) if now < at.plus_ms(PAGE_AGE_MS_MAX) => body.clone(),
        _ => last.insert(Rendered { at: now, body: render().into() }).body.clone(),
    }
}

impl Oracle for Knowledge {
    fn login(&self, token: Box<str>) -> BoxFuture<'static, Option<Box<str>>> {
        let (login, counted) = (self.login.clone(), self.counted.clone());
        async move { login.uid(&token, &counted).await }.boxed()
    }

    fn page(&self, page: Page) -> BoxFuture<'static, Answer> {
        let (content_type, body) = match page {
            Page::Stats => ("application/json", stats(&self.shards).into()), // A sum of a few cells.
            Page::Metrics => (Registry::CONTENT_TYPE, rendered(&self.metrics, Time::now(), || self.registry.render())),
        };
        std::future::ready(Answer::Page { status: 200, content_type, body }).boxed()
    }
}

/// Why the gateway should get no traffic.
#[derive(Clone)]
struct Health {
    control: Arc<Control>,
    shards: Vec<Arc<ShardMetrics>>,
    stopping: tokio::sync::watch::Receiver<bool>,
}

impl Health {
    fn reasons(&self) -> Vec<String> {
        let mut reasons = self.stuck();
        if *self.stopping.borrow() {
            reasons.push("stopping".into());
        }
        reasons.extend(self.control.blocked());
        reasons
    }

    fn stuck(&self) -> Vec<String> {
        let now = Time::now().as_ms();
        let late = self.shards.iter().enumerate().filter_map(|(i, m)| {
            let ms = now.saturating_sub(m.last_turn_ms.get());
            (m.turns.get() > 0 && ms > TURN_MS_MAX).then(|| format!("shard {i} has not turned for {ms} ms"))
        });
        late.collect()
    }
}

/// Tells systemd that we live, at half its interval, only while every shard turns.
async fn feed_watchdog(health: Health) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(interval / 2);
    loop {
        ticks.tick().await;
        let stuck = health.stuck();
        if stuck.is_empty() {
            notify(&[sd_notify::NotifyState::Watchdog]);
        } else {
            tracing::error!("the watchdog is not fed: {}", stuck.join("; "));
        }
    }
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("sd_notify: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_follow_cores_and_what_the_connections_need() {
        let layout = |count, connections, cores, nofile| Layout::new(count, connections, cores, nofile).unwrap();
        assert_eq!(layout(0, 0, 1, 20_000), Layout { shards: 1, slots: 20_000, lanes: 1 });
        assert_eq!(layout(0, 0, 8, 20_000), Layout { shards: 7, slots: 20_000, lanes: 7 });
        let many = layout(0, 1_000_000, 2, 20_000);
        assert_eq!((many.shards, many.lanes), (53, 1));
        assert_eq!(layout(4, 0, 2, 20_000).lanes, 4, "who counts them wants them all used");
        assert_eq!(layout(3, 0, 2, 1 << 30).slots, SLOTS_MAX);
        for (shards, connections) in [(1, 100), (4, 10_000), (53, 1_000_000)] {
            let slots = layout(shards, connections, 2, 20_000).slots;
            assert!(high_water(slots) * shards >= connections && slots <= 20_000);
        }
    }

    #[test]
    fn a_page_is_rendered_once_for_all_who_ask_within_its_age() {
        let (cell, mut renderings) = (Mutex::default(), 0);
        let start = Time::now();
        let mut ask = |ms| {
            rendered(&cell, start.plus_ms(ms), || {
                renderings += 1;
                renderings.to_string()
            })
        };
        let bodies = [0, 1, PAGE_AGE_MS_MAX - 1, PAGE_AGE_MS_MAX, PAGE_AGE_MS_MAX + 1].map(&mut ask);
        assert_eq!(bodies, ["1", "1", "1", "2", "2"]);
    }

    #[test]
    fn a_limit_too_low_says_what_to_raise() {
        let error = Layout::new(1, 100_000, 2, 1024).unwrap_err().to_string();
        assert!(error.contains("RLIMIT_NOFILE is 1024") && error.contains("shards.count"), "{error}");
        assert!(Layout::new(0, 0, 2, 10).is_err());
    }
}
