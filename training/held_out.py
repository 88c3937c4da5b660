"""What a run holds out of training (`data.validation`): which episodes and questions, and the rows that are scored.

Of as many episodes in a row as the share says (0.1: of ten), one is drawn by the seed, whatever stands before and
behind them: a data set that grows holds out the same ones and some of the new ones.

    episode    0 1 2 3 4 5 6 7 8 9 | 10 11 12 13 14 15 16 17 18 19 | 20 21 ...
    held out             5         |       12                      |
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any

import torch

from gen_vla.training.mixing.data_source import DataSource
from gen_vla.training.mixing.encoded_pictures import HeldPictures
from gen_vla.training.mixing.prepared_rows import BAD_ROW, RowPreparer, row_generator
from gen_vla.training.recipes.data_schema import ValidationRecipe
from gen_vla.training.robot_data.episodes import robot_row, row_places, spread
from gen_vla.training.robot_data.source import RobotDataset


HELD_OUT = "held_out"  # numbers of episodes, beside a data set's statistics
EPISODES, SHARDS = 64, 16  # that the rows of a data set are of, at most


def held_out_episodes(validation: ValidationRecipe | None, key: str, numbers: list[int]) -> list[int]:
    """Which of a data set's episodes are held out, ascending; raises `ValueError` without such or without others.

    Args:
        numbers: of all its episodes, ascending.
    """
    wanted = validation.episodes if validation else None
    if isinstance(wanted, dict):
        found = sorted(set(wanted.get(key, ())))
        if unknown := sorted(set(found) - set(numbers)):
            raise ValueError(
                f"got validation.episodes {unknown} of {key!r}, expected some of its {len(numbers)} episodes, whose "
                f"numbers go from {numbers[0]} to {numbers[-1]}"
            )
    elif wanted:
        assert validation is not None
        share, purpose = Fraction(str(wanted)), f"held out of {key}"

        def drawn(number: int) -> bool:
            block = number * share // 1
            first, last = -(-block // share), -(-(block + 1) // share)
            return number == row_generator(validation.seed, purpose, block).integers(first, last)

        found = [number for number in numbers if drawn(number)]
        if not found:  # fewer than one in a share, and the one that was drawn is not there yet
            found = [numbers[row_generator(validation.seed, purpose, "few").integers(len(numbers))]]
    else:
        return []
    if len(found) == len(numbers):
        raise ValueError(
            f"got robot data set {key!r} with {len(numbers)} episodes, all of them held out, expected one or more to "
            "train on; record more, or leave out data.validation"
        )
    return found


@dataclass(frozen=True)
class QuestionDraw:
    """Whether a question belongs here, by its identity: to what is held out of a data set, or to what is not."""

    name: str  # of the data set
    share: float | frozenset[str]  # or identities
    seed: int
    held_out: bool

    def __call__(self, identity: str) -> bool:
        if isinstance(self.share, frozenset):
            return (identity in self.share) == self.held_out
        return (row_generator(self.seed, f"held out of {self.name}", identity).random() < self.share) == self.held_out


def question_draw(validation: ValidationRecipe | None, name: str) -> QuestionDraw | None:
    """What is held out of a vision-language data set; `None` for nothing."""
    wanted = validation.questions if validation else None
    if isinstance(wanted, dict):
        wanted = frozenset(wanted.get(name, ()))
    return QuestionDraw(name, wanted, validation.seed, held_out=True) if validation and wanted else None


class HeldOutRows(torch.utils.data.Dataset):
    """Prepared rows of all data sets, those of one process: without augmentation, as a policy would meet them; raises
    `ValueError` if a data set has none.

    Every process has as many. Those that come again to fill up the last ones have `counted` false.

    Args:
        sources: what is held out, by name (`robot/KEY`, `vision_language/NAME`).
        prepare: makes a prepared row; a row that cannot be used is left out.
        most: rows of each data set.
    """

    def __init__(
        self,
        sources: dict[str, DataSource],
        prepare: RowPreparer,
        collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
        most: int,
        rank: int = 0,
        processes: int = 1,
    ):
        self.prepare, self.collate, self.rank, self.processes = prepare, collate, rank, processes
        self.rows: list[tuple[str, dict[str, Any]]] = []
        for name, source in sources.items():
            found = robot_rows(source, most) if isinstance(source, RobotDataset) else question_rows(source, most)
            usable = [(name, row) for row in map(HeldPictures(), found) if self._is_usable(row, name)]
            if not usable:
                raise ValueError(
                    f"got nothing to score of {name}: no row that is held out can be used "
                    f"({source.problems.report()['by_reason'] or 'there is none'}); hold out more, or others"
                )
            self.rows += usable

    def __len__(self) -> int:
        return -(-len(self.rows) // self.processes)

    def __getitem__(self, number: int) -> dict[str, Any]:
        place = number * self.processes + self.rank
        name, row = self.rows[place % len(self.rows)]
        return {**self.prepare(row, name, place % len(self.rows)), "counted": place < len(self.rows)}

    def _is_usable(self, row: dict[str, Any], name: str) -> bool:
        try:
            return bool(self.prepare(row, name, 0))
        except BAD_ROW:
            return False


def robot_rows(source: RobotDataset, most: int) -> Iterator[dict[str, Any]]:
    episodes = min(EPISODES, most, source.reader.count_episodes())
    for number, (episode, trajectory) in enumerate(source.spread_episodes(episodes)):
        places = row_places(episode, trajectory, source.horizon)
        chosen = spread(len(places), most // episodes + (number < most % episodes)) if places else []
        yield from (robot_row(episode, trajectory, source.horizon, places[place]) for place in chosen)


def question_rows(source: DataSource, most: int) -> Iterator[dict[str, Any]]:
    """The first rows of some shards from all over a data set; of archives, which are read from the front, of all."""
    shards = source.shards()
    if not source.lanes:
        yield from islice(source.rows(shards), most)
        return
    left, chosen = most, spread(len(shards), SHARDS)
    for number, shard in enumerate([*chosen, *sorted(set(range(len(shards))) - set(chosen))]):
        share = -(-left // max(len(chosen) - number, 1))
        for row in islice(source.rows([shards[shard]]), share):
            left -= 1
            yield row
        if not left:
            return
