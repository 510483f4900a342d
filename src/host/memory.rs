//! What connections cost in memory: the calculator of docs/OPERATING.md, `fanwire doctor` and the advice on `tcp_mem`.
//!
//! ```text
//! gateway = base + shards × (shard + queue_items_max × item + slots × slot + ring) + connections × connection
//! kernel  = connections × (socket, and what tracks it) + shards × slots × 8
//! backlog = slow clients × (3 × socket_send_buffer_bytes + pending_bytes_max), the latter within owed_bytes_max
//! ```
//!
//! Each constant is a measurement; the tests hold the page to them.

use super::Demand;

/// Resident memory of a gateway without shards: the program, the control and the accepting core.
pub const BASE_BYTES: u64 = 10_100_000;
/// Of each shard: its thread and tables.
pub const SHARD_BYTES: u64 = 600_000;
/// Of each of `shards.queue_items_max`: a place in the shard's queue from the control core, and in the one to it.
pub const QUEUE_ITEM_BYTES: u64 = 112;
/// Of each place in a shard's file table, used or not: its queues from and to the accepting core have so many places.
pub const SLOT_BYTES: u64 = 129;
/// Of each connection that is open and has one topic.
pub const CONNECTION_BYTES: u64 = 272;

/// Kernel memory of the server's end of a connection: socket, inode, file, directory entry 3,870 bytes, and the poll that waits
/// for its messages 256.
pub const SOCKET_BYTES: u64 = 4126;
/// Of a client's end on the same machine, with a receive armed on a ring as `fanwire bench` has it; with epoll 700 bytes less.
pub const CLIENT_SOCKET_BYTES: u64 = 4763;
/// What a tracked connection costs the firewall.
pub const TRACKED_BYTES: u64 = 320;

/// What a client that does not read pins in the kernel, in send buffers.
pub const SEND_BUFFERS_PINNED: u64 = 3;
/// A small message in flight to a connection, as the kernel counts it.
pub const MESSAGE_IN_FLIGHT_BYTES: u64 = 1536;

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
            gateway_bytes: BASE_BYTES
                + shards * shard_bytes(demand.queue_items_max, slots)
                + connections * CONNECTION_BYTES,
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

/// Resident memory of one shard with nobody on it.
pub fn shard_bytes(queue_items_max: u64, slots: u64) -> u64 {
    // As socket/uring.rs makes them: 16 bytes a completion, 64 a submission, receive buffers of 2 KiB with their entries.
    let completions = slots.next_power_of_two().clamp(2048, 65_536) * 16;
    let submissions = 1024 * 64;
    let buffers = (slots / 64).next_power_of_two().clamp(16, 1024) * (2048 + 16);
    SHARD_BYTES + queue_items_max * QUEUE_ITEM_BYTES + slots * SLOT_BYTES + completions + submissions + buffers
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

    /// Resident memory of a release build under `fanwire bench --idle`, Linux 6.18: shards of 20,000 places, connections, bytes.
    const MEASURED: [(u64, u64, u64); 7] = [
        (1, 1000, 22_300_000),
        (1, 10_000, 24_800_000),
        (1, 19_000, 27_300_000),
        (4, 1000, 58_300_000),
        (4, 10_000, 61_600_000),
        (4, 19_000, 63_600_000),
        (16, 19_000, 210_300_000),
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
    const SLABS: [(u64, u64); 5] = [
        (10_000, 90_354_000),
        (19_000, 170_308_000),
        (10_000, 87_470_000),
        (19_000, 167_997_000),
        (19_000, 170_463_000),
    ];

    #[test]
    fn the_kernels_part_is_what_its_slabs_grew_by() {
        for (connections, measured) in SLABS {
            let demand = Demand { clients_here: true, ..Demand::new(connections, &Config::default()) };
            let memory = Memory::of(&demand, 1, 20_000);
            let ratio = (memory.kernel_bytes + memory.clients_bytes) as f64 / measured as f64;
            assert!((0.97..1.03).contains(&ratio), "{connections} connections: {ratio}");
        }
    }

    #[test]
    fn smaller_queues_and_tables_cost_less() {
        // Measured without clients: 8 shards with queues of 1,024 and of 262,144 items; 4 shards for 1,000 connections in all.
        let mut demand = Demand::new(0, &Config::default());
        for (queue_items_max, shards, slots, measured) in
            [(1024, 8, 20_000, 47_050_000.0), (262_144, 8, 20_000, 281_000_000.0), (65_536, 4, 264, 40_770_000.0)]
        {
            demand.queue_items_max = queue_items_max;
            let ratio = Memory::of(&demand, shards, slots).gateway_bytes as f64 / measured;
            assert!((0.92..1.08).contains(&ratio), "{queue_items_max} items, {slots} slots: {ratio}");
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
