"""The looks a tabletop scene can have: the ordinary one, and four named variants in each of five families.

Nothing here can be touched, so an episode unfolds identically under every variant; a test holds that to the bit.

    background     what walls and floor are made of
    table_texture  what the table is made of
    lighting       how bright, how warm, from where
    distractors    more objects on the table, which no instruction names
    camera         where the picture is taken from
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gen_vla.evaluation.simulation import layouts
from gen_vla.evaluation.simulation.layouts import COLOURS, SHAPES, Layout, TableObject
from gen_vla.evaluation.simulation.offscreen_camera import CameraPose


CAMERA = CameraPose(lookat=(0.0, 0.66, 0.07), distance=0.72, azimuth=118.0, elevation=-42.0)
DISTRACTOR_DISTANCE = 0.1  # metres to every other object
RGB = tuple[float, float, float]


Lighting = tuple[RGB, ...]  # without direction, and of the scene's three lamps


def _grey(*lights: float) -> Lighting:
    return tuple((light, light, light) for light in lights)


WARM: RGB = (0.38, 0.29, 0.18)
ORDINARY_LIGHT = _grey(0.42, 0.38, 0.28, 0.14)


@dataclass(frozen=True)
class Variant:
    """One way to look; `family` and `name` are what results call it."""

    family: str
    name: str
    room: str = "room_default"
    table: str = "table_default"
    lighting: Lighting = ORDINARY_LIGHT
    distractors: str = "none"
    camera: CameraPose = CAMERA

    @property
    def key(self) -> str:
        """`family/name`"""
        return f"{self.family}/{self.name}"


ORDINARY = Variant("ordinary", "ordinary")
VARIANTS: tuple[Variant, ...] = (
    Variant("background", "brick", room="room_brick"),
    Variant("background", "planks", room="room_planks"),
    Variant("background", "navy", room="room_navy"),
    Variant("background", "white_tiles", room="room_tiles"),
    Variant("table_texture", "mahogany", table="table_mahogany"),
    Variant("table_texture", "granite", table="table_granite"),
    Variant("table_texture", "marble", table="table_marble"),
    Variant("table_texture", "metal", table="table_metal"),
    Variant("lighting", "dim", lighting=_grey(0.22, 0.18, 0.14, 0.06)),
    Variant("lighting", "bright", lighting=_grey(0.52, 0.48, 0.34, 0.18)),
    Variant("lighting", "warm", lighting=((0.44, 0.37, 0.28), WARM, WARM, WARM)),
    Variant("lighting", "from_one_side", lighting=_grey(0.20, 0.0, 0.75, 0.0)),
    Variant("distractors", "two", distractors="two"),
    Variant("distractors", "four", distractors="four"),
    Variant("distractors", "same_colours", distractors="same_colours"),
    Variant("distractors", "same_shapes", distractors="same_shapes"),
    Variant("camera", "left", camera=replace(CAMERA, azimuth=CAMERA.azimuth - 12.0)),
    Variant("camera", "right", camera=replace(CAMERA, azimuth=CAMERA.azimuth + 12.0)),
    Variant("camera", "higher", camera=replace(CAMERA, elevation=-54.0)),
    Variant("camera", "farther", camera=replace(CAMERA, distance=0.92)),
)
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(variant.family for variant in VARIANTS))
_BY_KEY = {variant.key: variant for variant in (ORDINARY, *VARIANTS)}


def variant_of(key: str) -> Variant:
    """The variant of a `family/name`.

    Raises:
        ValueError: if there is none.
    """
    if key not in _BY_KEY:
        raise ValueError(f"got variant {key!r}, expected one of {', '.join(_BY_KEY)}")
    return _BY_KEY[key]


def apply_looks(model: Any, variant: Variant) -> None:
    """Writes materials and lights into a tabletop model; the next picture shows them."""
    table = model.geom_bodyid == model.body("tablelink").id
    model.geom_matid[table & (model.geom_group == 1)] = model.material(variant.table).id
    for name in ("wall_back", "wall_side", "floor"):
        model.geom_matid[model.geom(name).id] = model.material(variant.room).id
    model.vis.headlight.ambient[:], *lamps = variant.lighting
    model.vis.headlight.diffuse[:] = 0.12
    model.light_diffuse[:] = lamps


def distractors(variant: Variant, layout: Layout, seed: int) -> list[TableObject]:
    """The objects a variant adds: never one that an instruction could mean, never where drawer or hand work."""
    if variant.distractors == "none":
        return []
    rng = np.random.default_rng([seed, 2])
    kinds = _distractor_kinds(variant.distractors, layout, rng)
    placed: list[TableObject] = []
    for kind in kinds:
        placed.append(TableObject(*kind, *_free_spot(rng, layout, placed), 0.0))
    return placed


def _free_spot(rng: np.random.Generator, layout: Layout, placed: list[TableObject]) -> tuple[float, float]:
    """A spot clear of all objects and of the way from one to the other; on a crowded table, the clearest drawn."""
    spots = layouts.table_spots(rng, (layouts.DRAWS,), layout.drawer[0])
    first, second = (np.array([o.x, o.y]) for o in layout.objects)
    along = second - first
    share = np.clip((spots - first) @ along / (along @ along), 0.0, 1.0)
    on_the_way = first + share[:, None] * along  # the nearest point of it: carried things would pass through a spot
    taken = [on_the_way, *(np.array([o.x, o.y]) for o in placed)]
    clear = np.min([np.linalg.norm(spots - place, axis=1) for place in taken], axis=0)
    x, y = spots[np.argmax(np.minimum(clear, DISTRACTOR_DISTANCE))]
    return float(x), float(y)


def _distractor_kinds(which: str, layout: Layout, rng: np.random.Generator) -> list[tuple[str, str]]:
    """(colour, shape) of each: as many new ones as said, or twins of the layout's objects in one respect."""
    colours = [str(c) for c in rng.permutation([c for c in COLOURS if c not in {o.colour for o in layout.objects}])]
    shapes = [str(s) for s in rng.permutation([s for s in SHAPES if s not in {o.shape for o in layout.objects}])]
    if which == "same_colours":
        return [(thing.colour, shape) for thing, shape in zip(layout.objects, shapes, strict=False)]
    if which == "same_shapes":
        return [(colour, thing.shape) for thing, colour in zip(layout.objects, colours, strict=False)]
    count = 4 if which == "four" else 2
    return [(colours[i % len(colours)], shapes[i]) for i in range(count)]
