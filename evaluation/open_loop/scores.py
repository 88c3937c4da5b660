"""How far a policy's actions are from recorded ones, beside baselines that need no policy.

N steps of E episodes, chunks of T, D dimensions. Errors are of the steps of a chunk that lie within the episode.

    error       mean absolute error in the data set's units, per dimension
    accuracy    of dimensions that take two values alone: the share on the right side of their middle
    normalized  mean absolute error (l1) in [-1, 1], over all other dimensions that ever change;
                recorded values outside the range that is scaled (q01..q99) count as clipped to it, as in training

Beside the policy:

    mean action       of the training data
    last action       the recorded one of the step before, held for the whole chunk; at the first step the mean
    state             held in the same way, where it is nearer to the actions than their mean is: they are positions
    nearest writable  the recorded action clipped to that range: the error in units that no policy can avoid

Intervals are of a bootstrap over episodes, since steps of one episode are alike. For few episodes its percentiles are
moved outwards as Student's t does, since they would be too narrow (Hesterberg, 2015).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from gen_vla.processors import normalize_actions
from gen_vla.processors.action_statistics import action_bounds


POLICY, MEAN, HELD, STATE, NEAREST = "policy", "mean action", "last action", "state", "nearest writable"
RESAMPLES, SEED = 2000, 0


@dataclass(frozen=True)
class Comparison:
    predicted: np.ndarray  # float32 [N, T, D] in units; relative to the state where the statistics are
    recorded: np.ndarray  # the same
    valid: np.ndarray  # bool [N, T], within the episode
    held: np.ndarray  # float32 [N, D], the recorded action of the step before; NaN where there is none
    state: np.ndarray | None  # float32 [N, D], NaN where there is none; None where it has another width
    episode: np.ndarray  # int64 [N], the place of each step's episode among those read
    place: np.ndarray  # int64 [N], of each step in its episode


class EpisodeBootstrap:
    """Means over the valid steps of E episodes, and of episodes drawn again with replacement `RESAMPLES` times, of
    `episode` int64 [N] and `valid` bool [N, T]."""

    def __init__(self, episode: np.ndarray, valid: np.ndarray):
        read, self.episode = np.unique(episode, return_inverse=True)
        self.episodes, self.valid = len(read), valid
        even = np.full(self.episodes, 1 / self.episodes)
        drawn = np.random.default_rng(SEED).multinomial(self.episodes, even, RESAMPLES)
        self.weights = np.concatenate([np.ones((1, self.episodes)), drawn])
        self.counts = self.weights @ self._sums(np.ones((*valid.shape, 1)))

    def means(self, values: np.ndarray) -> np.ndarray:
        """Of values [N, T, K]: float64 [1 + RESAMPLES, K], the first of the episodes as they are."""
        return self.weights @ self._sums(values) / self.counts

    def figures(self, means: np.ndarray) -> list[dict[str, Any]]:
        """Each column's first value with its bounds at 95 %, `None` for a single episode."""
        values = means[0].tolist()
        if self.episodes < 2:
            return [{"value": value, "interval": None} for value in values]
        spread = (self.episodes / (self.episodes - 1)) ** 0.5 * stats.t.isf(0.025, self.episodes - 1)
        level = float(stats.norm.sf(spread))
        bounds = np.quantile(means[1:], (level, 1 - level), axis=0).T.tolist()
        return [{"value": value, "interval": pair} for value, pair in zip(values, bounds, strict=True)]

    def _sums(self, values: np.ndarray) -> np.ndarray:
        """Values [N, T, K] summed over the valid steps of each episode: float64 [E, K]."""
        sums = np.zeros((self.episodes, values.shape[-1]))
        np.add.at(sums, self.episode, np.where(self.valid[..., None], values, 0.0).sum(axis=1))
        return sums


class Dimensions:
    """What the model's statistics of a data set (`norm_stats[key]["action"]`) say of its D dimensions."""

    def __init__(self, statistics: dict[str, Any]):
        names = ("min", "max", "mean", "std", "q01", "q99")
        if missing := [name for name in names if statistics.get(name) is None]:
            raise ValueError(
                f"got action statistics without {', '.join(missing)}, expected {', '.join(names)}: they tell which "
                "dimensions are compared; compute_statistics(actions, num_trajectories) makes them of the data"
            )
        least, most, mean, std = (np.asarray(statistics[name], np.float64) for name in names[:4])
        self.statistics, self.mean = {**statistics, "relative": None}, mean  # actions are relative already
        # Float64 [D] twice, and bool [D]: whether they are scaled, and cannot be written outside.
        self.low, self.high, self.scaled = action_bounds(statistics, len(mean))
        # The variance is as large as two bounds allow only where all values are one or the other.
        extreme = np.abs(std**2 - (most - mean) * (mean - least)) <= 1e-6 * (most - least) ** 2
        self.binary = ~self.scaled | (extreme & (least < most))
        self.middle = np.where(self.scaled, (least + most) / 2, 0.5)  # tells the two values of a binary one apart
        self.compared = ~self.binary & (self.low < self.high)  # what normalized errors are of

    def writable(self, actions: np.ndarray) -> np.ndarray:
        """Actions [..., D] with each scaled dimension clipped to its range, float64."""
        return np.where(self.scaled, np.clip(actions, self.low, self.high), actions)

    def outside(self, actions: np.ndarray) -> np.ndarray:
        """Which values of actions [..., D] cannot be written; bool, not more exact than float32 is."""
        close = 1e-6 * (self.high - self.low) + 1e-6 * np.abs(actions)
        return np.abs(self.writable(actions) - actions) > close

    def normalized(self, predicted: np.ndarray, recorded: np.ndarray) -> np.ndarray:
        """Absolute errors [N, T, K] in [-1, 1] of the dimensions that are compared."""
        one, other = (
            normalize_actions(actions, self.statistics).astype(np.float64) for actions in (predicted, recorded)
        )
        return np.abs(one - other)[..., self.compared]

    def measured(self, predicted: np.ndarray, recorded: np.ndarray) -> np.ndarray:
        """[N, T, D]: absolute errors in units, or 1 where a binary dimension is on the right side, else 0."""
        right = (predicted >= self.middle) == (recorded >= self.middle)
        return np.where(self.binary, right, np.abs(predicted - recorded.astype(np.float64)))


def with_baselines(found: Comparison, known: Dimensions) -> dict[str, np.ndarray]:
    """The actions of the policy and of what it is compared with: float [N, T, D] in units, by name."""
    shape = found.recorded.shape
    mean = np.broadcast_to(known.mean, shape)

    def held(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.where(np.isfinite(values), values, known.mean)[:, None], shape)

    def distance(values: np.ndarray) -> float:
        return known.normalized(values, found.recorded)[found.valid].sum()

    named = {POLICY: found.predicted, MEAN: mean, HELD: held(found.held)}
    if found.state is not None and distance(held(found.state)) < distance(mean):
        named[STATE] = held(found.state)
    return {**named, NEAREST: known.writable(found.recorded)}


def score(found: Comparison, statistics: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """All figures, each `{"value", "interval"}`, by the model's statistics of the data set
    (`norm_stats[key]["action"]`).

    Returns:
        `n`, `episodes`, `values` (compared per dimension), `outside` (share of the scaled recorded values that no
        policy can write); `normalized` {name: {"l1": figure}}; `relative` {baseline: figure}, the
        policy's l1 divided by the baseline's; `dimensions` [{"name", "measure", "outside", name: figure}];
        `chunk_steps` [{"step", "values", "l1": {name: value}, "dimensions": [D] of the policy}].
    """
    known = Dimensions(statistics)
    bootstrap, named = EpisodeBootstrap(found.episode, found.valid), with_baselines(found, known)
    outside = known.outside(found.recorded)[found.valid]
    scaled = outside[:, known.scaled]
    errors = {}  # normalized; the nearest writable action has none, since recorded values count as clipped
    if known.compared.any():
        errors = {name: known.normalized(of, found.recorded) for name, of in named.items() if name != NEAREST}
    drawn = {name: bootstrap.means(of.mean(axis=-1, keepdims=True)) for name, of in errors.items()}
    relative = {name: drawn[POLICY] / np.maximum(of, 1e-12) for name, of in drawn.items()}
    figures = {
        name: bootstrap.figures(bootstrap.means(known.measured(values, found.recorded)))
        for name, values in named.items()
    }
    return {
        "n": len(found.episode),
        "episodes": bootstrap.episodes,
        "values": int(found.valid.sum()),
        "outside": float(scaled.mean()) if scaled.size else 0.0,
        "normalized": {name: {"l1": bootstrap.figures(means)[0]} for name, means in drawn.items()},
        "relative": {name: bootstrap.figures(of)[0] for name, of in relative.items() if name != POLICY},
        "dimensions": [
            {
                "name": name,
                "measure": "accuracy" if known.binary[dim] else "error",
                "outside": float(outside[:, dim].mean()),
                **{of: values[dim] for of, values in figures.items()},
            }
            for dim, name in enumerate(names)
        ],
        "chunk_steps": [
            {
                "step": step,
                "values": int(valid.sum()),
                "l1": {name: float(of[valid, step].mean()) for name, of in errors.items()},
                "dimensions": known.measured(found.predicted, found.recorded)[valid, step].mean(axis=0).tolist(),
            }
            for step, valid in enumerate(found.valid.T)
            if valid.any()  # in any episode
        ],
    }
