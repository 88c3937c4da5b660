"""Reads TFRecord files of `tf.train.Example` without TensorFlow: the shards of RLDS and TFDS data sets.

Decides: the framing and the protocol-buffer fields. Refuses to know: what the features mean, image codecs.

    framing  uint64 length, uint32 CRC of it, `length` bytes, uint32 CRC of them; little endian, CRCs not checked
    Example  field 1 Features -> field 1 map entries (1 name, 2 Feature) -> one of 1 bytes, 2 float32, 3 int64 lists
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np


Features = dict[str, "list[bytes] | np.ndarray"]


class TFRecordError(ValueError):
    """A file that is no TFRecord file, or ends in the middle of a record; names the file and the offset."""


def read_examples(path: str | Path) -> Iterator[Features]:
    """Yields the examples of one shard: lists of bytes, float32 [n] or int64 [n] by feature name."""
    for record in read_records(path):
        yield parse_example(record)


def read_records(path: str | Path) -> Iterator[bytes]:
    """Yields the raw records of one file."""
    with open(path, "rb") as file:
        while header := file.read(12):
            offset = file.tell() - len(header)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else None
            body = file.read(length + 4) if length is not None and length < 1 << 31 else b""
            if length is None or len(body) != length + 4:
                raise TFRecordError(
                    f"got {path} with no whole record at byte {offset}, expected length, checksum, data, checksum; "
                    "the file is cut off or no TFRecord file: fetch it again"
                )
            yield body[:-4]


def parse_example(record: bytes) -> Features:
    """The features of a serialised `tf.train.Example`."""
    features: Features = {}
    for _, body in _fields(record, wanted=1):
        for _, entry in _fields(body, wanted=1):
            parts = dict(_fields(entry))
            features[bytes(parts[1]).decode()] = _feature(parts.get(2, memoryview(b"")))
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
        if isinstance(value, int):
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
