"""`gen-vla record SIMULATOR CONTENT OUTPUT`, and recording of the simulated data sets that a recipe names."""

import importlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option


if TYPE_CHECKING:
    from gen_vla.training.recipes.schema import Recipe

RECORDERS = {  # imported when asked for: they load the simulator, an extra
    "drawers": "gen_vla.evaluation.drawers.recording",
    "tabletop": "gen_vla.evaluation.simulation.recording",
}
RECORDING_SETTINGS = "recording_settings.json"  # what a recorded data set was asked for, beside it
NOT_PRINTED = ("layouts", "provenance")  # of the metadata: hundreds of digests, and what is known on the spot

Content = Annotated[Literal["demonstrations", "questions"], Argument(help="What to record.")]
OutputFolder = Annotated[Path, Argument(help="The folder of the data set.")]
EpisodesPerTask = Annotated[int, Option(help="Demonstrations: successes to keep.")]
Count = Annotated[int, Option(help="Questions: how many.")]
Seed = Annotated[int, Option(help="First seed; questions from 1000000 on are held out.")]
Workers = Annotated[int, Option(help="Processes (the data do not depend on it).")]
ImageSize = Annotated[int, Option(help="Pixels a side.")]
Clean = Annotated[bool, Option("--clean", help="Demonstrations: do not disturb the expert.")]
Paraphrase = Annotated[bool, Option("--paraphrase", help="Demonstrations: several wordings per task.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace a finished data set.")]

app = typer.Typer(help="Record demonstrations, or questions for co-training, in a simulator.", no_args_is_help=True)


@app.command()
def tabletop(
    content: Content,
    output_dir: OutputFolder,
    episodes_per_task: EpisodesPerTask = 200,
    count: Count = 4000,
    seed: Seed = 0,
    workers: Workers = 2,
    image_size: ImageSize = 112,
    clean: Clean = False,
    paraphrase: Paraphrase = False,
    overwrite: Overwrite = False,
) -> None:
    """Tabletop scenes: pick, move near, open and close a drawer."""
    shared = {"seed": seed, "workers": workers, "image_size": image_size, "overwrite": overwrite}
    demonstrations = {"episodes_per_task": episodes_per_task, "noise": not clean, "paraphrase": paraphrase}
    record("tabletop", content, output_dir, shared, demonstrations, {"count": count})


@app.command()
def drawers(
    content: Content,
    output_dir: OutputFolder,
    episodes_per_task: EpisodesPerTask = 160,
    count: Count = 4000,
    seed: Seed = 0,
    workers: Workers = 2,
    image_size: ImageSize = 96,
    clean: Clean = False,
    paraphrase: Paraphrase = False,
    overwrite: Overwrite = False,
    variation: Annotated[
        Literal["none", "modest", "full"], Option(help="Demonstrations: looks of scenes.")
    ] = "modest",
    start: Annotated[
        Literal["stock", "half-open"], Option(help="Demonstrations: how far open the drawer starts.")
    ] = "stock",
) -> None:
    """Meta-World drawers: open and close."""
    shared = {"seed": seed, "workers": workers, "image_size": image_size, "overwrite": overwrite}
    demonstrations = {"episodes_per_task": episodes_per_task, "noise": not clean, "paraphrase": paraphrase}
    demonstrations |= {"variation": variation, "start": start}
    record("drawers", content, output_dir, shared, demonstrations, {"count": count})


def record(
    simulator: str,
    content: str,
    output_dir: Path,
    shared: dict[str, Any],
    demonstrations: dict[str, Any],
    questions: dict[str, Any],
) -> None:
    """Records one data set, with the shared settings and those of its content, and prints its metadata."""
    own = demonstrations if content == "demonstrations" else questions
    metadata = recorder(simulator, content)(output_dir, **own, **shared)
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
