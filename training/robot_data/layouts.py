"""Checks that a converted data set stores what its transform takes, so that OpenVLA's transforms are applied once.

Conversions of Bridge and RT-1 differ in what they store, and none says so in a way a program could read:

    transformed    Bridge's moves are the differences of its states; RT-1's gripper is 1 (open) or 0
    as recorded    Bridge's moves are commands, which the arm does not quite follow; RT-1's gripper is a command,
                   above 0 to close, below 0 to open, and mostly 0
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np

from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.transforms import RobotTransform


LOOKED_AT = 8  # episodes
SAME_MOVE = 1e-5  # metres or radians between a move and a difference of states, both float32
SOME_MOVE = 1e-3  # metres or radians: an arm that stands still proves nothing
WIDTH = 7  # three of position, three angles, the gripper
COMMAND = -0.1  # a gripper below it is no state of one
SIGNS = {"bridge": "moves are the differences of its states", "fractal": "gripper is 1 or 0 and begins with 1"}
MISSES = {"bridge": "moves are not the differences of its states", "fractal": "gripper takes values below 0"}

Stored = tuple[np.ndarray, np.ndarray | None]  # actions [S, D], states [S, P]


def check_layout(
    transform: RobotTransform, episodes: Iterable[Mapping[str, np.ndarray]], dataset: str, where: str, *, named: bool
) -> None:
    """Looks at the first episodes of a converted data set; raises `RobotDataError` where a transform does not fit what
    is stored, was applied to it already, or is missed.

    Args:
        episodes: its features, [S, ...] by name; only the first `LOOKED_AT` are read, and none without need.
        dataset: the data set's name: a data set called after Bridge or RT-1 may need a transform.
        named: whether the recipe names the transform; without one, `identity` is a guess.
    """
    own = "bridge" if "bridge" in dataset.lower() else "fractal" if "fractal" in dataset.lower() else None
    if transform.name == "identity" and (named or own is None):
        return
    stored = [transform.stored(steps) for steps in islice(episodes, LOOKED_AT)]
    if transform.name == "identity":
        commands = any((actions[:, -1] < COMMAND).any() for actions, _ in stored)
        if moves_are_commands(stored) if own == "bridge" else commands:
            raise RobotDataError(
                f"got {where}, whose {MISSES[str(own)]}, expected the {own} transform to have been applied to a data "
                f"set of that name; set transform: {own} to apply it, or transform: null to learn what is stored"
            )
        return
    _check_widths(transform, stored, where)
    if moves_are_differences(stored) if transform.name == "bridge" else gripper_is_state(stored):
        raise RobotDataError(
            f"got {where}, whose {SIGNS[transform.name]}: the {transform.name} transform was applied when it was "
            "converted; expected what was recorded; set transform: null"
        )


def _check_widths(transform: RobotTransform, stored: Sequence[Stored], where: str) -> None:
    for actions, states in stored:
        found = f"an action of {actions.shape[1]} values ({', '.join(transform.action)})"
        wanted, fits = f"an action of {WIDTH}", actions.shape[1] == WIDTH
        if transform.name == "bridge" and states is not None:
            found += f" and a state of {states.shape[1]} ({', '.join(transform.state)})"
            wanted += f" and a state of {WIDTH}, or {WIDTH + 1} with a pad"
            fits = fits and states.shape[1] in (WIDTH, WIDTH + 1)
        if not fits:
            raise RobotDataError(
                f"got {where} with {found}, expected for the {transform.name} transform {wanted}: position, roll, "
                "pitch, yaw and gripper; name the features with `action` and `state`"
            )


def moves_are_differences(stored: Sequence[Stored]) -> bool:
    """Whether all actions begin with the next state minus the state, [S - 1, 6]; `False` where no arm moves."""
    moving = [(actions[:-1, :6], np.diff(states[:, :6], axis=0)) for actions, states in stored if states is not None]
    moving = [(moves, differences) for moves, differences in moving if (np.abs(differences) > SOME_MOVE).any()]
    return bool(moving) and all((np.abs(moves - differences) < SAME_MOVE).all() for moves, differences in moving)


def moves_are_commands(stored: Sequence[Stored]) -> bool:
    """Whether they are not differences, although action and state are of Bridge's form, and the arm moves."""
    formed = [(a, s) for a, s in stored if s is not None and a.shape[1] == WIDTH and s.shape[1] in (WIDTH, WIDTH + 1)]
    moved = any((np.abs(np.diff(states[:, :6], axis=0)) > SOME_MOVE).any() for _, states in formed)
    return moved and not moves_are_differences(formed)


def gripper_is_state(stored: Sequence[Stored]) -> bool:
    """Whether the gripper is 0 or 1 throughout and most episodes begin with 1: open, where a command would be 0."""
    grippers = [actions[:, -1] for actions, _ in stored if len(actions)]
    binary = all(np.isin(gripper, (0.0, 1.0)).all() for gripper in grippers)
    return binary and 2 * sum(gripper[0] == 1.0 for gripper in grippers) > len(grippers)
