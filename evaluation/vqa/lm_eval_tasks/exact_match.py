"""Exact match of a short answer, for GQA and for questions about the recorded scenes.

Case, outer space and punctuation do not count, as in lmms-eval's GQA. Imports nothing of this project, so that plain
lm-eval can load it from its folder.
"""

import string
from typing import Any


WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(answer: str) -> str:
    """Lower case, without punctuation and outer space: " Yes." becomes "yes"."""
    return answer.lower().translate(WITHOUT_PUNCTUATION).strip()


def exact_match(answer: str, expected: str) -> bool:
    return plain(answer) == plain(expected)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval's call for one question: `doc["answer"]` against the one answer in `results`."""
    return {"exact_match": float(exact_match(results[0], doc["answer"]))}
