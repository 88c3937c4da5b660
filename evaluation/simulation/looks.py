"""What a tabletop scene can look like. Three sets of looks that share no texture, shade, light or camera:

    HOME           the one look of robot demonstrations
    broad_look(i)  BROAD_LOOKS looks of vision-language data: what a model has seen before it sees the robot
    unseen_look(i) UNSEEN_LOOKS looks for evaluation alone

Looks cannot be touched, so an episode unfolds identically under each. Tests hold that to the bit, and the sets apart.
The tabletop suite shows variants made of these sets (`tabletop/variants.py`).
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from gen_vla.evaluation.simulation import layouts
from gen_vla.evaluation.simulation.layouts import COLOURS, SHAPES, Layout, TableObject
from gen_vla.evaluation.simulation.offscreen_camera import CameraPose


RGB = tuple[float, float, float]
Lighting = tuple[RGB, ...]  # without direction, and of the scene's three lamps
Distractors = Literal["none", "two", "four", "same_colours", "same_shapes"]
LookSet = Literal["home", "broad", "unseen"]

BROAD_LOOKS, UNSEEN_LOOKS = 400, 100
DISTRACTOR_DISTANCE = 0.1  # metres to every other object
STRANGE_COLOURS: dict[str, RGB] = {
    "orange": (0.94, 0.48, 0.08),
    "teal": (0.05, 0.55, 0.55),
    "pink": (0.95, 0.55, 0.70),
    "brown": (0.42, 0.26, 0.14),
}
STRANGE_SHAPES = ("carton", "candle", "plate", "dumbbell")


@dataclass(frozen=True)
class Surface:
    """A texture (`simulation/textures.py`), how often it repeats per metre, and a colour it is multiplied by."""

    texture: str
    repeats: float
    tint: RGB = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Look:
    """One way to look; `family` and `name` are what results call it."""

    family: str
    name: str
    table: Surface
    room: Surface
    lighting: Lighting
    camera: CameraPose
    palette: tuple[RGB, ...] = tuple(COLOURS.values())  # the shades of COLOURS, in their order
    distractors: Distractors = "none"
    strange: bool = False  # distractors have a shape and colour that is no object's

    @property
    def key(self) -> str:
        return f"{self.family}/{self.name}"

    @property
    def colours(self) -> dict[str, RGB]:
        return {**dict(zip(COLOURS, self.palette, strict=True)), **STRANGE_COLOURS}


def grey(*lights: float) -> Lighting:
    return tuple((light, light, light) for light in lights)


HOME = Look(
    "ordinary",
    "ordinary",
    table=Surface("wood2.png", 1.0),
    room=Surface("plaster1.png", 1.0),
    lighting=grey(0.42, 0.38, 0.28, 0.14),
    camera=CameraPose(lookat=(0.0, 0.66, 0.07), distance=0.72, azimuth=118.0, elevation=-42.0),
)
WARM: RGB = (0.38, 0.29, 0.18)
UNSEEN_LIGHTS: dict[str, Lighting] = {
    "dim": grey(0.22, 0.18, 0.14, 0.06),
    "bright": grey(0.62, 0.48, 0.34, 0.18),
    "warm": ((0.44, 0.37, 0.26), WARM, WARM, WARM),
    "from_one_side": grey(0.20, 0.0, 0.75, 0.0),
}
UNSEEN_CAMERAS: dict[str, CameraPose] = {
    "left": replace(HOME.camera, azimuth=HOME.camera.azimuth - 12.0),
    "right": replace(HOME.camera, azimuth=HOME.camera.azimuth + 12.0),
    "higher": replace(HOME.camera, elevation=HOME.camera.elevation - 12.0),
    "farther": replace(HOME.camera, distance=1.28 * HOME.camera.distance),
}
UNSEEN_TABLES: dict[str, Surface] = {
    "mahogany": Surface("darkwood.png", 1.0),
    "granite": Surface("granite.png", 1.0),
    "marble": Surface("marble.png", 1.0),
    "metal": Surface("metal2.png", 1.0),
}
UNSEEN_ROOMS: dict[str, Surface] = {
    "brick": Surface("brick1.png", 1.0),
    "planks": Surface("wood4.png", 1.0),
    "navy": Surface("navy_blue.png", 0.5),
    "white_tiles": Surface("floor2.png", 1.3),
}
BROAD_FILES = ("wood1.png", "wood3.png", "light_wood.png", "light_wood_v2.png", "light_wood_v3.png", "wood_light.png")
BROAD_FILES += ("metal.png", "metal1.png", "floor1.png", "wood.png", "tennis.png", "real_door.png")
BROAD_PATTERNS = ("stripes", "checks", "dots", "clouds", "grain", "speckle", "tiles", "veins")
UNSEEN_PATTERNS = ("bricks", "zigzag", "rings")
# Of the colour circle, beside a colour's own.
BROAD_HUES = (-0.021, -0.007, 0.007, 0.021)
UNSEEN_HUES = (-0.014, 0.014)


@lru_cache(maxsize=BROAD_LOOKS)
def broad_look(index: int) -> Look:
    """One of the looks of vision-language data, 0 .. BROAD_LOOKS - 1."""
    if not 0 <= index < BROAD_LOOKS:
        raise ValueError(f"got broad look {index}, expected 0..{BROAD_LOOKS - 1}")
    rng = np.random.default_rng([index, 11])
    table, room = (_surface(rng, BROAD_FILES, BROAD_PATTERNS, 2 * index + side) for side in (0, 1))
    warmth = 1.0 + rng.uniform(-0.1, 0.1) * np.array([1.0, 0.0, -1.0])
    strengths = (rng.uniform(0.3, 0.5), rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.5), rng.uniform(0.0, 0.25))
    lighting = tuple(tuple((strength * warmth).tolist()) for strength in strengths)
    home = HOME.camera
    turned = rng.uniform(-9.0, 9.0) if rng.random() < 0.6 else rng.choice((-1.0, 1.0)) * rng.uniform(15.0, 22.0)
    camera = replace(
        home,
        lookat=tuple((np.array(home.lookat) + rng.uniform(-0.02, 0.02, 3)).tolist()),
        distance=home.distance * float(rng.uniform(0.98, 1.2)),
        azimuth=home.azimuth + float(turned),
        elevation=home.elevation + float(rng.uniform(-9.0, 8.0)),
    )
    return Look("broad", str(index), table, room, lighting, camera, _palette(rng, BROAD_HUES))


@lru_cache(maxsize=UNSEEN_LOOKS)
def unseen_look(index: int) -> Look:
    """One of the looks for evaluation alone, 0 .. UNSEEN_LOOKS - 1: nothing in it as in HOME or a broad look."""
    if not 0 <= index < UNSEEN_LOOKS:
        raise ValueError(f"got unseen look {index}, expected 0..{UNSEEN_LOOKS - 1}")
    rng = np.random.default_rng([index, 12])
    tables, rooms = (tuple(s.texture for s in known.values()) for known in (UNSEEN_TABLES, UNSEEN_ROOMS))
    table, room = (_surface(rng, f, UNSEEN_PATTERNS, 2 * index + side) for side, f in enumerate((tables, rooms)))
    lighting = list(UNSEEN_LIGHTS.values())[rng.integers(len(UNSEEN_LIGHTS))]
    camera = list(UNSEEN_CAMERAS.values())[rng.integers(len(UNSEEN_CAMERAS))]
    return Look("unseen", str(index), table, room, lighting, camera, _palette(rng, UNSEEN_HUES))


def _surface(rng: np.random.Generator, files: Sequence[str], patterns: Sequence[str], seed: int) -> Surface:
    if rng.random() < 0.3:
        tint = np.clip(rng.uniform(0.6, 1.0) * (1.0 + rng.uniform(-0.2, 0.2, 3)), 0.0, 1.0)
        return Surface(str(rng.choice(files)), float(rng.uniform(0.7, 1.6)), tuple(tint.tolist()))
    return Surface(f"{rng.choice(patterns)} {seed}", float(rng.uniform(0.7, 2.0)))


def _palette(rng: np.random.Generator, hues: Sequence[float]) -> tuple[RGB, ...]:
    """Another shade of every named colour: lighter or darker, paler or fuller, and of another hue."""
    shades = []
    for red, green, blue in COLOURS.values():
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        full, light = rng.uniform(0.75, 1.05), rng.uniform(0.75, 1.15)
        shade = ((hue + rng.choice(hues)) % 1.0, min(saturation * full, 1.0), min(value * light, 1.0))
        shades.append(colorsys.hsv_to_rgb(*map(float, shade)))
    return tuple(shades)


def look_of(which: LookSet, seed: int) -> Look:
    """The look of a picture: `home`'s only one, or one of a set, in turn, eight seeds in a row the same, so that a
    texture is made once for eight pictures."""
    if which == "home":
        return HOME
    number = seed // 8
    return broad_look(number % BROAD_LOOKS) if which == "broad" else unseen_look(number % UNSEEN_LOOKS)


def apply_looks(model: Any, look: Look) -> None:
    """Writes surfaces and lights into a tabletop model; the camera puts their textures in."""
    for slot, surface in (("table", look.table), ("room", look.room)):
        model.mat_rgba[model.material(slot).id, :3] = surface.tint
    model.vis.headlight.ambient[:], *lamps = look.lighting
    model.vis.headlight.diffuse[:] = 0.12
    model.light_diffuse[:] = lamps


def distractors(look: Look, layout: Layout, seed: int) -> list[TableObject]:
    """The objects a look adds: never one that an instruction could mean, never where drawer or hand work."""
    if look.distractors == "none":
        return []
    rng = np.random.default_rng([seed, 2])
    kinds = _distractor_kinds(look, layout, rng)
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


def _distractor_kinds(look: Look, layout: Layout, rng: np.random.Generator) -> list[tuple[str, str]]:
    """(colour, shape) of each: as many new ones as said, or twins of the layout's objects in one respect."""
    all_colours, all_shapes = (STRANGE_COLOURS, STRANGE_SHAPES) if look.strange else (COLOURS, SHAPES)
    used = {o.colour for o in layout.objects}, {o.shape for o in layout.objects}
    colours = [str(c) for c in rng.permutation([c for c in all_colours if c not in used[0]])]
    shapes = [str(s) for s in rng.permutation([s for s in all_shapes if s not in used[1]])]
    if look.distractors == "same_colours":
        return [(thing.colour, shape) for thing, shape in zip(layout.objects, shapes, strict=False)]
    if look.distractors == "same_shapes":
        return [(colour, thing.shape) for thing, colour in zip(layout.objects, colours, strict=False)]
    count = 4 if look.distractors == "four" else 2
    return [(colours[i % len(colours)], shapes[i]) for i in range(count)]
