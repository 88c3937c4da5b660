"""Two encoders: whose features they give, and what frozen means through training, checkpointing and mode switches."""

from typing import Any

import pytest
import torch
from tiny_models import IMAGE_TOKENS, picture, tiny_config, tiny_model, tiny_processor
from transformers import AutoModel

from gen_vla.modeling import OpenVLAPlusForVision2Seq


ENCODERS = ("dino", "siglip")
FROZEN = ("siglip", "dino", "all", None)
# The bias of an attention key adds the same number to every score of a query, which the softmax takes out again.
NO_EFFECT = ("k_proj.bias", "key.bias")


@pytest.fixture
def inputs(llama_like: Any) -> Any:
    """Two pictures, two questions, and labels on the last tokens."""
    inputs = tiny_processor(llama_like)(images=[picture(), picture(1)], text=["In: Go?\nOut: 1", "In: x\nOut: 22"])
    inputs["labels"] = inputs["input_ids"].clone()
    inputs["labels"][:, :-3] = -100
    return inputs


@pytest.mark.parametrize("encoder", ["dino", "siglip"])
def test_each_encoder_reads_its_own_channels(llama_like: Any, encoder: str) -> None:
    inputs = tiny_processor(llama_like)(images=picture(), text="Go?")
    other = inputs["pixel_values"].clone()
    channels = slice(0, 3) if encoder == "dino" else slice(3, 6)
    other[:, channels] += 1.0
    tower = tiny_model(llama_like).model.vision_tower
    with torch.no_grad():
        before, after = tower(inputs["pixel_values"]), tower(other)
    assert before.shape == (1, IMAGE_TOKENS, 32)
    moved = (before - after).abs().amax(dim=(0, 1))
    first, second = moved[:16].max(), moved[16:].max()
    assert (first > 1e-3) == (encoder == "dino")
    assert (second > 1e-3) == (encoder == "siglip")


def test_features_are_those_of_the_second_to_last_block(llama_like: Any) -> None:
    config = tiny_config(llama_like)
    tower = OpenVLAPlusForVision2Seq(config).eval().model.vision_tower
    for name, prefix, blocks in (("dino", 3, "encoder.layer"), ("siglip", 0, "encoder.layers")):
        whole = AutoModel.from_config(config.encoder_configs[name]).eval()
        missing, unexpected = whole.load_state_dict(tower.get_submodule(name).state_dict(), strict=False)
        assert not unexpected
        assert all(key.startswith((f"{blocks}.1.", "layernorm.", "post_layernorm.", "head.")) for key in missing)
        pixels = torch.randn(2, 3, 8, 8)
        with torch.no_grad():
            hidden = whole(pixel_values=pixels, output_hidden_states=True).hidden_states
            torch.testing.assert_close(tower.encode(name, pixels), hidden[-2][:, prefix:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("frozen", FROZEN)
def test_modes_and_gradients(llama_like: Any, inputs: Any, frozen: str | None) -> None:
    model = tiny_model(llama_like, frozen=frozen)
    tower = model.model.vision_tower
    model.requires_grad_(True)  # what a careless trainer does: there is still no graph through the frozen encoder
    for name in ENCODERS:
        assert (tower.encode(name, torch.randn(1, 3, 8, 8)).grad_fn is not None) == (frozen not in (name, "all"))
    for switch in (model.train, tower.train, lambda: model.train(True), lambda: model.requires_grad_(True).train()):
        switch()
        for name in ENCODERS:
            encoder = tower.get_submodule(name)
            moves = frozen not in (name, "all")
            assert {module.training for module in encoder.modules()} == {moves}
            trainable = {key for key, parameter in encoder.named_parameters() if parameter.requires_grad}
            assert bool(trainable) == moves
            assert (tower.encode(name, torch.randn(1, 3, 8, 8)).grad_fn is not None) == moves
    model = tiny_model(llama_like, frozen=frozen)
    model.train()(**inputs).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    expected = {name for name, _ in model.named_parameters() if stays(name, frozen)}
    assert without == expected | {"model.vision_tower.dino.embeddings.mask_token"}
    model.eval()
    assert not any(module.training for module in model.modules())


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # transformers 4 has no other name
@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_optimizer_steps_move_everything_but_the_frozen_encoder(
    llama_like: Any, inputs: Any, frozen: str | None, checkpointing: bool | None
) -> None:
    model = tiny_model(llama_like, frozen=frozen)
    plain = tiny_model(llama_like, frozen=frozen)
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for network in (model, plain):
        network.train()
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(2):
            optimizer.zero_grad()
            network(**inputs).loss.backward()
            optimizer.step()
    after = model.state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {name for name in before if "mask_token" in name or stays(name, frozen)}
    for name, tensor in plain.state_dict().items():  # checkpointing changes memory, not numbers
        if not name.endswith(NO_EFFECT):
            torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-5, msg=name)


def stays(name: str, frozen: str | None) -> bool:
    """Whether a weight is one of a frozen encoder."""
    return any(frozen in (encoder, "all") and f"vision_tower.{encoder}." in name for encoder in ENCODERS)
