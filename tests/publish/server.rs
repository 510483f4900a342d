use crate::harness::{Http, Options, eventually, with_gateway};
use fanwire::config::Publish;
use fanwire::ingest::{BindError, Server};
use fanwire::proto::v1::publisher_client::PublisherClient;
use fanwire::proto::v1::{PublishBatch, PublishRequest};
use std::net::TcpListener;
use std::time::{Duration, Instant};
use tokio_stream::wrappers::ReceiverStream;

fn publish(grpc_address: &str, http_address: &str) -> Publish {
    Publish { grpc_address: grpc_address.into(), http_address: http_address.into(), ..Publish::default() }
}

#[test]
fn a_taken_port_is_named_with_its_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = Server::bind(&publish(&address, "127.0.0.1:0")).err().unwrap().to_string();
    assert!(
        error.starts_with(&format!("publish.grpc_address = \"{address}\" is taken: another process listens")),
        "{error}"
    );
    let error = Server::bind(&publish("127.0.0.1:0", &address)).err().unwrap().to_string();
    assert!(
        error.starts_with(&format!("publish.http_address = \"{address}\" is taken: another process listens")),
        "{error}"
    );
}

#[test]
fn an_address_that_makes_no_sense_is_named_with_its_setting() {
    let error = Server::bind(&publish("127.0.0.1", "127.0.0.1:0")).err().unwrap();
    assert!(matches!(error, BindError::Failed { key: "publish.grpc_address", .. }), "{error}");
}

#[test]
fn off_loopback_tokens_are_required_unless_insecure_in_so_many_words() {
    let mut open = publish("127.0.0.1:0", "0.0.0.0:0");
    let error = Server::bind(&open).err().unwrap();
    assert!(matches!(error, BindError::Exposed { key: "publish.http_address", .. }), "{error}");
    open.insecure = true;
    Server::bind(&open).unwrap();
    open = Publish { insecure: false, tokens_file: "some file".into(), ..open };
    Server::bind(&open).unwrap();
}

#[test]
fn a_stop_lets_requests_under_way_finish_and_closes_idle_connections() {
    let options = Options { queue_items_max: 1, publish_wait_ms: 1500, ..Options::default() };
    with_gateway(options, async |gateway| {
        let mut idle = Http::connect(gateway.http).await;
        assert_eq!(idle.get("/healthz").await.status, 200);
        let mut waiting = Http::connect(gateway.http).await;
        let body = r#"{"topic":"t","data":"YWJj"}"#;
        assert_eq!(waiting.post("/v1/pushData", "", body).await.status, 200);
        let request = format!("POST /v1/pushData HTTP/1.1\r\nHost: x\r\nContent-Length: 27\r\n\r\n{body}");
        waiting.send(request.as_bytes()).await;
        eventually(|| (gateway.control.metrics().waiting.get() == 1).then_some(())).await;

        gateway.order_to_stop();
        assert!(idle.ends().await);
        gateway.shards.iter_mut().for_each(|s| drop(s.frames()));
        assert_eq!(waiting.answer().await.status, 200);
        assert!(waiting.ends().await);
    });
}

#[test]
fn a_peer_that_never_finishes_holds_a_stop_up_for_two_seconds_at_most() {
    let started = Instant::now();
    with_gateway(Options::default(), async |gateway| {
        let mut half = Http::connect(gateway.http).await;
        half.send(b"POST /v1/pushData HTTP/1.1\r\nHost: x\r\nContent-Length: 27\r\n\r\n{\"topic\"").await;
        let (batches, stream) = tokio::sync::mpsc::channel(1);
        let mut results = PublisherClient::connect(gateway.grpc_url())
            .await
            .unwrap()
            .publish_stream(ReceiverStream::new(stream))
            .await
            .unwrap()
            .into_inner();
        let messages = vec![PublishRequest { topic: "t".into(), data: "a".into(), ..Default::default() }];
        batches.send(PublishBatch { id: 1, messages }).await.unwrap();
        results.message().await.unwrap().unwrap();
        gateway.order_to_stop();
        assert!(half.ends().await);
        assert!(results.message().await.is_err());
    });
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

#[test]
fn nonsense_costs_its_connection_and_nothing_else() {
    with_gateway(Options::default(), async |gateway| {
        for address in [gateway.http, gateway.grpc] {
            let mut nonsense = Http::connect(address).await;
            nonsense.send(&[0xff; 1000]).await;
            while !nonsense.ends().await {}
        }
        assert_eq!(Http::connect(gateway.http).await.get("/healthz").await.status, 200);
    });
}
