"""Yes-or-no scoring against a table worked out by hand."""

import pytest

from gen_vla.evaluation.vqa.lm_eval_tasks import yes_no
from gen_vla.evaluation.vqa.lm_eval_tasks.yes_no import Judgement, judge, parse_yes_no, process_pope, process_vsr


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
TABLE = [
    *[Judgement(True, True)] * 3,
    Judgement(True, False),
    Judgement(True, None),
    *[Judgement(False, False)] * 2,
    *[Judgement(False, True)] * 2,
    Judgement(False, None),
]


def test_the_table():
    assert yes_no.accuracy(TABLE) == 5 / 10
    assert yes_no.precision(TABLE) == 3 / 5
    assert yes_no.recall(TABLE) == 3 / 5  # of five, the one that is neither included
    assert yes_no.f1(TABLE) == pytest.approx(3 / 5)
    assert yes_no.yes_ratio(TABLE) == 5 / 10
    assert yes_no.unparsable(TABLE) == 2 / 10


def test_precision_and_recall_differ():
    table = [Judgement(True, True), *[Judgement(False, True)] * 3, Judgement(True, False)]
    assert (yes_no.precision(table), yes_no.recall(table)) == (1 / 4, 1 / 2)
    assert yes_no.f1(table) == pytest.approx(2 * (1 / 4) * (1 / 2) / (3 / 4))
    assert yes_no.yes_ratio(table) == 4 / 5  # of what the model said; of the truth it would be 2 / 5


def test_a_model_that_never_says_yes():
    table = [Judgement(True, False), Judgement(False, False), Judgement(True, None)]
    assert (yes_no.precision(table), yes_no.recall(table), yes_no.f1(table)) == (0.0, 0.0, 0.0)
    assert yes_no.recall([Judgement(False, True)]) == 0.0


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
        judge("two", "yes")
