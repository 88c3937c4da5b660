"""Every token of an action weighs what its place value says."""

from typing import Any

import pytest
from tiny_models import tiny_tokenizer

from gen_vla.processors import ActionGrammar, ActionStringProcessor, make_action_config
from gen_vla.training.loss_weights import POINT_WEIGHT, ActionTokenWeights, tokens_of_steps


DECIMALS = [0.9, 0.5, 0.2]
P = POINT_WEIGHT


def spelled(text: str, kind: str = "llama_like", **settings: Any) -> tuple[ActionGrammar, list[int], Any]:
    """The grammar, an answer's tokens and EOS, and the tokenizer; `settings` are those of the action format."""
    tokenizer: Any = tiny_tokenizer(kind)
    strings = ActionStringProcessor(**{"action_dim": 2, "decimals": 4, **settings})
    grammar = ActionGrammar.from_action_config(make_action_config(strings, tokenizer))
    prompt = tokenizer.encode("Out:" + ("\n" if strings.style != "legacy" else ""), add_special_tokens=False)
    whole = tokenizer.encode(tokenizer.decode(prompt) + text, add_special_tokens=False)
    assert whole[: len(prompt)] == prompt
    answer = [*whole[len(prompt) :], tokenizer.eos_token_id]
    grammar.advance(answer)
    return grammar, answer, tokenizer


def weigh(text: str, constant_dims: list[int] | None = None, kind: str = "llama_like", **settings: Any) -> list[float]:
    """The weights of an answer's tokens and EOS."""
    grammar, answer, _ = spelled(text, kind, **settings)
    weights = ActionTokenWeights(grammar, DECIMALS, constant_dims or (), 0.5)(answer)
    assert len(weights) == len(answer)
    return weights


@pytest.mark.parametrize("kind", ["llama_like", "gemma_like"])
def test_a_two_dimensional_action(kind: str) -> None:
    #        +    0    .  0    3    1    2    -    0    .  1    2    0    0    EOS
    value = [1.0, 1.0, P, 0.9, 0.5, 0.2, 1.0]
    assert weigh("+0.0312-0.1200", kind=kind) == [*value, *value, 1.0]


def test_constant_dimensions_weigh_less_and_eos_does_not() -> None:
    value = [1.0, 1.0, P, 0.9, 0.5, 0.2, 1.0]
    half = [weight * 0.5 for weight in value]
    assert weigh("+0.0312-0.1200", [1]) == [*value, *half, 1.0]
    assert weigh("+0.0312-0.1200", [0]) == [*half, *value, 1.0]
    assert weigh("+0.0312-0.1200", [0, 1]) == [*half, *half, 1.0]


def test_chunks_count_dimensions_anew_and_separators_weigh_one() -> None:
    value = [1.0, 1.0, P, 0.9, 0.5]
    half = [weight * 0.5 for weight in value]
    text = "+0.01-0.12\n+1.00+0.50"
    assert weigh(text, horizon=2, decimals=2) == [*value, *value, 1.0, *value, *value, 1.0]
    assert weigh(text, [1], horizon=2, decimals=2) == [*value, *half, 1.0, *value, *half, 1.0]


def test_plain_strings_have_no_sign_before_a_positive_value() -> None:
    #     0    .  0    3    \n   -    0    .  1    2    EOS
    assert weigh("0.03\n-0.12", style="plain", decimals=2) == [*[1.0, P, 0.9, 0.5], 1.0, *[1.0, 1.0, P, 0.9, 0.5], 1.0]


def test_a_token_of_several_characters_weighs_as_its_heaviest() -> None:
    # legacy " -0.12,-0.5,": "▁-" and ",-" are one token each
    assert weigh(" -0.12,-0.5,", style="legacy") == [1.0, 1.0, P, 0.9, 0.5, 1.0, 1.0, P, 0.9, 1.0, 1.0]
    # the second value is constant: its digits weigh half, ",-" weighs as its comma, the last comma is a separator
    constant = weigh(" -0.12,-0.5,", [1], style="legacy")
    assert constant == [1.0, 1.0, P, 0.9, 0.5, 1.0, 0.5, P / 2, 0.45, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["llama_like", "gemma_like"])
@pytest.mark.parametrize(
    ("style", "text", "first"),
    [
        ("signed", "+0.5000-0.2500\n-0.1000+1.0000\n-0.1000+1.0000", "+0.5000-0.2500"),
        ("plain", "0.5000\n-0.2500\n\n-0.1000\n1.0000\n\n-0.1000\n1.0000", "0.5000\n-0.2500"),
        ("legacy", " 0.5,-0.25,-0.1,1.0,-0.1,1.0,", " 0.5,-0.25"),  # what ends it, ",-", begins the next step
        ("legacy", " -0.5,0.25,0.1,1.0,-0.1,1.0,", " -0.5,0.25,"),
    ],
)
def test_tokens_of_the_first_steps_end_before_what_separates_them(kind, style, text, first):
    grammar, answer, tokenizer = spelled(text, kind, style=style, horizon=3)
    counts = [tokens_of_steps(grammar, answer, steps) for steps in (1, 2, 3)]
    digit = tokenizer.encode("0", add_special_tokens=False)
    written = tokenizer.decode([*digit, *answer[: counts[0]]])
    assert written.removeprefix("0").lstrip() == first.lstrip()
    assert counts[0] < counts[1] < counts[2] == len(answer), "all steps count what ends the answer, too"
