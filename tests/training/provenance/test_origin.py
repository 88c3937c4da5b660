"""A result file says what was typed, when, on what and of which model; nothing private is in it."""

import hashlib
import json
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from huggingface_hub import constants

from gen_vla.commands.main import main
from gen_vla.commands.options import write_results
from gen_vla.training.provenance import origin as module
from gen_vla.training.provenance.origin import (
    called_as,
    code_version,
    command_line,
    data_identity,
    model_identity,
    note_run,
    origin,
    provenance,
    with_other_runs,
    with_provenance,
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "home" / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home" / "work")
    return tmp_path / "home"


def test_a_command_can_be_typed_again_and_names_no_folder_of_the_user(home):
    typed = ["evaluate", "vqa", f"{home}/work/my robot", "--local", f"{home}/data sets/vqa", "--set", "a=[1, 2]"]
    with called_as("gen-vla", *typed):
        written = command_line()
    assert written == "gen-vla evaluate vqa 'my robot' --local ~/'data sets/vqa' --set 'a=[1, 2]'"
    shell = subprocess.run(["sh", "-c", f"printf '%s\\n' {written}"], capture_output=True, text=True, check=True)
    assert shell.stdout.splitlines()[3:] == ["my robot", "--local", f"{home}/data sets/vqa", "--set", "a=[1, 2]"]


@pytest.mark.parametrize(
    ("started", "written"),
    [
        (["/usr/bin/python3", "-m", "gen_vla.commands.main", "train", "mini_vlm"], "gen-vla train mini_vlm"),
        (["python", f"{Path(sys.executable).parent}/gen-vla", "demo", "--quick"], "gen-vla demo --quick"),
        (["/x/python3.11", "-m", "gen_vla.evaluation.recording.questions", "questions", "out"],
         "python -m gen_vla.evaluation.recording.questions questions out"),
        (["python", "mine.py", "--n", "3"], "python mine.py --n 3"),
        (["python"], "python"),
    ],
)  # fmt: skip
def test_what_was_not_called_by_the_command_line_is_what_the_interpreter_was_started_with(
    started, written, monkeypatch
):
    monkeypatch.setattr(sys, "orig_argv", started)
    assert command_line() == written


def test_a_record_has_all_that_a_reviewer_asks_for(monkeypatch):
    with called_as("gen-vla", "evaluate", "latency"):
        record = provenance()
    assert record["command"] == "gen-vla evaluate latency"
    written = datetime.fromisoformat(record["date"])
    assert written.utcoffset().total_seconds() == 0  # type: ignore[union-attr]
    assert abs((datetime.now(UTC) - written).total_seconds()) < 120
    assert {"python", "torch", "transformers", "numpy", "gen-vla"} <= record["versions"].keys()
    assert {"device", "cores", "threads", "system"} <= record["machine"].keys()
    assert not {"model", "processes"} & record.keys()
    json.dumps(record)
    monkeypatch.setenv("WORLD_SIZE", "2")  # of a launcher
    assert provenance()["processes"] == 2


def a_clone(folder, monkeypatch, tracked=True):
    """A repository that this package seems to run from, with one commit."""
    (folder / "training").mkdir(parents=True)
    (folder / "training" / "origin.py").write_text("a = 1\n")
    (folder / "notes.txt").write_text("x\n")
    monkeypatch.setattr(module, "__file__", str(folder / "training" / "origin.py"))

    def git(*arguments):
        names = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        run = subprocess.run(["git", *names, *arguments], cwd=folder, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    git("init", "-q")
    git("add", "." if tracked else "notes.txt")
    git("commit", "-q", "-m", "one")
    return git("rev-parse", "HEAD")


def test_a_clone_says_its_commit_and_which_code_differs_from_it(tmp_path, monkeypatch):
    commit = a_clone(tmp_path, monkeypatch)
    assert code_version() == {"commit": commit, "modified": []}
    (tmp_path / "notes.txt").write_text("no code\n")
    assert code_version() == {"commit": commit, "modified": []}
    (tmp_path / "training" / "origin.py").write_text("a = 2\n")
    (tmp_path / "training" / "origins.py").write_text("")
    assert code_version() == {"commit": commit, "modified": ["training/origin.py", "training/origins.py"]}


def test_another_project_around_the_package_or_no_git_gives_no_commit(tmp_path, monkeypatch):
    commit = a_clone(tmp_path / "project", monkeypatch, tracked=False)
    assert (code_version() or {}).get("commit") != commit
    a_clone(tmp_path / "clone", monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version() is None


def test_a_model_is_known_by_its_bytes(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "training_log.json").write_text("{}")
    before = model_identity(tmp_path)
    assert before["sha256"] == {
        "config.json": hashlib.sha256(b"{}").hexdigest(),
        "model.safetensors": hashlib.sha256(b"weights").hexdigest(),
    }
    assert "modules" not in before
    (tmp_path / "model.safetensors").write_bytes(b"weightz")
    assert model_identity(tmp_path)["sha256"] != before["sha256"]
    (tmp_path / "modeling_a.py").write_text("a = 1")
    with_code = model_identity(tmp_path)["modules"]
    (tmp_path / "modeling_a.py").write_text("a = 2")
    assert model_identity(tmp_path)["modules"] != with_code


def test_a_repository_is_known_by_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for kind in ("models", "datasets"):
        (tmp_path / f"{kind}--me--mine" / "refs").mkdir(parents=True)
        (tmp_path / f"{kind}--me--mine" / "refs" / "main").write_text(f"{kind[0]}123")
    assert model_identity("me/mine") == {"name": "me/mine", "revision": "m123"}
    assert model_identity("me/mine@v2") == {"name": "me/mine", "revision": "v2"}
    assert model_identity("me/unknown") == {"name": "me/unknown", "revision": None}
    assert data_identity("hf://datasets/me/mine")["revision"] == "d123"
    assert data_identity("digits") == {"name": "digits"}


def test_a_data_set_is_known_by_its_files_but_not_by_what_reading_left_there(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.arrow").write_bytes(b"12345")
    before = data_identity(tmp_path)
    assert (before["files"], before["bytes"]) == (1, 5)
    (tmp_path / "a" / "cache-1.arrow").write_bytes(b"1")
    assert data_identity(tmp_path) == before
    (tmp_path / "a" / "0.arrow").rename(tmp_path / "a" / "1.arrow")
    assert data_identity(tmp_path)["listing"] != before["listing"]


def test_the_file_of_a_suite_begins_with_its_record_and_holds_no_path_of_the_user(home):
    model, data = home / "work" / "outputs" / "mine", home / "work" / "asked"
    for folder, name in ((model, "model.safetensors"), (data, "0.arrow")):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"1")
    with called_as("gen-vla", "evaluate", "scene_questions", str(model)):
        write_results({"model": str(model), "kinds": {}}, home / "work" / "out.json", [data, None])
    text = (home / "work" / "out.json").read_text()
    results = json.loads(text)
    assert next(iter(results)) == "provenance"
    assert results["model"] == results["provenance"]["model"]["name"] == "outputs/mine"
    assert results["provenance"]["command"] == "gen-vla evaluate scene_questions outputs/mine"
    assert [entry["name"] for entry in results["provenance"]["data"]] == ["asked"]
    assert str(home) not in text
    models = {"before": "me/base", "plain": None, "after": "me/mine"}
    write_results({"model": "me/mine", "models": models}, home / "work" / "out.json")
    record = json.loads((home / "work" / "out.json").read_text())["provenance"]
    assert (record["model"]["name"], [entry["name"] for entry in record["compared_with"]]) == ("me/mine", ["me/base"])


def test_a_suite_that_is_run_by_the_command_line_records_it(tmp_path, monkeypatch, tiny_openvla, capsys):
    model, processor = tiny_openvla
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", "latency", str(tmp_path / "model"), "--repeats", "1", "--output", "out.json"]
    assert main(arguments) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["provenance"]["command"] == "gen-vla evaluate latency model --repeats 1 --output out.json"
    assert results["provenance"]["model"]["sha256"].keys() >= {"config.json", "model.safetensors"}
    assert main(shlex.split(results["provenance"]["command"])[1:]) == 0  # it can be repeated


def test_runs_that_continue_one_another_all_stay_known(tmp_path):
    first, second = ({"command": f"run {number}", "date": "2026-11-23T10:00:00+00:00"} for number in (1, 2))
    note_run(tmp_path / "out", first)
    assert with_other_runs(first, tmp_path / "out") == first
    note_run(tmp_path / "out", second)
    with (tmp_path / "out" / "runs.jsonl").open("a") as file:
        file.write('{"command": "cut')
    assert with_other_runs(second, tmp_path / "out") == {**second, "other_runs": [first]}


def test_where_a_file_came_from_is_read_back_from_new_files_and_old(tmp_path):
    record = {
        "command": "gen-vla demo",
        "date": "2026-11-23T10:39:52+00:00",
        "code": {"commit": "a" * 40, "modified": ["x.py"]},
        "model": {"name": "me/mine", "revision": "r1"},
    }
    assert origin(with_provenance({"n": 1}, record)) == {
        "command": "gen-vla demo",
        "date": "2026-11-23",
        "commit": "aaaaaaa, modified",
        "revision": "r1",
    }
    nothing = {"command": "", "date": "", "commit": "", "revision": None}
    assert origin({"command": "make demo", "date": "2026-11-22"}) == {
        **nothing,
        "command": "make demo",
        "date": "2026-11-22",
    }
    for old in ({}, None, [1], {"provenance": {"code": None}}):
        assert origin(old) == nothing
