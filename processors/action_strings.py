"""Robot actions as strings of digits: encodes them, decodes them, and refuses every other text.

One character automaton per style defines the strings: `decode` runs it, and the token grammar of constrained decoding
(`action_grammar.py`) is compiled from it, so that exactly what can be generated can be decoded.

    style     one step, D = 3, decimals = 4    two steps            tokens in the Llama and Gemma vocabularies
    signed    +0.0312-0.1200+1.0000            joined by "\\n"       one per character: 7 per value
    plain     0.0312\\n-0.1200\\n1.0000          joined by "\\n\\n"     one per character, the sign only when negative
    legacy    0.0312,-0.12,1.0,                simply concatenated  ",-" is one token, decimals vary

"plain" is the format in the paper, "legacy" that of the checkpoint released by the paper's authors. "signed" is ours:
fixed width, so that every value takes the same number of tokens.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


STYLES = ("signed", "plain", "legacy")
DIGITS = "0123456789"
SEPARATORS = ",\n"
# Between the prompt and the action. A new line keeps the first character a token of its own; the legacy checkpoint
# continues the prompt's line after a space.
LEAD_IN = {"signed": "\n", "plain": "\n", "legacy": " "}


class ActionStringError(ValueError):
    """A text that is no action string, or an action that has none: the `position` of the first wrong character or
    token, if there is one, and what was `expected` there, in words.
    """

    def __init__(self, message: str, position: int | None = None, expected: str | None = None):
        super().__init__(message)
        self.position = position
        self.expected = expected


class ActionStringProcessor:
    """Encodes normalised actions as strings and decodes them.

    Args:
        action_dim: D, the number of action dimensions.
        horizon: T, the number of steps in one string.
        decimals: digits after the point; 4 keep the error below 5e-5.
        style: `"signed"`, `"plain"` or `"legacy"`.
        binary_dims: dimensions that are only ever 0 or 1 (a gripper); all others range over [-1, 1].

    `clipped` counts, per dimension, the values `encode` had to clip to [-1, 1] since construction.
    """

    def __init__(
        self,
        action_dim: int = 7,
        horizon: int = 1,
        decimals: int = 4,
        style: str = "signed",
        binary_dims: Sequence[int] = (),
    ):
        if style not in STYLES:
            raise ValueError(f"got style={style!r}, expected one of {', '.join(map(repr, STYLES))}")
        check_sizes(action_dim=action_dim, horizon=horizon, decimals=decimals)
        check_binary_dims(binary_dims, action_dim)
        self.action_dim = action_dim
        self.horizon = horizon
        self.decimals = decimals
        self.style = style
        self.binary_dims = tuple(sorted(set(binary_dims)))
        self.clipped = np.zeros(action_dim, dtype=np.int64)
        self.automaton = CharacterAutomaton(action_dim, horizon, decimals, style, self.binary_dims)

    @classmethod
    def from_action_config(cls, action_config: dict[str, Any]) -> "ActionStringProcessor":
        """Builds the processor a saved `action_config` describes (see `action_grammar.make_action_config`)."""
        return cls(**read_keys(action_config, "action_dim", "horizon", "decimals", "style", "binary_dims"))

    @property
    def lead_in(self) -> str:
        """The text between the prompt and the action string."""
        return LEAD_IN[self.style]

    def encode(self, actions: Any) -> str:
        """The string of float [D] (horizon 1) or [T, D], normalised to [-1, 1], without lead-in and EOS.

        Raises:
            ActionStringError: on another shape, NaN, infinity, or a binary dimension that is neither 0 nor 1. Values
                outside [-1, 1] are clipped and counted in `clipped`.
        """
        return self._write(self._rounded(checked_chunk(actions, self.horizon, self.action_dim)))

    def encode_all(self, actions: np.ndarray) -> list[str]:
        """`encode` of each of N actions, float [N, T, D]."""
        steps = checked_chunk(actions.reshape(-1, self.action_dim), len(actions) * self.horizon, self.action_dim)
        rounded = self._rounded(steps)
        return [self._write(rounded[first : first + self.horizon]) for first in range(0, len(steps), self.horizon)]

    def decode(self, text: str) -> np.ndarray:
        """The actions of an action string, float32 [T, D] in [-1, 1].

        Raises:
            ActionStringError: with the position of the first character that does not fit and what was expected there.
                Nothing is repaired.
        """
        if not isinstance(text, str):
            raise ActionStringError(f"got {type(text).__name__}, expected an action string")
        spans = self.automaton.read(text)
        values = np.array([float(span) for span in spans], dtype=np.float32) + np.float32(0.0)
        return values.reshape(self.horizon, self.action_dim)

    def logits_processor(self, tokenizer: Any, prompt_length: int) -> Any:
        """A `LogitsProcessor` for plain `generate` that allows action strings alone behind `prompt_length` tokens,
        padding and lead-in included; `tokenizer` is that of the model that generates.
        """
        from .action_grammar import ActionGrammar, ActionLogitsProcessor, make_action_config

        grammar = ActionGrammar.from_action_config(make_action_config(self, tokenizer))
        return ActionLogitsProcessor(grammar, prompt_length)

    def _rounded(self, steps: np.ndarray) -> list[list[float]]:
        """Steps float [T, D] as they are written."""
        for dim in self.binary_dims:
            values = np.round(steps[:, dim], self.decimals)
            odd = (values != 0.0) & (values != 1.0)
            if odd.any():
                raise ActionStringError(
                    f"got {steps[odd, dim][0]:g} in dimension {dim}, expected 0 or 1 because the dimension is binary; "
                    "binarise it in the data transform or leave it out of binary_dims"
                )
        self.clipped += (np.abs(steps) > 1.0).sum(axis=0)
        # Adding 0.0 turns -0.0 into 0.0, so that zero is always written alike.
        return (np.round(np.clip(steps, -1.0, 1.0), self.decimals) + 0.0).tolist()

    def _write(self, steps: list[list[float]]) -> str:
        written = [[self._format(value) for value in step] for step in steps]
        if self.style == "signed":
            return "\n".join(map("".join, written))
        if self.style == "plain":
            return "\n\n".join(map("\n".join, written))
        return "".join(value + "," for step in written for value in step)

    def _format(self, value: float) -> str:
        if self.style == "signed":
            return f"{value:+.{self.decimals}f}"
        fixed = f"{value:.{self.decimals}f}"
        if self.style == "plain":
            return fixed
        trimmed = fixed.rstrip("0")
        return trimmed + "0" if trimmed.endswith(".") else trimmed


def read_keys(action_config: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Those entries of a saved `action_config`; raises `ValueError` where one is missing."""
    missing = [key for key in keys if key not in action_config]
    if missing:
        raise ValueError(
            f"got an action_config without {', '.join(missing)}, expected {', '.join(keys)}; "
            "write it with make_action_config or take it from the model's config.json"
        )
    return {key: action_config[key] for key in keys}


def by_representation(action_config: dict[str, Any], **classes: Any) -> Any:
    """What the class for the representation of a saved `action_config` makes of it."""
    representation = action_config.get("representation")
    if representation not in classes:
        raise ValueError(f"got representation={representation!r}, expected one of {', '.join(map(repr, classes))}")
    return classes[representation].from_action_config(action_config)


def check_sizes(least: int = 1, /, **sizes: Any) -> None:
    """Raises `ValueError` unless all sizes are integers of at least `least`."""
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"got {name}={value!r}, expected an integer of at least {least}")


def check_binary_dims(binary_dims: Sequence[int], action_dim: int) -> None:
    """Raises `ValueError` for a dimension that an action does not have."""
    if any(not 0 <= dim < action_dim for dim in binary_dims):
        raise ValueError(f"got binary_dims={list(binary_dims)}, expected dimensions from 0 to {action_dim - 1}")


def checked_chunk(actions: Any, horizon: int, action_dim: int) -> np.ndarray:
    """Actions [D] (horizon 1) or [T, D] as float64 [T, D]; `ActionStringError` for other shapes, NaN, infinity."""
    chunk = np.asarray(actions, dtype=np.float64)
    if chunk.ndim == 1 and horizon == 1:
        chunk = chunk[None]
    if chunk.shape != (horizon, action_dim):
        expected = f"[{action_dim}] or [1, {action_dim}]" if horizon == 1 else f"[{horizon}, {action_dim}]"
        raise ActionStringError(f"got an action of shape {list(np.shape(actions))}, expected {expected}")
    if not np.isfinite(chunk).all():
        step, dim = map(int, np.argwhere(~np.isfinite(chunk))[0])
        raise ActionStringError(
            f"got {chunk[step, dim]} in step {step}, dimension {dim}, expected a finite number; "
            "drop or repair the row before encoding it"
        )
    return chunk


class CharacterAutomaton:
    """A deterministic, acyclic automaton over characters whose words are exactly the action strings of one style."""

    def __init__(self, action_dim: int, horizon: int, decimals: int, style: str, binary_dims: Iterable[int]):
        self.edges: list[dict[str, int]] = [{}]  # per state, the characters that may follow, and where to
        self.value_of: list[int] = [0]  # per state, the index t * D + d of the value that is written there
        self.values = horizon * action_dim
        binary = set(binary_dims)
        here = 0
        for step in range(horizon):
            for dim in range(action_dim):
                self.value_of[here] = step * action_dim + dim
                write = self._legacy_value if style == "legacy" else self._fixed_value
                here = write(here, decimals, style, dim in binary)
                last_dim, last_step = dim == action_dim - 1, step == horizon - 1
                if style == "signed" and last_dim and not last_step:
                    here = self._spell(here, "\n")
                elif style == "plain" and not (last_dim and last_step):
                    here = self._spell(here, "\n\n" if last_dim else "\n")
        self.final = here  # a word is complete; it has no edges

    def read(self, text: str) -> list[str]:
        """The values of `text` as texts; raises `ActionStringError` at the first wrong character."""
        spans = [""] * self.values
        state = 0
        for position, character in enumerate(text):
            following = self.edges[state].get(character)
            if following is None:
                raise self._error(text, position, repr(character), state)
            if character not in SEPARATORS:
                spans[self.value_of[state]] += character
            state = following
        if state != self.final:
            raise self._error(text, len(text), "the end of the text", state)
        return spans

    def _error(self, text: str, position: int, got: str, state: int) -> ActionStringError:
        allowed = self.edges[state]
        expected = f"one of {' '.join(map(repr, sorted(allowed)))}" if allowed else "the end of the text"
        shown = text if len(text) <= 80 else text[:77] + "..."
        return ActionStringError(
            f"got {got} at position {position} of {shown!r}, expected {expected}; this is no action string of "
            f"{self.values} values, so there is no action in it",
            position=position,
            expected=expected,
        )

    def _new(self, value: int) -> int:
        self.edges.append({})
        self.value_of.append(value)
        return len(self.edges) - 1

    def _chain(self, state: int, options: str) -> int:
        """One new state after `state`, reached by every character of `options`."""
        target = self._new(self.value_of[state])
        for character in options:
            self.edges[state][character] = target
        return target

    def _spell(self, state: int, text: str) -> int:
        """The state after a text."""
        for character in text:
            state = self._chain(state, character)
        return state

    def _fixed_value(self, start: int, decimals: int, style: str, binary: bool) -> int:
        """sign? integer point decimals; after a 1 every decimal is 0, after "-0." at least one of them is not."""
        value = self.value_of[start]
        end = self._new(value)
        free = self._decimals(value, decimals, "0" if binary else DIGITS, end)
        one = self._new(value)
        self.edges[one]["."] = self._decimals(value, decimals, "0", end)[0]
        positive = self._chain(start, "+") if style == "signed" else start
        self.edges[positive]["1"] = one
        self.edges[self._chain(positive, "0")]["."] = free[0]
        if not binary:
            negative = self._chain(start, "-")
            self.edges[negative]["1"] = one
            only_zeros = self._decimals(value, decimals, "0", end)
            self.edges[self._chain(negative, "0")]["."] = only_zeros[0]
            for here, nonzero in zip(only_zeros, [*free[1:], end], strict=True):
                self.edges[here].update(dict.fromkeys(DIGITS[1:], nonzero))
            del self.edges[only_zeros[-1]]["0"]  # -0.0000 is not allowed: zero is written without a minus
        return end

    def _decimals(self, value: int, decimals: int, digits: str, end: int) -> list[int]:
        """States after the point and after each decimal but the last, which leads to `end`."""
        states = [self._new(value) for _ in range(decimals)]
        for here, following in zip(states, [*states[1:], end], strict=True):
            self.edges[here].update(dict.fromkeys(digits, following))
        return states

    def _legacy_value(self, start: int, decimals: int, style: str, binary: bool) -> int:
        """-? integer point 1 to `decimals` digits without superfluous zeros, then a comma.

        The released checkpoint may also write "-0.0", and "1e-04", which is how numpy prints that float32 and the only
        exponent that four decimals can produce.
        """
        value = self.value_of[start]
        zero, one, end = self._new(value), self._new(value), self._new(value)
        heads = [start] if binary else [start, self._chain(start, "-")]
        for head in heads:
            self.edges[head].update({"0": zero, "1": one})
        self._end_value(self._spell(one, ".0"), end)
        point = self._chain(zero, ".")
        if binary:
            self._end_value(self._chain(point, "0"), end)
            return end
        if decimals >= 4:
            self._end_value(self._spell(one, "e-04"), end)
        self._variable_decimals(point, decimals, end)
        return end

    def _variable_decimals(self, point: int, decimals: int, end: int) -> None:
        """Digits after "0.": a lone 0 may end the value, any other trailing 0 may not."""
        after_digit, after_zero = self._chain(point, DIGITS[1:]), self._chain(point, "0")
        self._end_value(after_digit, end)
        self._end_value(after_zero, end)
        for place in range(1, decimals):
            next_digit = self._new(self.value_of[point])
            self._end_value(next_digit, end)
            next_zero = self._new(self.value_of[point])
            for state in (after_digit, after_zero):
                self.edges[state].update(dict.fromkeys(DIGITS[1:], next_digit))
                if place < decimals - 1:
                    self.edges[state]["0"] = next_zero
            after_digit, after_zero = next_digit, next_zero

    def _end_value(self, state: int, end: int) -> None:
        self.edges[state][","] = end
