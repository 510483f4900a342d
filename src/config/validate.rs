//! What one value may be says its setting; here is what holds between values, and what is allowed but worth a word.

use super::load::refusal;
use super::{Config, ConfigError, Problem, sections};
use std::net::{IpAddr, SocketAddr};

/// Most that framing adds to a payload: WebSocket header (RFC 6455 §5.2), a dialect's envelope with a name of 255 bytes,
/// stored blocks of deflate.
pub const FRAME_OVERHEAD_BYTES: usize = 1024;

impl Config {
    /// Holds every value to what it may be, and the values to one another. Returns what is allowed but probably not meant.
    ///
    /// # Errors
    /// All that is wrong, each with its key; [`super::load`] adds the places.
    pub fn validate(&self) -> Result<Vec<String>, ConfigError> {
        let mut problems = self.not_allowed();
        // What holds between values makes sense only among values that make sense.
        if problems.is_empty() {
            self.check_sizes(&mut problems);
            self.check_addresses(&mut problems);
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
            let of_section = &table[section.name];
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

    fn check_addresses(&self, problems: &mut Vec<Problem>) {
        let mut taken: Vec<(String, SocketAddr)> = Vec::new();
        let addresses = self.listen.iter().enumerate().map(|(i, l)| (format!("listen.{i}.address"), &l.address));
        for (key, address) in addresses.chain(self.publishing().map(|(key, address)| (key.to_owned(), address))) {
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

    fn publishing(&self) -> impl Iterator<Item = (&'static str, &String)> {
        [("publish.grpc_address", &self.publish.grpc_address), ("publish.http_address", &self.publish.http_address)]
            .into_iter()
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.publish.tokens_file.is_empty() {
            for (key, address) in self.publishing().filter(|(_, a)| !is_loopback(a)) {
                warnings.push(format!(
                    "{key} = {address} and publish.insecure = true: whoever reaches this port may publish"
                ));
            }
        }
        if self.drain.drain_deadline_ms < self.drain.drain_window_ms {
            warnings.push(format!(
                "drain.drain_deadline_ms = {} ends a drain before drain.drain_window_ms = {} is over: the last clients are cut without a close frame",
                self.drain.drain_deadline_ms, self.drain.drain_window_ms
            ));
        }
        for (i, listen) in self.listen.iter().enumerate().filter(|(_, l)| l.gpush_path.is_empty()) {
            warnings.push(format!("listen.{i}.gpush_path is empty: nobody can subscribe at {}", listen.address));
        }
        if self.websocket.deflate && self.websocket.deflate_bytes_min > self.limits.message_bytes_max {
            warnings.push(
                "websocket.deflate_bytes_min is above limits.message_bytes_max: nothing will ever be compressed"
                    .to_owned(),
            );
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

fn is_loopback(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|a| a.ip().to_canonical().is_loopback())
}
