"""The mixture of streamed data sets: every per-device batch half and half, without knowing how many rows there are.

    shards of one set        0 1 2 3 4 5 6 7        for 2 processes with 2 workers each: 4 readers
    process 0, worker 0      0       4              reads these, in a new order each time round,
    process 0, worker 1        1       5            and draws its next row from a buffer of some hundreds
    process 1, worker 0          2       6
    process 1, worker 1            3       7

With too few shards several readers go through the same ones, and each keeps its share of the rows (`row_stream.py`).
Nobody else may divide the rows again: the loader is not handed to accelerate, which would.

Vision-language rows of a micro-batch are of similar length, since all of its rows are padded to the longest: a length
is drawn for each micro-batch, that of some row in a buffer, and every set gives the row nearest to it among some.

A resumed run advances its streams past the rows of its earlier steps, which are read and neither decoded nor prepared.
Where it has other processes, workers or batches than the run began with, the readers stay those of the beginning, so
that every row keeps its place in the run; a process then reads all those that have rows of its own places.
Otherwise frames of videos are decoded as they come in, in the order of the file, and are kept encoded.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import lcm
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from gen_vla.training.mixing.data_source import DataSource
from gen_vla.training.mixing.mixture import Turns, first_readable
from gen_vla.training.mixing.prepared_rows import RowPreparer
from gen_vla.training.mixing.row_stream import INITIAL, BufferSize, Hold, RowStream, shared_shards
from gen_vla.training.mixing.skipped_rows import RowProblems


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunShape:
    """How the rows of a run are divided: `batch_size` per device and micro-batch, and in streams among readers."""

    processes: int
    batch_size: int
    gradient_accumulation_steps: int = 1
    num_workers: int = 0  # of the loader in each process; without one, the process itself reads

    @property
    def rows_per_step(self) -> int:
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


@dataclass
class StreamingMixture(torch.utils.data.IterableDataset):
    """Prepared rows of one process of a run, without end, in micro-batches of `batch_size`."""

    sources: dict[str, DataSource]  # by name (`robot/KEY`, `vision_language/NAME`), robot data first
    turns: Turns  # which set has which place
    prepare: RowPreparer
    batch_size: int  # rows per device and micro-batch; the robot share of it is whole where both kinds are mixed
    seed: int = 0  # of every shuffle
    buffers: Mapping[str, BufferSize] = field(default_factory=dict)  # by source; by default of 1000 rows
    holds: Mapping[str, Hold] = field(default_factory=dict)  # by source, see `RowStream`
    initial: int = INITIAL  # rows of a buffer when it gives its first one
    rank: int = 0  # which process this is
    processes: int = 1
    workers: int = 0  # processes of the loader
    start: int = 0  # micro-batches of this process that an earlier run saw
    max_bad_share: float = 0.01  # the share of unreadable rows of one set that stops the run
    began: RunShape | None = None  # the shape of the run when it began; by default this one's
    problems: dict[str, RowProblems] = field(init=False)

    @property
    def names(self) -> list[str]:
        return list(self.sources)

    def __post_init__(self) -> None:
        self.problems = {name: RowProblems(self.max_bad_share, name=name) for name in self.sources}
        readers = self.processes * max(self.workers, 1)
        for name, source in self.sources.items():
            shards = source.shards()
            if not shards:
                raise ValueError(f"got the data set {name} without a shard, expected at least one file with rows")
            _, sharing = shared_shards(shards, (0, readers), 1)
            if sharing > 1 and self.rank == 0:
                logger.warning(
                    "%s has %d shards for %d readers (%d processes with %d workers): each is read by %d of them, "
                    "which keep their shares of the rows; fewer workers or more files would read less",
                    *(name, len(shards), readers, self.processes, self.workers, sharing),
                )

    def counters(self) -> dict[str, RowProblems]:
        reading = {f"reading {name}": source.problems for name, source in self.sources.items()}
        return {**reading, **{f"preparing {name}": problems for name, problems in self.problems.items()}}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        turn = (worker_id + self.start) % workers  # the loader asks worker 0 first, wherever the run goes on
        now = RunShape(self.processes, self.batch_size, num_workers=workers)
        began, own = self.began or now, self.rank * workers + turn
        readers = {number: self._reader(number, began) for number in sorted(began.readers_for(own, now))}
        begin = self.start * self.processes * self.batch_size
        for place, number in enumerate(self.turns):
            reader = readers.get(began.reader_of(place))
            if reader is None:
                continue
            wanted = place >= begin and now.reader_of(place) == own
            if wanted:
                for other in readers.values():
                    other.stop_skipping()
            row = reader.take(number, place // began.batch_size)
            if wanted:
                rows, name = chain([row], reader.streams[number].ahead()), self.names[number]
                yield first_readable(rows, self.prepare, name, place, self.problems[name])

    def _reader(self, number: int, began: RunShape) -> "Reader":
        streams = [
            RowStream(
                source,
                (number, began.readers),
                [self.seed, place],
                self.buffers.get(name, BufferSize(1000)),
                self.holds.get(name),
                skipping=self.start > 0,
                initial=self.initial,
            )
            for place, (name, source) in enumerate(self.sources.items())
        ]
        return Reader(streams, self.turns, np.random.default_rng([self.seed, len(streams), number]))


class Reader:
    """The streams of one reader, and the length that the conversations of its micro-batch are like."""

    def __init__(self, streams: list[RowStream], turns: Turns, draw: np.random.Generator):
        self.streams = streams
        self.robots = len(turns.robot)
        self.shares = np.array(turns.vision_language) / sum(turns.vision_language or [1.0])
        self.draw = draw
        self.batch, self.length = -1, 0

    def take(self, number: int, batch: int) -> dict[str, Any]:
        if number < self.robots:
            return self.streams[number].take()
        if batch != self.batch:
            some = int(self.draw.choice(len(self.shares), p=self.shares))
            self.batch, self.length = batch, self.streams[self.robots + some].some_length()
        return self.streams[number].take(self.length)

    def stop_skipping(self) -> None:
        for stream in self.streams:
            if stream.skipping:
                stream.stop_skipping()
