//! What a core counts: plain cells with one writer, read by whoever renders `/metrics`.
//!
//! A [`Counter`] is an `AtomicU64` written by a relaxed load and store, not by a read-modify-write: for its only writer it
//! costs what a plain integer costs, and any reader sees some recent value.
//!
//! Each cell stands next to the name it has in `/metrics`, so that none can be forgotten there; [`Registry`] renders them.

mod exposition;
mod process;

pub use exposition::Registry;

use std::sync::atomic::{AtomicU64, Ordering};

/// Grows only. One writing thread.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning thread may call it; two writers would lose counts, not memory safety.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Its value, some moment ago.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Goes up and down. One writing thread.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets it.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds `n`, which may be less than zero. Only the owning thread may call it.
    pub fn change(&self, n: i64) {
        self.0.store(self.get().wrapping_add_signed(n), Ordering::Relaxed);
    }

    /// Its value, some moment ago.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Durations in buckets of powers of two microseconds: bucket `i` counts those below `2^i` µs, the last all others.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; Histogram::BUCKETS],
    sum_us: Counter,
}

impl Histogram {
    /// 1 µs to 16.8 s.
    pub const BUCKETS: usize = 26;

    /// Counts one duration.
    #[inline]
    pub fn record_ns(&self, ns: u64) {
        self.record_many_ns(ns, 1);
    }

    /// Counts `n` equal durations.
    #[inline]
    pub fn record_many_ns(&self, ns: u64, n: u64) {
        let us = ns / 1000;
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        self.buckets[bucket.min(Self::BUCKETS - 1)].add(n);
        self.sum_us.add(us * n);
    }

    /// (upper bound in seconds, cumulative count) per bucket, the last unbounded; and the sum in seconds.
    pub fn snapshot(&self) -> (Vec<(f64, u64)>, f64) {
        let mut total = 0;
        let (mut buckets, sum) = self.counts();
        for (_, count) in &mut buckets {
            total += *count;
            *count = total;
        }
        (buckets, sum)
    }

    /// As [`Histogram::snapshot`], but each bucket counts only what is in it.
    fn counts(&self) -> (Vec<(f64, u64)>, f64) {
        let bound = |i| if i + 1 == Self::BUCKETS { f64::INFINITY } else { (1u64 << i) as f64 / 1e6 };
        let buckets = self.buckets.iter().enumerate().map(|(i, c)| (bound(i), c.get())).collect();
        (buckets, self.sum_us.get() as f64 / 1e6)
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: std::array::from_fn(|_| Counter::default()), sum_us: Counter::default() }
    }
}

/// Names of the families of clients, in the order in which [`ByDialect`] counts them.
pub const DIALECTS: [&str; 5] = ["gpush", "echo", "centrifugo", "go-push", "demo"];

/// A cell for each of [`DIALECTS`], told apart by the label `dialect`.
pub type ByDialect<T> = [T; DIALECTS.len()];

/// One cell with its name in `/metrics`.
struct Cell<'a> {
    /// Name without prefix and suffix.
    family: &'static str,
    /// What tells it from the other cells of its family.
    label: Option<(&'static str, &'static str)>,
    /// Its doc comment.
    help: &'static str,
    value: Reading<'a>,
}

/// A cell by its kind.
#[derive(Clone, Copy)]
enum Reading<'a> {
    Counter(&'a Counter),
    Gauge(&'a Gauge),
    Histogram(&'a Histogram),
}

/// What `/metrics` shows of a field: one cell, or several of one family.
trait Readings {
    fn readings(&self) -> impl Iterator<Item = (Option<(&'static str, &'static str)>, Reading<'_>)>;
}

macro_rules! single {
    ($($kind:ident),*) => {
        $(impl Readings for $kind {
            fn readings(&self) -> impl Iterator<Item = (Option<(&'static str, &'static str)>, Reading<'_>)> {
                std::iter::once((None, Reading::$kind(self)))
            }
        })*
    };
}
single!(Counter, Gauge, Histogram);

impl<T: Readings> Readings for ByDialect<T> {
    fn readings(&self) -> impl Iterator<Item = (Option<(&'static str, &'static str)>, Reading<'_>)> {
        let named = self.iter().zip(DIALECTS);
        named.flat_map(|(cells, dialect)| cells.readings().map(move |(_, cell)| (Some(("dialect", dialect)), cell)))
    }
}

macro_rules! cells {
    ($(#[$doc:meta])* $name:ident {
        $($(#[doc = $help:literal])+ $field:ident: $kind:ty = $family:literal $({ $label:ident: $value:literal })?,)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        #[repr(align(128))] // A core's cells share no cache line with another core's.
        pub struct $name { $($(#[doc = $help])+ pub $field: $kind,)* }

        impl $name {
            /// All of them, those of one family next to one another.
            fn cells(&self) -> Vec<Cell<'_>> {
                let mut cells = Vec::new();
                $(cells.extend(self.$field.readings().map(|(own, value)| Cell {
                    family: $family,
                    label: own$(.or(Some((stringify!($label), $value))))?,
                    help: concat!($($help),+),
                    value,
                }));)*
                cells
            }
        }
    };
}

cells! {
    /// What one shard counts.
    ShardMetrics {
        /// Connections that own a slot now, handshakes under way included.
        connections: Gauge = "connections",
        /// Connections that had their 101 and are not gone.
        websockets: Gauge = "websockets",
        /// Sockets handed over to this shard.
        arrivals: Counter = "arrivals",
        /// Handshakes answered 101.
        handshakes_ok: Counter = "handshakes" { result: "ok" },
        /// Handshakes answered 4xx or 5xx.
        handshakes_rejected: Counter = "handshakes" { result: "rejected" },
        /// Handshakes cut at `handshake_deadline_ms`.
        handshakes_timed_out: Counter = "handshakes" { result: "timed_out" },
        /// Clients that left before their handshake was done.
        handshakes_abandoned: Counter = "handshakes" { result: "abandoned" },
        /// Handshakes answered 403: pages of an `Origin` that `allowed_origins` does not have.
        origins_refused: Counter = "origins_refused",
        /// Cut: what a trusted proxy sent first was no PROXY protocol header.
        proxy_headers_refused: Counter = "proxy_headers_refused",
        /// Plain pages answered.
        pages: Counter = "pages",
        /// Messages handed to the kernel for a subscriber, each counted once per subscriber.
        deliveries: Counter = "deliveries",
        /// Bytes of completed sends.
        bytes_sent: Counter = "sent_bytes",
        /// Bytes received.
        bytes_received: Counter = "received_bytes",
        /// Messages received from clients.
        messages_received: Counter = "received_messages",
        /// Completed sends.
        sends: Counter = "sends",
        /// Messages not delivered: the subscriber's `pending_bytes_max` was reached (policy `drop`).
        drops_pending_full: Counter = "drops" { reason: "pending_full" },
        /// Messages not delivered: the subscriber was disconnected with them pending.
        drops_disconnected: Counter = "drops" { reason: "disconnected" },
        /// Messages not delivered: the subscriber left with them pending.
        drops_left: Counter = "drops" { reason: "left" },
        /// Messages not delivered: memory owed to slow consumers reached its bound.
        drops_owed_full: Counter = "drops" { reason: "owed_full" },
        /// Connections closed by the client, orderly or not.
        closes_by_peer: Counter = "closes" { reason: "peer" },
        /// Closed: protocol error (1002).
        closes_protocol: Counter = "closes" { reason: "protocol" },
        /// Closed: text that is not UTF-8 (1007).
        closes_utf8: Counter = "closes" { reason: "utf8" },
        /// Closed: message over `message_bytes_max` (1009).
        closes_too_big: Counter = "closes" { reason: "too_big" },
        /// Closed: no heartbeat in time.
        closes_heartbeat: Counter = "closes" { reason: "heartbeat" },
        /// Closed: control-message flood (1008).
        closes_flood: Counter = "closes" { reason: "flood" },
        /// Closed: incomplete messages took `partial_bytes_max` (1013).
        closes_partial: Counter = "closes" { reason: "partial" },
        /// Closed: slow consumer, `pending_bytes_max` reached (1013).
        closes_slow_pending: Counter = "closes" { reason: "slow_pending" },
        /// Closed: slow consumer, no progress for `slow_deadline_ms` (1013).
        closes_slow_deadline: Counter = "closes" { reason: "slow_deadline" },
        /// Closed: slow consumer, held the oldest buffer when owed memory reached its bound (without a close frame).
        closes_slow_owed: Counter = "closes" { reason: "slow_owed" },
        /// Closed: replies it did not read.
        closes_replies: Counter = "closes" { reason: "replies" },
        /// Closed: the dialect asked for it.
        closes_dialect: Counter = "closes" { reason: "dialect" },
        /// Closed by a drain.
        closes_drain: Counter = "closes" { reason: "drain" },
        /// Closed: the send failed (reset by peer, broken pipe).
        closes_send_failed: Counter = "closes" { reason: "send_failed" },
        /// Closes that were cut at `close_deadline_ms`, without the peer's answer.
        closes_cut: Counter = "closes_cut",
        /// Connections of clients that speak this dialect which had their 101 and are not gone.
        dialect_connections: ByDialect<Gauge> = "dialect_connections",
        /// Messages handed to the kernel for clients of this dialect and answers that are messages of it; a merged push counts once.
        dialect_messages: ByDialect<Counter> = "dialect_messages",
        /// Messages for clients of this dialect dropped while they stayed: `pending_bytes_max` was reached.
        dialect_messages_dropped: ByDialect<Counter> = "dialect_messages_dropped",
        /// Topics refused: `topics_per_connection_max` of the client, or `topics_max` of the shard.
        topics_refused: Counter = "topics_refused",
        /// Logins that went well.
        logins_ok: Counter = "logins" { result: "ok" },
        /// Logins refused.
        logins_refused: Counter = "logins" { result: "refused" },
        /// Connections logged in now.
        logged_in: Gauge = "logged_in_connections",
        /// Questions of clients (logins, pages) refused at once: `questions_max` were under way.
        questions_refused: Counter = "questions_refused",
        /// Reads paused because replies were not read.
        reads_paused: Counter = "reads_paused",
        /// Receives that found no buffer and were repeated.
        no_buffers: Counter = "receives_without_buffer",
        /// Turns of the reactor: an idle one turns every second, a stuck one does not.
        turns: Counter = "turns",
        /// Flush rounds.
        flush_rounds: Counter = "flush_rounds",
        /// Times the core slept.
        sleeps: Counter = "sleeps",
        /// Subscriptions held: connections times their topics.
        subscriptions: Gauge = "subscriptions",
        /// Topics that have a subscriber on this shard, in each encoding.
        interests: Gauge = "interests",
        /// Memory of incomplete messages of clients.
        partial_bytes: Gauge = "partial_bytes",
        /// Bytes of buffers pinned by subscribers, by capacity, each once, with the queues they stand in.
        owed_bytes: Gauge = "owed_bytes",
        /// Most that was ever pinned.
        owed_bytes_peak: Gauge = "owed_bytes_peak",
        /// Connections that are slow now: a send to them waits for the peer to read.
        slow_connections: Gauge = "slow_connections",
        /// Time of the last turn, ms of the monotonic clock: the watchdog looks at it.
        last_turn_ms: Gauge = "last_turn_monotonic_ms",
        /// How long a flush round took.
        flush_round: Histogram = "flush_round_seconds",
        /// From admission of the oldest message in a batch to the return of its send.
        publish_to_send: Histogram = "publish_to_send_seconds",
    }
}

cells! {
    /// What the accepting core counts.
    AcceptMetrics {
        /// Sockets accepted.
        accepted: Counter = "accepted",
        /// accept(2) failed.
        accept_errors: Counter = "accept_errors",
        /// Handed to a shard.
        handed_over: Counter = "handed_over",
        /// Hand-overs that failed and were tried on another shard.
        hand_overs_retried: Counter = "hand_overs_retried",
        /// Answered 503: every shard is full.
        refused_full: Counter = "connections_refused" { reason: "full" },
        /// Answered 503: shards had room, but stood still.
        refused_busy: Counter = "connections_refused" { reason: "busy" },
        /// Answered 503: `connections_per_address_max`, of a client's own address or of one that a trusted proxy names.
        refused_address: Counter = "connections_refused" { reason: "address" },
        /// Answered 503: `handshakes_per_s_max`.
        refused_rate: Counter = "connections_refused" { reason: "rate" },
        /// Answered 503: the gateway is stopping.
        refused_stopping: Counter = "connections_refused" { reason: "stopping" },
        /// Refused and cut without an answer, too many refusals being under way.
        refused_cut: Counter = "connections_refused" { reason: "cut" },
        /// Connections now counted against the limits.
        connections: Gauge = "admitted_connections",
        /// Connections at which new ones are refused as `full`.
        connections_max: Gauge = "connections_max",
    }
}

cells! {
    /// What the control core counts.
    ControlMetrics {
        /// Publications admitted.
        publications: Counter = "publications",
        /// Bytes of admitted payloads.
        publication_bytes: Counter = "publication_bytes",
        /// Refused: no room within `publish_wait_ms`.
        refused_full: Counter = "publications_refused" { reason: "full" },
        /// Refused: payload over `message_bytes_max`, or what NATS allows, or name over 255 bytes.
        refused_invalid: Counter = "publications_refused" { reason: "invalid" },
        /// Refused: draining.
        refused_draining: Counter = "publications_refused" { reason: "draining" },
        /// Refused: the stream could not be reached, did not want it, or has not said in time whether it has it.
        refused_stream: Counter = "publications_refused" { reason: "stream" },
        /// Refused: no token or a wrong one.
        refused_unauthorized: Counter = "publications_refused" { reason: "unauthorized" },
        /// Refused: a page that is not in `publish.allowed_origins`, where no token is asked for.
        refused_origin: Counter = "publications_refused" { reason: "origin" },
        /// Users logged in, each counted once for every shard it is on.
        users: Gauge = "users",
        /// Streams of `PullData` open now.
        pullers: Gauge = "pullers",
        /// Streams of `PullData` ended because they were `puller_bytes_max` behind.
        pullers_late: Counter = "pullers_late",
        /// Logins refused because `auth.url` was not reached.
        auth_unreachable: Counter = "auth_failures" { reason: "unreachable" },
        /// Because it did not answer in time.
        auth_late: Counter = "auth_failures" { reason: "late" },
        /// Because its answer could not be read.
        auth_unclear: Counter = "auth_failures" { reason: "unclear" },
        /// Publishers connected by gRPC.
        grpc_connections: Gauge = "publisher_connections" { protocol: "grpc" },
        /// Publishers connected by HTTP.
        http_connections: Gauge = "publisher_connections" { protocol: "http" },
        /// Publishers connected to go-push's gateway port.
        gopush_gateway_connections: Gauge = "publisher_connections" { protocol: "gopush_gateway" },
        /// Publishers connected to go-push's logic port.
        gopush_logic_connections: Gauge = "publisher_connections" { protocol: "gopush_logic" },
        /// Connections to `log.level_port`.
        log_level_connections: Gauge = "publisher_connections" { protocol: "log_level" },
        /// Publishers cut for another, at `publish.connections_max`, never having called with a token that holds.
        publishers_cut: Counter = "publishers_cut",
        /// Calls refused: too many without a token open on one connection.
        stranger_calls_refused: Counter = "stranger_calls_refused",
        /// Publications that had to wait for room.
        waited: Counter = "publications_waited",
        /// Frames encoded: one per publication and encoding that has subscribers.
        frames: Counter = "frames",
        /// Topics known.
        topics: Gauge = "topics",
        /// Publications now waiting for room in a shard's queue.
        waiting: Gauge = "publications_waiting",
        /// Items that left merge windows of rooms (go-push), or for which nobody was there.
        merged_room_items: Counter = "merged_items" { target: "room" },
        /// Items that left the merge window of what goes to everyone.
        merged_all_items: Counter = "merged_items" { target: "everyone" },
        /// Items for the room without a name, where nobody can be.
        merged_nowhere_items: Counter = "merged_items" { target: "nowhere" },
        /// Items of merge windows of rooms that not every shard got, at the end of a drain.
        merged_room_items_dropped: Counter = "merged_items_dropped" { target: "room" },
        /// Items for everyone that not every shard got, at the end of a drain.
        merged_all_items_dropped: Counter = "merged_items_dropped" { target: "everyone" },
        /// Merge windows that left: messages made of items.
        merged_messages: Counter = "merged_messages",
        /// Merge windows that not every shard got, at the end of a drain.
        merged_messages_dropped: Counter = "merged_messages_dropped",
        /// Rooms: topics with go-push clients.
        merged_rooms: Gauge = "merged_rooms",
        /// Items collected in merge windows.
        merging_items: Gauge = "merging_items",
        /// Merge windows that wait for room in a shard's queue.
        merging_blocked: Gauge = "merging_blocked",
        /// Items for rooms that go-push's publishers sent and that were refused; a form that came to nothing counts as one.
        gopush_room_refused: Counter = "gopush_items_refused" { target: "room" },
        /// Items for everyone that go-push's publishers sent and that were refused; a form that came to nothing counts as one.
        gopush_all_refused: Counter = "gopush_items_refused" { target: "everyone" },
        /// Forms of go-push's publishers that were not complete in time, or of which, being large, nothing came for a second.
        gopush_forms_late: Counter = "gopush_forms_refused" { reason: "late" },
        /// Forms that were not read: too many large ones were.
        gopush_forms_busy: Counter = "gopush_forms_refused" { reason: "busy" },
        /// Forms over 10 MB.
        gopush_forms_large: Counter = "gopush_forms_refused" { reason: "large" },
        /// Pushes that were no form with an array of items.
        gopush_forms_malformed: Counter = "gopush_forms_refused" { reason: "malformed" },
        /// Items that came in by go-push's logic port.
        gopush_dispatched: Counter = "gopush_dispatched_items",
        /// Of them: refused here, or dropped for one of the gateways that they were to go on to.
        gopush_dispatch_failed: Counter = "gopush_dispatch_failed_items",
        /// Attempts to send a push on to another gateway that failed.
        gopush_forward_failures: Counter = "gopush_forward_failures",
        /// Pushes that wait for another gateway, or for its answer.
        gopush_forward_pending: Gauge = "gopush_forward_pending",
        /// Items not sent on: too much was pending for that gateway.
        gopush_forward_dropped: Counter = "gopush_forward_lost_items" { reason: "pending" },
        /// Items not sent on: every attempt failed.
        gopush_forward_lost: Counter = "gopush_forward_lost_items" { reason: "failed" },
        /// Topics forgotten to make room.
        topics_evicted: Counter = "topics_evicted",
        /// Publish handlers that panicked and were answered INTERNAL: a defect of the gateway, the log names it.
        handler_panics: Counter = "handler_panics",
    }
}

cells! {
    /// What this node's part of a cluster counts, on the control core.
    ClusterMetrics {
        /// Whether this node is a member of a cluster now.
        etcd_connected: Gauge = "cluster_member",
        /// Other nodes known, but for those that drain.
        members: Gauge = "cluster_nodes",
        /// Proxies of gpush known.
        proxies: Gauge = "cluster_gpush_proxies",
        /// Times that etcd could not be reached, or was lost.
        etcd_failures: Counter = "cluster_etcd_failures",
        /// Nodes and proxies of gpush that are being pulled from.
        relay_links: Gauge = "relay_links",
        /// Times that such a link broke, or could not be had.
        relay_link_failures: Counter = "relay_link_failures",
        /// Messages given to other nodes, each counted once for each of them.
        relay_sent: Counter = "relay_sent_messages",
        /// Messages got from other nodes and from proxies of gpush.
        relay_received: Counter = "relay_received_messages",
        /// Messages got twice and delivered once.
        relay_duplicates: Counter = "relay_duplicate_messages",
        /// Messages of other nodes lost to this one: it was cut off, or too slow, for longer than `cluster.relay_buffer` there holds.
        relay_lost_overrun: Counter = "relay_lost_messages" { reason: "overrun" },
        /// Messages of other nodes refused here: no room within `publish_wait_ms`, or too large for this node.
        relay_lost_refused: Counter = "relay_lost_messages" { reason: "refused" },
        /// Messages of other nodes that came while this one was draining; its clients are on their way to another.
        relay_lost_draining: Counter = "relay_lost_messages" { reason: "draining" },
        /// Messages that a node had accepted and, by its end, had not given to this one: it was cut off, or too slow.
        relay_lost_gone: Counter = "relay_lost_messages" { reason: "gone" },
        /// Whether there is a connection to NATS and the stream is there.
        nats_connected: Gauge = "cluster_nats_connected",
        /// Connections made to NATS; all but the first after one was lost.
        nats_connects: Counter = "cluster_nats_connects",
        /// Times that NATS could not be reached, was lost, or did not have the stream.
        nats_failures: Counter = "cluster_nats_failures",
        /// Messages of this node's publishers taken for the stream.
        nats_published: Counter = "cluster_nats_published_messages",
        /// Messages that the stream has acknowledged.
        nats_acknowledged: Counter = "cluster_nats_acknowledged_messages",
        /// Messages sent once more, since their acknowledgement did not come; the stream keeps one of each.
        nats_resent: Counter = "cluster_nats_resent_messages",
        /// Messages taken and not acknowledged yet.
        nats_in_flight: Gauge = "cluster_nats_in_flight_messages",
        /// Messages refused: `cluster.nats_in_flight_max` were in flight, or their bytes.
        nats_failed_busy: Counter = "cluster_nats_failed_messages" { reason: "busy" },
        /// Messages refused that are not in the stream: NATS was away, or the stream had no leader.
        nats_failed_away: Counter = "cluster_nats_failed_messages" { reason: "away" },
        /// Messages whose publishers were told that they may be in the stream or not: no acknowledgement within `cluster.nats_publish_timeout_ms`.
        nats_failed_late: Counter = "cluster_nats_failed_messages" { reason: "late" },
        /// Messages that NATS did not want, as over its `max_payload`; the log says why.
        nats_failed_refused: Counter = "cluster_nats_failed_messages" { reason: "refused" },
        /// Messages got from the stream.
        nats_received: Counter = "cluster_nats_received_messages",
        /// Sequence of the last one.
        nats_last_sequence: Gauge = "cluster_nats_last_sequence",
        /// Messages that were behind it in the stream when it was sent.
        nats_behind: Gauge = "cluster_nats_behind_messages",
        /// Consumers made: one for each connection, and one whenever a message was dropped on its way.
        nats_consumers: Counter = "cluster_nats_consumers",
        /// Messages lost to this node: they went from the stream before it had them.
        nats_lost_removed: Counter = "cluster_nats_lost_messages" { reason: "removed" },
        /// Messages of the stream refused here: no room within `publish_wait_ms`, too large for this node, or not UTF-8.
        nats_lost_refused: Counter = "cluster_nats_lost_messages" { reason: "refused" },
        /// Messages of the stream that came while this node was draining; its clients are on their way to another.
        nats_lost_draining: Counter = "cluster_nats_lost_messages" { reason: "draining" },
        /// Messages fetched one by one, since connections ended before them again and again: one has a malformed header, published straight into NATS.
        nats_fetched: Counter = "cluster_nats_fetched_messages",
        /// Messages of the stream whose subject names nobody: published straight into NATS.
        nats_skipped: Counter = "cluster_nats_skipped_messages",
        /// Messages that all nodes together still had for this one when they were last heard.
        relay_behind: Gauge = "relay_behind_messages",
        /// Messages kept for other nodes.
        relay_buffer_messages: Gauge = "relay_buffer_messages",
        /// Their bytes, with 128 a message.
        relay_buffer_bytes: Gauge = "relay_buffer_bytes",
    }
}
