//! The accepting core over real sockets on loopback, with a stand-in for each shard: a thread with a ring that takes the
//! sockets handed over, greets each client with what the acceptor said about it, and reports its departure.
#![allow(unsafe_code)]

use fanwire::accept::{Acceptor, Settings, ShardDoor};
use fanwire::clock::Time;
use fanwire::ids::{Generation, Slot};
use fanwire::metrics::{AcceptMetrics, Counter};
use fanwire::queue::{Arrival, Bell, Departure, Receiver, Sender, ToAccept, channel};
use fanwire::socket::{Kind, ListenOptions, Token, listen};
use io_uring::{IoUring, opcode, squeue, types};
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// What kind of shard stands in.
#[derive(Clone, Copy)]
struct Stand {
    /// What the acceptor is told.
    slots: usize,
    /// What the ring's file table has.
    table: u32,
    /// Looks at its completions only once an arrival is there, instead of the other way round.
    arrival_first: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Running,
    /// The ring is never enabled.
    Disabled,
    /// Enters its ring only after [`Shard::wake`].
    Stalled,
}

const SHARD: Stand = Stand { slots: 2000, table: 2000, arrival_first: false, state: State::Running };

struct Shard {
    bell: Arc<Bell>,
    stop: Arc<AtomicBool>,
    connections: Arc<AtomicI64>,
    arrived: Arc<AtomicI64>,
    go: mpsc::Sender<()>,
    /// SO_SNDBUF and TCP_NODELAY of the first socket that came.
    options: mpsc::Receiver<(i32, i32)>,
    thread: Option<JoinHandle<()>>,
}

impl Shard {
    fn start(id: usize, stand: Stand, acceptor_bell: Arc<Bell>) -> (Shard, ShardDoor) {
        let bell = Bell::new().unwrap();
        let (arrivals_tx, arrivals) = channel(65_536, 0, bell.clone());
        let (departures, departures_rx) = channel(65_536, 0, acceptor_bell);
        let (stop, connections, arrived) = (Arc::new(AtomicBool::new(false)), Arc::default(), Arc::default());
        let (fd_tx, fd_rx) = mpsc::channel();
        let (go, go_rx) = mpsc::channel();
        let (options_tx, options) = mpsc::channel();
        let mut core = Core {
            id,
            arrival_first: stand.arrival_first,
            bell: bell.clone(),
            stop: stop.clone(),
            connections: Arc::clone(&connections),
            arrived: Arc::clone(&arrived),
            arrivals,
            departures,
            options: options_tx,
            waiting: HashMap::new(),
            sockets: HashMap::new(),
            tenants: HashMap::new(),
        };
        let thread = std::thread::spawn(move || {
            let mut ring: IoUring = IoUring::builder()
                .setup_r_disabled()
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_cqsize(8192)
                .build(256)
                .unwrap();
            ring.submitter().register_files_sparse(stand.table).unwrap();
            if stand.state != State::Disabled {
                ring.submitter().register_enable_rings().unwrap();
            }
            fd_tx.send(ring.as_raw_fd()).unwrap();
            if stand.state != State::Running {
                // Ends with the shard, too: then nobody is there to send.
                let woken = go_rx.recv();
                if stand.state == State::Disabled || woken.is_err() {
                    return;
                }
            }
            core.run(&mut ring);
        });
        let (_, claims) = fanwire::queue::claims(Bell::silent(), Bell::silent());
        let ring_fd: RawFd = fd_rx.recv().unwrap();
        let shard = Shard { bell, stop, connections, arrived, go, options, thread: Some(thread) };
        (shard, ShardDoor { ring_fd, arrivals: arrivals_tx, departures: departures_rx, claims, slots: stand.slots })
    }

    fn connections(&self) -> i64 {
        self.connections.load(Ordering::SeqCst)
    }

    fn arrived(&self) -> i64 {
        self.arrived.load(Ordering::SeqCst)
    }

    fn wake(&self) {
        self.go.send(()).unwrap();
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.bell.ring();
        self.go = mpsc::channel().0;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("a stand-in shard panicked");
        }
    }
}

struct Core {
    id: usize,
    arrival_first: bool,
    bell: Arc<Bell>,
    stop: Arc<AtomicBool>,
    connections: Arc<AtomicI64>,
    arrived: Arc<AtomicI64>,
    arrivals: Receiver<Arrival>,
    departures: Sender<Departure>,
    options: mpsc::Sender<(i32, i32)>,
    waiting: HashMap<u64, Arrival>, // An address without its socket.
    sockets: HashMap<u64, u32>,     // A socket without its address.
    tenants: HashMap<u32, (Arrival, Box<[u8]>)>,
}

impl Core {
    fn run(&mut self, ring: &mut IoUring) {
        let event = self.bell.event().unwrap().as_raw_fd();
        let poll = opcode::PollAdd::new(types::Fd(event), libc::POLLIN as u32).multi(true).build();
        push(ring, poll.user_data(Token::new(Kind::Bell, Generation(0), Slot(0)).0));
        while !self.stop.load(Ordering::SeqCst) {
            while let Some(arrival) = self.arrivals.pop() {
                assert!(self.waiting.insert(arrival.token, arrival).is_none(), "a token comes once");
                self.pair(ring, arrival.token);
            }
            let hold_back = self.arrival_first && self.waiting.is_empty() && self.tenants.is_empty();
            if hold_back {
                // Nothing of the ring is looked at but its bell, until the queue has spoken.
                ring.submit().unwrap();
                self.bell.sleep();
                if self.arrivals.is_empty() && !self.stop.load(Ordering::SeqCst) {
                    let args = types::Timespec::new().nsec(1_000_000);
                    let _ = ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&args));
                }
                self.bell.awake();
                continue;
            }
            while let Some(entry) = { ring.completion().next() } {
                self.completed(ring, Token(entry.user_data()), entry.result());
            }
            self.bell.sleep();
            if self.arrivals.is_empty() && !self.stop.load(Ordering::SeqCst) && ring.completion().is_empty() {
                // Without a time limit: whoever should ring the bell must.
                ring.submit_and_wait(1).unwrap();
            } else {
                ring.submit().unwrap();
            }
            self.bell.awake();
        }
    }

    fn completed(&mut self, ring: &mut IoUring, token: Token, result: i32) {
        let slot = token.slot().0;
        match token.kind() {
            Kind::Bell => drop(self.bell.event().unwrap().reset()),
            Kind::Arrival => {
                assert!(result >= 0);
                assert!(self.sockets.insert(token.arrival_number(), result as u32).is_none(), "a socket comes once");
                self.pair(ring, token.arrival_number());
            }
            Kind::Send => assert!(result > 0, "greeting: {result}"),
            // The client's end. What it says is thrown away by MSG_TRUNC.
            Kind::Recv if result > 0 => self.read(ring, slot),
            Kind::Recv => {
                push(ring, opcode::Close::new(types::Fixed(slot)).build().user_data(named(Kind::Close, slot)))
            }
            Kind::Close => {
                let (arrival, _) = self.tenants.remove(&slot).unwrap();
                self.departures.push(Departure { address: Some(arrival.address.ip()) }, 0).unwrap();
                self.departures.ring();
                self.connections.fetch_sub(1, Ordering::SeqCst);
            }
            Kind::Ignore => {
                // SAFETY: FIXED_FD_INSTALL has just given us this descriptor.
                let fd = unsafe { OwnedFd::from_raw_fd(result) };
                let get = |level, name| option(fd.as_raw_fd(), level, name);
                let _ = self
                    .options
                    .send((get(libc::SOL_SOCKET, libc::SO_SNDBUF), get(libc::IPPROTO_TCP, libc::TCP_NODELAY)));
            }
            other => panic!("{other:?}"),
        }
    }

    fn pair(&mut self, ring: &mut IoUring, token: u64) {
        let (Some(arrival), Some(slot)) = (self.waiting.get(&token), self.sockets.get(&token)) else { return };
        let (arrival, slot) = (*arrival, *slot);
        self.waiting.remove(&token);
        self.sockets.remove(&token);
        if self.arrived.fetch_add(1, Ordering::SeqCst) == 0 {
            push(ring, opcode::FixedFdInstall::new(types::Fixed(slot), 0).build().user_data(named(Kind::Ignore, slot)));
        }
        self.connections.fetch_add(1, Ordering::SeqCst);
        assert!(arrival.accepted <= Time::now());
        let greeting =
            format!("{} {} {}\n", self.id, arrival.address, arrival.listener).into_bytes().into_boxed_slice();
        let entry = opcode::Send::new(types::Fixed(slot), greeting.as_ptr(), greeting.len() as u32).build();
        assert!(self.tenants.insert(slot, (arrival, greeting)).is_none(), "a slot has one tenant");
        push(ring, entry.user_data(named(Kind::Send, slot)));
        self.read(ring, slot);
    }

    fn read(&mut self, ring: &mut IoUring, slot: u32) {
        let entry = opcode::Recv::new(types::Fixed(slot), std::ptr::null_mut(), 4096).flags(libc::MSG_TRUNC).build();
        push(ring, entry.user_data(named(Kind::Recv, slot)));
    }
}

fn named(kind: Kind, slot: u32) -> u64 {
    Token::new(kind, Generation(0), Slot(slot)).0
}

fn push(ring: &mut IoUring, entry: squeue::Entry) {
    // SAFETY: an entry points at nothing, or at a greeting that stays in `tenants` until its slot is closed, after the send
    // and the receive have completed.
    while unsafe { ring.submission().push(&entry) }.is_err() {
        ring.submit().unwrap();
    }
}

fn option(fd: RawFd, level: i32, name: i32) -> i32 {
    let (mut value, mut length) = (0, size_of::<i32>() as libc::socklen_t);
    // SAFETY: both places are writable and as long as said.
    assert_eq!(unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut length) }, 0);
    value
}

struct Gateway {
    address: SocketAddr,
    addresses: Vec<SocketAddr>,
    shards: Vec<Shard>,
    metrics: Arc<AcceptMetrics>,
    control: Sender<ToAccept>,
    thread: Option<JoinHandle<()>>,
}

impl Gateway {
    fn start(stands: &[Stand], settings: Settings) -> Gateway {
        Gateway::listening(&["127.0.0.1:0"], stands, settings)
    }

    fn listening(addresses: &[&str], stands: &[Stand], settings: Settings) -> Gateway {
        let options = ListenOptions { send_buffer_bytes: 40_000, backlog: 4096 };
        let listeners: Vec<_> = addresses.iter().map(|a| listen(a.parse().unwrap(), options).unwrap()).collect();
        let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr()).collect();
        let bell = Bell::new().unwrap();
        let (control, control_rx) = channel(4, 0, bell.clone());
        let metrics = Arc::new(AcceptMetrics::default());
        let (shards, doors) =
            stands.iter().enumerate().map(|(id, stand)| Shard::start(id, *stand, bell.clone())).unzip();
        let acceptor = Acceptor::new(listeners, doors, &settings, control_rx, bell, metrics.clone()).unwrap();
        let thread = Some(std::thread::spawn(move || acceptor.run()));
        Gateway { address: addresses[0], addresses, shards, metrics, control, thread }
    }

    fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    fn stop(&mut self) {
        let _ = self.control.push(ToAccept::Stop, 0);
        self.control.ring();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the acceptor panicked");
        }
    }

    /// No client is connected, and nobody counts one.
    fn wait_for_zero(&self) {
        wait(|| self.metrics.connections.get() == 0 && self.shards.iter().all(|s| s.connections() == 0));
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop();
    }
}

fn settings() -> Settings {
    Settings {
        connections_max: 0,
        lanes: 0,
        connections_per_address_max: 0,
        handshakes_per_s_max: 0,
        refusals_max: 64,
        close_deadline_ms: 2000,
        modern_ring: true,
        trusted_proxies: Vec::new(),
    }
}

fn wait(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "it does not come true");
        sleep(Duration::from_millis(1));
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

/// What the shard says: its number, our address as it was told, the listener's index.
fn greeting(client: &TcpStream) -> (usize, SocketAddr, usize) {
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).unwrap();
    let mut words = line.split_whitespace();
    let mut word = || words.next().unwrap_or_else(|| panic!("no greeting but {line:?}"));
    (word().parse().unwrap(), word().parse().unwrap(), word().parse().unwrap())
}

/// All a refused client reads, up to its end.
fn refusal(mut client: &TcpStream) -> String {
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert!(
        text.starts_with("HTTP/1.1 503 Service Unavailable\r\n") && text.contains("\r\nRetry-After: 1\r\n"),
        "{text:?}"
    );
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{text:?}");
    text
}

fn counted(counter: &Counter, n: u64) {
    wait(|| counter.get() == n);
}

#[test]
fn a_shard_is_told_each_clients_address_and_its_socket_has_what_the_listener_was_given() {
    for modern_ring in [true, false] {
        let stands = [SHARD, Stand { arrival_first: true, ..SHARD }, SHARD];
        let settings = Settings { modern_ring, ..settings() };
        let gateway = Gateway::listening(&["127.0.0.1:0", "[::1]:0", "[::]:0"], &stands, settings);
        let mapped = SocketAddr::from(([127, 0, 0, 1], gateway.addresses[2].port()));
        let targets = [gateway.addresses[0], gateway.addresses[1], mapped];
        let clients: Vec<_> = (0..300).map(|i| (i % 3, connect(targets[i % 3]))).collect();
        for (listener, client) in &clients {
            let (_, address, came_by) = greeting(client);
            assert_eq!((address, came_by), (client.local_addr().unwrap(), *listener));
        }
        for shard in &gateway.shards {
            assert!((80..=120).contains(&shard.arrived()), "{}", shard.arrived());
            // The kernel doubles SO_SNDBUF.
            assert_eq!(shard.options.recv_timeout(PATIENCE).unwrap(), (80_000, 1));
        }
        assert_eq!((gateway.metrics.accepted.get(), gateway.metrics.handed_over.get()), (300, 300));
        assert_eq!(gateway.metrics.connections.get(), 300);
        drop(clients);
        gateway.wait_for_zero();
    }
}

#[test]
fn a_shard_at_its_high_water_mark_is_passed_over_and_places_come_back_with_departures() {
    let gateway = Gateway::start(&[Stand { slots: 20, table: 20, ..SHARD }, SHARD], settings());
    // 5 % of 20 slots stay free.
    for _ in 0..3 {
        let clients: Vec<_> = (0..100).map(|_| gateway.connect()).collect();
        let on_first = clients.iter().filter(|client| greeting(client).0 == 0).count();
        assert!(on_first <= 19, "{on_first}");
        assert_eq!(gateway.shards[0].connections() as usize, on_first);
        drop(clients);
        gateway.wait_for_zero();
    }
    assert_eq!((gateway.metrics.hand_overs_retried.get(), gateway.metrics.refused_full.get()), (0, 0));
}

#[test]
fn a_hand_over_into_a_full_table_or_a_ring_not_enabled_goes_to_the_next_shard() {
    let full = Stand { slots: 1000, table: 3, ..SHARD };
    let disabled = Stand { state: State::Disabled, ..SHARD };
    let gateway = Gateway::start(&[full, disabled, SHARD], settings());
    let clients: Vec<_> = (0..100).map(|_| gateway.connect()).collect();
    let mut on = [0; 3];
    for client in &clients {
        let (shard, address, _) = greeting(client);
        assert_eq!(address, client.local_addr().unwrap());
        on[shard] += 1;
    }
    assert_eq!(on, [3, 0, 97]);
    assert!(gateway.metrics.hand_overs_retried.get() > 50);
    assert_eq!(gateway.metrics.refused_full.get(), 0);
    drop(clients);
    gateway.wait_for_zero();
}

#[test]
fn when_no_shard_takes_it_a_client_is_told_503() {
    let full = Stand { slots: 1000, table: 2, ..SHARD };
    let gateway = Gateway::start(&[full, Stand { state: State::Disabled, ..SHARD }], settings());
    let kept: Vec<_> = (0..2).map(|_| gateway.connect()).collect();
    kept.iter().for_each(|client| assert_eq!(greeting(client).0, 0));
    assert!(refusal(&gateway.connect()).contains("full"));
    assert_eq!(gateway.metrics.connections.get(), 2);
    drop(kept);
    gateway.wait_for_zero();
    assert_eq!(greeting(&gateway.connect()).0, 0);
}

#[test]
fn a_refused_client_reads_its_503_whenever_it_sends_its_request_and_if_it_never_does() {
    let gateway = Gateway::start(&[], settings());
    let request = format!("GET /ws HTTP/1.1\r\nHost: x\r\nCookie: {}\r\n\r\n", "c".repeat(6000));
    for _ in 0..20 {
        // At once, so that it lies unread in the socket when the answer is sent.
        let mut early = gateway.connect();
        early.write_all(request.as_bytes()).unwrap();
        refusal(&early);

        // After the answer and the gateway's end have come.
        let mut late = gateway.connect();
        refusal(&late);
        late.write_all(request.as_bytes()).unwrap();
        late.shutdown(std::net::Shutdown::Write).unwrap();
        // An end, not a reset: the gateway has read what came late.
        assert_eq!(late.read(&mut [0; 16]).unwrap(), 0);

        // In two pieces around it.
        let mut torn = gateway.connect();
        torn.write_all(&request.as_bytes()[..100]).unwrap();
        wait(|| torn.peek(&mut [0; 1]).is_ok());
        torn.write_all(&request.as_bytes()[100..]).unwrap();
        refusal(&torn);

        refusal(&gateway.connect());
    }
    counted(&gateway.metrics.refused_full, 80);
    assert_eq!(gateway.metrics.refused_cut.get(), 0);
}

#[test]
fn curl_shows_the_503_and_when_to_come_back() {
    let gateway = Gateway::start(&[], settings());
    let url = format!("http://{}/ws", gateway.address);
    let output = std::process::Command::new("curl").args(["-sSi", "--max-time", "10", &url]).output().expect("curl");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        text.starts_with("HTTP/1.1 503") && text.contains("Retry-After: 1") && text.contains("gateway is full"),
        "{text}"
    );
}

#[test]
fn a_refused_client_that_does_not_hang_up_is_cut_at_the_deadline() {
    let gateway = Gateway::start(&[], Settings { refusals_max: 1, close_deadline_ms: 100, ..settings() });
    let stays = gateway.connect();
    let start = Instant::now();
    refusal(&stays);
    // The one place for refusals is free again only once it was cut.
    let mut tries = 0;
    loop {
        tries += 1;
        assert!(start.elapsed() < PATIENCE, "never cut");
        let mut answer = Vec::new();
        let _ = gateway.connect().read_to_end(&mut answer);
        if !answer.is_empty() {
            break;
        }
    }
    assert!(start.elapsed() >= Duration::from_millis(90), "{:?}", start.elapsed());
    assert_eq!(gateway.metrics.refused_cut.get(), tries - 1);
    assert_eq!(gateway.metrics.refused_full.get(), 2);
}

#[test]
fn a_refused_client_that_sends_without_end_is_cut_before_the_deadline() {
    let gateway = Gateway::start(&[], Settings { close_deadline_ms: 600_000, ..settings() });
    let mut client = gateway.connect();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    let error = loop {
        if let Err(error) = client.write_all(&[b'x'; 4096]) {
            break error;
        }
    };
    assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{error}");
}

#[test]
fn beyond_refusals_max_clients_are_cut_at_once_and_counted() {
    let gateway = Gateway::start(&[], Settings { refusals_max: 2, close_deadline_ms: 60_000, ..settings() });
    let told: Vec<_> = (0..2).map(|_| gateway.connect()).collect();
    told.iter().for_each(|client| drop(refusal(client)));
    for cut in 1..=5 {
        let mut answer = Vec::new();
        let _ = gateway.connect().read_to_end(&mut answer);
        assert!(answer.is_empty());
        counted(&gateway.metrics.refused_cut, cut);
    }
    drop(told);
    // Their places are free once their end was read.
    wait(|| {
        let mut answer = Vec::new();
        let _ = gateway.connect().read_to_end(&mut answer);
        !answer.is_empty()
    });
}

#[test]
fn each_address_may_have_so_many_connections_and_no_more() {
    let settings = Settings { connections_per_address_max: 2, ..settings() };
    let gateway = Gateway::listening(&["127.0.0.1:0", "[::1]:0"], &[SHARD, SHARD], settings);
    let v4: Vec<_> = (0..2).map(|_| connect(gateway.addresses[0])).collect();
    assert!(v4.iter().all(is_greeted));
    assert!(refusal(&connect(gateway.addresses[0])).contains("from this address"));
    let v6 = connect(gateway.addresses[1]);
    greeting(&v6);
    assert_eq!(gateway.metrics.refused_address.get(), 1);
    drop(v4);
    wait(|| gateway.metrics.connections.get() == 1);
    greeting(&connect(gateway.addresses[0]));
}

#[test]
fn connections_in_all_are_capped() {
    let gateway = Gateway::start(&[SHARD, SHARD], Settings { connections_max: 3, ..settings() });
    let clients: Vec<_> = (0..3).map(|_| gateway.connect()).collect();
    assert!(clients.iter().all(is_greeted));
    assert!(refusal(&gateway.connect()).contains("full"));
    assert_eq!(gateway.metrics.refused_full.get(), 1);
    drop(clients);
    gateway.wait_for_zero();
    greeting(&gateway.connect());
}

#[test]
fn shards_of_one_lane_are_filled_one_after_the_other() {
    let small = || Stand { slots: 20, table: 20, ..SHARD };
    let gateway = Gateway::start(&[small(), small()], Settings { lanes: 1, ..settings() });
    let clients: Vec<_> = (0..29).map(|_| gateway.connect()).collect();
    assert!(clients.iter().all(is_greeted));
    assert_eq!([0, 1].map(|i| gateway.shards[i].connections()), [19, 10], "one place in twenty stays free");
    drop(clients);
    gateway.wait_for_zero();
    let clients: Vec<_> = (0..5).map(|_| gateway.connect()).collect();
    assert!(clients.iter().all(is_greeted));
    assert_eq!([0, 1].map(|i| gateway.shards[i].connections()), [5, 0]);
}

#[test]
fn new_connections_keep_to_the_rate_with_a_burst_of_one_second() {
    let gateway = Gateway::start(&[SHARD], Settings { handshakes_per_s_max: 10, ..settings() });
    let start = Instant::now();
    let clients: Vec<_> = (0..40).map(|_| gateway.connect()).collect();
    wait(|| gateway.metrics.handed_over.get() + gateway.metrics.refused_rate.get() == 40);
    let allowed = 10 + (start.elapsed().as_secs_f64() * 10.0) as u64;
    let admitted = gateway.metrics.handed_over.get();
    assert!((10..=allowed).contains(&admitted), "{admitted} admitted, {allowed} allowed");
    let refused: Vec<_> = clients.iter().filter(|client| !is_greeted(client)).collect();
    assert_eq!(refused.len() as u64, 40 - admitted);
    assert!(refused.first().is_none_or(|client| refusal(client).contains("Too many new connections")));
    // The rate comes back with time, by itself.
    wait(|| is_greeted(&gateway.connect()));
}

/// By a shard, rather than refused.
fn is_greeted(client: &TcpStream) -> bool {
    let mut first = [0];
    client.peek(&mut first).unwrap() == 1 && first[0].is_ascii_digit()
}

#[test]
fn a_shard_that_stands_still_holds_up_only_its_own_share() {
    let stalled = Stand { state: State::Stalled, ..SHARD };
    let gateway = Gateway::start(&[stalled, SHARD], settings());
    let clients: Vec<_> = (0..1000).map(|_| gateway.connect()).collect();
    wait(|| gateway.metrics.connections.get() == 1000 && gateway.shards[1].arrived() >= 480);
    assert_eq!(gateway.shards[0].arrived(), 0);
    // Once it turns again, it has them all.
    gateway.shards[0].wake();
    wait(|| gateway.shards[0].arrived() + gateway.shards[1].arrived() == 1000);
    for client in &clients {
        assert_eq!(greeting(client).1, client.local_addr().unwrap());
    }
    drop(clients);
    gateway.wait_for_zero();
}

#[test]
fn a_storm_that_comes_and_goes_is_spread_evenly_and_leaves_nothing_behind() {
    let gateway = Gateway::start(&[SHARD; 3], settings());
    for _ in 0..3 {
        let clients: Vec<_> = (0..1500).map(|_| gateway.connect()).collect();
        for client in &clients {
            assert_eq!(greeting(client).1, client.local_addr().unwrap());
        }
        for shard in &gateway.shards {
            assert!((470..=530).contains(&shard.connections()), "{}", shard.connections());
        }
        drop(clients);
        gateway.wait_for_zero();
    }
    assert_eq!(gateway.metrics.handed_over.get(), 4500);
    assert_eq!((gateway.metrics.accept_errors.get(), gateway.metrics.hand_overs_retried.get()), (0, 0));
}

#[test]
fn after_a_stop_nobody_new_comes_and_those_on_shards_stay() {
    let mut gateway = Gateway::start(&[SHARD], settings());
    let client = gateway.connect();
    greeting(&client);
    let refused = Instant::now();
    gateway.stop();
    assert!(refused.elapsed() < PATIENCE);
    assert_eq!(TcpStream::connect(gateway.address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(gateway.shards[0].connections(), 1);
    drop(client);
    wait(|| gateway.shards[0].connections() == 0);
}

#[test]
fn a_stop_waits_for_refusals_and_hand_overs_but_not_for_ever() {
    let stalled = Stand { state: State::Stalled, slots: 1, ..SHARD };
    let mut gateway = Gateway::start(&[stalled], Settings { close_deadline_ms: 100, ..settings() });
    let held_up = gateway.connect();
    wait(|| gateway.metrics.connections.get() == 1);
    let refused = gateway.connect();
    counted(&gateway.metrics.refused_full, 1);
    gateway.stop();
    refusal(&refused);
    drop(held_up);
}
