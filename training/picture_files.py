"""A picture file as a person names it on the command line.

Decides: how the camera of a file is named, that a picture is turned as its camera says, put on white where it is
transparent, and refused where it cannot be shown in 8 bits. Refuses to know: what a model does with it.
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from gen_vla.processors.image_processing_openvla_plus import DEEP_MODES
from gen_vla.training.encoded_pictures import DECODING_ERRORS


def read_pictures(files: Sequence[str]) -> list[Image.Image] | dict[str, Image.Image]:
    """The pictures of all cameras: in the order of the files, or by camera where they are written CAMERA=FILE.

    Raises:
        FileNotFoundError: as `read_picture`.
        ValueError: as `read_picture`, and if only some files have a camera, or two have the same.
    """
    named = [file.split("=", 1) for file in files if "=" in file and not Path(file).is_file()]
    if not named:
        return [read_picture(Path(file)) for file in files]
    cameras = [camera for camera, _ in named]
    if len(named) < len(files) or len(set(cameras)) < len(cameras):
        raise ValueError(
            f"got the pictures {' '.join(files)}, expected FILE or CAMERA=FILE for all of them, each camera once"
        )
    return {camera: read_picture(Path(file)) for camera, file in named}


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
