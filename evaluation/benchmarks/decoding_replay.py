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
from gen_vla.modeling.tree_decoding import TreeDecoder


class Stopwatch:
    """Takes the time of passes on the device that computes them, without making the caller wait for them."""

    def __init__(self) -> None:
        self.passes: list[Callable[[], float]] = []  # milliseconds of each, once the device is idle

    def time_pass(self, model: Any, call: Callable[[], Any]) -> Any:
        if model.device.type == "cuda":
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before.record()
            result = call()
            after.record()
            self.passes.append(lambda: before.elapsed_time(after))
        else:
            began = time.perf_counter()
            result = call()
            milliseconds = 1000 * (time.perf_counter() - began)
            self.passes.append(lambda: milliseconds)
        return result

    def milliseconds(self) -> list[float]:
        """Of each pass, when the device is idle."""
        return [passed() for passed in self.passes]


class ReplayingDecoder(TreeDecoder):
    """Writes given tokens, at the cost of choosing them, and takes the time of every pass."""

    targets: list[list[int]]  # token ids per row
    stopwatch: Stopwatch

    def _passes(self, prompt: Any, forward: Any) -> Any:
        passes = super()._passes(prompt, forward)
        run, first = passes.run, prompt.mask.sum(dim=1).numpy()[:, None]  # position of the last token of each prompt
        ends = [[*target, self.grammar.eos_token_id] for target in self.targets]
        longest = max(map(len, ends))
        columns = np.stack([np.searchsorted(self.token_ids, end + end[-1:] * (longest - len(end))) for end in ends])

        def replayed(fed: Any) -> torch.Tensor:
            """Logits by which every slot chooses the target behind it."""
            logits = self.stopwatch.time_pass(self.model, lambda: run(fed))
            places = np.clip(fed.positions - first, 0, longest - 1)
            chosen = torch.from_numpy(np.take_along_axis(columns, places, axis=1))
            return logits.scatter(-1, chosen[..., None].to(logits.device), 1e5)

        passes.run = replayed
        return passes


@contextlib.contextmanager
def replaying(targets: list[list[int]]) -> Iterator[Stopwatch]:
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


def actions_to_write(episodes: list[np.ndarray], horizon: int, rows: int, repeat: int) -> np.ndarray:
    """The chunk each row writes, float [rows, horizon, 7], other steps for every repeat."""
    steps = np.concatenate(episodes)
    starts = [(repeat * 31 + row * 7) % (len(steps) - horizon) for row in range(rows)]
    return np.stack([steps[start : start + horizon] for start in starts])


def target_ids(grammar: Any, action: np.ndarray) -> list[int]:
    text = grammar.strings.encode(action)
    if type(grammar.strings).__name__ == "ActionBins":
        return grammar.token_ids(text)
    return [PIECES[character] for character in text]
