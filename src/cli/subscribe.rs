//! `fanwire sub`: one blocking WebSocket client that prints what arrives.

use super::bench::parse_url;
use crate::load::gpush;
use crate::load::reader::{self, frames};
use crate::websocket::{Opcode, frame, handshake};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Between two pings; the gateway waits 120 s for one.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// For the connection and for the handshake's answer.
const ANSWER: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 8192;

const EXIT_CODES: &str = "\
It does not reconnect: what it would miss meanwhile it could not tell you.

Exit codes:
  0  --count messages came, or whoever read our output has enough
  1  no connection, a topic was refused, or the connection ended; stderr says why
  2  wrong arguments";

/// Prints each message as a line.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Args {
    /// Topics to subscribe to
    #[arg(required = true, value_name = "TOPIC")]
    topics: Vec<String>,
    /// The gateway
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:9992/ws")]
    url: String,
    /// Print {"received_unix_ms":…,"data":"…"} instead of the bare message
    #[arg(long)]
    json: bool,
    /// End after so many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// Runs it.
pub fn run(args: Args) -> ExitCode {
    match subscribe(&args, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Failed(reason)) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
        Err(Stop::Enough) => ExitCode::SUCCESS,
    }
}

enum Stop {
    Failed(String),
    Enough, // Nobody reads our output any more.
}

impl From<String> for Stop {
    fn from(reason: String) -> Stop {
        Stop::Failed(reason)
    }
}

fn subscribe(args: &Args, out: &mut impl Write) -> Result<(), Stop> {
    let (mut stream, early) = connect(&args.url)?;
    let mut session = Session { args, greeted: false, waiting: 0, left: args.count.unwrap_or(u64::MAX), pings: 0 };
    let ended = |e: io::Error| format!("the connection ended: {e}");
    let (mut carry, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
    let mut bytes = early.as_slice();
    let mut heartbeat = Instant::now() + HEARTBEAT;
    loop {
        let mut arrived = Vec::new();
        frames(&mut carry, bytes, |f| arrived.push((f.first, f.payload.to_vec()))).map_err(|e| e.to_string())?;
        for (first, payload) in arrived {
            let reply = session.frame(first, &payload, out)?;
            stream.write_all(&reply).map_err(ended)?;
            if session.left == 0 {
                let mut goodbye = Vec::new();
                frame::write_client_frame(&mut goodbye, Opcode::Close, &frame::close_payload(1000, ""), gpush::MASK);
                stream.write_all(&goodbye).ok(); // We have what we wanted.
                return Ok(());
            }
        }
        let now = Instant::now();
        if now >= heartbeat {
            stream.write_all(&gpush::ping()).map_err(ended)?;
            session.pings += 1;
            heartbeat = now + HEARTBEAT;
        }
        // A read timeout of 0 would mean for ever.
        let wait = heartbeat.saturating_duration_since(now).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(wait)).map_err(ended)?;
        bytes = match stream.read(&mut chunk) {
            Ok(0) => return Err("the gateway closed the connection".to_owned().into()),
            Ok(n) => &chunk[..n],
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => &[],
            Err(e) => return Err(ended(e).into()),
        };
    }
}

/// Shakes hands; the connection, and what came with the answer.
fn connect(url: &str) -> Result<(TcpStream, Vec<u8>), String> {
    let (address, host, path) = parse_url(url)?;
    let failed = |e: io::Error| format!("{url}: {e}");
    let mut stream = TcpStream::connect_timeout(&address, ANSWER).map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    stream.set_read_timeout(Some(ANSWER)).map_err(failed)?;
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|e| e.to_string())?;
    let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, nonce);
    let mut request = Vec::new();
    handshake::write_request(&mut request, &host, &path, &key, &[]);
    stream.write_all(&request).map_err(failed)?;
    let mut answer = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).map_err(failed)? {
            0 => return Err(format!("{url}: closed during the handshake")),
            n => answer.extend_from_slice(&chunk[..n]),
        }
        let response = handshake::parse_response(&answer).map_err(|e| format!("{url}: not HTTP: {e}"))?;
        if let Some((status, head, headers)) = response {
            if status != 101 {
                let body = String::from_utf8_lossy(&answer[head..]);
                return Err(format!("{url}: status {status} {}", body.trim()).trim_end().to_owned());
            }
            let accept = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-accept"));
            if accept.map(|(_, value)| *value) != Some(&handshake::accept_for(&key)[..]) {
                return Err(format!("{url}: wrong Sec-WebSocket-Accept"));
            }
            return Ok((stream, answer.split_off(head)));
        }
        if answer.len() > HEAD_BYTES_MAX {
            return Err(format!("{url}: endless response head"));
        }
    }
}

struct Session<'a> {
    args: &'a Args,
    greeted: bool,
    waiting: usize, // Subscribes not answered yet. Replies and messages share one stream and look alike.
    left: u64,
    pings: u64, // Not answered yet.
}

impl Session<'_> {
    /// Takes one frame; what to send back.
    fn frame(&mut self, first: u8, payload: &[u8], out: &mut impl Write) -> Result<Vec<u8>, Stop> {
        let mut reply = Vec::new();
        match first {
            reader::CLOSE => {
                let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or(&[]));
                return Err(format!("the gateway closed the connection: {code} {reason}").trim_end().to_owned().into());
            }
            reader::PING => frame::write_client_frame(&mut reply, Opcode::Pong, payload, gpush::MASK),
            reader::PONG => {}
            reader::TEXT if !self.greeted => {
                if !payload.starts_with(gpush::GREETING) {
                    return Err(format!("not a gpush greeting: {}", String::from_utf8_lossy(payload)).into());
                }
                self.greeted = true;
                self.waiting = self.args.topics.len();
                self.args.topics.iter().for_each(|topic| reply.extend_from_slice(&gpush::subscribe(topic)));
            }
            reader::TEXT if self.waiting > 0 && payload.starts_with(gpush::SUBSCRIBED) => {
                self.waiting -= 1;
                if self.waiting == 0 {
                    eprintln!("subscribed");
                }
            }
            reader::TEXT if self.waiting > 0 && payload.starts_with(gpush::REFUSED) => {
                return Err(format!("subscribing: {}", String::from_utf8_lossy(payload)).into());
            }
            reader::TEXT if self.pings > 0 && payload == gpush::PONG => self.pings -= 1,
            reader::TEXT => {
                self.print(payload, out).map_err(|e| match e.kind() {
                    ErrorKind::BrokenPipe => Stop::Enough,
                    _ => Stop::Failed(format!("printing: {e}")),
                })?;
                self.left -= 1;
            }
            other => return Err(format!("a frame that gpush does not have, first byte {other:#04x}").into()),
        }
        Ok(reply)
    }

    fn print(&self, payload: &[u8], out: &mut impl Write) -> io::Result<()> {
        if self.args.json {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64);
            let data = String::from_utf8_lossy(payload);
            writeln!(out, "{}", serde_json::json!({"received_unix_ms": now, "data": data}))?;
        } else {
            out.write_all(payload)?;
            out.write_all(b"\n")?;
        }
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    const GREETING: &str = r#"{"code":20000,"message":"连接成功"}"#;
    const SUBSCRIBED: &str = r#"{"code":20001,"message":"订阅成功"}"#;

    /// Runs the command against a server that tungstenite plays: greeting, an answer to each subscribe, `frames`, close.
    fn printed(json: bool, count: Option<u64>, answer: &'static str, messages: &[&str]) -> (Result<(), Stop>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("ws://{}/ws", listener.local_addr().unwrap());
        let messages: Vec<String> = messages.iter().map(|m| m.to_string()).collect();
        let server = thread::spawn(move || {
            let mut socket = tungstenite::accept(listener.accept().unwrap().0).unwrap();
            socket.send(GREETING.into()).unwrap();
            let topics: Vec<serde_json::Value> =
                (0..2).map(|_| serde_json::from_str(socket.read().unwrap().to_text().unwrap()).unwrap()).collect();
            assert_eq!(topics[0], serde_json::json!({"code": 1, "topic": "a", "data": ""}));
            assert_eq!(topics[1]["topic"], "b \"quoted\"");
            for text in [answer.to_owned(), answer.to_owned()].into_iter().chain(messages) {
                socket.send(text.into()).unwrap();
            }
            socket.close(None).ok();
            while socket.read().is_ok() {}
        });
        let args = Args { topics: vec!["a".into(), "b \"quoted\"".into()], url, json, count };
        let mut out = Vec::new();
        let result = subscribe(&args, &mut out);
        server.join().unwrap();
        (result, String::from_utf8(out).unwrap())
    }

    #[test]
    fn messages_are_printed_and_replies_are_not() {
        let (result, out) = printed(false, Some(3), SUBSCRIBED, &["one", SUBSCRIBED, "pong", "four"]);
        assert!(result.is_ok());
        assert_eq!(
            out,
            format!("one\n{SUBSCRIBED}\npong\n"),
            "what looks like a reply, but is not awaited, is a message"
        );
    }

    #[test]
    fn json_has_one_object_a_line_with_the_time() {
        let (_, out) = printed(true, None, SUBSCRIBED, &["say \"hi\"\nthere"]);
        let line: serde_json::Value = serde_json::from_str(out.trim_end()).unwrap();
        assert_eq!(line["data"], "say \"hi\"\nthere");
        assert!(line["received_unix_ms"].as_u64().unwrap() > 1_600_000_000_000);
    }

    #[test]
    fn a_connection_that_ends_and_a_topic_refused_are_failures() {
        let (result, out) = printed(false, None, SUBSCRIBED, &["one"]);
        assert!(matches!(result, Err(Stop::Failed(reason)) if reason.contains("closed the connection")));
        assert_eq!(out, "one\n");
        let (result, _) = printed(false, None, r#"{"code":30002,"message":"操作有误","detail":"未登录"}"#, &[]);
        assert!(matches!(result, Err(Stop::Failed(reason)) if reason.contains("30002")));
    }
}
