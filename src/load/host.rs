//! What the kernel says of a process, and of the machine under a figure.

use std::process::Command;
use std::{fs, io};

/// What a figure was measured on. Goes with every printed result.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Machine {
    /// Release of the running kernel.
    pub kernel: String,
    /// Cores this process may use.
    pub cores: usize,
    /// Commit of this binary; `unknown` if neither the build nor a repository around the binary says.
    pub commit: String,
    /// Built with optimisation.
    pub release: bool,
}

impl Machine {
    /// This one.
    pub fn here() -> Machine {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "unknown".into());
        Machine {
            kernel: kernel.trim().to_owned(),
            cores: cores().unwrap_or(1),
            commit: commit().unwrap_or_else(|| "unknown".into()),
            release: !cfg!(debug_assertions),
        }
    }
}

/// Of the process, that is of its first thread: the one that asks may be pinned.
fn cores() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:"))?;
    Some(mask.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit.count_ones() as usize).sum())
}

fn commit() -> Option<String> {
    if let Some(commit) = option_env!("FANWIRE_COMMIT") {
        return Some(commit.to_owned());
    }
    // target/ lies in the repository that the binary was built from; the working directory may be any other.
    let binary = std::env::current_exe().ok()?;
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(binary.parent()?).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    Some(if changed { format!("{commit}+changes") } else { commit })
}

/// A process watched from outside through /proc.
#[derive(Clone, Debug)]
pub struct Watched {
    pid: u32,
    softirqd: Option<u32>,
    tick_ns: u64,
    page_bytes: u64,
}

/// What a [`Watched`] process has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time of all its threads since it started, ns; the kernel gives it in hundredths of a second.
    pub cpu_ns: u64,
    /// The same of its core's ksoftirqd, which does network work that a busy core puts off. 0 if the core is not known.
    pub softirqd_ns: u64,
    /// Resident memory.
    pub rss_bytes: u64,
}

impl Watched {
    /// Watches `pid`; `core` is the one it is pinned to, if it is.
    ///
    /// # Errors
    /// There is no such process.
    pub fn new(pid: u32, core: Option<usize>) -> io::Result<Watched> {
        let (ticks_per_s, page_bytes) = crate::sys::ticks_and_page();
        let softirqd = core.and_then(softirqd_of);
        let watched = Watched { pid, softirqd, tick_ns: 1_000_000_000 / ticks_per_s, page_bytes };
        watched.usage().map(|_| watched)
    }

    /// What it has used up to now; about 30 µs.
    ///
    /// # Errors
    /// It is gone.
    pub fn usage(&self) -> io::Result<Usage> {
        let gone = |e: io::Error| io::Error::new(e.kind(), format!("process {} is gone: {e}", self.pid));
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid)).map_err(gone)?;
        let pages = statm.split_ascii_whitespace().nth(1).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        Ok(Usage {
            cpu_ns: self.cpu_ns(self.pid).map_err(gone)?,
            softirqd_ns: self.softirqd.and_then(|pid| self.cpu_ns(pid).ok()).unwrap_or(0),
            rss_bytes: pages * self.page_bytes,
        })
    }

    fn cpu_ns(&self, pid: u32) -> io::Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        cpu_ticks(&stat)
            .map(|ticks| ticks * self.tick_ns)
            .ok_or_else(|| io::Error::other("no CPU times in /proc/PID/stat"))
    }
}

/// What the kernel holds for everybody on this machine: both ends of a connection on loopback.
#[derive(Clone, Copy, Debug)]
pub struct KernelMemory {
    /// All slabs: sockets, files, dentries, what io_uring has armed. `None`: /proc/slabinfo is for root.
    pub slab_bytes: Option<u64>,
    /// What waits in TCP's buffers, `mem` of /proc/net/sockstat.
    pub tcp_bytes: Option<u64>,
}

impl KernelMemory {
    /// Now; about a millisecond.
    pub fn now() -> KernelMemory {
        let (_, page_bytes) = crate::sys::ticks_and_page();
        KernelMemory {
            slab_bytes: fs::read_to_string("/proc/slabinfo").ok().map(|text| slab_bytes(&text, page_bytes)),
            tcp_bytes: fs::read_to_string("/proc/net/sockstat").ok().and_then(|text| tcp_bytes(&text, page_bytes)),
        }
    }
}

/// Slabs times pages of each cache of slabinfo(5): `name … objperslab pagesperslab : tunables … : slabdata active slabs shared`.
fn slab_bytes(text: &str, page_bytes: u64) -> u64 {
    let cache = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let data = fields.iter().position(|f| *f == "slabdata")?;
        let (pages, slabs) = (fields.get(5)?.parse::<u64>().ok()?, fields.get(data + 2)?.parse::<u64>().ok()?);
        Some(pages * slabs * page_bytes)
    };
    text.lines().filter_map(cache).sum()
}

fn tcp_bytes(text: &str, page_bytes: u64) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("TCP:"))?;
    let pages = line.split_ascii_whitespace().skip_while(|word| *word != "mem").nth(1)?;
    Some(pages.parse::<u64>().ok()? * page_bytes)
}

/// utime + stime, fields 14 and 15 of proc_pid_stat(5). The name before them may hold anything, blanks and brackets too.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    let (user, system) = (fields.next()?.parse::<u64>().ok()?, fields.next()?.parse::<u64>().ok()?);
    Some(user + system)
}

fn softirqd_of(core: usize) -> Option<u32> {
    let name = format!("ksoftirqd/{core}");
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name))
}

/// Lets the calling thread, and those it starts, run on `core` only.
///
/// # Errors
/// The core does not exist or is outside the mask this process was started with.
pub fn pin(core: usize) -> Result<(), String> {
    if core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        Ok(())
    } else {
        Err(format!("can't run on core {core}: choose one of `taskset -cp $$`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_times_are_found_behind_any_name() {
        let stat = "7 (a) b) 1 2) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 100 0 0";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("nonsense"), None);
    }

    #[test]
    fn the_kernel_s_memory_is_read_from_its_own_tables() {
        let slabs = "slabinfo - version: 2.1\n# name  <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables …\n\
                     TCP  100 112 2560 12 8 : tunables 0 0 0 : slabdata 10 11 0\n\
                     dentry  5 21 192 21 1 : tunables 0 0 0 : slabdata 1 2 0\n";
        assert_eq!(slab_bytes(slabs, 4096), (8 * 11 + 2) * 4096);
        let sockets = "sockets: used 10\nTCP: inuse 5 orphan 0 tw 0 alloc 7 mem 3\nUDP: inuse 1 mem 9\n";
        assert_eq!(tcp_bytes(sockets, 4096), Some(3 * 4096));
        assert!(KernelMemory::now().tcp_bytes.is_some());
    }

    #[test]
    fn a_process_sees_itself_work() {
        let me = Watched::new(std::process::id(), None).unwrap();
        let before = me.usage().unwrap();
        assert!(before.rss_bytes > 100_000);
        let start = crate::sys::thread_cpu_ns();
        while crate::sys::thread_cpu_ns() - start < 60_000_000 {
            std::hint::black_box(0);
        }
        assert!(me.usage().unwrap().cpu_ns - before.cpu_ns >= 40_000_000);
        assert!(Watched::new(u32::MAX, None).is_err());
    }
}
