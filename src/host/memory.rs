//! What connections cost in memory: the calculator of docs/OPERATING.md, `fanwire doctor` and the advice on `tcp_mem`.
//!
//! ```text
//! gateway = base + shards × shard + connections × connection
//! kernel  = connections × (socket, and what tracks it) + shards × slots × 8
//! backlog = slow clients × (3 × socket_send_buffer_bytes + pending_bytes_max), the latter within owed_bytes_max
//! ```
//!
//! Each constant is a measurement; the tests hold the page to them.

use super::Demand;

/// Resident memory of a gateway without shards: the program, the control and the accepting core.
pub const BASE_BYTES: u64 = 10_800_000;
/// Of each shard once it has connections: its thread, ring and first buffers. Its tables and queues take memory as they fill, however large
/// they may become.
pub const SHARD_BYTES: u64 = 680_000;
/// Of each connection that is open and has one topic.
pub const CONNECTION_BYTES: u64 = 242;

/// What a shard's ring locks: its two queues, and the list of its receive buffers.
pub const RING_BYTES: u64 = 262_144;
/// The rings of the accepting and the control core.
pub const OTHER_RINGS_BYTES: u64 = 262_144;

/// Kernel memory of the server's end of a connection: socket, inode, file, directory entry 3,870 bytes, and the poll that waits
/// for its messages 256.
pub const SOCKET_BYTES: u64 = 4126;
/// Of a client's end on the same machine, with a receive armed on a ring as `fanwire bench` has it; with epoll 700 bytes less.
pub const CLIENT_SOCKET_BYTES: u64 = 4763;
/// What a tracked connection costs the firewall.
pub const TRACKED_BYTES: u64 = 320;

/// What a client that does not read pins in the kernel, in send buffers.
pub const SEND_BUFFERS_PINNED: u64 = 3;
/// A small message in flight to a connection: whatever its size, the kernel charges a socket whole pages (`mem` of /proc/net/sockstat).
pub const MESSAGE_IN_FLIGHT_BYTES: u64 = 4096;

/// Memory of a gateway with all its connections, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// Resident memory of the process, nobody slow.
    pub gateway_bytes: u64,
    /// The kernel's, for sockets and rings; not in the process's resident memory, but in its cgroup's.
    pub kernel_bytes: u64,
    /// The ends of clients that run on this machine.
    pub clients_bytes: u64,
    /// What slow clients have not read yet, in the kernel and in the gateway.
    pub backlog_bytes: u64,
}

impl Memory {
    /// Of `shards` with `slots` places each, under this demand.
    pub fn of(demand: &Demand, shards: u64, slots: u64) -> Memory {
        let connections = demand.connections;
        let pinned = demand.slow * SEND_BUFFERS_PINNED * demand.send_buffer_bytes;
        let owed = (demand.slow * demand.pending_bytes_max).min(demand.owed_bytes_max);
        Memory {
            gateway_bytes: BASE_BYTES + shards * SHARD_BYTES + connections * CONNECTION_BYTES,
            kernel_bytes: connections * (SOCKET_BYTES + if demand.tracked { TRACKED_BYTES } else { 0 })
                + shards * slots * 8,
            clients_bytes: if demand.clients_here { connections * CLIENT_SOCKET_BYTES } else { 0 },
            backlog_bytes: pinned + owed,
        }
    }

    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.gateway_bytes + self.kernel_bytes + self.clients_bytes + self.backlog_bytes
    }
}

/// Bytes as people read them: `4.2 GB`.
pub fn human(bytes: u64) -> String {
    let units = [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "KB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// Resident memory of a release build, Linux 6.18: shards of 20,000 places, connections, bytes. Under `fanwire bench --idle`; the million
    /// of `scripts/million`.
    const MEASURED: [(u64, u64, u64); 10] = [
        (1, 1000, 12_079_000),
        (1, 10_000, 14_049_000),
        (1, 19_000, 16_093_000),
        (4, 1000, 13_177_000),
        (4, 10_000, 15_499_000),
        (4, 19_000, 17_740_000),
        (4, 60_000, 27_644_000),
        (16, 19_000, 26_501_000),
        (16, 100_000, 45_875_000),
        (56, 1_000_000, 294_000_000),
    ];

    #[test]
    fn the_formula_gives_what_was_measured() {
        for (shards, connections, measured) in MEASURED {
            let demand = Demand::new(connections, &Config::default());
            let bytes = Memory::of(&demand, shards, 20_000).gateway_bytes;
            let ratio = bytes as f64 / measured as f64;
            assert!(
                (0.95..1.05).contains(&ratio),
                "{shards} shards, {connections} connections: {bytes} for {measured}"
            );
        }
    }

    /// Growth of the kernel's slabs in the same runs, both ends of each connection on the machine.
    const SLABS: [(u64, u64); 6] = [
        (10_000, 90_354_000),
        (19_000, 170_308_000),
        (10_000, 87_470_000),
        (19_000, 167_997_000),
        (19_000, 170_463_000),
        (1_000_000, 8_431_000_000),
    ];

    #[test]
    fn the_kernels_part_is_what_its_slabs_grew_by() {
        for (connections, measured) in SLABS {
            let demand = Demand { clients_here: true, ..Demand::new(connections, &Config::default()) };
            let memory = Memory::of(&demand, 1, 20_000);
            let ratio = (memory.kernel_bytes + memory.clients_bytes) as f64 / measured as f64;
            assert!((0.97..1.06).contains(&ratio), "{connections} connections: {ratio}");
        }
    }

    #[test]
    fn the_backlog_is_of_slow_clients_alone_and_bounded() {
        let demand = Demand::new(1_000_000, &Config::default());
        let none = Memory::of(&demand.with_slow_percent(0.0), 1, 1 << 20);
        let some = Memory::of(&demand.with_slow_percent(0.1), 1, 1 << 20);
        let many = Memory::of(&demand.with_slow_percent(50.0), 1, 1 << 20);
        assert_eq!(none.backlog_bytes, 0);
        assert_eq!(some.backlog_bytes, 1000 * 3 * 65_536 + 1000 * (1 << 20));
        assert_eq!(many.backlog_bytes, 500_000 * 3 * 65_536 + (1 << 30), "slow.owed_bytes_max holds");
    }

    #[test]
    fn bytes_are_read_by_people() {
        assert_eq!([human(999), human(4_130_000), human(4_130_000_000)], ["999 B", "4.1 MB", "4.1 GB"]);
    }
}
