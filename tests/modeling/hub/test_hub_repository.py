"""What `save_pretrained` writes is a whole Hub repository: it loads where this package is not installed.

The model and the processor are saved into one folder, and a fresh interpreter in which `gen_vla` cannot be imported
loads them by the auto classes and has to come to the same numbers.
"""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_models import (
    picture,
    tiny_model,
    tiny_pi0_flow_model,
    tiny_pi0_flow_processor,
    tiny_pi0_model,
    tiny_pi0_processor,
    tiny_processor,
)
from transformers import AutoTokenizer

from gen_vla.modeling import OpenVLAPlusForVision2Seq
from gen_vla.processors import ActionStringProcessor


ROOT = Path(__file__).resolve().parents[3]
SHIPPED = {
    "action_bins.py",
    "action_grammar.py",
    "action_prediction.py",
    "action_statistics.py",
    "action_strings.py",
    "base_configuration.py",
    "configuration_openvla_plus.py",
    "cpu_threads.py",
    "draft_distribution.py",
    "draft_trees.py",
    "dual_vision_tower.py",
    "fused_layers.py",
    "image_language_model.py",
    "image_processing_openvla_plus.py",
    "modeling_openvla_plus.py",
    "openvla_contract.py",
    "parallel_streams.py",
    "processing_openvla_plus.py",
    "prompt_texts.py",
    "rgb_pictures.py",
    "static_cache.py",
    "static_passes.py",
    "static_plan.py",
    "text_tokens.py",
    "token_probabilities.py",
    "transformers_version.py",
    "tree_decoding.py",
    "triton_operations.py",
    "verification_passes.py",
}
SHIPPED_WITH_A_FLOW = {  # nothing that decodes tokens but what the processors import
    "action_bins.py",
    "action_grammar.py",
    "action_statistics.py",
    "action_strings.py",
    "base_configuration.py",
    "configuration_pi0_flow.py",
    "cpu_threads.py",
    "image_processing_openvla_plus.py",
    "modeling_pi0_flow.py",
    "openvla_contract.py",
    "processing_openvla_plus.py",
    "processing_pi0_flow.py",
    "processing_pi0_plus.py",
    "prompt_texts.py",
    "rgb_pictures.py",
    "text_tokens.py",
    "transformers_version.py",
}
ALLOWED = {"torch", "transformers", "numpy", "PIL"} | set(sys.stdlib_module_names)
INSTRUCTIONS = ["open the drawer", "go"]
QUESTION = "How many?"
NO_PACKAGE = "import sys; sys.modules['gen_vla'] = None"  # what `import gen_vla` then raises is ModuleNotFoundError

FRESH = """
import sys
import numpy as np, torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

try:
    import gen_vla.processors
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("gen_vla can be imported")
folder, source, target = sys.argv[1:]
data = np.load(source)
pictures = [Image.fromarray(data[name]) for name in ("first", "second")]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "openvla_plus"
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
other = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
assert type(model).__name__ == type(other).__name__ == "OpenVLAPlusForVision2Seq"
assert not model.training and not model.model.vision_tower.siglip.embeddings.patch_embedding.weight.requires_grad
inputs = processor.action_inputs(pictures, list(data["instructions"]))
with torch.no_grad():
    logits = [network(**inputs).logits.numpy() for network in (model, other)]
prediction = model.predict_actions(**inputs, unnorm_key="tiny")
one = model.predict_action(**processor.action_inputs(pictures[0], str(data["instructions"][0])))
question = processor.question_inputs(pictures[0], str(data["question"]))
answer = model.generate(**question, do_sample=False, max_new_tokens=5)
np.savez(target, logits=logits[0], other=logits[1], tokens=prediction.token_ids, actions=prediction.actions,
         one=one, answer=answer.numpy(), text=processor.batch_decode(answer), texts=prediction.text)
"""


@pytest.fixture(scope="module")
def repository(llama_like: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """The folder, and the model and the processor it was written by."""
    folder = tmp_path_factory.mktemp("repository")
    strings = ActionStringProcessor(action_dim=3, decimals=3, binary_dims=[2])
    model, processor = tiny_model(llama_like, strings), tiny_processor(llama_like, strings)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


def test_the_files_that_ship(repository: tuple[Path, Any, Any]) -> None:
    folder = repository[0]
    written = {path.name for path in folder.iterdir()}
    assert {name for name in written if name.endswith(".py")} == SHIPPED
    assert {"config.json", "model.safetensors", "processor_config.json", "chat_template.jinja"} <= written
    assert {"tokenizer.json", "tokenizer_config.json"} <= written
    assert not [name for name in written if name.endswith((".bin", ".pt", ".pkl"))]
    for name in SHIPPED:
        home = ROOT / ("processors" if (ROOT / "processors" / name).exists() else "modeling") / name
        assert (folder / name).read_bytes() == home.read_bytes(), name


@pytest.mark.parametrize("folder", ["modeling", "processors"])
def test_shipped_files_import_only_what_every_user_has(folder: str) -> None:
    files = [path for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    files = [path for path in files if not path.name.startswith("convert_")]
    assert len(files) >= 5
    for path in files:
        tree = ast.parse(path.read_text())
        # What is tried for and done without: Triton, which PyTorch brings along for GPUs.
        tried = [node for block in ast.walk(tree) if isinstance(block, ast.Try) for node in block.body]
        for node in ast.walk(tree):
            if node in tried:
                continue
            if isinstance(node, ast.Import):
                assert {name.name.split(".")[0] for name in node.names} <= ALLOWED, path
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert str(node.module).split(".")[0] in ALLOWED, path
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1, f"{path} imports from above its folder"
                assert node.module, f"{path}: `from . import x` is not copied to the Hub"
                assert (path.parent / f"{node.module}.py").is_file(), f"{path} imports .{node.module}"


IMPORT = re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)
ENTRANCES = ("configuration_*.py", "modeling_*.py", "processing_*.py", "image_processing_*.py")


def entrances() -> list[Path]:
    """The files of a repository that transformers opens by name."""
    folders = [ROOT / "modeling", ROOT / "processors"]
    return sorted(path for folder in folders for name in ENTRANCES for path in folder.glob(name))


@pytest.mark.parametrize("entrance", entrances(), ids=lambda path: path.stem)
def test_an_entrance_names_everything_it_needs(entrance: Path) -> None:
    """transformers 4 copies from a local folder what the file it enters by imports, and nothing those import."""
    direct = set(IMPORT.findall(entrance.read_text()))
    needed, open_names = set(direct), set(direct)
    while open_names:
        found = set(IMPORT.findall((entrance.parent / f"{open_names.pop()}.py").read_text()))
        open_names |= found - needed
        needed |= found
    needed -= {entrance.stem}
    assert needed == direct, f"add imports of {sorted(needed - direct)} to {entrance.name}"


def test_links_of_modeling_are_the_files_of_processors() -> None:
    for name in ("action_strings.py", "action_grammar.py", "action_statistics.py", "transformers_version.py"):
        assert (ROOT / "modeling" / name).samefile(ROOT / "processors" / name)


def name_in_the_file(name: str) -> str:
    """Transformers 5 has other names for DINOv2's attention, but writes and reads those of transformers 4."""
    if ".dino." in name:
        for new, old in (("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value")):
            name = name.replace(f".attention.{new}.", f".attention.{old}.")
        name = name.replace(".attention.o_proj.", ".attention.output.dense.")
    return name


def test_the_weights_are_whole(repository: tuple[Path, Any, Any]) -> None:
    folder, model, _ = repository
    state = model.state_dict()
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {name_in_the_file(name) for name in state}
        for name, tensor in state.items():
            assert torch.equal(file.get_tensor(name_in_the_file(name)), tensor), name
    whole: Any = OpenVLAPlusForVision2Seq.from_pretrained(folder, output_loading_info=True)
    loaded, info = whole
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    for (name, buffer), (_, original) in zip(loaded.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(buffer, original), name  # buffers that are not saved are filled again


def test_every_saved_tensor_is_read_back(repository: tuple[Path, Any, Any], tmp_path: Path) -> None:
    model = OpenVLAPlusForVision2Seq.from_pretrained(repository[0])
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1.0)
    model.save_pretrained(tmp_path)
    again = OpenVLAPlusForVision2Seq.from_pretrained(tmp_path).state_dict()
    for name, tensor in repository[1].state_dict().items():
        torch.testing.assert_close(again[name], tensor + 1.0, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_data_type_asked_for_is_everywhere(repository: tuple[Path, Any, Any], dtype: torch.dtype) -> None:
    folder, _, processor = repository
    model = OpenVLAPlusForVision2Seq.from_pretrained(folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    prediction = model.predict_actions(**processor.action_inputs(picture(), "go"))
    assert prediction.actions.shape == (1, 1, 3)
    assert prediction.actions.dtype == np.float32


def test_loads_in_a_fresh_interpreter_without_the_package(repository: tuple[Path, Any, Any], tmp_path: Path) -> None:
    folder, model, processor = repository
    pictures = [picture(), picture(1)]
    source, target = tmp_path / "inputs.npz", tmp_path / "outputs.npz"
    np.savez(
        source,
        first=np.asarray(pictures[0]),
        second=np.asarray(pictures[1]),
        instructions=INSTRUCTIONS,
        question=QUESTION,
    )
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)
    finished = subprocess.run(
        [sys.executable, "-c", NO_PACKAGE + FRESH, str(folder), str(source), str(target)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    fresh = np.load(target)
    inputs = processor.action_inputs(pictures, INSTRUCTIONS)
    with torch.no_grad():
        logits = model(**inputs).logits.numpy()
    np.testing.assert_allclose(fresh["logits"], logits, rtol=0, atol=1e-6)
    np.testing.assert_allclose(fresh["other"], logits, rtol=0, atol=1e-6)
    prediction = model.predict_actions(**inputs, unnorm_key="tiny")
    assert fresh["tokens"].tolist() == prediction.token_ids.tolist()
    assert fresh["texts"].tolist() == prediction.text
    np.testing.assert_array_equal(fresh["actions"], prediction.actions)
    np.testing.assert_array_equal(fresh["one"], prediction.actions[0, 0])
    answer = model.generate(**processor.question_inputs(pictures[0], QUESTION), do_sample=False, max_new_tokens=5)
    assert fresh["answer"].tolist() == answer.tolist()
    assert fresh["text"].tolist() == processor.batch_decode(answer)


def test_the_saved_configs_say_how_to_act(repository: tuple[Path, Any, Any]) -> None:
    folder, model, processor = repository
    config = json.loads((folder / "config.json").read_text())
    saved = json.loads((folder / "processor_config.json").read_text())
    assert config["action_config"] == saved["action_config"] == processor.action_config
    assert config["norm_stats"] == model.config.norm_stats
    assert "image_token_id" not in saved
    assert str(folder) not in (folder / "config.json").read_text()


def test_pi0_plus_loads_in_a_fresh_interpreter_too(gemma_like: Any, tmp_path: Path) -> None:
    strings = ActionStringProcessor(action_dim=3, decimals=3, binary_dims=[2])
    model, processor = tiny_pi0_model(gemma_like, strings), tiny_pi0_processor(gemma_like, strings)
    folder = tmp_path / "repo"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    renamed = {name.replace("openvla", "pi0") if name[:4] in ("mode", "conf") else name for name in SHIPPED}
    assert {path.name for path in folder.glob("*.py")} == renamed | {"processing_pi0_plus.py"}
    pictures = [picture(), picture(1)]
    images = np.stack([np.asarray(image) for image in pictures])
    np.savez(tmp_path / "inputs.npz", images=images, instructions=INSTRUCTIONS, question=QUESTION)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    reader = (
        Path(__file__).resolve().parents[2] / "support" / "hub" / "repository_reader.py"
    )  # in which gen_vla cannot be imported
    finished = subprocess.run(
        [sys.executable, "-P", str(reader), str(tmp_path / "inputs.npz"), str(tmp_path), str(folder)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    fresh = np.load(tmp_path / "0.npz")
    inputs = processor.action_inputs(pictures, INSTRUCTIONS)
    with torch.no_grad():
        np.testing.assert_array_equal(fresh["logits AutoModel"], model(**inputs).logits.numpy())
    prediction = model.predict_actions(**inputs)
    assert fresh["texts"].tolist() == prediction.text
    np.testing.assert_array_equal(fresh["actions"], prediction.actions)
    answer = model.generate(**processor.question_inputs(pictures[0], QUESTION), do_sample=False, max_new_tokens=8)
    assert fresh["answer None"].tolist() == fresh["answer static"].tolist() == answer.tolist()


FRESH_FLOW = """
import sys
import numpy as np, torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

folder, source, target = sys.argv[1:]
data = np.load(source)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor.action_inputs([Image.fromarray(image) for image in data["images"]], list(data["instructions"]))
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "pi0_flow"
model, info = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
other = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
assert not any(info.values()), info
assert type(model).__name__ == type(other).__name__ == "Pi0FlowForActionPrediction"
assert type(model).__module__.startswith("transformers_modules.")
predictions = [network.predict_actions(**inputs, noise=torch.from_numpy(data["noise"])) for network in (model, other)]
torch.manual_seed(3)
one = model.predict_action(**{name: value[:1] for name, value in inputs.items()}, unnorm_key="tiny", do_sample=False)
np.savez(target, actions=predictions[0].actions, other=predictions[1].actions, one=one)
"""


def test_a_flow_loads_in_a_fresh_interpreter_too(gemma_like: Any, tmp_path: Path) -> None:
    model, processor = tiny_pi0_flow_model(gemma_like), tiny_pi0_flow_processor(gemma_like)
    folder = tmp_path / "repo"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    assert {path.name for path in folder.glob("*.py")} == SHIPPED_WITH_A_FLOW
    pictures = [picture(), picture(1)]
    noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    images = np.stack([np.asarray(image) for image in pictures])
    np.savez(tmp_path / "inputs.npz", images=images, instructions=INSTRUCTIONS, noise=noise.numpy())
    arguments = [str(folder), str(tmp_path / "inputs.npz"), str(tmp_path / "outputs.npz")]
    finished = subprocess.run(
        [sys.executable, "-P", "-c", f"{NO_PACKAGE}; import torch; torch.set_num_threads(1){FRESH_FLOW}", *arguments],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    fresh = np.load(tmp_path / "outputs.npz")
    inputs = processor.action_inputs(pictures, INSTRUCTIONS)
    expected = model.predict_actions(**inputs, noise=noise).actions
    np.testing.assert_allclose(fresh["actions"], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(fresh["other"], expected, rtol=0, atol=1e-6)
    torch.manual_seed(3)
    one = model.predict_action(**{name: value[:1] for name, value in inputs.items()})
    np.testing.assert_allclose(fresh["one"], one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["openvla_plus", "pi0_plus"])
def test_saved_tokenizers_are_for_both_generations(
    family: str, llama_like: Any, gemma_like: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = tiny_pi0_processor(gemma_like) if family == "pi0_plus" else tiny_processor(llama_like)
    pushed: list[Any] = []
    monkeypatch.setattr(type(processor), "push_to_hub", lambda self, repo_id, **options: pushed.append(repo_id))
    processor.save_pretrained(tmp_path, push_to_hub=True, repo_id="gen-vla/tiny")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<image>"]
    assert not {"backend", "extra_special_tokens"} & set(settings)
    assert pushed == ["gen-vla/tiny"]
    again = AutoTokenizer.from_pretrained(tmp_path)
    ids = processor.tokenizer.encode("<image>two</s>")
    assert again.encode("<image>two</s>") == ids
    assert again.decode(ids, skip_special_tokens=True) == "two"
    assert again.padding_side == "left"


def test_tensors_are_saved_under_names_of_both_generations(repository: tuple[Path, Any, Any], tmp_path: Path) -> None:
    folder, model, _ = repository
    model.save_pretrained(tmp_path / "five", save_original_format=False)  # names that only transformers 5 knows
    OpenVLAPlusForVision2Seq.from_pretrained(tmp_path / "five").save_pretrained(tmp_path / "again")
    names = []
    for place in (folder, tmp_path / "five", tmp_path / "again"):
        with safe_open(place / "model.safetensors", "pt") as file:
            names.append(set(file.keys()))
    assert names[0] == names[2] != names[1]
