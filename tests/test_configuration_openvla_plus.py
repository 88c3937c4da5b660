"""The configuration: full-size defaults, errors, and that every field survives config.json."""

from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_config, tiny_statistics

from gen_vla.modeling import OpenVLAPlusConfig
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
