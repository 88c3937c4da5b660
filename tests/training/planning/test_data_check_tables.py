"""What a look at the data prints."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen_vla.training.mixing.data_source import DataReading
from gen_vla.training.planning.data_check import (
    Dimension,
    ShownRow,
    SourceCheck,
    draw_first_rows,
    row_text,
    show_data,
    wrapped,
)


def make_check(**changes: object) -> SourceCheck:
    spans = [("<s><image> x 4 In: [bold]go[/bold]\nOut:\n", False), ("+0.10-0.20</s>", True)]
    row = ShownRow("row 0", "[bold]go[/bold]", [(640, 480), (320, 240)], [Image.new("RGB", (8, 8))] * 2, spans, 30, 11)
    settings = {
        "name": "robot/mine",
        "reading": DataReading("LeRobot v2.1", 12345, 67, ["top", "wrist"], ["side"], True, 3),
        "rows": [row],
        "dimensions": [
            Dimension(-0.25, -0.125, 0.125, 0.5, 24, 0.02, False, False),
            Dimension(0.0, 0.0, 1.0, 1.0, 0, 0.0, True, True, "1 left_gripper"),
            Dimension(3.0, 3.0, 3.0, 3.0, 0, 0.0, False, False, "2"),
        ],
        "warnings": ["dimension 2 never changes: it is always 3"],
    }
    return SourceCheck(**{**settings, **changes})  # type: ignore[arg-type]


def printed(checks: list[SourceCheck], folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    show_data(checks, folder, "a title")
    return [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]


def test_a_robot_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed([make_check()], tmp_path, capsys)
    assert "robot/mine LeRobot v2.1 67 12,345 top, wrist [bold]go[/bold]" in lines
    assert "not used: side 640 x 480, 320 x 240" in lines
    assert "0 -0.25 -0.125 0.125 0.5 24 (2.0%)" in lines
    assert "1 left_gripper 0 0 1 1 0 (0.0%) 0 or 1" in lines
    assert "2 3 3 3 3 0 (0.0%) never changes" in lines
    assert "look at robot/mine: dimension 2 never changes: it is always 3" in lines
    assert (tmp_path / "first_rows.png").is_file()


def test_what_is_supervised_is_marked() -> None:
    plain = row_text(make_check()).plain
    assert plain == (
        "robot/mine (30 tokens, «11 supervised»)\n  <s><image> x 4 In: [bold]go[/bold]\\nOut:\\n«+0.10-0.20</s>»"
    )


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
