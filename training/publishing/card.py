"""Writes a repository's README.md, the model card, by `model_cards/template.md`.

A figure comes from a results file, or is shown as not measured. What is known about a variant is in `variants.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from gen_vla.training.publishing.variants import CARDS, action_format, describe_variant
from gen_vla.training.recipes.loading import load_recipe


NOT_MEASURED = "not measured"
SUCCESS_RATE = "success rate"  # the metric of rollouts
ANSWERING = "visual-question-answering"
TASK_TYPES = {  # as the Hub calls them, by metric; everything else is about acting: its speed, its decoding
    **dict.fromkeys(("soft_accuracy", "exact_match", "exact match", "accuracy"), ANSWERING),
    **dict.fromkeys(("precision", "recall", "f1", "yes_ratio"), ANSWERING),
}
PROBE = "linear probe"  # a data set of figures about features begins with this


def write_card(
    folder: Path, repo_id: str, model: Any, results: dict[str, Any] | None, cameras: Sequence[str] | None = None
) -> Path:
    """Writes `folder/README.md`.

    Args:
        folder: of the repository; a `recipe.yaml` in it is the run's.
        repo_id: the repository's name, for the examples in the card and to find the texts about the variant.
        model: the model, for its size and settings.
        results: `{"figures": [{"task", "dataset", "metric", "value", "n", "interval", "note", "control"}],
            "environment": {...}, "commands": [{"command", "date", "commit"}]}`; controls are shown in the table, but
            are no results of the model. The last four of a figure and the last two of all may be missing, and a value
            may be `None`, which is shown as not measured.
        cameras: those whose pictures an action is asked for with (the processor's), `None` for one of any name.
    """
    name = repo_id.rpartition("/")[2]
    record = folder / "recipe.yaml"
    variant = describe_variant(name, model.config, load_recipe(record) if record.is_file() else None)
    figures = [checked_figure(figure) for figure in (results or {}).get("figures", [])]
    measured = [figure for figure in figures if figure["value"] is not None and not figure.get("control")]
    data = ModelCardData(
        base_model=variant.base_model or None,
        datasets=variant.datasets or None,
        eval_results=[as_eval_result(figure) for figure in measured] or None,
        library_name="transformers",
        license=variant.license,
        model_name=name,
        pipeline_tag="robotics",
        tags=["vision-language-action", "robotics", model.config.model_type, *variant.tags],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(CARDS / "template.md"),
        repo_id=repo_id,
        name=name,
        variant=variant,
        facts=[
            *(variant.facts or model_facts(model.config)),
            *camera_facts(cameras),
            *state_facts(model.config),
            *action_facts(model.config.norm_stats),
        ],
        cameras=list(cameras or ()),
        figures=figures,
        environment=(results or {}).get("environment", {}),
        commands=[command_text(entry) for entry in (results or {}).get("commands", [])],
        not_measured=NOT_MEASURED,
        unmeasured=unmeasured_kinds(measured),
        parameters=model.num_parameters(),
        frozen=frozen_parameters(model),
        action_config=model.config.action_config or {},
        keys=list(model.config.norm_stats),
        answers=model.config.model_type != "pi0_flow",
    )
    path = folder / "README.md"
    card.save(path)
    return path


def frozen_parameters(model: Any) -> int:
    if model.config.model_type == "vla_plus":
        return sum(weight.numel() for weight in model.parameters() if not weight.requires_grad)
    if not model.config.frozen:
        return 0
    tower = model.model.vision_tower
    still = [tower.get_submodule(name) for name in filter(tower.is_frozen, tower.names)]
    return sum(weight.numel() for encoder in still for weight in encoder.parameters())


def command_text(entry: dict[str, Any]) -> str:
    commit = entry.get("commit")
    comment = ", ".join(filter(None, (entry.get("date"), f"gen-vla {commit}" if commit else "")))
    return f"{entry['command']}  # {comment}" if comment else entry["command"]


def model_facts(config: Any) -> list[tuple[str, str]]:
    return [
        ("dual encoder (D)", f"{config.frozen} never moves" if config.frozen else "none: every encoder trains"),
        ("actions as strings (S)", action_format(config.action_config)),
        ("co-training (C)", "not known: there is no record of the training"),
    ]


def camera_facts(cameras: Sequence[str] | None) -> list[tuple[str, str]]:
    if not cameras:
        return []
    names = ", ".join(f"`{camera}`" for camera in cameras)
    return [("cameras", names if len(cameras) == 1 else f"{names}: a picture of each per action, in this order")]


def state_facts(config: Any) -> list[tuple[str, str]]:
    needed = {"input": "shown to the model", "reference": "not shown to the model: actions are relative to it"}
    kind = needed.get((config.action_config or {}).get("state", ""))
    sizes = ", ".join(
        f"{len(of['proprio']['q01'])} values for `{key}`" for key, of in config.norm_stats.items() if kind
    )
    return [("the robot's state", f"{sizes}, in the data set's units, {kind}")] if kind else []


def action_facts(norm_stats: dict[str, Any]) -> list[tuple[str, str]]:
    described = {key: action_words(statistics["action"]) for key, statistics in norm_stats.items()}
    return [(f"an action of `{key}`", text) for key, text in described.items() if text]


def action_words(statistics: dict[str, Any]) -> str:
    """What a data set's statistics (`norm_stats[key]["action"]`) say about its actions besides figures."""
    names, units, fps, moved = (statistics.get(word) for word in ("names", "units", "fps", "displacements"))
    relative = sorted(dim for group in statistics.get("relative") or () for dim in group["dims"])
    shown = [f"`{name}`" for name in names or ()]
    shown = [f"{name} ({unit})" for name, unit in zip(shown, units, strict=True)] if shown and units else shown
    parts = [", ".join(shown).replace("|", "/")]
    if moved is not None:
        numbers = ", ".join(map(str, moved))
        parts.append(f"dimensions {numbers} are displacements, all others positions" if moved else "all positions")
    if relative:
        numbers = ", ".join(map(str, relative))
        parts.append(f"dimensions {numbers} are learned relative to the robot's state, and turned back when acting")
    if fps:
        parts.append(f"{fps:g} steps a second")
    return "; ".join(filter(None, parts))


def checked_figure(figure: dict[str, Any]) -> dict[str, Any]:
    missing = [name for name in ("task", "dataset", "metric", "value") if name not in figure]
    if missing:
        raise ValueError(f"got the figure {figure} without {', '.join(missing)}, expected them for the model card")
    return figure


def unmeasured_kinds(measured: list[dict[str, Any]]) -> list[str]:
    known = {figure["metric"] for figure in measured}
    answered = any(task_type(figure) == ANSWERING for figure in measured)
    missing = {"Success rates": SUCCESS_RATE not in known, "Question answering": not answered}
    return [kind for kind, is_missing in missing.items() if is_missing]


def task_type(figure: dict[str, Any]) -> str:
    if figure["dataset"].startswith(PROBE):
        return "image-feature-extraction"
    return TASK_TYPES.get(figure["metric"], "robotics")


def as_eval_result(figure: dict[str, Any]) -> EvalResult:
    return EvalResult(
        task_type=task_type(figure),
        dataset_type=figure["dataset"],
        dataset_name=figure["dataset"],
        metric_type=figure["metric"],
        metric_name=f"{figure['task']}: {figure['metric']}",
        metric_value=figure["value"],
    )
