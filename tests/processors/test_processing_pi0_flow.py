"""The flow-matching π0's rows: transformers' own prompt, no questions and no action texts."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import IMAGE_SIZE, IMAGE_TOKENS, picture, tiny_pi0_flow_processor
from transformers import PI0Processor, SiglipImageProcessor

from gen_vla.processors import PI0_FLOW_PROMPT_TEMPLATE, Pi0FlowProcessor, make_flow_action_config


@pytest.mark.parametrize("name", ["gemma_like", "gemma"])
def test_rows_are_those_of_transformers(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    processor = tiny_pi0_flow_processor(tokenizer)
    siglip: Any = SiglipImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    siglip.image_seq_length = IMAGE_TOKENS
    stock: Any = PI0Processor(siglip, deepcopy(tokenizer))
    theirs = stock(images=[[picture()]], text=["open the drawer"], return_tensors="pt")
    ours = processor.action_inputs(picture(), " Open the DRAWER ")
    real = theirs["attention_mask"].bool()
    assert ours["input_ids"][0].tolist() == theirs["input_ids"][real].tolist()
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"][:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("typed", ["go", " go\n", "go \n ", "go\n\n"])
def test_whoever_writes_the_prompt_a_newline_ends_it(typed: str, gemma_like: Any) -> None:
    processor = tiny_pi0_flow_processor(gemma_like)
    wanted = processor.action_inputs(picture(), "go")["input_ids"].tolist()
    assert processor(typed, picture())["input_ids"].tolist() == wanted
    assert processor(images=picture(), text=[typed])["input_ids"].tolist() == wanted
    assert processor.normalized_prompt("") == ""


def test_prompts_and_refusals(gemma_like: Any, tmp_path: Path) -> None:
    processor = tiny_pi0_flow_processor(gemma_like)
    assert processor.action_prompt("Go") == processor.normalized_prompt(" go \n ") == "go\n"
    with pytest.raises(ValueError, match="got 2 pictures for an action, expected one"):
        processor(images=[picture(), picture()], text="go\n")
    with pytest.raises(ValueError, match="got a question, expected an instruction"):
        processor.question_inputs(picture(), "What?")
    with pytest.raises(ValueError, match="writes no words"):
        _ = processor.action_strings
    processor.save_pretrained(tmp_path)
    loaded = Pi0FlowProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.action_config == processor.action_config
    assert loaded.prompt_template == PI0_FLOW_PROMPT_TEMPLATE


def test_the_action_format() -> None:
    sizes = {"representation": "flow", "action_dim": 7, "horizon": 4, "binary_dims": [6]}
    assert make_flow_action_config(7, 4, [6]) == {**sizes, "lead_in": "", "lead_in_ids": []}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"action_dim": 0}, "got action_dim=0"),
        ({"horizon": 1.5}, "got horizon=1.5"),
        ({"binary_dims": [7]}, r"got binary_dims=\[7\], expected dimensions from 0 to 6"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            make_flow_action_config(**settings)
