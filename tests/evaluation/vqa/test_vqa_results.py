"""Figures, intervals, table and picture of the VQA suite, from made-up answers."""

import pytest

from gen_vla.evaluation.vqa.lm_eval_tasks.yes_no import METRICS, Judgement
from gen_vla.evaluation.vqa.results import bootstrap_f1, question_scores_table, task_figures, yes_no_table


def pope_sample(category: str, truth: bool, said: bool | None) -> dict:
    return {"doc": {"category": category}, "target": "", **dict.fromkeys(METRICS, Judgement(truth, said))}


POPE = [
    pope_sample("random", True, True),
    pope_sample("random", False, False),
    pope_sample("popular", True, None),
    pope_sample("popular", False, True),
]
SCENES = [
    {"doc": {"kind": kind}, "target": target, "exact_match": right}
    for kind, target, right in (("a", "one", 1.0), ("a", "One.", 0.0), ("a", "two", 1.0), ("b", "left", 1.0))
]


def test_yes_or_no_figures_are_shares_of_their_own_n():
    figures = task_figures("pope", POPE)
    overall = {figure["metric"]: figure for figure in figures if figure["task"] == "pope"}
    assert {name: (figure["value"], figure["n"]) for name, figure in overall.items()} == {
        "accuracy": (0.5, 4),
        "precision": (0.5, 2),  # of two questions answered yes
        "recall": (0.5, 2),  # of two that are true
        "f1": (0.5, 4),
        "yes_ratio": (0.5, 4),
    }
    assert {figure["unparsable"] for figure in overall.values()} == {1}
    assert overall["accuracy"]["majority"] == 0.5
    assert overall["accuracy"]["interval"] == [0.15, 0.85]
    popular = {figure["metric"]: figure for figure in figures if figure["task"] == "pope/popular"}
    assert (popular["accuracy"]["value"], popular["recall"]["value"], popular["recall"]["unparsable"]) == (0.0, 0.0, 1)
    assert (popular["precision"]["value"], popular["precision"]["n"]) == (0.0, 1)


def test_nobody_said_yes():
    figures = task_figures("pope", [pope_sample("random", True, False)])
    precision = next(figure for figure in figures if figure["metric"] == "precision")
    assert (precision["value"], precision["n"], precision["interval"]) == (0.0, 0, None)


def test_exact_match_by_kind_beside_the_majority():
    overall, a, b = task_figures("scenes", SCENES)
    assert (overall["value"], overall["n"], overall["majority"]) == (0.75, 4, 0.75)  # (2/3 * 3 + 1 * 1) / 4
    assert (a["task"], a["value"], a["majority"]) == ("scenes/a", 0.6667, 0.6667)  # "One." is "one"
    assert (b["task"], b["value"], b["majority"]) == ("scenes/b", 1.0, 1.0)


def test_no_answers_and_unknown_answers():
    with pytest.raises(ValueError, match="got no answers of task pope"):
        task_figures("pope", [])
    with pytest.raises(ValueError, match="expected one of soft_accuracy, exact_match, accuracy"):
        task_figures("pope", [{"doc": {}, "bleu": 1.0}])


def soft(scores):
    return task_figures(
        "textvqa", [{"doc": {"answers": []}, "target": "x", "soft_accuracy": score} for score in scores]
    )


def test_bootstrap_agrees_with_the_normal_approximation_where_that_holds():
    (figure,) = soft([0.0] * 400 + [1.0] * 600)
    half = 1.96 * (0.6 * 0.4 / 1000) ** 0.5
    assert figure["interval"] == pytest.approx((0.6 - half, 0.6 + half), abs=0.004)
    (constant,) = soft([0.3] * 5)
    assert (constant["metric"], constant["value"], constant["n"]) == ("soft_accuracy", 0.3, 5)
    assert (constant["interval"], constant["majority"]) == ([0.3, 0.3], None)
    answers = [Judgement(True, True)] * 400 + [Judgement(False, True)] * 100 + [Judgement(True, None)] * 100
    low, high = bootstrap_f1([*answers, *[Judgement(False, False)] * 400])
    assert low < 0.8 < high < low + 0.08
    assert bootstrap_f1([Judgement(False, False)] * 5) == (0.0, 0.0)


def asked(pictures: int, times: int, metric: str, column: str | None) -> list[dict]:
    """So many questions about each picture, all answered alike: rightly about two of three pictures."""
    samples = []
    for index in range(pictures * times):
        doc = {column: f"picture {index % pictures}"} if column else {}
        right = index % pictures % 3 > 0
        judged = Judgement(True, right) if metric == "accuracy" else float(right)
        samples.append({"doc": doc, "target": "x", **({"f1": judged} if metric == "accuracy" else {}), metric: judged})
    return samples


@pytest.mark.parametrize(
    ("metric", "column"), [("exact_match", "imageId"), ("accuracy", "image_source"), ("soft_accuracy", "image_id")]
)
def test_questions_about_one_picture_that_are_answered_alike_count_once(metric, column):
    alone = task_figures("task", asked(30, 1, metric, None))
    named = task_figures("task", asked(30, 6, metric, column))
    blind = task_figures("task", asked(30, 6, metric, None))
    for one, by_picture, each in zip(alone, named, blind, strict=True):
        assert (one["pictures"], by_picture["pictures"], each["pictures"]) == (None, 30, None)
        assert one["value"] == by_picture["value"] == each["value"]
        assert by_picture["interval"] == pytest.approx(one["interval"], abs=0.04)  # as of 30 questions, not of 180
        widths = [found["interval"][1] - found["interval"][0] for found in (each, by_picture)]
        assert widths[0] < 0.55 * widths[1]


def test_a_picture_without_a_name_leaves_all_questions_independent_and_the_table_says_so():
    samples = asked(30, 6, "exact_match", "imageId")
    assert question_scores_table(task_figures("gqa", samples), "model").caption is None
    del samples[0]["doc"]["imageId"]
    figures = task_figures("gqa", samples)
    table = question_scores_table(figures, "model")
    assert figures[0]["pictures"] is None
    assert list(table.columns[4].cells) == ["not named"]
    assert table.caption == "Without named pictures, questions are taken for independent: several about one are not."


def test_tables_have_a_row_per_task_and_category():
    figures = task_figures("pope", POPE) + task_figures("scenes", SCENES)
    assert question_scores_table(figures, "model").row_count == 6
    second = yes_no_table(figures)
    assert second is not None
    assert second.row_count == 3
    assert list(second.columns[5].cells) == ["1", "1", "0"]  # neither
    assert yes_no_table(task_figures("scenes", SCENES)) is None
