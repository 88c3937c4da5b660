"""Intervals of shares and of differences against published values, and what trials of one layout are worth."""

import random

import pytest

from gen_vla.evaluation.statistics.intervals import (
    Scored,
    clustered_share,
    difference_interval,
    mean_interval,
    paired_correlation,
    sign_flip_p,
    wilson_interval,
)


def test_wilsons_interval():
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(45, 50) == pytest.approx((0.7864, 0.9565), abs=1e-4)
    assert wilson_interval(10, 10)[1] == 1.0


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts(k, n):
    with pytest.raises(ValueError, match=f"got {k} successes of {n}"):
        wilson_interval(k, n)


@pytest.mark.parametrize(("solved", "layouts", "times"), [(45, 50, 1), (0, 75, 4), (30, 75, 4), (75, 75, 4)])
def test_layouts_whose_trials_end_alike_count_once(solved, layouts, times):
    """With one trial a layout the interval is Wilson's."""
    found = clustered_share([Scored(str(i), str(t), float(i < solved)) for i in range(layouts) for t in range(times)])
    assert (found.n, found.layouts) == (layouts * times, layouts)
    assert found.interval == pytest.approx(wilson_interval(solved, layouts))


def test_layouts_whose_trials_are_independent_count_almost_as_often_as_they_were_run():
    rng = random.Random(0)
    found = clustered_share([Scored(str(i), str(t), float(rng.random() < 0.6)) for i in range(200) for t in range(4)])
    assert 600 < found.effective <= 800


def test_coverage_where_looks_repeat_layouts():
    """50 layouts in 20 looks, each layout with a rate of its own around 0.8; correlation 0.3 within a layout."""
    rng = random.Random(0)
    held, naive = 0, 0
    for _ in range(100):
        rates = [rng.betavariate(0.8 * 7 / 3, 0.2 * 7 / 3) for _ in range(50)]
        drawn = [Scored(str(i), str(t), float(rng.random() < p)) for i, p in enumerate(rates) for t in range(20)]
        low, high = clustered_share(drawn).interval
        held += low <= 0.8 <= high
        low, high = wilson_interval(sum(trial.score for trial in drawn), 1000)
        naive += low <= 0.8 <= high
    assert held >= 92 > 65 >= naive


def test_a_mean_of_independent_shares():
    found = mean_interval([(0.5, (0.4, 0.6)), (0.9, (0.6, 1.0))])
    assert found == pytest.approx((0.7 - 0.1**0.5 / 2, 0.7 + 0.02**0.5 / 2))
    assert mean_interval([(0.5, (0.4, 0.6)), (0.9, None)]) is None


def test_a_share_is_the_mean_over_parts():
    uneven = [Scored("0", "a", 1.0), Scored("1", "b", 0.0), Scored("2", "b", 0.0), Scored("3", "b", 0.0)]
    assert clustered_share(uneven).share == pytest.approx(0.5)
    assert clustered_share(uneven, [0.25] * 4).share == pytest.approx(0.25)
    with pytest.raises(ValueError, match="got no trials"):
        clustered_share([])


def test_published_intervals_of_unpaired_differences():
    """Newcombe (1998), Statistics in Medicine 17, 873-890, table II, method 10, (a) and (b)."""
    found = difference_interval(56 / 70, wilson_interval(56, 70), 48 / 80, wilson_interval(48, 80))
    assert found == pytest.approx((0.0524, 0.3339), abs=1e-4)
    found = difference_interval(0.9, wilson_interval(9, 10), 0.3, wilson_interval(3, 10))
    assert found == pytest.approx((0.1705, 0.8090), abs=1e-4)


def pairs(both, first, second, neither):
    """Two policies by how many layouts each solves alone."""
    ends = [(1.0, 1.0)] * both + [(1.0, 0.0)] * first + [(0.0, 1.0)] * second + [(0.0, 0.0)] * neither
    return [{str(i): Scored(str(i), "", end[which]) for i, end in enumerate(ends)} for which in (0, 1)]


def compared(first, second):
    shares = [clustered_share(list(policy.values())) for policy in (first, second)]
    correlation = paired_correlation(first, second)
    bounds = difference_interval(shares[0].share, shares[0].interval, shares[1].share, shares[1].interval, correlation)
    return correlation, bounds


def test_paired_differences_worked_out_by_hand():
    """The correlation is (59 * 80 - 6 * 16 - 161 / 2) / sqrt(65 * 96 * 75 * 86), the one of 1 7 1 12 none."""
    correlation, bounds = compared(*pairs(59, 6, 16, 80))
    assert correlation == pytest.approx(4543.5 / 6344.13, abs=1e-5)
    assert bounds == pytest.approx((-0.1186, -0.0046), abs=1e-4)
    correlation, bounds = compared(*pairs(1, 1, 7, 12))
    assert correlation == 0
    assert bounds == pytest.approx((-0.507, -0.026), abs=1e-3)


def test_paired_trials_narrow_the_interval_and_unpaired_ones_widen_it():
    first, second = pairs(30, 8, 1, 11)
    correlation, (low, high) = compared(first, second)
    alone, (wide_low, wide_high) = compared(first, {f"other {name}": trial for name, trial in second.items()})
    assert alone == 0 < correlation
    assert wide_low < 0 < low < high < wide_high
    half = {name: trial for name, trial in second.items() if int(name) % 2}
    assert 0 < paired_correlation(first, half) < correlation
    assert paired_correlation(first, {name: Scored(name, "", 1.0) for name in first}) == 0


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, *[-1] * 7, *[0] * 13], 0.0703),  # McNemar: 2 * (1 + 8) / 2 ** 8
        ([1] * 6 + [-1] * 16, 0.0525),
        ([0, 0], 1),
        ([4], 1),  # four trials of one layout: as likely the other way round
        ([4, 4, 4], 0.25),
        ([4, 1, -1], 0.75),  # 6, 4, 4, 2 and their opposites against 4
    ],
)
def test_layouts_are_flipped_whole(differences, p):
    assert sign_flip_p(differences) == pytest.approx(p, abs=1e-4)
