"""Image augmentation as OpenVLA trained with it, on Pillow and numpy; its settings are `recipes/data_schema.py`'s.

    random crop   0.9 of the area, sides in proportion, stretched back to the picture's size (bilinear)
    brightness    x + d,              d in -0.2..0.2
    contrast      (x - m) f + m,      f in 0.8..1.2, m the mean of the channel
    saturation    HSV's S times f,    f in 0.8..1.2
    hue           HSV's H plus d,     d in -0.05..0.05 of the circle

Values are 0..1 and clipped after every change; formulas are those of TensorFlow's `tf.image`, sampling is that of its
`crop_and_resize` (corner pixels on corner pixels). Two things differ from OpenVLA on purpose: its code draws all five
from one seed, so that its crops lie on the diagonal and a bright picture is always a contrasty one, while here every
draw is independent; and it cuts off the fraction when it goes back to 0..255, which darkens, while here it is rounded.

A model trained with crops is shown the matching centre crop at inference: `center_crop_area` of its image processor,
`ImageAugmentation.center_crop_area` here.
"""

import numpy as np
from PIL import Image

from gen_vla.training.mixing.prepared_rows import row_generator
from gen_vla.training.recipes.data_schema import ImageAugmentation


def augment_image(picture: Image.Image, row: int | str, settings: ImageAugmentation, seed: int = 0) -> Image.Image:
    """A changed copy of an RGB picture, of the same size.

    Args:
        picture: best of the size the model sees, as OpenVLA's are; the time grows with its pixels.
        row: the row's place in the run. With several pictures to a row, give each a name of its own, or the same to
            change them alike.
        seed: of the run; the same seed and row give the same picture.
    """
    if picture.mode != "RGB":
        raise ValueError(f"got a picture of mode {picture.mode!r}, expected 'RGB'; convert it first")
    draw = row_generator(seed, "image", row)
    left, top = draw.uniform(0.0, 1.0 - settings.crop_area**0.5, 2)
    shift = draw.uniform(-settings.brightness, settings.brightness)
    contrast = draw.uniform(settings.contrast[0], settings.contrast[1])
    saturation = draw.uniform(settings.saturation[0], settings.saturation[1])
    turn = draw.uniform(-settings.hue, settings.hue)
    pixels = np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)) / np.float32(255.0)
    if settings.crop_area < 1.0:
        pixels = crop_and_resize(pixels, left, top, settings.crop_area**0.5)
    pixels = adjust_contrast(adjust_brightness(pixels, shift), contrast)
    pixels = adjust_hue(adjust_saturation(pixels, saturation), turn)
    return Image.fromarray(np.rint(pixels * 255.0).astype(np.uint8).transpose(1, 2, 0))


def crop_and_resize(pixels: np.ndarray, left: float, top: float, side: float) -> np.ndarray:
    """A window stretched over the whole picture float32 [3, H, W], bilinear, corner pixels on corner pixels.

    Its left, top and side are shares of the width and the height between corner pixels, 1 at most.
    """
    for axis, start in ((1, top), (2, left)):
        length = pixels.shape[axis]
        places = (start + side * np.linspace(0.0, 1.0, length)) * (length - 1)
        before = np.minimum(places.astype(np.intp), max(length - 2, 0))
        after = np.minimum(before + 1, length - 1)
        share = (places - before).astype(np.float32)
        share = share[:, None] if axis == 1 else share
        first = pixels.take(before, axis=axis)
        pixels = first + (pixels.take(after, axis=axis) - first) * share
    return pixels


def adjust_brightness(pixels: np.ndarray, shift: float) -> np.ndarray:
    return np.clip(pixels + np.float32(shift), 0.0, 1.0)


def adjust_contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Each channel's distances from its mean multiplied."""
    mean = pixels.mean(axis=(1, 2), keepdims=True)
    return np.clip((pixels - mean) * np.float32(factor) + mean, 0.0, 1.0)


def adjust_saturation(pixels: np.ndarray, factor: float) -> np.ndarray:
    """float32 [3, H, W] in 0..1, HSV's saturation multiplied and clipped at 1.

    The value V is the largest channel, the saturation 1 - min/V. With V and the hue held, every distance V - x grows
    by the same factor; the smallest channel reaches 0 where the saturation reaches 1.
    """
    value, smallest = pixels.max(axis=0), pixels.min(axis=0)
    chroma = value - smallest
    most = value / np.maximum(chroma, np.float32(1e-12))
    return value - (value - pixels) * np.minimum(np.float32(factor), most)


def adjust_hue(pixels: np.ndarray, turn: float) -> np.ndarray:
    """float32 [3, H, W] in 0..1, HSV's hue shifted by `turn` of the circle."""
    red, green, blue = pixels
    value, smallest = pixels.max(axis=0), pixels.min(axis=0)
    chroma = value - smallest
    safe = np.maximum(chroma, np.float32(1e-12))  # grey has no hue, and any will do
    # The hue in sixths of the circle: 0 red, 2 green, 4 blue.
    hue = np.where(
        value == red,
        (green - blue) / safe,
        np.where(value == green, (blue - red) / safe + np.float32(2.0), (red - green) / safe + np.float32(4.0)),
    )
    hue += np.float32(6.0 * turn)
    shifted = np.empty_like(pixels)
    for channel, place in enumerate((5.0, 3.0, 1.0)):
        # A channel is at its lowest for half of the circle: it rises, stays and falls over the other four sixths.
        sixth = hue + np.float32(place)
        sixth -= np.float32(6.0) * np.floor(sixth / np.float32(6.0))
        shifted[channel] = value - chroma * np.clip(np.minimum(sixth, np.float32(4.0) - sixth), 0.0, 1.0)
    return shifted
