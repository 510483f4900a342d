//! The TCP connection under a channel, and what only it knows: when something last came, and from which address this machine speaks.
//!
//! A message says that the other side lives once all of it is here, which on a slow way may be long after its first byte.

use futures_util::future::BoxFuture;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::io::InspectReader;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;

/// Connects, without TLS, which goes on top, and notes. Copies note the same.
#[derive(Clone)]
pub(super) struct Way {
    connector: HttpConnector,
    notes: Arc<Notes>,
}

struct Notes {
    begun: Instant,
    /// When a byte last came, in milliseconds since then.
    heard_ms: AtomicU64,
    own: OnceLock<IpAddr>,
}

impl Way {
    /// Nowhere yet; a connection may take `connect`.
    pub(super) fn new(connect: Duration) -> Way {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(connect));
        let notes = Notes { begun: Instant::now(), heard_ms: AtomicU64::new(0), own: OnceLock::new() };
        Way { connector, notes: Arc::new(notes) }
    }

    /// This machine's own address in it, once there has been a connection.
    pub(super) fn own_address(&self) -> Option<IpAddr> {
        self.notes.own.get().copied()
    }

    /// What `work` comes to; `None`: not a byte came for as long as `silence`, and it is not done.
    pub(super) async fn while_heard<T>(&self, silence: Duration, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let mut deadline = Instant::now() + silence;
        loop {
            if let Ok(done) = tokio::time::timeout_at(deadline, work.as_mut()).await {
                return Some(done);
            }
            let heard = self.notes.begun + Duration::from_millis(self.notes.heard_ms.load(Ordering::Relaxed));
            if heard + silence <= deadline {
                return None;
            }
            deadline = heard + silence;
        }
    }
}

impl Notes {
    fn hear(&self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.heard_ms.store(self.begun.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
    }
}

/// A connection whose every arrival is noted.
type Noted = InspectReader<TcpStream, Hear>;
/// What is told of each arrival.
type Hear = Box<dyn FnMut(&[u8]) + Send>;

impl Service<Uri> for Way {
    type Response = TokioIo<Noted>;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.connector.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, notes) = (self.connector.call(uri), self.notes.clone());
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            if let Ok(own) = stream.local_addr() {
                notes.own.get_or_init(|| own.ip().to_canonical());
            }
            let hear: Hear = Box::new(move |bytes| notes.hear(bytes));
            Ok(TokioIo::new(InspectReader::new(stream, hear)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_message_may_take_longer_than_silence_and_silence_may_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri: Uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let mut way = Way::new(Duration::from_secs(1));
        assert_eq!(way.own_address(), None);
        let (connected, accepted) = tokio::join!(way.call(uri), listener.accept());
        let (mut here, mut there) = (connected.unwrap().into_inner(), accepted.unwrap().0);
        assert_eq!(way.own_address(), Some([127, 0, 0, 1].into()));

        const SILENCE: Duration = Duration::from_millis(300);
        let drip = async {
            for _ in 0..8 {
                tokio::time::sleep(SILENCE / 3).await; // The rate.
                there.write_all(b"x").await.unwrap();
            }
        };
        let mut message = [0; 8];
        let (read, ()) = tokio::join!(way.while_heard(SILENCE, here.read_exact(&mut message)), drip);
        assert_eq!(read.expect("it was never silent").unwrap(), 8);
        let begun = Instant::now();
        assert!(way.while_heard(SILENCE, here.read_exact(&mut message)).await.is_none());
        assert!(begun.elapsed() >= SILENCE);
        // What has come before somebody waits for it is no silence.
        there.write_all(b"12345678").await.unwrap();
        tokio::time::sleep(2 * SILENCE).await;
        assert!(way.while_heard(SILENCE, here.read_exact(&mut message)).await.is_some());
    }
}
