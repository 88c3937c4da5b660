"""Layouts, instructions, when a task is done, and that nothing is both trained on and judged."""

from typing import Any

import numpy as np
import pytest

from gen_vla.evaluation.simulation import layouts
from gen_vla.evaluation.simulation.layouts import Goal, SceneState, is_done


SEED = layouts.EVALUATION_SEEDS.start
SCENE = layouts.Layout(
    (0.2, 0.88),
    0.5,
    (layouts.TableObject("red", "can", -0.1, 0.6, 0.0), layouts.TableObject("blue", "mug", -0.2, 0.7, 0.0)),
    1,
)


def test_a_seed_is_one_layout_and_other_seeds_are_others():
    assert layouts.sample_layout(SEED) == layouts.sample_layout(SEED)
    digests = layouts.layout_digests(range(300))
    assert len(digests) == 300


def test_training_and_evaluation_share_no_seed_and_no_layout():
    assert layouts.TRAIN_SEEDS.stop <= layouts.EVALUATION_SEEDS.start
    trained = layouts.layout_digests(layouts.TRAIN_SEEDS[:500])
    layouts.check_unseen(layouts.EVALUATION_SEEDS[:500], trained)
    judged = layouts.sample_layout(SEED).digest()
    with pytest.raises(ValueError, match=f"got 1 layouts to judge that were trained on .*{judged}.*expected none"):
        layouts.check_unseen([SEED, SEED + 1], {judged})
    with pytest.raises(ValueError, match=r"got seeds \[3\], expected at least one and all in range\(1000000"):
        layouts.check_unseen([3, SEED], set())


def test_digests_tell_millimetres_apart_and_nothing_smaller():
    thing = SCENE.objects[0]

    def with_x(x: float) -> str:
        moved = layouts.TableObject(thing.colour, thing.shape, x, thing.y, thing.yaw)
        return layouts.Layout(SCENE.drawer, SCENE.opening, (moved, SCENE.objects[1]), SCENE.source).digest()

    assert with_x(-0.1) == SCENE.digest() == with_x(-0.1002)
    assert with_x(-0.102) != SCENE.digest()


def test_objects_are_apart_unlike_each_other_and_out_of_the_drawers_way():
    for seed in range(SEED, SEED + 200):
        layout = layouts.sample_layout(seed)
        first, second = layout.objects
        assert first.colour != second.colour
        assert first.shape != second.shape
        assert np.hypot(first.x - second.x, first.y - second.y) >= layouts.LEAST_DISTANCE
        assert all(abs(o.x - layout.drawer[0]) >= layouts.DRAWER_CLEARANCE for o in layout.objects)


def test_six_instructions_fit_a_scene():
    assert [goal.instruction(SCENE) for goal in layouts.GOALS] == [
        "pick up the red can",
        "pick up the blue mug",
        "move the red can near the blue mug",
        "move the blue mug near the red can",
        "open the drawer",
        "close the drawer",
    ]


def test_both_objects_and_both_sides_are_named_and_used_equally_often():
    sample = [layouts.sample_layout(seed) for seed in range(400)]
    assert np.mean([layout.source for layout in sample]) == pytest.approx(0.5, abs=0.08)
    assert np.mean([layout.drawer[0] > 0 for layout in sample]) == pytest.approx(0.5, abs=0.08)


# When a task is done.
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
