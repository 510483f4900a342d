//! What is seen from outside: metrics, health, readiness, logs.

use crate::client::{Client, TEXT};
use crate::gateway::{Gateway, Start, wait_until};

#[test]
fn metrics_count_what_happened_and_every_name_is_there() {
    let gateway = Gateway::start(&[]);
    let mut clients: Vec<Client> = (0..4).map(|_| Client::subscriber(&gateway, &["t"])).collect();
    gateway.push("t", "12345678");
    gateway.push("", "12345678");
    for client in &mut clients {
        assert_eq!((client.text(), client.text()), ("12345678".into(), "12345678".into()));
    }
    wait_until("the shards' counts are in", || gateway.metrics().sum("fanwire_deliveries_total", &[]) == 8.0);
    let metrics = gateway.metrics();
    for name in [
        // Under gpush's own names.
        "websocket_current_connections",
        "websocket_total_connections",
        "websocket_bytes_sent_total",
        "websocket_messages_sent_total",
        "fanwire_connections",
        "fanwire_handshakes_total",
        "fanwire_publications_total",
        "fanwire_deliveries_total",
        "fanwire_sent_bytes_total",
        "fanwire_received_bytes_total",
        "fanwire_drops_total",
        "fanwire_closes_total",
        "fanwire_flush_round_seconds_bucket",
        "fanwire_publish_to_send_seconds_bucket",
        "fanwire_queue_items",
        "fanwire_owed_bytes",
    ] {
        assert!(metrics.has(name), "no {name} in\n{}", gateway.get("/metrics").body);
    }
    assert_eq!(metrics.sum("websocket_current_connections", &[]), 4.0);
    assert_eq!(metrics.sum("websocket_total_connections", &[]), 4.0);
    assert_eq!(metrics.sum("fanwire_publications_total", &[]), 2.0);
    assert_eq!(metrics.handshakes("ok"), 4.0);
    assert_eq!(metrics.connections(), 4.0);
    // Two pushes of 10 wire bytes to each of four clients at least.
    assert!(metrics.sum("websocket_bytes_sent_total", &[]) >= 80.0);
    wait_until("their latency is counted", || {
        gateway.metrics().sum("fanwire_publish_to_send_seconds_count", &[]) >= 2.0
    });
    drop(clients);
    wait_until("they are gone", || {
        let metrics = gateway.metrics();
        metrics.connections() == 0.0 && metrics.sum("websocket_current_connections", &[]) == 0.0
    });
    assert_eq!(gateway.metrics().sum("websocket_total_connections", &[]), 4.0);
}

#[test]
fn metrics_are_prometheus_text() {
    let gateway = Gateway::start(&[]);
    let page = gateway.get("/metrics");
    assert!(page.headers["content-type"].contains("text"), "{:?}", page.headers);
    for line in page.body.lines().filter(|line| line.starts_with("# TYPE ")) {
        let kind = line.split(' ').nth(3);
        assert!(matches!(kind, Some("counter" | "gauge" | "histogram" | "unknown" | "info")), "{line}");
    }
    assert!(page.body.contains("# HELP fanwire_"), "{}", page.body);
}

#[test]
fn a_gateway_that_serves_is_healthy_and_ready() {
    let gateway = Gateway::start(&[]);
    for path in ["/healthz", "/readyz"] {
        let response = gateway.get(path);
        assert_eq!(response.status, 200, "{response:?}");
    }
}

#[test]
fn logs_are_json_where_asked_and_never_per_message() {
    let gateway = Start::new().set("log.format", "json").set("log.level", "info").start();
    let mut client = Client::subscriber(&gateway, &["t"]);
    let before = gateway.stderr().lines().count();
    for n in 0..200 {
        gateway.push("t", &n.to_string());
        assert_eq!(client.text(), n.to_string());
        client.ping();
    }
    client.send(TEXT, "nonsense");
    client.text();
    let log = gateway.stderr();
    assert!(log.lines().count() - before < 20, "200 messages left {log}");
    for line in log.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(entry.get("level").is_some(), "{line}");
    }
}
