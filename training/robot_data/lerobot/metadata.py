"""The metadata of LeRobot data sets v2.0, v2.1 and v3.0, brought to one form.

Says which file holds each episode's rows and videos, and the text of each task; the files are read by
`lerobot_reading`.

    v2.0, v2.1  meta/info.json, tasks.jsonl, episodes.jsonl; data and video files of one episode each
    v3.0        meta/info.json, tasks.parquet, episodes/**.parquet; files of many episodes one after the other: when
                an episode begins and ends in a video is videos/CAMERA/from_timestamp and to_timestamp (seconds)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from gen_vla.training.robot_data.episodes import EmptyRobotDataError, RobotDataError, instruction_text
from gen_vla.training.robot_data.lerobot.splits import split_episodes
from gen_vla.training.storage.data_folder import DataFolder


INFO = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
DEEP_FORMATS = ("gray10", "gray12", "gray14", "gray16", "grayf")  # FFmpeg's, of videos of depth


@dataclass(frozen=True)
class VideoPlace:
    """Where an episode is in a video file: from `start` to `end`, in seconds; `end` is `None` where nothing says."""

    file: str
    start: float
    end: float | None = None


@dataclass(frozen=True)
class EpisodePlace:
    """Where an episode is.

    Attributes:
        index: its number.
        length: steps.
        labelled: whether any of its tasks has text; `None` where its metadata does not say.
        data: the parquet file.
        videos: by camera; a camera is absent where the metadata has no usable numbers for it.
    """

    index: int
    length: int
    labelled: bool | None
    data: str
    videos: dict[str, VideoPlace] = field(default_factory=dict)


@dataclass(frozen=True)
class LeRobotMetadata:
    """Everything the metadata says.

    Attributes:
        fps: steps a second; `None` where there is no such number.
        cameras: "video" or "image" by name.
        depth: of the cameras, those that hold depth and no colours, and what says so.
        tasks: number to text, "" for none.
        told: what people should know of the choice of episodes, or "".
        whole: whether the chosen episodes are all there ever were: no number is missing.
    """

    version: str
    fps: float | None
    features: dict[str, dict[str, Any]]
    cameras: dict[str, str]
    depth: dict[str, str]
    tasks: dict[int, str]
    episodes: list[EpisodePlace]
    told: str = ""
    whole: bool = True


def read_metadata(folder: DataFolder, split: str | None = None) -> LeRobotMetadata:
    """Reads meta/ for one split, or all episodes without one (`lerobot_splits`).

    Raises:
        RobotDataError: on another version, a split that is not there, or metadata that lacks something.
        EmptyRobotDataError: without an episode that has a task text.
    """
    info = folder.read_json(INFO)
    version = "v" + str(info.get("codebase_version")).removeprefix("v")
    if version not in VERSIONS:
        raise RobotDataError(
            f"got {folder.describe(INFO)} of codebase_version {info.get('codebase_version')}, expected "
            f"{', '.join(VERSIONS)}; convert the data set with lerobot's own scripts"
        )
    try:
        features: dict[str, dict[str, Any]] = {name: entry or {} for name, entry in info["features"].items()}
        cameras = {name: entry["dtype"] for name, entry in features.items() if _is_camera(entry)}
        if version == "v3.0":
            tasks = _tasks_v3(folder)
            episodes = _episodes_v3(folder, info, cameras, tasks)
        else:
            tasks = _tasks_v2(folder)
            episodes = _episodes_v2(folder, info, cameras, tasks)
    except (KeyError, FileNotFoundError) as error:
        raise RobotDataError(f"got {folder.path} whose metadata lacks {error}, expected LeRobot {version}") from error
    numbers = [episode.index for episode in episodes]
    if not numbers or len(set(numbers)) < len(numbers):
        twice = next((number for number in numbers if numbers.count(number) > 1), None)
        found = "no episodes" if twice is None else f"episode {twice} more than once"
        raise RobotDataError(f"got {folder.describe('meta')} that lists {found}, expected every episode once")
    wanted, told = split_episodes(info, split, numbers, folder.describe(INFO))
    chosen = [episode for episode in episodes if episode.index in wanted]
    if all(episode.labelled is False for episode in chosen) or not any(tasks.values()):
        raise EmptyRobotDataError(
            f"got {folder.path} with {len(chosen)} episodes{f' in split {split!r}' if split else ''} and no task text "
            "among them, expected episodes with a task: without instructions there is nothing to learn from"
        )
    depth = {name: reason for name in cameras if (reason := _depth(name, features[name]))}
    whole = sorted(numbers) == list(range(len(chosen))) and info.get("total_episodes") in (None, len(chosen))
    return LeRobotMetadata(version, _fps(info), features, cameras, depth, tasks, chosen, told, whole)


def _is_camera(feature: Any) -> bool:
    return feature.get("dtype") in ("video", "image")


def _depth(name: str, feature: dict[str, Any]) -> str:
    """What says that a camera holds depth; "" where nothing does."""
    about = [part for part in (feature, feature.get("info"), feature.get("video_info")) if isinstance(part, dict)]
    for key in ("video.is_depth_map", "is_depth_map"):
        if any(part.get(key) is True for part in about):
            return f"{key} in {INFO}"
    pixels = [str(part.get("video.pix_fmt")) for part in about if "video.pix_fmt" in part]
    if any(pixel.startswith(DEEP_FORMATS) for pixel in pixels):
        return f"video.pix_fmt {pixels[0]} in {INFO}"
    shape = list(feature.get("shape") or ())
    if "depth" in name.lower() and 1 in (shape[:1] + shape[-1:]):
        return f"its name, and its one channel in {INFO}"
    return ""


def _fps(info: dict[str, Any]) -> float | None:
    try:
        return float(info["fps"]) if float(info["fps"]) > 0 else None
    except (KeyError, TypeError, ValueError):
        return None


def _labelled(texts: Any, tasks: dict[int, str]) -> bool | None:
    """Whether an episode's `tasks` (texts, or numbers of tasks) have text; `None` where it is null or holds nulls."""
    texts = [texts] if isinstance(texts, str) else texts
    if texts is None or texts != texts:
        return None
    if any(tasks.get(text) if isinstance(text, int) else instruction_text(text) for text in texts):
        return True
    return None if any(text is None for text in texts) else False


def _number(row: dict[str, Any], name: str) -> int | None:
    """A whole number, which pandas stores as a float where another row has none; `None` for null, NaN or another."""
    value = row.get(name)
    return int(value) if isinstance(value, (int, float)) and float(value).is_integer() else None


def _needed(row: dict[str, Any], name: str, file: str) -> int:
    if (number := _number(row, name)) is None or number < 0:
        index = row.get("episode_index")
        raise RobotDataError(
            f"got {name}={row.get(name)!r} for episode {index} in {file}, expected a whole number; correct it there"
        )
    return number


def _tasks_v2(folder: DataFolder) -> dict[int, str]:
    name = "meta/tasks.jsonl"
    return {
        _needed(entry, "task_index", folder.describe(name)): instruction_text(entry["task"])
        for entry in folder.read_json_lines(name)
    }


def _episodes_v2(
    folder: DataFolder, info: dict[str, Any], cameras: dict[str, str], tasks: dict[int, str]
) -> list[EpisodePlace]:
    name, episodes = "meta/episodes.jsonl", []
    for entry in folder.read_json_lines(name):
        index, length = (_needed(entry, key, folder.describe(name)) for key in ("episode_index", "length"))
        names = {"episode_index": index, "episode_chunk": index // int(info["chunks_size"])}
        videos = {
            camera: VideoPlace(info["video_path"].format(video_key=camera, **names), 0.0)
            for camera, kind in cameras.items()
            if kind == "video" and info.get("video_path")
        }
        data = info["data_path"].format(**names)
        episodes.append(EpisodePlace(index, length, _labelled(entry.get("tasks"), tasks), data, videos))
    return sorted(episodes, key=lambda episode: episode.index)


def _tasks_v3(folder: DataFolder) -> dict[int, str]:
    """The text is the pandas index: a column "task", or "__index_level_0__" where the index has no name."""
    name = "meta/tasks.parquet"
    table = _read_table(folder, name).to_pydict()
    texts = next((table[column] for column in ("task", "tasks", "__index_level_0__") if column in table), None)
    if texts is None:
        raise KeyError("the task texts in meta/tasks.parquet")
    rows = [{"task_index": number} for number in table["task_index"]]
    numbers = [_needed(row, "task_index", folder.describe(name)) for row in rows]
    return dict(zip(numbers, map(instruction_text, texts), strict=True))


def _episodes_v3(
    folder: DataFolder, info: dict[str, Any], cameras: dict[str, str], tasks: dict[int, str]
) -> list[EpisodePlace]:
    files = [name for name in folder.sizes("meta/episodes") if name.endswith(".parquet")]
    videos = [camera for camera, kind in cameras.items() if kind == "video"]
    episodes = []
    for file in files:
        where = folder.describe(file)
        for row in _episode_rows_v3(folder, file, videos):
            index, length = _needed(row, "episode_index", where), _needed(row, "length", where)
            chunk = {key: _needed(row, f"data/{key}", where) for key in ("chunk_index", "file_index")}
            places = {camera: place for camera in videos if (place := _video_v3(row, camera, info))}
            data = info["data_path"].format(**chunk)
            episodes.append(EpisodePlace(index, length, _labelled(row.get("tasks"), tasks), data, places))
    return sorted(episodes, key=lambda episode: episode.index)


def _episode_rows_v3(folder: DataFolder, name: str, videos: list[str]) -> list[dict[str, Any]]:
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    wanted = ["tasks"]
    for camera in videos:
        keys = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        wanted += [f"videos/{camera}/{key}" for key in keys]
    return _read_table(folder, name, columns, wanted).to_pylist()


def _video_v3(row: dict[str, Any], camera: str, info: dict[str, Any]) -> VideoPlace | None:
    chunk, file = (_number(row, f"videos/{camera}/{key}") for key in ("chunk_index", "file_index"))
    start, end = (row.get(f"videos/{camera}/{key}") for key in ("from_timestamp", "to_timestamp"))
    if chunk is None or file is None or start is None or start != start or not info.get("video_path"):
        return None
    path = info["video_path"].format(video_key=camera, chunk_index=chunk, file_index=file)
    return VideoPlace(path, float(start), None if end is None or end != end else float(end))


def _read_table(folder: DataFolder, name: str, columns: list[str] | None = None, optional: Sequence[str] = ()) -> Any:
    """A parquet file: all of it, or some columns, of which those in `optional` may be absent."""
    with folder.open(name) as file:
        parquet = pq.ParquetFile(file)
        there = parquet.schema_arrow.names
        missing = [column for column in columns or [] if column not in there]
        if missing:
            raise KeyError(f"the column {missing[0]} of {name}")
        wanted = None if columns is None else [*columns, *(column for column in optional if column in there)]
        return parquet.read(columns=wanted)
