"""The tabletop as an environment: a seed and a task in, pictures out, 7-D actions (`simulation/actions.py`) in.

An episode depends on task and seed alone; looks never touch physics. Still scenes (`simulation/still_scenes.py`) are
shown without physics: `pose` sets them up.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from gen_vla.evaluation.simulation import layouts
from gen_vla.evaluation.simulation.actions import (
    ACTION_REPEAT,
    DRAWER_TRAVEL,
    METRES_PER_SIMULATOR_STEP,
    from_simulator_action,
    to_simulator_action,
)
from gen_vla.evaluation.simulation.experts import ExpertView, expert_move
from gen_vla.evaluation.simulation.looks import HOME, Look, apply_looks, distractors
from gen_vla.evaluation.simulation.offscreen_camera import (
    FIRST_ORNAMENT,
    FRAMEBUFFER,
    OffscreenCamera,
    Ornament,
    mujoco,
    thread_camera,
)
from gen_vla.evaluation.simulation.scene import build_model, drawn_parts, ornaments, show_object
from gen_vla.evaluation.simulation.still_scenes import StillScene
from gen_vla.evaluation.simulation.textures import texture_pixels


HAND_START = (0.0, 0.55, 0.25)
HAND_LOW, HAND_HIGH = np.array([-0.5, 0.40, 0.05]), np.array([0.5, 1.0, 0.5])  # metres, Meta-World's reach
HANDLE = np.array([0.0, -0.16, 0.0])  # metres from the drawer's origin
PHYSICS_STEPS = 5  # of 2.5 ms per simulator step
ROBOT_POSES, POSING_STEPS = 96, 30  # of still scenes, the hand all over the table; simulator steps to the next
STILL_HAND_LOW, STILL_HAND_HIGH = (-0.25, 0.45, 0.06), (0.25, 0.80, 0.30)  # metres
SETTLING_STEPS = 60  # simulator steps until hand and objects rest
SHADOW = (0.0, 0.0, 0.0, 0.28)
SHADOW_THICKNESS = 0.0006  # metres


class TabletopEnv:
    """One table: `reset`, then `render` and `step` until it returns True or the caller's limit."""

    def __init__(self, image_size: int = 96):
        if not 16 <= image_size <= FRAMEBUFFER:
            raise ValueError(f"got image_size {image_size}, expected 16..{FRAMEBUFFER} pixels")
        self.image_size = image_size
        self.model = build_model()
        self.data = mujoco.MjData(self.model)
        self._slide = int(self.model.joint("goal_slidey").qposadr[0])
        self._objects = [int(self.model.joint(f"object{index}").qposadr[0]) for index in range(2)]
        self._robot = _subtree(self.model, self.model.body("base").id)
        self._cabinet = _subtree(self.model, self.model.body("drawer").id)
        self.layout: layouts.Layout | None = None

    # Episodes.
    def reset(self, task: layouts.Task, seed: int, look: Look = HOME, masked: bool = False) -> str:
        """The layout of `seed` -> the instruction of this task in it. Where `masked`, pictures show only the robot,
        the cabinet and the two objects; everything else is black."""
        if task not in layouts.TASKS:
            raise ValueError(f"got task {task!r}, expected one of {', '.join(layouts.TASKS)}")
        layout = layouts.sample_layout(seed)
        self.arrange(layout, look, seed, masked)
        self.goal = layouts.goal_of(task, seed)
        self.seed = seed
        return self.goal.instruction(layout)

    def arrange(self, layout: layouts.Layout, look: Look = HOME, seed: int = 0, masked: bool = False) -> None:
        self.layout, self.look, self.masked = layout, look, masked
        mujoco.mj_resetData(self.model, self.data)
        self.model.body("drawer").pos = [*layout.drawer, 0.0]
        for address, (index, thing) in zip(self._objects, enumerate(layout.objects), strict=True):
            show_object(self.model, index, thing.shape, look.colours[thing.colour])
            turn = [np.cos(thing.yaw / 2), 0.0, 0.0, np.sin(thing.yaw / 2)]
            self.data.qpos[address : address + 7] = [thing.x, thing.y, layouts.GRASP_HEIGHT, *turn]
        for _ in range(SETTLING_STEPS):
            self.data.mocap_pos[0], self.data.mocap_quat[0] = HAND_START, (1.0, 0.0, 1.0, 0.0)
            self._advance(effort=-1.0)
        self.data.qpos[self._slide] = -DRAWER_TRAVEL * layout.opening
        self.data.qvel[:] = 0.0
        mujoco.mj_forward(self.model, self.data)
        apply_looks(self.model, look)
        self.distractors = distractors(look, layout, seed)
        self._starts, self._held = self._object_positions(), 0

    def step(self, action: np.ndarray) -> bool:
        """Carries `action`, float [7] in physical units, out -> whether the task is done; raises `ActionError` if it
        is not 7 finite numbers with still rotations."""
        held = to_simulator_action(action)
        for _ in range(ACTION_REPEAT):
            target = self.data.mocap_pos[0] + METRES_PER_SIMULATOR_STEP * held[:3]
            self.data.mocap_pos[0] = np.clip(target, HAND_LOW, HAND_HIGH)
            self._advance(float(held[3]))
        mujoco.mj_forward(self.model, self.data)
        self._held = self._held + 1 if layouts.is_done(self.goal, self.state()) else 0
        return self._held >= layouts.HELD_STEPS

    def _advance(self, effort: float) -> None:
        self.data.ctrl[:] = effort, -effort
        mujoco.mj_step(self.model, self.data, PHYSICS_STEPS)

    # Still scenes.
    def fingertips(self, robot: int) -> np.ndarray:
        """float [3], metres: the middle between the fingertips in a pose."""
        return robot_poses()[robot][1]

    def pose(self, scene: StillScene, look: Look, robot: int) -> None:
        """Shows a still scene with the robot in one of its poses, 0 .. ROBOT_POSES - 1."""
        self.layout, self.look, self.masked, self.distractors = None, look, False, list(scene.things)
        for index in range(len(self._objects)):
            show_object(self.model, index, None)
        self.model.body("drawer").pos = [*scene.drawer, 0.0]
        self.data.qpos[:] = robot_poses()[robot][0]
        self.data.qpos[self._slide] = -DRAWER_TRAVEL * scene.opening
        mujoco.mj_forward(self.model, self.data)
        apply_looks(self.model, look)

    # What is where.
    def state(self) -> layouts.SceneState:
        opening = float(np.clip(-self.data.qpos[self._slide] / DRAWER_TRAVEL, 0.0, 1.0))
        return layouts.SceneState(opening, self._object_positions(), self._starts, self._fingertips())

    def _fingertips(self) -> np.ndarray:
        return (self.data.site("rightEndEffector").xpos + self.data.site("leftEndEffector").xpos) / 2.0

    def _object_positions(self) -> np.ndarray:
        return np.stack([self.data.qpos[address : address + 3].copy() for address in self._objects])

    def view(self) -> ExpertView:
        claws = self.data.body("rightclaw").xpos - self.data.body("leftclaw").xpos
        handle = self.data.body("drawer_link").xpos + HANDLE
        fingers = float(np.clip(np.linalg.norm(claws) / 0.1, 0.0, 1.0))
        return ExpertView(self.data.body("hand").xpos.copy(), fingers, handle, self._object_positions())

    def robot_state(self) -> np.ndarray:
        """float32 [4]: the hand's position in metres, and how far the fingers are apart, 0 to 1."""
        view = self.view()
        return np.append(view.hand, view.fingers).astype(np.float32)

    def expert_action(self) -> np.ndarray:
        return from_simulator_action(expert_move(self.goal, self.view()))

    def expert_actions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Float32 [7] each: of the expert, of the blind one that does not know where along x anything is, and of the
        deaf one that does one of the six things this scene offers, whatever the instruction."""
        view, guess = self.view(), layouts.GOALS[np.random.default_rng([self.seed, 6]).integers(len(layouts.GOALS))]
        asked = ((self.goal, view), (self.goal, view.without_x()), (guess, view))
        expert, blind, deaf = (from_simulator_action(expert_move(goal, seen)) for goal, seen in asked)
        return expert, blind, deaf

    # Pictures.
    def render(self, size: int | None = None) -> np.ndarray:
        """uint8 [H, W, 3] of the present moment, `image_size` pixels a side by default."""
        shapes = [*ornaments(self.distractors, self.look.colours), *self._shadows()]
        size = size or self.image_size
        picture = self._camera().picture(self.model, self.data, self.look.camera, size, shapes)
        if not self.masked:
            return picture
        kept = np.logical_or.reduce(list(self.segmentation(size).values()))
        return np.where(kept[..., None], picture, 0).astype(np.uint8)

    def segmentation(self, size: int | None = None) -> dict[str, np.ndarray]:
        """bool [H, W] masks of what shows: robot, cabinet, its handle, object0, object1 (of a still scene, an object
        for each thing); the rest is background, distractors included."""
        shapes = ornaments(self.distractors, self.look.colours)
        geoms = self._camera().segments(self.model, self.data, self.look.camera, size or self.image_size, shapes)
        bodies = np.append(self.model.geom_bodyid, -1)[np.clip(geoms, -1, self.model.ngeom)]
        masks = {"robot": np.isin(bodies, self._robot), "cabinet": np.isin(bodies, self._cabinet)}
        masks["handle"] = geoms == self.model.geom("objGeom").id
        if self.layout:
            for index in range(len(self._objects)):
                masks[f"object{index}"] = bodies == self.model.body(f"object{index}").id
            return masks
        counts = [len(drawn_parts(thing.shape)) for thing in self.distractors]
        for index, (end, count) in enumerate(zip(np.cumsum(counts), counts, strict=True)):
            part = geoms - FIRST_ORNAMENT
            masks[f"object{index}"] = (part >= end - count) & (part < end)
        return masks

    def _camera(self) -> OffscreenCamera:
        camera = thread_camera("tabletop", lambda: self.model)
        for slot, surface in (("table", self.look.table), ("room", self.look.room)):
            camera.show_texture(self.model, slot, surface.texture, surface.repeats, texture_pixels)
        return camera

    def _shadows(self) -> list[Ornament]:
        """Dark patches under what stands or hangs over the table: real shadows would triple the time of a picture."""
        things = [(x, y, 0.034) for x, y, _ in self._object_positions()] if self.layout else []
        things += [(*self._fingertips()[:2], 0.04), *((thing.x, thing.y, 0.034) for thing in self.distractors)]
        return [
            Ornament("cylinder", (radius, SHADOW_THICKNESS, 0.0), (x, y, SHADOW_THICKNESS), SHADOW)
            for x, y, radius in things
        ]


@lru_cache(maxsize=1)
def robot_poses() -> list[tuple[np.ndarray, np.ndarray]]:
    """Positions of all joints and fingertips, the hand dragged from place to place; the same in every process."""
    env, rng, poses = TabletopEnv(), np.random.default_rng(9), []
    mujoco.mj_resetData(env.model, env.data)
    for index in range(len(env._objects)):
        show_object(env.model, index, None)
    for number in range(-1, ROBOT_POSES):  # the first leads to the start, from where the arm reaches everywhere
        low, high = STILL_HAND_LOW, STILL_HAND_HIGH
        env.data.mocap_pos[0] = HAND_START if number < 0 else rng.uniform(low, high)
        env.data.mocap_quat[0] = (1.0, 0.0, 1.0, 0.0)
        for _ in range(SETTLING_STEPS if number < 0 else POSING_STEPS):
            env._advance(effort=1.0 if is_closed(number) else -1.0)
        poses.append((env.data.qpos.copy(), env._fingertips()))
    return poses[1:]


def is_closed(robot: int) -> bool:
    return robot % 3 == 2


def _subtree(model: Any, root: int) -> list[int]:
    found = [root]
    for body in range(root + 1, model.nbody):  # parents come before their children
        if model.body_parentid[body] in found:
            found.append(body)
    return found
