//! How many messages a second the publishing side takes, and what one costs the control core. Figures, not promises: run
//! alone with `cargo test --release --test publish -- --ignored --nocapture speed`.

use crate::fake::FakeTopics;
use fanwire::config::Publish;
use fanwire::ingest::{Control, Hooks, Server, ShardQueues, Tokens};
use fanwire::metrics::ControlMetrics;
use fanwire::proto::v1::publisher_client::PublisherClient;
use fanwire::proto::v1::{PublishBatch, PublishRequest};
use fanwire::queue::{Bell, channel};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio_stream::wrappers::ReceiverStream;

const MESSAGE_BYTES: usize = 128;
const BATCH_MESSAGES: usize = 100;
const BATCHES_UNDER_WAY: usize = 16;
const BATCHES: usize = 20_000;
const REQUESTS: usize = 200_000;
const SHARDS: usize = 2;

/// A control core on a thread of its own, and its CPU time so far.
struct Core {
    grpc: SocketAddr,
    http: SocketAddr,
    cpu_ns: Arc<AtomicU64>,
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
    shards: thread::JoinHandle<()>,
    done: Arc<AtomicBool>,
}

fn start() -> Core {
    let bell = Bell::new().unwrap();
    let (queues, mut inboxes): (Vec<_>, Vec<_>) = (0..SHARDS)
        .map(|_| {
            let (inbox, receiver) = channel(65_536, 64 << 20, Bell::silent());
            let (sender, outbox) = channel(16, 16, bell.clone());
            (ShardQueues { inbox, outbox }, (receiver, sender))
        })
        .unzip();
    let done = Arc::new(AtomicBool::new(false));
    let shards = thread::spawn({
        let done = done.clone();
        move || {
            while !done.load(Ordering::Relaxed) {
                for (inbox, _) in &mut inboxes {
                    let mut bytes = 0;
                    while let Some(message) = inbox.pop() {
                        bytes += message.queued_bytes();
                    }
                    inbox.release(bytes);
                }
                thread::sleep(Duration::from_millis(1)); // A tick.
            }
        }
    });
    let publish =
        Publish { grpc_address: "127.0.0.1:0".into(), http_address: "127.0.0.1:0".into(), ..Publish::default() };
    let server = Server::bind(&publish).unwrap();
    let (grpc, http) = (server.grpc_address().unwrap().unwrap(), server.http_address().unwrap());
    let cpu_ns = Arc::new(AtomicU64::new(0));
    let (stop, stopped) = oneshot::channel();
    let thread = thread::spawn({
        let cpu_ns = cpu_ns.clone();
        move || {
            let mut mind = FakeTopics::new(1000);
            mind.message_bytes_max = 65_536;
            let control = Arc::new(Control::new(Box::new(mind), queues, bell, Arc::new(ControlMetrics::default())));
            let hooks = Hooks {
                metrics: Arc::new(String::new),
                unready: Arc::new(Vec::new),
                notes: Arc::new(Vec::new),
                stats: Arc::new(String::new),
                log: Arc::new(crate::fake::FakeLog::default()),
            };
            tokio_uring::builder().start(async move {
                let driver = control.clone();
                tokio::spawn(async move { driver.run(Arc::new(crate::fake::Nobody)).await });
                tokio::spawn(async move {
                    loop {
                        cpu_ns.store(fanwire::sys::thread_cpu_ns(), Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                });
                let stopped = async { drop(stopped.await) };
                server.serve(control, Arc::new(Tokens::none()), hooks, &publish, false, stopped).await.unwrap();
            });
        }
    });
    Core { grpc, http, cpu_ns, stop, thread, shards, done }
}

impl Core {
    /// Runs `load`, which publishes `messages`, and prints the figures.
    fn measure(self, what: &str, messages: usize, load: impl FnOnce(&Core)) {
        let (began, cpu) = (Instant::now(), self.cpu_ns.load(Ordering::Relaxed));
        load(&self);
        let took = began.elapsed();
        thread::sleep(Duration::from_millis(10)); // The control core's last figure.
        let cpu = self.cpu_ns.load(Ordering::Relaxed) - cpu;
        println!(
            "{what}: {:.0} messages/s; control core {:.0} ns CPU a message, {:.0} % busy",
            messages as f64 / took.as_secs_f64(),
            cpu as f64 / messages as f64,
            cpu as f64 / took.as_nanos() as f64 * 100.0
        );
        self.stop.send(()).unwrap();
        self.thread.join().unwrap();
        self.done.store(true, Ordering::Relaxed);
        self.shards.join().unwrap();
    }
}

#[test]
#[ignore = "a measurement: run it alone"]
fn speed_of_publish_stream() {
    start().measure("PublishStream, batches of 100 × 128 B", BATCHES * BATCH_MESSAGES, |core| {
        let url = format!("http://{}", core.grpc);
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let (sender, batches) = tokio::sync::mpsc::channel(BATCHES_UNDER_WAY);
            let mut client = PublisherClient::connect(url).await.unwrap();
            let mut results = client.publish_stream(ReceiverStream::new(batches)).await.unwrap().into_inner();
            let message =
                PublishRequest { topic: "prices".into(), data: vec![b'x'; MESSAGE_BYTES].into(), ..Default::default() };
            let (mut sent, mut answered) = (0, 0);
            while answered < BATCHES {
                while sent < BATCHES && sent - answered < BATCHES_UNDER_WAY {
                    let messages = vec![message.clone(); BATCH_MESSAGES];
                    sender.send(PublishBatch { id: sent as u64, messages }).await.unwrap();
                    sent += 1;
                }
                let result = results.message().await.unwrap().unwrap();
                assert_eq!(result.id, answered as u64);
                assert!(result.results.len() == BATCH_MESSAGES && result.results.iter().all(|r| r.error.is_none()));
                answered += 1;
            }
        });
    });
}

#[test]
#[ignore = "a measurement: run it alone"]
fn speed_of_push_data_over_kept_alive_http() {
    for connections in [1, 16] {
        start().measure(&format!("POST /v1/pushData, {connections} connections"), REQUESTS, |core| {
            let body = format!(r#"{{"topic":"prices","data":"{}"}}"#, "eHh4".repeat(MESSAGE_BYTES / 3));
            let length = body.len();
            let request =
                format!("POST /v1/pushData HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}");
            let mut streams: Vec<_> = (0..connections).map(|_| TcpStream::connect(core.http).unwrap()).collect();
            streams.iter().for_each(|s| s.set_nodelay(true).unwrap());
            // All ask, then all are answered: one thread keeps every connection busy.
            for _ in 0..REQUESTS / connections {
                for stream in &mut streams {
                    stream.write_all(request.as_bytes()).unwrap();
                }
                for stream in &mut streams {
                    let mut answer = [0; 1024];
                    let n = stream.read(&mut answer).unwrap();
                    assert!(answer.starts_with(b"HTTP/1.1 200") && answer[..n].ends_with(b"{}"));
                }
            }
        });
    }
}
