"""The command line: what it prints, what it returns, what it refuses."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen_vla.commands.main import build_parser, main, parse_overrides
from gen_vla.training.recipes.loading import recipe_names


@pytest.fixture
def folder(tmp_path, tiny_openvla):
    """A saved tiny model."""
    model, processor = tiny_openvla
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for command in ("train", "evaluate", "publish", "predict", "demo"):
        assert command in text


def test_train_lists_the_recipes(capsys):
    assert main(["train", "--list"]) == 0
    text = capsys.readouterr().out
    for name in recipe_names():
        assert name in text
    assert main(["train"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "mini_openvla_pluss"], "did you mean 'mini_openvla_plus'"),
        (["train", "mini_vlm", "--set", "training.stepps=3"], "did you mean 'steps'"),
        (["train", "mini_vlm", "--set", "training.steps"], "expected KEY=VALUE"),
        (["publish", "nowhere", "gen-vla/x", "--output", "out"], "got nowhere, expected the folder of a saved model"),
        (["predict", "nowhere/at/all/deep", "x.png", "open"], "gen-vla:"),
    ],
)
def test_mistakes_give_a_message_and_exit_code_2(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_every_command_of_the_readme_is_understood():
    """The commands parse; what they do is tested where it is done."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    commands = [line for line in readme.splitlines() if line.startswith("gen-vla ")]
    assert len(commands) >= 8
    for command in commands:
        options = build_parser().parse_args(shlex.split(command, comments=True)[1:])
        assert callable(options.run)


def test_overrides_are_yaml():
    assert parse_overrides(["a.b=1", "c=[1, 2]", "d=null", "e=x=y"]) == {"a.b": 1, "c": [1, 2], "d": None, "e": "x=y"}


def test_predict_prints_one_action_as_json_and_draws_it(folder, tmp_path, capsys):
    picture = tmp_path / "camera.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(picture)
    code = main(["predict", str(folder), str(picture), "open the drawer", "--picture", str(tmp_path / "out.png")])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    answer = json.loads(captured.out.strip().splitlines()[-1])
    assert np.array(answer["action"]).shape == (1, 3)
    assert len(answer["text"]) == 15
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert main(["predict", str(folder), str(picture), " "]) == 2
    assert "empty instruction" in capsys.readouterr().err


def test_evaluate_questions_needs_questions(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "scene_questions", str(folder)])
    assert stop.value.code == 2
    assert "--questions" in capsys.readouterr().err


def test_publish_writes_a_repository_and_fills_a_cache(folder, tmp_path, capsys):
    arguments = ["publish", str(folder), "gen-vla/tiny", "--output", str(tmp_path / "repository")]
    assert main([*arguments, "--cache-dir", str(tmp_path / "cache")]) == 0, capsys.readouterr().err
    assert (tmp_path / "repository" / "README.md").is_file()
    revision = (tmp_path / "cache" / "models--gen-vla--tiny" / "refs" / "main").read_text()
    assert (tmp_path / "cache" / "models--gen-vla--tiny" / "snapshots" / revision / "config.json").is_file()
