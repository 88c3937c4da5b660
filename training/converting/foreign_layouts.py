"""Recognises the layout of another project's checkpoint and reads everything but its weights (`conversion.py`).

    layout                     recognised by                        what is read
    OpenVLA on the Hub         config.json: model_type openvla      *.safetensors, tokenizer.json, norm_stats,
                                                                    image processor
    Prismatic/OpenVLA run      config.json: "vla" or "model"        checkpoints/*.pt, dataset_statistics.json

The image processor is in preprocessor_config.json where transformers 4 saved it, and in processor_config.json where
transformers 5 did.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from transformers import PreTrainedTokenizerFast
from transformers.image_processing_base import ImageProcessingMixin

from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.modeling.convert_openvla_weights import hub_name
from gen_vla.modeling.vlm_families import FAMILIES as VLMS
from gen_vla.training.storage.json_files import read_json as read_json_file
from gen_vla.training.storage.tensor_files import SafetensorsFolder, TorchCheckpoint


DINOSIGLIP = ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"]
LLAMA2 = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}  # of the base models that runs start from
LLAMA2_HEADS = {"7b": 32, "13b": 40}
IMAGE_TOKEN = "<image>"
LLAMA_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<PAD>"}
GEMMA_TOKENS = {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}


@dataclass
class OpenVLACheckpoint:
    """What a checkpoint of OpenVLA or Prismatic says.

    Attributes:
        tensors: under the Hub layout's names.
        timm_ids, text: see `openvla_config`.
        norm_stats: OpenVLA's statistics by data set; empty for a model that only talks.
        pixels: arguments of the image processor; constants as the checkpoint stores them.
        tokenizer_folder: where the tokenizer is, if it came along.
        bins: the number of bins, and the first token id behind theirs (`None`: the end of the vocabulary).
    """

    tensors: SafetensorsFolder | TorchCheckpoint
    timm_ids: list[str]
    text: dict[str, Any]
    norm_stats: dict[str, Any]
    pixels: dict[str, Any] = field(default_factory=dict)
    tokenizer_folder: Path | None = None
    bins: int = 256
    bin_tokens_end: int | None = None


def read_source(source: str | Path) -> OpenVLACheckpoint:
    """Finds out which layout a source has and reads everything but the tensors themselves."""
    path = Path(source)
    if path.suffix == ".pt" and path.is_file():
        return read_run(path.parent.parent, path)
    # The last marks OpenVLA-OFT.
    folder = local_folder(source, ["*.json", "*.safetensors", "tokenizer.model", "proprio_projector*"])
    settings = read_json(folder / "config.json")
    if "vla" in settings or "model" in settings:
        return read_run(folder, newest_checkpoint(folder / "checkpoints"))
    if settings.get("model_type") in ("openvla", "prismatic"):
        return read_hub_layout(folder, settings)
    raise ConversionError(
        f"got {folder} with model_type={settings.get('model_type')!r}, expected 'openvla' or 'prismatic', the folder "
        f"of a Prismatic training run, or a vision-language model: {', '.join(VLMS)}"
    )


def local_folder(source: str | Path, wanted: list[str]) -> Path:
    """A folder, or, by a name on the Hub, the one that its files were downloaded into, those of these patterns."""
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise FileNotFoundError(f"got {source}, which is no folder and no name on the Hub like openvla/openvla-7b")
    return Path(snapshot_download(str(source), allow_patterns=wanted))


def read_hub_layout(folder: Path, settings: dict[str, Any]) -> OpenVLACheckpoint:
    # OpenVLA-OFT has OpenVLA's layout, and acts by networks in files beside it.
    beside = sorted(path.name for word in ("action_head", "proprio_projector") for path in folder.glob(f"{word}*"))
    if beside:
        raise ConversionError(
            f"got {folder.name} with {', '.join(beside)}, which is a checkpoint of OpenVLA-OFT: its actions come from "
            "a head that this family does not have, and its language model was not trained to write them; expected a "
            "checkpoint of OpenVLA"
        )
    text = dict(settings.get("text_config") or {})
    if any(settings.get("timm_override_act_layers") or []):
        raise ConversionError(
            f"got encoders with the activations {settings['timm_override_act_layers']}, expected none but their own"
        )
    extra = folder / "dataset_statistics.json"  # of fine-tuning; OpenVLA's users put it there
    statistics = {**(settings.get("norm_stats") or {}), **(read_json(extra) if extra.is_file() else {})}
    bin_tokens_end = None
    if "vocab_size" in text:  # padded to a multiple of 64, with at least one token behind the bins': padding
        bin_tokens_end = text["vocab_size"] - settings.get("pad_to_multiple_of", 64)
    return OpenVLACheckpoint(
        tensors=weights_of(folder),
        timm_ids=settings.get("timm_model_ids") or [],
        text={"pad_token_id": settings.get("pad_token_id", 32000), **text},
        norm_stats=statistics,
        pixels=read_image_constants(image_settings(folder)),
        tokenizer_folder=folder,
        bins=settings.get("n_action_bins", 256),
        bin_tokens_end=bin_tokens_end,
    )


def image_settings(folder: str | Path) -> dict[str, Any]:
    """What a folder's image processor was saved with, by transformers 4 or 5; no code of the folder is run."""
    try:
        return ImageProcessingMixin.get_image_processor_dict(str(folder))[0]
    except OSError as error:
        raise FileNotFoundError(
            f"got {folder} without an image processor, expected preprocessor_config.json, or one in "
            "processor_config.json; copy the whole folder"
        ) from error


def weights_of(folder: Path) -> SafetensorsFolder:
    """A folder's safetensors; raises `FileNotFoundError` if there are none."""
    tensors = SafetensorsFolder(folder)
    if not tensors.shapes:
        raise FileNotFoundError(f"got {folder} without *.safetensors, expected the weights; download them, too")
    return tensors


def read_image_constants(settings: dict[str, Any]) -> dict[str, Any]:
    """Means and standard deviations, per encoder.

    The released processor normalises with `tvf_normalize_params`, which went through bfloat16 on their way, and not
    with the `means` and `stds` beside them; the former are what the model saw.
    """
    check_resize(settings.get("image_resize_strategy", "letterbox"))
    if odd := [name for name in settings.get("interpolations", []) if name != "bicubic"]:
        raise ConversionError(f"got a resize with {odd[0]} interpolation, expected bicubic")
    if stored := settings.get("tvf_normalize_params"):
        return {"means": [entry["mean"] for entry in stored], "stds": [entry["std"] for entry in stored]}
    if not settings.get("means") or not settings.get("stds"):
        raise ConversionError(
            f"got an image processor with {', '.join(sorted(settings)) or 'no settings'}, expected "
            "tvf_normalize_params, or means and stds, as OpenVLA's has"
        )
    return {"means": settings["means"], "stds": settings["stds"]}


def check_resize(strategy: str) -> None:
    if strategy != "resize-naive":
        raise ConversionError(
            f"got image_resize_strategy={strategy!r}, expected 'resize-naive'; pictures of another shape would be "
            "seen differently than in training"
        )


def newest_checkpoint(folder: Path) -> Path:
    steps = {int(match[1]): path for path in folder.glob("*.pt") if (match := re.search(r"step-(\d+)", path.name))}
    latest = folder / "latest-checkpoint.pt"
    if not steps and not latest.is_file():
        raise FileNotFoundError(f"got no checkpoint in {folder}, expected latest-checkpoint.pt or step-*.pt")
    return latest if latest.is_file() else steps[max(steps)]


def read_run(folder: Path, checkpoint: Path) -> OpenVLACheckpoint:
    """A training run of Prismatic or OpenVLA, in which the names of the base models stand for their sizes."""
    settings = read_json(folder / "config.json")
    if "vla" in settings:
        base = str(settings["vla"]["base_vlm"])
        strategy = "letterbox" if "letterbox" in base else "resize-naive"
        norm_stats = read_json(folder / "dataset_statistics.json")
    else:
        model = settings["model"]
        base, norm_stats = f"{model['vision_backbone_id']} {model['llm_backbone_id']}", {}
        strategy = model.get("image_resize_strategy", "resize-naive")
    size = re.search(r"\d+b", base)
    if "dinosiglip" not in base or size is None or size[0] not in LLAMA2_HEADS or "mistral" in base:
        raise ConversionError(
            f"got a run on {base!r}, expected one on DINOv2 and SigLIP ('dinosiglip') and Llama-2 of 7b or 13b"
        )
    check_resize(strategy)
    return OpenVLACheckpoint(
        tensors=TorchCheckpoint(checkpoint, "model", hub_name),
        timm_ids=DINOSIGLIP,
        text={**LLAMA2, "num_attention_heads": LLAMA2_HEADS[size[0]], "pad_token_id": 32000},
        norm_stats=norm_stats,
    )


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"got no {path}, expected it beside the weights; copy the whole folder")
    return read_json_file(path)


def load_tokenizer(
    source: str | Path | None, special_tokens: dict[str, str], text_config: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer with padding and the image placeholder, both inside the model's vocabulary.

    Its `tokenizer.json` is taken as it is. Nothing else of its configuration is, which may name code of its own.
    """
    if source is None:
        raise ConversionError(
            "got a training run, which holds no tokenizer, and no tokenizer; pass --tokenizer with a folder or a name "
            "on the Hub, such as meta-llama/Llama-2-7b-hf"
        )
    folder = Path(source)
    file = folder / "tokenizer.json" if folder.is_dir() else Path(hf_hub_download(str(source), "tokenizer.json"))
    if not file.is_file():
        raise FileNotFoundError(
            f"got {source} without tokenizer.json, expected a fast tokenizer; pass --tokenizer, or, with "
            "tokenizer.model alone, write it where sentencepiece and protobuf are installed: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        **special_tokens,
        additional_special_tokens=[IMAGE_TOKEN],
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    if len(tokenizer) > text_config.vocab_size:
        raise ConversionError(
            f"got a tokenizer of {len(tokenizer)} tokens, {IMAGE_TOKEN} included, and an embedding of "
            f"{text_config.vocab_size} rows, expected a row for each"
        )
    for name in ("bos", "eos", "pad"):
        got, expected = (getattr(owner, f"{name}_token_id") for owner in (tokenizer, text_config))
        if got != expected:
            raise ConversionError(
                f"got a tokenizer whose {name} token is {got}, expected {expected}; it belongs to another model"
            )
    return tokenizer
