//! Batches as they come in from another node: what is more than a node of ours can mean is refused before it is decoded.
//!
//! Two bytes on the wire are a message without anything, which takes forty times as much once decoded: a bound on bytes alone is none
//! on memory.

use super::log::BATCH_MESSAGES_MAX;
use crate::proto::v1::{PullRequest, RelayBatch};
use bytes::Buf;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use prost::{DecodeError, Message};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, Streaming};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::{ProstCodec, ProstEncoder};

/// Largest batch taken: the largest message that any node's `limits.message_bytes_max` may allow, with its names. Whether it is too large
/// for this node is judged, and counted, where it is delivered.
pub(super) const BATCH_BYTES_MAX: usize = (256 << 20) + 4096;
/// The field [`RelayBatch::messages`].
const MESSAGES: u32 = 3;

/// Calls `fanwire.v1.Relay/Pull`, as the generated client would but for the bounds.
///
/// # Errors
/// What the other node, or the way to it, says.
pub(super) async fn pull(channel: Channel, request: Request<PullRequest>) -> Result<Streaming<RelayBatch>, Status> {
    let mut client = Grpc::new(channel).max_decoding_message_size(BATCH_BYTES_MAX);
    client.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let path = PathAndQuery::from_static("/fanwire.v1.Relay/Pull");
    Ok(client.server_streaming(request, path, Bounded).await?.into_inner())
}

/// Encodes requests as ever, and decodes batches that may be decoded.
struct Bounded;

impl Codec for Bounded {
    type Encode = PullRequest;
    type Decode = RelayBatch;
    type Encoder = ProstEncoder<PullRequest>;
    type Decoder = Bounded;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<PullRequest, RelayBatch>::new().encoder()
    }

    fn decoder(&mut self) -> Bounded {
        Bounded
    }
}

impl Decoder for Bounded {
    type Item = RelayBatch;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<RelayBatch>, Status> {
        let broken = |error: DecodeError| Status::internal(error.to_string());
        debug_assert_eq!(bytes.chunk().len(), bytes.remaining(), "tonic has all of a message in one piece");
        if has_too_many(bytes.chunk()).map_err(broken)? {
            let text = format!("a batch of more than {BATCH_MESSAGES_MAX} messages is none of this protocol");
            return Err(Status::out_of_range(text));
        }
        RelayBatch::decode(bytes).map(Some).map_err(broken)
    }
}

/// Whether an encoded batch has more messages than a batch may have. Reads no further than that takes.
fn has_too_many(mut batch: &[u8]) -> Result<bool, DecodeError> {
    let mut messages = 0;
    while batch.has_remaining() && messages <= BATCH_MESSAGES_MAX {
        let (field, wire_type) = decode_key(&mut batch)?;
        messages += usize::from(field == MESSAGES);
        skip_field(wire_type, field, &mut batch, DecodeContext::default())?;
    }
    Ok(messages > BATCH_MESSAGES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::RelayedMessage;

    #[test]
    fn a_batch_may_have_as_many_messages_as_a_node_sends_and_no_more() {
        let has_too_many = |messages| {
            let messages = vec![RelayedMessage::default(); messages];
            has_too_many(&RelayBatch { epoch: 7, first: 1, messages, next: 9, due: 1 }.encode_to_vec())
        };
        assert_eq!(has_too_many(0), Ok(false));
        assert_eq!(has_too_many(BATCH_MESSAGES_MAX), Ok(false));
        assert_eq!(has_too_many(BATCH_MESSAGES_MAX + 1), Ok(true));
        assert!(super::has_too_many(b"\x1a\x05x").is_err(), "cut");
        assert_eq!(super::has_too_many(b"\x38\x07"), Ok(false), "a field of a newer version");
    }
}
