//! What clients of Centrifugo see: its JSON protocol over real sockets.

use crate::client::{Client, Event, PING, PONG, TEXT, tungstenite, upgrade};
use crate::gateway::{DEADLINE, Gateway, wait_until};
use crate::http::{self, Response};
use crate::publisher::{Publisher, message};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tungstenite::Message;

const PATH: &str = "/connection/websocket";
const DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";

/// A client that has sent `connect` and was welcomed.
fn connect(gateway: &Gateway, more: &str) -> (Client, Value) {
    let (_, mut client) = Client::open(gateway.subscribers, PATH, more);
    client.send(TEXT, r#"{"connect":{"name":"js"},"id":1}"#);
    let welcome: Value = serde_json::from_str(&client.text()).unwrap();
    assert_eq!(welcome["id"], 1);
    (client, welcome["connect"].clone())
}

/// A client that is subscribed to `channels`.
fn subscriber(gateway: &Gateway, more: &str, channels: &[&str]) -> Client {
    let (mut client, _) = connect(gateway, more);
    for (n, channel) in channels.iter().enumerate() {
        subscribe(&mut client, n as u32 + 2, channel);
    }
    client
}

fn subscribe(client: &mut Client, id: u32, channel: &str) {
    client.send(TEXT, json!({ "id": id, "subscribe": { "channel": channel } }).to_string());
    let answer: Value = serde_json::from_str(&client.text()).unwrap();
    assert!(answer["id"] == id && answer["subscribe"].is_object(), "{answer}");
}

/// The lines of the next frame.
fn lines(client: &mut Client) -> Vec<Value> {
    client.text().lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// The data of publications, all of `channel`.
fn data(lines: &[Value], channel: &str) -> Vec<Value> {
    let of = |line: &Value| {
        assert_eq!(line["push"]["channel"], channel, "{line}");
        line["push"]["pub"]["data"].clone()
    };
    lines.iter().map(of).collect()
}

#[test]
fn a_client_that_we_did_not_write_connects_subscribes_receives_and_leaves() {
    let gateway = Gateway::start(&[]);
    let mut socket = tungstenite(gateway.subscribers, PATH);
    let mut ask = |text: &str| {
        socket.send(Message::text(text)).unwrap();
        socket.read().unwrap().into_text().unwrap().to_string()
    };
    // In one frame, as the JavaScript client does it, answered in one frame.
    let answer =
        ask("{\"connect\":{\"name\":\"js\"},\"id\":1}\n{\"subscribe\":{\"channel\":\"news\",\"flag\":1},\"id\":2}");
    let connect: Value = serde_json::from_str(answer.lines().next().unwrap()).unwrap();
    assert_eq!(connect["id"], 1);
    assert_eq!((&connect["connect"]["ping"], &connect["connect"]["pong"]), (&json!(25), &json!(true)));
    assert_eq!(connect["connect"]["client"].as_str().unwrap().len(), 36);
    let subscribed = match answer.lines().nth(1) {
        Some(line) => line.to_owned(),
        None => socket.read().unwrap().into_text().unwrap().to_string(),
    };
    let subscribed: Value = serde_json::from_str(&subscribed).unwrap();
    assert_eq!(subscribed["id"], 2);
    assert_eq!(subscribed["subscribe"]["recoverable"], Value::Null);

    gateway.push("news", r#"{"price": 1.5}"#);
    let push = socket.read().unwrap().into_text().unwrap();
    let epoch = &subscribed["subscribe"]["epoch"];
    assert_eq!(
        push.as_str(),
        format!(r#"{{"push":{{"channel":"news","pub":{{"data":{{"price":1.5}},"offset":1,"epoch":{epoch}}}}}}}"#)
    );
    gateway.push("news", "not json\n");
    assert_eq!(
        socket.read().unwrap().into_text().unwrap().as_str(),
        r#"{"push":{"channel":"news","pub":{"data":"not json\n","offset":2}}}"#
    );
    socket.send(Message::text(r#"{"id":3,"unsubscribe":{"channel":"news"}}"#)).unwrap();
    assert_eq!(socket.read().unwrap().into_text().unwrap().as_str(), r#"{"id":3,"unsubscribe":{}}"#);
    gateway.push("news", "3");
    gateway.push("", "{\"to\":\"everyone\"}");
    assert_eq!(
        socket.read().unwrap().into_text().unwrap().as_str(),
        r#"{"push":{"message":{"data":{"to":"everyone"}}}}"#
    );
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    wait_until("the connection is gone", || gateway.metrics().connections() == 0.0);
}

#[test]
fn what_goes_to_everyone_reaches_who_is_connected_and_nobody_before() {
    let gateway = Gateway::start(&[("shards.count", "1")]);
    let (_, mut early) = Client::open(gateway.subscribers, PATH, "");
    let (mut connected, _) = connect(&gateway, "");
    gateway.push("", "1");
    assert_eq!(connected.text(), r#"{"push":{"message":{"data":1}}}"#);
    early.send(TEXT, r#"{"id":1,"connect":{}}"#);
    let welcome: Value = serde_json::from_str(&early.text()).unwrap();
    assert!(welcome["connect"].is_object(), "the first it hears is its own answer: {welcome}");
    gateway.push("", "2");
    assert_eq!(early.text(), r#"{"push":{"message":{"data":2}}}"#);
}

#[test]
fn every_connection_has_a_name_of_its_own() {
    let gateway = Gateway::start(&[("shards.count", "2")]);
    let mut clients = Vec::new();
    let mut names = std::collections::HashSet::new();
    for _ in 0..20 {
        let (client, welcome) = connect(&gateway, "");
        assert!(names.insert(welcome["client"].as_str().unwrap().to_owned()), "{welcome}");
        clients.push(client);
    }
    let other = Gateway::start(&[]);
    assert!(names.insert(connect(&other, "").1["client"].as_str().unwrap().to_owned()));
}

#[test]
fn each_command_of_a_frame_gets_its_answer_by_number_in_one_frame_where_it_is_known_at_once() {
    let gateway = Gateway::start(&[("shards.count", "1"), ("centrifugo.channels_per_connection_max", "3")]);
    let mut other = subscriber(&gateway, "", &["a", "b", "c", "d"][..3]);
    let (mut client, _) = connect(&gateway, "");
    let long = "x".repeat(256);
    let ask = [
        json!({"id": 2, "subscribe": {"channel": "a"}}),
        json!({"id": 3, "subscribe": {"channel": "a"}}),
        json!({"id": 4, "subscribe": {"channel": long}}),
        json!({"id": 5, "subscribe": {"channel": "b"}}),
        json!({"id": 6, "subscribe": {"channel": "$private"}}),
        json!({"id": 7, "subscribe": {"channel": "c"}}),
        json!({"id": 8, "subscribe": {"channel": "d"}}),
        json!({"id": 9, "publish": {"channel": "a", "data": {}}}),
        json!({"id": 10, "presence": {"channel": "a"}}),
        json!({"id": 11, "rpc": {"method": "m"}}),
        json!({"id": 12, "unsubscribe": {"channel": "a"}}),
        json!({"id": 13, "unsubscribe": {"channel": "never had"}}),
        json!({"id": 14, "subscribe": {"channel": "a"}}),
    ];
    client.send(TEXT, ask.map(|line| line.to_string()).join("\n"));
    let answers = lines(&mut client);
    let said: Vec<(u64, u64)> =
        answers.iter().map(|a| (a["id"].as_u64().unwrap(), a["error"]["code"].as_u64().unwrap_or(0))).collect();
    let expected = [
        (2, 0),
        (3, 105),
        (4, 107),
        (5, 0),
        (6, 103),
        (7, 0),
        (8, 106),
        (9, 103),
        (10, 108),
        (11, 104),
        (12, 0),
        (13, 0),
        (14, 0),
    ];
    assert_eq!(said, expected);
    assert_eq!(answers[1]["error"]["message"], "already subscribed");
    gateway.push("b", "1");
    assert_eq!(data(&lines(&mut client), "b"), [json!(1)]);
    assert_eq!(data(&lines(&mut other), "b"), [json!(1)]);
}

#[test]
fn whatever_is_asked_while_a_subscription_is_under_way_is_answered_in_full() {
    let gateway = Gateway::start(&[]);
    let (mut client, _) = connect(&gateway, "");
    // The first subscriber of a channel waits for the control core; what follows in the same frame does not.
    let ask: Vec<String> = (0..40)
        .flat_map(|n| {
            let (channel, id) = (format!("c{n}"), 10 + 3 * n);
            [
                json!({"id": id, "subscribe": {"channel": channel}}).to_string(),
                json!({"id": id + 1, "unsubscribe": {"channel": channel}}).to_string(),
                json!({"id": id + 2, "subscribe": {"channel": channel}}).to_string(),
            ]
        })
        .collect();
    client.send(TEXT, ask.join("\n"));
    let mut answers = Vec::new();
    while answers.len() < 120 {
        answers.extend(lines(&mut client));
    }
    let ids: Vec<u64> = answers.iter().map(|answer| answer["id"].as_u64().unwrap()).collect();
    for n in 0..40 {
        let place = |id| ids.iter().position(|at| *at == id).unwrap_or_else(|| panic!("{id} was not answered"));
        let first = 10 + 3 * n;
        assert!(place(first) < place(first + 1) && place(first + 1) < place(first + 2), "{ids:?}");
    }
    assert!(answers.iter().all(|answer| answer["error"].is_null()), "{answers:?}");
    gateway.push("c7", "7");
    assert_eq!(data(&lines(&mut client), "c7"), [json!(7)]);
}

#[test]
fn violations_close_with_their_code_and_a_reason() {
    let gateway = Gateway::start(&[("centrifugo.stale_timeout_ms", "300")]);
    for message in ["", "nonsense", "{}", r#"{"id":1,"subscribe":{"channel":"c"}}"#] {
        let (_, mut client) = Client::open(gateway.subscribers, PATH, "");
        client.send(TEXT, message);
        let (code, reason, _) = client.closed();
        assert_eq!((code, reason.as_str()), (3501, "bad request"), "{message:?}");
    }
    for message in [r#"{"id":2,"connect":{}}"#, r#"{"id":2,"subscribe":{"channel":""}}"#, "{}", "[]"] {
        let (mut client, _) = connect(&gateway, "");
        client.send(TEXT, format!("{{\"id\":2,\"rpc\":{{}}}}\n{message}"));
        let (code, reason, texts) = client.closed();
        assert_eq!((code, reason.as_str()), (3501, "bad request"), "{message:?}");
        assert_eq!(texts.len(), 1, "what was asked before is answered before");
    }
    let (_, mut silent) = Client::open(gateway.subscribers, PATH, "");
    let (code, reason, _) = silent.closed();
    assert_eq!((code, reason.as_str()), (3502, "stale"));
    let (mut client, _) = connect(&gateway, "");
    client.send(TEXT, r#"{"send":{"data":{}}}"#);
    assert_eq!(client.closed().0, 3508);
    let big = Gateway::start(&[("limits.message_bytes_max", "1024")]);
    let (mut client, _) = connect(&big, "");
    client.send(TEXT, vec![b' '; 1025]);
    assert_eq!(client.closed().0, 1009);
}

#[test]
fn the_subprotocol_is_echoed_and_protobuf_refused_in_words() {
    let gateway = Gateway::start(&[]);
    let (response, _) = Client::open(gateway.subscribers, PATH, "Sec-WebSocket-Protocol: centrifuge-json\r\n");
    assert_eq!(response.headers["sec-websocket-protocol"], "centrifuge-json");
    for (path, more) in [
        (format!("{PATH}?format=protobuf"), ""),
        (format!("{PATH}?cf_protocol=protobuf"), ""),
        (PATH.to_owned(), "Sec-WebSocket-Protocol: centrifuge-protobuf\r\n"),
    ] {
        let (response, _) = Client::ask(gateway.subscribers, &upgrade(&path, more));
        assert_eq!(response.status, 400);
        assert!(response.body.contains("protobuf is not served"), "{response:?}");
    }
}

#[test]
fn who_answers_pings_stays_and_who_does_not_is_closed_with_3012() {
    let gateway = Gateway::start(&[("centrifugo.ping_interval_ms", "600"), ("centrifugo.pong_timeout_ms", "300")]);
    let (mut mute, welcome) = connect(&gateway, "");
    assert_eq!(welcome["ping"], 1, "whole seconds, upwards");
    let (mut polite, _) = connect(&gateway, "");
    let start = Instant::now();
    let mut pings = 0;
    while pings < 4 {
        assert_eq!(polite.text(), "{}");
        polite.send(TEXT, "{}");
        pings += 1;
    }
    assert!(start.elapsed() > Duration::from_millis(1800), "four pings in {:?}", start.elapsed());
    let (code, reason, texts) = mute.closed();
    assert_eq!((code, reason.as_str(), texts), (3012, "no pong", vec!["{}".to_owned()]));
    polite.send(TEXT, "{}");
    assert_eq!(polite.closed().0, 3501, "one pong too many");
    assert_eq!(gateway.metrics().closes("heartbeat"), 1.0);
}

#[test]
fn who_asks_for_control_frames_is_pinged_by_them() {
    let gateway = Gateway::start(&[("centrifugo.ping_interval_ms", "600"), ("centrifugo.pong_timeout_ms", "300")]);
    let (_, mut client) = Client::open(gateway.subscribers, &format!("{PATH}?cf_ws_frame_ping_pong=true"), "");
    client.send(TEXT, r#"{"id":1,"connect":{}}"#);
    let welcome: Value = serde_json::from_str(&client.text()).unwrap();
    assert_eq!((&welcome["connect"]["ping"], &welcome["connect"]["pong"]), (&Value::Null, &Value::Null));
    for _ in 0..2 {
        assert_eq!(client.frame().opcode(), PING);
        client.send(PONG, "");
    }
    assert_eq!(client.frame().opcode(), PING);
    assert_eq!(client.closed().0, 3012);
}

#[test]
fn a_drain_closes_with_3001_behind_what_was_published() {
    let mut gateway = Gateway::start(&[("drain.drain_window_ms", "0")]);
    let mut client = subscriber(&gateway, "", &["c"]);
    let mut gpush = Client::subscriber(&gateway, &["c"]);
    gateway.push("c", "1");
    assert!(gateway.stop().success());
    let (code, reason, texts) = client.closed();
    assert_eq!((code, reason.as_str(), texts.len()), (3001, "shutdown", 1));
    assert_eq!(gpush.closed().0, 1001);
}

#[test]
fn one_publication_reaches_the_clients_of_every_dialect() {
    let gateway = Gateway::start(&[("websocket.deflate", "true")]);
    let mut gpush = Client::subscriber(&gateway, &["c"]);
    let mut plain = subscriber(&gateway, "", &["c"]);
    let mut deflated = subscriber(&gateway, DEFLATE, &["c"]);
    for (n, message) in
        [r#"{"a":1}"#.to_owned(), "text".to_owned(), format!("[{}]", "1,".repeat(500) + "1")].iter().enumerate()
    {
        gateway.push("c", message);
        assert_eq!(gpush.text(), *message);
        let expected = serde_json::from_str(message).unwrap_or_else(|_| json!(message));
        for client in [&mut plain, &mut deflated] {
            let lines = lines(client);
            assert_eq!(data(&lines, "c"), std::slice::from_ref(&expected));
            assert_eq!(lines[0]["push"]["pub"]["offset"], n + 1);
        }
    }
    gateway.push("", "all");
    assert_eq!(gpush.text(), "all");
    assert_eq!(deflated.text(), r#"{"push":{"message":{"data":"all"}}}"#);
}

/// Messages of a client until it has `count`, and the frames they came in.
fn receive(client: &mut Client, channel: &str, count: usize) -> (Vec<Value>, usize) {
    let (mut got, mut frames) = (Vec::new(), 0);
    while got.len() < count {
        got.extend(data(&lines(client), channel));
        frames += 1;
    }
    (got, frames)
}

fn numbers(from: usize, count: usize) -> Vec<Value> {
    (from..from + count).map(Value::from).collect()
}

#[test]
fn a_ticks_publications_of_a_channel_are_one_message_compressed_or_not() {
    // A tick long enough for all that is published at once, and short enough for a test.
    let settings = [("shards.tick_interval_us", "300000"), ("websocket.deflate", "true"), ("shards.count", "1")];
    let gateway = Gateway::start(&settings);
    let publisher = Publisher::new(&gateway);
    let mut stream = publisher.stream().unwrap();
    let mut publish = |from: usize, count: usize, pad: usize| {
        let pad = " ".repeat(pad);
        let messages = (from..from + count).map(|n| message("c", format!("{n}{pad}"))).collect();
        stream.batch(messages).unwrap();
    };
    let mut clients = [subscriber(&gateway, "", &["c"]), subscriber(&gateway, DEFLATE, &["c"])];
    publish(0, 1, 0); // Leaves at once, and begins the tick.
    for client in &mut clients {
        assert_eq!(receive(client, "c", 1).1, 1);
    }
    publish(1, 100, 0);
    for (client, first) in clients.iter_mut().zip([0x81, 0xc1]) {
        let frame = client.frame();
        assert_eq!(frame.first, first);
        let lines: Vec<Value> = frame.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(data(&lines, "c"), numbers(1, 100), "in one frame");
        assert_eq!(lines[99]["push"]["pub"]["offset"], 101);
    }
    // Bounded: what is long comes in several.
    publish(101, 100, 1000);
    for client in &mut clients {
        let (got, frames) = receive(client, "c", 100);
        assert_eq!(got, numbers(101, 100));
        assert!((1..=10).contains(&frames), "{frames} frames");
    }
}

#[test]
fn who_joins_in_the_middle_of_a_tick_gets_its_part_as_a_message_of_its_own() {
    let settings = [("shards.tick_interval_us", "500000"), ("websocket.deflate", "true"), ("shards.count", "1")];
    let gateway = Gateway::start(&settings);
    for more in ["", DEFLATE] {
        let mut early = subscriber(&gateway, more, &["c"]);
        let (mut late, _) = connect(&gateway, more);
        gateway.push("c", "0");
        assert_eq!(data(&lines(&mut early), "c"), [json!(0)]);
        gateway.push("c", "1");
        gateway.push("c", "2");
        subscribe(&mut late, 2, "c");
        gateway.push("c", "3");
        gateway.push("c", "4");
        assert_eq!(data(&lines(&mut early), "c"), numbers(1, 2));
        assert_eq!(data(&lines(&mut early), "c"), numbers(3, 2));
        assert_eq!(data(&lines(&mut late), "c"), numbers(3, 2));
    }
}

#[test]
fn every_client_of_any_number_of_shards_gets_all_in_order() {
    const MESSAGES: usize = 3000;
    for shards in ["1", "2", "5"] {
        let gateway = Gateway::start(&[("shards.count", shards), ("websocket.deflate", "true")]);
        let publisher = Publisher::new(&gateway);
        let mut clients: Vec<Client> =
            (0..12).map(|n| subscriber(&gateway, if n % 2 == 0 { "" } else { DEFLATE }, &["c", "d"])).collect();
        let mut gpush = Client::subscriber(&gateway, &["c"]);
        let mut stream = publisher.stream().unwrap();
        let mut frames = 0;
        for from in (0..MESSAGES).step_by(100) {
            stream.batch((from..from + 100).map(|n| message("c", n.to_string())).collect()).unwrap();
            for client in &mut clients {
                let (got, in_frames) = receive(client, "c", 100);
                assert_eq!(got, numbers(from, 100));
                frames += in_frames;
            }
        }
        for n in 0..MESSAGES {
            assert_eq!(gpush.text(), n.to_string());
        }
        assert!(frames < 12 * MESSAGES / 4, "{frames} frames: hardly anything was joined");
        let metrics = gateway.metrics();
        assert_eq!((metrics.drops(), metrics.sum("fanwire_deliveries_total", &[])), (0.0, 13.0 * MESSAGES as f64));
    }
}

/// Settings under which a client that does not read is slow soon.
const SMALL: [(&str, &str); 4] = [
    ("shards.count", "1"),
    ("shards.socket_send_buffer_bytes", "16384"),
    ("slow.pending_bytes_max", "131072"),
    ("limits.close_deadline_ms", "5000"),
];

/// Publishes batches of numbered messages until `done`; returns how many there were.
fn publish_until(publisher: &Publisher, mut done: impl FnMut() -> bool) -> usize {
    let mut stream = publisher.stream().unwrap();
    let (mut published, start) = (0, Instant::now());
    while !done() {
        assert!(start.elapsed() < DEADLINE, "nothing of the kind after {published} messages");
        let batch =
            (published..published + 20).map(|n| message("c", format!("[{n},\"{}\"]", "x".repeat(900)))).collect();
        let result = stream.batch(batch).unwrap();
        assert!(result.results.iter().all(|r| r.error.is_none()), "{result:?}");
        published += 20;
    }
    published
}

/// The numbers of what came, each message whole.
fn got(texts: &[String]) -> Vec<u64> {
    let lines = texts.iter().flat_map(|text| text.lines());
    let number = |line: &str| {
        let push: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        push["push"]["pub"]["data"][0].as_u64().unwrap()
    };
    lines.map(number).collect()
}

#[test]
fn a_slow_client_is_closed_with_3008_between_two_frames_and_its_messages_are_counted() {
    let gateway = Gateway::start(&SMALL);
    let publisher = Publisher::new(&gateway);
    let mut slow = subscriber(&gateway, "", &["c"]);
    let published = publish_until(&publisher, || gateway.metrics().closes("slow_pending") == 1.0);
    let (code, reason, texts) = slow.closed();
    assert_eq!((code, reason.as_str()), (3008, "slow"));
    let got = got(&texts);
    assert_eq!(got, (0..got.len() as u64).collect::<Vec<_>>());
    let dropped = gateway.metrics().drops_by("disconnected") as usize;
    assert!(dropped > 0 && got.len() + dropped <= published, "{} + {dropped} of {published}", got.len());
}

#[test]
fn under_drop_whole_frames_go_and_every_message_in_them_is_counted() {
    let gateway = Gateway::start(&[&SMALL[..], &[("slow.policy", "drop")]].concat());
    let publisher = Publisher::new(&gateway);
    let mut slow = subscriber(&gateway, "", &["c"]);
    let published = publish_until(&publisher, || gateway.metrics().drops_by("pending_full") >= 100.0);
    // A question, which is never dropped. The tick may still hold what comes after its answer.
    slow.send(TEXT, r#"{"id":99,"rpc":{}}"#);
    let (mut texts, mut answered) = (Vec::new(), false);
    wait_until("received + counted drops = published", || {
        while let Event::Frame(frame) = slow.event(Duration::from_millis(20)) {
            match frame.text() {
                answer if answer.starts_with(r#"{"id":99"#) => answered = true,
                text => texts.push(text),
            }
        }
        answered && got(&texts).len() + gateway.metrics().drops() as usize == published
    });
    let got = got(&texts);
    assert!(got.is_sorted_by(|a, b| a < b), "{got:?}");
    assert_eq!(gateway.metrics().connections(), 1.0);
}

fn api(gateway: &Gateway, path: &str, headers: &[(&str, &str)], body: &Value) -> Response {
    http::request(gateway.http, "POST", path, headers, body.to_string().as_bytes())
}

#[test]
fn the_server_api_publishes_broadcasts_and_batches() {
    let gateway = Gateway::start(&[]);
    let mut client = subscriber(&gateway, "", &["a", "b"]);
    let mut gpush = Client::subscriber(&gateway, &["a"]);
    let said = |path: &str, body: Value| {
        let response = api(&gateway, path, &[], &body);
        assert_eq!(
            (response.status, response.headers["content-type"].as_str()),
            (200, "application/json"),
            "{response:?}"
        );
        response.json()
    };
    let published = said("/api/publish", json!({"channel": "a", "data": {"n": 1}, "skip_history": true, "tags": {}}));
    assert_eq!(published["result"]["offset"], 1);
    assert_eq!(data(&lines(&mut client), "a"), [json!({"n": 1})]);
    assert_eq!(gpush.text(), r#"{"n":1}"#);

    let broadcast = said("/api/broadcast", json!({"channels": ["a", "", "b"], "b64data": "WzJd"}));
    let responses = broadcast["result"]["responses"].as_array().unwrap();
    assert_eq!((&responses[0]["result"]["offset"], &responses[1]["error"]["code"]), (&json!(2), &json!(107)));
    assert_eq!(responses[2]["result"]["offset"], 1);
    let mut got = lines(&mut client);
    got.extend(lines(&mut client));
    got.sort_by_key(|line| line["push"]["channel"].to_string());
    assert_eq!((data(&got[..1], "a"), data(&got[1..], "b")), (vec![json!([2])], vec![json!([2])]));

    let batch = json!({"parallel": true, "commands": [
        {"publish": {"channel": "b", "data": "x"}},
        {"broadcast": {"channels": ["b", "c"], "data": 7}},
        {"publish": {"channel": "b"}},
        {"presence": {"channel": "b"}},
    ]});
    let replies = said("/api/batch", batch);
    assert_eq!(replies["replies"][0]["publish"]["offset"], 2);
    assert_eq!(replies["replies"][1]["broadcast"]["responses"][0]["result"]["offset"], 3);
    assert_eq!(
        (&replies["replies"][2]["error"]["code"], &replies["replies"][3]["error"]["code"]),
        (&json!(107), &json!(108))
    );
    assert_eq!(receive(&mut client, "b", 2).0, [json!("x"), json!(7)]);

    for (path, body, code) in [
        ("/api/publish", json!({"data": 1}), 107),
        ("/api/publish", json!({"channel": "x".repeat(256), "data": 1}), 107),
        ("/api/broadcast", json!({"channels": [], "data": 1}), 107),
        ("/api/publish", json!({"channel": "a", "b64data": "!"}), 107),
        ("/api/publish", json!({"channel": "a", "data": "x".repeat(70_000)}), 107),
        ("/api/history", json!({"channel": "a"}), 108),
    ] {
        assert_eq!(said(path, body.clone())["error"]["code"], code, "{path}");
        let transport = api(&gateway, path, &[("X-Centrifugo-Error-Mode", "transport")], &body);
        assert_eq!((transport.status, &transport.json()["code"]), (400, &json!(code)));
    }
    // 4 MB that would be 1.3 million commands, or channels: refused by the bound, which the answer names.
    let many = |path: &str, body: String| {
        let said = http::request(gateway.http, "POST", path, &[], body.as_bytes()).json();
        let told = said["error"]["message"].as_str().unwrap_or_default().contains("publish.batch_messages_max");
        assert!(told && said["error"]["code"] == 107 && said.get("replies").is_none(), "{path}: {said}");
    };
    many("/api/batch", format!(r#"{{"commands":[{}{{}}]}}"#, "{},".repeat(1_300_000)));
    many("/api/broadcast", format!(r#"{{"data":1,"channels":[{}""]}}"#, r#""","#.repeat(1_300_000)));
    for (path, body) in
        [("/api/batch", &b"{\"commands\":[7]}"[..]), ("/api/broadcast", b"{\"channels\":{},\"data\":1}")]
    {
        assert_eq!(http::request(gateway.http, "POST", path, &[], body).status, 400, "{path}");
    }
    assert_eq!(http::request(gateway.http, "POST", "/api/publish", &[], b"{").status, 400);
    assert_eq!(http::request(gateway.http, "GET", "/api/publish", &[], b"").status, 405);
    assert_eq!(api(&gateway, "/api/nothing", &[], &json!({})).status, 404);
}

#[test]
fn keys_of_the_server_api_are_asked_for_in_three_ways_and_read_again() {
    let file = std::env::temp_dir().join(format!("fanwire-api-keys-{}", std::process::id()));
    std::fs::write(&file, "# for the shop\nfirst-key-0123456789\n").unwrap();
    let gateway = Gateway::start(&[("centrifugo.api_keys_file", file.to_str().unwrap())]);
    let status = |path: &str, headers: &[(&str, &str)]| {
        let response = api(&gateway, path, headers, &json!({"channel": "a", "data": 1}));
        assert!(response.status == 200 || response.body.is_empty(), "{response:?}");
        response.status
    };
    let key = "first-key-0123456789";
    let in_query = format!("/api/publish?api_key={key}");
    assert_eq!(status("/api/publish", &[("X-API-Key", key)]), 200);
    assert_eq!(status("/api/publish", &[("Authorization", &format!("apikey {key}"))]), 200);
    assert_eq!(status(&in_query, &[]), 200);
    assert_eq!(status("/api/publish", &[]), 401);
    assert_eq!(status("/api/publish", &[("Authorization", &format!("Bearer {key}"))]), 401);
    assert_eq!(status(&in_query, &[("X-API-Key", "wrong")]), 401, "where there is one, nothing else counts");
    gateway.push("a", "open"); // The keys guard these routes alone.

    std::fs::write(&file, "second-key-012345678\n").unwrap();
    gateway.signal("HUP");
    wait_until("the new key holds", || status("/api/publish", &[("X-API-Key", "second-key-012345678")]) == 200);
    assert_eq!(status(&in_query, &[]), 401);
    std::fs::remove_file(&file).unwrap();
    let closed = std::env::temp_dir().join(format!("fanwire-api-tokens-{}", std::process::id()));
    std::fs::write(&closed, "publish-token-012345\n").unwrap();
    let gateway = Gateway::start(&[("publish.tokens_file", closed.to_str().unwrap())]);
    let body = json!({"channel": "a", "data": 1});
    assert_eq!(api(&gateway, "/api/publish", &[], &body).status, 401, "without keys, the tokens guard it");
    let bearer = [("Authorization", "Bearer publish-token-012345")];
    assert_eq!(api(&gateway, "/api/publish", &bearer, &body).status, 200);
    std::fs::remove_file(&closed).unwrap();
}

/// The library that people use, as it is, in node: `tests/clients/centrifuge`.
#[test]
fn the_javascript_client_subscribes_receives_in_order_and_comes_back_after_a_restart() {
    let node = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/centrifuge");
    let run = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).current_dir(&node).output();
        let output = output.unwrap_or_else(|e| panic!("{program}: {e}: run scripts/install-tools node"));
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
    };
    if !node.join("node_modules/centrifuge/package.json").exists() {
        run("npm", &["ci", "--no-audit", "--no-fund", "--ignore-scripts"]);
    }
    run("node", &["test.mjs", env!("CARGO_BIN_EXE_fanwire")]);
}
