"""Reads TFRecord files of `tf.train.Example` without TensorFlow: the shards of RLDS and TFDS data sets.

    framing  uint64 length, uint32 CRC of it, `length` bytes, uint32 CRC of them; little endian; masked CRC-32C
    Example  field 1 Features -> field 1 map entries (1 name, 2 Feature) -> one of 1 bytes, 2 float32, 3 int64 lists

`read_records` reads a file in order. `map_records` maps a local file into memory and reads only what is accessed,
so that a pass over the actions, or a check of the framing, never reads the images between them.
"""

import mmap
import os
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np


Features = dict[str, "list[bytes] | np.ndarray"]

HEADER, FOOTER = 12, 4  # bytes of framing before and after a record
CRC_MASK = 0xA282EAD8


class TFRecordError(ValueError):
    """A file that is no TFRecord file, is damaged or ends inside a record; names the file and the offset."""


def read_examples(path: str | Path) -> Iterator[Features]:
    """Yields the examples of one shard: lists of bytes, float32 [n] or int64 [n] by feature name."""
    yield from map(parse_example, read_records(path))


def read_records(path: str | Path, file: BinaryIO | None = None, tolerant: bool = False) -> Iterator[Any]:
    """Yields the raw records of one file, front to back; raises `TFRecordError` where the framing cannot be followed,
    as in a compressed file.

    Args:
        path: of a local file; or only its name, for messages, with `file`.
        file: the file, opened to be read in binary (a remote one); it is left open.
        tolerant: whether a record whose content does not match its checksum is `None`, and not an error.
    """
    with open(path, "rb") if file is None else nullcontext(file) as opened:
        yield from _follow_framing(path, lambda _, size: opened.read(size), tolerant)


def map_records(path: str | Path) -> Iterator[memoryview]:
    """Yields the raw records of a local file as views; what is not accessed is not read, nor is its checksum checked;
    raises `TFRecordError` where the framing cannot be followed.
    """
    if os.path.getsize(path):  # an empty file cannot be mapped
        with open(path, "rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        yield from _follow_framing(path, lambda place, size: view[place : place + size], check=False)


def _follow_framing(
    path: str | Path, take: Callable[[int, int], Any], tolerant: bool = False, check: bool = True
) -> Iterator[Any]:
    """Yields the records; `take` gives the bytes at a place in the file, `check` compares their checksums."""
    place = 0
    while header := take(place, HEADER):
        whole = len(header) == HEADER and _is_checksum(header[8:], header[:8])
        length = struct.unpack("<Q", header[:8])[0] if whole else 0
        body = take(place + HEADER, length)
        footer = take(place + HEADER + length, FOOTER)
        if not whole or len(body) + len(footer) != length + FOOTER:
            raise TFRecordError(
                f"got {path} with no whole record at byte {place}, expected length, checksum, data, checksum; "
                "the file is cut off, compressed or no TFRecord file: fetch it again, or write it without compression"
            )
        if not check or _is_checksum(footer, body):
            yield body
        elif tolerant:
            yield None
        else:
            raise TFRecordError(
                f"got {path} with a record at byte {place} that does not match its checksum; the file is damaged: "
                "fetch it again"
            )
        place += HEADER + length + FOOTER


def _is_checksum(footer: bytes, data: bytes | memoryview) -> bool:
    """Whether four bytes are the checksum of others: a rotated CRC plus a constant, since records may hold CRCs."""
    crc = google_crc32c.value(bytes(data))
    return struct.unpack("<I", footer)[0] == (((crc >> 15) | (crc << 17)) + CRC_MASK) & 0xFFFFFFFF


def parse_example(record: bytes | memoryview, wanted: Collection[str] | None = None) -> Features:
    """The features of a serialised `tf.train.Example`; only those in `wanted`, where it is given."""
    features: Features = {}
    for _, body in _fields(record, wanted=1):
        for _, entry in _fields(body, wanted=1):
            parts = dict(_fields(entry))
            name = bytes(parts[1]).decode()
            if wanted is None or name in wanted:
                features[name] = _feature(parts.get(2, memoryview(b"")))
    return features


def _feature(body: memoryview) -> "list[bytes] | np.ndarray":
    for kind, values in _fields(body):
        if kind == 1:
            return [bytes(value) for _, value in _fields(values, wanted=1)]
        if kind == 2:
            packed = b"".join(bytes(value) for _, value in _fields(values, wanted=1))
            return np.frombuffer(packed, dtype="<f4").copy()
        if kind == 3:
            return np.array(_integers(values), dtype=np.int64)
    return []


def _integers(values: memoryview) -> list[int]:
    numbers = []
    for _, value in _fields(values, wanted=1):
        if isinstance(value, int):  # unpacked
            numbers.append(value)
            continue
        place = 0
        while place < len(value):
            number, place = _varint(value, place)
            numbers.append(number)
    return [number - (1 << 64) if number >= 1 << 63 else number for number in numbers]


def _fields(body: bytes | memoryview, wanted: int | None = None) -> Iterator[tuple[int, memoryview]]:
    """Field numbers and contents of a message; varints come as integers."""
    view, place = memoryview(body), 0
    while place < len(view):
        key, place = _varint(view, place)
        number, wire = key >> 3, key & 7
        if wire == 2:
            length, place = _varint(view, place)
            value, place = view[place : place + length], place + length
        elif wire == 0:
            value, place = _varint(view, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, place = view[place : place + size], place + size
        else:
            raise TFRecordError(f"got wire type {wire} in a record, expected 0, 1, 2 or 5: no tf.train.Example")
        if wanted is None or number == wanted:
            yield number, value  # type: ignore[misc]


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = view[place]
        number |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return number, place
        shift += 7
