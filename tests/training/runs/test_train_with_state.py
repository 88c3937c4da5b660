"""Runs that take the robot's state, and actions that are learned relative to it: trained, saved, and acting alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import noise, read_log, run_tiny, tiny_flow_settings, tiny_recipe, tiny_vlm_model, write_robot_data

from gen_vla.processors import unnormalize_actions
from gen_vla.processors.relative_actions import to_absolute
from gen_vla.training.checkpoints import load_model, load_processor
from gen_vla.training.model_building import build_model
from gen_vla.training.recipes.data_schema import RecipeError
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.run import build_collator, build_preparer


FAMILIES: dict[str, dict[str, Any]] = {
    "openvla_plus": {"actions__horizon": 3},
    "vla_plus": {"model": tiny_vlm_model(), "actions__horizon": 3},
    "pi0_flow": tiny_flow_settings(),
}
RELATIVE = [{"dims": [0, 1], "state": [2, 1]}]
ROWS = 8


def settings(family: str, shown: bool = True, relative: Any = RELATIVE) -> dict[str, Any]:
    robot = [{"path": "robot", "key": "tiny", "relative": relative}]
    return {**FAMILIES[family], "data__robot": robot, "data__state": shown, "training__steps": 2}


def write(folder: Path, **columns: Any) -> np.ndarray:
    """Two episodes with states float32 [8, 4]."""
    states = np.random.default_rng(5).uniform(-1, 1, (ROWS, 4)).astype(np.float32)
    write_robot_data(folder / "robot", ROWS, **{"state": states.tolist(), **columns})
    return states


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_model_acts_on_what_it_was_shown(family: str, shown: bool, tmp_path: Path) -> None:
    """Prompts token for token, numbers bit for bit; actions are turned back with the state."""
    states = write(tmp_path)
    folder = run_tiny(tmp_path, **settings(family, shown))
    model, processor = load_model(folder), load_processor(folder)
    assert (
        model.config.action_config["state"] == processor.action_config["state"] == ("input" if shown else "reference")
    )
    assert model.config.prompt_template == processor.prompt_template
    recipe = tiny_recipe(tmp_path, **settings(family, shown))
    opened = open_data(recipe, tmp_path)
    collator = build_collator(recipe, model.config, processor, opened.names)
    prepare = build_preparer(recipe, processor, opened.norm_stats, collator, model.config)
    [row] = opened.first_rows("robot/tiny", 1)
    np.testing.assert_array_equal(row["state"], states[0])
    batch = collator([prepare(row, "robot/tiny", 0)])
    asked = {"state": states[0], "unnorm_key": "tiny"}
    inputs = processor.action_inputs(noise(0), row["instruction"], **asked)
    trained = batch["input_ids"][0][batch["attention_mask"][0].bool()]
    prompt = trained if family == "pi0_flow" else trained[: int((batch["labels"][0] != -100).nonzero()[0])]
    assert prompt.tolist() == inputs["input_ids"][0].tolist()
    text = processor.tokenizer.decode(prompt).replace(" ", "")
    assert ("State:" in text) == (shown and family != "pi0_flow")
    if family == "pi0_flow":
        assert ("state" in batch) == shown
        if shown:
            seen = model._shown_states(states[:1].astype(float), "tiny")
            np.testing.assert_array_equal(seen[:, :4], batch["state"])
    noise_of = {"noise": model.draw_noise(1)} if family == "pi0_flow" else {}
    prediction = model.predict_actions(**inputs, **noise_of)
    statistics = {**model.config.norm_stats["tiny"]["action"], "relative": None}
    expected = to_absolute(unnormalize_actions(prediction.normalized[0], statistics), states[0], RELATIVE)
    np.testing.assert_allclose(prediction.actions[0], expected, atol=1e-6)
    del inputs["state"]
    with pytest.raises(ValueError, match="got no state, expected the robot's"):
        model.predict_actions(**inputs, **noise_of)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_changes_what_the_model_does(family: str, tmp_path: Path) -> None:
    write(tmp_path)
    recipe = tiny_recipe(tmp_path, **settings(family, relative=[]), model__initializer_range=0.3)
    model, processor = build_model(recipe, tmp_path, open_data(recipe, tmp_path))
    noise_of = {"noise": model.draw_noise(1)} if family == "pi0_flow" else {}
    seen = [
        model.eval().predict_actions(**processor.action_inputs(noise(0), "go", state=state), **noise_of).normalized
        for state in ([-1.0] * 4, [1.0] * 4)
    ]
    assert np.abs(seen[0] - seen[1]).max() > 1e-3


def test_statistics_are_of_all_steps_of_chunks_relative_to_their_first_state(tmp_path: Path) -> None:
    states = write(tmp_path)
    recipe = tiny_recipe(tmp_path, **settings("openvla_plus"))
    opened = open_data(recipe, tmp_path)
    actions = np.stack([row["action"][0] for row in opened.first_rows("robot/tiny", ROWS)])
    ends = [4] * 4 + [8] * 4
    found = [
        actions[step][:2] - states[start][[2, 1]]
        for start in range(ROWS)
        for step in range(start, min(start + 3, ends[start]))
    ]
    entry = opened.norm_stats["tiny"]
    np.testing.assert_allclose(entry["action"]["q99"][:2], np.quantile(found, 0.99, axis=0))
    assert entry["action"]["relative"] == RELATIVE
    assert (entry["num_transitions"], opened.clipping["tiny"]["values"]) == (ROWS, len(found))
    np.testing.assert_allclose(entry["proprio"]["q01"], np.quantile(states, 0.01, axis=0))


def test_a_row_with_a_broken_state_is_replaced_and_named(tmp_path: Path) -> None:
    states = np.ones((ROWS, 4), np.float32) * np.arange(ROWS)[:, None]
    states[2, 3] = np.nan
    write(tmp_path, state=states.tolist())
    folder = run_tiny(tmp_path, **settings("openvla_plus"), data__max_bad_share=0.5)
    assert read_log(folder)["data"]["undecodable"]["robot/tiny"]["by_reason"] == {"state that is not finite": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relative": [{"dims": [0, 1], "state": [0, 9]}]}, r"with the values \[9\] of the state, expected 0 to 3"),
        ({"relative": [{"dims": [0, 2]}]}, r"got relative actions with \[2\], expected dimensions that"),
        ({"relative": [{"dims": [0, 3]}]}, "expected dims of an action below 3"),
        ({"relative": [{"dims": [0]}], "displacements": [0]}, r"got the dimensions \[0\] of .* as displacements"),
        ({"state": ["joints"]}, "expected joints"),
    ],
)
def test_what_the_data_does_not_have_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises((RecipeError, ValueError), match=message):
        open_data(tiny_recipe(tmp_path, data__robot=[{"path": "robot", "key": "tiny", **changes}]), tmp_path)


def test_data_without_a_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected the robot's state among them \(state\), since the recipe takes"):
        open_data(tiny_recipe(tmp_path, data__state=True), tmp_path)
