"""How sure the model was of an action, from the probabilities of the tokens it could have written.

Decides: the standard deviation of a value from the distribution of each of its tokens. Refuses to know: the model,
units, how decoding works.

A value is sign x (integer + digits). Each token's distribution is conditional on the tokens before it, so the sum of
their variances along the chosen path is the variance of the value as far as this one path shows it: exact for the last
token that is in doubt, an estimate for earlier ones, since other paths would have gone on differently. It comes at no
extra forward pass.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .action_choices import written_tokens
from .action_grammar import BinGrammar
from .action_prior import STEPS_KEPT, Place, step


GRAMMARS_KEPT = 16


def standard_deviations(grammar: Any, tokens: Sequence[int], chances: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Float32 [T, D], in normalised units.

    Args:
        grammar: of the action.
        tokens: L of one action, EOS left out.
        chances: float64 [L, G], the probability of every token in the place of each (`action_choices.py`).
        values: float [T, D], the normalised action that the tokens spell.
    """
    owners, units = [], []
    place = Place()
    for token in tokens:
        owner, unit, place = _told(grammar, place, token)
        owners.append(owner)
        units.append(unit)
    signs, numbers = _meanings(grammar)
    magnitudes = np.abs(values, dtype=np.float64).reshape(-1)[owners]
    worths = signs * magnitudes[:, None] + numbers * np.array(units)[:, None]
    means = np.einsum("lg,lg->l", chances, worths)
    variances = np.einsum("lg,lg->l", chances, (worths - means[:, None]) ** 2)
    total = np.bincount(owners, weights=variances, minlength=values.size)
    return np.sqrt(total).astype(np.float32).reshape(values.shape)


def value_of(grammar: Any, place: Place, token: int) -> int:
    """Which value a token decides about: the next one, where it ends a value and begins another."""
    if isinstance(grammar, BinGrammar):
        return place.value
    codec = grammar.strings
    reaches_over = codec.style == "legacy" and grammar.text_of[token].startswith(",")
    return min(place.value + reaches_over, codec.horizon * codec.action_dim - 1)


@lru_cache(maxsize=STEPS_KEPT)
def _told(grammar: Any, place: Place, token: int) -> tuple[int, float, Place]:
    """Which value a token decides about, what a digit in its place counts there, and the place behind it."""
    _, point, fraction = place.prefix.partition(".")
    unit = 10.0 ** -(len(fraction) + 1) if point else 1.0
    return value_of(grammar, place, token), unit, step(grammar, place, token)


@lru_cache(maxsize=GRAMMARS_KEPT)
def _meanings(grammar: Any) -> tuple[np.ndarray, np.ndarray]:
    """What each of the G tokens says about a value, float64 [G] each: its sign, which turns the whole value over, and
    a digit or a bin's centre; 0 where it says nothing."""
    token_ids, _ = written_tokens(grammar)
    pieces = [grammar.text_of.get(token, "").lstrip(", \n") for token in token_ids]
    signs = [{"+": 1.0, "-": -1.0}.get(piece, 0.0) for piece in pieces]
    if isinstance(grammar, BinGrammar):
        numbers = [float(grammar.strings.to_values(int(piece))) if piece else 0.0 for piece in pieces]
    else:
        numbers = [float(piece) if piece.isdigit() else 0.0 for piece in pieces]
    return np.array(signs), np.array(numbers)
