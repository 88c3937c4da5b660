"""The forms in which data sets store numbers and pictures in tables."""

import json

import numpy as np
import pyarrow as pa
import pytest
from robot_data_sets import edit_info, edit_rows, encode, make_episodes, with_column, write_lerobot
from robot_rows import check, greys, read_rows

from gen_vla.training.mixing.encoded_pictures import decode_picture
from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.stored_columns import (
    column_array,
    column_values,
    stored_pictures,
)
from gen_vla.training.storage.data_folder import DataFolder


CAMERA = "observation.images.image_0"


def chunked(*arrays: pa.Array) -> pa.ChunkedArray:
    return pa.chunked_array(arrays)


@pytest.fixture
def pictures(tmp_path):
    """A data set with pictures in its table."""
    return write_lerobot(tmp_path / "set", make_episodes(2, 4, size=16), "v2.1", "image")


PAIRS = ([[1, 2], [3, 4]], [[5, 6]])


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        *(
            (chunked(*(pa.array(values, kind) for values in PAIRS)), [[1, 2], [3, 4], [5, 6]])
            for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), 2), pa.large_list(pa.float64()))
        ),
        (chunked(*map(pa.array, PAIRS)).slice(1, 2), [[3, 4], [5, 6]]),
        (chunked(pa.array([1.5, 2.5])), [1.5, 2.5]),
        (chunked(pa.array([[[1, 2]], [[3, 4]]])), [[[1, 2]], [[3, 4]]]),
        (chunked(pa.array([[1, 2], None, [3, 4]])), [[1, 2], [np.nan, np.nan], [3, 4]]),
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
    ("values", "message"), [([[1], [2, 3], [4, 5, 6]], "x of uneven length"), (["a"], "x of string, expected numbers")]
)
def test_columns_that_are_no_arrays(values, message):
    with pytest.raises(RobotDataError, match=message):
        column_array(chunked(pa.array(values)), "x")


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.list_(pa.float64(), 1), pa.float64(), pa.large_list(pa.float32())]
)
def test_one_number_a_row(kind):
    values = [[1.0], [2.0]] if kind != pa.float64() else [1.0, 2.0]
    assert column_values(chunked(pa.array(values, kind)), "x").tolist() == [1, 2]
    with pytest.raises(RobotDataError, match=r"got x of shape \[1, 2\], expected one number per row"):
        column_values(chunked(pa.array([[1, 2]])), "x")


def test_a_gripper_of_booleans_and_features_without_a_dtype(pictures):
    def apart(table):
        actions = np.array(table["action"].to_pylist(), dtype=np.float32)
        table = with_column(table, "action", pa.array(actions[:, :6].tolist(), pa.list_(pa.float32(), 6)))
        return table.append_column("action.gripper", pa.array(actions[:, 6] > 0.5))

    edit_rows(pictures, apart)
    features = json.loads((pictures / "meta/info.json").read_text())["features"]
    features |= {"action.gripper": {"dtype": "bool", "shape": [1], "names": None}, "note": {"shape": [1]}, "bare": {}}
    edit_info(pictures, features=features, fps=None)
    rows, _ = read_rows(pictures, action=["action", "action.gripper"])
    expected = np.concatenate([episode.actions for episode in make_episodes(2, 4, size=16)])
    np.testing.assert_array_equal([row["action"][0] for row in rows], expected)


@pytest.mark.parametrize("column", ["timestamp", "task_index", "episode_index"])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("kind", ["video", "image"])
def test_numbers_of_rows_as_lists_of_one(tmp_path, column, version, kind):
    episodes = make_episodes(3, 4)
    folder = write_lerobot(tmp_path / "set", episodes, version, kind)
    edit_rows(folder, lambda t: with_column(t, column, pa.array([[value] for value in t[column].to_pylist()])))
    rows, _ = read_rows(folder)
    assert [row["instruction"] for row in rows] == [e.instruction for e in episodes for _ in e.actions]
    np.testing.assert_array_equal([row["action"][0] for row in rows], np.concatenate([e.actions for e in episodes]))


def as_path(value, folder):
    path = folder / "images" / f"{abs(hash(value['bytes']))}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(value["bytes"])
    return str(path)


def as_relative_path(value, folder):
    return as_path(value, folder)[len(str(folder)) + 1 :]


def as_array(value, folder):
    return np.asarray(decode_picture(value, "x"))


FORMS = {
    "bytes": lambda value, folder: value["bytes"],
    "path": as_path,
    "relative path": as_relative_path,
    "struct of path": lambda value, folder: {"bytes": None, "path": as_relative_path(value, folder)},
    "array": lambda value, folder: as_array(value, folder).tolist(),
    "channels first": lambda value, folder: as_array(value, folder).transpose(2, 0, 1).tolist(),
    "grey": lambda value, folder: as_array(value, folder)[:, :, 0].tolist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_pictures_in_any_form(pictures, capsys, form):
    store = FORMS[form]
    edit_rows(
        pictures, lambda t: with_column(t, CAMERA, pa.array([store(v, pictures) for v in t[CAMERA].to_pylist()]))
    )
    rows, _ = read_rows(pictures)
    assert all(np.asarray(decode_picture(row["images"][0], "x")).shape == (16, 16, 3) for row in rows)
    assert greys(rows) == {number: [40 * number + 5 * step for step in range(4 + number)] for number in (0, 1)}
    if form == "bytes":
        code, printed, _ = check(pictures, capsys)
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
