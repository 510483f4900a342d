//! `fanwire.v1.Publisher/PublishStream`: batches one way, an answer to each the other way.

use super::{Ack, Acks, Batch, STALLED};
use crate::causes::causes;
use crate::clock::Time;
use crate::proto::v1::publisher_client::PublisherClient;
use crate::proto::v1::{PublishBatch, PublishRequest, PublishResult};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// Publishes over one stream what comes through `waiting`, until that ends.
///
/// # Errors
/// The gateway has ended the stream, or answers nonsense.
pub(super) async fn publish(
    mut client: PublisherClient<Channel>,
    token: Option<String>,
    names: Arc<Vec<String>>,
    waiting: UnboundedReceiver<Batch>,
    acks: Acks,
) -> Result<(), String> {
    // Numbers of the messages of each batch on its way; answered in order, one result a message.
    let sent: Arc<Mutex<VecDeque<Vec<u64>>>> = Arc::default();
    let on_its_way = Arc::clone(&sent);
    let mut id = 0;
    let batches = UnboundedReceiverStream::new(waiting).map(move |batch| {
        let numbers = batch.messages.iter().map(|m| m.number).collect();
        on_its_way.lock().expect("nobody panics with it").push_back(numbers);
        let request = |m: super::Message| PublishRequest {
            topic: names[m.topic as usize].clone(),
            data: m.data,
            ..Default::default()
        };
        id += 1;
        PublishBatch { id: id - 1, messages: batch.messages.into_iter().map(request).collect() }
    });
    let request = with_token(batches, token.as_deref())?;
    let refused = |status: tonic::Status| format!("PublishStream: {} ({:?})", status.message(), status.code());
    let mut answers = client.publish_stream(request).await.map_err(refused)?.into_inner();
    let mut expected = 0;
    while let Some(answer) = answers.message().await.map_err(refused)? {
        let numbers = sent.lock().expect("nobody panics with it").pop_front().unwrap_or_default();
        if answer.id != expected || answer.results.len() != numbers.len() {
            return Err(format!("PublishStream answered batch {} instead of {expected}", answer.id));
        }
        let refusal = |(number, result): (&u64, PublishResult)| {
            result.error.map(|e| (*number, format!("{} ({:?})", e.message, tonic::Code::from(e.code))))
        };
        let refused = numbers.iter().zip(answer.results).filter_map(refusal).collect();
        expected += 1;
        acks.report(Ok(Ack { messages: numbers.len() as u64, refused, at: Time::now() }));
    }
    Ok(())
}

/// A connected client of `address`.
///
/// # Errors
/// Not an address, or nobody is there.
pub async fn grpc_client(address: &str) -> Result<PublisherClient<Channel>, String> {
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).map_err(|e| format!("gRPC address {address}: {e}"))?;
    let endpoint = endpoint.tcp_nodelay(true).connect_timeout(STALLED);
    let channel = endpoint.connect().await.map_err(|e| format!("gRPC at {address}: {}", causes(&e)))?;
    Ok(PublisherClient::new(channel))
}

/// Puts the bearer token where the gateway looks for it.
///
/// # Errors
/// The token can't stand in a header.
pub fn with_token<T>(message: T, token: Option<&str>) -> Result<tonic::Request<T>, String> {
    let mut request = tonic::Request::new(message);
    if let Some(token) = token {
        let value =
            format!("Bearer {token}").parse().map_err(|_| "the token has characters that no header may have")?;
        request.metadata_mut().insert("authorization", value);
    }
    Ok(request)
}
