//! Centrifugo's server API over HTTP, the part that publishes: `POST /api/publish`, `/api/broadcast`, and `/api/batch` of both.
//!
//! An answer is 200 with `{"result":{…}}` or `{"error":{"code":…,"message":…}}`; with `X-Centrifugo-Error-Mode: transport` an error
//! is an HTTP status with `{"code":…,"message":…}`. A key comes as `X-API-Key`, `Authorization: apikey KEY` or `?api_key=`; where
//! no file of keys is configured, what guards the other publishing routes guards these.

use super::http::{App, JSON, TEXT, answer, discard};
use super::push::guarded;
use super::{Admission, Control, Tokens};
use crate::frame::Publication;
use crate::ids::Epoch;
use crate::topics::{Ack, Refusal};
use axum::extract::{Path, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// What the original has besides, and this gateway has not.
const NOT_AVAILABLE: [&str; 12] = [
    "subscribe",
    "unsubscribe",
    "disconnect",
    "refresh",
    "presence",
    "presence_stats",
    "history",
    "history_remove",
    "channels",
    "info",
    "rpc",
    "connections",
];

/// An error by number, as the original has it; the text says more where there is more to say.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    code: u16,
    message: Cow<'static, str>,
}

impl Failure {
    const NOT_AVAILABLE: Failure = Failure { code: 108, message: Cow::Borrowed("not available") };

    fn bad_request(what: impl std::fmt::Display) -> Failure {
        Failure { code: 107, message: format!("bad request: {what}").into() }
    }

    fn json(&self) -> Value {
        json!({ "code": self.code, "message": self.message })
    }

    /// In transport mode.
    fn status(&self) -> StatusCode {
        match self.code {
            107 | 108 => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        match refusal {
            Refusal::TooLarge { .. } | Refusal::NameTooLong { .. } | Refusal::NotUtf8 => Failure::bad_request(refusal),
            Refusal::NoRoom { .. } | Refusal::TooManyTopics { .. } | Refusal::Draining => {
                Failure { code: 100, message: format!("internal server error: {refusal}").into() }
            }
        }
    }
}

/// Members that mean nothing here (history, tags, idempotency, delta) are skipped.
#[derive(Deserialize)]
struct Publish<'a> {
    #[serde(borrow)]
    channel: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    b64data: Option<Cow<'a, str>>,
}

/// One publication for each channel.
#[derive(Deserialize)]
struct Broadcast<'a> {
    #[serde(borrow, default)]
    channels: Vec<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    b64data: Option<Cow<'a, str>>,
}

/// `parallel` is skipped: all of it is admitted at once, in order.
#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(borrow, default)]
    commands: Vec<BatchCommand<'a>>,
}

#[derive(Deserialize)]
struct BatchCommand<'a> {
    #[serde(borrow)]
    publish: Option<Publish<'a>>,
    #[serde(borrow)]
    broadcast: Option<Broadcast<'a>>,
}

fn bytes(data: Option<&RawValue>, b64data: Option<&str>) -> Result<Bytes, Failure> {
    match (data, b64data) {
        (_, Some(text)) if !text.is_empty() => match STANDARD.decode(text) {
            Ok(bytes) => Ok(bytes.into()),
            Err(e) => Err(Failure::bad_request(format_args!("b64data: {e}"))),
        },
        (Some(data), _) => Ok(Bytes::copy_from_slice(data.get().as_bytes())),
        _ => Err(Failure::bad_request("data is required")),
    }
}

fn publication(channel: &str, data: Bytes) -> Result<Publication, Failure> {
    // An empty topic would be everyone, which nobody says here by leaving something out.
    if channel.is_empty() {
        Err(Failure::bad_request("channel is required"))
    } else {
        Ok(Publication::new(channel, data))
    }
}

/// What a request came to: which of the publications are its, or why it has none.
enum Asked {
    Publish(Result<usize, Failure>),
    Broadcast(Result<Range<usize>, Failure>),
    Unknown,
}

/// Publications of one call, admitted together.
struct Publications {
    all: Vec<Result<Publication, Failure>>,
    max: usize,
}

impl Publications {
    fn publish(&mut self, publish: &Publish<'_>) -> Asked {
        let data = bytes(publish.data, publish.b64data.as_deref());
        Asked::Publish(data.and_then(|data| {
            self.room(1)?;
            self.all.push(Ok(publication(publish.channel.as_deref().unwrap_or_default(), data)?));
            Ok(self.all.len() - 1)
        }))
    }

    fn broadcast(&mut self, broadcast: &Broadcast<'_>) -> Asked {
        let data = bytes(broadcast.data, broadcast.b64data.as_deref());
        Asked::Broadcast(data.and_then(|data| {
            if broadcast.channels.is_empty() {
                return Err(Failure::bad_request("channels are required"));
            }
            self.room(broadcast.channels.len())?;
            let first = self.all.len();
            self.all.extend(broadcast.channels.iter().map(|channel| publication(channel, data.clone())));
            Ok(first..self.all.len())
        }))
    }

    fn room(&self, more: usize) -> Result<(), Failure> {
        let (all, max) = (self.all.len() + more, self.max);
        let many = || format!("{all} publications in one call, at most {max} are allowed (publish.batch_messages_max)");
        if all > max { Err(Failure::bad_request(many())) } else { Ok(()) }
    }

    async fn admit(self, control: &Control) -> Vec<Result<Ack, Failure>> {
        let mut results: Vec<Result<Ack, Failure>> = Vec::with_capacity(self.all.len());
        let mut waiting = Vec::new();
        let places: Vec<usize> = (0..self.all.len()).filter(|i| self.all[*i].is_ok()).collect();
        let mut publications = Vec::with_capacity(places.len());
        for publication in self.all {
            // The place of one that waits, or is about to be admitted, is held by any result.
            let ack = Ack { epoch: Epoch(0), offset: Default::default() };
            results.push(publication.map(|publication| {
                publications.push(publication);
                ack
            }));
        }
        let mut places = places.into_iter();
        control.try_publish_all(publications, |admission| {
            let place = places.next().expect("one admission each");
            match admission {
                Admission::Done(outcome) => results[place] = outcome.map_err(Failure::from),
                Admission::Waiting(outcome) => waiting.push((place, outcome)),
            }
        });
        for (place, outcome) in waiting {
            results[place] = outcome.await.map_err(Failure::from);
        }
        results
    }
}

fn result(outcome: &Result<Ack, Failure>) -> Result<Value, Failure> {
    let ack = outcome.as_ref().map_err(Failure::clone)?;
    Ok(json!({ "offset": ack.offset.0, "epoch": format!("{:x}", ack.epoch.0) }))
}

fn enveloped(result: Result<Value, Failure>) -> Value {
    match result {
        Ok(result) => json!({ "result": result }),
        Err(failure) => json!({ "error": failure.json() }),
    }
}

impl Asked {
    fn result(self, outcomes: &[Result<Ack, Failure>]) -> Result<Value, Failure> {
        match self {
            Asked::Publish(place) => result(&outcomes[place?]),
            Asked::Broadcast(places) => {
                let responses: Vec<Value> =
                    outcomes[places?].iter().map(|outcome| enveloped(result(outcome))).collect();
                Ok(json!({ "responses": responses }))
            }
            Asked::Unknown => Err(Failure::NOT_AVAILABLE),
        }
    }
}

/// Whether the call carries what opens these routes.
fn is_authorized(tokens: &Tokens, headers: &HeaderMap, query: &str) -> bool {
    match tokens.api_keys() {
        Some(_) => has_key(tokens, headers, query),
        None => tokens.allow(headers.get(AUTHORIZATION).map(|value| value.as_bytes())),
    }
}

/// Whether it carries a key of this API, if it has its own.
pub(super) fn has_key(tokens: &Tokens, headers: &HeaderMap, query: &str) -> bool {
    let Some(keys) = tokens.api_keys() else { return false };
    let authorization = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
    let apikey = |value: &'_ [u8]| {
        let (scheme, key) = value.split_at_checked("apikey ".len())?;
        scheme.eq_ignore_ascii_case(b"apikey ").then(|| key.trim_ascii().to_vec())
    };
    let in_query =
        || query.split('&').find_map(|pair| pair.strip_prefix("api_key=")).map(|key| key.as_bytes().to_vec());
    // As the original: where there is an X-API-Key, nothing else is looked at.
    let given = match headers.get("x-api-key") {
        Some(key) => Some(key.as_bytes().to_vec()),
        None => authorization.and_then(apikey).or_else(in_query),
    };
    given.is_some_and(|key| keys.holds(&key))
}

/// `/api/METHOD`.
pub(super) async fn call(State(app): State<Arc<App>>, Path(method): Path<String>, request: Request) -> Response {
    if request.method() != Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    if !is_authorized(&app.tokens, request.headers(), request.uri().query().unwrap_or_default()) {
        app.control.metrics().refused_unauthorized.add(1);
        discard(request.into_body()).await;
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let by_status = request.headers().get("x-centrifugo-error-mode").is_some_and(|mode| mode == "transport");
    let answered = guarded(app.control.metrics(), async {
        let body = app.read_body(request.into_body()).await?;
        Ok(answered(&app, &method, &body).await)
    });
    match answered.await {
        Err(problem) => answer(super::http::status(problem.code), TEXT, problem.message.into_owned().into()),
        Ok(Err(status_and_text)) => status_and_text.into_response(),
        Ok(Ok(Err(failure))) if by_status => answer(failure.status(), JSON, failure.json().to_string().into()),
        Ok(Ok(Ok(Value::Array(replies)))) => {
            answer(StatusCode::OK, JSON, json!({ "replies": replies }).to_string().into())
        }
        Ok(Ok(result)) => answer(StatusCode::OK, JSON, enveloped(result).to_string().into()),
    }
}

/// The result of a call, of a batch its replies; or what is no call at all.
async fn answered(app: &App, method: &str, body: &[u8]) -> Result<Result<Value, Failure>, (StatusCode, String)> {
    let malformed = |e: serde_json::Error| (StatusCode::BAD_REQUEST, format!("{e}\n"));
    let mut publications = Publications { all: Vec::new(), max: app.batch_messages_max };
    match method {
        "publish" => {
            let asked = publications.publish(&serde_json::from_slice(body).map_err(malformed)?);
            Ok(asked.result(&publications.admit(&app.control).await))
        }
        "broadcast" => {
            let asked = publications.broadcast(&serde_json::from_slice(body).map_err(malformed)?);
            Ok(asked.result(&publications.admit(&app.control).await))
        }
        "batch" => {
            let batch: Batch<'_> = serde_json::from_slice(body).map_err(malformed)?;
            let asked: Vec<(&str, Asked)> = batch
                .commands
                .iter()
                .map(|command| match (&command.publish, &command.broadcast) {
                    (Some(publish), _) => ("publish", publications.publish(publish)),
                    (_, Some(broadcast)) => ("broadcast", publications.broadcast(broadcast)),
                    _ => ("error", Asked::Unknown),
                })
                .collect();
            let outcomes = publications.admit(&app.control).await;
            let reply = |(name, asked): (&str, Asked)| match asked.result(&outcomes) {
                Ok(result) => json!({ name: result }),
                Err(failure) => json!({ "error": failure.json() }),
            };
            Ok(Ok(Value::Array(asked.into_iter().map(reply).collect())))
        }
        known if NOT_AVAILABLE.contains(&known) => Ok(Err(Failure::NOT_AVAILABLE)),
        _ => Err((StatusCode::NOT_FOUND, "404 page not found\n".to_owned())),
    }
}
