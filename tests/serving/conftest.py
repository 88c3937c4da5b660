"""Fixtures of servers and their models."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from policy_servers import running
from tiny_models import tiny_pair

from gen_vla.processors import ActionStringProcessor
from gen_vla.serving.application import Limits
from gen_vla.serving.policy import ServedPolicy
from gen_vla.serving.server import GracefulServer


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[GracefulServer, int]]]:
    """Starts servers of `(model, processor)` that end with the test; keyword arguments are those of `Limits`."""
    with ExitStack() as stack:

        def start(pair: Any, layouts: Any = None, default_key: str | None = None, **limits: Any) -> Any:
            model, processor = pair
            policy = ServedPolicy(model, processor, "tiny", default_key, layouts)
            return stack.enter_context(running(policy, Limits(**limits)))

        yield start


@pytest.fixture
def chunking(llama_like: Any) -> tuple[Any, Any]:
    """A tiny model of chunks of 6 steps, 3 dimensions, and its processor."""
    return tiny_pair("openvla_plus", llama_like, ActionStringProcessor(3, 6, 2, binary_dims=(2,)))
