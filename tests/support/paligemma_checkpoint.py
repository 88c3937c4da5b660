"""A small PaliGemma in the layout of the published files, for conversions."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_models import IMAGE_SIZE, IMAGE_TOKENS, tiny_tokenizer, with_large_weights
from tokenizers import Tokenizer
from transformers import (
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)


TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8}
TEXT |= {"num_key_value_heads": 1, "head_dim": 8}
VISION = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 16}
VISION |= {"patch_size": 4, "image_size": IMAGE_SIZE}


def gemma_tokenizer() -> Tokenizer:
    """The tiny Gemma-like vocabulary with Gemma's names and ids: `<pad>`, `<eos>`, `<bos>`, `<unk>`, then the rest."""
    content = json.loads(tiny_tokenizer("gemma_like").backend_tokenizer.to_str())
    small = content["model"]["vocab"]
    kept = [piece for piece in sorted(small, key=lambda piece: small[piece]) if piece not in ("<unk>", "<s>", "</s>")]
    content["model"]["vocab"] = {
        piece: number for number, piece in enumerate(("<pad>", "<eos>", "<bos>", "<unk>", *kept))
    }
    content["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>", "<image>"])
    return tokenizer


def stock_paligemma() -> Any:
    """transformers' model; its vocabulary has room for the tokens that the processor adds."""
    torch.manual_seed(5)
    config = PaliGemmaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            **VISION,
            "projection_dim": TEXT["hidden_size"],
            "vision_use_head": False,
        },
        text_config={"model_type": "gemma", **TEXT, "vocab_size": 2048, "pad_token_id": 0},
        image_token_index=gemma_tokenizer().token_to_id("<image>") or 0,
        projection_dim=TEXT["hidden_size"],
        hidden_size=TEXT["hidden_size"],
    )
    model = with_large_weights(PaliGemmaForConditionalGeneration(config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def published(stock: Any) -> dict[str, torch.Tensor]:
    """Tensors under the names of the published files, which transformers 4.41 wrote."""
    renamed = {}
    for name, tensor in stock.state_dict().items():
        if name == "lm_head.weight":
            continue
        name = name.removeprefix("model.").replace("language_model.", "language_model.model.")
        if "vision_model" not in name:
            name = name.replace("vision_tower.", "vision_tower.vision_model.")
        renamed[name] = tensor.clone()
    return renamed


def write_paligemma(folder: Path, stock: Any, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """PaliGemma's Hub layout: weights as `published`, the image processor in a file of its own."""
    folder.mkdir()
    stock.config.save_pretrained(folder)
    save_file(tensors or published(stock), folder / "model.safetensors", metadata={"format": "pt"})
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    tokenizer, widened = (
        PreTrainedTokenizerFast(
            tokenizer_object=gemma_tokenizer(), **special, additional_special_tokens=["<image>"], padding_side="left"
        )
        for _ in range(2)
    )
    pixels: Any = SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5, 0.25, 0.5])
    pixels.image_seq_length = IMAGE_TOKENS
    PaliGemmaProcessor(pixels, widened).save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # without the <loc> tokens that the processor adds where they are missing
    together = folder / "processor_config.json"
    settings = json.loads(together.read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings.pop("image_processor")))
    together.write_text(json.dumps(settings))
    return folder
