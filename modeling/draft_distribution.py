"""The distribution that draft trees are built from, before the model is asked: where the next action's values will be,
by the data set's histogram and the previous action of the episode. A bad draft costs forward passes, never a token.

It is kept as a cumulative distribution over [-1, 1] per value, on a grid of 1/1000, linear between. A digit prefix
such as "-0.03" is the interval [-0.0399, -0.03], so its probability is a difference of two entries.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from .action_grammar import ActionGrammar, BinGrammar


GRID = 1000  # steps per unit
EDGES = np.linspace(-1.0, 1.0, 2 * GRID + 1)  # of the grid
END_MASS = 0.01  # probability kept for each of -1 and 1, where clipping gathers values
UNIFORM_SHARE = 0.1  # of the uniform distribution in every draft
PREVIOUS_SHARE = 0.6  # of the previous action's neighbourhood, where there is one
NEIGHBOURHOOD = 0.15  # its scale, for a normalised action
CACHED_STEPS = 2**15  # from cursor to cursor, some megabytes
CACHED_HISTOGRAMS = 32  # 112 kB each for 7 dimensions


class Cursor(NamedTuple):
    """Where in an action a token sequence ends: the state of the token grammar, the number of complete values, and the
    characters of the unfinished one.
    """

    state: int = 0
    value: int = 0
    prefix: str = ""


class DraftDistribution:
    """What is expected of the next action. Rows that expect the same may share one, which caches what was computed.

    Args:
        grammar: the action format.
        histograms: float [D, bins], counts of normalised values over [-1, 1] per dimension, or `None`.
        previous: float [T, D], the previous normalised action of the episode, or `None`.

    Attributes:
        cumulative: float [values, 2 GRID + 3], see `below`.
        digit_masses: float [rows, 10], the mass of a prefix and one more digit; `digit_row` tells the row of a prefix.
        digit_probabilities, best_digit_probabilities: the same given the prefix, and the largest of each row.
        trees, options: the cache of `draft_trees.py`.
    """

    def __init__(
        self,
        grammar: ActionGrammar | BinGrammar,
        histograms: Sequence[Sequence[float]] | None = None,
        previous: np.ndarray | None = None,
    ):
        codec = grammar.strings
        self.grammar = grammar
        self.trees: dict[Any, Any] = {}
        self.options: dict[Any, list[tuple[int, float]]] = {}
        self.dims, self.values = codec.action_dim, codec.action_dim * codec.horizon
        density = _density(self.dims, histograms)
        rows = np.broadcast_to(density, (codec.horizon, *density.shape)).reshape(self.values, -1)
        if previous is not None:
            rows = (1 - PREVIOUS_SHARE) * rows + PREVIOUS_SHARE * _neighbourhood(np.asarray(previous).reshape(-1))
        ends = np.full((self.values, 1), END_MASS)
        inner = rows / rows.sum(axis=1, keepdims=True) * (1 - 2 * END_MASS)
        # Entry i + 1 is the probability of a value below -1 + i / GRID; the two ends are atoms.
        steps = np.concatenate((np.zeros((self.values, 1)), ends, inner, ends), axis=1)
        self.cumulative = np.cumsum(steps, axis=1)
        # Away from 0 in both directions, [values, sign, 100, 10]: the mass of 0.ijk.
        thousandths = np.stack((inner[:, GRID:], inner[:, GRID - 1 :: -1]), axis=1).reshape(-1, 2, 100, 10)
        # `einsum`, and sums over columns below, take a fraction of the time of `sum` over rows of ten.
        hundredths = np.einsum("vsij->vsi", thousandths).reshape(-1, 2, 10, 10)
        tenths = np.einsum("vsij->vsi", hundredths).reshape(-1, 2, 1, 10)
        self.digit_masses = np.concatenate((tenths, hundredths, thousandths), axis=2).reshape(-1, 10)
        columns = np.ascontiguousarray(self.digit_masses.T)
        totals = columns.sum(axis=0)
        self.digit_probabilities = self.digit_masses / totals[:, None]
        self.best_digit_probabilities: list[float] = (columns.max(axis=0) / totals).tolist()

    def mass(self, value: int, low: float, high: float) -> float:
        """The probability that value number `value` lies in [low, high], ends included."""
        return self.below(value, high, including=True) - self.below(value, low)

    def masses(self, value: int, bounds: np.ndarray) -> np.ndarray:
        """The probability of each interval between ascending bounds [N + 1], float64 [N], the last bound included."""
        line = self.cumulative[value]
        below = np.where(bounds <= -1.0, 0.0, np.interp(bounds, EDGES, line[1:-1]))
        below[-1] = self.below(value, float(bounds[-1]), including=True)
        return np.diff(below)

    def decimal_masses(self, value: int, negative: bool, decimals: str) -> list[float]:
        """Masses of the ten prefixes "0.", `decimals` and one more digit; all the same below the grid's step."""
        masses = self.digit_masses[digit_row(value, negative, decimals[:2])].tolist()
        if len(decimals) <= 2:
            return masses
        return [masses[int(decimals[2])] * 0.1 ** (len(decimals) - 2)] * 10

    def below(self, value: int, bound: float, including: bool = False) -> float:
        """The probability of a value below `bound`; `including` counts `bound` itself, which matters at -1 and 1."""
        line = self.cumulative[value]
        if bound >= 1.0:
            return line[-1] if including else line[-2]
        if bound <= -1.0:
            return line[1] if including else 0.0
        place = (bound + 1.0) * GRID
        whole = int(place)
        return line[whole + 1] + (place - whole) * (line[whole + 2] - line[whole + 1])


def previous_per_row(grammar: Any, previous: Any, rows: int) -> list[np.ndarray | None]:
    """The previous normalised action of each row, float64 [T, D], or `None`.

    Args:
        previous: float [B, T, D], or [B, D] for actions of one step; or a sequence of B rows, some `None`; or `None`.

    Raises:
        ValueError: for another number of rows or another shape.
    """
    if previous is None:
        return [None] * rows
    if len(previous) != rows:
        raise ValueError(f"got {len(previous)} previous actions for {rows} observations, expected one each")
    shape = (grammar.strings.horizon, grammar.strings.action_dim)
    actions: list[np.ndarray | None] = []
    for row, each in enumerate(previous):
        values = each.float().cpu() if isinstance(each, torch.Tensor) else each
        action = None if values is None else np.asarray(values, dtype=np.float64)
        if action is not None and action.shape not in (shape, shape[1:] if shape[0] == 1 else shape):
            raise ValueError(
                f"got a previous action of shape {list(action.shape)} in row {row}, expected {list(shape)}: what "
                "predict_actions returned for the step before, its `normalized`, or None"
            )
        actions.append(None if action is None else action.reshape(shape))
    return actions


def draft_distributions(
    grammar: ActionGrammar | BinGrammar, histograms: list[Any], previous: list[np.ndarray | None]
) -> list[DraftDistribution]:
    """One for each row; rows of a data set that have no previous action share it."""
    first_steps = {id(counts): counts for counts, action in zip(histograms, previous, strict=True) if action is None}
    shared = {key: DraftDistribution(grammar, counts) for key, counts in first_steps.items()}
    return [
        shared[id(counts)] if action is None else DraftDistribution(grammar, counts, action)
        for counts, action in zip(histograms, previous, strict=True)
    ]


def _density(dims: int, histograms: Sequence[Sequence[float]] | None) -> np.ndarray:
    """Smoothed histograms with a share of the uniform distribution, float [D, 2 GRID]."""
    if histograms is None:
        return np.full((dims, 2 * GRID), 1.0 / (2 * GRID))
    counts = np.asarray(histograms, dtype=np.float64)
    return _smoothed(counts.tobytes(), counts.shape[1])


@lru_cache(maxsize=CACHED_HISTOGRAMS)
def _smoothed(counts: bytes, bins: int) -> np.ndarray:
    """The density of float64 [D, bins] counts, cached by content: statistics may be edited in place."""
    lines = np.frombuffer(counts).reshape(-1, bins) + 0.5
    centres = (np.arange(bins) + 0.5) / bins * 2.0 - 1.0
    grid = (np.arange(2 * GRID) + 0.5) / GRID - 1.0
    smooth = np.stack([np.interp(grid, centres, line) for line in lines])
    return UNIFORM_SHARE / (2 * GRID) + (1 - UNIFORM_SHARE) * smooth / smooth.sum(axis=1, keepdims=True)


def _neighbourhood(previous: np.ndarray) -> np.ndarray:
    """A peak with long tails at the grid point nearest to each previous value, float [values, 2 GRID]."""
    steps = np.rint((np.nan_to_num(previous).clip(-1.0, 1.0) + 1.0) * GRID).astype(int)
    peaks, sums = _peaks()
    return np.stack([peaks[step] for step in steps.tolist()]) / sums[steps, None]


@lru_cache(maxsize=1)
def _peaks() -> tuple[np.ndarray, np.ndarray]:
    """The peak at each grid point, float [2 GRID + 1, 2 GRID], as windows on one line; and the sum of each."""
    distance = np.abs((np.arange(-2 * GRID, 2 * GRID) + 0.5) / GRID) / NEIGHBOURHOOD
    line = np.exp(-distance) + 0.2 / (1.0 + distance**2)
    peaks = np.lib.stride_tricks.sliding_window_view(line, 2 * GRID)[::-1]
    return peaks, peaks.sum(axis=1)


@lru_cache(maxsize=CACHED_STEPS)
def advance(grammar: Any, cursor: Cursor, token: int) -> Cursor:
    """The cursor after one more token."""
    state = grammar.transitions[cursor.state][token]
    if isinstance(grammar, BinGrammar):
        return Cursor(state, cursor.value + 1)
    value, prefix, text = cursor.value, cursor.prefix, grammar.text_of.get(token, "")
    legacy, decimals = grammar.strings.style == "legacy", grammar.strings.decimals
    for character in text:
        if character in ", \n":
            value, prefix = value + (legacy and character == ","), ""
            continue
        prefix += character
        if not legacy and len(prefix.partition(".")[2]) == decimals:
            value, prefix = value + 1, ""
    return Cursor(state, value, prefix)


def digit_row(value: int, negative: bool, decimals: str) -> int:
    """The row of the ten digits after "0." and up to two `decimals`: there are 111 for each value and sign."""
    return (value * 2 + negative) * 111 + (0, 1, 11)[len(decimals)] + int(decimals or 0)
