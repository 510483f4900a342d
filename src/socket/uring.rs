//! [`Ring`] on the kernel's io_uring. Needs what Linux 6.1 has; what is newer is probed for and has a fallback.
//!
//! Built disabled on the starting thread (so that its errors are told before anything listens, and the accepting core knows its
//! descriptor), enabled on the shard's own: from then on only that thread may submit (SINGLE_ISSUER).
//!
//! ```text
//!         submit             CQE
//!  idle ─────────► sending ───────► idle        the bytes, and the iovecs that point at them, live in `inflight` and
//!                                               `vectors` from one arrow to the other, and nowhere else
//! ```
#![allow(unsafe_code)]

use super::buffers::BufferRing;
use super::setup::{self, Sizes};
use super::{BufferId, Completion, InFlight, Kind, Ring, Token};
use crate::clock::Time;
use crate::frame::Outgoing;
use crate::ids::{Generation, Slot};
use crate::queue::Bell;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

/// IORING_SEND_VECTORIZED of `ioprio` (Linux 6.17): SEND takes an iovec array. Not in the crate.
const SEND_VECTORIZED: u16 = 1 << 5;

/// Submission entries: a turn submits at most 256 sends and little else before it enters.
const SUBMISSION_ENTRIES: u32 = 1024;

/// Completions the ring has room for, however many slots there are: several turns' worth. What comes beyond them the kernel keeps in a
/// list of its own (IORING_FEAT_NODROP), and many shards on a core pay for each entry. Not less: its hash of armed polls shrinks too.
const COMPLETION_ENTRIES_MAX: usize = 8192;

/// What may be used beyond Linux 6.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// IORING_SETUP_NO_SQARRAY, 6.6: one indirection less.
    pub no_sqarray: bool,
    /// IORING_SEND_VECTORIZED, 6.17: cheaper than SENDMSG for several pieces.
    pub send_vectorized: bool,
}

impl Features {
    /// What Linux 6.1 has.
    pub const LINUX_6_1: Features = Features { no_sqarray: false, send_vectorized: false };

    /// What this kernel has beyond it, by trying.
    pub fn probe() -> Features {
        let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
        builder.setup_no_sqarray();
        let no_sqarray = builder.build(2).is_ok();
        Features { no_sqarray, send_vectorized: probe_send_vectorized().unwrap_or(false) }
    }
}

fn probe_send_vectorized() -> io::Result<bool> {
    let (a, mut b) = std::os::unix::net::UnixStream::pair()?;
    let mut ring = IoUring::new(2)?;
    let part = *b"ok";
    let vectors = [libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() }; 2];
    let entry = opcode::Send::new(types::Fd(a.as_raw_fd()), vectors.as_ptr().cast(), vectors.len() as u32)
        .ioprio(SEND_VECTORIZED)
        .build();
    // SAFETY: `vectors` and `part` outlive the completion awaited below.
    unsafe { ring.submission().push(&entry).expect("an empty queue of two has room") };
    ring.submit_and_wait(1)?;
    let sent = ring.completion().next().is_some_and(|c| c.result() == 4);
    let mut got = [0u8; 4];
    Ok(sent && io::Read::read_exact(&mut b, &mut got).is_ok() && &got == b"okok")
}

/// Why a ring could not be had. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// Not in this kernel, or taken away.
    #[error(
        "io_uring is not available: {cause}. Fanwire needs Linux 6.1 or newer with io_uring allowed: check `uname -r`, \
         `sysctl kernel.io_uring_disabled` (must be 0) and, in a container, that its seccomp profile allows \
         io_uring_setup, io_uring_enter and io_uring_register"
    )]
    Unavailable {
        /// What the kernel said.
        cause: io::Error,
    },
    /// There, but without something we need.
    #[error("this kernel's io_uring lacks {feature}: {cause}. Fanwire needs Linux 6.1 or newer")]
    Lacks {
        /// What is missing.
        feature: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// No memory for the smallest ring.
    #[error(
        "a shard's ring could not be had: {cause}; raise RLIMIT_MEMLOCK (`ulimit -l`, LimitMEMLOCK= in a systemd unit), which counts the \
         rings of all of this user's processes, or the memory limit of the control group, or lower shards.count"
    )]
    NoMemory {
        /// What the kernel said.
        cause: io::Error,
    },
    /// No descriptors.
    #[error(
        "a shard's ring could not be had: {cause}; raise RLIMIT_NOFILE (`ulimit -n`, LimitNOFILE= in a systemd unit), or lower \
         shards.count"
    )]
    Starved {
        /// What the kernel said.
        cause: io::Error,
    },
    /// More slots than descriptors.
    #[error(
        "a ring of {slots} connections needs as many descriptors, and RLIMIT_NOFILE is {nofile}: raise it (`ulimit -n`, \
         LimitNOFILE= in a systemd unit), or lower shards.connections_max or raise shards.count"
    )]
    FilesLimited {
        /// Slots asked for.
        slots: usize,
        /// The limit.
        nofile: u64,
    },
}

/// A ring that is built but not yet running: may be moved to its thread.
pub struct UringParts {
    ring: IoUring,
    bell: Arc<Bell>,
    slots: usize,
    features: Features,
    cut: Option<Sizes>,
}

impl UringParts {
    /// Builds a disabled ring with a file table of `slots`.
    ///
    /// # Errors
    /// [`RingError`], each with its remedy.
    pub fn build(slots: usize, features: Features, bell: Arc<Bell>) -> Result<UringParts, RingError> {
        let completions = slots.next_power_of_two().clamp(SUBMISSION_ENTRIES as usize * 2, COMPLETION_ENTRIES_MAX);
        let wanted = Sizes { submissions: SUBMISSION_ENTRIES, completions: completions as u32 };
        let (ring, sizes) = setup::build(wanted, |builder| {
            builder
                .setup_r_disabled()
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all();
            if features.no_sqarray {
                builder.setup_no_sqarray();
            }
        })
        .map_err(|cause| match cause.raw_os_error() {
            Some(libc::EINVAL) => RingError::Lacks { feature: "DEFER_TASKRUN or SINGLE_ISSUER (6.1)", cause },
            Some(libc::EMFILE | libc::ENFILE) => RingError::Starved { cause },
            Some(libc::ENOMEM) => RingError::NoMemory { cause },
            _ => RingError::Unavailable { cause },
        })?;
        ring.submitter().register_files_sparse(slots as u32).map_err(|cause| match cause.raw_os_error() {
            Some(libc::EMFILE) => RingError::FilesLimited { slots, nofile: crate::sys::nofile_limit().0 },
            Some(libc::ENOMEM) => RingError::NoMemory { cause },
            _ => RingError::Lacks { feature: "sparse file tables (5.19)", cause },
        })?;
        Ok(UringParts { ring, bell, slots, features, cut: (sizes != wanted).then_some(sizes) })
    }

    /// What its queues have, if the kernel had no memory for what they should.
    pub fn cut(&self) -> Option<Sizes> {
        self.cut
    }

    /// The ring's descriptor, for hand-overs to it.
    pub fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Enables the ring on the calling thread, which alone may use it from now on.
    ///
    /// # Errors
    /// The kernel lacks provided-buffer rings.
    pub fn start(self) -> Result<UringRing, RingError> {
        let UringParts { ring, bell, slots, features, cut: _ } = self;
        let lacks = |feature| move |cause| RingError::Lacks { feature, cause };
        ring.submitter().register_enable_rings().map_err(lacks("disabled rings (5.10)"))?;
        // At most slots ÷ 64, so that small shards are cheap; no buffer left is no error, only a repeated receive.
        let count = (slots / 64).next_power_of_two().clamp(16, 1024) as u16;
        let buffers = BufferRing::new(&ring.submitter(), count).map_err(|cause| match cause.raw_os_error() {
            Some(libc::ENOMEM) => RingError::NoMemory { cause },
            _ => RingError::Lacks { feature: "provided-buffer rings (5.19)", cause },
        })?;
        let mut ring = UringRing {
            ring,
            inflight: InFlight::new(slots),
            vectors: Vec::new(),
            buffers,
            bell,
            features,
            buffers_grown: false,
            reaped: Vec::with_capacity(1024),
            next: 0,
        };
        // Saves the descriptor look-up of each enter; without it nothing else changes.
        let _ = ring.ring.submitter().register_ring_fd();
        ring.arm_bell();
        Ok(ring)
    }
}

/// Errors of io_uring_enter(2) that mean nothing for long. (EBADR is not one: a completion was lost, and with it the count of
/// what is in flight.)
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINTR | libc::EAGAIN))
}

/// iovecs of one vectored send, and the msghdr that points at them where SEND takes none.
struct Vectored {
    vectors: Vec<libc::iovec>,
    header: libc::msghdr,
}

/// A shard's ring.
pub struct UringRing {
    ring: IoUring,
    inflight: InFlight,
    /// By slot, kept for reuse; grows to the highest slot that ever needed one.
    vectors: Vec<Option<Box<Vectored>>>,
    buffers: BufferRing,
    /// The kernel got more of them since the last enter: one step is for all that found none in it.
    buffers_grown: bool,
    bell: Arc<Bell>,
    features: Features,
    /// What the last enter found; handed out up to `next`.
    reaped: Vec<cqueue::Entry>,
    next: usize,
}

impl UringRing {
    /// Queues an entry; enters first if the queue is full.
    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: whatever `entry` points at lives in `inflight`, `vectors` or `buffers` until its completion (see there), or
            // it points at nothing.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            self.submit();
        }
    }

    /// Entries that fit before the kernel must be entered.
    fn room(&mut self) -> usize {
        let queue = self.ring.submission();
        queue.capacity() - queue.len()
    }

    fn submit(&mut self) {
        match self.ring.submit() {
            Ok(_) => {}
            // The completion queue overflowed: reap, then go on. Interrupted, or no memory for the moment: go on.
            Err(e) if is_passing(&e) => self.reap(),
            Err(e) => panic!("io_uring_enter: {e}: the ring is broken, the process can't go on"),
        }
    }

    /// Takes what has completed, so that the kernel has room for more.
    fn reap(&mut self) {
        if self.next == self.reaped.len() {
            self.reaped.clear();
            self.next = 0;
        }
        self.reaped.extend(self.ring.completion());
    }

    /// Submits, and waits for a completion for at most `left_ns`.
    fn wait(&mut self, left_ns: u64) {
        let timeout = types::Timespec::new().sec(left_ns / 1_000_000_000).nsec((left_ns % 1_000_000_000) as u32);
        let arguments = types::SubmitArgs::new().timespec(&timeout);
        match self.ring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => {}
            Err(e) if e.raw_os_error() == Some(libc::ETIME) || is_passing(&e) => {}
            Err(e) => panic!("io_uring_enter: {e}: the ring is broken, the process can't go on"),
        }
    }

    fn arm_bell(&mut self) {
        if let Some(event) = self.bell.event() {
            let token = Token::new(Kind::Bell, Generation(0), Slot(0));
            let entry = opcode::PollAdd::new(types::Fd(event.as_raw_fd()), libc::POLLIN as u32)
                .multi(true)
                .build()
                .user_data(token.0);
            self.push(&entry);
        }
    }

    fn send_pieces(&mut self, token: Token) -> squeue::Entry {
        let slot = token.slot();
        let index = slot.0 as usize;
        if self.vectors.len() <= index {
            self.vectors.resize_with(index + 1, || None);
        }
        let vectored = self.vectors[index].get_or_insert_with(|| {
            // SAFETY: msghdr is plain data, for which all zeroes is "nothing": no name, no control, no vectors.
            let header = unsafe { std::mem::zeroed() };
            Box::new(Vectored { vectors: Vec::with_capacity(Outgoing::PIECES_MAX), header })
        });
        vectored.vectors.clear();
        let Some(Outgoing::Pieces(pieces)) = self.inflight.get(slot) else {
            unreachable!("called for pieces in flight")
        };
        assert!(pieces.len() <= Outgoing::PIECES_MAX, "the vectors must not move while the kernel reads them");
        vectored.vectors.extend(
            pieces
                .iter()
                .map(|p| libc::iovec { iov_base: p.bytes().as_ptr().cast_mut().cast(), iov_len: p.len() as usize }),
        );
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let file = types::Fixed(slot.0);
        if self.features.send_vectorized {
            opcode::Send::new(file, vectored.vectors.as_ptr().cast(), vectored.vectors.len() as u32)
                .flags(flags)
                .ioprio(SEND_VECTORIZED)
                .build()
        } else {
            vectored.header.msg_iov = vectored.vectors.as_mut_ptr();
            vectored.header.msg_iovlen = vectored.vectors.len();
            opcode::SendMsg::new(file, &raw const vectored.header).flags(flags as u32).build()
        }
        .user_data(token.0)
    }
}

impl Ring for UringRing {
    fn now(&self) -> Time {
        Time::now()
    }

    fn poll_readable(&mut self, token: Token) {
        let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
        let entry = opcode::PollAdd::new(types::Fixed(token.slot().0), events).multi(true).build().user_data(token.0);
        self.push(&entry);
    }

    fn recv(&mut self, token: Token) {
        let entry = opcode::Recv::new(types::Fixed(token.slot().0), std::ptr::null_mut(), 0)
            .buf_group(BufferRing::GROUP)
            .flags(libc::MSG_DONTWAIT)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT)
            .user_data(token.0);
        self.push(&entry);
    }

    fn send(&mut self, token: Token, bytes: Outgoing) {
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let file = types::Fixed(token.slot().0);
        let entry = match self.inflight.begin(token.slot(), bytes) {
            Outgoing::Shared(piece) => {
                let b = piece.bytes();
                opcode::Send::new(file, b.as_ptr(), b.len() as u32).flags(flags).build().user_data(token.0)
            }
            Outgoing::Private(b) => {
                opcode::Send::new(file, b.as_ptr(), b.len() as u32).flags(flags).build().user_data(token.0)
            }
            Outgoing::Page(b) => {
                opcode::Send::new(file, b.as_ptr(), b.len() as u32).flags(flags).build().user_data(token.0)
            }
            Outgoing::Pieces(_) => self.send_pieces(token),
        };
        self.push(&entry);
    }

    fn shutdown_write(&mut self, token: Token) {
        let file = types::Fixed(token.slot().0);
        let entry = opcode::Shutdown::new(file, libc::SHUT_WR).build().user_data(token.0);
        self.push(&entry);
    }

    fn close(&mut self, token: Token, poll: Option<Token>) {
        // The three must go in one submission, or the link breaks between them.
        while self.room() < 3 {
            self.submit();
        }
        let (generation, slot) = (token.generation(), token.slot());
        let file = types::Fixed(slot.0);
        let name = |kind| Token::new(kind, generation, slot).0;
        let link = squeue::Flags::IO_HARDLINK;
        if let Some(poll) = poll {
            // An armed poll holds the file: without this, closing the slot would leave the socket open.
            self.push(&opcode::AsyncCancel::new(poll.0).build().flags(link).user_data(name(Kind::Cancel)));
        }
        // Shutting down ends a send that waits for the peer, so that its bytes come back.
        self.push(&opcode::Shutdown::new(file, libc::SHUT_RDWR).build().flags(link).user_data(name(Kind::Shutdown)));
        self.push(&opcode::Close::new(file).build().user_data(name(Kind::Close)));
    }

    fn enter(&mut self, wait: Option<Time>) {
        let left = wait.map_or(0, |deadline| deadline.since_ns(Time::now()));
        // Reaped early, when the completion queue was full: the kernel does not know of them and would let us sleep.
        let is_behind = self.next < self.reaped.len();
        if left == 0 || is_behind {
            self.submit();
        } else {
            self.wait(left);
        }
        self.reap();
        // What did not fit is kept by the kernel, in order, and the completions of this enter stand behind it: a send among them
        // that is done would look as if its client were slow. Nothing is queued here, so each round only takes; there are no more
        // completions than there is in flight.
        while self.ring.submission().cq_overflow() {
            self.submit();
            self.reap();
        }
        self.buffers_grown = false;
    }

    fn completion(&mut self) -> Option<Completion> {
        loop {
            let entry = self.reaped.get(self.next)?;
            self.next += 1;
            let token = Token(entry.user_data());
            let (result, flags) = (entry.result(), entry.flags());
            let kind = token.kind();
            if kind == Kind::Bell {
                if let Some(event) = self.bell.event() {
                    event.reset();
                }
                if !cqueue::more(flags) {
                    self.arm_bell();
                }
                continue;
            }
            if kind == Kind::Recv && result == -libc::ENOBUFS && !self.buffers_grown {
                self.buffers.grow();
                self.buffers_grown = true;
            }
            let returned = (kind == Kind::Send).then(|| self.inflight.finish(token.slot()));
            return Some(Completion {
                token,
                result,
                more: cqueue::more(flags),
                buffer: cqueue::buffer_select(flags).map(BufferId),
                nonempty: cqueue::sock_nonempty(flags),
                returned,
            });
        }
    }

    fn received(&self, buffer: &BufferId, length: usize) -> &[u8] {
        self.buffers.bytes(buffer, length)
    }

    fn give_back(&mut self, buffer: BufferId) {
        self.buffers.give_back(&buffer);
    }
}

impl Drop for UringRing {
    fn drop(&mut self) {
        let _ = self.ring.submitter().unregister_buf_ring(BufferRing::GROUP);
        if self.inflight.count() > 0 {
            // The kernel ends what is in flight some time after the descriptor is closed; until then it may read these bytes.
            // Only a process that is ending anyway drops a ring with sends in flight, so they are left to it.
            std::mem::forget(std::mem::take(&mut self.inflight));
            std::mem::forget(std::mem::take(&mut self.vectors));
        }
    }
}
