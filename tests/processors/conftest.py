"""Processors of three dimensions of two decimals, shared by the tests of processors."""

from typing import Any

import pytest
from tiny_models import tiny_processor

from gen_vla.processors import ActionStringProcessor


STRINGS = ActionStringProcessor(action_dim=3, decimals=2)


@pytest.fixture
def processor(tokenizer: Any) -> Any:
    """The tiny processor of OpenVLA+ with each tokenizer in turn."""
    return tiny_processor(tokenizer, STRINGS)


@pytest.fixture
def tiny(llama_like: Any) -> Any:
    """The tiny processor with one tokenizer, where the vocabulary does not matter."""
    return tiny_processor(llama_like, STRINGS)
