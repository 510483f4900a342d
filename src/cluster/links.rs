//! The taking half of the relay: a link to every other node that accepts publications, and to every proxy of gpush.
//!
//! ```text
//! View ──► one task for each source:  connect ─► pull from where we were ─► batches ─► Deliver ─► own subscribers
//!                                        ▲  pause                              │
//!                                        └── silence, reset, end ◄─────────────┘   gone from the view: no further attempt
//! ```
//!
//! A stream that works is never cut because etcd says something: who has lost its lease may still be heard.

use super::members::{Other, View};
use super::pause::Pause;
use super::{Deliver, Delivered, Secrets, causes};
use crate::frame::{Publication, Target};
use crate::metrics::ClusterMetrics;
use crate::proto::order::Empty;
use crate::proto::order::proxy_client::ProxyClient;
use crate::proto::v1::relay_client::RelayClient;
use crate::proto::v1::{PullRequest, RelayBatch, RelayedMessage};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Request;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// A node says something every second: after this it is gone, or the way to it is.
const SILENCE: Duration = Duration::from_secs(3);
/// Batches of one source with messages that wait for room; then no more is read from it.
const WAITING_BATCHES_MAX: usize = 4;
/// Largest batch taken. What another node allows in one message is its own affair; ours refuses and counts it.
const BATCH_BYTES_MAX: usize = 512 << 20;
/// Bytes on their way in one stream before they are read.
const WINDOW: u32 = 4 << 20;
/// Sources that are gone and whose place is remembered, should they come back.
const PAST_MAX: usize = 1024;

/// Where in a source's log this node is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cursor {
    /// The last sequence had; `None`: none yet, and no stream ever began.
    after: Option<u64>,
}

/// What a batch is to this node.
#[derive(Debug, PartialEq)]
struct Taken {
    /// Messages that were due and are no longer kept.
    missed: u64,
    /// Messages that were here before.
    duplicates: u64,
    messages: Vec<RelayedMessage>,
}

impl Cursor {
    fn take(&mut self, batch: RelayBatch) -> Taken {
        let RelayBatch { first, mut messages, .. } = batch;
        let due = self.after.map_or(first, |after| after + 1);
        let duplicates = due.saturating_sub(first).min(messages.len() as u64);
        messages.drain(..duplicates as usize);
        let end = first + duplicates + messages.len() as u64;
        self.after = Some(self.after.unwrap_or(0).max(end - 1));
        Taken { missed: first.saturating_sub(due), duplicates, messages }
    }
}

/// All links of this node.
pub(super) struct Links {
    pub(super) this: String,
    pub(super) view: watch::Receiver<View>,
    pub(super) deliver: Arc<dyn Deliver>,
    pub(super) tls: Option<ClientTlsConfig>,
    pub(super) secrets: Secrets,
    pub(super) metrics: Arc<ClusterMetrics>,
}

impl Links {
    /// Keeps a link to every source in view, for ever.
    pub(super) async fn run(mut self) {
        let mut nodes: JoinSet<(String, Cursor)> = JoinSet::new();
        let mut proxies: JoinSet<Bytes> = JoinSet::new();
        let (mut linked, mut pulled) = (HashSet::new(), HashSet::new());
        let mut past: HashMap<String, Cursor> = HashMap::new();
        loop {
            let view = self.view.borrow_and_update().clone();
            for (id, other) in view.others.iter().filter(|(_, other)| other.member.is_source()) {
                if linked.insert(id.clone()) {
                    let cursor = past.remove(id).unwrap_or_default();
                    nodes.spawn(self.link(id.clone()).run(cursor, other.is_newcomer));
                }
            }
            for key in view.proxies.into_keys() {
                if pulled.insert(key.clone()) {
                    let link = self.link(String::from_utf8_lossy(&key).into_owned());
                    proxies.spawn(async move {
                        link.pull_from_proxy(&key).await;
                        key
                    });
                }
            }
            tokio::select! {
                changed = self.view.changed() => if changed.is_err() { return },
                Some(ended) = nodes.join_next() => {
                    // A panic is a mistake of ours, and where that link was is not known any more: rather none than everything twice.
                    let Ok((id, cursor)) = ended else { continue };
                    linked.remove(&id);
                    if past.len() < PAST_MAX {
                        past.insert(id, cursor);
                    }
                }
                Some(Ok(key)) = proxies.join_next() => drop(pulled.remove(&key)),
            }
        }
    }

    fn link(&self, id: String) -> Link {
        Link {
            id,
            this: self.this.clone(),
            view: self.view.clone(),
            deliver: self.deliver.clone(),
            tls: self.tls.clone(),
            secrets: self.secrets.clone(),
            metrics: self.metrics.clone(),
            waiting: FuturesUnordered::new(),
            is_told: false,
        }
    }
}

/// The way from one source.
struct Link {
    /// Its id, or its key if it is a proxy of gpush.
    id: String,
    this: String,
    view: watch::Receiver<View>,
    deliver: Arc<dyn Deliver>,
    tls: Option<ClientTlsConfig>,
    secrets: Secrets,
    metrics: Arc<ClusterMetrics>,
    waiting: FuturesUnordered<BoxFuture<'static, usize>>,
    /// That it is down is in the log already.
    is_told: bool,
}

/// Counts a link as up for as long as it lives.
struct Up(Arc<ClusterMetrics>);

impl Up {
    fn new(metrics: &Arc<ClusterMetrics>) -> Up {
        metrics.relay_links.set(metrics.relay_links.get() + 1);
        Up(metrics.clone())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.0.relay_links.set(self.0.relay_links.get() - 1);
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Link {
    /// Pulls from a node until it is gone. Returns where that was.
    async fn run(mut self, mut cursor: Cursor, from_beginning: bool) -> (String, Cursor) {
        let mut pause = Pause::new(Duration::from_millis(50), Duration::from_millis(500));
        loop {
            let other = self.view.borrow().others.get(&self.id).cloned();
            let Some(other) = other else { return (self.id, cursor) };
            let Err(failure) = self.pull(&other, &mut cursor, from_beginning, &mut pause).await;
            self.failed(&other.member.relay, &failure);
            pause.wait().await;
        }
    }

    async fn pull(
        &mut self,
        other: &Other,
        cursor: &mut Cursor,
        from_beginning: bool,
        pause: &mut Pause,
    ) -> Result<std::convert::Infallible, Failure> {
        let epoch = u64::from_str_radix(&self.id, 16)?;
        let channel = connect(&other.member.relay, self.tls.clone()).await?;
        let mut client = RelayClient::new(channel).max_decoding_message_size(BATCH_BYTES_MAX);
        let mut request = Request::new(PullRequest {
            node: self.this.clone(),
            epoch: if cursor.after.is_some() { epoch } else { 0 },
            after: cursor.after.unwrap_or(0),
            from_beginning,
        });
        if let Some(token) = (self.secrets.shown)() {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        }
        let mut batches = in_time(client.pull(request)).await??.into_inner();
        let mut up = None;
        loop {
            let batch = in_time(batches.message()).await??.ok_or("it ended the stream")?;
            if batch.epoch != epoch {
                // Its key is about to go, and the other has one of its own.
                return Err(format!("{} is another node now", other.member.relay).into());
            }
            if up.is_none() {
                up = Some(Up::new(&self.metrics));
                pause.reset();
                self.is_told = false;
                tracing::info!(
                    id = self.id,
                    name = other.member.name,
                    relay = other.member.relay,
                    "pulling from a node"
                );
            }
            let behind = batch.next.saturating_sub(batch.first + batch.messages.len() as u64);
            self.metrics.relay_behind.set(behind);
            let taken = cursor.take(batch);
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

    /// Pulls from a proxy of gpush for as long as its key is there.
    async fn pull_from_proxy(mut self, key: &Bytes) {
        let mut pause = Pause::new(Duration::from_millis(50), Duration::from_millis(500));
        loop {
            let Some(address) = self.view.borrow().proxies.get(key).cloned() else { return };
            let mut view = self.view.clone();
            let is_gone = async { drop(view.wait_for(|view| !view.proxies.contains_key(key)).await) };
            let failure = tokio::select! {
                // gpush's sockets do so too: a proxy whose lease is over registers under another key.
                () = is_gone => return,
                Err(failure) = self.pull_data(&address, &mut pause) => failure,
            };
            self.failed(&address, &failure);
            pause.wait().await;
        }
    }

    async fn pull_data(&mut self, address: &str, pause: &mut Pause) -> Result<std::convert::Infallible, Failure> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        let endpoint = endpoint.connect_timeout(CONNECT).tcp_nodelay(true).tcp_keepalive(Some(SILENCE));
        let mut client = ProxyClient::new(endpoint.connect().await?).max_decoding_message_size(BATCH_BYTES_MAX);
        let mut pushes = in_time(client.pull_data(Empty {})).await??.into_inner();
        let _up = Up::new(&self.metrics);
        pause.reset();
        self.is_told = false;
        tracing::info!(address, "pulling from a proxy of gpush");
        while let Some(push) = pushes.message().await? {
            self.give(vec![RelayedMessage { uid: push.uid, topic: push.topic, data: push.data }]).await;
        }
        Err("it ended the stream".into())
    }

    /// Gives messages to this node's subscribers. Returns when few enough of them wait for room.
    async fn give(&mut self, messages: Vec<RelayedMessage>) {
        if messages.is_empty() {
            return;
        }
        self.metrics.relay_received.add(messages.len() as u64);
        let Delivered { refused, waiting } = self.deliver.deliver(publications(messages));
        self.metrics.relay_lost_refused.add(refused as u64);
        self.waiting.extend(waiting);
        while self.waiting.len() >= WAITING_BATCHES_MAX
            && let Some(refused) = self.waiting.next().await
        {
            self.metrics.relay_lost_refused.add(refused as u64);
        }
        // Those that are done meanwhile.
        while let Some(Some(refused)) = futures_util::FutureExt::now_or_never(self.waiting.next()) {
            self.metrics.relay_lost_refused.add(refused as u64);
        }
    }

    fn failed(&mut self, address: &str, failure: &Failure) {
        self.metrics.relay_link_failures.add(1);
        let failure = causes(&**failure);
        if std::mem::replace(&mut self.is_told, true) {
            tracing::debug!(id = self.id, address, failure, "still not pulling");
        } else {
            tracing::warn!(id = self.id, address, failure, "not pulling from it any more; trying again");
        }
    }
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

async fn connect(address: &str, tls: Option<ClientTlsConfig>) -> Result<Channel, Failure> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls)?;
    }
    Ok(in_time(endpoint.connect()).await??)
}

async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::time::timeout(SILENCE, work).await.map_err(|_| format!("silent for {SILENCE:?}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(first: u64, count: u64) -> RelayBatch {
        let message = |n: u64| RelayedMessage { data: n.to_string().into(), ..RelayedMessage::default() };
        RelayBatch { epoch: 7, first, messages: (first..first + count).map(message).collect(), next: first + count }
    }

    fn taken(cursor: &mut Cursor, first: u64, count: u64) -> (u64, u64, Vec<String>) {
        let taken = cursor.take(batch(first, count));
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
        let mut cursor = Cursor { after: Some(5) };
        assert_eq!(taken(&mut cursor, 10, 0), (4, 0, vec![]));
        assert_eq!(taken(&mut cursor, 10, 1), (0, 0, vec!["10".into()]));
        assert_eq!(taken(&mut cursor, 13, 1), (2, 0, vec!["13".into()]));
    }

    #[test]
    fn what_is_here_already_is_not_taken_twice() {
        let mut cursor = Cursor { after: Some(5) };
        assert_eq!(taken(&mut cursor, 4, 3), (0, 2, vec!["6".into()]));
        assert_eq!(taken(&mut cursor, 1, 2), (0, 2, vec![]));
        assert_eq!(cursor.after, Some(6));
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
