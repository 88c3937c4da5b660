"""The forms in which LeRobot data sets store numbers and pictures."""

import json

import numpy as np
import pyarrow as pa
import pytest
from robot_data_sets import (
    edit_episodes,
    edit_info,
    edit_lines,
    edit_rows,
    encode,
    make_episodes,
    with_column,
    write_lerobot,
)
from test_lerobot_splits import check

from gen_vla.training.mixing.encoded_pictures import decode_picture
from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.robot_data.stored_columns import (
    column_array,
    column_seconds,
    column_values,
    stored_pictures,
)
from gen_vla.training.storage.data_folder import DataFolder


CAMERA = "observation.images.image_0"


def chunked(*arrays: pa.Array) -> pa.ChunkedArray:
    return pa.chunked_array(arrays)


def pictures_of(folder, **settings):
    """Greys of the rows by episode."""
    source = open_robot_source(folder, key="x", **settings)
    found: dict[int, list[int]] = {}
    for row in source.rows(source.shards()):
        picture = np.asarray(decode_picture(row["images"][0], "x"))
        assert picture.shape == (16, 16, 3)
        found.setdefault(row["episode_index"], []).append(int(picture.mean()))
    return found


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (chunked(pa.array([True, False, None])), [1, 0, np.nan]),
        (chunked(pa.array([[True, False], [False, True]])), [[1, 0], [0, 1]]),
        (chunked(pa.array([[1, 2], None], pa.list_(pa.int64(), 2))), [[1, 2], [np.nan, np.nan]]),
        (
            chunked(pa.array([None, [[1.5], [2.5]]], pa.list_(pa.list_(pa.float32())))),
            [[[np.nan]] * 2, [[1.5], [2.5]]],
        ),
        (chunked(pa.array([[1, None]], pa.list_(pa.int64()))), [[1, np.nan]]),
        (chunked(pa.array([1, 2], pa.uint8()), pa.array([3], pa.uint8())), [1, 2, 3]),
    ],
)
def test_columns_of_numbers(column, expected):
    np.testing.assert_array_equal(column_array(column, "x"), expected)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.list_(pa.float64(), 1), pa.float64(), pa.large_list(pa.float32())]
)
def test_one_number_a_row(kind):
    values = [[1.0], [2.0]] if kind != pa.float64() else [1.0, 2.0]
    assert column_values(chunked(pa.array(values, kind)), "x").tolist() == [1, 2]
    with pytest.raises(RobotDataError, match=r"got x of shape \[1, 2\], expected one number per row"):
        column_values(chunked(pa.array([[1, 2]])), "x")


def test_times_as_durations():
    durations = chunked(pa.array([0, 1_500_000_000], pa.duration("ns")))
    assert column_seconds(durations, "x").tolist() == [0, 1.5]
    assert column_seconds(durations.cast(pa.duration("ms")), "x").tolist() == [0, 1.5]
    assert column_seconds(chunked(pa.array([[0.5]], pa.list_(pa.float32(), 1))), "x").tolist() == [0.5]


def test_a_gripper_of_truth_values(tmp_path):
    episodes = make_episodes(2, 4, size=16)
    folder = write_lerobot(tmp_path / "set", episodes, "v2.1", "image")

    def apart(table):
        actions = np.array(table["action"].to_pylist(), dtype=np.float32)
        table = with_column(table, "action", pa.array(actions[:, :6].tolist(), pa.list_(pa.float32(), 6)))
        return table.append_column("action.gripper", pa.array(actions[:, 6] > 0.5))

    edit_rows(folder, apart)
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    edit_info(folder, features={**features, "action.gripper": {"dtype": "bool", "shape": [1], "names": None}})
    source = open_robot_source(folder, key="x", action=["action", "action.gripper"])
    rows = list(source.rows(source.shards()))
    np.testing.assert_array_equal([row["action"][0] for row in rows], np.concatenate([e.actions for e in episodes]))


@pytest.mark.parametrize("column", ["timestamp", "task_index", "episode_index"])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("kind", ["video", "image"])
def test_numbers_of_rows_as_lists_of_one(tmp_path, column, version, kind):
    episodes = make_episodes(3, 4)
    folder = write_lerobot(tmp_path / "set", episodes, version, kind)
    edit_rows(folder, lambda t: with_column(t, column, pa.array([[value] for value in t[column].to_pylist()])))
    source = open_robot_source(folder, key="x")
    rows = list(source.rows(source.shards()))
    assert [row["instruction"] for row in rows] == [e.instruction for e in episodes for _ in e.actions]
    np.testing.assert_array_equal([row["action"][0] for row in rows], np.concatenate([e.actions for e in episodes]))


def as_bytes(value, folder):
    return value["bytes"]


def as_path(value, folder):
    path = folder / "images" / f"{abs(hash(value['bytes']))}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(value["bytes"])
    return str(path)


def as_relative_path(value, folder):
    return as_path(value, folder)[len(str(folder)) + 1 :]


def as_struct_of_path(value, folder):
    return {"bytes": None, "path": as_relative_path(value, folder)}


def as_array(value, folder):
    return np.asarray(decode_picture(value, "x")).tolist()


def as_channels_first(value, folder):
    return np.asarray(decode_picture(value, "x")).transpose(2, 0, 1).tolist()


def as_grey(value, folder):
    return np.asarray(decode_picture(value, "x"))[:, :, 0].tolist()


@pytest.mark.parametrize(
    "form", [as_bytes, as_path, as_relative_path, as_struct_of_path, as_array, as_channels_first, as_grey]
)
def test_pictures_in_any_form(tmp_path, form):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4, size=16), "v2.1", "image")
    expected = pictures_of(folder)
    edit_rows(folder, lambda t: with_column(t, CAMERA, pa.array([form(v, folder) for v in t[CAMERA].to_pylist()])))
    assert pictures_of(folder) == expected


def test_pictures_in_any_form_are_shown_by_the_check(tmp_path, capsys):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4, size=16), "v2.1", "image")
    edit_rows(folder, lambda t: with_column(t, CAMERA, pa.array([as_bytes(v, folder) for v in t[CAMERA].to_pylist()])))
    code, printed, _ = check(folder, capsys)
    assert code == 0
    assert "16 x 16" in printed
    assert "cannot be used" not in printed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[[0.5, 0.25]]], r"got c of arrays float64 \[1, 2\], expected pictures of whole numbers"),
        ([[[256]]], r"got c of arrays int64 \[1, 1\]"),
        ([[[[1, 2]]]], r"got c of arrays int64 \[1, 1, 2\]"),
        ([7], "got c of int, expected pictures: bytes, paths or arrays"),
    ],
)
def test_what_is_no_picture(tmp_path, values, message):
    with pytest.raises(RobotDataError, match=message):
        stored_pictures(chunked(pa.array(values)), "c", DataFolder(tmp_path))


def test_a_step_without_a_picture_is_none(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(np.zeros((2, 2, 3), np.uint8), "PNG"))
    folder = DataFolder(tmp_path)
    paths = stored_pictures(chunked(pa.array(["a.png", "gone.png", "", None])), "c", folder)
    assert [picture is None for picture in paths] == [False, True, True, True]
    assert stored_pictures(chunked(pa.array([b"", None], pa.binary())), "c", folder) == [None, None]
    arrays = stored_pictures(chunked(pa.array([None, [[1, 2]]])), "c", folder)
    assert arrays[0] is None
    assert np.asarray(arrays[1]).tolist() == [[1, 2]]


def test_a_feature_without_a_dtype_and_rates_of_none(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4, size=16), "v2.1", "image")
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    edit_info(folder, features={**features, "note": {"shape": [1]}, "bare": {}}, fps=None)
    assert len(pictures_of(folder)) == 2


@pytest.mark.parametrize("column", ["length", "data/chunk_index", "data/file_index", "episode_index"])
@pytest.mark.parametrize("value", [None, float("nan"), 1.5, -1])
def test_a_number_that_is_none_is_named(tmp_path, column, value):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 4, size=16), "v3.0", "image")
    edit_episodes(folder, lambda t: t.assign(**{column: t[column].astype(float).where(t.index != 1, value)}))
    with pytest.raises(
        RobotDataError, match=rf"got {column}=.* for episode .* in .*file-000.parquet, expected a whole"
    ):
        open_robot_source(folder, key="x")


def test_whole_numbers_may_be_floats_and_unused_ones_anything(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 4, ("image_0", "wrist")), "v3.0")
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    columns += [f"videos/{CAMERA}/{key}" for key in ("chunk_index", "file_index")]
    edit_episodes(folder, lambda t: t.assign(**{column: t[column].astype(float) for column in columns}))
    unused = [f"videos/observation.images.wrist/{key}" for key in ("chunk_index", "file_index", "from_timestamp")]
    edit_episodes(folder, lambda t: t.assign(**dict.fromkeys(unused, np.nan), dataset_from_index=None))
    source = open_robot_source(folder, key="x", problems=RowProblems(limit_share=0.0))
    assert len(list(source.rows(source.shards()))) == 4 + 5 + 6 + 7


@pytest.mark.parametrize("name", ["episodes", "tasks"])
def test_numbers_in_json_lines(tmp_path, name):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4, size=16), "v2.1", "image")
    key = "task_index" if name == "tasks" else "length"
    edit_lines(folder / f"meta/{name}.jsonl", lambda lines: [{**line, key: float(line[key])} for line in lines])
    assert len(pictures_of(folder)) == 2
    edit_lines(folder / f"meta/{name}.jsonl", lambda lines: [{**line, key: None} for line in lines])
    with pytest.raises(RobotDataError, match=rf"got {key}=None .* in .*{name}.jsonl, expected a whole number"):
        open_robot_source(folder, key="x")


def test_an_action_of_named_parts_is_refused_by_name(tmp_path, capsys):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4, size=16), "v2.1", "image")
    edit_rows(folder, lambda t: with_column(t, "action", pa.array([{"x": v[0]} for v in t["action"].to_pylist()])))
    code, _, errors = check(folder, capsys)
    assert code == 2
    assert "got action of struct<x: double>, expected numbers" in errors
