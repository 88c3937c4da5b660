"""The drawer environment: units, layouts, pictures, and that looks never touch physics."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import needs_simulator  # noqa: F401  # skips this file without one
import numpy as np
import pytest

from gen_vla.evaluation.drawers import environment as drawers
from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS


SEED = EVALUATION_SEEDS.start


@pytest.fixture(scope="module")
def close_env() -> drawers.DrawerEnv:
    return drawers.DrawerEnv("drawer-close", image_size=64)


@pytest.fixture(scope="module")
def open_env() -> drawers.DrawerEnv:
    return drawers.DrawerEnv("drawer-open", image_size=64)


def test_a_move_of_two_centimetres_moves_the_hand_two_centimetres(open_env):
    """Per policy step, once the arm has caught up with its target."""
    open_env.reset(SEED)
    heights = []
    for _ in range(5):
        open_env.step(np.array([0, 0, 0.02, 0, 0, 0, 1.0]))
        heights.append(open_env.scene_state()["fingertips"][2])
    assert heights[4] - heights[2] == pytest.approx(0.04, abs=0.004)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "drawer-shut"}, "drawer-shut.*expected one of"),
        ({"task": "drawer-open", "image_size": 4096}, "4096, expected 16..512"),
        ({"task": "drawer-open", "variation": "wild"}, "wild.*expected none, modest or full"),
    ],
)
def test_wrong_settings_say_what_was_expected(open_env, arguments, message):
    with pytest.raises(ValueError, match=message):
        drawers.DrawerEnv(**arguments)
    with pytest.raises(ValueError, match="got seed -1, expected one in"):
        open_env.reset(-1)


def test_the_same_seed_is_the_same_episode_whatever_came_before(close_env):
    def episode(seed: int) -> list[np.ndarray]:
        states = [close_env.reset(seed), close_env.render()]
        for _ in range(3):
            close_env.step(close_env.expert_action())
            states += [close_env._observation.copy(), close_env.render()]
        return states

    first = episode(SEED)
    episode(SEED + 1)
    for before, after in zip(first, episode(SEED), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_first_picture_and_state_are_not_those_of_the_layout_before(open_env):
    """Meta-World leaves drawer-open's body positions stale after a reset."""
    pictures = []
    for seed in range(SEED, SEED + 3):
        state = open_env.reset(seed)
        assert state[4] == open_env._env.model.body("drawer").pos[0]
        assert state[4] == open_env.scene_state()["drawer_x"]
        pictures.append(open_env.render())
        np.testing.assert_array_equal(pictures[-1], open_env.render())
    assert all((pictures[0] != other).mean() > 0.05 for other in pictures[1:])


@pytest.mark.parametrize("start", ["stock", "half-open"])
@pytest.mark.parametrize("task", drawers.TASKS)
def test_the_expert_succeeds_and_standing_still_or_not_seeing_does_not(task, start):
    env = drawers.DrawerEnv(task, start=start)

    def successes(act) -> int:
        won = 0
        for seed in range(SEED, SEED + 20):
            env.reset(seed)
            won += any(env.step(act()) for _ in range(drawers.MAX_POLICY_STEPS))
        return won

    assert successes(env.expert_action) == 20
    assert successes(lambda: np.zeros(7)) == 0
    if (task, start) == ("drawer-open", "stock"):  # the layouts are too wide for an expert that believes x to be 0
        assert successes(lambda: env.expert_actions()[1]) <= 6


def test_looks_never_touch_physics():
    environments = [drawers.DrawerEnv("drawer-open", image_size=64, variation=v) for v in ("none", "modest", "full")]
    for seed in range(SEED, SEED + 3):
        states = [env.reset(seed) for env in environments]
        for _ in range(12):
            for env in environments:
                env.step(env.expert_action())
        states += [env._observation for env in environments]
        for index in range(1, 3):
            np.testing.assert_array_equal(states[0], states[index])
            np.testing.assert_array_equal(states[3], states[3 + index])
    pictures = [env.render() for env in environments]
    assert not np.array_equal(pictures[0], pictures[2])


def test_half_open_gives_both_tasks_the_same_scene():
    pictures = []
    for task in drawers.TASKS:
        env = drawers.DrawerEnv(task, image_size=64, start="half-open")
        env.reset(SEED + 1)
        assert 0.3 < env.scene_state()["drawer_opening"] < 0.7
        pictures.append(env.render())
    np.testing.assert_array_equal(*pictures)


def test_no_episode_starts_with_the_hand_on_the_drawer(close_env):
    model, data = close_env._env.model, close_env._env.data
    for seed in range(SEED, SEED + 60):
        close_env.reset(seed)
        touching = [model.geom_bodyid[[contact.geom1, contact.geom2]] for contact in data.contact]
        assert not any(model.body("drawer_link").id in pair for pair in touching)


def test_another_thread_draws_the_same_picture(open_env):
    open_env.reset(SEED)
    with ThreadPoolExecutor(1) as pool:
        drawn_there = pool.submit(open_env.render).result()
    np.testing.assert_array_equal(drawn_there, open_env.render())


def test_modest_looks_keep_the_cabinet_green_and_few_blocks():
    rng = np.random.default_rng(0)
    looks = [drawers.sample_appearance(rng, "modest", (0.0, 0.9)) for _ in range(50)]
    assert {a.cabinet for a in looks} == {"green"}
    assert {len(a.blocks) for a in looks} == {0, 1}
    full = [drawers.sample_appearance(rng, "full", (0.0, 0.9)) for _ in range(100)]
    assert {len(a.blocks) for a in full} == {0, 1, 2, 3}
    assert {a.cabinet for a in full} == set(drawers.COLOURS)


def test_the_projection_agrees_with_the_rendered_blocks():
    env = drawers.DrawerEnv("drawer-close", image_size=64, variation="full")
    compared = 0
    for seed in range(4):
        env.reset(seed)
        masks = env.segmentation(128)
        for colour, block in env.scene_state()["blocks"].items():
            rows, columns = np.nonzero(masks[f"{colour} block"])
            if len(rows) > 150:  # not half behind the arm
                assert (columns.mean() + 0.5) / 128 == pytest.approx(block["image"][0], abs=0.01)
                assert (rows.mean() + 0.5) / 128 == pytest.approx(block["image"][1], abs=0.01)
                compared += 1
    assert compared >= 4


def test_an_arranged_scene_is_what_was_anticipated():
    env = drawers.DrawerEnv("drawer-close", image_size=64)
    looks = drawers.Appearance(blocks=(drawers.Block("red", -0.2, 0.5),))
    scene = drawers.Scene((0.1, 0.88), 0.5, (-0.1, 0.55, 0.25), 0.0, looks)
    env.arrange(scene)
    state, expected = env.scene_state(), drawers.anticipate(scene)
    assert state["drawer_opening"] == pytest.approx(0.5)
    assert state["gripper_opening"] == pytest.approx(0.0)
    np.testing.assert_allclose(state["handle"], expected["handle"], atol=0.01)
    np.testing.assert_allclose(state["fingertips"], expected["fingertips"], atol=0.015)
    assert state["blocks"]["red"]["image"] == expected["blocks"]["red"]["image"]


def test_the_hidden_parts_of_the_robot_are_never_in_view(open_env):
    """Shown again, they change no pixel, wherever the hand goes."""
    model = open_env._env.model
    hidden = np.isin(model.geom_bodyid, [model.body(name).id for name in drawers.OUT_OF_VIEW])
    for corner in ([0.05, 0.05, 0.05], [-0.05, 0.05, 0.05], [0.05, -0.05, 0.05], [-0.05, -0.05, -0.05]):
        open_env.reset(SEED)
        for _ in range(15):
            open_env.step(np.array([*corner, 0, 0, 0, 1]))
        picture = open_env.render()
        model.geom_rgba[hidden, 3] = 1.0
        np.testing.assert_array_equal(open_env.render(), picture)
        model.geom_rgba[hidden, 3] = 0.0
