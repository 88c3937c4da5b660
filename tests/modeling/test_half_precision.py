"""Half precision, placement on devices and quantised loading: close to float32, or the same, in both families.

The bounds are for the tiny models, whose weights are drawn far larger (0.2) than a trained model's. Measured on a CPU,
root mean square error of the logits over their standard deviation:

                  bfloat16    float16
    OpenVLA+       1.6 %       0.21 %
    pi0+           1.3 %       0.18 %
"""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import picture, tiny_config, tiny_pair, tiny_pi0_config, vision_settings
from transformers import BitsAndBytesConfig

from gen_vla.modeling import OpenVLAPlusForVision2Seq, VLAPlusForVision2Seq
from gen_vla.processors import ActionStringProcessor


CLASSES = {"openvla_plus": OpenVLAPlusForVision2Seq, "pi0_plus": VLAPlusForVision2Seq}
HALVES = (torch.bfloat16, torch.float16)
INSTRUCTIONS = ["open the drawer", "go", "pick up two", "close it"]


@pytest.fixture(scope="module", params=CLASSES)
def family(request: pytest.FixtureRequest, llama_like: Any, gemma_like: Any, tmp_path_factory: Any) -> Any:
    """Name, model, inputs of four observations, and folders of the model in float32 and in halves."""
    strings = ActionStringProcessor(action_dim=3, decimals=2)
    tokenizer = gemma_like if request.param == "pi0_plus" else llama_like
    model, processor = tiny_pair(request.param, tokenizer, strings)
    folders = {}
    for dtype in (torch.float32, *HALVES):
        folders[dtype] = tmp_path_factory.mktemp("dtypes")
        copy.deepcopy(model).to(dtype).save_pretrained(folders[dtype])
    inputs = processor.action_inputs([picture(seed) for seed in range(4)], INSTRUCTIONS)
    return CLASSES[request.param], model, inputs, folders


@torch.no_grad()
def logits_of(model: Any, inputs: Any) -> torch.Tensor:
    return model(**inputs).logits.float()[inputs["attention_mask"].bool()]


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_auto_loads_the_data_type_that_was_saved(family: Any, dtype: torch.dtype) -> None:
    model_class, _, inputs, folders = family
    model = model_class.from_pretrained(folders[dtype], dtype="auto")
    assert model.dtype == dtype
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert logits_of(model, inputs).isfinite().all()


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_close_to_float32(family: Any, dtype: torch.dtype) -> None:
    model_class, exact, inputs, folders = family
    expected = logits_of(exact, inputs)
    got = logits_of(model_class.from_pretrained(folders[torch.float32], dtype=dtype).eval(), inputs)
    error = ((got - expected).pow(2).mean().sqrt() / expected.std()).item()
    assert 0 < error < {torch.bfloat16: 0.03, torch.float16: 0.004}[dtype]
    settled = expected.topk(2).values.diff().abs().flatten() > 8 * error * expected.std()
    assert settled.float().mean() > 0.3
    assert torch.equal(got.argmax(-1)[settled], expected.argmax(-1)[settled])


@pytest.mark.parametrize("dtype", HALVES)
def test_actions_in_half_precision_are_legal_and_float32(family: Any, dtype: torch.dtype) -> None:
    model_class, exact, inputs, folders = family
    model = model_class.from_pretrained(folders[dtype], dtype="auto").eval()
    prediction = model.predict_actions(**inputs)
    assert prediction.actions.dtype == prediction.digit_probabilities.dtype == np.float32
    expected = exact.predict_actions(**inputs)
    same_sign = np.sign(prediction.normalized) == np.sign(expected.normalized)
    assert same_sign.mean() > 0.6  # random weights decide many digits by a hair
    assert np.abs(prediction.normalized).max() <= 1


def test_automatic_placement_changes_nothing(family: Any) -> None:
    model_class, exact, inputs, folders = family
    model = model_class.from_pretrained(folders[torch.float32], device_map="auto").eval()
    placed = {name: tensor.to(model.device) for name, tensor in inputs.items()}  # a GPU where there is one
    found, expected = logits_of(model, placed).cpu(), logits_of(exact, inputs)
    torch.testing.assert_close(found, expected, atol=0 if model.device.type == "cpu" else 1e-3, rtol=0)
    assert model.predict_actions(**placed).text == exact.predict_actions(**inputs).text


def test_layers_on_disk_change_nothing(family: Any, tmp_path: Path) -> None:
    model_class, exact, inputs, folders = family
    before = "" if model_class is OpenVLAPlusForVision2Seq else "vlm."
    base = exact.get_submodule(f"{before}model")
    names = {name: "cpu" for name, _ in base.named_children()} | {"vision_tower": "disk"}
    layers = {f"{before}model.language_model.layers.{n}": ("cpu", "disk")[n] for n in range(2)}
    rest = {f"{before}model.language_model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
    names = {f"{before}model.{name}": place for name, place in names.items() if name != "language_model"}
    model = model_class.from_pretrained(
        folders[torch.float32],
        device_map={**names, **layers, **rest, f"{before}lm_head": "cpu"},
        offload_folder=str(tmp_path / "offload"),
    ).eval()
    tower = model.get_submodule(f"{before}model.vision_tower")
    assert {parameter.device.type for parameter in tower.parameters()} == {"meta"}
    assert torch.equal(logits_of(model, inputs), logits_of(exact, inputs))
    assert model.predict_actions(**inputs).text == exact.predict_actions(**inputs).text


NO_BITSANDBYTES = "no bitsandbytes, which is for GPUs and therefore no dependency: pip install bitsandbytes"


def wide_model(name: str, tokenizer: Any, strings: ActionStringProcessor) -> tuple[Any, Any]:
    """A model and its processor with widths of 64, since quantisation works on blocks of weights."""
    siglip = vision_settings(hidden_size=64, intermediate_size=64)
    if name == "pi0_plus":
        vlm = tiny_pi0_config(tokenizer).vlm_config
        vlm.text_config.head_dim, vlm.vision_config.hidden_size, vlm.vision_config.intermediate_size = 32, 64, 64
        return tiny_pair(name, tokenizer, strings, vlm_config=vlm)
    text = {**tiny_config(tokenizer).text_config.to_dict(), "hidden_size": 64, "head_dim": 16}
    dino = {**tiny_config(tokenizer).dino_config.to_dict(), "hidden_size": 64}
    return tiny_pair(name, tokenizer, strings, dino_config=dino, siglip_config=siglip, text_config=text)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason=NO_BITSANDBYTES)
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_loading(name: str, bits: int, llama_like: Any, gemma_like: Any, tmp_path: Path) -> None:
    exact, processor = wide_model(
        name, gemma_like if name == "pi0_plus" else llama_like, ActionStringProcessor(action_dim=3, decimals=2)
    )
    exact.save_pretrained(tmp_path)
    kinds: dict[int, Any] = {
        4: {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16},
        8: {"load_in_8bit": True},
    }
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    model = (
        CLASSES[name]
        .from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**kinds[bits]), device_map={"": device})
        .eval()
    )
    layer = {4: "Linear4bit", 8: "Linear8bitLt"}[bits]
    assert {type(part).__name__ for part in model.get_decoder().layers[0].mlp.children()} >= {layer}
    frozen = model.vlm.model.frozen_vision.vision_tower if name == "pi0_plus" else model.model.vision_tower.siglip
    assert layer in {type(part).__name__ for part in frozen.modules()}
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    inputs = processor.action_inputs([picture(seed) for seed in range(4)], INSTRUCTIONS)
    expected = logits_of(exact, inputs)
    inputs = inputs.to(device)
    error = ((logits_of(model, inputs).cpu() - expected).pow(2).mean().sqrt() / expected.std()).item()
    assert 0 < error < {4: 0.8, 8: 0.1}[bits]  # random weights suffer more than trained ones; 1.4 would be unrelated
    assert model.predict_actions(**inputs).actions.shape == (4, 1, 3)
