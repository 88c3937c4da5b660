"""What a 7-D action means to the simulated Sawyer arm, in the tabletop and in the drawers alike.

action   float [7]: dx, dy, dz of the hand in metres per policy step, three rotations (the wrist is fixed: zero),
         gripper 0..1 with 1 = open; held for ACTION_REPEAT simulator steps
"""

import numpy as np


ACTION_REPEAT = 5  # simulator steps per policy step
HERTZ = 80 / ACTION_REPEAT  # policy steps a second; Meta-World has 80 steps
UNITS = ("m", "m", "m", "rad", "rad", "rad", "0 closed, 1 open")
METRES_PER_SIMULATOR_STEP = 0.01  # what Meta-World's action 1.0 moves the hand
MAX_MOVE = ACTION_REPEAT * METRES_PER_SIMULATOR_STEP  # metres per policy step and axis
ROTATION_TOLERANCE = 0.05  # radians; a policy that asks for more expects a wrist that can turn
DRAWER_TRAVEL = 0.16  # metres from shut to fully open


class ActionError(ValueError):
    """An action that cannot be carried out as asked."""


def to_simulator_action(action: np.ndarray) -> np.ndarray:
    """float [7] in metres and open fraction -> float32 [4], Meta-World's moves in [-1, 1] and effort (+1 closes)."""
    action = np.asarray(action, dtype=np.float64)
    if action.shape != (7,):
        raise ActionError(
            f"got an action of shape {action.shape}, expected (7,): dx, dy, dz, three rotations, gripper; "
            "pass one step of one observation"
        )
    if not np.isfinite(action).all():
        raise ActionError(
            f"got the non-finite action {action.tolist()}, expected 7 finite numbers; "
            "the policy failed to produce an action, so count the step as refused instead of sending it"
        )
    if np.abs(action[3:6]).max() > ROTATION_TOLERANCE:
        raise ActionError(
            f"got rotations {action[3:6].tolist()}, expected 0 (+-{ROTATION_TOLERANCE} rad): the wrist is fixed; "
            "check that the policy's actions are un-normalised with this data set's statistics"
        )
    moves = np.clip(action[:3] / MAX_MOVE, -1.0, 1.0)
    effort = 1.0 - 2.0 * np.clip(action[6], 0.0, 1.0)
    return np.append(moves, effort).astype(np.float32)


def from_simulator_action(action: np.ndarray) -> np.ndarray:
    """Meta-World's action float [4], possibly far outside [-1, 1] -> float32 [7] as in `to_simulator_action`."""
    clipped = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
    return np.array([*(clipped[:3] * MAX_MOVE), 0.0, 0.0, 0.0, (1.0 - clipped[3]) / 2.0], dtype=np.float32)
