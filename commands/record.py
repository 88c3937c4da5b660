"""`gen-vla record SIMULATOR CONTENT OUTPUT`, and recording of the simulated data sets that a recipe names."""

import importlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option


if TYPE_CHECKING:
    from gen_vla.training.recipes.schema import Recipe

RECORDERS = {  # imported when asked for: they load the simulator, an extra
    "drawers": "gen_vla.evaluation.drawers.recording",
    "tabletop": "gen_vla.evaluation.recording.%s",
}
RECORDING_SETTINGS = "recording_settings.json"  # what a recorded data set was asked for, beside it
NOT_PRINTED = ("layouts", "provenance")  # of the metadata: hundreds of digests, and what is known on the spot


def record(
    simulator: Annotated[Literal["tabletop", "drawers"], Argument(help="Where.")],
    content: Annotated[Literal["demonstrations", "questions"], Argument(help="What.")],
    output_dir: Annotated[Path, Argument(help="The folder of the data set.")],
    episodes_per_task: Annotated[
        int | None, Option(help="Demonstrations: successes to keep (default: tabletop 200, drawers 160).")
    ] = None,
    count: Annotated[int, Option(help="Questions: how many.")] = 4000,
    seed: Annotated[int, Option(help="First seed; questions from 1000000 on are held out.")] = 0,
    workers: Annotated[int, Option(help="Processes (the data do not depend on it).")] = 2,
    image_size: Annotated[int | None, Option(help="Pixels a side (default: tabletop 112, drawers 96).")] = None,
    clean: Annotated[bool, Option("--clean", help="Demonstrations: do not disturb the expert.")] = False,
    paraphrase: Annotated[bool, Option("--paraphrase", help="Demonstrations: several wordings per task.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a finished data set.")] = False,
    variation: Annotated[
        Literal["none", "modest", "full"] | None, Option(help="Drawer demonstrations: looks (default: modest).")
    ] = None,
    start: Annotated[
        Literal["stock", "half-open"] | None, Option(help="Drawer demonstrations: how far open (default: stock).")
    ] = None,
) -> None:
    """Record demonstrations in a simulator, or questions about its scenes for co-training."""
    if simulator != "drawers" and (variation or start):
        raise ValueError("got --variation or --start, expected them for drawers only")
    settings: dict[str, Any] = {"seed": seed, "workers": workers, "image_size": image_size, "overwrite": overwrite}
    if content == "questions":
        settings |= {"count": count}
    else:
        settings |= {"episodes_per_task": episodes_per_task, "noise": not clean, "paraphrase": paraphrase}
        settings |= {"variation": variation, "start": start}
    chosen = {name: value for name, value in settings.items() if value is not None}
    metadata = recorder(simulator, content)(output_dir, **chosen)
    print(json.dumps({key: value for key, value in metadata.items() if key not in NOT_PRINTED}, indent=2))


def recorder(simulator: str, content: str) -> Any:
    """The function that records demonstrations or questions in a simulator."""
    return getattr(importlib.import_module(RECORDERS[simulator]), f"record_{content}")


def record_missing_data(recipe: "Recipe", work_dir: Path) -> None:
    """Records the data sets that are missing and that the recipe says how to record (main process only).

    Raises:
        ValueError: if a data set is there that was recorded with other settings.
    """
    from gen_vla.training.run_folder import write_json

    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        return
    sources = [(source, "demonstrations") for source in recipe.data.robot]
    sources += [(source, "questions") for source in recipe.data.questions]
    for source, content in sources:
        if source.record is None:
            continue
        folder = work_dir / source.path
        settings = {**source.record.arguments(), "image_size": recipe.data.image_size}
        if folder.exists():
            check_recording(folder, settings)
            continue
        recorder(source.record.simulator, content)(folder, **settings)
        write_json(folder / RECORDING_SETTINGS, settings)


def check_recording(folder: Path, settings: dict[str, Any]) -> None:
    """Raises `ValueError` if a folder says that it was recorded with other settings."""
    path = folder / RECORDING_SETTINGS
    if path.is_file() and (found := json.loads(path.read_text(encoding="utf-8"))) != settings:
        raise ValueError(
            f"got {folder} recorded with {found}, expected {settings}; delete the folder or use another work folder"
        )
