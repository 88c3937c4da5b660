"""Pictures of a training run and of a prediction, for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image


COLOURS = {"robot": "#d1495b", "vision_language": "#2e6f95"}
LABELS = {"robot": "robot actions", "vision_language": "vision and language"}
CHARACTERS = 56  # that fit beside each other in the usual size
ONE_ARM = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]  # what most data sets' seven values are


def plot_training(history: list[dict[str, Any]], path: str | Path, title: str) -> Path:
    """Loss and accuracy per source over steps, from a trainer's log history, as a PNG."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)

    def plot(axes: Any, key: str, label: str, linestyle: str = "-") -> None:
        logged = [entry for entry in history if key in entry]
        steps, values = [entry["step"] for entry in logged], [entry[key] for entry in logged]
        axes.plot(steps, values, color=COLOURS[key.partition("/")[0]], label=label, linestyle=linestyle)

    for source, label in LABELS.items():
        plot(losses, f"{source}/loss", label)
        plot(accuracies, f"{source}/token_accuracy", f"{label}, tokens")
    plot(accuracies, "robot/sign_accuracy", "robot actions, signs", "--")
    losses.set(xlabel="step", ylabel="nats per token", yscale="log", title="loss per source, unweighted")
    accuracies.set(xlabel="step", ylabel="share right", ylim=(0, 1.02), title="accuracy")
    for axes in (losses, accuracies):
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    return Path(path)


def draw_prediction(
    image: Image.Image,
    instruction: str,
    prediction: Any,
    path: str | Path,
    note: str = "",
    recorded: np.ndarray | None = None,
) -> Path:
    """A picture, what was asked, the action string with every character coloured by its probability, and the values.

    Bars show the normalised action, so that metres, radians and a gripper fit one axis; their labels are in units. Of
    a chunk they show the first step, and so do the characters. Seven values are called those of one arm, others by
    their number.

    Args:
        prediction: an `ActionPrediction` of one observation in signed style, one token per character.
        note: a line under it.
        recorded: float [D], the normalised action a data set holds for this picture, drawn beside.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    left.imshow(image)
    left.axis("off")
    left.set_title(instruction, fontsize=10, wrap=True)
    action, units = prediction.normalized[0, 0], prediction.actions[0, 0]
    names = ONE_ARM if len(action) == len(ONE_ARM) else [str(number) for number in range(len(action))]
    places, shift = np.arange(len(action)), 0.0 if recorded is None else 0.2
    bars = right.bar(places - shift, action, width=0.4, color=COLOURS["robot"], label="predicted")
    size = 8 if len(action) <= len(ONE_ARM) else 5
    right.bar_label(bars, [f"{value:+.4f}" for value in units], fontsize=size, padding=2)
    if recorded is not None:
        right.bar(places + shift, recorded, width=0.4, color="grey", label="recorded in the data set")
    right.set_xticks(places, names)
    right.set(ylim=(-1.15, 1.15), ylabel="normalised; labels in the data set's units")
    right.legend()
    text = prediction.text[0] if len(prediction.actions[0]) == 1 else prediction.text[0].split("\n")[0]
    _write_coloured(right, text, prediction.digit_probabilities[0])
    figure.supxlabel(note, fontsize=8)
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
