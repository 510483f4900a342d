//! go-push put out of its place: its clients and its publishers over real sockets, to the byte.

use crate::client::{BINARY, Client, Event, PING, PONG, TEXT, tungstenite};
use crate::gateway::{DEADLINE, Gateway, Start, wait_for, wait_until};
use crate::http::{Response, request};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};
use tungstenite::Message;

/// A gateway with go-push's three ports on free ones.
struct Gopush {
    gateway: Gateway,
    /// Its 7777.
    connect: SocketAddr,
    /// Its 7788.
    pushes: SocketAddr,
    /// Its 7799.
    logic: SocketAddr,
}

const FREE: &[(&str, &str)] = &[
    ("compat.gopush.enabled", "true"),
    ("compat.gopush.connect_address", "127.0.0.1:0"),
    ("compat.gopush.gateway_address", "127.0.0.1:0"),
    ("compat.gopush.logic_address", "127.0.0.1:0"),
];

/// Windows long enough that only their count ends them within a test.
const BY_COUNT: (&str, &str) = ("compat.gopush.max_merge_delay_ms", "600000");
/// Windows short enough not to be waited for.
const SOON: (&str, &str) = ("compat.gopush.max_merge_delay_ms", "20");

impl Gopush {
    fn start(settings: &[(&str, &str)]) -> Gopush {
        let gateway = Start::new().sets(FREE).sets(settings).start();
        let stdout = gateway.stdout();
        let find = |of: &dyn Fn(&str) -> bool| -> SocketAddr {
            let line = stdout.lines().rfind(|line| of(line)).unwrap_or_else(|| panic!("not told: {stdout}"));
            let (_, rest) = line.split_once("://").unwrap();
            rest.split(['/', ' ']).next().unwrap().parse().unwrap()
        };
        Gopush {
            connect: find(&|line| line.starts_with("subscribers ") && line.ends_with("(go-push)")),
            pushes: find(&|line| line.starts_with("go-push ") && line.contains("(gateway:")),
            logic: find(&|line| line.starts_with("go-push ") && line.contains("(logic:")),
            gateway,
        }
    }

    /// A client that is in these rooms.
    fn client(&self, rooms: &[&str]) -> Client {
        let (_, mut client) = Client::open(self.connect, "/connect", "Origin: https://anywhere.example\r\n");
        rooms.iter().for_each(|room| client.send(TEXT, join(room)));
        pong(&mut client); // Requests are handled one after another: it is in.
        client
    }

    fn push(&self, path: &str, body: &str) {
        assert_empty(&request(self.logic, "POST", path, FORM, body.as_bytes()));
    }

    fn room(&self, room: &str, items: &str) {
        self.push("/push/room", &format!("room={room}&items={items}"));
    }

    fn all(&self, items: &str) {
        self.push("/push/all", &format!("items={items}"));
    }

    /// `/stats` of the gateway, by HTTP/2.
    fn stats(&self) -> serde_json::Value {
        let body = curl(&["--http2", &format!("https://{}/stats", self.pushes)]);
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}"))
    }

    fn logic_stats(&self) -> String {
        request(self.logic, "GET", "/stats", &[], b"").body
    }
}

const FORM: &[(&str, &str)] = &[("Content-Type", "application/x-www-form-urlencoded")];

fn assert_empty(response: &Response) {
    assert_eq!((response.status, response.body.as_str()), (200, ""), "{response:?}");
    assert_eq!(response.headers["content-length"], "0");
}

fn join(room: &str) -> String {
    format!(r#"{{"type":"JOIN","data":{{"room":"{room}"}}}}"#)
}

fn leave(room: &str) -> String {
    format!(r#"{{"type":"LEAVE","data":{{"room":"{room}"}}}}"#)
}

/// PING, and nothing but its answer comes.
fn pong(client: &mut Client) {
    client.send(TEXT, r#"{"type":"PING","data":{}}"#);
    let frame = client.frame();
    assert_eq!((frame.first, frame.payload.as_slice()), (0x81, &br#"{"type":"PONG","data":{}}"#[..]));
}

fn pushed(items: &str) -> String {
    format!(r#"{{"type":"PUSH","data":{{"items":[{items}]}}}}"#)
}

/// curl, certificate not verified; its output.
fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["-sSk", "--noproxy", "*", "--max-time", "15"])
        .args(arguments)
        .output()
        .expect("curl");
    assert!(output.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_client_that_we_did_not_write_joins_a_room_and_gets_its_pushes() {
    let gopush = Gopush::start(&[SOON]);
    for at in [gopush.connect, gopush.gateway.subscribers] {
        let mut socket = tungstenite(at, "/connect");
        socket.send(Message::text(join("fengtimo"))).unwrap();
        socket.send(Message::text(r#"{"type":"PING","data":{}}"#)).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text(r#"{"type":"PONG","data":{}}"#), "there is no greeting");
        gopush.room("fengtimo", r#"[{"name": "go-push"},{"age":"1"}]"#);
        assert_eq!(socket.read().unwrap(), Message::text(pushed(r#"{"name":"go-push"},{"age":"1"}"#)));
        socket.close(None).unwrap();
        while socket.read().is_ok() {}
    }
    wait_until("the connections are gone", || gopush.gateway.metrics().connections() == 0.0);
}

#[test]
fn items_are_compacted_and_escaped_as_go_does_and_keep_their_order() {
    let gopush = Gopush::start(&[("compat.gopush.max_merge_items", "6"), BY_COUNT]);
    let mut client = gopush.client(&["r"]);
    gopush.room("r", "[ {\"b\" : 1.50, \"a\":[1E5 , null]} ,\"<%26>\u{2028}\", -0, [] , true,\t{} ]");
    let items = r#"{"b":1.50,"a":[1E5,null]},"\u003c\u0026\u003e\u2028",-0,[],true,{}"#;
    assert_eq!(client.text(), pushed(items));
}

#[test]
fn rooms_and_everyone_are_told_apart_and_leaving_ends_it() {
    let gopush = Gopush::start(&[SOON]);
    let (mut a, mut b) = (gopush.client(&["a", "both"]), gopush.client(&["b", "both", "both"]));
    let mut lonely = gopush.client(&[]);
    gopush.room("a", "[1]");
    assert_eq!(a.text(), pushed("1"));
    gopush.room("both", "[2]");
    assert_eq!((a.text(), b.text()), (pushed("2"), pushed("2")));
    gopush.all("[3]");
    for client in [&mut a, &mut b, &mut lonely] {
        assert_eq!(client.text(), pushed("3"));
    }
    b.send(TEXT, leave("both"));
    b.send(TEXT, leave("never joined"));
    pong(&mut b);
    gopush.room("both", "[4]");
    assert_eq!(a.text(), pushed("4"));
    gopush.room("b", "[5]");
    assert_eq!(b.text(), pushed("5"), "and nothing came of the room it left");
    pong(&mut lonely);
}

#[test]
fn rooms_beyond_the_limit_are_ignored_silently() {
    let gopush = Gopush::start(&[SOON]);
    let mut client = gopush.client(&["1", "2", "3", "4", "5", "6", "5"]);
    gopush.room("6", "[\"not theirs\"]");
    gopush.room("5", "[5]");
    assert_eq!(client.text(), pushed("5"));
    client.send(TEXT, leave("1"));
    client.send(TEXT, join("6"));
    pong(&mut client);
    gopush.room("6", "[6]");
    assert_eq!(client.text(), pushed("6"));
}

#[test]
fn nonsense_ends_the_connection_without_a_close_frame_or_is_ignored() {
    let gopush = Gopush::start(&[]);
    for nonsense in [
        "{".to_string(),
        "PING".into(),
        "[]".into(),
        r#"{"type":1}"#.into(),
        r#"{"type":"JOIN"}"#.into(),
        r#"{"type":"JOIN","data":[]}"#.into(),
        r#"{"type":"LEAVE","data":{"room":7}}"#.into(),
        join(""),
        leave(""),
    ] {
        let mut client = gopush.client(&[]);
        client.send(TEXT, &nonsense);
        assert_eq!(client.ends(), [], "in answer to {nonsense:?}");
    }
    assert_eq!(gopush.gateway.metrics().closes("dialect"), 9.0);
    let mut client = gopush.client(&[]);
    for ignored in [r#"{"type":"ping"}"#, r#"{"type":"HELLO","data":1}"#, r#"{"data":{}}"#, "null"] {
        client.send(TEXT, ignored);
    }
    client.send(BINARY, [0xff, 0x00]);
    client.send(BINARY, r#"{"type":"PING"}"#);
    pong(&mut client);
    client.send(PING, "still there");
    assert_eq!(client.frame().first, 0x80 | PONG);
}

#[test]
fn a_client_is_cut_one_to_two_intervals_after_its_last_ping() {
    const INTERVAL: Duration = Duration::from_millis(800);
    let gopush = Gopush::start(&[("compat.gopush.heartbeat_interval_ms", "800")]);
    let start = Instant::now();
    let (_, mut silent) = Client::open(gopush.connect, "/connect", "");
    let mut for_a_while = gopush.client(&[]);
    let mut last_ping = start;
    let mut alive = gopush.client(&[]);
    let mut ended = [None, None];
    while ended.contains(&None) {
        assert!(start.elapsed() < DEADLINE, "never cut: {ended:?}");
        pong(&mut alive);
        if start.elapsed() < INTERVAL / 2 {
            last_ping = Instant::now();
            pong(&mut for_a_while);
        }
        silent.try_write(&crate::client::frame(0x80 | PING, b""), Duration::from_secs(1)); // No heartbeat.
        for (client, ended) in [&mut silent, &mut for_a_while].into_iter().zip(&mut ended) {
            match client.event(Duration::from_millis(20)) {
                Event::Frame(frame) => assert_eq!(frame.first, 0x80 | PONG, "{frame:?}"),
                Event::End(_) | Event::Reset => *ended = ended.or(Some(start.elapsed())),
                Event::Quiet => {}
            }
        }
    }
    let [silent, for_a_while] = ended.map(Option::unwrap);
    assert!(silent >= INTERVAL - Duration::from_millis(50), "cut after {silent:?}");
    assert!(start + for_a_while >= last_ping + INTERVAL, "cut after {for_a_while:?}");
    assert!(for_a_while >= 2 * INTERVAL - Duration::from_millis(50), "not at the end of an interval: {for_a_while:?}");
    assert_eq!(gopush.gateway.metrics().closes("heartbeat"), 2.0);
}

#[test]
fn items_are_merged_by_count() {
    let gopush = Gopush::start(&[BY_COUNT]);
    let (mut one, mut other) = (gopush.client(&["r"]), gopush.client(&["r"]));
    let before = gopush.gateway.metrics().sum("fanwire_frames_total", &[]);
    let items: Vec<String> = (1..=250).map(|n| format!("{{\"n\":{n}}}")).collect();
    gopush.room("r", &format!("[{}]", items[..30].join(",")));
    gopush.room("r", &format!("[{}]", items[30..].join(",")));
    for client in [&mut one, &mut other] {
        for hundred in [&items[..100], &items[100..200]] {
            assert_eq!(client.text(), pushed(&hundred.join(",")));
        }
        pong(client); // The rest is still collected.
    }
    let stats = gopush.stats(); // Brings /metrics up to date too.
    assert_eq!((&stats["mergerPending"], &stats["mergerRoomTotal"]), (&50.into(), &200.into()));
    let metrics = gopush.gateway.metrics();
    assert_eq!(metrics.sum("fanwire_frames_total", &[]) - before, 2.0, "encoded once for all");
    assert_eq!(metrics.sum("fanwire_merged_items_total", &[("target", "room")]), 200.0);
    assert_eq!(metrics.sum("fanwire_merged_messages_total", &[]), 2.0);
    assert_eq!(metrics.sum("fanwire_publications_total", &[]), 250.0);
}

#[test]
fn items_are_merged_by_delay_from_the_first_on_and_who_joins_meanwhile_gets_them() {
    let gopush = Gopush::start(&[("compat.gopush.max_merge_delay_ms", "700")]);
    let mut client = gopush.client(&["r"]);
    let start = Instant::now();
    gopush.room("r", "[1]");
    gopush.room("r", "[2,3]");
    let mut late = gopush.client(&["r"]);
    assert_eq!(client.text(), pushed("1,2,3"));
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(690), "after {took:?}");
    assert_eq!(late.text(), pushed("1,2,3"));
    gopush.all("[4]");
    gopush.all("[5]");
    assert_eq!((client.text(), late.text()), (pushed("4,5"), pushed("4,5")));
}

#[test]
fn order_is_kept_within_a_room_over_many_pushes() {
    let gopush = Gopush::start(&[("compat.gopush.max_merge_items", "7"), SOON]);
    let mut client = gopush.client(&["r"]);
    let body: Vec<String> = (0..100).map(|n| format!("items=[{},{}]&room=r", 2 * n, 2 * n + 1)).collect();
    body.iter().for_each(|body| gopush.push("/push/room", body));
    let mut seen = Vec::new();
    while seen.len() < 200 {
        let push: serde_json::Value = serde_json::from_str(&client.text()).unwrap();
        let items = push["data"]["items"].as_array().unwrap();
        assert!(items.len() <= 7);
        seen.extend(items.iter().map(|item| item.as_u64().unwrap()));
    }
    assert_eq!(seen, (0..200).collect::<Vec<_>>());
}

#[test]
fn one_topic_reaches_both_dialects_merged_in_one_and_at_once_in_the_other() {
    let gopush = Gopush::start(&[("compat.gopush.max_merge_items", "3"), BY_COUNT]);
    let mut gpush = Client::subscriber(&gopush.gateway, &["x"]);
    let mut client = gopush.client(&["x"]);
    gopush.room("x", r#"[{"a": 1},"<b>"]"#);
    assert_eq!(gpush.text(), r#"{"a": 1}"#, "each item by itself, at once, as it was sent");
    assert_eq!(gpush.text(), r#""<b>""#);
    pong(&mut client);
    gopush.gateway.push("x", "no JSON: \"<\"");
    assert_eq!(gpush.text(), "no JSON: \"<\"");
    assert_eq!(client.text(), pushed(r#"{"a":1},"\u003cb\u003e","no JSON: \"\u003c\"""#));
    for data in ["{ \"k\": [1, 2] }", "7", "text"] {
        gopush.gateway.push("", data);
        assert_eq!(gpush.text(), data);
    }
    assert_eq!(client.text(), pushed(r#"{"k":[1,2]},7,"text""#));
    gopush.all("[1,2,3]");
    assert_eq!([gpush.text(), gpush.text(), gpush.text()], ["1", "2", "3"]);
    assert_eq!(client.text(), pushed("1,2,3"));
}

#[test]
fn every_port_answers_200_with_nothing_in_it_whatever_comes() {
    let gopush = Gopush::start(&[SOON]);
    let mut client = gopush.client(&["r"]);
    let json = [("Content-Type", "application/json")];
    let room = b"room=r&items=[\"x\"]";
    for (method, path, headers, body) in [
        ("GET", "/push/all?items=[1]", FORM, &b""[..]),
        ("GET", "/push/room?room=r&items=[1]", FORM, b""),
        ("POST", "/push/all", FORM, b""),
        ("POST", "/push/all?items=[1]", FORM, b"x=1"),
        ("POST", "/push/all", FORM, b"items={}"),
        ("POST", "/push/all", FORM, b"items=[1"),
        ("POST", "/push/all", FORM, b"items=[1]&bad=%"),
        ("POST", "/push/all", FORM, b"items=null"),
        ("POST", "/push/room", FORM, b"items=[\"no room, so nobody\"]"),
        ("POST", "/push/room", &json, room),
        ("POST", "/push/room", &[], room),
        ("DELETE", "/push/room", FORM, room),
    ] {
        assert_empty(&request(gopush.logic, method, path, headers, body));
    }
    let large = format!("room=r&pad={}&items=[1]", "x".repeat(10 << 20));
    gopush.push("/push/room", &large);
    gopush.push("/push/room", &format!("room=r&pad={}&items=[\"large\"]", "x".repeat(9 << 20)));
    assert_eq!(client.text(), pushed("\"large\""), "nothing of the above went anywhere");
    let missing = request(gopush.logic, "GET", "/", &[], b"");
    assert_eq!((missing.status, missing.body.as_str()), (404, "404 page not found\n"));
}

#[test]
fn forms_that_come_to_nothing_are_counted_by_reason_and_in_stats() {
    let gopush = Gopush::start(&[SOON]);
    for (path, body) in [("/push/all", "items={}"), ("/push/room", "room=r&items=[1"), ("/push/room", "items=[1]&x=%")]
    {
        gopush.push(path, body);
    }
    gopush.push("/push/room", &format!("room=r&items=[1]&pad={}", "x".repeat(10 << 20)));
    let mut late = std::net::TcpStream::connect(gopush.logic).unwrap();
    let head = "POST /push/all HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 99999\r\n\r\n";
    late.write_all(head.as_bytes()).unwrap();
    late.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut answer = [0; 15];
    late.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK", "as go-push");
    let metrics = gopush.gateway.metrics();
    for (reason, forms) in [("malformed", 3.0), ("large", 1.0), ("late", 1.0), ("busy", 0.0)] {
        assert_eq!(metrics.sum("fanwire_gopush_forms_refused_total", &[("reason", reason)]), forms, "{reason}");
    }
    let stats = gopush.stats();
    assert_eq!((&stats["mergerRoomFail"], &stats["mergerAllFail"]), (&3.into(), &2.into()), "{stats}");
    assert_eq!(gopush.logic_stats(), r#"{"DispatchTotal":5,"DispatchFail":5,"PushFail":0}"#);
}

#[test]
fn slow_large_forms_take_nobody_elses_turn_for_long() {
    const SLOW: usize = 20; // More than have a turn at once.
    let gopush = Gopush::start(&[SOON]);
    let mut client = gopush.client(&["r"]);
    let slow: Vec<_> = (0..SLOW)
        .map(|_| {
            let mut socket = std::net::TcpStream::connect(gopush.logic).unwrap();
            let head = "POST /push/all HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 9000000\r\n\r\nitems=[";
            socket.write_all(head.as_bytes()).unwrap();
            socket
        })
        .collect();
    let late = || gopush.gateway.metrics().sum("fanwire_gopush_forms_refused_total", &[("reason", "late")]);
    gopush.room("r", &format!("[\"large\"]&pad={}", "x".repeat(1 << 20)));
    assert_eq!(client.text(), pushed("\"large\""));
    wait_until("each of the slow ones is counted", || late() == SLOW as f64);
    drop(slow);
}

#[test]
fn a_form_of_very_many_items_is_published_whole() {
    const ITEMS: usize = 200_000;
    let gopush = Gopush::start(&[SOON]);
    gopush.room("nobody's", &format!("[{}1]", "1,".repeat(ITEMS - 1)));
    assert_eq!(gopush.logic_stats(), format!(r#"{{"DispatchTotal":{ITEMS},"DispatchFail":0,"PushFail":0}}"#));
    gopush.room("nobody's", &format!("[{}1", "1,".repeat(ITEMS - 1)));
    assert_eq!(gopush.logic_stats(), format!(r#"{{"DispatchTotal":{},"DispatchFail":1,"PushFail":0}}"#, ITEMS + 1));
    assert_eq!(gopush.gateway.metrics().sum("fanwire_publications_total", &[]), ITEMS as f64, "all, or none of it");
}

#[test]
fn a_page_that_is_not_in_the_list_publishes_nothing_by_any_port_and_is_counted() {
    const PAGE: (&str, &str) = ("Origin", "https://evil.example");
    const TEXT_PLAIN: (&str, &str) = ("Content-Type", "text/plain");
    let simple = |gopush: &Gopush| {
        let (logic, http) = (gopush.logic, gopush.gateway.http);
        [
            (logic, "/push/all", FORM[0], r#"items=["form"]"#),
            (logic, "/push/room", FORM[0], r#"room=r&items=["room"]"#),
            (logic, "/push", TEXT_PLAIN, r#"{"range":"all","message":"json"}"#),
            (http, "/v1/pushData", TEXT_PLAIN, r#"{"topic":"r","data":"MQ=="}"#),
            (http, "/order.Proxy/PushData", TEXT_PLAIN, r#"{"topic":"r","data":"Mg=="}"#),
            (http, "/api/publish", TEXT_PLAIN, r#"{"channel":"r","data":3}"#),
        ]
    };
    let gopush = Gopush::start(&[SOON]);
    let mut client = gopush.client(&["r"]);
    let mut refused = 0.0;
    for (to, path, kind, body) in simple(&gopush) {
        for from in [PAGE, ("Origin", "null"), ("Origin", &format!("http://{to}")), ("Sec-Fetch-Site", "cross-site")] {
            let response = request(to, "POST", path, &[kind, from], body.as_bytes());
            assert_eq!(response.status, 403, "{path} from {from:?}: {response:?}");
            assert!(response.body.contains("publish.allowed_origins"), "{response:?}");
            refused += 1.0;
        }
    }
    let url = format!("https://{}/push/all", gopush.pushes);
    let by_tls =
        ["-d", "items=[4]", "-H", "Origin: https://evil.example", "-o", "/dev/null", "-w", "%{http_code}", &url];
    assert_eq!(curl(&by_tls), "403");
    gopush.room("r", "[\"program\"]");
    assert_eq!(client.text(), pushed("\"program\""), "nothing of the above went anywhere");
    let metrics = gopush.gateway.metrics();
    assert_eq!(metrics.sum("fanwire_publications_refused_total", &[("reason", "origin")]), refused + 1.0);
    let read = request(gopush.gateway.http, "GET", "/stats", &[PAGE], b"");
    assert_eq!(read.status, 200, "a GET publishes nothing");

    for allowed in ["https://shop.example,https://evil.example", "*"] {
        let gopush = Gopush::start(&[SOON, ("publish.allowed_origins", allowed)]);
        for (to, path, kind, body) in simple(&gopush) {
            assert_eq!(request(to, "POST", path, &[kind, PAGE], body.as_bytes()).status, 200, "{allowed}: {path}");
        }
    }
}

#[test]
fn where_a_token_or_key_is_asked_for_it_decides_and_not_the_page() {
    let file = std::env::temp_dir().join(format!("fanwire-page-keys-{}", std::process::id()));
    std::fs::write(&file, "a-key-of-the-shop-01234\n").unwrap();
    let gateway = Gateway::start(&[("centrifugo.api_keys_file", file.to_str().unwrap())]);
    std::fs::remove_file(&file).unwrap();
    let page = ("Origin", "https://evil.example");
    let publish = |path: &str, more: &[(&str, &str)]| {
        request(gateway.http, "POST", path, &[&[page], more].concat(), br#"{"channel":"r","data":3}"#).status
    };
    assert_eq!(publish("/api/publish", &[("X-API-Key", "a-key-of-the-shop-01234")]), 200);
    assert_eq!(publish("/api/publish", &[]), 401);
    assert_eq!(publish("/v1/pushData", &[]), 403, "no token is asked for here");
}

#[test]
fn the_gateway_port_speaks_tls_with_http_2_and_http_1() {
    let gopush = Gopush::start(&[SOON]);
    let mut client = gopush.client(&["r"]);
    for (n, version) in ["--http2", "--http1.1"].into_iter().enumerate() {
        let url = |path: &str| format!("https://{}{path}", gopush.pushes);
        let shown = "%{http_version} %{http_code} %{size_download}";
        let asked = curl(&[version, "-d", &format!("room=r&items=[{n}]"), &url("/push/room"), "-w", shown]);
        assert_eq!(asked, format!("{} 200 0", if n == 0 { "2" } else { "1.1" }));
        assert_eq!(client.text(), pushed(&n.to_string()));
        assert_eq!(curl(&[version, "-d", "items=[\"all\"]", &url("/push/all")]), "");
        assert_eq!(client.text(), pushed("\"all\""));
        let kind = curl(&[version, "-o", "/dev/null", "-w", "%{content_type}", &url("/stats")]);
        assert_eq!(kind, "text/plain; charset=utf-8");
    }
}

#[test]
fn stats_have_the_keys_of_the_original_in_its_order_and_true_numbers() {
    let gopush = Gopush::start(&[SOON]);
    assert_eq!(gopush.logic_stats(), r#"{"DispatchTotal":0,"DispatchFail":0,"PushFail":0}"#);
    let mut clients = [gopush.client(&["a", "b"]), gopush.client(&["a"])]; // Two PONGs.
    let _others = Client::gpush(&gopush.gateway);
    gopush.room("a", "[1,2]");
    clients.iter_mut().for_each(|client| assert_eq!(client.text(), pushed("1,2")));
    gopush.all("[3]");
    clients.iter_mut().for_each(|client| assert_eq!(client.text(), pushed("3")));
    gopush.room("nobody's", "[4,5,6]");
    let large = "x".repeat(70_000);
    gopush.room("a", &format!("[\"{large}\"]"));
    let body = curl(&["--http2", &format!("https://{}/stats", gopush.pushes)]);
    assert_eq!(
        body,
        concat!(
            r#"{"onlineConnections":2,"sendMessageTotal":6,"sendMessageFail":0,"dispatchPending":0,"pushJobPending":0,"#,
            r#""dispatchFail":0,"roomCount":2,"mergerPending":0,"mergerRoomTotal":5,"mergerAllTotal":1,"#,
            r#""mergerRoomFail":1,"mergerAllFail":0}"#
        )
    );
    assert_eq!(gopush.logic_stats(), r#"{"DispatchTotal":7,"DispatchFail":1,"PushFail":0}"#);
    drop(clients);
    wait_until("rooms are empty", || gopush.stats()["roomCount"] == 0 && gopush.stats()["onlineConnections"] == 0);
}

#[test]
fn a_drain_flushes_merge_windows_first() {
    let mut gopush = Gopush::start(&[BY_COUNT, ("drain.drain_window_ms", "0")]);
    let mut client = gopush.client(&["r"]);
    gopush.room("r", "[1,2]");
    gopush.all("[3]");
    pong(&mut client);
    gopush.gateway.signal("TERM");
    let (code, _, mut texts) = client.closed();
    texts.sort();
    assert_eq!((code, texts), (1001, vec![pushed("1,2"), pushed("3")]));
    assert!(gopush.gateway.wait().success());
}

#[test]
fn what_finds_no_room_is_refused_and_counted() {
    let gopush = Gopush::start(&[
        ("shards.count", "1"),
        ("shards.queue_items_max", "16"),
        ("compat.gopush.max_merge_items", "1"),
        ("publish.publish_waiting_max", "0"),
    ]);
    let mut client = gopush.client(&["r"]);
    gopush.gateway.stall(0, 4000);
    let items: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    gopush.room("r", &format!("[{}]", items.join(",")));
    let stats = gopush.stats();
    let refused = stats["mergerRoomFail"].as_u64().unwrap();
    assert!((1..100).contains(&refused), "{stats}");
    // The gauge is set when windows are next looked at.
    wait_until("one window waits for the shard", || gopush.stats()["dispatchPending"] == 1);
    let metrics = gopush.gateway.metrics();
    assert_eq!(metrics.sum("fanwire_publications_refused_total", &[("reason", "full")]), refused as f64);
    assert!(gopush.logic_stats().contains(&format!(r#""DispatchTotal":100,"DispatchFail":{refused},"#)));
    for n in 0..100 - refused {
        assert_eq!(client.text(), pushed(&n.to_string()), "what was not refused arrives, in order");
    }
    pong(&mut client);
}

#[test]
fn what_a_slow_client_misses_is_counted_and_it_stays() {
    let gopush = Gopush::start(&[
        ("shards.count", "1"),
        ("limits.message_bytes_max", "30000"),
        ("slow.pending_bytes_max", "70000"),
        ("slow.slow_deadline_ms", "3600000"),
        ("shards.socket_send_buffer_bytes", "4096"),
        ("compat.gopush.max_merge_items", "1"),
    ]);
    let mut slow = gopush.client(&["r"]);
    let large = format!("[\"{}\"]", "x".repeat(28_000));
    let failed = wait_for("a message is dropped", || {
        gopush.room("r", &large);
        gopush.stats()["sendMessageFail"].as_u64().filter(|n| *n > 0)
    });
    assert!(gopush.gateway.metrics().drops_by("pending_full") >= failed as f64);
    gopush.gateway.push("", "\"still here\"");
    slow.send(TEXT, r#"{"type":"PING"}"#);
    let end = Instant::now() + DEADLINE;
    while slow.text() != r#"{"type":"PONG","data":{}}"# {
        assert!(Instant::now() < end, "the connection stays");
    }
}

#[test]
fn the_json_endpoint_reaches_everyone_a_room_and_says_what_is_wrong() {
    let gopush = Gopush::start(&[SOON, ("publish.allowed_origins", "https://shop.example")]);
    let mut client = gopush.client(&["r"]);
    for at in [format!("http://{}/push", gopush.logic), format!("https://{}/push", gopush.pushes)] {
        let push = |body: &str| curl(&["-d", body, &at, "-w", "%{http_code}"]);
        assert_eq!(push(r#"{"range":"room","unique_id":"r","message":{"m": [1]}}"#), "{}200");
        assert_eq!(client.text(), pushed(r#"{"m":[1]}"#));
        assert_eq!(push(r#"{"range":"all","message":"hi"}"#), "{}200");
        assert_eq!(client.text(), pushed(r#""hi""#));
        assert_eq!(push(r#"{"range":"one","unique_id":"u","message":1}"#), "{}200", "nobody is logged in as u");
        for wrong in [r#"{"range":"some","message":1}"#, r#"{"range":"room","message":1}"#, r#"{"range":"all"}"#, "{"] {
            let said = push(wrong);
            assert!(said.starts_with("{\"code\":3,") && said.ends_with("400"), "{wrong}: {said}");
        }
        let from = |page: &str, more: &[&str]| {
            let origin = format!("Origin: https://{page}.example");
            curl(&[&["-i", "-H", &origin, &at], more].concat()).to_ascii_lowercase()
        };
        let asked = from("shop", &["-X", "OPTIONS"]);
        assert!(asked.contains(" 204"), "{asked}");
        for header in ["origin: https://shop.example", "methods: post, options", "headers: content-type"] {
            assert!(asked.contains(&format!("access-control-allow-{header}")), "{asked}");
        }
        let pushed_by_page = from("shop", &["-d", r#"{"range":"all","message":"by a page"}"#]);
        assert!(pushed_by_page.contains("access-control-allow-origin: https://shop.example"), "{pushed_by_page}");
        assert_eq!(client.text(), pushed(r#""by a page""#));
        for more in [&["-X", "OPTIONS"][..], &["-d", r#"{"range":"all","message":"evil"}"#]] {
            let refused = from("evil", more);
            assert!(refused.contains(" 403") && !refused.contains("access-control"), "{refused}");
        }
    }
    pong(&mut client);
}

#[test]
fn a_logic_passes_pushes_on_to_the_gateways_in_its_list_and_counts_what_fails() {
    let gateway = Gopush::start(&[SOON]);
    let alone = Gopush::start(&[SOON]);
    let list = format!("{},{}", gateway.pushes, alone.pushes);
    let logic =
        Gopush::start(&[SOON, ("compat.gopush.gateway_list", &list), ("compat.gopush.gateway_timeout_ms", "1000")]);
    let mut clients = [&gateway, &alone, &logic].map(|at| at.client(&["r"]));
    logic.room("r", r#"[{"a": "b%26c"},2]"#);
    logic.all("[3]");
    for client in &mut clients {
        let mut texts = [client.text(), client.text()];
        texts.sort_by_key(String::len);
        assert_eq!(texts, [pushed("3"), pushed(r#"{"a":"b\u0026c"},2"#)]);
    }
    for n in 0..200 {
        logic.room("r", &format!("[{n}]"));
    }
    for client in &mut clients {
        let mut seen = Vec::new();
        while seen.len() < 200 {
            let push: serde_json::Value = serde_json::from_str(&client.text()).unwrap();
            seen.extend(push["data"]["items"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()));
        }
        assert_eq!(seen, (0..200).collect::<Vec<_>>(), "in order");
    }
    // Its clients have all, but the answer that says so may still be on its way: killed before, it would have lost a push.
    let pending = || logic.gateway.metrics().sum("fanwire_gopush_forward_pending", &[]);
    wait_until("every push is answered", || pending() == 0.0);
    drop(alone);
    logic.room("r", "[4]");
    wait_until("three attempts at the one that is gone", || logic.logic_stats().ends_with(r#""PushFail":3}"#));
    let metrics = logic.gateway.metrics();
    assert_eq!(metrics.sum("fanwire_gopush_forward_lost_items_total", &[("reason", "failed")]), 1.0);
    assert_eq!(logic.logic_stats(), r#"{"DispatchTotal":204,"DispatchFail":0,"PushFail":3}"#);
}

#[test]
fn ports_off_loopback_and_bad_certificates_stop_the_start() {
    let exposed = Start::new().sets(FREE).set("compat.gopush.gateway_address", "0.0.0.0:0").try_start().unwrap_err();
    assert_eq!(exposed.status.code(), Some(78));
    assert!(exposed.stderr.contains("compat.gopush.insecure = true"), "{}", exposed.stderr);
    let bad = [("compat.gopush.certificate_file", "/dev/null"), ("compat.gopush.certificate_key_file", "/dev/null")];
    let bad = Start::new().sets(FREE).sets(&bad).try_start().unwrap_err();
    assert_eq!(bad.status.code(), Some(78));
    assert!(bad.stderr.contains("compat.gopush.certificate_file = \"/dev/null\""), "{}", bad.stderr);
}

/// One half of go-push by Go's own HTTP, from `tests/gopush/standin.go`. Ends when dropped.
struct StandIn {
    child: std::process::Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl StandIn {
    fn start(arguments: &[&str]) -> StandIn {
        use std::io::{BufRead, BufReader};
        // Debian's is on the PATH, Go's own installation is not.
        let go = ["go", "/usr/local/go/bin/go"].into_iter().find(|go| Command::new(go).arg("version").output().is_ok());
        let go = go.expect("no go: run scripts/install-tools go");
        // Built once for all of them: `go run` would leave its child behind when it is killed.
        static BUILT: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();
        let program = BUILT.get_or_init(|| {
            let program = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("gopush-standin");
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gopush/standin.go");
            let built = Command::new(go).args(["build", "-o"]).arg(&program).arg(source).status().unwrap();
            assert!(built.success(), "go build {source}");
            program
        });
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        let stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        StandIn { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("the stand-in says something")
    }

    fn say(&mut self, line: &str) {
        use std::io::Write;
        self.child.stdin.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_is_the_gateway_behind_a_logic_that_we_did_not_write() {
    let gopush = Gopush::start(&[SOON]);
    let mut client = gopush.client(&["r"]);
    let mut logic = StandIn::start(&["logic", &gopush.pushes.to_string()]);
    assert_eq!(logic.line(), "ready");
    logic.say(r#"room r [{"a": "<&+ %世"},2]"#);
    assert_eq!(logic.line(), "2 200 0", "HTTP/2, and nothing in the answer");
    assert_eq!(client.text(), pushed(r#"{"a":"\u003c\u0026+ %世"},2"#));
    logic.say("all [3]");
    assert_eq!(logic.line(), "2 200 0");
    assert_eq!(client.text(), pushed("3"));
}

#[test]
fn it_is_the_logic_in_front_of_a_gateway_that_we_did_not_write() {
    let gateway = StandIn::start(&["gateway"]);
    let gopush = Gopush::start(&[("compat.gopush.gateway_list", &gateway.line())]);
    gopush.room("r%26s", r#"[ {"a": "%2B%26 世"} , 2]"#);
    assert_eq!(gateway.line(), r#"2 room r&s [{"a":"+\u0026 世"},2]"#);
    gopush.all("[3]");
    assert_eq!(gateway.line(), "2 all [3]");
    gopush.all("[]"); // Nothing to say.
    let mut seen = Vec::new();
    (0..50).for_each(|n| gopush.room("r", &format!("[{n}]")));
    while seen.len() < 50 {
        let line = gateway.line();
        let items = line.strip_prefix("2 room r ").unwrap_or_else(|| panic!("{line}"));
        seen.extend(serde_json::from_str::<Vec<u64>>(items).unwrap());
    }
    assert_eq!(seen, (0..50).collect::<Vec<_>>(), "in order, some in one request");
    assert_eq!(gopush.logic_stats(), r#"{"DispatchTotal":53,"DispatchFail":0,"PushFail":0}"#);
}

#[test]
fn what_waits_for_a_gateway_that_says_nothing_is_bounded_and_what_is_dropped_counted() {
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap(); // Its kernel accepts, nobody answers.
    let address = mute.local_addr().unwrap().to_string();
    let gopush = Gopush::start(&[
        SOON,
        ("compat.gopush.gateway_list", &address),
        ("compat.gopush.gateway_timeout_ms", "600000"),
        ("compat.gopush.gateway_pending_max", "2"),
    ]);
    let mut client = gopush.client(&["r"]);
    for n in 1..=5 {
        gopush.room("r", &format!("[{n},{n}]"));
    }
    let mut items = String::new();
    while items.matches(',').count() < 9 {
        let push: serde_json::Value = serde_json::from_str(&client.text()).unwrap();
        items += if items.is_empty() { "" } else { "," };
        items += push["data"]["items"].to_string().trim_matches(['[', ']']);
    }
    assert_eq!(items, "1,1,2,2,3,3,4,4,5,5", "its own clients miss nothing");
    assert_eq!(gopush.logic_stats(), r#"{"DispatchTotal":10,"DispatchFail":6,"PushFail":0}"#);
    let metrics = gopush.gateway.metrics();
    assert_eq!(metrics.sum("fanwire_gopush_forward_lost_items_total", &[("reason", "pending")]), 6.0);
}

#[test]
fn a_push_is_compressed_once_for_those_who_agreed_to_it() {
    let gopush = Gopush::start(&[SOON, ("websocket.deflate", "true")]);
    let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    let (_, mut deflated) = Client::open(gopush.connect, "/connect", offer);
    deflated.send(TEXT, join("r"));
    deflated.send(TEXT, r#"{"type":"PING"}"#);
    assert_eq!(deflated.text(), r#"{"type":"PONG","data":{}}"#);
    let mut plain = gopush.client(&["r"]);
    let long = "again ".repeat(100);
    gopush.room("r", &format!("[\"{long}\",1]"));
    let expected = pushed(&format!("\"{long}\",1"));
    let frame = deflated.frame();
    assert_eq!((frame.first, frame.text()), (0xc1, expected.clone()));
    assert_eq!(plain.text(), expected);
}
