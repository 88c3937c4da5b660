"""Who shows a model one picture: it works as before for one camera, and a model of several is refused in words."""

from types import SimpleNamespace
from typing import Any

import pytest
from tiny_models import tiny_model, tiny_processor, tiny_statistics

from gen_vla.evaluation.policies.cameras import camera_names, check_one_camera, pictures_per_action
from gen_vla.evaluation.simpler.policy import ModelPrediction
from gen_vla.processors import ActionStringProcessor


def test_processors_with_and_without_names() -> None:
    for cameras, expected in ((None, 1), (["top"], 1), (["top", "wrist"], 2)):
        processor = SimpleNamespace(cameras=cameras)
        assert (camera_names(processor), pictures_per_action(processor)) == (cameras, expected)
    assert pictures_per_action(SimpleNamespace()) == 1  # the code of a repository from before there were names
    check_one_camera(SimpleNamespace(cameras=["top"]), "it")
    with pytest.raises(ValueError, match=r"got a model of 2 cameras \(top, wrist\), expected one.*: it shows one"):
        check_one_camera(SimpleNamespace(cameras=["top", "wrist"]), "it")


def test_simulations_refuse_a_model_of_two(llama_like: Any) -> None:
    strings = ActionStringProcessor(action_dim=7, decimals=1)
    model = tiny_model(llama_like, strings)
    model.config.norm_stats["bridge_orig"] = tiny_statistics(7)
    processor = tiny_processor(llama_like, strings, cameras=["top", "wrist"])
    with pytest.raises(ValueError, match=r"got a model of 2 cameras \(top, wrist\).*SimplerEnv shows one picture"):
        ModelPrediction(model, processor, "widowx")
