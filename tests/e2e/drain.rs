//! Stopping well, and what the service manager hears of it.

use crate::client::{Client, Event, upgrade};
use crate::gateway::{Gateway, Start, wait_until};
use crate::publisher::Publisher;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tonic::Code;

#[test]
fn sigterm_spreads_the_closes_over_the_window_and_ends_with_0() {
    let mut gateway = Gateway::start(&[("drain.drain_window_ms", "1500")]);
    let clients: Vec<Client> = (0..60).map(|_| Client::gpush(&gateway)).collect();
    gateway.signal("TERM");
    let start = Instant::now();
    let readers: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                let frame = client.frame();
                let at = start.elapsed();
                let (code, reason) = frame.close();
                assert_eq!(code, 1001);
                assert!(!reason.is_empty());
                client.write(&crate::client::frame(0x88, &code.to_be_bytes()));
                assert_eq!(client.ends(), []);
                at
            })
        })
        .collect();
    let mut closed: Vec<Duration> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    closed.sort();
    // Evenly: a quarter of the clients in about a quarter of the window.
    for (part, share) in [(15, 0.25), (30, 0.5), (45, 0.75)] {
        let expected = Duration::from_millis((1500.0 * share) as u64);
        let off = closed[part].abs_diff(expected);
        assert!(off < Duration::from_millis(350), "client {part} of 60 was closed after {:?}", closed[part]);
    }
    let status = gateway.wait();
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn sigint_does_the_same_and_what_was_acknowledged_still_arrives() {
    let mut gateway = Gateway::start(&[("drain.drain_window_ms", "0"), ("shards.tick_interval_us", "200000")]);
    let mut client = Client::subscriber(&gateway, &["t"]);
    for n in 0..100 {
        gateway.push("t", &n.to_string());
    }
    gateway.signal("INT");
    let (code, _, texts) = client.closed();
    assert_eq!(code, 1001);
    assert_eq!(texts, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn a_drain_says_503_first_then_refuses_publishers_and_clients() {
    let mut gateway = Gateway::start(&[
        ("drain.drain_delay_ms", "1000"),
        ("drain.drain_window_ms", "3000"),
        ("drain.drain_close_code", "1012"),
    ]);
    let publisher = Publisher::new(&gateway);
    let mut client = Client::subscriber(&gateway, &["t"]);
    let mut more: Vec<Client> = (0..10).map(|_| Client::gpush(&gateway)).collect();
    let start = Instant::now();
    gateway.signal("TERM");
    wait_until("it is not ready", || gateway.get("/readyz").status == 503);
    assert!(gateway.get("/readyz").body.contains("stopping"), "{:?}", gateway.get("/readyz"));
    assert_eq!(gateway.get("/healthz").status, 200);
    // During the delay all goes on.
    publisher.publish("t", "still").unwrap();
    assert_eq!(client.text(), "still");
    assert!(start.elapsed() < Duration::from_millis(900), "too slow to say anything: {:?}", start.elapsed());
    more.push(Client::gpush(&gateway));

    let mut refusal = None;
    wait_until("publishers are refused", || {
        refusal = publisher.publish("t", "x").err();
        refusal.is_some()
    });
    assert_eq!(refusal.unwrap().code(), Code::Unavailable);
    assert!(start.elapsed() >= Duration::from_millis(950), "refused after {:?}", start.elapsed());
    let response = gateway.try_push("t", "x");
    assert_eq!((response.status, response.json()["code"].as_u64()), (503, Some(14)), "{response:?}");
    // No new clients, neither by a closed port nor by a 503.
    if let Ok(mut stream) = std::net::TcpStream::connect(gateway.subscribers) {
        use std::io::{Read as _, Write as _};
        let mut answer = Vec::new();
        let _ = stream.write_all(upgrade("/ws", "").as_bytes());
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&answer));
    }
    for client in [client].iter_mut().chain(&mut more) {
        assert_eq!(client.closed().0, 1012);
    }
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut gateway = Gateway::start(&[("drain.drain_window_ms", "600000"), ("drain.drain_deadline_ms", "600000")]);
    let _clients: Vec<Client> = (0..4).map(|_| Client::gpush(&gateway)).collect();
    gateway.signal("TERM");
    wait_until("it drains", || gateway.get("/readyz").status == 503);
    assert_eq!(gateway.ended(), None);
    let start = Instant::now();
    gateway.signal("TERM");
    gateway.wait();
    assert!(start.elapsed() < Duration::from_secs(3), "it took {:?}", start.elapsed());
}

#[test]
fn a_client_that_never_reads_does_not_hold_up_the_end() {
    let mut gateway = Gateway::start(&[
        ("drain.drain_window_ms", "100"),
        ("drain.drain_deadline_ms", "1500"),
        ("shards.socket_send_buffer_bytes", "16384"),
        ("slow.policy", "drop"),
    ]);
    let _stuck = Client::subscriber(&gateway, &["t"]);
    let large = "x".repeat(60_000);
    while gateway.metrics().drops() == 0.0 {
        gateway.push("t", &large);
    }
    let start = Instant::now();
    assert_eq!(gateway.stop().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(6), "it took {:?}", start.elapsed());
}

static NEXT_SOCKET: AtomicU64 = AtomicU64::new(0);

/// A service manager's end of NOTIFY_SOCKET.
struct Manager {
    socket: UnixDatagram,
    path: std::path::PathBuf,
}

impl Manager {
    fn new() -> Manager {
        let number = NEXT_SOCKET.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("fanwire-notify-{}-{number}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        Manager { socket, path }
    }

    /// The next message, if there is one within `patience`.
    fn hears(&self, patience: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let mut bytes = [0; 4096];
        let n = self.socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8(bytes[..n].to_vec()).unwrap())
    }

    /// Waits for a message with this line.
    fn awaits(&self, line: &str) {
        wait_until(line, || self.hears(Duration::from_millis(100)).is_some_and(|text| text.lines().any(|l| l == line)));
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn the_service_manager_hears_ready_watchdog_and_stopping() {
    let manager = Manager::new();
    let mut gateway = Start::new()
        .env("NOTIFY_SOCKET", manager.path.to_str().unwrap())
        .env("WATCHDOG_USEC", "400000")
        .set("drain.drain_window_ms", "0")
        .start();
    manager.awaits("READY=1");
    manager.awaits("WATCHDOG=1");
    manager.awaits("WATCHDOG=1");
    gateway.signal("TERM");
    manager.awaits("STOPPING=1");
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn the_watchdog_is_silent_while_a_shard_stands_still() {
    let manager = Manager::new();
    let gateway =
        Start::new().env("NOTIFY_SOCKET", manager.path.to_str().unwrap()).env("WATCHDOG_USEC", "600000").start();
    manager.awaits("READY=1");
    manager.awaits("WATCHDOG=1");
    gateway.stall(1, 6000);
    // A shard has stood still when it has not turned for 3 s; then there is none until the stall's end.
    let start = Instant::now();
    let mut last = start;
    let mut longest = Duration::ZERO;
    while start.elapsed() < Duration::from_secs(8) {
        if manager.hears(Duration::from_millis(50)).is_some_and(|text| text.contains("WATCHDOG=1")) {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
    }
    assert!(longest > Duration::from_millis(2000), "silent for {longest:?} at most");
    manager.awaits("WATCHDOG=1"); // And it goes on.
}

#[test]
fn clients_that_are_not_greeted_yet_end_with_a_drain_too() {
    let mut gateway = Gateway::start(&[("drain.drain_window_ms", "100")]);
    let mut half = Client::dial(gateway.subscribers);
    half.write(b"GET /ws HTTP/1.1\r\n");
    wait_until("it has arrived", || gateway.metrics().connections() == 1.0);
    assert_eq!(gateway.stop().code(), Some(0));
    assert!(matches!(half.event(Duration::from_secs(1)), Event::End(_) | Event::Reset));
}
