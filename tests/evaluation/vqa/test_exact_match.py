"""Exact match: what counts and what does not."""

import pytest

from gen_vla.evaluation.vqa.lm_eval_tasks.exact_match import exact_match, process_results


@pytest.mark.parametrize(
    ("answer", "expected", "same"),
    [
        ("left", "left", True),
        (" Left.", "left", True),
        ("the left", "left", False),  # GQA knows no articles
        ("left side", "left", False),
        ("t-shirt", "t shirt", False),
        ("T-shirt!", "t-shirt", True),
        ("", "left", False),
        ("2", "two", False),
    ],
)
def test_cases(answer, expected, same):
    assert exact_match(answer, expected) is same
    assert process_results({"answer": expected}, [answer]) == {"exact_match": float(same)}
