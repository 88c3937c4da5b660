"""Turns the actions a robot data set stores into the actions a policy learns, one episode at a time.

    bridge    step 0 goes; the move of step t is state[t+1] - state[t], so the last step goes, too; the gripper is made
              absolute and binary, looking backwards
    fractal   world vector, rotation delta, and the gripper from relative (+ closes) to absolute (1 = open)
    identity  the action as it is

These are OpenVLA's transforms of Bridge and of RT-1; whether a data set was transformed already, `layouts` finds out.
Of a data set with too many steps a second, every n-th one is kept (`thinned`).

A gripper is 1 when open, 0 when closed. Actions and states may be spread over several features, which are put side by
side: action/world_vector [S, 3], action/rotation_delta [S, 3], action/gripper_closedness_action [S, 1] -> [S, 7].
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


BRIDGE_NAMES = ("bridge_orig", "bridge_dataset")
FRACTAL_NAMES = ("fractal20220817_data",)
OPEN_ABOVE, CLOSED_BELOW = 0.95, 0.05  # of Bridge's gripper, 0..1
RELATIVE_DEAD_ZONE = 0.1  # of RT-1's gripper command, -1..1
FRACTAL_ACTION = ("world_vector", "rotation_delta", "gripper_closedness_action")
FRACTAL_STATE = ("base_pose_tool_reached", "gripper_closed")  # position and quaternion, how far the gripper is closed
MOVES = (0, 1, 2, 3, 4, 5)  # Bridge's and RT-1's dimensions that are displacements; the gripper is absolute


@dataclass(frozen=True)
class Trajectory:
    actions: np.ndarray  # float32 [S, D] in units
    proprio: np.ndarray | None  # float32 [S, P]
    steps: slice  # which steps of the stored episode these are


@dataclass(frozen=True)
class RobotTransform:
    """A transform and the stored features it reads, which are arrays [S, ...] by name ("observation/state")."""

    name: str  # "bridge", "fractal" or "identity"
    action: tuple[str, ...]  # the features that are the action, side by side
    state: tuple[str, ...]  # those that are the state

    @property
    def features(self) -> tuple[str, ...]:
        return (*self.action, *self.state) if self.name == "bridge" else self.action

    @property
    def optional(self) -> tuple[str, ...]:
        """The features it reads where the data set has them."""
        return () if self.name == "bridge" else self.state

    @property
    def displacements(self) -> tuple[int, ...] | None:
        """Dimensions of its actions that say how far to move, not where to be; `None` where it does not know."""
        return None if self.name == "identity" else MOVES

    def stored(self, steps: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """Actions float32 [S, D] and states float32 [S, P], `None` where there is none, as they are stored."""
        has_state = bool(self.state) and all(name in steps for name in self.state)
        return side_by_side(steps, self.action), side_by_side(steps, self.state) if has_state else None

    def apply(self, steps: Mapping[str, np.ndarray]) -> Trajectory:
        return TRANSFORMS[self.name](*self.stored(steps))


def side_by_side(steps: Mapping[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray:
    """Features [S, ...] flattened per step and put side by side: float32 [S, D]."""
    length = len(steps[names[0]])
    return np.concatenate([steps[name].reshape(length, -1) for name in names], axis=1, dtype=np.float32)


def bridge(actions: np.ndarray, states: np.ndarray | None) -> Trajectory:
    """Actions [S, 7], states [S, P] that begin with position and angles -> actions [S - 2, 7], proprio [S - 2, P]."""
    assert states is not None
    actions, states = actions[1:], states[1:]
    moves = states[1:, :6] - states[:-1, :6]
    gripper = binarize_gripper(actions[:, -1])[:-1]
    learned = np.concatenate((moves, gripper[:, None]), axis=1, dtype=np.float32)
    return Trajectory(learned, states[:-1], slice(1, 1 + len(learned)))


def fractal(actions: np.ndarray, states: np.ndarray | None) -> Trajectory:
    """World vector, rotation delta and relative gripper [S, 7] -> actions [S, 7]; the state is proprio."""
    gripper = absolute_gripper(actions[:, -1])
    learned = np.concatenate((actions[:, :6], gripper[:, None]), axis=1, dtype=np.float32)
    return Trajectory(learned, states, slice(0, len(learned)))


def identity(actions: np.ndarray, states: np.ndarray | None) -> Trajectory:
    return Trajectory(actions, states, slice(0, len(actions)))


def thinned(trajectory: Trajectory, every: int, displacements: Sequence[int]) -> Trajectory:
    """Every n-th step, beginning with the first, with the action that leads to the next kept one.

    Until the next picture is taken, the actions of all n steps are carried out. So a position is that of the last of
    them (that of the first would have the robot stop early and wait), and displacements add up. Angles are added like
    lengths, which is right for small ones: rotations about several axes do not add, by half the product of two angles.
    The last kept step may stand for fewer than n.

    Args:
        displacements: the dimensions that are summed; of all others, grippers among them, the last value counts.
    """
    if every == 1:
        return trajectory
    starts = np.arange(0, len(trajectory.actions), every)
    actions = trajectory.actions[np.minimum(starts + every, len(trajectory.actions)) - 1]
    summed = list(displacements)
    if len(starts) and summed:
        moves = trajectory.actions[:, summed].astype(np.float64)
        actions[:, summed] = np.add.reduceat(moves, starts, axis=0)
    proprio = None if trajectory.proprio is None else trajectory.proprio[::every]
    return Trajectory(actions, proprio, slice(trajectory.steps.start, trajectory.steps.stop, every))


def binarize_gripper(positions: np.ndarray) -> np.ndarray:
    """Positions [S] in 0..1 -> 0 or 1: between the thresholds, the next step that is open or closed decides.

    Where none follows, the episode's last position is kept as it is, as in OpenVLA's code. What is not finite becomes
    NaN: no position is made up for it.
    """
    opened, closed = positions > OPEN_ABOVE, positions < CLOSED_BELOW
    clear = np.where(opened | closed, np.arange(len(positions)), len(positions))
    following = np.minimum.accumulate(clear[::-1])[::-1]
    values = np.append(opened.astype(np.float32), positions[-1:])
    return np.where(np.isfinite(positions), values[following], np.nan).astype(np.float32)


def absolute_gripper(commands: np.ndarray) -> np.ndarray:
    """Relative commands [S] (above 0.1 closes, below -0.1 opens) -> 1 where open, 0 where closed.

    Before the first command the gripper is in the state that command ends; without any command it is open. What is not
    finite becomes NaN.
    """
    changes = np.where(commands < -RELATIVE_DEAD_ZONE, 1.0, np.where(commands > RELATIVE_DEAD_ZONE, -1.0, 0.0))
    events = np.flatnonzero(changes)
    start = -changes[events[0]] if len(events) else 1.0
    latest = np.maximum.accumulate(np.where(changes != 0, np.arange(len(changes)), -1))
    states = np.where(latest >= 0, changes[latest], start)
    return np.where(np.isfinite(commands), states / 2 + 0.5, np.nan).astype(np.float32)


TRANSFORMS = {"bridge": bridge, "fractal": fractal, "identity": identity}


def choose_transform(
    wanted: str | None,
    dataset: str,
    *,
    stored_raw: bool,
    features: Collection[str],
    action: tuple[str, ...],
    state: tuple[str, ...],
) -> RobotTransform:
    """A transform by name.

    Args:
        wanted: "bridge", "fractal", `None` for identity, or "auto": by the data set's name where its format stores
            what was recorded (RLDS), else identity.
        action, state: those that hold action and state. Where there is no such action, RT-1's transform takes the
            three parts that RT-1 stores it in, and its state.
    """
    if wanted == "auto":
        raw_bridge, raw_fractal = stored_raw and dataset in BRIDGE_NAMES, stored_raw and dataset in FRACTAL_NAMES
        wanted = "bridge" if raw_bridge else "fractal" if raw_fractal else None
    if wanted == "fractal" and not any(name in features for name in action):
        point = "." if "action.world_vector" in features else "/"
        action = tuple(f"action{point}{name}" for name in FRACTAL_ACTION)
        state = tuple(f"observation{point}{name}" for name in FRACTAL_STATE)
    if (name := wanted or "identity") not in TRANSFORMS:
        raise ValueError(f'got transform={wanted!r}, expected "bridge", "fractal", "identity", None or "auto"')
    return RobotTransform(name, action, state)
