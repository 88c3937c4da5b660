"""Actions relative to the state and back, with scipy's rotations as the reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from gen_vla.processors import normalize_actions, unnormalize_actions
from gen_vla.processors.relative_actions import ROTATIONS, as_matrix, check_groups, to_absolute, to_relative


KINDS = sorted(ROTATIONS)
WRITE = {
    "euler": lambda rotation: rotation.as_euler("xyz"),
    "axis_angle": lambda rotation: rotation.as_rotvec(),
    "quaternion": lambda rotation: rotation.as_quat(canonical=True),
    "rot6d": lambda rotation: np.concatenate((rotation.as_matrix()[..., 0], rotation.as_matrix()[..., 1]), axis=-1),
}
ANGLES = st.floats(-np.pi, np.pi)
TURNS = st.lists(ANGLES, min_size=3, max_size=3).map(lambda angles: Rotation.from_euler("ZYZ", angles))
POSITIONS = st.lists(st.floats(-2, 2), min_size=3, max_size=3)


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(KINDS), TURNS, st.lists(TURNS, min_size=1, max_size=3), POSITIONS)
def test_a_chunk_goes_there_and_back(kind, stored, here, there, position):
    width, at = ROTATIONS[kind], ROTATIONS[stored]
    groups = [
        {"dims": list(range(2, 2 + width)), "state": list(range(at)), "rotation": kind, "state_rotation": stored},
        {"dims": [2 + width, 0, 1], "state": [at, at + 1, at + 2]},
    ]
    check_groups(groups, width + 4, "a test")
    state = np.concatenate((WRITE[stored](here), position))
    turns = np.stack([WRITE[kind](turn) for turn in there])
    chunk = np.concatenate((np.full((len(there), 2), 0.5), turns, np.full((len(there), 2), 0.25)), axis=1)
    relative = to_relative(chunk, state, groups)
    wanted = np.stack([(turn * here.inv()).as_matrix() for turn in there])
    np.testing.assert_allclose(as_matrix(relative[:, 2 : 2 + width], kind), wanted, atol=1e-6)
    np.testing.assert_allclose(relative[:, 0], 0.5 - position[1])
    np.testing.assert_array_equal(relative[:, -1], 0.25)  # in no group
    back = to_absolute(relative, state, groups)
    turned = as_matrix(back[:, 2 : 2 + width], kind)
    np.testing.assert_allclose(turned, np.stack([turn.as_matrix() for turn in there]), atol=1e-6)
    np.testing.assert_allclose(np.delete(back, range(2, 2 + width), 1), np.delete(chunk, range(2, 2 + width), 1))


@pytest.mark.parametrize("kind", KINDS)
def test_rotations_are_written_as_scipy_writes_them(kind):
    """Gimbal lock and half turns, where there are several ways, aside."""
    turns = np.random.default_rng(0).normal(size=(2, 200, 4))
    there, here = Rotation.from_quat(turns[0]), Rotation.from_quat(turns[1])
    dims = list(range(ROTATIONS[kind]))
    group = {"dims": dims, "state": dims, "rotation": kind}
    relative = to_relative(WRITE[kind](there)[:, None], WRITE[kind](here), [group])[:, 0]
    np.testing.assert_allclose(relative, WRITE[kind](there * here.inv()), atol=1e-9)


def test_all_steps_are_relative_to_the_state_at_the_beginning_of_the_chunk():
    statistics = {"q01": [-1, -1, 0], "q99": [1, 1, 1], "mask": [True, True, False]}
    statistics["relative"] = [{"dims": [0, 1], "state": [1, 2]}]
    chunk, state = [[1.5, 2.0, 1.0], [1.75, 2.5, 0.0]], [9.0, 1.0, 2.0]
    normalized = normalize_actions(chunk, statistics, state)
    np.testing.assert_allclose(normalized, [[0.5, 0, 1], [0.75, 0.5, 0]], atol=1e-6)
    np.testing.assert_allclose(unnormalize_actions(normalized, statistics, state), chunk, atol=1e-6)
    for function in (normalize_actions, unnormalize_actions):
        with pytest.raises(ValueError, match=r"got no state for relative actions, expected .* at least 3"):
            function(chunk, statistics)
        with pytest.raises(ValueError, match="got a state of 2 values for relative actions"):
            function(chunk, statistics, [1.0, 2.0])


@pytest.mark.parametrize(
    "group",
    [
        {"dims": [0]},
        {"dims": [0, 7], "state": [0, 1]},
        {"dims": [0, 0], "state": [0, 1]},
        {"dims": [0, 1], "state": [0]},
        {"dims": [0, 1, 2], "state": [0, 1, 2], "rotation": "quaternion"},
        {"dims": [0, 1, 2], "state": [0, 1, 2], "rotation": "rpy"},
        {"dims": [0, 1, 2], "state": [0, 1, 2], "state_rotation": "euler"},
        {"dims": [0], "state": [0], "of": "joints"},
    ],
)
def test_groups_that_do_not_fit_are_refused(group):
    statistics = {"q01": [0.0] * 7, "q99": [1.0] * 7, "relative": [group]}
    with pytest.raises(ValueError, match="among the relative actions of a data set, expected dims of an action"):
        normalize_actions([[0.0] * 7], statistics, [0.0] * 7)


@pytest.mark.parametrize(("kind", "values"), [("quaternion", [0.0] * 4), ("rot6d", [1.0, 0, 0, 2, 0, 0])])
def test_what_is_no_rotation_is_refused(kind, values):
    dims = list(range(len(values)))
    with pytest.raises(ValueError, match=f"got a rotation of kind {kind} without a direction"):
        to_relative([values], values, [{"dims": dims, "state": dims, "rotation": kind}])
