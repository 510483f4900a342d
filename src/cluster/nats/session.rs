//! One connection to one server of NATS, and what is published over it: from the handshake to whatever ends it.
//!
//! A connection is used once. When it is lost, all that its client still held goes with it, and what has no acknowledgement is sent again
//! over the next one, in order: a client that connects again by itself would send the rest of its queue first, ahead of what was lost.

use super::follow::{Cursor, follow};
use super::outbox::{Outbox, Resumed, Sending};
use super::stream::{self, Problem};
use super::{Answer, Followed, Owed, Repeated, Shared};
use crate::ids::{Epoch, Offset};
use crate::topics::{Ack, Refusal};
use async_nats::client::PublishErrorKind;
use async_nats::{Client, ConnectOptions, Event, HeaderMap, Message, ServerError, StatusCode, Subscriber};
use futures_util::{FutureExt, StreamExt};
use serde::Deserialize;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// How long a connection and its handshakes may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How often a server is asked for a sign of life; after two in vain it is gone.
const PING: Duration = Duration::from_secs(2);
/// Messages here that nobody has looked at yet. NATS's flow control counts bytes, so small ones could be more: they are asked for again.
const UNREAD_MAX: usize = 65_536;
/// Sent between two looks at acknowledgements, and acknowledgements taken between two looks at what is to be sent.
const BURST: usize = 256;
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(50);
/// A message without an answer for so long is sent again, and those behind it wait.
const RESEND: Duration = Duration::from_secs(2);
/// What a server may still have from a connection that is gone it has by then, ahead of what is sent again.
const SETTLE: Duration = Duration::from_millis(100);

/// How this node shows who it is.
#[derive(Clone)]
pub(in crate::cluster) enum Login {
    Nobody,
    User { name: String, password: String },
    Token(String),
    Credentials(String),
}

/// How to reach NATS.
#[derive(Clone)]
pub(in crate::cluster) struct Access {
    pub(super) servers: Vec<String>,
    pub(super) login: Login,
    pub(super) ca_file: String,
    /// Certificate and key.
    pub(super) identity: Option<(String, String)>,
    /// As NATS lists it among its connections.
    pub(super) name: String,
}

impl Access {
    /// What a client is told, but for what happens to it.
    ///
    /// # Errors
    /// The credentials can't be used.
    pub(super) fn options(&self) -> std::io::Result<ConnectOptions> {
        let mut options = ConnectOptions::new();
        options = match &self.login {
            Login::Nobody => options,
            Login::User { name, password } => options.user_and_password(name.clone(), password.clone()),
            Login::Token(token) => options.token(token.clone()),
            Login::Credentials(text) => options.credentials(text)?,
        };
        if !self.ca_file.is_empty() {
            options = options.add_root_certificates(self.ca_file.clone().into());
        }
        if let Some((certificate, key)) = &self.identity {
            options = options.add_client_certificate(certificate.clone().into(), key.clone().into());
        }
        Ok(options
            .name(self.name.clone())
            .connection_timeout(CONNECT)
            .ping_interval(PING)
            .subscription_capacity(UNREAD_MAX)
            .ignore_discovered_servers()
            .retain_servers_order())
    }
}

/// A client, and whether its connection is lost.
struct Connection {
    client: Client,
    lost: watch::Receiver<bool>,
}

async fn connect(access: &Access, attempt: usize) -> Result<Connection, String> {
    let (losing, lost) = watch::channel(false);
    let losing = Arc::new(losing);
    let complaints = Arc::new(Repeated::default());
    let server = &access.servers[attempt % access.servers.len()];
    let options = access.options().map_err(|error| format!("cluster.nats_credentials_file: {error}"))?;
    let options = options.event_callback(move |event| {
        let (losing, complaints) = (losing.clone(), complaints.clone());
        async move {
            match event {
                Event::Disconnected | Event::Closed => drop(losing.send_replace(true)),
                Event::ServerError(error) => {
                    let text = match error {
                        ServerError::Other(text) => text,
                        error => error.to_string(),
                    };
                    // What is not permitted is said again with every message.
                    complaints.say(1, &format!("NATS says: {text}"));
                }
                _ => {}
            }
        }
    });
    let client = options.connect(server.as_str()).await.map_err(|error| super::super::causes(&error))?;
    Ok(Connection { client, lost })
}

/// Publishes and follows over one connection, until it is lost or something else fails.
pub(super) async fn run(
    shared: &Arc<Shared>,
    access: &Access,
    attempt: usize,
    cursor: &mut Cursor,
    control: &mpsc::Sender<Followed>,
) -> Result<Infallible, String> {
    let server = &access.servers[attempt % access.servers.len()];
    let at = |error: &dyn std::fmt::Display| format!("NATS at {server}: {error}");
    let Connection { client, mut lost } = connect(access, attempt).await.map_err(|error| at(&error))?;
    shared.metrics.nats_connects.add(1);
    let stream = stream::have(&client, &shared.wanted).await.map_err(|error| at(&error))?;
    shared.set_epoch(stream.epoch);
    tracing::info!(server, stream = shared.wanted_name, "connected to NATS");
    if shared.is_following {
        cursor.begin(stream);
    } else {
        shared.well();
    }
    let following = async {
        if !shared.is_following {
            return std::future::pending().await;
        }
        follow(shared, &client, cursor, control).await.map_err(|error| at(&error))
    };
    tokio::select! {
        biased;
        _ = lost.wait_for(|lost| *lost) => Err(at(&"the connection is lost")),
        ended = publish(shared, &client) => ended.map_err(|error| at(&error)),
        ended = following => ended,
    }
}

#[derive(Deserialize)]
struct PubAck {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<Problem>,
}

/// What NATS says to a publication.
#[derive(Debug, PartialEq)]
enum Verdict {
    Stored {
        sequence: u64,
        /// It had one of that identity before.
        is_duplicate: bool,
    },
    /// Not now, and it is not stored: why.
    NotNow(String),
    /// It is about to store an earlier copy.
    InProcess,
    /// Not a message of that size: why.
    TooLarge(String),
    /// Not at all: why.
    Refused(String),
    /// Whatever that is, it is no answer: the deadline decides.
    Unclear,
}

impl Verdict {
    fn read(status: Option<StatusCode>, payload: &[u8]) -> Verdict {
        if status == Some(StatusCode::NO_RESPONDERS) {
            return Verdict::NotNow("the stream has no leader now".into());
        }
        match serde_json::from_slice::<PubAck>(payload) {
            Ok(PubAck { error: Some(problem), .. }) if problem.is_in_process() => Verdict::InProcess,
            Ok(PubAck { error: Some(problem), .. }) if problem.is_passing() => Verdict::NotNow(problem.description),
            Ok(PubAck { error: Some(problem), .. }) if problem.is_for_size() => Verdict::TooLarge(problem.description),
            Ok(PubAck { error: Some(problem), .. }) => Verdict::Refused(problem.description),
            Ok(PubAck { seq: sequence @ 1.., duplicate: is_duplicate, .. }) => {
                Verdict::Stored { sequence, is_duplicate }
            }
            _ => Verdict::Unclear,
        }
    }
}

/// Sends what publishers give and takes acknowledgements.
async fn publish(shared: &Arc<Shared>, client: &Client) -> Result<Infallible, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let inbox = client.new_inbox();
    let mut acks = client.subscribe(format!("{inbox}.*")).await.map_err(|error| text(&error))?;
    if shared.outbox().is_held() {
        tokio::time::sleep(SETTLE).await;
    }
    let mut tick = tokio::time::interval(TICK);
    let mut looked = Instant::now();
    loop {
        let sendings: Option<Vec<_>> = {
            let mut outbox = shared.outbox();
            let now = Instant::now();
            if now.duration_since(looked) >= TICK {
                looked = now;
                let overdue = now.checked_sub(RESEND).map_or(0, |then| outbox.overdue(then));
                if overdue > 0 {
                    let why = "messages are not acknowledged by NATS; sending again what it may not have";
                    shared.overdue.say(overdue as u64, why);
                }
            }
            let is_stuck = outbox.is_held() && outbox.sent() == 0;
            (!is_stuck).then(|| std::iter::from_fn(|| outbox.next(now)).take(BURST).collect())
        };
        let Some(sendings) = sendings else {
            resume(shared, client).await?;
            continue;
        };
        let is_full = sendings.len() == BURST;
        for sending in sendings {
            send(shared, client, &inbox, sending).await?;
        }
        let message = if is_full {
            tokio::task::yield_now().await;
            acks.next().now_or_never()
        } else {
            tokio::select! {
                biased;
                message = acks.next() => Some(message),
                () = shared.grown.notified() => None,
                _ = tick.tick() => None,
            }
        };
        if let Some(message) = message {
            let message = message.ok_or("the subscription for acknowledgements is over")?;
            take(shared, message, &mut acks);
        }
    }
}

/// Sends again what is stuck, once there is a stream to take it.
async fn resume(shared: &Shared, client: &Client) -> Result<(), String> {
    let stream = stream::have_patiently(client, &shared.wanted).await.map_err(|error| error.to_string())?;
    shared.set_epoch(stream.epoch);
    let Resumed { given_up, again } = shared.outbox().resume();
    shared.metrics.nats_resent.add(again as u64);
    shared.give_up(given_up, &"it was sent before another to the same subject, which the stream has");
    if again > 0 {
        // A stream without a leader answers at once that nobody is there: not as often as that.
        tokio::time::sleep(SETTLE).await;
    }
    Ok(())
}

async fn send(shared: &Shared, client: &Client, inbox: &str, sending: Sending) -> Result<(), String> {
    let Sending { id, subject, data } = sending;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", shared.names.of(id));
    let sent = client.publish_with_reply_and_headers(subject.to_string(), format!("{inbox}.{id:x}"), headers, data);
    match sent.await {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
            let refused = shared.outbox().refused(id);
            let reason = format!("NATS's max_payload is {} bytes", client.max_payload());
            let why = Refusal::StreamTooLarge { reason };
            shared.answer(refused.map(|refused| shared.refusal(refused, why)).into_iter().collect());
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Does by the verdict on a publication; returns what its publisher is told, if that is settled by it.
fn settle(shared: &Shared, outbox: &mut Outbox<Owed>, epoch: Epoch, id: u64, verdict: Verdict) -> Option<Answer> {
    let refuse =
        |outbox: &mut Outbox<Owed>, why: Refusal| outbox.refused(id).map(|refused| shared.refusal(refused, why));
    match verdict {
        Verdict::NotNow(why) => {
            outbox.unanswered(id);
            shared.put_off(why);
            None
        }
        Verdict::InProcess => {
            outbox.in_process(id);
            None
        }
        Verdict::TooLarge(reason) => refuse(outbox, Refusal::StreamTooLarge { reason }),
        Verdict::Refused(reason) => refuse(outbox, Refusal::StreamRefused { reason }),
        Verdict::Stored { is_duplicate: true, .. } if !outbox.is_resent(id) => {
            let reason = "it has another message of its Nats-Msg-Id: try again".into();
            refuse(outbox, Refusal::StreamRefused { reason })
        }
        Verdict::Stored { sequence, .. } => {
            shared.taking();
            let Owed { done, .. } = outbox.acked(id)?;
            shared.metrics.nats_acknowledged.add(1);
            Some(Answer { done, outcome: Ok(Ack { epoch, offset: Offset(sequence) }) })
        }
        Verdict::Unclear => {
            tracing::debug!(id, "not an acknowledgement");
            None
        }
    }
}

/// Takes this acknowledgement and those that are there behind it.
fn take(shared: &Shared, first: Message, acks: &mut Subscriber) {
    let mut answers = Vec::new();
    {
        let mut outbox = shared.outbox();
        let epoch = shared.epoch();
        let mut next = Some(first);
        while let Some(message) = next {
            let id = message.subject.rsplit('.').next().and_then(|id| u64::from_str_radix(id, 16).ok());
            let Some(id) = id else { break };
            let verdict = Verdict::read(message.status, &message.payload);
            answers.extend(settle(shared, &mut outbox, epoch, id, verdict));
            next = if answers.len() < BURST { acks.next().now_or_never().flatten() } else { None };
        }
        shared.metrics.nats_in_flight.set(outbox.len() as u64);
    }
    shared.answer(answers);
}

#[cfg(test)]
mod tests {
    use super::super::tests::shared;
    use super::*;

    fn error(code: u64, err_code: u64) -> Verdict {
        let text = format!(r#"{{"error":{{"code":{code},"err_code":{err_code},"description":"why"}}}}"#);
        Verdict::read(None, text.as_bytes())
    }

    #[test]
    fn what_nats_answers_is_told_apart() {
        let ack = |text: &str| Verdict::read(None, text.as_bytes());
        assert_eq!(ack(r#"{"stream":"S","seq":7}"#), Verdict::Stored { sequence: 7, is_duplicate: false });
        assert_eq!(ack(r#"{"seq":7,"duplicate":true}"#), Verdict::Stored { sequence: 7, is_duplicate: true });
        assert!(matches!(Verdict::read(Some(StatusCode::NO_RESPONDERS), b""), Verdict::NotNow(_)));
        assert_eq!([ack(""), ack("{}"), ack("7")], [(); 3].map(|()| Verdict::Unclear));
        assert_eq!(error(400, 10054), Verdict::TooLarge("why".into()));
        assert_eq!(error(400, 10071), Verdict::Refused("why".into()), "not the sequence that was expected");
        assert_eq!(error(503, 10077), Verdict::NotNow("why".into()), "a full disk");
        assert_eq!(error(400, 10002), Verdict::NotNow("why".into()), "an account that has used up what it may");
    }

    #[test]
    fn a_duplicate_of_what_was_sent_once_is_somebody_elses_and_refused() {
        let (shared, now) = (shared(), Instant::now());
        let mut outbox = shared.outbox();
        for _ in 0..2 {
            let owed = Owed { done: Box::new(drop), since: now };
            assert!(outbox.push(now, "a".into(), b"", owed).is_ok());
            outbox.next(now);
        }
        let duplicate = |outbox: &mut Outbox<Owed>, id| {
            let verdict = Verdict::Stored { sequence: 7, is_duplicate: true };
            settle(&shared, outbox, Epoch(1), id, verdict).unwrap().outcome
        };
        assert!(matches!(duplicate(&mut outbox, 0), Err(Refusal::StreamRefused { .. })));
        assert_eq!(shared.metrics.nats_failed_refused.get(), 1);
        outbox.cut_off();
        outbox.resume();
        outbox.next(now);
        assert!(duplicate(&mut outbox, 1).is_ok(), "our own first copy");
    }

    #[test]
    fn an_earlier_copy_that_is_being_stored_is_no_refusal() {
        assert_eq!(error(409, 10158), Verdict::InProcess);
    }
}
