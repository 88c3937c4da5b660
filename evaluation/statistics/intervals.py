"""95 % intervals of success rates, and of the difference between two.

Trials that share a layout (four colours of the robot, twenty looks of the table) tend to end alike. `clustered_share`
estimates how many independent trials they are worth, and takes Wilson's interval of that many; scipy's `binomtest` has
it for whole numbers only. The interval of a difference follows from those of the two shares and from the correlation
of the two estimates (Newcombe, 1998, method 10 of both papers; Zou, 2007), which is 0 unless both policies ran the
same trials.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Scored(NamedTuple):
    """A scored trial: trials of a `layout` may end alike; a share is the mean over parts of the mean in each."""

    layout: str
    part: str
    score: float


class ClusteredShare(NamedTuple):
    """A share over n trials of so many layouts, worth `effective` independent ones, with its 95 % interval."""

    share: float
    n: int
    layouts: int
    effective: float
    interval: tuple[float, float]


def wilson_interval(k: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Bounds of a success rate after k of n successes; k and n may be fractions."""
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"got {k} successes of {n}, expected 0 <= k <= n and n > 0")
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_share(trials: Sequence[Scored], weights: Sequence[float] | None = None) -> ClusteredShare:
    """The share of successes, with an interval that takes trials of one layout for a cluster; raises `ValueError`
    without a trial.

    The design effect is estimated with two layouts added, one that always succeeds and one that never does: otherwise
    the trials of a policy that never fails would look independent. Where every layout has one trial, and every part as
    many, the interval is Wilson's. `weights`, of each trial in the share, add up to 1; by default it is the mean over
    parts.
    """
    if not trials:
        raise ValueError("got no trials, expected at least one")
    weights = weights or mean_weights(trials)
    sums = _layout_sums(trials, weights)
    share = min(1.0, math.fsum(w * trial.score for w, trial in zip(weights, trials, strict=True)))
    count, squares = len(sums), math.fsum(w * w for w in weights)
    weight = 1 / count  # of an average layout, of which two are added
    smoothed = (share + weight) / (1 + 2 * weight)
    added = weight * weight * ((1 - smoothed) ** 2 + smoothed**2)
    spread = added + math.fsum((s - smoothed * w) ** 2 for w, s in sums.values())
    independent = smoothed * (1 - smoothed) * (squares + 2 * weight * weight * count / len(trials))
    effective = 1 / squares / max(1.0, spread / independent)
    return ClusteredShare(share, len(trials), count, effective, wilson_interval(share * effective, effective))


def mean_weights(trials: Sequence[Scored]) -> list[float]:
    """The weight of each trial in the mean over parts of the mean within each; they add up to 1."""
    sizes: dict[str, int] = defaultdict(int)
    for trial in trials:
        sizes[trial.part] += 1
    return [1 / (len(sizes) * sizes[trial.part]) for trial in trials]


def _layout_sums(trials: Sequence[Scored], weights: Sequence[float]) -> dict[str, tuple[float, float]]:
    sums: dict[str, tuple[float, float]] = {}
    for weight, trial in zip(weights, trials, strict=True):
        before, score = sums.get(trial.layout, (0.0, 0.0))
        sums[trial.layout] = before + weight, score + weight * trial.score
    return sums


def mean_interval(shares: Sequence[tuple[float, Sequence[float] | None]]) -> tuple[float, float] | None:
    """Bounds of the mean of independent shares, from each share and its bounds; `None` where one has no bounds."""
    known = [(share, bounds) for share, bounds in shares if bounds is not None]
    if not known or len(known) < len(shares):
        return None
    mean = math.fsum(share for share, _ in known) / len(known)
    below = math.sqrt(math.fsum((share - bounds[0]) ** 2 for share, bounds in known)) / len(known)
    above = math.sqrt(math.fsum((bounds[1] - share) ** 2 for share, bounds in known)) / len(known)
    return max(0.0, mean - below), min(1.0, mean + above)


def difference_interval(
    first: float,
    first_interval: Sequence[float],
    second: float,
    second_interval: Sequence[float],
    correlation: float = 0.0,
) -> tuple[float, float]:
    """Bounds of first - second, from the bounds of both and the correlation of the two estimates."""
    below, above = first - first_interval[0], first_interval[1] - first
    under, over = second - second_interval[0], second_interval[1] - second
    low = math.sqrt(max(0.0, below * below - 2 * correlation * below * over + over * over))
    high = math.sqrt(max(0.0, above * above - 2 * correlation * above * under + under * under))
    return max(-1.0, first - second - low), min(1.0, first - second + high)


def paired_correlation(first: Mapping[str, Scored], second: Mapping[str, Scored]) -> float:
    """The correlation of two shares by layout, over the trials that both policies ran: those of the same name.
    Newcombe's correction for continuity lowers a positive one a little, and so do trials that only one of them ran."""
    shared = [name for name in first if name in second]
    if not shared:
        return 0.0
    moves, shares = [], []
    for policy in (first, second):
        trials = [policy[name] for name in shared]
        sums = _layout_sums(trials, mean_weights(trials)).values()
        shares.append(math.fsum(score for _, score in sums))
        moves.append([score - shares[-1] * weight for weight, score in sums])
    spread = math.sqrt(math.fsum(m * m for m in moves[0]) * math.fsum(m * m for m in moves[1]))
    variance = math.sqrt(math.prod(max(0.0, share * (1 - share)) for share in shares))
    if spread < 1e-12 or variance < 1e-12:
        return 0.0
    found = math.fsum(a * b for a, b in zip(*moves, strict=True)) / spread
    if found > 0:
        found = max(0.0, found - 1 / (2 * len(shared) * variance))
    return found * len(shared) / math.sqrt(len(first) * len(second))


def sign_flip_p(differences: Sequence[int]) -> float:
    """Two-sided exact p of a permutation test that flips the sign of each layout's difference in successes; with -1, 0
    and 1 alone McNemar's exact test. scipy's `permutation_test` is exact for a dozen layouts only."""
    probabilities = {0: 1.0}  # of every sum
    for size in (abs(difference) for difference in differences if difference):
        flipped: dict[int, float] = defaultdict(float)
        for total, probability in probabilities.items():
            flipped[total + size] += probability / 2
            flipped[total - size] += probability / 2
        probabilities = flipped
    observed = abs(sum(differences))
    return min(1.0, math.fsum(p for total, p in probabilities.items() if abs(total) >= observed))
