"""What is known of a data set once it is open, for people to read; `planning/data_check_tables.py` shows it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DataReading:
    """One data set.

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
