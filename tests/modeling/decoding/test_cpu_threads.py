"""How many threads act: one for small models on a CPU, and what the caller had afterwards; the waiting policy."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from tiny_models import picture, tiny_model, tiny_pair

from gen_vla.modeling import cpu_threads
from gen_vla.processors import ActionStringProcessor


STRINGS = ActionStringProcessor(action_dim=3, decimals=2)


@pytest.fixture
def two_threads() -> Any:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(("below", "threads"), [(cpu_threads.ONE_THREAD_BELOW, 1), (0, 2)])
@pytest.mark.parametrize("family", ["openvla_plus", "pi0_flow"])
@pytest.mark.usefixtures("two_threads")
def test_threads_while_acting(
    llama_like: Any, gemma_like: Any, monkeypatch: pytest.MonkeyPatch, family: str, below: int, threads: int
) -> None:
    model, processor = tiny_pair(family, llama_like if family == "openvla_plus" else gemma_like, STRINGS)
    monkeypatch.setattr(cpu_threads, "ONE_THREAD_BELOW", below)
    seen = []
    encoder = next(module for module in model.modules() if type(module).__name__ == "SiglipEncoder")
    encoder.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    model.predict_actions(**processor.action_inputs(picture(), "go"))
    assert set(seen) == {threads}
    with pytest.raises(ValueError, match="got no pixel_values"):
        model.predict_actions(torch.ones(1, 3, dtype=torch.long))
    assert torch.get_num_threads() == 2


def test_embeddings_are_not_counted(llama_like: Any) -> None:
    model = tiny_model(llama_like, STRINGS)
    embeddings = model.get_input_embeddings().weight.numel()
    whole = sum(weight.numel() for weight in model.parameters())
    assert cpu_threads.weights_per_pass(model) == whole - embeddings - model.lm_head.weight.numel()


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_the_command_waits_passively_unless_told_otherwise(given: str | None, expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "true"} | ({} if given is None else {"OMP_WAIT_POLICY": given})
    script = "import gen_vla.commands.main, torch; torch.ones(1)"
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert f"OMP_WAIT_POLICY = '{expected}'" in run.stderr
