//! Many subscribers, each of which writes down every message it hears, and goes elsewhere, or comes back, when its connection ends.

use crate::background::Background;
use crate::client::{GREETING, PING, PONG, SUBSCRIBED, TEXT, frame, upgrade};
use crate::fleet::{Door, TOPIC};
use crate::record::Record;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a node may take from the connection to the acknowledgement; then another is tried.
const ANSWER: Duration = Duration::from_secs(2);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);
/// A client of gpush's that says nothing for two minutes is cut.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// All of them, on a thread of their own. Gone when dropped.
pub struct Audience {
    _background: Background,
}

impl Audience {
    /// At each of `doors` so many; every second of them waits for its node to come back, the others go to another.
    pub fn begin(record: &Arc<Mutex<Record>>, doors: &[Door], each: usize) -> Audience {
        let background = Background::new();
        for number in 0..doors.len() * each {
            let subscriber = Subscriber {
                number,
                is_loyal: number / doors.len() % 2 == 1,
                at: number % doors.len(),
                doors: doors.to_vec(),
                record: record.clone(),
            };
            background.spawn(subscriber.run());
        }
        Audience { _background: background }
    }
}

struct Subscriber {
    number: usize,
    is_loyal: bool,
    /// Which door.
    at: usize,
    doors: Vec<Door>,
    record: Arc<Mutex<Record>>,
}

impl Subscriber {
    async fn run(mut self) {
        loop {
            let door = self.doors[self.at].clone();
            if door.is_open() {
                // However it ends: what matters is in the record.
                let _ = self.visit(&door).await;
            }
            if !self.is_loyal {
                self.at = (self.at + 1) % self.doors.len();
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One connection to its end.
    async fn visit(&self, door: &Door) -> io::Result<()> {
        let life = door.life();
        let stream = door.connect()?;
        let mut frames = Frames { stream: TcpStream::from_std(stream)?, buffer: Vec::new(), taken: 0 };
        timeout(ANSWER, frames.subscribe()).await??;
        let session = self.record.lock().unwrap().begin_session(self.number, life);
        let ended = self.listen(&mut frames, |text| self.record.lock().unwrap().hear(session, text)).await;
        self.record.lock().unwrap().end_session(session);
        ended
    }

    async fn listen(&self, frames: &mut Frames, hear: impl Fn(&str)) -> io::Result<()> {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                text = frames.text() => match &*text? {
                    "pong" => {}
                    text => hear(text),
                },
                _ = heartbeat.tick() => frames.send(TEXT, b"ping").await?,
            }
        }
    }
}

/// A connection, frame by frame.
struct Frames {
    stream: TcpStream,
    buffer: Vec<u8>,
    taken: usize,
}

impl Frames {
    /// Handshake and subscription.
    async fn subscribe(&mut self) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        self.stream.write_all(upgrade("/ws", "").as_bytes()).await?;
        let head = loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            self.fill().await?;
        };
        // 503: it is full or on its way out.
        if !self.buffer.starts_with(b"HTTP/1.1 101 ") {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.taken = head;
        assert_eq!(self.text().await?, GREETING);
        self.send(TEXT, serde_json::json!({ "code": 1, "topic": TOPIC }).to_string().as_bytes()).await?;
        assert_eq!(self.text().await?, SUBSCRIBED);
        Ok(())
    }

    async fn send(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        self.stream.write_all(&frame(0x80 | opcode, payload)).await
    }

    /// The next text message. May be given up between two.
    async fn text(&mut self) -> io::Result<String> {
        loop {
            match self.take() {
                Some((TEXT, payload)) => return Ok(String::from_utf8(payload).expect("UTF-8")),
                Some((PING, payload)) => self.send(PONG, &payload).await?,
                // A close frame: what comes behind it is none of ours.
                Some(_) => return Err(io::ErrorKind::ConnectionAborted.into()),
                None => self.fill().await?,
            }
        }
    }

    /// A whole frame of the buffer: opcode and payload.
    fn take(&mut self) -> Option<(u8, Vec<u8>)> {
        let bytes = &self.buffer[self.taken..];
        let (&first, &second) = (bytes.first()?, bytes.get(1)?);
        let (head, length) = match second {
            126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()))),
            length @ 0..126 => (2, usize::from(length)),
            _ => panic!("longer than any message of these tests"),
        };
        assert_eq!(first & 0xf0, 0x80, "a whole message, not compressed");
        let payload = bytes.get(head..head + length)?.to_vec();
        self.taken += head + length;
        Some((first & 0xf, payload))
    }

    async fn fill(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
