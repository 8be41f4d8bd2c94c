"""Draws the panels of the Grafana dashboard, each by its own queries, asked of a Prometheus.

    python3 deploy/test/dashboard_picture.py --prometheus URL --start UNIX --end UNIX --out FILE

Grafana is not at hand where this runs: titles, queries, units and places are the dashboard's, the
strokes are matplotlib's.
"""

import argparse
import json
import re
import urllib.parse
import urllib.request
from datetime import UTC, datetime

import matplotlib

matplotlib.use("agg")
import matplotlib.dates as dates
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from monitoring import DASHBOARD, plain

POINTS = 120
# A unit of the dashboard's grid, in inches.
WIDTH, HEIGHT = 0.72, 0.34


def ask(prometheus, query, start, end):
    arguments = {"query": query, "start": start, "end": end, "step": max(1, (end - start) // POINTS)}
    with urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(arguments)}") as answer:
        return json.load(answer)["data"]["result"]


def scaled(value, unit):
    """A value as people read it, in the unit of its panel."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s" and not value:
        return "0"
    if unit == "s":
        for limit, factor, name in [(1e-3, 1e6, "µs"), (1, 1e3, "ms"), (120, 1, "s"), (7200, 1 / 60, "min"), (172800, 1 / 3600, "h")]:
            if abs(value) < limit:
                return f"{value * factor:.3g} {name}"
        return f"{value / 86400:.3g} d"
    if unit == "bytes":
        return f"{value / 2**20:.4g} MiB"
    text = f"{value / 1000:.4g} k" if abs(value) >= 10000 else f"{value:.4g}"
    return text + ("/s" if unit == "reqps" else "")


def name_of(legend, labels):
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend)


def series(panel, prometheus, start, end):
    for target in panel["targets"]:
        for found in ask(prometheus, plain(target["expr"], rate="20s"), start, end):
            points = [(datetime.fromtimestamp(at, UTC), float(value)) for at, value in found["values"]]
            points = [(at, value) for at, value in points if value == value]
            if any(value for _, value in points): # what never happened only fills the legend
                yield name_of(target["legendFormat"], found["metric"]), points


def draw(axes, panel, found):
    unit = panel["fieldConfig"]["defaults"].get("unit", "none")
    axes.set_title(panel["title"], loc="left", fontsize=8, fontweight="bold")
    for spine in axes.spines.values():
        spine.set_color("#cccccc")
    if panel["type"] == "stat":
        axes.set_xticks([])
        axes.set_yticks([])
        for _, points in found:
            times, values = zip(*points)
            axes.fill_between(times, values, color="#5794f2", alpha=0.15, linewidth=0)
            axes.set_ylim(0, max(values) * 2.5 or 1)
        text = scaled(found[0][1][-1][1], unit) if found else "none"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=15)
        return
    if not found:
        axes.text(0.5, 0.5, "none in this run", transform=axes.transAxes, ha="center", va="center", fontsize=8, color="#888888")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    axes.margins(y=0.25) # room for the legend
    if panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal":
        moments = sorted({at for _, points in found for at, _ in points})
        rows = [[dict(points).get(at, 0) for at in moments] for _, points in found]
        axes.stackplot(moments, rows, labels=[name for name, _ in found], alpha=0.5)
    else:
        for name, points in found:
            axes.plot(*zip(*points), label=name, linewidth=1)
    axes.set_ylim(bottom=0, top=panel["fieldConfig"]["defaults"].get("max"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: scaled(value, unit)))
    axes.xaxis.set_major_locator(dates.AutoDateLocator(maxticks=4))
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=5.5, loc="upper left", framealpha=0.6)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--prometheus", required=True)
    arguments.add_argument("--start", type=int, required=True)
    arguments.add_argument("--end", type=int, required=True)
    arguments.add_argument("--out", required=True)
    it = arguments.parse_args()

    panels = json.loads(DASHBOARD.read_text())["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(24 * WIDTH, rows * HEIGHT), facecolor="white")
    empty = []
    for panel in panels:
        place = panel["gridPos"]
        left, top = place["x"] / 24, 1 - place["y"] / rows
        if panel["type"] == "row":
            figure.text(left + 0.005, top - 0.8 / rows, panel["title"], fontsize=10, fontweight="bold", color="#333333")
            continue
        width, height = place["w"] / 24, place["h"] / rows
        axes = figure.add_axes((left + 0.038, top - height + 0.9 / rows, width - 0.05, height - 1.9 / rows))
        found = list(series(panel, it.prometheus, it.start, it.end))
        draw(axes, panel, found)
        axes.set_xlim(datetime.fromtimestamp(it.start, UTC), datetime.fromtimestamp(it.end, UTC))
        if not found:
            empty.append(panel["title"])
    figure.savefig(it.out, dpi=80)
    print(f"{it.out}: {len(panels)} panels; nothing in: {', '.join(empty) or 'none'}")


if __name__ == "__main__":
    main()
