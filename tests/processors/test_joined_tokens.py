"""Training and acting use the same ids, whatever a vocabulary merges where prompt, lead-in and action meet."""

from typing import Any

import pytest
import torch
from tiny_models import picture, tiny_model, tiny_pi0_model, tiny_pi0_processor, tiny_processor, tiny_tokenizer

from gen_vla.modeling.action_prediction import append_lead_in
from gen_vla.processors import ActionBins, ActionStringProcessor
from gen_vla.processors.action_strings import STYLES
from gen_vla.training.collator import CoTrainingCollator


FAMILIES = {"openvla_plus": (tiny_model, tiny_processor), "pi0_plus": (tiny_pi0_model, tiny_pi0_processor)}
MERGES = [
    [(":", "\n")],
    [(":", "▁"), ("\n", "-"), ("\n", "+")],
    [("?", "\n"), ("t", ":"), ("\n", "\n"), ("\n\n", "-")],
]


def codec_of(kind: str) -> Any:
    return ActionBins(2, horizon=2) if kind == "bins" else ActionStringProcessor(2, 2, decimals=2, style=kind)


def trained_row(processor: Any, text: str, instruction: str = "go") -> list[int]:
    """What training shows of an action's text, prompt and EOS included."""
    lead_in = "" if processor.action_config["lead_in_ids"] else processor.action_config["lead_in"]
    row = {"images": [picture()], "prompt": processor.action_prompt(instruction), "completion": lead_in + text}
    return CoTrainingCollator(processor)([{**row, "source": "robot/tiny"}])["input_ids"][0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [*STYLES, "bins"])
@pytest.mark.parametrize("merges", MERGES, ids=str)
def test_a_row_is_the_prompt_of_acting_and_the_tokens_written(
    family: str, kind: str, merges: list[tuple[str, str]]
) -> None:
    tokenizer, codec = tiny_tokenizer("gemma_like", first_merges=merges), codec_of(kind)
    make_model, make_processor = FAMILIES[family]
    model, processor = make_model(tokenizer, codec), make_processor(tokenizer, codec)
    inputs = processor.action_inputs(picture(), "go")
    prediction = model.predict_actions(**inputs)
    written = [token for token in prediction.token_ids[0].tolist() if token != tokenizer.eos_token_id]
    fed = inputs["input_ids"][0].tolist()
    assert trained_row(processor, prediction.text[0]) == [*fed, *written, tokenizer.eos_token_id]
    lead_in_ids = processor.action_config["lead_in_ids"]
    assert fed[len(fed) - len(lead_in_ids) :] == lead_in_ids


@pytest.mark.parametrize("kind", [*STYLES, "bins"])
@pytest.mark.parametrize("merges", MERGES, ids=str)
def test_a_typed_prompt_is_the_same_row(kind: str, merges: list[tuple[str, str]]) -> None:
    """As OpenVLA's users do, with the lead-in or without it."""
    processor = tiny_processor(tiny_tokenizer("gemma_like", first_merges=merges), codec_of(kind))
    inputs, lead_in_ids = processor.action_inputs(picture(), "go"), processor.action_config["lead_in_ids"]
    typed = processor.action_prompt("go")
    for prompt in (typed, typed.removesuffix(processor.action_config["lead_in"])):
        given = processor(prompt, picture())
        ids, mask = append_lead_in(given["input_ids"], given["attention_mask"], lead_in_ids, pad=0)
        assert torch.equal(ids, inputs["input_ids"])
        assert torch.equal(mask, inputs["attention_mask"])


@pytest.mark.parametrize("style", STYLES)
def test_nothing_changes_where_nothing_merges(tokenizer: Any, style: str) -> None:
    """As in the Llama-2 and Gemma vocabularies: the ids are those of the whole text."""
    strings = ActionStringProcessor(3, 2, style=style)
    processor = tiny_processor(tokenizer, strings)
    text = strings.encode([[-0.0312, 0.5, -1.0], [0.0, -0.12, 1.0]])
    before = processor.action_prompt("open the drawer")
    whole = before + ("" if processor.action_config["lead_in_ids"] else strings.lead_in) + text
    ids = [*processor.row_start(1), *tokenizer.encode(whole, add_special_tokens=False), tokenizer.eos_token_id]
    assert trained_row(processor, text, "open the drawer") == ids


def test_a_question_worded_like_an_action_is_asked_as_it_was_trained() -> None:
    tokenizer = tiny_tokenizer("gemma_like", first_merges=[("?", "\n")])
    processor = tiny_pi0_processor(tokenizer, ActionStringProcessor(2))
    question = "What action should the robot take to go?"
    row = {"images": [picture()], "prompt": processor.question_prompt(question), "completion": "two", "source": "v/x"}
    batch = CoTrainingCollator(processor)([row])
    fed = processor.question_inputs(picture(), question)["input_ids"][0].tolist()
    assert batch["input_ids"][0].tolist() == [*fed, *processor.answer_ids(question, "two")]
