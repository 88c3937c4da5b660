"""How often the interval of a mean over seeds holds the truth, in made-up results.

`python tests/support/seed_coverage.py`.

Seeds, layouts and their meetings shift the log-odds of a success, normally distributed; all seeds run the same
layouts. The truth is the mean over ever more of all three. Prints the table that docs/how_to/compare.md cites.
"""

import math
import sys

import numpy as np

from gen_vla.evaluation.statistics.intervals import Scored, clustered_share, paired_correlation
from gen_vla.evaluation.statistics.seed_intervals import SeedMean, mean_over_seeds, seed_difference


LAYOUTS, OWN = 50, 0.5  # layouts, and how much they differ from seed to seed
CASES = {"hardly differ": (1.5, 0.1), "differ": (1.5, 0.6), "differ near 1": (3.0, 0.7), "differ widely": (2.5, 1.5)}


def true_share(odds, seeds):
    """Over many seeds and layouts."""
    drawn = np.random.default_rng(0).normal(odds, math.sqrt(seeds**2 + 1 + OWN**2), 1_000_000)
    return float((1 / (1 + np.exp(-drawn))).mean())


def draw_runs(rng, odds, seeds, count, hardness, looks=1):
    """Trials of so many seeds on layouts of a hardness each, each layout in so many looks."""
    shifts = rng.normal(0, seeds, (count, 1, 1)) + rng.normal(0, OWN, (count, LAYOUTS, 1))
    won = rng.random((count, LAYOUTS, looks)) < 1 / (1 + np.exp(-(odds + shifts + hardness[:, None])))
    places = [(i, k) for i in range(LAYOUTS) for k in range(looks)]
    return [[Scored(str(i), "", float(run[i, k])) for i, k in places] for run in won]


def bootstrap(rng, shares):
    """The percentile bootstrap over seeds."""
    means = rng.choice(shares, (500, len(shares))).mean(axis=1)
    return np.quantile(means, 0.025), np.quantile(means, 0.975)


def coverage(odds, seeds, count, times, looks=1):
    """Shares of `times` intervals that hold the truth: ours, of all trials as if of one run, of a bootstrap of seeds;
    and our mean width.
    """
    rng, truth = np.random.default_rng(1), true_share(odds, seeds)
    held, width = np.zeros(3), 0.0
    for _ in range(times):
        runs = draw_runs(rng, odds, seeds, count, rng.normal(0, 1, LAYOUTS), looks)
        mean = mean_over_seeds(runs)
        trials = clustered_share([trial for run in runs for trial in run]).interval
        held += [low <= truth <= high for low, high in (mean.interval, trials, bootstrap(rng, mean.shares))]
        width += mean.interval[1] - mean.interval[0]
    return *(held / times), width / times


def alarms(odds, seeds, counts, times):
    """Share of comparisons of a recipe with itself, by other seeds, that find a difference at 5 %."""
    rng, found = np.random.default_rng(2), 0
    for _ in range(times):
        hardness = rng.normal(0, 1, LAYOUTS)
        sides: list[tuple[SeedMean, dict[str, Scored]]] = []
        for count in counts:
            runs = draw_runs(rng, odds, seeds, count, hardness)
            means = {str(i): Scored(str(i), "", sum(run[i].score for run in runs) / count) for i in range(LAYOUTS)}
            sides.append((mean_over_seeds(runs), means))
        (first, one), (second, other) = sides
        _, p = seed_difference(first, second, paired_correlation(one, other))
        found += p < 0.05
    return found / times


def print_table(times):
    """Markdown."""
    print("| seeds | that | holds the truth | mean width | trials alone | bootstrap of seeds | false alarms |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for count in (2, 3, 5):
        for name, (odds, seeds) in CASES.items():
            ours, trials, resampled, width = coverage(odds, seeds, count, times)
            false = alarms(odds, seeds, (count, count), times)
            shown = [f"{100 * share:.0f} %" for share in (ours, width, trials, resampled, false)]
            print("|", " | ".join([str(count), name, *shown]), "|")


if __name__ == "__main__":
    print_table(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
