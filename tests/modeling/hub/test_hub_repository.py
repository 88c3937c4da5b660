"""What `save_pretrained` writes loads by the auto classes where `gen_vla` cannot be imported, and acts alike."""

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from repository_reader import check_same, has_words, read_repositories, use
from safetensors import safe_open
from tiny_models import tiny_model, tiny_pi0_flow_model, tiny_pi0_flow_processor, tiny_processor
from transformers import AutoTokenizer

from gen_vla.modeling import OpenVLAPlusForVision2Seq
from gen_vla.processors import ActionStringProcessor


ROOT = Path(__file__).resolve().parents[3]
ALLOWED = {"torch", "transformers", "numpy", "PIL"} | set(sys.stdlib_module_names)
IMPORT = re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)
STRINGS = ActionStringProcessor(action_dim=3, decimals=3, binary_dims=[2])


@pytest.fixture(scope="module")
def repositories(llama_like: Any, gemma_like: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By family: the folder, and the model and the processor it was written by."""
    made = {
        "openvla_plus": (tiny_model(llama_like, STRINGS), tiny_processor(llama_like, STRINGS)),
        "pi0_flow": (tiny_pi0_flow_model(gemma_like), tiny_pi0_flow_processor(gemma_like)),
    }
    written = {}
    for family, (model, processor) in made.items():
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        written[family] = (folder, model, processor)
    return written


@pytest.fixture(scope="module")
def repository(repositories: dict[str, Any]) -> tuple[Path, Any, Any]:
    return repositories["openvla_plus"]


def source(module: str) -> Path:
    """Where a module that ships is kept."""
    folder = "processors" if (ROOT / "processors" / f"{module}.py").exists() else "modeling"
    return ROOT / folder / f"{module}.py"


def imported(*modules: str) -> set[str]:
    """These modules, all those they import from beside themselves, and all that those import."""
    needed, unread = set(modules), set(modules)
    while unread:
        found = set(IMPORT.findall(source(unread.pop()).read_text()))
        unread |= found - needed
        needed |= found
    return needed


@pytest.mark.parametrize("family", ["openvla_plus", "pi0_flow"])
def test_the_files_that_ship(family: str, repositories: dict[str, Any]) -> None:
    """The code is what the auto classes need, and no file more."""
    folder = repositories[family][0]
    written = {path.name for path in folder.iterdir()}
    entrances = [f"{kind}_{family}" for kind in ("configuration", "modeling", "processing")]
    code = imported(*entrances, "image_processing_openvla_plus")
    assert {name for name in written if name.endswith(".py")} == {f"{module}.py" for module in code}
    assert {"config.json", "model.safetensors", "processor_config.json", "chat_template.jinja"} <= written
    assert {"tokenizer.json", "tokenizer_config.json"} <= written
    assert not [name for name in written if name.endswith((".bin", ".pt", ".pkl"))]
    assert all((folder / f"{module}.py").read_bytes() == source(module).read_bytes() for module in code)
    assert len(code) > 15
    assert ("tree_decoding" in code) == (family != "pi0_flow")  # which writes no tokens


@pytest.mark.parametrize("folder", ["modeling", "processors"])
def test_shipped_files_import_only_what_every_user_has(folder: str) -> None:
    files = [path for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    files = [path for path in files if not path.name.startswith("convert_")]
    assert len(files) >= 5
    for path in files:
        tree = ast.parse(path.read_text())
        # Optional imports: Triton, which PyTorch brings along for GPUs.
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


def entrances() -> list[Path]:
    """The files of a repository that transformers opens by name."""
    kinds = ("configuration", "modeling", "processing", "image_processing")
    return sorted(
        path
        for folder in ("modeling", "processors")
        for kind in kinds
        for path in (ROOT / folder).glob(f"{kind}_*.py")
    )


@pytest.mark.parametrize(
    "entrance",
    [path for path in entrances() if path.stem != "modeling_vla_plus"],  # which transformers 4 is refused by
    ids=lambda path: path.stem,
)
def test_an_entrance_names_everything_it_needs(entrance: Path) -> None:
    """transformers 4 copies from a local folder what the file it enters by imports, and nothing those import."""
    direct = set(IMPORT.findall(entrance.read_text()))
    missing = imported(*direct) - direct - {entrance.stem}
    assert not missing, f"add imports of {sorted(missing)} to {entrance.name}"


def name_in_the_file(name: str) -> str:
    """Transformers 5 has other names for DINOv2's attention, but writes and reads those of transformers 4."""
    if ".dino." in name:
        for new, old in (("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value")):
            name = name.replace(f".attention.{new}.", f".attention.{old}.")
        name = name.replace(".attention.o_proj.", ".attention.output.dense.")
    return name


def test_every_tensor_is_saved_and_read_back(repository: tuple[Path, Any, Any], tmp_path: Path) -> None:
    model = OpenVLAPlusForVision2Seq.from_pretrained(repository[0])
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in repository[1].state_dict().items())
    with torch.no_grad():
        for tensor in state.values():
            tensor.add_(1.0)  # so that none is what a new model begins with
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {name_in_the_file(name) for name in state}
        for name, tensor in state.items():
            assert torch.equal(file.get_tensor(name_in_the_file(name)), tensor), name
    whole: Any = OpenVLAPlusForVision2Seq.from_pretrained(tmp_path, output_loading_info=True)
    loaded, info = whole
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    for (name, buffer), (_, original) in zip(loaded.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(buffer, original), name  # buffers that are not saved are filled again


def test_repositories_load_in_a_fresh_interpreter_without_the_package(
    repositories: dict[str, Any], tmp_path: Path
) -> None:
    found = read_repositories([folder for folder, _, _ in repositories.values()], tmp_path)
    for outputs, (_, model, processor) in zip(found, repositories.values(), strict=True):
        expected = use(model, processor)
        check_same(outputs, expected)
        assert type(model).__name__ in str(outputs["class"])
        assert len(expected["texts"]) == 2
        if has_words(model):
            assert expected["answer None"].tolist() == expected["answer static"].tolist()


def test_saved_tokenizers_are_for_both_generations(
    llama_like: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = tiny_processor(llama_like)
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


def test_modules_in_both_folders_are_one_file() -> None:
    names = {path.name for path in (ROOT / "modeling").glob("*.py")} - {"__init__.py"}
    shared = [name for name in names if (ROOT / "processors" / name).exists()]
    assert len(shared) >= 4
    assert all((ROOT / "modeling" / name).samefile(ROOT / "processors" / name) for name in shared)
