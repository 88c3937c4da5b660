"""Normalisation between a data set's units and [-1, 1]: OpenVLA's formulas, JSON layout and lookup by `unnorm_key`.

A statistics dictionary (`norm_stats` in the model's config, `dataset_statistics.json` beside a checkpoint):

    {"bridge_orig": {"action": {"mean": [D], "std": [D], "min": [D], "max": [D], "q01": [D], "q99": [D],
                                "mask": [D] (optional; False = the dimension is left as it is, a gripper 0..1),
                                "normalization": [D] (ours, optional; what each dimension is scaled by, a name of
                                `NORMALIZATIONS`; q01..q99 without it, as OpenVLA's code assumes),
                                "histogram": [D][40] (ours, optional; counts of normalised values),
                                "names": [D] (ours, optional; the data set's names of the values),
                                "units": [D] (ours, optional; what it says of their units, such as "m"),
                                "fps": float (ours, optional; steps a second of the training data),
                                "displacements": [...] (ours, optional; the dimensions that are displacements; all
                                others are positions)
                                "relative": [...] (ours, optional; the groups of dimensions that are relative to the
                                state, see `relative_actions.py`; the figures are then of these)},
                     "proprio": {"q01": [P], ...} (optional), "num_transitions": int, "num_trajectories": int}}
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from .relative_actions import check_groups, to_absolute, to_relative


HISTOGRAM_BINS = 40
MEASURES = ("q01", "q99", "min", "max", "mean", "std")  # lists [D]
QUANTILES = "quantiles"
# What becomes -1 and 1; names as in LeRobot, with the measures each needs besides q01 and q99.
NORMALIZATIONS = {QUANTILES: ("q01", "q99"), "min_max": ("min", "max"), "mean_std": ("mean", "std")}
# Digits end at -1 and 1, so mean_std has to clip. Whatever the distribution, at most 1 / 5**2 = 4 % of its values lie
# further than 5 std from the mean (Chebyshev), of a normal one a millionth; and four decimals still tell 0.0005 std.
STDS = 5.0
FLOAT32_MAX = float(np.finfo(np.float32).max)
EPSILON = 1e-8  # OpenVLA's, added to the width of the range when normalising


def select_statistics(norm_stats: dict[str, Any], unnorm_key: str | None, kind: str = "action") -> dict[str, Any]:
    """The checked statistics of one data set's actions, or of its states ("proprio"); `unnorm_key` may be `None` where
    there is only one. `ValueError` without statistics, and on an unknown or an ambiguous key.
    """
    if not norm_stats:
        raise ValueError(
            "got a model without action statistics, so its actions have no units; "
            "expected config.norm_stats to hold those of the data it was trained on"
        )
    keys = ", ".join(sorted(norm_stats))
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
    return _entry(norm_stats, unnorm_key, kind)


def plain_statistics(norm_stats: Any) -> dict[str, Any]:
    """A checked copy of statistics by data set that JSON can hold: NumPy and torch values become lists and numbers."""
    if not isinstance(norm_stats, dict):
        raise ValueError(
            f"got norm_stats of type {type(norm_stats).__name__}, expected a dictionary: statistics by data set"
        )
    for key in norm_stats:
        if not isinstance(key, str):
            raise ValueError(f"got norm_stats with the key {key!r}, expected names of data sets, which are texts")
        _entry(norm_stats, key)
    return _plain(norm_stats)


def check_action_statistics(statistics: dict[str, Any], name: str = "a data set") -> None:
    """Raises `ValueError` for an `"action"` entry without q01 and q99 or what else its normalisation needs, with
    other than finite numbers, or with entries of different lengths.
    """
    for needed in ("q01", "q99"):
        if statistics.get(needed) is None:
            raise ValueError(
                f"got action statistics of {name} without {needed!r} (they have: {', '.join(map(str, statistics))}), "
                "expected q01 and q99, the 1 % and 99 % quantiles of every dimension; min, max, mean and std do not "
                "stand in for them: compute_statistics(actions, num_trajectories) makes them of the data"
            )
    measures = {measure: _plain(statistics[measure]) for measure in MEASURES if statistics.get(measure) is not None}
    width = len(measures["q01"]) if isinstance(measures["q01"], list) else 0
    for measure, values in measures.items():
        if not isinstance(values, list) or not values or len(values) != width or not all(map(_is_finite, values)):
            raise ValueError(
                f"got action statistics of {name} with {measure}={values!r}, expected a list of {width or 'D'} finite "
                "numbers, one per dimension, as many as in q01; repair them, or compute them again"
            )
    _check_normalization(_plain(statistics.get("normalization")), measures, width, name)
    mask = _plain(statistics.get("mask"))
    each = mask if isinstance(mask, list) else []
    if mask is not None and (len(each) != width or not all(value in (False, True) for value in each)):
        raise ValueError(
            f"got action statistics of {name} with mask={mask!r}, expected a list of {width} true and false, one per "
            "dimension"
        )
    counts = _plain(statistics.get("histogram"))
    rows = counts if isinstance(counts, list) else []
    if counts is not None and [np.size(row) for row in rows] != [HISTOGRAM_BINS] * width:
        raise ValueError(
            f"got action statistics of {name} with a histogram of another shape, expected {width} rows of "
            f"{HISTOGRAM_BINS} counts; leave it out, it only makes decoding faster"
        )
    if statistics.get("relative"):
        check_groups(_plain(statistics["relative"]), width, name)


def _check_normalization(modes: Any, measures: dict[str, Any], width: int, name: str) -> None:
    """Raises `ValueError` for modes other than one per dimension, or measures that they cannot scale by."""
    each = modes if isinstance(modes, list) else []
    if modes is not None and (len(each) != width or not all(mode in NORMALIZATIONS for mode in each)):
        raise ValueError(
            f"got action statistics of {name} with normalization={modes!r}, expected a list of {width}, one of "
            f"{', '.join(NORMALIZATIONS)} per dimension; without it all are scaled by q01 and q99"
        )
    for mode in dict.fromkeys((QUANTILES, *each)):
        low, high = NORMALIZATIONS[mode]
        if not {low, high} <= set(measures):
            raise ValueError(
                f"got action statistics of {name} with the normalization {mode!r} and without {low} and {high}, "
                "expected both: compute_statistics(actions, num_trajectories) makes them of the data"
            )
        lows = [0.0] * width if mode == "mean_std" else measures[low]
        for dim, (least, most) in enumerate(zip(lows, measures[high], strict=True)):
            if least > most:
                below = "below 0" if mode == "mean_std" else f"below {low}={least}"
                raise ValueError(
                    f"got action statistics of {name} with {high}={most} {below} in dimension {dim}, expected at "
                    f"least that; they may have been exchanged"
                )


def _entry(norm_stats: dict[str, Any], key: str, kind: str = "action") -> dict[str, Any]:
    """The checked statistics of a data set's actions or states."""
    entry = norm_stats[key]
    if not isinstance(entry, dict) or not isinstance(entry.get(kind), dict):
        raise ValueError(
            f"got norm_stats whose entry {key!r} has no {kind!r}, expected {{data set: {{{kind!r}: "
            "{'q01': [...], 'q99': [...], ...}}}, as in OpenVLA's dataset_statistics.json"
        )
    check_action_statistics(entry[kind], repr(key))
    return entry[kind]


def _plain(value: Any) -> Any:
    """A copy without NumPy, torch and tuples."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [entry if type(entry) in (float, int) else _plain(entry) for entry in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX


def statistics_per_row(
    norm_stats: dict[str, Any], unnorm_key: str | Sequence[str] | None, rows: int, kind: str = "action"
) -> list[dict[str, Any]]:
    """The statistics of each row of a batch, for one key for all or one per row; as `select_statistics`."""
    keys = [unnorm_key] * rows if unnorm_key is None or isinstance(unnorm_key, str) else list(unnorm_key)
    if len(keys) != rows:
        raise ValueError(f"got {len(keys)} unnorm_keys for {rows} observations, expected one each or one for all")
    found = {key: select_statistics(norm_stats, key, kind) for key in dict.fromkeys(keys)}
    return [found[key] for key in keys]


def normalize_actions(actions: Any, statistics: dict[str, Any], state: Any = None) -> np.ndarray:
    """Maps the bounds (`action_bounds`) of float [..., D] to [-1, 1] and clips, float32; constant dimensions become 0,
    and those outside the mask stay as they are.

    OpenVLA makes also constant dimensions outside the mask 0, which `unnormalize_actions` could not undo: a gripper
    that was open in every frame would be commanded to close. `state`, float [..., P], is the robot's at the beginning
    of each chunk [..., T, D], for relative actions.
    """
    actions = np.asarray(actions, dtype=np.float64)
    low, high, mask = action_bounds(statistics, actions.shape[-1])
    if relative := statistics.get("relative"):
        actions = to_relative(actions, _known_state(state, relative), relative)
    scaled = np.clip(2.0 * (actions - low) / (high - low + EPSILON) - 1.0, -1.0, 1.0)
    least, most = (statistics.get(name) for name in ("min", "max"))
    constant = np.equal(low if least is None else _plain(least), high if most is None else _plain(most))
    return np.where(mask, np.where(constant, 0.0, scaled), actions).astype(np.float32)


def histogram(actions: Any, statistics: dict[str, Any]) -> list[list[int]]:
    """Counts [D][HISTOGRAM_BINS] of the normalised values of float [N, D] over [-1, 1], for draft distributions."""
    normalized = normalize_actions(actions, statistics)
    edges = np.linspace(-1.0, 1.0, HISTOGRAM_BINS + 1)
    return [np.histogram(column, edges)[0].tolist() for column in normalized.T]


def count_clipped(actions: Any, statistics: dict[str, Any]) -> np.ndarray:
    """How many values of each dimension `normalize_actions` clips: int64 [D] for actions float [..., D]."""
    actions = np.asarray(actions, dtype=np.float64)
    low, high, mask = action_bounds(statistics, actions.shape[-1])
    outside = ((actions < low) | (actions > high)) & mask
    return outside.reshape(-1, actions.shape[-1]).sum(axis=0)


def unnormalize_actions(normalized: Any, statistics: dict[str, Any], state: Any = None) -> np.ndarray:
    """The inverse of `normalize_actions`: float [..., D] in [-1, 1] to float32 [..., D] in the data set's units;
    `ValueError` where a result would not be a finite number.
    """
    normalized = np.asarray(normalized, dtype=np.float64)
    low, high, mask = action_bounds(statistics, normalized.shape[-1])
    with np.errstate(over="ignore", invalid="ignore"):
        actions = np.where(mask, 0.5 * (normalized + 1.0) * (high - low) + low, normalized)
        if relative := statistics.get("relative"):
            actions = to_absolute(actions, _known_state(state, relative), relative)
        actions = actions.astype(np.float32)
    if not np.isfinite(actions).all():
        dim = int(np.argwhere(~np.isfinite(actions))[0][-1])
        raise ValueError(
            f"got an action that is not finite in dimension {dim} (scaled to {low[dim]}..{high[dim]}), expected "
            "finite numbers; the normalised action or the statistics are broken"
        )
    return actions


def compute_statistics(
    actions: Any,
    num_trajectories: int,
    mask: Sequence[bool] | None = None,
    normalization: str | Sequence[str] = QUANTILES,
) -> dict[str, Any]:
    """Statistics of one data set in OpenVLA's layout, of all its actions float [N, D] in its units.

    Args:
        mask: which dimensions are normalised; by default all but the last, the gripper.
        normalization: what by, a name of `NORMALIZATIONS` for all dimensions or one for each.
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
    columns = {name: getattr(actions, name)(axis=0) for name in ("mean", "std", "max", "min")}
    columns |= {"q01": low, "q99": high}
    action = {**{name: column.tolist() for name, column in columns.items()}, "mask": chosen}
    modes = [normalization] * actions.shape[1] if isinstance(normalization, str) else list(normalization)
    if modes != [QUANTILES] * len(modes) or len(modes) != actions.shape[1]:
        action["normalization"] = modes
    action["histogram"] = histogram(actions, action)
    return {"action": action, "num_transitions": len(actions), "num_trajectories": int(num_trajectories)}


def _known_state(state: Any, relative: Sequence[dict[str, Any]]) -> np.ndarray:
    """The state float64 [..., P], if it has what actions are relative to."""
    least = 1 + max(dim for group in relative for dim in group["state"])
    if state is None or np.shape(state)[-1] < least:
        found = "no state" if state is None else f"a state of {np.shape(state)[-1]} values"
        raise ValueError(
            f"got {found} for relative actions, expected the robot's, with at least {least} values, which they are "
            "relative to: pass state=[...] in the units of its data set"
        )
    return np.asarray(state, dtype=np.float64)


def action_bounds(statistics: dict[str, Any], action_dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is scaled to -1 and to 1, float64 [D] each, and which dimensions are scaled, bool [D]."""
    check_action_statistics(statistics)
    known = {name: np.asarray(_plain(statistics[name]), np.float64) for name in MEASURES if name in statistics}
    low, high = known["q01"].copy(), known["q99"].copy()
    if low.shape != (action_dim,):
        raise ValueError(
            f"got actions of {action_dim} dimensions and statistics of {low.size}, expected the same number; "
            "the statistics belong to another robot or data set"
        )
    for dim, mode in enumerate(_plain(statistics.get("normalization")) or ()):
        if mode == "min_max":
            low[dim], high[dim] = known["min"][dim], known["max"][dim]
        elif mode == "mean_std":
            reach = STDS * known["std"][dim]
            low[dim], high[dim] = known["mean"][dim] - reach, known["mean"][dim] + reach
    mask = _plain(statistics.get("mask"))
    return low, high, np.ones(action_dim, bool) if mask is None else np.asarray(mask, dtype=bool)
