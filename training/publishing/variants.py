"""What a model card says about a variant besides figures: its texts, and what its recipe says.

    model_cards/<REPOSITORY>.yaml   texts about one variant, by the name of its repository
    model_cards/_origins.yaml       of every base and data set: where it comes from, its terms, its limits

D, S, C, data, base and training always come from a recipe, never from these texts, and the texts are used only for a
model trained like the recipe they were written for. That recipe is `recipe.yaml` in the model's folder, which the run
wrote. Without one the card says that there is no record of the run, and shows the recipe of the texts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.schema import PACKAGE_PREFIX, Recipe


CARDS = Path(__file__).resolve().parents[2] / "model_cards"
UNWRITTEN = "No description has been written for this model."
NO_LIMITS = "Nobody has written down what this model can and cannot do. Do not run it on a robot."
ENCODERS = {"siglip": "SigLIP", "dino": "DINOv2"}


@dataclass(frozen=True)
class Variant:
    summary: str
    training: str
    limits: list[str]
    facts: list[tuple[str, str]]  # rows of the table, name and value
    terms: list[str]  # one line per base and data set
    license: str  # as the Hub spells it
    base_model: list[str] = field(default_factory=list)  # on the Hub, like the data sets; those that are known
    datasets: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)  # for the Hub's search


def describe_variant(name: str, config: Any, run: Recipe | None = None) -> Variant:
    """What is known about a model, and the recipe that trained it, if that is known."""
    actions = config.action_config
    trained = {"family": config.model_type, "D": config.frozen, "S": actions["representation"] if actions else None}
    if run:
        trained = method(run)
    texts = card_texts(name)
    if texts and (differing := differences(trained, texts)):
        raise ValueError(
            f"got the repository name {name!r} for a model made otherwise ({differing}), expected one trained like "
            f"the recipe {texts['recipe']!r}; choose another name, since the card of {name!r} would be wrong"
        )
    if not texts and run:
        texts = card_texts(run.name)
        texts = {} if texts and differences(trained, texts) else texts
    recipe = run or (load_recipe(texts["recipe"]) if texts else None)
    if recipe is None:
        return Variant(UNWRITTEN, "Not described.", [NO_LIMITS], [], [], "other")
    base, data = origin_of_base(recipe), origins_of_data(recipe)
    limits = [texts["limits"]] if texts.get("limits") else [o["limits"] for o in (base, *data) if "limits" in o]
    return Variant(
        summary=texts.get("summary") or f"{recipe.description} {UNWRITTEN}",
        training=" ".join(filter(None, [texts.get("training"), training_sentence(recipe, run is not None)])),
        limits=limits or [NO_LIMITS],
        facts=recipe_facts(recipe),
        terms=[f"{origin['name']}: {origin['terms']}" for origin in (base, *data)],
        license=texts.get("license") or base.get("license", "other"),
        base_model=[base["hub"]] if "hub" in base else [],
        datasets=hub_datasets(recipe),
        tags=texts.get("tags", []),
    )


def card_texts(name: str) -> dict[str, Any]:
    path = CARDS / f"{name}.yaml"
    if name.startswith("_") or not path.is_file():
        others = sorted(CARDS.glob("[!_]*.yaml"))
        path = next((other for other in others if read_yaml(other).get("short_name") == name), None)
    if path is None:
        return {}
    return read_yaml(path)


def differences(trained: dict[str, Any], texts: dict[str, Any]) -> str:
    """In which parts of the method a model differs from the one that texts were written for; empty if in none."""
    expected = method(load_recipe(texts["recipe"]))
    differing = {part: value for part, value in trained.items() if value != expected[part]}
    return ", ".join(f"{part}: {value!r}, not {expected[part]!r}" for part, value in differing.items())


def method(recipe: Recipe) -> dict[str, Any]:
    """What makes two runs the same row of a table, whatever their sizes."""
    return {
        "family": recipe.model.family,
        "D": recipe.model.frozen,
        "S": recipe.actions.representation if recipe.data.robot else None,
        "C": [source.name for source in recipe.data.questions],
        "robot data": [source.key for source in recipe.data.robot],
        "paraphrased": recipe.data.instruction_augmentation is not None or records_paraphrases(recipe),
    }


def records_paraphrases(recipe: Recipe) -> bool:
    return any(source.record is not None and source.record.paraphrase for source in recipe.data.robot)


def recipe_facts(recipe: Recipe) -> list[tuple[str, str]]:
    robots = [f"`{source.key}`" for source in recipe.data.robot]
    questions = [f"`{source.name}`" for source in recipe.data.questions]
    frozen = recipe.model.frozen
    if frozen is None:
        dual = "none: every encoder trains"
    elif recipe.model.family == "vla_plus":
        dual = "one copy of the vision encoder never moves, the other trains"
    elif frozen == "all":
        dual = "none: no encoder trains"
    else:
        other = next(word for encoder, word in ENCODERS.items() if encoder != frozen)
        dual = f"{ENCODERS[frozen]} never moves, {other} trains"
    if not robots:
        co_training = f"none: questions only, {', '.join(questions)}"
    else:
        co_training = f"half of every batch: {', '.join(questions)}" if questions else "none: robot data only"
    paraphrases = recipe.data.instruction_augmentation
    augmented = [
        f"instructions in other words for {paraphrases.probability:.0%} of the rows" if paraphrases else "",
        "instructions in other words, drawn for each demonstration" if records_paraphrases(recipe) else "",
        "pictures" if recipe.data.image_augmentation else "",
    ]
    return [
        ("starts from", f"`{recipe.model.initial_model}`" if recipe.model.initial_model else "random weights"),
        ("dual encoder (D)", dual),
        ("actions as strings (S)", action_format(vars(recipe.actions) if robots else None)),
        ("co-training (C)", co_training),
        ("robot data", ", ".join(robots) or "none"),
        *([("augmentation", ", ".join(filter(None, augmented)))] if any(augmented) else []),
    ]


def action_format(actions: Mapping[str, Any] | None) -> str:
    """How a model writes actions, from its `action_config` or its recipe's `actions`; `None` if it does not act."""
    if not actions:
        return "none: it does not act"
    size = f"{actions['action_dim']} dimensions, horizon {actions['horizon']}"
    if actions["representation"] == "bins":
        return f"none: one of 256 bins per value, {size}"
    if actions["representation"] == "flow":
        return f"none: numbers out of noise, by flow matching, {size}"
    return f"{actions['style']} strings, {actions['decimals']} decimals, {size}"


def training_sentence(recipe: Recipe, recorded: bool) -> str:
    training = recipe.training
    rows = f"{training.batch_size} rows per device"
    if training.gradient_accumulation_steps > 1:
        rows += f", {training.gradient_accumulation_steps} batches per step"
    lora = f", LoRA of rank {training.lora.rank} merged into the weights" if training.lora else ""
    steps = f"{training.steps:,} steps of {rows}, learning rate {training.learning_rate:g}, seed {training.seed}{lora}"
    if recorded:
        return f"Trained for {steps}; `recipe.yaml` in this repository is the whole recipe."
    return f"There is no record of this model's run. The recipe `{recipe.name}` asks for {steps}."


def origins() -> dict[str, Any]:
    """Everything in `_origins.yaml`: `bases`, `robot` and `vision_language`, each by its name in the recipes."""
    return read_yaml(CARDS / "_origins.yaml")


def read_yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def origin_of_base(recipe: Recipe) -> dict[str, Any]:
    name = recipe.model.initial_model
    if name is None:
        return {"name": "Weights", "terms": "trained from random ones, so that only the data's terms bear on them"}
    return origins()["bases"].get(
        name.removeprefix(PACKAGE_PREFIX), {"name": f"The model `{name}` it starts from", "terms": "see there"}
    )


def origins_of_data(recipe: Recipe) -> list[dict[str, Any]]:
    known = origins()
    named = [(known["robot"], source.key) for source in recipe.data.robot]
    named += [(known["vision_language"], source.name) for source in recipe.data.questions]
    return [table.get(name, {"name": f"`{name}`", "terms": "see the data set's card"}) for table, name in named]


def hub_datasets(recipe: Recipe) -> list[str]:
    paths = [source.path for source in [*recipe.data.robot, *recipe.data.questions]]
    found = [re.match(r"hf://datasets/([^/@]+/[^/@]+)", path) for path in paths]
    return list(dict.fromkeys(match[1] for match in found if match))
