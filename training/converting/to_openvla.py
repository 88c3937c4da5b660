"""Writes a model of `openvla_plus` in OpenVLA's Hub layout: `gen-vla convert SRC DST --to openvla`.

    config.json, preprocessor_config.json, tokenizer files, model-*.safetensors    as openvla/openvla-7b has them
    dataset_statistics.json    the units of its actions
    action_format.json         what another engine has to know to act: prompts, lead-in, what it may write

The plan of `modeling/convert_openvla_weights.py` is read backwards. What OpenVLA's files have and its features do not
depend on (last blocks, final norms, SigLIP's pool) is written as zeros.
"""

import shutil
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from gen_vla.modeling import OpenVLAPlusConfig
from gen_vla.modeling.action_grammar import grammar_from_action_config
from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.modeling.convert_openvla_weights import ATTENTION_HEADS, DINO, SIGLIP, plan_openvla
from gen_vla.processors.action_statistics import action_bounds
from gen_vla.training.checkpoints import read_processor
from gen_vla.training.converting.foreign_layouts import read_json, weights_of
from gen_vla.training.converting.writing import new_folder
from gen_vla.training.storage.json_files import write_json
from gen_vla.training.storage.tensor_files import Output, SafetensorsFolder, write_shards


TIMM_IDS = {
    224: ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    384: ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_384"],
}
TEXT_SETTINGS = ("rms_norm_eps", "max_position_embeddings", "hidden_act", "vocab_size", "head_dim")
TEXT_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def convert_to_openvla(source: str | Path, destination: Path, max_shard_bytes: int = 5 * 10**9) -> Path:
    """Writes a folder that OpenVLA's own code and vLLM's OpenVLA class read.

    Args:
        source: a folder, or a name on the Hub, of a model of `openvla_plus`.
        destination: the folder to write; must not exist yet.

    Raises:
        ConversionError: if the model is of another family, or of sizes that OpenVLA's layout cannot say.
        FileExistsError: if the destination exists.
    """
    folder = Path(source) if Path(source).is_dir() else Path(snapshot_download(str(source)))
    kind = read_json(folder / "config.json").get("model_type")
    if kind != OpenVLAPlusConfig.model_type:
        raise ConversionError(
            f"got a model of type {kind!r}, expected {OpenVLAPlusConfig.model_type!r}: others have no OpenVLA in them"
        )
    config, processor = OpenVLAPlusConfig.from_pretrained(folder), read_processor(folder)
    if (config.action_config or {}).get("state"):
        raise ConversionError(
            f"got {folder}, a model that takes the robot's state, expected one without: OpenVLA's code has no place "
            "for it"
        )
    with new_folder(destination) as draft:
        draft.mkdir()
        outputs = openvla_outputs(config, weights_of(folder))
        dtype = max(outputs, key=lambda output: output.nbytes).dtype
        write_json(draft / "config.json", openvla_settings(config, dtype))
        write_json(draft / "preprocessor_config.json", picture_settings(processor.image_processor))
        processor.tokenizer.save_pretrained(draft)
        if config.action_config:
            write_json(draft / "action_format.json", action_format(processor))
        if (folder / "dataset_statistics.json").is_file():
            write_json(draft / "dataset_statistics.json", openvla_statistics(config.norm_stats))
        if (folder / "generation_config.json").is_file():
            shutil.copyfile(folder / "generation_config.json", draft / "generation_config.json")
        write_shards(draft, outputs, max_shard_bytes)
    return destination


def openvla_statistics(norm_stats: dict[str, Any] | None) -> dict[str, Any]:
    """Statistics whose q01 and q99 are what actions are scaled by, since OpenVLA's code knows nothing else."""
    found = {}
    for key, entry in (norm_stats or {}).items():
        low, high, _ = action_bounds(entry["action"], len(entry["action"]["q01"]))
        action = {**entry["action"], "q01": low.tolist(), "q99": high.tolist()}
        action.pop("normalization", None)
        found[key] = {**entry, "action": action}
    return found


def openvla_outputs(config: OpenVLAPlusConfig, tensors: SafetensorsFolder) -> list[Output]:
    pieces: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name, piece in plan_openvla(config).items():
        if piece.source is not None:
            pieces[piece.source].append((piece.part, name))
    if missing := [name for found in pieces.values() for _, name in found if name not in tensors.shapes]:
        raise ConversionError(f"got a model without {missing[0]}, expected the tensors of openvla_plus; load it whole")
    outputs = []
    for theirs, found in pieces.items():
        parts = [name for _, name in sorted(found)]
        first = tensors.shapes[parts[0]]
        shape = (len(parts) * first[0], *first[1:])
        if theirs == f"{DINO}.pos_embed":  # without that of CLS
            shape = (1, first[1] - 1, first[2])
        elif theirs == f"{SIGLIP}.pos_embed":
            shape = (1, *first)
        outputs.append(Output(theirs, shape, tensors.dtypes[parts[0]], partial(read_theirs, tensors, theirs, parts)))
    return outputs + without_effect(config, {output.name: output for output in outputs})


def read_theirs(tensors: SafetensorsFolder, theirs: str, parts: list[str]) -> torch.Tensor:
    joined = torch.cat([tensors.read(name) for name in parts])
    if theirs == f"{DINO}.pos_embed":
        return joined[:, 1:].contiguous()
    if theirs == f"{DINO}.cls_token":  # timm adds no position to CLS, transformers does
        return joined + tensors.read(parts[0].replace("cls_token", "position_embeddings"))[:, :1]
    return joined.unsqueeze(0) if theirs == f"{SIGLIP}.pos_embed" else joined


def without_effect(config: OpenVLAPlusConfig, outputs: dict[str, Output]) -> list[Output]:
    """Zeros for what OpenVLA's files have besides: last blocks, final norms, SigLIP's pool."""
    shapes: dict[str, tuple[int, ...]] = {}
    for encoder, part in ((DINO, config.dino_config), (SIGLIP, config.siglip_config)):
        first, last = f"{encoder}.blocks.0.", f"{encoder}.blocks.{part.num_hidden_layers - 1}."
        shapes |= {name.replace(first, last): out.shape for name, out in outputs.items() if name.startswith(first)}
        shapes |= {f"{encoder}.norm.{kind}": (part.hidden_size,) for kind in ("weight", "bias")}
    width, hidden = config.siglip_config.hidden_size, config.siglip_config.intermediate_size
    pool = f"{SIGLIP}.attn_pool"
    shapes[f"{pool}.latent"] = (1, 1, width)
    linear = {"q": (width, width), "kv": (2 * width, width), "proj": (width, width)}
    linear |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    for name, size in linear.items():
        shapes |= {f"{pool}.{name}.weight": size, f"{pool}.{name}.bias": size[:1]}
    shapes |= {f"{pool}.norm.{kind}": (width,) for kind in ("weight", "bias")}
    dtype = outputs[f"{DINO}.pos_embed"].dtype
    return [Output(name, shape, dtype, partial(torch.zeros, shape)) for name, shape in shapes.items()]


def openvla_settings(config: OpenVLAPlusConfig, dtype: torch.dtype) -> dict[str, Any]:
    dino, siglip, text = config.dino_config, config.siglip_config, config.text_config
    size = siglip.image_size
    heads = [ATTENTION_HEADS[timm_id.partition(".")[0]] for timm_id in TIMM_IDS.get(size, ())]
    if dino.image_size != size or heads != [dino.num_attention_heads, siglip.num_attention_heads]:
        raise ConversionError(
            f"got encoders for {dino.image_size} and {size} pixels with {dino.num_attention_heads} and "
            f"{siglip.num_attention_heads} heads, expected both for {' or '.join(map(str, TIMM_IDS))} pixels with 16 "
            "heads: OpenVLA's files name them by timm's models, which have these"
        )
    action = config.action_config or {}
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "vision_backbone_id": f"dinosiglip-vit-so-{size}px",
        "llm_backbone_id": "llama2-7b-pure",
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "use_fused_vision_backbone": True,
        "timm_model_ids": TIMM_IDS[size],
        "timm_override_act_layers": [None, None],
        "image_sizes": [size, size],
        "image_resize_strategy": "resize-naive",
        "llm_max_length": text.max_position_embeddings,
        "pad_token_id": text.pad_token_id,
        "pad_to_multiple_of": 64,
        "output_projector_states": False,
        "n_action_bins": action.get("bins", 256),
        "norm_stats": openvla_statistics(config.norm_stats),
        "torch_dtype": str(dtype).removeprefix("torch."),
        "text_config": {
            "model_type": "llama",
            **{name: getattr(text, name) for name in (*TEXT_SIZES, *TEXT_SETTINGS)},
            **rope_settings(text),
            **{f"{name}_token_id": getattr(text, f"{name}_token_id") for name in ("bos", "eos", "pad")},
        },
    }


def rope_settings(text: Any) -> dict[str, Any]:
    rope = dict(getattr(text, "rope_parameters", None) or {"rope_theta": text.rope_theta})
    scaled = rope.get("rope_type", "default") != "default"
    return {"rope_theta": rope.pop("rope_theta"), **({"rope_scaling": rope} if scaled else {})}


def picture_settings(images: Any) -> dict[str, Any]:
    if images.resize_strategy != "resize-naive":
        raise ConversionError(f"got the resizing {images.resize_strategy!r}, expected 'resize-naive', as OpenVLA has")
    size, towers = images.image_size, list(zip(images.means, images.stds, strict=True))
    side = {"size": [size, size], "interpolation": 3, "max_size": None, "antialias": True}
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "processor_class": "PrismaticProcessor",
        "use_fused_vision_backbone": True,
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, size, size]] * len(towers),
        "interpolations": ["bicubic"] * len(towers),
        "means": images.means,
        "stds": images.stds,
        "tvf_resize_params": [side] * len(towers),
        "tvf_crop_params": [{"output_size": [size, size]}] * len(towers),
        "tvf_normalize_params": [{"inplace": False, "mean": mean, "std": std} for mean, std in towers],
        "tvf_do_letterbox": False,
        "tvf_letterbox_fill": None,
    }


def action_format(processor: Any) -> dict[str, Any]:
    """What is said to the model and what it may write: prompts, ids in between, a regular expression and ids.

    The expression alone would admit other tokens of the same text, such as Llama's for single bytes.
    """
    config = processor.action_config
    grammar = grammar_from_action_config(config)
    used = {token for following in grammar.transitions for token in following}
    if config["representation"] == "bins":  # no expression says when the action is complete
        used.remove(grammar.eos_token_id)
    kept = ("representation", "action_dim", "horizon", "decimals", "style", "binary_dims", "bins", "lead_in_ids")
    return {
        "prompt": processor.prompt_template["action"],
        "question": processor.prompt_template["question"],
        **{name: config[name] for name in kept if name in config},
        "regular_expression": action_pattern(config),
        "token_ids": sorted(used),
        "max_tokens": grammar.max_tokens,
        "center_crop_area": getattr(processor.image_processor, "center_crop_area", None),
    }


def action_pattern(action_config: dict[str, Any]) -> str | None:
    """A regular expression of what `ActionStringProcessor.decode` reads; `None` for bins and the legacy style."""
    style = action_config.get("style")
    if style not in ("signed", "plain"):
        return None
    decimals = action_config["decimals"]
    one, any_digits, plus = f"1\\.0{{{decimals}}}", f"0\\.[0-9]{{{decimals}}}", "\\+" if style == "signed" else ""
    not_zero = "|".join(f"0{{{place}}}[1-9][0-9]{{{decimals - place - 1}}}" for place in range(decimals))
    number = f"(?:{plus}(?:{one}|{any_digits})|-(?:{one}|0\\.(?:{not_zero})))"
    binary = f"{plus}[01]\\.0{{{decimals}}}"
    dims = [
        binary if dim in (action_config.get("binary_dims") or ()) else number
        for dim in range(action_config["action_dim"])
    ]
    between, steps = ("", "\\n") if style == "signed" else ("\\n", "\\n\\n")
    return steps.join([between.join(dims)] * action_config["horizon"])
