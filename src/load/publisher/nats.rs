//! PUB over TCP. NATS acknowledges nothing by itself, but answers in order: the PONG to a PING after a batch says that the server
//! has the batch.

use super::super::nats::{CONNECT, Operation, PONG, operations};
use super::{Ack, Acks, Batch};
use crate::clock::Time;
use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;

const READ_BYTES: usize = 16 << 10;

/// A connection that has introduced itself.
///
/// # Errors
/// Nobody is there.
pub(super) async fn connect(address: &str) -> Result<TcpStream, String> {
    let failed = |e: std::io::Error| format!("NATS at {address}: {e}");
    let mut socket = TcpStream::connect(address).await.map_err(failed)?;
    socket.set_nodelay(true).map_err(failed)?;
    socket.write_all(CONNECT.as_bytes()).await.map_err(failed)?;
    Ok(socket)
}

/// Publishes over `socket` what comes through `waiting`, until that ends.
///
/// # Errors
/// The server has said -ERR, or is gone.
pub(super) async fn publish(
    mut socket: TcpStream,
    names: Arc<Vec<String>>,
    mut waiting: UnboundedReceiver<Batch>,
    acks: Acks,
) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("NATS: {e}");
    let mut sent = VecDeque::new(); // Messages of each batch that no PONG has come for.
    let (mut carry, mut read, mut out) = (Vec::new(), Vec::with_capacity(READ_BYTES), Vec::new());
    loop {
        tokio::select! {
            batch = waiting.recv() => {
                let Some(batch) = batch else { return Ok(()) };
                out.clear();
                for message in &batch.messages {
                    write!(out, "PUB {} {}\r\n", names[message.topic as usize], message.data.len()).expect("a vector takes all");
                    out.extend_from_slice(&message.data);
                    out.extend_from_slice(b"\r\n");
                }
                out.extend_from_slice(b"PING\r\n");
                sent.push_back(batch.messages.len() as u64);
                socket.write_all(&out).await.map_err(failed)?;
            }
            n = socket.read_buf(&mut read) => {
                if n.map_err(failed)? == 0 {
                    return Err("NATS: the server closed a publisher's connection".into());
                }
                let (mut pongs, mut asked, mut error) = (0, false, None);
                let each = |operation: Operation<'_>| match operation {
                    Operation::Line(b"PONG") => pongs += 1,
                    Operation::Line(b"PING") => asked = true,
                    Operation::Line(line) if line.starts_with(b"-ERR") => error = Some(String::from_utf8_lossy(line).into_owned()),
                    _ => {}
                };
                operations(&mut carry, &read, each).map_err(|broken| format!("NATS: {broken}"))?;
                read.clear();
                if let Some(error) = error {
                    return Err(format!("NATS: {error}"));
                }
                for messages in sent.drain(..pongs.min(sent.len())) {
                    acks.report(Ok(Ack { messages, refused: Vec::new(), at: Time::now() }));
                }
                if asked {
                    socket.write_all(PONG).await.map_err(failed)?;
                }
            }
        }
    }
}
