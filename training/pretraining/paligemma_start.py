"""A small PaliGemma out of `package://mini-vlm`, on the way to a base for the flow-matching π0.

    python -m gen_vla.training.pretraining.paligemma_start outputs/questions outputs/paligemma

SigLIP and the language model are mini-vlm's. A Llama becomes a Gemma without loss: Gemma adds one to the weights of
its norms and multiplies embeddings by the root of their width, and mini-vlm's activation is kept. New is the linear
projector of SigLIP alone: least squares fit it to what mini-vlm's makes of both encoders, on pictures of recorded
questions. PaliGemma also reads a prompt in both directions, which `recipes/_mini_paligemma.yaml` trains.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import (
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

from gen_vla.training.checkpoints import load_model, load_processor
from gen_vla.training.converting.foreign_layouts import GEMMA_TOKENS, IMAGE_TOKEN, LLAMA_TOKENS
from gen_vla.training.model_building import initial_model_folder
from gen_vla.training.storage.recordings import load_recording


BASE = "package://mini-vlm"
PICTURES, BATCH = 2000, 50


def write_paligemma(questions: Path, folder: Path) -> None:
    """Writes a PaliGemma of transformers, float32; `questions` is a folder of recorded questions."""
    base = initial_model_folder(BASE, Path())
    vlm, processor = load_model(base), load_processor(base)
    size = vlm.config.siglip_config.image_size
    pictures: Any = SiglipImageProcessor(size={"height": size, "width": size})
    pictures.image_seq_length = processor.num_image_tokens
    stock = PaliGemmaProcessor(pictures, gemma_tokenizer(processor.tokenizer))
    torch.manual_seed(0)
    model = paligemma(vlm, stock)
    recorded = load_recording(questions, ("image",))
    fit_projector(model, vlm, processor, recorded.select(range(min(PICTURES, len(recorded)))))
    model.save_pretrained(folder)
    stock.save_pretrained(folder)


def gemma_tokenizer(tokenizer: Any) -> PreTrainedTokenizerFast:
    """The same tokens, of which the special ones have Gemma's names."""
    content = tokenizer.backend_tokenizer.to_str()
    for kind, name in LLAMA_TOKENS.items():
        content = content.replace(json.dumps(name), json.dumps(GEMMA_TOKENS[kind]))
    renamed = type(tokenizer.backend_tokenizer).from_str(content)
    return PreTrainedTokenizerFast(
        tokenizer_object=renamed, **GEMMA_TOKENS, additional_special_tokens=[IMAGE_TOKEN], padding_side="left"
    )


@torch.no_grad()
def paligemma(vlm: Any, processor: Any) -> Any:
    """The model with the weights of an `openvla_plus`; the projector's are random, and so are embeddings of tokens
    that PaliGemma's processor adds.
    """
    text, tokenizer = vlm.config.text_config, processor.tokenizer
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    names += ("head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters")
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    siglip = {**vlm.config.siglip_config.to_dict(), "projection_dim": text.hidden_size}
    siglip["num_hidden_layers"] -= 1  # its features come from the second-to-last block
    config = PaliGemmaConfig(
        vision_config=siglip,
        text_config={
            "model_type": "gemma",
            "vocab_size": len(tokenizer),
            "tie_word_embeddings": False,
            **special,
            **{name: getattr(text, name) for name in names},
        },
        image_token_index=processor.image_token_id,
        projection_dim=text.hidden_size,
        hidden_size=text.hidden_size,
        tie_word_embeddings=False,
        **special,
    )
    model = PaliGemmaForConditionalGeneration(config)
    vision, language = model.model.vision_tower, model.model.language_model
    vision.load_state_dict(
        {**vision.state_dict(), **vlm.model.vision_tower.siglip.state_dict()}
    )  # and a new last norm
    state = vlm.model.language_model.state_dict()
    words = state.pop("embed_tokens.weight")
    state = {name: weight - 1 if "norm" in name else weight for name, weight in state.items()}
    language.load_state_dict({"embed_tokens.weight": language.embed_tokens.weight, **state})
    language.embed_tokens.weight[: len(words)] = words / text.hidden_size**0.5
    model.lm_head.weight[: len(words)] = vlm.lm_head.weight
    return model.eval()


@torch.no_grad()
def fit_projector(gemma: Any, vlm: Any, processor: Any, pictures: Any) -> None:
    """Makes the projector of SigLIP's features what is closest to the image tokens of an `openvla_plus`."""
    features, tokens = [], []
    for first in tqdm(range(0, len(pictures), BATCH), "pictures", unit="batch"):
        pixels = processor.image_processor(pictures[first : first + BATCH]["image"], return_tensors="pt")[
            "pixel_values"
        ]
        features.append(gemma.model.vision_tower(pixels[:, 3:]).last_hidden_state.flatten(0, 1))
        tokens.append(vlm.model.get_image_features(pixels).flatten(0, 1))
    inputs = nn.functional.pad(torch.cat(features), (0, 1), value=1.0)
    fit = torch.linalg.lstsq(inputs, torch.cat(tokens)).solution
    linear = gemma.model.multi_modal_projector.linear
    linear.weight.copy_(fit[:-1].T)
    linear.bias.copy_(fit[-1])


if __name__ == "__main__":
    write_paligemma(Path(sys.argv[1]), Path(sys.argv[2]))
