"""A guess where the next action will be, before the model is asked.

Decides: how probable a value is thought to be, from the data set's histogram and the episode's previous action.
Refuses to know: the model, which continuations are worth checking (`token_trees.py`). A wrong guess costs forward
passes, never a token.

Values are kept as a cumulative distribution over [-1, 1] per dimension, on a grid of 1/1000, linear between. A digit
prefix such as "-0.03" is the interval [-0.0399, -0.03], so its probability is a difference of two entries.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from .action_grammar import ActionGrammar, BinGrammar


GRID = 1000  # steps per unit
END_MASS = 0.01  # probability kept for each of -1 and 1, where clipping gathers values
FLOOR = 0.1  # share of the uniform distribution in every prior
PREVIOUS_SHARE = 0.6  # weight of the previous action's neighbourhood where there is one
STEPS_KEPT = 2**15  # from place to place, some megabytes
HISTOGRAMS_KEPT = 32  # 112 kB each for 7 dimensions
EDGES = np.linspace(-1.0, 1.0, 2 * GRID + 1)  # of the grid
NEIGHBOURHOOD = 0.15  # its scale, for a normalised action


class Place(NamedTuple):
    """Where in an action a token sequence ends.

    Attributes:
        state: of the token grammar.
        value: how many values are complete.
        prefix: the characters of the value that is being written.
    """

    state: int = 0
    value: int = 0
    prefix: str = ""


class ActionPrior:
    """What is expected of the next action. Rows that expect the same may share one: it remembers what it worked out.

    Args:
        grammar: the action format.
        histograms: float [D, bins], counts of normalised values over [-1, 1] per dimension, or `None`.
        previous: float [T, D], the previous normalised action of the episode, or `None`.

    Attributes:
        cumulative: float [values, 2 GRID + 3], see `below`.
        digit_masses: float [rows, 10], of the values that a beginning and one more digit begin; which row belongs to
            which beginning says `digit_row`.
        digit_chances, best_digits: the same given the beginning, and the largest of each row.
        trees, options: what `token_trees.py` worked out before.
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
        self.digit_chances = self.digit_masses / totals[:, None]
        self.best_digits: list[float] = (columns.max(axis=0) / totals).tolist()

    def mass(self, value: int, low: float, high: float) -> float:
        """The probability that value number `value` lies in [low, high], ends included."""
        return self.below(value, high, including=True) - self.below(value, low)

    def masses(self, value: int, bounds: np.ndarray) -> np.ndarray:
        """Float64 [N]: the probability of a value from each of N + 1 ascending bounds in [-1, 1] to below the next;
        the last bound is included."""
        line = self.cumulative[value]
        below = np.where(bounds <= -1.0, 0.0, np.interp(bounds, EDGES, line[1:-1]))
        below[-1] = self.below(value, float(bounds[-1]), including=True)
        return np.diff(below)

    def decimal_masses(self, value: int, negative: bool, decimals: str) -> list[float]:
        """The masses of the ten values "0.", `decimals` and one more digit begin, signed; for a digit more than a grid
        step resolves, equal parts."""
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


def hints_of(grammar: Any, previous: Any, rows: int) -> list[np.ndarray | None]:
    """Per row the previous normalised action, float64 [T, D], or `None`.

    Args:
        previous: float [B, T, D], [B, D] for actions of one step, a sequence of such rows or `None`, or `None`.

    Raises:
        ValueError: for another number of rows or another shape.
    """
    if previous is None:
        return [None] * rows
    if len(previous) != rows:
        raise ValueError(f"got {len(previous)} previous actions for {rows} observations, expected one each")
    shape = (grammar.strings.horizon, grammar.strings.action_dim)
    hints: list[np.ndarray | None] = []
    for row, each in enumerate(previous):
        values = each.float().cpu() if isinstance(each, torch.Tensor) else each
        hint = None if values is None else np.asarray(values, dtype=np.float64)
        if hint is not None and hint.shape not in (shape, shape[1:] if shape[0] == 1 else shape):
            raise ValueError(
                f"got a previous action of shape {list(hint.shape)} in row {row}, expected {list(shape)}: what "
                "predict_actions returned for the step before, its `normalized`, or None"
            )
        hints.append(None if hint is None else hint.reshape(shape))
    return hints


def priors_for(
    grammar: ActionGrammar | BinGrammar, histograms: list[Any], hints: list[np.ndarray | None]
) -> list[ActionPrior]:
    """What each row's trees are grown from; rows that expect the same share it."""
    unhinted = {id(counts): counts for counts, hint in zip(histograms, hints, strict=True) if hint is None}
    shared = {key: ActionPrior(grammar, counts) for key, counts in unhinted.items()}
    return [
        shared[id(counts)] if hint is None else ActionPrior(grammar, counts, hint)
        for counts, hint in zip(histograms, hints, strict=True)
    ]


def _density(dims: int, histograms: Sequence[Sequence[float]] | None) -> np.ndarray:
    """Float [D, 2 GRID]: smoothed histograms over a floor of the uniform distribution."""
    if histograms is None:
        return np.full((dims, 2 * GRID), 1.0 / (2 * GRID))
    counts = np.asarray(histograms, dtype=np.float64)
    return _smoothed(counts.tobytes(), counts.shape[1])


@lru_cache(maxsize=HISTOGRAMS_KEPT)
def _smoothed(counts: bytes, bins: int) -> np.ndarray:
    """The density of float64 [D, bins] counts. Kept by what they are: statistics may be edited in place."""
    lines = np.frombuffer(counts).reshape(-1, bins) + 0.5
    centres = (np.arange(bins) + 0.5) / bins * 2.0 - 1.0
    grid = (np.arange(2 * GRID) + 0.5) / GRID - 1.0
    smooth = np.stack([np.interp(grid, centres, line) for line in lines])
    return FLOOR / (2 * GRID) + (1 - FLOOR) * smooth / smooth.sum(axis=1, keepdims=True)


def _neighbourhood(previous: np.ndarray) -> np.ndarray:
    """Float [values, 2 GRID]: a peak with long tails around each previous value, taken to the nearest grid point."""
    steps = np.rint((np.nan_to_num(previous).clip(-1.0, 1.0) + 1.0) * GRID).astype(int)
    peaks, sums = _peaks()
    return np.stack([peaks[step] for step in steps.tolist()]) / sums[steps, None]


@lru_cache(maxsize=1)
def _peaks() -> tuple[np.ndarray, np.ndarray]:
    """For a value at each grid point its peak, float [2 GRID + 1, 2 GRID], windows on one line; and the peak's sum."""
    distance = np.abs((np.arange(-2 * GRID, 2 * GRID) + 0.5) / GRID) / NEIGHBOURHOOD
    line = np.exp(-distance) + 0.2 / (1.0 + distance**2)
    peaks = np.lib.stride_tricks.sliding_window_view(line, 2 * GRID)[::-1]
    return peaks, peaks.sum(axis=1)


@lru_cache(maxsize=STEPS_KEPT)
def step(grammar: Any, place: Place, token: int) -> Place:
    """The place after one more token."""
    state = grammar.transitions[place.state][token]
    if isinstance(grammar, BinGrammar):
        return Place(state, place.value + 1)
    value, prefix, text = place.value, place.prefix, grammar.text_of.get(token, "")
    legacy, decimals = grammar.strings.style == "legacy", grammar.strings.decimals
    for character in text:
        if character in ", \n":
            value, prefix = value + (legacy and character == ","), ""
            continue
        prefix += character
        if not legacy and len(prefix.partition(".")[2]) == decimals:
            value, prefix = value + 1, ""
    return Place(state, value, prefix)


def digit_row(value: int, negative: bool, decimals: str) -> int:
    """Where the ten digits behind "0." and up to two `decimals` are found: 111 rows for each value and sign."""
    return (value * 2 + negative) * 111 + (0, 1, 11)[len(decimals)] + int(decimals or 0)
