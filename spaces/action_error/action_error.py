"""`evaluate.load("gen-vla/action_error")`: how far action strings are from the recorded actions.

A string that is no action is counted, it is wrong wherever right and wrong are counted, and it has no distance.
Spelling is that of `action_strings.py`, units are those of `action_statistics.py`, as in the family's models.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from .action_statistics import unnormalize_actions
from .action_strings import ActionStringError, ActionStringProcessor
from .relative_actions import to_relative


__all__ = ["ActionError", "to_relative"]  # `evaluate` copies only files that this one imports from


DESCRIPTION = """\
Errors of robot actions written as strings (gen-vla's formats): L1 per dimension in the data set's units, the share of
signs that are right, of strings that are right to the last digit, of values and of whole actions within a tolerance,
and how many strings are no action at all.
"""

INPUTS = """\
Args:
    predictions: list of str, what a model wrote, one action (or chunk of `horizon` actions) each.
    references: list of str, the recorded actions, spelled the same way.
    action_dim, horizon, decimals, style, binary_dims: the format, as in `config.action_config`.
    statistics: the data set's `norm_stats[key]["action"]`; without it, L1 is in normalised units, -1 to 1.
    tolerance: float, in normalised units; 0.05 is 2.5 % of a dimension's range.
Returns:
    n, malformed: int, strings in all, and those that are no action.
    exact_string_rate: float, of n: the string is the recorded one.
    sign_accuracy: float, of all values that range over [-1, 1]: negative or not; malformed strings have none right.
    within_tolerance: float, of n: every value of the action is within the tolerance.
    within_tolerance_per_dimension: list of float [D], of n times horizon.
    l1_per_dimension: list of float [D], mean absolute error of the strings that are actions; None without any.
    l1_normalized: float, the mean over dimensions in normalised units; None without any.
    units: bool, whether l1_per_dimension is in the data set's units.
    first_malformed: str, what is wrong with the first malformed string; None without one.
Raises:
    ValueError: without predictions, if a reference is no action, the format is impossible, or tolerance is negative.
Examples:
    >>> metric = evaluate.load("gen-vla/action_error")
    >>> result = metric.compute(predictions=["+0.10-0.20"], references=["+0.30-0.20"], action_dim=2, decimals=2)
    >>> [round(error, 2) for error in result["l1_per_dimension"]]
    [0.2, 0.0]
"""


class ActionError(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        words = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": words, "references": words}),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        action_dim: int = 7,
        horizon: int = 1,
        decimals: int = 4,
        style: str = "signed",
        binary_dims: tuple[int, ...] = (),
        statistics: dict[str, Any] | None = None,
        tolerance: float = 0.05,
    ) -> dict[str, Any]:
        if not predictions:
            raise ValueError("got no predictions, expected at least one")
        if tolerance < 0:
            raise ValueError(f"got tolerance={tolerance}, expected 0 or more, in normalised units")
        strings = ActionStringProcessor(action_dim, horizon, decimals, style, binary_dims)
        expected = np.stack([read_reference(strings, text, row) for row, text in enumerate(references)])
        read, fine, complaint = read_predictions(strings, predictions)
        ranging = [dim for dim in range(action_dim) if dim not in strings.binary_dims]
        apart = np.abs(read - expected)
        near = (apart <= tolerance + 1e-6) & fine[:, None, None]  # 1e-6 for float32: 0.30 and 0.35 are 0.05 apart
        same_sign = ((read < 0) == (expected < 0)) & fine[:, None, None]
        exact = [text == recorded for text, recorded in zip(predictions, references, strict=True)]
        in_units = apart
        if statistics is not None:
            statistics = {**statistics, "relative": None}  # differences of relative actions, without a state
            in_units = np.abs(unnormalize_actions(read, statistics) - unnormalize_actions(expected, statistics))
        return {
            "n": len(predictions),
            "malformed": int((~fine).sum()),
            "exact_string_rate": float(np.mean(exact)),
            "sign_accuracy": float(same_sign[..., ranging].mean()) if ranging else None,
            "within_tolerance": float(near.all(axis=(1, 2)).mean()),
            "within_tolerance_per_dimension": near.mean(axis=(0, 1)).tolist(),
            "l1_per_dimension": in_units[fine].mean(axis=(0, 1)).tolist() if fine.any() else None,
            "l1_normalized": float(apart[fine].mean()) if fine.any() else None,
            "units": statistics is not None,
            "first_malformed": complaint,
        }


def read_reference(strings: ActionStringProcessor, text: str, row: int) -> np.ndarray:
    """float32 [T, D] of a recorded action; a `ValueError` that names the row if it is none."""
    try:
        return strings.decode(text)
    except ActionStringError as error:
        raise ValueError(
            f"reference {row} is no action: {error}; check action_dim, horizon, decimals, style and binary_dims"
        ) from error


def read_predictions(
    strings: ActionStringProcessor, predictions: list[str]
) -> tuple[np.ndarray, np.ndarray, str | None]:
    """What a model wrote: float32 [N, T, D] (zeros where malformed), bool [N] whether it is an action, first error."""
    read = np.zeros((len(predictions), strings.horizon, strings.action_dim), dtype=np.float32)
    fine = np.zeros(len(predictions), dtype=bool)
    complaint = None
    for row, text in enumerate(predictions):
        try:
            read[row] = strings.decode(text)
            fine[row] = True
        except ActionStringError as error:
            complaint = complaint or f"prediction {row}: {error}"
    return read, fine, complaint
