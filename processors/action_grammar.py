"""Which token may come next in an action: the grammar that makes a malformed action impossible to generate.

Decides: the token automaton of an action string, compiled from the character automaton of `action_strings.py` and the
tokenizer's pieces, and the mask a `LogitsProcessor` derives from it. What it accepts is exactly what the tokenizer
makes of the strings `ActionStringProcessor.encode` writes: where the vocabulary has a merged piece (`,-` in Llama and
Gemma, `\\n\\n` in Gemma) its parts never follow one another, because training never showed the model such a pair.

Refuses to know: prompts, models, units. It reads `action_config`, the dictionary saved in the model's and the
processor's configuration:

    {"representation": "string", "style": "signed", "action_dim": 7, "horizon": 1, "decimals": 4, "binary_dims": [6],
     "lead_in": "\\n", "lead_in_ids": [13], "pieces": {"+": 29974, ...}, "eos_token_id": 2}

    {"representation": "bins", "action_dim": 7, "horizon": 1, "bins": 256, "bin_tokens_end": 32000,
     "lead_in": " ", "lead_in_ids": [29871], "eos_token_id": 2}

`lead_in_ids` is appended to the prompt. It is empty for the legacy style, whose lead-in, a space, merges with a minus
sign after it (`▁-` is one piece) and is therefore generated as a part of the answer. Bin b is written as the token
`bin_tokens_end - 1 - b`: OpenVLA's bins are the last tokens of the vocabulary, counted from its end.

This file also lies in `modeling/` (a symbolic link), because a Hub repository is one flat folder in which both halves
import it from beside themselves.
"""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import LogitsProcessor

from .action_bins import ActionBins
from .action_strings import DIGITS, ActionStringError, ActionStringProcessor


LONGEST_MERGE = 3  # characters; "\n\n-" is the longest run without a digit in any style


def make_action_config(
    codec: ActionStringProcessor | ActionBins, tokenizer: Any, bin_tokens_end: int | None = None
) -> dict[str, Any]:
    """Everything inference needs to know about the action format, as a dictionary for config.json.

    Args:
        codec: the representation, with its dimensions.
        tokenizer: the tokenizer of the model.
        bin_tokens_end: for bins, the first token id behind theirs; by default the end of the vocabulary, added tokens
            not counted, as in OpenVLA.

    Raises:
        ValueError: if the tokenizer has no token of its own for a character of the style, or too few for the bins.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("got a tokenizer without an end-of-sequence token, expected one; set tokenizer.eos_token")
    if isinstance(codec, ActionBins):
        return _bins_config(codec, tokenizer, tokenizer.vocab_size if bin_tokens_end is None else bin_tokens_end)
    generated_lead_in = codec.style == "legacy"
    return {
        "representation": "string",
        "style": codec.style,
        "action_dim": codec.action_dim,
        "horizon": codec.horizon,
        "decimals": codec.decimals,
        "binary_dims": list(codec.binary_dims),
        "lead_in": codec.lead_in,
        "lead_in_ids": [] if generated_lead_in else _ids_between_digits(tokenizer, codec.lead_in),
        "pieces": _pieces(codec, tokenizer),
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
    return {
        "representation": "bins",
        "action_dim": codec.action_dim,
        "horizon": codec.horizon,
        "bins": codec.bins,
        "bin_tokens_end": end,
        "lead_in": codec.lead_in,
        "lead_in_ids": _ids_between_digits(tokenizer, codec.lead_in),
        "eos_token_id": tokenizer.eos_token_id,
    }


def grammar_from_action_config(action_config: dict[str, Any]) -> "ActionGrammar | BinGrammar":
    """The grammar of a saved `action_config`, whatever its representation."""
    grammars: dict[str, Any] = {"string": ActionGrammar, "bins": BinGrammar}
    representation = action_config.get("representation")
    if representation not in grammars:
        raise ValueError(f"got representation={representation!r}, expected one of {', '.join(map(repr, grammars))}")
    return grammars[representation].from_action_config(action_config)


class TokenGrammar:
    """A deterministic automaton over token ids, acyclic but for EOS after EOS.

    Attributes:
        transitions: per state, the token ids that may follow and the state each leads to. State 0 is the start; behind
            EOS only EOS follows, so that finished rows of a batch stay legal.
        text_of: the text of each token.
        max_tokens: tokens of the longest word, EOS not counted.
    """

    def __init__(self, transitions: list[dict[int, int]], text_of: dict[int, str], eos_token_id: int):
        self.transitions = transitions
        self.text_of = text_of
        self.eos_token_id = eos_token_id
        self.max_tokens = _longest_word(transitions, eos_token_id)

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
        """The text of each token but EOS; raises `ActionStringError` at one that no action is written with."""
        texts = []
        for position, token in enumerate(tokens):
            if token != self.eos_token_id and token not in self.text_of:
                raise ActionStringError(
                    f"got token {token} at position {position}, which no action is spelled with; generate under "
                    "ActionLogitsProcessor and leave the prompt out",
                    position=position,
                )
            if token != self.eos_token_id:
                texts.append(self.text_of[token])
        return texts


class ActionGrammar(TokenGrammar):
    """The grammar of action strings; its words are the tokenized strings, then EOS.

    Args:
        strings: the action format.
        pieces: token id of every piece the tokenizer writes an action with.
        eos_token_id: what follows a complete action.
        prefix: a lead-in that is generated as a part of the answer.
    """

    def __init__(self, strings: ActionStringProcessor, pieces: dict[str, int], eos_token_id: int, prefix: str = ""):
        self.strings = strings
        self.prefix = prefix
        edges, start = _with_prefix(strings.automaton.edges, prefix)
        transitions = _compile(edges, start, strings.automaton.final, pieces, eos_token_id)
        super().__init__(transitions, {token: piece for piece, token in pieces.items()}, eos_token_id)

    @classmethod
    def from_action_config(cls, action_config: dict[str, Any]) -> "ActionGrammar":
        """Compiles the grammar a saved `action_config` describes."""
        prefix = "" if action_config["lead_in_ids"] else action_config["lead_in"]
        strings = ActionStringProcessor.from_action_config(action_config)
        return cls(strings, action_config["pieces"], action_config["eos_token_id"], prefix)

    def text(self, tokens: Iterable[int]) -> str:
        """The action string that `tokens` spell, without a generated lead-in and without EOS."""
        return "".join(self._texts(tokens)).removeprefix(self.prefix)


class BinGrammar(TokenGrammar):
    """The grammar of bins: T * D tokens, each one of the bins', then EOS.

    Args:
        bins: the action format.
        bin_tokens_end: the first token id behind the bins'.
        eos_token_id: what follows a complete action.
    """

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
        """The tokens of an action's text, EOS left out: what training supervises."""
        return (self.bin_tokens_end - 1 - self.strings.read(text)).ravel().tolist()


class ActionLogitsProcessor(LogitsProcessor):
    """Sets every logit the grammar forbids to minus infinity.

    It keeps no state between calls, so rows may be reordered (beams) and may finish at different lengths. Apply it to
    action requests only: it would force any other answer into digits.

    Args:
        grammar: the action grammar.
        prompt_length: tokens in `input_ids` before the action, padding and lead-in included.
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


def _ids_between_digits(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` in the middle of an answer. Between digits, since no piece joins a digit to anything."""
    zero = tokenizer.encode("0", add_special_tokens=False)[-1]
    ids = tokenizer.encode("0" + text + "0", add_special_tokens=False)
    return ids[ids.index(zero) + 1 : -1]


def _pieces(strings: ActionStringProcessor, tokenizer: Any) -> dict[str, int]:
    """The tokens an action of this style is made of: every single character, and every merge the vocabulary has."""
    _check_single_digits(tokenizer)
    edges, _ = _with_prefix(strings.automaton.edges, strings.lead_in if strings.style == "legacy" else "")
    pieces: dict[str, int] = {}
    for character in sorted({character for state in edges for character in state}):
        if character in DIGITS:
            ids = tokenizer.encode("0" + character, add_special_tokens=False)[-1:]
        else:
            ids = _ids_between_digits(tokenizer, character)
        if len(ids) != 1:
            raise ValueError(
                f"got {len(ids)} tokens for {character!r}, expected 1; style {strings.style!r} needs a "
                "vocabulary with a token of its own for each of its characters, so choose another style or tokenizer"
            )
        pieces[character] = ids[0]
    for text in sorted(_runs_without_digits(edges)):
        ids = _ids_between_digits(tokenizer, text)
        if len(ids) == 1:
            pieces[text] = ids[0]
    return pieces


def _check_single_digits(tokenizer: Any) -> None:
    """Raises `ValueError` if digits merge with digits or points, as where they are grouped by threes."""
    zero = tokenizer.encode("0", add_special_tokens=False)
    text = "".join(f"{a}{b}" for a in DIGITS for b in DIGITS) + "".join(f".{digit}" for digit in DIGITS)
    ids = tokenizer.encode("0" + text, add_special_tokens=False)[len(zero) :]
    if len(ids) != len(text):
        raise ValueError(
            f"got {len(ids)} tokens for {len(text)} digits and points, expected one each; action strings need a "
            "vocabulary that never merges digits, such as Llama-2's or Gemma's"
        )


def _runs_without_digits(edges: list[dict[str, int]]) -> set[str]:
    """Texts of 2 to LONGEST_MERGE characters, none a digit, that occur in a word of the automaton."""
    runs: set[str] = set()
    open_runs = [("", state) for state in range(len(edges))]
    while open_runs:
        text, state = open_runs.pop()
        if len(text) >= 2:
            runs.add(text)
        if len(text) < LONGEST_MERGE:
            open_runs += [(text + c, target) for c, target in edges[state].items() if c not in DIGITS]
    return runs


def _with_prefix(edges: list[dict[str, int]], prefix: str) -> tuple[list[dict[str, int]], int]:
    """The automaton that reads `prefix` first: its edges and its start. `edges` itself is not changed."""
    edges, start = list(edges), 0
    for character in reversed(prefix):
        edges.append({character: start})
        start = len(edges) - 1
    return edges, start


def _walk(edges: list[dict[str, int]], state: int, text: str) -> int | None:
    for character in text:
        following = edges[state].get(character)
        if following is None:
            return None
        state = following
    return state


def _compile(
    edges: list[dict[str, int]], start: int, final: int, pieces: dict[str, int], eos_token_id: int
) -> list[dict[int, int]]:
    """Transitions over token ids.

    A token state is a character state plus the piece just written, where that piece is the beginning of a longer one:
    behind it, what would complete the longer piece is not allowed.
    """
    begins_longer = {p for p in pieces if any(q != p and q.startswith(p) for q in pieces)}
    numbers = {(start, ""): 0}
    transitions: list[dict[int, int]] = [{}]
    pending = [(start, "")]
    while pending:
        node = pending.pop()
        state, last = node
        for piece, token in pieces.items():
            target = _walk(edges, state, piece)
            if target is None or (last and last + piece in pieces):
                continue
            following = (target, piece if piece in begins_longer else "")
            if following not in numbers:
                numbers[following] = len(transitions)
                transitions.append({})
                pending.append(following)
            transitions[numbers[node]][token] = numbers[following]
    finished = len(transitions)
    transitions.append({eos_token_id: finished})
    for (state, _), number in numbers.items():
        if state == final:
            transitions[number][eos_token_id] = finished
    _cut_dead_ends(transitions)
    return transitions


def _cut_dead_ends(transitions: list[dict[int, int]]) -> None:
    """Removes every way into a state that cannot end: where "e-" is one piece, nothing may follow a lone "e"."""
    cut: set[int] = set()
    while dead := {state for state, following in enumerate(transitions) if not following} - cut:
        cut |= dead
        for following in transitions:
            for token in [token for token, target in following.items() if target in dead]:
                del following[token]


def _longest_word(transitions: list[dict[int, int]], eos_token_id: int) -> int:
    """Tokens of the longest path from the start to EOS; the automaton has no cycle but the one behind EOS."""
    length, reached = 0, {0}
    while reached:
        reached = {
            target for state in reached for token, target in transitions[state].items() if token != eos_token_id
        }
        length += 1
    return length - 1
