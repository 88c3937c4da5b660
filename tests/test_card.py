"""A card says what is known, and says of everything else that it is not."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tiny_models import tiny_model, tiny_statistics

from gen_vla.model_cards import card as card_module
from gen_vla.model_cards.card import CARDS, variant_facts, write_card
from gen_vla.processors import ActionStringProcessor


STRINGS = ActionStringProcessor(action_dim=3, decimals=2, binary_dims=[2])
SUCCESS = {"task": "open", "dataset": "drawers", "metric": "success rate", "value": 0.75, "n": 8, "interval": "41-93"}
ANSWERS = {"task": "count", "dataset": "scenes", "metric": "exact match", "value": 0.5, "n": 400, "note": "held out"}


@pytest.fixture
def model(llama_like: Any) -> Any:
    return tiny_model(llama_like, STRINGS)


def text_of(folder: Path, model: Any, figures: list[Any] | None, name: str = "gen-vla/tiny", **rest: Any) -> str:
    results = None if figures is None else {"figures": figures, **rest}
    return write_card(folder, name, model, results).read_text()


def test_nothing_measured_is_visible(tmp_path: Path, model: Any) -> None:
    text = text_of(tmp_path, model, None)
    assert "- Success rates: not measured\n- Question answering: not measured\n" in text
    assert "model-index" not in text
    assert "| what | data |" not in text


def test_what_is_measured_is_in_the_table_and_in_the_model_index(tmp_path: Path, model: Any) -> None:
    text = text_of(tmp_path, model, [SUCCESS, ANSWERS], environment={"machine": "2 cores"})
    assert "| open, success rate | drawers | 0.75 | 8 | 41-93 |  |" in text
    assert "| count, exact match | scenes | 0.5 | 400 | not measured | held out |" in text
    assert "- machine: 2 cores" in text
    assert "Success rates: not measured" not in text
    data: Any = ModelCard.load(tmp_path / "README.md").data
    results = data.eval_results
    assert [(r.dataset_name, r.metric_type, r.metric_value) for r in results] == [
        ("drawers", "success rate", 0.75),
        ("scenes", "exact match", 0.5),
    ]
    assert [r.task_type for r in results] == ["robotics", "visual-question-answering"]


def test_one_kind_measured_leaves_the_other_visible(tmp_path: Path, model: Any) -> None:
    assert "- Question answering: not measured" in text_of(tmp_path, model, [SUCCESS])
    text = text_of(tmp_path, model, [ANSWERS])
    assert "- Success rates: not measured" in text
    assert "Question answering: not measured" not in text


def test_a_control_is_shown_and_is_no_result_of_the_model(tmp_path: Path, model: Any) -> None:
    text = text_of(tmp_path, model, [{**SUCCESS, "control": True, "note": "random actions"}])
    assert "| open, success rate | drawers | 0.75 | 8 | 41-93 | random actions |" in text
    assert "- Success rates: not measured" in text
    assert "model-index" not in text


def test_zero_is_a_figure_and_nothing_is_none(tmp_path: Path, model: Any) -> None:
    text = text_of(tmp_path, model, [{**SUCCESS, "value": 0.0}])
    assert "| open, success rate | drawers | 0.0 | 8 |" in text
    assert "Success rates: not measured" not in text
    text = text_of(tmp_path, model, [{**SUCCESS, "value": None}])
    assert "| open, success rate | drawers | not measured | 8 |" in text
    assert "- Success rates: not measured" in text
    assert "model-index" not in text


@pytest.mark.parametrize("name", ["task", "dataset", "metric", "value"])
def test_a_figure_that_does_not_say_what_it_is_raises(name: str, tmp_path: Path, model: Any) -> None:
    figure = {key: value for key, value in SUCCESS.items() if key != name}
    with pytest.raises(ValueError, match=f"without {name}, expected"):
        text_of(tmp_path, model, [figure])
    assert not (tmp_path / "README.md").exists()


def test_an_unknown_variant_says_so(tmp_path: Path, model: Any) -> None:
    text = text_of(tmp_path, model, None, "me/never-heard-of")
    assert "No description has been written for this model." in text
    assert "Do not run it on a robot." in text
    assert "license: other" in text


@pytest.mark.parametrize("path", sorted(CARDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_variant_is_described_in_full(path: Path, tmp_path: Path, model: Any) -> None:
    facts, defaults = variant_facts(path.stem), variant_facts("never-heard-of")
    for name in ("summary", "training", "limits", "licences", "license"):
        assert facts[name].strip()
        assert facts[name] != defaults[name]
    text = text_of(tmp_path, model, None, f"gen-vla/{path.stem}")
    for name in ("summary", "training", "limits", "licences"):
        assert facts[name].strip() in text
    data: Any = ModelCard.load(tmp_path / "README.md").data
    assert (data.pipeline_tag, data.library_name, data.license) == ("robotics", "transformers", facts["license"])


def test_a_misspelt_fact_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("license: mit\nlimit: none\n")
    monkeypatch.setattr(card_module, "CARDS", tmp_path)
    with pytest.raises(ValueError, match=r"mine\.yaml: got unknown key limit; known: license, summary"):
        variant_facts("mine")


def test_the_facts_of_the_model_are_its_own(tmp_path: Path, model: Any) -> None:
    text = text_of(tmp_path, model, None)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"| parameters | {count:,} |" in text
    assert "| frozen encoder (D) | siglip |" in text
    assert "| actions (S) | signed strings, 2 decimals, 3 dimensions, horizon 1 |" in text
    assert "| `unnorm_key` | `tiny` |" in text
    assert 'unnorm_key="tiny")  # float32 [3], in the data set\'s units' in text
    assert "{{" not in text
    assert "{%" not in text


def test_several_keys_and_none(tmp_path: Path, model: Any, llama_like: Any) -> None:
    model.config.norm_stats = {"one": tiny_statistics(3), "two": tiny_statistics(3)}
    assert "| `unnorm_key` | `one`, `two` |" in text_of(tmp_path, model, None)
    talks_only = text_of(tmp_path, tiny_model(llama_like, frozen=None), None)
    assert "| actions (S) | none |" in talks_only
    assert "| `unnorm_key` | none |" in talks_only
    assert "| frozen encoder (D) | none |" in talks_only
    assert "question_inputs(" in talks_only
    assert "predict_action" not in talks_only


def test_the_code_on_the_card_runs(tmp_path: Path, model: Any) -> None:
    text = text_of(tmp_path, model, None)
    code = text.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert "trust_remote_code=True" in code
