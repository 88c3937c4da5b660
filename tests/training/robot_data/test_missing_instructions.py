"""Steps without an instruction: never the word None, but counted, named, and skipped or refused as the recipe says."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import load_from_disk
from rlds_data_sets import write_rlds
from robot_data_sets import (
    edit_episodes,
    edit_lines,
    edit_rows,
    make_episodes,
    with_column,
    write_lerobot,
    write_recording,
)
from robot_rows import check, read_rows

from gen_vla.training.mixing.row_tables import RecordedTable
from gen_vla.training.robot_data.episodes import instruction_text
from gen_vla.training.robot_data.source import open_robot_source


@pytest.mark.parametrize(
    "value", [None, float("nan"), np.nan, pd.NA, "", "  ", "None", "nan", " NaN ", "null", 3, b"x"]
)
def test_what_is_no_instruction(value):
    assert instruction_text(value).strip() == ""


@pytest.mark.parametrize("text", [" Pick nothing ", "none of them"])
def test_what_is_one(text):
    assert instruction_text(text) == text


def null_task(folder: Path, version: str) -> None:
    if version == "v3.0":
        tasks = pd.read_parquet(folder / "meta/tasks.parquet")
        tasks.set_axis([None, *tasks.index[1:]]).to_parquet(folder / "meta/tasks.parquet")
    else:
        edit_lines(folder / "meta/tasks.jsonl", lambda lines: [{**lines[0], "task": None}, *lines[1:]])


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("number", ["null task", None, float("nan"), 99])
def test_a_task_that_is_missing(tmp_path, capsys, version, number):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 4, size=16), version, "image")
    if number == "null task":
        null_task(folder, version)
    else:

        def change(table: pa.Table) -> pa.Table:
            pairs = zip(table["episode_index"].to_pylist(), table["task_index"].to_pylist())
            kind = pa.float64() if isinstance(number, float) else pa.int64()
            values = [number if episode == 0 else task for episode, task in pairs]
            return with_column(table, "task_index", pa.array(values, kind))

        edit_rows(folder, change)
    found = {row["episode_index"]: row["instruction"] for row in read_rows(folder)[0]}
    assert found == {episode: f"put block {episode} on the plate" for episode in (1, 2, 3)}
    code, printed, _ = check(folder, capsys)
    assert code == 0
    assert "4 steps without an instruction, skipped (such as" in printed
    assert "episode 0" in printed
    code, _, errors = check(folder, capsys, ", without_instruction: refuse")
    assert code == 2
    assert "robot data set 'k': got 4 of 22 steps without an instruction, such as" in errors
    told = "episode 0: their task is null, empty or missing; write an instruction there, or set without_instr"
    assert told in errors


@pytest.mark.parametrize("tasks", [None, [None], [0], "put it there"])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_the_tasks_of_episodes_may_be_anything(tmp_path, version, tasks):
    folder = write_lerobot(tmp_path / "set", make_episodes(3, 4, size=16), version, "image")
    if version == "v3.0":
        edit_episodes(folder, lambda table: table.assign(tasks=[tasks] * len(table)))
    else:
        edit_lines(folder / "meta/episodes.jsonl", lambda lines: [{**line, "tasks": tasks} for line in lines])
    rows, dataset = read_rows(folder)
    assert len(rows) == 15
    assert dataset.count_rows() in (15, None)


@pytest.mark.parametrize("column", ["task", "tasks", None])
def test_tasks_in_a_column_or_an_index_with_a_name(tmp_path, column):
    folder = write_lerobot(tmp_path / "set", make_episodes(3, 4, size=16), "v3.0", "image")
    path = folder / "meta/tasks.parquet"
    tasks = pd.read_parquet(path)
    tasks = tasks.reset_index(names=column) if column else tasks.rename_axis("task")
    tasks.sample(frac=1, random_state=1).to_parquet(path)
    rows, _ = read_rows(folder)
    assert len(rows) == 15
    assert all(row["instruction"] == f"put block {row['episode_index']} on the plate" for row in rows)


@pytest.mark.parametrize("text", ["", "None", "nan"])
@pytest.mark.parametrize("write", [lambda folder, e: write_rlds(folder, e, name="mine"), write_recording])
def test_instructions_of_rlds_and_recordings(tmp_path, capsys, write, text):
    episodes = make_episodes(4, 4, size=16)
    episodes[1].instruction = text
    folder = write(tmp_path / "set", episodes)
    assert {row["episode_index"] for row in read_rows(folder)[0]} == {0, 2, 3}
    code, printed, _ = check(folder, capsys)
    assert code == 0
    assert "5 steps without an instruction, skipped" in printed
    code, _, errors = check(folder, capsys, ", without_instruction: refuse")
    assert code == 2
    assert "got 5 of 22 steps without an instruction" in errors


def test_rows_of_a_recording_without_instruction_are_no_rows(tmp_path):
    episodes = make_episodes(2, 4, size=16)
    rows = load_from_disk(str(write_recording(tmp_path / "rec", episodes)))
    emptied = rows.map(lambda row, n: {"instruction": None if n in (1, 4) else row["instruction"]}, with_indices=True)
    emptied.save_to_disk(str(tmp_path / "emptied"))
    table = RecordedTable(open_robot_source(tmp_path / "emptied", key="rec", horizon=3))
    found = [table[number]["identity"] for number in range(len(table))]
    assert found == [f"rec row {n}" for n in (0, 2, 3, 5, 6, 7, 8)]
    np.testing.assert_array_equal(table[0]["action"], episodes[0].actions[:3])  # of all steps
    assert table[2]["action_is_pad"].tolist() == [False, True, True]
