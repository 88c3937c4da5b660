"""What a loader's worker processes count reaches the process that trains, and at the end the one that writes the log.

Decides: how counts of bad rows travel: with every batch, what its worker counted since its last one; at the end of a
run, from all of its processes to each. Refuses to know: what is counted (`row_problems`), what a batch is for.

Rows of batches that a worker had ready when the run ended are not counted: nothing was learned from them.
"""

from collections.abc import Callable
from typing import Any

from accelerate.utils import gather_object
from torch.utils.data import get_worker_info

from gen_vla.training.mixing.mixture import MixedTables
from gen_vla.training.mixing.skipped_rows import Counts
from gen_vla.training.mixing.streaming_mixture import StreamingMixture


COUNTS = "row_counts"  # of a batch: reports by the name of their counter


class CountedBatches:
    """A collator whose batches bring the worker's counts. Can be pickled."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]):
        self.collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch; without worker processes nothing is added, since everything is counted where it is reported."""
        batch = self.collate(rows)
        worker = get_worker_info()
        if worker is not None:
            mixture: Any = worker.dataset
            batch[COUNTS] = {name: counter.take() for name, counter in mixture.counters().items()}
        return batch


def receive_counts(mixture: MixedTables | StreamingMixture, batch: dict[str, Any]) -> None:
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
