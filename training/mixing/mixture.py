"""The mixture: every batch half robot data, half vision-language data (the paper's C).

    place      0      1                2      3                4      5                6      7
    half       robot  vision-language  robot  vision-language  robot  vision-language  robot  vision-language
    data set   a      onevision        b      llava            a      robopoint        a      onevision

Robot and vision-language rows alternate, so that every stretch of even length that starts at an even place is exactly
half and half: every per-device batch of every process. Another share (`data.robot_share`) is as exact. Both kinds of
places go to their sets by weight (here a: 2, b: 1, onevision: 2). One order covers the whole run, each table
reshuffled whenever it is used up, so that a resumed run only skips what it saw. Streams: `streaming_mixture.py`.

With `data.group_by_length` vision-language rows change places within some steps, so that those of a step are of
similar length (here letters), whatever its processes and batches; the steps come in an order of their own:

    as drawn    robot  c    robot  a  |  robot  d    robot  b
    grouped     robot  c    robot  d  |  robot  a    robot  b
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count, islice
from math import lcm
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from gen_vla.processors.prompt_texts import ControlTokenError
from gen_vla.processors.robot_state import RobotStateError
from gen_vla.training.mixing.prepared_rows import BAD_ROW, RowOverLimit, RowPreparer, RowTooLong
from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.video_frames import MISSING_FRAME, VideoError


GROUPED = 512  # rows of the steps that are grouped together, at least one step


def weighted_turns(weights: Sequence[float]) -> Iterator[int]:
    """Numbers of the entries in turn, as often as their weights say, without end.

    The entry that is furthest behind its share comes next, the first of several; so after any number of turns every
    entry is within one of its share, and equal weights give plain turns.
    """
    fractions = [Fraction(weight).limit_denominator(10_000) for weight in weights]
    shares = [int(fraction * lcm(*(each.denominator for each in fractions))) for fraction in fractions]
    if not shares or min(shares) < 1:
        raise ValueError(
            f"got weights {list(weights)}, expected numbers above 0, none 10,000 times smaller than another"
        )
    total, behind = sum(shares), [0] * len(shares)
    while True:
        behind = [debt + share for debt, share in zip(behind, shares, strict=True)]
        chosen = behind.index(max(behind))
        behind[chosen] -= total
        yield chosen


@dataclass(frozen=True)
class Turns:
    """The data set of every place of a run, without end: numbers of the robot sets, then of the others."""

    robot: Sequence[float]  # weights of the robot sets
    vision_language: Sequence[float] = ()  # weights of the others
    robot_share: float = 0.5  # of the places, where there are both kinds

    def shares(self) -> list[float]:
        robot = self.robot_share if self.vision_language else 1.0
        kinds = ((self.robot, robot), (self.vision_language, 1.0 - self.robot_share if self.robot else 1.0))
        return [share * weight / sum(weights) for weights, share in kinds for weight in weights]

    def __iter__(self) -> Iterator[int]:
        kinds = {True: (0, self.robot), False: (len(self.robot), self.vision_language)}
        turns = {kind: weighted_turns(weights) for kind, (_, weights) in kinds.items() if weights}
        shares = {True: self.robot_share, False: 1 - self.robot_share}
        order = list(turns)
        for chosen in weighted_turns([shares[kind] for kind in order]):
            kind = order[chosen]
            yield kinds[kind][0] + next(turns[kind])


class HalfAndHalfSampler(Sampler[tuple[int, int]]):
    """`(place in the run, index into the concatenation of all sets)`, for a run of `length` rows over all processes.

    Args:
        robot, vision_language: sizes of the sets, in the order of the concatenation; one may be empty.
        turns: which set has which place; by default all sets of a kind come alike often.
        row_lengths: of the vision-language sets' rows, one behind the other, to group them by; by default none are.
        step: rows of an optimizer step, over all processes.
    """

    def __init__(
        self,
        robot: list[int],
        vision_language: list[int],
        length: int,
        seed: int,
        turns: Turns | None = None,
        row_lengths: Sequence[int] = (),
        step: int = 1,
    ):
        sizes = [*robot, *vision_language]
        if not sizes or min(sizes) < 1:
            raise ValueError(f"got data sets of {sizes} rows, expected at least one row in each and at least one set")
        offsets = np.concatenate(([0], np.cumsum(sizes)[:-1])).tolist()
        self.spans = list(zip(offsets, sizes, strict=True))
        self.turns = turns or Turns([1.0] * len(robot), [1.0] * len(vision_language))
        self.length = length
        self.seed = seed
        self.robots, self.row_lengths, self.step = sum(robot), np.array(row_lengths), step

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        streams = [self._stream(number) for number in range(len(self.spans))]
        order = (next(streams[number]) for number in self.turns)
        yield from zip(range(self.length), self._grouped(order) if len(self.row_lengths) else order)

    def _grouped(self, order: Iterator[int]) -> Iterator[int]:
        steps = max(GROUPED // self.step, 1)
        for number in count():
            rows = np.array(list(islice(order, steps * self.step)))
            places = np.flatnonzero(rows >= self.robots)
            found = rows[places]
            turns = np.random.default_rng([self.seed, len(self.spans), number]).permutation(steps)
            places = places[np.argsort(turns[places // self.step], kind="stable")]
            rows[places] = found[np.argsort(self.row_lengths[found - self.robots], kind="stable")]
            yield from rows.tolist()

    def _stream(self, number: int) -> Iterator[int]:
        offset, size = self.spans[number]
        shuffle = np.random.default_rng([self.seed, number])
        while True:
            yield from (int(offset + row) for row in shuffle.permutation(size))


class MixedTables(torch.utils.data.Dataset):
    """Prepared rows of several tables, by `(place in the run, index into their concatenation)`."""

    def __init__(self, tables: dict[str, Any], prepare: RowPreparer, max_bad_share: float = 0.01):
        self.tables = list(tables.items())
        self.names = list(tables)
        self.ends = np.cumsum([len(table) for table in tables.values()])
        self.prepare = prepare
        self.problems = {name: RowProblems(max_bad_share, name=name) for name in tables}

    def counters(self) -> dict[str, RowProblems]:
        return dict(self.problems)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, place_and_index: tuple[int, int]) -> dict[str, Any]:
        place, index = place_and_index
        number = int(np.searchsorted(self.ends, index, side="right"))
        name, table = self.tables[number]
        first = index - int(self.ends[number]) + len(table)
        candidates = (table[(first + step) % len(table)] for step in range(len(table)))
        return first_readable(candidates, self.prepare, name, place, self.problems[name])


def first_readable(
    rows: Iterator[dict[str, Any]], prepare: RowPreparer, source: str, place: int, problems: RowProblems
) -> dict[str, Any]:
    """The first row that fits and whose pictures decode, prepared; `replaced` says whether it stands in for another;
    raises `TooManyBadRows` past the limit of `problems`, or if no row decodes.

    Only the first of `rows` is counted, as good, as bad or as longer than the recipe takes: the others have places of
    their own.
    """
    replaced = False
    for row in rows:
        try:
            prepared = {**prepare(row, source, place), "replaced": replaced}
        except BAD_ROW as error:
            if not replaced:
                video = isinstance(error.__cause__, VideoError)
                reasons = {RowTooLong: "too long", ControlTokenError: "control token in a text"}
                reasons |= {RobotStateError: "state that is not finite"}
                undecodable = MISSING_FRAME if video else "picture that does not decode"
                if isinstance(error, RowOverLimit):
                    problems.leave_out()
                else:
                    problems.skip(row["identity"], reasons.get(type(error), undecodable))
            replaced = True
            continue
        if not replaced:
            problems.seen()
        return prepared
    problems.finish()
    raise ValueError(
        f"got the data set {source} without a row that fits and whose pictures decode, expected one; repair it"
    )
