"""Shows what `data_check.py` found: data sets, action dimensions and warnings as text, rows as one picture."""

import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gen_vla.processors.action_statistics import QUANTILES
from gen_vla.training.mixing.data_source import DataReading
from gen_vla.training.mixing.prepared_rows import ROBOT
from gen_vla.training.planning.data_check import SHOWN_ROWS, ShownRow, SourceCheck


FILE_NAME = "first_rows.png"
LONGEST = 600  # characters of a span that are shown
COLOURS = {True: "#a3333d", False: "#2e6f95"}  # robot data, vision-language data
ROW_HEIGHT, TITLE_HEIGHT = 3.0, 0.5  # inches
LINE = 54  # characters that fit under a picture
LINES = {False: 4, True: 3}  # of a prompt, of what is supervised


def show_data(checks: list[SourceCheck], folder: Path, name: str) -> None:
    """Prints what was found and draws the first rows into the folder of the run of this name."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(read_table(checks))
    for check in checks:
        if check.dimensions:
            console.print(dimensions_table(check))
    for check in checks:
        if check.rows:
            console.print(row_text(check))
    for check in checks:
        for warning in check.warnings:
            console.print(Text.assemble(("look at ", "bold yellow"), f"{check.name}: {warning}"))
    drawn = draw_first_rows(checks, folder / FILE_NAME, f"{name}: rows as the model sees them")
    console.print(Text(f"Some rows as the model sees them: {drawn}"))


def read_table(checks: list[SourceCheck]) -> Table:
    table = Table(title="Data", title_justify="left")
    for column in ("data set", "format", "episodes", "rows", "cameras", "first row"):
        table.add_column(column, justify="right" if column in ("episodes", "rows") else "left", overflow="fold")
    for check in checks:
        reading = check.reading
        episodes = "" if reading.episodes is None else f"{reading.episodes:,}"
        rows = "?" if reading.rows is None else f"{reading.rows:,}"
        kind, first = "\n".join((reading.format, *rate(reading))), "none could be used"
        if check.rows:
            sizes = ", ".join(f"{width} x {height}" for width, height in check.rows[0].picture_sizes) or "no picture"
            first = f"{check.rows[0].words[:LONGEST]}\n{sizes}"
        table.add_row(*map(Text, (check.name, kind, episodes, rows, cameras(check), first)))
    return table


def rate(reading: DataReading) -> list[str]:
    """Rows a second, and of how many steps one is a row; a line each."""
    stored = f" of {reading.hertz * reading.every:g} Hz" if reading.hertz else ""
    lines = [f"{reading.hertz:g} Hz"] if reading.hertz else []
    return [*lines, f"1 step in {reading.every}{stored}"] if reading.every > 1 else lines


def cameras(check: SourceCheck) -> str:
    reading = check.reading
    used = ", ".join(reading.cameras) + ("" if reading.camera_named or not reading.unused_cameras else " (the first)")
    return used + (f"\nnot used: {', '.join(reading.unused_cameras)}" if reading.unused_cameras else "")


def dimensions_table(check: SourceCheck) -> Table:
    table = Table(title=f"{check.name}: actions, in the data set's units", title_justify="left")
    for column in ("dimension", "min", "1 %", "99 %", "max", "clipped"):
        table.add_column(column, justify="left" if column == "dimension" else "right")
    table.add_column("")
    for dim in check.dimensions:
        values = (f"{value:.4g}" for value in (dim.low, dim.q01, dim.q99, dim.high))
        marks = ["0 or 1"] * dim.binary + ["never changes"] * dim.constant
        marks += [] if dim.binary or dim.normalization == QUANTILES else [f"scaled by {dim.normalization}"]
        table.add_row(Text(dim.name), *values, f"{dim.clipped:,} ({dim.share:.1%})", ", ".join(marks))
    return table


def row_text(check: SourceCheck) -> Text:
    """A data set's first row as tokens; what is supervised stands in guillemets."""
    row = check.rows[0]
    unit = "tokens" if row.supervised <= row.tokens else "tokens and numbers"
    text = Text.assemble((check.name, "bold"), f" ({row.tokens} {unit}, «{row.supervised} supervised»)\n  ")
    for span, learned in row.spans:
        shown = span.replace("\n", "\\n")
        shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."
        text.append(f"«{shown}»" if learned else shown, style="green" if learned else "")
    return text


def draw_first_rows(checks: list[SourceCheck], path: Path, title: str) -> Path:
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
