"""Small vision-language data sets in the exact layouts in which the real ones are published."""

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ONEVISION = pa.schema(
    [
        ("id", pa.string()),
        ("image", IMAGE),
        ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
        ("data_source", pa.string()),
    ]
)
PART = pa.struct([("index", pa.int64()), ("text", pa.string()), ("type", pa.string())])
VQASYNTH = pa.schema(
    [
        ("messages", pa.list_(pa.struct([("content", pa.list_(PART)), ("role", pa.string())]))),
        ("images", pa.list_(IMAGE)),
    ]
)


def picture(number: int, kind: str = "JPEG", size: tuple[int, int] = (24, 16)) -> bytes:
    """An encoded picture that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def conversation(*texts: Any) -> list[dict[str, Any]]:
    """LLaVA turns: a person and a model in turn; a text or the parts of a chat message."""
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def write_llava(
    folder: Path, rows: list[dict[str, Any]], pictures: dict[str, bytes], zipped: bool, json_name: str = "chat.json"
) -> Path:
    """`chat.json` beside `images.zip`, or beside unpacked `images/`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / json_name).write_text(json.dumps(rows))
    if zipped:
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for place, (name, data) in enumerate(pictures.items()):
                archive.writestr(name, data, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[place % 2])
        return folder
    for name, data in pictures.items():
        file = folder / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder


def tar(members: dict[str, bytes], packed: bool = True) -> bytes:
    """A .tar.gz, or a plain .tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if packed else "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def write_robopoint(
    folder: Path, rows: list[dict[str, Any]], archives: dict[str, bytes], parts: dict[str, int]
) -> Path:
    """`robopoint_1432k.json` and `images/NAME.tar.gz`, some of them cut into `.part_00`, `.part_01`, ..."""
    images = folder / "images"
    images.mkdir(parents=True)
    (folder / "robopoint_1432k.json").write_text(json.dumps(rows))
    for name, data in archives.items():
        count = parts.get(name, 0)
        if not count:
            (images / f"{name}.tar.gz").write_bytes(data)
        size = -(-len(data) // max(count, 1))
        for part in range(count):
            (images / f"{name}.tar.gz.part_{part:02d}").write_bytes(data[part * size : (part + 1) * size])
    return folder


def write_parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema, row_group_size: int = 2) -> None:
    """One parquet file of nested columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=row_group_size)
