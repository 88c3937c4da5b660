"""Data sets as tables on this machine's disk, for a run whose rows are shuffled perfectly.

A table gives rows as `data_source.py` describes them, by number. Recorded data sets are tables already. The rows of
others are written once, under WORK_DIR/rows/, pictures as they are encoded (video frames as JPEG):

    WORK_DIR/rows/<name>-<digest of the source's settings, shards and columns>.arrow
    WORK_DIR/rows/<the same>.skipped.json      what was skipped while it was written, for the runs that use it again
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from datasets.arrow_writer import ArrowWriter
from PIL.Image import Image as Picture
from tqdm import tqdm

from gen_vla.training.mixing.data_source import DataSource
from gen_vla.training.mixing.encoded_pictures import as_jpeg
from gen_vla.training.robot_data.episodes import RobotEpisode, robot_row, row_places
from gen_vla.training.robot_data.recorded import RecordedReader
from gen_vla.training.robot_data.source import RobotDataset
from gen_vla.training.robot_data.transforms import Trajectory
from gen_vla.training.storage.json_files import read_json, write_json


PICTURES = List(Image(decode=False))
ROBOT_FEATURES = Features(
    {
        "images": PICTURES,
        "instruction": Value("string"),
        "action": List(List(Value("float32"))),
        "action_is_pad": List(Value("bool")),
        "state": List(Value("float32")),  # null where the data set has none
        "identity": Value("string"),
    }
)
QUESTION_FEATURES = Features(
    {
        "images": PICTURES,
        "turns": List({"question": Value("string"), "answer": Value("string")}),
        "identity": Value("string"),
    }
)


class RecordedTable:
    """The rows of a recorded robot data set, where they are; a picture is read when its row is asked for."""

    def __init__(self, source: RobotDataset):
        assert isinstance(source.reader, RecordedReader)
        self.source = source
        self.dataset = source.reader.rows
        self.places: list[tuple[int, RobotEpisode, Trajectory, int]] = []
        for shard in source.shards():
            first = source.reader.stored_rows(shard).start
            for episode, trajectory in source.labelled_episodes([shard]):
                places = row_places(episode, trajectory, source.horizon)
                source.problems.seen(len(places))
                self.places += [(first, episode, trajectory, place) for place in places]
        source.problems.finish()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> dict[str, Any]:
        first, episode, trajectory, place = self.places[number]
        row = robot_row(episode, trajectory, self.source.horizon, place)
        return {**row, "identity": f"{self.source.problems.name} row {first + row['step_index']}"}


class WrittenRows:
    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = dict(self.dataset[number])
        if "action" in row:
            row["action"] = np.asarray(row["action"], dtype=np.float32)
            row["action_is_pad"] = np.asarray(row["action_is_pad"], dtype=bool)
            row["state"] = None if row["state"] is None else np.asarray(row["state"], dtype=np.float32)
        return row


def write_table(source: DataSource, features: Features, work_dir: Path, settings: dict[str, Any]) -> WrittenRows:
    """The rows of a source as a table, written unless an earlier run has; raises `ValueError` for one without rows.

    Args:
        features: `ROBOT_FEATURES` or `QUESTION_FEATURES`.
        settings: what decides the rows besides the source's shards; part of the folder's name.
    """
    shards = source.shards()
    described = json.dumps([settings, shards, list(features)], sort_keys=True, default=str)
    digest = hashlib.sha256(described.encode()).hexdigest()[:16]
    path = work_dir / "rows" / f"{source.name.replace('/', '-')}-{digest}.arrow"
    skipped = path.with_suffix(".skipped.json")
    if path.is_file():
        if skipped.is_file():
            source.problems.receive(read_json(skipped))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            rows = tqdm(source.rows(shards), desc=f"writing {source.name}", unit=" rows")
            with ArrowWriter(features=features, path=str(partial)) as writer:
                for row in rows:
                    # `datasets` would write a frame as PNG: 640 x 480 pixels in 105 ms, not 3, and thrice as large.
                    shown = [as_jpeg(entry) if isinstance(entry, Picture) else entry for entry in row["images"]]
                    row = {**row, "images": shown}
                    writer.write(features.encode_example({name: row[name] for name in features}))  # type: ignore[arg-type]
                written = writer.finalize()[0]
            if not written:
                raise ValueError(f"got the data set {source.name} without a usable row, expected at least one")
            write_json(skipped, source.problems.report())
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
    return WrittenRows(Dataset.from_file(str(path)))
