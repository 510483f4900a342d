//! The log level over HTTP, as gpush's logger has it (zap's `AtomicLevel`): `GET` says `{"level":"info"}`, `PUT` of the same changes it
//! while the gateway runs.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::{ALLOW, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use std::sync::Arc;
use std::time::Duration;

/// Largest body of a `PUT`, and how long it may take to come.
const BODY_BYTES_MAX: usize = 4096;
const BODY_DEADLINE: Duration = Duration::from_secs(5);

/// Whoever filters the logs.
pub trait LogLevel: Send + Sync {
    /// The level that holds, written like `log.level`.
    fn level(&self) -> String;

    /// From now on this one holds.
    ///
    /// # Errors
    /// It is none; the old one stays.
    fn set_level(&self, level: &str) -> Result<(), String>;
}

/// Any path is the level's, as on gpush's logger port.
pub(super) fn router(log: Arc<dyn LogLevel>) -> Router {
    Router::new().fallback(async move |request: Request| answer(&*log, request).await)
}

/// What `request` is answered.
pub(super) async fn answer(log: &dyn LogLevel, request: Request) -> Response {
    let say = |status, key: &str, value: &str| {
        let body = serde_json::json!({ key: value }).to_string() + "\n";
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    };
    match *request.method() {
        Method::GET => {}
        Method::PUT => {
            if let Err(error) = put(log, request).await {
                return say(StatusCode::BAD_REQUEST, "error", &error);
            }
        }
        _ => {
            let mut refusal = say(StatusCode::METHOD_NOT_ALLOWED, "error", "Only GET and PUT are supported.");
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, PUT"));
            return refusal;
        }
    }
    say(StatusCode::OK, "level", &log.level())
}

async fn put(log: &dyn LogLevel, request: Request) -> Result<(), String> {
    #[derive(serde::Deserialize)]
    struct Wish {
        level: Option<String>,
    }
    let Ok(body) = tokio::time::timeout(BODY_DEADLINE, to_bytes(request.into_body(), BODY_BYTES_MAX)).await else {
        return Err("the body did not come in time".to_owned());
    };
    let body = body.map_err(|e| format!("the body could not be read: {e}"))?;
    let wish: Wish = serde_json::from_slice(&body).map_err(|e| format!("malformed request body: {e}"))?;
    let level = wish.level.filter(|level| !level.is_empty()).ok_or("must specify logging level")?;
    log.set_level(&level)?;
    tracing::info!(level, "the log level was changed over HTTP");
    Ok(())
}
