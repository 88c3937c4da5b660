"""The tabletop as one MuJoCo model: Meta-World's robot, table and drawer, two objects of any shape, a room around.

Where things stand is in `simulation/layouts.py`, what it may look like in `simulation/looks.py`. Each of the two
object bodies holds the parts of every shape; a scene shows the parts of one and hides the others, so that no scene
needs another compilation. One part of each shape, `touch`, is touched and not drawn.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from metaworld.asset_path_utils import full_V3_path_for

from gen_vla.evaluation.simulation.layouts import GRASP_HEIGHT, SHAPES, TableObject
from gen_vla.evaluation.simulation.offscreen_camera import Ornament, mujoco
from gen_vla.evaluation.simulation.textures import TEXTURE_SIZE


RGB = tuple[float, float, float]

WHITE, SILVER, DARK = (0.95, 0.95, 0.93), (0.80, 0.81, 0.83), (0.10, 0.10, 0.12)
OBJECT_MASS, OBJECT_INERTIA = 0.2, 2e-4  # kg, kg m^2 around each axis
SLOTS = ("table", "room")  # of textures
ROBOT_GREY, ROBOT_DARK = (0.88, 0.89, 0.91), (0.22, 0.23, 0.26)
CABINET_CREAM, HANDLE_GREY = (0.90, 0.84, 0.72), (0.35, 0.36, 0.38)
# Half of the robot's vertices, behind the camera or hidden by the rest: drawing them costs 40 % of a render.
OUT_OF_VIEW = ("controller_box", "pedestal_feet", "torso", "pedestal", "head", "right_arm_base_link")
OUT_OF_VIEW += ("right_l0", "right_l1")

LARGE_MESH, DETAIL = 1000, 0.005  # triangles; metres, less than a pixel


@dataclass(frozen=True)
class Part:
    """A primitive of a shape, drawn or only touched: MuJoCo's kind and sizes, its place above the table, a colour
    (None: the object's)."""

    kind: str
    size: tuple[float, float, float]
    position: tuple[float, float, float]
    colour: tuple[float, float, float] | None = None
    touch: bool = False


def _cylinder(radius: float, bottom: float, top: float, colour: Any = None, touch: bool = False) -> Part:
    return Part("cylinder", (radius, (top - bottom) / 2, 0.0), (0.0, 0.0, (top + bottom) / 2), colour, touch)


# Twice as large as what the fingers touch would allow: they open 8.8 cm, and a policy's aim is off by one or two, so a
# touched part is at most 6.2 cm along y, where they close, and sinks a few millimetres into what is drawn around it.
# Everything is lower than the palm when held.
PARTS: dict[str, tuple[Part, ...]] = {
    "can": (
        _cylinder(0.035, 0.0, 0.096),
        _cylinder(0.0358, 0.032, 0.064, WHITE),
        _cylinder(0.031, 0.096, 0.102, SILVER),
        _cylinder(0.031, 0.0, 0.096, touch=True),
    ),
    "bottle": (
        _cylinder(0.035, 0.0, 0.066),
        Part("ellipsoid", (0.035, 0.035, 0.028), (0.0, 0.0, 0.066)),
        _cylinder(0.014, 0.08, 0.112),
        _cylinder(0.017, 0.109, 0.126, WHITE),
        _cylinder(0.031, 0.0, 0.066, touch=True),
    ),
    "mug": (
        _cylinder(0.036, 0.0, 0.078),
        _cylinder(0.03, 0.0775, 0.079, DARK),
        Part("box", (0.016, 0.007, 0.007), (0.048, 0.0, 0.063)),
        Part("box", (0.016, 0.007, 0.007), (0.048, 0.0, 0.02)),
        Part("box", (0.007, 0.007, 0.0285), (0.06, 0.0, 0.0415)),
        _cylinder(0.031, 0.0, 0.078, touch=True),
    ),
    "block": (
        Part("box", (0.035, 0.034, 0.035), (0.0, 0.0, 0.035)),
        Part("box", (0.035, 0.029, 0.035), (0.0, 0.0, 0.035), touch=True),
    ),
    "ball": (  # it stands on a hidden foot, or it would roll away before the robot has read the instruction
        Part("sphere", (0.038, 0.0, 0.0), (0.0, 0.0, 0.038)),
        _cylinder(0.03, 0.0, 0.06, touch=True),
    ),
    "sponge": (
        Part("box", (0.054, 0.034, 0.0145), (0.0, 0.0, 0.0145), (0.85, 0.87, 0.80)),
        Part("box", (0.054, 0.034, 0.012), (0.0, 0.0, 0.041)),
        Part("box", (0.046, 0.029, 0.026), (0.0, 0.0, 0.026), touch=True),
    ),
    # Never named or touched: `looks.STRANGE_SHAPES`.
    "carton": (
        Part("box", (0.03, 0.03, 0.045), (0.0, 0.0, 0.045)),
        Part("box", (0.031, 0.008, 0.012), (0.0, 0.0, 0.1), WHITE),
    ),
    "candle": (_cylinder(0.02, 0.0, 0.09), Part("ellipsoid", (0.007, 0.007, 0.014), (0.0, 0.0, 0.105), SILVER)),
    "plate": (_cylinder(0.055, 0.0, 0.012), _cylinder(0.035, 0.012, 0.014, WHITE)),
    "dumbbell": (
        Part("sphere", (0.025, 0.0, 0.0), (-0.04, 0.0, 0.025)),
        Part("sphere", (0.025, 0.0, 0.0), (0.04, 0.0, 0.025)),
        Part("box", (0.03, 0.008, 0.008), (0.0, 0.0, 0.025), DARK),
    ),
}


def build_model() -> Any:
    """A copy of the compiled tabletop, for one simulation: its colours, shapes and places may be written to."""
    return copy.copy(_compiled())


@lru_cache(maxsize=1)
def _compiled() -> Any:
    spec = mujoco.MjSpec.from_file(full_V3_path_for("sawyer_xyz/sawyer_drawer.xml"))
    _add_surfaces(spec)
    _add_room(spec)
    for index in range(2):
        _add_object(spec, index)
    model = spec.compile()
    # The weld that drags the hand after its target, as Meta-World sets it: no offset, torques five times forces.
    model.eq_data[model.eq_type == mujoco.mjtEq.mjEQ_WELD] = [0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 5]
    _paint(model)
    _decimate(model)
    return model


def _add_surfaces(spec: Any) -> None:
    """A blank texture and its material for the table and for the room, which a look fills."""
    side = TEXTURE_SIZE
    for slot in SLOTS:
        texture = spec.add_texture(name=slot, type=mujoco.mjtTexture.mjTEXTURE_2D, width=side, height=side, nchannel=3)
        texture.builtin = mujoco.mjtBuiltin.mjBUILTIN_FLAT
        material = spec.add_material(name=slot, texuniform=True, shininess=0.2, specular=0.2)
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = slot


def _add_room(spec: Any) -> None:
    """Two walls behind the table, as far as the camera sees."""
    upright, facing = [0.5**0.5, 0.5**0.5, 0.0, 0.0], [0.5**0.5, 0.0, 0.5**0.5, 0.0]
    for name, position, turn in (("wall_back", [0.0, 1.9, 0.0], upright), ("wall_side", [-1.9, 0.0, 0.0], facing)):
        wall = spec.worldbody.add_geom(name=name, type=mujoco.mjtGeom.mjGEOM_PLANE, pos=position, quat=turn)
        wall.size, wall.material, wall.contype, wall.conaffinity = [3.0, 3.0, 0.1], "room", 0, 0


def _add_object(spec: Any, index: int) -> None:
    body = spec.worldbody.add_body(name=f"object{index}", pos=[0.2 * index, 0.6, GRASP_HEIGHT])
    body.add_freejoint(name=f"object{index}")
    body.explicitinertial, body.mass = True, OBJECT_MASS
    body.ipos, body.inertia = [0.0, 0.0, 0.0], [OBJECT_INERTIA] * 3
    for shape in SHAPES:
        for number, part in enumerate(PARTS[shape]):
            geom = body.add_geom(name=f"object{index} {shape} {number}", size=part.size)
            geom.type = getattr(mujoco.mjtGeom, f"mjGEOM_{part.kind.upper()}")
            geom.pos = [part.position[0], part.position[1], part.position[2] - GRASP_HEIGHT]
            geom.contype = geom.conaffinity = int(part.touch)  # 0 here would be 0 for the body, once and for all
            geom.condim, geom.friction = 4, [1.0, 0.1, 0.002]
            geom.solref[:2], geom.solimp[:3] = [0.01, 1.0], [0.99, 0.99, 0.01]


def _paint(model: Any) -> None:
    """Neutral colours for everything that stays, so that a named colour means an object; table and room by slots."""
    table = model.geom_bodyid == model.body("tablelink").id
    model.geom_matid[table & (model.geom_group == 1)] = model.material("table").id
    for name in ("wall_back", "wall_side", "floor"):
        model.geom_matid[model.geom(name).id] = model.material("room").id
    hidden = [model.body(name).id for name in OUT_OF_VIEW]
    model.geom_rgba[np.isin(model.geom_bodyid, hidden), 3] = 0.0
    reds = np.all(np.isclose(model.geom_rgba[:, :3], (0.5, 0.1, 0.1)), axis=1)
    model.geom_rgba[reds, :3] = ROBOT_GREY
    for name in ("rightclaw_it", "leftclaw_it", "rightpad_geom", "leftpad_geom"):
        model.geom_rgba[model.geom(name).id, :3] = ROBOT_DARK
    for material, colour in (("drawer_beige", CABINET_CREAM), ("drawer_white", HANDLE_GREY)):
        model.mat_rgba[model.material(material).id, :3] = colour
        model.mat_specular[model.material(material).id] = 0.2
        model.mat_shininess[model.material(material).id] = 0.3


def _decimate(model: Any) -> None:
    """Drops the triangles of large meshes that a grid of DETAIL merges to a line: 30,000 are too many for 96 pixels.

    What is touched stays: collisions use vertices and hulls, which keep theirs.
    """
    for mesh in np.flatnonzero(model.mesh_facenum > LARGE_MESH):
        vertices = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
        start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        cells = np.floor(vertices / DETAIL).astype(np.int64)
        _, first, cell = np.unique(cells, axis=0, return_index=True, return_inverse=True)
        corners = first[cell.ravel()][model.mesh_face[start : start + count]]
        kept = np.flatnonzero((corners != np.roll(corners, 1, axis=1)).all(axis=1))
        model.mesh_face[start : start + len(kept)] = corners[kept]
        for attribute in (model.mesh_facenormal, model.mesh_facetexcoord):
            attribute[start : start + len(kept)] = attribute[start : start + count][kept]
        model.mesh_facenum[mesh] = len(kept)


def show_object(model: Any, index: int, shape: str | None, rgb: RGB = WHITE) -> None:
    for other in SHAPES:
        for number, part in enumerate(PARTS[other]):
            geom = model.geom(f"object{index} {other} {number}").id
            shown = other == shape
            model.geom_rgba[geom] = (*(part.colour or rgb), float(shown and not part.touch))
            model.geom_contype[geom] = model.geom_conaffinity[geom] = int(shown and part.touch)


def ornaments(things: Iterable[TableObject], colours: Mapping[str, RGB]) -> list[Ornament]:
    return [ornament for thing in things for ornament in _ornaments(thing, colours[thing.colour])]


def _ornaments(thing: TableObject, rgb: RGB) -> Iterator[Ornament]:
    cos, sin = np.cos(thing.yaw), np.sin(thing.yaw)
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    for part in drawn_parts(thing.shape):
        x, y, z = (thing.x, thing.y, thing.z) + turn @ part.position * thing.size
        width, depth, height = (thing.size * side for side in part.size)
        colour = (*(part.colour or rgb), 1.0)
        yield Ornament(part.kind, (width, depth, height), (x, y, z), colour, tuple(turn.ravel().tolist()))


def drawn_parts(shape: str) -> list[Part]:
    return [part for part in PARTS[shape] if not part.touch]
