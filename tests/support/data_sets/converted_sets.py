"""Episodes of Bridge and RT-1 in the layouts of their public LeRobot conversions, for `robot_data_sets.write_lerobot`.

Sources: `meta/info.json` of the data sets, and the scripts that wrote them; `docs/reference/robot_data.md` names both.

    raw              observation.state [7], action [7], as Bridge's RLDS data set has them
    openpi           the same under openpi's names, state and actions
    parts            RT-1's action in its three parts, action.world_vector and so on
    openx2lerobot    OpenVLA's transforms applied; state [8]: Bridge's with a pad before the gripper
    split            OpenVLA's transforms applied; action.delta_ee_pos [3], action.delta_ee_rot [3], action.gripper [1]
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from robot_data_sets import Episode, make_episodes

from gen_vla.training.robot_data.transforms import Trajectory, bridge, fractal


Layout = Callable[[Episode], Episode]
SPLIT_ACTION = ["action.delta_ee_pos", "action.delta_ee_rot", "action.gripper"]
SPLIT_STATE = ["state.ee_pos", "state.ee_rot", "state.gripper"]


def bridge_episodes(count: int = 3, length: int = 8) -> list[Episode]:
    """As recorded: the first action is zero, the gripper passes through values between open and closed."""
    episodes = make_episodes(count, length)
    for episode in episodes:
        episode.actions[0] = 0.0
        episode.actions[:, 6] = np.linspace(1.1, -0.1, len(episode.actions)).clip(0, 1)
    return episodes


def fractal_episodes(count: int = 3, length: int = 8) -> list[Episode]:
    """As recorded: the gripper is told to close, later to open, and mostly nothing."""
    episodes = make_episodes(count, length, ("image",))
    for episode in episodes:
        episode.actions[:, 6] = 0.0
        episode.actions[2, 6], episode.actions[5, 6] = 1.0, -1.0
    return episodes


# The layouts are those of the docstring of this file.
def raw(episode: Episode) -> Episode:
    return episode


def openpi(episode: Episode) -> Episode:
    return replace(episode, columns={"state": episode.states, "actions": episode.actions})


def parts(episode: Episode) -> Episode:
    names = ("world_vector", "rotation_delta", "gripper_closedness_action")
    values = np.split(episode.actions, [3, 6], axis=1)
    return replace(episode, columns={f"action.{name}": part for name, part in zip(names, values, strict=True)})


def openx2lerobot(episode: Episode) -> Episode:
    """RT-1's state [8] is position, quaternion and gripper."""
    learned, proprio = transformed(episode)
    pad = np.zeros_like(proprio[:, 6:])
    widened = [proprio[:, :6], pad, proprio[:, 6:]] if is_bridge(episode) else [proprio, proprio[:, 6:]]
    columns = {"observation.state": np.concatenate(widened, axis=1, dtype=np.float32), "action": learned.actions}
    return kept(episode, learned, columns)


def split(episode: Episode) -> Episode:
    learned, proprio = transformed(episode)
    values = [*np.split(proprio, [3, 6], axis=1), *np.split(learned.actions, [3, 6], axis=1)]
    columns = dict(zip([*SPLIT_STATE, *SPLIT_ACTION], values, strict=True))
    shown = replace(episode, pictures={f"video.{camera}": frames for camera, frames in episode.pictures.items()})
    return kept(shown, learned, columns)


def is_bridge(episode: Episode) -> bool:
    """RT-1's camera has another name."""
    return "image" not in episode.pictures


def transformed(episode: Episode) -> tuple[Trajectory, np.ndarray]:
    """OpenVLA's transform of the data set, checked by hand in `test_robot_transforms`, and its proprioception."""
    learned = (bridge if is_bridge(episode) else fractal)(episode.actions, episode.states)
    assert learned.proprio is not None
    return learned, learned.proprio


def kept(episode: Episode, learned: Trajectory, columns: dict[str, np.ndarray]) -> Episode:
    """The steps that a transform kept, with these columns."""
    pictures = {camera: frames[learned.steps] for camera, frames in episode.pictures.items()}
    actions, states = learned.actions, episode.states[learned.steps]
    return replace(episode, actions=actions, states=states, pictures=pictures, columns=columns)
