"""What the figures must be, and whether they are."""

import dataclasses
import statistics


@dataclasses.dataclass
class Verdict:
    """A judge's word. `value` is None where there is nothing to judge; that is a must missed."""

    what: str
    value: float | None
    unit: str
    bound: str
    must: bool
    aim: bool | None
    detail: str = ""

    def __str__(self):
        value = "not measured" if self.value is None else f"{number(self.value)} {self.unit}".strip()
        word = "MISSED" if not self.must else "met" if self.aim is None else "met, aim met" if self.aim else "met, aim missed"
        return f"{self.what}: {value}{self.detail} ({self.bound}): {word}"


def number(value):
    """Four digits that say something."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def ratio(results, judge):
    """Median of the rounds' own ratios where both have the same rounds, else the ratio of the medians."""
    mine = results[judge.row, judge.server]
    other = results[judge.over_row or judge.row, judge.over or judge.server]
    pairs = [(a.get(judge.figure), b.get(judge.figure)) for a, b in zip(mine.reports, other.reports)]
    ratios = [a / b for a, b in pairs if a is not None and b]
    return statistics.median(ratios) if ratios else None


def worst_step(scenario, results, judge):
    """Between neighbours of a series, by a figure of which more is better: how many times less there is, and from where to where."""
    rows = [row for row in scenario.rows if row.series == judge.neighbours and judge.server in row.servers]
    values = [(row, results[row.name, judge.server].median(judge.figure)) for row in rows]
    if len(values) < 2 or not all(value for _, value in values):
        return None, ""
    steps = [(a / b, f" from {first.x:g} to {then.x:g}") for (first, a), (then, b) in zip(values, values[1:])]
    return max(steps)


def asked_for(scenario, judge, results):
    """Whether all that it needs was to be measured: not if this run has only some of the rows or servers."""
    if judge.neighbours:
        return any(row.series == judge.neighbours and judge.server in row.servers for row in scenario.rows)
    return {
        (judge.row, judge.server), (judge.over_row or judge.row, judge.over or judge.server)} <= results.keys()


def judge_all(scenario, results):
    """A verdict for each judge that this run is for."""
    verdicts = []
    for judge in scenario.judges:
        if not asked_for(scenario, judge, results):
            continue
        detail, unit, value = "", judge.unit, None
        if judge.neighbours:
            (value, detail), unit = worst_step(scenario, results, judge), "×"
        elif judge.over or judge.over_row:
            value, unit = ratio(results, judge), "×"
        else:
            value = results[judge.row, judge.server].median(judge.figure)
            value = None if value is None else value * judge.scale
        verdicts.append(Verdict(
            what=judge.what, value=value, unit=unit, detail=detail, bound=bound(judge),
            must=within(value, judge.must_at_most, judge.must_at_least),
            aim=None if judge.aim_at_most is None and judge.aim_at_least is None
            else within(value, judge.aim_at_most, judge.aim_at_least)))
    return verdicts


def within(value, most, least):
    return value is not None and (most is None or value <= most) and (least is None or value >= least)


def bound(judge):
    unit = "×" if judge.neighbours or judge.over or judge.over_row else judge.unit
    parts = [f"{word} {sign} {number(value)} {unit}".strip() for word, sign, value in [
        ("must", "≤", judge.must_at_most), ("must", "≥", judge.must_at_least),
        ("aim", "≤", judge.aim_at_most), ("aim", "≥", judge.aim_at_least)] if value is not None]
    return ", ".join(parts)
