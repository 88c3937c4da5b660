"""Prints what `data_check.py` found: what was read, action dimensions, a row of each data set, warnings."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gen_vla.training.mixing.data_reading import DataReading
from gen_vla.training.planning.data_check import SourceCheck
from gen_vla.training.planning.first_rows import draw_first_rows


FILE_NAME = "first_rows.png"
LONGEST = 600  # characters of a span that are shown


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
    """One line per data set."""
    table = Table(title="Data", title_justify="left")
    for column in ("data set", "format", "episodes", "rows", "cameras", "first row"):
        table.add_column(column, justify="right" if column in ("episodes", "rows") else "left", overflow="fold")
    for check in checks:
        reading = check.reading
        episodes = "" if reading.episodes is None else f"{reading.episodes:,}"
        rows = "?" if reading.rows is None else f"{reading.rows:,}"
        kind = "\n".join((reading.format, *rate(reading)))
        table.add_row(*map(Text, (check.name, kind, episodes, rows, cameras(check), first_row(check))))
    return table


def rate(reading: DataReading) -> list[str]:
    """Rows a second, and of how many steps one is a row; a line each."""
    stored = f" of {reading.hertz * reading.every:g} Hz" if reading.hertz else ""
    lines = [f"{reading.hertz:g} Hz"] if reading.hertz else []
    return [*lines, f"1 step in {reading.every}{stored}"] if reading.every > 1 else lines


def cameras(check: SourceCheck) -> str:
    """Those that are used, and the others."""
    reading = check.reading
    used = ", ".join(reading.cameras) + ("" if reading.camera_named or not reading.unused_cameras else " (the first)")
    return used + (f"\nnot used: {', '.join(reading.unused_cameras)}" if reading.unused_cameras else "")


def first_row(check: SourceCheck) -> str:
    """The words of a data set's first row, and the sizes of its pictures."""
    if not check.rows:
        return "none could be used"
    row = check.rows[0]
    sizes = ", ".join(f"{width} x {height}" for width, height in row.picture_sizes) or "no picture"
    return f"{row.words[:LONGEST]}\n{sizes}"


def dimensions_table(check: SourceCheck) -> Table:
    """The action's dimensions: range, quantiles, clipped values."""
    table = Table(title=f"{check.name}: actions, in the data set's units", title_justify="left")
    for column in ("dimension", "min", "1 %", "99 %", "max", "clipped"):
        table.add_column(column, justify="left" if column == "dimension" else "right")
    table.add_column("")
    for dim in check.dimensions:
        values = (f"{value:.4g}" for value in (dim.low, dim.q01, dim.q99, dim.high))
        marks = ["0 or 1"] * dim.binary + ["never changes"] * dim.constant
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
