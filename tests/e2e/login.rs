//! Users: login by an auth server that may be slow, broken or lying, private topics, pushes to a user, and who pulls.

use crate::client::{
    Client, Event, GREETING, LOGGED_IN, LOGGED_OUT, LOGIN_REFUSED, NOT_LOGGED_IN, SUBSCRIBED, TEXT, UNSUBSCRIBED,
    upgrade,
};
use crate::gateway::{DEADLINE, Gateway, Start, wait_until};
use crate::publisher::Publisher;
use fanwire::proto::order::{Data, Empty, proxy_client::ProxyClient};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Stands in for the account service. What it answers, the token says: `is UID` is that user, `json TEXT` is answered with the
/// text, `slow UID` is that user once the gate is open, and so on.
struct AuthServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Bodies asked with.
    asked: Mutex<Vec<String>>,
    connections: AtomicUsize,
    /// Whether slow answers may come.
    gate: Mutex<bool>,
    opened: Condvar,
    /// Questions at the gate.
    held: AtomicUsize,
}

impl AuthServer {
    fn start() -> AuthServer {
        AuthServer::serve(|stream, shared| answer_all(stream.try_clone().unwrap(), stream, shared))
    }

    /// With a certificate for 127.0.0.1 whose root only `tls/ca.pem` knows.
    fn start_tls() -> AuthServer {
        use rustls::pki_types::pem::PemObject as _;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let certificate = CertificateDer::from_pem_slice(include_bytes!("tls/server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap());
        AuthServer::serve(move |stream, shared| {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let tls = Arc::new(Mutex::new(rustls::StreamOwned::new(connection, stream)));
            answer_all(Half(tls.clone()), Half(tls), shared);
        })
    }

    fn serve(serve: impl Fn(TcpStream, &Shared) + Clone + Send + 'static) -> AuthServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        // Ends with the test's process; the sockets of one test are few.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                theirs.connections.fetch_add(1, Ordering::SeqCst);
                let (serve, shared) = (serve.clone(), theirs.clone());
                thread::spawn(move || serve(stream, &shared));
            }
        });
        AuthServer { address, shared }
    }

    fn url(&self) -> String {
        format!("http://{}/account/v1/validate_token", self.address)
    }

    /// A gateway that asks it.
    fn gateway(&self, settings: &[(&str, &str)]) -> Gateway {
        Start::new().set("auth.login", "url").set("auth.url", &self.url()).sets(settings).start()
    }

    fn open_gate(&self) {
        *self.shared.gate.lock().unwrap() = true;
        self.shared.opened.notify_all();
    }

    fn held(&self) -> usize {
        self.shared.held.load(Ordering::SeqCst)
    }
}

/// One side of a TLS stream that reads and writes in turns.
struct Half(Arc<Mutex<rustls::StreamOwned<rustls::ServerConnection, TcpStream>>>);

impl Read for Half {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().read(buffer)
    }
}

impl Write for Half {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.lock().unwrap().flush()
    }
}

fn yes(uid: &str) -> String {
    serde_json::json!({ "code": 0, "data": { "user_info": { "uid": uid, "username": "bob" } } }).to_string()
}

/// Answers the requests of one connection until either side has enough.
fn answer_all(from: impl Read, mut to: impl Write, shared: &Shared) {
    let mut from = BufReader::new(from);
    loop {
        let (mut length, mut head) = (0, String::new());
        loop {
            let mut line = String::new();
            if !matches!(from.read_line(&mut line), Ok(1..)) {
                return;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            head += &line;
            if line == "\r\n" {
                break;
            }
        }
        assert!(
            head.starts_with("POST ") && head.to_lowercase().contains("content-type: application/json\r\n"),
            "{head}"
        );
        let mut body = vec![0; length];
        if from.read_exact(&mut body).is_err() {
            return;
        }
        let body = String::from_utf8(body).unwrap();
        shared.asked.lock().unwrap().push(body.clone());
        let question: serde_json::Value = serde_json::from_str(&body).unwrap();
        let token = question["token"].as_str().unwrap_or("json {\"code\":1}").to_owned();
        let (what, rest) = token.split_once(' ').unwrap_or((&token, ""));
        let (status, answer) = match what {
            "is" => (200, yes(rest)),
            "status" => (500, yes(rest)),
            "json" => (200, rest.to_owned()),
            "large" => (200, yes(rest) + &" ".repeat(100_000)),
            "slow" => {
                shared.held.fetch_add(1, Ordering::SeqCst);
                let gate = shared.gate.lock().unwrap();
                drop(shared.opened.wait_timeout_while(gate, DEADLINE, |is_open| !*is_open).unwrap());
                (200, yes(rest))
            }
            "garbage" => {
                let _ = to.write_all(b"this is not HTTP\r\n\r\n");
                return;
            }
            _ => return, // Closes without a word.
        };
        let head = format!("HTTP/1.1 {status} Status\r\nContent-Length: {}\r\n\r\n", answer.len());
        if to.write_all((head + &answer).as_bytes()).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}

#[test]
fn login_private_topics_and_logout_are_answered_as_the_original_promises() {
    let auth = AuthServer::start();
    let gateway = auth.gateway(&[]);
    let mut client = Client::gpush(&gateway);
    for code in [4, 5, 6] {
        client.command(code, "t");
        assert_eq!(client.text(), NOT_LOGGED_IN);
    }
    client.send(TEXT, r#"{"code":3,"data": { "a" : [1.50, "is bob"] } }"#);
    assert_eq!(client.text(), LOGIN_REFUSED);
    client.log_in("is bob");
    let asked = auth.shared.asked.lock().unwrap().clone();
    assert_eq!(asked, [r#"{"token":{ "a" : [1.50, "is bob"] }}"#, r#"{"token":"is bob"}"#], "verbatim");
    for (code, answer) in [(5, SUBSCRIBED), (5, SUBSCRIBED), (6, UNSUBSCRIBED), (6, UNSUBSCRIBED), (5, SUBSCRIBED)] {
        client.command(code, "t");
        assert_eq!(client.text(), answer);
    }
    gateway.push_to("bob", "t", "for bob");
    gateway.push_to("bob", "u", "about what he did not ask for");
    gateway.push_to("eve", "t", "for eve");
    gateway.push("t", "public");
    assert_eq!(client.text(), "for bob");
    client.ping(); // And nothing else.
    client.send(TEXT, r#"{"code":4}"#);
    assert_eq!(client.text(), LOGGED_OUT);
    gateway.push_to("bob", "t", "after the logout");
    client.send(TEXT, r#"{"code":4}"#);
    assert_eq!(client.text(), NOT_LOGGED_IN);
    client.log_in("is bob");
    gateway.push_to("bob", "t", "private topics went with the logout");
    client.ping();
    assert_eq!(gateway.metrics().sum("fanwire_logged_in_connections", &[]), 1.0);
    drop(client);
    wait_until("the index is clean", || gateway.metrics().sum("fanwire_users", &[]) == 0.0);
}

#[test]
fn a_push_to_a_user_reaches_all_connections_that_subscribed_privately_or_publicly_in_order() {
    for shards in ["1", "2", "5"] {
        let auth = AuthServer::start();
        let gateway = auth.gateway(&[("shards.count", shards), ("websocket.deflate", "true")]);
        let mut members: Vec<Client> = (0..12)
            .map(|i| {
                let mut client = if i % 3 == 0 { Client::gpush_deflated(&gateway) } else { Client::gpush(&gateway) };
                client.log_in("is bob");
                for topic in ["a", "b"] {
                    if i % 2 == 0 { client.subscribe_privately(topic) } else { client.subscribe(topic) }
                }
                client
            })
            .collect();
        let mut others: Vec<Client> = (0..6)
            .map(|i| {
                let mut client = Client::gpush(&gateway);
                if i < 3 {
                    client.log_in("is eve");
                    client.subscribe_privately("a");
                }
                client.subscribe("a");
                client
            })
            .collect();
        for n in 0..100 {
            gateway.push_to("bob", ["a", "b"][n % 2], &format!("{n} {}", "x".repeat(n * 7)));
        }
        for client in &mut members {
            for n in 0..100 {
                assert_eq!(client.text(), format!("{n} {}", "x".repeat(n * 7)));
            }
            client.ping();
        }
        gateway.push("a", "public");
        others.iter_mut().for_each(|client| assert_eq!(client.text(), "public", "and nothing of bob's"));
        for (i, client) in members.iter_mut().enumerate() {
            if i % 2 == 1 {
                assert_eq!(client.text(), "public");
            }
            client.ping(); // Who subscribed privately got nothing.
        }
    }
}

#[test]
fn private_and_public_are_sets_of_their_own() {
    let auth = AuthServer::start();
    let gateway = auth.gateway(&[]);
    let mut client = Client::gpush(&gateway);
    client.log_in("is bob");
    client.subscribe_privately("t");
    client.subscribe("t");
    let both = |client: &mut Client, expected: &[&str]| {
        gateway.push("t", "public");
        client.hears(expected.contains(&"public").then_some("public"));
        gateway.push_to("bob", "t", "mine");
        client.hears(expected.contains(&"mine").then_some("mine"));
    };
    both(&mut client, &["public", "mine"]);
    client.command(2, "t");
    assert_eq!(client.text(), UNSUBSCRIBED);
    both(&mut client, &["mine"]);
    client.subscribe("t");
    client.command(6, "t");
    assert_eq!(client.text(), UNSUBSCRIBED);
    both(&mut client, &["public", "mine"]);
    client.command(2, "t");
    assert_eq!(client.text(), UNSUBSCRIBED);
    both(&mut client, &[]);
}

#[test]
fn logging_in_as_somebody_else_takes_nothing_along_and_the_same_again_changes_nothing() {
    let auth = AuthServer::start();
    let gateway = auth.gateway(&[("shards.count", "1")]);
    let mut client = Client::gpush(&gateway);
    client.log_in("is ann");
    client.subscribe_privately("t");
    client.log_in("is ann");
    gateway.push_to("ann", "t", "once");
    client.hears(Some("once"));
    client.log_in("is bob");
    gateway.push_to("ann", "t", "for ann, who is gone");
    gateway.push_to("bob", "t", "for bob, who did not subscribe");
    client.ping();
    client.subscribe_privately("t");
    client.ask_login("json {\"code\":1}");
    assert_eq!(client.text(), LOGIN_REFUSED);
    gateway.push_to("bob", "t", "still bob");
    client.hears(Some("still bob"));
    assert_eq!(gateway.metrics().sum("fanwire_users", &[]), 1.0);
}

#[test]
fn whatever_is_not_a_clear_yes_is_refused_and_the_connection_stays() {
    let auth = AuthServer::start();
    let gateway = auth.gateway(&[("auth.deadline_ms", "500")]);
    let mut client = Client::subscriber(&gateway, &["t"]);
    let tokens = [
        r#"json {"code":1,"data":{"user_info":{"uid":"bob"}}}"#,
        r#"json {"data":{"user_info":{"uid":"bob"}}}"#,
        r#"json {"code":"x","data":{"user_info":{"uid":"bob"}}}"#,
        r#"json {"code":0,"data":{"user_info":{"uid":123456}}}"#,
        r#"json {"code":0,"data":{"user_info":{}}}"#,
        r#"json {"code":0}"#,
        r#"json {"code":0,"data":{"user_info":{"uid":""}}}"#,
        "json not JSON",
        "large bob",
        "garbage",
        "close",
        "slow bob", // Never, within the deadline.
    ];
    for token in tokens {
        client.ask_login(token);
        assert_eq!(client.text(), LOGIN_REFUSED, "in answer to {token}");
    }
    gateway.push("t", "still here");
    assert_eq!(client.text(), "still here");
    client.log_in("status bob"); // Whatever the HTTP status.
    auth.open_gate();
    let metrics = gateway.metrics();
    assert_eq!(metrics.sum("fanwire_logins_total", &[("result", "refused")]), tokens.len() as f64);
    assert_eq!(metrics.sum("fanwire_logins_total", &[("result", "ok")]), 1.0);
}

#[test]
fn an_auth_server_that_is_not_there_refuses_and_connections_to_one_that_is_are_kept() {
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // Closed again by now.
    let url = format!("http://{nowhere}/");
    let gateway = Gateway::start(&[("auth.login", "url"), ("auth.url", &url)]);
    let mut client = Client::gpush(&gateway);
    client.ask_login("is bob");
    assert_eq!(client.text(), LOGIN_REFUSED);
    client.ping();

    let auth = AuthServer::start();
    let gateway = auth.gateway(&[]);
    for _ in 0..20 {
        Client::gpush(&gateway).log_in("is bob");
    }
    assert_eq!(auth.shared.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_slow_login_holds_up_its_own_connection_in_order_and_nobody_else() {
    let auth = AuthServer::start();
    let gateway = auth.gateway(&[("shards.count", "1")]);
    let (mut slow, mut other) = (Client::gpush(&gateway), Client::gpush(&gateway));
    slow.ask_login("slow bob");
    slow.command(5, "t");
    slow.command(1, "u");
    slow.send(TEXT, "ping");
    wait_until("the login is asked", || auth.held() == 1);
    other.log_in("is eve");
    other.subscribe_privately("t");
    other.ping();
    assert_eq!(slow.event(Duration::from_millis(100)), Event::Quiet, "nothing overtakes the answer");
    auth.open_gate();
    for answer in [LOGGED_IN, SUBSCRIBED, SUBSCRIBED, "pong"] {
        assert_eq!(slow.text(), answer);
    }
    gateway.push_to("bob", "t", "x");
    assert_eq!(slow.text(), "x");
}

#[test]
fn one_login_too_many_is_refused_at_once_and_counted() {
    let auth = AuthServer::start();
    let gateway = auth.gateway(&[("shards.count", "1"), ("limits.questions_max", "2")]);
    let mut clients: Vec<Client> = (0..2).map(|_| Client::gpush(&gateway)).collect();
    clients.iter_mut().for_each(|client| client.ask_login("slow bob"));
    wait_until("two are under way", || auth.held() == 2);
    let mut third = Client::gpush(&gateway);
    third.ask_login("is eve");
    assert_eq!(third.text(), LOGIN_REFUSED);
    assert_eq!(gateway.metrics().sum("fanwire_questions_refused_total", &[]), 1.0);
    // Who leaves meanwhile gives its place back, long before there is an answer.
    drop(clients.remove(0));
    wait_until("there is room for one more", || {
        third.ask_login("is eve");
        third.text() == LOGGED_IN
    });
    assert_eq!(auth.held(), 2, "its login was not answered");
    auth.open_gate();
    assert_eq!(clients[0].text(), LOGGED_IN);
    drop(clients);
    drop(third);
    wait_until("the index is clean", || gateway.metrics().sum("fanwire_users", &[]) == 0.0);
}

#[test]
fn a_certificate_is_checked() {
    let auth = AuthServer::start_tls();
    let url = format!("https://{}/", auth.address);
    let roots = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/tls/ca.pem");
    let start = || Start::new().set("auth.login", "url").set("auth.url", &url);
    let trusting = start().env("SSL_CERT_FILE", roots).start();
    Client::gpush(&trusting).log_in("is bob");
    // A root that did not sign it: the server's own certificate is none.
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/tls/server.pem");
    let wary = start().env("SSL_CERT_FILE", other).start();
    let mut client = Client::gpush(&wary);
    client.ask_login("is bob");
    assert_eq!(client.text(), LOGIN_REFUSED);
}

#[test]
fn a_token_at_connect_decides_before_the_101() {
    let auth = AuthServer::start();
    let gateway = auth.gateway(&[("auth.token_at_connect", "true")]);
    let required = (400, "token is required");
    for (query, (status, body)) in [("", required), ("?token=", required), ("?token=no", (401, "token is invalid"))] {
        let (response, _) = Client::ask(gateway.subscribers, &upgrade(&format!("/ws{query}"), ""));
        assert_eq!((response.status, response.body.trim_end()), (status, body), "{query}");
    }
    let (response, mut client) = Client::open(gateway.subscribers, "/ws?x=1&token=is+b%6Fb", "");
    assert_eq!(response.status, 101);
    assert_eq!(client.text(), GREETING);
    client.subscribe_privately("t");
    gateway.push_to("bob", "t", "x");
    assert_eq!(client.text(), "x");
    client.log_in("is eve");
    assert_eq!(auth.shared.asked.lock().unwrap()[1], r#"{"token":"is bob"}"#);
}

#[test]
fn accept_any_says_so_loudly_and_the_token_is_the_uid() {
    let gateway = Gateway::start(&[("auth.login", "accept-any")]);
    wait_until("it says so", || gateway.stderr().contains("WHOEVER CONNECTS IS WHOEVER THEY SAY THEY ARE"));
    let mut client = Client::gpush(&gateway);
    client.log_in("bob");
    client.subscribe_privately("t");
    gateway.push_to("bob", "t", "x");
    assert_eq!(client.text(), "x");
    client.send(TEXT, r#"{"code":3,"data":123456}"#);
    assert_eq!(client.text(), LOGGED_IN);
    client.send(TEXT, r#"{"code":3}"#);
    assert_eq!(client.text(), LOGIN_REFUSED);
}

/// Who a client is and what it hears, by the answers it got.
#[derive(Default)]
struct Known {
    user: Option<usize>,
    topics: [bool; 2],
}

#[test]
fn logins_logouts_and_pushes_race_and_nobody_gets_what_is_anothers() {
    const USERS: usize = 3;
    for shards in ["1", "2", "5"] {
        let auth = AuthServer::start();
        let gateway = auth.gateway(&[("shards.count", shards)]);
        let gateway = &gateway;
        let done = &AtomicUsize::new(0);
        let clients = 8;
        thread::scope(|scope| {
            for index in 0..clients {
                scope.spawn(move || {
                    // A sequence of its own for each client, the same in every run.
                    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(index as u64 + 1);
                    let mut draw = move |below: u64| {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        (state >> 33) % below
                    };
                    let (mut client, mut known, mut questions) =
                        (Client::gpush(gateway), Known::default(), VecDeque::new());
                    let mut last = [None; USERS];
                    for _ in 0..150 {
                        let (kind, n) = (draw(8), draw(2) as usize);
                        let user = draw(USERS as u64) as usize;
                        match kind {
                            0..=2 => client.ask_login(&format!("is {user}")),
                            3 => client.send(TEXT, r#"{"code":4}"#),
                            4..=6 => client.command(5, &n.to_string()),
                            _ => client.command(6, &n.to_string()),
                        }
                        questions.push_back((kind, n, user));
                        // Sometimes several questions are out.
                        while questions.len() > draw(4) as usize {
                            follow(&client.text(), &mut known, &mut questions, &mut last);
                        }
                    }
                    while !questions.is_empty() {
                        follow(&client.text(), &mut known, &mut questions, &mut last);
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                });
            }
            scope.spawn(move || {
                let publisher = Publisher::new(gateway);
                let mut n = 0_u64;
                while done.load(Ordering::SeqCst) < clients && n < 200_000 {
                    let (user, topic) = (n as usize % USERS, n as usize / USERS % 2);
                    publisher.push_data(&user.to_string(), &topic.to_string(), format!("{user} {topic} {n}")).unwrap();
                    n += 1;
                }
            });
        });
        assert_eq!(done.load(Ordering::SeqCst), clients);
        wait_until("the index is clean", || gateway.metrics().sum("fanwire_users", &[]) == 0.0);
    }
}

/// Holds what came against what is known, and learns from answers.
fn follow(text: &str, known: &mut Known, questions: &mut VecDeque<(u64, usize, usize)>, last: &mut [Option<u64>]) {
    if !text.starts_with('{') {
        let parts: Vec<u64> = text.split(' ').map(|n| n.parse().unwrap()).collect();
        let (user, topic, n) = (parts[0] as usize, parts[1] as usize, parts[2]);
        assert_eq!(known.user, Some(user), "{text} went to {:?}", known.user);
        assert!(known.topics[topic], "{text}, which was not subscribed");
        assert!(last[user].replace(n) < Some(n), "{text} came after {last:?}");
        return;
    }
    let (kind, n, user) = questions.pop_front().expect("an answer to a question");
    let somebody = |answer| if known.user.is_some() { answer } else { NOT_LOGGED_IN };
    let expected = match kind {
        0..=2 => LOGGED_IN,
        3 => somebody(LOGGED_OUT),
        4..=6 => somebody(SUBSCRIBED),
        _ => somebody(UNSUBSCRIBED),
    };
    assert_eq!(text, expected);
    match kind {
        0..=2 if known.user != Some(user) => *known = Known { user: Some(user), topics: [false; 2] },
        0..=2 => {}
        3 => *known = Known::default(),
        kind if known.user.is_some() => known.topics[n] = kind < 7,
        _ => {}
    }
}

#[test]
fn a_push_after_the_answer_arrives_exactly_once() {
    let auth = AuthServer::start();
    let gateway = auth.gateway(&[("shards.count", "2")]);
    let mut client = Client::gpush(&gateway);
    for n in 0..50 {
        let user = format!("u{}", n % 3);
        client.log_in(&format!("is {user}"));
        gateway.push_to(&user, "t", "before");
        client.subscribe_privately("t");
        gateway.push_to(&user, "t", &format!("after {n}"));
        client.hears(Some(&format!("after {n}")));
    }
}

#[test]
fn pull_data_streams_pushes_by_grpc_and_as_lines_to_curl() {
    let gateway = Gateway::start(&[]);
    let mut curl = Command::new("curl")
        .args(["-sN", "--max-time", "30", "-X", "POST"])
        .arg(format!("http://{}/order.Proxy/PullData", gateway.http))
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl is there (scripts/install-tools curl)");
    let mut lines = BufReader::new(curl.stdout.take().unwrap()).lines();
    wait_until("curl pulls", || gateway.metrics().sum("fanwire_pullers", &[]) == 1.0);
    let publisher = Publisher::new(&gateway);
    let pushes = [("", "test", "hi"), ("123456", "t", "\"\\"), ("", "", "all")];
    publisher.block_on(async |channel| {
        let mut proxy = ProxyClient::new(channel);
        let mut pull = proxy.pull_data(Empty {}).await.unwrap().into_inner();
        for (uid, topic, data) in pushes {
            let data = Data { uid: uid.into(), topic: topic.into(), data: data.to_owned().into() };
            proxy.push_data(data.clone()).await.unwrap();
            assert_eq!(pull.message().await.unwrap(), Some(data));
        }
    });
    let expected = [
        r#"{"result":{"uid":"","topic":"test","data":"aGk="}}"#,
        r#"{"result":{"uid":"123456","topic":"t","data":"Ilw="}}"#,
        r#"{"result":{"uid":"","topic":"","data":"YWxs"}}"#,
    ];
    for line in expected {
        assert_eq!(lines.next().unwrap().unwrap(), line);
    }
    drop(publisher); // Its runtime stands still between calls, and so would the end of its stream.
    curl.kill().unwrap();
    curl.wait().unwrap();
    wait_until("it is noticed", || gateway.metrics().sum("fanwire_pullers", &[]) == 0.0);
}

#[test]
fn a_puller_that_does_not_read_is_ended_and_holds_up_nobody() {
    let gateway = Gateway::start(&[("publish.puller_bytes_max", "70000")]);
    let mut lazy = TcpStream::connect(gateway.http).unwrap();
    let head = "POST /order.Proxy/PullData HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n\r\n";
    lazy.write_all(head.as_bytes()).unwrap();
    wait_until("it pulls", || gateway.metrics().sum("fanwire_pullers", &[]) == 1.0);
    let mut client = Client::subscriber(&gateway, &["t"]);
    let (data, end) = ("x".repeat(60_000), Instant::now() + DEADLINE);
    while gateway.metrics().sum("fanwire_pullers_late_total", &[]) == 0.0 {
        assert!(Instant::now() < end, "it was never ended");
        gateway.push("t", &data);
        assert_eq!(client.text().len(), data.len());
    }
    lazy.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut all = String::new();
    let mut lines = BufReader::new(lazy).lines();
    while !all.contains("puller_bytes_max") {
        all = lines.next().expect("the reason comes before the end").unwrap();
    }
    assert!(all.starts_with(r#"{"error":{"code":8,"#), "{all}");
}
