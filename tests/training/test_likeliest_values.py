"""What the likeliest tokens read as, value by value, in every style and in two vocabularies."""

from typing import Any

import numpy as np
import pytest

from gen_vla.processors import ActionBins, ActionStringProcessor, make_action_config
from gen_vla.processors.action_grammar import ActionGrammar, BinGrammar
from gen_vla.training.likeliest_values import likeliest_values


NO = float("nan")


def grammar_of(tokenizer: Any, style: str, horizon: int = 1) -> Any:
    strings = ActionStringProcessor(2, horizon, decimals=2, style=style)
    return ActionGrammar.from_action_config(make_action_config(strings, tokenizer))


def tokens_of(grammar: Any, text: str) -> list[int]:
    """The tokens of a text that training supervises: longest pieces first, which is what the merges are."""
    ids, text = [], grammar.prefix + text
    pieces = {piece: token for token, piece in grammar.text_of.items()}
    while text:
        piece = next(text[:length] for length in (3, 2, 1) if text[:length] in pieces)
        ids.append(pieces[piece])
        text = text[len(piece) :]
    return [*ids, grammar.eos_token_id]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("+0.50-1.00", [0.5, -1.0]),
        ("+0.50-0.00", [0.5, 0.0]),
        ("-0.50-1.00", [-0.5, -1.0]),
        ("+1.52-1.00", [1.52, -1.0]),
        ("+0.5+-1.00", [NO, -1.0]),
        ("+0..0-1.00", [NO, -1.0]),
    ],
)
def test_signed_values_are_read_one_by_one(llama_like: Any, written: str, expected: list[float]) -> None:
    grammar = grammar_of(llama_like, "signed")
    labels = tokens_of(grammar, "+0.50-1.00")
    read, told = likeliest_values(grammar, tokens_of(grammar, written), labels)
    np.testing.assert_allclose(read, [expected])
    np.testing.assert_allclose(told, [[0.5, -1.0]])
    other = [llama_like.convert_tokens_to_ids("x"), *labels[1:]]
    assert np.isnan(likeliest_values(grammar, other, labels)[0][0]).tolist() == [True, False]


@pytest.mark.parametrize("vocabulary", ["llama_like", "gemma_like"])
@pytest.mark.parametrize("style", ["signed", "plain", "legacy"])
def test_recorded_actions_read_as_they_were_recorded(vocabulary: str, style: str, request: Any) -> None:
    grammar, random = grammar_of(request.getfixturevalue(vocabulary), style, horizon=3), np.random.default_rng(0)
    for _ in range(20):
        chunk = np.round(random.uniform(-1, 1, (3, 2)), 2)
        labels = tokens_of(grammar, grammar.strings.encode(chunk))
        read, told = likeliest_values(grammar, labels, labels)
        np.testing.assert_allclose(read, chunk, atol=1e-9)
        np.testing.assert_allclose(told, chunk, atol=1e-9)


def test_separators_and_the_end_say_nothing_of_values(llama_like: Any) -> None:
    grammar = grammar_of(llama_like, "signed", horizon=2)
    labels = tokens_of(grammar, "+0.50-1.00\n+0.10+0.20")
    predicted = list(labels)
    predicted[10] = predicted[-1] = labels[0]  # a plus where the line and the text end
    np.testing.assert_allclose(likeliest_values(grammar, predicted, labels)[0], [[0.5, -1.0], [0.1, 0.2]])
    predicted[5] = labels[10]  # a line's end where a minus was
    assert np.isnan(likeliest_values(grammar, predicted, labels)[0]).tolist() == [[False, True], [False, False]]


def test_the_first_steps_of_a_chunk_are_read_where_the_others_are_padding(llama_like: Any) -> None:
    grammar = grammar_of(llama_like, "signed", horizon=2)
    labels = tokens_of(grammar, "+0.50-1.00\n+0.10+0.20")
    for length in (10, 11):  # with the separator and without
        read, told = likeliest_values(grammar, labels[:length], labels[:length])
        np.testing.assert_allclose(read, [[0.5, -1.0]])
        np.testing.assert_allclose(told, [[0.5, -1.0]])


def test_a_sign_that_is_merged_with_what_is_before_it_belongs_to_the_next_value(llama_like: Any) -> None:
    grammar = grammar_of(llama_like, "legacy")
    labels, pieces = tokens_of(grammar, "0.5,-0.25,"), {piece: token for token, piece in grammar.text_of.items()}
    assert grammar.text_of[labels[4]] == ",-"
    positive = [*labels[:4], pieces[","], *labels[5:]]
    np.testing.assert_allclose(likeliest_values(grammar, positive, labels)[0], [[0.5, 0.25]])
    first = [pieces[" -"], *labels[1:]]
    np.testing.assert_allclose(likeliest_values(grammar, first, labels)[0], [[-0.5, -0.25]])


def test_bins_are_read_one_by_one(llama_like: Any) -> None:
    bins = ActionBins(2)
    grammar = BinGrammar.from_action_config(make_action_config(bins, llama_like))
    labels = [*grammar.token_ids("127 254"), grammar.eos_token_id]
    read, told = likeliest_values(grammar, [labels[0], llama_like.bos_token_id, labels[2]], labels)
    np.testing.assert_allclose(told, bins.to_values([[127, 254]]))
    np.testing.assert_allclose(read, [[0.0, NO]], atol=1e-6)
