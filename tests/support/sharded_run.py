"""Three steps of training with every block sharded by FSDP2 over the processes there are.

    torchrun --nproc_per_node 2 tests/support/sharded_run.py OUTPUT

Units are the blocks that the model itself names, as `accelerate` takes them. The batch of four rows is split over the
processes, so that any number of them computes the same gradients.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_models import (
    picture,
    tiny_model,
    tiny_pi0_flow_model,
    tiny_pi0_flow_processor,
    tiny_processor,
    tiny_tokenizer,
)
from tiny_vlms import tiny_vla_pair
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gen_vla.processors import ActionStringProcessor
from gen_vla.training.flow.trainer import reach_last_layer


ROWS, STEPS = 4, 3
FAMILIES = ("openvla_plus", "paligemma", "pi0_flow", "smolvlm")


def main(output: str) -> None:
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    for family in FAMILIES:
        model, inputs = build(family)
        if family == "pi0_flow":
            reach_last_layer(model)
        units = [module for module in model.modules() if type(module).__name__ in set(model._no_split_modules)]
        for unit in units:
            fully_shard(unit, mesh=mesh)
        fully_shard(model, mesh=mesh)
        share = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
        losses = []
        for loss in train(model, {name: value[share] for name, value in inputs.items()}):
            distributed.all_reduce(loss)
            losses.append(loss.item() / world)
        state: dict[str, Any] = get_model_state_dict(
            model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        if rank == 0:
            weights = {name: value.contiguous().clone() for name, value in state.items()}
            save_file(weights, f"{output}/{family}.safetensors")
            facts = {"losses": losses, "processes": world, "units": len(units)}
            Path(output, f"{family}.json").write_text(json.dumps(facts), encoding="utf-8")
    distributed.destroy_process_group()


def train(model: Any, inputs: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    """Each step's loss; what is frozen gets no gradient and no optimizer state."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    for _ in range(STEPS):
        loss = model(**inputs).loss
        loss.backward()
        assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach().clone()


def build(family: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A tiny model in training mode, and a batch whose rows have as many supervised tokens, or numbers, each."""
    if family == "pi0_flow":
        return build_flow()
    strings = ActionStringProcessor(3, 1, 2)
    if family != "openvla_plus":
        return build_vlm(family, strings)
    tokenizer = tiny_tokenizer("llama_like")
    model = tiny_model(tokenizer, strings, seed=0).train()
    processor = tiny_processor(tokenizer, strings)
    inputs = dict(processor.action_inputs([picture(row) for row in range(ROWS)], ["in"] * ROWS))
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    return model, {**inputs, "labels": labels}


def build_vlm(family: str, strings: ActionStringProcessor) -> tuple[Any, dict[str, torch.Tensor]]:
    """As `build`, for a stock vision-language model with a frozen copy of its encoder."""
    with tempfile.TemporaryDirectory() as folder:
        model, processor = tiny_vla_pair(family, Path(folder), strings)
    inputs = dict(processor.action_inputs([picture(row) for row in range(ROWS)], ["in"] * ROWS))
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    return model.train(), {**inputs, "labels": labels}


def build_flow() -> tuple[Any, dict[str, torch.Tensor]]:
    """As `build`, for the flow-matching π0."""
    tokenizer = tiny_tokenizer("gemma_like")
    model = tiny_pi0_flow_model(tokenizer, seed=0).train()
    processor = tiny_pi0_flow_processor(tokenizer)
    inputs = dict(processor.action_inputs([picture(row) for row in range(ROWS)], ["in"] * ROWS))
    random = torch.Generator().manual_seed(1)
    noise, actions = torch.randn(2, ROWS, 4, 3, generator=random)
    times = torch.linspace(0.2, 0.8, ROWS)
    return model, {**inputs, "noise": noise, "actions": actions.clamp(-1, 1), "timestep": times}


if __name__ == "__main__":
    main(sys.argv[1])
