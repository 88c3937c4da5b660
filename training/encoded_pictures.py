"""Encoded pictures: a cheap look whether one is whole, and the decoding of it.

Decides: which bytes count as a picture. Refuses to know: rows, cameras, what a model does with pixels.

A reader looks at the header and at the end of a picture's bytes (microseconds for JPEG, PNG and WebP; other formats
are decoded); pixels are the collator's business. What passes the look and still fails to decode is reported there, by
the identity of its row.
"""

import io
import struct
from typing import Any

from PIL import Image

from gen_vla.processors.image_processing_openvla_plus import DEEP_MODES
from gen_vla.training.video_frames import VideoError, VideoPicture


NO_PICTURE = "bytes that are no picture"
CUT_OFF = "picture is cut off"
TOO_DEEP = "picture of more than 8 bits per channel"
TAIL_BYTES = 4096  # some writers put metadata behind the end of the picture
END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


class PictureError(ValueError):
    """Bytes that are no whole picture of 8 bits per channel."""


def check_picture(data: bytes) -> None:
    """Looks at the header and the end of an encoded picture; pixels are decoded only where the end does not tell.

    Raises:
        PictureError: with one of `NO_PICTURE`, `CUT_OFF`, `TOO_DEEP` as its text, so that problems count by kind.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            kind, mode = picture.format, picture.mode
    except DECODING_ERRORS as error:
        raise PictureError(NO_PICTURE) from error
    if mode in DEEP_MODES:
        raise PictureError(TOO_DEEP)
    if not _end_is_there(str(kind), data):
        try:
            Image.open(io.BytesIO(data)).load()  # other formats, or a lot behind the end
        except DECODING_ERRORS as error:
            raise PictureError(CUT_OFF) from error


def _end_is_there(kind: str, data: bytes) -> bool:
    if kind == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 <= len(data)
    mark = END_MARKS.get(kind)
    return mark is not None and mark in data[-TAIL_BYTES:]


def decode_picture(picture: Any, identity: str) -> Image.Image:
    """An entry of a row's `images` as an RGB picture, its pixels read.

    Args:
        picture: `{"bytes": bytes, "path": str | None}`, a PIL image, or a `VideoPicture`.
        identity: of the row, for the error.

    Raises:
        PictureError: naming the row, if the bytes do not decode or the video has no such frame.
    """
    if isinstance(picture, VideoPicture):
        try:
            picture = picture.decode()
        except VideoError as error:
            raise PictureError(f"{identity}: {error}") from error
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    data = picture.get("bytes") if isinstance(picture, dict) else None
    if not isinstance(data, bytes):
        raise PictureError(f"{identity}: got {type(picture).__name__} without bytes, expected an encoded picture")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.mode in DEEP_MODES:
                raise PictureError(f"{identity}: got a picture of mode {opened.mode!r}; {TOO_DEEP}")
            return opened.convert("RGB")
    except PictureError:
        raise
    except DECODING_ERRORS as error:
        raise PictureError(f"{identity}: got a picture of {len(data)} bytes that does not decode: {error}") from error
