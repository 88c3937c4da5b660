"""`ServedPolicy` by itself: which models it takes, and batches of fixed sizes."""

import numpy as np
import pytest
from PIL import Image
from policy_servers import frame
from tiny_models import tiny_model, tiny_processor

from gen_vla.serving.policy import ServedPolicy
from gen_vla.serving.requests import Request


def test_batches_of_fixed_sizes_give_every_request_its_answer(chunking):
    """As on a GPU, where each size is recorded: three requests are a batch of four."""
    model, processor = chunking
    policy, sizes = ServedPolicy(model, processor, "tiny"), []
    requests = [Request((Image.fromarray(frame(seed)),), words, unnorm_key="tiny") for seed, words in enumerate("abc")]
    expected = [policy.run([request])[0].actions for request in requests]
    predict = model.predict_actions
    model.predict_actions = lambda **inputs: sizes.append(len(inputs["input_ids"])) or predict(**inputs)
    policy.fixed_sizes = True
    found = policy.run(requests)
    assert [answer.rows for answer in found] == [3, 3, 3]
    np.testing.assert_array_equal([answer.actions for answer in found], expected)
    policy.run(requests[:1])
    policy.run([requests[0]] * 5)
    assert sizes == [4, 1, 8]
    sizes.clear()
    policy.warm_up(8)
    assert sizes == [1, 2, 4, 8, 1]
    assert policy.continues


def test_models_that_cannot_act_and_unknown_units_are_refused(llama_like, tiny_openvla):
    with pytest.raises(ValueError, match="this one answers questions at most"):
        ServedPolicy(tiny_model(llama_like), tiny_processor(llama_like), "tiny")
    model, processor = tiny_openvla
    with pytest.raises(ValueError, match="got unnorm_key='huge', expected one of tiny"):
        ServedPolicy(model, processor, "tiny", "huge")


def test_clients_are_told_what_the_data_set_says_of_actions(tiny_openvla):
    model, processor = tiny_openvla
    about = {"names": ["x", "y", "gripper"], "units": ["m", "m", "1 open"], "fps": 16.0}
    entry = model.config.norm_stats["tiny"]
    model.config.norm_stats = {"tiny": {**entry, "action": {**entry["action"], **about}}}
    told = ServedPolicy(model, processor, "tiny").describe()
    assert [told[name] for name in ("action_names", "action_units", "fps")] == list(about.values())
    assert about.items() <= told["data_sets"]["tiny"].items()
