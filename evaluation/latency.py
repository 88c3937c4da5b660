"""Milliseconds per action on this machine: one observation in, one action out, as a control loop would call it.

Decides: what is timed (pixels and words to a float action: processing, vision, prompt, decoding, un-normalisation) and
how it is summed up. Refuses to know: what the action is for.
"""

import os
import platform
import statistics
import time
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tqdm import tqdm


def measure_latency(
    model: Any, processor: Any, repeats: int = 20, warmup: int = 3, progress: bool = True
) -> dict[str, Any]:
    """Times `processor.action_inputs` and `model.predict_actions` on random pictures.

    Returns:
        Median and 95th percentile in milliseconds, passes through the model per action, n, and the machine.
    """
    generator = np.random.default_rng(0)
    key = next(iter(model.config.norm_stats))
    milliseconds, passes = [], 0
    for repeat in tqdm(range(warmup + repeats), unit="action", disable=not progress):
        picture = Image.fromarray(generator.integers(0, 256, (96, 96, 3), dtype=np.uint8))
        began = time.perf_counter()
        inputs = processor.action_inputs(picture, "close the drawer").to(model.device)
        prediction = model.predict_actions(**inputs, unnorm_key=key)
        passes = prediction.forward_passes
        if repeat >= warmup:
            milliseconds.append(1000 * (time.perf_counter() - began))
    return {
        "median_ms": round(statistics.median(milliseconds), 1),
        "p95_ms": round(float(np.quantile(milliseconds, 0.95)), 1),
        "forward_passes": passes,
        "n": repeats,
        "machine": describe_machine(),
    }


def describe_machine() -> dict[str, Any]:
    """Hardware and versions a figure was measured with."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else _processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
