"""Opens robot data sets of any format and gives their rows, with the transform and the cameras that were chosen.

dataset = open_robot_source("hf://datasets/IPEC-COMMUNITY/bridge_orig_lerobot", key="bridge_orig", horizon=4)
row = next(dataset.rows(dataset.shards()))     # fields: see training/mixing/data_source.py
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.episodes import (
    EpisodeReader,
    RobotDataError,
    RobotEpisode,
    episode_rows,
    finite_chunks,
    rows_of,
    spread,
)
from gen_vla.training.robot_data.layouts import check_layout
from gen_vla.training.robot_data.lerobot.metadata import INFO as LEROBOT_INFO
from gen_vla.training.robot_data.lerobot.reading import LeRobotReader
from gen_vla.training.robot_data.recorded import RecordedReader
from gen_vla.training.robot_data.rlds import RLDSReader, find_rlds
from gen_vla.training.robot_data.stored_columns import has_picture
from gen_vla.training.robot_data.transforms import RobotTransform, Trajectory, choose_transform, thinned
from gen_vla.training.robot_data.video_frames import MISSING_FRAME, VideoError, VideoPicture
from gen_vla.training.storage.data_folder import DataFolder
from gen_vla.training.storage.recordings import STATE


NOT_FINITE = "action that is not finite"


@dataclass(eq=False)
class RobotDataset:
    """A robot data set as a `DataSource`. Made by `open_robot_source`."""

    name: str  # the key of its statistics
    reader: EpisodeReader
    transform: RobotTransform
    cameras: list[str]  # those whose pictures rows hold, in order
    horizon: int  # T, the steps of a row's action chunk
    problems: RowProblems  # counts what was skipped
    displacements: list[int] | None = None  # dimensions of an action that say how far to move, where that is known
    every: int = 1  # every n-th step of an episode is a row, see `transforms.thinned`
    relative: list[dict[str, Any]] | None = None  # dimensions learned relative to the state, for `statistics`
    decode: bool = True  # whether rows hold decoded frames of videos
    lanes: int = 16  # see `DataSource`: twice the robot rows of a micro-batch of 16

    @property
    def features(self) -> list[str]:
        present = [feature for feature in self.transform.optional if feature in self.reader.features]
        return [*self.transform.features, *present]

    @property
    def has_state(self) -> bool:
        return bool(self.transform.state) and all(name in self.reader.features for name in self.transform.state)

    @property
    def hertz(self) -> float | None:
        """Steps a second of what a policy learns, where the data set says it."""
        return self.reader.fps / self.every if self.reader.fps else None

    @property
    def action_names(self) -> list[str]:
        """What the values of an action are called, [D]; `[]` where not all are, or a transform changes them."""
        return self._said_of_actions(self.reader.value_names)

    @property
    def action_units(self) -> list[str]:
        """Likewise their units."""
        return self._said_of_actions(self.reader.value_units)

    def _said_of_actions(self, by_feature: Mapping[str, Sequence[str]]) -> list[str]:
        said = [by_feature.get(feature, ()) for feature in self.transform.action]
        return [text for texts in said for text in texts] if self.transform.name == "identity" and all(said) else []

    def shards(self) -> list[str]:
        return self.reader.shards()

    def count_rows(self) -> int | None:
        """Rows, where metadata and transform leave no doubt; `None` for RLDS."""
        return self.reader.count_steps() if self.transform.name == "identity" else None

    def only(self, numbers: Collection[int], problems: RowProblems | None = None) -> "RobotDataset":
        return replace(self, reader=self.reader.only(numbers), problems=problems or self.problems)

    def undecoded(self) -> "RobotDataset":
        """The same data set, whose rows leave frames to decode, for streams that skip most rows after a resume."""
        return replace(self, decode=False)

    def rows(self, shards: list[str]) -> Iterator[dict[str, Any]]:
        """Robot rows in the order of the files, frames decoded; steps without an instruction are passed over.

        Raises:
            TooManyBadRows: when more rows are bad than `problems` allows.
            TFRecordError: on a shard that cannot be followed further.
        """
        for episode, trajectory in self.labelled_episodes(shards):
            for row in episode_rows(episode, trajectory, self.horizon):
                if self.decode and not self._decode_images(row):
                    continue
                self.problems.seen()
                yield row

    def _decode_images(self, row: dict[str, Any]) -> bool:
        if not all(map(has_picture, row["images"])):
            self.problems.skip(row["identity"], "step without a picture")
            return False
        try:
            row["images"] = [entry.take() if isinstance(entry, VideoPicture) else entry for entry in row["images"]]
        except VideoError as error:
            self.problems.skip(f"{row['identity']}: {error}", MISSING_FRAME)
            return False
        return True

    def labelled_episodes(self, shards: list[str]) -> Iterator[tuple[RobotEpisode, Trajectory]]:
        """The whole episodes that these rows are of, frames undecoded; steps that make no row are counted as bad."""
        for episode, trajectory in self._trajectories(shards, self.cameras, self.problems):
            if any(text.strip() for text in episode.instructions):
                finite = finite_chunks(trajectory.actions, self.horizon)
                texts = episode.instructions[trajectory.steps]
                lost = sum(bool(text.strip()) for text, whole in zip(texts, finite) if not whole)
                if lost:
                    self.problems.skip(self.not_finite(episode, trajectory), NOT_FINITE, lost)
                yield episode, trajectory

    def spread_episodes(self, count: int | None) -> Iterator[tuple[RobotEpisode, Trajectory]]:
        """`labelled_episodes` of shards that lie evenly among all, as many of each; all of them for `None`."""
        shards = self.shards()
        if count is None or self.reader.count_episodes() < count:
            yield from self.labelled_episodes(shards)
            return
        chosen = [shards[number] for number in spread(len(shards), count)]
        left, taken = count, Counter[str]()
        while left and chosen:  # more than once where some shards have fewer episodes than others
            for place, shard in enumerate(turn := tuple(chosen)):
                share, before = -(-left // (len(turn) - place)), taken[shard]
                for found in islice(self.labelled_episodes([shard]), before, before + share):
                    taken[shard] += 1
                    yield found
                left -= taken[shard] - before
                if taken[shard] < before + share:
                    chosen.remove(shard)

    def trajectories(self, problems: RowProblems) -> Iterator[tuple[RobotEpisode, Trajectory]]:
        """Actions and proprio of every episode, also without text, float32 [S, D], finite or not; reads no picture."""
        return self._trajectories(self.shards(), (), problems)

    def _trajectories(
        self, shards: list[str], cameras: Sequence[str], problems: RowProblems
    ) -> Iterator[tuple[RobotEpisode, Trajectory]]:
        for shard in shards:
            for episode in self.reader.episodes(shard, self.features, cameras, problems):
                trajectory = thinned(self.transform.apply(episode.steps), self.every, self.displacements or ())
                if self.transform.name == "identity" or np.isfinite(trajectory.actions).all():
                    yield episode, trajectory
                else:  # the transforms look at neighbours: the whole episode goes
                    rows = rows_of(len(episode.instructions), self.every)
                    problems.skip(self.not_finite(episode, trajectory), f"episode with an {NOT_FINITE}", rows)

    def not_finite(self, episode: RobotEpisode, trajectory: Trajectory) -> str:
        """Names an episode and the first value of it that is not finite."""
        place, dim = map(int, np.argwhere(~np.isfinite(trajectory.actions))[0])
        step = trajectory.steps.start + place * self.every
        return f"{episode.identity} ({trajectory.actions[place, dim]} in dimension {dim} at step {step})"


def open_robot_source(
    path: str | Path,
    *,
    key: str,
    cameras: Sequence[str] | None = None,
    transform: str | None = "auto",
    split: str | None = None,
    horizon: int = 1,
    problems: RowProblems | None = None,
    action: str | Sequence[str] | None = None,
    state: str | Sequence[str] | None = None,
    every: int = 1,
    displacements: Sequence[int] | None = None,
    relative: list[dict[str, Any]] | None = None,
) -> RobotDataset:
    """Opens a robot data set and checks what can be checked without reading it.

    Args:
        path: an RLDS folder (NAME/1.0.0), a LeRobot folder (v2.0, v2.1, v3.0) or a recording; on this machine or
            `hf://datasets/OWNER/NAME[@REVISION]`.
        cameras: names as the data set has them or their last part ("image_0"); by default the primary camera.
        transform: "bridge", "fractal", "identity" (or `None`), or "auto", by the data set's name.
        split: a split of the data set; without one all episodes of a LeRobot set, and "train" of others.
        horizon: T, the steps of a row's action chunk.
        action, state: the stored features that hold them, where they have other names; several are put side by side.
        every: every n-th step of an episode is kept, see `transforms.thinned`.
        relative: groups of dimensions that are learned relative to the state; rows hold them as they are.

    Raises:
        RobotDataError: on an unknown format, missing files, columns, cameras, or a transform that does not fit what is
            stored (`layouts`), or no step that has an instruction.
        TFRecordError: on a shard that is cut off.
    """
    for word, value in (("horizon", horizon), ("every", every)):
        if value < 1:
            raise ValueError(f"got {word}={value}, expected at least 1")
    reader = _open_reader(DataFolder(path), split, every)
    chosen = choose_transform(
        transform,
        reader.dataset,
        stored_raw=reader.stored_raw,
        features=reader.features,
        action=_names(action or reader.action),
        state=_names(state or reader.state),
    )
    needed = (*chosen.features, *(_names(state) if state else ()))
    if absent := [name for name in needed if name not in reader.features]:
        near = [name for name in reader.features if "action" in name.lower()]
        raise RobotDataError(
            f"got {path} with the features {', '.join(reader.features) or 'none'}, expected {', '.join(absent)} for "
            f"the {chosen.name} transform; choose another transform, or name the features with `action` and `state`"
            + (f", such as action: [{', '.join(near)}]" if near else "")
        )
    named = [_find_camera(camera, reader, path) for camera in cameras] if cameras else [_main_camera(reader, path)]
    reader.use_cameras(named)
    moved = _displacements(displacements, chosen, every, path)
    if both := sorted(set(moved or ()).intersection(dim for group in relative or () for dim in group["dims"])):
        raise RobotDataError(
            f"got the dimensions {both} of {path} as displacements and among the relative ones, expected positions to "
            "be at there: a displacement is relative already; take them out of `relative`"
        )
    problems = problems or RowProblems(name=key)
    dataset = RobotDataset(key, reader, chosen, named, horizon, problems, moved, every, relative)
    if not reader.stored_raw:
        check_layout(chosen, _stored_steps(dataset), reader.dataset, str(path), named=transform != "auto")
    _check_not_empty(dataset, path, split)
    return dataset


def _open_reader(folder: DataFolder, split: str | None, every: int) -> EpisodeReader:
    if folder.exists(LEROBOT_INFO):
        return LeRobotReader(folder, split, every)
    if folder.exists(STATE):
        return RecordedReader(folder, split, every)
    found = find_rlds(folder)
    if found is None:
        raise RobotDataError(
            f"got {folder.path} with neither {LEROBOT_INFO} (LeRobot) nor dataset_info.json and features.json (RLDS) "
            f"nor {STATE} (a recording), expected one of them; name the folder that holds it"
        )
    return RLDSReader(found, split)


def _main_camera(reader: EpisodeReader, path: str | Path) -> str:
    """The first camera; what is called depth is never taken without being named, even where nothing else says so."""
    if colours := [name for name in reader.cameras if "depth" not in name.lower()]:
        return colours[0]
    others = ", ".join([*reader.cameras, *reader.depth])
    found = f"no camera but {others}, of depth by name or metadata" if others else "no camera"
    raise RobotDataError(f"got {path} with {found}, expected a colour camera; name it with `cameras`")


def _find_camera(wanted: str, reader: EpisodeReader, path: str | Path) -> str:
    known = [*reader.cameras, *reader.depth]
    matches = [name for name in known if name == wanted or name.replace(".", "/").endswith(f"/{wanted}")]
    if len(matches) != 1:
        raise RobotDataError(f"got camera {wanted!r}, expected one of {', '.join(reader.cameras) or 'none'} in {path}")
    if why := reader.depth.get(matches[0]):
        raise RobotDataError(
            f"got camera {wanted!r} of {path}, which holds depth ({why}), expected a colour camera: "
            f"{', '.join(reader.cameras) or 'none'}"
        )
    return matches[0]


def _displacements(
    named: Sequence[int] | None, transform: RobotTransform, every: int, path: str | Path
) -> list[int] | None:
    known = transform.displacements
    if named is not None and known is not None and sorted(named) != list(known):
        raise RobotDataError(
            f"got displacements={list(named)} for {path}, expected {list(known)}, which the {transform.name} "
            "transform makes; leave them out"
        )
    named = known if named is None else named
    if every > 1 and named is None:
        raise RobotDataError(
            f"got every={every} for {path}, expected to know which dimensions of its actions are displacements, "
            "which are summed over the steps that are left out; give `displacements`: [] where all are positions to "
            "be at, [0, 1, 2, 3, 4, 5] for a hand's moves and turns before its gripper"
        )
    return None if named is None else list(named)


def _names(features: str | Sequence[str]) -> tuple[str, ...]:
    return (features,) if isinstance(features, str) else tuple(features)


def _stored_steps(dataset: RobotDataset) -> Iterator[Mapping[str, np.ndarray]]:
    problems = RowProblems(limit_share=1.0, name=dataset.name)
    for shard in dataset.shards():
        for episode in dataset.reader.episodes(shard, dataset.features, (), problems):
            yield episode.steps


def _check_not_empty(dataset: RobotDataset, path: str | Path, split: str | None) -> None:
    """Reads until the first step with an instruction: one episode, unless the data set has none."""
    problems = RowProblems(limit_share=1.0, name=dataset.name)
    for episode, trajectory in dataset.trajectories(problems):
        finite = finite_chunks(trajectory.actions, 1)
        if any(text.strip() for text, whole in zip(episode.instructions[trajectory.steps], finite) if whole):
            return
    report = problems.report()
    example = f", such as {report['examples'][0]}" if report["examples"] else ""
    raise RobotDataError(
        f"got {path}{f', split {split!r},' if split else ''} without a step that has an instruction and a finite "
        f"action ({report['skipped']} rows skipped: {report['by_reason'] or 'no instructions'}{example}), "
        "expected at least one"
    )
