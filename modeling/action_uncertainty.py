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

from .action_grammar import BinGrammar
from .action_prior import Place, step


GRAMMARS_KEPT = 16


def standard_deviations(
    grammar: Any, tokens: Sequence[int], spreads: Sequence[dict[int, float]], values: np.ndarray
) -> np.ndarray:
    """Float32 [T, D], in normalised units.

    Args:
        grammar: of the action.
        tokens: of one action, EOS left out.
        spreads: per token, the probability of every token that was allowed there.
        values: float [T, D], the normalised action that the tokens spell.
    """
    # Of each token in doubt: its value, what a digit counts there, how many tokens it could have been; then of these.
    owners, units, counts = [], [], []
    options: list[int] = []
    chances: list[float] = []
    place = Place()
    for token, spread in zip(tokens, spreads, strict=True):
        if len(spread) > 1:
            owners.append(value_of(grammar, place, token))
            units.append(_unit(place.prefix))
            counts.append(len(spread))
            options += spread
            chances += spread.values()
        place = step(grammar, place, token)
    if not owners:
        return np.zeros(values.shape, dtype=np.float32)
    signs, numbers = _meanings(grammar)
    magnitudes = np.abs(values, dtype=np.float64).reshape(-1)[owners]
    worths = np.array([signs[option] for option in options]) * np.repeat(magnitudes, counts)
    worths += np.array([numbers[option] for option in options]) * np.repeat(units, counts)
    variances = np.bincount(owners, weights=_variances(np.array(chances), worths, counts), minlength=values.size)
    return np.sqrt(variances).astype(np.float32).reshape(values.shape)


def value_of(grammar: Any, place: Place, token: int) -> int:
    """Which value a token decides about: the next one, where it ends a value and begins another."""
    if isinstance(grammar, BinGrammar):
        return place.value
    codec = grammar.strings
    reaches_over = codec.style == "legacy" and grammar.text_of[token].startswith(",")
    return min(place.value + reaches_over, codec.horizon * codec.action_dim - 1)


def _unit(prefix: str) -> float:
    """What the digit behind a prefix counts."""
    _, point, fraction = prefix.partition(".")
    return 10.0 ** -(len(fraction) + 1) if point else 1.0


@lru_cache(maxsize=GRAMMARS_KEPT)
def _meanings(grammar: Any) -> tuple[dict[int, float], dict[int, float]]:
    """What a token says about a value: its sign, which turns the whole value over, and a digit or a bin's centre; 0
    where it says nothing."""
    signs, numbers = {grammar.eos_token_id: 0.0}, {grammar.eos_token_id: 0.0}
    for token, text in grammar.text_of.items():
        piece = text.lstrip(", \n")
        signs[token] = {"+": 1.0, "-": -1.0}.get(piece, 0.0)
        if isinstance(grammar, BinGrammar):
            numbers[token] = float(grammar.strings.to_values(int(piece)))
        else:
            numbers[token] = float(piece) if piece.isdigit() else 0.0
    return signs, numbers


def _variances(chances: np.ndarray, worths: np.ndarray, counts: list[int]) -> np.ndarray:
    """Float64 [groups]: the variance in each of the groups of `counts` options that follow one another."""
    starts = np.cumsum([0, *counts[:-1]])
    means = np.add.reduceat(chances * worths, starts)
    return np.add.reduceat(chances * (worths - np.repeat(means, counts)) ** 2, starts)
