//! One TCP connection, both ends of it: a bounded send buffer towards the client, a byte queue towards the gateway, and the
//! ways they end.
//!
//! The bytes towards the client are not kept: the [`Reader`] looks at them when the kernel takes them, and from then on only
//! their number matters.

use super::book::Book;
use super::reader::Reader;
use crate::clock::Time;
use crate::ids::Slot;
use std::collections::VecDeque;

/// How the client's side stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Far {
    /// Both directions.
    Open,
    /// It sent its end (FIN) and still reads.
    HalfClosed,
    /// It closed; whatever is sent to it is answered by a reset.
    Gone,
    /// A reset arrived.
    Reset,
}

/// One connection.
pub struct Line {
    /// Index of the client.
    pub client: usize,
    /// When it was accepted.
    pub accepted: Time,
    /// Where the gateway's kernel keeps it; `None` before the hand-over and after close.
    pub slot: Option<Slot>,
    /// What the kernel takes before a send blocks (SO_SNDBUF and what is on its way).
    pub send_buffer_bytes: usize,
    /// Bytes the kernel took for the client.
    pub sent: u64,
    /// Of these, what the client read.
    pub read: u64,
    /// Bytes on their way to the gateway.
    pub to_gateway: VecDeque<u8>,
    /// Something came since the last poll event.
    pub arrived: bool,
    /// The client's side.
    pub far: Far,
    /// The gateway said its last word (FIN follows what was sent).
    pub near_shut: bool,
    /// The gateway closed.
    pub near_closed: bool,
    /// The gateway closed with bytes unread: the client got a reset, and lost what it had not read.
    pub reset_by_gateway: bool,
    /// The network or the kernel cut it: frames may be incomplete, and nobody of ours is to blame.
    pub cut: bool,
    /// No close frame could come: the gateway closed while a send was in flight, or its shard stood still past the deadline.
    pub cut_short: bool,
    /// Messages in sends that ended short.
    pub broken: u64,
    /// The client must be looked after: bytes or the end came.
    pub news: bool,
    /// Holds every byte against the truth.
    pub reader: Reader,
}

impl Line {
    /// A connection that the accepting core has just accepted.
    pub fn new(client: usize, accepted: Time, send_buffer_bytes: usize, reader: Reader) -> Line {
        Line {
            client,
            accepted,
            slot: None,
            send_buffer_bytes,
            sent: 0,
            read: 0,
            to_gateway: VecDeque::new(),
            arrived: false,
            far: Far::Open,
            near_shut: false,
            near_closed: false,
            reset_by_gateway: false,
            cut: false,
            cut_short: false,
            broken: 0,
            news: false,
            reader,
        }
    }

    /// What a send on it fails with now, if it does.
    pub fn send_error(&self) -> Option<i32> {
        match self.far {
            _ if self.near_shut || self.near_closed => Some(libc::EPIPE),
            Far::Reset => Some(libc::ECONNRESET),
            _ => None,
        }
    }

    /// Bytes the kernel takes now.
    pub fn room(&self) -> usize {
        match self.far {
            Far::Gone => usize::MAX,
            _ => self.send_buffer_bytes.saturating_sub((self.sent - self.read) as usize),
        }
    }

    /// The kernel takes `bytes` for the client.
    ///
    /// # Panics
    /// If they break a promise.
    pub fn transmit(&mut self, bytes: &[u8], now: Time, book: &mut Book) {
        if let Err(what) = self.reader.feed(bytes, now, book) {
            panic!("client {}: {what}", self.client);
        }
        self.sent += bytes.len() as u64;
        match self.far {
            Far::Gone if !bytes.is_empty() => self.reset(),
            _ => self.news = true,
        }
    }

    /// The gateway shuts its side down.
    ///
    /// # Panics
    /// If a frame is cut by it, on a connection that nobody cut.
    pub fn shut_near(&mut self) {
        if !self.near_shut && self.far != Far::Reset {
            let excused = self.cut || self.far == Far::Gone;
            assert!(self.reader.is_whole() || excused, "client {}: the end comes within a frame", self.client);
        }
        self.near_shut = true;
        self.news = true;
    }

    /// The gateway's last reference is gone.
    /// The gateway made up its mind after `decided`.
    pub fn close_near(&mut self, decided: Time, book: &mut Book) {
        self.near_shut = true;
        self.near_closed = true;
        self.news = true;
        if !self.to_gateway.is_empty() && self.far != Far::Reset {
            self.reset_by_gateway = true;
        }
        self.slot = None;
        self.reader.ended(decided, self.broken, book);
    }

    /// The client writes.
    pub fn write(&mut self, bytes: &[u8]) {
        match self.far {
            Far::Open if self.near_closed => self.reset_by_gateway = true,
            Far::Open => {
                self.to_gateway.extend(bytes);
                self.arrived = true;
            }
            _ => {}
        }
    }

    /// The client reads up to `limit` bytes; after a reset nothing is there any more.
    pub fn take(&mut self, limit: u64) {
        if !self.reset_by_gateway {
            self.read += (self.sent - self.read).min(limit);
        }
    }

    /// Whether the client has read everything up to the end.
    pub fn at_end(&self) -> bool {
        self.reset_by_gateway || self.far == Far::Reset || (self.near_shut && self.read == self.sent)
    }

    /// The client sends its end and goes on reading.
    pub fn half_close(&mut self) {
        if self.far == Far::Open {
            self.far = Far::HalfClosed;
            self.arrived = true;
        }
    }

    /// The client closes: orderly if it has read everything, by a reset otherwise (as TCP does).
    pub fn close_far(&mut self) {
        if self.read < self.sent {
            self.reset();
        } else if self.far != Far::Reset {
            self.far = Far::Gone;
            self.arrived = true;
        }
    }

    /// A reset arrives at the gateway.
    pub fn reset(&mut self) {
        if self.far != Far::Reset {
            self.far = Far::Reset;
            self.arrived = true;
            self.cut = true;
            self.news = true;
        }
    }

    /// Whether the client's end is next in the queue.
    pub fn ended(&self) -> bool {
        self.far != Far::Open
    }

    /// Whether a poll for readable would fire.
    pub fn is_readable(&self) -> bool {
        !self.to_gateway.is_empty() || self.ended() || self.near_closed
    }

    /// What such a poll says.
    pub fn poll_mask(&self) -> i32 {
        let mut mask = i32::from(libc::POLLIN);
        if self.ended() {
            mask |= i32::from(libc::POLLRDHUP);
        }
        if self.far == Far::Reset {
            mask |= i32::from(libc::POLLHUP | libc::POLLERR);
        }
        mask
    }
}
