//! Small calls into libc that std has no safe form of. Each is a few lines, and safe code can't misuse it.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Nanoseconds of `CLOCK_MONOTONIC`; about 25 ns.
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// CPU time of the calling thread, user and system, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: `time` is a valid place for one timespec, and both clocks used here exist on every Linux.
    let result = unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) };
    assert_eq!(result, 0, "clock_gettime of a clock that always exists");
    // SAFETY: the call succeeded, so the kernel has filled it.
    let time = unsafe { time.assume_init() };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// An eventfd(2): a counter that a ring can poll.
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new one, non-blocking, closed on exec.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn new() -> io::Result<EventFd> {
        // SAFETY: no pointers; the result is checked before it is owned.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
        // SAFETY: the kernel has just given us this descriptor and nobody else knows it.
        Ok(EventFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Adds one. A counter at its maximum is left there: whoever polls it is awake or about to be.
    pub fn signal(&self) {
        let one = 1u64;
        // SAFETY: eight bytes are readable at `one`.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Sets it to zero and says what it was.
    pub fn reset(&self) -> u64 {
        let mut value = 0u64;
        // SAFETY: eight bytes are writable at `value`.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut value).cast(), 8) };
        value
    }

    /// Registers a duplicate of it with the calling thread's tokio runtime.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    ///
    /// # Panics
    /// If there is no runtime.
    pub fn polled(&self) -> io::Result<PolledEvent> {
        let own = EventFd(self.0.try_clone()?);
        // SAFETY: `own` owns its descriptor and keeps it until it is dropped; nobody can exchange it, since `PolledEvent` gives
        // out no access to the `AsyncFd`.
        Ok(PolledEvent(unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }?))
    }
}

/// An eventfd that a task waits for.
pub struct PolledEvent(AsyncFd<EventFd>);

impl PolledEvent {
    /// Completes once the counter is not zero, and sets it to zero. Dropping the future takes nothing.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn signalled(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        ready.get_inner().reset();
        ready.clear_ready();
        Ok(())
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A timerfd(2) of `CLOCK_MONOTONIC` that a task waits for: ends within some 50 µs of its time, where tokio's own timers go by milliseconds.
pub struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    /// One that is not set, registered with the calling thread's tokio runtime.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    ///
    /// # Panics
    /// If there is no runtime.
    pub fn new() -> io::Result<Timer> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: no pointers; the result is checked before it is owned.
        let fd = check(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })?;
        // SAFETY: the kernel has just given us this descriptor and nobody else knows it.
        let own = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: `own` owns its descriptor and keeps it until it is dropped; nobody can exchange it, since `Timer` gives out no access to
        // the `AsyncFd`.
        Ok(Timer(unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }?))
    }

    /// Completes once `duration` is over; two system calls. Dropping the future leaves a timer that the next call sets anew.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn sleep(&mut self, duration: Duration) -> io::Result<()> {
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // Zero would mean "never".
        let duration = duration.max(Duration::from_nanos(1));
        let tv_sec = libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX);
        let after = libc::timespec { tv_sec, tv_nsec: duration.subsec_nanos().into() };
        let time = libc::itimerspec { it_interval: zero, it_value: after };
        let fd = self.0.as_raw_fd();
        // SAFETY: `time` is a readable itimerspec, no old one is asked for, and the descriptor is open for as long as it is borrowed.
        check(unsafe { libc::timerfd_settime(fd, 0, &raw const time, std::ptr::null_mut()) })?;
        loop {
            let mut ready = self.0.readable().await?;
            let mut times = 0u64;
            // SAFETY: eight bytes are writable at `times`.
            let read = unsafe { libc::read(fd, (&raw mut times).cast(), 8) };
            ready.clear_ready();
            if read == 8 {
                return Ok(());
            }
        }
    }
}

/// RLIMIT_NOFILE as (soft, hard).
pub fn nofile_limit() -> (u64, u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for one rlimit.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(result, 0, "getrlimit(RLIMIT_NOFILE) can't fail");
    (limit.rlim_cur, limit.rlim_max)
}

/// Raises the soft RLIMIT_NOFILE to the hard one (what 1m-go-websockets taught) and returns it.
pub fn raise_nofile_limit() -> u64 {
    let (soft, hard) = nofile_limit();
    if soft < hard {
        let limit = libc::rlimit { rlim_cur: hard, rlim_max: hard };
        // SAFETY: `limit` is a valid rlimit; failing leaves the old one.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
    nofile_limit().0
}

/// Has the kernel give up a TCP connection to which it sends something, and of which nothing is acknowledged, for `ms` milliseconds; by
/// itself it goes on for a quarter of an hour.
///
/// # Errors
/// It is no TCP socket.
pub fn set_user_timeout(socket: &impl AsFd, ms: u32) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `ms` is a readable unsigned int of the length given, and the descriptor is open for as long as it is borrowed.
    check(unsafe {
        let length = size_of::<u32>() as libc::socklen_t;
        libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, (&raw const ms).cast(), length)
    })
    .map(drop)
}

/// Sends `signal` to a process.
///
/// # Errors
/// No such process, or no permission.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: no pointers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Clock ticks a second in /proc/PID/stat, and the page size.
pub fn ticks_and_page() -> (u64, u64) {
    // SAFETY: no pointers; both names exist on every Linux.
    unsafe { (libc::sysconf(libc::_SC_CLK_TCK) as u64, libc::sysconf(libc::_SC_PAGESIZE) as u64) }
}

/// Lets the calling thread's timed waits end within a microsecond of their deadline instead of 50 (PR_SET_TIMERSLACK): the
/// tick of a shard is a short wait.
pub fn sharpen_timers() {
    // SAFETY: no pointers; an old kernel that refuses leaves the default.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_u64) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn a_timer_ends_behind_its_time_and_may_be_set_again_before() {
        let mut timer = Timer::new().unwrap();
        let begun = Instant::now();
        tokio::select! {
            biased;
            _ = timer.sleep(Duration::from_secs(1 << 40)) => panic!("that was short"),
            () = tokio::task::yield_now() => {}
        }
        for us in [0, 300, 2_500] {
            let begun = Instant::now();
            timer.sleep(Duration::from_micros(us)).await.unwrap();
            assert!(begun.elapsed() >= Duration::from_micros(us));
        }
        assert!(begun.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn the_kernel_takes_a_user_timeout_for_tcp_and_for_nothing_else() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        set_user_timeout(&tcp, 6000).unwrap();
        set_user_timeout(&udp, 6000).unwrap_err();
    }
}
