"""A repository over a vision-language model of transformers loads, acts and answers where this package is missing."""

import os
from pathlib import Path
from typing import Any

import pytest
from repository_reader import GREEDY, QUESTION, check_same, read_repositories, use
from test_hub_repository import imported, source
from tiny_models import picture
from tiny_vlms import tiny_vla_pair

from gen_vla.training.publishing.assembling import install_in_cache


FAMILIES = ("gemma3", "paligemma", "qwen2_5_vl", "smolvlm")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any, Any]]:
    """By family: the folder, and the model and the processor it was written by; that of Qwen is without D."""
    written = {}
    for family in FAMILIES:
        frozen = None if family == "qwen2_5_vl" else "vision"
        model, processor = tiny_vla_pair(family, tmp_path_factory.mktemp(f"{family}_base"), frozen=frozen)
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        written[family] = (folder, model, processor)
    return written


def test_a_fresh_interpreter_comes_to_the_same_numbers(
    repositories: dict[str, tuple[Path, Any, Any]], tmp_path: Path
) -> None:
    """From folders, and one of them by its name on the Hub."""
    install_in_cache(repositories["smolvlm"][0], "gen-vla/smolvlm", tmp_path / "hub")
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    names = [*(folder for folder, _, _ in repositories.values()), "gen-vla/smolvlm"]
    readings = read_repositories(names, tmp_path, variables)
    for (_, model, processor), outputs in zip(
        [*repositories.values(), repositories["smolvlm"]], readings, strict=True
    ):
        check_same(outputs, use(model, processor))
        question = processor.question_inputs(picture(), QUESTION)
        answer = model.generate(**question, **GREEDY)[:, question["input_ids"].shape[1] :]
        assert str(outputs["pipeline"]) == processor.batch_decode(answer, skip_special_tokens=True)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_files_that_ship(family: str, repositories: dict[str, tuple[Path, Any, Any]]) -> None:
    folder = repositories[family][0]
    code = imported(*(f"{kind}_vla_plus" for kind in ("configuration", "modeling", "processing")))
    assert {path.name for path in folder.glob("*.py")} == {f"{module}.py" for module in code}
    assert all((folder / f"{module}.py").read_bytes() == source(module).read_bytes() for module in code)
    others = {path.name for path in folder.iterdir() if path.suffix != ".py"} - {"chat_template.jinja"}
    expected = {"config", "dataset_statistics", "generation_config", "processor_config", "tokenizer"}
    assert others == {*(f"{name}.json" for name in expected), "tokenizer_config.json", "model.safetensors"}
