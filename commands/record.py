"""`gen-vla record CONTENT OUTPUT`, and recording of the simulated data sets that a recipe names."""

import importlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from gen_vla.commands.options import entries


if TYPE_CHECKING:
    from gen_vla.training.recipes.schema import Recipe

RECORDING_SETTINGS = "recording_settings.json"  # what a recorded data set was asked for, beside it
NOT_PRINTED = ("layouts", "provenance")  # of the metadata: hundreds of digests, and what is known on the spot


def record(
    content: Annotated[Literal["demonstrations", "questions", "libero"], Argument(help="What.")],
    output_dir: Annotated[Path, Argument(help="The folder of the data set.")],
    episodes_per_task: Annotated[int, Option(help="Demonstrations: successes to keep.")] = 200,
    count: Annotated[int, Option(help="Questions: how many.")] = 4000,
    looks: Annotated[
        Literal["home", "broad", "unseen"] | None,
        Option(
            help="One look, hundreds for co-training, or others to judge by (default: home for demonstrations, "
            "broad for questions)."
        ),
    ] = None,
    kinds: Annotated[str | None, Option(help="Questions: kinds of them, as shape,colour (default: all).")] = None,
    seed: Annotated[int, Option(help="First seed; from 1000000 on data are held out, to judge by.")] = 0,
    workers: Annotated[int, Option(help="Processes (the data do not depend on it).")] = 2,
    image_size: Annotated[int, Option(help="Pixels a side.")] = 96,
    clean: Annotated[bool, Option("--clean", help="Demonstrations: do not disturb the expert.")] = False,
    paraphrase: Annotated[bool, Option("--paraphrase", help="Demonstrations: several wordings per task.")] = False,
    familiar: Annotated[
        bool,
        Option(
            "--familiar",
            help="Demonstrations: leave out yellow and purple things, mugs and sponges, by which `--modes "
            "new_objects` then judges.",
        ),
    ] = False,
    tasks: Annotated[
        str | None,
        Option(
            help="By commas, of the tabletop as open_drawer (default: all), of LIBERO as spatial/0 (default: "
            "spatial/0,spatial/1)."
        ),
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a finished data set.")] = False,
) -> None:
    """Record demonstrations on the tabletop or in LIBERO, or questions about tabletop scenes for co-training."""
    settings: dict[str, Any] = {"seed": seed, "workers": workers, "image_size": image_size, "overwrite": overwrite}
    if looks and content == "libero":
        raise ValueError(f"got --looks {looks} for libero, expected none: its scenes have one look each")
    for option, given in (("--paraphrase", paraphrase), ("--familiar", familiar)):
        if given and content != "demonstrations":
            raise ValueError(f"got {option} for {content}, expected it for demonstrations alone; leave it out")
    if looks:
        settings["looks"] = looks
    if content == "questions":
        settings |= {"count": count, "kinds": entries(kinds) if kinds else None}
    else:
        settings |= {"episodes_per_task": episodes_per_task, "noise": not clean}
        settings |= {"tasks": tuple(entries(tasks))} if tasks else {}
        settings |= {} if content == "libero" else {"paraphrase": paraphrase, "familiar": familiar}
    metadata = recorder(content)(output_dir, **settings)
    print(json.dumps({key: value for key, value in metadata.items() if key not in NOT_PRINTED}, indent=2))


def recorder(content: str) -> Any:
    """The function that records such content; imported when asked for, since it loads the simulator."""
    return getattr(importlib.import_module(f"gen_vla.evaluation.recording.{content}"), f"record_{content}")


def record_missing_data(recipe: "Recipe", work_dir: Path) -> None:
    """Records the data sets that are missing and that the recipe says how to record (main process only).

    Raises:
        ValueError: if a data set is there that was recorded with other settings.
    """
    from gen_vla.training.storage.json_files import write_json

    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        return
    sources = [(source, "demonstrations") for source in recipe.data.robot]
    sources += [(source, "questions") for source in recipe.data.questions]
    for source, content in sources:
        if source.record is None:
            continue
        folder = work_dir / source.path
        settings = {**asdict(source.record), "image_size": recipe.data.image_size}
        if folder.exists():
            check_recording(folder, settings, type(source.record))
            continue
        recorder(content)(folder, **settings)
        write_json(folder / RECORDING_SETTINGS, settings)


def check_recording(folder: Path, settings: dict[str, Any], kind: type) -> None:
    """Raises `ValueError` if a folder says that it was recorded with other settings; one that there was none of then
    counts as its default. `kind` is the section `record` of a recipe."""
    path = folder / RECORDING_SETTINGS
    if not path.is_file():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    before = asdict(kind(**{name: value for name, value in found.items() if name != "image_size"}))
    if {**before, "image_size": found["image_size"]} != settings:
        raise ValueError(
            f"got {folder} recorded with {found}, expected {settings}; delete the folder or use another work folder"
        )
