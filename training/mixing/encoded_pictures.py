"""Encoded pictures: a cheap check that one is whole, the decoding of it, and how a shuffle buffer holds one.

The check looks at the header and at the end of a picture's bytes (microseconds for JPEG, PNG and WebP; other formats
are decoded). What passes it and still fails to decode is reported by the identity of its row.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from gen_vla.processors.image_processing_openvla_plus import resize
from gen_vla.processors.rgb_pictures import DECODING_ERRORS, PictureError, to_rgb
from gen_vla.training.robot_data.video_frames import VideoError, VideoPicture


NO_PICTURE = "bytes that are no picture"
CUT_OFF = "picture is cut off"
FLOATS = "picture of floating-point numbers"
HELD_BYTES = 1 << 16  # a larger picture is made smaller where the model sees a smaller one
ROW_BYTES = 4096  # of a row in memory besides pictures and texts
TAIL_BYTES = 4096  # some writers put metadata behind the end of the picture
END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


@dataclass(frozen=True)
class StoredPicture:
    """An encoded picture in a file, `{"bytes", "path"}` when it is read."""

    read: Callable[[], dict[str, Any]]


def check_picture(data: bytes) -> None:
    """Checks the header and the end of an encoded picture; pixels are decoded only where the end does not tell; raises
    `PictureError` with one of `NO_PICTURE`, `CUT_OFF`, `FLOATS` as its text, so that problems count by kind.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            kind, mode = picture.format, picture.mode
    except DECODING_ERRORS as error:
        raise PictureError(NO_PICTURE) from error
    if mode == "F":
        raise PictureError(FLOATS)
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
    """An entry of a row's `images` as an RGB picture, its pixels read; raises `PictureError` naming the row, if the
    bytes do not decode or the video has no such frame.

    Args:
        picture: `{"bytes": bytes, "path": str | None}`, a PIL image, a `StoredPicture` or a `VideoPicture`.
    """
    if isinstance(picture, VideoPicture):
        try:
            picture = picture.decode()
        except VideoError as error:
            raise PictureError(f"{identity}: {error}") from error
    if isinstance(picture, StoredPicture):
        picture = picture.read()
    found = picture.get("bytes") if isinstance(picture, dict) else picture
    if not isinstance(found, (bytes, Image.Image)):
        raise PictureError(f"{identity}: got {type(picture).__name__} without bytes, expected an encoded picture")
    try:
        return to_rgb(found)
    except DECODING_ERRORS as error:
        raise PictureError(f"{identity}: {error}") from error


@dataclass(frozen=True)
class HeldPictures:
    """Encodes the pictures of a row that waits in a shuffle buffer.

    Frames of videos become JPEGs (`as_jpeg`). Where the model sees one size, larger pictures are resized to it first,
    as the image processor would. Small encoded pictures, and such as do not decode, stay as they are.
    """

    size: int | None = None  # side of the square the model sees, in pixels; `None` where it takes any size
    resize_strategy: str = "resize-naive"

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        row["images"] = [self._held(picture, row["identity"]) for picture in row["images"]]
        return row

    def _held(self, picture: Any, identity: str) -> Any:
        if isinstance(picture, StoredPicture):
            picture = picture.read()
        if not isinstance(picture, VideoPicture):
            encoded = picture.get("bytes") if isinstance(picture, dict) else None
            if self.size is None or not encoded or len(encoded) <= HELD_BYTES:
                return picture
        try:
            shown = picture.take() if isinstance(picture, VideoPicture) else picture
            decoded = decode_picture(shown, identity)
        except (PictureError, VideoError):
            return picture  # the preparer says so
        if self.size is not None and decoded.width * decoded.height > self.size**2:
            decoded = resize(decoded, self.size, self.resize_strategy)
        return as_jpeg(decoded)


def as_jpeg(picture: Image.Image) -> dict[str, Any]:
    """A frame of a video as a JPEG of quality 95, as TensorFlow Datasets writes them, without chroma subsampling."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, subsampling=0)
    return {"bytes": buffer.getvalue(), "path": None}


def row_bytes(row: dict[str, Any]) -> int:
    texts = sum(len(turn["question"]) + len(turn["answer"]) for turn in row.get("turns", ()))
    return ROW_BYTES + texts + sum(map(_picture_bytes, row["images"]))


def _picture_bytes(picture: Any) -> int:
    if isinstance(picture, dict):
        return len(picture.get("bytes") or b"")
    return picture.width * picture.height * len(picture.getbands()) if isinstance(picture, Image.Image) else 0
