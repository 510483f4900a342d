//! One gateway's publishing side within one tokio-uring runtime, and the ends of its shards' queues in the test's hands.

use crate::fake::FakeTopics;
use fanwire::config::Publish;
use fanwire::ingest::{Control, Hooks, Server, ShardQueues, Tokens};
use fanwire::metrics::ControlMetrics;
use fanwire::queue::{Bell, FromShard, Receiver, Sender, ToShard, channel};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// No test takes this long unless something hangs.
const TEST_MAX: Duration = Duration::from_secs(20);

pub struct Options {
    pub shards: usize,
    pub queue_items_max: usize,
    pub publish_wait_ms: u64,
    pub publish: Publish,
    pub dev: bool,
    /// As `FakeTopics` has it.
    pub busy: bool,
}

impl Default for Options {
    fn default() -> Options {
        let free = || "127.0.0.1:0".to_string();
        Options {
            shards: 2,
            queue_items_max: 1000,
            publish_wait_ms: 30,
            publish: Publish { grpc_address: free(), http_address: free(), ..Publish::default() },
            dev: false,
            busy: false,
        }
    }
}

/// A shard as the control core knows it.
pub struct Shard {
    pub inbox: Receiver<ToShard>,
    pub outbox: Sender<FromShard>,
    pub bell: Arc<Bell>,
}

impl Shard {
    pub fn frames(&mut self) -> Vec<String> {
        let mut frames = Vec::new();
        while let Some(message) = self.inbox.pop() {
            self.inbox.release(message.queued_bytes());
            if let ToShard::Frame { frame, .. } = message {
                frames.push(String::from_utf8(frame.to_vec()).unwrap());
            }
        }
        frames
    }
}

/// A control core and its shards' ends, in the order of their ids. The driver doesn't run yet.
pub fn control(options: &Options) -> (Arc<Control>, Vec<Shard>, Arc<Bell>) {
    let bell = Bell::new().unwrap();
    let (queues, shards) = (0..options.shards)
        .map(|_| {
            let shard_bell = Bell::silent();
            let (to, inbox) = channel(options.queue_items_max, 1 << 20, shard_bell.clone());
            let (outbox, from) = channel(1000, 1 << 20, bell.clone());
            (ShardQueues { inbox: to, outbox: from }, Shard { inbox, outbox, bell: shard_bell })
        })
        .unzip();
    let mut mind = Box::new(FakeTopics::new(options.publish_wait_ms));
    mind.busy = options.busy;
    (Arc::new(Control::new(mind, queues, bell.clone(), Arc::new(ControlMetrics::default()))), shards, bell)
}

pub struct Gateway {
    pub control: Arc<Control>,
    pub shards: Vec<Shard>,
    pub tokens: Arc<Tokens>,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    /// What `/readyz` complains about.
    pub unready: Arc<Mutex<Vec<String>>>,
    /// What `/metrics` says.
    pub metrics: Arc<Mutex<String>>,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<std::io::Result<()>>,
}

impl Gateway {
    fn start(options: Options) -> Gateway {
        let (control, shards, _) = control(&options);
        let Options { publish, dev, .. } = options;
        tokio::spawn({
            let control = control.clone();
            async move { control.run(Arc::new(crate::fake::Nobody)).await }
        });
        let server = Server::bind(&publish).unwrap();
        let (grpc, http) = (server.grpc_address().unwrap().unwrap(), server.http_address().unwrap());
        let tokens = Arc::new(Tokens::load(&publish.tokens_file).unwrap());
        let unready = Arc::new(Mutex::new(Vec::new()));
        let metrics = Arc::new(Mutex::new("fanwire_up 1\n".to_string()));
        let hooks = Hooks {
            metrics: Arc::new({
                let metrics = metrics.clone();
                move || {
                    let metrics = metrics.lock().unwrap_or_else(|e| e.into_inner());
                    assert_ne!(*metrics, crate::fake::PANIC, "asked for");
                    metrics.clone()
                }
            }),
            unready: Arc::new({
                let unready = unready.clone();
                move || unready.lock().unwrap().clone()
            }),
            notes: Arc::new(Vec::new),
            stats: Arc::new(|| r#"{"count":7}"#.to_owned()),
            log: Arc::new(crate::fake::FakeLog::default()),
        };
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn({
            let (control, tokens) = (control.clone(), tokens.clone());
            async move {
                let stopped = async { drop(stopped.await) };
                server.serve(control, tokens, hooks, &publish, dev, stopped).await
            }
        });
        Gateway { control, shards, tokens, grpc, http, unready, metrics, stop: Some(stop), served }
    }

    pub fn grpc_url(&self) -> String {
        format!("http://{}", self.grpc)
    }

    pub fn order_to_stop(&mut self) {
        self.stop.take().expect("once").send(()).unwrap();
    }

    pub async fn stopped(self) {
        self.served.await.unwrap().unwrap();
    }
}

/// Runs `test` beside a gateway, all of it in one tokio-uring runtime, as the control core does.
pub fn with_gateway(options: Options, test: impl AsyncFnOnce(&mut Gateway)) {
    in_runtime(async {
        let mut gateway = Gateway::start(options);
        test(&mut gateway).await;
        if gateway.stop.is_some() {
            gateway.order_to_stop();
        }
        gateway.stopped().await;
    });
}

pub fn in_runtime<T>(test: impl Future<Output = T>) -> T {
    tokio_uring::builder()
        .start(async { tokio::time::timeout(TEST_MAX, test).await.expect("the test should not take so long") })
}

/// Waits for a condition; `TEST_MAX` bounds it.
pub async fn eventually<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(value) = condition() {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// An HTTP/1.1 client of a few lines: what goes over the wire is in plain sight.
pub struct Http(TcpStream);

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
        })
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }
}

impl Http {
    pub async fn connect(address: SocketAddr) -> Http {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Http(stream)
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    pub async fn post(&mut self, path: &str, headers: &str, body: &str) -> Answer {
        self.request("POST", path, headers, body).await
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.request("GET", path, "", "").await
    }

    pub async fn request(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
        self.send(request.as_bytes()).await;
        self.answer().await
    }

    pub async fn answer(&mut self) -> Answer {
        let mut bytes = Vec::new();
        let (head, mut body) = loop {
            assert_ne!(self.0.read_buf(&mut bytes).await.unwrap(), 0, "cut after {bytes:?}");
            if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                break (String::from_utf8(bytes[..end].to_vec()).unwrap(), bytes[end + 4..].to_vec());
            }
        };
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head, body: String::new() };
        let length: usize = answer.header("content-length").unwrap().parse().unwrap();
        while body.len() < length {
            assert_ne!(self.0.read_buf(&mut body).await.unwrap(), 0, "cut within the body");
        }
        assert_eq!(body.len(), length, "more than one answer");
        answer.body = String::from_utf8(body).unwrap();
        answer
    }

    /// Whether the other side has ended the connection, once it has sent nothing else.
    pub async fn ends(&mut self) -> bool {
        matches!(self.0.read(&mut [0]).await, Ok(0) | Err(_))
    }
}
