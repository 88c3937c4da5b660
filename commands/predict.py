"""`gen-vla predict MODEL IMAGE... INSTRUCTION`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from gen_vla.commands.options import Dtype, Model, load_any


if TYPE_CHECKING:
    from PIL.Image import Image


def predict(
    model: Model,
    images: Annotated[
        list[str],
        Argument(
            metavar="IMAGE",
            help="A picture file; of a model of several cameras one each, in the order of training or as CAMERA=FILE.",
        ),
    ],
    instruction: Annotated[str, Argument(help='For example "close the drawer".')],
    unnorm_key: Annotated[str | None, Option(help="The data set whose units are wanted.")] = None,
    dtype: Dtype = "auto",
    state: Annotated[
        str | None,
        Option(metavar="NUMBERS", help="The robot's state, as in 0.1,0.2,0.3, for a model that takes it."),
    ] = None,
    picture: Annotated[Path | None, Option(help="Draw the prediction into this PNG.")] = None,
) -> None:
    """One action for one picture, or one per camera, as JSON."""
    from gen_vla.evaluation.policies.states import state_arguments, takes_state

    pictures = read_pictures(images)
    loaded, processor = load_any(model, dtype)
    if state is not None and not takes_state(processor):
        raise ValueError(f"got --state {state}, expected none: {model} was trained without the robot's state")
    told = state_arguments(processor, None if state is None else read_numbers(state), unnorm_key)
    inputs = processor.action_inputs(pictures, instruction, **told)
    prediction = loaded.predict_actions(**inputs, unnorm_key=unnorm_key)
    statistics = loaded.get_action_stats(unnorm_key)
    described: dict[str, Any] = {
        name: statistics[name] for name in ("names", "units", "fps", "displacements", "relative") if name in statistics
    }
    print(json.dumps({"action": prediction.actions[0].tolist(), "text": prediction.text[0], **described}))
    if picture:
        from gen_vla.evaluation.policies.pictures import draw_prediction, side_by_side

        shown = side_by_side(list(pictures.values()) if isinstance(pictures, dict) else pictures)
        draw_prediction(shown, instruction, prediction, picture)


def read_numbers(text: str) -> list[float]:
    """Numbers with commas or spaces between; raises `ValueError` for anything else."""
    try:
        return [float(number) for number in text.replace(",", " ").split()]
    except ValueError as error:
        raise ValueError(f"got --state {text!r}, expected numbers with commas between, as in 0.1,-0.2,0.3") from error


def read_pictures(files: Sequence[str]) -> "list[Image] | dict[str, Image]":
    """The pictures in RGB: in the order of the files, or by camera where they are written CAMERA=FILE.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a file is no picture, is cut off, or holds floating-point numbers; if only some files have a
            camera, or two have the same.
    """
    from gen_vla.processors.rgb_pictures import to_rgb

    named = [file.split("=", 1) for file in files if "=" in file and not Path(file).is_file()]
    if not named:
        return [to_rgb(Path(file)) for file in files]
    cameras = [camera for camera, _ in named]
    if len(named) < len(files) or len(set(cameras)) < len(cameras):
        raise ValueError(
            f"got the pictures {' '.join(files)}, expected FILE or CAMERA=FILE for all of them, each camera once"
        )
    return {camera: to_rgb(Path(file)) for camera, file in named}
