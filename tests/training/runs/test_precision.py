"""Types of weights: of what is saved and loaded, and of gradients that processes share."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from tiny_runs import run_tiny, stored_types

from gen_vla.commands.options import load_any
from gen_vla.training.checkpoints import dtype_name, used_dtype
from gen_vla.training.publishing import assembling
from gen_vla.training.trainer import reduce_in_float32


@pytest.mark.parametrize(
    ("parameters", "wanted", "expected"),
    [
        (7_000_000_000, None, torch.bfloat16),
        (7_000_000_000, "float32", torch.float32),
        (100_000_000, "auto", torch.float32),
        (100_000_000, "bfloat16", torch.bfloat16),
    ],
)
def test_large_models_are_saved_in_half_precision(parameters: int, wanted: Any, expected: torch.dtype) -> None:
    assert used_dtype(SimpleNamespace(num_parameters=lambda: parameters), wanted) == expected


def test_a_model_is_saved_published_and_loaded_in_the_type_asked_for(tmp_path: Path, monkeypatch: Any) -> None:
    settings = {"training__bf16": True, "training__steps": 2, "training__save_steps": 2}
    folder = run_tiny(tmp_path, **settings, training__save_dtype="bfloat16")
    assert stored_types(folder) == {"BF16"}
    assert stored_types(folder / "checkpoints" / "checkpoint-2") == {"F32"}
    assert dtype_name(load_any(str(folder))[0]) == "bfloat16"
    model, _ = load_any(str(folder), "float32")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for wanted, expected in ((None, "BF16"), ("float32", "F32")):
        monkeypatch.setattr(assembling, "verify", lambda *_: None)
        published = assembling.publish_to_folder(folder, "gen-vla/tiny", tmp_path / expected, dtype=wanted)
        assert stored_types(published) == {expected}
        assert dtype_name(load_any(str(published))[0]) == {"BF16": "bfloat16", "F32": "float32"}[expected]


def test_fsdp_reduces_gradients_in_float32() -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    reduce_in_float32(plugin)
    policy: Any = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    plain = FullyShardedDataParallelPlugin(fsdp_version=2)
    reduce_in_float32(plain)
    assert plain.mixed_precision_policy is None
