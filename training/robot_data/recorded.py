"""Data sets recorded by this project: a folder written by `datasets.save_to_disk`, one row per step.

image, instruction, action float32 [D], episode_index; rows of an episode stand together
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from datasets import Dataset, Image, load_from_disk

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.episodes import (
    EpisodeReader,
    RobotDataError,
    RobotEpisode,
    instruction_text,
    rows_of,
)
from gen_vla.training.robot_data.stored_columns import column_array, stored_pictures
from gen_vla.training.storage.data_folder import DataFolder


STATE = "state.json"
COLUMNS = ("image", "instruction", "action", "episode_index")


class RecordedReader(EpisodeReader):
    """All episodes, a shard each. There is one split, "train"; `cameras` are the columns of pictures."""

    format = "recorded"

    def __init__(self, folder: DataFolder, split: str | None = None, every: int = 1):
        super().__init__(folder, every)
        if split not in (None, "train"):
            raise RobotDataError(f"got split={split!r} of {folder.path}, expected 'train': a recording has no other")
        if not folder.is_local:
            raise RobotDataError(f"got {folder.path}, expected a recording on this machine; fetch it first")
        rows = load_from_disk(folder.root)
        if not isinstance(rows, Dataset):
            raise RobotDataError(f"got {folder.path} with splits {list(rows)}, expected one data set: name its folder")
        missing = [name for name in COLUMNS if name not in rows.column_names]
        if missing:
            raise RobotDataError(
                f"got {folder.path} with columns {', '.join(rows.column_names)}, expected also {', '.join(missing)}"
            )
        self.dataset = folder.root.rpartition("/")[2]
        self.cameras = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
        self.features = [name for name in rows.column_names if name not in (*self.cameras, "instruction")]
        for camera in self.cameras:
            rows = rows.cast_column(camera, Image(decode=False))
        self._rows = rows.with_format("arrow")
        self._shards: dict[str, tuple[int, int]] = self._find_episodes()

    def count_steps(self) -> int:
        return sum(rows_of(last - first, self.every) for first, last in self._shards.values())

    def count_episodes(self) -> int:
        return len(self._shards)

    def files(self) -> dict[str, int]:
        return self.folder.sizes()

    def chosen(self) -> Any:
        return list(self._shards)

    def episodes(
        self, shard: str, features: Sequence[str], cameras: Sequence[str], problems: RowProblems
    ) -> Iterator[RobotEpisode]:
        first, last = self._shards[shard]
        table: Any = self._rows.select_columns([*features, *cameras, "instruction", "episode_index"])[first:last]
        index = table["episode_index"][0].as_py()
        identity = f"{self.folder.path} episode {index}"
        steps = {name: column_array(table[name], name) for name in features}
        texts = [instruction_text(text) for text in table["instruction"].to_pylist()]
        images = [list(row) for row in zip(*(stored_pictures(table[name], name, self.folder) for name in cameras))]
        yield RobotEpisode(index, identity, texts, steps, images)

    def _find_episodes(self) -> dict[str, tuple[int, int]]:
        if not len(self._rows):
            return {}
        table: Any = self._rows.select_columns(["episode_index"])[:]
        numbers = table["episode_index"].to_numpy()
        starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        if len(set(numbers.tolist())) != len(starts) - 1:
            raise RobotDataError(
                f"got {self.folder.path} with rows of one episode in several places, expected them one after the "
                "other; sort the rows by episode_index"
            )
        return {f"episode {numbers[a]}": (a, b) for a, b in pairwise(starts)}
