"""LLaVA rows: conversations in a JSON list or JSON lines, and pictures in a folder, a zip file or tar archives.

Decides: the shards and the order of the rows. Refuses to know: which data set this is.

    {"id": "...", "image": "region_ref/1033.png", "conversations": [{"from": "human", "value": "<image>\\n..."}, ...]}

With a folder or a zip file rows come in the JSON's order. With tar archives a row comes when its picture does; the
archives are read side by side, each as fast as it has rows, so that no stretch of a run sees one of them alone.

A shard is a range of the JSON's rows; with archives, of the rows of one archive or of those without a picture. Shards
of one archive are read in a single pass over it: readers get even shares of every archive, and each unpacks them all.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from fsspec import AbstractFileSystem

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.vision_language_data.archives import TAR_ERRORS, find_archives, stream_members
from gen_vla.training.vision_language_data.json_rows import JsonRows, NameIndex, scan_rows
from gen_vla.training.vision_language_data.rows import (
    MISSING_PICTURE,
    Row,
    RowError,
    build_row,
    good_rows,
    messages_of,
    picture_name,
    pictures_of,
    read_pictures,
)


ROWS_PER_SHARD = 1000
SHARDS_WANTED = 64  # of a small set, so that several processes each get some
TEXT_ONLY = "text-only"
DAMAGED_ARCHIVE = "archive is damaged or cut off before this picture"
SEVERAL_PICTURES = "several pictures, which a stream of archives cannot bring together"

Attempts = Iterator[tuple[str, Callable[[], Row]]]


class Pictures(Protocol):
    """Pictures that can be read in any order."""

    def read(self, name: str) -> bytes:
        """The encoded bytes of one picture; raises `RowError` without it."""
        ...


def row_ranges(count: int) -> list[range]:
    """Ranges of at most `ROWS_PER_SHARD` rows; smaller ones where that gives too few."""
    step = max(1, min(ROWS_PER_SHARD, -(-count // SHARDS_WANTED)))
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def side_by_side(streams: list[tuple[int, Attempts]]) -> Attempts:
    """All entries of several streams, each as far along as the others at any time.

    Args:
        streams: (number of entries, entries).
    """
    taken = [0] * len(streams)
    for _ in range(sum(size for size, _ in streams)):
        left = [number for number, (size, _) in enumerate(streams) if taken[number] < size]
        number = min(left, key=lambda number: (taken[number] + 1) / streams[number][0])
        taken[number] += 1
        yield next(streams[number][1])


def shards_named(known: dict[str, Any], wanted: list[str], name: str) -> list[Any]:
    """The entries of the wanted shards; raises `ValueError` for one that the set does not have."""
    unknown = [shard for shard in wanted if shard not in known]
    if unknown:
        raise ValueError(
            f"got shard {unknown[0]!r} of {name!r}, expected some of its shards(), such as {[*known][:3]}"
        )
    return [known[shard] for shard in wanted]


def image_names(row: Any) -> list[str]:
    """The names of a row's pictures; none for a row that cannot be read."""
    try:
        names = [picture_name(picture) or MISSING_PICTURE for picture in pictures_of(row)]
    except RowError:
        return []
    return ["base64" if name.startswith("data:image/") else name for name in names]


class LlavaSource:
    """LLaVA rows whose pictures can be read in any order. Opening it scans the JSON once.

    Args:
        name: of the set.
        json_path: a local file.
        pictures: where they are.
        problems: counts bad rows.
    """

    def __init__(self, name: str, json_path: Path, pictures: Pictures, problems: RowProblems):
        self.name, self.pictures, self.problems = name, pictures, problems
        places = [(offset, length) for offset, length, _ in scan_rows(json_path)]
        if not places:
            raise ValueError(f"got {json_path} without a row, expected a list of conversations")
        self.json_rows = JsonRows(json_path, [place[0] for place in places], [place[1] for place in places])
        self._ranges = {f"{json_path.name}:{r.start}-{r.stop}": r for r in row_ranges(len(places))}

    def shards(self) -> list[str]:
        """Ranges of rows."""
        return list(self._ranges)

    def count_rows(self) -> int | None:
        """Rows of the JSON."""
        return len(self.json_rows)

    def rows(self, shards: list[str]) -> Iterator[Row]:
        """The rows of these shards, in the JSON's order."""
        return good_rows(self._attempts(shards_named(self._ranges, shards, self.name)), self.problems)

    def _attempts(self, ranges: list[range]) -> Attempts:
        for numbers in ranges:
            for number, row in self.json_rows.read(numbers):
                identity = f"{self.json_rows.path.name} row {number}"
                names = image_names(row)
                yield " ".join([identity, *names]), partial(self._row, " ".join([identity, *names]), row)

    def _row(self, identity: str, row: Any) -> Row:
        messages = messages_of(row)
        return build_row(identity, messages, read_pictures(pictures_of(row), self.pictures.read))


class ArchivedLlavaSource:
    """LLaVA rows whose pictures lie in tar archives, each named after the folder it holds.

    `region_ref.tar.gz` holds the pictures whose name has the folder `region_ref`; what stands before that folder, in
    the JSON or in the archive, does not matter. A single archive holds them all. Opening it scans the JSON once.

    Args:
        name: of the set.
        json_path: a local file.
        filesystem, archive_folder: where the archives are.
        problems: counts bad rows.
        configs: archives to use, `"text-only"` for rows without a picture; `None` for all.

    Raises:
        ValueError: for an unknown archive, or if rows name a folder of which there is no archive.
    """

    def __init__(
        self,
        name: str,
        json_path: Path,
        filesystem: AbstractFileSystem,
        archive_folder: str,
        problems: RowProblems,
        configs: list[str] | None = None,
    ):
        self.name, self.filesystem, self.problems = name, filesystem, problems
        archives = find_archives(filesystem, archive_folder)
        _check_configs(name, configs, [*archives, TEXT_ONLY])
        self.archives = {stem: parts for stem, parts in archives.items() if configs is None or stem in configs}
        self._scan(json_path, sorted(archives), everything=configs is None)
        if configs is not None and TEXT_ONLY not in configs:
            self.text_rows = self.text_rows[:0]
        sizes = {f"{stem}.tar": int((self.stems == number).sum()) for stem, number in self.stem_numbers.items()}
        sizes[TEXT_ONLY] = len(self.text_rows)
        self._shards = {
            f"{group}:{r.start}-{r.stop}": (group.removesuffix(".tar"), r)
            for group, size in sizes.items()
            for r in row_ranges(size)
        }
        if not self._shards:
            raise ValueError(f"{name!r}: got no row of {configs or 'any archive'} in {json_path}, expected some")

    def _scan(self, json_path: Path, known: list[str], everything: bool) -> None:
        """Notes where rows lie, which archive each one needs, and the name of its picture there."""
        stems = set(known)
        offsets, lengths, texts, numbers, keys = [], [], [], [], []
        homeless: Counter[str] = Counter()
        for number, (offset, length, row) in enumerate(scan_rows(json_path)):
            offsets.append(offset)
            lengths.append(length)
            names = image_names(row)
            if not names:
                texts.append(number)
                continue
            stem, tail = _home(names[0], stems)
            if not stem and len(known) == 1:
                stem = known[0]  # a single archive holds all pictures, whatever it is called
            if not stem:
                homeless[names[0].split("/")[0]] += 1
            elif stem in self.archives:
                numbers.append(number)
                keys.append((stem, tail))
        if homeless and everything:
            raise ValueError(
                f"{self.name!r}: got {sum(homeless.values())} rows with pictures in {', '.join([*homeless][:5])}, of "
                f"which there is no archive; fetch it, or choose with configs from {', '.join(known)}, {TEXT_ONLY}"
            )
        self.json_rows = JsonRows(json_path, offsets, lengths)
        self.text_rows, self.picture_rows = np.array(texts, dtype=np.int64), np.array(numbers, dtype=np.int64)
        self.stem_numbers = {stem: number for number, stem in enumerate(self.archives)}
        self.stems = np.array([self.stem_numbers[stem] for stem, _ in keys], dtype=np.int16)
        self.index = NameIndex(f"{stem}\0{tail}" for stem, tail in keys)

    def shards(self) -> list[str]:
        """Ranges of the rows of each archive, then of the rows without a picture."""
        return list(self._shards)

    def count_rows(self) -> int | None:
        """Rows of the JSON that belong to the chosen archives."""
        return len(self.picture_rows) + len(self.text_rows)

    def rows(self, shards: list[str]) -> Iterator[Row]:
        """The rows of these shards: of every archive in the order of its pictures, archives side by side."""
        return good_rows(self._attempts(shards_named(self._shards, shards, self.name)), self.problems)

    def _attempts(self, shards: list[tuple[str, range]]) -> Attempts:
        groups: dict[str, list[range]] = {}
        for group, numbers in dict.fromkeys(shards):
            groups.setdefault(group, []).append(numbers)
        readers = {TEXT_ONLY: self._text_attempts}
        streams = [
            (sum(map(len, ranges)), readers.get(group, partial(self._archive_attempts, group))(ranges))
            for group, ranges in groups.items()
        ]
        return side_by_side(streams)

    def _text_attempts(self, ranges: list[range]) -> Attempts:
        for numbers in ranges:
            for number, row in self.json_rows.read(self.text_rows[numbers.start : numbers.stop].tolist()):
                yield self._identity(number, []), partial(self._row, number, row, [], None)

    def _archive_attempts(self, stem: str, ranges: list[range]) -> Attempts:
        """Rows as their pictures come; in the end the rows whose pictures did not."""
        own = np.flatnonzero(self.stems == self.stem_numbers[stem])
        awaited = np.zeros(len(self.picture_rows), dtype=bool)
        for numbers in ranges:
            awaited[own[numbers.start : numbers.stop]] = True
        reason = MISSING_PICTURE
        try:
            for member, file in stream_members(self.filesystem, self.archives[stem]):
                tail = _home(member, {stem})[1]
                places = [place for place in self.index.find(f"{stem}\0{tail}") if awaited[place]]
                picture = file.read() if places else b""
                for place, (number, row) in zip(places, self.json_rows.read(self.picture_rows[places]), strict=True):
                    names = image_names(row)
                    if _home(names[0], {stem})[1] == tail:
                        awaited[place] = False
                        yield self._identity(number, names), partial(self._row, number, row, names, picture)
        except TAR_ERRORS:
            reason = DAMAGED_ARCHIVE
        for number, row in self.json_rows.read(self.picture_rows[awaited]):
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


def _home(name: str, stems: set[str]) -> tuple[str, str]:
    """The archive a picture belongs to ('' for none), and its name behind that archive's folder."""
    folders = name.split("/")
    for depth, folder in enumerate(folders[:-1]):
        if folder in stems:
            return folder, "/".join(folders[depth + 1 :])
    return "", name


def _check_configs(name: str, configs: Iterable[str] | None, known: list[str]) -> None:
    for config in configs or []:
        if config not in known:
            near = get_close_matches(config, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{name!r}: got unknown config {config!r}; {hint}known: {', '.join(known)}")
