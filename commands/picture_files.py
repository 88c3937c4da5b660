"""Picture files as a person names them on the command line: `FILE`, or `CAMERA=FILE`."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from gen_vla.processors.rgb_pictures import to_rgb


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
        ValueError: if it is no picture, is cut off, or holds floating-point numbers.
    """
    return to_rgb(path)
