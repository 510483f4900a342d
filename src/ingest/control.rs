//! Drives `topics` on the control core: publications come in as calls, shards are heard through their queues.
//!
//! ```text
//! publish ──► Mind::publish ──► admitted, refused: answered at once
//!                          └──► waiting: a ticket ──────────────┐
//! bell, deadline ──► Control::run ──► FromShard ► Mind::shard_says
//!                                ├──► Mind::turn ──► tickets done ┘
//!                                └──► Ask ► a task of the Oracle's ► Mind::log_in, Mind::reply; Withdraw ends it
//! ```
//!
//! Everything happens on one thread, so the lock is never contended; it is a lock because the servers' futures must be `Send`.
//! It is never held across an await.

use super::pull::{Pull, Pullers};
use super::push::Problem;
use crate::clock::Time;
use crate::frame::Publication;
use crate::ids::{ClientRef, Encoding, Epoch, ShardId};
use crate::metrics::ControlMetrics;
use crate::queue::{Answer, Bell, Drain, FromShard, Given, Page, Question, Receiver, Sender, ToShard};
use crate::topics::{Ack, Outcome, Outlet, Refusal, Ticket, Topics};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};

/// Messages taken from one shard in one turn; the rest waits for the next, so that publishers get their turns too.
const INBOX_CHUNK: usize = 256;

/// Publications of one batch between two rings, so that shards start on a long batch while it is still being admitted.
const RING_EVERY: usize = 256;

/// Answers to questions passed on in one turn.
const ANSWERS_PER_TURN_MAX: usize = 256;

/// Longest sleep of the driver: `Mind::publish` may create deadlines (idle topics) that the last turn did not know of.
const SLEEP_MS_MAX: u64 = 1000;

/// How soon an order that found a shard's queue full is tried again. No shard says when it has made room.
const ORDER_RETRY_MS: u64 = 1;

/// Is given each publication that publishers of this gateway had accepted, in the order of acceptance, under the lock: it must be
/// quick and must not call back. The payload is a copy that pins nothing else.
pub type Tap = Box<dyn Fn(&Publication) + Send>;

/// Where publications go of publishers of this gateway, if not straight to its subscribers: to a stream that gives them to all gateways,
/// this one among them ([`Control::try_deliver_in_place`]). Called under the lock: it must be quick and must not call back.
pub type Upstream = Box<dyn Fn(Publication, SentUp) + Send>;

/// A publisher who waits for the stream: see [`Control::answer`].
pub struct SentUp {
    sender: oneshot::Sender<Result<Ack, Refusal>>,
    bytes: usize,
    /// For those who pull.
    copy: Option<Publication>,
}

/// Where a publication comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A publisher: those who pull get it too.
    Publisher,
    /// Another gateway, from which those who pull get it.
    Elsewhere,
    /// The stream, where it has this number; those who pull get it from the gateway whose publisher it was.
    Stream(u64),
}

/// What decides. [`Topics`] is the one there is; a trait, so that the protocols can be tested without it.
pub trait Mind: Send {
    /// See [`Topics::publish`].
    fn publish(&mut self, now: Time, publication: Publication, outlet: &mut dyn Outlet) -> Outcome;
    /// See [`Topics::deliver`].
    fn deliver(&mut self, now: Time, publication: Publication, _sequence: u64, outlet: &mut dyn Outlet) -> Outcome {
        self.publish(now, publication, outlet)
    }
    /// See [`Topics::follow`].
    fn follow(&mut self, _now: Time, _epoch: Epoch, _after: u64, _outlet: &mut dyn Outlet) {}
    /// See [`Topics::check`].
    ///
    /// # Errors
    /// It would be refused.
    fn check(&self, _publication: &Publication) -> Result<(), Refusal> {
        Ok(())
    }
    /// See [`Topics::shard_says`].
    fn shard_says(&mut self, now: Time, shard: ShardId, message: FromShard, outlet: &mut dyn Outlet);
    /// See [`Topics::log_in`].
    fn log_in(
        &mut self,
        now: Time,
        shard: ShardId,
        client: ClientRef,
        uid: Box<str>,
        encoding: Encoding,
        outlet: &mut dyn Outlet,
    );
    /// See [`Topics::reply`].
    fn reply(&mut self, now: Time, shard: ShardId, client: ClientRef, answer: Answer, outlet: &mut dyn Outlet);
    /// See [`Topics::turn`].
    fn turn(&mut self, now: Time, outlet: &mut dyn Outlet, done: &mut Vec<(Ticket, Result<Ack, Refusal>)>) -> Time;
    /// See [`Topics::drain`].
    fn drain(&mut self);
    /// See [`Topics::due`].
    fn due(&self) -> Time {
        Time::NEVER
    }
    /// See [`Topics::is_flushed`].
    fn is_flushed(&self) -> bool {
        true
    }
    /// Brings what only the mind knows into the cells: topics, frames, evictions.
    fn report(&self, _metrics: &ControlMetrics) {}
    /// One sentence for each shard that holds publications up.
    fn blocked(&self, _now: Time) -> Vec<String> {
        Vec::new()
    }
}

impl Mind for Topics {
    fn publish(&mut self, now: Time, publication: Publication, outlet: &mut dyn Outlet) -> Outcome {
        self.publish(now, publication, outlet)
    }

    fn deliver(&mut self, now: Time, publication: Publication, sequence: u64, outlet: &mut dyn Outlet) -> Outcome {
        self.deliver(now, publication, sequence, outlet)
    }

    fn follow(&mut self, now: Time, epoch: Epoch, after: u64, outlet: &mut dyn Outlet) {
        self.follow(now, epoch, after, outlet);
    }

    fn check(&self, publication: &Publication) -> Result<(), Refusal> {
        self.check(publication)
    }

    fn shard_says(&mut self, now: Time, shard: ShardId, message: FromShard, outlet: &mut dyn Outlet) {
        self.shard_says(now, shard, message, outlet);
    }

    fn log_in(
        &mut self,
        now: Time,
        shard: ShardId,
        client: ClientRef,
        uid: Box<str>,
        encoding: Encoding,
        outlet: &mut dyn Outlet,
    ) {
        self.log_in(now, shard, client, uid, encoding, outlet);
    }

    fn reply(&mut self, now: Time, shard: ShardId, client: ClientRef, answer: Answer, outlet: &mut dyn Outlet) {
        self.reply(now, shard, client, answer, outlet);
    }

    fn turn(&mut self, now: Time, outlet: &mut dyn Outlet, done: &mut Vec<(Ticket, Result<Ack, Refusal>)>) -> Time {
        self.turn(now, outlet, done)
    }

    fn drain(&mut self) {
        self.drain();
    }

    fn due(&self) -> Time {
        self.due()
    }

    fn is_flushed(&self) -> bool {
        self.is_flushed()
    }

    fn report(&self, metrics: &ControlMetrics) {
        metrics.topics.set(self.topics() as u64);
        metrics.users.set(self.users() as u64);
        metrics.frames.add(self.frames_built() - metrics.frames.get());
        metrics.topics_evicted.add(self.evicted() - metrics.topics_evicted.get());
        let merge = self.merge_counts();
        for (counter, count) in [
            (&metrics.merged_room_items, merge.room_items),
            (&metrics.merged_all_items, merge.all_items),
            (&metrics.merged_messages, merge.messages),
            (&metrics.merged_messages_dropped, merge.messages_dropped),
            (&metrics.merged_room_items_dropped, merge.room_items_dropped),
            (&metrics.merged_all_items_dropped, merge.all_items_dropped),
        ] {
            counter.add(count - counter.get());
        }
        metrics.merged_rooms.set(merge.rooms as u64);
        metrics.merging_items.set(merge.items as u64);
        metrics.merging_blocked.set(merge.blocked as u64);
    }

    fn blocked(&self, now: Time) -> Vec<String> {
        self.blocked_shards()
            .map(|b| {
                let ms = now.since_ns(b.since) / 1_000_000;
                format!(
                    "shard {} has taken nothing for {ms} ms: {} topics and {} answers wait for it",
                    b.shard, b.topics, b.answers
                )
            })
            .collect()
    }
}

/// Knows what shards ask for their clients and nobody below can know. Each question is a task of its own on the control core;
/// how many there are at once the shards bound (`limits.questions_max`), how long one takes the oracle does. A future is dropped
/// unfinished when nobody waits for its answer any more.
pub trait Oracle: Send + Sync {
    /// The uid behind a token (JSON, verbatim); `None`: whatever is not a clear yes. Not empty, and at most
    /// [`crate::queue::UID_BYTES_MAX`] bytes.
    fn login(&self, token: Box<str>) -> BoxFuture<'static, Option<Box<str>>>;
    /// What stands on a page: an [`Answer::Page`].
    fn page(&self, page: Page) -> BoxFuture<'static, Answer>;
}

/// An answer on its way back.
struct Answered {
    shard: ShardId,
    client: ClientRef,
    outcome: Known,
}

/// Questions under way, each a task.
#[derive(Default)]
struct Questions {
    tasks: JoinSet<Answered>,
    /// Those not withdrawn; a client asks one at a time.
    out: HashMap<(ShardId, ClientRef), AbortHandle>,
}

impl Questions {
    fn begin(&mut self, shard: ShardId, client: ClientRef, answer: impl Future<Output = Known> + Send + 'static) {
        let task = self.tasks.spawn(async move { Answered { shard, client, outcome: answer.await } });
        let previous = self.out.insert((shard, client), task);
        debug_assert!(previous.is_none(), "{client:?} of shard {shard} asks twice at once");
    }

    /// Nobody waits any more; `false`: it was answered.
    fn end(&mut self, shard: ShardId, client: ClientRef) -> bool {
        self.out.remove(&(shard, client)).inspect(AbortHandle::abort).is_some()
    }

    /// What a task that is over has found out for somebody who waits.
    fn ended(&mut self, ended: Result<Answered, JoinError>) -> Option<Answered> {
        match ended {
            // It may have been done when it was withdrawn; then it is answered already.
            Ok(answered) => self.out.remove(&(answered.shard, answered.client)).map(|_| answered),
            Err(error) => {
                assert!(error.is_cancelled(), "a question's panics are caught: {error}");
                None
            }
        }
    }
}

enum Known {
    User { uid: Box<str>, encoding: Encoding },
    Other(Answer),
}

/// The control core's ends of the queues of one shard.
pub struct ShardQueues {
    /// Orders and frames.
    pub inbox: Sender<ToShard>,
    /// What the shard says; it rings the control core's bell.
    pub outbox: Receiver<FromShard>,
}

/// A publication's fate, as far as it is known when the call returns.
#[derive(Debug)]
pub enum Admission {
    /// Admitted or refused.
    Done(Result<Ack, Refusal>),
    /// It waits for room, at most `publish_wait_ms`. Dropping this takes nothing back.
    Waiting(Waiting),
}

/// Completes when a waiting publication is admitted or refused.
#[derive(Debug)]
pub struct Waiting(oneshot::Receiver<Result<Ack, Refusal>>);

impl Future for Waiting {
    type Output = Result<Ack, Refusal>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // The sender goes unused only when the gateway does.
        Pin::new(&mut self.0).poll(cx).map(|outcome| outcome.unwrap_or(Err(Refusal::Draining)))
    }
}

/// Why a shard was not told to stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StallError {
    /// Name one that exists.
    #[error("there is no shard {shard}: shards are numbered from 0 to {}", shards - 1)]
    NoSuchShard {
        /// The one asked for.
        shard: ShardId,
        /// How many there are.
        shards: usize,
    },
    /// Try again.
    #[error("the queue of shard {shard} is full: try again")]
    NoRoom {
        /// The one asked for.
        shard: ShardId,
    },
}

/// The control core: topics, the queues to and from every shard, and whoever waits for room.
pub struct Control {
    core: Mutex<Core>,
    bell: Arc<Bell>,
    /// Wakes the driver from within its own thread, where the bell's write(2) would be wasted.
    nudge: Notify,
    draining: watch::Sender<bool>,
    drained: watch::Sender<usize>,
    metrics: Arc<ControlMetrics>,
}

struct Core {
    mind: Box<dyn Mind>,
    shards: Shards,
    outboxes: Vec<Outbox>,
    /// Bounded by `publish_waiting_max`: `topics` hands out no more tickets.
    waiting: HashMap<Ticket, Waiter>,
    done: Vec<(Ticket, Result<Ack, Refusal>)>, // Kept for its capacity; empty between turns.
    /// Shards that still have to be given the drain order; at most one order a shard.
    orders: Vec<(ShardId, Drain)>,
    drain_ordered: bool,
    pullers: Pullers,
    /// Who else is given what publishers had accepted.
    tap: Option<Tap>,
    /// Where it goes instead of to the mind, if there is a stream.
    upstream: Option<Upstream>,
    /// Until when the driver sleeps, as of its last turn.
    sleeps_until: Time,
}

struct Waiter {
    sender: oneshot::Sender<Result<Ack, Refusal>>,
    bytes: usize,
    is_counted: bool,
    /// For those who pull, and the tap.
    copy: Option<Publication>,
}

struct Outbox {
    queue: Receiver<FromShard>,
    drained: bool,
}

/// The shards' queues, and what they were given since their bells were last rung.
struct Shards {
    inboxes: Vec<Sender<ToShard>>,
    given: Vec<Given>,
}

impl Shards {
    fn announce(&mut self) {
        self.inboxes.iter().zip(&mut self.given).for_each(|(inbox, given)| given.announce(inbox));
    }
}

impl Outlet for Shards {
    fn shards(&self) -> usize {
        self.inboxes.len()
    }

    fn has_room(&self, shard: ShardId, items: usize, bytes: usize) -> bool {
        self.inboxes[usize::from(shard.0)].has_room(items, bytes)
    }

    fn push(&mut self, shard: ShardId, message: ToShard) {
        let bytes = message.queued_bytes();
        let shard = usize::from(shard.0);
        self.given[shard].add(&message);
        self.inboxes[shard].append(message, bytes).expect("has_room said yes, and this is the only producer");
    }
}

impl Control {
    /// A control core that speaks to `shards` (in the order of their ids) and is woken by `bell`.
    ///
    /// # Panics
    /// If `bell` is a silent one: the driver could not sleep on it.
    pub fn new(
        mind: Box<dyn Mind>,
        shards: Vec<ShardQueues>,
        bell: Arc<Bell>,
        metrics: Arc<ControlMetrics>,
    ) -> Control {
        assert!(bell.event().is_some(), "the control core sleeps in epoll: its bell needs an eventfd");
        let (inboxes, outboxes): (Vec<_>, Vec<_>) =
            shards.into_iter().map(|s| (s.inbox, Outbox { queue: s.outbox, drained: false })).unzip();
        let given = vec![Given::Nothing; inboxes.len()];
        Control {
            core: Mutex::new(Core {
                mind,
                shards: Shards { inboxes, given },
                outboxes,
                waiting: HashMap::new(),
                done: Vec::new(),
                orders: Vec::new(),
                drain_ordered: false,
                pullers: Pullers::default(),
                tap: None,
                upstream: None,
                sleeps_until: Time::NEVER,
            }),
            bell,
            nudge: Notify::new(),
            draining: watch::Sender::new(false),
            drained: watch::Sender::new(0),
            metrics,
        }
    }

    /// One sentence for each shard that holds publications up, for `/readyz`.
    pub fn blocked(&self) -> Vec<String> {
        self.core().mind.blocked(Time::now())
    }

    /// What it counts.
    pub fn metrics(&self) -> &Arc<ControlMetrics> {
        &self.metrics
    }

    /// Brings what only the mind knows into [`Control::metrics`] now; the driver does so once a second at least.
    pub fn report(&self) {
        self.core().mind.report(&self.metrics);
    }

    /// Gives `tap` what is accepted from now on.
    pub fn set_tap(&self, tap: Tap) {
        self.core().tap = Some(tap);
    }

    /// Sends what publishers publish from now on up a stream.
    pub fn set_upstream(&self, upstream: Upstream) {
        self.core().upstream = Some(upstream);
    }

    /// See [`Topics::follow`].
    pub fn follow(&self, epoch: Epoch, after: u64) {
        let mut core = self.core();
        let Core { mind, shards, .. } = &mut *core;
        mind.follow(Time::now(), epoch, after, shards);
        shards.announce();
        if core.sleeps_until > Time::default() {
            self.nudge.notify_one(); // A shard may have had no room.
        }
    }

    /// Admits, refuses or lets wait. Never blocks; allocates nothing here unless the publication waits.
    pub fn try_publish(&self, publication: Publication) -> Admission {
        let mut core = self.core();
        let admission = self.admit(&mut core, Time::now(), publication, Origin::Publisher);
        core.shards.announce();
        admission
    }

    /// As [`Control::try_publish`] for each of `publications`, in order, with one clock reading and one ring of each bell for
    /// every `RING_EVERY` of them. One that waits doesn't hold up the next, unless it is of the same topic: then `topics` lets
    /// that one wait behind it. Both arguments are called under the lock: they must not call back.
    pub fn try_publish_all(&self, publications: impl IntoIterator<Item = Publication>, each: impl FnMut(Admission)) {
        self.admit_all(publications.into_iter().map(|publication| (publication, Origin::Publisher)), each);
    }

    /// As [`Control::try_publish_all`], of what another gateway has accepted: it goes to subscribers, and no further.
    pub fn try_deliver_all(&self, publications: impl IntoIterator<Item = Publication>, each: impl FnMut(Admission)) {
        self.admit_all(publications.into_iter().map(|publication| (publication, Origin::Elsewhere)), each);
    }

    /// As [`Control::try_publish_all`], of what has come down the stream, each with its number there.
    pub fn try_deliver_in_place(
        &self,
        publications: impl IntoIterator<Item = (u64, Publication)>,
        each: impl FnMut(Admission),
    ) {
        let from = |(sequence, publication)| (publication, Origin::Stream(sequence));
        self.admit_all(publications.into_iter().map(from), each);
    }

    fn admit_all(&self, publications: impl Iterator<Item = (Publication, Origin)>, mut each: impl FnMut(Admission)) {
        let mut core = self.core();
        let now = Time::now();
        for (i, (publication, from)) in publications.enumerate() {
            each(self.admit(&mut core, now, publication, from));
            if i % RING_EVERY == RING_EVERY - 1 {
                core.shards.announce();
            }
        }
        core.shards.announce();
    }

    /// Admits or refuses, after at most `publish_wait_ms`.
    ///
    /// # Errors
    /// Nobody has any of it; the refusal says what to do.
    pub async fn publish(&self, publication: Publication) -> Result<Ack, Refusal> {
        match self.try_publish(publication) {
            Admission::Done(outcome) => outcome,
            Admission::Waiting(waiting) => waiting.await,
        }
    }

    fn admit(&self, core: &mut Core, now: Time, publication: Publication, from: Origin) -> Admission {
        let bytes = publication.data.len();
        if from == Origin::Publisher && core.upstream.is_some() {
            return self.send_up(core, publication);
        }
        let is_counted = !matches!(from, Origin::Stream(_)); // Those were, where their publisher is.
        let is_wanted = from == Origin::Publisher && (core.tap.is_some() || core.pullers.len() > 0);
        // A copy: the payload may be a slice of a whole batch as it was received.
        let copy = is_wanted.then(|| Publication {
            target: publication.target.clone(),
            data: Bytes::copy_from_slice(&publication.data),
        });
        let outcome = match from {
            Origin::Stream(sequence) => core.mind.deliver(now, publication, sequence, &mut core.shards),
            Origin::Publisher | Origin::Elsewhere => core.mind.publish(now, publication, &mut core.shards),
        };
        let outcome = match outcome {
            Outcome::Admitted(ack) => Ok(ack),
            Outcome::Refused(refusal) => Err(refusal),
            Outcome::Waiting(ticket) => {
                if core.waiting.is_empty() {
                    // Nobody waited, so the driver may be sleeping longer than this one wants to.
                    self.nudge.notify_one();
                }
                let (sender, receiver) = oneshot::channel();
                let previous = core.waiting.insert(ticket, Waiter { sender, bytes, is_counted, copy });
                assert!(previous.is_none(), "{ticket:?} was given out twice");
                self.metrics.waited.add(1);
                self.metrics.waiting.set(core.waiting.len() as u64);
                return Admission::Waiting(Waiting(receiver));
            }
        };
        let due = core.mind.due();
        if due < core.sleeps_until {
            // What was just admitted is to be looked at again sooner than the driver knows.
            core.sleeps_until = due;
            self.nudge.notify_one();
        }
        if is_counted {
            self.count(&outcome, bytes);
        }
        if outcome.is_ok() {
            self.hand_on(core, copy);
        }
        Admission::Done(outcome)
    }

    /// Gives a publication to the stream, which answers later.
    fn send_up(&self, core: &mut Core, publication: Publication) -> Admission {
        let bytes = publication.data.len();
        if let Err(refusal) = core.mind.check(&publication) {
            self.count(&Err(refusal.clone()), bytes);
            return Admission::Done(Err(refusal));
        }
        let copy = (core.pullers.len() > 0).then(|| Publication {
            target: publication.target.clone(),
            data: Bytes::copy_from_slice(&publication.data),
        });
        let (sender, receiver) = oneshot::channel();
        let upstream = core.upstream.as_ref().expect("the caller has looked");
        upstream(publication, SentUp { sender, bytes, copy });
        Admission::Waiting(Waiting(receiver))
    }

    /// Tells a publisher what became of a publication that was sent up. On the control core, and not from within the call that sent it.
    pub fn answer(&self, sent: SentUp, outcome: Result<Ack, Refusal>) {
        self.count(&outcome, sent.bytes);
        if outcome.is_ok() && sent.copy.is_some() {
            self.hand_on(&mut self.core(), sent.copy);
        }
        let _ = sent.sender.send(outcome); // Its publisher may have left.
    }

    /// Gives those who pull, and the tap, what was accepted.
    fn hand_on(&self, core: &mut Core, copy: Option<Publication>) {
        let Some(publication) = copy else { return };
        let ended = core.pullers.give(&publication);
        self.metrics.pullers_late.add(ended as u64);
        if let Some(tap) = &core.tap {
            tap(&publication);
        }
    }

    /// Every publication accepted from now on, in the order of acceptance, until a drain.
    ///
    /// # Errors
    /// There are `pullers_max` streams already.
    pub(super) fn pull(&self, pullers_max: usize, bytes_max: usize) -> Result<Pull, Problem> {
        self.core().pullers.add(pullers_max, bytes_max, self.drain_begun())
    }

    fn count(&self, outcome: &Result<Ack, Refusal>, bytes: usize) {
        let m = &self.metrics;
        match outcome {
            Ok(_) => {
                m.publications.add(1);
                m.publication_bytes.add(bytes as u64);
            }
            Err(Refusal::NoRoom { .. } | Refusal::TooManyTopics { .. }) => m.refused_full.add(1),
            Err(Refusal::TooLarge { .. } | Refusal::NameTooLong { .. } | Refusal::NotUtf8) => m.refused_invalid.add(1),
            Err(Refusal::StreamTooLarge { .. }) => m.refused_invalid.add(1),
            Err(Refusal::Draining) => m.refused_draining.add(1),
            Err(Refusal::StreamBusy { .. }) => m.refused_full.add(1),
            Err(Refusal::StreamAway { .. } | Refusal::StreamLate { .. } | Refusal::StreamRefused { .. }) => {
                m.refused_stream.add(1);
            }
        }
    }

    /// Hears the shards, completes what waits, and sleeps in between: until a shard rings, or the deadline that `topics` named.
    /// Runs for ever, as a task of the control core's runtime, once.
    ///
    /// # Errors
    /// The bell's eventfd could not be registered: no reactor, or out of memory.
    ///
    /// # Panics
    /// If `topics` does: its state is then unknown, and the gateway must end.
    pub async fn run(&self, oracle: Arc<dyn Oracle>) -> io::Result<Infallible> {
        let event = self.bell.event().expect("checked by Control::new").polled()?;
        let mut asked = Vec::new();
        let mut questions = Questions::default();
        loop {
            // Here, since a driver that has more to do each time never comes to wait for them.
            for _ in 0..ANSWERS_PER_TURN_MAX {
                let Some(ended) = questions.tasks.try_join_next() else { break };
                if let Some(answered) = questions.ended(ended) {
                    self.pass_on(answered);
                }
            }
            let mut turn = self.turn(&mut asked);
            for (shard, client, question) in asked.drain(..) {
                match question {
                    Some(question) => questions.begin(shard, client, self.consult(&*oracle, question)),
                    None if questions.end(shard, client) => {
                        self.pass_on(Answered { shard, client, outcome: Known::Other(Answer::LoginRefused) });
                        turn = Turn::Again; // It may have found no room, of which that turn knew nothing.
                    }
                    None => {} // Its answer is on its way.
                }
            }
            let deadline = match turn {
                Turn::Again => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Turn::Sleep(deadline) => deadline,
            };
            self.bell.sleep();
            // Once more: a shard that pushed before it saw the flag did not ring.
            if self.core().outboxes.iter().any(|o| !o.queue.is_empty()) {
                self.bell.awake();
                continue;
            }
            tokio::select! {
                biased;
                rung = event.signalled() => rung?,
                Some(ended) = questions.tasks.join_next() => {
                    if let Some(answered) = questions.ended(ended) {
                        self.pass_on(answered);
                    }
                }
                () = self.nudge.notified() => {}
                () = tokio::time::sleep(deadline - Time::now()) => {}
            }
            self.bell.awake();
        }
    }

    /// The oracle's answer to one question; if it panics, that is our mistake, counted, and a refusal.
    fn consult(&self, oracle: &dyn Oracle, question: Question) -> impl Future<Output = Known> + Send + use<> {
        let metrics = self.metrics.clone();
        let (answer, refusal): (BoxFuture<'static, Known>, Known) = match question {
            Question::Login { token, encoding } => {
                let uid = oracle.login(token);
                let refused = || Known::Other(Answer::LoginRefused);
                let known = async move { uid.await.map_or_else(refused, |uid| Known::User { uid, encoding }) };
                (known.boxed(), refused())
            }
            Question::Page(page) => {
                let body = Bytes::from_static(b"the gateway made a mistake, see its log\n");
                let mistake = Answer::Page { status: 500, content_type: "text/plain; charset=utf-8", body };
                (oracle.page(page).map(Known::Other).boxed(), Known::Other(mistake))
            }
        };
        async move {
            // Unwind safety: nothing of the question is left to look at.
            AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| {
                metrics.handler_panics.add(1);
                refusal
            })
        }
    }

    fn pass_on(&self, answered: Answered) {
        let mut core = self.core();
        let Core { mind, shards, .. } = &mut *core;
        let (now, Answered { shard, client, outcome }) = (Time::now(), answered);
        match outcome {
            Known::User { uid, encoding } => mind.log_in(now, shard, client, uid, encoding, shards),
            Known::Other(answer) => mind.reply(now, shard, client, answer, shards),
        }
        shards.announce();
    }

    /// `asked` is what clients ask, in order; none: they withdraw what they asked.
    fn turn(&self, asked: &mut Vec<(ShardId, ClientRef, Option<Question>)>) -> Turn {
        let mut core = self.core();
        let core = &mut *core;
        let now = Time::now();
        let mut again = false;

        // What shards say goes first: an answer to a subscription is cut before the publications that now find room.
        for (i, outbox) in core.outboxes.iter_mut().enumerate() {
            let shard = ShardId(i as u16);
            for _ in 0..INBOX_CHUNK {
                let Some(message) = outbox.queue.pop() else { break };
                let message = match message {
                    FromShard::Ask { client, question } => {
                        asked.push((shard, client, Some(question)));
                        continue;
                    }
                    FromShard::Withdraw { client } => {
                        asked.push((shard, client, None));
                        continue;
                    }
                    message => message,
                };
                if matches!(message, FromShard::Drained) && !std::mem::replace(&mut outbox.drained, true) {
                    self.drained.send_modify(|n| *n += 1);
                }
                core.mind.shard_says(now, shard, message, &mut core.shards);
            }
            again |= !outbox.queue.is_empty();
        }

        let mut deadline = core.mind.turn(now, &mut core.shards, &mut core.done);

        let Core { orders, shards, mind, .. } = core;
        // Behind everything that was acknowledged.
        let is_flushed = mind.is_flushed();
        orders.retain(|&(shard, drain)| {
            let room = is_flushed && shards.has_room(shard, 1, 0);
            if room {
                shards.push(shard, ToShard::Drain(drain));
            }
            !room
        });

        let mut done = std::mem::take(&mut core.done);
        for (ticket, outcome) in done.drain(..) {
            // Nobody's: the call that took the ticket panicked before it could say so.
            let Some(waiter) = core.waiting.remove(&ticket) else { continue };
            if waiter.is_counted {
                self.count(&outcome, waiter.bytes);
            }
            if outcome.is_ok() {
                self.hand_on(core, waiter.copy);
            }
            let _ = waiter.sender.send(outcome); // Its publisher may have left; the message went its way all the same.
        }
        core.done = done;
        self.metrics.waiting.set(core.waiting.len() as u64);
        core.pullers.forget_gone();
        self.metrics.pullers.set(core.pullers.len() as u64);
        core.mind.report(&self.metrics);
        core.shards.announce();

        if !core.orders.is_empty() {
            deadline = deadline.min(now.plus_ms(ORDER_RETRY_MS));
        }
        core.sleeps_until = deadline.min(now.plus_ms(SLEEP_MS_MAX));
        if again || deadline <= now { Turn::Again } else { Turn::Sleep(core.sleeps_until) }
    }

    /// From now on every publication is refused as draining; those waiting are refused at the driver's next turn.
    pub fn drain(&self) {
        self.core().mind.drain();
        self.draining.send_replace(true);
        self.nudge.notify_one();
    }

    /// Whether [`Control::drain`] was called.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Completes when [`Control::drain`] is called, at once if it was.
    pub fn drain_begun(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut draining = self.draining.subscribe();
        async move {
            // An error means that the gateway itself is gone.
            let _ = draining.wait_for(|d| *d).await;
        }
    }

    /// Tells every shard to close its connections, behind all frames already in its queue, and waits until all have. The order
    /// waits for room. A shard that has stopped never answers: the caller bounds the wait.
    pub async fn drain_shards(&self, drain: Drain) {
        let shards = {
            let mut core = self.core();
            if !std::mem::replace(&mut core.drain_ordered, true) {
                core.orders = (0..core.outboxes.len()).map(|i| (ShardId(i as u16), drain)).collect();
            }
            core.outboxes.len()
        };
        self.nudge.notify_one();
        let _ = self.drained.subscribe().wait_for(|n| *n == shards).await;
    }

    /// Makes one shard stand still for `duration_ms`, as if its core were taken away. For development.
    ///
    /// # Errors
    /// No such shard, or no room in its queue.
    pub fn stall(&self, shard: ShardId, duration_ms: u64) -> Result<(), StallError> {
        let mut core = self.core();
        let shards = core.shards.shards();
        if usize::from(shard.0) >= shards {
            return Err(StallError::NoSuchShard { shard, shards });
        }
        if !core.shards.has_room(shard, 1, 0) {
            return Err(StallError::NoRoom { shard });
        }
        core.shards.push(shard, ToShard::Stall { duration_ms });
        core.shards.announce();
        Ok(())
    }

    /// Items and bytes in the queue to each shard, in the order of their ids.
    pub fn queue_depths(&self) -> Vec<(usize, usize)> {
        self.core().shards.inboxes.iter().map(|q| (q.len(), q.bytes())).collect()
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        // Poisoned means that a handler panicked here, was answered INTERNAL and counted. One bad publication must not take
        // every later one with it, so the table goes on being used.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Turn {
    Again,
    Sleep(Time),
}
