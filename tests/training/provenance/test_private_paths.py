"""What of a path may be published: it still says where to look, and about nobody."""

import json
import os
from pathlib import Path

import pytest

from gen_vla.evaluation.simpler.runs import TrialLog
from gen_vla.evaluation.tabletop.episodes import EpisodeLog
from gen_vla.training.provenance import private_paths
from gen_vla.training.provenance.private_paths import publishable


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """Ada works in ~/robots; what begins with @ in the tests lies in her home folder."""
    home = tmp_path / "home" / "ada"
    (home / "robots").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "robots")
    monkeypatch.setattr(private_paths.getpass, "getuser", lambda: "ada")
    return str(home)


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("@/robots/outputs/mine", "outputs/mine"),
        ("@/robots", "."),
        ("@/robots/", "."),
        ("@/robots-2/data", "~/robots-2/data"),
        ("@", "~"),
        ("--output=@/robots/a.json", "--output=a.json"),
        (
            "data.robot=[{path: @/data/bridge, key: a}, {path: '@/robots/b'}]",
            "data.robot=[{path: ~/data/bridge, key: a}, {path: 'b'}]",
        ),
        ("mine=@/robots/a,@/b", "mine=a,~/b"),
        ("/scratch/ada/bridge", "/scratch/USER/bridge"),
        ("--local=/scratch/ada", "--local=/scratch/USER"),
        ("/data/adamant/ada.json", "/data/adamant/ada.json"),
        ("outputs/ada/mine", "outputs/ada/mine"),
        ("hf://ada/bridge", "hf://ada/bridge"),
        ("ada/bridge", "ada/bridge"),
        ("../shared/data", "../shared/data"),
        ("close the drawer", "close the drawer"),
    ],
)
def test_a_text_without_what_is_private(at_home, typed, shown):
    assert publishable(typed.replace("@", at_home)) == shown


def test_a_folder_beside_the_working_folder_below_home_or_elsewhere(at_home, tmp_path, monkeypatch):
    (Path(at_home) / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(Path(at_home) / "a" / "b")
    assert publishable(f"{at_home}/a/data") == "../data"
    (tmp_path / "scratch" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "scratch" / "x")
    assert publishable(f"{tmp_path}/scratch/data/1.0.0") == "../data/1.0.0"
    monkeypatch.chdir(at_home)  # the folder above holds the homes of others, and is not named by `..`
    assert publishable(f"{tmp_path}/home/bob/x") == f"{tmp_path}/home/bob/x"


def test_a_folder_reached_through_a_link_is_the_working_folder(at_home, tmp_path, monkeypatch):
    link = tmp_path / "link"
    link.symlink_to(Path(at_home) / "robots")
    monkeypatch.setenv("PWD", str(link))
    assert publishable(f"{link}/outputs") == "outputs"
    monkeypatch.setenv("PWD", str(tmp_path))  # of another folder, it says nothing
    assert publishable(f"{link}/outputs") == f"{link}/outputs"


def test_all_texts_of_a_structure_and_nothing_else(at_home):
    given = {"model": f"{at_home}/robots/a", "n": 3, "list": [f"{at_home}/b", None, (1.5, Path(at_home) / "c")]}
    assert publishable(given) == {"model": "a", "n": 3, "list": ["~/b", None, [1.5, "~/c"]]}
    assert given["model"] == f"{at_home}/robots/a"


def test_a_container_without_home_or_account_hides_nothing_it_should_not(monkeypatch):
    def nameless():
        raise KeyError("uid 4242")

    monkeypatch.setattr(private_paths.getpass, "getuser", nameless)
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setenv("PWD", "/")
    monkeypatch.setattr(os, "getcwd", lambda: "/")
    assert publishable("/data/bridge") == "/data/bridge"


def test_logs_that_runs_continue_hold_no_such_path_and_those_that_did_are_continued(at_home):
    typed, other = {"model": f"{at_home}/robots/mine"}, {"model": f"{at_home}/robots/other"}
    folder = Path(at_home) / "run"
    EpisodeLog(folder / "policy.jsonl", typed)
    TrialLog(folder, typed)
    for name in ("policy.jsonl", "settings.json"):
        assert at_home not in (folder / name).read_text()
        assert '"mine"' in (folder / name).read_text()
    (folder / "policy.jsonl").write_text(json.dumps({"settings": typed}) + "\n")  # as they used to be
    (folder / "settings.json").write_text(json.dumps(typed))
    for settings in (typed, {"model": "mine"}):
        EpisodeLog(folder / "policy.jsonl", settings)
        TrialLog(folder, settings)
    with pytest.raises(ValueError, match="model 'mine', now 'other'"):
        EpisodeLog(folder / "policy.jsonl", other)
    with pytest.raises(ValueError, match="got other settings"):
        TrialLog(folder, other)
