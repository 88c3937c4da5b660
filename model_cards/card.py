"""Writes a repository's README.md, the model card.

Decides: what a card says and in which order (`template.md`), and that a figure comes from a results file or is shown
as not measured. Refuses to know: how anything was measured.

A variant's own words are in `<NAME>.yaml` beside this file, by the repository's name; a model without such a file gets
a card that says so.
"""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData


CARDS = Path(__file__).resolve().parent
NOT_MEASURED = "not measured"
SUCCESS_RATE = "success rate"  # the metric of rollouts; every other one is about answers


def write_card(folder: Path, repo_id: str, model: Any, results: dict[str, Any] | None) -> Path:
    """Writes `folder/README.md`.

    Args:
        repo_id: the repository's name, for the examples in the card.
        model: the model, for its size and settings.
        results: `{"figures": [{"task", "dataset", "metric", "value", "n", "interval", "note", "control"}],
            "environment": {...}}`; controls are shown in the table, but are no results of the model. The last four may
            be missing, and a value may be `None`, which is shown as not measured.

    Raises:
        ValueError: if a figure does not say what it is.
    """
    name = repo_id.rpartition("/")[2]
    facts = variant_facts(name)
    figures = [checked_figure(figure) for figure in (results or {}).get("figures", [])]
    measured = [figure for figure in figures if figure["value"] is not None and not figure.get("control")]
    data = ModelCardData(
        license=facts["license"],
        library_name="transformers",
        pipeline_tag="robotics",
        tags=["vision-language-action", "robotics", model.config.model_type, *facts["tags"]],
        model_name=name,
        eval_results=[as_eval_result(figure) for figure in measured] or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(CARDS / "template.md"),
        repo_id=repo_id,
        name=name,
        facts=facts,
        figures=figures,
        environment=(results or {}).get("environment", {}),
        not_measured=NOT_MEASURED,
        unmeasured=unmeasured_kinds(measured),
        parameters=f"{sum(p.numel() for p in model.parameters()):,}",
        frozen=model.config.frozen or "none",
        action_config=model.config.action_config or {},
        keys=list(model.config.norm_stats),
    )
    path = folder / "README.md"
    card.save(path)
    return path


def variant_facts(name: str) -> dict[str, Any]:
    """What is written down about a variant; defaults where nothing is."""
    facts = {
        "license": "other",
        "summary": "No description has been written for this model.",
        "training": "Not described.",
        "limits": "Not described. Do not run it on a robot.",
        "licences": "Not described.",
        "tags": [],
    }
    path = CARDS / f"{name}.yaml"
    written = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if written.keys() - facts:
        unknown = ", ".join(sorted(written.keys() - facts))
        raise ValueError(f"{path}: got unknown key {unknown}; known: {', '.join(facts)}")
    return {**facts, **written}


def checked_figure(figure: dict[str, Any]) -> dict[str, Any]:
    """`figure`, if it says what was measured on what."""
    missing = [name for name in ("task", "dataset", "metric", "value") if name not in figure]
    if missing:
        raise ValueError(f"got the figure {figure} without {', '.join(missing)}, expected them for the model card")
    return figure


def unmeasured_kinds(measured: list[dict[str, Any]]) -> list[str]:
    """What a card must say nobody has measured."""
    about_actions = {figure["metric"] == SUCCESS_RATE for figure in measured}
    kinds = {True: "Success rates", False: "Question answering"}
    return [words for kind, words in kinds.items() if kind not in about_actions]


def as_eval_result(figure: dict[str, Any]) -> EvalResult:
    """One measured figure as an entry of the Hub's model-index."""
    return EvalResult(
        task_type="robotics" if figure["metric"] == SUCCESS_RATE else "visual-question-answering",
        dataset_type=figure["dataset"],
        dataset_name=figure["dataset"],
        metric_type=figure["metric"],
        metric_name=f"{figure['task']}: {figure['metric']}",
        metric_value=figure["value"],
    )
