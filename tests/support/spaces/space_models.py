"""Repositories for the Space's tests: the tiny model with seven dimensions and the units of a real data set."""

from pathlib import Path
from typing import Any

from tiny_models import tiny_model, tiny_processor, tiny_statistics

from gen_vla.processors import ActionStringProcessor


# OpenVLA's statistics of BridgeData V2, rounded: metres, radians, a gripper that is not scaled.
BRIDGE_LOW = [-0.0287, -0.0417, -0.0261, -0.0809, -0.0929, -0.2072, 0.0]
BRIDGE_HIGH = [0.0283, 0.0409, 0.0402, 0.0819, 0.0779, 0.2038, 1.0]


def bridge_statistics() -> dict[str, Any]:
    """What a model trained on BridgeData knows of its actions."""
    entry = tiny_statistics(7)
    entry["action"] |= {"q01": BRIDGE_LOW, "q99": BRIDGE_HIGH, "min": BRIDGE_LOW, "max": BRIDGE_HIGH}
    return entry


def save_arm_model(tokenizer: Any, folder: Path, seed: int = 0, cameras: list[str] | None = None) -> tuple[Any, Any]:
    """A model of an arm and its processor, saved as a repository; its data sets are bridge_orig and tiny."""
    strings = ActionStringProcessor(action_dim=7, binary_dims=[6])
    norm_stats = {"bridge_orig": bridge_statistics(), "tiny": tiny_statistics(7, scale=0.01)}
    model = tiny_model(tokenizer, strings, seed=seed, norm_stats=norm_stats)
    processor = tiny_processor(tokenizer, strings, cameras=cameras)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor
