"""Buffers of streams stay within a budget of bytes, whatever the pictures, loaders and data sets are."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from robot_data_sets import make_episodes, write_lerobot
from tiny_runs import noise

from gen_vla.training.mixing.buffer_sizes import DECODER_BYTES, buffer_sizes, measure
from gen_vla.training.mixing.encoded_pictures import HeldPictures, decode_picture, row_bytes
from gen_vla.training.mixing.mixture import Turns
from gen_vla.training.mixing.row_stream import BufferSize, RowStream
from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.robot_data.video_frames import VideoPicture


class Steps:
    """Episodes of 50 rows with a picture of some bytes."""

    def __init__(self, size: int, lanes: int, shards: int = 40):
        self.name, self.size, self.lanes, self.files = "steps", size, lanes, shards
        self.problems = RowProblems()

    def shards(self) -> list[str]:
        return [str(number) for number in range(self.files)]

    def rows(self, shards: list[str]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            for step in range(50):
                picture = {"bytes": bytes(self.size), "path": None}
                yield {"images": [picture], "episode_index": int(shard), "identity": f"{shard} step {step}"}

    def count_rows(self) -> int | None:
        return None


@pytest.mark.parametrize(("loaders", "size"), [(8, 100_000), (4, 20_000), (0, 1_000_000)])
def test_all_loaders_together_hold_no_more_than_the_budget(loaders: int, size: int) -> None:
    sources: dict[str, Any] = {"robot/a": Steps(size, 16), "vision_language/b": Steps(2 * size, 1)}
    sizes = buffer_sizes(sources, Turns([1.0], [1.0]), {}, 1e9, loaders, most=10**6)
    held = 0.0
    for name, buffer in sizes.items():
        row = measure(sources[name], None).row
        held += row * (buffer.rows + (50 * buffer.lanes if name == "robot/a" else 0))
    assert 0.7e9 < held * max(loaders, 1) <= 1e9
    assert sizes["robot/a"].lanes == min(16, int(0.25e9 / max(loaders, 1) / (50 * (size + 4096))))
    assert buffer_sizes(sources, Turns([1.0], [1.0]), {}, 1e9, loaders, most=64)["robot/a"].rows == 64


def test_frames_are_held_as_small_jpegs_and_forgotten_by_their_episode(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", make_episodes(3, 6, size=128), "v2.1")
    source, hold = open_robot_source(folder, key="mine").undecoded(), HeldPictures(32)
    measured = measure(source, hold)
    assert measured.row < 8_000
    assert measured.lane == DECODER_BYTES
    (_, trajectory), *_ = source.labelled_episodes(source.shards()[:1])
    assert len(trajectory.actions) == 6
    stream = RowStream(source, (0, 1), [0, 0], BufferSize(10, 3), hold)
    shown = {row["identity"]: decode_picture(row["images"][0], "x") for row in (stream.take() for _ in range(21))}
    plain = {row["identity"]: row["images"][0] for row in open_robot_source(folder, key="mine").rows(source.shards())}
    assert shown.keys() == plain.keys()
    for identity, picture in plain.items():
        assert shown[identity].size == (32, 32)
        assert abs(np.asarray(shown[identity]).mean() - np.asarray(picture).mean()) < 1


def test_a_frame_is_decoded_and_kept_by_nobody_else(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", make_episodes(1, 4, size=64), "v2.1")
    source = open_robot_source(folder, key="mine").undecoded()
    ((episode, _),) = source.labelled_episodes(source.shards())
    pictures = [entry for step in episode.images for entry in step]
    assert all(isinstance(entry, VideoPicture) for entry in pictures)
    for step in episode.images:
        HeldPictures(32)({"images": step, "identity": "x"})
    assert not any(hasattr(entry._decoded, "size") for entry in pictures)


def test_what_is_small_or_of_any_size_stays_as_it_is() -> None:
    small = {"bytes": b"no picture", "path": "a"}
    large = noise(3, 200)
    row = {"images": [small, large], "identity": "x"}
    assert HeldPictures(32)(dict(row))["images"] == [small, large]
    broken = {"bytes": b"x" * 100_000, "path": "a"}
    assert HeldPictures(32)({"images": [broken], "identity": "x"})["images"] == [broken]
    assert row_bytes(row) == 4096 + 10 + 200 * 200 * 3
