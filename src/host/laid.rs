//! Machines laid out for tests: files below a directory that is gone at the end.

use super::root::Root;
use std::fs;
use std::path::PathBuf;

/// A machine.
pub(super) struct Laid(PathBuf);

impl Laid {
    pub(super) fn new(test: &str) -> Laid {
        let directory = std::env::temp_dir().join(format!("fanwire-host-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        Laid(directory)
    }

    pub(super) fn root(&self) -> Root {
        Root::at(&self.0)
    }

    pub(super) fn file(self, path: &str, text: &str) -> Laid {
        let file = self.root().path(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        self
    }

    pub(super) fn without(self, path: &str) -> Laid {
        fs::remove_file(self.root().path(path)).unwrap();
        self
    }

    pub(super) fn link(self, path: &str, target: &str) -> Laid {
        let link = self.root().path(path);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, link).unwrap();
        self
    }

    /// What is in every file now, by path.
    pub(super) fn contents(&self) -> Vec<(String, String)> {
        let (mut files, mut folders) = (Vec::new(), vec![self.0.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else if entry.file_type().unwrap().is_file() {
                    let path = entry.path().strip_prefix(&self.0).unwrap().display().to_string();
                    files.push((format!("/{path}"), fs::read_to_string(entry.path()).unwrap()));
                }
            }
        }
        files.sort();
        files
    }
}

impl Drop for Laid {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units
Max processes             95896                95896                processes
Max open files            1024                 1048576              files
Max locked memory         8388608              8388608              bytes
";

/// Four cores, a card of two queues, systemd's limits, the kernel's sysctls: a server as it comes.
pub(super) fn bare_metal(test: &str) -> Laid {
    let sysctls = [
        ("kernel/osrelease", "6.12.30-amd64"),
        ("kernel/io_uring_disabled", "0"),
        ("fs/nr_open", "1073741816"),
        ("fs/file-max", "9223372036854775807"),
        ("net/core/somaxconn", "4096"),
        ("net/core/wmem_max", "212992"),
        ("net/core/rmem_max", "212992"),
        ("net/ipv4/tcp_max_syn_backlog", "4096"),
        ("net/ipv4/tcp_ehash_entries", "524288"),
        ("net/ipv4/ip_local_port_range", "32768\t60999"),
        ("net/ipv4/tcp_mem", "382431\t509910\t764862"),
        ("net/ipv4/tcp_wmem", "4096\t16384\t4194304"),
        ("net/ipv4/tcp_rmem", "4096\t131072\t6291456"),
        ("net/ipv4/tcp_max_orphans", "131072"),
        ("net/ipv4/tcp_max_tw_buckets", "131072"),
    ];
    let queues = ["rx-0/rps_cpus", "rx-1/rps_cpus", "tx-0/xps_cpus", "tx-1/xps_cpus"];
    let laid = Laid::new(test)
        .file("/proc/self/status", "Name:\tfanwire\nSeccomp:\t0\nCpus_allowed_list:\t0-3\n")
        .file("/proc/self/limits", LIMITS)
        .file("/proc/self/cgroup", "0::/user.slice\n")
        .file("/proc/self/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n")
        .file("/proc/meminfo", "MemTotal:       67108864 kB\nMemAvailable:   62914560 kB\n")
        .file("/proc/sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555\n")
        .file("/sys/devices/system/cpu/online", "0-3\n")
        .file("/sys/devices/system/cpu/smt/active", "0\n")
        .file("/sys/devices/system/cpu/isolated", "\n")
        .file("/sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "powersave\n")
        .file("/sys/devices/system/cpu/cpufreq/policy0/affected_cpus", "0 1 2 3\n")
        .file("/sys/devices/system/node/node0/cpulist", "0-3\n")
        .file("/sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n")
        .file("/sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc hpet acpi_pm\n")
        .file("/sys/class/net/eno1/device/msi_irqs/39", "msix\n")
        .file("/sys/class/net/eno1/device/msi_irqs/40", "msix\n")
        .file("/sys/class/net/eno1/device/msi_irqs/41", "msix\n")
        .file(
            "/proc/interrupts",
            "  CPU0 CPU1\n 39: 1 1 PCI-MSIX eno1-misc\n 40: 1 1 PCI-MSIX eno1-TxRx-0\n 41: 1 1 PCI-MSIX eno1-TxRx-1\n",
        )
        .file("/proc/irq/40/smp_affinity_list", "0-3\n")
        .file("/proc/irq/41/smp_affinity_list", "0-3\n");
    let laid =
        sysctls.iter().fold(laid, |laid, (name, value)| laid.file(&format!("/proc/sys/{name}"), &format!("{value}\n")));
    queues.iter().fold(laid, |laid, queue| laid.file(&format!("/sys/class/net/eno1/queues/{queue}"), "0\n"))
}
