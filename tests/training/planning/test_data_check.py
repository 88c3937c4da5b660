"""What is gathered of a run's data before it trains: rows as the model sees them, dimensions, warnings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from robot_data_sets import make_episodes, write_lerobot
from tiny_runs import noise, tiny_flow_settings, tiny_recipe, tiny_vlm_model, write_robot_data

from gen_vla.processors import compute_statistics, count_clipped
from gen_vla.training.mixing.data_source import DataReading
from gen_vla.training.mixing.encoded_pictures import PictureError
from gen_vla.training.mixing.prepared_rows import RowTooLong
from gen_vla.training.planning.check import config_and_processor
from gen_vla.training.planning.data_check import (
    Dimension,
    SourceCheck,
    action_dimensions,
    check_data,
    dimension_warnings,
    picture_warnings,
    reading_warnings,
    sample_rows,
    seen_pictures,
    stopping,
)
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.recipes.sources import OpenedData, open_data
from gen_vla.training.run import build_collator, build_preparer


PROMPT = "In: What action should the robot take to open the drawer?\nOut:\n"


def looked_at(recipe: Recipe, work_dir: Path, opened: OpenedData | None = None) -> dict[str, SourceCheck]:
    opened = opened or open_data(recipe, work_dir)
    config, processor, _ = config_and_processor(recipe, work_dir, opened)
    collator = build_collator(recipe, config, processor, opened.names)
    prepare = build_preparer(recipe, processor, opened.norm_stats, collator, config)
    return {check.name: check for check in check_data(opened, prepare, collator)}


def test_a_row_as_the_model_sees_it(tmp_path: Path) -> None:
    actions = [[0.0, -0.05, 1.0]] + [[0.01 * row, 0.05, 0.0] for row in range(5)]
    write_robot_data(tmp_path / "robot", image=[noise(row, 40) for row in range(6)], action=actions)
    checks = looked_at(tiny_recipe(tmp_path), tmp_path)
    assert list(checks) == ["robot/tiny", "vision_language/scenes"]
    row = checks["robot/tiny"].rows[0]
    assert (row.identity, row.words, row.picture_sizes) == ("robot/tiny row 0", "Open the drawer", [(40, 40)])
    assert row.spans == [(f"<s><image> x 4  {PROMPT}", False), ("-1.00-1.00+1.00</s>", True)]
    assert row.supervised == 16, "a token per character, and EOS"
    assert row.tokens > row.supervised + 4
    resized = noise(0, 40).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(row.pictures[0]), np.asarray(resized))
    assert seen_pictures([], None) == []
    question = checks["vision_language/scenes"].rows[0]
    assert question.words == "how many blocks are there?"
    assert question.spans == [("<s><image> x 4  In: how many blocks are there?\nOut:", False), (" one</s>", True)]
    assert len(checks["robot/tiny"].rows) == 4


def test_pictures_are_shown_as_they_were_augmented(tmp_path: Path) -> None:
    plain = looked_at(tiny_recipe(tmp_path), tmp_path)["robot/tiny"].rows[0].pictures[0]
    recipe = tiny_recipe(tmp_path, data__image_augmentation={})
    changed = looked_at(recipe, tmp_path)["robot/tiny"].rows[0].pictures[0]
    assert changed.size == (16, 16)
    assert not np.array_equal(np.asarray(changed), np.asarray(plain))


def test_every_family_is_shown(tmp_path: Path) -> None:
    row = looked_at(tiny_recipe(tmp_path, model=tiny_vlm_model()), tmp_path)["robot/tiny"].rows[0]
    assert row.spans[0][0].startswith("<s><image> x 4 ")
    assert row.spans[1] == (row.spans[1][0], True)
    row = looked_at(tiny_recipe(tmp_path, **tiny_flow_settings()), tmp_path)["robot/tiny"].rows[0]
    numbers, learned = row.spans[-1]
    assert (len(numbers.split()), learned, row.supervised) == (9, True, 9), "three steps of three dimensions"
    assert np.isfinite([float(number) for number in numbers.split()]).all()


def test_bins_are_shown_as_their_tokens(tmp_path: Path) -> None:
    settings = {"actions__representation": "bins", "actions__bin_tokens": "bytes"}
    row = looked_at(tiny_recipe(tmp_path, **settings), tmp_path)["robot/tiny"].rows[0]
    answer = row.spans[-1][0]
    assert answer.count("<0x") == 3
    assert answer.endswith("</s>")


def test_byte_pieces_of_a_prompt_are_spelled(tmp_path: Path) -> None:
    write_robot_data(tmp_path / "robot", instruction=["öffne die Schublade"] * 6)
    recipe = tiny_recipe(tmp_path, tokenizer__texts_from=["questions"])  # which have no ö
    row = looked_at(recipe, tmp_path)["robot/tiny"].rows[0]
    assert "to öffne die schublade?\n" in row.spans[0][0]


@pytest.mark.parametrize(
    ("episodes", "version", "places"),
    [(3, "v2.1", [(0, 0), (0, 1), (1, 3), (2, 6)]), (4, "v3.0", [(0, 0), (1, 2), (2, 4), (3, 7)])],
)
def test_a_stream_is_looked_at_without_counting(tmp_path, episodes, version, places):
    data = {"robot": [{"path": "lerobot", "key": "own"}], "image_size": 16, "streaming": True}
    tokenizer = {"vocab_size": 400, "texts_from_rows": 5}
    recipe = tiny_recipe(tmp_path, actions={"action_dim": 7}, data=data, tokenizer=tokenizer)
    write_lerobot(tmp_path / "lerobot", make_episodes(episodes, 5, size=16), version)
    opened = open_data(recipe, tmp_path)
    rows = sample_rows(opened, "robot/own", 4)
    assert [(row["episode_index"], row["step_index"]) for row in rows] == places
    assert opened.problems["robot/own"].report()["seen"] == 0
    assert len(looked_at(recipe, tmp_path)["robot/own"].rows) == 4


def test_a_row_that_cannot_be_used_is_a_warning(tmp_path: Path) -> None:
    write_robot_data(tmp_path / "robot")
    recipe = tiny_recipe(tmp_path)
    opened = open_data(recipe, tmp_path)
    table = opened.tables["robot/tiny"]

    class OneBroken:
        dataset = table.dataset

        def __len__(self) -> int:
            return len(table)

        def __getitem__(self, number: int) -> dict[str, Any]:
            row = table[number]
            return row if number else {**row, "images": [{"bytes": b"no picture", "path": None}]}

    opened.tables["robot/tiny"] = OneBroken()
    check = looked_at(recipe, tmp_path, opened)["robot/tiny"]
    assert len(check.rows) == 3
    assert not check.stops, "another row stands in for it"
    told = "1 of 4 rows cannot be used: robot/tiny row 0: got a picture of 10 bytes that does not decode"
    assert any(text.startswith(told) for text in check.warnings)


def test_what_would_stop_a_run() -> None:
    picture, long = PictureError("no picture"), RowTooLong("too long")
    assert stopping([], 4, robot=True) == ""
    assert stopping([picture], 3, robot=True) == ""
    assert stopping([picture, picture], 0, robot=True) == "no picture"
    assert stopping([picture, long], 2, robot=True) == "too long"
    assert stopping([long], 3, robot=False) == "", "which are left out"
    assert stopping([long], 0, robot=False) == "too long"


def test_dimensions_tell_what_the_statistics_say() -> None:
    actions = np.zeros((200, 4))
    actions[:, 0] = np.linspace(-1, 1, 200)
    actions[:, 2] = np.arange(200) % 2
    actions[:, 3] = np.arange(200) % 2
    statistics = compute_statistics(actions, 1)["action"]
    clipping = {"values": 200, "clipped": count_clipped(actions, statistics).tolist()}
    moving, still, looks, binary = action_dimensions(statistics, clipping)
    assert (moving.low, moving.high, moving.clipped, moving.share) == (-1.0, 1.0, 4, 0.02)
    assert -1 < moving.q01 < moving.q99 < 1
    assert [dim.constant for dim in (moving, still, looks, binary)] == [False, True, False, False]
    assert [dim.binary for dim in (moving, still, looks, binary)] == [False, False, False, True]
    assert [dim.looks_binary for dim in (moving, looks)] == [False, True]
    assert [dim.name for dim in (moving, still, looks, binary)] == ["0", "1", "2", "3"]
    named = action_dimensions(statistics, clipping, ["waist", "elbow", "wrist", "gripper"])
    assert [dim.name for dim in named] == ["0 waist", "1 elbow", "2 wrist", "3 gripper"]


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({}, None),
        ({"low": 0.25, "high": 0.25}, "dimension 0 never changes: it is always 0.25"),
        ({"q01": 0.5, "q99": 0.5}, "dimension 0 is 0.5 in 98 % of the steps"),
        ({"looks_binary": True}, "dimension 0 is 0 or 1 alone, and scaled"),
        ({"looks_binary": True, "binary": True}, None),
        ({"share": 0.05}, None),
        ({"share": 0.14}, "up to 14% of the values of a dimension are clipped (dimensions 0)"),
    ],
)
def test_warnings_about_a_dimension(changes: dict[str, Any], warning: str | None) -> None:
    fine = Dimension(-2.0, -1.0, 1.0, 2.0, 2, 0.02, False, False)
    found = dimension_warnings([replace(fine, **changes)])
    assert len(found) == (warning is not None)
    assert all(str(warning) in text for text in found)


def test_a_joint_that_hardly_moves_beside_others() -> None:
    moving = [Dimension(-2.0, -width, width, 2.0, 2, 0.02, False, False) for width in (0.05, 1.0, 1.5)]
    assert dimension_warnings(moving) == []
    still = Dimension(-2.0, 0.5, 0.508, 2.0, 2, 0.02, False, False, "5 wrist")
    assert dimension_warnings([*moving, still]) == [
        "dimension 5 wrist hardly moves: 98 % of its values lie within 0.008, where others take 1.1; its noise is "
        "scaled to [-1, 1] and learned like a motion"
    ]


def test_warnings_about_what_was_read(tmp_path: Path) -> None:
    row = looked_at(tiny_recipe(tmp_path), tmp_path)["robot/tiny"].rows[0]
    assert reading_warnings(DataReading("RLDS", 9, 2, ["top"], [], False, 3), [row]) == []
    assert reading_warnings(DataReading("RLDS", 9, 2, ["top"], ["wrist"], True, 3), [row]) == []
    default = reading_warnings(DataReading("RLDS", 9, 2, ["top"], ["wrist", "side"], False, 3), [row])
    assert default == ["of 3 cameras only the first is used, top; not wrist, side, unless `cameras` names them"]
    one = reading_warnings(DataReading("RLDS", 9, 2, ["top"], instructions=1), [row])
    assert one == ["all rows have one instruction ('Open the drawer'): a policy need not listen to it"]
    skipped = {"seen": 7, "skipped": 2, "by_reason": {"cut off": 2}, "examples": []}
    missing = reading_warnings(
        DataReading("RLDS", 9, 2, ["top"], instructions=2, without_instruction=1200, skipped=skipped), [row]
    )
    assert missing == ["1,200 steps without an instruction, skipped", "2 steps skipped: cut off (2)"]


def test_a_camera_that_shows_nothing(tmp_path: Path) -> None:
    write_robot_data(tmp_path / "robot", image=[Image.new("RGB", (16, 16), (9, 9, 9)), *map(noise, range(5))])
    shown = looked_at(tiny_recipe(tmp_path), tmp_path)["robot/tiny"].rows
    assert picture_warnings(shown) == ["1 of the 4 pictures looked at are of one colour"]
    assert picture_warnings(shown[1:]) == []
