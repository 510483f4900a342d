//! go-push's publishers: its gateway's and its logic's HTTP, and what its forks added.
//!
//! | path | gateway (HTTPS) and logic (HTTP) |
//! |---|---|
//! | `/push/all` | form `items=[…]`: each item to everyone |
//! | `/push/room` | form `room=…&items=[…]`: each item to the topic `room` |
//! | `/push` | JSON `{"range":…,"unique_id":"…","message":…}`: one item to everyone (`all`), to a topic (`room`) or a user (`one`) |
//! | `/stats` | their own keys, the gateway's twelve or the logic's three |
//!
//! The first two always answer 200 with nothing in it, whatever came: that is go-push's way, and `/stats` and `/metrics` count what
//! became of it. `/push` is ours to shape: it says what is wrong, and tells browsers which pages may call it (`publish.allowed_origins`).

mod certificate;
mod form;
mod relay;

pub use certificate::{CertificateError, check_certificate};

use super::push::{Problem, guarded};
use super::server::{self, BindError, House, Reception, listener, ordered, serve_http1, serve_http2};
use super::{Admission, Control, Tokens};
use crate::config::{GopushSettings, Publish};
use crate::dialect::DialectId;
use crate::frame::{Publication, Target};
use crate::metrics::{ControlMetrics, Counter, ShardMetrics};
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;
use form::{FORM_BYTES_MAX, Form, Items};
use futures_util::StreamExt;
use futures_util::future::OptionFuture;
use relay::Relay;
use serde_json::value::RawValue;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tonic::Code;

/// How long a TLS handshake may take; go-push's `serviceReadTimeout`.
const TLS_DEADLINE: Duration = Duration::from_secs(2);

/// Items handed over at once, so that others get their turn between.
const ITEMS_AT_ONCE: usize = 256;

/// Bodies of more than [`SMALL_BODY_BYTES`] held at once, from the first byte beyond to the last item published; others wait for their turn,
/// at most as long as a body may take to come.
const LARGE_BODIES_MAX: usize = 16;
const SMALL_BODY_BYTES: usize = 65_536;

/// A large body of which nothing comes for this long has had its turn.
const LARGE_BODY_SILENCE: Duration = Duration::from_secs(1);

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Why go-push's publishers can't be served.
#[derive(Debug, thiserror::Error)]
pub enum GopushError {
    /// An address can't be had.
    #[error("{0}")]
    Bind(#[from] BindError),
    /// No TLS.
    #[error("{0}")]
    Certificate(#[from] CertificateError),
}

/// Its two ports, bound and not yet accepting; either may be absent.
pub struct GopushServer {
    gateway: Option<(std::net::TcpListener, TlsAcceptor)>,
    logic: Option<std::net::TcpListener>,
}

/// Which of the two is spoken to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Gateway,
    Logic,
}

impl GopushServer {
    /// Listens on `gateway_address` and `logic_address` where they are set and `enabled` is. Port 0 takes a free one.
    ///
    /// # Errors
    /// An address is taken or can't be had, or is off loopback without `insecure`; the certificate can't be used.
    pub fn bind(settings: &GopushSettings) -> Result<GopushServer, GopushError> {
        let bind = |key, address: &str| {
            let wanted = settings.enabled && !address.is_empty();
            wanted.then(|| server::bind(key, address, settings.insecure)).transpose()
        };
        let gateway = bind("compat.gopush.gateway_address", &settings.gateway_address)?;
        let gateway = gateway.map(|listener| Ok::<_, GopushError>((listener, certificate::acceptor(settings)?)));
        Ok(GopushServer {
            gateway: gateway.transpose()?,
            logic: bind("compat.gopush.logic_address", &settings.logic_address)?,
        })
    }

    /// Where it listens, in words for the operator.
    ///
    /// # Errors
    /// None while the descriptors are ours.
    pub fn announcement(&self) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        if let Some((listener, _)) = &self.gateway {
            let address: SocketAddr = listener.local_addr()?;
            lines.push(format!("go-push      https://{address} (gateway: /push/all, /push/room, /push, /stats)"));
        }
        if let Some(listener) = &self.logic {
            let address: SocketAddr = listener.local_addr()?;
            lines.push(format!("go-push      http://{address} (logic: /push/all, /push/room, /push, /stats)"));
        }
        Ok(lines)
    }

    /// Serves until `shutdown` completes, then ends what is under way within two seconds.
    ///
    /// # Errors
    /// A listener could not be registered with the runtime.
    pub async fn serve(
        self,
        control: Arc<Control>,
        shards: Vec<Arc<ShardMetrics>>,
        settings: &GopushSettings,
        publish: &Publish,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let app = Arc::new(App {
            relay: Relay::start(settings, control.metrics().clone()),
            control: control.clone(),
            shards,
            large_bodies: Semaphore::new(LARGE_BODIES_MAX),
            body_deadline: Duration::from_millis(publish.body_deadline_ms),
        });
        // Nobody is asked for a token here, as in go-push: who reaches the port may publish.
        let house = House::new(control.clone(), Arc::new(Tokens::none()), publish);
        let (house, metrics, idle) = (&house, control.metrics(), house.idle);

        let (gateway_router, logic_router) = (router(&app, Side::Gateway), router(&app, Side::Logic));
        let gateway = self.gateway.map(|(bound, tls)| Ok::<_, io::Error>((listener(bound)?, tls))).transpose()?;
        let gateway_router = &gateway_router;
        let gateway = gateway.map(|(listener, tls)| {
            let serve = move |stream, visit, stop| {
                serve_tls(stream, tls.clone(), house.reception(gateway_router, visit), idle, stop)
            };
            house.port(listener, &metrics.gopush_gateway_connections).accept_all(serve)
        });
        let logic = self.logic.map(listener).transpose()?.map(|listener| {
            let serve = |stream, visit, stop| serve_http1(stream, house.reception(&logic_router, visit), idle, stop);
            house.port(listener, &metrics.gopush_logic_connections).accept_all(serve)
        });
        tokio::join!(OptionFuture::from(gateway), OptionFuture::from(logic), house.close_after(shutdown));
        Ok(())
    }
}

async fn serve_tls(
    stream: TcpStream,
    tls: TlsAcceptor,
    reception: Reception,
    idle: Duration,
    stop: watch::Receiver<bool>,
) {
    let handshake = tokio::select! {
        biased;
        handshake = tokio::time::timeout(TLS_DEADLINE, tls.accept(stream)) => handshake,
        () = ordered(stop.clone()) => return,
    };
    let Ok(Ok(stream)) = handshake else { return };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        serve_http2(stream, reception, stop).await;
    } else {
        serve_http1(stream, reception, idle, stop).await;
    }
}

struct App {
    control: Arc<Control>,
    shards: Vec<Arc<ShardMetrics>>,
    relay: Relay,
    large_bodies: Semaphore,
    body_deadline: Duration,
}

fn router(app: &Arc<App>, side: Side) -> Router {
    Router::new()
        .route(
            "/push/all",
            any(async move |State(app): State<Arc<App>>, request: Request| app.form(side, false, request).await),
        )
        .route(
            "/push/room",
            any(async move |State(app): State<Arc<App>>, request: Request| app.form(side, true, request).await),
        )
        .route("/push", any(async move |State(app): State<Arc<App>>, request: Request| app.json(side, request).await))
        .route(
            "/stats",
            any(async move |State(app): State<Arc<App>>| answer(StatusCode::OK, Some(TEXT), app.stats(side))),
        )
        // As Go's mux says it.
        .fallback(async || answer(StatusCode::NOT_FOUND, Some(TEXT), "404 page not found\n"))
        .with_state(app.clone())
}

impl App {
    /// `/push/all` and `/push/room`.
    async fn form(&self, side: Side, to_room: bool, request: Request) -> Response {
        let handler = async {
            match self.read_form(request).await {
                // The turn of a large one ends here, when it is all published.
                Ok((form, count, _turn)) => {
                    self.push(side, to_room.then_some(form.room.as_str()), &form.items, count).await;
                }
                Err(unread) => self.count_unread(side, to_room, &unread),
            }
            Ok(())
        };
        let _ = guarded(self.control.metrics(), handler).await; // A panic is counted and logged; the answer is the same.
        answer(StatusCode::OK, None, "")
    }

    /// A form, how many items it has, and the turn of a large one.
    async fn read_form(&self, request: Request) -> Result<(Form, usize, Option<SemaphorePermit<'_>>), Unread> {
        let has_form =
            matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) && is_form(request.headers());
        if !has_form {
            return Err(Unread::NoForm);
        }
        let (body, turn) = self.read_body(request.into_body()).await?;
        let form = Form::parse(&body).await.ok_or(Unread::NoForm)?;
        let count = form::count(&form.items).await.ok_or(Unread::NoForm)?;
        Ok((form, count, turn))
    }

    /// The whole body, if it is complete in time and no larger than [`FORM_BYTES_MAX`]; a large one with its turn, for as long as it is held.
    async fn read_body(&self, body: Body) -> Result<(Bytes, Option<SemaphorePermit<'_>>), Unread> {
        let announced = body.size_hint().lower().min(FORM_BYTES_MAX as u64) as usize;
        let mut whole = Vec::with_capacity(announced.min(SMALL_BODY_BYTES));
        let mut chunks = body.into_data_stream();
        let mut turn = None;
        let mut deadline = Instant::now() + self.body_deadline;
        loop {
            if turn.is_none() && announced.max(whole.len()) > SMALL_BODY_BYTES {
                let asked = Instant::now();
                let got = tokio::time::timeout(self.body_deadline, self.large_bodies.acquire()).await;
                turn = Some(got.map_err(|_| Unread::NoTurn)?.expect("it is never closed"));
                deadline += asked.elapsed(); // Others' slowness is not the sender's.
            }
            let end = turn.as_ref().map_or(deadline, |_| deadline.min(Instant::now() + LARGE_BODY_SILENCE));
            let chunk = tokio::time::timeout_at(end, chunks.next()).await.map_err(|_| Unread::Late)?;
            let Some(chunk) = chunk else { return Ok((whole.into(), turn)) };
            let chunk = chunk.map_err(Unread::Broken)?;
            if whole.len() + chunk.len() > FORM_BYTES_MAX {
                return Err(Unread::TooLarge);
            }
            whole.extend_from_slice(&chunk);
        }
    }

    /// Counts a push that nobody has any of: for one item, as nobody knows how many it had.
    fn count_unread(&self, side: Side, to_room: bool, unread: &Unread) {
        let m = self.control.metrics();
        let form = match unread {
            Unread::Late => &m.gopush_forms_late,
            Unread::NoTurn => &m.gopush_forms_busy,
            Unread::TooLarge => &m.gopush_forms_large,
            Unread::Broken(_) | Unread::NoForm => &m.gopush_forms_malformed,
        };
        form.add(1);
        if side == Side::Logic {
            m.gopush_dispatched.add(1);
        }
        drop(Left { metrics: m, side, to_room, items: 1 });
    }

    /// Publishes `items`, an array of `count`, and on the logic's side sends them on.
    async fn push(&self, side: Side, room: Option<&str>, items: &str, count: usize) {
        let m = self.control.metrics();
        if side == Side::Logic {
            // What stands between the brackets.
            let joined = items.trim_matches([' ', '\t', '\r', '\n']);
            let joined = joined.strip_prefix('[').and_then(|items| items.strip_suffix(']')).unwrap_or_default();
            m.gopush_dispatched.add(count as u64);
            m.gopush_dispatch_failed.add(self.relay.push(room, joined, count) as u64);
        }
        match room {
            // As in go-push: nobody can be in it.
            Some("") => m.merged_nowhere_items.add(count as u64),
            room => {
                let target = room.map_or(Target::Everyone, |room| Target::Topic(room.into()));
                let left = Left { metrics: m, side, to_room: room.is_some(), items: count };
                self.publish(&target, Items::of(items), left).await;
            }
        }
    }

    /// Takes off `left` what is admitted.
    async fn publish(&self, target: &Target, mut items: Items<'_>, mut left: Left<'_>) {
        loop {
            // They have been counted: none is malformed.
            let some: Vec<&RawValue> = items.by_ref().take(ITEMS_AT_ONCE).map_while(Result::ok).collect();
            if some.is_empty() {
                return;
            }
            let mut waiting = Vec::new();
            let data = |item: &RawValue| Bytes::copy_from_slice(item.get().as_bytes());
            self.control.try_publish_all(
                some.into_iter().map(|item| Publication { target: target.clone(), data: data(item) }),
                |admission| match admission {
                    Admission::Done(result) => left.items -= usize::from(result.is_ok()),
                    Admission::Waiting(wait) => waiting.push(wait),
                },
            );
            for wait in waiting {
                left.items -= usize::from(wait.await.is_ok());
            }
            tokio::task::yield_now().await;
        }
    }

    /// `/push`. Whose page it is has been asked before it came here.
    async fn json(&self, side: Side, request: Request) -> Response {
        let origin = request.headers().get(ORIGIN).cloned();
        let mut response = match *request.method() {
            Method::OPTIONS => answer(StatusCode::NO_CONTENT, None, ""),
            Method::POST => match guarded(self.control.metrics(), self.push_json(side, request)).await {
                Ok(()) => answer(StatusCode::OK, Some(JSON), "{}"),
                Err(problem) => problem.into_response(),
            },
            _ => Problem::new(Code::Unimplemented, "Method Not Allowed").into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("Origin"));
        origin.map(|origin| headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin));
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, OPTIONS"));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("Content-Type"));
        response
    }

    async fn push_json(&self, side: Side, request: Request) -> Result<(), Problem> {
        let wrong = |message: String| Problem::new(Code::InvalidArgument, message);
        let (body, _turn) = self.read_body(request.into_body()).await?;
        let text = std::str::from_utf8(&body).map_err(|e| wrong(format!("the body is not UTF-8: {e}")))?;
        let push: Push<'_> = serde_json::from_str(text)
            .map_err(|e| wrong(format!("the body is not {{\"range\":…,\"unique_id\":…,\"message\":…}}: {e}")))?;
        let id = push.unique_id.unwrap_or_default();
        let target = match (push.range, id.as_str()) {
            (Range::All, _) => Target::Everyone,
            (_, "") => return Err(wrong("unique_id is missing: it names the room or the user".into())),
            (Range::Room, room) => Target::Topic(room.into()),
            (Range::One, uid) => Target::User { uid: uid.into(), topic: "".into() },
        };
        let data = Bytes::copy_from_slice(push.message.get().as_bytes());
        let m = self.control.metrics();
        let mut dropped = 0;
        if side == Side::Logic {
            m.gopush_dispatched.add(1);
            dropped = match push.range {
                Range::All => self.relay.push(None, push.message.get(), 1),
                Range::Room => self.relay.push(Some(&id), push.message.get(), 1),
                Range::One => 0, // Go-push has no words for it.
            };
        }
        let published = self.control.publish(Publication { target, data }).await;
        if side == Side::Logic {
            m.gopush_dispatch_failed.add((dropped + usize::from(published.is_err())) as u64);
        }
        published?;
        Ok(())
    }

    /// As go-push prints it, keys in its order.
    fn stats(&self, side: Side) -> String {
        const GOPUSH: usize = DialectId::Gopush as usize;
        self.control.report();
        let m = self.control.metrics();
        let sum = |of: fn(&ShardMetrics) -> u64| self.shards.iter().map(|shard| of(shard)).sum::<u64>();
        let get = |counter: &Counter| counter.get();
        let pairs: Vec<(&str, u64)> = match side {
            Side::Gateway => vec![
                ("onlineConnections", sum(|s| s.dialect_connections[GOPUSH].get())),
                ("sendMessageTotal", sum(|s| s.dialect_messages[GOPUSH].get())),
                ("sendMessageFail", sum(|s| s.dialect_messages_dropped[GOPUSH].get())),
                ("dispatchPending", m.merging_blocked.get()),
                ("pushJobPending", self.control.queue_depths().iter().map(|(items, _)| *items as u64).sum()),
                ("dispatchFail", get(&m.merged_messages_dropped)),
                ("roomCount", m.merged_rooms.get()),
                ("mergerPending", m.merging_items.get()),
                ("mergerRoomTotal", get(&m.merged_room_items) + get(&m.merged_nowhere_items)),
                ("mergerAllTotal", get(&m.merged_all_items)),
                ("mergerRoomFail", get(&m.merged_room_items_dropped) + get(&m.gopush_room_refused)),
                ("mergerAllFail", get(&m.merged_all_items_dropped) + get(&m.gopush_all_refused)),
            ],
            Side::Logic => vec![
                ("DispatchTotal", get(&m.gopush_dispatched)),
                ("DispatchFail", get(&m.gopush_dispatch_failed)),
                ("PushFail", get(&m.gopush_forward_failures)),
            ],
        };
        let pairs: Vec<String> = pairs.into_iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
        format!("{{{}}}", pairs.join(","))
    }
}

/// Why a body came to nothing.
enum Unread {
    /// It was not complete in time, or a large one fell silent.
    Late,
    /// Too many large ones were held for too long.
    NoTurn,
    /// Over [`FORM_BYTES_MAX`].
    TooLarge,
    /// The connection ended in it, or worse.
    Broken(axum::Error),
    /// It is no form with an array of items.
    NoForm,
}

impl From<Unread> for Problem {
    fn from(unread: Unread) -> Problem {
        let (code, message) = match unread {
            Unread::Late => (
                Code::InvalidArgument,
                "the body was not complete in time (publish.body_deadline_ms), or nothing of it came for a second: send it faster".into(),
            ),
            Unread::NoTurn => (Code::ResourceExhausted, "too many large bodies are being read: try again".into()),
            Unread::TooLarge => {
                (Code::InvalidArgument, format!("the body is over {FORM_BYTES_MAX} bytes: shorten it"))
            }
            Unread::Broken(error) => (Code::InvalidArgument, format!("the body could not be read: {error}")),
            Unread::NoForm => (Code::InvalidArgument, "the body is no form with items".into()),
        };
        Problem::new(code, message)
    }
}

/// Items of a push that are not admitted. When dropped, for whatever reason, they are counted as refused: also if the publisher hung up
/// meanwhile, and nobody reads on.
struct Left<'a> {
    metrics: &'a ControlMetrics,
    side: Side,
    to_room: bool,
    items: usize,
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        let (m, items) = (self.metrics, self.items as u64);
        let refused = if self.to_room { &m.gopush_room_refused } else { &m.gopush_all_refused };
        refused.add(items);
        if self.side == Side::Logic {
            m.gopush_dispatch_failed.add(items);
        }
    }
}

/// The body of `/push`.
#[derive(serde::Deserialize)]
struct Push<'a> {
    range: Range,
    unique_id: Option<String>,
    #[serde(borrow)]
    message: &'a RawValue,
}

#[derive(Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Range {
    All,
    Room,
    One,
}

/// Whether Go would look for a form in the body.
fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

fn answer(status: StatusCode, kind: Option<HeaderValue>, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    if let Some(kind) = kind {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response
}
