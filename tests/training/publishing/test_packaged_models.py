"""Models that come with the package."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from setuptools.config.setupcfg import read_configuration
from tiny_runs import noise, run_tiny

from gen_vla.training.checkpoints import load_model, load_processor
from gen_vla.training.model_building import PACKAGED_MODELS, check_initial_model, initial_model_folder
from gen_vla.training.publishing.packaging import LARGEST, package_model
from gen_vla.training.recipes.loading import load_recipe, recipe_names


SCORE = {"right": 9, "n": 10, "median_cm": None}
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a run on questions alone."""
    return run_tiny(tmp_path_factory.mktemp("run"), data__robot=[], tokenizer__texts_from=["questions"])


def test_a_run_becomes_a_packaged_model(folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "home.json"
    results.write_text(json.dumps({"kinds": {"point": {**SCORE, "median_cm": 1.23}}, "total": SCORE}))
    packaged = package_model(folder, [results], tmp_path / "packaged")
    card = (packaged / "README.md").read_text(encoding="utf-8")
    assert "| point | 90 % of 10, 1.2 cm off |" in card
    assert "| all | 90 % of 10 |" in card
    saved, whole, half = load_processor(packaged), load_model(folder), load_model(packaged)
    asked = saved.question_inputs(noise(2), "is the drawer open?")
    with torch.no_grad():
        torch.testing.assert_close(half(**asked).logits, whole(**asked).logits, atol=5e-3, rtol=0)
    assert not list(packaged.glob("*.py"))
    assert json.loads((packaged / "config.json").read_text())["dtype"] == "float16"


def test_a_file_of_other_results_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "latency.json").write_text("{}")
    with pytest.raises(ValueError, match="without kinds of questions"):
        package_model(folder, [tmp_path / "latency.json"], tmp_path / "packaged")


def test_packaged_models_are_complete_small_and_in_the_wheel() -> None:
    patterns = read_configuration(ROOT / "setup.cfg")["options"]["package_data"]["gen_vla.training"]
    for name in {path.name for path in PACKAGED_MODELS.iterdir()}:
        folder = initial_model_folder(f"package://{name}", Path("nowhere"))
        files = [path for path in folder.iterdir() if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= LARGEST
        listed = {path for pattern in patterns for path in (ROOT / "training").glob(pattern)}
        assert set(files) <= listed


def test_shipped_recipes_that_name_one_find_it(tmp_path: Path) -> None:
    starts = [recipe for recipe in map(load_recipe, recipe_names()) if "package://" in str(recipe.model.initial_model)]
    assert starts
    for recipe in starts:
        check_initial_model(recipe, tmp_path)
    wrong = dataclasses.replace(starts[0].model, initial_model="package://mini-vml")
    with pytest.raises(FileNotFoundError, match="expected package:// and one of mini-paligemma, mini-vlm"):
        check_initial_model(dataclasses.replace(starts[0], model=wrong), tmp_path)
