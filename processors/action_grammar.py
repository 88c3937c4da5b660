"""The token grammar of actions, under which `generate` can write nothing else.

The token automaton of an action string is compiled from the character automaton of `action_strings.py`. It accepts
exactly the token sequences that the tokenizer gives for the strings of `ActionStringProcessor.encode`, one per string.
Digits are tokens of their own, so a string consists of digits and runs of characters between them, whose ids the
tokenizer was asked for: `0.5,-1.0,` has the runs `.` `,-` `.` `,`, whatever the vocabulary merges in them.

It is described by `action_config` in the configurations of model and processor:

    {"representation": "string", "style": "signed", "action_dim": 7, "horizon": 1, "decimals": 4, "binary_dims": [6],
     "lead_in": "\\n", "lead_in_ids": [13], "pieces": {"+": 29974, ...}, "runs": {"\\n+": [13, 29974], ...},
     "eos_token_id": 2}

    {"representation": "bins", "action_dim": 7, "horizon": 1, "bins": 256, "bin_tokens_end": 32000,
     "lead_in": " ", "lead_in_ids": [29871], "eos_token_id": 2}

`pieces` are the ids of texts that are one token, `runs` those of every run without digits. Old configurations lack
`runs`; a run is then its longest pieces from left to right (the same for Llama-2 and Gemma). `lead_in_ids` is appended
to the prompt. It is empty for the legacy style, whose lead-in, a space, merges with a minus sign after it (`▁-` is one
piece) and is generated with the answer. Bin b is the token `bin_tokens_end - 1 - b`: OpenVLA counts its bins from the
end of the vocabulary.
"""

import re
from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from .action_bins import ActionBins
from .action_strings import DIGITS, ActionStringError, ActionStringProcessor, by_representation


def make_action_config(
    codec: ActionStringProcessor | ActionBins, tokenizer: Any, bin_tokens_end: int | None = None
) -> dict[str, Any]:
    """The action format as a dictionary for config.json; `ValueError` for a tokenizer that cannot write it.

    `bin_tokens_end` is, for bins, the first token id after theirs; by default the end of the vocabulary without added
    tokens, as in OpenVLA.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("got a tokenizer without an end-of-sequence token, expected one; set tokenizer.eos_token")
    if isinstance(codec, ActionBins):
        own = _bins_config(codec, tokenizer, tokenizer.vocab_size if bin_tokens_end is None else bin_tokens_end)
    else:
        own = {"representation": "string", "style": codec.style, "decimals": codec.decimals}
        own |= {"binary_dims": list(codec.binary_dims), **_pieces_and_runs(codec, tokenizer)}
    written = getattr(codec, "style", None) == "legacy"  # the lead-in, by the model
    return {
        **own,
        "action_dim": codec.action_dim,
        "horizon": codec.horizon,
        "lead_in": codec.lead_in,
        "lead_in_ids": [] if written else _ids_between_digits(tokenizer, codec.lead_in),
        "eos_token_id": tokenizer.eos_token_id,
    }


def _bins_config(codec: ActionBins, tokenizer: Any, end: int) -> dict[str, Any]:
    ids = range(end - codec.bins, end)
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    if ids[0] < 0 or end > len(tokenizer) or special.intersection(ids):
        raise ValueError(
            f"got a vocabulary of {len(tokenizer)} tokens and bin_tokens_end={end}, expected {codec.bins} tokens "
            "below it, none of them BOS, EOS or padding; choose fewer bins or another place for them"
        )
    return {"representation": "bins", "bins": codec.bins, "bin_tokens_end": end}


def grammar_from_action_config(action_config: dict[str, Any]) -> "ActionGrammar | BinGrammar":
    """The grammar of a saved `action_config`."""
    return by_representation(action_config, string=ActionGrammar, bins=BinGrammar)


class TokenGrammar:
    """A deterministic automaton over token ids without cycles, except EOS after EOS.

    `transitions` are, per state, the token ids that may follow and where they lead. State 0 is the start; after
    EOS only EOS follows, so that finished rows of a batch stay legal. `max_tokens` are those of the longest word, EOS
    not counted.
    """

    def __init__(self, transitions: list[dict[int, int]], text_of: dict[int, str], eos_token_id: int):
        self.transitions = transitions
        self.text_of = text_of
        self.eos_token_id = eos_token_id
        self.max_tokens = _max_tokens(transitions, eos_token_id)

    def advance(self, tokens: Iterable[int], state: int = 0) -> int:
        """The state after `tokens`; raises `ActionStringError` at the first token the grammar does not allow."""
        for position, token in enumerate(tokens):
            following = self.transitions[state].get(token)
            if following is None:
                options = ", ".join(f"{t} ({self.text_of.get(t, 'EOS')!r})" for t in self.transitions[state])
                raise ActionStringError(
                    f"got token {token} at position {position} of an action, expected one of {options}; check that "
                    "prompt_length counts every token before the action, padding and lead-in included",
                    position=position,
                    expected=options,
                )
            state = following
        return state

    def _texts(self, tokens: Iterable[int]) -> list[str]:
        """The text of each token but EOS; raises `ActionStringError` at one that is part of no action."""
        texts = []
        for position, token in enumerate(tokens):
            if token != self.eos_token_id and token not in self.text_of:
                raise ActionStringError(
                    f"got token {token} at position {position}, which is part of no action; generate under "
                    "ActionLogitsProcessor and leave the prompt out",
                    position=position,
                )
            if token != self.eos_token_id:
                texts.append(self.text_of[token])
        return texts


class ActionGrammar(TokenGrammar):
    """The grammar of action strings: their tokens, then EOS; `prefix` is a lead-in that is generated with them."""

    def __init__(
        self,
        strings: ActionStringProcessor,
        pieces: dict[str, int],
        eos_token_id: int,
        prefix: str = "",
        runs: dict[str, list[int]] | None = None,
    ):
        self.strings = strings
        self.prefix = prefix
        edges, start = _with_prefix(strings.automaton.edges, prefix)
        if runs is None:
            longest_first = "|".join(map(re.escape, sorted(pieces, key=len, reverse=True)))
            runs = {
                run: [pieces[piece] for piece in re.findall(longest_first, run)] for run in _all_runs(edges, start)
            }
        self.unit_ids = {digit: [pieces[digit]] for digit in DIGITS} | runs
        transitions = _compile(edges, start, self.unit_ids, eos_token_id)
        super().__init__(transitions, {token: piece for piece, token in pieces.items()}, eos_token_id)

    @classmethod
    def from_action_config(cls, action_config: dict[str, Any]) -> "ActionGrammar":
        """Compiles the grammar a saved `action_config` describes."""
        prefix = "" if action_config["lead_in_ids"] else action_config["lead_in"]
        strings = ActionStringProcessor.from_action_config(action_config)
        pieces, eos_token_id = action_config["pieces"], action_config["eos_token_id"]
        return cls(strings, pieces, eos_token_id, prefix, action_config.get("runs"))

    def token_ids(self, text: str) -> list[int]:
        """The tokens of an action string, with a generated lead-in, without EOS; `ActionStringError` for others."""
        self.strings.decode(text.removeprefix(self.prefix))
        return self._spell(text)

    def encode_all(self, actions: np.ndarray) -> list[list[int]]:
        """The tokens of each of N normalised actions, float [N, T, D], as `token_ids` gives them for their strings."""
        return [self._spell(self.prefix + text) for text in self.strings.encode_all(actions)]

    def _spell(self, text: str) -> list[int]:
        return [token for unit in re.findall("[0-9]|[^0-9]+", text) for token in self.unit_ids[unit]]

    def text(self, tokens: Iterable[int]) -> str:
        """The action string of `tokens`, without a generated lead-in and without EOS."""
        return "".join(self._texts(tokens)).removeprefix(self.prefix)


class BinGrammar(TokenGrammar):
    """The grammar of bins: T * D tokens below `bin_tokens_end`, then EOS."""

    prefix = ""

    def __init__(self, bins: ActionBins, bin_tokens_end: int, eos_token_id: int):
        self.strings = bins
        self.bin_tokens_end = bin_tokens_end
        text_of = {bin_tokens_end - 1 - number: str(number) for number in range(bins.bins)}
        values = bins.horizon * bins.action_dim
        transitions = [dict.fromkeys(text_of, state + 1) for state in range(values)]
        transitions += [{eos_token_id: values + 1}, {eos_token_id: values + 1}]
        super().__init__(transitions, text_of, eos_token_id)

    @classmethod
    def from_action_config(cls, action_config: dict[str, Any]) -> "BinGrammar":
        """The grammar a saved `action_config` describes."""
        bins = ActionBins.from_action_config(action_config)
        return cls(bins, action_config["bin_tokens_end"], action_config["eos_token_id"])

    def text(self, tokens: Iterable[int]) -> str:
        """The bin numbers of `tokens`, one line per step, EOS left out."""
        numbers, width = self._texts(tokens), self.strings.action_dim
        steps = [numbers[start : start + width] for start in range(0, len(numbers), width)]
        return "\n".join(" ".join(step) for step in steps)

    def token_ids(self, text: str) -> list[int]:
        """As `ActionGrammar.token_ids`, of bin numbers."""
        return self._tokens(self.strings.read(text))

    def encode_all(self, actions: np.ndarray) -> list[list[int]]:
        """As `ActionGrammar.encode_all`, of bins."""
        return [self._tokens(self.strings.to_bins(action)) for action in actions]

    def _tokens(self, bins: np.ndarray) -> list[int]:
        return (self.bin_tokens_end - 1 - bins).ravel().tolist()


class ActionLogitsProcessor(LogitsProcessor):
    """Sets every logit the grammar forbids behind `prompt_length` tokens to minus infinity.

    It keeps no state between calls, so rows may be reordered (beams) and may finish at different lengths.
    """

    def __init__(self, grammar: TokenGrammar, prompt_length: int):
        self.grammar = grammar
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """`input_ids` int64 [B, L], `scores` float [B, V]; returns the masked scores, float [B, V]."""
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        for row, tokens in enumerate(input_ids[:, self.prompt_length :].tolist()):
            allowed[row, list(self.grammar.transitions[self.grammar.advance(tokens)])] = True
        return scores.masked_fill(~allowed, float("-inf"))  # type: ignore[return-value]


def _ids_after_digit(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` inside an answer, where no tokenizer puts a space before it."""
    digit = tokenizer.encode("0", add_special_tokens=False)
    # Long texts are checked: no warning that a model could not read them.
    return tokenizer.encode("0" + text, add_special_tokens=False, verbose=False)[len(digit) :]


def _ids_between_digits(tokenizer: Any, text: str) -> list[int]:
    return _ids_after_digit(tokenizer, text + "0")[:-1]


def _pieces_and_runs(strings: ActionStringProcessor, tokenizer: Any) -> dict[str, Any]:
    """`pieces` and `runs` of `action_config`."""
    edges, start = _with_prefix(strings.automaton.edges, strings.lead_in if strings.style == "legacy" else "")
    runs = _all_runs(edges, start)
    _check_digits_unmerged(tokenizer, runs, last={run for run, target in runs.items() if not edges[target]})
    spelled = {run: _ids_between_digits(tokenizer, run) for run in sorted(runs)}
    parts = {run[start:end] for run in runs for end in range(len(run) + 1) for start in range(end)}
    pieces: dict[str, int] = {}
    for text in sorted({*DIGITS} | parts):
        ids = _ids_after_digit(tokenizer, text) if text in DIGITS else _ids_between_digits(tokenizer, text)
        if len(ids) == 1:
            pieces[text] = ids[0]
        elif len(text) == 1:
            raise ValueError(
                f"got {len(ids)} tokens for {text!r}, expected 1; style {strings.style!r} needs a vocabulary that "
                "has a token for each of its characters and never merges digits with them, so choose another style or "
                "tokenizer"
            )
    text_of = {token: piece for piece, token in pieces.items()}
    for run, ids in spelled.items():
        if len(text_of) < len(pieces) or "".join(text_of.get(token, "?") for token in ids) != run:
            raise ValueError(
                f"got tokens {ids} for {run!r}, expected tokens that each stand for one text, the same wherever it "
                "occurs; this tokenizer cannot write actions as strings, so choose another one or bins"
            )
    return {"pieces": pieces, "runs": spelled}


def _check_digits_unmerged(tokenizer: Any, runs: Iterable[str], last: set[str]) -> None:
    """Raises `ValueError` if a digit merges with its neighbours, as where digits are grouped by threes.

    Else each run has the same tokens in every string. `last` are the runs that an action ends in.
    """
    digits = {digit: _ids_after_digit(tokenizer, digit) for digit in DIGITS}
    triples = "".join(map("".join, product(DIGITS, repeat=3)))
    expected = {triples: [token for digit in triples for token in digits[digit]]}
    for run in runs:
        ids = _ids_between_digits(tokenizer, run)
        pairs = list(product(DIGITS, repeat=2))
        text = "".join(left + run + right for left, right in pairs)
        expected[text] = [token for left, right in pairs for token in (*digits[left], *ids, *digits[right])]
        if run in last:
            expected |= {digit + run: [*digits[digit], *ids] for digit in DIGITS}
    several = any(len(ids) != 1 for ids in digits.values())
    for text, ids in expected.items():
        if several or _ids_after_digit(tokenizer, text) != ids:
            raise ValueError(
                f"got digits that share tokens with their neighbours (in {text[:20]!r}...), expected one each; action "
                "strings need a vocabulary that never merges digits, such as Llama-2's or Gemma's"
            )


def _with_prefix(edges: list[dict[str, int]], prefix: str) -> tuple[list[dict[str, int]], int]:
    """Edges and start of a new automaton that reads `prefix` first."""
    edges, start = list(edges), 0
    for character in reversed(prefix):
        edges.append({character: start})
        start = len(edges) - 1
    return edges, start


def _runs(edges: list[dict[str, int]], start: int) -> dict[str, int]:
    """Every run without digits after `start` that a digit or the end of the action follows, and where it leads."""
    runs, unfinished = {}, [("", start)]
    for text, state in unfinished:  # grows while it is read
        unfinished += [(text + c, target) for c, target in edges[state].items() if c not in DIGITS]
        if text and (not edges[state] or not edges[state].keys().isdisjoint(DIGITS)):
            runs[text] = state
    return runs


def _all_runs(edges: list[dict[str, int]], start: int) -> dict[str, int]:
    """Likewise, after the start of an action and after every digit in it."""
    after = {target for state in edges for character, target in state.items() if character in DIGITS}
    return {run: target for state in (start, *sorted(after)) for run, target in _runs(edges, state).items()}


def _compile(
    edges: list[dict[str, int]], start: int, unit_ids: dict[str, list[int]], eos_token_id: int
) -> list[dict[int, int]]:
    """Transitions over token ids.

    A token state is a character state, which is the start or after a digit, and the tokens since then: a prefix of the
    ids of at least one run. So every string has exactly one token sequence.
    """
    nodes: list[tuple[int, tuple[int, ...]]] = [(start, ())]
    numbers = {nodes[0]: 0}
    transitions: list[dict[int, int]] = []
    complete = []
    for number, (state, written) in enumerate(nodes):  # grows while it is read
        following: dict[int, tuple[int, tuple[int, ...]]] = {}
        for run, target in ({"": state} | _runs(edges, state)).items():
            ids = tuple(unit_ids.get(run, ()))
            if ids == written:
                following |= {unit_ids[c][0]: (after, ()) for c, after in edges[target].items() if c in DIGITS}
                complete += [] if edges[target] else [number]
            elif ids[: len(written)] == written:
                following[ids[len(written)]] = (state, ids[: len(written) + 1])
        for node in following.values():
            if node not in numbers:
                numbers[node] = len(nodes)
                nodes.append(node)
        transitions.append({token: numbers[node] for token, node in following.items()})
    finished = len(transitions)
    for number in complete:
        transitions[number][eos_token_id] = finished
    return [*transitions, {eos_token_id: finished}]


def _max_tokens(transitions: list[dict[int, int]], eos_token_id: int) -> int:
    """Tokens of the longest path from the start to EOS."""
    length, reached = 0, {0}
    while reached:
        reached = {
            target for state in reached for token, target in transitions[state].items() if token != eos_token_id
        }
        length += 1
    return length - 1
