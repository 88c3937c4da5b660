"""Robot actions as vectors that a flow makes out of noise: the third representation, beside strings and bins.

Decides: what `action_config` says of such actions. Refuses to know: how the flow is computed, units and data sets
(`action_statistics.py`), prompts.
"""

from collections.abc import Sequence
from typing import Any


def make_flow_action_config(action_dim: int = 7, horizon: int = 1, binary_dims: Sequence[int] = ()) -> dict[str, Any]:
    """The `action_config` of actions float [T, D] in [-1, 1]; no tokens belong to it.

    Args:
        action_dim: D.
        horizon: T, the steps of one prediction.
        binary_dims: dimensions that are 0 or 1 (a gripper); predictions are rounded there.
    """
    for name, value in (("action_dim", action_dim), ("horizon", horizon)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"got {name}={value!r}, expected an integer of at least 1")
    dims = sorted(set(binary_dims))
    if dims and not (dims[0] >= 0 and dims[-1] < action_dim):
        raise ValueError(f"got binary_dims={list(binary_dims)}, expected dimensions from 0 to {action_dim - 1}")
    return {
        "representation": "flow",
        "action_dim": action_dim,
        "horizon": horizon,
        "binary_dims": dims,
        "lead_in": "",  # the prompt ends in what the action follows
        "lead_in_ids": [],
    }
