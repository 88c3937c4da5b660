"""Pictures to pixels for a dual vision tower: one naive resize, then one normalisation per encoder.

Decides: the optional centre crop, the bicubic resize straight to a square (no aspect ratio kept: OpenVLA's
"resize-naive", done by Pillow on uint8 as its training did), the mean and std of each encoder, their order on the
channel axis, which pictures of several cameras an action is asked for with. What counts as a picture, which way up it
is and what its transparent parts are: `rgb_pictures.py`. Refuses to know: text, models.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .rgb_pictures import is_encoded, to_rgb


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SIGLIP_MEAN = (0.5, 0.5, 0.5)
SIGLIP_STD = (0.5, 0.5, 0.5)
# What callers of transformers' image processors may ask for, where it is what happens anyhow.
ALWAYS_DONE = {"do_convert_rgb": True, "do_resize": True, "do_rescale": True, "do_normalize": True}
RESIZE_STRATEGIES = ("resize-naive", "resize-with-pad")


class OpenVLAPlusImageProcessor(BaseImageProcessor):
    """Image processor of the family.

    Args:
        image_size: side of the square the encoders see, in pixels.
        means: per encoder, the mean of the three channels in 0..1; DINOv2 first, SigLIP second.
        stds: likewise, the standard deviations.
        center_crop_area: share of the area kept by a centre crop before the resize, or `None` for no crop. OpenVLA
            crops 0.9 for models that were trained with random resized crops.
        resize_strategy: `"resize-naive"` (OpenVLA's) stretches a picture to the square; `"resize-with-pad"` keeps its
            shape between black bars, as the published weights of π0 were trained.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  # the base class's own declaration

    def __init__(
        self,
        image_size: int = 224,
        means: Sequence[Sequence[float]] = (IMAGENET_MEAN, SIGLIP_MEAN),
        stds: Sequence[Sequence[float]] = (IMAGENET_STD, SIGLIP_STD),
        center_crop_area: float | None = None,
        resize_strategy: str = "resize-naive",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if center_crop_area is not None and not 0.0 < center_crop_area <= 1.0:
            raise ValueError(f"got center_crop_area={center_crop_area}, expected a share in (0, 1] or None")
        if len(means) != len(stds):
            raise ValueError(f"got {len(means)} means and {len(stds)} stds, expected one of each per encoder")
        if resize_strategy not in RESIZE_STRATEGIES:
            raise ValueError(
                f"got resize_strategy={resize_strategy!r}, expected one of {', '.join(RESIZE_STRATEGIES)}"
            )
        self.image_size = image_size
        self.resize_strategy = resize_strategy
        self.means = [list(mean) for mean in means]
        self.stds = [list(std) for std in stds]
        self.center_crop_area = center_crop_area

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Turns pictures into pixel values.

        Args:
            images: a picture (anything `rgb_pictures.to_rgb` reads: a PIL image, a uint8 array [H, W, 3], a path, a
                URL, bytes), a stack of arrays [B, H, W, 3], or a (nested) list, flattened in order.
            return_tensors: `"pt"`, `"np"` or `None`.

        Returns:
            `pixel_values`: float32 [B, 3 x encoders, image_size, image_size].

        Raises:
            TypeError: for anything else, such as a float array, naming what was got; for arguments that ask for
                something else (sizes and constants are those the model was trained with).
            ValueError: if there is no picture at all, or one cannot be read.
            FileNotFoundError: for a path without a file.
        """
        refuse_arguments(kwargs, ("images", "return_tensors"), ALWAYS_DONE)
        pictures = [to_rgb(image) for image in flatten_images(images)]
        if not pictures:
            raise ValueError("got no images, expected at least one; leave pixel_values out for text alone")
        pixels = np.stack([self._pixel_values(picture) for picture in pictures])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def _pixel_values(self, picture: Image.Image) -> np.ndarray:
        if self.center_crop_area is not None:
            picture = center_crop(picture, self.center_crop_area)
        picture = resize(picture, self.image_size, self.resize_strategy)
        unit = np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / np.float32(255.0)
        channels = [
            (unit - np.asarray(mean, np.float32)[:, None, None]) / np.asarray(std, np.float32)[:, None, None]
            for mean, std in zip(self.means, self.stds, strict=True)
        ]
        return np.concatenate(channels)


def resize(picture: Image.Image, size: int, strategy: str = "resize-naive") -> Image.Image:
    """The picture as a square of `size` pixels.

    With `"resize-with-pad"` it is scaled bilinearly until its longer side fits and centred between bars of pixel 0, -1
    once normalised, the wider bar at the bottom or on the right: openpi's `resize_with_pad` (`shared/image_tools.py`,
    and `openpi_client/image_tools.py` with Pillow), and LeRobot's `resize_with_pad_torch`.
    """
    if picture.size == (size, size):
        return picture
    if strategy == "resize-naive":
        return picture.resize((size, size), Image.Resampling.BICUBIC)
    ratio = max(picture.size) / size
    width, height = (max(int(side / ratio), 1) for side in picture.size)
    padded = Image.new(picture.mode, (size, size))
    corner = ((size - width) // 2, (size - height) // 2)
    padded.paste(picture.resize((width, height), Image.Resampling.BILINEAR), corner)
    return padded


def refuse_arguments(given: dict[str, Any], known: Sequence[str], already: dict[str, Any]) -> None:
    """Raises `TypeError` for arguments that would otherwise vanish.

    Args:
        given: arguments by name that a call has no parameter for; those that are `None` ask for nothing.
        known: names to suggest where one looks like a typing error.
        already: what may be asked for, since it happens anyhow.
    """
    for name, value in given.items():
        if value is None or (name in already and value == already[name]):
            continue
        if name in already:
            raise TypeError(f"got {name}={value!r}, expected {already[name]!r} or nothing: it cannot be changed here")
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TypeError(f"got the argument {name!r}, expected one of {', '.join(known)}{hint}")


def flatten_images(images: Any) -> list[Any]:
    """One picture, a list or stack of them, or a list of lists (one per row of a batch) as a flat list."""
    if are_several(images):
        return [picture for entry in images for picture in flatten_images(entry)]
    return [images]


def with_open_pictures(conversation: Any) -> Any:
    """Messages, or a batch of conversations, as transformers 4 and 5 both read them.

    Pictures, whatever they are given by (`rgb_pictures.to_rgb`), become RGB, since transformers' own loading has black
    where they are transparent; words alone become a list of one part.
    """
    if isinstance(conversation, (list, tuple)):
        return [with_open_pictures(each) for each in conversation]
    content = conversation.get("content") if isinstance(conversation, Mapping) else None
    if isinstance(content, str):
        return {**conversation, "content": [{"type": "text", "text": content}]}
    if not isinstance(content, (list, tuple)):
        return conversation
    return {**conversation, "content": [_open_part(part) for part in content]}


def _open_part(part: Any) -> Any:
    """One part of a message; a picture's place is under the key that says what it is."""
    if not isinstance(part, Mapping) or part.get("type") != "image":
        return part
    for key in ("image", "url", "path", "base64"):
        if part.get(key) is not None:
            return {"type": "image", "image": to_rgb(part[key])}
    return part


def center_crop(picture: Image.Image, area: float) -> Image.Image:
    """The centre of a picture with `area` of its surface, sides scaled by sqrt(area)."""
    width, height = (round(side * area**0.5) for side in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def checked_cameras(cameras: Any) -> list[str] | None:
    """Names of cameras, each once, or `None`."""
    if cameras is None:
        return None
    names = list(cameras)
    if not names or isinstance(cameras, str) or len(set(names)) != len(names):
        raise ValueError(f"got cameras={cameras!r}, expected a list of different names, or None for one picture")
    return names


def is_batch(image: Any) -> bool:
    """Whether `image` is a list of rows, each with the pictures of its cameras, and not one row's list of pictures."""
    return isinstance(image, (list, tuple)) and any(isinstance(row, (list, tuple)) or by_camera(row) for row in image)


def by_camera(row: Any) -> bool:
    """Whether `row` is a dictionary of pictures, and not a single encoded one."""
    return isinstance(row, Mapping) and not is_encoded(row)


def pictures_in_order(row: Any, cameras: list[str] | None) -> list[Any]:
    """The pictures of one instruction in the order of training; raises `ValueError` for other ones than `cameras`."""
    if by_camera(row):
        if len(row) == 1 and cameras is None:
            return list(row.values())
        if set(row) != set(cameras or ()):
            raise ValueError(
                f"got pictures of {', '.join(map(str, row)) or 'no camera'} for an action, expected "
                f"{_wanted_pictures(cameras)}: those that the model was trained with"
            )
        return [row[camera] for camera in cameras or ()]
    pictures = as_rows(row)
    check_camera_count(len(pictures), cameras)
    return pictures


def check_camera_count(count: int, cameras: list[str] | None) -> None:
    """Raises `ValueError` unless an action is asked for with as many pictures as there are cameras."""
    if count != len(cameras or [None]):
        raise ValueError(
            f"got {count} pictures for an action, expected {_wanted_pictures(cameras)}: as many as the model was "
            "trained with; pass a list of them, or a dictionary by camera"
        )


def _wanted_pictures(cameras: list[str] | None) -> str:
    return f"one per camera ({', '.join(cameras)}, in this order)" if cameras else "one"


def as_rows(given: Any) -> list[Any]:
    """One text or picture, or several, as a list; what is neither is left for others to name."""
    return list(given) if are_several(given) else [given]


def are_several(given: Any) -> bool:
    """Whether `given` is a list, or pictures of one size stacked in an array [B, H, W, 3], as vectorised
    environments have them."""
    return isinstance(given, (list, tuple)) or (hasattr(given, "__array__") and getattr(given, "ndim", 0) == 4)
