"""Is one policy better than another? Differences of two figures, with intervals, and a test where trials are paired.

    interval     95 %: paired where both ran the same trials, else of independent samples
    p            where paired: exact, over layouts; with one trial a layout it is McNemar's test

Where a side is a mean over seeds, both include how much its seeds differ (`statistics/seed_intervals.py`); otherwise
all of this is about trials, not about what another training run would have given.
"""

from collections import defaultdict
from typing import Any

from gen_vla.evaluation.report.figures import Figure
from gen_vla.evaluation.report.trials import TrialFiles, Trials
from gen_vla.evaluation.statistics.intervals import difference_interval, paired_correlation, sign_flip_p
from gen_vla.evaluation.statistics.seed_intervals import (
    SeedMean,
    mean_over_seeds,
    mean_without_trials,
    seed_difference,
)


Difference = dict[str, Any]
EXPLANATION = (
    "Differences are in percentage points, this row's minus the other's, with 95 % intervals: of pairs where both ran "
    "the same trials (p is exact, over layouts: McNemar's test where a layout has one trial), otherwise of two "
    "independent samples. They are about trials, not about training runs, of which a side has one where no seeds are "
    "named. Where seeds are named, interval and p are Welch's, with the variance of trials in them, and a side of one "
    "seed is that run, not its recipe. Each is about one cell: where nothing differs, one cell in twenty looks as if "
    "it did."
)


def seed_mean_of(figure: Figure, files: TrialFiles) -> SeedMean | None:
    """The mean over a figure's seeds, or the one run that it is; `None` for an error, and without intervals."""
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
    """A figure minus another: `{"against": model, "benchmark", "difference", "interval": two bounds or None, "p": or
    None, "pairs": trials that both ran, "layouts": of those, "seeds": how many of each side}`."""
    first, second = files.of(figure), files.of(other)
    shared = [name for name in first if name in second]
    correlation = paired_correlation(first, second)
    seeds = [len(side.get("seeds") or [side]) for side in (figure, other)]
    bounds, p = None, paired_p(first, second)
    if max(seeds) > 1:
        means = seed_mean_of(figure, files), seed_mean_of(other, files)
        runs = [[(run["model"], run["seed"]) for run in side.get("seeds") or ()] for side in (figure, other)]
        if means[0] is None or means[1] is None:
            p = None
        else:
            bounds, p = seed_difference(means[0], means[1], correlation, same_seeds=runs[0] == runs[1])
    elif figure["interval"] is not None and other["interval"] is not None:
        bounds = difference_interval(
            figure["value"], figure["interval"], other["value"], other["interval"], correlation
        )
    return {
        "against": other["model"],
        "benchmark": figure["benchmark"],
        "difference": round(figure["value"] - other["value"], 6),
        "interval": None if bounds is None else [round(bound, 4) for bound in bounds],
        "p": None if p is None else round(p, 6),
        "pairs": len(shared),
        "layouts": len({first[name].layout for name in shared}),
        "seeds": seeds,
    }


def paired_p(first: Trials, second: Trials) -> float | None:
    """Over the trials that both ran; `None` without any, or where scores are not right or wrong."""
    gains: dict[str, int] = defaultdict(int)
    for name in filter(second.__contains__, first):
        gain = first[name].score - second[name].score
        if gain not in (-1.0, 0.0, 1.0):
            return None
        gains[first[name].layout] += int(gain)
    return sign_flip_p(list(gains.values())) if gains else None


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
