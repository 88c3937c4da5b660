"""The tokens an action can consist of, and the model's probability of each one among those the grammar allows.

Axes: S states of a grammar, G tokens that actions can consist of, L tokens of one action.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np


CACHED_GRAMMARS = 16
CACHED_STATES = 4096


@lru_cache(maxsize=CACHED_GRAMMARS)
def action_tokens(grammar: Any) -> tuple[tuple[int, ...], dict[int, int]]:
    """The G tokens an action can consist of, ascending, and the column of each."""
    token_ids = tuple(sorted({token for state in grammar.transitions for token in state}))
    return token_ids, {token: index for index, token in enumerate(token_ids)}


@lru_cache(maxsize=CACHED_STATES)
def allowed_tokens(grammar: Any, state: int) -> tuple[np.ndarray, list[int]]:
    """Columns int64 [N] and ids of the tokens allowed in a state, ascending: the first wins ties, as in `generate`."""
    _, column = action_tokens(grammar)
    tokens = sorted(grammar.transitions[state])
    return np.array([column[token] for token in tokens]), tokens


@lru_cache(maxsize=CACHED_GRAMMARS)
def _allowed_columns(grammar: Any) -> np.ndarray:
    """Bool [S, G]."""
    _, column = action_tokens(grammar)
    allowed = np.zeros((len(grammar.transitions), len(column)), dtype=bool)
    for state, following in enumerate(grammar.transitions):
        allowed[state, [column[token] for token in following]] = True
    return allowed


def token_probabilities(
    grammar: Any, tokens: Sequence[int], logits: np.ndarray, temperature: float = 1.0
) -> np.ndarray:
    """Probability of each token of an action among those the grammar allows in its place, float64 [L].

    Args:
        tokens: of one action, without EOS.
        logits: float [L, G]; ignored where only one token is allowed.
        temperature: the sampling temperature.
    """
    states, state = [], 0
    for token in tokens:
        states.append(state)
        state = grammar.transitions[state][token]
    scores = np.where(_allowed_columns(grammar)[states], logits.astype(np.float64) / temperature, -np.inf)
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    column = action_tokens(grammar)[1]
    return weights[range(len(tokens)), [column[token] for token in tokens]] / weights.sum(axis=1)


def padded_probabilities(token_ids: np.ndarray, probabilities: list[np.ndarray]) -> np.ndarray:
    """Probabilities of all rows, float32 [B, L], padded with 1; `token_ids` is int64 [B, L].

    Raises:
        ValueError: where a probability is NaN: tokens chosen by it are no action.
    """
    padded = np.ones(token_ids.shape, dtype=np.float32)
    for row, each in enumerate(probabilities):
        padded[row, : len(each)] = each
    wrong = np.flatnonzero(np.isnan(padded).any(axis=1))
    if len(wrong):
        raise ValueError(
            f"got NaN as probabilities in row {wrong[0]} of {len(padded)}, expected numbers: pixel_values or weights "
            "hold NaN or infinity, or the model overflows; for float16, try bfloat16"
        )
    return padded
