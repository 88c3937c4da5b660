"""π0+: PaliGemma's numbers bit for bit at the start, its attention without the leak, and a copy that trains alone."""

import copy
from typing import Any

import pytest
import torch
from tiny_models import IMAGE_TOKENS, picture, tiny_pi0_config, tiny_pi0_model, tiny_pi0_processor, with_large_weights
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from gen_vla.modeling import Pi0PlusConfig, Pi0PlusForVision2Seq, widen_paligemma_state_dict
from gen_vla.processors import ActionStringProcessor


QUESTIONS = ["Go?", "How many Out?", "x"]
STRINGS = ActionStringProcessor(action_dim=3, decimals=2)


@pytest.fixture(scope="module")
def model(gemma_like: Any) -> Any:
    """One model for the tests that do not change it."""
    return tiny_pi0_model(gemma_like, STRINGS)


@pytest.fixture(scope="module")
def processor(gemma_like: Any) -> Any:
    return tiny_pi0_processor(gemma_like, STRINGS)


def batch(processor: Any, answer: str = "", side: str = "left", rows: int = 3) -> dict[str, Any]:
    """Questions about pictures and an answer to each, as training writes them."""
    prompts = [processor.question_prompt(text) for text in QUESTIONS[:rows]]
    images = [[picture(row)] for row in range(rows)]
    inputs = dict(processor(images=images, text=[p + answer for p in prompts], padding_side=side))
    if answer:
        length = len(processor.encode_text(answer))
        ends = inputs["input_ids"].shape[1] - inputs["attention_mask"].flip(1).argmax(1)
        places = torch.arange(inputs["input_ids"].shape[1])
        inputs["token_type_ids"] = ((places >= (ends - length)[:, None]) & (places < ends[:, None])).long()
        assert inputs["token_type_ids"].sum() == rows * length
    return inputs


@torch.no_grad()
def logits_of(model: Any, inputs: Any, **options: Any) -> torch.Tensor:
    return model(**inputs, **options).logits


def tiny_paligemma(config: Pi0PlusConfig, attention: str = "sdpa", **text: Any) -> Any:
    """Transformers' own PaliGemma with the sub-configurations of `config` and random weights, biases and norms."""
    torch.manual_seed(3)
    sizes = {"projection_dim": config.text_config.hidden_size, "hidden_size": config.text_config.hidden_size}
    stock = PaliGemmaForConditionalGeneration._from_config(
        PaliGemmaConfig(
            vision_config=config.vision_config.to_dict(),
            text_config={**config.text_config.to_dict(), "use_bidirectional_attention": None, **text},
            image_token_index=config.image_token_id,
            vocab_size=config.text_config.vocab_size,
            **sizes,
        ),
        attn_implementation=attention,
    )
    with_large_weights(stock)
    with torch.no_grad():
        for parameter in stock.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return stock


def widened(stock: Any, config: Pi0PlusConfig, attention: str = "sdpa") -> Any:
    model = Pi0PlusForVision2Seq._from_config(copy.deepcopy(config), attn_implementation=attention).eval()
    model = model.to(stock.dtype)
    model.load_state_dict(widen_paligemma_state_dict(stock.state_dict(), config.frozen))
    return model


@pytest.mark.parametrize("frozen", ["siglip", None])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_0_is_paligemma_bit_for_bit(
    gemma_like: Any, processor: Any, frozen: str | None, attention: str, dtype: torch.dtype
) -> None:
    config = tiny_pi0_config(gemma_like, frozen=frozen)
    stock = tiny_paligemma(config, attention).to(dtype)
    model = widened(stock, config, attention)
    for answer in ("", "two 0.5"):
        for row in range(3):  # row by row: stock PaliGemma counts padding as positions
            inputs = {name: tensor[row : row + 1] for name, tensor in batch(processor, answer).items()}
            start = int(inputs["attention_mask"].argmax())
            inputs = {name: t if name == "pixel_values" else t[:, start:] for name, t in inputs.items()}
            inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
            ours = logits_of(model, inputs)
            assert torch.equal(ours, logits_of(stock, inputs))
            assert float(ours.std()) > 0.1
    prompts = batch(processor)
    prompts["pixel_values"] = prompts["pixel_values"].to(dtype)
    options = {"do_sample": False, "max_new_tokens": 6, "output_scores": True, "return_dict_in_generate": True}
    expected = stock.generate(**prompts, **options, suppress_tokens=[config.image_token_id])  # as we always do
    got = model.generate(**prompts, **options)
    assert got.sequences.tolist() == expected.sequences.tolist()
    for ours, theirs in zip(got.scores, expected.scores, strict=True):
        # sdpa takes another kernel for a single query without a mask, which is how stock PaliGemma decodes.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.2 if dtype == torch.bfloat16 else 1e-5)


def test_a_batch_with_padding_equals_paligemma_but_for_rounding(gemma_like: Any, processor: Any) -> None:
    config = tiny_pi0_config(gemma_like)
    stock = tiny_paligemma(config)
    inputs = batch(processor, "two")
    real = inputs["attention_mask"].bool()
    ours, theirs = logits_of(widened(stock, config), inputs)[real], logits_of(stock, inputs)[real]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # its positions are shifted by the padding


def test_a_width_without_an_exact_square_root(gemma_like: Any, processor: Any) -> None:
    text = {**tiny_pi0_config(gemma_like).text_config.to_dict(), "hidden_size": 40, "head_dim": 10}
    config = tiny_pi0_config(gemma_like, text_config=text)
    stock = tiny_paligemma(config)
    inputs = batch(processor, "two", rows=1)
    torch.testing.assert_close(logits_of(widened(stock, config), inputs), logits_of(stock, inputs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("style", ["5", "4", "files"])
def test_widening_knows_the_names_of_both_generations(gemma_like: Any, style: str) -> None:
    config = tiny_pi0_config(gemma_like)
    state = tiny_paligemma(config).state_dict()
    expected = widen_paligemma_state_dict(state)

    def renamed(name: str) -> str:
        if style == "5":
            return name
        name = name.replace("model.vision_tower.", "model.vision_tower.vision_model.")
        if style == "files":
            name = name.replace("model.language_model.", "language_model.model.")
            name = name.replace("lm_head.", "language_model.lm_head.")
            name = name.removeprefix("model.")
        return name

    got = widen_paligemma_state_dict({renamed(name): tensor for name, tensor in state.items()})
    assert set(got) == set(expected) == set(Pi0PlusForVision2Seq(config).state_dict())
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    weight = state["model.multi_modal_projector.linear.weight"]
    assert torch.equal(expected["model.projector.weight"], torch.cat([weight, weight], dim=1) / 2)
    assert torch.equal(expected["model.projector.bias"], state["model.multi_modal_projector.linear.bias"])
    with pytest.raises(ValueError, match=r"got the tensor 'action_expert\.weight', expected PaliGemma's"):
        widen_paligemma_state_dict({"action_expert.weight": weight})


def changed(inputs: dict[str, Any], row: int, place: int) -> dict[str, Any]:
    """The inputs with another token in one place."""
    ids = inputs["input_ids"].clone()
    ids[row, place] = 40 if ids[row, place] != 40 else 41
    return {**inputs, "input_ids": ids}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("layout", ["left", "right", "unpadded", "no mask"])
def test_no_answer_shows_in_earlier_logits(
    gemma_like: Any, processor: Any, attention: str, mode: str, layout: str
) -> None:
    model = tiny_pi0_model(gemma_like)
    model.set_attn_implementation(attention)
    model.train(mode == "train")
    inputs = batch(
        processor,
        "two 0.5",
        side=layout if layout in ("left", "right") else "left",
        rows=1 if layout in ("unpadded", "no mask") else 3,
    )
    if layout == "no mask":
        del inputs["attention_mask"]
    before = logits_of(model, inputs)
    types = inputs["token_type_ids"]
    checked = 0
    for row in range(len(types)):
        answer = types[row].nonzero().flatten().tolist()
        for place in answer:
            after = logits_of(model, changed(inputs, row, place))
            difference = (after - before)[row].abs().amax(-1)
            real = torch.ones_like(difference, dtype=torch.bool)
            if "attention_mask" in inputs:
                real = inputs["attention_mask"][row].bool()
            assert difference[:place][real[:place]].max() == 0
            assert difference[place] > 1e-3
            assert answer[-1] == place or difference[answer[-1]] > 1e-4
            others = [other for other in range(len(types)) if other != row]
            assert not others or (after - before)[others][:, :].abs().max() == 0
            checked += 1
    assert checked == len(types) * len(processor.encode_text("two 0.5"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_prompt_sees_itself_in_both_directions(gemma_like: Any, processor: Any, attention: str) -> None:
    model = tiny_pi0_model(gemma_like)
    model.set_attn_implementation(attention)
    inputs = batch(processor, "two", rows=1)
    before = logits_of(model, inputs)[0]
    last = int(inputs["token_type_ids"][0].argmax()) - 1  # the newline at the end of the prompt
    difference = (logits_of(model, changed(inputs, 0, last))[0] - before).abs().amax(-1)
    assert difference.min() > 1e-4  # from the first image token on, everything sees it
    other = {**inputs, "pixel_values": inputs["pixel_values"] + 1.0}
    assert (logits_of(model, other)[0] - before).abs().amax(-1).min() > 1e-4


def test_without_token_types_nothing_leaks_and_training_stops(model: Any, processor: Any) -> None:
    inputs = batch(processor, "two", rows=1)
    types = inputs.pop("token_type_ids")
    length = inputs["input_ids"].shape[1]
    for drop in (False, True):
        given = {name: tensor for name, tensor in inputs.items() if not (drop and name == "attention_mask")}
        before = logits_of(model, given)
        for place in range(IMAGE_TOKENS, length):
            difference = (logits_of(model, changed(given, 0, place)) - before)[0].abs().amax(-1)
            assert difference[:place].max() == 0
    labels = torch.where(types == 1, inputs["input_ids"], -100)
    with torch.no_grad():
        derived = model(**inputs, labels=labels)
        given = model(**inputs, token_type_ids=types, labels=labels)
    assert torch.equal(derived.logits, given.logits)
    assert torch.equal(derived.loss, given.loss)
    training = copy.deepcopy(model).train()
    with pytest.raises(ValueError, match="got no token_type_ids in training, expected 0 on image and prompt and 1"):
        training.base_model(**inputs)


def test_pixels_of_two_encoders_are_refused(model: Any, processor: Any) -> None:
    two = processor(images=[[picture(), picture(1)], []], text=["a\n", "b\n"])
    with pytest.raises(ValueError, match=r"expected \[B, 3, H, W\]: three channels shared by siglip, siglip_copy"):
        model(**{**two, "pixel_values": two["pixel_values"].repeat(1, 2, 1, 1)})


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # transformers 4 has no other name
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("frozen", ["siglip", None])
def test_training_moves_the_copy_and_never_the_original(
    gemma_like: Any, processor: Any, frozen: str | None, checkpointing: bool
) -> None:
    config = tiny_pi0_config(gemma_like, frozen=frozen)
    model = widened(tiny_paligemma(config), config)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = batch(processor, "two 0.5")
    labels = torch.where(inputs["token_type_ids"] == 1, inputs["input_ids"], -100)
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in trainable)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    still = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    assert still == {name for name in before if frozen and ".siglip." in name}
    names = {name.split(".")[2] for name in before if "vision_tower" in name}
    assert names == ({"siglip", "siglip_copy"} if frozen else {"siglip"})


def test_the_projector_reads_each_encoder(model: Any, processor: Any) -> None:
    inputs = batch(processor, rows=1)
    before = logits_of(model, inputs)
    for name in ("siglip", "siglip_copy"):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in getattr(other.model.vision_tower, name).parameters():
                parameter.add_(0.1)
        assert (logits_of(other, inputs) - before).abs().max() > 1e-3
    features = torch.randn(2, IMAGE_TOKENS, 32)
    projector = model.model.projector
    with torch.no_grad():
        whole = torch.nn.functional.linear(features, projector.weight, projector.bias)
        torch.testing.assert_close(projector(features), whole, rtol=0, atol=1e-5)
