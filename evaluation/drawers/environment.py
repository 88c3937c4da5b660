"""Meta-World's drawer-close and drawer-open as one environment with wider layouts than the stock ones.

Actions are those of `simulation/actions.py`, held for ACTION_REPEAT simulator steps; pictures, uint8 [H, W, 3], come
from one fixed camera at the side: in it +x runs right and nearer, +y right and away.

Everything that varies in looks (colours, table tint, blocks) lives in the renderer's scene or in material colours. The
physics never sees it, so an episode unfolds identically under every `variation`; a test holds that to the bit.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, cast

from gen_vla.evaluation.simulation.offscreen_camera import (
    FIRST_ORNAMENT,
    FRAMEBUFFER,
    CameraPose,
    OffscreenCamera,
    Ornament,
    mujoco,
    thread_camera,
)


# The camera chooses the graphics backend, so it comes before whatever loads mujoco.
# isort: split

import numpy as np
from gymnasium.spaces import Box
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
from metaworld.policies import ENV_POLICY_MAP

from gen_vla.evaluation.simulation.actions import (
    ACTION_REPEAT,
    DRAWER_TRAVEL,
    from_simulator_action,
    to_simulator_action,
)
from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS, TRAIN_SEEDS
from gen_vla.evaluation.simulation.scene import OUT_OF_VIEW


Task = Literal["drawer-close", "drawer-open"]
Variation = Literal["none", "modest", "full"]
Start = Literal["stock", "half-open"]
TASKS: tuple[Task, ...] = ("drawer-close", "drawer-open")
INSTRUCTIONS: dict[Task, str] = {"drawer-close": "close the drawer", "drawer-open": "open the drawer"}

MAX_POLICY_STEPS = 40  # 200 simulator steps
FINGER_TRAVEL = (0.04, -0.03)  # metres the right and left finger move to close
FINGER_LENGTH = 0.045  # metres from the hand's origin to the fingertips
# The stock range of x is +-0.1, which a blind arm sweeps; at +-0.3 it has to look.
LAYOUT_LOW, LAYOUT_HIGH = (-0.3, 0.85, 0.0), (0.3, 0.9, 0.0)
# Meta-World starts 2 cm lower, where the fingers touch an open drawer in one layout of five; closing them then slid
# it shut in 2 of 50 episodes of a policy that did nothing else.
HAND_START = (0.0, 0.6, 0.22)
HALF_OPEN_RANGE = (0.35, 0.65)  # open fraction at the start when both tasks share their scenes

CAMERA = CameraPose(lookat=(0.0, 0.75, 0.08), distance=0.95, azimuth=135.0, elevation=-35.0)

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.40, 0.65, 0.40),  # the cabinet as Meta-World ships it
    "blue": (0.15, 0.30, 0.85),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.55, 0.20, 0.70),
}
TABLE_TINTS = ((1.0, 1.0, 1.0), (0.75, 0.75, 0.75), (1.0, 0.85, 0.65), (0.75, 0.85, 1.0))
BLOCK_HALF_SIZE = 0.03  # metres: five pixels a side at 64 px
BLOCK_LOW, BLOCK_HIGH = (-0.4, 0.33), (0.5, 0.95)  # x, y on the table
MAX_BLOCKS = 3


@dataclass(frozen=True)
class Block:
    """A coloured cube on the table that nothing can touch; x and y in metres."""

    colour: str
    x: float
    y: float


@dataclass(frozen=True)
class Appearance:
    """What a scene looks like beyond its physics; `shade` multiplies the cabinet's colour."""

    cabinet: str = "green"
    shade: float = 1.0
    table: int = 0
    blocks: tuple[Block, ...] = ()

    def ornaments(self) -> list[Ornament]:
        """The blocks as the camera draws them."""
        side = (BLOCK_HALF_SIZE, BLOCK_HALF_SIZE, BLOCK_HALF_SIZE)
        return [Ornament("box", side, (b.x, b.y, BLOCK_HALF_SIZE), (*COLOURS[b.colour], 1.0)) for b in self.blocks]


@dataclass(frozen=True)
class Scene:
    """A still scene to arrange: drawer (x, y) and hand (x, y, z) in metres, `opening` and `gripper` in 0..1."""

    drawer: tuple[float, float]
    opening: float
    hand: tuple[float, float, float]
    gripper: float
    appearance: Appearance


def sample_appearance(rng: np.random.Generator, variation: Variation, drawer: tuple[float, float]) -> Appearance:
    """`none`: as shipped. `modest`: tints, shades, at most one block. `full`: any cabinet colour, up to three blocks.

    Every modest appearance can also be drawn by `full`, so pictures for questions cover the policy's pictures.
    """
    if variation == "none":
        return Appearance()
    full = variation == "full"
    cabinet = str(rng.choice(list(COLOURS))) if full else "green"
    count = int(rng.integers(0, MAX_BLOCKS + 1 if full else 2))
    colours = rng.permutation([c for c in COLOURS if c != cabinet])[:count]
    table = int(rng.integers(len(TABLE_TINTS)))
    shade = float(rng.uniform(0.85, 1.1))
    return Appearance(cabinet, shade, table, _place_blocks(rng, [str(c) for c in colours], drawer))


def _place_blocks(rng: np.random.Generator, colours: list[str], drawer: tuple[float, float]) -> tuple[Block, ...]:
    """Spots in view, clear of each other, of the drawer and of the ground the drawer and the hand sweep."""
    blocks: list[Block] = []
    while len(blocks) < len(colours):
        x, y = rng.uniform(BLOCK_LOW, BLOCK_HIGH)
        u, v = CAMERA.image_position(np.array([x, y, BLOCK_HALF_SIZE]))
        in_view = 0.06 < u < 0.94 and 0.06 < v < 0.94
        in_the_way = abs(x - drawer[0]) < 0.18 and y > drawer[1] - 0.47
        if in_view and not in_the_way and all(np.hypot(x - b.x, y - b.y) > 0.1 for b in blocks):
            blocks.append(Block(colours[len(blocks)], round(float(x), 3), round(float(y), 3)))
    return tuple(blocks)


class DrawerEnv:
    """One drawer on one table: `reset`, then `render` and `step` until it returns True or the caller's limit.

    `start="half-open"` begins both tasks in the same scenes, so that only the instruction tells what to do. The stock
    start gives the task away: a small network told to open an open drawer still closed it in 21 of 25 episodes, and
    in none of 25 once trained and judged half-open.
    """

    def __init__(self, task: Task, image_size: int = 96, variation: Variation = "modest", start: Start = "stock"):
        if task not in TASKS:
            raise ValueError(f"got task {task!r}, expected one of {list(TASKS)}")
        if not 16 <= image_size <= FRAMEBUFFER:
            raise ValueError(f"got image_size {image_size}, expected 16..{FRAMEBUFFER} pixels")
        if variation not in ("none", "modest", "full") or start not in ("stock", "half-open"):
            raise ValueError(
                f"got variation {variation!r} and start {start!r}, "
                "expected none, modest or full and stock or half-open"
            )
        self.task, self.image_size = task, image_size
        self.variation: Variation = variation
        self.start: Start = start
        self.instruction = INSTRUCTIONS[task]
        self.appearance = Appearance()
        make: Any = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-v3-goal-observable"]
        self._env: Any = make(seed=0)
        self._env.max_path_length = 10**9  # the limit is the caller's
        self._env.seeded_rand_vec, self._env._freeze_rand_vec = True, False
        self._env._random_reset_space = Box(np.array(LAYOUT_LOW), np.array(LAYOUT_HIGH), dtype=np.float64)
        self._env.hand_init_pos = np.array(HAND_START)
        self._expert = ENV_POLICY_MAP[f"{task}-v3"]()
        self._slide = int(self._env.model.joint("goal_slidey").qposadr[0])
        self._fingers = [int(self._env.model.joint(name).qposadr[0]) for name in ("r_close", "l_close")]
        self._observation = np.zeros(0)
        hidden = [self._env.model.body(name).id for name in OUT_OF_VIEW]
        self._env.model.geom_rgba[np.isin(self._env.model.geom_bodyid, hidden), 3] = 0.0

    def reset(self, seed: int) -> np.ndarray:
        """The layout, start and looks of `seed` -> the simulator's state, float64 [39] (for experts only)."""
        if seed not in TRAIN_SEEDS and seed not in EVALUATION_SEEDS:
            raise ValueError(f"got seed {seed}, expected one in {TRAIN_SEEDS} or {EVALUATION_SEEDS}")
        self._env.seed(seed)
        looks, start = (np.random.default_rng([seed, stream]) for stream in (1, 2))
        self._env.reset()
        if self.start == "half-open":
            self._env.data.qpos[self._slide] = -DRAWER_TRAVEL * start.uniform(*HALF_OPEN_RANGE)
        self._settle()
        x, y, _ = self._env.model.body("drawer").pos
        self._paint(sample_appearance(looks, self.variation, (float(x), float(y))))
        return self._observation.copy()

    def arrange(self, scene: Scene) -> None:
        """Set up a still picture, not an episode; the hand comes to rest some 7 mm below where it is asked to be.

        Meta-World's own reset would bring the hand to its place twice, which is most of the cost of a picture.
        """
        mujoco.mj_resetData(self._env.model, self._env.data)
        self._env.model.body("drawer").pos = [*scene.drawer, 0.0]
        self._env.hand_init_pos = np.array(scene.hand)
        self._env._reset_hand()
        self._env.hand_init_pos = np.array(HAND_START)
        self._env.data.qpos[self._slide] = -DRAWER_TRAVEL * scene.opening
        for address, shut in zip(self._fingers, FINGER_TRAVEL, strict=True):
            self._env.data.qpos[address] = (1.0 - scene.gripper) * shut
        self._settle()
        self._paint(scene.appearance)

    def _settle(self) -> None:
        # After a reset drawer-open still holds the previous layout's positions, up to half a metre off.
        mujoco.mj_forward(self._env.model, self._env.data)
        self._observation = self._env._get_obs()

    def _paint(self, appearance: Appearance) -> None:
        self.appearance = appearance
        model = self._env.model
        shaded = np.clip(np.array(COLOURS[appearance.cabinet]) * appearance.shade, 0.0, 1.0)
        model.mat_rgba[model.material("drawer_beige").id, :3] = shaded
        model.mat_rgba[model.material("table_wood").id, :3] = TABLE_TINTS[appearance.table]

    def step(self, action: np.ndarray) -> bool:
        """Hold `action`, float [7] in physical units, for ACTION_REPEAT simulator steps -> whether it is done."""
        held = to_simulator_action(action)
        for _ in range(ACTION_REPEAT):
            self._observation, _, _, _, info = self._env.step(held)
            if info["success"]:
                return True
        return False

    def render(self, size: int | None = None) -> np.ndarray:
        """uint8 [H, W, 3] of the present moment, `image_size` pixels a side unless told."""
        env, blocks = self._env, self.appearance.ornaments()
        return self._look().picture(env.model, env.data, CAMERA, size or self.image_size, blocks)

    def segmentation(self, size: int | None = None) -> dict[str, np.ndarray]:
        """bool [H, W] masks: cabinet (with its drawer), handle, hand, and one per block colour."""
        model = self._env.model
        blocks = self.appearance.ornaments()
        ids = self._look().segments(model, self._env.data, CAMERA, size or self.image_size, blocks)
        beige = np.flatnonzero(model.geom_matid == model.material("drawer_beige").id)
        hand = [model.body(name).id for name in ("hand", "rightclaw", "rightpad", "leftclaw", "leftpad")]
        masks = {
            "cabinet": np.isin(ids, beige),
            "handle": ids == model.geom("objGeom").id,
            "hand": np.isin(ids, np.flatnonzero(np.isin(model.geom_bodyid, hand))),
        }
        for index, block in enumerate(self.appearance.blocks):
            masks[f"{block.colour} block"] = ids == FIRST_ORNAMENT + index
        return masks

    def _look(self) -> OffscreenCamera:
        return thread_camera("drawers", lambda: self._env.model)  # both tasks share their meshes and textures

    def expert_action(self) -> np.ndarray:
        """The scripted expert at the present state, clipped: float32 [7]."""
        return self._ask_expert(self._observation)

    def expert_actions(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the expert and of one that believes the drawer's x to be 0: what can be done without looking."""
        observation = self._observation.copy()
        observation[4] = 0.0
        return self.expert_action(), self._ask_expert(observation)

    def _ask_expert(self, observation: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the experts announce at every step that they exceed [-1, 1]
            return from_simulator_action(self._expert.get_action(observation))

    def scene_state(self) -> dict[str, Any]:
        """What `describe` says of the present moment, from simulated positions."""
        data = self._env.data
        return describe(
            drawer_x=float(self._env.model.body("drawer").pos[0]),
            opening=float(np.clip(-data.qpos[self._slide] / DRAWER_TRAVEL, 0.0, 1.0)),
            handle=data.body("drawer_link").xpos + np.array([0.0, -0.16, 0.0]),
            fingertips=(data.site("rightEndEffector").xpos + data.site("leftEndEffector").xpos) / 2.0,
            gripper=float(np.clip(1.0 - data.qpos[self._fingers[0]] / FINGER_TRAVEL[0], 0.0, 1.0)),
            appearance=self.appearance,
        )


class BothDrawerTasks:
    """The environments of both tasks as one that is told the task when it is reset.

    It is made in simulator processes, so this file imports no torch.
    """

    def __init__(self, image_size: int, variation: Variation, start: Start):
        self._setting = image_size, variation, start
        self._environments: dict[Task, DrawerEnv] = {}

    def reset(self, task: Task, seed: int) -> None:
        if task not in self._environments:
            self._environments[task] = DrawerEnv(task, *self._setting)
        self._current = self._environments[task]
        self._current.reset(seed)

    def step(self, action: np.ndarray) -> bool:
        return self._current.step(action)

    def render(self, size: int | None = None) -> np.ndarray:
        return self._current.render(size)

    def expert_actions(self) -> tuple[np.ndarray, np.ndarray]:
        return self._current.expert_actions()


def describe(
    drawer_x: float,
    opening: float,
    handle: np.ndarray,
    fingertips: np.ndarray,
    gripper: float,
    appearance: Appearance,
) -> dict[str, Any]:
    """Facts a question can be asked about: metres, open fractions 0..1, image positions (u, v) 0..1."""
    blocks = {
        b.colour: {
            "position": (b.x, b.y),
            "image": CAMERA.image_position(np.array([b.x, b.y, BLOCK_HALF_SIZE])),
            "to_handle": float(np.hypot(b.x - handle[0], b.y - handle[1])),
        }
        for b in appearance.blocks
    }
    return {
        "drawer_opening": opening,
        "drawer_x": drawer_x,
        "handle": tuple(handle.tolist()),
        "handle_image": CAMERA.image_position(handle),
        "cabinet_colour": appearance.cabinet,
        "fingertips": tuple(fingertips.tolist()),
        "hand_image": CAMERA.image_position(fingertips),
        "hand_to_handle": float(np.linalg.norm(fingertips - handle)),
        "hand_above_handle": float(fingertips[2] - handle[2]),
        "gripper_opening": gripper,
        "blocks": blocks,
    }


def anticipate(scene: Scene) -> dict[str, Any]:
    """`describe` for a scene that has not been simulated: right to about a centimetre, and a hundred times faster."""
    handle = np.array([scene.drawer[0], scene.drawer[1] - 0.17 - DRAWER_TRAVEL * scene.opening, 0.09])
    fingertips = np.array(scene.hand) - np.array([0.0, 0.0, FINGER_LENGTH])
    return describe(scene.drawer[0], scene.opening, handle, fingertips, scene.gripper, scene.appearance)


def opposite(task: Task) -> Task:
    """The other task, for the swapped-instruction control."""
    return cast(Task, TASKS[1 - TASKS.index(task)])
