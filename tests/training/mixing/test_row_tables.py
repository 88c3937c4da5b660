"""Tables: recorded data sets by row number with their chunks, and rows of other sources written down once."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from robot_data_sets import make_episodes, write_lerobot
from tiny_runs import noise, tiny_recipe, write_questions, write_robot_data

from gen_vla.training.mixing.encoded_pictures import decode_picture
from gen_vla.training.mixing.row_tables import QUESTION_FEATURES, ROBOT_FEATURES, RecordedTable, write_table
from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.storage.recordings import load_recording


def demonstrations(tmp_path: Path, horizon: int, **columns: Any) -> RecordedTable:
    actions = [[float(step), 0.0, 1.0] for step in range(5)]
    folder = write_robot_data(tmp_path / "robot", 5, action=actions, episode_index=[7, 7, 7, 9, 9], **columns)
    return RecordedTable(
        open_robot_source(folder, key="mine", horizon=horizon, problems=RowProblems(name="robot/mine"))
    )


def test_recorded_rows_whose_chunks_end_with_their_episode_and_repeat_its_last_action(tmp_path: Path) -> None:
    table = demonstrations(tmp_path, 3)
    row = table[3]
    assert (len(table), row["instruction"], row["identity"]) == (5, "close the drawer", "robot/mine row 3")
    assert row["action"].dtype == np.float32
    assert set(row["images"][0]) == {"bytes", "path"}, "pictures stay encoded"
    chunks = [[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 4], [4, 4, 4]]
    assert [table[row]["action"][:, 0].tolist() for row in range(5)] == chunks
    recorded = [3, 2, 1, 2, 1]  # steps of each chunk
    for row, steps in enumerate(recorded):
        assert table[row]["action_is_pad"].tolist() == [False] * steps + [True] * (3 - steps)


def test_missing_folders_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"got no data set at .*nowhere.*save_to_disk; record or convert"):
        load_recording(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="got no data set at"):
        load_recording(tmp_path / "empty")
    folder = write_questions(tmp_path / "questions")
    with pytest.raises(ValueError, match=r"questions with columns image, question, answer, expected also action"):
        load_recording(folder, ("image", "action"))


def lerobot_recipe(folder: Path, **data: Any) -> Recipe:
    """A recipe of a LeRobot data set `lerobot`, still to be written."""
    data = {"robot": [{"path": "lerobot", "key": "own"}], "image_size": 16, **data}
    return tiny_recipe(folder, actions={"action_dim": 7}, data=data)


def test_frames_of_videos_are_stored_as_jpeg(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "lerobot", make_episodes(2, 3, size=64))
    source = open_robot_source(tmp_path / "lerobot", key="own")
    table, frames = write_table(source, ROBOT_FEATURES, tmp_path, {}), list(source.rows(source.shards()))
    assert len(table) == len(frames) == 7
    for number, row in enumerate(frames):
        [stored], [frame] = table[number]["images"], row["images"]
        assert stored["bytes"].startswith(b"\xff\xd8"), "a JPEG"
        difference = np.asarray(decode_picture(stored, "a row")).astype(int) - np.asarray(frame)
        assert np.abs(difference).max() <= 2


class Listed:
    """A source of given rows that counts how often they are read."""

    def __init__(self, rows: list[dict[str, Any]]):
        self.name, self.lanes = "robot/mine", 1
        self.given = rows
        self.readings = 0
        self.problems = RowProblems(0.5, name=self.name)

    def shards(self) -> list[str]:
        return ["all"]

    def rows(self, shards: list[str]) -> Iterator[dict[str, Any]]:
        self.readings += 1
        yield from self.given

    def count_rows(self) -> int | None:
        return len(self.given)


def test_rows_of_other_sources_are_written_once_and_read_back_exactly(tmp_path: Path) -> None:
    actions = np.arange(12, dtype=np.float32).reshape(2, 2, 3) / 7
    frame, packed = noise(1), {"bytes": b"any bytes", "path": "p.jpg"}
    rows = [
        {"images": [frame, packed], "instruction": "go", "action": actions[0], "identity": "0", "step_index": 4},
        {"images": [], "instruction": "stop", "action": actions[1], "identity": "1", "step_index": 5},
    ]
    for number, row in enumerate(rows):
        row["action_is_pad"] = np.array([False, number == 1])
        row["state"] = None if number else np.array([0.1, np.nan], np.float32)
    source = Listed(rows)
    for _ in range(2):
        table = write_table(source, ROBOT_FEATURES, tmp_path, {"horizon": 2})
    assert source.readings == 1
    assert len(table) == 2
    first = table[0]
    assert first["images"][1]["bytes"] == b"any bytes"
    assert first["images"][0]["bytes"].startswith(b"\xff\xd8")
    assert np.array_equal(first["action"], actions[0])
    assert np.array_equal(first["state"], np.array([0.1, np.nan], np.float32), equal_nan=True)
    assert table[1]["state"] is None
    assert [table[number]["action_is_pad"].tolist() for number in range(2)] == [[False, False], [False, True]]
    assert (first["instruction"], first["identity"], table[1]["images"]) == ("go", "0", [])
    write_table(source, ROBOT_FEATURES, tmp_path, {"horizon": 3})
    assert source.readings == 2, "other settings are another table"


def test_a_table_that_is_used_again_keeps_its_counts(tmp_path: Path) -> None:
    class Damaged(Listed):
        def rows(self, shards: list[str]) -> Iterator[dict[str, Any]]:
            for row in super().rows(shards):
                self.problems.seen()
                yield row
            self.problems.skip("2", "cut off")

    turns = [{"question": "a?", "answer": "b"}, {"question": "c?", "answer": "d"}]
    row = {"images": [], "turns": turns, "identity": "0"}
    first, again = (Damaged([row, row]) for _ in range(2))
    for source in (first, again):
        table = write_table(source, QUESTION_FEATURES, tmp_path, {})
        assert [table[number]["turns"] for number in range(len(table))] == [turns] * 2
    assert (first.readings, again.readings) == (1, 0)
    expected = {"seen": 2, "skipped": 1, "by_reason": {"cut off": 1}, "examples": ["2: cut off"]}
    assert first.problems.report() == again.problems.report() == expected


def test_a_missing_folder_is_refused_before_tables_are_written(tmp_path: Path) -> None:
    recipe = lerobot_recipe(tmp_path, vision_language=[{"path": "nowhere", "name": "scenes"}])
    write_lerobot(tmp_path / "lerobot", make_episodes(2, 5, size=16), "v2.1", "image")
    with pytest.raises(FileNotFoundError, match=r"got no vision-language data set at .*nowhere"):
        open_data(recipe, tmp_path)
    assert not (tmp_path / "rows").exists()
    assert not (tmp_path / "statistics").exists()


def test_a_source_without_rows_and_a_failing_one_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got the data set robot/mine without a usable row"):
        write_table(Listed([]), ROBOT_FEATURES, tmp_path, {})

    class Failing(Listed):
        def rows(self, shards: list[str]) -> Iterator[dict[str, Any]]:
            yield from self.given
            raise ValueError("the file ends here")

    row = {"images": [], "instruction": "go", "action": np.zeros((1, 3), np.float32), "identity": "0"}
    row["action_is_pad"] = np.zeros(1, bool)
    row["state"] = None
    with pytest.raises(ValueError, match="the file ends here"):
        write_table(Failing([row]), ROBOT_FEATURES, tmp_path, {})
    assert not list((tmp_path / "rows").iterdir())


def test_a_table_is_written_anew_when_the_files_change(tmp_path: Path) -> None:
    """Converted again with other numbers, a data set has the same files of the same sizes."""
    recipe, firsts = lerobot_recipe(tmp_path), []
    for sign in (1, -1):
        episodes = make_episodes(2, 5, size=16)
        for episode in episodes:
            episode.actions[:, :6] *= sign
        write_lerobot(tmp_path / "lerobot", episodes, "v2.1", "image")
        opened = open_data(recipe, tmp_path)
        firsts.append(opened.tables["robot/own"][0]["action"][0])
        np.testing.assert_array_equal(firsts[-1], episodes[0].actions[0])
        assert open_data(recipe, tmp_path).tables["robot/own"][0]["action"][0].tolist() == firsts[-1].tolist()
        shutil.rmtree(tmp_path / "lerobot")
    assert len(list((tmp_path / "rows").glob("own-*.arrow"))) == 2
