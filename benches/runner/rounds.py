"""Who is measured when, and what it came to.

A scenario goes round by round: all its rows with all their servers, then all of them again, the servers in another order. A machine
that grows slower meanwhile does so for everybody, and ratios are taken within a round.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time

from .servers import WORK, Failed, Unavailable, spawn, stop

# What tables, judges and charts may use: fields of `fanwire bench --json`, metrics of the gateway, and what is derived below.
FIGURES = [
    "deliveries_per_s", "p50_us", "p90_us", "p99_us", "p999_us", "max_us", "published_per_s", "deliveries", "lost", "ended", "failed",
    "subscribed", "handshakes_per_s", "ramp_s", "server_cpu_percent", "server_cpu_ns_per_delivery", "server_rss_bytes",
    "server_rss_bytes_max", "server_rss_bytes_per_connection", "client_busy_percent", "publisher_busy_percent",
    "publisher_late_p99_us", "slow_ended", "drops", "fanwire_owed_bytes_peak", "offered_per_s",
    "deliveries_per_cpu_s", "lost_percent", "handshakes_per_cpu_s",
    "churned", "returned", "return_p99_us", "storm_subscribed", "storm_failed", "storm_s", "storm_p99_us", "storm_before_p99_us",
    "storm_during_p99_us", "storm_after_p99_us", "storm_client_busy_percent", "connected_p99_us",
]

LADDER_S, LADDER_STEPS_MAX = 2, 3
# Worth a step beyond the ladder; as good as the best.
LADDER_GAIN_MIN, LADDER_AS_GOOD = 1.1, 0.97
# What a run takes besides: a server's start, the first and last connection, looking at the slow ones.
OVERHEAD_S = 1.5
RAMP_PER_S_MAX = 30_000
# Above its own time by so much a run hangs.
PATIENCE_S = 180


class Result:
    """What a server did in a row: one report a round, or why there is none."""

    def __init__(self):
        self.reports = []
        self.reason = ""  # Why it was not measured.
        self.remarks = set()
        self.problems = set()
        self.rate = None  # That the ladder found.

    def median(self, figure):
        values = [report[figure] for report in self.reports if report.get(figure) is not None]
        return statistics.median(values) if values else None


class Bench:
    """Everything to measure with."""

    def __init__(self, binary, servers, cores, say):
        self.binary, self.servers, self.cores, self.say = binary, servers, cores, say
        self.versions, self.unavailable = {}, {}

    def install(self, names):
        """Versions of those that are here, reasons of those that are not."""
        for name in names:
            if name in self.versions or name in self.unavailable:
                continue
            try:
                self.versions[name] = self.servers[name].version()
            except (Unavailable, OSError, subprocess.TimeoutExpired) as error:
                self.unavailable[name] = str(error)
                self.say(f"{self.servers[name].title} is not measured: {error}")

    def once(self, row, name, rate=None, duration_s=None):
        """One run; its report."""
        server, seconds = self.servers[name], duration_s or row.duration_s
        load = dict(row.load)
        if rate is not None:
            load["rate"] = rate
        timing = [] if "messages" in load else ["--warmup", row.warmup_s, "--duration", seconds]
        flags = []
        for flag, value in load.items():
            if name == "bare" and flag == "publish":
                continue
            for one in value if isinstance(value, list) else [value]:
                flags += [f"--{flag.replace('_', '-')}"] + ([] if one is True else [one])
        if row.drain_s:
            flags += ["--drain", row.drain_s]
        with server.running(row, WORK / "run" / name) as where:
            command = [self.binary, "bench", "--json", "--core", self.cores[1], *timing, *flags, *where]
            client = spawn(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            try:
                said, complained = client.communicate(timeout=self.seconds(row, load, seconds) + PATIENCE_S)
            except subprocess.TimeoutExpired:
                raise Failed(f"{server.title}: the load client hangs: {' '.join(map(str, command))}") from None
            finally:
                stop(client)
        try:
            result = json.loads(said)
        except json.JSONDecodeError:
            # Its seconds go the same way; a usage error is followed by the usage.
            said = [line for line in complained.strip().splitlines() if " connected" not in line]
            last = [line for line in said if line.startswith("error")] or said[-1:]
            raise Failed(f"{server.title}: {'; '.join(last) or f'the load client ended with {client.returncode}'}") from None
        report = result["median"]["bare" if name == "bare" else "gateway"]
        return derived(report, load, result["wrong"])

    def seconds(self, row, load, duration_s):
        """About what a run takes."""
        connections = load.get("connections", 10_000)
        published_s = load["messages"] / load["rate"] if "messages" in load else row.warmup_s + duration_s
        connecting_s = connections / min(load.get("ramp", 20_000), RAMP_PER_S_MAX)
        # A storm comes within the run, but has to be over before it ends.
        return OVERHEAD_S + connecting_s + max(published_s, row.warmup_s + load.get("storm", 0) / RAMP_PER_S_MAX)

    def estimate(self, scenario):
        """About what all of it takes, in seconds."""
        runs = sum(row.rounds * len(row.servers) * self.seconds(row, row.load, row.duration_s) for row in scenario.rows)
        rungs = sum(self.seconds(row, row.load, LADDER_S) * len(rates) for row in scenario.rows for rates in row.ladder.values())
        return runs + rungs

    def run(self, scenario):
        """All rounds; results by (row name, server name)."""
        self.install({name for row in scenario.rows for name in row.servers})
        results = {(row.name, name): Result() for row in scenario.rows for name in row.servers}
        for (row, name), result in results.items():
            result.reason = self.unavailable.get(name, "")
        for row in scenario.rows:
            for name, rates in row.ladder.items():
                self.guarded(results[row.name, name], name, lambda: self.climb(row, name, rates, results[row.name, name]))
        for turn in range(max(row.rounds for row in scenario.rows)):
            for row in scenario.rows:
                if turn < row.rounds:
                    at = turn % len(row.servers)
                    for name in row.servers[at:] + row.servers[:at]:
                        result = results[row.name, name]
                        self.guarded(result, name, lambda: self.measure(row, name, turn, result))
        return results

    def guarded(self, result, name, measure):
        """Runs `measure` unless this server has failed in this row; a peer that fails is a remark in the table, ours is a failure."""
        if result.reason:
            return
        try:
            measure()
        except Failed as error:
            if name in ("fanwire", "bare"):
                raise
            self.say(str(error))
            result.reason = str(error).splitlines()[0]

    def measure(self, row, name, turn, result):
        report = self.once(row, name, result.rate)
        result.reports.append(report)
        result.remarks.update(report["limits"])
        if not row.overload:
            result.problems.update(report["wrong"])
        self.say(f"{row.name}, {self.servers[name].title}, round {turn + 1} of {row.rounds}: {brief(report)}")

    def climb(self, row, name, rates, result):
        """The offered rate, of `rates` and beyond, at which this server delivers most: each once, briefly. Of several that are as good, the
        least: what is offered beyond only queues."""
        if len(rates) == 1:
            result.rate = rates[0]
            return
        found = {}

        def at(rate):
            report = self.once(row, name, rate, LADDER_S)
            found[rate] = report["deliveries_per_s"]
            self.say(f"{row.name}, {self.servers[name].title}, {rate:g}/s offered: {brief(report)}")

        for rate in rates:
            at(rate)
        for _ in range(LADDER_STEPS_MAX):
            others = max(delivered for rate, delivered in found.items() if rate < max(found))
            if found[max(found)] > others * LADDER_GAIN_MIN:
                at(max(found) * 2)
            elif max(found, key=found.get) == min(found):
                at(min(found) / 2)
            else:
                break
        result.rate = min(rate for rate, delivered in found.items() if delivered >= max(found.values()) * LADDER_AS_GOOD)


def derived(report, load, wrong):
    """What a report says between its lines."""
    each, handshake = report["server_cpu_ns_per_delivery"], report["server_cpu_ns_per_handshake"]
    due = report["received"] + report["lost"]
    return {
        **report, **report["metrics"], "wrong": wrong,
        "offered_per_s": load.get("rate"),
        "deliveries_per_cpu_s": 1e9 / each if each else None,
        "handshakes_per_cpu_s": 1e9 / handshake if handshake else None,
        # Of those who were there already: while the storm lasted, if there was one.
        "connected_p99_us": report.get("storm_during_p99_us") or report["p99_us"],
        "lost_percent": 100 * report["lost"] / due if due else None,
    }


def brief(report):
    if report["deliveries"]:
        return f"{report['deliveries_per_s']:,.0f}/s, p99 {report['p99_us'] / 1000:.2f} ms, " \
               f"{report['server_cpu_ns_per_delivery']:,.0f} ns, lost {report['lost']:,}"
    return f"{report['subscribed']:,} connected at {report['handshakes_per_s']:,.0f}/s"


def stderr(begun):
    """Says things with the time since `begun`."""
    return lambda text: print(f"{time.monotonic() - begun:7.1f} s  {text}", file=sys.stderr, flush=True)


def machine():
    """What all of it ran on."""
    cpu = next((line.partition(":")[2].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), "unknown")
    kernel = pathlib.Path("/proc/sys/kernel/osrelease").read_text().strip()
    congestion = pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return {"cpu": cpu, "kernel": kernel, "congestion": congestion}
