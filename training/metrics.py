"""Figures per source of a training run, from what the model predicts under teacher forcing.

For each kind (`robot`, `vision_language`) and each source (`robot/bridge_orig`, `vision_language/onevision`):

    loss             mean negative log-likelihood of the supervised tokens, unweighted, in nats
    token_accuracy   share of supervised tokens that are the most likely one
    exact            share of rows with every token right
    replaced         share of rows that stand in for unreadable ones; only where there are any

and for robot data besides:

    sign_accuracy    share of signs that are right, zeros included
    action_error     mean absolute error in the data set's units (of relative actions before they are turned back),
                     over the supervised values whose predicted tokens are a number (`predicted_values`); for sources
                     only: kinds mix units
    malformed        share of rows whose predicted tokens spell no action, without those whose chunk reaches behind the
                     end of an episode: only a part of them is supervised
"""

import re
from typing import Any

import numpy as np
import torch

from gen_vla.processors import ActionStringError, unnormalize_actions
from gen_vla.processors.action_grammar import ActionGrammar, BinGrammar, grammar_from_action_config
from gen_vla.processors.action_strings import SEPARATORS
from gen_vla.training.mixing.prepared_rows import ROBOT


NO_NUMBER, NUMBER = "?", r"[+-]?(\d+\.?\d*|\.\d+)"


class MetricSums:
    """Sums over the rows of training steps per source, in the order of `source_id`, and the figures made of them."""

    COLUMNS: tuple[str, ...] = ()

    def __init__(self, sources: list[str], norm_stats: dict[str, Any]):
        self.sources = sources
        self.norm_stats = {key: {"action": {**of["action"], "relative": None}} for key, of in norm_stats.items()}
        self.sums = np.zeros((len(sources), len(self.COLUMNS)))

    def read(self, accelerator: Any) -> dict[str, float]:
        """The figures over all processes since the last reading, by name; every process has to ask."""
        local = torch.from_numpy(self.sums).to(accelerator.device, torch.float32)
        totals: Any = accelerator.reduce(local).double().cpu().numpy()
        self.sums[:] = 0.0
        named: dict[str, np.ndarray] = {}
        for kind in dict.fromkeys(name.partition("/")[0] for name in self.sources):
            own = [number for number, name in enumerate(self.sources) if name.partition("/")[0] == kind]
            named[kind] = totals[own].sum(axis=0)
            named |= {self.sources[number]: totals[number] for number in own}
        figures: dict[str, float] = {}
        for name, values in named.items():
            sums = dict(zip(self.COLUMNS, values.tolist(), strict=True))
            if sums["rows"]:
                means = self.means(name.partition("/")[0], sums)
                if sums["replaced"]:
                    means["replaced"] = sums["replaced"] / sums["rows"]
                if "/" not in name:
                    means.pop("action_error", None)
                figures |= {f"{name}/{figure}": value for figure, value in means.items()}
        return figures

    def means(self, kind: str, sums: dict[str, float]) -> dict[str, float]:
        """The figures of one source, or of all of a kind, that had any row."""
        raise NotImplementedError


class SourceMetrics(MetricSums):
    """Figures of predicted tokens; `action_config` is `None` for a model that does not act."""

    COLUMNS = (
        *("loss", "right", "tokens", "right_signs", "signs", "exact", "rows", "replaced"),
        *("error", "values", "whole", "malformed"),
    )

    def __init__(self, sources: list[str], action_config: dict[str, Any] | None, norm_stats: dict[str, Any]):
        super().__init__(sources, norm_stats)
        self.grammar = grammar_from_action_config(action_config) if action_config else None
        pieces = (action_config or {}).get("pieces", {})
        self.sign_ids = torch.tensor([pieces[sign] for sign in "+-" if sign in pieces] or [-1])

    def add(
        self,
        log_probs: torch.Tensor,
        predicted: torch.Tensor,
        labels: torch.Tensor,
        source_id: torch.Tensor,
        replaced: torch.Tensor,
    ) -> None:
        """One micro-batch.

        Args:
            log_probs: float [B, L] of the labels, zero where nothing is supervised.
            predicted: int64 [B, L], the most likely token.
            labels: int64 [B, L], -100 where nothing is supervised.
            source_id: int64 [B]; rows of -1 are in no figure.
            replaced: bool [B].
        """
        if not bool((counted := source_id >= 0).all()):
            every = (log_probs, predicted, labels, source_id, replaced)
            log_probs, predicted, labels, source_id, replaced = (tensor[counted] for tensor in every)
        supervised = labels != -100
        right = (predicted == labels) & supervised
        signs = torch.isin(labels, self.sign_ids.to(labels.device)) & supervised
        per_row = (-log_probs, right, supervised, right & signs, signs)
        columns = [part.sum(dim=1).double() for part in per_row]
        columns += [(right == supervised).all(dim=1).double(), torch.ones_like(columns[0]), replaced.double()]
        figures = torch.stack([column.to(labels.device) for column in columns], dim=1).cpu().numpy()
        ids = source_id.tolist()
        np.add.at(self.sums[:, : figures.shape[1]], ids, figures)
        for row, number in enumerate(ids):
            if self.grammar is not None and self.sources[number].partition("/")[0] == ROBOT:
                kept = supervised[row]
                tokens = predicted[row][kept].tolist(), labels[row][kept].tolist()
                self.sums[number, figures.shape[1] :] += self._action_errors(self.grammar, number, *tokens)

    def _action_errors(
        self, grammar: ActionGrammar | BinGrammar, number: int, predicted: list[int], expected: list[int]
    ) -> tuple[float, int, int, int]:
        """Of one action: the sum of its errors, of how many values, whether all of it is supervised (then the last
        label is EOS), and whether it is malformed.
        """
        statistics = self.norm_stats[self.sources[number].partition("/")[2]]["action"]
        pair = predicted_values(grammar, predicted, expected)
        known = np.isfinite(pair).all(axis=0)  # NaN stands for a value that tokens do not spell
        errors = np.subtract(*(unnormalize_actions(np.where(known, values, 0.0), statistics) for values in pair))
        whole = expected[-1] == grammar.eos_token_id
        malformed = whole and not _spells_an_action(grammar, predicted[:-1])
        return np.abs(errors[known]).sum(), known.sum(), whole, malformed

    def means(self, kind: str, sums: dict[str, float]) -> dict[str, float]:
        figures = {
            "loss": sums["loss"] / sums["tokens"],
            "token_accuracy": sums["right"] / sums["tokens"],
            "exact": sums["exact"] / sums["rows"],
        }
        if kind == ROBOT and sums["signs"]:
            figures["sign_accuracy"] = sums["right_signs"] / sums["signs"]
        if sums["whole"]:
            figures["malformed"] = sums["malformed"] / sums["whole"]
        if sums["values"]:
            figures["action_error"] = sums["error"] / sums["values"]
        return figures


def _spells_an_action(grammar: ActionGrammar | BinGrammar, tokens: list[int]) -> bool:
    try:
        grammar.strings.decode(grammar.text(tokens))
    except ActionStringError:
        return False
    return True


def predicted_values(
    grammar: ActionGrammar | BinGrammar, predicted: list[int], expected: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Two float64 [steps, D] in [-1, 1]: of the predicted tokens, NaN where they are no number, and as recorded.

    Every token was predicted behind the recorded ones before it, so that together they need not spell an action: where
    the 1 of -1.00 is taken for a 0, they spell -0.00, which no action has. It reads as a number all the same, one as
    wrong as the digit. A value is read at the places of the recorded one, whatever stands between values:

        recorded   +0.50-1.00      predicted  +0.50-0.00   ->  0.5, -0.0
                                              +0.5+-1.00   ->  nothing, -1.0

    Args:
        predicted: as many tokens as `expected`.
        expected: those of an action or of its first steps, EOS included or not.
    """
    pairs = [pair for pair in zip(predicted, expected, strict=True) if pair[1] != grammar.eos_token_id]
    read, wanted = _bin_values(grammar, pairs) if isinstance(grammar, BinGrammar) else _string_values(grammar, pairs)
    width = grammar.strings.action_dim
    whole = len(wanted) // width * width
    return read[:whole].reshape(-1, width), wanted[:whole].reshape(-1, width)


def _bin_values(grammar: BinGrammar, pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.array([[int(grammar.text_of.get(token, -1)) for token in pair] for pair in pairs]).reshape(-1, 2)
    values = np.where(numbers < 0, np.nan, grammar.strings.to_values(numbers)).astype(np.float64)
    return values[:, 0], values[:, 1]


def _string_values(grammar: ActionGrammar, pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Of one token per character, or for a separator and a sign that the vocabulary merges."""
    automaton, state, ahead = grammar.strings.automaton, 0, len(grammar.prefix)
    between = SEPARATORS + grammar.prefix
    read, wanted = [""] * automaton.values, [""] * automaton.values
    for guess, token in pairs:
        text, other = grammar.text_of[token], grammar.text_of.get(guess, NO_NUMBER)
        value, parted = 0, False
        for character in text:
            if ahead:
                ahead, parted = ahead - 1, True
                continue
            value, state = automaton.value_of[state], automaton.edges[state][character]
            if character in SEPARATORS:
                parted = True
            else:
                wanted[value] += character
        if state == automaton.final and text[-1] in SEPARATORS:
            continue
        if parted:  # a sign behind it belongs to the next value
            read[automaton.value_of[state]] += other.lstrip(between) if other[0] in between else ""
        else:
            read[value] += NO_NUMBER if other in between or other[0] in between else other
    count = sum(map(bool, wanted))
    numbers = [text if re.fullmatch(NUMBER, text) else "nan" for text in read[:count]]
    return np.array(numbers, dtype=np.float64), np.array(wanted[:count], dtype=np.float64)
