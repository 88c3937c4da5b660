"""A tiny run in each process of a launcher that notes the types of weights, gradients, moments and activations.

torchrun --nproc_per_node 2 tests/support/precision_run.py WORK_DIR        # then WORK_DIR/types.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.run import run_recipe


class Types(TrainerCallback):
    """Collects types by what they are of."""

    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        layer = getattr(model, "module", model).model.language_model.layers[0].mlp
        layer.register_forward_hook(lambda module, inputs, output: self.note("computed", [output]))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.note("weights", trained)
        self.note("gradients", [parameter.grad for parameter in trained if parameter.grad is not None])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.note("moments", [entry["exp_avg"] for entry in optimizer.state.values()])

    def note(self, name: str, tensors: list[Any]) -> None:
        self.seen[name] = sorted({str(tensor.dtype) for tensor in tensors} | set(self.seen.get(name, ())))


if __name__ == "__main__":
    torch.set_num_threads(1)
    work_dir, types = Path(sys.argv[1]), Types()
    run_recipe(load_recipe(work_dir / "tiny.yaml"), work_dir, callbacks=[types], progress=False)
    if torch.distributed.get_rank() == 0:
        (work_dir / "types.json").write_text(json.dumps(types.seen), encoding="utf-8")
