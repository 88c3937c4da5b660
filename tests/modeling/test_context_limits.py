"""No prompt is fed and no token written at a position the model does not have, and the error comes before any pass."""

from typing import Any

import pytest
import torch
from tiny_models import picture, tiny_model, tiny_pair, tiny_processor

from gen_vla.processors import ActionStringProcessor


STRINGS = ActionStringProcessor(action_dim=3, decimals=2)


@pytest.fixture(params=["openvla_plus", "pi0_plus"])
def tiny(request: pytest.FixtureRequest, llama_like: Any, gemma_like: Any) -> tuple[Any, Any]:
    return tiny_pair(request.param, gemma_like if request.param == "pi0_plus" else llama_like, STRINGS)


def with_context(model: Any, context: int) -> Any:
    """The model, with as many positions, and an error at every pass."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a pass was made")

    model.config.text_config.max_position_embeddings = context
    model.get_decoder().forward = refuse
    return model


@pytest.mark.parametrize("way", [{}, {"tree_nodes": 0}, {"cache_implementation": "static"}, {"num_beams": 2}])
def test_an_action_has_to_fit(tiny: Any, way: dict[str, Any]) -> None:
    model, processor = tiny
    inputs = processor.action_inputs([picture(0), picture(1)], ["go", "open the drawer, and then go"])
    longest = int(inputs["attention_mask"].sum(dim=1).max())
    action = model.action_grammar.max_tokens
    model.config.text_config.max_position_embeddings = longest + action
    model.predict_actions(**inputs, **way)
    context = longest + action - 1
    message = f"got a prompt of {longest} tokens with up to {action} more to be written, expected {context} together"
    with pytest.raises(ValueError, match=message):
        with_context(model, context).predict_actions(**inputs, **way)


def test_a_horizon_that_no_prompt_leaves_room_for(llama_like: Any) -> None:
    strings = ActionStringProcessor(action_dim=7, horizon=20)
    model, processor = tiny_model(llama_like, strings), tiny_processor(llama_like, strings)
    with pytest.raises(ValueError, match="up to 999 more to be written, expected 512 together"):
        with_context(model, 512).predict_actions(**processor.action_inputs(picture(), "go"))


def test_padding_takes_no_position(llama_like: Any) -> None:
    model, processor = tiny_pair("openvla_plus", llama_like, STRINGS)
    inputs = processor(images=picture(), text=processor.action_prompt("go"), padding="max_length", max_length=500)
    expected = model.predict_actions(**processor.action_inputs(picture(), "go"))
    assert model.predict_actions(**inputs, tree_nodes=2).text == expected.text
    assert inputs["input_ids"].shape[1] + model.action_grammar.max_tokens > 512


def test_an_answer_stops_where_the_context_ends(llama_like: Any) -> None:
    model, processor = tiny_pair("openvla_plus", llama_like, STRINGS)
    inputs = processor.question_inputs(picture(), "what is this?")
    length = inputs["input_ids"].shape[1]
    model.config.text_config.max_position_embeddings = length + 5
    for options in ({}, {"cache_implementation": "static"}, {"num_beams": 2}):
        output = model.generate(**inputs, max_new_tokens=50, min_new_tokens=50, do_sample=False, **options)
        assert output.shape[1] == length + 5
    embeds = model.get_input_embeddings()(torch.full((1, length), 40))
    mask = torch.ones(1, length, dtype=torch.long)
    assert model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=50).shape[1] <= 5
    with_context(model, length)
    message = f"got a prompt of {length} tokens with up to 1 more to be written"
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs, max_new_tokens=50)
    with pytest.raises(ValueError, match=message):
        model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=50)


def test_a_flow_has_to_fit(gemma_like: Any) -> None:
    model, processor = tiny_pair("pi0_flow", gemma_like)
    inputs = processor.action_inputs(picture(), "go")
    length = inputs["input_ids"].shape[1]
    model.config.text_config.max_position_embeddings = length + 5  # a state and 4 steps
    assert torch.isfinite(torch.from_numpy(model.predict_actions(**inputs).actions)).all()
    model.config.text_config.max_position_embeddings = length + 4
    with pytest.raises(ValueError, match=f"got a prompt of {length} tokens with up to 5 more"):
        model.predict_actions(**inputs)
