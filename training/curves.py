"""The curves of a run as one picture, a line per source: `training_curves.png` beside the model.

Decides: what is drawn and how. Refuses to know: how figures came about (`training/metrics.py`).
"""

from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from gen_vla.training.mixing.prepared_rows import ROBOT


ROBOT_COLOURS = ("#d1495b", "#edae49", "#8d5a97", "#a3333d")
QUESTION_COLOURS = ("#2e6f95", "#5fa8d3", "#1b9e77", "#8c6bb1", "#a3b18a")
PANELS = (  # figure, title, label of the axis, whether it is a share
    ("loss", "Loss, unweighted", "nats per token", False),
    ("token_accuracy", "Tokens right", "", True),
    ("exact", "Answers right to the last token", "", True),
    ("sign_accuracy", "Signs of actions right", "", True),
    ("malformed", "Malformed actions", "", True),
    ("action_error", "Error of the action", "mean absolute, data set's units", False),
)


def plot_curves(history: list[dict[str, Any]], path: str | Path, title: str) -> Path | None:
    """Draws a trainer's log history.

    Args:
        history: entries with `step` and figures named `KIND/NAME/FIGURE`.
        path: of the PNG.

    Returns:
        The path, or `None` where there is nothing to draw: fewer than two logs.
    """
    curves = {figure: _curves(history, figure) for figure, *_ in PANELS}
    if max((len(steps) for steps, _ in curves["loss"].values()), default=0) < 2:
        return None
    shown = [panel for panel in PANELS if curves[panel[0]]]
    colours = _colours(list(curves["loss"]))
    rows = -(-len(shown) // 3)
    with matplotlib.rc_context({"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold"}):
        figure, axes = plt.subplots(rows, 3, figsize=(12, 3.1 * rows + 0.7), layout="constrained", squeeze=False)
        for place, panel in zip(axes.flat, shown):
            _draw(place, panel, curves[panel[0]], colours)
        for place in list(axes.flat)[len(shown) :]:
            place.axis("off")
        handles = [Line2D([], [], color=colour, linewidth=2, label=name) for name, colour in colours.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False)
        figure.suptitle(title, fontsize=12, fontweight="bold")
        figure.savefig(path, dpi=120)
        plt.close(figure)
    return Path(path)


def _curves(history: list[dict[str, Any]], figure: str) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values by source."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for entry in history:
        for key, value in entry.items():
            source, _, name = key.rpartition("/")
            if name == figure and "/" in source:
                steps, values = found.setdefault(source, ([], []))
                steps.append(entry["step"])
                values.append(value)
    return found


def _colours(sources: list[str]) -> dict[str, str]:
    """Warm colours for robot data, cool ones for the rest."""
    robot = [source for source in sources if source.partition("/")[0] == ROBOT]
    questions = [source for source in sources if source not in robot]
    pairs = [(robot, ROBOT_COLOURS), (questions, QUESTION_COLOURS)]
    return {name: shades[n % len(shades)] for names, shades in pairs for n, name in enumerate(names)}


def _draw(axes: Any, panel: tuple[str, str, str, bool], curves: dict[str, Any], colours: dict[str, str]) -> None:
    _, title, label, share = panel
    for source, (steps, values) in curves.items():
        axes.plot(steps, values, color=colours[source], linewidth=1.6, marker="o" if len(steps) < 12 else "", ms=3)
    axes.set_title(title, loc="left")
    axes.set(xlabel="step", ylabel=label)
    if share:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
