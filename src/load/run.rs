//! One run: connect, warm up, measure, drain, look, leave.
//!
//! ```text
//! supervisor   connect publisher ── start ─────────────────── published ─► what was sent, what was refused
//! clients      ramp ── connected ─── read … [from … until] … ─ drain ───── slow ones ── close
//!                                     sample      sample       until all is there, or nothing comes any more
//! ```

use super::clients::{Clients, ClientsPlan, Counts};
use super::host::{KernelMemory, Machine, Usage, Watched};
use super::publisher::{PublishPlan, Published, Publisher};
use super::report::{Live, NodeReport, Phase, Report};
use super::schedule::{Pace, Schedule};
use super::server::{self, Server};
use super::stamp::{MESSAGE_BYTES_MIN, Stream};
use super::tally::{AtNode, Tally, histogram};
use crate::clock::Time;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// From "all are connected" to the first message: both sides know the schedule by then.
const START_LEAD_MS: u64 = 300;
/// The clients look at the clock and at orders at least this often.
const PULSE_MS: u64 = 50;
/// After the last acknowledgement: given up when nothing has come for this long,
const DRAIN_QUIET_MS: u64 = 3_000;
/// or, unless the plan says otherwise, after this in all.
pub const DRAIN_MS_MAX: u64 = 120_000;
/// Readings are taken so often meanwhile.
const DRAIN_SAMPLE_NS: u64 = 10_000_000;
/// Connections that are there before idle ones are counted: what a process needs once is in their memory.
const IDLE_BASE: u32 = 1_000;
/// Memory is looked at when nothing has been connected for this long.
const IDLE_SETTLE_MS: u64 = 1_000;

/// Messages to publish.
#[derive(Clone, Debug)]
pub struct Load {
    /// When.
    pub pace: Pace,
    /// Bytes each.
    pub size: usize,
    /// By what.
    pub source: Source,
}

/// Who publishes.
#[derive(Clone, Debug)]
pub enum Source {
    /// We do, to a gateway.
    Publisher(PublishPlan),
    /// The bare server writes messages by itself.
    Bare {
        /// So many in one send; 1 is the yardstick.
        join: u32,
    },
}

/// Everything about a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Who listens.
    pub clients: ClientsPlan,
    /// To what; `None` just holds the connections.
    pub load: Option<Load>,
    /// Topics of messages by Zipf's law with this exponent, not one after the other.
    pub zipf: Option<f64>,
    /// When the storm begins, from the first message on.
    pub storm_at_s: f64,
    /// Before measurement.
    pub warmup_s: f64,
    /// Of measurement.
    pub duration_s: f64,
    /// The measurement ends when the last message is with everybody, however long that takes, instead of at its time.
    pub to_the_last: bool,
    /// What has not come so long after the last acknowledgement is lost.
    pub drain_ms_max: u64,
    /// Whose CPU and memory counts.
    pub server: Option<Watched>,
    /// Where our threads run.
    pub core: Option<usize>,
    /// `host:port` of `/metrics`, for the server's own count of drops.
    pub admin: Option<String>,
    /// Other metrics to show.
    pub metrics: Vec<String>,
}

/// Runs `plan`; `bare` is the bare server if that is what the clients connect to. `live` is called each second.
///
/// # Errors
/// The run could not be carried through. What the run found wrong is in the report instead.
pub fn run(plan: &Plan, bare: Option<&mut Server>, live: &mut (dyn FnMut(&Live) + Send)) -> Result<Report, String> {
    if plan.load.as_ref().is_some_and(|load| load.size < MESSAGE_BYTES_MIN) {
        return Err(format!("a message needs {MESSAGE_BYTES_MIN} bytes to say which one it is"));
    }
    thread::scope(|scope| {
        let supervisor = scope.spawn(move || {
            plan.core.map_or(Ok(()), super::host::pin)?; // And the threads started from here.
            supervise(plan, bare, live)
        });
        supervisor.join().map_err(|_| "the load client panicked".to_owned())?
    })
}

/// What the clients are told.
enum Order {
    Measure { schedule: Schedule },
    Published { schedule: Schedule, messages: u64, refused: BTreeMap<u32, u32> },
    Abort,
}

/// What the clients say.
enum News {
    Live(Live),
    Connected,
}

fn supervise(plan: &Plan, bare: Option<&mut Server>, live: &mut (dyn FnMut(&Live) + Send)) -> Result<Report, String> {
    let before = plan.admin.as_deref().map(server::scrape).transpose()?;
    thread::scope(|scope| {
        let (order, orders) = mpsc::channel();
        let (news, heard) = mpsc::channel();
        let clients = scope.spawn(move || drive(plan, &orders, &news));
        // Ends early only if the clients do; their result says why.
        let mut connected = false;
        while !connected && let Ok(news) = heard.recv() {
            match news {
                News::Live(second) => live(&second),
                News::Connected => connected = true,
            }
        }
        let mut published = None;
        if connected && let Some(load) = &plan.load {
            let result = publish(plan, load, bare, &order, &heard, live);
            // The clients may be gone already; then their result says why.
            match &result {
                Ok((schedule, p)) => {
                    let (schedule, messages, refused) = (schedule.clone(), p.messages, p.refused.clone());
                    order.send(Order::Published { schedule, messages, refused }).ok();
                }
                Err(_) => drop(order.send(Order::Abort)),
            }
            published = Some(result);
        }
        while let Ok(news) = heard.recv() {
            if let News::Live(second) = news {
                live(&second);
            }
        }
        let outcome = clients.join().map_err(|_| "the clients' thread panicked".to_owned())?;
        // If publishing failed, the clients were only told to stop.
        let published = published.transpose()?;
        let outcome = outcome?;
        Ok(report(plan, outcome, published.as_ref(), before.as_deref()))
    })
}

fn publish(
    plan: &Plan,
    load: &Load,
    bare: Option<&mut Server>,
    order: &mpsc::Sender<Order>,
    heard: &mpsc::Receiver<News>,
    live: &mut (dyn FnMut(&Live) + Send),
) -> Result<(Schedule, Published), String> {
    let ClientsPlan { topics, publishers, .. } = plan.clients;
    let publisher = match &load.source {
        Source::Publisher(plan) => Some(Publisher::connect(plan, topics, publishers)?),
        Source::Bare { .. } => None,
    };
    let start_ns = Time::now().plus_ms(START_LEAD_MS).0;
    let schedule = Schedule::new(load.pace, topics, publishers, load.size, start_ns, plan.warmup_s, plan.duration_s);
    let schedule = plan.zipf.map_or(schedule.clone(), |exponent| schedule.with_zipf(exponent));
    order.send(Order::Measure { schedule: schedule.clone() }).ok();
    thread::scope(|scope| {
        let schedule_ = &schedule;
        let publishing = scope.spawn(move || match (publisher, bare, &load.source) {
            (Some(publisher), ..) => publisher.run(schedule_),
            (None, Some(bare), Source::Bare { join }) => {
                server::run_bare(bare, schedule_, *join).map(|(messages, waited)| {
                    let mut published = Published { messages, ..Published::default() };
                    if waited > 0 {
                        published.reasons.insert("bare sends that had to wait for their client".into(), waited);
                    }
                    published
                })
            }
            (None, ..) => Err("nobody publishes".into()),
        });
        while !publishing.is_finished() {
            if let Ok(News::Live(second)) = heard.recv_timeout(Duration::from_millis(PULSE_MS)) {
                live(&second);
            }
        }
        publishing.join().map_err(|_| "the publisher's thread panicked".to_owned())?
    })
    .map(|published| (schedule, published))
}

/// Readings at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    at_ns: u64,
    usage: Usage,
    client_cpu_ns: u64,
    received: u64,
    bytes: u64,
}

/// What became of the storm.
#[derive(Debug)]
struct Storm {
    began_ns: u64,
    over_ns: u64,               // 0: not over yet.
    client_cpu_ns: u64,         // At its beginning; once it is over, what it took.
    parts: [Histogram<u64>; 3], // Latencies before, meanwhile and afterwards.
}

/// What the clients bring home.
struct Outcome {
    storm: Option<Storm>,
    kernel: [KernelMemory; 2], // Before the first connection, and at the end of the measurement.
    counts: Counts,
    tally: Tally,
    readers: u32,
    slow_open: u32,
    ramp_s: f64,
    ramp_cpu_ns: u64,     // Of the server, while all connected.
    base: Option<Sample>, // With `IDLE_BASE` connections.
    from: Sample,
    until: Sample,
    rss_bytes_max: u64,
    lost: (u64, u32),
    latency: Histogram<u64>,
    metrics: Option<String>, // `/metrics` before anybody leaves: pending messages of those who do count as drops, too.
}

struct Driver<'a> {
    plan: &'a Plan,
    clients: Clients,
    news: &'a mpsc::Sender<News>,
    begun: Time,
    second: Time,           // When the next live line is due.
    last: (Time, u64, u64), // Time, messages and bytes of the last one.
    rss_bytes_max: u64,
    storm: Option<Storm>,
}

impl Driver<'_> {
    fn sample(&mut self) -> Result<Sample, String> {
        let usage = self.plan.server.as_ref().map(Watched::usage).transpose().map_err(|e| e.to_string())?;
        let usage = usage.unwrap_or_default();
        self.rss_bytes_max = self.rss_bytes_max.max(usage.rss_bytes);
        let (received, bytes) = (self.clients.tally.received, self.clients.tally.bytes);
        Ok(Sample { at_ns: Time::now().0, usage, client_cpu_ns: self.clients.cpu_ns(), received, bytes })
    }

    /// One turn, at most until `until`, and the live line if its second is over.
    fn turn(&mut self, phase: Phase, until: Time) -> Result<(), String> {
        self.clients.turn(until.min(Time::now().plus_ms(PULSE_MS)).min(self.second));
        let now = Time::now();
        if let Some(storm) = self.storm.as_mut().filter(|storm| storm.over_ns == 0)
            && self.clients.storm_is_over()
        {
            storm.over_ns = now.0;
            storm.client_cpu_ns = self.clients.cpu_ns() - storm.client_cpu_ns;
            storm.parts[1] = self.clients.tally.next_part();
        }
        if now >= self.second {
            let usage = self.sample()?.usage;
            let (received, bytes) = (self.clients.tally.received, self.clients.tally.bytes);
            let seconds = now.since_ns(self.last.0) as f64 / 1e9;
            let latency = self.clients.tally.interval();
            let (subscribed, all) = (self.clients.counts.subscribed, self.plan.clients.connections);
            self.news
                .send(News::Live(Live {
                    phase,
                    elapsed_s: now.since_ns(self.begun) as f64 / 1e9,
                    connections: all,
                    connected: subscribed,
                    failed: self.clients.counts.failures.values().sum(),
                    messages_per_s: (received - self.last.1) as f64 / seconds,
                    megabytes_per_s: (bytes - self.last.2) as f64 / 1e6 / seconds,
                    latency_us: [0.5, 0.99, 0.999, 1.0].map(|q| latency.value_at_quantile(q)),
                    rss_bytes: usage.rss_bytes,
                }))
                .ok();
            self.last = (now, received, bytes);
            self.second = now.plus_ms(1000);
        }
        Ok(())
    }

    fn connect(&mut self, until: u32) -> Result<(), String> {
        self.clients.ramp();
        while !self.clients.connect(until) {
            self.turn(Phase::Ramp, Time::now().plus_ms(1))?;
        }
        Ok(())
    }

    fn wait(&mut self, phase: Phase, until: Time) -> Result<(), String> {
        while Time::now() < until {
            self.turn(phase, until)?;
        }
        Ok(())
    }
}

fn drive(plan: &Plan, orders: &mpsc::Receiver<Order>, news: &mpsc::Sender<News>) -> Result<Outcome, String> {
    let now = Time::now();
    let kernel_before = KernelMemory::now();
    let clients = Clients::new(plan.clients.clone())?;
    let (second, last) = (now.plus_ms(1000), (now, 0, 0));
    let mut d = Driver { plan, clients, news, begun: now, second, last, rss_bytes_max: 0, storm: None };
    let all = plan.clients.connections;
    let unconnected = d.sample()?;
    let mut base = None;
    let mut settle_ns = 0;
    if plan.load.is_none() && all > IDLE_BASE {
        d.connect(IDLE_BASE)?;
        let settled = Time::now().plus_ms(IDLE_SETTLE_MS);
        d.wait(Phase::Idle, settled)?;
        base = Some(d.sample()?);
        settle_ns = IDLE_SETTLE_MS * 1_000_000;
    }
    d.connect(all)?;
    let ramp_s = (Time::now().since_ns(d.begun) - settle_ns) as f64 / 1e9;
    if d.clients.counts.subscribed == 0 {
        let reasons = d.clients.counts.failures.keys().cloned().collect::<Vec<_>>().join("; ");
        return Err(format!("none of {all} connections to {} came about: {reasons}", plan.clients.target));
    }
    news.send(News::Connected).ok();
    let (mut from, mut until) = (d.sample()?, Sample::default());
    let cpu_ns = |sample: Sample| sample.usage.cpu_ns + sample.usage.softirqd_ns;
    let ramp_cpu_ns = cpu_ns(from) - cpu_ns(unconnected);
    let mut lost = (0, 0);
    if plan.load.is_none() {
        let end = Time::now() + Duration::from_secs_f64(plan.duration_s);
        d.wait(Phase::Idle, end)?;
        until = d.sample()?;
    } else {
        let (schedule, messages, refused) = d.measure(orders, &mut from, &mut until)?;
        let last = d.drain(&schedule, messages, &refused)?;
        if plan.to_the_last {
            until = last;
        }
        lost = d.clients.lost(&schedule, messages, &refused);
    }
    let kernel = [kernel_before, KernelMemory::now()];
    let metrics = plan.admin.as_deref().map(server::scrape).transpose()?;
    if plan.clients.slow > 0 {
        d.clients.look_at_slow();
    }
    let mut storm = d.storm.take();
    if let Some(storm) = &mut storm {
        let after = if storm.over_ns > 0 { 2 } else { 1 };
        storm.parts[after] = d.clients.tally.next_part();
    }
    let latency = d.clients.tally.total().clone();
    let (readers, slow_open) = (d.clients.readers().count() as u32, d.clients.slow_open());
    let rss_bytes_max = d.rss_bytes_max;
    let (counts, tally) = d.clients.close();
    Ok(Outcome {
        counts,
        tally,
        readers,
        slow_open,
        ramp_s,
        ramp_cpu_ns,
        base,
        from,
        until,
        rss_bytes_max,
        lost,
        latency,
        metrics,
        storm,
        kernel,
    })
}

impl Driver<'_> {
    /// Reads until all is published, with a sample at both ends of the window.
    fn measure(
        &mut self,
        orders: &mpsc::Receiver<Order>,
        from: &mut Sample,
        until: &mut Sample,
    ) -> Result<(Schedule, u64, BTreeMap<u32, u32>), String> {
        let (mut from_at, mut until_at, mut storm_at) = (Time::NEVER, Time::NEVER, Time::NEVER);
        let mut published = None;
        loop {
            match orders.try_recv() {
                Ok(Order::Measure { schedule }) => {
                    (from_at, until_at) = (Time(schedule.from_ns), Time(schedule.until_ns));
                    if self.plan.clients.storm > 0 {
                        storm_at = Time(schedule.start_ns) + Duration::from_secs_f64(self.plan.storm_at_s);
                    }
                    self.clients.load_begins(schedule);
                }
                Ok(Order::Published { schedule, messages, refused }) => published = Some((schedule, messages, refused)),
                Ok(Order::Abort) => return Err("the load was not published".into()),
                Err(_) => {}
            }
            if Time::now() >= from_at {
                (*from, from_at) = (self.sample()?, Time::NEVER);
            }
            if Time::now() >= storm_at {
                storm_at = Time::NEVER;
                let parts = [self.clients.tally.next_part(), histogram(), histogram()];
                let client_cpu_ns = self.clients.cpu_ns();
                self.storm = Some(Storm { began_ns: Time::now().0, over_ns: 0, client_cpu_ns, parts });
                self.clients.storm_begins();
            }
            if Time::now() >= until_at {
                self.clients.churn_ends();
                (*until, until_at) = (self.sample()?, Time::NEVER);
            }
            if until.at_ns > 0
                && let Some(published) = published
            {
                return Ok(published);
            }
            self.turn(Phase::Run, from_at.min(until_at).min(storm_at))?;
        }
    }

    /// Reads until all readers have everything, or nothing comes any more. Readings when the last one came.
    fn drain(&mut self, schedule: &Schedule, messages: u64, refused: &BTreeMap<u32, u32>) -> Result<Sample, String> {
        let ClientsPlan { topics, publishers, .. } = self.plan.clients;
        let of_topic = |topic: u32| -> u64 {
            let stream = |p| Stream::new(topic, p);
            let refused = |p| refused.get(&stream(p).0).copied().unwrap_or(0);
            (0..publishers).map(|p| u64::from(schedule.sent(stream(p), messages) - refused(p))).sum()
        };
        let of_topic: Vec<u64> = (0..topics).map(of_topic).collect();
        let end = Time::now().plus_ms(self.plan.drain_ms_max);
        while !self.clients.is_settled() && Time::now() < end {
            self.turn(Phase::Drain, end)?; // What gets on no more has failed by then.
        }
        let expected: u64 = self.clients.readers().map(|i| of_topic[self.clients.topic(i) as usize]).sum();
        // Who came later lacks what was before, so only quiet says that nothing is to come.
        let later = self.plan.clients.churn_per_s > 0.0 || self.plan.clients.storm > 0;
        let expected = if later { u64::MAX } else { expected };
        let (mut received, mut quiet) = (self.clients.tally.received, Time::now().plus_ms(DRAIN_QUIET_MS));
        let mut last = self.sample()?;
        while received < expected && Time::now() < end.min(quiet) {
            self.turn(Phase::Drain, quiet)?;
            if self.clients.tally.received > received {
                (received, quiet) = (self.clients.tally.received, Time::now().plus_ms(DRAIN_QUIET_MS));
                if Time::now().since_ns(Time(last.at_ns)) >= DRAIN_SAMPLE_NS || received >= expected {
                    last = self.sample()?;
                }
            }
        }
        Ok(last)
    }
}

fn report(plan: &Plan, outcome: Outcome, published: Option<&(Schedule, Published)>, before: Option<&str>) -> Report {
    let Outcome { counts, tally, readers, slow_open, ramp_s, ramp_cpu_ns, base, .. } = outcome;
    let Outcome { from, until, rss_bytes_max, lost, latency, metrics, storm, kernel, .. } = outcome;
    let after = metrics.as_deref();
    let window_s = until.at_ns.saturating_sub(from.at_ns) as f64 / 1e9;
    let deliveries = until.received - from.received;
    let per_delivery = |ns: u64| if deliveries > 0 { ns as f64 / deliveries as f64 } else { 0.0 };
    let server_cpu_ns = until.usage.cpu_ns.saturating_sub(from.usage.cpu_ns);
    let softirqd_ns = until.usage.softirqd_ns.saturating_sub(from.usage.softirqd_ns);
    let percent = |ns: u64| ns as f64 / 1e7 / window_s;
    let client_ns = until.client_cpu_ns - from.client_cpu_ns;
    let changed = |name: &str| {
        let value = |text: Option<&str>| text.map(|t| server::metric(t, name).unwrap_or(0.0));
        Some(value(after)? - value(before)?)
    };
    let rss_of_one = |base: Sample| {
        let grown = until.usage.rss_bytes as f64 - base.usage.rss_bytes as f64;
        grown / f64::from(counts.subscribed.saturating_sub(IDLE_BASE).max(1))
    };
    let (rate_per_s, size) = match &plan.load {
        Some(Load { pace: Pace::Rate { per_s }, size, .. }) => (*per_s, *size),
        Some(Load { size, .. }) => (0.0, *size),
        None => (0.0, 0),
    };
    let grown = |of: fn(&KernelMemory) -> Option<u64>| Some(of(&kernel[1])? as f64 - of(&kernel[0])? as f64);
    let (kernel_slab_bytes, kernel_tcp_bytes) = (grown(|k| k.slab_bytes), grown(|k| k.tcp_bytes));
    let there = f64::from(counts.subscribed) + counts.storm.as_ref().map_or(0, Histogram::len) as f64;
    let of = |times: Option<&Histogram<u64>>, q| times.map_or(0, |times| times.value_at_quantile(q));
    let part = |i: usize| of(storm.as_ref().map(|storm| &storm.parts[i]), 0.99);
    let storm_ns = storm.as_ref().map_or(0, |storm| storm.over_ns.saturating_sub(storm.began_ns));
    let storm_cpu_ns = storm.as_ref().filter(|storm| storm.over_ns > 0).map_or(0, |storm| storm.client_cpu_ns);
    let quantile = |q| latency.value_at_quantile(q);
    let late = published.map(|(_, p)| &p.late);
    let publisher_cpu_ns = published.map_or(0, |(_, p)| p.cpu_ns);
    let publisher_s = published.map_or(window_s, |(s, _)| s.measured_s());
    let node = |(i, node): (usize, &AtNode)| NodeReport {
        address: if i == 0 { plan.clients.target } else { plan.clients.nodes[i - 1] }.to_string(),
        deliveries_per_s: node.received as f64 / publisher_s,
        p50_us: node.latency.value_at_quantile(0.5),
        p99_us: node.latency.value_at_quantile(0.99),
        p999_us: node.latency.value_at_quantile(0.999),
        max_us: node.latency.max(),
    };
    let publisher_busy_percent = publisher_cpu_ns as f64 / 1e7 / publisher_s;
    let mut report = Report {
        machine: Machine::here(),
        bare: plan.load.as_ref().is_some_and(|load| matches!(load.source, Source::Bare { .. })),
        connections: plan.clients.connections,
        topics: plan.clients.topics,
        rate_per_s,
        size_bytes: size as u64,
        deflate: plan.clients.deflate,
        subscribed: counts.subscribed,
        failed: counts.failures.values().sum(),
        ramp_s,
        handshakes_per_s: f64::from(counts.subscribed) / ramp_s,
        server_cpu_ns_per_handshake: ramp_cpu_ns as f64 / f64::from(counts.subscribed.max(1)),
        measured_s: window_s,
        spread: plan.clients.spread,
        dialect: plan.clients.dialect.name().to_owned(),
        publishers: plan.clients.publishers,
        churned: counts.left,
        returned: counts.returns.as_ref().map_or(0, Histogram::len),
        return_p50_us: of(counts.returns.as_ref(), 0.5),
        return_p99_us: of(counts.returns.as_ref(), 0.99),
        return_max_us: counts.returns.as_ref().map_or(0, Histogram::max),
        storm: plan.clients.storm,
        storm_subscribed: counts.storm.as_ref().map_or(0, Histogram::len),
        storm_failed: counts.storm_failures.values().sum(),
        storm_s: storm_ns as f64 / 1e9,
        storm_p50_us: of(counts.storm.as_ref(), 0.5),
        storm_p99_us: of(counts.storm.as_ref(), 0.99),
        storm_before_p99_us: part(0),
        storm_during_p99_us: part(1),
        storm_after_p99_us: part(2),
        storm_client_busy_percent: if storm_ns > 0 { storm_cpu_ns as f64 / storm_ns as f64 * 100.0 } else { 0.0 },
        kernel_slab_bytes,
        kernel_tcp_bytes,
        kernel_bytes_per_connection: kernel_slab_bytes.map(|bytes| bytes / there.max(1.0)),
        nodes: tally.nodes.iter().enumerate().map(node).collect(),
        messages: published.map_or(0, |(_, p)| p.messages),
        refused: published.map_or(0, |(_, p)| p.refused.values().map(|n| u64::from(*n)).sum()),
        published_per_s: published.map_or(0.0, |(s, p)| p.acknowledged as f64 / s.measured_s()),
        deliveries,
        deliveries_per_s: deliveries as f64 / window_s,
        megabytes_per_s: (until.bytes - from.bytes) as f64 / 1e6 / window_s,
        p50_us: quantile(0.5),
        p90_us: quantile(0.9),
        p99_us: quantile(0.99),
        p999_us: quantile(0.999),
        max_us: latency.max(),
        mean_us: latency.mean(),
        received: tally.received,
        lost: lost.0,
        lost_connections: lost.1,
        duplicates: tally.duplicates,
        disordered: tally.disordered,
        foreign: tally.foreign,
        unexpected: counts.unexpected,
        ended: counts.ends.values().sum(),
        readers,
        slow: plan.clients.slow,
        slow_ended: counts.slow_ends.values().sum(),
        slow_open,
        slow_received: counts.slow_received,
        drops: changed("fanwire_drops_total"),
        server_watched: plan.server.is_some(),
        server_cpu_percent: percent(server_cpu_ns + softirqd_ns),
        server_cpu_ns_per_delivery: per_delivery(server_cpu_ns + softirqd_ns),
        server_softirqd_percent: percent(softirqd_ns),
        server_rss_bytes: until.usage.rss_bytes,
        server_rss_bytes_max: rss_bytes_max,
        server_rss_bytes_per_connection: base.map(rss_of_one),
        cpu_ratio_to_bare: None,
        client_busy_percent: percent(client_ns),
        client_cpu_ns_per_delivery: per_delivery(client_ns),
        publisher_busy_percent,
        publisher_late_p99_us: late.map_or(0, |h| h.value_at_quantile(0.99)),
        publisher_late_max_us: late.map_or(0, Histogram::max),
        latency: Some(latency),
        metrics: plan.metrics.iter().filter_map(|m| Some((m.clone(), server::metric(after?, m)?))).collect(),
        reasons: BTreeMap::new(),
        limits: Vec::new(),
        problems: Vec::new(),
    };
    let kinds = [
        ("failed", &counts.failures),
        ("ended", &counts.ends),
        ("slow, ended", &counts.slow_ends),
        ("storm", &counts.storm_failures),
    ];
    let published_reasons = published.map(|(_, p)| ("publishing", &p.reasons));
    for (kind, reasons) in kinds.into_iter().chain(published_reasons) {
        report.reasons.extend(reasons.iter().map(|(reason, n)| (format!("{kind}: {reason}"), *n)));
    }
    report.reasons.extend(counts.unexpected_first.map(|first| (format!("unexpected: {first}"), counts.unexpected)));
    report.judge(plan.core.is_some());
    report
}
