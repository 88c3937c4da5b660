"""What an action costs on this machine: milliseconds, passes, bytes and memory of each way of decoding, side by side.

    generate         plain constrained decoding, one token per pass: `generate` with the LogitsProcessor
    ... static       the same over a static cache; on a GPU transformers compiles the passes (`torch.compile`)
    tree, N nodes    tree decoding, the same tokens
    ... static       the same with shapes that repeat; on a GPU as CUDA graphs
    ... lean         with fused layers (`modeling/fused_layers.py`) in place of the model's own
    bins, generate   the 7-token baseline of OpenVLA, and the same through our engine

Weights are random, which are as fast as any, and write strings that no robot would: while it is timed, tree decoding
therefore follows recorded actions (`decoding_replay.py`). Of two calls in a row, on other actions, the second is
timed: a control loop makes many.
"""

import itertools
import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer
from tqdm import tqdm

from gen_vla.evaluation.benchmarks.decoding_passes import passes_on
from gen_vla.evaluation.benchmarks.decoding_replay import actions_to_write, recorded_actions, replaying, target_ids
from gen_vla.evaluation.benchmarks.random_models import NORMALIZED, build_random, random_inputs, synchronize
from gen_vla.modeling.action_statistics import histogram
from gen_vla.modeling.parallel_streams import in_parallel
from gen_vla.modeling.recorded_passes import recordings_of
from gen_vla.training.provenance.origin import describe_machine


@dataclass(frozen=True)
class Way:
    nodes: int
    static: bool = False
    lean: bool = False

    @property
    def name(self) -> str:
        name = f"tree, {self.nodes} node{'s' * (self.nodes > 1)}" if self.nodes else "generate"
        return f"{name}{', static' * self.static}{', lean' * self.lean}"


def run_benchmark(
    sizes: list[str],
    rows: list[int],
    nodes: list[int],
    repeats: int,
    bridge: Path | None,
    device: str,
    dtype: torch.dtype,
    horizons: Sequence[int] = (1,),
) -> dict[str, Any]:
    """All that was asked for; batches larger than 1 with the first horizon only."""
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
        results["passes_on_bridge"] = passes_on(episodes)
    if not sizes:
        return results
    results["copy_gigabytes_per_second"] = round((bandwidth := measure_copy_bandwidth(device)) / 1e9, 1)
    counts = histogram(np.concatenate(episodes), NORMALIZED)
    for size, horizon, representation in itertools.product(sizes, horizons, ("string", "bins")):
        model = build_random(size, device, dtype, representation, horizon, counts)
        labels = {"size": size, "parameters": sum(parameter.numel() for parameter in model.parameters())}
        labels |= {"representation": representation, "horizon": horizon}
        for count in rows if horizon == horizons[0] else rows[:1]:
            # A batch does best with fewer nodes per row: those of the default.
            ways = ways_of(representation, nodes if count == 1 else [model.default_tree_nodes(count)], device)
            for entry in time_ways(model, episodes, count, ways, repeats, bandwidth):
                results["timings"].append({**labels, **entry, "peak_memory_gb": peak_memory(device)})
                print(json.dumps(results["timings"][-1]), flush=True)
        recorded = device == "cuda" and not any(plan.failed for plan in recordings_of(model).plans.values())
        if recorded and representation == "string" and horizon == horizons[0]:
            results.setdefault("limits", []).append({"size": size, **limits_of(model, bandwidth)})
        del model
    return results


def ways_of(representation: str, nodes: list[int], device: str) -> list[Way]:
    """What is compared; static passes only where they can be recorded, and plain ones beside them once."""
    counts = nodes if representation == "string" else [1]
    if device != "cuda":
        return [Way(0), *(Way(count) for count in counts)]
    middle = counts[len(counts) // 2]
    recorded = [Way(count, static=True) for count in counts]
    return [Way(0), Way(0, static=True), Way(middle), *recorded, Way(middle, static=True, lean=True)]


def time_ways(
    model: Any, episodes: list[np.ndarray], rows: int, ways: list[Way], repeats: int, copy_bandwidth: float
) -> list[dict[str, Any]]:
    """Each way of decoding in turns, so that whatever else the machine does falls on all alike."""
    inputs = random_inputs(model, rows)
    horizon = model.config.action_config["horizon"]
    runs: dict[Way, list[dict[str, Any]]] = {way: [] for way in ways}
    for repeat in tqdm(range(repeats + 1), desc=f"{rows} x {horizon}", unit="round", leave=False):
        for way in ways:
            if way.nodes:  # a control loop calls the same way again and again
                timed(model, inputs, way, actions_to_write(episodes, horizon, rows, repeat + 1))
            run = timed(model, inputs, way, actions_to_write(episodes, horizon, rows, repeat))
            if repeat:  # the first round warms up
                runs[way].append(run)
    base = statistics.median(run["ms"] for run in runs[ways[0]])
    moved = bytes_per_pass(model, rows, inputs["input_ids"].shape[1])
    return [summary(way, runs[way], rows, base, moved, copy_bandwidth) for way in ways]


def timed(model: Any, inputs: dict[str, Any], way: Way, actions: np.ndarray) -> dict[str, Any]:
    """One call of `predict_actions`, the device idle before and after."""
    targets = [target_ids(model.action_grammar, action) for action in actions]
    options = {"cache_implementation": "static" if way.static else "dynamic"} if way.nodes or way.static else {}
    model.lean_layers = way.lean
    synchronize(model.device)
    with replaying(targets) as stopwatch:
        began = time.perf_counter()
        prediction = model.predict_actions(**inputs, unnorm_key="random", tree_nodes=way.nodes, **options)
        synchronize(model.device)
        milliseconds = 1000 * (time.perf_counter() - began)
    passes = stopwatch.milliseconds()
    return {
        "ms": milliseconds,
        "passes": prediction.forward_passes,
        "nodes": prediction.tree_nodes,
        "prefill": passes[0] if passes else None,
        "decode": passes[1:],
        "outside": 1 - sum(passes) / milliseconds if passes else None,
    }


def summary(
    way: Way, runs: list[dict[str, Any]], rows: int, base: float, moved: int, copy_bandwidth: float
) -> dict[str, Any]:
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
            "gigabytes_per_decode_pass": round(moved / 1e9, 4),
            "share_of_copy_bandwidth": round(moved / statistics.median(decode) * 1e3 / copy_bandwidth, 3),
        }
    return entry


def bytes_per_pass(model: Any, rows: int, length: int) -> int:
    """What a decode pass reads at least: the language model's weights, and keys and values of `length` slots."""
    text = model.config.text_config
    layers = model.model.language_model.layers
    weights = sum(parameter.numel() * parameter.element_size() for parameter in layers.parameters())
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    slots = 2 * rows * length * text.num_hidden_layers * text.num_key_value_heads * width
    return weights + slots * model.dtype.itemsize


def measure_copy_bandwidth(device: str) -> float:
    """Bytes per second that a plain copy reads and writes."""
    source = torch.ones(2**28 if device == "cuda" else 2**26, device=device)
    names = {"source": source, "target": torch.empty_like(source)}
    timer = Timer("target.copy_(source)", globals=names, num_threads=torch.get_num_threads())
    return 2 * source.numel() * source.element_size() / min(timer.timeit(1).mean for _ in range(5))


def peak_memory(device: str) -> float:
    """Gigabytes: of the GPU, or of this process so far."""
    if device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


def limits_of(model: Any, copy_bandwidth: float) -> dict[str, Any]:
    """What a recorded decode pass of one observation spends its time on, on a GPU; medians in milliseconds.

    weights_once         bytes of weights, keys and values at the bandwidth of a copy: no pass is faster
    products             the layers' matrix products alone, recorded as the pass has them
    pass_on_the_gpu      the recorded pass, without sending its arguments, launching and waiting
    """
    inputs = random_inputs(model, 1)
    moved = bytes_per_pass(model, 1, inputs["input_ids"].shape[1])
    model.predict_actions(**inputs, unnorm_key="random", cache_implementation="static")
    plan = list(recordings_of(model).plans.values())[-1]
    recorded: Any = next(entry for key, entry in plan.recorded.items() if key[0] == "feed_tree")
    products = record_products(model, plan.cache.scratch)
    return {
        "width": plan.cache.scratch,
        "weights_once_ms": round(1e3 * moved / copy_bandwidth, 3),
        "products_ms": round(median_gpu_ms(products.replay), 3),
        "pass_on_the_gpu_ms": round(median_gpu_ms(recorded.graph.replay), 3),
    }


@torch.no_grad()
def record_products(model: Any, width: int) -> torch.cuda.CUDAGraph:
    """A CUDA graph of every layer's matrix products for one row of `width` tokens."""
    groups = []
    for layer in model.model.language_model.layers:
        own, mlp = layer.self_attn, layer.mlp
        groups += [(own.q_proj, own.k_proj, own.v_proj), (own.o_proj,), (mlp.gate_proj, mlp.up_proj), (mlp.down_proj,)]
    widths = {product.in_features for group in groups for product in group}
    inputs = {n: torch.randn(1, width, n, device=model.device, dtype=model.dtype) for n in widths}

    def run() -> None:
        for group in groups:
            in_parallel(model.device, *(partial(product, inputs[product.in_features]) for product in group))

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def median_gpu_ms(function: Callable[[], None]) -> float:
    times = []
    for _ in range(23):
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        function()
        ended.record()
        torch.cuda.synchronize()
        times.append(began.elapsed_time(ended))
    return statistics.median(times[3:])
