"""Records the simulated data sets that a recipe asks for and that are missing; a run itself only reads."""

import importlib
import json
import os
from pathlib import Path
from typing import Any

from gen_vla.training.recipes.data_schema import RobotSource
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.run_folder import write_json


RECORDERS = {  # imported when asked for: they load the simulator, an extra
    "drawers": "gen_vla.evaluation.drawers.recording",
    "tabletop": "gen_vla.evaluation.simulation.recording",
}
RECORDING_SETTINGS = "recording_settings.json"  # what a recorded data set was asked for, beside it


def record_missing_data(recipe: Recipe, work_dir: Path) -> None:
    """Records the data sets that are missing and that the recipe says how to record (main process only).

    Raises:
        ValueError: if a data set is there that was recorded with other settings.
    """
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        return
    for source in [*recipe.data.robot, *recipe.data.questions]:
        if source.record is None:
            continue
        folder = work_dir / source.path
        settings = {**source.record.arguments(), "image_size": recipe.data.image_size}
        if folder.exists():
            check_recording(folder, settings)
            continue
        recording = importlib.import_module(RECORDERS[source.record.simulator])
        robot = isinstance(source, RobotSource)
        (recording.record_demonstrations if robot else recording.record_questions)(folder, **settings)
        write_json(folder / RECORDING_SETTINGS, settings)


def check_recording(folder: Path, settings: dict[str, Any]) -> None:
    """Raises `ValueError` if a folder says that it was recorded with other settings."""
    path = folder / RECORDING_SETTINGS
    if path.is_file() and (found := json.loads(path.read_text(encoding="utf-8"))) != settings:
        raise ValueError(
            f"got {folder} recorded with {found}, expected {settings}; delete the folder or use another work folder"
        )
