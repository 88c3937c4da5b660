"""How long rows are in tokens: measured on some by `--check`, kept for `--plan`.

WORK_DIR/<recipe name>/row_lengths.json
"""

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gen_vla.training.mixing.data_source import sample_shards
from gen_vla.training.mixing.prepared_rows import BAD_ROW, VISION_LANGUAGE, RowPreparer
from gen_vla.training.recipes.sources import OpenedData
from gen_vla.training.robot_data.episodes import spread
from gen_vla.training.storage.json_files import read_json, write_json


FILE = "row_lengths.json"
MEASURED, PLACES = 256, 8  # rows of a data set, and places of it that they come from


@dataclass(frozen=True)
class RowLengths:
    rows: int  # that were measured
    median: int
    p95: int
    longest: int
    over: float  # share that is longer than the recipe takes

    def __str__(self) -> str:
        return f"{self.median:,} tokens in the median, {self.p95:,} at 95 %, {self.longest:,} the longest"


def measure_lengths(opened: OpenedData, prepare: RowPreparer, collator: Any) -> dict[str, RowLengths]:
    """Lengths of some rows of every data set; none for one without a row that can be prepared.

    What is longer than the model takes counts as such, by as many tokens as it would have.
    """
    whole = replace(prepare, fit=None)
    measured = {}
    for name in opened.names:
        limit, lengths = collator.max_tokens, []
        if name.partition("/")[0] == VISION_LANGUAGE:  # all actions are as long
            limit = min(limit, collator.most_tokens or limit)
        for place, row in enumerate(some_rows(opened, name)):
            try:
                lengths.append(collator.tokens(whole(row, name, place)))
            except BAD_ROW:
                continue
        if lengths:
            median, p95 = np.percentile(lengths, [50, 95]).round().astype(int).tolist()
            over = float(np.mean(np.array(lengths) > limit))
            measured[name] = RowLengths(len(lengths), median, p95, max(lengths), over)
    return measured


def some_rows(opened: OpenedData, name: str) -> Iterator[dict[str, Any]]:
    if name in opened.tables:
        table = opened.tables[name]
        yield from (table[number] for number in spread(len(table), MEASURED))
        return
    samples = sample_shards(copy.deepcopy(opened.streams[name]), PLACES)
    for rows in samples:
        yield from islice(rows, MEASURED // len(samples))


def write_lengths(folder: Path, lengths: dict[str, RowLengths]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, {name: asdict(each) for name, each in lengths.items()})


def read_lengths(folder: Path) -> dict[str, RowLengths]:
    found = read_json(folder / FILE) if (folder / FILE).is_file() else {}
    return {name: RowLengths(**each) for name, each in found.items()}
