"""Depth is never chosen unless it is named, and never read as colours; unused cameras cannot block a data set."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from rlds_data_sets import edit_features, tensor_feature, write_rlds
from robot_data_sets import edit_info, edit_rows, make_episodes, with_column, write_lerobot
from robot_rows import check, read_rows

from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.source import open_robot_source


def change_feature(folder, camera, **changes):
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"][f"observation.images.{camera}"].update(changes)
    edit_info(folder, features=info["features"])


def refuse(folder, message, **settings):
    with pytest.raises(RobotDataError, match=message):
        open_robot_source(folder, key="x", **settings)


@pytest.mark.parametrize("kind", ["video", "image"])
@pytest.mark.parametrize(
    "changes",
    [
        {"info": {"video.is_depth_map": True}},
        {"info": {"is_depth_map": True}},
        {"video_info": {"video.is_depth_map": True}},
        {"is_depth_map": True},
        {"info": {"video.pix_fmt": "gray16le", "video.is_depth_map": False}},
    ],
)
def test_metadata_that_say_depth(tmp_path, capsys, kind, changes):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4, ("a_image", "b_image")), "v2.1", kind)
    assert open_robot_source(folder, key="x").cameras == ["observation.images.a_image"]
    change_feature(folder, "a_image", **changes)
    source = open_robot_source(folder, key="x")
    assert source.cameras == source.reader.cameras == ["observation.images.b_image"]
    held = r"camera 'a_image' of .*, which holds depth \(.* in meta/info.json\)"
    refuse(folder, held, cameras=["b_image", "a_image"])
    change_feature(folder, "b_image", **changes)
    refuse(folder, r"no camera but .*a_image, .*b_image, of depth by name or metadata")
    code, _, errors = check(folder, capsys, ", cameras: [a_image]")
    assert code == 2
    assert "which holds depth" in errors


def test_a_name_is_the_last_resort(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4, ("Depth_image", "wrist"), 16), "v2.1", "image")
    assert open_robot_source(folder, key="x").cameras == ["observation.images.wrist"]
    named = open_robot_source(folder, key="x", cameras=["Depth_image"])  # three channels, no depth map by metadata
    assert named.cameras == ["observation.images.Depth_image"]
    change_feature(folder, "Depth_image", shape=[16, 16, 1])
    refuse(folder, r"holds depth \(its name, and its one channel", cameras=["Depth_image"])
    change_feature(folder, "wrist", shape=[16, 16, 1])  # grey pictures are pictures
    assert open_robot_source(folder, key="x").cameras == ["observation.images.wrist"]
    folder = write_lerobot(tmp_path / "depth", make_episodes(2, 4, ("depth",), 16), "v2.1", "image")
    refuse(folder, r"no camera but observation\.images\.depth, of depth by name or metadata")


@pytest.mark.parametrize(
    ("dtype", "channels", "depth"),
    [("float32", 1, True), ("uint16", 1, True), ("uint8", 1, True), ("uint8", 3, False), ("float32", 4, True)],
)
def test_pictures_of_rlds_sets_that_are_no_colours(tmp_path, dtype, channels, depth):
    folder = write_rlds(tmp_path, make_episodes(2, 4, ("image", "a_depth"), 16), name="mine")
    changes = {"dtype": dtype, "shape": {"dimensions": ["16", "16", str(channels)]}}
    edit_features(folder, lambda steps: steps["observation"]["a_depth"]["image"].update(changes))
    source = open_robot_source(folder, key="x")
    assert source.cameras == ["observation/image"]
    assert (source.reader.cameras == ["observation/image"]) == depth
    if depth:
        refuse(folder, r"which holds depth \(its .* in features.json\)", cameras=["a_depth"])
    edit_features(folder, lambda steps: steps["observation"]["image"]["image"].update(dtype="uint16"))
    refuse(folder, "no camera but")


def test_numbers_in_place_of_a_depth_picture_are_no_camera(tmp_path):
    folder = write_rlds(tmp_path, make_episodes(1, 4, ("image",), 16), name="mine")
    edit_features(folder, lambda steps: steps["observation"].update(depth=tensor_feature((16, 16, 1))))
    assert open_robot_source(folder, key="x").reader.cameras == ["observation/image"]


def test_a_camera_that_is_not_used_cannot_block_a_set(tmp_path):
    cameras = ("egoview", "ego_view")
    folder = write_lerobot(tmp_path / "videos", make_episodes(2, 4, cameras), "v2.1")
    shutil.rmtree(folder / "videos/chunk-000/observation.images.egoview")
    assert len(read_rows(folder, cameras=["ego_view"])[0]) == 9
    refuse(folder, r"without 2 of the files its metadata names, expected videos/.*egoview", cameras=["egoview"])
    folder = write_lerobot(tmp_path / "images", make_episodes(2, 4, cameras, 16), "v2.1", "image")
    broken = "observation.images.egoview"
    edit_rows(folder, lambda table: with_column(table, broken, pa.array(np.arange(len(table)))))
    assert len(read_rows(folder, cameras=["ego_view"])[0]) == 9
    edit_rows(folder, lambda table: table.drop_columns([broken]))
    assert open_robot_source(folder, key="x", cameras=["ego_view"]).cameras == ["observation.images.ego_view"]
    refuse(folder, r"without the column observation\.images\.egoview of pictures", cameras=["egoview"])


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_path_of_videos_that_is_missing_blocks_only_who_needs_it(tmp_path, version):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4, ("top", "wrist"), 16), version, "image")
    change_feature(folder, "wrist", dtype="video")
    assert open_robot_source(folder, key="x").cameras == ["observation.images.top"]
    refuse(folder, r"lacks, for every episode, one of .*video_path in meta/info.json", cameras=["wrist"])
