"""When a tabletop task is done: scripted moments with known verdicts."""

from typing import Any

import numpy as np
import pytest

from gen_vla.evaluation.simulation.layouts import Goal
from gen_vla.evaluation.simulation.success import SceneState, is_done


STARTS = np.array([[0.0, 0.6, 0.03], [0.2, 0.7, 0.03]])
AWAY = np.array([0.0, 0.4, 0.3])


def moment(first=(0.0, 0.6, 0.03), second=(0.2, 0.7, 0.03), fingertips: Any = AWAY, opening=0.5) -> SceneState:
    return SceneState(opening, np.array([first, second]), STARTS, np.array(fingertips))


@pytest.mark.parametrize(
    ("opening", "opened", "closed"), [(0.95, True, False), (0.5, False, False), (0.04, False, True)]
)
def test_the_drawer_is_open_or_shut_only_near_its_ends(opening, opened, closed):
    assert is_done(Goal("open_drawer", 0), moment(opening=opening)) is opened
    assert is_done(Goal("close_drawer", 0), moment(opening=opening)) is closed


@pytest.mark.parametrize(
    ("state", "done"),
    [
        (moment(first=(0.0, 0.6, 0.09), fingertips=(0.0, 0.6, 0.08)), True),
        (moment(first=(0.0, 0.6, 0.06), fingertips=(0.0, 0.6, 0.05)), False),  # not high enough
        (moment(first=(0.0, 0.6, 0.09)), False),  # thrown, not held
        (moment(second=(0.2, 0.7, 0.09), fingertips=(0.2, 0.7, 0.08)), False),  # the other object
        (moment(first=(0.0, 0.6, 0.09), second=(0.26, 0.7, 0.03), fingertips=(0.0, 0.6, 0.08)), False),  # pushed it
    ],
)
def test_only_the_named_object_in_the_hand_counts_as_picked(state, done):
    assert is_done(Goal("pick_object", 0), state) is done


@pytest.mark.parametrize(
    ("state", "done"),
    [
        (moment(first=(0.1, 0.7, 0.03)), True),
        (moment(first=(0.1, 0.7, 0.06)), False),  # still in the air
        (moment(first=(0.05, 0.7, 0.03)), False),  # 15 cm away
        (moment(second=(0.1, 0.6, 0.03)), False),  # the other one moved
        (moment(first=(0.1, 0.65, 0.03), second=(0.15, 0.7, 0.03)), False),  # both moved
    ],
)
def test_near_means_that_the_first_named_object_was_brought_and_set_down(state, done):
    assert is_done(Goal("move_near", 0), state) is done


def test_the_second_object_may_be_the_named_one():
    lifted = moment(second=(0.2, 0.7, 0.09), fingertips=(0.2, 0.7, 0.08))
    assert is_done(Goal("pick_object", 1), lifted)
