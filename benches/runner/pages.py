"""A scenario's results as Markdown and as CSV."""

import csv
import re

from .rounds import FIGURES

# Column, figure, how it is written.
COLUMNS = {
    "offered_per_s": ("offered/s", lambda v: f"{v:,.6g}"),
    "deliveries_per_s": ("delivered/s", lambda v: quantity(v)),
    "published_per_s": ("published/s", lambda v: quantity(v)),
    "p50_us": ("p50 ms", lambda v: milliseconds(v)),
    "p99_us": ("p99 ms", lambda v: milliseconds(v)),
    "p999_us": ("p99.9 ms", lambda v: milliseconds(v)),
    "max_us": ("max ms", lambda v: milliseconds(v)),
    "lost": ("lost", lambda v: f"{v:,.0f}"),
    "lost_percent": ("lost %", lambda v: f"{v:.2g}"),
    "server_cpu_percent": ("server CPU %", lambda v: f"{v:.0f}"),
    "server_cpu_ns_per_delivery": ("ns CPU a delivery", lambda v: f"{v:,.0f}"),
    "deliveries_per_cpu_s": ("deliveries a CPU second", lambda v: quantity(v)),
    "server_rss_bytes_max": ("server RSS MB", lambda v: f"{v / 1e6:,.1f}"),
    "server_rss_bytes_per_connection": ("RSS B a connection", lambda v: f"{v:,.0f}"),
    "client_busy_percent": ("client CPU %", lambda v: f"{v:.0f}"),
    "publisher_busy_percent": ("publisher CPU %", lambda v: f"{v:.0f}"),
    "handshakes_per_s": ("handshakes/s", lambda v: f"{v:,.0f}"),
    "handshakes_per_cpu_s": ("handshakes a CPU second", lambda v: f"{v:,.0f}"),
    "subscribed": ("connected", lambda v: f"{v:,.0f}"),
    "churned": ("left", lambda v: f"{v:,.0f}"),
    "returned": ("came back", lambda v: f"{v:,.0f}"),
    "return_p99_us": ("back, p99 ms", lambda v: milliseconds(v)),
    "storm_subscribed": ("of the storm, in", lambda v: f"{v:,.0f}"),
    "storm_failed": ("not in", lambda v: f"{v:,.0f}"),
    "storm_s": ("storm s", lambda v: f"{v:.2f}"),
    "storm_p99_us": ("in, p99 ms", lambda v: milliseconds(v)),
    "storm_before_p99_us": ("p99 ms before", lambda v: milliseconds(v)),
    "storm_during_p99_us": ("p99 ms meanwhile", lambda v: milliseconds(v)),
    "storm_after_p99_us": ("p99 ms after", lambda v: milliseconds(v)),
    "storm_client_busy_percent": ("client CPU % in it", lambda v: f"{v:.0f}"),
    "slow_ended": ("slow ones ended", lambda v: f"{v:,.0f}"),
    "drops": ("drops counted", lambda v: f"{v:,.0f}"),
    "fanwire_owed_bytes_peak": ("owed at most, KB", lambda v: f"{v / 1e3:,.0f}"),
}
USUAL = ["deliveries_per_s", "p50_us", "p99_us", "server_cpu_percent", "server_cpu_ns_per_delivery", "server_rss_bytes_max", "lost",
         "client_busy_percent", "publisher_busy_percent"]


def milliseconds(us):
    return f"{us / 1000:.2f}" if us < 10_000 else f"{us / 1000:,.0f}"


def quantity(n):
    return f"{n / 1e6:.2f} M" if n >= 1e6 else f"{n / 1e3:.1f} k" if n >= 1e4 else f"{n:,.0f}"


def worst(remarks):
    """Of those that differ only in their figures, the one with the largest."""
    numbers = lambda remark: [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", remark)]
    kinds = {}
    for remark in sorted(remarks, key=numbers):
        kinds[re.sub(r"[\d.,]+", "#", remark)] = remark
    return sorted(kinds.values())


def table(scenario, results, servers):
    figures = scenario.figures or USUAL
    used = [figure for figure in figures if any(result.median(figure) is not None for result in results.values())]
    head = ["load", "server", *(COLUMNS[figure][0] for figure in used), "remarks"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for (row, name), result in results.items():
        cells = []
        for figure in used:
            value = result.median(figure)
            cells.append("" if value is None else COLUMNS[figure][1](value))
        remarks = [f"not measured: {result.reason}"] if result.reason else []
        remarks += worst(result.remarks) + sorted(result.problems)
        cells += ["; ".join(remarks).replace("|", "\\|")]
        lines.append(f"| {row} | {servers[name].title} | {' | '.join(cells)} |")
    return lines


def markdown(scenario, results, verdicts, bench, machine, when, quick):
    """The whole page."""
    rounds = sorted({row.rounds for row in scenario.rows})
    used = sorted({name for row in scenario.rows for name in row.servers}, key=list(bench.servers).index)
    lines = [f"# {scenario.title}", "", *scenario.about.strip().splitlines(), ""]
    if quick:
        lines += ["**Made by `--quick`: says that it runs, not how fast.**", ""]
    lines += [f"![{scenario.title}]({scenario.name}.svg)", "", *table(scenario, results, bench.servers), ""]
    if verdicts and not quick:
        lines += ["| figure | is | bound | |", "|---|---|---|---|"]
        for verdict in verdicts:
            what, _, rest = str(verdict).partition(": ")
            value, _, bound = rest.partition(" (")
            bound, _, word = bound.rpartition("): ")
            lines.append(f"| {what} | {value} | {bound} | {'**MISSED**' if not verdict.must else word} |")
        lines.append("")
    lines += [
        f"Medians of {' or '.join(map(str, rounds))} rounds, servers in turn within each. {when}, commit {machine['commit']}. Server on core "
        f"{bench.cores[0]}, clients and publisher on core {bench.cores[1]} of {machine['cpu']}, Linux {machine['kernel']}, "
        f"{machine['congestion']}, loopback.", "",
        *(f"- {bench.servers[name].title}: {bench.versions.get(name) or 'not measured: ' + bench.unavailable.get(name, '')}; "
          f"publisher: {bench.servers[name].publishes}" for name in used), "",
        f"Each round is in [{scenario.name}.csv]({scenario.name}.csv). Again: `scripts/bench {scenario.name}`; conditions: [README.md](README.md).",
    ]
    return "\n".join(lines) + "\n"


def write_csv(path, results):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "server", "round", *FIGURES])
        for (row, name), result in results.items():
            for turn, report in enumerate(result.reports, 1):
                values = [report.get(figure) for figure in FIGURES]
                values = [f"{v:.6g}" if isinstance(v, float) else v for v in values]
                writer.writerow([row, name, turn, *("" if v is None else v for v in values)])
