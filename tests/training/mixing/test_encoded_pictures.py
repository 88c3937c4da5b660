"""The cheap check of encoded pictures: whole ones pass, damaged ones are told by kind, pixels stay packed."""

import io

import numpy as np
import pytest
from PIL import Image
from published_sets import picture

from gen_vla.training.mixing.encoded_pictures import (
    CUT_OFF,
    FLOATS,
    NO_PICTURE,
    PictureError,
    check_picture,
    decode_picture,
)


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_whole_picture_passes_and_a_cut_off_one_does_not(kind):
    data = picture(1, kind, (96, 64))
    check_picture(data)
    with pytest.raises(PictureError, match=NO_PICTURE if kind == "WEBP" else CUT_OFF):
        check_picture(data[: len(data) * 2 // 3])


def test_bytes_behind_the_end_are_no_damage():
    check_picture(picture(1, "JPEG") + b"written by a camera")
    check_picture(picture(1, "PNG") + b"\0" * 100)
    check_picture(picture(1, "JPEG") + b"\0" * 10_000)


@pytest.mark.parametrize("data", [b"", b"<html>404 Not Found</html>", b"\xff\xd8\xff", picture(1)[:20]])
def test_other_bytes_are_no_picture(data):
    with pytest.raises(PictureError, match=NO_PICTURE):
        check_picture(data)


def test_a_picture_of_floats_is_refused_as_the_image_processor_would():
    floats = encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF")
    with pytest.raises(PictureError, match=FLOATS):
        check_picture(floats)
    with pytest.raises(PictureError, match=r"file row 3: .*'F'"):
        decode_picture({"bytes": floats, "path": None}, "file row 3")


def test_a_failure_to_decode_names_the_row():
    data = bytearray(picture(1, "PNG", (64, 64)))
    data[len(data) // 2] ^= 0xFF  # the look at header and end cannot see this
    check_picture(bytes(data))
    with pytest.raises(PictureError, match=r"coco\.json row 7: got a picture of \d+ bytes that does not decode"):
        decode_picture({"bytes": bytes(data), "path": None}, "coco.json row 7")
    with pytest.raises(PictureError, match="row 8: got dict without bytes"):
        decode_picture({"path": "x.png"}, "row 8")
