"""Prompts as they are typed, and as training has them."""

from typing import Any

import pytest
from test_processing_openvla_plus import PROMPT, STRINGS, row_of, rows_of
from tiny_models import picture, tiny_pi0_flow_processor, tiny_pi0_processor, tiny_processor

from gen_vla.processors import PROMPT_TEMPLATE, ActionStringProcessor


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (PROMPT + " ", PROMPT),
        (PROMPT + " \n ", PROMPT + "\n"),  # the lead-in of an action stays
        (PROMPT + "\n\n", PROMPT + "\n"),
        ("<image> " + PROMPT, PROMPT),
        ("In: What action should the robot take to  open the drawer ?\nOut:\n", PROMPT + "\n"),
        ("In: How many? \nOut: ", "In: How many?\nOut:"),
        ("In: How many?\nOut:\n", "In: How many?\nOut:"),  # an answer begins there, no action
        ("In: How many?\nOut: two</s>In: Sure?\nOut: ", "In: How many?\nOut: two</s>In: Sure?\nOut:"),
        ("In: How many?\nOut: two ", "In: How many?\nOut: two "),
        ("open the drawer ", "open the drawer "),
        ("In: \nOut: ", "In: \nOut: "),
    ],
)
def test_blanks_that_no_prompt_of_training_has_are_taken_off(processor: Any, typed: str, read: str) -> None:
    assert rows_of(processor(images=picture(), text=typed)) == [row_of(processor, read)]


def test_blanks_stay_in_what_continues_another_text(processor: Any) -> None:
    tokenizer = processor.tokenizer
    ids = processor(text="In: a\nOut: ", add_special_tokens=False)["input_ids"][0].tolist()
    assert tokenizer.decode(ids).endswith("Out: ")


@pytest.mark.parametrize(
    ("template", "style"),
    [
        ({}, "signed"),
        ({}, "legacy"),
        ({"action": "{instruction}", "question": "Q {question} "}, "signed"),
        ({"action": "do {instruction}\n", "question": "{question}\n"}, "plain"),
    ],
)
def test_prompts_of_training_are_never_changed(llama_like: Any, template: dict[str, str], style: Any) -> None:
    templates = {**PROMPT_TEMPLATE, **template}
    processor = tiny_processor(llama_like, ActionStringProcessor(style=style), prompt_template=templates)
    for words in ("open the drawer", "a\nOut: b", "x?", "In: y"):
        for prompt in (processor.action_prompt(words), processor.question_prompt(words)):
            assert processor.normalized_prompt(prompt) == prompt
    assert processor.normalized_prompt(processor.action_prompt("go") + " ") == processor.action_prompt("go")


BINS = {"representation": "bins", "action_dim": 7, "horizon": 1, "bins": 256, "lead_in": " "}


def test_the_space_of_bins_is_a_lead_in(llama_like: Any) -> None:
    """OpenVLA's piece 29871: one space behind `Out:` stays, two are one."""
    processor = tiny_processor(llama_like)
    processor.action_config = {**BINS, "lead_in_ids": llama_like.encode(" ", add_special_tokens=False)}
    for blanks in (" ", "  ", " \n"):
        assert processor.normalized_prompt(PROMPT + blanks) == PROMPT + " "
    assert processor.normalized_prompt(PROMPT + "\n") == PROMPT


def test_a_whole_prompt_is_no_instruction(llama_like: Any, gemma_like: Any) -> None:
    """It would be put into another prompt, which the model never saw."""
    for processor in (tiny_processor(llama_like, STRINGS), tiny_pi0_processor(gemma_like, STRINGS)):
        prompt = processor.action_prompt("open the drawer")
        for instruction in (prompt, "  " + prompt.upper()):
            with pytest.raises(ValueError, match="which is a whole prompt, expected its words alone"):
                processor.action_inputs(picture(), instruction)
        processor.action_inputs(picture(), "in the box: what action?")
    flow = tiny_pi0_flow_processor(gemma_like)  # whose prompt has nothing before the words
    assert flow.action_prompt("In: what") == "in: what\n"
