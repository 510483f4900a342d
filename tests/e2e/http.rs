//! The smallest HTTP/1.1 client that does: one request, one connection, read to the end.

use crate::gateway::{DEADLINE, Gateway, wait_until};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// What came back.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Response {
    /// Parses head and body of a response that is complete.
    pub fn parse(bytes: &[u8]) -> Response {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no end of the head in {text:?}"));
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers: HashMap<_, _> =
            headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_string())).collect();
        let body = match headers.get("transfer-encoding").map(String::as_str) {
            Some("chunked") => unchunk(body),
            _ => body.to_string(),
        };
        Response { status: status.unwrap_or_else(|| panic!("no status in {head:?}")), headers, body }
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in {:?}", self.body))
    }
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk's size");
        whole += &rest[..size];
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

/// One request.
pub fn request(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let mut stream = TcpStream::connect_timeout(&to, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() || method == "POST" {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    Response::parse(&bytes)
}

impl Gateway {
    /// GET on the HTTP port.
    pub fn get(&self, path: &str) -> Response {
        request(self.http, "GET", path, &[], &[])
    }

    /// POST on the HTTP port.
    pub fn post(&self, path: &str, body: &str) -> Response {
        request(self.http, "POST", path, &[("Content-Type", "application/json")], body.as_bytes())
    }

    /// Publishes by `/v1/pushData`, whatever comes of it.
    pub fn try_push(&self, topic: &str, data: &str) -> Response {
        use base64::Engine as _;
        let data = base64::engine::general_purpose::STANDARD.encode(data);
        self.post("/v1/pushData", &serde_json::json!({ "topic": topic, "data": data }).to_string())
    }

    /// Publishes by `/v1/pushData`; it must be taken.
    pub fn push(&self, topic: &str, data: &str) {
        let response = self.try_push(topic, data);
        assert_eq!((response.status, response.body.as_str()), (200, "{}"), "{response:?}");
    }

    /// Publishes to a user; it must be taken.
    pub fn push_to(&self, uid: &str, topic: &str, data: &str) {
        use base64::Engine as _;
        let data = base64::engine::general_purpose::STANDARD.encode(data);
        let push = serde_json::json!({ "uid": uid, "topic": topic, "data": data });
        let response = self.post("/v1/pushData", &push.to_string());
        assert_eq!((response.status, response.body.as_str()), (200, "{}"), "{response:?}");
    }

    /// Makes a shard do nothing for a while; it stands still when this returns, and its queue is as it left it. Only with `--dev`.
    pub fn stall(&self, shard: usize, ms: u64) {
        let stalls = || self.stderr().matches("standing still, as asked").count();
        let before = stalls();
        let response = self.post(&format!("/dev/stall?shard={shard}&ms={ms}"), "");
        assert_eq!(response.status, 200, "{response:?}");
        wait_until("the shard stands still", || stalls() > before);
    }

    /// `/metrics`, now.
    pub fn metrics(&self) -> Metrics {
        let response = self.get("/metrics");
        assert_eq!(response.status, 200, "{response:?}");
        Metrics::parse(&response.body)
    }
}

/// A page of Prometheus text, parsed.
#[derive(Clone, Debug)]
pub struct Metrics {
    samples: Vec<(String, HashMap<String, String>, f64)>,
}

impl Metrics {
    fn parse(text: &str) -> Metrics {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let samples = lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line:?}"));
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = labels.trim_end_matches('}').split(',').filter_map(|label| {
                let (key, value) = label.split_once('=')?;
                Some((key.to_string(), value.trim_matches('"').to_string()))
            });
            let value = value.parse().unwrap_or_else(|_| panic!("not a number in {line:?}"));
            (name.to_string(), labels.collect(), value)
        });
        Metrics { samples: samples.collect() }
    }

    /// Whether there is a sample of that name.
    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|(n, ..)| n == name)
    }

    /// The sum of all samples of that name that carry these labels; 0 if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted = |has: &HashMap<String, String>| labels.iter().all(|(k, v)| has.get(*k).is_some_and(|x| x == v));
        self.samples.iter().filter(|(n, l, _)| n == name && wanted(l)).map(|(.., value)| value).sum()
    }

    /// Connections that own a slot, of one shard.
    pub fn connections_of(&self, shard: usize) -> f64 {
        self.sum("fanwire_connections", &[("shard", &shard.to_string())])
    }

    /// Connections that own a slot.
    pub fn connections(&self) -> f64 {
        self.sum("fanwire_connections", &[])
    }

    /// Handshakes that ended like this.
    pub fn handshakes(&self, result: &str) -> f64 {
        self.sum("fanwire_handshakes_total", &[("result", result)])
    }

    /// Connections closed for this reason.
    pub fn closes(&self, reason: &str) -> f64 {
        self.sum("fanwire_closes_total", &[("reason", reason)])
    }

    /// Messages that were not delivered, for whatever reason.
    pub fn drops(&self) -> f64 {
        self.sum("fanwire_drops_total", &[])
    }

    /// Messages that were not delivered, for this reason.
    pub fn drops_by(&self, reason: &str) -> f64 {
        self.sum("fanwire_drops_total", &[("reason", reason)])
    }
}
