//! The reading half: every message of the stream, in its order, once, whatever becomes of the consumer that NATS keeps for it.
//!
//! ```text
//!          ┌──────────────────────── silence, gap, no consumer any more ◄────────────────┐
//!          ▼                                                                             │
//! stream: which one, up to where? ─► consumer from behind what we had ─► batches ─► control core
//!             └ another one, or one that has lost its end, even if it was filled again: told first
//! ```
//!
//! The consumer is one that acknowledges nothing and numbers what it sends (what NATS calls an ordered one): a number that does not follow
//! the one before it means that something was dropped on its way, and the consumer is made anew from the last message had. NATS sends as
//! much as was answered by flow control, so what is here and not yet delivered is bounded.
//!
//! A message is had when the control core has it, and not before: a connection may end while its queue is full, and what was on its way there
//! comes again with the next one. What no consumer can bring, since its header ends the connection, is fetched by itself.

use super::stream::{self, Stored, Stream, StreamError};
use super::subject::Subjects;
use super::{Followed, Shared};
use crate::frame::Publication;
use crate::ids::Epoch;
use async_nats::{Client, Message, StatusCode, Subscriber};
use bytes::Bytes;
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
/// After so many consumers that brought nothing, what is next is fetched without one.
const VAIN_MAX: u32 = 3;

/// Where this node is in the stream; outlives connections.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cursor {
    /// The stream, and the last sequence had of it.
    at: Option<(Epoch, u64)>,
    /// When the stream got that one, if it is known: another time is another message.
    time: Option<u64>,
    /// Whether the control core knows of it.
    is_told: bool,
    /// How often in a row it was shorter than that, and where it ended at the least.
    shorter: u32,
    shortest: u64,
    /// Consumers since the last message.
    vain: u32,
}

/// What a look at the stream means for the cursor.
#[derive(Debug, PartialEq)]
enum Look {
    /// Goes on as it was; so many messages are gone that were due.
    Same { missed: u64 },
    /// Offsets are to be counted anew, from here; so many messages are gone that were due.
    Anew { missed: u64 },
    /// It has lost its end, and offsets are to be counted anew from where that was.
    Shorter,
    /// It may have; look again.
    Doubtful,
}

impl Cursor {
    /// Begins where the stream is, unless it has begun: before this node publishes anything, which its subscribers are to get.
    pub(super) fn begin(&mut self, stream: Stream) {
        self.at.get_or_insert((stream.epoch, stream.last));
    }

    fn look(&mut self, stream: Stream) -> Look {
        self.begin(stream);
        match self.at {
            // Whatever is in it came behind what was in the other.
            Some((epoch, _)) if epoch != stream.epoch => {
                self.go_back(stream.epoch, stream.first - 1);
                Look::Anew { missed: stream.first - 1 }
            }
            Some((epoch, after)) if stream.last < after => {
                self.shortest = if self.shorter == 0 { stream.last } else { self.shortest.min(stream.last) };
                self.shorter += 1;
                if self.shorter < SHORTER_TIMES {
                    return Look::Doubtful;
                }
                self.go_back(epoch, self.shortest);
                Look::Shorter
            }
            Some(_) if !self.is_told => {
                self.is_told = true;
                Look::Anew { missed: 0 }
            }
            None => unreachable!("begun above"),
            Some((epoch, after)) => {
                self.shorter = 0;
                let missed = (stream.first - 1).saturating_sub(after);
                self.at = Some((epoch, after + missed));
                if missed > 0 {
                    self.time = None;
                }
                Look::Same { missed }
            }
        }
    }

    /// What is behind `after` is to be had, whatever was had.
    fn go_back(&mut self, epoch: Epoch, after: u64) {
        *self = Cursor { at: Some((epoch, after)), is_told: true, vain: self.vain, ..Cursor::default() };
    }

    /// Takes a message, which the stream got at `time`; `None` if it was here before, else how many are missing before it: they are gone from
    /// the stream.
    fn take(&mut self, sequence: u64, time: u64) -> Option<u64> {
        let (_, after) = self.at.as_mut()?;
        let missed = sequence.checked_sub(*after + 1)?;
        (*after, self.time, self.vain) = (sequence, Some(time), 0);
        Some(missed)
    }

    fn after(&self) -> u64 {
        self.at.map_or(0, |(_, after)| after)
    }
}

/// What was read and is not yet had.
struct Ahead {
    /// As it is to be once it is.
    cursor: Cursor,
    messages: Vec<(u64, Publication)>,
    bytes: usize,
    missed: u64,
    skipped: u64,
}

impl Ahead {
    fn of(cursor: &Cursor) -> Ahead {
        Ahead { cursor: *cursor, messages: Vec::new(), bytes: 0, missed: 0, skipped: 0 }
    }

    /// Takes a message, unless it was here before.
    fn take(&mut self, subjects: &Subjects, sequence: u64, time: u64, subject: &str, data: Bytes) {
        let Some(missed) = self.cursor.take(sequence, time) else { return };
        self.missed += missed;
        self.bytes += data.len();
        match subjects.target(subject) {
            Ok(target) => self.messages.push((sequence, Publication { target, data })),
            Err(error) => {
                self.skipped += 1;
                tracing::debug!(subject, %error, "a message for nobody");
            }
        }
    }

    fn is_full(&self) -> bool {
        self.messages.len() >= BATCH_MESSAGES_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    /// Gives it to the control core, and counts.
    async fn give(
        self,
        shared: &Shared,
        cursor: &mut Cursor,
        control: &mpsc::Sender<Followed>,
    ) -> Result<(), StreamError> {
        let Ahead { cursor: ahead, messages, missed, skipped, .. } = self;
        let received = messages.len() as u64;
        if messages.is_empty() {
            *cursor = ahead;
        } else {
            give(control, Followed::Messages(messages), cursor, ahead).await?;
        }
        shared.metrics.nats_received.add(received);
        shared.metrics.nats_skipped.add(skipped);
        shared.metrics.nats_last_sequence.set(cursor.after());
        shared.removed(missed);
        Ok(())
    }
}

/// Gives something to the control core, by which the cursor is `ahead`: both or, if this future is dropped, neither.
async fn give(
    control: &mpsc::Sender<Followed>,
    followed: Followed,
    cursor: &mut Cursor,
    ahead: Cursor,
) -> Result<(), StreamError> {
    let place = control.reserve().await.map_err(|_| StreamError::NotOurs("the gateway is ending".into()))?;
    place.send(followed);
    *cursor = ahead;
    Ok(())
}

/// The last sequence from `low` on whose message is not later, if that of `high` is: they are in the order of their times.
async fn last_not_later<E>(
    low: u64,
    high: u64,
    mut is_later: impl AsyncFnMut(u64) -> Result<bool, E>,
) -> Result<u64, E> {
    let (mut low, mut high) = (low, high);
    while high.saturating_sub(low) > 1 {
        let middle = low + (high - low) / 2;
        if is_later(middle).await? {
            high = middle;
        } else {
            low = middle;
        }
    }
    Ok(low)
}

/// What stands in the reply subject of a message.
#[derive(Debug, PartialEq)]
struct Numbers {
    stream: u64,
    consumer: u64,
    /// When the stream got it, in nanoseconds since 1970.
    time: u64,
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
        Some(Numbers { stream: number(skipped)?, consumer: number(0)?, time: number(0)?, pending: number(0)? })
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
        let stream = stream::have_patiently(client, &shared.wanted).await?;
        let mut ahead = *cursor;
        let mut look = ahead.look(stream);
        let is_filled_again = matches!(look, Look::Same { .. }) && !is_there(shared, client, cursor).await?;
        if is_filled_again || look == Look::Shorter {
            if is_filled_again {
                ahead.go_back(stream.epoch, stream.first - 1);
            }
            if let Some(time) = cursor.time {
                let (low, high) = (stream.first - 1, cursor.after().min(stream.last + 1));
                let later = async |sequence| {
                    let found = stream::message(client, &shared.wanted_name, sequence).await?;
                    Ok::<_, StreamError>(found.is_some_and(|found| found.time > time))
                };
                ahead.go_back(stream.epoch, last_not_later(low, high, later).await?);
            }
            let (had, after) = (cursor.after(), ahead.after());
            tracing::warn!(had, after, "the stream has lost its end; following it from where that was");
            look = Look::Anew { missed: 0 };
        }
        match look {
            Look::Same { missed } => {
                *cursor = ahead;
                shared.removed(missed);
            }
            Look::Doubtful => {
                *cursor = ahead;
                pause.wait().await;
                continue;
            }
            Look::Anew { missed } => {
                let after = ahead.after();
                if after > 0 {
                    let last = stream::message(client, &shared.wanted_name, after).await?;
                    ahead.time = last.map(|last| last.time);
                }
                tracing::info!(epoch = format!("{:x}", stream.epoch.0), after, "following the stream");
                give(control, Followed::Anew { epoch: stream.epoch, after }, cursor, ahead).await?;
                shared.removed(missed);
            }
            Look::Shorter => unreachable!("Anew by now"),
        }
        shared.set_epoch(stream.epoch);
        shared.metrics.nats_last_sequence.set(cursor.after());
        shared.metrics.nats_behind.set(stream.last.saturating_sub(cursor.after()));
        if cursor.vain >= VAIN_MAX {
            fetch(shared, client, cursor, stream.last, control).await?;
        }
        cursor.vain += 1;
        let messages = consume(client, &shared.wanted_name, cursor.after() + 1).await?;
        shared.metrics.nats_consumers.add(1);
        shared.well();
        let had = cursor.after();
        let ended = read(shared, client, cursor, messages, control).await?;
        let why = format!("{ended}; reading on behind {} with another consumer", cursor.after());
        shared.renewals.say(1, &why);
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

/// Whether the last message had is still what the stream has in its place; also if it has nothing there any more.
async fn is_there(shared: &Shared, client: &Client, cursor: &Cursor) -> Result<bool, StreamError> {
    let Some(time) = cursor.time else { return Ok(true) };
    let found = stream::message(client, &shared.wanted_name, cursor.after()).await?;
    Ok(found.is_none_or(|found| found.time == time))
}

/// Fetches a batch without a consumer: before one of these every connection ended, so that its header may be one that the client does not
/// read. What it brings is delivered like all else.
async fn fetch(
    shared: &Shared,
    client: &Client,
    cursor: &mut Cursor,
    last: u64,
    control: &mpsc::Sender<Followed>,
) -> Result<(), StreamError> {
    let mut ahead = Ahead::of(cursor);
    let behind = cursor.after() + BATCH_MESSAGES_MAX as u64;
    let mut fetched = 0;
    for sequence in cursor.after() + 1..=last.min(behind) {
        let found = stream::message(client, &shared.wanted_name, sequence).await?;
        if let Some(Stored { subject, data, time }) = found {
            ahead.take(&shared.subjects, sequence, time, &subject, data);
            fetched += 1;
        }
        if ahead.is_full() {
            break;
        }
    }
    // Where there was one there may be more: one more connection is enough to tell.
    ahead.cursor.vain = VAIN_MAX - 1;
    ahead.give(shared, cursor, control).await?;
    if fetched > 0 {
        shared.metrics.nats_fetched.add(fetched);
        shared.fetches.say(fetched, "messages were fetched one by one, since the connection ended again and again before them: the header of one may be malformed");
    }
    Ok(())
}

/// Reads until the consumer has to be made anew; returns why.
async fn read(
    shared: &Shared,
    client: &Client,
    cursor: &mut Cursor,
    mut messages: Subscriber,
    control: &mpsc::Sender<Followed>,
) -> Result<&'static str, StreamError> {
    let mut had = 0;
    loop {
        let Ok(message) = tokio::time::timeout(SILENCE, messages.next()).await else { return Ok("NATS is silent") };
        let (mut ahead, mut next) = (Ahead::of(cursor), message);
        let mut ended = None;
        loop {
            let Some(message) = next else {
                ended = Some("the subscription is over");
                break;
            };
            // Who has numbers is of the stream, whatever status its publisher has given it.
            match (Numbers::read(message.reply.as_deref().unwrap_or_default()), message.status) {
                (Some(numbers), _) if numbers.consumer == had + 1 => {
                    had += 1;
                    shared.metrics.nats_behind.set(numbers.pending);
                    ahead.take(&shared.subjects, numbers.stream, numbers.time, &message.subject, message.payload);
                }
                (Some(_), _) => ended = Some("a message was dropped on its way"),
                (None, None) => ended = Some("a message without numbers"),
                (None, Some(StatusCode::IDLE_HEARTBEAT)) => {
                    if !answered(client, &message, had).await {
                        ended = Some("a message was dropped on its way");
                    }
                }
                (None, Some(_)) => ended = Some("the consumer is gone"),
            }
            if ended.is_some() || ahead.is_full() {
                break;
            }
            match messages.next().now_or_never() {
                Some(another) => next = another,
                None => break,
            }
        }
        ahead.give(shared, cursor, control).await?;
        if let Some(ended) = ended {
            return Ok(ended);
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
    /// Messages went from the stream before this node had them.
    fn removed(&self, missed: u64) {
        if missed > 0 {
            self.metrics.nats_lost_removed.add(missed);
            self.removals.say(
                missed,
                "messages are lost to this node: they went from the stream (cluster.nats_max_age_ms, cluster.nats_max_bytes) before it had them",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(epoch: u64, first: u64, last: u64) -> Stream {
        Stream { epoch: Epoch(epoch), first, last }
    }

    fn following(after: u64) -> Cursor {
        Cursor { at: Some((Epoch(7), after)), is_told: true, ..Cursor::default() }
    }

    #[test]
    fn a_node_that_starts_begins_behind_what_is_there() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.look(stream(7, 1, 40)), Look::Anew { missed: 0 });
        assert_eq!((cursor.after(), cursor.take(41, 0), cursor.take(42, 0)), (40, Some(0), Some(0)));
    }

    #[test]
    fn what_a_node_publishes_before_its_first_look_is_not_behind_it() {
        let mut cursor = Cursor::default();
        cursor.begin(stream(7, 1, 40));
        assert_eq!((cursor.look(stream(7, 1, 45)), cursor.after()), (Look::Anew { missed: 0 }, 40));
        assert_eq!(cursor.look(stream(7, 1, 45)), Look::Same { missed: 0 });
    }

    #[test]
    fn whoever_comes_back_goes_on_and_what_is_gone_is_counted_once() {
        let mut cursor = following(40);
        assert_eq!(cursor.look(stream(7, 1, 50)), Look::Same { missed: 0 });
        assert_eq!(cursor.look(stream(7, 46, 50)), Look::Same { missed: 5 });
        assert_eq!((cursor.take(46, 0), cursor.take(46, 0), cursor.take(49, 0)), (Some(0), None, Some(2)));
    }

    #[test]
    fn an_emptied_stream_has_lost_what_was_not_had() {
        let mut cursor = following(40);
        assert_eq!(cursor.look(stream(7, 51, 50)), Look::Same { missed: 10 });
        assert_eq!(cursor.take(51, 0), Some(0));
    }

    #[test]
    fn a_stream_made_anew_is_read_from_its_beginning() {
        let mut cursor = following(40);
        assert_eq!(cursor.look(stream(8, 1, 3)), Look::Anew { missed: 0 });
        assert_eq!((cursor.after(), cursor.take(1, 0)), (0, Some(0)));
    }

    #[test]
    fn a_shorter_stream_is_believed_at_the_third_look() {
        let mut cursor = following(40);
        let looks = [(); 2].map(|()| cursor.look(stream(7, 1, 30)));
        assert_eq!(looks, [Look::Doubtful, Look::Doubtful]);
        assert_eq!(cursor.look(stream(7, 1, 40)), Look::Same { missed: 0 });
        let looks = [(); 3].map(|()| cursor.look(stream(7, 1, 30)));
        assert_eq!(looks, [Look::Doubtful, Look::Doubtful, Look::Shorter]);
        assert_eq!(cursor.take(31, 0), Some(0));
    }

    #[test]
    fn a_shorter_stream_is_followed_from_where_it_was_shortest() {
        let mut cursor = following(40);
        let looks = [30, 33, 36].map(|last| cursor.look(stream(7, 1, last)));
        assert_eq!(looks, [Look::Doubtful, Look::Doubtful, Look::Shorter]);
        assert_eq!(cursor.after(), 30);
    }

    #[test]
    fn what_is_gone_from_a_stream_made_anew_is_counted_and_doubts_of_the_other_are_over() {
        let mut cursor = following(40);
        assert_eq!([(); 2].map(|()| cursor.look(stream(7, 1, 30)))[1], Look::Doubtful);
        assert_eq!(cursor.look(stream(8, 4, 9)), Look::Anew { missed: 3 });
        assert_eq!((cursor.after(), cursor.shorter, cursor.time), (3, 0, None));
    }

    #[test]
    fn what_the_control_core_has_no_room_for_was_not_had_if_the_connection_ends_meanwhile() {
        let (control, mut followed) = mpsc::channel(1);
        let mut cursor = following(40);
        let anew = |after| Followed::Anew { epoch: Epoch(7), after };
        let ahead = following(41);
        assert!(give(&control, anew(41), &mut cursor, ahead).now_or_never().is_some());
        assert_eq!(cursor, ahead);
        assert!(give(&control, anew(42), &mut cursor, following(42)).now_or_never().is_none(), "and is dropped");
        assert_eq!(cursor, ahead, "42 comes again");
        followed.try_recv().unwrap();
        assert!(followed.try_recv().is_err());
        assert!(give(&control, anew(42), &mut cursor, following(42)).now_or_never().is_some());
        assert_eq!(cursor.after(), 42);
    }

    #[test]
    fn a_message_ends_the_count_of_consumers_that_brought_none() {
        let mut cursor = Cursor { vain: VAIN_MAX, ..following(40) };
        assert_eq!((cursor.take(40, 5), cursor.vain), (None, VAIN_MAX), "it was here before");
        assert_eq!((cursor.take(41, 5), cursor.vain, cursor.time), (Some(0), 0, Some(5)));
    }

    #[test]
    fn the_end_that_a_stream_has_lost_is_found_by_time() {
        let found = |low, high, kept: u64| {
            let later = async |sequence| Ok::<_, std::convert::Infallible>(sequence > kept);
            last_not_later(low, high, later).now_or_never().unwrap().unwrap()
        };
        assert_eq!([0, 1, 7, 99].map(|kept| found(0, 100, kept)), [0, 1, 7, 99]);
        assert_eq!(found(50, 100, 20), 50, "all of it is gone from the stream");
        assert_eq!((found(5, 6, 5), found(5, 5, 5)), (5, 5));
    }

    #[test]
    fn numbers_are_read_from_both_forms_of_the_reply_subject() {
        let numbers = Some(Numbers { stream: 9, consumer: 8, time: 1_650_000_000, pending: 7 });
        assert_eq!(Numbers::read("$JS.ACK.S.C.1.9.8.1650000000.7"), numbers);
        assert_eq!(Numbers::read("$JS.ACK._.hash.S.C.1.9.8.1650000000.7"), numbers);
        assert_eq!(Numbers::read("$JS.ACK._.hash.S.C.1.9.8.1650000000.7.random"), numbers);
        assert_eq!((Numbers::read("_INBOX.x"), Numbers::read("$JS.ACK.S.C.1.x.8.1.7")), (None, None));
    }
}
