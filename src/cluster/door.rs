//! Who comes in by the relay's port: connections are bounded, a stranger has a moment to show that it is none, and when every place is
//! taken the one that is there longest makes room for whoever comes: nodes keep theirs.

use futures_util::task::AtomicWaker;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

/// Connections at once. One more waits until another ends; a stranger's is ended for it.
const CONNECTIONS_MAX: usize = 1024;
/// How long a connection may take to its first call with a token that holds.
const STRANGER: Duration = Duration::from_secs(5);
/// How long a peer's kernel may acknowledge nothing of what is sent to it; a node is sent something every second. Not by HTTP/2's pings, which
/// on a slow way stand behind megabytes.
const UNACKNOWLEDGED_MS_MAX: u32 = 6000;
/// Pause after accept(2) failed, for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Whether the peer of a connection has shown that it is no stranger.
#[derive(Clone, Default)]
pub(super) struct Known(Arc<State>);

#[derive(Default)]
struct State {
    is_let_in: AtomicBool,
    is_cut: AtomicBool,
    /// Of the task that serves it.
    server: AtomicWaker,
}

impl Known {
    pub(super) fn let_in(&self) {
        self.0.is_let_in.store(true, Ordering::Relaxed);
    }

    fn is_let_in(&self) -> bool {
        self.0.is_let_in.load(Ordering::Relaxed)
    }

    /// Whether it has to make room; if not, its task is woken when it has to.
    fn is_cut(&self, cx: &Context<'_>) -> bool {
        self.0.server.register(cx.waker());
        self.0.is_cut.load(Ordering::Acquire)
    }
}

/// Those who may have to make room, oldest first. Holds at most twice as many as there are places, and a few.
#[derive(Default)]
struct Strangers(VecDeque<Weak<State>>);

impl Strangers {
    fn add(&mut self, known: &Known, places: usize) {
        if self.0.len() > 2 * places + 16 {
            self.0.retain(|state| state.upgrade().is_some_and(|state| !state.is_let_in.load(Ordering::Relaxed)));
        }
        self.0.push_back(Arc::downgrade(&known.0));
    }

    /// Cuts the oldest, if there is one.
    fn cut_oldest(&mut self) {
        while let Some(state) = self.0.pop_front() {
            if let Some(state) = state.upgrade()
                && !state.is_let_in.load(Ordering::Relaxed)
            {
                state.is_cut.store(true, Ordering::Release);
                return state.server.wake();
            }
        }
    }
}

/// The relay's port.
pub(super) struct Door {
    listener: TcpListener,
    places: usize,
}

impl Door {
    /// # Errors
    /// No reactor, or out of memory.
    pub(super) fn new(listener: std::net::TcpListener) -> io::Result<Door> {
        listener.set_nonblocking(true)?;
        Ok(Door { listener: TcpListener::from_std(listener)?, places: CONNECTIONS_MAX })
    }

    /// Those who come in.
    pub(super) fn incoming(self) -> impl Stream<Item = io::Result<Visitor>> {
        let Door { listener, places: places_max } = self;
        let places = Arc::new(Semaphore::new(places_max));
        let start = (listener, places, Strangers::default());
        futures_util::stream::unfold(start, move |(listener, places, mut strangers)| async move {
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
            let _ = crate::sys::set_user_timeout(&stream, UNACKNOWLEDGED_MS_MAX);
            if places.available_permits() == 0 {
                strangers.cut_oldest();
            }
            let place = places.clone().acquire_owned().await.expect("nobody closes it");
            let visitor = Visitor::new(stream, place);
            strangers.add(&visitor.known, places_max);
            Some((Ok(visitor), (listener, places, strangers)))
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

    /// Whether it may go on; asked before it reads and before it writes, since HTTP/2 does not read while what it owes finds no room.
    fn may_stay(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.known.is_cut(cx) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if !self.known.is_let_in() && self.deadline.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
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
        self.may_stay(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Visitor {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.may_stay(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.may_stay(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.may_stay(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::{Instant, timeout};

    #[tokio::test]
    async fn a_full_door_is_opened_by_the_oldest_stranger_and_never_by_a_node() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = std::pin::pin!(Door { listener, places: 3 }.incoming());
        let _peers = futures_util::future::join_all((0..5).map(|_| TcpStream::connect(address))).await;
        let mut node = incoming.next().await.unwrap().unwrap();
        node.connect_info().let_in();
        let strangers = [incoming.next().await, incoming.next().await].map(|visitor| {
            let mut visitor = visitor.unwrap().unwrap();
            tokio::spawn(async move { visitor.read(&mut [0]).await.map_err(|error| error.kind()) })
        });
        for stranger in strangers {
            assert!(!stranger.is_finished());
            let next = incoming.next().await.unwrap().unwrap();
            assert_eq!(stranger.await.unwrap(), Err(io::ErrorKind::ConnectionAborted), "the older first");
            next.connect_info().let_in();
            std::mem::forget(next); // It keeps its place.
        }
        let _sixth = TcpStream::connect(address).await.unwrap();
        assert!(incoming.next().now_or_never().is_none(), "nobody is a stranger");
        assert!(node.read(&mut [0]).now_or_never().is_none());
    }

    /// Writes to whoever does not read, until that fails.
    async fn written_to(mut visitor: Visitor) -> io::ErrorKind {
        loop {
            if let Err(error) = visitor.write_all(&[0; 65_536]).await {
                return error.kind();
            }
        }
    }

    #[tokio::test]
    async fn a_stranger_that_never_reads_makes_room_and_has_no_longer_than_others() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = std::pin::pin!(Door { listener, places: 1 }.incoming());
        let _first = TcpStream::connect(address).await.unwrap();
        let first = incoming.next().await.unwrap().unwrap();
        let mut first = std::pin::pin!(written_to(first));
        while (&mut first).now_or_never().is_none() {
            // Pending with all room taken, not for want of a turn.
            if timeout(Duration::from_millis(100), &mut first).await.is_err() {
                break;
            }
        }
        let _second = TcpStream::connect(address).await.unwrap();
        let came = async { incoming.next().await.unwrap().unwrap() };
        let both = async { tokio::join!(first, came) };
        let (end, second) = timeout(STRANGER / 2, both).await.expect("the first makes room at once");
        assert_eq!(end, io::ErrorKind::ConnectionAborted);
        let begun = Instant::now();
        let end = timeout(2 * STRANGER, written_to(second)).await.expect("nobody stays who says nothing");
        assert_eq!(end, io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= STRANGER / 2, "{:?}", begun.elapsed());
    }

    #[test]
    fn strangers_that_are_gone_are_not_remembered() {
        let mut strangers = Strangers::default();
        (0..10_000).for_each(|_| strangers.add(&Known::default(), 1));
        assert!(strangers.0.len() <= 20, "{}", strangers.0.len());
    }
}
