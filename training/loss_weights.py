"""What each token of an action weighs in the loss: signs and leading digits steer the robot, the last ones are noise.

The collator puts these weights beside the labels, and supervises the tokens of recorded steps alone.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from gen_vla.processors import ActionGrammar, BinGrammar
from gen_vla.processors.action_strings import SEPARATORS


POINT_WEIGHT = 0.1  # the grammar forces it; enough that the model writes it on its own, too


@dataclass(frozen=True)
class ActionTokenWeights:
    """Weights by place value.

    A call takes the token ids of one answer, EOS included, and returns as many weights. Signs, integers, separators
    and EOS weigh 1. A token of several characters weighs as much as the heaviest of them.
    """

    grammar: ActionGrammar  # the action format, with the token ids
    decimal_weights: Sequence[float]  # of the decimals, the first one first; those missing weigh 1
    constant_dims: Collection[int] = ()  # dimensions that never vary in the data, multiplied by `constant_weight`
    constant_weight: float = 1.0

    def __call__(self, tokens: list[int]) -> list[float]:
        text = "".join(self.grammar.text_of.get(token, "") for token in tokens)
        prefix = len(text) - len(text.removeprefix(self.grammar.prefix))
        characters = [1.0] * prefix + self._character_weights(text[prefix:])
        weights, place = [], 0
        for token in tokens:
            length = len(self.grammar.text_of.get(token, ""))
            weights.append(max(characters[place : place + length], default=1.0))
            place += length
        return weights

    def _character_weights(self, text: str) -> list[float]:
        automaton, state, value, decimal = self.grammar.strings.automaton, 0, -1, -1
        weights = []
        for character in text:
            if automaton.value_of[state] != value:
                value, decimal = automaton.value_of[state], -1
            weight = 1.0
            if character == ".":
                weight, decimal = POINT_WEIGHT, 0
            elif character.isdigit() and decimal >= 0:
                weight = self.decimal_weights[decimal] if decimal < len(self.decimal_weights) else 1.0
                decimal += 1
            constant = value % self.grammar.strings.action_dim in self.constant_dims
            if constant and character not in SEPARATORS:
                weight *= self.constant_weight
            weights.append(weight)
            state = automaton.edges[state][character]
        return weights


class BinTokenWeights:
    """Weights of bins, called like `ActionTokenWeights`: 1, or `constant_weight` for dimensions that never vary."""

    def __init__(self, action_dim: int, constant_dims: list[int], constant_weight: float):
        self.weights = [constant_weight if dim in constant_dims else 1.0 for dim in range(action_dim)]

    def __call__(self, tokens: list[int]) -> list[float]:
        return [self.weights[place % len(self.weights)] for place in range(len(tokens) - 1)] + [1.0]


def tokens_of_steps(grammar: ActionGrammar | BinGrammar, tokens: list[int], steps: int) -> int:
    """How many of the first token ids of an answer, EOS included, write nothing but its first steps.

    Steps behind the end of an episode come last in a chunk. What separates them from the steps before, and EOS behind
    them, belongs to them; so does a token that ends a step and begins one of them, such as legacy's ",-".
    """
    if steps >= grammar.strings.horizon:
        return len(tokens)
    if isinstance(grammar, BinGrammar):
        return steps * grammar.strings.action_dim
    strings = grammar.strings
    pieces = [grammar.text_of[token] for token in tokens[:-1]]
    text = "".join(pieces)
    end, state = len(text) - len(text.removeprefix(grammar.prefix)), 0
    while strings.automaton.value_of[state] < steps * strings.action_dim:
        state = strings.automaton.edges[state][text[end]]
        end += 1
    end = len(text[:end].rstrip("\n"))
    written = np.cumsum([len(piece) for piece in pieces])
    return int((written <= end).sum())
