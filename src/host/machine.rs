//! What a machine has: limits of a process, cores, memory, the control group around it. Facts, no opinion.

use super::root::{Root, Unseen, list};
use std::collections::BTreeMap;

/// Resource limits of a process, as the kernel shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// RLIMIT_NOFILE, soft; `u64::MAX` is unlimited.
    pub files_soft: u64,
    /// RLIMIT_NOFILE, hard: the gateway raises the soft one to it.
    pub files_hard: u64,
    /// RLIMIT_NPROC, soft: threads of this user.
    pub threads: u64,
    /// RLIMIT_MEMLOCK, soft, in bytes: of all of the user's processes together.
    pub locked_bytes: u64,
}

/// A bound that a control group sets, the closest of all around the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The file that says so.
    pub file: String,
    /// The bound, in its own unit.
    pub most: u64,
    /// How much of it is in use and can't be given up.
    pub used: u64,
}

impl Bound {
    /// What is left.
    pub fn left(&self) -> u64 {
        self.most.saturating_sub(self.used)
    }
}

/// Its bit among the capabilities (capabilities(7)).
const CAP_IPC_LOCK: u64 = 1 << 14;

/// What was seen.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: Result<String, Unseen>,
    /// Of the process.
    pub limits: Result<Limits, Unseen>,
    /// The cores that the process may use.
    pub cpus: Result<Vec<u32>, Unseen>,
    /// The cores that are there.
    pub online: Vec<u32>,
    /// Whether two threads share a core.
    pub smt: Option<bool>,
    /// Memory nodes, each with its cores.
    pub nodes: Vec<Vec<u32>>,
    /// Frequency governors, and how many cores have each.
    pub governors: BTreeMap<String, usize>,
    /// Cores that the scheduler leaves alone.
    pub isolated: Vec<u32>,
    /// Cores without a timer tick.
    pub nohz_full: Vec<u32>,
    /// The kernel's clock, and those it could have.
    pub clock: Result<(String, String), Unseen>,
    /// CAP_IPC_LOCK: RLIMIT_MEMLOCK binds it not.
    pub locks_freely: bool,
    /// 2: a seccomp filter is on.
    pub seccomp: Option<u64>,
    /// Memory that can be had without swapping.
    pub available_bytes: Result<u64, Unseen>,
    /// Of the control group: memory in bytes.
    pub group_memory: Option<Bound>,
    /// Of the control group: thousandths of a core.
    pub group_cpu: Option<Bound>,
    /// Of the control group: processes and threads.
    pub group_threads: Option<Bound>,
    /// Connections that the firewall tracks; `None`: it tracks none.
    pub tracked: Option<u64>,
    /// Whether irqbalance runs; it moves interrupts as it likes.
    pub irqbalance: bool,
}

impl Machine {
    /// Looks at process `pid`, or at the one that asks.
    pub fn read(root: &Root, pid: Option<u32>) -> Machine {
        let process = pid.map_or_else(|| "/proc/self".to_owned(), |pid| format!("/proc/{pid}"));
        let status = root.read(&format!("{process}/status"));
        let groups = Groups::read(root, &process);
        let cpu = "/sys/devices/system/cpu";
        Machine {
            kernel: root.text("/proc/sys/kernel/osrelease"),
            limits: root.read(&format!("{process}/limits")).and_then(|text| limits(&text)),
            cpus: status.clone().and_then(|text| {
                let cpus = field(&text, "Cpus_allowed_list:").map(list).unwrap_or_default();
                if cpus.is_empty() { Err(Unseen::Missing) } else { Ok(cpus) }
            }),
            online: root.text(&format!("{cpu}/online")).map(|text| list(&text)).unwrap_or_default(),
            smt: root.number(&format!("{cpu}/smt/active")).map(|active| active == 1),
            nodes: nodes(root),
            governors: governors(root),
            isolated: root.text(&format!("{cpu}/isolated")).map(|text| list(&text)).unwrap_or_default(),
            nohz_full: root.text(&format!("{cpu}/nohz_full")).map(|text| list(&text)).unwrap_or_default(),
            clock: clock(root),
            locks_freely: status.as_ref().is_ok_and(|text| {
                field(text, "CapEff:").and_then(|set| u64::from_str_radix(set, 16).ok()).unwrap_or(0) & CAP_IPC_LOCK
                    != 0
            }),
            seccomp: status.ok().and_then(|text| field(&text, "Seccomp:")?.parse().ok()),
            available_bytes: root.read("/proc/meminfo").and_then(|text| {
                let kib = field(&text, "MemAvailable:").and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
                kib.map(|kib| kib * 1024).ok_or(Unseen::Missing)
            }),
            group_memory: groups.memory(root),
            group_cpu: groups.cpu(root),
            group_threads: groups.threads(root),
            tracked: root.number("/proc/sys/net/netfilter/nf_conntrack_count").filter(|count| *count > 0),
            irqbalance: root
                .names("/proc")
                .iter()
                .filter(|name| name.starts_with(|c: char| c.is_ascii_digit()))
                .any(|pid| root.text(&format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "irqbalance")),
        }
    }
}

/// What stands behind `name` on a line of its own.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// `/proc/PID/limits`: a table whose names hold blanks.
fn limits(text: &str) -> Result<Limits, Unseen> {
    let row = |name: &str| {
        let mut cells = field(text, name)?.split_whitespace();
        let mut cell = || match cells.next()? {
            "unlimited" => Some(u64::MAX),
            number => number.parse().ok(),
        };
        Some((cell()?, cell()?))
    };
    let (Some((files_soft, files_hard)), Some((threads, _)), Some((locked_bytes, _))) =
        (row("Max open files"), row("Max processes"), row("Max locked memory"))
    else {
        return Err(Unseen::Failed("its limits are not as they should be".into()));
    };
    Ok(Limits { files_soft, files_hard, threads, locked_bytes })
}

fn nodes(root: &Root) -> Vec<Vec<u32>> {
    let folder = "/sys/devices/system/node";
    let names = root.names(folder).into_iter();
    let nodes = names.filter(|name| name.strip_prefix("node").is_some_and(|n| n.parse::<u32>().is_ok()));
    let cpus = nodes.map(|name| root.text(&format!("{folder}/{name}/cpulist")).map(|text| list(&text)));
    cpus.filter_map(Result::ok).filter(|cpus| !cpus.is_empty()).collect()
}

fn governors(root: &Root) -> BTreeMap<String, usize> {
    let folder = "/sys/devices/system/cpu/cpufreq";
    let mut governors = BTreeMap::new();
    for policy in root.names(folder).iter().filter(|name| name.starts_with("policy")) {
        if let Ok(governor) = root.text(&format!("{folder}/{policy}/scaling_governor")) {
            let cores = root.text(&format!("{folder}/{policy}/affected_cpus"));
            *governors.entry(governor).or_default() += cores.map_or(1, |text| text.split_whitespace().count());
        }
    }
    governors
}

fn clock(root: &Root) -> Result<(String, String), Unseen> {
    let folder = "/sys/devices/system/clocksource/clocksource0";
    let available = root.text(&format!("{folder}/available_clocksource")).unwrap_or_default();
    Ok((root.text(&format!("{folder}/current_clocksource"))?, available))
}

/// The folders of the control groups around a process, the closest first.
struct Groups {
    unified: Vec<String>,
    /// By the controller's name, where it is still one of version 1.
    legacy: BTreeMap<&'static str, Vec<String>>,
}

/// Of version 1, the controllers that matter here.
const LEGACY: [&str; 3] = ["memory", "cpu", "pids"];

impl Groups {
    fn read(root: &Root, process: &str) -> Groups {
        let mounts = root.read(&format!("{process}/mounts")).unwrap_or_default();
        let memberships = root.read(&format!("{process}/cgroup")).unwrap_or_default();
        let mounted = |kind: &str, option: &str| {
            mounts.lines().find_map(|line| {
                let mut fields = line.split(' ');
                let (_, folder, found, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
                let has = option.is_empty() || options.split(',').any(|o| o == option);
                (found == kind && has).then(|| folder.to_owned())
            })
        };
        // `0::/path` of version 2; `4:memory:/path` of version 1.
        let member = |controller: &str| {
            memberships.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':');
                let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
                controllers.split(',').any(|c| c == controller).then(|| path.to_owned())
            })
        };
        let unified = mounted("cgroup2", "").zip(member("")).map(|(folder, path)| upwards(&folder, &path));
        let legacy = LEGACY.into_iter().filter_map(|controller| {
            let (folder, path) = mounted("cgroup", controller).zip(member(controller))?;
            Some((controller, upwards(&folder, &path)))
        });
        Groups { unified: unified.unwrap_or_default(), legacy: legacy.collect() }
    }

    /// Every file of this name around the process, by either version.
    fn files(&self, unified: &str, controller: &'static str, legacy: &str) -> Vec<(String, bool)> {
        let new = self.unified.iter().map(|folder| (format!("{folder}/{unified}"), true));
        let old = self.legacy.get(controller).into_iter().flatten();
        new.chain(old.map(|folder| (format!("{folder}/{legacy}"), false))).collect()
    }

    fn memory(&self, root: &Root) -> Option<Bound> {
        let bounds =
            self.files("memory.max", "memory", "memory.limit_in_bytes").into_iter().filter_map(|(file, new)| {
                let most = root.number(&file).filter(|most| *most < 1 << 60)?; // Version 1 writes "unlimited" as a huge number.
                let folder = file.rsplit_once('/')?.0;
                let (usage, cache) = if new {
                    ("memory.current", "inactive_file ")
                } else {
                    ("memory.usage_in_bytes", "total_inactive_file ")
                };
                let used = root.number(&format!("{folder}/{usage}")).unwrap_or(0);
                let stat = root.read(&format!("{folder}/memory.stat")).unwrap_or_default();
                let given_up = field(&stat, cache).and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
                Some(Bound { file, most, used: used.saturating_sub(given_up) })
            });
        bounds.min_by_key(Bound::left)
    }

    fn cpu(&self, root: &Root) -> Option<Bound> {
        let bounds = self.files("cpu.max", "cpu", "cpu.cfs_quota_us").into_iter().filter_map(|(file, new)| {
            let text = root.text(&file).ok()?;
            let (quota, period) = if new {
                let (quota, period) = text.split_once(' ')?;
                (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?)
            } else {
                (text.parse().ok()?, root.number(&file.replace("quota", "period"))?)
            };
            Some(Bound { file, most: quota.saturating_mul(1000).checked_div(period)?, used: 0 })
        });
        bounds.min_by_key(|bound| bound.most)
    }

    fn threads(&self, root: &Root) -> Option<Bound> {
        let bounds = self.files("pids.max", "pids", "pids.max").into_iter().filter_map(|(file, _)| {
            let most = root.number(&file)?;
            let used = root.number(&file.replace("pids.max", "pids.current")).unwrap_or(0);
            Some(Bound { file, most, used })
        });
        bounds.min_by_key(Bound::left)
    }
}

/// The folder of a group and of all around it, up to where they are mounted.
fn upwards(mount: &str, path: &str) -> Vec<String> {
    let mut path = path.trim_end_matches('/');
    let mut folders = vec![format!("{mount}{path}")];
    while let Some((parent, _)) = path.rsplit_once('/') {
        path = parent;
        folders.push(format!("{mount}{path}"));
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::super::laid::Laid;
    use super::*;

    #[test]
    fn limits_are_read_from_the_table_of_proc() {
        let text = "\
Limit                     Soft Limit           Hard Limit           Units
Max processes             96000                96000                processes
Max open files            1024                 unlimited            files
Max locked memory         8388608              8388608              bytes
";
        let limits_of_text =
            Limits { files_soft: 1024, files_hard: u64::MAX, threads: 96_000, locked_bytes: 8_388_608 };
        assert_eq!(limits(text), Ok(limits_of_text));
        assert!(limits("nonsense").is_err());
    }

    #[test]
    fn the_closest_bound_of_all_groups_around_counts() {
        let laid = Laid::new("groups")
            .file("/proc/self/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n")
            .file("/proc/self/cgroup", "0::/machine/fanwire\n")
            .file("/sys/fs/cgroup/machine/fanwire/memory.max", "max\n")
            .file("/sys/fs/cgroup/machine/memory.max", "4000000000\n")
            .file("/sys/fs/cgroup/machine/memory.current", "1500000000\n")
            .file("/sys/fs/cgroup/machine/memory.stat", "anon 1\ninactive_file 500000000\n")
            .file("/sys/fs/cgroup/machine/fanwire/cpu.max", "150000 100000\n")
            .file("/sys/fs/cgroup/machine/cpu.max", "max 100000\n")
            .file("/sys/fs/cgroup/machine/fanwire/pids.max", "64\n")
            .file("/sys/fs/cgroup/machine/fanwire/pids.current", "60\n");
        let machine = Machine::read(&laid.root(), None);
        let memory = machine.group_memory.unwrap();
        assert_eq!((memory.most, memory.left()), (4_000_000_000, 3_000_000_000));
        assert_eq!(memory.file, "/sys/fs/cgroup/machine/memory.max");
        assert_eq!(machine.group_cpu.unwrap().most, 1500);
        assert_eq!(machine.group_threads.unwrap().left(), 4);
    }

    #[test]
    fn groups_of_version_1_are_read_too_and_unlimited_ones_are_none() {
        let laid = Laid::new("legacy")
            .file(
                "/proc/self/mounts",
                "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup /c cgroup rw,cpu,cpuacct 0 0\n",
            )
            .file("/proc/self/cgroup", "4:memory:/box\n2:cpu,cpuacct:/\n")
            .file("/sys/fs/cgroup/memory/box/memory.limit_in_bytes", "1000000\n")
            .file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
            .file("/c/cpu.cfs_quota_us", "-1\n")
            .file("/c/cpu.cfs_period_us", "100000\n");
        let machine = Machine::read(&laid.root(), None);
        assert_eq!(machine.group_memory.unwrap().most, 1_000_000);
        assert_eq!(machine.group_cpu, None);
    }
}
