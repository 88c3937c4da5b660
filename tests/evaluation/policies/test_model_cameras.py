"""Who shows a model one picture: it works as before for one camera, and a model of several is refused in words."""

from types import SimpleNamespace

import pytest

from gen_vla.evaluation.policies.cameras import camera_names, check_one_camera, pictures_per_action
from gen_vla.evaluation.simpler.policy import ModelPrediction


def test_processors_with_and_without_names():
    for cameras, expected in ((None, 1), (["top"], 1), (["top", "wrist"], 2)):
        processor = SimpleNamespace(cameras=cameras)
        assert (camera_names(processor), pictures_per_action(processor)) == (cameras, expected)
    assert pictures_per_action(SimpleNamespace()) == 1  # the code of a repository from before there were names
    check_one_camera(SimpleNamespace(cameras=["top"]), "it")
    with pytest.raises(ValueError, match=r"got a model of 2 cameras \(top, wrist\), expected one.*: it shows one"):
        check_one_camera(SimpleNamespace(cameras=["top", "wrist"]), "it")


def test_simulations_refuse_a_model_of_two():
    processor = SimpleNamespace(cameras=["top", "wrist"])
    several = r"got a model of 2 cameras \(top, wrist\)"
    with pytest.raises(ValueError, match=rf"{several}.*SimplerEnv shows one picture"):
        ModelPrediction(None, processor, "widowx")
    rollout = pytest.importorskip("gen_vla.evaluation.policies.rollout", exc_type=ImportError)
    with pytest.raises(ValueError, match=rf"{several}.*the simulation shows one picture"):
        rollout.VLAPolicy(None, processor, "tiny")
