"""Opening robot data sets of every format, their rows, what is skipped, and that only what is needed is read."""

import pickle

import counting_filesystem
import numpy as np
import pytest
from rlds_data_sets import write_rlds
from robot_data_sets import make_episodes, write_lerobot, write_recording
from robot_rows import FORMATS, grey, places, read_rows, write

from gen_vla.training.mixing.data_source import DataSource
from gen_vla.training.mixing.encoded_pictures import decode_picture
from gen_vla.training.mixing.skipped_rows import RowProblems, TooManyBadRows
from gen_vla.training.robot_data.episodes import (
    RobotDataError,
    RobotEpisode,
    episode_rows,
)
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.robot_data.transforms import Trajectory
from gen_vla.training.robot_data.video_frames import VideoPicture


@pytest.fixture
def counted():
    """A remote file system that counts the bytes fetched of each file, and remote folders on it."""
    filesystem = counting_filesystem.register()

    def open_remote(folder, **settings):
        source = open_robot_source(f"counted://{folder}", key="x", **settings)
        filesystem.fetched.clear()
        return source, filesystem.fetched

    return open_remote


def test_rows_are_the_steps_that_a_transform_kept_and_that_have_an_instruction():
    episode = RobotEpisode(7, "file episode 7", ["a", "b", "", "d", "e"], {}, [[step] for step in range(5)])
    rows = list(episode_rows(episode, Trajectory(np.array([[1.0], [2.0], [3.0]]), None, slice(1, 4)), 2))
    assert [(row["step_index"], row["instruction"], row["images"]) for row in rows] == [(1, "b", [1]), (3, "d", [3])]
    assert [row["action"][:, 0].tolist() for row in rows] == [[1, 2], [3, 3]]
    assert (rows[0]["identity"], rows[0]["episode_index"]) == ("file episode 7 step 1", 7)
    assert list(episode_rows(episode, Trajectory(np.zeros((0, 7)), None, slice(1, 1)), 4)) == []


@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_every_format_are_the_same(tmp_path, form):
    episodes = make_episodes(3, 4)
    source: DataSource = open_robot_source(write(tmp_path, form, episodes), key="mine", horizon=3)
    shards = source.shards()
    rows = list(source.rows(shards))
    assert source.name == "mine"
    assert places(rows) == [(number, step) for number in range(3) for step in range(4 + number)]
    for row in rows:
        episode, step = episodes[row["episode_index"]], row["step_index"]
        assert row["instruction"] == episode.instruction
        chunk = [episode.actions[min(step + ahead, len(episode.actions) - 1)] for ahead in range(3)]
        assert row["action"].dtype == np.float32
        assert np.array_equal(row["action"], chunk)
        assert row["action_is_pad"].tolist() == [step + ahead >= len(episode.actions) for ahead in range(3)]
        assert grey(row["images"][0]) == pytest.approx(40 * row["episode_index"] + 5 * step, abs=1.5)
        assert row["identity"].endswith(f"step {step}")
    identities = [row["identity"] for row in rows]
    assert len(set(identities)) == len(rows)
    assert source.count_rows() == (None if form == "rlds" else len(rows))
    assert len(shards) > 1
    copy = pickle.loads(pickle.dumps(source))  # as sources travel to workers
    assert [row["identity"] for shard in shards for row in copy.rows([shard])] == identities
    assert copy.problems.report()["seen"] == 2 * len(rows)


@pytest.mark.parametrize("form", FORMATS)
def test_undecoded_rows_are_the_same_rows(tmp_path, form):
    rows, source = read_rows(write(tmp_path, form, make_episodes(3, 4)))
    undecoded: DataSource = source.undecoded()
    assert (undecoded.name, undecoded.shards(), undecoded.count_rows()) == ("x", source.shards(), source.count_rows())
    others = list(undecoded.rows(undecoded.shards()))
    assert undecoded.problems.report()["seen"] == 2 * len(rows)
    for row, other in zip(rows, others, strict=True):
        assert isinstance(other["images"][0], VideoPicture) == (form in ("v2.0", "v2.1", "v3.0"))
        assert row["identity"] == other["identity"]
        assert grey(row["images"][0]) == grey(decode_picture(other["images"][0], "x"))


def test_cameras_are_named_and_come_in_the_order_asked(tmp_path):
    episodes = make_episodes(1, 4, ("image_0", "wrist"))
    for path in (write_rlds(tmp_path, episodes), write_lerobot(tmp_path / "lerobot", episodes)):
        pictures = read_rows(path, cameras=["wrist", "image_0"], transform=None)[0][0]["images"]
        assert [round(grey(picture)) for picture in pictures] in ([3, 0], [2, 0])
        with pytest.raises(RobotDataError, match=r"camera 'wirst', expected one of .*image_0, .*wrist"):
            open_robot_source(path, key="x", cameras=["wirst"])


def test_an_action_under_another_name(tmp_path):
    episodes = make_episodes(1, 4, size=16)
    folder = write_lerobot(tmp_path / "set", episodes)
    assert np.array_equal(read_rows(folder, action="observation.state")[0][0]["action"][0], episodes[0].states[0])
    assert read_rows(folder, action=["action", "observation.state"])[0][0]["action"].shape == (1, 14)
    with pytest.raises(RobotDataError, match="expected arm"):
        open_robot_source(folder, key="x", action=["action", "arm"])


@pytest.mark.parametrize("form", ["rlds", "v2.1", "v3.0", "recording"])
def test_chunks_with_nan_are_skipped_and_named(tmp_path, form):
    episodes = make_episodes(3, 4)
    episodes[1].actions[2, 0] = np.nan
    folder = write(tmp_path, form, episodes)
    rows, source = read_rows(folder, horizon=2)
    assert [row["step_index"] for row in rows if row["episode_index"] == 1] == [0, 3, 4]
    assert np.isfinite([row["action"] for row in rows]).all()
    report = source.problems.report()
    assert report["seen"] == len(rows) == 13
    assert report["by_reason"] == {"action that is not finite": 2}
    assert "episode 1 (nan in dimension 0 at step 2): action that is" in report["examples"][0]
    with pytest.raises(TooManyBadRows, match="not finite"):
        read_rows(folder, problems=RowProblems(0.01, minimum_rows=5))


def test_a_last_action_that_is_not_finite_fills_no_chunk(tmp_path):
    episodes = make_episodes(1, 5)
    episodes[0].actions[4, 6] = np.nan
    rows, source = read_rows(write_lerobot(tmp_path / "set", episodes), horizon=3)
    assert [row["step_index"] for row in rows] == [0, 1]
    assert source.problems.report()["skipped"] == 3


def test_a_transform_that_looks_at_neighbours_leaves_out_the_episode(tmp_path):
    episodes = make_episodes(3, 4)
    episodes[1].states[2, 0] = np.nan
    rows, source = read_rows(write_rlds(tmp_path, episodes), transform="bridge")
    assert {row["episode_index"] for row in rows} == {0, 2}
    report = source.problems.report()
    assert report["by_reason"] == {"episode with an action that is not finite": 5}
    assert "episode 1 (nan in dimension 0 at step 1): episode with" in report["examples"][0]


@pytest.mark.parametrize("form", FORMATS)
def test_sets_without_the_split_or_any_instruction(tmp_path, form):
    episodes = make_episodes(2, 4, size=16)
    with pytest.raises(RobotDataError, match=r"got split='test'.*expected"):
        open_robot_source(write(tmp_path / "split", form, episodes), key="x", split="test")
    for episode in episodes:
        episode.instruction = ""
    with pytest.raises(RobotDataError, match="instruction"):
        open_robot_source(write(tmp_path / "empty", form, episodes), key="x")


def test_an_unknown_folder_and_settings_out_of_range(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder at"):
        open_robot_source(tmp_path / "nothing", key="x")
    with pytest.raises(RobotDataError, match=r"LeRobot.*RLDS.*recording"):
        open_robot_source(tmp_path, key="x")
    with pytest.raises(ValueError, match="got horizon=0, expected at least 1"):
        open_robot_source(tmp_path, key="x", horizon=0)
    with pytest.raises(ValueError, match="got every=0, expected at least 1"):
        open_robot_source(tmp_path, key="x", every=0)


def test_of_a_remote_rlds_set_one_shard_is_read(tmp_path, counted):
    source, fetched = counted(write_rlds(tmp_path, make_episodes(6, 5), shards=3))
    rows = list(source.rows(source.shards()[1:2]))
    assert {row["episode_index"] for row in rows} == {2, 3}
    assert set(fetched) == {"bridge_orig-train.tfrecord-00001-of-00003"}


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_of_a_remote_lerobot_set_one_shard_and_camera_is_read(tmp_path, counted, version):
    folder = write_lerobot(tmp_path / "set", make_episodes(3, 5, ("image_0", "wrist")), version)
    source, fetched = counted(folder, cameras=["wrist"])
    assert len(list(source.trajectories(RowProblems()))) == 3
    assert not any(name.endswith(".mp4") for name in fetched), "actions alone need no video"
    fetched.clear()
    rows = list(source.rows(source.shards()[-1:]))
    assert {row["episode_index"] for row in rows} == {2}
    assert grey(rows[0]["images"][0]) == pytest.approx(83, abs=1.5)
    last = "episode_000002" if version == "v2.1" else "file-001"
    assert set(fetched) == {f"{last}.parquet", f"{last}.mp4"}
    (video,) = (path for path in (folder / "videos").rglob(f"{last}.mp4") if "wrist" in str(path))
    assert fetched[f"{last}.mp4"] <= video.stat().st_size + 4096


def test_of_a_long_remote_video_only_a_part_is_fetched(tmp_path, counted):
    episodes = make_episodes(40, 4, size=64)
    random = np.random.default_rng(0)
    for episode in episodes:
        shape = episode.pictures["image_0"].shape
        episode.pictures["image_0"] = random.integers(0, 255, shape, dtype=np.uint8)
    folder = write_lerobot(tmp_path / "set", episodes, "v3.0")
    source, fetched = counted(folder)
    assert len(source.shards()) == 40  # an episode each, of so small a set
    assert next(source.rows(source.shards()[16:17]))["episode_index"] == 16
    size = (folder / "videos/observation.images.image_0/chunk-000/file-000.mp4").stat().st_size
    assert 0 < fetched["file-000.mp4"] < size / 5


def test_a_recording_has_to_be_on_this_machine(tmp_path, counted):
    folder = write_recording(tmp_path / "recording", make_episodes(1, 3, size=16))
    with pytest.raises(RobotDataError, match="on this machine"):
        counted(folder)
