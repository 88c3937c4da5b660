"""Every published recipe has a card, and no card says anything that its recipe does not."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from tiny_models import tiny_model, tiny_pi0_flow_model
from tiny_runs import tiny_recipe
from tiny_vlms import tiny_vla_plus

from gen_vla.processors import ActionStringProcessor
from gen_vla.training.publishing import variants
from gen_vla.training.publishing.card import write_card
from gen_vla.training.publishing.variants import CARDS, card_texts, describe_variant, origins
from gen_vla.training.recipes.loading import load_recipe, recipe_names
from gen_vla.training.recipes.schema import PACKAGE_PREFIX, Recipe
from gen_vla.training.run_folder import write_recipe


STRINGS = ActionStringProcessor(action_dim=7, decimals=2, binary_dims=[6])
LICENSES = {
    "prismatic": "llama2",
    "paligemma": "gemma",
    "mini": "mit",
    "None": "mit",
    "vlm": "other",
    "smol": "apache-2.0",
}


def model_like(recipe: Recipe, llama_like: Any, gemma_like: Any) -> Any:
    """A tiny model with the recipe's D and S."""
    frozen = recipe.model.frozen
    strings = STRINGS if recipe.data.robot else None
    if recipe.model.family == "vla_plus":
        return tiny_vla_plus("llava", gemma_like, strings, frozen=frozen)
    if recipe.model.family == "pi0_flow":
        return tiny_pi0_flow_model(gemma_like, action_dim=7)
    model = tiny_model(llama_like, strings, frozen=frozen)
    if recipe.actions.representation == "bins":
        model.config.action_config = {"representation": "bins", "action_dim": 7, "horizon": 1}
    return model


def card_text(folder: Path, name: str, model: Any, run: Recipe | None = None) -> str:
    if run:
        write_recipe(folder / "recipe.yaml", run)
    return write_card(folder, f"gen-vla/{name}", model, None).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_card_that_the_hub_takes(
    name: str, tmp_path: Path, llama_like: Any, gemma_like: Any
) -> None:
    recipe = load_recipe(name)
    assert card_texts(recipe.name)["recipe"] == name
    text = card_text(tmp_path, recipe.name, model_like(recipe, llama_like, gemma_like), recipe)
    assert "{{ " not in text
    assert "{%" not in text
    assert variants.UNWRITTEN not in text
    assert "- Success rates: not measured\n- Question answering: not measured\n" in text
    for source in [*recipe.data.robot, *recipe.data.questions]:
        assert f"`{getattr(source, 'key', None) or getattr(source, 'name', None)}`" in text
    assert f"Trained for {recipe.training.steps:,} steps of {recipe.training.batch_size} rows per device" in text
    assert "A model that moves a robot can hurt people" in text
    data: Any = ModelCard.load(tmp_path / "README.md").data
    assert data.license == LICENSES[str(recipe.model.initial_model).removeprefix(PACKAGE_PREFIX).partition("-")[0]]
    assert (data.pipeline_tag, data.library_name, data.model_name) == ("robotics", "transformers", recipe.name)
    assert recipe.model.family in data.tags
    assert data.eval_results is None
    for entry in [*(data.base_model or []), *(data.datasets or [])]:
        validate_repo_id(entry)
    sources = [source.path for source in [*recipe.data.robot, *recipe.data.questions]]
    from_the_hub = [path.removeprefix("hf://datasets/") for path in sources if path.startswith("hf://")]
    assert (data.datasets or []) == from_the_hub


def test_every_file_of_words_is_of_a_recipe() -> None:
    files = {path.stem for path in CARDS.glob("[!_]*.yaml")}
    assert files == {load_recipe(name).name for name in recipe_names()}
    summaries = [card_texts(name)["summary"] for name in sorted(files)]
    assert len(set(summaries)) == len(summaries)


def test_every_base_and_every_data_set_of_the_recipes_has_its_terms() -> None:
    known = origins()
    recipes = [load_recipe(name) for name in recipe_names()]
    starts = {r.model.initial_model for r in recipes} - {None}
    assert {str(start).removeprefix(PACKAGE_PREFIX) for start in starts} == set(known["bases"])
    own = {"my_robot"}  # the user's, under terms of their own
    assert {s.key for r in recipes for s in r.data.robot} - own == set(known["robot"])
    assert {s.name for r in recipes for s in r.data.questions} == set(known["vision_language"])


def test_the_card_of_the_flow_matching_baseline_promises_no_answers(tmp_path, llama_like, gemma_like):
    recipe = load_recipe("pi0_bridge")
    text = card_text(tmp_path, "pi0-bridge", model_like(recipe, llama_like, gemma_like), recipe)
    assert "| starts from | `paligemma-3b-pt-224-flow` |" in text
    assert "| actions as strings (S) | none: numbers out of noise, by flow matching, 7 dimensions, horizon 4 |" in text
    assert "| augmentation | instructions in other words for 50% of the rows |" in text
    assert "the action expert from random weights" in text
    assert "question_inputs" not in text
    assert "# float32 [4, 7], in the data set's units" in text
    (tmp_path / "recipe.yaml").unlink()
    text = card_text(tmp_path, "mine", model_like(recipe, llama_like, gemma_like))
    assert "| actions as strings (S) | none: numbers out of noise, by flow matching, 7 dimensions, horizon 4 |" in text


def test_a_run_is_told_as_it_was_not_as_the_recipe_asks(tmp_path: Path, llama_like: Any, gemma_like: Any) -> None:
    changes = {"training.steps": 12, "training.lora": {"rank": 8}, "model.initial_model": "my-own-base"}
    run = load_recipe("openvla_rt1_inst_aug", changes)
    text = card_text(tmp_path, run.name, model_like(run, llama_like, gemma_like), run)
    assert "Trained for 12 steps of 16 rows per device, 2 batches per step" in text
    assert "LoRA of rank 8 merged into the weights" in text
    assert "| starts from | `my-own-base` |" in text
    assert "- The model `my-own-base` it starts from: see there" in text
    assert "| augmentation | instructions in other words for 50% of the rows |" in text
    assert "license: other" in text


def test_words_that_a_recording_changes_are_told_too(tmp_path: Path, llama_like: Any, gemma_like: Any) -> None:
    run = load_recipe("mini_openvla_plus", {"data.robot.0.record.paraphrase": True})
    model = model_like(run, llama_like, gemma_like)
    text = card_text(tmp_path, "mine", model, run)
    assert "| augmentation | instructions in other words, drawn for each demonstration |" in text
    with pytest.raises(ValueError, match="paraphrased: True, not False"):
        card_text(tmp_path, run.name, model, run)


def test_without_a_record_the_card_does_not_tell_of_a_run(tmp_path: Path, llama_like: Any, gemma_like: Any) -> None:
    recipe = load_recipe("pi0_plus_bridge")
    text = card_text(tmp_path, recipe.name, model_like(recipe, llama_like, gemma_like))
    assert "There is no record of this model's run. The recipe `pi0-plus-bridge` asks for 60,000 steps" in text
    assert "Trained for" not in text


def test_a_name_that_promises_another_model_is_refused(tmp_path: Path, llama_like: Any, gemma_like: Any) -> None:
    run = load_recipe("openvla_plus_bridge", {"data.co_training": ["llava"]})
    model = model_like(run, llama_like, gemma_like)
    with pytest.raises(ValueError, match=r"C: \['llava'\], not \['llava', 'vqasynth', 'onevision', 'robopoint'\]"):
        card_text(tmp_path, "openvla-plus-bridge", model, run)
    (tmp_path / "recipe.yaml").unlink()
    with pytest.raises(ValueError, match=r"'openvla-bridge' .* \(D: 'siglip', not None, S: 'string', not 'bins'\)"):
        card_text(tmp_path, "openvla-bridge", model)
    with pytest.raises(ValueError, match="family: 'openvla_plus', not 'vla_plus'"):
        card_text(tmp_path, "pi0-plus-bridge", model)
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize(
    ("short", "full"),
    [("openvla-plus", "openvla-plus-bridge"), ("openvla", "openvla-bridge"), ("pi0-plus", "pi0-plus-bridge")],
)
def test_a_familys_short_name_is_that_of_the_model_trained_on_bridge(short, full, tmp_path, llama_like, gemma_like):
    recipe = load_recipe(full.replace("-", "_"))
    model = model_like(recipe, llama_like, gemma_like)
    text = card_text(tmp_path, short, model, recipe)
    assert card_texts(short) == card_texts(full)
    assert f"# {short}\n\n{card_texts(full)['summary']}" in text
    assert f'from_pretrained("gen-vla/{short}"' in text
    other = load_recipe(full.replace("-", "_").replace("bridge", "rt1"))
    with pytest.raises(ValueError, match=rf"'{short}' .*robot data: \['fractal20220817_data'\], not \['bridge_orig"):
        card_text(tmp_path, short, model, other)


def test_every_short_name_is_one_models() -> None:
    words = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in CARDS.glob("[!_]*.yaml")]
    short = [entry["short_name"] for entry in words if "short_name" in entry]
    assert sorted(short) == ["openvla", "openvla-plus", "pi0-plus", "vlm-plus"]
    assert not {path.stem for path in CARDS.glob("*.yaml")} & set(short)


def test_names_that_are_shown_are_of_models_with_a_card() -> None:
    """Every `gen-vla/...` in what users read is a variant, or one of the Spaces."""
    root = CARDS.parent
    pages = [root / "README.md", *root.glob("docs/**/*.md"), *root.glob("spaces/*/README.md")]
    pages += [*root.glob("evaluation/**/*.md"), *root.glob("spaces/*/*.py"), *root.glob("training/*.py")]
    spaces = {"openvla-plus-demo", *(path.name for path in root.glob("spaces/*/"))}
    shown = {name for page in pages for name in re.findall(r"\bgen-vla/([a-z0-9_-]+)", page.read_text("utf-8"))}
    assert {"openvla-plus", "openvla", "mini-openvla-plus"} <= shown
    assert {name for name in shown - spaces if not card_texts(name)} <= {"benchmark"}


def test_another_name_keeps_the_words_of_the_recipe(llama_like: Any, gemma_like: Any) -> None:
    run = load_recipe("openvla_plus_bridge")
    config = model_like(run, llama_like, gemma_like).config
    assert describe_variant("mine", config, run).summary == card_texts("openvla-plus-bridge")["summary"]
    changed = load_recipe("openvla_plus_bridge", {"data.co_training": []})
    summary = describe_variant("mine", config, changed).summary
    assert summary == f"OpenVLA+ (D, S and C) on Bridge. {variants.UNWRITTEN}"


def test_a_recipe_of_ones_own_is_told_without_words(tmp_path: Path, llama_like: Any) -> None:
    run = tiny_recipe(tmp_path / "run")
    text = card_text(tmp_path, "mine", tiny_model(llama_like, STRINGS), run)
    assert f"A recipe for tests. {variants.UNWRITTEN}" in text
    assert "- `tiny`: see the data set's card" in text
    assert variants.NO_LIMITS in text
    assert "| starts from | random weights |" in text
    assert "license: other" in text


def test_origins_are_no_words_about_a_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "CARDS", tmp_path)
    assert card_texts("_origins") == {}
