"""Makes a `VLAPlusForVision2Seq` of a vision-language model of transformers: `gen-vla convert SRC DST`.

The stock classes read the checkpoint, so that every layout of files they know is known here. The whole model is in
memory while it is converted.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, PretrainedConfig
from transformers.models.auto import processing_auto

from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.modeling.vlm_families import FAMILIES
from gen_vla.processors import read_stock, with_actions


def vlm_type(source: str | Path) -> str | None:
    """The `model_type` of a folder or a name on the Hub if it is one of `FAMILIES`, else `None`."""
    if Path(source).is_file():
        return None
    try:
        settings, _ = PretrainedConfig.get_config_dict(str(source))
    except OSError:
        return None
    return settings.get("model_type") if settings.get("model_type") in FAMILIES else None


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
    from gen_vla.modeling import VLAPlusForVision2Seq

    vlm = read_vlm(source, dtype)
    names: Any = processing_auto.PROCESSOR_MAPPING_NAMES  # pyright: ignore[reportPrivateImportUsage]
    stock_class = getattr(transformers, names[vlm.config.model_type])
    processor = with_actions(read_stock(source, stock_class))
    pixels = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    noise = Image.fromarray(pixels.numpy())
    inputs = processor.question_inputs(noise, "What is this?")
    expected = first_logits(vlm, inputs) if check else None
    model = VLAPlusForVision2Seq.from_vlm(vlm, "vision" if dual else None, prompt_template=processor.prompt_template)
    model.save_pretrained(destination, max_shard_size=max_shard_bytes)
    processor.save_pretrained(destination)
    del model, vlm  # one of them in memory at a time
    if expected is not None:
        found = first_logits(VLAPlusForVision2Seq.from_pretrained(destination, dtype="auto"), inputs)
        if not torch.equal(found, expected):
            raise ConversionError(
                f"got logits that differ from the base model's by up to {(found - expected).abs().max():.3g} on a "
                "random picture, expected the same ones; please report it with the name of the model"
            )


def read_vlm(source: str | Path, dtype: torch.dtype | None = None) -> Any:
    """The stock model of a folder or a name on the Hub; `ConversionError` for missing and for unknown weights."""
    read: Any = AutoModelForImageTextToText.from_pretrained
    vlm, info = read(source, dtype=dtype or "auto", output_loading_info=True)
    missing = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    unexpected = sorted(info["unexpected_keys"])
    if missing or unexpected:
        raise ConversionError(
            f"got a checkpoint with {len(missing)} missing and {len(unexpected)} unexpected weights "
            f"({', '.join([*missing, *unexpected][:3])}...), expected those of {type(vlm).__name__}; the download may "
            "be incomplete, or the architecture another"
        )
    return vlm


@torch.no_grad()
def first_logits(model: Any, inputs: Any) -> torch.Tensor:
    """Logits float [1, L, V]."""
    return model.eval()(**inputs).logits
