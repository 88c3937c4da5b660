"""Checkpoints in other projects' layouts: the parity fixtures' tiny OpenVLA and its relatives.

Names, shapes and numbers come from `fixtures/openvla_parity`; the tokenizer is made up, with Llama-2's size and ids.
"""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tiny_models import tiny_tokenizer
from tokenizers import Tokenizer
from transformers import AutoModel, AutoProcessor


PARITY = Path(__file__).resolve().parents[1] / "fixtures" / "openvla_parity"
SPACE_ID = 29871  # Llama-2's piece for a lone space
AUTHORS_TOKENS = ("<VLM_PROMPT>", "<VLA_PROMPT>", "<VIS_TRACE_PROMPT>")
# From the Hub layout's names to those of a training run, the last two by a rule of their own.
RUN_SECTIONS = {
    "vision_backbone.featurizer.": ("vision_backbone", "dino_featurizer."),
    "vision_backbone.fused_featurizer.": ("vision_backbone", "siglip_featurizer."),
    "projector.fc1.": ("projector", "projector.0."),
    "projector.fc2.": ("projector", "projector.2."),
    "projector.fc3.": ("projector", "projector.4."),
    "language_model.": ("llm_backbone", "llm."),
}


def parity_tensors() -> dict[str, torch.Tensor]:
    """All tensors that the fixtures' script gave the original's tiny model, under the Hub layout's names."""
    weight = runpy.run_path(str(PARITY / "weights.py"))["weight"]
    shapes = json.loads((PARITY / "shapes.json").read_text(encoding="utf-8"))
    return {name: torch.from_numpy(weight(name, tuple(shape))) for name, shape in shapes.items()}


def full_size_shapes(layers: int = 32) -> dict[str, tuple[int, ...]]:
    """The shapes of openvla/openvla-7b's tensors, from the tiny model's names and the published widths.

    Args:
        layers: of the language model; 32 as published.
    """
    tiny = json.loads((PARITY / "shapes.json").read_text(encoding="utf-8"))
    widths = {
        "vision_backbone.featurizer": ({32: 1024, 96: 3072, 128: 4096}, "blocks", 24),
        "vision_backbone.fused_featurizer": ({48: 1152, 96: 2304, 144: 3456, 179: 4304}, "blocks", 27),
        "language_model": ({64: 4096, 96: 11008}, "layers", layers),
        "projector": ({80: 2176, 320: 8704, 64: 4096}, "-", 0),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in tiny.items():
        grown, blocks, depth = next(sizes for part, sizes in widths.items() if name.startswith(f"{part}."))
        first = f".{blocks}.0."
        names = [name.replace(first, f".{blocks}.{block}.") for block in range(depth)] if first in name else [name]
        if f".{blocks}." not in name or first in name:
            shapes |= dict.fromkeys(names, tuple(grown.get(size, size) for size in shape))
    return shapes


def expected() -> dict[str, np.ndarray]:
    """What the original code made of the fixtures' pictures and prompts."""
    with np.load(PARITY / "expected.npz") as kept:
        return dict(kept)


def wide_tokenizer(added: tuple[str, ...] = ("<PAD>",)) -> Tokenizer:
    """32,000 pieces in Llama-2's places as far as they matter, then `added`."""
    content = json.loads(tiny_tokenizer("llama_like").backend_tokenizer.to_str())
    small = content["model"]["vocab"]
    pieces = [piece for piece in sorted(small, key=lambda piece: small[piece]) if piece != "▁"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    vocabulary["▁"] = SPACE_ID
    used = set(vocabulary.values())
    vocabulary |= {f"filler{number}": number for number in range(32000) if number not in used}
    content["model"]["vocab"] = vocabulary
    content["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens(list(added))
    return tokenizer


def write_hub_folder(folder: Path, tensors: dict[str, torch.Tensor], tokenizer: Tokenizer, shards: int = 2) -> Path:
    """OpenVLA's Hub layout."""
    folder.mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(PARITY / name, folder / name)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = [f"model-{place + 1:05d}-of-{shards:05d}.safetensors" for place in range(shards)]
    parts: list[dict[str, torch.Tensor]] = [{} for _ in names]
    for place, name in enumerate(tensors):
        parts[place * shards // len(tensors)][name] = tensors[name].contiguous()
    weight_map = {}
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def run_state(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The state dictionaries of a training run, from tensors under the Hub layout's names."""
    state: dict[str, dict[str, torch.Tensor]] = {"vision_backbone": {}, "projector": {}, "llm_backbone": {}}
    for name, tensor in tensors.items():
        prefix = next(prefix for prefix in RUN_SECTIONS if name.startswith(prefix))
        section, start = RUN_SECTIONS[prefix]
        state[section][start + name.removeprefix(prefix).replace("scale_factor", "gamma")] = tensor
    return state


def write_run_folder(
    folder: Path, tensors: dict[str, torch.Tensor], vla: bool = True, checkpoint: str = "latest-checkpoint.pt"
) -> Path:
    """A training run of OpenVLA, or of the vision-language model it starts from."""
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"model": run_state(tensors)}, folder / "checkpoints" / checkpoint)
    if vla:
        settings: dict[str, Any] = {"vla": {"base_vlm": "prism-dinosiglip-224px+7b"}, "seed": 7}
        statistics = json.loads((PARITY / "config.json").read_text(encoding="utf-8"))["norm_stats"]
        (folder / "dataset_statistics.json").write_text(json.dumps(statistics), encoding="utf-8")
    else:
        settings = {"model": {"vision_backbone_id": "dinosiglip-vit-so-224px", "llm_backbone_id": "llama2-7b-pure"}}
        settings["model"]["image_resize_strategy"] = "resize-naive"
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def load_converted(folder: Path) -> tuple[Any, Any]:
    """Model and processor of a folder, as its users load them."""
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    return model, AutoProcessor.from_pretrained(folder, trust_remote_code=True)
