"""LLaVA rows: conversations in a JSON list or JSON lines, and pictures in a folder, a zip file or tar archives.

    {"id": "...", "image": "region_ref/1033.png", "conversations": [{"from": "human", "value": "<image>\\n..."}, ...]}

With a folder or a zip file rows come in the JSON's order. With tar archives a row comes when its picture does; the
archives are read side by side, each as fast as it has rows, so that no stretch of a run sees one of them alone.

A shard is a range of the JSON's rows; with archives, of the rows of one archive or of those without a picture. Shards
of one archive are read in a single pass over it: readers get even shares of every archive, and each unpacks them all.
"""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from fsspec import AbstractFileSystem

from gen_vla.training.mixing.mixture import weighted_turns
from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.recipes.data_schema import did_you_mean
from gen_vla.training.vision_language_data.archives import TAR_ERRORS, find_archives, stream_members
from gen_vla.training.vision_language_data.json_rows import JsonRows, NameIndex, scan_rows
from gen_vla.training.vision_language_data.rows import (
    MISSING_PICTURE,
    Attempts,
    ConversationSource,
    ReadPicture,
    Row,
    RowError,
    build_row,
    messages_of,
    picture_name,
    pictures_of,
    read_picture,
    row_ranges,
)


TEXT_ONLY = "text-only"
DAMAGED_ARCHIVE = "archive is damaged or cut off before this picture"
SEVERAL_PICTURES = "several pictures, which a stream of archives cannot bring together"


def interleave(streams: list[tuple[int, Attempts]]) -> Attempts:
    """All entries of several streams (number of entries, entries), each as far along as the others at any time."""
    sizes = [size for size, _ in streams]
    for number in islice(weighted_turns(sizes), sum(sizes)):
        yield next(streams[number][1])


def check_configs(name: str, configs: Iterable[str] | None, known: list[str]) -> None:
    for config in configs or []:
        if config not in known:
            raise ValueError(f"{name!r}: got unknown config {config!r}; {did_you_mean(config, known)}")


def image_names(row: Any) -> list[str]:
    try:
        names = [picture_name(picture) or MISSING_PICTURE for picture in pictures_of(row)]
    except RowError:
        return []
    return ["base64" if name.startswith("data:image/") else name for name in names]


class LlavaSource(ConversationSource):
    """LLaVA rows whose pictures can be read in any order. Opening it scans the JSON once."""

    def __init__(self, name: str, json_path: Path, read: ReadPicture, problems: RowProblems):
        super().__init__(name, problems)
        self.read = read
        self.json_rows = JsonRows(json_path, [(offset, length) for offset, length, _ in scan_rows(json_path)])
        if not self.count_rows():
            raise ValueError(f"got {json_path} without a row, expected a list of conversations")
        self._shards = {f"{json_path.name}:{r.start}-{r.stop}": r for r in row_ranges(self.count_rows())}

    def count_rows(self) -> int:
        return len(self.json_rows)

    def _attempts(self, shards: list[range]) -> Attempts:
        for numbers in shards:
            for number, row in self.json_rows.read(numbers):
                identity = " ".join([f"{self.json_rows.path.name} row {number}", *image_names(row)])
                yield identity, partial(self._row, identity, row)

    def _row(self, identity: str, row: Any) -> Row:
        messages = messages_of(row)
        return build_row(identity, messages, [read_picture(picture, self.read) for picture in pictures_of(row)])


class ArchivedLlavaSource(ConversationSource):
    """LLaVA rows whose pictures lie in tar archives, each named after the folder it holds; raises `ValueError` for an
    unknown archive, or if rows name a folder of which there is no archive.

    `region_ref.tar.gz` holds the pictures whose name has the folder `region_ref`; what stands before that folder, in
    the JSON or in the archive, does not matter. A single archive holds them all. Opening it scans the JSON once.

    Args:
        configs: archives to use, `"text-only"` for rows without a picture; `None` for all.
    """

    lanes = 0  # archives are streamed from front to back

    def __init__(
        self,
        name: str,
        json_path: Path,
        filesystem: AbstractFileSystem,
        archive_folder: str,
        problems: RowProblems,
        configs: list[str] | None = None,
    ):
        super().__init__(name, problems)
        self.filesystem, self.archives = filesystem, find_archives(filesystem, archive_folder)
        check_configs(name, configs, [*self.archives, TEXT_ONLY])
        self._scan(json_path, configs)
        self._shards = {
            f"{group if group == TEXT_ONLY else f'{group}.tar'}:{r.start}-{r.stop}": (group, r)
            for group, numbers in self.row_numbers.items()
            for r in row_ranges(len(numbers))
        }
        if not self._shards:
            raise ValueError(f"{name!r}: got no row of {configs or 'any archive'} in {json_path}, expected some")

    def _scan(self, json_path: Path, configs: list[str] | None) -> None:
        stems = set(self.archives)
        only = next(iter(stems)) if len(stems) == 1 else ""  # a single archive holds all, whatever it is called
        places: list[tuple[int, int]] = []
        found: dict[str, list[tuple[int, str]]] = {group: [] for group in (*self.archives, TEXT_ONLY)}
        unknown: Counter[str] = Counter()
        for number, (offset, length, row) in enumerate(scan_rows(json_path)):
            places.append((offset, length))
            names = image_names(row)
            stem, tail = _split_name(names[0], stems) if names else (TEXT_ONLY, "")
            if not (stem := stem or only):
                unknown[names[0].split("/")[0]] += 1
            elif configs is None or stem in configs:
                found[stem].append((number, tail))
        if unknown and configs is None:
            raise ValueError(
                f"{self.name!r}: got {sum(unknown.values())} rows with pictures in {', '.join([*unknown][:5])}, of "
                f"which there is no archive; fetch it, or choose with configs from {', '.join(found)}"
            )
        self.json_rows = JsonRows(json_path, places)
        self.row_numbers = {g: np.array([number for number, _ in rows], np.int64) for g, rows in found.items()}
        self.indexes = {group: NameIndex(tail for _, tail in rows) for group, rows in found.items()}

    def count_rows(self) -> int:
        return sum(map(len, self.row_numbers.values()))

    def _attempts(self, shards: list[tuple[str, range]]) -> Attempts:
        """Of every archive in the order of its pictures, archives side by side."""
        groups: dict[str, list[range]] = {}
        for group, numbers in dict.fromkeys(shards):
            groups.setdefault(group, []).append(numbers)
        readers = {TEXT_ONLY: self._text_attempts}
        streams = [
            (sum(map(len, ranges)), readers.get(group, partial(self._archive_attempts, group))(ranges))
            for group, ranges in groups.items()
        ]
        return interleave(streams)

    def _text_attempts(self, ranges: list[range]) -> Attempts:
        for numbers in ranges:
            for number, row in self.json_rows.read(self.row_numbers[TEXT_ONLY][numbers.start : numbers.stop]):
                yield self._identity(number, []), partial(self._row, number, row, [], None)

    def _archive_attempts(self, stem: str, ranges: list[range]) -> Attempts:
        """Rows as their pictures come; in the end the rows whose pictures did not."""
        row_numbers, index = self.row_numbers[stem], self.indexes[stem]
        awaited = np.zeros(len(row_numbers), dtype=bool)
        for numbers in ranges:
            awaited[numbers.start : numbers.stop] = True
        reason = MISSING_PICTURE
        try:
            for member, file in stream_members(self.filesystem, self.archives[stem]):
                tail = _split_name(member, {stem})[1]
                places = [place for place in index.find(tail) if awaited[place]]
                picture = file.read() if places else b""
                for place, (number, row) in zip(places, self.json_rows.read(row_numbers[places]), strict=True):
                    names = image_names(row)
                    if _split_name(names[0], {stem})[1] == tail:
                        awaited[place] = False
                        yield self._identity(number, names), partial(self._row, number, row, names, picture)
        except TAR_ERRORS:
            reason = DAMAGED_ARCHIVE
        for number, row in self.json_rows.read(row_numbers[awaited]):
            yield self._identity(number, image_names(row)), partial(_give_up, reason)

    def _identity(self, number: int, names: list[str]) -> str:
        return " ".join([f"{self.json_rows.path.name} row {number}", *names])

    def _row(self, number: int, row: Any, names: list[str], picture: bytes | None) -> Row:
        messages = messages_of(row)
        if len(names) > 1:
            raise RowError(SEVERAL_PICTURES)
        pictures = [{"bytes": picture, "path": name} for name in names]
        return build_row(self._identity(number, names), messages, pictures)


def _give_up(reason: str) -> Row:
    raise RowError(reason)


def _split_name(name: str, stems: set[str]) -> tuple[str, str]:
    """The archive a picture belongs to ('' for none), and its name below that archive's folder."""
    folders = name.split("/")
    for depth, folder in enumerate(folders[:-1]):
        if folder in stems:
            return folder, "/".join(folders[depth + 1 :])
    return "", name
