"""Scripted experts of the tabletop: from the simulator's state to the next move.

They have no memory: what to do next follows from positions alone, so an expert may take over at any moment.

Moves are Meta-World's: float [4], dx, dy, dz of the hand (1.0 is one centimetre per simulator step) and effort.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from gen_vla.evaluation.simulation.layouts import Goal


CLOSE, OPEN = 1.0, -1.0  # effort
GAIN = 10.0  # of a move per metre of distance, in units of the largest move
ABOVE, GRASP = 0.12, 0.03  # metres of the hand above an object: to approach it, to take it
CARRY = 0.10  # metres of the hand above a grasp, to pass over other things
ALIGNED = 0.02  # metres in x and y
CLOSED_ON = 0.8  # distance of the fingers, of 1, that says something is between them
PLACE_DISTANCE = 0.1  # metres in x: the fingers close along y and need room there
DRAWER_SCRIPTS = {f"{verb}_drawer": ENV_POLICY_MAP[f"drawer-{verb}-v3"]() for verb in ("open", "close")}


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


def expert_move(goal: Goal, view: ExpertView) -> np.ndarray:
    """float [4], possibly outside [-1, 1]; Meta-World's own scripts move the drawer."""
    if goal.task in DRAWER_SCRIPTS:
        observation = np.zeros(39)
        observation[:3], observation[3], observation[4:7] = view.hand, view.fingers, view.handle
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the scripts announce at every step that they exceed [-1, 1]
            return np.asarray(DRAWER_SCRIPTS[goal.task].get_action(observation), dtype=float)
    thing, other = view.objects[goal.source], view.objects[1 - goal.source]
    approach = _approach(view, thing)
    if approach is not None:
        return approach
    if goal.task == "pick_object":
        return _move(view.hand, _over(thing, GRASP + 0.2), CLOSE)
    return _place(view, thing, other)


def _approach(view: ExpertView, thing: np.ndarray) -> np.ndarray | None:
    """Over the object, down, close; None once the fingers have closed on it."""
    if np.linalg.norm(view.hand[:2] - thing[:2]) > ALIGNED:
        return _move(view.hand, _over(thing, ABOVE), OPEN)
    if view.hand[2] - thing[2] > GRASP + 0.02:
        return _move(view.hand, _over(thing, GRASP - 0.01), OPEN)
    return _move(view.hand, view.hand, CLOSE) if view.fingers > CLOSED_ON else None


def _place(view: ExpertView, thing: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Carry over, put down beside the other object, on the side that `thing` comes from."""
    side = 1.0 if thing[0] >= other[0] else -1.0
    spot = other + np.array([side * PLACE_DISTANCE, 0.0, 0.0])
    if np.linalg.norm(thing[:2] - spot[:2]) < ALIGNED:
        return _move(view.hand, _over(spot, GRASP - 0.01), CLOSE)
    height = other[2] + GRASP + CARRY
    if view.hand[2] < height - 0.04:  # up first
        return _move(view.hand, np.array([view.hand[0], view.hand[1], height + 0.02]), CLOSE)
    offset = view.hand - thing  # the object hangs where it was taken, not under the middle of the hand
    return _move(view.hand, np.array([spot[0] + offset[0], spot[1] + offset[1], height]), CLOSE)


def _over(point: np.ndarray, height: float) -> np.ndarray:
    return point + np.array([0.0, 0.0, height])


def _move(hand: np.ndarray, target: np.ndarray, effort: float) -> np.ndarray:
    return np.append(GAIN * (target - hand), effort)
