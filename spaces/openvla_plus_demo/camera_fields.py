"""One field per camera: how a page shows them, what programs call them, which example pictures they open with.

The example scenes were drawn from in front, from the side and from the hand. No robot's cameras stand just there, and
the page says so.
"""

import functools
import inspect
import keyword
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from picture_input import picture_input
from robot_frames import is_on_the_hand


EXAMPLES = Path(__file__).resolve().parent / "examples"
STANDING = ("", "_from_the_side")  # what is added to a scene's name; more cameras than views share them
ON_THE_HAND = "_from_the_hand"
FIELD_WIDTH = 150  # pixels at least, so that two stand beside each other on a phone
SEVERAL = (
    "What the robot's cameras see at the same moment, a picture of each. The examples' cameras stand elsewhere than "
    "this robot's."
)


def camera_fields(cameras: Sequence[str], tab: str, scene: str) -> list[gr.Image]:
    """A field per camera, or one for a single camera of any name; they open with a scene."""
    paths = scene_pictures(scene, cameras)
    if not cameras:
        return [picture_input("What the robot's camera sees", f"{tab}-picture", paths[0])]
    gr.Markdown(SEVERAL, elem_classes="note")
    with gr.Row(elem_classes="cameras"):
        return [
            picture_input(camera, f"{tab}-picture-{index}", path, height=200, min_width=FIELD_WIDTH, camera=camera)
            for index, (camera, path) in enumerate(zip(cameras, paths))
        ]


def scene_pictures(scene: str, cameras: Sequence[str]) -> list[str]:
    views, standing = [], 0
    for camera in cameras or [""]:
        if is_on_the_hand(camera):
            views.append(ON_THE_HAND)
            continue
        views.append(STANDING[standing % len(STANDING)])
        standing += 1
    return [str(EXAMPLES / f"{scene}{view}.png") for view in views]


def one_field_each(answer: Callable[..., Any], cameras: Sequence[str]) -> Callable[..., Any]:
    """`answer(pictures, ...)` as a function of one picture per camera, as the fields of a page are."""
    count = max(len(cameras), 1)

    @functools.wraps(answer)
    def answered(*values: Any) -> Any:
        return answer(values[:count], *values[count:])

    _, *others = inspect.signature(answer).parameters.values()
    names = parameter_names(cameras, [parameter.name for parameter in others])
    pictures = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    answered.__signature__ = inspect.Signature([*pictures, *others])  # type: ignore[attr-defined]
    return answered


def parameter_names(cameras: Sequence[str], taken: Sequence[str]) -> list[str]:
    """What programs call the pictures: the cameras' names, made fit to be names in Python."""
    names: list[str] = []
    for camera in cameras or ["picture"]:
        name = re.sub(r"\W", "_", camera)
        while not name.isidentifier() or keyword.iskeyword(name) or name in taken or name in names:
            name = f"camera_{name}"
        names.append(name)
    return names
