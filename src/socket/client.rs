//! The other end of the wire: a ring of outgoing connections, for the load client.
//!
//! A load client wants the opposite of a shard: it connects by the ten thousand, sends next to nothing and receives all the
//! time. So every connection has a multishot receive armed, and all share one ring of provided buffers, few enough to stay
//! in the second-level cache. Sockets live in the ring's own file table, so that RLIMIT_NOFILE bounds one ring, not the process.
//!
//! ```text
//! connect ─► Connected ─► send / receive … ─► close ─► Closed: nothing of the slot is in flight, it may be used again
//! ```
#![allow(unsafe_code)]

use super::setup::{self, Sizes};
use crate::clock::Time;
use crate::sys::EventFd;
use io_uring::types::{BufRingEntry, CancelBuilder, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

const SUBMISSIONS: u32 = 1024;
/// A sleeping client is woken by so many completions, or [`WAKE_US_MAX`] after the first wait began (min_wait, Linux 6.12): one
/// wake-up each, an interrupt to a halted core, would be paid by the sender under test on the same machine.
const WAKE_COMPLETIONS: usize = 64;

/// What that may add to a latency measured, in µs.
const WAKE_US_MAX: u32 = 200;

const BUFFER_GROUP: u16 = 0;
const PAGE: usize = 4096;

/// How a [`ClientRing`] is built.
#[derive(Clone, Copy, Debug)]
pub struct ClientRingOptions {
    /// Connections it can hold: the size of its file table, at most RLIMIT_NOFILE.
    pub slots: u32,
    /// Receive buffers shared by all of them; a power of two, at most 32,768.
    pub buffers: u16,
    /// Bytes of each.
    pub buffer_bytes: u32,
}

impl Default for ClientRingOptions {
    /// 10,000 connections, and 4 MiB of buffers: measured best for long chunks and as good as any for short ones.
    fn default() -> Self {
        ClientRingOptions { slots: 10_000, buffers: 256, buffer_bytes: 16_384 }
    }
}

/// Received bytes, in a buffer that comes back to the ring by [`ClientRing::give_back`]. Lost buffers are lost to the ring.
#[derive(Debug)]
#[must_use = "a buffer that is not given back is lost to its ring"]
pub struct Buffer {
    ring: u32,
    id: u16,
    length: u32,
}

/// What happened to a connection.
#[derive(Debug)]
pub enum Event {
    /// [`ClientRing::connect`] is done. After an error the slot still has to be closed.
    Connected(u32, io::Result<()>),
    /// The bytes of [`ClientRing::send`] are out, or the connection is broken: 0 or `errno`.
    Sent(u32, i32),
    /// Bytes came in.
    Received(u32, Buffer),
    /// Nothing more will come: 0 for the peer's end of stream, or `errno`.
    Ended(u32, i32),
    /// The slot is free.
    Closed(u32),
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Connect,
    Send,
    ReceiveMany,
    ReceiveOnce,
    Shutdown,
    Close,
    Bell,
}

const KINDS: [Kind; 7] =
    [Kind::Connect, Kind::Send, Kind::ReceiveMany, Kind::ReceiveOnce, Kind::Shutdown, Kind::Close, Kind::Bell];

fn token(kind: Kind, slot: u32) -> u64 {
    (kind as u64) << 32 | u64::from(slot)
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    Open,
    Closing,
}

/// What the kernel may be looking at on behalf of one connection.
#[derive(Default)]
struct Slot {
    sending: Option<Arc<[u8]>>,
    address: Option<Box<Address>>,
    in_flight: u8, // Submissions whose last completion is not in: at most connect, send, receive, shutdown, close.
    state: State,
}

struct Address {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

/// Many outgoing TCP connections on one ring, driven by the thread that made it: the kernel refuses every other, hence not
/// `Send`.
pub struct ClientRing {
    ring: IoUring,
    buffers: Buffers,
    slots: Vec<Slot>,
    bell: Option<Arc<EventFd>>,
    number: u32,
}

impl ClientRing {
    /// A ring for the calling thread: no other may use it.
    ///
    /// # Errors
    /// io_uring refused, or more slots than RLIMIT_NOFILE (EMFILE).
    pub fn new(options: ClientRingOptions) -> io::Result<ClientRing> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        assert!(options.buffers.is_power_of_two() && options.buffers <= 32_768, "buffers: a power of two up to 32,768");
        let wanted = Sizes { submissions: SUBMISSIONS, completions: (options.slots + SUBMISSIONS).next_power_of_two() };
        let (ring, _) = setup::build(wanted, |builder| {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
        })?;
        ring.submitter().register_files_sparse(options.slots)?;
        let buffers = Buffers::register(&ring, options.buffers, options.buffer_bytes)?;
        let mut slots = Vec::new();
        slots.resize_with(options.slots as usize, Slot::default);
        Ok(ClientRing { ring, buffers, slots, bell: None, number: NUMBER.fetch_add(1, Ordering::Relaxed) })
    }

    /// Connections it can hold.
    pub fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Waiting on this ring also ends when `bell` rings: how one thread waits on several rings.
    pub fn wake_on(&mut self, bell: Arc<EventFd>) {
        self.bell = Some(bell); // Held as long as the ring, so that the descriptor stays what it is.
        self.listen_for_the_bell();
    }

    /// Rings `bell` when this ring has something to do.
    ///
    /// # Errors
    /// The kernel's, as for a ring that has a bell already.
    pub fn ring_bell(&mut self, bell: Arc<EventFd>) -> io::Result<()> {
        self.ring.submitter().register_eventfd(bell.as_raw_fd())?;
        self.bell = Some(bell);
        Ok(())
    }

    /// Opens a socket in the free `slot` and starts connecting it, from address `source` if one is given (its port is the
    /// kernel's choice). It has TCP_NODELAY, and is reset when closed, so that many short runs leave no TIME_WAIT behind.
    ///
    /// # Errors
    /// Out of descriptors or memory, or `source` is not ours. The slot is still free then.
    pub fn connect(&mut self, slot: u32, source: Option<SocketAddr>, target: SocketAddr) -> io::Result<()> {
        assert!(self.slots[slot as usize].state == State::Free, "slot {slot} is taken");
        let target = Box::new(Address::from(target));
        // SAFETY: no pointers; the result is checked before it is owned.
        let fd = check(unsafe {
            let family = i32::from(target.storage.ss_family);
            libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_TCP)
        })?;
        // SAFETY: the kernel has just given us this descriptor and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        set_option(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1i32)?;
        set_option(&fd, libc::SOL_SOCKET, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        if let Some(source) = source {
            let source = Address::from(source);
            set_option(&fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1i32)?;
            // SAFETY: `source` holds a socket address of `length` bytes.
            check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const source.storage).cast(), source.length) })?;
        }
        self.ring.submitter().register_files_update(slot, &[fd.as_raw_fd()])?;
        // The table holds the socket now; the descriptor goes with `fd`.
        let entry = opcode::Connect::new(Fixed(slot), (&raw const target.storage).cast(), target.length).build();
        let place = &mut self.slots[slot as usize];
        place.address = Some(target);
        place.state = State::Open;
        self.submit(Kind::Connect, slot, entry);
        Ok(())
    }

    /// Sends all of `bytes`.
    ///
    /// # Panics
    /// If a send is in flight on this slot: frames would interleave on the wire.
    pub fn send(&mut self, slot: u32, bytes: Arc<[u8]>) {
        let place = &mut self.slots[slot as usize];
        assert!(place.state == State::Open && place.sending.is_none(), "slot {slot} can't send");
        let entry = opcode::Send::new(Fixed(slot), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        place.sending = Some(bytes);
        self.submit(Kind::Send, slot, entry);
    }

    /// Whether a send is in flight.
    pub fn is_sending(&self, slot: u32) -> bool {
        self.slots[slot as usize].sending.is_some()
    }

    /// Receives from now on, until [`Event::Ended`].
    pub fn receive(&mut self, slot: u32) {
        assert!(self.slots[slot as usize].state == State::Open, "slot {slot} is not open");
        let entry = opcode::RecvMulti::new(Fixed(slot), BUFFER_GROUP).build();
        self.submit(Kind::ReceiveMany, slot, entry);
    }

    /// Receives once: one [`Event::Received`] or [`Event::Ended`]. A client that stops reading simply stops asking.
    pub fn receive_once(&mut self, slot: u32) {
        assert!(self.slots[slot as usize].state == State::Open, "slot {slot} is not open");
        let entry = opcode::Recv::new(Fixed(slot), std::ptr::null_mut(), self.buffers.size)
            .buf_group(BUFFER_GROUP)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.submit(Kind::ReceiveOnce, slot, entry);
    }

    /// Ends the connection. Nothing more is reported of it but [`Event::Closed`], once all that was in flight is in.
    pub fn close(&mut self, slot: u32) {
        let place = &mut self.slots[slot as usize];
        if place.state != State::Open {
            return;
        }
        place.state = State::Closing;
        let queue = self.ring.submission();
        let room = queue.capacity() - queue.len();
        drop(queue);
        if room < 2 {
            self.flush(); // A link must not be cut by the end of a submission.
        }
        // close alone would not end a socket with a receive armed; and the shutdown fails when it never was connected, hence
        // the hard link.
        let shutdown = opcode::Shutdown::new(Fixed(slot), libc::SHUT_RDWR).build().flags(squeue::Flags::IO_HARDLINK);
        self.submit(Kind::Shutdown, slot, shutdown);
        self.submit(Kind::Close, slot, opcode::Close::new(Fixed(slot)).build());
    }

    /// Hands the kernel what is queued, lets it do what it has for us, and waits for a completion until `wait` (not at all if
    /// `None`); may come back early.
    ///
    /// # Panics
    /// If the ring is broken.
    pub fn enter(&mut self, wait: Option<Time>) {
        self.wait(wait, WAKE_COMPLETIONS);
    }

    /// As [`enter`](Self::enter), and the first completion wakes: for who then goes on looking ([`has_work`](Self::has_work)).
    ///
    /// # Panics
    /// If the ring is broken.
    pub fn enter_eager(&mut self, wait: Option<Time>) {
        self.wait(wait, 1);
    }

    /// The kernel has something for this ring, or this ring for the kernel; no system call.
    pub fn has_work(&mut self) -> bool {
        let queue = self.ring.submission();
        let work = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        work || !self.ring.completion().is_empty()
    }

    fn wait(&mut self, wait: Option<Time>, completions: usize) {
        let wait_ns = wait.map_or(0, |t| t.since_ns(Time::now()));
        if wait_ns == 0 || !self.ring.completion().is_empty() {
            return self.flush();
        }
        let timeout = Timespec::new().sec(wait_ns / 1_000_000_000).nsec((wait_ns % 1_000_000_000) as u32);
        let arguments = SubmitArgs::new().timespec(&timeout);
        let result = if completions > 1 && self.ring.params().is_feature_min_timeout() {
            self.ring.submitter().submit_with_args(completions, &arguments.min_wait_usec(WAKE_US_MAX))
        } else {
            self.ring.submitter().submit_with_args(1, &arguments)
        };
        tolerate(result.map(drop));
    }

    /// The next event, if one is there. Receives that stop for want of buffers or room are armed again here.
    pub fn event(&mut self) -> Option<Event> {
        loop {
            let entry = self.ring.completion().next()?;
            if let Some(event) = self.understand(&entry) {
                return Some(event);
            }
        }
    }

    /// The bytes received.
    pub fn received(&self, buffer: &Buffer) -> &[u8] {
        assert!(buffer.ring == self.number, "a buffer of another ring");
        self.buffers.bytes(buffer.id, buffer.length)
    }

    /// Gives a buffer back to the kernel.
    pub fn give_back(&mut self, buffer: Buffer) {
        assert!(buffer.ring == self.number, "a buffer of another ring");
        self.buffers.publish(buffer.id);
    }

    fn understand(&mut self, entry: &cqueue::Entry) -> Option<Event> {
        let slot = entry.user_data() as u32;
        let kind = KINDS[(entry.user_data() >> 32) as usize];
        let (result, more) = (entry.result(), cqueue::more(entry.flags()));
        if kind == Kind::Bell {
            assert!(result > 0, "the poll of the bell failed: {result}");
            self.listen_for_the_bell();
            return None;
        }
        let buffer = cqueue::buffer_select(entry.flags()).map(|id| Buffer {
            ring: self.number,
            id,
            length: result.max(0) as u32,
        });
        if more && result > 0 {
            // The usual case touches nothing of the slot but its state.
            if self.slots[slot as usize].state == State::Open {
                return buffer.map(|buffer| Event::Received(slot, buffer));
            }
            self.give_back(buffer?);
            return None;
        }
        self.last_completion(kind, slot, result, more, buffer)
    }

    #[cold]
    fn last_completion(
        &mut self,
        kind: Kind,
        slot: u32,
        result: i32,
        more: bool,
        buffer: Option<Buffer>,
    ) -> Option<Event> {
        let place = &mut self.slots[slot as usize];
        place.in_flight -= u8::from(!more);
        match kind {
            Kind::Connect => place.address = None,
            Kind::Send => place.sending = None,
            _ => {}
        }
        if place.state != State::Open {
            let retired = place.in_flight == 0;
            if retired {
                place.state = State::Free;
            }
            if let Some(buffer) = buffer {
                self.give_back(buffer);
            }
            return retired.then_some(Event::Closed(slot));
        }
        match kind {
            Kind::Connect if result < 0 => Some(Event::Connected(slot, Err(io::Error::from_raw_os_error(-result)))),
            Kind::Connect => Some(Event::Connected(slot, Ok(()))),
            Kind::Send => Some(Event::Sent(slot, (-result).max(0))),
            Kind::ReceiveMany | Kind::ReceiveOnce => {
                if result > 0 || result == -libc::ENOBUFS {
                    // All buffers of earlier completions are back by now, so arming again finds one.
                    match kind {
                        Kind::ReceiveMany if !more => self.receive(slot),
                        Kind::ReceiveOnce if result < 0 => self.receive_once(slot),
                        _ => {}
                    }
                    return buffer.map(|buffer| Event::Received(slot, buffer));
                }
                if let Some(buffer) = buffer {
                    self.give_back(buffer);
                }
                Some(Event::Ended(slot, -result))
            }
            Kind::Shutdown | Kind::Close | Kind::Bell => None,
        }
    }

    /// Anew each time: a multishot poll of an eventfd ends when a ring signals it (the kernel's guard against rings that wake
    /// each other for ever).
    fn listen_for_the_bell(&mut self) {
        let Some(bell) = &self.bell else { return };
        bell.reset();
        let poll = opcode::PollAdd::new(types::Fd(bell.as_raw_fd()), libc::POLLIN as u32).build();
        self.push(poll.user_data(token(Kind::Bell, 0)));
    }

    fn submit(&mut self, kind: Kind, slot: u32, entry: squeue::Entry) {
        self.slots[slot as usize].in_flight += 1;
        self.push(entry.user_data(token(kind, slot)));
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: what an entry points at (bytes of a send, address of a connect) is held by `slots` until the entry's last
        // completion, and `drop` waits for those that are still to come. Both are on the heap and don't move. `entry` names a
        // file of our own table, or the bell that we hold.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.flush();
        }
    }

    /// Does nothing if there is nothing to do, so that a client may have fifty rings.
    fn flush(&mut self) {
        let queue = self.ring.submission();
        let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        if idle {
            return;
        }
        tolerate(self.ring.submit().map(drop));
    }
}

impl Drop for ClientRing {
    /// Waits until the kernel looks at nothing of ours any more.
    fn drop(&mut self) {
        tolerate(self.ring.submit().map(drop));
        let cancelled = self.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
        let nothing_was_there = |e: &io::Error| e.raw_os_error() == Some(libc::ENOENT);
        if cancelled.is_ok() || cancelled.is_err_and(|e| nothing_was_there(&e)) {
            self.ring.submitter().unregister_buf_ring(BUFFER_GROUP).ok();
        } else {
            // Better to lose the memory than to have the kernel write into what it has become.
            std::mem::forget(std::mem::take(&mut self.slots));
            self.buffers.leak = true;
        }
    }
}

/// The provided buffers: the kernel's ring of entries, and the bytes that they name.
///
/// ```text
/// entries (kernel reads up to tail)   [addr, len, id] [addr, len, id] …      tail lies in the first entry's spare field
/// bytes                               [buffer 0     ] [buffer 1     ] …
/// ```
struct Buffers {
    entries: Pages,
    bytes: Pages,
    count: u16,
    size: u32,
    tail: u16,
    leak: bool,
}

impl Buffers {
    fn register(ring: &IoUring, count: u16, size: u32) -> io::Result<Buffers> {
        let mut buffers = Buffers {
            entries: Pages::new(usize::from(count) * size_of::<BufRingEntry>()),
            bytes: Pages::new(usize::from(count) * size as usize),
            count,
            size,
            tail: 0,
            leak: false,
        };
        let address = buffers.entries.start.as_ptr() as u64;
        // SAFETY: `entries` holds `count` entries, is page-aligned and zeroed, and lives until `ClientRing::drop` has
        // unregistered it or, failing that, for ever.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, count, BUFFER_GROUP, 0) }?;
        (0..count).for_each(|id| buffers.publish(id));
        Ok(buffers)
    }

    /// Lets the kernel have buffer `id`.
    fn publish(&mut self, id: u16) {
        assert!(id < self.count);
        let base: *mut BufRingEntry = self.entries.start.as_ptr().cast();
        // SAFETY: the index is below `count`, so the entry is inside `entries`; the kernel reads it only after the tail below
        // says so. The address is inside `bytes`, and nobody of ours looks there: the `Buffer` that named it is gone.
        unsafe {
            let entry = base.add(usize::from(self.tail & (self.count - 1)));
            (*entry).set_addr(self.bytes.start.as_ptr().add(usize::from(id) * self.size as usize) as u64);
            (*entry).set_len(self.size);
            (*entry).set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `base` is the first entry of the ring, aligned for it; the tail is a u16 in it that the kernel only reads.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(base).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    fn bytes(&self, id: u16, length: u32) -> &[u8] {
        assert!(id < self.count && length <= self.size);
        // SAFETY: the kernel wrote `length` bytes into buffer `id` and will not touch it again until it is published: that
        // takes the `Buffer` by value, and the caller's borrow of it keeps this slice from outliving it. All was zeroed once.
        unsafe {
            std::slice::from_raw_parts(
                self.bytes.start.as_ptr().add(usize::from(id) * self.size as usize),
                length as usize,
            )
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        self.entries.leak = self.leak;
        self.bytes.leak = self.leak;
    }
}

/// Zeroed, page-aligned memory. Its pointer is what keeps a [`ClientRing`] from being `Send`.
struct Pages {
    start: NonNull<u8>,
    layout: Layout,
    leak: bool,
}

impl Pages {
    fn new(length: usize) -> Pages {
        let layout =
            Layout::from_size_align(length.max(1), PAGE).expect("a page-aligned layout below the address space");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        Pages { start: NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout)), layout, leak: false }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if !self.leak {
            // SAFETY: allocated by `new` with this very layout, and freed only here.
            unsafe { dealloc(self.start.as_ptr(), self.layout) };
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        // SAFETY: all zeroes is a valid sockaddr_storage.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let length = match address {
            SocketAddr::V4(a) => {
                // SAFETY: a sockaddr_storage is large enough and aligned for every address family.
                let v4 = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in>() };
                v4.sin_family = libc::AF_INET as libc::sa_family_t;
                v4.sin_port = a.port().to_be();
                v4.sin_addr.s_addr = u32::from(*a.ip()).to_be();
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(a) => {
                // SAFETY: as above.
                let v6 = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in6>() };
                v6.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                v6.sin6_port = a.port().to_be();
                v6.sin6_addr.s6_addr = a.ip().octets();
                v6.sin6_scope_id = a.scope_id();
                size_of::<libc::sockaddr_in6>()
            }
        };
        Address { storage, length: length as libc::socklen_t }
    }
}

fn set_option<T>(fd: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: `value` is readable for its own size, which is what the kernel is told.
    let result = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const *value).cast(), size_of::<T>() as libc::socklen_t)
    };
    check(result).map(drop)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A wait that ran out or was interrupted, and a completion queue that has to be emptied first, are no failures.
fn tolerate(result: io::Result<()>) {
    if let Err(e) = result
        && !matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN))
    {
        panic!("io_uring_enter on the load client's ring: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn ring(slots: u32) -> ClientRing {
        ClientRing::new(ClientRingOptions { slots, buffers: 4, buffer_bytes: 1024 }).unwrap()
    }

    /// The next event, waited for up to ten seconds.
    fn event(ring: &mut ClientRing) -> Event {
        let deadline = Time::now().plus_ms(10_000);
        loop {
            if let Some(event) = ring.event() {
                return event;
            }
            assert!(Time::now() < deadline, "no event");
            ring.enter(Some(deadline));
        }
    }

    fn connected(ring: &mut ClientRing, slot: u32) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let source = "127.0.0.7:0".parse().unwrap();
        ring.connect(slot, Some(source), listener.local_addr().unwrap()).unwrap();
        assert!(matches!(event(ring), Event::Connected(s, Ok(())) if s == slot));
        let (peer, from) = listener.accept().unwrap();
        assert_eq!(from.ip().to_string(), "127.0.0.7");
        peer
    }

    #[test]
    fn bytes_go_out_and_come_back_and_the_end_is_reported() {
        let mut ring = ring(2);
        let mut peer = connected(&mut ring, 1);
        ring.send(1, Arc::from(&b"hello"[..]));
        assert!(ring.is_sending(1));
        assert!(matches!(event(&mut ring), Event::Sent(1, 0)));
        assert!(!ring.is_sending(1));
        let mut got = [0; 5];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");

        ring.receive(1);
        peer.write_all(b"world").unwrap();
        let Event::Received(1, buffer) = event(&mut ring) else { panic!("bytes first") };
        assert_eq!(ring.received(&buffer), b"world");
        ring.give_back(buffer);
        drop(peer);
        assert!(matches!(event(&mut ring), Event::Ended(1, 0)));
        ring.close(1);
        assert!(matches!(event(&mut ring), Event::Closed(1)));
    }

    #[test]
    fn a_stream_far_larger_than_all_buffers_arrives_whole() {
        let mut ring = ring(1);
        let mut peer = connected(&mut ring, 0);
        ring.receive(0);
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        let copy = sent.clone();
        let writer = std::thread::spawn(move || peer.write_all(&copy));
        let mut got = Vec::new();
        loop {
            match event(&mut ring) {
                Event::Received(0, buffer) => {
                    got.extend_from_slice(ring.received(&buffer));
                    ring.give_back(buffer);
                }
                Event::Ended(0, 0) => break,
                other => panic!("{other:?}"),
            }
        }
        writer.join().unwrap().unwrap();
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    }

    #[test]
    fn a_closed_slot_says_nothing_more_and_can_be_used_again() {
        let mut ring = ring(1);
        for _ in 0..3 {
            let mut peer = connected(&mut ring, 0);
            ring.receive(0);
            peer.write_all(&[7; 10_000]).unwrap();
            ring.close(0);
            assert!(matches!(event(&mut ring), Event::Closed(0)));
            assert_eq!(peer.read(&mut [0; 1]).unwrap_or(0), 0, "the end or a reset, and no bytes");
        }
    }

    #[test]
    fn a_client_that_receives_once_leaves_the_rest_in_the_socket() {
        let mut ring = ring(1);
        let mut peer = connected(&mut ring, 0);
        ring.receive_once(0);
        peer.write_all(&[1; 3000]).unwrap();
        let Event::Received(0, buffer) = event(&mut ring) else { panic!("bytes first") };
        assert!(ring.received(&buffer).len() <= 1024);
        ring.give_back(buffer);
        ring.enter(None);
        assert!(ring.event().is_none());
        ring.receive_once(0);
        assert!(matches!(event(&mut ring), Event::Received(0, _)));
    }

    #[test]
    fn a_refused_connection_is_an_error_of_its_slot() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut ring = ring(1);
        ring.connect(0, None, gone).unwrap();
        let Event::Connected(0, Err(e)) = event(&mut ring) else { panic!("nobody listens there") };
        assert_eq!(e.kind(), io::ErrorKind::ConnectionRefused);
        ring.close(0);
        assert!(matches!(event(&mut ring), Event::Closed(0)));
    }

    #[test]
    fn one_ring_waits_for_another_by_its_bell() {
        let (mut first, mut second) = (ring(1), ring(1));
        let bell = Arc::new(EventFd::new().unwrap());
        first.wake_on(Arc::clone(&bell));
        second.ring_bell(bell).unwrap();
        let mut peer = connected(&mut second, 0);
        second.receive(0);
        second.enter(None);
        first.enter(None);
        while first.event().is_some() {}
        let before = Time::now();
        let writer = std::thread::spawn(move || peer.write_all(b"x").map(|()| peer));
        let mut rounds = 0;
        loop {
            first.enter(Some(before.plus_ms(10_000)));
            assert!(first.event().is_none(), "a bell is no event");
            second.enter(None);
            rounds += 1;
            match second.event() {
                Some(Event::Received(0, buffer)) => break second.give_back(buffer),
                Some(other) => panic!("{other:?}"),
                None => assert!(rounds < 100, "woken for nothing, again and again"),
            }
        }
        assert!(Time::now().since_ns(before) < 5_000_000_000, "woken by the bell, not by the deadline");
        writer.join().unwrap().unwrap();
    }
}
