"""Makes tree decoding write recorded actions at the cost of choosing them, and takes the time of its passes."""

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
    """Takes the time of passes on the device that computes them, without making the caller wait for them."""

    def __init__(self) -> None:
        # Milliseconds of the grammar, growing and packing of trees: between passes, the first trees while a GPU is at
        # the pictures. Trees grown while it computes a pass are no part of it.
        self.choosing = 0.0
        self.passes: list[list[Callable[[], float]]] = []  # milliseconds of each pass's parts, once the device is idle

    def time_pass(self, model: Any, call: Callable[[], Any], begins: bool = True) -> Any:
        """What `call` returns, a pass or the second part of one."""
        if begins:
            self.passes.append([])
        if model.device.type == "cuda":
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before.record()
            result = call()
            after.record()
            self.passes[-1].append(lambda: before.elapsed_time(after))
        else:
            began = time.perf_counter()
            result = call()
            milliseconds = 1000 * (time.perf_counter() - began)
            self.passes[-1].append(lambda: milliseconds)
        return result

    def milliseconds(self) -> list[float]:
        """Of each pass, when the device is idle."""
        return [sum(part() for part in parts) for parts in self.passes]


class ReplayingDecoder(TreeDecoder):
    """Writes given tokens, at the cost of choosing them, and takes the time of every pass."""

    targets: list[list[int]]  # token ids per row
    stopwatch: Stopwatch

    def _passes(self, prompt: Any) -> Any:
        passes = super()._passes(prompt)
        run, encode_pictures, self.order = passes.run, passes.encode_pictures, {}
        self.encoded = True  # in the first pass, which has begun

        def timed_run(fed: Any) -> torch.Tensor:
            begins, self.encoded = not self.encoded, False
            return self.stopwatch.time_pass(self.model, lambda: run(fed), begins)

        passes.run = timed_run
        passes.encode_pictures = lambda: self.stopwatch.time_pass(self.model, encode_pictures)
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
    chunks = np.stack([steps[start : start + 2 * horizon] for start in starts])
    return chunks[:, :horizon], chunks[:, horizon:]


def target_ids(grammar: Any, action: np.ndarray) -> list[int]:
    """The tokens of an action."""
    text = grammar.strings.encode(action)
    if type(grammar.strings).__name__ == "ActionBins":
        return grammar.token_ids(text)
    return [PIECES[character] for character in text]
