"""Our readings beside those of TensorFlow Datasets and of lerobot, which `fixtures/robot_readings` keeps."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rlds_data_sets import write_rlds
from robot_data_sets import make_episodes, write_lerobot

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.source import RobotDataset, open_robot_source


READINGS = Path(__file__).resolve().parents[2] / "fixtures" / "robot_readings"
CAMERAS = ["image_0", "image_1", "image_2", "image_3"]


@pytest.fixture(scope="module")
def tfds() -> Any:
    return np.load(READINGS / "tfds.npz")


@pytest.fixture(scope="module")
def bridge(data_dir: Path) -> RobotDataset:
    return open_robot_source(data_dir / "octo_bridge_debug", key="bridge_orig", cameras=CAMERAS, transform=None)


def rows_of(source: RobotDataset) -> list[dict[str, Any]]:
    return list(source.rows(source.shards()))


def states_of(source: RobotDataset) -> np.ndarray:
    proprio = [trajectory.proprio for _, trajectory in source.trajectories(RowProblems())]
    return np.concatenate([states for states in proprio if states is not None])


def test_the_bridge_sample_equals_what_tfds_reads(bridge, tfds):
    texts = json.loads((READINGS / "tfds.json").read_text())
    rows = rows_of(bridge)
    assert len(rows) == 250
    assert np.array_equal(np.stack([row["action"][0] for row in rows]), tfds["actions"].reshape(250, 7))
    assert [row["instruction"] for row in rows] == [text for episode in texts["instructions"] for text in episode]
    for number, camera in enumerate(CAMERAS):
        for episode, expected in enumerate(texts["sha256_of_pictures"][camera]):
            pictures = [row["images"][number]["bytes"] for row in rows if row["episode_index"] == episode]
            assert hashlib.sha256(b"".join(pictures)).hexdigest() == expected
    assert np.array_equal(states_of(bridge), tfds["states"].reshape(250, 7))


def test_decoded_pictures_differ_by_the_decoder_only(bridge, tfds):
    """TensorFlow's default is libjpeg's fast inverse transform, Pillow's the accurate one; told so, both agree."""
    rows = [row for row in rows_of(bridge) if row["step_index"] == 0]
    for row, fast, accurate in zip(rows, tfds["decoded"], tfds["accurate"], strict=False):
        picture = np.asarray(Image.open(io.BytesIO(row["images"][0]["bytes"])), dtype=int)
        assert np.abs(picture - accurate).max() == 0
        assert np.abs(picture - fast).mean() < 2.5


def test_the_bridge_transform_equals_tensorflows(data_dir, tfds):
    source = open_robot_source(data_dir / "octo_bridge_debug", key="bridge_orig")
    assert source.transform.name == "bridge"
    actions = np.stack([row["action"][0] for row in rows_of(source)])
    assert np.array_equal(actions, tfds["transformed"].reshape(200, 7))


def test_tfds_read_the_same_from_what_the_tests_write(tmp_path, tfds):
    episodes = make_episodes(3, 6, size=16)
    source = open_robot_source(write_rlds(tmp_path, episodes, shards=2), key="x", transform=None)
    assert np.array_equal(np.concatenate([row["action"] for row in rows_of(source)]), tfds["written_bridge"])
    fractal = open_robot_source(write_rlds(tmp_path, episodes, name="fractal20220817_data", shards=2), key="x")
    actions = np.concatenate([row["action"] for row in rows_of(fractal)])
    assert np.array_equal(actions[:, :3], tfds["written_world_vector"])
    assert np.array_equal(actions[:, 3:6], tfds["written_rotation_delta"])


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_data_sets_written_by_lerobot_equal_what_it_reads(version):
    readings = np.load(READINGS / f"lerobot_{version}.npz")
    cameras = ["image_0", "wrist"]
    source = open_robot_source(READINGS / f"lerobot_{version}", key="x", cameras=cameras)
    rows = rows_of(source)
    assert np.array_equal(np.concatenate([row["action"] for row in rows]), readings["action"])
    assert [row["instruction"] for row in rows] == readings["task"].tolist()
    assert [row["episode_index"] for row in rows] == readings["episode_index"].tolist()
    assert np.array_equal(states_of(source), readings["observation.state"])
    for number, camera in enumerate(cameras):
        frames = np.stack([np.asarray(row["images"][number]) for row in rows[::3]])
        # With PyAV 18.1 and torchcodec 0.13 no value differs; another FFmpeg may round differently.
        assert np.abs(frames.astype(int) - readings[f"observation.images.{camera}"]).max() <= 2


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
@pytest.mark.parametrize("kind", ["video", "image"])
def test_lerobot_read_the_same_from_what_the_tests_write(tmp_path, version, kind):
    readings = np.load(READINGS / f"lerobot_{'v3.0' if version == 'v3.0' else 'v2.1'}.npz")
    episodes = make_episodes(3, 6, ("image_0", "wrist"))
    rows = rows_of(open_robot_source(write_lerobot(tmp_path / "set", episodes, version, kind), key="x"))
    expected = {name: readings[f"written/{version}/{kind}/{name}"] for name in ("action", "task", "brightness")}
    assert np.array_equal(np.concatenate([row["action"] for row in rows]), expected["action"])
    assert [row["instruction"] for row in rows] == expected["task"].tolist()
    pictures = [row["images"][0] for row in rows]
    opened = [Image.open(io.BytesIO(entry["bytes"])) if isinstance(entry, dict) else entry for entry in pictures]
    brightness = np.array([np.asarray(picture).mean() for picture in opened])
    assert np.abs(brightness - expected["brightness"]).max() < 1.0
