"""Packs a vision-language set for sequential reading: rows checked, pictures made as small as they are needed.

    source   shards 0 1 2 | 3 4 5 | 6 7        read once; those between bars are a unit, with all of a tar archive
    units           0         1      2         divided among processes and machines: process i of n packs each n-th
    files    00000-0000   00001-0000  ...      at most `ROWS_PER_FILE` rows of the source in each

Files and records get their names when they are whole, and depend on the source and the settings alone: a process that
was killed is started again, goes on behind the last whole file, and the result is the same to the byte. `packed.py`
reads the files and says what is in them.
"""

import copy
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import count, islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from gen_vla.training.mixing.encoded_pictures import PictureError, decode_picture
from gen_vla.training.mixing.row_stream import row_length
from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.storage.json_files import read_json, write_json
from gen_vla.training.vision_language_data.packed import MANIFEST, PACKING, Found, merged, unit_record
from gen_vla.training.vision_language_data.rows import ConversationSource, Row


VERSION = 1
ROWS_PER_FILE, ROWS_PER_GROUP = 8192, 256  # 256 pictures of 224 pixels a side are about 8 MB
# A picture keeps its bytes up to so many times the side that is needed: encoded again with fewer pixels, but better
# than most are published, it would often take more bytes.
ROOM = 1.5
QUALITY = 95
LOSSLESS = ("PNG", "BMP", "TIFF", "GIF")
RECORD = b"gen_vla"  # in a file's footer
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURN = pa.struct([("question", pa.string()), ("answer", pa.string())])
SCHEMA = pa.schema([("images", pa.list_(PICTURE)), ("turns", pa.list_(TURN)), ("identity", pa.string())])
UNDECODABLE = "picture that does not decode"


def pack_set(
    source: ConversationSource,
    folder: Path,
    described: dict[str, Any],
    side: int | None,
    shard: tuple[int, int] = (0, 1),
    workers: int = 1,
) -> dict[str, Any] | None:
    """Packs one process's units of a set, those that are not there yet.

    Args:
        side: pixels of a picture's shorter side that are needed; `None` keeps all.
        shard: the number of this process, from 0, of how many.

    Returns:
        The manifest, once all units of all processes are there.

    Raises:
        ValueError: if the folder holds another packing.
        TooManyBadRows: past the limit of `source.problems`.
    """
    units = units_of(source)
    digest = hashlib.sha256(json.dumps(units).encode()).hexdigest()[:16]
    sizes = {"rows_per_file": ROWS_PER_FILE, "rows_per_group": ROWS_PER_GROUP}
    packing = {"version": VERSION, **described, "side": side, **sizes, "units": len(units), "shards": digest}
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder / PACKING, packing)
    own = range(shard[0], len(units), shard[1])
    left = [unit for unit in own if not (folder / unit_record(unit)).is_file()]
    for unit in set(own) - set(left):
        source.problems.receive(read_json(folder / unit_record(unit))["problems"])
    work = _Work(source, units, folder, side, **sizes)
    # New processes, since a copy of this one would share connections and threads' locks.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent) as pool:
        finished = map(work.pack, left)
        if workers > 1:
            finished = (done.result() for done in as_completed([pool.submit(work.pack, unit) for unit in left]))
        try:
            for record in tqdm(finished, source.name, len(left), unit=" units"):
                source.problems.receive(record["problems"])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    source.problems.finish()
    return _write_manifest(folder, packing)


def _end_with_parent() -> None:
    """Ends this process when the one that began it was killed."""

    def watch() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def units_of(source: ConversationSource) -> list[list[str]]:
    """The source's shards in the groups in which they are packed: about a file's rows, or an archive."""
    units: list[list[str]] = []
    last, rows = "", 0
    for shard in source.shards():
        file, _, numbers = shard.rpartition(":")
        first, end = map(int, numbers.split("-"))
        if not units or (file != last if source.lanes == 0 else rows + end - first > ROWS_PER_FILE):
            units.append([])
            rows = 0
        units[-1].append(shard)
        last, rows = file, rows + end - first
    return units


def _claim(path: Path, packing: dict[str, Any]) -> None:
    if not path.is_file():
        write_json(path, packing)
    found = read_json(path)
    if differing := sorted(name for name in found.keys() | packing if found.get(name) != packing.get(name)):
        was = "; ".join(f"{name} was {found.get(name)!r} and is {packing.get(name)!r}" for name in differing)
        raise ValueError(f"got {path.parent}, where another packing was begun: {was}; delete it, or pack elsewhere")


@dataclass(frozen=True)
class _Work:
    source: ConversationSource
    units: list[list[str]]
    folder: Path
    side: int | None
    rows_per_file: int
    rows_per_group: int

    def pack(self, unit: int) -> dict[str, Any]:
        """Packs a unit's files that are not there, and writes its record, which it returns."""
        source = copy.copy(self.source)
        source.problems = RowProblems(limit_share=1.0, name=source.name)
        rows, found = source.rows(self.units[unit]), Found()
        files: dict[str, list[int]] = {}
        for path in (self.folder / f"{unit:05d}-{number:04d}.parquet" for number in count()):
            some = islice(rows, self.rows_per_file)
            if path.is_file():
                taken, groups, record = sum(1 for _ in some), *json.loads(pq.read_metadata(path).metadata[RECORD])
            else:
                taken, groups, record = self._write(path, some)
                # A unit may be an archive of hours.
                tqdm.write(f"{source.name}: {path.name}, {sum(groups):,} rows", file=sys.stderr)
            found.add(record)
            if groups:
                files[path.name] = groups
                found.totals["bytes"] += path.stat().st_size
            if taken < self.rows_per_file:
                break
        found.problems.add({**source.problems.report(), "seen": 0})  # a good row is counted where it is written
        record = {"files": files, **found.report()}
        write_json(self.folder / unit_record(unit), record)
        return record

    def _write(self, path: Path, rows: Iterator[Row]) -> tuple[int, list[int], dict[str, Any]]:
        """Writes rows as one file, unless none is good: how many were taken, those of each row group, the record."""
        unfinished, found, taken, groups = path.with_name(f".{path.name}.{os.getpid()}"), Found(), 0, []
        options: dict[str, Any] = {"compression": "NONE", "use_dictionary": False, "write_page_checksum": True}
        with pq.ParquetWriter(unfinished, SCHEMA, write_statistics=False, **options) as writer:
            while some := list(islice(rows, self.rows_per_group)):
                taken += len(some)
                if good := [row for row in (self._packed(row, found) for row in some) if row]:
                    writer.write_table(pa.Table.from_pylist(good, schema=SCHEMA))
                    groups.append(len(good))
            writer.add_key_value_metadata({RECORD: json.dumps([groups, found.report()])})
        if groups:
            unfinished.replace(path)
        return taken, groups, found.report()

    def _packed(self, row: Row, found: Found) -> Row | None:
        try:
            pictures = [smaller(picture, self.side, row["identity"]) for picture in row["images"]]
        except PictureError:
            bad = {"seen": 0, "skipped": 1, "by_reason": {UNDECODABLE: 1}}
            found.problems.add({**bad, "examples": [f"{row['identity']}: {UNDECODABLE}"]})
            return None
        found.problems.seen += 1
        found.lengths[str(1 << (row_length({**row, "images": ()}) - 1).bit_length())] += 1
        changed = sum(new is not old for new, old in zip(pictures, row["images"]))
        found.totals.update(rows=1, pictures=len(pictures), re_encoded=changed)
        return {**row, "images": pictures}


def smaller(picture: dict[str, Any], side: int | None, identity: str) -> dict[str, Any]:
    """An encoded picture whose shorter side has `side` pixels, its shape kept; itself if it is not much larger; raises
    `PictureError` if it does not decode.

    JPEG of quality 95 without chroma subsampling, PNG for what was lossless. Every picture is decoded: what is packed
    can be read.
    """
    decoded = decode_picture(picture, identity)
    if side is None or min(decoded.size) <= ROOM * side:
        return picture
    with Image.open(io.BytesIO(picture["bytes"])) as opened:
        kind = "PNG" if opened.format in LOSSLESS else "JPEG"
    ratio = side / min(decoded.size)
    width, height = (max(round(length * ratio), side) for length in decoded.size)
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": QUALITY, "subsampling": 0} if kind == "JPEG" else {}
    decoded.resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": picture["path"]}


def _write_manifest(folder: Path, packing: dict[str, Any]) -> dict[str, Any] | None:
    paths = [folder / unit_record(unit) for unit in range(packing["units"])]
    if not all(path.is_file() for path in paths):
        return None
    for unfinished in folder.glob(".[0-9p]*"):  # units, or `PACKING`, of processes that were killed
        unfinished.unlink(missing_ok=True)
    manifest = merged(packing, map(read_json, paths))
    write_json(folder / MANIFEST, manifest)
    return manifest
