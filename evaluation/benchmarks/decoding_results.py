"""The results of `decoding_benchmark.py` as a table and as a picture."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from gen_vla.evaluation.tables import percent, results_table


SHARES = ("share_outside_passes", "share_of_copy_bandwidth")


def timings_table(results: dict[str, Any]) -> Table:
    """Milliseconds per call, the ways of a size and batch side by side, in 80 columns."""
    rows, shown = [], None
    for entry in results["timings"]:
        group = f"{entry['size']}, batch {entry['rows']}, horizon {entry['horizon']}"
        if group != shown:
            rows += [*([()] if rows else []), (f"[bold]{group}",)]
            shown = group
        times = (f"{entry['median_ms']:.0f}", f"{entry['p95_ms']:.0f}", f"{entry['times_faster_than_generate']:.1f}")
        shares = (percent(entry.get(name), 1) for name in SHARES)
        name = ("" if entry["representation"] == "string" else "bins, ") + entry["way"]
        rows.append((name, *times, f"{entry['forward_passes']:.1f}", *shares))
    title = f"Decoding, {results['machine']['device']}, {results['dtype']}, {results['actions']}"
    caption = "out, copy: % outside passes, % of a copy's bandwidth"
    columns = ("way", "ms", "p95", "times", "passes", "out", "copy")
    return results_table(title, columns, rows, no_wrap=True, box=None, padding=(0, 0, 0, 2), caption=caption)


def draw_timings(runs: list[dict[str, Any]], path: Path) -> None:
    """Bars: milliseconds per action of each way, one panel per size; batch 1, horizon 1, runs of one machine."""
    entries = [entry for run in runs for entry in run["timings"] if (entry["rows"], entry["horizon"]) == (1, 1)]
    sizes = sorted({(round(entry["parameters"] / 1e6), entry["size"]) for entry in entries})
    columns = 2 if len(sizes) == 4 else len(sizes)
    lines = len(sizes) // columns
    figure = Figure(figsize=(5.2 * columns, 3.2 * lines + 0.2), layout="constrained")
    for axis, (millions, size) in zip(figure.subplots(lines, columns, squeeze=False).flat, sizes, strict=True):
        for entry in (entry for entry in entries[::-1] if entry["size"] == size):
            digits, way = entry["representation"] == "string", entry["way"]
            if way != "generate":
                engine = way.removesuffix(", static") if digits else "this engine"
                way = engine + (", CUDA graphs" if way.endswith("static") else "")
            name = f"{'digits' if digits else '7 bins'}: {way}"
            bar = axis.barh(name, entry["median_ms"], color="grey" if way == "generate" else "teal")
            axis.bar_label(bar, [f" {entry['median_ms']:,.0f} ms, {entry['forward_passes']:.3g} passes"], fontsize=8)
        axis.margins(x=0.7)
        axis.set_xlabel("ms per action (median)")
        axis.set_title(f"{millions:,} million parameters, random weights", fontsize=10)
    dtype = runs[0]["dtype"].removeprefix("torch.")
    figure.suptitle(f"One 7-D action on {runs[0]['machine']['device']}, {dtype}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
