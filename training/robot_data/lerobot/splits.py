"""Which episodes a split of a LeRobot data set holds, by the `splits` of its meta/info.json.

LeRobot itself reads all episodes and never looks at `splits`, and public converters copy `"train": "0:100"` for any
number of them. So without a named split all are read, and a split that does not hold all is told.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gen_vla.training.robot_data.episodes import RobotDataError


BOUND = re.compile(r"(\d+(?:\.\d+)?)%|(\d*)")
FORMS = '"0:100", "0:80%", ":", several of them with commas between, or a list of episode numbers'


def split_episodes(
    info: dict[str, Any], split: str | None, numbers: Sequence[int], where: str
) -> tuple[set[int], str]:
    """The episodes of a split, and what is to be told about it ("" for nothing).

    Args:
        info: meta/info.json.
        split: a name under `splits`; `None` for all episodes.
        numbers: those of all episodes there are, ascending; they may have gaps.
        where: meta/info.json, for messages.

    Raises:
        RobotDataError: on a split that is not there, cannot be read or holds no episode that there is.
    """
    splits = info.get("splits") or {}
    if not isinstance(splits, dict):
        raise RobotDataError(f"got {where} with splits={splits!r}, expected an object, such as {{}} for none")
    if split is None:
        return set(numbers), _told_without_split(splits, numbers)
    if split not in splits and not (split == "train" and not splits):
        raise RobotDataError(
            f"got split={split!r}, expected one of {', '.join(splits) or 'none'} as in {where}; without `split` all "
            f"{len(numbers)} episodes are read"
        )
    value = splits.get(split, ":")
    named, clipped = parse_split(value, numbers)
    if named is None:
        raise RobotDataError(f"got split {split!r} = {value!r} in {where}, expected {FORMS}; correct it there")
    if not named:
        raise RobotDataError(
            f"got split {split!r} ({value}) in {where} with none of the {len(numbers)} episodes there are (numbers "
            f"{numbers[0]} to {numbers[-1]}); correct it there, or leave out `split` to read all"
        )
    told = f"split {split!r} ({value}) holds {len(named)} of {len(numbers)} episodes"
    if clipped:
        told += f" and names others, which are not there: their numbers are {numbers[0]} to {numbers[-1]}"
    return named, told if clipped or len(named) < len(numbers) else ""


def parse_split(value: Any, numbers: Sequence[int]) -> tuple[set[int] | None, bool]:
    """Episodes of `numbers` that a value under `splits` names, and whether it names others, too.

    A range is of episode numbers, its end left out; a percentage is of the episodes there are, in their order. `None`
    where the value cannot be understood.
    """
    if isinstance(value, list):
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in value):
            return None, False
        return set(value) & set(numbers), not set(value) <= set(numbers)
    named: set[int] = set()
    clipped = False
    for part in str(value).split(",") if isinstance(value, str) else [None]:
        first, colon, last = (part or "").replace(" ", "").partition(":")
        begin, end = _bound(first, 0, numbers), _bound(last, numbers[-1] + 1, numbers)
        if begin is None or end is None or not colon:
            return None, False
        named |= {number for number in numbers if begin <= number < end}
        clipped |= end > numbers[-1] + 1
    return named, clipped


def _bound(text: str, default: int, numbers: Sequence[int]) -> int | None:
    """An episode number; a percentage becomes the number of the episode in that place."""
    if not (match := BOUND.fullmatch(text)):
        return None
    if match[1] is None:
        return int(text or default)
    place = round(float(match[1]) / 100 * len(numbers))
    return numbers[place] if place < len(numbers) else numbers[-1] + 1


def _told_without_split(splits: dict[str, Any], numbers: Sequence[int]) -> str:
    held = {name: parse_split(value, numbers)[0] for name, value in splits.items()}
    if all(episodes is not None and len(episodes) == len(numbers) for episodes in held.values()):
        return ""
    named = ", ".join(
        f"{name} ({splits[name]}) " + ("cannot be understood" if episodes is None else f"holds {len(episodes)}")
        for name, episodes in held.items()
    )
    return f"all {len(numbers)} episodes are read, as no split is named; of its splits {named}: name one with `split`"
