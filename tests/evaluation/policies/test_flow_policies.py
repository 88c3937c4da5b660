"""The flow-matching π0 in the suites: it acts, its parts are timed, its features are read, and it is asked nothing."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_models import picture, tiny_model, tiny_pi0_flow_model, tiny_pi0_flow_processor, tiny_statistics
from transformers import AutoConfig

from gen_vla.evaluation.benchmarks.latency import PARTS, measure_parts
from gen_vla.evaluation.policies.flow import check_answers, starting_noise
from gen_vla.evaluation.representations.probes import tower_features
from gen_vla.evaluation.simpler.policy import ModelPrediction, SimplerPolicy
from gen_vla.evaluation.vqa.scene_questions import evaluate_questions
from gen_vla.processors import ActionStringProcessor


FRAMES = [np.asarray(picture(seed)) for seed in range(2)]


@pytest.fixture
def flow(gemma_like: Any) -> tuple[Any, Any]:
    """A model of seven dimensions and four steps, and its processor."""
    statistics = {"bridge_orig": tiny_statistics(7)}
    model = tiny_pi0_flow_model(gemma_like, action_dim=7, norm_stats=statistics)
    return model, tiny_pi0_flow_processor(gemma_like, action_dim=7)


def test_noise_belongs_to_a_step_of_an_episode(flow, llama_like):
    model, _ = flow
    both = starting_noise(model, ["open 1 0", "open 2 0"])["noise"]
    assert tuple(both.shape) == (2, 4, 7)
    assert torch.equal(starting_noise(model, ["open 2 0"])["noise"][0], both[1])
    assert not torch.equal(both[0], both[1])
    strings = ActionStringProcessor(action_dim=3, decimals=2, binary_dims=[2])
    assert starting_noise(tiny_model(llama_like, strings), ["open 1 0"]) == {}


def test_rollouts_give_the_same_in_every_batch(flow):
    policies = pytest.importorskip("gen_vla.evaluation.policies.rollout", exc_type=ImportError)
    model, processor = flow
    policy = policies.VLAPolicy(model, processor, "bridge_orig")
    nothing = np.zeros(7)
    moments = [policies.Moment("open", seed, 3, *[nothing] * 4) for seed in (1, 2)]
    together = policy(FRAMES, ["go", "open the drawer"], moments)
    assert np.shape(together) == (2, 7)
    alone = policy(FRAMES[1:], ["open the drawer"], moments[1:])
    np.testing.assert_allclose(alone[0], together[1], atol=1e-5)
    later = policies.Moment("open", 2, 4, *[nothing] * 4)
    assert np.abs(policy(FRAMES[1:], ["open the drawer"], [later])[0] - together[1]).max() > 1e-3


def test_it_acts_in_simpler_env(flow: tuple[Any, Any]):
    predict = ModelPrediction(*flow, "widowx")
    policy = SimplerPolicy(predict.begin(None, "put it there", None), "widowx", action_ensemble=True)
    assert all(np.isfinite(policy.step(frame)).all() for frame in (*FRAMES, *FRAMES))
    np.testing.assert_array_equal(predict(FRAMES[0], "go"), predict(FRAMES[0], "go"))
    assert predict(FRAMES[0], "go").shape == (4, 7)


def test_parts_add_up_and_every_step_of_the_flow_is_timed(flow):
    found = measure_parts(*flow, repeats=2)
    assert tuple(found["parts_ms"]) == PARTS
    assert all(value > 0 for value in found["parts_ms"].values())
    assert sum(found["parts_ms"].values()) == pytest.approx(found["total_ms"], abs=0.01)
    assert found["passes_timed"] == found["passes"] == 11


def test_features_are_those_of_its_one_encoder(flow):
    model, processor = flow
    features = tower_features(model, processor, [picture(0)])
    pixels = processor.image_processor([picture(0)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.model.vlm.vision_tower(pixels).last_hidden_state.mean(dim=1).numpy()
    assert set(features) == {"siglip", "joined"}
    np.testing.assert_allclose(features["siglip"], expected, atol=1e-6)


def test_questions_are_refused(flow: tuple[Any, Any]):
    questions = Dataset.from_dict({"image": [None], "question": ["?"], "answer": ["yes"], "kind": ["a"]})
    with pytest.raises(ValueError, match="got a question, expected an instruction for action_inputs: the flow"):
        evaluate_questions(*flow, questions, progress=False)
    with pytest.raises(ValueError, match="got a flow-matching π0, expected a model that answers questions"):
        check_answers(flow[0].config)
    check_answers(SimpleNamespace(model_type="vla_plus"))


def test_lm_eval_is_not_started_for_it(flow, tmp_path, monkeypatch):
    from gen_vla.evaluation.vqa import suite as vqa_suite

    flow[0].save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, trust_remote_code=True).model_type == "pi0_flow"

    class Manager:
        """Finds one task without data."""

        def __init__(self, **kwargs: Any):
            self.load = lambda names: {"tasks": dict.fromkeys(names)}

    monkeypatch.setattr(vqa_suite, "import_lm_eval", lambda: (pytest.fail, Manager))
    with pytest.raises(ValueError, match="it has no output layer for words"):
        vqa_suite.run_vqa(str(tmp_path), ["pope"])
