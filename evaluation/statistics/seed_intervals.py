"""Intervals of a mean over training seeds, and of the difference between two such means.

Decides: the formulas. Refuses to know: which runs belong together (`report/seeds.py`), what was counted.

What is estimated is the share that a recipe would reach over ever more seeds and layouts. The mean of S seeds, all run
on the same L layouts, misses it for two reasons, whose variances are added:

    seeds    s^2 / S, where s is the standard deviation of the seeds' own shares; S - 1 degrees of freedom
    trials   of all seeds' trials together, clustered by layout whoever ran it: seeds that fail in the same layouts
             tell little more than one of them (`intervals.clustered_share`); L - 1 degrees of freedom

The degrees of freedom of the sum are Satterthwaite's, the interval has Wilson's form with Student's t. What chance
gave a single seed is in both parts, so that the interval holds the truth more often than 95 times in 100 where seeds
hardly differ, and less often where two or three of them differ widely and lie near 0 or 1
(`tests/support/seed_coverage.py` counts). A bootstrap over so few seeds does worse: of three it holds the truth two
times in three.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from gen_vla.evaluation.statistics.intervals import Scored, clustered_share, mean_weights, wilson_interval


Part = tuple[float, float]  # variance, degrees of freedom
Z = 1.959964


class SeedMean(NamedTuple):
    """The mean of the shares of one or more seeds.

    Attributes:
        shares: each seed's.
        effective: how many independent trials those of all seeds are worth.
        layouts: that they were run on.
    """

    shares: tuple[float, ...]
    effective: float
    layouts: float

    @property
    def share(self) -> float:
        """The mean over seeds."""
        return math.fsum(self.shares) / len(self.shares)

    @property
    def seeds(self) -> Part:
        """Variance of the mean that the choice of seeds brings; of one seed it is not known, and taken for none."""
        return _mean_variance(self.shares) if len(self.shares) > 1 else (0.0, math.inf)

    @property
    def trials(self) -> Part:
        """Variance of the mean that the choice of layouts brings; never 0, as if two layouts more had been run."""
        smoothed = (self.share + 1 / self.layouts) / (1 + 2 / self.layouts)
        return smoothed * (1 - smoothed) / self.effective, max(1.0, self.layouts - 1)

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds at 95 %; about trials alone where there is one seed."""
        variance, degrees = add_parts([self.seeds, self.trials])
        worth = self.trials[0] * self.effective / variance
        return wilson_interval(self.share * worth, worth, students_t(degrees))


def mean_over_seeds(runs: Sequence[Sequence[Scored]]) -> SeedMean:
    """Of the trials of each seed; trials of one layout are a cluster in all of them."""
    if not runs:
        raise ValueError("got no seeds, expected the trials of at least one")
    weights = [weight / len(runs) for run in runs for weight in mean_weights(run)]
    together = clustered_share([trial for run in runs for trial in run], weights)
    return SeedMean(tuple(clustered_share(run).share for run in runs), together.effective, together.layouts)


def mean_without_trials(shares: Sequence[float], intervals: Sequence[tuple[float, float]]) -> SeedMean:
    """Of shares and their intervals alone: all seeds together are taken to tell no more about layouts than one."""
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
    """First minus second: bounds at 95 %, and the two-sided p of "they do not differ" (Welch's t with trials in it).

    A side of one seed is that run, not its recipe.

    Args:
        correlation: of the two estimates, from the trials that both ran.
        same_seeds: both sides are of the same policies in the same order (a policy in two modes).
    """
    covariance = correlation * math.sqrt(first.trials[0] * second.trials[0])
    trials = max(1e-9, first.trials[0] + second.trials[0] - 2 * covariance)
    parts = [(trials, min(first.trials[1], second.trials[1]))]
    if same_seeds:
        parts.append(_mean_variance([a - b for a, b in zip(first.shares, second.shares, strict=True)]))
    else:
        parts += [first.seeds, second.seeds]
    variance, degrees = add_parts(parts)
    difference, error = first.share - second.share, math.sqrt(variance)
    half = students_t(degrees) * error
    bounds = max(-1.0, difference - half), min(1.0, difference + half)
    return bounds, students_p(abs(difference) / error, degrees)


def add_parts(parts: Sequence[Part]) -> Part:
    """The sum of independent variances, with Satterthwaite's degrees of freedom."""
    total = math.fsum(variance for variance, _ in parts)
    below = math.fsum(variance**2 / degrees for variance, degrees in parts)
    return total, max(1.0, total**2 / below) if below else math.inf


def _mean_variance(values: Sequence[float]) -> Part:
    return float(np.var(values, ddof=1)) / len(values), len(values) - 1


def students_p(t: float, degrees: float) -> float:
    """The chance of more than +-t under Student's t with so many degrees of freedom."""
    return float(2 * stats.t.sf(t, degrees))


def students_t(degrees: float, p: float = 0.05) -> float:
    """What Student's t exceeds to both sides with the chance `p`."""
    return float(stats.t.isf(p / 2, degrees))
