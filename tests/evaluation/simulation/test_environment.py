"""The tabletop environment: physics, looks, masks, experts."""

import needs_simulator  # noqa: F401  # skips this file without one
import numpy as np
import pytest

from gen_vla.evaluation.simulation.environment import TabletopEnv
from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS, MAX_STEPS, TASKS, Goal, sample_layout
from gen_vla.evaluation.simulation.looks import HOME
from gen_vla.evaluation.simulation.scene import GRASP_HEIGHT
from gen_vla.evaluation.tabletop.variants import VARIANTS, variant_of


SEED = EVALUATION_SEEDS.start
STILL = np.array([0, 0, 0, 0, 0, 0, 1.0])


@pytest.fixture(scope="module")
def env() -> TabletopEnv:
    return TabletopEnv(64)


def succeeds(env: TabletopEnv, task, seed: int, act) -> bool:
    env.reset(task, seed)
    return any(env.step(act(env)) for _ in range(MAX_STEPS[task]))


def test_things_stand_where_the_layout_says(env):
    for seed in range(SEED, SEED + 5):
        env.reset("open_drawer", seed)
        layout, state = sample_layout(seed), env.state()
        assert state.opening == pytest.approx(layout.opening, abs=1e-6)
        for thing, position in zip(layout.objects, state.objects, strict=True):
            np.testing.assert_allclose(position, [thing.x, thing.y, GRASP_HEIGHT], atol=0.002)
        assert env.view().handle[0] == pytest.approx(layout.drawer[0], abs=1e-6)


def test_the_same_seed_is_the_same_episode_whatever_came_before(env):
    def episode() -> list[np.ndarray]:
        env.reset("pick_object", SEED)
        states = [env.render()]
        for _ in range(4):
            env.step(env.expert_action())
            states += [env.data.qpos.copy(), env.render()]
        return states

    first = episode()
    env.reset("close_drawer", SEED + 1, VARIANTS[0])
    env.step(STILL)
    for before, after in zip(first, episode(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_succeeds_where_standing_still_fails(env, task):
    seeds = range(SEED, SEED + 4)
    assert [succeeds(env, task, seed, TabletopEnv.expert_action) for seed in seeds] == [True] * 4
    assert not any(succeeds(env, task, seed, lambda _: STILL) for seed in seeds)


def test_the_expert_that_cannot_see_and_the_one_that_guesses_mostly_fail(env):
    seeds = range(SEED, SEED + 4)
    blind = [succeeds(env, task, s, lambda env: env.expert_actions()[1]) for task in TASKS for s in seeds]
    deaf = [succeeds(env, task, s, lambda env: env.expert_actions()[2]) for task in TASKS for s in seeds]
    assert sum(blind) <= 4
    assert sum(deaf) <= 8


def test_picking_the_other_object_is_no_success(env):
    env.reset("pick_object", SEED)
    other = Goal("pick_object", 1 - env.goal.source)
    named, env.goal = env.goal, other
    moves = []
    for _ in range(MAX_STEPS["pick_object"]):
        moves.append(env.expert_action())
        if env.step(moves[-1]):
            break
    env.reset("pick_object", SEED)
    assert env.goal == named
    assert not any(env.step(move) for move in moves)


def test_a_variant_changes_pixels_and_nothing_else(env):
    def episode(variant) -> tuple[np.ndarray, np.ndarray]:
        env.reset("pick_object", SEED + 35, variant)
        picture = env.render()
        for _ in range(6):
            env.step(env.expert_action())
        return picture, env.data.qpos.copy()

    ordinary, positions = episode(HOME)
    pictures = [ordinary]
    for variant in VARIANTS:
        picture, moved = episode(variant)
        np.testing.assert_array_equal(moved, positions, err_msg=variant.key)
        assert all((np.abs(picture.astype(int) - other) > 8).mean() > 0.005 for other in pictures), variant.key
        pictures.append(picture)
    np.testing.assert_array_equal(episode(HOME)[0], ordinary)


def test_distractors_are_never_what_an_instruction_could_mean(env):
    kinds = (("two", 2), ("four", 4), ("same_colours", 2), ("same_shapes", 2))
    for key, count in [*kinds, *((f"seen_{kind}", count) for kind, count in kinds)]:
        for seed in range(SEED, SEED + 20):
            env.reset("pick_object", seed, variant_of(f"distractors/{key}"))
            names = {o.name for o in sample_layout(seed).objects}
            assert len(env.distractors) == count
            assert not names & {thing.name for thing in env.distractors}
            spots = np.array([(o.x, o.y) for o in (*sample_layout(seed).objects, *env.distractors)])
            apart = np.linalg.norm(spots[:, None] - spots, axis=-1) + np.eye(len(spots))
            assert apart.min() > 0.07  # no thing stands in another


def test_everything_that_is_named_is_in_view_from_every_camera():
    for variant in [HOME, *(v for v in VARIANTS if v.family == "camera")]:
        seen = [
            variant.camera.image_position(np.array([thing.x, thing.y, GRASP_HEIGHT]))
            for seed in range(SEED, SEED + 100)
            for thing in sample_layout(seed).objects
        ]
        assert np.min(seen) > 0.03, variant.key
        assert np.max(seen) < 0.97, variant.key


def test_masks_keep_robot_cabinet_and_objects_and_blacken_the_rest(env):
    def masked(key: str) -> np.ndarray:
        env.reset("pick_object", SEED + 35, variant_of(key), masked=True)
        return env.render()

    env.reset("pick_object", SEED + 35)
    masks, picture = env.segmentation(), env.render()
    shares = {name: mask.mean() for name, mask in masks.items()}
    assert set(masks) == {"robot", "cabinet", "handle", "object0", "object1"}
    assert 0.05 < shares["robot"] < 0.3
    assert 0.03 < shares["cabinet"] < 0.25
    assert all(0.002 < shares[name] < 0.03 for name in ("object0", "object1"))
    kept, shown = np.logical_or.reduce(list(masks.values())), masked("ordinary/ordinary")
    np.testing.assert_array_equal(shown[kept], picture[kept])
    assert not shown[~kept].any()
    assert 0.5 < (~kept).mean() < 0.9
    for key in ("background/brick", "table_texture/marble"):  # the same in front of every background
        np.testing.assert_array_equal(masked(key), shown)


def test_wrong_settings_say_what_was_expected(env):
    with pytest.raises(ValueError, match="got task 'pick', expected one of pick_object, move_near"):
        env.reset("pick", SEED)
    with pytest.raises(ValueError, match=r"got image_size 4096, expected 16\.\.512"):
        TabletopEnv(4096)
    with pytest.raises(ValueError, match="got variant 'camera/below', expected one of ordinary/ordinary"):
        variant_of("camera/below")
