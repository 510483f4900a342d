//! The kernel as the accepting core sees it: one-shot accepts into its own file table, and hand-overs out of it.
//!
//! ```text
//!   accept ──► guest in our table ──► hand_over (SEND_FD) ──► its completion ──► release (close_direct)
//!                      └────────────► send ─► shutdown_write ─► discard … ─► cut (shutdown, then close_direct)
//! ```
//!
//! One-shot, since a multishot accept has one address buffer for all its completions and the peer's port would be lost.
#![allow(unsafe_code)]

use super::setup::{self, Sizes};
use super::{Kind, Listener, Token};
use crate::clock::Time;
use crate::ids::{Generation, Slot};
use crate::sys::EventFd;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::cell::UnsafeCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

/// Submissions queued before the kernel must be entered.
const SUBMISSIONS: u32 = 1024;
/// Bytes thrown away by one [`AcceptRing::discard`].
const DISCARD_BYTES: u32 = 16_384;
/// Entering is tried again this often when the kernel has no memory for it for the moment.
const ENTER_TRIES_MAX: usize = 1000;

/// A client in the accepting core's file table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The core's own number for it, in every token: unlike `slot` not reused before its last completion.
    pub number: u32,
    /// Where the ring's file table has it.
    pub slot: u32,
}

/// One completion.
#[derive(Debug)]
pub enum AcceptEvent {
    /// An accept is over; its place may be armed again.
    Accepted {
        /// As armed.
        place: u32,
        /// The slot it has in our table and the peer's address, or errno.
        result: Result<(u32, SocketAddr), i32>,
    },
    /// Something submitted for a guest is done.
    Guest {
        /// [`Guest::number`].
        number: u32,
        /// [`Kind::HandOver`], [`Kind::Send`], [`Kind::ShutdownWrite`], [`Kind::Recv`] or [`Kind::Close`].
        kind: Kind,
        /// Bytes or 0, or `-errno`.
        result: i32,
    },
    /// The bell was rung.
    Bell {
        /// The poll lives on; otherwise it must be armed again.
        armed: bool,
    },
}

/// What the accepting core asks of the kernel. Submissions are queued and reach it in [`AcceptRing::enter`]; a full
/// submission queue is entered by itself.
pub trait AcceptRing {
    /// The present, as of the last [`AcceptRing::enter`].
    fn now(&self) -> Time;

    /// Makes the calling thread the ring's owner. Once, before anything else.
    fn enable(&mut self);

    /// Arms `place`'s accept on listener number `listener`.
    fn accept(&mut self, place: u32, listener: u16);

    /// Cancels every armed accept and closes the listeners. Each armed place still completes, some with a client.
    fn stop_listening(&mut self);

    /// Passes the guest's socket into the file table of ring `ring`, where a completion says `token` and its slot. Ours
    /// keeps it open until [`AcceptRing::release`].
    fn hand_over(&mut self, guest: Guest, ring: RawFd, token: Token);

    /// Sends `bytes` whole (MSG_WAITALL | MSG_NOSIGNAL).
    fn send(&mut self, guest: Guest, bytes: &'static [u8]);

    /// Shuts down our side: the peer reads what was sent, then the end.
    fn shutdown_write(&mut self, guest: Guest);

    /// Waits for bytes and throws them away, 16 KiB at most: how many, 0 at the end.
    fn discard(&mut self, guest: Guest);

    /// Frees our slot; the connection lives on where it was handed over. Completes as [`Kind::Close`].
    fn release(&mut self, guest: Guest);

    /// Ends the connection, also under a [`AcceptRing::discard`], and frees the slot. Completes as [`Kind::Close`].
    fn cut(&mut self, guest: Guest);

    /// Arms the poll of a bell.
    fn watch(&mut self, event: &EventFd);

    /// Submits what is queued. Waits for a completion until `wait` (not at all if `None`); may come back early.
    fn enter(&mut self, wait: Option<Time>);

    /// The next completion, if one is there.
    fn completion(&mut self) -> Option<AcceptEvent>;
}

/// Where accept(2) leaves the peer's address.
struct Peer {
    address: libc::sockaddr_storage,
    length: libc::socklen_t,
}

/// io_uring behind [`AcceptRing`].
pub struct KernelAcceptRing {
    ring: IoUring,
    listeners: Vec<Listener>,
    // The kernel writes to an armed place at any time: it is read only between a completion and the next arming.
    peers: Box<[UnsafeCell<Peer>]>,
    armed: Box<[bool]>,
    now: Time,
}

impl KernelAcceptRing {
    /// A ring with `places` accepts and a file table of `table_slots`, still disabled: [`AcceptRing::enable`] makes a thread
    /// its owner. `modern` uses what kernels after 6.1 have.
    ///
    /// # Errors
    /// The kernel has no io_uring, forbids it, is older than 6.1, or lacks memory or descriptors; the text says what to do.
    pub fn new(
        listeners: Vec<Listener>,
        places: usize,
        table_slots: u32,
        modern: bool,
    ) -> io::Result<KernelAcceptRing> {
        let wanted = Sizes {
            submissions: SUBMISSIONS,
            completions: table_slots.saturating_mul(2).clamp(2 * SUBMISSIONS, 65_536).next_power_of_two(),
        };
        let build = |modern: bool| {
            setup::build(wanted, |builder| {
                builder.setup_r_disabled().setup_single_issuer().setup_defer_taskrun().setup_submit_all();
                if modern {
                    builder.setup_no_sqarray(); // It came with 6.6.
                }
            })
        };
        let newest = if modern { build(true).ok() } else { None };
        let (ring, _) = match newest {
            Some(built) => built,
            None => build(false).map_err(|e| {
                let advice = match e.raw_os_error() {
                    Some(libc::ENOSYS) => "this kernel has no io_uring: Linux 6.1 or newer is needed",
                    Some(libc::EPERM | libc::EACCES) => {
                        "io_uring is forbidden here: set kernel.io_uring_disabled=0, or let the container's seccomp profile allow it"
                    }
                    Some(libc::EINVAL) => "this kernel is too old: Linux 6.1 or newer is needed",
                    Some(libc::ENOMEM) => "no memory for it: raise `ulimit -l` (LimitMEMLOCK=) or free some",
                    Some(libc::EMFILE | libc::ENFILE) => "no descriptor left: raise `ulimit -n` (LimitNOFILE=)",
                    _ => "see io_uring_setup(2)",
                };
                io::Error::new(e.kind(), format!("the accepting core's ring: {e}; {advice}"))
            })?,
        };
        ring.submitter().register_files_sparse(table_slots).map_err(|e| {
            let advice = "raise `ulimit -n` (LimitNOFILE=) to at least that, or lower limits.refusals_max";
            io::Error::new(e.kind(), format!("the accepting core's file table of {table_slots} slots: {e}; {advice}"))
        })?;
        // SAFETY: all-zero bytes are a valid sockaddr_storage.
        let peer = || UnsafeCell::new(Peer { address: unsafe { std::mem::zeroed() }, length: 0 });
        Ok(KernelAcceptRing {
            ring,
            listeners,
            peers: (0..places).map(|_| peer()).collect(),
            armed: vec![false; places].into(),
            now: Time::now(),
        })
    }

    /// Queues entries that must be submitted together (a link does not reach over two submissions).
    ///
    /// # Safety
    /// Whatever they point at stays valid until their completions are in.
    unsafe fn push(&mut self, entries: &[squeue::Entry]) {
        let room = {
            let queue = self.ring.submission();
            queue.capacity() - queue.len()
        };
        if room < entries.len() {
            self.submit();
        }
        // SAFETY: the caller's promise.
        unsafe { self.ring.submission().push_multiple(entries) }.expect("a submission queue has room once submitted");
    }

    fn submit(&mut self) {
        for _ in 0..ENTER_TRIES_MAX {
            match self.ring.submit() {
                Ok(_) if self.ring.submission().is_empty() => return,
                Ok(_) => {}
                Err(e) if is_passing(&e) => std::thread::yield_now(),
                Err(e) => panic!("the accepting core's ring is broken: {e}"),
            }
        }
        panic!("the accepting core's ring takes no submissions: no kernel memory");
    }

    /// One entry without pointers, or with pointers to static bytes only.
    fn push_one(&mut self, kind: Kind, number: u32, entry: squeue::Entry) {
        let entry = entry.user_data(token(kind, number).0);
        // SAFETY: private, and called only with entries that point at nothing or at static bytes.
        unsafe { self.push(&[entry]) }
    }

    fn peer(&self, place: u32) -> SocketAddr {
        assert!(!self.armed[place as usize], "an armed place belongs to the kernel");
        // SAFETY: the kernel has let go of this place with the completion that cleared `armed`, and nobody else writes it.
        decode(unsafe { &*self.peers[place as usize].get() })
    }
}

fn token(kind: Kind, number: u32) -> Token {
    Token::new(kind, Generation(0), Slot(number))
}

/// Errors of io_uring_enter(2) that mean nothing for long.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME))
}

/// An IPv4 client of an IPv6 listener is an IPv4 client.
fn decode(peer: &Peer) -> SocketAddr {
    let storage = &raw const peer.address;
    match libc::c_int::from(peer.address.ss_family) {
        libc::AF_INET => {
            // SAFETY: sockaddr_storage is large enough and aligned for every address family, and any bytes are a valid
            // sockaddr_in.
            let v4 = unsafe { &*storage.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            SocketAddr::new(IpAddr::V4(ip), u16::from_be(v4.sin_port))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for a sockaddr_in6.
            let v6 = unsafe { &*storage.cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            SocketAddr::new(IpAddr::V6(ip).to_canonical(), u16::from_be(v6.sin6_port))
        }
        other => panic!("a TCP listener accepted a peer of address family {other}"),
    }
}

impl AcceptRing for KernelAcceptRing {
    fn now(&self) -> Time {
        self.now
    }

    fn enable(&mut self) {
        self.ring.submitter().register_enable_rings().expect("a disabled ring can be enabled, once");
        self.now = Time::now();
    }

    fn accept(&mut self, place: u32, listener: u16) {
        let armed = &mut self.armed[place as usize];
        assert!(!*armed, "a place has one accept at a time: its address buffer is the kernel's");
        *armed = true;
        let peer = self.peers[place as usize].get();
        // SAFETY: `place` was not armed, so nobody but us has this Peer; raw places, no reference is made.
        let (address, length) = unsafe {
            (*peer).length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            (&raw mut (*peer).address, &raw mut (*peer).length)
        };
        let entry =
            opcode::Accept::new(types::Fd(self.listeners[listener as usize].as_raw_fd()), address.cast(), length)
                .file_index(Some(types::DestinationSlot::auto_target()))
                .build()
                .user_data(token(Kind::Accept, place).0);
        // SAFETY: `peers` is never moved or freed while a place is armed (see Drop), and `armed` stays set until the
        // completion, so that nobody reads or arms it meanwhile.
        unsafe { self.push(&[entry]) }
    }

    fn stop_listening(&mut self) {
        for place in 0..self.armed.len() {
            if self.armed[place] {
                let place = place as u32;
                self.push_one(Kind::Ignore, place, opcode::AsyncCancel::new(token(Kind::Accept, place).0).build());
            }
        }
        // Before the descriptors go: a queued accept names its listener by number, which another file may get.
        self.submit();
        self.listeners.clear();
    }

    fn hand_over(&mut self, guest: Guest, ring: RawFd, token: Token) {
        let target = types::DestinationSlot::auto_target();
        let entry = opcode::MsgRingSendFd::new(types::Fd(ring), types::Fixed(guest.slot), target, token.0).build();
        self.push_one(Kind::HandOver, guest.number, entry);
    }

    fn send(&mut self, guest: Guest, bytes: &'static [u8]) {
        let length = u32::try_from(bytes.len()).expect("an answer is short");
        let entry = opcode::Send::new(types::Fixed(guest.slot), bytes.as_ptr(), length)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        self.push_one(Kind::Send, guest.number, entry);
    }

    fn shutdown_write(&mut self, guest: Guest) {
        let entry = opcode::Shutdown::new(types::Fixed(guest.slot), libc::SHUT_WR).build();
        self.push_one(Kind::ShutdownWrite, guest.number, entry);
    }

    fn discard(&mut self, guest: Guest) {
        // tcp(7): with MSG_TRUNC received bytes are discarded rather than passed back, so no buffer is named at all.
        let entry = opcode::Recv::new(types::Fixed(guest.slot), std::ptr::null_mut(), DISCARD_BYTES)
            .flags(libc::MSG_TRUNC)
            .build();
        self.push_one(Kind::Recv, guest.number, entry);
    }

    fn release(&mut self, guest: Guest) {
        self.push_one(Kind::Close, guest.number, opcode::Close::new(types::Fixed(guest.slot)).build());
    }

    fn cut(&mut self, guest: Guest) {
        // close_direct alone leaves the socket open while a receive is armed; hard-linked, since a peer that is gone makes
        // shutdown fail and the slot must be freed all the same.
        let shutdown = opcode::Shutdown::new(types::Fixed(guest.slot), libc::SHUT_RDWR).build();
        let close = opcode::Close::new(types::Fixed(guest.slot)).build();
        let entries = [
            shutdown.flags(squeue::Flags::IO_HARDLINK).user_data(token(Kind::Ignore, guest.number).0),
            close.user_data(token(Kind::Close, guest.number).0),
        ];
        // SAFETY: neither entry points at anything.
        unsafe { self.push(&entries) }
    }

    fn watch(&mut self, event: &EventFd) {
        let poll = opcode::PollAdd::new(types::Fd(event.as_raw_fd()), libc::POLLIN as u32).multi(true).build();
        self.push_one(Kind::Bell, 0, poll);
    }

    fn enter(&mut self, wait: Option<Time>) {
        // Waiting for one completion, if for no time at all, is what makes the kernel run deferred work.
        let result = match wait {
            Some(Time::NEVER) => self.ring.submit_and_wait(1),
            wait => {
                let ns = wait.map_or(0, |deadline| deadline.since_ns(Time::now()));
                let timeout = types::Timespec::new().sec(ns / 1_000_000_000).nsec((ns % 1_000_000_000) as u32);
                self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&timeout))
            }
        };
        match result {
            Ok(_) => {}
            // What was not submitted now is submitted by the next turn.
            Err(e) if is_passing(&e) => {}
            Err(e) => panic!("the accepting core's ring is broken: {e}"),
        }
        self.now = Time::now();
    }

    fn completion(&mut self) -> Option<AcceptEvent> {
        loop {
            let entry = self.ring.completion().next()?;
            let (token, result) = (Token(entry.user_data()), entry.result());
            let number = token.slot().0;
            return Some(match token.kind() {
                Kind::Accept => {
                    self.armed[number as usize] = false;
                    let result = if result < 0 { Err(-result) } else { Ok((result as u32, self.peer(number))) };
                    AcceptEvent::Accepted { place: number, result }
                }
                Kind::Bell => AcceptEvent::Bell { armed: cqueue::more(entry.flags()) },
                Kind::Ignore => continue,
                kind => AcceptEvent::Guest { number, kind, result },
            });
        }
    }
}

impl Drop for KernelAcceptRing {
    fn drop(&mut self) {
        // Closing the ring cancels what is armed, but not before close(2) returns: what the kernel may still write to is
        // leaked rather than freed. At the process's end only; the orderly way is to stop listening and wait.
        if self.armed.iter().any(|armed| *armed) {
            std::mem::forget(std::mem::take(&mut self.peers));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::{ListenOptions, listen};
    use std::io::{Read, Write};
    use std::net::TcpStream;

    fn ring(address: &str, modern: bool) -> (KernelAcceptRing, SocketAddr) {
        let listener = listen(address.parse().unwrap(), ListenOptions { send_buffer_bytes: 0, backlog: 64 }).unwrap();
        let address = listener.local_addr();
        let mut ring = KernelAcceptRing::new(vec![listener], 4, 8, modern).unwrap();
        ring.enable();
        (ring, address)
    }

    fn next(ring: &mut KernelAcceptRing) -> AcceptEvent {
        let deadline = Time::now().plus_ms(5000);
        loop {
            if let Some(event) = ring.completion() {
                return event;
            }
            assert!(ring.now() < deadline, "no completion within 5 s");
            ring.enter(Some(deadline));
        }
    }

    fn accepted(ring: &mut KernelAcceptRing) -> (u32, Guest, SocketAddr) {
        match next(ring) {
            AcceptEvent::Accepted { place, result: Ok((slot, address)) } => (place, Guest { number: 7, slot }, address),
            other => panic!("{other:?}"),
        }
    }

    fn done(ring: &mut KernelAcceptRing) -> (Kind, i32) {
        match next(ring) {
            AcceptEvent::Guest { number: 7, kind, result } => (kind, result),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_accept_has_its_own_peer_address_with_and_without_newer_kernels_features() {
        for modern in [true, false] {
            let (mut ring, address) = ring("127.0.0.1:0", modern);
            (0..4).for_each(|place| ring.accept(place, 0));
            let clients: Vec<_> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
            let mut seen: Vec<_> = (0..4).map(|_| accepted(&mut ring).2).collect();
            let mut expected: Vec<_> = clients.iter().map(|c| c.local_addr().unwrap()).collect();
            seen.sort();
            expected.sort();
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn an_ipv4_client_of_an_ipv6_listener_has_an_ipv4_address() {
        let (mut ring, address) = ring("[::]:0", true);
        ring.accept(0, 0);
        ring.accept(1, 0);
        let v4 = TcpStream::connect(("127.0.0.1", address.port())).unwrap();
        assert_eq!(accepted(&mut ring).2, v4.local_addr().unwrap());
        let v6 = TcpStream::connect(("::1", address.port())).unwrap();
        assert_eq!(accepted(&mut ring).2, v6.local_addr().unwrap());
    }

    #[test]
    fn received_bytes_are_thrown_away_until_the_peer_ends() {
        let (mut ring, address) = ring("127.0.0.1:0", true);
        ring.accept(0, 0);
        let mut client = TcpStream::connect(address).unwrap();
        let (_, guest, _) = accepted(&mut ring);
        client.write_all(&[7; 10_000]).unwrap();
        let mut discarded = 0;
        while discarded < 10_000 {
            ring.discard(guest);
            let (kind, bytes) = done(&mut ring);
            assert_eq!(kind, Kind::Recv);
            assert!(bytes > 0, "{bytes}");
            discarded += bytes;
        }
        client.shutdown(std::net::Shutdown::Write).unwrap();
        ring.discard(guest);
        assert_eq!(done(&mut ring), (Kind::Recv, 0));
    }

    #[test]
    fn a_cut_ends_the_connection_under_an_armed_receive() {
        let (mut ring, address) = ring("127.0.0.1:0", true);
        ring.accept(0, 0);
        let mut client = TcpStream::connect(address).unwrap();
        let (_, guest, _) = accepted(&mut ring);
        ring.discard(guest);
        ring.enter(None);
        ring.cut(guest);
        let mut kinds = [done(&mut ring).0, done(&mut ring).0];
        kinds.sort();
        assert_eq!(kinds, [Kind::Recv, Kind::Close]);
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn listening_stops_with_every_armed_place_given_back() {
        let (mut ring, address) = ring("127.0.0.1:0", true);
        (0..4).for_each(|place| ring.accept(place, 0));
        ring.enter(None);
        ring.stop_listening();
        let mut places: Vec<_> = (0..4)
            .map(|_| match next(&mut ring) {
                AcceptEvent::Accepted { place, result: Err(libc::ECANCELED) } => place,
                other => panic!("{other:?}"),
            })
            .collect();
        places.sort_unstable();
        assert_eq!(places, [0, 1, 2, 3]);
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_rung_bell_wakes_the_wait_each_time() {
        let (mut ring, _) = ring("127.0.0.1:0", true);
        let event = EventFd::new().unwrap();
        ring.watch(&event);
        for _ in 0..3 {
            event.signal();
            assert!(matches!(next(&mut ring), AcceptEvent::Bell { armed: true }));
            event.reset();
        }
    }
}
