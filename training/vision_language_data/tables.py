"""Vision-language rows in Arrow tables: LLaVA-OneVision and VQASynth (parquet), recorded question sets (arrow files).

Decides: which columns hold what. Refuses to know: file names, which files belong to a set.

    onevision  image {bytes, path} or null, conversations [{from, value}]; many configs, one folder each
    vqasynth   images [{bytes, path}], messages [{role, content: [{type: "text" | "image", text, index}]}]
    recorded   image {bytes, path} or null, question, answer; written by `save_to_disk`

A shard is a row group of a parquet file, or a range of rows of an arrow file; of a remote parquet file only the footer
and the columns of the row groups in use are fetched.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.vision_language_data.llava import Attempts, Pictures, row_ranges, shards_named
from gen_vla.training.vision_language_data.rows import (
    CONVERSATIONS,
    PICTURES,
    Row,
    build_row,
    good_rows,
    messages_of,
    pictures_of,
    read_pictures,
)


Layout = Literal["onevision", "vqasynth", "recorded"]
COLUMNS: dict[str, list[str]] = {
    "onevision": ["image", "conversations"],
    "vqasynth": ["images", "messages"],
    "recorded": ["image", "question", "answer"],
}
OTHER_NAMES = dict(zip((*PICTURES, *CONVERSATIONS), (*PICTURES[::-1], *CONVERSATIONS[::-1]), strict=True))
ROWS_AT_A_TIME = 16  # pictures of this many rows are in memory at once
FOOTERS_AT_A_TIME = 16
UNREADABLE = "row group of a damaged parquet file"


def missing_columns(layout: str, found: list[str]) -> list[str]:
    """The columns of a layout that a table lacks under either name."""
    return [column for column in COLUMNS[layout] if column not in found and OTHER_NAMES.get(column) not in found]


class TableSource:
    """Rows of parquet files. Opening it reads the footer of every file.

    Args:
        name: of the set.
        filesystem, paths: the files, in order.
        layout: whose columns; conversations may also be called messages, and image images, and the other way round.
        problems: counts bad rows.
        pictures: where pictures are that rows give by a path; without it such a row is bad.

    Raises:
        ValueError: naming the file, if one is no parquet file or lacks a column, or if there is no row at all.
    """

    def __init__(
        self,
        name: str,
        filesystem: AbstractFileSystem,
        paths: list[str],
        layout: Layout,
        problems: RowProblems,
        pictures: Pictures | None = None,
    ):
        self.name, self.filesystem, self.problems, self.pictures = name, filesystem, problems, pictures
        self.layout: Layout = layout
        with ThreadPoolExecutor(FOOTERS_AT_A_TIME) as pool:
            groups = list(pool.map(self._row_groups, paths))
        common = _common_folder(paths)
        self._groups = {
            f"{path.removeprefix(common)}:{start}-{start + rows}": (path, group, start, rows)
            for path, sizes in zip(paths, groups, strict=True)
            for group, (start, rows) in enumerate(sizes)
        }
        if not self.count_rows():
            raise ValueError(f"{name!r}: got {len(paths)} parquet files without a row, expected some")

    def _row_groups(self, path: str) -> list[tuple[int, int]]:
        """First row and number of rows of each row group."""
        try:
            with self.filesystem.open(path, "rb") as file:
                footer = pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, (FileNotFoundError, ConnectionError, TimeoutError)):
                raise
            raise ValueError(f"got {path}, which is no whole parquet file ({error}); fetch it again") from error
        found = footer.schema.to_arrow_schema().names
        missing = missing_columns(self.layout, found)
        if missing:
            raise ValueError(f"got {path} with columns {found}, expected also {', '.join(missing)} ({self.layout})")
        sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        return [(sum(sizes[:group]), rows) for group, rows in enumerate(sizes)]

    def shards(self) -> list[str]:
        """Row groups."""
        return list(self._groups)

    def count_rows(self) -> int | None:
        """Rows of all files, from their footers."""
        return sum(rows for _, _, _, rows in self._groups.values())

    def rows(self, shards: list[str]) -> Iterator[Row]:
        """The rows of these row groups, in the order of the files."""
        return good_rows(self._attempts(shards_named(self._groups, shards, self.name)), self.problems)

    def _attempts(self, groups: list[tuple[str, int, int, int]]) -> Attempts:
        for path, group, start, rows in groups:
            file_name, number = path.rsplit("/", 1)[-1], start
            try:
                for cells in self._cells(path, group):
                    identity = f"{file_name} row {number}"
                    yield identity, partial(_row, identity, cells, self.pictures)
                    number += 1
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
                if isinstance(error, (FileNotFoundError, ConnectionError, TimeoutError)):
                    raise
                # What reading stopped at is lost up to the end of the row group.
                self.problems.skip(
                    f"{file_name} rows {number} to {start + rows - 1}", UNREADABLE, start + rows - number
                )

    def _cells(self, path: str, group: int) -> Iterator[dict[str, Any]]:
        with self.filesystem.open(path, "rb") as file, pq.ParquetFile(file, pre_buffer=True) as table:
            columns = [name for name in table.schema_arrow.names if name in (*PICTURES, *CONVERSATIONS)]
            for batch in table.iter_batches(ROWS_AT_A_TIME, row_groups=[group], columns=columns):
                yield from batch.to_pylist()


class RecordedSource:
    """Rows of a data set that `save_to_disk` wrote, memory-mapped.

    Args:
        name: of the set.
        paths: its arrow files, local, in order.
        problems: counts bad rows.

    Raises:
        ValueError: naming the file, if one cannot be read or lacks a column, or if there is no row at all.
    """

    def __init__(self, name: str, paths: list[Path], problems: RowProblems):
        self.name, self.paths, self.problems = name, paths, problems
        self._ranges: dict[str, tuple[Path, range]] = {}
        for path in paths:
            rows = sum(batch.num_rows for batch in _batches(path))
            self._ranges |= {f"{path.name}:{r.start}-{r.stop}": (path, r) for r in row_ranges(rows)}
        if not self._ranges:
            raise ValueError(f"{name!r}: got {len(paths)} arrow files without a row, expected some")

    def shards(self) -> list[str]:
        """Ranges of rows."""
        return list(self._ranges)

    def count_rows(self) -> int | None:
        """Rows of all files."""
        return sum(len(numbers) for _, numbers in self._ranges.values())

    def rows(self, shards: list[str]) -> Iterator[Row]:
        """The rows of these shards, in the order of the files."""
        return good_rows(self._attempts(shards_named(self._ranges, shards, self.name)), self.problems)

    def _attempts(self, ranges: list[tuple[Path, range]]) -> Attempts:
        for path, numbers in ranges:
            first = 0
            for batch in _batches(path):
                start, stop = max(numbers.start - first, 0), min(numbers.stop - first, batch.num_rows)
                for offset in range(start, stop, ROWS_AT_A_TIME):
                    part = batch.slice(offset, min(ROWS_AT_A_TIME, stop - offset)).select(COLUMNS["recorded"])
                    for number, cells in enumerate(part.to_pylist(), start=first + offset):
                        identity = f"{path.name} row {number}"
                        yield identity, partial(_row, identity, cells, None)
                first += batch.num_rows


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            missing = [column for column in COLUMNS["recorded"] if column not in stream.schema.names]
            if missing:
                raise ValueError(f"got {path} with columns {stream.schema.names}, expected also {', '.join(missing)}")
            yield from stream
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"got {path}, which is no whole arrow stream ({error}); record or fetch it again") from error


def _row(identity: str, cells: dict[str, Any], pictures: Pictures | None) -> Row:
    recorded = "question" in cells
    messages = [("human", cells["question"]), ("gpt", cells["answer"])] if recorded else messages_of(cells)
    return build_row(identity, messages, read_pictures(pictures_of(cells), pictures.read if pictures else None))


def _common_folder(paths: list[str]) -> str:
    """The folders that all paths begin with, with the slash at the end."""
    folders = [path.split("/")[:-1] for path in paths]
    common = []
    for names in zip(*folders):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return "/".join([*common, ""]) if common else ""
