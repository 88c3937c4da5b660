"""JSON lines that runs append to and continue from: a kill may cut a line, which is then as if it never was."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file that may not exist."""
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Appends a line, behind a cut one on a line of its own; on disk before this returns."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(entry).encode() + b"\n")
