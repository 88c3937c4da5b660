"""Fixtures every test file shares; tests with the real Llama-2 and Gemma vocabularies, not ours, may skip."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


# Read by what is imported here, and by the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL's: no test uses a network
# isort: split

import torch
from hub_stand_in import HubStandIn, Waits
from hub_stand_in_storage import Account
from huggingface_hub import constants
from huggingface_hub.utils import _http
from tiny_models import tiny_model, tiny_processor, tiny_tokenizer
from transformers import AutoTokenizer
from transformers.utils import hub as transformers_hub

from gen_vla.processors import ActionStringProcessor
from gen_vla.training.storage import hub_requests
from gen_vla.training.tokenizer import train_tokenizer


gc.set_threshold(10_000)
torch.set_num_threads(1)  # matrices this small are only slowed down by more


TOKENIZERS = ("llama_like", "gemma_like", "trained", "llama2", "gemma")


def pytest_collection_finish() -> None:
    """Garbage collection, a sixth of the tests' time, passes over what imports have made no more."""
    gc.freeze()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with sample data and real tokenizers; `GEN_VLA_DATA`, by default ../shared/data."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("GEN_VLA_DATA", root / ".." / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no sample data at {folder}; set GEN_VLA_DATA to the folder that holds it")
    return folder


def _real_tokenizer(data_dir: Path, name: str, **missing: Any) -> Any:
    folder = data_dir / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"no tokenizer at {folder}; set GEN_VLA_DATA to a folder with tokenizers/{name}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({**missing, "additional_special_tokens": ["<image>"]})
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


@pytest.fixture(scope="session")
def llama2(data_dir: Path) -> Any:
    """The Llama-2 vocabulary with `<PAD>` = 32000, as OpenVLA has it, and `<image>` = 32001."""
    return _real_tokenizer(data_dir, "llama2", pad_token="<PAD>")


@pytest.fixture(scope="session")
def gemma(data_dir: Path) -> Any:
    """The Gemma vocabulary with `<image>` added."""
    return _real_tokenizer(data_dir, "gemma")


@pytest.fixture(scope="session")
def llama_like() -> Any:
    """The tiny tokenizer that behaves like Llama's."""
    return tiny_tokenizer("llama_like")


@pytest.fixture(scope="session")
def gemma_like() -> Any:
    """The tiny tokenizer that behaves like Gemma's."""
    return tiny_tokenizer("gemma_like")


@pytest.fixture(scope="session")
def trained() -> Any:
    """The tokenizer a small recipe trains on its own text."""
    texts = ["In: What action should the robot take to open the drawer?\nOut:\n+0.0312-0.1200", "Out: two, -0.5,-1.0"]
    return train_tokenizer(texts * 20, vocab_size=400)


@pytest.fixture(scope="session", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """Each of these tokenizers in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def tiny_strings() -> ActionStringProcessor:
    """Three dimensions, two decimals: 15 characters per action."""
    return ActionStringProcessor(action_dim=3, decimals=2)


@pytest.fixture
def tiny_openvla(llama_like: Any, tiny_strings: ActionStringProcessor) -> tuple[Any, Any]:
    """A tiny `OpenVLAPlusForVision2Seq` and its processor, new for every test."""
    return tiny_model(llama_like, tiny_strings), tiny_processor(llama_like, tiny_strings)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """How long this test's requests to the Hub would have waited between attempts; they take no time."""
    waits = Waits()
    for module in (_http, hub_requests):
        monkeypatch.setattr(module, "time", waits)
    return waits


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, waits: Waits, tmp_path: Path) -> Iterator[HubStandIn]:
    """A stand-in for the Hub with one organisation; this process has the token of its administrator."""
    with HubStandIn() as hub:
        hub.storage.accounts["hf_ada"] = Account("ada", {"gen-vla": "admin"})
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        address = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token-here"))
        monkeypatch.setenv("HF_TOKEN", "hf_ada")
        monkeypatch.setattr(transformers_hub, "_hf_api", None)  # remembers the address it was made with
        yield hub
