//! The yardstick: the least a server can do for the same clients. One thread, one plain `send()` for each client and message,
//! the same bytes on the same schedule; no coalescing, no limits, nothing that a gateway is for.
//!
//! Runs as a process of its own, so that its CPU is measured like a gateway's. It prints `listening ADDRESS`, waits on stdin
//! for `go START_NS RATE MESSAGES TOPICS BYTES JOIN`, prints `done MESSAGES WAITED`, and ends with its stdin.

use super::schedule::{Pace, Schedule};
use super::stamp::MESSAGE_BYTES_MIN;
use crate::clock::Time;
use crate::sys;
use crate::websocket::{FrameHeader, Opcode, frame, handshake};
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

const HEAD_BYTES_MAX: usize = 8192;
/// A client has to say what it has to say within this.
const CLIENT_SILENT: Duration = Duration::from_secs(10);

pub(super) struct Client {
    pub(super) stream: TcpStream,
    topic: u32,
}

/// Serves one load to `connections` clients.
///
/// # Errors
/// What went wrong, for stderr.
pub fn serve(connections: u32) -> Result<(), String> {
    let text = |e: io::Error| e.to_string();
    crate::sys::raise_nofile_limit();
    let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
    println!("listening {}", listener.local_addr().map_err(text)?);
    let accepting = thread::spawn(move || -> io::Result<Vec<Client>> {
        (0..connections).map(|_| welcome(listener.accept()?.0)).collect()
    });
    let mut lines = io::stdin().lock().lines().map_while(Result::ok);
    let Some(line) = lines.next() else { return Ok(()) };
    let (schedule, join) = order(&line).ok_or_else(|| format!("not an order: {line:?}"))?;
    let mut clients = accepting.join().map_err(|_| "accepting panicked")?.map_err(text)?;
    let waited = run(&mut clients, &schedule, join);
    println!("done {} {waited}", schedule.messages().expect("an open loop"));
    lines.for_each(drop);
    Ok(())
}

/// The schedule, and how many messages go in one send.
fn order(line: &str) -> Option<(Schedule, u64)> {
    let mut words = line.strip_prefix("go ")?.split(' ');
    let start_ns = words.next()?.parse().ok()?;
    let per_s: f64 = words.next()?.parse().ok()?;
    let messages: u64 = words.next()?.parse().ok()?;
    let topics = words.next()?.parse().ok()?;
    let size = words.next()?.parse().ok()?;
    let join = words.next()?.parse().ok()?;
    let mut schedule = Schedule::new(Pace::Rate { per_s }, topics, 1, size, start_ns, 0.0, 1.0);
    // Ends between the last message and one that is not to come.
    schedule.until_ns = schedule.due_ns(messages) - ((5e8 / per_s) as u64);
    Some((schedule, join))
}

/// Handshake, greeting and subscribe, one client after the other; on loopback that is 0.1 ms each.
pub(super) fn welcome(mut stream: TcpStream) -> io::Result<Client> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(CLIENT_SILENT))?;
    let invalid = |what: &str| io::Error::new(ErrorKind::InvalidData, what.to_owned());
    let mut bytes = Vec::new();
    let mut answer = Vec::new();
    let consumed = loop {
        read_more(&mut stream, &mut bytes)?;
        let head = handshake::parse_head(&bytes, HEAD_BYTES_MAX).map_err(|r| invalid(&r.body))?;
        if let Some((head, consumed)) = head {
            let upgrade = handshake::upgrade(&head).map_err(|r| invalid(&r.body))?;
            handshake::write_101(&mut answer, &upgrade, None, false);
            break consumed;
        }
    };
    frame::write_frame(&mut answer, Opcode::Text, r#"{"code":20000,"message":"连接成功"}"#.as_bytes());
    stream.write_all(&answer)?;
    bytes.drain(..consumed);
    let topic = loop {
        if let Some(header) = FrameHeader::parse(&bytes).map_err(|v| invalid(v.reason))?
            && bytes.len() >= header.header_len + header.payload_len as usize
        {
            let (head, payload) = bytes.split_at_mut(header.header_len);
            let key = *head.last_chunk().expect("a masked frame's header ends with its key");
            let payload = &mut payload[..header.payload_len as usize];
            frame::apply_mask(payload, key);
            let request: serde_json::Value = serde_json::from_slice(payload)?;
            let number = request["topic"].as_str().and_then(|t| t.rsplit('-').next()?.parse().ok());
            break number.ok_or_else(|| invalid("not a topic of the bench"))?;
        }
        read_more(&mut stream, &mut bytes)?;
    };
    let mut answer = Vec::new();
    frame::write_frame(&mut answer, Opcode::Text, r#"{"code":20001,"message":"订阅成功"}"#.as_bytes());
    stream.write_all(&answer)?;
    stream.set_nonblocking(true)?;
    Ok(Client { stream, topic })
}

fn read_more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0; 1024];
    match stream.read(&mut chunk)? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        n => {
            bytes.extend_from_slice(&chunk[..n]);
            Ok(())
        }
    }
}

/// Writes every message to all its clients, one `send()` each; how many of them had to wait for their client. A client that
/// is gone gets nothing more. With `join` above 1 so many messages (of one topic) go in one send when the last is due: no
/// yardstick any more, but a way to see what the clients can take.
pub(super) fn run(clients: &mut [Client], schedule: &Schedule, join: u64) -> u64 {
    // By topic; accepted order within one, which is the order of their sockets in memory.
    clients.sort_by_key(|c| c.topic);
    sys::sharpen_timers();
    let mut waited = 0;
    let mut payload = vec![0; schedule.size.max(MESSAGE_BYTES_MIN)];
    let mut message = Vec::new();
    let messages = schedule.messages().expect("an open loop");
    for i in 0..messages {
        let due_ns = schedule.due_ns(i);
        let early_ns = due_ns.saturating_sub(Time::now().0);
        if early_ns > 0 {
            thread::sleep(Duration::from_nanos(early_ns));
        }
        let stamp = schedule.stamp(i, due_ns);
        stamp.write(&mut payload);
        frame::write_frame(&mut message, Opcode::Text, &payload);
        if (i + 1) % join != 0 && i + 1 != messages {
            continue;
        }
        let topic = stamp.stream.topic();
        let first = clients.partition_point(|c| c.topic < topic);
        for client in clients[first..].iter_mut().take_while(|c| c.topic == topic) {
            match client.stream.write(&message) {
                Ok(n) if n == message.len() => {}
                Ok(n) => waited += finish(&mut client.stream, &message[n..]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => waited += finish(&mut client.stream, &message),
                Err(_) => {}
            }
        }
        message.clear();
    }
    waited
}

/// Waits for a client, or its end: half a frame would spoil the stream.
fn finish(stream: &mut TcpStream, rest: &[u8]) -> u64 {
    let whole = stream.set_nonblocking(false).and_then(|()| stream.write_all(rest));
    whole.and_then(|()| stream.set_nonblocking(true)).ok();
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_understood_as_it_was_given() {
        let (s, join) = order("go 5000000000 10 30 2 128 1").unwrap();
        assert_eq!(join, 1);
        assert_eq!((s.start_ns, s.topics, s.size, s.messages()), (5_000_000_000, 2, 128, Some(30)));
        assert_eq!(order("go 5000000000 0.5 7 1 128 1").unwrap().0.messages(), Some(7));
        assert_eq!(order("go 5000000000 1000 12345 1 128 1").unwrap().0.messages(), Some(12_345));
        assert!(order("stop").is_none());
    }
}
