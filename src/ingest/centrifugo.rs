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
use serde::de::{Deserializer, Error, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::fmt;
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

    fn bad_request(what: impl fmt::Display) -> Failure {
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
            Refusal::TooLarge { .. }
            | Refusal::NameTooLong { .. }
            | Refusal::NotUtf8
            | Refusal::StreamTooLarge { .. } => Failure::bad_request(refusal),
            Refusal::NoRoom { .. }
            | Refusal::TooManyTopics { .. }
            | Refusal::Draining
            | Refusal::StreamAway { .. }
            | Refusal::StreamBusy { .. }
            | Refusal::StreamLate { .. }
            | Refusal::StreamRefused { .. } => {
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
    /// Read by [`at_most`].
    #[serde(borrow)]
    channels: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    b64data: Option<Cow<'a, str>>,
}

/// `parallel` is skipped: all of it is admitted at once, in order.
#[derive(Deserialize)]
struct Batch<'a> {
    /// Read by [`at_most`].
    #[serde(borrow)]
    commands: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct BatchCommand<'a> {
    #[serde(borrow)]
    publish: Option<Publish<'a>>,
    #[serde(borrow)]
    broadcast: Option<Broadcast<'a>>,
}

/// Items of an array; those beyond `max` are not even read, so that a call costs what it may and not what it asks for. None given is
/// none. `Ok(None)`: there are more.
fn at_most<'a, T: Deserialize<'a>>(array: Option<&'a RawValue>, max: usize) -> serde_json::Result<Option<Vec<T>>> {
    struct AtMost<'b, T> {
        items: &'b mut Vec<T>,
        max: usize,
        is_over: &'b mut bool,
    }
    impl<'a, T: Deserialize<'a>> Visitor<'a> for AtMost<'_, T> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'a>>(self, mut array: A) -> Result<(), A::Error> {
            while self.items.len() < self.max {
                let Some(item) = array.next_element()? else { return Ok(()) };
                self.items.push(item);
            }
            // Whatever it is, it is one too many.
            *self.is_over = array.next_element::<IgnoredAny>()?.is_some();
            if *self.is_over { Err(A::Error::custom("too many")) } else { Ok(()) }
        }
    }
    let Some(array) = array else { return Ok(Some(Vec::new())) };
    let (mut items, mut is_over) = (Vec::new(), false);
    let mut json = serde_json::Deserializer::from_str(array.get());
    match json.deserialize_seq(AtMost { items: &mut items, max, is_over: &mut is_over }) {
        Err(_) if is_over => Ok(None),
        read => read.map(|()| Some(items)),
    }
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
            if self.all.len() == self.max {
                return Err(self.too_many("publications"));
            }
            self.all.push(Ok(publication(publish.channel.as_deref().unwrap_or_default(), data)?));
            Ok(self.all.len() - 1)
        }))
    }

    /// # Errors
    /// Its channels are no texts.
    fn broadcast(&mut self, broadcast: &Broadcast<'_>) -> serde_json::Result<Asked> {
        let channels = at_most::<Cow<'_, str>>(broadcast.channels, self.max - self.all.len())?;
        let data = bytes(broadcast.data, broadcast.b64data.as_deref());
        Ok(Asked::Broadcast(data.and_then(|data| {
            let channels = channels.ok_or_else(|| self.too_many("publications"))?;
            if channels.is_empty() {
                return Err(Failure::bad_request("channels are required"));
            }
            let first = self.all.len();
            self.all.extend(channels.iter().map(|channel| publication(channel, data.clone())));
            Ok(first..self.all.len())
        })))
    }

    fn too_many(&self, what: &str) -> Failure {
        let max = self.max;
        Failure::bad_request(format_args!(
            "more than {max} {what} in one call, at most {max} are allowed (publish.batch_messages_max)"
        ))
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
            let broadcast = serde_json::from_slice(body).map_err(malformed)?;
            let asked = publications.broadcast(&broadcast).map_err(malformed)?;
            Ok(asked.result(&publications.admit(&app.control).await))
        }
        "batch" => {
            let batch: Batch<'_> = serde_json::from_slice(body).map_err(malformed)?;
            let commands = at_most::<BatchCommand<'_>>(batch.commands, app.batch_messages_max).map_err(malformed)?;
            let Some(commands) = commands else { return Ok(Err(publications.too_many("commands"))) };
            let asked = commands.iter().map(|command| match (&command.publish, &command.broadcast) {
                (Some(publish), _) => Ok(("publish", publications.publish(publish))),
                (_, Some(broadcast)) => Ok(("broadcast", publications.broadcast(broadcast)?)),
                _ => Ok(("error", Asked::Unknown)),
            });
            let asked = asked.collect::<serde_json::Result<Vec<(&str, Asked)>>>().map_err(malformed)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str, max: usize) -> serde_json::Result<Option<Vec<u8>>> {
        let raw: &RawValue = serde_json::from_str(json).unwrap();
        at_most(Some(raw), max)
    }

    #[test]
    fn an_array_is_read_up_to_its_bound_and_not_beyond() {
        assert_eq!(at_most::<u8>(None, 2).unwrap(), Some(vec![]));
        for (json, items) in [("[]", vec![]), ("[1]", vec![1]), (" [1 , 2]", vec![1, 2])] {
            assert_eq!(read(json, 2).unwrap(), Some(items), "{json}");
        }
        // What is beyond is not read: as a number of a byte, 1000 is none.
        for json in ["[1,2,3]", "[1,2,1000]", "[1,2,3,{},[]]"] {
            assert_eq!(read(json, 2).unwrap(), None, "{json}");
        }
        for json in ["[1,1000,3]", "{}", "7"] {
            assert!(read(json, 2).is_err(), "{json}");
        }
        assert_eq!(read("[]", 0).unwrap(), Some(vec![]));
        assert_eq!(read("[1]", 0).unwrap(), None);
    }
}
