//! The publishing side: gpush's calls in their shape, our own with offsets, tokens, and no room said aloud.

use crate::client::Client;
use crate::gateway::{Gateway, Start, wait_until};
use crate::http::{Response, request};
use crate::publisher::{Publisher, message};
use std::time::{Duration, Instant};
use tonic::Code;

/// An error has grpc-gateway's shape.
fn assert_error(response: &Response, status: u16, code: u64) {
    assert_eq!(response.status, status, "{response:?}");
    let error = response.json();
    assert_eq!(error["code"], code, "{response:?}");
    assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{response:?}");
    assert_eq!(error["details"], serde_json::json!([]), "{response:?}");
}

#[test]
fn push_data_over_http_takes_what_protojson_takes() {
    let gateway = Gateway::start(&[]);
    let mut client = Client::subscriber(&gateway, &["t"]);
    for (body, arrives) in [
        (r#"{"uid":"","topic":"t","data":"5pWw5o2u"}"#, "数据"),
        (r#"{"topic":"t","data":"Pz8/Pj4+"}"#, "???>>>"),
        (r#"{"topic":"t","data":"Pz8_Pj4-"}"#, "???>>>"),
        (r#"{"topic":"t","data":"aGk="}"#, "hi"),
        (r#"{"topic":"t","data":"aGk"}"#, "hi"),
        (r#"{"more":{"a":[1]},"data":"eA==","topic":"t"}"#, "x"),
        (r#"{"topic":"t"}"#, ""),
    ] {
        let response = gateway.post("/v1/pushData", body);
        assert_eq!((response.status, response.body.as_str()), (200, "{}"), "{response:?} to {body}");
        assert!(response.headers["content-type"].starts_with("application/json"), "{response:?}");
        assert_eq!(client.text(), arrives);
    }
    // The content type is not looked at.
    let response = request(gateway.http, "POST", "/v1/pushData", &[], br#"{"topic":"t","data":"eA=="}"#);
    assert_eq!(response.status, 200);
    assert_eq!(client.text(), "x");
}

#[test]
fn errors_over_http_have_the_shape_of_gpush() {
    let gateway = Gateway::start(&[]);
    let mut client = Client::subscriber(&gateway, &["t"]);
    for body in [
        "nonsense",
        r#"{"topic":7}"#,
        r#"{"topic":"t","data":"!!"}"#,
        r#"{"topic":"t","data":"eA=="} x"#,
        r#"{"topic":"t","data":"//79"}"#, // Not UTF-8: text clients could not get it.
    ] {
        assert_error(&gateway.post("/v1/pushData", body), 400, 3);
    }
    assert_error(&gateway.try_push("t", &"x".repeat(65_537)), 400, 3);
    assert_error(&gateway.post("/v1/elsewhere", "{}"), 404, 5);
    assert_error(&gateway.get("/v1/pushData"), 501, 12);
    assert_eq!(gateway.get("/v1/pushData").json()["message"], "Method Not Allowed");
    assert_eq!(gateway.post("/v1/elsewhere", "{}").json()["message"], "Not Found");
    client.ping(); // Nothing of it arrived.
}

#[test]
fn push_data_over_grpc_reaches_subscribers() {
    let gateway = Gateway::start(&[]);
    let publisher = Publisher::new(&gateway);
    let mut client = Client::subscriber(&gateway, &["t"]);
    publisher.push_data("", "t", "one").unwrap();
    publisher.push_data("", "", "two").unwrap();
    assert_eq!(client.text(), "one");
    assert_eq!(client.text(), "two");
    let refused = publisher.push_data("", "t", vec![0xff]).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}

#[test]
fn publish_answers_with_growing_offsets_in_one_epoch() {
    let gateway = Gateway::start(&[]);
    let publisher = Publisher::new(&gateway);
    let mut client = Client::subscriber(&gateway, &["t"]);
    let mut last = publisher.publish("t", "0").unwrap();
    assert!(last.offset > 0 && last.epoch > 0);
    for n in 1..20 {
        let next = publisher.publish("t", n.to_string()).unwrap();
        assert!(next.epoch == last.epoch && next.offset > last.offset, "{next:?} after {last:?}");
        last = next;
    }
    for n in 0..20 {
        assert_eq!(client.text(), n.to_string());
    }
    for (topic, data) in [("t", vec![0xff]), ("t", vec![b'x'; 65_537]), (&*"n".repeat(256), vec![])] {
        assert_eq!(publisher.publish(topic, data).unwrap_err().code(), Code::InvalidArgument);
    }
    let restarted = Gateway::start(&[]);
    let epoch = Publisher::new(&restarted).publish("t", "0").unwrap().epoch;
    assert_ne!(epoch, last.epoch, "an epoch is new at each start");
}

#[test]
fn a_stream_answers_each_message_of_each_batch_in_order_and_a_refused_one_stops_nothing() {
    let gateway = Gateway::start(&[]);
    let publisher = Publisher::new(&gateway);
    let mut client = Client::subscriber(&gateway, &["a", "b"]);
    let mut stream = publisher.stream().unwrap();
    for round in 0..10 {
        let result = stream
            .batch(vec![
                message("a", format!("a{round}")),
                message("a", vec![0xff]),
                message("b", format!("b{round}")),
                message("n".repeat(256).as_str(), "x"),
                message("a", format!("A{round}")),
            ])
            .unwrap();
        let errors: Vec<i32> = result.results.iter().map(|r| r.error.as_ref().map_or(0, |e| e.code)).collect();
        assert_eq!(errors, [0, 3, 0, 3, 0], "{result:?}");
        assert!(result.results[4].offset > result.results[0].offset, "{result:?}");
        assert!(!result.results[1].error.as_ref().unwrap().message.is_empty());
    }
    assert_eq!(stream.batch(vec![]).unwrap().results, []);
    let mut arrived: Vec<String> = (0..30).map(|_| client.text()).collect();
    arrived.sort_by_key(|text| (text.starts_with('b'), text[1..].parse::<u32>().unwrap(), text.starts_with('A')));
    let expected = (0..10).flat_map(|n| [format!("a{n}"), format!("A{n}")]).chain((0..10).map(|n| format!("b{n}")));
    assert!(arrived.into_iter().eq(expected));
    client.ping(); // And no more.
}

#[test]
fn reflection_and_health_answer() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ListServiceResponse, ServerReflectionRequest};

    let gateway = Gateway::start(&[]);
    let publisher = Publisher::new(&gateway);
    let health = publisher.block_on(async |channel| {
        HealthClient::new(channel).check(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner()
    });
    assert_eq!(health.status(), ServingStatus::Serving);

    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answer = publisher.block_on(async |channel| {
        let requests = tokio_stream::once(list);
        let answers = ServerReflectionClient::new(channel).server_reflection_info(requests).await.unwrap();
        answers.into_inner().message().await.unwrap().unwrap()
    });
    let Some(MessageResponse::ListServicesResponse(ListServiceResponse { service })) = answer.message_response else {
        panic!("{answer:?}");
    };
    for name in ["order.Proxy", "fanwire.v1.Publisher"] {
        assert!(service.iter().any(|service| service.name == name), "{service:?}");
    }
}

#[test]
fn tokens_are_asked_for_and_read_again_on_sighup() {
    const OLD: &str = "old-token-of-sixteen";
    const NEW: &str = "new-token-of-sixteen";
    let file = std::env::temp_dir().join(format!("fanwire-tokens-{}", std::process::id()));
    std::fs::write(&file, "# publishers\nold-token-of-sixteen\n").unwrap();
    let gateway = Gateway::start(&[("publish.tokens_file", file.to_str().unwrap())]);
    let mut client = Client::subscriber(&gateway, &["t"]);
    let push = |token: Option<&str>| {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<(&str, &str)> = bearer.iter().map(|value| ("Authorization", value.as_str())).collect();
        request(gateway.http, "POST", "/v1/pushData", &headers, br#"{"topic":"t","data":"eA=="}"#)
    };
    let grpc = |token: Option<&str>| {
        let publisher = Publisher::new(&gateway);
        let publisher = if let Some(token) = token { publisher.with_token(token) } else { publisher };
        let stream = publisher.stream().and_then(|mut stream| stream.batch(vec![message("t", "x")])).map(drop);
        [publisher.publish("t", "x").map(drop), publisher.push_data("", "t", "x"), stream]
    };
    for wrong in
        [None, Some(NEW), Some("old-token-of-sixtee"), Some("old-token-of-sixteen2"), Some("# publishers"), Some("")]
    {
        assert_error(&push(wrong), 401, 16);
        for result in grpc(wrong) {
            assert_eq!(result.unwrap_err().code(), Code::Unauthenticated, "{wrong:?}");
        }
    }
    assert_eq!(push(Some(OLD)).status, 200);
    assert!(grpc(Some(OLD)).iter().all(Result::is_ok));
    for _ in 0..4 {
        assert_eq!(client.text(), "x");
    }
    assert_eq!(gateway.get("/healthz").status, 200, "whoever only asks for health needs no token");

    std::fs::write(&file, "new-token-of-sixteen\n").unwrap();
    gateway.signal("HUP");
    wait_until("the new token counts", || push(Some(NEW)).status == 200);
    assert_error(&push(Some(OLD)), 401, 16);
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn off_loopback_there_must_be_tokens_or_the_word_insecure() {
    let off = Start::new().set("publish.grpc_address", "0.0.0.0:0");
    let ended = off.try_start().expect_err("it must not listen");
    assert_eq!(ended.status.code(), Some(78), "{ended:?}");
    assert!(ended.stderr.contains("publish.tokens_file") && ended.stderr.contains("publish.insecure"), "{ended:?}");

    let gateway = Start::new().set("publish.grpc_address", "0.0.0.0:0").set("publish.insecure", "true").start();
    assert_eq!(gateway.grpc.ip().to_string(), "0.0.0.0");
}

/// A gateway with tiny queues, and one client on each of its two shards; the second element is on shard 1.
fn tiny_queues(wait_ms: &str) -> (Gateway, [Client; 2]) {
    let gateway = Gateway::start(&[("shards.queue_items_max", "64"), ("publish.publish_wait_ms", wait_ms)]);
    let mut on: [Option<Client>; 2] = [None, None];
    let mut others = Vec::new(); // Kept, so that the next one lands elsewhere.
    while on.iter().any(Option::is_none) {
        let before: [f64; 2] = std::array::from_fn(|shard| gateway.metrics().connections_of(shard));
        let client = Client::gpush(&gateway);
        let metrics = gateway.metrics();
        let shard = (0..2).find(|&shard| metrics.connections_of(shard) > before[shard]).expect("it is on some shard");
        others.extend(on[shard].replace(client));
    }
    (gateway, on.map(Option::unwrap))
}

#[test]
fn a_stalled_shard_holds_up_only_topics_with_interest_there() {
    let (gateway, [mut here, mut there]) = tiny_queues("50");
    let publisher = Publisher::new(&gateway);
    here.subscribe("stalled");
    there.subscribe("free");
    publisher.publish("stalled", "before").unwrap();
    assert_eq!(here.text(), "before");

    gateway.stall(0, 6000);
    let start = Instant::now();
    let mut taken = 0;
    let refusal = loop {
        assert!(taken <= 1000, "a stalled shard's queue has no end");
        match publisher.publish("stalled", taken.to_string()) {
            Ok(_) => taken += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal}");
    assert!(refusal.message().contains("shard 0"), "{refusal}");
    let response = gateway.try_push("stalled", "no room");
    assert_error(&response, 429, 8);
    assert!(response.headers["retry-after"].parse::<u32>().is_ok(), "{response:?}");
    let broadcast = publisher.publish("", "no room either").unwrap_err();
    assert_eq!(broadcast.code(), Code::ResourceExhausted, "{broadcast}");

    // More than the queue of the other shard holds, each delivered at once.
    for n in 0..200 {
        publisher.publish("free", n.to_string()).unwrap();
        assert_eq!(there.text(), n.to_string());
    }
    assert!(start.elapsed() < Duration::from_secs(5), "too slow to say anything: {:?}", start.elapsed());
    wait_until("the shard is named as the reason not to be ready", || {
        let ready = gateway.get("/readyz");
        ready.status == 503 && ready.body.contains("shard 0 has not turned")
    });

    // What was acknowledged arrives once the shard turns again, and nothing of what was refused.
    for n in 0..taken {
        assert_eq!(here.text(), n.to_string());
    }
    wait_until("it is ready again", || gateway.get("/readyz").status == 200);
    publisher.publish("stalled", "after").unwrap();
    assert_eq!(here.text(), "after");
    there.ping();
    assert!(gateway.metrics().sum("fanwire_publications_refused_total", &[("reason", "full")]) >= 3.0);
}

#[test]
fn a_publication_waits_for_room_and_keeps_its_place() {
    let (gateway, [mut here, _there]) = tiny_queues("10000");
    here.subscribe("t");
    gateway.stall(0, 500);
    let publisher = Publisher::new(&gateway);
    let mut stream = publisher.stream().unwrap();
    // Many more than the queue holds: they wait in the topic's line, and all are taken once the shard turns again.
    let result = stream.batch((0..500).map(|n| message("t", n.to_string())).collect()).unwrap();
    assert!(result.results.iter().all(|r| r.error.is_none()), "{result:?}");
    assert!(result.results.windows(2).all(|pair| pair[0].offset < pair[1].offset), "{result:?}");
    for n in 0..500 {
        assert_eq!(here.text(), n.to_string());
    }
    assert!(gateway.metrics().sum("fanwire_publications_waited_total", &[]) >= 1.0);
}
