//! What stands between this machine and so many connections: each thing found, wanted, why, and its fix. Reads, and changes nothing.

use super::finding::{Finding, Verdict};
use super::knobs::{KNOBS, Knob};
use super::machine::Machine;
use super::memory::{Memory, OTHER_RINGS_BYTES, RING_BYTES, human};
use super::nic::Nic;
use super::root::{Root, Unseen, listed};
use super::{Demand, Wanted};

/// What a gateway would be on this machine, and what became of the attempt to have its ring.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// Its shards and their places, or why there can be none.
    pub layout: Result<Layout, String>,
    /// The places that one shard for each core but the first needs: the file table worth having.
    pub table: u64,
    /// What to change in the configuration so that it holds the connections, if that is enough.
    pub setting: Option<String>,
    /// What was tried to have a shard's ring, and why there is none. `None`: not tried, because another process is looked at.
    pub ring: Option<Result<String, String>>,
    /// From the order to stop to the last deadline, ms.
    pub drain_ms: u64,
    /// `limits.handshakes_per_s_max`; 0 = no limit.
    pub handshakes_per_s_max: u64,
}

/// Shards and places, as the gateway counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Threads with a ring.
    pub shards: u64,
    /// Places in the file table of each.
    pub slots: u64,
    /// Connections at which new ones are refused.
    pub holds: u64,
}

/// Oldest kernel: what its io_uring has is needed.
const KERNEL_MIN: (u64, u64) = (6, 1);
/// Threads beside the shards: control, accepting core, and what the control core's runtime starts for files and names.
const OTHER_THREADS: u64 = 16;
/// A reconnect of all clients that takes longer is worth a word.
const RECONNECT_S_MAX: u64 = 300;

/// Looks at everything.
pub fn examine(root: &Root, machine: &Machine, gateway: &Gateway, demand: &Demand) -> Vec<Finding> {
    let mut findings = vec![kernel(machine)];
    findings.extend(ring(machine, gateway));
    findings.extend(shards(machine, gateway, demand));
    findings.push(files(machine, gateway));
    findings.extend(locked(machine, gateway));
    findings.extend(threads(machine, gateway));
    findings.extend(KNOBS.iter().map(|knob| sysctl(root, machine, knob, demand)));
    findings.push(hash_of_connections(root, demand));
    findings.push(memory(machine, gateway, demand));
    findings.extend(cores(machine, gateway));
    findings.extend(Nic::all(root).iter().map(|nic| card(machine, nic)));
    findings
}

/// What could not be seen.
fn unseen(what: &str, wanted: impl Into<String>, why: impl Into<String>, unseen: &Unseen) -> Finding {
    let found = match unseen {
        Unseen::Missing => "not there",
        Unseen::Denied => "not to be read by this user",
        Unseen::Failed(_) => "not to be read",
    };
    Finding::ok(what, found, wanted, why).but(Verdict::Unseen, unseen.remedy())
}

fn kernel(machine: &Machine) -> Finding {
    let (what, wanted, why) = ("kernel", "6.1 or newer", "Fanwire uses io_uring as Linux 6.1 has it.");
    match &machine.kernel {
        Err(e) => unseen(what, wanted, why, e),
        Ok(release) => {
            let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u64>().ok());
            let version = numbers.next().zip(numbers.next());
            Finding::ok(what, release, wanted, why).but_if(
                version.is_none_or(|version| version < KERNEL_MIN),
                Verdict::Stops,
                "install a kernel of 6.1 or newer, such as that of Debian 12 or Ubuntu 24.04, and reboot",
            )
        }
    }
}

/// Whether a ring was to be had, by trying, and a filter that may be the reason if not.
fn ring(machine: &Machine, gateway: &Gateway) -> Option<Finding> {
    let (what, wanted) = ("io_uring", "a ring with the file table of one shard");
    let why = "Each shard is a thread with a ring; this is the gateway's own attempt to have one, as this user and within its limits.";
    let filtered = machine.seccomp == Some(2);
    Some(match gateway.ring.as_ref()? {
        Ok(had) => Finding::ok(what, had, wanted, why),
        Err(problem) => {
            let found = if filtered { "refused; a seccomp filter is on" } else { "refused" };
            let container = "\nin a container: allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile (the \
                             Dockerfile's first lines say how); in a systemd unit: SystemCallFilter= with the same three (tuning/fanwire.service)";
            let fix = if filtered { format!("{problem}{container}") } else { problem.clone() };
            Finding::ok(what, found, wanted, why).but(Verdict::Stops, fix)
        }
    })
}

/// The kernel's table of TCP sockets, whose size only a boot changes.
fn hash_of_connections(root: &Root, demand: &Demand) -> Finding {
    let (what, path) = ("net.ipv4.tcp_ehash_entries", "/proc/sys/net/ipv4/tcp_ehash_entries");
    let sockets = demand.connections * if demand.clients_here { 2 } else { 1 };
    let wanted = format!("{sockets} or more: a place for every socket");
    let why = "Each packet looks its socket up here. With a million sockets in 262144 places, the usual size, four share one and a third of a \
               sending core goes into the search.";
    match root.text(path).map(|text| (text.trim_start_matches('-').parse::<u64>(), text)) {
        // Less than nothing: a network namespace that shares the host's.
        Ok((Ok(places), text)) => Finding::ok(what, text, wanted, why).but_if(
            places < sockets,
            Verdict::Better,
            format!("thash_entries={} on the kernel's command line, and a reboot", sockets.next_power_of_two()),
        ),
        Ok((Err(_), text)) => {
            Finding::ok(what, text, wanted, why).but(Verdict::Unseen, "only Linux 6.1 and newer say it")
        }
        Err(e) => unseen(what, wanted, why, &e),
    }
}

/// Whether the configuration holds them, and how long they take to go and to come.
fn shards(machine: &Machine, gateway: &Gateway, demand: &Demand) -> Vec<Finding> {
    let connections = demand.connections;
    let (what, wanted) = ("shards", format!("{connections} connections"));
    let why = "A shard's file table holds at most RLIMIT_NOFILE connections, a few percent of it kept free; shards.count and \
               shards.connections_max say how many there are.";
    let limits =
        format!("raise LimitNOFILE= to {} (systemd unit), or `ulimit -Hn` (shell), and start it again", gateway.table);
    let layout = match &gateway.layout {
        Err(problem) => return vec![Finding::ok(what, "none", wanted, why).but(Verdict::Stops, problem)],
        Ok(layout) => layout,
    };
    let found = format!("{} of {} places, which hold {} connections", layout.shards, layout.slots, layout.holds);
    let fix = gateway.setting.clone().unwrap_or(limits);
    let mut findings =
        vec![Finding::ok(what, found, wanted, why).but_if(layout.holds < connections, Verdict::Stops, fix)];
    if let Ok(cpus) = &machine.cpus {
        let most = cpus.len().saturating_sub(1).max(1) as u64;
        let found = format!("{} shard(s) on {} core(s)", layout.shards, cpus.len());
        let why = "More shards than cores work, but each wakes, sends and keeps its queues for itself.";
        let fix = format!("raise LimitNOFILE= to {} (systemd unit), so that fewer shards are enough", gateway.table);
        let wanted = format!("at most {most}, one for each core but the first");
        findings.push(Finding::ok("shards on cores", found, wanted, why).but_if(
            layout.shards > most,
            Verdict::Better,
            fix,
        ));
    }
    let seconds = gateway.drain_ms.div_ceil(1000);
    findings.push(Finding::ok(
        "drain",
        format!("up to {seconds} s, by drain.* and drain.drain_rate_per_s"),
        format!("TimeoutStopSec={} or more in the systemd unit", seconds + 15),
        "A stop closes connections at that rate and waits for slow ones; who waits less for it cuts the rest without a close frame.",
    ));
    if let Some(seconds) = connections.checked_div(gateway.handshakes_per_s_max) {
        findings.push(
            Finding::ok(
                "handshakes",
                format!("{} a second, so {seconds} s for all clients", gateway.handshakes_per_s_max),
                format!("{RECONNECT_S_MAX} s or less for all clients"),
                "limits.handshakes_per_s_max: after a restart all clients come back, and those above it are answered 503.",
            )
            .but_if(
                seconds > RECONNECT_S_MAX,
                Verdict::Better,
                format!("[limits]\nhandshakes_per_s_max = {}", connections.div_ceil(RECONNECT_S_MAX)),
            ),
        );
    }
    findings
}

/// A limit as people read it.
fn limit(n: u64) -> String {
    if n == u64::MAX { "unlimited".into() } else { n.to_string() }
}

fn files(machine: &Machine, gateway: &Gateway) -> Finding {
    let wanted = format!("a hard limit of {} or more", gateway.table);
    let why = "RLIMIT_NOFILE of this process: the size of a shard's file table, and real files beside it. The gateway raises the soft limit to \
               the hard one by itself. A service has its unit's limit, not this shell's.";
    match &machine.limits {
        Err(e) => unseen("open files", wanted, why, e),
        Ok(limits) => {
            let found = format!("soft {}, hard {}", limit(limits.files_soft), limit(limits.files_hard));
            Finding::ok("open files", found, wanted, why).but_if(
                limits.files_hard < gateway.table,
                Verdict::Better, // More shards make up for it; where they can't, the line of the shards says so.
                format!(
                    "systemd: LimitNOFILE=1048576 in the unit (tuning/fanwire.service)\nelsewhere: sudo cp tuning/limits.d/fanwire.conf \
                     /etc/security/limits.d/ and log in again\nDocker: --ulimit nofile=1048576:1048576\n(at least {})",
                    gateway.table
                ),
            )
        }
    }
}

/// Whether this user may have rings for all shards.
fn locked(machine: &Machine, gateway: &Gateway) -> Option<Finding> {
    let Ok(layout) = &gateway.layout else { return None };
    let Ok(limits) = &machine.limits else { return None };
    let wanted = layout.shards * RING_BYTES + OTHER_RINGS_BYTES;
    let why = "RLIMIT_MEMLOCK counts the rings of all processes of a user without CAP_IPC_LOCK.";
    let found = match limits.locked_bytes {
        _ if machine.locks_freely => "not bound (CAP_IPC_LOCK)".to_owned(),
        u64::MAX => "unlimited".to_owned(),
        bytes => human(bytes),
    };
    let mib = wanted.div_ceil(1 << 20);
    Some(Finding::ok("locked memory", found, format!("{} or more", human(wanted)), why).but_if(
        !machine.locks_freely && limits.locked_bytes < wanted,
        Verdict::Stops, // A smaller ring serves, but the first shards take what there is.
        format!(
            "systemd: LimitMEMLOCK={mib}M in the unit; Docker: --ulimit memlock={0}:{0}; shell: ulimit -l {1}",
            mib << 20,
            mib << 10
        ),
    ))
}

/// Whether its threads may be started: by this user, and in its control group.
fn threads(machine: &Machine, gateway: &Gateway) -> Vec<Finding> {
    let Ok(layout) = &gateway.layout else { return Vec::new() };
    let needed = layout.shards + OTHER_THREADS;
    let wanted = format!("{needed} or more");
    let why = "One thread for each shard, and a few for the control core.";
    let mut findings = Vec::new();
    if let Ok(limits) = &machine.limits {
        findings.push(Finding::ok("threads of this user", limit(limits.threads), &wanted, why).but_if(
            limits.threads < needed,
            Verdict::Stops,
            format!("systemd: LimitNPROC={needed} in the unit; shell: ulimit -u {needed}"),
        ));
    }
    if let Some(bound) = &machine.group_threads {
        let found = format!("{} of {} left ({})", bound.left(), bound.most, bound.file);
        findings.push(Finding::ok("threads of the control group", found, wanted, why).but_if(
            bound.left() < needed,
            Verdict::Stops,
            format!("systemd: TasksMax={0} in the unit; Docker: --pids-limit {0}", bound.used + needed),
        ));
    }
    findings
}

fn sysctl(root: &Root, machine: &Machine, knob: &Knob, demand: &Demand) -> Finding {
    let Some(wanted) = (knob.wanted)(demand) else {
        return Finding::ok(knob.name, "not asked", "anything", knob.why);
    };
    let found = match knob.read(root) {
        Ok(found) => found,
        Err(Unseen::Missing) if knob.is_of_conntrack() => {
            return Finding::ok(knob.name, "connections are not tracked here", wanted.to_string(), knob.why);
        }
        Err(Unseen::Missing) if knob.name == "kernel.io_uring_disabled" => {
            return Finding::ok(
                knob.name,
                "not known to this kernel (before 6.6), so not disabled",
                wanted.to_string(),
                knob.why,
            );
        }
        Err(e) => return unseen(knob.name, wanted.to_string(), knob.why, &e),
    };
    let Some(is_met) = wanted.is_met(&found) else {
        let e = Unseen::Failed(format!("{found:?} is not what {} should hold", knob.name));
        return unseen(knob.name, wanted.to_string(), knob.why, &e);
    };
    let value = wanted.value(Some(&found)).unwrap_or_default();
    let is_needed = (knob.needed)(demand).is_some_and(|needed| Wanted::AtLeast(needed).is_met(&found) == Some(false));
    let is_active = !knob.is_of_conntrack() || machine.tracked.is_some();
    let verdict = if is_needed && is_active { Verdict::Stops } else { Verdict::Better };
    let shown = match (knob.is_of_conntrack(), machine.tracked) {
        (true, Some(tracked)) => format!("{found}; {tracked} tracked now"),
        (true, None) => format!("{found}; none tracked now"),
        _ => found,
    };
    let host = if knob.is_settable(root) { "" } else { "on the host, for it is not this network namespace's: " };
    let fix = format!("{host}{}", knob.command(&value));
    Finding::ok(knob.name, shown, wanted.to_string(), knob.why).but_if(!is_met, verdict, fix)
}

fn memory(machine: &Machine, gateway: &Gateway, demand: &Demand) -> Finding {
    let (shards, slots) =
        gateway.layout.as_ref().map_or((1, demand.connections), |layout| (layout.shards, layout.slots));
    let needs = Memory::of(demand, shards, slots);
    let mut wanted = format!(
        "{}: gateway {}, kernel {}, backlog of {} slow clients {}",
        human(needs.total_bytes()),
        human(needs.gateway_bytes),
        human(needs.kernel_bytes),
        demand.slow,
        human(needs.backlog_bytes)
    );
    if needs.clients_bytes > 0 {
        wanted += &format!(", kernel for the clients' ends {}", human(needs.clients_bytes));
    }
    let why = "Above it the kernel kills the largest process, and that is the gateway. docs/OPERATING.md has the formula; what runs already \
               is part of it, so look before it starts.";
    let available = match &machine.available_bytes {
        Err(e) => return unseen("memory", wanted, why, e),
        Ok(available) => *available,
    };
    let (left, found) = match &machine.group_memory {
        Some(bound) if bound.left() < available => {
            (bound.left(), format!("{} left of {} ({})", human(bound.left()), human(bound.most), bound.file))
        }
        _ => (available, format!("{} available", human(available))),
    };
    let short = needs.total_bytes().saturating_sub(left);
    let missing = format!(
        "give it {} more (memory of the machine; MemoryMax= in a systemd unit; --memory of the container), or fewer connections; a lower \
         slow.owed_bytes_max, slow.pending_bytes_max or shards.socket_send_buffer_bytes lowers the backlog",
        human(short)
    );
    let idle = needs.total_bytes() - needs.backlog_bytes;
    let verdict = if idle > left { Verdict::Stops } else { Verdict::Better };
    Finding::ok("memory", found, wanted, why).but_if(short > 0, verdict, missing)
}

fn cores(machine: &Machine, gateway: &Gateway) -> Vec<Finding> {
    let mut findings = Vec::new();
    let why = "Control and accepting core share the first core of the mask, shards have the others (shards.pin).";
    match &machine.cpus {
        Err(e) => findings.push(unseen("cores", "2 or more", why, e)),
        Ok(cpus) => {
            let mut found = format!("{} of {}: {}", cpus.len(), machine.online.len().max(cpus.len()), listed(cpus));
            if machine.smt == Some(true) {
                found += "; two threads a core (SMT): shards on both threads of one core share it";
            }
            findings.push(Finding::ok("cores", found, "2 or more", why).but_if(
                cpus.len() < 2,
                Verdict::Better,
                "give it another core: CPUAffinity= in the systemd unit, --cpuset-cpus of the container, taskset of the shell",
            ));
            let nodes =
                machine.nodes.iter().filter(|node| node.iter().any(|cpu| cpus.contains(cpu))).collect::<Vec<_>>();
            let largest =
                machine.nodes.iter().max_by_key(|node| node.len()).map(|node| listed(node)).unwrap_or_default();
            findings.push(
                Finding::ok(
                    "memory nodes",
                    format!("{} (NUMA), of {} in the machine", nodes.len(), machine.nodes.len()),
                    "1",
                    "A shard's memory lies where it started; queues between cores of two nodes cost a multiple of one node's.",
                )
                .but_if(
                    nodes.len() > 1,
                    Verdict::Better,
                    format!("CPUAffinity={largest} in the systemd unit, or `taskset -c {largest} fanwire serve`: the node of the network card"),
                ),
            );
            if let Some(bound) = &machine.group_cpu {
                let needed = cpus.len().min(gateway.layout.as_ref().map_or(2, |layout| layout.shards as usize + 1))
                    as u64
                    * 1000;
                findings.push(
                    Finding::ok(
                        "CPU quota",
                        format!("{:.2} cores ({})", bound.most as f64 / 1000.0, bound.file),
                        "none, or a core for each shard and one more",
                        "A quota that is used up stops every shard for the rest of its period, tens of milliseconds.",
                    )
                    .but_if(
                        bound.most < needed,
                        Verdict::Better,
                        "take it away (CPUQuota= of the systemd unit, --cpus of the container, limits.cpu of the pod) and give it cores \
                         of its own instead (CPUAffinity=, --cpuset-cpus)",
                    ),
                );
            }
        }
    }
    let governors: Vec<String> = machine.governors.iter().map(|(name, cores)| format!("{name} on {cores}")).collect();
    let sleepy = machine.governors.keys().any(|name| !matches!(name.as_str(), "performance" | "schedutil"));
    let found = if governors.is_empty() {
        "none to be set here (a virtual machine, or the firmware's)".to_owned()
    } else {
        governors.join(", ")
    };
    findings.push(
        Finding::ok(
            "frequency governor",
            found,
            "performance",
            "A core that slept wakes at a low frequency, and the tick after a quiet spell pays for it.",
        )
        .but_if(
            sleepy,
            Verdict::Better,
            "echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor",
        ),
    );
    let clock_why = "Every turn of a shard asks the time: 25 ns from tsc or a paravirtual clock, a microsecond and a system call from hpet or acpi_pm.";
    findings.push(match &machine.clock {
        Err(e) => unseen("clock", "tsc, kvm-clock, hyperv or arch_sys_counter", clock_why, e),
        Ok((clock, available)) => {
            let found = format!("{clock} (available: {available})");
            Finding::ok("clock", found, "tsc, kvm-clock, hyperv or arch_sys_counter", clock_why).but_if(
                matches!(clock.as_str(), "hpet" | "acpi_pm" | "jiffies" | "refined-jiffies"),
                Verdict::Better,
                if available.split(' ').any(|clock| clock == "tsc") {
                    "echo tsc | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource"
                } else {
                    "`sudo dmesg | grep -i tsc` says why the kernel does not trust it; often a firmware update or `tsc=reliable` on the kernel's \
                     command line helps"
                },
            )
        }
    });
    let describe = |cpus: &[u32]| if cpus.is_empty() { "none".to_owned() } else { listed(cpus) };
    let in_mask = |cpus: &[u32]| machine.cpus.as_ref().is_ok_and(|mask| cpus.iter().any(|cpu| mask.contains(cpu)));
    let is_lost = !machine.isolated.is_empty() && !in_mask(&machine.isolated);
    findings.push(
        Finding::ok(
            "isolated cores",
            format!("isolcpus {}, nohz_full {}", describe(&machine.isolated), describe(&machine.nohz_full)),
            "none, or in the mask of the gateway",
            "Cores that the scheduler leaves alone are the best for shards, but only a process that is told so gets them.",
        )
        .but_if(
            is_lost,
            Verdict::Better,
            format!(
                "CPUAffinity={} in the systemd unit: one shared core first, then the isolated ones",
                listed(&[&machine.cpus.as_ref().map_or(vec![0], |cpus| cpus[..1].to_vec())[..], &machine.isolated[..]].concat())
            ),
        ),
    );
    findings
}

fn card(machine: &Machine, nic: &Nic) -> Finding {
    let cores = machine.online.len().max(1);
    let what = format!("network card {}", nic.name);
    let passes = nic
        .rx
        .iter()
        .any(|(_, mask)| mask.as_deref().is_some_and(|m| super::root::unmasked(m).is_some_and(|c| !c.is_empty())));
    let found = format!(
        "{} receive and {} send queue(s), interrupts on cores {}, RPS {}{}",
        nic.rx.len(),
        nic.tx.len(),
        if nic.cores().is_empty() { "unknown".to_owned() } else { nic.cores() },
        if passes { "on" } else { "off" },
        if machine.irqbalance { ", irqbalance runs" } else { "" }
    );
    let why = "A queue's packets are worked on by the core of its interrupt: one queue for many cores is a core that is full before the \
               others. irqbalance moves interrupts onto shards' cores and undoes what is set.";
    let changes = nic.changes(&machine.online);
    let mut fix = format!("sudo fanwire tune --nic {0} --apply   (or: sudo tuning/nic {0} --apply)", nic.name);
    if nic.rx.len() < cores {
        fix = format!("sudo ethtool -L {} combined {cores}   (where the card has more queues)\n{fix}", nic.name);
    }
    if machine.irqbalance {
        fix = format!("sudo systemctl disable --now irqbalance\n{fix}");
    }
    Finding::ok(&what, found, "its interrupts over all cores, one each; RPS where it has fewer queues than cores", why)
        .but_if(!changes.is_empty() || machine.irqbalance, Verdict::Better, fix)
}

#[cfg(test)]
mod tests {
    use super::super::laid::{Laid, bare_metal};
    use super::*;
    use crate::config::Config;

    const MILLION: u64 = 1_000_000;

    fn gateway(shards: u64, slots: u64) -> Gateway {
        Gateway {
            layout: Ok(Layout { shards, slots, holds: shards * (slots - (slots / 20).min(2000)) }),
            table: 336_358,
            setting: None,
            ring: Some(Ok("had one".into())),
            drain_ms: 60_000,
            handshakes_per_s_max: 0,
        }
    }

    fn demand(machine: &Machine) -> Demand {
        Demand { tracked: machine.tracked.is_some(), ..Demand::new(MILLION, &Config::default()) }
    }

    fn examined(laid: &Laid, gateway: &Gateway) -> Vec<Finding> {
        let machine = Machine::read(&laid.root(), None);
        examine(&laid.root(), &machine, gateway, &demand(&machine))
    }

    fn find<'a>(findings: &'a [Finding], what: &str) -> &'a Finding {
        findings.iter().find(|finding| finding.what == what).unwrap_or_else(|| panic!("no {what} in {findings:#?}"))
    }

    fn of(findings: &[Finding], verdict: Verdict) -> Vec<&str> {
        findings.iter().filter(|finding| finding.verdict == verdict).map(|finding| &*finding.what).collect()
    }

    #[test]
    fn a_server_as_it_comes_carries_a_million_and_is_told_what_would_be_better() {
        let laid = bare_metal("server");
        let findings = examined(&laid, &gateway(3, 336_358));
        assert_eq!(of(&findings, Verdict::Stops), Vec::<&str>::new(), "{findings:#?}");
        assert_eq!(
            of(&findings, Verdict::Better),
            [
                "net.core.somaxconn",
                "net.ipv4.tcp_max_syn_backlog",
                "net.ipv4.ip_local_port_range",
                "net.ipv4.tcp_mem",
                "net.ipv4.tcp_max_orphans",
                "net.ipv4.tcp_max_tw_buckets",
                "net.ipv4.tcp_ehash_entries",
                "frequency governor",
                "network card eno1",
            ]
        );
        assert_eq!(of(&findings, Verdict::Unseen), Vec::<&str>::new());
        assert_eq!(
            find(&findings, "net.core.somaxconn").fix.as_deref(),
            Some("sudo sysctl -w net.core.somaxconn='65535'")
        );
        assert!(find(&findings, "network card eno1").fix.as_ref().unwrap().contains("tune --nic eno1 --apply"));
    }

    #[test]
    fn every_finding_says_why_and_every_bad_one_what_to_do() {
        let laid = Laid::new("empty");
        for findings in [examined(&laid, &gateway(1, 20_000)), examined(&bare_metal("why"), &gateway(53, 20_000))] {
            for finding in findings {
                let Finding { verdict, what, found, wanted, why, fix } = &finding;
                assert!(!found.is_empty() && !wanted.is_empty() && why.len() > 20, "{what}: {finding:?}");
                assert_eq!(fix.is_some(), *verdict != Verdict::Ok, "{what}: {finding:?}");
            }
        }
    }

    #[test]
    fn on_a_machine_where_nothing_can_be_seen_that_is_what_it_says() {
        let laid = Laid::new("nothing");
        let findings = examined(&laid, &gateway(3, 336_358));
        let unseen = of(&findings, Verdict::Unseen);
        for what in ["kernel", "open files", "fs.file-max", "net.ipv4.tcp_mem", "memory", "cores", "clock"] {
            assert!(unseen.contains(&what), "{what}: {unseen:?}");
        }
        assert_eq!(of(&findings, Verdict::Stops), Vec::<&str>::new(), "what was not seen stops nobody");
        assert!(find(&findings, "memory").fix.as_ref().unwrap().contains("mount /proc"));
    }

    #[test]
    fn rings_that_a_user_may_not_have_are_told_and_whoever_locks_freely_has_them() {
        for (locked, capabilities, verdict) in [
            ("8388608", "0", Verdict::Stops),
            ("16777216", "0", Verdict::Ok),
            ("unlimited", "0", Verdict::Ok),
            ("1048576", "0000000000004000", Verdict::Ok),
        ] {
            let limits = format!(
                "Max processes 9 9 processes\nMax open files 9 9 files\nMax locked memory {locked} {locked} bytes\n"
            );
            let laid = bare_metal("locked")
                .file("/proc/self/limits", &limits)
                .file("/proc/self/status", &format!("CapEff:\t{capabilities}\nCpus_allowed_list:\t0-3\n"));
            let findings = examined(&laid, &gateway(53, 20_000));
            let finding = find(&findings, "locked memory");
            assert_eq!(finding.verdict, verdict, "{locked} {capabilities}: {finding:?}");
            let fix = finding.fix.as_deref().unwrap_or_default();
            assert_eq!(fix.contains("LimitMEMLOCK=14M"), verdict != Verdict::Ok, "{fix}");
        }
    }

    #[test]
    fn a_kernel_too_old_or_of_an_unknown_number_stops() {
        for (release, verdict) in
            [("6.1.0-13-amd64", Verdict::Ok), ("7.0", Verdict::Ok), ("5.15.0", Verdict::Stops), ("?", Verdict::Stops)]
        {
            let laid = bare_metal("kernel").file("/proc/sys/kernel/osrelease", release);
            assert_eq!(find(&examined(&laid, &gateway(3, 336_358)), "kernel").verdict, verdict, "{release}");
        }
    }

    #[test]
    fn a_container_is_stopped_by_its_memory_its_threads_and_its_filter() {
        let laid = bare_metal("container")
            .file("/proc/self/cgroup", "0::/docker/1\n")
            .file("/proc/self/status", "Seccomp:\t2\nCpus_allowed_list:\t0-3\n")
            .file("/sys/fs/cgroup/docker/1/memory.max", "2147483648\n")
            .file("/sys/fs/cgroup/docker/1/memory.current", "100000000\n")
            .file("/sys/fs/cgroup/docker/1/cpu.max", "200000 100000\n")
            .file("/sys/fs/cgroup/docker/1/pids.max", "50\n")
            .file("/sys/fs/cgroup/docker/1/pids.current", "1\n");
        let refused = Gateway { ring: Some(Err("io_uring is not available: EPERM".into())), ..gateway(53, 20_000) };
        let findings = examined(&laid, &refused);
        assert_eq!(
            of(&findings, Verdict::Stops),
            ["io_uring", "locked memory", "threads of the control group", "memory"]
        );
        let fix = |what| find(&findings, what).fix.clone().unwrap();
        assert!(fix("io_uring").contains("seccomp profile") && fix("io_uring").contains("SystemCallFilter="));
        assert!(
            fix("threads of the control group").contains("--pids-limit 70"),
            "{}",
            fix("threads of the control group")
        );
        assert!(fix("memory").contains("--memory"));
        assert!(fix("CPU quota").contains("--cpuset-cpus"));
        assert!(find(&findings, "memory").found.contains("/sys/fs/cgroup/docker/1/memory.max"));
        assert!(fix("shards on cores").contains("LimitNOFILE"));
    }

    #[test]
    fn connection_tracking_stops_only_where_it_tracks() {
        let name = "net.netfilter.nf_conntrack_max";
        let laid = bare_metal("untracked");
        assert_eq!(find(&examined(&laid, &gateway(3, 336_358)), name).found, "connections are not tracked here");
        for (count, verdict) in [("0", Verdict::Better), ("42", Verdict::Stops)] {
            let laid = bare_metal("tracked")
                .file("/proc/sys/net/netfilter/nf_conntrack_max", "262144\n")
                .file("/proc/sys/net/netfilter/nf_conntrack_count", count);
            let findings = examined(&laid, &gateway(3, 336_358));
            assert_eq!(find(&findings, name).verdict, verdict);
            assert_eq!(
                find(&findings, name).fix.as_deref(),
                Some("sudo sysctl -w net.netfilter.nf_conntrack_max='2500000'")
            );
        }
    }

    #[test]
    fn a_configuration_that_holds_fewer_is_told_which_setting() {
        let setting = Some("[shards]\nconnections_max = 1000000".to_owned());
        let findings = examined(&bare_metal("setting"), &Gateway { setting: setting.clone(), ..gateway(1, 20_000) });
        let shards = find(&findings, "shards");
        assert_eq!((shards.verdict, &shards.fix), (Verdict::Stops, &setting));
        let findings = examined(&bare_metal("limit"), &gateway(1, 20_000));
        assert!(find(&findings, "shards").fix.as_ref().unwrap().contains("LimitNOFILE= to 336358"));
    }

    #[test]
    fn files_of_the_machine_and_a_value_of_another_shape() {
        let laid =
            bare_metal("files").file("/proc/sys/fs/file-max", "100000\n").file("/proc/sys/net/ipv4/tcp_mem", "many\n");
        let findings = examined(&laid, &gateway(3, 336_358));
        assert_eq!(find(&findings, "fs.file-max").verdict, Verdict::Stops);
        assert_eq!(find(&findings, "net.ipv4.tcp_mem").verdict, Verdict::Unseen);
        assert!(find(&findings, "net.ipv4.tcp_mem").fix.as_ref().unwrap().contains("\"many\""));
    }

    #[test]
    fn two_memory_nodes_isolated_cores_and_a_slow_clock_are_seen() {
        let laid = bare_metal("numa")
            .file("/sys/devices/system/node/node0/cpulist", "0-1\n")
            .file("/sys/devices/system/node/node1/cpulist", "2-3\n")
            .file("/sys/devices/system/cpu/isolated", "4-7\n")
            .file("/sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n")
            .file("/proc/77/comm", "irqbalance\n");
        let findings = examined(&laid, &gateway(3, 336_358));
        for (what, part) in [
            ("memory nodes", "CPUAffinity=2-3"),
            ("isolated cores", "CPUAffinity=0,4-7"),
            ("clock", "echo tsc"),
            ("network card eno1", "disable --now irqbalance"),
        ] {
            let finding = find(&findings, what);
            assert!(finding.fix.as_ref().is_some_and(|fix| fix.contains(part)), "{finding:?}");
        }
    }

    #[test]
    fn a_hash_of_connections_that_is_too_small_wants_a_boot_with_a_larger_one() {
        for (places, verdict) in [("524288", Verdict::Better), ("-1048576", Verdict::Ok), ("none", Verdict::Unseen)] {
            let laid = bare_metal("hash").file("/proc/sys/net/ipv4/tcp_ehash_entries", places);
            let findings = examined(&laid, &gateway(3, 336_358));
            let finding = find(&findings, "net.ipv4.tcp_ehash_entries");
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            let fix = finding.fix.as_deref().unwrap_or_default();
            assert_eq!(fix.starts_with("thash_entries=1048576 "), verdict == Verdict::Better, "{finding:?}");
        }
    }

    #[test]
    fn a_sysctl_that_is_gone_is_unseen_and_a_kernel_without_the_switch_has_io_uring() {
        let laid =
            bare_metal("gone").without("/proc/sys/net/core/somaxconn").without("/proc/sys/kernel/io_uring_disabled");
        let findings = examined(&laid, &gateway(3, 336_358));
        assert_eq!(find(&findings, "net.core.somaxconn").verdict, Verdict::Unseen);
        assert_eq!(find(&findings, "kernel.io_uring_disabled").verdict, Verdict::Ok);
    }
}
