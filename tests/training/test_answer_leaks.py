"""No token of an answer shows where it is to be predicted, in collated rows of models that read prompts both ways."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import picture
from tiny_vlms import tiny_vla_pair

from gen_vla.training.collator import CoTrainingCollator


ROWS: list[dict[str, Any]] = [
    {"prompt": "what is it?", "completion": "a cup", "images": [picture()]},
    {"prompt": "how?", "completion": "two", "images": [], "more_turns": [{"prompt": "and?", "completion": "red"}]},
]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["paligemma", "gemma3"])
def test_a_later_token_of_an_answer_changes_nothing_before_it(family: str, attention: str, tmp_path: Path) -> None:
    model, processor = tiny_vla_pair(family, tmp_path)
    model.set_attn_implementation(attention)
    batch = CoTrainingCollator(processor)([{**row, "source": "vision_language/x"} for row in ROWS])
    names = ("input_ids", "attention_mask", "pixel_values", "token_type_ids", "labels")
    given = {name: batch[name] for name in names}
    model.train()

    def logits(ids: torch.Tensor) -> torch.Tensor:
        return model(**{**given, "input_ids": ids}).logits.detach()

    before, other = logits(batch["input_ids"]), processor.tokenizer.convert_tokens_to_ids("z")
    supervised = (batch["labels"] != -100).nonzero().tolist()
    assert {row for row, _ in supervised} == {0, 1}
    for row, place in supervised:
        ids = batch["input_ids"].clone()
        ids[row, place] = other
        after = logits(ids)
        torch.testing.assert_close(after[row, :place], before[row, :place])
        assert (after[row, place] - before[row, place]).abs().max() > 1e-3


def test_a_supervised_prompt_is_refused_in_training(tmp_path: Path) -> None:
    model, processor = tiny_vla_pair("paligemma", tmp_path)
    inputs = processor.question_inputs([picture()] * 2, ["how?", "what is it?"])
    inputs["labels"] = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], -100)
    assert model(**inputs).loss.isfinite()
    with pytest.raises(ValueError, match="got labels on all of row 0 of 2, expected -100 on the prompt"):
        model.train()(**inputs)
