"""Which token may come next in an action: the grammar that makes a malformed action impossible to generate.

Decides: the token automaton of an action string, compiled from the character automaton of `action_strings.py` and the
tokenizer's pieces, and the mask a `LogitsProcessor` derives from it. What it accepts is exactly what the tokenizer
makes of the strings `ActionStringProcessor.encode` writes: where the vocabulary has a merged piece (`,-` in Llama and
Gemma, `\\n\\n` in Gemma) its parts never follow one another, because training never showed the model such a pair.

Refuses to know: prompts, models, units. It reads `action_config`, the dictionary saved in the model's and the
processor's configuration:

    {"representation": "string", "style": "signed", "action_dim": 7, "horizon": 1, "decimals": 4, "binary_dims": [6],
     "lead_in": "\\n", "lead_in_ids": [13], "pieces": {"+": 29974, ...}, "eos_token_id": 2}

`lead_in_ids` is appended to the prompt. It is empty for the legacy style, whose lead-in, a space, merges with a minus
sign after it (`▁-` is one piece) and is therefore generated as a part of the answer.

This file also lies in `modeling/` (a symbolic link), because a Hub repository is one flat folder in which both halves
import it from beside themselves.
"""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import LogitsProcessor

from .action_strings import DIGITS, ActionStringError, ActionStringProcessor


LONGEST_MERGE = 3  # characters; "\n\n-" is the longest run without a digit in any style


def make_action_config(strings: ActionStringProcessor, tokenizer: Any) -> dict[str, Any]:
    """Everything inference needs to know about the action format, as a dictionary for config.json.

    Raises:
        ValueError: if the tokenizer has no token of its own for a character of the style.
    """
    generated_lead_in = strings.style == "legacy"
    lead_in_ids = [] if generated_lead_in else _ids_between_digits(tokenizer, strings.lead_in)
    if tokenizer.eos_token_id is None:
        raise ValueError("got a tokenizer without an end-of-sequence token, expected one; set tokenizer.eos_token")
    return {
        "representation": "string",
        "style": strings.style,
        "action_dim": strings.action_dim,
        "horizon": strings.horizon,
        "decimals": strings.decimals,
        "binary_dims": list(strings.binary_dims),
        "lead_in": strings.lead_in,
        "lead_in_ids": lead_in_ids,
        "pieces": _pieces(strings, tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
    }


class ActionGrammar:
    """A deterministic, acyclic automaton over token ids whose words are the tokenized action strings, then EOS.

    Args:
        strings: the action format.
        pieces: token id of every piece the tokenizer writes an action with.
        eos_token_id: what follows a complete action.
        prefix: a lead-in that is generated as a part of the answer.

    Attributes:
        transitions: per state, the token ids that may follow and the state each leads to. State 0 is the start; behind
            EOS only EOS follows, so that finished rows of a batch stay legal.
        max_tokens: tokens of the longest word, EOS not counted.
    """

    def __init__(self, strings: ActionStringProcessor, pieces: dict[str, int], eos_token_id: int, prefix: str = ""):
        self.strings = strings
        self.prefix = prefix
        self.eos_token_id = eos_token_id
        self.text_of = {token: piece for piece, token in pieces.items()}
        edges, start = _with_prefix(strings.automaton.edges, prefix)
        self.transitions = _compile(edges, start, strings.automaton.final, pieces, eos_token_id)
        self.max_tokens = _longest_word(self.transitions, eos_token_id)

    @classmethod
    def from_action_config(cls, action_config: dict[str, Any]) -> "ActionGrammar":
        """Compiles the grammar a saved `action_config` describes."""
        prefix = "" if action_config["lead_in_ids"] else action_config["lead_in"]
        strings = ActionStringProcessor.from_action_config(action_config)
        return cls(strings, action_config["pieces"], action_config["eos_token_id"], prefix)

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

    def text(self, tokens: Iterable[int]) -> str:
        """The action string that `tokens` spell, without a generated lead-in and without EOS."""
        pieces = []
        for position, token in enumerate(tokens):
            if token != self.eos_token_id and token not in self.text_of:
                raise ActionStringError(
                    f"got token {token} at position {position}, which no action is spelled with; generate under "
                    "ActionLogitsProcessor and leave the prompt out",
                    position=position,
                )
            pieces.append(self.text_of.get(token, ""))
        return "".join(pieces).removeprefix(self.prefix)


class ActionLogitsProcessor(LogitsProcessor):
    """Sets every logit the grammar forbids to minus infinity.

    It keeps no state between calls, so rows may be reordered (beams) and may finish at different lengths. Apply it to
    action requests only: it would force any other answer into digits.

    Args:
        grammar: the action grammar.
        prompt_length: tokens in `input_ids` before the action, padding and lead-in included.
    """

    def __init__(self, grammar: ActionGrammar, prompt_length: int):
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
