"""LeRobot data sets v2.0, v2.1 and v3.0: parquet files of steps, and videos or pictures inside the parquet files.

Decides: which columns and row groups are read, and how rows and frames become an episode. Refuses to know: the layout
of the metadata (`lerobot_metadata`), decoding (`video_frames`), transforms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gen_vla.training.data_folder import DataFolder
from gen_vla.training.lerobot_metadata import INFO, EpisodePlace, read_metadata
from gen_vla.training.robot_episodes import RobotDataError, RobotEpisode, rows_of
from gen_vla.training.row_problems import RowProblems
from gen_vla.training.video_frames import VideoFrames, VideoPicture


PRIMARY_CAMERAS = ("observation.images.image_0", "observation.images.image", "observation.image")
PRIMARY_NAMES = ("image_0", "image", "primary")  # the last part, where no camera has one of those names
ACTIONS, STATES = ("action", "actions"), ("observation.state", "state")  # lerobot's own names, and openpi's
# Episodes of one shard of v3.0, whose files hold hundreds: enough to pay for opening a file, few enough to shuffle.
EPISODES_PER_SHARD = 16


class LeRobotReader:
    """The episodes of one split; see `EpisodeReader`. Actions are stored as whoever converted them saw fit.

    Args:
        folder: with meta/info.json.
        split: its name there.
        every: of so many steps of an episode one becomes a row; all steps are given, rows are counted.

    Raises:
        RobotDataError: on metadata that lacks something, or a file of episodes that is missing.
    """

    stored_raw = False

    def __init__(self, folder: DataFolder, split: str, every: int = 1):
        self.folder = folder
        self.every = every
        metadata = read_metadata(folder, split)
        self.dataset = Path(folder.path).name
        self.format = f"LeRobot {metadata.version}"
        self.fps = metadata.fps
        called = {name: value_names(feature) for name, feature in metadata.features.items()}
        self.value_names: Mapping[str, Sequence[str]] = {name: names for name, names in called.items() if names}
        self._tasks = metadata.tasks
        self._kinds = metadata.cameras
        self.cameras = sorted(metadata.cameras, key=_camera_rank)
        self._shards = _divide(metadata.episodes)
        self._check_files(metadata.episodes)
        stored = self._stored_columns(metadata.episodes[0].data)
        self.features = [name for name in metadata.features if name in stored and name not in self._kinds]
        self.action = next((name for name in ACTIONS if name in self.features), ACTIONS[0])
        self.state = next((name for name in STATES if name in self.features), STATES[0])
        absent = [name for name in ("task_index", "timestamp") if name not in stored]
        if absent:
            raise RobotDataError(
                f"got {folder.describe(metadata.episodes[0].data)} with columns {', '.join(stored)}, "
                f"expected also {', '.join(absent)}"
            )

    def shards(self) -> list[str]:
        """One per episode (v2), or per few episodes of one file (v3.0)."""
        return list(self._shards)

    def count_steps(self) -> int:
        """Rows of the episodes that have a task text."""
        labelled = [place for places in self._shards.values() for place in places if place.labelled]
        return sum(rows_of(place.length, self.every) for place in labelled)

    def count_episodes(self) -> int:
        """Episodes of the split."""
        return sum(map(len, self._shards.values()))

    def files(self) -> dict[str, int]:
        """The parquet files of the split."""
        used = {place.data for places in self._shards.values() for place in places}
        return {name: size for name, size in self.folder.sizes("data").items() if name in used}

    def episodes(
        self, shard: str, features: Sequence[str], cameras: Sequence[str], problems: RowProblems
    ) -> Iterator[RobotEpisode]:
        """The episodes of a shard: one read of the columns asked for, one decoder per camera, no frame decoded."""
        pictures = [camera for camera in cameras if self._kinds[camera] == "image"]
        rows = _ParquetRows(self.folder, [*features, *pictures, "timestamp", "task_index"])
        decoders = {
            camera: VideoFrames(self._open_video, self.fps) for camera in cameras if self._kinds[camera] == "video"
        }
        for place in self._shards[shard]:
            identity = f"{self.folder.describe(place.data)} episode {place.index}"
            try:
                table = rows.read(place)
                yield self._episode(table, place, identity, features, cameras, decoders)
            except (RobotDataError, pa.ArrowException, OSError) as error:
                reason = "episode that cannot be read from its parquet file"
                problems.skip(f"{identity} ({error})", reason, rows_of(place.length, self.every))

    def _episode(
        self,
        table: pa.Table,
        place: EpisodePlace,
        identity: str,
        features: Sequence[str],
        cameras: Sequence[str],
        decoders: dict[str, VideoFrames],
    ) -> RobotEpisode:
        texts = [self._tasks.get(task, "") for task in table["task_index"].to_pylist()]
        steps = {name: column_array(table[name], name) for name in features}
        times = table["timestamp"].to_numpy().astype(np.float64).reshape(-1)
        columns: list[list[Any]] = []
        for camera in cameras:
            if camera in decoders:
                name, start = place.videos[camera]
                columns.append([VideoPicture(decoders[camera], name, time) for time in (start + times).tolist()])
            else:
                columns.append(table[camera].to_pylist())
        return RobotEpisode(place.index, identity, texts, steps, [list(row) for row in zip(*columns)])

    def _open_video(self, name: str) -> str | BinaryIO:
        path = self.folder.local_path(name)
        return str(path) if path is not None else self.folder.open(name)

    def _check_files(self, episodes: list[EpisodePlace]) -> None:
        """That the files are there: all of a local data set, the first of a remote one."""
        checked = episodes if self.folder.is_local else episodes[:1]
        names = {name for place in checked for name in (place.data, *(video for video, _ in place.videos.values()))}
        missing = sorted(name for name in names if not self.folder.exists(name))
        if missing:
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
    """Reads the rows of episodes, a row group at a time; the last file and row groups are kept."""

    def __init__(self, folder: DataFolder, columns: list[str]):
        self._folder = folder
        self._columns = list(dict.fromkeys([*columns, "episode_index"]))
        self._name: str | None = None
        self._parquet: pq.ParquetFile | None = None
        self._first_rows: list[int] = []
        self._groups: list[int] = []
        self._table: pa.Table | None = None

    def read(self, place: EpisodePlace) -> pa.Table:
        """The episode's rows; raises `RobotDataError` when the file holds others there."""
        if self._name != place.data or self._parquet is None:
            self._open(place.data)
        assert self._parquet is not None
        last = place.offset + place.length
        starts = self._first_rows
        groups = [
            group for group in range(len(starts) - 1) if starts[group] < last and starts[group + 1] > place.offset
        ]
        if self._table is None or groups != self._groups:
            self._table, self._groups = self._parquet.read_row_groups(groups, columns=self._columns), groups
        assert self._table is not None
        begin = place.offset - (starts[groups[0]] if groups else 0)
        table = self._table.slice(begin, place.length)
        found = set(table["episode_index"].to_pylist())
        if len(table) != place.length or found != {place.index}:
            raise RobotDataError(
                f"got {len(table)} rows of episodes {sorted(found)} at row {place.offset}, expected {place.length} of "
                f"{place.index}: {INFO} and the data do not belong together"
            )
        return table

    def _open(self, name: str) -> None:
        self._parquet = pq.ParquetFile(self._folder.open(name), pre_buffer=False)
        absent = [column for column in self._columns if column not in self._parquet.schema_arrow.names]
        if absent:
            raise RobotDataError(f"got {self._folder.describe(name)} without column {absent[0]}")
        sizes = [self._parquet.metadata.row_group(group).num_rows for group in range(self._parquet.num_row_groups)]
        self._first_rows = np.cumsum([0, *sizes]).tolist()
        self._name, self._table, self._groups = name, None, []


def value_names(feature: dict[str, Any]) -> list[str]:
    """What info.json calls the values of a feature: a list, or one under a word such as "motors"; else `[]`."""
    names = feature.get("names")
    if isinstance(names, dict) and len(names) == 1:
        (names,) = names.values()
    if not isinstance(names, list) or [len(names)] != list(feature["shape"]):
        return []
    return names if all(isinstance(name, str) for name in names) else []


def column_array(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """A column of numbers or of lists of one length as an array [S, ...]; raises `RobotDataError` on another."""
    array: Any = column.combine_chunks()
    rows, shape = len(array), []
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    while any(is_list(array.type) for is_list in lists):
        lengths = pc.call_function("list_value_length", [array]).unique().to_pylist()
        if len(lengths) > 1 or None in lengths:
            raise RobotDataError(f"got {name} of uneven length, expected as many values in every row")
        shape += lengths or [0]
        array = array.flatten()
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        raise RobotDataError(f"got {name} of {array.type}, expected numbers")
    return array.to_numpy(zero_copy_only=False).reshape(rows, *shape)


def _camera_rank(name: str) -> int:
    return 0 if name in PRIMARY_CAMERAS else 1 if name.rpartition(".")[2] in PRIMARY_NAMES else 2


def _divide(episodes: list[EpisodePlace]) -> dict[str, list[EpisodePlace]]:
    """Episodes by shard: neighbours in one file, at most EPISODES_PER_SHARD."""
    shards: dict[str, list[EpisodePlace]] = {}
    current: list[EpisodePlace] = []
    for place in episodes:
        if not current or current[0].data != place.data or len(current) == EPISODES_PER_SHARD:
            current = []
            shards[f"{place.data} from episode {place.index}"] = current
        current.append(place)
    return shards
