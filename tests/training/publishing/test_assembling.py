"""From a checkpoint to a repository that stands on its own, and every way it must not get there."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from repository_reader import check_same, read_repositories, use
from safetensors.torch import load_file, save_file
from tiny_models import take_state, tiny_model, tiny_pi0_flow_model, tiny_pi0_flow_processor, tiny_processor

from gen_vla.processors import ActionStringProcessor
from gen_vla.training.checkpoints import check_folder, load_model, load_processor
from gen_vla.training.publishing import assembling as publishing
from gen_vla.training.publishing.assembling import (
    PublishingError,
    check_files,
    check_repo_id,
    content_hash,
    copy_record,
    install_in_cache,
    publish_to_folder,
)


REPO = "gen-vla/tiny-model"
STALE = "model-00001-of-00002.safetensors"  # a good name, but of no index
STRINGS = ActionStringProcessor(action_dim=3, decimals=2, binary_dims=[2])
RECIPE = """
name: mine
description: A recipe for tests.
data: {robot: [{path: robot, key: tiny}]}
training: {steps: 1}
"""
RESULTS = {
    "figures": [
        {"task": "open", "dataset": "drawers", "metric": "success rate", "value": 0.75, "n": 8, "interval": "41-93 %"}
    ]
}


def save(folder: Path, tokenizer: Any, **settings: Any) -> Path:
    tiny_model(tokenizer, STRINGS).save_pretrained(folder, **settings)
    tiny_processor(tokenizer, STRINGS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(llama_like: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with the records of a run, and things a run leaves behind that must not be published."""
    folder = save(tmp_path_factory.mktemp("run") / "mine", llama_like)
    (folder / "training_log.json").write_text('{"history": []}\n')
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"pickled")
    return folder


@pytest.fixture(scope="module")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published folder; copy it before changing anything in it."""
    return publish_to_folder(checkpoint, REPO, tmp_path_factory.mktemp("out") / "repository", RESULTS)


@pytest.fixture
def earlier(repository: Path, tmp_path: Path) -> Path:
    """An earlier repository where the next one shall go, to be told apart by its card."""
    folder = tmp_path / "earlier"
    shutil.copytree(repository, folder)
    (folder / "README.md").write_text("the earlier one\n")
    return folder


def spoil(monkeypatch: pytest.MonkeyPatch, change: Any, after_check: bool = False) -> None:
    """Applies `change` to the draft before, or after, its files are checked."""

    def check(folder: Path) -> None:
        if after_check:
            check_files(folder)
        change(folder)
        if not after_check:
            check_files(folder)

    monkeypatch.setattr(publishing, "check_files", check)


# ---- what is published
def test_the_repository_is_the_model_its_code_its_records_and_its_card(repository: Path, checkpoint: Path) -> None:
    names = {path.name for path in repository.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= names
    assert {"modeling_openvla_plus.py", "processing_openvla_plus.py", "training_log.json", "recipe.yaml"} <= names
    assert not names & {"checkpoints", "optimizer.pt"}
    assert all(path.is_file() and not path.is_symlink() for path in repository.iterdir())
    before, after = load_model(checkpoint).state_dict(), load_model(repository).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for path in repository.iterdir():
        if path.suffix in (".json", ".md", ".yaml", ".jinja", ".py"):
            assert str(checkpoint.parent) not in path.read_text(), f"{path.name} names a folder of this machine"
    card = (repository / "README.md").read_text()
    assert f'from_pretrained("{REPO}"' in card
    assert "0.75" in card


def test_a_model_that_takes_the_robots_state_stands_on_its_own(llama_like: Any, tmp_path: Path) -> None:
    """Verified with a state in an interpreter without this package; the card says what it needs."""
    groups = [{"dims": [0], "state": [1]}]
    for part in take_state((tiny_model(llama_like, STRINGS), tiny_processor(llama_like, STRINGS)), relative=groups):
        part.save_pretrained(tmp_path / "mine")
    card = (publish_to_folder(tmp_path / "mine", REPO, tmp_path / "repository") / "README.md").read_text()
    assert "| the robot's state | 2 values for `tiny`, in the data set's units, shown to the model |" in card
    assert 'action_inputs(image, "close the drawer", state=state, unnorm_key="tiny")' in card
    assert "dimensions 0 are learned relative to the robot's state" in card


def test_the_recipe_goes_out_without_private_paths(checkpoint: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "ada"))
    record = tmp_path / "recipe.yaml"
    robot = [{"path": f"{tmp_path}/home/ada/data/bridge", "key": "a"}, {"path": "bridge", "key": "b"}]
    record.write_text(yaml.safe_dump({"name": "mine", "data": {"robot": robot}}))
    copy_record(record, tmp_path / "public.yaml")
    public = yaml.safe_load((tmp_path / "public.yaml").read_text())
    assert [source["path"] for source in public["data"]["robot"]] == ["~/data/bridge", "bridge"]
    assert public["name"] == "mine"
    copy_record(checkpoint / "recipe.yaml", tmp_path / "same.yaml")
    assert (tmp_path / "same.yaml").read_bytes() == (checkpoint / "recipe.yaml").read_bytes()


def test_it_loads_by_name_offline_where_the_package_is_not(repository: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    snapshot = install_in_cache(repository, REPO, cache)
    assert snapshot == cache / "models--gen-vla--tiny-model" / "snapshots" / content_hash(repository)
    assert (cache / "models--gen-vla--tiny-model" / "refs" / "main").read_text() == snapshot.name
    assert len(snapshot.name) == 40
    assert install_in_cache(repository, REPO, cache) == snapshot  # a second time changes nothing
    variables = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    (outputs,) = read_repositories([REPO], tmp_path / "reader", variables)
    check_same(outputs, use(load_model(repository), load_processor(repository)))


def test_another_content_is_another_revision(repository: Path, tmp_path: Path) -> None:
    first = install_in_cache(repository, REPO, tmp_path / "hub")
    changed = tmp_path / "changed"
    shutil.copytree(repository, changed)
    assert content_hash(changed) == content_hash(repository)  # names and bytes, not places and times
    with (changed / "README.md").open("a") as card:
        card.write("More.\n")
    second = install_in_cache(changed, REPO, tmp_path / "hub")
    assert second != first
    assert first.is_dir()
    assert (tmp_path / "hub" / "models--gen-vla--tiny-model" / "refs" / "main").read_text() == second.name
    (changed / "README.md").rename(changed / "READYOU.md")
    assert content_hash(changed) != second.name


def test_a_flow_matching_model_is_verified_by_its_velocities_and_actions(gemma_like, tmp_path, monkeypatch):
    tiny_pi0_flow_model(gemma_like).save_pretrained(tmp_path / "flow")
    tiny_pi0_flow_processor(gemma_like).save_pretrained(tmp_path / "flow")
    folder = publish_to_folder(tmp_path / "flow", "gen-vla/tiny-flow", tmp_path / "published")
    assert (folder / "transformers_version.py").is_file()

    def change(draft: Path) -> None:
        weights = load_file(draft / "model.safetensors")
        weights["action_out_proj.bias"] += 0.1
        save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})

    spoil(monkeypatch, change, after_check=True)
    with pytest.raises(PublishingError, match=r"got logits that differ by 1.00e-01"):
        publish_to_folder(tmp_path / "flow", "gen-vla/tiny-flow", tmp_path / "other")


# ---- what is not
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.vision_tower.siglip.embeddings.patch_embedding.weight", "got logits that differ by"),
        ("model.stray.weight", r"AutoModel got \{'unexpected_keys': \['model.stray.weight'\]\}"),
    ],
)
def test_a_changed_weight_stops_publishing(name, message, checkpoint, earlier, monkeypatch):
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights[name] = weights.get(name, torch.ones(3)) * 1.5
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    spoil(monkeypatch, change, after_check=True)
    with pytest.raises(PublishingError, match=rf"(?s)does not stand on its own: .*{message}"):
        publish_to_folder(checkpoint, REPO, earlier)
    assert (earlier / "README.md").read_text() == "the earlier one\n"


def test_unexpected_and_missing_files_stop_publishing(checkpoint, earlier, monkeypatch):
    before = content_hash(earlier)
    monkeypatch.setattr(publishing, "verify", lambda *_: None)  # takes seconds, and comes later

    def change(folder: Path) -> None:
        (folder / "dual_vision_tower.py").unlink()
        for name in ("notes.txt", "pytorch_model.bin", STALE):
            (folder / name).write_text("x")
        (folder / "deep").mkdir()

    spoil(monkeypatch, change)
    unexpected = rf"\['deep', '{STALE}', 'notes.txt', 'pytorch_model.bin'\]"
    with pytest.raises(PublishingError, match=rf"files {unexpected} and missing modules \['dual_vision_tower.py'\]"):
        publish_to_folder(checkpoint, REPO, earlier)
    assert content_hash(earlier) == before
    assert [path.name for path in earlier.parent.iterdir()] == ["earlier"]


def test_code_that_needs_the_package_stops_publishing(checkpoint, tmp_path, monkeypatch):
    def change(folder: Path) -> None:
        path = folder / "dual_vision_tower.py"
        path.write_text("import gen_vla\n" + path.read_text())

    spoil(monkeypatch, change)
    with pytest.raises(PublishingError, match="gen_vla"):
        publish_to_folder(checkpoint, REPO, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_with_a_file_missing_is_named(checkpoint: Path, earlier: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "processor_config.json"):
        (broken / name).rename(tmp_path / name)
        with pytest.raises(FileNotFoundError, match=rf"got .*broken without {name}, expected config\.json"):
            publish_to_folder(broken, REPO, earlier)
        (tmp_path / name).rename(broken / name)
    assert (earlier / "README.md").read_text() == "the earlier one\n"


def test_missing_shards_and_folders_are_named(llama_like: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / "sharded", llama_like, max_shard_size="20KB")
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert check_folder(folder) == folder
    (folder / shards[1]).unlink()
    with pytest.raises(FileNotFoundError, match=f"without {shards[1]}, expected"):
        check_folder(folder)
    with pytest.raises(FileNotFoundError, match="expected the folder of a saved model; gen-vla train writes one"):
        check_folder(tmp_path / "nowhere")


def test_names_of_repositories(checkpoint: Path, tmp_path: Path) -> None:
    for repo_id in ("gen-vla/openvla-plus", "a/b", "Org_1/model.v2"):
        check_repo_id(repo_id)
    bad = ["", "name", "a/b/c", "a b/c", "/x", "x/", "../x", "a/..", "gen-vla/ümlaut", "a/b--c", "a/b.git", "a/b\n"]
    for repo_id in bad:
        with pytest.raises(ValueError, match="got repository id"):
            publish_to_folder(checkpoint, repo_id, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_only_an_earlier_repository_is_replaced(checkpoint, earlier, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "verify", lambda *_: None)  # takes seconds, and comes later
    assert publish_to_folder(checkpoint, REPO, earlier) == earlier
    assert "tiny-model" in (earlier / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["earlier"]  # nothing left beside it
    home = tmp_path / "home"
    home.mkdir()
    assert publish_to_folder(checkpoint, REPO, home) == home  # an empty folder is free
    (home / "thesis.tex").write_text("ten years of work")
    with pytest.raises(FileExistsError, match=r"got .*home as the target, which is no earlier repository"):
        publish_to_folder(checkpoint, REPO, home)
    assert (home / "thesis.tex").read_text() == "ten years of work"
    for target in (checkpoint, checkpoint.parent):
        with pytest.raises(FileExistsError, match="which holds the checkpoint; choose another folder"):
            publish_to_folder(checkpoint, REPO, target)
    assert check_folder(checkpoint) == checkpoint
