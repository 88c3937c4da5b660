"""The mixture of streamed data sets: every per-device batch half and half, without knowing how many rows there are.

    shards of one set        0 1 2 3 4 5 6 7        for 2 processes with 2 workers each: 4 readers
    process 0, worker 0      0       4              reads these, in a new order each time round,
    process 0, worker 1        1       5            and draws its next row from a buffer of some hundreds
    process 1, worker 0          2       6
    process 1, worker 1            3       7

With fewer shards than readers every reader goes through all of them and keeps its share of the rows. Nobody else may
divide the rows again: the loader is not handed to accelerate, which would.

A resumed run advances its streams past the rows of its earlier steps, which are read and neither decoded nor prepared.
Where it has other processes, workers or batches than the run began with, the readers stay those of the beginning, so
that every row keeps its place in the run; a process then reads all those that have rows of its own places.
Otherwise frames of videos are decoded as they come in, in the order of the file, before the buffer shuffles them.
"""

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, count, islice
from math import lcm
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from gen_vla.training.mixing.data_source import DataSource
from gen_vla.training.mixing.mixture import alternate, first_readable
from gen_vla.training.mixing.prepared_rows import RowPreparer
from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.video_frames import VideoPicture


logger = logging.getLogger(__name__)

STAND_INS = 100  # rows that are tried in the place of one that does not decode


@dataclass(frozen=True)
class RunShape:
    """How the rows of a run are divided: `batch_size` per device and micro-batch, and in streams among readers."""

    processes: int
    batch_size: int
    gradient_accumulation_steps: int = 1
    num_workers: int = 0  # of the loader in each process; without one, the process itself reads

    @property
    def rows_per_step(self) -> int:
        """Rows behind one optimizer step, the global batch."""
        return self.processes * self.batch_size * self.gradient_accumulation_steps

    @property
    def readers(self) -> int:
        return self.processes * max(self.num_workers, 1)

    def reader_of(self, place: int) -> int:
        """The number of the reader whose rows stand at a place of the run."""
        (own, rank), workers = divmod(place // self.batch_size, self.processes), max(self.num_workers, 1)
        return rank * workers + own % workers

    def readers_for(self, reader: int, now: "RunShape") -> set[int]:
        """The readers of this shape whose rows stand at the places of a reader of another shape."""
        period = lcm(self.readers * self.batch_size, now.readers * now.batch_size)
        return {self.reader_of(place) for place in range(period) if now.reader_of(place) == reader}

    def __str__(self) -> str:
        parts = (self.processes, self.batch_size, self.gradient_accumulation_steps, self.rows_per_step)
        return "processes {} x batch_size {} x gradient_accumulation_steps {} = {} rows a step".format(*parts)


class RowStream:
    """One set's rows for one reader, without end.

    Args:
        source: the set.
        reader: its number, of how many; the rows of all readers together are the set's, each once per pass.
        seed: of the order of shards (the same for all readers) and rows.
        buffer: rows among which the next one is drawn; 1 leaves the order of the files.
        skipping: leave frames of videos undecoded until `stop_skipping`.
    """

    def __init__(
        self, source: DataSource, reader: tuple[int, int], seed: list[int], buffer: int, skipping: bool = False
    ):
        self.source = source
        self.number, self.readers = reader
        self.seed = seed
        shards = source.shards()
        self.strided = len(shards) < self.readers
        self.shards = shards if self.strided else shards[self.number :: self.readers]
        self.buffer = buffer
        self.skipping = skipping
        self.rows = self._passes()
        self.arrivals = count()
        self.kept: list[dict[str, Any]] = []
        self.pending: deque[dict[str, Any]] = deque()

    def take(self) -> dict[str, Any]:
        """The next row."""
        return self.pending.popleft() if self.pending else next(self.rows)

    def ahead(self) -> Iterator[dict[str, Any]]:
        """The rows behind the next one, left where they are."""
        for place in range(STAND_INS):
            if place == len(self.pending):
                self.pending.append(next(self.rows))
            yield self.pending[place]

    def stop_skipping(self) -> None:
        """Decodes what lies in the buffer, as it came in, and from now on what comes in."""
        self.skipping = False
        for row in sorted(self.kept, key=lambda row: row["arrival"]):
            load_frames(row)

    def _passes(self) -> Iterator[dict[str, Any]]:
        for number in count():
            some = False
            for row in self._shuffled(self._one_pass(number), number):
                some = True
                yield row
            if not some:
                raise ValueError(
                    f"got the data set {self.source.name} without a row for reader {self.number} of "
                    f"{self.readers}, expected at least one; use fewer processes and workers, or another split"
                )

    def _one_pass(self, number: int) -> Iterator[dict[str, Any]]:
        order = np.random.default_rng([*self.seed, number]).permutation(len(self.shards))
        rows = self.source.rows([self.shards[index] for index in order])
        for row in islice(rows, self.number, None, self.readers) if self.strided else rows:
            if not self.skipping:
                load_frames(row)
            yield {**row, "arrival": next(self.arrivals)}

    def _shuffled(self, rows: Iterator[dict[str, Any]], number: int) -> Iterator[dict[str, Any]]:
        """Each row once, drawn from a buffer that is kept full as long as there are rows."""
        draw = np.random.default_rng([*self.seed, number, self.number])
        self.kept = list(islice(rows, self.buffer - 1))
        for row in rows:
            chosen = int(draw.integers(len(self.kept) + 1))
            if chosen < len(self.kept):
                row, self.kept[chosen] = self.kept[chosen], row
            yield row
        draw.shuffle(self.kept)  # type: ignore[arg-type]
        self.kept.reverse()
        while self.kept:
            yield self.kept.pop()


def load_frames(row: dict[str, Any]) -> None:
    """Decodes a row's frames of videos, if it has any."""
    for picture in row["images"]:
        if isinstance(picture, VideoPicture):
            picture.load()


@dataclass
class StreamingMixture(torch.utils.data.IterableDataset):
    """Prepared rows of one process of a run, without end, in micro-batches of `batch_size`."""

    sources: dict[str, DataSource]  # by name (`robot/KEY`, `vision_language/NAME`), robot data first
    weights: list[float]  # of the robot sets
    prepare: RowPreparer
    batch_size: int  # rows per device and micro-batch; even where both kinds of data are mixed
    seed: int = 0  # of every shuffle
    buffer: int = 1000  # see `RowStream`
    rank: int = 0  # which process this is
    processes: int = 1
    workers: int = 0  # processes of the loader
    start: int = 0  # micro-batches of this process that an earlier run saw
    max_bad_share: float = 0.01  # the share of unreadable rows of one set that stops the run
    began: RunShape | None = None  # the shape of the run when it began; by default this one's
    problems: dict[str, RowProblems] = field(init=False)

    @property
    def names(self) -> list[str]:
        """All sources, in the order of `source_id`."""
        return list(self.sources)

    def __post_init__(self) -> None:
        self.problems = {name: RowProblems(self.max_bad_share, name=name) for name in self.sources}
        readers = self.processes * max(self.workers, 1)
        for name, source in self.sources.items():
            shards = len(source.shards())
            if not shards:
                raise ValueError(f"got the data set {name} without a shard, expected at least one file with rows")
            if shards < readers and self.rank == 0:
                logger.warning(
                    "%s has %d shards for %d readers (%d processes with %d workers): every reader goes through all "
                    "of them and keeps its share of the rows; fewer workers or more files would read less",
                    name,
                    shards,
                    readers,
                    self.processes,
                    self.workers,
                )

    def counters(self) -> dict[str, RowProblems]:
        """What counts bad rows, by name: those that cannot be read, and those that cannot be prepared."""
        reading = {f"reading {name}": source.problems for name, source in self.sources.items()}
        return {**reading, **{f"preparing {name}": problems for name, problems in self.problems.items()}}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows of this worker's micro-batches, in order."""
        worker = get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        turn = (worker_id + self.start) % workers  # the loader asks worker 0 first, wherever the run goes on
        now = RunShape(self.processes, self.batch_size, num_workers=workers)
        began, own = self.began or now, self.rank * workers + turn
        streams = {
            number: [
                RowStream(source, (number, began.readers), [self.seed, name], self.buffer, self.start > 0)
                for name, source in enumerate(self.sources.values())
            ]
            for number in sorted(began.readers_for(own, now))
        }
        begin = self.start * self.processes * self.batch_size
        for place, number in enumerate(alternate(self.weights, len(self.sources) - len(self.weights))):
            reader = began.reader_of(place)
            if reader not in streams:
                continue
            stream, wanted = streams[reader][number], place >= begin and now.reader_of(place) == own
            if wanted:
                for skipping in chain(*streams.values()):
                    if skipping.skipping:
                        skipping.stop_skipping()
            row = stream.take()
            if wanted:
                rows, name = chain([row], stream.ahead()), self.names[number]
                yield first_readable(rows, self.prepare, name, place, self.problems[name])
