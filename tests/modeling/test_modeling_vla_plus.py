"""A policy over the vision-language models of transformers: exact decoding, the frozen encoder, in every family."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_vlms import FAMILIES, tiny_inputs, tiny_vla_plus, tiny_vlm_config
from transformers import AutoModel, AutoModelForImageTextToText, LlamaConfig, LlavaConfig

from gen_vla.modeling import VLAPlusConfig, VLAPlusForVision2Seq
from gen_vla.modeling.vision_twin import add_frozen_vision
from gen_vla.modeling.vlm_families import family_of
from gen_vla.processors import ActionBins, ActionStringProcessor


EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)


@EACH_FAMILY
@pytest.mark.parametrize(("style", "horizon"), [("signed", 1), ("plain", 3), ("legacy", 2)])
def test_trees_write_what_one_token_at_a_time_does(family: str, style: str, horizon: int, gemma_like: Any) -> None:
    strings = ActionStringProcessor(2, horizon, 2, style, binary_dims=(1,))
    texts = set()
    for seed in range(3):
        model = tiny_vla_plus(family, gemma_like, strings, seed, frozen="vision" if seed else None)
        inputs = tiny_inputs(model, (3, 9, 1), seed)
        slow = model.predict_actions(**inputs, tree_nodes=0)
        for nodes in (1, 12):
            fast = model.predict_actions(**inputs, tree_nodes=nodes)
            assert fast.text == slow.text
            assert fast.forward_passes < slow.forward_passes
            np.testing.assert_allclose(fast.digit_probabilities, slow.digit_probabilities, atol=5e-5)
        texts |= set(slow.text)
    assert len(texts) > 3  # which depend on weights, pictures and words


@EACH_FAMILY
def test_many_random_cases(family: str, gemma_like: Any) -> None:
    """100 actions a family: style, dimensions, horizon, lengths of prompts and size of trees drawn; bins, too."""
    random = np.random.default_rng(FAMILIES.index(family))
    for case in range(10):
        horizon = int(random.choice([1, 1, 2, 8]))
        dims = int(random.integers(1, 4)) if horizon < 8 else 1
        if case % 5 == 4:
            codec: Any = ActionBins(dims, horizon, bins=16)
        else:
            codec = ActionStringProcessor(dims, horizon, int(random.integers(1, 5)), ("signed", "plain")[case % 2])
        model = tiny_vla_plus(family, gemma_like, codec, seed=case, tie_word_embeddings=bool(case % 3))
        inputs = tiny_inputs(model, tuple(random.integers(1, 20, 10).tolist()), seed=case)
        slow = model.predict_actions(**inputs, tree_nodes=0)
        assert model.predict_actions(**inputs, tree_nodes=int(random.integers(1, 40))).text == slow.text, case


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("kind", ["mistral", "phi3"])
def test_a_window_without_types_of_layers_is_that_of_all(family: str, kind: str, gemma_like: Any) -> None:
    """Mistral's configuration has a window and does not say which layers slide."""
    texts = set()
    for window in (8, None):
        model = tiny_vla_plus(family, gemma_like, model_type=kind, sliding_window=window)
        inputs = tiny_inputs(model, (3, 30, 1))
        slow = model.predict_actions(**inputs, tree_nodes=0)
        for cache in ("dynamic", "static"):
            fast = model.predict_actions(**inputs, tree_nodes=8, cache_implementation=cache)
            assert fast.text == slow.text
            np.testing.assert_allclose(fast.digit_probabilities, slow.digit_probabilities, atol=5e-5)
        texts.add(tuple(slow.text))
    assert len(texts) == 2  # the window has a say


@EACH_FAMILY
def test_samples_follow_the_model(family: str, gemma_like: Any) -> None:
    """4000 draws of the first token by trees, against the probabilities under the grammar."""
    model = tiny_vla_plus(family, gemma_like, ActionBins(1, 1, bins=4))
    inputs = tiny_inputs(model, (5,))
    rows = {name: value.repeat(400, *[1] * (value.ndim - 1)) for name, value in inputs.items()}
    torch.manual_seed(0)
    drawn = [model.predict_actions(**rows, do_sample=True, temperature=3.0).token_ids for _ in range(10)]
    tokens, counts = np.unique(np.concatenate(drawn)[:, 0], return_counts=True)
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    allowed = sorted(model.action_grammar.transitions[0])
    expected = (logits[allowed] / 3.0).softmax(dim=0).numpy() * 4000
    found = np.array([dict(zip(tokens.tolist(), counts.tolist())).get(token, 0) for token in allowed])
    assert ((found - expected) ** 2 / np.maximum(expected, 1e-9))[expected > 5].sum() < 20  # chi-square, 3 d.f.


@EACH_FAMILY
def test_the_frozen_encoder(family: str, gemma_like: Any) -> None:
    """At step 0 the model is its base, bit for bit; training moves one encoder and both projectors."""
    config = tiny_vlm_config(family, gemma_like)
    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_config(config).eval()
    model = tiny_vla_plus(family, gemma_like, frozen=None)
    model.vlm.load_state_dict(base.state_dict())
    inputs = tiny_inputs(model)
    with torch.no_grad():
        expected = base(**inputs).logits
        assert torch.equal(model(**inputs).logits, expected)
        add_frozen_vision(model.vlm.model, family_of(config))
        assert torch.equal(model(**inputs).logits, expected)
    model.train()
    frozen = model.vlm.model.frozen_vision
    before = {name: weight.clone() for name, weight in frozen.state_dict().items()}
    trained = [name for name, weight in frozen.named_parameters() if weight.requires_grad]
    assert trained
    assert all(name.startswith(frozen.projectors) for name in trained)
    assert len(trained) < len(before)
    labels = inputs["input_ids"].masked_fill(torch.arange(inputs["input_ids"].shape[1]) < 8, -100)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(**inputs, labels=labels).loss.backward()
    optimizer.step()
    for name, weight in frozen.named_parameters():
        assert (weight.grad is None) == (name not in trained), name
        assert name in trained or torch.equal(weight, before[name]), name
    assert any(not torch.equal(frozen.get_parameter(name), before[name]) for name in trained)
    encoder = next(name for name, module in frozen.named_modules() if name and not name.startswith(frozen.projectors))
    assert not frozen.get_submodule(encoder).training
    with torch.no_grad():
        assert not torch.equal(model.eval()(**inputs).logits, expected)


@EACH_FAMILY
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_answer_token_is_seen_before_it_is_predicted(family: str, attention: str, gemma_like: Any) -> None:
    """Other tokens at the end of the answer leave every logit before them as it was, in training and without."""
    model = tiny_vla_plus(family, gemma_like)
    if family != "paligemma2":  # Gemma 2 has no sdpa
        model.set_attn_implementation(attention)
    inputs, answer = tiny_inputs(model, (3, 9)), 6
    ids = torch.cat((inputs["input_ids"], torch.full((2, answer), 70)), dim=1)
    labels = torch.cat((torch.full_like(inputs["input_ids"], -100), ids[:, -answer:]), dim=1)
    more = {name: torch.nn.functional.pad(inputs[name], (0, answer)) for name in inputs if name.endswith("type_ids")}
    more["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, answer), value=1)
    for mode in (True, False):
        model.train(mode)
        first = model(**{**inputs, **more, "input_ids": ids}, labels=labels).logits
        for changed in range(1, answer):
            other = ids.clone()
            other[:, -changed:] = 90
            found = model(**{**inputs, **more, "input_ids": other}, labels=labels).logits
            seen = inputs["attention_mask"].bool()
            torch.testing.assert_close(
                found[:, : -changed - 1][:, : seen.shape[1]][seen], first[:, : seen.shape[1]][seen]
            )
            torch.testing.assert_close(found[:, seen.shape[1] : -changed], first[:, seen.shape[1] : -changed])
            assert not torch.allclose(found[:, -changed], first[:, -changed])


@EACH_FAMILY
def test_padding_on_either_side_leaves_the_loss(family: str, gemma_like: Any) -> None:
    model = tiny_vla_plus(family, gemma_like).train()
    inputs = tiny_inputs(model, (3, 9))
    inputs["labels"] = torch.full_like(inputs["input_ids"], -100)
    inputs["labels"][:, -3:] = inputs["input_ids"][:, -3:]
    padding = int((inputs["attention_mask"][0] == 0).sum())
    right = dict(inputs)
    for name in inputs:
        if inputs[name].shape == inputs["input_ids"].shape:
            right[name] = inputs[name].clone()
            right[name][0] = inputs[name][0].roll(-padding)
    assert not right["attention_mask"][0, -1]
    with torch.no_grad():
        torch.testing.assert_close(model(**right).loss, model(**inputs).loss)


@EACH_FAMILY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_acts_in_half_precision(family: str, dtype: torch.dtype, gemma_like: Any) -> None:
    model: Any = tiny_vla_plus(family, gemma_like)
    model.to(dtype)
    fast, slow = (model.predict_actions(**tiny_inputs(model), tree_nodes=nodes) for nodes in (8, 0))
    np.testing.assert_allclose(fast.digit_probabilities[:, 0], slow.digit_probabilities[:, 0], atol=0.05)


def test_calls_at_once_do_not_mix(gemma_like: Any) -> None:
    """Qwen's stock model keeps what pictures add to positions from one call for the next."""
    model = tiny_vla_plus("qwen2_5_vl", gemma_like)
    small, large = tiny_inputs(model, (3,)), tiny_inputs(model, (9,), seed=1)
    ids = large["input_ids"]
    large |= {  # a picture twice as high
        "input_ids": torch.cat((ids[:, :3], *[ids[:, 2:3]] * 3, ids[:, 2:]), dim=1),
        "attention_mask": torch.ones(1, ids.shape[1] + 4, dtype=torch.long),
        "pixel_values": torch.cat((large["pixel_values"], small["pixel_values"])),
        "image_grid_thw": torch.tensor([[1, 8, 4]]),
    }
    calls = [(inputs, nodes) for inputs in (small, large) for nodes in (None, 0)] * 3
    expected = [model.predict_actions(**inputs, tree_nodes=nodes) for inputs, nodes in calls]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda call: model.predict_actions(**call[0], tree_nodes=call[1]), calls))
    for one, other in zip(found, expected, strict=True):
        assert one.text == other.text
        np.testing.assert_array_equal(one.digit_probabilities, other.digit_probabilities)


@EACH_FAMILY
def test_saved_and_loaded_it_acts_alike(family: str, gemma_like: Any, tmp_path: Path) -> None:
    model = tiny_vla_plus(family, gemma_like)
    inputs = tiny_inputs(model)
    expected = model.predict_actions(**inputs)
    model.save_pretrained(tmp_path)
    for auto_class in (AutoModel, AutoModelForImageTextToText, VLAPlusForVision2Seq):
        loaded: Any = auto_class.from_pretrained(tmp_path, trust_remote_code=True)
        assert type(loaded).__name__ == VLAPlusForVision2Seq.__name__
        assert not loaded.missing_weights
        assert loaded.config.vlm_config.model_type == model.config.vlm_config.model_type
        found = loaded.predict_actions(**inputs)
        assert found.text == expected.text
        np.testing.assert_array_equal(found.digit_probabilities, expected.digit_probabilities)
        frozen = loaded.vlm.model.frozen_vision
        assert not all(weight.requires_grad for weight in frozen.parameters())


def test_other_models_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="got a vision-language model of type 'llama', expected one of gemma3, "):
        VLAPlusConfig(LlamaConfig())
    recurrent = LlamaConfig(num_hidden_layers=1)
    recurrent.layer_types = ["linear_attention"]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="layers of type linear_attention, expected full or sliding attention"):
        VLAPlusConfig(recurrent)
    with pytest.raises(ValueError, match="got frozen='siglip', expected one of 'vision', None"):
        VLAPlusConfig({"model_type": "paligemma"}, frozen="siglip")
    capped = LlavaConfig(text_config={"model_type": "gemma2", "final_logit_softcapping": 30.0})
    with pytest.raises(ValueError, match="got a llava over a language model that caps its logits"):
        VLAPlusConfig(capped)
    slides = LlavaConfig(text_config={"model_type": "llama", "sliding_window": 8})
    with pytest.raises(ValueError, match="got a llama language model with sliding_window=8, expected none: its layer"):
        VLAPlusConfig(slides)
    with pytest.raises(ValueError, match="got a llava whose pictures a Pixtral encodes, expected a CLIP or a SigLIP"):
        VLAPlusConfig(LlavaConfig(vision_config={"model_type": "pixtral"}))
    for settings, model_type in (({"model_type": "paligema"}, "'paligema'"), ({"hidden_size": 8}, "None")):
        with pytest.raises(ValueError, match=f"got a vlm_config with model_type={model_type}, expected one"):
            VLAPlusConfig(settings)


def test_pictures_must_match_their_tokens(gemma_like: Any) -> None:
    model = tiny_vla_plus("llava", gemma_like)
    inputs = tiny_inputs(model)
    with pytest.raises(ValueError, match="got 8 image tokens in input_ids and pictures of 4 features"):
        model.predict_actions(**{**inputs, "pixel_values": inputs["pixel_values"][:1]})


@EACH_FAMILY
def test_what_follows_from_the_ids_may_be_left_out(family: str, gemma_like: Any) -> None:
    """Types of tokens, as of collators that do not know them: without, Qwen would count positions as in text."""
    model = tiny_vla_plus(family, gemma_like)
    inputs = tiny_inputs(model)
    bare = {name: value for name, value in inputs.items() if not name.endswith("type_ids")}
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    assert torch.equal(model.generate(**bare, **options), model.generate(**inputs, **options))
    labels = inputs["input_ids"].masked_fill(torch.arange(inputs["input_ids"].shape[1]) < 8, -100)
    with torch.no_grad():
        assert torch.equal(model(**bare).logits, model(**inputs).logits)
        assert model(**bare, labels=labels).loss == model(**inputs, labels=labels).loss


@EACH_FAMILY
def test_image_tokens_without_pictures_are_refused(family: str, gemma_like: Any) -> None:
    model = tiny_vla_plus(family, gemma_like)
    inputs = {name: tiny_inputs(model)[name] for name in ("input_ids", "attention_mask")}
    for use in (model, model.generate):
        with pytest.raises(ValueError, match=r"got \d+ image tokens in input_ids and no pixel_values, expected"):
            use(**inputs)
    if "image_grid_thw" in tiny_inputs(model) or "image_sizes" in tiny_inputs(model):
        with pytest.raises(ValueError, match=r"got pixel_values without image_\w+, expected"):
            model.predict_actions(**inputs, pixel_values=tiny_inputs(model)["pixel_values"])
    words = {name: value[:, -3:] for name, value in inputs.items()}
    assert model.generate(**words, max_new_tokens=2, min_new_tokens=2).shape == (2, 5)


def test_a_second_turn_shows_another_picture(gemma_like: Any) -> None:
    """After the cache of the first turn only what is new is passed; words alone need no picture again."""
    model = tiny_vla_plus("smolvlm", gemma_like)
    first, second = tiny_inputs(model, (3,)), tiny_inputs(model, (6,), seed=1)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    turn = model.generate(**first, **options, return_dict_in_generate=True)
    for more in (second["input_ids"], torch.full((1, 3), 70)):
        ids = torch.cat((turn.sequences, more), dim=1)
        pictures = [first["pixel_values"], second["pixel_values"]][: 1 + (more is second["input_ids"])]
        expected = model.generate(ids, pixel_values=torch.cat(pictures, dim=1), **options)
        cache = copy.deepcopy(turn.past_key_values)
        found = model.generate(ids, past_key_values=cache, pixel_values=[None, *pictures[1:]][-1], **options)
        assert torch.equal(found, expected)


@EACH_FAMILY
def test_checkpointed_layers_train_alike_and_do_not_act(family: str, gemma_like: Any) -> None:
    model = tiny_vla_plus(family, gemma_like).train()
    inputs = tiny_inputs(model)
    labels = inputs["input_ids"].masked_fill(torch.arange(inputs["input_ids"].shape[1]) < 8, -100)
    gradients: list[dict[str, Any]] = []
    for _ in range(2):
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
        model.gradient_checkpointing_enable()
    torch.testing.assert_close(*gradients)
    for act in (model.predict_actions, model.generate):
        with pytest.raises(ValueError, match="gradient checkpointing, expected evaluation mode to answer or act"):
            act(**inputs)
    model.eval().predict_actions(**inputs)


def test_copies_are_models_of_their_own(gemma_like: Any) -> None:
    model = tiny_vla_plus("qwen2_5_vl", gemma_like)
    inputs = tiny_inputs(model)
    expected = model.predict_actions(**inputs)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    for each in copies:
        found = each.predict_actions(**inputs)
        assert found.text == expected.text
        np.testing.assert_array_equal(found.digit_probabilities, expected.digit_probabilities)
    with pytest.raises(ValueError, match="with a frozen copy of its encoder, expected one without"):
        VLAPlusForVision2Seq.from_vlm(model.vlm)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_adapters_of_the_language_model(family: str, gemma_like: Any) -> None:
    """PEFT's wrapper trains and acts; nothing of the frozen copy is trained, even where it has adapters."""
    model = tiny_vla_plus(family, gemma_like)
    inputs = tiny_inputs(model)
    plain = model.predict_actions(**inputs).text
    adapters: Any = LoraConfig(target_modules=r".*\.language_model\..*(q|v)_proj", r=2, init_lora_weights=False)
    adapted: Any = get_peft_model(model, adapters)
    acted = adapted.predict_actions(**inputs)
    assert acted.text == adapted.predict_actions(**inputs, tree_nodes=0).text != plain
    with adapted.disable_adapter():
        assert adapted.predict_actions(**inputs).text == plain
    assert adapted.merge_and_unload().predict_actions(**inputs).text == acted.text
    everywhere: Any = get_peft_model(tiny_vla_plus(family, gemma_like), LoraConfig(target_modules="all-linear", r=2))
    everywhere.train()
    frozen = everywhere.get_base_model().vlm.model.frozen_vision
    trained = [name for name, weight in frozen.named_parameters() if weight.requires_grad]
    assert all(name.startswith(frozen.projectors) for name in trained)
