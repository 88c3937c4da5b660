"""Every n-th step alone: which action it has, in every format, and that figures and tables are of the kept steps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from robot_data_sets import make_episodes, write_lerobot
from robot_rows import FORMATS, check, grey, places, read_rows, write
from tiny_runs import tiny_recipe, write_robot_data

from gen_vla.processors import compute_statistics
from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.recipes.data_schema import RecipeError, RobotSource
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.robot_data.statistics import robot_statistics
from gen_vla.training.robot_data.transforms import Trajectory, thinned


MOVES = [0, 1, 2, 3, 4, 5]


def numbered(steps: int) -> Trajectory:
    """One step's action is its number and ten times that, its gripper 1 on odd steps; a stored step goes before."""
    numbers = np.arange(steps, dtype=np.float32)
    actions = np.stack([numbers, 10 * numbers, numbers % 2], axis=1)
    return Trajectory(actions, numbers[:, None], slice(1, 1 + steps))


def test_positions_are_those_of_the_last_step_and_displacements_add_up() -> None:
    kept = thinned(numbered(7), 3, displacements=[1])
    assert kept.actions.tolist() == [[2, 0 + 10 + 20, 0], [5, 30 + 40 + 50, 1], [6, 60, 0]]
    assert kept.actions.dtype == np.float32
    assert kept.proprio is not None
    assert kept.proprio.ravel().tolist() == [0, 3, 6]
    assert list(range(20)[kept.steps]) == [1, 4, 7]
    assert thinned(numbered(2), 5, displacements=[]).actions.tolist() == [[1, 10, 1]]
    assert thinned(numbered(0), 2, displacements=[0]).actions.shape == (0, 3)
    assert thinned(whole := numbered(4), 1, [0]) is whole


@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_every_format(tmp_path: Path, form: str) -> None:
    episodes = make_episodes(3, 4)
    settings: dict[str, Any] = {"horizon": 2, "every": 2, "displacements": [0]}
    rows, source = read_rows(write(tmp_path, form, episodes), transform=None, **settings)
    assert places(rows) == [(number, step) for number in range(3) for step in range(0, 4 + number, 2)]
    for row in rows:
        actions, step = episodes[row["episode_index"]].actions, row["step_index"]
        expected = actions[min(step + 1, len(actions) - 1)].copy()
        expected[0] = actions[step : step + 2, 0].sum()
        np.testing.assert_allclose(row["action"][0], expected, atol=1e-7)
        assert row["action_is_pad"].tolist() == [False, step + 2 >= len(actions)]
        assert grey(row["images"][0]) == pytest.approx(40 * row["episode_index"] + 5 * step, abs=1.5)
    assert source.count_rows() == (None if form == "rlds" else 2 + 3 + 3)
    assert source.hertz == (2.5 if form.startswith("v") else None)


def test_the_transforms_know_what_they_make(tmp_path: Path) -> None:
    folder = write(tmp_path, "rlds", make_episodes(2, 9, size=16))
    source = open_robot_source(folder, key="x", transform="bridge", every=4)
    assert source.displacements == MOVES
    whole = open_robot_source(folder, key="x", transform="bridge")
    (_, kept), (_, all_steps) = (next(one.trajectories(RowProblems())) for one in (source, whole))
    np.testing.assert_allclose(kept.actions[0, :6], all_steps.actions[:4, :6].sum(axis=0), atol=1e-6)
    assert kept.actions[0, 6] == all_steps.actions[3, 6]
    assert [row["step_index"] for row in source.rows(source.shards()[:1])] == [1, 5]
    with pytest.raises(RobotDataError, match=r"got displacements=\[0\] for .*, expected \[0, 1, 2, 3, 4, 5\], which"):
        open_robot_source(folder, key="x", transform="bridge", displacements=[0])


def test_what_actions_are_has_to_be_told(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", make_episodes(1, 4, size=16))
    with pytest.raises(RobotDataError, match=r"got every=2 for .*, expected to know which dim.*displacements"):
        open_robot_source(folder, key="x", every=2)
    assert open_robot_source(folder, key="x").displacements is None


def test_bad_episodes_count_as_the_rows_they_would_be(tmp_path: Path) -> None:
    episodes = make_episodes(3, 5, size=16)
    episodes[1].actions[1] = np.nan  # the action of the first kept step
    rows, source = read_rows(write_lerobot(tmp_path / "set", episodes), every=2, displacements=[])
    assert len(rows) + source.problems.report()["skipped"] == source.count_rows() == 3 + 3 + 4


def test_figures_are_of_the_kept_steps_and_not_confused(tmp_path: Path) -> None:
    episodes = make_episodes(3, 7, size=16)
    folder, cache = write_lerobot(tmp_path / "set", episodes), tmp_path / "statistics"
    whole = np.concatenate([episode.actions for episode in episodes])
    for every, displacements in ((1, None), (3, []), (3, MOVES), (1, None), (2, MOVES)):
        source = open_robot_source(folder, key="x", every=every, displacements=displacements)
        found = robot_statistics(source, cache)
        kept = [thinned(Trajectory(e.actions, None, slice(0, 9)), every, displacements or ()) for e in episodes]
        actions = np.concatenate([trajectory.actions for trajectory in kept]) if every > 1 else whole
        expected = compute_statistics(actions, num_trajectories=3)
        assert {name: found.entry[name] for name in expected} == expected
        assert found.rows == len(actions) == source.count_rows()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_recipe_keeps_tables_and_figures_apart(tmp_path: Path, streaming: bool) -> None:
    recipe = tiny_recipe(tmp_path, data__streaming=streaming, data__co_training=[])
    write_robot_data(tmp_path / "arm", rows=12)
    (source,) = recipe.data.robot
    found = []
    for changes in ({}, {"every": 4, "displacements": [0, 1]}, {"every": 4, "displacements": []}):
        one = replace(source, path="arm", **changes)
        opened = open_data(replace(recipe, data=replace(recipe.data, robot=[one])), tmp_path)
        rows = opened.first_rows("robot/tiny", 20)
        found.append((len(rows), opened.norm_stats["tiny"]["num_transitions"], rows[0]["action"][0].tolist()))
    (whole, summed, last) = found
    assert [entry[:2] for entry in found] == [(12, 12), (4, 4), (4, 4)]
    assert summed[2] != last[2] != whole[2]
    assert summed[2][2] == last[2][2], "the gripper is that of the last step"


def test_recipes_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"every\s+Input should be greater than or equal to 1"):
        RobotSource("a", "a", every=0)
    for dims in ([2], [3], [-1]):  # binary, and beyond
        entry = {"path": "robot", "key": "tiny", "every": 2, "displacements": dims}
        with pytest.raises(RecipeError, match=r"\('tiny'\): got displacements with \[-?\d\], expected dim"):
            tiny_recipe(tmp_path, data__robot=[entry])


@pytest.mark.parametrize(
    ("form", "every", "expected"), [("v2.1", 1, "5 Hz"), ("v2.1", 2, "1 step in 2"), ("recording", 2, "1 step in 2")]
)
def test_a_look_at_the_data_says_the_rate(tmp_path: Path, capsys: Any, form: str, every: int, expected: str) -> None:
    folder = write(tmp_path, form, make_episodes(2, 6, size=16))
    code, text, _ = check(folder, capsys, f", every: {every}, displacements: []")
    assert code == 0
    assert expected in text
    assert ("2.5 Hz" in text) == ("of 5 Hz" in text) == (form == "v2.1" and every == 2)


def test_both_kinds_lead_to_the_same_places() -> None:
    """Positions, and the displacements between them, thinned alike: the same places at the same times."""
    moves = np.random.default_rng(0).normal(0, 0.1, (23, 1)).astype(np.float32)
    places = moves.cumsum(axis=0)
    steps = slice(0, 23)
    for every in (2, 5, 23, 40):
        positions = thinned(Trajectory(places, None, steps), every, []).actions
        displacements = thinned(Trajectory(moves, None, steps), every, [0]).actions
        np.testing.assert_allclose(displacements.cumsum(axis=0), positions, atol=1e-6)
