"""The same scene looking different: what a robot policy should not care about.

The background is what one reaches from the picture's edge without crossing a jump in colour, which is right for a
table before a plain wall and only a guess elsewhere; the visitor sees the copy, and sets how large a jump may be.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


RECOLOUR, MASK = "Other colours", "Background removed"
MASK_SIDE = 96  # pixels: the background is found on a copy this small
BACKGROUND = (128, 128, 128)
SEED_STEP = 4  # pixels between the places on the edge where the background is entered
MAX_JUMP = 90  # summed difference of red, green and blue at strength 1


def changed(picture: Image.Image, change: str, strength: float) -> Image.Image:
    """A changed copy; `strength`, 0..1, says how far round the colour circle, or how much differs from the edge and is
    still background. Raises `ValueError` on another change, or strength."""
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"The strength is {strength}; choose one from 0 to 1.")
    if change not in CHANGES:
        raise ValueError(f"{change!r} is no change this Space knows; choose {' or '.join(map(repr, CHANGES))}.")
    return CHANGES[change](picture, strength)


def recoloured(picture: Image.Image, turn: float) -> Image.Image:
    """Every hue moved `turn` (0..1) round the colour circle; light and dark stay."""
    hue, saturation, value = picture.convert("HSV").split()
    moved = (np.asarray(hue, dtype=np.uint16) + round(256 * turn)) % 256
    return Image.merge("HSV", (Image.fromarray(moved.astype(np.uint8)), saturation, value)).convert("RGB")


def without_background(picture: Image.Image, strength: float) -> Image.Image:
    """Grey where `background_mask` finds background."""
    mask = background_mask(picture, strength).resize(picture.size, Image.Resampling.BILINEAR)
    return Image.composite(Image.new("RGB", picture.size, BACKGROUND), picture, mask)


def background_mask(picture: Image.Image, strength: float) -> Image.Image:
    """255 on background, at most `MASK_SIDE` pixels a side."""
    small = picture.copy()
    small.thumbnail((MASK_SIDE, MASK_SIDE))
    small = small.filter(ImageFilter.MedianFilter(3))
    width, height = small.size
    edge = [(x, y) for x in range(0, width, SEED_STEP) for y in (0, height - 1)]
    edge += [(x, y) for y in range(0, height, SEED_STEP) for x in (0, width - 1)]
    mask = np.zeros((height, width), dtype=bool)
    for place in edge:
        if mask[place[1], place[0]]:
            continue
        filled = small.copy()
        # No picture can hold a colour that differs from the one it has by this: it marks what was filled.
        mark = tuple(255 if channel < 128 else 0 for channel in small.getpixel(place))  # type: ignore[union-attr]
        ImageDraw.floodfill(filled, place, mark, thresh=strength * MAX_JUMP)
        mask |= (np.asarray(filled) != np.asarray(small)).any(axis=-1)
    return Image.fromarray((255 * mask).astype(np.uint8))


CHANGES = {RECOLOUR: recoloured, MASK: without_background}
