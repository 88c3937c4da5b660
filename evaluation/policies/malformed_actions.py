"""Tells a model's malformed answer from a mistake in the program."""

from collections.abc import Callable, Sequence
from typing import Any


def wrote_no_action(error: ValueError) -> bool:
    """Whether decoding an action raised it; the class comes with a model's own code: only its name is known here."""
    return type(error).__name__ == "ActionStringError"


def actions_or_none(predict: Callable[[Sequence[Any]], Any], rows: Sequence[Any]) -> list[Any]:
    """What `predict` gives for rows together; where an answer is malformed, for each alone, `None` for that row."""
    try:
        return list(predict(rows))
    except ValueError as error:
        if not wrote_no_action(error):
            raise
    return [None] if len(rows) == 1 else [actions_or_none(predict, [row])[0] for row in rows]
