"""Pretrains the two towers of a recipe that has a `pretraining` section, before its language model sees them.

    WORK_DIR/<recipe name>/towers/tower.safetensors     the weights, under the names of `DualVisionTower`
    WORK_DIR/<recipe name>/towers/pretraining_log.json  the recipe's section, figures as they went, provenance
    WORK_DIR/<recipe name>/towers/checkpoints/          a killed run goes on from here

The figures are means at the tokens of objects in a batch that is mirrored and shifted like the rest.
"""

import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer

from gen_vla.modeling import OpenVLAPlusConfig, OpenVLAPlusForVision2Seq
from gen_vla.modeling.dual_vision_tower import DualVisionTower
from gen_vla.processors import OpenVLAPlusImageProcessor
from gen_vla.training.model_building import model_sizes, towers_file
from gen_vla.training.pretraining.labelled_pictures import LabelCollator, LabelledPictures
from gen_vla.training.pretraining.positions import start_with_sines
from gen_vla.training.pretraining.token_heads import TokenHead, TokenTargets
from gen_vla.training.provenance.origin import provenance, with_provenance
from gen_vla.training.recipes.loading import as_settings
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.run import training_arguments
from gen_vla.training.run_folder import last_checkpoint, write_json


SETTINGS, LOG = "pretraining.json", "pretraining_log.json"
LARGEST_SHIFT = 8  # pixels


class TokenLabelModel(nn.Module):
    """A dual tower with a head for each encoder."""

    def __init__(self, tower: DualVisionTower, colours: int, shapes: int):
        super().__init__()
        self.tower = tower
        self.heads = nn.ModuleDict(
            {
                name: TokenHead(width, colours + 2, shapes + 2, named=name == "siglip")
                for name, width in zip(tower.names, tower.widths)
            }
        )

    def forward(self, pixel_values: torch.Tensor, **targets: torch.Tensor) -> dict[str, Any]:
        """The loss, and how right each encoder's head is (`TokenHead.right`)."""
        wanted = TokenTargets(**targets)
        parts = self.tower(pixel_values).split(self.tower.widths, dim=-1)
        heads = {name: (self.heads[name], part) for name, part in zip(self.tower.names, parts)}
        loss = torch.stack([head.loss(part, wanted) for head, part in heads.values()]).sum()
        return {"loss": loss, "right": {name: head.right(part, wanted) for name, (head, part) in heads.items()}}


class TokenLabelTrainer(Trainer):
    """transformers' Trainer that also logs how right the heads are."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.sums: dict[str, list[torch.Tensor]] = defaultdict(list)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        outputs = model(**inputs)
        for name, figures in outputs["right"].items():
            for figure, values in figures.items():
                self.sums[f"{name}/{figure}"].append(values.float())
        return outputs["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        logs |= {name: round(torch.cat(values).mean().item(), 4) for name, values in self.sums.items()}
        self.sums.clear()
        super().log(logs, *args, **kwargs)


def pretrain_towers(recipe: Recipe, work_dir: Path, progress: bool = True) -> None:
    """Pretrains, or goes on with it, unless it is done.

    Raises:
        FileNotFoundError: if a data set is missing.
        ValueError: if a data set does not say where objects are, or if what is there was pretrained otherwise.
    """
    weights, settings = towers_file(recipe, work_dir), pretraining_settings(recipe)
    folder = weights.parent
    record = folder / SETTINGS
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) != settings:
        raise ValueError(
            f"got {folder} pretrained with other settings than those of {recipe.name}, expected the same; delete it, "
            "or use another work folder"
        )
    if weights.is_file():
        return
    pictures = LabelledPictures([work_dir / source.path for source in recipe.data.questions])
    trainer = tower_trainer(recipe, pictures, folder / "checkpoints", progress)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, settings)
    last = last_checkpoint(folder / "checkpoints")
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    write_json(folder / LOG, with_provenance({"history": trainer.state.log_history}, provenance()))
    save_file(trainer.model.tower.state_dict(), weights)


def pretraining_settings(recipe: Recipe) -> dict[str, Any]:
    """What the towers depend on."""
    settings = as_settings(recipe)
    questions = [source for source in settings["data"]["vision_language"]]
    return {"pretraining": settings["pretraining"], "model": settings["model"], "questions": questions}


def tower_trainer(recipe: Recipe, pictures: LabelledPictures, checkpoints: Path, progress: bool) -> Any:
    """The trainer of a recipe's towers from random weights, positions excepted."""
    recipe = dataclasses.replace(recipe, training=recipe.pretraining)
    torch.manual_seed(recipe.training.seed)
    sizes, size = model_sizes(recipe.model, recipe.data.image_size, vocab_size=8), recipe.data.image_size
    spread = {"initializer_range": recipe.model.initializer_range}
    tower = OpenVLAPlusForVision2Seq(OpenVLAPlusConfig(**sizes, **spread, frozen=None)).model.vision_tower
    for name in tower.names:
        start_with_sines(tower.get_submodule(name))
    grid = size // tower.dino.config.patch_size
    collator = LabelCollator(OpenVLAPlusImageProcessor(size), grid, *pictures.classes, LARGEST_SHIFT)
    return TokenLabelTrainer(
        model=TokenLabelModel(tower, *pictures.classes),
        args=training_arguments(recipe, checkpoints, progress),
        train_dataset=pictures,
        data_collator=collator,
    )
