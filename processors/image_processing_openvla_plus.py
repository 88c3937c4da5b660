"""Pictures to pixel values: one resize, then one normalisation per encoder; and the order of cameras.

The resize is OpenVLA's "resize-naive": bicubic, straight to a square, done by Pillow on uint8 as in its training.
`rgb_pictures.py` reads the pictures.
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
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)
# Arguments of transformers' image processors that are accepted with the value that describes what is done here.
ALWAYS_DONE = dict.fromkeys(("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"), True)
RESIZE_STRATEGIES = ("resize-naive", "resize-with-pad")


class OpenVLAPlusImageProcessor(BaseImageProcessor):
    """Image processor of the family.

    Args:
        image_size: side of the square the encoders see, in pixels.
        means, stds: per encoder, of the three channels in 0..1; DINOv2 first, SigLIP second.
        center_crop_area: share of the area kept by a centre crop, or `None`; OpenVLA keeps 0.9 for models that were
            trained with random resized crops.
        resize_strategy: see `resize`.
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
        """`pixel_values` float32 [B, 3 x encoders, image_size, image_size].

        Args:
            images: a picture (anything `rgb_pictures.to_rgb` reads, with its errors), a stack of arrays [B, H, W, 3],
                or a (nested) list, flattened in order.

        Raises:
            TypeError: also for arguments that would change sizes or constants, which are those of training.
        """
        check_arguments(kwargs, ("images", "return_tensors"), ALWAYS_DONE)
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
    """The picture as a square of `size` pixels, stretched with `"resize-naive"`, as OpenVLA does.

    With `"resize-with-pad"`, as the published weights of π0 were trained, it is scaled bilinearly until its longer
    side fits, between bars of pixel 0 of which the wider one is at the bottom or on the right, as openpi does it
    (`openpi_client/image_tools.py`).
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


def check_arguments(extra: dict[str, Any], known: Sequence[str], fixed: Mapping[Any, Any]) -> None:
    """Raises `TypeError` for extra arguments, except `None` and the values in `fixed`; suggests `known` names."""
    for name, value in extra.items():
        if value is None or (name in fixed and value == fixed[name]):
            continue
        if name in fixed:
            raise TypeError(f"got {name}={value!r}, expected {fixed[name]!r} or nothing: it cannot be changed here")
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TypeError(f"got the argument {name!r}, expected one of {', '.join(known)}{hint}")


def flatten_images(images: Any) -> list[Any]:
    """One picture, a list or stack of them, or a list of lists (one per row of a batch) as a flat list."""
    if are_several(images):
        return [picture for entry in images for picture in flatten_images(entry)]
    return [images]


def with_open_pictures(conversation: Any) -> Any:
    """Messages, or a batch of conversations, as transformers 4 and 5 both read them: text as a list of one part; and
    opened pictures, since transformers' own loading makes transparent parts black.
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
    if not isinstance(part, Mapping) or part.get("type") != "image":
        return part
    given = [part[key] for key in ("image", "url", "path", "base64") if part.get(key) is not None]
    return {"type": "image", "image": to_rgb(given[0])} if given else part


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
    """Whether `image` is a list of rows, each with pictures by camera, and not the list of pictures of one row."""
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
                f"{_expected_pictures(cameras)}: those that the model was trained with"
            )
        return [row[camera] for camera in cameras or ()]
    pictures = as_rows(row)
    check_camera_count(len(pictures), cameras)
    return pictures


def check_camera_count(count: int, cameras: list[str] | None) -> None:
    """Raises `ValueError` unless an action is asked for with as many pictures as there are cameras."""
    if count != len(cameras or [None]):
        raise ValueError(
            f"got {count} pictures for an action, expected {_expected_pictures(cameras)}: as many as the model was "
            "trained with; pass a list of them, or a dictionary by camera"
        )


def _expected_pictures(cameras: list[str] | None) -> str:
    return f"one per camera ({', '.join(cameras)}, in this order)" if cameras else "one"


def as_rows(given: Any) -> list[Any]:
    """One text or picture, or several, as a list."""
    return list(given) if are_several(given) else [given]


def are_several(given: Any) -> bool:
    """Whether `given` is a list, or a stack of pictures [B, H, W, 3], as vectorised environments have them."""
    return isinstance(given, (list, tuple)) or (hasattr(given, "__array__") and getattr(given, "ndim", 0) == 4)


def images_per_row(images: Any, texts: list[str], image_token: str | None = None) -> list[int]:
    """How many pictures belong to each text, `image_token` being the placeholder, if texts may have any."""
    placeholders = [text.count(image_token) if image_token else 0 for text in texts]
    if images is None:
        counts = [0] * len(texts)
    elif isinstance(images, (list, tuple)) and all(isinstance(entry, (list, tuple)) for entry in images):
        counts = [len(flatten_images(entry)) for entry in images]
    elif any(placeholders):
        counts = placeholders if sum(placeholders) == len(flatten_images(images)) else [-1]
    else:
        pictures = len(flatten_images(images))
        counts = [pictures] if len(texts) == 1 else [1] * pictures
    wrong = len(counts) != len(texts) or any(marks not in (0, count) for marks, count in zip(placeholders, counts))
    if wrong or -1 in counts:
        pictures = 0 if images is None else len(flatten_images(images))
        raise ValueError(
            f"got {pictures} images for {len(texts)} texts with {sum(placeholders)} {image_token or ''} placeholders, "
            "expected one image per text, or one per placeholder, or a list of images per text"
        )
    return counts
