"""Is one policy better than another? Differences of figures, with intervals, and a test where trials are paired.

Decides: which figures may be compared (of two models in the same mode, of one model in two), and what a comparison
says. Refuses to know: the formulas (`intervals.py`), where trials are kept (`report_trials.py`), tables.

    difference   one minus the other, of the figures as they are shown
    interval     95 %: of a pair where both ran the same trials, else of strangers
    p            of a pair: exact, over layouts; with one trial a layout it is McNemar's test

All of it is about trials. What another training run would have given, it does not say.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gen_vla.evaluation.intervals import clustered_share, difference_interval, paired_correlation, sign_flip_p
from gen_vla.evaluation.report_figures import Figure
from gen_vla.evaluation.report_trials import Cell, Trials, read_trials


Difference = dict[str, Any]
ROUNDED = 2e-3  # figures are written with four decimals, means of them with fewer
EXPLANATION = (
    "Differences are in percentage points, this row's minus the other's, with 95 % intervals: of pairs where both ran "
    "the same trials (p is exact, over layouts: McNemar's test where a layout has one trial), otherwise of strangers. "
    "They are about trials, not about training runs, of which there is one each, and about one cell at a time: where "
    "nothing differs, one cell in twenty looks as if something did."
)


class TrialFiles:
    """The trials behind figures, each file read once.

    Args:
        paths: result files.
    """

    def __init__(self, paths: Sequence[Path]):
        self._files: dict[str, dict[Cell, Trials]] = {str(path): read_trials(path) for path in paths}

    def of(self, figure: Figure) -> Trials:
        """The trials that a figure was made from; empty if there are none, or the ones there are do not give it."""
        trials = self._files.get(figure["source"], {}).get(Cell(figure["mode"], figure["task"]), {})
        if not trials or len(trials) != figure["n"] or figure["value"] is None:
            return {}
        same = abs(clustered_share(list(trials.values())).share - figure["value"]) < ROUNDED
        return trials if same else {}


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
        that both ran, "layouts": of those}`.
    """
    first, second = files.of(figure), files.of(other)
    shared = [name for name in first if name in second]
    bounds = None
    if figure["interval"] is not None and other["interval"] is not None:
        correlation = paired_correlation(first, second)
        sides = ((f["value"], tuple(f["interval"])) for f in (figure, other))
        bounds = difference_interval(*next(sides), *next(sides), correlation)
    return {
        "against": other["model"],
        "benchmark": figure["benchmark"],
        "difference": round(figure["value"] - other["value"], 6),
        "interval": None if bounds is None else [round(bound, 4) for bound in bounds],
        "p": paired_p(first, second),
        "pairs": len(shared),
        "layouts": len({first[name].layout for name in shared}),
    }


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
    if not difference["pairs"]:
        return f"{text}, unpaired"
    if difference["p"] is not None:
        text += ", p < 0.0001" if difference["p"] < 0.0001 else f", p {difference['p']:.2g}"
    pairs, layouts = difference["pairs"], difference["layouts"]
    return f"{text}, {pairs} pairs" + (f" in {layouts} layouts" if layouts < pairs else "")
