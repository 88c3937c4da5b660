"""The pictures are files a person can open, and they show what they were given."""

import numpy as np
import pytest
from PIL import Image

from gen_vla.evaluation.policies.pictures import draw_prediction
from gen_vla.modeling import ActionPrediction


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def has_colour(image: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(image.astype(int) - colour).max(axis=-1) < 12).any())


def drawn(path, values, steps=1) -> np.ndarray:
    """Pixels of a prediction of these values, the first step of so many."""
    actions = np.array([[[*values], *[[0.75 / steps] * len(values)] * (steps - 1)]], np.float32)
    text = "\n".join("".join(f"{value:+.4f}" for value in step) for step in actions[0])
    shape = (1, len(text))
    prediction = ActionPrediction(actions, actions, [text], np.zeros(shape), np.full(shape, 0.5), len(text))
    return pixels(draw_prediction(Image.new("RGB", (32, 32), (0, 255, 0)), "close it", prediction, path))


@pytest.mark.parametrize("width", [7, 14])  # of one arm, and of two
def test_a_prediction_is_drawn_by_its_first_step(tmp_path, width):
    first = drawn(tmp_path / "a.png", [0.5] * width)
    assert has_colour(first, (0, 255, 0))
    assert not np.array_equal(first, drawn(tmp_path / "b.png", [-0.5] * width))
    two, three = (drawn(tmp_path / f"{steps}.png", [0.5] * width, steps) for steps in (2, 3))
    assert np.array_equal(two, three)
