"""The mixture: every batch half and half, in an order that only the seed decides, and rows spelled exactly."""

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from tiny_models import tiny_processor, tiny_statistics
from tiny_runs import noise, tiny_recipe, write_questions, write_robot_data

from gen_vla.processors import ActionGrammar, ActionStringProcessor, compute_statistics
from gen_vla.training.mixture import (
    ROBOT_COLUMNS,
    HalfAndHalfSampler,
    build_mixture,
    load_columns,
    robot_rows,
    robot_statistics,
    vision_language_rows,
)


REMEDY = "record it first"


def data(folder: Path, columns: tuple[str, ...] = ("image",)) -> Dataset:
    return load_columns(folder, columns, REMEDY)


def robot_data(tmp_path: Path, actions: list[list[float]], **columns: Any) -> Dataset:
    count = len(actions)
    return data(write_robot_data(tmp_path / "robot", count, action=actions, **columns))


# ---- the order


def test_the_order_of_a_small_run() -> None:
    order = list(HalfAndHalfSampler([3], [2], length=12, seed=0))
    assert all(index < 3 for index in order[::2])  # robot rows come first in the concatenation
    assert all(index in (3, 4) for index in order[1::2])
    assert [sorted(order[0:6:2]), sorted(order[6:12:2])] == [[0, 1, 2]] * 2  # every row once before any comes again
    assert [sorted(order[k : k + 4 : 2]) for k in (1, 5, 9)] == [[3, 4]] * 3
    assert order == [2, 3, 0, 4, 1, 4, 2, 3, 1, 4, 0, 3]


@pytest.mark.parametrize(("robot", "vision"), [([5], [3]), ([1], [7]), ([4, 2], [3, 3, 5]), ([2, 9, 1], [1])])
@pytest.mark.parametrize("batch", [2, 4, 6])
def test_every_batch_is_half_and_half(robot: list[int], vision: list[int], batch: int) -> None:
    sampler = HalfAndHalfSampler(robot, vision, length=batch * 30, seed=3)
    order = list(sampler)
    assert len(order) == len(sampler) == batch * 30
    for start in range(0, len(order), batch):
        assert sum(index < sum(robot) for index in order[start : start + batch]) == batch // 2
    assert set(order) == set(range(sum(robot) + sum(vision)))


def test_the_sets_of_a_kind_take_turns() -> None:
    order = list(HalfAndHalfSampler([2], [3, 4, 5], length=30, seed=1))
    which = [sum(index >= start for start in (2, 5, 9)) for index in order]
    assert which == [0, 1, 0, 2, 0, 3] * 5
    two_robots = list(HalfAndHalfSampler([2, 2], [4], length=16, seed=1))
    assert [index // 2 for index in two_robots[::2]] == [0, 1] * 4


def test_a_used_up_set_comes_again_in_another_order() -> None:
    order = list(HalfAndHalfSampler([50], [10], length=100, seed=0))
    rounds = [order[1 + 20 * k : 1 + 20 * (k + 1) : 2] for k in range(5)]
    assert all(sorted(one) == list(range(50, 60)) for one in rounds)
    assert len({tuple(one) for one in rounds}) == 5
    assert Counter(order[::2]) == Counter(range(50))


def test_the_seed_decides_the_order_and_a_longer_run_begins_alike() -> None:
    order = list(HalfAndHalfSampler([6], [5], length=40, seed=7))
    sampler = HalfAndHalfSampler([6], [5], length=40, seed=7)
    assert list(sampler) == order
    assert list(sampler) == order  # asking twice changes nothing, so that a resumed run can skip
    assert list(HalfAndHalfSampler([6], [5], length=40, seed=8)) != order
    assert list(islice(HalfAndHalfSampler([6], [5], length=90, seed=7), 40)) == order


@pytest.mark.parametrize(("robot", "vision"), [([4], []), ([], [4]), ([], [1, 3])])
def test_one_kind_alone_is_not_mixed(robot: list[int], vision: list[int]) -> None:
    assert set(HalfAndHalfSampler(robot, vision, length=12, seed=0)) == {0, 1, 2, 3}


@pytest.mark.parametrize(("robot", "vision"), [([], []), ([0], [3]), ([3], [2, 0])])
def test_an_empty_set_raises(robot: list[int], vision: list[int]) -> None:
    with pytest.raises(ValueError, match=r"got data sets of \[.*\] rows, expected at least one row in each"):
        HalfAndHalfSampler(robot, vision, length=4, seed=0)


# ---- rows


def test_robot_rows_spell_normalised_actions(tmp_path: Path, llama_like: Any) -> None:
    strings = ActionStringProcessor(action_dim=3, decimals=4, binary_dims=[2])
    # Dimension d is mapped from [-(d + 1), d + 1] to [-1, 1]; the gripper stays.
    actions = [[0.5, -1.0, 1.0], [-0.1234, 0.0, 0.0], [1.5, -9.0, 1.0]]
    dataset = robot_data(tmp_path, actions, instruction=["Open the drawer", "CLOSE it", "Open the drawer"])
    rows, report = robot_rows(dataset, tiny_processor(llama_like, strings), tiny_statistics(3)["action"], None)
    assert rows["completion"][:] == ["+0.5000-0.5000+1.0000", "-0.1234+0.0000+0.0000", "+1.0000-1.0000+1.0000"]
    assert rows["prompt"][1] == "In: What action should the robot take to close it?\nOut:\n"
    assert (
        rows["prompt"][0] == rows["prompt"][2] == "In: What action should the robot take to open the drawer?\nOut:\n"
    )
    assert set(rows["source"]) == {"robot"}
    assert report == {"values": 3, "clipped": [1, 1, 0]}
    for row in range(3):
        assert np.array_equal(np.asarray(rows[row]["images"][0]), np.asarray(noise(row)))


def test_label_decimals_round_and_keep_the_width(tmp_path: Path, llama_like: Any) -> None:
    strings = ActionStringProcessor(action_dim=3, decimals=4, binary_dims=[2])
    dataset = robot_data(tmp_path, [[0.5678, -0.0090, 1.0], [0.999, -0.5, 0.0]])
    processor, statistics = tiny_processor(llama_like, strings), tiny_statistics(3)["action"]
    for decimals, expected in (
        (2, ["+0.5700+0.0000+1.0000", "+1.0000-0.2500+0.0000"]),
        (1, ["+0.6000+0.0000+1.0000", "+1.0000-0.2000+0.0000"]),
        (4, ["+0.5678-0.0045+1.0000", "+0.9990-0.2500+0.0000"]),
    ):
        assert robot_rows(dataset, processor, statistics, decimals)[0]["completion"][:] == expected


@pytest.mark.parametrize("style", ["signed", "plain", "legacy"])
def test_what_a_robot_row_teaches_is_what_the_grammar_reads(style: str, tmp_path: Path, llama_like: Any) -> None:
    strings = ActionStringProcessor(action_dim=3, decimals=4, style=style, binary_dims=[2])
    processor = tiny_processor(llama_like, strings)
    dataset = robot_data(tmp_path, [[-0.5, -1.0, 1.0], [0.25, 0.0, 0.0], [-0.1234, 2.0, 1.0]])
    rows, _ = robot_rows(dataset, processor, tiny_statistics(3)["action"], None)
    grammar = ActionGrammar.from_action_config(processor.action_config)
    row: Any
    for row in rows:
        prompt = processor.encode_text(row["prompt"])
        whole = processor.encode_text(row["prompt"] + row["completion"])
        assert whole[: len(prompt)] == prompt
        answer = whole[len(prompt) :]
        grammar.advance([*answer, llama_like.eos_token_id])  # raises at a token that could never be generated
        assert strings.encode(strings.decode(grammar.text(answer))) == row["completion"].removeprefix(" ")


def test_vision_language_rows(tmp_path: Path, llama_like: Any) -> None:
    dataset = data(write_questions(tmp_path / "q", 2, question=["Is it open? ", "how many"], answer=["yes", " two"]))
    rows = vision_language_rows(dataset, tiny_processor(llama_like), "scenes")
    assert rows["prompt"][:] == ["In: Is it open?\nOut:", "In: how many\nOut:"]
    assert rows["completion"][:] == [" yes", " two"]
    assert set(rows["source"]) == {"vision_language/scenes"}
    assert isinstance(rows[0]["images"][0], Image.Image)


def test_a_row_without_a_picture_is_text_only(tmp_path: Path, llama_like: Any) -> None:
    dataset = data(write_questions(tmp_path / "q", 2, image=[None, noise(1)]))
    rows = vision_language_rows(dataset, tiny_processor(llama_like), "scenes")
    assert [len(images) for images in rows["images"]] == [0, 1]


def test_build_mixture_puts_robot_data_first(tmp_path: Path, llama_like: Any) -> None:
    sources = [{"path": "robot", "key": "tiny"}, {"path": "more", "key": "second"}]
    recipe = tiny_recipe(tmp_path, data__robot=sources)
    write_robot_data(tmp_path / "more", rows=3, seed=9)
    statistics: dict[str, Any] = {}
    for source in recipe.data.robot:
        statistics |= robot_statistics(data(tmp_path / source.path, ROBOT_COLUMNS), source.key)
    strings = ActionStringProcessor(action_dim=3, decimals=2, binary_dims=[2])
    rows, report = build_mixture(recipe, tmp_path, tiny_processor(llama_like, strings), statistics)
    assert rows["source"][:] == ["robot"] * 9 + ["vision_language/scenes"] * 4
    assert (report["robot"], report["vision_language"]) == ([6, 3], [4])
    assert {key: entry["values"] for key, entry in report["clipping"].items()} == {"tiny": 6, "second": 3}
    assert report["clipping"]["tiny"]["clipped"][:2] == [2, 2]  # 1 % of each end of 6 values is one value each


def test_statistics_count_transitions_and_episodes(tmp_path: Path) -> None:
    actions = [[0.0, 1.0, 0.0], [2.0, 1.0, 1.0], [4.0, 1.0, 1.0], [6.0, 1.0, 0.0]]
    dataset = robot_data(tmp_path, actions, episode_index=[4, 4, 7, 9])
    statistics = robot_statistics(dataset, "mine")
    assert statistics == {"mine": compute_statistics(actions, num_trajectories=3)}
    assert statistics["mine"]["action"]["max"] == [6.0, 1.0, 1.0]


# ---- what is missing


def test_missing_folders_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"got no data set at .*nowhere.*save_to_disk; record it first"):
        data(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="got no data set at"):
        data(tmp_path / "empty")
    folder = write_questions(tmp_path / "questions")
    with pytest.raises(
        ValueError, match=r"questions: got columns \['image', 'question', 'answer'\], expected also ins"
    ):
        data(folder, ROBOT_COLUMNS)


def test_actions_of_another_width_or_not_finite_name_the_data_set(tmp_path: Path, llama_like: Any) -> None:
    dataset = robot_data(tmp_path, [[0.0, 0.0, 1.0], [0.0, float("nan"), 1.0]])
    with pytest.raises(ValueError, match=r"robot data set 'mine': got nan in row 1, dimension 1"):
        robot_statistics(dataset, "mine")
    strings = ActionStringProcessor(action_dim=2, decimals=2)
    good = data(write_robot_data(tmp_path / "good"))
    with pytest.raises(ValueError, match=r"got actions of 3 dimensions, expected actions.action_dim=2"):
        robot_rows(good, tiny_processor(llama_like, strings), tiny_statistics(3)["action"], None)
