//! What becomes of each key of gpush and go-push: one table each, nothing but data and a few conversions. A setting that this
//! build does not have is written as a comment, so a table may name it before it is there.

use toml::Value;

/// One key of theirs.
pub(super) struct Rule {
    /// In which of their files; "" = in any.
    pub(super) part: &'static str,
    /// Sections first. Matched in any case.
    pub(super) theirs: &'static str,
    /// What it is here.
    pub(super) becomes: Becomes,
}

/// What a key of theirs is here.
pub(super) enum Becomes {
    /// A setting.
    Setting {
        /// `section.key`.
        ours: &'static str,
        /// Their value as ours, or what it must be.
        convert: fn(&Value) -> Result<Value, &'static str>,
        /// Counts only if this key of theirs is there, and neither `false` nor empty.
        when: Option<&'static str>,
        /// How its meaning changed; "" = not at all.
        note: &'static str,
    },
    /// Nothing, and why.
    Dropped(&'static str),
    /// Nothing by itself: it decides about other keys. How.
    Decides(&'static str),
}

/// A setting that no key of theirs stands for.
pub(super) struct Added {
    /// `section.key`.
    pub(super) ours: &'static str,
    /// TOML.
    pub(super) value: &'static str,
    /// As in [`Becomes::Setting`].
    pub(super) when: Option<&'static str>,
    /// Counts only if no file of this part was given; "" = always.
    pub(super) without: &'static str,
    /// Why.
    pub(super) note: &'static str,
    /// Whether it also goes to stderr.
    pub(super) is_warning: bool,
}

/// All that is known about one system.
pub(super) struct System {
    pub(super) name: &'static str,
    pub(super) rules: &'static [Rule],
    pub(super) added: &'static [Added],
    /// Which of their files one is, by a key that only this part has; the first part that has one.
    pub(super) parts: &'static [(&'static str, &'static [&'static str])],
}

const fn setting(
    part: &'static str,
    theirs: &'static str,
    ours: &'static str,
    convert: fn(&Value) -> Result<Value, &'static str>,
    note: &'static str,
) -> Rule {
    Rule { part, theirs, becomes: Becomes::Setting { ours, convert, when: None, note } }
}

const fn dropped(part: &'static str, theirs: &'static str, why: &'static str) -> Rule {
    Rule { part, theirs, becomes: Becomes::Dropped(why) }
}

/// A setting that counts only if `key` of theirs is there, and neither `false` nor empty.
const fn setting_if(
    key: &'static str,
    theirs: &'static str,
    ours: &'static str,
    convert: fn(&Value) -> Result<Value, &'static str>,
    note: &'static str,
) -> Rule {
    Rule { part: "", theirs, becomes: Becomes::Setting { ours, convert, when: Some(key), note } }
}

const QUEUES: &str = "queues between cores are bounded by shards.queue_items_max and shards.queue_bytes_max";
const WORKERS: &str = "there are no workers: each shard does all its work itself (shards.count)";
const SPREAD: &str = "connections are spread over shards, one a core (shards.count)";
const STDERR: &str = "logs go to stderr; files and their rotation are the service manager's";
const TEXT: &str = "what a line of the log looks like is decided by log.format alone";
const ALERTS: &str = "alerts come from /metrics (docs/OPERATING.md has rules)";
const MACHINES: &str =
    "Several machines need it; one process is proxy and socket, and alone it needs no etcd: then leave out [cluster].";
const KEYS: &str = "gpush's sockets find this node there, and it pulls from gpush's proxies there: both may go on beside it. Each machine's nodes pull from one another at cluster.relay_address.";
const PASSWORD: &str = "Put the password of gpush's configuration into this file: it stands nowhere here.";
const UNUSED: &str = "gpush reads it and does nothing with it";
const EVENTS: &str = "always event-driven, by io_uring";
const OPEN: &str = "As there: whoever reaches the two publishing ports may publish. Better: a file of tokens in publish.tokens_file, or addresses on 127.0.0.1.";
const GOPUSH_OPEN: &str = "As there: whoever reaches go-push's ports for publishers may publish, for it asks for no token. Better: both on 127.0.0.1.";
const FROM_WORKING_DIRECTORY: &str = "A relative path is looked for in the working directory of the gateway.";
const STAYS: &str = "Not opened: no file of this part was given, so it stays where it is.";
const ORIGINS: &str = "As there: pages of any site may connect. Better: name your own sites.";

pub(super) const GPUSH: System = System {
    name: "gpush",
    parts: &[],
    rules: &[
        setting("", "server.port", "listen.address", port, ""),
        setting("", "server.PullPort", "publish.grpc_address", port, ""),
        setting("", "server.HttpPort", "publish.http_address", port, "Also /metrics, /healthz and /readyz."),
        dropped("", "server.PushPort", UNUSED),
        setting_if(
            "authUrl",
            "authUrl",
            "auth.url",
            text,
            "Asked with a time limit; every answer that is not a clear yes is 30003.",
        ),
        dropped("", "bucket.BucketCount", SPREAD),
        dropped("", "bucket.DispatchChanSize", QUEUES),
        setting(
            "",
            "connection.TimeOut",
            "gpush.heartbeat_timeout_ms",
            integer,
            "Counted from the last ping; gpush allows twice that after the first one.",
        ),
        dropped("", "connection.ReadBuf", "a connection holds no read buffer; the kernel fills shared ones"),
        Rule {
            part: "",
            theirs: "connection.EnableWriteBuffer",
            becomes: Becomes::Decides(
                "messages always leave together, once a tick; true makes a tick as long as WriteRate",
            ),
        },
        setting_if(
            "connection.EnableWriteBuffer",
            "connection.WriteRate",
            "shards.tick_interval_us",
            ms_to_us,
            "The least time between two writes to a client: the first message after a quiet spell leaves at once. Without this line it is 1 ms, which costs little more.",
        ),
        dropped(
            "",
            "connection.WriteBuf",
            "all of a tick leaves in one send; what a client may be behind is slow.pending_bytes_max",
        ),
        dropped("", "connection.EableEpoller", EVENTS),
        dropped("", "connection.EnableEpoller", EVENTS),
        setting(
            "",
            "connection.IsCompress",
            "websocket.deflate",
            boolean,
            "Compressed only for clients that negotiated it.",
        ),
        setting_if("proxyRpc.endpoints", "proxyRpc.endpoints", "cluster.etcd", etcd_servers, MACHINES),
        setting_if("proxyRpc.endpoints", "proxyRpc.keyPrefix", "cluster.gpush_prefix", key_prefix, KEYS),
        setting_if(
            "proxyRpc.username",
            "proxyRpc.username",
            "cluster.etcd_user",
            name,
            "gpush reads it and shows it to nobody; here etcd is told, if it has users.",
        ),
        Rule {
            part: "",
            theirs: "proxyRpc.password",
            becomes: Becomes::Decides("belongs into the file of cluster.etcd_password_file, if there is a username"),
        },
        setting_if("etcd.endpoints", "etcd.endpoints", "cluster.etcd", etcd_servers, MACHINES),
        setting_if("etcd.endpoints", "etcd.keyPrefix", "cluster.gpush_prefix", key_prefix, KEYS),
        dropped("", "proxy.Addrs", UNUSED),
        setting("", "logger.level", "log.level", level, ""),
        setting("", "logger.json", "log.format", json_or_human, ""),
        setting("", "logger.port", "log.level_port", integer, "On loopback, any path, as there; 0 is off."),
        dropped("", "logger.name", TEXT),
        dropped("", "logger.stacktrace", TEXT),
        dropped("", "logger.addCaller", TEXT),
        dropped("", "logger.callerShip", TEXT),
        dropped("", "logger.color", "colours are for terminals, and used there"),
        dropped("", "logger.mode", STDERR),
        dropped("", "logger.fileName", STDERR),
        dropped("", "logger.errorFileName", STDERR),
        dropped("", "logger.maxSize", STDERR),
        dropped("", "logger.maxAge", STDERR),
        dropped("", "logger.maxBackup", STDERR),
        dropped("", "logger.compress", STDERR),
        dropped("", "logger.console", STDERR),
        dropped("", "logger.async", "nothing is logged per message"),
        dropped("", "logger.reportConfig.type", ALERTS),
        dropped("", "logger.reportConfig.token", ALERTS),
        dropped("", "logger.reportConfig.chatID", ALERTS),
        dropped("", "logger.reportConfig.flushSec", ALERTS),
        dropped("", "logger.reportConfig.maxCount", ALERTS),
        dropped("", "logger.reportConfig.level", ALERTS),
    ],
    added: &[
        Added {
            ours: "listen.allowed_origins",
            value: "[\"*\"]",
            when: None,
            without: "",
            note: ORIGINS,
            is_warning: false,
        },
        Added {
            ours: "auth.login",
            value: "\"url\"",
            when: Some("authUrl"),
            without: "",
            note: "Login (code 3) asks auth.url.",
            is_warning: false,
        },
        Added {
            ours: "cluster.etcd_password_file",
            value: "\"etcd.password\"",
            when: Some("proxyRpc.username"),
            without: "",
            note: PASSWORD,
            is_warning: true,
        },
        Added {
            ours: "publish.insecure",
            value: "true",
            when: Some("server.PullPort"),
            without: "",
            note: OPEN,
            is_warning: true,
        },
        Added {
            ours: "publish.insecure",
            value: "true",
            when: Some("server.HttpPort"),
            without: "",
            note: OPEN,
            is_warning: true,
        },
        Added {
            ours: "websocket.deflate_level",
            value: "9",
            when: Some("connection.IsCompress"),
            without: "",
            note: "gpush's level.",
            is_warning: false,
        },
    ],
};

pub(super) const GOPUSH: System = System {
    name: "go-push",
    parts: &[
        (
            "logic",
            &[
                "gatewayList",
                "gatewayMaxConnection",
                "gatewayTimeout",
                "gatewayIdleTimeout",
                "gatewayDispatchWorkerCount",
                "gatewayDispatchChannelSize",
                "gatewayMaxPendingCount",
                "gatewayPushRetry",
            ],
        ),
        ("gateway", &[]),
    ],
    rules: &[
        setting("gateway", "wsPort", "compat.gopush.connect_address", port, ""),
        setting(
            "gateway",
            "wsReadTimeout",
            "limits.handshake_deadline_ms",
            integer,
            "From accept to the end of the request head, for every kind of client.",
        ),
        dropped("gateway", "wsWriteTimeout", "the answer to a handshake leaves in one send, which nobody waits for"),
        dropped("gateway", "wsInChannelSize", "what a client sends is bounded by limits.client_messages_per_s_max"),
        dropped(
            "gateway",
            "wsOutChannelSize",
            "what a client may be behind is bounded in bytes, by slow.pending_bytes_max",
        ),
        setting(
            "gateway",
            "wsHeartbeatInterval",
            "compat.gopush.heartbeat_interval_ms",
            s_to_ms,
            "In milliseconds here.",
        ),
        setting("gateway", "maxMergerDelay", "compat.gopush.max_merge_delay_ms", integer, ""),
        setting("gateway", "maxMergerBatchSize", "compat.gopush.max_merge_items", integer, ""),
        dropped("gateway", "mergerWorkerCount", WORKERS),
        dropped("gateway", "mergerChannelSize", "an item that finds no room in its window is refused and counted"),
        setting("gateway", "servicePort", "compat.gopush.gateway_address", port, ""),
        dropped("gateway", "serviceReadTimeout", "publish.body_deadline_ms holds for the body of every HTTP request"),
        dropped("gateway", "serviceWriteTimeout", "answers are small and leave in one send"),
        setting("gateway", "serverPem", "compat.gopush.certificate_file", text, FROM_WORKING_DIRECTORY),
        setting("gateway", "serverKey", "compat.gopush.certificate_key_file", text, FROM_WORKING_DIRECTORY),
        dropped("gateway", "bucketCount", SPREAD),
        dropped("gateway", "bucketWorkerCount", WORKERS),
        setting("gateway", "maxJoinRoom", "compat.gopush.max_join_room", integer, ""),
        dropped("gateway", "dispatchChannelSize", QUEUES),
        dropped("gateway", "dispatchWorkerCount", WORKERS),
        dropped("gateway", "bucketJobChannelSize", QUEUES),
        dropped("gateway", "bucketJobWorkerCount", WORKERS),
        setting("logic", "servicePort", "compat.gopush.logic_address", port, ""),
        dropped("logic", "serviceReadTimeout", "publish.body_deadline_ms holds for the body of every HTTP request"),
        dropped("logic", "serviceWriteTimeout", "answers are small and leave in one send"),
        setting(
            "logic",
            "gatewayList",
            "compat.gopush.gateway_list",
            gateways,
            "Besides this process's own clients, which have every push anyway: it must not be in its own list.",
        ),
        dropped("logic", "gatewayMaxConnection", "one HTTP/2 connection to each gateway carries all calls"),
        setting("logic", "gatewayTimeout", "compat.gopush.gateway_timeout_ms", integer, ""),
        dropped("logic", "gatewayIdleTimeout", "a connection to a gateway stays open"),
        dropped("logic", "gatewayDispatchWorkerCount", WORKERS),
        dropped(
            "logic",
            "gatewayDispatchChannelSize",
            "pushes on their way to a gateway are bounded, and counted when dropped",
        ),
        setting(
            "logic",
            "gatewayMaxPendingCount",
            "compat.gopush.gateway_pending_max",
            integer,
            "Dropped ones are counted.",
        ),
        setting("logic", "gatewayPushRetry", "compat.gopush.gateway_push_attempts", integer, "All attempts, as there."),
    ],
    added: &[
        Added {
            ours: "listen.allowed_origins",
            value: "[\"*\"]",
            when: None,
            without: "",
            note: ORIGINS,
            is_warning: false,
        },
        Added {
            ours: "compat.gopush.enabled",
            value: "true",
            when: None,
            without: "",
            note: "Opens go-push's ports.",
            is_warning: false,
        },
        Added {
            ours: "compat.gopush.connect_address",
            value: "\"\"",
            when: None,
            without: "gateway",
            note: STAYS,
            is_warning: false,
        },
        Added {
            ours: "compat.gopush.gateway_address",
            value: "\"\"",
            when: None,
            without: "gateway",
            note: STAYS,
            is_warning: false,
        },
        Added {
            ours: "compat.gopush.logic_address",
            value: "\"\"",
            when: None,
            without: "logic",
            note: STAYS,
            is_warning: false,
        },
        Added {
            ours: "compat.gopush.insecure",
            value: "true",
            when: Some("servicePort"),
            without: "",
            note: GOPUSH_OPEN,
            is_warning: true,
        },
    ],
};

fn integer(value: &Value) -> Result<Value, &'static str> {
    match value {
        Value::Integer(_) => Ok(value.clone()),
        Value::String(text) => text.trim().parse().map(Value::Integer).map_err(|_| "a whole number"),
        _ => Err("a whole number"),
    }
}

fn scaled(value: &Value, by: i64) -> Result<Value, &'static str> {
    Ok(Value::Integer(integer(value)?.as_integer().unwrap_or_default().saturating_mul(by)))
}

fn ms_to_us(value: &Value) -> Result<Value, &'static str> {
    scaled(value, 1000)
}

fn s_to_ms(value: &Value) -> Result<Value, &'static str> {
    scaled(value, 1000)
}

fn boolean(value: &Value) -> Result<Value, &'static str> {
    match value {
        Value::Boolean(_) => Ok(value.clone()),
        Value::String(text) => text.parse().map(Value::Boolean).map_err(|_| "true or false"),
        _ => Err("true or false"),
    }
}

fn text(value: &Value) -> Result<Value, &'static str> {
    value.as_str().map(|text| Value::String(text.to_owned())).ok_or("text in quotes")
}

/// `["10.0.0.7:2379"]`, as Go's client takes it, as addresses with a scheme.
fn etcd_servers(value: &Value) -> Result<Value, &'static str> {
    const WANTED: &str = "a list of addresses of etcd, each a host and a port";
    let server = |item: &Value| {
        let text = item.as_str().ok_or(WANTED)?.trim().trim_end_matches('/');
        Ok(Value::String(if text.contains("://") { text.to_owned() } else { format!("http://{text}") }))
    };
    value.as_array().ok_or(WANTED)?.iter().map(server).collect::<Result<_, _>>().map(Value::Array)
}

fn name(value: &Value) -> Result<Value, &'static str> {
    let is_name = |text: &&str| text.len() <= 64 && text.bytes().all(|b| b.is_ascii_graphic());
    let name = value.as_str().filter(is_name).ok_or("at most 64 visible ASCII characters in quotes")?;
    Ok(Value::String(name.to_owned()))
}

/// gpush's keys are `keyPrefix/LEASE`, and it looks for all that begin with `keyPrefix`.
fn key_prefix(value: &Value) -> Result<Value, &'static str> {
    Ok(Value::String(value.as_str().ok_or("text in quotes")?.trim_end_matches('/').to_owned()))
}

/// `9995`, `"9995"`, `":10067"` and `"10.0.0.5:10067"` as an address; without an IP address it is every one.
fn port(value: &Value) -> Result<Value, &'static str> {
    const WANTED: &str = "a port, 1 to 65535, with or without an IP address and a colon before it";
    let text = match value {
        Value::Integer(n) => n.to_string(),
        Value::String(text) => text.trim().to_owned(),
        _ => return Err(WANTED),
    };
    let digits = text.strip_prefix(':').unwrap_or(&text);
    let port = |n: u16| (n > 0).then_some(n).ok_or(WANTED);
    if let Ok(n) = digits.parse() {
        return Ok(Value::String(format!("0.0.0.0:{}", port(n)?)));
    }
    let text = text.replace("localhost:", "127.0.0.1:");
    let address: std::net::SocketAddr = text.parse().map_err(|_| WANTED)?;
    port(address.port())?;
    Ok(Value::String(address.to_string()))
}

/// `[{"hostname":"localhost","port":7788}]` as `["localhost:7788"]`.
fn gateways(value: &Value) -> Result<Value, &'static str> {
    const WANTED: &str = r#"a list of {"hostname": "…", "port": …}"#;
    let member = |table: &toml::Table, name: &str| {
        table.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
    };
    let gateway = |item: &Value| {
        let table = item.as_table()?;
        let host = member(table, "hostname")?.as_str()?.to_owned();
        let port = u16::try_from(member(table, "port")?.as_integer()?).ok()?;
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host };
        Some(Value::String(format!("{host}:{port}")))
    };
    let items = value.as_array().ok_or(WANTED)?;
    items.iter().map(|item| gateway(item).ok_or(WANTED)).collect::<Result<_, _>>().map(Value::Array)
}

/// zap's levels; what is above `error` there is `error` here.
fn level(value: &Value) -> Result<Value, &'static str> {
    const WANTED: &str = "debug, info, warn or error";
    let level = match value.as_str().ok_or(WANTED)?.to_ascii_lowercase().as_str() {
        "debug" => "debug",
        "" | "info" => "info",
        "warn" | "warning" => "warn",
        "error" | "dpanic" | "panic" | "fatal" => "error",
        _ => return Err(WANTED),
    };
    Ok(Value::String(level.to_owned()))
}

fn json_or_human(value: &Value) -> Result<Value, &'static str> {
    let json = boolean(value)?.as_bool() == Some(true);
    Ok(Value::String(if json { "json" } else { "human" }.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Value {
        toml::from_str::<toml::Table>(&format!("x = {text}")).unwrap()["x"].clone()
    }

    #[test]
    fn ports_are_addresses_of_every_interface_unless_they_name_one() {
        for (theirs, ours) in [
            ("9995", "0.0.0.0:9995"),
            ("\"9995\"", "0.0.0.0:9995"),
            ("\":10067\"", "0.0.0.0:10067"),
            ("\"10.0.0.5:10067\"", "10.0.0.5:10067"),
            ("\"[::1]:1\"", "[::1]:1"),
            ("\"localhost:1\"", "127.0.0.1:1"),
        ] {
            assert_eq!(port(&read(theirs)), Ok(Value::String(ours.into())), "{theirs}");
        }
        for wrong in ["0", "65536", "-1", "\"\"", "\":\"", "\"x:1\"", "true", "\":0\"", "[1]"] {
            assert!(port(&read(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn servers_of_etcd_get_a_scheme_and_keys_lose_their_last_slash() {
        let theirs = read(r#"["10.0.0.7:2379", "https://etcd-1:2379/"]"#);
        assert_eq!(etcd_servers(&theirs), Ok(read(r#"["http://10.0.0.7:2379", "https://etcd-1:2379"]"#)));
        assert!(etcd_servers(&read("\"10.0.0.7:2379\"")).is_err() && etcd_servers(&read("[2379]")).is_err());
        for (theirs, ours) in [("\"proxy\"", "proxy"), ("\"/proxy/\"", "/proxy")] {
            assert_eq!(key_prefix(&read(theirs)), Ok(Value::String(ours.into())));
        }
    }

    #[test]
    fn gateways_are_hosts_with_ports() {
        let list = read(r#"[{hostname = "localhost", port = 7788}, {HostName = "fd00::1", PORT = 1}]"#);
        assert_eq!(gateways(&list), Ok(read(r#"["localhost:7788", "[fd00::1]:1"]"#)));
        for wrong in ["7788", "[7788]", "[{hostname = \"a\"}]", "[{hostname = \"a\", port = 70000}]"] {
            assert!(gateways(&read(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_scale_without_overflow_and_words_are_read() {
        assert_eq!(ms_to_us(&read("500")), Ok(read("500000")));
        assert_eq!(s_to_ms(&read("\"60\"")), Ok(read("60000")));
        assert_eq!(s_to_ms(&read("9223372036854775807")), Ok(Value::Integer(i64::MAX)));
        assert!(integer(&read("1.5")).is_err() && integer(&read("\"many\"")).is_err());
        assert_eq!(boolean(&read("\"true\"")), Ok(Value::Boolean(true)));
        assert_eq!(level(&read("\"WARN\"")), Ok(Value::String("warn".into())));
        assert!(level(&read("\"loud\"")).is_err());
        assert_eq!(json_or_human(&read("false")), Ok(Value::String("human".into())));
    }

    #[test]
    fn every_key_has_one_rule_in_its_part() {
        for system in [&GPUSH, &GOPUSH] {
            for (i, rule) in system.rules.iter().enumerate() {
                let twice =
                    system.rules[..i].iter().any(|r| r.part == rule.part && r.theirs.eq_ignore_ascii_case(rule.theirs));
                assert!(!twice, "{}", rule.theirs);
                assert!(rule.part.is_empty() || system.parts.iter().any(|(part, _)| *part == rule.part));
            }
            let known = |key: &str| system.rules.iter().any(|r| r.theirs == key);
            for added in system.added {
                assert!(added.when.is_none_or(known), "{:?}", added.when);
                read(added.value);
            }
            assert!(system.parts.iter().flat_map(|(_, keys)| *keys).all(|key| known(key)));
        }
    }
}
