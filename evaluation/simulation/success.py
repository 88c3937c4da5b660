"""When a tabletop task is done: a judgement over positions alone.

Decides: thresholds. Refuses to know: the simulator, policies, pictures.

A task counts as done when it has been so at the ends of HELD_STEPS policy steps in a row, so that a thing that flies
past does not count.
"""

from dataclasses import dataclass

import numpy as np

from gen_vla.evaluation.simulation.layouts import Goal


HELD_STEPS = 2  # policy steps in a row
OPEN, SHUT = 0.9, 0.05  # of the drawer's way
LIFTED = 0.05  # metres above where it stood
IN_HAND = 0.06  # metres from the fingertips
LEFT_ALONE = 0.04  # metres: the object that was not named first may have moved this much
NEAR = 0.13  # metres between the middles of two objects
MOVED = 0.05  # metres: the least way of an object that was to be moved
SET_DOWN = 0.015  # metres above where it stood


@dataclass(frozen=True)
class SceneState:
    """A moment: open fraction 0..1; objects and where they started float [2, 3], fingertips [3], metres."""

    opening: float
    objects: np.ndarray
    starts: np.ndarray
    fingertips: np.ndarray


def is_done(goal: Goal, state: SceneState) -> bool:
    """Whether this moment is what the goal asks for."""
    if goal.task == "open_drawer":
        return state.opening >= OPEN
    if goal.task == "close_drawer":
        return state.opening <= SHUT
    source, other = goal.source, 1 - goal.source
    moved = np.linalg.norm(state.objects - state.starts, axis=1)
    risen = state.objects[source, 2] - state.starts[source, 2]
    if moved[other] > LEFT_ALONE:
        return False
    if goal.task == "pick_object":
        return bool(risen >= LIFTED and np.linalg.norm(state.fingertips - state.objects[source]) <= IN_HAND)
    apart = np.linalg.norm(state.objects[source, :2] - state.objects[other, :2])
    return bool(apart <= NEAR and moved[source] >= MOVED and risen <= SET_DOWN)
