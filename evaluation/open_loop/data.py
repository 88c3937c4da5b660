"""Recorded steps that a policy is asked about, and whether it was trained on them.

The statistics of a policy (`norm_stats`) tell: if a data set has as many episodes and steps and the same mean action
(the same mean state where actions are learned relative to it), they are of it. So does the path in its recipe. Where a
run held out episodes (`data.validation`), their numbers stand beside the statistics, and those alone are asked about.
A data set that shares some of its episodes with the training data is not recognised.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from gen_vla.training.held_out import HELD_OUT
from gen_vla.training.mixing.encoded_pictures import PictureError, decode_picture
from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.provenance.training_record import recipe_path
from gen_vla.training.robot_data.episodes import episode_rows
from gen_vla.training.robot_data.source import RobotDataset, open_robot_source
from gen_vla.training.storage.hub_requests import HubError


OPENED_WITH = ("cameras", "transform", "action", "state", "every", "displacements")  # of a recipe's robot data set


@dataclass(frozen=True)
class RecordedStep:
    """One step as a policy would have met it; `name` is its own in the data set, whatever folder that lies in."""

    episode: int  # its place among the episodes that were read
    name: str
    place: int  # in `RecordedEpisodes.actions`
    images: list[Image.Image]  # RGB, one per camera
    instruction: str
    action: np.ndarray  # float32 [T, D] in units, what was done
    padded: np.ndarray  # bool [T], behind the episode's end
    held: np.ndarray | None  # float32 [D], the action of the step before; None at the first
    state: np.ndarray | None  # float32 [P]


@dataclass
class RecordedEpisodes:
    """The steps to ask about, read as they are iterated over, and what was read so far: of each episode its `actions`
    float32 [S, D] and its number in the data set (`names`)."""

    source: RobotDataset
    every: int  # every n-th step of an episode is taken, starting with its first
    episodes: int | None  # how many, from all over the data set; None for all
    needs_state: bool = False  # whether steps without a finite state are skipped
    actions: list[np.ndarray] = field(default_factory=list)
    names: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("every", "episodes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"got {name}={value}, expected at least 1")

    @property
    def total(self) -> int:
        count = self.source.reader.count_episodes()
        return min(self.episodes or count, count)

    def __iter__(self) -> Iterator[RecordedStep]:
        for episode, trajectory in self.source.spread_episodes(self.episodes):
            number, first = len(self.actions), trajectory.steps.start
            self.actions.append(trajectory.actions)
            self.names.append(episode.index)
            for row in islice(episode_rows(episode, trajectory, self.source.horizon), 0, None, self.every):
                try:
                    images = [decode_picture(image, row["identity"]) for image in row["images"]]
                except PictureError as error:
                    self.source.problems.skip(str(error), "picture that cannot be decoded")
                    continue
                place = (row["step_index"] - first) // (trajectory.steps.step or 1)
                state = None if trajectory.proprio is None else _finite(trajectory.proprio[place])
                if self.needs_state and state is None:
                    self.source.problems.skip(row["identity"], "step without a finite state")
                    continue
                self.source.problems.seen()
                yield RecordedStep(
                    episode=number,
                    name=f"{episode.index} {row['step_index']}",
                    place=place,
                    images=images,
                    instruction=row["instruction"],
                    action=row["action"],
                    padded=row["action_is_pad"],
                    held=_finite(trajectory.actions[place - 1]) if place else None,
                    state=state,
                )


def _finite(values: np.ndarray) -> np.ndarray | None:
    return values if np.isfinite(values).all() else None


def recipe_entry(model: str, key: str) -> dict[str, Any]:
    """What the recipe that trained a model says of a robot data set; `{}` where nothing is known."""
    try:
        path = recipe_path(model)
        recipe = yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}
        return next(entry for entry in recipe["data"]["robot"] if entry["key"] == key)
    except (HubError, yaml.YAMLError, KeyError, TypeError, StopIteration):
        return {}


def open_recorded(
    data: str | Path, entry: dict[str, Any], cameras: Sequence[str] | None, horizon: int, split: str | None
) -> RobotDataset:
    """The data set, read with the settings of `recipe_entry`, and `cameras` in place of the recipe's."""
    settings = {name: entry[name] for name in OPENED_WITH if name in entry}
    settings |= {"cameras": cameras} if cameras else {}
    problems = RowProblems(limit_share=1.0, name=str(data))
    return open_robot_source(data, key="open_loop", split=split, horizon=horizon, problems=problems, **settings)


def held_out_of(
    source: RobotDataset, statistics: dict[str, Any], entry: dict[str, Any], data: str | Path, split: str | None
) -> list[int]:
    """The episodes of a data set that a model's training held out; `[]` where it was not trained on this data set.
    `statistics` are the model's of the data set, `norm_stats[key]`, `entry` is of `recipe_entry`."""
    held_out, numbers = statistics.get(HELD_OUT, []), set(source.reader.numbers())
    if not held_out or not numbers.issuperset(held_out):
        return []
    others = source.only(numbers.difference(held_out))
    same = _same_path(entry, data, split) or _same_actions(RecordedEpisodes(others, 1, None), statistics)
    return held_out if same else []


def trained_on(
    episodes: RecordedEpisodes, statistics: dict[str, Any], entry: dict[str, Any], data: str | Path, split: str | None
) -> str:
    """What says that a model was trained on these episodes, after they were read; empty where nothing does. Arguments
    as for `held_out_of`."""
    if _same_actions(episodes, statistics):
        return "number of episodes, number of steps and mean action are those of the training data"
    learned = entry.get("split")
    named = f"its recipe trains on {entry.get('path')}{f', split {learned}' if learned else ''}"
    return named if _same_path(entry, data, split) else ""


def _same_path(entry: dict[str, Any], data: str | Path, split: str | None) -> bool:
    """Whether a recipe's data set is the one at this path."""
    parts, learned = Path(str(entry.get("path") or "")).parts, entry.get("split")
    asked = str(data) if "://" in str(data) else str(Path(data).resolve())
    same = split == learned or None in (split, learned)  # without a split all are read, or "train"
    return bool(parts) and Path(asked).parts[-len(parts) :] == parts and same


def _same_actions(episodes: RecordedEpisodes, statistics: dict[str, Any]) -> bool:
    """Whether statistics are those of the data set as a whole, without a pass over it where numbers differ."""
    source, actions = episodes.source, episodes.actions
    count, steps = source.reader.count_episodes(), source.reader.count_steps()
    if count < statistics.get("num_trajectories", 0) or not statistics.get("num_trajectories"):
        return False
    if len(actions) < count and steps != statistics["num_transitions"]:
        return False
    relative = bool(statistics["action"].get("relative"))  # their figures are of chunks, so that states are compared
    if relative or len(actions) < count:
        runs = [run for _, run in source.trajectories(RowProblems(limit_share=1.0, name=source.name))]
        states = [run.proprio for run in runs if run.proprio is not None]
        actions = states if relative else [run.actions for run in runs]
    together = np.concatenate(actions).astype(np.float64)
    together = together[np.isfinite(together).all(axis=1)]
    figures = statistics["proprio" if relative else "action"]
    if "mean" not in figures:  # of statistics that someone else made
        return False
    mean, std = np.asarray(figures["mean"]), np.asarray(figures["std"])
    same = len(together) == statistics["num_transitions"] and mean.shape == together.shape[1:]
    return same and bool((np.abs(together.mean(axis=0) - mean) <= 1e-5 * std + 1e-7).all())
