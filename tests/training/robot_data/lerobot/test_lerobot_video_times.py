"""Times of episodes in videos and of rows: what is one frame off is skipped and named, never learned."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from robot_data_sets import (
    FPS,
    edit_episodes,
    edit_info,
    edit_lines,
    edit_rows,
    make_episodes,
    with_column,
    write_lerobot,
    write_video,
)
from robot_rows import check, greys, read_rows

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.lerobot.metadata import EpisodePlace, VideoPlace
from gen_vla.training.robot_data.lerobot.video_times import check_row_times, misplaced_episodes
from gen_vla.training.robot_data.source import open_robot_source


CAMERA = "observation.images.image_0"
FROM, TO = f"videos/{CAMERA}/from_timestamp", f"videos/{CAMERA}/to_timestamp"


def shown(folder: Path, **settings) -> tuple[dict[int, list[int]], dict]:
    """Greys of the rows by episode, all of which must be the row's own (neighbours differ by 5), and the problems."""
    rows, dataset = read_rows(folder, **settings)
    found = greys(rows)
    for row in rows:
        expected = 40 * row["episode_index"] + 5 * row["step_index"]
        assert abs(greys([row])[row["episode_index"]][0] - expected) < 2.5
    return found, dataset.problems.report()


def write_times(folder: Path, times) -> None:
    """Sets the column timestamp of every data file, float32; `times` takes the table."""
    edit_rows(folder, lambda t: with_column(t, "timestamp", pa.array(np.float32(times(t)))))


def shorten(folder: Path, steps: int) -> None:
    """Takes steps off the lengths in the metadata."""
    path = folder / "meta/episodes.jsonl"
    edit_lines(path, lambda lines: [{**line, "length": line["length"] - steps} for line in lines])


@pytest.mark.parametrize("frames", [-3, -1, -0.5, -0.3, 0, 0.1, 0.3, 0.5, 0.74, 0.8, 1, 2, 7])
@pytest.mark.parametrize("columns", [(FROM,), (FROM, TO)])
def test_a_time_that_is_off_shows_no_frame_of_a_neighbour(tmp_path, frames, columns):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 6), "v3.0")

    def drift(table):
        for column in columns:
            table.loc[1:2, column] += frames / FPS
        return table

    edit_episodes(folder, drift)
    found, report = shown(folder)
    assert [len(found[number]) for number in (0, 3)] == [6, 9], "which are right"
    if abs(frames) < 0.25:
        assert len(found) == 4
    else:
        assert report["skipped"] >= 7
        assert "times cannot be right" in str(report["by_reason"])
        assert f"from_timestamp and to_timestamp of videos/{CAMERA}" in report["examples"][0]


def test_a_time_that_is_off_stops_a_run_and_its_check_and_is_not_counted(tmp_path, capsys):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 6), "v3.0")
    edit_episodes(folder, lambda table: table.assign(**{FROM: table[FROM] + [0, 0.2, 0, 0]}))
    code, _, errors = check(folder, capsys)
    assert code == 2
    assert "got 7 bad rows among 30" in errors
    assert "episode 1 (got from_timestamp and to_timestamp of videos/observation.images.image_0 in meta/epi" in errors
    assert "it begins at 1.400 s, and what is before ends at 1.200 s" in errors
    rows, dataset = read_rows(folder)
    assert dataset.count_rows() == 30 - 7 == len(rows)


def episodes_of(*numbers: tuple[int, int, float, float | None]) -> list[EpisodePlace]:
    """Episodes of one file: number, length, start and end in frames at one frame a second."""
    return [EpisodePlace(n, length, True, "d", {"c": VideoPlace("v", s, e)}) for n, length, s, e in numbers]


@pytest.mark.parametrize(
    ("episodes", "seconds", "wrong"),
    [
        (episodes_of((0, 3, 0, 3), (1, 2, 3, 5)), 5, []),
        (episodes_of((0, 3, 0, None), (1, 2, 3, None)), 5, []),
        (episodes_of((1, 2, 3, 5)), None, []),  # whatever was before was taken out
        (episodes_of((0, 3, 0, 3), (2, 2, 5, 7)), 7, []),
        (episodes_of((0, 3, 1, 4), (1, 2, 4, 6)), 6, [0, 1]),  # nothing is before the first
        (episodes_of((0, 3, -1, 2), (1, 2, 2, 4)), 4, [0, 1]),
        (episodes_of((0, 3, 0, 3), (1, 2, 4, 6)), 6, [1]),
        (episodes_of((0, 3, 0, 3), (1, 2, 2, 4)), 4, [1]),
        (episodes_of((0, 3, 0, 3), (1, 2, 4, 5), (2, 2, 5, 7)), 7, [1]),
        (episodes_of((0, 3, 0, 3), (1, 2, 4, 6), (2, 2, 6, 8)), 8, [1, 2]),  # both one late
        (episodes_of((0, 3, 0, 3), (1, 3, 3, 5)), 5, [1]),  # more rows than frames
        (episodes_of((0, 3, 0, 4), (1, 2, 4, 7)), 7, []),  # videos of a frame more than rows, converted
        (episodes_of((0, 3, 0, 4), (1, 2, 4, 7)), 5, [0, 1]),  # which the video does not have
        (episodes_of((0, 30, 0, 30.1), (1, 30, 30.1, 60.2), (2, 30, 60.2, 90.3)), 90.3, []),
        (episodes_of(*((n, 9, 9.1 * n, 9.1 * n + 9.1) for n in range(20))), 180, list(range(20))),  # 2 frames of drift
        (episodes_of((0, 9, 0, 9), (1, 9, 9, 18)), 20, [0, 1]),  # two frames that no place counts
        (episodes_of((0, 9, 0, 9), (1, 9, 9, 18)), 17, []),  # cut off: rows that lack a frame are skipped
        (episodes_of((0, 9, 0, 9), (1, 9, 9, 18)), 40, []),  # a third episode was taken out
    ],
)
def test_lengths_rates_and_neighbours_tell(episodes, seconds, wrong):
    assert sorted(misplaced_episodes(episodes, "c", 1.0, lambda name: seconds)) == wrong


@pytest.mark.parametrize("column", ["chunk_index", "file_index", "from_timestamp"])
def test_numbers_that_are_missing(tmp_path, column):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 6, ("image_0", "wrist")), "v3.0")
    name = f"videos/{CAMERA}/{column}"
    edit_episodes(folder, lambda t: t.assign(**{name: t[name].astype(object).where(t.index != 1, None)}))
    found, report = shown(folder, cameras=["image_0"])
    assert (sorted(found), report["skipped"]) == ([0, 2, 3], 7)
    assert f"of videos/{CAMERA} is null in meta/episodes" in report["examples"][0]
    edit_episodes(folder, lambda table: table.assign(**{name: np.nan}))
    with pytest.raises(RobotDataError, match=rf"lacks, for every episode, one of .*videos/{CAMERA}/{column}"):
        open_robot_source(folder, key="x")
    rows, dataset = read_rows(folder, cameras=["wrist"])  # which has all its numbers
    assert (len(rows), dataset.problems.report()["skipped"]) == (30, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first": 1}, f"whose first frame is at {1 / FPS:.3f} s, expected it at 0 s"),
        ({"first": 3}, f"whose first frame is at {3 / FPS:.3f} s, expected it at 0 s"),
        ({"fps": 2 * FPS}, "of 10 frames a second and 0.600 s, expected 5 (fps of the data set) for 1.200 s"),
    ],
)
def test_a_video_that_begins_late_or_has_another_rate(tmp_path, settings, message):
    episodes = make_episodes(2, 6)
    folder = write_lerobot(tmp_path / "set", episodes, "v2.1")
    paths = [folder / f"videos/chunk-000/{CAMERA}/episode_{number:06d}.mp4" for number in range(2)]
    for path, episode in zip(paths, episodes):
        write_video(path, episode.pictures["image_0"], **settings)
    found, report = shown(folder)
    assert found == {}
    assert message in report["examples"][0]
    if "fps" in settings:  # twice the frames: those at the rows' times are right
        for path, episode in zip(paths, episodes):
            write_video(path, np.repeat(episode.pictures["image_0"], 2, axis=0), **settings)
        assert shown(folder)[1]["skipped"] == 0


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (np.zeros(6), "timestamp 0.000 at row 0 and 0.000 at the next"),
        (np.arange(6)[::-1] / FPS, "timestamp 1.000 at row 0 and 0.800 at the next"),
        (np.array([0, 0.2, 0.2, 0.6, 0.8, 1.0]), "timestamp 0.200 at row 1 and 0.200 at the next"),
        (np.array([0, 0.2, np.nan, 0.6, 0.8, 1.0]), "values that are no number"),
        (np.arange(6) / 10, "rows 0.100 s apart by their timestamp, expected rows 0.200 s apart, as fps=5"),
        (np.arange(6) * 200.0, "rows 200.000 s apart"),
    ],
)
def test_times_of_rows_that_cannot_be_right(tmp_path, capsys, times, message):
    folder = write_lerobot(tmp_path / "set", make_episodes(1, 6), "v2.1")
    write_times(folder, lambda table: times)
    with pytest.raises(RobotDataError, match=r"episode_000000\.parquet episode 0"):
        open_robot_source(folder, key="x")
    code, _, errors = check(folder, capsys)
    assert code == 2
    assert message in errors


@pytest.mark.parametrize("times", [np.arange(6) / FPS + 0.03, np.array([0, 0.21, 0.39, 0.61, 1.0, 1.2]), np.zeros(1)])
def test_clocks_that_are_uneven_are_none(times):
    check_row_times(times, FPS)


def test_pictures_need_no_times_but_rows_in_order(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 6, size=8), "v2.1", "image")
    write_times(folder, lambda table: np.zeros(len(table)))
    assert len(read_rows(folder)[0]) == 13
    write_times(folder, lambda table: np.arange(len(table))[::-1] / FPS)
    with pytest.raises(RobotDataError, match="expected rows in the order of time; sort them"):
        open_robot_source(folder, key="x")


@pytest.mark.parametrize("fps", [None, 0, "unknown", float("nan")])
def test_a_rate_that_is_none(tmp_path, fps):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 6, size=16), "v2.1", "image")
    edit_info(folder, fps=fps)
    rows, dataset = read_rows(folder)
    assert (dataset.hertz, len(rows)) == (None, 13)
    folder = write_lerobot(tmp_path / "videos", make_episodes(2, 6), "v2.1")
    edit_info(folder, fps=fps)
    with pytest.raises(RobotDataError, match=r"meta/info.json without a number of frames a second as fps"):
        open_robot_source(folder, key="x")


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize(("late", "of_file"), [(1 / FPS, 0.0), (-1 / FPS, 0.0), (0.0, 3.0)])
def test_times_of_rows_that_do_not_begin_at_0(tmp_path, version, late, of_file):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 6), version)
    write_times(folder, lambda t: np.asarray(t["timestamp"]) + late + of_file * np.asarray(t["episode_index"]))
    found, report = shown(folder)
    assert sum(map(len, found.values())) + sum(report["by_reason"].values()) == 6 + 7 + 8 + 9
    assert set(found) <= {0}  # whose times are right in the last of these sets


def test_a_clip_that_lost_its_first_rows_keeps_its_frames(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(3, 6), "v2.1")
    edit_rows(folder, lambda table: table.slice(2))
    shorten(folder, 2)
    rows, dataset = read_rows(folder)
    assert greys(rows)[1] == pytest.approx([40 + 5 * step for step in range(2, 7)], abs=2.5)
    assert dataset.problems.report()["skipped"] == 0


@pytest.mark.parametrize("left_out", ["split", "metadata"])
def test_a_short_last_episode_that_is_left_out(tmp_path, left_out):
    episodes = make_episodes(4, 12)
    short = episodes[3]
    short.actions, short.states = short.actions[:5], short.states[:5]
    short.pictures = {camera: pictures[:5] for camera, pictures in short.pictures.items()}
    folder = write_lerobot(tmp_path / "set", episodes, "v3.0")
    if left_out == "split":
        edit_info(folder, splits={"train": "0:3", "test": "3:4"})
    else:
        edit_episodes(folder, lambda table: table[table.episode_index != 3])
    found, report = shown(folder, split="train" if left_out == "split" else None)
    assert [len(each) for each in found.values()] == [12, 13, 14]
    assert report["skipped"] == 0


@pytest.mark.parametrize("kind", ["image", "video"])
def test_rows_behind_the_length_are_told(tmp_path, kind):
    folder = write_lerobot(tmp_path / "set", make_episodes(3, 6), "v2.1", kind)
    shorten(folder, 2)
    rows, dataset = read_rows(folder, problems=RowProblems(limit_share=0.0))
    assert len(rows) == dataset.count_rows() == 4 + 5 + 6
    (note,) = dataset.reader.notes
    assert "episode 0 has 2 rows behind the length of 4 in its metadata, not read" in note


@pytest.mark.parametrize("rate", [0.8, 1.2])
def test_rows_at_another_rate_than_the_video(tmp_path, rate):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 6), "v3.0")
    write_times(folder, lambda table: np.asarray(table["timestamp"]) * rate)
    with pytest.raises(RobotDataError, match=f"got rows {rate / FPS:.3f} s apart by their timestamp"):
        open_robot_source(folder, key="x")
