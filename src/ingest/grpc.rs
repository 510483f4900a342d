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

use super::pull::Pulled;
use super::push::{Problem, guarded, guarded_now, push};
use super::{Admission, Control, Tokens, Waiting};
use crate::config::Publish;
use crate::frame::{Publication, Target};
use crate::proto::DESCRIPTORS;
use crate::proto::order::proxy_server::{Proxy, ProxyServer};
use crate::proto::order::{Data, Empty};
use crate::proto::v1::publisher_server::{Publisher, PublisherServer};
use crate::proto::v1::{
    PublishBatch, PublishBatchResult, PublishError, PublishRequest, PublishResponse, PublishResult,
};
use crate::topics::{Ack, Refusal};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
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
    let proxy = ProxyServer::new(ProxyService { control: control.clone(), publish: publish.clone() })
        .max_decoding_message_size(bytes_max);
    let publisher = PublisherService {
        control: control.clone(),
        batch_messages_max: publish.batch_messages_max,
        multicast_topics_max: publish.multicast_topics_max,
    };
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
    publish: Publish,
}

#[tonic::async_trait]
impl Proxy for ProxyService {
    async fn push_data(&self, request: Request<Data>) -> Result<Response<Empty>, Status> {
        let Data { uid, topic, data } = request.into_inner();
        guarded(self.control.metrics(), push(&self.control, &uid, &topic, data)).await?;
        Ok(Response::new(Empty {}))
    }

    type PullDataStream = BoxStream<'static, Result<Data, Status>>;

    async fn pull_data(&self, _: Request<Empty>) -> Result<Response<Self::PullDataStream>, Status> {
        let pull = self.control.pull(self.publish.pullers_max, self.publish.puller_bytes_max)?;
        let message =
            |push: Pulled| Data { uid: push.uid.as_ref().into(), topic: push.topic.as_ref().into(), data: push.data };
        Ok(Response::new(pull.map(move |push| push.map(message).map_err(Status::from)).boxed()))
    }
}

pub(super) struct PublisherService {
    control: Arc<Control>,
    batch_messages_max: usize,
    multicast_topics_max: usize,
}

#[tonic::async_trait]
impl Publisher for PublisherService {
    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        let request = request.into_inner();
        let mut topic = "".into();
        if request.topics.is_empty() {
            let publication = publication(&mut topic, &request, &request.topic);
            let ack = guarded(self.control.metrics(), async { Ok(self.control.publish(publication).await?) }).await?;
            return Ok(Response::new(PublishResponse {
                offset: ack.offset.0,
                epoch: ack.epoch.0,
                results: Vec::new(),
            }));
        }
        check_multicast(&request, self.multicast_topics_max)?;
        let mut admissions = Vec::with_capacity(request.topics.len());
        guarded_now(self.control.metrics(), || {
            let publications = request.topics.iter().map(|name| publication(&mut topic, &request, name));
            self.control.try_publish_all(publications, |admission| admissions.push(admission));
        })?;
        let mut results = Vec::with_capacity(admissions.len());
        for admission in admissions {
            results.push(result(match admission {
                Admission::Done(outcome) => outcome,
                Admission::Waiting(waiting) => waiting.await,
            }));
        }
        Ok(Response::new(PublishResponse { offset: 0, epoch: 0, results }))
    }

    type PublishStreamStream = Answers;

    async fn publish_stream(&self, request: Request<Streaming<PublishBatch>>) -> Result<Response<Answers>, Status> {
        Ok(Response::new(Answers {
            batches: request.into_inner(),
            draining: Box::pin(self.control.drain_begun()),
            control: self.control.clone(),
            batch_messages_max: self.batch_messages_max,
            multicast_topics_max: self.multicast_topics_max,
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
    multicast_topics_max: usize,
    /// The last message's: publishers keep to one topic for long, and so share its name.
    topic: Arc<str>,
    pending: VecDeque<Pending>,
    /// No batch is read any more; what the stream ends with once `pending` is empty.
    end: Option<Result<(), Status>>,
}

/// A batch with messages that wait for room, in their order.
struct Pending {
    result: PublishBatchResult,
    waiting: VecDeque<(Place, Waiting)>,
}

/// Where a result belongs: which message of its batch, and which of the message's topics if it has several.
#[derive(Clone, Copy)]
struct Place {
    message: usize,
    topic: Option<usize>,
}

impl Place {
    fn of(self, results: &mut [PublishResult]) -> &mut PublishResult {
        let result = &mut results[self.message];
        match self.topic {
            Some(topic) => &mut result.results[topic],
            None => result,
        }
    }
}

impl Pending {
    fn poll_complete(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some((place, waiting)) = self.waiting.front_mut() {
            *place.of(&mut self.result.results) = result(ready!(Pin::new(waiting).poll(cx)));
            self.waiting.pop_front();
        }
        Poll::Ready(())
    }
}

impl Answers {
    fn admit(&mut self, batch: PublishBatch) -> Result<Pending, Problem> {
        let messages: usize = batch.messages.iter().map(|m| m.topics.len().max(1)).sum();
        if messages > self.batch_messages_max {
            // The stream ends: as many sentences as messages would be more than was sent.
            let message = format!(
                "the batch has {messages} messages, at most {} are allowed (publish.batch_messages_max): send smaller ones",
                self.batch_messages_max
            );
            return Err(Problem::new(tonic::Code::InvalidArgument, message));
        }
        let mut results = vec![PublishResult::default(); batch.messages.len()];
        let mut waiting = VecDeque::new();
        let (topic, topics_max) = (&mut self.topic, self.multicast_topics_max);
        // The places of the publications, in their order; without a multicast the n-th is the n-th message.
        let mut places = Vec::new();
        let is_multicast = batch.messages.iter().any(|m| !m.topics.is_empty());
        if is_multicast {
            for (message, m) in batch.messages.iter().enumerate() {
                if m.topics.is_empty() {
                    places.push((Place { message, topic: None }, m.topic.as_str()));
                } else if let Err(problem) = check_multicast(m, topics_max) {
                    results[message] = refused(problem);
                } else {
                    results[message].results = vec![PublishResult::default(); m.topics.len()];
                    let parts = m.topics.iter().enumerate();
                    places.extend(parts.map(|(i, topic)| (Place { message, topic: Some(i) }, topic.as_str())));
                }
            }
        }
        let mut nth = 0;
        let mut each = |admission| {
            let place = places.get(nth).map_or(Place { message: nth, topic: None }, |(place, _)| *place);
            nth += 1;
            match admission {
                Admission::Done(outcome) => *place.of(&mut results) = result(outcome),
                Admission::Waiting(w) => waiting.push_back((place, w)),
            }
        };
        guarded_now(self.control.metrics(), || {
            if is_multicast {
                let parts = places.iter().map(|(place, name)| publication(topic, &batch.messages[place.message], name));
                self.control.try_publish_all(parts, &mut each);
            } else {
                self.control.try_publish_all(batch.messages.iter().map(|m| publication(topic, m, &m.topic)), &mut each);
            }
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

/// A message to one topic, whose name is shared with the message before it if it is the same.
fn publication(last: &mut Arc<str>, message: &PublishRequest, topic: &str) -> Publication {
    if **last != *topic {
        *last = topic.into();
    }
    let target = match message.uid.as_str() {
        "" => Target::topic(last.clone()),
        uid => Target::User { uid: uid.into(), topic: last.clone() },
    };
    Publication { target, data: message.data.clone() }
}

/// Whether a message's `topics` can be published to.
fn check_multicast(message: &PublishRequest, topics_max: usize) -> Result<(), Problem> {
    let topics = message.topics.len();
    let text = match () {
        () if topics > topics_max => format!(
            "the message has {topics} topics, at most {topics_max} are allowed (publish.multicast_topics_max): send several"
        ),
        () if !message.topic.is_empty() => "the message has topic and topics: set one of the two".to_owned(),
        () if message.topics.iter().any(String::is_empty) => {
            "one of the topics is empty, which would be everyone: name it, or send another message without topics"
                .to_owned()
        }
        () => return Ok(()),
    };
    Err(Problem::new(tonic::Code::InvalidArgument, text))
}

fn result(outcome: Result<Ack, Refusal>) -> PublishResult {
    match outcome {
        Ok(ack) => PublishResult { offset: ack.offset.0, epoch: ack.epoch.0, ..PublishResult::default() },
        Err(refusal) => refused(refusal.into()),
    }
}

fn refused(problem: Problem) -> PublishResult {
    let error = PublishError { code: problem.code as i32, message: problem.message.into_owned() };
    PublishResult { error: Some(error), ..PublishResult::default() }
}
