//! A network card: its queues, who works on them, and a spread over the cores.
//!
//! Packets of one queue are worked on by one core, that of its interrupt. One queue on many cores is a core that is full while the others
//! wait; RPS then lets the kernel pass packets on, at the price of an interrupt between cores.

use super::root::{Root, listed, mask, unmasked};
use super::tune::Change;

/// One card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Of the interface, such as `eth0`.
    pub name: String,
    /// Receive queues, each with its RPS mask (none: this kernel or user has none).
    pub rx: Vec<(String, Option<String>)>,
    /// Send queues, each with its XPS mask.
    pub tx: Vec<(String, Option<String>)>,
    /// Interrupts of its queues, and on which cores each may arrive (none: not to be seen).
    pub interrupts: Vec<(u32, Option<String>)>,
}

/// Longest name of an interface (IFNAMSIZ).
const NAME_BYTES_MAX: usize = 15;

impl Nic {
    /// The cards of this machine: interfaces with a device behind them.
    pub fn all(root: &Root) -> Vec<Nic> {
        let interfaces = root.names("/sys/class/net").into_iter();
        interfaces
            .filter(|name| root.has(&format!("/sys/class/net/{name}/device")))
            .filter_map(|n| Nic::read(root, &n))
            .collect()
    }

    /// The interface of this name, if there is one.
    pub fn read(root: &Root, name: &str) -> Option<Nic> {
        let is_name = !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains('/') && !name.starts_with('.');
        if !is_name || !root.has(&format!("/sys/class/net/{name}")) {
            return None;
        }
        let folder = format!("/sys/class/net/{name}/queues");
        let queues = |kind: &str, file: &str| {
            let names = root.names(&folder).into_iter().filter(|queue| queue.starts_with(kind));
            names.map(|queue| (queue.clone(), root.text(&format!("{folder}/{queue}/{file}")).ok())).collect()
        };
        let affinity = |irq: u32| (irq, root.text(&format!("/proc/irq/{irq}/smp_affinity_list")).ok());
        Some(Nic {
            name: name.to_owned(),
            rx: queues("rx-", "rps_cpus"),
            tx: queues("tx-", "xps_cpus"),
            interrupts: interrupts(root, name).into_iter().map(affinity).collect(),
        })
    }

    /// What is to be changed so that all of `cpus` share its work.
    pub fn changes(&self, cpus: &[u32]) -> Vec<Change> {
        let mut changes = Vec::new();
        if cpus.is_empty() {
            return changes;
        }
        let name = &self.name;
        for (index, (irq, found)) in self.interrupts.iter().enumerate() {
            let wanted = cpus[index % cpus.len()].to_string();
            if let Some(found) = found.as_ref().filter(|found| **found != wanted) {
                let why = format!("{name}: one core for each queue's interrupt, so that no core has them all");
                changes.push(Change::new(format!("/proc/irq/{irq}/smp_affinity_list"), found, wanted, why));
            }
        }
        let everybody = mask(cpus);
        for (queue, found) in self.rx.iter().filter(|_| self.rx.len() < cpus.len()) {
            if let Some(found) = found.as_ref().filter(|found| unmasked(found).as_deref() != Some(cpus)) {
                let why = format!(
                    "{name}: RPS: {} receive queue(s) for {} cores; the kernel passes packets on to the others",
                    self.rx.len(),
                    cpus.len()
                );
                changes.push(Change::new(self.file(queue, "rps_cpus"), found, everybody.clone(), why));
            }
        }
        for (index, (queue, found)) in self.tx.iter().enumerate().filter(|_| self.tx.len() > 1) {
            let own: Vec<u32> = cpus.iter().copied().skip(index % cpus.len()).step_by(self.tx.len()).collect();
            if let Some(found) = found.as_ref().filter(|found| unmasked(found).as_deref() != Some(&own[..])) {
                let why = format!(
                    "{name}: XPS: each core sends by a queue of its own, so that cores don't wait for its lock"
                );
                changes.push(Change::new(self.file(queue, "xps_cpus"), found, mask(&own), why));
            }
        }
        changes
    }

    fn file(&self, queue: &str, file: &str) -> String {
        format!("/sys/class/net/{}/queues/{queue}/{file}", self.name)
    }

    /// Cores on which its interrupts may arrive, as a list.
    pub fn cores(&self) -> String {
        let mut cores: Vec<u32> =
            self.interrupts.iter().filter_map(|(_, list)| list.as_deref()).flat_map(super::root::list).collect();
        cores.sort_unstable();
        cores.dedup();
        listed(&cores)
    }
}

/// The interrupts of a card's queues: those its device lists, else those that `/proc/interrupts` names after the interface or its
/// virtio device. Without those that are not for packets.
fn interrupts(root: &Root, name: &str) -> Vec<u32> {
    let table = root.read("/proc/interrupts").unwrap_or_default();
    let named: Vec<(u32, &str)> = table
        .lines()
        .filter_map(|line| {
            let (number, rest) = line.trim_start().split_once(':')?;
            Some((number.parse().ok()?, rest.rsplit(' ').next()?))
        })
        .collect();
    let device = format!("/sys/class/net/{name}/device");
    let listed = [format!("{device}/msi_irqs"), format!("{device}/../msi_irqs")];
    let listed = listed.iter().map(|folder| root.names(folder)).find(|names| !names.is_empty()).unwrap_or_default();
    let listed: Vec<u32> = listed.iter().filter_map(|irq| irq.parse().ok()).collect();
    let virtio = root.link_name(&device).filter(|device| device.starts_with("virtio"));
    let is_ours = |label: &str| {
        let mut after =
            [Some(name), virtio.as_deref()].into_iter().flatten().filter_map(|stem| label.strip_prefix(stem));
        after.any(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
    };
    let is_for_packets =
        |label: &str| !["config", "async", "event", "mbox", "misc"].iter().any(|word| label.contains(word));
    let numbers = named.iter().filter(|(irq, label)| {
        is_for_packets(label) && if listed.is_empty() { is_ours(label) } else { listed.contains(irq) }
    });
    numbers.map(|(irq, _)| *irq).collect()
}

#[cfg(test)]
mod tests {
    use super::super::laid::{Laid, bare_metal};
    use super::*;

    #[test]
    fn a_card_with_fewer_queues_than_cores_gets_its_interrupts_spread_and_rps() {
        let laid = bare_metal("nic");
        let nic = Nic::read(&laid.root(), "eno1").unwrap();
        assert_eq!(nic.interrupts.iter().map(|(irq, _)| *irq).collect::<Vec<_>>(), [40, 41]);
        let changes = nic.changes(&[0, 1, 2, 3]);
        let planned: Vec<_> = changes.iter().map(|c| format!("{}={}", c.path, c.after)).collect();
        assert_eq!(
            planned,
            [
                "/proc/irq/40/smp_affinity_list=0",
                "/proc/irq/41/smp_affinity_list=1",
                "/sys/class/net/eno1/queues/rx-0/rps_cpus=0000000f",
                "/sys/class/net/eno1/queues/rx-1/rps_cpus=0000000f",
                "/sys/class/net/eno1/queues/tx-0/xps_cpus=00000005",
                "/sys/class/net/eno1/queues/tx-1/xps_cpus=0000000a",
            ]
        );
    }

    #[test]
    fn enough_queues_need_no_rps() {
        let laid = bare_metal("queues");
        let changes = Nic::read(&laid.root(), "eno1").unwrap().changes(&[0, 1]);
        assert!(!changes.iter().any(|c| c.path.contains("rps")), "{changes:?}");
    }

    #[test]
    fn a_name_is_no_path() {
        let laid = Laid::new("names").file("/sys/class/net/eth0/queues/rx-0/rps_cpus", "0\n");
        for name in ["", "..", "../net/eth0", "eth1"] {
            assert_eq!(Nic::read(&laid.root(), name), None, "{name}");
        }
        assert!(Nic::read(&laid.root(), "eth0").is_some());
    }

    fn virtio(test: &str) -> Laid {
        Laid::new(test)
            .file("/sys/devices/system/cpu/online", "0-1\n")
            .file("/sys/class/net/eth0/queues/rx-0/rps_cpus", "0\n")
            .file("/sys/class/net/eth0/queues/tx-0/traffic_class", "0\n")
            .file("/proc/irq/38/smp_affinity_list", "1\n")
            .file("/proc/irq/39/smp_affinity_list", "1\n")
            .link("/sys/class/net/eth0/device", "../../../devices/virtio2")
            .file(
                "/proc/interrupts",
                "      CPU0  CPU1\n 37:  0  0 PCI-MSIX  0-edge  virtio2-config\n 38:  0  5 PCI-MSIX  1-edge  virtio2-input.0\n \
                 39:  5  0 PCI-MSIX  2-edge  virtio2-output.0\n 40:  5  0 PCI-MSIX  2-edge  virtio20-input.0\nNMI:  0  0 Non-maskable\n",
            )
    }

    #[test]
    fn the_interrupts_of_a_virtio_card_are_those_of_its_device() {
        let nic = Nic::read(&virtio("virtio").root(), "eth0").unwrap();
        assert_eq!(nic.interrupts.iter().map(|(irq, _)| *irq).collect::<Vec<_>>(), [38, 39]);
    }

    /// `tuning/nic` on a machine that was laid out: exit code and stdout.
    fn script(laid: &Laid, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = std::process::Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tuning/nic"));
        let output = command.args(arguments).env("ROOT", laid.root().path("/")).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    #[test]
    fn the_script_in_tuning_plans_the_same_and_puts_back_every_byte() {
        for (laid, name, cpus) in
            [(bare_metal("script"), "eno1", &[0, 1, 2, 3][..]), (virtio("script-virtio"), "eth0", &[0, 1])]
        {
            let before = laid.contents();
            let changes = Nic::read(&laid.root(), name).unwrap().changes(cpus);
            let planned: String = changes.iter().map(|c| format!("{} {}\n", c.path, c.after)).collect();
            assert_eq!(script(&laid, &[name]), (Some(0), planned));
            assert_eq!(laid.contents(), before, "showing changes nothing");
            for _ in 0..2 {
                assert_eq!(script(&laid, &[name, "--apply"]).0, Some(0));
                assert!(Nic::read(&laid.root(), name).unwrap().changes(cpus).is_empty());
            }
            assert_eq!(script(&laid, &[name, "--undo"]).0, Some(0));
            assert_eq!(laid.contents(), before);
            assert_eq!(script(&laid, &[name, "--undo"]).0, Some(1), "nothing is left to undo");
        }
        let laid = virtio("script-wrong");
        for wrong in [&[][..], &["eth9"], &["../eth0"], &["eth0", "--do"], &["eth0", "--apply", "x"]] {
            assert_eq!(script(&laid, wrong).0, Some(64), "{wrong:?}");
        }
    }
}
