"""A picture file as a person names it on the command line.

Decides: that it is turned as its camera says, put on white where it is transparent, and refused where it cannot be
shown in 8 bits. Refuses to know: what a model does with it.
"""

from pathlib import Path

from PIL import Image, ImageOps

from gen_vla.processors.image_processing_openvla_plus import DEEP_MODES
from gen_vla.training.encoded_pictures import DECODING_ERRORS


def read_picture(path: Path) -> Image.Image:
    """The picture in RGB.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no picture, is cut off, or has more than 8 bits per channel.
    """
    if not path.is_file():
        raise FileNotFoundError(f"got no file at {path}, expected a picture, such as a PNG or JPEG; correct the path")
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            picture.load()
    except DECODING_ERRORS as error:
        raise ValueError(
            f"got {path}, which cannot be read as a picture ({error}), expected a whole PNG, JPEG or the like; save "
            "it again"
        ) from error
    if picture.mode in DEEP_MODES:
        raise ValueError(
            f"got {path} of mode {picture.mode!r}, expected 8 bits per channel; save it so: white would be cut off"
        )
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
