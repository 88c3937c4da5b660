"""Figures per source, from token tensors made by hand, and values as predicted tokens spell them, in every style."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_statistics

from gen_vla.processors import ActionBins, ActionStringProcessor, make_action_config
from gen_vla.processors.action_grammar import ActionGrammar
from gen_vla.training.metrics import SourceMetrics, predicted_values


SOURCES = ["robot/near", "robot/far", "vision_language/scenes"]
STATS = {"near": tiny_statistics(3), "far": tiny_statistics(3, scale=10.0)}  # dimension d: [-(d + 1), d + 1] * scale


class OneProcess:
    """What `read` needs of an accelerator: sums over one process are the sums."""

    device = torch.device("cpu")

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def metrics(tokenizer: Any, horizon: int = 1) -> SourceMetrics:
    strings = ActionStringProcessor(action_dim=3, horizon=horizon, decimals=2, binary_dims=[2])
    return SourceMetrics(SOURCES, make_action_config(strings, tokenizer), STATS)


def batch(tokenizer: Any, rows: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Likeliest tokens and labels of rows of (written, expected) characters, EOS behind both."""
    width = max(len(expected) for _, expected in rows) + 2
    predicted, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    for number, texts in enumerate(rows):
        for tensor, text in zip((predicted, labels), texts, strict=True):
            ids = [tokenizer.convert_tokens_to_ids(character) for character in text]
            tensor[number, 1 : len(ids) + 2] = torch.tensor([*ids, tokenizer.eos_token_id])
    return predicted, labels


def figures(
    meter: SourceMetrics, predicted: torch.Tensor, labels: torch.Tensor, sources: list[int], replaced: list[bool]
) -> dict[str, float]:
    log_probs = torch.where(labels != -100, -0.5, 0.0)
    meter.add(log_probs, predicted, labels, torch.tensor(sources), torch.tensor(replaced))
    return meter.read(OneProcess())


def test_errors_are_in_the_units_of_the_row_s_own_data_set(llama_like: Any) -> None:
    meter = metrics(llama_like)
    target = "+0.50-0.50+1.00"
    rows = [("+0.50-0.50+1.00", target), ("+0.60-0.50+1.00", target), ("-0.50-0.50+1.00", target)]
    found = figures(meter, *batch(llama_like, rows), [0, 0, 1], [False, False, False])
    assert found["robot/near/action_error"] == pytest.approx((0.0 + 0.1 / 3) / 2)  # 0.1 of [-1, 1] over 3 dimensions
    assert found["robot/far/action_error"] == pytest.approx(10.0 / 3)  # 1.0 of [-10, 10]
    assert found["robot/near/exact"] == 0.5
    assert (found["robot/near/sign_accuracy"], found["robot/far/sign_accuracy"]) == (1.0, pytest.approx(2 / 3))
    assert found["robot/sign_accuracy"] == pytest.approx(8 / 9)
    assert found["robot/loss"] == found["robot/near/loss"] == 0.5
    assert found["robot/far/token_accuracy"] == pytest.approx(15 / 16)
    assert "robot/action_error" not in found, "metres of one robot and inches of another have no mean"


def test_what_spells_no_action_is_counted_and_its_numbers_are_scored(llama_like: Any) -> None:
    """Where the recorded digits are fed in, one wrong digit may spell no action, and is the error that counts most."""
    meter = metrics(llama_like)
    target = "+0.50-1.00+1.00"
    rows = [("+0.50-0.00+1.00", target), ("+1.50-1.00+1.00", target), (target, target)]
    found = figures(meter, *batch(llama_like, rows), [0, 0, 0], [False] * 3)
    assert found["robot/near/malformed"] == found["robot/malformed"] == pytest.approx(2 / 3)
    assert found["robot/near/action_error"] == pytest.approx((1.0 * 2 + 1.0 * 1) / 9)  # of [-2, 2] and of [-1, 1]


def test_what_is_no_number_has_no_error(llama_like: Any) -> None:
    meter = metrics(llama_like)
    target = "+0.50-0.50+1.00"
    found = figures(meter, *batch(llama_like, [("+0.5+-0.60+1.00", target)]), [0], [False])
    assert found["robot/near/malformed"] == 1.0
    assert found["robot/near/action_error"] == pytest.approx(0.1 * 2 / 2)
    none = figures(meter, *batch(llama_like, [("aaaaaaaaaaaaaaa", target)]), [0], [False])
    assert none["robot/near/malformed"] == 1.0
    assert "robot/near/action_error" not in none


def test_bins_have_errors_too(llama_like: Any) -> None:
    codec = ActionBins(action_dim=3)
    config = make_action_config(codec, llama_like)
    meter = SourceMetrics(SOURCES, config, STATS)
    last = config["bin_tokens_end"] - 1
    labels = torch.tensor([[-100, last - 10, last - 20, last - 30, llama_like.eos_token_id]])
    predicted = torch.tensor([[0, last - 10, last - 21, last - 30, llama_like.eos_token_id]])
    found = figures(meter, predicted, labels, [0], [False])
    assert found["robot/near/action_error"] == pytest.approx(2 * 2 / 255 / 3, rel=1e-3)  # one bin of [-2, 2]
    assert "robot/near/sign_accuracy" not in found


def test_answers_have_no_action_figures_and_stand_ins_are_counted(llama_like: Any) -> None:
    meter = metrics(llama_like)
    found = figures(meter, *batch(llama_like, [("a", "b"), ("c", "c")]), [2, 2], [True, False])
    assert set(found) == {
        f"{name}/{figure}"
        for name in ("vision_language", "vision_language/scenes")
        for figure in ("loss", "token_accuracy", "exact", "replaced")
    }
    assert found["vision_language/scenes/replaced"] == found["vision_language/exact"] == 0.5
    assert found["vision_language/token_accuracy"] == 0.75
    only_talks = SourceMetrics(["vision_language/scenes"], None, {})
    answer = torch.tensor([[0, 7, 2]])
    assert figures(only_talks, answer, answer.masked_fill(answer == 0, -100), [0], [False])[
        "vision_language/scenes/exact"
    ]


def test_reading_starts_anew_and_rows_count_alike_over_micro_batches(llama_like: Any) -> None:
    meter = metrics(llama_like)
    predicted, labels = batch(llama_like, [("aaa", "aaa"), ("b", "c")])
    for part in (slice(0, 1), slice(1, 2)):
        log_probs = torch.where(labels[part] != -100, -1.0 - part.start, 0.0)
        meter.add(log_probs, predicted[part], labels[part], torch.tensor([2]), torch.tensor([False]))
    found = meter.read(OneProcess())
    assert found["vision_language/loss"] == pytest.approx((4 * 1.0 + 2 * 2.0) / 6)
    assert meter.read(OneProcess()) == {}


def test_rows_that_are_supervised_in_part_have_errors_of_that_part(llama_like: Any) -> None:
    """Of a chunk that reaches behind its episode only recorded steps are labels, and no EOS."""
    meter = metrics(llama_like, horizon=2)
    target = "+0.50-0.50+1.00"
    predicted, labels = batch(llama_like, [("+0.60-0.50+1.00", target), ("+0.5x-0.50+1.00", target)])
    labels[labels == llama_like.eos_token_id] = -100
    found = figures(meter, predicted, labels, [0, 0], [False, False])
    assert found["robot/near/token_accuracy"] == pytest.approx(28 / 30)
    assert found["robot/near/exact"] == 0.0
    assert found["robot/near/action_error"] == pytest.approx(0.1 / 5)
    assert "robot/near/malformed" not in found


# ---- values
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
    read, told = predicted_values(grammar, tokens_of(grammar, written), labels)
    np.testing.assert_allclose(read, [expected])
    np.testing.assert_allclose(told, [[0.5, -1.0]])
    other = [llama_like.convert_tokens_to_ids("x"), *labels[1:]]
    assert np.isnan(predicted_values(grammar, other, labels)[0][0]).tolist() == [True, False]


@pytest.mark.parametrize("vocabulary", ["llama_like", "gemma_like"])
@pytest.mark.parametrize("style", ["signed", "plain", "legacy"])
def test_recorded_actions_read_as_they_were_recorded(vocabulary: str, style: str, request: Any) -> None:
    grammar, random = grammar_of(request.getfixturevalue(vocabulary), style, horizon=3), np.random.default_rng(0)
    for _ in range(20):
        chunk = np.round(random.uniform(-1, 1, (3, 2)), 2)
        labels = tokens_of(grammar, grammar.strings.encode(chunk))
        read, told = predicted_values(grammar, labels, labels)
        np.testing.assert_allclose(read, chunk, atol=1e-9)
        np.testing.assert_allclose(told, chunk, atol=1e-9)


def test_separators_and_the_end_say_nothing_of_values(llama_like: Any) -> None:
    grammar = grammar_of(llama_like, "signed", horizon=2)
    labels = tokens_of(grammar, "+0.50-1.00\n+0.10+0.20")
    predicted = list(labels)
    predicted[10] = predicted[-1] = labels[0]  # a plus where the line and the text end
    np.testing.assert_allclose(predicted_values(grammar, predicted, labels)[0], [[0.5, -1.0], [0.1, 0.2]])
    predicted[5] = labels[10]  # a line's end where a minus was
    assert np.isnan(predicted_values(grammar, predicted, labels)[0]).tolist() == [[False, True], [False, False]]


def test_a_sign_that_is_merged_with_what_is_before_it_belongs_to_the_next_value(llama_like: Any) -> None:
    grammar = grammar_of(llama_like, "legacy")
    labels, pieces = tokens_of(grammar, "0.5,-0.25,"), {piece: token for token, piece in grammar.text_of.items()}
    assert grammar.text_of[labels[4]] == ",-"
    positive = [*labels[:4], pieces[","], *labels[5:]]
    np.testing.assert_allclose(predicted_values(grammar, positive, labels)[0], [[0.5, 0.25]])
    first = [pieces[" -"], *labels[1:]]
    np.testing.assert_allclose(predicted_values(grammar, first, labels)[0], [[-0.5, -0.25]])
