//! HTTP: gpush's `POST /v1/pushData`, and what an operator asks.
//!
//! | path | |
//! |---|---|
//! | `POST /v1/pushData`, `POST /order.Proxy/PushData` | one push; the second is the route grpc-gateway makes for every method |
//! | `POST /order.Proxy/PullData` | every push accepted from now on, a line each |
//! | `POST /api/METHOD` | Centrifugo's server API, see `centrifugo` |
//! | `GET /metrics` | Prometheus text |
//! | `GET /stats` | `{"count":n}`: open WebSocket connections |
//! | `GET`, `PUT /log/level` | the log level, see [`super::log_level`] |
//! | `GET /healthz` | 200: the control core turns |
//! | `GET /readyz` | 200, maybe with a remark, or 503 with the reasons |
//! | `POST /dev/stall?shard=N&ms=M` | only with `--dev`: a shard stands still |
//!
//! Errors have grpc-gateway's shape, `{"code":…,"message":"…","details":[]}`, code being gRPC's.

use super::pull::Pulled;
use super::push::{Problem, guarded, guarded_now, push};
use super::{Control, Hooks, StallError, Tokens, centrifugo, json, log_level};
use crate::config::Publish;
use crate::ids::ShardId;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Query, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use base64::Engine;
use bytes::Bytes;
use futures_util::StreamExt;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;

/// Bytes of a body read for its answer's sake alone, and for how long: closing a connection with unread bytes in it is a reset,
/// and a reset makes the client throw its 401 away.
const DISCARDED_BYTES_MAX: usize = 65_536;
const DISCARD_DEADLINE: Duration = Duration::from_secs(1);

/// Longest stall asked for by `/dev/stall`.
const STALL_MS_MAX: u64 = 60_000;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(super) const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const PROMETHEUS_TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const OPENMETRICS_TEXT: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

pub(super) struct App {
    pub control: Arc<Control>,
    pub tokens: Arc<Tokens>,
    hooks: Hooks,
    request_bytes_max: usize,
    pub batch_messages_max: usize,
    body_deadline: Duration,
    pullers_max: usize,
    puller_bytes_max: usize,
}

/// All routes: of the admin, and if `is_publishing` of publishers. `dev` adds `/dev/stall`.
pub(super) fn router(
    control: Arc<Control>,
    tokens: Arc<Tokens>,
    hooks: Hooks,
    publish: &Publish,
    is_publishing: bool,
    dev: bool,
) -> Router {
    let mut router = Router::new();
    if is_publishing {
        router = router
            .route("/v1/pushData", post(push_data))
            .route("/order.Proxy/PushData", post(push_data))
            .route("/order.Proxy/PullData", post(pull_data))
            .route("/api/{method}", any(centrifugo::call));
    }
    router = router
        .route("/metrics", get(metrics))
        .route("/stats", get(stats))
        .route("/log/level", any(level))
        .route("/healthz", get(async || answer(StatusCode::OK, TEXT, Bytes::from_static(b"ok\n"))))
        .route("/readyz", get(ready));
    if dev {
        router = router.route("/dev/stall", post(stall));
    }
    router
        .method_not_allowed_fallback(async || Problem::new(Code::Unimplemented, "Method Not Allowed"))
        .fallback(async || Problem::new(Code::NotFound, "Not Found"))
        .with_state(Arc::new(App {
            control,
            tokens,
            hooks,
            request_bytes_max: publish.request_bytes_max,
            batch_messages_max: publish.batch_messages_max,
            body_deadline: Duration::from_millis(publish.body_deadline_ms),
            pullers_max: publish.pullers_max,
            puller_bytes_max: publish.puller_bytes_max,
        }))
}

impl App {
    fn authorize(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if self.tokens.allow(headers.get(AUTHORIZATION).map(HeaderValue::as_bytes)) {
            return Ok(());
        }
        self.control.metrics().refused_unauthorized.add(1);
        Err(Problem::unauthorized())
    }

    pub(super) async fn read_body(&self, body: Body) -> Result<Bytes, Problem> {
        let (bytes_max, deadline) = (self.request_bytes_max, self.body_deadline);
        let Ok(body) = tokio::time::timeout(deadline, to_bytes(body, bytes_max)).await else {
            let ms = deadline.as_millis();
            let message = format!("the body was not complete after {ms} ms (publish.body_deadline_ms): send it faster");
            return Err(Problem::new(Code::InvalidArgument, message));
        };
        body.map_err(|e| {
            let message = format!(
                "the body could not be read: {e}; at most {bytes_max} bytes are taken (publish.request_bytes_max)"
            );
            Problem::new(Code::InvalidArgument, message)
        })
    }
}

async fn push_data(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    if let Err(problem) = app.authorize(request.headers()) {
        discard(request.into_body()).await;
        return Err(problem);
    }
    guarded(app.control.metrics(), async {
        let body = app.read_body(request.into_body()).await?;
        let body = json::parse(&body).map_err(|e| Problem::new(Code::InvalidArgument, e))?;
        push(&app.control, &body.uid, &body.topic, body.data.into()).await
    })
    .await?;
    Ok(answer(StatusCode::OK, JSON, Bytes::from_static(b"{}")))
}

/// As grpc-gateway does a stream: an object a line, the last one `error` if it did not just end.
async fn pull_data(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    if let Err(problem) = app.authorize(request.headers()) {
        discard(request.into_body()).await;
        return Err(problem);
    }
    app.read_body(request.into_body()).await?; // An `Empty`, whatever it says.
    let pull = app.control.pull(app.pullers_max, app.puller_bytes_max)?;
    let lines = pull.map(|push| Ok::<_, Infallible>(line(push)));
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    Ok(response)
}

fn line(push: Result<Pulled, Problem>) -> Bytes {
    #[derive(serde::Serialize)]
    struct Data<'a> {
        uid: &'a str,
        topic: &'a str,
        data: String,
    }
    let line = match push {
        Ok(Pulled { uid, topic, data }) => {
            let data = base64::engine::general_purpose::STANDARD.encode(&data);
            let data = serde_json::to_string(&Data { uid: &uid, topic: &topic, data }).expect("strings are JSON");
            format!("{{\"result\":{data}}}\n")
        }
        Err(problem) => format!("{}\n", serde_json::json!({ "error": problem.json() })),
    };
    line.into()
}

/// Reads on for a moment, so that the client is there for its answer.
pub(super) async fn discard(body: Body) {
    let mut body = body.into_data_stream();
    let mut bytes = 0;
    let read = async {
        while let Some(Ok(chunk)) = body.next().await {
            bytes += chunk.len();
            if bytes > DISCARDED_BYTES_MAX {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_DEADLINE, read).await;
}

async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, Problem> {
    app.authorize(&headers)?;
    let text = guarded_now(app.control.metrics(), || (app.hooks.metrics)())?;
    // Only OpenMetrics ends so, and must.
    let kind = if text.ends_with("# EOF\n") { OPENMETRICS_TEXT } else { PROMETHEUS_TEXT };
    Ok(answer(StatusCode::OK, kind, text.into()))
}

async fn stats(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, Problem> {
    app.authorize(&headers)?;
    let text = guarded_now(app.control.metrics(), || (app.hooks.stats)())?;
    Ok(answer(StatusCode::OK, JSON, text.into()))
}

async fn level(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    if let Err(problem) = app.authorize(request.headers()) {
        discard(request.into_body()).await;
        return Err(problem);
    }
    Ok(log_level::answer(&*app.hooks.log, request).await)
}

async fn ready(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    let reasons = guarded_now(app.control.metrics(), || (app.hooks.unready)())?;
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = serde_json::json!({ "ready": reasons.is_empty(), "reasons": reasons });
    let notes = guarded_now(app.control.metrics(), || (app.hooks.notes)())?;
    if !notes.is_empty() {
        body["notes"] = notes.into();
    }
    Ok(answer(status, JSON, body.to_string().into()))
}

#[derive(serde::Deserialize)]
struct Stall {
    shard: u16,
    ms: u64,
}

async fn stall(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    stall: Result<Query<Stall>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    app.authorize(&headers)?;
    let Query(Stall { shard, ms }) = stall.map_err(|e| Problem::new(Code::InvalidArgument, e.body_text()))?;
    if ms > STALL_MS_MAX {
        return Err(Problem::new(Code::InvalidArgument, format!("at most {STALL_MS_MAX} ms")));
    }
    app.control.stall(ShardId(shard), ms).map_err(|e| {
        let code = match e {
            StallError::NoSuchShard { .. } => Code::InvalidArgument,
            StallError::NoRoom { .. } => Code::ResourceExhausted,
        };
        Problem::new(code, e.to_string())
    })?;
    Ok(answer(StatusCode::OK, JSON, Bytes::from_static(b"{}")))
}

pub(super) fn answer(status: StatusCode, kind: HeaderValue, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

impl Problem {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({ "code": self.code as i32, "message": self.message, "details": [] })
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = answer(status(self.code), JSON, self.json().to_string().into());
        match self.code {
            Code::ResourceExhausted => {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Code::Unauthenticated => {
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

/// As grpc-gateway's `HTTPStatusFromCode`, for the codes we use.
pub(super) fn status(code: Code) -> StatusCode {
    match code {
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
