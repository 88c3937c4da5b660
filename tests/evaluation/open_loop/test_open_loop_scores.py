"""Errors, baselines and intervals of open-loop predictions, in small numbers."""

import numpy as np
import pytest

from gen_vla.evaluation.open_loop.scores import (
    HELD,
    MEAN,
    NEAREST,
    POLICY,
    STATE,
    Comparison,
    Dimensions,
    EpisodeBootstrap,
    score,
)
from gen_vla.processors import compute_statistics


# A position over -2..2, a gripper of 0 and 1 that is left as it is, a gripper of -1 and 1 that is scaled, a constant.
STATISTICS = {
    "min": [-2.0, 0.0, -1.0, 3.0],
    "max": [2.0, 1.0, 1.0, 3.0],
    "q01": [-1.0, 0.0, -1.0, 3.0],
    "q99": [1.0, 1.0, 1.0, 3.0],
    "mean": [0.0, 0.6, -0.5, 3.0],
    "std": [0.9, 0.24**0.5, 0.75**0.5, 0.0],
    "mask": [True, False, True, True],
}
NAMES = ["position", "gripper", "claw", "still"]


def comparison(predicted, recorded, **more):
    """Two steps of two episodes, chunks of two; the very last step is behind the episode's end."""
    found = {
        "predicted": np.array(predicted, np.float32),
        "recorded": np.array(recorded, np.float32),
        "valid": np.array([[True, True], [True, False]]),
        "held": np.array([[np.nan] * 4, [0.5, 1, 1, 3]], np.float32),
        "state": None,
        "episode": np.array([0, 4]),
        "place": np.array([0, 7]),
    }
    return Comparison(**{**found, **more})


RECORDED = [[[0.5, 1, 1, 3], [1.5, 1, 1, 3]], [[1.0, 0, -1, 3], [99, 0, -1, 3]]]
PREDICTED = [[[0.25, 1, -1, 3], [1.0, 0, 1, 3]], [[0.0, 0, -1, 3], [0, 1, 1, 3]]]


def figures(results, dim):
    return {name: entry["value"] for name, entry in results["dimensions"][dim].items() if isinstance(entry, dict)}


@pytest.fixture(scope="module")
def results():
    return score(comparison(PREDICTED, RECORDED), STATISTICS, NAMES)


def test_errors_of_each_dimension_without_the_padded_step(results):
    assert (results["n"], results["episodes"], results["values"]) == (2, 2, 3)
    measures = [(entry["name"], entry["measure"]) for entry in results["dimensions"]]
    assert measures == list(zip(NAMES, ("error", "accuracy", "accuracy", "error"), strict=True))
    errors = [figures(results, dim)[POLICY] for dim in range(4)]
    assert errors == pytest.approx([(0.25 + 0.5 + 1.0) / 3, 2 / 3, 2 / 3, 0])
    assert [(entry["step"], entry["values"]) for entry in results["chunk_steps"]] == [(0, 2), (1, 1)]
    assert results["chunk_steps"][0]["dimensions"] == pytest.approx([(0.25 + 1.0) / 2, 1.0, 0.5, 0.0])
    assert results["chunk_steps"][1]["dimensions"] == pytest.approx([0.5, 0.0, 1.0, 0.0])


def test_normalized_errors_are_of_the_position_alone_and_clipped_as_in_training(results):
    assert results["normalized"][POLICY]["l1"]["value"] == pytest.approx((0.25 + 0.0 + 1.0) / 3)  # 1.5 counts as 1
    assert NEAREST not in results["normalized"]
    assert figures(results, 0)[NEAREST] == pytest.approx(0.5 / 3)
    assert results["dimensions"][0]["outside"] == pytest.approx(1 / 3)
    assert results["outside"] == pytest.approx(1 / 9)  # of three scaled dimensions


def test_a_constant_that_float32_rounds_is_not_outside():
    known = Dimensions({name: [0.1 if name in ("min", "max", "q01", "q99", "mean") else 0.0] for name in STATISTICS})
    known.scaled[:] = True
    assert known.outside(np.array([[0.1], [0.1001]], np.float32)).tolist() == [[False], [True]]


def test_what_a_policy_can_write_depends_on_what_actions_are_scaled_by():
    actions = np.array([[0.0]] * 98 + [[1.0], [10.0]])
    known = [
        Dimensions(compute_statistics(actions, 1, [True], mode)["action"])
        for mode in ("quantiles", "min_max", "mean_std")
    ]
    assert [int(each.outside(actions).sum()) for each in known] == [1, 0, 1]


def test_statistics_that_are_enough_to_act_but_not_to_compare_are_named():
    with pytest.raises(ValueError, match="got action statistics without min, max, mean, std, expected min, max"):
        Dimensions({"q01": [0.0], "q99": [1.0]})


def test_baselines_are_of_the_same_steps(results):
    assert figures(results, 0)[MEAN] == pytest.approx((0.5 + 1.5 + 1.0) / 3)
    assert figures(results, 0)[HELD] == pytest.approx((0.5 + 1.5 + 0.5) / 3)  # at a first step the mean
    assert figures(results, 1)[MEAN] == pytest.approx(2 / 3)  # always open
    assert results["relative"][MEAN]["value"] == pytest.approx((0.25 + 0.0 + 1.0) / (0.5 + 1.0 + 1.0))
    assert list(results["relative"]) == [MEAN, HELD]


def test_the_state_stands_beside_actions_that_are_positions():
    near, far = np.array([[0.5, 1, 1, 3], [0.9, 0, 1, 3]]), np.array([[-1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    results = score(comparison(PREDICTED, RECORDED, state=near), STATISTICS, NAMES)
    assert figures(results, 0)[STATE] == pytest.approx((0.0 + 1.0 + 0.1) / 3, abs=1e-6)
    assert STATE not in score(comparison(PREDICTED, RECORDED, state=far), STATISTICS, NAMES)["normalized"]


def test_dimensions_of_two_values_are_known_from_statistics():
    random = np.random.default_rng(0)
    columns = [random.normal(size=500), random.integers(0, 2, 500), random.choice([-1.0, 1.0], 500, p=[0.1, 0.9])]
    columns += [np.full(500, 2.0), random.choice([0.0, 0.5, 1.0], 500), random.integers(0, 2, 500)]
    entry = compute_statistics(np.stack(columns, axis=1).astype(np.float32), 5)["action"]
    assert Dimensions(entry).binary.tolist() == [False, True, True, False, False, True]
    assert Dimensions(entry).compared.tolist() == [True, False, False, False, True, False]


def test_without_a_dimension_to_scale_there_are_accuracies_alone():
    statistics = {name: values[1:2] for name, values in STATISTICS.items()}
    whole = comparison(PREDICTED, RECORDED)
    parts = {name: getattr(whole, name)[..., 1:2] for name in ("predicted", "recorded", "held")}
    results = score(comparison(**{**parts, "state": None}), statistics, ["gripper"])
    assert (results["normalized"], results["relative"], results["outside"]) == ({}, {}, 0.0)
    assert figures(results, 0)[POLICY] == pytest.approx(2 / 3)


def test_one_episode_has_no_interval_and_a_better_one_has_a_smaller_one():
    values = np.array([1.0, 3.0, 2.0, 2.0])[:, None, None]
    valid = np.ones((4, 1), bool)
    alone = EpisodeBootstrap(np.zeros(4, int), valid)
    assert alone.figures(alone.means(values)) == [{"value": 2.0, "interval": None}]
    two = EpisodeBootstrap(np.array([0, 1, 2, 2]), valid)
    low, high = two.figures(two.means(values))[0]["interval"]
    assert 1.0 <= low < 2.0 < high <= 3.0
    same = EpisodeBootstrap(np.array([0, 0, 1, 1]), valid)  # two episodes with one mean
    assert same.figures(same.means(values))[0]["interval"] == [2.0, 2.0]


@pytest.mark.parametrize("episodes", [5, 20])
def test_intervals_hold_the_truth_where_steps_of_an_episode_are_alike(episodes, monkeypatch):
    monkeypatch.setattr("gen_vla.evaluation.open_loop.scores.RESAMPLES", 400)
    random, held = np.random.default_rng(1), 0
    for _ in range(300):
        own = random.normal(0, 1, episodes)
        values = (10 + own[:, None] + random.normal(0, 0.3, (episodes, 8))).reshape(-1, 1, 1)
        bootstrap = EpisodeBootstrap(np.repeat(np.arange(episodes), 8), np.ones((len(values), 1), bool))
        low, high = bootstrap.figures(bootstrap.means(values))[0]["interval"]
        held += low <= 10 <= high
    assert 0.91 <= held / 300 <= 0.985
