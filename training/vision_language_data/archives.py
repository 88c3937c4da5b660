"""The pictures of a LLaVA data set: in a folder, a zip file, or tar archives, some of them split into parts.

folder   any picture at any time, one read each
zip      the table of contents is read once; then any picture at any time, one read each, its checksum verified
tar      no picture without everything before it, least of all in a .tar.gz: archives are streamed from front to
         back, and their order is the order of the rows. `NAME.tar.gz.part_00`, `.part_01`, ... are one archive.
"""

import gzip
import io
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import reduce
from typing import IO, Any

import numpy as np
from fsspec import AbstractFileSystem

from gen_vla.training.vision_language_data.json_rows import NameIndex
from gen_vla.training.vision_language_data.rows import MISSING_PICTURE, RowError


BAD_CHECKSUM = "picture fails the archive's checksum"
STREAM_BYTES = 1 << 20
ARCHIVE = re.compile(r"(?P<stem>.+?)(?P<kind>\.tar\.gz|\.tgz|\.tar)(?:\.(?:part)?[_-]?(?P<part>[0-9]+|[a-z]+))?")
TAR_ERRORS = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error)  # no network errors: those are not the file's
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., lengths of the name and of the extra field
_SLACK_BYTES = 256  # the extra field may be longer here than in the table of contents


class ArchiveError(ValueError):
    """An archive that cannot be read, or of which a part is missing."""


class FolderPictures:
    def __init__(self, filesystem: AbstractFileSystem, root: str):
        self.filesystem: Any = filesystem
        self.folders = [f"{root}/images", root]

    def read(self, name: str) -> bytes:
        """The bytes of one picture; raises `RowError` if there is no such file, or it lies outside the data set."""
        if name.startswith("/") or ".." in name.split("/"):
            raise RowError(MISSING_PICTURE)
        for folder in self.folders:
            try:
                data = self.filesystem.cat_file(f"{folder}/{name}")
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                continue
            self.folders.sort(key=lambda other: other != folder)  # the next one lies there, too
            return data
        raise RowError(MISSING_PICTURE)


class ZipPictures:
    """Pictures in a zip file, found by name with or without a leading `images/`; raises `ArchiveError` if the file has
    no table of contents, as one that was cut off.

    `zipfile` would need three reads a picture, and several hundred bytes of memory a name.
    """

    def __init__(self, filesystem: AbstractFileSystem, path: str):
        self.path = path
        self.filesystem: Any = filesystem
        try:
            with self.filesystem.open(path, "rb") as file, zipfile.ZipFile(file) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
        except zipfile.BadZipFile as error:
            raise ArchiveError(f"got {path}, which is no whole zip file ({error}); fetch it again") from error
        self.index = NameIndex(member.filename for member in members)
        self.table = np.array(
            [(m.header_offset, m.compress_size, m.compress_type, m.CRC) for m in members], dtype=np.int64
        ).reshape(-1, 4)

    def read(self, name: str) -> bytes:
        """The bytes of one picture; raises `RowError` if it is not there or its checksum is wrong."""
        for candidate in (name, f"images/{name}", name.removeprefix("images/")):
            for number in self.index.find(candidate):
                start, size, method, checksum = self.table[number].tolist()
                found, body = self._member(start, size, len(candidate.encode()))
                if found == candidate.encode():
                    return _unpacked(body, method, checksum)
        raise RowError(MISSING_PICTURE)

    def _member(self, start: int, size: int, name_length: int) -> tuple[bytes, bytes]:
        blob = self.filesystem.cat_file(self.path, start, start + 30 + name_length + _SLACK_BYTES + size)
        if len(blob) < _LOCAL_HEADER.size or blob[:4] != b"PK\x03\x04":
            raise RowError(BAD_CHECKSUM)
        _, name, extra = _LOCAL_HEADER.unpack_from(blob)
        body = 30 + name + extra
        if len(blob) < body + size:
            blob = self.filesystem.cat_file(self.path, start, start + body + size)
        return blob[30 : 30 + name], blob[body : body + size]


def _unpacked(body: bytes, method: int, checksum: int) -> bytes:
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(f"got zip method {method}, expected stored or deflated; pack the pictures again")
    try:
        data = body if method == zipfile.ZIP_STORED else zlib.decompress(body, wbits=-15)
    except zlib.error as error:
        raise RowError(BAD_CHECKSUM) from error
    if zlib.crc32(data) != checksum:
        raise RowError(BAD_CHECKSUM)
    return data


def find_archives(filesystem: AbstractFileSystem, folder: str) -> dict[str, list[str]]:
    """The tar archives in a folder: by name without ending, the paths of their parts in order; raises `ArchiveError`
    if a part between the first and the last is missing, or the first one is.
    """
    parts: dict[str, dict[str, str]] = {}
    for path in sorted(filesystem.ls(folder, detail=False)):
        if found := ARCHIVE.fullmatch(path.rsplit("/", 1)[-1]):
            parts.setdefault(found["stem"], {})[found["part"] or ""] = path
    for stem, paths in parts.items():
        _check_parts(stem, list(paths))
    return {stem: list(paths.values()) for stem, paths in sorted(parts.items())}


def _check_parts(stem: str, names: list[str]) -> None:
    """Parts are numbered 00, 01, ..., or 1, 2, ..., or aa, ab, ...; a whole archive has the single name ''."""
    if names == [""]:
        return
    letters = [reduce(lambda number, letter: number * 26 + ord(letter) - ord("a"), name, 0) for name in names]
    numbers = [int(name) if name.isdigit() else number for name, number in zip(names, letters)]
    first = 1 if names[0].isdigit() and numbers[0] == 1 else 0
    if "" in names or len(set(map(len, names))) > 1 or numbers != list(range(first, first + len(names))):
        raise ArchiveError(
            f"got parts {', '.join(name or '(whole)' for name in names)} of {stem}, expected them all, counted "
            "up from the first; fetch the missing ones, or remove what does not belong to them"
        )


def stream_members(filesystem: AbstractFileSystem, parts: list[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields (name, file) for each regular file of an archive, in its order; read a file before the next one comes;
    raises `TAR_ERRORS` where the archive is damaged or cut off.
    """
    with io.BufferedReader(_JoinedParts(filesystem, parts), STREAM_BYTES) as joined:
        # tarfile's own decompression would take a cut for the end of the archive.
        packed = joined.peek(2)[:2] == b"\x1f\x8b"
        plain: Any = gzip.GzipFile(fileobj=joined) if packed else joined
        with tarfile.open(fileobj=plain, mode="r|", bufsize=STREAM_BYTES) as opened:
            archive: Any = opened
            for member in archive:
                archive.members = []  # a stream never goes back; otherwise millions of entries stay in memory
                file = archive.extractfile(member) if member.isreg() else None
                if file is not None:
                    yield member.name.removeprefix("./"), file


class _JoinedParts(io.RawIOBase):
    def __init__(self, filesystem: AbstractFileSystem, paths: list[str]):
        self.filesystem = filesystem
        self.left = list(paths)
        self.file: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self.file or self.left:
            self.file = self.file or self.filesystem.open(self.left.pop(0), "rb")
            if data := self.file.read(len(buffer)):
                buffer[: len(data)] = data
                return len(data)
            self.file.close()
            self.file = None
        return 0

    def close(self) -> None:
        if self.file:
            self.file.close()
        super().close()
