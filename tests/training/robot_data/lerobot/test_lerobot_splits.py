"""Which episodes a LeRobot data set's split holds, and that every episode its files list is read."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from robot_data_sets import edit_episodes, edit_info, edit_lines, make_episodes, write_lerobot

from gen_vla.commands.main import main
from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.lerobot.metadata import parse_split, split_episodes
from gen_vla.training.robot_data.source import open_robot_source


NUMBERS = [0, 2, 3, 5]  # of four episodes


def read(folder: Path, **settings):
    """Numbers of the episodes, the rows of each, and what is told."""
    source = open_robot_source(folder, key="x", **settings)
    rows = [row["episode_index"] for row in source.rows(source.shards())]
    assert source.count_rows() == len(rows)
    return {number: rows.count(number) for number in rows}, source.reader.notes


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


def test_a_constant_that_converters_copy_leaves_nothing_out(tmp_path, caplog):
    folder = write_lerobot(tmp_path / "set", make_episodes(5, 3, size=8), "v2.1", "image")
    edit_info(folder, splits={"train": "0:3"})
    counts, notes = read(folder)
    assert counts == {0: 3, 1: 4, 2: 5, 3: 6, 4: 7}
    told = "all 5 episodes are read, as no split is named; of its splits train (0:3) holds 3: name one with `split`"
    assert notes == [told]
    assert caplog.text.count(told) == 1
    assert read(folder, split="train") == ({0: 3, 1: 4, 2: 5}, ["split 'train' (0:3) holds 3 of 5 episodes"])


@pytest.mark.parametrize("splits", [{"train": "0:5"}, {}, None, {"train": "0:100"}, {"train": "0:100%"}])
def test_splits_that_hold_all_episodes_are_not_told(tmp_path, splits):
    folder = write_lerobot(tmp_path / "set", make_episodes(5, 3, size=8), "v3.0", "image")
    edit_info(folder, splits=splits)
    assert read(folder) == ({0: 3, 1: 4, 2: 5, 3: 6, 4: 7}, [])


def test_a_named_split(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 3, size=8), "v3.0", "image")
    edit_info(folder, splits={"train": "0:75%", "val": "75%:100%", "more": "0:100", "none": "8:9"})
    assert read(folder, split="val")[0] == {3: 6}
    counts, notes = read(folder, split="more")
    assert list(counts) == [0, 1, 2, 3]
    assert notes == [
        "split 'more' (0:100) holds 4 of 4 episodes and names others, which are not there: their numbers are 0 to 3"
    ]
    with pytest.raises(RobotDataError, match=r"split='test', expected one of train, val, more, none .*all 4 episodes"):
        read(folder, split="test")
    with pytest.raises(RobotDataError, match=r"split 'none' \(8:9\) .* with none of the 4 episodes"):
        read(folder, split="none")


def test_a_gap_between_the_numbers_of_episodes_loses_none(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 3, size=8), "v2.1", "image")
    edit_lines(folder / "meta" / "episodes.jsonl", lambda lines: [lines[0], *lines[2:]])
    (folder / "data/chunk-000/episode_000001.parquet").unlink()
    edit_info(folder, total_episodes=3, splits={})
    assert read(folder) == ({0: 3, 2: 5, 3: 6}, [])
    edit_info(folder, splits={"train": "0:3"})
    assert read(folder)[0] == {0: 3, 2: 5, 3: 6}
    assert read(folder, split="train") == ({0: 3, 2: 5}, ["split 'train' (0:3) holds 2 of 3 episodes"])


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("gone", [[0], [1], [0, 1], [2], [0, 2]])
def test_episodes_that_were_taken_out_of_a_file_do_not_hide_the_others(tmp_path, kind, gone):
    episodes = make_episodes(5, 3, size=16 if kind == "image" else 64)
    folder = write_lerobot(tmp_path / "set", episodes, "v3.0", kind)
    edit_episodes(folder, lambda table: table.drop(index=gone))
    source = open_robot_source(folder, key="x")
    rows = list(source.rows(source.shards()))
    kept = [number for number in range(5) if number not in gone]
    assert [(row["episode_index"], row["step_index"]) for row in rows] == [
        (number, step) for number in kept for step in range(3 + number)
    ]
    for row in rows:
        assert row["action"][0].tolist() == episodes[row["episode_index"]].actions[row["step_index"]].tolist()
    assert source.problems.report()["skipped"] == 0


def test_rows_of_files_without_statistics_of_their_columns(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 3, size=8), "v3.0", "image")
    for path in sorted((folder / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        pq.write_table(table, path, write_statistics=False, row_group_size=4)
    assert read(folder)[0] == {0: 3, 1: 4, 2: 5, 3: 6}


def test_rows_of_an_episode_in_two_places_are_not_put_together(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 3, size=8), "v3.0", "image")
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table.slice(1), table.slice(0, 1)]), path)
    source = open_robot_source(folder, key="x")
    source.problems.limit_share = 1.0
    assert {row["episode_index"] for row in source.rows(source.shards())} == {1, 2, 3}
    assert "3 rows, not one after the other, of episode 0" in source.problems.report()["examples"][0]


def test_an_episode_that_is_listed_twice(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 3, size=8), "v2.1", "image")
    edit_lines(folder / "meta" / "episodes.jsonl", lambda lines: [*lines, lines[1]])
    with pytest.raises(RobotDataError, match="lists episode 1 more than once"):
        read(folder)


def check(folder: Path, capsys, setting: str = "") -> tuple[int, str, str]:
    """What `gen-vla train --check` returns and prints about a data set."""
    recipe = folder.parent / "my.yaml"
    source = f"{{path: {folder.name}, key: k{setting}}}"
    recipe.write_text(f"extends: openvla_plus_bridge\nname: my\ndescription: d\ndata:\n  robot:\n    - {source}\n")
    arguments = ["train", str(recipe), "--work-dir", str(folder.parent), "--check", "--set", "data.co_training=[]"]
    code = main(arguments)
    printed = capsys.readouterr()
    return code, " ".join(printed.out.split()), printed.err


def test_the_check_tells_what_a_split_leaves_out(tmp_path, capsys):
    folder = write_lerobot(tmp_path / "set", make_episodes(5, 3, size=16), "v2.1", "image")
    edit_info(folder, splits={"train": "0:3"})
    code, printed, _ = check(folder, capsys)
    assert code == 0
    assert "robot/k: all 5 episodes are read, as no split is named; of its splits train (0:3) holds 3" in printed
    code, printed, _ = check(folder, capsys, ", split: train")
    assert "split 'train' (0:3) holds 3 of 5 episodes" in printed
    assert "│ 12 │" in printed, "rows"
    assert "unknown" not in printed
    code, _, errors = check(folder, capsys, ", split: val")
    assert code == 2
    assert "got split='val', expected one of train" in errors
