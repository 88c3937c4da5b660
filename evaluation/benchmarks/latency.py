"""Milliseconds per action on this machine: one observation in, one action out, as a control loop would call it.

    processing     picture and instruction to tensors on the device
    vision         the encoders and the projector
    prefill        the language model's pass over the prompt
    decode passes  its further passes; those of the action expert of the flow-matching π0
    rest           the grammar, the tree, the output layer, numbers and units

Parts are timed from hooks that wait for the device, in calls of their own. Hooks keep passes from being replayed as
CUDA graphs: on a GPU the parts are those of plain passes.
"""

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from tqdm import tqdm

from gen_vla.evaluation.benchmarks.random_models import synchronize
from gen_vla.evaluation.policies.cameras import pictures_per_action
from gen_vla.evaluation.policies.flow import FLOW
from gen_vla.evaluation.policies.states import neutral_state
from gen_vla.evaluation.tables import results_table
from gen_vla.training.provenance.origin import describe_machine


PARTS = ("processing", "vision", "prefill", "decode passes", "rest")
INSTRUCTION = "close the drawer"
WARM_UP = 3  # calls that do not count


def measure_latency(model: Any, processor: Any, repeats: int = 20) -> dict[str, Any]:
    """Times `processor.action_inputs` and `model.predict_actions` on random pictures, one per camera."""
    generator = np.random.default_rng(0)
    milliseconds, passes = [], 0
    for _ in tqdm(range(WARM_UP + repeats), unit="action"):
        pictures = random_pictures(generator, processor)
        key = next(iter(model.config.norm_stats))
        began = time.perf_counter()
        inputs = processor.action_inputs(pictures, INSTRUCTION, **neutral_state(processor, key)).to(model.device)
        passes = model.predict_actions(**inputs, unnorm_key=key).forward_passes
        milliseconds.append(1000 * (time.perf_counter() - began))
    measured = milliseconds[WARM_UP:]
    return {
        "median_ms": round(statistics.median(measured), 1),
        "p95_ms": round(float(np.quantile(measured, 0.95)), 1),
        "worst_ms": round(max(measured), 1),
        "forward_passes": passes,
        "n": repeats,
        "machine": describe_machine(),
    }


def measure_busy(model: Any, processor: Any, neighbours: int, repeats: int = 20) -> dict[str, Any]:
    """The same while other processes each keep a core of this machine busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
    try:
        found = measure_latency(model, processor, repeats)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return {"neighbours": neighbours, **{name: found[name] for name in ("median_ms", "p95_ms", "worst_ms")}}


def measure_parts(model: Any, processor: Any, repeats: int = 20) -> dict[str, Any]:
    """Where the time of an action goes: means over `repeats` calls, whose parts add up to the total."""
    generator = np.random.default_rng(1)
    rounds = tqdm(range(WARM_UP + repeats), unit="action", desc="parts")
    calls = [_timed_call(model, processor, random_pictures(generator, processor)) for _ in rounds][WARM_UP:]
    means = {name: float(np.mean([call[name] for call in calls])) for name in calls[0]}
    return {
        "parts_ms": {name: round(means[name], 3) for name in PARTS},
        "total_ms": round(means["total"], 3),
        "passes": round(means["passes"], 2),
        "passes_timed": round(means["passes_timed"], 2),
        "n": repeats,
    }


def _timed_call(model: Any, processor: Any, pictures: list[Image.Image]) -> dict[str, float]:
    """Milliseconds of each part of one call, their total, passes made and passes timed."""
    key = next(iter(model.config.norm_stats))
    began = time.perf_counter()
    inputs = processor.action_inputs(pictures, INSTRUCTION, **neutral_state(processor, key)).to(model.device)
    synchronize(model.device)
    processed = time.perf_counter()
    with hooked(model, timed_modules(model)) as spans:
        prediction = model.predict_actions(**inputs, unnorm_key=key)
        synchronize(model.device)
    total = 1000 * (time.perf_counter() - began)
    parts = {
        "processing": 1000 * (processed - began),
        "vision": sum(spans["vision"]) + sum(spans.get("projector", ())),
        "prefill": spans["language"][0],
        "decode passes": sum(spans["language"][1:]) + sum(spans.get("expert", ())),
    }
    timed = len(spans["language"]) + len(spans.get("expert", ()))
    counts = {"passes": prediction.forward_passes, "passes_timed": timed}
    return {**parts, "rest": total - sum(parts.values()), "total": total, **counts}


def timed_modules(model: Any) -> dict[str, Any]:
    """The parts of a model, one or several, by what their calls are added up under."""
    if model.config.model_type == "vla_plus":
        vlm, names = model.vlm.model, [*model.family.vision, "frozen_vision"]
        seeing = [part for name in names if isinstance(part := getattr(vlm, name, None), torch.nn.Module)]
        return {"vision": seeing, "language": model.get_decoder()}
    parts = model.model
    if model.config.model_type == FLOW:
        vlm = parts.vlm
        found = {"vision": vlm.vision_tower, "projector": vlm.multi_modal_projector, "language": vlm.language_model}
        return {**found, "expert": parts.dit}
    return {"vision": parts.vision_tower, "projector": parts.projector, "language": parts.language_model}


@contextlib.contextmanager
def hooked(model: Any, modules: dict[str, Any]) -> Iterator[dict[str, list[float]]]:
    """While it lasts, yields the milliseconds of every call of each module, by name; those while a CUDA graph is
    recorded, during which nothing may wait, are left out."""
    spans: dict[str, list[float]] = {name: [] for name in modules}
    began: dict[str, float] = {}

    def mark(name: str, begins: bool) -> None:
        if model.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return
        synchronize(model.device)
        now = 1000 * time.perf_counter()
        if begins:
            began[name] = now
        else:
            spans[name].append(now - began[name])

    handles = []
    for name, several in modules.items():
        for module in several if isinstance(several, list) else [several]:
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: mark(name, begins=True)))
            handles.append(module.register_forward_hook(lambda *_, name=name: mark(name, begins=False)))
    try:
        yield spans
    finally:
        for handle in handles:
            handle.remove()


def random_pictures(generator: np.random.Generator, processor: Any) -> list[Image.Image]:
    noise = generator.integers(0, 256, (pictures_per_action(processor), 96, 96, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in noise]


def latency_table(results: dict[str, Any], title: str) -> Table:
    """A row per part with its share, then the total and the passes; `results` hold those of `measure_parts`, and maybe
    of `measure_busy`."""
    parts, machine, busy = results["parts"], results["machine"], results.get("busy", {})
    rows = [
        (name, f"{value:.2f}", f"{100 * value / parts['total_ms']:.0f} %") for name, value in parts["parts_ms"].items()
    ]
    rows.append(("with hooks", f"{parts['total_ms']:.2f}", "100 %"))
    rows.append(("without (median)", f"{results['median_ms']:.2f}", f"p95 {results['p95_ms']:.2f}"))
    for name in ("median", "worst") if busy else ():
        value, words = busy[f"{name}_ms"], f"beside {busy['neighbours']} busy processes, {name}"
        rows.append((words, f"{value:.2f}", f"{value / results['median_ms']:.1f}x"))
    rows.append(("forward passes", f"{parts['passes']:g}", ""))
    caption = f"{machine['device']}, {machine['threads']} threads, n = {results['n']}"
    return results_table(title, ("part", "ms per action", "share"), rows, caption=caption)
