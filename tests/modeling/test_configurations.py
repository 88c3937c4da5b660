"""The configurations of all families: defaults, errors, and that every field survives config.json."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import IMAGE_TOKENS, tiny_config, tiny_pi0_flow_config, tiny_statistics
from transformers import Gemma2Config, LlamaConfig

from gen_vla.modeling import OpenVLAPlusConfig, Pi0FlowConfig
from gen_vla.processors import (
    PROMPT_TEMPLATE,
    ActionBins,
    ActionStringProcessor,
    make_action_config,
    make_flow_action_config,
)


def test_configuration_defaults_and_errors() -> None:
    openvla = OpenVLAPlusConfig()
    assert (openvla.num_image_tokens, openvla.frozen) == (256, "siglip")
    assert (openvla.dino_config.hidden_size, openvla.siglip_config.hidden_size) == (1024, 1152)
    assert (openvla.text_config.vocab_size, openvla.text_config.hidden_size) == (32064, 4096)
    with pytest.raises(ValueError, match="got frozen='llama', expected one of 'siglip', 'dino', 'all', None"):
        OpenVLAPlusConfig(frozen="llama")
    with pytest.raises(ValueError, match=r"got {'dino': 4, 'siglip': 256} patches per encoder, expected the same"):
        OpenVLAPlusConfig(dino_config={"image_size": 8, "patch_size": 4})


@pytest.mark.parametrize("frozen", ["siglip", "dino", "all", None])
def test_every_field_survives_saving(frozen: str | None, llama_like: Any, tmp_path: Path) -> None:
    config = tiny_config(
        llama_like,
        ActionStringProcessor(action_dim=3, horizon=2, binary_dims=[2]),
        frozen=frozen,
        prompt_template=PROMPT_TEMPLATE,
        tie_word_embeddings=True,
        norm_stats={"a": tiny_statistics(3), "b": tiny_statistics(3, 2.0)},
    )
    config.save_pretrained(tmp_path)
    loaded = type(config).from_pretrained(tmp_path)
    for name in ("frozen", "image_token_id", "action_config", "norm_stats", "prompt_template", "tie_word_embeddings"):
        assert getattr(loaded, name) == getattr(config, name), name
    assert loaded.frozen == frozen
    assert loaded.tie_word_embeddings is loaded.text_config.tie_word_embeddings is True
    assert loaded.num_image_tokens == 4
    for name in config.sub_configs:
        assert getattr(loaded, name).to_dict() == getattr(config, name).to_dict(), name
        assert type(getattr(loaded, name)) is type(getattr(config, name))
    autos = {"AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForVision2Seq"}
    assert set(loaded.auto_map) == autos


@pytest.mark.parametrize(
    ("text_config", "outer", "tied"),
    [
        (None, None, False),
        ({"hidden_size": 64}, True, True),
        ({"tie_word_embeddings": True}, None, True),
        (LlamaConfig(tie_word_embeddings=True), None, True),
        (LlamaConfig(), None, False),
    ],
)
def test_embeddings_are_tied_as_the_text_configuration_says(
    text_config: Any, outer: bool | None, tied: bool, tmp_path: Path
) -> None:
    config = OpenVLAPlusConfig(text_config=text_config, tie_word_embeddings=outer)
    config.save_pretrained(tmp_path)
    for each in (config, OpenVLAPlusConfig.from_pretrained(tmp_path)):
        assert each.tie_word_embeddings is each.text_config.tie_word_embeddings is tied


@pytest.mark.parametrize(("text_config", "outer"), [({"tie_word_embeddings": True}, False), (LlamaConfig(), True)])
def test_two_answers_whether_embeddings_are_tied(text_config: Any, outer: bool) -> None:
    with pytest.raises(ValueError, match=f"tie_word_embeddings={outer} with a text_config that says {not outer}"):
        OpenVLAPlusConfig(text_config=text_config, tie_word_embeddings=outer)


def test_what_a_caller_gave_is_not_changed(llama_like: Any, gemma_like: Any) -> None:
    openvla = tiny_config(llama_like)
    flow: Any = tiny_pi0_flow_config(gemma_like)
    flow.vlm_config.text_config.use_bidirectional_attention = None  # PI0Config sets it
    given = [openvla.text_config, openvla.dino_config, flow.vlm_config]
    before = [part.to_dict() for part in given]
    rope = {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}
    OpenVLAPlusConfig(openvla.dino_config, openvla.siglip_config, openvla.text_config)
    OpenVLAPlusConfig(text_config=rope)
    Pi0FlowConfig(vlm_config=flow.vlm_config, dit_config=flow.dit_config)
    assert [part.to_dict() for part in given] == before
    assert rope == {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}


def test_a_language_model_that_changes_its_logits_is_refused() -> None:
    with pytest.raises(ValueError, match="model_type 'gemma2' with final_logit_softcapping=30"):
        OpenVLAPlusConfig(text_config=Gemma2Config())


def test_statistics_that_were_added_as_arrays_are_written(llama_like: Any, tmp_path: Path) -> None:
    config = tiny_config(llama_like)
    config.norm_stats = config.norm_stats or {}
    config.norm_stats["added"] = {"action": {"q01": np.zeros(3), "q99": np.ones(3)}}
    config.save_pretrained(tmp_path)
    loaded = OpenVLAPlusConfig.from_pretrained(tmp_path)
    assert (loaded.norm_stats or {})["added"] == {"action": {"q01": [0.0] * 3, "q99": [1.0] * 3}}


def test_where_noise_is_stays_with_saved_weights(gemma_like: Any, tmp_path: Path) -> None:
    """A configuration that was saved before the field existed has no noise in the padding, a new one has."""
    for expected in (True, False):
        config = tiny_pi0_flow_config(gemma_like, noise_in_padding=expected)
        config.save_pretrained(tmp_path)
        settings = json.loads((tmp_path / "config.json").read_text())
        assert settings.pop("noise_in_padding") is expected
        assert Pi0FlowConfig.from_pretrained(tmp_path).noise_in_padding is expected
        assert Pi0FlowConfig.from_pretrained(tmp_path).flow_dim == (8 if expected else 3)
        (tmp_path / "config.json").write_text(json.dumps(settings))
        assert Pi0FlowConfig.from_pretrained(tmp_path).noise_in_padding is False
    assert Pi0FlowConfig().noise_in_padding


def test_the_configuration_of_a_flow(gemma_like: Any) -> None:
    config: Any = tiny_pi0_flow_config(gemma_like)
    assert config.frozen is None
    assert config.num_image_tokens == IMAGE_TOKENS
    assert config.image_token_id == gemma_like.convert_tokens_to_ids("<image>")
    config.image_token_id = 7
    assert config.vlm_config.image_token_id == 7
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"action_config": make_flow_action_config(3, 5)}, "horizon=5, expected chunk_size, which is 4"),
        ({"action_config": make_flow_action_config(9, 4)}, "action_dim=9, expected at most max_action_dim"),
        ({"action_config": make_action_config(ActionBins(3, 4), gemma_like)}, "representation='bins'"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            tiny_pi0_flow_config(gemma_like, **settings)


def test_an_older_transformers_lacks_only_what_needs_a_newer_one() -> None:
    script = """
import os
import trl.trainer.sft_trainer  # takes long
import transformers
for version in ("4.57.6", "5.16.1"):
    if os.fork():
        assert os.wait()[1] == 0
        continue
    transformers.__version__ = version
    import gen_vla.modeling as modeling
    import gen_vla.commands.main
    import gen_vla.training.run
    from gen_vla.training.checkpoints import family_named
    modeling.OpenVLAPlusConfig
    for missing in ("Pi0FlowConfig", "VLAPlusForVision2Seq"):
        try:
            getattr(modeling, missing)
        except ImportError as error:
            print(error)
    try:
        family_named("vla_plus")
    except ImportError as error:
        print(error)
    try:
        modeling.Pi0Config
    except AttributeError as error:
        print(error)
    break
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=240)
    for version in ("4.57.6", "5.16.1"):
        assert run.stdout.count(f"got transformers {version}, expected 5.17 or newer for the flow-matching π0") == 1
        assert run.stdout.count(f"got transformers {version}, expected 5.5 or newer for a stock VLM") == 2 * (
            version < "5"
        )
    assert run.stdout.count("has no attribute 'Pi0Config'") == 2
