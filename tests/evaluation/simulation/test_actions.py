"""What actions mean to the simulated arm: metres and open fractions there and back, and what is refused."""

import numpy as np
import pytest

from gen_vla.evaluation.simulation.actions import ActionError, from_simulator_action, to_simulator_action


@pytest.mark.parametrize(
    ("action", "moves"),
    [
        ([0.05, -0.025, 0.01, 0, 0, 0, 1.0], [1.0, -0.5, 0.2, -1.0]),
        ([0.2, 0, 0, 0, 0, 0, 0.25], [1.0, 0.0, 0.0, 0.5]),  # farther than 5 cm in a step is cut
    ],
)
def test_metres_become_simulator_moves_and_open_becomes_effort(action, moves):
    np.testing.assert_allclose(to_simulator_action(np.array(action)), moves, atol=1e-7)


def test_simulator_actions_become_metres_after_clipping():
    action = from_simulator_action(np.array([12.0, -0.5, 0.2, 1.0]))
    assert action.dtype == np.float32
    np.testing.assert_allclose(action, [0.05, -0.025, 0.01, 0, 0, 0, 0], atol=1e-7)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0.0] * 4, r"shape \(4,\), expected \(7,\)"),
        ([0.0, np.nan, 0, 0, 0, 0, 1], "non-finite action .*expected 7 finite"),
        ([0.0, 0, 0, 0.2, 0, 0, 1], r"rotations \[0.2, 0.0, 0.0\], expected 0"),
    ],
)
def test_impossible_actions_are_refused(action, message):
    with pytest.raises(ActionError, match=message):
        to_simulator_action(np.array(action))
