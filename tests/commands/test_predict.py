"""`gen-vla predict`: what it prints and draws, and which pictures it takes. How pictures are read is tested in
tests/processors/test_rgb_pictures.py."""

import json

import numpy as np
import pytest
from PIL import Image

from gen_vla.commands.main import main
from gen_vla.commands.predict import read_pictures


def test_one_action_as_json_and_drawn(tiny_openvla, tmp_path, capsys):
    for part in tiny_openvla:
        part.save_pretrained(tmp_path / "model")
    picture = tmp_path / "camera.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(picture)
    command = ["predict", str(tmp_path / "model"), str(picture)]
    code = main([*command, "open the drawer", "--picture", str(tmp_path / "out.png")])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    answer = json.loads(captured.out.strip().splitlines()[-1])
    assert np.array(answer["action"]).shape == (1, 3)
    assert len(answer["text"]) == 15
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert main([*command, " "]) == 2
    assert "empty instruction" in capsys.readouterr().err


def test_what_is_no_picture_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"got no file at .*a.png, expected a picture"):
        read_pictures(["a.png"])
    with pytest.raises(FileNotFoundError, match="got no file at"):
        read_pictures([str(tmp_path)])
    Image.new("RGB", (200, 200)).save("large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="exceeds limit"):
        read_pictures(["large.png"])


def test_files_are_of_cameras_all_or_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "x=b.png"):
        Image.new("RGB", (3, 1), "red").save(name)
    assert len(read_pictures(["a.png", "x=b.png"])) == 2  # a file whose name has the sign
    named = read_pictures(["wrist=x=b.png", "top=a.png"])
    assert isinstance(named, dict)
    assert list(named) == ["wrist", "top"]
    for wrong in (["top=a.png", "a.png"], ["top=a.png", "top=x=b.png"]):
        with pytest.raises(ValueError, match="expected FILE or CAMERA=FILE for all of them, each camera once"):
            read_pictures(wrong)
