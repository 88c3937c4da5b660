"""From `gen-vla publish` to a user's `from_pretrained("OWNER/NAME")`, over HTTP and then from the cache."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import HubStandIn
from hub_stand_in_storage import Account
from huggingface_hub import HfApi, constants
from repository_reader import GREEDY, QUESTION, check_same, read_repositories, use
from tiny_models import picture, tiny_model, tiny_pi0_model, tiny_pi0_processor, tiny_processor

from gen_vla.processors import ActionStringProcessor
from gen_vla.training.publishing.hub_publishing import Destination, upload


STRINGS = ActionStringProcessor(action_dim=3, decimals=2, binary_dims=[2])
OPENVLA, PI0 = "gen-vla/tiny-openvla", "gen-vla/tiny-pi0"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubStandIn]:
    """A Hub with one organisation, whose administrator and whose reader have tokens."""
    with HubStandIn() as hub, pytest.MonkeyPatch.context() as monkeypatch:
        hub.storage.accounts["hf_ada"] = Account("ada", {"gen-vla": "admin"})
        hub.storage.accounts["hf_bob"] = Account("bob", {"gen-vla": "read"}, "read")
        hub.storage.collections["gen-vla/robots-1"] = []
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


def save(folder: Path, model: Any, processor: Any, max_shard_size: str = "5GB") -> tuple[Path, Any, Any]:
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    processor.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture(scope="module")
def published(
    hub: HubStandIn, llama_like: Any, gemma_like: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Any, Any]]:
    """What each `NAME@REVISION` was made from: an OpenVLA+ from the command, its next version, a pi0+ in shards."""
    root = tmp_path_factory.mktemp("models")
    processor = tiny_processor(llama_like, STRINGS)
    first = save(root / "first", tiny_model(llama_like, STRINGS), processor)
    command = [sys.executable, "-m", "gen_vla.commands.main", "publish", str(first[0]), OPENVLA, "--private"]
    options = ["--tag", "v1", "--collection", "gen-vla/robots-1", "--message", "First version"]
    environment = hub.environment("hf_ada", root / "home")
    finished = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert f"to {OPENVLA} as commit {hub.storage.repositories[OPENVLA].tags['v1']}" in finished.stdout
    second = save(root / "second", tiny_model(llama_like, STRINGS, seed=1), processor)
    pi0 = save(root / "pi0", tiny_pi0_model(gemma_like, STRINGS), tiny_pi0_processor(gemma_like, STRINGS), "100KB")
    api = HfApi(endpoint=hub.endpoint, token="hf_ada")
    for made, repo_id in ((second, OPENVLA), (pi0, PI0)):
        (made[0] / "README.md").write_text("---\nlicense: mit\n---\n")
        upload(made[0], Destination(repo_id), api)
    pi0_commit = hub.storage.repositories[PI0].branches["main"]
    return {OPENVLA: second, f"{OPENVLA}@v1": first, f"{PI0}@{pi0_commit}": pi0}


def test_models_load_by_name_over_http_and_then_offline(
    hub: HubStandIn, published: dict[str, tuple[Path, Any, Any]], tmp_path: Path
) -> None:
    environment = hub.environment("hf_bob", tmp_path / "home")
    for variables in (environment, {**environment, "HF_HUB_OFFLINE": "1"}):
        hub.log.clear()
        found = read_repositories(list(published), tmp_path / "reader", variables)
        assert bool(hub.log) == (variables is environment)
        for outputs, (name, (_, model, processor)) in zip(found, published.items(), strict=True):
            check_same(outputs, use(model, processor))
            repo_id, _, revision = name.partition("@")
            assert hub.storage.repositories[repo_id].sha(revision or "main") in str(outputs["class"])
            question = processor.question_inputs(picture(), QUESTION)
            answer = model.generate(**question, **GREEDY)[:, question["input_ids"].shape[1] :]
            assert str(outputs["pipeline"]) == processor.batch_decode(answer, skip_special_tokens=True)[0]
            assert ("untrusted" in outputs) == (repo_id == OPENVLA)  # stock processors bring no code to be trusted
            if repo_id == OPENVLA:
                assert f"{repo_id} contains custom code which must be executed" in str(outputs["untrusted"])
                assert "pass the argument `trust_remote_code=True`" in str(outputs["untrusted"])
    assert hub.storage.repositories[OPENVLA].history() == ["Publish tiny-openvla", "First version", "initial commit"]


def test_what_the_command_published_is_all_there(hub: HubStandIn, published: dict[str, tuple[Path, Any, Any]]) -> None:
    repository = hub.storage.repositories[OPENVLA]
    tree = repository.tree("v1")
    assert repository.private
    assert hub.storage.collections["gen-vla/robots-1"] == [OPENVLA]
    assert {path for path, blob in tree.items() if blob.lfs} == {"model.safetensors"}
    assert {"README.md", "config.json", "processor_config.json", "tokenizer.json", "chat_template.jinja"} <= set(tree)
    assert f'from_pretrained("{OPENVLA}"' in tree["README.md"].content.decode()
    assert json.loads(tree["config.json"].content)["model_type"] == "openvla_plus"
    home = published[OPENVLA][0].parent
    shards = [path for path, blob in hub.storage.repositories[PI0].tree("main").items() if blob.lfs]
    assert len(shards) == 4
    assert not [path for path, blob in tree.items() if str(home).encode() in blob.content]
