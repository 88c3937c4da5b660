"""Is the vision-language model still in there? Questions about held-out scenes, answered by plain `generate`.

An answer is right if it matches exactly, but for case and outer space; a point or an offset is right within
POINT_RIGHT. Beside the score stands the share that always giving the most frequent answer of a kind would reach.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.table import Table
from tqdm import tqdm

from gen_vla.evaluation.statistics.intervals import wilson_interval
from gen_vla.evaluation.tables import percent, percent_range, results_table
from gen_vla.training.storage.recordings import QUESTION_COLUMNS, load_recording


MAX_NEW_TOKENS = 24
POINT_RIGHT = 0.03  # metres
_POINT = re.compile(r"\(\s*([+-]?\d*\.?\d+)\s*,\s*([+-]?\d*\.?\d+)\s*\)")


@dataclass(frozen=True)
class KindScore:
    """Right answers of n, with Wilson's 95 % interval and the majority answer's share; `median_cm` is the median
    distance of points from what they should point to, None for answers in words, and if most are no points."""

    right: int
    n: int
    interval: tuple[float, float]
    majority: float
    median_cm: float | None = None


@dataclass
class QuestionReport:
    total: KindScore
    kinds: dict[str, KindScore]
    answers: list[dict[str, Any]] = field(default_factory=list)


def load_questions(folder: Path) -> Dataset:
    return load_recording(folder, (*QUESTION_COLUMNS, "kind"))


def evaluate_questions(
    model: Any, processor: Any, dataset: Dataset, batch_size: int = 50, progress: bool = True
) -> QuestionReport:
    """Asks every question of a data set with columns image, question, answer, kind; picture_width where an answer is
    a point; `batch_size` are questions per call of `generate`."""
    answers = []
    for first in tqdm(range(0, len(dataset), batch_size), unit="batch", disable=not progress):
        batch = dataset[first : first + batch_size]
        given = answer_questions(model, processor, batch["image"], batch["question"])
        for row, got in enumerate(given):
            answer = {"kind": batch["kind"][row], "question": batch["question"][row], "got": got}
            answer["expected"] = expected = batch["answer"][row]
            if _POINT.search(expected):
                answer["metres_off"] = off = _metres_off(got, expected, batch["picture_width"][row])
                answer["right"] = off is not None and off <= POINT_RIGHT
            else:
                answer["right"] = got.strip().lower() == expected.strip().lower()
            answers.append(answer)
    by_kind = defaultdict(list)
    for answer in answers:
        by_kind[answer["kind"]].append(answer)
    kinds = {kind: _score(rows) for kind, rows in sorted(by_kind.items())}
    majority = sum(score.majority * score.n for score in kinds.values()) / len(answers)
    return QuestionReport(_score(answers, majority), kinds, answers)


def answer_questions(model: Any, processor: Any, images: list[Any], questions: list[str]) -> list[str]:
    inputs = processor.question_inputs(images, questions).to(model.device)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _metres_off(got: str, expected: str, picture_width: float) -> float | None:
    """Metres between two points; None if `got` is none."""
    point, right = point_in(got), point_in(expected)
    return None if point is None or right is None else float(np.linalg.norm(point - right)) * picture_width


def point_in(text: str) -> np.ndarray | None:
    """The first point in an answer, float [2]; `None` without one."""
    found = _POINT.search(text)
    return np.array(found.groups(), dtype=float) if found else None


def _score(rows: list[dict[str, Any]], majority: float | None = None) -> KindScore:
    right = sum(row["right"] for row in rows)
    if majority is None:
        majority = Counter(row["expected"] for row in rows).most_common(1)[0][1] / len(rows)
    low, high = wilson_interval(right, len(rows))
    off = [row["metres_off"] for row in rows if "metres_off" in row]
    median = float(np.median([np.inf if o is None else o for o in off])) if len(off) == len(rows) else np.inf
    centimetres = round(100 * median, 2) if np.isfinite(median) else None
    return KindScore(right, len(rows), (round(low, 4), round(high, 4)), round(majority, 4), centimetres)


def _name(kind: str, score: KindScore) -> str:
    return kind if score.median_cm is None else f"{kind}, {score.median_cm:.1f} cm off"


def questions_table(report: QuestionReport) -> Table:
    rows = [
        (
            _name(kind, score),
            f"{score.right}/{score.n}",
            f"{percent_range(score.interval)} %",
            f"{percent(score.majority)} %",
        )
        for kind, score in [*report.kinds.items(), ("all", report.total)]
    ]
    columns = ("question", "right", "95 %", "majority answer")
    return results_table("Questions about held-out scenes", columns, rows, no_wrap=True)
