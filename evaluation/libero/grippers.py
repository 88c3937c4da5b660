"""What the last value of an action means: copies of LIBERO disagree, its robot wants -1 to open and 1 to close."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def robosuite_actions(actions: np.ndarray, statistics: Mapping[str, Any]) -> np.ndarray:
    """Actions with the gripper as robosuite wants it: -1 opens, 1 closes.

    OpenVLA's copies of LIBERO have 0 for closed and 1 for open, those of LeRobot and openpi have robosuite's own
    values. Which one a model learned is read from the range of its statistics.

    Args:
        actions: float [..., 7], in the data set's units.
        statistics: of the data set's actions, with `q01` and `q99`.

    Returns:
        float32 [..., 7].

    Raises:
        ValueError: for another number of values, or a gripper whose range is neither [0, 1] nor [-1, 1].
    """
    low, high = (float(statistics[name][-1]) for name in ("q01", "q99"))
    if actions.shape[-1] != 7 or not (-1.01 <= low < high <= 1.01):
        raise ValueError(
            f"got actions of {actions.shape[-1]} values whose last ranges over [{low:g}, {high:g}], expected 7 with a "
            "gripper in [0, 1] (1 is open) or [-1, 1] (1 is closed), as in the copies of LIBERO"
        )
    moves = np.array(actions, dtype=np.float32)
    gripper = moves[..., -1]
    # Halfway counts as closed, as in OpenVLA's own evaluation of LIBERO, where sign(0) is no command at all.
    closes = gripper <= 0.5 if low > -0.01 else gripper >= 0
    moves[..., -1] = np.where(closes, 1.0, -1.0)
    return moves
