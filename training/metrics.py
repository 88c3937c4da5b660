"""Figures per source of a training run, from what the model would have written under teacher forcing.

Decides: which figures there are and how they are averaged: sums over the rows of all processes since the last log,
divided at the end, so that every token or row counts the same. Refuses to know: the loss that is minimised, models,
where figures go.

For each kind (`robot`, `vision_language`) and each source (`robot/bridge_orig`, `vision_language/onevision`):

    loss             mean negative log-likelihood of the supervised tokens, unweighted, in nats
    token_accuracy   share of supervised tokens that are the most likely one
    exact            share of rows with every token right
    replaced         share of rows that stand in for unreadable ones; only where there are any

and for robot data besides:

    sign_accuracy    share of signs that are right, zeros included
    action_error     mean absolute error in the data set's units, over the values that are supervised and read as a
                     number in the likeliest tokens (`likeliest_values.py`); for sources only: kinds mix units
    malformed        share of rows whose likeliest tokens spell no action, without those whose chunk reaches behind the
                     end of an episode: only a part of them is supervised
"""

from typing import Any

import numpy as np
import torch

from gen_vla.processors import ActionStringError, unnormalize_actions
from gen_vla.processors.action_grammar import ActionGrammar, BinGrammar, grammar_from_action_config
from gen_vla.training.likeliest_values import likeliest_values
from gen_vla.training.mixing.prepared_rows import ROBOT


SUMS = (
    "loss",
    "right",
    "tokens",
    "right_signs",
    "signs",
    "exact",
    "rows",
    "replaced",
    "error",
    "values",
    "whole",
    "malformed",
)


class SourceMetrics:
    """Adds up figures of training steps.

    Args:
        sources: names, in the order of `source_id`.
        action_config: the action format, or `None` for a model that does not act.
        norm_stats: statistics of the robot data sets by key.
    """

    def __init__(self, sources: list[str], action_config: dict[str, Any] | None, norm_stats: dict[str, Any]):
        self.sources = sources
        self.norm_stats = norm_stats
        self.grammar: ActionGrammar | BinGrammar | None = None
        if action_config:
            self.grammar = grammar_from_action_config(action_config)
        pieces = (action_config or {}).get("pieces", {})
        self.sign_ids = torch.tensor([pieces[sign] for sign in "+-" if sign in pieces] or [-1])
        self.sums = np.zeros((len(sources), len(SUMS)))

    def add(
        self,
        log_probs: torch.Tensor,
        likeliest: torch.Tensor,
        labels: torch.Tensor,
        source_id: torch.Tensor,
        replaced: torch.Tensor,
    ) -> None:
        """One micro-batch.

        Args:
            log_probs: float [B, L] of the labels, zero where nothing is supervised.
            likeliest: int64 [B, L], the most likely token.
            labels: int64 [B, L], -100 where nothing is supervised.
            source_id: int64 [B].
            replaced: bool [B].
        """
        supervised = labels != -100
        right = (likeliest == labels) & supervised
        signs = torch.isin(labels, self.sign_ids.to(labels.device)) & supervised
        per_row = (-log_probs, right, supervised, right & signs, signs)
        columns = [part.sum(dim=1).double() for part in per_row]
        columns += [(right == supervised).all(dim=1).double(), torch.ones_like(columns[0]), replaced.double()]
        figures = torch.stack([column.to(labels.device) for column in columns], dim=1).cpu().numpy()
        ids = source_id.tolist()
        np.add.at(self.sums[:, : figures.shape[1]], ids, figures)
        for row, number in enumerate(ids):
            kind, _, key = self.sources[number].partition("/")
            if kind == ROBOT and self.grammar is not None:
                kept = supervised[row]
                self._add_error(number, key, likeliest[row][kept].tolist(), labels[row][kept].tolist())

    def _add_error(self, number: int, key: str, predicted: list[int], expected: list[int]) -> None:
        """The errors of one action's values; the last token of both is EOS, or stands in its place, unless a part is
        missing.
        """
        assert self.grammar is not None
        statistics = self.norm_stats[key]["action"]
        pair = likeliest_values(self.grammar, predicted, expected)
        known = np.isfinite(pair).all(axis=0)  # NaN stands for a value that tokens do not spell
        errors = np.subtract(*(unnormalize_actions(np.where(known, values, 0.0), statistics) for values in pair))
        self.sums[number, SUMS.index("error")] += np.abs(errors[known]).sum()
        self.sums[number, SUMS.index("values")] += known.sum()
        if expected[-1] == self.grammar.eos_token_id:
            self.sums[number, SUMS.index("whole")] += 1
            self.sums[number, SUMS.index("malformed")] += not self._spells_an_action(predicted[:-1])

    def _spells_an_action(self, tokens: list[int]) -> bool:
        assert self.grammar is not None
        try:
            self.grammar.strings.decode(self.grammar.text(tokens))
        except ActionStringError:
            return False
        return True

    def read(self, accelerator: Any) -> dict[str, float]:
        """The figures over all processes since the last reading, by name; every process has to ask."""
        local = torch.from_numpy(self.sums).to(accelerator.device, torch.float32)
        totals: Any = accelerator.reduce(local).double().cpu().numpy()
        self.sums[:] = 0.0
        figures: dict[str, float] = {}
        for kind in dict.fromkeys(name.partition("/")[0] for name in self.sources):
            own = [number for number, name in enumerate(self.sources) if name.partition("/")[0] == kind]
            figures |= _figures(kind, totals[own].sum(axis=0), units=False)
            for number in own:
                figures |= _figures(self.sources[number], totals[number], units=True)
        return figures


def _figures(name: str, totals: np.ndarray, units: bool) -> dict[str, float]:
    """Means of one source or kind that had any row."""
    sums = dict(zip(SUMS, totals.tolist(), strict=True))
    if not sums["rows"]:
        return {}
    figures = {
        "loss": sums["loss"] / sums["tokens"],
        "token_accuracy": sums["right"] / sums["tokens"],
        "exact": sums["exact"] / sums["rows"],
    }
    if sums["replaced"]:
        figures["replaced"] = sums["replaced"] / sums["rows"]
    if name.partition("/")[0] == ROBOT:
        if sums["signs"]:
            figures["sign_accuracy"] = sums["right_signs"] / sums["signs"]
        if sums["whole"]:
            figures["malformed"] = sums["malformed"] / sums["whole"]
        if units and sums["values"]:
            figures["action_error"] = sums["error"] / sums["values"]
    return {f"{name}/{figure}": value for figure, value in figures.items()}
