"""One recorded episode and what a policy would have done in it, beside the errors of all."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from gen_vla.evaluation.open_loop.data import RecordedEpisodes
from gen_vla.evaluation.open_loop.scores import HELD, MEAN, POLICY, STATE, Comparison, Dimensions


COLOURS = {POLICY: "#d1495b", MEAN: "#8c8c8c", HELD: "#2e6f95", STATE: "#edae49"}
MOST_CURVES = 16


def draw_open_loop(
    results: dict[str, Any], found: Comparison, episodes: RecordedEpisodes, statistics: dict[str, Any], path: Path
) -> Path:
    """A PNG: on the left a curve per dimension, on the right a group of bars, in the normalized units of `statistics`
    (`norm_stats[key]["action"]`), so that they can stand together."""
    known, names = Dimensions(statistics), [entry["name"] for entry in results["dimensions"]]
    number = typical_episode(found, known)
    shown = min(len(names), MOST_CURVES)
    columns = 1 if shown <= 7 else 2
    rows = -(-shown // columns)
    figure = Figure(figsize=(4.6 * columns + 4.6, max(3.6, 1.15 * rows) + 0.9), layout="constrained")
    grid = GridSpec(rows, columns + 1, figure)
    curves = [figure.add_subplot(grid[dim % rows, dim // rows]) for dim in range(shown)]
    for dim, axes in enumerate(curves):
        _draw_curve(axes, dim, found, episodes.actions[number], found.episode == number)
        axes.set_title(names[dim], fontsize=9, loc="left", pad=2)
        axes.tick_params(labelsize=7, labelbottom=dim % rows == rows - 1 or dim == shown - 1)
    bars = figure.add_subplot(grid[:, columns])
    _draw_errors(bars, results, known)
    size = f"{results['n']} steps of {results['episodes']} episodes"
    middle = f"curves of episode {episodes.names[number]}, whose error is the middle one; bars of {size}"
    figure.suptitle(f"{Path(results['model']).name} on {Path(results['data']).name}\n{middle}", fontsize=11)
    places: tuple[tuple[Any, Any], ...] = ((curves[0], "outside lower left"), (bars, "outside lower right"))
    for axes, place in places:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc=place, ncols=len(labels), fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def typical_episode(found: Comparison, known: Dimensions) -> int:
    errors = known.normalized(found.predicted, found.recorded)
    read = np.unique(found.episode)
    if not errors.shape[-1]:
        return int(read[0])
    means = [errors[found.episode == number][found.valid[found.episode == number]].mean() for number in read]
    return int(read[np.argsort(means, kind="stable")[(len(read) - 1) // 2]])


def _draw_curve(axes: Any, dim: int, found: Comparison, recorded: np.ndarray, own: np.ndarray) -> None:
    """A dimension over an episode's steps: what was recorded, and the chunk that was predicted at each step asked."""
    axes.plot(recorded[:, dim], color="black", label="recorded")
    label = "predicted, a dot where the policy was asked"
    for place, chunk, valid in zip(found.place[own], found.predicted[own], found.valid[own], strict=True):
        axes.plot(place + np.flatnonzero(valid), chunk[valid, dim], color=COLOURS[POLICY])
        axes.plot(place, chunk[0, dim], ".", color=COLOURS[POLICY], label=label)
        label = "_"


def _draw_errors(axes: Any, results: dict[str, Any], known: Dimensions) -> None:
    """A group of bars per dimension: errors in halves of the scaled range, or the share wrong of two values."""
    width, entries = known.high - known.low, results["dimensions"]
    named = [name for name in COLOURS if name in entries[0]]
    places, height = np.arange(len(entries)), 0.84 / len(named)
    for number, name in enumerate(named):
        bars = np.array([_bar(entry, entry[name], width[dim]) for dim, entry in enumerate(entries)])
        spread = np.abs(bars[:, 1:] - bars[:, :1]).T if name == POLICY else None
        at = places + (number - (len(named) - 1) / 2) * height
        axes.barh(at, bars[:, 0], 0.92 * height, xerr=spread, color=COLOURS[name], label=name)
    labels = [entry["name"] + (" (share wrong)" if entry["measure"] == "accuracy" else "") for entry in entries]
    axes.set_yticks(places, labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("mean absolute error, in halves of the range that is scaled", fontsize=9)


def _bar(entry: dict[str, Any], figure: dict[str, Any], width: float) -> list[float]:
    """A figure and its bounds, as bars show them; NaN, which draws nothing, for a dimension without a range."""
    values = [figure["value"], *(figure["interval"] or [figure["value"]] * 2)]
    if entry["measure"] == "accuracy":
        return [1 - value for value in values]
    return [value / (width / 2) if width > 0 else np.nan for value in values]
