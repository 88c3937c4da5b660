"""Opening robot data sets of every format, their rows, what is skipped, and that only what is needed is read."""

import io
import pickle
from pathlib import Path
from typing import Any

import counting_filesystem
import numpy as np
import pytest
from PIL import Image
from rlds_data_sets import write_rlds
from robot_data_sets import Episode, make_episodes, write_lerobot, write_recording

from gen_vla.training.mixing.data_source import DataSource
from gen_vla.training.mixing.encoded_pictures import decode_picture
from gen_vla.training.mixing.skipped_rows import RowProblems, TooManyBadRows
from gen_vla.training.robot_data.episodes import EmptyRobotDataError, RobotDataError
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.robot_data.video_frames import VideoPicture


FORMATS = ("rlds", "v2.0", "v2.1", "v3.0", "recording")


def write(folder: Path, form: str, episodes: list[Episode]) -> Path:
    if form == "rlds":
        return write_rlds(folder, episodes, name="mine", shards=2)
    if form == "recording":
        return write_recording(folder / "recording", episodes)
    return write_lerobot(folder / "lerobot", episodes, form)


def grey(picture: Any) -> float:
    opened = Image.open(io.BytesIO(picture["bytes"])) if isinstance(picture, dict) else picture
    return float(np.asarray(opened.convert("RGB")).mean())


@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_every_format_are_the_same(tmp_path, form):
    episodes = make_episodes(3, 4)
    source: DataSource = open_robot_source(write(tmp_path, form, episodes), key="mine", horizon=3)
    rows = list(source.rows(source.shards()))
    assert source.name == "mine"
    assert [(row["episode_index"], row["step_index"]) for row in rows] == [
        (number, step) for number in range(3) for step in range(4 + number)
    ]
    for row in rows:
        episode, step = episodes[row["episode_index"]], row["step_index"]
        assert row["instruction"] == episode.instruction
        chunk = [episode.actions[min(step + ahead, len(episode.actions) - 1)] for ahead in range(3)]
        assert row["action"].dtype == np.float32
        assert np.array_equal(row["action"], chunk)
        assert row["action_is_pad"].tolist() == [step + ahead >= len(episode.actions) for ahead in range(3)]
        assert grey(row["images"][0]) == pytest.approx(40 * row["episode_index"] + 5 * step, abs=1.5)
        assert row["identity"].endswith(f"step {step}")
    assert len({row["identity"] for row in rows}) == len(rows)
    assert source.count_rows() == (None if form == "rlds" else len(rows))


@pytest.mark.parametrize("form", FORMATS)
def test_shards_divide_the_rows_and_sources_travel_to_workers(tmp_path, form):
    source = open_robot_source(write(tmp_path, form, make_episodes(3, 4)), key="mine")
    shards = source.shards()
    assert len(shards) > 1
    whole = [row["identity"] for row in source.rows(shards)]
    copy = pickle.loads(pickle.dumps(source))
    assert [row["identity"] for shard in shards for row in copy.rows([shard])] == whole
    assert copy.problems.report()["seen"] == 2 * len(whole)


@pytest.mark.parametrize("form", FORMATS)
def test_undecoded_rows_are_the_same_rows(tmp_path, form):
    source = open_robot_source(write(tmp_path, form, make_episodes(3, 4)), key="mine")
    undecoded: DataSource = source.undecoded()
    assert (undecoded.name, undecoded.shards(), undecoded.count_rows()) == (
        "mine",
        source.shards(),
        source.count_rows(),
    )
    rows, others = list(source.rows(source.shards())), list(undecoded.rows(undecoded.shards()))
    assert undecoded.problems.report()["seen"] == 2 * len(rows)
    for row, other in zip(rows, others, strict=True):
        assert isinstance(other["images"][0], VideoPicture) == (form in ("v2.0", "v2.1", "v3.0"))
        assert row["identity"] == other["identity"]
        assert grey(row["images"][0]) == grey(decode_picture(other["images"][0], "x"))


def test_cameras_are_named_and_come_in_the_order_asked(tmp_path):
    episodes = make_episodes(1, 4, ("image_0", "wrist"))
    for path in (write_rlds(tmp_path, episodes), write_lerobot(tmp_path / "lerobot", episodes)):
        source = open_robot_source(path, key="x", cameras=["wrist", "image_0"], transform=None)
        pictures = next(source.rows(source.shards()))["images"]
        assert [round(grey(picture)) for picture in pictures] in ([3, 0], [2, 0])
        with pytest.raises(RobotDataError, match=r"camera 'wirst', expected one of .*image_0, .*wrist"):
            open_robot_source(path, key="x", cameras=["wirst"])


def test_the_transform_is_chosen_by_the_data_sets_name(tmp_path):
    episodes = make_episodes(2, 5, size=16)
    assert open_robot_source(write_rlds(tmp_path, episodes), key="x").transform.name == "bridge"
    fractal = open_robot_source(write_rlds(tmp_path, episodes, name="fractal20220817_data"), key="x")
    assert fractal.transform.name == "fractal"
    assert fractal.cameras == ["observation/image"]
    assert open_robot_source(write_lerobot(tmp_path / "set", episodes), key="x").transform.name == "identity"


def test_a_data_set_without_a_plain_action_needs_its_transform(tmp_path):
    folder = write_rlds(tmp_path, make_episodes(1, 4, size=16), name="fractal20220817_data")
    with pytest.raises(RobotDataError, match=r"action/world_vector.*expected action for the identity transform"):
        open_robot_source(folder, key="x", transform=None)


def test_an_action_under_another_name(tmp_path):
    episodes = make_episodes(1, 4, size=16)
    source = open_robot_source(write_lerobot(tmp_path / "set", episodes), key="x", action="observation.state")
    row = next(source.rows(source.shards()))
    assert np.array_equal(row["action"][0], episodes[0].states[0])
    with pytest.raises(RobotDataError, match="expected arm"):
        open_robot_source(tmp_path / "set", key="x", action=["action", "arm"])
    both = open_robot_source(tmp_path / "set", key="x", action=["action", "observation.state"])
    assert next(both.rows(both.shards()))["action"].shape == (1, 14)


@pytest.mark.parametrize("form", ["rlds", "v2.1", "v3.0", "recording"])
def test_chunks_with_nan_are_skipped_and_named(tmp_path, form):
    episodes = make_episodes(3, 4)
    episodes[1].actions[2, 0] = np.nan
    problems = RowProblems(limit_share=0.5)
    source = open_robot_source(write(tmp_path, form, episodes), key="mine", horizon=2, problems=problems)
    rows = list(source.rows(source.shards()))
    assert [row["step_index"] for row in rows if row["episode_index"] == 1] == [0, 3, 4]
    assert np.isfinite([row["action"] for row in rows]).all()
    report = problems.report()
    assert report["seen"] == len(rows) == 13
    assert report["by_reason"] == {"action that is not finite": 2}
    assert "episode 1 (nan in dimension 0 at step 2): action that is" in report["examples"][0]
    strict = open_robot_source(source.reader.folder.path, key="mine", problems=RowProblems(0.01, minimum_rows=5))  # type: ignore[attr-defined]
    with pytest.raises(TooManyBadRows, match="not finite"):
        list(strict.rows(strict.shards()))


def test_a_last_action_that_is_not_finite_fills_no_chunk(tmp_path):
    episodes = make_episodes(1, 5)
    episodes[0].actions[4, 6] = np.nan
    source = open_robot_source(write_lerobot(tmp_path / "set", episodes), key="x", horizon=3)
    source.problems = RowProblems(limit_share=1.0)
    assert [row["step_index"] for row in source.undecoded().rows(source.shards())] == [0, 1]
    assert source.problems.report()["skipped"] == 3


def test_a_transform_that_looks_at_neighbours_leaves_out_the_episode(tmp_path):
    episodes = make_episodes(3, 4)
    episodes[1].states[2, 0] = np.nan
    problems = RowProblems(limit_share=0.5)
    source = open_robot_source(write_rlds(tmp_path, episodes), key="x", transform="bridge", problems=problems)
    assert {row["episode_index"] for row in source.rows(source.shards())} == {0, 2}
    assert problems.report()["by_reason"] == {"episode with an action that is not finite": 5}
    assert "episode 1 (nan in dimension 0 at step 1): episode with" in problems.report()["examples"][0]


def test_unlabelled_episodes_are_passed_over(tmp_path):
    episodes = make_episodes(3, 4, size=16)
    episodes[1].instruction = " "
    for path in (write_rlds(tmp_path, episodes), write_lerobot(tmp_path / "set", episodes)):
        source = open_robot_source(path, key="x", transform=None)
        assert {row["episode_index"] for row in source.rows(source.shards())} == {0, 2}
        assert source.count_rows() in (None, 10)
        assert source.problems.report()["skipped"] == 0


@pytest.mark.parametrize("form", FORMATS)
def test_a_set_without_any_instruction_is_empty(tmp_path, form):
    episodes = make_episodes(2, 4, size=16)
    for episode in episodes:
        episode.instruction = ""
    with pytest.raises(EmptyRobotDataError, match="instruction"):
        open_robot_source(write(tmp_path, form, episodes), key="x")


def test_an_unknown_folder_and_settings_out_of_range(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder at"):
        open_robot_source(tmp_path / "nothing", key="x")
    with pytest.raises(RobotDataError, match=r"LeRobot.*RLDS.*recording"):
        open_robot_source(tmp_path, key="x")
    with pytest.raises(ValueError, match="horizon=0"):
        open_robot_source(tmp_path, key="x", horizon=0)


@pytest.mark.parametrize("form", FORMATS)
def test_an_unknown_split_is_refused(tmp_path, form):
    with pytest.raises(RobotDataError, match=r"got split='test'.*expected"):
        open_robot_source(write(tmp_path, form, make_episodes(2, 4, size=16)), key="x", split="test")


def test_of_a_remote_rlds_set_one_shard_is_read(tmp_path):
    filesystem = counting_filesystem.register()
    folder = write_rlds(tmp_path, make_episodes(6, 5), shards=3)
    source = open_robot_source(f"counted://{folder}", key="x")
    filesystem.fetched.clear()
    rows = list(source.rows(source.shards()[1:2]))
    assert {row["episode_index"] for row in rows} == {2, 3}
    assert set(filesystem.fetched) == {"bridge_orig-train.tfrecord-00001-of-00003"}


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_of_a_remote_lerobot_set_one_shard_and_camera_is_read(tmp_path, version):
    filesystem = counting_filesystem.register()
    folder = write_lerobot(tmp_path / "set", make_episodes(3, 5, ("image_0", "wrist")), version)
    source = open_robot_source(f"counted://{folder}", key="x", cameras=["wrist"])
    filesystem.fetched.clear()
    rows = list(source.rows(source.shards()[-1:]))
    assert {row["episode_index"] for row in rows} == {2}
    assert grey(rows[0]["images"][0]) == pytest.approx(83, abs=1.5)
    last = "episode_000002" if version == "v2.1" else "file-001"
    assert set(filesystem.fetched) == {f"{last}.parquet", f"{last}.mp4"}
    assert filesystem.fetched[f"{last}.mp4"] <= (folder / _video(version, last)).stat().st_size + 4096


def _video(version: str, last: str) -> str:
    camera = "observation.images.wrist"
    return f"videos/chunk-000/{camera}/{last}.mp4" if version == "v2.1" else f"videos/{camera}/chunk-000/{last}.mp4"


def test_of_a_long_remote_video_only_a_part_is_fetched(tmp_path):
    filesystem = counting_filesystem.register()
    episodes = make_episodes(40, 4, size=64)
    random = np.random.default_rng(0)
    for episode in episodes:
        noise = random.integers(0, 255, episode.pictures["image_0"].shape, dtype=np.uint8)
        episode.pictures["image_0"] = noise
    folder = write_lerobot(tmp_path / "set", episodes, "v3.0")
    source = open_robot_source(f"counted://{folder}", key="x")
    assert len(source.shards()) == 4  # 16 + 16 + 7 episodes of the first file, and the last one's own
    filesystem.fetched.clear()
    first_of_second = next(source.rows(source.shards()[1:2]))
    assert first_of_second["episode_index"] == 16
    size = (folder / "videos/observation.images.image_0/chunk-000/file-000.mp4").stat().st_size
    assert 0 < filesystem.fetched["file-000.mp4"] < size / 5


def test_statistics_of_a_remote_lerobot_set_read_no_video(tmp_path):
    filesystem = counting_filesystem.register()
    folder = write_lerobot(tmp_path / "set", make_episodes(3, 5), "v3.0")
    source = open_robot_source(f"counted://{folder}", key="x")
    filesystem.fetched.clear()
    assert len(list(source.trajectories(RowProblems()))) == 3
    assert not any(name.endswith(".mp4") for name in filesystem.fetched)


def test_a_recording_has_to_be_on_this_machine(tmp_path):
    counting_filesystem.register()
    folder = write_recording(tmp_path / "recording", make_episodes(1, 3, size=16))
    with pytest.raises(RobotDataError, match="on this machine"):
        open_robot_source(f"counted://{folder}", key="x")
