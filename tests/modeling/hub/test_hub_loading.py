"""From `gen-vla publish` to a stranger's `from_pretrained("OWNER/NAME")`, over HTTP and then from the cache."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_stand_in import HubStandIn
from hub_stand_in_storage import Account
from huggingface_hub import HfApi, constants
from tiny_models import picture, tiny_model, tiny_pi0_model, tiny_pi0_processor, tiny_processor

from gen_vla.processors import ActionStringProcessor
from gen_vla.training.publishing.hub_publishing import upload
from gen_vla.training.publishing.hub_state import Destination


STRINGS = ActionStringProcessor(action_dim=3, decimals=2, binary_dims=[2])
OPENVLA, PI0 = "gen-vla/tiny-openvla", "gen-vla/tiny-pi0"
INSTRUCTION, QUESTION = "open the drawer", "How many?"
READER = (
    Path(__file__).resolve().parents[2] / "support" / "hub" / "hub_reader.py"
)  # in which gen_vla cannot be imported


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


def read(hub: HubStandIn, folder: Path, names: list[str], **variables: str) -> list[dict[str, Any]]:
    """What the reader writes about each name, in an interpreter with the cache of `folder`."""
    folder.mkdir(exist_ok=True)
    image = np.asarray(picture())
    np.savez(folder / "inputs.npz", image=image, instruction=INSTRUCTION, question=QUESTION)
    environment = {**hub.environment("hf_bob", folder / "home"), **variables}
    finished = subprocess.run(
        [sys.executable, "-P", str(READER), str(folder / "inputs.npz"), str(folder), *names],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return [dict(np.load(folder / f"{number}.npz")) for number in range(len(names))]


def check(outputs: dict[str, Any], name: str, model: Any, processor: Any) -> None:
    """The reader came to the numbers of the model that was published."""
    inputs = processor.action_inputs(picture(), INSTRUCTION)
    with torch.no_grad():
        logits = model(**inputs).logits.numpy()
    action = model.predict_action(**inputs, unnorm_key="tiny")
    for loader in ("AutoModel", "AutoModelForImageTextToText"):
        np.testing.assert_allclose(outputs[f"logits {loader}"], logits, rtol=0, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(outputs[f"action {loader}"], action)
    question = processor.question_inputs(picture(), QUESTION)
    answer = model.generate(**question, max_new_tokens=4, do_sample=False)[:, question["input_ids"].shape[1] :]
    assert str(outputs["answer"]) == processor.batch_decode(answer, skip_special_tokens=True)[0]
    repo_id = name.partition("@")[0]
    assert f"{repo_id} contains custom code which must be executed" in str(outputs["untrusted"])
    assert "pass the argument `trust_remote_code=True`" in str(outputs["untrusted"])


def test_models_load_by_name_over_http_and_then_offline(
    hub: HubStandIn, published: dict[str, tuple[Path, Any, Any]], tmp_path: Path
) -> None:
    names = list(published)
    for variables in ({}, {"HF_HUB_OFFLINE": "1"}):
        hub.log.clear()
        outputs = read(hub, tmp_path / "reader", names, **variables)
        for found, (name, (_, model, processor)) in zip(outputs, published.items(), strict=True):
            check(found, name, model, processor)
            repo_id, _, revision = name.partition("@")
            assert hub.storage.repositories[repo_id].sha(revision or "main") in str(found["module"])
        assert bool(hub.log) == (not variables)
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
