"""Pictures as people have them: turned by the camera, transparent, grey, deep, broken."""

import numpy as np
import pytest
from PIL import Image

from gen_vla.commands.picture_files import read_picture, read_pictures


PIXELS = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]]], np.uint8)  # one row of red, green, blue


def pixels(path):
    picture = read_picture(path)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=turned)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), PIXELS.transpose(1, 0, 2))


def test_what_is_transparent_is_white(tmp_path):
    alpha = np.array([[[0], [255], [255]]], np.uint8)
    Image.fromarray(np.concatenate([PIXELS, alpha], axis=-1)).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").tolist() == [[[255, 255, 255], [0, 250, 0], [0, 0, 250]]]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_other_modes_become_rgb(mode, tmp_path):
    Image.new("RGB", (3, 2), "white").convert(mode).save(tmp_path / "a.tiff")
    assert (pixels(tmp_path / "a.tiff") == 255).all()


def test_what_is_no_picture_is_refused(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(FileNotFoundError, match=r"got no file at .*a.png, expected a picture"):
        read_picture(path)
    with pytest.raises(FileNotFoundError, match="got no file at"):
        read_picture(tmp_path)
    path.write_text("hello")
    with pytest.raises(ValueError, match=r"got .*a.png, which cannot be read as a picture"):
        read_picture(path)
    Image.fromarray(np.full((64, 64), 0.5, np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(ValueError, match=r"f.tiff: got a picture of floating-point numbers .*expected integers"):
        read_picture(tmp_path / "f.tiff")
    Image.new("RGB", (200, 200), "red").save(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:700])
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        read_picture(tmp_path / "b.jpg")


def test_a_picture_too_large_to_open_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (200, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="exceeds limit"):
        read_picture(tmp_path / "a.png")


def test_files_are_of_cameras_all_or_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "x=b.png"):
        Image.fromarray(PIXELS).save(name)
    assert len(read_pictures(["a.png", "x=b.png"])) == 2  # a file whose name has the sign
    named = read_pictures(["wrist=x=b.png", "top=a.png"])
    assert isinstance(named, dict)
    assert list(named) == ["wrist", "top"]
    for wrong in (["top=a.png", "a.png"], ["top=a.png", "top=x=b.png"]):
        with pytest.raises(ValueError, match="expected FILE or CAMERA=FILE for all of them, each camera once"):
            read_pictures(wrong)
