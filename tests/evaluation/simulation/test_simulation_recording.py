"""Recorded tabletop demonstrations and questions."""

import io
import json
from typing import Any

import needs_simulator  # noqa: F401  # skips this file without one
import numpy as np
import pytest
from datasets import load_from_disk
from PIL import Image

from gen_vla.commands.record import record_missing_data
from gen_vla.evaluation.simulation import recording
from gen_vla.evaluation.simulation.environment import TabletopEnv
from gen_vla.evaluation.simulation.layouts import (
    EVALUATION_SEEDS,
    MAX_STEPS,
    TASKS,
    Layout,
    TableObject,
    layout_digests,
    sample_layout,
)
from gen_vla.evaluation.simulation.questions import KINDS
from gen_vla.evaluation.simulation.simulated_rows import DemonstrationJob
from gen_vla.training.checkpoints import load_model
from gen_vla.training.mixing.instruction_augmentation import held_out_paraphrases, paraphrases
from gen_vla.training.recipes.data_schema import DemonstrationRecording
from gen_vla.training.recipes.loading import load_recipe
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
    assert [env.step(row["action"]) for row in rows] == [False] * (len(rows) - 1) + [True]
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
        "image", "instruction", "action", "task", "episode_index", "frame_index", "seed"
    }  # fmt: skip
    assert metadata["episodes"] == dict.fromkeys(TASKS, 1)
    assert set(rows["episode_index"]) == {0, 1, 2, 3}
    assert set(metadata["layouts"]) == layout_digests(set(rows["seed"]))
    assert not set(metadata["layouts"]) & layout_digests(EVALUATION_SEEDS[:200])
    assert json.loads((tmp_path / "d" / "recording.json").read_text())["layouts"] == metadata["layouts"]
    with pytest.raises(FileExistsError, match="got a finished data set"):
        recording.record_demonstrations(tmp_path / "d", 1, workers=1)


def test_questions_are_balanced_and_answered_by_their_scenes(tmp_path):
    count = 10 * len(KINDS)
    metadata = recording.record_questions(tmp_path / "q", count, workers=1, image_size=48, progress=False)
    rows: Any = list(load_from_disk(str(tmp_path / "q")))
    assert set(rows[0]) == {"image", "question", "answer", "kind", "seed"}
    assert {row["kind"] for row in rows} == set(KINDS)
    assert all(row["answer"] in KINDS[row["kind"]].answers for row in rows)
    assert metadata["majority_baseline"]["presence"] == metadata["majority_baseline"]["object_order"] == 0.5
    assert metadata["majority_baseline"]["colour"] == 0.2


def test_answers_say_what_the_picture_shows():
    """Worked out by hand from a scene and from the camera that stands at the robot's right, looking left and ahead."""
    rng = np.random.default_rng(0)
    bottle, mug = TableObject("green", "bottle", -0.2, 0.56, 0.0), TableObject("purple", "mug", 0.0, 0.66, 0.0)
    layout = Layout((0.22, 0.88), 0.5, (bottle, mug), 0)
    facts = recording.scene_facts(layout, rng)
    answers = {name: kind.answer(facts) for name, kind in KINDS.items()}
    bottle_first = facts.first == 0
    assert answers["shape"] == ("bottle" if bottle_first else "mug")
    assert answers["object_order"] == ("left" if bottle_first else "right")
    assert answers["drawer_side"] == "left"
    assert answers["nearest"] == "purple"
    assert answers["drawer_state"] in ("open", None)


def test_facts_agree_with_the_simulation():
    env = TabletopEnv(112)
    for seed in range(4):
        layout = sample_layout(seed)
        env.arrange(layout)
        facts = recording.scene_facts(layout, np.random.default_rng(0))
        masks = env.segmentation()
        for place, name in ((facts.handle, "handle"), (facts.places[0], "object0"), (facts.places[1], "object1")):
            rows, columns = np.nonzero(masks[name])
            if len(rows) > 10:  # otherwise the arm hides it
                assert (columns.mean() / 112, rows.mean() / 112) == pytest.approx(place, abs=0.05), (seed, name)


def test_the_recipes_record_what_they_train_on(tmp_path):
    """Both mini recipes of the tabletop, cut to a few rows: recorded, trained, and the policy acts in the suite."""
    few = {"data.vision_language.0.record.count": 28, "training.steps": 1, "training.batch_size": 4}
    start = load_recipe("mini_tabletop_vlm", few)
    record_missing_data(start, tmp_path)
    run_recipe(start, tmp_path, progress=False)
    recipe = load_recipe("mini_openvla_plus_tabletop", few | {"data.robot.0.record.episodes_per_task": 1})
    record_missing_data(recipe, tmp_path)
    folder = run_recipe(recipe, tmp_path, progress=False)
    recorded: Any = load_from_disk(str(tmp_path / "tabletop"))
    assert set(recorded["task"]) == set(TASKS)
    assert list(load_model(folder).config.norm_stats) == ["tabletop"]
    settings = json.loads((tmp_path / "tabletop" / "recording_settings.json").read_text(encoding="utf-8"))
    assert settings == {"episodes_per_task": 1, "seed": 0, "paraphrase": True, "image_size": 96}


def test_the_tabletop_has_one_start_and_one_look():
    with pytest.raises(ValueError, match="start='stock' and variation=None for the tabletop, expected none"):
        DemonstrationRecording(episodes_per_task=1, simulator="tabletop", start="stock")
    drawers = DemonstrationRecording(episodes_per_task=2).arguments()
    assert (drawers["start"], drawers["variation"]) == ("half-open", "modest")
