"""Reads a saved model folder with this package's own classes, not with the code beside the weights."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from gen_vla import modeling
from gen_vla.processors import OpenVLAPlusImageProcessor, OpenVLAPlusProcessor, Pi0FlowProcessor, VLAPlusProcessor
from gen_vla.training.storage.json_files import read_json


# Reading a tokenizer, transformers warns of a `vla_plus` that it does not know: no code beside the weights is run.
logging.getLogger("transformers.configuration_utils").addFilter(
    lambda record: "type `vla_plus` to instantiate a model of type ``" not in record.getMessage()
)


class Family(NamedTuple):
    config: Any
    model: Any
    processor: Any


FAMILIES = {  # by `model_type`; the first two by name, since older versions of transformers lack some
    "openvla_plus": Family("OpenVLAPlusConfig", "OpenVLAPlusForVision2Seq", OpenVLAPlusProcessor),
    "pi0_flow": Family("Pi0FlowConfig", "Pi0FlowForActionPrediction", Pi0FlowProcessor),
    "vla_plus": Family("VLAPlusConfig", "VLAPlusForVision2Seq", VLAPlusProcessor),
}
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
REQUIRED = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
LARGE = 1_000_000_000  # parameters from which on a model is used in bfloat16


def dtype_name(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def used_dtype(model: Any, wanted: str | None = None) -> torch.dtype:
    """The type that weights are saved in: the one that is wanted, else bfloat16 from `LARGE` on and float32 below."""
    if wanted in (None, "auto"):
        return torch.bfloat16 if model.num_parameters() >= LARGE else torch.float32
    return getattr(torch, str(wanted))


def cast_weights(model: Any, dtype: torch.dtype) -> None:
    """Rounds the weights; `model.to` would also round the rotary frequencies, which loading does not."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def check_folder(folder: str | Path) -> Path:
    """The folder, if nothing is missing from it; `FileNotFoundError` names everything that is."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"got {folder}, expected the folder of a saved model; gen-vla train writes one")
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if (folder / WEIGHTS_INDEX).is_file():
        shards = set(read_json(folder / WEIGHTS_INDEX)["weight_map"].values())
        missing += sorted(shard for shard in shards if not (folder / shard).is_file())
    elif not (folder / WEIGHTS).is_file():
        missing.append(WEIGHTS)
    if missing:
        raise FileNotFoundError(
            f"got {folder} without {', '.join(missing)}, expected {', '.join(REQUIRED)} and {WEIGHTS} or its shards; "
            "copy the whole folder, or save model and processor into it with save_pretrained"
        )
    return folder


def has_processor(folder: Path) -> bool:
    """Whether all but the weights is there."""
    return all((folder / name).is_file() for name in REQUIRED)


def family_of(folder: Path) -> Family:
    """The classes a saved folder is read with; `ValueError` for a model of no family of this package."""
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"got {folder} with model_type {kind!r}, expected one of {', '.join(FAMILIES)}; gen-vla convert makes one "
            "of them from other projects' checkpoints"
        )
    return family_named(kind)


def family_named(kind: str) -> Family:
    """The classes of a `model_type`; `ImportError` where this transformers lacks the architecture."""
    config, model, processor = FAMILIES[kind]
    return Family(getattr(modeling, config), getattr(modeling, model), processor)


def read_config(folder: Path) -> Any:
    return family_of(folder).config.from_pretrained(folder)


def load_model(folder: str | Path, config: Any = None) -> Any:
    """The model of a complete folder, in float32 and evaluation mode; `config` replaces the saved one."""
    folder = check_folder(folder)
    config = config or read_config(folder)
    return family_of(folder).model.from_pretrained(folder, config=config, dtype=torch.float32).eval()


def load_processor(folder: str | Path) -> Any:
    return read_processor(check_folder(folder))


def read_processor(folder: Path) -> Any:
    """The same of a folder whose weights may be missing; see `has_processor`."""
    family = family_of(folder)
    if family.processor is VLAPlusProcessor:
        return VLAPlusProcessor.from_pretrained(folder)
    settings: dict[str, Any] = family.processor.get_processor_dict(folder)[0]
    kept = ("num_image_tokens", "action_config", "prompt_template", "image_token", "chat_template", "cameras")
    kept += ("state_statistics",)
    return family.processor(
        OpenVLAPlusImageProcessor.from_pretrained(folder),
        PreTrainedTokenizerFast.from_pretrained(folder),
        **{name: settings[name] for name in kept if name in settings},
    )
