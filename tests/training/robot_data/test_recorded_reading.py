"""Recordings of this project: what is checked at opening."""

import pytest
from datasets import DatasetDict, load_from_disk
from robot_data_sets import make_episodes, write_recording

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.recorded import RecordedReader
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.storage.data_folder import DataFolder


def open_reader(folder):
    return RecordedReader(DataFolder(folder), "train")


def test_episodes_are_shards(tmp_path):
    folder = write_recording(tmp_path / "recording", make_episodes(3, 4, size=16))
    reader = open_reader(folder)
    assert reader.shards() == ["episode 0", "episode 1", "episode 2"]
    assert reader.cameras == ["image"]
    assert (reader.count_steps(), reader.count_episodes()) == (15, 3)
    (episode,) = reader.episodes("episode 1", ["action"], ["image"], RowProblems())
    assert (episode.index, len(episode.instructions), episode.steps["action"].shape) == (1, 5, (5, 7))
    assert next(iter(episode.images))[0]["bytes"][:4] == b"\x89PNG"
    assert any(name.endswith(".arrow") for name in reader.files())


def test_a_column_that_is_missing(tmp_path):
    folder = write_recording(tmp_path / "recording", make_episodes(1, 4, size=16))
    load_from_disk(str(folder)).remove_columns(["instruction"]).save_to_disk(str(tmp_path / "less"))
    with pytest.raises(RobotDataError, match="expected also instruction"):
        open_reader(tmp_path / "less")


def test_rows_of_an_episode_belong_together(tmp_path):
    folder = write_recording(tmp_path / "recording", make_episodes(2, 4, size=16))
    rows = load_from_disk(str(folder))
    rows.select([0, 4, 1, 5]).save_to_disk(str(tmp_path / "mixed"))  # type: ignore[union-attr]
    with pytest.raises(RobotDataError, match="rows of one episode in several places"):
        open_reader(tmp_path / "mixed")


def test_a_folder_of_several_splits(tmp_path):
    folder = write_recording(tmp_path / "recording", make_episodes(1, 4, size=16))
    DatasetDict({"train": load_from_disk(str(folder))}).save_to_disk(str(tmp_path / "splits"))  # type: ignore[dict-item]
    with pytest.raises(RobotDataError, match=r"splits \['train'\], expected one data set"):
        open_reader(tmp_path / "splits")


def test_a_step_without_a_picture(tmp_path):
    folder = write_recording(tmp_path / "recording", make_episodes(2, 4, size=16))
    rows = load_from_disk(str(folder))
    emptied = rows.map(lambda row, number: {"image": None if number == 1 else row["image"]}, with_indices=True)
    emptied.save_to_disk(str(tmp_path / "emptied"))
    problems = RowProblems(limit_share=1.0)
    source = open_robot_source(tmp_path / "emptied", key="x", problems=problems)
    found = [(row["episode_index"], row["step_index"]) for row in source.rows(source.shards())]
    assert found == [(0, 0), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert problems.report()["by_reason"] == {"step without a picture": 1}
