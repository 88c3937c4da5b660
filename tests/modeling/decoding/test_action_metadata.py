"""What a data set and a recipe say of actions besides figures stays with the model: names, rate, displacements."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_stand_in import HubStandIn
from rlds_data_sets import write_rlds
from robot_data_sets import make_episodes, write_lerobot
from tiny_models import tiny_statistics
from tiny_runs import noise, tiny_recipe

from gen_vla.commands.main import main
from gen_vla.processors import normalize_actions, unnormalize_actions
from gen_vla.training.publishing import assembling
from gen_vla.training.publishing.card import action_words
from gen_vla.training.recipes.loading import Recipe
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.run import run_recipe


JOINTS = ["waist", "shoulder", "elbow", "roll", "angle", "rotate", "gripper"]


def named_arm(folder: Path) -> Path:
    """A LeRobot data set of 5 Hz whose values have names."""
    write_lerobot(folder, make_episodes(2, 6, size=16))
    info = json.loads((folder / "meta" / "info.json").read_text())
    info["features"]["action"]["names"] = {"motors": JOINTS}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    return folder


def arm_recipe(work_dir: Path, **entry: Any) -> Recipe:
    source = {"path": "arm", "key": "arm", **entry}
    actions = {"action_dim": 7, "decimals": 2, "binary_dims": [6]}
    steps = {"training__steps": 1, "training__save_steps": 1}
    tokens = {"tokenizer": {"vocab_size": 400, "texts_from_rows": 5}}
    return tiny_recipe(work_dir, data__robot=[source], data__co_training=[], actions=actions, **steps, **tokens)


def metadata(work_dir: Path, **entry: Any) -> dict[str, Any]:
    statistics = open_data(arm_recipe(work_dir, **entry), work_dir).norm_stats["arm"]["action"]
    return {name: statistics.get(name) for name in ("names", "fps", "displacements")}


def test_what_is_known_is_kept_beside_the_statistics(tmp_path: Path) -> None:
    named_arm(tmp_path / "arm")
    assert metadata(tmp_path) == {"names": JOINTS, "fps": 5.0, "displacements": None}
    assert metadata(tmp_path, displacements=[]) == {"names": JOINTS, "fps": 5.0, "displacements": []}
    thinned = metadata(tmp_path, every=2, displacements=[0, 1])
    assert thinned == {"names": JOINTS, "fps": 2.5, "displacements": [0, 1]}


def test_transforms_tell_what_they_make_and_formats_without_a_rate_nothing(tmp_path: Path) -> None:
    write_rlds(tmp_path, make_episodes(2, 6, size=16))
    bridge = metadata(tmp_path, path="bridge_orig/1.0.0", transform="bridge")
    assert bridge == {"names": None, "fps": None, "displacements": [0, 1, 2, 3, 4, 5]}
    recording = tiny_recipe(tmp_path)
    action = open_data(recording, tmp_path).norm_stats["tiny"]["action"]
    assert not {"names", "fps", "displacements"} & action.keys()
    described = {"action_names": JOINTS, "action_units": ["rad"] * 7, "fps": 16.0}
    (tmp_path / "robot" / "recording.json").write_text(json.dumps(described))
    action = open_data(recording, tmp_path).norm_stats["tiny"]["action"]
    assert (action["names"], action["units"], action["fps"]) == (JOINTS, ["rad"] * 7, 16.0)
    assert action_words(action).startswith("`waist` (rad), `shoulder` (rad)")


def test_a_trained_model_tells_it_where_it_acts_and_on_its_card(
    tmp_path: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(assembling, "verify", lambda *_: None)  # takes seconds, and is no part of this
    named_arm(tmp_path / "arm")
    folder = run_recipe(arm_recipe(tmp_path, every=2, displacements=[]), tmp_path, progress=False)
    noise(1).save(tmp_path / "camera.png")
    capsys.readouterr()
    assert main(["predict", str(folder), str(tmp_path / "camera.png"), "put it down"]) == 0
    answer = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert np.shape(answer["action"]) == (1, len(answer["names"]))
    assert (answer["names"], answer["fps"], answer["displacements"]) == (JOINTS, 2.5, [])
    saved = json.loads((folder / "dataset_statistics.json").read_text())["arm"]
    assert saved["action"]["names"] == JOINTS
    assert main(["publish", str(folder), "gen-vla/arm", "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    names = ", ".join(f"`{joint}`" for joint in JOINTS)
    assert f"| an action of `arm` | {names}; all positions; 2.5 steps a second |" in card


def test_openvlas_code_reads_its_keys_as_before() -> None:
    plain = tiny_statistics(3)["action"]
    more = {**plain, "names": ["x", "y", "gripper"], "fps": 10.0, "displacements": [0, 1]}
    actions = [[0.5, -1.0, 1.0], [0.1, 0.2, 0.0]]
    np.testing.assert_array_equal(normalize_actions(actions, more), normalize_actions(actions, plain))
    # what OpenVLA's `predict_action` takes from the entry
    low, high, mask = (np.array(more[name]) for name in ("q01", "q99", "mask"))
    normalized = np.array([0.25, -0.5, 1.0])
    openvla = np.where(mask, 0.5 * (normalized + 1) * (high - low) + low, normalized)
    np.testing.assert_allclose(unnormalize_actions(normalized, more), openvla, rtol=1e-6)
