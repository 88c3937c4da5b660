"""Decoder layers in fewer kernels against transformers' own; in Triton's interpreter, too: `make test-kernels`."""

import importlib.util
import os
from typing import Any

import pytest
import torch
from transformers import AutoModel, GemmaConfig, LlamaConfig

from gen_vla.modeling.fused_layers import (
    TorchOperations,
    activation_name,
    input_scale,
    run_layers,
    supports_fused_layers,
)
from gen_vla.modeling.verification_passes import TreeCache, additive_mask


SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "head_dim": 64,
}
CONFIGS = {
    "llama": LlamaConfig(num_attention_heads=4, num_key_value_heads=4, rms_norm_eps=1e-6, **SIZES),
    "grouped": LlamaConfig(num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, **SIZES),
    "gemma": GemmaConfig(num_attention_heads=4, num_key_value_heads=1, **SIZES),
}
ROWS, LENGTH, WIDTH, SLOTS = 2, 9, 16, 48
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = "TRITON_INTERPRET" in os.environ
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
HALF = torch.float16 if INTERPRETED else torch.bfloat16  # Triton's interpreter cuts bfloat16 off, products even more
NO_TRITON = "no GPU with Triton: its kernels cannot run here; make test-kernels interprets them"


@pytest.fixture(params=["plain", "triton"])
def operations(request):
    if request.param == "plain":
        return TorchOperations()
    if not HAS_TRITON or (DEVICE == "cpu" and not INTERPRETED):
        pytest.skip(NO_TRITON)
    from gen_vla.modeling.triton_operations import TritonOperations

    return TritonOperations()


def language_model(name, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.to(DEVICE, dtype)


def empty_cache(name, dtype=torch.float32):
    config = CONFIGS[name]
    shape = (config.num_hidden_layers, 2, ROWS, config.num_key_value_heads, SLOTS, config.head_dim)
    return feeding(TreeCache(WIDTH, SLOTS, torch.zeros(shape, dtype=dtype, device=DEVICE)), WIDTH, SLOTS)


def feeding(cache, tokens, visible):
    """A cache before a pass."""
    cache.fed, cache.visible, cache.written = tokens, visible, torch.arange(tokens, device=DEVICE)
    return cache


def random_tree_mask(generator):
    """Each token sees itself and some before it."""
    some = torch.rand(ROWS, WIDTH, WIDTH, generator=generator) < 0.4
    return (some.tril() | torch.eye(WIDTH, dtype=torch.bool)).to(DEVICE)


@torch.no_grad()
def whole_and_own(name, operations, dtype):
    """Hidden states of a prefill and of a decode pass, by transformers and by fused layers, over equal caches."""
    model, generator = language_model(name, dtype), torch.Generator().manual_seed(1)
    caches = empty_cache(name, dtype), empty_cache(name, dtype)
    results = []
    for tokens in (LENGTH + WIDTH, WIDTH):
        embeds = torch.randn(ROWS, tokens, SIZES["hidden_size"], generator=generator).to(DEVICE, dtype)
        positions = torch.randint(0, 40, (ROWS, tokens), generator=generator).to(DEVICE)
        tree_mask = random_tree_mask(generator)
        for cache in caches:
            if tokens == WIDTH:
                operations.move(cache, *(slots.to(DEVICE) for slots in moves()))
            feeding(cache, tokens, tokens if tokens > WIDTH else SLOTS)
        if tokens > WIDTH:
            allowed = torch.ones(ROWS, tokens, tokens, dtype=torch.bool, device=DEVICE).tril()
        else:
            ends = torch.tensor([[WIDTH + LENGTH + 3], [WIDTH + LENGTH + 1]])
            seen = torch.arange(SLOTS) < ends
            seen[1, WIDTH : WIDTH + 2] = False  # padding of a prompt
            seen = seen[:, None, WIDTH:].expand(-1, WIDTH, -1).to(DEVICE)
            allowed = torch.cat((tree_mask, seen), dim=2)
        whole = model(
            inputs_embeds=embeds,
            attention_mask=additive_mask(allowed, dtype),
            position_ids=positions,
            past_key_values=caches[0],
            use_cache=True,
        ).last_hidden_state
        scaled = embeds * input_scale(model, dtype)
        results.append((whole, run_layers(model, operations, scaled, positions, allowed, caches[1])))
    return results, caches


def moves():
    """What was accepted, and where it goes; the second row accepted less, the rest stays where it is."""
    source, target = torch.zeros(ROWS, WIDTH, dtype=torch.long), torch.zeros(ROWS, WIDTH, dtype=torch.long)
    source[0, :3], target[0, :3] = torch.tensor([0, 2, 5]), WIDTH + LENGTH + torch.arange(3)
    source[1, 0], target[1, 0] = 4, WIDTH + LENGTH
    return source, target


@pytest.mark.parametrize("name", CONFIGS)
def test_fused_layers_are_the_models_own(name, operations):
    results, caches = whole_and_own(name, operations, torch.float32)
    for whole, own in results:
        torch.testing.assert_close(own, whole, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(caches[1].buffer, caches[0].buffer, atol=2e-4, rtol=1e-4)
    assert caches[0].buffer[:, :, 0, :, WIDTH + LENGTH + 2].abs().max() > 0
    assert caches[0].buffer[:, :, :, :, WIDTH + LENGTH + 3 :].abs().max() == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_fused_layers_in_half_precision(name, operations):
    """As far from transformers' half precision as that is from float32, or less."""
    (_, (exact, _)), _ = whole_and_own(name, operations, torch.float32)
    (_, (whole, own)), _ = whole_and_own(name, operations, HALF)
    usual = (whole - exact).square().mean().sqrt()
    assert 0 < usual < 0.1 * exact.std()
    assert (own - whole).square().mean().sqrt() < 1.2 * usual
    assert own.dtype == HALF


@pytest.mark.parametrize("name", ["llama", "gemma"])
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_operations_round_as_pytorch(name, dtype, operations):
    """All but attention and sums: to the last bit, or the neighbour of it where a library's exponential differs."""
    torch.manual_seed(0)
    layer, plain = language_model(name, dtype).layers[0], TorchOperations()
    hidden, more = torch.randn(2, ROWS, WIDTH, SIZES["hidden_size"], device=DEVICE, dtype=dtype)
    sums = [hidden.clone(), hidden.clone()]
    step = torch.finfo(dtype).eps
    with torch.no_grad():
        found, expected = (
            used.add_norm(total, more, layer.input_layernorm) for used, total in zip((operations, plain), sums)
        )
        assert torch.equal(*sums)
        torch.testing.assert_close(found, expected, atol=4 * step, rtol=4 * step)
        gate, up = 3 * torch.randn(2, ROWS, WIDTH, SIZES["intermediate_size"], device=DEVICE, dtype=dtype)
        found, expected = (used.gated(gate, up, layer.mlp.act_fn) for used in (operations, plain))
        torch.testing.assert_close(found, expected, atol=8 * step, rtol=4 * step)
        caches, config = (empty_cache(name, dtype), empty_cache(name, dtype)), CONFIGS[name]
        heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        projected = [torch.randn(ROWS, WIDTH, n * config.head_dim, device=DEVICE, dtype=dtype) for n in heads]
        angles = torch.rand(ROWS, WIDTH, config.head_dim, device=DEVICE)
        turns = angles.cos().to(dtype), angles.sin().to(dtype)
        queries = [
            used.rotate_and_store(projected, *turns, cache, 1) for used, cache in zip((operations, plain), caches)
        ]
        torch.testing.assert_close(*queries, atol=4 * step, rtol=step)  # sums near 0 lose digits
        torch.testing.assert_close(caches[0].buffer, caches[1].buffer, atol=4 * step, rtol=step)
        assert caches[0].buffer[1].abs().amax(dim=(0, 1, 2, 4))[:WIDTH].min() > 0
        assert caches[0].buffer[[0, 2]].abs().max() == 0


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("group", [1, 4])
def test_attention_over_parts_of_the_slots(group, width, operations):
    """Long caches, rows that see little, and a part of the slots that nobody sees."""
    generator = torch.Generator().manual_seed(2)
    slots = 300

    def random(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE, HALF)

    query, keys, values = (
        random(ROWS, 4, 33, width),
        random(ROWS, 4 // group, slots, width),
        random(ROWS, 4 // group, slots, width),
    )
    allowed = torch.rand(ROWS, 33, slots, generator=generator) < 0.3
    allowed[0, :, 64:200] = False
    allowed[1, 5:7] = False  # the second one is padding and sees nothing
    allowed[1, 5, 7] = True
    mask = additive_mask(allowed.to(DEVICE), HALF)
    found = operations.attend(query, keys, values, mask, 0.1).float()
    exact = TorchOperations().attend(query.float(), keys.float(), values.float(), mask.float(), 0.1)
    assert bool(found.isfinite().all())
    found[1, 6] = exact[1, 6]
    torch.testing.assert_close(found, exact, atol=0.03, rtol=0.03)
    torch.testing.assert_close(found[1, 5, :width], values[1, 0, 7].float())


class AdaptedAttention(torch.nn.Module):
    """Adds to an attention, and passes on what is asked of it."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def __getattr__(self, name):
        return self._modules["attention"] if name == "attention" else getattr(self._modules["attention"], name)


def test_what_cannot_be_fused():
    model = language_model("llama")
    assert supports_fused_layers(model)
    assert activation_name(model.layers[0].mlp.act_fn) == "silu"
    assert activation_name(language_model("gemma").layers[0].mlp.act_fn) == "gelu_tanh"
    assert activation_name(torch.nn.ReLU()) is None
    handle = model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert not supports_fused_layers(model)
    handle.remove()
    model.layers[1].mlp.forward = lambda hidden: hidden  # of its own, where fused layers have the class's
    assert not supports_fused_layers(model)
    del model.layers[1].mlp.forward
    assert supports_fused_layers(model)
    attention = model.layers[1].self_attn
    model.layers[1].self_attn = AdaptedAttention(attention)
    assert model.layers[1].self_attn.q_proj is attention.q_proj
    assert not supports_fused_layers(model)
    model.layers[1].self_attn = attention
    assert supports_fused_layers(model)
    model.layers[1].input_layernorm = torch.nn.LayerNorm(48)
    assert not supports_fused_layers(model)
    del model.layers[1].input_layernorm  # as where a layer has other parts
    assert not supports_fused_layers(model)
    assert not supports_fused_layers(torch.nn.Linear(2, 2))
