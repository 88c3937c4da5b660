"""What a run is about to learn from, gathered and shown for a look before GPUs are rented."""

import copy
import re
import sys
import textwrap
import warnings as python_warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gen_vla.processors.action_statistics import QUANTILES
from gen_vla.training.mixing.data_source import DataReading, sample_shards
from gen_vla.training.mixing.encoded_pictures import decode_picture
from gen_vla.training.mixing.prepared_rows import BAD_ROW, ROBOT, RowPreparer, RowTooLong
from gen_vla.training.recipes.sources import OpenedData
from gen_vla.training.robot_data.episodes import spread
from gen_vla.training.robot_data.statistics import is_binary


SHOWN_ROWS = 4  # of each data set
LOOKED_THROUGH = 500  # rows of a shard of robot data, to show some that differ; their frames are not decoded
BYTE_PIECES = re.compile("(?:<0x[0-9A-F]{2}>)+")
MUCH_CLIPPED = 0.05  # share of a dimension's values
HARDLY_MOVES = 0.01  # of what dimensions range over in the median
FILE_NAME = "first_rows.png"
LONGEST = 600  # characters of a span that are shown
COLOURS = {True: "#a3333d", False: "#2e6f95"}  # robot data, vision-language data
ROW_HEIGHT, TITLE_HEIGHT = 3.0, 0.5  # inches
LINE = 54  # characters that fit under a picture
LINES = {False: 4, True: 3}  # of a prompt, of what is supervised


@dataclass(frozen=True)
class ShownRow:
    identity: str  # its name in its data set
    words: str  # the instruction or the first question, before anything is put around it
    picture_sizes: list[tuple[int, int]]  # (width, height), as they are stored
    pictures: list[Image.Image]  # augmented and resized
    spans: list[tuple[str, bool]]  # its tokens as text, a picture's as `<image> x N`, and whether they are supervised
    tokens: int
    supervised: int  # tokens; and the numbers of an action that is no text


@dataclass(frozen=True)
class Dimension:
    low: float
    q01: float
    q99: float
    high: float
    clipped: int  # how many of its values normalisation clips
    share: float  # which share that is
    binary: bool  # whether it stays as it is, 0 or 1
    looks_binary: bool  # whether it holds 0 and 1 alone
    name: str = "0"  # its number, and what the data set calls it
    normalization: str = QUANTILES  # what it is scaled by
    relative: bool = False  # whether its values are relative to the robot's state

    @property
    def constant(self) -> bool:
        return self.low == self.high


@dataclass(frozen=True)
class SourceCheck:
    name: str
    reading: DataReading
    rows: list[ShownRow]
    dimensions: list[Dimension] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stops: str = ""  # why a run would stop at its rows


def check_data(opened: OpenedData, prepare: RowPreparer, collator: Any) -> list[SourceCheck]:
    """Looks at every data set of a run, robot data first, with the run's preparer and collator.

    A streamed one is read from copies, so that the run's counts stay its own. A row that would stop the run for
    another width of actions or an empty instruction raises its `ValueError`.
    """
    checks = []
    for name in sorted(opened.readings, key=lambda name: name.partition("/")[0] != ROBOT):
        reading, (kind, _, key) = opened.readings[name], name.partition("/")
        shown: list[ShownRow] = []
        unusable: list[ValueError] = []
        for place, row in enumerate(sample_rows(opened, name, SHOWN_ROWS)):
            try:
                shown.append(shown_row(row, prepare(row, name, place), collator))
            except BAD_ROW as error:
                unusable.append(error)
        dimensions = []
        if kind == ROBOT:
            statistics = opened.norm_stats[key]["action"]
            dimensions = action_dimensions(statistics, opened.clipping[key], reading.action_names)
        warnings = [*reading_warnings(reading, shown), *dimension_warnings(dimensions), *picture_warnings(shown)]
        if unusable:  # rows of a data set tend to fail alike
            count = len(unusable) + len(shown)
            warnings.append(f"{len(unusable)} of {count} rows cannot be used: {unusable[0]}")
        stops = stopping(unusable, len(shown), kind == ROBOT)
        checks.append(SourceCheck(name, reading, shown, dimensions, warnings, stops))
    return checks


def stopping(unusable: list[ValueError], usable: int, robot: bool) -> str:
    """Why a run would stop, from the rows that were looked at: no row can be used, or one of a robot is too long.

    Rows of other data that are too long are left out; one of a robot is not, since all of its actions are as long.
    """
    too_long = [error for error in unusable if robot and isinstance(error, RowTooLong)]
    found = too_long or (unusable if not usable else [])
    return str(found[0]) if found else ""


def sample_rows(opened: OpenedData, name: str, count: int) -> list[dict[str, Any]]:
    """The first row of a data set and some others, spread over it: over its rows, or a stream's shards and theirs."""
    if name in opened.tables:
        table = opened.tables[name]
        return [table[number] for number in spread(len(table), count)]
    source = copy.deepcopy(opened.streams[name])
    samples, found, depth = sample_shards(source, count), [], LOOKED_THROUGH if name.partition("/")[0] == ROBOT else 1
    for place, sample in enumerate(samples):
        each, begun = count // len(samples) + (place < count % len(samples)), len(found)
        rows = list(islice(sample, max(depth, each)))
        if len(rows) > each:  # of the first shard its first row, of the last one deep in it: neighbours hardly differ
            wanted = [round(shown * (len(rows) - 1) / max(count - 1, 1)) for shown in range(begun, begun + each)]
            rows = [rows[number] for number in dict.fromkeys(wanted)]
        found += rows
    return found or list(islice(source.rows(source.shards()), count))


def shown_row(row: dict[str, Any], prepared: dict[str, Any], collator: Any) -> ShownRow:
    batch = collator([prepared])
    ids = batch["input_ids"][0].tolist()
    supervised = [label != -100 for label in batch["labels"][0].tolist()] if "labels" in batch else [False] * len(ids)
    spans, numbers = token_spans(ids, supervised, collator.processor), 0
    if "actions" in prepared:  # of a policy that makes its actions as numbers, out of noise
        spans.append((" ".join(f"{value:+.3f}" for value in prepared["actions"].ravel()), True))
        numbers = prepared["actions"].size
    words = row["instruction"] if "instruction" in row else row["turns"][0]["question"]
    return ShownRow(
        identity=row["identity"],
        words=words.strip(),
        picture_sizes=[decode_picture(picture, row["identity"]).size for picture in row["images"]],
        pictures=seen_pictures(prepared["images"], collator.processor.image_processor),
        spans=spans,
        tokens=len(ids),
        supervised=sum(supervised) + numbers,
    )


def token_spans(ids: list[int], supervised: list[bool], processor: Any) -> list[tuple[str, bool]]:
    """Neighbouring tokens that are supervised alike, as text: the vocabulary's pieces, their spaces restored."""
    image, spans = processor.image_token, []
    bins = (processor.action_config or {}).get("representation") == "bins"
    pieces = processor.tokenizer.convert_ids_to_tokens(ids)
    for learned, group in groupby(zip(pieces, supervised, strict=True), key=lambda entry: entry[1]):
        text = ""
        for piece, run in groupby(piece for piece, _ in group):
            length = len(list(run))
            text += f"{image} x {length} " if piece == image else piece * length
        text = text if learned and bins else BYTE_PIECES.sub(_characters, text)  # a bin may be a byte's piece
        spans.append((text.replace("▁", " "), learned))
    return spans


def _characters(pieces: re.Match[str]) -> str:
    spelled = bytes(int(number, 16) for number in re.findall("0x(..)", pieces[0]))
    try:
        return spelled.decode("utf-8")
    except UnicodeDecodeError:
        return pieces[0]


def seen_pictures(images: list[Image.Image], image_processor: Any) -> list[Image.Image]:
    """Prepared pictures as the first encoder gets them: at the model's size, its pixel values as colours."""
    if not hasattr(image_processor, "stds"):  # a stock one, whose pixel values may be patches
        return images
    if not images:
        return []
    pixels = np.asarray(image_processor(images)["pixel_values"])[:, :3].transpose(0, 2, 3, 1)
    colours = pixels * np.asarray(image_processor.stds[0]) + np.asarray(image_processor.means[0])
    return [Image.fromarray(picture) for picture in np.clip(np.round(255 * colours), 0, 255).astype(np.uint8)]


def action_dimensions(
    statistics: dict[str, Any], clipping: dict[str, Any], names: Sequence[str] = ()
) -> list[Dimension]:
    numbers = [str(dim) for dim in range(len(clipping["clipped"]))]
    called = [f"{number} {name}" for number, name in zip(numbers, names)] if len(names) == len(numbers) else numbers
    low, q01, q99, high, mask = (statistics[measure] for measure in ("min", "q01", "q99", "max", "mask"))
    modes, found = statistics.get("normalization") or [QUANTILES] * len(numbers), []
    relative = {dim for group in statistics.get("relative") or () for dim in group["dims"]}
    for dim, clipped in enumerate(clipping["clipped"]):
        share, binary = clipped / clipping["values"], is_binary(statistics, dim)
        values = (low[dim], q01[dim], q99[dim], high[dim])
        shown = (called[dim], modes[dim], dim in relative)
        found.append(Dimension(*values, clipped, share, not mask[dim], binary, *shown))
    return found


def reading_warnings(reading: DataReading, shown: list[ShownRow]) -> list[str]:
    warnings = list(reading.notes)
    if not reading.camera_named and reading.unused_cameras:
        others = ", ".join(reading.unused_cameras)
        warnings.append(
            f"of {len(reading.unused_cameras) + 1} cameras only the first is used, {reading.cameras[0]}; not "
            f"{others}, unless `cameras` names them"
        )
    if reading.instructions == 1 and shown:
        warnings.append(f"all rows have one instruction ({shown[0].words!r}): a policy need not listen to it")
    if reading.without_instruction:
        such_as = f" (such as {reading.unlabelled[0]})" if reading.unlabelled else ""
        warnings.append(f"{reading.without_instruction:,} steps without an instruction, skipped{such_as}")
    if reading.skipped and reading.skipped["skipped"]:
        reasons = "; ".join(f"{reason} ({count:,})" for reason, count in reading.skipped["by_reason"].items())
        warnings.append(f"{reading.skipped['skipped']:,} steps skipped: {reasons}")
    return warnings


def dimension_warnings(dimensions: list[Dimension]) -> list[str]:
    warnings = []
    ranges = [dim.q99 - dim.q01 for dim in dimensions if not dim.binary and dim.q01 < dim.q99]
    usual = float(np.median(ranges)) if ranges else 0.0
    for dim in dimensions:
        if dim.constant:
            warnings.append(f"dimension {dim.name} never changes: it is always {dim.low:g}")
        elif dim.binary:
            continue
        elif dim.q01 == dim.q99 and dim.normalization == QUANTILES:
            warnings.append(
                f"dimension {dim.name} is {dim.q01:g} in 98 % of the steps: all else becomes -1 or 1; if it is 0 or 1 "
                "alone, name it in actions.binary_dims, else set its actions.normalization to min_max"
            )
        elif dim.looks_binary:
            warnings.append(f"dimension {dim.name} is 0 or 1 alone, and scaled: actions.binary_dims does not name it")
        elif dim.q99 - dim.q01 < HARDLY_MOVES * usual:
            warnings.append(
                f"dimension {dim.name} hardly moves: 98 % of its values lie within {dim.q99 - dim.q01:.2g}, where "
                f"others take {usual:.2g}; its noise is scaled to [-1, 1] and learned like a motion"
            )
    clipped = {dim.name: dim.share for dim in dimensions if dim.share > MUCH_CLIPPED}
    if clipped:
        most = f"up to {max(clipped.values()):.0%} of the values of a dimension"
        warnings.append(f"{most} are clipped (dimensions {', '.join(clipped)})")
    return warnings


def picture_warnings(shown: list[ShownRow]) -> list[str]:
    pictures = [np.asarray(picture) for row in shown for picture in row.pictures]
    blank = sum(bool((picture == picture[0, 0]).all()) for picture in pictures)
    return [f"{blank} of the {len(pictures)} pictures looked at are of one colour"] if blank else []


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
        marks += ["relative to the state"] * dim.relative
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
    # here, since every process of every run imports this file
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [check for check in checks if check.rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    height = ROW_HEIGHT * max(len(shown), 1) + TITLE_HEIGHT
    figure = Figure(figsize=(3.2 * SHOWN_ROWS, height), dpi=110)
    FigureCanvasAgg(figure)
    with matplotlib.rc_context({"font.size": 8}), python_warnings.catch_warnings():
        python_warnings.filterwarnings("ignore", message="Glyph")  # of a script that the font lacks
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
