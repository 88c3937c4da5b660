"""The results of `decoding_benchmark.py` as a table and as a picture."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table


SHARES = ("share_outside_passes", "share_grammar_and_trees", "share_of_copy_bandwidth")


def timings_table(results: dict[str, Any]) -> Table:
    """Milliseconds per call, the ways of a size and batch side by side, in 80 columns."""
    title = f"Decoding, {results['machine']['device']}, {results['dtype']}, {results['actions']}"
    caption = "out, tree, copy: % outside passes, % grammar and trees, % of a copy's bandwidth"
    table = Table(title=title, box=None, padding=(0, 0, 0, 2), caption=caption)
    for column in ("way", "ms", "p95", "times", "passes", "out", "tree", "copy"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for entry in results["timings"]:
        groups.setdefault((entry["size"], entry["horizon"], entry["rows"]), []).append(entry)
    for (size, horizon, rows), entries in groups.items():
        if table.row_count:
            table.add_row()
        table.add_row(f"[bold]{size}, batch {rows}, horizon {horizon}")
        for entry in entries:
            table.add_row(
                ("" if entry["representation"] == "string" else "bins, ") + entry["way"],
                f"{entry['median_ms']:.0f}",
                f"{entry['p95_ms']:.0f}",
                f"{entry['times_faster_than_generate']:.1f}",
                f"{entry['forward_passes']:.1f}",
                *(f"{100 * entry[name]:.1f}" if name in entry else "" for name in SHARES),
            )
    return table


def draw_timings(runs: list[dict[str, Any]], path: Path) -> None:
    """Bars: milliseconds per action of each way, one panel per size; batch 1, horizon 1, runs of one machine."""
    entries = [entry for run in runs for entry in run["timings"] if (entry["rows"], entry["horizon"]) == (1, 1)]
    sizes = sorted({(round(entry["parameters"] / 1e6), entry["size"]) for entry in entries})
    columns = 2 if len(sizes) == 4 else len(sizes)
    lines = len(sizes) // columns
    figure = Figure(figsize=(5.2 * columns, 3.2 * lines + 0.2), layout="constrained")
    for axis, (millions, size) in zip(figure.subplots(lines, columns, squeeze=False).flat, sizes, strict=True):
        draw_size(axis, [entry for entry in entries if entry["size"] == size][::-1])
        axis.set_title(f"{millions:,} million parameters, random weights", fontsize=10)
    dtype = runs[0]["dtype"].removeprefix("torch.")
    figure.suptitle(f"One 7-D action on {runs[0]['machine']['device']}, {dtype}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def draw_size(axis: Any, entries: list[dict[str, Any]]) -> None:
    """One panel; on a GPU passes are plain, or recorded as CUDA graphs."""
    for entry in entries:
        digits, way = entry["representation"] == "string", entry["way"]
        if way != "generate":
            engine = way.removesuffix(", static") if digits else "this engine"
            way = engine + (", CUDA graphs" if way.endswith("static") else "")
        name = f"{'digits' if digits else '7 bins'}: {way}"
        color = "#8c8c8c" if way == "generate" else "#2a7f9e"
        axis.barh(name, entry["median_ms"], color=color, alpha=1.0 if digits else 0.55)
        words = f" {entry['median_ms']:,.0f} ms, {entry['forward_passes']:g} passes"
        axis.text(entry["median_ms"], name, words, va="center", fontsize=8)
    axis.set_xlim(0, 1.45 * max(entry["median_ms"] for entry in entries))
    axis.set_xlabel("ms per action (median)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
