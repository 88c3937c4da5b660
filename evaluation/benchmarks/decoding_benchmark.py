"""What an action costs on this machine: milliseconds, passes, bytes and memory of each way of decoding, side by side.

Decides: what is compared and how it is summed up. Refuses to know: how decoding works (`modeling/tree_decoding.py`).

    gen-vla evaluate decoding --sizes mini,100m --bridge ../shared/data/octo_bridge_debug --picture decoding.png
    gen-vla evaluate decoding --sizes "" --bridge ../shared/data/octo_bridge_debug        # passes only

Compared, in turns within one run, on random weights, which are as fast as any:

    generate         plain constrained decoding, one token per pass: `generate` with the LogitsProcessor
    tree, N nodes    tree decoding, the same tokens
    ... static       the same with shapes that repeat; on a GPU as CUDA graphs
    bins, generate   the 7-token baseline of OpenVLA, and the same through our engine

How many passes a tree saves depends on what is written, and random weights write strings no robot would. While it is
timed, tree decoding therefore follows recorded actions (the model computes all it would, its choice is overruled),
with the step before as a hint. Of two calls in a row, on other actions, the second is timed: a control loop makes
many. That both ways choose the same tokens is checked apart, with nothing overruled.
"""

import json
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from rich.table import Table
from tqdm import tqdm

from gen_vla.evaluation.benchmarks.decoding_agreement import compared
from gen_vla.evaluation.benchmarks.decoding_limits import measure_limits
from gen_vla.evaluation.benchmarks.decoding_passes import passes_of
from gen_vla.evaluation.benchmarks.decoding_replay import actions_to_write, recorded_actions, replaying, target_ids
from gen_vla.evaluation.benchmarks.random_models import BRIDGE, build_random, random_inputs
from gen_vla.modeling.action_statistics import histogram
from gen_vla.modeling.static_passes import recordings_of
from gen_vla.training.provenance.origin import describe_machine


matplotlib.use("Agg")
from matplotlib import pyplot as plt


@dataclass(frozen=True)
class Way:
    """One way of decoding: `nodes` 0 is `generate`."""

    nodes: int
    static: bool = False

    @property
    def name(self) -> str:
        if not self.nodes:
            return "generate"
        return f"tree, {self.nodes} node{'s' * (self.nodes > 1)}{', static' * self.static}"


def synchronize(model: Any) -> None:
    """Waits until the model's device is idle."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def time_ways(
    model: Any, episodes: list[np.ndarray], rows: int, ways: list[Way], repeats: int, copy_bandwidth: float
) -> list[dict[str, Any]]:
    """Each way of decoding in turns, so that whatever else the machine does falls on all alike."""
    inputs = random_inputs(model, rows)
    horizon = model.config.action_config["horizon"]
    runs: dict[Way, list[dict[str, Any]]] = {way: [] for way in ways}
    for repeat in tqdm(range(repeats + 1), desc=f"{rows} x {horizon}", unit="round", leave=False):
        before, actions = actions_to_write(episodes, horizon, rows, repeat)
        for way in ways:
            if way.nodes:  # a control loop calls the same way again and again
                timed(model, inputs, way, *actions_to_write(episodes, horizon, rows, repeat + 1))
            run = timed(model, inputs, way, before, actions)
            if repeat:  # the first round warms up
                runs[way].append(run)
    base = statistics.median(run["ms"] for run in runs[ways[0]])
    moved = bytes_per_pass(model, rows, inputs["input_ids"].shape[1])
    return [summary(way, runs[way], rows, base, moved, copy_bandwidth) for way in ways]


def timed(model: Any, inputs: dict[str, Any], way: Way, before: np.ndarray, actions: np.ndarray) -> dict[str, Any]:
    """One call of `predict_actions`, the device idle before and after."""
    targets = [target_ids(model.action_grammar, action) for action in actions]
    options = {"cache_implementation": "static" if way.static else "dynamic"} if way.nodes else {}
    synchronize(model)
    with replaying(targets) as stopwatch:
        began = time.perf_counter()
        prediction = model.predict_actions(
            **inputs, unnorm_key="random", tree_nodes=way.nodes, previous=before if way.nodes else None, **options
        )
        synchronize(model)
        milliseconds = 1000 * (time.perf_counter() - began)
    passes = stopwatch.milliseconds()
    return {
        "ms": milliseconds,
        "passes": prediction.forward_passes,
        "nodes": prediction.tree_nodes,
        "prefill": passes[0] if passes else None,
        "decode": passes[1:],
        "outside": 1 - sum(passes) / milliseconds if passes else None,
        "choosing": stopwatch.choosing / milliseconds,
    }


def summary(
    way: Way, runs: list[dict[str, Any]], rows: int, base: float, moved: int, copy_bandwidth: float
) -> dict[str, Any]:
    """The timed calls of one way as figures."""
    times = [run["ms"] for run in runs]
    entry = {
        "way": way.name,
        "rows": rows,
        "median_ms": round(statistics.median(times), 2),
        "p95_ms": round(float(np.quantile(times, 0.95)), 2),
        "times_faster_than_generate": round(base / statistics.median(times), 2),
        "forward_passes": round(statistics.mean(run["passes"] for run in runs), 2),
    }
    decode = [milliseconds for run in runs for milliseconds in run["decode"]]
    if decode:
        entry |= {
            "nodes_per_pass_and_row": round(statistics.mean(run["nodes"] / run["passes"] for run in runs) / rows, 1),
            "prefill_ms": round(statistics.median(run["prefill"] for run in runs), 2),
            "decode_pass_ms": round(statistics.median(decode), 2),
            "share_outside_passes": round(statistics.median(run["outside"] for run in runs), 4),
            "share_grammar_and_trees": round(statistics.median(run["choosing"] for run in runs), 4),
            "gigabytes_per_decode_pass": round(moved / 1e9, 4),
            "share_of_copy_bandwidth": round(moved / statistics.median(decode) * 1e3 / copy_bandwidth, 3),
        }
    return entry


def bytes_per_pass(model: Any, rows: int, length: int) -> int:
    """What a decode pass reads at least: the language model's weights, and keys and values of `length` slots."""
    text = model.config.text_config
    layers = model.model.language_model.layers
    weights = sum(parameter.numel() * parameter.element_size() for parameter in layers.parameters())
    heads = text.num_key_value_heads * (
        getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    )
    return weights + 2 * rows * length * text.num_hidden_layers * heads * model.dtype.itemsize


def measure_copy_bandwidth(device: str) -> float:
    """Bytes per second that a plain copy reads and writes."""
    source = torch.ones(2**28 if device == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(6):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * source.numel() * source.element_size() / min(seconds[1:])


def compare_choices(model: Any, nodes: int, pictures: int) -> dict[str, Any]:
    """Whether tree decoding chooses as `generate` does, nothing overruled, on random pictures.

    In float32 it does. In half precision a sum's rounding depends on the shape of the batch, so that near-ties can
    fall either way: how many actions differ, and how probable the two choices were where they first did.
    """
    pairs = []
    for seed in range(pictures):
        inputs = random_inputs(model, 1, seed)
        plain = model.predict_actions(**inputs, unnorm_key="random", tree_nodes=0)
        tree = model.predict_actions(**inputs, unnorm_key="random", tree_nodes=nodes)  # static where it is the default
        pairs.append((plain, 0, tree, 0))
    found = compared(pairs)
    return {
        "pictures": pictures,
        "same_actions": found["same"],
        "largest_gap_where_different": found["largest_gap_of_probabilities"],
    }


def run_benchmark(
    sizes: list[str],
    rows: list[int],
    nodes: list[int],
    repeats: int,
    bridge: Path | None,
    device: str,
    dtype: torch.dtype,
    horizons: list[int] | None = None,
) -> dict[str, Any]:
    """Everything asked for, as it is written to JSON; batches larger than 1 with the first horizon only."""
    horizons = horizons or [1]
    episodes = recorded_actions(bridge)
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "device": device,
        "dtype": str(dtype),
        "weights": "random",
        "actions": "recorded (Bridge)" if bridge is not None else "random walks",
        "timings": [],
    }
    if bridge is not None:
        results["passes_on_bridge"] = [entry for count in (8, 24, 40, 64, 128) for entry in passes_of(episodes, count)]
    if not sizes:
        return results
    results["copy_gigabytes_per_second"] = round((bandwidth := measure_copy_bandwidth(device)) / 1e9, 1)
    for size in sizes:
        for horizon in horizons:
            for representation in ("string", "bins"):
                counts = histogram(np.concatenate(episodes), {**BRIDGE, "q01": [-1.0] * 7, "q99": [1.0] * 7})
                model = build_random(size, device, dtype, representation, horizon, counts)
                labels = {
                    "size": size,
                    "parameters": sum(parameter.numel() for parameter in model.parameters()),
                    "representation": representation,
                    "horizon": horizon,
                }
                for count in rows if horizon == horizons[0] else rows[:1]:
                    # A batch does best with fewer nodes per row: those of the default.
                    ways = ways_of(representation, nodes if count == 1 else [model.default_tree_nodes(count)], device)
                    for entry in time_ways(model, episodes, count, ways, repeats, bandwidth):
                        results["timings"].append({**labels, **entry, "peak_memory_gb": peak_memory(device)})
                        print(json.dumps(results["timings"][-1]), flush=True)
                if representation == "string" and horizon == horizons[0]:
                    choices = compare_choices(model, nodes[0], 20 if size == "mini" else 5)
                    results.setdefault("choices", []).append({"size": size, **choices})
                    if device == "cuda" and all(plan.recorded for plan in recordings_of(model).plans.values()):
                        results.setdefault("limits", []).append({"size": size, **limits_of(model, bandwidth)})
                del model
    return results


def limits_of(model: Any, copy_bandwidth: float) -> dict[str, Any]:
    """What a recorded decode pass spends its time on."""
    inputs = random_inputs(model, 1)
    moved = bytes_per_pass(model, 1, inputs["input_ids"].shape[1])
    return measure_limits(model, inputs, floor_ms=1e3 * moved / copy_bandwidth)


def ways_of(representation: str, nodes: list[int], device: str) -> list[Way]:
    """What is compared; static passes only where they can be recorded, and plain ones beside them once."""
    counts = nodes if representation == "string" else [1]
    if device != "cuda":
        return [Way(0), *(Way(count) for count in counts)]
    return [Way(0), Way(counts[len(counts) // 2]), *(Way(count, static=True) for count in counts)]


def peak_memory(device: str) -> float:
    """Gigabytes: of the GPU, or of this process so far."""
    if device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


def timings_table(results: dict[str, Any]) -> Table:
    """Milliseconds per call, the ways of a size and batch side by side, in 80 columns; in percent, what of a call is
    outside passes, what is grammar and trees, and what of the copy bandwidth passes use."""
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
            names = ("share_outside_passes", "share_grammar_and_trees", "share_of_copy_bandwidth")
            table.add_row(
                ("" if entry["representation"] == "string" else "bins, ") + entry["way"],
                f"{entry['median_ms']:.0f}",
                f"{entry['p95_ms']:.0f}",
                f"{entry['times_faster_than_generate']:.1f}",
                f"{entry['forward_passes']:.1f}",
                *("" if entry.get(name) is None else f"{100 * entry[name]:.1f}" for name in names),
            )
    return table


def draw_timings(runs: list[dict[str, Any]], path: Path) -> None:
    """Bars: milliseconds per action of each way, one panel per size; batch 1, horizon 1, runs of one machine."""
    entries = [entry for run in runs for entry in run["timings"] if (entry["rows"], entry["horizon"]) == (1, 1)]
    sizes = sorted({(round(entry["parameters"] / 1e6), entry["size"]) for entry in entries})
    columns = 2 if len(sizes) == 4 else len(sizes)
    lines = len(sizes) // columns
    figure, axes = plt.subplots(
        lines, columns, figsize=(5.2 * columns, 3.2 * lines + 0.2), squeeze=False, layout="constrained"
    )
    for axis, (millions, size) in zip(axes.flat, sizes, strict=True):
        draw_size(axis, [entry for entry in entries if entry["size"] == size][::-1])
        axis.set_title(f"{millions:,} million parameters, random weights", fontsize=10)
    dtype = runs[0]["dtype"].removeprefix("torch.")
    figure.suptitle(f"One 7-D action on {runs[0]['machine']['device']}, {dtype}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_size(axis: Any, entries: list[dict[str, Any]]) -> None:
    """One panel."""
    for entry in entries:
        digits, name = entry["representation"] == "string", way_drawn(entry)
        color = "#8c8c8c" if entry["way"] == "generate" else "#2a7f9e"
        axis.barh(name, entry["median_ms"], color=color, alpha=1.0 if digits else 0.55)
        words = f" {entry['median_ms']:,.0f} ms, {entry['forward_passes']:g} passes"
        axis.text(entry["median_ms"], name, words, va="center", fontsize=8)
    axis.set_xlim(0, 1.45 * max(entry["median_ms"] for entry in entries))
    axis.set_xlabel("ms per action (median)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def way_drawn(entry: dict[str, Any]) -> str:
    """A way as a picture calls it; on a GPU passes are plain, or recorded as CUDA graphs."""
    way = entry["way"]
    if way != "generate":
        engine = way.removesuffix(", static") if entry["representation"] == "string" else "this engine"
        recorded = ", CUDA graphs" if way.endswith("static") else ""
        way = engine + recorded
    return f"{'digits' if entry['representation'] == 'string' else '7 bins'}: {way}"
