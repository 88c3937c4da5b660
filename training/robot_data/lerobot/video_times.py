"""Checks the times of a LeRobot data set: those at which episodes begin in videos, and those of rows.

A time that is one frame off shows a frame of the neighbouring episode, or every frame beside the action of another
step, and nothing fails. Lengths, rates and neighbours show it:

    seconds   0        1.2            2.6
    frames    |episode 0|  episode 1   |     from_timestamp 0, 1.2; to_timestamp 1.2, 2.6; at 5 frames a second
    rows          6          7
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.lerobot.metadata import INFO, EpisodePlace


def misplaced_episodes(
    episodes: Sequence[EpisodePlace],
    camera: str,
    fps: float,
    seconds_of: Callable[[str], float | None],
    complete: bool = True,
) -> dict[int, str]:
    """Episodes whose place in their video cannot be right, and why, by number.

    Args:
        episodes: in the order of their numbers.
        seconds_of: how long the frames of a video take, `None` where that is not known; asked of those with several
            episodes.
        complete: whether these are all episodes that the videos ever held. Otherwise a video may be longer.
    """
    files = defaultdict(list)
    misplaced = {}
    for place in episodes:
        if camera in place.videos:
            files[place.videos[camera].file].append(place)
        else:
            misplaced[place.index] = (
                f"no file and time of {camera}: chunk_index, file_index or from_timestamp of videos/{camera} is null "
                "in meta/episodes; correct it there"
            )
    numbers = {place.index for place in episodes}
    for file, places in files.items():
        ordered = sorted(places, key=lambda place: place.videos[camera].start)
        reasons = _out_of_line(ordered, camera, fps, numbers)
        if not reasons and len(ordered) > 1 and (seconds := seconds_of(file)) is not None:
            reasons = _other_length(ordered, camera, fps, seconds, file, complete or ordered[-1].index + 1 in numbers)
        for index, reason in reasons.items():
            misplaced[index] = (
                f"from_timestamp and to_timestamp of videos/{camera} in meta/episodes that cannot be right: {reason}; "
                "write them again from the lengths and frames, such as by converting the data set again"
            )
    return misplaced


def _out_of_line(ordered: Sequence[EpisodePlace], camera: str, fps: float, numbers: set[int]) -> dict[int, str]:
    """Episodes of a file that do not follow on the one before, or are shorter than their rows.

    After one that does not, the next ones have to be where its rows would put them: most often all are off.
    """
    reasons: dict[int, str] = {}
    end, before, tolerance = 0.0, None, 0.25 / fps  # of the episode before: its end in seconds, its number
    for place in ordered:
        start, until, needed = place.videos[camera].start, _end(place, camera, fps), place.length / fps
        # A file begins with the first episode there is, or the one that follows the last of another file.
        follows = place.index - 1 == before if before is not None else place.index == 0 or place.index - 1 in numbers
        reason = ""
        if start < end - tolerance:
            reason = f"it begins at {start:.3f} s, where what is before lasts until {end:.3f} s"
        elif follows and start > end + tolerance:
            reason = f"it begins at {start:.3f} s, and what is before ends at {end:.3f} s"
        elif until - start < needed - tolerance:
            reason = f"it lasts from {start:.3f} to {until:.3f} s, and its rows take {needed:.3f} s at fps of {INFO}"
        if reason:
            reasons[place.index] = reason
            start = until = end
        end, before = max(until, start + needed), place.index
    return reasons


def _other_length(
    ordered: Sequence[EpisodePlace], camera: str, fps: float, seconds: float, file: str, complete: bool
) -> dict[int, str]:
    """All episodes of a file, where its video does not have as many frames as their places together.

    A video that ends early lacks its last frames, which is noticed when they are read, unless places are longer than
    the rows: then only the end shows that all are. One that is longer by less than an episode has frames somewhere
    between that no place counts, if the file is `complete`: no episode was taken out after the last one.
    """
    end = _end(ordered[-1], camera, fps)
    starts = [place.videos[camera].start for place in ordered]
    longer = sum(_end(place, camera, fps) - start - place.length / fps for place, start in zip(ordered, starts))
    shortest = min(place.length for place in ordered) / fps
    early = longer > 0.25 / fps and end > seconds + 0.5 / fps
    late = complete and 0.5 / fps < seconds - end < shortest - 0.5 / fps
    if not early and not late:
        return {}
    reason = f"they end at {end:.3f} s, and the frames of {file} at {seconds:.3f} s"
    return {place.index: reason for place in ordered}


def _end(place: EpisodePlace, camera: str, fps: float) -> float:
    video = place.videos[camera]
    return video.start + place.length / fps if video.end is None else video.end


def check_row_times(times: np.ndarray, fps: float) -> None:
    """Checks that the times of an episode's rows, float64 [S] in seconds, rise as frames do; raises `RobotDataError`
    for times that are missing, do not rise, or rise at another rate than fps.

    Each row then has its own frame. A clock may be uneven and miss some steps.
    """
    steps = np.diff(times)
    if not np.isfinite(times).all():
        found = "timestamp with values that are no number"
    elif len(steps) and steps.min() < 0.25 / fps:
        found = _neighbours(times, int(np.argmax(steps < 0.25 / fps)))
    elif len(steps) and not 0.9 < float(np.median(steps)) * fps < 1.1:
        found = f"rows {np.median(steps):.3f} s apart by their timestamp"
    else:
        return
    raise RobotDataError(
        f"got {found}, expected rows {1 / fps:.3f} s apart, as fps={fps:g} in {INFO} says: a frame of the video would "
        "stand beside the action of another step; write timestamp as frame_index / fps, or correct fps"
    )


def check_row_span(times: np.ndarray, seconds: float, fps: float) -> None:
    """Checks that an episode's times, float64 [S], lie in the `seconds` that its place in a video takes."""
    if len(times) and (times[0] < -0.25 / fps or times[-1] > seconds - 0.75 / fps):
        raise RobotDataError(
            f"got timestamp from {times[0]:.3f} to {times[-1]:.3f} in an episode whose video lasts {seconds:.3f} s, "
            f"expected it to begin at 0 and to end {1 / fps:.3f} s before that: rows would show frames of other steps "
            "or episodes; write timestamp as frame_index / fps"
        )


def check_row_order(times: np.ndarray) -> None:
    """Checks that the times of an episode's rows never fall, which chunks of actions need without videos, too."""
    if len(times) and np.nanmin(np.diff(times), initial=0.0) < 0:
        found = _neighbours(times, int(np.nanargmin(np.diff(times))))
        raise RobotDataError(f"got {found}, expected rows in the order of time; sort them")


def _neighbours(times: np.ndarray, row: int) -> str:
    return f"timestamp {times[row]:.3f} at row {row} and {times[row + 1]:.3f} at the next"
