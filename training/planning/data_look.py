"""What `gen-vla init` finds out about a robot data set, before there is a recipe; `first_recipe.py` makes one of it.

Actions, states and instructions are read once, pictures of a few steps.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gen_vla.processors import compute_statistics
from gen_vla.processors.rgb_pictures import PictureError
from gen_vla.training.mixing.encoded_pictures import decode_picture
from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.planning.data_check import SHOWN_ROWS, sample_rows
from gen_vla.training.recipes.sources import OpenedData
from gen_vla.training.robot_data.episodes import finite_chunks
from gen_vla.training.robot_data.source import RobotDataset, open_robot_source
from gen_vla.training.robot_data.statistics import is_binary
from gen_vla.training.robot_data.transforms import Trajectory


STILL = 1e-3  # of a dimension's range: less is no motion


@dataclass(frozen=True)
class DataLook:
    dataset: RobotDataset  # with all of its colour cameras, or those that were named
    lengths: list[int]  # [E]
    statistics: dict[str, Any]  # of all actions, as `compute_statistics`
    kinds: list[str]  # [D]: "position", "displacement", "binary", "constant" or "unknown"
    still: float  # share of the steps in which nothing moves
    instructions: Counter[str]  # episodes of each text
    unlabelled: int  # episodes without one
    blank: list[str]  # cameras that show nothing but one colour
    unreadable: list[str]  # what is wrong with pictures, of those looked at
    state_width: int  # values of the robot's state, 0 where there is none

    def dims(self, kind: str) -> list[int]:
        return [dim for dim, found in enumerate(self.kinds) if found == kind]


def look_at(path: str, key: str, cameras: Sequence[str] | None = None, **features: list[str]) -> DataLook:
    """Looks at a data set, or only some `cameras` of it; `features` as in `open_robot_source` (`action`, `state`)."""
    opened = partial(open_robot_source, path, key=key, **features)
    dataset = opened(cameras=cameras)
    if not cameras:
        dataset = opened(cameras=[name for name in dataset.reader.cameras if "depth" not in name.lower()])
    runs, texts, total = [], Counter[str](), 0
    for episode, trajectory in dataset.trajectories(RowProblems(limit_share=1.0, name=key)):
        total += 1
        if text := next((text.strip() for text in episode.instructions if text.strip()), ""):
            runs.append(trajectory)
            texts[text] += 1
    actions = np.concatenate([run.actions[finite_chunks(run.actions, 1)] for run in runs])
    statistics = compute_statistics(actions, len(runs), [True] * actions.shape[1])
    kinds = dimension_kinds(dataset, statistics["action"], runs)
    blank, unreadable = ([], []) if cameras else blank_cameras(dataset)
    return DataLook(
        dataset,
        lengths=[len(run.actions) for run in runs],
        statistics=statistics["action"],
        kinds=kinds,
        still=still_share(statistics["action"], kinds, runs),
        instructions=texts,
        unlabelled=total - len(runs),
        blank=blank,
        unreadable=unreadable,
        state_width=0 if runs[0].proprio is None else runs[0].proprio.shape[1],
    )


def dimension_kinds(dataset: RobotDataset, statistics: dict[str, Any], runs: Sequence[Trajectory]) -> list[str]:
    """What each dimension of an action is, by its values, its name, or the states around it.

    A position is nearer to the next state than to its own mean, a displacement nearer to the change of the state.
    """
    names = dataset.action_names or [""] * len(statistics["mean"])
    known = [(run.actions[:-1], run.proprio) for run in runs if run.proprio is not None and len(run.actions) > 1]
    known = [(acted, states) for acted, states in known if states.shape[1] == len(names)]
    spread = place = change = np.full(len(names), np.inf)
    if known:
        acted, now = np.concatenate([a for a, _ in known]), np.concatenate([states[:-1] for _, states in known])
        then = np.concatenate([states[1:] for _, states in known])
        compared = (acted.mean(axis=0), then, then - now)
        spread, place, change = (np.abs(acted - other).mean(axis=0) for other in compared)
    kinds = []
    for dim, name in enumerate(names):
        by_name = "displacement" if "delta" in name.lower() else "position" if name.endswith(".pos") else "unknown"
        if statistics["min"][dim] == statistics["max"][dim]:
            kinds.append("constant")
        elif is_binary(statistics, dim):
            kinds.append("binary")
        elif dataset.transform.displacements is not None:
            kinds.append("displacement" if dim in dataset.transform.displacements else "position")
        elif by_name == "unknown" and min(place[dim], change[dim]) < spread[dim]:
            kinds.append("position" if place[dim] <= change[dim] else "displacement")
        else:  # also of a joint that rests at 0, whose noise is no nearer to its next place than to no motion
            kinds.append(by_name)
    return kinds


def still_share(statistics: dict[str, Any], kinds: Sequence[str], runs: Sequence[Trajectory]) -> float:
    """Which share of the steps asks for no motion: displacements near 0, all else as in the step before."""
    least = STILL * np.subtract(statistics["q99"], statistics["q01"]) + 1e-9
    moves = np.array([kind == "displacement" for kind in kinds])
    asked = [np.where(moves, run.actions[1:], np.diff(run.actions, axis=0)) for run in runs]
    return float((np.abs(np.concatenate(asked)) <= least).all(axis=1).mean()) if sum(map(len, asked)) else 0.0


def blank_cameras(dataset: RobotDataset) -> tuple[list[str], list[str]]:
    """Cameras whose pictures are of one colour, and what is wrong with pictures that cannot be read."""
    name = f"robot/{dataset.name}"
    rows = sample_rows(OpenedData(streams={name: dataset.undecoded()}), name, SHOWN_ROWS)
    found, unreadable = [], []
    for place, camera in enumerate(dataset.cameras):
        shown: list[Any] = []
        for row in rows:
            try:
                shown.append(decode_picture(row["images"][place], row["identity"]).getextrema())
            except PictureError as error:
                unreadable.append(str(error))
        if shown and all(low == high for low, high in shown[0]) and all(one == shown[0] for one in shown):
            found.append(camera)
    return found, unreadable
