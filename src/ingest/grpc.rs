//! gRPC: gpush's `order.Proxy`, our own `fanwire.v1.Publisher`, health and reflection.
//!
//! `PublishStream` is the fast way in: a batch is admitted within the poll that decoded it, no task and no await per message.
//!
//! ```text
//! batches ──► admit each message ──► pending (≤ BATCHES_PENDING_MAX) ──► results, in the order of the batches
//!             │                      │
//!             └ the next is read     └ complete once its last waiting message has its room or its refusal
//!               only while the oldest still waits
//! ```

use super::push::{Problem, guarded, guarded_now, push};
use super::{Admission, Control, Tokens, Waiting};
use crate::config::Publish;
use crate::frame::Publication;
use crate::proto::DESCRIPTORS;
use crate::proto::order::proxy_server::{Proxy, ProxyServer};
use crate::proto::order::{Data, Empty};
use crate::proto::v1::publisher_server::{Publisher, PublisherServer};
use crate::proto::v1::{
    PublishBatch, PublishBatchResult, PublishError, PublishRequest, PublishResponse, PublishResult,
};
use crate::topics::{Ack, Refusal};
use bytes::Bytes;
use futures_util::Stream;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tonic::service::{Interceptor, Routes, interceptor::InterceptedService};
use tonic::{Request, Response, Status, Streaming};
use tonic_health::server::HealthReporter;

/// Batches of one stream that wait for room at once; then no more are read, and HTTP/2 flow control reaches the publisher.
const BATCHES_PENDING_MAX: usize = 16;

/// Largest request of health and reflection, which ask for no token: names of services and symbols.
const OPEN_REQUEST_BYTES_MAX: usize = 4096;

/// Every service, and what tells health watchers about a drain.
pub(super) fn routes(control: &Arc<Control>, tokens: Arc<Tokens>, publish: &Publish) -> (Routes, HealthReporter) {
    let bytes_max = publish.request_bytes_max;
    let token = Token { control: control.clone(), tokens };
    let proxy = ProxyServer::new(ProxyService { control: control.clone() }).max_decoding_message_size(bytes_max);
    let publisher = PublisherService { control: control.clone(), batch_messages_max: publish.batch_messages_max };
    let publisher = PublisherServer::new(publisher).max_decoding_message_size(bytes_max);
    let (reporter, health) = tonic_health::server::health_reporter();

    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let ours = "our own descriptors are well formed";
    let routes = Routes::new(InterceptedService::new(proxy, token.clone()))
        .add_service(InterceptedService::new(publisher, token))
        .add_service(health.max_decoding_message_size(OPEN_REQUEST_BYTES_MAX))
        .add_service(reflection().build_v1().expect(ours).max_decoding_message_size(OPEN_REQUEST_BYTES_MAX))
        .add_service(reflection().build_v1alpha().expect(ours).max_decoding_message_size(OPEN_REQUEST_BYTES_MAX));
    (routes, reporter)
}

/// Says to health watchers that we serve, and when a drain begins that we don't. Ends then.
pub(super) async fn report_health(reporter: HealthReporter, draining: impl Future<Output = ()>) {
    reporter.set_serving::<ProxyServer<ProxyService>>().await;
    reporter.set_serving::<PublisherServer<PublisherService>>().await;
    draining.await;
    reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    reporter.set_not_serving::<ProxyServer<ProxyService>>().await;
    reporter.set_not_serving::<PublisherServer<PublisherService>>().await;
}

/// Asks for a token, once a call.
#[derive(Clone)]
struct Token {
    control: Arc<Control>,
    tokens: Arc<Tokens>,
}

impl Interceptor for Token {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        if self.tokens.allow(request.metadata().get("authorization").map(|v| v.as_bytes())) {
            return Ok(request);
        }
        self.control.metrics().refused_unauthorized.add(1);
        Err(Problem::unauthorized().into())
    }
}

pub(super) struct ProxyService {
    control: Arc<Control>,
}

#[tonic::async_trait]
impl Proxy for ProxyService {
    async fn push_data(&self, request: Request<Data>) -> Result<Response<Empty>, Status> {
        let Data { uid, topic, data } = request.into_inner();
        guarded(self.control.metrics(), push(&self.control, &uid, &topic, data)).await?;
        Ok(Response::new(Empty {}))
    }
}

pub(super) struct PublisherService {
    control: Arc<Control>,
    batch_messages_max: usize,
}

#[tonic::async_trait]
impl Publisher for PublisherService {
    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        let PublishRequest { topic, data } = request.into_inner();
        let publication = Publication::new(topic, data);
        let ack = guarded(self.control.metrics(), async { Ok(self.control.publish(publication).await?) }).await?;
        Ok(Response::new(PublishResponse { offset: ack.offset.0, epoch: ack.epoch.0 }))
    }

    type PublishStreamStream = Answers;

    async fn publish_stream(&self, request: Request<Streaming<PublishBatch>>) -> Result<Response<Answers>, Status> {
        Ok(Response::new(Answers {
            batches: request.into_inner(),
            draining: Box::pin(self.control.drain_begun()),
            control: self.control.clone(),
            batch_messages_max: self.batch_messages_max,
            topic: "".into(),
            pending: VecDeque::new(),
            end: None,
        }))
    }
}

/// The answering half of a `PublishStream`, which pulls the asking half.
pub(super) struct Answers {
    batches: Streaming<PublishBatch>,
    draining: Pin<Box<dyn Future<Output = ()> + Send>>,
    control: Arc<Control>,
    batch_messages_max: usize,
    /// The last message's: publishers keep to one topic for long, and so share its name.
    topic: Arc<str>,
    pending: VecDeque<Pending>,
    /// No batch is read any more; what the stream ends with once `pending` is empty.
    end: Option<Result<(), Status>>,
}

/// A batch with messages that wait for room, in their order.
struct Pending {
    result: PublishBatchResult,
    waiting: VecDeque<(usize, Waiting)>,
}

impl Pending {
    fn poll_complete(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some((i, waiting)) = self.waiting.front_mut() {
            self.result.results[*i] = result(ready!(Pin::new(waiting).poll(cx)));
            self.waiting.pop_front();
        }
        Poll::Ready(())
    }
}

impl Answers {
    fn admit(&mut self, batch: PublishBatch) -> Result<Pending, Problem> {
        let messages = batch.messages.len();
        if messages > self.batch_messages_max {
            // The stream ends: as many sentences as messages would be more than was sent.
            let message = format!(
                "the batch has {messages} messages, at most {} are allowed (publish.batch_messages_max): send smaller ones",
                self.batch_messages_max
            );
            return Err(Problem::new(tonic::Code::InvalidArgument, message));
        }
        let mut results = Vec::with_capacity(messages);
        let mut waiting = VecDeque::new();
        let topic = &mut self.topic;
        let publications = batch.messages.into_iter().map(|m| publication(topic, &m.topic, m.data));
        guarded_now(self.control.metrics(), || {
            self.control.try_publish_all(publications, |admission| match admission {
                Admission::Done(outcome) => results.push(result(outcome)),
                Admission::Waiting(w) => {
                    waiting.push_back((results.len(), w));
                    results.push(PublishResult::default());
                }
            });
        })?;
        Ok(Pending { result: PublishBatchResult { id: batch.id, results }, waiting })
    }
}

impl Stream for Answers {
    type Item = Result<PublishBatchResult, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(oldest) = this.pending.front_mut()
                && oldest.poll_complete(cx).is_ready()
            {
                return Poll::Ready(this.pending.pop_front().map(|p| Ok(p.result)));
            }
            if this.end.is_some() {
                if !this.pending.is_empty() {
                    return Poll::Pending;
                }
                // Ended without an error from now on.
                let end = this.end.replace(Ok(()));
                return Poll::Ready(end.and_then(Result::err).map(Err));
            }
            if this.pending.len() == BATCHES_PENDING_MAX {
                return Poll::Pending;
            }
            if this.draining.as_mut().poll(cx).is_ready() {
                // Whatever has no result was given to nobody.
                this.end = Some(Err(Problem::from(Refusal::Draining).into()));
                continue;
            }
            match ready!(Pin::new(&mut this.batches).poll_next(cx)) {
                Some(Ok(batch)) => match this.admit(batch) {
                    Ok(pending) => this.pending.push_back(pending),
                    Err(problem) => this.end = Some(Err(problem.into())),
                },
                Some(Err(status)) => this.end = Some(Err(status)),
                None => this.end = Some(Ok(())),
            }
        }
    }
}

/// A message with its topic's name shared with the message before it, if it is the same.
fn publication(last: &mut Arc<str>, topic: &str, data: Bytes) -> Publication {
    if **last != *topic {
        *last = topic.into();
    }
    Publication::new(last.clone(), data)
}

fn result(outcome: Result<Ack, Refusal>) -> PublishResult {
    match outcome {
        Ok(ack) => PublishResult { offset: ack.offset.0, epoch: ack.epoch.0, error: None },
        Err(refusal) => {
            let problem = Problem::from(refusal);
            let error = PublishError { code: problem.code as i32, message: problem.message.into_owned() };
            PublishResult { offset: 0, epoch: 0, error: Some(error) }
        }
    }
}
