"""A guess where the next action will be, and the tree of token continuations that is worth checking.

Decides: how probable a continuation is thought to be before the model is asked (from the data set's histogram and the
episode's previous action), and which continuations make up a tree of a given size. Refuses to know: the model. A wrong
guess costs forward passes, never a token: what the tree is compared with is the model's own choice.

Values are kept as a cumulative distribution over [-1, 1] per dimension, on a grid of 1/1000, linear between. A digit
prefix such as "-0.03" is the interval [-0.0399, -0.03], so its probability is a difference of two entries.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from .action_grammar import ActionGrammar, BinGrammar


GRID = 1000  # steps per unit
END_MASS = 0.01  # probability kept for each of -1 and 1, where clipping gathers values
FLOOR = 0.1  # share of the uniform distribution in every prior
PREVIOUS_SHARE = 0.6  # weight of the previous action's neighbourhood where there is one
STEPS_KEPT = 2**15  # from place to place, some megabytes; trees of one action after another go the same ways
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


@dataclass
class TokenTree:
    """Nodes in an order in which every parent comes before its children. Parent -1 is the end of what is known."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)  # (parent, token) -> node


class ActionPrior:
    """What is expected of the next action. Rows that expect the same may share one: it remembers what it worked out.

    Args:
        grammar: the action format.
        histograms: float [D, bins], counts of normalised values over [-1, 1] per dimension, or `None`.
        previous: float [T, D], the previous normalised action of the episode, or `None`.
    """

    def __init__(
        self,
        grammar: ActionGrammar | BinGrammar,
        histograms: Sequence[Sequence[float]] | None = None,
        previous: np.ndarray | None = None,
    ):
        codec = grammar.strings
        self.grammar = grammar
        self.trees: dict[tuple[Place, int], TokenTree] = {}
        self.options: dict[Place, list[tuple[int, float]]] = {}
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
        # The same by digits, [values, sign, 10, 10, 10]: the mass of 0.ijk, away from 0 in both directions.
        self._thousandths = np.stack((inner[:, GRID:], inner[:, GRID - 1 :: -1]), axis=1).reshape(-1, 2, 10, 10, 10)
        self._tenths = self._thousandths.sum(axis=(3, 4)).tolist()
        self._hundredths = self._thousandths.sum(axis=4).tolist()

    def mass(self, value: int, low: float, high: float) -> float:
        """The probability that value number `value` lies in [low, high], ends included."""
        return self.below(value, high, including=True) - self.below(value, low)

    def decimal_masses(self, value: int, negative: bool, decimals: str) -> list[float]:
        """The masses of the ten values "0.", `decimals` and one more digit begin, signed; for a digit more than a grid
        step resolves, equal parts."""
        sign = int(negative)
        if not decimals:
            return self._tenths[value][sign]
        first = int(decimals[0])
        if len(decimals) == 1:
            return self._hundredths[value][sign][first]
        cell = self._thousandths[value, sign, first, int(decimals[1])]
        if len(decimals) == 2:
            return cell.tolist()
        return [float(cell[int(decimals[2])]) * 0.1 ** (len(decimals) - 2)] * 10

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


def _density(dims: int, histograms: Sequence[Sequence[float]] | None) -> np.ndarray:
    """Float [D, 2 GRID]: smoothed histograms over a floor of the uniform distribution."""
    uniform = np.full((dims, 2 * GRID), 1.0 / (2 * GRID))
    if histograms is None:
        return uniform
    counts = np.asarray(histograms, dtype=np.float64) + 0.5
    centres = (np.arange(counts.shape[1]) + 0.5) / counts.shape[1] * 2.0 - 1.0
    grid = (np.arange(2 * GRID) + 0.5) / GRID - 1.0
    smooth = np.stack([np.interp(grid, centres, line) for line in counts])
    return FLOOR * uniform + (1 - FLOOR) * smooth / smooth.sum(axis=1, keepdims=True)


def _neighbourhood(previous: np.ndarray) -> np.ndarray:
    """Float [values, 2 GRID]: a peak with long tails around each previous value."""
    grid = (np.arange(2 * GRID) + 0.5) / GRID - 1.0
    distance = np.abs(grid - previous[:, None]) / NEIGHBOURHOOD
    peak = np.exp(-distance) + 0.2 / (1.0 + distance**2)
    return peak / peak.sum(axis=1, keepdims=True)


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


def grow_tree(grammar: Any, prior: ActionPrior, start: Place, nodes: int) -> TokenTree:
    """The `nodes` most probable continuations of `start`, best first.

    A continuation is at most as probable as its beginning, so taking the best one at a time gives the tree from which
    the most tokens are expected to be read, of all trees of this size.
    """
    known = prior.trees.get((start, nodes))
    if known is not None:
        return known
    tree = prior.trees[start, nodes] = TokenTree()
    tokens, parents, depths, children = tree.tokens, tree.parents, tree.depths, tree.children
    # Of each parent's continuations the best one not taken yet: -probability, parent, which it is, -the parent's
    # probability, the parent's place, all continuations.
    options = _ordered_options(grammar, prior, start)
    heap = [(-options[0][1], -1, 0, -1.0, start, options)] if options else []
    while heap and len(tokens) < nodes:
        chance, parent, which, above, before, options = heap[0]
        token, node = options[which][0], len(tokens)
        tokens.append(token)
        parents.append(parent)
        depths.append(1 if parent < 0 else depths[parent] + 1)
        children[parent, token] = node
        which += 1
        if which < len(options):
            heapq.heapreplace(heap, (above * options[which][1], parent, which, above, before, options))
        else:
            heapq.heappop(heap)
        place = step(grammar, before, token)
        if options := _ordered_options(grammar, prior, place):
            heapq.heappush(heap, (chance * options[0][1], node, 0, chance, place, options))
    return tree


def _ordered_options(grammar: Any, prior: ActionPrior, place: Place) -> list[tuple[int, float]]:
    """As `_options`, most probable first; kept, since many ways lead to the same place."""
    options = prior.options.get(place)
    if options is None:
        options = sorted(_options(grammar, prior, place), key=itemgetter(1), reverse=True)
        prior.options[place] = options
    return options


def _options(grammar: Any, prior: ActionPrior, place: Place) -> list[tuple[int, float]]:
    """Tokens that may follow, EOS excepted, with their probabilities given the place."""
    allowed = _allowed(grammar, place.state)
    if len(allowed.tokens) <= 1:
        return allowed.equally
    if isinstance(grammar, BinGrammar):
        masses = [_bin_mass(grammar, prior, place.value, token) for token in allowed.tokens]
    elif place.value < prior.values and "." in place.prefix and "0." in place.prefix[:3] and "e" not in place.prefix:
        decimals = place.prefix.partition(".")[2]
        if len(decimals) > 2 and None not in allowed.digits:
            return allowed.equally  # finer than the grid
        by_digit = prior.decimal_masses(place.value, place.prefix[0] == "-", decimals)
        masses = [
            _text_mass(grammar, prior, place, text) if digit is None else by_digit[digit]
            for text, digit in zip(allowed.texts, allowed.digits)
        ]
    else:
        masses = [_text_mass(grammar, prior, place, text) for text in allowed.texts]
    total = sum(masses) or 1.0
    return [(token, mass / total) for token, mass in zip(allowed.tokens, masses) if mass > 0]


@dataclass(frozen=True)
class Allowed:
    """Tokens that may follow in a state, EOS excepted.

    Attributes:
        texts, digits: of each token; the digit is `None` where it is no token of its own.
        equally: each token with the same probability.
    """

    tokens: list[int]
    texts: list[str]
    digits: list[int | None]
    equally: list[tuple[int, float]]


@lru_cache(maxsize=STEPS_KEPT)
def _allowed(grammar: Any, state: int) -> Allowed:
    """What may follow in a state."""
    tokens = [token for token in grammar.transitions[state] if token != grammar.eos_token_id]
    texts = [grammar.text_of[token] for token in tokens]
    digits = [int(text) if len(text) == 1 and text.isdigit() else None for text in texts]
    return Allowed(tokens, texts, digits, [(token, 1 / len(tokens)) for token in tokens])


def _bin_mass(grammar: BinGrammar, prior: ActionPrior, value: int, token: int) -> float:
    index, edges = int(grammar.text_of[token]), grammar.strings.edges
    return prior.mass(value, edges[index], edges[min(index + 1, len(edges) - 1)]) + 1e-9


def _text_mass(grammar: ActionGrammar, prior: ActionPrior, place: Place, piece: str) -> float:
    """The mass of the values a piece leaves possible; of two values, where a piece reaches into the next one."""
    mass, value, prefix = 1.0, place.value, place.prefix
    ends_value = piece[0] in ", \n"
    if ends_value and grammar.strings.style == "legacy" and piece[0] == ",":
        mass = _interval_mass(prior, value, prefix, closed=True, decimals=grammar.strings.decimals)
        value += 1
    rest = piece.lstrip(", \n")
    if ends_value:
        return mass * (_interval_mass(prior, value, rest, False, grammar.strings.decimals) if rest else 1.0)
    return _interval_mass(prior, value, prefix + piece, False, grammar.strings.decimals)


def _interval_mass(prior: ActionPrior, value: int, prefix: str, closed: bool, decimals: int) -> float:
    """The mass of all values that begin with `prefix`, or, if `closed`, of the one that is `prefix`."""
    if value >= prior.values:
        return 1.0
    unit = 10.0**-decimals
    negative = prefix.startswith("-")
    digits = prefix.lstrip("+-")
    if not digits:
        return prior.mass(value, -1.0, -unit) if negative else prior.mass(value, 0.0, 1.0)
    if "e" in digits:
        return unit  # "1e-04", one value
    whole, _, fraction = digits.partition(".")
    low = int(whole) + (int(fraction) * 10.0 ** -len(fraction) if fraction else 0.0)
    width = 0.0 if closed else (1.0 if not fraction else 10.0 ** -len(fraction)) - unit
    high = min(low + width, 1.0)
    # A printed value stands for what rounds to it.
    half = unit / 2
    if negative:
        return prior.mass(value, max(-high - half, -1.0), -low + half) if high > 0 else 0.0
    return prior.mass(value, low - half if low else 0.0, min(high + half, 1.0))
