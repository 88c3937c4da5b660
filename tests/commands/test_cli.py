"""The command line: what it prints, what it returns, what it refuses."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gen_vla.commands.main import main, parse
from gen_vla.commands.train import parse_overrides, run_in_processes
from gen_vla.training.recipes.loading import recipe_names


def test_help_names_every_command_with_examples(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("train", "evaluate", "convert", "publish", "predict", "record", "demo"):
        assert command in text
    for example in ("gen-vla train", "gen-vla evaluate", "gen-vla predict", "gen-vla demo"):
        assert f"  {example} " in text


def test_help_and_completion_load_no_library_of_models():
    script = "import sys; from gen_vla.commands.main import main; main(['evaluate', '--help'])"
    script += "; sys.exit(', '.join({'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    asked = {"_GEN_VLA_COMPLETE": "complete_bash", "COMP_WORDS": "gen-vla evaluate sce", "COMP_CWORD": "2"}
    command = [sys.executable, "-m", "gen_vla.commands.main"]
    run = subprocess.run(command, env={**os.environ, **asked}, check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["scene_questions"]


def test_train_lists_the_recipes(capsys):
    assert main(["train", "--list"]) == 0
    text = capsys.readouterr().out
    for name in recipe_names():
        assert name in text
    assert main(["train"]) == 2


def test_several_processes_run_the_same_command(capfd):
    assert run_in_processes(["--help"], 2) == 0
    assert capfd.readouterr().out.count("Train a recipe") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "mini_openvla_pluss"], "did you mean 'mini_openvla_plus'"),
        (["train", "mini_vlm", "--set", "training.stepps=3"], "did you mean 'steps'"),
        (["train", "mini_vlm", "--set", "training.steps"], "expected KEY=VALUE"),
        (["record", "libero", "q", "--looks", "home"], "its scenes have one look each"),
        (
            ["train", "mini_vlm", "--plan", "--check"],
            "got several of --plan, --check and --rehearse, expected one of them",
        ),
        (["train", "mini_vlm", "--report-to", "nowhere"], "--report-to"),
        (["publish", "nowhere", "gen-vla/x", "--output", "out"], "got nowhere, expected the folder of a saved model"),
        (["predict", "nowhere/at/all/deep", "x.png", "open"], "gen-vla:"),
        (["evaluate", "scene_questions", "model"], "--questions"),
        (["record", "drawers", "x"], "'drawers' is not one of"),
        (["evaluate", "simpler", "--robot", "widowx", "--modes", "matching", "mased", "--output", "x"], "'mased'"),
    ],
)
def test_mistakes_give_a_message_and_exit_code_2(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("predict m a.png b.png open", {"model": "m", "images": ["a.png", "b.png"], "instruction": "open"}),
        (
            "evaluate simpler m --modes matching masked --tasks a --robot widowx --output x",
            {"model": "m", "modes": ["matching", "masked"], "tasks": ["a"], "output": Path("x")},
        ),
        ("evaluate open_loop m d --camera top --camera wrist", {"cameras": ["top", "wrist"], "every": 10}),
        ("convert a b --no-dual", {"dual": False, "dtype": None}),
        ("record questions q --seed 7", {"content": "questions", "seed": 7, "count": 4000, "looks": None}),
        ("demo", {"output": None, "episodes": 12, "quick": False}),
    ],
)
def test_arguments(command, expected):
    found = parse(shlex.split(command)).params
    assert {
        name: list(found[name]) if isinstance(found[name], tuple) else found[name] for name in expected
    } == expected


def test_overrides_are_yaml():
    assert parse_overrides(["a.b=1", "c=[1, 2]", "d=null", "e=x=y"]) == {"a.b": 1, "c": [1, 2], "d": None, "e": "x=y"}
