"""One repository, written on transformers 5, gives the same on 4.57 (`make test-transformers4`)."""

import itertools
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
from tiny_vlms import FAMILIES, tiny_inputs, tiny_vla_pair, tiny_vla_plus, write_base_processor

from gen_vla.modeling import VLAPlusForVision2Seq
from gen_vla.processors import ActionStringProcessor
from gen_vla.training.converting.conversion import convert
from gen_vla.training.publishing.assembling import install_in_cache


ROOT = Path(__file__).resolve().parents[3]
OTHER = Path(os.environ.get("GEN_VLA_TRANSFORMERS4", ROOT / ".venv-transformers4" / "bin" / "python"))
KINDS = ("openvla_plus", "openvla_plus_resaved")
VLMS = (
    "gemma3",
    "idefics3",
    "llava",
    "llava_next",
    "paligemma",
)  # whose processors of transformers 4.57 do not need torchvision
OTHER_IN_FOUR = {
    "idefics3": "gives the patches of pictures other positions in idefics3, expected 5.5 or newer",
    "paligemma2": "leaves out the cap on logits in paligemma, expected 5.23 or newer",
    "smolvlm": "gives the patches of pictures other positions in smolvlm, expected 5.5 or newer",
}
WAYS = list(itertools.product((*KINDS, *VLMS), ("folder", "name")))

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
    inputs = {"input_ids", "attention_mask", "pixel_values", "pixel_attention_mask"}
    for name in (set(four) & inputs) if kind in OTHER_IN_FOUR else set(four) - skipped:
        if kind in VLMS and five[name].dtype.kind == "f":  # other operations of the same sums
            np.testing.assert_allclose(four[name], five[name], rtol=0, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(four[name], five[name], err_msg=name)
    assert five["logits"].std() > 0.1
    assert five["tokens"].shape == (2, 18)


@pytest.fixture(scope="module")
def acted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder in which transformers 4 has used models of every family, and by family, what 5 predicts."""
    work, expected = tmp_path_factory.mktemp("families"), {}
    for family in FAMILIES:
        tokenizer = write_base_processor(family, work / family / "base")
        for name, frozen in (("without", None), ("repo", "vision")):
            wide = {"sliding_window": 64} if family == "paligemma2" else {}  # 4.57 leaves its windows out
            model = tiny_vla_plus(family, tokenizer, frozen=frozen, **wide)
            model.save_pretrained(work / family / name)
        inputs = tiny_inputs(model)
        np.savez(work / family / "inputs.npz", **{name: tensor.numpy() for name, tensor in inputs.items()})
        expected[family] = model.predict_actions(**inputs, unnorm_key="tiny")
    for script in (BASES, USE_OF_MODELS):
        run = run_on_four(script, work, *FAMILIES)
        assert run.returncode == 0, run.stderr[-2000:]
        (work / "said.txt").write_text(run.stderr)
        if script is BASES:
            for family in FAMILIES:
                convert(work / family / "base", work / family / "plus")
    return work, expected


BASES = """
import sys, transformers
for family in sys.argv[1:]:
    model = transformers.AutoModel.from_pretrained(f"./{family}/without", trust_remote_code=True)
    model.vlm.save_pretrained(f"{family}/base")  # a stock model, as most published ones are
"""
USE_OF_MODELS = """
import sys, numpy, torch, transformers
for family in sys.argv[1:]:
    inputs = {name: torch.from_numpy(array) for name, array in numpy.load(f"{family}/inputs.npz").items()}
    read = lambda loader, name: loader.from_pretrained(f"./{family}/{name}", trust_remote_code=True)
    loaded = read(transformers.AutoModel, "repo")
    kept = {name: getattr(loaded.config, name) for name in ("frozen", "action_config", "norm_stats")}
    built = type(loaded)(type(loaded.config)(read(transformers.AutoConfig, "base"), **kept)).eval()
    built.load_state_dict(loaded.state_dict())
    for name, model in (("loaded", loaded), ("built", built)):
        for nodes in (None, 3, 0):
            found = model.predict_actions(**inputs, unnorm_key="tiny", tree_nodes=nodes)
            result = {"tokens": found.token_ids, "probabilities": found.digit_probabilities}
            numpy.savez(f"{family}/{name}_{nodes}.npz", **result, passes=found.forward_passes)
    loaded.save_pretrained(f"{family}/saved")
    with torch.no_grad():
        for name in ("base", "plus"):
            logits = read(transformers.AutoModelForImageTextToText, name)(**inputs).logits
            numpy.save(f"{family}/{name}.npy", logits.numpy())
"""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("made", ["loaded", "built"])
def test_trees_and_single_tokens_agree(acted: tuple[Path, dict[str, Any]], family: str, made: str) -> None:
    """Loaded, and built from the configuration that transformers 4 reads of the base model; and with transformers 5
    where the stock models agree.
    """
    single, *trees = (np.load(acted[0] / family / f"{made}_{nodes}.npz") for nodes in (0, 3, None))
    tokens, probabilities = single["tokens"], single["probabilities"]
    if family not in OTHER_IN_FOUR:
        tokens, probabilities = acted[1][family].token_ids, acted[1][family].digit_probabilities
    for found in (single, *trees):
        np.testing.assert_array_equal(found["tokens"], tokens)
        np.testing.assert_allclose(found["probabilities"], probabilities, rtol=0, atol=1e-5)
    assert int(single["passes"]) > int(trees[0]["passes"]) >= int(trees[1]["passes"])


def test_it_warns_of_families_that_differ(acted: tuple[Path, dict[str, Any]]) -> None:
    said = (acted[0] / "said.txt").read_text()
    warnings = {line for line in said.splitlines() if line.startswith("got transformers 4.57.6, which ")}
    assert len(warnings) == len(OTHER_IN_FOUR)
    for difference in OTHER_IN_FOUR.values():
        assert any(difference in warning for warning in warnings)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_model_is_its_base(acted: tuple[Path, dict[str, Any]], family: str) -> None:
    """On transformers 4 too, bit for bit."""
    base, plus = (np.load(acted[0] / family / f"{name}.npy") for name in ("base", "plus"))
    np.testing.assert_array_equal(plus, base)
    assert base.std() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_what_4_writes_5_reads(acted: tuple[Path, dict[str, Any]], family: str) -> None:
    model = VLAPlusForVision2Seq.from_pretrained(acted[0] / family / "saved")
    assert not model.missing_weights
    found = model.predict_actions(**tiny_inputs(model), unnorm_key="tiny")
    np.testing.assert_array_equal(found.token_ids, acted[1][family].token_ids)
    np.testing.assert_array_equal(found.digit_probabilities, acted[1][family].digit_probabilities)


def test_the_flow_matching_model_says_which_transformers_it_needs(gemma_like: Any, tmp_path: Path) -> None:
    for part in (tiny_pi0_flow_model(gemma_like), tiny_pi0_flow_processor(gemma_like)):
        part.save_pretrained(tmp_path / "repo")
    script = """
import sys, transformers
for loader in ("AutoConfig", "AutoModel", "AutoModelForVision2Seq", "AutoProcessor"):
    try:
        getattr(transformers, loader).from_pretrained(sys.argv[1], trust_remote_code=True)
    except ImportError as error:
        print(error)
"""
    run = run_on_four(script, tmp_path, "repo")
    refusals = run.stdout.count("got transformers 4.57.6, expected 5.17 or newer for the flow-matching π0")
    assert refusals == 3, run.stderr[-2000:]


def run_on_four(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script on transformers 4, where `gen_vla` is not installed."""
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    settings.pop("PYTHONPATH", None)
    command = [str(OTHER), "-P", "-c", script, *arguments]
    return subprocess.run(command, env=settings, cwd=folder, capture_output=True, text=True, timeout=300)
