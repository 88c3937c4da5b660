"""Recording of the simulated data sets that a recipe asks for."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import tiny_recipe, write_questions, write_robot_data

from gen_vla.commands.main import main
from gen_vla.commands.record import RECORDING_SETTINGS, record_missing_data
from gen_vla.evaluation.recording import demonstrations as recorded_demonstrations
from gen_vla.evaluation.recording import questions as recorded_questions


def test_a_missing_model_to_start_from_is_named_before_anything_is_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gen_vla.commands.record.record_missing_data", lambda *_: pytest.fail("recorded first"))
    tiny_recipe(tmp_path, model={"initial_model": "nowhere"})
    assert main(["train", str(tmp_path / "tiny.yaml"), "--work-dir", str(tmp_path)]) == 2
    assert "initial_model='nowhere' and no folder" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--familiar", "--paraphrase"])
@pytest.mark.parametrize("content", ["questions", "libero"])
def test_options_of_demonstrations_are_refused_elsewhere(tmp_path, capsys, option, content):
    assert main(["record", content, str(tmp_path / "d"), option]) == 2
    assert f"got {option} for {content}, expected it for demonstrations alone" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_missing_data_is_recorded_as_the_recipe_says(tmp_path, monkeypatch):
    calls: list[Any] = []

    def demonstrations(folder: Path, **settings: Any) -> None:
        calls.append(("demonstrations", settings))
        write_robot_data(folder)

    def questions(folder: Path, **settings: Any) -> None:
        calls.append(("questions", settings))
        write_questions(folder)

    monkeypatch.setattr(recorded_demonstrations, "record_demonstrations", demonstrations)
    monkeypatch.setattr(recorded_questions, "record_questions", questions)
    data: dict[str, Any] = {
        "data__robot": [{"path": "recorded", "key": "k", "record": {"episodes_per_task": 3}}],
        "data__vision_language": [{"path": "scenes", "name": "s", "record": {"count": 5, "seed": 9}}],
    }
    record_missing_data(tiny_recipe(tmp_path, **data), tmp_path)
    episodes = {"episodes_per_task": 3, "tasks": None, "seed": 0, "paraphrase": False, "familiar": False}
    assert calls == [
        ("demonstrations", {"image_size": 16, **episodes}),
        ("questions", {"image_size": 16, "count": 5, "seed": 9, "looks": "broad", "kinds": None}),
    ]
    record_missing_data(tiny_recipe(tmp_path, **data), tmp_path)
    assert len(calls) == 2  # what is there stays
    settings = tmp_path / "recorded" / RECORDING_SETTINGS
    older = json.loads(settings.read_text())
    del older["familiar"]  # recorded before there was this setting
    settings.write_text(json.dumps(older))
    record_missing_data(tiny_recipe(tmp_path, **data), tmp_path)
    data["data__robot"][0]["record"]["familiar"] = True
    with pytest.raises(ValueError, match=r"got .*recorded recorded with .*, expected .*'familiar': True"):
        record_missing_data(tiny_recipe(tmp_path, name="new", **data), tmp_path)
    del data["data__robot"][0]["record"]["familiar"]
    data["data__vision_language"][0]["record"]["count"] = 6
    with pytest.raises(ValueError, match=r"scenes recorded with .*'count': 5.*'count': 6.*delete the folder"):
        record_missing_data(tiny_recipe(tmp_path, name="another", **data), tmp_path)
