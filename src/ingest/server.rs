//! Listens, accepts and serves both protocols, and ends them well.
//!
//! One accept loop of our own for both rather than tonic's and axum's: connections are bounded, an idle or mute one is cut,
//! running out of descriptors is waited out instead of spun on, and a graceful end has a deadline.

use super::visits::{Held, STRANGER_CALLS_MAX, Strangers, Visit};
use super::{Control, LogLevel, Tokens, grpc, http, log_level, pages};
use crate::config::{Origins, Publish};
use crate::metrics::{ControlMetrics, Gauge};
use axum::Router;
use axum::body::Body;
use axum::http::header::AUTHORIZATION;
use axum::response::Response;
use futures_util::future::OptionFuture;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Head of a request, and answers not yet read, that one HTTP connection may hold.
const HTTP_BUFFER_BYTES_MAX: usize = 65_536;

/// A gRPC peer that is silent for this long is pinged, and cut if it stays silent as long again.
const GRPC_SILENCE: Duration = Duration::from_secs(20);

/// Calls of one gRPC connection at once.
const GRPC_STREAMS_MAX: u32 = 256;

/// Bytes of one call, and of one connection, on their way before they are read: enough for hundreds of batches.
const GRPC_STREAM_WINDOW: u32 = 1 << 20;
const GRPC_CONNECTION_WINDOW: u32 = 4 << 20;

/// From the order to stop to the cut of what is still being answered. `publish_wait_ms` is far below it.
const GRACE: Duration = Duration::from_secs(2);

/// Pause after accept(2) failed, for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Why the publishing side can't listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Stop the other one, or change the key.
    #[error(
        "{key} = \"{address}\" is taken: another process listens there; stop it (`ss -ltnp 'sport = :{}'` names it) or choose \
         another address",
        address.rsplit(':').next().unwrap_or_default()
    )]
    Taken {
        /// The setting.
        key: &'static str,
        /// Its value.
        address: String,
    },
    /// Ask for tokens.
    #[error(
        "{key} = \"{address}\" can be reached from other machines: set publish.tokens_file, listen on 127.0.0.1, or say publish.insecure = true"
    )]
    Exposed {
        /// The setting.
        key: &'static str,
        /// Its value.
        address: String,
    },
    /// Change the key.
    #[error("{key} = \"{address}\": {error}; {}", remedy(error))]
    Failed {
        /// The setting.
        key: &'static str,
        /// Its value.
        address: String,
        /// What the kernel or the resolver said.
        error: io::Error,
    },
}

/// What the admin routes ask the rest of the gateway. All are called on the control core and must be quick.
#[derive(Clone)]
pub struct Hooks {
    /// The text of `/metrics`; OpenMetrics if it ends with `# EOF`.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Why the gateway is not ready; empty: it is.
    pub unready: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    /// What is worth a word although the gateway is ready.
    pub notes: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    /// The JSON of `/stats`.
    pub stats: Arc<dyn Fn() -> String + Send + Sync>,
    /// The log level.
    pub log: Arc<dyn LogLevel>,
}

/// Both listeners, bound and not yet accepting.
pub struct Server {
    grpc: Option<std::net::TcpListener>, // None: nobody publishes here.
    http: std::net::TcpListener,
    log_level: Option<std::net::TcpListener>,
}

impl Server {
    /// Listens on `publish.grpc_address` and `publish.http_address`; port 0 takes a free one.
    ///
    /// # Errors
    /// An address is taken, can't be had, or is off loopback with neither tokens nor `publish.insecure`.
    pub fn bind(publish: &Publish) -> Result<Server, BindError> {
        let open = publish.insecure || !publish.tokens_file.is_empty();
        let server = Server::bind_admin(publish)?;
        Ok(Server { grpc: Some(bind("publish.grpc_address", &publish.grpc_address, open)?), ..server })
    }

    /// As [`Server::bind`] for a gateway without publishers: no gRPC, and of HTTP the admin pages.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub fn bind_admin(publish: &Publish) -> Result<Server, BindError> {
        let open = publish.insecure || !publish.tokens_file.is_empty();
        Ok(Server { grpc: None, http: bind("publish.http_address", &publish.http_address, open)?, log_level: None })
    }

    /// Takes listeners that exist already.
    pub fn from_listeners(grpc: std::net::TcpListener, http: std::net::TcpListener) -> Server {
        Server { grpc: Some(grpc), http, log_level: None }
    }

    /// Serves the log level on a loopback port of its own too, on any path and without tokens, as gpush's logger does.
    ///
    /// # Errors
    /// The port is taken, or can't be had.
    pub fn add_log_level_port(&mut self, port: u16) -> Result<(), BindError> {
        self.log_level = Some(bind("log.level_port", &format!("127.0.0.1:{port}"), true)?);
        Ok(())
    }

    /// Where gRPC listens, if it does.
    ///
    /// # Errors
    /// None while the descriptor is one of ours.
    pub fn grpc_address(&self) -> io::Result<Option<SocketAddr>> {
        self.grpc.as_ref().map(std::net::TcpListener::local_addr).transpose()
    }

    /// Where HTTP listens.
    ///
    /// # Errors
    /// As [`Server::grpc_address`].
    pub fn http_address(&self) -> io::Result<SocketAddr> {
        self.http.local_addr()
    }

    /// Serves until `shutdown` completes, then ends what is under way within two seconds. Runs on the control core beside
    /// [`Control::run`]. Publishes are refused from [`Control::drain`] on, which is not this function's to call: an operator
    /// still wants `/metrics` and `/readyz` then. `dev` adds `/dev/stall`.
    ///
    /// # Errors
    /// A listener could not be registered with the runtime.
    pub async fn serve(
        self,
        control: Arc<Control>,
        tokens: Arc<Tokens>,
        hooks: Hooks,
        publish: &Publish,
        dev: bool,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let (routes, reporter) = grpc::routes(&control, tokens.clone(), publish);
        let health = tokio::spawn(grpc::report_health(reporter, control.drain_begun()));
        let level = log_level::router(hooks.log.clone());
        let http = http::router(control.clone(), tokens.clone(), hooks, publish, self.grpc.is_some(), dev);
        let grpc = routes.prepare().into_axum_router();

        let house = House::new(control.clone(), tokens, publish);
        let metrics = control.metrics();
        let port = |bound, connections| Ok::<_, io::Error>(house.port(listener(bound)?, connections));
        let grpc = self.grpc.map(|bound| port(bound, &metrics.grpc_connections)).transpose()?.map(|port| {
            port.accept_all(|stream, visit, stop| serve_http2(stream, house.reception(&grpc, visit), stop))
        });
        let idle = house.idle;
        let http = port(self.http, &metrics.http_connections)?
            .accept_all(|stream, visit, stop| serve_http1(stream, house.reception(&http, visit), idle, stop));
        let level = self.log_level.map(|bound| port(bound, &metrics.log_level_connections)).transpose()?.map(|port| {
            port.accept_all(|stream, visit, stop| serve_http1(stream, house.reception(&level, visit), idle, stop))
        });
        tokio::join!(OptionFuture::from(grpc), http, OptionFuture::from(level), house.close_after(shutdown));
        health.abort();
        Ok(())
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has the address: correct it",
        io::ErrorKind::PermissionDenied => "choose a port from 1024 up, or grant CAP_NET_BIND_SERVICE to the process",
        _ => "choose another address",
    }
}

pub(super) fn bind(key: &'static str, address: &str, open: bool) -> Result<std::net::TcpListener, BindError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => BindError::Taken { key, address: address.into() },
        _ => BindError::Failed { key, address: address.into(), error },
    };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    if !open && !listener.local_addr().map_err(failed)?.ip().is_loopback() {
        return Err(BindError::Exposed { key, address: address.into() });
    }
    Ok(listener)
}

pub(super) fn listener(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// What the ports of one server have in common: who may come in, how many, and until when.
pub(super) struct House {
    control: Arc<Control>,
    tokens: Arc<Tokens>,
    origins: Arc<Origins>,
    connections_max: usize,
    /// How long a kept-alive connection may be silent.
    pub(super) idle: Duration,
    stop: watch::Sender<bool>,
}

impl House {
    pub(super) fn new(control: Arc<Control>, tokens: Arc<Tokens>, publish: &Publish) -> House {
        House {
            control,
            tokens,
            origins: Arc::new(Origins::new(&publish.allowed_origins)),
            connections_max: publish.connections_max,
            idle: Duration::from_millis(publish.idle_deadline_ms),
            stop: watch::Sender::new(false),
        }
    }

    /// A port of this server, whose open connections are `connections`.
    pub(super) fn port<'a>(&'a self, listener: TcpListener, connections: &'a Gauge) -> Port<'a> {
        let (connections_max, metrics) = (self.connections_max, self.control.metrics());
        Port { listener, connections_max, connections, metrics, stop: self.stop.subscribe() }
    }

    /// For one visitor who comes to see `router`.
    pub(super) fn reception(&self, router: &Router, visit: Visit) -> Reception {
        Reception {
            router: router.clone(),
            tokens: self.tokens.clone(),
            origins: self.origins.clone(),
            control: self.control.clone(),
            visit,
        }
    }

    /// Orders all ports to stop once `shutdown` completes.
    pub(super) async fn close_after(&self, shutdown: impl Future<Output = ()>) {
        shutdown.await;
        self.stop.send_replace(true);
    }
}

/// One port, while it takes connections.
pub(super) struct Port<'a> {
    listener: TcpListener,
    connections_max: usize,
    connections: &'a Gauge,
    metrics: &'a ControlMetrics,
    stop: watch::Receiver<bool>,
}

impl Port<'_> {
    /// Accepts until told to stop, then waits for the connections, each of which ends within [`GRACE`].
    pub(super) async fn accept_all<F>(self, serve: impl Fn(TcpStream, Visit, watch::Receiver<bool>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut connections = JoinSet::new();
        let mut strangers = Strangers::default();
        let mut stopped = pin!(ordered(self.stop.clone()));
        loop {
            self.connections.set(connections.len() as u64);
            // One above the bound at a time: whoever makes room for it has ended before the next is taken.
            let has_room = match connections.len() {
                n if n < self.connections_max => true,
                n => n == self.connections_max && strangers.any(),
            };
            tokio::select! {
                biased;
                () = &mut stopped => break,
                Some(ended) = connections.join_next() => log_panic(ended),
                accepted = self.listener.accept(), if has_room => match accepted {
                    Ok((stream, _)) => {
                        // An answer is one small write: it must not wait for the acknowledgement of the one before.
                        let _ = stream.set_nodelay(true);
                        if connections.len() >= self.connections_max && strangers.cut_oldest() {
                            self.metrics.publishers_cut.add(1);
                        }
                        let visit = Visit::default();
                        strangers.add(visit.clone(), connections.len());
                        let service = serve(stream, visit.clone(), self.stop.clone());
                        connections.spawn(async move {
                            tokio::select! {
                                biased;
                                () = visit.cut() => {}
                                () = service => {}
                            }
                            visit.end();
                        });
                    }
                    Err(error) => {
                        tracing::warn!("accepting a publisher: {error}");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                },
            }
        }
        drop(self.listener);
        while let Some(ended) = connections.join_next().await {
            log_panic(ended);
        }
        self.connections.set(0);
    }
}

/// Completes when the order to stop is given, or can't be given any more.
pub(super) async fn ordered(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|s| *s).await;
}

/// Handlers catch their own panics; one here is in the protocol's code, and costs its connection.
fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!("serving a publisher: {error}");
    }
}

/// What a request meets first: who is there, whose page it is, and how much a stranger may ask at once.
pub(super) struct Reception {
    router: Router,
    tokens: Arc<Tokens>,
    origins: Arc<Origins>,
    control: Arc<Control>,
    visit: Visit,
}

impl Reception {
    fn service(self) -> impl Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> {
        let Reception { router, tokens, origins, control, visit } = self;
        let router = TowerToHyperService::new(router);
        service_fn(move |request: Request<Incoming>| {
            let is_let_in = || {
                let headers = request.headers();
                tokens.allow(headers.get(AUTHORIZATION).map(|value| value.as_bytes()))
                    || super::centrifugo::has_key(&tokens, headers, request.uri().query().unwrap_or_default())
            };
            let may_ask = pages::may_ask(&origins, &tokens, request.method(), request.uri().path(), request.headers());
            if !visit.is_known() && may_ask && is_let_in() {
                visit.make_known();
            }
            let call = if visit.is_known() { Ok(None) } else { visit.begin_call().map(Some).ok_or(()) };
            let response = call.map(|call| (call, if may_ask { Ok(router.call(request)) } else { Err(request) }));
            if response.is_err() {
                control.metrics().stranger_calls_refused.add(1);
            }
            let control = control.clone();
            async move {
                let Ok((call, response)) = response else { return Ok(too_many_calls().into_http()) };
                let response = match response {
                    Ok(response) => response.await?,
                    Err(refused) => pages::refuse(control.metrics(), Body::new(refused.into_body())).await,
                };
                Ok(match call {
                    Some(call) => response.map(|body| Body::new(Held::new(body, call))),
                    None => response,
                })
            }
        })
    }
}

fn too_many_calls() -> tonic::Status {
    tonic::Status::resource_exhausted(format!(
        "{STRANGER_CALLS_MAX} calls without a token are open on this connection: send one, or end some"
    ))
}

/// A connection, with TLS or without.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

pub(super) async fn serve_http1<S: Stream>(
    stream: S,
    reception: Reception,
    idle: Duration,
    stop: watch::Receiver<bool>,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(HTTP_BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), reception.service());
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        _ = connection.as_mut() => return, // The peer left, or spoke nonsense and was answered 400.
        () = ordered(stop) => connection.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(GRACE, connection).await;
}

pub(super) async fn serve_http2<S: Stream>(stream: S, reception: Reception, stop: watch::Receiver<bool>) {
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(GRPC_SILENCE)
        .keep_alive_timeout(GRPC_SILENCE)
        .max_concurrent_streams(GRPC_STREAMS_MAX)
        .initial_stream_window_size(GRPC_STREAM_WINDOW)
        .initial_connection_window_size(GRPC_CONNECTION_WINDOW)
        .serve_connection(TokioIo::new(stream), reception.service());
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        () = ordered(stop) => connection.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(GRACE, connection).await;
}
