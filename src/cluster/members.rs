//! Who else is there: each node holds a key under a lease in etcd, and watches those of the others.
//!
//! ```text
//!  connect ─► lease, kept alive ─► own key ─► get all ─► watch from that revision on ──┐
//!     ▲                                                                                │ any trouble: lease over, compacted,
//!     └──────────────── pause, another server ◄────────────────────────────────────────┘ server gone
//! ```
//!
//! After trouble everything begins again with a new lease and a get of everything, so nothing that happened meanwhile is missed.
//! Until then the others are who they were: a node goes on with them, and serves its own clients in any case.
//!
//! A node that drains says so in its key and keeps it until it ends, since it goes on accepting: whoever loses the way to it finds it again, and
//! whoever comes finds it too. What it says last is where its log ends, so that those who had less know how much they have missed.

use super::NOT_ASKED;
use super::etcd::{Access, Change, Changes, Etcd, EtcdError};
use super::pause::Pause;
use super::relay::Relay;
use crate::config::Role;
use crate::metrics::ClusterMetrics;
use crate::proto::etcd::KeyValue;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long a key outlives its node.
const LEASE_TTL_S: i64 = 5;
/// How often the lease is renewed: two attempts may fail.
const KEEP_ALIVE: Duration = Duration::from_millis(1500);
/// Renewals between two writes of a load that has changed.
const LOAD_EVERY: u32 = 4;
/// Members of one cluster that are looked at; more are a mistake of whoever writes there.
const MEMBERS_MAX: usize = 4096;
/// Nodes that are gone and of which it is known where their logs ended; the oldest is forgotten.
const ENDS_MAX: usize = 256;

/// What a node says of itself, as JSON under its key. Fields that are not known are skipped: nodes of two versions meet.
#[derive(Clone, Debug, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Member {
    /// Names one life of a node: the epoch of its relay, in hexadecimal.
    pub id: String,
    /// For people.
    pub name: String,
    /// Of the program.
    pub version: String,
    /// `all`, `ingest` or `fanout`.
    pub role: String,
    /// Where others pull from it; empty: they don't.
    pub relay: String,
    /// Where gRPC publishes; empty: nowhere.
    pub grpc: String,
    /// Where HTTP publishes, and the admin pages.
    pub http: String,
    /// Where subscribers connect.
    pub subscribers: Vec<String>,
    /// Where gpush's sockets pull from it; empty: they don't.
    pub gpush: String,
    /// When it started, in seconds since 1970.
    pub started_s: u64,
    /// It is on its way out: it still accepts, for a while, and takes no new subscribers.
    pub draining: bool,
    /// Said last of all: the sequence behind the last message that it has accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay_end: Option<u64>,
    /// Its load.
    #[serde(flatten)]
    pub load: Load,
}

/// What a node has to do.
#[derive(Clone, Copy, Debug, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Load {
    /// Subscribers connected.
    pub connections: u64,
    /// Subscribers it takes.
    pub connections_max: u64,
    /// Publications admitted since it started, those of other nodes included.
    pub publications: u64,
}

impl Member {
    /// Whether others have something to pull from it.
    pub(super) fn is_source(&self) -> bool {
        !self.relay.is_empty() && self.role != "fanout"
    }

    /// Whether it takes subscribers who have to leave another node.
    pub(super) fn takes_subscribers(&self) -> bool {
        self.role != "ingest" && !self.draining
    }
}

/// Another node, as this one came to know it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Other {
    pub(super) member: Member,
    /// It came when this node was there already, which has thus missed nothing of it.
    pub(super) is_newcomer: bool,
}

/// What this node knows of the cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// Why this node is not a member now; `None`: it is one.
    pub(super) trouble: Option<String>,
    /// By id, without this node.
    pub(super) others: BTreeMap<String, Other>,
    /// gpush's proxies: address by key.
    pub(super) proxies: BTreeMap<Bytes, String>,
    /// The others can know that this node drains.
    pub(super) is_drain_told: bool,
    /// This node is a member, or was one: its key may be there.
    pub(super) has_joined: bool,
    /// Where the logs of nodes that are gone ended, as far as they have said so.
    pub(super) ends: VecDeque<(String, u64)>,
}

impl View {
    /// Those of the others that have something to pull from.
    pub(super) fn sources(&self) -> impl Iterator<Item = (&String, &Other)> {
        self.others.iter().filter(|(_, other)| other.member.is_source())
    }

    /// The sequence behind the last message of a node that has ended.
    pub(super) fn end_of(&self, id: &str) -> Option<u64> {
        self.ends.iter().find_map(|(gone, end)| (gone == id).then_some(*end))
    }

    fn remove(&mut self, id: &str) {
        let Some(Other { member, .. }) = self.others.remove(id) else { return };
        tracing::info!(id, name = member.name, "a node has gone");
        if let Some(end) = member.relay_end {
            if self.ends.len() == ENDS_MAX {
                self.ends.pop_front();
            }
            self.ends.push_back((member.id, end));
        }
    }
}

/// How far this node has come on its way out.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(super) enum Stage {
    /// Not at all.
    Serving,
    /// It still accepts, and the others should know.
    Draining,
    /// It has accepted its last message.
    Ending,
}

/// Completes at that stage or a later one, or when nobody can tell any more.
async fn reached(mut stage: watch::Receiver<Stage>, due: Stage) {
    drop(stage.wait_for(|stage| *stage >= due).await);
}

/// The key of a node, or with an empty id what all of them begin with.
pub(super) fn node_key(prefix: &str, id: &str) -> String {
    format!("{prefix}/nodes/{id}")
}

/// The id of a node whose relay has this epoch. There is one spelling, or one node could be many.
pub(super) fn id_of(epoch: u64) -> String {
    format!("{epoch:016x}")
}

/// What a key says, if it is a node's.
pub(super) fn member_of(kv: &KeyValue) -> Option<Member> {
    let member: Member = serde_json::from_slice(&kv.value).ok()?;
    let epoch = u64::from_str_radix(&member.id, 16).ok().filter(|epoch| *epoch != 0)?;
    (id_of(epoch) == member.id && kv.key.ends_with(format!("/{}", member.id).as_bytes())).then_some(member)
}

/// This node's part.
pub(super) struct Membership {
    pub(super) access: Access,
    pub(super) prefix: String,
    /// Empty: gpush's keys are none of our business.
    pub(super) gpush_prefix: String,
    pub(super) role: Role,
    /// As it will be written, but for the load; hosts that are unspecified are filled in.
    pub(super) this: Member,
    pub(super) load: Arc<dyn Fn() -> Load + Send + Sync>,
    /// What others pull from, if they do.
    pub(super) relay: Option<Arc<Relay>>,
    pub(super) view: watch::Sender<View>,
    pub(super) stage: watch::Receiver<Stage>,
    pub(super) metrics: Arc<ClusterMetrics>,
}

impl Membership {
    /// Is a member whenever it can be, until the end.
    pub(super) async fn run(mut self) {
        let mut pause = Pause::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut has_seen_all = false;
        for attempt in 0.. {
            let trouble = match Etcd::connect(&self.access, attempt).await {
                Ok(etcd) => {
                    let server = etcd.server.clone();
                    match self.session(etcd, &mut has_seen_all, &mut pause).await {
                        Ok(()) => return,
                        // Another of its servers may see this machine from outside.
                        Err(EtcdError::Unadvertised { .. }) if attempt + 1 < self.access.endpoints.len() => continue,
                        Err(error) => format!("etcd at {server}: {}", error.causes()),
                    }
                }
                Err(error) => error.causes(),
            };
            self.metrics.etcd_failures.add(1);
            self.metrics.etcd_connected.set(0);
            let was = self.view.borrow().trouble.clone();
            if was.is_none() || was.as_deref() == Some(NOT_ASKED) {
                tracing::warn!(
                    "not a member of the cluster: {trouble}; its own clients are served, and it goes on trying"
                );
            } else {
                tracing::debug!("still not a member: {trouble}");
            }
            self.view.send_modify(|view| view.trouble = Some(trouble));
            tokio::select! {
                // One that was a member has a key, and where its log ends to say.
                () = reached(self.stage.clone(), Stage::Ending), if !has_seen_all => return,
                () = pause.wait() => {}
            }
        }
    }

    /// A member until the end, or until something fails.
    async fn session(&mut self, mut etcd: Etcd, has_seen_all: &mut bool, pause: &mut Pause) -> Result<(), EtcdError> {
        self.fill_in_hosts(etcd.own_address)?;
        let lease = etcd.grant(LEASE_TTL_S).await?;
        let mut kept = etcd.keep_alive(lease).await?;
        self.this.load = (self.load)();
        self.this.draining = *self.stage.borrow() >= Stage::Draining;
        // Just before others can know of this node.
        self.relay.iter().for_each(|relay| relay.open());
        let key = node_key(&self.prefix, &self.this.id);
        etcd.put(&key, self.value(), lease).await?;
        // Behind it: whoever finds gpush's key finds out that it is one of ours.
        let is_proxy = !self.this.gpush.is_empty() && !self.gpush_prefix.is_empty();
        if is_proxy {
            etcd.put(&format!("{}/{lease}", self.gpush_prefix), self.this.gpush.clone(), lease).await?;
        }
        let nodes = node_key(&self.prefix, "");
        let found = etcd.find(&nodes).await?;
        let mut changes = etcd.watch(&nodes, found.revision + 1).await?;
        let mut proxies = self.watch_proxies(&mut etcd).await?;
        let members: BTreeMap<_, _> =
            found.kvs.iter().take(MEMBERS_MAX).filter_map(member_of).map(|m| (m.id.clone(), m)).collect();
        let is_first = !std::mem::replace(has_seen_all, true);
        self.view.send_modify(|view| {
            let gone: Vec<_> = view.others.keys().filter(|id| !members.contains_key(*id)).cloned().collect();
            gone.iter().for_each(|id| view.remove(id));
            for (_, member) in members {
                self.note(view, member, !is_first);
            }
            view.is_drain_told = self.this.draining;
            (view.has_joined, view.trouble) = (true, None);
        });
        self.counted(true);
        tracing::info!(id = self.this.id, others = self.view.borrow().others.len(), "a member of the cluster");
        pause.reset();

        let mut renewals = 0;
        let mut renewal = tokio::time::interval(KEEP_ALIVE);
        loop {
            tokio::select! {
                () = reached(self.stage.clone(), Stage::Ending) => {
                    self.counted(false);
                    // What fails here, the lease's end does a little later.
                    if let Err(error) = self.say_farewell(&mut etcd, &key, lease).await {
                        tracing::warn!("leaving the cluster: {}", error.causes());
                    }
                    return Ok(());
                }
                () = reached(self.stage.clone(), Stage::Draining), if !self.this.draining => {
                    self.this.draining = true;
                    etcd.put(&key, self.value(), lease).await?;
                    self.view.send_modify(|view| view.is_drain_told = true);
                }
                changes = changes.next() => {
                    let changes = changes?;
                    self.view.send_modify(|view| changes.into_iter().for_each(|change| self.apply(view, change)));
                    self.counted(true);
                }
                changed = next_of(&mut proxies) => {
                    changed?;
                    self.find_proxies(&mut etcd).await?;
                }
                _ = renewal.tick() => {
                    kept.once().await?;
                    renewals += 1;
                    let load = (self.load)();
                    if renewals % LOAD_EVERY == 0 && load != self.this.load {
                        self.this.load = load;
                        etcd.put(&key, self.value(), lease).await?;
                    }
                }
            }
        }
    }

    /// Says where the log ends, and goes.
    async fn say_farewell(&mut self, etcd: &mut Etcd, key: &str, lease: i64) -> Result<(), EtcdError> {
        let mut said = Ok(());
        if let Some(relay) = &self.relay {
            self.this.relay_end = Some(relay.end());
            said = etcd.put(key, self.value(), lease).await;
        }
        etcd.revoke(lease).await.and(said)
    }

    fn value(&self) -> Vec<u8> {
        serde_json::to_vec(&self.this).expect("text and numbers are JSON")
    }

    fn note(&self, view: &mut View, member: Member, is_newcomer: bool) {
        if member.id == self.this.id {
            return;
        }
        if let Some(other) = view.others.get_mut(&member.id) {
            if member.draining && !other.member.draining {
                tracing::info!(id = member.id, name = member.name, "a node drains");
            }
            other.member = member;
        } else if view.others.len() < MEMBERS_MAX {
            tracing::info!(id = member.id, name = member.name, relay = member.relay, "a node has come");
            view.others.insert(member.id.clone(), Other { member, is_newcomer });
        }
    }

    fn apply(&self, view: &mut View, change: Change) {
        match change {
            Change::Put(kv) => {
                if let Some(member) = member_of(&kv) {
                    self.note(view, member, true);
                }
            }
            Change::Deleted(key) => {
                let id = key.rsplit(|byte| *byte == b'/').next().and_then(|id| std::str::from_utf8(id).ok());
                id.into_iter().for_each(|id| view.remove(id));
            }
        }
    }

    fn counted(&self, is_member: bool) {
        let view = self.view.borrow();
        self.metrics.etcd_connected.set(u64::from(is_member));
        self.metrics.members.set(view.others.values().filter(|other| !other.member.draining).count() as u64);
        self.metrics.proxies.set(view.proxies.len() as u64);
    }

    /// What happens to gpush's keys from now on, and those that are there, if anybody cares.
    async fn watch_proxies(&self, etcd: &mut Etcd) -> Result<Option<Changes>, EtcdError> {
        if self.gpush_prefix.is_empty() || !self.role.subscribes() {
            return Ok(None);
        }
        let revision = self.find_proxies(etcd).await?;
        Ok(Some(etcd.watch(&format!("{}/", self.gpush_prefix), revision + 1).await?))
    }

    /// Gets gpush's keys anew, and leaves out those of nodes: what they accept comes by the relay. Nodes are asked for behind
    /// them, so that each of ours that is among the keys is known. Returns the revision of the keys.
    async fn find_proxies(&self, etcd: &mut Etcd) -> Result<i64, EtcdError> {
        let keys = etcd.find(&format!("{}/", self.gpush_prefix)).await?;
        let nodes = etcd.find(&node_key(&self.prefix, "")).await?;
        let ours: Vec<_> = nodes.kvs.iter().filter_map(member_of).map(|member| member.gpush).collect();
        self.view.send_modify(|view| {
            let is_ours = |address: &String| {
                *address == self.this.gpush
                    || ours.contains(address)
                    || view.others.values().any(|other| other.member.gpush == *address)
            };
            let address = |kv: KeyValue| Some((kv.key, String::from_utf8(kv.value.into()).ok()?));
            let proxies = keys.kvs.into_iter().take(MEMBERS_MAX).filter_map(address);
            view.proxies = proxies.filter(|(_, address)| !address.is_empty() && !is_ours(address)).collect();
        });
        self.counted(true);
        Ok(keys.revision)
    }

    /// Puts the address that this machine shows to etcd where one of ours is unspecified.
    ///
    /// # Errors
    /// That does not tell how others reach what they connect to.
    fn fill_in_hosts(&mut self, own: Option<IpAddr>) -> Result<(), EtcdError> {
        let this = &mut self.this;
        for (key, address) in
            [("cluster.relay_advertise", &mut this.relay), ("cluster.gpush_advertise", &mut this.gpush)]
        {
            if !fill_in_host(address, own) {
                return Err(EtcdError::Unadvertised { key, address: address.clone() });
            }
        }
        // These are for people: 0.0.0.0 is what they have set.
        for address in [&mut this.grpc, &mut this.http].into_iter().chain(&mut this.subscribers) {
            fill_in_host(address, own);
        }
        Ok(())
    }
}

/// Puts `own` into an address whose host is unspecified; `false`: it still is, since other machines can't reach `own`, or not that port.
fn fill_in_host(address: &mut String, own: Option<IpAddr>) -> bool {
    let Some(mut parsed) = address.parse::<SocketAddr>().ok().filter(|parsed| parsed.ip().is_unspecified()) else {
        return true;
    };
    // Who listens on [::] is reached by either version, on 0.0.0.0 by one.
    let Some(own) = own.filter(|own| !own.is_loopback() && (own.is_ipv4() || parsed.is_ipv6())) else { return false };
    parsed.set_ip(own);
    *address = parsed.to_string();
    true
}

/// The next changes of a watch, if there is one.
async fn next_of(changes: &mut Option<Changes>) -> Result<(), EtcdError> {
    match changes {
        Some(changes) => changes.next().await.map(drop),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &str, value: &str) -> KeyValue {
        KeyValue { key: key.to_owned().into(), value: value.to_owned().into(), lease: 1 }
    }

    #[test]
    fn a_member_is_read_from_a_newer_version_and_nothing_else_is_one() {
        const ID: &str = "00000000000000af";
        let of = |id: &str| kv(&format!("fanwire/nodes/{id}"), &format!(r#"{{"id":"{id}"}}"#));
        let newer = format!(r#"{{"id":"{ID}","relay":"10.0.0.1:1","connections":3,"color":"red"}}"#);
        let newer = kv(&format!("fanwire/nodes/{ID}"), &newer);
        let member = member_of(&newer).unwrap();
        assert_eq!((&*member.relay, member.load.connections, member.is_source()), ("10.0.0.1:1", 3, true));
        let another = kv("fanwire/nodes/00000000000000b0", &format!(r#"{{"id":"{ID}"}}"#));
        for not_one in [another, kv("fanwire/nodes/", "{}"), kv("x/af", "af")] {
            assert_eq!(member_of(&not_one), None, "{not_one:?}");
        }
        assert!(member_of(&of(ID)).is_some());
        let others = ["af", "00000000000000AF", "000000000000000af", "0000000000000000", "+0000000000000af", "x", ""];
        others
            .iter()
            .for_each(|id| assert_eq!(member_of(&of(id)), None, "{id}: a second spelling would be a second link"));
    }

    #[test]
    fn an_unspecified_host_is_filled_in_with_an_address_that_others_reach() {
        let filled = |address: &str, own: &str| {
            let mut address = address.to_owned();
            fill_in_host(&mut address, own.parse().ok()).then_some(address)
        };
        for (address, own, advertised) in [
            ("0.0.0.0:10069", "10.0.0.7", Some("10.0.0.7:10069")),
            ("[::]:10069", "10.0.0.7", Some("10.0.0.7:10069")),
            ("[::]:10069", "fd00::7", Some("[fd00::7]:10069")),
            ("0.0.0.0:10069", "fd00::7", None),
            ("0.0.0.0:10069", "127.0.0.1", None),
            ("[::]:10069", "::1", None),
            ("0.0.0.0:10069", "unknown", None),
            ("127.0.0.1:10069", "10.0.0.7", Some("127.0.0.1:10069")),
            ("node-1:10069", "127.0.0.1", Some("node-1:10069")),
            ("", "127.0.0.1", Some("")),
        ] {
            assert_eq!(filled(address, own).as_deref(), advertised, "{address}, seen as {own}");
        }
    }

    #[test]
    fn what_a_node_says_of_itself_comes_back_as_it_was() {
        let member = Member {
            id: "7f".into(),
            role: "all".into(),
            load: Load { connections: 1, connections_max: 2, publications: 3 },
            ..Member::default()
        };
        let text = serde_json::to_string(&member).unwrap();
        assert!(text.contains(r#""connections_max":2"#), "{text}");
        assert_eq!(serde_json::from_str::<Member>(&text).unwrap(), member);
    }

    #[test]
    fn of_a_node_that_is_gone_it_is_known_where_it_ended_if_it_said_so() {
        let mut view = View::default();
        for n in 0..=ENDS_MAX as u64 + 1 {
            // The first was killed.
            let relay_end = (n > 0).then_some(n);
            let member = Member { id: n.to_string(), relay_end, ..Member::default() };
            view.others.insert(n.to_string(), Other { member, is_newcomer: true });
            view.remove(&n.to_string());
        }
        view.remove("nobody");
        assert_eq!((view.end_of("0"), view.end_of("1"), view.end_of("2"), view.others.len()), (None, None, Some(2), 0));
    }

    #[test]
    fn who_only_takes_in_or_only_gives_out_is_treated_so() {
        let of = |role: &str| Member { role: role.into(), relay: "h:1".into(), ..Member::default() };
        assert!(of("all").is_source() && of("ingest").is_source() && !of("fanout").is_source());
        assert!(of("all").takes_subscribers() && !of("ingest").takes_subscribers());
        let draining = Member { draining: true, ..of("all") };
        assert!(draining.is_source() && !draining.takes_subscribers(), "it still accepts, and sends its own away");
    }
}
