"""The Space's model: what it makes of a prediction, which models it names, and its page without a second one."""

import ast
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import metadata_load
from policy import MAX_CHARACTERS, Policy, checked_words, model_names
from space_browser import ROOT, SPACE
from space_models import save_arm_model
from tiny_models import (
    picture,
    tiny_model,
    tiny_pi0_flow_model,
    tiny_pi0_flow_processor,
    tiny_processor,
    tiny_tokenizer,
)
from tiny_vlms import tiny_vla_pair
from transformers import LlavaConfig

from gen_vla.processors import ActionBins, ActionStringProcessor


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Any, Any]:
    """The Space's view of a model, the model, its processor."""
    folder = tmp_path_factory.mktemp("arm")
    model, processor = save_arm_model(tiny_tokenizer("llama_like"), folder)
    return Policy(str(folder)), model, processor


def test_an_action_is_the_model_s(arm):
    policy, model, processor = arm
    action = policy.act([picture(1)], " Open the drawer ", "bridge_orig")
    inputs = processor.action_inputs(picture(1), "open the drawer")
    expected = model.predict_actions(**inputs, unnorm_key="bridge_orig")
    assert action.text == expected.text[0] == "".join(piece.text for piece in action.pieces)
    np.testing.assert_allclose(action.steps, expected.actions[0], rtol=1e-6)
    assert [piece.probability for piece in action.pieces] == pytest.approx(expected.digit_probabilities[0][:49])
    assert [piece.text for piece in action.pieces if not piece.choice].count(".") == 7
    assert all(piece.probability == 1.0 for piece in action.pieces if not piece.choice)
    np.testing.assert_array_equal(action.normalized, expected.normalized[0])
    assert action.forward_passes == expected.forward_passes < 49


def test_a_model_of_one_named_camera_takes_one_picture(tmp_path):
    model, processor = save_arm_model(tiny_tokenizer("llama_like"), tmp_path, cameras=["top"])
    policy = Policy(str(tmp_path))
    prediction = model.predict_actions(**processor.action_inputs(picture(1), "go"), unnorm_key="bridge_orig")
    assert policy.cameras == ()
    assert policy.act([picture(1)], "go", "bridge_orig").text == prediction.text[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm_stats": {}}, r"without statistics \(norm_stats in config.json\), expected those of a data set"),
        ({"norm_stats": None}, "without statistics"),
        ({"action_config": None}, "of type openvla_plus without action_config, expected a policy"),
    ],
    ids=["no_statistics", "none", "a_vision_language_model"],
)
def test_models_that_cannot_act_are_refused_before_their_weights_are_loaded(tmp_path, settings, message):
    model, _ = save_arm_model(tiny_tokenizer("llama_like"), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.config.update(settings)
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        Policy(str(tmp_path))


def test_models_of_other_families_and_bodies_are_refused(tmp_path):
    LlavaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a model of type llava without action_config"):
        Policy(str(tmp_path))
    strings = ActionStringProcessor(action_dim=3)
    tiny_model(tiny_tokenizer("llama_like"), strings).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="action_dim=3, expected 7"):
        Policy(str(tmp_path))
    tokenizer = tiny_tokenizer("gemma_like")
    tiny_pi0_flow_model(tokenizer, action_dim=7).save_pretrained(tmp_path)
    tiny_pi0_flow_processor(tokenizer, action_dim=7).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a flow-matching π0, expected a model that writes actions and answers"):
        Policy(str(tmp_path))


def test_bins_are_shown_as_numbers(tmp_path):
    tokenizer, bins = tiny_tokenizer("llama_like"), ActionBins(7)
    model = tiny_model(tokenizer, bins)  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    tiny_processor(tokenizer, bins).save_pretrained(tmp_path)  # type: ignore[arg-type]
    action = Policy(str(tmp_path)).act([picture(1)], "go", "tiny")
    assert " ".join(piece.text for piece in action.pieces) == action.text
    assert len(action.pieces) == 7


@pytest.mark.parametrize("family", ["gemma3", "paligemma", "qwen2_5_vl", "smolvlm"])
def test_other_families_act_and_answer(family, tmp_path):
    model, processor = tiny_vla_pair(family, tmp_path / "base", ActionStringProcessor(7, binary_dims=[6]))
    model.save_pretrained(tmp_path / "repo")
    processor.save_pretrained(tmp_path / "repo")
    policy = Policy(str(tmp_path / "repo"))
    action = policy.act([picture(1)], "go", "tiny")
    assert action.text == model.predict_actions(**processor.action_inputs(picture(1), "go")).text[0]
    assert re.fullmatch(r"([+-][01]\.\d{4}){7}", action.text)
    assert action.text == "".join(piece.text for piece in action.pieces)
    inputs = processor.question_inputs(picture(1), "How many?")
    output = model.generate(**inputs, max_new_tokens=48, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answer = processor.batch_decode(output, skip_special_tokens=True)[0].strip()
    assert policy.ask(picture(1), "How many?")[0] == answer


def test_a_model_runs_in_the_type_it_was_saved_in(tmp_path):
    model, _ = save_arm_model(tiny_tokenizer("llama_like"), tmp_path)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    policy = Policy(str(tmp_path))
    assert policy.model.dtype == torch.bfloat16
    assert len(policy.act([picture(1)], "go", "bridge_orig").text) == 49
    assert policy.ask(picture(1), "How many?")[1] > 0


def test_a_question_is_answered_as_by_generate(arm):
    policy, model, processor = arm
    inputs = processor.question_inputs(picture(1), "How many?")
    output = model.generate(**inputs, max_new_tokens=48, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answer, milliseconds = policy.ask(picture(1), "How many?")
    assert answer == processor.batch_decode(output, skip_special_tokens=True)[0].strip()
    assert milliseconds > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [(None, "The question is empty"), (" \n", "The question is empty"), ("x" * 201, "201 characters; at most 200")],
)
def test_words_that_cannot_be_used(words, message):
    with pytest.raises(ValueError, match=message):
        checked_words(words, "question")
    assert len(checked_words("x" * MAX_CHARACTERS, "question")) == 200


@pytest.mark.parametrize(
    ("readme", "model", "baseline", "named"),
    [
        ("---\nmodels: [a/b, c/d]\n---\n# Words\n---\n", None, None, ("a/b", "c/d")),
        ("---\nmodels: [a/b]\n---\n", None, None, ("a/b", None)),
        ("---\nmodels: [a/b]\n---\n", None, "folder", ("a/b", "folder")),
        ("---\nmodels: [a/b]\n---\n", "other", "folder", ("other", "folder")),
        ("---\nmodels: [a/b, c/d]\n---\n", "other", None, ("other", None)),
        ("---\ntitle: x\n---\n", None, None, None),
        ("# no front matter\n", None, None, None),
    ],
)
def test_which_models_are_named(tmp_path, monkeypatch, readme, model, baseline, named):
    """By the environment before the front matter; a local model is never compared with one nobody asked for."""
    for name, value in (("GEN_VLA_MODEL", model), ("GEN_VLA_BASELINE", baseline)):
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    (tmp_path / "README.md").write_text(readme)
    if named:
        assert model_names(tmp_path) == named
    else:
        with pytest.raises(ValueError, match="expected its name on the Hub under `models:`"):
            model_names(tmp_path)


def test_the_page_without_a_second_model_says_what_to_set(arm):
    pytest.importorskip("gradio", reason="no gradio; pip install 'gen-vla[demo]'")
    from app import Answers, build_page

    config: Any = build_page(Answers(arm[0], None)).get_config_file()
    words = [
        part["props"].get("value") for part in config["components"] if part["props"].get("elem_id") == "no-baseline"
    ]
    assert "GEN_VLA_BASELINE" in words[0]
    assert {part["api_name"] for part in config["dependencies"]} >= {"act", "ask"}
    assert "compare" not in {part["api_name"] for part in config["dependencies"]}
    limits = [part for part in config["dependencies"] if part["api_name"] in ("act", "ask")]
    assert all(part["queue"] is not False for part in limits)


def test_models_of_one_name_are_told_apart(arm):
    pytest.importorskip("gradio", reason="no gradio; pip install 'gen-vla[demo]'")
    from app import Answers

    name = Path(arm[0].name).name
    assert Answers(arm[0], None).names() == [name]
    assert Answers(arm[0], arm[0]).names() == [f"{name} (1)", f"{name} (2)"]


def test_a_model_that_is_not_there_ends_the_space_with_a_message(tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="no gradio; pip install 'gen-vla[demo]'")
    from app import main

    monkeypatch.setenv("GEN_VLA_MODEL", str(tmp_path / "nothing"))
    with pytest.raises(SystemExit, match=r"(?s)No model could be loaded: .*nothing.*GEN_VLA_MODEL"):
        main()


def test_the_space_is_what_the_hub_expects():
    """Versions as tested, a description that fits, small examples."""
    pinned = dict(line.split("==") for line in pins(ROOT / "constraints.txt"))
    for line in pins(SPACE / "requirements.txt"):
        name, version = line.split("==")
        assert pinned[name] == version, f"{name} is tested as {pinned[name]}"
    settings: Any = metadata_load(SPACE / "README.md")
    assert settings["sdk"] == "gradio"
    assert settings["sdk_version"] == pinned["gradio"]
    assert (SPACE / settings["app_file"]).is_file()
    assert len(settings["short_description"]) <= 60  # the Hub refuses longer ones
    assert not (ROOT / "spaces" / "__init__.py").exists()
    for path in (SPACE / "examples").iterdir():
        assert path.suffix == ".png"
        assert path.stat().st_size < 200_000


def test_the_space_imports_only_what_it_requires():
    modules = {"yaml": "pyyaml", "PIL": "pillow"}
    required = {line.split("==")[0] for line in pins(SPACE / "requirements.txt")} | {"gradio"}
    own = {path.stem for path in SPACE.glob("*.py")}
    for path in SPACE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in {name.split(".")[0] for name in names} - own - set(sys.stdlib_module_names):
                assert modules.get(name, name) in required, f"{path.name} imports {name}"


def pins(path: Path) -> list[str]:
    return [
        line for line in path.read_text(encoding="utf-8").splitlines() if "==" in line and not line.startswith("#")
    ]
