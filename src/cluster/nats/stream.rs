//! The stream itself: made if there is none, given its limits, told apart from one of the same name before it. A few calls of JetStream's,
//! which are JSON, so that what a newer server adds to a stream stays as it is when we change its limits.

use super::Repeated;
use super::subject::Subjects;
use crate::config::{Cluster, NatsStorage};
use crate::ids::Epoch;
use async_nats::client::RequestErrorKind;
use async_nats::{Client, Request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// How long a look at the stream may take: one without a leader says nothing.
const LOOK: Duration = Duration::from_secs(1);
/// How long a change may take; making a stream on three servers includes an election.
const CHANGE: Duration = Duration::from_secs(5);
/// For how long JetStream may be too slow for a look, until the connection is given up for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// JetStream's own number for a stream that is not there.
const STREAM_NOT_FOUND: u64 = 10059;
/// And for subjects that another stream has.
const SUBJECTS_TAKEN: u64 = 10065;

/// Why the stream can't be had now.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// Nobody answers for JetStream.
    #[error("JetStream does not answer: it is not enabled (nats-server -js), or has no leader now")]
    NoJetStream,
    #[error("{0}")]
    Unreachable(#[from] async_nats::RequestError),
    #[error("its answer can't be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("{} ({})", .0.description, .0.err_code)]
    Refused(Problem),
    #[error("{0}")]
    NotOurs(String),
}

impl StreamError {
    /// Whether no answer came in time.
    fn is_silence(&self) -> bool {
        matches!(self, StreamError::Unreachable(error) if error.kind() == RequestErrorKind::TimedOut)
    }
}

/// What JetStream says when it does not do something.
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    /// As HTTP's.
    pub(super) code: u64,
    /// Which one.
    #[serde(default)]
    pub(super) err_code: u64,
    #[serde(default)]
    pub(super) description: String,
}

impl Problem {
    /// Whether it will go away, with all that is published until then: no leader, no quorum, no room in a queue, on the disk, or in what the
    /// account may use (bytes and messages of its streams, by storage and in all).
    pub(super) fn is_passing(&self) -> bool {
        const NOT_LEADER: u64 = 10009;
        const ACCOUNT_IS_FULL: [u64; 3] = [10002, 10028, 10047];
        self.code == 503 || self.err_code == NOT_LEADER || ACCOUNT_IS_FULL.contains(&self.err_code)
    }

    /// Whether a smaller message would be taken.
    pub(super) fn is_for_size(&self) -> bool {
        const MESSAGE_TOO_LARGE: u64 = 10054;
        self.err_code == MESSAGE_TOO_LARGE
    }

    /// Whether the stream is about to store an earlier copy of the same message.
    pub(super) fn is_in_process(&self) -> bool {
        const DUPLICATE_IN_PROCESS: u64 = 10158;
        self.err_code == DUPLICATE_IN_PROCESS
    }
}

/// A stream as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stream {
    /// Of this one, and of none of its name before or after it.
    pub(super) epoch: Epoch,
    /// The oldest message in it, or the next if it is empty.
    pub(super) first: u64,
    /// The last one there ever was.
    pub(super) last: u64,
}

impl Stream {
    fn read(info: &Value) -> Option<Stream> {
        let created = info["created"].as_str()?;
        let name = info["config"]["name"].as_str()?;
        let state = &info["state"];
        let (first, last) = (state["first_seq"].as_u64()?, state["last_seq"].as_u64()?);
        // An empty one has first = last + 1, or 0 if nothing ever was in it.
        Some(Stream { epoch: epoch(name, created), first: first.max(1), last })
    }
}

/// FNV-1a of the name and the time of its making: all nodes come to the same, whenever they ask.
fn epoch(name: &str, created: &str) -> Epoch {
    let bytes = name.bytes().chain([0]).chain(created.bytes());
    let hash =
        bytes.fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
    Epoch(hash.max(1))
}

/// What a stream is to be.
pub(super) struct Wanted {
    name: String,
    subjects: [String; 3],
    storage: &'static str,
    limits: Vec<(&'static str, i64)>,
    complaints: [Repeated; 4], // Found at every look, which there are many of when NATS is slow.
}

impl Wanted {
    pub(super) fn new(settings: &Cluster, subjects: &Subjects) -> Wanted {
        let nanoseconds = |ms: u64| i64::try_from(u128::from(ms) * 1_000_000).unwrap_or(i64::MAX);
        Wanted {
            name: settings.nats_stream.clone(),
            subjects: subjects.all(),
            storage: match settings.nats_storage {
                NatsStorage::File => "file",
                NatsStorage::Memory => "memory",
            },
            limits: vec![
                ("max_age", nanoseconds(settings.nats_max_age_ms)),
                ("max_bytes", if settings.nats_max_bytes == 0 { -1 } else { settings.nats_max_bytes as i64 }),
                ("num_replicas", settings.nats_replicas as i64),
                ("duplicate_window", nanoseconds(settings.nats_duplicate_window_ms)),
            ],
            complaints: Default::default(),
        }
    }

    fn config(&self) -> Value {
        let mut config = json!({
            "name": self.name,
            "description": "Fanwire: what its nodes deliver",
            "subjects": self.subjects,
            "retention": "limits",
            "discard": "old",
            "storage": self.storage,
            "max_consumers": -1,
            "max_msgs": -1,
            "max_msg_size": -1,
        });
        self.limits.iter().for_each(|(key, value)| config[*key] = (*value).into());
        config
    }

    /// What `found` would have to be changed to; nothing if it is as wanted.
    fn change(&self, found: &Value) -> Result<Option<Value>, StreamError> {
        let name = &self.name;
        let mut subjects: Vec<_> =
            found["subjects"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        subjects.sort_unstable();
        if subjects != self.subjects {
            return Err(StreamError::NotOurs(format!(
                "the stream {name} has the subjects {}, not {}: set cluster.nats_stream or cluster.nats_subjects to what is to be, or delete that stream",
                subjects.join(", "),
                self.subjects.join(", ")
            )));
        }
        if found["retention"] != "limits" {
            return Err(StreamError::NotOurs(format!(
                "the stream {name} has the retention {}, by which messages go before every node has had them: it must be \"limits\"",
                found["retention"]
            )));
        }
        if found["no_ack"] == true {
            return Err(StreamError::NotOurs(format!(
                "the stream {name} acknowledges nothing (no_ack), so that no publisher could be answered: it must be false"
            )));
        }
        let [changing, storage, limits, _] = &self.complaints;
        let mut changed = found.clone();
        let mut differ = Vec::new();
        for (key, value) in &self.limits {
            let is = found[*key].as_i64().unwrap_or(0);
            let is_alike = is == *value || (*key == "max_bytes" && is <= 0 && *value <= 0);
            if !is_alike {
                differ.push(format!("{key} from {is} to {value}"));
                changed[*key] = (*value).into();
            }
        }
        if !differ.is_empty() {
            changing.say(1, &format!("changing limits of the stream {name}: {}", differ.join(", ")));
        }
        if found["storage"] != self.storage {
            let why = format!(
                "the stream {name} has the storage {}, not cluster.nats_storage = {:?}, and it can't be changed: delete the stream to have it made anew",
                found["storage"], self.storage
            );
            storage.say(1, &why);
        }
        if found["discard"] == "new" || found["max_msgs"].as_i64().is_some_and(|most| most > 0) {
            let why = format!(
                "the stream {name} has a bound that is not ours, discard {} and max_msgs {}: with the first publishers are refused when it is full, by the second messages go",
                found["discard"], found["max_msgs"]
            );
            limits.say(1, &why);
        }
        Ok((changed != *found).then_some(changed))
    }
}

/// The stream, made or changed if it is not as wanted.
pub(super) async fn have(client: &Client, wanted: &Wanted) -> Result<Stream, StreamError> {
    let name = &wanted.name;
    let info = match call(client, &format!("STREAM.INFO.{name}"), &Value::Null).await {
        Err(StreamError::Refused(problem)) if problem.err_code == STREAM_NOT_FOUND => {
            tracing::info!(stream = name, "making the stream");
            match call(client, &format!("STREAM.CREATE.{name}"), &wanted.config()).await {
                Err(StreamError::Refused(problem)) if problem.err_code == SUBJECTS_TAKEN => {
                    return Err(taken(client, wanted).await);
                }
                made => made?,
            }
        }
        found => {
            let found = found?;
            match wanted.change(&found["config"])? {
                None => found,
                Some(changed) => match call(client, &format!("STREAM.UPDATE.{name}"), &changed).await {
                    Ok(updated) => updated,
                    Err(StreamError::Refused(problem)) => {
                        let why = format!(
                            "NATS does not change the limits of the stream {name}, which stay as they were ({}): with a shorter duplicate_window what is sent again may be doubled",
                            problem.description
                        );
                        wanted.complaints[3].say(1, &why);
                        found
                    }
                    Err(error) => return Err(error),
                },
            }
        }
    };
    Stream::read(&info)
        .ok_or_else(|| StreamError::NotOurs(format!("what NATS says of the stream {name} is no stream: {info}")))
}

/// As [`have`], from a JetStream that is slow now: a connection that lives, and the consumer on it, are not given up for one late answer.
pub(super) async fn have_patiently(client: &Client, wanted: &Wanted) -> Result<Stream, StreamError> {
    patiently(|| have(client, wanted)).await
}

async fn patiently<T, F>(mut call: impl FnMut() -> F) -> Result<T, StreamError>
where
    F: Future<Output = Result<T, StreamError>>,
{
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        match call().await {
            Err(error) if error.is_silence() && tokio::time::Instant::now() < end => {
                tokio::time::sleep(PATIENCE / 50).await;
            }
            outcome => return outcome,
        }
    }
}

/// Who has our subjects.
async fn taken(client: &Client, wanted: &Wanted) -> StreamError {
    let mut names = Vec::new();
    for subject in &wanted.subjects {
        if let Ok(found) = call(client, "STREAM.NAMES", &json!({ "subject": subject })).await {
            names
                .extend(found["streams"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
        }
    }
    names.sort_unstable();
    names.dedup();
    StreamError::NotOurs(format!(
        "another stream of NATS ({}) has subjects of {}: set cluster.nats_subjects to a prefix that is free, or delete that stream",
        names.join(", "),
        wanted.subjects.join(", ")
    ))
}

/// A message as it is in the stream, whatever stands in its header.
#[derive(Debug, PartialEq)]
pub(super) struct Stored {
    pub(super) subject: String,
    pub(super) data: Bytes,
    /// When the stream got it: nanoseconds since 1970.
    pub(super) time: u64,
}

impl Stored {
    fn read(message: &Value) -> Option<Stored> {
        // An empty payload is left out.
        let data = STANDARD.decode(message["data"].as_str().unwrap_or_default()).ok()?;
        let time = nanoseconds_since_1970(message["time"].as_str()?)?;
        Some(Stored { subject: message["subject"].as_str()?.to_owned(), data: data.into(), time })
    }
}

/// Of a time as Go writes it in UTC: `2026-01-02T03:04:05.123456789Z`, a fraction's last zeros left out.
fn nanoseconds_since_1970(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, between: char| text.split(between).map(|part| part.parse::<u64>().ok()).collect();
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let date: Option<Vec<u64>> = numbers(date, '-');
    let time: Option<Vec<u64>> = numbers(time, ':');
    let ([year, month, day], [hour, minute, second]) = (date?.try_into().ok()?, time?.try_into().ok()?);
    let year: u64 = year;
    // Years that begin in March end with the leap day.
    let (year, month): (u64, u64) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day;
    const DAYS_TO_1970: u64 = 719_469;
    let seconds = ((days.checked_sub(DAYS_TO_1970)? * 24 + hour) * 60 + minute) * 60 + second;
    let nanoseconds: u64 = format!("{fraction:0<9}").parse().ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

/// The message of that sequence; nothing if it is not in the stream.
pub(super) async fn message(client: &Client, stream: &str, sequence: u64) -> Result<Option<Stored>, StreamError> {
    const NO_MESSAGE: u64 = 10037;
    let (what, argument) = (format!("STREAM.MSG.GET.{stream}"), json!({ "seq": sequence }));
    match patiently(|| call_within(LOOK, client, &what, &argument)).await {
        Err(StreamError::Refused(problem)) if problem.err_code == NO_MESSAGE => Ok(None),
        found => match Stored::read(&found?["message"]) {
            Some(stored) => Ok(Some(stored)),
            None => {
                Err(StreamError::NotOurs(format!("what NATS says of message {sequence} of {stream} is no message")))
            }
        },
    }
}

/// One call of JetStream's interface.
pub(super) async fn call(client: &Client, what: &str, argument: &Value) -> Result<Value, StreamError> {
    call_within(if argument.is_null() { LOOK } else { CHANGE }, client, what, argument).await
}

async fn call_within(patience: Duration, client: &Client, what: &str, argument: &Value) -> Result<Value, StreamError> {
    let payload = if argument.is_null() { String::new() } else { argument.to_string() };
    let request = Request::new().payload(payload.into()).timeout(Some(patience));
    let answer = client.send_request(format!("$JS.API.{what}"), request).await.map_err(|error| match error.kind() {
        RequestErrorKind::NoResponders => StreamError::NoJetStream,
        _ => error.into(),
    })?;
    let mut value: Value = serde_json::from_slice(&answer.payload)?;
    match value["error"].take() {
        Value::Null => Ok(value),
        problem => Err(StreamError::Refused(serde_json::from_value(problem)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted::new(&Cluster::default(), &Subjects::new("fanwire"))
    }

    #[test]
    fn one_stream_has_one_epoch_and_its_successor_another() {
        let info = |created: &str| json!({ "created": created, "config": { "name": "F" }, "state": { "first_seq": 0, "last_seq": 0 } });
        let one = Stream::read(&info("2026-01-02T03:04:05.123456789Z")).unwrap();
        assert_eq!(Stream::read(&info("2026-01-02T03:04:05.123456789Z")), Some(one));
        let other = Stream::read(&info("2026-01-02T03:04:05.123456790Z")).unwrap();
        assert_ne!(one.epoch, other.epoch);
        assert_eq!((one.first, one.last), (1, 0));
        assert_eq!(Stream::read(&json!({ "type": "something else" })), None);
    }

    #[test]
    fn a_stream_as_it_was_made_is_left_alone() {
        let mut found = wanted().config();
        found["mirror_direct"] = false.into();
        found["a newer server's"] = 7.into();
        assert_eq!(wanted().change(&found).unwrap(), None);
    }

    #[test]
    fn limits_are_changed_and_nothing_else() {
        let mut found = wanted().config();
        (found["max_age"], found["a newer server's"]) = (1.into(), 7.into());
        let changed = wanted().change(&found).unwrap().unwrap();
        assert_eq!(changed["max_age"], 3_600_000_000_000i64);
        assert_eq!(changed["a newer server's"], 7);
    }

    #[test]
    fn no_bound_is_no_bound_however_it_is_written() {
        let mut found = wanted().config();
        found["max_bytes"] = 0.into();
        let settings = Cluster { nats_max_bytes: 0, ..Cluster::default() };
        assert_eq!(Wanted::new(&settings, &Subjects::new("fanwire")).change(&found).unwrap(), None);
    }

    #[test]
    fn a_stream_of_others_is_refused_with_what_to_do() {
        let mut found = wanted().config();
        found["subjects"] = json!(["orders.>"]);
        let error = wanted().change(&found).unwrap_err().to_string();
        assert!(error.contains("orders.>") && error.contains("cluster.nats_stream"), "{error}");
        let mut queue = wanted().config();
        queue["retention"] = "workqueue".into();
        assert!(wanted().change(&queue).unwrap_err().to_string().contains("must be \"limits\""));
        let mut silent = wanted().config();
        silent["no_ack"] = true.into();
        assert!(wanted().change(&silent).unwrap_err().to_string().contains("acknowledges nothing"));
    }

    #[test]
    fn times_are_read_as_go_writes_them() {
        let read = nanoseconds_since_1970;
        assert_eq!(read("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(read("1970-01-02T00:00:01.5Z"), Some(86_401_500_000_000));
        assert_eq!(read("2024-02-29T12:00:00.000000001Z"), Some(1_709_208_000_000_000_001));
        assert_eq!(read("2026-11-26T20:00:00.12Z"), Some(1_795_723_200_120_000_000));
        for other in ["", "2026-11-26", "1969-12-31T00:00:00Z", "2026-11-26T20:00:00+01:00", "aT:Z"] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn a_message_is_read_without_its_header() {
        let message = json!({ "subject": "f.b", "seq": 7, "hdrs": "/w==", "data": "aGk=", "time": "1970-01-01T00:00:00.000000009Z" });
        let stored = Stored { subject: "f.b".into(), data: "hi".into(), time: 9 };
        assert_eq!(Stored::read(&message), Some(stored));
        assert_eq!(Stored::read(&json!({ "subject": "f.b" })), None);
    }

    #[test]
    fn a_late_answer_is_waited_for_and_a_refusal_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let late = || StreamError::Unreachable(async_nats::RequestError::new(RequestErrorKind::TimedOut));
        let mut answers = vec![Ok(7), Err(late()), Err(late())];
        let outcome = runtime.block_on(patiently(|| std::future::ready(answers.pop().unwrap())));
        assert_eq!(outcome.unwrap(), 7);
        let mut answers = vec![Ok(7), Err(StreamError::NoJetStream)];
        let outcome = runtime.block_on(patiently(|| std::future::ready(answers.pop().unwrap())));
        assert!(matches!(outcome, Err(StreamError::NoJetStream)));
    }
}
