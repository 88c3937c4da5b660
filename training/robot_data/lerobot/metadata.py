"""The metadata of LeRobot data sets v2.0, v2.1 and v3.0, brought to one form; `reading.py` reads the files.

    v2.0, v2.1  meta/info.json, tasks.jsonl, episodes.jsonl; data and video files of one episode each
    v3.0        meta/info.json, tasks.parquet, episodes/**.parquet; files of many episodes one after the other: when
                an episode begins and ends in a video is videos/CAMERA/from_timestamp and to_timestamp (seconds)

LeRobot itself reads all episodes and never looks at `splits` of meta/info.json, and public converters copy
`"train": "0:100"` for any number of them. So without a named split all are read, and a note says what a split holds.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pyarrow.parquet as pq

from gen_vla.training.robot_data.episodes import RobotDataError, instruction_text
from gen_vla.training.storage.data_folder import DataFolder


INFO = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
DEPTH_PIXELS = ("gray10", "gray12", "gray14", "gray16", "grayf")  # FFmpeg's, of depth videos
BOUND = re.compile(r"(\d+(?:\.\d+)?)%|(\d*)")
SPLIT_FORMS = '"0:100", "0:80%", ":", several of them with commas between, or a list of episode numbers'


@dataclass(frozen=True)
class VideoPlace:
    file: str
    start: float
    end: float | None = None


@dataclass(frozen=True)
class EpisodePlace:
    index: int  # its number
    length: int  # steps
    labelled: bool | None  # whether any of its tasks has text; `None` where its metadata does not say
    data: str  # the parquet file
    videos: dict[str, VideoPlace] = field(default_factory=dict)  # by camera, where the metadata has usable numbers


@dataclass(frozen=True)
class LeRobotMetadata:
    version: str
    fps: float | None  # steps a second; `None` where there is no such number
    features: dict[str, dict[str, Any]]  # entries of meta/info.json by name
    cameras: dict[str, str]  # "video" or "image" by name
    depth: dict[str, str]  # of the cameras, those that hold depth and no colours, and what says so
    tasks: dict[int, str]  # number to text, "" for none
    episodes: list[EpisodePlace]  # the chosen ones, in the order of their numbers
    note: str = ""  # on the choice of episodes, for reports
    complete: bool = True  # whether the chosen episodes are all there ever were: no number is missing


def read_metadata(folder: DataFolder, split: str | None = None) -> LeRobotMetadata:
    """Reads meta/ for one split, or all episodes without one.

    Raises:
        RobotDataError: on another version, a split that is not there, metadata that lacks something, or no task text.
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
        cameras = {name: f["dtype"] for name, f in features.items() if f.get("dtype") in ("video", "image")}
        videos = [camera for camera, kind in cameras.items() if kind == "video"]
        tasks = _tasks_v3(folder) if version == "v3.0" else _tasks_v2(folder)
        read_episodes = _episodes_v3 if version == "v3.0" else _episodes_v2
        episodes = sorted(read_episodes(folder, info, videos, tasks), key=lambda episode: episode.index)
    except (KeyError, FileNotFoundError) as error:
        raise RobotDataError(f"got {folder.path} whose metadata lacks {error}, expected LeRobot {version}") from error
    numbers = [episode.index for episode in episodes]
    twice = next((one for one, other in pairwise(numbers) if one == other), None)
    if not numbers or twice is not None:
        found = "no episodes" if twice is None else f"episode {twice} more than once"
        raise RobotDataError(f"got {folder.describe('meta')} that lists {found}, expected every episode once")
    wanted, note = split_episodes(info, split, numbers, folder.describe(INFO))
    chosen = [episode for episode in episodes if episode.index in wanted]
    if all(episode.labelled is False for episode in chosen) or not any(tasks.values()):
        raise RobotDataError(
            f"got {folder.path} with {len(chosen)} episodes{f' in split {split!r}' if split else ''} and no task text "
            "among them, expected episodes with a task: without instructions there is nothing to learn from; "
            "lerobot-edit-dataset --operation.type modify_tasks --operation.new_task TEXT writes one"
        )
    depth = {name: reason for name in cameras if (reason := _depth(name, features[name]))}
    complete = sorted(numbers) == list(range(len(chosen))) and info.get("total_episodes") in (None, len(chosen))
    fps = info.get("fps")
    fps = float(fps) if isinstance(fps, (int, float)) and fps > 0 else None
    return LeRobotMetadata(version, fps, features, cameras, depth, tasks, chosen, note, complete)


def _depth(name: str, feature: dict[str, Any]) -> str:
    """What says that a camera holds depth; "" where nothing does."""
    about = [part for part in (feature, feature.get("info"), feature.get("video_info")) if isinstance(part, dict)]
    for key in ("video.is_depth_map", "is_depth_map"):
        if any(part.get(key) is True for part in about):
            return f"{key} in {INFO}"
    for pixels in (str(part["video.pix_fmt"]) for part in about if "video.pix_fmt" in part):
        if pixels.startswith(DEPTH_PIXELS):
            return f"video.pix_fmt {pixels} in {INFO}"
    shape = list(feature.get("shape") or ())
    named = "depth" in name.lower() and 1 in (shape[:1] + shape[-1:])
    return f"its name, and its one channel in {INFO}" if named else ""


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
    where, rows = folder.describe(name), folder.read_json_lines(name)
    return {_needed(row, "task_index", where): instruction_text(row["task"]) for row in rows}


def _episodes_v2(
    folder: DataFolder, info: dict[str, Any], videos: Sequence[str], tasks: dict[int, str]
) -> Iterator[EpisodePlace]:
    name = "meta/episodes.jsonl"
    for entry in folder.read_json_lines(name):
        index, length = (_needed(entry, key, folder.describe(name)) for key in ("episode_index", "length"))
        names = {"episode_index": index, "episode_chunk": index // int(info["chunks_size"])}
        path = info.get("video_path")
        places = {c: VideoPlace(path.format(video_key=c, **names), 0.0) for c in videos if path}
        data = info["data_path"].format(**names)
        yield EpisodePlace(index, length, _labelled(entry.get("tasks"), tasks), data, places)


def _tasks_v3(folder: DataFolder) -> dict[int, str]:
    """The text is the pandas index: a column "task", or "__index_level_0__" where the index has no name."""
    name = "meta/tasks.parquet"
    table = _read_table(folder, name).to_pydict()
    texts = next((table[column] for column in ("task", "tasks", "__index_level_0__") if column in table), None)
    if texts is None:
        raise KeyError("the task texts in meta/tasks.parquet")
    where = folder.describe(name)
    numbers = [_needed({"task_index": number}, "task_index", where) for number in table["task_index"]]
    return dict(zip(numbers, map(instruction_text, texts), strict=True))


def _episodes_v3(
    folder: DataFolder, info: dict[str, Any], videos: Sequence[str], tasks: dict[int, str]
) -> Iterator[EpisodePlace]:
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    keys = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    optional = ["tasks", *(f"videos/{camera}/{key}" for camera in videos for key in keys)]
    for file in folder.sizes("meta/episodes"):
        if not file.endswith(".parquet"):
            continue
        where = folder.describe(file)
        for row in _read_table(folder, file, columns, optional).to_pylist():
            index, length = _needed(row, "episode_index", where), _needed(row, "length", where)
            chunk = {key: _needed(row, f"data/{key}", where) for key in ("chunk_index", "file_index")}
            places = {camera: place for camera in videos if (place := _video_v3(row, camera, info))}
            data = info["data_path"].format(**chunk)
            yield EpisodePlace(index, length, _labelled(row.get("tasks"), tasks), data, places)


def _video_v3(row: dict[str, Any], camera: str, info: dict[str, Any]) -> VideoPlace | None:
    chunk, file = (_number(row, f"videos/{camera}/{key}") for key in ("chunk_index", "file_index"))
    start, end = (row.get(f"videos/{camera}/{key}") for key in ("from_timestamp", "to_timestamp"))
    if chunk is None or file is None or start is None or start != start or not info.get("video_path"):
        return None
    path = info["video_path"].format(video_key=camera, chunk_index=chunk, file_index=file)
    return VideoPlace(path, float(start), None if end is None or end != end else float(end))


def _read_table(folder: DataFolder, name: str, columns: list[str] | None = None, optional: Sequence[str] = ()) -> Any:
    with folder.open(name) as file:
        parquet = pq.ParquetFile(file)
        there = parquet.schema_arrow.names
        missing = [column for column in columns or [] if column not in there]
        if missing:
            raise KeyError(f"the column {missing[0]} of {name}")
        wanted = None if columns is None else [*columns, *(column for column in optional if column in there)]
        return parquet.read(columns=wanted)


def split_episodes(
    info: dict[str, Any], split: str | None, numbers: Sequence[int], where: str
) -> tuple[set[int], str]:
    """The episodes of a split (`None`: all), and a note about it ("" for none); `RobotDataError` without one.

    Args:
        info: meta/info.json, whose path `where` is for messages.
        numbers: those of all episodes there are, ascending; they may have gaps.
    """
    splits = info.get("splits") or {}
    if not isinstance(splits, dict):
        raise RobotDataError(f"got {where} with splits={splits!r}, expected an object, such as {{}} for none")
    if split is None:
        return set(numbers), _note_without_split(splits, numbers)
    if split not in splits and not (split == "train" and not splits):
        raise RobotDataError(
            f"got split={split!r}, expected one of {', '.join(splits) or 'none'} as in {where}; without `split` all "
            f"{len(numbers)} episodes are read"
        )
    value = splits.get(split, ":")
    named, clipped = parse_split(value, numbers)
    if named is None:
        raise RobotDataError(f"got split {split!r} = {value!r} in {where}, expected {SPLIT_FORMS}; correct it there")
    if not named:
        raise RobotDataError(
            f"got split {split!r} ({value}) in {where} with none of the {len(numbers)} episodes there are (numbers "
            f"{numbers[0]} to {numbers[-1]}); correct it there, or leave out `split` to read all"
        )
    note = f"split {split!r} ({value}) holds {len(named)} of {len(numbers)} episodes"
    if clipped:
        note += f" and names others, which are not there: their numbers are {numbers[0]} to {numbers[-1]}"
    return named, note if clipped or len(named) < len(numbers) else ""


def parse_split(value: Any, numbers: Sequence[int]) -> tuple[set[int] | None, bool]:
    """Episodes of `numbers` that a value under `splits` names, `None` for an invalid one; whether it names others.

    A range is of episode numbers, its end excluded; a percentage is of the episodes there are, in their order.
    """
    if isinstance(value, list):
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in value):
            return None, False
        return set(value) & set(numbers), not set(value) <= set(numbers)
    named: set[int] = set()
    clipped = False
    for part in str(value).split(",") if isinstance(value, str) else [None]:
        first, colon, last = (part or "").replace(" ", "").partition(":")
        begin, end = _bound(first, 0, numbers), _bound(last, numbers[-1] + 1, numbers)
        if begin is None or end is None or not colon:
            return None, False
        named |= {number for number in numbers if begin <= number < end}
        clipped |= end > numbers[-1] + 1
    return named, clipped


def _bound(text: str, default: int, numbers: Sequence[int]) -> int | None:
    """An episode number; a percentage becomes the number of the episode in that place."""
    if not (match := BOUND.fullmatch(text)):
        return None
    if match[1] is None:
        return int(text or default)
    place = round(float(match[1]) / 100 * len(numbers))
    return numbers[place] if place < len(numbers) else numbers[-1] + 1


def _note_without_split(splits: dict[str, Any], numbers: Sequence[int]) -> str:
    held = {name: parse_split(value, numbers)[0] for name, value in splits.items()}
    if all(episodes is not None and len(episodes) == len(numbers) for episodes in held.values()):
        return ""
    named = ", ".join(
        f"{name} ({splits[name]}) " + ("cannot be understood" if episodes is None else f"holds {len(episodes)}")
        for name, episodes in held.items()
    )
    return f"all {len(numbers)} episodes are read, as no split is named; of its splits {named}: name one with `split`"
