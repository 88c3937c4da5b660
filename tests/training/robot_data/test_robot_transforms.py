"""Bridge and RT-1 transforms by hand, and against the step-by-step way."""

import numpy as np
import pytest

from gen_vla.training.robot_data.transforms import RobotTransform, absolute_gripper, binarize_gripper, choose_transform


def choose(dataset="x", wanted="auto", raw=True, features=("action",)):
    return choose_transform(wanted, dataset, stored_raw=raw, features=features, action=("action",), state=("state",))


def test_bridge_by_hand():
    state = np.zeros((5, 7), dtype=np.float32)
    state[:, 0] = [9.0, 1.0, 1.5, 1.25, 3.0]
    state[:, 6] = [0.1, 0.2, 0.3, 0.4, 0.5]
    action = np.full((5, 7), 7.0, dtype=np.float32)
    action[:, 6] = [0.0, 1.0, 0.5, 0.0, 0.9]
    result = RobotTransform("bridge", ("action",), ("state",)).apply({"action": action, "state": state})
    # Steps 1, 2 and 3 are left: 0 is dropped, 4 has no next state. The half-open step 2 closes, as step 3 does.
    assert result.actions[:, 0].tolist() == [0.5, -0.25, 1.75]
    assert result.actions[:, 6].tolist() == [1.0, 0.0, 0.0]
    assert not result.actions[:, 1:6].any()
    assert result.proprio is not None
    assert result.proprio[:, 0].tolist() == [1.0, 1.5, 1.25]
    assert result.actions.dtype == result.proprio.dtype == np.float32
    assert result.steps == slice(1, 4)


def test_fractal_by_hand():
    steps = {
        "action/world_vector": np.arange(12, dtype=np.float32).reshape(4, 3),
        "action/rotation_delta": -np.arange(12, dtype=np.float32).reshape(4, 3),
        "action/gripper_closedness_action": np.array([[0.0], [1.0], [0.05], [-0.5]], dtype=np.float32),
    }
    transform = choose("fractal20220817_data", features=steps)
    result = transform.apply(steps)
    assert result.actions[1].tolist() == [3.0, 4.0, 5.0, -3.0, -4.0, -5.0, 0.0]
    assert result.actions[:, 6].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert result.proprio is None
    assert result.steps == slice(0, 4)
    pose = np.arange(28, dtype=np.float32).reshape(4, 7)
    more = {"observation/base_pose_tool_reached": pose, "observation/gripper_closed": np.ones((4, 1), np.float32)}
    proprio = transform.apply({**steps, **more}).proprio
    assert proprio is not None
    assert proprio[1].tolist() == [7, 8, 9, 10, 11, 12, 13, 1]


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ([1.0, 0.5, 0.0], [1, 0, 0]),
        ([0.0, 0.5, 0.5, 1.0], [0, 1, 1, 1]),
        ([0.5, 0.96, 0.95, 0.05, 0.04], [1, 1, 0, 0, 0]),
        ([1.0, 0.5, 0.25], [1, 0.25, 0.25]),  # nothing clear follows: the last position stays
    ],
)
def test_the_gripper_is_binarised_backwards(positions, expected):
    assert binarize_gripper(np.array(positions, dtype=np.float32)).tolist() == expected


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ([0, 0, 0], [1, 1, 1]),
        ([0, 1, 0, -1, 0], [1, 0, 0, 1, 1]),
        ([0, -1, 0, 0.3], [0, 1, 1, 0]),  # opened first, so it was closed before
        ([0.1, -0.1, 0.11], [1, 1, 0]),  # 0.1 itself is no command
    ],
)
def test_relative_commands_become_states(commands, expected):
    assert absolute_gripper(np.array(commands, dtype=np.float64)).tolist() == expected


@pytest.mark.parametrize("nothing", [np.nan, np.inf, -np.inf])
def test_no_gripper_is_made_up(nothing):
    """What is not finite stays so: the episode is then skipped and named."""
    for transform in (binarize_gripper, absolute_gripper):
        found = transform(np.array([1.0, nothing, 0.0, 1.0], dtype=np.float32))
        assert np.isnan(found).tolist() == [False, True, False, False]


def test_features_are_put_side_by_side_in_the_order_named():
    transform = RobotTransform("bridge", ("move", "hand"), ("pose", "hand"))
    move, pose = np.zeros((4, 6)), np.arange(24.0).reshape(4, 6)
    result = transform.apply({"hand": np.array([0.0, 1.0, 1.0, 0.0]), "move": move, "pose": pose})
    assert result.actions.tolist() == [[6.0] * 6 + [1.0]] * 2
    assert result.proprio is not None
    assert result.proprio[0].tolist() == [6, 7, 8, 9, 10, 11, 1]
    assert transform.features == ("move", "hand", "pose", "hand")
    assert RobotTransform("identity", ("move",), ("pose",)).optional == ("pose",)


@pytest.mark.parametrize(
    ("wanted", "dataset", "raw", "chosen"),
    [
        ("auto", "bridge_orig", True, "bridge"),
        ("auto", "bridge_dataset", True, "bridge"),
        ("auto", "fractal20220817_data", True, "fractal"),
        ("auto", "libero", True, "identity"),
        ("auto", "bridge_orig", False, "identity"),
        ("bridge", "mine", False, "bridge"),
        (None, "bridge_orig", True, "identity"),
    ],
)
def test_transforms_are_chosen_by_name(wanted, dataset, raw, chosen):
    assert choose(dataset, wanted, raw).name == chosen


@pytest.mark.parametrize("point", [".", "/"])
def test_rt1s_action_may_be_in_parts(point):
    names = [f"action{point}{name}" for name in ("world_vector", "rotation_delta", "gripper_closedness_action")]
    parts = choose(wanted="fractal", features=[*names, "action.else"])
    assert parts.action == tuple(names)
    assert parts.state == (f"observation{point}base_pose_tool_reached", f"observation{point}gripper_closed")
    whole = choose(wanted="fractal", features=[*names, "action"])
    assert (whole.action, whole.state) == (("action",), ("state",))


def test_an_unknown_transform_is_refused():
    with pytest.raises(ValueError, match="transform='bridgev2', expected \"bridge\""):
        choose(wanted="bridgev2")
