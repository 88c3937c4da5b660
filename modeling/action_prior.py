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
STEPS_KEPT = 2**15  # from place to place, some megabytes
FORKS_KEPT = 2**16  # of a grammar, some tens of megabytes
GRAMMARS_KEPT = 16
HISTOGRAMS_KEPT = 32  # 112 kB each for 7 dimensions
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

    Attributes:
        cumulative: float [values, 2 GRID + 3], see `below`.
        digit_masses: float [rows, 10], of the values that a beginning and one more digit begin; which row belongs to
            which beginning says `_digit_row`.
        digit_chances, best_digits: the same given the beginning, and the largest of each row.
        trees, options: what was worked out before.
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
        self.options: dict[Fork, list[tuple[int, float]]] = {}
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

    def decimal_masses(self, value: int, negative: bool, decimals: str) -> list[float]:
        """The masses of the ten values "0.", `decimals` and one more digit begin, signed; for a digit more than a grid
        step resolves, equal parts."""
        masses = self.digit_masses[_digit_row(value, negative, decimals[:2])].tolist()
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
    # probability, where the parent ends, all continuations. Most parents get no child: until one gets its first, its
    # continuations are `None`.
    fork = fork_at(grammar, start)
    best = _best_chance(grammar, prior, fork)
    heap: list[Any] = [(-best, -1, 0, -1.0, fork, None)] if best else []
    while heap and len(tokens) < nodes:
        chance, parent, which, above, fork, options = heap[0]
        if options is None:
            options = _ordered_options(grammar, prior, fork)
        token, node = options[which][0], len(tokens)
        tokens.append(token)
        parents.append(parent)
        depths.append(1 if parent < 0 else depths[parent] + 1)
        children[parent, token] = node
        which += 1
        if which < len(options):
            heapq.heapreplace(heap, (above * options[which][1], parent, which, above, fork, options))
        else:
            heapq.heappop(heap)
        reached = fork.following.get(token) or _follow(grammar, fork, token)
        if best := _best_chance(grammar, prior, reached):
            heapq.heappush(heap, (chance * best, node, 0, chance, reached, None))
    return tree


def _best_chance(grammar: Any, prior: ActionPrior, fork: "Fork") -> float:
    """The probability of the most probable continuation given the place; 0 where there is none."""
    if fork.row is not None:
        return prior.best_digits[fork.row]
    options = fork.equally
    if options is None:
        options = _ordered_options(grammar, prior, fork)
    return options[0][1] if options else 0.0


def _ordered_options(grammar: Any, prior: ActionPrior, fork: "Fork") -> list[tuple[int, float]]:
    """As `_options`, most probable first; kept, since many ways lead to the same place."""
    options = prior.options.get(fork)
    if options is None:
        options = sorted(_options(grammar, prior, fork), key=itemgetter(1), reverse=True)
        prior.options[fork] = options
    return options


def _options(grammar: Any, prior: ActionPrior, fork: "Fork") -> list[tuple[int, float]]:
    """Tokens that may follow, EOS excepted, with their probabilities given the place."""
    if fork.equally is not None:
        return fork.equally
    if fork.row is not None:
        return list(zip(fork.tokens, prior.digit_chances[fork.row].tolist(), strict=True))
    place = fork.place
    if isinstance(grammar, BinGrammar):
        masses = [_bin_mass(grammar, prior, place.value, token) for token in fork.tokens]
    elif fork.decimals is not None:
        by_digit = prior.decimal_masses(place.value, place.prefix[0] == "-", fork.decimals)
        masses = [
            _text_mass(grammar, prior, place, text) if digit is None else by_digit[digit]
            for text, digit in zip(fork.texts, fork.digits, strict=True)
        ]
    else:
        masses = [_text_mass(grammar, prior, place, text) for text in fork.texts]
    total = sum(masses) or 1.0
    return [(token, mass / total) for token, mass in zip(fork.tokens, masses, strict=True) if mass > 0]


@dataclass(eq=False, slots=True)
class Fork:
    """A place and what may follow there, EOS excepted, as far as it is the same for every prior.

    Attributes:
        tokens, texts, digits: what may follow; the digit is `None` where it is no token of its own.
        equally: each token with the same probability, where no prior tells them apart.
        decimals: what is written behind the point of a value below 1.
        row: of a prior's ten digits, where just these follow.
        following: the forks behind those tokens that were taken before.
    """

    place: Place
    tokens: list[int]
    texts: list[str]
    digits: list[int | None]
    equally: list[tuple[int, float]] | None = None
    decimals: str | None = None
    row: int | None = None
    following: dict[int, "Fork"] = field(default_factory=dict)


def fork_at(grammar: Any, place: Place) -> Fork:
    """The fork of a place; kept, since trees of one action after another go the same ways."""
    forks = _forks(grammar)
    fork = forks.get(place)
    if fork is None:
        if len(forks) >= FORKS_KEPT:
            forks.clear()
        fork = forks[place] = _new_fork(grammar, place)
    return fork


@lru_cache(maxsize=GRAMMARS_KEPT)
def _forks(grammar: Any) -> dict[Place, Fork]:
    return {}


def _follow(grammar: Any, fork: Fork, token: int) -> Fork:
    """The fork behind one more token."""
    reached = fork.following[token] = fork_at(grammar, step(grammar, fork.place, token))
    return reached


def _new_fork(grammar: Any, place: Place) -> Fork:
    """What may follow in a place."""
    tokens, texts, digits, equally = _allowed(grammar, place.state)
    fork = Fork(place, tokens, texts, digits)
    prefix, values = place.prefix, grammar.strings.action_dim * grammar.strings.horizon
    if len(tokens) <= 1:
        fork.equally = equally
    elif not isinstance(grammar, BinGrammar) and place.value < values and "0." in prefix[:3] and "e" not in prefix:
        fork.decimals = prefix.partition(".")[2]
        if len(fork.decimals) > 2 and None not in digits:
            fork.equally = equally  # finer than the grid
        elif digits == list(range(10)):
            fork.row = _digit_row(place.value, prefix[0] == "-", fork.decimals)
    return fork


def _digit_row(value: int, negative: bool, decimals: str) -> int:
    """Where the ten digits behind "0." and up to two `decimals` are found: 111 rows for each value and sign."""
    return (value * 2 + negative) * 111 + (0, 1, 11)[len(decimals)] + int(decimals or 0)


@lru_cache(maxsize=STEPS_KEPT)
def _allowed(grammar: Any, state: int) -> tuple[list[int], list[str], list[int | None], list[tuple[int, float]]]:
    """What may follow in a state, EOS excepted: tokens, texts, digits, and each token with the same probability."""
    tokens = [token for token in grammar.transitions[state] if token != grammar.eos_token_id]
    texts = [grammar.text_of[token] for token in tokens]
    digits = [int(text) if len(text) == 1 and text.isdigit() else None for text in texts]
    return tokens, texts, digits, [(token, 1 / len(tokens)) for token in tokens]


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
