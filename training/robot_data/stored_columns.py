"""Columns of a parquet or Arrow table as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gen_vla.training.robot_data.episodes import RobotDataError


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists, of any kind."""
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def column_array(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """A column of numbers, or of lists of one length, as an array [S, ...].

    Truth values become 0 and 1. Null, also in place of a list, becomes NaN.

    Raises:
        RobotDataError: for lists of uneven length, and anything that is no number.
    """
    return _array(column.combine_chunks(), name)


def _array(array: Any, name: str) -> np.ndarray:
    if isinstance(array, pa.ChunkedArray):  # an older pyarrow leaves a column without rows as it is
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    array = array.storage if isinstance(array.type, pa.BaseExtensionType) else array
    if is_list(array.type):
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


def column_seconds(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """A column of times in seconds, numbers or durations: float64 [S]."""
    if pa.types.is_duration(column.type):
        return column_values(column.cast(pa.duration("ns")).cast(pa.int64()), name) / 1e9
    return column_values(column, name).astype(np.float64)
