"""Which learning rate each weight has: groups of parameters for the optimizer, by the part of the model they are in.

vision           encoders that train
projector        what turns their features into image tokens
language_model   everything else that trains in full
adapters         LoRA, wherever it is
"""

from typing import Any

from gen_vla.training.recipes.schema import TrainingRecipe


OPENVLA_LORA_RATE = 5e-4  # `learning_rate` of OpenVLA's vla-scripts/finetune.py
PARTS = ("vision", "projector", "language_model")  # and adapters
PROJECTORS = ("projector", "multi_modal_projector", "connector", "merger", "deepstack_merger_list", "image_newline")
VISION = ("vision_tower", "vision_model", "visual", "frozen_vision")


def part_of(name: str) -> str:
    """The part that a parameter of this name is in: "vision", "projector", "language_model" or "adapters"."""
    steps = name.split(".")
    if any(step.startswith("lora_") for step in steps):
        return "adapters"
    if any(step in PROJECTORS for step in steps):
        return "projector"
    return "vision" if any(step in VISION for step in steps) else "language_model"


def rates(training: TrainingRecipe) -> dict[str, float]:
    """The largest learning rate of every part. Without one of their own, adapters learn at OpenVLA's LoRA rate."""
    chosen = training.learning_rates
    in_full = {part: getattr(chosen, part) or training.learning_rate for part in PARTS}
    return {**in_full, "adapters": chosen.adapters or OPENVLA_LORA_RATE}


def parameter_groups(
    model: Any, decayed: list[str], weight_decay: float, rates: dict[str, float]
) -> list[dict[str, Any]]:
    """Groups of an optimizer: of every part what is in `decayed`, and the rest."""
    groups: dict[tuple[str, bool], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name), name in decayed), []).append(parameter)
    return [
        {"params": parameters, "lr": rates[part], "weight_decay": weight_decay if decays else 0.0, "part": part}
        for (part, decays), parameters in groups.items()
    ]
