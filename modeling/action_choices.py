"""The tokens an action can be written with, and how probable a model found each of them.

Decides: which rows of the output layer an action needs, in which order; probabilities among what the grammar allows.
Refuses to know: the model, which token is chosen, what a token means.

S states of a grammar, G tokens that an action can be written with, L tokens of one action.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np


GRAMMARS_KEPT = 16
STATES_KEPT = 4096


@lru_cache(maxsize=GRAMMARS_KEPT)
def written_tokens(grammar: Any) -> tuple[tuple[int, ...], dict[int, int]]:
    """The G tokens an action can be written with, ascending, and the column of each."""
    token_ids = tuple(sorted({token for state in grammar.transitions for token in state}))
    return token_ids, {token: index for index, token in enumerate(token_ids)}


@lru_cache(maxsize=STATES_KEPT)
def allowed_in(grammar: Any, state: int) -> tuple[np.ndarray, list[int]]:
    """What may follow in a state, ascending, so that of equals the first is chosen as `generate` does: columns int64
    [N], tokens."""
    _, column = written_tokens(grammar)
    tokens = sorted(grammar.transitions[state])
    return np.array([column[token] for token in tokens]), tokens


@lru_cache(maxsize=GRAMMARS_KEPT)
def _allowed(grammar: Any) -> np.ndarray:
    """Bool [S, G]."""
    _, column = written_tokens(grammar)
    allowed = np.zeros((len(grammar.transitions), len(column)), dtype=bool)
    for state, following in enumerate(grammar.transitions):
        allowed[state, [column[token] for token in following]] = True
    return allowed


def token_chances(grammar: Any, tokens: Sequence[int], logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Float64 [L]: the probability of each of `tokens` among those allowed in its place.

    Args:
        tokens: of one action, legal, EOS left out.
        logits: float [L, G]; any numbers where there was no choice.
        temperature: that tokens were sampled at.
    """
    allowed, states = _allowed(grammar), []
    state = 0
    for token in tokens:
        states.append(state)
        state = grammar.transitions[state][token]
    scores = np.where(allowed[states], logits.astype(np.float64) / temperature, -np.inf)
    with np.errstate(invalid="ignore"):  # what is no number stays none
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    column = written_tokens(grammar)[1]
    return weights[range(len(tokens)), [column[token] for token in tokens]] / weights.sum(axis=1)


def chosen_chances(token_ids: np.ndarray, chances: list[np.ndarray]) -> np.ndarray:
    """Float32 [B, L]: the probability of each chosen token, 1 behind the end of a row.

    Args:
        token_ids: int64 [B, L].
        chances: per row, float64 [tokens of the row].

    Raises:
        ValueError: where one is no number: what was chosen by it is no action.
    """
    chosen = np.ones(token_ids.shape, dtype=np.float32)
    for row, each in enumerate(chances):
        chosen[row, : len(each)] = each
    wrong = np.flatnonzero(np.isnan(chosen).any(axis=1))
    if len(wrong):
        raise ValueError(
            f"got probabilities that are no numbers in row {wrong[0]} of {len(chosen)}, expected numbers: "
            "pixel_values or weights hold NaN or infinity, or the model overflows; for float16, try bfloat16"
        )
    return chosen
