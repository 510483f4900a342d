//! Two clients: one of our own over a bare socket, which can misbehave byte by byte, and tungstenite, which we did not write.

use crate::gateway::{DEADLINE, Gateway};
use crate::http::Response;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// What a gpush client is greeted with.
pub const GREETING: &str = r#"{"code":20000,"message":"连接成功"}"#;
/// Answer to code 1.
pub const SUBSCRIBED: &str = r#"{"code":20001,"message":"订阅成功"}"#;
/// Answer to code 2.
pub const UNSUBSCRIBED: &str = r#"{"code":20002,"message":"取消订阅成功"}"#;
/// Answer to nonsense.
pub const NONSENSE: &str = r#"{"code":30001,"message":"操作有误","detail":"数据格式不正确"}"#;
/// Answer to what needs a login.
pub const NOT_LOGGED_IN: &str = r#"{"code":30002,"message":"操作有误","detail":"未登录"}"#;
/// Answer to code 3 that went well.
pub const LOGGED_IN: &str = r#"{"code":20003,"message":"登录成功"}"#;
/// Answer to code 3 that did not.
pub const LOGIN_REFUSED: &str = r#"{"code":30003,"message":"token验证失败","detail":"token验证失败"}"#;
/// Answer to code 4.
pub const LOGGED_OUT: &str = r#"{"code":20003,"message":"退出成功"}"#;

/// RFC 6455 §5.2.
pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// A frame of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// FIN, RSV and opcode.
    pub first: u8,
    /// As on the wire.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Its opcode.
    pub fn opcode(&self) -> u8 {
        self.first & 0xf
    }

    /// The text of an unfragmented text message, inflated if it is compressed.
    pub fn text(&self) -> String {
        let bytes = match self.first {
            0x81 => self.payload.clone(),
            0xc1 => inflate(&self.payload),
            _ => panic!("not a whole text message: {self:?}"),
        };
        String::from_utf8(bytes).expect("UTF-8")
    }

    /// Close code and reason.
    pub fn close(&self) -> (u16, String) {
        assert_eq!(self.first, 0x88, "not a close frame: {self:?}");
        let (code, reason) = self.payload.split_at_checked(2).unwrap_or_else(|| panic!("no code in {self:?}"));
        (u16::from_be_bytes([code[0], code[1]]), String::from_utf8(reason.to_vec()).expect("UTF-8"))
    }
}

/// RFC 7692 §7.2.2, without context takeover.
fn inflate(payload: &[u8]) -> Vec<u8> {
    let mut reader = flate2::read::DeflateDecoder::new(payload.chain(&[0, 0, 0xff, 0xff][..]));
    let mut bytes = Vec::new();
    // A message ends at a sync flush, not at a final block: the reader then misses more input, and has all there is.
    match reader.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => {}
        Err(e) => panic!("not deflate: {e}"),
    }
    bytes
}

/// What a read ended with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole frame.
    Frame(Frame),
    /// The gateway closed its end; `true` if a frame was cut.
    End(bool),
    /// The connection was reset.
    Reset,
    /// Nothing whole came within the time.
    Quiet,
}

/// Our own client.
pub struct Client {
    stream: TcpStream,
    /// Received, not yet taken.
    buffer: Vec<u8>,
    taken: usize,
}

/// A client frame with FIN as given, masked.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        n @ 0..126 => bytes.push(0x80 | n as u8),
        n @ 126..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend((n as u16).to_be_bytes());
        }
        n => {
            bytes.push(0x80 | 127);
            bytes.extend((n as u64).to_be_bytes());
        }
    }
    let key = [0x37, 0xfa, 0x21, 0x3d];
    bytes.extend(key);
    bytes.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// A request head as a browser sends it, with `more` lines at its end.
pub fn upgrade(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}

impl Client {
    /// A bare connection; nothing said yet.
    pub fn dial(to: SocketAddr) -> Client {
        let stream = TcpStream::connect_timeout(&to, DEADLINE).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Client { stream, buffer: Vec::new(), taken: 0 }
    }

    /// A bare connection from a loopback address of our choice.
    pub fn dial_from(from: std::net::IpAddr, to: SocketAddr) -> Client {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let stream = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind((from, 0).into()).unwrap();
            socket.connect(to).await.unwrap().into_std().unwrap()
        });
        stream.set_nonblocking(false).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Client { stream, buffer: Vec::new(), taken: 0 }
    }

    /// Where it connects from.
    pub fn local_address(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    /// A connection that has sent `head`, and the answer to it.
    pub fn ask(to: SocketAddr, head: &str) -> (Response, Client) {
        let mut client = Client::dial(to);
        client.write(head.as_bytes());
        (client.response(), client)
    }

    /// The head (and, for anything but 101, the body by its length) of an HTTP answer.
    pub fn response(&mut self) -> Response {
        let end = Instant::now() + DEADLINE;
        loop {
            let bytes = &self.buffer[self.taken..];
            if let Some(head) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                let mut response = Response::parse(&bytes[..head + 4]);
                let length = response.headers.get("content-length").map_or(0, |n| n.parse().unwrap());
                if bytes.len() >= head + 4 + length {
                    response.body = String::from_utf8_lossy(&bytes[head + 4..head + 4 + length]).into_owned();
                    self.taken += head + 4 + length;
                    return response;
                }
            }
            let got = self.fill(end);
            assert_eq!(got, None, "instead of a response, after {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    /// A WebSocket connection to `path`.
    pub fn open(to: SocketAddr, path: &str, more: &str) -> (Response, Client) {
        let (response, client) = Client::ask(to, &upgrade(path, more));
        assert_eq!(response.status, 101, "{response:?}");
        // The key is the one of RFC 6455 §1.3, so its answer is known.
        assert_eq!(response.headers["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        (response, client)
    }

    /// A greeted gpush client.
    pub fn gpush(gateway: &Gateway) -> Client {
        let (_, mut client) = Client::open(gateway.subscribers, "/ws", "");
        assert_eq!(client.text(), GREETING);
        client
    }

    /// A greeted gpush client that takes compressed messages.
    pub fn gpush_deflated(gateway: &Gateway) -> Client {
        let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
        let (response, mut client) = Client::open(gateway.subscribers, "/ws", offer);
        let agreed = response.headers.get("sec-websocket-extensions").expect("permessage-deflate is agreed");
        assert_eq!(agreed, "permessage-deflate; server_no_context_takeover; client_no_context_takeover");
        assert_eq!(client.text(), GREETING);
        client
    }

    /// A greeted gpush client that is subscribed to `topics`.
    pub fn subscriber(gateway: &Gateway, topics: &[&str]) -> Client {
        let mut client = Client::gpush(gateway);
        topics.iter().for_each(|topic| client.subscribe(topic));
        client
    }

    /// Sends bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the gateway takes bytes");
    }

    /// Sends bytes if the gateway still takes them within `patience`; returns how many it took.
    pub fn try_write(&mut self, bytes: &[u8], patience: Duration) -> usize {
        self.stream.set_write_timeout(Some(patience)).unwrap();
        let mut taken = 0;
        while taken < bytes.len() {
            match self.stream.write(&bytes[taken..]) {
                Ok(n) => taken += n,
                Err(_) => break,
            }
        }
        self.stream.set_write_timeout(Some(DEADLINE)).unwrap();
        taken
    }

    /// Sends one whole message.
    pub fn send(&mut self, opcode: u8, payload: impl AsRef<[u8]>) {
        self.write(&frame(0x80 | opcode, payload.as_ref()));
    }

    /// Sends a subscription without awaiting the answer.
    pub fn ask_subscribe(&mut self, topic: &str) {
        self.send(TEXT, serde_json::json!({ "code": 1, "topic": topic }).to_string());
    }

    /// Subscribes; nothing else may come in between.
    pub fn subscribe(&mut self, topic: &str) {
        self.ask_subscribe(topic);
        assert_eq!(self.text(), SUBSCRIBED);
    }

    /// Sends an unsubscription without awaiting the answer.
    pub fn ask_unsubscribe(&mut self, topic: &str) {
        self.send(TEXT, serde_json::json!({ "code": 2, "topic": topic }).to_string());
    }

    /// Sends a command about a topic without awaiting the answer.
    pub fn command(&mut self, code: u8, topic: &str) {
        self.send(TEXT, serde_json::json!({ "code": code, "topic": topic }).to_string());
    }

    /// Sends a login without awaiting the answer.
    pub fn ask_login(&mut self, token: &str) {
        self.send(TEXT, serde_json::json!({ "code": 3, "data": token }).to_string());
    }

    /// Logs in; nothing else may come in between.
    pub fn log_in(&mut self, token: &str) {
        self.ask_login(token);
        assert_eq!(self.text(), LOGGED_IN);
    }

    /// Subscribes privately; nothing else may come in between.
    pub fn subscribe_privately(&mut self, topic: &str) {
        self.command(5, topic);
        assert_eq!(self.text(), SUBSCRIBED);
    }

    /// `ping`, answered by `pong`: all that was asked before is done, and nothing else came.
    pub fn ping(&mut self) {
        self.send(TEXT, "ping");
        assert_eq!(self.text(), "pong");
    }

    /// The message that must come, if any, and then nothing else.
    pub fn hears(&mut self, message: Option<&str>) {
        if let Some(message) = message {
            assert_eq!(self.text(), message);
        }
        self.ping();
    }

    /// Reads more into the buffer; what hinders it, if anything does.
    fn fill(&mut self, end: Instant) -> Option<Event> {
        if self.taken > 0 {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Some(Event::Quiet);
        }
        self.stream.set_read_timeout(Some(left)).unwrap();
        let mut chunk = [0; 16_384];
        match self.stream.read(&mut chunk) {
            Ok(0) => Some(Event::End(!self.buffer.is_empty())),
            Ok(n) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                None
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Some(Event::Quiet),
            Err(e) if e.kind() == ErrorKind::Interrupted => None,
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Some(Event::Reset),
            Err(e) => panic!("reading: {e}"),
        }
    }

    /// A whole frame of the buffer, its length in its shortest form and without a mask (RFC 6455 §5.1, §5.2).
    fn take(&mut self) -> Option<Frame> {
        let bytes = &self.buffer[self.taken..];
        let (&first, &second) = (bytes.first()?, bytes.get(1)?);
        assert_eq!(second & 0x80, 0, "the gateway masks");
        let (head, length) = match second {
            126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()))),
            127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()) as usize),
            n => (2, usize::from(n)),
        };
        assert!(head == 2 || (head == 4 && length > 125) || length > 65_535, "length {length} in {head} bytes");
        let payload = bytes.get(head..head + length)?.to_vec();
        self.taken += head + length;
        Some(Frame { first, payload })
    }

    /// What comes next, within `patience`.
    pub fn event(&mut self, patience: Duration) -> Event {
        let end = Instant::now() + patience;
        loop {
            if let Some(frame) = self.take() {
                return Event::Frame(frame);
            }
            if let Some(event) = self.fill(end) {
                return event;
            }
        }
    }

    /// The next frame.
    pub fn frame(&mut self) -> Frame {
        match self.event(DEADLINE) {
            Event::Frame(frame) => frame,
            other => panic!("{other:?} instead of a frame"),
        }
    }

    /// The next frame, which must be a text message.
    pub fn text(&mut self) -> String {
        self.frame().text()
    }

    /// Reads up to the close frame, answers it, and sees the connection end. Returns its code and reason, and the texts before it.
    pub fn closed(&mut self) -> (u16, String, Vec<String>) {
        let mut texts = Vec::new();
        loop {
            let frame = self.frame();
            match frame.opcode() {
                CLOSE => {
                    let (code, reason) = frame.close();
                    // The gateway may have cut the connection by now; then the answer is lost, as it may be.
                    let _ = self.stream.write_all(&self::frame(0x80 | CLOSE, &frame.payload));
                    assert_eq!(self.ends(), Vec::<Frame>::new(), "frames after the close frame");
                    return (code, reason, texts);
                }
                TEXT => texts.push(frame.text()),
                _ => {}
            }
        }
    }

    /// Reads until the connection ends, and returns the frames before that.
    pub fn ends(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            match self.event(DEADLINE) {
                Event::Frame(frame) => frames.push(frame),
                Event::End(_) | Event::Reset => return frames,
                Event::Quiet => panic!("the connection did not end within {DEADLINE:?}"),
            }
        }
    }

    /// Ends our half of the connection, as a dying peer's kernel does.
    pub fn half_close(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

/// A client that we did not write.
pub type Tungstenite = tungstenite::WebSocket<TcpStream>;

/// tungstenite, connected to `path`.
pub fn tungstenite(to: SocketAddr, path: &str) -> Tungstenite {
    let stream = TcpStream::connect_timeout(&to, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let (socket, _) = tungstenite::client(format!("ws://{to}{path}"), stream).expect("handshake");
    socket
}
