//! What one value may be says its setting; here is what holds between values, and what is allowed but worth a word.

use super::load::refusal;
use super::{Config, ConfigError, LoginMode, Problem, Transport, section_of, sections};
use std::net::{IpAddr, SocketAddr};

/// Most that framing adds to a payload: WebSocket header (RFC 6455 §5.2), a dialect's envelope with a name of 255 bytes,
/// stored blocks of deflate.
pub const FRAME_OVERHEAD_BYTES: usize = 1024;

/// How many times as long a message may be in a dialect whose envelope is JSON: each byte as `\u0000`.
pub const JSON_GROWTH_MAX: usize = 6;

impl Config {
    /// Holds every value to what it may be, and the values to one another. Returns what is allowed but probably not meant.
    ///
    /// # Errors
    /// All that is wrong, each with its key; [`super::load()`] adds the places.
    pub fn validate(&self) -> Result<Vec<String>, ConfigError> {
        let mut problems = self.not_allowed();
        // What holds between values makes sense only among values that make sense.
        if problems.is_empty() {
            self.check_sizes(&mut problems);
            self.check_dialects(&mut problems);
            self.check_addresses(&mut problems);
            self.check_auth(&mut problems);
            self.check_gopush(&mut problems);
            self.check_proxies(&mut problems);
            self.check_cluster(&mut problems);
            self.check_nats(&mut problems);
        }
        if problems.is_empty() { Ok(self.warnings()) } else { Err(ConfigError { problems }) }
    }

    fn not_allowed(&self) -> Vec<Problem> {
        let table = match toml::Value::try_from(self) {
            Ok(table) => table,
            Err(error) => return vec![problem("", format!("a number is beyond what TOML holds: {error}"))],
        };
        let mut problems = Vec::new();
        for section in sections() {
            let of_section = section_of(&table, section.name);
            let blocks: Vec<_> = match of_section.as_array() {
                Some(blocks) => blocks.iter().enumerate().map(|(i, b)| (format!("{}.{i}", section.name), b)).collect(),
                None => vec![(section.name.to_owned(), of_section)],
            };
            for (name, block) in blocks {
                for setting in &section.settings {
                    let key = format!("{name}.{}", setting.key);
                    if let Some(message) = refusal(&key, &setting.allowed, &block[setting.key]) {
                        problems.push(problem(&key, message));
                    }
                }
            }
        }
        if self.listen.is_empty() {
            problems.push(problem("listen", "no [[listen]] block is left: give at least one".to_owned()));
        }
        problems
    }

    fn check_sizes(&self, problems: &mut Vec<Problem>) {
        let message = self.limits.message_bytes_max;
        let framed = message + FRAME_OVERHEAD_BYTES;
        for (key, value, least, why) in [
            (
                "slow.pending_bytes_max",
                self.slow.pending_bytes_max,
                framed,
                "one message would already be too much to be behind",
            ),
            (
                "shards.queue_bytes_max",
                self.shards.queue_bytes_max,
                framed,
                "the largest message would never find room",
            ),
            (
                "publish.request_bytes_max",
                self.publish.request_bytes_max,
                framed,
                "the largest message could not be published",
            ),
            (
                "publish.puller_bytes_max",
                self.publish.puller_bytes_max,
                framed,
                "the largest message would end every stream of PullData",
            ),
            (
                "cluster.relay_buffer_bytes_max",
                self.cluster.relay_buffer_bytes_max,
                framed,
                "the largest message would never reach another node",
            ),
            (
                "cluster.nats_in_flight_bytes_max",
                self.cluster.nats_in_flight_bytes_max,
                framed,
                "the largest message would never reach the stream",
            ),
        ] {
            if value < least {
                let sum = format!("limits.message_bytes_max ({message}) + {FRAME_OVERHEAD_BYTES} of framing");
                problems.push(problem(
                    key,
                    format!("{key} = {value} is less than {sum}, {why}: give at least {least} or lower limits.message_bytes_max"),
                ));
            }
        }
        let (pending, owed) = (self.slow.pending_bytes_max, self.slow.owed_bytes_max);
        if owed < pending {
            problems.push(problem(
                "slow.owed_bytes_max",
                format!(
                    "slow.owed_bytes_max = {owed}, for all subscribers together, is less than slow.pending_bytes_max = {pending} for one: raise the first or lower the second"
                ),
            ));
        }
    }

    /// Where a dialect is served whose envelope is JSON, the largest message may grow beyond what is allowed for elsewhere. Few do:
    /// such a setting is allowed.
    fn too_small_for_json(&self) -> Vec<String> {
        let is_served = |listen: &super::Listen| !listen.centrifugo_path.is_empty() || !listen.gopush_path.is_empty();
        if !self.listen.iter().any(is_served) && !self.compat.gopush.enabled {
            return Vec::new();
        }
        let message = self.limits.message_bytes_max;
        let least = message * JSON_GROWTH_MAX + FRAME_OVERHEAD_BYTES;
        [
            ("slow.pending_bytes_max", self.slow.pending_bytes_max, "ends connections that are not behind"),
            ("shards.queue_bytes_max", self.shards.queue_bytes_max, "never finds room"),
        ]
        .into_iter()
        .filter(|(_, value, _)| *value < least)
        .map(|(key, value, what)| {
            format!(
                "{key} = {value}, and a message of limits.message_bytes_max = {message} bytes has up to {least} where a Centrifugo or go-push client gets it (control characters as \\u0000): the largest {what}, so give at least {least}, lower limits.message_bytes_max or serve gpush only"
            )
        })
        .collect()
    }

    fn check_dialects(&self, problems: &mut Vec<Problem>) {
        let (pong, ping) = (self.centrifugo.pong_timeout_ms, self.centrifugo.ping_interval_ms);
        if pong >= ping {
            problems.push(problem(
                "centrifugo.pong_timeout_ms",
                format!(
                    "centrifugo.pong_timeout_ms = {pong} is not less than centrifugo.ping_interval_ms = {ping}, so the next ping would come before the answer to the last: lower the first or raise the second"
                ),
            ));
        }
        for (i, listen) in self.listen.iter().enumerate() {
            if !listen.gpush_path.is_empty() && listen.gpush_path == listen.centrifugo_path {
                let path = &listen.gpush_path;
                problems.push(problem(
                    &format!("listen.{i}.centrifugo_path"),
                    format!(
                        "listen.{i}.gpush_path and listen.{i}.centrifugo_path are both {path}: a path serves one dialect, change one of them"
                    ),
                ));
            }
        }
    }

    fn check_addresses(&self, problems: &mut Vec<Problem>) {
        let mut taken: Vec<(String, SocketAddr)> = Vec::new();
        let addresses = self.listen.iter().enumerate().map(|(i, l)| (format!("listen.{i}.address"), &l.address));
        let connect = ("compat.gopush.connect_address", &self.compat.gopush.connect_address);
        let gopush = self.gopush_publishing().chain(self.of_gopush(connect));
        let relay = self.cluster.is_relay_open().then_some(("cluster.relay_address", &self.cluster.relay_address));
        let publishing = self.publishing().chain(gopush).chain(relay).map(|(key, address)| (key.to_owned(), address));
        for (key, address) in addresses.chain(publishing) {
            let address: SocketAddr = address.parse().expect("its setting accepts only addresses");
            if let Some((other, at)) = taken.iter().find(|(_, a)| collide(*a, address)) {
                problems.push(problem(
                    &key,
                    format!("{key} = {address} and {other} = {at} take the same port: change one of them"),
                ));
            }
            taken.push((key, address));
        }
        if self.publish.tokens_file.is_empty() && !self.publish.insecure {
            for (key, address) in self.publishing().filter(|(_, a)| !is_loopback(a)) {
                problems.push(problem(
                    key,
                    format!(
                        "{key} = {address} can be reached from other machines, where publishing needs a token: name a file of tokens in publish.tokens_file, listen on 127.0.0.1, or say publish.insecure = true if whoever reaches the port may publish"
                    ),
                ));
            }
        }
    }

    fn check_auth(&self, problems: &mut Vec<Problem>) {
        let auth = &self.auth;
        let mut complain = |key: &str, message: &str| problems.push(problem(key, message.to_owned()));
        match (auth.login, auth.url.is_empty()) {
            (LoginMode::Url, true) => {
                complain("auth.url", "auth.login = \"url\" and auth.url is empty: name whom to ask")
            }
            (LoginMode::None | LoginMode::AcceptAny, false) => complain(
                "auth.login",
                "auth.url is set and nobody asks it: say auth.login = \"url\", or leave auth.url empty",
            ),
            _ => {}
        }
        if auth.token_at_connect && auth.login == LoginMode::None {
            let message = "auth.token_at_connect = true and nobody can log in, so nobody could connect: set auth.login";
            complain("auth.token_at_connect", message);
        }
    }

    /// Where go-push's publishers are heard, if they are.
    fn gopush_publishing(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let gopush = &self.compat.gopush;
        [
            ("compat.gopush.gateway_address", &gopush.gateway_address),
            ("compat.gopush.logic_address", &gopush.logic_address),
        ]
        .into_iter()
        .flat_map(|address| self.of_gopush(address))
    }

    fn of_gopush<'a>(&'a self, (key, address): (&'static str, &'a String)) -> Option<(&'static str, &'a String)> {
        (self.compat.gopush.enabled && !address.is_empty()).then_some((key, address))
    }

    fn check_proxies(&self, problems: &mut Vec<Problem>) {
        for (i, listen) in self.listen.iter().enumerate() {
            if listen.proxy_protocol && listen.trusted_proxies.is_empty() {
                let key = format!("listen.{i}.proxy_protocol");
                let message = format!(
                    "{key} = true and listen.{i}.trusted_proxies is empty: name the addresses of the proxies that send the header"
                );
                problems.push(problem(&key, message));
            }
        }
    }

    fn publishing(&self) -> impl Iterator<Item = (&'static str, &String)> {
        [("publish.grpc_address", &self.publish.grpc_address), ("publish.http_address", &self.publish.http_address)]
            .into_iter()
    }

    fn check_gopush(&self, problems: &mut Vec<Problem>) {
        let gopush = &self.compat.gopush;
        for (key, address) in self.gopush_publishing().filter(|(_, a)| !gopush.insecure && !is_loopback(a)) {
            problems.push(problem(
                key,
                format!(
                    "{key} = {address} can be reached from other machines, and go-push's publishers send no token: listen on 127.0.0.1, or say compat.gopush.insecure = true if whoever reaches the port may publish"
                ),
            ));
        }
        if gopush.certificate_file.is_empty() != gopush.certificate_key_file.is_empty() {
            problems.push(problem(
                "compat.gopush.certificate_file",
                "compat.gopush.certificate_file and compat.gopush.certificate_key_file belong together: give both, or neither for a self-signed certificate".to_owned(),
            ));
        }
    }

    fn check_cluster(&self, problems: &mut Vec<Problem>) {
        let cluster = &self.cluster;
        let mut complain = |key: &str, message: String| problems.push(problem(key, message));
        let address = &cluster.relay_address;
        let is_guarded = !cluster.relay_tokens_file.is_empty() || !cluster.relay_ca_file.is_empty() || cluster.insecure;
        if cluster.is_relay_open() && !is_loopback(address) && !is_guarded {
            complain(
                "cluster.relay_address",
                format!(
                    "cluster.relay_address = {address} can be reached from other machines, and shows all that is published here: name a file of tokens in cluster.relay_tokens_file, or certificates in cluster.relay_ca_file, or say cluster.insecure = true if whoever reaches the port may see it"
                ),
            );
        }
        for (key, file, other_key, other) in [
            (
                "cluster.etcd_certificate_file",
                &cluster.etcd_certificate_file,
                "cluster.etcd_certificate_key_file",
                &cluster.etcd_certificate_key_file,
            ),
            ("cluster.etcd_user", &cluster.etcd_user, "cluster.etcd_password_file", &cluster.etcd_password_file),
            ("cluster.nats_user", &cluster.nats_user, "cluster.nats_password_file", &cluster.nats_password_file),
            (
                "cluster.nats_certificate_file",
                &cluster.nats_certificate_file,
                "cluster.nats_certificate_key_file",
                &cluster.nats_certificate_key_file,
            ),
            (
                "cluster.relay_certificate_file",
                &cluster.relay_certificate_file,
                "cluster.relay_certificate_key_file",
                &cluster.relay_certificate_key_file,
            ),
            (
                "cluster.relay_certificate_file",
                &cluster.relay_certificate_file,
                "cluster.relay_ca_file",
                &cluster.relay_ca_file,
            ),
        ] {
            if file.is_empty() != other.is_empty() {
                complain(key, format!("{key} and {other_key} belong together: give both, or neither"));
            }
        }
        let is_tls = |text: &String| text.starts_with("https://");
        if !cluster.etcd_ca_file.is_empty() && !cluster.etcd.iter().all(is_tls) {
            complain(
                "cluster.etcd",
                "cluster.etcd_ca_file is set, and an address in cluster.etcd begins with http://, where no certificate is looked at: write https://".to_owned(),
            );
        }
    }

    fn check_nats(&self, problems: &mut Vec<Problem>) {
        let cluster = &self.cluster;
        let mut complain = |key: &str, message: &str| problems.push(problem(key, message.to_owned()));
        if cluster.transport == Transport::Nats && cluster.nats.is_empty() {
            complain(
                "cluster.nats",
                "cluster.transport = \"nats\" and cluster.nats is empty: name a server of NATS, as in `nats://10.0.0.7:4222`",
            );
        }
        let ways = [&cluster.nats_user, &cluster.nats_token_file, &cluster.nats_credentials_file];
        if ways.into_iter().filter(|way| !way.is_empty()).count() > 1 {
            complain(
                "cluster.nats_user",
                "of cluster.nats_user, cluster.nats_token_file and cluster.nats_credentials_file only one can be given: it is how this node logs in to NATS",
            );
        }
        let is_tls = |text: &String| text.starts_with("tls://");
        let wants_tls =
            [&cluster.nats_ca_file, &cluster.nats_certificate_file].into_iter().any(|file| !file.is_empty());
        if wants_tls && !cluster.nats.iter().all(is_tls) {
            complain(
                "cluster.nats",
                "cluster.nats_ca_file or cluster.nats_certificate_file is set, and an address in cluster.nats begins with nats://, where no certificate is asked for: write tls://",
            );
        }
        // A message may be on its way for that long before the first copy of it arrives, and after its publisher has given up.
        const ON_ITS_WAY_MS: u64 = 10_000;
        if cluster.nats_duplicate_window_ms < cluster.nats_publish_timeout_ms.saturating_add(ON_ITS_WAY_MS) {
            complain(
                "cluster.nats_duplicate_window_ms",
                "cluster.nats_duplicate_window_ms is less than cluster.nats_publish_timeout_ms and 10 s: the stream would not know a message again that is sent twice; raise it",
            );
        }
        if cluster.nats_max_age_ms > 0 && cluster.nats_max_age_ms < cluster.nats_duplicate_window_ms {
            complain(
                "cluster.nats_max_age_ms",
                "cluster.nats_max_age_ms is less than cluster.nats_duplicate_window_ms, which NATS refuses: raise the first or lower the second",
            );
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let cluster = &self.cluster;
        if cluster.is_relay_open() && cluster.insecure && !is_loopback(&cluster.relay_address) {
            warnings.push(format!(
                "cluster.relay_address = {} and cluster.insecure = true: whoever reaches this port sees all that is published here",
                cluster.relay_address
            ));
        }
        if !cluster.is_on() && cluster.role != super::Role::All {
            warnings.push(
                "cluster.role is not \"all\", cluster.etcd is empty and cluster.transport is not \"nats\": publishers and subscribers will not meet"
                    .to_owned(),
            );
        }
        warnings.extend(self.doubtful_in_a_cluster());
        for (key, address) in self.gopush_publishing().filter(|(_, a)| !is_loopback(a)) {
            warnings.push(format!(
                "{key} = {address} and compat.gopush.insecure = true: whoever reaches this port may publish"
            ));
        }
        if self.publish.tokens_file.is_empty() {
            for (key, address) in self.publishing().filter(|(_, a)| !is_loopback(a)) {
                warnings.push(format!(
                    "{key} = {address} and publish.insecure = true: whoever reaches this port may publish"
                ));
            }
        }
        if self.auth.login == LoginMode::AcceptAny {
            warnings.push(
                "auth.login = \"accept-any\": WHOEVER CONNECTS IS WHOEVER THEY SAY THEY ARE, no token is checked; for development only"
                    .to_owned(),
            );
        }
        if self.drain.drain_deadline_ms < self.drain.drain_window_ms {
            warnings.push(format!(
                "drain.drain_deadline_ms = {} ends a drain before drain.drain_window_ms = {} is over: the last clients are cut without a close frame",
                self.drain.drain_deadline_ms, self.drain.drain_window_ms
            ));
        }
        for (i, listen) in self.listen.iter().enumerate() {
            let paths = [
                ("gpush_path", &listen.gpush_path),
                ("centrifugo_path", &listen.centrifugo_path),
                ("gopush_path", &listen.gopush_path),
            ];
            let served: Vec<_> = paths.into_iter().filter(|(_, path)| !path.is_empty()).collect();
            if served.is_empty() {
                warnings.push(format!("every path of listen.{i} is empty: nobody can subscribe at {}", listen.address));
            }
            for (at, (key, path)) in served.iter().enumerate() {
                if let Some((first, _)) = served[..at].iter().find(|(_, other)| other == path) {
                    warnings.push(format!(
                        "listen.{i}.{key} is the path of listen.{i}.{first}: its clients are not served"
                    ));
                }
            }
        }
        warnings.extend(self.too_small_for_json());
        if self.websocket.deflate && self.websocket.deflate_bytes_min > self.limits.message_bytes_max {
            warnings.push(
                "websocket.deflate_bytes_min is above limits.message_bytes_max: nothing will ever be compressed"
                    .to_owned(),
            );
        }
        warnings
    }
}

impl Config {
    /// What works with a stream of NATS, and otherwise than meant.
    fn doubtful_with_nats(&self) -> Vec<String> {
        let (cluster, gopush) = (&self.cluster, &self.compat.gopush);
        let mut warnings = Vec::new();
        if gopush.enabled && !gopush.gateway_list.is_empty() {
            warnings.push(
                "compat.gopush.gateway_list is set, and cluster.transport = \"nats\": gateways that read the stream get each push twice; leave them out of the list"
                    .to_owned(),
            );
        }
        if !cluster.gpush_prefix.is_empty() && cluster.has_members() {
            warnings.push(
                "cluster.gpush_prefix is set, and cluster.transport = \"nats\": gpush's sockets find this node, but it does not pull from gpush's proxies, whose messages have no place in the stream; have their publishers publish here, or straight into NATS"
                    .to_owned(),
            );
        }
        let is_open = cluster.nats_user.is_empty()
            && cluster.nats_token_file.is_empty()
            && cluster.nats_credentials_file.is_empty()
            && cluster.nats_certificate_file.is_empty();
        let far = cluster.nats.iter().find(|address| !is_loopback_url(address));
        if let Some(nats) = far.filter(|_| is_open) {
            warnings.push(format!(
                "cluster.nats has {nats}, and this node shows no user, token, credentials or certificate there: whoever reaches it can publish to every subscriber, and read all"
            ));
        }
        warnings
    }

    /// What works between nodes, and otherwise than meant.
    fn doubtful_in_a_cluster(&self) -> Vec<String> {
        let (cluster, gopush) = (&self.cluster, &self.compat.gopush);
        let mut warnings = Vec::new();
        let is_everywhere =
            |address: &str| address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified());
        let near = cluster.etcd.iter().find(|address| is_loopback_url(address));
        if let Some(etcd) = near
            && !cluster.gpush_prefix.is_empty()
            && cluster.gpush_advertise.is_empty()
            && is_everywhere(&self.publish.grpc_address)
        {
            warnings.push(format!(
                "publish.grpc_address = {} and etcd is at {etcd}, which does not see how gpush's sockets reach this machine: set cluster.gpush_advertise, or the node is no member",
                self.publish.grpc_address
            ));
        }
        if cluster.transport == Transport::Nats {
            warnings.extend(self.doubtful_with_nats());
            return warnings;
        }
        if !cluster.is_relay_open() {
            return warnings;
        }
        if gopush.enabled && !gopush.gateway_list.is_empty() {
            warnings.push(
                "compat.gopush.gateway_list is set, and the nodes of cluster.etcd pull from one another: gateways that are nodes get each push twice; leave them out of the list"
                    .to_owned(),
            );
        }
        let far = cluster.etcd.iter().find(|address| !is_loopback_url(address));
        let (key, shown) = match &*cluster.relay_advertise {
            "" => ("cluster.relay_address", &cluster.relay_address),
            _ => ("cluster.relay_advertise", &cluster.relay_advertise),
        };
        if let Some(etcd) = far
            && is_loopback_url(shown)
        {
            warnings.push(format!(
                "{key} = {shown} and etcd is at {etcd}: nodes on other machines can't pull from this one, nothing it accepts reaches them; set {key} to an address that they reach, with tokens or certificates"
            ));
        }
        if let Some(etcd) = near
            && is_everywhere(&cluster.relay_address)
            && cluster.relay_advertise.is_empty()
        {
            warnings.push(format!(
                "cluster.relay_address = {} and etcd is at {etcd}, which does not see how other machines reach this one: set cluster.relay_advertise, or the node is no member",
                cluster.relay_address
            ));
        }
        let open = cluster.etcd.iter().find(|address| address.starts_with("http://") && !is_loopback_url(address));
        if let Some(etcd) = open
            && cluster.etcd_user.is_empty()
            && !cluster.relay_tokens_file.is_empty()
            && cluster.relay_ca_file.is_empty()
        {
            warnings.push(format!(
                "cluster.etcd has {etcd}, without cluster.etcd_user: whoever can write there is a node, and is shown the token of cluster.relay_tokens_file; give etcd users, or certificates to the nodes (cluster.relay_ca_file)"
            ));
        }
        warnings
    }
}

fn problem(key: &str, message: String) -> Problem {
    Problem { key: key.to_owned(), place: None, message }
}

/// Whether the second bind(2) would fail. Port 0 takes a free one; an unspecified address takes the port on all others.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let all = |ip: IpAddr| ip.is_unspecified();
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || all(a.ip()) || all(b.ip()))
}

/// As etcd's are written, without a path.
fn is_loopback_url(url: &str) -> bool {
    let address = url.split("://").last().unwrap_or(url);
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host == "localhost" || is_loopback(address)
}

fn is_loopback(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|a| a.ip().to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a default configuration after `change`.
    #[track_caller]
    fn said(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        config.validate().expect_err("this configuration is wrong").to_string()
    }

    #[track_caller]
    fn warned(change: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut config = Config::default();
        change(&mut config);
        config.validate().expect("this configuration is allowed")
    }

    #[test]
    fn the_default_is_allowed_and_gives_no_warning() {
        assert_eq!(warned(|_| ()), Vec::<String>::new());
    }

    #[test]
    fn a_configuration_made_by_code_is_held_to_the_same_bounds() {
        assert!(said(|c| c.shards.tick_interval_us = 1_000_001).contains("it must be 0 to 1_000_000"));
        assert!(said(|c| c.listen[0].address = "here".into()).starts_with("listen.0.address = \"here\""));
        assert!(said(|c| c.limits.handshakes_per_s_max = u64::MAX).contains("beyond what TOML holds"));
        assert!(said(|c| c.listen.clear()).contains("at least one"));
    }

    #[test]
    fn the_largest_message_must_fit_wherever_it_passes() {
        let least = Config::default().limits.message_bytes_max + FRAME_OVERHEAD_BYTES;
        for (key, change) in [
            ("slow.pending_bytes_max", (|c, n| c.slow.pending_bytes_max = n) as fn(&mut Config, usize)),
            ("shards.queue_bytes_max", |c, n| c.shards.queue_bytes_max = n),
            ("publish.request_bytes_max", |c, n| c.publish.request_bytes_max = n),
            ("publish.puller_bytes_max", |c, n| c.publish.puller_bytes_max = n),
            ("cluster.relay_buffer_bytes_max", |c, n| c.cluster.relay_buffer_bytes_max = n),
        ] {
            let said = said(|c| change(c, least - 1));
            assert!(said.starts_with(key) && said.contains(&format!("give at least {least}")), "{said}");
            warned(|c| change(c, least));
        }
    }

    #[test]
    fn where_messages_become_json_the_largest_should_fit_as_long_as_it_may_grow() {
        let least = 65_536 * JSON_GROWTH_MAX + FRAME_OVERHEAD_BYTES;
        for (key, change) in [
            ("slow.pending_bytes_max", (|c, n| c.slow.pending_bytes_max = n) as fn(&mut Config, usize)),
            ("shards.queue_bytes_max", |c, n| c.shards.queue_bytes_max = n),
        ] {
            let said = warned(|c| change(c, least - 1));
            assert!(said.len() == 1 && said[0].starts_with(key), "{said:?}");
            assert!(said[0].contains(&format!("give at least {least}")), "{said:?}");
            assert_eq!(warned(|c| change(c, least)), Vec::<String>::new());
            let gpush_only = warned(|c| {
                change(c, least - 1);
                (c.listen[0].centrifugo_path, c.listen[0].gopush_path) = Default::default();
            });
            assert_eq!(gpush_only, Vec::<String>::new());
        }
    }

    #[test]
    fn all_may_be_owed_at_least_what_one_may() {
        assert!(said(|c| c.slow.owed_bytes_max = c.slow.pending_bytes_max - 1).starts_with("slow.owed_bytes_max"));
        warned(|c| c.slow.owed_bytes_max = c.slow.pending_bytes_max);
    }

    #[test]
    fn a_path_serves_one_dialect_and_a_pong_comes_before_the_next_ping() {
        assert!(said(|c| c.listen[0].centrifugo_path = "/ws".into()).contains("a path serves one dialect"));
        warned(|c| {
            c.listen[0].gpush_path.clear();
            c.listen[0].centrifugo_path = "/ws".into();
        });
        let late = said(|c| c.centrifugo.pong_timeout_ms = c.centrifugo.ping_interval_ms);
        assert!(late.starts_with("centrifugo.pong_timeout_ms"), "{late}");
    }

    #[test]
    fn two_listeners_never_take_the_same_port() {
        let second = |address: &str| {
            let address = address.to_owned();
            move |c: &mut Config| {
                c.listen[0].address = "127.0.0.1:9992".into();
                c.listen.push(super::super::Listen { address, ..Default::default() });
            }
        };
        for address in ["127.0.0.1:9992", "0.0.0.0:9992", "[::]:9992"] {
            let said = said(second(address));
            assert!(said.starts_with("listen.1.address") && said.contains("listen.0.address"), "{said}");
        }
        assert!(
            said(second("127.0.0.1:10067")).starts_with("publish.grpc_address = 127.0.0.1:10067 and listen.1.address")
        );
        assert!(said(|c| c.publish.http_address = c.publish.grpc_address.clone()).contains("the same port"));
        for address in ["127.0.0.2:9992", "127.0.0.1:9993", "[::1]:9992"] {
            assert_eq!(warned(second(address)), Vec::<String>::new(), "{address}");
        }
        warned(|c| {
            for address in [&mut c.listen[0].address, &mut c.publish.grpc_address, &mut c.publish.http_address] {
                *address = "127.0.0.1:0".into(); // The kernel gives each another.
            }
        });
    }

    #[test]
    fn logins_need_whom_to_ask_and_a_token_at_connect_needs_logins() {
        let url = |c: &mut Config| c.auth.url = "https://accounts.example/validate".into();
        assert!(said(|c| c.auth.login = LoginMode::Url).contains("auth.url is empty"));
        assert!(said(url).contains("nobody asks it"));
        assert!(said(|c| c.auth.token_at_connect = true).contains("set auth.login"));
        for wrong in ["accounts.example", "ftp://accounts.example", "http://", "http://a b"] {
            assert!(said(|c| c.auth.url = wrong.into()).contains("http:// or https://"), "{wrong}");
        }
        let with_url = |c: &mut Config| {
            url(c);
            c.auth.login = LoginMode::Url;
            c.auth.token_at_connect = true;
        };
        assert_eq!(warned(with_url), Vec::<String>::new());
        assert!(warned(|c| c.auth.login = LoginMode::AcceptAny)[0].contains("WHOEVER"));
    }

    #[test]
    fn publishing_off_loopback_needs_tokens_or_insecure_in_so_many_words() {
        for address in ["0.0.0.0:10068", "192.0.2.1:10068", "[::]:10068"] {
            let said = said(|c| c.publish.http_address = address.into());
            assert!(said.starts_with(&format!("publish.http_address = {address} can be reached")), "{said}");
            assert!(said.contains("publish.tokens_file") && said.contains("publish.insecure = true"), "{said}");
        }
        assert!(said(|c| c.publish.grpc_address = "0.0.0.0:10067".into()).starts_with("publish.grpc_address"));
        let with_tokens = warned(|c| {
            c.publish.http_address = "0.0.0.0:10068".into();
            c.publish.tokens_file = "tokens".into();
        });
        assert_eq!(with_tokens, Vec::<String>::new());
        let insecure = warned(|c| {
            c.publish.http_address = "0.0.0.0:10068".into();
            c.publish.insecure = true;
        });
        assert!(insecure[0].contains("whoever reaches this port may publish"), "{insecure:?}");
        for address in ["127.0.0.2:10068", "[::1]:10068", "[::ffff:127.0.0.1]:10068"] {
            assert_eq!(warned(|c| c.publish.http_address = address.into()), Vec::<String>::new(), "{address}");
        }
    }

    #[test]
    fn go_pushs_ports_are_held_to_the_same_rules_once_they_are_open() {
        let open = |c: &mut Config| c.compat.gopush.enabled = true;
        assert_eq!(warned(open), Vec::<String>::new());
        assert_eq!(warned(|c| c.compat.gopush.gateway_address = "0.0.0.0:10068".into()), Vec::<String>::new());
        let said_of_exposed = said(|c| {
            open(c);
            c.compat.gopush.gateway_address = "0.0.0.0:7788".into();
        });
        assert!(
            said_of_exposed.starts_with("compat.gopush.gateway_address = 0.0.0.0:7788 can be reached"),
            "{said_of_exposed}"
        );
        assert!(said_of_exposed.contains("compat.gopush.insecure = true"));
        let insecure = warned(|c| {
            open(c);
            c.compat.gopush.logic_address = "0.0.0.0:7799".into();
            c.compat.gopush.insecure = true;
        });
        assert!(insecure[0].contains("whoever reaches this port may publish"), "{insecure:?}");
        let collides = said(|c| {
            open(c);
            c.compat.gopush.connect_address = "0.0.0.0:9992".into();
        });
        assert!(collides.contains("listen.0.address") && collides.contains("the same port"), "{collides}");
        let lonely = said(|c| c.compat.gopush.certificate_file = "cert.pem".into());
        assert!(lonely.contains("belong together"), "{lonely}");
        warned(|c| {
            open(c);
            let gopush = &mut c.compat.gopush;
            (gopush.connect_address, gopush.gateway_address, gopush.logic_address) = Default::default();
        });
    }

    #[test]
    fn the_relay_off_loopback_needs_tokens_certificates_or_insecure_in_so_many_words() {
        let open = |c: &mut Config| {
            c.cluster.etcd = vec!["http://10.0.0.7:2379".into()];
            c.cluster.relay_address = "0.0.0.0:10069".into();
        };
        let exposed = said(open);
        assert!(exposed.starts_with("cluster.relay_address = 0.0.0.0:10069 can be reached"), "{exposed}");
        assert!(exposed.contains("cluster.insecure = true"), "{exposed}");
        let with_tokens = |c: &mut Config| {
            open(c);
            c.cluster.etcd = vec!["https://10.0.0.7:2379".into()];
            c.cluster.relay_tokens_file = "tokens".into();
        };
        assert_eq!(warned(with_tokens), Vec::<String>::new());
        let with_certificates = |c: &mut Config| {
            open(c);
            c.cluster.relay_ca_file = "ca.pem".into();
            c.cluster.relay_certificate_file = "node.pem".into();
            c.cluster.relay_certificate_key_file = "node.key".into();
        };
        assert_eq!(warned(with_certificates), Vec::<String>::new());
        let insecure = warned(|c| {
            open(c);
            c.cluster.insecure = true;
        });
        assert!(insecure[0].contains("sees all that is published here"), "{insecure:?}");
        for closed in [
            (|c| c.cluster.etcd.clear()) as fn(&mut Config),
            |c| c.cluster.transport = super::super::Transport::None,
            |c| c.cluster.role = super::super::Role::Fanout,
        ] {
            let mut config = Config::default();
            open(&mut config);
            closed(&mut config);
            config.validate().expect("nothing listens there");
        }
    }

    #[test]
    fn what_a_cluster_does_otherwise_than_meant_is_said() {
        let far = |c: &mut Config| c.cluster.etcd = vec!["http://localhost:2379".into(), "http://10.0.0.7:2379".into()];
        let silent = warned(far);
        assert!(silent.len() == 1 && silent[0].contains("nothing it accepts reaches them"), "{silent:?}");
        assert!(silent[0].contains("http://10.0.0.7:2379"), "{silent:?}");
        let near = |c: &mut Config| {
            c.cluster.etcd = vec!["http://localhost:2379".into(), "http://127.0.0.1:1".into(), "http://[::1]:1".into()];
        };
        let advertised = |c: &mut Config| {
            far(c);
            c.cluster.relay_advertise = "10.0.0.1:10069".into();
        };
        assert_eq!((warned(near), warned(advertised)), (vec![], vec![]));
        let in_vain = warned(|c: &mut Config| {
            far(c);
            c.cluster.relay_advertise = "localhost:10069".into();
        });
        assert!(
            in_vain.len() == 1 && in_vain[0].starts_with("cluster.relay_advertise = localhost:10069"),
            "{in_vain:?}"
        );
        let everywhere = |c: &mut Config| {
            near(c);
            c.cluster.relay_address = "0.0.0.0:10069".into();
            c.cluster.relay_certificate_file = "certificate".into();
            c.cluster.relay_certificate_key_file = "key".into();
            c.cluster.relay_ca_file = "ca".into();
        };
        let unseen = warned(everywhere);
        assert!(unseen.len() == 1 && unseen[0].contains("set cluster.relay_advertise"), "{unseen:?}");
        let told = |c: &mut Config| {
            everywhere(c);
            c.cluster.relay_advertise = "node-1:10069".into();
        };
        assert_eq!(warned(told), Vec::<String>::new());
        let beside = warned(|c: &mut Config| {
            told(c);
            c.cluster.gpush_prefix = "proxy".into();
            c.publish.grpc_address = "0.0.0.0:9091".into();
            c.publish.insecure = true;
        });
        assert!(beside.iter().any(|warning| warning.contains("set cluster.gpush_advertise")), "{beside:?}");

        let tokens = |c: &mut Config| {
            advertised(c);
            c.cluster.relay_tokens_file = "tokens".into();
        };
        let open = warned(tokens);
        assert!(open.len() == 1 && open[0].contains("whoever can write there is a node"), "{open:?}");
        let closed = |c: &mut Config| {
            tokens(c);
            (c.cluster.etcd_user, c.cluster.etcd_password_file) = ("fanwire".into(), "password".into());
        };
        let tls = |c: &mut Config| {
            tokens(c);
            c.cluster.etcd = vec!["https://10.0.0.7:2379".into()];
        };
        assert_eq!((warned(closed), warned(tls)), (vec![], vec![]));

        let twice = |c: &mut Config| {
            near(c);
            c.compat.gopush.enabled = true;
            c.compat.gopush.gateway_list = vec!["10.0.0.2:7788".into()];
        };
        assert!(warned(twice).iter().any(|warning| warning.contains("get each push twice")));
        let alone = |c: &mut Config| {
            twice(c);
            c.cluster.etcd.clear();
        };
        assert!(!warned(alone).iter().any(|warning| warning.contains("twice")));
    }

    #[test]
    fn a_stream_of_nats_needs_a_server_one_login_and_times_that_fit() {
        fn nats(c: &mut Config) {
            c.cluster.transport = Transport::Nats;
            c.cluster.nats = vec!["nats://127.0.0.1:4222".into()];
        }
        assert!(said(|c| c.cluster.transport = Transport::Nats).contains("cluster.nats is empty"));
        assert!(said(|c| c.cluster.nats = vec!["10.0.0.7:4222".into()]).contains("as in `nats://10.0.0.7:4222`"));
        assert!(
            said(|c| c.cluster.nats_user = "fanwire".into()).contains("cluster.nats_password_file belong together")
        );
        let two = said(|c| {
            nats(c);
            (c.cluster.nats_token_file, c.cluster.nats_credentials_file) = ("a".into(), "b".into());
        });
        assert!(two.contains("only one can be given"), "{two}");
        let plain = said(|c| {
            nats(c);
            c.cluster.nats_ca_file = "ca.pem".into();
        });
        assert!(plain.contains("write tls://"), "{plain}");
        assert!(said(|c| c.cluster.nats_duplicate_window_ms = 14_999).contains("would not know a message again"));
        assert!(said(|c| c.cluster.nats_max_age_ms = 1000).contains("which NATS refuses"));
        for stream in ["", "a.b", "a b"] {
            let settings = [("cluster.nats_stream".to_owned(), stream.to_owned())];
            assert!(crate::config::load(None, std::iter::empty(), &settings).is_err(), "{stream}");
        }

        assert!(warned(nats).is_empty());
        let far = |c: &mut Config| {
            nats(c);
            c.cluster.nats = vec!["nats://10.0.0.7:4222".into()];
        };
        let open = warned(far).concat();
        assert!(open.contains("whoever reaches it can publish"), "{open}");
    }

    #[test]
    fn what_belongs_together_in_a_cluster_is_given_together() {
        assert!(
            said(|c| c.cluster.etcd_user = "fanwire".into()).contains("cluster.etcd_password_file belong together")
        );
        assert!(said(|c| c.cluster.relay_ca_file = "ca".into()).contains("belong together"));
        assert!(said(|c| c.cluster.etcd = vec!["10.0.0.7:2379".into()]).contains("as in `http://10.0.0.7:2379`"));
        let unchecked = said(|c| {
            c.cluster.etcd = vec!["http://10.0.0.7:2379".into()];
            c.cluster.etcd_ca_file = "ca.pem".into();
        });
        assert!(unchecked.contains("write https://"), "{unchecked}");
        let lonely = warned(|c| c.cluster.role = super::super::Role::Ingest);
        assert!(lonely[0].contains("will not meet"), "{lonely:?}");
    }

    #[test]
    fn a_proxys_header_is_asked_for_only_where_proxies_are_named() {
        assert!(said(|c| c.listen[0].proxy_protocol = true).contains("listen.0.trusted_proxies is empty"));
        warned(|c| {
            c.listen[0].proxy_protocol = true;
            c.listen[0].trusted_proxies = vec!["10.0.0.0/8".into()];
        });
        assert!(said(|c| c.listen[0].trusted_proxies = vec!["proxy".into()]).contains("an IP address or a network"));
        assert!(said(|c| c.listen[0].path_prefix = "/push/".into()).contains("does not end in one"));
    }

    #[test]
    fn what_is_probably_not_meant_is_said() {
        assert!(warned(|c| c.drain.drain_deadline_ms = 4999)[0].contains("cut without a close frame"));
        let pathless = |c: &mut Config| {
            let listen = &mut c.listen[0];
            (listen.gpush_path, listen.centrifugo_path, listen.gopush_path) = Default::default();
        };
        assert!(warned(pathless)[0].contains("nobody can subscribe"));
        assert_eq!(warned(|c| c.listen[0].gpush_path.clear()), Vec::<String>::new());
        let twice = warned(|c| c.listen[0].gopush_path = "/ws".into());
        assert_eq!(twice, ["listen.0.gopush_path is the path of listen.0.gpush_path: its clients are not served"]);
        let never = warned(|c| (c.websocket.deflate, c.websocket.deflate_bytes_min) = (true, 65_537));
        assert!(never[0].contains("nothing will ever be compressed"));
    }
}
