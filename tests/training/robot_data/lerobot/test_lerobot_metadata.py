"""LeRobot metadata of all versions in one form."""

import json

import pyarrow.parquet as pq
import pytest
from robot_data_sets import make_episodes, write_lerobot

from gen_vla.training.robot_data.episodes import EmptyRobotDataError, RobotDataError
from gen_vla.training.robot_data.lerobot.metadata import EpisodePlace, VideoPlace, read_metadata
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.storage.data_folder import DataFolder


def read(folder, split=None):
    return read_metadata(DataFolder(folder), split)


def edit_info(folder, **changes):
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_version_2_has_a_file_per_episode(tmp_path, version):
    metadata = read(write_lerobot(tmp_path / "set", make_episodes(2, 4), version))
    camera = "observation.images.image_0"
    assert (metadata.version, metadata.fps, metadata.cameras) == (version, 5.0, {camera: "video"})
    assert metadata.tasks == {0: "put block 0 on the plate", 1: "put block 1 on the plate"}
    video = f"videos/chunk-000/{camera}/episode_000001.mp4"
    data = "data/chunk-000/episode_000001.parquet"
    assert metadata.episodes[1] == EpisodePlace(1, 5, True, data, {camera: VideoPlace(video, 0.0)})


def test_version_3_has_many_episodes_in_a_file(tmp_path):
    metadata = read(write_lerobot(tmp_path / "set", make_episodes(3, 4), "v3.0"))
    camera = "observation.images.image_0"
    assert metadata.tasks[2] == "put block 2 on the plate"
    video, other = (f"videos/{camera}/chunk-000/file-{number:03d}.mp4" for number in (0, 1))
    data = "data/chunk-000/file-000.parquet"
    assert metadata.episodes[0] == EpisodePlace(0, 4, True, data, {camera: VideoPlace(video, 0.0, 0.8)})
    assert metadata.episodes[1] == EpisodePlace(1, 5, True, data, {camera: VideoPlace(video, 0.8, 1.8)})
    # The last episode begins its own video.
    last = "data/chunk-000/file-001.parquet"
    assert metadata.episodes[2] == EpisodePlace(2, 6, True, last, {camera: VideoPlace(other, 0.0, 1.2)})


def test_task_texts_under_an_index_with_a_name(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4), "v3.0")
    path = folder / "meta" / "tasks.parquet"
    table = pq.read_table(path)
    pq.write_table(
        table.rename_columns([name.replace("__index_level_0__", "task") for name in table.column_names]), path
    )
    assert read(folder).tasks[1] == "put block 1 on the plate"
    pq.write_table(table.select(["task_index"]), path)
    with pytest.raises(RobotDataError, match="lacks 'the task texts"):
        read(folder)


def test_splits_are_ranges_of_episodes(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(3, 4))
    edit_info(folder, splits={"train": "0:2", "val": "2:3"})
    assert [place.index for place in read(folder, "train").episodes] == [0, 1]
    assert [place.index for place in read(folder, "val").episodes] == [2]
    with pytest.raises(RobotDataError, match="split='test', expected one of train, val"):
        read(folder, "test")


def test_other_versions_are_refused(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(1, 4))
    edit_info(folder, codebase_version="v1.6")
    with pytest.raises(RobotDataError, match=r"codebase_version v1.6, expected v2.0, v2.1, v3.0"):
        read(folder)


@pytest.mark.parametrize("name", ["tasks.jsonl", "episodes.jsonl"])
def test_missing_metadata_is_named(tmp_path, name):
    folder = write_lerobot(tmp_path / "set", make_episodes(1, 4))
    (folder / "meta" / name).unlink()
    with pytest.raises(RobotDataError, match=rf"lacks .*{name}"):
        read(folder)


def test_a_column_missing_from_the_episodes(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4), "v3.0")
    path = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["videos/observation.images.image_0/from_timestamp"]), path)
    with pytest.raises(RobotDataError, match=r"lacks, for every episode, one of videos/.*from_timestamp"):
        open_robot_source(folder, key="x")
    pq.write_table(pq.read_table(path).drop_columns(["length"]), path)
    with pytest.raises(RobotDataError, match=r"lacks 'the column length"):
        read(folder)


def test_no_task_text_at_all(tmp_path):
    episodes = make_episodes(2, 4)
    for episode in episodes:
        episode.instruction = ""
    with pytest.raises(EmptyRobotDataError, match="2 episodes and no task text"):
        read(write_lerobot(tmp_path / "set", episodes))
