//! Publishes on schedule. One thread keeps the time and makes the messages; another speaks gRPC, HTTP or NATS, for every
//! publisher over a connection of its own. What is due at a moment goes in one batch for each publisher; a bounded number of batches is unacknowledged at a time, and what has to wait for that counts as
//! late, never as less load.
//!
//! ```text
//! time ──batch──► I/O thread ──► gateway        at most `in_flight` batches between the two arrows
//!      ◄──ack───             ◄──
//! ```

mod grpc;
mod nats;
mod post;

pub use grpc::{grpc_client, with_token};
pub use post::Post;

use super::schedule::{Pace, Schedule};
use super::stamp::MESSAGE_BYTES_MIN;
use super::tally::histogram;
use crate::clock::Time;
use crate::sys;
use bytes::{Bytes, BytesMut};
use hdrhistogram::Histogram;
use post::Poster;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

/// Time between two batches of an open loop: what is due meanwhile goes with the next, and counts as late for as long. A wake-up for each of
/// 50,000 messages a second takes most of a core, and from whom, if the server has the other?
const APART_MIN: Duration = Duration::from_micros(100);
/// Batches unacknowledged at a time in an open loop.
const IN_FLIGHT_MAX: usize = 64;
/// Bytes of a batch, far below gRPC's limit on a message.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// A gateway that acknowledges nothing for this long has failed.
const STALLED: Duration = Duration::from_secs(10);
/// Different reasons of refusal kept apart.
const REASONS_MAX: usize = 10;

/// How messages get to the gateway.
#[derive(Clone, Debug)]
pub enum Interface {
    /// `fanwire.v1.Publisher/PublishStream`.
    Grpc {
        /// `host:port`, or several with commas between, over which publishers take turns.
        address: String,
    },
    /// A POST for each message, connections kept alive, one request at a time on each.
    Http {
        /// `host:port`.
        address: String,
        /// What is posted where.
        post: Post,
    },
    /// PUB, and a PING after each batch whose PONG is the acknowledgement.
    Nats {
        /// `host:port`.
        address: String,
    },
}

/// Where to publish and as whom.
#[derive(Clone, Debug)]
pub struct PublishPlan {
    /// By what.
    pub interface: Interface,
    /// Bearer token; Centrifugo's key.
    pub token: Option<String>,
    /// Messages of a batch; HTTP has one a request.
    pub batch_messages_max: usize,
}

/// Messages of one publisher on their way.
struct Batch {
    publisher: u32,
    messages: Vec<Message>,
}

struct Message {
    number: u64, // In the schedule.
    topic: u32,
    data: Bytes,
}

/// The answer to a batch.
struct Ack {
    messages: u64,
    refused: Vec<(u64, String)>, // Which message of the schedule, and why.
    at: Time,
}

/// What the I/O thread reports to.
#[derive(Clone)]
struct Acks {
    to: mpsc::Sender<Result<Ack, String>>,
    cpu_ns: Arc<AtomicU64>,
}

impl Acks {
    fn report(&self, result: Result<Ack, String>) {
        self.cpu_ns.store(sys::thread_cpu_ns(), Ordering::Relaxed);
        self.to.send(result).ok(); // Nobody listens any more once the schedule is done.
    }
}

/// A connection to the gateway, ready to publish.
pub(crate) struct Publisher {
    batches: UnboundedSender<Batch>, // Bounded by the batches in flight.
    acks: mpsc::Receiver<Result<Ack, String>>,
    io: thread::JoinHandle<()>,
    io_cpu_ns: Arc<AtomicU64>,
    batch_messages_max: usize,
}

impl Publisher {
    /// Connects. `topics` and `publishers` as in the schedule to come.
    ///
    /// # Errors
    /// The gateway can't be reached.
    pub(crate) fn connect(plan: &PublishPlan, topics: u32, publishers: u32) -> Result<Publisher, String> {
        let (batches, queue) = unbounded_channel();
        let (to, acks) = mpsc::channel();
        let (ready, is_ready) = mpsc::sync_channel(1);
        let io_cpu_ns = Arc::new(AtomicU64::new(0));
        let report = Acks { to, cpu_ns: Arc::clone(&io_cpu_ns) };
        let names: Vec<String> = (0..topics).map(Schedule::topic_name).collect();
        let plan = plan.clone();
        let batch_messages_max =
            if matches!(plan.interface, Interface::Http { .. }) { 1 } else { plan.batch_messages_max };
        let io = thread::Builder::new().name("publisher-io".into()).spawn(move || {
            let speak = speak(plan, Arc::new(names), publishers, queue, &report, &ready);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let result = runtime.map_err(|e| e.to_string()).and_then(|runtime| runtime.block_on(speak));
            if let Err(e) = result {
                ready.try_send(Err(e.clone())).ok(); // Whoever waits: for the connection, or
                report.report(Err(e)); // for an acknowledgement.
            }
        });
        let io = io.map_err(|e| format!("starting a thread: {e}"))?;
        is_ready.recv().map_err(|_| "the publisher's thread ended".to_owned())??;
        Ok(Publisher { batches, acks, io, io_cpu_ns, batch_messages_max })
    }

    /// Publishes all of `schedule`, and waits until all is acknowledged.
    ///
    /// # Errors
    /// The gateway has ended the stream, or has not answered for [`STALLED`].
    pub(crate) fn run(self, schedule: &Schedule) -> Result<Published, String> {
        // Who is late by itself makes the server look late.
        sys::sharpen_timers();
        let size = schedule.size.max(MESSAGE_BYTES_MIN);
        let batch_messages_max = self.batch_messages_max.min(BATCH_BYTES_MAX / size).max(1) as u64;
        let in_flight_max = match schedule.pace {
            Pace::Rate { .. } => IN_FLIGHT_MAX,
            Pace::Saturate { in_flight } => in_flight,
        };
        let mut published = Published::default();
        let (mut in_flight, mut next) = (0, 0);
        let mut not_before = Time::default();
        let mut cpu_from_ns = None;
        loop {
            while let Ok(ack) = self.acks.try_recv() {
                published.acknowledge(ack?, schedule);
                in_flight -= 1;
            }
            let now = Time::now();
            if cpu_from_ns.is_none() && now.0 >= schedule.from_ns {
                cpu_from_ns = Some(self.cpu_ns());
            }
            let (messages, next_due_ns) = match schedule.messages() {
                Some(all) => (all, schedule.due_ns(next).max(not_before.0)),
                None if now.0 >= schedule.until_ns => (next, now.0),
                None => (u64::MAX, now.0.max(schedule.start_ns)),
            };
            if next == messages && in_flight == 0 {
                break;
            }
            if next < messages && in_flight < in_flight_max {
                if next_due_ns > now.0 {
                    match self.acks.recv_timeout(Duration::from_nanos(next_due_ns - now.0)) {
                        Ok(ack) => {
                            published.acknowledge(ack?, schedule);
                            in_flight -= 1;
                        }
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => return Err("the publisher's thread ended".into()),
                    }
                    continue;
                }
                let is_due = |i: u64| match schedule.pace {
                    Pace::Rate { .. } => i < messages && schedule.due_ns(i) <= now.0,
                    Pace::Saturate { .. } => true,
                };
                let end =
                    (next + 1..next + batch_messages_max).take_while(|&i| is_due(i)).last().map_or(next + 1, |i| i + 1);
                for batch in published.batches(schedule, next..end, size, now) {
                    in_flight += 1;
                    if self.batches.send(batch).is_err() {
                        // Its reason comes as the last acknowledgement.
                        return Err(self
                            .acks
                            .iter()
                            .find_map(Result::err)
                            .unwrap_or_else(|| "the publisher's thread ended".into()));
                    }
                }
                if end - next < batch_messages_max {
                    not_before = now + APART_MIN;
                }
                next = end;
                continue;
            }
            let ack = self.acks.recv_timeout(STALLED).map_err(|_| "the gateway has acknowledged nothing for 10 s")?;
            published.acknowledge(ack?, schedule);
            in_flight -= 1;
        }
        published.messages = next;
        published.cpu_ns = self.cpu_ns() - cpu_from_ns.unwrap_or_default();
        drop(self.batches);
        self.io.join().map_err(|_| "the publisher's I/O thread panicked".to_owned())?;
        Ok(published)
    }

    fn cpu_ns(&self) -> u64 {
        sys::thread_cpu_ns() + self.io_cpu_ns.load(Ordering::Relaxed)
    }
}

/// What became of a load.
#[derive(Debug)]
pub(crate) struct Published {
    /// Messages given to the gateway.
    pub(crate) messages: u64,
    /// Those it refused, by stream.
    pub(crate) refused: BTreeMap<u32, u32>,
    /// And why.
    pub(crate) reasons: BTreeMap<String, u64>,
    /// Acknowledged within the measured window.
    pub(crate) acknowledged: u64,
    /// From due to handed over, µs, of the measured messages.
    pub(crate) late: Histogram<u64>,
    /// CPU of both threads since the window began.
    pub(crate) cpu_ns: u64,
}

impl Default for Published {
    fn default() -> Self {
        let (refused, reasons) = (BTreeMap::new(), BTreeMap::new());
        Published { messages: 0, refused, reasons, acknowledged: 0, late: histogram(), cpu_ns: 0 }
    }
}

impl Published {
    /// The messages of `range`, a batch for each publisher that has any.
    fn batches(&mut self, schedule: &Schedule, range: Range<u64>, size: usize, now: Time) -> Vec<Batch> {
        let mut bytes = BytesMut::zeroed(size * (range.end - range.start) as usize);
        let mut batches: Vec<Batch> = Vec::new();
        for number in range {
            let due_ns = if schedule.messages().is_some() { schedule.due_ns(number) } else { now.0 };
            if due_ns >= schedule.from_ns {
                self.late.saturating_record(now.0.saturating_sub(due_ns) / 1000);
            }
            let mut data = bytes.split_to(size);
            let stamp = schedule.stamp(number, due_ns);
            stamp.write(&mut data);
            let message = Message { number, topic: stamp.stream.topic(), data: data.freeze() };
            let publisher = stamp.stream.publisher();
            match batches.iter_mut().find(|batch| batch.publisher == publisher) {
                Some(batch) => batch.messages.push(message),
                None => batches.push(Batch { publisher, messages: vec![message] }),
            }
        }
        batches
    }

    fn acknowledge(&mut self, ack: Ack, schedule: &Schedule) {
        if (schedule.from_ns..schedule.until_ns).contains(&ack.at.0) {
            self.acknowledged += ack.messages - ack.refused.len() as u64;
        }
        for (i, reason) in ack.refused {
            *self.refused.entry(schedule.stamp(i, 0).stream.0).or_default() += 1;
            let others = self.reasons.len() >= REASONS_MAX && !self.reasons.contains_key(&reason);
            *self.reasons.entry(if others { "others".into() } else { reason }).or_default() += 1;
        }
    }
}

/// Says once that the connection is there, or why not.
type Ready = mpsc::SyncSender<Result<(), String>>;

/// Publishes what comes through `queue`, each publisher over a connection of its own, until the queue ends.
async fn speak(
    plan: PublishPlan,
    names: Arc<Vec<String>>,
    publishers: u32,
    mut queue: UnboundedReceiver<Batch>,
    acks: &Acks,
    ready: &Ready,
) -> Result<(), String> {
    let PublishPlan { interface, token, .. } = plan;
    let mut lines = Vec::new();
    let mut workers = JoinSet::new();
    for number in 0..publishers as usize {
        let (line, waiting) = unbounded_channel();
        lines.push(line);
        let (names, acks) = (Arc::clone(&names), acks.clone());
        match &interface {
            Interface::Grpc { address } => {
                let addresses: Vec<&str> = address.split(',').collect();
                let client = grpc_client(addresses[number % addresses.len()]).await?;
                workers.spawn(grpc::publish(client, token.clone(), names, waiting, acks));
            }
            Interface::Http { address, post } => {
                let poster = Poster::connect(address, post, token.as_deref()).await?;
                workers.spawn(post::publish(poster, names, waiting, acks));
            }
            Interface::Nats { address } => {
                let connection = nats::connect(address).await?;
                workers.spawn(nats::publish(connection, names, waiting, acks));
            }
        }
    }
    ready.send(Ok(())).ok();
    loop {
        tokio::select! {
            batch = queue.recv() => match batch {
                Some(batch) => drop(lines[batch.publisher as usize].send(batch)), // A worker that ended is seen below.
                None => break, // All is acknowledged: nothing is left in the lines.
            },
            Some(ended) = workers.join_next() => {
                ended.map_err(|e| e.to_string())??;
                return Err("the server ended a publisher's connection".into());
            }
        }
    }
    drop(lines);
    while let Some(ended) = workers.join_next().await {
        ended.map_err(|e| e.to_string())??;
    }
    Ok(())
}

/// A gateway's publishing side for tests: refuses messages that say so, and remembers what it was given.
#[cfg(test)]
pub(crate) mod pretend {
    use crate::proto::v1::publisher_server::{Publisher, PublisherServer};
    use crate::proto::v1::*;
    use std::sync::{Arc, Mutex};
    use tokio_stream::StreamExt;
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::{Request, Response, Status, Streaming};

    /// What arrived: batches of (topic, data).
    pub(crate) type Seen = Arc<Mutex<Vec<Vec<(String, bytes::Bytes)>>>>;

    pub(crate) struct Gateway {
        seen: Seen,
        refuses: fn(&PublishRequest) -> bool,
    }

    #[tonic::async_trait]
    impl Publisher for Gateway {
        type PublishStreamStream = ReceiverStream<Result<PublishBatchResult, Status>>;

        async fn publish(&self, _: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
            Err(Status::unimplemented("not used"))
        }

        async fn publish_stream(
            &self,
            request: Request<Streaming<PublishBatch>>,
        ) -> Result<Response<Self::PublishStreamStream>, Status> {
            if request.metadata().get("authorization").is_none_or(|t| t != "Bearer secret") {
                return Err(Status::unauthenticated("no token"));
            }
            let (answer, answers) = tokio::sync::mpsc::channel(16);
            let (mut batches, seen, refuses) = (request.into_inner(), Arc::clone(&self.seen), self.refuses);
            tokio::spawn(async move {
                while let Some(Ok(batch)) = batches.next().await {
                    let result = |m: &PublishRequest| PublishResult {
                        error: refuses(m).then(|| PublishError { code: 8, message: "full".into() }),
                        ..Default::default()
                    };
                    let results = batch.messages.iter().map(result).collect();
                    seen.lock().unwrap().push(batch.messages.into_iter().map(|m| (m.topic, m.data)).collect());
                    answer.send(Ok(PublishBatchResult { id: batch.id, results })).await.ok();
                }
            });
            Ok(Response::new(ReceiverStream::new(answers)))
        }
    }

    /// Starts one; its address. It ends with the test's process.
    pub(crate) fn gateway(refuses: fn(&PublishRequest) -> bool) -> (String, Seen) {
        let seen = Seen::default();
        let gateway = Gateway { seen: Arc::clone(&seen), refuses };
        let (address, listens) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                address.send(listener.local_addr().unwrap().to_string()).unwrap();
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                let server = tonic::transport::Server::builder().add_service(PublisherServer::new(gateway));
                server.serve_with_incoming(incoming).await.unwrap();
            });
        });
        (listens.recv().unwrap(), seen)
    }
}

#[cfg(test)]
mod tests {
    use super::super::stamp::Stamp;
    use super::*;
    use crate::proto::v1::PublishRequest;
    use base64::Engine;
    use std::net::TcpListener;

    #[test]
    fn http_messages_are_posted_in_order_of_their_stream_and_refusals_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = thread::spawn(move || {
            let answer = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}");
            let streams: Vec<_> = (0..2).map(|_| listener.accept().unwrap().0).collect();
            let serve = |mut stream: std::net::TcpStream| {
                thread::spawn(move || {
                    use std::io::{Read, Write};
                    let (mut bytes, mut got) = (Vec::new(), Vec::new());
                    let mut chunk = [0; 4096];
                    while let Ok(n @ 1..) = stream.read(&mut chunk) {
                        bytes.extend_from_slice(&chunk[..n]);
                        let text = String::from_utf8(bytes.clone()).unwrap();
                        if !text.ends_with('}') {
                            continue;
                        }
                        assert!(
                            text.starts_with("POST /v1/pushData HTTP/1.1\r\n") && text.contains("Bearer secret\r\n")
                        );
                        let body: serde_json::Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
                        let data =
                            base64::engine::general_purpose::STANDARD.decode(body["data"].as_str().unwrap()).unwrap();
                        got.push((body["topic"].as_str().unwrap().to_owned(), Stamp::read(&data).unwrap().sequence));
                        let status = if got.len() == 3 { "429 Too Many Requests" } else { "200 OK" };
                        stream.write_all(answer(status).as_bytes()).unwrap();
                        bytes.clear();
                    }
                    got
                })
            };
            streams
                .into_iter()
                .map(serve)
                .collect::<Vec<_>>()
                .into_iter()
                .map(|t| t.join().unwrap())
                .collect::<Vec<_>>()
        });
        let plan = PublishPlan {
            interface: Interface::Http { address, post: Post::PushData },
            token: Some("secret".into()),
            batch_messages_max: 100,
        };
        let publisher = Publisher::connect(&plan, 1, 2).unwrap();
        let schedule = Schedule::new(Pace::Rate { per_s: 1000.0 }, 1, 2, 128, Time::now().0, 0.0, 0.02);
        let published = publisher.run(&schedule).unwrap();
        assert_eq!(published.messages, 20);
        assert!(published.acknowledged <= 18, "those in time alone count, and a loaded machine is late");
        assert_eq!(published.refused.values().copied().collect::<Vec<_>>(), [1, 1]);
        assert_eq!(published.reasons, BTreeMap::from([("{} (HTTP 429)".to_owned(), 2)]));
        for got in server.join().unwrap() {
            assert_eq!(got, (0..10).map(|s| ("bench-0".to_owned(), s)).collect::<Vec<_>>());
        }
    }

    fn grpc_plan(address: String, token: &str) -> PublishPlan {
        PublishPlan { interface: Interface::Grpc { address }, token: Some(token.into()), batch_messages_max: 10 }
    }

    #[test]
    fn a_schedule_goes_out_in_batches_and_every_message_is_accounted_for() {
        let second = |m: &PublishRequest| Stamp::read(&m.data).unwrap().sequence == 1;
        let (address, seen) = pretend::gateway(second);
        let schedule = Schedule::new(Pace::Rate { per_s: 5000.0 }, 3, 1, 128, Time::now().0, 0.0, 0.02);
        let published = Publisher::connect(&grpc_plan(address, "secret"), 3, 1).unwrap().run(&schedule).unwrap();
        assert_eq!((published.messages, published.late.len()), (100, 100));
        assert_eq!(published.refused.values().copied().collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!(published.reasons.values().sum::<u64>(), 3);
        let seen = seen.lock().unwrap();
        assert!(seen.iter().all(|batch| (1..=10).contains(&batch.len())));
        for (i, (topic, data)) in seen.iter().flatten().enumerate() {
            let stamp = Stamp::read(data).unwrap();
            assert_eq!(*topic, Schedule::topic_name(stamp.stream.topic()));
            assert_eq!(stamp, schedule.stamp(i as u64, schedule.due_ns(i as u64)), "message {i}");
        }
    }

    #[test]
    fn saturation_ends_by_time_with_everything_acknowledged() {
        let (address, seen) = pretend::gateway(|_| false);
        let schedule = Schedule::new(Pace::Saturate { in_flight: 4 }, 1, 1, 128, Time::now().0, 0.0, 0.1);
        let published = Publisher::connect(&grpc_plan(address, "secret"), 1, 1).unwrap().run(&schedule).unwrap();
        assert!(published.messages > 0 && published.acknowledged > 0);
        assert_eq!(seen.lock().unwrap().iter().flatten().count() as u64, published.messages);
    }

    #[test]
    fn a_gateway_that_refuses_the_stream_ends_the_load_with_its_reason() {
        let (address, _) = pretend::gateway(|_| false);
        let schedule = Schedule::new(Pace::Rate { per_s: 100.0 }, 1, 1, 128, Time::now().0, 0.0, 0.5);
        let error = Publisher::connect(&grpc_plan(address, "wrong"), 1, 1).unwrap().run(&schedule).unwrap_err();
        assert!(error.contains("no token"), "{error}");
    }

    #[test]
    fn a_gateway_that_is_not_there_is_said_so() {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let address = nobody.clone();
        let interfaces = [
            Interface::Grpc { address: address.clone() },
            Interface::Http { address: address.clone(), post: Post::PushData },
            Interface::Nats { address },
        ];
        for interface in interfaces {
            let plan = PublishPlan { interface, token: None, batch_messages_max: 1 };
            let error = Publisher::connect(&plan, 1, 1).err().expect("nobody listens");
            assert!(error.contains(&nobody) && error.contains("refused"), "{error}");
        }
    }
}
