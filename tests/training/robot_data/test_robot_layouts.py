"""Public LeRobot conversions of Bridge and RT-1 give the RLDS data sets' rows, or an error that says why not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted_sets import (
    SPLIT_ACTION,
    SPLIT_STATE,
    Layout,
    bridge_episodes,
    fractal_episodes,
    openpi,
    openx2lerobot,
    parts,
    raw,
    split,
)
from rlds_data_sets import write_rlds
from robot_data_sets import make_episodes, write_lerobot
from robot_rows import grey, read_rows
from table_data import mini_recipe, write_table_data

from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.layouts import LOOKED_AT, check_layout
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.robot_data.transforms import RobotTransform


def shade(row: dict[str, Any]) -> int:
    """Which step of which episode the picture shows."""
    return round(grey(row["images"][0]) / 5)


SPLIT: dict[str, Any] = {"action": SPLIT_ACTION, "state": SPLIT_STATE}
BRIDGE: list[tuple[Layout, dict[str, Any]]] = [
    (raw, {"transform": "bridge"}),
    (openpi, {"transform": "bridge"}),
    (openx2lerobot, {}),
    (openx2lerobot, {"transform": None}),
    (split, SPLIT),
]
FRACTAL: list[tuple[Layout, dict[str, Any]]] = [
    (raw, {"transform": "fractal"}),
    (openpi, {"transform": "fractal"}),
    (parts, {"transform": "fractal"}),
    (openx2lerobot, {}),
    (split, SPLIT),
]


@pytest.mark.parametrize(
    ("version", "name", "layout", "settings"),
    [
        *((version, "bridge_orig", *case) for version in ("v2.0", "v3.0") for case in BRIDGE),
        *(("v2.1", "fractal20220817_data", *case) for case in FRACTAL),
    ],
)
def test_every_layout_gives_the_rows_of_the_rlds_set(tmp_path, version, name, layout, settings):
    bridge = name == "bridge_orig"
    episodes = bridge_episodes() if bridge else fractal_episodes()
    expected, _ = read_rows(write_rlds(tmp_path / "rlds", episodes, name), horizon=2)
    folder = write_lerobot(tmp_path / f"{name}_lerobot", [layout(episode) for episode in episodes], version)
    rows, _ = read_rows(folder, horizon=2, **settings)
    # 8, 9 and 10 steps, of which Bridge's transform leaves two less.
    assert len(rows) == len(expected) == (21 if bridge else 27)
    for row, other in zip(rows, expected, strict=True):
        assert np.array_equal(row["action"], other["action"])
        assert np.array_equal(row["action_is_pad"], other["action_is_pad"])
        assert row["instruction"] == other["instruction"]
        assert shade(row) == 8 * other["episode_index"] + other["step_index"]
    grippers = [row["action"][0, 6] for row in rows]
    assert set(grippers) == {0.0, 1.0}
    assert bridge or grippers[:8] == [1, 1, 0, 0, 0, 1, 1, 1]


def test_a_transform_is_not_applied_twice(tmp_path: Path) -> None:
    bridge = write_lerobot(tmp_path / "bridge", [openx2lerobot(episode) for episode in bridge_episodes()])
    with pytest.raises(RobotDataError, match=r"moves are the differences of its states.*set transform: null"):
        open_robot_source(bridge, key="x", transform="bridge")
    fractal = write_lerobot(tmp_path / "fractal", [openx2lerobot(episode) for episode in fractal_episodes()])
    with pytest.raises(RobotDataError, match=r"gripper is 1 or 0 and begins with 1.*set transform: null"):
        open_robot_source(fractal, key="x", transform="fractal")


def test_a_transform_is_not_missed_unless_the_recipe_says_so(tmp_path: Path) -> None:
    bridge = write_lerobot(tmp_path / "Bridge_v2_lerobot", bridge_episodes())
    with pytest.raises(RobotDataError, match=r"moves are not the differences.*set transform: bridge to apply it"):
        open_robot_source(bridge, key="x")
    assert np.array_equal(read_rows(bridge, transform=None)[0][1]["action"][0], bridge_episodes()[0].actions[1])
    fractal = write_lerobot(tmp_path / "fractal_lerobot", fractal_episodes())
    with pytest.raises(RobotDataError, match=r"gripper takes values below 0.*set transform: fractal to apply it"):
        open_robot_source(fractal, key="x")
    other = write_lerobot(tmp_path / "my_widowx", bridge_episodes())
    assert open_robot_source(other, key="x").transform.name == "identity"


def test_a_state_or_action_of_another_form_is_refused(tmp_path: Path) -> None:
    episodes = bridge_episodes(1)
    episodes[0].columns = {"observation.state": episodes[0].states[:, :6], "action": episodes[0].actions}
    joints = write_lerobot(tmp_path / "joints", episodes)
    with pytest.raises(RobotDataError, match=r"state of 6 \(observation.state\), expected for the bridge.*7"):
        open_robot_source(joints, key="x", transform="bridge")
    episodes[0].columns = {"action": np.concatenate([episodes[0].actions] * 2, axis=1)}
    with pytest.raises(RobotDataError, match=r"action of 14 values \(action\), expected for the fractal transform"):
        open_robot_source(write_lerobot(tmp_path / "arms", episodes), key="x", transform="fractal")
    with pytest.raises(RobotDataError, match=r"expected observation.state for the bridge transform; .* `state`"):
        open_robot_source(tmp_path / "arms", key="x", transform="bridge")
    episodes[0].columns = {"action.cartesian": episodes[0].actions, "observation.cartesian": episodes[0].states}
    poses = write_lerobot(tmp_path / "poses", episodes)
    with pytest.raises(RobotDataError, match=r"features action.cartesian, .*expected action for the identity transf"):
        open_robot_source(poses, key="x")


def test_only_the_first_episodes_are_looked_at_and_none_without_need() -> None:
    steps = ({"action": np.ones((3, 7)), "state": np.zeros((3, 7))} for _ in range(20))
    transform = RobotTransform("identity", ("action",), ("state",))
    check_layout(transform, steps, "my_robot", "here", named=False)
    check_layout(transform, steps, "bridge", "here", named=True)
    assert len(list(steps)) == 20
    again = iter([{"action": np.ones((3, 7)), "state": np.zeros((3, 7))}] * 20)
    check_layout(transform, again, "bridge", "here", named=False)  # an arm that stands still proves nothing
    assert len(list(again)) == 20 - LOOKED_AT


def test_the_main_camera_is_found_under_other_prefixes(tmp_path: Path) -> None:
    for number, main in enumerate(("video.image_0", "observation.images.primary", "left.image")):
        folder = write_lerobot(tmp_path / str(number), make_episodes(1, 4, ("wrist", main)))
        assert open_robot_source(folder, key="x").cameras == [main]


def test_a_recipe_names_transform_and_features(tmp_path: Path) -> None:
    write_table_data(tmp_path)
    write_lerobot(tmp_path / "raw", bridge_episodes())
    write_lerobot(tmp_path / "split", [split(episode) for episode in bridge_episodes()])
    raw_settings = {"data__robot__0__path": "raw", "data__robot__0__transform": "bridge"}
    from_raw = open_data(mini_recipe("openvla_plus_bridge", **raw_settings), tmp_path)
    named = {"path": "split", "action": SPLIT_ACTION, "state": SPLIT_STATE, "displacements": list(range(6))}
    settings = {f"data__robot__0__{name}": value for name, value in named.items()}
    from_split = open_data(mini_recipe("openvla_plus_bridge", **settings), tmp_path)
    entries = [opened.norm_stats["bridge_orig"]["action"] for opened in (from_raw, from_split)]
    assert entries[0] == entries[1]
    assert load_recipe("openvla_plus_bridge").data.robot[0].action is None
