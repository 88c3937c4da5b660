"""Pictures to pixels: the formula written out, the order of channels, what counts as a picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import picture

from gen_vla.processors import OpenVLAPlusImageProcessor
from gen_vla.processors.image_processing_openvla_plus import with_open_pictures


def expected_pixels(image: Image.Image, side: int) -> np.ndarray:
    """float64 [6, side, side], from the published constants: DINOv2 (ImageNet) first, SigLIP second."""
    resized = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    values = np.asarray(resized).astype(np.float64) / 255.0
    channels = []
    for mean, std in (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))):
        channels += [(values[:, :, c] - mean[c]) / std[c] for c in range(3)]
    return np.stack(channels)


def test_one_red_pixel_by_hand() -> None:
    image = Image.new("RGB", (2, 2), (255, 0, 51))
    pixels = OpenVLAPlusImageProcessor(image_size=2)(image, return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 6, 2, 2)
    assert pixels.dtype == np.float32
    dino = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    assert pixels[0, :, 1, 0].tolist() == pytest.approx([*dino, 1.0, -1.0, -0.6], abs=1e-6)


@pytest.mark.parametrize("size", [(320, 256), (100, 300), (224, 224), (7, 9)])
def test_pixel_values_are_the_formula(size: tuple[int, int]) -> None:
    image = picture(1, size)
    pixels = OpenVLAPlusImageProcessor()(image, return_tensors="np")["pixel_values"][0]
    assert pixels.shape == (6, 224, 224)
    assert np.abs(pixels - expected_pixels(image, 224)).max() <= 1e-6


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((640, 480), (28, 196), (0, 224)),  # 168 rows
        ((480, 640), (0, 224), (28, 196)),
        ((640, 476), (29, 195), (0, 224)),  # 166.6 rows: 166
        ((224, 223), (0, 223), (0, 224)),  # the odd row is below
        ((1000, 2), (111, 112), (0, 224)),  # 0.4 rows: 1
        ((30, 60), (0, 224), (56, 168)),
        ((224, 224), (0, 224), (0, 224)),
    ],
)
def test_a_picture_between_black_bars(size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """As openpi and LeRobot resize for π0: bars of pixel 0, which is -1."""
    half = [[0.5, 0.5, 0.5]]
    processor = OpenVLAPlusImageProcessor(means=half, stds=half, resize_strategy="resize-with-pad")
    pixels = processor(Image.new("RGB", size, (255, 255, 255)), return_tensors="np")["pixel_values"]
    expected = np.full((1, 3, 224, 224), -1.0)
    expected[:, :, rows[0] : rows[1], columns[0] : columns[1]] = 1.0
    np.testing.assert_array_equal(pixels, expected)


def test_the_way_of_resizing_is_saved_and_old_processors_stretch(tmp_path: Path) -> None:
    OpenVLAPlusImageProcessor(resize_strategy="resize-with-pad").save_pretrained(tmp_path)
    assert OpenVLAPlusImageProcessor.from_pretrained(tmp_path).resize_strategy == "resize-with-pad"
    file = tmp_path / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    del settings["resize_strategy"]
    file.write_text(json.dumps(settings))
    assert OpenVLAPlusImageProcessor.from_pretrained(tmp_path).resize_strategy == "resize-naive"
    with pytest.raises(ValueError, match="got resize_strategy='letterbox', expected one of resize-naive, resize"):
        OpenVLAPlusImageProcessor(resize_strategy="letterbox")


def test_lists_and_nested_lists_are_flattened_in_order() -> None:
    processor = OpenVLAPlusImageProcessor(image_size=4)
    images = [picture(seed) for seed in range(3)]
    one_by_one = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in images])
    torch.testing.assert_close(processor(images, return_tensors="pt")["pixel_values"], one_by_one, rtol=0, atol=0)
    nested = [[images[0], images[1]], [], [images[2]]]
    torch.testing.assert_close(processor(nested, return_tensors="pt")["pixel_values"], one_by_one, rtol=0, atol=0)


def test_center_crop_keeps_the_share_of_the_area() -> None:
    array = np.zeros((10, 20, 3), dtype=np.uint8)
    array[2:8, 4:16] = 255  # the middle 60 % of each side, 36 % of the area
    cropped = OpenVLAPlusImageProcessor(image_size=4, center_crop_area=0.36)(array, return_tensors="np")
    assert (cropped["pixel_values"][0, 3:] == 1.0).all()
    plain = OpenVLAPlusImageProcessor(image_size=4)(array, return_tensors="np")["pixel_values"]
    assert plain[0, 3, 0, 0] < 0
    image = picture(3, (100, 80))
    crop = OpenVLAPlusImageProcessor(center_crop_area=0.9)(image, return_tensors="np")["pixel_values"][0]
    # sides of sqrt(0.9) = 0.9487: 95 x 76 pixels, 2 cut off left and top
    assert np.abs(crop - expected_pixels(image.crop((2, 2, 97, 78)), 224)).max() <= 1e-6
    for area in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match=f"got center_crop_area={area}, expected a share"):
            OpenVLAPlusImageProcessor(center_crop_area=area)


def test_no_pictures_at_all_is_named() -> None:
    empty: list[Any] = [[], [[]], [[], []]]
    for nothing in empty:
        with pytest.raises(ValueError, match="got no images, expected at least one"):
            OpenVLAPlusImageProcessor(image_size=4)(nothing)


def test_messages_without_pictures_or_without_their_file() -> None:
    """How pictures of messages are opened is tested in `test_rgb_pictures.py`."""
    assert with_open_pictures([{"role": "user", "content": "Go?"}])[0]["content"] == [{"type": "text", "text": "Go?"}]
    nothing = [{"role": "assistant", "content": None}, "x"]
    assert with_open_pictures(nothing) == nothing
    with pytest.raises(ValueError, match=r"no-such\.png"):
        with_open_pictures([{"role": "user", "content": [{"type": "image", "path": "no-such.png"}]}])


def test_settings_are_checked_and_travel(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 1 means and 2 stds, expected one of each per encoder"):
        OpenVLAPlusImageProcessor(means=[[0.5, 0.5, 0.5]])
    processor = OpenVLAPlusImageProcessor(
        image_size=6, means=[[0.1, 0.2, 0.3]], stds=[[0.4, 0.5, 0.6]], center_crop_area=0.8
    )
    processor.save_pretrained(tmp_path)
    loaded = OpenVLAPlusImageProcessor.from_pretrained(tmp_path)
    before, after = (p(picture(), return_tensors="np")["pixel_values"] for p in (processor, loaded))
    assert before.shape == (1, 3, 6, 6)
    np.testing.assert_array_equal(before, after)
    assert loaded.center_crop_area == 0.8


def test_no_argument_vanishes() -> None:
    processor = OpenVLAPlusImageProcessor(image_size=8)
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    same = processor(image, do_resize=True, do_rescale=True, data_format=None)["pixel_values"]
    np.testing.assert_array_equal(same, processor(image)["pixel_values"])
    with pytest.raises(TypeError, match="got do_rescale=False, expected True or nothing: it cannot be changed here"):
        processor(image, do_rescale=False)
    with pytest.raises(TypeError, match=r"got the argument 'size', expected one of images, return_tensors$"):
        processor(image, size=16)


@pytest.mark.parametrize(
    ("image", "remedy"),
    [
        (np.zeros((3, 8, 8), dtype=np.uint8), r"move the channels last with image\.transpose\(1, 2, 0\)"),
        (np.zeros((8, 8, 3), dtype=np.float32), r"scale it, from 0\.\.1 with \(255 \* image\)"),
        (torch.zeros((3, 8, 8), dtype=torch.uint8), r"move the channels last with image\.permute\(1, 2, 0\)"),
        (np.zeros((8, 8, 3), dtype=np.int64), r"make it uint8 if its values are 0\.\.255"),
        (np.zeros((2, 1, 8, 8, 3), dtype=np.uint8), "pass one picture per row"),
    ],
)
def test_an_error_says_what_to_do_with_the_picture(image: Any, remedy: str) -> None:
    with pytest.raises(TypeError, match=rf"as an image, expected a PIL image or a uint8 array .*; {remedy}"):
        OpenVLAPlusImageProcessor(image_size=8)(image)
