"""What every data set gives a mixture: named shards and the rows in them.

robot row            images, instruction str, action float32 [T, D] in units, action_is_pad bool [T],
                     state float32 [P] in units, or `None` where the data set has none,
                     episode_index int, step_index int, identity str
vision-language row  images, turns [{"question": str, "answer": str}], identity str

images               one entry per camera or picture, in order: {"bytes": bytes, "path": str | None} (an encoded
                     picture), a PIL image, a `StoredPicture` (encoded, read when it is asked for), or a `VideoPicture`
                     (a frame, decoded when it is asked for)
action, past the end of an episode: the last action again, and action_is_pad says where
identity             names the row in reports: file and number
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.episodes import spread


class DataSource(Protocol):
    """One data set. Sources can be pickled: a loader's worker processes get copies.

    Attributes:
        problems: counts the rows that were read, and those that could not be.
        lanes: how many shards are best read side by side: several where the neighbours in a shard are alike, as steps
            of an episode are; 0 where no shard can be read without what lies before it.
    """

    name: str
    problems: RowProblems
    lanes: int

    def shards(self) -> list[str]:
        """The smallest units that processes can divide among themselves: files, or ranges of rows of files."""
        ...

    def rows(self, shards: list[str]) -> Iterator[dict[str, Any]]:
        """The rows of these shards in the order of the files, read as they are asked for; raises `ValueError` on a
        shard that cannot be read further, or when too many rows had to be skipped.
        """
        ...

    def count_rows(self) -> int | None:
        """Rows of all shards where the format's metadata says it, else `None`; an upper bound, should rows be bad."""
        ...


def sample_shards(source: DataSource, count: int) -> list[Iterator[dict[str, Any]]]:
    """The rows of at most `count` shards that lie evenly among all; one of all where they are read from the front."""
    shards = source.shards()
    if source.lanes == 0:
        return [source.rows(shards)]
    return [source.rows([shards[place]]) for place in spread(len(shards), count)]


@dataclass(frozen=True)
class DataReading:
    """What is known of a data set once it is open, for people to read; `planning/data_check.py` shows it."""

    format: str
    rows: int | None  # what a run sees; `None` where only reading everything would show it
    episodes: int | None = None  # of robot data, like all that follows but the notes
    cameras: list[str] = field(default_factory=list)  # those whose pictures a row shows, in order
    unused_cameras: list[str] = field(default_factory=list)
    camera_named: bool = True  # by the recipe; otherwise it is the main one
    instructions: int | None = None  # how many different ones
    without_instruction: int = 0  # steps, which are left out
    unlabelled: list[str] = field(default_factory=list)  # some of their episodes by name
    action_names: list[str] = field(default_factory=list)  # of the values of an action, where the data set says it
    hertz: float | None = None  # rows per second, where known
    every: int = 1  # every n-th stored step is a row
    skipped: dict[str, Any] | None = None  # `RowProblems.report` of the episodes that the statistics left out
    notes: list[str] = field(default_factory=list)  # what people should know of the choice of episodes
