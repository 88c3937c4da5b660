"""What every data set gives a mixture: named shards and the rows in them.

robot row            images, instruction str, action float32 [T, D] in units, action_is_pad bool [T],
                     episode_index int, step_index int, identity str
vision-language row  images, turns [{"question": str, "answer": str}], identity str

images               one entry per camera or picture, in order: {"bytes": bytes, "path": str | None} (an encoded
                     picture), a PIL image, or a `VideoPicture` (a frame, decoded when it is asked for)
action, past the end of an episode: the last action again, and action_is_pad says where
identity             names the row in reports: file and number
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from gen_vla.training.mixing.skipped_rows import RowProblems


class DataSource(Protocol):
    """One data set. Sources can be pickled: a loader's worker processes get copies.

    Attributes:
        problems: counts the rows that were read, and those that could not be.
    """

    name: str
    problems: RowProblems

    def shards(self) -> list[str]:
        """The smallest units that processes can divide among themselves: files, or ranges of rows of files."""
        ...

    def rows(self, shards: list[str]) -> Iterator[dict[str, Any]]:
        """The rows of these shards in the order of the files, read as they are asked for.

        Raises:
            ValueError: on a shard that cannot be read further, or when too many rows had to be skipped.
        """
        ...

    def count_rows(self) -> int | None:
        """Rows of all shards where the format's metadata says it, else `None`; an upper bound, should rows be bad."""
        ...


@dataclass(frozen=True)
class DataReading:
    """What is known of a data set once it is open, for people to read; `planning/data_check_tables.py` shows it.

    Attributes:
        format: its usual name.
        rows: what a run sees, or `None` where only reading everything would show it.
        episodes: of robot data.
        cameras, unused_cameras: of robot data: those whose pictures a row shows, in order, and the others.
        camera_named: whether the recipe names its cameras; otherwise it is the main one.
        instructions: how many different ones there are in robot data.
        without_instruction: steps of robot data that have none, which are left out.
        unlabelled: some of their episodes by name.
        action_names: what the values of an action are called, where robot data says it.
        hertz: rows per second of robot data, where known.
        every: every n-th stored step of robot data is a row.
        notes: what people should know of the choice of episodes.
        skipped: report of the episodes that the statistics left out (`RowProblems.report`).
    """

    format: str
    rows: int | None
    episodes: int | None = None
    cameras: list[str] = field(default_factory=list)
    unused_cameras: list[str] = field(default_factory=list)
    camera_named: bool = True
    instructions: int | None = None
    without_instruction: int = 0
    unlabelled: list[str] = field(default_factory=list)
    action_names: list[str] = field(default_factory=list)
    hertz: float | None = None
    every: int = 1
    skipped: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
