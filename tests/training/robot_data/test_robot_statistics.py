"""Statistics by one pass: exact figures, what is skipped, and the cache."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from rlds_data_sets import write_rlds
from robot_data_sets import (
    Episode,
    edit_episodes,
    edit_info,
    edit_lines,
    edit_rows,
    make_episodes,
    with_column,
    write_lerobot,
)
from robot_rows import FORMATS, write

from gen_vla.processors import compute_statistics
from gen_vla.training.mixing.skipped_rows import RowProblems, TooManyBadRows
from gen_vla.training.robot_data import statistics as robot_data_statistics
from gen_vla.training.robot_data.source import open_robot_source


robot_statistics = robot_data_statistics.robot_statistics


def counting_up(values: list[float], instruction: str = "go") -> Episode:
    """An episode whose actions and states are these values in every dimension."""
    actions = np.repeat(np.array(values, dtype=np.float32)[:, None], 7, axis=1)
    return Episode(instruction, actions, actions + 100, {"image_0": np.zeros((len(values), 16, 16, 3), np.uint8)})


def test_figures_by_hand(tmp_path):
    episodes = [counting_up(list(range(0, 60))), counting_up(list(range(60, 101)), instruction="")]
    source = open_robot_source(write_lerobot(tmp_path / "set", episodes), key="mine")
    statistics = robot_statistics(source)
    action = statistics.entry["action"]
    assert statistics.entry["num_transitions"] == 101
    assert statistics.entry["num_trajectories"] == 2
    assert (action["min"][0], action["q01"][0], action["mean"][0]) == (0.0, 1.0, 50.0)
    assert (action["max"][0], action["q99"][0]) == (100.0, 99.0)
    assert action["std"][0] == pytest.approx(np.sqrt((101**2 - 1) / 12))
    assert action["mask"] == [True] * 6 + [False]
    assert statistics.clipped == [2] * 6 + [0]
    assert statistics.rows == 60  # the other episode is counted, as OpenVLA does, but gives no rows
    assert statistics.entry["proprio"]["q99"][0] == 199.0
    assert set(statistics.entry["proprio"]) == {"mean", "std", "max", "min", "q01", "q99"}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same(tmp_path, form):
    episodes = make_episodes(4, 5)
    source = open_robot_source(write(tmp_path, form, episodes), key="x", transform=None)
    expected = compute_statistics(np.concatenate([episode.actions for episode in episodes]), num_trajectories=4)
    entry = robot_statistics(source).entry
    assert ("proprio" in entry) == (form != "recording")
    assert {name: entry[name] for name in expected} == expected


def test_skipped_episodes_are_reported_and_too_many_stop(tmp_path):
    episodes = make_episodes(3, 5, size=16)
    episodes[1].actions[0] = np.inf
    path = write_rlds(tmp_path, episodes)
    with pytest.raises(TooManyBadRows, match="x: got 6 bad rows"):
        robot_statistics(open_robot_source(path, key="x", transform="fractal"))
    tolerant = open_robot_source(path, key="x", transform="fractal", problems=RowProblems(limit_share=0.5))
    statistics = robot_statistics(tolerant)
    assert statistics.entry["num_trajectories"] == 2
    assert statistics.problems["skipped"] == 6
    assert tolerant.problems.report()["skipped"] == 0  # training counts for itself


def test_steps_that_are_not_finite_are_left_out(tmp_path):
    episodes = make_episodes(3, 5, size=16)
    episodes[1].actions[0, 2] = np.inf
    episodes[2].actions[:] = np.nan
    path, cache = write_rlds(tmp_path, episodes), tmp_path / "kept"
    tolerant = open_robot_source(path, key="x", transform=None, problems=RowProblems(limit_share=0.5))
    statistics = robot_statistics(tolerant, cache)
    expected = compute_statistics(np.concatenate([episodes[0].actions, episodes[1].actions[1:]]), num_trajectories=2)
    assert {name: statistics.entry[name] for name in expected} == expected
    assert statistics.rows == 10
    assert statistics.problems["by_reason"] == {"step with an action that is not finite": 8}
    with pytest.raises(TooManyBadRows, match=r"x: got 8 bad rows among 18, .*inf in dimension 2 at step 0"):
        robot_statistics(open_robot_source(path, key="x", transform=None), cache)  # which a lower limit outdates


def test_figures_are_kept_until_the_files_change(tmp_path, monkeypatch):
    path, cache = write_rlds(tmp_path, make_episodes(3, 5, size=16)), tmp_path / "run"
    source = open_robot_source(path, key="x", transform=None)
    first = robot_statistics(source, cache)
    kept = json.loads((cache / "robot_statistics_x.json").read_text())
    assert kept["entry"] == first.entry
    reread = open_robot_source(path, key="x", transform=None)
    monkeypatch.setattr(reread, "trajectories", lambda problems: pytest.fail("read again"))
    assert robot_statistics(reread, cache) == first
    other = open_robot_source(path, key="x", transform="bridge")
    assert robot_statistics(other, cache).entry["num_transitions"] == 12
    negated = make_episodes(3, 5, size=16)
    for episode in negated:
        episode.actions = -episode.actions  # as many bytes as before
    again = open_robot_source(write_rlds(tmp_path, negated), key="x", transform=None)
    assert again.reader.files() == source.reader.files()
    low = robot_statistics(again, cache).entry["action"]["min"]
    np.testing.assert_allclose(low, [-value for value in first.entry["action"]["max"]])
    changed = open_robot_source(write_rlds(tmp_path, make_episodes(4, 5, size=16)), key="x", transform=None)
    assert robot_statistics(changed, cache).entry["num_trajectories"] == 4


def edit_splits(folder, version, **splits):
    edit_info(folder, splits=splits)


def episodes_removed(folder, version):
    if version == "v3.0":
        edit_episodes(folder, lambda table: table.drop(index=[1, 3]))
    else:
        edit_lines(folder / "meta/episodes.jsonl", lambda lines: lines[::2])


def episodes_shortened(folder, version):
    if version == "v3.0":
        edit_episodes(folder, lambda table: table.assign(length=3))
    else:
        edit_lines(folder / "meta/episodes.jsonl", lambda lines: [{**line, "length": 3} for line in lines])


def tasks_edited(folder, version):
    if version == "v3.0":
        texts = pd.read_parquet(folder / "meta/tasks.parquet").set_axis(["go", "go", "", "stop"])
        texts.to_parquet(folder / "meta/tasks.parquet")
    else:
        edit_lines(folder / "meta/tasks.jsonl", lambda lines: [{**line, "task": "go"} for line in lines])


def actions_edited(folder, version):
    edit_rows(folder, lambda table: with_column(table, "action", table["observation.state"]))


def camera_without_times(folder, version):
    if version == "v3.0":
        name = "videos/observation.images.image_0/from_timestamp"
        edit_episodes(folder, lambda table: table.assign(**{name: table[name].where(table.index != 1, None)}))


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (partial(edit_splits, train="0:1", val="1:4"), {"split": "val"}),
        (partial(edit_splits, train="2:4"), {"split": "train"}),
        (episodes_removed, {}),
        (episodes_shortened, {}),
        (tasks_edited, {}),
        (actions_edited, {}),
        (None, {"action": ["observation.state"], "state": ["action"]}),
        (None, {"action": ["action", "observation.state"]}),
        (None, {"every": 2, "displacements": [0, 1]}),
        (camera_without_times, {}),
    ],
)
def test_kept_figures_are_never_those_of_other_rows(tmp_path, version, change, settings):
    folder, cache = write_lerobot(tmp_path / "set", make_episodes(4, 5, size=16), version), tmp_path / "kept"

    def opened(**settings):
        return open_robot_source(folder, key="x", problems=RowProblems(limit_share=1.0), **settings)

    edit_info(folder, splits={"train": "0:1"})
    first = robot_statistics(opened(split="train" if "split" in settings else None), cache)
    if change:
        change(folder, version)
    fresh = robot_statistics(opened(**settings))
    assert robot_statistics(opened(**settings), cache) == fresh
    assert (fresh == first) == (change is camera_without_times and version == "v2.1")
    again = opened(**settings)
    again.trajectories = lambda problems: pytest.fail("read again")  # type: ignore[method-assign]
    assert robot_statistics(again, cache) == fresh


def test_kept_figures_know_what_actions_are_scaled_by(tmp_path):
    source = open_robot_source(write_lerobot(tmp_path / "set", make_episodes(2)), key="x")
    plain, scaled = (robot_statistics(source, tmp_path, normalization=mode) for mode in ("quantiles", "min_max"))
    assert sum(plain.clipped) > sum(scaled.clipped) == 0
    assert scaled.entry["action"]["normalization"] == ["min_max"] * 7
    assert "normalization" not in robot_statistics(source, tmp_path).entry["action"]


def test_dimensions_that_stay_as_they_are(tmp_path):
    source = open_robot_source(write_rlds(tmp_path, make_episodes(2, 5, size=16)), key="x", transform=None)
    for unscaled, others in ((None, [6]), ([0, 6], [0, 6]), ([], [])):
        statistics = robot_statistics(source, tmp_path / "run", unscaled=unscaled)
        assert statistics.entry["action"]["mask"] == [dim not in others for dim in range(7)]
        assert all(statistics.clipped[dim] == 0 for dim in others)


def test_the_bridge_transform_is_applied(tmp_path):
    source = open_robot_source(write_rlds(tmp_path, [counting_up([0.0, 0.01, 0.03, 0.06, 1.0])]), key="bridge_orig")
    action = robot_statistics(source).entry["action"]
    assert action["min"][0] == pytest.approx(0.02, abs=1e-5)
    assert action["max"][0] == pytest.approx(0.94, abs=1e-5)
    assert action["max"][6] == 1.0
