"""The tree of token continuations that is worth checking in one pass.

Decides: which continuations make up a tree of a given size, and where a model will probably leave it. Refuses to know:
the model, how probable values are (`action_prior.py`), slots and positions (`tree_decoding.py`).
"""

import heapq
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import Any

import numpy as np

from .action_grammar import ActionGrammar, BinGrammar
from .action_prior import STEPS_KEPT, ActionPrior, Place, digit_row, step


FORKS_KEPT = 2**16  # of a grammar, some tens of megabytes
GRAMMARS_KEPT = 16
LARGEST = 2**20  # nodes of a tree


@dataclass
class TokenTree:
    """Nodes in an order in which every parent comes before its children. Parent -1 is the end of what is known.

    Attributes:
        tokens, parents, depths: of each node; the first ones have depth 1.
        children: `edge(parent, token)` -> node.
        chances: of each node, how probable it is thought to be.
        forks: of each node, what may follow; `start` is the fork that the tree begins at.
    """

    start: "Fork | None" = field(default=None, repr=False, compare=False)
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    children: dict[int, int] = field(default_factory=dict)
    chances: list[float] = field(default_factory=list)
    forks: list["Fork"] = field(default_factory=list, repr=False, compare=False)

    def child(self, parent: int, token: int) -> int | None:
        """The node of a token behind a parent, if the tree has it."""
        return self.children.get(edge(parent, token))

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens and depths int64 [N]; who sees whom, bool [N, N]: each node itself and its ancestors."""
        count = len(self.tokens)
        size = -(-count // 8)
        sights: list[int] = []  # of each node whom it sees, one bit each, the first node's lowest
        for node, parent in enumerate(self.parents):
            sights.append(1 << node | (sights[parent] if parent >= 0 else 0))
        packed = b"".join(sight.to_bytes(size, "little") for sight in sights)
        bits = np.frombuffer(packed, dtype=np.uint8).reshape(count, size)
        sight = np.unpackbits(bits, axis=1, count=count, bitorder="little").view(bool)
        return np.array(self.tokens, dtype=np.int64), np.array(self.depths, dtype=np.int64), sight


def edge(parent: int, token: int) -> int:
    """A parent and a token as one number: of thousands of pairs, Python's garbage collector would keep track."""
    return parent + token * LARGEST


def grow_tree(grammar: Any, prior: ActionPrior, start: Place, nodes: int) -> TokenTree:
    """The `nodes` most probable continuations of `start`, best first.

    A continuation is at most as probable as its beginning, so taking the best one at a time gives the tree from which
    the most tokens are expected to be read, of all trees of this size.
    """
    fork = fork_at(grammar, start)
    known = prior.trees.get((fork, nodes))
    if known is not None:
        return known
    tree = prior.trees[fork, nodes] = TokenTree(fork)
    tokens, parents, depths, children = tree.tokens, tree.parents, tree.depths, tree.children
    chances, forks = tree.chances, tree.forks
    # Of each parent's continuations the best one not taken yet: -probability, parent, which it is, -the parent's
    # probability, where the parent ends, all continuations. Most parents get no child: until one gets its first, its
    # continuations are `None`.
    best = _best_chance(grammar, prior, fork)
    heap: list[Any] = [(-best, -1, 0, -1.0, fork, None)] if best else []
    while heap and len(tokens) < nodes:
        chance, parent, which, above, fork, options = heap[0]
        if options is None:
            options = _ordered_options(grammar, prior, fork)
        token, node = options[which][0], len(tokens)
        reached = fork.following.get(token) or _follow(grammar, fork, token)
        tokens.append(token)
        parents.append(parent)
        depths.append(1 if parent < 0 else depths[parent] + 1)
        children[parent + token * LARGEST] = node  # `edge`, without the call
        chances.append(-chance)
        forks.append(reached)
        which += 1
        if which < len(options):
            heapq.heapreplace(heap, (above * options[which][1], parent, which, above, fork, options))
        else:
            heapq.heappop(heap)
        if best := _best_chance(grammar, prior, reached):
            heapq.heappush(heap, (chance * best, node, 0, chance, reached, None))
    return tree


def likely_ends(grammar: Any, prior: ActionPrior, tree: TokenTree) -> list[tuple[float, Place]]:
    """Where a model will probably leave a tree, most probable first, with the probability.

    These are the places the next trees may be grown from: behind the first token that is no node and those that the
    grammar forces. Where all such tokens of a node lead to trees that are alike, any of them stands for all; where
    not, the most probable one stands for itself.
    """
    if tree.start is None:
        return []
    taken = [0] * (len(tree.tokens) + 1)  # of each node's continuations, the start's first; the best ones are
    left = [1.0, *tree.chances]
    for parent, chance in zip(tree.parents, tree.chances):
        taken[parent + 1] += 1
        left[parent + 1] -= chance
    ends: defaultdict[Fork, float] = defaultdict(float)
    for fork, chance, count, mass in zip([tree.start, *tree.forks], [1.0, *tree.chances], taken, left):
        options = _ordered_options(grammar, prior, fork)
        if count < len(options):
            first, last = (_settled(grammar, fork, options[which][0]) for which in (count, -1))
            if first is not None:
                ends[first] += mass if first is last else chance * options[count][1]
    return sorted(((mass, fork.place) for fork, mass in ends.items()), key=itemgetter(0), reverse=True)


def _settled(grammar: Any, fork: "Fork", token: int) -> "Fork | None":
    """The fork behind a token and those that have no alternative; `None` where the action is over."""
    if token not in fork.settled:
        reached = fork.following.get(token) or _follow(grammar, fork, token)
        while len(grammar.transitions[reached.place.state]) == 1 and reached.tokens:
            reached = _follow(grammar, reached, reached.tokens[0])
        fork.settled[token] = reached if reached.tokens else None
    return fork.settled[token]


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
        edges = grammar.strings.edges
        bins = prior.masses(place.value, np.append(edges, edges[-1]))  # the last bin holds the last edge alone
        masses = [float(bins[int(text)]) + 1e-9 for text in fork.texts]
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
        settled: likewise, behind those that a token forces, too; `None` where nothing follows.
    """

    place: Place
    tokens: list[int]
    texts: list[str]
    digits: list[int | None]
    equally: list[tuple[int, float]] | None = None
    decimals: str | None = None
    row: int | None = None
    following: dict[int, "Fork"] = field(default_factory=dict, repr=False)
    settled: dict[int, "Fork | None"] = field(default_factory=dict, repr=False)


def fork_at(grammar: Any, place: Place) -> Fork:
    """The fork of a place; kept, since trees of one action after another go the same ways.

    Places from which the same trees grow have the same fork: behind decimals finer than the grid of the prior, it does
    not matter which they were. (In legacy style it does, since numbers end where they like.)
    """
    decimals = len(place.prefix.partition(".")[2])
    if decimals > 2 and grammar.strings.style != "legacy":
        place = Place(place.state, place.value, "0." + "0" * decimals)
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
            fork.row = digit_row(place.value, prefix[0] == "-", fork.decimals)
    return fork


@lru_cache(maxsize=STEPS_KEPT)
def _allowed(grammar: Any, state: int) -> tuple[list[int], list[str], list[int | None], list[tuple[int, float]]]:
    """What may follow in a state, EOS excepted: tokens, texts, digits, and each token with the same probability."""
    tokens = [token for token in grammar.transitions[state] if token != grammar.eos_token_id]
    texts = [grammar.text_of[token] for token in tokens]
    digits = [int(text) if len(text) == 1 and text.isdigit() else None for text in texts]
    return tokens, texts, digits, [(token, 1 / len(tokens)) for token in tokens]


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
