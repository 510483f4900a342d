//! What a run found, for people and for programs.

use super::host::Machine;
use hdrhistogram::Histogram;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::{self, Write};

/// At this share of a core the client, not the server, sets the figure.
const BUSY_PERCENT_MAX: f64 = 95.0;
/// A publisher that is later than this at the 99th percentile does not keep its schedule.
const LATE_US_MAX: u64 = 5_000;

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connecting.
    Ramp,
    /// Holding connections.
    Idle,
    /// Messages are published.
    Run,
    /// Waiting for the last ones.
    Drain,
}

/// One second of a run.
#[derive(Clone, Debug)]
pub struct Live {
    /// Where it is.
    pub phase: Phase,
    /// Since it began.
    pub elapsed_s: f64,
    /// Wanted.
    pub connections: u32,
    /// Subscribed.
    pub connected: u32,
    /// Given up.
    pub failed: u64,
    /// Delivered in this second.
    pub messages_per_s: f64,
    /// Their payload.
    pub megabytes_per_s: f64,
    /// p50, p99, p99.9 and maximum of this second.
    pub latency_us: [u64; 4],
    /// Of the server, 0 if it is not watched.
    pub rss_bytes: u64,
}

impl fmt::Display for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Live { elapsed_s, connected, connections, failed, .. } = self;
        let phase = match self.phase {
            Phase::Ramp => "ramp",
            Phase::Idle => "idle",
            Phase::Run => "run",
            Phase::Drain => "drain",
        };
        write!(f, "{elapsed_s:6.1} s  {phase:5}  {connected}/{connections} connected")?;
        if *failed > 0 {
            write!(f, ", {failed} failed")?;
        }
        if matches!(self.phase, Phase::Run | Phase::Drain) {
            let [p50, p99, p999, max] = self.latency_us.map(milliseconds);
            let (rate, megabytes) = (quantity(self.messages_per_s), self.megabytes_per_s);
            write!(f, "  {rate}/s  {megabytes:.1} MB/s  ms: p50 {p50} p99 {p99} p99.9 {p999} max {max}")?;
        }
        if self.rss_bytes > 0 {
            write!(f, "  server {:.1} MB", self.rss_bytes as f64 / 1e6)?;
        }
        Ok(())
    }
}

/// What one of several nodes delivered within the measured window.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[allow(missing_docs)] // As below.
pub struct NodeReport {
    pub address: String,
    pub deliveries_per_s: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
}

/// What a run found. The unit is the name's last part; rates and CPU are of the measured window, counts of the whole run.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[allow(missing_docs)] // Each field is named as it stands in the JSON.
pub struct Report {
    pub machine: Machine,
    pub bare: bool,
    pub connections: u32,
    pub topics: u32,
    pub rate_per_s: f64,
    pub size_bytes: u64,
    pub deflate: bool,
    pub subscribed: u32,
    pub failed: u64,
    pub ramp_s: f64,
    pub handshakes_per_s: f64,
    pub server_cpu_ns_per_handshake: f64,
    pub measured_s: f64,
    #[serde(default)]
    pub spread: u32,
    #[serde(default)]
    pub dialect: String,
    #[serde(default)]
    pub publishers: u32,
    /// Connections that left, to come back; and those that did, from the new connect to the subscribe's answer.
    #[serde(default)]
    pub churned: u64,
    #[serde(default)]
    pub returned: u64,
    #[serde(default)]
    pub return_p50_us: u64,
    #[serde(default)]
    pub return_p99_us: u64,
    #[serde(default)]
    pub return_max_us: u64,
    /// Connections that came at once; until all of them had subscribed or failed; latency of the others' messages meanwhile.
    #[serde(default)]
    pub storm: u32,
    #[serde(default)]
    pub storm_subscribed: u64,
    #[serde(default)]
    pub storm_failed: u64,
    #[serde(default)]
    pub storm_s: f64,
    #[serde(default)]
    pub storm_p50_us: u64,
    #[serde(default)]
    pub storm_p99_us: u64,
    #[serde(default)]
    pub storm_before_p99_us: u64,
    #[serde(default)]
    pub storm_during_p99_us: u64,
    #[serde(default)]
    pub storm_after_p99_us: u64,
    #[serde(default)]
    pub storm_client_busy_percent: f64,
    /// What the machine's kernel memory has grown by since before the first connection: both ends, if both are here.
    #[serde(default)]
    pub kernel_slab_bytes: Option<f64>,
    #[serde(default)]
    pub kernel_tcp_bytes: Option<f64>,
    #[serde(default)]
    pub kernel_bytes_per_connection: Option<f64>,
    /// Of several nodes, what each delivered.
    #[serde(default)]
    pub nodes: Vec<NodeReport>,
    pub messages: u64,
    pub refused: u64,
    pub published_per_s: f64,
    pub deliveries: u64,
    pub deliveries_per_s: f64,
    pub megabytes_per_s: f64,
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
    pub mean_us: f64,
    pub received: u64,
    pub lost: u64,
    pub lost_connections: u32,
    pub duplicates: u64,
    pub disordered: u64,
    pub foreign: u64,
    pub unexpected: u64,
    pub ended: u64,
    pub readers: u32,
    pub slow: u32,
    pub slow_ended: u64,
    pub slow_open: u32,
    pub slow_received: u64,
    pub drops: Option<f64>,
    pub server_watched: bool,
    pub server_cpu_percent: f64,
    pub server_cpu_ns_per_delivery: f64,
    pub server_softirqd_percent: f64,
    pub server_rss_bytes: u64,
    pub server_rss_bytes_max: u64,
    pub server_rss_bytes_per_connection: Option<f64>,
    /// CPU a delivery, of this gateway in relation to the bare send loop in the same session.
    pub cpu_ratio_to_bare: Option<f64>,
    pub client_busy_percent: f64,
    pub client_cpu_ns_per_delivery: f64,
    pub publisher_busy_percent: f64,
    pub publisher_late_p99_us: u64,
    pub publisher_late_max_us: u64,
    /// The latencies themselves.
    #[serde(skip)]
    pub latency: Option<Histogram<u64>>,
    /// Metrics asked for by name, after the run.
    pub metrics: BTreeMap<String, f64>,
    /// Why connections failed or ended, why messages were refused, and how often.
    pub reasons: BTreeMap<String, u64>,
    /// Why the figures are the load client's rather than the server's.
    pub limits: Vec<String>,
    /// What must not be.
    pub problems: Vec<String>,
}

impl Report {
    /// Draws the conclusions: `limits` and `problems`. `one_core`: clients and publisher share one.
    pub(crate) fn judge(&mut self, one_core: bool) {
        let (client, publisher) = (self.client_busy_percent, self.publisher_busy_percent);
        if client >= BUSY_PERCENT_MAX {
            self.limits.push(format!("client-bound: its thread is {client:.0} % busy"));
        } else if one_core && client + publisher >= BUSY_PERCENT_MAX {
            let (c, p) = (client, publisher);
            self.limits.push(format!("client-bound: its core is busy, clients {c:.0} % and publisher {p:.0} %"));
        }
        if self.storm_client_busy_percent >= BUSY_PERCENT_MAX {
            let busy = self.storm_client_busy_percent;
            self.limits.push(format!("client-bound in the storm: its thread was {busy:.0} % busy"));
        }
        if self.publisher_late_p99_us > LATE_US_MAX && self.rate_per_s > 0.0 {
            let late = milliseconds(self.publisher_late_p99_us);
            self.limits.push(format!("the publisher is late: p99 {late} ms behind its schedule"));
        }
        if !self.machine.release {
            self.limits.push("built without optimisation".into());
        }
        let mut problem = |count: u64, what: &str| {
            if count > 0 {
                self.problems.push(format!("{count} {what}"));
            }
        };
        problem(self.failed, "connections failed");
        problem(self.storm_failed, "connections of the storm failed");
        problem(self.churned - self.returned, "connections that left did not come back");
        problem(self.ended, "reading connections were ended by the server");
        problem(self.duplicates, "messages came twice");
        problem(self.disordered, "messages came out of order");
        problem(self.foreign, "messages came to connections that had not subscribed to them");
        problem(self.unexpected, "frames were neither messages nor protocol");
        // Drops of slow connections can't be told from others, so beside slow ones no reader may lack anything.
        let counted = if self.slow > 0 { 0 } else { self.drops.unwrap_or(0.0) as u64 };
        problem(self.lost.saturating_sub(counted), "messages were lost, and no drop was counted for them");
    }

    /// Field by field the median (of an even number the lower) of what `reports` say; conclusions are gathered.
    pub fn median(reports: &[Report]) -> Option<Report> {
        let values: Vec<Map<String, Value>> = reports.iter().map(Report::fields).collect();
        let mut median = values.first()?.clone();
        for (name, value) in &mut median {
            *value = median_of(&values.iter().map(|v| &v[name]).collect::<Vec<_>>());
        }
        let mut median: Report = serde_json::from_value(Value::Object(median)).expect("the shape of a report");
        let gathered = |part: fn(&Report) -> &Vec<String>| {
            let mut all: Vec<String> = reports.iter().flat_map(|r| part(r).iter().cloned()).collect();
            all.sort();
            all.dedup();
            all
        };
        median.latency = reports.iter().filter_map(|r| r.latency.clone()).reduce(|mut all, more| {
            all.add(more).expect("the same bounds");
            all
        });
        (median.limits, median.problems) = (gathered(|r| &r.limits), gathered(|r| &r.problems));
        Some(median)
    }

    /// As JSON.
    pub fn fields(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            other => unreachable!("a report is an object: {other:?}"),
        }
    }

    /// Columns of [`Report::markdown`].
    pub const MARKDOWN_HEAD: &str = "\
| load | delivered/s | p50 ms | p99 ms | max ms | lost | gateway CPU % | ns a delivery | × bare | RSS MB (B a connection) | \
published/s | client + publisher CPU % | remarks |
|---|---|---|---|---|---|---|---|---|---|---|---|---|";

    /// One row of a table.
    pub fn markdown(&self, label: &str) -> String {
        let [p50, p99, max] = [self.p50_us, self.p99_us, self.max_us].map(milliseconds);
        let (rate, cpu, each) =
            (quantity(self.deliveries_per_s), self.server_cpu_percent, self.server_cpu_ns_per_delivery);
        let ratio = self.cpu_ratio_to_bare.map_or("".into(), |r| format!("{r:.3}"));
        let idle = self.server_rss_bytes_per_connection.map_or("".into(), |b| format!(" ({b:.0})"));
        let (rss, published) = (self.server_rss_bytes_max as f64 / 1e6, quantity(self.published_per_s));
        let (client, publisher, lost) = (self.client_busy_percent, self.publisher_busy_percent, self.lost);
        let mut remarks: Vec<String> = self.metrics.iter().map(|(name, value)| format!("{name} {value}")).collect();
        if self.slow > 0 {
            let Report { slow, slow_ended, drops, .. } = self;
            remarks.push(format!("of {slow} slow {slow_ended} ended, {} drops", drops.unwrap_or(0.0)));
        }
        if self.churned > 0 {
            remarks.push(format!("{} left and came back, p99 {} ms", self.churned, milliseconds(self.return_p99_us)));
        }
        if self.storm > 0 {
            let [before, during] = [self.storm_before_p99_us, self.storm_during_p99_us].map(milliseconds);
            let (came, s) = (self.storm_subscribed, self.storm_s);
            remarks.push(format!("{came} more at once within {s:.2} s, p99 {before} ms before and {during} meanwhile"));
        }
        remarks.extend(self.limits.iter().chain(&self.problems).cloned());
        let remarks = remarks.join("; ");
        format!(
            "| {label} | {rate} | {p50} | {p99} | {max} | {lost} | {cpu:.1} | {each:.0} | {ratio} | {rss:.1}{idle} | {published} \
             | {client:.0} + {publisher:.0} | {remarks} |"
        )
    }

    /// For people: what was measured, on what, and what is wrong.
    pub fn table(&self) -> String {
        let mut t = String::new();
        let mut row = |name: &str, value: String| writeln!(t, "  {name:<12} {value}").expect("a string takes all");
        let Machine { kernel, cores, commit, .. } = &self.machine;
        let what = match self.dialect.as_str() {
            _ if self.bare => "bare send loop",
            "raw" | "nats" => "server",
            _ => "gateway",
        };
        row("measured", format!("{what}, Linux {kernel}, {cores} cores, commit {commit}, {:.1} s", self.measured_s));
        let (connections, subscribed, topics) = (self.connections, self.subscribed, self.topics);
        let speed = format!("in {:.2} s, {}/s", self.ramp_s, quantity(self.handshakes_per_s));
        row("connections", format!("{subscribed} of {connections} on {topics} topics, {speed}"));
        if self.messages > 0 {
            let pace =
                if self.rate_per_s > 0.0 { format!("{}/s open loop", self.rate_per_s) } else { "saturated".into() };
            let acknowledged =
                if self.bare { String::new() } else { format!(", {}/s acknowledged", quantity(self.published_per_s)) };
            let sent = format!("{} messages of {} B", self.messages, self.size_bytes);
            row("published", format!("{sent}, {pace}{acknowledged}, {} refused", self.refused));
            let rate = format!("{}/s, {:.1} MB/s", quantity(self.deliveries_per_s), self.megabytes_per_s);
            row("delivered", format!("{} ({rate}) to {} readers", self.deliveries, self.readers));
            let [p50, p90, p99, p999, max] =
                [self.p50_us, self.p90_us, self.p99_us, self.p999_us, self.max_us].map(milliseconds);
            row("latency ms", format!("p50 {p50}  p90 {p90}  p99 {p99}  p99.9 {p999}  max {max}"));
            let drops = self.drops.map_or(String::new(), |n| format!(", server counts {n} drops"));
            let Report { lost, lost_connections, duplicates, disordered, .. } = self;
            row(
                "checks",
                format!("lost {lost} ({lost_connections} readers), twice {duplicates}, disordered {disordered}{drops}"),
            );
        }
        for node in &self.nodes {
            let [p50, p99, p999, max] = [node.p50_us, node.p99_us, node.p999_us, node.max_us].map(milliseconds);
            let rate = quantity(node.deliveries_per_s);
            row("at a node", format!("{}: {rate}/s, ms: p50 {p50}  p99 {p99}  p99.9 {p999}  max {max}", node.address));
        }
        if self.churned > 0 {
            let [p50, p99, max] = [self.return_p50_us, self.return_p99_us, self.return_max_us].map(milliseconds);
            let (left, back) = (self.churned, self.returned);
            row(
                "churn",
                format!("{left} left, {back} came back; ms to the subscribe's answer: p50 {p50} p99 {p99} max {max}"),
            );
        }
        if self.storm > 0 {
            let Report { storm, storm_subscribed, storm_failed, storm_s, storm_client_busy_percent: busy, .. } = self;
            let times = [self.storm_p50_us, self.storm_p99_us];
            let parts = [self.storm_before_p99_us, self.storm_during_p99_us, self.storm_after_p99_us];
            let ([p50, p99], [before, during, after]) = (times.map(milliseconds), parts.map(milliseconds));
            row(
                "storm",
                format!(
                    "{storm_subscribed} of {storm} subscribed and {storm_failed} failed within {storm_s:.2} s, ms: p50 {p50} p99 {p99}; \
                     client {busy:.0} % busy"
                ),
            );
            row("", format!("p99 ms of the others' messages: before {before}, meanwhile {during}, afterwards {after}"));
        }
        if self.slow > 0 {
            let Report { slow, slow_ended, slow_open, slow_received, .. } = self;
            row(
                "slow",
                format!("{slow}: {slow_ended} ended by the server, {slow_open} open; had {slow_received} messages"),
            );
        }
        if self.server_watched {
            let each = if self.deliveries > 0 {
                format!(", {:.0} ns a delivery", self.server_cpu_ns_per_delivery)
            } else {
                String::new()
            };
            let (cpu, softirqd) = (self.server_cpu_percent, self.server_softirqd_percent);
            let (rss, most) = (self.server_rss_bytes as f64 / 1e6, self.server_rss_bytes_max as f64 / 1e6);
            row(
                "server",
                format!("CPU {cpu:.1} % (ksoftirqd {softirqd:.1}){each}; RSS {rss:.1} MB, at most {most:.1} MB"),
            );
        }
        let tcp = self.kernel_tcp_bytes.map_or("unknown".into(), |bytes| format!("{:+.1} MB", bytes / 1e6));
        row(
            "kernel",
            match (self.kernel_slab_bytes, self.kernel_bytes_per_connection) {
                (Some(slab), Some(each)) => {
                    format!(
                        "slabs {:+.1} MB ({each:.0} B a connection, all ends on this machine), TCP buffers {tcp}",
                        slab / 1e6
                    )
                }
                _ => format!("slabs unknown: /proc/slabinfo is for root; TCP buffers {tcp}"),
            },
        );
        if let Some(bytes) = self.server_rss_bytes_per_connection {
            row("idle", format!("{bytes:.0} B of server RSS a connection beyond the first thousand"));
        }
        let (client, each) = (self.client_busy_percent, self.client_cpu_ns_per_delivery);
        let each = if self.deliveries > 0 { format!(" ({each:.0} ns a delivery)") } else { String::new() };
        let late = [self.publisher_late_p99_us, self.publisher_late_max_us].map(milliseconds);
        let publisher = if self.bare || self.messages == 0 {
            String::new()
        } else {
            format!(", publisher {:.1} %, late p99 {} max {} ms", self.publisher_busy_percent, late[0], late[1])
        };
        row("client", format!("CPU {client:.1} %{each}{publisher}"));
        if let Some(ratio) = self.cpu_ratio_to_bare {
            row("to bare", format!("{ratio:.3} × the CPU a delivery of a bare send loop"));
        }
        self.metrics.iter().for_each(|(name, value)| row("metric", format!("{name} {value}")));
        self.reasons.iter().for_each(|(reason, n)| row("because", format!("{n} × {reason}")));
        self.limits.iter().for_each(|limit| row("LIMIT", limit.clone()));
        self.problems.iter().for_each(|problem| row("PROBLEM", problem.clone()));
        t
    }
}

fn milliseconds(us: u64) -> String {
    match us {
        0..10_000 => format!("{:.2}", us as f64 / 1e3),
        10_000..100_000 => format!("{:.1}", us as f64 / 1e3),
        _ => format!("{:.0}", us as f64 / 1e3),
    }
}

fn quantity(n: f64) -> String {
    match n {
        1e6.. => format!("{:.2} M", n / 1e6),
        1e4.. => format!("{:.1} k", n / 1e3),
        _ => format!("{n:.0}"),
    }
}

/// `FIELD<VALUE` or `FIELD>VALUE`: a run of which this is true has failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    text: String,
    name: String,
    above: bool,
    value: f64,
    unit_ns: Option<f64>, // Of `value`, if it is a time.
}

impl Condition {
    /// Understands `p99>50ms`, `deliveries_per_s<8M`, `lost>0`. A field may be named without its unit; units are ns, us, ms,
    /// s, k, M, %.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Condition, String> {
        let at = text.find(['<', '>']).ok_or("it must have the form p99>50ms")?;
        let (name, value) = (text[..at].trim().replace("p99.9", "p999"), text[at + 1..].trim());
        let digits = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(value.len());
        let number: f64 = value[..digits].parse().map_err(|_| format!("{value:?} is not a number with a unit"))?;
        let (factor, unit_ns) = match &value[digits..] {
            "" | "%" => (1.0, None),
            "k" => (1e3, None),
            "M" => (1e6, None),
            "ns" => (1.0, Some(1.0)),
            "us" => (1.0, Some(1e3)),
            "ms" => (1.0, Some(1e6)),
            "s" => (1.0, Some(1e9)),
            other => return Err(format!("unknown unit {other:?}: ns, us, ms, s, k, M or %")),
        };
        Ok(Condition { text: text.into(), name, above: text.as_bytes()[at] == b'>', value: number * factor, unit_ns })
    }

    /// Says what is wrong if `report` meets it.
    ///
    /// # Errors
    /// No number of that name is in the report.
    pub fn check(&self, report: &Report) -> Result<Option<String>, String> {
        let fields = report.fields();
        // As it stands, or without the unit.
        let units = ["", "_us", "_s", "_per_s", "_percent", "_bytes", "_ns_per_delivery"];
        let named = units.iter().find_map(|unit| {
            let name = format!("{}{unit}", self.name);
            Some((fields.get(&name)?.as_f64()?, own_unit_ns(&name)))
        });
        let metric = || report.metrics.get(&self.name).map(|value| (*value, 1e9)); // Prometheus counts in seconds.
        let Some((found, own_ns)) = named.or_else(metric) else {
            let names: Vec<&str> = fields.iter().filter(|(_, v)| v.is_number()).map(|(k, _)| k.as_str()).collect();
            return Err(format!("--fail-if {}: no such figure; there are {}", self.text, names.join(", ")));
        };
        let value = self.unit_ns.map_or(self.value, |unit_ns| self.value * unit_ns / own_ns);
        let met = if self.above { found > value } else { found < value };
        Ok(met.then(|| format!("{}: it is {found}", self.text)))
    }
}

fn own_unit_ns(field: &str) -> f64 {
    match () {
        () if field.contains("_us") => 1e3,
        () if field.contains("_ns") => 1.0,
        () => 1e9,
    }
}

/// Of numbers the median (of an even number the lower), of lists of objects member by member; else what the first one says.
fn median_of(values: &[&Value]) -> Value {
    let mut numbers: Vec<&Value> = values.iter().copied().filter(|v| v.is_number()).collect();
    if !numbers.is_empty() {
        let number = |v: &&Value| v.as_f64().expect("filtered above");
        numbers.sort_by(|a, b| number(a).total_cmp(&number(b)));
        return numbers[(numbers.len() - 1) / 2].clone();
    }
    let member = |i: usize, name: &String| {
        let of_all: Vec<&Value> = values.iter().filter_map(|v| v.get(i)?.get(name)).collect();
        (name.clone(), median_of(&of_all))
    };
    let entry = |(i, entry): (usize, &Value)| match entry {
        Value::Object(fields) => Value::Object(fields.keys().map(|name| member(i, name)).collect()),
        other => other.clone(),
    };
    match values[0] {
        Value::Array(entries) => Value::Array(entries.iter().enumerate().map(entry).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let fields = r#"{
            "machine": {"kernel": "6.1", "cores": 2, "commit": "abc", "release": true}, "bare": false, "connections": 10, "topics": 1, "rate_per_s": 10.0, "size_bytes": 128,
            "deflate": false, "subscribed": 10, "failed": 0, "ramp_s": 0.5, "handshakes_per_s": 20.0,
            "server_cpu_ns_per_handshake": 9000.0, "measured_s": 5.0,
            "messages": 50, "refused": 0, "published_per_s": 10.0, "deliveries": 500, "deliveries_per_s": 100.0,
            "megabytes_per_s": 0.1, "p50_us": 300, "p90_us": 500, "p99_us": 40000, "p999_us": 50000, "max_us": 60000,
            "mean_us": 400.5, "received": 500, "lost": 0, "lost_connections": 0, "duplicates": 0, "disordered": 0,
            "foreign": 0, "unexpected": 0, "ended": 0, "readers": 10, "slow": 0, "slow_ended": 0, "slow_open": 0,
            "slow_received": 0, "drops": null, "server_watched": true, "server_cpu_percent": 30.0,
            "server_cpu_ns_per_delivery": 2500.0, "server_softirqd_percent": 0.0, "server_rss_bytes": 1000,
            "server_rss_bytes_max": 1000, "server_rss_bytes_per_connection": null, "cpu_ratio_to_bare": null, "client_busy_percent": 20.0,
            "client_cpu_ns_per_delivery": 1000.0, "publisher_busy_percent": 5.0, "publisher_late_p99_us": 100,
            "publisher_late_max_us": 900, "metrics": {"owed_bytes": 77.0}, "reasons": {}, "limits": [], "problems": []
        }"#;
        serde_json::from_str(fields).unwrap()
    }

    #[test]
    fn conditions_compare_in_the_unit_of_their_figure() {
        for (text, met) in [
            ("p99>50ms", false),
            ("p99>39ms", true),
            ("p99_us>39000", true),
            ("p99.9<1s", true),
            ("server_cpu>25%", true),
            ("server_cpu_ns_per_delivery>2us", true),
            ("deliveries_per_s<8M", true),
            ("deliveries<0.4k", false),
            ("owed_bytes>76", true),
            ("lost>0", false),
        ] {
            let condition = Condition::parse(text).unwrap();
            assert_eq!(condition.check(&report()).unwrap().is_some(), met, "{text}");
        }
        for wrong in ["p99", "p99>", "p99>fast", "p99>5 parsecs"] {
            assert!(Condition::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Condition::parse("speed>1").unwrap().check(&report()).unwrap_err().contains("deliveries_per_s"));
    }

    #[test]
    fn a_loss_is_excused_only_by_drops_that_the_server_counted_for_readers() {
        let problems = |change: fn(&mut Report)| {
            let mut report = report();
            change(&mut report);
            report.judge(true);
            report.problems
        };
        assert!(problems(|_| ()).is_empty());
        assert!(!problems(|r| r.lost = 1).is_empty());
        assert!(problems(|r| (r.lost, r.drops) = (5, Some(5.0))).is_empty());
        assert!(!problems(|r| (r.lost, r.drops) = (6, Some(5.0))).is_empty());
        assert!(!problems(|r| (r.lost, r.drops, r.slow) = (5, Some(5.0), 1)).is_empty());
        for change in [
            (|r| r.duplicates = 1) as fn(&mut Report),
            |r| r.disordered = 1,
            |r| r.foreign = 1,
            |r| r.failed = 1,
            |r| r.ended = 1,
            |r| r.unexpected = 1,
        ] {
            assert_eq!(problems(change).len(), 1);
        }
    }

    #[test]
    fn a_busy_client_and_a_late_publisher_are_said_to_be_the_limit() {
        let limits = |one_core: bool, change: fn(&mut Report)| {
            let mut report = report();
            change(&mut report);
            report.judge(one_core);
            report.limits.len()
        };
        assert_eq!(limits(true, |_| ()), 0);
        assert_eq!(limits(false, |r| r.client_busy_percent = 95.0), 1);
        assert_eq!(limits(true, |r| (r.client_busy_percent, r.publisher_busy_percent) = (80.0, 16.0)), 1);
        assert_eq!(limits(false, |r| (r.client_busy_percent, r.publisher_busy_percent) = (80.0, 16.0)), 0);
        assert_eq!(limits(true, |r| r.publisher_late_p99_us = 5001), 1);
    }

    #[test]
    fn a_median_is_taken_field_by_field() {
        let mut reports = [report(), report(), report()];
        (reports[0].p99_us, reports[1].p99_us, reports[2].p99_us) = (3, 1, 2);
        (reports[0].lost, reports[2].lost) = (7, 9);
        reports[1].problems.push("one".into());
        let median = Report::median(&reports).unwrap();
        assert_eq!((median.p99_us, median.lost, median.problems.len()), (2, 7, 1));
        assert_eq!(Report::median(&reports[..2]).unwrap().p99_us, 1);
        assert!(Report::median(&[]).is_none());
    }
}
