//! etcd's v3 interface, as much of it as members need: one connection to one of its servers, every call with a deadline.

use super::way::Way;
use crate::causes::causes;
use crate::proto::etcd::auth_client::AuthClient;
use crate::proto::etcd::kv_client::KvClient;
use crate::proto::etcd::lease_client::LeaseClient;
use crate::proto::etcd::watch_client::WatchClient;
use crate::proto::etcd::{
    AuthenticateRequest, Event, KeyValue, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseRevokeRequest, PutRequest, RangeRequest, WatchCreateRequest, WatchRequest, WatchResponse, event::EventType,
    watch_request::RequestUnion,
};
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};

/// How long etcd may take for a connection, and for an answer.
const DEADLINE: Duration = Duration::from_secs(2);
/// A server that has said nothing for so long gets company: the next is asked beside it. An etcd in the next room answers within
/// milliseconds, so that a healthy cluster has one connection of each node; and of seven servers the last is asked after 1.5 s, half of
/// what publishers wait for.
const HESITATION: Duration = Duration::from_millis(250);

/// Why etcd did not do what it was asked. Whoever asked begins again, with another server.
#[derive(Debug, thiserror::Error)]
pub(super) enum EtcdError {
    #[error("{0}")]
    Unreachable(#[from] tonic::transport::Error),
    #[error("{} ({:?})", .0.message(), .0.code())]
    Refused(#[from] Status),
    #[error("no answer within {} ms", DEADLINE.as_millis())]
    Late,
    #[error("it ended the stream{0}")]
    Ended(String),
    #[error("{0}")]
    NoServer(String),
    /// Say it.
    #[error("what it sees of this machine does not tell how others reach {address}: set {key}")]
    Unadvertised { key: &'static str, address: String },
}

impl EtcdError {
    /// With what is behind it: tonic's own text is only "transport error".
    pub(super) fn causes(&self) -> String {
        causes(self)
    }
}

/// How to speak to etcd.
#[derive(Clone)]
pub(super) struct Access {
    /// Its servers.
    pub(super) endpoints: Vec<String>,
    /// Name and password.
    pub(super) user: Option<(String, String)>,
    /// For those of the endpoints that are https.
    pub(super) tls: ClientTlsConfig,
    /// A key that this user may read, whether it is there or not.
    pub(super) probe: String,
}

/// Puts into each call who calls, and that a server without a leader must not keep it waiting.
#[derive(Clone)]
struct Caller(Option<MetadataValue<Ascii>>);

impl Interceptor for Caller {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("token", token.clone());
        }
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        Ok(request)
    }
}

type Connection = InterceptedService<Channel, Caller>;

/// A connection to one server.
pub(super) struct Etcd {
    /// Which.
    pub(super) server: String,
    /// This machine's own address of the connection to it.
    pub(super) own_address: Option<IpAddr>,
    kv: KvClient<Connection>,
    lease: LeaseClient<Connection>,
    watch: WatchClient<Connection>,
}

/// All keys with a prefix, and the revision at which they were so.
pub(super) struct Found {
    pub(super) revision: i64,
    pub(super) kvs: Vec<KeyValue>,
}

/// What happened to a key.
#[derive(Debug, PartialEq)]
pub(super) enum Change {
    Put(KeyValue),
    Deleted(Bytes),
}

async fn soon<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, EtcdError> {
    Ok(tokio::time::timeout(DEADLINE, call).await.map_err(|_| EtcdError::Late)??)
}

impl Etcd {
    /// Connects to the first server that answers. The `attempt`-th is asked first, counted round and round; the next one once it has
    /// failed, or has hesitated.
    ///
    /// # Errors
    /// None of them answers; says why of each.
    pub(super) async fn connect(access: &Access, attempt: usize) -> Result<Etcd, EtcdError> {
        let count = access.endpoints.len();
        let mut next = (0..count).map(|step| &*access.endpoints[(attempt + step) % count]);
        let mut asked = FuturesUnordered::new();
        let mut said = Vec::new();
        loop {
            asked.extend(next.next().map(|server| async move { (server, Etcd::at(access, server).await) }));
            let hesitates = async {
                match next.len() {
                    0 => std::future::pending().await,
                    _ => tokio::time::sleep(HESITATION).await,
                }
            };
            tokio::select! {
                answer = asked.next() => match answer {
                    Some((_, Ok(etcd))) => return Ok(etcd),
                    Some((server, Err(error))) => said.push(format!("etcd at {server}: {}", error.causes())),
                    None => return Err(EtcdError::NoServer(said.join("; "))),
                },
                () = hesitates => {}
            }
        }
    }

    /// Connects to `address`, and has it answer: a port that is open promises nothing, and a server without a leader can't do anything.
    async fn at(access: &Access, address: &str) -> Result<Etcd, EtcdError> {
        let mut endpoint = Endpoint::from_shared(address.to_owned())?;
        if address.starts_with("https://") {
            endpoint = endpoint.tls_config(access.tls.clone())?;
        }
        let way = Way::new(DEADLINE);
        // Neither looking up the name nor the handshake of TLS is part of the way's own deadline.
        let connecting = endpoint.connect_with_connector(way.clone());
        let channel = tokio::time::timeout(DEADLINE, connecting).await.map_err(|_| EtcdError::Late)??;
        let token = match &access.user {
            None => None,
            Some((name, password)) => {
                let request = AuthenticateRequest { name: name.clone(), password: password.clone() };
                match soon(AuthClient::new(channel.clone()).authenticate(request)).await {
                    Ok(answer) => {
                        let token = answer.into_inner().token.parse();
                        Some(token.map_err(|_| EtcdError::Ended(": its token can't stand in a header".into()))?)
                    }
                    // As etcd's own clients do: where nobody needs a name, none is shown.
                    Err(EtcdError::Refused(status)) if status.code() == Code::FailedPrecondition => None,
                    Err(error) => return Err(error),
                }
            }
        };
        let caller = Caller(token);
        let mut etcd = Etcd {
            server: address.to_owned(),
            own_address: way.own_address(),
            kv: KvClient::with_interceptor(channel.clone(), caller.clone()),
            lease: LeaseClient::with_interceptor(channel.clone(), caller.clone()),
            watch: WatchClient::with_interceptor(channel, caller),
        };
        soon(etcd.kv.range(RangeRequest { key: access.probe.clone().into(), range_end: Bytes::new() })).await?;
        Ok(etcd)
    }

    /// Every key that begins with `prefix`.
    pub(super) async fn find(&mut self, prefix: &str) -> Result<Found, EtcdError> {
        let request = RangeRequest { key: prefix.to_owned().into(), range_end: end_of(prefix) };
        let found = soon(self.kv.range(request)).await?.into_inner();
        Ok(Found { revision: found.header.unwrap_or_default().revision, kvs: found.kvs })
    }

    /// Sets a key that lives as long as `lease`.
    pub(super) async fn put(&mut self, key: &str, value: impl Into<Bytes>, lease: i64) -> Result<(), EtcdError> {
        soon(self.kv.put(PutRequest { key: key.to_owned().into(), value: value.into(), lease })).await?;
        Ok(())
    }

    /// A new lease.
    pub(super) async fn grant(&mut self, ttl_s: i64) -> Result<i64, EtcdError> {
        Ok(soon(self.lease.lease_grant(LeaseGrantRequest { ttl: ttl_s })).await?.into_inner().id)
    }

    /// Ends a lease, and the keys under it.
    pub(super) async fn revoke(&mut self, id: i64) -> Result<(), EtcdError> {
        soon(self.lease.lease_revoke(LeaseRevokeRequest { id })).await?;
        Ok(())
    }

    /// Begins to keep a lease alive: see [`KeptAlive::once`].
    pub(super) async fn keep_alive(&mut self, id: i64) -> Result<KeptAlive, EtcdError> {
        let (requests, stream) = mpsc::channel(1);
        requests.try_send(LeaseKeepAliveRequest { id }).expect("an empty channel has room");
        let answers = soon(self.lease.lease_keep_alive(ReceiverStream::new(stream))).await?.into_inner();
        let mut kept = KeptAlive { id, requests, answers };
        kept.answered().await?;
        Ok(kept)
    }

    /// What happens to keys that begin with `prefix`, from `revision` on.
    pub(super) async fn watch(&mut self, prefix: &str, revision: i64) -> Result<Changes, EtcdError> {
        let create =
            WatchCreateRequest { key: prefix.to_owned().into(), range_end: end_of(prefix), start_revision: revision };
        let (requests, stream) = mpsc::channel(1);
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.try_send(request).expect("an empty channel has room");
        let responses = soon(self.watch.watch(ReceiverStream::new(stream))).await?.into_inner();
        Ok(Changes { _open: requests, responses })
    }
}

/// The smallest key above all that begin with `prefix`.
fn end_of(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    // ASCII, so that the last byte has a next one.
    *end.last_mut().expect("a prefix is not empty") += 1;
    end.into()
}

/// A lease on its way.
pub(super) struct KeptAlive {
    id: i64,
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

impl KeptAlive {
    /// Gives the lease another life of its length.
    pub(super) async fn once(&mut self) -> Result<(), EtcdError> {
        let request = LeaseKeepAliveRequest { id: self.id };
        self.requests.try_send(request).map_err(|_| EtcdError::Ended(" of keep-alives".into()))?;
        self.answered().await
    }

    async fn answered(&mut self) -> Result<(), EtcdError> {
        match soon(self.answers.message()).await? {
            Some(answer) if answer.ttl > 0 => Ok(()),
            Some(_) => Err(EtcdError::Ended(": the lease is over".into())),
            None => Err(EtcdError::Ended(" of keep-alives".into())),
        }
    }
}

/// What happens to keys.
pub(super) struct Changes {
    /// The stream lasts as long as its asking half.
    _open: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Changes {
    /// The next changes, in their order; maybe none.
    ///
    /// # Errors
    /// The stream is over, or what it would say next is compacted away: get everything again.
    pub(super) async fn next(&mut self) -> Result<Vec<Change>, EtcdError> {
        let response = self.responses.message().await?.ok_or_else(|| EtcdError::Ended(" of changes".into()))?;
        if response.canceled || response.compact_revision != 0 {
            let (reason, compacted) = (response.cancel_reason, response.compact_revision);
            return Err(EtcdError::Ended(format!(" of changes: {reason} (compacted up to {compacted})")));
        }
        let change = |event: Event| {
            let is_delete = event.r#type() == EventType::Delete;
            let kv = event.kv?;
            Some(if is_delete { Change::Deleted(kv.key) } else { Change::Put(kv) })
        };
        Ok(response.events.into_iter().filter_map(change).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_behind_everything_with_its_prefix() {
        assert_eq!(&*end_of("fanwire/nodes/"), b"fanwire/nodes0");
        assert_eq!(&*end_of("a"), b"b");
    }
}
