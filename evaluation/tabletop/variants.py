"""The looks a policy is judged in besides HOME: four variants in each of six families, in two sets.

VARIANTS are in no data. SEEN_VARIANTS are of vision-language data, though the robot's own demonstrations, all in HOME,
do not have them either: only there can it show that a policy still knows what its vision-language model had seen. The
family `everything` changes all at once, and the shades of the objects' colours.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gen_vla.evaluation.simulation import looks
from gen_vla.evaluation.simulation.looks import HOME, Look


PER_FAMILY = 4
CLUTTER: tuple[looks.Distractors, ...] = ("two", "four", "same_colours", "same_shapes")
BROAD = {f"seen_{i}": looks.broad_look(i) for i in range(PER_FAMILY)}
UNSEEN = {f"unseen_{i}": looks.unseen_look(i) for i in range(PER_FAMILY)}


def _family(family: str, aspect: str, named: Mapping[str, Any], **others: Any) -> list[Look]:
    """HOME with another value of one aspect, a look per name."""
    return [replace(HOME, family=family, name=name, **{aspect: value}, **others) for name, value in named.items()]


def _everything(named: Mapping[str, Look], strange: bool) -> list[Look]:
    cluttered: dict[str, Any] = {"family": "everything", "distractors": "two", "strange": strange}
    return [replace(look, name=name, **cluttered) for name, look in named.items()]


VARIANTS = (
    *_family("background", "room", looks.UNSEEN_ROOMS),
    *_family("table_texture", "table", looks.UNSEEN_TABLES),
    *_family("lighting", "lighting", looks.UNSEEN_LIGHTS),
    *_family("distractors", "distractors", {kind: kind for kind in CLUTTER}, strange=True),
    *_family("camera", "camera", looks.UNSEEN_CAMERAS),
    *_everything(UNSEEN, strange=True),
)
SEEN_VARIANTS = (
    *_family("background", "room", {name: look.room for name, look in BROAD.items()}),
    *_family("table_texture", "table", {name: look.table for name, look in BROAD.items()}),
    *_family("lighting", "lighting", {name: look.lighting for name, look in BROAD.items()}),
    *_family("distractors", "distractors", {f"seen_{kind}": kind for kind in CLUTTER}),
    *_family("camera", "camera", {name: look.camera for name, look in BROAD.items()}),
    *_everything(BROAD, strange=False),
)
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(variant.family for variant in VARIANTS))
_BY_KEY = {variant.key: variant for variant in (HOME, *VARIANTS, *SEEN_VARIANTS)}


def variant_of(key: str) -> Look:
    """The variant of a `family/name`; raises `ValueError` if there is none."""
    if key not in _BY_KEY:
        raise ValueError(f"got variant {key!r}, expected one of {', '.join(_BY_KEY)}")
    return _BY_KEY[key]
