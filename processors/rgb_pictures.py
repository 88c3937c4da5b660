"""`to_rgb` turns any kind of picture into upright RGB of 8 bits, for acting, training and evaluation.

It imports numpy and Pillow alone, since the Space and the tasks of lm-eval link to this file.
"""

import binascii
import io
import os
import struct
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from PIL import ExifTags, Image, ImageOps


DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
URL_TIMEOUT = 60  # seconds


class PictureError(ValueError):
    """A picture that cannot be read, or whose values have no meaning in 8 bits."""


def to_rgb(picture: Any) -> Image.Image:
    """A picture in RGB, rotated as its EXIF orientation says, on white where it is transparent.

    Of several pictures in a file it is the first one. Of 16 bits per channel the higher 8 are kept, as Pillow itself
    reads colour of 16 bits; grey values of 16 bits are taken to use the full range, 0..65535.

    Args:
        picture: a PIL image; an array [H, W] or [H, W, 1] (grey), [H, W, 2] (grey, alpha), [H, W, 3] (RGB) or
            [H, W, 4] (RGBA) of dtype uint8, uint16 or bool; the bytes or the path of a file; a text that is a path, a
            URL, or base64; `{"bytes", "path"}` as `datasets` has it.

    Raises:
        TypeError, FileNotFoundError: for anything else, and for a path without a file.
        PictureError: if it cannot be read, or holds floating-point numbers or other grey values than 16 bits have.
    """
    if isinstance(picture, Image.Image):
        return _pixels(picture)
    if hasattr(picture, "__array__"):
        return _pixels(_from_array(picture))
    if is_encoded(picture):
        picture = picture.get("path") if picture.get("bytes") is None else picture["bytes"]
    if isinstance(picture, str):
        picture = _from_text(picture)
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return _decoded(io.BytesIO(picture), f"a picture of {len(picture)} bytes that does not decode")
    if isinstance(picture, os.PathLike):
        path = os.fspath(picture)
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"got no file at {path}, expected a picture, such as a PNG or JPEG; correct the path"
            )
        return _decoded(path, f"{path}, which cannot be read as a picture")
    raise _no_picture(type(picture).__name__, "open it with PIL.Image.open first")


def is_encoded(picture: Any) -> bool:
    """Whether this is an undecoded picture of `datasets`: `{"bytes": ..., "path": ...}`."""
    return isinstance(picture, Mapping) and bool(picture) and set(picture) <= {"bytes", "path"}


def _pixels(picture: Image.Image) -> Image.Image:
    """A PIL image of any mode in RGB."""
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        raise PictureError(
            "got a picture of floating-point numbers (mode 'F'), whose range is not known, expected integers; scale "
            "it to 0..255 and make it uint8"
        )
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        picture = _in_eight_bits(picture)
    if picture.has_transparency_data:
        picture = _on_white(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _in_eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits in 8 bits, with alpha where one value is declared transparent."""
    values = np.asarray(picture)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise PictureError(
            f"got a picture of mode {picture.mode!r} with values {values.min()}..{values.max()}, expected 0..65535; "
            "scale it to 0..255 and make it uint8"
        )
    grey = Image.fromarray(_high_bytes(values))
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _high_bytes(values: np.ndarray) -> np.ndarray:
    """uint8 of uint16; raises `PictureError` if the values seem to be of 8 bits."""
    if values.size and 0 < values.max() <= 255:
        raise PictureError(
            f"got a picture of 16 bits per channel whose largest value is {values.max()}, expected values of "
            "0..65535, under which it is black; make it uint8 if its values are 0..255"
        )
    return (values >> 8).astype(np.uint8)


def _on_white(picture: Image.Image) -> Image.Image:
    clear = picture.info.get("transparency")
    if picture.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:
        picture = picture.copy()  # a file of 16 bits per channel declares its transparent colour in 16, too
        picture.info["transparency"] = tuple(value >> 8 for value in clear)
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


def _from_array(picture: Any) -> Image.Image:
    """An array as a PIL image; raises `TypeError`, with what to do, for one that is no picture."""
    array = np.asarray(picture)
    channels = array.shape[-1] if array.ndim == 3 else 1
    shaped = bool(array.size) and array.ndim in (2, 3) and channels in (1, 2, 3, 4)
    sixteen = array.dtype.kind == "u" and array.dtype.itemsize == 2
    if shaped and (sixteen or array.dtype in (np.uint8, np.bool_)):
        array = _high_bytes(array) if sixteen else array.astype(np.uint8) * 255 if array.dtype == np.bool_ else array
        return Image.fromarray(array.squeeze(-1) if array.ndim == 3 and channels == 1 else array)
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and not shaped:
        method = "permute" if hasattr(picture, "permute") else "transpose"
        remedy = f"move the channels last with image.{method}(1, 2, 0)"
    elif shaped and array.dtype.kind in "iu":
        remedy = "make it uint8 if its values are 0..255"
    elif shaped:
        remedy = "scale it, from 0..1 with (255 * image).round().astype('uint8')"
    else:
        remedy = "pass one picture per row"
    raise _no_picture(f"an array of dtype {array.dtype} and shape {list(array.shape)}", remedy)


def _no_picture(got: str, remedy: str) -> TypeError:
    return TypeError(
        f"got {got} as an image, expected a PIL image or a uint8 array [H, W, 3] with values 0..255, or the path, URL "
        f"or bytes of one; {remedy}"
    )


def _from_text(text: str) -> Any:
    """The bytes at a URL, the path, or the bytes in base64 that a text stands for."""
    if text.startswith(("http://", "https://")):
        try:
            with urlopen(Request(text, headers={"User-Agent": "gen-vla"}), timeout=URL_TIMEOUT) as answer:
                return answer.read()
        except (OSError, ValueError) as error:
            raise PictureError(f"got {text}, which cannot be fetched ({error}), expected a picture there") from error
    if os.path.isfile(text):
        return Path(text)
    encoded = text.partition(",")[2] if text.startswith("data:image/") else text
    try:
        return b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        shown = text if len(text) <= 100 else f"{text[:100]}..."
        raise PictureError(
            f"got {shown!r} as an image, which is no file here, expected a path, a URL that begins with http:// or "
            "https://, or base64; correct the path"
        ) from error


def _decoded(file: Any, broken: str) -> Image.Image:
    """The RGB picture in a file; `broken` describes the file in an error."""
    try:
        with Image.open(file) as picture:
            picture.load()
            return _pixels(picture)
    except PictureError as error:
        if isinstance(file, io.BytesIO):
            raise
        raise PictureError(f"{file}: {error}") from error
    except DECODING_ERRORS as error:
        raise PictureError(f"got {broken} ({error}), expected a whole PNG, JPEG or the like; save it again") from error
