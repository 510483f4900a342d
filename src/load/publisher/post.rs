//! A POST for each message over a kept-alive connection: gpush's and Centrifugo's interfaces, and any URL that takes a message as
//! the body of a request.

use super::super::dialect::for_topic;
use super::{Ack, Acks, Batch};
use crate::clock::Time;
use crate::websocket::handshake;
use base64::Engine;
use std::io::{self, Write};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;

/// A response longer than this is none that we wait for.
const RESPONSE_BYTES_MAX: usize = 64 << 10;

/// What is posted, and what says yes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Post {
    /// `/v1/pushData`: JSON with topic and base64; 200.
    PushData,
    /// `/api/publish`: JSON with channel and data; 200 without an error in it.
    Centrifugo,
    /// This path, in which `{topic}` is replaced: the message as it is; any 2xx.
    Path(String),
}

/// One kept-alive connection.
pub(super) struct Poster {
    address: String,
    post: Post,
    authorization: String,
    socket: TcpStream,
    answered: u64, // Requests on this socket: servers end one after so many.
    request: Vec<u8>,
    response: Vec<u8>,
}

/// Publishes by `poster` what comes through `waiting`, until that ends.
///
/// # Errors
/// The server is gone, or does not speak HTTP.
pub(super) async fn publish(
    mut poster: Poster,
    names: Arc<Vec<String>>,
    mut waiting: UnboundedReceiver<Batch>,
    acks: Acks,
) -> Result<(), String> {
    while let Some(batch) = waiting.recv().await {
        let mut refused = Vec::new();
        let messages = batch.messages.len() as u64;
        for message in batch.messages {
            let reason = poster.post(&names[message.topic as usize], &message.data).await?;
            refused.extend(reason.map(|reason| (message.number, reason)));
        }
        acks.report(Ok(Ack { messages, refused, at: Time::now() }));
    }
    Ok(())
}

impl Poster {
    /// Connects. `token` is a bearer token, or Centrifugo's key.
    ///
    /// # Errors
    /// Nobody is there.
    pub(super) async fn connect(address: &str, post: &Post, token: Option<&str>) -> Result<Poster, String> {
        let socket = open(address).await.map_err(|e| format!("HTTP at {address}: {e}"))?;
        let authorization = match (post, token) {
            (_, None) => String::new(),
            (Post::Centrifugo, Some(key)) => format!("X-API-Key: {key}\r\n"),
            (_, Some(token)) => format!("Authorization: Bearer {token}\r\n"),
        };
        let (address, post) = (address.to_owned(), post.clone());
        Ok(Poster { address, post, authorization, socket, answered: 0, request: Vec::new(), response: Vec::new() })
    }

    /// Publishes one message; `Some(reason)` if it was refused.
    async fn post(&mut self, topic: &str, data: &[u8]) -> Result<Option<String>, String> {
        self.write_request(topic, data);
        let answer = match self.ask().await {
            // A server may end a connection between two requests. Nothing was answered, so the request goes once more.
            Err(Failure::Ended) if self.answered > 0 => {
                self.socket = open(&self.address).await.map_err(|e| format!("HTTP at {}: {e}", self.address))?;
                self.answered = 0;
                self.ask().await
            }
            answer => answer,
        };
        let (status, body, last) = answer.map_err(|failure| match failure {
            Failure::Ended => format!("HTTP at {}: the server closed a kept-alive connection", self.address),
            Failure::Other(e) => format!("HTTP at {}: {e}", self.address),
        })?;
        self.answered += 1;
        let accepted = match &self.post {
            Post::PushData => status == 200,
            Post::Centrifugo => status == 200 && !body.starts_with("{\"error\""),
            Post::Path(_) => (200..300).contains(&status),
        };
        if last {
            self.socket = open(&self.address).await.map_err(|e| format!("HTTP at {}: {e}", self.address))?;
            self.answered = 0;
        }
        Ok((!accepted).then(|| format!("{} (HTTP {status})", body.trim())))
    }

    fn write_request(&mut self, topic: &str, data: &[u8]) {
        let Poster { address, authorization, request, .. } = self;
        request.clear();
        let mut head = |path: &str, kind: &str, length: usize| {
            write!(
                request,
                "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: {kind}\r\n{authorization}Content-Length: {length}\r\n\r\n"
            )
            .expect("a vector takes all");
        };
        match &self.post {
            Post::PushData => {
                let data = base64::engine::general_purpose::STANDARD.encode(data);
                let body = format!(r#"{{"topic":"{topic}","data":"{data}"}}"#);
                head("/v1/pushData", "application/json", body.len());
                request.extend_from_slice(body.as_bytes());
            }
            Post::Centrifugo => {
                // The message is a JSON string itself.
                let (before, after) = (format!(r#"{{"channel":"{topic}","data":"#), "}");
                head("/api/publish", "application/json", before.len() + data.len() + after.len());
                request.extend_from_slice(before.as_bytes());
                request.extend_from_slice(data);
                request.extend_from_slice(after.as_bytes());
            }
            Post::Path(path) => {
                head(&for_topic(path, topic), "text/plain", data.len());
                request.extend_from_slice(data);
            }
        }
    }

    /// Sends the request and reads its answer: status, body, and whether it is the connection's last.
    async fn ask(&mut self) -> Result<(u16, String, bool), Failure> {
        self.response.clear();
        self.socket.write_all(&self.request).await.map_err(Failure::from)?;
        loop {
            match self.socket.read_buf(&mut self.response).await {
                Ok(0) if self.response.is_empty() => return Err(Failure::Ended),
                Ok(0) => return Err(Failure::Other("the server ended within an answer".into())),
                Ok(_) => {}
                Err(e) => return Err(e.into()),
            }
            if let Some(answer) = response(&self.response).map_err(Failure::Other)? {
                return Ok(answer);
            }
        }
    }
}

enum Failure {
    /// The connection is gone and nothing was answered.
    Ended,
    Other(String),
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        match e.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Failure::Ended,
            _ => Failure::Other(e.to_string()),
        }
    }
}

async fn open(address: &str) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Status, body and "no more on this connection" of a response, once it is all there: with a Content-Length, chunked, or of a
/// status that has no body.
///
/// # Errors
/// It is none, or larger than [`RESPONSE_BYTES_MAX`].
fn response(bytes: &[u8]) -> Result<Option<(u16, String, bool)>, String> {
    let parsed = handshake::parse_response(bytes).map_err(|e| format!("not an HTTP response: {e}"))?;
    if let Some((status, head, headers)) = parsed {
        let header = |name: &str| {
            let (_, value) = headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name))?;
            Some(String::from_utf8_lossy(value).trim().to_ascii_lowercase())
        };
        let last = header("connection").is_some_and(|value| value == "close");
        let rest = &bytes[head..];
        let body = if matches!(status, 100..=199 | 204 | 304) {
            Some(Vec::new())
        } else if header("transfer-encoding").is_some_and(|value| value == "chunked") {
            unchunked(rest)?
        } else {
            let length = header("content-length").and_then(|value| value.parse::<usize>().ok());
            let length = length.ok_or("an HTTP response without Content-Length")?;
            rest.get(..length).map(<[u8]>::to_vec)
        };
        if let Some(body) = body {
            return Ok(Some((status, String::from_utf8_lossy(&body).into_owned(), last)));
        }
    }
    if bytes.len() > RESPONSE_BYTES_MAX { Err("an HTTP response of more than 64 KiB".into()) } else { Ok(None) }
}

/// A chunked body once its last chunk is there; trailers are none.
fn unchunked(mut rest: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(&rest[..end]).ok().and_then(|line| line.split(';').next());
        let size = size.and_then(|digits| usize::from_str_radix(digits.trim(), 16).ok());
        let size = size.filter(|n| *n <= RESPONSE_BYTES_MAX).ok_or("a chunk without a size")?;
        let Some(chunk) = rest.get(end + 2..end + 2 + size + 2) else { return Ok(None) };
        if size == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(&chunk[..size]);
        rest = &rest[end + 2 + size + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_taken_when_it_is_whole() {
        let answer = |status, body: &str, last| Some((status, body.to_owned(), last));
        for (text, expected) in [
            ("HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}", answer(429, "{}", false)),
            (
                "HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
                answer(202, "abc", false),
            ),
            ("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", answer(204, "", true)),
        ] {
            for n in 0..text.len() {
                assert_eq!(response(&text.as_bytes()[..n]), Ok(None), "{n} bytes of {text}");
            }
            assert_eq!(response(text.as_bytes()), Ok(expected));
        }
        assert!(response(b"SSH-2.0-x\r\n").is_err());
        assert!(response(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").is_err());
    }
}
