use crate::fake::{EPOCH, PANIC};
use crate::harness::{Gateway, Options, eventually, with_gateway};
use fanwire::proto::order::Data;
use fanwire::proto::order::proxy_client::ProxyClient;
use fanwire::proto::v1::publisher_client::PublisherClient;
use fanwire::proto::v1::{PublishBatch, PublishBatchResult, PublishRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

async fn channel(gateway: &Gateway) -> Channel {
    Channel::from_shared(gateway.grpc_url()).unwrap().connect().await.unwrap()
}

async fn proxy(gateway: &Gateway) -> ProxyClient<Channel> {
    ProxyClient::new(channel(gateway).await)
}

async fn publisher(gateway: &Gateway) -> PublisherClient<Channel> {
    PublisherClient::new(channel(gateway).await)
}

/// Both halves of a `PublishStream`.
async fn stream(gateway: &Gateway) -> (mpsc::Sender<PublishBatch>, Streaming<PublishBatchResult>) {
    let (sender, batches) = mpsc::channel(100);
    let results = publisher(gateway).await.publish_stream(ReceiverStream::new(batches)).await.unwrap();
    (sender, results.into_inner())
}

fn data(uid: &str, topic: &str, data: &str) -> Data {
    Data { uid: uid.into(), topic: topic.into(), data: data.to_owned().into() }
}

fn message(data: &str) -> PublishRequest {
    PublishRequest { topic: "t".into(), data: data.to_owned().into(), ..Default::default() }
}

fn batch(id: u64, data: &[&str]) -> PublishBatch {
    PublishBatch { id, messages: data.iter().map(|d| message(d)).collect() }
}

/// Offset or error code of each result.
fn outcomes(result: &PublishBatchResult) -> Vec<Result<u64, i32>> {
    let outcome = |r: &fanwire::proto::v1::PublishResult| match &r.error {
        None => {
            assert_eq!(r.epoch, EPOCH.0);
            Ok(r.offset)
        }
        Some(error) => {
            assert!(r.offset == 0 && r.epoch == 0 && !error.message.is_empty());
            Err(error.code)
        }
    };
    result.results.iter().map(outcome).collect()
}

#[test]
fn push_data_goes_to_a_topic_or_to_everyone() {
    with_gateway(Options::default(), async |gateway| {
        let mut proxy = proxy(gateway).await;
        proxy.push_data(data("", "t", "a")).await.unwrap();
        proxy.push_data(data("", "", "b")).await.unwrap();
        proxy.push_data(data("", "t", "")).await.unwrap();
        assert_eq!(gateway.shards[1].frames(), ["a", "b", ""]);

        proxy.push_data(data("7", "t", "c")).await.unwrap();
        assert_eq!(gateway.shards[1].frames(), ["c"]);

        assert_eq!(proxy.push_data(data("", "", "")).await.unwrap_err().code(), Code::InvalidArgument);
        assert!(gateway.shards[1].frames().is_empty());
    });
}

#[test]
fn a_message_to_several_topics_is_a_publication_to_each_and_answered_for_each() {
    with_gateway(Options::default(), async |gateway| {
        let mut publisher = publisher(gateway).await;
        let to = |topic: &str, topics: &[&str]| PublishRequest {
            topic: topic.into(),
            topics: topics.iter().map(|t| (*t).into()).collect(),
            ..message("x")
        };
        let long = "n".repeat(256);
        let answer = publisher.publish(to("", &["a", &long, "b"])).await.unwrap().into_inner();
        let result = PublishBatchResult { id: 0, results: answer.results };
        assert_eq!((outcomes(&result), answer.epoch), (vec![Ok(1), Err(3), Ok(2)], 0));
        assert_eq!(gateway.shards[0].frames(), ["x", "x"]);
        for wrong in [to("a", &["b"]), to("", &["a", ""]), to("", &["a"; 1001])] {
            assert_eq!(publisher.publish(wrong).await.unwrap_err().code(), Code::InvalidArgument);
        }
        let (batches, mut results) = stream(gateway).await;
        let messages = vec![message("1"), to("", &["a", "b"]), to("a", &["b"]), message("2")];
        batches.send(PublishBatch { id: 9, messages }).await.unwrap();
        let mut result = results.message().await.unwrap().unwrap();
        let several = PublishBatchResult { id: 0, results: std::mem::take(&mut result.results[1].results) };
        assert_eq!(outcomes(&several), [Ok(4), Ok(5)]);
        result.results.remove(1);
        assert_eq!(outcomes(&result), [Ok(3), Err(3), Ok(6)]);
        assert_eq!(gateway.shards[0].frames(), ["1", "x", "x", "2"]);
        batches.send(PublishBatch { id: 10, messages: vec![to("", &["a"; 1000]); 11] }).await.unwrap();
        assert_eq!(results.message().await.unwrap_err().code(), Code::InvalidArgument, "11,000 publications");
    });
}

#[test]
fn pull_data_streams_every_push_and_says_why_it_ends() {
    with_gateway(Options::default(), async |gateway| {
        let mut proxy = proxy(gateway).await;
        let mut pull = proxy.pull_data(fanwire::proto::order::Empty {}).await.unwrap().into_inner();
        let pushes = [data("7", "t", "a"), data("", "t", "b"), data("", "", "c")];
        for push in &pushes {
            proxy.push_data(push.clone()).await.unwrap();
        }
        publisher(gateway).await.publish(message("d")).await.unwrap();
        for push in pushes.into_iter().chain([data("", "t", "d")]) {
            assert_eq!(pull.message().await.unwrap(), Some(push));
        }
        gateway.control.drain();
        assert_eq!(pull.message().await.unwrap_err().code(), Code::Unavailable);
    });
}

#[test]
fn publish_answers_with_offset_and_epoch_or_says_what_to_do() {
    with_gateway(Options { queue_items_max: 2, ..Options::default() }, async |gateway| {
        let mut publisher = publisher(gateway).await;
        for offset in [1, 2] {
            let ack = publisher.publish(message("a")).await.unwrap().into_inner();
            assert_eq!((ack.offset, ack.epoch), (offset, EPOCH.0));
        }
        assert_eq!(publisher.publish(message("a")).await.unwrap_err().code(), Code::ResourceExhausted);
        let too_large = message(&"x".repeat(1001));
        assert_eq!(publisher.publish(too_large).await.unwrap_err().code(), Code::InvalidArgument);
        let not_utf8 = PublishRequest { topic: "t".into(), data: b"\xff"[..].into(), ..Default::default() };
        assert_eq!(publisher.publish(not_utf8).await.unwrap_err().code(), Code::InvalidArgument);
        gateway.control.drain();
        assert_eq!(publisher.publish(message("a")).await.unwrap_err().code(), Code::Unavailable);
        let m = gateway.control.metrics();
        assert_eq!((m.publications.get(), m.refused_full.get(), m.refused_invalid.get()), (2, 1, 2));
    });
}

#[test]
fn each_batch_is_answered_in_order_and_a_refused_message_does_not_stop_the_next() {
    with_gateway(Options::default(), async |gateway| {
        let (batches, mut results) = stream(gateway).await;
        let too_large = "x".repeat(1001);
        batches.send(batch(70, &["a", &too_large, "b"])).await.unwrap();
        batches.send(batch(71, &[])).await.unwrap();
        let mut mixed = batch(70, &["c", "d", "e"]);
        mixed.messages[1].topic = "other".into();
        mixed.messages[2].data = b"\xff"[..].into();
        batches.send(mixed).await.unwrap();
        drop(batches);

        let expected = [(70, vec![Ok(1), Err(3), Ok(2)]), (71, vec![]), (70, vec![Ok(3), Ok(4), Err(3)])];
        for (id, outcome) in expected {
            let result = results.message().await.unwrap().unwrap();
            assert_eq!((result.id, outcomes(&result)), (id, outcome));
        }
        assert!(results.message().await.unwrap().is_none(), "the stream ends without an error");
        assert_eq!(gateway.shards[0].frames(), ["a", "b", "c", "d"]);
    });
}

#[test]
fn batches_that_wait_for_room_are_answered_in_order_and_only_so_many_are_read() {
    let options = Options { queue_items_max: 1, publish_wait_ms: 15_000, ..Options::default() };
    with_gateway(options, async |gateway| {
        let (batches, mut results) = stream(gateway).await;
        let names: Vec<String> = (0..40).map(|i| i.to_string()).collect();
        for (id, name) in names.iter().enumerate() {
            batches.send(batch(id as u64, &[name])).await.unwrap();
        }
        // One has room, sixteen wait, the others are not read.
        eventually(|| (gateway.control.metrics().waited.get() == 16).then_some(())).await;
        let mut delivered = Vec::new();
        for id in 0..40 {
            let result = tokio::select! {
                result = results.message() => result.unwrap().unwrap(),
                () = async {
                    loop {
                        delivered.extend(gateway.shards[0].frames());
                        gateway.shards[1].frames();
                        assert!(gateway.control.metrics().waiting.get() <= 16);
                        tokio::task::yield_now().await;
                    }
                } => unreachable!(),
            };
            assert_eq!((result.id, outcomes(&result)), (id, vec![Ok(id + 1)]));
        }
        delivered.extend(gateway.shards[0].frames());
        assert_eq!(delivered, names);
    });
}

#[test]
fn a_message_that_finds_no_room_in_time_has_its_own_error() {
    with_gateway(Options { queue_items_max: 2, ..Options::default() }, async |gateway| {
        let (batches, mut results) = stream(gateway).await;
        batches.send(batch(1, &["a", "b", "c", "d"])).await.unwrap();
        let result = results.message().await.unwrap().unwrap();
        assert_eq!(outcomes(&result), [Ok(1), Ok(2), Err(8), Err(8)]);
        assert_eq!(gateway.shards[0].frames(), ["a", "b"]);
        assert_eq!(gateway.shards[1].frames(), ["a", "b"]);
        batches.send(batch(2, &["e"])).await.unwrap();
        assert_eq!(outcomes(&results.message().await.unwrap().unwrap()), [Ok(3)]);
    });
}

#[test]
fn a_batch_with_too_many_messages_ends_the_stream_after_the_results_before_it() {
    let mut options = Options::default();
    options.publish.batch_messages_max = 3;
    with_gateway(options, async |gateway| {
        let (batches, mut results) = stream(gateway).await;
        batches.send(batch(1, &["a", "b", "c"])).await.unwrap();
        batches.send(batch(2, &["a", "b", "c", "d"])).await.unwrap();
        assert_eq!(outcomes(&results.message().await.unwrap().unwrap()).len(), 3);
        let status = results.message().await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("4 messages") && status.message().contains("batch_messages_max"), "{status}");
        assert_eq!(gateway.shards[0].frames(), ["a", "b", "c"]);
    });
}

#[test]
fn a_request_over_request_bytes_max_is_refused() {
    let mut options = Options::default();
    options.publish.request_bytes_max = 500;
    with_gateway(options, async |gateway| {
        let status = publisher(gateway).await.publish(message(&"x".repeat(600))).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange, "{status}");
        let status = proxy(gateway).await.push_data(data("", "t", &"x".repeat(600))).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange, "{status}");
        let (batches, mut results) = stream(gateway).await;
        batches.send(batch(1, &[&"x".repeat(600)])).await.unwrap();
        assert_eq!(results.message().await.unwrap_err().code(), Code::OutOfRange);
        assert_eq!(gateway.control.metrics().publications.get(), 0);
    });
}

#[test]
fn a_panic_is_answered_internal_and_counted_and_the_next_call_is_served() {
    with_gateway(Options::default(), async |gateway| {
        let mut publisher = publisher(gateway).await;
        assert_eq!(publisher.publish(message(PANIC)).await.unwrap_err().code(), Code::Internal);
        let status = proxy(gateway).await.push_data(data("", "t", PANIC)).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal);
        let (batches, mut results) = stream(gateway).await;
        batches.send(batch(1, &["a", PANIC, "b"])).await.unwrap();
        assert_eq!(results.message().await.unwrap_err().code(), Code::Internal);
        assert_eq!(gateway.control.metrics().handler_panics.get(), 3);
        publisher.publish(message("c")).await.unwrap();
        assert_eq!(gateway.shards[0].frames(), ["a", "c"]);
    });
}

#[test]
fn a_drain_answers_what_waits_and_ends_the_stream() {
    let options = Options { queue_items_max: 1, publish_wait_ms: 15_000, ..Options::default() };
    with_gateway(options, async |gateway| {
        let (batches, mut results) = stream(gateway).await;
        batches.send(batch(1, &["a", "b"])).await.unwrap();
        let (_idle_batches, mut idle) = stream(gateway).await;
        eventually(|| (gateway.control.metrics().waiting.get() == 1).then_some(())).await;
        gateway.control.drain();
        assert_eq!(outcomes(&results.message().await.unwrap().unwrap()), [Ok(1), Err(14)]);
        assert_eq!(results.message().await.unwrap_err().code(), Code::Unavailable);
        assert_eq!(idle.message().await.unwrap_err().code(), Code::Unavailable);
        assert_eq!(proxy(gateway).await.push_data(data("", "t", "c")).await.unwrap_err().code(), Code::Unavailable);
    });
}

#[test]
fn health_says_when_we_drain() {
    with_gateway(Options::default(), async |gateway| {
        let mut health = HealthClient::new(channel(gateway).await);
        let services = ["", "order.Proxy", "fanwire.v1.Publisher"].map(|s| HealthCheckRequest { service: s.into() });
        for service in &services {
            let mut watch = health.watch(service.clone()).await.unwrap().into_inner();
            assert_eq!(watch.message().await.unwrap().unwrap().status().as_str_name(), "SERVING", "{service:?}");
        }
        let mut watch = health.watch(services[1].clone()).await.unwrap().into_inner();
        watch.message().await.unwrap();
        gateway.control.drain();
        assert_eq!(watch.message().await.unwrap().unwrap().status().as_str_name(), "NOT_SERVING");
        for service in services {
            let answer = health.check(service).await.unwrap().into_inner();
            assert_eq!(answer.status().as_str_name(), "NOT_SERVING");
        }
    });
}

/// Asks one version of the reflection service which services there are.
macro_rules! reflected {
    ($version:ident, $gateway:expr) => {{
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let mut client = ServerReflectionClient::new(channel($gateway).await);
        let question = |q| ServerReflectionRequest { host: String::new(), message_request: Some(q) };
        let questions = tokio_stream::iter([
            question(MessageRequest::ListServices(String::new())),
            question(MessageRequest::FileContainingSymbol("fanwire.v1.Publisher".into())),
        ]);
        let mut answers = client.server_reflection_info(questions).await.unwrap().into_inner();
        let mut next = async || answers.message().await.unwrap().unwrap().message_response.unwrap();
        let MessageResponse::ListServicesResponse(list) = next().await else { panic!("not a list") };
        let file = next().await;
        assert!(matches!(file, MessageResponse::FileDescriptorResponse(_)), "{file:?}");
        list.service.into_iter().map(|s| s.name).collect::<Vec<_>>()
    }};
}

#[test]
fn tokens_guard_publishing_but_not_health_and_reflection() {
    let file = std::env::temp_dir().join(format!("fanwire-publish-grpc-{}", std::process::id()));
    std::fs::write(&file, "first-token-0123456\n").unwrap();
    let mut options = Options::default();
    options.publish.tokens_file = file.to_str().unwrap().into();
    with_gateway(options, async |gateway| {
        let with = |token: &str| {
            let mut request = Request::new(message("a"));
            request.metadata_mut().insert("authorization", token.parse().unwrap());
            request
        };
        let mut publisher = publisher(gateway).await;
        assert_eq!(publisher.publish(message("a")).await.unwrap_err().code(), Code::Unauthenticated);
        let wrong = publisher.publish(with("Bearer wrong-token-0123456")).await.unwrap_err();
        assert_eq!(wrong.code(), Code::Unauthenticated);
        let none = tokio_stream::iter([batch(1, &["a"])]);
        assert_eq!(publisher.publish_stream(none).await.unwrap_err().code(), Code::Unauthenticated);
        let none = proxy(gateway).await.push_data(data("", "t", "a")).await.unwrap_err();
        assert_eq!(none.code(), Code::Unauthenticated);
        assert_eq!(gateway.control.metrics().refused_unauthorized.get(), 4);
        assert!(gateway.shards[0].frames().is_empty());
        publisher.publish(with("Bearer first-token-0123456")).await.unwrap();

        for services in [reflected!(v1, gateway), reflected!(v1alpha, gateway)] {
            for service in ["order.Proxy", "fanwire.v1.Publisher", "grpc.health.v1.Health"] {
                assert!(services.iter().any(|s| s == service), "{service} in {services:?}");
            }
        }
        let mut health = HealthClient::new(channel(gateway).await);
        health.check(HealthCheckRequest::default()).await.unwrap();
    });
    std::fs::remove_file(file).unwrap();
}

#[test]
fn a_method_that_is_not_there_is_unimplemented() {
    with_gateway(Options::default(), async |gateway| {
        let mut client = tonic::client::Grpc::new(channel(gateway).await);
        for path in ["/order.Proxy/DropData", "/nobody.Knows/This"] {
            client.ready().await.unwrap();
            let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
            let codec = tonic_prost::ProstCodec::<Data, Data>::default();
            let status = client.unary(Request::new(Data::default()), path, codec).await.unwrap_err();
            assert_eq!(status.code(), Code::Unimplemented);
        }
    });
}
