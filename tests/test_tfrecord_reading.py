"""TFRecord files: framing, the three kinds of lists, damaged files, and the real Bridge sample."""

import struct

import numpy as np
import pytest

from gen_vla.training.tfrecord_reading import TFRecordError, parse_example, read_examples, read_records


def message(number: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([number << 3 | 2, len(body)]) + body


def example(name: str, feature: bytes) -> bytes:
    return message(1, message(1, message(1, name.encode()) + message(2, feature)))


def record(body: bytes) -> bytes:
    return struct.pack("<Q", len(body)) + b"\0" * 4 + body + b"\0" * 4


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


def test_unpacked_values_and_empty_features_are_read():
    unpacked = message(3, bytes([1 << 3 | 0, 7, 1 << 3 | 0, 8]))
    assert list(parse_example(example("n", unpacked))["n"]) == [7, 8]
    assert parse_example(example("empty", b""))["empty"] == []


def test_records_are_read_in_order(tmp_path):
    path = tmp_path / "two.tfrecord"
    path.write_bytes(record(b"first") + record(b"second"))
    assert list(read_records(path)) == [b"first", b"second"]


@pytest.mark.parametrize("cut", [5, 14, 18])
def test_a_file_cut_off_in_a_record_names_the_place(tmp_path, cut):
    path = tmp_path / "cut.tfrecord"
    path.write_bytes(record(b"first") + record(b"second")[:cut])
    with pytest.raises(TFRecordError, match=r"byte 21.*cut off"):
        list(read_records(path))


def test_a_picture_is_no_tfrecord(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0" * 20)
    with pytest.raises(TFRecordError, match="no TFRecord file"):
        list(read_records(path))


def test_the_real_bridge_sample_has_25_crops_of_ten_steps(data_dir):
    shard = next((data_dir / "octo_bridge_debug").glob("**/*train.tfrecord-*"))
    examples = list(read_examples(shard))
    assert len(examples) == 25
    for episode in examples:
        assert np.asarray(episode["steps/action"]).reshape(10, 7).dtype == np.float32
        assert len(episode["steps/language_instruction"]) == 10
        assert bytes(episode["steps/observation/image_0"][0])[:2] == b"\xff\xd8"
