"""Image augmentation: every change by hand on few pixels, against colorsys, independent draws, the same for a row."""

import colorsys
import pickle
from functools import partial

import numpy as np
import pytest
from PIL import Image

from gen_vla.processors import OpenVLAPlusImageProcessor
from gen_vla.training.mixing.image_augmentation import (
    ImageAugmentation,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    augment_image,
    crop_and_resize,
)


OFF = ImageAugmentation(crop_area=1.0, brightness=0.0, contrast=[1.0, 1.0], saturation=[1.0, 1.0], hue=0.0)


def noise(height: int = 9, width: int = 11) -> np.ndarray:
    return np.random.default_rng(0).random((3, height, width), dtype=np.float32)


def pixel(*rgb: float) -> np.ndarray:
    return np.array(rgb, np.float32).reshape(3, 1, 1)


def changed(action, *rgb: float) -> list[float]:
    return [round(float(value), 4) for value in action(pixel(*rgb)).ravel()]


def test_a_crop_of_everything_changes_nothing_and_one_pixel_stays_itself():
    assert np.array_equal(crop_and_resize(noise(), 0.0, 0.0, 1.0), noise())
    assert changed(partial(crop_and_resize, left=0.02, top=0.03, side=0.9), 0.1, 0.5, 0.9) == [0.1, 0.5, 0.9]


def test_a_crop_agrees_with_interpolation_at_single_places():
    pixels, left, top, side = noise(), 0.031, 0.012, 0.9**0.5
    cropped = crop_and_resize(pixels, left, top, side)
    for y, x in ((0, 0), (8, 10), (3, 7)):
        v, u = (top + side * y / 8) * 8, (left + side * x / 10) * 10
        j, i = int(v), int(u)
        above = pixels[:, j, i] * (1 - (u - i)) + pixels[:, j, i + 1] * (u - i)
        below = pixels[:, j + 1, i] * (1 - (u - i)) + pixels[:, j + 1, i + 1] * (u - i)
        assert np.allclose(cropped[:, y, x], above * (1 - (v - j)) + below * (v - j), atol=1e-5)


def test_brightness_moves_and_clips():
    assert changed(partial(adjust_brightness, shift=0.2), 0.1, 0.5, 0.9) == [0.3, 0.7, 1.0]
    assert changed(partial(adjust_brightness, shift=-0.2), 0.1, 0.5, 0.9) == [0.0, 0.3, 0.7]


def test_contrast_spreads_each_channel_around_its_own_mean():
    pixels = np.array([[0.2, 0.4], [0.9, 0.5], [0.3, 0.3]], np.float32).reshape(3, 1, 2)
    expected = [[0.18, 0.42], [0.94, 0.46], [0.3, 0.3]]
    assert np.allclose(adjust_contrast(pixels, 1.2).reshape(3, 2), expected, atol=1e-6)
    assert np.allclose(adjust_contrast(pixels, 0.0).reshape(3, 2), [[0.3, 0.3], [0.7, 0.7], [0.3, 0.3]], atol=1e-6)


@pytest.mark.parametrize("turn", [-0.5, -0.05, 0.013, 0.05, 0.5])
@pytest.mark.parametrize("factor", [0.0, 0.8, 1.2, 5.0])
def test_saturation_and_hue_agree_with_the_plain_way_through_hsv(turn, factor):
    pixels = noise(20, 20)
    got = adjust_hue(adjust_saturation(pixels, factor), turn)
    for y in range(20):
        for x in range(20):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixels[:, y, x].tolist())
            expected = colorsys.hsv_to_rgb((hue + turn) % 1.0, min(1.0, saturation * factor), value)
            assert np.allclose(got[:, y, x], expected, atol=2e-5)


def test_nothing_to_change_gives_the_picture_back_to_the_bit():
    picture = Image.fromarray(np.arange(256 * 3, dtype=np.uint32).astype(np.uint8).reshape(16, 16, 3))
    assert np.array_equal(np.asarray(augment_image(picture, 0, OFF)), np.asarray(picture))


def test_a_row_always_looks_the_same_and_rows_differ():
    picture = Image.fromarray((noise(32, 40) * 255).astype(np.uint8).transpose(1, 2, 0))
    augment = partial(augment_image, settings=ImageAugmentation(), seed=3)
    seen = [np.asarray(augment(picture, row)) for row in (0, 1, "a.json row 7")]
    assert all(image.shape == (32, 40, 3) for image in seen)
    again = pickle.loads(pickle.dumps(augment))
    for row, image in zip((0, 1, "a.json row 7"), seen):
        assert np.array_equal(np.asarray(again(picture, row)), image)
        other = augment_image(picture, row, ImageAugmentation(), seed=4)
        assert not np.array_equal(np.asarray(other), image)
    assert not np.array_equal(seen[0], seen[1])


def test_draws_fill_their_ranges_independently():
    """A grey ramp shows brightness by its mean; its crop shows where it was taken, across and down."""
    ramp = np.zeros((40, 40, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.linspace(0, 250, 40)[None], np.linspace(0, 250, 40)[:, None]
    crops = ImageAugmentation(brightness=0.0, contrast=[1.0, 1.0], saturation=[1.0, 1.0], hue=0.0)
    corners = np.array([np.asarray(augment_image(Image.fromarray(ramp), row, crops))[0, 0, :2] for row in range(300)])
    most = 250 * (1 - 0.9**0.5)
    assert corners.min() == 0
    assert most - 1 <= corners.max() <= most + 1
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.15
    shifts = ImageAugmentation(crop_area=1.0, contrast=[1.0, 1.0], saturation=[1.0, 1.0], hue=0.0)
    grey = Image.new("RGB", (2, 2), (128, 128, 128))
    values = np.array([np.asarray(augment_image(grey, row, shifts))[0, 0, 0] for row in range(300)]) / 255
    assert 0.299 < values.min() < 0.32
    assert 0.68 < values.max() < 0.705


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"crop_area": 0.0, "hue": 0.6},
            r"crop_area\s+Input should be greater than 0[^.](.|\s)*hue\s+Input should be less",
        ),
        ({"contrast": [1.2, 0.8]}, r"contrast=\[1\.2, 0\.8\], expected the smallest and largest"),
        ({"saturation": [0.8]}, r"saturation=\[0\.8\], expected the smallest and largest"),
    ],
)
def test_settings_that_cannot_be_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageAugmentation(**settings)


def test_a_picture_that_is_not_rgb_is_an_error():
    with pytest.raises(ValueError, match="mode 'L', expected 'RGB'"):
        augment_image(Image.new("L", (4, 4)), 0, ImageAugmentation())


def test_the_centre_crop_for_inference_fits_the_image_processor():
    assert ImageAugmentation().center_crop_area == 0.9
    assert OFF.center_crop_area is None
    settings = ImageAugmentation(crop_area=0.81)
    processor = OpenVLAPlusImageProcessor(image_size=18, center_crop_area=settings.center_crop_area)
    picture = Image.fromarray((noise(20, 20) * 255).astype(np.uint8).transpose(1, 2, 0))
    plain = OpenVLAPlusImageProcessor(image_size=18)
    centre = picture.crop((1, 1, 19, 19))
    assert np.array_equal(processor(picture)["pixel_values"], plain(centre)["pixel_values"])
