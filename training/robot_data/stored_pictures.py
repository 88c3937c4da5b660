"""The forms in which data sets store pictures in a table: encoded bytes, paths to files, arrays of colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.stored_columns import column_array, is_list
from gen_vla.training.robot_data.video_frames import VideoPicture
from gen_vla.training.storage.data_folder import DataFolder


def stored_pictures(column: pa.ChunkedArray, name: str, folder: DataFolder) -> list[Any]:
    """A column of pictures as entries of a row's `images`; `None` where a row has none.

    Args:
        column: `{"bytes", "path"}`, bytes, paths (absolute, or relative to the folder), or arrays of 0..255 of shape
            [H, W, 3], [3, H, W] or [H, W].
        name: of the column, for errors.

    Raises:
        RobotDataError: for anything else.
    """
    if is_list(column.type):
        arrays = iter(column_array(column.drop_null(), name))
        return [_from_array(next(arrays), name) if there else None for there in column.is_valid().to_pylist()]
    return [_from_cell(value, name, folder) for value in column.to_pylist()]


def has_picture(entry: Any) -> bool:
    """Whether an entry of a row's `images` is a picture, encoded, decoded or still in a video."""
    return isinstance(entry, (VideoPicture, Image.Image)) or (isinstance(entry, dict) and bool(entry.get("bytes")))


def _from_cell(value: Any, name: str, folder: DataFolder) -> dict[str, Any] | None:
    if isinstance(value, dict):
        if value.get("bytes"):
            return value
        value = value.get("path")
    if isinstance(value, bytes):
        return {"bytes": value, "path": None} if value else None
    if value is None or isinstance(value, str):
        return {"bytes": data, "path": value} if (data := _file(value or "", folder)) else None
    raise RobotDataError(f"got {name} of {type(value).__name__}, expected pictures: bytes, paths or arrays")


def _file(path: str, folder: DataFolder) -> bytes | None:
    if not path:
        return None
    if folder.is_local:
        file = Path(folder.root, path)
        return file.read_bytes() if file.is_file() else None
    if not folder.exists(path):
        return None
    with folder.open(path) as opened:
        return opened.read()


def _from_array(picture: np.ndarray, name: str) -> Image.Image:
    if picture.ndim == 3 and picture.shape[0] == 3 and picture.shape[2] != 3:
        picture = picture.transpose(1, 2, 0)
    fits = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)
    if not fits or picture.dtype.kind not in "ui" or picture.min() < 0 or picture.max() > 255:
        raise RobotDataError(
            f"got {name} of arrays {picture.dtype} {list(picture.shape)}, expected pictures of whole numbers from 0 "
            "to 255, [H, W, 3], [3, H, W] or [H, W]; name another camera with `cameras`"
        )
    return Image.fromarray(np.ascontiguousarray(picture.astype(np.uint8)))
