"""RLDS folders: what is checked at opening, and damaged episodes."""

import json
import zlib
from typing import Any

import numpy as np
import pytest
from rlds_data_sets import edit_features, example, framed, write_rlds
from robot_data_sets import encode, make_episodes

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.rlds import RLDSReader, find_rlds
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.storage.data_folder import DataFolder
from gen_vla.training.storage.tfrecord_reading import TFRecordError


@pytest.fixture
def written(tmp_path):
    return write_rlds(tmp_path, make_episodes(4, 5, ("image_0", "image_1"), size=16), shards=2)


def shard_of(folder, number):
    return folder / f"bridge_orig-train.tfrecord-{number:05d}-of-00002"


def edit_split(folder, **changes):
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0].update(changes)
    path.write_text(json.dumps(info))


def open_reader(folder, split="train"):
    return RLDSReader(DataFolder(folder), split)


def read_episodes(folder, features=("action",), cameras=()):
    reader, problems = open_reader(folder), RowProblems(limit_share=1.0)
    return [e for shard in reader.shards() for e in reader.episodes(shard, features, cameras, problems)], problems


def test_metadata_and_features(written):
    reader = open_reader(written)
    assert reader.dataset == "bridge_orig"
    assert reader.shards() == [shard_of(written, 0).name, shard_of(written, 1).name]
    assert reader.cameras == ["observation/image_0", "observation/image_1"]
    assert reader.features == ["action", "is_first", "is_last", "observation/state"]
    assert (reader.count_episodes(), reader.count_steps()) == (4, None)
    assert reader.files() == {shard_of(written, n).name: shard_of(written, n).stat().st_size for n in (0, 1)}
    edit_split(written, numBytes="1")  # as an older tfds counts
    assert open_reader(written).count_episodes() == 4


@pytest.mark.parametrize("cameras", [(), ("observation/image_1",)])
def test_episodes_hold_what_was_asked_for(written, cameras):
    episodes, _ = read_episodes(written, ["action", "is_first"], cameras)
    assert [episode.index for episode in episodes] == [0, 1, 2, 3]
    for episode, made in zip(episodes, make_episodes(4, 5, size=16), strict=True):
        assert np.array_equal(episode.steps["action"], made.actions)
    assert set(episodes[2].steps) == {"action", "is_first"}
    assert episodes[2].steps["is_first"].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert len(list(episodes[2].images)) == (7 if cameras else 0)
    assert episodes[3].identity.endswith("tfrecord-00001-of-00002 episode 1")


def test_the_version_folder_is_found_from_above(written):
    for folder in (written, written.parent, written.parent.parent):
        found = find_rlds(DataFolder(folder))
        assert found is not None
        assert found.path == str(written)
    write_rlds(written.parent.parent, make_episodes(1, 4, size=16), name="other")
    with pytest.raises(RobotDataError, match=r"2 RLDS data sets \(bridge_orig/1.0.0, other/1.0.0\)"):
        find_rlds(DataFolder(written.parent.parent))


@pytest.mark.parametrize("cut", [1, 100, 3000, "last record"])
def test_a_shard_that_is_cut_off_is_found_at_opening(written, cut):
    path = shard_of(written, 1)
    content = path.read_bytes()
    whole = cut == "last record"
    path.write_bytes(content[: 12 + int.from_bytes(content[:8], "little") + 4] if whole else content[:-cut])
    message = r"1 records, expected 2" if whole else r"tfrecord-00001-of-00002.*cut off"
    with pytest.raises(TFRecordError, match=message):
        open_reader(written)


def test_what_is_missing_is_named(written):
    with pytest.raises(RobotDataError, match=r"split='val', expected one of train"):
        open_reader(written, "val")
    shard_of(written, 0).unlink()
    with pytest.raises(RobotDataError, match=r"without 1 of the 2 shards.*tfrecord-00000-of-00002"):
        open_reader(written)
    edit_split(written, shardLengths=[])
    with pytest.raises(RobotDataError, match="without episodes"):
        open_reader(written)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("features.json", '"language_instruction"', '"words"', "without instructions there is nothing to learn"),
        ("features.json", '"steps"', '"frames"', "expected an RLDS data set"),
        ("dataset_info.json", '"tfrecord"', '"array_record"', "files of array_record, expected tfrecord"),
    ],
)
def test_metadata_that_is_no_robot_data(written, file, old, new, message):
    (written / file).write_text((written / file).read_text().replace(old, new))
    with pytest.raises(RobotDataError, match=message):
        open_reader(written)


def test_a_damaged_episode_is_skipped_and_named(written):
    path = shard_of(written, 0)
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(bytes(content))
    episodes, problems = read_episodes(written, ["action"], ["observation/image_0"])
    assert [episode.index for episode in episodes] == [1, 2, 3]
    assert problems.report()["examples"] == [f"{path} episode 0: episode with a wrong checksum"]


def test_an_episode_of_other_features_is_skipped_and_says_which(written):
    edit_features(written, lambda steps: steps["action"]["tensor"]["shape"].update(dimensions=["6"]))
    episodes, problems = read_episodes(written)
    assert episodes == []
    assert problems.report()["by_reason"] == {"episode that does not hold the features features.json says": 4}
    with pytest.raises(RobotDataError, match=r"episode 0 \(got action with 35 values, expected shape \[5, 6\]\)"):
        open_robot_source(written, key="x", transform=None)


@pytest.mark.parametrize(("encoding", "pack"), [("zlib", zlib.compress), ("bytes", bytes)])
def test_tensors_that_are_stored_as_bytes(tmp_path, encoding, pack):
    episode = make_episodes(1, 5, size=16)[0]
    folder = write_rlds(tmp_path, [episode], name="my_set")
    rows = [pack(row.astype("<f8").tobytes()) for row in episode.actions]
    features: dict[str, Any] = {"steps/action": rows, "steps/language_instruction": [b"go"] * len(rows)}
    features["steps/observation/image_0"] = [encode(picture) for picture in episode.pictures["image_0"]]
    next(folder.glob("*.tfrecord-*")).write_bytes(framed(example(features)))
    stored = {"dtype": "float64", "encoding": encoding, "shape": {"dimensions": ["7"]}}
    edit_features(folder, lambda steps: steps["action"].update(tensor=stored))
    ((read,), _) = read_episodes(folder)
    assert np.array_equal(read.steps["action"], episode.actions)
