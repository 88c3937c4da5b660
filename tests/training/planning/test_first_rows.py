"""The picture of the first rows: what the model sees stands in it, with its text."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from gen_vla.training.mixing.data_reading import DataReading
from gen_vla.training.planning.data_check import ShownRow, SourceCheck
from gen_vla.training.planning.first_rows import draw_first_rows, wrapped


def shown(colours: list[tuple[int, int, int]], text: str = "In: go\nOut:\n") -> ShownRow:
    pictures = [Image.new("RGB", (32, 32), colour) for colour in colours]
    return ShownRow("row 0", "go", [(64, 48)] * len(pictures), pictures, [(text, False), ("+0.10</s>", True)], 9, 6)


def share(drawn: Image.Image, colour: tuple[int, int, int]) -> float:
    return float((np.asarray(drawn.convert("RGB")) == colour).all(axis=2).mean())


def test_every_camera_of_every_row_is_drawn(tmp_path: Path) -> None:
    red, green, blue = (200, 10, 10), (10, 200, 10), (10, 10, 200)
    robot = SourceCheck("robot/mine", DataReading("RLDS", 2), [shown([red, green]), shown([red, green])])
    questions = SourceCheck("vision_language/scenes", DataReading("recorded", 1), [shown([blue])])
    path = draw_first_rows([robot, questions], tmp_path / "run" / "first_rows.png", "my run")
    with Image.open(path) as drawn:
        assert drawn.width > drawn.height
        assert share(drawn, red) == share(drawn, green) > 0.01
        assert share(drawn, blue) > 0.01
        rows = np.flatnonzero((np.asarray(drawn.convert("RGB")) == red).all(axis=2).any(axis=1))
        assert rows.max() < drawn.height / 2, "one line per data set, robot data first"


def test_rows_without_a_picture_and_data_sets_without_a_row(tmp_path: Path) -> None:
    checks = [SourceCheck("vision_language/a", DataReading("llava", 0), []), SourceCheck("b", DataReading("x", 1), [])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_first_rows(checks, tmp_path / "nothing.png", "none")
        strange = [shown([], "what does it cost? $5 or $6, 多少钱\n")]
        draw_first_rows(
            [SourceCheck("vision_language/a", DataReading("llava", 1), strange)], tmp_path / "a.png", "one"
        )
    assert (tmp_path / "nothing.png").is_file()
    assert (tmp_path / "a.png").is_file()


def test_long_texts_are_cut_and_newlines_spelled_out() -> None:
    assert wrapped("In: go\nOut:\n", 4) == ["In: go\\nOut:\\n"]
    assert wrapped("", 4) == [""]
    cut = wrapped("word " * 100, 2)
    assert len(cut) == 2
    assert cut[1].endswith(" ...")
    assert "".join(wrapped("-1.0000" * 10, 4)) == "-1.0000" * 10
