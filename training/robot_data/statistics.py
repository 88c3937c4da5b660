"""OpenVLA's statistics of a robot data set, by one pass over its actions, cached beside the run.

No picture is read. All actions are held at once for the quantiles: 28 bytes a step of 7 dimensions, 60 MB for the
2.1 million steps of Bridge. Figures of relative actions are of whole chunks, as openpi's are: that much a step of one.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gen_vla.processors import compute_statistics, count_clipped
from gen_vla.processors.action_statistics import QUANTILES
from gen_vla.processors.relative_actions import check_groups, to_relative
from gen_vla.training.mixing.skipped_rows import NAMED, RowProblems
from gen_vla.training.robot_data.episodes import READING_VERSION, RobotDataError, finite_chunks
from gen_vla.training.robot_data.source import NOT_FINITE, RobotDataset
from gen_vla.training.robot_data.transforms import Trajectory
from gen_vla.training.storage.json_files import read_json, write_json


MEASURES = ("mean", "std", "max", "min", "q01", "q99")


@dataclass(frozen=True)
class RobotStatistics:
    # `norm_stats[key]`: "action", "proprio" where there is one, "num_transitions", "num_trajectories"; of unlabelled
    # episodes, too, as OpenVLA counts.
    entry: dict[str, Any]
    rows: int  # with an instruction and a finite action: what a run sees, but for chunks that hold others
    values: int  # of each action dimension that the figures are of: steps, or steps of chunks where they are relative
    clipped: list[int]  # how many of them normalisation clips
    problems: dict[str, Any]  # report of the episodes and steps that were skipped
    instructions: int  # how many different ones there are
    unlabelled: list[str]  # some of the episodes with steps that have none, by name


def robot_statistics(
    dataset: RobotDataset,
    cache: Path | None = None,
    *,
    unscaled: Sequence[int] | None = None,
    normalization: str | Sequence[str] = QUANTILES,
) -> RobotStatistics:
    """Statistics of a data set: from the cache where its files are the same, else by a pass over it.

    Args:
        unscaled: the dimensions that normalisation leaves as they are; `None` for the last one, as OpenVLA does.
        normalization: what the others are scaled by, for all or for each dimension (`NORMALIZATIONS`).

    Raises:
        TooManyBadRows: when more steps were skipped than the data set tolerates.
        RobotDataError: without a step that has an instruction.
    """
    file = cache / f"robot_statistics_{dataset.name}.json" if cache else None
    fingerprint = _fingerprint(dataset, unscaled, normalization)
    if file and file.is_file():
        kept = read_json(file)
        if kept.pop("fingerprint") == fingerprint:
            return RobotStatistics(**kept)
    statistics = _pass_over(dataset, unscaled, normalization)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"fingerprint": fingerprint, **asdict(statistics)})
    return statistics


def _pass_over(
    dataset: RobotDataset, unscaled: Sequence[int] | None, normalization: str | Sequence[str]
) -> RobotStatistics:
    problems = RowProblems(dataset.problems.limit_share, dataset.problems.minimum_rows, dataset.name)
    actions, proprio, steps, rows, texts, unlabelled = [], [], 0, 0, set(), []
    episodes = tqdm(
        dataset.trajectories(problems),
        total=dataset.reader.count_episodes(),
        desc=f"statistics of {dataset.name}",
        unit="episode",
    )
    for episode, trajectory in episodes:
        finite = finite_chunks(trajectory.actions, 1)
        if bad := int((~finite).sum()):
            problems.skip(dataset.not_finite(episode, trajectory), f"step with an {NOT_FINITE}", bad)
        if not finite.any():
            continue
        problems.seen(int(finite.sum()))
        actions.append(relative_steps(dataset, trajectory) if dataset.relative else trajectory.actions[finite])
        steps += int(finite.sum())
        kept = itertools.compress(episode.instructions[trajectory.steps], finite)
        labelled = [text.strip() for text in kept if text.strip()]
        rows += len(labelled)
        if len(labelled) < finite.sum() and len(unlabelled) < NAMED:
            unlabelled.append(episode.identity)
        texts.update(labelled)
        if trajectory.proprio is not None:
            proprio.append(trajectory.proprio[np.isfinite(trajectory.proprio).all(axis=1)])
    problems.finish()
    if not rows:
        raise RobotDataError(f"got data set {dataset.name} without a step that has an instruction, expected some")
    together = np.concatenate(actions)
    mask = None if unscaled is None else [dim not in unscaled for dim in range(together.shape[1])]
    entry = {**compute_statistics(together, len(actions), mask, normalization), "num_transitions": steps}
    if sum(map(len, proprio)):
        figures = compute_statistics(np.concatenate(proprio), num_trajectories=len(proprio))["action"]
        entry["proprio"] = {measure: figures[measure] for measure in MEASURES}
    clipped = count_clipped(together, entry["action"]).tolist()
    return RobotStatistics(entry, rows, len(together), clipped, problems.report(), len(texts), unlabelled)


def relative_steps(dataset: RobotDataset, trajectory: Trajectory) -> np.ndarray:
    """The steps of all chunks of an episode, relative to the state at their beginning: float64 [N, D].

    Those behind the episode's end, and those that are not finite, are left out.
    """
    assert dataset.relative
    assert trajectory.proprio is not None
    count, dims = trajectory.actions.shape
    check_groups(dataset.relative, dims, repr(dataset.name))
    width = trajectory.proprio.shape[1]
    if beyond := [dim for group in dataset.relative for dim in group["state"] if dim >= width]:
        raise RobotDataError(
            f"got relative actions of {dataset.name!r} with the values {beyond} of the state, expected 0 to "
            f"{width - 1}; correct `relative`, or name the features of the state with `state`"
        )
    places = np.arange(count)[:, None] + np.arange(dataset.horizon)
    chunks = trajectory.actions[np.minimum(places, count - 1)]
    relative = to_relative(chunks, trajectory.proprio, dataset.relative)[places < count]
    return relative[np.isfinite(relative).all(axis=1)]


def is_binary(statistics: dict[str, Any], dim: int) -> bool:
    """Whether a dimension holds 0 and 1 alone, by the figures of `norm_stats[key]["action"]`."""
    low, high, mean, std = (statistics[measure][dim] for measure in ("min", "max", "mean", "std"))
    # Between 0 and 1 the mean of squares is the mean itself only where all values are 0 or 1.
    return {low, high} <= {0.0, 1.0} and abs(std**2 + mean**2 - mean) <= 1e-9


def _fingerprint(dataset: RobotDataset, unscaled: Sequence[int] | None, normalization: str | Sequence[str]) -> str:
    """A hash of all that rows and figures depend on, except for pictures: files, what is read of them, made of it."""
    files = dataset.reader.files()
    parts: dict[str, Any] = {"files": files, "changed": dataset.reader.folder.changed(files)}
    parts |= {"chosen": dataset.reader.chosen(), "features": dataset.features}
    parts |= {name: getattr(dataset.transform, name) for name in ("name", "action", "state")}
    parts |= {"version": READING_VERSION, "limit_share": dataset.problems.limit_share}
    parts |= {"every": dataset.every, "displacements": sorted(dataset.displacements or ())}
    parts |= {"relative": dataset.relative, "horizon": dataset.horizon if dataset.relative else None}
    parts |= {"unscaled": None if unscaled is None else sorted(unscaled), "normalization": normalization}
    parts["figures"] = [figure.name for figure in fields(RobotStatistics)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
