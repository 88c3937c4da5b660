"""Action chunks at an episode's end, and rows of a transformed episode."""

import numpy as np

from gen_vla.training.robot_data.episodes import RobotEpisode, action_chunks, episode_rows
from gen_vla.training.robot_data.transforms import Trajectory


def test_chunks_repeat_the_last_action():
    chunks, past = action_chunks(np.array([[0.0], [1.0], [2.0]]), 2)
    assert chunks[:, :, 0].tolist() == [[0, 1], [1, 2], [2, 2]]
    assert past.tolist() == [[False, False], [False, False], [False, True]]
    assert chunks.dtype == np.float32


def test_a_horizon_longer_than_the_episode():
    chunks, past = action_chunks(np.array([[5.0]]), 3)
    assert chunks[:, :, 0].tolist() == [[5, 5, 5]]
    assert past.tolist() == [[False, True, True]]


def test_rows_are_the_steps_that_a_transform_kept_and_that_have_an_instruction():
    texts = ["a", "b", "", "d", "e"]
    episode = RobotEpisode(7, "file episode 7", texts, {}, [[step] for step in range(5)])
    trajectory = Trajectory(np.array([[1.0], [2.0], [3.0]]), None, slice(1, 4))
    rows = list(episode_rows(episode, trajectory, 2))
    assert [(row["step_index"], row["instruction"], row["images"]) for row in rows] == [(1, "b", [1]), (3, "d", [3])]
    assert [row["action"][:, 0].tolist() for row in rows] == [[1, 2], [3, 3]]
    assert rows[0]["identity"] == "file episode 7 step 1"
    assert rows[0]["episode_index"] == 7


def test_an_episode_that_a_transform_left_nothing_of():
    episode = RobotEpisode(0, "x", ["a"], {}, [[0]])
    assert list(episode_rows(episode, Trajectory(np.zeros((0, 7)), None, slice(1, 1)), 4)) == []
