"""LeRobot data: what is checked at opening, damaged files, and that every row is of its episode."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from robot_data_sets import edit_episodes, edit_info, make_episodes, write_lerobot
from robot_rows import places, read_rows

from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.source import open_robot_source


def of_one_group(table, path):
    pq.write_table(table, path)  # as lerobot's conversion from v2.1 leaves it
    assert pq.ParquetFile(path).num_row_groups == 1


def without_statistics(table, path):
    pq.write_table(table, path, write_statistics=False, row_group_size=4)


@pytest.mark.parametrize("rewrite", [of_one_group, without_statistics, None])
@pytest.mark.parametrize("gone", [[], [0], [1], [0, 1], [2], [0, 2]])
def test_episodes_of_a_file_are_taken_apart(tmp_path, rewrite, gone):
    """Rows of a table, whose pictures are in it, and parts of videos."""
    episodes = make_episodes(5, 3)
    folder = write_lerobot(tmp_path / "set", episodes, "v3.0", "image" if rewrite else "video")
    if rewrite:
        for path in sorted((folder / "data").rglob("*.parquet")):
            rewrite(pq.read_table(path), path)
    edit_episodes(folder, lambda table: table.drop(index=gone))
    rows, dataset = read_rows(folder)
    kept = [number for number in range(5) if number not in gone]
    assert places(rows) == [(number, step) for number in kept for step in range(3 + number)]
    for row in rows:
        assert np.array_equal(row["action"][0], episodes[row["episode_index"]].actions[row["step_index"]])
    assert dataset.problems.report()["skipped"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.slice(1), "info.json and the data do not belong together"),
        (lambda t: pa.concat_tables([t.slice(1), t.slice(0, 1)]), "4 rows, not one after the other, of episode 0"),
    ],
)
def test_rows_that_are_missing_or_elsewhere_are_not_replaced(tmp_path, change, message):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 4, size=8), "v3.0", "image")
    path = folder / "data/chunk-000/file-000.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    rows, dataset = read_rows(folder)
    assert {row["episode_index"] for row in rows} == {1, 2, 3}
    assert dataset.problems.report()["skipped"] == 4
    assert message in dataset.problems.report()["examples"][0]


def test_columns_that_are_missing(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4))
    first, second = (folder / "data" / "chunk-000" / f"episode_00000{number}.parquet" for number in (0, 1))
    pq.write_table(pq.read_table(second).drop_columns(["action"]), second)
    rows, dataset = read_rows(folder)
    assert {row["episode_index"] for row in rows} == {0}
    assert dataset.problems.report()["skipped"] == 5
    assert "episode_000001.parquet episode 1" in dataset.problems.report()["examples"][0]
    pq.write_table(pq.read_table(first).drop_columns(["action"]), first)
    with pytest.raises(RobotDataError, match="expected action for the identity transform"):
        open_robot_source(folder, key="x")
    pq.write_table(pq.read_table(first).drop_columns(["timestamp"]), first)
    with pytest.raises(RobotDataError, match="expected also timestamp"):
        open_robot_source(folder, key="x")


def test_files_that_are_missing_or_cut_off(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4))
    first, second = (folder / "data" / "chunk-000" / f"episode_00000{number}.parquet" for number in (0, 1))
    second.write_bytes(second.read_bytes()[:-20])
    rows, dataset = read_rows(folder)
    assert {row["episode_index"] for row in rows} == {0}
    assert dataset.problems.report()["skipped"] == 5
    next((folder / "videos").rglob("episode_000001.mp4")).unlink()
    with pytest.raises(RobotDataError, match=r"without 1 of the files .*episode_000001.mp4"):
        open_robot_source(folder, key="x")
    first.write_bytes(b"nothing")
    with pytest.raises(RobotDataError, match=r"episode_000000.parquet that is no whole parquet file"):
        open_robot_source(folder, key="x")
    first.unlink()
    with pytest.raises(RobotDataError, match=r"without 1 of the files .*episode_000000.parquet"):
        open_robot_source(folder, key="x")


def test_values_are_called_what_the_data_set_calls_them(tmp_path):
    joints = ["waist", "shoulder", "elbow", "roll", "angle", "rotate", "gripper"]
    folder = write_lerobot(tmp_path / "set", make_episodes(1, 4, size=16))
    features = json.loads((folder / "meta" / "info.json").read_text())["features"]
    cases = ((joints[:6], []), (None, []), ([joints], []), ({"motors": joints}, joints), (joints, joints))
    for names, found in cases:
        edit_info(folder, features={**features, "action": {**features["action"], "names": names}})
        assert open_robot_source(folder, key="x").action_names == found
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
    rows, dataset = read_rows(long)
    assert [row["step_index"] for row in rows if row["episode_index"] == 1] == [0, 1, 2, 3]
    assert dataset.problems.report()["by_reason"] == {"frame that a video lacks": 3}
    assert "ends before 0.800 s" in dataset.problems.report()["examples"][0]


def test_pictures_in_the_parquet_file_may_be_missing(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4), "v2.1", kind="image")
    path = folder / "data" / "chunk-000" / "episode_000001.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("observation.images.image_0")
    column, field = table.column(place).to_pylist(), table.schema.field(place)
    column[2] = {"bytes": None, "path": "elsewhere.png"}
    pq.write_table(table.set_column(place, field, pa.array(column, field.type)), path)
    rows, dataset = read_rows(folder)
    assert places(rows) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 3), (1, 4)]
    assert dataset.problems.report()["by_reason"] == {"step without a picture": 1}
    assert "episode_000001.parquet episode 1 step 2: step without" in dataset.problems.report()["examples"][0]
