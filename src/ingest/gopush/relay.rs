//! go-push's logic: every push goes on to every gateway of `gateway_list`, over TLS and HTTP/2.
//!
//! ```text
//! push ──► pending of a gateway ──► lane of its room ──► POST, up to 3 attempts ──► gateway
//!             bounded, else              one at a time: nothing of a room
//!             dropped and counted        overtakes anything of it
//! ```
//!
//! What waits in a lane for one room joins the request before it: under load requests grow and their number does not.

use super::certificate::connector;
use super::form;
use crate::config::GopushSettings;
use crate::metrics::ControlMetrics;
use axum::body::Body;
use hyper::Request;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio_rustls::TlsConnector;

/// Requests of one gateway under way at once, each of other rooms. Go-push has as many connections.
const LANES: usize = 32;

/// Items of several pushes go in one request up to this many bytes.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// A gateway that says nothing for this long while a request is under way is pinged, and left if it stays silent.
const SILENCE: Duration = Duration::from_secs(20);

/// What a request asks of a gateway.
#[derive(Clone)]
struct Job {
    /// None is everyone.
    room: Option<Arc<str>>,
    /// Joined by commas.
    items: Arc<str>,
    count: usize,
}

/// The gateways, and what is pending for each.
pub(super) struct Relay {
    gateways: Vec<Gateway>,
    metrics: Arc<ControlMetrics>,
}

struct Gateway {
    lanes: Vec<mpsc::UnboundedSender<Job>>, // Bounded by `pending`.
    pending: Arc<Pending>,
}

/// What waits for one gateway.
struct Pending {
    pushes: AtomicUsize,
    bytes: AtomicUsize,
    pushes_max: usize,
    bytes_max: usize,
}

impl Pending {
    fn admit(&self, bytes: usize) -> bool {
        let fits = self.pushes.load(Ordering::Relaxed) < self.pushes_max
            && self.bytes.load(Ordering::Relaxed) + bytes <= self.bytes_max;
        if fits {
            self.pushes.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        fits
    }

    fn release(&self, bytes: usize) {
        self.pushes.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Relay {
    /// Starts the lanes of every gateway as tasks of the current runtime; they end with it.
    pub(super) fn start(settings: &GopushSettings, metrics: Arc<ControlMetrics>) -> Relay {
        let gateways = settings.gateway_list.iter().map(|address| {
            let pending = Arc::new(Pending {
                pushes: AtomicUsize::new(0),
                bytes: AtomicUsize::new(0),
                pushes_max: settings.gateway_pending_max,
                bytes_max: settings.gateway_pending_bytes_max,
            });
            let link = Arc::new(Link {
                address: address.clone(),
                connector: connector(),
                sender: Mutex::new(None),
                attempts: settings.gateway_push_attempts,
                timeout: Duration::from_millis(settings.gateway_timeout_ms),
                metrics: metrics.clone(),
                is_down: AtomicUsize::new(0),
            });
            let lanes = (0..LANES).map(|_| {
                let (sender, jobs) = mpsc::unbounded_channel();
                tokio::spawn(lane(jobs, link.clone(), pending.clone()));
                sender
            });
            Gateway { lanes: lanes.collect(), pending: pending.clone() }
        });
        Relay { gateways: gateways.collect(), metrics }
    }

    /// Sends `count` items, joined by commas, on their way to every gateway. Returns how many items were dropped for want of room.
    pub(super) fn push(&self, room: Option<&str>, items: &str, count: usize) -> usize {
        if self.gateways.is_empty() || count == 0 {
            return 0;
        }
        let job = Job { room: room.map(Arc::from), items: items.into(), count };
        let lane = BuildHasherDefault::<DefaultHasher>::default().hash_one(&job.room) as usize % LANES;
        let mut dropped = 0;
        for gateway in &self.gateways {
            if gateway.pending.admit(job.items.len()) {
                self.metrics.gopush_forward_pending.change(1);
                gateway.lanes[lane].send(job.clone()).expect("a lane listens as long as its gateway is known");
            } else {
                dropped += count;
            }
        }
        self.metrics.gopush_forward_dropped.add(dropped as u64);
        dropped
    }
}

/// Sends what comes, one request at a time.
async fn lane(mut jobs: mpsc::UnboundedReceiver<Job>, link: Arc<Link>, pending: Arc<Pending>) {
    let mut next = None;
    loop {
        let Some(job) = (match next.take() {
            Some(job) => Some(job),
            None => jobs.recv().await,
        }) else {
            return;
        };
        let mut sizes = vec![job.items.len()];
        let (mut items, mut count) = (job.items.to_string(), job.count);
        while let Ok(following) = jobs.try_recv() {
            if following.room != job.room || items.len() + following.items.len() >= REQUEST_BYTES_MAX {
                next = Some(following);
                break;
            }
            items.push(',');
            items.push_str(&following.items);
            count += following.count;
            sizes.push(following.items.len());
        }
        link.deliver(job.room.as_deref(), &items, count).await;
        link.metrics.gopush_forward_pending.change(-(sizes.len() as i64));
        sizes.into_iter().for_each(|bytes| pending.release(bytes));
    }
}

/// The way to one gateway, shared by its lanes.
struct Link {
    /// `host:port`.
    address: String,
    connector: TlsConnector,
    sender: Mutex<Option<SendRequest<Body>>>,
    attempts: usize,
    timeout: Duration,
    metrics: Arc<ControlMetrics>,
    /// Pushes lost in a row, so that a gateway that is gone is told once.
    is_down: AtomicUsize,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Link {
    async fn deliver(&self, room: Option<&str>, items: &str, count: usize) {
        let body = form::body(room, items);
        let path = if room.is_some() { "/push/room" } else { "/push/all" };
        for _ in 0..self.attempts {
            let failure = match tokio::time::timeout(self.timeout, self.post(path, body.clone())).await {
                Ok(Ok(())) => {
                    if self.is_down.swap(0, Ordering::Relaxed) > 0 {
                        tracing::info!(gateway = %self.address, "pushes go on to it again");
                    }
                    return;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {:?}", self.timeout),
            };
            *self.sender.lock().await = None;
            self.metrics.gopush_forward_failures.add(1);
            tracing::debug!(gateway = %self.address, failure, "a push failed");
        }
        self.metrics.gopush_forward_lost.add(count as u64);
        if self.is_down.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(gateway = %self.address, attempts = self.attempts, "a push did not get through: look after this gateway, or take it out of compat.gopush.gateway_list");
        }
    }

    /// One attempt. Its status is nobody's concern, as in go-push: there is only 200.
    async fn post(&self, path: &str, body: bytes::Bytes) -> Result<(), Failure> {
        let mut sender = self.sender().await?;
        sender.ready().await?;
        let request = Request::post(format!("https://{}{path}", self.address))
            .header(HOST, &self.address)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Body::from(body))?;
        drop(sender.send_request(request).await?);
        Ok(())
    }

    /// The connection there is, or a new one.
    async fn sender(&self) -> Result<SendRequest<Body>, Failure> {
        let mut sender = self.sender.lock().await;
        if let Some(sender) = sender.as_ref().filter(|s| !s.is_closed()) {
            return Ok(sender.clone());
        }
        let (host, _) = self.address.rsplit_once(':').ok_or("its address has no port")?;
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let stream = self.connector.connect(name, stream).await?;
        let (fresh, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(SILENCE)
            .keep_alive_timeout(SILENCE)
            .handshake(TokioIo::new(stream))
            .await?;
        // It ends when the last sender is dropped, or the gateway goes.
        tokio::spawn(async move { drop(connection.await) });
        *sender = Some(fresh.clone());
        Ok(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_is_bounded_in_pushes_and_in_bytes() {
        let pending = Pending { pushes: AtomicUsize::new(0), bytes: AtomicUsize::new(0), pushes_max: 2, bytes_max: 10 };
        assert!(pending.admit(4) && pending.admit(4) && !pending.admit(0));
        pending.release(4);
        assert!(!pending.admit(7) && pending.admit(6));
    }
}
