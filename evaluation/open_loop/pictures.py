"""One recorded episode and what a policy would have done in it, beside the errors of all."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from gen_vla.evaluation.open_loop.data import RecordedEpisodes
from gen_vla.evaluation.open_loop.scores import HELD, MEAN, POLICY, STATE, Comparison, Dimensions


matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.gridspec import GridSpec


COLOURS = {POLICY: "#d1495b", MEAN: "#8c8c8c", HELD: "#2e6f95", STATE: "#edae49"}
MOST_CURVES = 16


def draw_open_loop(
    results: dict[str, Any], found: Comparison, episodes: RecordedEpisodes, statistics: dict[str, Any], path: Path
) -> Path:
    """A PNG: on the left a curve per dimension, on the right a group of bars.

    Args:
        statistics: `norm_stats[key]["action"]`; bars are in its normalized units, so that they can stand together.
    """
    known, names = Dimensions(statistics), [entry["name"] for entry in results["dimensions"]]
    number = typical_episode(found, known)
    shown = min(len(names), MOST_CURVES)
    columns = 1 if shown <= 7 else 2
    rows = -(-shown // columns)
    figure = plt.figure(figsize=(4.6 * columns + 4.6, max(3.6, 1.15 * rows) + 0.9), layout="constrained")
    grid = GridSpec(rows, columns + 1, figure, width_ratios=[1.0] * columns + [1.1])
    first: Any = None
    for dim in range(shown):
        axes = figure.add_subplot(grid[dim % rows, dim // rows], sharex=first)
        first = first or axes
        _draw_curve(axes, dim, names[dim], found, episodes.actions[number], found.episode == number)
        if dim % rows == rows - 1 or dim == shown - 1:
            axes.set_xlabel("step")
        else:
            axes.tick_params(labelbottom=False)
    bars = figure.add_subplot(grid[:, columns])
    _draw_errors(bars, results, known)
    size = f"{results['n']} steps of {results['episodes']} episodes"
    middle = f"curves of episode {episodes.names[number]}, whose error is the middle one; bars of {size}"
    title = f"{Path(results['model']).name} on {Path(results['data']).name}"
    figure.suptitle(f"{title}\n{middle}", fontsize=11)
    places: tuple[tuple[Any, Any], ...] = ((first, "outside lower left"), (bars, "outside lower right"))
    for axes, place in places:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc=place, ncols=len(labels), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def typical_episode(found: Comparison, known: Dimensions) -> int:
    """The episode whose error is the middle one."""
    errors = known.normalized(found.predicted, found.recorded)
    read = np.unique(found.episode)
    if not errors.shape[-1]:
        return int(read[0])
    means = [errors[found.episode == number][found.valid[found.episode == number]].mean() for number in read]
    return int(read[np.argsort(means, kind="stable")[(len(read) - 1) // 2]])


def _draw_curve(axes: Any, dim: int, name: str, found: Comparison, recorded: np.ndarray, own: np.ndarray) -> None:
    """A dimension over an episode's steps: what was recorded, and the chunk that was predicted at each step asked."""
    axes.plot(recorded[:, dim], color="#333333", linewidth=1.2, label="recorded")
    label = "predicted, a dot where the policy was asked"
    for place, chunk, valid in zip(found.place[own], found.predicted[own], found.valid[own], strict=True):
        steps = place + np.flatnonzero(valid)
        axes.plot(steps, chunk[valid, dim], color=COLOURS[POLICY], linewidth=1.2)
        axes.plot(place, chunk[0, dim], "o", color=COLOURS[POLICY], markersize=3.5, label=label)
        label = "_"
    axes.set_title(name, fontsize=9, loc="left", pad=2)
    axes.tick_params(labelsize=7)
    axes.margins(x=0.02, y=0.15)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_errors(axes: Any, results: dict[str, Any], known: Dimensions) -> None:
    """A group of bars per dimension: errors in halves of its q01..q99, or the share wrong of two values."""
    width = known.q99 - known.q01
    named, entries = [name for name in COLOURS if name in results["dimensions"][0]], results["dimensions"]
    places, height = np.arange(len(entries)), 0.84 / len(named)
    for number, name in enumerate(named):
        bars = np.array([_bar(entry, entry[name], width[dim]) for dim, entry in enumerate(entries)])
        at = places + (number - (len(named) - 1) / 2) * height
        axes.barh(at, bars[:, 0], 0.92 * height, color=COLOURS[name], label=name)
        if name == POLICY and entries[0][name]["interval"]:
            spread = np.abs(bars[:, 1:] - bars[:, :1]).T
            axes.errorbar(bars[:, 0], at, xerr=spread, fmt="none", color="#333333", linewidth=0.9, capsize=1.5)
    labels = [entry["name"] + (" (share wrong)" if entry["measure"] == "accuracy" else "") for entry in entries]
    axes.set_yticks(places, labels, fontsize=8)
    axes.set_ylim(len(entries) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("mean absolute error, in halves of the range q01 to q99", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _bar(entry: dict[str, Any], figure: dict[str, Any], width: float) -> list[float]:
    """A figure and its bounds, as bars show them; NaN, which draws nothing, for a dimension without a range."""
    values = [figure["value"], *(figure["interval"] or [figure["value"]] * 2)]
    if entry["measure"] == "accuracy":
        return [1 - value for value in values]
    return [value / (width / 2) if width > 0 else np.nan for value in values]
