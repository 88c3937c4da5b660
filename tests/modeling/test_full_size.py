"""The full-size models, built without memory: parameters counted, files complete, layers placed whole."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import infer_auto_device_map
from accelerate.utils.dataclasses import get_module_class_from_name
from transformers import PI0Config, PI0ForConditionalGeneration

from gen_vla.modeling import (
    OpenVLAPlusConfig,
    OpenVLAPlusForVision2Seq,
    Pi0FlowConfig,
    Pi0FlowForActionPrediction,
    VLAPlusConfig,
    VLAPlusForVision2Seq,
)


FULL_SIZE = Path(__file__).resolve().parents[2] / "modeling" / "full_size"
FAMILIES = {
    "openvla-plus": (OpenVLAPlusConfig, OpenVLAPlusForVision2Seq),
    "pi0-plus": (VLAPlusConfig, VLAPlusForVision2Seq),
    "pi0-flow": (Pi0FlowConfig, Pi0FlowForActionPrediction),
}


def full_size(name: str, **changes: Any) -> Any:
    """The model on the meta device."""
    config_class, model_class = FAMILIES[name]
    settings = json.loads((FULL_SIZE / f"{name}.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        return model_class(config_class(**{**settings, **changes}))


def count(module: Any, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize("name", ["openvla-plus", "pi0-flow"])
def test_the_files_say_what_the_defaults_are(name: str) -> None:
    config_class, model_class = FAMILIES[name]
    settings = json.loads((FULL_SIZE / f"{name}.json").read_text(encoding="utf-8"))
    assert settings["architectures"] == [model_class.__name__]
    assert settings["model_type"] == config_class.model_type
    written, default = config_class(**settings), config_class()
    default.architectures = [model_class.__name__]
    assert written.to_dict() == default.to_dict()


def test_openvla_plus_has_7_5_billion_parameters() -> None:
    model = full_size("openvla-plus")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    parts = {name: count(part) for name, part in model.model.named_children()}
    assert parts == {"vision_tower": 687_833_248, "projector": 71_385_600, "language_model": 6_607_605_760}
    assert count(model.model.vision_tower.dino) == 290_632_704  # 23 of 24 blocks
    assert count(model.model.vision_tower.siglip) == 397_200_544  # 26 of 27 blocks
    assert count(model) == 7_498_158_752
    assert count(model, trainable=True) == 7_498_158_752 - 397_200_544 - 1024  # SigLIP and DINOv2's mask token stay
    assert count(full_size("openvla-plus", frozen=None), trainable=True) == 7_498_158_752 - 1024
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["lm_head.weight"] == shapes["model.language_model.embed_tokens.weight"] == [32064, 4096]
    assert [shapes[f"model.projector.fc{n}.weight"] for n in (1, 2, 3)] == [[8704, 2176], [4096, 8704], [4096, 4096]]
    assert shapes["model.vision_tower.dino.embeddings.position_embeddings"] == [1, 257, 1024]


def test_pi0_plus_has_3_3_billion_parameters() -> None:
    model = full_size("pi0-plus")
    assert count(model) == 3_338_270_176
    assert count(model, trainable=True) == 3_338_270_176 - 412_442_352
    assert count(full_size("pi0-plus", frozen=None)) == 2_923_466_480  # PaliGemma 3B, to the parameter
    assert model.vlm.lm_head.weight is model.get_input_embeddings().weight


def test_the_flow_matching_pi0_has_3_2_billion_parameters() -> None:
    model = full_size("pi0-flow")
    parts = {name: count(part) for name, part in model.model.named_children()}
    assert parts == {"dit": 311_464_960, "vlm": 2_923_335_408}  # PaliGemma's, but for 64 rows of the vocabulary
    assert count(model) == 3_238_048_528
    with torch.device("meta"):
        assert count(PI0ForConditionalGeneration(PI0Config())) == 3_238_048_528 + 257_152 * 1024


def layers_of(model: Any) -> set[str]:
    """The classes of everything that repeats: the entries of module lists."""
    return {
        type(layer).__name__ for part in model.modules() if isinstance(part, torch.nn.ModuleList) for layer in part
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_never_split_between_devices(name: str) -> None:
    model = full_size(name)
    # Newer transformers add two of PaliGemma's modules that do not repeat.
    once = {"PaliGemmaMultiModalProjector", "SiglipVisionEmbeddings"}
    assert set(model._no_split_modules) - once == layers_of(model)
    # What FSDP of accelerate looks for, which refuses a name that is not there.
    assert all(get_module_class_from_name(model, name) for name in model._no_split_modules)
    unsplittable = [path for path, part in model.named_modules() if type(part).__name__ in model._no_split_modules]
    device_map = infer_auto_device_map(
        model,
        {0: "6GB", 1: "6GB", "cpu": "60GB"},
        no_split_module_classes=model._no_split_modules,
        dtype=torch.bfloat16,
    )
    assert len(set(device_map.values())) >= 2
    for path in unsplittable:
        assert not [placed for placed in device_map if placed.startswith(f"{path}.")], path
