"""A report's figures as bars: ours with their intervals, the paper's as a dashed line that says so."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gen_vla.evaluation.report.tables import short_name


DASHED = {"color": "black", "linestyle": "--", "linewidth": 2}


def draw_tables(report: dict[str, Any], folder: Path) -> list[Path]:
    """A PNG for every table of which something was measured: a group of bars per column, a bar per model of ours."""
    paths = []
    for table in report["tables"]:
        if any(figure["value"] is not None for row in table["rows"] for figure in row["ours"]):
            paths.append(folder / f"{table['name'].lower().replace(' ', '-')}.png")
            draw_table(table, paths[-1])
    return paths


def draw_table(table: dict[str, Any], path: Path) -> None:
    scale, measured = 100 if table["unit"] == "%" else 1, [row for row in table["rows"] if row["ours"]]
    columns = list(dict.fromkeys(row["task"] for row in measured))
    series: dict[str, list[tuple[int, Any]]] = {}
    for row in measured:
        for figure in row["ours"]:
            if figure["value"] is not None:
                seeds = ", mean over seeds" if "seeds" in figure else ""
                name = f"{short_name(figure['model'])}, {figure['benchmark']}{seeds}"
                series.setdefault(name, []).append((columns.index(row["task"]), figure))
    drawing = Figure(figsize=(max(6.0, 1.5 + 1.3 * len(columns)), 4.4), layout="constrained")
    axes, width = drawing.subplots(), 0.8 / len(series)
    for number, (name, bars) in enumerate(series.items()):
        shift = (number - (len(series) - 1) / 2) * width
        bar = axes.bar([at + shift for at, _ in bars], [scale * f["value"] for _, f in bars], 0.92 * width, label=name)
        axes.bar_label(bar, fmt="%.3g", label_type="center", color="white")
        for place, figure in bars:
            dots = [scale * run["value"] for run in figure.get("seeds", ())]
            axes.plot([place + shift] * len(dots), dots, ".", color="black")
            if figure["interval"] is not None:
                axes.plot([place + shift] * 2, [scale * bound for bound in figure["interval"]], color="black")
    printed = [row for row in measured if row["paper"] is not None]
    for row in printed:
        place = columns.index(row["task"])
        axes.plot((place - 0.4, place + 0.4), (row["paper"], row["paper"]), **DASHED)
    if names := sorted({f"{row['model']} {row['paper_size']}" for row in printed}):
        axes.plot([], [], **DASHED, label=f"printed in the paper: {', '.join(names)} ({table['benchmark']})")
    axes.set_xticks(range(len(columns)), [label.replace(": ", ":\n") for label in columns])
    axes.set(ylabel=table["unit"], title=f"{table['name']}: {table['title']}", ylim=(0, None))
    drawing.legend(loc="outside lower center", fontsize=9)
    drawing.savefig(path, dpi=130)
