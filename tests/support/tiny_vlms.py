"""Tiny random vision-language models of transformers' own classes, and left-padded batches for them.

A picture is 4 image tokens, 5 in LLaVA-OneVision, 10 in LLaVA-NeXT, which adds a tile of two lines.
"""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_models import tiny_statistics, tiny_tokenizer, with_large_weights

from gen_vla.modeling import VLAPlusConfig, VLAPlusForVision2Seq
from gen_vla.processors import ActionStringProcessor, make_action_config, read_stock, with_actions


FAMILIES = (
    "gemma3",
    "idefics3",
    "internvl",
    "llava",
    "llava_next",
    "llava_onevision",
    "paligemma",
    "paligemma2",
    "qwen2_5_vl",
    "qwen3_vl",
    "smolvlm",
)
TOKENS = 4  # of a picture
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "vision_use_head": False,
}
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}


def text_settings(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """A language model of two layers."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": 512,
        **more,
    }


def tiny_vlm_config(family: str, tokenizer: Any, **text: Any) -> Any:
    """A configuration of a family, `text` settings of its language model."""
    image: dict[str, Any] = {"image_token_id": tokenizer.convert_tokens_to_ids("<image>")}
    if "tie_word_embeddings" in text:  # transformers 5 reads it from the whole model's
        image["tie_word_embeddings"] = text["tie_word_embeddings"]
    encoder = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if family.startswith("qwen"):
        rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
        vision = {"depth": 3, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32}
        vision |= {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
        if family == "qwen2_5_vl":
            config, vision = transformers.Qwen2_5_VLConfig, {**vision, "window_size": 16, "fullatt_block_indexes": [1]}
        else:
            config = transformers.Qwen3VLConfig
            vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
            rope |= {"mrope_interleaved": True}
        settings = text_settings(tokenizer, rope_parameters=rope, **text)
        marks: dict[str, Any] = {
            "video_token_id": len(tokenizer) - 3,
            "vision_start_token_id": tokenizer.get_vocab().get("<|vision_start|>", 5),
            "vision_end_token_id": tokenizer.get_vocab().get("<|vision_end|>", 6),
        }
        return config(text_config=settings, vision_config=vision, **image, **marks)
    if family.startswith("paligemma"):
        kind = {"model_type": "gemma"}
        if family == "paligemma2":
            kind = {"model_type": "gemma2", **SLIDING, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}
        settings = text_settings(tokenizer, **{**kind, **text})
        return transformers.PaliGemmaConfig(text_config=settings, vision_config=SIGLIP, projection_dim=32, **image)
    if family == "gemma3":
        settings = text_settings(tokenizer, **{**SLIDING, "query_pre_attn_scalar": 8, **text})
        return transformers.Gemma3Config(
            text_config=settings, vision_config=SIGLIP, mm_tokens_per_image=TOKENS, **image
        )
    if family in ("smolvlm", "idefics3"):
        config = transformers.SmolVLMConfig if family == "smolvlm" else transformers.Idefics3Config
        settings = text_settings(tokenizer, model_type="llama", **text)
        vision = {**encoder, "image_size": 16, "patch_size": 4}
        pad: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id}
        return config(text_config=settings, vision_config=vision, scale_factor=2, **image, **pad)
    settings = text_settings(tokenizer, **{"model_type": "qwen2", **text})
    if family == "internvl":
        vision = {**encoder, "image_size": [16, 16], "patch_size": [4, 4]}
        sizes: dict[str, Any] = {"image_seq_length": TOKENS, "downsample_ratio": 0.5}
        return transformers.InternVLConfig(text_config=settings, vision_config=vision, **sizes, **image)
    choice: dict[str, Any] = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    if family in ("llava_next", "llava_onevision"):
        config = transformers.LlavaNextConfig if family == "llava_next" else transformers.LlavaOnevisionConfig
        return config(text_config=settings, vision_config=SIGLIP, image_grid_pinpoints=[[8, 8]], **choice, **image)
    return transformers.LlavaConfig(text_config=settings, vision_config=SIGLIP, **choice, **image)


def tiny_vla_plus(
    family: str, tokenizer: Any = None, strings: Any = None, seed: int = 0, frozen: str | None = "vision", **text: Any
) -> VLAPlusForVision2Seq:
    """A model with large random weights, whose two encoders differ, an action format and statistics."""
    tokenizer = tokenizer or tiny_tokenizer("gemma_like")
    strings = strings or ActionStringProcessor(3, decimals=3)
    model = copy.deepcopy(built(tiny_vlm_config(family, tokenizer, **text).to_json_string(), frozen))
    model.config.action_config = make_action_config(strings, tokenizer)
    model.config.norm_stats = {"tiny": tiny_statistics(strings.action_dim)}
    torch.manual_seed(seed)
    return with_large_weights(model)


@cache
def built(vlm_config: str, frozen: str | None) -> VLAPlusForVision2Seq:
    """A model of a configuration, to copy, which takes a fifth of the time of building it."""
    torch.manual_seed(0)
    return VLAPlusForVision2Seq(VLAPlusConfig(json.loads(vlm_config), frozen=frozen))


def tiny_inputs(model: VLAPlusForVision2Seq, lengths: tuple[int, ...] = (3, 9), seed: int = 0) -> dict[str, Any]:
    """A left-padded batch, each row a picture and so many words; ends in the lead-in."""
    config, draw = model.config.vlm_config, torch.Generator().manual_seed(seed)
    rows, family = len(lengths), config.model_type
    count = {"llava_next": 10, "llava_onevision": 5}.get(family, TOKENS)
    image, end = [model.config.image_token_id] * count, model.config.action_config["lead_in_ids"]
    if family.startswith("qwen"):
        image = [config.vision_start_token_id, *image, config.vision_end_token_id]
    texts = [[1, *image, *torch.randint(40, 120, (length,), generator=draw).tolist(), *end] for length in lengths]
    width = max(map(len, texts))
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor(
            [[config.get_text_config().pad_token_id] * (width - len(row)) + row for row in texts]
        ),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in texts]),
    }
    shape = {
        "smolvlm": (rows, 1, 3, 16, 16),
        "idefics3": (rows, 1, 3, 16, 16),
        "internvl": (rows, 3, 16, 16),
        "llava_next": (rows, 2, 3, 8, 8),
        "llava_onevision": (rows, 1, 3, 8, 8),
        "qwen2_5_vl": (rows * 16, 3 * 2 * 4 * 4),
        "qwen3_vl": (rows * 16, 3 * 2 * 4 * 4),
    }.get(family, (rows, 3, 8, 8))
    inputs["pixel_values"] = torch.randn(shape, generator=draw)
    images = (inputs["input_ids"] == model.config.image_token_id).long()
    if family.startswith("qwen"):
        inputs |= {"image_grid_thw": torch.tensor([[1, 4, 4]] * rows), "mm_token_type_ids": images.int()}
    if family in ("llava_next", "llava_onevision"):
        inputs["image_sizes"] = torch.tensor([[8, 8]] * rows)
    if family == "llava_onevision":
        inputs["batch_num_images"] = torch.tensor([2] * rows)
    if family in ("paligemma", "gemma3"):
        inputs["token_type_ids"] = images if family == "gemma3" else torch.zeros_like(images)
    return inputs


SPECIAL_TOKENS = {
    "image_token": "<image>",
    "context_image_token": "<image>",
    "video_token": "<video>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROCESSORS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    # The stock class, its image processor and that one's settings, its own settings.
    "gemma3": (
        "Gemma3Processor",
        "Gemma3ImageProcessor",
        {"size": {"height": 8, "width": 8}},
        {"image_seq_length": 4},
    ),
    "idefics3": ("Idefics3Processor", "Idefics3ImageProcessor", {"size": {"longest_edge": 16}}, {"image_seq_len": 4}),
    "internvl": (
        "InternVLProcessor",
        "GotOcr2ImageProcessor",
        {"size": {"height": 16, "width": 16}},
        {"image_seq_length": 4},
    ),
    "llava": (
        "LlavaProcessor",
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}},
        {"patch_size": 4, "vision_feature_select_strategy": "full"},
    ),
    "llava_next": (
        "LlavaNextProcessor",
        "LlavaNextImageProcessor",
        {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}, "image_grid_pinpoints": [[8, 8]]},
        {"patch_size": 4, "vision_feature_select_strategy": "full"},
    ),
    "llava_onevision": (
        "LlavaOnevisionProcessor",
        "LlavaOnevisionImageProcessor",
        {"size": {"height": 8, "width": 8}, "image_grid_pinpoints": [[8, 8]]},
        {"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
    ),
    "paligemma": ("PaliGemmaProcessor", "SiglipImageProcessor", {"size": {"height": 8, "width": 8}}, {}),
    "qwen2_5_vl": (
        "Qwen2_5_VLProcessor",
        "Qwen2VLImageProcessor",
        {"patch_size": 4, "merge_size": 2, "min_pixels": 256, "max_pixels": 256},
        {},
    ),
    "smolvlm": ("SmolVLMProcessor", "SmolVLMImageProcessor", {"size": {"longest_edge": 16}}, {"image_seq_len": 4}),
}
PROCESSORS |= {"paligemma2": PROCESSORS["paligemma"]}
PROCESSORS |= {"qwen3_vl": ("Qwen3VLProcessor", *PROCESSORS["qwen2_5_vl"][1:])}


CHAT_MARKS = ("<|im_start|>", "<|im_end|>")


def tiny_vlm_tokenizer() -> Any:
    """A tokenizer with the tokens that the stock processors look for."""
    tokenizer = tiny_tokenizer("gemma_like")
    tokenizer.add_special_tokens({"additional_special_tokens": [*dict.fromkeys(SPECIAL_TOKENS.values()), *CHAT_MARKS]})
    return tokenizer


def write_base_processor(family: str, folder: Path) -> Any:
    """Writes a folder with the processor files of a base model; returns its tokenizer."""
    stock_class, image_class, picture, own = PROCESSORS[family]
    image_processor = getattr(transformers, image_class)(**picture)
    if family in ("smolvlm", "idefics3"):
        image_processor.max_image_size = {"longest_edge": 16}
    if family.startswith("paligemma"):
        image_processor.image_seq_length = TOKENS
    image_processor.save_pretrained(folder)
    tokenizer = tiny_vlm_tokenizer()
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["extra_special_tokens"] = SPECIAL_TOKENS
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": stock_class, **own}))
    if not family.startswith("paligemma"):
        image = SPECIAL_TOKENS["boi_token"] if family == "gemma3" else "<image>"
        if family.startswith("qwen"):  # whose positions need something between two pictures
            image = f"<|vision_start|>{image}<|vision_end|>"
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("IMAGE", image))
    return tokenizer


def tiny_vla_pair(family: str, folder: Path, strings: Any = None, **settings: Any) -> tuple[Any, Any]:
    """A tiny model and the processor that belongs to it, whose base files are written into a folder."""
    strings = strings or ActionStringProcessor(3, decimals=3)
    write_base_processor(family, folder)
    processor = read_stock(folder, getattr(transformers, PROCESSORS[family][0]))
    processor = with_actions(processor, make_action_config(strings, processor.tokenizer))
    return tiny_vla_plus(family, processor.tokenizer, strings, **settings), processor
