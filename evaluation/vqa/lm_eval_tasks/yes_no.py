"""Yes-or-no questions, for POPE and VSR: accuracy, precision, recall, F1, the share of yes, unparsable answers.

The first word of an answer decides. An answer that is neither yes nor no is wrong, and counted as unparsable. Imports
nothing of this project, so that plain lm-eval can load it from its folder.

Two rules differ from lmms-eval's, where the model would be flattered: recall is over all questions whose answer is yes
(there, an unparsable answer leaves the denominator), and the yes-ratio is that of the predictions, as POPE's authors
define it (there, that of the truth). For a model that only ever writes "yes" or "no" all other figures are the same.
"""

import string
from collections.abc import Sequence
from typing import Any, NamedTuple


YES, NO = frozenset({"yes", "true"}), frozenset({"no", "false"})


class Judgement(NamedTuple):
    """The truth about one question and what the model said; `None` where that is neither yes nor no."""

    truth: bool
    said: bool | None


def parse_yes_no(answer: str) -> bool | None:
    """The first word, if it is yes, true, no or false: "No, there is none." is no. `None` otherwise."""
    words = answer.lower().split()
    first = words[0].strip(string.punctuation) if words else ""
    if first in YES:
        return True
    return False if first in NO else None


def accuracy(judgements: Sequence[Judgement]) -> float:
    """Right answers of all questions."""
    return _share([truth == said for truth, said in judgements])


def precision(judgements: Sequence[Judgement]) -> float:
    """Of the questions answered yes, those where it is true; 0 where none was."""
    return _share([truth for truth, said in judgements if said])


def recall(judgements: Sequence[Judgement]) -> float:
    """Of the questions whose answer is yes, those answered yes; 0 where there is none."""
    return _share([said is True for truth, said in judgements if truth])


def f1(judgements: Sequence[Judgement]) -> float:
    """The harmonic mean of precision and recall; 0 where both are."""
    p, r = precision(judgements), recall(judgements)
    return 2 * p * r / (p + r) if p + r else 0.0


def yes_ratio(judgements: Sequence[Judgement]) -> float:
    """Of all questions, those the model answered yes."""
    return _share([said is True for _, said in judgements])


def unparsable(judgements: Sequence[Judgement]) -> float:
    """Of all questions, those the model answered neither yes nor no."""
    return _share([said is None for _, said in judgements])


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else 0.0


METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio", "unparsable")  # by name, as in pope.yaml


def process_pope(doc: dict[str, Any], results: list[str]) -> dict[str, Judgement]:
    """lm-eval's call for one question of POPE: the judgement, for every metric, overall and in its category; raises
    `ValueError` if the data set's answer is neither yes nor no."""
    truth = parse_yes_no(doc["answer"])
    if truth is None:
        raise ValueError(
            f"got {doc['answer']!r} as the right answer, expected yes or no; the row is not one of POPE's"
        )
    judgement = Judgement(truth, parse_yes_no(results[0]))
    return dict.fromkeys((*METRICS, *(f"{doc['category']}_{metric}" for metric in METRICS)), judgement)


def process_vsr(doc: dict[str, Any], results: list[str]) -> dict[str, Judgement]:
    """lm-eval's call for one statement of VSR, whose `label` is 1 where it is true."""
    judgement = Judgement(bool(doc["label"]), parse_yes_no(results[0]))
    return dict.fromkeys(("accuracy", "yes_ratio", "unparsable"), judgement)
