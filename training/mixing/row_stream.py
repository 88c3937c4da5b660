"""One data set's rows for one reader of a stream, without end: shards side by side, then a shuffle buffer.

    shards waiting      e9 e4 e7 ...
    lanes               e1 e5 e2 e8        the shards that are open, each read in the order of its file
    buffer              rows of all that were open lately, pictures encoded; the next row is drawn from it

A row of a robot is drawn so that its episode did not come for as long as possible: neighbours of an episode hardly
differ, and a micro-batch is to show several. Rows of conversations may be asked for by length, so that a micro-batch
is padded little. Both only choose the order: every row comes once per pass.

What is drawn depends on the seed, the order of the files and `BufferSize`, never on whether pictures were decoded, so
that a resumed run can go past its earlier rows without decoding them.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any

import numpy as np

from gen_vla.training.mixing.data_source import DataSource
from gen_vla.training.mixing.encoded_pictures import StoredPicture
from gen_vla.training.robot_data.video_frames import VideoPicture


INITIAL = 256  # rows of a buffer when it gives its first one; then two come for every one that goes, until it is full
STAND_INS = 100  # rows that are tried in the place of one that does not decode
APART = 16  # rows of other episodes between two of one, where there are as many episodes
TRIES = 64  # draws for such a row, and candidates for one of a wanted length
CHARACTERS_PER_PICTURE = 1000  # about 256 image tokens, in a length that is compared with other lengths only

Row = dict[str, Any]
Hold = Callable[[Row], Row]  # a row with its pictures encoded, see `encoded_pictures.HeldPictures`


@dataclass(frozen=True)
class BufferSize:
    rows: int
    lanes: int = 1


def shared_shards(shards: list[str], reader: tuple[int, int], lanes: int) -> tuple[list[str], int]:
    """The shards that a reader (its number, of how many) goes through, and how many readers go through the same.

    As few share as give every reader as many shards as it has lanes: every one then keeps each n-th row.
    """
    number, readers = reader
    divisors = [share for share in range(1, readers + 1) if readers % share == 0]
    sharing = next((share for share in divisors if len(shards) * share >= readers * max(lanes, 1)), readers)
    return shards[number // sharing :: readers // sharing], sharing


class RowStream:
    """One set's rows for one reader, without end.

    Args:
        reader: its number, of how many; the rows of all readers together are the set's, each once per pass.
        seed: of the order of shards and rows.
        size: of the buffer; one row and one lane leave the order of the files.
        hold: encodes the pictures of a row that comes into the buffer; by default they stay as they are.
        initial: rows in the buffer when it gives its first one.
    """

    def __init__(
        self,
        source: DataSource,
        reader: tuple[int, int],
        seed: list[int],
        size: BufferSize,
        hold: Hold | None = None,
        skipping: bool = False,
        initial: int = INITIAL,
    ):
        self.source = source
        self.number, self.readers = reader
        self.seed = seed
        self.size = size
        self.initial = self.wanted = min(initial, size.rows)
        self.hold = hold or load_frames
        self.skipping = skipping
        self.shards, self.sharing = shared_shards(source.shards(), reader, size.lanes)
        self.kept: list[Row] = []
        self.early: deque[Row] = deque()  # behind the buffer, read to stand in for others
        self.arrivals, self.pass_number = count(), -1
        self.taken = 0
        self.last_taken: dict[int, int] = {}  # by episode, the number of its latest row
        self.incoming: Iterator[Row] = iter(())
        self.filling = False
        self.came = 0  # rows of this pass

    def take(self, length: int | None = None) -> Row:
        """The next row; with a length, one near it (`row_length`)."""
        self._fill()
        self.wanted = min(self.wanted + 1, self.size.rows)
        place = self._choose(length)
        row, last = self.kept[place], self.kept.pop()
        if place < len(self.kept):
            self.kept[place] = last
        if (episode := row.get("episode_index")) is not None:
            self.taken += 1
            self.last_taken[episode] = self.taken
        return row

    def ahead(self) -> Iterator[Row]:
        """Rows that come later, left where they are; behind the last of a pass, rows of the next one."""
        self._fill()
        yield from list(self.kept[:STAND_INS])
        for place in range(STAND_INS - len(self.kept)):
            if place == len(self.early):
                row = next(self.incoming, None)
                if row is None:
                    yield from islice(self._arriving(self.pass_number + 1), STAND_INS)
                    return
                self.early.append(row)
            yield self.early[place]

    def some_length(self) -> int:
        self._fill()
        return self.kept[int(self.draw.integers(len(self.kept)))]["length"]

    def stop_skipping(self) -> None:
        """Encodes the pictures of what lies in the buffer, as it came in, and from now on of what comes in."""
        self.skipping = False
        for row in sorted(chain(self.kept, self.early), key=lambda row: row["arrival"]):
            self.hold(row)

    def _fill(self) -> None:
        while len(self.kept) < self.wanted:
            row = self.early.popleft() if self.early else next(self.incoming, None)
            if row is not None:
                self.kept.append(row)
            elif self.kept:
                break
            else:
                self._begin_pass()
        self.filling = self.filling and self.wanted < self.size.rows

    def _begin_pass(self) -> None:
        if self.pass_number >= 0 and not self.came:
            raise ValueError(
                f"got the data set {self.source.name} without a row for reader {self.number} of {self.readers}, "
                "expected at least one; use fewer processes and workers, or another split"
            )
        self.pass_number += 1
        number, self.came, self.filling = self.pass_number, 0, True
        self.wanted = self.initial
        self.draw = np.random.default_rng([*self.seed, number, self.number])
        self.incoming = self._arriving(number)

    def _arriving(self, number: int) -> Iterator[Row]:
        order = np.random.default_rng([*self.seed, number]).permutation(len(self.shards)).tolist()
        for row in self._side_by_side(order, number) if self.size.lanes > 1 else self._read(order):
            self.came += 1
            row = {**row, "arrival": next(self.arrivals), "length": row_length(row)}
            yield row if self.skipping else self.hold(row)

    def _read(self, order: list[int]) -> Iterator[Row]:
        offset = (self.number + (order[0] if self.size.lanes > 1 and order else 0)) % self.sharing
        return islice(self.source.rows([self.shards[place] for place in order]), offset, None, self.sharing)

    def _side_by_side(self, order: list[int], number: int) -> Iterator[Row]:
        """Rows of the open shards, of one at random at a time.

        While the buffer is filled for the first time in a pass, some come faster than others: otherwise all of the
        episodes would be at their beginnings together, and later at their ends.
        """
        draw = np.random.default_rng([*self.seed, number, self.number, 1])
        waiting = iter(order)
        lanes = [self._read([place]) for place in islice(waiting, self.size.lanes)]
        paces = draw.random(len(lanes))
        while lanes:
            chosen = draw.random()
            if self.filling:
                lane = int(np.searchsorted(np.cumsum(paces[: len(lanes)]), chosen * paces[: len(lanes)].sum()))
            else:
                lane = int(chosen * len(lanes))
            row = next(lanes[lane], None)
            if row is not None:
                yield row
            elif (place := next(waiting, None)) is not None:
                lanes[lane] = self._read([place])
            else:
                del lanes[lane]

    def _choose(self, length: int | None) -> int:
        if length is not None:
            places = self.draw.integers(len(self.kept), size=TRIES).tolist()
            return min(places, key=lambda place: abs(self.kept[place]["length"] - length))
        best, waited = 0, -1.0
        for _ in range(TRIES):
            place = int(self.draw.integers(len(self.kept)))
            taken = self.last_taken.get(self.kept[place].get("episode_index", -1))
            since = float("inf") if taken is None else self.taken - taken
            if since >= APART:
                return place
            if since > waited:
                best, waited = place, since
        return best


def row_length(row: Row) -> int:
    """How long a row is about, in characters; all rows of a robot data set are alike."""
    texts = sum(len(turn["question"]) + len(turn["answer"]) for turn in row.get("turns", ()))
    return texts + CHARACTERS_PER_PICTURE * len(row["images"])


def load_frames(row: Row) -> Row:
    """Decodes a row's frames of videos and reads its pictures in files, if it has any."""
    row["images"] = [picture.read() if isinstance(picture, StoredPicture) else picture for picture in row["images"]]
    for picture in row["images"]:
        if isinstance(picture, VideoPicture):
            picture.load()
    return row
