"""Measures how a recipe's data sets are opened and read on this machine, as they were published and packed.

    python -m gen_vla.training.planning.reading my_robot --work-dir runs --readers 8 --rows 2000

Of a vision-language set the first of several readers goes through its rows: one process, one core. Rows per second are
of the processor's time, with pictures left as they are, or decoded and resized for the model. Bytes read are those of
the system's calls (Linux); needed are those of the pictures and texts of the reader's own rows. A run that is resumed
goes past rows that it has seen, which is measured apart. Robot data sets are opened twice, the second time with their
statistics kept.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.table import Table

from gen_vla.processors.image_processing_openvla_plus import resize
from gen_vla.training.mixing.data_source import DataSource
from gen_vla.training.mixing.encoded_pictures import decode_picture
from gen_vla.training.mixing.row_stream import BufferSize, RowStream, load_frames, shared_shards
from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.recipes.sources import OpenedData, open_data


COLUMNS = ("data set", "read as", "opened in s", "on a core", "rows", "rows/s", "decoded rows/s")
COLUMNS += ("read/needed", "passed/needed")
BUFFER = BufferSize(256)  # of the run that goes past rows


def measure_reading(source: DataSource, readers: int, rows: int, side: int) -> list[float]:
    """What reading at most `rows` rows costs the first of several readers: their number, rows per second of one core
    as they are and decoded, and bytes read over bytes needed when they are read and when they are gone past."""

    def own() -> Iterator[dict[str, Any]]:
        shards, sharing = shared_shards(source.shards(), (0, readers), 1)
        return islice(islice(source.rows(shards), 0, None, sharing), rows)

    def decode() -> None:
        for row in own():
            for picture in row["images"]:
                resize(decode_picture(picture, row["identity"]), side)

    def go_past() -> None:
        stream = RowStream(source, (0, readers), [0], BUFFER, skipping=True)
        for _ in range(max(len(sizes) - BUFFER.rows, 1)):
            stream.take()

    sizes: list[int] = []
    plain, read = cost(lambda: sizes.extend(size_of(load_frames(row)) for row in own()))
    decoded, _ = cost(decode)
    _, passed = cost(go_past)
    return [len(sizes), len(sizes) / plain, len(sizes) / decoded, read / sum(sizes), passed / sum(sizes)]


def cost(work: Callable[[], None]) -> tuple[float, int]:
    """Seconds of the processor, and bytes read from disk or the system's cache; not what is mapped into memory."""
    process = psutil.Process()
    seconds, before = time.process_time(), process.io_counters()
    work()
    return time.process_time() - seconds, process.io_counters().read_chars - before.read_chars  # type: ignore[attr-defined]


def size_of(row: dict[str, Any]) -> int:
    texts = sum(len((turn["question"] + turn["answer"]).encode()) for turn in row["turns"])
    return texts + sum(len(picture["bytes"]) for picture in row["images"])


def opened_alone(recipe: Recipe, work_dir: Path, **data: Any) -> tuple[OpenedData, list[str]]:
    began, at_work = time.perf_counter(), time.process_time()
    settings = {"robot": [], "vision_language": [], "co_training": None, "streaming": True, **data}
    opened = open_data(replace(recipe, data=replace(recipe.data, **settings)), work_dir)
    return opened, [f"{time.perf_counter() - began:.2f}", f"{time.process_time() - at_work:.2f}"]


def main(
    recipe: str,
    work_dir: Annotated[str, typer.Option(help="Where data sets lie.")] = "outputs",
    readers: Annotated[int, typer.Option(help="Loader processes of a run, all machines together.")] = 8,
    rows: Annotated[int, typer.Option(help="Rows of each set that the first reader reads at most.")] = 2000,
) -> None:
    loaded, folder, table = load_recipe(recipe), Path(work_dir), Table(*COLUMNS)
    for robot in loaded.data.robot:
        for time_ in ("first", "again"):
            _, seconds = opened_alone(loaded, folder, robot=[robot])
            table.add_row(robot.key, time_, *seconds)
    for question in loaded.data.questions:
        for packed in dict.fromkeys((None, loaded.data.packed)):
            opened, seconds = opened_alone(loaded, folder, vision_language=[question], packed=packed)
            ((name, source),) = opened.streams.items()
            count, *figures = measure_reading(source, readers, rows, loaded.data.image_size)
            kind = opened.readings[name].format
            table.add_row(question.name, kind, *seconds, f"{count:,}", *(f"{each:,.3g}" for each in figures))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
