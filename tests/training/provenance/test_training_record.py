"""What a result file says about training: the same of runs that differ by their seed only, from real recipes."""

import json
from dataclasses import replace

import pytest
from hub_stand_in import Fault
from huggingface_hub import constants, hf_hub_download

from gen_vla.commands.options import write_results
from gen_vla.training.provenance.training_record import recipe_file, trained_as, with_record
from gen_vla.training.publishing.hub_publishing import Destination, upload
from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.run_folder import write_recipe


def record_of(folder):
    found = trained_as(folder)
    assert found is not None
    return found


def trained(folder, name="openvla_rt1_d", **training):
    """A model's folder as a run leaves it, as far as its recipe goes."""
    recipe = load_recipe(name)
    folder.mkdir(parents=True, exist_ok=True)
    write_recipe(folder / "recipe.yaml", replace(recipe, training=replace(recipe.training, **training)))
    return str(folder)


def test_settings_differ_by_the_recipe_but_not_by_seed_name_or_tracker(tmp_path):
    usual, other_seed = (record_of(trained(tmp_path / str(seed), seed=seed)) for seed in (0, 3))
    assert [(record["recipe"], record["seed"]) for record in (usual, other_seed)] == [
        ("openvla-rt1-d", 0),
        ("openvla-rt1-d", 3),
    ]
    longer = record_of(trained(tmp_path / "longer", steps=7))
    tracked = record_of(trained(tmp_path / "tracked", report_to="tensorboard"))
    folder = tmp_path / "named"
    folder.mkdir()
    write_recipe(folder / "recipe.yaml", replace(load_recipe("openvla_rt1_d"), name="mine", description="other words"))
    named = record_of(str(folder))
    assert {record["settings"] for record in (usual, other_seed, tracked, named)} == {usual["settings"]}
    assert usual["settings"] != longer["settings"]
    assert named["recipe"] == "mine"


def test_a_repository_in_the_cache_is_read_and_nothing_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    repository = tmp_path / "models--me--mine"
    trained(repository / "snapshots" / "abc", seed=2)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert record_of("me/mine")["seed"] == 2
    assert trained_as("me/other") is None
    assert trained_as(str(tmp_path / "nothing" / "here")) is None


@pytest.mark.parametrize("text", ["[", "- 1", "name: a", "name: a\ntraining: {seed: x}"])
def test_what_is_no_recipe_says_nothing(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    assert trained_as(str(tmp_path)) is None


def test_results_have_the_record_where_there_is_one(tmp_path):
    model = trained(tmp_path / "a", seed=4)
    assert with_record({"n": 1}, model)["trained"]["seed"] == 4
    assert with_record({"n": 1}, str(tmp_path / "nothing/at all")) == {"n": 1}
    assert with_record({"n": 1}, None) == {"n": 1}
    output = tmp_path / "results.json"
    write_results({"model": model, "n": 1}, output)
    assert json.loads(output.read_text())["trained"]["seed"] == 4
    write_results({"suite": "loader"}, output)
    assert "trained" not in json.loads(output.read_text())


@pytest.fixture
def loaded(hub, tmp_path, monkeypatch):
    """A repository on the Hub whose configuration has been loaded, but not its recipe; the commit of that time."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mine"
    trained(folder, seed=2)
    for name in ("config.json", "README.md"):
        (folder / name).write_text("---\nlicense: mit\n---\n" if name == "README.md" else "{}")
    revision = upload(folder, Destination("gen-vla/mine")).commit
    hf_hub_download("gen-vla/mine", "config.json")
    return revision


def test_the_recipe_of_a_repository_that_was_loaded_comes_from_the_hub(loaded, hub, tmp_path):
    trained(tmp_path / "mine", seed=5)  # published later, under the same name, another run
    upload(tmp_path / "mine", Destination("gen-vla/mine"))
    assert record_of("gen-vla/mine")["seed"] == 2
    asked = hub.requests("GET", "/recipe.yaml")
    assert record_of("gen-vla/mine")["seed"] == 2
    assert hub.requests("GET", "/recipe.yaml") == asked  # it is in the cache now


def test_a_repository_without_a_recipe_is_asked_once(loaded, hub, tmp_path):
    (tmp_path / "mine" / "recipe.yaml").unlink()
    upload(tmp_path / "mine", Destination("gen-vla/mine"))
    hf_hub_download("gen-vla/mine", "config.json")
    before = hub.requests("GET", "/recipe.yaml")
    assert trained_as("gen-vla/mine") is None
    assert trained_as("gen-vla/mine") is None
    assert hub.requests("GET", "/recipe.yaml") == before + 1
    assert recipe_file("gen-vla/nowhere", "0" * 40) is None
    assert recipe_file("gen-vla/mine", "0" * 40) is None


def test_results_are_written_without_an_answer_of_the_hub_and_say_so(loaded, hub, monkeypatch, capsys):
    hub.faults.append(Fault("GET", "recipe.yaml"))
    assert with_record({"n": 1}, "gen-vla/mine") == {"n": 1}
    assert "could not read recipe.yaml" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert with_record({"n": 1}, "gen-vla/mine") == {"n": 1}
    told = capsys.readouterr().err
    assert "could not read recipe.yaml of gen-vla/mine, which says how it was trained" in told
    assert "HF_HUB_OFFLINE forbids asking the Hub; run it again online" in told
