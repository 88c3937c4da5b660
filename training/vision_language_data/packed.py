"""Vision-language rows that `packing.py` wrote: parquet files, of which a row group is a shard.

    NAME/packing.json         what was packed and how: the source, its revision, the size of pictures, how many units
    NAME/00003-0000.parquet   images [{bytes, path}], turns [{question, answer}], identity: the first rows of unit 3
    NAME/00003.json           unit 3 is done: its files, their row groups, counts, bad rows
    NAME/manifest.json        all of these together, once every unit is done

Texts and pictures are separate columns: a stream that goes past its earlier rows reads the texts alone, and seeks.
"""

import copy
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gen_vla.training.mixing.encoded_pictures import StoredPicture
from gen_vla.training.mixing.skipped_rows import Counts, RowProblems
from gen_vla.training.storage.data_folder import DataFolder
from gen_vla.training.vision_language_data.rows import Attempts, ConversationSource, Row
from gen_vla.training.vision_language_data.tables import NOT_THE_FILE, UNREADABLE


PACKING, MANIFEST = "packing.json", "manifest.json"
TEXTS = ["images.list.element.path", "turns", "identity"]
TOTALS = ("rows", "bytes", "pictures", "re_encoded")
RECORDS_AT_A_TIME = 16
SHOWN = 20  # numbers of missing units in an error


class PackedSource(ConversationSource):
    """Packed rows, with the bytes of their pictures (`whole`) or with `StoredPicture`s that read them."""

    def __init__(self, name: str, folder: DataFolder, problems: RowProblems):
        super().__init__(name, problems)
        self.folder, self.whole = folder, True
        self.manifest = read_manifest(folder)
        for file, groups in self.manifest["files"].items():
            for group, (end, rows) in enumerate(zip(accumulate(groups), groups)):
                self._shards[f"{file}:{end - rows}-{end}"] = (file, group, end - rows, rows)
        if not self._shards:
            raise ValueError(f"{name!r}: got {folder.path} without a row, expected some; look at its {PACKING}")
        self._footers: dict[str, Any] = {}
        self._pictures: tuple[Any, Any] = (None, None)  # those of the last row group

    def count_rows(self) -> int:
        return self.manifest["rows"]

    def undecoded(self) -> "PackedSource":
        other = copy.copy(self)
        other.whole = False
        return other

    def _attempts(self, shards: list[tuple[str, int, int, int]]) -> Attempts:
        for file, group, start, rows in shards:
            try:
                yield from self._group_rows(file, group)
            except NOT_THE_FILE:
                raise
            except (pa.ArrowException, OSError):
                self.problems.skip(f"{file} rows {start} to {start + rows - 1}", UNREADABLE, rows)

    def _group_rows(self, file: str, group: int) -> Attempts:
        texts = self._read(file, group, TEXTS).to_pylist()
        if self.whole:
            self._group_pictures(file, group)  # a damaged group gives no row at all
        for number, row in enumerate(texts):
            yield row["identity"], partial(self._row, file, group, number, row)

    def _row(self, file: str, group: int, number: int, row: dict[str, Any]) -> Row:
        places = range(len(row["images"]))
        pictures: list[Any] = [StoredPicture(partial(self._picture, file, group, number, place)) for place in places]
        if self.whole:
            pictures = [picture.read() for picture in pictures]
        return {"images": pictures, "turns": row["turns"], "identity": row["identity"]}

    def _picture(self, file: str, group: int, number: int, place: int) -> dict[str, Any]:
        """The picture; of a damaged row group one without bytes, which is reported like any that does not decode."""
        try:
            return self._group_pictures(file, group)[number][place].as_py()
        except NOT_THE_FILE:
            raise
        except (pa.ArrowException, OSError):
            return {"bytes": b"", "path": f"in a {UNREADABLE}"}

    def _group_pictures(self, file: str, group: int) -> Any:
        if self._pictures[0] != (file, group):
            self._pictures = ((file, group), self._read(file, group, ["images"])["images"])
        return self._pictures[1]

    def _read(self, file: str, group: int, columns: list[str]) -> pa.Table:
        with self.folder.open(file) as opened:
            # The footer is read once for each file.
            table = pq.ParquetFile(
                opened, metadata=self._footers.get(file), pre_buffer=True, page_checksum_verification=True
            )
            self._footers[file] = table.metadata
            return table.read_row_group(group, columns=columns, use_threads=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_footers": {}, "_pictures": (None, None)}


@dataclass
class Found:
    totals: Counter[str] = field(default_factory=Counter)
    lengths: Counter[str] = field(default_factory=Counter)  # rows by characters of texts, up to a power of two
    problems: Counts = field(default_factory=Counts)

    def add(self, report: dict[str, Any]) -> None:
        self.totals.update({name: report[name] for name in TOTALS})
        self.lengths.update(report["lengths"])
        self.problems.add(report["problems"])

    def report(self) -> dict[str, Any]:
        lengths = dict(sorted(self.lengths.items(), key=lambda entry: int(entry[0])))
        totals = {name: self.totals[name] for name in TOTALS}
        return {**totals, "lengths": lengths, "problems": self.problems.report()}


def unit_record(unit: int) -> str:
    return f"{unit:05d}.json"


def read_manifest(folder: DataFolder) -> dict[str, Any]:
    """The manifest of a set, put together where no process has seen it whole; raises `ValueError` where units are
    missing, or there is no packed set.
    """
    if folder.exists(MANIFEST):
        return folder.read_json(MANIFEST)
    if not folder.exists(PACKING):
        raise ValueError(f"got {folder.path} without {PACKING}, expected a set that gen-vla pack wrote; pack it")
    packing = folder.read_json(PACKING)
    there, wanted = set(folder.glob("*.json")), [unit_record(unit) for unit in range(packing["units"])]
    missing = [str(unit) for unit, record in enumerate(wanted) if record not in there]
    if missing:
        named = ", ".join([*missing[:SHOWN], *(["..."] if missing[SHOWN:] else [])])
        raise ValueError(
            f"got {folder.path} with {len(wanted) - len(missing)} of {len(wanted)} units, expected all; missing are "
            f"{named}: run gen-vla pack again, with the --shard of each process that was stopped"
        )
    with ThreadPoolExecutor(RECORDS_AT_A_TIME) as pool:
        return merged(packing, pool.map(folder.read_json, wanted))


def merged(packing: dict[str, Any], records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    found, files = Found(), {}
    for record in records:
        files |= record["files"]
        found.add(record)
    return {**packing, **found.report(), "files": files}


def is_packed(path: str | Path) -> bool:
    try:
        return DataFolder(path).exists(PACKING)
    except FileNotFoundError:
        return False
