"""Scripted experts of the tabletop: from the simulator's state to the next move.

They have no memory: what to do next follows from positions alone, so an expert may take over at any moment.

Moves are Meta-World's: float [4], dx, dy, dz of the hand (1.0 is one centimetre per simulator step) and effort.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from gen_vla.evaluation.simulation.layouts import Goal


CLOSE, OPEN = 1.0, -1.0  # effort
GAIN = 10.0  # of a move per metre of distance, in units of the largest move
ABOVE, GRASP = 0.12, 0.03  # metres of the hand above an object: to approach it, to take it
CARRY = 0.10  # metres of the hand above a grasp, to pass over other things
ALIGNED = 0.02  # metres in x and y
CLOSED_ON = 0.73  # distance of the fingers, of 1, that says something is between them
PLACE_DISTANCE = 0.1  # metres in x: the fingers close along y and need room there


@dataclass(frozen=True)
class ExpertView:
    """What an expert reads: hand [3], fingers 0..1 apart, drawer handle [3], objects [2, 3], all in metres."""

    hand: np.ndarray
    fingers: float
    handle: np.ndarray
    objects: np.ndarray

    def without_x(self) -> "ExpertView":
        """The same with every target's x unknown (0): what can be done without looking."""
        hidden = np.array([0.0, 1.0, 1.0])
        return ExpertView(self.hand, self.fingers, self.handle * hidden, self.objects * hidden)


class Expert:
    """Knows every goal; Meta-World's own scripts move the drawer."""

    def __init__(self) -> None:
        self._drawer = {task: ENV_POLICY_MAP[f"drawer-{task[:-7]}-v3"]() for task in ("open_drawer", "close_drawer")}

    def action(self, goal: Goal, view: ExpertView) -> np.ndarray:
        """float [4], possibly outside [-1, 1]."""
        if goal.task == "pick_object":
            return pick(view, goal.source)
        if goal.task == "move_near":
            return move_near(view, goal.source)
        return _ask_meta_world(self._drawer[goal.task], view)


def _ask_meta_world(script: Any, view: ExpertView) -> np.ndarray:
    observation = np.zeros(39)
    observation[:3], observation[3], observation[4:7] = view.hand, view.fingers, view.handle
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the scripts announce at every step that they exceed [-1, 1]
        return np.asarray(script.get_action(observation), dtype=float)


def pick(view: ExpertView, source: int) -> np.ndarray:
    """Over the object, down, close, up."""
    thing = view.objects[source]
    approach = _approach(view, thing)
    return approach if approach is not None else _move(view.hand, _over(thing, GRASP + 0.2), CLOSE)


def move_near(view: ExpertView, source: int) -> np.ndarray:
    """Pick, carry over, put down beside the other object."""
    thing, other = view.objects[source], view.objects[1 - source]
    spot = place_beside(thing, other)
    approach = _approach(view, thing)
    if approach is not None:
        return approach
    above_spot = np.linalg.norm(thing[:2] - spot[:2]) < ALIGNED
    if above_spot:
        return _move(view.hand, _over(spot, GRASP - 0.01), CLOSE)
    height = other[2] + GRASP + CARRY
    if view.hand[2] < height - 0.04:  # up first
        return _move(view.hand, np.array([view.hand[0], view.hand[1], height + 0.02]), CLOSE)
    offset = view.hand - thing  # the object hangs where it was taken, not under the middle of the hand
    return _move(view.hand, np.array([spot[0] + offset[0], spot[1] + offset[1], height]), CLOSE)


def place_beside(thing: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where to put `thing` [3]: beside `other`, on the side it comes from, at the same height."""
    side = 1.0 if thing[0] >= other[0] else -1.0
    return other + np.array([side * PLACE_DISTANCE, 0.0, 0.0])


def _approach(view: ExpertView, thing: np.ndarray) -> np.ndarray | None:
    """The next move towards holding `thing`, or None once the fingers have closed on it."""
    aside = float(np.linalg.norm(view.hand[:2] - thing[:2]))
    over = float(view.hand[2] - thing[2])
    if aside > ALIGNED:
        return _move(view.hand, _over(thing, ABOVE), OPEN)
    if over > GRASP + 0.02:
        return _move(view.hand, _over(thing, GRASP - 0.01), OPEN)
    if view.fingers > CLOSED_ON:
        return _move(view.hand, view.hand, CLOSE)
    return None


def _over(point: np.ndarray, height: float) -> np.ndarray:
    return point + np.array([0.0, 0.0, height])


def _move(hand: np.ndarray, target: np.ndarray, effort: float) -> np.ndarray:
    return np.append(GAIN * (target - hand), effort)
