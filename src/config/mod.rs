//! Every setting: its name with its unit, its default, and what it is for. `docs/CONFIGURATION.md` is made from this file.

/// One setting, as the table of all settings shows it.
#[derive(Clone, Debug)]
pub struct Setting {
    /// `[section]`.
    pub section: &'static str,
    /// Key, with its unit.
    pub key: &'static str,
    /// Default, as TOML.
    pub default: String,
    /// What it is for.
    pub doc: String,
}

macro_rules! section {
    ($section:literal $(#[doc = $type_doc:literal])* $name:ident { $($(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:expr,)* }) => {
        $(#[doc = $type_doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $($(#[doc = $doc])+ pub $key: $type,)* }

        impl Default for $name {
            fn default() -> Self { $name { $($key: $default,)* } }
        }

        impl $name {
            /// Its rows of the table of all settings.
            pub fn settings() -> Vec<Setting> {
                let default = toml::Value::try_from($name::default()).expect("defaults are TOML");
                vec![$(Setting {
                    section: $section,
                    key: stringify!($key),
                    default: default.get(stringify!($key)).map_or_else(String::new, ToString::to_string),
                    doc: concat!($($doc, "\n"),+).lines().map(str::trim).collect::<Vec<_>>().join(" "),
                }),*]
            }
        }
    };
}

section! { "shards"
    /// Threads, rings and their pace.
    Shards {
        /// Shards, each a thread with a ring; 0 = max(cores − 1, what `connections_max` needs at RLIMIT_NOFILE slots a ring).
        count: usize = 0,
        /// Connections in all; 0 = as many as the shards' file tables hold.
        connections_max: usize = 0,
        /// Pin control, accepting and shard threads to cores, within the CPU mask the process was started with.
        pin: bool = true,
        /// Least time between two flush rounds of a shard. Not a delay: the first message after a quiet spell leaves at once.
        tick_interval_us: u64 = 1000,
        /// `auto` uses what the kernel has; `6.1` uses only what Linux 6.1 has.
        ring_features: String = "auto".into(),
        /// Items in each queue between two cores.
        queue_items_max: usize = 65_536,
        /// Frame bytes in each queue between two cores.
        queue_bytes_max: usize = 64 << 20,
        /// SO_SNDBUF of client sockets: bounds the kernel memory a client that does not read can pin (about three times this).
        socket_send_buffer_bytes: usize = 65_536,
        /// listen(2) backlog; the kernel cuts it to net.core.somaxconn.
        listen_backlog: u32 = 65_535,
    }
}

section! { "limits"
    /// What one client, or all together, may cost.
    Limits {
        /// Largest message from a client, and largest payload of a publication.
        message_bytes_max: usize = 65_536,
        /// Topics one connection may hold.
        topics_per_connection_max: usize = 1024,
        /// Connections from one address; 0 = no limit.
        connections_per_address_max: usize = 0,
        /// New connections a second, with a burst of one second's worth; 0 = no limit.
        handshakes_per_s_max: u64 = 0,
        /// Request head of a handshake.
        handshake_bytes_max: usize = 8192,
        /// From accept to the end of the request head.
        handshake_deadline_ms: u64 = 5000,
        /// From our close frame to the cut.
        close_deadline_ms: u64 = 1000,
        /// Messages (control frames included) a client may send a second, on average.
        client_messages_per_s_max: u32 = 100,
        /// How many it may send at once, saved up while it was quiet.
        client_messages_burst_max: u32 = 1000,
        /// Replies and control frames owed to one client, above which we stop reading from it.
        reply_bytes_max: usize = 16_384,
        /// Clients being told 503 at once; more are cut without an answer.
        refusals_max: usize = 1024,
        /// Topics known at once; the longest idle without subscribers is forgotten for a new one.
        topics_max: usize = 1_000_000,
        /// A topic without subscribers and publications is forgotten after this.
        topic_idle_ms: u64 = 600_000,
    }
}

section! { "slow"
    /// Slow consumers: clients that read less than they are sent.
    Slow {
        /// Bytes one subscriber may be behind.
        pending_bytes_max: usize = 1 << 20,
        /// At that bound: `drop` (its newest messages, counted), `disconnect` (1013), or `dialect` (gpush: drop, others: disconnect).
        policy: SlowPolicy = SlowPolicy::Dialect,
        /// Disconnected after this long without any progress.
        slow_deadline_ms: u64 = 10_000,
        /// Memory pinned by all subscribers of all shards together, each buffer counted once by its capacity. Above it the holder of the oldest goes.
        owed_bytes_max: usize = 1 << 30,
    }
}

/// What happens to a subscriber at `pending_bytes_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlowPolicy {
    /// As its dialect does.
    Dialect,
    /// Its newest messages are dropped and counted; what fits is kept.
    Drop,
    /// It is closed with 1013.
    Disconnect,
}

section! { "websocket"
    /// Protocol choices.
    Websocket {
        /// Offer permessage-deflate (RFC 7692), compressed once per publication without context takeover.
        deflate: bool = false,
        /// zlib level 1..9; gpush uses 9.
        deflate_level: u32 = 6,
        /// Payloads below this go uncompressed.
        deflate_bytes_min: usize = 64,
    }
}

section! { "gpush"
    /// The gpush dialect.
    GpushSettings {
        /// A client that has not sent `ping` for this long is cut.
        heartbeat_timeout_ms: u64 = 120_000,
    }
}

section! { "publish"
    /// The publishing side.
    Publish {
        /// gRPC.
        grpc_address: String = "127.0.0.1:10067".into(),
        /// HTTP, also `/metrics`, `/healthz`, `/readyz`.
        http_address: String = "127.0.0.1:10068".into(),
        /// File with bearer tokens, one a line, `#` comments; empty = none. Re-read on SIGHUP. Required off loopback.
        tokens_file: String = String::new(),
        /// Allow publishing without tokens off loopback.
        insecure: bool = false,
        /// How long a publication waits for room in a shard's queue before it is refused.
        publish_wait_ms: u64 = 100,
        /// Publications waiting for room, in all topics together.
        publish_waiting_max: usize = 10_000,
        /// Their bytes together.
        publish_waiting_bytes_max: usize = 64 << 20,
        /// Largest batch of `PublishStream`, in messages.
        batch_messages_max: usize = 10_000,
        /// Largest gRPC or HTTP request.
        request_bytes_max: usize = 4 << 20,
    }
}

section! { "drain"
    /// Stopping well.
    DrainSettings {
        /// From the signal to refusing publishes and clients, while `/readyz` already says 503.
        drain_delay_ms: u64 = 0,
        /// The closes are spread evenly over this.
        drain_window_ms: u64 = 5000,
        /// No shard closes more connections a second; stretches the window.
        drain_rate_per_s: u32 = 20_000,
        /// After this, stuck sends are cut.
        drain_deadline_ms: u64 = 30_000,
        /// Close code clients get: 1001 going away, 1012 where other gateways remain.
        drain_close_code: u16 = 1001,
    }
}

section! { "log"
    /// Logs on stderr, never per frame.
    Log {
        /// `error`, `warn`, `info`, `debug`, `trace`, or a tracing filter such as `fanwire::accept=debug,info`.
        level: String = "info".into(),
        /// `human` or `json`.
        format: String = "human".into(),
    }
}

section! { "listen"
    /// One `[[listen]]` block: a port for subscribers.
    Listen {
        /// Address and port.
        address: String = "0.0.0.0:9992".into(),
        /// Path of the gpush dialect; empty = not served here.
        gpush_path: String = "/ws".into(),
    }
}

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[shards]`
    pub shards: Shards,
    /// `[limits]`
    pub limits: Limits,
    /// `[slow]`
    pub slow: Slow,
    /// `[websocket]`
    pub websocket: Websocket,
    /// `[gpush]`
    pub gpush: GpushSettings,
    /// `[publish]`
    pub publish: Publish,
    /// `[drain]`
    pub drain: DrainSettings,
    /// `[log]`
    pub log: Log,
    /// `[[listen]]`
    pub listen: Vec<Listen>,
    /// `/echo` and other things for development; only by `--dev`, never from a file.
    #[serde(skip)]
    pub dev: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            shards: Shards::default(),
            limits: Limits::default(),
            slow: Slow::default(),
            websocket: Websocket::default(),
            gpush: GpushSettings::default(),
            publish: Publish::default(),
            drain: DrainSettings::default(),
            log: Log::default(),
            listen: vec![Listen::default()],
            dev: false,
        }
    }
}
