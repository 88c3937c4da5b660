"""The files in evaluation/results, for the scripts that write the pages' tables."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "evaluation" / "results"
Rows = Iterator[list[str]]


def load(name: str) -> dict[str, Any]:
    """A file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def share(score: dict[str, Any], count: str) -> str:
    """`46/50 (81-97 %)`."""
    low, high = (round(100 * bound) for bound in score["interval"])
    return f"{score[count]}/{score['n']} ({low}-{high} %)"
