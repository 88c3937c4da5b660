"""A folder of a data set, on this machine or wherever fsspec reads (`hf://datasets/OWNER/NAME[@REVISION]`).

A remote file is opened for reading in parts, never fetched whole.
"""

import glob
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem


# huggingface_hub logs each request of its file system at INFO through httpx.
logging.getLogger("httpx").setLevel(logging.WARNING)

VERSION_KEYS = ("blob_id", "ETag", "etag", "mtime", "LastModified")  # of the Hub's, S3's and other file systems


class DataFolder:
    """Reads files below `path` by their names relative to it. Can be pickled."""

    def __init__(self, path: str | Path):
        self.path = str(path)
        # fsspec reads "::" as a chain of protocols; in a path of this machine it is part of a name.
        filesystem, root = (
            url_to_fs(self.path)
            if "://" in self.path
            else (LocalFileSystem(), LocalFileSystem._strip_protocol(self.path))
        )
        self.filesystem: AbstractFileSystem = filesystem
        self.root = root.rstrip("/")
        self.is_local = isinstance(filesystem, LocalFileSystem)
        if not filesystem.isdir(self.root):
            raise FileNotFoundError(
                f"got no folder at {self.path}, expected a folder of this machine or hf://datasets/OWNER/NAME; "
                "correct the path, or log in where the data set is private"
            )

    def subfolder(self, name: str) -> "DataFolder":
        return DataFolder(f"{self.path.rstrip('/')}/{name}") if name else self

    def describe(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def local_path(self, name: str) -> Path | None:
        """Where the file is on this machine, `None` if it is remote."""
        return Path(self.root, name) if self.is_local else None

    def exists(self, name: str) -> bool:
        return self.filesystem.exists(f"{self.root}/{name}")

    def open(self, name: str) -> BinaryIO:
        """The file, seekable; of a remote one the parts that are read are fetched."""
        if self.is_local:
            return open(f"{self.root}/{name}", "rb")
        return cast(BinaryIO, self.filesystem.open(f"{self.root}/{name}", "rb"))

    def read_text(self, name: str) -> str:
        """The whole file, UTF-8, with or without a byte order mark."""
        with self.open(name) as file:
            return file.read().decode("utf-8-sig")

    def read_json(self, name: str) -> Any:
        """The file's JSON; raises `ValueError` that names a file that is none."""
        try:
            return json.loads(self.read_text(name))
        except ValueError as error:
            raise ValueError(f"got {self.describe(name)} that is no JSON ({error}); fetch it again") from error

    def read_json_lines(self, name: str) -> list[Any]:
        """One value per line; raises `ValueError` that names the line.

        Lines end with "\\n" alone (jsonlines.org): `str.splitlines` would also split inside a text, at U+2028.
        """
        values = []
        for number, line in enumerate(self.read_text(name).split("\n"), start=1):
            try:
                values += [json.loads(line)] if line.strip() else []
            except ValueError as error:
                raise ValueError(f"got {self.describe(name)} whose line {number} is no JSON ({error})") from error
        return values

    def glob(self, pattern: str) -> list[str]:
        found = cast(list[str], self.filesystem.glob(f"{glob.escape(self.root)}/{pattern}"))
        return sorted(self._relative(name) for name in found)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of every file in a folder and below it, by name, sorted."""
        found = self.filesystem.find(f"{self.root}/{folder}".rstrip("/"), detail=True)
        entries = cast(dict[str, dict[str, Any]], found)
        return {self._relative(name): int(entries[name]["size"]) for name in sorted(entries)}

    def changed(self, names: Iterable[str] | None = None) -> dict[str, int | str]:
        """What changes with a file's content, by name, of all files by default: a file's bytes may stay as many.

        On this machine that is the time of the last change in nanoseconds; elsewhere the hash or the time that the
        file system gives, and a file without either is left out.
        """
        if self.is_local:
            names = self.sizes() if names is None else names
            return {name: Path(self.root, name).stat().st_mtime_ns for name in sorted(names)}
        entries = cast(dict[str, dict[str, Any]], self.filesystem.find(self.root, detail=True))
        marks = {
            self._relative(name): next((str(entry[key]) for key in VERSION_KEYS if entry.get(key)), "")
            for name, entry in sorted(entries.items())
        }
        wanted = set(marks if names is None else names)
        return {name: mark for name, mark in marks.items() if mark and name in wanted}

    def _relative(self, name: str) -> str:
        return name[len(self.root) + 1 :]
