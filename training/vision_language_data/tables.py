"""Vision-language rows in Arrow tables: LLaVA-OneVision and VQASynth (parquet), recorded question sets (arrow files).

    onevision  image {bytes, path} or null, conversations [{from, value}]; many configs, one folder each
    vqasynth   images [{bytes, path}], messages [{role, content: [{type: "text" | "image", text, index}]}]
    recorded   image {bytes, path} or null, question, answer; written by `save_to_disk`

A shard is a row group of a parquet file, or a range of rows of an arrow file; of a remote parquet file only the footer
and the columns of the row groups in use are fetched.
"""

import posixpath
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.storage.recordings import MORE_TURNS, QUESTION_COLUMNS, load_recording
from gen_vla.training.vision_language_data.rows import (
    CONVERSATIONS,
    PICTURES,
    Attempts,
    ConversationSource,
    ReadPicture,
    Row,
    build_row,
    messages_of,
    pictures_of,
    read_picture,
    row_ranges,
)


Layout = Literal["onevision", "vqasynth"]
COLUMNS: dict[str, list[str]] = {
    "onevision": ["image", "conversations"],
    "vqasynth": ["images", "messages"],
}
OTHER_NAMES = dict(zip((*PICTURES, *CONVERSATIONS), (*PICTURES[::-1], *CONVERSATIONS[::-1]), strict=True))
ROWS_AT_A_TIME = 16  # pictures of this many rows are in memory at once
FOOTERS_AT_A_TIME = 16
UNREADABLE = "row group of a damaged parquet file"
NOT_THE_FILE = (FileNotFoundError, ConnectionError, TimeoutError)  # what says nothing about a file's content


def missing_columns(layout: str, found: list[str]) -> list[str]:
    return [column for column in COLUMNS[layout] if column not in found and OTHER_NAMES.get(column) not in found]


class TableSource(ConversationSource):
    """Rows of parquet files, by row group. Opening it reads the footer of every file.

    Args:
        layout: whose columns; conversations may also be called messages, and image images, and the other way round.
        read: gives pictures that rows name by a path; without it such a row is bad.
    """

    def __init__(
        self,
        name: str,
        filesystem: AbstractFileSystem,
        paths: list[str],
        layout: Layout,
        problems: RowProblems,
        read: ReadPicture | None = None,
    ):
        super().__init__(name, problems)
        self.filesystem, self.paths, self.read = filesystem, paths, read
        self.layout: Layout = layout
        with ThreadPoolExecutor(FOOTERS_AT_A_TIME) as pool:
            groups = list(pool.map(self._row_groups, paths))
        common = posixpath.commonpath(map(posixpath.dirname, paths)).rstrip("/") + "/"
        self._shards = {
            f"{path.removeprefix(common)}:{start}-{start + rows}": (path, group, start, rows)
            for path, sizes in zip(paths, groups, strict=True)
            for group, (start, rows) in enumerate(sizes)
        }
        if not self.count_rows():
            raise ValueError(f"{name!r}: got {len(paths)} parquet files without a row, expected some")

    def _row_groups(self, path: str) -> list[tuple[int, int]]:
        try:
            with self.filesystem.open(path, "rb") as file:
                footer = pq.read_metadata(file)
        except NOT_THE_FILE:
            raise
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"got {path}, which is no whole parquet file ({error}); fetch it again") from error
        found = footer.schema.to_arrow_schema().names
        missing = missing_columns(self.layout, found)
        if missing:
            raise ValueError(f"got {path} with columns {found}, expected also {', '.join(missing)} ({self.layout})")
        sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        return [(sum(sizes[:group]), rows) for group, rows in enumerate(sizes)]

    def count_rows(self) -> int:
        return sum(rows for _, _, _, rows in self._shards.values())

    def _attempts(self, shards: list[tuple[str, int, int, int]]) -> Attempts:
        for path, group, start, rows in shards:
            file_name, number = path.rsplit("/", 1)[-1], start
            try:
                for cells in self._cells(path, group):
                    identity = f"{file_name} row {number}"
                    yield identity, partial(_row, identity, cells, self.read)
                    number += 1
            except NOT_THE_FILE:
                raise
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError):
                # Where reading stopped, the rest of the row group is lost.
                lost = start + rows - number
                self.problems.skip(f"{file_name} rows {number} to {start + rows - 1}", UNREADABLE, lost)

    def _cells(self, path: str, group: int) -> Iterator[dict[str, Any]]:
        with self.filesystem.open(path, "rb") as file, pq.ParquetFile(file, pre_buffer=True) as table:
            columns = [name for name in table.schema_arrow.names if name in (*PICTURES, *CONVERSATIONS)]
            for batch in table.iter_batches(ROWS_AT_A_TIME, row_groups=[group], columns=columns):
                yield from batch.to_pylist()


class RecordedSource(ConversationSource):
    """Rows of a data set that `save_to_disk` wrote; a table of them by number, too."""

    def __init__(self, name: str, path: str | Path, problems: RowProblems):
        super().__init__(name, problems)
        rows = load_recording(path, QUESTION_COLUMNS)
        if not len(rows):
            raise ValueError(f"{name!r}: got {path} without a row, expected some")
        self._shards = {f"{name}:{r.start}-{r.stop}": r for r in row_ranges(len(rows))}
        kept = [column for column in (*QUESTION_COLUMNS, MORE_TURNS) if column in rows.column_names]
        self.dataset = rows.select_columns(kept).with_format("arrow")
        self._numbers: range | list[int] = range(len(rows))

    def only(self, wanted: Callable[[str], bool], problems: RowProblems | None = None) -> Self:
        source = super().only(wanted, problems)
        source._numbers = [number for number in self._numbers if wanted(f"{self.name} row {number}")]
        return source

    def count_rows(self) -> int:
        return len(self._numbers)

    __len__ = count_rows

    def __getitem__(self, number: int) -> Row:
        """The row with this number as it is stored, unchecked."""
        number = self._numbers[number]
        (cells,) = self._cells(number, number + 1)
        turns = [{"question": cells["question"], "answer": cells["answer"]}, *(cells.get(MORE_TURNS) or ())]
        return {"images": pictures_of(cells), "turns": turns, "identity": f"{self.name} row {number}"}

    def _attempts(self, shards: list[range]) -> Attempts:
        for numbers in shards:
            for start in numbers[::ROWS_AT_A_TIME]:
                for number, cells in enumerate(self._cells(start, min(start + ROWS_AT_A_TIME, numbers.stop)), start):
                    identity = f"{self.name} row {number}"
                    yield identity, partial(_row, identity, cells, None)

    def _cells(self, first: int, last: int) -> list[dict[str, Any]]:
        table: Any = self.dataset[first:last]
        return table.to_pylist()


def _row(identity: str, cells: dict[str, Any], read: ReadPicture | None) -> Row:
    turns = [cells, *(cells.get(MORE_TURNS) or ())] if "question" in cells else []
    messages = [part for turn in turns for part in (("human", turn["question"]), ("gpt", turn["answer"]))]
    messages = messages or messages_of(cells)
    return build_row(identity, messages, [read_picture(picture, read) for picture in pictures_of(cells)])
