"""RLDS folders: what is checked at opening, and damaged episodes."""

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest
from rlds_data_sets import example, framed, write_rlds
from robot_data_sets import encode, make_episodes

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.rlds import RLDSReader, StepFeature, find_rlds, read_features
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.storage.data_folder import DataFolder
from gen_vla.training.storage.tfrecord_reading import TFRecordError


@pytest.fixture
def written(tmp_path):
    return write_rlds(tmp_path, make_episodes(4, 5, ("image_0", "image_1"), size=16), shards=2)


def shard_of(folder, number):
    return folder / f"bridge_orig-train.tfrecord-{number:05d}-of-00002"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def open_reader(folder, split="train"):
    return RLDSReader(DataFolder(folder), split)


def test_metadata_and_features(written):
    reader = open_reader(written)
    assert reader.dataset == "bridge_orig"
    assert reader.shards() == [shard_of(written, 0).name, shard_of(written, 1).name]
    assert reader.cameras == ["observation/image_0", "observation/image_1"]
    assert reader.features == ["action", "is_first", "is_last", "observation/state"]
    assert reader.count_episodes() == 4
    assert reader.count_steps() is None
    assert reader.files() == {shard_of(written, n).name: shard_of(written, n).stat().st_size for n in (0, 1)}
    features = read_features(DataFolder(written))
    assert features["action"] == StepFeature("tensor", (7,))
    assert features["is_first"] == StepFeature("tensor", ())
    assert features["observation/image_1"].kind == "image"
    assert features["language_instruction"].kind == "text"


@pytest.mark.parametrize("cameras", [(), ("observation/image_1",)])
def test_episodes_hold_what_was_asked_for(written, cameras):
    reader = open_reader(written)
    episodes = list(reader.episodes(reader.shards()[1], ["action", "is_first"], cameras, RowProblems()))
    assert [episode.index for episode in episodes] == [2, 3]
    assert set(episodes[0].steps) == {"action", "is_first"}
    assert episodes[0].steps["action"].shape == (7, 7)
    assert episodes[0].steps["is_first"].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert len(list(episodes[0].images)) == (7 if cameras else 0)
    assert episodes[1].identity.endswith("tfrecord-00001-of-00002 episode 1")


def test_the_version_folder_is_found_from_above(written):
    for folder in (written, written.parent, written.parent.parent):
        found = find_rlds(DataFolder(folder))
        assert found is not None
        assert found.path == str(written)
    write_rlds(written.parent.parent, make_episodes(1, 4, size=16), name="other")
    with pytest.raises(RobotDataError, match=r"2 RLDS data sets \(bridge_orig/1.0.0, other/1.0.0\)"):
        find_rlds(DataFolder(written.parent.parent))


@pytest.mark.parametrize("cut", [1, 100, 3000])
def test_a_shard_that_is_cut_off_is_found_at_opening(written, cut):
    path = shard_of(written, 1)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(TFRecordError, match=r"tfrecord-00001-of-00002.*cut off"):
        open_reader(written)


def test_a_shard_that_lacks_its_last_record(written):
    path = shard_of(written, 1)
    content = path.read_bytes()
    first = 12 + int.from_bytes(content[:8], "little") + 4
    path.write_bytes(content[:first])
    with pytest.raises(TFRecordError, match=r"1 records, expected 2"):
        open_reader(written)


def test_metadata_of_an_older_tfds_counts_bytes_differently(written):
    edit(written / "dataset_info.json", lambda info: info["splits"][0].update(numBytes="1"))
    assert open_reader(written).count_episodes() == 4


def test_a_missing_shard_is_named(written):
    shard_of(written, 0).unlink()
    with pytest.raises(RobotDataError, match=r"without 1 of the 2 shards.*tfrecord-00000-of-00002"):
        open_reader(written)


def test_splits_are_listed(written):
    with pytest.raises(RobotDataError, match=r"split='val', expected one of train"):
        open_reader(written, "val")
    edit(written / "dataset_info.json", lambda info: info["splits"][0].update(shardLengths=[]))
    with pytest.raises(RobotDataError, match="without episodes"):
        open_reader(written)


def test_metadata_that_is_no_robot_data(written):
    def drop(name):
        def change(tree):
            del tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"][name]

        return change

    edit(written / "features.json", drop("language_instruction"))
    with pytest.raises(RobotDataError, match="without instructions there is nothing to learn"):
        open_reader(written)
    edit(written / "features.json", lambda tree: tree["featuresDict"]["features"].pop("steps"))
    with pytest.raises(RobotDataError, match="expected an RLDS data set"):
        open_reader(written)


def test_other_file_formats_are_refused(written):
    edit(written / "dataset_info.json", lambda info: info.update(fileFormat="array_record"))
    with pytest.raises(RobotDataError, match="files of array_record, expected tfrecord"):
        open_reader(written)


def test_a_damaged_episode_is_skipped_and_named(written):
    path = shard_of(written, 0)
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(bytes(content))
    reader = open_reader(written)
    problems = RowProblems(limit_share=1.0)
    episodes = list(reader.episodes(path.name, ["action"], ["observation/image_0"], problems))
    assert [episode.index for episode in episodes] == [1]
    assert problems.report()["examples"] == [f"{path} episode 0: episode with a wrong checksum"]


def test_an_episode_of_other_features_is_skipped(written):
    def change(tree):
        steps = tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
        steps["action"]["tensor"]["shape"]["dimensions"] = ["6"]

    edit(written / "features.json", change)
    reader = open_reader(written)
    problems = RowProblems(limit_share=1.0)
    assert list(reader.episodes(reader.shards()[0], ["action"], [], problems)) == []
    assert problems.report()["by_reason"] == {"episode that does not hold the features features.json says": 2}


def test_the_real_sample(data_dir):
    folder = find_rlds(DataFolder(data_dir / "octo_bridge_debug"))
    assert folder is not None
    reader = RLDSReader(folder, "val")
    assert reader.dataset == "bridge_dataset"
    assert reader.cameras == [f"observation/image_{number}" for number in range(4)]
    episode = next(reader.episodes(reader.shards()[0], ["action", "observation/state"], [], RowProblems()))
    assert episode.steps["action"].shape == episode.steps["observation/state"].shape == (10, 7)
    assert np.isfinite(episode.steps["action"]).all()


def test_shards_compressed_with_gzip_are_read(written):
    plain = [episode.steps["action"] for episode in _episodes(written, ["action"])]
    for number in (0, 1):
        path = shard_of(written, number)
        path.write_bytes(gzip.compress(path.read_bytes()))
    for cameras in ((), ("observation/image_0",)):
        read = [episode.steps["action"] for episode in _episodes(written, ["action"], cameras)]
        assert all(np.array_equal(a, b) for a, b in zip(plain, read, strict=True))


@pytest.mark.parametrize("encoding", ["zlib", "bytes"])
def test_tensors_that_are_stored_as_bytes(tmp_path, encoding):
    episode = make_episodes(1, 5, size=16)[0]
    folder = write_rlds(tmp_path, [episode], name="my_set")
    pack = zlib.compress if encoding == "zlib" else bytes
    rows = [pack(row.astype("<f8").tobytes()) for row in episode.actions]
    features: dict[str, Any] = {"steps/action": rows, "steps/language_instruction": [b"go"] * len(rows)}
    features["steps/observation/image_0"] = [encode(picture) for picture in episode.pictures["image_0"]]
    next(folder.glob("*.tfrecord-*")).write_bytes(framed(example(features)))
    stored = {"dtype": "float64", "encoding": encoding, "shape": {"dimensions": ["7"]}}
    edit(folder / "features.json", lambda tree: _steps(tree)["action"].update(tensor=stored))
    assert np.array_equal(_episodes(folder, ["action"])[0].steps["action"], episode.actions)


def test_an_episode_that_is_skipped_says_which_feature(written):
    edit(
        written / "features.json",
        lambda tree: _steps(tree)["action"]["tensor"].update(shape={"dimensions": ["6"]}),
    )
    with pytest.raises(RobotDataError, match=r"episode 0 \(got action with 35 values, expected shape \[5, 6\]\)"):
        open_robot_source(written, key="x", transform=None)


def _episodes(folder, features, cameras=()):
    reader = open_reader(folder)
    problems = RowProblems(limit_share=1.0)
    return [episode for shard in reader.shards() for episode in reader.episodes(shard, features, cameras, problems)]


def _steps(tree):
    return tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
