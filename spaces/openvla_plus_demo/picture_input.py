"""Visitors' pictures: what is accepted, and the messages about the rest.

How a file becomes RGB is `rgb_pictures.py`, as in the models' processor. A picture's header is read before its pixels:
a small file can claim more pixels than there is memory for. The size of files is limited where the page is launched.
"""

from functools import partial
from typing import Any

import gradio as gr
import rgb_pictures
from PIL import Image, UnidentifiedImageError


FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_FILE_SIZE = "10mb"
MAX_PIXELS = 40_000_000  # some phones make 48 million, and offer fewer
LEAST_SIDE = 16  # pixels
SQUEEZED = 2.5  # a picture this much longer than wide is hard to recognise once it is square
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


class PictureError(ValueError):
    """A file that is no picture for this Space; the message is for the visitor."""


def picture_input(
    label: str, elem_id: str, path: str, height: int = 300, min_width: int = 160, camera: str = ""
) -> gr.Image:
    """An image field that opens with a file; its value is a checked RGB picture or `None`. `camera` is whose picture
    this is where there are several, for messages."""
    field = gr.Image(
        path,
        label=label,
        elem_id=elem_id,
        sources=["upload", "webcam", "clipboard"],
        buttons=[] if camera else ["fullscreen"],  # beside small ones there is room for a name alone
        height=height,
        min_width=min_width,
        placeholder="Drop a picture here, or tap to choose one",
    )
    # Gradio's own opens any file, and its errors say nothing to a visitor.
    field.preprocess = partial(read_upload, camera=camera)
    return field


def read_upload(payload: Any, camera: str = "") -> Image.Image | None:
    """The picture behind an upload; what is wrong with it becomes a message on the page that names the camera."""
    if payload is None:
        return None
    which = f"{camera}: " if camera else ""
    if not payload.path:
        raise gr.Error(f"{which}This picture did not arrive as a file. Upload it again.", print_exception=False)
    try:
        return read_picture(payload.path)
    except PictureError as error:
        raise gr.Error(f"{which}{error}", print_exception=False) from error


def read_picture(path: str) -> Image.Image:
    """A file as an upright RGB picture; raises `PictureError` if it is no picture of the accepted formats, damaged,
    too small or too large."""
    try:
        picture = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        message = "This file is not a picture that can be read here. Use a PNG, JPEG, WebP or BMP file."
        raise PictureError(message) from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"This picture has far too many pixels; at most {megapixels(MAX_PIXELS)} fit.") from error
    width, height = picture.size
    size = f"This picture has {width} x {height} pixels"
    if width * height > MAX_PIXELS:
        found, most = megapixels(width * height), megapixels(MAX_PIXELS)
        raise PictureError(f"{size}, {found}; at most {most} fit. Make it smaller first.")
    if min(width, height) < LEAST_SIDE:
        raise PictureError(f"{size}; each side needs at least {LEAST_SIDE}.")
    try:
        picture.load()
        return rgb_pictures.to_rgb(picture)
    except rgb_pictures.PictureError as error:
        raise PictureError(f"This picture cannot be shown to the model: {error}.") from error
    except rgb_pictures.DECODING_ERRORS as error:
        raise PictureError("This picture is damaged: it ends early or holds wrong data. Save it again.") from error


def megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:.0f} megapixels"


def is_squeezed(picture: Image.Image) -> bool:
    """Whether little can be recognised once the model has made the picture square."""
    return max(picture.size) > SQUEEZED * min(picture.size)
