//! Other machines: who they are, and what they accept.
//!
//! ```text
//!   etcd ◄──► members ──► View ──► links ──pull──► relay of every other node
//!                                    │
//!                                    ▼ Deliver                      ▲ pull
//!   publishers ─► ingest ─► topics ─►│◄─ own subscribers            │
//!                    └────────────────────► Carrier: relay ─► log ──┘
//! ```
//!
//! Every node keeps what its own publishers gave it in a bounded log, and every other node pulls from there; what was pulled is
//! delivered and goes no further. So order is total within one origin and topic, nobody waits for anybody, and what is lost is counted
//! where it is missed. All of it runs on the control core, as tasks; without `cluster.etcd` there is none.
//!
//! How publications travel is a seam of its own: [`Carrier`] for what goes to others beside its way here, and for a stream that gives them
//! to every node, this one among them, [`Cluster::stream`] up and [`InPlace`] down (`nats`), where offsets come from it.

mod batches;
mod door;
mod etcd;
mod links;
mod log;
mod members;
mod nats;
mod pause;
mod relay;
mod unheard;
mod way;

pub use members::{Load, Member};
pub use nats::{Done, subject};

use crate::causes::causes;
use crate::config::{self, Config, Transport};
use crate::frame::Publication;
use crate::ids::Epoch;
use crate::metrics::ClusterMetrics;
use door::Door;
use etcd::{Access, Etcd};
use futures_util::future::BoxFuture;
use links::Links;
use log::Log;
use members::{Membership, Other, Stage, View};
use nats::Nats;
use relay::Relay;
use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};
use unheard::Unheard;

/// What keeps a node from being a member before etcd was asked.
const NOT_ASKED: &str = "etcd has not answered yet";
/// How long that, and nodes that have not answered yet, may keep publishers and balancers waiting.
const SETTLE: Duration = Duration::from_secs(3);
/// How long it may take to tell etcd that this node drains, and once more that it goes.
const TELL: Duration = Duration::from_secs(2);
/// How long pullers may take to read what they have not had yet, at the end.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// What [`Cluster::leave`] and [`Cluster::stop`] take at most, together.
pub const STOP_MS_MAX: u64 = (2 * TELL.as_millis() + LAST_WORDS.as_millis()) as u64;

/// How accepted publications leave for other nodes.
pub trait Carrier: Send + Sync {
    /// Takes what this node's own publishers have just had accepted, in the order of acceptance. Called under the lock of the publish
    /// path: it must be quick, and never wait for another node.
    fn carry(&self, publication: &Publication);
}

/// This node's own subscribers, for what others have accepted.
pub trait Deliver: Send + Sync {
    /// Admits or refuses each, in order.
    fn deliver(&self, publications: Vec<Publication>) -> Delivered;
}

/// This node's own subscribers, for what comes from a stream that all nodes read.
pub trait InPlace: Send + Sync {
    /// The stream has this epoch, and what comes from now on is behind `after`.
    fn begin(&self, epoch: Epoch, after: u64);
    /// Admits or refuses each, in order; each with its place in the stream.
    fn deliver_in_place(&self, publications: Vec<(u64, Publication)>) -> Delivered;
}

/// What became of publications of another node.
pub struct Delivered {
    /// Refused at once.
    pub lost: Lost,
    /// How many wait for room.
    pub waits: usize,
    /// Those that wait for room, if any; completes with what was refused of them in the end.
    pub waiting: Option<BoxFuture<'static, Lost>>,
}

/// How many publications of another node were refused.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lost {
    /// For want of room, or too large.
    pub refused: usize,
    /// Since this node is on its way out.
    pub draining: usize,
}

/// Takes a publication for a stream; the second is told what became of it, later and on the control core.
pub type Upward = Box<dyn Fn(&Publication, Done) + Send>;

/// Says of the value of an `authorization` whether it lets its bearer in.
pub type Allows = dyn Fn(Option<&[u8]>) -> bool + Send + Sync;

/// What nodes show one another.
#[derive(Clone)]
pub struct Secrets {
    /// Whether an `authorization` lets its bearer in.
    pub allows: Arc<Allows>,
    /// The token that this node shows.
    pub shown: Arc<dyn Fn() -> Option<String> + Send + Sync>,
}

/// Why this node can't be part of a cluster as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Correct the path, or the file.
    #[error("{key} {file}: {error}; correct the path, or let this user read the file")]
    File {
        /// The setting.
        key: &'static str,
        /// Its value.
        file: String,
        /// Why.
        error: io::Error,
    },
    /// Have the file made again.
    #[error(
        "cluster.nats_credentials_file {file}: {error}; it must hold a JWT and its seed, each between lines of dashes, as `nsc generate creds` writes it"
    )]
    Credentials {
        /// The setting's value.
        file: String,
        /// Why.
        error: io::Error,
    },
    /// Change the address.
    #[error("cluster.relay_address = {address}: {error}; choose another address, or stop who listens there")]
    Bind {
        /// The setting's value.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// Look at the certificates.
    #[error("the certificates of cluster.relay_* can't be used: {0}")]
    Certificates(#[from] tonic::transport::Error),
    /// No thread.
    #[error("no thread for NATS: {0}")]
    Thread(io::Error),
    /// No randomness.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
}

/// The files that `[cluster]` names, read.
struct Files {
    etcd: Access,
    nats: Option<nats::Access>,
    relay: Option<(ServerTlsConfig, ClientTlsConfig)>,
}

impl Files {
    fn read(settings: &config::Cluster) -> Result<Files, ClusterError> {
        let read = |key: &'static str, file: &String| {
            std::fs::read(file).map_err(|error| ClusterError::File { key, file: file.clone(), error })
        };
        let given = |file: &String| !file.is_empty();
        let identity = |key, certificate: &String, private: &String| {
            Ok::<_, ClusterError>(Identity::from_pem(read(key, certificate)?, read(key, private)?))
        };
        let mut tls = ClientTlsConfig::new();
        if given(&settings.etcd_ca_file) {
            let ca = read("cluster.etcd_ca_file", &settings.etcd_ca_file)?;
            tls = tls.ca_certificate(Certificate::from_pem(ca));
        } else {
            tls = tls.with_native_roots();
        }
        if given(&settings.etcd_certificate_file) {
            let key = "cluster.etcd_certificate_file";
            tls = tls.identity(identity(key, &settings.etcd_certificate_file, &settings.etcd_certificate_key_file)?);
        }
        let user = if given(&settings.etcd_user) {
            let password = read("cluster.etcd_password_file", &settings.etcd_password_file)?;
            let password = String::from_utf8_lossy(&password).trim().to_owned();
            Some((settings.etcd_user.clone(), password))
        } else {
            None
        };
        let relay = if given(&settings.relay_certificate_file) {
            let key = "cluster.relay_certificate_file";
            let own = identity(key, &settings.relay_certificate_file, &settings.relay_certificate_key_file)?;
            let ca = Certificate::from_pem(read("cluster.relay_ca_file", &settings.relay_ca_file)?);
            let server = ServerTlsConfig::new().identity(own.clone()).client_ca_root(ca.clone());
            // Says now what serving would say later.
            tonic::transport::Server::builder().tls_config(server.clone())?;
            Some((server, ClientTlsConfig::new().identity(own).ca_certificate(ca)))
        } else {
            None
        };
        let probe = members::node_key(&settings.prefix, "");
        let nats = settings.transport == Transport::Nats;
        let nats = nats.then(|| nats::access(settings, &|key, file| read(key, file))).transpose()?;
        Ok(Files { nats, etcd: Access { endpoints: settings.etcd.clone(), user, tls, probe }, relay })
    }
}

/// Reads the files that `[cluster]` names, as a gateway will.
///
/// # Errors
/// One of them can't be used.
pub fn check_files(settings: &config::Cluster) -> Result<(), ClusterError> {
    Files::read(settings).map(drop)
}

/// A node that has what it needs, and has told nobody yet.
pub struct Prepared {
    settings: config::Cluster,
    files: Files,
    listener: Option<std::net::TcpListener>,
    nats: Option<nats::Thread>,
    epoch: u64,
    started: Instant,
    /// Messages of other nodes in batches that wait for room.
    waiting_max: u32,
}

/// Where this node listens.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// gRPC, if it publishes.
    pub grpc: Option<SocketAddr>,
    /// HTTP.
    pub http: Option<SocketAddr>,
    /// Subscribers.
    pub subscribers: Vec<SocketAddr>,
}

/// What the rest of the gateway gives to its part of the cluster.
pub struct Surroundings {
    /// Where it listens.
    pub addresses: Addresses,
    /// Its subscribers.
    pub deliver: Arc<dyn Deliver>,
    /// The same, for a stream.
    pub in_place: Arc<dyn InPlace>,
    /// What it has to do now.
    pub load: Arc<dyn Fn() -> Load + Send + Sync>,
    /// What nodes show one another.
    pub secrets: Secrets,
    /// Where it counts.
    pub metrics: Arc<ClusterMetrics>,
}

impl Prepared {
    /// Reads the files and takes the relay's port; `None` without `cluster.etcd` and `cluster.nats`.
    ///
    /// # Errors
    /// A file or the port can't be had.
    pub fn new(config: &Config) -> Result<Option<Prepared>, ClusterError> {
        let settings = config.cluster.clone();
        if !settings.is_on() {
            return Ok(None);
        }
        let files = Files::read(&settings)?;
        let listener = settings.is_relay_open().then(|| {
            let address = &settings.relay_address;
            std::net::TcpListener::bind(address).map_err(|error| ClusterError::Bind { address: address.clone(), error })
        });
        let epoch = getrandom::u64()?.max(1);
        // The other half is for publishers of this node's own.
        let waiting_max = u32::try_from(config.publish.publish_waiting_max / 2).unwrap_or(u32::MAX).max(1);
        let nats = files.nats.is_some().then(nats::Thread::start).transpose().map_err(ClusterError::Thread)?;
        let (listener, started) = (listener.transpose()?, Instant::now());
        Ok(Some(Prepared { files, listener, nats, epoch, started, waiting_max, settings }))
    }

    /// Where other nodes pull from this one.
    pub fn relay_address(&self) -> Option<SocketAddr> {
        self.listener.as_ref()?.local_addr().ok()
    }

    /// Begins to be a member, to give and to pull, as tasks of the current runtime.
    ///
    /// # Errors
    /// The relay's port could not be registered with the runtime.
    pub fn start(self, around: Surroundings) -> io::Result<Cluster> {
        let relay_address = self.relay_address();
        let Prepared { settings, files, listener, nats, epoch, started, waiting_max } = self;
        let Surroundings { addresses, deliver, in_place, load, secrets, metrics } = around;
        let id = members::id_of(epoch);
        let trouble = settings.has_members().then(|| NOT_ASKED.to_owned());
        let view = watch::Sender::new(View { trouble, ..View::default() });
        let (staging, stage) = watch::channel(Stage::Serving);
        let (stopping, stop) = watch::channel(false);
        let (server_tls, client_tls) = files.relay.unzip();

        let mut relay = None;
        let mut serving = None;
        if let Some(listener) = listener {
            let log = Log::new(epoch, settings.relay_buffer, settings.relay_buffer_bytes_max);
            let giving = Arc::new(Relay::new(log, metrics.clone()));
            let served = giving.clone().serve(Door::new(listener)?, server_tls, secrets.clone(), stop);
            serving = Some(tokio::spawn(async move {
                if let Err(error) = served.await {
                    tracing::error!("the relay ended: {}", causes(&error));
                }
            }));
            relay = Some(giving);
        }
        let shown = |address: Option<SocketAddr>| address.map_or_else(String::new, |address| address.to_string());
        let advertised = |setting: &String, address| {
            if setting.is_empty() { shown(address) } else { setting.clone() }
        };
        let is_gpush = !settings.gpush_prefix.is_empty() && addresses.grpc.is_some();
        let member = Member {
            id: id.clone(),
            name: if settings.name.is_empty() { host_name() } else { settings.name.clone() },
            version: env!("CARGO_PKG_VERSION").into(),
            role: serde_json::to_value(settings.role)
                .map_or_else(|_| String::new(), |role| role.as_str().unwrap_or_default().to_owned()),
            relay: if relay.is_some() { advertised(&settings.relay_advertise, relay_address) } else { String::new() },
            grpc: shown(addresses.grpc),
            http: shown(addresses.http),
            subscribers: addresses.subscribers.iter().map(SocketAddr::to_string).collect(),
            gpush: if is_gpush { advertised(&settings.gpush_advertise, addresses.grpc) } else { String::new() },
            started_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            draining: false,
            relay_end: None,
            load: load(),
        };
        let membership = Membership {
            access: files.etcd,
            prefix: settings.prefix.clone(),
            gpush_prefix: settings.gpush_prefix.clone(),
            role: settings.role,
            this: member,
            load,
            relay: relay.clone(),
            view: view.clone(),
            stage,
            metrics: metrics.clone(),
        };
        let membership = settings.has_members().then(|| tokio::spawn(membership.run()));
        let nats = nats
            .zip(files.nats)
            .map(|(thread, access)| Nats::start(thread, access, &settings, waiting_max, in_place, metrics.clone()));
        let (mut asked, unheard) = (None, Unheard::default());
        if settings.has_members() && settings.role.subscribes() && settings.transport == Transport::Relay {
            let (this, view, unheard, asking) = (id, view.subscribe(), unheard.clone(), watch::Sender::default());
            asked = Some(asking.subscribe());
            let links = Links {
                this,
                started,
                view,
                asked: asking,
                deliver,
                waiting_max,
                tls: client_tls,
                secrets,
                unheard,
                metrics,
            };
            tokio::spawn(links.run());
        }
        Ok(Cluster { relay, nats: nats.map(Arc::new), view, asked, unheard, staging, stopping, membership, serving })
    }
}

/// This node's part of a cluster, at work.
pub struct Cluster {
    relay: Option<Arc<Relay>>,
    nats: Option<Arc<Nats>>,
    /// Held to the end: links go on for as long as there is a view.
    view: watch::Sender<View>,
    /// Sources that have answered once, or have failed once, if there are links at all.
    asked: Option<watch::Receiver<HashSet<String>>>,
    unheard: Unheard,
    staging: watch::Sender<Stage>,
    stopping: watch::Sender<bool>,
    membership: Option<JoinHandle<()>>,
    serving: Option<JoinHandle<()>>,
}

impl Cluster {
    /// What is to be given every accepted publication, if they travel at all.
    pub fn carrier(&self) -> Option<Arc<dyn Carrier>> {
        self.relay.clone().map(|relay| relay as Arc<dyn Carrier>)
    }

    /// Where publications go, if there is a stream that gives them to all nodes: the last argument is told what became of one.
    pub fn stream(&self) -> Option<Upward> {
        let nats = self.nats.clone()?;
        Some(Box::new(move |publication, done| nats.publish(publication, done)))
    }

    /// Completes when this node is a member, or each server of etcd's failed it once: what it accepts before, no other node could know of.
    /// And when each node that is known then has answered, or failed it once: whoever is sent here earlier, and has heard on another node what
    /// was accepted since this one started, would hear that again.
    pub async fn settled(&mut self) {
        let mut viewed = self.view.subscribe();
        let asked = &mut self.asked;
        let is_settled = async {
            let view = viewed.wait_for(|view| view.trouble.as_deref() != Some(NOT_ASKED)).await;
            let sources = view.map(|view| view.sources().map(|(id, _)| id.clone()).collect::<Vec<_>>());
            if let (Some(asked), Ok(sources)) = (asked, sources) {
                drop(asked.wait_for(|asked| sources.iter().all(|id| asked.contains(id))).await);
            }
        };
        let is_streaming = async {
            if let Some(nats) = &self.nats {
                nats.settled().await;
            }
        };
        if tokio::time::timeout(SETTLE, async { tokio::join!(is_settled, is_streaming) }).await.is_err() {
            tracing::warn!(
                "etcd, NATS or a node that is known has not answered within {} s: serving without it",
                SETTLE.as_secs()
            );
        }
    }

    /// Whether what is delivered comes from a stream.
    pub fn has_stream(&self) -> bool {
        self.nats.is_some()
    }

    /// Says in a sentence what is not as it should be, though this node serves.
    pub fn notes(&self) -> Notes {
        let nats = self.nats.as_ref().map(|nats| (nats.trouble(), nats.put_off()));
        Notes { view: self.view.subscribe(), unheard: self.unheard.clone(), nats }
    }

    /// Tells the others that this node drains, so that nobody is sent here; pulling and being pulled from go on. Returns whether others
    /// remain that take subscribers.
    pub async fn leave(&self) -> bool {
        let others = self.view.borrow().others.values().any(|other| other.member.takes_subscribers());
        self.staging.send_replace(Stage::Draining);
        if self.membership.is_some() {
            // Who is no member has nobody to tell.
            let mut view = self.view.subscribe();
            let is_told = view.wait_for(|view| view.is_drain_told || view.trouble.is_some());
            if tokio::time::timeout(TELL, is_told).await.is_err() {
                tracing::warn!("etcd takes too long to hear that this node drains: the others don't know it yet");
            }
        }
        others
    }

    /// No longer a member from now on. Gives those who pull what they have not had yet, waits for what is on its way into the stream, and
    /// ends. Nothing is accepted any more.
    pub async fn stop(self) {
        self.staging.send_replace(Stage::Ending);
        if let Some(mut membership) = self.membership {
            if !self.view.borrow().has_joined {
                // Never a member, so that there is nothing to leave and nobody to wait for.
                membership.abort();
            } else if tokio::time::timeout(TELL, &mut membership).await.is_err() {
                membership.abort();
                tracing::warn!("leaving the cluster took too long: the others find out when the lease ends");
            }
        }
        self.stopping.send_replace(true);
        if let Some(serving) = self.serving {
            let _ = tokio::time::timeout(LAST_WORDS, serving).await;
        }
        if let Some(relay) = self.relay {
            let view = self.view.borrow();
            for (id, Other { member, .. }) in view.others.iter().filter(|(_, other)| other.member.takes_subscribers()) {
                if let Some(messages @ 1..) = relay.owes(id) {
                    tracing::warn!(
                        id,
                        name = member.name,
                        messages,
                        "a node has not had all that was accepted here: it was cut off, or too slow, for longer than the drain lasted"
                    );
                }
            }
        }
        if let Some(nats) = self.nats {
            nats.stop(LAST_WORDS).await;
        }
    }
}

/// What is the matter with NATS, and since when.
type Trouble = watch::Receiver<Option<(String, std::time::Instant)>>;

/// See [`Cluster::notes`].
#[derive(Clone)]
pub struct Notes {
    view: watch::Receiver<View>,
    unheard: Unheard,
    nats: Option<(Trouble, watch::Receiver<Option<String>>)>,
}

impl Notes {
    /// A sentence for each; none, if all is well.
    pub fn get(&self) -> Vec<String> {
        let member = self.view.borrow().trouble.as_ref().map(|text| format!("not a member of the cluster: {text}"));
        let nats = self.nats.as_ref().and_then(|(trouble, put_off)| {
            let Some((text, since)) = &*trouble.borrow() else {
                let put_off = put_off.borrow();
                return put_off.as_ref().map(|why| format!("the stream did not take what was published last: {why}"));
            };
            let seconds = since.elapsed().as_secs();
            Some(format!("no stream for {seconds} s, nothing is published or delivered: {text}"))
        });
        member.into_iter().chain(self.unheard.note(Instant::now())).chain(nats).collect()
    }
}

/// Every member of the cluster that `settings` name, as etcd knows them now.
///
/// # Errors
/// A sentence: a file can't be read, or no server of etcd's answers.
pub async fn nodes(settings: &config::Cluster) -> Result<Vec<Member>, String> {
    let access = Files::read(settings).map_err(|error| error.to_string())?.etcd;
    let mut etcd = Etcd::connect(&access, 0).await.map_err(|error| error.causes())?;
    let found = etcd.find(&members::node_key(&settings.prefix, "")).await;
    let found = found.map_err(|error| format!("etcd at {}: {}", etcd.server, error.causes()))?;
    Ok(found.kvs.iter().filter_map(members::member_of).collect())
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().chars().take(64).collect()
}

/// Completes when told, or when nobody can tell any more.
async fn told(mut signal: watch::Receiver<bool>) {
    drop(signal.wait_for(|told| *told).await);
}
