"""What travels between a robot and the server: msgpack as openpi marks arrays in it, JSON as json_numpy does.

    msgpack   {b"__ndarray__": True, b"data": bytes, b"dtype": "|u1", b"shape": (480, 640, 3)}
              {b"__npgeneric__": True, b"data": 1.5, b"dtype": "<f4"}
    JSON      {"__numpy__": "<base64>", "dtype": "|u1", "shape": [480, 640, 3]}; "shape": [] is a single number

Nothing is unpickled, and NumPy is given a dtype and a shape only after they were checked against the bytes that came
with them.
"""

import binascii
import json
import math
import re
from base64 import b64decode, b64encode
from typing import Any

import msgpack
import numpy as np


MAX_ENTRIES = 20_000  # of all lists and dictionaries in a message: a byte can be an entry that takes 60
MAX_DIMENSIONS = 5
DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")


class MessageError(ValueError):
    """A message that cannot be understood."""


def pack(message: Any) -> bytes:
    """A message as msgpack, with arrays as openpi's client reads them."""
    return msgpack.packb(message, default=_mark)  # pyright: ignore[reportReturnType]


def unpack(data: bytes) -> Any:
    """The message in msgpack bytes; raises `MessageError` for anything that is not whole and harmless."""
    entries = _Entries()
    try:
        return msgpack.unpackb(
            data,
            object_hook=entries.dictionary,
            list_hook=entries.list,
            ext_hook=_no_extension,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
        )
    except MessageError:
        raise
    # What a message can raise is documented nowhere in full; UnicodeDecodeError is a ValueError.
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise MessageError(
            f"got {len(data)} bytes that are no msgpack message ({_short(error) or type(error).__name__}), expected a "
            "dictionary packed as openpi-client does"
        ) from error


def to_json(message: Any) -> str:
    """A message as JSON, with arrays as json_numpy reads them."""
    return json.dumps(message, default=_mark_in_json, allow_nan=False)


def from_json(text: bytes | str) -> Any:
    """The message in JSON; raises `MessageError`, as `unpack`."""
    try:
        if isinstance(text, bytes):
            text = text.decode()
        if sum(map(text.count, "[{,")) > MAX_ENTRIES:
            raise _too_many()
        message = json.loads(text, object_hook=_array_in_json, parse_constant=_no_constant)
        if r"\ud" in text.lower():  # half a surrogate pair is JSON, and no text
            json.dumps(message, ensure_ascii=False, default=lambda _: None).encode()
        return message
    except MessageError:
        raise
    except UnicodeEncodeError as error:
        raise MessageError("got half a surrogate pair in a text, expected Unicode") from error
    except (ValueError, RecursionError) as error:
        raise MessageError(
            f"got a body that is no JSON ({_short(error)}), expected that of json_numpy.dumps"
        ) from error


def array(data: Any, dtype: Any, shape: Any) -> np.ndarray:
    """The array in bytes, read-only; raises `MessageError` unless dtype and shape fit them."""
    if not isinstance(dtype, str) or not DTYPE.fullmatch(dtype):
        raise MessageError(f"got an array of dtype {str(dtype)[:40]!r}, expected numbers, such as '|u1' or '<f4'")
    sizes = list(shape) if isinstance(shape, (list, tuple)) else None
    if sizes is None or len(sizes) > MAX_DIMENSIONS or not all(type(size) is int and size >= 0 for size in sizes):
        raise MessageError(f"got an array of shape {str(shape)[:60]}, expected at most {MAX_DIMENSIONS} sizes")
    kind = np.dtype(dtype)
    count = math.prod(sizes) * kind.itemsize
    if not isinstance(data, bytes) or len(data) != count:
        got = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise MessageError(f"got {got} for an array of dtype {dtype} and shape {sizes}, expected {count} bytes")
    return np.frombuffer(data, kind).reshape(sizes)


class _Entries:
    """Reads the marks of arrays, and counts what a message holds."""

    def __init__(self) -> None:
        self.count = 0

    def list(self, found: list[Any]) -> list[Any]:
        self.count += len(found)
        if self.count > MAX_ENTRIES:
            raise _too_many()
        return found

    def dictionary(self, found: dict[Any, Any]) -> Any:
        self.list(list(found))
        if b"__ndarray__" in found:
            return array(found.get(b"data"), found.get(b"dtype"), found.get(b"shape"))
        if b"__npgeneric__" in found:
            return _number(found.get(b"data"))
        return found


def _number(value: Any) -> Any:
    if not isinstance(value, (bool, int, float)):
        raise MessageError(f"got {type(value).__name__} as a NumPy number, expected a number")
    return value


def _array_in_json(found: dict[str, Any]) -> Any:
    if "__numpy__" not in found:
        return found
    encoded = found["__numpy__"]
    try:
        data = b64decode(encoded if isinstance(encoded, str) else "*", validate=True)
    except (binascii.Error, ValueError) as error:
        raise MessageError(f"got an array whose '__numpy__' is no base64 ({error}), expected its bytes") from error
    read = array(data, found.get("dtype"), found.get("shape"))
    return read if read.ndim else read[()]


def _mark(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        shape = value.shape
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": shape}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"got {type(value).__name__} in a message, expected texts, numbers, bytes and arrays of numbers")


def _mark_in_json(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        encoded = b64encode(value.tobytes()).decode()
        return {"__numpy__": encoded, "dtype": value.dtype.str, "shape": list(value.shape)}
    raise TypeError(f"got {type(value).__name__} in a message, expected texts, numbers and arrays of numbers")


def _no_extension(code: int, data: bytes) -> Any:
    raise MessageError(f"got a msgpack extension of type {code}, expected texts, numbers, bytes and arrays")


def _no_constant(name: str) -> Any:
    raise MessageError(f"got {name} in JSON, expected finite numbers")


def _too_many() -> MessageError:
    return MessageError(f"got a message of more than {MAX_ENTRIES} entries, expected pictures and states as arrays")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
