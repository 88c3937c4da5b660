"""Between a data set's units and [-1, 1]: OpenVLA's normalisation, its JSON layout, its lookup by key.

Decides: the two formulas, the statistics computed over a data set, and what happens on a missing or ambiguous
`unnorm_key`. Refuses to know: how an action is spelled, which robot it is for, what the units are.

A statistics dictionary (`norm_stats` in the model's config, `dataset_statistics.json` beside a checkpoint):

    {"bridge_orig": {"action": {"mean": [D], "std": [D], "min": [D], "max": [D], "q01": [D], "q99": [D],
                                "mask": [D] (optional; False = the dimension is left as it is, a gripper 0..1),
                                "histogram": [D][40] (ours, optional; counts of normalised values),
                                "names": [D] (ours, optional; what the data set calls its values),
                                "fps": float (ours, optional; steps a second of what was learned),
                                "displacements": [...] (ours, optional; the dimensions that say how far to move, all
                                others where to be)},
                     "proprio": {...} (optional), "num_transitions": int, "num_trajectories": int}}

This file also lies in `modeling/` (a symbolic link), because a Hub repository is one flat folder in which both halves
import it from beside themselves.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np


HISTOGRAM_BINS = 40
EPSILON = 1e-8  # OpenVLA's, added to the width of the range when normalising


def select_statistics(norm_stats: dict[str, Any], unnorm_key: str | None) -> dict[str, Any]:
    """The action statistics of one data set.

    Args:
        norm_stats: statistics by data set name.
        unnorm_key: the name; `None` is allowed where there is only one.

    Raises:
        ValueError: without statistics, on an unknown key, or without a key where there are several; lists the keys.
    """
    keys = ", ".join(sorted(norm_stats)) if norm_stats else "none"
    if not norm_stats:
        raise ValueError(
            "got a model without action statistics, so its actions have no units; "
            "expected config.norm_stats to hold those of the data it was trained on"
        )
    if unnorm_key is None:
        if len(norm_stats) > 1:
            raise ValueError(
                f"got no unnorm_key, but this model was trained on {len(norm_stats)} data sets; pass one of: {keys}"
            )
        unnorm_key = next(iter(norm_stats))
    if unnorm_key not in norm_stats:
        near = get_close_matches(unnorm_key, norm_stats, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"got unnorm_key={unnorm_key!r}, which this model has no statistics for; {hint}keys: {keys}")
    return norm_stats[unnorm_key]["action"]


def statistics_per_row(
    norm_stats: dict[str, Any], unnorm_key: str | Sequence[str] | None, rows: int
) -> list[dict[str, Any]]:
    """The action statistics of each row of a batch, for one key for all or one per row; as `select_statistics`."""
    keys = [unnorm_key] * rows if unnorm_key is None or isinstance(unnorm_key, str) else list(unnorm_key)
    if len(keys) != rows:
        raise ValueError(f"got {len(keys)} unnorm_keys for {rows} observations, expected one each or one for all")
    return [select_statistics(norm_stats, key) for key in keys]


def normalize_actions(actions: Any, statistics: dict[str, Any]) -> np.ndarray:
    """Maps [q01, q99] to [-1, 1] and clips; constant dimensions become 0, unmasked ones stay as they are.

    A dimension that is both constant and unmasked stays as it is. OpenVLA makes it 0, which `unnormalize_actions`
    could not undo: a gripper that was open in every frame would be commanded to close.

    Args:
        actions: float [..., D] in the data set's units.
        statistics: the `"action"` entry of one data set.

    Returns:
        float32 [..., D].
    """
    actions = np.asarray(actions, dtype=np.float64)
    low, high, mask = _bounds(statistics, actions.shape[-1])
    scaled = np.clip(2.0 * (actions - low) / (high - low + EPSILON) - 1.0, -1.0, 1.0)
    constant = np.asarray(statistics["min"]) == np.asarray(statistics["max"])
    return np.where(mask, np.where(constant, 0.0, scaled), actions).astype(np.float32)


def histogram(actions: Any, statistics: dict[str, Any]) -> list[list[int]]:
    """Counts [D][HISTOGRAM_BINS] of the normalised values of float [N, D] over [-1, 1]: what decoding expects."""
    normalized = normalize_actions(actions, statistics)
    edges = np.linspace(-1.0, 1.0, HISTOGRAM_BINS + 1)
    return [np.histogram(column, edges)[0].tolist() for column in normalized.T]


def count_clipped(actions: Any, statistics: dict[str, Any]) -> np.ndarray:
    """How many values of each dimension `normalize_actions` clips: int64 [D] for actions float [..., D]."""
    actions = np.asarray(actions, dtype=np.float64)
    low, high, mask = _bounds(statistics, actions.shape[-1])
    outside = ((actions < low) | (actions > high)) & mask
    return outside.reshape(-1, actions.shape[-1]).sum(axis=0)


def unnormalize_actions(normalized: Any, statistics: dict[str, Any]) -> np.ndarray:
    """The inverse of `normalize_actions` up to clipping: float [..., D] in [-1, 1] to float32 [..., D] in units."""
    normalized = np.asarray(normalized, dtype=np.float64)
    low, high, mask = _bounds(statistics, normalized.shape[-1])
    return np.where(mask, 0.5 * (normalized + 1.0) * (high - low) + low, normalized).astype(np.float32)


def compute_statistics(actions: Any, num_trajectories: int, mask: Sequence[bool] | None = None) -> dict[str, Any]:
    """Statistics of one data set in OpenVLA's layout.

    Args:
        actions: float [N, D], every action of the data set, in its units.
        num_trajectories: the episodes they come from.
        mask: which dimensions are normalised; by default all but the last, the gripper.

    Raises:
        ValueError: on another shape, no rows, values that are not finite, or a mask of another length.
    """
    actions = np.asarray(actions, dtype=np.float64)
    if actions.ndim != 2 or len(actions) == 0:
        raise ValueError(f"got actions of shape {list(actions.shape)}, expected [N, D] with at least one row")
    if not np.isfinite(actions).all():
        row, dim = map(int, np.argwhere(~np.isfinite(actions))[0])
        raise ValueError(
            f"got {actions[row, dim]} in row {row}, dimension {dim}, expected finite actions; drop the row"
        )
    chosen = [True] * (actions.shape[1] - 1) + [False] if mask is None else [bool(entry) for entry in mask]
    if len(chosen) != actions.shape[1]:
        raise ValueError(f"got a mask of {len(chosen)} entries, expected {actions.shape[1]}, one per dimension")
    low, high = np.quantile(actions, (0.01, 0.99), axis=0)
    columns = {
        "mean": actions.mean(axis=0),
        "std": actions.std(axis=0),
        "max": actions.max(axis=0),
        "min": actions.min(axis=0),
        "q01": low,
        "q99": high,
    }
    action = {**{name: column.tolist() for name, column in columns.items()}, "mask": chosen}
    action["histogram"] = histogram(actions, action)
    return {
        "action": action,
        "num_transitions": len(actions),
        "num_trajectories": int(num_trajectories),
    }


def _bounds(statistics: dict[str, Any], action_dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low = np.asarray(statistics["q01"], dtype=np.float64)
    high = np.asarray(statistics["q99"], dtype=np.float64)
    if low.shape != (action_dim,):
        raise ValueError(
            f"got actions of {action_dim} dimensions and statistics of {low.size}, expected the same number; "
            "the statistics belong to another robot or data set"
        )
    mask = np.asarray(statistics.get("mask", [True] * action_dim), dtype=bool)
    if mask.shape != (action_dim,):
        raise ValueError(
            f"got statistics with a mask of {mask.size} entries, expected {action_dim}, one per dimension"
        )
    return low, high, mask
