"""What a model's actions and pictures become in LIBERO."""

import numpy as np
import pytest

from gen_vla.evaluation.libero.environment import axis_angle
from gen_vla.evaluation.libero.grippers import robosuite_actions
from gen_vla.evaluation.libero.policy import libero_cameras


@pytest.mark.parametrize(
    ("low", "values", "sent"),
    [
        (0.0, [0.0, 0.2, 0.9, 1.0], [1.0, 1.0, -1.0, -1.0]),  # OpenVLA's copies: 1 is open
        (-1.0, [-1.0, -0.2, 0.3, 1.0], [-1.0, -1.0, 1.0, 1.0]),  # LeRobot's: as the robot has it
    ],
)
def test_the_gripper_of_either_copy_opens_and_closes(low, values, sent):
    actions = np.full((4, 7), 0.25)
    actions[:, 6] = values
    moves = robosuite_actions(actions, {"q01": [-1.0] * 6 + [low], "q99": [1.0] * 7})
    np.testing.assert_array_equal(moves[:, 6], sent)
    np.testing.assert_array_equal(moves[:, :6], actions[:, :6])


@pytest.mark.parametrize(("low", "high", "size"), [(0.0, 0.08, 8), (-3.0, 1.0, 7), (0.0, 0.0, 7)])
def test_other_grippers_are_refused(low, high, size):
    with pytest.raises(ValueError, match="expected 7 with a gripper"):
        robosuite_actions(np.zeros((1, size)), {"q01": [low] * size, "q99": [high] * size})


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (None, ["agentview"]),
        (["observation.images.image"], ["agentview"]),
        (["observation.images.image", "observation.images.image2"], ["agentview", "wrist"]),
        (["wrist_image", "image"], ["wrist", "agentview"]),
    ],
)
def test_cameras_by_name(names, shown):
    assert libero_cameras(names) == shown


def test_cameras_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="got a model of the cameras left, right"):
        libero_cameras(["left", "right"])


@pytest.mark.parametrize(
    ("quaternion", "rotation"),
    [
        ([0, 0, 0, 1], [0, 0, 0]),
        ([1, 0, 0, 0], [np.pi, 0, 0]),
        ([np.sqrt(0.5), 0, 0, -np.sqrt(0.5)], [1.5 * np.pi, 0, 0]),  # openpi and OpenVLA do not take the shorter way
    ],
)
def test_rotations_of_the_state_are_those_of_openpi(quaternion, rotation):
    np.testing.assert_allclose(axis_angle(np.array(quaternion, dtype=float)), rotation, atol=1e-7)
