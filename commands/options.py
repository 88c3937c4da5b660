"""What several commands share: options declared once, how a model is loaded, how results are written."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option


Model = Annotated[str, Argument(help="A folder, or a name on the Hub or in the cache.")]
OptionalModel = Annotated[str | None, Argument(help="A folder, or a name on the Hub or in the cache.")]
Output = Annotated[Path | None, Option(help="Write the results there as JSON.")]
UnnormKey = Annotated[str | None, Option(help="Whose units the actions have (default: the model's only data set).")]
Dtype = Annotated[
    Literal["auto", "bfloat16", "float32"], Option(help="Type of the model's weights (auto: as they are saved).")
]


def entries(text: str) -> list[str]:
    """`"a,b"` to `["a", "b"]`, and `""` to an empty list."""
    return [entry for entry in text.split(",") if entry]


def write_results(results: dict[str, Any], output: Path | None, data: Iterable[str | Path | None] = ()) -> None:
    """Writes JSON if an output is given, with the provenance and a record of how the model was trained.

    `model` in the results is the one that was measured, a folder or a name, and `models` names those it was compared
    with by their roles; `data` are the data sets that were read, of which `None` is left out.
    """
    from gen_vla.training.provenance.origin import provenance, with_provenance
    from gen_vla.training.provenance.training_record import with_record

    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        model = results.get("model")
        compared = [name for name in results.get("models", {}).values() if name != model]
        written = with_provenance(with_record(results, model), provenance(model, data, compared))
        output.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def load_any(name: str, dtype: str = "auto") -> tuple[Any, Any]:
    """A model and its processor by folder or by name, with the code that comes with it, on a GPU if there is one.

    A LoRA adapter, such as a checkpoint of a run, is merged into its base model, and has the code of this package; so
    has `package://NAME`, a model that comes with it.

    Args:
        dtype: of the weights, "float32" or "bfloat16"; "auto" is the one they are saved in.
    """
    import torch
    from transformers import AutoModel, AutoProcessor

    from gen_vla.training.checkpoints import cast_weights
    from gen_vla.training.lora import is_adapter, load_checkpoint, saved_dtype
    from gen_vla.training.model_building import PACKAGE_PREFIX, initial_model_folder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    packaged = name.startswith(PACKAGE_PREFIX)
    if packaged:
        name = str(initial_model_folder(name, Path()))
    check_model_name(name)
    if packaged or is_adapter(name):
        merged, processor = load_checkpoint(name)
        cast_weights(merged, saved_dtype(name) if dtype == "auto" else getattr(torch, dtype))
        return merged.to(device), processor
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    model = AutoModel.from_pretrained(name, trust_remote_code=True, dtype=dtype).eval()
    return model.to(device), processor


def check_model_name(name: str) -> None:
    """Raises `FileNotFoundError` for what no model is loaded from, before the Hub is asked for it."""
    from gen_vla.training.checkpoints import check_folder
    from gen_vla.training.lora import check_checkpoint, is_adapter

    if Path(name).is_dir():
        if is_adapter(name):
            check_checkpoint(name)
        elif not (Path(name) / "config.json").is_file():
            check_folder(name)  # names what is missing
    elif name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"got model {name!r}, which is no folder here ({Path(name).absolute()}) and no OWNER/NAME of the Hub; "
            "correct the path"
        )
