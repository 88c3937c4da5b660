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
