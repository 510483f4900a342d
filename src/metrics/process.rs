//! What the kernel knows of this process, from /proc/self.

use crate::sys::{nofile_limit, ticks_and_page};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

/// One look at the process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) open_fds: u64,
    pub(super) max_fds: u64,
    pub(super) threads: u64,
    pub(super) cpu_seconds: f64,
    /// Of the wall clock.
    pub(super) start_seconds: f64,
}

impl Process {
    /// Reads it, about 50 µs; none where /proc is not mounted.
    pub(super) fn read() -> Option<Process> {
        let (ticks_per_s, page_bytes) = ticks_and_page();
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name of the program stands in parentheses and may hold spaces and parentheses itself (proc(5)). What follows
        // the last one begins with field 3.
        let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Process {
            resident_bytes: field(24)? * page_bytes,
            virtual_bytes: field(23)?,
            open_fds: open_fds()?,
            max_fds: nofile_limit().0,
            threads: field(20)?,
            cpu_seconds: (field(14)? + field(15)?) as f64 / ticks_per_s as f64,
            start_seconds: boot_seconds()? + field(22)? as f64 / ticks_per_s as f64,
        })
    }
}

/// When the machine started, of the wall clock. Read once: /proc/stat sums over all interrupts of all cores, and is slow.
fn boot_seconds() -> Option<f64> {
    static BOOT_SECONDS: OnceLock<Option<f64>> = OnceLock::new();
    *BOOT_SECONDS.get_or_init(|| {
        fs::read_to_string("/proc/stat").ok()?.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()
    })
}

/// Since Linux 6.2 the size of the directory is the number of descriptors; before, it is 0 and they have to be counted.
fn open_fds() -> Option<u64> {
    match fs::metadata("/proc/self/fd").ok()?.size() {
        0 => Some(fs::read_dir("/proc/self/fd").ok()?.count() as u64),
        count => Some(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::thread_cpu_ns;
    use std::hint::black_box;
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn memory_and_descriptors_in_use_are_seen() {
        let memory = black_box(vec![1u8; 64 << 20]);
        let files: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let process = Process::read().unwrap();
        drop(black_box((memory, files)));
        assert!((64 << 20..=process.virtual_bytes).contains(&process.resident_bytes), "{process:?}");
        assert!((100..1 << 20).contains(&process.open_fds), "{process:?}");
        assert!((1..1 << 16).contains(&process.threads), "{process:?}");
    }

    #[test]
    fn cpu_time_is_in_seconds() {
        let before = Process::read().unwrap().cpu_seconds;
        let start_ns = thread_cpu_ns();
        while thread_cpu_ns() - start_ns < 50_000_000 {
            black_box(());
        }
        // It counts in ticks of 10 ms, and other tests run meanwhile.
        let spent = Process::read().unwrap().cpu_seconds - before;
        assert!((0.03..30.0).contains(&spent), "{spent}");
    }

    #[test]
    fn it_started_before_now_and_after_the_machine() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let process = Process::read().unwrap();
        assert!(process.start_seconds <= now + 2.0, "{process:?} at {now}");
        assert!(process.start_seconds > now - 86_400.0, "{process:?} at {now}");
    }
}
