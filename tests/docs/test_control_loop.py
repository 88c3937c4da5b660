"""The loops of the how-to pages run as they are printed: what reaches the robot, and that it is always stopped."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_docs import ROOT, blocks
from tiny_models import picture, tiny_model, tiny_processor

from gen_vla.processors import ActionStringProcessor


PAGES = ROOT / "docs" / "how_to"


class Robot:
    """A robot that shows pictures and writes down what it is told."""

    def __init__(self, broken_after: int | None = None):
        self.broken_after, self.seen, self.told, self.stops = broken_after, 0, [], 0

    def picture(self) -> np.ndarray:
        if self.seen == self.broken_after:
            raise OSError("the camera is gone")
        self.seen += 1
        return self.shown(self.seen)

    @staticmethod
    def shown(number: int) -> np.ndarray:
        return np.asarray(picture(number // 3))  # the same scene for three steps

    def send(self, action: np.ndarray) -> None:
        self.told.append(action)

    def stop(self) -> None:
        self.stops += 1


def loop(folder: Path, horizon: int, llama_like: Any) -> dict[str, Any]:
    """The names that the page's code defines, for a small model in `folder`."""
    strings = ActionStringProcessor(action_dim=3, decimals=2, horizon=horizon)
    model, processor = tiny_model(llama_like, strings), tiny_processor(llama_like, strings)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    code = "\n\n".join(
        blocks(PAGES / "run_on_a_robot.md", "python")[:1] + blocks(PAGES / "act_in_chunks.md", "python")
    )
    assert '"gen-vla/openvla-plus", "bridge_orig"' in code
    code = code.replace('"gen-vla/openvla-plus", "bridge_orig"', f'{str(folder)!r}, "tiny"')
    names: dict[str, Any] = {}
    exec(compile(code, "run_on_a_robot.md", "exec"), names)
    names["calibrated"] = []
    names["model"].calibrate_tree_nodes = lambda **inputs: names["calibrated"].append(inputs)  # it measures time
    return names


@pytest.mark.parametrize("horizon", [1, 2])
def test_the_robot_is_told_what_the_model_predicts(horizon, llama_like, tmp_path):
    names = loop(tmp_path, horizon, llama_like)
    robot = Robot()
    late = names["run_episode"](robot, "open the drawer", steps=6, hertz=1000.0)
    assert (len(robot.told), robot.stops) == (6, 1)
    assert 0 <= late <= 5
    assert [set(inputs) for inputs in names["calibrated"]] == [
        {"input_ids", "attention_mask", "pixel_values", "unnorm_key"}
    ]
    expected = []
    for number in range(2, 2 + 6 // horizon):  # the first picture went to the calibration
        image = Image.fromarray(Robot.shown(number))
        inputs = names["processor"].action_inputs(image, "open the drawer")
        expected += list(names["model"].predict_actions(**inputs, unnorm_key="tiny", tree_nodes=0).actions[0])
    np.testing.assert_array_equal(np.stack(robot.told), np.stack(expected))
    assert robot.told[0].dtype == np.float32


@pytest.mark.parametrize(("run", "horizon", "told"), [("run_episode", 1, 2), ("run_moving", 2, None)])
def test_a_robot_is_stopped_when_something_breaks(run, horizon, told, llama_like, tmp_path):
    names, robot = loop(tmp_path, horizon, llama_like), Robot(broken_after=3)
    with pytest.raises(OSError, match="the camera is gone"):
        names[run](robot, "open the drawer", hertz=1000.0)
    assert robot.stops == 1
    assert told is None or len(robot.told) == told


def test_overlapping_chunks_are_averaged():
    names: dict[str, Any] = {}
    exec(compile(blocks(PAGES / "act_in_chunks.md", "python")[0], "act_in_chunks.md", "exec"), names)
    chunks = {
        number: np.array([[number, step] for step in range(number, number + 4)], np.float32) for number in (0, 2)
    }
    np.testing.assert_array_equal(names["ensembled"](chunks, 1), [0, 1])  # only the first reaches it
    np.testing.assert_array_equal(names["ensembled"](chunks, 3, decay=0.0), [1, 3])
    np.testing.assert_allclose(names["ensembled"](chunks, 3, decay=np.log(3)), [0.5, 3])  # 3 to 1 for the older
    np.testing.assert_array_equal(names["ensembled"](chunks, 5), [2, 5])
    assert names["ensembled"](chunks, 3).dtype == np.float32


@pytest.mark.parametrize("seconds", [0.0, 0.03, 0.2])
def test_chunks_are_written_while_the_robot_moves(seconds, llama_like, tmp_path):
    """Every action is the step of the chunk that was asked for so many steps ago, however long writing takes."""
    names, horizon, robot = loop(tmp_path, 4, llama_like), 4, Robot()
    predict, chunks = names["model"].predict_actions, []

    def slow(**arguments: Any) -> Any:
        time.sleep(seconds)
        return predict(**arguments)

    def look(robot: Robot, instruction: str) -> Any:
        inputs = look_as_printed(robot, instruction)
        chunks.append((len(robot.told), predict(**inputs, unnorm_key="tiny").actions[0]))
        return inputs

    look_as_printed, names["look"], names["model"].predict_actions = names["look"], look, slow
    names["run_moving"](robot, "open the drawer", steps=12, hertz=100.0)
    assert len(robot.told) >= 12
    assert robot.stops == 1
    used = 1  # the first look was for the calibration
    for number, action in enumerate(robot.told):
        fits = [
            which
            for which, (asked, chunk) in enumerate(chunks)
            if which >= used and 0 <= number - asked < horizon and np.array_equal(chunk[number - asked], action)
        ]
        assert fits, f"action {number} is of no chunk that reaches it"
        used = fits[0]
    assert used > 12 // horizon  # chunks are replaced before their end, or the robot stood
