"""Small tokenizers, processors and models that tests build in milliseconds.

The tokenizers merge what the real ones merge around actions and nothing else:

    llama_like   a space before the first word, "\\n" is the byte token <0x0A>, merges ",-" "▁-" ":-" "e-"
    gemma_like   no such space, "\\n" is a piece, merges these and "\\n\\n"

In both, digits and the point are always tokens of their own, as in the Llama-2 and Gemma vocabularies.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PaliGemmaProcessor, PreTrainedTokenizerFast, SiglipImageProcessor

from gen_vla import modeling  # for what an older transformers lacks
from gen_vla.modeling import OpenVLAPlusConfig, OpenVLAPlusForVision2Seq
from gen_vla.processors import (
    ActionBins,
    ActionStringProcessor,
    OpenVLAPlusImageProcessor,
    OpenVLAPlusProcessor,
    Pi0FlowProcessor,
    make_action_config,
    make_flow_action_config,
    with_actions,
)
from gen_vla.processors.robot_state import template_with_state


MERGES = [(",", "-"), ("▁", "-"), (":", "-"), ("e", "-"), ("O", "u"), ("Ou", "t"), ("I", "n"), ("▁", "two")]
IMAGE_SIZE = 8
IMAGE_TOKENS = 4  # patches of 4 pixels on 8 x 8


def tiny_tokenizer(
    kind: str = "llama_like", more_merges: Sequence[tuple[str, str]] = (), first_merges: Sequence[tuple[str, str]] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer with `<s>`, `</s>`, `<PAD>` and `<image>`; `kind` as in the docstring of this file.

    Args:
        more_merges, first_merges: merged after the usual ones, and before them.
    """
    gemma = kind == "gemma_like"
    merges = [*first_merges, *MERGES, ("t", "w"), ("tw", "o"), *([("\n", "\n")] if gemma else []), *more_merges]
    merges = list(dict.fromkeys(merges))
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", *map(chr, range(33, 127)), *(["\n"] if gemma else [])]
    words += ["".join(pair) for pair in merges]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    merges.sort(key=lambda pair: pair == ("▁", "two"))  # a merge comes after those that make its parts
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")  # type: ignore[assignment]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(  # type: ignore[assignment]
            replacement="▁", prepend_scheme="first", split=False
        )
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token=AddedToken("<s>", special=True, normalized=False),
        eos_token=AddedToken("</s>", special=True, normalized=False),
        pad_token=AddedToken("<PAD>", special=True, normalized=False),
        additional_special_tokens=[AddedToken("<image>", special=True, normalized=False)],
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
    )


def tiny_statistics(action_dim: int, scale: float = 1.0) -> dict[str, Any]:
    """Statistics of a made-up data set: dimension d ranges over [-(d + 1), d + 1] * scale, the last is a gripper."""
    width = [scale * (dim + 1) for dim in range(action_dim)]
    low, high = [-value for value in width], width
    mask = [True] * (action_dim - 1) + [False]
    action = {"mean": [0.0] * action_dim, "std": [1.0] * action_dim, "min": low, "max": high, "mask": mask}
    return {"action": {**action, "q01": low, "q99": high}, "num_transitions": 10, "num_trajectories": 2}


def vision_settings(**settings: Any) -> dict[str, Any]:
    """A SigLIP of width 16 with 2 layers."""
    size = {"image_size": IMAGE_SIZE, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "intermediate_size": 32}
    return {"model_type": "siglip_vision_model", **size, **heads, **settings}


def text_settings(tokenizer: Any, **settings: Any) -> dict[str, Any]:
    """A language model of 2 layers."""
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 512, **tokens, **settings}


def action_settings(tokenizer: Any, strings: ActionStringProcessor | ActionBins | None) -> dict[str, Any]:
    """What a configuration says of images and actions."""
    return {
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "action_config": make_action_config(strings, tokenizer) if strings else None,
        "norm_stats": {"tiny": tiny_statistics(strings.action_dim)} if strings else None,
    }


def tiny_config(tokenizer: Any, strings: Any = None, **settings: Any) -> OpenVLAPlusConfig:
    """Two encoders of width 16, a Llama of width 32 with 2 layers each."""
    siglip = vision_settings()
    dino = {name: siglip[name] for name in siglip if name != "intermediate_size"}
    return OpenVLAPlusConfig(
        **{
            "dino_config": {**dino, "model_type": "dinov2_with_registers", "mlp_ratio": 2, "num_register_tokens": 2},
            "siglip_config": siglip,
            "text_config": text_settings(tokenizer, model_type="llama", hidden_size=32, num_key_value_heads=2),
            **action_settings(tokenizer, strings),
            **settings,
        }
    )


def tiny_paligemma(tokenizer: Any) -> dict[str, Any]:
    """Settings of a PaliGemma: a SigLIP of width 16 and a Gemma of width 64, 2 layers each."""
    heads = {"num_key_value_heads": 1, "head_dim": 8}
    return {
        "model_type": "paligemma",
        "vision_config": vision_settings(vision_use_head=False, projection_dim=64),
        "text_config": text_settings(tokenizer, model_type="gemma", hidden_size=64, **heads),
        "projection_dim": 64,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
    }


def tiny_pi0_config(tokenizer: Any, strings: Any = None, **settings: Any) -> Any:
    """That of a π0+ over `tiny_paligemma`."""
    actions = action_settings(tokenizer, strings)
    del actions["image_token_id"]
    return modeling.VLAPlusConfig(**{"vlm_config": tiny_paligemma(tokenizer), **actions, **settings})


def tiny_pi0_flow_config(tokenizer: Any, action_dim: int = 3, horizon: int = 4, **settings: Any) -> Any:
    """That of a π0 over `tiny_paligemma`; the last of `action_dim`, of at most 8, is a gripper."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8}
    return modeling.Pi0FlowConfig(
        **{
            "vlm_config": tiny_paligemma(tokenizer),
            "dit_config": {"model_type": "gemma", "hidden_size": 32, "intermediate_size": 64, **sizes},
            "chunk_size": horizon,
            "max_action_dim": 8,
            "max_state_dim": 8,
            "noise_in_padding": False,
            "action_config": make_flow_action_config(action_dim, horizon, binary_dims=[action_dim - 1]),
            "norm_stats": {"tiny": tiny_statistics(action_dim)},
            **settings,
        }
    )


def with_large_weights(model: Any) -> Any:
    """The model in evaluation mode, its weights drawn again with a standard deviation of 0.2."""
    with torch.no_grad():
        for parameter in model.eval().parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    return model


def tiny_model(tokenizer: Any, strings: Any = None, seed: int = 0, **settings: Any) -> Any:
    """A float32 model in evaluation mode whose random weights are large enough for pictures and words to matter."""
    torch.manual_seed(seed)
    return with_large_weights(OpenVLAPlusForVision2Seq(tiny_config(tokenizer, strings, **settings)))


def tiny_pi0_model(tokenizer: Any, strings: Any = None, seed: int = 0, **settings: Any) -> Any:
    """As `tiny_model`, for π0+."""
    torch.manual_seed(seed)
    return with_large_weights(modeling.VLAPlusForVision2Seq(tiny_pi0_config(tokenizer, strings, **settings)))


def tiny_pi0_flow_model(tokenizer: Any, action_dim: int = 3, horizon: int = 4, seed: int = 0, **settings: Any) -> Any:
    """As `tiny_model`, for the flow-matching π0; `settings` are fields of its configuration."""
    torch.manual_seed(seed)
    config = tiny_pi0_flow_config(tokenizer, action_dim, horizon, **settings)
    return with_large_weights(modeling.Pi0FlowForActionPrediction(config))


def build_processor(processor_class: Any, tokenizer: Any, action_config: Any, **settings: Any) -> Any:
    """A processor; those of π0 normalise pictures once."""
    half: dict[str, Any] = {"means": [[0.5] * 3], "stds": [[0.5] * 3]}
    if processor_class is OpenVLAPlusProcessor:
        half = {}
    images = OpenVLAPlusImageProcessor(image_size=IMAGE_SIZE, **half)
    return processor_class(images, tokenizer, IMAGE_TOKENS, action_config, **settings)


def tiny_processor(tokenizer: Any, strings: Any = None, **settings: Any) -> Any:
    """The processor that belongs to `tiny_config`."""
    action_config = make_action_config(strings, tokenizer) if strings else None
    return build_processor(OpenVLAPlusProcessor, tokenizer, action_config, **settings)


def tiny_pi0_processor(tokenizer: Any, strings: Any = None, **settings: Any) -> Any:
    """The processor that belongs to `tiny_pi0_config`."""
    pictures: Any = SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    pictures.image_seq_length = IMAGE_TOKENS
    stock = PaliGemmaProcessor(pictures, copy.deepcopy(tokenizer))
    return with_actions(stock, make_action_config(strings, tokenizer) if strings else None, **settings)


def tiny_pi0_flow_processor(tokenizer: Any, action_dim: int = 3, horizon: int = 4, **settings: Any) -> Any:
    """The processor that belongs to `tiny_pi0_flow_config`."""
    action_config = make_flow_action_config(action_dim, horizon, binary_dims=[action_dim - 1])
    return build_processor(Pi0FlowProcessor, tokenizer, action_config, **settings)


def tiny_pair(family: str, tokenizer: Any, strings: Any = None, seed: int = 0, **settings: Any) -> tuple[Any, Any]:
    """A model of a family, `settings` fields of its configuration, and its processor."""
    if family == "pi0_flow":
        return tiny_pi0_flow_model(tokenizer, seed=seed, **settings), tiny_pi0_flow_processor(tokenizer)
    model, processor = {
        "openvla_plus": (tiny_model, tiny_processor),
        "pi0_plus": (tiny_pi0_model, tiny_pi0_processor),
    }[family]
    return model(tokenizer, strings, seed=seed, **settings), processor(tokenizer, strings)


def take_state(pair: tuple[Any, Any], width: int = 2, relative: Any = None) -> tuple[Any, Any]:
    """The pair, changed to take a state whose values range over [-1, 1]; `relative` are groups of dimensions."""
    model, processor = pair
    proprio = {"q01": [-1.0] * width, "q99": [1.0] * width}
    for key, entry in model.config.norm_stats.items():
        action = {**entry["action"], **({"relative": relative} if relative else {})}
        model.config.norm_stats = {**model.config.norm_stats, key: {**entry, "action": action, "proprio": proprio}}
    processor.state_statistics = {key: {"proprio": proprio} for key in model.config.norm_stats}
    model.config.action_config = processor.action_config = {**processor.action_config, "state": "input"}
    shown = model.config.model_type != "pi0_flow"
    model.config.prompt_template = processor.prompt_template = template_with_state(processor.prompt_template, shown)
    return pair


def picture(seed: int = 0, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """A random RGB picture of `size` (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def layer_operations(plans):
    """The names of what the recordings of plans compute a decoder's layers with; encoders have none."""
    return {
        type(entry.operations).__name__
        for plan in plans
        for (name, *_), entry in plan.recorded.items()
        if name.startswith("feed_")
    }
