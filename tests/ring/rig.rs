//! What the tests stand on: sockets handed over as the accepting core does, a shard's thread, the control core's side of its
//! queues, and clients.
#![allow(unsafe_code)]

use fanwire::clock::Time;
use fanwire::config::Config;
use fanwire::frame::Frame;
use fanwire::ids::{Epoch, InterestRef, Offset, ShardId, Slot};
use fanwire::metrics::ShardMetrics;
use fanwire::queue::{Answer, Arrival, Bell, Departure, FromShard, InterestKey, Receiver, Sender, ToShard, channel};
use fanwire::shard::lane::Lane;
use fanwire::shard::settings::ShardSettings;
use fanwire::socket::uring::{Features, UringParts, UringRing};
use fanwire::socket::{Completion, Kind, ListenOptions, Listener, Ring, Token, listen};
use fanwire::tick::{Audit, Endpoints, Reactor, Turn};
use fanwire::websocket::frame::{FrameHeader, Opcode, write_client_frame, write_frame};
use io_uring::{IoUring, opcode, types};
use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longer than anything takes that happens at all.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// SO_SNDBUF of the gateway's side.
pub const SEND_BUFFER_BYTES: usize = 65_536;

/// Waits for `condition`, looking every millisecond.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "it does not come true: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A listener, and a ring from which accepted sockets go to a shard's.
pub struct Door {
    listener: Listener,
    ring: IoUring,
}

impl Door {
    pub fn new() -> Door {
        let options = ListenOptions { send_buffer_bytes: SEND_BUFFER_BYTES, backlog: 4096 };
        let ring = IoUring::new(8).unwrap();
        ring.submitter().register_files_sparse(1).unwrap();
        Door { listener: listen("127.0.0.1:0".parse().unwrap(), options).unwrap(), ring }
    }

    /// A connection: the gateway's end and the client's.
    pub fn pair(&self) -> (OwnedFd, TcpStream) {
        let client = TcpStream::connect(self.listener.local_addr()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_nodelay(true).unwrap();
        // SAFETY: no address is asked for; the result is checked before it is owned.
        let fd = unsafe {
            libc::accept4(
                self.listener.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            )
        };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: accept4 has just given us this descriptor.
        (unsafe { OwnedFd::from_raw_fd(fd) }, client)
    }

    /// Begins to hand `socket` over to the ring `target`.
    pub fn send(&mut self, socket: &OwnedFd, target: RawFd, token: Token) {
        self.ring.submitter().register_files_update(0, &[socket.as_raw_fd()]).unwrap();
        let slot = types::DestinationSlot::auto_target();
        let entry = opcode::MsgRingSendFd::new(types::Fd(target), types::Fixed(0), slot, token.0).build();
        // SAFETY: the entry points at nothing.
        unsafe { self.ring.submission().push(&entry) }.unwrap();
        self.ring.submit().unwrap();
    }

    /// How the hand-over went: the slot, or `-errno`.
    pub fn sent(&mut self) -> i32 {
        self.ring.submit_and_wait(1).unwrap();
        self.ring.completion().next().unwrap().result()
    }
}

/// Resets the connection instead of ending it.
pub fn reset(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: `linger` is readable for its own size.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
}

/// A shard's ring on the test's own thread.
pub struct Bare {
    pub ring: UringRing,
    pub bell: Arc<Bell>,
    pub door: Door,
    fd: RawFd,
    given: u64,
    early: VecDeque<Completion>,
}

impl Bare {
    pub fn new(slots: usize, features: Features) -> Bare {
        let bell = Bell::new().unwrap();
        let parts = UringParts::build(slots, features, bell.clone()).unwrap();
        let fd = parts.fd();
        Bare { ring: parts.start().unwrap(), bell, door: Door::new(), fd, given: 0, early: VecDeque::new() }
    }

    /// A socket in a slot of the ring, and its client.
    pub fn take(&mut self) -> (Slot, TcpStream) {
        let (socket, client) = self.door.pair();
        self.given += 1;
        self.door.send(&socket, self.fd, Token::arrival(self.given));
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "the socket does not arrive");
            self.ring.enter(Some(Time::now().plus_ms(100)));
            while let Some(completion) = self.ring.completion() {
                if completion.token != Token::arrival(self.given) {
                    self.early.push_back(completion);
                    continue;
                }
                assert_eq!(self.door.sent(), completion.result);
                return (Slot(u32::try_from(completion.result).unwrap()), client);
            }
        }
    }

    /// The next completion, waited for.
    pub fn next(&mut self) -> Completion {
        if let Some(completion) = self.early.pop_front() {
            return completion;
        }
        let start = Instant::now();
        loop {
            if let Some(completion) = self.ring.completion() {
                return completion;
            }
            assert!(start.elapsed() < PATIENCE, "no completion");
            self.ring.enter(Some(Time::now().plus_ms(100)));
        }
    }

    /// The next `count` completions by kind: their results.
    pub fn all(&mut self, count: usize) -> HashMap<Kind, Completion> {
        let all: HashMap<_, _> = (0..count).map(|_| self.next()).map(|c| (c.token.kind(), c)).collect();
        assert_eq!(all.len(), count, "each kind once: {all:?}");
        all
    }
}

type Order = Box<dyn FnOnce(&mut Reactor<UringRing>) + Send>;

/// A reactor on its own thread, and everything around it.
pub struct Rig {
    pub metrics: Arc<ShardMetrics>,
    pub bell: Arc<Bell>,
    pub inbox: Sender<ToShard>,
    pub door: Door,
    outbox: Receiver<FromShard>,
    arrivals: Sender<Arrival>,
    departures: Receiver<Departure>,
    ring_fd: RawFd,
    given: u64,
    known: HashMap<InterestKey, (InterestRef, Offset)>,
    offset: u64,
    pub drained: bool,
    orders: mpsc::Sender<Order>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Rig {
    pub fn start(slots: usize, features: Features, adjust: impl FnOnce(&mut ShardSettings)) -> Rig {
        let config = Config { dev: true, ..Config::default() };
        let mut settings = ShardSettings::new(&config, 1, 1, slots);
        settings.send_bytes_max = SEND_BUFFER_BYTES / 2;
        adjust(&mut settings);
        let bell = Bell::new().unwrap();
        let (inbox, inbox_out) = channel(65_536, 64 << 20, bell.clone());
        let (outbox_in, outbox) = channel(65_536, 0, Bell::silent());
        let (arrivals, arrivals_out) = channel(slots + 16, 0, bell.clone());
        let (departures_in, departures) = channel(1 << 16, 0, Bell::silent());
        let parts = UringParts::build(slots, features, bell.clone()).unwrap();
        let ring_fd = parts.fd();
        let (claims, _) = fanwire::queue::claims(bell.clone(), Bell::silent());
        let ends = Endpoints {
            claims,
            inbox: inbox_out,
            outbox: outbox_in,
            arrivals: arrivals_out,
            departures: departures_in,
            bell: bell.clone(),
            lane: Lane::default(),
        };
        let metrics = Arc::new(ShardMetrics::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (orders, orders_out) = mpsc::channel::<Order>();
        let (ready, readiness) = mpsc::channel();
        let thread = std::thread::spawn({
            let (metrics, stop) = (metrics.clone(), stop.clone());
            move || {
                let mut reactor = Reactor::new(ShardId(0), parts.start().unwrap(), ends, settings, metrics);
                ready.send(()).unwrap();
                while !stop.load(Ordering::SeqCst) && reactor.turn() == Turn::Again {
                    orders_out.try_iter().for_each(|order| order(&mut reactor));
                }
            }
        });
        readiness.recv().unwrap();
        Rig {
            metrics,
            bell,
            inbox,
            door: Door::new(),
            outbox,
            arrivals,
            departures,
            ring_fd,
            given: 0,
            known: HashMap::new(),
            offset: 0,
            drained: false,
            orders,
            stop,
            thread: Some(thread),
        }
    }

    /// What the shard holds.
    pub fn audit(&self) -> Audit {
        let (answer, answered) = mpsc::channel();
        self.orders.send(Box::new(move |reactor| answer.send(reactor.audit()).unwrap())).unwrap();
        self.wake();
        answered.recv_timeout(PATIENCE).expect("the shard turns")
    }

    /// Waits until the shard holds nothing of anyone's.
    pub fn until_empty(&mut self) {
        until("the shard is empty", || self.audit() == Audit::default());
    }

    /// Wakes the shard even if it does not say that it sleeps.
    fn wake(&self) {
        self.bell.event().unwrap().signal();
    }

    /// Places given back since the last call.
    pub fn departed(&mut self) -> usize {
        std::iter::from_fn(|| self.departures.pop()).count()
    }

    /// Hands `socket` over, once the shard has a slot for it.
    fn give(&mut self, socket: &OwnedFd) {
        let start = Instant::now();
        loop {
            self.door.send(socket, self.ring_fd, Token::arrival(self.given));
            match self.door.sent() {
                0.. => return,
                // The last tenant's slot is not free yet.
                error => assert!(error == -libc::ENFILE && start.elapsed() < PATIENCE, "hand-over: {error}"),
            }
        }
    }

    /// Says where the socket just handed over, or about to be, comes from.
    fn announce(&mut self) {
        let token = self.given;
        let address: SocketAddr = "192.0.2.1:1".parse().unwrap();
        self.arrivals.push(Arrival { token, address, listener: 0, accepted: Time::now() }, 0).unwrap();
        self.arrivals.ring();
    }

    /// A connected client that has said nothing yet.
    pub fn connect(&mut self) -> Client {
        let (socket, stream) = self.door.pair();
        self.given += 1;
        self.give(&socket);
        self.announce();
        Client { stream, bytes: Vec::new() }
    }

    /// As [`Rig::connect`], but what comes second comes when the shard has seen what comes first.
    pub fn connect_in_order(&mut self, address_first: bool) -> Client {
        let (socket, stream) = self.door.pair();
        self.given += 1;
        if address_first {
            self.announce();
        } else {
            self.give(&socket);
        }
        until("one half waits for the other", || self.audit().arrivals_unpaired == 1);
        if address_first {
            self.give(&socket);
        } else {
            self.announce();
        }
        Client { stream, bytes: Vec::new() }
    }

    /// A client that has been answered 101, and greeted if its dialect greets.
    pub fn open(&mut self, path: &str) -> Client {
        let mut client = self.connect();
        client.request(path);
        self.welcomed(&mut client, path);
        client
    }

    /// Waits for what a handshake is answered.
    pub fn welcomed(&mut self, client: &mut Client, path: &str) {
        let head = self.answer(client, |c| {
            let end = c.bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
            Some(c.bytes.drain(..end).collect::<Vec<u8>>())
        });
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        if path == "/ws" {
            let (opcode, greeting) = self.answer(client, Client::buffered);
            assert_eq!(opcode, Opcode::Text);
            assert!(String::from_utf8(greeting).unwrap().contains("20000"));
        }
    }

    /// Subscribes a gpush client.
    pub fn subscribe(&mut self, client: &mut Client, topic: &str) {
        client.send(Opcode::Text, format!(r#"{{"code":1,"topic":"{topic}"}}"#).as_bytes());
        let (_, answer) = self.answer(client, Client::buffered);
        assert!(String::from_utf8(answer).unwrap().contains("20001"));
    }

    /// Reads until `take` finds what it looks for, and does the control core's part meanwhile.
    fn answer<T>(&mut self, client: &mut Client, take: impl Fn(&mut Client) -> Option<T>) -> T {
        let start = Instant::now();
        client.stream.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        loop {
            self.pump();
            if let Some(found) = take(client) {
                client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
                return found;
            }
            match client.read() {
                Ok(0) => panic!("the gateway closed the connection"),
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => panic!("{e}"),
                _ => {}
            }
            assert!(start.elapsed() < PATIENCE, "no answer");
        }
    }

    /// The control core's turn: every wish is answered.
    pub fn pump(&mut self) {
        while let Some(message) = self.outbox.pop() {
            let answer = match message {
                FromShard::Subscribe { interest, key } => {
                    let offset = Offset(self.offset);
                    self.known.insert(key, (interest, offset));
                    ToShard::Subscribed { interest, epoch: Epoch(1), offset }
                }
                FromShard::Unsubscribe { interest } => {
                    self.known.retain(|_, (known, _)| *known != interest);
                    ToShard::Unsubscribed { interest }
                }
                FromShard::Ask { client, .. } => ToShard::Answer { client, answer: Box::new(Answer::LoginRefused) },
                FromShard::Withdraw { .. } | FromShard::LoggedOut { .. } => continue,
                FromShard::Drained => {
                    self.drained = true;
                    continue;
                }
            };
            self.inbox.push(answer, 0).unwrap();
            self.inbox.ring();
        }
    }

    /// Publishes to the subscribers of `topic`, or to everyone.
    pub fn publish(&mut self, topic: Option<&str>, payload: &[u8]) {
        self.pump();
        self.offset += 1;
        let offset = Offset(self.offset);
        let mut wire = Vec::new();
        write_frame(&mut wire, Opcode::Text, payload);
        let frame = Frame::from(wire);
        for (key, (interest, last)) in &mut self.known {
            let of = match key {
                InterestKey::Topic(name, _) => Some(&**name),
                InterestKey::Broadcast(_) => None,
            };
            if of == topic {
                until("the shard takes what is published", || self.inbox.has_room(1, frame.len()));
                let prev = std::mem::replace(last, offset);
                let admitted = Time::now();
                let message = ToShard::Frame { interest: *interest, offset, prev, frame: frame.clone(), admitted };
                self.inbox.push(message, frame.len()).unwrap();
            }
        }
        self.inbox.knock();
    }

    /// Waits until the shard has ended by itself.
    pub fn join(&mut self) {
        let thread = self.thread.take().unwrap();
        until("the shard's thread ends", || thread.is_finished());
        thread.join().unwrap();
        self.pump();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the shard panicked");
        }
    }
}

/// A WebSocket client.
pub struct Client {
    pub stream: TcpStream,
    bytes: Vec<u8>,
}

impl Client {
    pub fn request(&mut self, path: &str) {
        let key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
        write!(
            self.stream,
            "GET {path} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n\r\n"
        )
        .unwrap();
    }

    pub fn send(&mut self, opcode: Opcode, payload: &[u8]) {
        let mut wire = Vec::new();
        write_client_frame(&mut wire, opcode, payload, [1, 2, 3, 4]);
        self.stream.write_all(&wire).unwrap();
    }

    /// The same connection, for another thread to write to.
    pub fn twin(&self) -> Client {
        Client { stream: self.stream.try_clone().unwrap(), bytes: Vec::new() }
    }

    fn read(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 65_536];
        let count = loop {
            match self.stream.read(&mut chunk) {
                // A read with a timeout is not taken up again after work that the kernel does for this thread's ring.
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.bytes.extend_from_slice(&chunk[..count]);
        Ok(count)
    }

    /// A frame that is here already.
    fn buffered(&mut self) -> Option<(Opcode, Vec<u8>)> {
        let header = FrameHeader::parse(&self.bytes).unwrap()?;
        let (start, end) = (header.header_len, header.header_len + header.payload_len as usize);
        if self.bytes.len() < end {
            return None;
        }
        let payload = self.bytes[start..end].to_vec();
        self.bytes.drain(..end);
        Some((header.opcode, payload))
    }

    /// The next frame; `None` at the end of the stream.
    pub fn frame(&mut self) -> io::Result<Option<(Opcode, Vec<u8>)>> {
        loop {
            if let Some(frame) = self.buffered() {
                return Ok(Some(frame));
            }
            if self.read()? == 0 {
                assert!(self.bytes.is_empty(), "the stream ends within a frame");
                return Ok(None);
            }
        }
    }

    /// The next frame's payload.
    pub fn payload(&mut self) -> Vec<u8> {
        self.frame().unwrap().expect("a frame, not the end").1
    }

    /// The next frame, which stays.
    pub fn peek(&mut self) -> (Opcode, Vec<u8>) {
        let (opcode, payload) = self.frame().unwrap().expect("a frame, not the end");
        let mut again = Vec::new();
        write_frame(&mut again, opcode, &payload);
        self.bytes.splice(..0, again);
        (opcode, payload)
    }

    /// Expects a close frame with this code, and then the end of the stream: not a reset.
    pub fn closed(&mut self, code: u16) {
        let (opcode, payload) = self.frame().unwrap().expect("a close frame before the end");
        assert_eq!((opcode, &payload[..2]), (Opcode::Close, &code.to_be_bytes()[..]));
        assert_eq!(self.frame().unwrap(), None);
    }

    /// The gateway's end has come, orderly or not.
    pub fn ended(&mut self) -> bool {
        loop {
            match self.read() {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => return e.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Leaves without a word.
    pub fn leave(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
