//! A shard's bounds and pace: the part of the configuration it needs, in its own units.

use super::pages::{Content, PAGES, Page};
use crate::config::{AddressHeader, Config, Networks, Origins, SlowPolicy};
use crate::demo;
use crate::dialect::{DEMO_HEARTBEAT_MS, DialectId};

/// Bounds and pace of one shard; every field is a setting of the same name unless it says otherwise.
#[derive(Clone, Debug)]
pub struct ShardSettings {
    /// Places in the ring's file table.
    pub slots: usize,
    /// Least time between two flush rounds.
    pub tick_interval_us: u64,
    /// Most bytes of one send: half of SO_SNDBUF, so that a send to a reading client completes at once.
    pub send_bytes_max: usize,
    /// Sends submitted per enter: 256, the cheapest size measured, which bounds the time in the kernel to about a millisecond.
    pub sends_per_enter: usize,
    /// Largest message from a client.
    pub message_bytes_max: usize,
    /// Topics one connection may hold.
    pub topics_per_connection_max: usize,
    /// Topics this shard takes part in, each encoding counted apart.
    pub topics_max: usize,
    /// Clients that can log in must, by a token in their URL: `auth.token_at_connect`.
    pub token_at_connect: bool,
    /// Its lane's part of `limits.questions_max`, at least one.
    pub questions_max: usize,
    /// Its lane's part of `limits.partial_bytes_max`.
    pub partial_bytes_max: usize,
    /// Request head of a handshake.
    pub handshake_bytes_max: usize,
    /// From accept to the end of the request head.
    pub handshake_deadline_ms: u64,
    /// From our close frame to the cut.
    pub close_deadline_ms: u64,
    /// Messages a client may send a second, on average.
    pub client_messages_per_s_max: u32,
    /// Messages it may have saved up.
    pub client_messages_burst_max: u32,
    /// Replies owed to one client above which it is not read from.
    pub reply_bytes_max: usize,
    /// Bytes one subscriber may be behind.
    pub pending_bytes_max: usize,
    /// What happens there.
    pub policy: SlowPolicy,
    /// Longest time without progress.
    pub slow_deadline_ms: u64,
    /// Its lane's part of `slow.owed_bytes_max`.
    pub owed_bytes_max: usize,
    /// Its own part, which it has whatever the others of its lane hold.
    pub owed_bytes_share: usize,
    /// permessage-deflate may be negotiated.
    pub deflate: bool,
    /// zlib level of replies compressed for one connection.
    pub deflate_level: u32,
    /// Heartbeat of gpush clients.
    pub gpush_heartbeat_timeout_ms: u64,
    /// How often Centrifugo's clients are pinged.
    pub centrifugo_ping_interval_ms: u64,
    /// How long they may take to answer.
    pub centrifugo_pong_timeout_ms: u64,
    /// How long they may take to send `connect`.
    pub centrifugo_stale_timeout_ms: u64,
    /// Channels one of their connections may hold.
    pub centrifugo_channels_max: usize,
    /// Differs from one start to the next: the names of connections begin with it. Not a setting; the gateway draws it.
    pub seed: u64,
    /// Heartbeat interval of go-push clients: `compat.gopush.heartbeat_interval_ms`.
    pub gopush_heartbeat_interval_ms: u64,
    /// Rooms one go-push connection may be in: `compat.gopush.max_join_room`.
    pub max_join_room: usize,
    /// How long an interest is kept after its last subscriber.
    pub interest_linger_ms: u64,
    /// What is served where.
    pub routes: Vec<Route>,
    /// Plain pages: listener, path with its prefix, page.
    pub pages: Vec<(u16, String, Page)>,
    /// Of each `[[listen]]` block: who may come in by it.
    pub fronts: Vec<Front>,
    /// `limits.connections_per_address_max` is set: the accepting core wants to know who is behind a proxy.
    pub addresses_capped: bool,
}

/// Who may come in by a listener, and whose word is believed there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    /// Whose pages may connect.
    pub origins: Origins,
    /// Proxies of ours.
    pub trusted: Networks,
    /// What they name their client in.
    pub header: AddressHeader,
    /// They begin with a PROXY protocol header.
    pub proxy_protocol: bool,
}

/// A path of a listener and the family of clients it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Index of the `[[listen]]` block.
    pub listener: u16,
    /// Exact path, with the listener's prefix.
    pub path: String,
    /// Who is served there.
    pub dialect: DialectId,
}

/// Largest message on `/echo`: what Autobahn's limit cases send.
const ECHO_MESSAGE_BYTES_MAX: usize = 16 << 20;

impl ShardSettings {
    /// The settings of each of `shards` shards with `slots` places, which stand in so many `lanes`.
    pub fn new(config: &Config, shards: usize, lanes: usize, slots: usize) -> ShardSettings {
        let (mut routes, mut pages) = (Vec::new(), Vec::new());
        for (listener, listen) in config.listen.iter().enumerate() {
            let listener = listener as u16;
            if listen.pages {
                pages
                    .extend(PAGES.iter().map(|page| (listener, format!("{}{}", listen.path_prefix, page.path), *page)));
            }
            let mut route = |path: &str, dialect| {
                if !path.is_empty() {
                    routes.push(Route { listener, path: format!("{}{path}", listen.path_prefix), dialect });
                }
            };
            route(&listen.gpush_path, DialectId::Gpush);
            route(&listen.centrifugo_path, DialectId::Centrifugo);
            route(&listen.gopush_path, DialectId::Gopush);
            if listen.demo {
                route(demo::ECHO_PATH, DialectId::Demo);
                pages.extend(demo::PAGES.iter().map(|page| {
                    let content = Content::Static { content_type: page.content_type, body: page.body.as_bytes() };
                    (listener, format!("{}{}", listen.path_prefix, page.path), Page { path: page.path, content })
                }));
            }
            if config.dev {
                route("/echo", DialectId::Echo);
            }
        }
        ShardSettings {
            slots,
            tick_interval_us: config.shards.tick_interval_us,
            send_bytes_max: (config.shards.socket_send_buffer_bytes / 2).max(4096),
            sends_per_enter: 256,
            message_bytes_max: config.limits.message_bytes_max,
            topics_per_connection_max: config.limits.topics_per_connection_max,
            topics_max: config.limits.topics_max,
            token_at_connect: config.auth.token_at_connect,
            questions_max: (config.limits.questions_max / lanes.max(1)).max(1),
            // One client's longest message fits in any case; its buffer grows by doubling.
            partial_bytes_max: (config.limits.partial_bytes_max / lanes.max(1))
                .max(2 * config.limits.message_bytes_max),
            handshake_bytes_max: config.limits.handshake_bytes_max,
            handshake_deadline_ms: config.limits.handshake_deadline_ms,
            close_deadline_ms: config.limits.close_deadline_ms,
            client_messages_per_s_max: config.limits.client_messages_per_s_max,
            client_messages_burst_max: config.limits.client_messages_burst_max,
            reply_bytes_max: config.limits.reply_bytes_max,
            // A connection counts them in 32 bits.
            pending_bytes_max: config.slow.pending_bytes_max.min(u32::MAX as usize),
            policy: config.slow.policy,
            slow_deadline_ms: config.slow.slow_deadline_ms,
            owed_bytes_max: config.slow.owed_bytes_max / lanes.max(1),
            owed_bytes_share: config.slow.owed_bytes_max / shards.max(1),
            deflate: config.websocket.deflate,
            deflate_level: config.websocket.deflate_level,
            gpush_heartbeat_timeout_ms: config.gpush.heartbeat_timeout_ms,
            centrifugo_ping_interval_ms: config.centrifugo.ping_interval_ms,
            centrifugo_pong_timeout_ms: config.centrifugo.pong_timeout_ms,
            centrifugo_stale_timeout_ms: config.centrifugo.stale_timeout_ms,
            centrifugo_channels_max: config.centrifugo.channels_per_connection_max,
            seed: 0,
            gopush_heartbeat_interval_ms: config.compat.gopush.heartbeat_interval_ms,
            max_join_room: config.compat.gopush.max_join_room,
            interest_linger_ms: 1000,
            routes,
            pages,
            fronts: config
                .listen
                .iter()
                .map(|listen| Front {
                    origins: Origins::new(&listen.allowed_origins),
                    trusted: Networks::new(&listen.trusted_proxies),
                    header: listen.client_address_header,
                    proxy_protocol: listen.proxy_protocol,
                })
                .collect(),
            addresses_capped: config.limits.connections_per_address_max > 0,
        }
    }

    /// Whose path this is.
    pub fn route(&self, listener: u16, path: &str) -> Option<DialectId> {
        self.routes.iter().find(|r| r.listener == listener && r.path == path).map(|r| r.dialect)
    }

    /// The plain page at this path, unless a dialect has it.
    pub fn page(&self, listener: u16, path: &str) -> Option<Page> {
        let page = self.pages.iter().find(|(l, p, _)| *l == listener && p == path)?;
        self.route(listener, path).is_none().then_some(page.2)
    }

    /// Whether a subscriber at its bound loses messages (`true`) or its connection.
    pub fn drops(&self, dialect: DialectId) -> bool {
        match self.policy {
            SlowPolicy::Drop => true,
            SlowPolicy::Disconnect => false,
            SlowPolicy::Dialect => matches!(dialect, DialectId::Gpush | DialectId::Gopush),
        }
    }

    /// Largest message of a client of this dialect.
    pub fn message_bytes_max(&self, dialect: DialectId) -> usize {
        if dialect == DialectId::Echo { ECHO_MESSAGE_BYTES_MAX } else { self.message_bytes_max }
    }

    /// Whether the dialect's clients are held to the message rate; conformance suites are not.
    pub fn is_rated(&self, dialect: DialectId) -> bool {
        dialect != DialectId::Echo
    }

    /// How long after the handshake a client of this dialect must be heard of; `None`: nobody watches.
    pub fn first_word_ms(&self, dialect: DialectId) -> Option<u64> {
        match dialect {
            DialectId::Centrifugo => Some(self.centrifugo_stale_timeout_ms),
            _ => self.heartbeat_ms(dialect),
        }
    }

    /// How long after a heartbeat the next is due, or to be asked for; `None`: nobody watches.
    pub fn heartbeat_ms(&self, dialect: DialectId) -> Option<u64> {
        match dialect {
            DialectId::Gpush => Some(self.gpush_heartbeat_timeout_ms),
            DialectId::Centrifugo => Some(self.centrifugo_ping_interval_ms),
            DialectId::Gopush => Some(self.gopush_heartbeat_interval_ms),
            DialectId::Echo => None,
            DialectId::Demo => Some(DEMO_HEARTBEAT_MS),
        }
    }

    /// Topics one connection of this dialect may hold.
    pub fn topics_per_connection_max(&self, dialect: DialectId) -> usize {
        match dialect {
            DialectId::Centrifugo => self.centrifugo_channels_max,
            DialectId::Gopush => self.max_join_room.min(self.topics_per_connection_max),
            _ => self.topics_per_connection_max,
        }
    }
}
