"""A recipe from its data to its saved model: what is written, what a killed run comes back to, what is refused."""

import json
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import load_from_disk
from tiny_runs import (
    Witness,
    logged_steps,
    noise,
    read_log,
    tiny_flow_settings,
    tiny_recipe,
    watch_places,
    weights_hash,
    write_questions,
)
from tiny_runs import run_tiny as train

from gen_vla.processors import compute_statistics
from gen_vla.processors.action_statistics import action_bounds
from gen_vla.training.checkpoints import load_model, load_processor
from gen_vla.training.model_building import action_weights, build_model
from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.run import run_recipe, training_arguments
from gen_vla.training.run_folder import last_checkpoint


SUPPORT = Path(__file__).resolve().parents[2] / "support"


def hash_of(folder: Path) -> str:
    return weights_hash(load_model(folder))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a run of 8 steps; copy its parent before changing anything in it."""
    return train(tmp_path_factory.mktemp("finished"))


# ---- what is written
@pytest.mark.parametrize("family", [{}, tiny_flow_settings()], ids=["strings", "flow"])
def test_what_actions_are_scaled_by_is_saved_and_acted_with(tmp_path: Path, family: dict[str, Any]) -> None:
    modes = ["mean_std", "min_max", "quantiles"]
    folder = train(tmp_path, training__steps=1, actions__normalization=modes, **family)
    model, processor = load_model(folder), load_processor(folder)
    statistics = model.config.norm_stats["tiny"]["action"]
    assert statistics["normalization"] == modes
    assert json.loads((folder / "dataset_statistics.json").read_text())["tiny"]["action"]["normalization"] == modes
    predicted = model.predict_actions(**processor.action_inputs(noise(1), "open the drawer"))
    low, high, _ = action_bounds(statistics, 3)
    units = low + 0.5 * (predicted.normalized[0].astype(float) + 1) * (high - low)
    assert predicted.actions[0][..., :2] == pytest.approx(units[..., :2], abs=1e-6)
    assert low[0] == pytest.approx(statistics["mean"][0] - 5 * statistics["std"][0])
    assert (low[1], high[1]) == (statistics["min"][1], statistics["max"][1])


def test_a_run_writes_all_that_is_needed_to_use_and_to_know_the_model(finished: Path) -> None:
    work_dir = finished.parent
    written = {path.name for path in finished.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "checkpoints"} <= written
    assert {"recipe.yaml", "dataset_statistics.json", "training_log.json"} <= written
    recipe = load_recipe(finished / "recipe.yaml")
    assert recipe == load_recipe(work_dir / "tiny.yaml")
    actions = load_from_disk(str(work_dir / "robot")).with_format("numpy")["action"][:]
    statistics = {"tiny": compute_statistics(actions, num_trajectories=2)}
    assert json.loads((finished / "dataset_statistics.json").read_text()) == statistics
    data = read_log(finished)["data"]
    assert (data["robot"], data["vision_language"]) == ([6], [4])
    assert [entry["step"] for entry in logged_steps(finished)] == [2, 4, 6, 8]
    assert all(0.0 < entry["padding"] < 0.5 for entry in logged_steps(finished))
    assert sorted(path.name for path in (finished / "checkpoints").glob("*-*")) == ["checkpoint-4", "checkpoint-8"]


def test_a_look_at_the_data_before_the_first_step_changes_nothing(finished, tmp_path, capsys):
    recipe = tiny_recipe(tmp_path)
    folder = run_recipe(recipe, tmp_path, progress=False, show=True)
    printed = capsys.readouterr().out
    assert "robot/tiny" in printed
    assert "to open the drawer?\\nOut:\\n«" in printed
    assert (folder / "first_rows.png").is_file()
    assert hash_of(folder) == hash_of(finished)
    assert read_log(folder)["data"] == read_log(finished)["data"]


def test_a_resumed_run_names_those_before_it_and_a_new_one_does_not(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    folder = train(tmp_path, resume=True, training__logging_steps=4)
    assert read_log(folder)["provenance"]["other_runs"] == [read_log(finished)["provenance"]]
    for checkpoint in (folder / "checkpoints").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    train(tmp_path, training__steps=2)
    assert "other_runs" not in read_log(folder)["provenance"]


def test_the_last_checkpoint_holds_the_saved_weights(finished: Path) -> None:
    last = last_checkpoint(finished / "checkpoints")
    assert last is not None
    assert last.name == "checkpoint-8"
    assert hash_of(last) == hash_of(finished)
    assert load_processor(last).action_config == load_processor(finished).action_config


def test_the_seed_decides_the_weights(finished: Path, tmp_path: Path) -> None:
    again = train(tmp_path / "again", resume=True)  # without checkpoints it starts
    other = train(tmp_path / "other", training__seed=1)
    assert hash_of(again) == hash_of(finished)
    assert hash_of(other) != hash_of(finished)


def test_half_precision_and_checkpointing_leave_the_frozen_tower_alone(tmp_path: Path) -> None:
    settings = {"training__bf16": True, "training__gradient_checkpointing": True, "training__steps": 2}
    recipe = tiny_recipe(tmp_path, **settings)
    before = build_model(recipe, tmp_path, open_data(recipe, tmp_path))[0].state_dict()
    after = load_model(train(tmp_path, **settings)).state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if ".siglip." in name} <= same
    assert not [name for name in same if "projector" in name or "layers" in name.partition("language_model")[2]]


def test_a_vision_language_model_alone(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, data__robot=[], model__frozen=None, training__steps=2, training__batch_size=3)
    folder = run_recipe(recipe, tmp_path, progress=False)
    model = load_model(folder)
    assert model.config.norm_stats == {}
    assert action_weights(recipe, model.config) is None
    first = logged_steps(folder)[0]
    assert "vision_language/loss" in first
    assert "robot/loss" not in first


# ---- a killed run
def test_a_killed_run_resumes_to_the_same_weights(finished: Path, tmp_path: Path) -> None:
    tiny_recipe(tmp_path)
    checkpoints = tmp_path / "tiny" / "checkpoints"
    with (tmp_path / "output.txt").open("wb") as output:
        command = [sys.executable, str(SUPPORT / "tiny_runs.py"), "6", str(tmp_path)]  # it pauses before step 7
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + 180
            while last_checkpoint(checkpoints) is None and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.1)
        finally:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
    assert code == -signal.SIGKILL, (tmp_path / "output.txt").read_text()[-3000:]
    assert last_checkpoint(checkpoints) == checkpoints / "checkpoint-4"
    assert not (tmp_path / "tiny" / "model.safetensors").exists()
    half_written = checkpoints / "checkpoint-6"
    shutil.copytree(checkpoints / "checkpoint-4", half_written)
    (half_written / "trainer_state.json").unlink()
    witness = Witness()
    with pytest.MonkeyPatch.context() as patch:
        folder = train(tmp_path, resume=True, callbacks=[witness.watch(patch)])
    assert len(witness.batches) == 4, "it began anew instead of continuing from step 4"
    assert hash_of(folder) == hash_of(finished)
    assert [entry["step"] for entry in logged_steps(folder)] == [2, 4, 6, 8]


def test_rows_grouped_by_length_spare_padding_and_stay_what_they_are_when_resumed(tmp_path: Path) -> None:
    write_questions(tmp_path / "questions", 16, answer=["yes", "no " * 30] * 8)
    settings = {"data__robot": [], "model__frozen": None, "data__group_by_length": True}
    plain = train(tmp_path, **{**settings, "data__group_by_length": False}, name="plain")
    grouped = train(tmp_path, **settings)
    padding = [logged_steps(folder)[-1]["padding"] for folder in (plain, grouped)]
    assert padding[1] < 0.02 < 0.1 < padding[0]
    shutil.rmtree(grouped / "checkpoints" / "checkpoint-8")
    whole, shape = hash_of(grouped), {"training__batch_size": 2, "training__gradient_accumulation_steps": 2}
    with pytest.MonkeyPatch.context() as patch:
        places = watch_places(patch)
        assert hash_of(train(tmp_path, resume=True, **settings)) == whole
        rows, places[:] = list(places), []
        shutil.rmtree(grouped / "checkpoints" / "checkpoint-8")
        train(tmp_path, resume=True, **settings, **shape)
    assert len(rows) == 16
    assert rows == places, "the rows that are left, at their places"


def test_resuming_a_finished_run_changes_nothing(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / "copy")
    witness = Witness()
    with pytest.MonkeyPatch.context() as patch:
        folder = train(tmp_path / "copy", resume=True, callbacks=[witness.watch(patch)])
    assert witness.batches == []
    assert hash_of(folder) == hash_of(finished)


def test_a_new_run_does_not_mix_with_an_old_ones_checkpoints(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / "copy")
    with pytest.raises(FileExistsError, match=r"got .*checkpoint-8 of an earlier run, expected none; resume it"):
        train(tmp_path / "copy")
    changes = {"training__learning_rate": 1e-3, "model__frozen": None}
    with pytest.raises(ValueError, match=r"model.frozen was 'siglip' and is None; training.learning_rate was 0.01"):
        train(tmp_path / "copy", resume=True, **changes)
    assert hash_of(tmp_path / "copy" / "tiny") == hash_of(finished)
    train(tmp_path / "copy", resume=True, training__logging_steps=1)  # how often it reports is no part of a run
    record = tmp_path / "copy" / "tiny" / "checkpoints" / "recipe.yaml"
    settings = yaml.safe_load(record.read_text())
    del settings["data"]["robot"][0]["every"]  # as a run wrote it before there was such a setting
    record.write_text(yaml.safe_dump(settings))
    train(tmp_path / "copy", resume=True)
    record.write_text(yaml.safe_dump({**settings, "gone": 1}))  # or when there was one that is gone
    with pytest.raises(ValueError, match="unknown key 'gone'"):
        train(tmp_path / "copy", resume=True)


@pytest.mark.parametrize("wanted", [False, True])
def test_checkpointing_of_activations_is_asked_for_by_its_present_name(wanted: bool, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, training__gradient_checkpointing=wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        arguments = training_arguments(recipe, tmp_path, progress=False)
    assert arguments.gradient_checkpointing is wanted


def test_the_last_checkpoint_is_the_newest_complete_one(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "nowhere") is None
    for name in ("checkpoint-2", "checkpoint-10", "checkpoint-best", "other-90", "checkpoint-30", "checkpoint-40"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text("" if name == "checkpoint-40" else "{}")
    (tmp_path / "checkpoint-30" / "trainer_state.json").unlink()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


# ---- data and texts


# ---- augmentation and chunks
def test_image_augmentation_changes_training_and_saves_the_matching_crop(tmp_path: Path) -> None:
    plain, changed = tmp_path / "plain", tmp_path / "changed"
    hashes = [hash_of(train(plain, training__steps=2))]
    augmentation = {"crop_area": 0.8, "contrast": [0.9, 1.1]}
    for work_dir in (changed, tmp_path / "again"):
        hashes.append(hash_of(train(work_dir, training__steps=2, data__image_augmentation=augmentation)))
    assert hashes[0] != hashes[1] == hashes[2], "it changes what is learnt, by the seed alone"
    assert load_processor(changed / "tiny").image_processor.center_crop_area == 0.8
    assert load_processor(plain / "tiny").image_processor.center_crop_area is None
    assert load_recipe(changed / "tiny" / "recipe.yaml") == load_recipe(changed / "tiny.yaml")


def test_instruction_augmentation_and_chunks_train(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"data__instruction_augmentation": {"probability": 1.0}, "actions__horizon": 2}
    folder = train(tmp_path, training__steps=2, model__text__max_position_embeddings=256, **changes)
    model, processor = load_model(folder), load_processor(folder)
    assert model.predict_action(**processor.action_inputs(noise(0), "open the drawer")).shape == (2, 3)
    assert "robot/tiny/malformed" in logged_steps(folder)[0]


def test_vision_language_rows_that_do_not_fit_are_replaced_and_an_action_that_does_not_stops(tmp_path: Path) -> None:
    answers = ["0123456789" * 15, "yes", "two", "no"]
    write_questions(tmp_path / "questions", answer=answers)
    folder = train(tmp_path, training__steps=2, data__max_bad_share=0.5)
    problems = read_log(folder)["data"]["undecodable"]["vision_language/scenes"]
    assert problems["by_reason"] == {"too long": 1}
    with pytest.raises(ValueError, match=r"got a row of \d+ tokens \(source robot/tiny, .*expected at most 128"):
        train(tmp_path / "long", actions__horizon=12)
