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
from test_lerobot_splits import check

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.episodes import EmptyRobotDataError, RobotDataError
from gen_vla.training.robot_data.lerobot.metadata import EpisodePlace, VideoPlace
from gen_vla.training.robot_data.lerobot.video_times import check_row_times, misplaced_episodes
from gen_vla.training.robot_data.source import open_robot_source


CAMERA = "observation.images.image_0"
FROM, TO = f"videos/{CAMERA}/from_timestamp", f"videos/{CAMERA}/to_timestamp"


def greys(folder: Path, **settings) -> tuple[dict[int, list[int]], RowProblems]:
    """The mean of each row's picture by episode; `make_episodes` makes it 40 * episode + 5 * step."""
    source = open_robot_source(folder, key="x", problems=RowProblems(limit_share=1.0), **settings)
    found: dict[int, list[int]] = {}
    for row in source.rows(source.shards()):
        found.setdefault(row["episode_index"], []).append(round(float(np.asarray(row["images"][0]).mean())))
    return found, source.problems


def right(found: dict[int, list[int]]) -> bool:
    """Whether every picture that is shown is the row's own; neighbours differ by 5."""
    return all(abs(grey - 40 * number - 5 * step) < 2.5 for number, g in found.items() for step, grey in enumerate(g))


@pytest.mark.parametrize("frames", [-3, -1, -0.5, -0.3, 0, 0.1, 0.3, 0.5, 0.74, 0.8, 1, 2, 7])
@pytest.mark.parametrize("columns", [(FROM,), (FROM, TO)])
def test_a_time_that_is_off_shows_no_frame_of_a_neighbour(tmp_path, frames, columns):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 6), "v3.0")

    def drift(table):
        for column in columns:
            table.loc[1:2, column] += frames / FPS
        return table

    edit_episodes(folder, drift)
    found, problems = greys(folder)
    assert right(found)
    assert [len(found[number]) for number in (0, 3)] == [6, 9], "which are right"
    if abs(frames) < 0.25:
        assert len(found) == 4
    else:
        assert problems.report()["skipped"] >= 7
        assert "times cannot be right" in str(problems.report()["by_reason"])
        assert (
            "from_timestamp and to_timestamp of videos/observation.images.image_0" in problems.report()["examples"][0]
        )


def test_a_time_that_is_off_stops_a_run_and_its_check(tmp_path, capsys):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 6), "v3.0")
    edit_episodes(folder, lambda table: table.assign(**{FROM: table[FROM] + [0, 0.2, 0, 0]}))
    code, _, errors = check(folder, capsys)
    assert code == 2
    assert "got 7 bad rows among 30" in errors
    assert "episode 1 (got from_timestamp and to_timestamp of videos/observation.images.image_0 in meta/epi" in errors
    assert "it begins at 1.400 s, and what is before ends at 1.200 s" in errors


def places(*numbers: tuple[int, int, float, float | None]) -> list[EpisodePlace]:
    """Episodes of one file: number, length, start and end in frames at one frame a second."""
    return [EpisodePlace(n, length, True, "d", {"c": VideoPlace("v", s, e)}) for n, length, s, e in numbers]


@pytest.mark.parametrize(
    ("episodes", "seconds", "wrong"),
    [
        (places((0, 3, 0, 3), (1, 2, 3, 5)), 5, []),
        (places((0, 3, 0, None), (1, 2, 3, None)), 5, []),
        (places((1, 2, 3, 5)), None, []),  # whatever was before was taken out
        (places((0, 3, 0, 3), (2, 2, 5, 7)), 7, []),
        (places((0, 3, 1, 4), (1, 2, 4, 6)), 6, [0, 1]),  # nothing is before the first
        (places((0, 3, -1, 2), (1, 2, 2, 4)), 4, [0, 1]),
        (places((0, 3, 0, 3), (1, 2, 4, 6)), 6, [1]),
        (places((0, 3, 0, 3), (1, 2, 2, 4)), 4, [1]),
        (places((0, 3, 0, 3), (1, 2, 4, 5), (2, 2, 5, 7)), 7, [1]),
        (places((0, 3, 0, 3), (1, 2, 4, 6), (2, 2, 6, 8)), 8, [1, 2]),  # both one late
        (places((0, 3, 0, 3), (1, 3, 3, 5)), 5, [1]),  # more rows than frames
        (places((0, 3, 0, 4), (1, 2, 4, 7)), 7, []),  # videos of a frame more than rows, converted
        (places((0, 3, 0, 4), (1, 2, 4, 7)), 5, [0, 1]),  # which the video does not have
        (places((0, 30, 0, 30.1), (1, 30, 30.1, 60.2), (2, 30, 60.2, 90.3)), 90.3, []),
        (places(*((n, 9, 9.1 * n, 9.1 * n + 9.1) for n in range(20))), 180, list(range(20))),  # 2 frames of drift
        (places((0, 9, 0, 9), (1, 9, 9, 18)), 20, [0, 1]),  # two frames that no place counts
        (places((0, 9, 0, 9), (1, 9, 9, 18)), 17, []),  # cut off: rows that lack a frame are skipped
        (places((0, 9, 0, 9), (1, 9, 9, 18)), 40, []),  # a third episode was taken out
    ],
)
def test_lengths_rates_and_neighbours_tell(episodes, seconds, wrong):
    assert sorted(misplaced_episodes(episodes, "c", 1.0, lambda name: seconds)) == wrong


@pytest.mark.parametrize("column", ["chunk_index", "file_index", "from_timestamp"])
def test_numbers_that_are_missing(tmp_path, column):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 6, ("image_0", "wrist")), "v3.0")
    name = f"videos/{CAMERA}/{column}"
    edit_episodes(
        folder, lambda table: table.assign(**{name: table[name].astype(object).where(table.index != 1, None)})
    )
    found, problems = greys(folder, cameras=["image_0"])
    assert (sorted(found), problems.report()["skipped"]) == ([0, 2, 3], 7)
    assert right(found)
    assert f"of videos/{CAMERA} is null in meta/episodes" in problems.report()["examples"][0]
    edit_episodes(folder, lambda table: table.assign(**{name: np.nan}))
    with pytest.raises(RobotDataError, match=rf"lacks, for every episode, one of .*videos/{CAMERA}/{column}"):
        open_robot_source(folder, key="x")
    other, problems = greys(folder, cameras=["wrist"])  # which has all its numbers
    assert (len(other), problems.report()["skipped"]) == (4, 0)


@pytest.mark.parametrize("late", [1, 3])
def test_a_video_that_begins_late(tmp_path, late):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 6), "v2.1")
    for number, episode in enumerate(make_episodes(2, 6)):
        path = folder / f"videos/chunk-000/{CAMERA}/episode_{number:06d}.mp4"
        write_video(path, episode.pictures["image_0"], first=late)
    found, problems = greys(folder)
    assert found == {}
    told = f"whose first frame is at {late / FPS:.3f} s, expected it at 0 s"
    assert told in problems.report()["examples"][0]


def test_a_video_of_another_rate(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 6), "v2.1")
    for number, episode in enumerate(make_episodes(2, 6)):
        path = folder / f"videos/chunk-000/{CAMERA}/episode_{number:06d}.mp4"
        write_video(path, episode.pictures["image_0"], fps=2 * FPS)
    found, problems = greys(folder)
    assert found == {}
    assert "of 10 frames a second and 0.600 s, expected 5 (fps of the data set) for 1.200 s" in str(problems.report())
    for number, episode in enumerate(make_episodes(2, 6)):  # twice the frames: those at the rows' times are right
        path = folder / f"videos/chunk-000/{CAMERA}/episode_{number:06d}.mp4"
        write_video(path, np.repeat(episode.pictures["image_0"], 2, axis=0), fps=2 * FPS)
    found, problems = greys(folder)
    assert right(found)
    assert problems.report()["skipped"] == 0


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (np.zeros(6), "timestamp 0.000 at row 0 and 0.000 at the next"),
        (np.arange(6)[::-1] / FPS, "timestamp 1.000 at row 0 and 0.800 at the next"),
        (np.array([0, 0.2, 0.2, 0.6, 0.8, 1.0]), "timestamp 0.200 at row 1 and 0.200 at the next"),
        (np.array([0, 0.2, np.nan, 0.6, 0.8, 1.0]), "values that are no number"),
        (
            np.arange(6) / 10,
            "rows 0.100 s apart by their timestamp, expected rows 0.200 s apart, as fps=5 in meta/inf",
        ),
        (np.arange(6) * 200.0, "rows 200.000 s apart"),
    ],
)
def test_times_of_rows_that_cannot_be_right(tmp_path, capsys, times, message):
    with pytest.raises(RobotDataError, match=message.replace("(", r"\(")):
        check_row_times(times, FPS)
    folder = write_lerobot(tmp_path / "set", make_episodes(1, 6), "v2.1")
    edit_rows(folder, lambda table: with_column(table, "timestamp", pa.array(times, pa.float32())))
    with pytest.raises(EmptyRobotDataError, match=r"episode_000000\.parquet episode 0"):
        open_robot_source(folder, key="x")
    code, _, errors = check(folder, capsys)
    assert code == 2
    assert message in errors


@pytest.mark.parametrize("times", [np.arange(6) / FPS + 0.03, np.array([0, 0.21, 0.39, 0.61, 1.0, 1.2]), np.zeros(1)])
def test_clocks_that_are_uneven_are_none(times):
    check_row_times(times, FPS)


def test_pictures_need_no_times_but_rows_in_order(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 6, size=8), "v2.1", "image")
    edit_rows(folder, lambda table: with_column(table, "timestamp", pa.array(np.zeros(len(table)), pa.float32())))
    source = open_robot_source(folder, key="x")
    assert len(list(source.rows(source.shards()))) == 13
    edit_rows(folder, lambda table: with_column(table, "timestamp", pa.array(np.arange(len(table))[::-1] / FPS)))
    with pytest.raises(EmptyRobotDataError, match="expected rows in the order of time; sort them"):
        open_robot_source(folder, key="x")


@pytest.mark.parametrize("fps", [None, 0, "unknown", float("nan")])
def test_a_rate_that_is_none(tmp_path, fps):
    folder = write_lerobot(tmp_path / "set", make_episodes(2, 6, size=16), "v2.1", "image")
    edit_info(folder, fps=fps)
    source = open_robot_source(folder, key="x")
    assert source.hertz is None
    assert len(list(source.rows(source.shards()))) == 13
    folder = write_lerobot(tmp_path / "videos", make_episodes(2, 6), "v2.1")
    edit_info(folder, fps=fps)
    with pytest.raises(RobotDataError, match=r"meta/info.json without a number of frames a second as fps"):
        open_robot_source(folder, key="x")


def test_an_episode_that_is_skipped_for_its_times_is_not_counted(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 6), "v3.0")
    edit_episodes(folder, lambda table: table.assign(**{FROM: table[FROM] + [0, 0.2, 0, 0]}))
    source = open_robot_source(folder, key="x", problems=RowProblems(limit_share=1.0))
    assert source.count_rows() == 30 - 7 == len(list(source.rows(source.shards())))
    lengths = write_lerobot(tmp_path / "short", make_episodes(2, 6), "v2.1")
    edit_lines(
        lengths / "meta/episodes.jsonl", lambda lines: [{**line, "length": line["length"] - 1} for line in lines]
    )
    assert open_robot_source(lengths, key="x").count_rows() == 11


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize(
    "times",
    [
        lambda table: np.asarray(table["timestamp"]) + 1 / FPS,
        lambda table: np.asarray(table["timestamp"]) - 1 / FPS,
        lambda table: np.asarray(table["timestamp"]) + 3.0 * np.asarray(table["episode_index"]),
    ],
    ids=["late", "early", "of the whole file"],
)
def test_times_of_rows_that_do_not_begin_at_0(tmp_path, version, times):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 6), version)
    edit_rows(folder, lambda table: with_column(table, "timestamp", pa.array(times(table).astype(np.float32))))
    found, problems = greys(folder)
    assert right(found)
    assert sum(map(len, found.values())) + sum(problems.report()["by_reason"].values()) == 6 + 7 + 8 + 9
    assert set(found) <= {0}  # whose times are right in the last of these sets


@pytest.mark.parametrize("rate", [0.8, 1.2])
def test_rows_at_another_rate_than_the_video(tmp_path, rate):
    folder = write_lerobot(tmp_path / "set", make_episodes(4, 6), "v3.0")
    edit_rows(
        folder,
        lambda table: with_column(table, "timestamp", pa.array(np.float32(np.asarray(table["timestamp"]) * rate))),
    )
    with pytest.raises(EmptyRobotDataError, match=f"got rows {rate / FPS:.3f} s apart by their timestamp"):
        greys(folder)


def test_a_clip_that_lost_its_first_rows_keeps_its_frames(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(3, 6), "v2.1")
    edit_rows(folder, lambda table: table.slice(2))
    edit_lines(
        folder / "meta/episodes.jsonl", lambda lines: [{**line, "length": line["length"] - 2} for line in lines]
    )
    found, problems = greys(folder)
    assert found[1] == pytest.approx([40 + 5 * step for step in range(2, 7)], abs=2.5)
    assert sum(problems.report()["by_reason"].values()) == 0


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
    found, problems = greys(folder, split="train" if left_out == "split" else None)
    assert right(found)
    assert [len(each) for each in found.values()] == [12, 13, 14]
    assert sum(problems.report()["by_reason"].values()) == 0


def test_rows_behind_the_length_are_told(tmp_path):
    folder = write_lerobot(tmp_path / "set", make_episodes(3, 6), "v2.1", "image")
    edit_lines(
        folder / "meta/episodes.jsonl", lambda lines: [{**line, "length": line["length"] - 2} for line in lines]
    )
    source = open_robot_source(folder, key="x")
    assert len(list(source.rows(source.shards()))) == 4 + 5 + 6
    (note,) = source.reader.notes
    assert "episode 0 has 2 rows behind the length of 4 in its metadata, not read" in note
