"""The first rows of a run as one picture, `first_rows.png`: pictures as the model sees them, and their text."""

import textwrap
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gen_vla.training.mixing.prepared_rows import ROBOT
from gen_vla.training.planning.data_check import SHOWN_ROWS, ShownRow, SourceCheck


COLOURS = {True: "#a3333d", False: "#2e6f95"}  # robot data, vision-language data
ROW_HEIGHT, TITLE_HEIGHT = 3.0, 0.5  # inches
LINE = 54  # characters that fit under a picture
LINES = {False: 4, True: 3}  # of a prompt, of what is supervised


def draw_first_rows(checks: list[SourceCheck], path: Path, title: str) -> Path:
    """Draws a line of rows for each data set; those without a row are left out."""
    shown = [check for check in checks if check.rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    height = ROW_HEIGHT * max(len(shown), 1) + TITLE_HEIGHT
    figure = Figure(figsize=(3.2 * SHOWN_ROWS, height), dpi=110)
    FigureCanvasAgg(figure)
    with matplotlib.rc_context({"font.size": 8}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a script that the font lacks
        figure.text(0.01, 1 - 0.12 / height, title, va="top", fontsize=11, fontweight="bold")
        for line, check in enumerate(shown):
            top = 1 - (TITLE_HEIGHT + ROW_HEIGHT * line) / height
            robot = check.name.partition("/")[0] == ROBOT
            figure.text(0.01, top, check.name, va="top", color=COLOURS[robot], fontweight="bold", fontsize=10)
            for place, row in enumerate(check.rows):
                _draw_row(figure, row, (place / SHOWN_ROWS + 0.01, top), ROW_HEIGHT / height, COLOURS[robot])
        figure.savefig(path)
    return path


def _draw_row(figure: Any, row: ShownRow, corner: tuple[float, float], height: float, colour: str) -> None:
    """One row below and right of `corner`: its pictures side by side, the prompt, and what is supervised in colour."""
    left, top = corner
    width = 1 / SHOWN_ROWS - 0.02
    box = (left, top - 0.67 * height, width, 0.57 * height)
    if row.pictures:
        axes = figure.add_axes(box, anchor="NW")
        axes.imshow(np.concatenate([np.asarray(picture) for picture in row.pictures], axis=1), interpolation="nearest")
        axes.axis("off")
    else:
        figure.text(left, top - 0.3 * height, "(no picture)", color="grey")
    below = top - 0.69 * height
    for learned, paint in ((False, "black"), (True, colour)):
        text = "".join(part for part, supervised in row.spans if supervised == learned)
        lines = wrapped(text, LINES[learned])
        style = {"va": "top", "color": paint, "parse_math": False, "family": "monospace", "size": 6.5}
        figure.text(left, below, "\n".join(lines), **style)
        below -= (len(lines) + 0.3) * 0.04 * height


def wrapped(text: str, lines: int) -> list[str]:
    """Text in at most so many lines, newlines spelled out; the rest is left out and marked as such."""
    spelled = text.strip(" ").replace("\n", "\\n")
    return textwrap.wrap(spelled, LINE, max_lines=lines, placeholder=" ...", break_on_hyphens=False) or [""]
