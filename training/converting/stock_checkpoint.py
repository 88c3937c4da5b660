"""A checkpoint of a vision-language model of transformers, whose weights are read and written one by one.

Which tensor of the files is which weight of the model, transformers itself decides: its own loader gets tensors of one
number each, stretched to the shapes in the files, and so shows where it puts them. Every layout of files that it knows
is therefore known here, and nothing is read from them for it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, GenerationConfig, PretrainedConfig

from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.training.checkpoints import read_config
from gen_vla.training.converting.foreign_layouts import local_folder, weights_of
from gen_vla.training.converting.writing import save_architecture
from gen_vla.training.storage.tensor_files import Output, SafetensorsFolder, write_shards


FILES = ["*.json", "*.jinja", "*.txt", "*.model", "model*.safetensors"]


@dataclass(frozen=True)
class StockCheckpoint:
    """What a checkpoint says.

    Attributes:
        tensors: in its files.
        sources: by name in the stock model, that of a tensor; tied weights by the first of their names.
        dtype: that the stock model is loaded with.
    """

    folder: Path
    config: Any
    generation_config: Any
    tensors: SafetensorsFolder
    sources: dict[str, str]
    dtype: torch.dtype


def read_checkpoint(source: str | Path) -> StockCheckpoint:
    """A folder, or a name on the Hub, of a stock model or of a `vla_plus` with one encoder, which has one inside;
    `ConversionError` for missing and for unknown weights.
    """
    folder = local_folder(source, FILES)
    inside = PretrainedConfig.get_config_dict(folder)[0].get("model_type") == "vla_plus"
    config: Any = read_config(folder) if inside else AutoConfig.from_pretrained(folder)
    if inside and config.frozen:
        raise ConversionError(f"got {folder} with two encoders, expected one, as gen-vla convert --no-dual makes it")
    config = config.vlm_config if inside else config
    config.name_or_path = ""  # not this machine's
    stock_class: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    tensors = weights_of(folder)
    names = list(tensors.shapes)
    numbered = {
        name.removeprefix("vlm." if inside else ""): torch.tensor(float(place)).expand(tensors.shapes[name])
        for place, name in enumerate(names)
    }
    vlm, info = stock_class.from_pretrained(
        None,
        config=config,
        state_dict=numbered,
        dtype=torch.float32,  # which holds the numbers
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    check_weights(info, vlm)
    sources: dict[str, str] = {}
    for name, tensor in vlm.state_dict().items():
        if tensor.untyped_storage().nbytes() > tensor.element_size():
            raise ConversionError(f"got {name}, which transformers computes from the checkpoint's, expected a copy")
        source = names[int(tensor[(0,) * tensor.ndim])]
        if source not in sources.values():
            sources[name] = source
    try:
        generation_config = GenerationConfig.from_pretrained(folder)
    except OSError:
        generation_config = vlm.generation_config
    largest = max(names, key=lambda name: math.prod(tensors.shapes[name]))
    return StockCheckpoint(
        folder, config, generation_config, tensors, sources, config.dtype or tensors.dtypes[largest]
    )


def check_weights(info: dict[str, Any], vlm: Any) -> None:
    missing = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    unexpected = sorted(info["unexpected_keys"])
    if missing or unexpected:
        raise ConversionError(
            f"got a checkpoint with {len(missing)} missing and {len(unexpected)} unexpected weights "
            f"({', '.join([*missing, *unexpected][:3])}...), expected those of {type(vlm).__name__}; the download may "
            "be incomplete, or the architecture another"
        )


def write_model(
    draft: Path,
    model: Any,
    found: StockCheckpoint,
    origins: dict[str, str],
    dtype: torch.dtype | None,
    max_shard_bytes: int,
    made: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes a model as `save_pretrained` would.

    Args:
        model: on the meta device.
        origins: by name in the model, that of the same weight in the stock model; tied ones once.
        dtype: of the weights; by default each keeps its own.
        made: by name in the model, weights that the stock model does not have.
    """
    # Not at the top: OpenVLA is converted with transformers 4, too, which has no such names.
    from transformers.core_model_loading import revert_weight_conversion

    made = made or {}
    known = {id(weight) for name, weight in model.state_dict(keep_vars=True).items() if name in {*origins, *made}}
    assert known >= {id(weight) for weight in model.parameters()}
    weights = {name: weight for name, weight in model.state_dict().items() if name in {*origins, *made}}
    names = {id(weight): name for name, weight in revert_weight_conversion(model, weights).items()}

    def output(name: str, own: torch.dtype, read: Callable[[], torch.Tensor]) -> Output:
        return Output(names[id(weights[name])], tuple(weights[name].shape), dtype or own, read)

    outputs = [output(name, found.dtype, weight.clone) for name, weight in made.items()]
    for name, stock in origins.items():
        source = found.sources[stock]
        outputs.append(output(name, found.tensors.dtypes[source], partial(found.tensors.read, source)))
    draft.mkdir()
    save_architecture(draft, model, dtype or found.dtype)
    write_shards(draft, outputs, max_shard_bytes)
