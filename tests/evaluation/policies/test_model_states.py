"""Models that take the robot's state in the suites: LIBERO, recordings and the tabletop have one."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from robot_data_sets import make_episodes, write_lerobot
from tiny_models import take_state, tiny_model, tiny_processor

from gen_vla.commands.main import main
from gen_vla.evaluation.benchmarks.latency import measure_latency
from gen_vla.evaluation.libero.environment import LiberoTrial, Observation
from gen_vla.evaluation.libero.policy import LiberoModel
from gen_vla.evaluation.open_loop.suite import OpenLoopSettings, evaluate_open_loop
from gen_vla.evaluation.policies.rollout import Moment, VLAPolicy
from gen_vla.evaluation.simpler.policy import ModelPrediction
from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.processors import ActionStringProcessor
from gen_vla.training.converting.to_openvla import convert_to_openvla


@pytest.fixture
def taking(llama_like):
    """A model of seven dimensions, chunks of two, relative to the first of eight values."""
    strings = ActionStringProcessor(7, 2, decimals=2, binary_dims=[6])
    pair = tiny_model(llama_like, strings), tiny_processor(llama_like, strings)
    return take_state(pair, 8, [{"dims": [0, 1], "state": [0, 1]}])


def test_libero_gives_its_eight_values(taking):
    model, processor = taking
    for measure, value in (("min", 0.0), ("q01", 0.0), ("max", 1.0), ("q99", 1.0)):
        model.config.norm_stats["tiny"]["action"][measure][6] = value
    picture, state = np.zeros((8, 8, 3), np.uint8), np.linspace(-0.9, 0.9, 8)
    act = LiberoModel(model, processor).begin(LiberoTrial("spatial", "none", 0, 0), "go", None)
    sent = act(Observation({"agentview": picture}, state))
    inputs = processor.action_inputs(Image.fromarray(picture), "go", state=state)
    np.testing.assert_allclose(sent[:6], model.predict_actions(**inputs).actions[0, 0, :6], atol=1e-6)


def test_recordings_give_theirs_and_relative_actions_are_compared(taking, tmp_path):
    """Steps whose state is not finite are skipped; a policy that is right has no error."""
    model, processor = taking
    episodes = make_episodes(2, 6, size=16)
    for episode in episodes:
        episode.actions[:, :2] = 5 + episode.states[:, :2]
    episodes[1].states[2, 0] = np.nan
    width = take_state(taking, 7, [{"dims": [0, 1], "state": [0, 1]}])[0].config.norm_stats["tiny"]["action"]
    for measure, value in (("mean", 5.0), ("min", 4.0), ("max", 6.0), ("q01", 4.0), ("q99", 6.0)):
        width[measure] = [value, value, *width[measure][2:]]
    data = str(write_lerobot(tmp_path / "data", episodes, "v3.0"))
    results, found, _ = evaluate_open_loop(model, processor, "tiny", data, OpenLoopSettings(every=1))
    assert results["skipped"]["by_reason"] == {"step without a finite state": 1}
    assert (results["n"], results["outside"] < 1) == (12, True)
    np.testing.assert_allclose(found.recorded[:, 0, :2], 5.0, atol=1e-5)
    assert np.abs(found.predicted[..., :2] - 5.0).max() <= 1.0 + 1e-5
    bare: list[Any] = [
        SimpleNamespace(**{**vars(episode), "columns": {"action": episode.actions}}) for episode in episodes
    ]
    for episode in bare:
        episode.stored = lambda episode=episode: episode.columns
    folder = str(write_lerobot(tmp_path / "bare", bare, "v3.0"))
    with pytest.raises(ValueError, match="expected the robot's state among them"):
        evaluate_open_loop(model, processor, "tiny", folder, OpenLoopSettings(every=1))


def test_the_tabletop_gives_its_four_values(taking):
    model, processor = take_state(taking, 4)
    pictures = [np.full((8, 8, 3), shade, np.uint8) for shade in (0, 200)]
    states = np.array([[-0.2, 0.5, 0.3, 1.0], [0.1, 0.7, 0.2, 0.0]])
    moments = [Moment("pick_object", 1, 0, state, *[np.zeros(7)] * 3) for state in states]
    acted: Any = VLAPolicy(model, processor, "tiny")(pictures, ["go", "go"], moments)
    for action, picture, state in zip(acted, pictures, states, strict=True):
        inputs = processor.action_inputs(Image.fromarray(picture), "go", state=state)
        np.testing.assert_allclose(action, model.predict_actions(**inputs).actions[0, 0], atol=1e-6)
    assert not np.array_equal(acted[0], acted[1])


def test_who_has_no_such_state_refuses_the_model(taking, tmp_path):
    model, processor = taking
    with pytest.raises(ValueError, match="state of 8 numbers, expected the 4 that the simulation has"):
        VLAPolicy(model, processor, "tiny")
    with pytest.raises(ValueError, match="got a model that takes the robot's state, expected one without"):
        ModelPrediction(model, processor, "widowx", "tiny")
    for part in taking:
        part.save_pretrained(tmp_path / "model")
    with pytest.raises(ConversionError, match="OpenVLA's code has no place"):
        convert_to_openvla(tmp_path / "model", tmp_path / "openvla")


def test_latency_is_measured_with_some_state(taking):
    assert measure_latency(*taking, repeats=1)["n"] == 1


def test_predict_takes_it(taking, tmp_path, capsys):
    model, processor = taking
    for part in taking:
        part.save_pretrained(tmp_path / "model")
    picture = tmp_path / "camera.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    command = ["predict", str(tmp_path / "model"), str(picture), "go"]
    state = [0.1, -0.2, 0.3, 0, 0, 0, 0, 1]
    assert main([*command, "--state", ",".join(map(str, state))]) == 0
    answer = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    inputs = processor.action_inputs(Image.open(picture), "go", state=state)
    np.testing.assert_allclose(answer["action"], model.predict_actions(**inputs).actions[0], atol=1e-6)
    assert answer["relative"] == [{"dims": [0, 1], "state": [0, 1]}]
    for given, message in (([], "got no state"), (["--state", "0.1"], "shape [1]"), (["--state", "x"], "as in 0.1,")):
        assert main([*command, *given]) == 2
        assert message in capsys.readouterr().err
