"""What is held out of training: no format lets it through, and a run is scored on it and nothing else."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_sets import ONEVISION, conversation, picture, tar, write_llava, write_parquet, write_robopoint
from robot_data_sets import make_episodes
from robot_rows import FORMATS, write
from tiny_runs import (
    logged_steps,
    read_log,
    run_tiny,
    tiny_flow_settings,
    tiny_recipe,
    weights_hash,
    write_questions,
    write_robot_data,
)

from gen_vla.processors import compute_statistics
from gen_vla.training.checkpoints import load_model, read_config
from gen_vla.training.held_out import HeldOutRows, held_out_episodes, question_draw, question_rows, robot_rows
from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.recipes.data_schema import RecipeError, ValidationRecipe
from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.sources import OpenedData, open_data
from gen_vla.training.robot_data.source import RobotDataset
from gen_vla.training.vision_language_data.source import open_vision_language_source


# ---- which
@pytest.mark.parametrize(("share", "expected"), [(0.1, 10), (0.15, 15), (0.5, 50), (0.01, 1)])
def test_a_share_is_exact_and_stays_held_out_when_data_sets_grow(share: float, expected: int) -> None:
    validation = ValidationRecipe(episodes=share)
    held_out = held_out_episodes(validation, "robot", list(range(100)))
    assert len(held_out) == expected
    assert held_out_episodes(validation, "robot", list(range(300)))[:expected] == held_out
    others = (ValidationRecipe(episodes=share, seed=1), "robot"), (validation, "other")
    assert all(held_out_episodes(*other, list(range(300)))[:expected] != held_out for other in others)


def test_episodes_by_number() -> None:
    validation = ValidationRecipe(episodes={"robot": [7, 4]})
    assert held_out_episodes(validation, "robot", [4, 5, 7]) == [4, 7]
    assert held_out_episodes(validation, "other", [4, 5, 7]) == []
    assert held_out_episodes(None, "robot", [4, 5, 7]) == []
    with pytest.raises(ValueError, match=r"episodes \[7\] of 'robot', .* of its 2 episodes, .* from 4 to 5"):
        held_out_episodes(validation, "robot", [4, 5])
    assert len(held_out_episodes(ValidationRecipe(episodes=0.01), "robot", [4, 7, 9])) == 1
    with pytest.raises(ValueError, match="'robot' with 1 episodes, all of them held out"):
        held_out_episodes(ValidationRecipe(episodes=0.1), "robot", [0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episodes": {"tinny": [1]}}, "'tinny', which is no data set here; did you mean 'tiny'"),
        ({"questions": {"robot": ["x"]}}, "'robot', which is no data set here"),
        ({}, "holds out nothing"),
        ({"episodes": 1.0}, "episodes"),
    ],
)
def test_mistakes_in_a_recipe(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny_recipe(tmp_path, data__validation=settings)
    with pytest.raises(RecipeError, match="eval_steps=3 and save_steps=4, expected save_steps to be a multiple"):
        tiny_recipe(tmp_path, training__eval_steps=3)


# ---- apart in every format
def rows_of(source: Any) -> list[dict[str, Any]]:
    if hasattr(source, "shards"):
        return list(source.rows(source.shards()))
    return [source[number] for number in range(len(source))]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_no_row_of_a_held_out_episode_is_trained_on(form: str, streaming: bool, tmp_path: Path) -> None:
    episodes = make_episodes(10, 4, size=16)
    data = write(tmp_path, form, episodes)
    robot = [{"path": str(data.relative_to(tmp_path)), "key": "mine", "transform": None}]
    changes: dict[str, Any] = {"data.robot": robot, "data.streaming": streaming}
    validated = {**changes, "data.validation": {"episodes": 0.2}}
    opened = open_data(load_recipe("openvla_bridge", validated), tmp_path)
    held_out = opened.norm_stats["mine"]["held_out"]
    trained = [number for number in range(10) if number not in held_out]
    assert len(held_out) == 2

    def actions(rows: list[dict[str, Any]]) -> set[bytes]:
        return {np.asarray(row["action"][0], np.float32).tobytes() for row in rows}

    def recorded(numbers: list[int]) -> np.ndarray:
        return np.concatenate([episodes[number].actions for number in numbers])

    learned = opened.streams["robot/mine"] if streaming else opened.tables["robot/mine"]
    assert actions(rows_of(learned)) == {action.tobytes() for action in recorded(trained)}
    apart = rows_of(opened.held_out["robot/mine"])
    assert actions(apart) == {action.tobytes() for action in recorded(held_out)}
    assert {row["episode_index"] for row in apart} == set(held_out)
    expected = compute_statistics(recorded(trained), 8)
    assert opened.norm_stats["mine"]["num_transitions"] == len(recorded(trained))
    np.testing.assert_allclose(opened.norm_stats["mine"]["action"]["q99"], expected["action"]["q99"], rtol=1e-6)
    assert opened.readings["robot/mine"].episodes == 8
    assert "2 of 10 episodes are held out" in opened.readings["robot/mine"].notes
    # Without validation, all of them are back, from the same caches.
    everything = open_data(load_recipe("openvla_bridge", changes), tmp_path)
    learned = everything.streams["robot/mine"] if streaming else everything.tables["robot/mine"]
    assert len(actions(rows_of(learned))) == len(recorded(list(range(10))))
    assert everything.norm_stats["mine"]["num_trajectories"] == 10
    assert "held_out" not in everything.norm_stats["mine"]


def write_conversations(folder: Path, layout: str, rows: int) -> Path:
    """Questions with an answer of their own each."""
    if layout == "recorded":
        texts = [f"answer {row}" for row in range(rows)]
        return write_questions(folder / "questions", rows, answer=texts)
    said = [conversation("<image>\nWhat is it?", f"answer {row}") for row in range(rows)]
    names = [f"coco/{row}.jpg" for row in range(rows)]
    listed = [{"id": str(row), "image": names[row], "conversations": said[row]} for row in range(rows)]
    if layout == "llava":
        return write_llava(folder / "questions", listed, {name: picture(0) for name in names}, zipped=True)
    if layout == "robopoint":
        return write_robopoint(folder / "questions", listed, {"coco": tar({name: picture(0) for name in names})}, {})
    cells = [
        {"id": str(row), "image": {"bytes": picture(0), "path": None}, "conversations": said[row], "data_source": "x"}
        for row in range(rows)
    ]
    write_parquet(folder / "questions" / "chart" / "train-00000-of-00001.parquet", cells, ONEVISION)
    return folder / "questions"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("layout", ["recorded", "llava", "robopoint", "onevision"])
def test_no_held_out_question_is_trained_on(layout: str, streaming: bool, tmp_path: Path) -> None:
    write_conversations(tmp_path, layout, 40)
    sources = [{"path": "questions", "name": "scenes", "format": layout}]
    changes: dict[str, Any] = {"data__vision_language": sources, "data__streaming": streaming}
    opened = open_data(tiny_recipe(tmp_path, data__validation={"questions": 0.2}, **changes), tmp_path)

    def answers(source: Any) -> list[str]:
        return [row["turns"][0]["answer"] for row in rows_of(source)]

    learned = answers((opened.streams if streaming else opened.tables)["vision_language/scenes"])
    apart = answers(opened.held_out["vision_language/scenes"])
    assert sorted(learned + apart) == sorted(f"answer {row}" for row in range(40))
    assert 2 <= len(apart) <= 16
    assert "robot/tiny" not in opened.held_out
    names = [row["identity"] for row in rows_of(opened.held_out["vision_language/scenes"])][:2]
    named = tiny_recipe(tmp_path, data__validation={"questions": {"scenes": names}}, **changes)
    assert answers(open_data(named, tmp_path).held_out["vision_language/scenes"]) == apart[:2]


# ---- which rows are scored
def held_out_robot(opened: OpenedData) -> RobotDataset:
    source = opened.held_out["robot/tiny"]
    assert isinstance(source, RobotDataset)
    return source


def test_scored_rows_are_from_all_over(tmp_path: Path) -> None:
    write(tmp_path, "v3.0", make_episodes(10, 4, size=16))
    source = [{"path": "lerobot", "key": "tiny", "transform": None}]
    changes: dict[str, Any] = {"data__robot": source, "actions__action_dim": 7, "actions__binary_dims": [6]}
    opened = open_data(tiny_recipe(tmp_path, data__validation={"episodes": 0.5}, **changes), tmp_path)
    found = list(robot_rows(held_out_robot(opened), 10))
    assert len(found) == 10
    assert {row["episode_index"] for row in found} == set(opened.norm_stats["tiny"]["held_out"])
    assert len({(row["episode_index"], row["step_index"]) for row in found}) == 10
    assert len(list(robot_rows(held_out_robot(opened), 3))) == 3
    everything = rows_of(opened.held_out["robot/tiny"])
    assert len(list(robot_rows(held_out_robot(opened), 1000))) == len(everything)


@pytest.mark.parametrize("layout", ["recorded", "robopoint"])
@pytest.mark.parametrize("most", [3, 100])
def test_scored_questions_come_once_each(layout: str, most: int, tmp_path: Path) -> None:
    folder = write_conversations(tmp_path, layout, 40)
    draw = question_draw(ValidationRecipe(questions=0.5), "scenes")
    assert draw is not None
    source = open_vision_language_source(folder, name="scenes").only(draw, RowProblems(name="held out"))
    there = {row["identity"] for row in source.rows(source.shards())}
    found = [row["identity"] for row in question_rows(source, most)]
    assert len(found) == len(set(found)) == min(most, len(there))
    assert set(found) <= there


def test_every_process_scores_as_many_rows_and_each_row_counts_once(tmp_path: Path) -> None:
    write_questions(tmp_path / "questions", 40)
    draw = question_draw(ValidationRecipe(questions=0.5), "scenes")
    assert draw is not None
    source = open_vision_language_source(tmp_path / "questions", name="scenes").only(draw)

    def part(rank: int) -> HeldOutRows:
        prepare: Any = lambda row, name, place: {"identity": row["identity"]}  # noqa: E731
        collate: Any = list
        return HeldOutRows({"vision_language/scenes": source}, prepare, collate, 11, rank, 4)

    parts = [part(rank) for rank in range(4)]
    assert [len(one) for one in parts] == [3] * 4
    rows = [one[number] for one in parts for number in range(3)]
    counted = [row["identity"] for row in rows if row["counted"]]
    assert len(counted) == len(set(counted)) == 11


# ---- a run
SETTINGS: dict[str, Any] = {
    "data__validation": {"episodes": {"tiny": [1]}, "questions": 0.3, "rows": 5},
    "training__eval_steps": 2,
    "training__save_steps": 2,
    "training__steps": 8,
}


def write_data(work_dir: Path) -> None:
    write_robot_data(work_dir / "robot", rows=12, episode_index=[row // 4 for row in range(12)])
    write_questions(work_dir / "questions", rows=12)


def scores(folder: Path) -> list[dict[str, float]]:
    """The held-out figures of a run, without how long they took."""
    timed = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    history = [entry for entry in read_log(folder)["history"] if "eval_runtime" in entry]
    return [{name: value for name, value in entry.items() if name not in timed} for entry in history]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was scored every second step."""
    work_dir = tmp_path_factory.mktemp("scored")
    write_data(work_dir)
    return run_tiny(work_dir, **SETTINGS)


def test_a_run_is_scored_per_source_and_keeps_its_best_checkpoint(finished: Path) -> None:
    found = scores(finished)
    assert [entry["step"] for entry in found] == [2, 4, 6, 8]
    figures = {"loss", "token_accuracy", "exact", "sign_accuracy", "malformed", "action_error"}
    assert {f"eval_robot/tiny/{name}" for name in figures} <= found[0].keys()
    assert {"eval_vision_language/scenes/exact", "eval_robot/loss"} <= found[0].keys()
    assert "padding" not in found[0]
    assert "eval_loss" not in found[0]
    losses = {entry["step"]: entry["eval_robot/loss"] for entry in found}
    best = min(losses, key=lambda step: losses[step])
    assert read_log(finished)["best"] == {"checkpoint": f"checkpoint-{best}", "held_out_loss": losses[best]}
    kept = {path.name for path in (finished / "checkpoints").glob("checkpoint-*")}
    assert kept == {f"checkpoint-{best}", "checkpoint-8"} | ({"checkpoint-6"} if best == 8 else set())
    last = finished / "checkpoints" / "checkpoint-8"
    assert read_config(last).norm_stats["tiny"]["held_out"] == [1]
    assert load_recipe(last / "recipe.yaml") == load_recipe(finished / "recipe.yaml")
    assert [entry["step"] for entry in logged_steps(finished)] == [2, 4, 6, 8]


def test_held_out_figures_are_those_of_the_saved_model(finished: Path) -> None:
    """Computed again, one row at a time, from the model on disk."""
    from gen_vla.training.checkpoints import load_processor
    from gen_vla.training.run import build_collator, build_preparer
    from gen_vla.training.trainer import score_answers

    recipe, work_dir = load_recipe(finished.parent / "tiny.yaml"), finished.parent
    opened = open_data(recipe, work_dir)
    model, processor = load_model(finished), load_processor(finished)
    collator = build_collator(recipe, model.config, processor, opened.names, training=False)
    prepare = build_preparer(recipe, processor, opened.norm_stats, collator, model.config)
    total, tokens = 0.0, 0
    for row in robot_rows(held_out_robot(opened), 5):
        batch = collator([prepare(row, "robot/tiny", 0)])
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "labels")}
        total -= score_answers(model, inputs)[0].sum().item()
        tokens += int((batch["labels"] != -100).sum())
    assert scores(finished)[-1]["eval_robot/tiny/loss"] == pytest.approx(total / tokens, rel=1e-4)


def test_being_scored_changes_nothing_in_training(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent / "robot", tmp_path / "robot")
    shutil.copytree(finished.parent / "questions", tmp_path / "questions")
    settings = {**SETTINGS, "training__eval_steps": 8, "training__save_steps": 8}
    folder = run_tiny(tmp_path, **settings, training__save_total_limit=1)
    assert weights_hash(load_model(folder)) == weights_hash(load_model(finished))
    assert len(scores(folder)) == 1
    assert scores(folder)[0] == scores(finished)[-1]


def test_a_resumed_run_has_the_weights_and_scores_of_one_that_was_not_stopped(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "tiny" / "checkpoints" / "checkpoint-8")
    left = {path.name for path in (tmp_path / "tiny" / "checkpoints").glob("checkpoint-*")}
    assert left
    folder = run_tiny(tmp_path, resume=True, **SETTINGS)
    assert weights_hash(load_model(folder)) == weights_hash(load_model(finished))
    assert scores(folder) == scores(finished)
    with pytest.raises(ValueError, match=r"data\.validation"):
        run_tiny(tmp_path, resume=True, **{**SETTINGS, "data__validation": {"episodes": {"tiny": [2]}}})


def test_a_flow_is_scored_too(tmp_path: Path) -> None:
    write_data(tmp_path)
    settings = {**tiny_flow_settings(), **SETTINGS, "data__validation": {"episodes": 0.3}, "training__steps": 2}
    (found,) = scores(run_tiny(tmp_path, **settings))
    assert {"eval_robot/tiny/loss", "eval_robot/tiny/action_error"} <= found.keys()


def test_questions_alone_are_scored_by_their_own_loss(tmp_path: Path) -> None:
    write_data(tmp_path)
    settings = {**SETTINGS, "data__robot": [], "model__frozen": None, "training__steps": 2}
    folder = run_tiny(tmp_path, **{**settings, "data__validation": {"questions": 0.3}})
    assert read_log(folder)["best"]["held_out_loss"] == scores(folder)[0]["eval_vision_language/loss"]
