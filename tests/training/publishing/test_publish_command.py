"""`gen-vla publish` against a stand-in for the Hub, without verifying in a fresh interpreter."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in_storage import Blob, Commit
from huggingface_hub import constants
from tiny_models import tiny_model, tiny_processor

from gen_vla.commands.main import main
from gen_vla.processors import ActionStringProcessor
from gen_vla.training.publishing import assembling as publishing


REPO = "gen-vla/tiny"
STRINGS = ActionStringProcessor(action_dim=3, decimals=2, binary_dims=[2])


@pytest.fixture
def checkpoint(llama_like: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved model, whose repository passes as verified."""
    tiny_model(llama_like, STRINGS).save_pretrained(tmp_path / "run")
    tiny_processor(llama_like, STRINGS).save_pretrained(tmp_path / "run")
    monkeypatch.setattr(publishing, "verify", lambda *_: None)
    return tmp_path / "run"


def test_a_dry_run_shows_everything_and_changes_nothing(hub, checkpoint, tmp_path, monkeypatch, capsys):
    command = ["publish", str(checkpoint), REPO, "--output", str(tmp_path / "kept")]
    monkeypatch.delenv("HF_TOKEN")  # nobody has to be logged in to look
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    sizes = [path.stat().st_size for path in (tmp_path / "kept").iterdir()]
    assert f"Dry run: {len(sizes)} files, {sum(sizes) / 1e6:,.3f} MB, would be uploaded to gen-vla/tiny" in shown
    weights = (tmp_path / "kept" / "model.safetensors").stat().st_size
    assert re.search(rf"model.safetensors +│ new +│ +{weights / 1e6:.3f}", shown)
    assert hub.storage.repositories == {}
    assert {method for method, _ in hub.log} == {"GET"}
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    assert main(command) == 0
    assert f"Published {len(sizes)} files" in capsys.readouterr().out
    repository = hub.storage.repositories[REPO]
    tree = {**repository.tree("main"), "old.py": Blob(b"", False)}
    repository.add("main", Commit(tree, repository.branches["main"], "Old"))
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "Dry run: 0 files, 0.000 MB" in shown
    assert re.search(r"old.py +│ deleted", shown)
    assert repository.history() == ["Old", "Publish tiny", "initial commit"]


def test_a_dry_run_without_a_network_shows_sizes(hub, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["publish", str(checkpoint), REPO, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "HF_HUB_OFFLINE forbids asking the Hub; unset it; so this shows all files as new" in said.err
    assert re.search(r"Dry run: \d\d files", said.out)
    assert hub.log == []


def test_the_token_is_looked_at_before_the_long_work(hub, checkpoint, monkeypatch, capsys):
    (checkpoint / "model.safetensors").write_bytes(b"this would fail when it is read")
    monkeypatch.delenv("HF_TOKEN")
    assert main(["publish", str(checkpoint), REPO]) == 2
    assert "gen-vla: could not check the token: there is no token" in capsys.readouterr().err


def test_what_is_not_verified_is_not_sent(hub, checkpoint, monkeypatch, capsys):
    def refuse(*_: Any) -> None:
        raise publishing.PublishingError("the repository does not stand on its own: wrong logits")

    monkeypatch.setattr(publishing, "verify", refuse)
    assert main(["publish", str(checkpoint), REPO]) == 2
    assert "does not stand on its own: wrong logits" in capsys.readouterr().err
    assert hub.storage.repositories == {}
    assert hub.storage.large_files == {}


def test_the_cache_is_filled_without_the_hub(hub, checkpoint, tmp_path, capsys):
    figures = [{"task": "open", "dataset": "drawers", "metric": "success rate", "value": 0.625, "n": 8}]
    (tmp_path / "results.json").write_text(json.dumps({"figures": figures}))
    command = ["publish", str(checkpoint), REPO, "--cache-dir", str(tmp_path / "cache")]
    assert main([*command, "--results", str(tmp_path / "results.json")]) == 0
    assert "Verified and in the cache as" in capsys.readouterr().out
    root = tmp_path / "cache" / "models--gen-vla--tiny"
    card = root / "snapshots" / (root / "refs" / "main").read_text() / "README.md"
    assert "0.625" in card.read_text()
    assert hub.log == []
    (tmp_path / "results.json").write_text('{"accuracy": 1.0}')
    assert main([*command, "--results", str(tmp_path / "results.json")]) == 2
    assert 'results.json without a list of "figures"' in capsys.readouterr().err
