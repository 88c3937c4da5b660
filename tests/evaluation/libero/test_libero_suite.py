"""LIBERO's settings and scores, and the real benchmark where it is installed."""

import json
from pathlib import Path

import numpy as np
import pytest
from space_models import bridge_statistics
from tiny_models import tiny_model, tiny_processor

from gen_vla.evaluation.libero import environment as libero
from gen_vla.evaluation.libero.environment import LiberoEnvironment, LiberoMissingError, LiberoTrial
from gen_vla.evaluation.libero.grippers import robosuite_actions
from gen_vla.evaluation.libero.policy import LiberoModel
from gen_vla.evaluation.libero.suite import LiberoSettings, evaluate_libero, score
from gen_vla.processors import ActionStringProcessor


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"suites": ("spacial",)}, "got suites spacial, expected some of spatial, object, goal, 10, 90"),
        ({"perturbations": ("colour",)}, "got perturbations colour"),
        ({"controls": ("blind",)}, "got controls blind, expected some of expert, random, zero"),
        ({"trials": 51}, "got 51 trials, expected 1 to 50"),
        ({"shard": (2, 2)}, "got shard 2/2, expected one of 0/N to N-1/N"),
        ({"layouts": Path("d"), "perturbations": ("task",)}, "got layouts and perturbations"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        LiberoSettings(**settings)


def test_a_score_is_the_mean_over_tasks():
    """Three of four in one task and none of one in another are 37.5 %, not 60; crashes are no judgement."""
    ends = [("0", "success")] * 3 + [("0", "failure"), ("1", "malformed"), ("1", "crashed"), ("2", "unknown")]
    entries = [
        {"trial": f"object/none/{part}/{number}", "part": part, "outcome": outcome}
        for number, (part, outcome) in enumerate(ends)
    ]
    found = score("object", "none", entries)
    assert (found["value"], found["successes"], found["n"]) == (0.375, 3, 5)
    assert (found["malformed"], found["crashed"], found["unknown"]) == (1, 1, 1)
    assert found["by_task"] == {"0": [3, 4], "1": [0, 1]}
    low, high = found["interval"]
    assert 0 < low < 0.375 < high < 1


class TestBenchmark:
    """The installed benchmark."""

    @pytest.fixture(autouse=True)
    def needs_benchmark(self):
        pytest.importorskip("libero", reason="LIBERO is not installed: pip install 'gen-vla[libero]'")

    def test_a_suite_without_files_is_named(self):
        with pytest.raises(LiberoMissingError, match="libero_spatial_env"):
            LiberoSettings(suites=("spatial",), perturbations=("environment",)).all_trials()

    def test_trials_are_those_of_the_protocol(self):
        settings = LiberoSettings(suites=("object", "10"), perturbations=("none", "position", "language"), trials=50)
        assert len(settings.all_trials()) == 2 * 3 * 10 * 50

    @pytest.mark.slow
    def test_the_expert_finishes_a_task_and_is_not_asked_twice(self, tmp_path):
        """Actions mean metres, radians and an opening; a second run goes on behind the first."""
        settings = LiberoSettings(("object",), trials=1, tasks=(2,), controls=("expert",))
        results = evaluate_libero(None, None, None, settings, tmp_path)
        [task] = results["controls"]["expert"]["tasks"]
        assert (task["successes"], task["n"]) == (1, 1)
        written = (tmp_path / "controls" / "expert" / "trials.jsonl").read_text()
        assert json.loads(written.splitlines()[-1])["steps"] < 200
        again = evaluate_libero(None, None, None, settings, tmp_path)
        assert again["controls"] == results["controls"]
        assert (tmp_path / "controls" / "expert" / "trials.jsonl").read_text() == written

    @pytest.mark.slow
    def test_pictures_are_those_that_robosuite_gives_with_its_observations(self):
        from libero.libero.envs.env_wrapper import ControlEnv

        environment = libero.LiberoEnvironment(32)
        seen, _ = environment.begin_layout("spatial", 0, 7)
        drawn = {name: np.array(picture) for name, picture in seen.pictures.items()}
        environment.close()
        scene = str(libero.task_file(libero.load_suite("spatial", "none").get_task(0)))
        simulation = ControlEnv(bddl_file_name=scene, camera_heights=32, camera_widths=32)
        simulation.seed(7)
        simulation.reset()
        found = [simulation.step(list(libero.WAIT))[0] for _ in range(libero.SETTLING_STEPS)][-1]
        for name, camera in libero.CAMERAS.items():
            np.testing.assert_array_equal(drawn[name], found[f"{camera}_image"][::-1, ::-1])
        simulation.close()

    def test_a_model_sees_both_cameras_upright_and_its_chunks_are_carried_out(self, llama_like, tmp_path, monkeypatch):
        """What the environment is sent is what the model writes of the pictures turned by 180 degrees."""
        strings = ActionStringProcessor(7, 2, binary_dims=[6])
        statistics = {"libero_object_no_noops": bridge_statistics(), "other": bridge_statistics()}
        model = tiny_model(llama_like, strings, norm_stats=statistics)
        processor = tiny_processor(llama_like, strings, cameras=["image", "wrist_image"])
        monkeypatch.setitem(libero.HORIZONS, "object", 3)
        sent, raw = [], []
        step = LiberoEnvironment.step
        seen = LiberoEnvironment._observation

        def watched(self, action):
            sent.append(np.array(action))
            return step(self, action)

        def kept(self, found):
            size = {"width": self.image_size, "height": self.image_size}
            sim = self.simulation.sim
            raw.append({name: sim.render(camera_name=camera, **size) for name, camera in libero.CAMERAS.items()})
            return seen(self, found)

        monkeypatch.setattr(LiberoEnvironment, "step", watched)
        monkeypatch.setattr(LiberoEnvironment, "_observation", kept)
        settings = LiberoSettings(("object",), trials=1, tasks=(0,), image_size=32, videos=1)
        results = evaluate_libero(model, processor, "tiny", settings, tmp_path)
        assert (results["tasks"][0]["n"], len(sent)) == (1, 3)
        for number in (0, 2):
            upright = [raw[number][name][::-1, ::-1] for name in ("agentview", "wrist")]
            inputs = processor.action_inputs([upright], ["pick up the alphabet soup and place it in the basket"])
            chunk = model.predict_actions(**inputs, unnorm_key="libero_object_no_noops").actions[0]
            wanted = robosuite_actions(chunk, model.get_action_stats("libero_object_no_noops"))
            np.testing.assert_allclose(sent[number : number + 2], wanted[: len(sent) - number], atol=1e-6)
        assert [path.name for path in (tmp_path / "videos").glob("*.mp4")] == ["object-none-0-0-failure.mp4"]


def test_the_units_are_those_of_the_suite(llama_like):
    """As in OpenVLA's evaluation: the data set of the suite's name, with or without what its copy appends."""
    strings = ActionStringProcessor(7, 2)
    keys = ["libero_spatial", "libero_10_no_noops", "bridge_orig"]
    model = tiny_model(llama_like, strings, norm_stats=dict.fromkeys(keys, bridge_statistics()))
    player = LiberoModel(model, tiny_processor(llama_like, strings))
    assert [player.key_of(suite) for suite in ("spatial", "10", "goal")] == [*keys[:2], None]
    with pytest.raises(ValueError, match="got no unnorm_key"):
        player.begin(LiberoTrial("goal", "none", 0, 0), "open the drawer", None)
    with pytest.raises(ValueError, match="got 3 steps of a chunk, expected 1 to 2"):
        LiberoModel(model, tiny_processor(llama_like, strings), steps=3)
