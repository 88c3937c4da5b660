"""The numbers that the likeliest tokens of an action spell, value by value, with the recorded tokens fed in.

Decides: which token belongs to which value, and what reads as a number. Refuses to know: units, means, models.

Every token was predicted behind the recorded ones before it, so that together they need not spell an action: where the
1 of -1.00 is taken for a 0, they spell -0.00, which no action has. It reads as a number all the same, one as wrong as
the digit. A value is read at the places of the recorded one, whatever stands between values:

    recorded   +0.50-1.00      likeliest  +0.50-0.00   ->  0.5, -0.0
                                          +0.5+-1.00   ->  nothing, -1.0
"""

import numpy as np

from gen_vla.processors.action_grammar import ActionGrammar, BinGrammar
from gen_vla.processors.action_strings import SEPARATORS


NO_NUMBER = "?"


def likeliest_values(
    grammar: ActionGrammar | BinGrammar, predicted: list[int], expected: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Two float64 [steps, D] in [-1, 1]: of the likeliest tokens, NaN where they are no number, and as recorded.

    Args:
        predicted: as many tokens as `expected`.
        expected: those of an action or of its first steps, EOS included or not.
    """
    pairs = [pair for pair in zip(predicted, expected, strict=True) if pair[1] != grammar.eos_token_id]
    if isinstance(grammar, BinGrammar):
        read, told = _bins(grammar, pairs)
    else:
        read, told = _numbers(grammar, pairs)
    width = grammar.strings.action_dim
    whole = len(told) // width * width
    return read[:whole].reshape(-1, width), told[:whole].reshape(-1, width)


def _bins(grammar: BinGrammar, pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Of one token per value."""
    numbers = np.array([[int(grammar.text_of.get(token, -1)) for token in pair] for pair in pairs]).reshape(-1, 2)
    values = np.where(numbers < 0, np.nan, grammar.strings.to_values(numbers)).astype(np.float64)
    return values[:, 0], values[:, 1]


def _numbers(grammar: ActionGrammar, pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Of one token per character, or for a separator and a sign that the vocabulary merges."""
    automaton, state, ahead = grammar.strings.automaton, 0, len(grammar.prefix)
    between = SEPARATORS + grammar.prefix
    read, told = [""] * automaton.values, [""] * automaton.values
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
                told[value] += character
        if state == automaton.final and text[-1] in SEPARATORS:
            continue
        if parted:  # a sign behind it belongs to the next value
            read[automaton.value_of[state]] += other.lstrip(between) if other[0] in between else ""
        else:
            read[value] += NO_NUMBER if other in between or other[0] in between else other
    count = sum(map(bool, told))
    return np.array([_number(text) for text in read[:count]]), np.array([float(text) for text in told[:count]])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
