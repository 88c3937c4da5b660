"""Every part of a model learns at its own rate, adapters at LoRA's."""

from typing import Any

import pytest
from tiny_runs import run_tiny, tiny_vlm_model
from transformers import TrainerCallback

from gen_vla.training.learning_rates import part_of


class Groups(TrainerCallback):
    """What the optimizer's groups are when training begins."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
        self.rates = {group["part"]: group["initial_lr"] for group in optimizer.param_groups}
        self.count = sum(len(group["params"]) for group in optimizer.param_groups)
        model = kwargs["model"]
        self.trainable = sum(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", ["openvla_plus", "vla_plus"])
def test_parts_learn_at_their_rates(family: str, tmp_path: Any) -> None:
    groups = Groups()
    chosen = {"vision": 1e-4, "projector": 2e-4}
    settings: dict[str, Any] = {"training__steps": 1, "training__learning_rates": chosen}
    settings |= {"model": tiny_vlm_model()} if family == "vla_plus" else {}
    run_tiny(tmp_path, callbacks=[groups], **settings)
    assert groups.rates == {"vision": 1e-4, "projector": 2e-4, "language_model": 1e-2}
    assert groups.count == groups.trainable


def test_adapters_learn_at_the_rate_of_lora_and_the_tower_as_the_recipe_says(tmp_path: Any) -> None:
    run_tiny(tmp_path, training__steps=1)
    groups = Groups()
    model: dict[str, Any] = {"model": {"initial_model": "tiny", "frozen": "siglip"}, "name": "adapted"}
    run_tiny(tmp_path, callbacks=[groups], **model, training__steps=1, training__lora={"rank": 2})
    assert groups.rates == {"adapters": 5e-4, "vision": 1e-2, "projector": 1e-2}
    assert groups.count == groups.trainable


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.vision_tower.dino.encoder.layer.0.norm1.weight", "vision"),
        ("base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight", "adapters"),
        ("base_model.model.model.projector.modules_to_save.default.fc1.weight", "projector"),
        ("vlm.model.visual.blocks.0.norm1.weight", "vision"),
        ("vlm.model.visual.merger.ln_q.weight", "projector"),
        ("vlm.model.frozen_vision.multi_modal_projector.linear.weight", "projector"),
        ("vlm.model.connector.modality_projection.proj.weight", "projector"),
        ("vlm.lm_head.weight", "language_model"),
    ],
)
def test_parts_by_name(name: str, part: str) -> None:
    assert part_of(name) == part
