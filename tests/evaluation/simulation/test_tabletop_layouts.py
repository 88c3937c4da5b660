"""Layouts, instructions, and that nothing is both trained on and judged."""

import numpy as np
import pytest

from gen_vla.evaluation.simulation import layouts as layouts


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


def test_a_seed_of_neither_range_is_refused():
    with pytest.raises(ValueError, match="got seed -1, expected one in"):
        layouts.sample_layout(-1)
