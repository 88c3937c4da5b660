"""Writes converted models: their configuration and code, and their weights one by one."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.dynamic_module_utils import custom_object_save


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """A folder to be made, which becomes `destination` at the end of the `with` block; nothing is left by an error;
    raises `FileExistsError` if the destination exists.
    """
    if destination.exists():
        raise FileExistsError(f"got {destination}, which exists; name a new folder, or remove that one first")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}-", dir=destination.parent) as temporary:
        draft = Path(temporary) / destination.name
        yield draft
        draft.rename(destination)


def save_architecture(folder: Path, model: Any, dtype: torch.dtype) -> None:
    """Everything that `save_pretrained` writes but the weights, which are of this dtype."""
    config = model.config
    config.architectures = [type(model).__name__]
    set_dtype(config, str(dtype).removeprefix("torch."))
    custom_object_save(model, str(folder), config=config)
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def set_dtype(config: Any, dtype: str) -> None:
    """Of a configuration and of those in it."""
    config.dtype = dtype
    for part in (getattr(config, name, None) for name in config.sub_configs):
        if part is not None:
            set_dtype(part, dtype)
