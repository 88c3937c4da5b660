"""Yes-or-no scoring against a table worked out by hand."""

import pytest

from gen_vla.evaluation.vqa.lm_eval_tasks import yes_no
from gen_vla.evaluation.vqa.lm_eval_tasks.yes_no import Judgement, parse_yes_no, process_pope, process_vsr


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("yes", True),
        ("Yes.", True),
        (" YES, there is a dog", True),
        ('"True"', True),
        ("no", False),
        ("No, there is none.", False),
        ("False\n", False),
        ("", None),
        ("   ", None),
        ("...", None),
        ("there is no dog", None),  # POPE's own script takes this for no, and everything else for yes
        ("yesterday", None),
        ("not at all", None),
        ("1", None),
    ],
)
def test_parsing(answer, said):
    assert parse_yes_no(answer) is said


# truth, said: 3 right yes, 1 missed, 1 neither | 2 right no, 2 wrong yes, 1 neither
MIXED = (
    [(True, True)] * 3 + [(True, False), (True, None)] + [(False, False)] * 2 + [(False, True)] * 2 + [(False, None)]
)


@pytest.mark.parametrize(
    ("judgements", "expected"),
    [
        # Recall is over all five, the unparsable one included.
        (MIXED, {"accuracy": 0.5, "precision": 0.6, "recall": 0.6, "f1": 0.6, "yes_ratio": 0.5, "unparsable": 0.2}),
        # The share of yes is that of what the model said; of the truth it would be 2 / 5.
        (
            [(True, True)] + [(False, True)] * 3 + [(True, False)],
            {"precision": 1 / 4, "recall": 1 / 2, "f1": 1 / 3, "yes_ratio": 4 / 5},
        ),
        ([(True, False), (False, False), (True, None)], {"precision": 0.0, "recall": 0.0, "f1": 0.0}),
        ([(False, True)], {"recall": 0.0}),
    ],
)
def test_metrics(judgements, expected):
    table = [Judgement(*judgement) for judgement in judgements]
    assert {name: getattr(yes_no, name)(table) for name in expected} == pytest.approx(expected)


def test_pope_is_scored_overall_and_in_its_category():
    values = process_pope({"answer": "yes", "category": "popular"}, ["No."])
    assert values.keys() == {*yes_no.METRICS, *(f"popular_{metric}" for metric in yes_no.METRICS)}
    assert set(values.values()) == {Judgement(True, False)}


def test_vsr_is_true_where_its_label_is_one():
    assert process_vsr({"label": 1}, ["True"])["accuracy"] == (True, True)
    assert process_vsr({"label": 0}, ["true."])["accuracy"] == (False, True)
    assert process_vsr({"label": 0}, ["maybe"])["unparsable"] == (False, None)


def test_an_answer_that_is_none_of_popes():
    with pytest.raises(ValueError, match="got 'two' as the right answer, expected yes or no"):
        process_pope({"answer": "two", "category": "popular"}, ["yes"])
