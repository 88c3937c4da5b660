"""The data sets of a recipe: opened, checked, counted.

Before the first step every data set must be there, with rows, columns of its kind and actions of the right width.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from gen_vla.training.held_out import HELD_OUT, held_out_episodes, question_draw
from gen_vla.training.mixing.data_source import DataReading, DataSource
from gen_vla.training.mixing.mixture import Turns
from gen_vla.training.mixing.prepared_rows import ROBOT, VISION_LANGUAGE
from gen_vla.training.mixing.row_tables import QUESTION_FEATURES, ROBOT_FEATURES, RecordedTable, write_table
from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.recipes.data_schema import RobotSource, VisionLanguageSource
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.robot_data.episodes import READING_VERSION
from gen_vla.training.robot_data.recorded import RecordedReader
from gen_vla.training.robot_data.source import RobotDataset, open_robot_source
from gen_vla.training.robot_data.statistics import is_binary, robot_statistics
from gen_vla.training.storage.data_folder import DataFolder
from gen_vla.training.storage.hub_data import HUB_DATA, pinned
from gen_vla.training.vision_language_data.packed import PackedSource, is_packed
from gen_vla.training.vision_language_data.rows import ConversationSource
from gen_vla.training.vision_language_data.source import find_format, network_cost, open_vision_language_source
from gen_vla.training.vision_language_data.tables import RecordedSource


logger = logging.getLogger(__name__)


@dataclass
class OpenedData:
    """A recipe's data sets by `robot/KEY` and `vision_language/NAME`, robot data first."""

    tables: dict[str, Any] = field(default_factory=dict)  # empty for a recipe that streams
    streams: dict[str, DataSource] = field(default_factory=dict)  # empty for one that does not
    held_out: dict[str, DataSource] = field(default_factory=dict)  # what is no part of either (`data.validation`)
    norm_stats: dict[str, Any] = field(default_factory=dict)  # of the robot data by key, OpenVLA's dictionary
    clipping: dict[str, Any] = field(default_factory=dict)  # by key {"values": actions, "clipped": [D]}
    problems: dict[str, RowProblems] = field(default_factory=dict)  # bad rows the readers met
    readings: dict[str, DataReading] = field(default_factory=dict)
    cameras: list[str] | None = None  # names of those an action is asked for with (`model_cameras`)
    origins: dict[str, Any] = field(default_factory=dict)  # for records: where each set lies, commits on the Hub

    def turns(self, recipe: Recipe) -> Turns:
        data = recipe.data
        rows = {source.name: self.readings[f"{VISION_LANGUAGE}/{source.name}"].rows for source in data.questions}
        weights = [source.weight or float(min(rows[source.name] or 1, data.size_cap)) for source in data.questions]
        return Turns([source.weight for source in data.robot], weights, data.robot_share)

    @property
    def names(self) -> list[str]:
        return [*self.tables, *self.streams]

    def first_rows(self, name: str, count: int) -> list[dict[str, Any]]:
        if name in self.tables:
            table = self.tables[name]
            return [table[number] for number in range(min(count, len(table)))]
        source = self.streams[name]
        return list(islice(source.rows(source.shards()), count))


def open_data(
    recipe: Recipe, work_dir: Path, write_tables: bool = True, commits: Mapping[str, str] | None = None
) -> OpenedData:
    """Opens what a recipe names: all of it first, before the first pass over any.

    Args:
        write_tables: whether data sets in other formats than recordings are written into tables, for a recipe that
            does not stream; otherwise they are streams, for a look at the first rows.
        commits: of data sets on the Hub by path, where an earlier start of this run read them; by default the newest.

    Raises:
        FileNotFoundError: for a data set that is not there, or not packed where a run needs it packed.
        ValueError: for one without rows or columns, with damaged files, with actions of another width, or with more
            cameras than another.
    """
    opening, data = _Opening(recipe, work_dir, write_tables, commits or {}), recipe.data
    robots = [(source, opening.robot_reader(source)) for source in data.robot]
    questions = [(source, opening.question_reader(source)) for source in data.questions]
    opening.opened.cameras = model_cameras({source.key: reader.cameras for source, reader in robots})
    for source, reader in robots:
        opening.read_robot(source, reader)
    for source, reader in questions:
        opening.read_questions(source, reader)
    return opening.opened


@dataclass
class _Opening:
    """What `open_data` does with one data set after another; arguments are its."""

    recipe: Recipe
    work_dir: Path
    write_tables: bool
    commits: Mapping[str, str]
    opened: OpenedData = field(default_factory=OpenedData)
    places: dict[str, str] = field(default_factory=dict)  # where each set is read

    def location(self, path: str, name: str) -> str:
        place, commit = pinned(path, self.commits)
        self.opened.origins[name] = {"path": path, **({"revision": commit} if commit else {})}
        self.places[name] = place if "://" in path else str(self.work_dir / path)
        return self.places[name]

    def problems(self, name: str) -> RowProblems:
        self.opened.problems[name] = RowProblems(self.recipe.data.max_bad_share, name=name)
        return self.opened.problems[name]

    def robot_reader(self, source: RobotSource) -> RobotDataset:
        """The opened data set; raises `ValueError` for one without the state that the recipe needs."""
        reader = open_robot_source(
            self.location(source.path, f"{ROBOT}/{source.key}"),
            key=source.key,
            cameras=source.cameras,
            transform=source.transform or "identity",
            action=source.action,
            state=source.state,
            split=source.split,
            every=source.every,
            displacements=source.displacements,
            relative=[group.entry() for group in source.relative] or None,
            horizon=self.recipe.actions.horizon,
            problems=self.problems(f"{ROBOT}/{source.key}"),
        )
        if self.recipe.takes_state and not reader.has_state:
            raise ValueError(
                f"robot data set {source.key!r}: got the features {', '.join(reader.reader.features)}, expected the "
                f"robot's state among them ({', '.join(reader.transform.state)}), since the recipe takes it "
                "(data.state, or relative actions); name its features with `state`"
            )
        return reader

    def read_robot(self, source: RobotSource, reader: RobotDataset) -> None:
        name, actions, opened = f"{ROBOT}/{source.key}", self.recipe.actions, self.opened
        numbers, validation = reader.reader.numbers(), self.recipe.data.validation
        held_out, notes = held_out_episodes(validation, source.key, numbers), []
        if held_out:
            opened.held_out[name] = reader.only(held_out, RowProblems(name=f"{name}, held out"))
            reader = reader.only(set(numbers) - set(held_out))
            notes = [f"{len(held_out)} of {len(numbers)} episodes are held out"]
        statistics = robot_statistics(
            reader, self.work_dir / "statistics", unscaled=actions.binary_dims, normalization=actions.normalization
        )
        entry, steps = statistics.entry, statistics.entry["num_transitions"]
        _check_instructions(source, steps, statistics.unlabelled, steps - statistics.rows)
        width = len(entry["action"]["q01"])
        if width != actions.action_dim:
            raise ValueError(
                f"got actions of {width} dimensions in {name}, expected actions.action_dim={actions.action_dim}; "
                "correct the recipe or the data set"
            )
        _check_binary(entry["action"], source.key, actions.binary_dims)
        # Names, units, rate and displacements are kept beside the figures, as keys of our own in OpenVLA's dictionary.
        metadata = {"names": reader.action_names or None, "fps": reader.hertz, "displacements": reader.displacements}
        metadata |= {"units": reader.action_units or None, "relative": reader.relative}
        known = {key: value for key, value in metadata.items() if value is not None}
        opened.norm_stats[source.key] = {**entry, "action": {**entry["action"], **known}}
        if held_out:
            opened.norm_stats[source.key][HELD_OUT] = held_out
        opened.clipping[source.key] = {"values": statistics.values, "clipped": statistics.clipped}
        opened.readings[name] = DataReading(
            reader.reader.format,
            statistics.rows,
            entry["num_trajectories"],
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
            notes=[*reader.reader.notes, *notes],
        )
        recorded = isinstance(reader.reader, RecordedReader)
        if not self.by_number(recorded):
            opened.streams[name] = reader.undecoded()
        elif recorded:
            opened.tables[name] = RecordedTable(reader)
        else:
            settings = {**asdict(source), "place": self.places[name], "horizon": reader.horizon}
            settings |= {"reading": READING_VERSION, "changed": reader.reader.folder.changed()}
            settings |= {HELD_OUT: held_out} if held_out else {}
            opened.tables[name] = write_table(reader, ROBOT_FEATURES, self.work_dir, settings)

    def by_number(self, recorded: bool) -> bool:
        return not self.recipe.data.streaming and (recorded or self.write_tables)

    def question_reader(self, source: VisionLanguageSource) -> ConversationSource:
        name = f"{VISION_LANGUAGE}/{source.name}"
        packed = self.packed_place(source, name)
        place = packed or self.location(source.path, name)
        problems, layout = self.problems(name), find_format(place, "packed" if packed else source.format)
        configs = None if layout == "packed" else source.configs
        reader = open_vision_language_source(place, name=name, format=layout, configs=configs, problems=problems)
        notes = []
        if isinstance(reader, PackedSource):
            notes = [self.check_packed(source, name, reader)]
        elif place.startswith(HUB_DATA):
            notes = [network_cost(reader, place, self.readers)]
            logger.warning("%s: %s", name, notes[0])
        self.opened.readings[name] = DataReading(layout, None, notes=notes)
        return reader

    @property
    def readers(self) -> int:
        return int(os.environ.get("WORLD_SIZE", "1")) * max(self.recipe.data.num_workers, 1)

    def packed_place(self, source: VisionLanguageSource, name: str) -> str | None:
        """Where a set is packed, `None` where it is not; raises `FileNotFoundError` where a run needs it to be."""
        folder = self.recipe.data.packed
        if folder is None:
            return None
        place = f"{self.location(folder, name)}/{source.name}"
        if is_packed(place):
            self.places[name] = place
            return place
        if source.path.startswith(HUB_DATA) and self.write_tables:
            raise FileNotFoundError(
                f"got no packed set at {place}, expected {source.path} packed there: run gen-vla pack RECIPE --output "
                f"{place.rpartition('/')[0]}, or set data.packed to null to read the set over the network"
            )
        return None

    def check_packed(self, source: VisionLanguageSource, name: str, reader: PackedSource) -> str:
        """A sentence on what is packed; raises `ValueError` where it is not what the recipe asks for."""
        found, packed = reader.manifest, reader.manifest["source"]
        if found["side"] is not None and found["side"] < self.recipe.data.image_size:
            raise ValueError(
                f"{name}: got pictures packed at {found['side']} pixels a side in {reader.folder.path}, expected at "
                f"least data.image_size={self.recipe.data.image_size}; pack the set again, into another folder"
            )
        if packed["configs"] != source.configs:
            raise ValueError(
                f"{name}: got configs {packed['configs']} packed in {reader.folder.path}, expected {source.configs}, "
                "as the recipe says; pack the set again, into another folder"
            )
        self.opened.origins[name] |= {"packed_from": packed, "rows": found["rows"]}
        revision = f" at {packed['revision']}" if packed["revision"] else ""
        pictures = f"made for {found['side']} pixels a side" if found["side"] else "as they were"
        return f"packed from {packed['path']}{revision}, pictures {pictures}"

    def read_questions(self, source: VisionLanguageSource, reader: ConversationSource) -> None:
        name, opened = f"{VISION_LANGUAGE}/{source.name}", self.opened
        place = self.places[name]
        if draw := question_draw(self.recipe.data.validation, source.name):
            opened.held_out[name] = reader.only(draw, RowProblems(name=f"{name}, held out"))
            reader = reader.only(replace(draw, held_out=False))
        if not self.by_number(isinstance(reader, RecordedSource)):
            opened.streams[name] = reader.undecoded() if isinstance(reader, PackedSource) else reader
        elif isinstance(reader, RecordedSource):
            opened.tables[name] = reader
        else:
            file = Path(place)
            changed = {file.name: file.stat().st_mtime_ns} if file.is_file() else DataFolder(place).changed()
            settings = {"format": source.format, "configs": source.configs, "path": place, "changed": changed}
            if draw and (validation := self.recipe.data.validation):
                settings[HELD_OUT] = [validation.questions, validation.seed]
            opened.tables[name] = write_table(reader, QUESTION_FEATURES, self.work_dir, settings)
        rows = len(opened.tables[name]) if name in opened.tables else reader.count_rows()
        opened.readings[name] = replace(opened.readings[name], rows=rows)


def _check_instructions(source: RobotSource, steps: int, unlabelled: list[str], count: int) -> None:
    if count and (source.without_instruction == "refuse" or count == steps):
        remedy = "write an instruction there"
        remedy += ", or set without_instruction: skip to leave such steps out" if count < steps else ""
        raise ValueError(
            f"robot data set {source.key!r}: got {count:,} of {steps:,} steps without an instruction, such as "
            f"{'; '.join(unlabelled[:3])}: their task is null, empty or missing; {remedy}"
        )


def _check_binary(statistics: dict[str, Any], key: str, binary_dims: list[int]) -> None:
    for dim in binary_dims:
        if not is_binary(statistics, dim):
            others = [other for other in binary_dims if other != dim]
            raise ValueError(
                f"robot data set {key!r}: got values from {statistics['min'][dim]:g} to {statistics['max'][dim]:g} in "
                f"dimension {dim}, expected 0 and 1 alone, since actions.binary_dims names it; leave it out "
                f"(actions.binary_dims: {others}), and it is scaled like the other dimensions"
            )


def model_cameras(data_sets: Mapping[str, Sequence[str]]) -> list[str] | None:
    """The names that are saved with the processor, in the order of a prompt's pictures; raises `ValueError` if one
    data set shows more cameras than another, or one camera twice.

    A name is the last part of what a data set stores ("wrist" of "observation.images.wrist"), the whole where that is
    not enough to tell two apart. Data sets whose cameras have other names share a model place by place, under the
    names of the first.

    Args:
        data_sets: by key, the stored names of the cameras that rows show.

    Returns:
        `None` without data sets, and for one picture that they call differently.
    """
    if not data_sets:
        return None
    for key, cameras in data_sets.items():
        if len(set(cameras)) < len(cameras):
            raise ValueError(f"got the cameras {', '.join(cameras)} of {key}, expected each once; correct `cameras`")
    if len({len(cameras) for cameras in data_sets.values()}) > 1:
        found = "; ".join(f"{key}: {', '.join(cameras)}" for key, cameras in data_sets.items())
        raise ValueError(
            f"got robot data sets with different numbers of cameras ({found}), expected as many of each: an action is "
            "asked for with one number of pictures; name as many `cameras` of each data set, corresponding ones in "
            "the same place"
        )
    named = [short_names(cameras) for cameras in data_sets.values()]
    if len(named[0]) == 1 and any(names != named[0] for names in named):
        return None
    return named[0]


def short_names(cameras: Sequence[str]) -> list[str]:
    """The last part of each name, unless two have the same."""
    names = [re.split(r"[/.]", camera)[-1] for camera in cameras]
    return names if len(set(names)) == len(names) else list(cameras)
