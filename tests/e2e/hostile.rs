//! Clients and publishers that mean harm: each costs itself, within a bound, and the others notice nothing.

use crate::client::{CLOSE, CONTINUATION, Client, Event, PONG, SUBSCRIBED, TEXT, frame};
use crate::gateway::{DEADLINE, Gateway, wait_until};
use crate::http::request;
use crate::publisher::{Publisher, message};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

/// It reads what it is sent and loses nothing.
fn assert_served(gateway: &Gateway, bystander: &mut Client) {
    gateway.push("t", "still served");
    assert_eq!(bystander.text(), "still served");
}

#[test]
fn a_client_that_sends_something_and_resets_the_connection_frees_its_slot() {
    let gateway = Gateway::start(&[("shards.count", "1")]);
    let mut bystander = Client::subscriber(&gateway, &["t"]);
    let rude: Vec<Client> = (0..20).map(|_| Client::subscriber(&gateway, &["t"])).collect();
    // What nobody reads makes closing a reset, and the shard finds that together with the last bytes.
    gateway.push("t", "unread");
    assert_eq!(bystander.text(), "unread");
    gateway.stall(0, 500);
    for mut client in rude {
        client.write(&frame(0x80 | PONG, b"unasked"));
    }
    wait_until("every slot but one is free", || gateway.metrics().connections() == 1.0);
    assert_eq!(gateway.metrics().closes("heartbeat"), 0.0);
    bystander.ping();
}

#[test]
fn fragments_without_end_are_a_flood_and_a_message_in_many_is_not() {
    let gateway = Gateway::start(&[("limits.client_messages_burst_max", "300")]);
    let mut bystander = Client::subscriber(&gateway, &["t"]);
    for piece in ["", "x"] {
        let mut client = Client::gpush(&gateway);
        client.write(&frame(TEXT, b""));
        let flood = frame(CONTINUATION, piece.as_bytes()).repeat(1000);
        // It is told before it has sent much; what it sends then is discarded until it is cut.
        let start = Instant::now();
        while client.try_write(&flood, Duration::from_millis(100)) == flood.len() {
            assert!(start.elapsed() < DEADLINE, "the gateway reads empty fragments for ever");
        }
    }
    wait_until("both are counted", || gateway.metrics().closes("flood") == 2.0);
    let mut patient = Client::gpush(&gateway);
    let command = br#"{"code":1,"topic":"t"}"#;
    patient.write(&frame(TEXT, b""));
    for byte in command {
        patient.write(&frame(CONTINUATION, &[*byte]));
    }
    patient.write(&frame(0x80 | CONTINUATION, b""));
    assert_eq!(patient.text(), SUBSCRIBED);
    assert_served(&gateway, &mut bystander);
}

#[test]
fn laggards_of_many_topics_owe_no_more_than_the_bound() {
    const OWED_BYTES_MAX: u64 = 2 << 20;
    let gateway = Gateway::start(&[
        ("slow.policy", "drop"),
        ("slow.owed_bytes_max", "2097152"),
        ("shards.socket_send_buffer_bytes", "4096"),
        ("shards.count", "1"),
    ]);
    let mut bystander = Client::subscriber(&gateway, &["t"]);
    let topics: Vec<String> = (0..200).map(|n| format!("topic-{n}")).collect();
    let mut laggards: Vec<Client> = topics.iter().map(|topic| Client::subscriber(&gateway, &[topic])).collect();
    let publisher = Publisher::new(&gateway);
    let mut stream = publisher.stream().unwrap();
    let start = Instant::now();
    // What each holds when the bound is reached is little, so one laggard less makes no room for a round of all of them.
    while gateway.metrics().closes("slow_owed") < 150.0 {
        assert!(start.elapsed() < DEADLINE, "the bound was never reached: {:?}", gateway.metrics());
        let batch = topics.iter().map(|topic| message(topic, "x".repeat(2000))).collect();
        stream.batch(batch).unwrap();
    }
    let most = gateway.metrics().sum("fanwire_owed_bytes_peak", &[]);
    // One round may be handed out before it is seen to be too much: half a `pending_bytes_max` and its slack.
    assert!(most <= (OWED_BYTES_MAX + (1 << 20) + (1 << 18)) as f64, "{most} bytes owed at most");
    assert_served(&gateway, &mut bystander);
    assert!(laggards.iter_mut().any(|client| client.event(DEADLINE) != Event::Quiet));
}

#[test]
fn subscribers_push_no_topic_out_that_is_published_to() {
    let gateway = Gateway::start(&[("limits.topics_max", "50"), ("shards.count", "1")]);
    let publisher = Publisher::new(&gateway);
    let first = publisher.publish("kept", "x").unwrap();
    let mut client = Client::gpush(&gateway);
    for n in 0..200 {
        client.subscribe(&format!("made up {n}"));
        client.ask_unsubscribe(&format!("made up {n}"));
        client.text();
        // Room again for who waits a moment: interest is given up a second after the last subscriber.
        if n % 40 == 39 {
            let given_up = || gateway.metrics().sum("fanwire_interests", &[]) <= 1.0;
            wait_until("no interest is left but everyone's", given_up);
        }
    }
    let second = publisher.publish("kept", "x").unwrap();
    assert_eq!((second.epoch, second.offset), (first.epoch, first.offset + 1), "it was forgotten for a made-up one");
    assert!(gateway.metrics().sum("fanwire_topics_evicted_total", &[]) >= 100.0);
}

#[test]
fn a_shard_takes_part_in_topics_max_topics_and_no_more() {
    let gateway = Gateway::start(&[("limits.topics_max", "3"), ("shards.count", "1")]);
    let mut greedy = Client::subscriber(&gateway, &["t", "b", "c"]);
    greedy.ask_subscribe("d");
    assert!(greedy.text().starts_with(r#"{"code":30001,"message":"操作有误","detail":"#));
    assert_eq!(gateway.metrics().sum("fanwire_topics_refused_total", &[]), 1.0);
    // Those that are there are everyone's.
    let mut other = Client::subscriber(&gateway, &["t"]);
    assert_served(&gateway, &mut other);
    assert_eq!(greedy.text(), "still served");
}

#[test]
fn messages_that_never_end_take_bounded_memory() {
    let gateway = Gateway::start(&[
        ("limits.message_bytes_max", "16384"),
        ("limits.partial_bytes_max", "65536"),
        ("shards.count", "1"),
    ]);
    let mut bystander = Client::subscriber(&gateway, &["t"]);
    let endless = frame(0x80 | TEXT, &[b'x'; 16_384]);
    let mut clients: Vec<Client> = (0..10).map(|_| Client::gpush(&gateway)).collect();
    for client in &mut clients {
        client.write(&endless[..endless.len() - 1]);
    }
    wait_until("some are closed", || gateway.metrics().closes("partial") >= 6.0);
    assert!(gateway.metrics().sum("fanwire_partial_bytes", &[]) <= 65_536.0);
    let closed = |client: &mut Client| match client.event(Duration::from_millis(200)) {
        Event::Frame(frame) => {
            assert_eq!((frame.opcode(), frame.close().0), (CLOSE, 1013));
            true
        }
        _ => false,
    };
    assert!(clients.iter_mut().filter_map(|client| closed(client).then_some(())).count() >= 6);
    drop(clients);
    wait_until("nothing is held any more", || gateway.metrics().sum("fanwire_partial_bytes", &[]) == 0.0);
    assert_served(&gateway, &mut bystander);
}

/// A file of one token.
fn token_file(name: &str) -> std::path::PathBuf {
    let file = std::env::temp_dir().join(format!("fanwire-hostile-{name}-{}", std::process::id()));
    std::fs::write(&file, "a-token-of-the-right-kind\n").unwrap();
    file
}

#[test]
fn who_only_connects_to_a_publishing_port_makes_room_for_publishers() {
    let file = token_file("ports");
    let settings = [("publish.connections_max", "8"), ("publish.tokens_file", file.to_str().unwrap())];
    let gateway = Gateway::start(&settings);
    std::fs::remove_file(&file).unwrap();
    let publisher = Publisher::new(&gateway).with_token("a-token-of-the-right-kind");
    publisher.publish("t", "before").unwrap();

    let connect = |to| TcpStream::connect_timeout(&to, DEADLINE).unwrap();
    let mut strangers: Vec<TcpStream> = (0..40).map(|_| connect(gateway.grpc)).collect();
    strangers.extend((0..40).map(|_| connect(gateway.http)));
    let authorization = ("Authorization", "Bearer a-token-of-the-right-kind");
    let body = br#"{"topic":"t","data":"eA=="}"#;
    let start = Instant::now();
    let answer = request(gateway.http, "POST", "/v1/pushData", &[authorization], body);
    assert_eq!(answer.status, 200, "{answer:?}");
    publisher.publish("t", "on the connection it had").unwrap();
    Publisher::new(&gateway).with_token("a-token-of-the-right-kind").publish("t", "on a new one").unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?} behind idle strangers", start.elapsed());

    let metrics = request(gateway.http, "GET", "/metrics", &[authorization], b"").body;
    let value = |series: &str| {
        let line = metrics.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("{series}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(value("fanwire_publishers_cut_total") >= 64.0, "{}", value("fanwire_publishers_cut_total"));
    assert!(value("fanwire_publisher_connections{protocol=\"grpc\"}") <= 9.0);
    drop(strangers);
}

#[test]
fn a_publisher_without_a_token_gets_its_401_whatever_it_sends() {
    let file = token_file("401");
    let gateway = Gateway::start(&[("publish.tokens_file", file.to_str().unwrap())]);
    std::fs::remove_file(&file).unwrap();
    let before = gateway.rss_bytes();
    for bytes in [0, 100, 50_000] {
        for _ in 0..20 {
            let answer = request(gateway.http, "POST", "/v1/pushData", &[], &vec![b'x'; bytes]);
            assert_eq!((answer.status, answer.json()["code"].as_u64()), (401, Some(16)), "{bytes} bytes");
        }
    }
    assert!(gateway.rss_bytes() < before + (8 << 20), "the bodies of strangers are kept");
}

#[test]
fn strangers_have_few_and_small_calls_open_by_grpc() {
    let file = token_file("calls");
    let gateway = Gateway::start(&[("publish.tokens_file", file.to_str().unwrap())]);
    std::fs::remove_file(&file).unwrap();
    let stranger = Publisher::new(&gateway);
    stranger.block_on(async |channel| {
        let mut health = HealthClient::new(channel.clone());
        let mut watches = Vec::new();
        let refused = loop {
            assert!(watches.len() < 100, "a stranger has any number of calls open");
            match health.watch(HealthCheckRequest::default()).await {
                Ok(watch) => watches.push(watch),
                Err(status) => break status,
            }
        };
        assert_eq!((refused.code(), watches.len()), (Code::ResourceExhausted, 8), "{refused:?}");
        // One ends, and there is room for a probe.
        watches.pop();
        let probed = async || health.clone().check(HealthCheckRequest::default()).await.is_ok();
        while !probed().await {}

        drop(watches);
        let question = MessageRequest::FileContainingSymbol("x".repeat(100_000));
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let mut reflection = ServerReflectionClient::new(channel);
        let answers = reflection.server_reflection_info(tokio_stream::once(request)).await;
        let answer = match answers {
            Ok(answers) => answers.into_inner().message().await,
            Err(status) => Err(status),
        };
        assert!(!matches!(answer, Ok(Some(_))), "100 kB of a stranger's are taken");
    });
    let known = Publisher::new(&gateway).with_token("a-token-of-the-right-kind");
    known.publish("t", "x").unwrap();
    let shown = known.block_on(async |channel| {
        let mut health = HealthClient::new(channel);
        let mut watches = Vec::new();
        for _ in 0..20 {
            watches.push(health.watch(HealthCheckRequest::default()).await);
        }
        watches.iter().filter(|watch| watch.is_ok()).count()
    });
    assert_eq!(shown, 20, "who has shown a token may watch more");
}
