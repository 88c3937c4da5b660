"""One repository, written on transformers 5, gives the same on 4.57 (`make test-transformers4`)."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from repository_reader import read_repositories
from tiny_models import (
    tiny_config,
    tiny_model,
    tiny_pi0_flow_model,
    tiny_pi0_flow_processor,
    tiny_processor,
)
from tiny_vlms import tiny_inputs, tiny_vla_pair, tiny_vla_plus

from gen_vla.processors import ActionStringProcessor
from gen_vla.training.publishing.assembling import install_in_cache


ROOT = Path(__file__).resolve().parents[3]
OTHER = Path(os.environ.get("GEN_VLA_TRANSFORMERS4", ROOT / ".venv-transformers4" / "bin" / "python"))
KINDS = ("openvla_plus", "openvla_plus_resaved")
VLMS = ("gemma3", "llava", "paligemma")  # whose processors of transformers 4.57 do not need torchvision
WAYS = [(kind, way) for kind in KINDS for way in ("folder", "name")] + [(kind, "folder") for kind in VLMS]

pytestmark = pytest.mark.skipif(
    not OTHER.exists(), reason=f"no interpreter with transformers 4 at {OTHER}; make test-transformers4 builds it"
)


def write_repository(kind: str, folder: Path, llama_like: Any) -> None:
    """One of the repositories in `KINDS` and `VLMS`."""
    strings = ActionStringProcessor(action_dim=3, decimals=3, binary_dims=[2])
    if kind in VLMS:
        model, processor = tiny_vla_pair(kind, folder.with_name(f"{kind}_base"), strings)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return
    text_config = tiny_config(llama_like).text_config
    text_config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0}  # 4 has other names
    model = tiny_model(llama_like, strings, text_config=text_config)
    processor = tiny_processor(llama_like, strings)
    if kind.endswith("resaved"):  # from a folder whose names only transformers 5 knows
        model.save_pretrained(folder.with_name(f"{kind}_five"), save_original_format=False)
        model = type(model).from_pretrained(folder.with_name(f"{kind}_five"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def readings(llama_like: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By repository, what transformers 5 and transformers 4 get out of it: from its folder, and by its name."""
    work = tmp_path_factory.mktemp("both")
    repositories = {}
    for kind in (*KINDS, *VLMS):
        write_repository(kind, work / kind, llama_like)
        repositories[kind, "folder"] = str(work / kind)
        if (kind, "name") in WAYS:
            repositories[kind, "name"] = f"gen-vla/{kind.replace('_', '-')}"
            install_in_cache(work / kind, repositories[kind, "name"], work / "hub")
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(work / "hub")}
    outputs = [
        read_repositories(list(repositories.values()), work / place, variables, python)
        for place, python in (("five", sys.executable), ("four", OTHER))
    ]
    return {key: (five, four) for key, five, four in zip(repositories, *outputs, strict=True)}


def test_the_other_interpreter_is_transformers_4() -> None:
    script = "import transformers, torch; print(transformers.__version__, torch.__version__.split('+')[0])"
    run = subprocess.run([str(OTHER), "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["4.57.6", "2.13.0"]


@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_both_generations_agree(readings: dict[Any, Any], kind: str, way: str) -> None:
    five, four = (dict(reading) for reading in readings[kind, way])
    assert str(five.pop("version")).startswith("5.")
    assert str(four.pop("version")).startswith("4.57")
    assert set(four) - {"pipeline"} == set(five) - {"pipeline", "untrusted"}
    skipped = {"class", "pipeline"} | ({"answer static"} if kind in VLMS else set())  # a static cache is stock's own
    for name in set(four) - skipped:
        if kind in VLMS and five[name].dtype.kind == "f":  # other operations of the same sums
            np.testing.assert_allclose(four[name], five[name], rtol=0, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(four[name], five[name], err_msg=name)
    assert five["logits"].std() > 0.1
    assert five["tokens"].shape == (2, 18)


@pytest.mark.parametrize("family", ["internvl", "qwen2_5_vl", "qwen3_vl"])
def test_models_agree_whose_processors_need_torchvision(family: str, tmp_path: Path) -> None:
    model = tiny_vla_plus(family)
    model.save_pretrained(tmp_path / "repo")
    inputs = tiny_inputs(model)
    np.savez(tmp_path / "inputs.npz", **{name: tensor.numpy() for name, tensor in inputs.items()})
    script = """
import numpy, torch, transformers
inputs = {name: torch.from_numpy(array) for name, array in numpy.load("inputs.npz").items()}
model = transformers.AutoModel.from_pretrained("./repo", trust_remote_code=True)
for nodes in (None, 0):
    found = model.predict_actions(**inputs, unnorm_key="tiny", tree_nodes=nodes)
    numpy.savez(f"{nodes}.npz", tokens=found.token_ids, probabilities=found.digit_probabilities)
"""
    run = run_on_four(script, tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    expected = model.predict_actions(**inputs, unnorm_key="tiny")
    for way in ("None", "0"):
        four = np.load(tmp_path / f"{way}.npz")
        np.testing.assert_array_equal(four["tokens"], expected.token_ids)
        np.testing.assert_allclose(four["probabilities"], expected.digit_probabilities, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "needed"), [("pi0_flow", "5.17 or newer for the flow-matching π0"), ("vla_plus", "5.5 or newer")]
)
def test_newer_families_say_which_transformers_they_need(
    family: str, needed: str, gemma_like: Any, tmp_path: Path
) -> None:
    if family == "pi0_flow":
        model, processor = tiny_pi0_flow_model(gemma_like), tiny_pi0_flow_processor(gemma_like)
    else:
        model, processor = tiny_vla_pair("smolvlm", tmp_path)
    model.save_pretrained(tmp_path / "repo")
    processor.save_pretrained(tmp_path / "repo")
    script = """
import sys, transformers
for loader in ("AutoConfig", "AutoModel", "AutoModelForVision2Seq", "AutoProcessor"):
    try:
        getattr(transformers, loader).from_pretrained(sys.argv[1], trust_remote_code=True)
    except ImportError as error:
        print(error)
"""
    run = run_on_four(script, tmp_path, "repo")
    refusals = run.stdout.count(f"got transformers 4.57.6, expected {needed}")
    assert refusals == 3, run.stderr[-2000:]


def run_on_four(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script on transformers 4, where `gen_vla` is not installed."""
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    settings.pop("PYTHONPATH", None)
    command = [str(OTHER), "-P", "-c", script, *arguments]
    return subprocess.run(command, env=settings, cwd=folder, capture_output=True, text=True, timeout=300)
