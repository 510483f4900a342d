//! The giving half of the relay: what this node accepts, for whoever pulls.

use super::door::{Door, Known};
use super::log::Log;
use super::{Carrier, Secrets, told};
use crate::clock::Time;
use crate::frame::Publication;
use crate::metrics::ClusterMetrics;
use crate::proto::v1::relay_server::{Relay as Service, RelayServer};
use crate::proto::v1::{PullRequest, RelayBatch};
use crate::sys::Timer;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::TlsConnectInfo;
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// A puller gets one batch in each such span of the clock, unless one is full: what is accepted meanwhile goes with the next, to all pullers at
/// the same moment, in one wake-up. Under load this adds as much to the way between nodes, and spares both most of what a message costs;
/// what comes alone goes at once.
const SPAN: Duration = Duration::from_micros(250);
/// How often a puller hears something even if there is nothing to say.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often a peer is pinged, and how long it may take to answer. Who is gone is found out by the kernel (`door.rs`), unless something in between
/// acknowledges what nobody reads. Long, since on a slow way the ping stands behind all that a puller lets come at once.
const PING: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(300));
/// Largest request: a name and three numbers.
const REQUEST_BYTES_MAX: usize = 4096;
/// Pullers of which it is known how far they have come, connected or not.
const PULLERS_MAX: usize = 4096;

/// This node's log, and who is to be told when it grows.
pub(super) struct Relay {
    log: Mutex<Log>,
    /// The sequence that is next for each that has ever pulled, by its name.
    pullers: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    grown: Notify,
    metrics: Arc<ClusterMetrics>,
}

impl Relay {
    pub(super) fn new(log: Log, metrics: Arc<ClusterMetrics>) -> Relay {
        Relay { log: Mutex::new(log), pullers: Mutex::default(), grown: Notify::new(), metrics }
    }

    /// The sequence behind the last message accepted.
    pub(super) fn end(&self) -> u64 {
        self.log().next()
    }

    /// How many messages a node that has pulled before has not been given; `None`: it has never pulled.
    pub(super) fn owes(&self, node: &str) -> Option<u64> {
        let next = self.pullers().get(node)?.load(Ordering::Relaxed);
        Some(self.end().saturating_sub(next))
    }

    /// Where a puller is, begun at `due`.
    fn puller(&self, node: String, due: u64) -> Arc<AtomicU64> {
        let next = Arc::new(AtomicU64::new(due));
        let mut pullers = self.pullers();
        pullers.insert(node, next.clone());
        if pullers.len() > PULLERS_MAX {
            pullers.pop_first();
        }
        next
    }

    fn pullers(&self) -> MutexGuard<'_, BTreeMap<String, Arc<AtomicU64>>> {
        self.pullers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Others can know of this node from now on.
    pub(super) fn open(&self) {
        self.log().open(Instant::now());
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        // A panic under the lock would be in one of the log's few lines; what it holds is still what was accepted.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves until `stopping`, then gives each puller what it has not had yet, and ends.
    pub(super) async fn serve(
        self: Arc<Relay>,
        door: Door,
        tls: Option<ServerTlsConfig>,
        secrets: Secrets,
        stopping: watch::Receiver<bool>,
    ) -> Result<(), tonic::transport::Error> {
        let token = move |request: Request<()>| {
            if !(secrets.allows)(request.metadata().get("authorization").map(|value| value.as_bytes())) {
                return Err(Status::unauthenticated(
                    "send a token of cluster.relay_tokens_file as \"authorization: Bearer TOKEN\"",
                ));
            }
            let extensions = request.extensions();
            let known =
                extensions.get::<Known>().or_else(|| Some(extensions.get::<TlsConnectInfo<Known>>()?.get_ref()));
            known.inspect(|known| known.let_in());
            Ok(request)
        };
        let service = RelayServer::new(Pulls { relay: self, stopping: stopping.clone() });
        let service = InterceptedService::new(service.max_decoding_message_size(REQUEST_BYTES_MAX), token);
        let mut server = Server::builder()
            .http2_keepalive_interval(Some(PING.0))
            .http2_keepalive_timeout(Some(PING.1))
            .max_concurrent_streams(16);
        if let Some(tls) = tls {
            server = server.tls_config(tls)?;
        }
        server.add_service(service).serve_with_incoming_shutdown(door.incoming(), told(stopping)).await
    }

    /// Gives one puller what is due to it, until it leaves or all ends.
    async fn give(
        self: Arc<Relay>,
        mut due: u64,
        next: Arc<AtomicU64>,
        pulls: mpsc::Sender<Result<RelayBatch, Status>>,
        mut timer: Timer,
        stopping: watch::Receiver<bool>,
    ) {
        // The first says where the stream begins, or how much of what was due is gone.
        let mut batch = RelayBatch { messages: Vec::new(), due, ..self.log().batch(due) };
        loop {
            let mut not_before = end_of_span(Time::now());
            let is_empty = batch.messages.is_empty();
            due = batch.first + batch.messages.len() as u64;
            if is_empty || due < batch.next {
                // Nothing to gather behind one that said nothing, nor behind a full one, which left something in the log.
                not_before = Time::default();
            }
            self.metrics.relay_sent.add(batch.messages.len() as u64);
            if pulls.send(Ok(batch)).await.is_err() {
                return;
            }
            next.store(due, Ordering::Relaxed);
            let heartbeat = tokio::time::sleep(HEARTBEAT);
            tokio::pin!(heartbeat);
            loop {
                let grown = self.grown.notified();
                tokio::pin!(grown);
                grown.as_mut().enable(); // Before the look: what is appended behind it wakes us.
                if self.log().has(due) {
                    break;
                }
                tokio::select! {
                    biased;
                    () = pulls.closed() => return,
                    () = &mut grown => {}
                    () = &mut heartbeat => break,
                    () = told(stopping.clone()) => return,
                }
            }
            let rest = not_before - Time::now();
            if !rest.is_zero() && timer.sleep(rest).await.is_err() {
                return; // The runtime ends.
            }
            batch = self.log().batch(due);
        }
    }
}

impl Carrier for Relay {
    fn carry(&self, publication: &Publication) {
        let size = {
            let mut log = self.log();
            log.append(publication, Instant::now());
            log.size()
        };
        self.metrics.relay_buffer_messages.set(size.0 as u64);
        self.metrics.relay_buffer_bytes.set(size.1 as u64);
        self.grown.notify_waiters();
    }
}

/// The end of the [`SPAN`] that `time` is in.
fn end_of_span(time: Time) -> Time {
    let span_ns = SPAN.as_nanos() as u64;
    Time((time.0 / span_ns + 1) * span_ns)
}

/// The service.
struct Pulls {
    relay: Arc<Relay>,
    stopping: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl Service for Pulls {
    type PullStream = ReceiverStream<Result<RelayBatch, Status>>;

    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let request = request.into_inner();
        let (due, is_own) = {
            let log = self.relay.log();
            (log.due(&request, Instant::now()), [0, log.epoch()].contains(&request.epoch))
        };
        tracing::debug!(node = request.node, due, "pulls");
        let timer = Timer::new().map_err(|error| Status::unavailable(format!("a timer for this stream: {error}")))?;
        // One batch ahead; what is behind it waits in the log, once for all.
        let (sender, batches) = mpsc::channel(1);
        // Who asks for the one that was here before finds out by the first batch, and is no puller of this one.
        let next = match is_own {
            true => self.relay.puller(request.node, due),
            false => Arc::default(),
        };
        tokio::spawn(self.relay.clone().give(due, next, sender, timer, self.stopping.clone()));
        Ok(Response::new(ReceiverStream::new(batches)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::log::BATCH_MESSAGES_MAX;
    use super::*;

    #[tokio::test]
    async fn what_comes_fast_goes_together_and_in_order() {
        const MESSAGES: u64 = 5000;
        let log = Log::new(7, MESSAGES as usize, 1 << 20);
        let relay = Arc::new(Relay::new(log, Arc::default()));
        relay.open();
        let (sender, mut pulled) = mpsc::channel(1);
        let (_stop, stopping) = watch::channel(false);
        let begun = Instant::now();
        tokio::spawn(relay.clone().give(1, Arc::default(), sender, Timer::new().unwrap(), stopping));
        let taker = tokio::spawn(async move {
            let (mut batches, mut had) = (0, 0);
            while had < MESSAGES {
                let batch = pulled.recv().await.unwrap().unwrap();
                assert_eq!(batch.first, had + 1);
                (batches, had) = (batches + 1, had + batch.messages.len() as u64);
            }
            batches
        });
        for n in 1..=MESSAGES {
            relay.carry(&Publication::new("t", n.to_string()));
            tokio::task::yield_now().await; // The giver may look after each.
        }
        let batches: u64 = taker.await.unwrap();
        let full = MESSAGES / BATCH_MESSAGES_MAX as u64;
        let spans = (begun.elapsed().as_nanos() / SPAN.as_nanos()) as u64;
        assert!(batches <= 3 + full + spans, "{batches} batches in {:?}", begun.elapsed());
    }
}
