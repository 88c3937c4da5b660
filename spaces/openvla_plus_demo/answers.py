"""What the page's tabs do: a visitor's pictures and text in, what is shown and what programs get out.

Pictures come one per camera, in the order of `Answers.cameras`.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from action_html import Compared, action_card, comparison, headline, seconds
from changed_pictures import changed
from motion_pictures import ORANGE, TEAL, Arrow, draw_arrows, draw_in_space, with_others
from picture_input import is_squeezed
from PIL import Image
from policy import DIMENSIONS, Policy, PredictedAction
from robot_frames import frame_of, place_of_arrow


UNITS = ("m", "m", "m", "rad", "rad", "rad", "0 closed .. 1 open")


def for_visitors(answer: Callable[..., Any]) -> Callable[..., Any]:
    """What is wrong with a visitor's input becomes a message on the page; it is written to be read."""

    @functools.wraps(answer)
    def answered(*arguments: Any) -> Any:
        try:
            return answer(*arguments)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return answered


class Answers:
    def __init__(self, policy: Policy, baseline: Policy | None):
        """Takes a model, and a second one if there is one to compare it with; raises `ValueError` if the two cannot be
        shown the same pictures, or have no data set in common."""
        self.policy, self.baseline, self.cameras = policy, baseline, policy.cameras
        self.shared_data_sets = list(policy.data_sets)
        if baseline:
            check_comparable(policy, baseline)
            self.shared_data_sets = [name for name in policy.data_sets if name in baseline.data_sets]
        self.arrow_at = place_of_arrow(self.cameras)

    @for_visitors
    def act(
        self, pictures: Sequence[Any], instruction: str, data_set: str
    ) -> tuple[dict[str, Any], str, Any, Any, str]:
        """An action: as plain values, as a sentence, as an arrow on the picture, in space, digit by digit."""
        check_pictures(pictures, self.cameras)
        action = self.policy.act(pictures, instruction, data_set)
        frame, arrow = frame_of(data_set), Arrow(path_of(action), TEAL)
        on_picture = draw_arrows(pictures[self.arrow_at], [arrow], frame, self._longest(action))
        in_space = draw_in_space(action.steps, frame)
        return plain_values(action), headline(action), on_picture, in_space, action_card(action)

    @for_visitors
    def ask(self, picture: Any, question: str) -> tuple[str, str]:
        check_pictures([picture])
        answer, milliseconds = self.policy.ask(picture, question)
        return answer or "(the model wrote nothing)", f"Answered in {seconds(milliseconds)}."

    @for_visitors
    def compare(
        self, pictures: Sequence[Any], instruction: str, data_set: str, change: str, strength: float
    ) -> tuple[dict[str, Any], Any, Any, str]:
        """Two models on pictures and on changed copies: as plain values, as two pictures, as a table."""
        assert self.baseline is not None, "the tab is only there with a second model"
        check_pictures(pictures, self.cameras)
        copies = [changed(picture, change, strength) for picture in pictures]
        models = []
        for name, colour, policy in zip(self.names(), (TEAL, ORANGE), (self.policy, self.baseline)):
            order = [self.cameras.index(camera) for camera in policy.cameras] or [0]
            acted = (policy.act([of[at] for at in order], instruction, data_set) for of in (pictures, copies))
            models.append(Compared(name, colour, *acted))
        plain = [
            {"name": m.name, "picture": plain_values(m.original), "changed_copy": plain_values(m.changed)}
            for m in models
        ]
        drawn = (
            self._with_arrows(pictures, models, [model.original for model in models]),
            self._with_arrows(copies, models, [model.changed for model in models]),
        )
        return {"models": plain}, *drawn, comparison(models)

    def names(self) -> list[str]:
        """What the models are called on the page: the last part of their names, numbered where these are the same."""
        short = [Path(policy.name).name for policy in (self.policy, self.baseline) if policy]
        return short if len(set(short)) == len(short) else [f"{name} ({i})" for i, name in enumerate(short, start=1)]

    def _with_arrows(
        self, pictures: Sequence[Any], models: Sequence[Compared], actions: Sequence[PredictedAction]
    ) -> Image.Image:
        """The picture that arrows are drawn on with one per model, above the pictures of other cameras."""
        arrows = [Arrow(path_of(action), model.colour, model.name) for model, action in zip(models, actions)]
        first = models[0].original
        drawn = draw_arrows(pictures[self.arrow_at], arrows, frame_of(first.data_set), self._longest(first))
        others = [index for index in range(len(self.cameras)) if index != self.arrow_at]
        return with_others(drawn, [(self.cameras[index], pictures[index]) for index in others])

    def _longest(self, action: PredictedAction) -> float:
        """Metres that the longest arrow stands for: the longest movement of the data set, for each step."""
        statistics = self.policy.model.get_action_stats(action.data_set)
        ends = np.maximum(np.abs(statistics["q01"][:3]), np.abs(statistics["q99"][:3]))
        return max(float(np.linalg.norm(ends)), 1e-6) * len(action.steps)


def check_comparable(policy: Policy, baseline: Policy) -> None:
    if set(policy.cameras) != set(baseline.cameras):
        taken = [", ".join(model.cameras) or "a single one" for model in (policy, baseline)]
        raise ValueError(
            f"got {policy.name} with the cameras {taken[0]} and {baseline.name} with {taken[1]}, expected the same "
            "ones: both are shown the same pictures; leave the second model out or name another"
        )
    if not set(policy.data_sets) & set(baseline.data_sets):
        raise ValueError(
            f"got {policy.name} with statistics of {', '.join(policy.data_sets)} and {baseline.name} with those of "
            f"{', '.join(baseline.data_sets)}, expected a data set in common: only then are their movements in the "
            "same units; leave the second model out or name another"
        )


def check_pictures(pictures: Sequence[Any], cameras: Sequence[str] = ()) -> None:
    """Says what is missing, or what will be hard to see; without `cameras` it is one picture of any."""
    missing = [camera for camera, picture in zip(cameras, pictures) if picture is None]
    if missing:
        *others, last = missing
        named = f"{', '.join(others)} and {last}" if others else last
        seen = f"this model looks through {len(cameras)} cameras at the same moment"
        raise gr.Error(f"Choose a picture of {named} first: {seen}.", print_exception=False)
    if pictures[0] is None:
        raise gr.Error("Choose a picture first: upload one, take one, or tap an example.", print_exception=False)
    for index, picture in enumerate(pictures):
        if is_squeezed(picture):
            which = f"The picture of {cameras[index]}" if cameras else "This picture"
            gr.Warning(f"{which} is much longer than it is wide. The model sees it squeezed to a square.")


def path_of(action: PredictedAction) -> np.ndarray:
    """Where the hand is after each step, float [T, 3] in metres from where it was."""
    return np.cumsum(action.steps[:, :3], axis=0)


def plain_values(action: PredictedAction) -> dict[str, Any]:
    return {
        "text": action.text,
        "action": np.round(action.steps.astype(float), 6).tolist(),
        "names": list(DIMENSIONS),
        "units": list(UNITS),
        "data_set": action.data_set,
        "tokens": [piece.text for piece in action.pieces],
        "probabilities": [round(piece.probability, 4) for piece in action.pieces],
        "milliseconds": round(action.milliseconds, 1),
        "forward_passes": action.forward_passes,
    }
