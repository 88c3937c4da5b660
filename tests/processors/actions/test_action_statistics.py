"""Normalisation by data set: OpenVLA's formula on its published numbers, masks, keys, statistics of tiny data."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_vla.modeling import OpenVLAPlusConfig
from gen_vla.processors import (
    ActionStringProcessor,
    compute_statistics,
    count_clipped,
    normalize_actions,
    select_statistics,
    unnormalize_actions,
)
from gen_vla.processors.action_statistics import NORMALIZATIONS, action_bounds


MASK = [True] * 6 + [False]
# q01 and q99 as openvla/openvla-7b publishes them.
LIMITS = {"min": [-1.0] * 7, "max": [1.0] * 7, "mask": MASK}
FRACTAL = {
    "q01": [
        *(-0.22453527510166169, -0.14820013284683228, -0.231589707583189),
        *(-0.3517994859814644, -0.4193011274933815, -0.43643461108207704, 0),
    ],
    "q99": [
        *(0.17824687153100965, 0.14938379630446405, 0.21842354819178575),
        *(0.5892666035890578, 0.35272657424211445, 0.44796681255102094, 1),
    ],
    **LIMITS,
}
BRIDGE = {
    "q01": [
        *(-0.02872725307941437, -0.04170349963009357, -0.026093858778476715),
        *(-0.08092105075716972, -0.09288699507713317, -0.20718276381492615, 0),
    ],
    "q99": [
        *(0.028309678435325586, 0.040855254605412394, 0.040161586627364146),
        *(0.08192047759890528, 0.07792850524187081, 0.20382574498653397, 1),
    ],
    **LIMITS,
}


def stats(low: list[float], high: list[float], **more: Any) -> dict[str, Any]:
    return {"q01": low, "q99": high, "min": low, "max": high, **more}


def test_unnormalize_bridge_and_fractal_by_hand() -> None:
    ends = unnormalize_actions(np.array([[-1.0] * 7, [1.0] * 7]), BRIDGE)
    np.testing.assert_allclose(ends[0, :6], BRIDGE["q01"][:6], rtol=1e-6)
    np.testing.assert_allclose(ends[1, :6], BRIDGE["q99"][:6], rtol=1e-6)
    assert ends[:, 6].tolist() == [-1.0, 1.0]  # the gripper is not masked in: it stays as it is
    assert ends.dtype == np.float32
    # 0 is the middle: (-0.02872725 + 0.02830968) / 2 and (-0.22453528 + 0.17824687) / 2
    assert unnormalize_actions(np.zeros(7), BRIDGE)[0] == pytest.approx(-0.0002087873, abs=1e-9)
    assert unnormalize_actions(np.zeros(7), FRACTAL)[0] == pytest.approx(-0.0231442018, abs=1e-9)
    # 0.5 * (0.5 + 1) * (0.0283096784 + 0.0287272531) - 0.0287272531
    assert unnormalize_actions(np.full(7, 0.5), BRIDGE)[0] == pytest.approx(0.0140504456, abs=1e-9)


def test_normalize_by_hand() -> None:
    action = np.array([0.0, -0.04170349963009357, 0.040161586627364146, 9.0, -9.0, 0.0, 1.0])
    normalized = normalize_actions(action, BRIDGE)
    # 2 * 0.0287272531 / (0.0570369315 + 1e-8) - 1
    assert normalized[0] == pytest.approx(0.0073207821, abs=1e-6)
    assert normalized[1:5].tolist() == pytest.approx([-1.0, 1.0, 1.0, -1.0], abs=1e-6)
    assert normalized[6] == 1.0
    assert normalized.dtype == np.float32


def test_constant_dimensions() -> None:
    statistics = stats([0.3, 0.0, 1.0], [0.3, 2.0, 1.0], mask=[True, True, False])
    with np.errstate(all="raise"):  # no division by zero
        normalized = normalize_actions([[0.3, 1.0, 1.0]], statistics)
    # masked in and constant: 0; not masked in: as it is
    assert normalized[0].tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-7)
    np.testing.assert_allclose(unnormalize_actions(normalized, statistics), [[0.3, 1.0, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(unnormalize_actions([[0.9, -1.0, 0.0]], statistics), [[0.3, 0.0, 0.0]], rtol=1e-6)
    # OpenVLA's epsilon widens a range: 2 * 1e-8 / (1e-8 + 1e-8) - 1
    assert normalize_actions([1e-8], stats([0.0], [1e-8])).tolist() == pytest.approx([0.0], abs=1e-6)
    # without min and max, a range of no width is constant, too
    assert normalize_actions([0.3, 1.0], {"q01": [0.3, 0.0], "q99": [0.3, 1.0]})[0] == 0.0


def test_without_a_mask_every_dimension_is_normalised() -> None:
    statistics = stats([0.0, 0.0], [2.0, 4.0])
    assert normalize_actions([0.5, 3.0], statistics).tolist() == pytest.approx([-0.5, 0.5])
    assert unnormalize_actions([-0.5, 0.5], statistics).tolist() == [0.5, 3.0]


def test_count_clipped_counts_per_dimension() -> None:
    statistics = stats([-1.0, 0.0, 0.0], [1.0, 2.0, 1.0], mask=[True, True, False])
    actions = [[-1.5, 1.0, 7.0], [1.0, 2.5, -7.0], [1.1, -0.1, 0.0]]
    assert count_clipped(actions, statistics).tolist() == [2, 2, 0]
    assert count_clipped(np.reshape(actions, (3, 1, 3)), statistics).tolist() == [2, 2, 0]
    assert count_clipped([0.0, 1.0, 9.0], statistics).tolist() == [0, 0, 0]


def test_select_statistics() -> None:
    one = {"bridge_orig": {"action": BRIDGE}}
    two = {**one, "fractal20220817_data": {"action": FRACTAL}}
    assert select_statistics(one, None) is BRIDGE
    assert select_statistics(two, "fractal20220817_data") is FRACTAL
    for key, message in (
        (None, r"got no unnorm_key, but .* 2 data sets; .* bridge_orig, fractal20220817_data"),
        ("bridge_origs", r"got unnorm_key='bridge_origs', .*did you mean 'bridge_orig'\? keys: bridge"),
        ("zzz", r"got unnorm_key='zzz', which this model has no statistics for; keys: bridge"),
    ):
        with pytest.raises(ValueError, match=message):
            select_statistics(two, key)
    for key in (None, "bridge_orig"):
        with pytest.raises(ValueError, match="got a model without action statistics"):
            select_statistics({}, key)


def test_statistics_of_another_robot_are_refused() -> None:
    for function in (normalize_actions, unnormalize_actions, count_clipped):
        with pytest.raises(ValueError, match="got actions of 6 dimensions and statistics of 7"):
            function(np.zeros(6), BRIDGE)
        with pytest.raises(ValueError, match=r"with mask=\[True\], expected a list of 2 true and false"):
            function(np.zeros(2), stats([0.0, 0.0], [1.0, 1.0], mask=[True]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q01": None}, r"statistics of a data set without 'q01' \(they have: q01, q99, min, max\)"),
        ({"q99": None}, "without 'q99'"),
        ({"q99": [1.0, float("nan")]}, r"with q99=\[1.0, nan\], expected a list of 2 finite numbers"),
        ({"q01": [-float("inf"), 0.0]}, r"with q01=\[-inf, 0.0\]"),
        ({"q99": [1e39, 1.0]}, r"with q99=\[1e\+39, 1.0\]"),  # infinite as float32
        ({"min": [float("nan"), 0.0]}, "with min="),
        ({"std": [0.0]}, r"with std=\[0.0\], expected a list of 2"),
        ({"q99": [1.0]}, r"with q99=\[1.0\], expected a list of 2"),  # NumPy would stretch it
        ({"q01": [[-1.0], [-1.0, 0.0]]}, r"with q01=\[\[-1.0\], \[-1.0, 0.0\]\]"),
        ({"q01": ["-1", "-1"]}, r"with q01=\['-1', '-1'\]"),  # NumPy would read them
        ({"q01": [False, True]}, r"with q01=\[False, True\]"),
        ({"q01": -1.0}, "with q01=-1.0, expected a list of D"),
        ({"q01": []}, r"with q01=\[\]"),
        ({"q01": [-1.0, 1.5]}, "with q99=1.0 below q01=1.5 in dimension 1, .*exchanged"),
        ({"mask": ["True", "False"]}, r"with mask=\['True', 'False'\], expected a list of 2 true and false"),
        ({"mask": [1.0, 0.5]}, "with mask="),
        ({"mask": True}, "with mask=True"),
        ({"normalization": "min_max"}, "with normalization='min_max', expected a list of 2, one of quantiles"),
        ({"normalization": ["min_max", "minmax"]}, r"with normalization=\['min_max', 'minmax'\]"),
        ({"normalization": ["quantiles"]}, "expected a list of 2"),
        ({"normalization": ["mean_std", "quantiles"]}, "normalization 'mean_std' and without mean and std"),
        ({"normalization": ["min_max"] * 2, "min": [2.0, 0.0]}, "with max=1.0 below min=2.0 in dimension 0"),
        ({"normalization": ["mean_std"] * 2, "mean": [0.0, 0.0], "std": [1.0, -1.0]}, "with std=-1.0 below 0"),
        ({"mask": [True, True, True]}, "expected a list of 2 true and false"),
    ],
)
def test_statistics_that_cannot_be_used_are_refused(change: dict[str, Any], message: str) -> None:
    statistics = stats([-1.0, -1.0], [1.0, 1.0], **change)
    for function in (normalize_actions, unnormalize_actions, count_clipped):
        with pytest.raises(ValueError, match=message):
            function(np.zeros(2), statistics)
    with pytest.raises(ValueError, match=message.replace("a data set", "'mine'")):
        select_statistics({"mine": {"action": statistics}}, None)


@pytest.mark.parametrize("entry", [{}, {"proprio": {}}, {"action": [1.0]}, [1.0]])
def test_a_set_without_action_statistics_is_refused(entry: Any) -> None:
    with pytest.raises(ValueError, match="got norm_stats whose entry 'mine' has no 'action'"):
        select_statistics({"mine": entry}, "mine")


def test_an_action_is_never_anything_but_finite() -> None:
    statistics = stats([-3e38, 0.0], [3e38, 0.0], mask=[True, False])
    assert unnormalize_actions([1.0, 0.5], statistics).tolist() == [np.float32(3e38), 0.5]
    with pytest.raises(ValueError, match=r"not finite in dimension 0 \(scaled to -3e\+38\.\.3e\+38\)"):
        unnormalize_actions([[0.0, 0.0], [1.5, 0.0]], statistics)
    with pytest.raises(ValueError, match="not finite in dimension 1"):
        unnormalize_actions([0.0, float("nan")], statistics)


@pytest.mark.parametrize("kind", [np.float32, torch.tensor, tuple])
def test_statistics_of_other_types_mean_the_same(kind: Any) -> None:
    made = (lambda values: np.array(values, np.float32)) if kind is np.float32 else kind
    statistics = {"q01": made([-2.0, 0.0]), "q99": made([2.0, 1.0]), "mask": made([True, False])}
    assert unnormalize_actions([0.5, 0.25], statistics).tolist() == [1.0, 0.25]
    assert normalize_actions([1.0, 0.25], statistics).tolist() == [0.5, 0.25]


def test_compute_statistics_of_five_rows() -> None:
    actions = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 0.0], [3.0, 0.0], [4.0, 1.0]])
    result = compute_statistics(actions, num_trajectories=2)
    assert result["num_transitions"] == 5
    assert result["num_trajectories"] == 2
    action = result["action"]
    assert action["mean"] == pytest.approx([2.0, 0.6])
    assert action["std"] == pytest.approx([2.0**0.5, 0.24**0.5])
    assert action["min"] == [0.0, 0.0]
    assert action["max"] == [4.0, 1.0]
    assert action["q01"] == pytest.approx([0.04, 0.0])  # between the first and the second of five values
    assert action["q99"] == pytest.approx([3.96, 1.0])
    assert action["mask"] == [True, False]
    assert compute_statistics(actions, 2, mask=[False, True])["action"]["mask"] == [False, True]
    assert normalize_actions([0.04, 1.0], action).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("actions", "mask", "message"),
    [
        (np.zeros((0, 2)), None, r"shape \[0, 2\], expected \[N, D\] with at least one row"),
        (np.zeros(3), None, r"shape \[3\], expected \[N, D\]"),
        ([[0.0, 1.0], [np.nan, 0.0]], None, "got nan in row 1, dimension 0, expected finite actions; drop the row"),
        ([[0.0, np.inf]], None, "got inf in row 0, dimension 1"),
        ([[0.0, 1.0]], [True], "got a mask of 1 entries, expected 2, one per dimension"),
    ],
)
def test_compute_statistics_refuses(actions: Any, mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_statistics(actions, 1, mask=mask)


def test_each_dimension_is_scaled_by_its_own_bounds() -> None:
    actions = np.array([[0.0] * 3, [1.0] * 3, [2.0] * 3, [3.0] * 3, [9.0] * 3])  # mean 3, std sqrt(10)
    action = compute_statistics(actions, 1, [True] * 3, ["quantiles", "min_max", "mean_std"])["action"]
    assert action["normalization"] == ["quantiles", "min_max", "mean_std"]
    low, high, _ = action_bounds(action, 3)
    np.testing.assert_allclose(low, [0.04, 0.0, 3 - 5 * 10**0.5])
    np.testing.assert_allclose(high, [8.76, 9.0, 3 + 5 * 10**0.5])
    assert normalize_actions([3.0] * 3, action).tolist() == pytest.approx([-0.3211009, -1 / 3, 0.0], abs=1e-6)
    assert count_clipped(actions, action).tolist() == [2, 0, 0]
    assert np.sum(action["histogram"], axis=1).tolist() == [5, 5, 5]
    assert "normalization" not in compute_statistics(actions, 1)["action"]  # as OpenVLA writes it
    with pytest.raises(ValueError, match="expected a list of 3"):
        compute_statistics(actions, 1, normalization=["min_max"])


@settings(deadline=None)
@given(st.data())
def test_digits_bring_back_what_lies_within_the_bounds(data: st.DataObject) -> None:
    """To half of the last digit, in every mode; constant dimensions exactly, those outside the mask as they are."""
    values = st.one_of(st.floats(-100, 100, width=32), st.sampled_from([0.0, 1.0, -1.0]))
    columns = data.draw(st.lists(st.lists(values, min_size=3, max_size=3), min_size=1, max_size=12))
    modes = data.draw(st.lists(st.sampled_from(list(NORMALIZATIONS)), min_size=3, max_size=3))
    actions = np.array(columns)
    actions[:, 2] = actions[:, 2] > 0
    action = compute_statistics(actions, 1, [True, True, False], modes)["action"]
    low, high, mask = action_bounds(action, 3)
    strings = ActionStringProcessor(action_dim=3, horizon=len(actions), decimals=4, binary_dims=[2])
    found = unnormalize_actions(strings.decode(strings.encode(normalize_actions(actions, action))), action)
    within = np.where(mask, np.clip(actions, low, high), actions)
    resolution = np.where(mask, 0.5e-4 * (high - low) / 2, 0) + 1e-6 * (1 + np.abs(within))
    assert (np.abs(found - within) <= resolution).all()
    still = (actions == actions[0]).all(axis=0)
    np.testing.assert_allclose(found[:, still], actions[:, still], rtol=1e-5)
    scaled_by_std = [dim for dim in (0, 1) if modes[dim] == "mean_std"]
    assert (count_clipped(actions, action)[scaled_by_std] <= len(actions) / 25).all()  # Chebyshev


@pytest.mark.parametrize(
    ("norm_stats", "message"),
    [
        ({5: {"action": {"q01": [0.0], "q99": [1.0]}}}, "got norm_stats with the key 5, expected names of data sets"),
        ({"a": {"action": {"q01": [0.0], "q99": [1.0], "histogram": [[1]]}}}, "histogram of another shape"),
        ({"a": {"action": {"q01": [0.0], "q99": [1.0], "histogram": "x"}}}, "histogram of another shape"),
    ],
)
def test_keys_and_histograms(norm_stats, message):
    with pytest.raises(ValueError, match=message):
        OpenVLAPlusConfig(norm_stats=norm_stats)
