//! The reading half: every message of the stream, in its order, once, whatever becomes of the consumer that NATS keeps for it.
//!
//! ```text
//!          ┌──────────────────────── silence, gap, no consumer any more ◄────────────────┐
//!          ▼                                                                             │
//! stream: which one, up to where? ─► consumer from behind what we had ─► batches ─► control core
//!             └ another one, or one that has lost its end: told first
//! ```
//!
//! The consumer is one that acknowledges nothing and numbers what it sends (what NATS calls an ordered one): a number that does not follow
//! the one before it means that something was dropped on its way, and the consumer is made anew from the last message had. NATS sends as
//! much as was answered by flow control, so what is here and not yet delivered is bounded.

use super::stream::{self, Stream, StreamError};
use super::{Followed, Shared};
use crate::frame::Publication;
use async_nats::{Client, Message, StatusCode, Subscriber};
use futures_util::{FutureExt, StreamExt};
use serde_json::json;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often NATS says something when there is nothing to say.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// After this the consumer is gone, or the way to it is.
const SILENCE: Duration = Duration::from_secs(3);
/// How long NATS keeps the consumer of a node that is gone.
const INACTIVE: Duration = Duration::from_secs(30);
/// Messages of one batch, and about how many bytes.
const BATCH_MESSAGES_MAX: usize = 512;
const BATCH_BYTES_MAX: usize = 256 << 10;
/// How often in a row a stream must say that its end is before what we had from it, until we believe it: a server that has lost its place
/// as leader, and does not know it yet, is behind.
const SHORTER_TIMES: u32 = 3;

/// Where this node is in the stream; outlives connections.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cursor {
    /// The stream, and the last sequence had of it.
    at: Option<(crate::ids::Epoch, u64)>,
    /// How often in a row it was shorter than that.
    shorter: u32,
}

/// What a look at the stream means for the cursor.
#[derive(Debug, PartialEq)]
enum Look {
    /// Goes on as it was; so many messages are gone that were due.
    Same { missed: u64 },
    /// Offsets are to be counted anew, from here.
    Anew,
    /// It may be; look again.
    Doubtful,
}

impl Cursor {
    fn look(&mut self, stream: Stream) -> Look {
        match self.at {
            // New messages only.
            None => {
                self.at = Some((stream.epoch, stream.last));
                Look::Anew
            }
            // Whatever is in it came behind what was in the other.
            Some((epoch, _)) if epoch != stream.epoch => {
                self.at = Some((stream.epoch, stream.first - 1));
                Look::Anew
            }
            Some((epoch, after)) if stream.last < after => {
                self.shorter += 1;
                if self.shorter < SHORTER_TIMES {
                    return Look::Doubtful;
                }
                self.shorter = 0;
                self.at = Some((epoch, stream.last));
                Look::Anew
            }
            Some((epoch, after)) => {
                self.shorter = 0;
                let missed = (stream.first - 1).saturating_sub(after);
                self.at = Some((epoch, after + missed));
                Look::Same { missed }
            }
        }
    }

    /// Takes a message; `None` if it was here before, else how many are missing before it: they are gone from the stream.
    fn take(&mut self, sequence: u64) -> Option<u64> {
        let (_, after) = self.at.as_mut()?;
        let missed = sequence.checked_sub(*after + 1)?;
        *after = sequence;
        Some(missed)
    }

    fn after(&self) -> u64 {
        self.at.map_or(0, |(_, after)| after)
    }
}

/// What stands in the reply subject of a message.
#[derive(Debug, PartialEq)]
struct Numbers {
    stream: u64,
    consumer: u64,
    /// Messages behind it in the stream, when it was sent.
    pending: u64,
}

impl Numbers {
    /// `$JS.ACK.STREAM.CONSUMER.DELIVERED.STREAM_SEQ.CONSUMER_SEQ.TIME.PENDING`; with a domain and an account before the stream's name
    /// in newer servers, and a random token behind.
    fn read(reply: &str) -> Option<Numbers> {
        let mut tokens = reply.strip_prefix("$JS.ACK.")?.split('.');
        let count = tokens.clone().count();
        let skipped = if count >= 9 { 5 } else { 3 };
        let mut number = |skipped: usize| tokens.nth(skipped)?.parse().ok();
        Some(Numbers { stream: number(skipped)?, consumer: number(0)?, pending: number(1)? })
    }
}

/// Follows the stream for as long as the connection lasts.
///
/// # Errors
/// The stream can't be had, or nobody wants what comes.
pub(super) async fn follow(
    shared: &Shared,
    client: &Client,
    cursor: &mut Cursor,
    control: &mpsc::Sender<Followed>,
) -> Result<Infallible, StreamError> {
    let mut pause = crate::cluster::pause::Pause::new(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        let stream = stream::have(client, &shared.wanted).await?;
        match cursor.look(stream) {
            Look::Same { missed } => shared.removed(missed),
            Look::Doubtful => {
                pause.wait().await;
                continue;
            }
            Look::Anew => {
                tracing::info!(epoch = format!("{:x}", stream.epoch.0), after = cursor.after(), "following the stream");
                let anew = Followed::Anew { epoch: stream.epoch, after: cursor.after() };
                control.send(anew).await.map_err(|_| StreamError::NotOurs("the gateway is ending".into()))?;
            }
        }
        shared.set_epoch(stream.epoch);
        shared.metrics.nats_last_sequence.set(cursor.after());
        shared.metrics.nats_behind.set(stream.last.saturating_sub(cursor.after()));
        let messages = consume(client, &shared.wanted_name, cursor.after() + 1).await?;
        shared.metrics.nats_consumers.add(1);
        let had = cursor.after();
        let ended = read(shared, client, cursor, messages, control).await;
        tracing::info!(after = cursor.after(), "{ended}; reading on from there with another consumer");
        if cursor.after() > had {
            pause.reset();
        }
        pause.wait().await;
    }
}

/// A consumer of its own from `first` on.
async fn consume(client: &Client, stream: &str, first: u64) -> Result<Subscriber, StreamError> {
    let inbox = client.new_inbox();
    let messages = client.subscribe(inbox.clone()).await.map_err(|error| StreamError::NotOurs(error.to_string()))?;
    let nanoseconds = |duration: Duration| duration.as_nanos() as u64;
    let consumer = json!({
        "stream_name": stream,
        "config": {
            "description": "A node of Fanwire",
            "deliver_subject": inbox,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": first,
            "ack_policy": "none",
            "max_deliver": 1,
            "replay_policy": "instant",
            "flow_control": true,
            "idle_heartbeat": nanoseconds(HEARTBEAT),
            "inactive_threshold": nanoseconds(INACTIVE),
            "mem_storage": true,
            "num_replicas": 1,
        },
    });
    stream::call(client, &format!("CONSUMER.CREATE.{stream}"), &consumer).await?;
    Ok(messages)
}

/// Reads until the consumer has to be made anew; returns why.
async fn read(
    shared: &Shared,
    client: &Client,
    cursor: &mut Cursor,
    mut messages: Subscriber,
    control: &mpsc::Sender<Followed>,
) -> &'static str {
    let mut had = 0;
    loop {
        let Ok(message) = tokio::time::timeout(SILENCE, messages.next()).await else { return "NATS is silent" };
        let (mut batch, mut bytes, mut next) = (Vec::new(), 0, message);
        let mut ended = None;
        loop {
            let Some(message) = next else {
                ended = Some("the subscription is over");
                break;
            };
            match message.status {
                None => match Numbers::read(message.reply.as_deref().unwrap_or_default()) {
                    Some(numbers) if numbers.consumer == had + 1 => {
                        had += 1;
                        bytes += message.payload.len();
                        shared.metrics.nats_behind.set(numbers.pending);
                        if let Some(missed) = cursor.take(numbers.stream) {
                            shared.removed(missed);
                            batch.extend(shared.publication(&message).map(|publication| (numbers.stream, publication)));
                        }
                    }
                    Some(_) => ended = Some("a message was dropped on its way"),
                    None => ended = Some("a message without numbers"),
                },
                Some(StatusCode::IDLE_HEARTBEAT) => {
                    if !answered(client, &message, had).await {
                        ended = Some("a message was dropped on its way");
                    }
                }
                Some(_) => ended = Some("the consumer is gone"),
            }
            if ended.is_some() || batch.len() >= BATCH_MESSAGES_MAX || bytes >= BATCH_BYTES_MAX {
                break;
            }
            match messages.next().now_or_never() {
                Some(another) => next = another,
                None => break,
            }
        }
        if !batch.is_empty() {
            shared.metrics.nats_received.add(batch.len() as u64);
            shared.metrics.nats_last_sequence.set(cursor.after());
            if control.send(Followed::Messages(batch)).await.is_err() {
                return "the gateway is ending";
            }
        }
        if let Some(ended) = ended {
            return ended;
        }
    }
}

/// Answers what flow control asks, now that what came before it is here; `false` if NATS has sent more than that.
async fn answered(client: &Client, message: &Message, had: u64) -> bool {
    let header = |name: &str| message.headers.as_ref()?.get(name).map(|value| value.as_str().to_owned());
    let asked = message.reply.as_ref().map(|reply| reply.to_string()).or_else(|| header("Nats-Consumer-Stalled"));
    if let Some(asked) = asked {
        // In vain if the connection is gone; then this consumer is, too.
        let _ = client.publish(asked, bytes::Bytes::new()).await;
    }
    header("Nats-Last-Consumer").and_then(|last| last.parse().ok()).is_none_or(|last: u64| last == had)
}

impl Shared {
    /// A message as a publisher of this node's would give it, if its subject means anything.
    fn publication(&self, message: &Message) -> Option<Publication> {
        match self.subjects.target(&message.subject) {
            Ok(target) => Some(Publication { target, data: message.payload.clone() }),
            Err(error) => {
                self.metrics.nats_skipped.add(1);
                tracing::debug!(subject = &*message.subject, %error, "a message for nobody");
                None
            }
        }
    }

    /// Messages went from the stream before this node had them.
    fn removed(&self, missed: u64) {
        if missed > 0 {
            self.metrics.nats_lost_removed.add(missed);
            self.losses.say(
                missed,
                "messages are lost to this node: they went from the stream (cluster.nats_max_age_ms, cluster.nats_max_bytes) before it had them",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    fn stream(epoch: u64, first: u64, last: u64) -> Stream {
        Stream { epoch: Epoch(epoch), first, last }
    }

    #[test]
    fn a_node_that_starts_begins_behind_what_is_there() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.look(stream(7, 1, 40)), Look::Anew);
        assert_eq!((cursor.after(), cursor.take(41), cursor.take(42)), (40, Some(0), Some(0)));
    }

    #[test]
    fn whoever_comes_back_goes_on_and_what_is_gone_is_counted_once() {
        let mut cursor = Cursor { at: Some((Epoch(7), 40)), shorter: 0 };
        assert_eq!(cursor.look(stream(7, 1, 50)), Look::Same { missed: 0 });
        assert_eq!(cursor.look(stream(7, 46, 50)), Look::Same { missed: 5 });
        assert_eq!((cursor.take(46), cursor.take(46), cursor.take(49)), (Some(0), None, Some(2)));
    }

    #[test]
    fn an_emptied_stream_has_lost_what_was_not_had() {
        let mut cursor = Cursor { at: Some((Epoch(7), 40)), shorter: 0 };
        assert_eq!(cursor.look(stream(7, 51, 50)), Look::Same { missed: 10 });
        assert_eq!(cursor.take(51), Some(0));
    }

    #[test]
    fn a_stream_made_anew_is_read_from_its_beginning() {
        let mut cursor = Cursor { at: Some((Epoch(7), 40)), shorter: 0 };
        assert_eq!(cursor.look(stream(8, 1, 3)), Look::Anew);
        assert_eq!((cursor.after(), cursor.take(1)), (0, Some(0)));
    }

    #[test]
    fn a_shorter_stream_is_believed_at_the_third_look() {
        let mut cursor = Cursor { at: Some((Epoch(7), 40)), shorter: 0 };
        let looks = [(); 2].map(|()| cursor.look(stream(7, 1, 30)));
        assert_eq!(looks, [Look::Doubtful, Look::Doubtful]);
        assert_eq!(cursor.look(stream(7, 1, 40)), Look::Same { missed: 0 });
        let looks = [(); 3].map(|()| cursor.look(stream(7, 1, 30)));
        assert_eq!(looks, [Look::Doubtful, Look::Doubtful, Look::Anew]);
        assert_eq!(cursor.take(31), Some(0));
    }

    #[test]
    fn numbers_are_read_from_both_forms_of_the_reply_subject() {
        let numbers = Some(Numbers { stream: 9, consumer: 8, pending: 7 });
        assert_eq!(Numbers::read("$JS.ACK.S.C.1.9.8.1650000000.7"), numbers);
        assert_eq!(Numbers::read("$JS.ACK._.hash.S.C.1.9.8.1650000000.7"), numbers);
        assert_eq!(Numbers::read("$JS.ACK._.hash.S.C.1.9.8.1650000000.7.random"), numbers);
        assert_eq!((Numbers::read("_INBOX.x"), Numbers::read("$JS.ACK.S.C.1.x.8.1.7")), (None, None));
    }
}
