"""Pictures of a prediction, for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image


CHARACTERS = 56  # that fit beside each other in the usual size
ONE_ARM = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]  # what most data sets' seven values are


def draw_prediction(image: Image.Image, instruction: str, prediction: Any, path: str | Path) -> Path:
    """A picture, what was asked, the action string with every character coloured by its probability, and the values of
    an `ActionPrediction` of one observation in signed style, one token per character.

    Bars show the normalised action, so that metres, radians and a gripper fit one axis; their labels are in units. Of
    a chunk they show the first step, and so do the characters. Seven values are called those of one arm, others by
    their number.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    left.imshow(image)
    left.axis("off")
    left.set_title(instruction, fontsize=10, wrap=True)
    action, units = prediction.normalized[0, 0], prediction.actions[0, 0]
    bars = right.bar(np.arange(len(action)), action)
    one_arm = len(action) == len(ONE_ARM)
    right.bar_label(bars, [f"{value:+.4f}" for value in units], fontsize=8 if one_arm else 5)
    right.set_xticks(np.arange(len(action)), ONE_ARM if one_arm else map(str, range(len(action))))
    right.set(ylim=(-1.15, 1.15), ylabel="normalised; labels in the data set's units")
    text = prediction.text[0] if len(prediction.actions[0]) == 1 else prediction.text[0].split("\n")[0]
    _write_coloured(right, text, prediction.digit_probabilities[0])
    figure.savefig(path, dpi=120)
    return Path(path)


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in a row, all as high as the first."""
    height = pictures[0].height
    sizes = [(max(1, picture.width * height // picture.height), height) for picture in pictures]
    scaled = [picture.convert("RGB").resize(size) for picture, size in zip(pictures, sizes, strict=True)]
    return Image.fromarray(np.hstack([np.asarray(picture) for picture in scaled]))


def _write_coloured(axes: Any, text: str, probabilities: np.ndarray) -> None:
    """The action string above the axes, red where the model was unsure, black where it was sure or had no choice."""
    shades, size = colormaps["RdYlGn"], min(9.0, 9.0 * CHARACTERS / max(len(text), 1))
    for index, (character, probability) in enumerate(zip(text, probabilities)):
        colour = "black" if probability > 0.999 else shades(0.9 * float(probability))
        x = index / max(len(text), 1)
        axes.text(x, 1.06, character, transform=axes.transAxes, family="monospace", fontsize=size, color=colour)
