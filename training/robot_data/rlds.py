"""RLDS data sets: folders that TensorFlow Datasets wrote, read without TensorFlow.

    NAME/1.0.0/dataset_info.json    name, splits with the number of episodes in each shard and their bytes
    NAME/1.0.0/features.json        the tree of features
    NAME/1.0.0/NAME-train.tfrecord-00000-of-00012
                                    one Example per episode; steps are concatenated: "steps/action" float32 [S * 7],
                                    "steps/observation/image_0" [S] JPEGs

Protocol buffers are read by `training/storage/tfrecord_reading.py`.
"""

import copy
import logging
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from tqdm import tqdm

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.episodes import EpisodeReader, RobotDataError, RobotEpisode, instruction_text
from gen_vla.training.storage.data_folder import DataFolder
from gen_vla.training.storage.tfrecord_reading import (
    FOOTER,
    HEADER,
    Features,
    TFRecordError,
    map_records,
    parse_example,
    read_records,
)


logger = logging.getLogger(__name__)

INFO, FEATURES = "dataset_info.json", "features.json"
PRIMARY_CAMERAS = ("observation/image_0", "observation/image")
UNREADABLE = (RobotDataError, TFRecordError, UnicodeDecodeError, LookupError, TypeError, zlib.error)
INSTRUCTIONS = ("language_instruction", "observation/natural_language_instruction")


@dataclass(frozen=True)
class StepFeature:
    """A feature of each step: its kind, "image", "text" or "tensor", and how TensorFlow Datasets stores it.

    `dtype` is NumPy's name; `encoding` of a tensor is "none", or "bytes" or "zlib" where each step is a byte string.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str = field(default="float32", compare=False)
    encoding: str = "none"


def find_rlds(folder: DataFolder) -> DataFolder | None:
    """The folder with the metadata: this one, or the one version below it; `None` where there is none."""
    if folder.exists(INFO) and folder.exists(FEATURES):
        return folder
    found = [name.rpartition("/")[0] for depth in ("*", "*/*") for name in folder.glob(f"{depth}/{FEATURES}")]
    if len(found) > 1:
        raise RobotDataError(
            f"got {folder.path} with {len(found)} RLDS data sets ({', '.join(found)}), expected one; name its folder"
        )
    return folder.subfolder(found[0]) if found else None


class RLDSReader(EpisodeReader):
    format = "RLDS"
    stored_raw = True
    action, state = "action", "observation/state"

    def __init__(self, folder: DataFolder, split: str | None = None, every: int = 1):
        super().__init__(folder, every)
        info = folder.read_json(INFO)
        self.dataset = str(info["name"])
        self._step_features = read_features(folder)
        self.features = [name for name, feature in self._step_features.items() if feature.kind == "tensor"]
        pictures = {name: _depth(name, f) for name, f in self._step_features.items() if f.kind == "image"}
        self.depth = {name: reason for name, reason in pictures.items() if reason}
        colours = [name for name in pictures if name not in self.depth]
        self.cameras = sorted(colours, key=lambda name: (name not in PRIMARY_CAMERAS, name))
        self._instruction = next((name for name in INSTRUCTIONS if name in self._step_features), None)
        if self._instruction is None:
            raise RobotDataError(
                f"got {folder.describe(FEATURES)} with the step features {', '.join(self._step_features)}, "
                f"expected one of {' or '.join(INSTRUCTIONS)}: without instructions there is nothing to learn from"
            )
        entry = _split_entry(info, split or "train", folder)
        self._shards: dict[str, int] = _shard_lengths(entry, self.dataset, folder)  # episodes by file name
        self._sizes = self._check_shards(int(entry.get("numBytes", 0)))
        self._first = dict(zip(self._shards, np.cumsum([0, *self._shards.values()]).tolist()))
        self._wanted: frozenset[int] | None = None  # numbers of episodes; `None` for all

    def count_steps(self) -> None:
        """RLDS metadata counts episodes, not steps."""

    def numbers(self) -> list[int]:
        return [number for shard, count in self._shards.items() for number in self._numbers(shard, count)]

    def only(self, numbers: Collection[int]) -> Self:
        reader = copy.copy(self)
        reader._wanted = frozenset(numbers)
        reader._shards = {shard: count for shard, count in self._shards.items() if reader._numbers(shard, count)}
        return reader

    def _numbers(self, shard: str, count: int) -> list[int]:
        numbers = range(self._first[shard], self._first[shard] + count)
        return [number for number in numbers if self._wanted is None or number in self._wanted]

    def files(self) -> dict[str, int]:
        return dict(self._sizes)

    def chosen(self) -> Any:
        features = {name: str(feature) for name, feature in self._step_features.items()}
        wanted = [] if self._wanted is None else [sorted(self._wanted)]
        return [self._shards, features, self._instruction, *wanted]

    def episodes(
        self, shard: str, features: Sequence[str], cameras: Sequence[str], problems: RowProblems
    ) -> Iterator[RobotEpisode]:
        """The episodes of one file; without cameras, the pictures of a local file are not read."""
        wanted = {f"steps/{name}" for name in (*features, *cameras, self._instruction)}
        path, name = self.folder.local_path(shard), self.folder.describe(shard)
        with self.folder.open(shard) as file:
            records: Any = read_records(name, file, True) if path is None or cameras else map_records(path)
            for number, record in enumerate(records):
                identity, index = f"{name} episode {number}", self._first[shard] + number
                if record is None:
                    problems.skip(identity, "episode with a wrong checksum")
                elif self._wanted is None or index in self._wanted:
                    try:
                        yield self._episode(parse_example(record, wanted), index, identity, features, cameras)
                    except UNREADABLE as error:
                        reason = "episode that does not hold the features features.json says"
                        problems.skip(f"{identity} ({error})", reason)

    def _episode(
        self, example: Features, index: int, identity: str, features: Sequence[str], cameras: Sequence[str]
    ) -> RobotEpisode:
        texts = [instruction_text(text.decode()) for text in _bytes(example, f"steps/{self._instruction}")]
        steps = {name: self._tensor(example, name, len(texts)) for name in features}
        pictures = [_bytes(example, f"steps/{camera}") for camera in cameras]
        if any(len(column) != len(texts) for column in pictures):
            raise RobotDataError(f"got {[len(c) for c in pictures]} pictures, expected {len(texts)}, one per step")
        images = [[{"bytes": data, "path": None} for data in row] for row in zip(*pictures)]
        return RobotEpisode(index, identity, texts, steps, images)

    def _tensor(self, example: Features, name: str, length: int) -> np.ndarray:
        values, feature = example.get(f"steps/{name}"), self._step_features[name]
        if isinstance(values, list) and feature.encoding in ("bytes", "zlib"):
            steps = map(zlib.decompress, values) if feature.encoding == "zlib" else values
            values = np.frombuffer(b"".join(steps), dtype=np.dtype(feature.dtype).newbyteorder("<"))
        shape = (length, *feature.shape)
        if not isinstance(values, np.ndarray) or values.size != int(np.prod(shape)):
            count = 0 if values is None else len(values)
            raise RobotDataError(f"got {name} with {count} values, expected shape {list(shape)}")
        return values.reshape(shape)

    def _check_shards(self, payload: int) -> dict[str, int]:
        """Sizes of the shards; checks that they are there and whole, by the sum of all records in the metadata."""
        present = self.folder.sizes()
        if missing := [name for name in self._shards if name not in present]:
            raise RobotDataError(
                f"got {self.folder.path} without {len(missing)} of the {len(self._shards)} shards its metadata "
                f"names, expected {missing[0]}; fetch them again"
            )
        sizes = {name: present[name] for name in self._shards}
        if sum(sizes.values()) != payload + (HEADER + FOOTER) * sum(self._shards.values()):
            self._check_framing(sizes)
        return sizes

    def _check_framing(self, sizes: dict[str, int]) -> None:
        """Which shard is not whole, record by record; of a remote set only reading it would tell."""
        if not self.folder.is_local:
            logger.warning("%s: the shards' sizes do not add up to what its metadata says", self.folder.path)
            return
        for name in tqdm(sizes, desc="checking shards", unit="shard", disable=len(sizes) < 8):
            path = Path(self.folder.root, name)
            if (count := sum(1 for _ in map_records(path))) != self._shards[name]:
                raise TFRecordError(
                    f"got {path} with {count} records, expected {self._shards[name]} as {INFO} says; the file is "
                    "cut off: fetch it again"
                )


def read_features(folder: DataFolder) -> dict[str, StepFeature]:
    tree = folder.read_json(FEATURES)
    try:
        steps = tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]
        return dict(_leaves(steps, ""))
    except (KeyError, TypeError) as error:
        raise RobotDataError(
            f"got {folder.describe(FEATURES)} without a sequence of steps ({error!r}), expected an RLDS data set: "
            "episodes with steps"
        ) from error


def _leaves(node: dict[str, Any], name: str) -> Iterator[tuple[str, StepFeature]]:
    if "featuresDict" in node:
        for key, child in node["featuresDict"]["features"].items():
            yield from _leaves(child, f"{name}/{key}".lstrip("/"))
    elif "image" in node:
        shape = node["image"].get("shape", {}).get("dimensions", [])
        yield name, StepFeature("image", tuple(map(int, shape)), node["image"].get("dtype") or "uint8")
    elif "text" in node:
        yield name, StepFeature("text", ())
    elif "tensor" in node:
        tensor = node["tensor"]
        dtype, shape = tensor.get("dtype") or "float32", tensor.get("shape", {}).get("dimensions", [])
        kind, encoding = "text" if dtype == "string" else "tensor", (tensor.get("encoding") or "none").lower()
        yield name, StepFeature(kind, tuple(int(size) for size in shape), dtype, encoding)


def _depth(name: str, feature: StepFeature) -> str:
    """What says that a picture holds depth; "" where nothing does."""
    if feature.dtype != "uint8":
        return f"its dtype {feature.dtype} in {FEATURES}"
    return f"its name, and its one channel in {FEATURES}" if "depth" in name and feature.shape[-1:] == (1,) else ""


def _split_entry(info: dict[str, Any], split: str, folder: DataFolder) -> dict[str, Any]:
    splits = {entry["name"]: entry for entry in info.get("splits", [])}
    if split not in splits:
        raise RobotDataError(
            f"got split={split!r}, expected one of {', '.join(splits) or 'none'} as in {folder.describe(INFO)}"
        )
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise RobotDataError(f"got {folder.describe(INFO)} with files of {info['fileFormat']}, expected tfrecord")
    return splits[split]


def _shard_lengths(entry: dict[str, Any], dataset: str, folder: DataFolder) -> dict[str, int]:
    lengths = [int(length) for length in entry.get("shardLengths", [])]
    if not sum(lengths):
        raise RobotDataError(f"got split {entry['name']!r} of {folder.path} without episodes, expected at least one")
    template = entry.get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
    names = {"DATASET": dataset, "SPLIT": entry["name"], "FILEFORMAT": "tfrecord", "NUM_SHARDS": f"{len(lengths):05d}"}
    files = {}
    for number, length in enumerate(lengths):
        numbers = {"SHARD_INDEX": f"{number:05d}", "SHARD_X_OF_Y": f"{number:05d}-of-{len(lengths):05d}"}
        files[template.format(**names, **numbers)] = length
    return files


def _bytes(example: Features, name: str) -> list[bytes]:
    values = example.get(name)
    if not isinstance(values, list):
        raise RobotDataError(f"got an episode without {name}")
    return values
