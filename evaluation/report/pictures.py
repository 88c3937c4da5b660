"""A report's figures as bars: ours with their intervals, the paper's as a dashed line that says so."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from gen_vla.evaluation.report.tables import short_name


matplotlib.use("Agg")
import matplotlib.pyplot as plt


COLOURS = ("#d1495b", "#2e6f95", "#3a7d44", "#edae49", "#7b5ea7", "#8c8c8c")
DASHED = {"color": "black", "linestyle": (0, (2, 1)), "linewidth": 2}


def draw_tables(report: dict[str, Any], folder: Path) -> list[Path]:
    """A PNG for every table of which something was measured: a group of bars per column, a bar per model of ours."""
    paths = []
    for table in report["tables"]:
        if any(figure["value"] is not None for row in table["rows"] for figure in row["ours"]):
            paths.append(folder / f"{table['name'].lower().replace(' ', '-')}.png")
            draw_table(table, paths[-1])
    return paths


def draw_table(table: dict[str, Any], path: Path) -> None:
    """One table as bars."""
    columns = list(dict.fromkeys(row["task"] for row in table["rows"] if row["ours"]))
    series: dict[str, dict[str, tuple[Any, Any]]] = {}
    for row in table["rows"]:
        for figure in row["ours"]:
            if figure["value"] is not None:
                seeds = ", mean over seeds" if "seeds" in figure else ""
                name = f"{short_name(figure['model'])}, {figure['benchmark']}{seeds}"
                series.setdefault(name, {})[row["task"]] = (figure, row)
    percent = table["unit"] == "%"
    figure, axes = plt.subplots(figsize=(max(6.0, 1.5 + 1.3 * len(columns)), 4.4), layout="constrained")
    tallest = max(measured["value"] for cells in series.values() for measured, _ in cells.values())
    axes.set_ylim(0, 105 if percent else 1.15 * tallest)
    width = 0.8 / len(series)
    for index, (name, cells) in enumerate(series.items()):
        shift, colour = (index - (len(series) - 1) / 2) * width, COLOURS[index % len(COLOURS)]
        axes.bar([], [], color=colour, label=name)
        for task, (measured, row) in cells.items():
            _draw_bar(axes, columns.index(task) + shift, width, colour, measured, row, 100 if percent else 1)
    axes.set_xlim(-0.8, len(columns) - 0.2)
    axes.set_xticks(range(len(columns)), [label.replace(": ", ":\n") for label in columns])
    axes.set_ylabel(table["unit"])
    axes.set_title(f"{table['name']}: {table['title']}", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    printed = [row for row in table["rows"] if row["ours"] and row["paper"] is not None]
    if names := sorted({f"{row['model']} {row['paper_size']}" for row in printed}):
        axes.plot([], [], **DASHED, label=f"printed in the paper: {', '.join(names)} ({table['benchmark']})")
    long = any(len(label) > 45 for label in axes.get_legend_handles_labels()[1])  # two of those are cut off
    figure.legend(loc="outside lower center", ncols=1 if long else 2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_bar(axes: Any, place: float, width: float, colour: str, measured: Any, row: Any, scale: float) -> None:
    """A bar with its value and interval, a dot for each seed of a mean, a dashed line at what the paper prints."""
    height = scale * measured["value"]
    axes.bar(place, height, 0.92 * width, color=colour)
    inside = height > 0.08 * axes.get_ylim()[1]
    ink = {"color": "white" if inside else colour, "fontsize": 8, "ha": "center", "va": "bottom"}
    axes.annotate(f"{height:.3g}", (place, 0 if inside else height), (0, 3), textcoords="offset points", **ink)
    seeds = [scale * run["value"] for run in measured.get("seeds", ())]
    axes.scatter(np.linspace(place - width / 4, place + width / 4, len(seeds)), seeds, 9, "#111111", zorder=3)
    if measured["interval"] is not None:
        low, high = (scale * bound for bound in measured["interval"])
        spread = [[max(0.0, height - low)], [max(0.0, high - height)]]
        axes.errorbar(place, height, yerr=spread, color="#333333", capsize=3, linewidth=1)
    if row["paper"] is not None:
        axes.plot((place - width / 2, place + width / 2), (row["paper"], row["paper"]), **DASHED)
