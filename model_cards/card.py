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


def write_card(folder: Path, repo_id: str, model: Any, results: dict[str, Any] | None) -> Path:
    """Writes `folder/README.md`.

    Args:
        repo_id: the repository's name, for the examples in the card.
        model: the model, for its size and settings.
        results: `{"figures": [{"task", "dataset", "metric", "value", "n", "interval", "note", "control"}],
            "environment": {...}}`; controls are shown in the table, but are no results of the model.
    """
    name = repo_id.rpartition("/")[2]
    facts = variant_facts(name)
    figures = (results or {}).get("figures", [])
    data = ModelCardData(
        license=facts["license"],
        library_name="transformers",
        pipeline_tag="robotics",
        tags=["vision-language-action", "robotics", model.config.model_type, *facts["tags"]],
        model_name=name,
        eval_results=[as_eval_result(figure) for figure in figures if not figure.get("control")] or None,
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
        parameters=f"{sum(p.numel() for p in model.parameters()):,}",
        frozen=model.config.frozen or "none",
        action_config=model.config.action_config or {},
        keys=", ".join(f"`{key}`" for key in model.config.norm_stats) or "none",
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
    return {**facts, **yaml.safe_load(path.read_text(encoding="utf-8"))} if path.is_file() else facts


def as_eval_result(figure: dict[str, Any]) -> EvalResult:
    """One measured figure as an entry of the Hub's model-index."""
    return EvalResult(
        task_type="robotics" if figure["metric"] == "success rate" else "visual-question-answering",
        dataset_type=figure["dataset"],
        dataset_name=figure["dataset"],
        metric_type=figure["metric"],
        metric_name=f"{figure['task']}: {figure['metric']}",
        metric_value=figure["value"],
    )
