"""A JSON array of rows, or JSON lines, too large for memory, read by row number; names found by their hash.

The files meant hold gigabytes (RoboPoint: 1.7 GB, 1.4 million rows). One pass notes where every row lies (16 bytes a
row); afterwards a row is one seek and one read, in any process.
"""

import codecs
import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub.constants import HF_HOME
from tqdm import tqdm


BLOCK_BYTES = 1 << 12  # in which the end of a row is looked for at first
LONGEST_ROW = 1 << 26  # bytes; a row that does not end within them is a broken one
SPACE = re.compile(rb"[ \t\r\n]*")
DECODER = json.JSONDecoder()
WORTH_A_BAR = 1 << 27  # bytes


class JsonRowsError(ValueError):
    """A file that is no JSON array of rows; says where and what was found."""


def local_copy(filesystem: AbstractFileSystem, path: str) -> Path:
    """`path` itself on a local file system, else a copy below `HF_HOME/gen_vla`, fetched once for each version.

    Processes on one machine wait for the first to fetch it. A file that changes on the other side gets a new copy.
    """
    if isinstance(filesystem, LocalFileSystem):
        return Path(path)
    version = hashlib.sha256(f"{path} {filesystem.ukey(path)}".encode()).hexdigest()[:16]
    copy = Path(HF_HOME) / "gen_vla" / version / path.rsplit("/", 1)[-1]
    copy.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(copy.with_name(copy.name + ".lock")):
        if not copy.is_file():
            unfinished = copy.with_name(copy.name + ".unfinished")
            filesystem.get_file(path, str(unfinished))
            os.replace(unfinished, copy)
    return copy


def scan_rows(path: Path) -> Iterator[tuple[int, int, Any]]:
    """Yields (first byte, number of bytes, row) for each entry of a JSON array or of JSON lines, of which one is in
    memory. JSON lines begin with an object; a single one is taken for them in a file called `.jsonl` alone.

    Raises:
        JsonRowsError: if the file holds something else, or ends inside a row.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    first = place = _behind_space(data, len(codecs.BOM_UTF8) if data[:3] == codecs.BOM_UTF8 else 0)
    is_array = data[first : first + 1] == b"["
    if not is_array and data[first : first + 1] != b"{":
        raise _error(path, data, first, "expected a list of rows")
    place = _behind_space(data, first + is_array)
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=size < WORTH_A_BAR, leave=False)
    with bar:
        while data[place : place + 1] != (b"]" if is_array else b""):
            row, end = _value(path, data, place)
            following = _behind_space(data, end)
            if not is_array:
                if place == first and following == size and path.suffix != ".jsonl":
                    raise _error(path, data, first, "expected a list of rows, or JSON lines of at least two")
            elif data[following : following + 1] == b",":
                following = _behind_space(data, following + 1)
            elif data[following : following + 1] != b"]":
                raise _error(path, data, following, "expected ',' or ']' behind a row")
            yield place, end - place, row
            bar.update(end - place)
            place = following


def _behind_space(data: Any, place: int) -> int:
    found = SPACE.match(data, place)
    assert found is not None
    return found.end()


def _value(path: Path, data: Any, place: int) -> tuple[Any, int]:
    length = BLOCK_BYTES
    while True:
        whole = place + length >= len(data)
        try:
            # A character that is cut off at the end of the block is left out.
            text, _ = codecs.utf_8_decode(data[place : place + length], "strict", whole)
            value, end = DECODER.raw_decode(text)
            return value, place + len(text[:end].encode())
        except UnicodeDecodeError as error:
            raise _error(path, data, place, f"expected UTF-8 text ({error.reason})") from error
        except json.JSONDecodeError as error:
            if whole or length > LONGEST_ROW:
                raise _error(path, data, place, f"expected a whole row there ({error.msg})") from error
        length *= 8


def _error(path: Path, data: Any, place: int, expected: str) -> JsonRowsError:
    found = data[place : place + 30].decode(errors="replace")
    return JsonRowsError(
        f"got {path} with {found!r} at byte {place}, {expected}; if the file was cut off, fetch it again"
    )


class JsonRows:
    """Rows of a JSON file by number, from the (first byte, number of bytes) that `scan_rows` gives of each."""

    def __init__(self, path: Path, places: list[tuple[int, int]]):
        self.path = path
        self.places = np.array(places, dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.places)

    def read(self, numbers: Iterable[int]) -> Iterator[tuple[int, Any]]:
        with open(self.path, "rb") as file:
            for number in numbers:
                offset, length = self.places[number].tolist()
                file.seek(offset)
                yield int(number), json.loads(file.read(length))


class NameIndex:
    """Numbers of names, which may come several times; hashes of 64 bits, so compare the name of what you find."""

    def __init__(self, names: Iterable[str]):
        hashes = np.fromiter((_hash(name) for name in names), dtype=np.uint64)
        self.order = np.argsort(hashes, kind="stable")
        self.hashes = hashes[self.order]

    def find(self, name: str) -> list[int]:
        wanted = np.uint64(_hash(name))
        first, last = (int(np.searchsorted(self.hashes, wanted, side=side)) for side in ("left", "right"))
        return self.order[first:last].tolist()


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
