"""A scenario's chart: bars of one figure by row and server, or lines of a series."""

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "fanwire", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
                            "axes.spines.right": False})

from matplotlib import pyplot  # noqa: E402  (after the backend is chosen)

COLOURS = {"fanwire": "#d1495b", "bare": "#6c757d", "nats": "#00798c", "nchan": "#edae49", "ws": "#66a182", "centrifugo": "#5d5179"}


def spread(result, figure, scale):
    """Median, and its distance to the least and the largest round."""
    values = sorted(report[figure] * scale for report in result.reports if report.get(figure) is not None)
    if not values:
        return None
    middle = result.median(figure) * scale
    return middle, middle - values[0], values[-1] - middle


def draw(path, scenario, results, servers):
    chart = scenario.chart
    draw_kind = {"bars": bars, "lines": lines}[chart.get("kind", "bars")]
    figure = draw_kind(scenario, results, servers, chart["figure"], chart.get("scale", 1), chart)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    # matplotlib ends lines with blanks.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def bars(scenario, results, servers, name, scale, chart):
    rows = [row for row in scenario.rows if row.name in chart.get("rows", [row.name])]
    wanted = [(row, server) for row in rows for server in row.servers]
    shown = [(row, server, spread(results[row.name, server], name, scale)) for row, server in wanted]
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.32 * len(shown) + 0.3 * len(rows)), layout="constrained")
    at, ticks, last = 0, [], None
    for row, server, value in shown:
        at += 1.6 if last not in (None, row.name) else 1
        last = row.name
        ticks.append((at, f"{row.name} · {servers[server].title}" if len(rows) > 1 else servers[server].title))
        if value is None:
            axes.text(0.01, at, "not measured", transform=axes.get_yaxis_transform(), va="center", color="#888888")
            continue
        middle, below, above = value
        axes.barh(at, middle, xerr=[[below], [above]], color=COLOURS[server], error_kw={"elinewidth": 0.8})
        axes.annotate(f" {middle:,.0f}" if middle >= 100 else f" {middle:.3g}", (middle + above, at), va="center", fontsize=8)
    axes.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    axes.invert_yaxis()
    axes.set_xlabel(chart["label"])
    if chart.get("log"):
        axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_title(scenario.title, loc="left", fontsize=10)
    return figure


def lines(scenario, results, servers, name, scale, chart):
    series = list(dict.fromkeys(row.series for row in scenario.rows if row.series))
    figure, panels = pyplot.subplots(1, len(series), figsize=(3 * len(series) + 0.5, 3), sharey=True, layout="constrained", squeeze=False)
    for axes, one in zip(panels[0], series):
        rows = [row for row in scenario.rows if row.series == one]
        for server in dict.fromkeys(server for row in rows for server in row.servers):
            points = [(row.x, spread(results[row.name, server], name, scale)) for row in rows if server in row.servers]
            points = [(x, value) for x, value in points if value is not None]
            if points:
                axes.errorbar([x for x, _ in points], [v[0] for _, v in points],
                              yerr=[[v[1] for _, v in points], [v[2] for _, v in points]], marker="o", markersize=4, linewidth=1.2,
                              elinewidth=0.8, color=COLOURS[server], label=servers[server].title)
        axes.set_xscale("log")
        axes.set_xticks([row.x for row in rows], [f"{row.x:,.0f}" for row in rows])
        axes.minorticks_off()
        axes.set_xlabel(one)
        axes.set_ylim(bottom=0)
    panels[0][0].set_ylabel(chart["label"])
    figure.suptitle(scenario.title, fontsize=10)
    return figure
