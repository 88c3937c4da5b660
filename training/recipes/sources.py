"""The data sets of a recipe: opened, checked, counted.

Decides: which reader a recipe's source gets, and what must be in order before the first step: every data set is there,
has rows and the columns of its kind, and finite actions of the recipe's width. Refuses to know: file formats, the
order of rows, tokens.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image

from gen_vla.processors import compute_statistics, count_clipped
from gen_vla.training.mixing.data_reading import DataReading
from gen_vla.training.mixing.data_source import DataSource
from gen_vla.training.mixing.prepared_rows import ROBOT, VISION_LANGUAGE
from gen_vla.training.mixing.row_tables import (
    QUESTION_FEATURES,
    ROBOT_COLUMNS,
    ROBOT_FEATURES,
    VISION_LANGUAGE_COLUMNS,
    RecordedDemonstrations,
    RecordedQuestions,
    RowTable,
    is_recorded,
    load_columns,
    write_table,
)
from gen_vla.training.mixing.skipped_rows import NAMED, RowProblems
from gen_vla.training.recipes.cameras import model_cameras
from gen_vla.training.recipes.data_schema import RobotSource, VisionLanguageSource
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.robot_data.episodes import READING_VERSION, instruction_text
from gen_vla.training.robot_data.source import RobotSource as RobotReader
from gen_vla.training.robot_data.source import UndecodedRows, open_robot_source
from gen_vla.training.robot_data.statistics import robot_statistics, scaled_mask
from gen_vla.training.storage.data_folder import DataFolder
from gen_vla.training.vision_language_data.source import find_format, open_vision_language_source


REMEDY = "record or convert it first"
RECORDED_CAMERA = "image"  # the column of pictures that `RecordedDemonstrations` shows


@dataclass
class OpenedData:
    """A recipe's data sets by `robot/KEY` and `vision_language/NAME`, robot data first.

    Attributes:
        tables: rows by number; empty for a recipe that streams.
        streams: readers; empty for a recipe that does not.
        norm_stats: statistics of the robot data sets by key, OpenVLA's dictionary.
        clipping: by key `{"values": actions, "clipped": [D]}`, what normalising will clip.
        problems: bad rows the readers met.
        readings: what there is to tell about each.
        cameras: names of the cameras an action is asked for with (`recipes/cameras.py`).
    """

    tables: dict[str, RowTable] = field(default_factory=dict)
    streams: dict[str, DataSource] = field(default_factory=dict)
    norm_stats: dict[str, Any] = field(default_factory=dict)
    clipping: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, RowProblems] = field(default_factory=dict)
    readings: dict[str, DataReading] = field(default_factory=dict)
    cameras: list[str] | None = None

    @property
    def names(self) -> list[str]:
        """All data sets."""
        return [*self.tables, *self.streams]

    def first_rows(self, name: str, count: int) -> list[dict[str, Any]]:
        """The first rows of one data set, at most `count`."""
        if name in self.tables:
            table = self.tables[name]
            return [table[number] for number in range(min(count, len(table)))]
        source = self.streams[name]
        return list(islice(source.rows(source.shards()), count))


def open_data(recipe: Recipe, work_dir: Path, write_tables: bool = True) -> OpenedData:
    """Opens what a recipe names: all of it first, before the first pass over any.

    Args:
        write_tables: whether data sets in other formats than recordings are written into tables, for a recipe that
            does not stream; otherwise they are streams, for a look at the first rows.

    Raises:
        FileNotFoundError: for a data set that is not there.
        ValueError: for one without rows or columns, with damaged files, with actions of another width, or with more
            cameras than another.
    """
    opened, data = OpenedData(), recipe.data
    robots = [(source, _robot_reader(source, recipe, work_dir, opened)) for source in data.robot]
    questions = [(source, _question_reader(source, recipe, work_dir, opened)) for source in data.questions]
    shown = {source.key: [RECORDED_CAMERA] if isinstance(r, Dataset) else r.cameras for source, r in robots}
    opened.cameras = model_cameras(shown)
    tables = write_tables and not data.streaming
    for source, reader in robots:
        _read_robot(source, reader, recipe, work_dir, opened, tables)
    for source, reader in questions:
        _read_questions(source, reader, work_dir, opened, tables)
    return opened


def location(path: str, work_dir: Path) -> str:
    """Where a data set lies: below the work folder, unless the path is absolute or names a protocol."""
    return path if "://" in path else str(work_dir / path)


def _robot_reader(source: RobotSource, recipe: Recipe, work_dir: Path, opened: OpenedData) -> Dataset | RobotReader:
    """The opened data set: rows of a recording, unless they are streamed, or a reader."""
    name, place = f"{ROBOT}/{source.key}", location(source.path, work_dir)
    others = set(source.cameras or ()) - {RECORDED_CAMERA}
    if not recipe.data.streaming and not others and source.every == 1 and is_recorded(Path(place)):
        return load_columns(Path(place), ROBOT_COLUMNS, REMEDY)
    problems = opened.problems[name] = RowProblems(recipe.data.max_bad_share, name=name)
    return open_robot_source(
        place,
        key=source.key,
        cameras=source.cameras,
        transform=source.transform or "identity",
        action=source.action,
        state=source.state,
        split=source.split,
        every=source.every,
        displacements=source.displacements,
        horizon=recipe.actions.horizon,
        problems=problems,
    )


def _read_robot(
    source: RobotSource,
    reader: Dataset | RobotReader,
    recipe: Recipe,
    work_dir: Path,
    opened: OpenedData,
    tables: bool,
) -> None:
    """Statistics and rows of a data set that is open."""
    name = f"{ROBOT}/{source.key}"
    if isinstance(reader, Dataset):
        _read_recording(source, reader, recipe, opened)
    else:
        _read_robot_files(source, reader, recipe, work_dir, opened, tables)
    width = len(opened.norm_stats[source.key]["action"]["q01"])
    if width != recipe.actions.action_dim:
        raise ValueError(
            f"got actions of {width} dimensions in {name}, expected actions.action_dim={recipe.actions.action_dim}; "
            "correct the recipe or the data set"
        )
    statistics = opened.norm_stats[source.key]
    _check_binary(statistics["action"], source.key, recipe.actions.binary_dims)
    opened.norm_stats[source.key] = {**statistics, "action": {**statistics["action"], **_told(source, reader)}}


def _told(source: RobotSource, reader: Dataset | RobotReader) -> dict[str, Any]:
    """What a recipe and its data set say of actions besides figures, which the model keeps; without what is not known.

    Keys of our own in OpenVLA's dictionary (`processors/action_statistics.py`), whose readers look for theirs.
    """
    if isinstance(reader, Dataset):
        told: dict[str, Any] = {"displacements": source.displacements}
    else:
        told = {"names": reader.action_names or None, "fps": reader.hertz, "displacements": reader.displacements}
    return {name: value for name, value in told.items() if value is not None}


def _read_recording(source: RobotSource, dataset: Dataset, recipe: Recipe, opened: OpenedData) -> None:
    key = source.key
    name, texts = f"{ROBOT}/{key}", [instruction_text(text).strip() for text in dataset["instruction"]]
    table = RecordedDemonstrations(dataset, recipe.actions.horizon, name)
    unlabelled = [f"{name} row {number}" for number, text in enumerate(texts) if not text]
    _check_instructions(source, len(texts), unlabelled, len(unlabelled))
    opened.tables[name] = table
    episodes = len(set(dataset["episode_index"]))
    _add_statistics(opened, key, table.actions, episodes, recipe)
    others = [column for column, kind in dataset.features.items() if isinstance(kind, Image) and column != "image"]
    opened.readings[name] = DataReading(
        "recorded",
        len(table),
        episodes,
        ["image"],
        others,
        instructions=len({*texts} - {""}),
        without_instruction=len(unlabelled),
        unlabelled=unlabelled[:NAMED],
    )


def _check_instructions(source: RobotSource, steps: int, unlabelled: list[str], count: int) -> None:
    """Raises `ValueError` for steps without an instruction that the recipe refuses, or where no others are left."""
    if count and (source.without_instruction == "refuse" or count == steps):
        remedy = "write an instruction there"
        remedy += ", or set without_instruction: skip to leave such steps out" if count < steps else ""
        raise ValueError(
            f"robot data set {source.key!r}: got {count:,} of {steps:,} steps without an instruction, such as "
            f"{'; '.join(unlabelled[:3])}: their task is null, empty or missing; {remedy}"
        )


def _check_binary(statistics: dict[str, Any], key: str, binary_dims: list[int]) -> None:
    """Raises `ValueError` for a dimension that is named as binary and holds other values than 0 and 1."""
    for dim in binary_dims:
        low, high, mean, std = (statistics[measure][dim] for measure in ("min", "max", "mean", "std"))
        # Between 0 and 1 the mean of squares is the mean itself only where all values are 0 or 1.
        if not {low, high} <= {0.0, 1.0} or abs(std**2 + mean**2 - mean) > 1e-9:
            others = [other for other in binary_dims if other != dim]
            raise ValueError(
                f"robot data set {key!r}: got values from {low:g} to {high:g} in dimension {dim}, expected 0 and 1 "
                f"alone, since actions.binary_dims names it; leave it out (actions.binary_dims: {others}), and it is "
                "scaled like the other dimensions"
            )


def _add_statistics(opened: OpenedData, key: str, actions: np.ndarray, episodes: int, recipe: Recipe) -> None:
    mask = scaled_mask(actions.shape[1], recipe.actions.binary_dims) if actions.ndim == 2 else None
    try:
        statistics = compute_statistics(actions, episodes, mask)
    except ValueError as error:
        raise ValueError(f"robot data set {key!r}: {error}") from error
    opened.norm_stats[key] = statistics
    clipped = count_clipped(actions, statistics["action"]).tolist()
    opened.clipping[key] = {"values": len(actions), "clipped": clipped}


def _read_robot_files(
    source: RobotSource, reader: RobotReader, recipe: Recipe, work_dir: Path, opened: OpenedData, tables: bool
) -> None:
    name, place = f"{ROBOT}/{source.key}", location(source.path, work_dir)
    statistics = robot_statistics(reader, work_dir / "statistics", unscaled=recipe.actions.binary_dims)
    opened.norm_stats[source.key] = statistics.entry
    steps = statistics.entry["num_transitions"]
    _check_instructions(source, steps, statistics.unlabelled, steps - statistics.rows)
    opened.clipping[source.key] = {"values": steps, "clipped": statistics.clipped}
    opened.readings[name] = DataReading(
        reader.reader.format,
        statistics.rows,
        statistics.entry["num_trajectories"],
        reader.cameras,
        [camera for camera in reader.reader.cameras if camera not in reader.cameras],
        source.cameras is not None,
        statistics.instructions,
        steps - statistics.rows,
        action_names=reader.action_names,
        hertz=reader.hertz,
        every=reader.every,
        unlabelled=statistics.unlabelled,
        skipped=statistics.problems,
        notes=reader.reader.notes,
    )
    if tables:
        settings = {**asdict(source), "place": place, "horizon": reader.horizon, "reading": READING_VERSION}
        settings["changed"] = reader.reader.folder.changed()
        opened.tables[name] = write_table(reader, ROBOT_FEATURES, work_dir, settings)
    else:
        opened.streams[name] = UndecodedRows(reader)


def _question_reader(
    source: VisionLanguageSource, recipe: Recipe, work_dir: Path, opened: OpenedData
) -> Dataset | DataSource:
    """The opened data set, as `_robot_reader`."""
    name, place = f"{VISION_LANGUAGE}/{source.name}", location(source.path, work_dir)
    if not recipe.data.streaming and is_recorded(Path(place)):
        return load_columns(Path(place), VISION_LANGUAGE_COLUMNS, REMEDY)
    problems = opened.problems[name] = RowProblems(recipe.data.max_bad_share, name=name)
    layout = find_format(place, source.format)
    opened.readings[name] = DataReading(layout, None)
    return open_vision_language_source(place, name=name, format=layout, configs=source.configs, problems=problems)


def _read_questions(
    source: VisionLanguageSource, reader: Dataset | DataSource, work_dir: Path, opened: OpenedData, tables: bool
) -> None:
    name, place = f"{VISION_LANGUAGE}/{source.name}", location(source.path, work_dir)
    if isinstance(reader, Dataset):
        opened.tables[name] = RecordedQuestions(reader, name)
        opened.readings[name] = DataReading("recorded", len(reader))
        return
    if tables:
        settings = {"format": source.format, "configs": source.configs, "path": place, "changed": _changed(place)}
        opened.tables[name] = write_table(reader, QUESTION_FEATURES, work_dir, settings)
    else:
        opened.streams[name] = reader
    rows = len(opened.tables[name]) if tables else reader.count_rows()
    opened.readings[name] = replace(opened.readings[name], rows=rows)


def _changed(place: str) -> Mapping[str, int | str]:
    """When the files of a data set of this machine were last changed; `{}` for one elsewhere."""
    if (path := Path(place)).is_file():
        return {path.name: path.stat().st_mtime_ns}
    return DataFolder(place).changed()
