"""Episodes as every robot data format gives them, the interface of a format's reader, and the rows they become."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.transforms import Trajectory
from gen_vla.training.storage.data_folder import DataFolder


# Raise it when the same files give other rows or statistics than before: cached ones are then computed again.
READING_VERSION = 2
NO_INSTRUCTION = ("", "none", "nan", "null")


class RobotDataError(ValueError):
    """A robot data set that cannot be used as it is; says what is there, what was expected and what to do."""


@dataclass(frozen=True)
class RobotEpisode:
    index: int  # its number in the data set
    identity: str  # file and number, for reports
    instructions: Sequence[str]  # an empty one where a step has none
    steps: Mapping[str, np.ndarray]  # [S, ...] of the features asked for, by name ("action", "observation/state")
    # [S] lists of one picture per camera asked for: {"bytes", "path"}, a PIL image or a `VideoPicture`; `None` or no
    # bytes where a step lacks one.
    images: Sequence[list[Any]]


class EpisodeReader(ABC):
    """One split of a robot data set in one format, opened and checked; every n-th step is a row. Can be pickled."""

    dataset: str  # the data set's own name
    format: str  # the format's name in reports
    stored_raw = False  # whether actions are stored as they were recorded, without OpenVLA's transforms
    cameras: list[str]  # names of the colour cameras, the primary one first
    features: list[str]  # names of the stored per-step features
    action, state = "action", "state"  # the features that hold them, unless the caller says otherwise
    fps: float | None = None  # steps a second as they are stored, where the data set says it
    _shards: Mapping[str, Any]

    def __init__(self, folder: DataFolder, every: int = 1):
        self.folder = folder
        self.every = every
        self.depth: Mapping[str, str] = {}  # depth cameras, and what says that they are
        self.value_names: Mapping[str, Sequence[str]] = {}  # of each value of a feature, where the data set says it
        self.value_units: Mapping[str, Sequence[str]] = {}  # likewise
        self.notes: list[str] = []  # remarks on the choice of episodes, for reports

    def shards(self) -> list[str]:
        return list(self._shards)

    @abstractmethod
    def episodes(
        self, shard: str, features: Sequence[str], cameras: Sequence[str], problems: RowProblems
    ) -> Iterator[RobotEpisode]:
        """The episodes of one shard, with these features and cameras alone; damaged ones are skipped and counted."""

    @abstractmethod
    def count_steps(self) -> int | None:
        """Rows of all episodes: steps that have an instruction and are kept, where metadata says it."""

    @abstractmethod
    def numbers(self) -> list[int]:
        """Of all episodes of the split, ascending: `RobotEpisode.index`."""

    @abstractmethod
    def only(self, numbers: Collection[int]) -> Self:
        """A reader of these episodes alone; statistics, counts and rows are then theirs."""

    def count_episodes(self) -> int:
        return len(self.numbers())

    @abstractmethod
    def files(self) -> dict[str, int]:
        """Bytes of the files that actions are read from, by name."""

    @abstractmethod
    def chosen(self) -> Any:
        """What besides the files decides which steps and instructions there are, as JSON takes it."""

    def use_cameras(self, cameras: Sequence[str]) -> None:  # noqa: B027
        """Checks what pictures of these cameras need, before `episodes` is called; raises `RobotDataError`."""


def instruction_text(value: Any) -> str:
    """A step's instruction as it is stored: a text, or `""` where there is none.

    Null, NaN and what other programs made of them with `str` ("None", "nan") are no instruction.
    """
    text = value if isinstance(value, str) else ""
    return "" if text.strip().lower() in NO_INSTRUCTION else text


def spread(total: int, count: int) -> list[int]:
    """At most `count` of the numbers below `total`, the first and the last among them: (9, 3) -> [0, 4, 8]."""
    return sorted({int(number) for number in np.linspace(0, total - 1, min(count, total))})


def rows_of(steps: int, every: int) -> int:
    """How many of `steps` are kept where every n-th one is, beginning with the first."""
    return -(-steps // every)


def finite_chunks(actions: np.ndarray, horizon: int) -> np.ndarray:
    """Whether the chunk [T, D] that starts at a step of actions [S, D] holds only finite numbers: bool [S]."""
    finite = np.ones(len(actions), dtype=bool)
    for step in np.flatnonzero(~np.isfinite(actions).all(axis=1)):
        finite[max(step - horizon + 1, 0) : step + 1] = False
    return finite


def episode_rows(episode: RobotEpisode, trajectory: Trajectory, horizon: int) -> Iterator[dict[str, Any]]:
    """Robot rows (`data_source.py`) of the steps that were kept, have an instruction, and whose chunk is finite."""
    for place in row_places(episode, trajectory, horizon):
        yield robot_row(episode, trajectory, horizon, place)


def row_places(episode: RobotEpisode, trajectory: Trajectory, horizon: int) -> list[int]:
    texts = episode.instructions[trajectory.steps]
    wholes = finite_chunks(trajectory.actions, horizon)
    return [place for place, (text, whole) in enumerate(zip(texts, wholes)) if whole and text.strip()]


def robot_row(episode: RobotEpisode, trajectory: Trajectory, horizon: int, place: int) -> dict[str, Any]:
    """The row that begins at a place in a trajectory; behind the end its last action is repeated."""
    step = range(len(episode.instructions))[trajectory.steps][place]
    steps, last = np.arange(place, place + horizon), len(trajectory.actions) - 1
    return {
        "images": episode.images[step],
        "instruction": episode.instructions[step],
        "action": trajectory.actions[np.minimum(steps, last)],
        "action_is_pad": steps > last,
        "state": None if trajectory.proprio is None else trajectory.proprio[place],
        "episode_index": episode.index,
        "step_index": step,
        "identity": f"{episode.identity} step {step}",
    }
