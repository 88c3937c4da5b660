"""Intervals of a mean over training seeds, and of the difference between two such means.

The mean of S seeds, all run on the same L layouts, estimates what a recipe reaches over all seeds and layouts. Two
variances are added:

    seeds    s^2 / S, where s is the standard deviation of the seeds' shares; S - 1 degrees of freedom
    trials   of all seeds' trials together, clustered by layout whoever ran it (`intervals.clustered_share`); L - 1

The degrees of freedom of the sum are Satterthwaite's, the interval has Wilson's form with Student's t; scipy's
`ttest_ind` (Welch) has no place for the variance of the trials. The luck of a single run is in both variances;
`tests/support/seed_coverage.py` counts what that does to the coverage.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from gen_vla.evaluation.statistics.intervals import Scored, clustered_share, mean_weights, wilson_interval


Variance = tuple[float, float]  # and its degrees of freedom
Z = 1.959964


class SeedMean(NamedTuple):
    """The mean of the `shares` of one or more seeds; `effective` is how many independent trials those of all are
    worth, on so many `layouts`."""

    shares: tuple[float, ...]
    effective: float
    layouts: float

    @property
    def share(self) -> float:
        return math.fsum(self.shares) / len(self.shares)

    @property
    def seeds(self) -> Variance:
        """Variance of the mean due to the choice of seeds; unknown for one seed, and taken for 0."""
        return mean_variance(self.shares) if len(self.shares) > 1 else (0.0, math.inf)

    @property
    def trials(self) -> Variance:
        """Variance of the mean due to the choice of layouts, never 0: as if two more layouts had been run."""
        smoothed = (self.share + 1 / self.layouts) / (1 + 2 / self.layouts)
        return smoothed * (1 - smoothed) / self.effective, max(1.0, self.layouts - 1)

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds at 95 %; for one seed they are about trials alone."""
        variance, degrees = add_variances([self.seeds, self.trials])
        worth = self.trials[0] * self.effective / variance
        return wilson_interval(self.share * worth, worth, float(stats.t.isf(0.025, degrees)))


def mean_over_seeds(runs: Sequence[Sequence[Scored]]) -> SeedMean:
    """From the trials of each seed; trials of one layout are a cluster in all of them."""
    if not runs:
        raise ValueError("got no seeds, expected the trials of at least one")
    weights = [weight / len(runs) for run in runs for weight in mean_weights(run)]
    together = clustered_share([trial for run in runs for trial in run], weights)
    return SeedMean(tuple(clustered_share(run).share for run in runs), together.effective, together.layouts)


def mean_without_trials(shares: Sequence[float], intervals: Sequence[tuple[float, float]]) -> SeedMean:
    """From shares and their intervals alone: all seeds together are taken to say no more about layouts than one."""
    worths = [trials_worth(share, bounds) for share, bounds in zip(shares, intervals, strict=True)]
    worth = math.fsum(worths) / len(worths)
    return SeedMean(tuple(shares), worth, max(1.0, worth))


def trials_worth(share: float, bounds: tuple[float, float]) -> float:
    """Of how many independent trials Wilson's interval is as wide as these bounds."""
    width = max(1e-6, bounds[1] - bounds[0]) ** 2
    linear = 2 * width * Z**2 - 4 * Z**2 * share * (1 - share)
    return (-linear + math.sqrt(linear**2 + 4 * width * Z**4 * max(0.0, 1 - width))) / (2 * width) or 1.0


def seed_difference(
    first: SeedMean, second: SeedMean, correlation: float = 0.0, same_seeds: bool = False
) -> tuple[tuple[float, float], float]:
    """First minus second: bounds at 95 %, and the two-sided p (Welch's t with the variance of trials in it). A side of
    one seed is that run, not its recipe.

    Args:
        correlation: of the two estimates, from the trials that both ran.
        same_seeds: both sides are the same policies in the same order (a policy in two modes).
    """
    covariance = correlation * math.sqrt(first.trials[0] * second.trials[0])
    trials = max(1e-9, first.trials[0] + second.trials[0] - 2 * covariance)
    parts = [(trials, min(first.trials[1], second.trials[1]))]
    if same_seeds:
        parts.append(mean_variance([a - b for a, b in zip(first.shares, second.shares, strict=True)]))
    else:
        parts += [first.seeds, second.seeds]
    variance, degrees = add_variances(parts)
    difference, error = first.share - second.share, math.sqrt(variance)
    half = float(stats.t.isf(0.025, degrees)) * error
    bounds = max(-1.0, difference - half), min(1.0, difference + half)
    return bounds, float(2 * stats.t.sf(abs(difference) / error, degrees))


def add_variances(parts: Sequence[Variance]) -> Variance:
    total = math.fsum(variance for variance, _ in parts)
    below = math.fsum(variance**2 / degrees for variance, degrees in parts)
    return total, max(1.0, total**2 / below) if below else math.inf


def mean_variance(values: Sequence[float]) -> Variance:
    return float(np.var(values, ddof=1)) / len(values), len(values) - 1
