"""Is one policy better than another? Differences of figures, with intervals, and a test where trials are paired.

Decides: which figures may be compared (of two models in the same mode, of one model in two), and what a comparison
says. Refuses to know: the formulas (`intervals.py`), where trials are kept (`report/trials.py`), tables.

    difference   one minus the other, of the figures as they are shown
    interval     95 %: of a pair where both ran the same trials, else of strangers
    p            of a pair: exact, over layouts; with one trial a layout it is McNemar's test

All of this is about trials. What another training run would have given, only a mean over seeds says: where a side is
one, the interval and p have in them how much its seeds differ (`seed_intervals.py`).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gen_vla.evaluation.report.figures import Figure
from gen_vla.evaluation.report.trials import Cell, Trials, read_trials
from gen_vla.evaluation.statistics.intervals import (
    Scored,
    clustered_share,
    difference_interval,
    paired_correlation,
    sign_flip_p,
)
from gen_vla.evaluation.statistics.seed_intervals import (
    SeedMean,
    mean_over_seeds,
    mean_without_trials,
    seed_difference,
)


Difference = dict[str, Any]
ROUNDED = 2e-3  # figures are written with four decimals, means of them with fewer
EXPLANATION = (
    "Differences are in percentage points, this row's minus the other's, with 95 % intervals: of pairs where both ran "
    "the same trials (p is exact, over layouts: McNemar's test where a layout has one trial), otherwise of strangers. "
    "They are about trials, not about training runs, of which a side has one where no seeds are named. Where "
    "they are, interval and p are Welch's, with the variance of trials in them, and a side of one seed is that run, "
    "not its recipe. All are about one cell at a time: where nothing differs, one cell in twenty looks as if it did."
)


class TrialFiles:
    """The trials behind figures, each file read once.

    Args:
        paths: result files.
    """

    def __init__(self, paths: Sequence[Path]):
        self._files: dict[str, dict[Cell, Trials]] = {str(path): read_trials(path) for path in paths}

    def of(self, figure: Figure) -> Trials:
        """The trials that a figure was made from; empty if there are none, or the ones there are do not give it.

        Of a mean over seeds: each trial with its mean score.
        """
        if figure.get("seeds"):
            return averaged([self.of(run) for run in figure["seeds"]])
        trials = self._files.get(figure["source"], {}).get(Cell(figure["mode"], figure["task"]), {})
        if not trials or len(trials) != figure["n"] or figure["value"] is None:
            return {}
        same = abs(clustered_share(list(trials.values())).share - figure["value"]) < ROUNDED
        return trials if same else {}


def averaged(runs: Sequence[Trials]) -> Trials:
    """Each trial with its mean score over the runs that have it; empty if a run has none."""
    scores: dict[str, list[Scored]] = defaultdict(list)
    for name, trial in ((name, trial) for run in runs if all(runs) for name, trial in run.items()):
        scores[name].append(trial)
    return {name: of[0]._replace(score=sum(trial.score for trial in of) / len(of)) for name, of in scores.items()}


def seed_mean_of(figure: Figure, files: TrialFiles) -> SeedMean | None:
    """The mean over the seeds of a figure, or the one run that it is; `None` for what is no share, and if nothing says
    how sure a run's is.
    """
    runs = figure.get("seeds") or [figure]
    trials = [files.of(run) for run in runs]
    if all(trials):
        return mean_over_seeds([list(run.values()) for run in trials])
    if not figure["share"] or any(run["interval"] is None for run in runs):
        return None
    return mean_without_trials([run["value"] for run in runs], [tuple(run["interval"]) for run in runs])


def comparable(figure: Figure, other: Figure, drop_from: str | None = None) -> bool:
    """Whether two figures may be subtracted: of other models in the same mode, or of one model in `drop_from`."""
    alike = all(figure[key] == other[key] for key in ("benchmark", "metric", "task"))
    measured = figure["value"] is not None and other["value"] is not None
    mode = drop_from if figure["model"] == other["model"] else figure["mode"]
    return alike and measured and other["mode"] == mode


def compare(figure: Figure, other: Figure, files: TrialFiles) -> Difference:
    """A figure minus another.

    Returns:
        `{"against": model, "benchmark", "difference", "interval": two bounds or None, "p": or None, "pairs": trials
        that both ran, "layouts": of those, "seeds": how many of each side}`.
    """
    first, second = files.of(figure), files.of(other)
    shared = [name for name in first if name in second]
    bounds, p = None, paired_p(first, second)
    seeds = [len(side.get("seeds") or [side]) for side in (figure, other)]
    if max(seeds) > 1:
        bounds, p = compare_seeds(figure, other, files)
    elif figure["interval"] is not None and other["interval"] is not None:
        correlation = paired_correlation(first, second)
        sides = ((f["value"], tuple(f["interval"])) for f in (figure, other))
        bounds = difference_interval(*next(sides), *next(sides), correlation)
    return {
        "against": other["model"],
        "benchmark": figure["benchmark"],
        "difference": round(figure["value"] - other["value"], 6),
        "interval": None if bounds is None else [round(bound, 4) for bound in bounds],
        "p": p,
        "pairs": len(shared),
        "layouts": len({first[name].layout for name in shared}),
        "seeds": seeds,
    }


def compare_seeds(figure: Figure, other: Figure, files: TrialFiles) -> tuple[tuple[float, float] | None, float | None]:
    """Bounds and p of a difference of which a side at least is a mean over seeds."""
    sides = [seed_mean_of(side, files) for side in (figure, other)]
    if sides[0] is None or sides[1] is None:
        return None, None
    runs = [[(run["model"], run["seed"]) for run in side.get("seeds") or ()] for side in (figure, other)]
    correlation = paired_correlation(files.of(figure), files.of(other))
    bounds, p = seed_difference(sides[0], sides[1], correlation, same_seeds=runs[0] == runs[1])
    return bounds, round(p, 6)


def paired_p(first: Mapping[str, Any], second: Mapping[str, Any]) -> float | None:
    """Of no difference, over the trials that both ran; `None` without any, or where scores are not right or wrong."""
    gains: dict[str, int] = defaultdict(int)
    for name in first:
        if name in second:
            gain = first[name].score - second[name].score
            if gain not in (-1.0, 0.0, 1.0):
                return None
            gains[first[name].layout] += int(gain)
    return round(sign_flip_p(list(gains.values())), 6) if gains else None


def difference_text(difference: Difference) -> str:
    """`+18.5 (+10.2 to +26.4) from OpenVLA, p 0.0031, 300 pairs in 75 layouts`."""
    text = f"{100 * difference['difference']:+.1f}"
    if difference["interval"] is not None:
        text += " ({:+.1f} to {:+.1f})".format(*(100 * bound for bound in difference["interval"]))
    text += f" from {difference['label']}"
    if difference["p"] is not None:
        text += ", p < 0.0001" if difference["p"] < 0.0001 else f", p {difference['p']:.2g}"
    if max(difference["seeds"]) > 1:
        own, others = difference["seeds"]
        text += f", {own} seed{'s' * (own > 1)} against {others}"
    if not difference["pairs"]:
        return f"{text}, unpaired"
    pairs, layouts = difference["pairs"], difference["layouts"]
    return f"{text}, {pairs} pairs" + (f" in {layouts} layouts" if layouts < pairs else "")
