"""Data sets as the simulators record them: a folder that `datasets.Dataset.save_to_disk` wrote."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, load_from_disk


STATE = "state.json"
METADATA_FILE = "recording.json"  # what `evaluation/recording` says of the rows, beside them
ROBOT_COLUMNS = ("image", "instruction", "action", "episode_index")
QUESTION_COLUMNS = ("image", "question", "answer")
MORE_TURNS = "more_turns"  # a further column: a list of {"question", "answer"} about the same picture


def load_recording(folder: str | Path, columns: Iterable[str] = ()) -> Dataset:
    """The rows of a recording, memory-mapped; of one elsewhere (`hf://`), of a copy.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: if it is damaged, or lacks one of `columns`.
    """
    try:
        rows = load_from_disk(str(folder))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"got no data set at {folder}, expected a folder written by save_to_disk; record or convert it first"
        ) from error
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise ValueError(f"got {folder} that cannot be read ({error!r}); record or fetch it again") from error
    assert isinstance(rows, Dataset)
    if missing := [name for name in columns if name not in rows.column_names]:
        found = ", ".join(rows.column_names)
        raise ValueError(f"got {folder} with columns {found}, expected also {', '.join(missing)}")
    return rows
