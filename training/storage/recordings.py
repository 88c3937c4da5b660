"""Data sets as the simulators record them: a folder that `datasets.Dataset.save_to_disk` wrote."""

from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset, load_from_disk


STATE = "state.json"
ROBOT_COLUMNS = ("image", "instruction", "action", "episode_index")
QUESTION_COLUMNS = ("image", "question", "answer")
MORE_TURNS = "more_turns"  # a further column: a list of {"question", "answer"} about the same picture


def load_recording(folder: str | Path, columns: Iterable[str] = ()) -> Dataset:
    """The rows of a recording, memory-mapped.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: if it lacks one of `columns`.
    """
    if not Path(folder, STATE).is_file():
        raise FileNotFoundError(
            f"got no data set at {folder}, expected a folder written by save_to_disk; record or convert it first"
        )
    rows = load_from_disk(str(folder))
    assert isinstance(rows, Dataset)
    check_columns(rows.column_names, columns, folder)
    return rows


def check_columns(found: list[str], columns: Iterable[str], path: str | Path) -> None:
    """Raises `ValueError` that names the columns that the file or folder `path` lacks."""
    if missing := [name for name in columns if name not in found]:
        raise ValueError(f"got {path} with columns {', '.join(found)}, expected also {', '.join(missing)}")
