"""LeRobot data sets v2.0, v2.1 and v3.0: parquet files of steps, and videos or pictures inside the parquet files.

Reads columns and row groups, and makes episodes of rows and frames. The metadata are in `metadata.py`, checks of times
in `video_times.py`, decoding in `training/robot_data/video_frames.py`.
"""

import copy
import logging
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.episodes import EpisodeReader, RobotDataError, RobotEpisode, rows_of
from gen_vla.training.robot_data.lerobot.metadata import INFO, EpisodePlace, VideoPlace, read_metadata
from gen_vla.training.robot_data.lerobot.video_times import (
    check_row_order,
    check_row_span,
    check_row_times,
    misplaced_episodes,
)
from gen_vla.training.robot_data.stored_columns import column_array, column_values, stored_pictures
from gen_vla.training.robot_data.video_frames import VideoFrames, VideoPicture, video_seconds
from gen_vla.training.storage.data_folder import DataFolder


logger = logging.getLogger(__name__)

PRIMARY_CAMERAS = ("observation.images.image_0", "observation.images.image", "observation.image")
PRIMARY_NAMES = ("image_0", "image", "primary")  # the last part, where no camera has one of those names
ACTIONS, STATES = ("action", "actions"), ("observation.state", "state")  # lerobot's own names, and openpi's
# Episodes of one shard of v3.0, whose files hold hundreds: enough to pay for opening a file. One of a small set, so
# that every loader has several shards to read side by side.
EPISODES_PER_SHARD, SHARDS_WANTED = 16, 1024


class LeRobotReader(EpisodeReader):
    """The episodes of one split; shards are an episode (v2), or a few episodes of one file (v3.0)."""

    def __init__(self, folder: DataFolder, split: str | None = None, every: int = 1):
        super().__init__(folder, every)
        self._metadata = metadata = read_metadata(folder, split)
        self._places = metadata.episodes
        self._shards: dict[str, list[EpisodePlace]] = _divide(self._places)
        self._misplaced: dict[int, str] = {}
        self._seconds: dict[str, float] = {}  # until when frames are needed, by video file
        self._timed = False
        self.dataset = Path(folder.path).name
        self.format = f"LeRobot {metadata.version}"
        self.fps = metadata.fps
        if metadata.note:
            self._note(metadata.note)
        called = {name: value_names(feature) for name, feature in metadata.features.items()}
        self.value_names = {name: names for name, names in called.items() if names}
        self.depth = metadata.depth
        colours = [name for name in metadata.cameras if name not in self.depth]
        primary = [name for name in colours if name in PRIMARY_CAMERAS]
        named = [name for name in colours if name.rpartition(".")[2] in PRIMARY_NAMES]
        self.cameras = list(dict.fromkeys([*primary, *named, *colours]))
        self._check_files(())
        first = self._places[0].data
        stored = self._stored_columns(first)
        self.features = [name for name in metadata.features if name in stored and name not in metadata.cameras]
        self.action = next((name for name in ACTIONS if name in self.features), ACTIONS[0])
        self.state = next((name for name in STATES if name in self.features), STATES[0])
        if absent := [name for name in ("task_index", "timestamp", "episode_index") if name not in stored]:
            raise RobotDataError(
                f"got {folder.describe(first)} with columns {', '.join(stored)}, expected also {', '.join(absent)}"
            )

    def use_cameras(self, cameras: Sequence[str]) -> None:
        """Checks files and times of these cameras' videos; episodes whose times cannot be right are then skipped."""
        first = self._places[0].data
        absent = [camera for camera in self._of_kind("image", cameras) if camera not in self._stored_columns(first)]
        if absent:
            raise RobotDataError(
                f"got {self.folder.describe(first)} without the column {absent[0]} of pictures, which "
                f"{INFO} names; name another camera with `cameras`"
            )
        videos = self._of_kind("video", cameras)
        if videos and self.fps is None:
            raise RobotDataError(
                f"got {self.folder.describe(INFO)} without a number of frames a second as fps, expected one, since "
                f"{videos[0]} is a video; write it there"
            )
        for camera in videos:
            if not any(camera in place.videos for place in self._places):
                keys = ", ".join(f"videos/{camera}/{key}" for key in ("chunk_index", "file_index", "from_timestamp"))
                raise RobotDataError(
                    f"got {self.folder.describe('meta/episodes')} that lacks, for every episode, one of {keys}, or "
                    f"video_path in {INFO}; write them by converting the data set again, or name another camera with "
                    "`cameras`"
                )
        self._check_files(videos)
        self._timed, fps = bool(videos), self.fps or 1.0
        for camera in videos:
            self._misplaced |= misplaced_episodes(
                self._places, camera, fps, self._video_seconds, self._metadata.complete
            )
            for place in self._places:
                if video := place.videos.get(camera):
                    needed = video.start + place.length / fps
                    self._seconds[video.file] = max(needed, self._seconds.get(video.file, 0.0))

    def count_steps(self) -> int | None:
        """Rows of the episodes that have a task text; `None` where the metadata does not say which have."""
        places = [place for place in self._places if place.index not in self._misplaced]
        if any(place.labelled is None for place in places):
            return None
        return sum(rows_of(place.length, self.every) for place in places if place.labelled)

    def numbers(self) -> list[int]:
        return [place.index for place in self._places]

    def only(self, numbers: Collection[int]) -> Self:
        reader, wanted = copy.copy(self), set(numbers)
        reader._places = [place for place in self._places if place.index in wanted]
        reader._shards = _divide(reader._places)
        return reader

    def files(self) -> dict[str, int]:
        used = {place.data for place in self._places}
        return {name: size for name, size in self.folder.sizes("data").items() if name in used}

    def chosen(self) -> Any:
        episodes = [[place.index, place.length, place.data] for place in self._places]
        return [episodes, sorted(self._misplaced), self._timed, sorted(self._metadata.tasks.items())]

    def episodes(
        self, shard: str, features: Sequence[str], cameras: Sequence[str], problems: RowProblems
    ) -> Iterator[RobotEpisode]:
        """The episodes of a shard: one read of the columns asked for, one decoder per camera, no frame decoded."""
        columns = [*features, *self._of_kind("image", cameras), "timestamp", "task_index"]
        rows = _ParquetRows(self.folder, columns)
        decoders = {
            camera: VideoFrames(self._open_video, self.fps or 1.0, self._seconds)
            for camera in self._of_kind("video", cameras)
        }
        for place in self._shards[shard]:
            identity = f"{self.folder.describe(place.data)} episode {place.index}"
            try:
                if place.index in self._misplaced:
                    raise RobotDataError(f"got {self._misplaced[place.index]}")
                table, more = rows.read(place)
                if more and not any("behind the length" in note for note in self.notes):
                    self._note(
                        f"{identity} has {more} rows behind the length of {place.length} in its metadata, not read"
                    )
                yield self._episode(table, place, identity, features, cameras, decoders)
            except (RobotDataError, pa.ArrowException, OSError) as error:
                reason = "episode that cannot be read from its parquet file"
                reason = "episode whose times cannot be right" if place.index in self._misplaced else reason
                problems.skip(f"{identity} ({error})", reason, rows_of(place.length, self.every))

    def _of_kind(self, kind: str, cameras: Sequence[str]) -> list[str]:
        return [camera for camera in cameras if self._metadata.cameras[camera] == kind]

    def _note(self, note: str) -> None:
        self.notes.append(note)
        logger.warning("%s: %s", self.folder.path, note)

    def _episode(
        self,
        table: pa.Table,
        place: EpisodePlace,
        identity: str,
        features: Sequence[str],
        cameras: Sequence[str],
        decoders: dict[str, VideoFrames],
    ) -> RobotEpisode:
        numbers = column_values(table["task_index"], "task_index").tolist()
        texts = [self._metadata.tasks.get(number, "") for number in numbers]  # 3.0 finds 3, and NaN nothing
        steps = {name: column_array(table[name], name) for name in features}
        times = column_values(table["timestamp"], "timestamp").astype(np.float64)
        if self._timed:
            check_row_times(times, self.fps or 1.0)
        else:
            check_row_order(times)
        columns: list[list[Any]] = []
        for camera in cameras:
            if camera in decoders:
                video = place.videos[camera]
                check_row_span(times, self._span(video, place.length, times), self.fps or 1.0)
                shown = (video.start + times).tolist()
                columns.append([VideoPicture(decoders[camera], video.file, time) for time in shown])
            else:
                columns.append(stored_pictures(table[camera], camera, self.folder))
        return RobotEpisode(place.index, identity, texts, steps, [list(row) for row in zip(*columns)])

    def _span(self, video: VideoPlace, length: int, times: np.ndarray) -> float:
        """Seconds that an episode takes in its video.

        Where the metadata does not say it, as for a video of its own, rows may have times beyond their number and
        still be right: the first ones may have been taken out, and their frames kept.
        """
        fps = self.fps or 1.0
        if video.end is not None:
            return video.end - video.start
        behind = len(times) > 0 and times[-1] > (length - 0.75) / fps
        return (self._video_seconds(video.file) if behind else None) or length / fps

    def _open_video(self, name: str) -> str | BinaryIO:
        path = self.folder.local_path(name)
        return str(path) if path is not None else self.folder.open(name)

    def _video_seconds(self, name: str) -> float | None:
        """How long a video's frames take; of a remote one only reading it tells."""
        return video_seconds(self._open_video(name)) if self.folder.is_local else None

    def _check_files(self, cameras: Sequence[str]) -> None:
        """Checks that the files are there, videos of these cameras too: all of a local data set, else the first."""
        checked = self._places if self.folder.is_local else self._places[:1]
        names = {place.data for place in checked}
        names |= {place.videos[camera].file for place in checked for camera in cameras if camera in place.videos}
        if missing := sorted(name for name in names if not self.folder.exists(name)):
            raise RobotDataError(
                f"got {self.folder.path} without {len(missing)} of the files its metadata names, expected "
                f"{missing[0]}; fetch them again"
            )

    def _stored_columns(self, name: str) -> list[str]:
        try:
            with self.folder.open(name) as file:
                return list(pq.read_schema(file).names)
        except pa.ArrowException as error:
            raise RobotDataError(
                f"got {self.folder.describe(name)} that is no whole parquet file ({error}); fetch it again"
            ) from error


class _ParquetRows:
    """Reads the rows of episodes, by the column episode_index, for which the metadata may be outdated."""

    def __init__(self, folder: DataFolder, columns: list[str]):
        self._folder = folder
        self._columns = list(dict.fromkeys([*columns, "episode_index"]))
        self._name = ""
        self._parquet: Any = None
        self._ranges: list[tuple[int, int]] = []  # the least and the greatest episode number in each row group
        self._groups: list[int] | None = None  # of `_table`
        self._table: Any = None
        self._numbers = np.empty(0)

    def read(self, place: EpisodePlace) -> tuple[pa.Table, int]:
        """The first `length` rows of the episode, and how many more there are."""
        if self._name != place.data:
            self._open(place.data)
        groups = [group for group, (low, high) in enumerate(self._ranges) if low <= place.index <= high]
        if groups != self._groups:
            table = self._parquet.read_row_groups(groups, columns=self._columns)
            numbers = column_values(table["episode_index"], "episode_index")
            self._table, self._numbers, self._groups = table, numbers, groups
        rows = np.flatnonzero(self._numbers == place.index)
        together = len(rows) == 0 or rows[-1] - rows[0] == len(rows) - 1
        if len(rows) < place.length or not together:
            found = f"{len(rows)} rows" + ("" if together else ", not one after the other,")
            raise RobotDataError(
                f"got {found} of episode {place.index}, expected {place.length}: {INFO} and the data do not belong "
                "together; fetch both again"
            )
        return self._table.slice(int(rows[0]) if len(rows) else 0, place.length), len(rows) - place.length

    def _open(self, name: str) -> None:
        self._name = ""
        self._parquet = pq.ParquetFile(self._folder.open(name), pre_buffer=False)
        if absent := [name for name in self._columns if name not in self._parquet.schema_arrow.names]:
            raise RobotDataError(f"got {self._folder.describe(name)} without column {absent[0]}")
        self._ranges = [self._range(group) for group in range(self._parquet.num_row_groups)]
        self._name, self._groups = name, None

    def _range(self, group: int) -> tuple[int, int]:
        metadata = self._parquet.metadata.row_group(group)
        for column in map(metadata.column, range(metadata.num_columns)):
            known = column.path_in_schema.partition(".")[0] == "episode_index" and column.is_stats_set
            if known and column.statistics.has_min_max:
                return column.statistics.min, column.statistics.max
        return 0, sys.maxsize  # any


def value_names(feature: dict[str, Any]) -> list[str]:
    """What info.json calls the values of a feature: a list, or one under a word such as "motors"; else `[]`."""
    names = feature.get("names")
    if isinstance(names, dict) and len(names) == 1:
        (names,) = names.values()
    if not isinstance(names, list) or [len(names)] != list(feature.get("shape") or ()):
        return []
    return names if all(isinstance(name, str) for name in names) else []


def _divide(episodes: list[EpisodePlace]) -> dict[str, list[EpisodePlace]]:
    """Episodes by shard: neighbours in one file, at most EPISODES_PER_SHARD, and fewer of a small set."""
    most = min(max(len(episodes) // SHARDS_WANTED, 1), EPISODES_PER_SHARD)
    shards: dict[str, list[EpisodePlace]] = {}
    current: list[EpisodePlace] = []
    for place in episodes:
        if not current or current[0].data != place.data or len(current) == most:
            current = []
            shards[f"{place.data} from episode {place.index}"] = current
        current.append(place)
    return shards
