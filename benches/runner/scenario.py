"""Scenario files: which loads, against whom, and what must come out.

A file is one table of settings, `[[row]]` for each load and `[[judge]]` for each figure that is held to something. Nothing in it
is ignored: an unknown key is an error that names the file, so that a misspelt bound can't pass for a kept one.
"""

import dataclasses
import tomllib

SERVERS = ("fanwire", "bare", "nats", "nchan", "ws", "centrifugo")

# Flags of `fanwire bench` that a load may set; values go as they are, `true` as a flag without one.
LOAD = {
    "connections", "topics", "rate", "saturate", "size", "messages", "idle", "slow_percent", "ramp", "publish", "publishers",
    "http_connections", "batch", "churn", "storm", "zipf", "spread", "dialect", "metric", "spin",
}

# --quick: does everything still run? In seconds, not figures.
QUICK_MAX = {
    "connections": 200, "topics": 50, "rate": 100, "storm": 100, "churn": 50, "messages": 20, "saturate": 2, "ramp": 20_000,
}


class Wrong(Exception):
    """A scenario file says what can't be."""


@dataclasses.dataclass
class Row:
    """One load, and who gets it."""

    name: str
    load: dict
    servers: list
    settings: list = dataclasses.field(default_factory=list)  # Of the gateway: section.key=value
    series: str = ""  # Rows of one series are neighbours in the order of the file.
    x: float = 0  # Where on the series' axis.
    ladder: dict = dataclasses.field(default_factory=dict)  # Server → offered messages/s, the best of which is measured.
    overload: bool = False  # More is offered than may be carried: losses are counted, and are no failure.
    rounds: int = 0
    warmup_s: float = 0
    duration_s: float = 0
    drain_s: float = 0


@dataclasses.dataclass
class Judge:
    """A figure of the gateway's (or of `server`), by itself or over that of another server or row, and its bounds."""

    what: str
    figure: str
    row: str = ""
    server: str = "fanwire"
    over: str = ""  # Another server in the same row,
    over_row: str = ""  # or another row.
    neighbours: str = ""  # A series: the worst step from one row to the next. Of this figure more must be better.
    must_at_most: float | None = None
    must_at_least: float | None = None
    aim_at_most: float | None = None
    aim_at_least: float | None = None
    unit: str = ""
    scale: float = 1  # Figure × scale is in that unit.


@dataclasses.dataclass
class Scenario:
    """One file."""

    name: str
    title: str
    about: str
    rows: list
    judges: list
    figures: list  # Columns of its table beside those that all have.
    chart: dict

    def row(self, name):
        return next(row for row in self.rows if row.name == name)


def build(kind, where, table, **more):
    """A dataclass of a TOML table, whose keys are its fields and no others."""
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise Wrong(f"{where}: unknown: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return kind(**{**more, **table})


def read(path, figures, columns):
    """The scenario in `path`. `figures`: names that a judge or a chart may use, and `columns` those that a table can show."""
    name = path.stem
    try:
        table = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise Wrong(f"{path}: {error}") from error
    common = {key: table.pop(key) for key in ("rounds", "warmup_s", "duration_s", "drain_s") if key in table}
    load, servers, settings = table.pop("load", {}), table.pop("servers", ["fanwire"]), table.pop("settings", [])
    rows = []
    for entry in table.pop("row", []):
        where = f"{path}, row {entry.get('name')!r}"
        entry["load"] = load | entry.get("load", {})
        entry["settings"] = settings + entry.get("settings", [])
        row = build(Row, where, entry, servers=servers, **common)
        if unknown := sorted(set(row.load) - LOAD):
            raise Wrong(f"{where}: no load of `fanwire bench`: {', '.join(unknown)}")
        if unknown := sorted(set(row.servers) - set(SERVERS)):
            raise Wrong(f"{where}: no such server: {', '.join(unknown)}")
        if row.ladder and set(row.ladder) != set(row.servers):
            raise Wrong(f"{where}: a ladder names the rates of each of its servers: {', '.join(row.servers)}")
        if not (row.rounds > 0 and row.duration_s > 0):
            raise Wrong(f"{where}: needs rounds and duration_s")
        rows.append(row)
    judges = [build(Judge, f"{path}, judge {entry.get('what')!r}", entry) for entry in table.pop("judge", [])]
    try:
        scenario = Scenario(name=name, rows=rows, judges=judges, title=table.pop("title"), about=table.pop("about"),
                            figures=table.pop("figures", []), chart=table.pop("chart"))
    except KeyError as missing:
        raise Wrong(f"{path}: {missing} is missing") from missing
    if table:
        raise Wrong(f"{path}: unknown: {', '.join(table)}")
    check(scenario, path, figures, columns)
    return scenario


def check(scenario, path, figures, columns):
    """Whatever one part of the file says of another is there."""
    names = [row.name for row in scenario.rows]
    if not names or len(set(names)) != len(names):
        raise Wrong(f"{path}: rows need names of their own")
    if unknown := sorted(set(scenario.figures) - set(columns)):
        raise Wrong(f"{path}: no column of a table: {', '.join(unknown)}; there are {', '.join(columns)}")
    for figure in [scenario.chart.get("figure"), *(judge.figure for judge in scenario.judges)]:
        if figure not in figures:
            raise Wrong(f"{path}: no figure {figure!r}; there are {', '.join(figures)}")
    for row in scenario.chart.get("rows", []):
        if row not in names:
            raise Wrong(f"{path}, chart: no row {row!r}")
    for judge in scenario.judges:
        where = f"{path}, judge {judge.what!r}"
        if judge.must_at_most is None and judge.must_at_least is None:
            raise Wrong(f"{where}: needs must_at_most or must_at_least")
        if judge.neighbours:
            if not any(row.series == judge.neighbours for row in scenario.rows):
                raise Wrong(f"{where}: no row in series {judge.neighbours!r}")
            continue
        for row, server in [(judge.row, judge.server), (judge.over_row or judge.row, judge.over or judge.server)]:
            if row not in names:
                raise Wrong(f"{where}: no row {row!r}")
            if server not in scenario.row(row).servers:
                raise Wrong(f"{where}: row {row!r} is not measured with {server!r}")


def quick(scenario):
    """The same, small and short: one round of half a second and few connections."""
    for row in scenario.rows:
        row.load = {key: min(value, QUICK_MAX[key]) if key in QUICK_MAX else value for key, value in row.load.items()}
        row.load["topics"] = min(row.load.get("topics", 1), row.load.get("connections", 1))
        row.ladder = {server: [min(rates[0], QUICK_MAX["rate"])] for server, rates in row.ladder.items()}
        row.rounds, row.warmup_s, row.duration_s = 1, 0.1, 0.5
    return scenario
