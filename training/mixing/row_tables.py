"""Data sets as tables on this machine's disk, for a run whose rows are shuffled perfectly.

A table gives rows as `data_source.py` describes them, by number. Recorded data sets are tables already. The rows of
others are written once, under WORK_DIR/rows/, pictures as they are encoded (video frames as PNG):

    WORK_DIR/rows/<name>-<digest of the source's settings, shards and columns>.arrow
    WORK_DIR/rows/<the same>.skipped.json      what was skipped while it was written, for the runs that use it again
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from datasets import Dataset, Features, Image, List, Value, load_from_disk
from datasets.arrow_writer import ArrowWriter
from tqdm import tqdm

from gen_vla.training.mixing.data_source import DataSource
from gen_vla.training.robot_data.episodes import instruction_text


ROBOT_COLUMNS = ("image", "instruction", "action", "episode_index")
VISION_LANGUAGE_COLUMNS = ("image", "question", "answer")
PICTURES = List(Image(decode=False))
ROBOT_FEATURES = Features(
    {
        "images": PICTURES,
        "instruction": Value("string"),
        "action": List(List(Value("float32"))),
        "action_is_pad": List(Value("bool")),
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


class RowTable(Protocol):
    """Rows by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The row, its pictures encoded."""
        ...


def load_columns(path: Path, columns: tuple[str, ...]) -> Dataset:
    """A data set from disk; raises `FileNotFoundError` or `ValueError` that says what is missing and what to do."""
    if not is_recorded(path):
        raise FileNotFoundError(
            f"got no data set at {path}, expected a folder written by save_to_disk; record or convert it first"
        )
    dataset = load_from_disk(str(path))
    assert isinstance(dataset, Dataset)
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(f"{path}: got columns {dataset.column_names}, expected also {', '.join(missing)}")
    return dataset


def is_recorded(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`, as `drawers/recording.py` does."""
    return (path / "state.json").is_file()


class RecordedDemonstrations:
    """A recorded robot data set: columns image, instruction, action float [D] in units, episode_index.

    Steps without an instruction are no rows of it; `actions` [S, D] holds theirs, too.

    Args:
        dataset: rows of an episode stand together, in the order of time.
        horizon: T, steps of a chunk; behind an episode's end its last action is repeated.
        name: of the data set, for its rows' identities.
    """

    def __init__(self, dataset: Dataset, horizon: int, name: str):
        self.rows = dataset.select_columns(["image", "instruction"]).cast_column("image", Image(decode=False))
        self.actions = np.asarray(dataset.with_format("numpy")["action"][:], dtype=np.float32)
        episodes = np.asarray(dataset["episode_index"])
        starts = np.flatnonzero(np.append(True, episodes[1:] != episodes[:-1])) if len(episodes) else np.array([], int)
        texts = map(instruction_text, dataset["instruction"])
        self.numbers = np.flatnonzero([bool(text.strip()) for text in texts])
        self.last = np.repeat(np.append(starts[1:], len(episodes)) - 1, np.diff(np.append(starts, len(episodes))))
        self.horizon = horizon
        self.name = name

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> dict[str, Any]:
        number = int(self.numbers[number])
        row = self.rows[number]
        steps = np.arange(number, number + self.horizon)
        images = [] if row["image"] is None else [row["image"]]
        return {
            "images": images,
            "instruction": row["instruction"],
            "action": self.actions[np.minimum(steps, self.last[number])],
            "action_is_pad": steps > self.last[number],
            "identity": f"{self.name} row {number}",
        }


class RecordedQuestions:
    """A recorded vision-language data set: columns image (or null), question, answer."""

    def __init__(self, dataset: Dataset, name: str):
        columns = dataset.select_columns(list(VISION_LANGUAGE_COLUMNS))
        self.rows = columns.cast_column("image", Image(decode=False))
        self.name = name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = self.rows[number]
        images = [] if row["image"] is None else [row["image"]]  # without one, a row is text only
        turns = [{"question": row["question"], "answer": row["answer"]}]
        return {"images": images, "turns": turns, "identity": f"{self.name} row {number}"}


class WrittenRows:
    """Rows of any source, written once into a table."""

    def __init__(self, dataset: Dataset):
        self.rows = dataset

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = dict(self.rows[number])
        if "action" in row:
            row["action"] = np.asarray(row["action"], dtype=np.float32)
            row["action_is_pad"] = np.asarray(row["action_is_pad"], dtype=bool)
        return row


def write_table(
    source: DataSource, features: Features, work_dir: Path, settings: dict[str, Any], progress: bool = True
) -> WrittenRows:
    """The rows of a source as a table, written unless an earlier run of the same settings has.

    Args:
        features: `ROBOT_FEATURES` or `QUESTION_FEATURES`.
        settings: what decides the rows besides the source's shards; part of the folder's name.

    Raises:
        ValueError: if the source has no rows.
    """
    shards = source.shards()
    described = json.dumps([settings, shards, list(features)], sort_keys=True, default=str)
    digest = hashlib.sha256(described.encode()).hexdigest()[:16]
    path = work_dir / "rows" / f"{source.name.replace('/', '-')}-{digest}.arrow"
    skipped = path.with_suffix(".skipped.json")
    if path.is_file():
        if skipped.is_file():
            source.problems.receive(json.loads(skipped.read_text(encoding="utf-8")))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            if not _write_rows(source, shards, features, partial, progress):
                raise ValueError(f"got the data set {source.name} without a usable row, expected at least one")
            skipped.write_text(json.dumps(source.problems.report(), indent=2) + "\n", encoding="utf-8")
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
    return WrittenRows(Dataset.from_file(str(path)))


def _write_rows(source: DataSource, shards: list[str], features: Features, path: Path, progress: bool) -> int:
    """Writes the rows one by one; returns how many there were."""
    rows = tqdm(source.rows(shards), desc=f"writing {source.name}", unit=" rows", disable=not progress)
    with ArrowWriter(features=features, path=str(path)) as writer:
        for row in rows:
            writer.write(features.encode_example({name: row[name] for name in features}))  # type: ignore[arg-type]
        return writer.finalize()[0]
