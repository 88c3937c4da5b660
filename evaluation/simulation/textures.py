"""What tables and rooms are made of: Meta-World's textures, and procedural ones without end.

A texture is named by its file (`wood2.png`), or by kind and seed (`stripes 17`); its pixels tile without a seam where
it is procedural.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from metaworld.asset_path_utils import full_V3_path_for
from PIL import Image


TEXTURE_SIZE = 128  # pixels; the pictures are smaller than that
CACHED = 64  # textures of 200 kB

# A texture's pixels follow from the place of its kind here.
PATTERNS = ("stripes", "checks", "dots", "clouds", "grain", "speckle", "tiles", "veins", "bricks", "zigzag", "rings")


@lru_cache(maxsize=CACHED)
def texture_pixels(name: str) -> np.ndarray:
    """uint8 [TEXTURE_SIZE, TEXTURE_SIZE, 3] of a texture; raises `ValueError` if Meta-World has no such file, and no
    kind is named so."""
    kind, _, seed = name.partition(" ")
    if kind in PATTERNS and seed.isdecimal():
        return _procedural(kind, int(seed))
    path = Path(full_V3_path_for("textures"), name)
    if not path.is_file():
        raise ValueError(f"got texture {name!r}, expected a file in {path.parent}, or a kind and a seed: 'stripes 17'")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((TEXTURE_SIZE, TEXTURE_SIZE), Image.Resampling.LANCZOS))


def _procedural(kind: str, seed: int) -> np.ndarray:
    """Between two colours, mostly muted ones as tables and walls have, along a pattern of 0..1."""
    rng = np.random.default_rng([PATTERNS.index(kind), seed])
    y, x = np.mgrid[0:TEXTURE_SIZE, 0:TEXTURE_SIZE] / TEXTURE_SIZE
    first = _muted(rng)
    second = np.clip(first + rng.normal(0.0, 0.12, 3), 0.0, 1.0) if rng.random() < 0.6 else _muted(rng)
    share = np.clip(_pattern(kind, rng, x, y), 0.0, 1.0)[..., None]
    grain = 0.02 * _noise(rng, 64, 64)[..., None]
    return (255 * np.clip(first + (second - first) * share + grain, 0.0, 1.0)).astype(np.uint8)


def _muted(rng: np.random.Generator) -> np.ndarray:
    grey, tint = rng.uniform(0.2, 0.85), rng.normal(0.0, 0.12, 3)
    return np.clip(grey + tint * rng.choice((0.3, 0.7, 1.4)), 0.05, 0.95)


def _noise(rng: np.random.Generator, across: int, down: int) -> np.ndarray:
    """[TEXTURE_SIZE, TEXTURE_SIZE] smooth noise around 0 with so many waves; it tiles."""
    frequencies = np.fft.fftfreq(TEXTURE_SIZE) * TEXTURE_SIZE
    weights = np.exp(-((frequencies[None, :] / across) ** 2) - (frequencies[:, None] / down) ** 2)
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(TEXTURE_SIZE, TEXTURE_SIZE))) * weights).real
    return field / field.std()


def _pattern(kind: str, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much of the second colour there is, about 0..1, at places x and y of 0..1."""
    match kind:
        case "stripes":
            wave = np.sin(2 * np.pi * (rng.integers(1, 9) * x + rng.integers(0, 9) * y))
            return 0.5 + 0.5 * (np.sign(wave) if rng.random() < 0.5 else wave)
        case "checks":
            across, down = 2 * rng.integers(1, 6, 2)
            return (np.floor(across * x) + np.floor(down * y)) % 2
        case "dots":
            count = rng.integers(3, 10)
            return np.hypot((count * x) % 1 - 0.5, (count * y) % 1 - 0.5) < rng.uniform(0.15, 0.4)
        case "clouds":
            waves = int(rng.choice((2, 4, 8, 16)))
            return 0.5 + 0.3 * _noise(rng, waves, waves)
        case "grain":  # as in wood: noise drawn out along one side
            noise = _noise(rng, 2, int(rng.integers(12, 48)))
            return 0.5 + 0.3 * (noise if rng.random() < 0.5 else noise.T)
        case "speckle":
            return _noise(rng, 40, 40) > rng.uniform(0.3, 1.4)
        case "tiles":
            count, joint = rng.integers(2, 9), rng.uniform(0.03, 0.1)
            return (count * x % 1 < joint) | (count * y % 1 < joint)
        case "veins":  # as in marble: thin lines where a smooth noise is near zero
            waves = int(rng.integers(2, 6))
            return np.exp(-rng.uniform(4.0, 16.0) * np.abs(_noise(rng, waves, waves)))
        case "bricks":
            rows, joint = 2 * rng.integers(2, 6), rng.uniform(0.06, 0.14)
            shifted = rows / 2 * x + 0.5 * (np.floor(rows * y) % 2)
            return (shifted % 1 < joint / 2) | (rows * y % 1 < joint)
        case "zigzag":
            count = rng.integers(2, 7)
            return np.floor(2 * count * (y + np.abs((count * x) % 1 - 0.5) / count)) % 2
        case _:  # rings
            distance = rng.integers(3, 9) * np.hypot(x - 0.5, y - 0.5)
            return 0.5 + 0.5 * np.sin(2 * np.pi * distance + _noise(rng, 3, 3) / 3)
