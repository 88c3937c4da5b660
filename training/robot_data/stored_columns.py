"""Columns of a parquet or Arrow table as arrays, and as pictures: encoded bytes, paths to files, arrays of colours."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from gen_vla.training.robot_data.episodes import RobotDataError
from gen_vla.training.robot_data.video_frames import VideoPicture
from gen_vla.training.storage.data_folder import DataFolder


def _is_list(kind: pa.DataType) -> bool:
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def column_array(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """A column of numbers, or of lists of one length, as an array [S, ...]; raises `RobotDataError` for lists of
    uneven length, and anything that is no number.

    Booleans become 0 and 1. Null, also in place of a list, becomes NaN.
    """
    return _array(column.combine_chunks(), name)


def _array(array: Any, name: str) -> np.ndarray:
    if isinstance(array, pa.ChunkedArray):  # an older pyarrow leaves a column without rows as it is
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    array = array.storage if isinstance(array.type, pa.BaseExtensionType) else array
    if _is_list(array.type):
        return _lists(array, name)
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        raise RobotDataError(f"got {name} of {array.type}, expected numbers")
    return array.to_numpy(zero_copy_only=False)


def _lists(array: Any, name: str) -> np.ndarray:
    there = array.is_valid().to_numpy(zero_copy_only=False)
    if not there.all():
        if not there.any():
            raise RobotDataError(f"got {name} of null alone, expected numbers")
        dense = _lists(array.drop_null(), name)
        full = np.full((len(there), *dense.shape[1:]), np.nan, dtype=np.result_type(dense.dtype, np.float32))
        full[there] = dense
        return full
    lengths = pc.call_function("list_value_length", [array]).unique().to_pylist()
    if len(lengths) > 1:
        raise RobotDataError(
            f"got {name} of uneven length ({min(lengths)} to {max(lengths)}), expected as many values in every row"
        )
    values = _array(array.flatten(), name)
    return values.reshape(len(array), *(lengths or [0]), *values.shape[1:])


def column_values(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """A column of one number a row, also where it is stored as a list of one: [S]; null becomes NaN."""
    values = column_array(column, name)
    if values.size != len(values):
        raise RobotDataError(f"got {name} of shape {list(values.shape)}, expected one number per row")
    return values.reshape(-1)


def stored_pictures(column: pa.ChunkedArray, name: str, folder: DataFolder) -> list[Any]:
    """A column of pictures as entries of a row's `images`; `None` where a row has none; else `RobotDataError`.

    Args:
        column: `{"bytes", "path"}`, bytes, paths (absolute, or relative to the folder), or arrays of 0..255 of shape
            [H, W, 3], [3, H, W] or [H, W].
    """
    if _is_list(column.type):
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
        return {"bytes": data, "path": value} if value and (data := _file(value, folder)) else None
    raise RobotDataError(f"got {name} of {type(value).__name__}, expected pictures: bytes, paths or arrays")


def _file(path: str, folder: DataFolder) -> bytes | None:
    place = Path(folder.root, path)  # which may be absolute
    if folder.is_local:
        return place.read_bytes() if place.is_file() else None
    if not folder.exists(path):
        return None
    with folder.open(path) as file:
        return file.read()


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
