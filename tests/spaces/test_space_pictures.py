"""The Space's pictures: what is accepted, how copies are changed, where arrows point."""

import re
from typing import Any

import numpy as np
import pytest
from changed_pictures import MASK, RECOLOUR, background_mask, changed
from motion_pictures import TEAL, Arrow, draw_arrows, draw_in_space, gripper
from PIL import Image
from robot_frames import RobotFrame


pytest.importorskip("gradio", reason="no gradio; pip install 'gen-vla[demo]'")
from picture_input import PictureError, is_squeezed, read_picture


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("moving.gif", "Use a PNG, JPEG, WebP or BMP file"),
        ("drawing.svg", "not a picture that can be read here"),
        ("sliver.png", "15 x 400 pixels; each side needs at least 16"),
        ("cut.png", "damaged"),
    ],
)
def test_other_files_are_refused(tmp_path, name, message):
    path = tmp_path / name
    if name == "drawing.svg":
        path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    else:
        noise = np.random.default_rng(0).integers(0, 256, (400, 15 if name == "sliver.png" else 40, 3))
        Image.fromarray(noise.astype(np.uint8)).save(path)
    if name == "cut.png":
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(PictureError, match=re.escape(message)):
        read_picture(str(path))


def test_long_pictures_are_noticed():
    sizes = ((100, 100), (250, 100), (251, 100), (100, 300))
    assert [is_squeezed(Image.new("RGB", size)) for size in sizes] == [False, False, True, True]


def test_other_colours_keep_light_and_dark():
    picture = Image.new("RGB", (4, 4), (200, 20, 20))
    turned = changed(picture, RECOLOUR, 1 / 3).getpixel((0, 0))
    assert isinstance(turned, tuple)
    assert turned[1] == max(turned) == 200  # red has become green
    assert changed(picture, RECOLOUR, 0.0).getpixel((0, 0)) == (200, 20, 20)
    grey = Image.new("RGB", (4, 4), (90, 90, 90))
    assert changed(grey, RECOLOUR, 0.5).getpixel((0, 0)) == (90, 90, 90)


def test_the_background_is_what_the_edge_reaches():
    pixels = np.full((60, 60, 3), 220, dtype=np.uint8)
    pixels[:30] = 200  # a wall a little darker than the table
    pixels[20:40, 20:40] = (180, 30, 30)
    picture = Image.fromarray(pixels)
    masked = np.asarray(changed(picture, MASK, 0.3))
    assert (masked[22:38, 22:38] == (180, 30, 30)).all()
    assert (masked[:17] == 128).all()
    assert (masked[43:] == 128).all()
    everything = np.asarray(background_mask(Image.new("RGB", (300, 200), "white"), 0.0))
    assert everything.shape == (64, 96)
    assert everything.all()


@pytest.mark.parametrize(
    ("change", "strength", "message"),
    [("Upside down", 0.3, "choose 'Other colours' or 'Background removed'"), (MASK, 1.5, "from 0 to 1")],
)
def test_unknown_changes_are_refused(change, strength, message):
    with pytest.raises(ValueError, match=message):
        changed(Image.new("RGB", (20, 20)), change, strength)


def coloured_pixels(image: Image.Image, colour: tuple[int, int, int]) -> Any:
    """Columns and rows of the pixels in exactly this colour, from the middle."""
    rows, columns = np.nonzero((np.abs(np.asarray(image).astype(int) - colour) <= 3).all(axis=-1))
    return columns - image.width / 2, rows - image.height / 2


def test_arrows_point_where_the_motion_goes():
    picture, teal = Image.new("RGB", (100, 50), "black"), (0x0F, 0x76, 0x6E)
    left = draw_arrows(picture, [Arrow(np.array([[0.0, 0.05, 0.0]]), TEAL)], RobotFrame(), longest=0.05)
    assert left.size == (640, 320)
    columns, rows = coloured_pixels(left, teal)
    assert -140 < columns.min() < -125  # 0.42 of the shorter side
    assert columns.max() <= 0
    assert np.abs(rows).max() < 15
    up = draw_arrows(picture, [Arrow(np.array([[0.0, 0.0, 0.05]]), TEAL)], RobotFrame(), longest=0.05)
    assert coloured_pixels(up, teal)[1].min() < -100


def test_equal_arrows_both_show():
    path = np.array([[0.0, 0.05, 0.0]])
    arrows = [Arrow(path, "#ff0000", "one"), Arrow(path, "#0000ff", "two")]
    image = draw_arrows(Image.new("RGB", (64, 64), "black"), arrows, RobotFrame(), longest=0.05)
    for colour in ((255, 0, 0), (0, 0, 255)):
        columns, rows = coloured_pixels(image, colour)
        on_arrow = np.abs(rows) < 40
        assert on_arrow.sum() > 100
        assert columns[on_arrow].min() < -40


@pytest.mark.parametrize("steps", [1, 4])
def test_space_shows_any_action(steps):
    still = draw_in_space(np.zeros((steps, 7)), RobotFrame())
    moving = draw_in_space(np.full((steps, 7), 0.02), RobotFrame())
    assert still.size == moving.size == (644, 644)
    assert (np.asarray(still) != np.asarray(moving)).any()


def test_the_gripper_opens_and_turns():
    closed, opened = (gripper(np.eye(3), opening, 1.0) for opening in (0.0, 1.0))
    assert closed[1][0][1] - closed[0][0][1] == pytest.approx(0.12)
    assert opened[1][0][1] - opened[0][0][1] == pytest.approx(0.80)
    upside_down = gripper(np.diag([1.0, -1.0, -1.0]), 1.0, 1.0)
    assert upside_down[-1][-1][2] == pytest.approx(-opened[-1][-1][2])
