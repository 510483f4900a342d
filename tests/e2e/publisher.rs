//! gRPC by the clients that tonic generates, behind blocking calls.

use crate::gateway::Gateway;
use bytes::Bytes;
use fanwire::proto::order::{Data, proxy_client::ProxyClient};
use fanwire::proto::v1::publisher_client::PublisherClient;
use fanwire::proto::v1::{PublishBatch, PublishBatchResult, PublishRequest, PublishResponse};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

/// One channel to a gateway.
pub struct Publisher {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
    token: Option<String>,
}

/// One message.
pub fn message(topic: &str, data: impl Into<Bytes>) -> PublishRequest {
    PublishRequest { topic: topic.into(), data: data.into(), ..Default::default() }
}

impl Publisher {
    /// Connects.
    pub fn new(gateway: &Gateway) -> Publisher {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", gateway.grpc)).unwrap();
        let channel = runtime.block_on(endpoint.connect()).expect("the gRPC port answers");
        Publisher { runtime, channel, token: None }
    }

    /// Sends `token` with every call from now on.
    pub fn with_token(mut self, token: &str) -> Publisher {
        self.token = Some(token.into());
        self
    }

    /// The channel, for services of others.
    pub fn block_on<T>(&self, call: impl AsyncFnOnce(Channel) -> T) -> T {
        self.runtime.block_on(call(self.channel.clone()))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        request
    }

    /// `fanwire.v1.Publisher/Publish`.
    pub fn publish(&self, topic: &str, data: impl Into<Bytes>) -> Result<PublishResponse, Status> {
        let request = self.request(message(topic, data));
        self.block_on(async |channel| PublisherClient::new(channel).publish(request).await)
            .map(tonic::Response::into_inner)
    }

    /// `order.Proxy/PushData`.
    pub fn push_data(&self, uid: &str, topic: &str, data: impl Into<Bytes>) -> Result<(), Status> {
        let request = self.request(Data { uid: uid.into(), topic: topic.into(), data: data.into() });
        self.block_on(async |channel| ProxyClient::new(channel).push_data(request).await).map(drop)
    }

    /// `fanwire.v1.Publisher/PublishStream`: opens a stream.
    pub fn stream(&self) -> Result<Stream<'_>, Status> {
        let (batches, receiver) = tokio::sync::mpsc::channel(4);
        let request = self.request(tokio_stream::wrappers::ReceiverStream::new(receiver));
        let results =
            self.block_on(async |channel| PublisherClient::new(channel).publish_stream(request).await)?.into_inner();
        Ok(Stream { publisher: self, batches, results, id: 0 })
    }
}

/// An open `PublishStream`.
pub struct Stream<'a> {
    publisher: &'a Publisher,
    batches: tokio::sync::mpsc::Sender<PublishBatch>,
    results: Streaming<PublishBatchResult>,
    id: u64,
}

impl Stream<'_> {
    /// Sends one batch and awaits its result.
    pub fn batch(&mut self, messages: Vec<PublishRequest>) -> Result<PublishBatchResult, Status> {
        self.id += 1;
        let (id, count) = (self.id, messages.len());
        let result = self.publisher.runtime.block_on(async {
            let sent = self.batches.send(PublishBatch { messages, id }).await;
            sent.map_err(|_| Status::new(Code::Cancelled, "the gateway ended the stream"))?;
            self.results.message().await?.ok_or_else(|| Status::new(Code::Cancelled, "the gateway ended the stream"))
        })?;
        assert_eq!((result.id, result.results.len()), (id, count), "one result for each message, in order");
        Ok(result)
    }
}
