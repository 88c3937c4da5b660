"""The steps of a chunk that are decided already (`prefix_actions` of `predict_actions`), as tokens that are forced."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from .action_statistics import normalize_actions


class ForcedTokens(LogitsProcessor):
    """Forbids all tokens but the one that is forced in its place; `forced` are those each action begins with."""

    def __init__(self, forced: Sequence[list[int]], prompt_length: int):
        self.forced, self.prompt_length = forced, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """`input_ids` int64 [B * beams, L], `scores` float [B * beams, V]; returns the masked scores."""
        place, beams = input_ids.shape[1] - self.prompt_length, len(scores) // len(self.forced)
        for row in range(len(scores)):
            tokens = self.forced[row // beams]
            if place < len(tokens):
                others = torch.arange(scores.shape[1], device=scores.device) != tokens[place]
                scores[row] = scores[row].masked_fill(others, -torch.inf)
        return scores


def prefix_tokens(
    grammar: Any, prefix_actions: Any, action_statistics: Sequence[dict[str, Any]], states: Sequence[Any]
) -> list[list[int]]:
    """The tokens that each of B actions begins with, whatever follows its given steps.

    Args:
        prefix_actions: as for `predict_actions`.
        states: of each row, float [P], or `None`.
    """
    rows, strings = len(action_statistics), grammar.strings
    if prefix_actions is None:
        return [[]] * rows
    if len(prefix_actions) != rows:
        raise ValueError(f"got prefix_actions of {len(prefix_actions)} rows, expected {rows}, one per observation")
    if getattr(strings, "style", None) == "legacy" and any(map(len, prefix_actions)):
        raise ValueError(
            "got prefix_actions for a model of style 'legacy', expected 'signed', 'plain' or bins: a legacy value has "
            "no fixed length, so that the model could write on at the end of the prefix"
        )
    found = []
    for given, entry, state in zip(prefix_actions, action_statistics, states, strict=True):
        steps = np.asarray(given, dtype=np.float64)
        if steps.ndim != 2 or steps.shape[1] != strings.action_dim or len(steps) >= strings.horizon:
            raise ValueError(
                f"got prefix_actions of shape {list(steps.shape)} for an observation, expected [k, "
                f"{strings.action_dim}] with k below the horizon, {strings.horizon}: a step must be left to write"
            )
        if not np.isfinite(steps).all():
            raise ValueError("got prefix_actions with NaN or infinity, expected the actions that are carried out")
        # What two actions have in common that differ in the first value behind the prefix.
        first, second = np.zeros((2, strings.horizon, strings.action_dim))
        first[: len(steps)] = second[: len(steps)] = normalize_actions(steps, entry, state)
        second[len(steps), 0] = 1.0 if 0 in getattr(strings, "binary_dims", ()) else -0.5
        one, other = (grammar.token_ids(grammar.prefix + strings.encode(chunk)) for chunk in (first, second))
        found.append([token for token, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other))])
    return found
