"""Means over seeds: sums worked out by hand, and how often the interval covers the truth."""

import math

import pytest
from scipy import stats
from seed_coverage import CASES, alarms, coverage

from gen_vla.evaluation.statistics.intervals import Scored, clustered_share, wilson_interval
from gen_vla.evaluation.statistics.seed_intervals import (
    SeedMean,
    add_variances,
    mean_over_seeds,
    mean_without_trials,
    seed_difference,
    trials_worth,
)


def run(won, layouts=50):
    """One trial in each layout, the first of which succeed."""
    return [Scored(str(i), "", float(i < won)) for i in range(layouts)]


def test_three_seeds_worked_out_by_hand():
    """Shares .7, .8, .9: s = .1, so that the seeds' part is .01 / 3, with two degrees of freedom."""
    mean = mean_over_seeds([run(35), run(40), run(45)])
    assert mean.share == pytest.approx(0.8)
    assert mean.seeds == (pytest.approx(0.01 / 3), 2)
    variance = (0.8 + 0.02) / 1.04 * (1 - (0.8 + 0.02) / 1.04) / mean.effective
    assert mean.trials == (pytest.approx(variance), 49)
    total = 0.01 / 3 + variance
    worth = variance * mean.effective / total
    degrees = total**2 / ((0.01 / 3) ** 2 / 2 + variance**2 / 49)
    assert mean.interval == pytest.approx(wilson_interval(0.8 * worth, worth, float(stats.t.isf(0.025, degrees))))
    low, high = clustered_share([trial for won in (35, 40, 45) for trial in run(won)]).interval
    assert mean.interval[0] < low - 0.05 < high < mean.interval[1]


def test_seeds_that_fail_in_the_same_layouts_say_no_more_than_one():
    same = mean_over_seeds([run(40)] * 3)
    mixed = mean_over_seeds([run(40), run(50)[10:] + run(40)[40:], run(40)[::-1]])
    assert same.layouts == 50
    assert same.effective == pytest.approx(50)
    assert mixed.effective > same.effective
    assert same.interval == pytest.approx(wilson_interval(40, 50), abs=0.02)


@pytest.mark.parametrize("won", [0, 50])
def test_seeds_that_all_fail_or_all_succeed_are_not_certain(won):
    low, high = mean_over_seeds([run(won)] * 3).interval
    assert low <= won / 50 <= high
    assert 0.05 < high - low < 0.12
    assert (low, high) == pytest.approx(wilson_interval(won, 50), abs=0.01)


def test_a_mean_of_no_seeds_is_refused():
    with pytest.raises(ValueError, match="got no seeds, expected the trials of at least one"):
        mean_over_seeds([])


@pytest.mark.parametrize(("won", "n"), [(45, 50), (50, 50), (0, 20), (25, 50)])
def test_trials_worth_is_the_inverse_of_wilsons_interval(won, n):
    assert trials_worth(won / n, wilson_interval(won, n)) == pytest.approx(n)


def test_without_trials_the_seeds_are_taken_to_be_alike():
    bounds = wilson_interval(40, 50)
    alone = mean_without_trials([0.8, 0.8, 0.8], [bounds] * 3)
    assert alone.effective == pytest.approx(50)
    assert alone.interval == pytest.approx(bounds, abs=0.02)
    assert mean_without_trials([0.5], [(0.0, 1.0)]).interval[0] >= 0


def test_a_difference_is_welchs_with_the_variance_of_trials():
    """Shares .8 and .6, each with .0001 of the seeds and trials as many as 1600 independent ones."""
    first, second = SeedMean((0.79, 0.81), 1600.0, 1600.0), SeedMean((0.59, 0.61), 1600.0, 1600.0)
    trials = first.trials[0] + second.trials[0]
    variance, degrees = add_variances([(trials, 1599), (0.0001, 1), (0.0001, 1)])
    bounds, p = seed_difference(first, second)
    half = stats.t.isf(0.025, degrees) * math.sqrt(variance)
    assert bounds == pytest.approx((0.2 - half, 0.2 + half))
    assert p == pytest.approx(2 * stats.t.sf(0.2 / math.sqrt(variance), degrees))
    assert p < 0.05


def test_correlated_trials_narrow_a_difference_and_one_run_has_no_variance_of_seeds():
    first, second = mean_over_seeds([run(35), run(36)]), mean_over_seeds([run(30), run(31)])
    wide, narrow = seed_difference(first, second)[0], seed_difference(first, second, correlation=0.8)[0]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    against_one = seed_difference(first, mean_over_seeds([run(30)]))[0]
    assert against_one[0] == pytest.approx(2 * 0.11 - against_one[1])  # symmetric around .71 - .60


def test_the_same_seeds_in_two_modes_are_paired():
    """Each seed loses .2, however much seeds differ."""
    usual, masked = mean_over_seeds([run(25), run(35), run(45)]), mean_over_seeds([run(15), run(25), run(35)])
    unpaired, _ = seed_difference(usual, masked)
    paired, p = seed_difference(usual, masked, correlation=0.7, same_seeds=True)
    assert unpaired[0] < 0 < paired[0] < 0.2 < paired[1]
    assert p < 0.05


@pytest.mark.parametrize("looks", [1, 3])
def test_coverage_of_three_seeds_beside_trials_alone_and_a_bootstrap(looks):
    ours, trials, bootstrap, width = coverage(*CASES["differ"], 3, times=80, looks=looks)
    assert ours >= 0.88 > 0.85 >= max(trials, bootstrap)
    assert width < 0.45


def test_a_recipe_rarely_differs_from_itself():
    assert alarms(*CASES["differ"], (3, 3), times=80) <= 0.1
