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
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from gen_vla.training.mixing.encoded_pictures import PictureError, decode_picture
from gen_vla.training.mixing.row_stream import row_length
from gen_vla.training.mixing.skipped_rows import Counts, RowProblems
from gen_vla.training.vision_language_data.packed import MANIFEST, PACKING, merged, unit_record
from gen_vla.training.vision_language_data.rows import ConversationSource, Row


VERSION = 1
ROWS_PER_FILE, ROWS_PER_GROUP = 8192, 256  # 256 pictures of 224 pixels a side are about 8 MB
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
    progress: bool = True,
) -> dict[str, Any] | None:
    """Packs one process's units of a set, those that are not there yet.

    Args:
        source: what to pack; its `problems` count bad rows.
        folder: of this set.
        described: where the set comes from, for the manifest.
        side: pixels of a picture's shorter side that are kept; `None` keeps all.
        shard: the number of this process, from 0, of how many.
        workers: processes on this machine.

    Returns:
        The manifest, once all units of all processes are there.

    Raises:
        ValueError: if the folder holds another packing.
        TooManyBadRows: past the limit of `source.problems`.
    """
    units = units_of(source)
    digest = hashlib.sha256(json.dumps(units).encode()).hexdigest()[:16]
    packing = {"version": VERSION, **described, "side": side, "units": len(units), "shards": digest}
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder / PACKING, packing)
    own = range(shard[0], len(units), shard[1])
    left = [unit for unit in own if not (folder / unit_record(unit)).is_file()]
    for unit in set(own) - set(left):
        source.problems.receive(_read_json(folder / unit_record(unit))["problems"])
    plain = copy.copy(source)
    plain.problems = RowProblems(limit_share=1.0, name=source.name)
    # New processes, since a copy of this one would share connections and threads' locks.
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (plain, units, folder, side)) as pool:
        done = [pool.submit(_pack, unit) for unit in left] if workers > 1 else []
        _begin(plain, units, folder, side)
        finished = (future.result() for future in as_completed(done)) if done else map(_pack, left)
        try:
            for record in tqdm(finished, source.name, len(left), unit=" units", disable=not progress):
                source.problems.receive(record["problems"])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    source.problems.finish()
    return _write_manifest(folder, packing)


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
    """Writes down what is packed here; raises `ValueError` if it is something else."""
    if not path.is_file():
        _write_json(path, packing)
    found = _read_json(path)
    if differing := sorted(name for name in found.keys() | packing if found.get(name) != packing.get(name)):
        was = "; ".join(f"{name} was {found.get(name)!r} and is {packing.get(name)!r}" for name in differing)
        raise ValueError(f"got {path.parent}, where another packing was begun: {was}; delete it, or pack elsewhere")


_work: tuple[ConversationSource, list[list[str]], Path, int | None]  # of this process


def _begin(*work: Any) -> None:
    global _work
    _work = work  # type: ignore[assignment]


def _pack(unit: int) -> dict[str, Any]:
    source, units, folder, side = _work
    return pack_unit(source, unit, units[unit], folder, side)


def pack_unit(source: ConversationSource, unit: int, shards: list[str], folder: Path, side: int | None) -> dict:
    """Packs a unit's files that are not there, and writes its record, which it returns."""
    source = copy.copy(source)
    source.problems = RowProblems(limit_share=1.0, name=source.name)
    rows, files, totals, lengths, problems = source.rows(shards), {}, Counter[str](), Counter[str](), Counts()
    for path in (folder / f"{unit:05d}-{number:04d}.parquet" for number in range(10_000)):
        if path.is_file():
            taken = sum(1 for _ in islice(rows, ROWS_PER_FILE))
            record = json.loads(pq.read_metadata(path).metadata[RECORD])
        else:
            taken, record = write_file(path, islice(rows, ROWS_PER_FILE), side, source.name)
        if record["groups"]:
            files[path.name] = record["groups"]
            totals.update({**record["totals"], "bytes": path.stat().st_size})
        lengths.update(record["lengths"])
        problems.add(record["problems"])
        if taken < ROWS_PER_FILE:
            break
    problems.add({**source.problems.report(), "seen": 0})  # a good row is counted where it is written
    for unfinished in folder.glob(f".{unit:05d}-*"):  # of a process that was killed
        unfinished.unlink(missing_ok=True)
    sums = {name: totals[name] for name in ("rows", "bytes", "pictures", "re_encoded")}
    record = {"files": files, **sums, "lengths": dict(sorted(lengths.items())), "problems": problems.report()}
    _write_json(folder / unit_record(unit), record)
    return record


def write_file(path: Path, rows: Iterable[Row], side: int | None, name: str) -> tuple[int, dict[str, Any]]:
    """Writes rows as one file, unless none is good; how many there were, and what is known of those written."""
    packer, taken, groups = _Packer(side, RowProblems(limit_share=1.0, name=name)), 0, []
    unfinished, rows = path.with_name(f".{path.name}.{os.getpid()}"), iter(rows)
    options: dict[str, Any] = {"compression": "NONE", "use_dictionary": False, "write_page_checksum": True}
    with pq.ParquetWriter(unfinished, SCHEMA, write_statistics=False, **options) as writer:
        while some := list(islice(rows, ROWS_PER_GROUP)):
            taken += len(some)
            if good := list(packer.packed(some)):
                writer.write_table(pa.Table.from_pylist(good, schema=SCHEMA))
                groups.append(len(good))
        record = {"groups": groups, "totals": dict(packer.totals), "lengths": dict(packer.lengths)}
        record["problems"] = packer.problems.report()
        writer.add_key_value_metadata({RECORD: json.dumps(record, sort_keys=True)})
    if groups:
        unfinished.replace(path)
    return taken, record


class _Packer:
    """Makes rows' pictures smaller, and counts."""

    def __init__(self, side: int | None, problems: RowProblems):
        self.side, self.problems = side, problems
        self.totals: Counter[str] = Counter()
        self.lengths: Counter[str] = Counter()  # rows by characters of their texts, rounded up to a power of two

    def packed(self, rows: list[Row]) -> Iterator[Row]:
        for row in rows:
            try:
                pictures = [smaller(picture, self.side, row["identity"]) for picture in row["images"]]
            except PictureError:
                self.problems.skip(row["identity"], UNDECODABLE)
                continue
            self.problems.seen()
            texts = row_length({**row, "images": ()})
            self.lengths[str(1 << (texts - 1).bit_length())] += 1
            changed = sum(new is not old for new, old in zip(pictures, row["images"]))
            self.totals.update(rows=1, pictures=len(pictures), re_encoded=changed)
            yield {**row, "images": pictures}


def smaller(picture: dict[str, Any], side: int | None, identity: str) -> dict[str, Any]:
    """An encoded picture whose shorter side has at most `side` pixels, its shape kept; itself if it is as small.

    JPEG of quality 95 without chroma subsampling, PNG for what was lossless. Where that would be larger, the picture
    stays as it is. Every picture is decoded: what is packed can be read.

    Raises:
        PictureError: if it does not decode.
    """
    decoded = decode_picture(picture, identity)
    if side is None or min(decoded.size) <= side:
        return picture
    with Image.open(io.BytesIO(picture["bytes"])) as opened:
        kind = "PNG" if opened.format in LOSSLESS else "JPEG"
    ratio = side / min(decoded.size)
    width, height = (max(round(length * ratio), side) for length in decoded.size)
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": QUALITY, "subsampling": 0} if kind == "JPEG" else {}
    decoded.resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind, **options)
    made = buffer.getvalue()
    return {"bytes": made, "path": picture["path"]} if len(made) < len(picture["bytes"]) else picture


def _write_manifest(folder: Path, packing: dict[str, Any]) -> dict[str, Any] | None:
    paths = [folder / unit_record(unit) for unit in range(packing["units"])]
    if not all(path.is_file() for path in paths):
        return None
    manifest = merged(packing, map(_read_json, paths))
    _write_json(folder / MANIFEST, manifest)
    return manifest


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: Any) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
