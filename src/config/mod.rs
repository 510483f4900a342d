//! Every setting: its name with its unit, its default, what is allowed and what it is for. `docs/CONFIGURATION.md` and
//! `fanwire config default` are made from this file, [`load()`] finds the values, [`Config::validate`] holds them to their bounds.

mod document;
mod load;
mod networks;
mod origins;
mod validate;

pub(crate) use document::comment;
pub use document::{default_toml, markdown};
pub use load::{ConfigError, ENVIRONMENT_PREFIX, FILE_BYTES_MAX, FILE_DEFAULT, Loaded, Problem, load};
pub use networks::{Network, Networks};
pub use origins::{OriginPattern, Origins};
pub use validate::{FRAME_OVERHEAD_BYTES, JSON_GROWTH_MAX};

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::LazyLock;

/// One setting, as the table of all settings shows it.
#[derive(Clone, Debug)]
pub struct Setting {
    /// `[section]`.
    pub section: &'static str,
    /// Key, with its unit.
    pub key: &'static str,
    /// Default, as TOML.
    pub default: String,
    /// What it may be.
    pub allowed: Allowed,
    /// What it is for.
    pub doc: String,
}

/// One `[section]` of settings.
#[derive(Clone, Debug)]
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// Whether it is a list of blocks, `[[name]]`.
    pub is_list: bool,
    /// What its settings have in common.
    pub doc: String,
    /// Its settings, in the order of the documentation.
    pub settings: Vec<Setting>,
}

/// Whether `text` may be `log.level`.
pub fn is_log_filter(text: &str) -> bool {
    matches!(LOG_FILTER, Allowed::Text { holds, .. } if holds(text))
}

/// Every section with its settings, in the order of the documentation.
pub fn sections() -> &'static [Section] {
    static SECTIONS: LazyLock<Vec<Section>> = LazyLock::new(Config::sections);
    &SECTIONS
}

/// What a setting may be. Its display is what an error and the documentation say.
#[derive(Clone, Copy, Debug)]
pub enum Allowed {
    /// `true` or `false`.
    Bool,
    /// A whole number in one of these ranges.
    Integer(&'static [RangeInclusive<u64>]),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Text of which `holds` is true.
    Text {
        /// What it must be, in words.
        what: &'static str,
        /// Whether it is.
        holds: fn(&str) -> bool,
    },
    /// A list of texts of each of which `holds` is true; in a variable or a flag they are separated by commas.
    List {
        /// What each must be, in words.
        what: &'static str,
        /// Whether it is.
        holds: fn(&str) -> bool,
    },
}

impl Allowed {
    /// Whether `value` is allowed.
    pub fn accepts(&self, value: &toml::Value) -> bool {
        match (self, value) {
            (Allowed::Bool, toml::Value::Boolean(_)) => true,
            (Allowed::Integer(ranges), toml::Value::Integer(n)) => {
                u64::try_from(*n).is_ok_and(|n| ranges.iter().any(|r| r.contains(&n)))
            }
            (Allowed::OneOf(words), toml::Value::String(text)) => words.contains(&text.as_str()),
            (Allowed::Text { holds, .. }, toml::Value::String(text)) => holds(text),
            (Allowed::List { holds, .. }, toml::Value::Array(items)) => {
                items.len() <= LIST_ITEMS_MAX && items.iter().all(|item| item.as_str().is_some_and(holds))
            }
            _ => false,
        }
    }

    /// The value that `text` of an environment variable or a flag stands for. It still has to be accepted; text that is
    /// not of the right type stays text, which never is.
    fn read(&self, text: &str) -> toml::Value {
        match self {
            Allowed::Bool => text.parse().ok().map(toml::Value::Boolean),
            Allowed::Integer(_) => text.replace('_', "").parse().ok().map(toml::Value::Integer),
            Allowed::OneOf(_) | Allowed::Text { .. } => None,
            Allowed::List { .. } => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Some(toml::Value::Array(items.map(|item| toml::Value::String(item.to_owned())).collect()))
            }
        }
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alternatives = match self {
            Allowed::Bool => return f.write_str("`true` or `false`"),
            Allowed::Text { what, .. } => return f.write_str(what),
            Allowed::List { what, .. } => return write!(f, "a list, each {what}"),
            Allowed::OneOf(words) => words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>(),
            Allowed::Integer(ranges) => {
                ranges.iter().map(|r| format!("{} to {}", grouped(*r.start()), grouped(*r.end()))).collect()
            }
        };
        match &alternatives[..] {
            [init @ .., last] if !init.is_empty() => write!(f, "{} or {last}", init.join(", ")),
            all => f.write_str(&all.concat()),
        }
    }
}

/// A value as TOML.
pub(crate) fn written(value: &toml::Value) -> String {
    match value {
        toml::Value::Integer(n) => grouped(n.unsigned_abs()), // No setting is negative.
        other => other.to_string(),
    }
}

/// A number as people and TOML read it: `65_536`, but `8192`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    if digits.len() < 5 {
        return digits;
    }
    let first = digits.len() % 3;
    let groups = digits.as_bytes()[first..].chunks(3).map(|c| String::from_utf8_lossy(c).into_owned());
    let head = (first > 0).then(|| digits[..first].to_owned());
    head.into_iter().chain(groups).collect::<Vec<_>>().join("_")
}

/// Most items of one list.
const LIST_ITEMS_MAX: usize = 1024;

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
const TIB: u64 = 1 << 40;

const ADDRESS: Allowed = Allowed::Text {
    what: "an IP address and a port, as in `127.0.0.1:9992` or `[::1]:9992`",
    holds: |text| text.parse::<SocketAddr>().is_ok(),
};
const ADDRESS_OR_NONE: Allowed = Allowed::Text {
    what: "empty, or an IP address and a port, as in `127.0.0.1:7788`",
    holds: |text| text.is_empty() || text.parse::<SocketAddr>().is_ok(),
};
const GATEWAYS: Allowed =
    Allowed::List { what: "a host and a port, as in `10.0.0.7:7788` or `gateway-1:7788`", holds: is_host_and_port };
const PATH: Allowed = Allowed::Text {
    what: "empty, or a path of visible ASCII characters that begins with `/`, without `?` and `#`",
    holds: |text| {
        text.is_empty()
            || text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#'))
    },
};
const PREFIX: Allowed = Allowed::Text {
    what: "empty, or a path of visible ASCII characters that begins with `/` and does not end in one, without `?` and `#`",
    holds: |text| {
        text.is_empty()
            || text.starts_with('/')
                && !text.ends_with('/')
                && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#'))
    },
};
const ORIGINS: Allowed = Allowed::List {
    what: "an origin as browsers send it (`https://example.com`, with a port if it is not the scheme's), any subdomain (`https://*.example.com`), `null` or `*`",
    holds: |text| OriginPattern::parse(text).is_some(),
};
const NETWORKS: Allowed = Allowed::List {
    what: "an IP address or a network, as in `10.0.0.0/8`",
    holds: |text| Network::parse(text).is_some(),
};
const FILE: Allowed = Allowed::Text { what: "the path of a file, or empty", holds: |text| !text.contains('\0') };
const LOGIN_URL: Allowed = Allowed::Text {
    what: "an address that begins with http:// or https://, or empty",
    holds: |text| {
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        let is_plain =
            |rest: &str| !rest.starts_with(['/', ':', '?', '#']) && rest.bytes().all(|b| b.is_ascii_graphic());
        text.is_empty() || rest.is_some_and(|rest| !rest.is_empty() && is_plain(rest))
    },
};

const ETCD: Allowed = Allowed::List {
    what: "the address of a member of etcd, as in `http://10.0.0.7:2379` or `https://etcd-1:2379`",
    holds: |text| {
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        rest.is_some_and(is_host_and_port)
    },
};
const NATS: Allowed = Allowed::List {
    what: "the address of a server of NATS, as in `nats://10.0.0.7:4222` or `tls://nats-1:4222`",
    holds: |text| {
        let rest = text.strip_prefix("nats://").or_else(|| text.strip_prefix("tls://"));
        rest.is_some_and(is_host_and_port)
    },
};
const STREAM_NAME: Allowed = Allowed::Text {
    what: "letters, digits, `-` and `_`, at most 64",
    holds: |text| {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=64).contains(&text.len()) && text.bytes().all(is_plain)
    },
};
const SUBJECT_PREFIX: Allowed = Allowed::Text {
    what: "letters, digits, `-` and `_`, in parts that dots separate, at most 64 bytes",
    holds: |text| {
        let is_token = |token: &str| {
            !token.is_empty() && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        text.len() <= 64 && text.split('.').all(is_token)
    },
};
const HOST_OR_NONE: Allowed = Allowed::Text {
    what: "empty, or a host and a port, as in `10.0.0.7:10069` or `node-1:10069`",
    holds: |text| text.is_empty() || is_host_and_port(text),
};
const KEY_PREFIX: Allowed = Allowed::Text {
    what: "visible ASCII characters, not ending in `/`",
    holds: |text| !text.is_empty() && is_key_prefix(text),
};
const KEY_PREFIX_OR_NONE: Allowed =
    Allowed::Text { what: "empty, or visible ASCII characters, not ending in `/`", holds: is_key_prefix };
const NAME_OR_NONE: Allowed = Allowed::Text {
    what: "empty, or at most 64 visible ASCII characters",
    holds: |text| text.len() <= 64 && text.bytes().all(|b| b.is_ascii_graphic()),
};

const LOG_FILTER: Allowed = Allowed::Text {
    what: "`off`, `error`, `warn`, `info`, `debug` or `trace`, or several `target=level` and a level, separated by commas",
    // A word that is no level would pass as the name of a target, and silence everything else: a typing error, not a wish.
    holds: |text| {
        let is_level = |word: &str| matches!(word, "off" | "error" | "warn" | "info" | "debug" | "trace");
        text.split(',').all(|directive| match directive.split_once('=') {
            None => is_level(directive),
            Some((target, level)) => !target.is_empty() && is_level(level),
        })
    },
};

fn is_key_prefix(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic()) && !text.ends_with('/')
}

fn is_host_and_port(text: &str) -> bool {
    let parts = text.rsplit_once(':');
    parts.is_some_and(|(host, port)| {
        let is_host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':' | b'[' | b']');
        !host.is_empty() && host.bytes().all(is_host) && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

macro_rules! section {
    ($section:literal $(#[doc = $type_doc:literal])* $name:ident { $($(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:expr => $allowed:expr,)* }) => {
        $(#[doc = $type_doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $($(#[doc = $doc])+ pub $key: $type,)* }

        impl Default for $name {
            fn default() -> Self { $name { $($key: $default,)* } }
        }

        impl $name {
            const NAME: &'static str = $section;
            const DOC: &'static str = concat!($($type_doc, "\n"),*);

            /// Its rows of the table of all settings.
            pub fn settings() -> Vec<Setting> {
                let default = toml::Value::try_from($name::default()).expect("defaults are TOML");
                vec![$(Setting {
                    section: $section,
                    key: stringify!($key),
                    default: written(&default[stringify!($key)]),
                    allowed: $allowed,
                    doc: joined(concat!($($doc, "\n"),+)),
                }),*]
            }
        }
    };
}

/// The lines of a doc comment as one.
fn joined(doc: &str) -> String {
    doc.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

section! { "shards"
    /// Threads, rings and their pace.
    Shards {
        /// Shards, each a thread with a ring, and clients are spread over them; 0 = max(cores − 1, what `connections_max` needs at RLIMIT_NOFILE slots a ring), and of more than cores − 1 those of a core are filled one after the other.
        count: usize = 0 => Allowed::Integer(&[0..=1024]),
        /// Connections in all; 0 = as many as the shards' file tables hold.
        connections_max: usize = 0 => Allowed::Integer(&[0..=1_000_000_000]),
        /// Pin control, accepting and shard threads to cores, within the CPU mask the process was started with.
        pin: bool = true => Allowed::Bool,
        /// Least time between two flush rounds of a shard. Not a delay: the first message after a quiet spell leaves at once.
        tick_interval_us: u64 = 1000 => Allowed::Integer(&[0..=1_000_000]),
        /// `auto` uses what the kernel has; `6.1` uses only what Linux 6.1 has.
        ring_features: String = "auto".into() => Allowed::OneOf(&["auto", "6.1"]),
        /// Items in each queue between two cores.
        queue_items_max: usize = 65_536 => Allowed::Integer(&[16..=1 << 24]),
        /// Frame bytes in each queue between two cores.
        queue_bytes_max: usize = 64 << 20 => Allowed::Integer(&[4096..=TIB]),
        /// SO_SNDBUF of client sockets: bounds the kernel memory a client that does not read can pin (about three times this).
        socket_send_buffer_bytes: usize = 65_536 => Allowed::Integer(&[4096..=1 << 30]),
        /// listen(2) backlog; the kernel cuts it to net.core.somaxconn.
        listen_backlog: u32 = 65_535 => Allowed::Integer(&[1..=1 << 24]),
    }
}

section! { "limits"
    /// What one client, or all together, may cost.
    Limits {
        /// Largest message from a client, and largest payload of a publication.
        message_bytes_max: usize = 65_536 => Allowed::Integer(&[1..=1 << 28]),
        /// Topics one connection may hold.
        topics_per_connection_max: usize = 1024 => Allowed::Integer(&[1..=1_000_000]),
        /// Connections from one address; 0 = no limit.
        connections_per_address_max: usize = 0 => Allowed::Integer(&[0..=1_000_000_000]),
        /// New connections a second, with a burst of one second's worth; 0 = no limit.
        handshakes_per_s_max: u64 = 0 => Allowed::Integer(&[0..=10_000_000]),
        /// Request head of a handshake.
        handshake_bytes_max: usize = 8192 => Allowed::Integer(&[256..=1 << 20]),
        /// From accept to the end of the request head.
        handshake_deadline_ms: u64 = 5000 => Allowed::Integer(&[1..=HOUR_MS]),
        /// From our close frame to the cut.
        close_deadline_ms: u64 = 1000 => Allowed::Integer(&[1..=HOUR_MS]),
        /// Messages a client may send a second, on average. Control frames, each fragment of a message, and each command of a message that holds several count as one.
        client_messages_per_s_max: u32 = 100 => Allowed::Integer(&[1..=1_000_000]),
        /// How many it may send at once, saved up while it was quiet.
        client_messages_burst_max: u32 = 1000 => Allowed::Integer(&[1..=1_000_000]),
        /// Replies and control frames owed to one client, above which we stop reading from it.
        reply_bytes_max: usize = 16_384 => Allowed::Integer(&[256..=1 << 24]),
        /// Memory of clients' incomplete messages, all shards together; above it, whoever adds to one is closed (1013).
        partial_bytes_max: usize = 256 << 20 => Allowed::Integer(&[65_536..=TIB]),
        /// Questions of clients under way (logins, pages), all shards together; one more is refused at once (30003, or 503 over HTTP).
        questions_max: usize = 4096 => Allowed::Integer(&[1..=1 << 20]),
        /// Clients being told 503 at once; more are cut without an answer.
        refusals_max: usize = 1024 => Allowed::Integer(&[0..=65_536]),
        /// Topics known at once; the longest idle without subscribers is forgotten for a new one. A shard takes part in no more than that.
        topics_max: usize = 1_000_000 => Allowed::Integer(&[1..=1_000_000_000]),
        /// A topic without subscribers and publications is forgotten after this; one that never had a publication after 10 s at most.
        topic_idle_ms: u64 = 600_000 => Allowed::Integer(&[1..=365 * DAY_MS]),
    }
}

section! { "slow"
    /// Slow consumers: clients that read less than they are sent.
    Slow {
        /// Bytes one subscriber may be behind.
        pending_bytes_max: usize = 1 << 20 => Allowed::Integer(&[1..=TIB]),
        /// At that bound: `drop` (its newest messages, counted), `disconnect` (1013; Centrifugo 3008), or `dialect` (gpush: drop, others: disconnect).
        policy: SlowPolicy = SlowPolicy::Dialect => Allowed::OneOf(&["dialect", "drop", "disconnect"]),
        /// Disconnected after this long without any progress.
        slow_deadline_ms: u64 = 10_000 => Allowed::Integer(&[1..=HOUR_MS]),
        /// Memory pinned by all subscribers of all shards together, each buffer counted once by its capacity. Above it the holder of the oldest goes.
        owed_bytes_max: usize = 1 << 30 => Allowed::Integer(&[1..=TIB]),
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
        deflate: bool = false => Allowed::Bool,
        /// zlib level 1..9; gpush uses 9.
        deflate_level: u32 = 6 => Allowed::Integer(&[1..=9]),
        /// Payloads below this go uncompressed.
        deflate_bytes_min: usize = 64 => Allowed::Integer(&[0..=1 << 28]),
    }
}

section! { "gpush"
    /// The gpush dialect.
    GpushSettings {
        /// A client that has not sent `ping` for this long is cut.
        heartbeat_timeout_ms: u64 = 120_000 => Allowed::Integer(&[1..=DAY_MS]),
    }
}

section! { "auth"
    /// Who clients are: login (gpush's code 3), private topics, pushes to a user.
    Auth {
        /// `none`: nobody can log in. `url`: `url` knows. `accept-any`: for development, the token is the uid and nobody checks it.
        login: LoginMode = LoginMode::None => Allowed::OneOf(&["none", "url", "accept-any"]),
        /// Asked by `POST {"token": …}`, http or https; a user is `{"code":0,"data":{"user_info":{"uid":"…"}}}`. All else is a refusal.
        url: String = String::new() => LOGIN_URL,
        /// Clients must bring a token in their URL (`/ws?token=…`): 400 without one, 401 if it is refused. They are logged in from the start.
        token_at_connect: bool = false => Allowed::Bool,
        /// How long `url` may take for its whole answer, the wait for a turn included.
        deadline_ms: u64 = 3000 => Allowed::Integer(&[1..=HOUR_MS]),
        /// Largest answer of `url`.
        answer_bytes_max: usize = 65_536 => Allowed::Integer(&[256..=1 << 24]),
        /// Requests to `url` under way at once; the next waits for its turn, within `deadline_ms`.
        concurrent_max: usize = 64 => Allowed::Integer(&[1..=65_536]),
        /// Connections to `url` that are kept open while nobody logs in.
        idle_connections_max: usize = 32 => Allowed::Integer(&[0..=65_536]),
    }
}

/// Who may log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoginMode {
    /// Nobody.
    None,
    /// Whom `auth.url` knows.
    Url,
    /// Everybody, as whoever they say they are.
    AcceptAny,
}

section! { "centrifugo"
    /// The Centrifugo dialect: its clients' JSON protocol, and its server API's `publish` and `broadcast`.
    CentrifugoSettings {
        /// How often a client is pinged; the first time within this, spread at random.
        ping_interval_ms: u64 = 25_000 => Allowed::Integer(&[100..=HOUR_MS]),
        /// Closed (3012) when a ping is not answered for this long; less than `ping_interval_ms`.
        pong_timeout_ms: u64 = 8000 => Allowed::Integer(&[1..=HOUR_MS]),
        /// Closed (3502) when it has not sent `connect` for this long after the handshake.
        stale_timeout_ms: u64 = 10_000 => Allowed::Integer(&[1..=HOUR_MS]),
        /// File with keys for `/api/publish`, `/api/broadcast` and `/api/batch` on `publish.http_address`, one a line, `#` comments; empty = what guards `/v1/pushData` guards these too. Re-read on SIGHUP.
        api_keys_file: String = String::new() => FILE,
        /// Channels one connection may hold, in place of `limits.topics_per_connection_max`.
        channels_per_connection_max: usize = 128 => Allowed::Integer(&[1..=1_000_000]),
    }
}

section! { "compat.gopush"
    /// go-push's clients and publishers. `/connect` of each `[[listen]]` block serves its clients in any case; `enabled` adds the ports of
    /// go-push's gateway and logic. Anyone who reaches those two may publish: go-push has no authentication.
    GopushSettings {
        /// Open the three addresses below.
        enabled: bool = false => Allowed::Bool,
        /// go-push's gateway, for clients: `/connect`. Empty = not opened.
        connect_address: String = "0.0.0.0:7777".into() => ADDRESS_OR_NONE,
        /// go-push's gateway, for publishers: `/push/all`, `/push/room`, `/stats` by HTTPS, HTTP/2 or HTTP/1.1. Empty = not opened.
        gateway_address: String = "127.0.0.1:7788".into() => ADDRESS_OR_NONE,
        /// go-push's logic: the same paths by HTTP/1.1, and its own `/stats`. Empty = not opened.
        logic_address: String = "127.0.0.1:7799".into() => ADDRESS_OR_NONE,
        /// Allow `gateway_address` and `logic_address` off loopback, where whoever reaches them may publish.
        insecure: bool = false => Allowed::Bool,
        /// Certificate chain of `gateway_address`, PEM; empty = a self-signed one, made at each start.
        certificate_file: String = String::new() => FILE,
        /// Its private key, PEM.
        certificate_key_file: String = String::new() => FILE,
        /// Gateways that pushes of `logic_address` go on to, over TLS (no certificate is verified) and HTTP/2, besides this one's own clients.
        gateway_list: Vec<String> = Vec::new() => GATEWAYS,
        /// How often a push to another gateway is tried.
        gateway_push_attempts: usize = 3 => Allowed::Integer(&[1..=100]),
        /// How long each attempt may take.
        gateway_timeout_ms: u64 = 3000 => Allowed::Integer(&[1..=HOUR_MS]),
        /// Pushes that may wait for one gateway; more are dropped and counted.
        gateway_pending_max: usize = 200_000 => Allowed::Integer(&[1..=10_000_000]),
        /// Their bytes.
        gateway_pending_bytes_max: usize = 64 << 20 => Allowed::Integer(&[65_536..=TIB]),
        /// A client is looked at once in each interval, counted from its handshake, and cut if its last PING is older than one.
        heartbeat_interval_ms: u64 = 60_000 => Allowed::Integer(&[100..=DAY_MS]),
        /// Rooms one connection may be in, besides `limits.topics_per_connection_max`; a JOIN beyond is ignored.
        max_join_room: usize = 5 => Allowed::Integer(&[0..=1_000_000]),
        /// What goes to one room, or to everyone, is collected for its go-push clients for this long from the first item on.
        max_merge_delay_ms: u64 = 1000 => Allowed::Integer(&[0..=HOUR_MS]),
        /// It leaves earlier once it is this many items.
        max_merge_items: usize = 100 => Allowed::Integer(&[1..=100_000]),
        /// Or this many bytes; never more than half of `slow.pending_bytes_max`, but for a single item.
        max_merge_bytes: usize = 262_144 => Allowed::Integer(&[1..=1 << 28]),
        /// Items being collected, all rooms together. Above it the oldest leave early; if they find no room, publishing waits.
        merge_pending_items_max: usize = 100_000 => Allowed::Integer(&[1..=1 << 30]),
        /// Their bytes, with 512 a room.
        merge_pending_bytes_max: usize = 64 << 20 => Allowed::Integer(&[1..=TIB]),
    }
}

section! { "publish"
    /// The publishing side.
    Publish {
        /// gRPC: `order.Proxy` and `fanwire.v1.Publisher`.
        grpc_address: String = "127.0.0.1:10067".into() => ADDRESS,
        /// HTTP: `/v1/pushData`, also `/metrics`, `/healthz`, `/readyz`.
        http_address: String = "127.0.0.1:10068".into() => ADDRESS,
        /// File with bearer tokens, one a line, `#` comments; empty = none. Re-read on SIGHUP. Required off loopback.
        tokens_file: String = String::new() => FILE,
        /// Allow publishing without tokens off loopback.
        insecure: bool = false => Allowed::Bool,
        /// Pages that may publish where no token is asked for, go-push's ports included, by the browser's `Origin`. Others are refused (403), so that no page anywhere can publish through the browser of whoever reaches the port; what is no browser is not asked.
        allowed_origins: Vec<String> = Vec::new() => ORIGINS,
        /// How long a publication waits for room in a shard's queue before it is refused.
        publish_wait_ms: u64 = 100 => Allowed::Integer(&[0..=60_000]),
        /// Publications waiting for room, in all topics together.
        publish_waiting_max: usize = 10_000 => Allowed::Integer(&[0..=10_000_000]),
        /// Their bytes together.
        publish_waiting_bytes_max: usize = 64 << 20 => Allowed::Integer(&[0..=TIB]),
        /// Largest batch of `PublishStream`, in messages.
        batch_messages_max: usize = 10_000 => Allowed::Integer(&[1..=1_000_000]),
        /// Topics of one message that goes to several.
        multicast_topics_max: usize = 1000 => Allowed::Integer(&[1..=1_000_000]),
        /// Streams of `PullData` open at once, by gRPC and HTTP together.
        pullers_max: usize = 64 => Allowed::Integer(&[0..=65_536]),
        /// Bytes of pushes that one stream of `PullData` may be behind; above it, it is ended.
        puller_bytes_max: usize = 16 << 20 => Allowed::Integer(&[4096..=TIB]),
        /// Publishers connected at once, by gRPC and by HTTP each. One more takes the place of whoever is connected longest without having called with a token that holds (any call, where none is asked for); when all have, it waits.
        connections_max: usize = 4096 => Allowed::Integer(&[1..=65_536]),
        /// An HTTP connection without a complete request head for this long is cut.
        idle_deadline_ms: u64 = 60_000 => Allowed::Integer(&[1..=DAY_MS]),
        /// How long the body of an HTTP request may take to come.
        body_deadline_ms: u64 = 10_000 => Allowed::Integer(&[1..=HOUR_MS]),
        /// Largest gRPC or HTTP request.
        request_bytes_max: usize = 4 << 20 => Allowed::Integer(&[1024..=1 << 30]),
    }
}

section! { "drain"
    /// Stopping well.
    DrainSettings {
        /// From the signal to refusing publishes and clients, while `/readyz` already says 503.
        drain_delay_ms: u64 = 0 => Allowed::Integer(&[0..=HOUR_MS]),
        /// The closes are spread evenly over this.
        drain_window_ms: u64 = 5000 => Allowed::Integer(&[0..=HOUR_MS]),
        /// No shard closes more connections a second; stretches the window.
        drain_rate_per_s: u32 = 20_000 => Allowed::Integer(&[1..=10_000_000]),
        /// After this, stuck sends are cut.
        drain_deadline_ms: u64 = 30_000 => Allowed::Integer(&[1..=DAY_MS]),
        /// Close code clients get: 1001 going away, 1012 where other gateways remain. Those of the Centrifugo dialect always get 3001.
        drain_close_code: u16 = 1001 => Allowed::Integer(&[1000..=1001, 1012..=1013, 3000..=4999]),
    }
}

section! { "cluster"
    /// Several machines: nodes find one another in etcd, and what one accepts all deliver. Without `etcd` there is one machine, and
    /// nothing else of this section matters but `role`.
    Cluster {
        /// What this node is for. `ingest` has publishers and no subscribers, `fanout` subscribers and no publishers (the HTTP port keeps its admin pages).
        role: Role = Role::All => Allowed::OneOf(&["all", "ingest", "fanout"]),
        /// Members of etcd (v3), asked in this order, the next one as soon as one fails or hesitates; one that answers is enough.
        etcd: Vec<String> = Vec::new() => ETCD,
        /// What the keys of this cluster begin with: a node is `PREFIX/nodes/ID`.
        prefix: String = "fanwire".into() => KEY_PREFIX,
        /// gpush's `keyPrefix`, usually `proxy`: this node is found there by gpush's sockets, and pulls from gpush's proxies that it finds there. Empty = neither.
        gpush_prefix: String = String::new() => KEY_PREFIX_OR_NONE,
        /// etcd user; empty = none. Where etcd has no users it is not needed and does no harm.
        etcd_user: String = String::new() => NAME_OR_NONE,
        /// File with that user's password.
        etcd_password_file: String = String::new() => FILE,
        /// Certificates that etcd's is checked by, PEM; empty = the system's. For https.
        etcd_ca_file: String = String::new() => FILE,
        /// Certificate that this node shows to etcd, PEM; empty = none.
        etcd_certificate_file: String = String::new() => FILE,
        /// Its private key, PEM.
        etcd_certificate_key_file: String = String::new() => FILE,
        /// Name of this node, for people; empty = the host's.
        name: String = String::new() => NAME_OR_NONE,
        /// How what a node accepts reaches the others: `relay` = each pulls from every other; `nats` = it goes into a stream of NATS JetStream that every node
        /// reads, and a publisher is answered when it is there; `none` = not at all.
        transport: Transport = Transport::Relay => Allowed::OneOf(&["relay", "nats", "none"]),
        /// Servers of NATS for `transport = "nats"`, tried in this order and round again. `etcd` may then be empty: messages travel without it.
        nats: Vec<String> = Vec::new() => NATS,
        /// Name of the stream, made if there is none.
        nats_stream: String = "FANWIRE".into() => STREAM_NAME,
        /// What its subjects begin with: `PREFIX.t.TOPIC`, `PREFIX.u.UID`, `PREFIX.b` (see `fanwire subject`). No other stream may have them.
        nats_subjects: String = "fanwire".into() => SUBJECT_PREFIX,
        /// User of NATS; empty = none.
        nats_user: String = String::new() => NAME_OR_NONE,
        /// File with that user's password.
        nats_password_file: String = String::new() => FILE,
        /// File with a token for NATS.
        nats_token_file: String = String::new() => FILE,
        /// File with credentials for NATS (a JWT and its seed), as `nsc` writes them.
        nats_credentials_file: String = String::new() => FILE,
        /// Certificates that NATS's is checked by, PEM; empty = the system's. For tls.
        nats_ca_file: String = String::new() => FILE,
        /// Certificate that this node shows to NATS, PEM; empty = none.
        nats_certificate_file: String = String::new() => FILE,
        /// Its private key, PEM.
        nats_certificate_key_file: String = String::new() => FILE,
        /// Where the stream keeps its messages: `file` outlives servers of NATS, `memory` does not. Of a stream that is there it can't be changed.
        nats_storage: NatsStorage = NatsStorage::File => Allowed::OneOf(&["file", "memory"]),
        /// Servers of NATS that each have all of it: 3 stand the loss of one.
        nats_replicas: usize = 1 => Allowed::Integer(&[1..=5]),
        /// How long the stream keeps a message. A node that was away for less misses nothing; 0 = for ever.
        nats_max_age_ms: u64 = HOUR_MS => Allowed::Integer(&[0..=0, 1000..=365 * DAY_MS]),
        /// Bytes of the stream, above which its oldest messages go; 0 = no bound.
        nats_max_bytes: u64 = 1 << 30 => Allowed::Integer(&[0..=0, 65_536..=TIB]),
        /// How long the stream knows a message again that a node sends twice, since it has not heard of it; at least `nats_publish_timeout_ms` and 10 s. NATS has the names of all of that time in memory.
        nats_duplicate_window_ms: u64 = 20_000 => Allowed::Integer(&[1000..=DAY_MS]),
        /// A publisher whose message has no acknowledgement by then is told that it may be in the stream or not.
        nats_publish_timeout_ms: u64 = 5000 => Allowed::Integer(&[100..=HOUR_MS]),
        /// Messages of this node's publishers that wait for the stream's acknowledgement; above it they are refused.
        nats_in_flight_max: usize = 16_384 => Allowed::Integer(&[1..=1 << 24]),
        /// Their bytes.
        nats_in_flight_bytes_max: usize = 64 << 20 => Allowed::Integer(&[65_536..=TIB]),
        /// Where other nodes pull from this one.
        relay_address: String = "127.0.0.1:10069".into() => ADDRESS,
        /// How they reach that address; empty = as it stands, or where that is 0.0.0.0 the address that this machine's connection to etcd comes from. Needed where etcd is on loopback, or behind NAT.
        relay_advertise: String = String::new() => HOST_OR_NONE,
        /// How gpush's sockets reach `publish.grpc_address`; empty as above.
        gpush_advertise: String = String::new() => HOST_OR_NONE,
        /// Messages kept for nodes that are behind or cut off. Whoever comes back within that many misses nothing.
        relay_buffer: usize = 262_144 => Allowed::Integer(&[1..=1 << 28]),
        /// Their bytes, with 128 a message.
        relay_buffer_bytes_max: usize = 256 << 20 => Allowed::Integer(&[65_536..=TIB]),
        /// File with tokens, one a line, `#` comments: nodes show one another the first, and take all. The same on all nodes.
        relay_tokens_file: String = String::new() => FILE,
        /// Certificate of `relay_address`, which this node also shows to others, PEM; empty = no TLS between nodes. The same on all nodes or on none.
        relay_certificate_file: String = String::new() => FILE,
        /// Its private key, PEM.
        relay_certificate_key_file: String = String::new() => FILE,
        /// Certificates that those of other nodes are checked by, in both directions, PEM. Goes with `relay_certificate_file`.
        relay_ca_file: String = String::new() => FILE,
        /// Allow `relay_address` off loopback without tokens and certificates: whoever reaches it sees all that is published here.
        insecure: bool = false => Allowed::Bool,
    }
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Publishers and subscribers.
    All,
    /// Publishers only.
    Ingest,
    /// Subscribers only.
    Fanout,
}

impl Role {
    /// Whether publishers may come.
    pub fn publishes(self) -> bool {
        self != Role::Fanout
    }

    /// Whether subscribers may come.
    pub fn subscribes(self) -> bool {
        self != Role::Ingest
    }
}

/// How publications get from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Each node pulls from every other.
    Relay,
    /// All nodes read one stream of NATS JetStream.
    Nats,
    /// Not at all.
    None,
}

/// Where a stream of NATS keeps its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NatsStorage {
    /// On disk.
    File,
    /// In memory.
    Memory,
}

impl Cluster {
    /// Whether there may be other nodes.
    pub fn is_on(&self) -> bool {
        self.has_members() || self.transport == Transport::Nats
    }

    /// Whether nodes find one another.
    pub fn has_members(&self) -> bool {
        !self.etcd.is_empty()
    }

    /// Whether other nodes pull from this one.
    pub fn is_relay_open(&self) -> bool {
        self.has_members() && self.transport == Transport::Relay && self.role.publishes()
    }
}

section! { "log"
    /// Logs on stderr, never per frame.
    Log {
        /// `error`, `warn`, `info`, `debug`, `trace`, or a tracing filter such as `fanwire::accept=debug,info`.
        level: String = "info".into() => LOG_FILTER,
        /// `human` or `json`.
        format: String = "human".into() => Allowed::OneOf(&["human", "json"]),
        /// A port on 127.0.0.1 where any path is the level, without tokens, as gpush's logger has it: `GET`, and `PUT {"level":"debug"}`. 0 = none; `/log/level` on the HTTP port is there in any case.
        level_port: u16 = 0 => Allowed::Integer(&[0..=65_535]),
    }
}

section! { "listen"
    /// One `[[listen]]` block: a port for subscribers.
    Listen {
        /// Address and port; port 0 takes a free one.
        address: String = "0.0.0.0:9992".into() => ADDRESS,
        /// Path of the gpush dialect; empty = not served here.
        gpush_path: String = "/ws".into() => PATH,
        /// Path of the Centrifugo dialect; empty = not served here.
        centrifugo_path: String = "/connection/websocket".into() => PATH,
        /// Path of the go-push dialect; empty = not served here.
        gopush_path: String = "/connect".into() => PATH,
        /// Serve the demo, a page of live prices that needs nothing else: `/demo`, what it loads, and its echo `/demo/ws`. It shows what whoever connects can see anyway.
        demo: bool = true => Allowed::Bool,
        /// What every path of this port begins with: with `/push`, `/ws` is `/push/ws`.
        path_prefix: String = String::new() => PREFIX,
        /// Whose pages may connect, by the browser's `Origin`; a client without one may. Empty = pages of the host that is asked (its port does not count). Without a configuration file: `*`.
        allowed_origins: Vec<String> = Vec::new() => ORIGINS,
        /// Serve `/stats` and `/metrics` here too, to whoever asks.
        pages: bool = true => Allowed::Bool,
        /// Proxies in front, whose word on the client's address is believed; they count against no cap themselves.
        trusted_proxies: Vec<String> = Vec::new() => NETWORKS,
        /// Which header of theirs is believed; the proxy must set it or add to it. `either` takes X-Real-IP where there is no X-Forwarded-For: then the proxy must set both, or remove what a client sent.
        client_address_header: AddressHeader = AddressHeader::XForwardedFor => Allowed::OneOf(&["either", "x-forwarded-for", "x-real-ip", "none"]),
        /// They begin each connection with a PROXY protocol header (version 1 or 2): without one they are cut.
        proxy_protocol: bool = false => Allowed::Bool,
    }
}

/// Where a trusted proxy names its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressHeader {
    /// In `X-Forwarded-For`, or in `X-Real-IP` where that is missing.
    Either,
    /// In `X-Forwarded-For`.
    XForwardedFor,
    /// In `X-Real-IP`.
    XRealIp,
    /// In no header.
    None,
}

macro_rules! config {
    ($($(#[doc = $doc:literal])+ $section:ident: $type:ty = $of:ident,)*) => {
        /// The whole configuration.
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Config {
            $($(#[doc = $doc])+ pub $section: $type,)*
            /// `/echo` and other things for development; only by `--dev`, never from a file.
            #[serde(skip)]
            pub dev: bool,
        }

        impl Config {
            fn sections() -> Vec<Section> {
                let default = toml::Value::try_from(Config::default()).expect("defaults are TOML");
                vec![$(Section {
                    name: $of::NAME,
                    is_list: section_of(&default, $of::NAME).is_array(),
                    doc: joined($of::DOC),
                    settings: $of::settings(),
                }),*]
            }
        }
    };
}

config! {
    /// `[[listen]]`
    listen: Vec<Listen> = Listen,
    /// `[publish]`
    publish: Publish = Publish,
    /// `[shards]`
    shards: Shards = Shards,
    /// `[limits]`
    limits: Limits = Limits,
    /// `[slow]`
    slow: Slow = Slow,
    /// `[websocket]`
    websocket: Websocket = Websocket,
    /// `[auth]`
    auth: Auth = Auth,
    /// `[gpush]`
    gpush: GpushSettings = GpushSettings,
    /// `[centrifugo]`
    centrifugo: CentrifugoSettings = CentrifugoSettings,
    /// `[compat.gopush]`
    compat: Compat = GopushSettings,
    /// `[cluster]`
    cluster: Cluster = Cluster,
    /// `[drain]`
    drain: DrainSettings = DrainSettings,
    /// `[log]`
    log: Log = Log,
}

/// What stands in for other systems.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compat {
    /// `[compat.gopush]`
    pub gopush: GopushSettings,
}

impl Config {
    /// Every `[[listen]]` block, and what `[compat.gopush]` adds to them.
    pub fn listeners(&self) -> Vec<Listen> {
        let gopush = &self.compat.gopush;
        let connect = (gopush.enabled && !gopush.connect_address.is_empty()).then(|| Listen {
            address: gopush.connect_address.clone(),
            gpush_path: String::new(),
            centrifugo_path: String::new(),
            gopush_path: "/connect".into(),
            allowed_origins: vec!["*".into()], // go-push looks at none.
            pages: false,
            demo: false,
            ..Listen::default()
        });
        if !self.cluster.role.subscribes() {
            return Vec::new();
        }
        self.listen.iter().cloned().chain(connect).collect()
    }
}

/// The table of a section whose name may have a dot in it.
fn section_of<'a>(config: &'a toml::Value, name: &str) -> &'a toml::Value {
    name.split('.').fold(config, |table, part| &table[part])
}

/// As [`section_of`].
fn section_of_mut<'a>(config: &'a mut toml::Value, name: &str) -> &'a mut toml::Value {
    name.split('.').fold(config, |table, part| &mut table[part])
}

impl Default for Config {
    fn default() -> Self {
        Config {
            shards: Shards::default(),
            limits: Limits::default(),
            slow: Slow::default(),
            websocket: Websocket::default(),
            auth: Auth::default(),
            gpush: GpushSettings::default(),
            centrifugo: CentrifugoSettings::default(),
            compat: Compat::default(),
            publish: Publish::default(),
            cluster: Cluster::default(),
            drain: DrainSettings::default(),
            log: Log::default(),
            listen: vec![Listen::default()],
            dev: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_allowed_by_its_setting() {
        for setting in sections().iter().flat_map(|s| &s.settings) {
            let line: toml::Table = toml::from_str(&format!("x = {}", setting.default)).expect("a default is TOML");
            assert!(setting.allowed.accepts(&line["x"]), "{setting:?}");
            assert!(!setting.doc.is_empty(), "{setting:?}");
        }
    }

    #[test]
    fn every_key_of_the_configuration_is_in_the_table() {
        let mut config = toml::Table::try_from(Config::default()).unwrap();
        let mut keys = Vec::new();
        let nested = config.remove("compat").unwrap();
        let nested = nested.as_table().unwrap().iter().map(|(name, value)| (format!("compat.{name}"), value));
        for (section, value) in config.iter().map(|(name, value)| (name.clone(), value)).chain(nested) {
            let table = value.as_table().or_else(|| value[0].as_table()).expect("a section or a list of blocks");
            keys.extend(table.keys().map(|key| format!("{section}.{key}")));
        }
        let mut known: Vec<_> =
            sections().iter().flat_map(|s| &s.settings).map(|s| format!("{}.{}", s.section, s.key)).collect();
        keys.sort();
        known.sort();
        assert_eq!(keys, known);
    }

    #[test]
    fn what_a_setting_accepts_fits_its_type() {
        // The largest number each setting accepts, all in one configuration.
        let mut config = toml::Value::try_from(Config::default()).unwrap();
        for setting in sections().iter().flat_map(|s| &s.settings) {
            if let Allowed::Integer(ranges) = setting.allowed {
                let largest = ranges.iter().map(|r| *r.end()).max().expect("a range");
                section_of_mut(&mut config, setting.section)[setting.key] =
                    toml::Value::Integer(i64::try_from(largest).unwrap());
            }
        }
        let config: Config = config.try_into().expect("each type holds what its setting accepts");
        assert_eq!(config.shards.count, 1024);
    }

    #[test]
    fn numbers_are_grouped_from_five_digits_on() {
        let shown = [0, 8192, 10_000, 65_536, 123_456, 1_000_000, 1 << 40].map(grouped);
        assert_eq!(shown, ["0", "8192", "10_000", "65_536", "123_456", "1_000_000", "1_099_511_627_776"]);
    }
}
