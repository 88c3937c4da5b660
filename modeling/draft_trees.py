"""Draft trees: for every state of an action grammar, the continuations that are most probable for a data set.

Actions are drawn from the histograms of the data set and written as tokens. The tree of a state holds the most
frequent continuations of the drawn actions that pass through it, so nothing here depends on how numbers are written.
A bad draft costs forward passes, never a token.

    slot     0     1   2   3   4          slot 0 is the last accepted token, the others are nodes
    token    .     0   1   00  01
    parent         0   0   1   1
    depth    0     1   1   2   2
"""

import heapq
from collections import defaultdict
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np


DRAWN = 1024  # actions per data set
RANDOM_WALKS = 32  # through the grammar, from a state that no drawn action passes
END_SHARE = 0.01  # of the drawn values at each of -1 and 1, where clipping gathers values
UNIFORM_SHARE = 0.1  # of the drawn values that are uniform
CACHED_DRAFTS = 16  # of a grammar, a data set and a number of nodes
CACHED_GRAMMARS = 16


class DraftTree(NamedTuple):
    """Slots in an order in which every parent comes before its children."""

    tokens: np.ndarray  # int64 [W], as the next three
    parents: np.ndarray
    depths: np.ndarray
    columns: np.ndarray  # the places of the tokens among `action_tokens`
    allowed: np.ndarray  # bool [W, G], which of the `action_tokens` may follow each slot
    mask: np.ndarray  # bool [W, W]; each slot attends to itself and its ancestors

    def padded(self, width: int) -> "DraftTree":
        """With slots up to a width that attend to themselves alone."""
        count = len(self.tokens)
        if count == width:
            return self
        *numbers, allowed, mask = self
        wider = np.eye(width, dtype=bool)
        wider[:count, :count] = mask
        more = ((0, width - count),)
        numbers = [np.pad(each, more) for each in numbers]
        return DraftTree(*numbers, np.pad(allowed, (*more, (0, 0)), constant_values=True), wider)


class Drafts:
    """The trees of one grammar for one data set; `drafts_for` makes them.

    Args:
        grammar: the action grammar.
        drawn: the data set's actions.
        nodes: of a tree; tokens that the grammar forces behind the last accepted one are not counted.
    """

    def __init__(self, grammar: Any, drawn: "DrawnTokens", nodes: int):
        self.grammar, self.drawn, self.nodes = grammar, drawn, nodes
        self.trees: dict[tuple[int, int | None], DraftTree] = {}

    def tree(self, state: int, width: int | None = None) -> DraftTree:
        """The tree of a state, padded to a width; built on first use."""
        if (state, width) not in self.trees:
            self.trees[state, width] = self._grow(state) if width is None else self.tree(state).padded(width)
        return self.trees[state, width]

    def _grow(self, start: int) -> DraftTree:
        grammar, completions = self.grammar, forced_completions(self.grammar)
        tokens, parents, depths, states = [0], [0], [0], [start]
        # Prefixes that are not nodes yet: -frequency, a number that decides ties, slot of the parent, token, rests.
        heap: list[tuple[int, int, int, int, list[list[int]]]] = []
        numbered, left = 0, self.nodes

        def expand(slot: int, rests: list[list[int]]) -> None:
            nonlocal numbered
            if completions[states[slot]] is not None:
                return  # nothing is left to choose
            following: defaultdict[int, list[list[int]]] = defaultdict(list)
            for rest in rests:
                following[rest[depths[slot]]].append(rest)
            for token, theirs in following.items():
                numbered += 1
                heapq.heappush(heap, (-len(theirs), numbered, slot, token, theirs))

        expand(0, self.drawn.rests(start) or random_walks(grammar, start))
        while heap:
            _, _, parent, token, rests = heapq.heappop(heap)
            if left < self.nodes or len(grammar.transitions[states[parent]]) > 1:  # behind the forced tokens
                if not left:
                    break
                left -= 1
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
            states.append(grammar.transitions[states[parent]][token])
            expand(len(tokens) - 1, rests)
        mask = np.eye(len(tokens), dtype=bool)
        for slot, parent in enumerate(parents):
            mask[slot] |= mask[parent]
        return DraftTree(
            np.array(tokens),
            np.array(parents),
            np.array(depths),
            columns=np.searchsorted(action_tokens(grammar), tokens),
            allowed=allowed_columns(grammar)[states],
            mask=mask,
        )


def drawn_actions(strings: Any, histograms: Any) -> np.ndarray:
    """Normalised actions float64 [DRAWN, T, D], the same ones for the same histograms.

    The values of a dimension lie at evenly spaced quantiles, in random order.
    """
    random, dims = np.random.default_rng(0), strings.action_dim
    counts = np.ones((dims, 2)) if histograms is None else np.asarray(histograms, dtype=np.float64) + 0.5
    shares = (1 - UNIFORM_SHARE) * counts / counts.sum(axis=1, keepdims=True) + UNIFORM_SHARE / counts.shape[1]
    edges = np.linspace(-1.0, 1.0, counts.shape[1] + 1)
    actions = np.empty((DRAWN, strings.horizon, dims))
    quantiles = (np.arange(DRAWN) + 0.5) / DRAWN * (1 + 2 * END_SHARE) - END_SHARE  # the ends are below 0 and above 1
    for dim, share in enumerate(shares):
        values = np.interp(quantiles, np.concatenate(([0.0], share.cumsum())), edges)
        if dim in getattr(strings, "binary_dims", ()):
            values = (values > 0.5).astype(np.float64)
        for step in range(strings.horizon):
            actions[:, step, dim] = random.permutation(values)
    return actions


class DrawnTokens:
    """`drawn_actions` as tokens; `states` int64 [DRAWN, L] are the grammar's before each, -1 behind the last."""

    def __init__(self, grammar: Any, histograms: Any):
        self.tokens = grammar.encode_all(drawn_actions(grammar.strings, histograms))
        self.states = np.full((DRAWN, grammar.max_tokens), -1)
        for row, tokens in enumerate(self.tokens):
            passed = accumulate(tokens[:-1], lambda state, token: grammar.transitions[state][token], initial=0)
            self.states[row, : len(tokens)] = list(passed)

    def rests(self, state: int) -> list[list[int]]:
        """What follows a state in each of the actions that pass through it."""
        return [self.tokens[row][place:] for row, place in np.argwhere(self.states == state).tolist()]


def random_walks(grammar: Any, start: int) -> list[list[int]]:
    """Token sequences from a state to the end, each allowed token as probable as the others."""
    random, walks = np.random.default_rng(0), []
    for _ in range(RANDOM_WALKS):
        state, walk = start, []
        while grammar.eos_token_id not in (following := grammar.transitions[state]):
            walk.append([*following][random.integers(len(following))])
            state = following[walk[-1]]
        walks.append(walk)
    return walks


@lru_cache(maxsize=CACHED_GRAMMARS)
def action_tokens(grammar: Any) -> tuple[int, ...]:
    """The G tokens an action can consist of, EOS included, ascending."""
    return tuple(sorted({token for state in grammar.transitions for token in state}))


@lru_cache(maxsize=CACHED_GRAMMARS)
def allowed_columns(grammar: Any) -> np.ndarray:
    """Which of the `action_tokens` may follow each state of the grammar, bool [S, G]."""
    columns = {token: column for column, token in enumerate(action_tokens(grammar))}
    allowed = np.zeros((len(grammar.transitions), len(columns)), dtype=bool)
    for state, following in enumerate(grammar.transitions):
        allowed[state, [columns[token] for token in following]] = True
    return allowed


@lru_cache(maxsize=CACHED_GRAMMARS)
def forced_completions(grammar: Any) -> list[tuple[int, ...] | None]:
    """By state, the tokens that complete the action where the grammar leaves no choice any more, else `None`."""
    found: list[tuple[int, ...] | None] = []
    for state in range(len(grammar.transitions)):
        forced, following = [], grammar.transitions[state]
        while len(following) == 1 and grammar.eos_token_id not in following:
            ((token, state),) = following.items()
            forced.append(token)
            following = grammar.transitions[state]
        found.append(tuple(forced) if grammar.eos_token_id in following and len(following) == 1 else None)
    return found


@lru_cache(maxsize=CACHED_DRAFTS)
def _drawn_tokens(grammar: Any, counts: bytes | None) -> DrawnTokens:
    dims = grammar.strings.action_dim
    return DrawnTokens(grammar, None if counts is None else np.frombuffer(counts).reshape(dims, -1))


@lru_cache(maxsize=CACHED_DRAFTS)
def _drafts(grammar: Any, counts: bytes | None, nodes: int) -> Drafts:
    return Drafts(grammar, _drawn_tokens(grammar, counts), nodes)


def drafts_for(grammar: Any, histograms: Any, nodes: int) -> Drafts:
    """The trees for a data set, cached by the content of its histograms: statistics may be edited in place.

    `histograms` are float [D, bins], counts of normalised values over [-1, 1] per dimension, or `None`.
    """
    return _drafts(grammar, None if histograms is None else np.asarray(histograms, dtype=np.float64).tobytes(), nodes)
