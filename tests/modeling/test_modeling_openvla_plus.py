"""The model's wiring: pictures matter, batches equal single rows, caches equal no cache, losses by hand, errors."""

from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import picture, tiny_model, tiny_processor


QUESTIONS = ["Go?", "How many Out?", "x"]
WORDS = [f"In: {question}\nOut:" for question in QUESTIONS]


@pytest.fixture(scope="module")
def model(llama_like: Any) -> Any:
    """One OpenVLA+ for the tests that do not change it."""
    return tiny_model(llama_like, pad_token_id=llama_like.pad_token_id)


@pytest.fixture(scope="module")
def processor(llama_like: Any) -> Any:
    return tiny_processor(llama_like)


@torch.no_grad()
def logits_of(model: Any, inputs: Any, **options: Any) -> torch.Tensor:
    return model(**inputs, **options).logits


def batch(processor: Any) -> Any:
    return processor(images=[[picture(10 * row)] for row in range(3)], text=WORDS)


def test_black_and_white_pictures_give_other_logits(model: Any, processor: Any) -> None:
    black, white = (Image.new("RGB", (9, 9), (level,) * 3) for level in (0, 255))
    dark, light = (logits_of(model, processor(images=image, text=WORDS[0])) for image in (black, white))
    assert (dark[0, 0] - light[0, 0]).abs().max() == 0  # BOS stands before the picture
    assert (dark[0, -1] - light[0, -1]).abs().max() > 1e-2


@pytest.mark.parametrize("pictures", [(1, 1, 1), (1, 0, 2), (0, 0, 0)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_its_rows(model: Any, processor: Any, pictures: tuple[int, ...], side: str) -> None:
    images = [[picture(10 * row + n) for n in range(count)] for row, count in enumerate(pictures)]
    prompts = [processor.question_prompt(question) for question in QUESTIONS]
    inputs = processor(images=images, text=prompts, padding_side=side)
    together = logits_of(model, inputs)
    for row, prompt in enumerate(prompts):
        alone = logits_of(model, processor(images=images[row : row + 1], text=[prompt]))[0]
        torch.testing.assert_close(together[row][inputs["attention_mask"][row].bool()], alone, rtol=0, atol=1e-5)


@torch.no_grad()
def greedy_by_hand(model: Any, inputs: Any, steps: int) -> list[int]:
    """Tokens from full forward passes over one row, no cache, no generate; what is written is answer (1)."""
    inputs = dict(inputs)
    del inputs["attention_mask"]
    for _ in range(steps):
        written = model(**inputs).logits[:, -1:].argmax(-1)
        inputs["input_ids"] = torch.cat((inputs["input_ids"], written), dim=1)
        if "token_type_ids" in inputs:
            types = inputs["token_type_ids"]
            inputs["token_type_ids"] = torch.cat((types, torch.ones_like(types[:, :1])), dim=1)
    return inputs["input_ids"][0, -steps:].tolist()


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_greedy_generation_equals_full_passes(model: Any, processor: Any, options: dict[str, Any]) -> None:
    inputs = dict(processor.question_inputs([picture(row) for row in range(3)], QUESTIONS))
    greedy = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "eos_token_id": None}
    expected = [
        greedy_by_hand(model, processor.question_inputs(picture(row), words), 8) for row, words in enumerate(QUESTIONS)
    ]
    assert model.generate(**inputs, **greedy, **options)[:, -8:].tolist() == expected
    inputs.pop("token_type_ids", None)  # a prompt without them is all prefix
    assert model.generate(**inputs, **greedy, **options)[:, -8:].tolist() == expected


def test_pictures_and_tokens_that_do_not_match_raise(model: Any, processor: Any) -> None:
    inputs = processor(images=[picture(), picture(1)], text=WORDS[:2])
    ids, mask, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
    with pytest.raises(ValueError, match="got 8 image tokens in input_ids and 4 features \\(1 pictures of 4\\)"):
        model(input_ids=ids, attention_mask=mask, pixel_values=pixels[:1])
    with pytest.raises(ValueError, match="got 0 image tokens in input_ids and 8 features"):
        model(input_ids=ids[:, -3:], pixel_values=pixels)
    with pytest.raises(ValueError, match="got 8 image tokens in input_ids and no pixel_values"):
        model(input_ids=ids, attention_mask=mask)
    with pytest.raises(ValueError, match="got 8 image tokens in input_ids and no pixel_values"):
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"shape \[2, 3, 8, 8\], expected \[B, 6, H, W\]: three channels for each"):
        model(input_ids=ids, attention_mask=mask, pixel_values=pixels[:, :3])
    embeds = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match="got pixel_values with inputs_embeds"):
        model(inputs_embeds=embeds, attention_mask=mask, pixel_values=pixels)
    for both in ({}, {"input_ids": ids, "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="expected exactly one"):
            model(**both)


def test_the_loss_is_the_cross_entropy_of_the_next_token(model: Any, processor: Any) -> None:
    inputs = batch(processor)
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    with torch.no_grad():
        output = model(**inputs, labels=labels)
    probabilities = output.logits.double().softmax(-1)
    length = labels.shape[1]
    terms = [
        -probabilities[row, place - 1, labels[row, place]].log()
        for row in range(3)
        for place in range(length - 4, length)
    ]
    assert float(output.loss) == pytest.approx(float(sum(terms)) / 12, rel=1e-5)
    with torch.no_grad():  # a trainer that accumulates gradients over 24 supervised tokens
        shared = model(**inputs, labels=labels, num_items_in_batch=torch.tensor(24)).loss
    assert float(shared) == pytest.approx(float(sum(terms)) / 24, rel=1e-5)


def test_logits_to_keep_and_the_backbone_agree_with_the_whole(model: Any, processor: Any) -> None:
    inputs = batch(processor)
    whole = logits_of(model, inputs)
    torch.testing.assert_close(logits_of(model, inputs, logits_to_keep=2), whole[:, -2:], rtol=0, atol=1e-6)
    places = torch.tensor([0, 3])
    torch.testing.assert_close(logits_of(model, inputs, logits_to_keep=places), whole[:, places], rtol=0, atol=1e-6)
    with torch.no_grad():  # TRL's fused loss calls base_model and applies the output layer itself
        hidden = model.base_model(**inputs).last_hidden_state
        torch.testing.assert_close(model.get_output_embeddings()(hidden), whole, rtol=0, atol=1e-6)


def test_attention_implementations_agree(llama_like: Any, processor: Any) -> None:
    inputs = batch(processor)
    logits = {}
    for name in ("sdpa", "eager"):
        model = tiny_model(llama_like)
        model.set_attn_implementation(name)
        tower = model.model.vision_tower
        assert {tower.dino.config._attn_implementation, model.model.language_model.config._attn_implementation} == {
            name
        }
        logits[name] = logits_of(model, inputs)[inputs["attention_mask"].bool()]
    torch.testing.assert_close(logits["eager"], logits["sdpa"], rtol=0, atol=1e-5)
