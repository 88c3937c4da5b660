"""A converted OpenVLA does what the original code does; how its answers were obtained: fixtures/openvla_parity."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_checkpoints import (
    PARITY,
    expected,
    load_converted,
    parity_tensors,
    run_state,
    wide_tokenizer,
    write_hub_folder,
    write_run_folder,
)
from PIL import Image
from tokenizers import Tokenizer

from gen_vla.training.converting.conversion import convert


CASES = range(3)
COLUMNS = slice(0, None, 499)  # of the vocabulary, as in make_fixtures.py
PIXELS = slice(0, None, 7)


@pytest.fixture(scope="module")
def original() -> dict[str, np.ndarray]:
    return expected()


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return parity_tensors()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, torch.Tensor]) -> Path:
    root = tmp_path_factory.mktemp("openvla")
    return convert(write_hub_folder(root / "source", tensors, wide_tokenizer()), root / "converted")


@pytest.fixture(scope="module")
def loaded(converted: Path) -> tuple[Any, Any]:
    return load_converted(converted)


@pytest.fixture(scope="module")
def model(loaded: tuple[Any, Any]) -> Any:
    return loaded[0]


@pytest.fixture(scope="module")
def processor(loaded: tuple[Any, Any]) -> Any:
    return loaded[1]


def inputs_of(original: dict[str, np.ndarray], processor: Any, case: int) -> dict[str, torch.Tensor]:
    """The original's token ids with the places of the patches, which it inserts itself, behind BOS."""
    ids = original[f"input_ids_{case}"].tolist()
    ids = [ids[0], *[processor.image_token_id] * 256, *ids[1:]]
    pixels = processor.image_processor([original[f"image_{case}"]], return_tensors="pt")["pixel_values"]
    return {"input_ids": torch.tensor([ids]), "pixel_values": pixels}


@pytest.mark.parametrize("case", CASES)
def test_pixel_values(original: dict[str, np.ndarray], processor: Any, case: int) -> None:
    pixels = processor.image_processor([original[f"image_{case}"]], return_tensors="pt")["pixel_values"][0]
    np.testing.assert_allclose(pixels[:, PIXELS, PIXELS], original[f"pixels_{case}"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(pixels.double().sum(dim=(1, 2)), original[f"pixel_sums_{case}"], rtol=1e-6)


def test_the_stored_constants_win_over_the_nominal_ones(processor: Any) -> None:
    """bfloat16 went over them: 0.485 became 0.484375."""
    assert processor.image_processor.means == [[0.484375, 0.455078125, 0.40625], [0.5, 0.5, 0.5]]
    assert processor.image_processor.stds == [[0.228515625, 0.2236328125, 0.224609375], [0.5, 0.5, 0.5]]


@pytest.mark.parametrize("case", CASES)
def test_logits(original: dict[str, np.ndarray], model: Any, processor: Any, case: int) -> None:
    with torch.no_grad():
        logits = model(**inputs_of(original, processor, case)).logits[0]
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits[:, COLUMNS], original[f"logits_{case}"], rtol=0, atol=1e-4)
    kept = original[f"last_logits_{case}"]
    np.testing.assert_allclose(logits[-1, :: 1 if case == 0 else 7], kept, rtol=0, atol=1e-4)
    assert np.ptp(kept) > 10  # so that 1e-4 means something


@pytest.mark.parametrize("key", ["bridge_orig", "fractal20220817_data"])
@pytest.mark.parametrize("case", CASES)
def test_tokens_and_actions(original: dict[str, np.ndarray], model: Any, processor: Any, case: int, key: str) -> None:
    prediction = model.predict_actions(**inputs_of(original, processor, case), unnorm_key=key)
    assert prediction.token_ids[0].tolist() == original[f"tokens_{case}"].tolist()
    np.testing.assert_allclose(prediction.actions[0, 0], original[f"action_{case}_{key}"], rtol=0, atol=1e-6)


def test_a_batch_of_different_lengths(original: dict[str, np.ndarray], model: Any, processor: Any) -> None:
    """What the original refuses: several observations at once."""
    rows = [inputs_of(original, processor, case) for case in CASES]
    width = max(row["input_ids"].shape[1] for row in rows)
    pad = processor.tokenizer.pad_token_id
    gaps = [width - row["input_ids"].shape[1] for row in rows]
    ids = [torch.tensor([pad] * gap + row["input_ids"][0].tolist()) for gap, row in zip(gaps, rows, strict=True)]
    mask = [torch.tensor([0] * gap + [1] * (width - gap)) for gap in gaps]
    prediction = model.predict_actions(
        input_ids=torch.stack(ids),
        attention_mask=torch.stack(mask),
        pixel_values=torch.cat([row["pixel_values"] for row in rows]),
        unnorm_key="bridge_orig",
    )
    assert prediction.token_ids.tolist() == [original[f"tokens_{case}"].tolist() for case in CASES]


def test_every_weight_has_its_effect(original: dict[str, np.ndarray], model: Any, processor: Any) -> None:
    """With the logits' parity this proves the map: no tensor could be missing, swapped or ignored unseen.

    Two exceptions have no effect in the original either: the mask token, and a constant added to all keys.
    """
    inputs = inputs_of(original, processor, 0)
    with torch.no_grad():
        plain = model(**inputs, logits_to_keep=1).logits
        for name, weights in model.named_parameters():
            if name.endswith(("mask_token", "k_proj.bias", "key.bias")):
                continue
            kept = weights.clone()
            weights += 0.1 * weights.roll(1, dims=-1) + 0.01
            moved = float((model(**inputs, logits_to_keep=1).logits - plain).abs().max())
            weights.copy_(kept)
            assert moved > 1e-3, name
        assert torch.equal(model(**inputs, logits_to_keep=1).logits, plain)


def test_the_biases_of_keys_arrive(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Softmax does not feel them, so they are compared with the middle third of the original's joint bias."""
    found = {name: weights for name, weights in model.named_parameters() if name.endswith(("k_proj.bias", "key.bias"))}
    towers = {"dino.encoder.layer": "featurizer", "siglip.encoder.layers": "fused_featurizer"}
    assert len(found) == 5
    for ours, theirs in towers.items():
        for block in range(2):
            (weights,) = [w for name, w in found.items() if f"{ours}.{block}." in name]
            joint = tensors[f"vision_backbone.{theirs}.blocks.{block}.attn.qkv.bias"]
            assert torch.equal(weights, joint.chunk(3)[1])


def test_a_script_written_for_openvla(
    original: dict[str, np.ndarray], tensors: dict[str, torch.Tensor], llama2: Any, tmp_path: Path
) -> None:
    """Real vocabulary, the processor called with prompt and picture, the lead-in left to the model."""
    tokenizer = Tokenizer.from_str(llama2.backend_tokenizer.to_str())
    convert(write_hub_folder(tmp_path / "source", tensors, tokenizer), tmp_path / "converted")
    vla, processor = load_converted(tmp_path / "converted")
    for case, prompt in enumerate(json.loads((PARITY / "prompts.json").read_text(encoding="utf-8"))):
        image = Image.fromarray(original[f"image_{case}"])
        inputs = processor(prompt, image).to("cpu", dtype=torch.float32)
        assert [i for i in inputs["input_ids"][0].tolist() if i != processor.image_token_id] == original[
            f"input_ids_{case}"
        ].tolist()
        action = vla.predict_action(**inputs, unnorm_key="bridge_orig", do_sample=False)
        np.testing.assert_allclose(action, original[f"action_{case}_bridge_orig"], rtol=0, atol=1e-6)
        again = vla.predict_action(
            **processor.action_inputs(image, prompt.split("robot take to ")[1].split("?")[0]), unnorm_key="bridge_orig"
        )
        np.testing.assert_array_equal(again, action)


def test_a_training_run(
    original: dict[str, np.ndarray], tensors: dict[str, torch.Tensor], model: Any, processor: Any, tmp_path: Path
) -> None:
    """The classes of a run have other constants and another eps than the Hub layout, and the same weights."""
    wide_tokenizer().save(str(tmp_path / "tokenizer.json"))
    run = write_run_folder(tmp_path / "run", tensors)
    convert(run, tmp_path / "converted", tokenizer=tmp_path)
    other, other_processor = load_converted(tmp_path / "converted")
    assert other.config.text_config.rms_norm_eps == 1e-5  # Llama-2's, where the Hub layout runs with 1e-6
    assert model.config.text_config.rms_norm_eps == 1e-6
    for (name, ours), (_, theirs) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name
    inputs = inputs_of(original, other_processor, 0)
    pixels = inputs["pixel_values"][0, :, PIXELS, PIXELS]
    np.testing.assert_allclose(pixels, original["run_pixels"], rtol=0, atol=1e-6)
    assert np.abs(pixels.numpy() - original["pixels_0"]).max() > 1e-3  # the Hub layout's constants are rounded
    with torch.no_grad():
        logits = other(**inputs).logits[0, :, COLUMNS]
    np.testing.assert_allclose(logits, original["run_logits"], rtol=0, atol=1e-4)


def test_names_of_a_run_are_the_originals(tensors: dict[str, torch.Tensor]) -> None:
    """What `write_run_folder` writes for the tests is what the original's classes save."""
    names = json.loads((PARITY / "run_shapes.json").read_text(encoding="utf-8"))
    assert {section: set(state) for section, state in run_state(tensors).items()} == {
        section: set(shapes) for section, shapes in names.items()
    }


def test_the_script_in_the_documentation(original: dict[str, np.ndarray], converted: Path) -> None:
    """The lines a user has after the change, on this machine's CPU."""
    page = (PARITY.parents[2] / "docs" / "how_to" / "convert.md").read_text(encoding="utf-8")
    block = page.split("```diff\n")[1].split("```")[0]
    assert sum(line.startswith("-") for line in block.splitlines()) == 2
    script = "\n".join(line[1:] for line in block.splitlines() if not line.startswith("-"))
    script = script.replace("cuda:0", "cpu").replace("openvla-7b-converted", str(converted))
    scope = {"torch": torch, "image": Image.fromarray(original["image_0"])}
    exec(script.replace("bfloat16", "float32"), scope)
    assert scope["action"].shape == (7,)  # type: ignore[attr-defined]
