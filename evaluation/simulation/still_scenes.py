"""Scenes that are only looked at: more things than a robot's task has, anywhere on the table, and nothing moves.

`TabletopEnv.pose` shows them, for questions and for the labels that towers are pretrained with.
"""

from dataclasses import dataclass

import numpy as np

from gen_vla.evaluation.simulation.actions import DRAWER_TRAVEL
from gen_vla.evaluation.simulation.layouts import COLOURS, DRAWER_X, DRAWER_Y, SHAPES, TableObject
from gen_vla.evaluation.simulation.offscreen_camera import CameraPose


MOST_THINGS = 5
TABLE_X, TABLE_Y = (-0.27, 0.27), (0.48, 0.80)  # metres
APART = 0.1  # metres between the middles of two things; on a crowded table less
BESIDE_DRAWER, BEFORE_DRAWER = 0.16, 0.08  # metres from the drawer's middle and handle that stay free
HANDLE_REACH, HANDLE_HEIGHT = 0.17, 0.09  # metres from the drawer's place to its handle when shut
SIZES = (0.9, 1.1)  # times the usual size
SPOTS = 128  # drawn for a scene
MARGIN = 0.07  # of the picture's side, between a thing's middle and the edge


@dataclass(frozen=True)
class StillScene:
    """The drawer's (x, y) and open fraction, and up to MOST_THINGS things, no two of one colour and shape."""

    drawer: tuple[float, float]
    opening: float
    things: tuple[TableObject, ...]

    @property
    def handle(self) -> np.ndarray:
        """float [3], metres"""
        front = self.drawer[1] - HANDLE_REACH - DRAWER_TRAVEL * self.opening
        return np.array([self.drawer[0], front, HANDLE_HEIGHT])


def draw_still_scene(rng: np.random.Generator, camera: CameraPose) -> StillScene:
    """Any scene whose things and handle this camera has in view."""
    x = rng.choice((-1.0, 1.0)) * rng.uniform(*DRAWER_X)
    # Two drawers of five are shut, the others anywhere from half open on.
    opening = 0.0 if rng.random() < 0.4 else float(rng.uniform(0.45, 1.0))
    scene = StillScene((float(x), float(rng.uniform(*DRAWER_Y))), opening, ())
    kinds = rng.permutation(len(COLOURS) * len(SHAPES))[: rng.integers(2, MOST_THINGS + 1)]
    names = [(list(COLOURS)[kind // len(SHAPES)], SHAPES[kind % len(SHAPES)]) for kind in kinds]
    spots = _spots(rng, scene, camera, len(names))
    sizes, turns = rng.uniform(*SIZES, len(names)), rng.uniform(-np.pi, np.pi, len(names))
    things = tuple(
        TableObject(colour, shape, float(x), float(y), float(turn), size=float(size))
        for (colour, shape), (x, y), size, turn in zip(names, spots, sizes, turns, strict=True)
    )
    return StillScene(scene.drawer, opening, things)


def _spots(rng: np.random.Generator, scene: StillScene, camera: CameraPose, count: int) -> list[np.ndarray]:
    """Places (x, y) in view and clear of the drawer: the first far enough from the others, or the clearest drawn."""
    spots = np.stack([rng.uniform(*TABLE_X, SPOTS), rng.uniform(*TABLE_Y, SPOTS)], axis=-1)
    seen = camera.project(np.pad(spots, ((0, 0), (0, 1))))[:, :2]
    in_view = ((seen > MARGIN) & (seen < 1.0 - MARGIN)).all(axis=1)
    beside = np.abs(spots[:, 0] - scene.drawer[0]) > BESIDE_DRAWER
    spots = spots[in_view & (beside | (spots[:, 1] < scene.handle[1] - BEFORE_DRAWER))]
    if not len(spots):
        raise ValueError(f"got a camera {camera} that sees no free place of the table, expected one that does")
    chosen: list[np.ndarray] = []
    for _ in range(count):
        apart = np.min(
            [np.linalg.norm(spots - other, axis=1) for other in chosen] or [np.full(len(spots), APART)], axis=0
        )
        chosen.append(spots[np.argmax(np.minimum(apart, APART))])
    return chosen
