"""A card says what is known, and says of everything else that it is not."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from tiny_models import tiny_model, tiny_statistics

from gen_vla.processors import ActionStringProcessor
from gen_vla.training.publishing.card import write_card


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
    text = text_of(tmp_path, model, None, "me/never-heard-of")
    assert "No description has been written for this model." in text
    assert "Do not run it on a robot." in text
    assert "license: other" in text
    assert "| co-training (C) | not known: there is no record of the training |" in text


def test_what_is_measured_is_in_the_table_and_in_the_model_index(tmp_path: Path, model: Any) -> None:
    text = text_of(tmp_path, model, [SUCCESS, ANSWERS], environment={"machine": "2 cores"})
    assert "| open, success rate | drawers | 0.75 | 8 | 41-93 |  |" in text
    assert "| count, exact match | scenes | 0.5 | 400 | not measured | held out |" in text
    assert "- machine: 2 cores" in text
    assert ": not measured\n" not in text
    data: Any = ModelCard.load(tmp_path / "README.md").data
    results = data.eval_results
    assert [(r.dataset_name, r.metric_type, r.metric_value) for r in results] == [
        ("drawers", "success rate", 0.75),
        ("scenes", "exact match", 0.5),
    ]
    assert [r.task_type for r in results] == ["robotics", "visual-question-answering"]


def test_commands_stand_below_the_figures_with_what_is_known_of_them(tmp_path: Path, model: Any) -> None:
    commands = [
        {"command": "gen-vla evaluate vqa 'my robot'", "date": "2026-11-23", "commit": "3cfdda4, modified"},
        {"command": "make demo", "date": "2026-11-22", "commit": ""},
        {"command": "make demo"},
    ]
    text = text_of(tmp_path, model, [SUCCESS], commands=commands)
    block = text.partition("| open, success rate |")[2].partition("```\n")[2].partition("```")[0]
    assert block.splitlines() == [
        "gen-vla evaluate vqa 'my robot'  # 2026-11-23, gen-vla 3cfdda4, modified",
        "make demo  # 2026-11-22",
        "make demo",
    ]
    assert "came out of" not in text_of(tmp_path, model, [SUCCESS])
    assert "\n\n\n" not in text.partition("## Measured")[2].partition("## Licences")[0]


def test_speed_and_features_are_neither_actions_done_nor_questions_answered(tmp_path: Path, model: Any) -> None:
    speed = {"task": "seconds per action", "dataset": "latency", "metric": "median seconds", "value": 0.02, "n": 50}
    probe = {"task": "all", "dataset": "linear probe on cifar10", "metric": "accuracy", "value": 0.8, "n": 2000}
    text = text_of(tmp_path, model, [speed, probe])
    assert "- Success rates: not measured\n- Question answering: not measured\n" in text
    data: Any = ModelCard.load(tmp_path / "README.md").data
    assert [r.task_type for r in data.eval_results] == ["robotics", "image-feature-extraction"]


def test_a_control_is_shown_and_is_no_result_of_the_model(tmp_path: Path, model: Any) -> None:
    text = text_of(tmp_path, model, [{**SUCCESS, "control": True, "note": "random actions"}])
    assert "| open, success rate | drawers | 0.75 | 8 | 41-93 | random actions |" in text
    assert "- Success rates: not measured" in text
    assert "model-index" not in text


def test_zero_is_a_figure_and_one_kind_measured_leaves_the_other_visible(tmp_path: Path, model: Any) -> None:
    text = text_of(tmp_path, model, [{**SUCCESS, "value": 0.0}])
    assert "| open, success rate | drawers | 0.0 | 8 |" in text
    assert "Success rates: not measured" not in text
    assert "- Question answering: not measured" in text
    text = text_of(tmp_path, model, [ANSWERS])
    assert "- Success rates: not measured" in text
    assert "Question answering: not measured" not in text
    text = text_of(tmp_path, model, [{**SUCCESS, "value": None}])
    assert "| open, success rate | drawers | not measured | 8 |" in text
    assert "- Success rates: not measured" in text
    assert "model-index" not in text


def test_a_figure_that_does_not_say_what_it_is_raises(tmp_path: Path, model: Any) -> None:
    for name in ("task", "dataset", "metric", "value"):
        figure = {key: value for key, value in SUCCESS.items() if key != name}
        with pytest.raises(ValueError, match=f"without {name}, expected"):
            text_of(tmp_path, model, [figure])
    assert not (tmp_path / "README.md").exists()


def test_the_facts_of_the_model_are_its_own(tmp_path: Path, model: Any) -> None:
    text = text_of(tmp_path, model, None)
    count = sum(parameter.numel() for parameter in model.parameters())
    frozen = sum(p.numel() for name, p in model.named_parameters() if ".siglip." in name)
    assert 0 < frozen < count
    assert f"| parameters | {count:,}, of which {frozen:,} in the frozen encoder |" in text
    assert "| dual encoder (D) | siglip never moves |" in text
    assert "| actions as strings (S) | signed strings, 2 decimals, 3 dimensions, horizon 1 |" in text
    assert "| `unnorm_key` | `tiny` |" in text
    assert 'unnorm_key="tiny")  # float32 [3], in the data set\'s units' in text
    assert "{{ " not in text
    assert "{%" not in text


def test_several_keys_and_none(tmp_path: Path, model: Any, llama_like: Any) -> None:
    model.config.norm_stats = {"one": tiny_statistics(3), "two": tiny_statistics(3)}
    assert "| `unnorm_key` | `one`, `two` |" in text_of(tmp_path, model, None)
    talks_only = text_of(tmp_path, tiny_model(llama_like, frozen=None), None)
    assert "| actions as strings (S) | none: it does not act |" in talks_only
    assert "| `unnorm_key` | none |" in talks_only
    assert "| dual encoder (D) | none: every encoder trains |" in talks_only
    assert "in the frozen encoder" not in talks_only
    assert "question_inputs(" in talks_only
    assert "predict_action" not in talks_only


def test_the_code_on_the_card_runs(tmp_path, tiny_openvla, monkeypatch):
    """On the model it describes, by the name of a local folder."""
    model, processor = tiny_openvla
    model.save_pretrained(tmp_path / "me" / "tiny")
    processor.save_pretrained(tmp_path / "me" / "tiny")
    Image.new("RGB", (20, 10)).save(tmp_path / "camera.png")
    monkeypatch.chdir(tmp_path)
    text = text_of(tmp_path / "me" / "tiny", model, None, "me/tiny")
    code = text.partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line]) <= 10
    names: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), names)
    assert names["action"].shape == (3,)


def test_the_cameras_are_named_and_the_example_shows_a_picture_of_each(tmp_path: Path, model: Any) -> None:
    plain = write_card(tmp_path, "gen-vla/tiny", model, None).read_text()
    one = write_card(tmp_path, "gen-vla/tiny", model, None, ["top"]).read_text()
    two = write_card(tmp_path, "gen-vla/tiny", model, None, ["top", "wrist"]).read_text()
    assert "| cameras |" not in plain
    assert one == plain.replace("| `unnorm_key` |", "| cameras | `top` |\n| `unnorm_key` |")
    assert "| cameras | `top`, `wrist`: a picture of each per action, in this order |" in two
    for text, example in ((plain, 'Image.open("camera.png")'), (two, '{"top": Image.open("top.png"), "wrist": Image')):
        assert f"trust_remote_code=True)\nimage = {example}" in text
    assert 'processor.question_inputs(image["top"], "what is this?")' in two
    compile(two.split("```python\n")[1].split("```")[0], "card", "exec")
