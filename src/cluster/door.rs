//! Who comes in by the relay's port: connections are bounded, and a stranger has a moment to show that it is none.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

/// Connections at once. One more waits until another ends.
const CONNECTIONS_MAX: usize = 1024;
/// How long a connection may take to its first call with a token that holds.
const STRANGER: Duration = Duration::from_secs(5);
/// Pause after accept(2) failed, for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Whether the peer of a connection has shown that it is no stranger.
#[derive(Clone, Default)]
pub(super) struct Known(Arc<AtomicBool>);

impl Known {
    pub(super) fn let_in(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_let_in(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The relay's port.
pub(super) struct Door {
    listener: TcpListener,
}

impl Door {
    /// # Errors
    /// No reactor, or out of memory.
    pub(super) fn new(listener: std::net::TcpListener) -> io::Result<Door> {
        listener.set_nonblocking(true)?;
        Ok(Door { listener: TcpListener::from_std(listener)? })
    }

    /// Those who come in.
    pub(super) fn incoming(self) -> impl Stream<Item = io::Result<Visitor>> {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        futures_util::stream::unfold((self.listener, places), |(listener, places)| async move {
            let place = places.clone().acquire_owned().await.expect("nobody closes it");
            let stream = loop {
                match listener.accept().await {
                    Ok((stream, _)) => break stream,
                    Err(error) => {
                        tracing::warn!("accepting a node: {error}");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                }
            };
            // A batch is to leave at once, not with the acknowledgement of the one before.
            let _ = stream.set_nodelay(true);
            Some((Ok(Visitor::new(stream, place)), (listener, places)))
        })
    }
}

/// A connection.
pub(super) struct Visitor {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
    known: Known,
    deadline: Pin<Box<Sleep>>,
}

impl Visitor {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Visitor {
        let deadline = Box::pin(tokio::time::sleep(STRANGER));
        Visitor { stream, _place: place, known: Known::default(), deadline }
    }
}

impl Connected for Visitor {
    type ConnectInfo = Known;

    fn connect_info(&self) -> Known {
        self.known.clone()
    }
}

impl AsyncRead for Visitor {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.known.is_let_in() && self.deadline.as_mut().poll(cx).is_ready() && !self.known.is_let_in() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Visitor {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
