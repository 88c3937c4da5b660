"""Makes a `VLAPlusForVision2Seq` of a vision-language model of transformers: `gen-vla convert SRC DST`.

Weights stream through one by one (`stock_checkpoint.py`); the frozen copy's are those of the encoder once more.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig
from transformers.models.auto import modeling_auto, processing_auto

from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.modeling.vlm_families import FAMILIES, family_of
from gen_vla.processors import read_stock, with_actions
from gen_vla.training.converting.stock_checkpoint import read_checkpoint, write_model


def vlm_type(source: str | Path) -> str | None:
    """The `model_type` of a folder or a name on the Hub if it is one of `FAMILIES` or `vla_plus`, else `None`;
    `ValueError` for a vision-language model of transformers that is not supported, before its weights are downloaded.
    """
    if Path(source).is_file():
        return None
    try:
        settings, _ = PretrainedConfig.get_config_dict(str(source))
    except OSError:
        return None
    model_type, stock = settings.get("model_type"), modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if model_type in stock:
        family_of(AutoConfig.from_pretrained(str(source)))
        if quantized := settings.get("quantization_config"):
            raise ConversionError(
                f"got weights that are quantised ({quantized.get('quant_method')}), expected those of the model that "
                "they were made of, in half precision or float32; convert that one"
            )
    return model_type if model_type in (*FAMILIES, "vla_plus") else None


def convert_vlm(
    source: str | Path,
    destination: Path,
    dual: bool = True,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
    check: bool = True,
) -> None:
    """Converts a vision-language model. It does not act yet: it gets its action format from the recipe that trains it.

    Args:
        dual: whether its vision encoder is doubled and one copy frozen (D).
        dtype: of the weights; by default the checkpoint's own.
        check: whether the result is loaded and compared with the base model on a random picture, bit for bit.
    """
    # Not at the top: the other families run with a transformers that lacks this one.
    from gen_vla.modeling import VLAPlusConfig, VLAPlusForVision2Seq

    found = read_checkpoint(source)
    names: Any = processing_auto.PROCESSOR_MAPPING_NAMES  # pyright: ignore[reportPrivateImportUsage]
    stock_class = getattr(transformers, names[found.config.model_type])
    processor = with_actions(read_stock(found.folder, stock_class))
    frozen = "vision" if dual else None
    with torch.device("meta"):  # shapes without memory
        model = VLAPlusForVision2Seq(VLAPlusConfig(found.config, frozen, prompt_template=processor.prompt_template))
    model.generation_config = found.generation_config
    origins = {
        name: name.removeprefix("vlm.").replace("model.frozen_vision.", "model.") for name in model.state_dict()
    }
    origins = {name: stock for name, stock in origins.items() if stock in found.sources}
    write_model(destination, model, found, origins, dtype, max_shard_bytes)
    processor.save_pretrained(destination)
    if check:
        check_step_0(found.folder, destination, processor, dtype)


def check_step_0(base: Path, converted: Path, processor: Any, dtype: torch.dtype | None) -> None:
    """Raises `ConversionError` if two folders' models have other logits for a random picture. One of them is in memory
    at a time: in that of mapped files, of which the system keeps what there is room for, unless `dtype` changes them.
    """
    from gen_vla.modeling import VLAPlusForVision2Seq

    pixels = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    inputs = processor.question_inputs(Image.fromarray(pixels.numpy()), "What is this?")
    expected = first_logits(AutoModelForImageTextToText.from_pretrained(base, dtype=dtype or "auto"), inputs)
    found = first_logits(VLAPlusForVision2Seq.from_pretrained(converted, dtype="auto"), inputs)
    if not torch.equal(found, expected):
        raise ConversionError(
            f"got logits that differ from the base model's by up to {(found - expected).abs().max():.3g} on a "
            "random picture, expected the same ones; please report it with the name of the model"
        )


@torch.no_grad()
def first_logits(model: Any, inputs: Any) -> torch.Tensor:
    """Logits float [1, L, V], with the attention that every family has: another one rounds otherwise."""
    model.set_attn_implementation("eager")
    return model.eval()(**inputs).logits
