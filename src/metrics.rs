//! What a core counts: plain cells with one writer, read by whoever renders `/metrics`.
//!
//! A [`Counter`] is an `AtomicU64` written by a relaxed load and store, not by a read-modify-write: for its only writer it
//! costs what a plain integer costs, and any reader sees some recent value.

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
        let buckets = self.buckets.iter().enumerate().map(|(i, c)| {
            total += c.get();
            let bound = if i + 1 == Self::BUCKETS { f64::INFINITY } else { (1u64 << i) as f64 / 1e6 };
            (bound, total)
        });
        (buckets.collect(), self.sum_us.get() as f64 / 1e6)
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: std::array::from_fn(|_| Counter::default()), sum_us: Counter::default() }
    }
}

macro_rules! cells {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        #[repr(align(128))] // A core's cells share no cache line with another core's.
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* }
    };
}

cells! {
    /// What one shard counts.
    ShardMetrics {
        /// Connections that own a slot now, handshakes under way included.
        connections: Gauge,
        /// Sockets handed over to this shard.
        arrivals: Counter,
        /// Handshakes answered 101.
        handshakes_ok: Counter,
        /// Handshakes answered 4xx or 5xx.
        handshakes_rejected: Counter,
        /// Handshakes cut at `handshake_deadline_ms`.
        handshakes_timed_out: Counter,
        /// Clients that left before their handshake was done.
        handshakes_abandoned: Counter,
        /// Messages handed to the kernel for a subscriber, each counted once per subscriber.
        deliveries: Counter,
        /// Bytes of completed sends.
        bytes_sent: Counter,
        /// Bytes received.
        bytes_received: Counter,
        /// Messages received from clients.
        messages_received: Counter,
        /// Completed sends.
        sends: Counter,
        /// Messages not delivered: the subscriber's `pending_bytes_max` was reached (policy `drop`).
        drops_pending_full: Counter,
        /// Messages not delivered: the subscriber was disconnected with them pending.
        drops_disconnected: Counter,
        /// Messages not delivered: the subscriber left with them pending.
        drops_left: Counter,
        /// Messages not delivered: memory owed to slow consumers reached its bound.
        drops_owed_full: Counter,
        /// Connections closed by the client, orderly or not.
        closes_by_peer: Counter,
        /// Closed: protocol error (1002).
        closes_protocol: Counter,
        /// Closed: text that is not UTF-8 (1007).
        closes_utf8: Counter,
        /// Closed: message over `message_bytes_max` (1009).
        closes_too_big: Counter,
        /// Closed: no heartbeat in time.
        closes_heartbeat: Counter,
        /// Closed: control-message flood (1008).
        closes_flood: Counter,
        /// Closed: slow consumer, `pending_bytes_max` reached (1013).
        closes_slow_pending: Counter,
        /// Closed: slow consumer, no progress for `slow_deadline_ms` (1013).
        closes_slow_deadline: Counter,
        /// Closed: slow consumer, held the oldest buffer when owed memory reached its bound (1013).
        closes_slow_owed: Counter,
        /// Closed: replies it did not read.
        closes_replies: Counter,
        /// Closed: the dialect asked for it.
        closes_dialect: Counter,
        /// Closed by a drain.
        closes_drain: Counter,
        /// Closed: the send failed (reset by peer, broken pipe).
        closes_send_failed: Counter,
        /// Closes that were cut at `close_deadline_ms`, without the peer's answer.
        closes_cut: Counter,
        /// Topics refused: `topics_per_connection_max`.
        topics_refused: Counter,
        /// Reads paused because replies were not read.
        reads_paused: Counter,
        /// Receives that found no buffer and were repeated.
        no_buffers: Counter,
        /// Turns of the reactor.
        turns: Counter,
        /// Flush rounds.
        flush_rounds: Counter,
        /// Times the core slept.
        sleeps: Counter,
        /// Subscriptions held.
        subscriptions: Gauge,
        /// Interests held.
        interests: Gauge,
        /// Bytes of buffers pinned by subscribers, by capacity, each once.
        owed_bytes: Gauge,
        /// Most that was ever pinned.
        owed_bytes_peak: Gauge,
        /// Connections that are slow now.
        slow_connections: Gauge,
        /// Time of the last turn, ms of the monotonic clock: the watchdog looks at it.
        last_turn_ms: Gauge,
        /// How long a flush round took.
        flush_round: Histogram,
        /// From admission of the oldest message in a batch to the return of its send.
        publish_to_send: Histogram,
    }
}

cells! {
    /// What the accepting core counts.
    AcceptMetrics {
        /// Sockets accepted.
        accepted: Counter,
        /// accept(2) failed.
        accept_errors: Counter,
        /// Handed to a shard.
        handed_over: Counter,
        /// Hand-overs that failed and were tried on another shard.
        hand_overs_retried: Counter,
        /// Answered 503: every shard is full.
        refused_full: Counter,
        /// Answered 503: shards had room, but stood still.
        refused_busy: Counter,
        /// Answered 503: `connections_per_address_max`.
        refused_address: Counter,
        /// Answered 503: `handshakes_per_s_max`.
        refused_rate: Counter,
        /// Answered 503: the gateway is stopping.
        refused_stopping: Counter,
        /// Refused and cut without an answer, too many refusals being under way.
        refused_cut: Counter,
        /// Connections now counted against the limits.
        connections: Gauge,
    }
}

cells! {
    /// What the control core counts.
    ControlMetrics {
        /// Publications admitted.
        publications: Counter,
        /// Bytes of admitted payloads.
        publication_bytes: Counter,
        /// Refused: no room within `publish_wait_ms`.
        refused_full: Counter,
        /// Refused: payload over `message_bytes_max` or name over 255 bytes.
        refused_invalid: Counter,
        /// Refused: draining.
        refused_draining: Counter,
        /// Refused: no token or a wrong one.
        refused_unauthorized: Counter,
        /// Publications that had to wait for room.
        waited: Counter,
        /// Frames encoded.
        frames: Counter,
        /// Topics known.
        topics: Gauge,
        /// Publications waiting for room.
        waiting: Gauge,
        /// Topics forgotten to make room.
        topics_evicted: Counter,
        /// Handlers that panicked and were answered INTERNAL.
        handler_panics: Counter,
    }
}
