"""The `action_config` of actions as vectors that a flow makes out of noise, beside strings and bins."""

from collections.abc import Sequence
from typing import Any

from .action_strings import check_binary_dims, check_sizes


def make_flow_action_config(action_dim: int = 7, horizon: int = 1, binary_dims: Sequence[int] = ()) -> dict[str, Any]:
    """The `action_config` of actions float [T, D] in [-1, 1]; no tokens belong to it.

    Args:
        action_dim: D.
        horizon: T, the steps of one prediction.
        binary_dims: dimensions that are 0 or 1 (a gripper); predictions are rounded there.
    """
    check_sizes(action_dim=action_dim, horizon=horizon)
    check_binary_dims(binary_dims, action_dim)
    return {
        "representation": "flow",
        "action_dim": action_dim,
        "horizon": horizon,
        "binary_dims": sorted(set(binary_dims)),
        "lead_in": "",
        "lead_in_ids": [],
    }
