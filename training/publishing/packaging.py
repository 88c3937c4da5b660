"""Puts a trained model among those that come with the package, in half precision, with its measured figures.

    python -m gen_vla.training.publishing.packaging outputs/mini-vlm results/questions_*.json

writes `training/base_models/mini-vlm/`, which recipes name as `initial_model: package://mini-vlm`. The files are
results of `gen-vla evaluate scene_questions`, which are summed up in the folder's README.md.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gen_vla.training.checkpoints import WEIGHTS, load_model, load_processor
from gen_vla.training.model_building import PACKAGED_MODELS
from gen_vla.training.provenance.private_paths import publishable
from gen_vla.training.publishing.assembling import RECORDS, cast_weights, copy_record
from gen_vla.training.recipes.loading import load_recipe


LOG = "training_log.json"
LARGEST = 15e6  # bytes: it is part of every installation


def package_model(checkpoint: Path, results: Sequence[Path], target: Path | None = None) -> Path:
    recipe = load_recipe(checkpoint / "recipe.yaml")
    target = target or PACKAGED_MODELS / recipe.name
    columns = {path.stem: question_figures(path) for path in results}
    model, processor = load_model(checkpoint), load_processor(checkpoint)
    cast_weights(model, torch.float16)
    if (size := 2 * sum(weight.numel() for weight in model.parameters())) > LARGEST:
        raise ValueError(f"got {checkpoint} with {size / 1e6:.1f} MB of weights, expected at most {LARGEST / 1e6:.0f}")
    model.save_pretrained(target)
    processor.save_pretrained(target)
    for code in target.glob("*.py"):  # for the Hub; here it is the package's own
        code.unlink()
    (target / WEIGHTS).chmod(0o644)
    for name in RECORDS:
        if (checkpoint / name).is_file():
            copy_record(checkpoint / name, target / name)
    for part in earlier_parts(checkpoint):
        copy_record(part / LOG, target / f"{part.name}_{LOG}")
    for part in (checkpoint, *earlier_parts(checkpoint)):
        for log in part.glob(f"encoders/*/{LOG}"):
            copy_record(log, target / f"{log.parent.name}_{LOG}")
    parameters = sum(weight.numel() for weight in model.parameters())
    (target / "README.md").write_text(card(recipe, parameters, columns), encoding="utf-8")
    return target


def earlier_parts(checkpoint: Path) -> list[Path]:
    """The runs of the same work folder that a model of several parts began with, the latest first."""
    start = load_recipe(checkpoint / "recipe.yaml").model.initial_model
    if start is None or not ((before := checkpoint.parent / start) / "recipe.yaml").is_file():
        return []
    return [before, *earlier_parts(before)]


def question_figures(path: Path) -> dict[str, str]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if "kinds" not in found:
        raise ValueError(f"got {path} without kinds of questions, expected a file of gen-vla evaluate scene_questions")
    figures = {}
    for kind, score in {**found["kinds"], "all": found["total"]}.items():
        off = "" if score.get("median_cm") is None else f", {score['median_cm']:.1f} cm off"
        figures[kind] = f"{100 * score['right'] / score['n']:.0f} % of {score['n']}{off}"
    return figures


def card(recipe: Any, parameters: int, columns: dict[str, dict[str, str]]) -> str:
    lines = [
        f"# {recipe.name}",
        "",
        f"{recipe.description} {parameters / 1e6:.1f} million parameters in float16, seed {recipe.training.seed}. "
        f"Recipes start from it with `initial_model: package://{recipe.name}`.",
        "",
        "Right answers to questions about held-out scenes (a point: within 3 cm; its median error beside it):",
        "",
        "| question | " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    kinds = list(next(iter(columns.values()), {}))
    lines += [f"| {kind} | " + " | ".join(column[kind] for column in columns.values()) + " |" for kind in kinds]
    return publishable("\n".join([*lines, ""]))


if __name__ == "__main__":
    print(f"Wrote {package_model(Path(sys.argv[1]), list(map(Path, sys.argv[2:])))}")
