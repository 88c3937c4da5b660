"""A JSON array of rows, or JSON lines, too large for memory, read by row number; names found by their hash.

The files meant hold gigabytes (RoboPoint: 1.7 GB, 1.4 million rows). One pass notes where every row lies (16 bytes a
row); afterwards a row is one seek and one read, in any process.
"""

import codecs
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub.constants import HF_HOME
from tqdm import tqdm


BLOCK_BYTES = 1 << 23
LONGEST_ROW = 1 << 26  # characters; a row that does not end within them is a broken one
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
    """Yields (first byte, number of bytes, row) for each entry of a JSON array or of JSON lines, one block of the file
    in memory. JSON lines begin with an object; a single one is taken for them in a file called `.jsonl` alone.

    Raises:
        JsonRowsError: if the file holds something else, or ends inside a row.
    """
    size = path.stat().st_size
    hidden = size < WORTH_A_BAR
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=hidden, leave=False)
    with open(path, "rb") as file, bar:
        text = _Text(path, file)
        for row in _lines(text) if text.next_character() == "{" else _array(text):
            yield row
            bar.update(row[1])


def _array(text: "_Text") -> Iterator[tuple[int, int, Any]]:
    if text.next_character() != "[":
        raise text.error("expected a list of rows")
    text.skip(1)
    while text.next_character() != "]":
        yield text.value()
        if text.next_character() == ",":
            text.skip(1)
        elif text.next_character() != "]":
            raise text.error("expected ',' or ']' behind a row")


def _lines(text: "_Text") -> Iterator[tuple[int, int, Any]]:
    start = text.error("expected a list of rows, or JSON lines of at least two")
    first = text.value()
    if not text.next_character() and text.path.suffix != ".jsonl":
        raise start
    yield first
    while text.next_character():
        yield text.value()


class _Text:
    """A window over a UTF-8 file that knows the byte offset of its place."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file
        self.utf8 = codecs.getincrementaldecoder("utf-8")()
        self.json = json.JSONDecoder()
        self.text, self.place, self.offset = "", 0, 0
        if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            self.offset = len(codecs.BOM_UTF8)
        else:
            file.seek(0)

    def next_character(self) -> str:
        """The next one that is no white space, not consumed; empty at the end of the file."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in " \t\r\n":
                self.skip(1)
            if self.place < len(self.text):
                return self.text[self.place]
            if not self._read_on():
                return ""

    def skip(self, characters: int) -> None:
        """Moves over ASCII characters."""
        self.place += characters
        self.offset += characters

    def value(self) -> tuple[int, int, Any]:
        """Consumes one JSON value: its first byte, its number of bytes, itself."""
        while True:
            try:
                value, end = self.json.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                if len(self.text) - self.place > LONGEST_ROW or not self._read_on():
                    raise self.error(f"expected a whole row there ({error.msg})") from error
                continue
            offset, length = self.offset, len(self.text[self.place : end].encode())
            self.place, self.offset = end, offset + length
            return offset, length, value

    def _read_on(self) -> bool:
        block = self.file.read(BLOCK_BYTES)
        try:
            self.text = self.text[self.place :] + self.utf8.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise self.error(f"expected UTF-8 text ({error.reason})") from error
        self.place = 0
        return bool(block)

    def error(self, expected: str) -> JsonRowsError:
        found = self.text[self.place : self.place + 30]
        return JsonRowsError(
            f"got {self.path} with {found!r} at byte {self.offset}, {expected}; if the file was cut off, fetch it "
            "again"
        )


class JsonRows:
    """Rows of a JSON file by number.

    Args:
        path: a local file.
        places: (first byte, number of bytes) of each row, as `scan_rows` gives them.
    """

    def __init__(self, path: Path, places: list[tuple[int, int]]):
        self.path = path
        self.places = np.array(places, dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.places)

    def read(self, numbers: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """Yields (number, row) in the order asked for."""
        with open(self.path, "rb") as file:
            for number in numbers:
                offset, length = self.places[number].tolist()
                file.seek(offset)
                yield int(number), json.loads(file.read(length))


class NameIndex:
    """Numbers of names, 16 bytes a name. It keeps hashes of 64 bits only, so compare the name of what you find.

    Args:
        names: in the order of their numbers 0, 1, 2, ...; a name may come several times.
    """

    def __init__(self, names: Iterable[str]):
        hashes = np.fromiter((_hash(name) for name in names), dtype=np.uint64)
        self.order = np.argsort(hashes, kind="stable")
        self.hashes = hashes[self.order]

    def find(self, name: str) -> list[int]:
        """The numbers of a name, ascending; none if it is unknown."""
        wanted = np.uint64(_hash(name))
        first, last = (int(np.searchsorted(self.hashes, wanted, side=side)) for side in ("left", "right"))
        return self.order[first:last].tolist()


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
