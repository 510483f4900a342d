use crate::fake::PANIC;
use crate::harness::{Answer, Gateway, Http, Options, with_gateway};
use fanwire::config::Publish;
use fanwire::queue::ToShard;

/// `abc`
const ABC: &str = r#"{"topic":"t","data":"YWJj"}"#;

async fn http(gateway: &Gateway) -> Http {
    Http::connect(gateway.http).await
}

/// The shape of every error, and its parts.
fn problem(answer: &Answer) -> (u16, i64, String) {
    let json = answer.json();
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(json["details"], serde_json::json!([]));
    assert_eq!(json.as_object().unwrap().len(), 3);
    (answer.status, json["code"].as_i64().unwrap(), json["message"].as_str().unwrap().to_owned())
}

#[test]
fn a_push_is_answered_with_an_empty_object_and_is_in_every_shards_queue() {
    with_gateway(Options::default(), async |gateway| {
        let mut http = http(gateway).await;
        for path in ["/v1/pushData", "/order.Proxy/PushData"] {
            let answer = http.post(path, "", ABC).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "{}"));
            assert_eq!(answer.header("content-type"), Some("application/json"));
            assert_eq!(gateway.shards[0].frames(), ["abc"]);
            assert_eq!(gateway.shards[1].frames(), ["abc"]);
        }
        // Without a topic: to everyone. Its type is not looked at, and it may come in pieces.
        http.send(
            b"POST /v1/pushData HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n\
            5\r\n{\"dat\r\n9\r\na\":\"YWJj\"\r\n1\r\n}\r\n0\r\n\r\n",
        )
        .await;
        assert_eq!(http.answer().await.status, 200);
        assert_eq!(gateway.shards[0].frames(), ["abc"]);
        // An empty message to one topic is meant.
        assert_eq!(http.post("/v1/pushData", "", r#"{"topic":"t"}"#).await.status, 200);
        assert_eq!(gateway.shards[0].frames(), [""]);
    });
}

#[test]
fn bad_requests_are_answered_in_grpc_gateways_shape_and_the_connection_goes_on() {
    with_gateway(Options::default(), async |gateway| {
        let mut http = http(gateway).await;
        let long_name = format!(r#"{{"topic":"{}","data":"YWJj"}}"#, "t".repeat(256));
        let too_large = format!(r#"{{"topic":"t","data":"{}"}}"#, "YWJj".repeat(400));
        for (body, part) in [
            (r#"{"topic":"t","data":"YWJj""#, "EOF"),
            (r#"{"topic":"t","data":"!"}"#, "not base64"),
            (r#"{"topic":"t","topic":"t"}"#, "duplicate field `topic`"),
            (r#"{"topic":7}"#, "expected a string"),
            (r#"{"topic":"t","data":"/w=="}"#, "not UTF-8"),
            (&long_name, "256 bytes"),
            (&too_large, "1200 bytes"),
            ("", "no uid, no topic and no data"),
            (r#"{"unknown":1}"#, "no uid, no topic and no data"),
        ] {
            let (status, code, message) = problem(&http.post("/v1/pushData", "", body).await);
            assert_eq!((status, code), (400, 3), "{body}");
            assert!(message.contains(part), "{body}: {message}");
        }
        assert_eq!(http.post("/v1/pushData", "", r#"{"uid":"1","data":"YWJj"}"#).await.status, 200);
        assert_eq!(
            problem(&http.post("/v1/pushdata", "", ABC).await),
            (404, 5, "Not Found".to_owned()),
            "paths are case-sensitive"
        );
        assert_eq!(problem(&http.get("/dev/stall?shard=0&ms=1").await).0, 404, "not without --dev");
        for (method, path) in [("GET", "/v1/pushData"), ("PUT", "/order.Proxy/PushData"), ("POST", "/metrics")] {
            let answer = http.request(method, path, "", "").await;
            assert_eq!(problem(&answer), (501, 12, "Method Not Allowed".to_owned()));
        }
        assert_eq!(http.post("/v1/pushData", "", ABC).await.status, 200);
        assert_eq!(gateway.shards[0].frames(), ["abc", "abc"], "and nothing else was sent");
        assert_eq!(gateway.control.metrics().refused_invalid.get(), 3);
    });
}

#[test]
fn a_body_over_request_bytes_max_is_refused() {
    let mut options = Options::default();
    options.publish.request_bytes_max = 100;
    with_gateway(options, async |gateway| {
        let body = format!(r#"{{"topic":"t","data":"{}"}}"#, "YWJj".repeat(30));
        let (status, code, message) = problem(&http(gateway).await.post("/v1/pushData", "", &body).await);
        assert_eq!((status, code), (400, 3));
        assert!(message.contains("publish.request_bytes_max"), "{message}");
        assert_eq!(http(gateway).await.post("/v1/pushData", "", ABC).await.status, 200);
    });
}

#[test]
fn without_room_the_publisher_is_told_when_to_come_back() {
    with_gateway(Options { queue_items_max: 1, ..Options::default() }, async |gateway| {
        let mut http = http(gateway).await;
        assert_eq!(http.post("/v1/pushData", "", ABC).await.status, 200);
        let answer = http.post("/v1/pushData", "", ABC).await;
        let (status, code, message) = problem(&answer);
        assert_eq!((status, code, answer.header("retry-after")), (429, 8, Some("1")), "{message}");
        assert_eq!(gateway.shards[0].frames(), ["abc"]);
    });
}

#[test]
fn a_draining_gateway_refuses_pushes_and_answers_its_operator() {
    with_gateway(Options::default(), async |gateway| {
        let mut http = http(gateway).await;
        gateway.control.drain();
        let (status, code, _) = problem(&http.post("/v1/pushData", "", ABC).await);
        assert_eq!((status, code), (503, 14));
        assert_eq!(http.get("/metrics").await.status, 200);
    });
}

#[test]
fn tokens_guard_pushes_and_metrics_but_not_the_probes() {
    let file = std::env::temp_dir().join(format!("fanwire-publish-http-{}", std::process::id()));
    std::fs::write(&file, "first-token-0123456\n").unwrap();
    let free = || "127.0.0.1:0".to_string();
    let publish = Publish {
        grpc_address: free(),
        http_address: free(),
        tokens_file: file.to_str().unwrap().into(),
        ..Publish::default()
    };
    with_gateway(Options { publish, ..Options::default() }, async |gateway| {
        let mut http = http(gateway).await;
        for headers in ["", "Authorization: Bearer wrong-token-0123456\r\n"] {
            let answer = http.post("/v1/pushData", headers, ABC).await;
            let (status, code, _) = problem(&answer);
            assert_eq!((status, code, answer.header("www-authenticate")), (401, 16, Some("Bearer")));
            assert_eq!(http.request("GET", "/metrics", headers, "").await.status, 401);
        }
        assert_eq!(gateway.control.metrics().refused_unauthorized.get(), 4);
        assert!(gateway.shards[0].frames().is_empty());

        let first = "Authorization: Bearer first-token-0123456\r\n";
        assert_eq!(http.post("/v1/pushData", first, ABC).await.status, 200);
        assert_eq!(http.request("GET", "/metrics", first, "").await.status, 200);
        assert_eq!(http.get("/healthz").await.status, 200);
        assert_eq!(http.get("/readyz").await.status, 200);

        std::fs::write(&file, "second-token-012345\n").unwrap();
        gateway.tokens.reload();
        assert_eq!(http.post("/v1/pushData", first, ABC).await.status, 401);
        let second = "Authorization: Bearer second-token-012345\r\n";
        assert_eq!(http.post("/v1/pushData", second, ABC).await.status, 200);
    });
    std::fs::remove_file(file).unwrap();
}

#[test]
fn the_operators_routes_say_what_they_are_given() {
    with_gateway(Options::default(), async |gateway| {
        let mut http = http(gateway).await;
        let answer = http.get("/metrics").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "fanwire_up 1\n"));
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        gateway.metrics.lock().unwrap().push_str("# EOF\n");
        let answer = http.get("/metrics").await;
        assert_eq!(answer.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));

        assert_eq!(http.get("/healthz").await.status, 200);
        assert_eq!(http.get("/readyz").await.json(), serde_json::json!({ "ready": true, "reasons": [] }));
        gateway.unready.lock().unwrap().push("shard 1 stands still".into());
        let answer = http.get("/readyz").await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.json(), serde_json::json!({ "ready": false, "reasons": ["shard 1 stands still"] }));
    });
}

#[test]
fn a_panic_is_answered_internal_and_counted_and_the_next_request_is_served() {
    with_gateway(Options::default(), async |gateway| {
        let mut http = http(gateway).await;
        let (status, code, _) = problem(&http.post("/v1/pushData", "", r#"{"topic":"t","data":"cGFuaWM="}"#).await);
        assert_eq!((status, code), (500, 13));
        *gateway.metrics.lock().unwrap() = PANIC.into();
        let (status, code, _) = problem(&http.get("/metrics").await);
        assert_eq!((status, code), (500, 13));
        assert_eq!(gateway.control.metrics().handler_panics.get(), 2);
        assert_eq!(http.post("/v1/pushData", "", ABC).await.status, 200);
        assert_eq!(gateway.shards[1].frames(), ["abc"]);
    });
}

#[test]
fn a_developer_can_make_a_shard_stand_still() {
    with_gateway(Options { dev: true, ..Options::default() }, async |gateway| {
        let mut http = http(gateway).await;
        assert_eq!(http.post("/dev/stall?shard=1&ms=250", "", "").await.status, 200);
        assert!(matches!(gateway.shards[1].inbox.pop(), Some(ToShard::Stall { duration_ms: 250 })));
        for bad in ["", "?shard=1", "?shard=2&ms=1", "?shard=x&ms=1", "?shard=1&ms=60001"] {
            let (status, code, _) = problem(&http.post(&format!("/dev/stall{bad}"), "", "").await);
            assert_eq!((status, code), (400, 3), "{bad}");
        }
        assert!(gateway.shards.iter_mut().all(|s| s.inbox.pop().is_none()));
    });
}
