"""Whole training runs in seconds: made-up data sets of a few rows, and a recipe with a model of width 16.

The rows have the columns and types of what the simulators record. As a script it trains recipes in an interpreter of
its own and writes down, per process, what that process really trained on:

    python tiny_runs.py PAUSE_AT_STEP WORK_DIR...         # or resumes them; then WORK_DIR/process-<rank>.json
"""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture
from safetensors import safe_open
from transformers import TrainerCallback

from gen_vla.training import trainer as co_trainer
from gen_vla.training.mixing import prepared_rows
from gen_vla.training.recipes.loading import Recipe, load_recipe
from gen_vla.training.run import run_recipe


ACTION_DIM = 3  # the last one is a gripper
QUESTIONS = {"how many blocks are there?": ("one", "two"), "is the drawer open?": ("yes", "no")}


def noise(seed: int, size: int = 16) -> Picture.Image:
    """A random RGB picture."""
    return Picture.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def write_robot_data(folder: Path, rows: int = 6, seed: int = 0, **columns: Any) -> Path:
    """Demonstrations: two episodes of the same length; `columns` replace those made up here."""
    rng = np.random.default_rng(seed)
    moves = rng.uniform(-0.05, 0.05, (rows, ACTION_DIM - 1))
    actions = np.column_stack([moves, np.arange(rows) % 2]).astype(np.float32)
    data = {
        "image": [noise(seed * 1000 + row) for row in range(rows)],
        "instruction": [("Open the drawer", "close the drawer")[row % 2] for row in range(rows)],
        "action": actions.tolist(),
        "episode_index": [row * 2 // rows for row in range(rows)],
        **columns,
    }
    types = {"image": Image(), "instruction": Value("string"), "action": List(Value("float32"), length=ACTION_DIM)}
    types |= {"state": List(Value("float32"))} if "state" in columns else {}
    features = Features({**types, "episode_index": Value("int64")})
    Dataset.from_dict(data, features=features).save_to_disk(str(folder))
    return folder


def write_questions(folder: Path, rows: int = 4, seed: int = 50, **columns: Any) -> Path:
    """Questions about pictures; `columns` replace those made up here."""
    asked = [list(QUESTIONS)[row % 2] for row in range(rows)]
    data = {
        "image": [noise(seed * 1000 + row) for row in range(rows)],
        "question": asked,
        "answer": [QUESTIONS[question][row // 2 % 2] for row, question in enumerate(asked)],
        **columns,
    }
    features = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    Dataset.from_dict(data, features=features).save_to_disk(str(folder))
    return folder


def tiny_settings(**overrides: Any) -> dict[str, Any]:
    """A recipe's settings; `overrides` by dotted name with `__` for the point."""
    encoder = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings: dict[str, Any] = {
        "name": "tiny",
        "description": "A recipe for tests.",
        "model": {
            "frozen": "siglip",
            "dino": {**encoder, "mlp_ratio": 2, "num_register_tokens": 2},
            "siglip": {**encoder, "intermediate_size": 32},
            "text": {**text, "num_key_value_heads": 2, "max_position_embeddings": 128},
        },
        "tokenizer": {"vocab_size": 400, "texts_from": ["robot", "questions"]},
        "actions": {"action_dim": ACTION_DIM, "decimals": 2, "binary_dims": [ACTION_DIM - 1]},
        "data": {
            "image_size": 16,
            "robot": [{"path": "robot", "key": "tiny"}],
            "vision_language": [{"path": "questions", "name": "scenes"}],
        },
        "training": {"steps": 8, "batch_size": 4, "learning_rate": 1e-2, "save_steps": 4, "logging_steps": 2}
        | {"gradient_checkpointing": False, "bf16": False},
    }
    for dotted, value in overrides.items():
        *parents, last = dotted.split("__")
        place = settings
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return settings


def tiny_vlm_model() -> dict[str, Any]:
    """The `model` section that makes `tiny_settings` a LLaVA with D."""
    siglip = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    text = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {
        "family": "vla_plus",
        "frozen": "vision",
        "siglip": {**siglip, "intermediate_size": 32},
        "text": {**text, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128},
    }


def tiny_flow_settings() -> dict[str, Any]:
    """What makes `tiny_settings` a flow-matching π0 with a chunk of three steps, as overrides."""
    model = tiny_vlm_model()
    return {
        "model": {**model, "family": "pi0_flow", "frozen": None, "expert": {**model["text"], "hidden_size": 32}},
        "actions__representation": "flow",
        "actions__horizon": 3,
        "data__co_training": [],
    }


def tiny_recipe(work_dir: Path, **overrides: Any) -> Recipe:
    """The recipe, read from a file in `work_dir`, its data sets written beside it if they are not there."""
    work_dir.mkdir(parents=True, exist_ok=True)
    for folder, write in ((work_dir / "robot", write_robot_data), (work_dir / "questions", write_questions)):
        if not folder.exists():
            write(folder)
    settings = tiny_settings(**overrides)
    path = work_dir / f"{settings['name']}.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return load_recipe(path)


def run_tiny(work_dir: Path, resume: bool = False, callbacks: Any = None, **overrides: Any) -> Path:
    """Trains the tiny recipe with these settings; the folder of the model."""
    recipe = tiny_recipe(work_dir, **overrides)
    return run_recipe(recipe, work_dir, resume=resume, callbacks=callbacks, progress=False)


def read_log(folder: Path) -> dict[str, Any]:
    """What a run says of itself."""
    return json.loads((folder / "training_log.json").read_text(encoding="utf-8"))


def logged_steps(folder: Path) -> list[dict[str, float]]:
    """The entries of its log that have a loss."""
    return [entry for entry in read_log(folder)["history"] if "loss" in entry]


def seen_by_two_processes(work_dir: Path) -> list[dict[str, Any]]:
    """What each process trained on."""
    seen = [json.loads((work_dir / f"process-{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["processes"] for one in seen] == [2, 2]
    return seen


def stored_types(folder: Path) -> set[str]:
    """The types of the tensors in a folder."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def weights_hash(model: Any) -> str:
    """One number over the bytes of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Witness(TrainerCallback):
    """Sees a run from inside.

    Attributes:
        batches: which rows are robot data, for every batch whose loss was computed.
        optimized, with_state: names of the parameters the optimizer holds, and holds moments of.
        hash: `weights_hash` when training ends.
    """

    def __init__(self) -> None:
        self.batches: list[list[bool]] = []
        self.hash = ""
        self.optimized: set[str] = set()
        self.with_state: set[str] = set()

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> "Witness":
        """Looks at what `compute_loss` gets."""
        plain, batches = co_trainer.CoTrainer.compute_loss, self.batches

        def compute_loss(trainer: Any, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            batches.append(inputs["is_robot"].tolist())
            return plain(trainer, model, inputs, *rest, **named)

        monkeypatch.setattr(co_trainer.CoTrainer, "compute_loss", compute_loss)
        return self

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"]
        inner = getattr(optimizer, "optimizer", optimizer)
        groups = {id(parameter) for group in inner.param_groups for parameter in group["params"]}
        states = {id(parameter) for parameter in inner.state}
        model = getattr(kwargs["model"], "module", kwargs["model"])
        self.optimized = {name for name, parameter in model.named_parameters() if id(parameter) in groups}
        self.with_state = {name for name, parameter in model.named_parameters() if id(parameter) in states}
        self.hash = weights_hash(model)


def watch_places(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Collects the places of a run and the rows there, as they are prepared in this process."""
    plain, places = prepared_rows.RowPreparer.__call__, []

    def prepare(preparer: Any, row: dict[str, Any], source: str, place: int) -> dict[str, Any]:
        places.append((place, f"{source} {row['identity']}"))
        return plain(preparer, row, source, place)

    monkeypatch.setattr(prepared_rows.RowPreparer, "__call__", prepare)
    return places


class Types(TrainerCallback):
    """Collects types of weights, gradients, moments and of what the last decoder's first layer computes."""

    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        layer = [module for name, module in model.named_modules() if name.endswith("layers.0.mlp")][-1]
        layer.register_forward_hook(lambda module, inputs, output: self.note("computed", [output]))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.note("weights", trained)
        self.note("gradients", [parameter.grad for parameter in trained if parameter.grad is not None])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.note("moments", [entry["exp_avg"] for entry in optimizer.state.values()])

    def note(self, name: str, tensors: list[Any]) -> None:
        self.seen[name] = sorted({str(tensor.dtype) for tensor in tensors} | set(self.seen.get(name, ())))


class Pause(TrainerCallback):
    """Stops before a step for longer than any test waits, so that a run can be killed there."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            time.sleep(600)


def main(pause_at: str, *work_dirs: str) -> None:
    """See the docstring of this file."""
    torch.set_num_threads(1)
    for work_dir in work_dirs:
        with pytest.MonkeyPatch.context() as patch:
            witness, places = Witness().watch(patch), watch_places(patch)
            callbacks = [witness, types := Types(), Pause(int(pause_at))]
            run_recipe(load_recipe(Path(work_dir) / "tiny.yaml"), work_dir, resume=True, callbacks=callbacks)
        distributed = torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        seen = {
            "processes": torch.distributed.get_world_size() if distributed else 1,
            "batches": witness.batches,
            "places": places,
            "hash": witness.hash,
            "types": types.seen,
        }
        (Path(work_dir) / f"process-{rank}.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
