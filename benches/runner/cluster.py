"""A cluster on one machine: etcd, nats-server if it takes part, nodes, and one load client that publishes into the first node and
subscribes at each. What every thread costs is read before and after a run, and divided by its messages.
"""

import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import time
import urllib.request

from .pages import milliseconds, quantity
from .servers import Failed, Fanwire, Server, free_port, output, spawn, stop, tools

TRANSPORTS = {
    "alone": "one node without `cluster.etcd`",
    "relay": "each node pulls from every other",
    "nats": "by a stream of NATS JetStream",
}
JOIN_S, DRAIN_S, PATIENCE_S = 30, 5, 60
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
# What is judged, where it was measured: so many nodes keep up with this rate.
JUDGED_NODES, JUDGED_RATES = 3, {"relay": 50_000, "nats": 20_000}
ABOVE_LOCAL_US_MAX = 10_000
# Counters of what does not come to a subscriber: since it was behind; since it did not come to its node.
DROPPED = ["fanwire_drops_total"]
MISSED = ["fanwire_relay_lost_messages_total", "fanwire_cluster_nats_lost_messages_total"]
KEPT_UP_MIN = 0.99  # Of what is offered, delivered within the measured seconds.


@dataclasses.dataclass(frozen=True)
class Row:
    """What is offered to whom."""

    transport: str
    nodes: int
    rate: int


class Etcd(Server):
    title = "etcd"

    def version(self):
        tools("etcd")
        return output(["etcd", "--version"]).splitlines()[0]

    def serve(self, directory):
        data = directory / "data"
        shutil.rmtree(data, ignore_errors=True)
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        flags = {
            "name": "n1", "data-dir": data, "listen-client-urls": client, "advertise-client-urls": client, "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer, "initial-cluster": f"n1={peer}", "log-level": "error",
        }
        self.spawn(["etcd", *(part for name, value in flags.items() for part in (f"--{name}", value))], directory)

        def answers():
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{client}/health", timeout=1) as answer:
                return json.load(answer)["health"] == "true"

        self.await_true(answers, directory, "is not healthy")
        return client


class JetStream(Server):
    title = "nats-server"

    def version(self):
        tools("nats")
        return output(["nats-server", "--version"])

    def serve(self, directory):
        store, port = directory / "store", free_port()
        shutil.rmtree(store, ignore_errors=True)
        self.spawn(["nats-server", "-a", "127.0.0.1", "-p", port, "-js", "-sd", store], directory)
        self.await_port(port, directory)
        return f"nats://127.0.0.1:{port}"


class Node(Fanwire):
    """One gateway of the cluster."""

    def __init__(self, binary):
        super().__init__((None, None), binary)

    def serve(self, settings, directory):
        self.url, self.grpc, self.http = super().serve(settings, directory)
        self.subscribers = self.url.removeprefix("ws://").partition("/")[0]

    def metric(self, name):
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def sees(self, row):
        """Whether it is where its transport needs it to be."""
        others = row.nodes - 1
        return self.metric("fanwire_cluster_member") == 1 and self.metric("fanwire_cluster_nodes") == others and (
            row.transport != "relay" or self.metric("fanwire_relay_links") == others)


def cpu_s(pid):
    """CPU seconds by thread name of a process, shards together."""
    found = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        head, _, fields = (task / "stat").read_text().rpartition(")")
        name = head.partition("(")[2]
        name = "shards" if name.startswith("shard-") else name
        user, system = fields.split()[11:13]
        found[name] = found.get(name, 0) + (int(user) + int(system)) * TICK_S
    return found


def spent(before, after):
    """What each thread has used meanwhile."""
    return {name: seconds - before.get(name, 0) for name, seconds in after.items()}


@dataclasses.dataclass
class Round:
    """One run. CPU is in µs a published message, the times are µs, `own` is the node that is published into, `other` the worst of those
    that are not. Of what the subscribers lack (`lost`), nodes counted `dropped` for one that was behind, `missed` on the way between nodes."""

    row: Row
    accepted_per_s: float
    own_per_s: float
    other_per_s: float | None
    own_p50_us: float
    own_p99_us: float
    other_p50_us: float | None
    other_p99_us: float | None
    lost: int
    dropped: float | None
    missed: float | None
    own_control_us: float
    own_shards_us: float
    other_control_us: float | None
    other_shards_us: float | None
    etcd_us: float | None
    nats_us: float | None
    load_us: float

    @property
    def above_local_us(self):
        return None if self.other_p99_us is None else self.other_p99_us - self.own_p99_us

    @property
    def cores(self):
        """In use at that rate, by all of them together."""
        others = (self.row.nodes - 1) * ((self.other_control_us or 0) + (self.other_shards_us or 0))
        each = self.own_control_us + self.own_shards_us + others + (self.etcd_us or 0) + (self.nats_us or 0) + self.load_us
        return each * self.accepted_per_s / 1e6


FIGURES = [field.name for field in dataclasses.fields(Round) if field.name != "row"]


def measured(row, report, used, dropped, missed):
    """A round of what the load client found, what the nodes counted, and what the processes used: CPU seconds by thread, for etcd, nats and each node."""
    messages = report["messages"]
    own, *others = report["nodes"] or [report]

    def each(name, thread):
        return None if name not in used else sum(s for at, s in used[name].items() if thread(at)) * 1e6 / messages

    def of_others(thread):
        values = [each(f"node {i}", thread) for i in range(1, row.nodes)]
        return statistics.mean(values) if values else None

    shards, control, whole = "shards".__eq__, lambda name: name != "shards", lambda _: True
    load_cores = (report["client_busy_percent"] + report["publisher_busy_percent"]) / 100
    return Round(
        row=row, accepted_per_s=report["published_per_s"], own_per_s=own["deliveries_per_s"],
        other_per_s=min((node["deliveries_per_s"] for node in others), default=None),
        own_p50_us=own["p50_us"], own_p99_us=own["p99_us"],
        other_p50_us=max((node["p50_us"] for node in others), default=None),
        other_p99_us=max((node["p99_us"] for node in others), default=None),
        lost=report["lost"] + report["refused"], dropped=dropped, missed=missed,
        own_control_us=each("node 0", control), own_shards_us=each("node 0", shards),
        other_control_us=of_others(control), other_shards_us=of_others(shards),
        etcd_us=each("etcd", whole), nats_us=each("nats", whole),
        load_us=load_cores * 1e6 / report["published_per_s"] if report["published_per_s"] else 0)


def once(binary, row, size, warmup_s, duration_s, directory):
    """One run with a cluster of its own; its round, and what the load client complains of."""
    with contextlib.ExitStack() as stack:
        def started(server, name, *settings):
            folder = directory / name.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            server.process = None
            stack.callback(lambda: server.process and stop(server.process))
            return server.serve(*settings, folder)

        processes, nodes = {}, []
        settings = ["shards.count=1", "shards.pin=false"]
        if row.transport != "alone":
            etcd = Etcd((None, None))
            settings += [f"cluster.etcd={started(etcd, 'etcd')}", f"cluster.transport={row.transport}", "cluster.relay_address=127.0.0.1:0"]
            processes["etcd"] = etcd
        if row.transport == "nats":
            nats = JetStream((None, None))
            settings += [f"cluster.nats={started(nats, 'nats')}"]
            processes["nats"] = nats
        for i in range(row.nodes):
            nodes.append(Node(binary))
            started(nodes[i], f"node {i}", settings)
            processes[f"node {i}"] = nodes[i]
        end = time.monotonic() + JOIN_S
        while row.transport != "alone" and not all(node.sees(row) for node in nodes):
            if time.monotonic() > end:
                raise Failed(f"{row}: the nodes have not found one another in {JOIN_S} s")
            time.sleep(0.05)
        command = [
            binary, "bench", "--json", "--url", nodes[0].url, "--grpc", nodes[0].grpc, "--connections", row.nodes, "--rate", row.rate,
            "--size", size, "--warmup", warmup_s, "--duration", duration_s, "--drain", DRAIN_S,
        ]
        command += [part for node in nodes[1:] for part in ("--node", node.subscribers)]
        before = {name: cpu_s(server.process.pid) for name, server in processes.items()}
        client = spawn(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            said, complained = client.communicate(timeout=warmup_s + duration_s + DRAIN_S + PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"{row}: the load client hangs") from None
        finally:
            stop(client)
        used = {name: spent(before[name], cpu_s(server.process.pid)) for name, server in processes.items()}
        dropped, missed = (sum(node.metric(name) for node in nodes for name in names) for names in (DROPPED, MISSED))
        try:
            result = json.loads(said)
        except json.JSONDecodeError:
            raise Failed(f"{row}: {complained.strip().splitlines()[-1:]}") from None
        return measured(row, result["median"]["gateway"], used, dropped, missed), result["wrong"]


def medians(rounds):
    """Of each row's rounds, figure by figure, rows in the order of their first round."""
    found = {}
    for one in rounds:
        found.setdefault(one.row, []).append(one)
    return [median(row, of_row) for row, of_row in found.items()]


def median(row, rounds):
    figures = {}
    for name in FIGURES:
        values = [getattr(one, name) for one in rounds if getattr(one, name) is not None]
        figures[name] = statistics.median(values) if values else None
    for name in ("lost", "dropped", "missed"):  # One lost message is one too many.
        values = [getattr(one, name) for one in rounds]
        figures[name] = None if None in values else sum(values)  # Not said in every round: not known.
    return Round(row=row, **figures)


def keeps_up(one):
    """Whether all that was offered came out everywhere, in its time."""
    least = min(one.own_per_s, one.row.rate if one.other_per_s is None else one.other_per_s)
    return one.lost == 0 and least >= KEPT_UP_MIN * one.row.rate


def misses(rows):
    """What had to be reached, and was not."""
    said = []
    for one in rows:
        if one.row.nodes != JUDGED_NODES or one.row.rate != JUDGED_RATES.get(one.row.transport):
            continue
        where = f"{one.row.transport}, {one.row.nodes} nodes, {one.row.rate:,}/s"
        if not keeps_up(one):
            said.append(f"{where}: {one.own_per_s:,.0f} and {one.other_per_s:,.0f}/s delivered, {one.lost:,} lost")
        if one.row.transport == "relay" and one.above_local_us > ABOVE_LOCAL_US_MAX:
            said.append(f"{where}: p99 {one.above_local_us / 1000:.1f} ms above local, must be ≤ {ABOVE_LOCAL_US_MAX / 1000:.0f} ms")
    return said


COLUMNS = {
    "transport": lambda one: one.row.transport,
    "nodes": lambda one: str(one.row.nodes),
    "offered/s": lambda one: quantity(one.row.rate),
    "accepted/s": lambda one: quantity(one.accepted_per_s),
    "delivered/s here": lambda one: quantity(one.own_per_s),
    "there": lambda one: shown(one.other_per_s, quantity),
    "p50 ms here": lambda one: milliseconds(one.own_p50_us),
    "there ": lambda one: shown(one.other_p50_us, milliseconds),
    "p99 ms here": lambda one: milliseconds(one.own_p99_us),
    "there  ": lambda one: shown(one.other_p99_us, milliseconds),
    "lost": lambda one: f"{one.lost:,.0f}",
    "of it dropped": lambda one: shown(one.dropped, "{:,.0f}".format),
    "missed": lambda one: shown(one.missed, "{:,.0f}".format),
    "µs CPU a message: control here": lambda one: f"{one.own_control_us:.2f}",
    "shard here": lambda one: f"{one.own_shards_us:.2f}",
    "control there": lambda one: shown(one.other_control_us, "{:.2f}".format),
    "shard there": lambda one: shown(one.other_shards_us, "{:.2f}".format),
    "etcd": lambda one: shown(one.etcd_us, "{:.2f}".format),
    "nats": lambda one: shown(one.nats_us, "{:.2f}".format),
    "load": lambda one: f"{one.load_us:.2f}",
    "cores in use": lambda one: f"{one.cores:.2f}",
    "": lambda one: "keeps up" if keeps_up(one) else "**behind**",
}


def shown(value, how):
    return "" if value is None else how(value)


def table(rows):
    lines = [f"| {' | '.join(name.strip() for name in COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    return lines + [f"| {' | '.join(cell(one) for cell in COLUMNS.values())} |" for one in rows]


def write_csv(path, rounds):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*(field.name for field in dataclasses.fields(Row)), *FIGURES])
        for one in rounds:
            values = [getattr(one, name) for name in FIGURES]
            writer.writerow([*dataclasses.astuple(one.row), *("" if v is None else f"{v:.6g}" for v in values)])


def read_csv(path):
    """The rounds of a file that `write_csv` wrote."""
    def number(text):
        return float(text) if text else None

    with open(path, newline="") as file:
        return [
            Round(row=Row(line["transport"], int(line["nodes"]), int(line["rate"])), **{name: number(line[name]) for name in FIGURES})
            for line in csv.DictReader(file)]
