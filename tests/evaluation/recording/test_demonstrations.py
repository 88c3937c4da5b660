"""Recorded tabletop demonstrations."""

import io
import json
from typing import Any

import needs_simulator  # noqa: F401  # skips this file without one
import numpy as np
import pytest
from datasets import load_from_disk
from PIL import Image

from gen_vla.commands.record import record_missing_data
from gen_vla.evaluation.recording import demonstrations as recording
from gen_vla.evaluation.recording.rows import DemonstrationJob
from gen_vla.evaluation.simulation.environment import TabletopEnv
from gen_vla.evaluation.simulation.layouts import (
    EVALUATION_SEEDS,
    MAX_STEPS,
    NEW_WORDS,
    TASKS,
    layout_digests,
    sample_layout,
)
from gen_vla.training.checkpoints import load_model
from gen_vla.training.converting.conversion import convert
from gen_vla.training.mixing.instruction_augmentation import held_out_paraphrases, paraphrases
from gen_vla.training.pretraining.encoders import pretrain_encoders
from gen_vla.training.pretraining.paligemma_start import write_paligemma
from gen_vla.training.publishing.packaging import package_model
from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.run import run_recipe


def job(task, seed=3, noise=False, paraphrase=False) -> DemonstrationJob:
    return DemonstrationJob(task, seed, 48, noise, paraphrase)


@pytest.mark.parametrize("task", TASKS)
def test_replaying_a_clean_demonstration_does_the_task(task):
    rows = recording.record_episode(job(task))
    assert rows is not None
    assert len(rows) <= MAX_STEPS[task]
    env = TabletopEnv(48)
    assert env.reset(task, 3) == rows[0]["instruction"]
    for row in rows:
        np.testing.assert_array_equal(row["state"], env.robot_state())
        assert env.step(row["action"]) == (row is rows[-1])
    env.reset(task, 3)
    np.testing.assert_array_equal(Image.open(io.BytesIO(rows[0]["image"]["bytes"])), env.render())


def test_training_wordings_are_recorded_and_held_out_ones_never():
    told = {
        rows[0]["instruction"]
        for s in range(12)
        if (rows := recording.record_episode(job("open_drawer", s, paraphrase=True)))
    }
    assert len(told) > 2
    assert told <= {"open the drawer", *paraphrases("open the drawer")}
    assert not told & set(held_out_paraphrases("open the drawer"))


def test_familiar_demonstrations_show_no_new_things(tmp_path):
    metadata = recording.record_demonstrations(
        tmp_path / "d", 2, workers=1, image_size=32, progress=False, tasks=["open_drawer"], familiar=True
    )
    rows: Any = load_from_disk(str(tmp_path / "d"))
    shown = [sample_layout(seed).words for seed in set(rows["seed"])]
    assert set().union(*shown) == set(metadata["objects"])
    assert not NEW_WORDS & set(metadata["objects"])
    assert metadata["candidates"]["open_drawer"] > 2


def test_noise_is_executed_and_the_clean_action_is_the_label():
    clean, noisy = (recording.record_episode(job("close_drawer", 4, noise=noise)) for noise in (False, True))
    assert clean is not None
    assert noisy is not None
    assert len(clean) != len(noisy) or clean[3]["image"] != noisy[3]["image"]
    assert all(np.abs(row["action"][:3]).max() <= 0.05 + 1e-6 for row in noisy)


def test_demonstrations_are_saved_with_the_layouts_they_show(tmp_path):
    metadata = recording.record_demonstrations(tmp_path / "d", 1, workers=1, image_size=48, progress=False)
    rows: Any = load_from_disk(str(tmp_path / "d"))
    assert set(rows.column_names) == {
        "image", "instruction", "action", "state", "task", "episode_index", "frame_index", "seed"
    }  # fmt: skip
    assert metadata["episodes"] == dict.fromkeys(TASKS, 1)
    assert set(rows["episode_index"]) == {0, 1, 2, 3}
    assert set(metadata["layouts"]) == layout_digests(set(rows["seed"]))
    assert not set(metadata["layouts"]) & layout_digests(EVALUATION_SEEDS[:200])
    assert json.loads((tmp_path / "d" / "recording.json").read_text())["layouts"] == metadata["layouts"]
    data = open_robot_source(tmp_path / "d", key="tabletop")
    assert data.action_names == ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    assert data.action_units == ["m", "m", "m", "rad", "rad", "rad", "0 closed, 1 open"]
    env = TabletopEnv(48)
    env.reset("open_drawer", 3)
    before = env.data.time
    env.step(np.zeros(7))
    assert data.hertz == pytest.approx(1 / (env.data.time - before))
    with pytest.raises(FileExistsError, match="got a finished data set"):
        recording.record_demonstrations(tmp_path / "d", 1, workers=1)


def test_the_recipes_record_what_they_train_on(tmp_path):
    """The mini recipes, cut to a few rows: recorded, trained, packaged, and policies start from them."""
    few = {"data.vision_language.0.record.count": 28, "training.steps": 1, "training.batch_size": 4}
    sets = {f"data.vision_language.{i}.record.count": 28 for i in (1, 2)}
    parts_before = [f"mini-vlm-{part}_" for part in ("relations", "attributes", "scenes")]
    parts = {
        "_mini_vlm_scenes": {"pretraining.steps": 1, "pretraining.batch_size": 4},
        "_mini_vlm_attributes": {},
        "_mini_vlm_relations": sets,
        "mini_vlm": {**sets, "data.vision_language.3.record.count": 28},
    }
    base = tmp_path
    for name, settings in parts.items():
        start = load_recipe(name, few | settings)
        record_missing_data(start, tmp_path)
        if start.pretraining:
            pretrain_encoders(start, tmp_path)
        base = run_recipe(start, tmp_path, progress=False)
    logs = {path.name for path in package_model(base, [], tmp_path / "packaged").glob("*training_log.json")}
    assert logs == {f"{part}training_log.json" for part in ("", *parts_before, "dino_", "siglip_")}
    write_paligemma(tmp_path / "questions", tmp_path / "paligemma")
    convert(tmp_path / "paligemma", tmp_path / "paligemma-start", dual=False)
    flow_base = run_recipe(load_recipe("_mini_paligemma", few | parts["mini_vlm"]), tmp_path, progress=False)
    packaged = package_model(flow_base, [], tmp_path / "packaged-flow")
    assert [path.name for path in packaged.glob("*training_log.json")] == ["training_log.json"]
    flow = convert(packaged, tmp_path / "mini-pi0-start", family="pi0_flow")
    assert load_model(flow).config.model_type == "pi0_flow"
    recipe = load_recipe("mini_openvla_plus", few | {"data.robot.0.record.episodes_per_task": 1})
    record_missing_data(recipe, tmp_path)
    folder = run_recipe(recipe, tmp_path, progress=False)
    recorded: Any = load_from_disk(str(tmp_path / "demonstrations"))
    assert set(recorded["task"]) == set(TASKS)
    assert list(load_model(folder).config.norm_stats) == ["tabletop"]
    settings = json.loads((tmp_path / "demonstrations" / "recording_settings.json").read_text(encoding="utf-8"))
    episodes = {"episodes_per_task": 1, "tasks": None, "seed": 0, "paraphrase": False, "familiar": False}
    assert settings == {**episodes, "image_size": 96}
    looks = json.loads((tmp_path / "questions" / "recording.json").read_text(encoding="utf-8"))["looks"]
    assert looks == "broad"


def test_a_task_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got the tasks open_drawr; did you mean 'open_drawer'\?"):
        recording.record_demonstrations(tmp_path / "rows", 1, tasks=["open_drawr"])  # type: ignore[list-item]


def test_held_out_demonstrations_in_other_looks(tmp_path):
    """The same episodes to the bit, but for what they look like."""
    chosen: Any = {"seed": EVALUATION_SEEDS[0], "workers": 1, "image_size": 48, "tasks": ("close_drawer",)}
    metadata = {
        looks: recording.record_demonstrations(tmp_path / looks, 1, looks=looks, progress=False, **chosen)
        for looks in ("home", "unseen")
    }
    assert {found["split"] for found in metadata.values()} == {"evaluation"}
    home, unseen = (load_from_disk(str(tmp_path / looks)) for looks in ("home", "unseen"))
    assert home["action"] == unseen["action"]
    assert all(np.any(np.asarray(one) != np.asarray(other)) for one, other in zip(home["image"], unseen["image"]))
