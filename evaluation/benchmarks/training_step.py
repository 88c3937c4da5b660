"""What one training step takes: milliseconds and peak memory, with logits everywhere and where they are needed.

    every position       the loss transformers computes: logits float32 [B, L, V] and their gradient
    supervised columns   the trainer's own on a CPU (`trainer.score_answers`): [B, answers' columns, V]

What is measured is forward and backward on random weights, each way in a process of its own so that one's peak is not
another's. A row is a picture, 20 words and an answer of 50 tokens, as for a string action.
"""

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table

from gen_vla.evaluation.benchmarks.random_models import build_random, random_inputs
from gen_vla.evaluation.tables import results_table
from gen_vla.training.provenance.origin import describe_machine
from gen_vla.training.trainer import score_answers


ANSWER = 50  # supervised tokens per row


def training_inputs(model: Any, rows: int) -> dict[str, torch.Tensor]:
    inputs = random_inputs(model, rows)
    answer = torch.randint(3, 500, (rows, ANSWER), generator=torch.Generator().manual_seed(1)).to(model.device)
    ids = torch.cat((inputs["input_ids"], answer), dim=1)
    labels = torch.full_like(ids, -100)
    labels[:, -ANSWER:] = answer
    return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def loss_where_needed(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    log_probs, _ = score_answers(model, inputs)
    return -log_probs.sum() / (inputs["labels"][:, 1:] != -100).sum()


LOSSES: dict[str, Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]] = {
    "every position": lambda model, inputs: model(**inputs, use_cache=False).loss,
    "supervised columns": loss_where_needed,
}


def measure(size: str, rows: int, way: str, repeats: int) -> dict[str, Any]:
    """Figures of one way; memory is that of this process, at the peak of its steps and before them."""
    torch.manual_seed(0)
    model = build_random(size, "cpu", torch.float32).train()
    inputs = training_inputs(model, rows)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    reset_peak()
    before = memory_bytes("VmRSS")
    milliseconds, loss = [], 0.0
    for _ in range(repeats + 1):
        began = time.perf_counter()
        value = LOSSES[way](model, inputs)
        value.backward()
        milliseconds.append(1000 * (time.perf_counter() - began))
        loss = value.item()
    return {
        "size": size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "rows": rows,
        "way": way,
        "median_ms": round(statistics.median(milliseconds[1:]), 1),
        "peak_gb_above_model": round((memory_bytes("VmHWM") - before) / 1e9, 3),
        "loss": loss,
    }


def reset_peak() -> None:
    """VmHWM, the most memory there has been, becomes what there is (Linux)."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
        clear.write("5")


def memory_bytes(name: str) -> int:
    """A line of /proc/self/status: `VmRSS`, memory now, or `VmHWM`, the most there has been."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(name))


def run_benchmark(sizes: list[str], batches: list[int], repeats: int) -> dict[str, Any]:
    results: dict[str, Any] = {"machine": describe_machine(), "steps": []}
    for size, rows, way in itertools.product(sizes, batches, LOSSES):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results["steps"].append(pool.apply(measure, (size, rows, way, repeats)))
    return results


def steps_table(results: dict[str, Any]) -> Table:
    rows = [
        (
            f"{entry['size']} ({entry['parameters'] / 1e6:,.0f}M)",
            entry["rows"],
            entry["way"],
            f"{entry['median_ms']:.0f}",
            f"{entry['peak_gb_above_model']:.2f}",
        )
        for entry in results["steps"]
    ]
    title = f"Forward and backward, {results['machine']['device']}, float32"
    return results_table(title, ("model", "rows", "logits of", "ms", "GB above model and gradients"), rows, left=0)
