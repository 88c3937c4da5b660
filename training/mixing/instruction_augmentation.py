"""Paraphrases of instructions: lists to train with, and held-out lists, disjoint from them, to evaluate with.

    move 7up can near blue plastic bottle           the form "move {object} near {target}" of the family move_near
    {object} = 7up can, {target} = blue plastic bottle
    slide the 7up can next to the blue plastic bottle       one of its wordings in train.yaml

The lists are `paraphrases/*.yaml`. Names of objects are kept whole. An instruction of no family stays as it is; so
does one with a second clause ("... and wipe it"), since a paraphrase of half of it could change what it asks for.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from gen_vla.training.mixing.prepared_rows import row_generator


PARAPHRASES = Path(__file__).resolve().parent / "paraphrases"
Lists = Literal["train", "held_out"]
LISTS: tuple[Lists, ...] = ("train", "held_out")

# Words that no name of an object holds: they begin another part of the sentence, or stand for an object.
NO_NAME = (
    "and|then|or|from|out|off|in|into|inside|on|onto|to|towards|near|next|beside|by|with|over|under|upright|behind|"
    "which|that|is|are|it|them|this|these|those|everything|all|something|some|any|my|your|its"
)
_WORD = rf"(?!(?:{NO_NAME})(?:\s|$))[^\s,;:.]+"
_NAME = rf"{_WORD}(?: {_WORD})*"
_SIDE = r"(?:left|right|front|back|vertical|horizontal)"
SLOTS = {
    "object": _NAME,
    "target": _NAME,
    "container": _NAME,
    "tool": _NAME,
    "source": rf"{_NAME}(?: or {_NAME})*",
    "drawer": rf"(?:{_WORD} ){{0,2}}drawer",
    "place": r"(?:(?! (?:and|then) )[^,;:.])+",
    "way": rf"(?:(?:to )?(?:the )?{_SIDE}(?: to (?:the )?{_SIDE})?|clockwise|counterclockwise|anticlockwise)",
}
VERBATIM = ("place", "way")  # with the article they come with; the others lose theirs and get "the"
_SLOT = re.compile(r"\{(\w+)\}")


class Match(NamedTuple):
    family: str
    slots: dict[str, str]


def match(instruction: str) -> Match | None:
    """The family an instruction belongs to, or `None`. Case, spaces and a full stop at the end do not matter."""
    text = " ".join(instruction.split()).rstrip(" .!")
    for family, pattern in _patterns():
        found = pattern.fullmatch(text)
        if found:
            return Match(family, found.groupdict())
    return None


@cache
def paraphrases(instruction: str, lists: Lists = "train") -> list[str]:
    """All paraphrases that a list, `"train"` or `"held_out"`, has for an imperative; none for one of no family."""
    found = match(instruction)
    if found is None:
        return []
    return [wording.format(**found.slots) for wording in _read(lists)[found.family]]


def held_out_paraphrases(instruction: str) -> list[str]:
    """The paraphrases that training never sees, for evaluation."""
    return paraphrases(instruction, "held_out")


def paraphrased(instruction: str, row: int | str, probability: float = 1.0, seed: int = 0) -> str:
    """The instruction of a row in training, perhaps paraphrased.

    Args:
        row: the row's place in the run (or its identity, but then every epoch reads the same).
        seed: of the run; the same seed and row give the same words.
    """
    wordings, draw = paraphrases(instruction), row_generator(seed, "instruction", row)
    if not wordings or draw.random() >= probability:
        return instruction
    return wordings[int(draw.integers(len(wordings)))]


def families() -> dict[str, dict[str, list[str]]]:
    return _read("families")


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    forms = [(family, form) for family, entry in families().items() for form in entry["forms"]]
    forms.sort(key=lambda entry: len(_SLOT.sub("", entry[1])), reverse=True)
    return [(family, re.compile(_SLOT.sub(_slot_pattern, form), re.IGNORECASE)) for family, form in forms]


def _slot_pattern(slot: re.Match[str]) -> str:
    name = slot[1]
    article = "" if name in VERBATIM else "(?:(?:the|a|an) )?"
    return rf"{article}(?P<{name}>{SLOTS[name]})"


@cache
def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((PARAPHRASES / f"{name}.yaml").read_text(encoding="utf-8"))
