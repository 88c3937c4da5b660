"""What several settings of a recipe must agree to, and how one that does not is told.

Decides: the words of these errors. Refuses to know: which settings there are (`recipes/schema.py`).
"""

from collections.abc import Iterable
from typing import Any


class RecipeError(ValueError):
    """A recipe that cannot be read as one; says where, what was got and what was expected."""


def at_least_one(where: str, settings: Any, names: Iterable[str]) -> None:
    """Raises `RecipeError` for the first of these settings that is below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise RecipeError(f"{where}: got {name}={getattr(settings, name)}, expected at least 1")


def check_unique(word: str, entries: list[str], owners: str, reason: str) -> None:
    """Raises `RecipeError` for an entry that comes twice."""
    for entry in entries:
        if entries.count(entry) > 1:
            raise RecipeError(
                f"data: got the {word} {entry!r} for {entries.count(entry)} {owners}, expected a {word} of its own "
                f"for each, since {reason}"
            )
