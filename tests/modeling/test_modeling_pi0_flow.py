"""The flow-matching π0: transformers' PI0 number for number, and what this family adds to it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import IMAGE_TOKENS, picture, tiny_pi0_flow_model, tiny_pi0_flow_processor
from transformers import PI0Config, PI0ForConditionalGeneration

from gen_vla.modeling import Pi0FlowConfig, Pi0FlowForActionPrediction


WORDS = ["open the drawer", "go"]
WIDTH = 8  # max_action_dim of the tiny configuration


@pytest.fixture(scope="module")
def model(gemma_like: Any) -> Any:
    """Actions of 3 dimensions, the last a gripper, 4 steps; for the tests that do not change it."""
    return tiny_pi0_flow_model(gemma_like)


@pytest.fixture(scope="module")
def whole(gemma_like: Any) -> Any:
    """A model whose actions fill all 8 dimensions, as transformers' own do."""
    return tiny_pi0_flow_model(gemma_like, action_config=None, norm_stats=None)


@pytest.fixture(scope="module")
def processor(gemma_like: Any) -> Any:
    return tiny_pi0_flow_processor(gemma_like)


@pytest.fixture(scope="module")
def inputs(processor: Any) -> Any:
    """Two rows of different lengths, so that one is padded."""
    return processor.action_inputs([picture(), picture(1)], WORDS)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def native_model(model: Any) -> Any:
    """Transformers' PI0 with the weights of `model`; the words that its expert could embed are zeros."""
    settings = model.config.to_dict()
    names = {"action_config", "norm_stats", "prompt_template", "noise_in_padding"}  # ours
    names |= {"auto_map", "model_type", "architectures"}
    native = PI0ForConditionalGeneration(PI0Config(**{key: settings[key] for key in settings if key not in names}))
    missing, unexpected = native.load_state_dict(model.state_dict(), strict=False)
    assert missing == ["model.dit.embed_tokens.weight"]
    assert not unexpected
    return native.eval()


def native_inputs(inputs: Any) -> dict[str, Any]:
    """The same rows as PI0 takes them."""
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "pixel_values": inputs["pixel_values"][:, None],
        "pixel_attention_mask": torch.ones(2, 1, dtype=torch.bool),
        "state": torch.zeros(2, WIDTH),
    }


@torch.no_grad()
def test_only_the_dimensions_of_the_action_take_part(model: Any, inputs: Any) -> None:
    noise, actions = draw(2, 4, 3), draw(2, 4, 3, seed=1).clamp(-1, 1)
    timestep = torch.tensor([0.3, 0.9])
    outputs = model(**inputs, noise=noise, timestep=timestep, actions=actions)
    padded = torch.nn.functional.pad(noise, (0, 5))
    theirs = native_model(model)(
        **native_inputs(inputs), noise=padded, timestep=timestep, actions=torch.nn.functional.pad(actions, (0, 5))
    )
    torch.testing.assert_close(outputs.logits[..., :3], theirs.logits[..., :3], rtol=0, atol=0)
    assert not outputs.logits[..., 3:].any()
    by_hand = (theirs.logits[..., :3] - (noise - actions)).square().mean()
    torch.testing.assert_close(outputs.loss, by_hand, rtol=1e-6, atol=0)
    elsewhere = padded + torch.tensor([0.0] * 3 + [5.0] * 5)
    again = model(**inputs, noise=elsewhere, timestep=timestep, actions=actions)
    torch.testing.assert_close(again.loss, outputs.loss, rtol=0, atol=0)
    samples = [model.predict_actions(**inputs, noise=given).normalized for given in (noise, elsewhere)]
    np.testing.assert_array_equal(*samples)


@torch.no_grad()
def test_noise_in_all_dimensions_as_in_the_published_weights(gemma_like: Any, inputs: Any) -> None:
    """Samples, velocity and loss (openpi's: a mean over all dimensions) are transformers' own."""
    model = tiny_pi0_flow_model(gemma_like, noise_in_padding=True)
    native, given = native_model(model), native_inputs(inputs)
    noise, timestep, actions = draw(2, 4, WIDTH), torch.tensor([0.3, 0.9]), draw(2, 4, 3, seed=1).clamp(-1, 1)
    ours = model(**inputs, noise=noise, timestep=timestep, actions=actions)
    zeros_behind = torch.nn.functional.pad(actions, (0, WIDTH - 3))
    theirs = native(**given, noise=noise, timestep=timestep, actions=zeros_behind)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=0)
    by_hand = (theirs.logits - (noise - zeros_behind)).square().mean()
    torch.testing.assert_close(ours.loss, by_hand, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.loss, theirs.loss.mean(), rtol=1e-6, atol=0)
    samples = native.sample_actions(**given, noise=noise, num_steps=3)[..., :3].clamp(-1, 1)
    samples[..., 2] = (samples[..., 2] > 0.5).float()
    np.testing.assert_array_equal(
        model.predict_actions(**inputs, noise=noise, num_steps=3).normalized, samples.numpy()
    )
    drawn = model.draw_noise(500)
    assert drawn.shape == (500, 4, WIDTH)
    assert ((drawn.std(dim=(0, 1)) - 1).abs() < 0.1).all()
    with pytest.raises(ValueError, match=r"noise of shape \[2, 4, 3\], expected \[2, 4, 8\]: .*max_action_dim"):
        model.predict_actions(**inputs, noise=noise[..., :3])


@torch.no_grad()
def test_padded_steps_do_not_count(model: Any, inputs: Any) -> None:
    flow = {"noise": draw(2, 4, 3), "timestep": torch.tensor([0.3, 0.9]), "actions": draw(2, 4, 3, seed=1)}
    padding = torch.tensor([[False, False, True, True], [False] * 4])
    outputs = model(**inputs, **flow, action_is_pad=padding)
    errors = (outputs.logits[..., :3] - (flow["noise"] - flow["actions"])).square().mean(-1)
    torch.testing.assert_close(outputs.loss, errors[~padding].mean(), rtol=1e-6, atol=0)
    assert (outputs.loss - model(**inputs, **flow).loss).abs() > 1e-3
    assert model(**inputs, **flow, action_is_pad=torch.ones(2, 4, dtype=torch.bool)).loss == 0


@torch.no_grad()
def test_state_cameras_and_padding(model: Any, inputs: Any) -> None:
    noise = draw(2, 4, 3)
    plain = model.predict_actions(**inputs, noise=noise).normalized
    for state in (torch.zeros(2, 8), torch.zeros(2, 3)):
        np.testing.assert_array_equal(model.predict_actions(**inputs, noise=noise, state=state).normalized, plain)
    seen = model.predict_actions(**inputs, noise=noise, state=torch.ones(2, 3)).normalized
    assert np.abs(seen - plain).max() > 1e-3
    cameras = {**inputs, "pixel_values": inputs["pixel_values"][:, None]}
    np.testing.assert_array_equal(model.predict_actions(**cameras, noise=noise).normalized, plain)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    image = torch.full((2, IMAGE_TOKENS), model.config.image_token_id)
    two = {
        "input_ids": torch.cat([image, ids], 1),
        "pixel_values": inputs["pixel_values"].repeat_interleave(2, dim=0),
        "attention_mask": torch.cat([torch.ones_like(image), mask], 1),
    }
    assert np.abs(model.predict_actions(**two, noise=noise).normalized - plain).max() > 1e-3
    with pytest.raises(ValueError, match="got 3 pictures for 2 rows"):
        model.predict_actions(**{**two, "pixel_values": two["pixel_values"][:3]})
    length = int(mask[1].sum())
    right = {
        **inputs,
        "input_ids": torch.stack([ids[0], ids[1].roll(length)]),
        "attention_mask": torch.stack([mask[0], mask[1].roll(length)]),
    }
    assert not torch.equal(right["attention_mask"], mask)
    np.testing.assert_allclose(model.predict_actions(**right, noise=noise).normalized, plain, atol=1e-5)


def test_an_action_is_in_units_and_is_what_the_seed_says(model: Any, processor: Any, inputs: Any) -> None:
    prediction = model.predict_actions(**inputs, generator=torch.Generator().manual_seed(5))
    assert prediction.actions.shape == prediction.normalized.shape == (2, 4, 3)
    assert prediction.actions.dtype == prediction.normalized.dtype == np.float32
    assert set(np.unique(prediction.normalized[..., 2])) <= {0.0, 1.0}
    assert np.abs(prediction.normalized).max() == 1.0  # large random weights leave the range, and are clipped
    np.testing.assert_allclose(prediction.actions, prediction.normalized * [1, 2, 1], rtol=1e-6)
    first = prediction.text[0].splitlines()
    assert len(first) == 4
    np.testing.assert_allclose([float(v) for v in first[0].split()], prediction.normalized[0, 0], atol=1e-4)
    assert prediction.token_ids.shape == prediction.digit_probabilities.shape == (2, 0)
    torch.manual_seed(5)
    one_by_one = [
        model.predict_action(**processor.action_inputs(picture(row), WORDS[row]), unnorm_key="tiny", do_sample=False)
        for row in (0, 1)
    ]
    np.testing.assert_allclose(np.stack(one_by_one), prediction.actions, atol=1e-5)
    other = model.predict_actions(**inputs, generator=torch.Generator().manual_seed(6)).actions
    assert np.abs(other - prediction.actions).max() > 1e-2


def test_forward_passes_are_counted(model: Any, inputs: Any) -> None:
    counts = {"vlm": 0, "dit": 0}
    hooks = [
        getattr(model.model, name).register_forward_hook(
            lambda *_, name=name: counts.__setitem__(name, counts[name] + 1)
        )
        for name in counts
    ]
    assert model.predict_actions(**inputs, num_steps=3).forward_passes == 4
    assert counts == {"vlm": 1, "dit": 3}
    assert model.predict_actions(**inputs).forward_passes == 11
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tree_nodes": 8}, "got tree_nodes"),
        ({"previous": np.zeros((2, 4, 3))}, "previous actions"),
        ({"do_sample": True}, "got do_sample"),
        ({"cache_implementation": "static"}, "decodes no tokens"),
        ({"num_steps": 0}, "got num_steps=0"),
        ({"noise": torch.zeros(2, 4, 5)}, r"noise of shape \[2, 4, 5\], expected \[2, 4, 3\]"),
        ({"noise": torch.zeros(2, 3, 3)}, "horizon"),
        ({"state": torch.zeros(2, 9)}, r"expected \[2, at most 8\]"),
        ({"unnorm_key": "tyni"}, "keys: tiny"),
        ({"unnorm_key": ["tiny"] * 3}, "3 unnorm_keys for 2 observations"),
        ({"pixel_values": None}, "got no pixel_values"),
    ],
)
def test_what_is_refused(model: Any, inputs: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.predict_actions(**{**inputs, **options})


def test_options_that_ask_for_nothing_pass(model: Any, inputs: Any) -> None:
    noise = draw(2, 4, 3)
    nothing = {"do_sample": False, "tree_nodes": None, "previous": None, "use_cache": True, "num_beams": 1}
    before, after = (model.predict_actions(**inputs, noise=noise, **given).actions for given in ({}, nothing))
    np.testing.assert_array_equal(after, before)


def test_other_refusals(model: Any, inputs: Any, gemma_like: Any) -> None:
    with pytest.raises(ValueError, match="no output layer"):
        model.generate(**inputs)
    with pytest.raises(ValueError, match="got 2 observations"):
        model.predict_action(**inputs)
    cut = {**inputs, "input_ids": inputs["input_ids"][:, 6:], "attention_mask": inputs["attention_mask"][:, 6:]}
    for act in (model, model.predict_actions):
        with pytest.raises(ValueError, match="Image features and image tokens do not match"):
            act(**cut)
    with pytest.raises(ValueError, match="got none of input_ids"):
        model()
    with pytest.raises(ValueError, match=r"without config\.action_config"):
        tiny_pi0_flow_model(gemma_like, action_config=None).predict_actions(**inputs)
    broken = tiny_pi0_flow_model(gemma_like)
    with torch.no_grad():
        broken.action_out_proj.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        broken.predict_actions(**inputs)


def test_gradients_reach_every_weight_that_trains(gemma_like: Any, inputs: Any) -> None:
    model = tiny_pi0_flow_model(gemma_like).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(**inputs, actions=draw(2, 4, 3), state=torch.ones(2, 8)).loss.backward()
    lacking = {name for name, value in model.named_parameters() if value.requires_grad and value.grad is None}
    assert lacking == set()
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert all(
        name.startswith(("model.vlm.language_model.layers.1.", "model.vlm.language_model.norm")) for name in frozen
    )
    assert len(frozen) == 7
    with torch.no_grad():  # that nothing depends on them is why they are frozen
        flow = {"noise": draw(2, 4, 3), "timestep": torch.tensor([0.5, 0.5])}
        velocity = model(**inputs, **flow).logits
        for name in frozen:
            model.get_parameter(name).add_(1.0)
        torch.testing.assert_close(model(**inputs, **flow).logits, velocity, rtol=0, atol=0)
    assert set(before) == set(model.state_dict())


def test_gradient_checkpointing_changes_nothing(gemma_like: Any, inputs: Any) -> None:
    flow = {"noise": draw(2, 4, 3), "timestep": torch.tensor([0.3, 0.9]), "actions": draw(2, 4, 3, seed=1)}
    results = []
    for on in (False, True):
        model = tiny_pi0_flow_model(gemma_like).train()
        if on:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        loss = model(**inputs, **flow).loss
        loss.backward()
        results.append([loss.detach(), *(value.grad for value in model.parameters() if value.grad is not None)])
    assert len(results[0]) > 50
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-7)
    model.gradient_checkpointing_disable()  # type: ignore[reportPossiblyUnbound]
    assert not model.is_gradient_checkpointing  # type: ignore[reportPossiblyUnbound]


def test_a_constant_velocity_by_hand(gemma_like: Any, inputs: Any) -> None:
    model = tiny_pi0_flow_model(gemma_like)
    velocity = torch.tensor([0.5, -0.25, -1.0])
    with torch.no_grad():
        model.action_out_proj.weight.zero_()
        model.action_out_proj.bias[:3] = velocity
    noise = 0.1 * draw(2, 4, 3)
    for steps in (1, 4):  # from time 1 to time 0 against the velocity
        prediction = model.predict_actions(**inputs, noise=noise, num_steps=steps)
        np.testing.assert_allclose(prediction.normalized[..., :2], (noise - velocity)[..., :2].numpy(), atol=1e-6)
        assert (prediction.normalized[..., 2] == 1.0).all()
    assert model(**inputs, noise=noise, actions=noise - velocity).loss < 1e-12
    assert abs(model(**inputs, noise=noise, actions=noise - velocity + 1.0).loss.item() - 1.0) < 1e-5


def test_half_precision(gemma_like: Any, inputs: Any) -> None:
    model = tiny_pi0_flow_model(gemma_like).to(torch.bfloat16)
    outputs = model(**inputs, actions=draw(2, 4, 3))
    assert outputs.loss.dtype == torch.float32
    assert model.predict_actions(**inputs).actions.dtype == np.float32


def test_a_saved_model_is_whole(model: Any, inputs: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())
    assert (tmp_path / "dataset_statistics.json").is_file()
    result: Any = Pi0FlowForActionPrediction.from_pretrained(tmp_path, output_loading_info=True)
    loaded, info = result
    assert not any(info.values())
    assert loaded.config.action_config == model.config.action_config
    assert not loaded.model.vlm.language_model.norm.weight.requires_grad
    noise = draw(2, 4, 3)
    np.testing.assert_array_equal(
        loaded.predict_actions(**inputs, noise=noise).actions, model.predict_actions(**inputs, noise=noise).actions
    )


@pytest.mark.parametrize("layout", ["transformers", "lerobot"])
def test_weights_of_other_projects_are_read(whole: Any, inputs: Any, tmp_path: Path, layout: str) -> None:
    native = native_model(whole)
    native.save_pretrained(tmp_path)
    if layout == "lerobot":  # the names in lerobot/pi0_base
        tensors = load_file(tmp_path / "model.safetensors")
        renamed = {
            f"model.{name.replace('vision_tower.', 'vision_tower.vision_model.')}": value
            for name, value in tensors.items()
        }
        embedding = "model.paligemma_with_expert.paligemma.model.language_model.model.embed_tokens.weight"
        renamed["model.paligemma_with_expert.paligemma.lm_head.weight"] = renamed.pop(embedding)
        renamed = {name.replace("language_model.model.", "language_model."): value for name, value in renamed.items()}
        save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    result: Any = Pi0FlowForActionPrediction.from_pretrained(tmp_path, output_loading_info=True)
    loaded, info = result
    assert not any(info.values())
    assert loaded.config.model_type == "pi0_flow"
    assert loaded.config.noise_in_padding, "as these weights were trained"
    given = {"noise": draw(2, 4, WIDTH), "timestep": torch.tensor([0.3, 0.9])}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs, **given).logits, whole(**inputs, **given).logits, rtol=0, atol=0)
    loaded.save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == set(whole.state_dict())
    assert Pi0FlowConfig.from_pretrained(tmp_path / "again").model_type == "pi0_flow"
