"""Bad rows: skipped, counted and named, and too many of them stop a run.

Counts of a loader's worker processes travel with the batches to the process that trains, and at the end of a run from
all of its processes to each. Rows of batches that a worker had ready when the run ended are not counted.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import gather_object
from torch.utils.data import get_worker_info


logger = logging.getLogger(__name__)

COUNTS = "row_counts"  # of a batch: reports by the name of their counter
NAMED = 20  # problems that are logged and reported by name; the others are only counted


class TooManyBadRows(ValueError):
    """More rows were skipped than the limit allows; the message names some of them and the reasons."""


@dataclass
class Counts:
    """Rows seen and skipped, the reasons, and some of the skipped ones by name."""

    seen: int = 0
    skipped: int = 0
    longer: int = 0  # than the recipe takes, which is nothing bad
    by_reason: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, report: dict[str, Any]) -> None:
        self.seen += report["seen"]
        self.skipped += report["skipped"]
        self.longer += report.get("longer", 0)
        self.by_reason.update(report["by_reason"])
        self.examples += report["examples"][: NAMED - len(self.examples)]

    def report(self) -> dict[str, Any]:
        """What was counted; "longer" only where there were rows beyond `data.max_tokens`."""
        longer = {"longer": self.longer} if self.longer else {}
        reasons, examples = dict(self.by_reason.most_common()), list(self.examples)
        return {"seen": self.seen, "skipped": self.skipped, **longer, "by_reason": reasons, "examples": examples}


@dataclass(eq=False)
class RowProblems:
    """Counts good and skipped rows of one data set, or of several together. A pickled copy counts for itself."""

    limit_share: float = 0.01  # the largest share of skipped rows, in 0..1, that is still tolerated
    minimum_rows: int = 200  # the share is judged from this many rows on, or by `finish`
    name: str = "data"  # of the data set, for messages
    _all: Counts = field(default_factory=Counts, init=False)
    _news: Counts = field(default_factory=Counts, init=False)  # what `take` has not given yet
    _process: int = field(default_factory=os.getpid, init=False)

    def seen(self, rows: int = 1) -> None:
        self._add({"seen": rows, "skipped": 0, "by_reason": {}, "examples": []})

    def skip(self, identity: str, reason: str, rows: int = 1) -> None:
        """Counts a bad row, or the rows of a bad episode or file; raises `TooManyBadRows` when that passes the limit,
        once `minimum_rows` rows were counted.

        Args:
            identity: names it: file and number.
            reason: what is wrong, in the same words for every row with the same trouble; they are counted by it.
            rows: how many rows that leaves out.
        """
        if len(self._all.examples) < NAMED:
            logger.warning("%s: skipped %s: %s", self.name, identity, reason)
        self._add({"seen": 0, "skipped": rows, "by_reason": {reason: rows}, "examples": [f"{identity}: {reason}"]})
        if self._all.seen + self._all.skipped >= self.minimum_rows:
            self.finish()

    def leave_out(self) -> None:
        self._add({"seen": 0, "skipped": 0, "longer": 1, "by_reason": {}, "examples": []})

    def take(self) -> dict[str, Any]:
        """A report of what was counted since the last call; a copy in another process begins with what it counts."""
        self._start_anew_elsewhere()
        news, self._news = self._news, Counts()
        return news.report()

    def receive(self, report: dict[str, Any]) -> None:
        """Counts what a copy in another process counted; raises `TooManyBadRows` as `skip` does."""
        self._all.add(report)
        if self._all.seen + self._all.skipped >= self.minimum_rows:
            self.finish()

    def report(self) -> dict[str, Any]:
        return self._all.report()

    def _add(self, report: dict[str, Any]) -> None:
        self._start_anew_elsewhere()
        self._all.add(report)
        self._news.add(report)

    def _start_anew_elsewhere(self) -> None:
        if self._process != os.getpid():
            self._process, self._news = os.getpid(), Counts()

    def finish(self) -> None:
        """Judges the share at the end of the data, however few rows there were; raises `TooManyBadRows`."""
        rows = self._all.seen + self._all.skipped
        if self._all.skipped <= self.limit_share * rows:
            return
        reasons = "; ".join(f"{reason} ({count})" for reason, count in self._all.by_reason.most_common(5))
        raise TooManyBadRows(
            f"{self.name}: got {self._all.skipped} bad rows among {rows}, expected at most {self.limit_share:.2%}: "
            f"{reasons}; for example {'; '.join(self._all.examples[:3])}. Repair the data or raise the limit "
            "(a recipe's data.max_bad_share)"
        )


def collate_with_counts(
    rows: list[dict[str, Any]], collate: Callable[[list[dict[str, Any]]], dict[str, Any]]
) -> dict[str, Any]:
    """The batch that `collate` makes with the worker's counts; without workers, rows count where they are reported."""
    batch = collate(rows)
    worker = get_worker_info()
    if worker is not None:
        mixture: Any = worker.dataset
        batch[COUNTS] = {name: counter.take() for name, counter in mixture.counters().items()}
    return batch


def receive_counts(mixture: Any, batch: dict[str, Any]) -> None:
    """Takes the counts out of a batch and adds them to the mixture's; raises `TooManyBadRows` past the limit."""
    counters = mixture.counters()
    for name, report in batch.pop(COUNTS, {}).items():
        counters[name].receive(report)


def sum_over_processes(reports: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Reports by name, added up over the processes of a run, which all have to call this."""
    sums = {name: Counts() for name in reports}
    for entry in gather_object([reports]):
        for name, report in entry.items():
            sums[name].add(report)
    return {name: counts.report() for name, counts in sums.items()}
