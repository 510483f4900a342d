//! What do a tick's messages cost a connection: as one contiguous send, as one vectored send, as a chain of linked sends?
//!
//! The sketch this gateway began with sent them linked; `docs/ARCHITECTURE.md`, "Why not linked writes", has the figures of this
//! bench. It repeats them on the kernel it runs on:
//!
//! ```text
//! cargo bench --bench linked                        10,000 connections, 4 messages of 128 bytes
//! cargo bench --bench linked -- --bytes 1024
//! ```
//!
//! One line for each variant: CPU time of the sending core a connection, median of rounds in turn, and in relation to the first.
//! Sender on one core; on the other a process of its own reads all connections in a sweep, so that nobody is woken up.
//!
//! It builds its entries itself: the gateway's ring has no linked sends, and variants that share all but the entries are compared
//! with nothing else between them. Set up as the gateway's ring is: 256 connections an enter, sockets in the ring's file table.

use clap::Parser;
use fanwire::load::host::{Machine, Watched, pin};
use fanwire::sys::{raise_nofile_limit, thread_cpu_ns};
use ring::Sender;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// A receiver that has not read a round by then never will.
const ROUND: Duration = Duration::from_secs(10);
/// Between two looks at sockets of which none had anything.
const REST: Duration = Duration::from_micros(50);
/// Of the sender and the receiver each, beside their sockets.
const OTHER_FILES: u64 = 64;

#[derive(clap::Parser)]
struct Args {
    /// Loopback connections
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=32_768))]
    connections: u32,
    /// Messages for each connection
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    messages: u32,
    /// Bytes of a message
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    bytes: u32,
    /// Rounds of each variant
    #[arg(long, value_name = "N", default_value_t = 45, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Core of the sender
    #[arg(long, value_name = "CORE", default_value_t = 0)]
    core: usize,
    /// Core of the receiver
    #[arg(long, value_name = "CORE", default_value_t = 1)]
    receiver_core: usize,
    /// 500 connections, 5 rounds: does it still work?
    #[arg(long, conflicts_with_all = ["connections", "rounds"])]
    quick: bool,
    /// Be the receiver, of connections to this port
    #[arg(long, value_name = "PORT", hide = true)]
    receive: Option<u16>,
    /// What cargo says to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

/// How a connection gets its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// One SEND of all of them, copied into one buffer before.
    Contiguous,
    /// One vectored SEND of all of them (SENDMSG where the kernel's SEND takes no vector).
    Vectored,
    /// A SEND each, with nothing between them. Only here: two on their way to one socket may mix their bytes.
    Separate,
    /// A SEND each, every one linked to the next.
    Linked,
    /// `write(2)` of all of them, without a ring.
    Write,
}

const VARIANTS: [Variant; 5] =
    [Variant::Contiguous, Variant::Vectored, Variant::Separate, Variant::Linked, Variant::Write];

fn main() -> ExitCode {
    let mut args = Args::parse();
    if args.quick {
        (args.connections, args.rounds) = (500, 5);
    }
    let done = match args.receive {
        Some(port) => receive(&args, port),
        None => measure(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("linked: {why}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<(), String> {
    let limit = raise_nofile_limit();
    if limit < u64::from(args.connections) + OTHER_FILES {
        return Err(format!("{} connections need as many descriptors, and RLIMIT_NOFILE is {limit}", args.connections));
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|e| e.to_string())?;
    // Before this thread is pinned: the receiver would be pinned with it, and one core counted.
    let Machine { kernel, cores, commit, release } = Machine::here();
    let mut reader = Reader::start(args, &listener)?;
    pin(args.core)?;
    let sockets = (0..args.connections)
        .map(|_| listener.accept().and_then(|(socket, _)| socket.set_nodelay(true).map(|()| socket)))
        .collect::<io::Result<Vec<TcpStream>>>()
        .map_err(|e| format!("accept: {e}"))?;
    let mut sender = Sender::new(sockets, args.messages as usize, args.bytes as usize)?;
    let here = Watched::new(std::process::id(), Some(args.core)).map_err(|e| e.to_string())?;
    let softirqd_ns = || here.usage().map(|usage| usage.softirqd_ns).map_err(|e| e.to_string());
    let mut cpu_ns = VARIANTS.map(|_| Vec::new());
    let mut softirqd = [0; VARIANTS.len()];
    for round in 0..=args.rounds as usize {
        for turn in 0..VARIANTS.len() {
            let at = (round + turn) % VARIANTS.len(); // Nobody always comes after the same one.
            let (softirqd_before, before) = (softirqd_ns()?, thread_cpu_ns());
            sender.send(VARIANTS[at])?;
            let spent = thread_cpu_ns() - before;
            reader.drained()?;
            // The first round pays for memory that the others find.
            if round > 0 {
                cpu_ns[at].push(spent);
                softirqd[at] += softirqd_ns()? - softirqd_before;
            }
        }
    }
    let built = if release { "" } else { ", built without optimisation" };
    let Args { connections, messages, bytes, core, rounds, .. } = args;
    let congestion = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    let mut first = None;
    for (at, variant) in VARIANTS.iter().enumerate() {
        cpu_ns[at].sort_unstable();
        // ksoftirqd is known to hundredths of a second only: a mean, where the thread's own time is a median.
        let total = cpu_ns[at][cpu_ns[at].len() / 2] as f64 + softirqd[at] as f64 / f64::from(*rounds);
        let each = total / f64::from(*connections);
        let ratio = each / *first.get_or_insert(each);
        println!(
            "{:<11} {each:6.0} ns CPU a connection, {ratio:.2} × ({messages} messages of {bytes} B, Linux {kernel}, core {core} of {cores}, \
             {connections} connections, {rounds} rounds, {}, commit {commit}{built})",
            format!("{variant:?}").to_lowercase(),
            congestion.trim(),
        );
    }
    Ok(())
}

/// The process on the other core, which ends with this value.
struct Reader {
    process: Child,
    rounds: Receiver<String>,
}

impl Reader {
    fn start(args: &Args, listener: &TcpListener) -> Result<Reader, String> {
        let port = listener.local_addr().map_err(|e| e.to_string())?.port();
        let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
        for (name, value) in [
            ("--receive", u32::from(port)),
            ("--connections", args.connections),
            ("--messages", args.messages),
            ("--bytes", args.bytes),
            ("--receiver-core", args.receiver_core as u32),
        ] {
            command.args([name, &value.to_string()]);
        }
        let mut process = command.stdout(Stdio::piped()).spawn().map_err(|e| format!("starting the receiver: {e}"))?;
        let stdout = process.stdout.take().expect("piped");
        let (line, rounds) = mpsc::channel();
        // Ends with the process's stdout.
        thread::spawn(move || BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|l| line.send(l)));
        Ok(Reader { process, rounds })
    }

    /// Waits until it has read all of one round.
    fn drained(&mut self) -> Result<(), String> {
        self.rounds.recv_timeout(ROUND).map(drop).map_err(|e| match e {
            RecvTimeoutError::Timeout => "the receiver did not read a round in time".into(),
            RecvTimeoutError::Disconnected => "the receiver ended early".into(),
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Gone already is as good.
        self.process.kill().and_then(|()| self.process.wait()).ok();
    }
}

/// Connects, then reads all connections in a sweep, and says a word for each whole round, until the sender is gone.
fn receive(args: &Args, port: u16) -> Result<(), String> {
    raise_nofile_limit();
    pin(args.receiver_core)?;
    let connect = |_| {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let mut sockets: Vec<TcpStream> =
        (0..args.connections).map(connect).collect::<io::Result<_>>().map_err(|e| format!("connect: {e}"))?;
    let round_bytes = u64::from(args.connections) * u64::from(args.messages) * u64::from(args.bytes);
    let (mut bytes, mut buffer) = (0, vec![0; 65_536]);
    loop {
        let before = bytes;
        for socket in &mut sockets {
            match socket.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => bytes += n as u64,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // The sender has ended by a reset: an end like any other.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(e) => return Err(format!("read: {e}")),
            }
        }
        if bytes >= round_bytes {
            bytes -= round_bytes;
            writeln!(io::stdout(), "drained").map_err(|e| e.to_string())?;
        } else if bytes == before {
            thread::sleep(REST);
        }
    }
}

/// The ring and what its entries point at.
mod ring {
    #![allow(unsafe_code)] // One block: handing entries to the kernel is a promise about memory.

    use super::{Variant, Write};
    use fanwire::socket::uring::Features;
    use io_uring::{IoUring, cqueue, opcode, squeue, types};
    use std::net::TcpStream;
    use std::os::fd::{AsRawFd, RawFd};

    /// Connections an enter, as the gateway's flush.
    const BATCH: usize = 256;
    /// IORING_SEND_VECTORIZED of `ioprio`, as in `socket/uring.rs`.
    const SEND_VECTORIZED: u16 = 1 << 5;

    pub(super) struct Sender {
        ring: IoUring,
        sockets: Vec<TcpStream>,
        /// All messages, one after the other. For ever: a send that is in flight when a round fails still reads it.
        bytes: &'static [u8],
        /// Each of them by itself, for the same time.
        vectors: &'static [libc::iovec],
        header: &'static libc::msghdr,
        message_bytes: usize,
        send_vectorized: bool,
        entries: Vec<squeue::Entry>,
    }

    impl Sender {
        pub(super) fn new(sockets: Vec<TcpStream>, messages: usize, message_bytes: usize) -> Result<Sender, String> {
            let features = Features::probe();
            let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
            builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all();
            if features.no_sqarray {
                builder.setup_no_sqarray();
            }
            let ring = builder.build((BATCH * messages) as u32).map_err(|e| format!("io_uring: {e}"))?;
            let files: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
            ring.submitter().register_files(&files).map_err(|e| format!("the ring's file table: {e}"))?;
            let bytes: &[u8] = vec![b'x'; messages * message_bytes].leak();
            let vectors: &mut [libc::iovec] = bytes
                .chunks_exact(message_bytes)
                .map(|message| libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: message.len() })
                .collect::<Vec<_>>()
                .leak();
            let header = libc::msghdr {
                msg_name: std::ptr::null_mut(),
                msg_namelen: 0,
                msg_iov: vectors.as_mut_ptr(),
                msg_iovlen: vectors.len(),
                msg_control: std::ptr::null_mut(),
                msg_controllen: 0,
                msg_flags: 0,
            };
            Ok(Sender {
                ring,
                sockets,
                bytes,
                vectors,
                header: Box::leak(Box::new(header)),
                message_bytes,
                send_vectorized: features.send_vectorized,
                entries: Vec::with_capacity(BATCH * messages),
            })
        }

        /// Sends every connection its messages, and returns when the kernel has them.
        pub(super) fn send(&mut self, variant: Variant) -> Result<(), String> {
            if variant == Variant::Write {
                for socket in &mut self.sockets {
                    socket.write_all(self.bytes).map_err(|e| format!("write: {e}"))?;
                }
                return Ok(());
            }
            let each = match variant {
                Variant::Separate | Variant::Linked => self.vectors.len(),
                _ => 1,
            };
            for connection in 0..self.sockets.len() {
                self.push(variant, types::Fixed(connection as u32));
                if self.entries.len() == BATCH * each {
                    self.enter(self.bytes.len() / each)?;
                }
            }
            self.enter(self.bytes.len() / each)
        }

        fn push(&mut self, variant: Variant, file: types::Fixed) {
            let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
            let send = |bytes: &[u8]| opcode::Send::new(file, bytes.as_ptr(), bytes.len() as u32).flags(flags).build();
            match variant {
                Variant::Contiguous => self.entries.push(send(self.bytes)),
                Variant::Vectored if self.send_vectorized => self.entries.push(
                    opcode::Send::new(file, self.vectors.as_ptr().cast(), self.vectors.len() as u32)
                        .flags(flags)
                        .ioprio(SEND_VECTORIZED)
                        .build(),
                ),
                Variant::Vectored => {
                    self.entries.push(opcode::SendMsg::new(file, self.header).flags(flags as u32).build());
                }
                Variant::Separate => self.entries.extend(self.bytes.chunks_exact(self.message_bytes).map(send)),
                Variant::Linked => {
                    let linked = |bytes| send(bytes).flags(squeue::Flags::IO_LINK);
                    let (others, last) = self.bytes.split_at(self.bytes.len() - self.message_bytes);
                    self.entries.extend(others.chunks_exact(self.message_bytes).map(linked));
                    self.entries.push(send(last));
                }
                Variant::Write => unreachable!("a write needs no entry"),
            }
        }

        /// Submits what was pushed, and takes its completions, each of which says `expected` bytes.
        fn enter(&mut self, expected: usize) -> Result<(), String> {
            let submitted = self.entries.len();
            for entry in self.entries.drain(..) {
                // SAFETY: an entry points into `bytes`, at `vectors` or at `header`, all of which live until the process ends
                // and are never written; its file is an index into the ring's own table.
                unsafe { self.ring.submission().push(&entry) }
                    .expect("a queue for BATCH connections, empty at each enter, has room");
            }
            self.ring.submit_and_wait(submitted).map_err(|e| format!("io_uring_enter: {e}"))?;
            let mut completed = 0;
            for completion in self.ring.completion() {
                completed += 1;
                if completion.result() != expected as i32 {
                    return Err(format!("a send of {expected} bytes came to {}", completion.result()));
                }
            }
            assert_eq!(completed, submitted, "the enter waited for all of them");
            Ok(())
        }
    }
}
