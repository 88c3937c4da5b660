"""A turn of a conversation on top of a cache, pictures included, equals the whole row at once."""

import copy
from typing import Any

import pytest
import torch
from tiny_models import IMAGE_TOKENS, picture, tiny_pair
from transformers import StaticCache


PICTURES = [((1, 1), (1, 1)), ((2, 0), (0, 1)), ((1, 2), (2, 1)), ((1, 1), (0, 0))]
GREEDY = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5, "eos_token_id": None}


@pytest.fixture(scope="module")
def made(llama_like: Any) -> tuple[Any, Any]:
    """A model and its processor."""
    return tiny_pair("openvla_plus", llama_like, pad_token_id=llama_like.pad_token_id)


def turn(processor: Any, counts: tuple[int, ...], seed: int) -> dict[str, torch.Tensor]:
    """A left-padded batch of questions of different lengths with `counts` pictures each."""
    texts = [processor.question_prompt(text) for text in ("what is it", "two", "red")][: len(counts)]
    images = [[picture(seed + 10 * row + n) for n in range(count)] for row, count in enumerate(counts)]
    return dict(processor(images=images, text=texts))


def conversation(processor: Any, first: Any, second: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Inputs of the first turn, of the second one behind it, and of both at once."""
    one, two = turn(processor, first, seed=1), turn(processor, second, seed=100)
    whole = {name: torch.cat((one[name], two[name]), dim=1) for name in ("input_ids", "attention_mask")}
    old, new = (each.get("pixel_values", torch.empty(0)) for each in (one, two))
    rows = [part for pair in zip(old.split(list(first)), new.split(list(second)), strict=True) for part in pair]
    whole["pixel_values"] = torch.cat([part for part in rows if len(part)])
    later = {"input_ids": two["input_ids"], "attention_mask": whole["attention_mask"]}
    return one, {**later, **({"pixel_values": new} if len(new) else {})}, whole


@torch.no_grad()
def cache_of(model: Any, inputs: dict[str, Any], static: bool = False) -> Any:
    given = StaticCache(config=model.config.text_config, max_cache_len=64) if static else None
    return model(**inputs, past_key_values=given, use_cache=True).past_key_values


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("first", "second"), PICTURES)
def test_a_cached_second_turn_equals_the_whole_row(made: Any, first: Any, second: Any, static: bool) -> None:
    model, processor = made
    one, two, whole = conversation(processor, first, second)
    cache = cache_of(model, one, static)
    with torch.no_grad():
        cached = model(**two, past_key_values=cache).logits
        real = two["attention_mask"][:, -cached.shape[1] :].bool()
        wanted = model(**whole).logits[:, -cached.shape[1] :]
    torch.testing.assert_close(cached[real], wanted[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"cache_implementation": "static"}])
@pytest.mark.parametrize(("first", "second"), PICTURES[1:3])
def test_generation_behind_a_cache_equals_generation_without(
    made: Any, first: Any, second: Any, options: dict[str, Any]
) -> None:
    model, processor = made
    one, two, whole = conversation(processor, first, second)
    options = dict(options)
    wanted = model.generate(**whole, **GREEDY, **options)[:, -5:]
    cache = cache_of(model, one, static=options.get("cache_implementation") == "static")
    if options.pop("cache_implementation", None) is None and options:
        cache.batch_repeat_interleave(2)
    for given in (whole, two):
        got = model.generate(**given, past_key_values=copy.deepcopy(cache), **GREEDY, **options)
        assert got[:, -5:].tolist() == wanted.tolist()


def test_a_turn_without_pictures_needs_none(made: Any) -> None:
    model, processor = made
    one, _, whole = conversation(processor, (1, 1), (0, 0))
    del whole["pixel_values"]
    assert model.generate(**whole, past_key_values=cache_of(model, one), **GREEDY).shape == (
        2,
        whole["input_ids"].shape[1] + 5,
    )


def test_pictures_that_cannot_be_merged_are_refused(made: Any) -> None:
    model, processor = made
    one, two, whole = conversation(processor, (1,), (2,))
    length = one["input_ids"].shape[1]
    inside = length + whole["input_ids"][0, length:].tolist().index(model.config.image_token_id) + 1
    cut = {name: values[:, :inside] for name, values in whole.items() if name != "pixel_values"}
    step = {"input_ids": one["input_ids"][:, -1:], "attention_mask": torch.ones(1, length + 1, dtype=torch.long)}
    for name, given, message in (
        ("forward", {**two, "pixel_values": two["pixel_values"][:1]}, "got 8 image tokens .* and 4 features"),
        ("forward", {**two, "pixel_values": None}, "got 8 image tokens in input_ids and no pixel_values"),
        ("forward", {**step, "pixel_values": one["pixel_values"]}, "got 0 image tokens .* and 4 features"),
        ("generate", {**whole, "pixel_values": two["pixel_values"]}, "got 12 image tokens .* and 8 features"),
        ("generate", {**two, "pixel_values": whole["pixel_values"]}, "got 8 image tokens .* and 12 features"),
        ("generate", {**whole, "pixel_values": None}, "got 8 image tokens in input_ids and no pixel_values"),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(model, name)(**given, past_key_values=cache_of(model, one))
    with torch.no_grad():
        embeds = model.get_input_embeddings()(cut.pop("input_ids"))
        cache = model(inputs_embeds=embeds, **cut, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"past_key_values that end inside a picture: \[7\] image tokens"):
        model.generate(**whole, past_key_values=cache, **GREEDY)


def test_a_picture_shared_by_two_rows_is_refused(made: Any) -> None:
    model, processor = made
    inputs = turn(processor, (1, 1), seed=1)
    row, other = (line.tolist().index(model.config.image_token_id) for line in inputs["input_ids"])
    inputs["input_ids"][0, row] = inputs["input_ids"][0, -1]
    inputs["input_ids"][1, other + IMAGE_TOKENS] = model.config.image_token_id
    with pytest.raises(ValueError, match=r"got \[3, 5\] image tokens in the rows of input_ids, expected a multiple"):
        model(**inputs)


def test_the_image_token_is_never_written(made: Any) -> None:
    model, processor = copy.deepcopy(made[0]), made[1]
    inputs = dict(processor.question_inputs(picture(1), "two"))
    hook = model.lm_head.register_forward_hook(
        lambda _, __, logits: logits.index_fill(-1, torch.tensor([model.config.image_token_id]), 100.0)
    )
    wanted = made[0].generate(**inputs, **GREEDY)
    assert model.generate(**inputs, **GREEDY).tolist() == wanted.tolist()
    assert model.generate(**inputs, **GREEDY, use_cache=False).tolist() == wanted.tolist()
    hook.remove()
