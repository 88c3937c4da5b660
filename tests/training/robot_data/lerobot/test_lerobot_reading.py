"""LeRobot data: what is checked at opening, damaged files, and columns of any type."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from robot_data_sets import make_episodes, write_lerobot

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.lerobot.reading import LeRobotReader
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.robot_data.stored_columns import column_array
from gen_vla.training.storage.data_folder import DataFolder


def open_reader(folder):
    return LeRobotReader(DataFolder(folder), "train")


def read_all(reader, cameras=(), problems=None):
    problems = problems or RowProblems()
    return [e for shard in reader.shards() for e in reader.episodes(shard, ["action"], cameras, problems)]


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_what_a_reader_says_of_itself(tmp_path, version):
    reader = open_reader(write_lerobot(tmp_path / "set", make_episodes(3, 4, ("wrist", "image_0")), version))
    assert reader.dataset == "set"
    assert reader.cameras == ["observation.images.image_0", "observation.images.wrist"]
    expected = ["observation.state", "action", "timestamp", "frame_index", "episode_index", "index", "task_index"]
    assert reader.features == expected
    assert (reader.count_episodes(), reader.count_steps()) == (3, 15)
    assert all(name.endswith(".parquet") and size > 0 for name, size in reader.files().items())
    assert len(reader.files()) == (2 if version == "v3.0" else 3)
    assert [episode.index for episode in read_all(reader)] == [0, 1, 2]


def test_episodes_of_one_row_group_are_taken_apart(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 4), "v3.0")
    path = folder / "data" / "chunk-000" / "file-000.parquet"
    pq.write_table(pq.read_table(path), path)  # as lerobot's conversion from v2.1 leaves it
    assert pq.ParquetFile(path).num_row_groups == 1
    episodes = make_episodes(4, 4)
    for read, made in zip(read_all(open_reader(folder)), episodes, strict=True):
        assert np.array_equal(read.steps["action"], made.actions)


def test_a_column_that_is_missing_is_found_at_opening(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4))
    path = folder / "data" / "chunk-000" / "episode_000000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)
    with pytest.raises(RobotDataError, match="expected action for the identity transform"):
        open_robot_source(folder, key="x")
    pq.write_table(pq.read_table(path).drop_columns(["timestamp"]), path)
    with pytest.raises(RobotDataError, match="expected also timestamp"):
        open_robot_source(folder, key="x")


def test_a_column_that_is_missing_later_on_is_skipped_and_named(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4))
    path = folder / "data" / "chunk-000" / "episode_000001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)
    problems = RowProblems(limit_share=1.0)
    assert [episode.index for episode in read_all(open_reader(folder), problems=problems)] == [0]
    assert problems.report()["skipped"] == 5
    assert "episode_000001.parquet episode 1" in problems.report()["examples"][0]


def test_files_that_are_missing_or_cut_off(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4))
    data = folder / "data" / "chunk-000"
    (data / "episode_000001.parquet").write_bytes((data / "episode_000001.parquet").read_bytes()[:-20])
    problems = RowProblems(limit_share=1.0)
    assert [episode.index for episode in read_all(open_reader(folder), problems=problems)] == [0]
    assert problems.report()["skipped"] == 5
    next((folder / "videos").rglob("episode_000001.mp4")).unlink()
    with pytest.raises(RobotDataError, match=r"without 1 of the files .*episode_000001.mp4"):
        open_robot_source(folder, key="x")
    (data / "episode_000000.parquet").write_bytes(b"nothing")
    with pytest.raises(RobotDataError, match=r"episode_000000.parquet that is no whole parquet file"):
        open_reader(folder)
    (data / "episode_000000.parquet").unlink()
    with pytest.raises(RobotDataError, match=r"without 1 of the files .*episode_000000.parquet"):
        open_reader(folder)


def test_data_of_another_episode_are_not_taken(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(3, 4), "v3.0")
    path = folder / "data" / "chunk-000" / "file-000.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    problems = RowProblems(limit_share=1.0)
    assert [episode.index for episode in read_all(open_reader(folder), problems=problems)] == [1, 2]
    assert problems.report()["skipped"] == 4
    assert "info.json and the data do not belong together" in problems.report()["examples"][0]


def test_values_are_called_what_the_data_set_calls_them(tmp_path):
    joints = ["waist", "shoulder", "elbow", "roll", "angle", "rotate", "gripper"]
    folder = write_lerobot(tmp_path / "set", make_episodes(1, 4, size=16))
    info = json.loads((folder / "meta" / "info.json").read_text())
    for names, found in ((joints, joints), ({"motors": joints}, joints), (joints[:6], []), (None, []), ([joints], [])):
        info["features"]["action"]["names"] = names
        (folder / "meta" / "info.json").write_text(json.dumps(info))
        assert open_robot_source(folder, key="x").action_names == found
    info["features"]["action"]["names"] = joints
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    assert open_robot_source(folder, key="x", transform="bridge").action_names == [], "which makes moves of them"
    assert open_robot_source(folder, key="x", action=["action", "observation.state"]).action_names == []


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_video_that_ends_early_costs_the_steps_it_lacks(tmp_path, version):
    short = make_episodes(2, 6)
    short[1].pictures["image_0"] = short[1].pictures["image_0"][:4]
    long = write_lerobot(tmp_path / "long", make_episodes(2, 6), version)
    other = write_lerobot(tmp_path / "short", short, version)
    name = "episode_000001.mp4" if version == "v2.1" else "file-001.mp4"
    source, target = (next((folder / "videos").rglob(name)) for folder in (other, long))
    target.write_bytes(source.read_bytes())
    problems = RowProblems(limit_share=1.0)
    opened = open_robot_source(long, key="x", problems=problems)
    rows = list(opened.rows(opened.shards()))
    assert [row["step_index"] for row in rows if row["episode_index"] == 1] == [0, 1, 2, 3]
    assert problems.report()["by_reason"] == {"frame that a video lacks": 3}
    assert "ends before 0.800 s" in problems.report()["examples"][0]


def test_pictures_in_the_parquet_file_may_be_missing(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4), "v2.1", kind="image")
    path = folder / "data" / "chunk-000" / "episode_000001.parquet"
    table = pq.read_table(path)
    column = table["observation.images.image_0"].to_pylist()
    column[2] = {"bytes": None, "path": "elsewhere.png"}
    place = table.column_names.index("observation.images.image_0")
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(column, field.type)), path)
    problems = RowProblems(limit_share=1.0)
    source = open_robot_source(folder, key="x", problems=problems)
    rows = [(row["episode_index"], row["step_index"]) for row in source.rows(source.shards())]
    assert rows == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 3), (1, 4)]
    assert problems.report()["by_reason"] == {"step without a picture": 1}
    assert "episode_000001.parquet episode 1 step 2: step without" in problems.report()["examples"][0]


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32()), pa.list_(pa.float32(), 2), pa.large_list(pa.float64())],
)
def test_lists_of_any_kind_become_arrays(kind):
    column = pa.chunked_array([pa.array([[1, 2], [3, 4]], kind), pa.array([[5, 6]], kind)])
    assert column_array(column, "x").tolist() == [[1, 2], [3, 4], [5, 6]]
    assert column_array(column.slice(1, 2), "x").tolist() == [[3, 4], [5, 6]]


def test_plain_and_nested_columns_and_those_that_are_no_arrays():
    assert column_array(pa.chunked_array([[1.5, 2.5]]), "x").tolist() == [1.5, 2.5]
    nested = pa.chunked_array([pa.array([[[1, 2]], [[3, 4]]])])
    assert column_array(nested, "x").shape == (2, 1, 2)
    with pytest.raises(RobotDataError, match="x of uneven length"):
        column_array(pa.chunked_array([pa.array([[1], [2, 3], [4, 5, 6]])]), "x")
    null = column_array(pa.chunked_array([pa.array([[1, 2], None, [3, 4]])]), "x")
    np.testing.assert_array_equal(null, [[1, 2], [np.nan, np.nan], [3, 4]])
    with pytest.raises(RobotDataError, match="x of string, expected numbers"):
        column_array(pa.chunked_array([pa.array(["a"])]), "x")
