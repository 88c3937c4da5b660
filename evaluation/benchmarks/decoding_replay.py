"""Recorded actions written by a model that would write others, at the cost of choosing them.

Decides: how tree decoding is made to write a given action, what of a call counts as a pass. Refuses to know: what is
compared with what (`decoding_benchmark.py`).
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gen_vla.evaluation.benchmarks.decoding_passes import read_bridge
from gen_vla.evaluation.benchmarks.random_models import PIECES
from gen_vla.modeling import action_prediction
from gen_vla.modeling.tree_decoding import Row, TreeDecoder


class Stopwatch:
    """Takes the time of passes on the device that computes them, without making the caller wait for them.

    Attributes:
        choosing: milliseconds of the grammar, growing and packing of trees: between passes, the first trees while a
            GPU is at the pictures. Trees grown while it computes a pass are no part of it.
    """

    def __init__(self) -> None:
        self.choosing = 0.0
        self.taken: list[list[Any]] = []  # of each pass its parts: milliseconds, or the events before and after

    def pass_of(self, model: Any, call: Callable[[], Any], begins: bool = True) -> Any:
        """What `call` returns, a pass or the second part of one."""
        parts: list[Any] = [] if begins else self.taken[-1]
        if begins:
            self.taken.append(parts)
        if model.device.type != "cuda":
            began = time.perf_counter()
            result = call()
            parts.append(1000 * (time.perf_counter() - began))
            return result
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        events[0].record()
        result = call()
        events[1].record()
        parts.append(events)
        return result

    def milliseconds(self) -> list[float]:
        """Of each pass, when the device is idle."""
        spans = [
            [part if isinstance(part, float) else part[0].elapsed_time(part[1]) for part in p] for p in self.taken
        ]
        return [sum(parts) for parts in spans]


class ReplayingDecoder(TreeDecoder):
    """Writes given tokens, at the cost of choosing them, and takes the time of every pass.

    Attributes:
        targets: token ids per row.
        stopwatch: what times go to.
    """

    targets: list[list[int]]
    stopwatch: Stopwatch

    def _passes(self, prompt: Any) -> Any:
        passes = super()._passes(prompt)
        run, encode_pictures, self.order = passes.run, passes.encode_pictures, {}
        self.encoded = True  # in the first pass, which has begun

        def timed_run(fed: Any) -> torch.Tensor:
            begins, self.encoded = not self.encoded, False
            return self.stopwatch.pass_of(self.model, lambda: run(fed), begins)

        passes.run = timed_run
        passes.encode_pictures = lambda: self.stopwatch.pass_of(self.model, encode_pictures)
        return passes

    def _next(self, *args: Any) -> Any:
        return self._timed(super()._next, *args)

    def _accept(self, *args: Any) -> Any:
        return self._timed(super()._accept, *args)

    def _timed(self, method: Callable[..., Any], *args: Any) -> Any:
        began = time.perf_counter()
        result = method(*args)
        self.stopwatch.choosing += 1000 * (time.perf_counter() - began)
        return result

    def _choose(self, row: Row, logits: np.ndarray) -> int:
        super()._choose(row, logits)
        index = self.order.setdefault(id(row), len(self.order))  # in the first pass all rows are walked, in order
        return self.targets[index][len(row.tokens)]


@contextlib.contextmanager
def replaying(targets: list[list[int]]) -> Iterator[Stopwatch]:
    """While it lasts, tree decoding writes `targets`."""
    stopwatch = Stopwatch()
    decoder = type("Replaying", (ReplayingDecoder,), {"targets": targets, "stopwatch": stopwatch})
    plain, action_prediction.TreeDecoder = action_prediction.TreeDecoder, decoder
    try:
        yield stopwatch
    finally:
        action_prediction.TreeDecoder = plain


def recorded_actions(bridge: Path | None) -> list[np.ndarray]:
    """Normalised actions float [steps, 7] per episode to write: recorded ones, or smooth random walks without any."""
    if bridge is not None:
        return read_bridge(bridge)
    random = np.random.default_rng(0)
    walks = np.clip(random.normal(0, 0.3, (20, 10, 7)).cumsum(axis=1) * 0.4, -1, 1)
    walks[..., 6] = walks[..., 6] > 0
    return list(walks)


def actions_to_write(
    episodes: list[np.ndarray], horizon: int, rows: int, repeat: int
) -> tuple[np.ndarray, np.ndarray]:
    """The chunk before and the chunk to write, float [rows, horizon, 7] each, other steps for every repeat."""
    steps = np.concatenate(episodes)
    starts = [(repeat * 31 + row * 7) % (len(steps) - 2 * horizon) for row in range(rows)]
    return (
        np.stack([steps[start : start + horizon] for start in starts]),
        np.stack([steps[start + horizon : start + 2 * horizon] for start in starts]),
    )


def target_ids(grammar: Any, action: np.ndarray) -> list[int]:
    """The tokens of an action."""
    text = grammar.strings.encode(action)
    if grammar.strings.__class__.__name__ == "ActionBins":
        return grammar.token_ids(text)
    return [PIECES[character] for character in text]
