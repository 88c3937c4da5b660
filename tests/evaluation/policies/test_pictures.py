"""The pictures are files a person can open, and they show what they were given."""

import numpy as np
from PIL import Image

from gen_vla.evaluation.policies.pictures import draw_prediction, plot_training, side_by_side
from gen_vla.modeling import ActionPrediction


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_training_plot_draws_the_sources_that_were_logged(tmp_path):
    history = [
        {"step": step, "robot/loss": 2.0 / step, "robot/token_accuracy": 0.5, "vision_language/loss": 1.0}
        for step in (1, 2, 3)
    ]
    both = pixels(plot_training(history, tmp_path / "both.png", "run"))
    one = pixels(plot_training([{"step": 1, "vision_language/loss": 1.0}], tmp_path / "one.png", "run"))
    assert both.shape[1] > both.shape[0] > 300
    assert has_colour(both, (0xD1, 0x49, 0x5B))
    assert has_colour(both, (0x2E, 0x6F, 0x95))
    assert not np.array_equal(both, one)


def has_colour(image: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(image.astype(int) - colour).max(axis=-1) < 12).any())


def test_prediction_picture_changes_with_the_action(tmp_path):
    def prediction(x: float) -> ActionPrediction:
        actions = np.array([[[x, 0, 0, 0, 0, 0, 1]]], np.float32)
        text = "+0.5000" * 7
        return ActionPrediction(actions, actions, [text], np.zeros((1, 49)), np.full((1, 49), 0.5), 49)

    scene = Image.new("RGB", (32, 32), (0, 255, 0))
    first = pixels(draw_prediction(scene, "close the drawer", prediction(0.5), tmp_path / "a.png", note="a note"))
    second = pixels(
        draw_prediction(scene, "close the drawer", prediction(-0.5), tmp_path / "b.png", recorded=np.zeros(7))
    )
    assert has_colour(first, (0, 255, 0))
    assert not np.array_equal(first, second)


def test_a_chunk_of_two_arms_is_drawn_by_its_first_step(tmp_path):
    def prediction(*steps: float) -> ActionPrediction:
        actions = np.array([[[step] * 14 for step in steps]], np.float32)
        text = "\n".join(f"{step:+.4f}" * 14 for step in steps)
        shape = (1, len(text))
        return ActionPrediction(actions, actions, [text], np.zeros(shape), np.full(shape, 0.5), len(text))

    scene = Image.new("RGB", (32, 32), (0, 255, 0))
    drawn = [
        pixels(draw_prediction(scene, "hand over the cube", prediction(*steps), tmp_path / f"{number}.png"))
        for number, steps in enumerate([(0.5, -0.25), (0.5, 0.75), (0.25, -0.25)])
    ]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_pictures_side_by_side_are_as_high_as_the_first():
    strip = np.asarray(side_by_side([Image.new("RGB", (6, 4), "red"), Image.new("RGB", (10, 8), "blue")]))
    assert strip.shape == (4, 6 + 5, 3)
    assert (strip[:, :6] == (255, 0, 0)).all()
    assert (strip[:, 6:] == (0, 0, 255)).all()
