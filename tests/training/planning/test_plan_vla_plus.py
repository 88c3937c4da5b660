"""Plans of published vision-language models, by their configurations; parameter counts are those of their files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny_recipe

from gen_vla.modeling import VLAPlusConfig, VLAPlusForVision2Seq
from gen_vla.training.planning.plan import plan_recipe


SIZES = json.loads((Path(__file__).resolve().parents[2] / "fixtures" / "vlm_sizes.json").read_text())


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("frozen", [None, "vision"])
def test_every_parameter_is_planned_for(name: str, frozen: str | None, tmp_path: Path) -> None:
    config = VLAPlusConfig(SIZES[name]["config"], frozen=frozen)
    config.save_pretrained(tmp_path / "start")
    model: dict[str, Any] = {"family": "vla_plus", "initial_model": "start", "frozen": frozen}
    parts, plans = plan_recipe(tiny_recipe(tmp_path, model=model), tmp_path)
    with torch.device("meta"):
        expected = VLAPlusForVision2Seq(config)
    assert sum(part.parameters for part in parts) == sum(each.numel() for each in expected.parameters())
    still = sum(part.frozen for part in parts)
    assert still == sum(each.numel() for each in expected.parameters() if not each.requires_grad)
    if frozen is None:
        assert still == 0
        assert sum(part.parameters for part in parts) == SIZES[name]["parameters"]
    else:
        (copy,) = (part for part in parts if part.name == "frozen_vision")
        assert copy.frozen == still > 3e8
        assert 0 < copy.trainable < 0.5 * copy.frozen  # its projector
    language = next(part for part in parts if part.name == "language_model")
    assert language.layers >= 24
    assert all(plan.hours > 0 and plan.total > 0 for plan in plans)


def test_without_the_model_there_is_nothing_to_plan(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, model={"family": "vla_plus", "initial_model": "start", "frozen": None})
    with pytest.raises(FileNotFoundError, match="expected the folder of a model that gen-vla convert made"):
        plan_recipe(recipe, tmp_path)
