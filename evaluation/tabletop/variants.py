"""The looks a policy is judged in besides HOME: four variants in each of six families, in two sets.

VARIANTS are in no data. SEEN_VARIANTS are of vision-language data, though the robot's own demonstrations, all in HOME,
do not have them either: only there can it show that a policy still knows what its vision-language model had seen. The
family `everything` changes all at once, and the shades of the objects' colours.
"""

from dataclasses import replace

from gen_vla.evaluation.simulation.looks import (
    HOME,
    UNSEEN_CAMERAS,
    UNSEEN_LIGHTS,
    UNSEEN_ROOMS,
    UNSEEN_TABLES,
    Distractors,
    Look,
    broad_look,
    unseen_look,
)


CLUTTER: tuple[Distractors, ...] = ("two", "four", "same_colours", "same_shapes")


def _unseen() -> list[Look]:
    looks = [replace(HOME, family="background", name=name, room=room) for name, room in UNSEEN_ROOMS.items()]
    looks += [replace(HOME, family="table_texture", name=name, table=t) for name, t in UNSEEN_TABLES.items()]
    looks += [replace(HOME, family="lighting", name=name, lighting=light) for name, light in UNSEEN_LIGHTS.items()]
    looks += [replace(HOME, family="distractors", name=kind, distractors=kind, strange=True) for kind in CLUTTER]
    looks += [replace(HOME, family="camera", name=name, camera=pose) for name, pose in UNSEEN_CAMERAS.items()]
    return looks + [_with_clutter(unseen_look(i), f"unseen_{i}", strange=True) for i in range(4)]


def _seen() -> list[Look]:
    broad = {f"seen_{i}": broad_look(i) for i in range(4)}
    looks = [replace(HOME, family="background", name=name, room=look.room) for name, look in broad.items()]
    looks += [replace(HOME, family="table_texture", name=name, table=look.table) for name, look in broad.items()]
    looks += [replace(HOME, family="lighting", name=name, lighting=look.lighting) for name, look in broad.items()]
    looks += [replace(HOME, family="distractors", name=f"seen_{kind}", distractors=kind) for kind in CLUTTER]
    looks += [replace(HOME, family="camera", name=name, camera=look.camera) for name, look in broad.items()]
    return looks + [_with_clutter(look, name, strange=False) for name, look in broad.items()]


def _with_clutter(look: Look, name: str, strange: bool) -> Look:
    return replace(look, family="everything", name=name, distractors="two", strange=strange)


VARIANTS, SEEN_VARIANTS = tuple(_unseen()), tuple(_seen())
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(variant.family for variant in VARIANTS))
_BY_KEY = {variant.key: variant for variant in (HOME, *VARIANTS, *SEEN_VARIANTS)}


def variant_of(key: str) -> Look:
    """The variant of a `family/name`; raises `ValueError` if there is none."""
    if key not in _BY_KEY:
        raise ValueError(f"got variant {key!r}, expected one of {', '.join(_BY_KEY)}")
    return _BY_KEY[key]
