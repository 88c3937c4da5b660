"""Robot data sets recorded by this project (`storage/recordings.py`), one row per step.

image, instruction, action float32 [D], episode_index; rows of an episode stand together
recording.json: `action_names` [D], `action_units` [D] and `fps`, steps a second, where it has them
"""

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from datasets import Dataset, Image

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.episodes import EpisodeReader, RobotDataError, RobotEpisode, instruction_text, rows_of
from gen_vla.training.robot_data.stored_columns import column_array, stored_pictures
from gen_vla.training.storage.data_folder import DataFolder
from gen_vla.training.storage.recordings import METADATA_FILE, ROBOT_COLUMNS, load_recording


MAIN_CAMERA = "image"
SHARD = "episode "  # and its number


class RecordedReader(EpisodeReader):
    """All episodes, a shard each, of the one split, "train"; `cameras` are the columns of pictures."""

    format = "recorded"

    def __init__(self, folder: DataFolder, split: str | None = None, every: int = 1):
        super().__init__(folder, every)
        if split not in (None, "train"):
            raise RobotDataError(f"got split={split!r} of {folder.path}, expected 'train': a recording has no other")
        if not folder.is_local:
            raise RobotDataError(f"got {folder.path}, expected a recording on this machine; fetch it first")
        rows = load_recording(folder.root, ROBOT_COLUMNS)
        self.dataset = folder.root.rpartition("/")[2]
        pictures = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
        self.cameras = list(dict.fromkeys([MAIN_CAMERA, *pictures]))
        self.features = [name for name in rows.column_names if name not in (*self.cameras, "instruction")]
        described = folder.read_json(METADATA_FILE) if folder.exists(METADATA_FILE) else {}
        self.fps = described.get("fps")
        self.value_names = {"action": described.get("action_names") or ()}
        self.value_units = {"action": described.get("action_units") or ()}
        self.rows = rows.with_format("arrow")
        self._selected: dict[tuple[str, ...], Dataset] = {}
        self._shards: dict[str, range] = self._find_episodes()

    def count_steps(self) -> int:
        return sum(rows_of(len(rows), self.every) for rows in self._shards.values())

    def numbers(self) -> list[int]:
        return sorted(int(shard.removeprefix(SHARD)) for shard in self._shards)

    def only(self, numbers: Collection[int]) -> Self:
        reader, wanted = copy.copy(self), {f"{SHARD}{number}" for number in numbers}
        reader._shards = {shard: rows for shard, rows in self._shards.items() if shard in wanted}
        return reader

    def files(self) -> dict[str, int]:
        return self.folder.sizes()

    def chosen(self) -> Any:
        return list(self._shards)

    def stored_rows(self, shard: str) -> range:
        return self._shards[shard]

    def episodes(
        self, shard: str, features: Sequence[str], cameras: Sequence[str], problems: RowProblems
    ) -> Iterator[RobotEpisode]:
        numbers = self._shards[shard]
        table: Any = self._columns(*features, "instruction", "episode_index")[numbers.start : numbers.stop]
        index = table["episode_index"][0].as_py()
        identity = f"{self.folder.path} episode {index}"
        steps = {name: column_array(table[name], name) for name in features}
        texts = [instruction_text(text) for text in table["instruction"].to_pylist()]
        yield RobotEpisode(index, identity, texts, steps, _Pictures(self._columns(*cameras), numbers, self.folder))

    def _columns(self, *names: str) -> Dataset:
        if names not in self._selected:  # choosing columns takes longer than reading an episode's
            self._selected[names] = self.rows.select_columns(list(names))
        return self._selected[names]

    def _find_episodes(self) -> dict[str, range]:
        if not len(self.rows):
            return {}
        table: Any = self._columns("episode_index")[:]
        numbers = table["episode_index"].to_numpy()
        starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        if len(set(numbers.tolist())) != len(starts) - 1:
            raise RobotDataError(
                f"got {self.folder.path} with rows of one episode in several places, expected them one after the "
                "other; sort the rows by episode_index"
            )
        return {f"{SHARD}{numbers[a]}": range(a, b) for a, b in pairwise(starts)}


@dataclass(frozen=True)
class _Pictures(Sequence[list[Any]]):
    rows: Dataset  # of the cameras' columns
    numbers: range
    folder: DataFolder

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, step: Any) -> Any:
        number = self.numbers[step]
        table: Any = self.rows[number : number + 1]
        return [stored_pictures(table[name], name, self.folder)[0] for name in table.column_names]
