"""The policy object for SimplerEnv: units, both grippers' conventions, malformed actions, a real tiny model."""

import numpy as np
import pytest

from gen_vla.evaluation.simpler.policy import MalformedActionError, ModelPrediction, SimplerPolicy


IMAGE = np.zeros((480, 640, 3), dtype=np.uint8)


def grippers(openings, robot):
    """What is sent for these predicted openings, one after another, and no move."""
    rest = iter(openings)
    policy = SimplerPolicy(lambda image: np.array([[0, 0, 0, 0, 0, 0, next(rest)]]), robot)
    return [float(policy.step(IMAGE)[6]) for _ in openings]


def test_widowx_gripper_is_absolute():
    assert grippers([0.0, 0.5, 0.51, 1.0], "widowx") == [-1.0, -1.0, 1.0, 1.0]


def test_google_robot_gripper_is_relative_and_holds_a_large_change_for_15_steps():
    openings = [1.0, 0.75, 0.0, *[1.0] * 14, 1.0, 0.0]
    commands = grippers(openings, "google_robot")
    assert commands[:2] == [0.0, 0.25]  # nothing at first, a small change as it is
    assert commands[2:17] == [0.75] * 15  # closing, whatever is predicted meanwhile
    assert commands[17:] == [0.0, 1.0]  # then from where the prediction stood


def test_moves_stay_and_angles_become_an_axis():
    policy = SimplerPolicy(lambda image: np.array([[0.1, 0.2, 0.3, 0, 0, 0.5, 1.0]]), "widowx")
    np.testing.assert_allclose(policy.step(IMAGE), [0.1, 0.2, 0.3, 0, 0, 0.5, 1.0])


def test_ensemble_averages_what_predictions_say_about_now():
    chunks = iter(np.array([[[0.0] * 7, [4.0] * 7], [[2.0] * 7, [9.0] * 7], [[1.0] * 7, [0.0] * 7]]))
    policy = SimplerPolicy(lambda image: next(chunks), "widowx", action_ensemble=True)
    xs = [policy.step(IMAGE)[0] for _ in range(3)]
    assert xs == [0.0, 3.0, 5.0]  # (2 + 4) / 2, (1 + 9) / 2


@pytest.mark.parametrize(
    ("prediction", "message"),
    [([[0.0] * 6], r"shape \(1, 6\), expected \(steps, 7\)"), ([], "expected"), ([[0.0] * 6 + [np.nan]], "nan")],
)
def test_what_is_no_action_raises(prediction, message):
    with pytest.raises(MalformedActionError, match=message):
        SimplerPolicy(lambda image: np.array(prediction), "widowx").step(IMAGE)


def test_a_model_predicts_in_the_robots_units(bridge_model):
    model, processor = bridge_model
    predicted = ModelPrediction(model, processor, "widowx")(IMAGE, "put carrot on plate")
    inputs = processor.action_inputs(IMAGE, "put carrot on plate")
    expected = model.predict_actions(**inputs, unnorm_key="bridge_orig").actions[0]
    np.testing.assert_array_equal(predicted, expected)
    assert predicted.shape == (1, 7)
    del model.config.norm_stats["bridge_orig"]
    with pytest.raises(ValueError, match=r"without statistics of 'bridge_orig'.*it has tiny"):
        ModelPrediction(model, processor, "widowx")
