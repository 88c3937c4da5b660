"""OpenVLA's loading code and its ways with statistics, on folders read through `AutoModel` with the code they ship."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import picture, tiny_model, tiny_pair, tiny_statistics
from tiny_vlms import tiny_vla_plus
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from gen_vla.modeling import OpenVLAPlusForVision2Seq, openvla_contract
from gen_vla.processors import ActionStringProcessor


PROMPT = "In: What action should the robot take to pick up the can?\nOut:"


@pytest.fixture(scope="module")
def folder(llama_like: Any, tmp_path_factory: Any) -> Path:
    """A small model that knows two data sets, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("openvla_plus")
    strings = ActionStringProcessor(action_dim=3, decimals=2)
    statistics = {"bridge_orig": tiny_statistics(3), "libero_spatial_no_noops": tiny_statistics(3, scale=0.5)}
    model, processor = tiny_pair("openvla_plus", llama_like, strings)
    model.config.norm_stats = statistics
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, **options)


def act(vla: Any, folder: Path, unnorm_key: str | None = "bridge_orig") -> np.ndarray:
    """What `get_vla_action` of OpenVLA's experiments does."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(PROMPT, picture()).to("cpu", dtype=torch.bfloat16)
    return vla.predict_action(**inputs, unnorm_key=unnorm_key, do_sample=False)


def test_openvlas_loading_code_runs(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`get_vla`, argument for argument, where flash-attn may be missing."""
    plain = load(folder, dtype=torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        vla = load(
            folder,
            attn_implementation="flash_attention_2",
            torch_dtype=torch.bfloat16,
            load_in_8bit=False,
            load_in_4bit=False,
            low_cpu_mem_usage=True,
        )
    assert "got attn_implementation='flash_attention_2', using 'sdpa'" in caplog.text
    assert {parameter.dtype for parameter in vla.parameters()} == {torch.bfloat16}
    used = {m.config._attn_implementation for m in vla.modules() if hasattr(m, "config")}
    assert used == {"sdpa"}
    action = act(vla, folder)
    np.testing.assert_array_equal(action, act(plain, folder))
    assert action.shape == (3,)
    action[..., -1] = np.sign(2 * action[..., -1] - 1) * -1.0  # what the LIBERO script does to the gripper
    assert action.tolist()[-1] in (-1.0, 1.0)


@pytest.mark.parametrize("asked", ["eager", "sdpa", None])
def test_other_ways_of_attention_stay(folder: Path, asked: str | None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = load(folder, **({"attn_implementation": asked} if asked else {}))
    assert model.config._attn_implementation == (asked or "sdpa")
    assert "using 'sdpa'" not in caplog.text


def test_a_part_that_asks_for_flash_attention_does_not_get_it(llama_like: Any) -> None:
    model = tiny_model(llama_like)
    config = model.config
    config._attn_implementation = {"": "eager", "text_config": "kernels-community/flash-attn2"}
    again = type(model)(config)
    assert config._attn_implementation == "eager"
    assert again.model.language_model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="does not support Flash Attention"):
        model.set_attn_implementation("flash_attention_2")


def test_flash_attention_of_gemma_2_becomes_eager(gemma_like: Any) -> None:
    """It has no SDPA; what sees has."""
    model = tiny_vla_plus("paligemma2", gemma_like)
    model.config._attn_implementation = "flash_attention_2"
    again = type(model)(model.config)
    assert again.get_decoder().config._attn_implementation == "eager"
    assert again.vlm.model.vision_tower.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("bits", [8, 4])
def test_the_switches_for_quantised_weights(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they become; bitsandbytes itself does not run in these tests."""
    passed: dict[str, Any] = {}

    class Base:
        @classmethod
        def from_pretrained(cls, *args: Any, output_loading_info: bool, **kwargs: Any) -> Any:
            passed.update(kwargs)
            return SimpleNamespace(missing_weights=()), {"missing_keys": set(), "mismatched_keys": set()}

    class Model(openvla_contract.OpenVLAContractMixin, Base):
        pass

    monkeypatch.setattr(openvla_contract, "BitsAndBytesConfig", dict)
    Model.from_pretrained("name", **{f"load_in_{bits}bit": True}, low_cpu_mem_usage=True)
    expected = {"load_in_8bit": bits == 8, "load_in_4bit": bits == 4}
    assert passed == {"quantization_config": expected, "low_cpu_mem_usage": True}


def test_switches_that_do_not_go_together_raise() -> None:
    with pytest.raises(ValueError, match="got load_in_8bit and load_in_4bit, expected one of them"):
        OpenVLAPlusForVision2Seq.from_pretrained("name", load_in_8bit=True, load_in_4bit=True)
    with pytest.raises(ValueError, match="beside a quantization_config"):
        OpenVLAPlusForVision2Seq.from_pretrained("name", load_in_8bit=True, quantization_config=BitsAndBytesConfig())


def test_the_model_brings_its_own_prompt(folder: Path) -> None:
    """The two lines of docs/how_to/convert.md that cannot go wrong, against what its words warn of."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor.action_inputs(picture(), "Pick up the can ")
    same = processor(processor.action_prompt("Pick up the can "), picture())
    assert same["input_ids"].tolist() == inputs["input_ids"].tolist()
    own = inputs["input_ids"][0].tolist()
    spaced = PROMPT.replace("?", " ?") + " "  # blanks that no prompt of training has do not count
    for prompt, right in ((PROMPT, True), (PROMPT + " ", True), (spaced, True), ("pick up the can", False)):
        ids = processor(prompt, picture())["input_ids"][0].tolist()
        assert (ids + processor.action_config["lead_in_ids"] == own) == right


def test_statistics_are_read_on_the_model(folder: Path) -> None:
    """The LIBERO script's search for its key."""
    vla, key = load(folder), "libero_spatial"
    if key not in vla.norm_stats and f"{key}_no_noops" in vla.norm_stats:
        key = f"{key}_no_noops"
    assert key == "libero_spatial_no_noops"
    np.testing.assert_allclose(act(vla, folder, key)[:2], act(vla, folder)[:2] * 0.5, rtol=1e-5)
    assert vla.get_action_dim(key) == 3
    assert vla.get_action_stats(key)["q99"] == [0.5, 1.0, 1.5]
    with pytest.raises(ValueError, match=r"got unnorm_key='libero_spatial', .*did you mean 'libero_spatial_no_noops'"):
        act(vla, folder, "libero_spatial")


def test_statistics_are_replaced_on_the_model(folder: Path, tmp_path: Path) -> None:
    """`vla.norm_stats = json.load(...)`, after which actions are in those units, also once saved and loaded."""
    vla = load(folder)
    before = act(vla, folder)
    (tmp_path / "dataset_statistics.json").write_text(json.dumps({"mine": tiny_statistics(3, scale=100.0)}))
    vla.norm_stats = json.loads((tmp_path / "dataset_statistics.json").read_text())
    for key in ("mine", None):
        np.testing.assert_allclose(act(vla, folder, key)[:2], before[:2] * 100.0, rtol=1e-5)
    vla.norm_stats["second"] = tiny_statistics(3)
    np.testing.assert_array_equal(act(vla, folder, "second"), before)
    vla.save_pretrained(tmp_path / "saved")
    assert list(load(tmp_path / "saved").norm_stats) == ["mine", "second"]


def test_statistics_of_one_data_set_are_not_taken_for_all(folder: Path) -> None:
    vla = load(folder)
    with pytest.raises(ValueError, match=r"whose entry 'num_transitions' has no 'action', expected \{data set:"):
        vla.norm_stats = {"num_transitions": 10}
    with pytest.raises(ValueError, match="whose entry 'bridge_orig' has no 'action'"):
        vla.norm_stats = {"bridge_orig": tiny_statistics(3)["action"]}
    assert "bridge_orig" in vla.norm_stats


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_statistics_of_numpy_and_torch_are_saved(folder: Path, tmp_path: Path, kind: Any) -> None:
    """Set as a whole and added to what is there; kept as lists, so that they act alike after saving and loading."""
    vla: Any = load(folder)
    by_hand = {"q01": kind([-1.0, -2.0, 0.0]), "q99": kind([1.0, 2.0, 1.0]), "mask": kind([True, True, False])}
    vla.norm_stats = {"mine": {"action": by_hand, "num_transitions": np.int64(3)}}
    assert vla.norm_stats["mine"]["action"]["q99"] == [1.0, 2.0, 1.0]
    vla.config.norm_stats["second"] = {"action": by_hand}
    action = act(vla, folder, "second")
    vla.save_pretrained(tmp_path)
    again = load(tmp_path)
    np.testing.assert_array_equal(act(again, folder, "mine"), action)
    np.testing.assert_array_equal(act(again, folder, "second"), action)
    assert again.norm_stats["mine"] == vla.norm_stats["mine"]
    assert again.norm_stats["mine"]["num_transitions"] == 3


def test_broken_statistics_do_not_get_in(folder: Path, tmp_path: Path) -> None:
    """By a setter, by config.json, where JSON as Python reads it may hold NaN, or added to what is there."""
    vla: Any = load(folder)
    broken = {"action": {"q01": [0.0] * 3, "q99": [1.0, float("nan"), 1.0]}}
    with pytest.raises(ValueError, match=r"of 'mine' with q99=\[1.0, nan, 1.0\]"):
        vla.norm_stats = {"mine": broken}
    with pytest.raises(ValueError, match=r"of 'mine' with q99=\[1.0, nan, 1.0\]"):
        vla.config.norm_stats = {"mine": broken}
    with pytest.raises(ValueError, match="got norm_stats of type list"):
        vla.norm_stats = [broken]
    assert list(vla.norm_stats) == ["bridge_orig", "libero_spatial_no_noops"]
    settings = json.loads((folder / "config.json").read_text())
    settings["norm_stats"]["mine"] = broken
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="of 'mine' with q99"):
        type(vla.config).from_pretrained(tmp_path)
    vla.config.norm_stats["mine"] = broken
    with pytest.raises(ValueError, match="of 'mine' with q99"):
        act(vla, folder, "mine")
    with pytest.raises(ValueError, match="of 'mine' with q99"):
        vla.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_statistics_lie_beside_saved_weights(folder: Path, llama_like: Any, tmp_path: Path) -> None:
    """Where OpenVLA's deploy.py looks for them; a model that was never trained to act has none."""
    statistics = json.loads((folder / "dataset_statistics.json").read_text())
    assert statistics == json.loads((folder / "config.json").read_text())["norm_stats"]
    assert list(statistics) == ["bridge_orig", "libero_spatial_no_noops"]
    tiny_model(llama_like).save_pretrained(tmp_path)
    assert (tmp_path / "config.json").exists()
    assert not (tmp_path / "dataset_statistics.json").exists()
