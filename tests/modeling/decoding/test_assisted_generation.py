"""`generate` with an `assistant_model` that drafts tokens: it sees the pictures, and the result is the model's own."""

import copy
from typing import Any

import pytest
import torch
from tiny_models import picture, tiny_model, tiny_pair, tiny_pi0_model, tiny_processor


GREEDY = {"do_sample": False, "max_new_tokens": 16, "min_new_tokens": 16, "eos_token_id": None}


@pytest.fixture
def made(llama_like: Any) -> tuple[Any, Any]:
    """A model and its processor."""
    return tiny_pair("openvla_plus", llama_like)


@pytest.mark.parametrize("own", [True, False])
def test_an_assistant_changes_no_token(made: Any, own: bool) -> None:
    model, processor = made
    inputs = dict(processor.question_inputs(picture(1), "two two two"))
    wanted = model.generate(**inputs, **GREEDY)
    assistant = copy.deepcopy(model)
    if not own:
        with torch.no_grad():
            assistant.lm_head.weight.mul_(-1)
    passes: list[int] = []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
    got = model.generate(**inputs, **GREEDY, assistant_model=assistant)
    hook.remove()
    assert got.tolist() == wanted.tolist()
    assert own == (len(passes) < 10)  # 16 where every draft is rejected, as of an assistant that sees no picture


def test_an_assistant_of_another_family_is_refused(llama_like: Any, gemma_like: Any) -> None:
    model, other = tiny_model(llama_like), tiny_pi0_model(gemma_like)
    inputs = tiny_processor(llama_like).question_inputs(picture(1), "two")
    with pytest.raises(ValueError, match="got an assistant_model of type 'vla_plus', expected 'openvla_plus'"):
        model.generate(**inputs, **GREEDY, assistant_model=other)
    with pytest.raises(ValueError, match="got an assistant_model of type 'llama', expected 'openvla_plus'"):
        model.generate(**inputs, **GREEDY, assistant_model=model.model.language_model)
