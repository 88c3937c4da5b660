"""LeRobot metadata of all versions in one form, and which episodes a split holds."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from robot_data_sets import edit_episodes, edit_info, edit_lines, make_episodes, write_lerobot
from robot_rows import check, read_rows

from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.lerobot.metadata import (
    parse_split,
    read_metadata,
    split_episodes,
)
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.storage.data_folder import DataFolder


CAMERA = "observation.images.image_0"
NUMBERS = [0, 2, 3, 5]  # of four episodes


def read(folder, split=None):
    return read_metadata(DataFolder(folder), split)


def counts(folder, **settings):
    """The rows of each episode, and the notes."""
    rows, dataset = read_rows(folder, **settings)
    assert dataset.count_rows() == len(rows)
    numbers = [row["episode_index"] for row in rows]
    return {number: numbers.count(number) for number in numbers}, dataset.reader.notes


def test_metadata_that_lack_something(tmp_path):
    folder = write_lerobot(tmp_path / "v3", make_episodes(2, 4), "v3.0")
    path = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    pq.write_table(pq.read_table(path).drop_columns([f"videos/{CAMERA}/from_timestamp"]), path)
    with pytest.raises(RobotDataError, match=r"lacks, for every episode, one of videos/.*from_timestamp"):
        open_robot_source(folder, key="x")
    pq.write_table(pq.read_table(path).drop_columns(["length"]), path)
    with pytest.raises(RobotDataError, match=r"lacks 'the column length"):
        read(folder)
    tasks = folder / "meta" / "tasks.parquet"
    pq.write_table(pq.read_table(tasks).select(["task_index"]), tasks)
    with pytest.raises(RobotDataError, match="lacks 'the task texts"):
        read(folder)
    folder = write_lerobot(tmp_path / "v2", make_episodes(1, 4))
    for name in ("episodes.jsonl", "tasks.jsonl"):
        (folder / "meta" / name).unlink()
        with pytest.raises(RobotDataError, match=rf"lacks .*{name}"):
            read(folder)
        write_lerobot(tmp_path / name, make_episodes(1, 4)).joinpath("meta", name).rename(folder / "meta" / name)
    edit_info(folder, codebase_version="v1.6")
    with pytest.raises(RobotDataError, match=r"codebase_version v1.6, expected v2.0, v2.1, v3.0"):
        read(folder)
    episodes = make_episodes(2, 4)
    for episode in episodes:
        episode.instruction = ""
    with pytest.raises(RobotDataError, match="2 episodes and no task text"):
        read(write_lerobot(tmp_path / "unlabelled", episodes))


@pytest.mark.parametrize("column", ["length", "data/chunk_index", "data/file_index", "episode_index"])
@pytest.mark.parametrize("value", [None, float("nan"), 1.5, -1])
def test_a_number_that_is_none_is_named(tmp_path, column, value):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 4, size=16), "v3.0", "image")
    edit_episodes(folder, lambda t: t.assign(**{column: t[column].astype(float).where(t.index != 1, value)}))
    message = rf"got {column}=.* for episode .* in .*file-000.parquet, expected a whole"
    with pytest.raises(RobotDataError, match=message):
        open_robot_source(folder, key="x")


def test_whole_numbers_may_be_floats_and_unused_ones_anything(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 4, ("image_0", "wrist")), "v3.0")
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    columns += [f"videos/{CAMERA}/{key}" for key in ("chunk_index", "file_index")]
    edit_episodes(folder, lambda t: t.assign(**{column: t[column].astype(float) for column in columns}))
    unused = [f"videos/observation.images.wrist/{key}" for key in ("chunk_index", "file_index", "from_timestamp")]
    edit_episodes(folder, lambda t: t.assign(**dict.fromkeys(unused, np.nan), dataset_from_index=None))
    rows, dataset = read_rows(folder)
    assert (len(rows), dataset.problems.report()["skipped"]) == (4 + 5 + 6 + 7, 0)


@pytest.mark.parametrize(("name", "key"), [("episodes", "length"), ("tasks", "task_index")])
def test_numbers_in_json_lines(tmp_path, name, key):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 4, size=16), "v2.1", "image")
    edit_lines(folder / f"meta/{name}.jsonl", lambda lines: [{**line, key: float(line[key])} for line in lines])
    assert len(read_rows(folder)[0]) == 4 + 5
    edit_lines(folder / f"meta/{name}.jsonl", lambda lines: [{**line, key: None} for line in lines])
    with pytest.raises(RobotDataError, match=rf"got {key}=None .* in .*{name}.jsonl, expected a whole number"):
        open_robot_source(folder, key="x")


@pytest.mark.parametrize(
    ("value", "named", "clipped"),
    [
        ("0:3", {0, 2}, False),
        (":", {0, 2, 3, 5}, False),
        ("0:100", {0, 2, 3, 5}, True),
        ("3:", {3, 5}, False),
        ("0:2, 5:6", {0, 5}, False),
        ("0:50%", {0, 2}, False),
        ("50%:100%", {3, 5}, False),
        ("0:80%", {0, 2, 3}, False),
        ("80%:100%", {5}, False),
        ([0, 5], {0, 5}, False),
        ([2, 4], {2}, True),
        ([], set(), False),
        ("7:9", set(), True),
    ],
)
def test_values_of_splits(value, named, clipped):
    assert parse_split(value, NUMBERS) == (named, clipped)


@pytest.mark.parametrize("value", ["0-3", "0:-1", 4, None, {"first": 0}, "0:1:2", "all", "3", [0, "1"], [True]])
def test_values_that_cannot_be_understood(value):
    assert parse_split(value, NUMBERS) == (None, False)
    with pytest.raises(RobotDataError, match=r"got split 'train' = .* in meta/info.json, expected \"0:100\""):
        split_episodes({"splits": {"train": value}}, "train", NUMBERS, "meta/info.json")
    assert split_episodes({"splits": {"train": value}}, None, NUMBERS, "")[0] == set(NUMBERS)


def test_a_constant_that_converters_copy_leaves_nothing_out(tmp_path, capsys, caplog):
    folder = write_lerobot(tmp_path / "set", make_episodes(5, 3, size=16), "v2.1", "image")
    edit_info(folder, splits={"train": "0:3"})
    note = "all 5 episodes are read, as no split is named; of its splits train (0:3) holds 3: name one with `split`"
    assert counts(folder) == ({0: 3, 1: 4, 2: 5, 3: 6, 4: 7}, [note])
    assert caplog.text.count(note) == 1
    assert counts(folder, split="train") == ({0: 3, 1: 4, 2: 5}, ["split 'train' (0:3) holds 3 of 5 episodes"])
    code, printed, _ = check(folder, capsys)
    assert code == 0
    assert f"robot/k: {note}" in printed
    code, printed, _ = check(folder, capsys, ", split: train")
    assert "split 'train' (0:3) holds 3 of 5 episodes" in printed
    assert "│ 12 │" in printed, "rows"
    assert "unknown" not in printed
    code, _, errors = check(folder, capsys, ", split: val")
    assert code == 2
    assert "got split='val', expected one of train" in errors


@pytest.mark.parametrize("splits", [{"train": "0:5"}, {}, None, {"train": "0:100"}, {"train": "0:100%"}])
def test_splits_that_hold_all_episodes_need_no_note(tmp_path, splits):
    folder = write_lerobot(tmp_path / "set", make_episodes(5, 3, size=8), "v3.0", "image")
    edit_info(folder, splits=splits)
    assert counts(folder) == ({0: 3, 1: 4, 2: 5, 3: 6, 4: 7}, [])


def test_a_named_split(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 3, size=8), "v3.0", "image")
    edit_info(folder, splits={"train": "0:75%", "val": "75%:100%", "more": "0:100", "none": "8:9"})
    assert counts(folder, split="train")[0] == {0: 3, 1: 4, 2: 5}
    assert counts(folder, split="val")[0] == {3: 6}
    note = "split 'more' (0:100) holds 4 of 4 episodes and names others, which are not there: their numbers are 0 to 3"
    assert counts(folder, split="more") == ({0: 3, 1: 4, 2: 5, 3: 6}, [note])
    with pytest.raises(RobotDataError, match=r"split='test', expected one of train, val, more, none .*all 4 episodes"):
        read(folder, "test")
    with pytest.raises(RobotDataError, match=r"split 'none' \(8:9\) .* with none of the 4 episodes"):
        read(folder, "none")


def test_a_gap_between_the_numbers_of_episodes_loses_none(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 3, size=8), "v2.1", "image")
    edit_lines(folder / "meta" / "episodes.jsonl", lambda lines: [lines[0], *lines[2:]])
    (folder / "data/chunk-000/episode_000001.parquet").unlink()
    edit_info(folder, total_episodes=3, splits={})
    assert counts(folder) == ({0: 3, 2: 5, 3: 6}, [])
    edit_info(folder, splits={"train": "0:3"})
    assert counts(folder)[0] == {0: 3, 2: 5, 3: 6}
    assert counts(folder, split="train") == ({0: 3, 2: 5}, ["split 'train' (0:3) holds 2 of 3 episodes"])


def test_an_episode_that_is_listed_twice(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 3, size=8), "v2.1", "image")
    edit_lines(folder / "meta" / "episodes.jsonl", lambda lines: [*lines, lines[1]])
    with pytest.raises(RobotDataError, match="lists episode 1 more than once"):
        read(folder)
