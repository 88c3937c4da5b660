"""`evaluate.load("gen-vla/vqa_accuracy")`: soft accuracy of answers to visual questions, as TextVQA and VizWiz score.

The rule is in `soft_accuracy.py`, which the project's lm-eval tasks use too.
"""

import datasets
import evaluate

from .soft_accuracy import soft_accuracy


DESCRIPTION = """\
Soft accuracy of visual question answering: the mean over annotators of min(1, matches among the others / 3), after the
official normalisation (case, punctuation, articles, number words, contractions). 1 is best.
"""

CITATION = """\
@inproceedings{antol2015vqa,
  title={{VQA}: Visual Question Answering},
  author={Antol, Stanislaw and Agrawal, Aishwarya and Lu, Jiasen and Mitchell, Margaret and Batra, Dhruv and
          Zitnick, C. Lawrence and Parikh, Devi},
  booktitle={ICCV},
  year={2015}
}
"""

INPUTS = """\
Args:
    predictions: list of str, one answer per question.
    references: list of lists of str, what people answered, at least two each and usually ten.
Returns:
    vqa_accuracy: float, the mean of the scores.
    scores: list of float, one per question.
Raises:
    ValueError: without predictions, or if a question has fewer than two annotations.
Examples:
    >>> metric = evaluate.load("gen-vla/vqa_accuracy")
    >>> metric.compute(predictions=["The cat"], references=[["cat"] * 3 + ["dog"] * 7])
    {'vqa_accuracy': 0.9, 'scores': [0.9]}
"""


class VQAAccuracy(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        words = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": words, "references": datasets.List(words)}),
            reference_urls=["https://visualqa.org/evaluation.html"],
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float | list[float]]:
        if not predictions:
            raise ValueError("got no predictions, expected at least one")
        scores = [soft_accuracy(answer, people) for answer, people in zip(predictions, references, strict=True)]
        return {"vqa_accuracy": sum(scores) / len(scores), "scores": scores}
