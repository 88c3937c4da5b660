"""A remote file system for tests: files of this machine, read in blocks as `HfFileSystem` reads them, and counted."""

from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from fsspec import AbstractFileSystem, register_implementation
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile


class CountingFileSystem(AbstractFileSystem):
    """`counted:///folder`; `fetched` counts the bytes that were asked for, by file name."""

    protocol = "counted"
    cachable = False
    block_size = 2048
    fetched: ClassVar[Counter[str]] = Counter()

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._local = LocalFileSystem()

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        found = self._local.ls(self._strip_protocol(path), detail=True)
        return found if detail else [entry["name"] for entry in found]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return self._local.info(self._strip_protocol(path))

    def _open(self, path: str, mode: str = "rb", **_: Any) -> "CountingFile":  # type: ignore[override]
        return CountingFile(self, path, mode, block_size=self.block_size)  # type: ignore[arg-type]

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return "/" + str(super()._strip_protocol(path)).lstrip("/")


class CountingFile(AbstractBufferedFile):
    """Fetches ranges of a local file."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        CountingFileSystem.fetched[Path(self.path).name] += end - start
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(end - start)


def register() -> type[CountingFileSystem]:
    """Makes `counted://` known, with nothing counted yet."""
    register_implementation("counted", CountingFileSystem, clobber=True)
    CountingFileSystem.fetched.clear()
    return CountingFileSystem
