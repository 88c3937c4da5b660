"""TFRecord files: framing, the three kinds of lists, damaged files, and the real Bridge sample."""

import struct

import numpy as np
import pytest

from gen_vla.training.storage.tfrecord_reading import (
    TFRecordError,
    map_records,
    parse_example,
    read_records,
)


def message(number: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([number << 3 | 2, len(body)]) + body


def example(name: str, feature: bytes) -> bytes:
    return message(1, message(1, message(1, name.encode()) + message(2, feature)))


def crc(data: bytes) -> int:
    """CRC-32C bit by bit, rotated and shifted as TFRecord does: the plain way."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def record(body: bytes) -> bytes:
    length = struct.pack("<Q", len(body))
    return length + struct.pack("<I", crc(length)) + body + struct.pack("<I", crc(body))


def test_bytes_floats_and_integers_come_back():
    assert parse_example(example("text", message(1, message(1, b"one") + message(1, b"two"))))["text"] == [
        b"one",
        b"two",
    ]
    floats = parse_example(example("x", message(2, message(1, struct.pack("<2f", 0.5, -2.0)))))["x"]
    assert isinstance(floats, np.ndarray)
    assert floats.dtype == np.float32
    assert floats.tolist() == [0.5, -2.0]
    minus_one = b"\xff" * 9 + b"\x01"
    integers = parse_example(example("n", message(3, message(1, b"\x03\xac\x02" + minus_one))))["n"]
    assert isinstance(integers, np.ndarray)
    assert integers.tolist() == [3, 300, -1]
    unpacked = message(3, bytes([1 << 3 | 0, 7, 1 << 3 | 0, 8]))
    assert list(parse_example(example("n", unpacked))["n"]) == [7, 8]
    assert parse_example(example("empty", b""))["empty"] == []


def test_only_what_is_wanted_is_read():
    both = message(1, b"".join(message(1, message(1, n) + message(2, message(2, b""))) for n in (b"a", b"b")))
    assert set(parse_example(both)) == {"a", "b"}
    assert set(parse_example(both, {"b"})) == {"b"}


def test_records_are_read_in_order(tmp_path):
    path = tmp_path / "two.tfrecord"
    path.write_bytes(record(b"first") + record(b"second"))
    assert list(read_records(path)) == [b"first", b"second"]
    assert [bytes(view) for view in map_records(path)] == [b"first", b"second"]
    with open(path, "rb") as file:
        assert list(read_records("remote", file)) == [b"first", b"second"]
        assert not file.closed
    path.write_bytes(b"")
    assert list(read_records(path)) == []
    assert list(map_records(path)) == []


def test_a_record_that_does_not_match_its_checksum(tmp_path):
    path = tmp_path / "damaged.tfrecord"
    path.write_bytes(record(b"first") + record(b"second").replace(b"second", b"sekond") + record(b"third"))
    with pytest.raises(TFRecordError, match=r"byte 21.*checksum"):
        list(read_records(path))
    assert list(read_records(path, tolerant=True)) == [b"first", None, b"third"]
    assert len(list(map_records(path))) == 3


SECOND = record(b"second")


@pytest.mark.parametrize("rest", [SECOND[:5], SECOND[:14], SECOND[:18], b"\x07" + SECOND[1:]])
def test_framing_that_cannot_be_followed_names_the_place(tmp_path, rest):
    """Files that are cut off, and one whose length does not match its checksum."""
    path = tmp_path / "damaged.tfrecord"
    path.write_bytes(record(b"first") + rest)
    for read in (read_records, map_records):
        with pytest.raises(TFRecordError, match=r"byte 21.*cut off"):
            list(read(path))
    path.write_bytes(b"\xff\xd8\xff\xe0" * 20)
    with pytest.raises(TFRecordError, match="no TFRecord file"):
        list(read_records(path))
