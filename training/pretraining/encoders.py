"""Pretrains the vision encoders of a recipe that has a `pretraining` section, before its language model sees them.

    WORK_DIR/<recipe name>/encoders/dino/encoder.safetensors    the weights, under the names of transformers
    WORK_DIR/<recipe name>/encoders/dino/training_log.json      figures as they went, provenance
    WORK_DIR/<recipe name>/encoders/dino/checkpoints/           a killed run goes on from here
    WORK_DIR/<recipe name>/encoders/siglip/...                  the same

Each encoder learns by itself (`token_heads.py`). Figures are means over the tokens of objects, of pictures that are
mirrored and shifted like those of training.
"""

import dataclasses
import os
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer

from gen_vla.modeling import OpenVLAPlusConfig
from gen_vla.modeling.dual_vision_tower import prefix_tokens, second_to_last_block_encoder
from gen_vla.processors import OpenVLAPlusImageProcessor
from gen_vla.training.model_building import encoder_file, model_sizes
from gen_vla.training.pretraining.labelled_pictures import LabelCollator, LabelledPictures
from gen_vla.training.pretraining.token_heads import TokenHead, TokenTargets
from gen_vla.training.provenance.origin import provenance, with_provenance
from gen_vla.training.recipes.loading import as_settings
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.run import training_arguments
from gen_vla.training.run_folder import last_checkpoint
from gen_vla.training.storage.json_files import read_json, write_json


ENCODERS = ("dino", "siglip")
SETTINGS, LOG = "pretraining.json", "training_log.json"
LARGEST_SHIFT = 8  # pixels


@torch.no_grad()
def start_with_sines(encoder: Any) -> None:
    """Overwrites the patches' position embeddings of a DINOv2 or a SigLIP encoder of transformers."""
    embeddings = encoder.embeddings
    if hasattr(embeddings, "position_embedding"):
        places = embeddings.position_embedding.weight
    else:
        places = embeddings.position_embeddings[0, 1:]  # the first one is CLS's
    places.copy_(sine_positions(round(len(places) ** 0.5), places.shape[1]))


def sine_positions(grid: int, width: int) -> torch.Tensor:
    """float32 [grid x grid, width]: half of the channels for the row, half for the column, as in MAE."""
    if width % 4:
        raise ValueError(f"got encoders of width {width}, expected a multiple of 4 for positions of sines and cosines")
    angles = torch.arange(grid)[:, None] / 100.0 ** (torch.arange(width // 4) / (width // 4))
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = line.repeat_interleave(grid, dim=0), line.repeat(grid, 1)
    return torch.cat([rows, columns], dim=1)


class TokenLabelModel(nn.Module):
    def __init__(self, name: str, config: Any, colours: int, shapes: int):
        super().__init__()
        self.encoder = second_to_last_block_encoder(config)
        start_with_sines(self.encoder)
        self.prefix_tokens = prefix_tokens(config)
        self.head = TokenHead(config.hidden_size, colours + 2, shapes + 2, named=name == "siglip")

    def forward(self, pixel_values: torch.Tensor, **targets: torch.Tensor) -> dict[str, Any]:
        features = self.encoder(pixel_values=pixel_values).last_hidden_state[:, self.prefix_tokens :]
        wanted = TokenTargets(**targets)
        return {"loss": self.head.loss(features, wanted), "right": self.head.right(features, wanted)}


class TokenLabelTrainer(Trainer):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.right: dict[str, list[torch.Tensor]] = defaultdict(list)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        outputs = model(**inputs)
        for figure, values in outputs["right"].items():
            self.right[figure].append(values.float())
        return outputs["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        logs |= {name: round(torch.cat(values).mean().item(), 4) for name, values in self.right.items()}
        self.right.clear()
        super().log(logs, *args, **kwargs)


def pretrain_encoders(recipe: Recipe, work_dir: Path, processes: int = 1) -> None:
    """Pretrains both encoders, one after the other or side by side, as far as that is not done.

    Raises:
        FileNotFoundError: if a data set is missing.
        ValueError: if a data set does not say where objects are, or if what is there was pretrained otherwise.
    """
    pretrain = partial(pretrain_encoder, recipe=recipe, work_dir=work_dir)
    if processes == 1:
        for name in ENCODERS:
            pretrain(name)
        return
    threads = max((os.cpu_count() or 1) // 2, 1)
    workers = ProcessPoolExecutor(2, get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,))
    with workers:
        list(workers.map(pretrain, ENCODERS))


def pretrain_encoder(name: str, recipe: Recipe, work_dir: Path) -> None:
    weights, whole = encoder_file(recipe, work_dir, name), as_settings(recipe)
    data = {key: whole["data"][key] for key in ("image_size", "vision_language")}
    settings = {"pretraining": whole["pretraining"], "encoder": whole["model"][name], "data": data}
    folder, record = weights.parent, weights.parent / SETTINGS
    if record.is_file() and read_json(record) != settings:
        raise ValueError(
            f"got {folder} pretrained with other settings than those of {recipe.name}, expected the same; delete it, "
            "or use another work folder"
        )
    if weights.is_file():
        return
    pictures = LabelledPictures([work_dir / source.path for source in recipe.data.questions])
    trainer = encoder_trainer(name, recipe, pictures, folder / "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, settings)
    last = last_checkpoint(folder / "checkpoints")
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    write_json(folder / LOG, with_provenance({"history": trainer.state.log_history}, provenance()))
    model: Any = trainer.model
    save_file(model.encoder.state_dict(), weights)


def encoder_trainer(name: str, recipe: Recipe, pictures: LabelledPictures, checkpoints: Path) -> TokenLabelTrainer:
    recipe = dataclasses.replace(recipe, training=recipe.pretraining)
    size = recipe.data.image_size
    torch.manual_seed(recipe.training.seed)
    config = OpenVLAPlusConfig(**model_sizes(recipe.model, size, vocab_size=8)).encoder_configs[name]
    both = OpenVLAPlusImageProcessor()
    own = ENCODERS.index(name)
    image_processor = OpenVLAPlusImageProcessor(size, [both.means[own]], [both.stds[own]])
    return TokenLabelTrainer(
        model=TokenLabelModel(name, config, *pictures.classes),
        args=training_arguments(recipe, checkpoints),
        train_dataset=pictures,
        data_collator=LabelCollator(image_processor, size // config.patch_size, *pictures.classes, LARGEST_SHIFT),
    )
