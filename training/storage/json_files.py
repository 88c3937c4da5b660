"""JSON files of this machine: read with errors that name the file, written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """A file's content; raises `ValueError` that names a file that is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"got {path}, which is not JSON ({error}); write or copy it again") from error


def write_json(path: Path, content: Any) -> None:
    """Writes a file in place of what is there; several processes may write the same one at a time."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
