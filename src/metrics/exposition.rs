//! The cells as `/metrics` shows them: OpenMetrics text, one family after the other, all shards within each.

use super::process::Process;
use super::{AcceptMetrics, Cell, ClusterMetrics, ControlMetrics, Reading, ShardMetrics};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use std::fmt;
use std::sync::Arc;

/// Prefix of all names but those of gpush and of the process.
const PREFIX: &str = "fanwire";

type Labels = Vec<(&'static str, String)>;
type Depth = dyn Fn() -> (usize, usize) + Send + Sync;

/// All that `/metrics` shows. Cloning shares the cells.
#[derive(Clone)]
pub struct Registry {
    shards: Vec<Arc<ShardMetrics>>,
    accept: Arc<AcceptMetrics>,
    control: Arc<ControlMetrics>,
    cluster: Arc<ClusterMetrics>,
    queues: Vec<Queue>,
    /// Resident memory of the process before its first client.
    base_bytes: u64,
}

#[derive(Clone)]
struct Queue {
    name: &'static str,
    shard: usize,
    depth: Arc<Depth>,
}

impl Registry {
    /// `Content-Type` of what [`Registry::render`] returns.
    pub const CONTENT_TYPE: &'static str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// Of these cells; a shard's place in the list is its number. Made when the shards are and no client is: what the process has then
    /// is not the connections'.
    pub fn new(shards: Vec<Arc<ShardMetrics>>, accept: Arc<AcceptMetrics>, control: Arc<ControlMetrics>) -> Registry {
        let base_bytes = Process::read().map_or(0, |process| process.resident_bytes);
        Registry { shards, accept, control, cluster: Arc::default(), queues: Vec::new(), base_bytes }
    }

    /// What this node's part of a cluster counts; without one all of it is 0.
    pub fn cluster(&self) -> &Arc<ClusterMetrics> {
        &self.cluster
    }

    /// Shows a queue to or from `shard`: `depth` says how many items and bytes are in it and is called once per render, on
    /// the rendering thread. A queue is known by `name` and `shard` together.
    pub fn register_queue(&mut self, name: &'static str, shard: usize, depth: Box<Depth>) {
        debug_assert!(
            !self.queues.iter().any(|q| (q.name, q.shard) == (name, shard)),
            "{name} of {shard} is there already"
        );
        self.queues.push(Queue { name, shard, depth: Arc::from(depth) });
    }

    /// The whole text, about 100 µs and 25 µs more a shard. Locks nothing: cells are read while their owners write them, so
    /// that two of them may be a moment apart.
    pub fn render(&self) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(self.clone()));
        let mut text = String::with_capacity(16_384 * (self.shards.len() + 1));
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("writing to a string can't fail");
        text
    }

    /// gpush's four, by its exact names.
    fn encode_gpush(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let sum = |of: fn(&ShardMetrics) -> u64| self.shards.iter().map(|s| of(s)).sum::<u64>();
        gauge(encoder, "websocket_current_connections", "Connections now.", sum(|s| s.websockets.get()))?;
        // As a counter it would have to end in _total.
        encoder
            .encode_descriptor("websocket_total_connections", "Handshakes answered 101.", None, MetricType::Unknown)?
            .encode_gauge(&sum(|s| s.handshakes_ok.get()))?;
        counter(encoder, "websocket_bytes_sent", "Bytes of completed sends.", sum(|s| s.bytes_sent.get()))?;
        counter(encoder, "websocket_messages_sent", "Messages sent, per subscriber.", sum(|s| s.deliveries.get()))
    }

    /// What connections cost this process, all that was not there before the first of them divided by their number.
    fn encode_memory(&self, encoder: &mut DescriptorEncoder<'_>, resident_bytes: u64) -> fmt::Result {
        let connections = self.shards.iter().map(|s| s.connections.get()).sum();
        gauge(
            encoder,
            "fanwire_base_memory_bytes",
            "Resident memory at the start, before the first client.",
            self.base_bytes,
        )?;
        gauge(
            encoder,
            "fanwire_bytes_per_connection",
            "Resident memory beyond the base, divided by connections now: their state, topics, batches and backlog, and what the \
             allocator keeps of those that are gone. Not the kernel's sockets. Means little below some thousand connections.",
            bytes_per_connection(resident_bytes, self.base_bytes, connections),
        )
    }

    fn encode_queues(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let depths: Vec<_> = self
            .queues
            .iter()
            .map(|q| (vec![("queue", q.name.to_owned()), ("shard", q.shard.to_string())], (q.depth)()))
            .collect();
        let mut items = encoder.encode_descriptor(
            "fanwire_queue_items",
            "Items in a queue between two cores.",
            None,
            MetricType::Gauge,
        )?;
        for (labels, (n, _)) in &depths {
            items.encode_family(labels)?.encode_gauge(n)?;
        }
        let mut bytes = encoder.encode_descriptor(
            "fanwire_queue_bytes",
            "Frame bytes in a queue between two cores.",
            None,
            MetricType::Gauge,
        )?;
        for (labels, (_, n)) in &depths {
            bytes.encode_family(labels)?.encode_gauge(n)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("shards", &self.shards.len()).field("queues", &self.queues.len()).finish()
    }
}

impl Collector for Registry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let shards = self.shards.iter().enumerate();
        encode_cells(&mut encoder, shards.map(|(i, s)| (vec![("shard", i.to_string())], s.cells())).collect())?;
        encode_cells(&mut encoder, vec![(Vec::new(), self.accept.cells())])?;
        encode_cells(&mut encoder, vec![(Vec::new(), self.control.cells())])?;
        encode_cells(&mut encoder, vec![(Vec::new(), self.cluster.cells())])?;
        self.encode_queues(&mut encoder)?;
        self.encode_gpush(&mut encoder)?;
        encoder
            .encode_descriptor("fanwire_build", "Version of this gateway.", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        match Process::read() {
            Some(process) => {
                self.encode_memory(&mut encoder, process.resident_bytes)?;
                encode_process(&mut encoder, process)
            }
            None => Ok(()),
        }
    }
}

/// The same cells of several owners, each with the owner's labels: family by family, since a family must not be torn.
fn encode_cells(encoder: &mut DescriptorEncoder<'_>, owners: Vec<(Labels, Vec<Cell<'_>>)>) -> fmt::Result {
    let Some((_, pattern)) = owners.first() else { return Ok(()) };
    let mut start = 0;
    for family in pattern.chunk_by(|a, b| a.family == b.family) {
        let name = format!("{PREFIX}_{}", family[0].family);
        let mut metric = encoder.encode_descriptor(&name, &help(family), None, kind(family[0].value))?;
        for (labels, cells) in &owners {
            for cell in &cells[start..start + family.len()] {
                let own = cell.label.map(|(key, value)| (key, value.to_owned()));
                let labels: Labels = labels.iter().cloned().chain(own).collect();
                if labels.is_empty() {
                    encode_reading(&mut metric, cell.value)?;
                } else {
                    encode_reading(&mut metric.encode_family(&labels)?, cell.value)?;
                }
            }
        }
        start += family.len();
    }
    Ok(())
}

/// A family whose cells have one doc comment is explained by it, another by all of theirs.
fn help(family: &[Cell<'_>]) -> String {
    if family.iter().all(|cell| cell.help == family[0].help) {
        return family[0].help.trim().to_owned();
    }
    let each = family.iter().map(|cell| match cell.label {
        Some((label, value)) => format!("{label}={value}: {}", cell.help.trim()),
        None => cell.help.trim().to_owned(),
    });
    each.collect::<Vec<_>>().join(" ")
}

fn kind(reading: Reading<'_>) -> MetricType {
    match reading {
        Reading::Counter(_) => MetricType::Counter,
        Reading::Gauge(_) => MetricType::Gauge,
        Reading::Histogram(_) => MetricType::Histogram,
    }
}

fn encode_reading(metric: &mut MetricEncoder<'_>, reading: Reading<'_>) -> fmt::Result {
    match reading {
        Reading::Counter(cell) => metric.encode_counter::<NoLabelSet, _, u64>(&cell.get(), None),
        Reading::Gauge(cell) => metric.encode_gauge(&cell.get()),
        Reading::Histogram(cell) => {
            let (buckets, sum) = cell.counts();
            // The count is the sum of the buckets just read: one kept apart could be a moment ahead of them.
            let count = buckets.iter().map(|(_, n)| n).sum();
            metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        }
    }
}

/// 0 without connections.
fn bytes_per_connection(resident_bytes: u64, base_bytes: u64, connections: u64) -> u64 {
    resident_bytes.saturating_sub(base_bytes).checked_div(connections).unwrap_or(0)
}

/// By the names every Prometheus client library uses.
fn encode_process(encoder: &mut DescriptorEncoder<'_>, process: Process) -> fmt::Result {
    gauge(encoder, "process_resident_memory_bytes", "Resident memory.", process.resident_bytes)?;
    gauge(encoder, "process_virtual_memory_bytes", "Virtual memory.", process.virtual_bytes)?;
    gauge(
        encoder,
        "process_open_fds",
        "Open file descriptors; sockets of subscribers live in the rings' own tables.",
        process.open_fds,
    )?;
    gauge(encoder, "process_max_fds", "RLIMIT_NOFILE: also the bound of each ring's own table.", process.max_fds)?;
    gauge(encoder, "process_threads", "Threads.", process.threads)?;
    encoder
        .encode_descriptor("process_cpu_seconds", "CPU time, user and system.", None, MetricType::Counter)?
        .encode_counter::<NoLabelSet, _, u64>(&process.cpu_seconds, None)?;
    encoder
        .encode_descriptor(
            "process_start_time_seconds",
            "Start, in seconds of the Unix epoch.",
            None,
            MetricType::Gauge,
        )?
        .encode_gauge(&process.start_seconds)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

/// The encoder appends `_total` to `name`.
fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Counter)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Histogram;
    use std::collections::{BTreeMap, BTreeSet, HashMap};

    /// Samples by `name{labels}`, and the type of each family, or what breaks the grammar of OpenMetrics 1.0.
    type Parsed = (HashMap<String, f64>, BTreeMap<String, String>);

    fn parse(text: &str) -> Result<Parsed, String> {
        let is_name = |s: &str| {
            !s.is_empty()
                && !s.starts_with(|c: char| c.is_ascii_digit())
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':'))
        };
        let body = text.strip_suffix("# EOF\n").ok_or("no end marker")?;
        let (mut samples, mut types, mut helps) = (HashMap::new(), BTreeMap::new(), BTreeSet::new());
        let mut family = String::new();
        for line in body.split_terminator('\n') {
            let wrong = |what: &str| format!("{what}: {line}");
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').ok_or_else(|| wrong("no help"))?;
                if !is_name(name) || help.contains(['\\', '"']) || !helps.insert(name.to_owned()) {
                    return Err(wrong("name or text, or a family that comes twice"));
                }
                family = name.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("no type"))?;
                let known = ["counter", "gauge", "histogram", "info", "unknown"].contains(&kind);
                if name != family || !known || types.insert(name.to_owned(), kind.to_owned()).is_some() {
                    return Err(wrong("type"));
                }
            } else {
                let (series, value) = line.rsplit_once(' ').ok_or_else(|| wrong("no value"))?;
                let (name, labels) = match series.split_once('{') {
                    Some((name, labels)) => (name, labels.strip_suffix('}').ok_or_else(|| wrong("open labels"))?),
                    None => (series, ""),
                };
                let kind = types.get(&family).ok_or_else(|| wrong("no type before it"))?;
                let suffix = name.strip_prefix(&family).ok_or_else(|| wrong("outside its family"))?;
                let suffixes: &[&str] = match kind.as_str() {
                    "counter" => &["_total"],
                    "histogram" => &["_bucket", "_sum", "_count"],
                    "info" => &["_info"],
                    _ => &[""],
                };
                let mut seen = BTreeSet::new();
                for label in labels.split(',').filter(|l| !l.is_empty()) {
                    let (key, value) = label.split_once('=').ok_or_else(|| wrong("label"))?;
                    let value =
                        value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).ok_or_else(|| wrong("quotes"))?;
                    if !is_name(key) || value.is_empty() || value.contains(['"', '\\']) || !seen.insert(key) {
                        return Err(wrong("label"));
                    }
                }
                let value: f64 = value.parse().map_err(|_| wrong("value"))?;
                if !is_name(name) || !suffixes.contains(&suffix) || samples.insert(series.to_owned(), value).is_some() {
                    return Err(wrong("sample"));
                }
            }
        }
        Ok((samples, types))
    }

    fn registry(shards: usize) -> Registry {
        let shards = (0..shards).map(|_| Arc::default()).collect();
        Registry::new(shards, Arc::default(), Arc::default())
    }

    #[test]
    fn the_parser_of_this_test_is_strict() {
        let good = "# HELP a Help.\n# TYPE a counter\na_total{x=\"1\"} 1\n# EOF\n";
        assert_eq!(parse(good).unwrap().0["a_total{x=\"1\"}"], 1.0);
        for (from, to) in [
            ("# EOF\n", ""),
            ("a_total", "a"),
            ("a_total", "b_total"),
            (" 1\n", " one\n"),
            ("counter", "meter"),
            ("\"1\"}", "1}"),
            ("}", ""),
            ("# TYPE a counter\n", ""),
            ("a_total{x=\"1\"} 1\n", "a_total{x=\"1\"} 1\na_total{x=\"1\"} 1\n"),
            ("# EOF", "# HELP a Again.\n# EOF"),
        ] {
            assert!(parse(&good.replacen(from, to, 1)).is_err(), "{from:?} → {to:?} must not pass");
        }
    }

    #[test]
    fn every_cell_is_there_with_its_value() {
        let registry = registry(3);
        // A value of its own for each cell of each owner.
        let mut next = 0;
        let mut expected = Vec::new();
        let mut fill = |cells: Vec<Cell<'_>>, shard: Option<usize>| {
            for cell in cells {
                next += 1;
                let suffix = match cell.value {
                    Reading::Counter(c) => {
                        c.add(next);
                        "_total"
                    }
                    Reading::Gauge(g) => {
                        g.set(next);
                        ""
                    }
                    Reading::Histogram(h) => {
                        h.record_many_ns(5_000, next);
                        "_count"
                    }
                };
                let shard = shard.map(|i| format!("shard=\"{i}\""));
                let label = cell.label.map(|(k, v)| format!("{k}=\"{v}\""));
                let labels: Vec<_> = shard.into_iter().chain(label).collect();
                let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
                expected.push((format!("fanwire_{}{suffix}{labels}", cell.family), next as f64));
            }
        };
        for (i, shard) in registry.shards.iter().enumerate() {
            fill(shard.cells(), Some(i));
        }
        fill(registry.accept.cells(), None);
        fill(registry.control.cells(), None);
        let (samples, _) = parse(&registry.render()).unwrap();
        for (series, value) in &expected {
            assert_eq!(samples.get(series), Some(value), "{series}");
        }
        let distinct: BTreeSet<_> = expected.iter().map(|(series, _)| series).collect();
        assert_eq!(distinct.len(), expected.len());
        for series in [
            "fanwire_connections{shard=\"0\"}",
            "fanwire_handshakes_total{shard=\"2\",result=\"timed_out\"}",
            "fanwire_drops_total{shard=\"1\",reason=\"pending_full\"}",
            "fanwire_closes_total{shard=\"1\",reason=\"slow_deadline\"}",
            "fanwire_publications_total",
            "fanwire_publications_refused_total{reason=\"full\"}",
            "fanwire_connections_refused_total{reason=\"rate\"}",
            "fanwire_owed_bytes_peak{shard=\"0\"}",
        ] {
            assert!(samples.contains_key(series), "{series}");
        }
    }

    #[test]
    fn gpush_finds_its_four_by_their_exact_names() {
        let registry = registry(2);
        for (i, shard) in (1..).zip(&registry.shards) {
            shard.websockets.set(10 * i);
            shard.handshakes_ok.add(100 * i);
            shard.bytes_sent.add(1000 * i);
            shard.deliveries.add(10_000 * i);
        }
        let (samples, types) = parse(&registry.render()).unwrap();
        assert_eq!(samples["websocket_current_connections"], 30.0);
        assert_eq!(samples["websocket_total_connections"], 300.0);
        assert_eq!(samples["websocket_bytes_sent_total"], 3000.0);
        assert_eq!(samples["websocket_messages_sent_total"], 30_000.0);
        assert_eq!(types["websocket_current_connections"], "gauge");
        assert_eq!(types["websocket_bytes_sent"], "counter");
    }

    #[test]
    fn histograms_accumulate_up_to_infinity() {
        let registry = registry(1);
        let rounds = &registry.shards[0].flush_round;
        rounds.record_ns(500); // Below 1 µs.
        rounds.record_many_ns(3_000, 2); // Below 4 µs.
        rounds.record_ns(60_000_000_000); // Beyond the last bound.
        let (samples, types) = parse(&registry.render()).unwrap();
        let bucket = |le: &str| {
            let series = format!("fanwire_flush_round_seconds_bucket{{le=\"{le}\",shard=\"0\"}}");
            *samples.get(&series).unwrap_or_else(|| panic!("no {series}"))
        };
        assert_eq!(types["fanwire_flush_round_seconds"], "histogram");
        assert_eq!(
            [bucket("0.000001"), bucket("0.000002"), bucket("0.000004"), bucket("16.777216"), bucket("+Inf")],
            [1.0, 1.0, 3.0, 3.0, 4.0]
        );
        assert_eq!(samples["fanwire_flush_round_seconds_count{shard=\"0\"}"], 4.0);
        assert_eq!(samples["fanwire_flush_round_seconds_sum{shard=\"0\"}"], 60.000006);
        let buckets = samples.keys().filter(|s| s.starts_with("fanwire_flush_round_seconds_bucket")).count();
        assert_eq!(buckets, Histogram::BUCKETS);
    }

    #[test]
    fn memory_beyond_the_base_is_shared_by_the_connections() {
        assert_eq!(bytes_per_connection(12_720_000, 10_000_000, 10_000), 272);
        assert_eq!(bytes_per_connection(12_720_000, 10_000_000, 0), 0);
        assert_eq!(bytes_per_connection(9_000_000, 10_000_000, 10), 0, "less than at the start");
        let registry = registry(2);
        let memory = std::hint::black_box(vec![1u8; 256 << 20]); // Other tests come and go with 64.
        registry.shards.iter().for_each(|shard| shard.connections.set(1000));
        let (samples, types) = parse(&registry.render()).unwrap();
        drop(std::hint::black_box(memory));
        assert_eq!(types["fanwire_bytes_per_connection"], "gauge");
        assert!(samples["fanwire_base_memory_bytes"] > 1e6);
        assert!((80_000.0..300_000.0).contains(&samples["fanwire_bytes_per_connection"]), "{samples:?}");
    }

    #[test]
    fn queues_are_asked_at_each_render() {
        let mut registry = registry(1);
        let depth = Arc::new(super::super::Gauge::default());
        let seen = depth.clone();
        registry.register_queue("to_shard", 0, Box::new(move || (seen.get() as usize, 100 * seen.get() as usize)));
        registry.register_queue("from_shard", 0, Box::new(|| (1, 2)));
        for items in [3, 7] {
            depth.set(items);
            let (samples, _) = parse(&registry.render()).unwrap();
            assert_eq!(samples["fanwire_queue_items{queue=\"to_shard\",shard=\"0\"}"], items as f64);
            assert_eq!(samples["fanwire_queue_bytes{queue=\"to_shard\",shard=\"0\"}"], 100.0 * items as f64);
            assert_eq!(samples["fanwire_queue_bytes{queue=\"from_shard\",shard=\"0\"}"], 2.0);
        }
    }

    #[test]
    fn the_process_and_the_build_are_shown() {
        let (samples, types) = parse(&registry(0).render()).unwrap();
        assert_eq!(samples[&format!("fanwire_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))], 1.0);
        assert_eq!(types["process_cpu_seconds"], "counter");
        for series in ["process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"] {
            assert!(samples[series] > 0.0, "{series}");
        }
        assert!(samples.contains_key("process_cpu_seconds_total"));
    }
}
