"""The configuration: full-size defaults, errors, and that every field survives config.json."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import tiny_config, tiny_pi0_config, tiny_pi0_flow_config, tiny_statistics
from transformers import Gemma2Config, GemmaConfig, LlamaConfig

from gen_vla.modeling import OpenVLAPlusConfig, Pi0FlowConfig, Pi0PlusConfig
from gen_vla.processors import PROMPT_TEMPLATE, ActionStringProcessor


def test_configuration_defaults_and_errors() -> None:
    config = OpenVLAPlusConfig()
    assert config.num_image_tokens == 256
    assert config.frozen == "siglip"
    assert (config.dino_config.hidden_size, config.siglip_config.hidden_size) == (1024, 1152)
    assert (config.text_config.vocab_size, config.text_config.hidden_size) == (32064, 4096)
    with pytest.raises(ValueError, match="got frozen='llama', expected one of 'siglip', 'dino', None"):
        OpenVLAPlusConfig(frozen="llama")
    with pytest.raises(ValueError, match=r"got {'dino': 4, 'siglip': 256} patches per encoder, expected the same"):
        OpenVLAPlusConfig(dino_config={"image_size": 8, "patch_size": 4})


@pytest.mark.parametrize("frozen", ["siglip", "dino", None])
def test_every_field_survives_saving(llama_like: Any, tmp_path: Path, frozen: str | None) -> None:
    config = tiny_config(
        llama_like,
        ActionStringProcessor(action_dim=3, horizon=2, binary_dims=[2]),
        frozen=frozen,
        prompt_template=PROMPT_TEMPLATE,
        tie_word_embeddings=True,
        norm_stats={"a": tiny_statistics(3), "b": tiny_statistics(3, 2.0)},
    )
    config.save_pretrained(tmp_path)
    loaded = OpenVLAPlusConfig.from_pretrained(tmp_path)
    for name in ("frozen", "image_token_id", "action_config", "norm_stats", "prompt_template", "tie_word_embeddings"):
        assert getattr(loaded, name) == getattr(config, name), name
    assert loaded.frozen == frozen
    assert loaded.tie_word_embeddings is loaded.text_config.tie_word_embeddings is True
    assert loaded.num_image_tokens == 4
    for name in ("dino_config", "siglip_config", "text_config"):
        assert getattr(loaded, name).to_dict() == getattr(config, name).to_dict(), name
        assert type(getattr(loaded, name)) is type(getattr(config, name))
    assert set(loaded.auto_map) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForImageTextToText",
        "AutoModelForVision2Seq",
    }


@pytest.mark.parametrize(
    ("config_class", "text_config", "outer", "tied"),
    [
        (OpenVLAPlusConfig, None, None, False),
        (OpenVLAPlusConfig, {"hidden_size": 64}, True, True),
        (OpenVLAPlusConfig, {"tie_word_embeddings": True}, None, True),
        (OpenVLAPlusConfig, LlamaConfig(tie_word_embeddings=True), None, True),
        (OpenVLAPlusConfig, LlamaConfig(), None, False),
        (Pi0PlusConfig, None, None, True),
        (Pi0PlusConfig, {"model_type": "gemma"}, False, False),
        (Pi0PlusConfig, GemmaConfig(tie_word_embeddings=False), None, False),
        (Pi0PlusConfig, GemmaConfig(), True, True),
    ],
)
def test_embeddings_are_tied_as_the_text_configuration_says(
    config_class: Any, text_config: Any, outer: bool | None, tied: bool, tmp_path: Path
) -> None:
    config = config_class(text_config=text_config, tie_word_embeddings=outer)
    config.save_pretrained(tmp_path)
    for each in (config, config_class.from_pretrained(tmp_path)):
        assert each.tie_word_embeddings is each.text_config.tie_word_embeddings is tied


@pytest.mark.parametrize(
    ("config_class", "text_config", "outer"),
    [
        (OpenVLAPlusConfig, {"tie_word_embeddings": True}, False),
        (OpenVLAPlusConfig, LlamaConfig(), True),
        (Pi0PlusConfig, GemmaConfig(), False),
        (Pi0PlusConfig, {"model_type": "gemma", "tie_word_embeddings": False}, True),
    ],
)
def test_two_answers_whether_embeddings_are_tied(config_class: Any, text_config: Any, outer: bool) -> None:
    with pytest.raises(ValueError, match=f"tie_word_embeddings={outer} with a text_config that says {not outer}"):
        config_class(text_config=text_config, tie_word_embeddings=outer)


def test_what_a_caller_gave_is_not_changed(llama_like: Any, gemma_like: Any) -> None:
    openvla, pi0 = tiny_config(llama_like), tiny_pi0_config(gemma_like)
    flow: Any = tiny_pi0_flow_config(gemma_like)
    flow.vlm_config.text_config.use_bidirectional_attention = None  # PI0Config sets it
    pi0.text_config.use_bidirectional_attention = True  # Pi0PlusConfig unsets it
    given = [openvla.text_config, openvla.dino_config, pi0.text_config, pi0.vision_config, flow.vlm_config]
    before = [part.to_dict() for part in given]
    rope = {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}
    OpenVLAPlusConfig(openvla.dino_config, openvla.siglip_config, openvla.text_config)
    OpenVLAPlusConfig(text_config=rope)
    Pi0PlusConfig(pi0.vision_config, pi0.text_config)
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
