//! The taking half of the relay: a link to every other node that accepts publications, and to every proxy of gpush.
//!
//! ```text
//! View ──► one task for each source:  connect ─► pull from where we were ─► batches ─► Deliver ─► own subscribers
//!                                        ▲  pause                              │
//!                                        └── silence, reset, end ◄─────────────┘   gone from the view for good: what it still had is lost
//! ```
//!
//! A stream that works is never cut because etcd says something: who has lost its lease may still be heard, and may come back.

use super::batches::{self, BATCH_BYTES_MAX};
use super::members::{Other, View};
use super::pause::Pause;
use super::unheard::Unheard;
use super::way::Way;
use super::{Deliver, Delivered, Lost, Secrets};
use crate::causes::causes;
use crate::frame::{Publication, Target};
use crate::metrics::ClusterMetrics;
use crate::proto::order::Empty;
use crate::proto::order::proxy_client::ProxyClient;
use crate::proto::v1::{PullRequest, RelayBatch, RelayedMessage};
use futures_util::FutureExt;
use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tonic::Request;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// A node says something every second: if for so long not a byte comes, it is gone, or the way to it is.
const SILENCE: Duration = Duration::from_secs(3);
/// How often a proxy of gpush's that is silent is asked for a sign of life, by TCP; and how often in vain, until it is gone.
const PROBE: (Duration, u32) = (Duration::from_secs(1), 3);
/// Batches of one source with messages that wait for room; then no more is read from it.
const WAITING_BATCHES_MAX: usize = 4;
/// Bytes on their way in one stream before they are read.
const WINDOW: u32 = 4 << 20;
/// What is added to this node's age when it asks for what was accepted since it came: the question takes time. If it took longer, it is asked
/// again, with more.
const AGE_MARGIN: Duration = Duration::from_millis(100);
/// How long a source may be gone from the view without a farewell: one that etcd can't hear loses its lease, and comes back as who it was.
const AWAY: Duration = Duration::from_secs(60);
/// Sources that are gone and whose place is remembered, should they come back; the oldest is forgotten.
const PAST_MAX: usize = 1024;
/// No log comes as far: at a million messages a second it takes 35 years. Numbers below it can be added up over all sources.
const SEQUENCE_MAX: u64 = 1 << 50;

/// Where in a source's log this node is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cursor {
    /// The last sequence had, 0 if nothing is; `None`: whatever comes first.
    after: Option<u64>,
    /// A batch has come: from then on it knows by itself what is due.
    has_met: bool,
    /// Messages behind `after` that are counted as lost, since the source seemed gone for good; it may be back with some of them.
    written_off: u64,
}

/// What a batch is to this node.
#[derive(Debug, PartialEq)]
struct Taken {
    /// Messages that were due and are no longer kept.
    missed: u64,
    /// Messages that were here before.
    duplicates: u64,
    /// Messages that the source has behind it.
    behind: u64,
    messages: Vec<RelayedMessage>,
}

impl Cursor {
    /// In front of all that a source accepted since this node came, and others could know of the source.
    const BEGINNING: Cursor = Cursor { after: Some(0), has_met: false, written_off: 0 };

    /// # Errors
    /// The batch can't be of any log: its numbers are a peer's, and nothing is reckoned with them before they are looked at.
    fn take(&mut self, batch: RelayBatch) -> Result<Taken, Failure> {
        let RelayBatch { first, mut messages, next, due, .. } = batch;
        let in_order = 1 <= first && first <= next && next <= SEQUENCE_MAX && due <= first;
        if !in_order || next - first < messages.len() as u64 {
            let count = messages.len();
            return Err(format!("a batch of no log: {count} messages from {first}, next {next}, due {due}").into());
        }
        let due = match self.after {
            // At the first contact the source knows what was due. One of an older version says nothing of it.
            _ if !self.has_met && due > 0 => due,
            after => after.map_or(first, |after| after + 1),
        };
        let duplicates = due.saturating_sub(first).min(messages.len() as u64);
        messages.drain(..duplicates as usize);
        let end = first + duplicates + messages.len() as u64;
        self.after = Some(self.after.unwrap_or(0).max(end - 1));
        self.has_met = true;
        let missed = first.saturating_sub(due).saturating_sub(std::mem::take(&mut self.written_off));
        Ok(Taken { missed, duplicates, behind: next - end, messages })
    }

    /// How many messages there are up to the one in front of `end` that are not here. A source that was never met, and was there before this
    /// node, owed it what nobody knows.
    fn lacks(self, end: u64) -> u64 {
        self.after.map_or(0, |after| end.saturating_sub(after + 1 + self.written_off))
    }
}

/// Where this node was with sources that are gone, oldest first.
#[derive(Default)]
struct Past(VecDeque<(String, Cursor)>);

impl Past {
    fn remember(&mut self, id: String, cursor: Cursor) {
        if self.0.len() == PAST_MAX {
            self.0.pop_front();
        }
        self.0.push_back((id, cursor));
    }

    fn take(&mut self, id: &str) -> Option<Cursor> {
        let at = self.0.iter().position(|(past, _)| past == id)?;
        self.0.remove(at).map(|(_, cursor)| cursor)
    }
}

/// All links of this node.
pub(super) struct Links {
    pub(super) this: String,
    /// Since when this node may have subscribers.
    pub(super) started: Instant,
    pub(super) view: watch::Receiver<View>,
    /// Those sources that have answered once, or have failed once.
    pub(super) asked: watch::Sender<HashSet<String>>,
    pub(super) deliver: Arc<dyn Deliver>,
    /// Messages in batches that wait for room, over all links; beyond it nothing is read.
    pub(super) waiting_max: u32,
    pub(super) tls: Option<ClientTlsConfig>,
    pub(super) secrets: Secrets,
    pub(super) unheard: Unheard,
    pub(super) metrics: Arc<ClusterMetrics>,
}

impl Links {
    /// Keeps a link to every source in view, for ever.
    pub(super) async fn run(mut self) {
        let mut nodes: JoinSet<(String, Cursor)> = JoinSet::new();
        let mut proxies: JoinSet<String> = JoinSet::new();
        let (mut linked, mut pulled) = (HashSet::new(), HashSet::new());
        let mut past = Past::default();
        let room = Room::new(self.waiting_max);
        loop {
            let view = self.view.borrow_and_update().clone();
            for (id, other) in view.sources() {
                if linked.insert(id.clone()) {
                    let begin = if other.is_newcomer { Cursor::BEGINNING } else { Cursor::default() };
                    nodes.spawn(self.link(id.clone(), &room).run(past.take(id).unwrap_or(begin)));
                }
            }
            // One that was started anew has two keys until the first one's lease is over, and pushes to each who pulls.
            for address in view.proxies.into_values() {
                if pulled.insert(address.clone()) {
                    let link = self.link(address.clone(), &room);
                    proxies.spawn(async move {
                        link.pull_from_proxy(&address).await;
                        address
                    });
                }
            }
            tokio::select! {
                changed = self.view.changed() => if changed.is_err() { return },
                Some(ended) = nodes.join_next() => {
                    let Ok((id, cursor)) = ended else { continue }; // A panic is caught in there.
                    linked.remove(&id);
                    self.asked.send_if_modified(|asked| asked.remove(&id));
                    past.remember(id, cursor);
                }
                Some(Ok(address)) = proxies.join_next() => drop(pulled.remove(&address)),
            }
        }
    }

    fn link(&self, id: String, room: &Room) -> Link {
        Link {
            id,
            this: self.this.clone(),
            started: self.started,
            view: self.view.clone(),
            asked: self.asked.clone(),
            deliver: self.deliver.clone(),
            tls: self.tls.clone(),
            secrets: self.secrets.clone(),
            unheard: self.unheard.clone(),
            metrics: self.metrics.clone(),
            room: room.clone(),
            places: Arc::new(Semaphore::new(WAITING_BATCHES_MAX)),
            margin: AGE_MARGIN,
            end: 0,
            giving: 0,
            is_told: false,
        }
    }
}

/// The way from one source.
struct Link {
    /// Its id, or its address if it is a proxy of gpush.
    id: String,
    this: String,
    started: Instant,
    view: watch::Receiver<View>,
    asked: watch::Sender<HashSet<String>>,
    deliver: Arc<dyn Deliver>,
    tls: Option<ClientTlsConfig>,
    secrets: Secrets,
    unheard: Unheard,
    metrics: Arc<ClusterMetrics>,
    room: Room,
    /// One for each batch that may wait for room.
    places: Arc<Semaphore>,
    /// How long its source may take to hear how old this node is.
    margin: Duration,
    /// The sequence behind the last message that its source was heard to have.
    end: u64,
    /// Messages of the last batch that are not delivered yet.
    giving: u64,
    /// That it is down is in the log already.
    is_told: bool,
}

/// What all links together may have waiting, so that publishers of this node's own find room to wait too.
#[derive(Clone)]
pub(super) struct Room {
    all: Arc<Semaphore>,
    messages_max: u32,
}

impl Room {
    pub(super) fn new(messages_max: u32) -> Room {
        Room { all: Arc::new(Semaphore::new(messages_max as usize)), messages_max }
    }

    /// As many messages as may be delivered at once: more would wait for room that never comes.
    pub(super) fn split<T>(&self, mut messages: Vec<T>) -> (Vec<T>, Vec<T>) {
        let rest = messages.split_off(messages.len().min(self.messages_max as usize));
        (messages, rest)
    }

    pub(super) async fn take(&self, messages: usize) -> OwnedSemaphorePermit {
        self.all.clone().acquire_many_owned(messages as u32).await.expect("nobody closes it")
    }
}

/// Counts a link as up, and what its source still has for it, for as long as it lives.
struct Up {
    metrics: Arc<ClusterMetrics>,
    behind: u64,
}

impl Up {
    fn new(metrics: &Arc<ClusterMetrics>) -> Up {
        metrics.relay_links.set(metrics.relay_links.get() + 1);
        Up { metrics: metrics.clone(), behind: 0 }
    }

    fn set_behind(&mut self, behind: u64) {
        let others = self.metrics.relay_behind.get() - self.behind;
        self.metrics.relay_behind.set(others + behind);
        self.behind = behind;
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.set_behind(0);
        self.metrics.relay_links.set(self.metrics.relay_links.get() - 1);
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Why `pulling` ended. A panic is a mistake of ours, and ends no more than that attempt.
async fn end_of(pulling: impl Future<Output = Result<Infallible, Failure>>) -> Failure {
    match AssertUnwindSafe(pulling).catch_unwind().await {
        Ok(Err(failure)) => failure,
        Err(_) => "a mistake of the gateway's own, a panic that stands above in this log: please report it".into(),
    }
}

impl Link {
    /// Pulls from a node until it is gone for good. Returns where that was.
    async fn run(mut self, mut cursor: Cursor) -> (String, Cursor) {
        let mut pause = Pause::new(Duration::from_millis(50), Duration::from_millis(500));
        while let Some(other) = self.source().await {
            let margin = self.margin;
            // The cursor is behind the last batch whatever of it was delivered: rather none than anything twice.
            let failure = end_of(self.pull(&other, &mut cursor, &mut pause)).await;
            self.lose_what_it_gave();
            // One that is asked again, since it was late, has not failed.
            if self.margin == margin {
                self.has_asked();
            }
            // The end of one that has said farewell is no failure.
            if self.view.borrow().end_of(&self.id).is_none() {
                self.failed(&other.member.name, &other.member.relay, &failure);
                pause.wait().await;
            }
        }
        cursor.written_off += self.lose_the_rest(cursor);
        (self.id.clone(), cursor)
    }

    /// The source as it is in view, or as it comes back; `None`: it has said farewell, or been away for too long.
    async fn source(&mut self) -> Option<Other> {
        let id = &self.id;
        if !self.is_in_view() {
            self.unheard.remove(id); // Nothing to mend: it has gone, or is about to.
        }
        let is_known = |view: &View| view.others.contains_key(id) || view.end_of(id).is_some();
        let view = tokio::time::timeout(AWAY, self.view.wait_for(is_known)).await.ok()?.ok()?;
        view.others.get(id).cloned()
    }

    fn has_asked(&self) {
        self.asked.send_if_modified(|asked| !asked.contains(&self.id) && asked.insert(self.id.clone()));
    }

    /// Counts what a source that is gone for good had accepted and never gave, as far as anybody knows. Returns how much that is.
    fn lose_the_rest(&self, cursor: Cursor) -> u64 {
        let end = self.view.borrow().end_of(&self.id).unwrap_or(self.end);
        let messages = cursor.lacks(end);
        if messages > 0 {
            self.metrics.relay_lost_gone.add(messages);
            tracing::warn!(
                id = self.id,
                messages,
                "messages of a node that is gone are lost to this one: it was cut off, or too slow, until that one had ended"
            );
        }
        messages
    }

    async fn pull(&mut self, other: &Other, cursor: &mut Cursor, pause: &mut Pause) -> Result<Infallible, Failure> {
        let epoch = u64::from_str_radix(&self.id, 16)?;
        let way = Way::new(CONNECT);
        let channel = connect(&other.member.relay, self.tls.clone(), &way).await?;
        let asked = Instant::now();
        let age = if cursor.has_met { Duration::ZERO } else { self.started.elapsed() + self.margin };
        let mut request = Request::new(PullRequest {
            node: self.this.clone(),
            epoch: if cursor.after.is_some() { epoch } else { 0 },
            after: cursor.after.unwrap_or(0),
            age_ms: age.as_millis() as u64,
        });
        if let Some(token) = (self.secrets.shown)() {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        }
        let mut batches = in_time(&way, batches::pull(channel, request)).await??;
        let mut up = None;
        loop {
            let batch = in_time(&way, batches.message()).await??.ok_or("it ended the stream")?;
            if !cursor.has_met && asked.elapsed() > self.margin {
                // By the time it heard it this node was older, by how much nobody knows.
                self.margin = 2 * asked.elapsed();
                return Err("it took so long to answer that what is due is uncertain".into());
            }
            if u64::from_str_radix(&self.this, 16) == Ok(batch.epoch) {
                return Err("this address leads back to this node: set cluster.relay_address there, or cluster.relay_advertise, to one that other machines reach".into());
            }
            if batch.epoch != epoch {
                // Its key is about to go, and the other has one of its own.
                return Err(format!("{} is another node now", other.member.relay).into());
            }
            let taken = cursor.take(batch)?;
            if up.is_none() {
                pause.reset();
                self.heard();
                self.has_asked();
                tracing::info!(
                    id = self.id,
                    name = other.member.name,
                    relay = other.member.relay,
                    "pulling from a node"
                );
            }
            up.get_or_insert_with(|| Up::new(&self.metrics)).set_behind(taken.behind);
            self.end = cursor.after.map_or(0, |after| after + 1 + taken.behind);
            self.metrics.relay_duplicates.add(taken.duplicates);
            if taken.missed > 0 {
                self.metrics.relay_lost_overrun.add(taken.missed);
                tracing::warn!(
                    id = self.id,
                    name = other.member.name,
                    messages = taken.missed,
                    "messages of a node are lost to this one: it was cut off, or too slow, for longer than cluster.relay_buffer there holds"
                );
            }
            self.give(taken.messages).await;
        }
    }

    /// Pulls from a proxy of gpush for as long as a key names its address.
    async fn pull_from_proxy(mut self, address: &str) {
        let mut pause = Pause::new(Duration::from_millis(50), Duration::from_millis(500));
        let is_named = |view: &View| view.proxies.values().any(|named| named == address);
        let mut view = self.view.clone();
        while is_named(&view.borrow()) {
            let is_gone = async { drop(view.wait_for(|view| !is_named(view)).await) };
            let failure = tokio::select! {
                // gpush's sockets do so too: a proxy whose lease is over registers under another key.
                () = is_gone => return,
                failure = end_of(self.pull_data(address, &mut pause)) => failure,
            };
            self.lose_what_it_gave();
            self.failed("a proxy of gpush", address, &failure);
            pause.wait().await;
        }
    }

    async fn pull_data(&mut self, address: &str, pause: &mut Pause) -> Result<Infallible, Failure> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        // Not by HTTP/2's pings: grpc-go takes those of a stream without data for an attack.
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(SILENCE))
            .tcp_keepalive_interval(Some(PROBE.0))
            .tcp_keepalive_retries(Some(PROBE.1));
        let mut client = ProxyClient::new(endpoint.connect().await?).max_decoding_message_size(BATCH_BYTES_MAX);
        let _up = Up::new(&self.metrics);
        if !self.is_told {
            tracing::info!(address, "pulling from a proxy of gpush");
        }
        let asking = client.pull_data(Empty {});
        tokio::pin!(asking);
        let answer = match tokio::time::timeout(SILENCE, &mut asking).await {
            Ok(answer) => answer?,
            Err(_) => {
                // grpc-go answers with the first push, which may be hours away: who has not refused by now is there.
                self.is_up(address, pause);
                asking.await?
            }
        };
        self.is_up(address, pause);
        let mut pushes = answer.into_inner();
        while let Some(push) = pushes.message().await? {
            self.give(vec![RelayedMessage { uid: push.uid, topic: push.topic, data: push.data }]).await;
        }
        Err("it ended the stream".into())
    }

    fn is_up(&mut self, proxy: &str, pause: &mut Pause) {
        pause.reset();
        if self.heard() {
            tracing::info!(address = proxy, "pulling from a proxy of gpush again");
        }
    }

    /// Gives messages to this node's subscribers, when few enough of those before them wait for room.
    async fn give(&mut self, messages: Vec<RelayedMessage>) {
        self.metrics.relay_received.add(messages.len() as u64);
        self.giving = messages.len() as u64;
        let (mut now, mut rest) = self.room.split(messages);
        while !now.is_empty() {
            let place = self.places.clone().acquire_owned().await.expect("nobody closes it");
            let room = self.room.take(now.len()).await;
            let Delivered { lost, waiting, .. } = self.deliver.deliver(publications(now));
            count(&self.metrics, lost);
            if let Some(waiting) = waiting {
                // Beside the link: what becomes of them is counted when it is known, whether more comes or not.
                let metrics = self.metrics.clone();
                tokio::spawn(async move {
                    count(&metrics, waiting.await);
                    drop((place, room));
                });
            }
            self.giving = rest.len() as u64;
            (now, rest) = self.room.split(rest);
        }
    }

    /// Counts what [`Link::give`] was kept from giving, by a panic or because its source is gone.
    fn lose_what_it_gave(&mut self) {
        self.metrics.relay_lost_refused.add(std::mem::take(&mut self.giving));
    }

    /// It comes, or comes again. Returns whether it was said that it does not.
    fn heard(&mut self) -> bool {
        self.unheard.remove(&self.id);
        std::mem::take(&mut self.is_told)
    }

    /// Whether etcd knows its source, as far as this node has heard.
    fn is_in_view(&self) -> bool {
        let view = self.view.borrow();
        view.others.contains_key(&self.id) || view.proxies.values().any(|address| *address == self.id)
    }

    fn failed(&mut self, name: &str, address: &str, failure: &Failure) {
        self.metrics.relay_link_failures.add(1);
        let failure = causes(&**failure);
        self.unheard.add(Instant::now(), &self.id, format!("{name} at {address} ({failure})"));
        if std::mem::replace(&mut self.is_told, true) {
            tracing::debug!(id = self.id, address, failure, "still not pulling");
        } else if !self.is_in_view() {
            tracing::warn!(id = self.id, address, failure, "not pulling from it any more; its key is gone too");
        } else {
            tracing::warn!(id = self.id, address, failure, "not pulling from it any more; trying again");
        }
    }
}

impl Drop for Link {
    /// It is no source any more, and what it had not given yet goes with it.
    fn drop(&mut self) {
        self.unheard.remove(&self.id);
        self.lose_what_it_gave();
    }
}

fn count(metrics: &ClusterMetrics, lost: Lost) {
    metrics.relay_lost_refused.add(lost.refused as u64);
    metrics.relay_lost_draining.add(lost.draining as u64);
}

/// Messages as this node's own publishers would give them; neighbours to one topic share its name.
fn publications(messages: Vec<RelayedMessage>) -> Vec<Publication> {
    let mut last: Arc<str> = "".into();
    let mut named = |name: String| {
        if *last != *name {
            last = name.into();
        }
        last.clone()
    };
    let target = |uid: String, topic| match &*uid {
        "" => Target::topic(topic),
        _ => Target::User { uid: uid.into(), topic },
    };
    messages.into_iter().map(|m| Publication { target: target(m.uid, named(m.topic)), data: m.data }).collect()
}

async fn connect(address: &str, tls: Option<ClientTlsConfig>, way: &Way) -> Result<Channel, Failure> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls)?;
    }
    Ok(in_time(way, endpoint.connect_with_connector(way.clone())).await??)
}

async fn in_time<T>(way: &Way, work: impl Future<Output = T>) -> Result<T, Failure> {
    way.while_heard(SILENCE, work).await.ok_or_else(|| format!("silent for {SILENCE:?}").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn batch(first: u64, count: u64) -> RelayBatch {
        let message = |n: u64| RelayedMessage { data: n.to_string().into(), ..RelayedMessage::default() };
        RelayBatch {
            epoch: 7,
            first,
            messages: (first..first + count).map(message).collect(),
            next: first + count,
            due: 0,
        }
    }

    fn taken(cursor: &mut Cursor, first: u64, count: u64) -> (u64, u64, Vec<String>) {
        let taken = cursor.take(batch(first, count)).unwrap();
        let texts = taken.messages.iter().map(|m| String::from_utf8(m.data.to_vec()).unwrap());
        (taken.missed, taken.duplicates, texts.collect())
    }

    #[test]
    fn the_first_batch_says_where_the_stream_begins() {
        let mut cursor = Cursor::default();
        assert_eq!(taken(&mut cursor, 41, 0), (0, 0, vec![]));
        assert_eq!(cursor.after, Some(40));
        assert_eq!(taken(&mut cursor, 41, 2), (0, 0, vec!["41".into(), "42".into()]));
        assert_eq!(cursor.after, Some(42));
    }

    #[test]
    fn what_was_due_and_is_gone_is_counted_once() {
        let mut cursor = at(5);
        assert_eq!(taken(&mut cursor, 10, 0), (4, 0, vec![]));
        assert_eq!(taken(&mut cursor, 10, 1), (0, 0, vec!["10".into()]));
        assert_eq!(taken(&mut cursor, 13, 1), (2, 0, vec!["13".into()]));
    }

    #[test]
    fn what_is_here_already_is_not_taken_twice() {
        let mut cursor = at(5);
        assert_eq!(taken(&mut cursor, 4, 3), (0, 2, vec!["6".into()]));
        assert_eq!(taken(&mut cursor, 1, 2), (0, 2, vec![]));
        assert_eq!(cursor.after, Some(6));
    }

    #[test]
    fn what_a_newcomer_no_longer_keeps_at_the_first_contact_is_missed() {
        assert_eq!(taken(&mut { Cursor::BEGINNING }, 901, 0), (900, 0, vec![]));
        assert_eq!(taken(&mut { Cursor::BEGINNING }, 1, 1), (0, 0, vec!["1".into()]));
    }

    #[test]
    fn at_the_first_contact_the_source_says_what_was_due() {
        for begin in [Cursor::default(), Cursor::BEGINNING] {
            let mut cursor = begin;
            let first = |first: u64, due: u64| RelayBatch { due, ..batch(first, 0) };
            assert_eq!(cursor.take(first(41, 41)).unwrap().missed, 0, "what was before was not this node's");
            assert_eq!(taken(&mut cursor, 41, 1), (0, 0, vec!["41".into()]));
            let mut cursor = begin;
            assert_eq!(cursor.take(first(41, 38)).unwrap().missed, 3);
            assert_eq!(cursor.take(first(45, 30)).unwrap().missed, 4, "at a later one the cursor knows");
        }
    }

    fn at(after: u64) -> Cursor {
        Cursor { after: Some(after), has_met: true, written_off: 0 }
    }

    #[test]
    fn what_was_written_off_is_not_counted_again() {
        let off = |written_off| Cursor { written_off, ..at(4) };
        assert_eq!((off(5).lacks(10), off(5).lacks(12), off(9).lacks(10)), (0, 2, 0));
        // It is back, and has kept two of the five, or none.
        for (first, missed) in [(8, 0), (10, 0), (12, 2)] {
            let mut cursor = off(5);
            assert_eq!(cursor.take(batch(first, 1)).unwrap().missed, missed, "{first}");
            assert_eq!(cursor, at(first));
        }
    }

    #[test]
    fn what_is_not_here_at_a_sources_end_is_what_it_lacks() {
        assert_eq!((at(4).lacks(10), at(9).lacks(10), at(9).lacks(3)), (5, 0, 0));
        assert_eq!((Cursor::BEGINNING.lacks(10), Cursor::default().lacks(10)), (9, 0));
    }

    #[test]
    fn a_batch_whose_numbers_can_be_of_no_log_is_refused_and_moves_nothing() {
        let numbers = |first, next, due| RelayBatch { first, next, due, ..batch(1, 2) };
        for cursor in [Cursor::default(), Cursor::BEGINNING, at(5)] {
            for wrong in [
                RelayBatch::default(),
                numbers(0, 2, 0),
                numbers(u64::MAX, u64::MAX, 0),
                numbers(u64::MAX - 1, 0, 0),
                numbers(1, u64::MAX, 0),
                numbers(7, 8, 0),
                numbers(7, 6, 0),
                numbers(7, 9, 8),
                numbers(SEQUENCE_MAX - 1, SEQUENCE_MAX + 1, 0),
            ] {
                let mut after = cursor;
                let said = after.take(wrong.clone()).expect_err(&format!("{wrong:?}")).to_string();
                assert!(said.starts_with("a batch of no log"), "{said}");
                assert_eq!(after, cursor);
            }
        }
        let mut cursor = Cursor::default();
        let taken = cursor.take(RelayBatch { next: 50, ..batch(41, 2) }).unwrap();
        assert_eq!((taken.behind, taken.messages.len(), cursor.after), (7, 2, Some(42)));
        cursor.take(numbers(SEQUENCE_MAX - 2, SEQUENCE_MAX, 0)).unwrap();
        assert_eq!(cursor.after, Some(SEQUENCE_MAX - 1));
    }

    #[test]
    fn of_sources_that_are_gone_the_oldest_is_forgotten() {
        let mut past = Past::default();
        (0..=PAST_MAX).for_each(|n| past.remember(n.to_string(), at(n as u64)));
        assert_eq!((past.take("0"), past.take("1"), past.take("1")), (None, Some(at(1)), None));
        assert_eq!(past.take(&PAST_MAX.to_string()), Some(at(PAST_MAX as u64)));
    }

    #[test]
    fn what_all_links_are_behind_is_their_sum_and_goes_with_them() {
        let metrics = Arc::new(ClusterMetrics::default());
        let (mut a, mut b) = (Up::new(&metrics), Up::new(&metrics));
        a.set_behind(5);
        b.set_behind(70);
        a.set_behind(1);
        assert_eq!((metrics.relay_behind.get(), metrics.relay_links.get()), (71, 2));
        drop(b);
        assert_eq!((metrics.relay_behind.get(), metrics.relay_links.get()), (1, 1));
    }

    /// Subscribers with room for none: whatever comes waits until released.
    struct Full {
        given: Mutex<Vec<usize>>,
        released: watch::Receiver<bool>,
    }

    impl Deliver for Full {
        fn deliver(&self, publications: Vec<Publication>) -> Delivered {
            self.given.lock().unwrap().push(publications.len());
            let released = self.released.clone();
            let refused = Lost { refused: publications.len(), draining: 0 };
            let waiting = async move {
                super::super::told(released).await;
                refused
            };
            Delivered { lost: Lost::default(), waits: 1, waiting: Some(Box::pin(waiting)) }
        }
    }

    #[tokio::test]
    async fn links_together_have_no_more_waiting_than_allowed_and_count_it_when_nothing_comes_behind() {
        let (release, released) = watch::channel(false);
        let full = Arc::new(Full { given: Mutex::default(), released });
        let metrics = Arc::new(ClusterMetrics::default());
        let secrets = Secrets { allows: Arc::new(|_| true), shown: Arc::new(|| None) };
        let view = watch::channel(View::default()).1;
        let (this, deliver) = ("a".to_owned(), full.clone());
        let started = Instant::now();
        let unheard = Unheard::default();
        let (asked, metrics_of_links) = (watch::Sender::default(), metrics.clone());
        let links = Links {
            this,
            started,
            view,
            asked,
            deliver,
            waiting_max: 5,
            tls: None,
            secrets,
            unheard,
            metrics: metrics_of_links,
        };
        let room = Room::new(links.waiting_max);
        let giving = ["b", "c"].map(|id| {
            let mut link = links.link(id.into(), &room);
            tokio::spawn(async move { link.give(batch(1, 4).messages).await })
        });
        while full.given.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*full.given.lock().unwrap(), [4], "four of five wait: four more are too many");
        release.send_replace(true);
        for link in giving {
            link.await.unwrap();
        }
        while metrics.relay_lost_refused.get() < 8 {
            tokio::task::yield_now().await;
        }
        let mut link = links.link("d".into(), &room);
        link.give(batch(1, 12).messages).await;
        assert_eq!(*full.given.lock().unwrap(), [4, 4, 5, 5, 2], "a batch above the bound is given in parts");
    }

    /// Subscribers that hear what comes, and a mistake of ours where it is "fatal".
    #[derive(Default)]
    struct Faulty(Mutex<Vec<String>>);

    impl Deliver for Faulty {
        fn deliver(&self, publications: Vec<Publication>) -> Delivered {
            for publication in publications {
                let text = String::from_utf8(publication.data.to_vec()).unwrap();
                assert!(text != "fatal", "a mistake that this test makes");
                self.0.lock().unwrap().push(text);
            }
            Delivered { lost: Lost::default(), waits: 0, waiting: None }
        }
    }

    #[tokio::test]
    async fn a_link_that_panicked_is_counted_and_goes_on_from_now_on() {
        use super::super::Carrier;
        use super::super::door::Door;
        use super::super::log::Log;
        use super::super::members::{Member, id_of};
        use super::super::relay::Relay;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = listener.local_addr().unwrap().to_string();
        let secrets = Secrets { allows: Arc::new(|_| true), shown: Arc::new(|| None) };
        let source = Arc::new(Relay::new(Log::new(7, 100, 1 << 20), Arc::default()));
        source.open();
        let (stop, stopping) = watch::channel(false);
        let served = source.clone().serve(Door::new(listener).unwrap(), None, secrets.clone(), stopping);
        let served = tokio::spawn(served);
        let member = Member { id: id_of(7), relay, role: "all".into(), ..Member::default() };
        let others = [(member.id.clone(), Other { member, is_newcomer: true })].into();
        let (_view, view) = watch::channel(View { others, ..View::default() });
        let (heard, metrics) = (Arc::new(Faulty::default()), Arc::new(ClusterMetrics::default()));
        let links = Links {
            this: "a".into(),
            started: Instant::now(),
            view,
            asked: watch::Sender::default(),
            deliver: heard.clone(),
            waiting_max: 100,
            tls: None,
            secrets,
            unheard: Unheard::default(),
            metrics: metrics.clone(),
        };
        let links = tokio::spawn(links.run());
        let publishes = |text: &'static str| source.carry(&Publication::new("t", text));
        let until = async |condition: &dyn Fn() -> bool| {
            let looking = async {
                while !condition() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), looking).await.expect("within ten seconds");
        };
        publishes("1");
        until(&|| *heard.0.lock().unwrap() == ["1"]).await;
        publishes("fatal");
        until(&|| metrics.relay_link_failures.get() == 1).await;
        assert_eq!(metrics.relay_lost_refused.get(), 1, "what it gave then");
        until(&|| metrics.relay_links.get() == 1).await;
        publishes("2");
        until(&|| heard.0.lock().unwrap().len() == 2).await;
        assert_eq!(*heard.0.lock().unwrap(), ["1", "2"]);
        links.abort();
        stop.send_replace(true);

        served.await.unwrap().unwrap();
    }

    #[test]
    fn neighbours_to_one_topic_share_its_name() {
        let message =
            |uid: &str, topic: &str| RelayedMessage { uid: uid.into(), topic: topic.into(), data: "x".into() };
        let all = publications(vec![message("", "a"), message("", "a"), message("u", "a"), message("", "")]);
        let targets: Vec<_> = all.iter().map(|p| p.target.clone()).collect();
        assert_eq!(targets[2..], [Target::user_or_topic("u", "a"), Target::Everyone]);
        match &targets[..2] {
            [Target::Topic(a), Target::Topic(b)] => assert!(Arc::ptr_eq(a, b)),
            other => panic!("{other:?}"),
        }
    }
}
