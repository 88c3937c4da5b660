"""Scoring of answers: exact match, intervals, majority share; the model's part with a tiny random model."""

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from printed_tables import printed

from gen_vla.evaluation.vqa import scene_questions
from gen_vla.evaluation.vqa.scene_questions import answer_questions, evaluate_questions, questions_table


def scenes(count: int) -> Dataset:
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    rows = [
        {"image": picture, "question": f"question {i}", "answer": "yes" if i % 4 else "No", "kind": "ab"[i % 2]}
        for i in range(count)
    ]
    return Dataset.from_list(rows)


def test_scores_by_kind_and_majority(monkeypatch):
    """Of 8 answers, "yes" six times; always saying " Yes " is right six times of eight, and 2 of 4 for kind a."""
    monkeypatch.setattr(scene_questions, "answer_questions", lambda m, p, images, questions: [" Yes "] * len(images))
    report = evaluate_questions(None, None, scenes(8), batch_size=3, progress=False)
    assert (report.total.right, report.total.n) == (6, 8)
    assert (report.kinds["a"].right, report.kinds["a"].n, report.kinds["a"].majority) == (2, 4, 0.5)
    assert (report.kinds["b"].right, report.kinds["b"].n, report.kinds["b"].majority) == (4, 4, 1.0)
    assert report.total.majority == 0.75
    assert report.total.interval == (0.4093, 0.9285)
    first = {"kind": "a", "question": "question 0", "expected": "No", "got": " Yes ", "right": False}
    assert report.answers[0] == first
    assert len(report.answers) == 8
    assert questions_table(report).row_count == 3


@pytest.mark.parametrize(
    ("kind", "answer", "given"),
    [
        ("point", "[(0.40, 0.50)]", ["[(0.40, 0.50)]", "(0.40,0.55)", "[(0.6, 0.5)]", "the mug"]),
        ("gripper_offset", "[(+0.10, -0.20)]", ["[(+0.10, -0.20)]", "(.10,-0.15)", "[(-0.1, -0.2)]", "the mug"]),
    ],
)
def test_points_and_offsets_are_scored_by_their_distance(kind, answer, given, monkeypatch):
    """In a picture 0.5 m wide: exact, 2.5 cm off, 10 cm off, and no point."""
    monkeypatch.setattr(scene_questions, "answer_questions", lambda m, p, images, questions: given)
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    row = {"image": picture, "question": "Where is it?", "answer": answer, "kind": kind, "picture_width": 0.5}
    report = evaluate_questions(None, None, Dataset.from_list([row] * 4), progress=False)
    assert [answer["right"] for answer in report.answers] == [True, True, False, False]
    assert [answer["metres_off"] for answer in report.answers] == [0.0, pytest.approx(0.025), pytest.approx(0.1), None]
    assert report.kinds[kind].median_cm == pytest.approx(6.25)
    assert f"{kind}, 6.2 cm off" in printed(questions_table(report))


def test_a_model_answers_in_batches_as_one_by_one(tiny_openvla):
    model, processor = tiny_openvla
    pictures = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 128, 255)]
    questions = ["one?", "two or three?", "in?"]
    together = answer_questions(model, processor, pictures, questions)
    alone = [answer_questions(model, processor, [p], [q])[0] for p, q in zip(pictures, questions, strict=True)]
    assert together == alone
    assert all(isinstance(answer, str) for answer in together)
